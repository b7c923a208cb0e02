//! An SCTP association as two hosts would have it, most of the time.
//!
//! *Sources*: RFC 9260.

use std::net::IpAddr;

use super::dice::Dice;
use super::{Flow, Places, Shot};
use crate::frame::{Ip, Side, be16, be32, proto};
use crate::observe::{Exit, Observation};
use crate::packet::Packet;

/// One end.
#[derive(Debug)]
struct End {
    side: Side,
    own: (IpAddr, u16),
    peer: Option<(IpAddr, u16)>,
    /// The tag that the other must use.
    tag: u32,
    /// The tag that this one must use.
    peer_tag: u32,
}

/// An association between two hosts.
#[derive(Debug)]
pub struct SctpFlow {
    ends: [End; 2],
    /// Chunks to send: from which end, their types.
    queue: Vec<(usize, Vec<u8>)>,
    up: bool,
    budget: usize,
    under_way: usize,
}

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

impl SctpFlow {
    /// An association that `places` allows.
    pub fn new(places: &Places, dice: &mut Dice) -> Self {
        let (client, server, _) = places.pair(proto::SCTP, dice);
        let end = |side, own, peer, dice: &mut Dice| End { side, own, peer, tag: dice.word() | 1, peer_tag: 0 };
        let a = end(client.0, (client.1, client.2), Some((server.1, server.2)), dice);
        let b = end(server.0, (server.1, server.2), None, dice);
        let first = if dice.percent(90) { INIT } else { HEARTBEAT };
        let (queue, budget) = (vec![(0, vec![first])], dice.of(&[6, 12, 30]));
        Self { ends: [a, b], queue, up: false, budget, under_way: 0 }
    }

    fn packet(&self, end: usize, chunks: &[u8], dice: &mut Dice) -> Option<Packet> {
        let e = &self.ends[end];
        let peer = e.peer?;
        let mut tag = if chunks.first() == Some(&INIT) { 0 } else { e.peer_tag };
        if dice.percent(3) {
            tag = dice.of(&[0, e.tag, dice.clone().word()]);
        }
        let mut l4 = [e.own.1.to_be_bytes(), peer.1.to_be_bytes()].concat();
        l4.extend(tag.to_be_bytes());
        l4.extend([0; 4]);
        for kind in chunks {
            let mut body = match *kind {
                INIT | INIT_ACK => [e.tag.to_be_bytes().as_slice(), &[0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat(),
                DATA => vec![0; 16],
                SACK => vec![0; 12],
                HEARTBEAT | HEARTBEAT_ACK => vec![0, 1, 0, 8, 1, 2, 3, 4],
                SHUTDOWN | COOKIE_ECHO => vec![0; 4],
                _ => vec![],
            };
            let mut len = u16::try_from(4 + body.len()).unwrap_or(4);
            if dice.permille(10) {
                len = dice.of(&[0, 1, 3, 4, 5, 8, 1000]);
            }
            let flags = if *kind == DATA {
                3
            } else {
                u8::from(matches!(*kind, ABORT | SHUTDOWN_COMPLETE) && dice.percent(20))
            };
            l4.extend([*kind, flags]);
            l4.extend(len.to_be_bytes());
            l4.append(&mut body);
            l4.resize(l4.len().next_multiple_of(4), 0);
        }
        Some(Packet::new(e.own.0, peer.0, proto::SCTP, l4))
    }
}

impl Flow for SctpFlow {
    fn next(&mut self, dice: &mut Dice) -> Option<Shot> {
        self.budget = self.budget.checked_sub(1)?;
        let at = if dice.percent(10) { dice.below(self.queue.len().max(1)) } else { 0 };
        let (end, mut chunks) = if at < self.queue.len() && dice.percent(80) {
            self.queue.remove(at)
        } else {
            let kind = if self.up {
                dice.of(&[DATA, DATA, DATA, DATA, HEARTBEAT, SHUTDOWN, ABORT])
            } else {
                dice.of(&[INIT, HEARTBEAT, COOKIE_ECHO])
            };
            (dice.below(2), vec![kind])
        };
        if dice.percent(5) {
            chunks = vec![dice.of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 64, 130])];
        } else if dice.percent(10) {
            chunks.push(DATA);
        }
        let packet = self.packet(end, &chunks, dice)?;
        self.under_way = end;
        Some(Shot::new(self.ends[end].side, packet))
    }

    fn seen(&mut self, seen: &Observation, _: &mut Dice) {
        let to = 1 - self.under_way;
        for (exit, frame) in &seen.out {
            let Some(p) = Ip::of_frame(frame).filter(|_| *exit == Exit::Link(self.ends[to].side)) else { continue };
            let b = p.payload();
            let (Some(port), Some(&kind)) = (be16(b, 0).filter(|_| p.proto == proto::SCTP), b.get(12)) else {
                continue;
            };
            let e = &mut self.ends[to];
            e.peer = Some((p.src, port));
            if matches!(kind, INIT | INIT_ACK) {
                e.peer_tag = be32(b, 16).unwrap_or(0);
            }
            let answer = match kind {
                INIT => INIT_ACK,
                INIT_ACK => COOKIE_ECHO,
                COOKIE_ECHO => COOKIE_ACK,
                DATA => SACK,
                HEARTBEAT => HEARTBEAT_ACK,
                SHUTDOWN => SHUTDOWN_ACK,
                SHUTDOWN_ACK => SHUTDOWN_COMPLETE,
                _ => continue,
            };
            self.up |= kind == COOKIE_ECHO;
            self.queue.push((to, vec![answer]));
        }
    }
}
