//! Sequence numbers: 32 bits that wrap.
//!
//! Two of them are compared by the shorter way round the circle (RFC 1982, RFC 9293 section 3.4). At a distance of
//! exactly 2^31 each is before the other.

use std::ops::{Add, Sub};

/// A sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether this comes before `other`.
    #[inline]
    pub const fn is_before(self, other: Self) -> bool {
        self.since(other).cast_signed() < 0
    }

    /// Whether this comes after `other`.
    #[inline]
    pub const fn is_after(self, other: Self) -> bool {
        other.is_before(self)
    }

    /// The way from `other` to this, clockwise.
    #[inline]
    pub const fn since(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }

    /// The later one of both.
    #[inline]
    pub const fn later(self, other: Self) -> Self {
        if other.is_after(self) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    #[inline]
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    #[inline]
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_goes_round_the_circle() {
        let (low, high) = (Seq(5), Seq(u32::MAX - 5));
        assert!(high.is_before(low) && low.is_after(high) && !low.is_before(high));
        assert!(!low.is_before(low) && !low.is_after(low));
        assert_eq!((high.later(low), low.later(high), low.since(high)), (low, low, 11));
    }

    proptest! {
        #[test]
        fn adding_less_than_half_the_circle_comes_after(a: u32, n in 1..1u32 << 31) {
            let (a, b) = (Seq(a), Seq(a) + n);
            prop_assert!(a.is_before(b) && b.is_after(a) && !b.is_before(a) && !a.is_after(b));
            prop_assert_eq!((b - n, b.since(a)), (a, n));
        }
    }
}
