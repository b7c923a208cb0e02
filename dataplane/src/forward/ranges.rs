//! IPv4 addresses in disjoint ranges: what holds for an address is found by its upper half and, where that is not enough, a
//! few halvings. It costs a read or two whatever the number of prefixes, where a trie takes one per level.
//!
//! *Life-cycle*: made with the forwarding table, on the control thread, and freed with it. *Threads*: immutable once built.
//! *Limits*: a block of 65,536 addresses is searched by halves; two ranges per prefix at most, and 256 KiB beside them.

#[expect(clippy::disallowed_types, reason = "control makes ranges, of as many values as routes have")]
use std::collections::HashMap;
use std::hash::Hash;

/// Addresses of one upper half.
const BLOCK: u32 = 16;

/// What holds for each address.
#[derive(Debug)]
pub struct Ranges<T> {
    /// The first address of each range, ascending; that of the first is 0.
    firsts: Box<[u32]>,
    /// By range: which value.
    which: Box<[u32]>,
    values: Box<[T]>,
    /// By upper half, and one more: the range that the first address of that block is in.
    blocks: Box<[u32]>,
}

impl<T: Copy + Eq + Hash> Ranges<T> {
    /// Of prefixes, each by its first and last address: of those that have an address the smallest counts, and of equal
    /// ones the last. What is in none has `none`.
    pub fn new(none: T, prefixes: impl Iterator<Item = (u32, u32, T)>) -> Self {
        let mut prefixes: Vec<_> = prefixes.collect();
        prefixes.sort_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
        let mut made = Made { ranges: vec![(0, none)] };
        // Those that the address in hand is in, the smallest last.
        let mut open: Vec<(u32, T)> = Vec::new();
        let around = |open: &[(u32, T)]| open.last().map_or(none, |&(_, value)| value);
        for (first, last, value) in prefixes {
            while let Some((end, _)) = open.pop_if(|&mut (end, _)| end < first) {
                made.go_on(end + 1, around(&open));
            }
            open.push((last, value));
            made.go_on(first, value);
        }
        while let Some((end, _)) = open.pop() {
            if let Some(next) = end.checked_add(1) {
                made.go_on(next, around(&open));
            }
        }
        made.finish()
    }
}

impl<T> Ranges<T> {
    /// What holds for `address`.
    #[inline]
    pub fn of(&self, address: u32) -> Option<&T> {
        let block = (address >> BLOCK) as usize;
        let (first, last) = (*self.blocks.get(block)?, *self.blocks.get(block + 1)?);
        let mut range = first as usize;
        if first != last {
            // The block's first address is in range `first`; of those behind, up to that of the next block's, some begin later.
            let others = self.firsts.get(range + 1..=last as usize)?;
            range += others.partition_point(|&first| first <= address);
        }
        self.values.get(*self.which.get(range)? as usize)
    }
}

/// Ranges in the making, each with its first address.
struct Made<T> {
    ranges: Vec<(u32, T)>,
}

impl<T: Copy + Eq + Hash> Made<T> {
    /// From `first` on `value` holds.
    fn go_on(&mut self, first: u32, value: T) {
        self.ranges.pop_if(|&mut (at, _)| at == first);
        if self.ranges.last().is_none_or(|&(_, before)| before != value) {
            self.ranges.push((first, value));
        }
    }

    #[expect(clippy::disallowed_types, reason = "as above")]
    fn finish(self) -> Ranges<T> {
        // Invariant: there are at most 2^32 ranges, and as many values.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let firsts: Box<[u32]> = self.ranges.iter().map(|&(first, _)| first).collect();
        let mut values = Vec::new();
        let mut numbers: HashMap<T, u32> = HashMap::new();
        let mut which = Vec::with_capacity(firsts.len());
        for (_, value) in self.ranges {
            which.push(*numbers.entry(value).or_insert_with(|| {
                values.push(value);
                number(values.len() - 1)
            }));
        }
        let mut range = 0;
        let mut at = |address: u32| {
            while firsts.get(range + 1).is_some_and(|&first| first <= address) {
                range += 1;
            }
            number(range)
        };
        let mut blocks: Vec<u32> = (0..1 << (32 - BLOCK)).map(|block: u32| at(block << BLOCK)).collect();
        blocks.push(at(u32::MAX));
        Ranges { firsts, which: which.into(), values: values.into(), blocks: blocks.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes() -> impl Strategy<Value = Vec<(u32, u32, u8)>> {
        // Few distinct bits at both ends, so that they nest, touch and repeat.
        let one = (0u32..4, 0u32..4, 0u32..4, 0u32..=32, 0u8..4).prop_map(|(high, middle, low, length, value)| {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let first = (high << 30 | middle << 15 | low) & mask;
            (first, first | !mask, value)
        });
        proptest::collection::vec(one, 0..20)
    }

    proptest! {
        #[test]
        fn the_smallest_prefix_with_an_address_counts_and_of_equal_ones_the_last(prefixes in prefixes(), any in any::<u32>()) {
            let ranges = Ranges::new(9, prefixes.iter().copied());
            let edges = prefixes.iter().flat_map(|&(first, last, _)| {
                [first.wrapping_sub(1), first, first | 1 << 16, last, last.wrapping_add(1)]
            });
            for a in edges.chain([0, u32::MAX, any]) {
                let with = prefixes.iter().filter(|&&(first, last, _)| first <= a && a <= last);
                let best = with.rev().min_by_key(|&&(first, last, _)| last - first);
                prop_assert_eq!(ranges.of(a), Some(&best.map_or(9, |&(_, _, value)| value)), "{:x}", a);
            }
            let n = ranges.firsts.len();
            prop_assert!(n <= 2 * prefixes.len() + 1 && ranges.firsts.is_sorted() && ranges.firsts[0] == 0);
            prop_assert!((1..n).all(|i| ranges.which[i] != ranges.which[i - 1]), "neighbours differ");
        }
    }
}
