//! Limits: how many connections one source, or one zone, may have on this worker.
//!
//! Each worker allows its equal share of a limit, rounded up, and counts what it owns: no counter is shared.
//!
//! *Life-cycle*: control makes one for each worker with each policy ([`Limits::new`]) and sends it along. A worker keeps
//! the counts that it has where the limits are the same, else starts from zero: connections of before are not counted.
//! *Threads*: one worker at a time. *Limits*: as many sources as the worker may have connections, for each rule.
//! *Sources*: `linux/net/netfilter/nf_conncount.c` for what the field calls it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::index::Index;
use crate::api::policy::{LimitPer, LimitSpec, Policy, ZoneId};
use crate::drop::DropReason;

/// No entry.
const NONE: u32 = u32::MAX;

/// One source's connections under one rule.
#[derive(Debug)]
struct Source {
    rule: u16,
    network: IpAddr,
    connections: u32,
    next_free: u32,
}

/// The limits of one worker and what counts against them.
#[derive(Debug)]
pub struct Limits {
    rules: Vec<LimitSpec>,
    /// The zones of the interfaces: a connection's zone is that of the interface it came in by.
    zones: Vec<ZoneId>,
    workers: u32,
    /// By rule, for those that count a zone.
    zone_counts: Vec<u32>,
    index: Index,
    sources: Vec<Source>,
    free: u32,
    seed: ahash::RandomState,
    /// Which set of counts this is, 1..=255: a connection remembers in which it was counted.
    epoch: u8,
}

impl Limits {
    /// The limits of `policy` for one of `workers` workers whose table holds `capacity` connections.
    pub fn new(policy: &Policy, capacity: usize, workers: usize) -> Self {
        let spec = policy.spec();
        let rules = spec.conntrack.limits.clone();
        let by_source = rules.iter().filter(|r| matches!(r.per, LimitPer::Source { .. })).count();
        Self {
            zone_counts: vec![0; rules.len()],
            index: Index::new(capacity * by_source),
            sources: Vec::with_capacity(capacity * by_source),
            free: NONE,
            rules,
            zones: spec.interface_zones.clone(),
            workers: u32::try_from(workers).unwrap_or(u32::MAX).max(1),
            seed: ahash::RandomState::new(),
            epoch: 1,
        }
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Which set of counts this is.
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Takes the place of `old`. Where both limit the same, it is `self` that is handed back, and `old` goes on.
    pub fn replace(&mut self, mut new: Box<Self>) -> Box<Self>
    where
        Self: Sized,
    {
        if new.rules == self.rules && new.zones == self.zones && new.workers == self.workers {
            return new;
        }
        new.epoch = self.epoch.checked_add(1).unwrap_or(1);
        std::mem::swap(self, &mut *new);
        new
    }

    /// Whether one more connection from `source` in zone `from` is within the limits.
    ///
    /// # Errors
    /// Which kind of limit is reached.
    pub fn allows(&self, source: IpAddr, from: ZoneId) -> Result<(), DropReason> {
        for (n, rule) in self.applying(from) {
            let share = rule.max.div_ceil(self.workers);
            match rule.per {
                LimitPer::Zone if self.zone_counts.get(n).is_some_and(|&c| c >= share) => {
                    return Err(DropReason::LimitZone);
                }
                LimitPer::Source { v4, v6 } => {
                    let count =
                        self.find(n, network(source, v4, v6)).map_or(0, |s| self.sources[s as usize].connections);
                    if count >= share {
                        return Err(DropReason::LimitSource);
                    }
                }
                LimitPer::Zone => {}
            }
        }
        Ok(())
    }

    /// Counts a connection.
    pub fn add(&mut self, source: IpAddr, from: ZoneId) {
        for n in 0..self.rules.len() {
            let rule = self.rules[n];
            if !applies(&rule, from) {
                continue;
            }
            match rule.per {
                LimitPer::Zone => self.zone_counts[n] += 1,
                LimitPer::Source { v4, v6 } => self.add_source(n, network(source, v4, v6)),
            }
        }
    }

    /// Counts a connection no longer.
    pub fn remove(&mut self, source: IpAddr, from: ZoneId) {
        for n in 0..self.rules.len() {
            let rule = self.rules[n];
            if !applies(&rule, from) {
                continue;
            }
            match rule.per {
                LimitPer::Zone => self.zone_counts[n] = self.zone_counts[n].saturating_sub(1),
                LimitPer::Source { v4, v6 } => self.remove_source(n, network(source, v4, v6)),
            }
        }
    }

    /// Sources counted now.
    pub fn sources(&self) -> usize {
        self.sources.iter().filter(|s| s.connections > 0).count()
    }

    fn applying(&self, from: ZoneId) -> impl Iterator<Item = (usize, &LimitSpec)> {
        self.rules.iter().enumerate().filter(move |(_, r)| applies(r, from))
    }

    fn hash(&self, rule: usize, network: IpAddr) -> u64 {
        self.seed.hash_one((rule, network))
    }

    fn find(&self, rule: usize, network: IpAddr) -> Option<u32> {
        let is = |s: &Source| usize::from(s.rule) == rule && s.network == network;
        self.index.find(self.hash(rule, network), |slot| self.sources.get(slot as usize).is_some_and(is))
    }

    fn add_source(&mut self, rule: usize, network: IpAddr) {
        if let Some(slot) = self.find(rule, network) {
            self.sources[slot as usize].connections += 1;
            return;
        }
        // A source without room is not counted: there is room for as many as there are connections, so this needs a
        // bucket that has overflowed into all the others.
        let (slot, fresh) = match self.free {
            NONE if self.sources.len() == self.sources.capacity() => return,
            NONE => (u32::try_from(self.sources.len()).unwrap_or(NONE), true),
            slot => (slot, false),
        };
        if self.index.insert(self.hash(rule, network), slot).is_err() {
            return;
        }
        let rule = u16::try_from(rule).unwrap_or(u16::MAX);
        let source = Source { rule, network, connections: 1, next_free: NONE };
        if fresh {
            self.sources.push(source); // within the capacity taken at the start
        } else {
            let old = std::mem::replace(&mut self.sources[slot as usize], source);
            self.free = old.next_free;
        }
    }

    fn remove_source(&mut self, rule: usize, network: IpAddr) {
        let Some(slot) = self.find(rule, network) else { return };
        let source = &mut self.sources[slot as usize];
        source.connections -= 1;
        if source.connections == 0 {
            source.next_free = self.free;
            self.free = slot;
            self.index.remove(self.hash(rule, network), slot);
        }
    }
}

fn applies(rule: &LimitSpec, from: ZoneId) -> bool {
    rule.from.is_none_or(|z| z == from)
}

/// The network of `a` by these prefix lengths.
fn network(a: IpAddr, v4: u8, v6: u8) -> IpAddr {
    match a {
        IpAddr::V4(a) => {
            Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0)).into()
        }
        IpAddr::V6(a) => {
            Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::policy::{Action, ConntrackSpec, PolicySpec};

    const LAN: ZoneId = ZoneId(1);
    const WAN: ZoneId = ZoneId(2);

    fn limits(rules: &[LimitSpec], workers: usize) -> Limits {
        let spec = PolicySpec {
            generation: 1,
            zones: vec!["local".into(), "lan".into(), "wan".into()],
            interface_zones: vec![LAN, WAN],
            interface_ct_zones: Vec::new(),
            interface_mss: Vec::new(),
            raw: Vec::new(),
            nat: Vec::new(),
            rules: Vec::new(),
            default: Action::Drop,
            conntrack: ConntrackSpec { limits: rules.to_vec(), ..ConntrackSpec::default() },
        };
        Limits::new(&Policy::compile(spec).expect("policy"), 100, workers)
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("address")
    }

    #[test]
    fn a_source_is_a_network_and_a_zone_counts_as_one() {
        let source = LimitSpec { from: None, per: LimitPer::Source { v4: 24, v6: 64 }, max: 2 };
        let zone = LimitSpec { from: Some(WAN), per: LimitPer::Zone, max: 3 };
        let mut l = limits(&[source, zone], 1);
        for a in ["10.0.0.1", "10.0.0.200"] {
            assert_eq!(l.allows(ip(a), LAN), Ok(()));
            l.add(ip(a), LAN);
        }
        assert_eq!(l.allows(ip("10.0.0.7"), LAN), Err(DropReason::LimitSource));
        assert_eq!(l.allows(ip("10.0.1.7"), LAN), Ok(()));
        for a in ["192.0.2.1", "2001:db8::1", "2001:db8::2"] {
            assert_eq!(l.allows(ip(a), WAN), Ok(()));
            l.add(ip(a), WAN);
        }
        assert_eq!(l.allows(ip("203.0.113.1"), WAN), Err(DropReason::LimitZone));
        assert_eq!(l.allows(ip("203.0.113.1"), LAN), Ok(()));
        l.remove(ip("10.0.0.200"), LAN);
        assert_eq!(l.allows(ip("10.0.0.7"), LAN), Ok(()));
    }

    #[test]
    fn each_worker_has_its_share_rounded_up() {
        let l = |workers| {
            let mut l = limits(&[LimitSpec { from: None, per: LimitPer::Zone, max: 5 }], workers);
            (0..100).take_while(|_| l.allows(ip("10.0.0.1"), LAN).map(|()| l.add(ip("10.0.0.1"), LAN)).is_ok()).count()
        };
        assert_eq!([l(1), l(2), l(5), l(8)], [5, 3, 1, 1]);
    }

    #[test]
    fn the_same_limits_keep_their_counts_and_others_begin_anew() {
        let rule = LimitSpec { from: None, per: LimitPer::Zone, max: 1 };
        let mut l = limits(&[rule], 1);
        l.add(ip("10.0.0.1"), LAN);
        drop(l.replace(Box::new(limits(&[rule], 1))));
        assert_eq!((l.allows(ip("10.0.0.1"), LAN), l.epoch()), (Err(DropReason::LimitZone), 1));
        drop(l.replace(Box::new(limits(&[LimitSpec { max: 2, ..rule }], 1))));
        assert_eq!((l.allows(ip("10.0.0.1"), LAN), l.epoch()), (Ok(()), 2));
    }

    proptest! {
        #[test]
        fn what_was_added_and_removed_leaves_no_trace(ops in proptest::collection::vec((0u32..40, any::<bool>()), 0..300)) {
            let rule = LimitSpec { from: None, per: LimitPer::Source { v4: 32, v6: 128 }, max: 100 };
            let mut l = limits(&[rule], 1);
            let mut model = std::collections::BTreeMap::new();
            for (n, add) in ops {
                let a = IpAddr::V4(Ipv4Addr::from_bits(n));
                let count = model.entry(n).or_insert(0u32);
                if add {
                    l.add(a, LAN);
                    *count += 1;
                } else if *count > 0 {
                    l.remove(a, LAN);
                    *count -= 1;
                }
            }
            prop_assert_eq!(l.sources(), model.values().filter(|&&c| c > 0).count());
            for (n, count) in model {
                for _ in 0..count {
                    l.remove(IpAddr::V4(Ipv4Addr::from_bits(n)), LAN);
                }
            }
            prop_assert_eq!(l.sources(), 0);
        }
    }
}
