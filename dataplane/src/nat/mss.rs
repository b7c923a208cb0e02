//! TCP's largest segment, lowered in SYNs to what a link takes (RFC 9293 section 3.7.1).
//!
//! Whoever sends a SYN says how large the segments may be that it gets. A link in between that takes less would rely on "packet
//! too big" messages, which too many networks lose. A value is never raised, and an option that is not there is not added: its
//! absence means 536 bytes (IPv4) or 1,220 (IPv6), which fit.
//!
//! The checksum is updated by difference (RFC 1624): one that came in wrong goes out wrong.
//! *Threads*: any; functions of bytes. *Limits*: 40 bytes of options, read until the list breaks off.

use super::rewrite::put16;
use crate::parse::be16;
use crate::parse::checksum::Delta;
use crate::parse::tcp::TCP_HEADER;

/// Longest TCP header, bytes.
pub const LONGEST_HEADER: usize = 60;

/// Kinds of options (RFC 9293 section 3.1).
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

/// Lowers to `max` what the TCP header at the beginning of `b` announces; of several options each, for receivers differ in which
/// they heed. Says whether anything changed.
pub fn clamp(b: &mut [u8], max: u16) -> bool {
    let header = b.get(12).map_or(0, |words| usize::from(words >> 4) * 4);
    let Some(options) = b.get_mut(TCP_HEADER..header) else { return false };
    let (mut delta, mut at, mut lowered) = (Delta::default(), 0, false);
    while let Some(&kind) = options.get(at) {
        let size = match (kind, options.get(at + 1)) {
            (END, _) => break,
            (NOP, _) => 1,
            (_, Some(&size)) if size >= 2 => usize::from(size),
            _ => break,
        };
        let Some(option) = options.get_mut(at..at + size) else { break };
        if let [MSS, _, high, low] = option {
            let old = u16::from_be_bytes([*high, *low]);
            if old > max {
                [*high, *low] = max.to_be_bytes();
                // At an odd offset the bytes belong to two words, and the other way round.
                let odd = at % 2 == 1;
                let (old, new) = if odd { (old.swap_bytes(), max.swap_bytes()) } else { (old, max) };
                delta = delta.replace16(old, new);
                lowered = true;
            }
        }
        at += size;
    }
    if lowered {
        let sum = delta.apply(be16(b, 16));
        put16(b, 16, sum);
    }
    lowered
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::checksum;

    /// A SYN with these options and the right checksum, without a pseudo header, and some data.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut b = vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0xff, 0xff, 0, 0, 0, 0];
        b.extend(options);
        b.resize(b.len().next_multiple_of(4), END);
        b[12] = u8::try_from(b.len() * 4).expect("at most 40 bytes of options") & 0xf0;
        b.extend([1, 2, 3]);
        let sum = !checksum::sum(&b);
        put16(&mut b, 16, sum);
        b
    }

    fn clamped(options: &[u8], max: u16) -> Vec<u8> {
        let before = syn(options);
        let mut b = before.clone();
        assert_eq!(clamp(&mut b, max), b != before, "says whether anything changed");
        assert_eq!(checksum::sum(&b), 0xffff, "checksum");
        b[20..20 + options.len()].to_vec()
    }

    #[test]
    fn a_larger_segment_is_lowered_and_a_smaller_one_is_left() {
        assert_eq!(clamped(&[2, 4, 5, 0xb4], 1400), [2, 4, 5, 0x78]);
        assert_eq!(clamped(&[2, 4, 5, 0xb4], 1460), [2, 4, 5, 0xb4]);
        assert_eq!(clamped(&[2, 4, 5, 0xb4], 1461), [2, 4, 5, 0xb4]);
        assert_eq!(clamped(&[2, 4, 0xff, 0xff], 0), [2, 4, 0, 0]);
        assert_eq!(clamped(&[2, 4, 0, 0], 0), [2, 4, 0, 0]);
        assert_eq!(clamped(&[4, 2, 3, 3, 7], 536), [4, 2, 3, 3, 7], "nothing is added");
        assert_eq!(clamped(&[], 536), []);
    }

    #[test]
    fn an_option_at_an_odd_offset_is_found() {
        assert_eq!(clamped(&[1, 2, 4, 5, 0xb4], 1400), [1, 2, 4, 5, 0x78]);
        assert_eq!(clamped(&[3, 3, 7, 2, 4, 5, 0xb4], 0x1234 >> 2), [3, 3, 7, 2, 4, 4, 0x8d]);
    }

    #[test]
    fn each_of_several_is_lowered() {
        assert_eq!(clamped(&[2, 4, 9, 0, 1, 2, 4, 8, 0], 1000), [2, 4, 3, 0xe8, 1, 2, 4, 3, 0xe8]);
    }

    #[test]
    fn a_list_that_breaks_off_is_read_until_there() {
        for broken in [[3, 0, 2, 4, 5, 0xb4], [3, 1, 2, 4, 5, 0xb4], [9, 41, 2, 4, 5, 0xb4], [0, 0, 2, 4, 5, 0xb4]] {
            assert_eq!(clamped(&broken, 500), broken);
        }
        assert_eq!(clamped(&[2, 3, 9, 2, 4, 5, 0xb4], 500), [2, 3, 9, 2, 4, 1, 0xf4], "of another size it is none");
        assert_eq!(clamped(&[2, 4, 9], 500), [2, 4, 1], "the padding ends it");
        let mut cut = syn(&[2, 4, 5, 0xb4]);
        for n in 0..24 {
            let whole = cut.clone();
            assert!(!clamp(&mut cut[..n], 500), "{n} bytes");
            assert_eq!(cut, whole);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_options_only_values_above_the_limit_change(options in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..=40), max in any::<u16>()) {
            let before = syn(&options);
            let mut b = before.clone();
            clamp(&mut b, max);
            prop_assert_eq!(checksum::sum(&b), 0xffff);
            prop_assert_eq!(&b[..16], &before[..16]);
            let header = usize::from(b[12] >> 4) * 4;
            prop_assert_eq!(&b[header..], &before[header..]);
            prop_assert!(!clamp(&mut b, max), "once is enough");
        }

        #[test]
        fn no_bytes_are_too_strange(mut b in proptest::collection::vec(any::<u8>(), 0..80), max in any::<u16>()) {
            clamp(&mut b, max);
        }
    }
}
