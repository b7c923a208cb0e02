//! TCP segments of a connection whose text is changed on the way: numbers, selective acknowledgements, payload.
//!
//! Checksums are updated by difference, as everywhere: one that came in wrong goes out wrong.
//! *Threads*: any; functions of bytes. *Sources*: RFC 9293; RFC 2018 section 3; RFC 1624;
//! `linux/net/netfilter/nf_conntrack_seqadj.c`.

use super::rewrite::put16;
use crate::conntrack::tcp::{ACK, URG};
use crate::helper::pptp::Patches;
use crate::helper::seqadj::{Splice, Stream};
use crate::io::Buf;
use crate::packet::{L4, Packet, Quoted};
use crate::parse::checksum::{self, Delta};
use crate::parse::tcp::TCP_HEADER;
use crate::parse::{be16, be32};

/// Kinds of TCP options: RFC 9293 section 3.1, RFC 2018, RFC 7323.
const END: u8 = 0;
const NOP: u8 = 1;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// How many bytes a segment's splices add, or with a negative number take.
pub fn growth(splices: &[Splice]) -> isize {
    splices.iter().fold(0, |n, s| n + s.text.len().cast_signed() - s.old.cast_signed())
}

/// Adjusts the segment in `buf`: its own numbers and payload to the stream `own`, what it acknowledges to `other`. `p` says
/// where its headers are; it may be translated already. `false`, and the frame is broken, where it does not fit the buffer.
#[must_use]
pub fn adjust<B: Buf>(buf: &mut B, p: &Packet, own: &Stream, other: &Stream, splices: &[Splice]) -> bool {
    let (l3, l4, end) = p.span();
    let L4::Tcp(segment) = p.kind else { return true };
    let before = checksum::sum(&buf.bytes()[l4..end]);
    let b = buf.bytes_mut();
    let header = usize::from(b[l4 + 12] >> 4) * 4;
    let seq = own.there(segment.seq);
    put32(b, l4 + 4, seq);
    if segment.flags & ACK != 0 {
        put32(b, l4 + 8, other.back(segment.ack));
        options(&mut b[l4 + 20..l4 + header], |kind, data| {
            if kind == SACK {
                selective(data, other);
            }
        });
    }
    if segment.flags & URG != 0 {
        let urgent = own.there(segment.seq.wrapping_add(u32::from(be16(b, l4 + 18)))).wrapping_sub(seq);
        put16(b, l4 + 18, u16::try_from(urgent).unwrap_or(0));
    }
    let mut end_now = end;
    for s in splices.iter().rev() {
        let at = l4 + header + s.at;
        if at + s.old > end_now {
            debug_assert!(false, "a splice beyond the segment, or across the next");
            return false;
        }
        let len = end_now + s.text.len() - s.old;
        if len > end_now && !buf.resize(len) {
            return false;
        }
        let b = buf.bytes_mut();
        b.copy_within(at + s.old..end_now, at + s.text.len());
        b[at..at + s.text.len()].copy_from_slice(&s.text);
        if len < end_now && !buf.resize(len) {
            return false;
        }
        end_now = len;
    }
    let b = buf.bytes_mut();
    let mut delta = Delta::default().replace16(before, checksum::sum(&b[l4..end_now]));
    if end_now != end {
        let Some((old, new)) = relength(b, l3, end - l3, end_now - l3) else { return false };
        delta = delta.replace16(old, new);
    }
    let sum = delta.apply(be16(b, l4 + 16));
    put16(b, l4 + 16, sum);
    true
}

/// Gives the segment that an ICMP error quotes the numbers that its sender knows: `own` is its stream, `other` what it
/// acknowledged. `p` is the error. What the quote does not reach to stays.
pub fn adjust_quote(b: &mut [u8], p: &Packet, quoted: &Quoted, own: &Stream, other: &Stream) {
    let (_, l4, end) = p.span();
    let Some(quote) = b.get_mut(l4 + usize::from(quoted.at) + usize::from(quoted.l4)..end) else { return };
    let header = quote.len().min(TCP_HEADER);
    let Some(quote) = quote.get_mut(..header).filter(|q| q.len() >= 8) else { return };
    let before = checksum::sum(quote);
    put32(quote, 4, own.edge(be32(quote, 4), false));
    // Where the flags are not quoted, an acknowledgement is likely: only first segments have none.
    if header >= 12 && quote.get(13).is_none_or(|flags| flags & ACK != 0) {
        put32(quote, 8, other.there(be32(quote, 8)));
    }
    if header >= 18 {
        let sum = Delta::default().replace16(before, checksum::sum(quote)).apply(be16(quote, 16));
        put16(quote, 16, sum);
    }
    // The quote begins at an even offset of the message, so its 16-bit words are the message's.
    let sum = Delta::default().replace16(before, checksum::sum(quote)).apply(be16(b, l4 + 2));
    put16(b, l4 + 2, sum);
}

/// Changes the payload of a segment as `patches` say. `p` says where its headers are; it may be translated already.
pub fn patch(b: &mut [u8], p: &Packet, patches: &Patches) {
    let (_, l4, end) = p.span();
    let L4::Tcp(segment) = p.kind else { return };
    let before = checksum::sum(&b[l4..end]);
    let header = usize::from(b[l4 + 12] >> 4) * 4;
    if patches.apply(segment.seq, &mut b[l4 + header..end]) {
        let delta = Delta::default().replace16(before, checksum::sum(&b[l4..end]));
        let sum = delta.apply(be16(b, l4 + 16));
        put16(b, l4 + 16, sum);
    }
}

/// Sets the length of an IP packet; gives the length field before and after, whose difference is that of the pseudo header.
fn relength(b: &mut [u8], l3: usize, old: usize, new: usize) -> Option<(u16, u16)> {
    let (old, new) = (u16::try_from(old).ok()?, u16::try_from(new).ok()?);
    if b[l3] >> 4 == 4 {
        put16(b, l3 + 2, new);
        let sum = Delta::default().replace16(old, new).apply(be16(b, l3 + 10));
        put16(b, l3 + 10, sum);
    } else {
        put16(b, l3 + 4, new.checked_sub(40)?);
    }
    Some((old, new))
}

/// The blocks of a SACK option: each edge is that of whole edits.
fn selective(blocks: &mut [u8], other: &Stream) {
    for block in blocks.as_chunks_mut::<8>().0 {
        let (left, right) = (be32(block, 0), be32(block, 4));
        put32(block, 0, other.edge(left, true));
        put32(block, 4, other.edge(right, false));
    }
}

/// Calls `f` with the kind and the data of each option in `b`; what is broken ends the walk.
fn options(mut b: &mut [u8], mut f: impl FnMut(u8, &mut [u8])) {
    while let Some((&mut kind, rest)) = b.split_first_mut() {
        b = match kind {
            END => return,
            NOP => rest,
            _ => {
                let Some((&mut len, rest)) = rest.split_first_mut() else { return };
                let Some(len) = usize::from(len).checked_sub(2) else { return };
                let Some((data, rest)) = rest.split_at_mut_checked(len) else { return };
                f(kind, data);
                rest
            }
        };
    }
}

/// Bytes of [`acknowledgement`], Ethernet header and all, at most: IPv6, TCP with timestamps.
pub const ACKNOWLEDGEMENT: usize = 18 + 40 + 32;

/// Writes into `out` the frame that acknowledges the segment in `frame` up to `ack` and goes back where that came from.
/// Gives its length; `None` where `frame` holds no such segment or `out` is too short.
pub fn acknowledgement(out: &mut [u8], frame: &[u8], p: &Packet, ack: u32, window: u16) -> Option<usize> {
    let (l3, l4, end) = p.span();
    let L4::Tcp(segment) = p.kind else { return None };
    let header = usize::from(frame.get(l4 + 12)? >> 4) * 4;
    let mut stamps = None;
    let mut copy = [0; 40];
    let copy = copy.get_mut(..header.checked_sub(20)?)?;
    copy.copy_from_slice(frame.get(l4 + 20..l4 + header)?);
    options(copy, |kind, data| {
        if let (TIMESTAMPS, [a, b, c, d, e, f, g, h]) = (kind, &*data) {
            // Its own time goes back as it came, and what it echoed is the newest that it has seen of the other side.
            stamps = Some([NOP, NOP, TIMESTAMPS, 10, *e, *f, *g, *h, *a, *b, *c, *d]);
        }
    });
    let stamps = stamps.as_ref().map_or(&[][..], |s| &s[..]);
    let is_v4 = p.tuple.is_ipv4();
    let ip = if is_v4 { 20 } else { 40 };
    let tcp = 20 + stamps.len();
    let len = l3 + ip + tcp;
    let out = out.get_mut(..len)?;
    let frame = frame.get(..end)?;
    out.fill(0);
    out[..l3].copy_from_slice(&frame[..l3]);
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].copy_from_slice(&frame[..6]);
    // Invariant: an IP packet of at most 72 bytes.
    let field = u16::try_from(if is_v4 { ip + tcp } else { tcp }).ok()?;
    let (head, segment_out) = out[l3..].split_at_mut(ip);
    if is_v4 {
        head[0] = 0x45;
        put16(head, 2, field);
        put16(head, 6, 0x4000); // it is never cut
        (head[8], head[9]) = (64, p.tuple.proto);
        head[12..16].copy_from_slice(&frame[l3 + 16..l3 + 20]);
        head[16..20].copy_from_slice(&frame[l3 + 12..l3 + 16]);
        let sum = !checksum::sum(head);
        put16(head, 10, sum);
    } else {
        head[0] = 0x60;
        put16(head, 4, field);
        (head[6], head[7]) = (p.tuple.proto, 64);
        head[8..24].copy_from_slice(&frame[l3 + 24..l3 + 40]);
        head[24..40].copy_from_slice(&frame[l3 + 8..l3 + 24]);
    }
    put16(segment_out, 0, p.tuple.dport);
    put16(segment_out, 2, p.tuple.sport);
    put32(segment_out, 4, segment.ack);
    put32(segment_out, 8, ack);
    segment_out[12] = if stamps.is_empty() { 5 << 4 } else { 8 << 4 };
    segment_out[13] = ACK;
    put16(segment_out, 14, window);
    segment_out[20..].copy_from_slice(stamps);
    let pseudo = checksum::pseudo(p.tuple.dst, p.tuple.src, p.tuple.proto, tcp);
    let sum = !checksum::fold(checksum::add(pseudo, segment_out));
    put16(segment_out, 16, sum);
    Some(len)
}

fn put32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_be_bytes());
}
