//! The kernel's connections: asked for by tuple, read from netlink.
//!
//! *Sources*: `linux/include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `nf_conntrack_common.h` (status bits),
//! `nf_conntrack_tcp.h`, `nf_conntrack_sctp.h` (states).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::api::Tuple;

use super::netlink::{self, NESTED, Netfilter, attr, put};
use crate::frame::{be16, be32, proto, tuple};
use crate::observe::ConnState;

const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS: [u16; 2] = [9, 10];
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;

const SEEN_REPLY: u32 = 2;
const ASSURED: u32 = 4;
const CONFIRMED: u32 = 8;

const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// The connection that has `t` in either direction.
///
/// # Errors
/// The kernel's; that there is none is not one.
pub fn find(socket: &mut Netfilter, t: &Tuple) -> io::Result<Option<ConnState>> {
    let mut request = Vec::new();
    put(&mut request, CTA_TUPLE_ORIG | NESTED, &tuple_attrs(t));
    if t.ct_zone != 0 {
        put(&mut request, CTA_ZONE, &t.ct_zone.to_be_bytes());
    }
    socket.send(GET, netlink::REQUEST, family(t), 0, &request)?;
    let mut found = None;
    match socket.receive(true, |m| found = read(m.attrs)) {
        Ok(_) => Ok(found),
        // A tuple that cannot be (an echo reply that nobody asked for) has no connection either.
        Err(e) if matches!(e.raw_os_error(), Some(2 | 22 | 95)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Ends all connections.
///
/// # Errors
/// The kernel's.
pub fn flush(socket: &mut Netfilter) -> io::Result<()> {
    socket.ask(DELETE, 0, 0, &[])
}

const fn family(t: &Tuple) -> u8 {
    if t.is_ipv4() { 2 } else { 10 }
}

/// The attributes of a tuple.
fn tuple_attrs(t: &Tuple) -> Vec<u8> {
    let (mut ip, mut l4, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (n, address) in [(0, t.src), (1, t.dst)] {
        match address {
            IpAddr::V4(a) => put(&mut ip, 1 + n, &a.octets()),
            IpAddr::V6(a) => put(&mut ip, 3 + n, &a.octets()),
        }
    }
    put(&mut l4, 1, &[t.proto]);
    let [kind, code] = t.dport.to_be_bytes();
    match t.proto {
        proto::ICMP | proto::ICMPV6 => {
            let first = if t.proto == proto::ICMP { 4 } else { 7 };
            put(&mut l4, first, &t.sport.to_be_bytes());
            put(&mut l4, first + 1, &[kind]);
            put(&mut l4, first + 2, &[code]);
        }
        _ => {
            put(&mut l4, 2, &t.sport.to_be_bytes());
            put(&mut l4, 3, &t.dport.to_be_bytes());
        }
    }
    put(&mut all, CTA_TUPLE_IP | NESTED, &ip);
    put(&mut all, CTA_TUPLE_PROTO | NESTED, &l4);
    all
}

/// A tuple from its attributes.
fn read_tuple(b: &[u8]) -> Option<Tuple> {
    let (ip, l4) = (attr(b, CTA_TUPLE_IP)?, attr(b, CTA_TUPLE_PROTO)?);
    let address = |n: u16| -> Option<IpAddr> {
        match attr(ip, n) {
            Some(a) => Some(Ipv4Addr::from_bits(be32(a, 0)?).into()),
            None => Some(Ipv6Addr::from(<[u8; 16]>::try_from(attr(ip, n + 2)?).ok()?).into()),
        }
    };
    let proto = *attr(l4, 1)?.first()?;
    let port = |n: u16| attr(l4, n).and_then(|b| be16(b, 0)).unwrap_or(0);
    let byte = |n: u16| attr(l4, n).and_then(|b| b.first().copied()).unwrap_or(0);
    let (sport, dport) = match proto {
        proto::ICMP => (port(4), u16::from_be_bytes([byte(5), byte(6)])),
        proto::ICMPV6 => (port(7), u16::from_be_bytes([byte(8), byte(9)])),
        _ => (port(2), port(3)),
    };
    let ct_zone = attr(b, CTA_TUPLE_ZONE).and_then(|z| be16(z, 0)).unwrap_or(0);
    Some(Tuple { ct_zone, ..tuple(address(1)?, address(2)?, proto, sport, dport) })
}

/// The tuples of an entry, confirmed or not.
pub fn tuples(b: &[u8]) -> Option<(Tuple, Tuple)> {
    Some((read_tuple(attr(b, CTA_TUPLE_ORIG)?)?, read_tuple(attr(b, CTA_TUPLE_REPLY)?)?))
}

/// A confirmed entry from its attributes.
fn read(b: &[u8]) -> Option<ConnState> {
    let (original, reply) = tuples(b)?;
    let number = |kind| attr(b, kind).and_then(|v| be32(v, 0)).unwrap_or(0);
    let status = number(CTA_STATUS);
    if status & CONFIRMED == 0 {
        return None;
    }
    let state = attr(b, CTA_PROTOINFO).and_then(|info| {
        let tcp = attr(info, 1).and_then(|t| attr(t, 1)).and_then(|s| TCP_STATES.get(usize::from(*s.first()?)));
        let sctp = || attr(info, 3).and_then(|t| attr(t, 1)).and_then(|s| SCTP_STATES.get(usize::from(*s.first()?)));
        tcp.or_else(sctp).copied()
    });
    let counter = |direction: usize, kind: u16| {
        let value = attr(b, CTA_COUNTERS[direction]).and_then(|c| attr(c, kind));
        value.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes)
    };
    Some(ConnState {
        original,
        reply,
        state: state.unwrap_or_default().into(),
        replied: status & SEEN_REPLY != 0,
        assured: status & ASSURED != 0,
        timeout: number(CTA_TIMEOUT),
        packets: [counter(0, 1), counter(1, 1)],
        bytes: [counter(0, 2), counter(1, 2)],
        mark: number(CTA_MARK),
    })
}
