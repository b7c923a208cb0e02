//! ICMP and ICMPv6: queries with identifiers, errors with the packet that they quote.
//!
//! *Sources*: RFC 792, RFC 950, RFC 4443, RFC 4884; `linux/net/netfilter/nf_conntrack_proto_icmp.c`
//! (`nf_conntrack_icmpv4_error`), `nf_conntrack_proto_icmpv6.c` (`nf_conntrack_icmpv6_error`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::gre::{self, Gre};
use super::l4::Payload;
use super::{be16, be32, ipv4, ipv6};
use crate::conntrack::tuple::{Tuple, proto};
use crate::drop::DropReason;
use crate::packet::{L4, Quoted};

/// Length of the ICMP header that every message has, bytes.
pub const HEADER: usize = 8;

/// Transport bytes of a quoted packet that its tuple needs: the two ports.
const QUOTED_L4: usize = 4;

/// ICMP types.
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER: u8 = 12;
    /// Queries and their answers: echo, timestamp, information, address mask.
    pub const QUERIES: [u8; 8] = [ECHO_REPLY, ECHO, 13, 14, 15, 16, 17, 18];
}

/// ICMPv6 types.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Queries and their answers: echo, node information (RFC 4620).
    pub const QUERIES: [u8; 4] = [ECHO, ECHO_REPLY, 139, 140];
    /// Multicast listener query: the first of the types that are never tracked.
    pub const MLD_QUERY: u8 = 130;
    /// Neighbour advertisement: the last of them, but for [`MLD2_REPORT`].
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    /// Version 2 multicast listener report.
    pub const MLD2_REPORT: u8 = 143;
}

/// Parses an ICMP message.
pub fn parse_v4(p: &Payload<'_>) -> (L4, u16, u16) {
    let b = p.head;
    if b.len() < HEADER {
        return (L4::Invalid(DropReason::InvalidLength), 0, 0);
    }
    let dport = be16(b, 0); // type and code
    if !p.verified_plain() {
        return (L4::Invalid(DropReason::InvalidChecksum), 0, dport);
    }
    match b[0] {
        v4::UNREACHABLE | v4::SOURCE_QUENCH | v4::REDIRECT | v4::TIME_EXCEEDED | v4::PARAMETER => {
            (L4::IcmpError(quoted(&b[HEADER..], true)), 0, dport)
        }
        kind if v4::QUERIES.contains(&kind) => (L4::IcmpQuery, be16(b, 4), dport),
        _ => (L4::Invalid(DropReason::InvalidIcmpType), 0, dport),
    }
}

/// Parses an ICMPv6 message.
pub fn parse_v6(p: &Payload<'_>) -> (L4, u16, u16) {
    let b = p.head;
    if b.len() < HEADER {
        return (L4::Invalid(DropReason::InvalidLength), 0, 0);
    }
    let dport = be16(b, 0);
    if !p.verified_all() {
        return (L4::Invalid(DropReason::InvalidChecksum), 0, dport);
    }
    match b[0] {
        0..=127 => (L4::IcmpError(quoted(&b[HEADER..], false)), 0, dport),
        kind if v6::QUERIES.contains(&kind) => (L4::IcmpQuery, be16(b, 4), dport),
        v6::MLD_QUERY..=v6::NEIGHBOUR_ADVERT | v6::MLD2_REPORT => (L4::NeighbourDiscovery, 0, dport),
        _ => (L4::Invalid(DropReason::InvalidIcmpType), 0, dport),
    }
}

/// What an error quotes of the packet that it is about.
#[derive(Clone, Copy, Debug)]
struct Header {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    /// Where the transport header begins.
    l4: usize,
    /// Bytes of the transport data by the header; 0 where it is a fragment.
    len: usize,
}

/// Finds the tuple of the packet that an error quotes. Four bytes of its transport header are enough. `None` where the
/// quote is cut shorter, is itself an error, or is a later fragment.
fn quoted(b: &[u8], is_v4: bool) -> Option<Quoted> {
    let h = if is_v4 { quoted_v4(b)? } else { quoted_v6(b)? };
    let rest = &b[h.l4..];
    let mut tuple = Tuple { src: h.src, dst: h.dst, proto: h.proto, sport: 0, dport: 0, ct_zone: 0 };
    if tuple.has_ports() {
        if rest.len() < QUOTED_L4 {
            return None;
        }
        (tuple.sport, tuple.dport) = (be16(rest, 0), be16(rest, 2));
    } else if tuple.proto == proto::GRE {
        match gre::parse(rest) {
            Gre::Plain => {}
            Gre::Call(id) => tuple.dport = id,
            Gre::NotPpp => return None,
        }
    } else if tuple.is_icmp() {
        let queries: &[u8] = if is_v4 { &v4::QUERIES } else { &v6::QUERIES };
        if rest.len() < HEADER || !queries.contains(&rest[0]) {
            return None;
        }
        (tuple.sport, tuple.dport) = (be16(rest, 4), be16(rest, 0));
    }
    Some(Quoted { tuple, l4: u16::try_from(h.l4).ok()?, len: u16::try_from(h.len).unwrap_or(0) })
}

fn quoted_v4(b: &[u8]) -> Option<Header> {
    if b.len() < ipv4::HEADER || b[0] >> 4 != 4 {
        return None;
    }
    let l4 = usize::from(b[0] & 0x0f) * 4;
    let fragment = be16(b, 6);
    if l4 < ipv4::HEADER || l4 > b.len() || fragment & 0x1fff != 0 {
        return None;
    }
    let len = if fragment & 0x2000 == 0 { usize::from(be16(b, 2)).saturating_sub(l4) } else { 0 };
    let (src, dst) = (Ipv4Addr::from_bits(be32(b, 12)), Ipv4Addr::from_bits(be32(b, 16)));
    Some(Header { src: src.into(), dst: dst.into(), proto: b[9], l4, len })
}

fn quoted_v6(b: &[u8]) -> Option<Header> {
    if b.len() < ipv6::HEADER || b[0] >> 4 != 6 {
        return None;
    }
    // The quote is cut, so its length field may promise more than is there: only what is there counts.
    let (mut proto, mut l4, mut whole) = (b[6], ipv6::HEADER, true);
    for _ in 0..ipv6::MAX_EXTENSIONS {
        let size = match proto {
            0 | 43 | 60 => (usize::from(*b.get(l4 + 1)?) + 1) * 8,
            44 => {
                let field = be16(b.get(l4..l4 + 8)?, 2);
                if field & 0xfff8 != 0 {
                    return None;
                }
                whole &= field & 1 == 0;
                8
            }
            51 => (usize::from(*b.get(l4 + 1)?) + 2) * 4,
            _ => break,
        };
        proto = *b.get(l4)?;
        l4 += size;
    }
    if l4 > b.len() || matches!(proto, 0 | 43 | 44 | 51 | 60) {
        return None;
    }
    let address = |at: usize| {
        let mut a = [0; 16];
        a.copy_from_slice(&b[at..at + 16]);
        Ipv6Addr::from(a)
    };
    let len = if whole { (ipv6::HEADER + usize::from(be16(b, 4))).saturating_sub(l4) } else { 0 };
    Some(Header { src: address(8).into(), dst: address(24).into(), proto, l4, len })
}
