//! Numbers from a seed: the same seed, the same numbers, on every machine.
//!
//! *Sources*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (xorshift64*).

use std::ops::RangeInclusive;

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self((seed ^ 0x5_1c1c_e5ee_d000).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.roll();
        }
        dice
    }

    /// 48 random bits.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Any 32 bits.
    pub fn word(&mut self) -> u32 {
        u32::try_from(self.roll() & 0xffff_ffff).unwrap_or(0)
    }

    /// Any 16 bits.
    pub fn short(&mut self) -> u16 {
        u16::try_from(self.roll() & 0xffff).unwrap_or(0)
    }

    /// Any 8 bits.
    pub fn byte(&mut self) -> u8 {
        u8::try_from(self.roll() & 0xff).unwrap_or(0)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n as u64).unwrap_or(0)
    }

    /// Within a range.
    pub fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        let span = u64::from(range.end() - range.start()) + 1;
        range.start() + u32::try_from(self.roll() % span).unwrap_or(0)
    }

    /// One of several.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// True in `n` of 100 cases.
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// True in `n` of 1,000 cases.
    pub fn permille(&mut self, n: usize) -> bool {
        self.below(1000) < n
    }
}
