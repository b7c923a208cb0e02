//! What is known of destinations that use most of an address's ports: which of these are out of the question.
//!
//! Ports are leased by the tuples in the table, so whether one is free is asked there. Where most are taken, asking at random
//! takes many tries. A *crowd* remembers for one destination which ports have been found taken, or not to come home to this
//! worker, so that none is asked twice: the next that may be free is found in constant time however few there are.
//! A port that is given back is forgotten at once, so a crowd never keeps one from being used.
//!
//! ```text
//!   full    1 1 0 1 …            16 words: a bit for each word of `out` that is all ones
//!   out     ffff…ff  ffff…fb  …  1024 words: a bit for each port
//! ```
//! *Life-cycle*: made when a choice has failed often, in place of the one that was used least lately. *Threads*: one worker.
//! *Limits*: [`CROWDS`] destinations, 8 KiB each, taken at start.

use crate::conntrack::tuple::Tuple;

/// Destinations that are known at a time.
pub const CROWDS: usize = 64;

const WORDS: usize = 1 << 10;
const BITS: usize = u64::BITS as usize;

/// Ports, or identifiers, towards one destination.
#[derive(Debug)]
struct Crowd {
    /// The tuple of the reply, its id 0.
    of: Option<Tuple>,
    /// When it was used last, in uses of any.
    used: u64,
    /// By port: it is out of the question.
    out: Box<[u64; WORDS]>,
    /// By word of `out`: all its ports are.
    full: [u64; WORDS / BITS],
}

/// All of them.
#[derive(Debug)]
pub struct Crowds {
    /// By crowd, the hash of what it is of; looked through first.
    hashes: [u64; CROWDS],
    all: Box<[Crowd]>,
    seed: ahash::RandomState,
    count: usize,
    uses: u64,
}

impl Crowds {
    /// None yet.
    pub fn new(seed: ahash::RandomState) -> Self {
        let crowd = || Crowd { of: None, used: 0, out: Box::new([0; WORDS]), full: [0; WORDS / BITS] };
        Self { hashes: [0; CROWDS], all: (0..CROWDS).map(|_| crowd()).collect(), seed, count: 0, uses: 0 }
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The crowd of `of`, whose id must be 0.
    pub fn find(&mut self, of: &Tuple) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let hash = self.seed.hash_one(of);
        let is = |n: usize| self.hashes[n] == hash && self.all[n].of.as_ref() == Some(of);
        let found = (0..CROWDS).find(|&n| is(n))?;
        self.uses += 1;
        self.all[found].used = self.uses;
        Some(found)
    }

    /// Begins a crowd of `of`, which there is none of, knowing nothing.
    pub fn begin(&mut self, of: Tuple) -> usize {
        let n = (0..CROWDS).min_by_key(|&n| self.all[n].used).unwrap_or(0);
        self.count += usize::from(self.all[n].of.is_none());
        self.uses += 1;
        self.hashes[n] = self.seed.hash_one(of);
        let crowd = &mut self.all[n];
        (crowd.of, crowd.used) = (Some(of), self.uses);
        crowd.out.fill(0);
        crowd.full.fill(0);
        n
    }

    /// The next port of crowd `n` from `start` on, within `low..=high` and round once, that may be free.
    pub fn next(&self, n: usize, start: u16, low: u16, high: u16) -> Option<u16> {
        let crowd = &self.all[n];
        crowd.within(start.max(low), high).or_else(|| crowd.within(low, start.checked_sub(1)?.min(high)))
    }

    /// Port `port` of crowd `n` is out of the question.
    pub fn rule_out(&mut self, n: usize, port: u16) {
        let (word, bit) = place(port);
        let crowd = &mut self.all[n];
        crowd.out[word] |= 1 << bit;
        if crowd.out[word] == u64::MAX {
            crowd.full[word / BITS] |= 1 << (word % BITS);
        }
    }

    /// Port `port` towards `of`, whose id must be 0, may be free again.
    pub fn allow(&mut self, of: &Tuple, port: u16) {
        if let Some(n) = self.find(of) {
            let (word, bit) = place(port);
            let crowd = &mut self.all[n];
            crowd.out[word] &= !(1 << bit);
            crowd.full[word / BITS] &= !(1 << (word % BITS));
        }
    }
}

fn place(port: u16) -> (usize, usize) {
    (usize::from(port) / BITS, usize::from(port) % BITS)
}

/// The bits from `bit` up.
const fn from(bit: usize) -> u64 {
    u64::MAX << bit
}

impl Crowd {
    /// The first port in `low..=high` that may be free.
    fn within(&self, low: u16, high: u16) -> Option<u16> {
        if low > high {
            return None;
        }
        let (word, bit) = place(low);
        let here = !self.out[word] & from(bit);
        let word = if here != 0 { word } else { self.word_from(word + 1)? };
        let free = if here != 0 { here } else { !self.out[word] };
        let port = word * BITS + free.trailing_zeros() as usize;
        u16::try_from(port).ok().filter(|&p| p <= high)
    }

    /// The first word from `word` on that is not full.
    fn word_from(&self, word: usize) -> Option<usize> {
        let (block, bit) = (word / BITS, word % BITS);
        let here = !*self.full.get(block)? & from(bit);
        if here != 0 {
            return Some(block * BITS + here.trailing_zeros() as usize);
        }
        let rest = self.full.iter().enumerate().skip(block + 1);
        rest.map(|(n, &full)| (n, !full))
            .find(|&(_, free)| free != 0)
            .map(|(n, free)| n * BITS + free.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn of(n: u8) -> Tuple {
        let (src, dst) = (Ipv4Addr::new(192, 0, 2, n).into(), Ipv4Addr::new(198, 51, 100, 1).into());
        Tuple { src, dst, proto: 17, sport: 53, dport: 0, ct_zone: 0 }
    }

    fn crowds() -> Crowds {
        Crowds::new(ahash::RandomState::with_seeds(1, 2, 3, 4))
    }

    proptest! {
        #[test]
        fn the_next_port_is_the_first_that_is_not_out(
            out in proptest::collection::vec((any::<u16>(), 0_u16..3000), 0..40), start in any::<u16>(), a in any::<u16>(), b in any::<u16>(),
            back in proptest::collection::vec(any::<u16>(), 0..9),
        ) {
            let (low, high) = (a.min(b), a.max(b));
            let mut c = crowds();
            let n = c.begin(of(1));
            let mut known = BTreeSet::new();
            for (first, more) in out {
                for port in first..=first.saturating_add(more) {
                    c.rule_out(n, port);
                    known.insert(port);
                }
            }
            for port in back {
                c.allow(&of(1), port);
                known.remove(&port);
            }
            let expect = (start.max(low)..=high).chain(low..start.min(high.saturating_add(1)))
                .find(|p| (low..=high).contains(p) && !known.contains(p));
            prop_assert_eq!(c.next(n, start, low, high), expect);
        }
    }

    #[test]
    fn nothing_is_left_where_all_are_out() {
        let mut c = crowds();
        let n = c.begin(of(1));
        for port in 0..=u16::MAX {
            assert_eq!(c.next(n, 0, 0, u16::MAX), Some(port));
            c.rule_out(n, port);
        }
        assert_eq!(c.next(n, 77, 0, u16::MAX), None);
        c.allow(&of(2), 5);
        assert_eq!(c.next(n, 77, 0, u16::MAX), None, "of another destination");
        c.allow(&of(1), 5);
        assert_eq!(c.next(n, 77, 0, u16::MAX), Some(5));
    }

    #[test]
    fn the_one_that_was_used_least_lately_makes_room() {
        let mut c = crowds();
        let first = c.begin(of(0));
        c.rule_out(first, 9);
        for n in 1..=u8::try_from(CROWDS).expect("few") {
            assert!(c.find(&of(0)).is_some());
            c.begin(of(n));
        }
        assert_eq!(c.find(&of(1)), None);
        assert_eq!(c.find(&of(0)), Some(first));
        assert_eq!(c.next(first, 9, 9, 9), None, "it knows what it knew");
    }
}
