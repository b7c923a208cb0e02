//! PPTP through the lab: its messages, calls and their packets.

use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;

use super::ftp::{FAR, GATEWAY, HOST, INSIDE};
use super::lab::*;
use super::pkt::*;
use super::session::{End, Session, Side};
pub use super::ways::Way;
use super::ways::{both_ends, masquerading, only_control};

/// A message with its kind's length.
pub fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = [156, 156, 16, 16, 16, 20, 168, 32, 220, 24, 28, 16, 148, 40, 24][usize::from(kind) - 1];
    let mut m = vec![0; length];
    m[..2].copy_from_slice(&(length as u16).to_be_bytes());
    m[2..10].copy_from_slice(&[0, 1, 0x1a, 0x2b, 0x3c, 0x4d, 0, kind as u8]);
    for (to, from) in m[12..].iter_mut().zip(body) {
        *to = *from;
    }
    m
}

/// A message that begins with ids.
pub fn ids(kind: u16, ids: &[u16]) -> Vec<u8> {
    let body: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    message(kind, &body)
}

pub fn start_request() -> Vec<u8> {
    message(1, &[1, 0])
}

pub fn start_reply() -> Vec<u8> {
    message(2, &[1, 0, 1, 0])
}

pub fn call_request(id: u16) -> Vec<u8> {
    ids(7, &[id, 1])
}

pub fn call_reply(id: u16, peer: u16, result: u8) -> Vec<u8> {
    ids(8, &[id, peer, u16::from(result) << 8])
}

/// A packet of a call.
pub fn gre(src: &str, dst: &str, id: u16) -> Pkt {
    let [hi, lo] = id.to_be_bytes();
    other(src, dst, proto::GRE, &[0x30, 1, 0x88, 0x0b, 0, 3, hi, lo, 0, 0, 0, 1, b'p', b'p', b'p'])
}

/// The call id of a packet that has left.
pub fn call_id(seen: &Seen) -> u16 {
    assert_eq!(seen.proto, proto::GRE);
    be16_at(&seen.ip, 26)
}

/// New connections to port 1723 pass, others only where they are RELATED.
pub fn strict() -> PolicySpec {
    only_control(HelperKind::Pptp, 1723)
}

pub fn masqueraded() -> PolicySpec {
    masquerading(strict())
}

pub fn forwarded() -> PolicySpec {
    let mut p = strict();
    dnat(&mut p, 1723, INSIDE, None);
    p.rules.pop();
    p
}

/// Both translations at once.
pub fn both() -> PolicySpec {
    both_ends(forwarded())
}

pub fn ways() -> Vec<Way> {
    vec![
        Way::out("plain", strict(), HOST, FAR),
        Way::inwards("plain inwards", strict(), FAR, INSIDE),
        Way::out("masqueraded", masqueraded(), HOST, FAR),
        Way::inwards("forwarded", forwarded(), FAR, GATEWAY),
        Way::inwards("both", both(), FAR, GATEWAY),
    ]
}

/// A control connection, and what the other side gets of each message.
#[derive(Clone, Debug)]
pub struct Talk {
    pub tcp: Session,
}

impl Talk {
    /// Opens it; the two have agreed on a session.
    #[track_caller]
    pub fn open(lab: &mut Lab, way: &Way, port: u16) -> Self {
        let (from, to) = way.links;
        let tcp = Session::open(lab, from, (way.client, port), to, (way.service, 1723));
        let mut talk = Self { tcp };
        assert_eq!(talk.client(lab, &start_request()), start_request());
        assert_eq!(talk.server(lab, &start_reply()), start_reply());
        talk
    }

    /// The client says something; gives what the server gets.
    #[track_caller]
    pub fn client(&mut self, lab: &mut Lab, m: &[u8]) -> Vec<u8> {
        self.says(lab, Side::Client, m)
    }

    #[track_caller]
    pub fn server(&mut self, lab: &mut Lab, m: &[u8]) -> Vec<u8> {
        self.says(lab, Side::Server, m)
    }

    #[track_caller]
    pub fn says(&mut self, lab: &mut Lab, side: Side, m: &[u8]) -> Vec<u8> {
        let end = self.tcp.end(side);
        let p = end.segment(ACK | PSH, end.next, end.waits, m);
        end.next = end.next.wrapping_add(m.len() as u32);
        let before = self.tcp.other(side).got.len();
        assert_eq!(self.tcp.raw(lab, side, &p).len(), 1, "drops: {:?}", lab.drops());
        self.tcp.other(side).got[before..].to_vec()
    }

    /// The client asks for a call and the server grants it; gives the client's id as the server knows it.
    #[track_caller]
    pub fn call(&mut self, lab: &mut Lab, own: u16, pac: u16) -> u16 {
        let asked = self.client(lab, &call_request(own));
        let pns = be16_at(&asked, 12);
        assert_eq!(asked, call_request(pns));
        assert_eq!(self.server(lab, &call_reply(pac, pns, 1)), call_reply(pac, own, 1));
        pns
    }

    pub fn ends(&self, side: Side) -> (&End, &End) {
        match side {
            Side::Client => (&self.tcp.client, &self.tcp.server),
            Side::Server => (&self.tcp.server, &self.tcp.client),
        }
    }

    /// A packet of the call from `side` with the id `said` arrives with the id `heard`.
    #[track_caller]
    pub fn passes(&self, lab: &mut Lab, side: Side, said: u16, heard: u16) {
        let (from, to) = self.ends(side);
        let seen = lab.passes(from.link, &gre(&from.address, &from.peer.0, said), to.link);
        assert_eq!((seen.src, seen.dst), (ip(&to.peer.0), ip(&to.address)));
        assert_eq!(call_id(&seen), heard);
    }

    /// A packet from `side` with the id `said` belongs to no call.
    #[track_caller]
    pub fn refuses(&self, lab: &mut Lab, side: Side, said: u16) {
        let (from, _) = self.ends(side);
        lab.refuses(from.link, &gre(&from.address, &from.peer.0, said), DropReason::PolicyDefault);
    }
}
