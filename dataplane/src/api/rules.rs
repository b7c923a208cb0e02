//! Counters of one policy's rules on one worker.
//!
//! A packet is counted for the rule that decided on it, and for each that said "continue" on the way. Packets of known
//! connections walk no rules: what was found out for their connection holds one number, and that is the counter of the whole
//! way. Ways that differ have counters of their own, the *trails*, and [`RuleCounters::totals`] sums them up by rule. So a
//! packet costs one count whatever the policy, and a policy that never says "continue" has no trails.
//!
//! ```text
//!   rules     0 mark, 1 dns, 2 accept                 trails   3: 0      after nothing
//!   counters  0  1  2  3=default | trails                      4: 1      after trail 3
//!                                                              5: 2      after trail 4     what passed 0 and 1, decided by 2
//! ```
//! *Life-cycle*: control makes one per worker and policy and reads it; the worker fills it. *Threads*: one writer; a reader
//! may miss a trail that is being made. *Limits*: [`TRAILS`] steps of trails; a way beyond is counted for the rule that
//! decides alone.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::policy::{Action, PolicySpec};
use super::stats::Counter;

/// Steps that the trails of a policy may have, all together: as many as there are ways to begin, each longer by a rule.
pub const TRAILS: usize = 1024;

/// Places that are tried for a step.
const TRIES: usize = 16;

/// No step before.
const NOWHERE: u32 = u32::MAX;

/// Packets and bytes that each rule of one policy saw, on one worker.
#[derive(Debug)]
pub struct RuleCounters {
    /// By rule, what it decided on by itself; then the default's; then one for each step of a trail.
    counters: Box<[(Counter, Counter)]>,
    /// By step: 0 where it is free, else its rule plus one, and above 32 bits the counter of the step before or [`NOWHERE`].
    links: Box<[AtomicU64]>,
    /// By translation rule.
    nat: Box<[NatCounters]>,
}

/// What a translation rule did.
#[derive(Debug, Default)]
pub struct NatCounters {
    /// Connections that it translated.
    pub connections: Counter,
    /// New connections for which it found no port or no address.
    pub failures: Counter,
}

/// The rules that have said "continue" so far on a packet's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trail {
    /// None.
    #[default]
    Nothing,
    /// Those up to this step.
    Passed(u32),
    /// There was no room for them.
    Lost,
}

impl RuleCounters {
    /// All zero, for the rules of `spec`.
    pub fn new(spec: &PolicySpec) -> Self {
        let continues = spec.rules.iter().any(|r| r.action == Action::Continue);
        let steps = if continues { TRAILS } else { 0 };
        Self {
            counters: (0..=spec.rules.len() + steps).map(|_| Default::default()).collect(),
            links: (0..steps).map(|_| AtomicU64::new(0)).collect(),
            nat: spec.nat.iter().map(|_| NatCounters::default()).collect(),
        }
    }

    /// Counts a packet of `bytes` bytes on `counter`, which [`Self::of`] has given; one that does not exist counts nothing.
    #[inline]
    pub fn count(&self, counter: u32, bytes: u64) {
        self.count_many(counter, 1, bytes);
    }

    /// Counts `packets` packets of `bytes` bytes together, as [`Self::count`] does one.
    #[inline]
    pub fn count_many(&self, counter: u32, packets: u64, bytes: u64) {
        if let Some((count, total)) = self.counters.get(counter as usize) {
            count.add(packets);
            total.add(bytes);
        }
    }

    /// Counts `bytes` more bytes of a packet that was counted on `counter`.
    #[inline]
    pub fn count_more(&self, counter: u32, bytes: u64) {
        if let Some((_, total)) = self.counters.get(counter as usize) {
            total.add(bytes);
        }
    }

    /// The counters of a translation rule.
    #[inline]
    pub fn nat(&self, rule: usize) -> Option<&NatCounters> {
        self.nat.get(rule)
    }

    /// Connections and failures by translation rule.
    pub fn nat_totals(&self) -> Vec<(u64, u64)> {
        self.nat.iter().map(|n| (n.connections.value(), n.failures.value())).collect()
    }

    /// How many rules there are, and the default.
    fn rules(&self) -> usize {
        self.counters.len() - self.links.len()
    }

    /// The trail that goes on with `rule`, which says "continue".
    pub fn passed(&self, trail: Trail, rule: u32) -> Trail {
        let before = match trail {
            Trail::Nothing => NOWHERE,
            Trail::Passed(before) => before,
            Trail::Lost => return trail,
        };
        self.place(before, rule).map_or(Trail::Lost, Trail::Passed)
    }

    /// The counter of packets that have gone `trail` and on which `rule` decides.
    pub fn of(&self, trail: Trail, rule: u32) -> u32 {
        match trail {
            Trail::Nothing | Trail::Lost => rule,
            Trail::Passed(before) => self.place(before, rule).unwrap_or(rule),
        }
    }

    /// The step to `rule` from `before`: the same one each time, made where it is new. Only the owner calls this.
    fn place(&self, before: u32, rule: u32) -> Option<u32> {
        let link = u64::from(before) << 32 | u64::from(rule.checked_add(1)?);
        let spread = (link ^ link >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from(spread).unwrap_or(0);
        for n in 0..TRIES.min(self.links.len()) {
            let at = (first + n) % self.links.len();
            let place = self.links.get(at)?;
            let there = place.load(Acquire);
            if there == 0 {
                place.store(link, Release);
            }
            if there == 0 || there == link {
                return u32::try_from(self.rules() + at).ok();
            }
        }
        None
    }

    /// The rule of a step, and the counter of the step before; `None` where `counter` is no step.
    fn link(&self, counter: u32) -> Option<(u32, u32)> {
        let at = (counter as usize).checked_sub(self.rules())?;
        let link = self.links.get(at)?.load(Acquire);
        let rule = u32::try_from(link & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
        Some((rule, u32::try_from(link >> 32).ok()?))
    }

    /// The rule that decides on what is counted on `counter`; as many as there are rules for the default.
    pub fn rule_of(&self, counter: u32) -> u32 {
        self.link(counter).map_or(counter, |(rule, _)| rule)
    }

    /// Packets and bytes by rule, the default last.
    pub fn totals(&self) -> Vec<(u64, u64)> {
        let all: Vec<_> = self.counters.iter().map(|(p, b)| (p.value(), b.value())).collect();
        let (rules, steps) = all.split_at(self.rules());
        let mut totals = rules.to_vec();
        for (counter, (packets, bytes)) in (0_u32..).skip(rules.len()).zip(steps) {
            let mut at = self.link(counter).filter(|_| *packets > 0);
            // A step is made after the one before it, so their number bounds this.
            for _ in 0..=TRAILS {
                let Some((rule, before)) = at else { break };
                if let Some((p, b)) = totals.get_mut(rule as usize) {
                    (*p, *b) = (p.wrapping_add(*packets), b.wrapping_add(*bytes));
                }
                at = self.link(before);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::policy::{Match, RuleSpec};
    use crate::filter::Policy;

    fn spec(actions: &[Action]) -> PolicySpec {
        let rule = |(n, &action): (usize, &Action)| RuleSpec {
            name: n.to_string(),
            matches: Match::default(),
            action,
            log: false,
            set_mark: None,
            timeout_policy: 0,
        };
        PolicySpec { rules: actions.iter().enumerate().map(rule).collect(), ..Policy::closed(1).spec().clone() }
    }

    fn counters(rules: usize) -> RuleCounters {
        RuleCounters::new(&spec(&vec![Action::Continue; rules]))
    }

    #[test]
    fn a_policy_without_continue_has_no_trails() {
        let c = RuleCounters::new(&spec(&[Action::Accept, Action::Drop]));
        assert!(c.links.is_empty());
        for rule in 0..3 {
            assert_eq!(c.of(Trail::Nothing, rule), rule);
            assert_eq!(c.rule_of(rule), rule);
        }
        assert_eq!(c.passed(Trail::Nothing, 0), Trail::Lost);
        c.count(1, 100);
        c.count(2, 10);
        c.count(3, 1); // there is none
        c.count(u32::MAX, 1);
        assert_eq!(c.totals(), [(0, 0), (1, 100), (1, 10)]);
    }

    #[test]
    fn a_way_that_finds_no_room_is_counted_for_the_rule_that_decides() {
        let c = counters(2001);
        let trails: Vec<_> = (0..2000).map(|rule| c.passed(Trail::Nothing, rule)).collect();
        for &trail in &trails {
            c.count(c.of(trail, 2000), 7);
        }
        let totals = c.totals();
        assert_eq!(totals[2000..], [(2000, 14_000), (0, 0)]);
        let lost = trails.iter().zip(&totals).filter(|(t, _)| **t == Trail::Lost);
        assert!(lost.clone().count() > 900 && lost.clone().all(|(_, total)| total.0 == 0));
        assert!(totals[..2000].iter().all(|&(packets, _)| packets <= 1));
    }

    proptest! {
        #[test]
        fn each_rule_on_the_way_counts_each_packet_once(
            ways in proptest::collection::vec((proptest::collection::btree_set(0u32..8, 0..5), 8u32..=10, 1u64..1500), 0..60),
        ) {
            let c = counters(10);
            let mut expect = vec![(0, 0); 11];
            for (passed, rule, bytes) in ways {
                let trail = passed.iter().fold(Trail::Nothing, |trail, &rule| c.passed(trail, rule));
                let counter = c.of(trail, rule);
                prop_assert_eq!(c.of(trail, rule), counter);
                prop_assert_eq!(c.rule_of(counter), rule);
                c.count(counter, bytes);
                for n in passed.into_iter().chain([rule]) {
                    expect[n as usize].0 += 1;
                    expect[n as usize].1 += bytes;
                }
            }
            prop_assert_eq!(c.totals(), expect);
        }
    }
}
