//! The Internet checksum: full, with pseudo header, and incremental.
//!
//! *Sources*: RFC 1071; RFC 1624 equation 3; RFC 8200 section 8.1.

use std::net::IpAddr;

/// One's complement sum of `b`, folded to 16 bits, not inverted. Over data that includes its right checksum this is
/// `0xffff`.
pub fn sum(b: &[u8]) -> u16 {
    fold(add(0, b))
}

/// Adds `b` to a running sum. `b` must start at an even offset of the data.
#[inline]
pub fn add(start: u64, b: &[u8]) -> u64 {
    let (words, rest) = b.as_chunks::<4>();
    let mut acc = words.iter().fold(start, |acc, w| acc + u64::from(u32::from_be_bytes(*w)));
    let (pair, last) = rest.as_chunks::<2>();
    for p in pair {
        acc += u64::from(u16::from_be_bytes(*p));
    }
    if let [b] = last {
        acc += u64::from(*b) << 8;
    }
    acc
}

/// As [`add`], with words that begin with their lowest byte: the sum of data with a right checksum is [`is_complete`] in
/// either order (RFC 1071 section 2 (B)). Faster, and no good for computing a checksum.
#[inline(always)]
pub fn add_swapped(start: u64, b: &[u8]) -> u64 {
    if b.len() >= LONG {
        return add_long(start, b);
    }
    let (words, rest) = b.as_chunks::<8>();
    let acc = words.iter().fold(start, |acc, w| carry(acc, u64::from_le_bytes(*w)));
    if rest.is_empty() {
        return acc;
    }
    // What is left, as the end of the last eight bytes: those before it are counted already.
    let last = match b.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * rest.len()),
        None => rest.iter().rev().fold(0, |acc, &b| acc << 8 | u64::from(b)),
    };
    carry(acc, last)
}

/// From so many bytes on, many sums beside each other are faster than one with carries.
const LONG: usize = 128;

/// The same for long data: halves of words never carry, so that the compiler may add many at once.
fn add_long(start: u64, b: &[u8]) -> u64 {
    let (words, rest) = b.as_chunks::<4>();
    let sum = words.iter().fold(0, |acc, w| acc + u64::from(u32::from_le_bytes(*w)));
    let last = rest.iter().rev().fold(0, |acc, &b| acc << 8 | u64::from(b));
    carry(carry(start, sum), last)
}

/// One's complement sum of 64 bits: as good as one of 16.
#[inline(always)]
pub const fn carry(a: u64, b: u64) -> u64 {
    let (sum, over) = a.overflowing_add(b);
    sum + over as u64
}

/// Two 16-bit words of a pseudo header, for [`add_swapped`].
#[inline(always)]
pub const fn swapped(a: u16, b: u16) -> u64 {
    a.swap_bytes() as u64 + b.swap_bytes() as u64
}

/// Whether a running sum is that of data with a right checksum.
#[inline(always)]
pub const fn is_complete(acc: u64) -> bool {
    // Each half added to the other, with the carry, stands in the upper half. A multiple of 0xffff, and not 0, remains: the
    // sum of a header is never 0.
    let acc = (acc.wrapping_add(acc.rotate_left(32)) >> 32) as u32;
    acc.wrapping_add(acc.rotate_left(16)) >> 16 == 0xffff
}

/// Folds a running sum to 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
pub const fn fold(mut acc: u64) -> u16 {
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    acc as u16
}

/// Sum of the pseudo header of `proto` with `len` bytes of transport header and payload.
#[inline]
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => u64::from(s.to_bits()) + u64::from(d.to_bits()),
        (IpAddr::V6(s), IpAddr::V6(d)) => add(add(0, &s.octets()), &d.octets()),
        _ => 0,
    };
    addresses + u64::from(proto) + len as u64
}

/// The difference that replaced fields make to a checksum (RFC 1624): built up field by field, applied to any number of
/// checksums that cover those fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// A 16-bit field went from `old` to `new`.
    #[inline]
    #[must_use]
    pub fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// A 32-bit field went from `old` to `new`.
    #[inline]
    #[must_use]
    pub fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Two 32-bit fields went from `old` to `new`.
    #[inline]
    #[must_use]
    pub fn replace64(self, old: u64, new: u64) -> Self {
        let halves = |v: u64| (v >> 32) + (v & 0xffff_ffff);
        Self(self.0 + halves(!old) + halves(new))
    }

    /// This difference and `other`, of other fields.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// An address went from `old` to `new`, of one IP version.
    #[inline]
    #[must_use]
    pub fn replace_address(self, old: IpAddr, new: IpAddr) -> Self {
        match (old, new) {
            (IpAddr::V4(o), IpAddr::V4(n)) => self.replace32(o.to_bits(), n.to_bits()),
            (IpAddr::V6(o), IpAddr::V6(n)) => {
                let (o, n) = (o.octets(), n.octets());
                Self(o.as_chunks::<4>().0.iter().zip(n.as_chunks::<4>().0).fold(self.0, |acc, (o, n)| {
                    acc + u64::from(!u32::from_be_bytes(*o)) + u64::from(u32::from_be_bytes(*n))
                }))
            }
            _ => self,
        }
    }

    /// The checksum field (as it stands in the packet) after the replacements.
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        // Few fields: the sum has less than 40 bits, and twice is enough.
        let acc = u64::from(!field) + self.0;
        let acc = (acc & 0xffff) + (acc >> 16 & 0xffff) + (acc >> 32);
        !fold(acc)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn incremental_equals_full(mut b in proptest::collection::vec(any::<u8>(), 24..200), at in 1usize..9, new in any::<u32>()) {
            let at = at * 2;
            b[0] = 0x45; // a header is never all zero: +0 and -0 would differ
            b[20] = 0; b[21] = 0;
            let field = !sum(&b);
            let old = u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            // The two halves that the checksum field itself would cover are out of bounds here: at + 3 < 20.
            prop_assume!(at + 4 <= 20);
            b[at..at + 4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(Delta::default().replace32(old, new).apply(field), !sum(&b));
        }

        #[test]
        fn sums_do_not_depend_on_how_the_data_is_cut(b in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let cut = (cut * 2).min(b.len() / 2 * 2);
            prop_assert_eq!(fold(add(add(0, &b[..cut]), &b[cut..])), sum(&b));
        }
    }

    proptest! {
        #[test]
        fn a_right_checksum_is_seen_in_either_byte_order(mut b in proptest::collection::vec(any::<u8>(), 4..300), wrong in any::<u16>()) {
            b[0] |= 1;
            b[2] = 0; b[3] = 0;
            let field = !sum(&b);
            b[2..4].copy_from_slice(&field.to_be_bytes());
            prop_assert!(is_complete(add_swapped(0, &b)));
            let other = field.wrapping_add(wrong);
            b[2..4].copy_from_slice(&other.to_be_bytes());
            prop_assert_eq!(is_complete(add_swapped(0, &b)), sum(&b) == 0xffff);
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }
}
