//! Indexes from hashes to 32-bit values, laid out in four ways; small, and honest about their own lookups.
//!
//! All are made for a number of values at a load, and can be filled to it. None of the tried ones can remove: a lookup costs the
//! same. *Sources*: the papers and manuals that docs/adr/0005-connection-table.md names.

use dataplane::conntrack::index;
use dataplane::conntrack::tuple::Key4;
use dataplane::cpu::{matching_bytes, prefer_huge_pages, prefetch};

/// No candidate.
pub const NONE: u32 = u32::MAX;

/// Where the value for a key is looked for.
pub trait Index {
    /// Its name in the table that is printed.
    const NAME: &'static str;
    /// Room for `values` values so that they take `percent` of its places.
    fn new(values: usize, percent: usize) -> Self;
    /// Adds a value; `false` where there is no room within its bounds.
    fn insert(&mut self, hash: u64, key: &Key4, value: u32) -> bool;
    /// First pass: where a lookup begins, on its way to the cache.
    fn prefetch(&self, hash: u64);
    /// Second pass: what it probably is.
    fn candidate(&self, hash: u64, key: &Key4) -> u32;
    /// Last pass, where the candidate is not: all that the value may be, until `eq` says which.
    fn find(&self, hash: u64, key: &Key4, eq: impl FnMut(u32) -> bool) -> Option<u32>;
    /// Bytes that it takes.
    fn bytes(&self) -> usize;
}

/// `n` of `T`, on huge pages where they are to be had.
fn zeroed<T: Clone + Default>(n: usize) -> Box<[T]> {
    let mut all = Vec::with_capacity(n);
    prefer_huge_pages(all.spare_capacity_mut());
    all.resize(n, T::default());
    all.into_boxed_slice()
}

/// A number below `n` from the upper bits of a hash.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below `n`")]
fn scale(hash: u64, n: usize) -> usize {
    ((u128::from(hash) * n as u128) >> 64) as usize
}

/// A tag of eight bits that is not 0.
#[inline(always)]
const fn tag8(hash: u64) -> u8 {
    let t = (hash & 0xff) as u8;
    if t == 0 { 1 } else { t }
}

// ---- Ours ----------------------------------------------------------------------------------------------------------------

/// The dataplane's own: twelve one-byte tags and twelve values on a line, overflow to a bucket at a distance.
pub struct Tags(index::Index);

impl Index for Tags {
    const NAME: &'static str = "tags";

    fn new(values: usize, percent: usize) -> Self {
        // It adds room of its own: a quarter.
        Self(index::Index::new(values * 80 / percent))
    }

    fn insert(&mut self, hash: u64, _: &Key4, value: u32) -> bool {
        self.0.insert(hash, value).is_ok()
    }

    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        self.0.prefetch(hash);
    }

    #[inline(always)]
    fn candidate(&self, hash: u64, _: &Key4) -> u32 {
        self.0.candidate(hash).unwrap_or(NONE)
    }

    #[inline(always)]
    fn find(&self, hash: u64, _: &Key4, eq: impl FnMut(u32) -> bool) -> Option<u32> {
        self.0.find(hash, eq)
    }

    fn bytes(&self) -> usize {
        self.0.memory()
    }
}

// ---- Bucketed cuckoo -----------------------------------------------------------------------------------------------------

/// Ways of a cuckoo bucket.
const CUCKOO: usize = 8;
/// Values that one insertion may move.
const MOVES: usize = 10_000;

/// Eight 16-bit tags, the lower bytes before the upper ones so that both are compared at once, and eight values.
#[derive(Clone, Default)]
#[repr(C, align(64))]
struct Nest {
    tags: [u8; 2 * CUCKOO],
    values: [u32; CUCKOO],
}

impl Nest {
    #[inline(always)]
    fn matches(&self, tag: u16) -> u32 {
        let [lower, upper] = tag.to_le_bytes();
        matching_bytes(self.tags, lower) & matching_bytes(self.tags, upper) >> CUCKOO & 0xff
    }

    fn tag(&self, way: usize) -> u16 {
        u16::from_le_bytes([self.tags[way], self.tags[way + CUCKOO]])
    }

    fn set(&mut self, way: usize, tag: u16, value: u32) {
        [self.tags[way], self.tags[way + CUCKOO]] = tag.to_le_bytes();
        self.values[way] = value;
    }
}

/// Every value is in one of two buckets; the second follows from the first and the tag, so that values can be moved.
pub struct Cuckoo(Box<[Nest]>);

impl Cuckoo {
    /// A tag of 16 bits that is not 0.
    const fn tag(hash: u64) -> u16 {
        let t = (hash & 0xffff) as u16;
        if t == 0 { 1 } else { t }
    }

    /// The other bucket of what has `tag` and may be in `i`: an involution.
    #[inline(always)]
    fn other(&self, i: usize, tag: u16) -> usize {
        let n = self.0.len();
        let sum = scale(u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15), n);
        // Without a branch: it would be taken every other time.
        sum.wrapping_sub(i).wrapping_add(n & 0_usize.wrapping_sub(usize::from(sum < i)))
    }

    #[inline(always)]
    fn homes(&self, hash: u64) -> [usize; 2] {
        let first = scale(hash, self.0.len());
        [first, self.other(first, Self::tag(hash))]
    }

    /// Both buckets, and the ways whose tags agree: those of the second above those of the first. Which one it is nobody can
    /// predict, so no branch asks.
    #[inline(always)]
    fn matches(&self, hash: u64) -> ([usize; 2], u32) {
        let (homes, tag) = (self.homes(hash), Self::tag(hash));
        (homes, self.0[homes[0]].matches(tag) | self.0[homes[1]].matches(tag) << CUCKOO)
    }

    /// The value of the first of these ways.
    #[inline(always)]
    fn value(&self, homes: [usize; 2], hits: u32) -> u32 {
        let way = hits.trailing_zeros() as usize;
        self.0[homes[(way / CUCKOO) & 1]].values[way % CUCKOO]
    }
}

impl Index for Cuckoo {
    const NAME: &'static str = "cuckoo";

    fn new(values: usize, percent: usize) -> Self {
        Self(zeroed((values * 100).div_ceil(percent * CUCKOO)))
    }

    fn insert(&mut self, hash: u64, _: &Key4, value: u32) -> bool {
        let (mut tag, mut value) = (Self::tag(hash), value);
        let homes = self.homes(hash);
        for i in homes {
            let free = self.0[i].matches(0);
            if free != 0 {
                self.0[i].set(free.trailing_zeros() as usize, tag, value);
                return true;
            }
        }
        // A walk at random: one goes, and whoever is thrown out looks in its other bucket.
        let (mut i, mut state) = (homes[1], hash | 1);
        for _ in 0..MOVES {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let way = (state >> 61) as usize;
            let (old_tag, old) = (self.0[i].tag(way), self.0[i].values[way]);
            self.0[i].set(way, tag, value);
            (tag, value) = (old_tag, old);
            i = self.other(i, tag);
            let free = self.0[i].matches(0);
            if free != 0 {
                self.0[i].set(free.trailing_zeros() as usize, tag, value);
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        for i in self.homes(hash) {
            prefetch(&self.0[i]);
        }
    }

    #[inline(always)]
    fn candidate(&self, hash: u64, _: &Key4) -> u32 {
        let (homes, hits) = self.matches(hash);
        if hits == 0 { NONE } else { self.value(homes, hits) }
    }

    #[inline(always)]
    fn find(&self, hash: u64, _: &Key4, mut eq: impl FnMut(u32) -> bool) -> Option<u32> {
        let (homes, mut hits) = self.matches(hash);
        while hits != 0 {
            let value = self.value(homes, hits);
            if eq(value) {
                return Some(value);
            }
            hits &= hits - 1;
        }
        None
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

// ---- Swiss-style -----------------------------------------------------------------------------------------------------------

/// Places of a group.
const GROUP: usize = 16;

/// Sixteen values: a line.
#[derive(Clone, Default)]
#[repr(C, align(64))]
struct Slots([u32; GROUP]);

/// Sixteen tags.
#[derive(Clone, Default)]
#[repr(C, align(16))]
struct Control([u8; GROUP]);

/// Groups of control bytes apart from the slots; a full group overflows into the next one.
pub struct Swiss {
    control: Box<[Control]>,
    slots: Box<[Slots]>,
}

impl Swiss {
    #[inline(always)]
    const fn next(&self, i: usize) -> usize {
        if i + 1 == self.control.len() { 0 } else { i + 1 }
    }
}

impl Index for Swiss {
    const NAME: &'static str = "swiss";

    fn new(values: usize, percent: usize) -> Self {
        let n = (values * 100).div_ceil(percent * GROUP);
        Self { control: zeroed(n), slots: zeroed(n) }
    }

    fn insert(&mut self, hash: u64, _: &Key4, value: u32) -> bool {
        let mut i = scale(hash, self.control.len());
        for _ in 0..self.control.len() {
            let free = matching_bytes(self.control[i].0, 0);
            if free != 0 {
                let way = free.trailing_zeros() as usize;
                self.control[i].0[way] = tag8(hash);
                self.slots[i].0[way] = value;
                return true;
            }
            i = self.next(i);
        }
        false
    }

    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        let i = scale(hash, self.control.len());
        // Both at once: a pass of its own for the slots costs more than a line in vain.
        prefetch(&self.control[i]);
        prefetch(&self.slots[i]);
    }

    #[inline(always)]
    fn candidate(&self, hash: u64, _: &Key4) -> u32 {
        let i = scale(hash, self.control.len());
        let hits = matching_bytes(self.control[i].0, tag8(hash));
        if hits == 0 { NONE } else { self.slots[i].0[hits.trailing_zeros() as usize & (GROUP - 1)] }
    }

    #[inline(always)]
    fn find(&self, hash: u64, _: &Key4, mut eq: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut i = scale(hash, self.control.len());
        loop {
            let control = self.control[i].0;
            let mut hits = matching_bytes(control, tag8(hash));
            while hits != 0 {
                let value = self.slots[i].0[hits.trailing_zeros() as usize & (GROUP - 1)];
                if eq(value) {
                    return Some(value);
                }
                hits &= hits - 1;
            }
            // An empty place ends the search; at a load below 100 % there is one.
            if matching_bytes(control, 0) != 0 {
                return None;
            }
            i = self.next(i);
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.control) + size_of_val(&*self.slots)
    }
}

// ---- Keys in the bucket ------------------------------------------------------------------------------------------------------

/// Keys with their values, on two lines, and how many values found the bucket full. Six fit; four are what others have.
#[derive(Clone)]
#[repr(C, align(64))]
struct Page<const N: usize> {
    keys: [Key4; N],
    /// Value + 1; 0 where the place is empty.
    values: [u32; N],
    passed: u32,
}

impl<const N: usize> Default for Page<N> {
    fn default() -> Self {
        Self { keys: [Key4::default(); N], values: [0; N], passed: 0 }
    }
}

/// Keys stand in the bucket, so that the entry is not needed to tell whose it is. A full bucket overflows into the next one.
pub struct Keys<const N: usize>(Box<[Page<N>]>);

impl<const N: usize> Keys<N> {
    #[inline(always)]
    const fn next(&self, i: usize) -> usize {
        if i + 1 == self.0.len() { 0 } else { i + 1 }
    }

    #[inline(always)]
    fn in_page(&self, i: usize, key: &Key4) -> u32 {
        let page = &self.0[i];
        // Without a branch for each place: which one it is nobody can predict. Keys are there once at most.
        let one = |k: &Key4, value: u32| value & 0_u32.wrapping_sub(u32::from(k == key));
        let value = page.keys.iter().zip(page.values).fold(0, |found, (k, value)| found | one(k, value));
        value.wrapping_sub(1)
    }
}

impl<const N: usize> Index for Keys<N> {
    const NAME: &'static str = if N == 4 { "keys4" } else { "keys6" };

    fn new(values: usize, percent: usize) -> Self {
        Self(zeroed((values * 100).div_ceil(percent * N)))
    }

    fn insert(&mut self, hash: u64, key: &Key4, value: u32) -> bool {
        let mut i = scale(hash, self.0.len());
        for _ in 0..self.0.len() {
            let next = self.next(i);
            let page = &mut self.0[i];
            if let Some(way) = page.values.iter().position(|&v| v == 0) {
                (page.keys[way], page.values[way]) = (*key, value + 1);
                return true;
            }
            page.passed += 1;
            i = next;
        }
        false
    }

    #[inline(always)]
    fn prefetch(&self, hash: u64) {
        let page = &self.0[scale(hash, self.0.len())];
        prefetch(page);
        prefetch(&page.values);
    }

    #[inline(always)]
    fn candidate(&self, hash: u64, key: &Key4) -> u32 {
        self.in_page(scale(hash, self.0.len()), key)
    }

    #[inline(always)]
    fn find(&self, hash: u64, key: &Key4, _: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut i = scale(hash, self.0.len());
        loop {
            let value = self.in_page(i, key);
            if value != NONE {
                return Some(value);
            }
            if self.0[i].passed == 0 {
                return None;
            }
            i = self.next(i);
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}
