//! The only code that changes addresses and ports of a packet, and the checksums with them.
//!
//! Checksums are updated by difference (RFC 1624; SCTP's as `parse::crc32c` says), never recomputed: one that came in
//! wrong goes out wrong.
//! *Threads*: any; functions of bytes. *Sources*: RFC 3022 section 4; RFC 5508 REQ-4 and REQ-5 for errors;
//! `linux/net/netfilter/nf_nat_proto.c` (`nf_nat_icmp_reply_translation`).

use std::net::{IpAddr, Ipv6Addr};

use crate::conntrack::tuple::{Tuple, proto};
use crate::packet::{L4, Packet, Quoted};
use crate::parse::checksum::Delta;
use crate::parse::gre::{self, Gre};
use crate::parse::{be16, crc32c, ipv6, sctp};

/// Rewrites a packet whose tuple is `p.tuple` so that it has tuple `to`.
#[inline]
pub fn translate(b: &mut [u8], p: &Packet, to: &Tuple) {
    let from = &p.tuple;
    let (l3, l4, end) = p.span();
    let addresses = Delta::default().replace_address(from.src, to.src).replace_address(from.dst, to.dst);
    set_addresses(b, l3, to.src, to.dst, addresses);
    if p.kind != L4::Fragment {
        set_l4(&mut b[l4..end], from, to, addresses, &mut Delta::default(), p.l4_len);
    }
}

/// Rewrites the addresses of a later fragment.
pub fn translate_addresses(b: &mut [u8], l3: usize, from: &Tuple, src: IpAddr, dst: IpAddr) {
    let addresses = Delta::default().replace_address(from.src, src).replace_address(from.dst, dst);
    set_addresses(b, l3, src, dst, addresses);
}

/// What becomes of an ICMP error about a translated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorTarget {
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination.
    pub dst: IpAddr,
    /// The quoted packet's tuple.
    pub quoted: Tuple,
}

/// Rewrites an ICMP error, outer and quoted header, all checksums.
pub fn translate_error(b: &mut [u8], p: &Packet, quoted: &Quoted, to: &ErrorTarget) {
    let (l3, l4, end) = p.span();
    let inner = l4 + usize::from(quoted.at);
    let from = &quoted.tuple;
    let is_v4 = from.is_ipv4();
    let inner_l4 = inner + usize::from(quoted.l4);

    // All that changes within the quote changes the ICMP checksum too. The quote begins at an even offset of the
    // message, so its 16-bit words are the message's.
    let mut changes = Delta::default();
    let addresses = Delta::default().replace_address(from.src, to.quoted.src).replace_address(from.dst, to.quoted.dst);
    changes = changes.replace_address(from.src, to.quoted.src).replace_address(from.dst, to.quoted.dst);
    if is_v4 {
        let (old, new) = (be16(b, inner + 10), addresses.apply(be16(b, inner + 10)));
        changes = changes.replace16(old, new);
    }
    set_addresses(b, inner, to.quoted.src, to.quoted.dst, addresses);
    set_l4(&mut b[inner_l4..end], from, &to.quoted, addresses, &mut changes, quoted.len);

    let outer = Delta::default().replace_address(p.tuple.src, to.src).replace_address(p.tuple.dst, to.dst);
    set_addresses(b, l3, to.src, to.dst, outer);
    if !is_v4 {
        changes = changes.replace_address(p.tuple.src, to.src).replace_address(p.tuple.dst, to.dst);
    }
    let field = be16(b, l4 + 2);
    put16(b, l4 + 2, changes.apply(field));
}

/// The source address of the IPv6 packet at `l3`, where that is there.
pub fn source6(b: &[u8], l3: usize) -> Option<Ipv6Addr> {
    let bytes: &[u8; 16] = b.get(l3 + usize::from(ipv6::SOURCE_AT)..)?.first_chunk()?;
    Some(Ipv6Addr::from(*bytes))
}

/// Sets the source address of the IPv6 packet at `l3`, to one of the same sum: no checksum changes.
pub fn set_source6(b: &mut [u8], l3: usize, src: Ipv6Addr) {
    set_address6(b, l3 + usize::from(ipv6::SOURCE_AT), src);
}

/// The same for the destination address.
pub fn set_destination6(b: &mut [u8], l3: usize, dst: Ipv6Addr) {
    set_address6(b, l3 + usize::from(ipv6::DESTINATION_AT), dst);
}

/// The same for the address at `at`; nothing where the packet ends before it does.
pub fn set_address6(b: &mut [u8], at: usize, a: Ipv6Addr) {
    if let Some(to) = b.get_mut(at..at + 16) {
        to.copy_from_slice(&a.octets());
    }
}

/// Lowers TTL or hop limit by one; the caller has made sure that it is at least 2.
#[inline]
pub fn decrement_ttl(b: &mut [u8], l3: usize) {
    if b[l3] >> 4 == 4 {
        let old = be16(b, l3 + 8);
        b[l3 + 8] = b[l3 + 8].saturating_sub(1);
        let new = be16(b, l3 + 8);
        let sum = Delta::default().replace16(old, new).apply(be16(b, l3 + 10));
        put16(b, l3 + 10, sum);
    } else {
        b[l3 + 7] = b[l3 + 7].saturating_sub(1);
    }
}

/// Gives a packet this TTL or hop limit.
pub fn set_ttl(b: &mut [u8], l3: usize, ttl: u8) {
    let at = if b[l3] >> 4 == 4 { l3 + 8 } else { l3 + 7 };
    if b[at] == ttl {
        return; // as nearly always
    }
    if b[l3] >> 4 == 4 {
        let old = be16(b, l3 + 8);
        b[l3 + 8] = ttl;
        let sum = Delta::default().replace16(old, be16(b, l3 + 8)).apply(be16(b, l3 + 10));
        put16(b, l3 + 10, sum);
    } else {
        b[l3 + 7] = ttl;
    }
}

/// Has a fragment say that it is its datagram's last. `header` is where the fragment header of an IPv6 one lies, from the
/// network header.
pub fn end_fragment(b: &mut [u8], l3: usize, header: usize) {
    if b[l3] >> 4 == 4 {
        let old = be16(b, l3 + 6);
        let new = old & !0x2000;
        put16(b, l3 + 6, new);
        let sum = Delta::default().replace16(old, new).apply(be16(b, l3 + 10));
        put16(b, l3 + 10, sum);
    } else if let Some(flags) = b.get_mut(l3 + header + 3) {
        *flags &= !1;
    }
}

#[inline]
pub(super) fn put16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_be_bytes());
}

#[inline]
fn set_addresses(b: &mut [u8], l3: usize, src: IpAddr, dst: IpAddr, delta: Delta) {
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            b[l3 + 12..l3 + 16].copy_from_slice(&s.octets());
            b[l3 + 16..l3 + 20].copy_from_slice(&d.octets());
            let sum = delta.apply(be16(b, l3 + 10));
            put16(b, l3 + 10, sum);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            b[l3 + 8..l3 + 24].copy_from_slice(&s.octets());
            b[l3 + 24..l3 + 40].copy_from_slice(&d.octets());
        }
        _ => debug_assert!(false, "translation between IP versions"),
    }
}

/// Sets ports or identifier in the transport data `b`, as far as it is there, and its checksum where that is there. `len`:
/// bytes of the transport data as its sender sent it. `changes` collects what changed.
#[inline]
fn set_l4(b: &mut [u8], from: &Tuple, to: &Tuple, addresses: Delta, changes: &mut Delta, len: u16) {
    // Where it is, whether it covers the pseudo header, and whether all zeros are no checksum.
    let (checksum, covers_addresses, optional) = match from.proto {
        proto::TCP => (16, true, false),
        proto::UDP | proto::UDPLITE => (6, true, true),
        proto::DCCP => (6, true, false),
        proto::ICMP if from.is_ipv4() => (2, false, false),
        proto::ICMPV6 if !from.is_ipv4() => (2, true, false),
        proto::SCTP => return set_sctp(b, from, to, changes, len),
        proto::GRE => return set_gre(b, to, changes),
        _ => return,
    };
    let mut delta = if covers_addresses { addresses } else { Delta::default() };
    let mut set = |b: &mut [u8], at: usize, old: u16, new: u16| {
        if b.len() >= at + 2 && old != new {
            put16(b, at, new);
            delta = delta.replace16(old, new);
            *changes = changes.replace16(old, new);
        }
    };
    if from.has_ports() {
        set(b, 0, from.sport, to.sport);
        set(b, 2, from.dport, to.dport);
    } else if from.is_icmp() {
        set(b, 4, from.sport, to.sport);
    }
    if b.len() >= checksum + 2 {
        let old = be16(b, checksum);
        if optional && old == 0 {
            return;
        }
        let mut new = delta.apply(old);
        if optional && new == 0 {
            new = 0xffff; // RFC 768, RFC 3828: an all-zero checksum means that there is none
        }
        put16(b, checksum, new);
        *changes = changes.replace16(old, new);
    }
}

/// The same for SCTP, whose checksum covers ports but no addresses, and counts each byte by its distance from the end.
fn set_sctp(b: &mut [u8], from: &Tuple, to: &Tuple, changes: &mut Delta, len: u16) {
    if (from.sport, from.dport) == (to.sport, to.dport) {
        return;
    }
    let Some((ports, rest)) = b.split_first_chunk_mut::<4>() else { return };
    let old = *ports;
    ports[..2].copy_from_slice(&to.sport.to_be_bytes());
    ports[2..].copy_from_slice(&to.dport.to_be_bytes());
    *changes = changes.replace32(u32::from_be_bytes(old), u32::from_be_bytes(*ports));
    let behind = len.saturating_sub(4);
    if usize::from(behind) < sctp::HEADER - 4 {
        return;
    }
    // Of a quote that is cut within the checksum, so much of it as there is.
    let difference = crc32c::difference(old, *ports, behind).to_le_bytes();
    let (mut before, mut after) = ([0; 4], [0; 4]);
    for (n, byte) in rest.iter_mut().skip(sctp::CHECKSUM - 4).take(4).enumerate() {
        before[n] = *byte;
        *byte ^= difference[n];
        after[n] = *byte;
    }
    *changes = changes.replace32(u32::from_be_bytes(before), u32::from_be_bytes(after));
}

/// The same for GRE: a header of version 1 carries the receiver's call id, and has no checksum.
fn set_gre(b: &mut [u8], to: &Tuple, changes: &mut Delta) {
    if let Gre::Call(old) = gre::parse(b) {
        put16(b, gre::CALL_ID, to.dport);
        *changes = changes.replace16(old, to.dport);
    }
}
