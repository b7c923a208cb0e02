//! Translation rules compiled: which of them a new connection meets in PREROUTING and POSTROUTING.
//!
//! A rule may stand for more than its own match: netmap also translates what comes the other way, and both serve clients
//! behind the gateway that use a public address (*hairpin*). What is so implied is asked after all rules' own matches.
//!
//! A hairpin is for public addresses on the side that the rule is for: client and target must both be on others. So a rule
//! for `wan` serves hosts in `lan` that use its addresses of `wan`, and a rule for `lan` is not opened to `wan`.
//!
//! *Threads*: immutable. *Limits*: asked for first packets only.
//! *Sources*: `iptables-extensions(8)`, NETMAP; RFC 4787 section 6 for hairpins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addrset::AddrSet;
use super::classifier::Classifier;
use super::matcher::{Matcher, Query};
use crate::api::policy::{Hairpin, Match, NatKind, NatRuleSpec, NetmapSide, ZoneId};
use crate::nat::mapped;

/// A rule that translates a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its index.
    pub rule: usize,
    /// Whether it is netmap's other way.
    pub back: bool,
}

/// What POSTROUTING says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// No rule matches.
    Nothing,
    /// A rule says that it is not translated.
    Exempt,
    /// The rule of this index.
    Rule(usize),
}

/// An entry of PREROUTING.
#[derive(Debug)]
struct Early {
    matcher: Matcher,
    rule: usize,
    /// Whether it is netmap's other way.
    back: bool,
}

/// An entry for clients on other sides than the rule's.
#[derive(Debug)]
struct Hairpinned {
    entry: Early,
    /// The rule's side: its zones and interfaces, of which there is one at least.
    zones: Vec<ZoneId>,
    interfaces: Vec<u16>,
    /// Whether it is for the gateway's own addresses alone, because the rule names none.
    local: bool,
}

/// What the hooks must know of addresses and interfaces.
pub trait Sides {
    /// Whether an address is the gateway's.
    fn is_local(&self, a: IpAddr) -> bool;
    /// The interface that an address is on, as the gateway's or by the route there.
    fn side_of(&self, a: IpAddr) -> Option<u16>;
    /// The zone of an interface; `None` where it is in none.
    fn zone_of(&self, interface: u16) -> Option<ZoneId>;
}

/// The rules of both hooks.
#[derive(Debug, Default)]
pub struct NatHooks {
    early: Vec<Early>,
    early_classifier: Classifier,
    back: Vec<Early>,
    back_classifier: Classifier,
    hairpins: Vec<Hairpinned>,
    hairpin_classifier: Classifier,
    late: Vec<(Matcher, usize)>,
    late_classifier: Classifier,
}

impl NatHooks {
    /// Compiles `rules`, whose matches are valid.
    pub fn compile(rules: &[NatRuleSpec]) -> Self {
        let mut hooks = Self::default();
        for (rule, r) in rules.iter().enumerate() {
            let early = |m: &Match, back| Early { matcher: Matcher::new(m), rule, back };
            let hairpin = |m: &Match, back| {
                let anywhere = Match { from: Vec::new(), interface_in: Vec::new(), ..m.clone() };
                let entry = early(&anywhere, back);
                let named = back || m.destination.as_ref().is_some_and(|d| !d.negate && !is_universal(&d.set));
                let (zones, interfaces) = (m.from.clone(), m.interface_in.clone());
                Hairpinned { entry, zones, interfaces, local: !named }
            };
            let sided = |m: &Match| !(m.from.is_empty() && m.interface_in.is_empty());
            let m = &r.matches;
            match &r.kind {
                NatKind::None => {
                    if m.to.is_empty() && m.interface_out.is_empty() {
                        hooks.early.push(early(m, false));
                    }
                    hooks.late.push((Matcher::new(m), rule));
                }
                NatKind::Masquerade | NatKind::Snat { .. } => hooks.late.push((Matcher::new(m), rule)),
                NatKind::Dnat { .. } => {
                    hooks.early.push(early(m, false));
                    if r.hairpin == Hairpin::Auto && sided(m) {
                        hooks.hairpins.push(hairpin(m, false));
                    }
                }
                NatKind::Twice { .. }
                | NatKind::Redirect { .. }
                | NatKind::Netmap { side: NetmapSide::Destination, .. } => {
                    hooks.early.push(early(m, false));
                }
                NatKind::Netmap { side: NetmapSide::Source, .. } => {
                    hooks.late.push((Matcher::new(m), rule));
                    let back = other_way(m);
                    if r.hairpin == Hairpin::Auto && sided(&back) {
                        hooks.hairpins.push(hairpin(&Match { source: None, ..back.clone() }, true));
                    }
                    hooks.back.push(early(&back, true));
                }
                NatKind::Nptv6 { .. } => {} // no part of connections
            }
        }
        // A rule whose match is met may still not fit the packet's addresses, so none ends the search by itself.
        fn classifier<'a>(matchers: impl Iterator<Item = &'a Matcher> + Clone) -> Classifier {
            Classifier::new(matchers.map(|m| (m, false)))
        }
        hooks.early_classifier = classifier(hooks.early.iter().map(|e| &e.matcher));
        hooks.back_classifier = classifier(hooks.back.iter().map(|e| &e.matcher));
        hooks.hairpin_classifier = classifier(hooks.hairpins.iter().map(|h| &h.entry.matcher));
        hooks.late_classifier = classifier(hooks.late.iter().map(|(m, _)| m));
        hooks
    }

    /// What the classifiers take, bytes.
    pub fn classifier_memory(&self) -> usize {
        let all = [&self.early_classifier, &self.back_classifier, &self.hairpin_classifier, &self.late_classifier];
        all.into_iter().map(Classifier::memory).sum()
    }

    /// Whether there is no rule.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.early.is_empty() && self.late.is_empty()
    }

    /// The rule that translates the destination of a new connection.
    pub fn destination(&self, rules: &[NatRuleSpec], q: &Query<'_>, sides: &impl Sides) -> Option<Destination> {
        if self.early.is_empty() && self.back.is_empty() && self.hairpins.is_empty() {
            return None;
        }
        let dst = q.tuple.dst;
        let is_v4 = dst.is_ipv4();
        let matches = |e: &Early| {
            let Some(rule) = rules.get(e.rule) else { return false };
            let fits = match &rule.kind {
                NatKind::Netmap { from, to, .. } if e.back => {
                    let inside = mapped(dst, *to, *from);
                    let asked = rule.matches.source.as_ref();
                    inside.is_some_and(|a| asked.is_none_or(|s| s.set.contains(a) != s.negate))
                }
                NatKind::Netmap { from, .. } => from.contains(&dst),
                NatKind::Dnat { to, .. } | NatKind::Twice { to, .. } => !to.is_empty(is_v4),
                _ => true,
            };
            fits && e.matcher.matches(q)
        };
        let found = |e: &Early| Destination { rule: e.rule, back: e.back };
        let first = |classifier: &Classifier, entries: &'_ [Early]| {
            classifier.find(q, |i| entries.get(i).is_some_and(&matches))
        };
        if let Some(e) = first(&self.early_classifier, &self.early).and_then(|i| self.early.get(i)) {
            let exempt = rules.get(e.rule).is_none_or(|r| r.kind == NatKind::None);
            return (!exempt).then(|| found(e));
        }
        if let Some(e) = first(&self.back_classifier, &self.back).and_then(|i| self.back.get(i)) {
            return Some(found(e));
        }
        let hairpinned = |h: &Hairpinned| {
            // Without a zone it is on nobody's side.
            let on_side = |i: u16| Some(h.interfaces.contains(&i) || h.zones.contains(&sides.zone_of(i)?));
            let is_there = |a| sides.side_of(a).and_then(on_side);
            let target = |rule| crate::nat::destination(rule, h.entry.back, q.tuple, None).map(|(a, _)| a);
            matches(&h.entry)
                && (!h.local || sides.is_local(dst))
                && is_there(dst) == Some(true)
                && q.interface_in.and_then(on_side) == Some(false)
                && rules.get(h.entry.rule).and_then(target).and_then(is_there) == Some(false)
        };
        let hairpin = self.hairpin_classifier.find(q, |i| self.hairpins.get(i).is_some_and(hairpinned));
        hairpin.and_then(|i| self.hairpins.get(i)).map(|h| found(&h.entry))
    }

    /// What becomes of the source of a new connection.
    pub fn source(&self, rules: &[NatRuleSpec], q: &Query<'_>) -> Source {
        let src = q.tuple.src;
        let matches = |&(ref matcher, rule): &(Matcher, usize)| {
            let fits = match rules.get(rule).map(|r| &r.kind) {
                Some(NatKind::Netmap { from, .. }) => from.contains(&src),
                Some(NatKind::Snat { to }) => !to.is_empty(src.is_ipv4()),
                Some(_) => true,
                None => false,
            };
            fits && matcher.matches(q)
        };
        let first = self.late_classifier.find(q, |i| self.late.get(i).is_some_and(matches));
        match first.and_then(|i| self.late.get(i)) {
            None => Source::Nothing,
            Some(&(_, rule)) if rules.get(rule).is_some_and(|r| r.kind == NatKind::None) => Source::Exempt,
            Some(&(_, rule)) => Source::Rule(rule),
        }
    }
}

/// Whether a set stands for every address.
fn is_universal(set: &AddrSet) -> bool {
    set.contains(Ipv4Addr::UNSPECIFIED.into()) || set.contains(Ipv6Addr::UNSPECIFIED.into())
}

/// The match of packets that come the other way, before any translation; their destination is asked beside it.
fn other_way(m: &Match) -> Match {
    Match {
        from: m.to.clone(),
        to: Vec::new(),
        source: m.destination.clone(),
        destination: None,
        proto: m.proto.clone(),
        sport: m.dport.clone(),
        dport: m.sport.clone(),
        icmp_type: m.icmp_type.clone(),
        tcp_flags: m.tcp_flags,
        state: m.state.clone(),
        mark: m.mark,
        interface_in: m.interface_out.clone(),
        interface_out: Vec::new(),
    }
}
