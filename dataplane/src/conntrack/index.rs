//! A hash index from 64-bit hashes to 32-bit values: what the connection table and the signposts are found by.
//!
//! Buckets are one cache line: twelve one-byte tags, twelve values. A lookup compares the tags of a bucket at once and
//! only touches the entries whose tags agree. A full bucket overflows into others, at a distance taken from the hash so that
//! full buckets do not cluster; each bucket counts how many values passed it by, so a lookup stops at the first bucket that none did, and removal leaves no tombstone.
//!
//! *Life-cycle*: allocated once, at start. *Threads*: one worker.
//! *Limits*: [`MAX_PROBES`] buckets per lookup; an insertion that would need more is refused.
//! *Sources*: the 14-way chunks of F14 (Bronson and Shi, 2019) and the tags of Swiss tables gave the idea.

use crate::cpu::{matching_bytes, prefer_huge_pages, prefetch};

/// Values per bucket.
const WAYS: usize = 12;

/// Most buckets that a lookup walks.
pub const MAX_PROBES: usize = 16;

/// Values stored per 100 places at the advertised capacity.
const LOAD_PERCENT: usize = 80;

#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
struct Bucket {
    /// 0 where the way is empty; behind them, how many values found this bucket full and lie in another.
    head: [u8; WAYS + 4],
    values: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Bit `i` is set where way `i` has tag `tag`.
    #[inline]
    fn matches(&self, tag: u8) -> u32 {
        matching_bytes(self.head, tag) & ((1 << WAYS) - 1)
    }

    #[inline]
    fn passed(&self) -> u32 {
        let [.., a, b, c, d] = self.head;
        u32::from_ne_bytes([a, b, c, d])
    }

    fn pass(&mut self, change: i32) {
        let passed = self.passed().wrapping_add_signed(change);
        self.head[WAYS..].copy_from_slice(&passed.to_ne_bytes());
    }
}

/// No room within [`MAX_PROBES`] buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The index.
#[derive(Debug)]
pub struct Index {
    buckets: Box<[Bucket]>,
}

impl Index {
    /// Room for `capacity` values at the design load of 80 %.
    pub fn new(capacity: usize) -> Self {
        let n = (capacity * 100).div_ceil(WAYS * LOAD_PERCENT).max(1);
        let n = next_prime(n);
        let mut buckets = Vec::with_capacity(n);
        prefer_huge_pages(buckets.spare_capacity_mut());
        buckets.resize(n, Bucket::default());
        Self { buckets: buckets.into_boxed_slice() }
    }

    /// Bytes that it occupies.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// To look things up in it.
    #[inline]
    pub fn view(&self) -> View<'_> {
        View { buckets: &self.buckets }
    }

    /// Brings the bucket of `hash` closer.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.view().prefetch(hash);
    }

    /// The first value whose tag agrees in the first bucket: the entry to prefetch.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.view().candidate(hash)
    }

    /// The value with this hash for which `eq` holds.
    #[inline]
    pub fn find(&self, hash: u64, mut eq: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut i = self.home(hash);
        for _ in 0..MAX_PROBES {
            let bucket = &self.buckets[i];
            let mut mask = bucket.matches(tag(hash));
            while mask != 0 {
                let value = bucket.values[mask.trailing_zeros() as usize];
                if eq(value) {
                    return Some(value);
                }
                mask &= mask - 1;
            }
            if bucket.passed() == 0 {
                return None;
            }
            i = self.next(i, hash);
        }
        None
    }

    /// Adds `value` under `hash`; the caller has made sure that it is not there.
    ///
    /// # Errors
    /// [`Full`], and nothing changed.
    pub fn insert(&mut self, hash: u64, value: u32) -> Result<(), Full> {
        let home = self.home(hash);
        let mut i = home;
        for probes in 0..MAX_PROBES {
            let free = self.buckets[i].matches(0);
            if free != 0 {
                let way = free.trailing_zeros() as usize;
                self.buckets[i].head[way] = tag(hash);
                self.buckets[i].values[way] = value;
                let mut passed = home;
                for _ in 0..probes {
                    self.buckets[passed].pass(1);
                    passed = self.next(passed, hash);
                }
                return Ok(());
            }
            i = self.next(i, hash);
        }
        Err(Full)
    }

    /// Removes `value`, inserted under `hash`. `false` where it is not there.
    pub fn remove(&mut self, hash: u64, value: u32) -> bool {
        let home = self.home(hash);
        let mut i = home;
        for probes in 0..MAX_PROBES {
            let mut mask = self.buckets[i].matches(tag(hash));
            while mask != 0 {
                let way = mask.trailing_zeros() as usize;
                if self.buckets[i].values[way] == value {
                    self.buckets[i].head[way] = 0;
                    let mut passed = home;
                    for _ in 0..probes {
                        self.buckets[passed].pass(-1);
                        passed = self.next(passed, hash);
                    }
                    return true;
                }
                mask &= mask - 1;
            }
            if self.buckets[i].passed() == 0 {
                return false;
            }
            i = self.next(i, hash);
        }
        false
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        self.view().home(hash)
    }

    /// The bucket after `i` on the way of `hash`. The step is below the number of buckets and that is prime, so the way
    /// leads through all of them.
    #[inline]
    fn next(&self, i: usize, hash: u64) -> usize {
        let n = self.buckets.len();
        let step = 1 + (((hash >> 8 & 0xffff) * (n as u64 - 1)) >> 16) as usize;
        let next = i + step;
        if next < n { next } else { next - n }
    }
}

/// An index as the first passes of a lookup see it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    buckets: &'a [Bucket],
}

impl View<'_> {
    /// Brings the bucket of `hash` closer.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.home(hash)) {
            prefetch(bucket);
        }
    }

    /// The first value whose tag agrees in the first bucket: the entry to prefetch.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        let bucket = self.buckets.get(self.home(hash))?;
        let mask = bucket.matches(tag(hash));
        if mask == 0 {
            return None;
        }
        bucket.values.get(mask.trailing_zeros() as usize).copied()
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below the number of buckets")]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }
}

/// The smallest prime that is not below `n`; 1 counts as one here.
fn next_prime(n: usize) -> usize {
    let divided = |n: usize| (2..).take_while(|d| d * d <= n).any(|d| n.is_multiple_of(d));
    (n..).find(|&n| !divided(n)).unwrap_or(n)
}

/// The tag of a hash: its low byte, which [`Index::home`] hardly looks at; never 0.
#[inline]
const fn tag(hash: u64) -> u8 {
    let t = (hash & 0xff) as u8;
    if t == 0 { 1 } else { t }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Insert(u64),
        Remove(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        // Few distinct upper bits, so that buckets overflow.
        let hash = (0u64..6, 0u64..40).prop_map(|(hi, lo)| hi << 61 | lo);
        proptest::collection::vec(prop_oneof![hash.clone().prop_map(Op::Insert), hash.prop_map(Op::Remove)], 0..400)
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_and_leaves_no_trace(ops in ops()) {
            let mut index = Index::new(96);
            let mut model: BTreeMap<u64, u32> = BTreeMap::new();
            for (n, op) in (0u32..).zip(ops) {
                match op {
                    Op::Insert(h) if !model.contains_key(&h) => {
                        if index.insert(h, n).is_ok() {
                            model.insert(h, n);
                        }
                    }
                    Op::Remove(h) => {
                        if let Some(v) = model.remove(&h) {
                            prop_assert!(index.remove(h, v));
                        } else {
                            prop_assert!(!index.remove(h, u32::MAX));
                        }
                    }
                    Op::Insert(_) => {}
                }
                for (&h, &v) in &model {
                    prop_assert_eq!(index.find(h, |x| x == v), Some(v));
                }
            }
            for (h, v) in model {
                prop_assert!(index.remove(h, v));
            }
            prop_assert!(index.buckets.iter().all(|b| b.head == [0; WAYS + 4]));
        }
    }

    #[test]
    fn small_ones_take_their_capacity_whatever_the_hashes() {
        for capacity in (1..200).chain([500, 1000, 4096, 65_536]) {
            for seed in 0..if capacity < 100 { 50 } else { 2 } {
                let mut index = Index::new(capacity);
                let hash = ahash::RandomState::with_seeds(seed, 2, 3, 4);
                for n in 0..capacity as u32 {
                    assert_eq!(index.insert(hash.hash_one(n), n), Ok(()), "value {n} of {capacity}");
                }
            }
        }
    }

    #[test]
    fn takes_its_capacity_of_random_hashes() {
        let mut index = Index::new(100_000);
        let seed = ahash::RandomState::with_seeds(1, 2, 3, 4);
        for n in 0..100_000u32 {
            assert_eq!(index.insert(seed.hash_one(n), n), Ok(()), "value {n}");
        }
    }
}
