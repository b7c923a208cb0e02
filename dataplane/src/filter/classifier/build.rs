//! Builds a tree from rules: from the whole space down, by the division that leaves the fewest rules together.
//!
//! A node's rules are told apart by cuts along a dimension, with as many beginnings and ends of rules in each interval, or
//! by the values of a category. A rule goes along into each child that it touches. Rules that would go into too many are
//! *wide*. A few are taken along; where they are more, the node *forks*: they get a tree beside that of the others, in
//! which they may be narrow in another dimension. Rules behind one that ends every packet of the node's region go nowhere.
//!
//! *Threads*: control. *Limits*: a node makes no more entries than its share of [`ENTRIES_PER_RULE`], forks no more often
//! than its share of [`WIDTH`], and no way is longer than [`DEPTH`]. What would be more is a leaf, however long. So
//! memory and time are bounded by the number of rules, whatever they are.

use super::shape::{self, Address, DIMS, Shape, and, category};
use super::{Cut, Entry, FANOUT, LAST, Ref, Switch, Tree, WIDTH};
use crate::api::policy::MAX_RULES;
use crate::filter::matcher::{Bits, Matcher};

/// Rules that are not worth a node.
const LEAF: usize = 8;
/// Wide rules that a cut takes along into every child; more are worth a way of their own.
const TAKEN_ALONG: usize = 16;
/// A cut must leave at most this part of its rules together, in eighths.
const WORTH: usize = 6;
/// Most nodes on a way.
const DEPTH: usize = 24;
/// Most entries, for each rule.
const ENTRIES_PER_RULE: usize = 16;
/// Most entries beside, so that a small policy of long lists need not care.
const ENTRIES: usize = 1 << 17;
/// So each has a [`Ref`].
const _: () = assert!(MAX_RULES * ENTRIES_PER_RULE + ENTRIES < 1 << 28);
/// What a node counts for, in entries: it is as large.
const NODE: usize = 4;
/// Most times that a rule is looked at, for each rule, and beside.
const WORK_PER_RULE: usize = 256;
const WORK: usize = 1 << 22;
/// Rules whose edges are enough to cut by.
const SAMPLE: usize = 1 << 12;

/// The tree of `rules` for one IP version.
pub fn tree<'a, A: Address>(rules: impl Iterator<Item = (u32, (&'a Matcher, bool))>) -> Tree<A> {
    let shapes: Vec<Shape<'a, A>> = rules.filter_map(|(rule, (m, ends))| Shape::new(rule, m, ends)).collect();
    let empty = Tree {
        root: Ref::NOTHING,
        cuts: Vec::new(),
        switches: Vec::new(),
        table: Vec::new(),
        forks: Vec::new(),
        entries: Vec::new(),
    };
    let all: Vec<usize> = (0..shapes.len()).collect();
    let region = Region {
        spans: shape::space(),
        categories: category::VALUES.map(|n| {
            let mut b = Bits([0; 4]);
            (0..n).for_each(|v| b.0[v / 64] |= 1 << (v % 64));
            b
        }),
    };
    let grant = Grant { entries: shapes.len() * ENTRIES_PER_RULE + ENTRIES, width: WIDTH, depth: DEPTH };
    let work = shapes.len() * WORK_PER_RULE + WORK;
    let mut builder = Builder { shapes, tree: empty, work, pieces: Vec::new() };
    builder.tree.root = builder.node(&all, &region, grant);
    let mut tree = builder.tree;
    tree.cuts.shrink_to_fit();
    tree.table.shrink_to_fit();
    tree.entries.shrink_to_fit();
    tree
}

/// The part of the space that a node is for.
#[derive(Clone)]
struct Region<A> {
    spans: [(A, A); DIMS],
    categories: [Bits; category::COUNT],
}

impl<A: Address> Region<A> {
    fn is_within(&self, shape: &Shape<'_, A>) -> bool {
        shape.spans.iter().zip(self.spans).all(|(span, part)| span.covers(part))
            && shape.categories.iter().zip(self.categories).all(|(&values, part)| and(values, part) == part)
    }
}

/// What a node may use up.
#[derive(Clone, Copy)]
struct Grant {
    /// Entries below it.
    entries: usize,
    /// Leaves that a lookup may reach below it.
    width: usize,
    /// Nodes on a way below it.
    depth: usize,
}

/// A way to tell rules apart.
struct Division<A> {
    by: By<A>,
    children: usize,
    /// Rules that are wide, by their position among the node's.
    wide: Vec<bool>,
    wides: usize,
    /// Narrow rules in each child.
    sizes: Vec<usize>,
}

enum By<A> {
    /// A dimension and the first value of each interval but the first.
    Cuts(u8, Vec<A>),
    /// A category and the sets of values that no rule tells apart.
    Classes(usize, Vec<Bits>),
}

impl<A> Division<A> {
    /// Rules that stay together with one.
    fn score(&self) -> usize {
        self.wides + self.together()
    }

    /// Narrow rules that a packet meets: half of the packets are as the rules are, half are spread over the children.
    fn together(&self) -> usize {
        let sum: usize = self.sizes.iter().sum();
        let squares: usize = self.sizes.iter().map(|s| s * s).sum();
        (squares.checked_div(sum).unwrap_or(0) + sum / self.children) / 2
    }
}

struct Builder<'a, A: Address> {
    shapes: Vec<Shape<'a, A>>,
    tree: Tree<A>,
    work: usize,
    /// Room of `Span::within`.
    pieces: Vec<(A, A)>,
}

impl<A: Address> Builder<'_, A> {
    /// Builds what stands for `rules`, ascending, within `region`.
    fn node(&mut self, rules: &[usize], region: &Region<A>, grant: Grant) -> Ref {
        // What comes after a rule that ends every packet of the region is never asked.
        let covers = |&i: &usize| self.shapes[i].ends && region.is_within(&self.shapes[i]);
        let rules = match rules.iter().position(covers) {
            Some(end) => &rules[..=end],
            None => rules,
        };
        let n = rules.len();
        if n <= LEAF || grant.depth == 0 || self.work < n {
            return self.leaf(rules, region);
        }
        self.work -= n;
        let cuts = (0..).zip(region.spans).filter_map(|(d, _)| self.cuts(rules, region, d)).min_by_key(Division::score);
        let classes = (0..category::COUNT).filter_map(|c| self.classes(rules, region, c));
        let Some(best) = classes.chain(cuts).min_by_key(Division::score) else { return self.leaf(rules, region) };
        let narrow = n - best.wides;
        let apart = narrow > LEAF && best.together() * 8 <= narrow * WORTH;
        if best.wides > TAKEN_ALONG && apart && grant.width > 1 && grant.entries >= n + NODE {
            return self.fork(rules, region, grant, &best.wide);
        }
        if best.score() * 8 > n * WORTH {
            return self.leaf(rules, region);
        }
        self.divide(rules, region, grant, best)
    }

    fn leaf(&mut self, rules: &[usize], region: &Region<A>) -> Ref {
        let start = self.tree.entries.len();
        let Some(leaf) = Ref::new(Ref::LEAF, start) else { return Ref::NOTHING };
        for &i in rules {
            let shape = &self.shapes[i];
            let mut hulls = [(A::MIN, A::MAX); 4];
            for ((hull, span), region) in hulls.iter_mut().zip(&shape.spans).zip(region.spans) {
                span.within(region, &mut self.pieces);
                let (Some(first), Some(last)) = (self.pieces.first(), self.pieces.last()) else { continue };
                *hull = (first.0, last.1);
            }
            let [source, destination, sport, dport] = hulls;
            let [from, to, _, protocol] = shape.only;
            let [states, ..] = shape.categories[category::STATE].0[0].to_le_bytes();
            let ports = |(lo, hi): (A, A)| (lo.port(), hi.port());
            self.tree.entries.push(Entry {
                source,
                destination,
                sport: ports(sport),
                dport: ports(dport),
                rule: shape.rule,
                states,
                from,
                to,
                protocol,
            });
        }
        match self.tree.entries.last_mut() {
            Some(last) if !rules.is_empty() => {
                last.rule |= LAST;
                leaf
            }
            _ => Ref::NOTHING,
        }
    }

    /// Gives wide rules a tree beside that of the others.
    fn fork(&mut self, rules: &[usize], region: &Region<A>, grant: Grant, wide: &[bool]) -> Ref {
        let side =
            |of: bool| -> Vec<usize> { rules.iter().zip(wide).filter(|&(_, &w)| w == of).map(|(&i, _)| i).collect() };
        let (narrow, wide) = (side(false), side(true));
        let width = grant.width / 2;
        let share = |part: &[usize], width| Grant {
            entries: (grant.entries - NODE) * part.len() / rules.len(),
            width,
            depth: grant.depth - 1,
        };
        let ways = [
            self.node(&narrow, region, share(&narrow, width)),
            self.node(&wide, region, share(&wide, grant.width - width)),
        ];
        self.tree.forks.push(ways);
        Ref::new(Ref::FORK, self.tree.forks.len() - 1).unwrap_or(Ref::NOTHING)
    }

    fn divide(&mut self, rules: &[usize], region: &Region<A>, grant: Grant, by: Division<A>) -> Ref {
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); by.children];
        let mut regions: Vec<Region<A>> = vec![region.clone(); by.children];
        let mut own = NODE;
        match &by.by {
            By::Cuts(d, starts) => {
                let d = usize::from(*d);
                for (i, r) in regions.iter_mut().enumerate() {
                    let lo = if i == 0 { region.spans[d].0 } else { starts[i - 1] };
                    r.spans[d] = (lo, starts.get(i).map_or(region.spans[d].1, |s| s.before()));
                }
                for &i in rules {
                    self.shapes[i].spans[d].within(region.spans[d], &mut self.pieces);
                    let mut next = 0;
                    for &(lo, hi) in &self.pieces {
                        let (first, last) = touched(starts, lo, hi);
                        children[first.max(next)..=last.max(first)].iter_mut().for_each(|c| c.push(i));
                        next = last + 1;
                    }
                }
            }
            By::Classes(c, classes) => {
                own += category::VALUES[*c] / 8;
                for ((r, class), child) in regions.iter_mut().zip(classes).zip(&mut children) {
                    r.categories[*c] = *class;
                    let touches = |&i: &usize| and(self.shapes[i].categories[*c], *class) != Bits([0; 4]);
                    child.extend(rules.iter().copied().filter(touches));
                }
            }
        }
        let sum: usize = children.iter().map(Vec::len).sum();
        if sum + own > grant.entries {
            return self.leaf(rules, region);
        }
        let left = grant.entries - own;
        let mut refs = Vec::with_capacity(children.len());
        for (child, region) in children.iter().zip(&regions) {
            // At least what it needs as a leaf: `sum` is at most what is left.
            let entries = child.len() + (left - sum) * child.len() / sum.max(1);
            refs.push(self.node(child, region, Grant { entries, depth: grant.depth - 1, ..grant }));
        }
        let made = match by.by {
            By::Cuts(d, starts) => {
                let mut cut = Cut { ends: [A::MAX; FANOUT], children: [Ref::NOTHING; FANOUT] };
                cut.ends.iter_mut().zip(&starts).for_each(|(end, start)| *end = start.before());
                cut.children.iter_mut().zip(refs).for_each(|(to, from)| *to = from);
                self.tree.cuts.push(cut);
                Ref::new(Ref::CUT + u32::from(d), self.tree.cuts.len() - 1)
            }
            By::Classes(c, classes) => {
                let first = self.tree.table.len();
                self.tree.table.extend((0..=u8::MAX).take(category::VALUES[c]).map(|v| {
                    let class = classes.iter().position(|class| class.has(v));
                    class.map_or(Ref::NOTHING, |i| refs[i])
                }));
                self.tree.switches.push(Switch { category: c, first });
                Ref::new(Ref::SWITCH, self.tree.switches.len() - 1)
            }
        };
        made.unwrap_or(Ref::NOTHING)
    }

    /// How dimension `d` would be cut, if it can be.
    fn cuts(&mut self, rules: &[usize], region: &Region<A>, dimension: u8) -> Option<Division<A>> {
        let d = usize::from(dimension);
        let (lo, hi) = region.spans[d];
        let mut edges = Vec::new();
        // Of many rules, some at random.
        let some = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 16).is_multiple_of(rules.len() / SAMPLE + 1);
        for &i in rules {
            if self.shapes[i].spans[d].is_all() || !some(i) {
                continue;
            }
            self.shapes[i].spans[d].within((lo, hi), &mut self.pieces);
            for &(a, b) in &self.pieces {
                if a > lo {
                    edges.push(a);
                }
                if b < hi {
                    edges.extend(b.after());
                }
            }
        }
        edges.sort_unstable();
        // As many edges in each interval, and rules enough to fill leaves.
        let wanted = rules.len().div_ceil(LEAF / 2).min(FANOUT);
        let mut starts: Vec<A> = (1..wanted).filter_map(|i| edges.get(edges.len() * i / wanted).copied()).collect();
        starts.dedup();
        if starts.is_empty() {
            return None;
        }
        let children = starts.len() + 1;
        let narrow = (children / 8).max(1);
        let mut division = Division {
            by: By::Cuts(dimension, Vec::new()),
            children,
            wide: Vec::new(),
            wides: 0,
            sizes: vec![0; children],
        };
        for &i in rules {
            let wide = self.shapes[i].spans[d].is_all() || {
                self.shapes[i].spans[d].within((lo, hi), &mut self.pieces);
                self.pieces.iter().any(|&(a, b)| {
                    let (first, last) = touched(&starts, a, b);
                    last - first >= narrow
                })
            };
            division.wides += usize::from(wide);
            division.wide.push(wide);
            if !wide {
                let mut next = 0;
                for &(a, b) in &self.pieces {
                    let (first, last) = touched(&starts, a, b);
                    division.sizes[first.max(next)..=last.max(first)].iter_mut().for_each(|s| *s += 1);
                    next = last + 1;
                }
            }
        }
        division.by = By::Cuts(dimension, starts);
        Some(division)
    }

    /// How category `c` would be divided, if it can be.
    fn classes(&self, rules: &[usize], region: &Region<A>, c: usize) -> Option<Division<A>> {
        let here = region.categories[c];
        let all = |i: usize| and(self.shapes[i].categories[c], here) == here;
        if rules.iter().all(|&i| all(i)) {
            return None;
        }
        // Values of the same rules have the same signature. Should others have it too, they are in one class: no harm.
        let mut signatures: Vec<(u64, u8)> = (0..=u8::MAX).filter(|&v| here.has(v)).map(|v| (0, v)).collect();
        for (n, &i) in (1_u64..).zip(rules).filter(|&(_, &i)| !all(i)) {
            let values = self.shapes[i].categories[c];
            for (s, _) in signatures.iter_mut().filter(|&&mut (_, v)| values.has(v)) {
                *s = (*s ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            }
        }
        signatures.sort_unstable();
        let mut classes: Vec<Bits> = Vec::new();
        for chunk in signatures.chunk_by(|a, b| a.0 == b.0) {
            let values: Vec<u8> = chunk.iter().map(|&(_, v)| v).collect();
            classes.push(Bits::of(&values));
        }
        if classes.len() < 2 {
            return None;
        }
        // One value speaks for its class.
        let values: Vec<u8> = signatures.chunk_by(|a, b| a.0 == b.0).filter_map(|c| c.first()).map(|s| s.1).collect();
        let few = (classes.len() / 4).max(1);
        let mut sizes = vec![0; classes.len()];
        let mut wide = Vec::with_capacity(rules.len());
        let mut wides = 0;
        for &i in rules {
            let own = self.shapes[i].categories[c];
            let is_wide = all(i) || values.iter().filter(|&&v| own.has(v)).count() > few;
            wide.push(is_wide);
            wides += usize::from(is_wide);
            if !is_wide {
                values.iter().zip(&mut sizes).filter(|&(&v, _)| own.has(v)).for_each(|(_, s)| *s += 1);
            }
        }
        Some(Division { children: classes.len(), by: By::Classes(c, classes), wide, wides, sizes })
    }
}

/// The first and the last interval that `lo..=hi` touches.
fn touched<A: Address>(starts: &[A], lo: A, hi: A) -> (usize, usize) {
    (starts.partition_point(|&s| s <= lo), starts.partition_point(|&s| s <= hi))
}
