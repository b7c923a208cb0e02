//! What the tree promises beyond right answers: few rules looked at, bounded ways, nothing kept that is never asked.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::shape::Span;
use super::*;
use crate::api::policy::{AddrMatch, AddrSet, Match, ZoneId};
use crate::conntrack::tuple::proto;
use crate::packet::CtState;

const RULES: u32 = 10_000;

fn net(a: u32, length: u8) -> Option<AddrMatch> {
    let p = Ipv4Net::new(Ipv4Addr::from_bits(a), length).expect("length fits");
    Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([p.into()], [])) })
}

fn port(n: u32) -> Vec<std::ops::RangeInclusive<u16>> {
    vec![n as u16..=n as u16]
}

/// Spreads numbers over 32 bits, each to a place of its own.
fn spread(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b1)
}

fn classifier(rules: impl Iterator<Item = Match>, ends: bool) -> Classifier {
    let matchers: Vec<Matcher> = rules.map(|m| Matcher::new(&m)).collect();
    Classifier::new(matchers.iter().map(|m| (m, ends)))
}

/// How many leaves there are, and how many entries in them, for a packet.
fn looked_at(c: &Classifier, src: u32, dst: u32, dport: u16, zone: u8) -> (usize, usize) {
    let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
    let tuple = Tuple { src: src.into(), dst: dst.into(), proto: proto::TCP, sport: 1024, dport, ct_zone: 0 };
    let q = Query {
        tuple: &tuple,
        l4_known: true,
        tcp_flags: 2,
        state: CtState::New,
        mark: 0,
        from: ZoneId(zone),
        to: Some(ZoneId(zone / 2)),
        interface_in: Some(zone.into()),
        interface_out: None,
    };
    let leaves = c.v4.leaves(&Key::new(src.to_bits(), dst.to_bits(), &q), c.v4.root);
    let length = |&start: &usize| {
        let from_here = c.v4.entries.get(start..).unwrap_or_default();
        from_here.iter().position(|e| e.rule & LAST != 0).map_or(0, |i| i + 1)
    };
    (leaves.len(), leaves.iter().map(length).sum())
}

/// The most entries that any of many packets looks at.
fn most(c: &Classifier) -> usize {
    let look = |n: u32| {
        // Rules' own values, and others.
        let (src, dst) =
            if n.is_multiple_of(2) { (spread(n), spread(n + 1)) } else { (spread(n ^ 0xff) ^ 0xf0, spread(n)) };
        let (leaves, entries) = looked_at(c, src, dst, n as u16, (n % 64) as u8);
        assert!(leaves <= WIDTH);
        entries
    };
    (0..RULES).map(look).max().expect("some")
}

#[test]
fn of_ten_thousand_rules_that_differ_in_one_thing_few_are_looked_at() {
    let any = Match::default;
    let destinations = (0..RULES).map(|n| Match { destination: net(spread(n), 32), ..any() });
    assert!(most(&classifier(destinations, false)) <= 8);
    let sources = (0..RULES).map(|n| Match { source: net(spread(n), 32), from: vec![ZoneId(1)], ..any() });
    assert!(most(&classifier(sources, false)) <= 8);
    let ports = (0..RULES).map(|n| Match { dport: port(n), proto: vec![proto::TCP], ..any() });
    assert!(most(&classifier(ports, false)) <= 8);
    let ports = (0..RULES).map(|n| Match { sport: port(n), ..any() });
    assert!(most(&classifier(ports, false)) <= 8);
    let interfaces = (0..RULES).map(|n| Match { interface_in: vec![n as u16], ..any() });
    assert!(most(&classifier(interfaces, false)) <= 8);
}

#[test]
fn of_ten_thousand_rules_of_all_kinds_few_are_looked_at() {
    let rules = (0..RULES).map(|n| match n % 8 {
        0..=2 => Match { source: net(spread(n), 24), ..Match::default() },
        3..=5 => Match { destination: net(spread(n), 32), dport: port(443), ..Match::default() },
        6 => Match { from: vec![ZoneId((n % 60) as u8)], dport: port(n), ..Match::default() },
        _ if n < 80 => Match { state: vec![CtState::Invalid], ..Match::default() },
        _ => Match { source: net(spread(n), 16), destination: net(spread(n + 1), 20), ..Match::default() },
    });
    assert!(most(&classifier(rules, false)) <= 48);
}

#[test]
fn rules_that_differ_in_zones_and_class_are_told_apart_by_them() {
    let rule = |n: u32| Match {
        from: vec![ZoneId((n / 64 % 64) as u8)],
        to: vec![ZoneId((n % 64) as u8)],
        state: vec![if n < 4_096 { CtState::New } else { CtState::Established }],
        ..Match::default()
    };
    assert!(most(&classifier((0..8_192).map(rule), false)) <= 8);
}

#[test]
fn what_comes_behind_a_rule_for_all_is_not_kept() {
    let rules = || {
        let all =
            |n| if n == 100 { Match::default() } else { Match { destination: net(spread(n), 32), ..Match::default() } };
        (0..RULES).map(all)
    };
    let (ending, going_on) = (classifier(rules(), true), classifier(rules(), false));
    let last = |c: &Classifier| c.v4.entries.iter().map(|e| e.rule & !LAST).max();
    assert_eq!(last(&ending), Some(100));
    assert_eq!(last(&going_on), Some(RULES - 1));
}

#[test]
fn a_rule_of_one_ip_version_is_in_the_tree_of_that_alone() {
    let c = classifier((0..RULES).map(|n| Match { source: net(spread(n), 32), ..Match::default() }), false);
    assert!(c.v6.entries.is_empty() && c.v6.root == Ref::NOTHING);
    let icmp = |types| Match { icmp_type: vec![types], proto: vec![proto::ICMPV6], ..Match::default() };
    let c = classifier((0..20).map(icmp), false);
    assert!(c.v4.entries.is_empty() && !c.v6.entries.is_empty());
}

/// Sorted intervals of which no two touch.
fn intervals(of: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(u32, u32)>> {
    proptest::collection::vec((0_u32..2_000, 0_u32..6), of).prop_map(|mut v| {
        v.iter_mut().for_each(|(lo, more)| *more += *lo);
        crate::filter::addrset::merge(&mut v, |e| e.checked_add(1));
        v
    })
}

proptest! {
    #[test]
    fn what_lies_in_a_region_is_found(list in prop_oneof![intervals(1..20), intervals(1..400)], lo in 0_u32..2_010, more in 0_u32..600) {
        let region = (lo, lo + more);
        for not in [false, true] {
            let span = if not { Span::Not(&list) } else { Span::Many(list.as_slice().into()) };
            let mut pieces = Vec::new();
            span.within(region, &mut pieces);
            let has = |v: u32| list.iter().any(|&(a, b)| a <= v && v <= b) != not;
            let found = |v: u32| pieces.iter().any(|&(a, b)| a <= v && v <= b);
            let values = || region.0..=region.1;
            if pieces.len() == 1 {
                // May be too much between its ends, which are right.
                let ends = (values().find(|&v| has(v)), values().rev().find(|&v| has(v)));
                prop_assert_eq!(ends, (Some(pieces[0].0), Some(pieces[0].1)));
                prop_assert!(values().all(|v| found(v) || !has(v)));
            } else {
                prop_assert!(values().all(|v| found(v) == has(v)));
            }
            prop_assert_eq!(span.covers(region), values().all(has));
        }
    }
}
