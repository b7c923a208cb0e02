//! SCTP's checksum: full, and the difference that replaced bytes make to it.
//!
//! A CRC is linear: of two messages of one length, the exclusive or of their CRCs depends only on where they differ. So a
//! translated packet's checksum is put right without reading the packet, and one that came in wrong goes out wrong.
//!
//! *Threads*: any; functions of bytes. *Limits*: messages of at most 65,535 bytes.
//! *Sources*: RFC 9260 section 6.8 and appendix A.

/// The CRC32c of the data in `parts`, all of which are one message.
pub fn sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    parts.into_iter().fold(0, crc32c::crc32c_append)
}

/// What it makes to the CRC that four bytes change from `old` to `new`, `behind` bytes before the message's end: the
/// exclusive or of the CRCs before and after.
#[inline]
pub fn difference(old: [u8; 4], new: [u8; 4], behind: u16) -> u32 {
    // Of messages of four bytes, initial value and final inversion cancel out.
    let mut crc = crc32c::crc32c(&old) ^ crc32c::crc32c(&new);
    for (n, power) in POWERS.iter().enumerate() {
        if behind >> n & 1 == 1 {
            crc = product(*power, crc);
        }
    }
    crc
}

/// Castagnoli's polynomial, the lowest bit being the coefficient of x^31.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^(8 * 2^n): what 2^n zero bytes multiply a CRC by.
const POWERS: [u32; 16] = powers();

const fn powers() -> [u32; 16] {
    let mut all = [1 << (31 - 8); 16];
    let mut n = 1;
    while n < all.len() {
        all[n] = product(all[n - 1], all[n - 1]);
        n += 1;
    }
    all
}

/// The product of two polynomials, modulo [`POLYNOMIAL`].
#[inline]
const fn product(a: u32, b: u32) -> u32 {
    let (mut sum, mut term, mut bit) = (0, b, 1 << 31);
    while bit != 0 {
        if a & bit != 0 {
            sum ^= term;
        }
        term = term >> 1 ^ if term & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_difference_is_that_of_the_sums(mut b in proptest::collection::vec(any::<u8>(), 4..3000), at in any::<usize>(), new in any::<[u8; 4]>()) {
            let at = at % (b.len() - 3);
            let before = sum([&b[..]]);
            let old = [b[at], b[at + 1], b[at + 2], b[at + 3]];
            b[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(before ^ sum([&b[..]]), difference(old, new, (b.len() - at - 4) as u16));
        }

        #[test]
        fn the_sum_does_not_depend_on_how_the_data_is_cut(b in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let (head, tail) = b.split_at(cut.min(b.len()));
            prop_assert_eq!(sum([head, tail]), sum([&b[..]]));
        }
    }

    #[test]
    fn the_example_of_rfc_3720() {
        assert_eq!(sum([&[0; 32][..]]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    #[test]
    fn bytes_may_change_at_either_end_of_the_longest_message() {
        let mut b = vec![7; 65_535];
        let before = sum([&b[..]]);
        b[..4].copy_from_slice(&[1, 2, 3, 4]);
        let first = sum([&b[..]]);
        assert_eq!(before ^ first, difference([7; 4], [1, 2, 3, 4], 65_531));
        b[65_531..].copy_from_slice(&[5, 6, 7, 8]);
        assert_eq!(first ^ sum([&b[..]]), difference([7; 4], [5, 6, 7, 8], 0));
    }
}
