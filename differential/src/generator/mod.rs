//! Plausible traffic from a seed: several flows at a time, between hosts that answer what reaches them.
//!
//! The generator is told what came of each packet it sends and goes on from there, so that translated addresses, drops
//! and errors have their consequences; with the same answers it sends the same packets again, which is how a record is
//! replayed. Most packets are what hosts would send; some are changed on the way, cut into fragments, sent twice, sent in
//! on the wrong side, answered by errors.
//!
//! *Limits*: [`FLOWS`] flows at a time.

mod cutter;
mod datagram;
pub mod dice;
mod ftp;
mod sctp;
mod tcp;
mod tftp;

use std::collections::VecDeque;
use std::net::IpAddr;

use cutter::Cutter;
use datagram::DatagramFlow;
use dice::Dice;
use ftp::FtpFlow;
use sctp::SctpFlow;
use tcp::TcpFlow;
use tftp::TftpFlow;

use crate::frame::{ETH, Ip, Side, proto, to_router};
use crate::observe::{Exit, Observation};
use crate::packet::{Packet, icmp, pattern};
use crate::policy::{Nat, Policy};

/// Flows that run side by side.
pub const FLOWS: usize = 12;

/// Transport bytes that any link takes in one packet.
const LINK: usize = 1400;

/// IPsec's authentication header.
const AH: u8 = 51;

/// Packets that left and may be quoted by an error.
const QUOTABLE: usize = 40;

/// A packet that a flow sends.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Where.
    pub side: Side,
    /// What.
    pub packet: Packet,
    /// Whether it arrives as it was sent.
    pub intact: bool,
}

impl Shot {
    /// A packet of a station on `side`.
    pub const fn new(side: Side, packet: Packet) -> Self {
        Self { side, packet, intact: false }
    }
}

/// Two hosts or more that have something to say.
trait Flow {
    /// The next packet; `None` where the flow is over.
    fn next(&mut self, dice: &mut Dice) -> Option<Shot>;
    /// What came of it.
    fn seen(&mut self, seen: &Observation, dice: &mut Dice);
}

/// A host's link, address and port.
type Host = (Side, IpAddr, u16);

/// An address and port.
type End = (IpAddr, u16);

/// Who may speak with whom under a policy.
#[derive(Debug)]
pub struct Places {
    nat: bool,
    zones: bool,
    /// Whether datagrams may be longer than a link takes, since they are cut.
    long: bool,
    /// Whether connections to them are watched: FTP, TFTP.
    helpers: [bool; 2],
    /// Forwarded ports: protocol, public end, server.
    dnat: Vec<(u8, End, End)>,
}

impl Places {
    fn new(policy: &Policy) -> Self {
        let dnat = policy.nat.iter().filter_map(|n| match n {
            Nat::Dnat { proto, address, port, to_address, to_port } => {
                let p = if proto == "tcp" { proto::TCP } else { proto::UDP };
                let port = port.as_ref()?.parse().ok()?;
                let to_port = to_port.as_ref().map_or(Some(port), |p| p.parse().ok())?;
                Some((p, (address.parse().ok()?, port), (to_address.parse().ok()?, to_port)))
            }
            _ => None,
        });
        let helpers = ["ftp", "tftp"].map(|name| policy.helpers.iter().any(|h| h.0 == name));
        Self { nat: !policy.nat.is_empty(), zones: policy.zones != [0; 2], long: false, helpers, dnat: dnat.collect() }
    }

    /// Whether nothing is translated.
    pub const fn is_plain(&self) -> bool {
        !self.nat
    }

    /// A client, a server, and the server as the client knows it.
    fn pair(&self, p: u8, dice: &mut Dice) -> (Host, Host, End) {
        self.pair_to(p, None, dice)
    }

    /// The same, of a server on that port if one is given.
    fn pair_to(&self, p: u8, on: Option<u16>, dice: &mut Dice) -> (Host, Host, End) {
        let v4 = dice.percent(70);
        let text = |s: String| s.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let inside =
            text(if v4 { format!("10.0.0.{}", dice.within(2..=6)) } else { format!("fd00:1::{}", dice.within(2..=5)) });
        let outside = text(match (v4, dice.percent(80)) {
            (true, true) => format!("198.51.100.{}", dice.within(10..=14)),
            (true, false) => format!("203.0.113.{}", dice.within(1..=9)),
            (false, true) => format!("2001:db8::{}", dice.within(10..=13)),
            (false, false) => format!("2001:db8:5::{}", dice.within(1..=9)),
        });
        let port = match dice.below(20) {
            0 => dice.within(1..=511),
            1 => dice.within(512..=1023),
            _ => dice.within(1024..=65535),
        };
        let port = u16::try_from(port).unwrap_or(1);
        let service = on.unwrap_or(dice.of(&[80, 443, 53, 8080, 22, 40000]));
        let forwarded: Vec<_> = self.dnat.iter().filter(|d| d.0 == p && on.is_none_or(|port| d.1.1 == port)).collect();
        if !forwarded.is_empty() && dice.percent(50) {
            let &&(_, public, server) = &forwarded[dice.below(forwarded.len())];
            let v4 = public.0.is_ipv4();
            let client = if v4 == outside.is_ipv4() {
                outside
            } else {
                text(if v4 { "198.51.100.15".into() } else { "2001:db8::15".into() })
            };
            return ((Side::Wan, client, port), (Side::Lan, server.0, server.1), public);
        }
        if dice.percent(4) {
            // From outside, which the policy does not want.
            return ((Side::Wan, outside, port), (Side::Lan, inside, service), (inside, service));
        }
        ((Side::Lan, inside, port), (Side::Wan, outside, service), (outside, service))
    }
}

/// Frames of one shot, still to be sent.
#[derive(Debug, Default)]
struct Pending {
    frames: VecDeque<(Side, Vec<u8>)>,
    flow: Option<usize>,
    seen: Observation,
}

/// A source of frames.
pub struct Generator {
    dice: Dice,
    places: Places,
    flows: Vec<Box<dyn Flow>>,
    pending: Pending,
    /// What left, and by which link.
    quotable: VecDeque<(Side, Vec<u8>)>,
    fragment_id: u32,
    /// Set where most datagrams are to be cut.
    cutter: Option<Cutter>,
}

impl Generator {
    /// Traffic of `seed` under `policy`.
    pub fn new(seed: u64, policy: &Policy) -> Self {
        Self {
            dice: Dice::new(seed),
            places: Places::new(policy),
            flows: Vec::new(),
            pending: Pending::default(),
            quotable: VecDeque::new(),
            fragment_id: 1,
            cutter: None,
        }
    }

    /// The same, but most of it in fragments, cut and spoilt in every way.
    pub fn fragmented(seed: u64, policy: &Policy) -> Self {
        let mut all = Self::new(seed, policy);
        all.places.long = true;
        all.cutter = Some(Cutter::default());
        all
    }

    /// The next frame and where it is sent. [`Generator::seen`] must be told of it before the next one.
    pub fn next_frame(&mut self) -> (Side, Vec<u8>) {
        loop {
            if let Some(frame) = self.pending.frames.pop_front() {
                return frame;
            }
            self.pending = Pending::default();
            if let Some((side, ip)) = self.cutter.as_mut().and_then(|c| c.late(&mut self.dice)) {
                return (side, to_router(side, &ip));
            }
            while self.flows.len() < FLOWS {
                let flow: Box<dyn Flow> = match self.dice.below(10) {
                    5 if self.places.helpers[0] => Box::new(FtpFlow::new(&self.places, &mut self.dice)),
                    9 if self.places.helpers[1] => Box::new(TftpFlow::new(&self.places, &mut self.dice)),
                    0..6 => Box::new(TcpFlow::new(&self.places, &mut self.dice)),
                    6 if self.dice.percent(40) => Box::new(SctpFlow::new(&self.places, &mut self.dice)),
                    _ => Box::new(DatagramFlow::new(&self.places, &mut self.dice)),
                };
                self.flows.push(flow);
            }
            if self.dice.permille(25) {
                if let Some(shot) = self.error() {
                    self.load(shot, None);
                }
                continue;
            }
            let n = self.dice.below(self.flows.len());
            match self.flows[n].next(&mut self.dice) {
                Some(shot) => self.load(shot, Some(n)),
                None => drop(self.flows.remove(n)),
            }
        }
    }

    /// What came of the frame.
    pub fn seen(&mut self, seen: &Observation) {
        for (exit, frame) in &seen.out {
            if let (Exit::Link(side), Some(ip)) = (exit, frame.get(ETH..)) {
                self.quotable.push_back((*side, ip.to_vec()));
                if self.quotable.len() > QUOTABLE {
                    self.quotable.pop_front();
                }
            }
        }
        self.pending.seen.out.extend(seen.out.iter().cloned());
        if self.pending.frames.is_empty()
            && let Some(flow) = self.pending.flow.and_then(|n| self.flows.get_mut(n))
        {
            flow.seen(&self.pending.seen, &mut self.dice);
        }
    }

    /// Makes frames of a shot, with what may happen to any packet.
    fn load(&mut self, mut shot: Shot, flow: Option<usize>) {
        let dice = &mut self.dice;
        shot.packet.id = dice.short();
        shot.packet.df = dice.percent(40);
        let mut side = shot.side;
        if shot.intact {
            let frames = VecDeque::from([(side, to_router(side, &shot.packet.ip()))]);
            self.pending = Pending { frames, flow, seen: Observation::default() };
            return;
        }
        if dice.permille(8) {
            shot.packet.break_checksum();
        }
        if dice.permille(3) {
            shot.packet.ttl = dice.of(&[0, 1, 2]);
        }
        // Linux looks for a connection outside of the zone too where there is none in it; in Sluice a zone is apart.
        if dice.permille(3) && !self.places.zones {
            side = side.other();
        }
        if dice.permille(4) && !shot.packet.src.is_ipv4() {
            let kind = dice.of(&[0, 60, 43, 60]);
            shot.packet.extensions.push((kind, vec![0, 0, 1, 4, 0, 0, 0, 0]));
        }
        if dice.permille(4) {
            let keep = dice.below(shot.packet.l4.len().max(1));
            shot.packet.l4.truncate(keep);
        }
        // SCTP's checksum is of the whole datagram: a fragment cannot be given another port.
        let whole = match shot.packet.proto {
            proto::SCTP => !self.places.is_plain(),
            // Linux forwards the first fragment of what looks like an IPv6 header cut short by itself.
            AH => !shot.packet.src.is_ipv4(),
            _ => false,
        };
        let long = shot.packet.l4.len() > 16 && !whole;
        let frames = if let Some(cutter) = self.cutter.as_mut().filter(|_| !shot.packet.l4.is_empty() && !whole)
            && (shot.packet.l4.len() > LINK || dice.percent(70))
        {
            self.fragment_id += 1;
            cutter.cut(shot.packet, self.fragment_id, side, dice)
        } else if long && dice.permille(15) {
            self.fragment_id += 1;
            let id = self.fragment_id;
            shot.packet.df = false;
            let step = self.dice.of(&[8, 24, 64, 256, 1000]).max(shot.packet.l4.len() / 12);
            let mut pieces = shot.packet.fragments(id, step);
            if self.dice.percent(30) {
                pieces.reverse();
            }
            if self.dice.percent(10) {
                let lost = self.dice.below(pieces.len());
                pieces.remove(lost);
            }
            if self.dice.percent(10) && !pieces.is_empty() && shot.packet.src.is_ipv4() {
                let again = self.dice.below(pieces.len());
                let piece = pieces[again].clone();
                pieces.insert(again, piece);
            }
            pieces
        } else {
            vec![shot.packet.ip()]
        };
        let frames = frames.iter().map(|ip| (side, to_router(side, ip))).collect();
        self.pending = Pending { frames, flow, seen: Observation::default() };
    }

    /// An ICMP error about something that left, from the side where it went.
    fn error(&mut self) -> Option<Shot> {
        let dice = &mut self.dice;
        if self.quotable.is_empty() {
            return None;
        }
        let (side, ip) = self.quotable[dice.below(self.quotable.len())].clone();
        let about = Ip::read(&ip)?;
        let v4 = about.src.is_ipv4();
        let router: IpAddr = match (v4, side) {
            (true, Side::Wan) => "203.0.113.254",
            (true, Side::Lan) => "10.0.0.6",
            (false, Side::Wan) => "2001:db8:7::1",
            (false, Side::Lan) => "fd00:1::5",
        }
        .parse()
        .ok()?;
        let from = if dice.percent(50) { about.dst } else { router };
        let (kind, code) = if v4 {
            dice.of(&[
                (3, 0),
                (3, 1),
                (3, 3),
                (3, 4),
                (3, 13),
                (4, 0),
                (5, 1),
                (11, 0),
                (11, 1),
                (12, 0),
                (8, 0),
                (6, 0),
            ])
        } else {
            dice.of(&[(1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (100, 0), (137, 0), (0, 0)])
        };
        let header = about.l4;
        let quote = match dice.below(6) {
            0 => header + 8,
            1 => header + 4,
            2 => header + dice.below(24),
            _ => ip.len(),
        };
        let mut quoted = ip[..ip.len().min(quote).min(1200)].to_vec();
        if dice.percent(5) && !quoted.is_empty() {
            let at = dice.below(quoted.len());
            quoted[at] ^= 1 << dice.below(8);
        }
        let dst = if dice.percent(4) { about.dst } else { about.src };
        let rest = if kind == 3 && code == 4 || kind == 2 { [0, 0, 5, 0] } else { [0; 4] };
        let p = if v4 { proto::ICMP } else { proto::ICMPV6 };
        let body = if dice.permille(10) { pattern(20) } else { quoted };
        Some(Shot::new(side, Packet::new(from, dst, p, icmp(kind, code, rest, &body))))
    }
}
