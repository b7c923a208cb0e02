//! TCP headers, and of the options those that tracking needs: window scale, SACK permitted, SACK.
//!
//! A list of options that breaks off or contradicts itself is not INVALID: what was read until then counts, as in Linux.
//!
//! *Limits*: 40 bytes of options. *Sources*: RFC 9293 section 3.1, RFC 7323 sections 2 and 3, RFC 2018 sections 2 and 3;
//! `linux/net/netfilter/nf_conntrack_proto_tcp.c` (`tcp_options`, `tcp_sack`).

use super::{be16, be32, ipv4, ipv6};
use crate::conntrack::tcp::{SYN, Seq};
use crate::packet::{SynOptions, TcpSegment};

/// Shortest TCP header, bytes.
pub const TCP_HEADER: usize = 20;

/// RFC 7323 section 2.3: a larger shift count counts as this.
const MAX_SCALE: u8 = 14;
const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
/// What most segments have for options: two of padding and a timestamp (RFC 7323 appendix A).
const TIMESTAMP: [u8; 4] = [NOP, NOP, 8, 10];

/// The segment whose header `b` begins with, in a datagram with `total` bytes of header and payload; `None` where the
/// header does not lie within `b`.
#[inline]
pub(super) fn parse(b: &[u8], total: usize) -> Option<TcpSegment> {
    let fixed: &[u8; TCP_HEADER] = b.first_chunk()?;
    let header = usize::from(fixed[12] >> 4) * 4;
    let options = b.get(TCP_HEADER..header)?;
    let ack = be32(fixed, 8);
    let mut segment = TcpSegment {
        flags: fixed[13],
        syn: None,
        seq: be32(fixed, 4),
        ack,
        sack: ack,
        win: be16(fixed, 14),
        // Invariant: a datagram has at most 65,535 bytes.
        len: u16::try_from(total.saturating_sub(header)).unwrap_or(u16::MAX),
    };
    let timestamp = options.len() == 12 && options.starts_with(&TIMESTAMP);
    if !options.is_empty() && (!timestamp || segment.flags & SYN != 0) {
        read(&mut segment, options);
    }
    Some(segment)
}

/// The segment in a packet whose network header has no options or extensions.
#[inline]
pub fn behind_plain_header(ip: &[u8]) -> Option<TcpSegment> {
    let header = if ip.first()? >> 4 == 4 { ipv4::HEADER } else { ipv6::HEADER };
    let payload = ip.get(header..)?;
    parse(payload, payload.len())
}

/// Reads a list of options.
fn read(segment: &mut TcpSegment, mut rest: &[u8]) {
    let mut syn = SynOptions::default();
    let mut sacks: &[u8] = &[];
    while let [kind, tail @ ..] = rest {
        match *kind {
            END => break,
            NOP => rest = tail,
            kind => {
                // Its length counts itself and the kind.
                let Some((data, next)) =
                    tail.split_first().and_then(|(&len, tail)| tail.split_at_checked(usize::from(len).checked_sub(2)?))
                else {
                    break;
                };
                match (kind, data) {
                    (WINDOW_SCALE, &[scale]) => syn.scale = Some(scale.min(MAX_SCALE)),
                    (SACK_PERMITTED, []) => syn.sack_permitted = true,
                    (SACK, blocks) if sacks.is_empty() && blocks.len() % 8 == 0 => sacks = blocks,
                    _ => {}
                }
                rest = next;
            }
        }
    }
    if segment.flags & SYN != 0 {
        segment.syn = Some(syn);
    }
    for block in sacks.chunks_exact(8) {
        segment.sack = Seq(segment.sack).later(Seq(be32(block, 4))).0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::be16;
    use super::*;

    /// A segment with acknowledgement number 1000 and these options, padded with END.
    fn with(flags: u8, options: &[u8]) -> TcpSegment {
        let mut b = vec![0; 20];
        b[8..12].copy_from_slice(&1000u32.to_be_bytes());
        b[13] = flags;
        b.extend(options);
        b.resize(b.len().next_multiple_of(4), END);
        b[12] = u8::try_from(b.len() * 4).expect("at most 40 bytes of options") & 0xf0;
        let header = b.len();
        b.extend([7; 5]);
        let segment = parse(&b, b.len()).expect("a segment");
        assert_eq!((usize::from(segment.len), be16(&b, 0)), (b.len() - header, 0));
        segment
    }

    fn syn(options: &[u8]) -> Option<SynOptions> {
        with(SYN, options).syn
    }

    fn block(from: u32, to: u32) -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes()].concat()
    }

    #[test]
    fn a_syn_says_its_scale_and_whether_it_takes_sacks() {
        let some = |scale, sack_permitted| Some(SynOptions { scale, sack_permitted });
        assert_eq!(syn(&[]), None);
        assert_eq!(syn(&[2, 4, 5, 0xb4]), some(None, false));
        assert_eq!(syn(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]), some(Some(7), true));
        assert_eq!(syn(&[3, 3, 14, 0]), some(Some(14), false));
        assert_eq!(syn(&[3, 3, 15, 0]), some(Some(14), false));
        assert_eq!(syn(&[3, 3, 255, 0]), some(Some(14), false));
        assert_eq!(syn(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]), some(None, false));
        // The last one counts, whatever stands twice.
        assert_eq!(syn(&[3, 3, 2, 3, 3, 5, 4, 2]), some(Some(5), true));
        assert_eq!(with(0x10, &[3, 3, 7, 4, 2]).syn, None);
    }

    #[test]
    fn a_broken_list_of_options_counts_up_to_where_it_breaks() {
        let some = |scale, sack_permitted| Some(SynOptions { scale, sack_permitted });
        assert_eq!(syn(&[3, 3, 7, 9, 0, 4, 2, 0]), some(Some(7), false)); // a length of 0
        assert_eq!(syn(&[3, 3, 7, 9, 1, 4, 2, 0]), some(Some(7), false)); // of 1
        assert_eq!(syn(&[4, 2, 3, 200]), some(None, true)); // beyond the header
        assert_eq!(syn(&[4, 2, 1, 3]), some(None, true)); // no length
        assert_eq!(syn(&[4, 3, 0, 3, 4, 7, 7, 0]), some(None, false)); // of another size than they have
        assert_eq!(syn(&[0, 3, 3, 7]), some(None, false)); // behind the end
    }

    #[test]
    fn the_latest_right_edge_is_what_is_acknowledged() {
        let sack = |options: &[u8]| with(0x10, options).sack;
        assert_eq!(sack(&[]), 1000);
        assert_eq!(sack(&[&[1, 1, 5, 10][..], &block(2000, 3000)].concat()), 3000);
        assert_eq!(sack(&[&[1, 1, 5, 18][..], &block(4000, 5000), &block(2000, 3000)].concat()), 5000);
        // D-SACK tells of what was acknowledged already (RFC 2883).
        assert_eq!(sack(&[&[1, 1, 5, 10][..], &block(100, 200)].concat()), 1000);
        // Round the circle.
        assert_eq!(sack(&[&[1, 1, 5, 10][..], &block(0, 1000u32.wrapping_add(1 << 31) - 1)].concat()), (1 << 31) + 999);
        // The first option of its kind counts, and none of another size than blocks have.
        assert_eq!(sack(&[&[5, 10][..], &block(0, 3000), &[5, 10], &block(0, 4000)].concat()), 3000);
        assert_eq!(sack(&[&[5, 9][..], &block(0, 3000)].concat()), 1000);
        assert_eq!(sack(&[&[5, 2][..], &[5, 10], &block(0, 3000)].concat()), 3000);
        // A timestamp alone, in the usual form, has none.
        assert_eq!(sack(&[1, 1, 8, 10, 5, 10, 0, 0, 0, 0, 9, 9]), 1000);
    }

    #[test]
    fn a_header_that_is_not_there_is_none() {
        let mut b = [0u8; 60];
        for words in 0..16u8 {
            b[12] = words << 4;
            let header = usize::from(words) * 4;
            for n in 0..=60 {
                assert_eq!(parse(&b[..n], 60).is_some(), words >= 5 && n >= header, "{words} words, {n} bytes");
            }
        }
    }
}
