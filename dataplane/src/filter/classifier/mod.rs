//! Finds the rules that may match a packet, in their order, without asking each.
//!
//! A [`Classifier`] is made of a list of [`Matcher`]s and knows them by index. Per IP version it has a tree over what rules
//! look at: zones, class, protocol, addresses, ports, interfaces. A lookup goes down to a few *leaves*, short sorted lists
//! of rules, and merges them. A leaf's entry holds a box around what its rule matches; only rules whose box the packet is
//! in are proposed, and whoever asks confirms each with the rule's own matcher. So the tree may propose too much, never
//! too little, and the first match stays the first, whatever the tree looks like. One thing only is left out: what comes
//! behind a rule that certainly matches and ends the search.
//!
//! *Life-cycle*: made with the policy, on the control thread, and freed with it. *Threads*: immutable, read by all workers.
//! *Limits*: a lookup goes down at most [`WIDTH`] ways, each of at most 24 nodes; entries and nodes are bounded by the
//! number of rules (`build.rs`). Rules that nothing in the tree tells apart stay together in a leaf, which is walked.
//! *Sources*: Gupta and McKeown, "Classifying packets with hierarchical intelligent cuttings"; Vamanan and others,
//! "EffiCuts" (cuts of equal density, trees of their own for rules of other sizes); `docs/adr/0004-rule-classifier.md`.

use std::net::IpAddr;

use arrayvec::ArrayVec;

mod build;
mod shape;
#[cfg(test)]
mod tests;

use self::shape::{Address, DIMS, category};
use super::matcher::{Matcher, Query};
use crate::conntrack::tuple::Tuple;

/// Most leaves that a lookup merges.
const WIDTH: usize = 8;
/// Most children of a node.
const FANOUT: usize = 16;
/// In an entry: any zone or protocol, or several.
const ANY: u8 = u8::MAX;
/// In an entry's rule: the leaf's last.
const LAST: u32 = 1 << 31;

/// The rules that may match a packet.
#[derive(Debug, Default)]
pub struct Classifier {
    v4: Tree<u32>,
    v6: Tree<u128>,
    /// How many rules there are.
    count: u32,
}

impl Classifier {
    /// Of a list of rules, at most [`MAX_RULES`](crate::api::policy::MAX_RULES), each with whether the search always ends with it when its matcher matches:
    /// later rules are not proposed to packets that it certainly matches.
    pub fn new<'a>(rules: impl Iterator<Item = (&'a Matcher, bool)> + Clone) -> Self {
        let count = u32::try_from(rules.clone().count()).unwrap_or(LAST).min(LAST - 1);
        let rules = (0..count).zip(rules);
        Self { v4: build::tree(rules.clone()), v6: build::tree(rules), count }
    }

    /// The first rule that `matches` says matches. It is asked about rules that may, in ascending order, and at least
    /// about all that do.
    #[inline]
    pub fn find(&self, q: &Query<'_>, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let matches = |rule: u32| matches(rule as usize);
        match (q.tuple.src, q.tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.v4.find(&Key::new(src.to_bits(), dst.to_bits(), q), matches),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.v6.find(&Key::new(src.to_bits(), dst.to_bits(), q), matches),
            _ => self.all(matches), // no packet is so
        }
        .map(|rule| rule as usize)
    }

    #[cold]
    fn all(&self, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        (0..self.count).find(|&rule| matches(rule))
    }

    /// What it takes, bytes.
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }
}

/// What a packet shows to the tree.
struct Key<A> {
    /// By dimension of `shape`.
    values: [A; DIMS],
    sport: u16,
    dport: u16,
    /// By category of `shape`.
    categories: [u8; category::COUNT],
}

impl<A: Address> Key<A> {
    #[inline]
    fn new(src: A, dst: A, q: &Query<'_>) -> Self {
        let &Tuple { sport, dport, proto, .. } = q.tuple;
        let interface = |i: Option<u16>| A::from(i.map_or(0, shape::interface));
        let values = [
            src,
            dst,
            A::from(sport.into()),
            A::from(dport.into()),
            interface(q.interface_in),
            interface(q.interface_out),
        ];
        let to = q.to.map_or(category::NOWHERE, category::zone);
        Self { values, sport, dport, categories: [category::zone(q.from), to, q.state as u8, proto] }
    }
}

/// A rule in a leaf: a box around what it matches there.
#[derive(Debug)]
struct Entry<A> {
    source: (A, A),
    destination: (A, A),
    sport: (u16, u16),
    dport: (u16, u16),
    /// The rule's index and [`LAST`].
    rule: u32,
    /// A bit for each state.
    states: u8,
    from: u8,
    to: u8,
    protocol: u8,
}

impl<A: Address> Entry<A> {
    /// Whether the packet is in the box; without a branch, as nobody could foretell it.
    #[inline]
    fn has(&self, k: &Key<A>) -> bool {
        let [src, dst, ..] = k.values;
        let [from, to, state, protocol] = k.categories;
        (self.source.0 <= src)
            & (src <= self.source.1)
            & (self.destination.0 <= dst)
            & (dst <= self.destination.1)
            & (self.sport.0 <= k.sport)
            & (k.sport <= self.sport.1)
            & (self.dport.0 <= k.dport)
            & (k.dport <= self.dport.1)
            & (self.states >> state & 1 == 1)
            & (self.from == ANY || self.from == from)
            & (self.to == ANY || self.to == to)
            & (self.protocol == ANY || self.protocol == protocol)
    }
}

/// Where a way goes on: a kind and an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ref(u32);

/// What a [`Ref`] means.
enum Kind {
    /// No rule.
    Nothing,
    /// From this entry to that which is the last.
    Leaf(usize),
    Switch(usize),
    Fork(usize),
    /// In this dimension.
    Cut(usize, usize),
}

impl Ref {
    const NOTHING: Self = Self(0);
    const LEAF: u32 = 1;
    const SWITCH: u32 = 2;
    const FORK: u32 = 3;
    /// And the dimension.
    const CUT: u32 = 8;

    /// `None` where the index is too large.
    fn new(kind: u32, index: usize) -> Option<Self> {
        let index = u32::try_from(index).ok().filter(|&i| i < 1 << 28)?;
        Some(Self(index << 4 | kind))
    }

    #[inline]
    fn kind(self) -> Kind {
        let index = (self.0 >> 4) as usize;
        match self.0 & 0xf {
            Self::LEAF => Kind::Leaf(index),
            Self::SWITCH => Kind::Switch(index),
            Self::FORK => Kind::Fork(index),
            kind if kind >= Self::CUT => Kind::Cut((kind - Self::CUT) as usize, index),
            _ => Kind::Nothing,
        }
    }
}

/// Cuts a dimension into up to [`FANOUT`] intervals. For IPv4 it is two cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
struct Cut<A> {
    /// The last value of each interval, ascending; the greatest of all from the last interval on.
    ends: [A; FANOUT],
    children: [Ref; FANOUT],
}

impl<A: Address> Cut<A> {
    #[inline]
    fn child(&self, v: A) -> Ref {
        let i: u32 = self.ends.iter().map(|&end| u32::from(end < v)).sum();
        self.children.get(i as usize).copied().unwrap_or(Ref::NOTHING)
    }
}

/// Tells values of a category apart.
#[derive(Debug)]
struct Switch {
    category: usize,
    /// Where in [`Tree::table`] the child of value 0 is.
    first: usize,
}

/// The rules of one IP version.
#[derive(Debug, Default)]
struct Tree<A> {
    root: Ref,
    cuts: Vec<Cut<A>>,
    switches: Vec<Switch>,
    table: Vec<Ref>,
    /// Both are gone down.
    forks: Vec<[Ref; 2]>,
    entries: Vec<Entry<A>>,
}

impl<A: Address> Tree<A> {
    #[inline]
    fn find(&self, k: &Key<A>, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let root = match self.single(k) {
            Ok(leaf) => return self.in_leaf(k, leaf?, matches),
            Err(fork) => fork,
        };
        let mut leaves = self.leaves(k, root);
        if let [first] = leaves[..] {
            return self.in_leaf(k, first, matches);
        }
        loop {
            // The first rule of any leaf that has the packet. What comes after the first of another leaf waits there.
            let mut best = None;
            let mut before = u32::MAX;
            for (i, at) in leaves.iter_mut().enumerate() {
                while let Some(e) = self.entries.get(*at) {
                    let rule = e.rule & !LAST;
                    if rule >= before {
                        break;
                    }
                    if e.has(k) {
                        (best, before) = (Some(i), rule);
                        break;
                    }
                    *at = next(e, *at);
                }
            }
            let at = leaves.get_mut(best?)?;
            if matches(before) {
                return Some(before);
            }
            *at = next(self.entries.get(*at)?, *at);
        }
    }

    #[inline]
    fn in_leaf(&self, k: &Key<A>, mut at: usize, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        loop {
            let e = self.entries.get(at)?;
            let rule = e.rule & !LAST;
            if e.has(k) && matches(rule) {
                return Some(rule);
            }
            at = next(e, at);
        }
    }

    /// The first entry of the only leaf that the packet belongs to, if any.
    ///
    /// # Errors
    /// Its way forks: there.
    #[inline]
    fn single(&self, k: &Key<A>) -> Result<Option<usize>, Ref> {
        let mut here = self.root;
        loop {
            let down = match here.kind() {
                Kind::Cut(dimension, at) => self.cut(k, dimension, at),
                Kind::Switch(at) => self.switch(k, at),
                Kind::Fork(_) => return Err(here),
                Kind::Leaf(at) => return Ok(Some(at)),
                Kind::Nothing => None,
            };
            let Some(down) = down else { return Ok(None) };
            here = down;
        }
    }

    #[inline]
    fn cut(&self, k: &Key<A>, dimension: usize, at: usize) -> Option<Ref> {
        let v = k.values.get(dimension).copied().unwrap_or(A::MIN);
        self.cuts.get(at).map(|cut| cut.child(v))
    }

    #[inline]
    fn switch(&self, k: &Key<A>, at: usize) -> Option<Ref> {
        let s = self.switches.get(at)?;
        let value = k.categories.get(s.category).copied().unwrap_or(0);
        self.table.get(s.first + usize::from(value)).copied()
    }

    /// The first entry of each leaf that the packet belongs to, behind `root`.
    #[inline]
    fn leaves(&self, k: &Key<A>, root: Ref) -> ArrayVec<usize, WIDTH> {
        let mut leaves = ArrayVec::new();
        // Invariant: `build` grants the tree as many leaves, and each way ends in one at most.
        let mut ways: ArrayVec<Ref, WIDTH> = ArrayVec::new();
        ways.push(root);
        // All ways go down together, so that one's memory is fetched while another's is looked at.
        while !ways.is_empty() {
            let mut i = 0;
            while let Some(&here) = ways.get(i) {
                let down = match here.kind() {
                    Kind::Cut(dimension, at) => self.cut(k, dimension, at),
                    Kind::Switch(at) => self.switch(k, at),
                    Kind::Fork(at) => self.forks.get(at).map(|&[one, other]| {
                        let fits = ways.try_push(other);
                        debug_assert!(fits.is_ok(), "more ways than granted");
                        one
                    }),
                    Kind::Leaf(at) => {
                        let fits = leaves.try_push(at);
                        debug_assert!(fits.is_ok(), "more leaves than granted");
                        None
                    }
                    Kind::Nothing => None,
                };
                match (down, ways.get_mut(i)) {
                    (Some(down), Some(way)) => {
                        *way = down;
                        i += 1;
                    }
                    _ => drop(ways.swap_pop(i)),
                }
            }
        }
        leaves
    }

    fn memory(&self) -> usize {
        size_of_val(&self.cuts[..])
            + size_of_val(&self.switches[..])
            + size_of_val(&self.table[..])
            + size_of_val(&self.forks[..])
            + size_of_val(&self.entries[..])
    }
}

/// Where the entry after `e` is; nowhere behind a leaf's last.
#[inline]
fn next<A>(e: &Entry<A>, at: usize) -> usize {
    if e.rule & LAST == 0 { at + 1 } else { usize::MAX }
}
