//! Entries of a connection table: what every packet needs apart from the rest, or all in one piece.

use dataplane::conntrack::tuple::Key4;
use dataplane::cpu::{prefer_huge_pages, prefetch};

/// Words of what every packet needs beside the tuples.
const HOT: usize = 12;
/// Words of what trackers know.
const COLD: usize = 6;

/// The entries of a table.
pub trait Entries {
    /// Its name in the table that is printed.
    const NAME: &'static str;
    /// Room for so many.
    fn new(count: usize) -> Self;
    /// Adds one.
    fn push(&mut self, keys: [Key4; 2]);
    /// Brings what a packet needs of one closer. `tcp`: with what its tracker knows.
    fn prefetch(&self, slot: usize, tcp: bool);
    /// Whether the tuple that `value` names is this one.
    fn has_key(&self, value: u32, key: &Key4) -> bool;
    /// What a packet does to a connection: reads the verdict, counts, sets the deadline. `tcp`: and moves a window.
    fn touch(&mut self, value: u32, tcp: bool) -> u64;
    /// Bytes of one.
    const BYTES: usize;
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Hot {
    keys: [Key4; 2],
    words: [u64; HOT],
}

/// 128 bytes for every packet, and 48 for the trackers elsewhere: as the dataplane has it.
pub struct Split {
    hot: Vec<Hot>,
    cold: Vec<[u64; COLD]>,
}

/// Deadline, counters of one direction, and the cached verdict behind them: words on both lines.
#[inline(always)]
fn count(words: &mut [u64; HOT], direction: usize) -> u64 {
    words[0] += 1 << 32;
    words[4 + direction] += 46;
    words[10] += 1 << (32 * direction);
    words[6 + direction * 2]
}

/// Sequence numbers of both ends.
#[inline(always)]
fn advance(words: &mut [u64; COLD]) -> u64 {
    words[0] += 6;
    words[5] += 6;
    words[2]
}

impl Entries for Split {
    const NAME: &'static str = "split";
    const BYTES: usize = size_of::<Hot>() + COLD * 8;

    fn new(count: usize) -> Self {
        let (mut hot, mut cold) = (Vec::with_capacity(count), Vec::with_capacity(count));
        prefer_huge_pages(hot.spare_capacity_mut());
        prefer_huge_pages(cold.spare_capacity_mut());
        Self { hot, cold }
    }

    fn push(&mut self, keys: [Key4; 2]) {
        self.hot.push(Hot { keys, words: [0; HOT] });
        self.cold.push([0; COLD]);
    }

    #[inline(always)]
    fn prefetch(&self, slot: usize, tcp: bool) {
        if let Some(hot) = self.hot.get(slot) {
            prefetch(hot);
            prefetch(&hot.words[6]);
        }
        if tcp && let Some(cold) = self.cold.get(slot) {
            // Half of them lie on two lines.
            prefetch(cold);
            prefetch(&cold[COLD - 1]);
        }
    }

    #[inline(always)]
    fn has_key(&self, value: u32, key: &Key4) -> bool {
        self.hot.get((value >> 1) as usize).is_some_and(|e| e.keys[(value & 1) as usize] == *key)
    }

    #[inline(always)]
    fn touch(&mut self, value: u32, tcp: bool) -> u64 {
        let slot = (value >> 1) as usize;
        let mut seen = self.hot.get_mut(slot).map_or(0, |e| count(&mut e.words, (value & 1) as usize));
        if tcp && let Some(cold) = self.cold.get_mut(slot) {
            seen += advance(cold);
        }
        seen
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Piece {
    keys: [Key4; 2],
    words: [u64; HOT],
    cold: [u64; COLD],
}

/// 176 bytes in one piece.
pub struct Whole(Vec<Piece>);

impl Entries for Whole {
    const NAME: &'static str = "whole";
    const BYTES: usize = size_of::<Piece>();

    fn new(count: usize) -> Self {
        let mut pieces = Vec::with_capacity(count);
        prefer_huge_pages(pieces.spare_capacity_mut());
        Self(pieces)
    }

    fn push(&mut self, keys: [Key4; 2]) {
        self.0.push(Piece { keys, words: [0; HOT], cold: [0; COLD] });
    }

    #[inline(always)]
    fn prefetch(&self, slot: usize, tcp: bool) {
        if let Some(piece) = self.0.get(slot) {
            // It begins anywhere on a line: what a packet needs is on two or three of them.
            prefetch(piece);
            prefetch(&piece.words[4]);
            prefetch(&piece.words[HOT - 1]);
            if tcp {
                prefetch(&piece.cold[COLD - 1]);
            }
        }
    }

    #[inline(always)]
    fn has_key(&self, value: u32, key: &Key4) -> bool {
        self.0.get((value >> 1) as usize).is_some_and(|e| e.keys[(value & 1) as usize] == *key)
    }

    #[inline(always)]
    fn touch(&mut self, value: u32, tcp: bool) -> u64 {
        self.0.get_mut((value >> 1) as usize).map_or(0, |e| {
            let seen = count(&mut e.words, (value & 1) as usize);
            if tcp { seen + advance(&mut e.cold) } else { seen }
        })
    }
}
