//! Layouts of the connection table side by side: burst lookups with prefetch, the same keys, hash and passes for all.
//!
//! `cargo bench -p sluice-bench --bench layouts`. Nanoseconds per lookup, the best of `LAYOUTS_ROUNDS` (7) rounds of a quarter of a million
//! lookups, for hits (either tuple, a packet counted) and misses, at three loads of the index. `LAYOUTS_FLOWS=10000000` measures
//! that many flows instead of the usual numbers, and takes 3 GB. docs/adr/0005-connection-table.md has figures.

mod entry;
mod index;

use std::hint::black_box;
use std::time::Instant;

use bench::flow::{Case, Flow};
use dataplane::conntrack::tuple::{Key, Key4};

use self::entry::{Entries, Split, Whole};
use self::index::{Cuckoo, Index, Keys, NONE, Swiss, Tags};

/// Lookups that are made together.
const BURST: usize = 32;
/// Lookups of a round; a multiple of [`BURST`].
const LOOKUPS: usize = 1 << 18;
/// Loads of the indexes, percent.
const LOADS: [usize; 3] = [50, DESIGN, 90];
/// What the dataplane's own is made for.
const DESIGN: usize = 80;

/// Numbers from a seed: xorshift64*.
fn dice(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Which lookups are timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Of UDP packets that belong to a flow.
    Udp,
    /// Of TCP packets that do.
    Tcp,
    /// Of packets that do not.
    Miss,
}

fn keys(i: u32) -> [Key4; 2] {
    let flow = Flow::number(i, Case::Snat);
    [flow.lan, flow.wan].map(|at| Key4::pack(&at.tuple()))
}

/// Keys to look up, in an order of chance.
fn order(flows: u32, what: What, state: &mut u64) -> Vec<Key4> {
    let one = |_| {
        let n = dice(state);
        let i = u32::try_from((n >> 32) % u64::from(flows)).unwrap_or(0);
        let key = keys(i)[(n & 1) as usize];
        // No flow comes from the upper half of all addresses and goes to that of a flow here.
        if what == What::Miss { Key4::new(!key.addresses(), key.ports(), 17, 0) } else { key }
    };
    (0..LOOKUPS).map(one).collect()
}

/// A table of the flows.
struct Table<I, E> {
    index: I,
    entries: E,
    seed: ahash::RandomState,
}

impl<I: Index, E: Entries> Table<I, E> {
    fn new(flows: u32, percent: usize) -> Option<Self> {
        let seed = ahash::RandomState::with_seeds(1, 2, 3, 4);
        let mut index = I::new(flows as usize * 2, percent);
        let mut entries = E::new(flows as usize);
        for i in 0..flows {
            let keys = keys(i);
            for (way, key) in (0..).zip(&keys) {
                if !index.insert(key.hash(&seed), key, i << 1 | way) {
                    return None;
                }
            }
            entries.push(keys);
        }
        Some(Self { index, entries, seed })
    }

    /// A burst, in three passes; how many were found.
    #[inline(never)]
    fn lookup<const TCP: bool>(&mut self, keys: &[Key4; BURST]) -> u64 {
        let (mut hashes, mut hints) = ([0; BURST], [NONE; BURST]);
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = key.hash(&self.seed);
            self.index.prefetch(*hash);
        }
        for ((hint, hash), key) in hints.iter_mut().zip(&hashes).zip(keys) {
            *hint = self.index.candidate(*hash, key);
            if *hint != NONE {
                self.entries.prefetch((*hint >> 1) as usize, TCP);
            }
        }
        let mut found = 0;
        for ((&hint, hash), key) in hints.iter().zip(&hashes).zip(keys) {
            let value = if self.entries.has_key(hint, key) {
                Some(hint)
            } else {
                self.index.find(*hash, key, |value| self.entries.has_key(value, key))
            };
            if let Some(value) = value {
                black_box(self.entries.touch(value, TCP));
                found += 1;
            }
        }
        found
    }

    /// Nanoseconds per lookup, the best of the rounds.
    fn time(&mut self, order: &[Key4], what: What, rounds: u32) -> f64 {
        let mut best = f64::MAX;
        let wanted = if what == What::Miss { 0 } else { order.len() as u64 };
        // One more to warm up.
        for round in 0..=rounds {
            let start = Instant::now();
            let bursts = order.as_chunks().0.iter();
            let found: u64 = match what {
                What::Tcp => bursts.map(|keys| self.lookup::<true>(keys)).sum(),
                _ => bursts.map(|keys| self.lookup::<false>(keys)).sum(),
            };
            let ns = start.elapsed().as_secs_f64() * 1e9 / order.len() as f64;
            assert_eq!(found, wanted, "each flow is found, and nothing else");
            if round > 0 {
                best = best.min(ns);
            }
        }
        best
    }
}

/// All lookups of one layout: a line.
fn layout<I: Index, E: Entries>(flows: u32, percent: usize, rounds: u32) {
    print!("{flows}\t{}\t{}\t{percent}", I::NAME, E::NAME);
    let Some(mut table) = Table::<I, E>::new(flows, percent) else {
        println!("\t-\t-\t-\tit cannot be filled so far");
        return;
    };
    let mut state = 42;
    for what in [What::Udp, What::Tcp, What::Miss] {
        let order = order(flows, what, &mut state);
        print!("\t{:.1}", table.time(&order, what, rounds));
    }
    let index = table.index.bytes() as f64 / f64::from(flows);
    println!("\t{index:.1}\t{:.1}", index + E::BYTES as f64);
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u32>().expect("a number"));
    let rounds = number("LAYOUTS_ROUNDS").unwrap_or(7);
    let sizes = number("LAYOUTS_FLOWS").map_or_else(|| vec![1_000, 65_536, 1_000_000], |n| vec![n]);
    println!("flows\tindex\tentry\tload %\thit UDP ns\thit TCP ns\tmiss ns\tindex B/conn\tall B/conn");
    for flows in sizes {
        for percent in LOADS {
            layout::<Tags, Split>(flows, percent, rounds);
            layout::<Cuckoo, Split>(flows, percent, rounds);
            layout::<Swiss, Split>(flows, percent, rounds);
            layout::<Keys<4>, Split>(flows, percent, rounds);
            layout::<Keys<6>, Split>(flows, percent, rounds);
        }
        layout::<Tags, Whole>(flows, DESIGN, rounds);
    }
}
