//! The transport header of a datagram in fragments, which may lie in several of them.
//!
//! No stack sends such fragments, but Linux takes them, and they are how filters used to be evaded (RFC 1858): what is judged
//! must be what its receiver puts together. The header is read from a copy of the datagram's first [`HEAD`] bytes. To
//! be rewritten it is put together behind the first fragment's own bytes, where a short frame has room, and what belongs to
//! the others goes back to them.
//!
//! *Threads*: the worker's. *Limits*: [`HEAD`] bytes of a datagram are looked at where the first fragment is shorter.
//! *Sources*: RFC 1858, RFC 3128, RFC 8200 section 4.5.

use arrayvec::ArrayVec;

use super::Worker;
use crate::conntrack::tuple::proto;
use crate::defrag::{Piece, TRAIN, Train};
use crate::io::{Buf, Io};
use crate::nat::rewrite;
use crate::packet::{L4, Packet};
use crate::parse::{be16, icmp, l4};
use crate::path::{Plan, Rewrite};

/// TCP with all options is 60 bytes; an ICMPv6 redirect with the first 32 bytes of what it quotes is 120.
pub(super) const HEAD: usize = 128;

/// What the fragments of a whole datagram are together. `None` where there is none.
pub(super) fn whole<B: Buf>(train: &Train<B>, verify: bool) -> Option<Packet> {
    let first = train.first()?;
    let mut rest: ArrayVec<&[u8], { TRAIN + 1 }> = train.iter().map(payload).collect();
    let total = rest.iter().map(|part| part.len()).sum::<usize>();
    let copy;
    let head = if payload(first).len() >= HEAD {
        rest.remove(0)
    } else {
        copy = take_head(&mut rest);
        copy.as_slice()
    };
    let (kind, sport, dport) = parse_parts(&first.packet, head, &rest, total, verify);
    let largest = train.iter().map(|p| p.packet.ip_len).max().unwrap_or(0);
    let mut packet = first.packet;
    packet.kind = kind;
    (packet.tuple.sport, packet.tuple.dport) = (sport, dport);
    packet.fragment = None;
    // Linux has the largest fragment say it: `linux/net/ipv4/ip_fragment.c`, `ip_frag_reasm`.
    packet.dont_fragment = train.iter().any(|p| p.packet.dont_fragment && p.packet.ip_len == largest);
    // Invariant: `Defrag` refuses payloads beyond 65,535 bytes.
    packet.l4_len = u16::try_from(total).unwrap_or(u16::MAX);
    packet.ip_len = u32::from(packet.l4 - packet.l3) + u32::try_from(total).unwrap_or(0);
    if !packet.tuple.is_ipv4() {
        packet.ip_len -= 8; // the datagram has no fragment header
    }
    packet.wire_len = largest;
    packet.group = train.iter().any(|p| p.packet.group);
    packet.set_ct_zone(packet.tuple.ct_zone); // what it quotes is in its zone
    Some(packet)
}

/// Whether a datagram that came with a fragment header is neighbour discovery or a redirect. Nobody may send them so, and
/// their receiver has to ignore them (RFC 6980 section 5): the kernel, which would, does not see the header any more.
pub(super) fn is_discovery(p: &Packet) -> bool {
    p.tuple.proto == proto::ICMPV6 && !p.tuple.is_ipv4() && matches!(p.tuple.icmp_type(), 133..=137)
}

/// Has the last fragment of a whole datagram say that none follows, where only one said so that was dropped.
pub(super) fn end<B: Buf>(train: &mut Train<B>) {
    let Some(Piece { buf, packet }) = train.last_mut() else { return };
    let Some(f) = packet.fragment.as_mut().filter(|f| f.more) else { return };
    f.more = false;
    rewrite::end_fragment(buf.bytes_mut(), usize::from(packet.l3), f.header);
}

/// What the first fragment, which stands at the head of the train, says of its datagram before all of it is there. `None`
/// where it does not hold the transport header.
pub(super) fn first<B: Buf>(train: &Train<B>) -> Option<Packet> {
    let piece = train.first()?;
    let mut packet = piece.packet;
    let needed = match packet.tuple.proto {
        proto::UDP | proto::UDPLITE => l4::UDP_HEADER,
        proto::ICMP | proto::ICMPV6 => icmp::HEADER,
        _ => 0,
    };
    let head = Some(payload(piece)).filter(|head| head.len() >= needed)?;
    // How long the datagram is cannot be known yet: as long as it can be.
    (packet.kind, packet.tuple.sport, packet.tuple.dport) =
        parse_parts(&packet, head, &[], usize::from(u16::MAX), false);
    if !packet.tuple.is_ipv4() {
        packet.ip_len = packet.ip_len.saturating_sub(8); // the datagram has no fragment header
    }
    packet.set_ct_zone(packet.tuple.ct_zone);
    Some(packet)
}

/// A fragment of the datagram whose first was `first`, as it follows that.
pub(super) fn later(first: &Packet, own: &Packet) -> Packet {
    let behind = own.fragment.map_or(0, |f| f.header);
    // Of IPv6, what follows the fragment header, though it may look like one more header.
    let data = if own.tuple.is_ipv4() { usize::from(own.l4) } else { usize::from(own.l3) + behind + 8 };
    let bytes = usize::from(own.end).saturating_sub(data);
    Packet { later: true, kind: first.kind, tuple: first.tuple, ip_len: u32::try_from(bytes).unwrap_or(0), ..*own }
}

/// Parses what one fragment carries, `payload`, as if it were all.
pub(super) fn parse(packet: &Packet, payload: &[u8], verify: bool) -> (L4, u16, u16) {
    parse_parts(packet, payload, &[], payload.len(), verify)
}

fn parse_parts(packet: &Packet, head: &[u8], rest: &[&[u8]], total: usize, verify: bool) -> (L4, u16, u16) {
    let verify = verify && !packet.in_port.is_twin();
    let (tuple, ttl) = (&packet.tuple, packet.ttl);
    let (src, dst, proto) = (tuple.src, tuple.dst, tuple.proto);
    l4::parse(&l4::Payload { head, rest, total, src, dst, proto, ttl, verify })
}

/// The window of the TCP segment in the train, and the length of its header; or a UDP header's length.
pub(super) fn transport<B: Buf>(train: &Train<B>, packet: &Packet) -> (u16, usize) {
    let head = head(train);
    match (packet.kind, head.get(12)) {
        (L4::Tcp(_), Some(words)) if head.len() >= 16 => (be16(&head, 14), usize::from(words >> 4) * 4),
        _ => (0, l4::UDP_HEADER),
    }
}

/// Rewrites the first fragment, and what belongs to the transport header of those behind it. `false` where the first has no room
/// to put the header together.
#[must_use]
pub(super) fn translate<I: Io>(train: &mut Train<I::Buf>, packet: &Packet, plan: &Plan) -> bool {
    let Some((first, later)) = train.split_first_mut() else { return true };
    let (start, own) = (usize::from(packet.l4), usize::from(first.packet.end));
    let missing = HEAD.saturating_sub(own.saturating_sub(start));
    if plan.rewrite == Rewrite::None || missing == 0 {
        Worker::<I>::translate(&mut first.buf, &Packet { end: first.packet.end, ..*packet }, plan);
        return true;
    }
    let mut end = own;
    for piece in later.iter() {
        let bytes = payload(piece);
        let bytes = bytes.get(..own + missing - end).unwrap_or(bytes);
        if !first.buf.resize(end + bytes.len()) {
            return false;
        }
        if let Some(to) = first.buf.bytes_mut().get_mut(end..) {
            to.copy_from_slice(bytes);
        }
        end += bytes.len();
    }
    // Invariant: a frame is shorter than 65,536 bytes.
    let whole = Packet { end: u16::try_from(end).unwrap_or(first.packet.end), ..*packet };
    Worker::<I>::translate(&mut first.buf, &whole, plan);
    let mut from = first.buf.bytes().get(own..).unwrap_or_default();
    for piece in later {
        let range = usize::from(piece.packet.l4)..usize::from(piece.packet.end);
        let Some(to) = piece.buf.bytes_mut().get_mut(range) else { break };
        let n = from.len().min(to.len());
        let (bytes, behind) = from.split_at(n);
        to[..n].copy_from_slice(bytes);
        from = behind;
    }
    first.buf.resize(own)
}

/// Writes `bytes` at offset `at` of the datagram's transport data, in whichever fragments that lies.
pub(super) fn write<B: Buf>(train: &mut Train<B>, mut at: usize, mut bytes: &[u8]) {
    for piece in train {
        let part = usize::from(piece.packet.l4)..usize::from(piece.packet.end);
        let Some(part) = piece.buf.bytes_mut().get_mut(part) else { return };
        if let Some(to) = part.get_mut(at..) {
            let (here, behind) = bytes.split_at(bytes.len().min(to.len()));
            to[..here.len()].copy_from_slice(here);
            bytes = behind;
        }
        at = at.saturating_sub(part.len());
    }
}

/// The first bytes of the datagram's transport data, at most [`HEAD`].
pub(super) fn head<B: Buf>(train: &Train<B>) -> ArrayVec<u8, HEAD> {
    let mut parts: ArrayVec<&[u8], { TRAIN + 1 }> = train.iter().map(payload).collect();
    take_head(&mut parts)
}

/// A fragment's part of the transport data.
pub(super) fn payload<B: Buf>(p: &Piece<B>) -> &[u8] {
    p.buf.bytes().get(usize::from(p.packet.l4)..usize::from(p.packet.end)).unwrap_or_default()
}

/// Takes the first [`HEAD`] bytes off what lies in `parts`.
fn take_head(parts: &mut [&[u8]]) -> ArrayVec<u8, HEAD> {
    let mut head = ArrayVec::new();
    for part in parts {
        let (bytes, behind) = part.split_at(part.len().min(head.remaining_capacity()));
        head.extend(bytes.iter().copied());
        *part = behind;
    }
    head
}
