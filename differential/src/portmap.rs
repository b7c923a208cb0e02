//! Ports that two systems chose differently for the same flow: frames are sent to each system with its own port, and what
//! it says is read with the reference's.
//!
//! A port belongs to a reply tuple, since one external port serves many destinations. *Life-cycle*: learnt when both
//! systems show a connection with the same original tuple, forgotten when neither has it any more. *Limits*: as many entries
//! as flows whose ports differ.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::api::Tuple;

use crate::frame::{ETH, Ip, be16, be32, proto};
use crate::observe::{ConnState, Exit, Observation};

/// Tuples of replies and what the other system has in their place.
#[derive(Debug, Default)]
struct OneWay {
    exact: HashMap<Tuple, Tuple>,
    /// Of TFTP requests: who answers and to whom; the answer's own port may be any.
    answers: HashMap<(IpAddr, IpAddr, u16), u16>,
}

impl OneWay {
    fn insert(&mut self, from: Tuple, to: Tuple) {
        self.exact.insert(from, to);
        if from.proto == proto::UDP && from.sport == TFTP {
            self.answers.insert((from.src, from.dst, from.dport), to.dport);
        }
    }

    fn remove(&mut self, t: &Tuple) -> Option<Tuple> {
        let other = self.exact.remove(t)?;
        self.answers.remove(&(t.src, t.dst, t.dport));
        Some(other)
    }

    /// The tuple of a reply, or of what a reply answers, with the other system's port.
    fn mapped(&self, t: &Tuple) -> Option<Tuple> {
        self.reply(t).or_else(|| self.reply(&t.inverse()).map(|t| t.inverse()))
    }

    fn reply(&self, t: &Tuple) -> Option<Tuple> {
        let answer = || {
            let port = *self.answers.get(&(t.src, t.dst, t.dport)).filter(|_| t.proto == proto::UDP)?;
            Some(with_chosen(*t, port))
        };
        self.exact.get(t).copied().or_else(answer)
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty()
    }
}

/// The port of TFTP requests.
const TFTP: u16 = 69;

/// A bijection between the reference's reply tuples and the subject's.
#[derive(Debug, Default)]
pub struct PortMap {
    to_subject: OneWay,
    to_reference: OneWay,
}

/// Linux chooses ports among those below 512, those below 1024, and the rest.
const fn class(port: u16) -> u8 {
    match port {
        0..512 => 0,
        512..1024 => 1,
        _ => 2,
    }
}

/// The field that source translation of the original direction chooses, seen in the reply tuple.
const fn chosen(t: &Tuple) -> u16 {
    if t.is_icmp() { t.sport } else { t.dport }
}

const fn with_chosen(mut t: Tuple, port: u16) -> Tuple {
    if t.is_icmp() {
        t.sport = port;
    } else {
        t.dport = port;
    }
    t
}

impl PortMap {
    /// Learns from two views of one connection. A port of another class than the reference's is not accepted, and shows
    /// up as a difference.
    pub fn learn(&mut self, reference: &ConnState, subject: &ConnState) {
        if reference.original == subject.original {
            self.learn_replies(&reference.original, reference.reply, subject.reply);
        }
    }

    /// Learns from what became of a packet of the original direction, whose tuple came in as `original`.
    pub fn learn_departures(&mut self, original: &Tuple, reference: &[(Exit, Vec<u8>)], subject: &[(Exit, Vec<u8>)]) {
        let left = |out: &[(Exit, Vec<u8>)]| {
            out.iter().find_map(|(exit, bytes)| {
                let p = Ip::of_frame(bytes).filter(|p| *exit != Exit::Local && !p.is_icmp_error())?;
                Some(p.tuple()?.inverse())
            })
        };
        if let (Some(r), Some(s)) = (left(reference), left(subject)) {
            self.learn_replies(original, r, s);
        }
    }

    fn learn_replies(&mut self, original: &Tuple, r: Tuple, s: Tuple) {
        if with_chosen(r, chosen(&s)) != s {
            return;
        }
        self.forget(&r);
        let kept = chosen(&r) == chosen(&original.inverse());
        // Where both chose alike, nothing that is known of others may change it.
        let others = self.to_subject.reply(&r).is_some() || self.to_reference.reply(&s).is_some();
        if r == s && others || r != s && (r.is_icmp() || class(chosen(&r)) == class(chosen(&s)) || !kept) {
            self.to_subject.insert(r, s);
            self.to_reference.insert(s, r);
        }
    }

    /// Neither system has a connection any more whose reply tuple is the reference's `reply`: another one may come.
    pub fn forget(&mut self, reply: &Tuple) {
        // The subject may have given its tuple to another flow since.
        if let Some(other) = self.to_subject.remove(reply)
            && self.to_reference.exact.get(&other) == Some(reply)
        {
            self.to_reference.remove(&other);
        }
    }

    /// The subject's tuple for one of the reference's.
    pub fn tuple(&self, t: &Tuple) -> Tuple {
        self.to_subject.mapped(t).unwrap_or(*t)
    }

    /// `frame` as it is sent to the subject.
    pub fn outward(&self, frame: &[u8]) -> Vec<u8> {
        Self::rewrite(&self.to_subject, frame, ETH)
    }

    /// What the subject showed, with the reference's ports.
    pub fn inward(&self, mut seen: Observation) -> Observation {
        if self.to_reference.is_empty() {
            return seen;
        }
        for (exit, bytes) in &mut seen.out {
            let l2 = if matches!(exit, Exit::Local) { 0 } else { ETH };
            *bytes = Self::rewrite(&self.to_reference, bytes, l2);
        }
        seen.conn = seen.conn.map(|c| self.inward_conn(c));
        seen
    }

    /// A connection that the subject showed, with the reference's ports.
    pub fn inward_conn(&self, mut conn: ConnState) -> ConnState {
        for t in [&mut conn.original, &mut conn.reply] {
            *t = self.to_reference.mapped(t).unwrap_or(*t);
        }
        conn
    }

    fn rewrite(map: &OneWay, bytes: &[u8], l2: usize) -> Vec<u8> {
        let mut b = bytes.to_vec();
        if map.is_empty() {
            return b;
        }
        let Some(p) = bytes.get(l2..).and_then(Ip::read) else { return b };
        let l4 = l2 + p.l4;
        let (at, inner) = match p.quote_at() {
            Some(quote) => match p.quoted() {
                Some(q) => (l2 + quote + q.l4, q),
                None => return b,
            },
            None => (l4, p),
        };
        let Some((old, new)) = inner.tuple().and_then(|t| Some((t, map.mapped(&t)?))) else { return b };
        let mut delta = 0;
        if inner.is_icmp() {
            delta += put(&mut b, at + 4, new.sport);
        } else {
            if old.sport != new.sport {
                delta += put(&mut b, at, new.sport);
            }
            if old.dport != new.dport {
                delta += put(&mut b, at + 2, new.dport);
            }
        }
        delta = if inner.proto == proto::SCTP {
            delta + fix_crc(bytes, &mut b, at)
        } else {
            fix(&mut b, at, inner.proto, delta)
        };
        if p.quote_at().is_some() {
            fix(&mut b, l4, p.proto, delta);
        }
        b
    }
}

/// Writes a field; the change that this makes to a one's complement sum.
fn put(b: &mut [u8], at: usize, value: u16) -> u64 {
    let Some(old) = be16(b, at) else { return 0 };
    b[at..at + 2].copy_from_slice(&value.to_be_bytes());
    u64::from(!old) + u64::from(value)
}

/// Mends the checksum of the SCTP header at `l4`, which was in `old`; one that was wrong is as wrong as before. The change
/// that this makes to a one's complement sum. A fragment's would need the rest of its datagram.
fn fix_crc(old: &[u8], b: &mut [u8], l4: usize) -> u64 {
    let right = |bytes: &[u8]| {
        let mut sctp = bytes.get(l4..)?.to_vec();
        sctp.get_mut(8..12)?.fill(0);
        Some(u32::from_be_bytes(crate::packet::crc32c(&sctp).to_le_bytes()))
    };
    let (Some(field), Some(before), Some(after)) = (be32(old, l4 + 8), right(old), right(b)) else { return 0 };
    let [a, c, d, e] = (field ^ before ^ after).to_be_bytes();
    put(b, l4 + 8, u16::from_be_bytes([a, c])) + put(b, l4 + 10, u16::from_be_bytes([d, e]))
}

/// Mends the checksum of the transport header at `l4` after a change of `delta`; the change so far, this one included.
fn fix(b: &mut [u8], l4: usize, p: u8, delta: u64) -> u64 {
    let Some(at) = Ip::checksum_at(p).map(|at| l4 + at) else { return delta };
    let Some(old) = be16(b, at) else { return delta };
    let may_be_none = p == proto::UDP || p == proto::UDPLITE;
    if may_be_none && old == 0 {
        return delta;
    }
    let mut acc = u64::from(!old) + delta;
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    let new = !u16::try_from(acc).unwrap_or(0);
    delta + put(b, at, if may_be_none && new == 0 { 0xffff } else { new })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Side, to_router, tuple};
    use crate::packet::{Packet, Tcp, icmp, transport_sum};

    fn conn(port: u16) -> ConnState {
        let a = |s: &str| s.parse().expect("address");
        let original = tuple(a("10.0.0.2"), a("198.51.100.10"), 6, 4000, 80);
        let reply = tuple(a("198.51.100.10"), a("198.51.100.1"), 6, 80, port);
        ConnState {
            original,
            reply,
            state: String::new(),
            replied: false,
            assured: false,
            timeout: 0,
            packets: [0; 2],
            bytes: [0; 2],
            mark: 0,
        }
    }

    fn reply(port: u16) -> Packet {
        let tcp = Tcp { sport: 80, dport: port, ..Tcp::default() };
        let t = conn(port).reply;
        Packet::new(t.src, t.dst, 6, tcp.bytes(b"data"))
    }

    #[test]
    fn replies_and_errors_about_requests_go_to_the_subjects_port_and_come_back() {
        let mut map = PortMap::default();
        map.learn(&conn(4000), &conn(5001));
        let sent = to_router(Side::Wan, &reply(4000).ip());
        let mapped = map.outward(&sent);
        assert_eq!(mapped, to_router(Side::Wan, &reply(5001).ip()));
        let request = |port| {
            let t = conn(port).reply.inverse();
            Packet::new(t.src, t.dst, 6, Tcp { sport: port, dport: 80, ..Tcp::default() }.bytes(b""))
        };
        let error = |port| {
            let t = conn(port).reply;
            Packet::new(t.src, t.dst, 1, icmp(3, 1, [0; 4], &request(port).ip())).ip()
        };
        let mapped = map.outward(&to_router(Side::Wan, &error(4000)));
        assert_eq!(mapped, to_router(Side::Wan, &error(5001)));
        let p = Ip::of_frame(&mapped).expect("a packet");
        assert_eq!(transport_sum(p.src, p.dst, p.proto, p.payload()), 0xffff);
        let out = vec![(Exit::Link(Side::Wan), to_router(Side::Wan, &request(5001).ip()))];
        let seen = map.inward(Observation { out, conn: Some(conn(5001)), ..Observation::default() });
        assert_eq!(seen.out[0].1, to_router(Side::Wan, &request(4000).ip()));
        assert_eq!(seen.conn, Some(conn(4000)));
    }

    #[test]
    fn a_wrong_checksum_of_sctp_is_as_wrong_with_another_port() {
        let mut map = PortMap::default();
        let reply = |port: u16| {
            let l4 = [&80u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 0, 0, 3, 0, 4]].concat();
            let t = conn(port).reply;
            let mut p = Packet::new(t.src, t.dst, proto::SCTP, l4);
            p.break_checksum();
            to_router(Side::Wan, &p.ip())
        };
        let of = |port| {
            let mut c = conn(port);
            (c.original.proto, c.reply.proto) = (proto::SCTP, proto::SCTP);
            c
        };
        map.learn(&of(4000), &of(5001));
        assert_eq!(map.outward(&reply(4000)), reply(5001));
    }

    #[test]
    fn a_port_is_learnt_from_what_left() {
        let left = |port| {
            let t = conn(port).reply.inverse();
            let ip = Packet::new(t.src, t.dst, 6, Tcp { sport: port, dport: 80, ..Tcp::default() }.bytes(b"")).ip();
            vec![(Exit::Link(Side::Wan), to_router(Side::Wan, &ip))]
        };
        let mut map = PortMap::default();
        map.learn_departures(&conn(4000).original, &left(4000), &left(5001));
        assert_eq!(map.tuple(&conn(4000).reply), conn(5001).reply);
        map.learn_departures(&conn(4000).original, &left(4000), &left(4000));
        assert!(map.to_subject.is_empty() && map.to_reference.is_empty());
    }

    #[test]
    fn a_kept_port_is_not_swapped_for_one_of_another_class() {
        let (mut kernel, mut map) = (conn(300), PortMap::default());
        kernel.original.sport = 300;
        let subject = ConnState { original: kernel.original, ..conn(5001) };
        map.learn(&kernel, &subject);
        assert!(map.to_subject.is_empty());
    }
}
