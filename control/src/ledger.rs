//! The rule counters' book: counts belong to a rule's name, whatever snapshots come and go.
//!
//! Each snapshot has one array of counters per worker. While a reload is under way old and new ones count side by side;
//! when a worker hands the old one back its counts are carried over by rule name. A total is what was carried plus what
//! every array still in use says, so it never runs backwards while the rule's name stays in the policy.
//! *Threads*: behind a mutex; the bridging thread retires, control opens and reads. *Limits*: names that the newest
//! policy does not have are forgotten once the last older snapshot is back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::AddAssign;
use std::sync::Arc;

use dataplane::api::policy::{Policy, PolicySpec};
use dataplane::api::rules::RuleCounters;

/// The name under which the policy's default is counted.
pub const DEFAULT_RULE: &str = "default";

/// Packets and bytes of one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTotal {
    /// Packets it decided on, or let go on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl AddAssign for RuleTotal {
    fn add_assign(&mut self, rhs: Self) {
        self.packets = self.packets.wrapping_add(rhs.packets);
        self.bytes = self.bytes.wrapping_add(rhs.bytes);
    }
}

/// What a translation rule did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatTotal {
    /// Connections that it translated.
    pub connections: u64,
    /// New connections for which it found no port or no address.
    pub failures: u64,
}

impl AddAssign for NatTotal {
    fn add_assign(&mut self, rhs: Self) {
        self.connections = self.connections.wrapping_add(rhs.connections);
        self.failures = self.failures.wrapping_add(rhs.failures);
    }
}

struct Snapshot {
    policy: Arc<Policy>,
    /// By worker; `None` once it came back.
    counters: Vec<Option<Arc<RuleCounters>>>,
}

/// Sums by rule name. Filter rules and translation rules may have equal names: they have columns of their own.
#[derive(Clone, Default)]
struct Sums {
    filter: HashMap<String, RuleTotal>,
    nat: HashMap<String, NatTotal>,
}

/// See the module.
#[derive(Default)]
pub struct Ledger {
    carried: Sums,
    snapshots: VecDeque<Snapshot>,
}

impl Ledger {
    /// Opens the book of a new policy and answers one array of counters per worker.
    pub fn open(&mut self, policy: &Arc<Policy>, workers: usize) -> Vec<Arc<RuleCounters>> {
        let counters: Vec<_> = (0..workers).map(|_| Arc::new(RuleCounters::new(policy.spec()))).collect();
        self.snapshots
            .push_back(Snapshot { policy: Arc::clone(policy), counters: counters.iter().cloned().map(Some).collect() });
        counters
    }

    /// Carries over what `worker` counted by a policy that it no longer uses.
    pub fn retire(&mut self, worker: usize, counters: &Arc<RuleCounters>) {
        for s in &mut self.snapshots {
            let Some(slot) = s.counters.get_mut(worker) else { continue };
            if slot.take_if(|c| Arc::ptr_eq(c, counters)).is_some() {
                add(&mut self.carried, s, counters);
                break;
            }
        }
        let newest = self.snapshots.len().saturating_sub(1);
        let mut i = 0;
        self.snapshots.retain(|s| {
            i += 1;
            i > newest || s.counters.iter().any(Option::is_some)
        });
        if let [only] = self.snapshots.make_contiguous() {
            let spec = only.policy.spec();
            let names: HashSet<&str> = filter_names(spec).collect();
            self.carried.filter.retain(|name, _| names.contains(name.as_str()));
            let names: HashSet<&str> = nat_names(spec).collect();
            self.carried.nat.retain(|name, _| names.contains(name.as_str()));
        }
    }

    /// The totals of the newest policy's filter rules, in its order, the default last.
    pub fn totals(&self) -> Vec<(String, RuleTotal)> {
        let Some(newest) = self.snapshots.back() else { return Vec::new() };
        let mut sums = self.sums().filter;
        // A rule that is itself called `default` shares the default's line, which then comes once.
        filter_names(newest.policy.spec()).filter_map(|name| sums.remove_entry(name)).collect()
    }

    /// The totals of the newest policy's translation rules, in its order.
    pub fn nat_totals(&self) -> Vec<(String, NatTotal)> {
        let Some(newest) = self.snapshots.back() else { return Vec::new() };
        let mut sums = self.sums().nat;
        nat_names(newest.policy.spec()).filter_map(|name| sums.remove_entry(name)).collect()
    }

    fn sums(&self) -> Sums {
        let mut sums = self.carried.clone();
        for s in &self.snapshots {
            for c in s.counters.iter().flatten() {
                add(&mut sums, s, c);
            }
        }
        sums
    }

    /// The newest policy.
    pub fn newest(&self) -> Option<&Arc<Policy>> {
        self.snapshots.back().map(|s| &s.policy)
    }

    /// The name of rule `rule` of policy `generation`; `?` where that is long gone.
    pub fn rule_name(&self, generation: u64, rule: u32) -> &str {
        let Some(s) = self.snapshots.iter().find(|s| s.policy.spec().generation == generation) else {
            return "?";
        };
        let rule = usize::try_from(rule).unwrap_or(usize::MAX);
        s.policy.spec().rules.get(rule).map_or(DEFAULT_RULE, |r| &r.name)
    }

    /// The name of translation rule `rule` of policy `generation`; `?` where that is long gone.
    pub fn nat_rule_name(&self, generation: u64, rule: u32) -> &str {
        let s = self.snapshots.iter().find(|s| s.policy.spec().generation == generation);
        let rule = usize::try_from(rule).unwrap_or(usize::MAX);
        s.and_then(|s| s.policy.spec().nat.get(rule)).map_or("?", |r| &r.name)
    }
}

fn filter_names(spec: &PolicySpec) -> impl Iterator<Item = &str> {
    spec.rules.iter().map(|r| r.name.as_str()).chain([DEFAULT_RULE])
}

fn nat_names(spec: &PolicySpec) -> impl Iterator<Item = &str> {
    spec.nat.iter().map(|r| r.name.as_str())
}

fn add(sums: &mut Sums, s: &Snapshot, counters: &RuleCounters) {
    let spec = s.policy.spec();
    for (name, (packets, bytes)) in filter_names(spec).zip(counters.totals()) {
        add_one(&mut sums.filter, name, RuleTotal { packets, bytes });
    }
    for (name, (connections, failures)) in nat_names(spec).zip(counters.nat_totals()) {
        add_one(&mut sums.nat, name, NatTotal { connections, failures });
    }
}

fn add_one<T: AddAssign>(sums: &mut HashMap<String, T>, name: &str, seen: T) {
    match sums.get_mut(name) {
        Some(total) => *total += seen,
        None => drop(sums.insert(name.to_owned(), seen)),
    }
}

#[cfg(test)]
mod tests {
    use dataplane::api::policy::{Action, ConntrackSpec, Match, NatKind, NatRuleSpec, RuleSpec};

    use super::*;

    fn policy(generation: u64, names: &[&str]) -> Arc<Policy> {
        policy_with(generation, names, &[])
    }

    fn policy_with(generation: u64, names: &[&str], nat: &[&str]) -> Arc<Policy> {
        let rule = |name: &&str| RuleSpec {
            name: (*name).to_owned(),
            matches: Match::default(),
            action: Action::Accept,
            log: false,
            set_mark: None,
            timeout_policy: 0,
        };
        let spec = PolicySpec {
            generation,
            zones: vec!["local".into()],
            interface_zones: Vec::new(),
            interface_ct_zones: Vec::new(),
            interface_mss: Vec::new(),
            raw: Vec::new(),
            nat: nat.iter().map(|name| NatRuleSpec::new(name, Match::default(), NatKind::Masquerade)).collect(),
            rules: names.iter().map(rule).collect(),
            default: Action::Drop,
            conntrack: ConntrackSpec::default(),
        };
        Arc::new(Policy::compile(spec).expect("nothing to refuse"))
    }

    fn packets(l: &Ledger) -> Vec<(String, u64)> {
        l.totals().into_iter().map(|(n, t)| (n, t.packets)).collect()
    }

    fn named(v: &[(&str, u64)]) -> Vec<(String, u64)> {
        v.iter().map(|&(n, c)| (n.to_owned(), c)).collect()
    }

    #[test]
    fn counts_follow_the_name_through_reordering_and_half_a_reload() {
        let mut l = Ledger::default();
        let one = l.open(&policy(1, &["a", "b"]), 2);
        one[0].count(0, 100);
        one[1].count(1, 50);
        one[1].count(2, 1);
        assert_eq!(packets(&l), named(&[("a", 1), ("b", 1), ("default", 1)]));

        let two = l.open(&policy(2, &["b", "c"]), 2);
        l.retire(0, &one[0]);
        two[0].count(0, 7);
        one[1].count(1, 50); // worker 1 still judges by the old policy
        assert_eq!(packets(&l), named(&[("b", 3), ("c", 0), ("default", 1)]));

        l.retire(1, &one[1]);
        assert_eq!(packets(&l), named(&[("b", 3), ("c", 0), ("default", 1)]));
        assert!(!l.carried.filter.contains_key("a"), "a name that the policy lost is forgotten");
    }

    #[test]
    fn translations_are_carried_over_by_their_own_names() {
        let totals = |l: &Ledger| -> Vec<_> {
            l.nat_totals().into_iter().map(|(n, t)| (n, t.connections, t.failures)).collect()
        };
        let mut l = Ledger::default();
        let one = l.open(&policy_with(1, &["out"], &["out", "web"]), 2);
        one[0].count(0, 100);
        one[0].nat(0).expect("a rule").connections.add(5);
        one[1].nat(0).expect("a rule").failures.add(2);
        one[1].nat(1).expect("a rule").connections.add(9);
        assert_eq!(totals(&l), [("out".into(), 5, 2), ("web".into(), 9, 0)]);
        assert_eq!(packets(&l), named(&[("out", 1), ("default", 0)]), "the filter's rule of that name is another");

        let two = l.open(&policy_with(2, &[], &["new", "out"]), 2);
        l.retire(0, &one[0]);
        two[0].nat(1).expect("a rule").connections.add(1);
        one[1].nat(0).expect("a rule").failures.add(1); // worker 1 still translates by the old policy
        assert_eq!(totals(&l), [("new".into(), 0, 0), ("out".into(), 6, 3)]);
        l.retire(1, &one[1]);
        assert_eq!(totals(&l), [("new".into(), 0, 0), ("out".into(), 6, 3)]);
        assert!(!l.carried.nat.contains_key("web") && !l.carried.filter.contains_key("out"), "forgotten");
    }

    #[test]
    fn returning_twice_counts_once() {
        let mut l = Ledger::default();
        let one = l.open(&policy(1, &["a"]), 1);
        one[0].count(0, 9);
        l.open(&policy(2, &["a"]), 1);
        l.retire(0, &one[0]);
        l.retire(0, &one[0]);
        assert_eq!(packets(&l), named(&[("a", 1), ("default", 0)]));
    }

    #[test]
    fn a_rule_called_default_gives_one_line() {
        let mut l = Ledger::default();
        let c = l.open(&policy(1, &["default"]), 1);
        c[0].count(0, 1);
        c[0].count(1, 1);
        assert_eq!(packets(&l), named(&[("default", 2)]));
    }

    #[test]
    fn rules_are_named_by_generation() {
        let mut l = Ledger::default();
        l.open(&policy(1, &["a"]), 1);
        l.open(&policy(2, &["b"]), 1);
        assert_eq!(
            (l.rule_name(1, 0), l.rule_name(2, 0), l.rule_name(2, 1), l.rule_name(9, 0)),
            ("a", "b", "default", "?")
        );
    }
}
