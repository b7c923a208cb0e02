//! A TFTP transfer: a request to the well-known port, which another port answers.
//!
//! *Sources*: RFC 1350.

use super::dice::Dice;
use super::{End, Flow, Host, Places, Shot};
use crate::frame::{Ip, be16, proto};
use crate::observe::{Exit, Observation};
use crate::packet::{Packet, udp};

/// TFTP's port for requests.
pub const PORT: u16 = 69;

/// A transfer between two hosts.
#[derive(Debug)]
pub struct TftpFlow {
    client: Host,
    server: Host,
    /// The server as the client knows it.
    public: End,
    /// The port that answers.
    transfer: u16,
    /// Who answers, as the client knows it.
    answers: Option<End>,
    /// The client as the server knows it.
    asks: Option<End>,
    budget: usize,
    from_client: bool,
}

impl TftpFlow {
    /// A transfer that `places` allows.
    pub fn new(places: &Places, dice: &mut Dice) -> Self {
        let (client, server, public) = places.pair_to(proto::UDP, Some(PORT), dice);
        let transfer = u16::try_from(dice.within(1024..=65535)).unwrap_or(1024);
        let budget = dice.of(&[2, 6, 15]);
        Self { client, server, public, transfer, answers: None, asks: None, budget, from_client: true }
    }
}

impl Flow for TftpFlow {
    fn next(&mut self, dice: &mut Dice) -> Option<Shot> {
        self.budget = self.budget.checked_sub(1)?;
        if dice.percent(4) {
            // Another file: another port answers.
            self.transfer = u16::try_from(dice.within(1024..=65535)).unwrap_or(1024);
            self.answers = None;
        }
        self.from_client = self.asks.is_none() || dice.percent(50);
        let (host, port, to, text) = match (self.from_client, self.answers, self.asks) {
            (true, Some(answers), _) if dice.percent(90) => (self.client, self.client.2, answers, &b"\0\x04\0\x01"[..]),
            (false, _, Some(asks)) => {
                let text = dice.of(&[&b"\0\x03\0\x01data"[..], b"\0\x05\0\x01no such file\0"]);
                (self.server, self.transfer, asks, text)
            }
            _ => (
                self.client,
                self.client.2,
                self.public,
                dice.of(&[&b"\0\x01file\0octet\0"[..], b"\0\x02file\0octet\0"]),
            ),
        };
        Some(Shot::new(host.0, Packet::new(host.1, to.0, proto::UDP, udp(port, to.1, text))))
    }

    fn seen(&mut self, seen: &Observation, dice: &mut Dice) {
        let to = if self.from_client { self.server } else { self.client };
        for (exit, frame) in &seen.out {
            let Some(p) = Ip::of_frame(frame).filter(|_| *exit == Exit::Link(to.0)) else { continue };
            if p.proto != proto::UDP || p.fragment.is_some() || dice.percent(5) {
                continue;
            }
            let end = be16(p.payload(), 0).map(|port| (p.src, port));
            if self.from_client {
                self.asks = end;
            } else {
                self.answers = end;
            }
        }
    }
}
