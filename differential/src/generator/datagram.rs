//! Flows without connections of their own: UDP, pings, other protocols.

use std::net::IpAddr;

use super::dice::Dice;
use super::{AH, Flow, Places, Shot};
use crate::frame::{Ip, Side, be16, proto};
use crate::observe::{Exit, Observation};
use crate::packet::{Packet, icmp, pattern, udp};

/// What two hosts exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Udp,
    UdpLite,
    /// Queries of this type and the answers' type.
    Query(u8, u8),
    Gre,
    /// Any other protocol.
    Other(u8),
}

/// One end: where it is, and the other as it knows it.
#[derive(Clone, Copy, Debug)]
struct End {
    side: Side,
    own: (IpAddr, u16),
    peer: Option<(IpAddr, u16)>,
}

/// Two hosts that send each other datagrams.
#[derive(Debug)]
pub struct DatagramFlow {
    what: What,
    translated: bool,
    long: bool,
    ends: [End; 2],
    budget: usize,
    under_way: usize,
    /// Answers that the other end owes.
    owed: usize,
    sequence: u16,
}

impl DatagramFlow {
    /// A flow that `places` allows.
    pub fn new(places: &Places, dice: &mut Dice) -> Self {
        let (mut client, server, mut public) =
            places.pair(if dice.percent(60) { proto::UDP } else { proto::ICMP }, dice);
        let v4 = client.1.is_ipv4();
        let what = match dice.below(100) {
            0..60 => What::Udp,
            60..85 => match (v4, dice.percent(85)) {
                (true, true) => What::Query(8, 0),
                (true, false) => dice.of(&[What::Query(13, 14), What::Query(15, 16), What::Query(17, 18)]),
                (false, true) => What::Query(128, 129),
                (false, false) => What::Query(139, 140),
            },
            85..90 => What::Gre,
            90..94 => What::UdpLite,
            _ => What::Other(dice.of(&[4, 33, 41, 50, AH, 94, 103, 112, 253])),
        };
        if !matches!(what, What::Udp | What::UdpLite) {
            public.0 = if public.0 == server.1 { public.0 } else { server.1 };
        }
        if matches!(what, What::Other(_) | What::Gre) {
            client.2 = 0;
        }
        let ends = [
            End { side: client.0, own: (client.1, client.2), peer: Some(public) },
            End { side: server.0, own: (server.1, server.2), peer: None },
        ];
        Self {
            what,
            translated: !places.is_plain(),
            // What is never cut must fit the link.
            long: places.long && what != What::Other(AH),
            ends,
            budget: dice.of(&[1, 2, 4, 8, 20, 50]),
            under_way: 0,
            owed: 0,
            sequence: 0,
        }
    }

    fn packet(&self, end: usize, dice: &mut Dice) -> Option<Packet> {
        let e = self.ends[end];
        let peer = e.peer?;
        let (src, dst) = (e.own.0, peer.0);
        let len = dice.of(&[0, 1, 8, 20, 100, 512, 1200]);
        let len = if self.long && dice.percent(40) { dice.of(&[1473, 2000, 3000, 8192, 20_000]) } else { len };
        let odd = dice.permille(15);
        Some(match self.what {
            What::Udp | What::UdpLite => {
                let lite = self.what == What::UdpLite;
                let mut l4 = udp(e.own.1, peer.1, &pattern(len));
                if odd {
                    let wrong = dice.of(&[0, 7, 8, 9, 4000]);
                    l4[4..6].copy_from_slice(&u16::to_be_bytes(wrong));
                }
                let mut p = Packet::new(src, dst, if lite { proto::UDPLITE } else { proto::UDP }, l4);
                if dice.percent(3) {
                    p.l4[6..8].fill(0); // no checksum
                }
                p
            }
            What::Query(request, answer) => {
                let mut kind = if end == 0 { request } else { answer };
                let mut code = 0;
                if odd {
                    kind = dice.byte();
                } else if dice.permille(15) {
                    code = dice.byte();
                }
                let id = if end == 0 { e.own.1 } else { peer.1 };
                let [a, b] = id.to_be_bytes();
                let [c, d] = self.sequence.to_be_bytes();
                let p = if src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
                Packet::new(src, dst, p, icmp(kind, code, [a, b, c, d], &pattern(len)))
            }
            What::Gre => {
                // What Linux cannot translate keeps an address pair that others want later.
                let mut l4 = vec![0, 0, 8, 0];
                if odd {
                    l4[1] = dice.byte() & if self.translated { 1 } else { 7 };
                }
                l4.extend(pattern(if self.translated { len.max(8) } else { len }));
                Packet::new(src, dst, proto::GRE, l4)
            }
            What::Other(p) => Packet::new(src, dst, p, pattern(len)),
        })
    }
}

impl Flow for DatagramFlow {
    fn next(&mut self, dice: &mut Dice) -> Option<Shot> {
        self.budget = self.budget.checked_sub(1)?;
        let end =
            if self.ends[1].peer.is_some() && (self.owed > 0 || dice.percent(10)) && dice.percent(80) { 1 } else { 0 };
        if end == 1 {
            self.owed = self.owed.saturating_sub(1);
        } else if dice.percent(80) {
            self.sequence = self.sequence.wrapping_add(1);
        }
        let packet = self.packet(end, dice)?;
        self.under_way = end;
        Some(Shot::new(self.ends[end].side, packet))
    }

    fn seen(&mut self, seen: &Observation, dice: &mut Dice) {
        let to = 1 - self.under_way;
        for (exit, frame) in &seen.out {
            let Some(p) = Ip::of_frame(frame).filter(|_| *exit == Exit::Link(self.ends[to].side)) else { continue };
            if p.is_icmp_error() || p.fragment.is_some() {
                continue;
            }
            let b = p.payload();
            let port = match self.what {
                What::Query(..) => be16(b, 4),
                What::Udp | What::UdpLite => be16(b, 0),
                _ => Some(0),
            };
            if let Some(port) = port
                && to == 1
            {
                self.ends[1].peer = Some((p.src, port));
                self.owed += usize::from(dice.percent(80));
            }
        }
    }
}
