//! Translation rules compiled: which of them a new connection meets in PREROUTING and POSTROUTING.
//!
//! A rule may stand for more than its own match: netmap also translates what comes the other way, and DNAT serves clients
//! behind the gateway that use the public address (*hairpin*). Such further entries are asked after all rules' own, so what the
//! operator has written comes before what he has implied. A hairpin is for clients of the zone that the target is in: nobody else
//! gets at a server by a rule that does not name him.
//!
//! *Threads*: immutable. *Limits*: walked first to last, for first packets only.
//! *Sources*: `iptables-extensions(8)`, NETMAP; RFC 4787 section 6 for hairpins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addrset::AddrSet;
use super::matcher::{Matcher, Query};
use crate::api::policy::{Hairpin, Match, NatKind, NatRuleSpec, NetmapSide};
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

/// What an entry asks beside its match.
#[derive(Clone, Copy, Debug)]
enum Only {
    Anything,
    /// Destinations within the netmap's target.
    Back,
    /// Addresses of the gateway.
    Local,
}

#[derive(Debug)]
struct Early {
    matcher: Matcher,
    rule: usize,
    only: Only,
}

/// The rules of both hooks.
#[derive(Debug, Default)]
pub struct NatHooks {
    early: Vec<Early>,
    hairpins: Vec<Early>,
    late: Vec<(Matcher, usize)>,
}

impl NatHooks {
    /// Compiles `rules`, whose matches are valid.
    pub fn compile(rules: &[NatRuleSpec]) -> Self {
        let mut hooks = Self::default();
        for (rule, r) in rules.iter().enumerate() {
            let early = |m: &Match, only| Early { matcher: Matcher::new(m), rule, only };
            let m = &r.matches;
            let from_anywhere = Match { from: Vec::new(), interface_in: Vec::new(), ..m.clone() };
            match &r.kind {
                NatKind::None => {
                    if m.to.is_empty() && m.interface_out.is_empty() {
                        hooks.early.push(early(m, Only::Anything));
                    }
                    hooks.late.push((Matcher::new(m), rule));
                }
                NatKind::Masquerade | NatKind::Snat { .. } => hooks.late.push((Matcher::new(m), rule)),
                NatKind::Dnat { .. } => {
                    hooks.early.push(early(m, Only::Anything));
                    let named = m.destination.as_ref().is_some_and(|d| !d.negate && !is_universal(&d.set));
                    if r.hairpin == Hairpin::Auto && !(m.from.is_empty() && m.interface_in.is_empty()) {
                        let only = if named { Only::Anything } else { Only::Local };
                        hooks.hairpins.push(early(&from_anywhere, only));
                    }
                }
                NatKind::Twice { .. }
                | NatKind::Redirect { .. }
                | NatKind::Netmap { side: NetmapSide::Destination, .. } => {
                    hooks.early.push(early(m, Only::Anything));
                }
                NatKind::Netmap { side: NetmapSide::Source, .. } => {
                    hooks.late.push((Matcher::new(m), rule));
                    let back = other_way(m);
                    hooks.early.push(early(&back, Only::Back));
                    if !(back.from.is_empty() && back.interface_in.is_empty()) {
                        let back = Match { from: Vec::new(), interface_in: Vec::new(), source: None, ..back };
                        hooks.hairpins.push(early(&back, Only::Back));
                    }
                }
                NatKind::Nptv6 { .. } => {} // no part of connections
            }
        }
        hooks
    }

    /// Whether there is no rule.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.early.is_empty() && self.late.is_empty()
    }

    /// The rule that translates the destination of a new connection. `is_local` says which addresses are the gateway's,
    /// `is_beside` which are in the zone that the packet comes from.
    pub fn destination(
        &self,
        rules: &[NatRuleSpec],
        q: &Query<'_>,
        is_local: impl Fn(IpAddr) -> bool,
        is_beside: impl Fn(IpAddr) -> bool,
    ) -> Option<Destination> {
        let dst = q.tuple.dst;
        let is_v4 = dst.is_ipv4();
        let matches = |e: &&Early| {
            let kind = rules.get(e.rule).map(|r| &r.kind);
            let fits = match (kind, e.only) {
                (_, Only::Local) if !is_local(dst) => false,
                (Some(NatKind::Netmap { to, .. }), Only::Back) => to.contains(&dst),
                (Some(NatKind::Netmap { from, .. }), _) => from.contains(&dst),
                (Some(NatKind::Dnat { to, .. } | NatKind::Twice { to, .. }), _) => !to.is_empty(is_v4),
                (Some(_), _) => true,
                (None, _) => false,
            };
            fits && e.matcher.matches(q)
        };
        let target = |e: &Early| match rules.get(e.rule).map(|r| &r.kind) {
            Some(NatKind::Dnat { to, .. }) => to.nth(is_v4, 0),
            Some(NatKind::Netmap { from, to, .. }) => mapped(dst, *to, *from),
            _ => None,
        };
        let beside = |e: &&Early| matches(e) && target(e).is_some_and(&is_beside);
        let found = self.early.iter().find(matches).or_else(|| self.hairpins.iter().find(beside))?;
        let exempt = rules.get(found.rule).is_none_or(|r| r.kind == NatKind::None);
        (!exempt).then_some(Destination { rule: found.rule, back: matches!(found.only, Only::Back) })
    }

    /// What becomes of the source of a new connection.
    pub fn source(&self, rules: &[NatRuleSpec], q: &Query<'_>) -> Source {
        let src = q.tuple.src;
        let matches = |&&(ref matcher, rule): &&(Matcher, usize)| {
            let fits = match rules.get(rule).map(|r| &r.kind) {
                Some(NatKind::Netmap { from, .. }) => from.contains(&src),
                Some(NatKind::Snat { to }) => !to.is_empty(src.is_ipv4()),
                Some(_) => true,
                None => false,
            };
            fits && matcher.matches(q)
        };
        match self.late.iter().find(matches) {
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
