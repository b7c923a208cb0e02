//! SCTP's common header and its chunks, as far as tracking looks at them.
//!
//! *Threads*: any; functions of bytes. *Limits*: the walk takes at least four bytes per step; [`SctpChunks::MAX`] chunks
//! that mean something to the state are kept, a packet with more is INVALID.
//! *Sources*: RFC 9260 sections 3 and 6.10; `linux/net/netfilter/nf_conntrack_proto_sctp.c` (`sctp_error`,
//! `do_basic_checks`).

use super::crc32c;
use super::l4::Payload;
use super::{be16, be32};
use crate::drop::DropReason;
use crate::packet::{L4, SctpChunk, SctpChunks, SctpPacket};

/// Common header, bytes.
pub const HEADER: usize = 12;
/// Where the checksum is in it.
pub const CHECKSUM: usize = 8;
/// Shortest INIT and INIT ACK: chunk header and fixed parameters.
const INIT: usize = 20;

/// Parses an SCTP packet.
pub fn parse(p: &Payload<'_>) -> (L4, u16, u16) {
    let b = p.head;
    if b.len() < HEADER {
        return (L4::Invalid(DropReason::InvalidLength), 0, 0);
    }
    let kind = if p.verify && be32(b, CHECKSUM).to_be_bytes() != checksum(p).to_le_bytes() {
        L4::Invalid(DropReason::InvalidChecksum)
    } else {
        chunks(p).map_or(L4::Invalid(DropReason::InvalidSctpChunks), L4::Sctp)
    };
    (kind, be16(b, 0), be16(b, 2))
}

/// The CRC of a packet whose header is all there; its own field counts as zero.
fn checksum(p: &Payload<'_>) -> u32 {
    let (before, behind) = (&p.head[..CHECKSUM], &p.head[HEADER..]);
    crc32c::sum([before, &[0; HEADER - CHECKSUM], behind].into_iter().chain(p.rest.iter().copied()))
}

/// Walks the chunks. `None` where there is none, where one has no length, and where one that must be alone (INIT,
/// INIT ACK, SHUTDOWN COMPLETE) or first (COOKIE ECHO, COOKIE ACK) is not.
fn chunks(p: &Payload<'_>) -> Option<SctpPacket> {
    let mut packet = SctpPacket { vtag: be32(p.head, 4), init_tag: 0, has_data: false, chunks: SctpChunks::default() };
    let mut bytes = Bytes { parts: p.rest.iter(), part: p.head, start: 0 };
    let (mut at, mut count, mut alone) = (HEADER, 0, false);
    while at + 4 <= p.total {
        let [kind, flags, high, low] = bytes.read(at)?;
        let chunk = SctpChunk::of(kind, flags);
        alone |= chunk.must_be_alone();
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || count > 0 && (alone || chunk.must_be_first()) {
            return None;
        }
        if matches!(chunk, SctpChunk::Init | SctpChunk::InitAck) {
            if at + INIT > p.total {
                return None;
            }
            packet.init_tag = u32::from_be_bytes(bytes.read(at + 4)?);
        }
        packet.has_data |= kind == SctpChunk::DATA;
        if !packet.chunks.push(chunk) {
            return None;
        }
        count += 1;
        at += length.next_multiple_of(4);
    }
    (count > 0).then_some(packet)
}

/// Reads forward through a payload that may lie in several parts.
struct Bytes<'a> {
    parts: std::slice::Iter<'a, &'a [u8]>,
    part: &'a [u8],
    start: usize,
}

impl Bytes<'_> {
    /// `N` bytes at `at`, which never lies before the last that were read.
    fn read<const N: usize>(&mut self, at: usize) -> Option<[u8; N]> {
        let mut out = [0; N];
        for (n, byte) in out.iter_mut().enumerate() {
            let at = at + n;
            while at >= self.start + self.part.len() {
                self.start += self.part.len();
                self.part = self.parts.next()?;
            }
            *byte = *self.part.get(at.checked_sub(self.start)?)?;
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::tuple::proto;

    fn payload<'a>(head: &'a [u8], rest: &'a [&'a [u8]], verify: bool) -> Payload<'a> {
        let total = head.len() + rest.iter().map(|p| p.len()).sum::<usize>();
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        Payload { head, rest, total, src, dst, proto: proto::SCTP, ttl: 64, verify }
    }

    fn packet(chunks: &[&[u8]]) -> Vec<u8> {
        let mut b = vec![0, 1, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0];
        for c in chunks {
            b.extend(*c);
            b.resize(b.len().next_multiple_of(4), 0);
        }
        let sum = checksum(&payload(&b, &[], false));
        b[CHECKSUM..HEADER].copy_from_slice(&sum.to_le_bytes());
        b
    }

    fn kind(b: &[u8]) -> L4 {
        parse(&payload(b, &[], true)).0
    }

    const DATA: &[u8] = &[0, 3, 0, 7, 1, 2, 3];
    const SHUTDOWN: &[u8] = &[7, 0, 0, 4];
    const ECHO: &[u8] = &[10, 0, 0, 4];
    const INIT_CHUNK: &[u8] = &[1, 0, 0, 20, 9, 8, 7, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn chunks_are_found_behind_their_padding() {
        let L4::Sctp(p) = kind(&packet(&[ECHO, DATA, DATA, SHUTDOWN])) else { panic!("it is right") };
        let expected = [SctpChunk::CookieEcho, SctpChunk::Other, SctpChunk::Shutdown];
        assert_eq!(p.chunks.iter().collect::<Vec<_>>(), expected, "what means nothing counts once");
        assert!(p.has_data);
        assert_eq!(p.vtag, 7);
        let L4::Sctp(p) = kind(&packet(&[INIT_CHUNK])) else { panic!("it is right") };
        assert_eq!((p.init_tag, p.has_data), (0x0908_0706, false));
    }

    #[test]
    fn some_chunks_are_alone_or_first() {
        let alone: [&[u8]; 3] = [INIT_CHUNK, &[&[2], &INIT_CHUNK[1..]].concat(), &[14, 0, 0, 4]];
        for chunk in alone {
            assert!(matches!(kind(&packet(&[chunk])), L4::Sctp(_)));
            for chunks in [[chunk, DATA], [DATA, chunk], [chunk, chunk]] {
                assert_eq!(kind(&packet(&chunks)), L4::Invalid(DropReason::InvalidSctpChunks), "{chunks:?}");
            }
        }
        for chunk in [ECHO, &[11, 0, 0, 4]] {
            assert!(matches!(kind(&packet(&[chunk, DATA])), L4::Sctp(_)));
            assert_eq!(kind(&packet(&[DATA, chunk])), L4::Invalid(DropReason::InvalidSctpChunks));
        }
    }

    #[test]
    fn without_a_chunk_or_with_one_without_length_it_is_invalid() {
        let odd: [&[u8]; 4] = [&[], &[0, 0, 0], &[0, 0, 0, 0], &[0, 0, 0, 4, 7, 0, 0, 0]];
        for chunk in odd {
            let mut b = packet(&[]);
            b.extend(chunk);
            assert_eq!(parse(&payload(&b, &[], false)).0, L4::Invalid(DropReason::InvalidSctpChunks), "{chunk:?}");
        }
        // A length that does not cover its own header moves on by four bytes; one beyond the end ends the walk.
        for (length, chunks) in [(1, 2), (3, 2), (4, 2), (5, 1), (0xff, 1)] {
            let mut b = packet(&[]);
            b.extend([9, 0, 0, length, 7, 0, 0, 4]);
            let L4::Sctp(p) = parse(&payload(&b, &[], false)).0 else { panic!("length {length}") };
            assert_eq!(p.chunks.iter().count(), chunks, "length {length}");
        }
        assert_eq!(kind(&packet(&[&INIT_CHUNK[..16]])), L4::Invalid(DropReason::InvalidSctpChunks));
    }

    #[test]
    fn more_changes_of_meaning_than_are_kept_are_invalid() {
        let pairs = |n: usize| [SHUTDOWN, DATA].into_iter().cycle().take(n).collect::<Vec<_>>();
        assert!(matches!(kind(&packet(&pairs(SctpChunks::MAX))), L4::Sctp(_)));
        assert_eq!(kind(&packet(&pairs(SctpChunks::MAX + 1))), L4::Invalid(DropReason::InvalidSctpChunks));
        assert!(matches!(kind(&packet(&[DATA; 300])), L4::Sctp(_)));
    }

    #[test]
    fn the_checksum_is_verified_where_wanted() {
        let mut b = packet(&[DATA]);
        for at in 0..b.len() {
            b[at] ^= 1;
            assert_eq!(kind(&b), L4::Invalid(DropReason::InvalidChecksum), "byte {at}");
            b[at] ^= 1;
        }
        b[4] ^= 1;
        assert!(matches!(parse(&payload(&b, &[], false)).0, L4::Sctp(_)));
    }

    proptest! {
        #[test]
        fn how_it_is_cut_makes_no_difference(b in proptest::collection::vec(any::<u8>(), 12..200), first in 1usize..10, second in 1usize..10) {
            let whole = parse(&payload(&b, &[], false));
            let first = (first * 8 + 8).min(b.len());
            let (head, rest) = b.split_at(first);
            let (middle, last) = rest.split_at((second * 8).min(rest.len()));
            prop_assert_eq!(parse(&payload(head, &[middle, last], false)), whole);
        }

        #[test]
        fn no_bytes_make_it_panic(b in proptest::collection::vec(any::<u8>(), 0..100), verify in any::<bool>()) {
            for n in 0..b.len() {
                parse(&payload(&b[..n], &[], verify));
            }
        }
    }
}
