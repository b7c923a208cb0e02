//! ICMP and ICMPv6: queries with identifiers, errors with the packet that they quote.
//!
//! *Threads*: any; functions of bytes. *Limits*: extension headers of a quoted packet as in [`ipv6`].
//! *Sources*: RFC 792, RFC 950, RFC 4443, RFC 4861, RFC 4884; `linux/net/netfilter/nf_conntrack_proto_icmp.c`
//! (`nf_conntrack_icmpv4_error`), `nf_conntrack_proto_icmpv6.c` (`nf_conntrack_icmpv6_error`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::gre::{self, Gre};
use super::ipv6::Link;
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
    /// Parameter problem.
    pub const PARAMETER: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Queries and their answers: echo, node information (RFC 4620).
    pub const QUERIES: [u8; 4] = [ECHO, ECHO_REPLY, 139, 140];
    /// Multicast listener query: the first of the types that are never tracked.
    pub const MLD_QUERY: u8 = 130;
    /// Neighbour advertisement: the last of them in a row.
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Version 2 multicast listener report.
    pub const MLD2_REPORT: u8 = 143;
    /// Multicast router advertisement (RFC 4286).
    pub const MRD_ADVERT: u8 = 151;
    /// Multicast router solicitation.
    pub const MRD_SOLICIT: u8 = 152;
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
            (L4::IcmpError(quoted(b, HEADER, true)), 0, dport)
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
        0..=127 => (L4::IcmpError(quoted(b, HEADER, false)), 0, dport),
        v6::REDIRECT => (redirect(p), 0, dport),
        kind if v6::QUERIES.contains(&kind) => (L4::IcmpQuery, be16(b, 4), dport),
        v6::MLD_QUERY..=v6::NEIGHBOUR_ADVERT | v6::MLD2_REPORT | v6::MRD_ADVERT | v6::MRD_SOLICIT => {
            (L4::NeighbourDiscovery, 0, dport)
        }
        _ => (L4::Invalid(DropReason::InvalidIcmpType), 0, dport),
    }
}

/// Whether a message of this type is an error, or may be one that we do not know (RFC 1122 section 3.2.2): of IPv4, all but
/// queries and their answers. Redirects count as errors (RFC 4443 section 2.4 (e.2)).
pub fn may_be_error(is_v4: bool, kind: u8) -> bool {
    if is_v4 { !v4::QUERIES.contains(&kind) } else { kind < v6::ECHO || kind == v6::REDIRECT }
}

/// Whether an ICMP message with this tuple is a redirect.
pub const fn is_redirect(t: &Tuple) -> bool {
    t.is_icmp() && t.icmp_type() == if t.is_ipv4() { v4::REDIRECT } else { v6::REDIRECT }
}

/// An ICMPv6 redirect (RFC 4861 section 4.5) is an error about the packet in its first option, where it has come from a
/// router on the link.
fn redirect(p: &Payload<'_>) -> L4 {
    let link_local = matches!(p.src, IpAddr::V6(a) if a.is_unicast_link_local());
    let ours = p.ttl == 255 && link_local && p.head[1] == 0;
    match p.head.get(REDIRECT_OPTIONS..) {
        Some([REDIRECTED_HEADER, length, ..]) if ours && *length > 0 => {
            L4::IcmpError(quoted(p.head, REDIRECTED_PACKET, false))
        }
        _ => L4::Invalid(DropReason::InvalidRedirect),
    }
}

/// Where the options of an ICMPv6 redirect begin: behind its header, target and destination.
const REDIRECT_OPTIONS: usize = 40;
/// The option that holds the packet (RFC 4861 section 4.6.3), and where in the message that begins where it is the first.
const REDIRECTED_HEADER: u8 = 4;
const REDIRECTED_PACKET: usize = REDIRECT_OPTIONS + 8;

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

/// Finds the tuple of the packet that an error quotes in its message `m` from `at` on. Four bytes of its transport header
/// are enough. `None` where the quote is cut shorter, is itself an error, or is a later fragment.
fn quoted(m: &[u8], at: usize, is_v4: bool) -> Option<Quoted> {
    let b = m.get(at..)?;
    let h = if is_v4 { quoted_v4(b)? } else { quoted_v6(b)? };
    let rest = &b[h.l4..];
    // A header that says that it is shorter than it is: what would be its ports lies within it.
    let short = is_v4 && h.l4 < ipv4::HEADER;
    let mut tuple = Tuple { src: h.src, dst: h.dst, proto: h.proto, sport: 0, dport: 0, ct_zone: 0 };
    if tuple.has_ports() {
        if rest.len() < QUOTED_L4 || short {
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
        if rest.len() < HEADER || short || !queries.contains(&rest[0]) {
            return None;
        }
        (tuple.sport, tuple.dport) = (be16(rest, 4), be16(rest, 0));
    }
    let at = u16::try_from(at).ok()?;
    Some(Quoted { tuple, at, l4: u16::try_from(h.l4).ok()?, len: u16::try_from(h.len).unwrap_or(0) })
}

/// Neither the header's version nor its checksum is looked at: a quote may have been changed on its way.
fn quoted_v4(b: &[u8]) -> Option<Header> {
    if b.len() < ipv4::HEADER {
        return None;
    }
    let l4 = usize::from(b[0] & 0x0f) * 4;
    let fragment = be16(b, 6);
    if l4 > b.len() || fragment & 0x1fff != 0 {
        return None;
    }
    let len = if fragment & 0x2000 == 0 { usize::from(be16(b, 2)).saturating_sub(l4) } else { 0 };
    let (src, dst) = (Ipv4Addr::from_bits(be32(b, 12)), Ipv4Addr::from_bits(be32(b, 16)));
    Some(Header { src: src.into(), dst: dst.into(), proto: b[9], l4, len })
}

fn quoted_v6(b: &[u8]) -> Option<Header> {
    if b.len() < ipv6::HEADER {
        return None;
    }
    // The quote is cut, so its length field may promise more than is there: only what is there counts.
    let (mut proto, mut l4, mut whole) = (b[6], ipv6::HEADER, true);
    for n in 0.. {
        let (next, size) = match Link::read(proto, &b[l4..]) {
            Link::End => break,
            Link::Nothing | Link::Cut => return None,
            _ if n == ipv6::MAX_EXTENSIONS => return None,
            Link::Extension { next, size } => (next, size),
            Link::Fragment { field, .. } if field & 0xfff8 != 0 => return None,
            Link::Fragment { next, field } => {
                whole &= field & 1 == 0;
                (next, Link::FRAGMENT)
            }
        };
        proto = next;
        l4 = (l4 + size).min(b.len());
    }
    let address = |at: usize| {
        let mut a = [0; 16];
        a.copy_from_slice(&b[at..at + 16]);
        Ipv6Addr::from(a)
    };
    let len = if whole { (ipv6::HEADER + usize::from(be16(b, 4))).saturating_sub(l4) } else { 0 };
    Some(Header { src: address(8).into(), dst: address(24).into(), proto, l4, len })
}
