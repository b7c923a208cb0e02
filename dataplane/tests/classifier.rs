//! The compiled rules say what a plain walk over the rules as they are written says: same verdict, same way.
//!
//! *Oracle*: [`judged`], made from the words of `api::policy` alone; it shares no code with the matcher or the classifier.

#![allow(clippy::cast_possible_truncation)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::api::policy::*;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::filter::{Query, Sides, Source, Verdict};

/// Numbers from a seed: xorshift64*.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Once in `n`.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    fn some<T: Clone>(&mut self, all: &[T], most: u64) -> Vec<T> {
        (0..=self.below(most)).map(|_| self.of(all)).collect()
    }
}

// --- The oracle.

fn holds(m: &Match, q: &Query<'_>, mark: u32) -> bool {
    let t = q.tuple;
    let listed = |list: &[RangeInclusive<u16>], port| list.is_empty() || list.iter().any(|r| r.contains(&port));
    let address = |c: &Option<AddrMatch>, a| match c {
        None => true,
        Some(AddrMatch { negate: false, set }) => set.contains(a),
        Some(AddrMatch { negate: true, set }) => !set.contains(a),
    };
    let has_ports = [proto::TCP, proto::UDP, proto::UDPLITE, proto::SCTP].contains(&t.proto);
    let is_icmp = t.proto == if t.src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
    if !m.sport.is_empty() || !m.dport.is_empty() {
        let ports = listed(&m.sport, t.sport) && listed(&m.dport, t.dport);
        if !(q.l4_known && has_ports && ports) {
            return false;
        }
    }
    let icmp_type = (t.dport >> 8) as u8;
    if !(m.icmp_type.is_empty() || q.l4_known && is_icmp && m.icmp_type.contains(&icmp_type)) {
        return false;
    }
    if let Some((mask, value)) = m.tcp_flags
        && !(q.l4_known && t.proto == proto::TCP && q.tcp_flags & mask == value)
    {
        return false;
    }
    (m.from.is_empty() || m.from.contains(&q.from))
        && (m.to.is_empty() || q.to.is_some_and(|z| m.to.contains(&z)))
        && (m.proto.is_empty() || m.proto.contains(&t.proto))
        && (m.state.is_empty() || m.state.contains(&q.state))
        && m.mark.is_none_or(|(mask, value)| mark & mask == value)
        && (m.interface_in.is_empty() || q.interface_in.is_some_and(|i| m.interface_in.contains(&i)))
        && (m.interface_out.is_empty() || q.interface_out.is_some_and(|i| m.interface_out.contains(&i)))
        && address(&m.source, t.src)
        && address(&m.destination, t.dst)
}

fn judged(spec: &PolicySpec, q: &Query<'_>) -> (Verdict, Vec<u32>) {
    let mut passed = Vec::new();
    let mut passing = None;
    let mut mark = q.mark;
    for (n, r) in (0..).zip(&spec.rules) {
        if !holds(&r.matches, q, mark) {
            continue;
        }
        if let Some((mask, value)) = r.set_mark {
            mark = mark & !mask | value & mask;
        }
        match r.action {
            Action::Continue => {
                passed.push(n);
                if r.log && passing.is_none() {
                    passing = Some(n);
                }
            }
            action => {
                let (accept, timeout_policy) = (action == Action::Accept, r.timeout_policy);
                return (Verdict { rule: n, accept, log: r.log, passing, mark, timeout_policy }, passed);
            }
        }
    }
    let (rule, accept) = (spec.rules.len() as u32, spec.default == Action::Accept);
    (Verdict { rule, accept, log: false, passing, mark, timeout_policy: 0 }, passed)
}

fn says(policy: &Policy, q: &Query<'_>) -> (Verdict, Vec<u32>) {
    let mut passed = Vec::new();
    (policy.judge(q, |n| passed.push(n)), passed)
}

// --- Policies and packets by dice.

const ZONES: usize = MAX_ZONES;
const STATES: [CtState; 5] =
    [CtState::New, CtState::Established, CtState::Related, CtState::Invalid, CtState::Untracked];
const PROTOCOLS: [u8; 8] =
    [proto::TCP, proto::UDP, proto::ICMP, proto::ICMPV6, proto::GRE, proto::SCTP, proto::UDPLITE, 255];
const PORTS: [u16; 12] = [0, 1, 22, 53, 80, 443, 1023, 1024, 2048, 2303, 32768, 65535];
const INTERFACES: u16 = 6;

fn v4(a: u32) -> IpAddr {
    Ipv4Addr::from_bits(a).into()
}

fn v6(a: u32) -> IpAddr {
    // Far and near: the upper and the lower half of IPv6 addresses both tell some apart.
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(a >> 16) << 64 | u128::from(a & 0xffff)).into()
}

/// An address of a small world, so that rules and packets meet.
fn address(dice: &mut Dice, six: bool) -> IpAddr {
    let a = match dice.below(8) {
        0 => 0,
        1 => u32::MAX,
        2 => 0x0a00_0000 | dice.below(1 << 24) as u32,
        3 => 0x0a01_0000 | dice.below(1 << 16) as u32,
        _ => 0x0a01_0200 | dice.below(1 << 10) as u32,
    };
    if six { v6(a) } else { v4(a) }
}

fn prefix(dice: &mut Dice) -> ipnet::IpNet {
    let six = dice.one_in(3);
    let a = address(dice, six);
    let length =
        if six { dice.of(&[0, 32, 48, 64, 112, 120, 126, 128]) } else { dice.of(&[0, 1, 8, 16, 24, 28, 31, 32]) };
    ipnet::IpNet::new(a, length).expect("length fits").trunc()
}

fn set(dice: &mut Dice, most: u64) -> Arc<AddrSet> {
    let prefixes: Vec<_> = (0..dice.below(most + 1)).map(|_| prefix(dice)).filter(|p| p.prefix_len() > 20).collect();
    let ranges: Vec<_> = (0..dice.below(3))
        .map(|_| {
            let six = dice.one_in(3);
            (address(dice, six), address(dice, six))
        })
        .collect();
    Arc::new(AddrSet::new(prefixes, ranges))
}

fn ranges(dice: &mut Dice, most: u64) -> Vec<RangeInclusive<u16>> {
    (0..=dice.below(most))
        .map(|_| {
            let a = if dice.one_in(3) { dice.next() as u16 } else { dice.of(&PORTS) };
            match dice.below(4) {
                0 => a..=dice.of(&PORTS), // empty at times
                1 => a..=a.saturating_add(dice.below(300) as u16),
                _ => a..=a,
            }
        })
        .collect()
}

/// What a policy's rules are like: how rare each condition is, and sets that they share.
struct Style {
    rarities: [u64; 11],
    sets: Vec<Arc<AddrSet>>,
    continues: u64,
}

impl Style {
    fn new(dice: &mut Dice) -> Self {
        let sets = [0, 1, 4, 20, 400].map(|most| set(dice, most)).to_vec();
        Self {
            rarities: std::array::from_fn(|_| dice.of(&[1, 2, 2, 3, 8, 40])),
            sets,
            continues: dice.of(&[3, 10, 1000]),
        }
    }

    fn addresses(&self, dice: &mut Dice) -> AddrMatch {
        let set = if dice.one_in(4) {
            dice.of(&self.sets)
        } else {
            let one = prefix(dice);
            Arc::new(AddrSet::new([one], []))
        };
        AddrMatch { negate: dice.one_in(6), set }
    }

    fn matches(&self, dice: &mut Dice) -> Match {
        let [from, to, source, destination, proto, ports, icmp, flags, state, mark, interface] =
            self.rarities.map(|r| dice.one_in(r));
        let zones = |dice: &mut Dice| {
            if dice.one_in(20) {
                (0..ZONES as u8).map(ZoneId).collect()
            } else {
                dice.some(&[0, 1, 2, 3, 63], 2).into_iter().map(ZoneId).collect()
            }
        };
        let mut m = Match::default();
        if from {
            m.from = zones(dice);
        }
        if to {
            m.to = zones(dice);
        }
        m.source = source.then(|| self.addresses(dice));
        m.destination = destination.then(|| self.addresses(dice));
        if proto {
            m.proto = dice.some(&PROTOCOLS, 3);
        }
        if ports {
            if dice.one_in(3) {
                m.sport = ranges(dice, 2);
            }
            if !dice.one_in(4) {
                m.dport = ranges(dice, 3);
            }
        } else if icmp && dice.one_in(3) {
            m.icmp_type = dice.some(&[0, 3, 8, 9, 11, 128, 255], 2);
        }
        if flags && dice.one_in(4) {
            m.tcp_flags = Some((0x12, dice.of(&[0x02, 0x10, 0x12, 0])));
        }
        if state {
            m.state = dice.some(&STATES, 2);
        }
        if mark && dice.one_in(2) {
            m.mark = Some((3, dice.below(4) as u32));
        }
        if interface && dice.one_in(2) {
            let list = dice.some(&[0, 1, 2, 5], 2);
            if dice.one_in(2) { m.interface_in = list } else { m.interface_out = list }
        }
        m
    }

    fn rule(&self, dice: &mut Dice, n: usize) -> RuleSpec {
        let action =
            if dice.one_in(self.continues) { Action::Continue } else { dice.of(&[Action::Accept, Action::Drop]) };
        RuleSpec {
            name: n.to_string(),
            matches: self.matches(dice),
            action,
            log: dice.one_in(3),
            set_mark: dice.one_in(4).then(|| (dice.below(4) as u32, dice.below(4) as u32)),
            timeout_policy: dice.below(3) as u8,
        }
    }
}

fn spec(rules: Vec<RuleSpec>, default: Action) -> PolicySpec {
    PolicySpec {
        generation: 1,
        zones: (0..ZONES).map(|z| z.to_string()).collect(),
        interface_zones: vec![ZoneId(1); usize::from(INTERFACES)],
        interface_ct_zones: Vec::new(),
        interface_mss: Vec::new(),
        raw: Vec::new(),
        nat: Vec::new(),
        rules,
        default,
        conntrack: ConntrackSpec::default(),
    }
}

/// An address at an edge of what `c` matches, or any.
fn at_edge(dice: &mut Dice, c: Option<&AddrMatch>, six: bool) -> IpAddr {
    let Some(c) = c.filter(|_| !dice.one_in(4)) else { return address(dice, six) };
    let near = |dice: &mut Dice, lo: u128, hi: u128| match dice.below(6) {
        0 => lo.wrapping_sub(1),
        1 => hi.wrapping_add(1),
        2 | 3 => lo,
        _ => hi,
    };
    if six {
        let all: Vec<_> = c.set.intervals_v6().collect();
        if all.is_empty() {
            return address(dice, six);
        }
        let (lo, hi) = dice.of(&all);
        Ipv6Addr::from_bits(near(dice, lo.to_bits(), hi.to_bits())).into()
    } else {
        let all: Vec<_> = c.set.intervals_v4().collect();
        if all.is_empty() {
            return address(dice, six);
        }
        let (lo, hi) = dice.of(&all);
        v4(near(dice, lo.to_bits().into(), hi.to_bits().into()) as u32)
    }
}

fn port_at_edge(dice: &mut Dice, list: &[RangeInclusive<u16>]) -> u16 {
    if list.is_empty() || dice.one_in(4) {
        return if dice.one_in(3) { dice.next() as u16 } else { dice.of(&PORTS) };
    }
    let r = dice.of(list);
    match dice.below(6) {
        0 => r.start().wrapping_sub(1),
        1 => r.end().wrapping_add(1),
        2 | 3 => *r.start(),
        _ => *r.end(),
    }
}

/// A packet that `m` nearly matches, or matches. `Query` borrows its tuple, so both come apart.
fn packet(dice: &mut Dice, m: &Match) -> (Tuple, impl Fn(&Tuple) -> Query<'_> + use<>) {
    fn like<T: Clone>(dice: &mut Dice, list: &[T], any: T) -> T {
        if list.is_empty() || dice.one_in(8) { any } else { dice.of(list) }
    }
    let six = dice.one_in(3);
    let any = dice.of(&PROTOCOLS);
    let mut protocol = like(dice, &m.proto, any);
    if (!m.dport.is_empty() || m.tcp_flags.is_some()) && m.proto.is_empty() && !dice.one_in(6) {
        protocol = proto::TCP;
    }
    let mut dport = port_at_edge(dice, &m.dport);
    if !m.icmp_type.is_empty() && !dice.one_in(6) {
        protocol = if six { proto::ICMPV6 } else { proto::ICMP };
        dport = u16::from(dice.of(&m.icmp_type)) << 8 | dice.of(&[0, 1, 255]);
    }
    let tuple = Tuple {
        src: at_edge(dice, m.source.as_ref(), six),
        dst: at_edge(dice, m.destination.as_ref(), six),
        proto: protocol,
        sport: port_at_edge(dice, &m.sport),
        dport,
        ct_zone: 0,
    };
    let any_zone = ZoneId(dice.of(&[0, 1, 2, 3, 4, 63, 64, 255]));
    let (from, to) = (like(dice, &m.from, any_zone), like(dice, &m.to, any_zone));
    let to = (!dice.one_in(10)).then_some(to);
    let any_state = dice.of(&STATES);
    let state = like(dice, &m.state, any_state);
    let any_interface = dice.below(INTERFACES.into()) as u16;
    let interface_in = (!dice.one_in(8)).then(|| like(dice, &m.interface_in, any_interface));
    let interface_out = (!dice.one_in(8)).then(|| like(dice, &m.interface_out, any_interface));
    let (l4_known, mark) = (!dice.one_in(8), dice.below(4) as u32);
    let tcp_flags = dice.of(&[0x02, 0x10, 0x12, 0, 0x04]);
    (tuple, move |tuple| Query { tuple, l4_known, tcp_flags, state, mark, from, to, interface_in, interface_out })
}

/// Asks both about `count` packets. Returns how many were decided by a rule.
fn compare(dice: &mut Dice, spec: &PolicySpec, policy: &Policy, count: usize, seed: u64) -> usize {
    let mut decided = 0;
    for _ in 0..count {
        let near = dice.below(spec.rules.len() as u64) as usize;
        let (tuple, query) = packet(dice, &spec.rules[near].matches);
        let q = query(&tuple);
        let expected = judged(spec, &q);
        let said = says(policy, &q);
        assert_eq!(said, expected, "seed {seed}, {} rules, {q:?}", spec.rules.len());
        decided += usize::from((expected.0.rule as usize) < spec.rules.len());
    }
    decided
}

#[test]
fn a_million_packets_get_the_verdict_of_the_rules_as_written() {
    let (mut judgements, mut decided) = (0, 0);
    for seed in 1..=600 {
        let mut dice = Dice(seed * 0x9e37_79b9);
        let style = Style::new(&mut dice);
        let size = if seed % 20 == 0 { 100 + dice.below(700) } else { 1 + dice.below(60) };
        let rules = (0..size as usize).map(|n| style.rule(&mut dice, n)).collect();
        let spec = spec(rules, dice.of(&[Action::Accept, Action::Drop]));
        let policy = Policy::compile(spec.clone()).expect("valid");
        decided += compare(&mut dice, &spec, &policy, 2_000, seed);
        judgements += 2_000;
    }
    assert!(judgements >= 1_000_000);
    assert!(decided > judgements / 4, "only {decided} packets met a rule");
}

/// Rules as large installations have them: customers by source, services by destination and port, and some for all.
fn large(dice: &mut Dice, count: usize) -> Vec<RuleSpec> {
    let only = |a: u32, length| {
        let p = ipnet::IpNet::new(v4(a), length).expect("length fits").trunc();
        Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([p], [])) })
    };
    let m = |dice: &mut Dice, n: usize| match n % 10 {
        0..4 => Match { source: only(0x0a00_0000 | (n as u32) << 8, 24), from: vec![ZoneId(1)], ..Match::default() },
        4..8 => Match {
            destination: only(0xc612_0000 | dice.below(1 << 16) as u32, 32),
            proto: vec![proto::TCP],
            dport: vec![dice.of(&[80..=80, 443..=443, 8000..=8100])],
            ..Match::default()
        },
        8 => Match {
            source: only(0xac10_0000 | dice.below(1 << 20) as u32, 28),
            destination: only(0xc612_0000 | dice.below(1 << 16) as u32, 24),
            ..Match::default()
        },
        _ if n % 1_000 == 9 => Match { dport: vec![n as u16..=n as u16], ..Match::default() },
        _ => Match {
            source: only(0xac10_0000 | dice.below(1 << 20) as u32, 32),
            to: vec![ZoneId(2)],
            state: vec![CtState::New],
            ..Match::default()
        },
    };
    let rule = |n| RuleSpec {
        name: format!("rule-{n}"),
        matches: m(dice, n),
        action: if n % 3 == 0 { Action::Drop } else { Action::Accept },
        log: false,
        set_mark: None,
        timeout_policy: 0,
    };
    (0..count).map(rule).collect()
}

#[test]
fn a_hundred_thousand_rules_load_and_say_what_a_walk_says() {
    let mut dice = Dice(7);
    let spec = spec(large(&mut dice, 100_000), Action::Drop);
    let policy = Policy::compile(spec.clone()).expect("valid");
    assert!(policy.classifier_memory() < 64 << 20, "{} bytes", policy.classifier_memory());
    let decided = compare(&mut dice, &spec, &policy, 500, 7);
    assert!(decided > 100, "only {decided} packets met a rule");
}

#[test]
fn no_rules_whatever_take_more_than_their_share_of_memory() {
    let mut dice = Dice(11);
    let mut wide = |n: u64| {
        let (a, b) = (dice.below(n), dice.below(n));
        (a.min(b), a.max(b))
    };
    let span = |(lo, hi): (u64, u64), six| {
        let [lo, hi] = [lo, hi].map(|a| if six { v6(a as u32) } else { v4(a as u32) });
        Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([], [(lo, hi)])) })
    };
    let ports = |(lo, hi): (u64, u64)| vec![lo as u16..=hi as u16];
    let mut boxes = |six| Match {
        source: span(wide(1 << 32), six),
        destination: span(wide(1 << 32), six),
        sport: ports(wide(1 << 16)),
        dport: ports(wide(1 << 16)),
        ..Match::default()
    };
    let overlapping: Vec<Match> = (0..3_000).map(|n| boxes(n % 2 == 0)).collect();
    let nested =
        (0..3_000_u64).map(|n| Match { source: span((n, (1 << 32) - 1 - n), false), ..Match::default() }).collect();
    let equal = vec![Match { dport: vec![443..=443], ..Match::default() }; 3_000];
    let lists = (0..3_000)
        .map(|_| Match { dport: (0..60).map(|_| dice.next() as u16).map(|p| p..=p).collect(), ..Match::default() })
        .collect();
    let zones = (0..3_000)
        .map(|_| {
            let mut half = || (0..64).filter(|_| dice.one_in(2)).map(ZoneId).collect::<Vec<_>>();
            Match { from: half(), to: half(), ..Match::default() }
        })
        .collect();
    for (what, matches) in
        [("overlapping", overlapping), ("nested", nested), ("equal", equal), ("lists", lists), ("zones", zones)]
    {
        let rule = |(n, matches): (usize, Match)| RuleSpec {
            name: n.to_string(),
            matches,
            action: if n % 2 == 0 { Action::Accept } else { Action::Drop },
            log: false,
            set_mark: None,
            timeout_policy: 0,
        };
        let spec = spec(matches.into_iter().enumerate().map(rule).collect(), Action::Drop);
        let policy = Policy::compile(spec.clone()).expect("valid");
        // Entries of 32 and 80 bytes, nodes in proportion.
        let bound = (16 * spec.rules.len() + (1 << 17)) * (32 + 80);
        assert!(policy.classifier_memory() <= bound, "{what}: {} bytes", policy.classifier_memory());
        compare(&mut Dice(13), &spec, &policy, 300, 13);
    }
}

/// A gateway without addresses or routes: nothing is a hairpin.
struct Nowhere;

impl Sides for Nowhere {
    fn is_local(&self, _: IpAddr) -> bool {
        false
    }
    fn side_of(&self, _: IpAddr) -> Option<u16> {
        None
    }
    fn zone_of(&self, _: u16) -> Option<ZoneId> {
        None
    }
}

#[test]
fn raw_and_translation_rules_are_those_that_a_walk_finds() {
    let (mut raws, mut sources, mut destinations) = (0, 0, 0);
    for seed in 1..=150 {
        let mut dice = Dice(seed * 0x51ed_270b);
        let style = Style::new(&mut dice);
        let size = if seed % 10 == 0 { 300 } else { 1 + dice.below(50) };
        let early = |dice: &mut Dice| Match {
            to: Vec::new(),
            state: Vec::new(),
            interface_out: Vec::new(),
            ..style.matches(dice)
        };
        let raw: Vec<RawRuleSpec> = (0..size)
            .map(|n| RawRuleSpec {
                name: n.to_string(),
                matches: early(&mut dice),
                action: dice.of(&[RawAction::Notrack, RawAction::Accept, RawAction::Drop]),
            })
            .collect();
        let nat: Vec<NatRuleSpec> = (0..size)
            .map(|n| {
                let (kind, matches) = match dice.below(3) {
                    0 => (NatKind::None, style.matches(&mut dice)),
                    1 => (NatKind::Masquerade, style.matches(&mut dice)),
                    _ => (NatKind::Redirect { port: None }, early(&mut dice)),
                };
                NatRuleSpec::new(&n.to_string(), matches, kind)
            })
            .collect();
        let policy = PolicySpec { raw: raw.clone(), nat: nat.clone(), ..spec(Vec::new(), Action::Drop) };
        let policy = Policy::compile(policy).expect("valid");
        assert!(policy.has_raw());
        for _ in 0..1_000 {
            let near = dice.below(size) as usize;
            let near = if dice.one_in(2) { raw[near].matches.clone() } else { nat[near].matches.clone() };
            let (tuple, query) = packet(&mut dice, &near);
            let q = query(&tuple);
            let first = raw.iter().find(|r| holds(&r.matches, &q, q.mark));
            assert_eq!(policy.raw(&q), first.map_or(RawAction::Accept, |r| r.action), "seed {seed}, {q:?}");
            raws += usize::from(first.is_some());

            let mut late = nat.iter().enumerate().filter(|(_, r)| !matches!(r.kind, NatKind::Redirect { .. }));
            let expected = match late.find(|(_, r)| holds(&r.matches, &q, q.mark)) {
                None => Source::Nothing,
                Some((_, r)) if r.kind == NatKind::None => Source::Exempt,
                Some((n, _)) => Source::Rule(n),
            };
            assert_eq!(policy.source(&q), expected, "seed {seed}, {q:?}");
            sources += usize::from(expected != Source::Nothing);

            let is_early = |r: &NatRuleSpec| match r.kind {
                NatKind::None => r.matches.to.is_empty() && r.matches.interface_out.is_empty(),
                NatKind::Redirect { .. } => true,
                _ => false,
            };
            let first = nat.iter().position(|r| is_early(r) && holds(&r.matches, &q, q.mark));
            let expected = first.filter(|&n| nat[n].kind != NatKind::None);
            assert_eq!(policy.destination(&q, &Nowhere).map(|d| d.rule), expected, "seed {seed}, {q:?}");
            destinations += usize::from(expected.is_some());
        }
    }
    assert!(raws.min(sources).min(destinations) > 10_000, "{raws} {sources} {destinations}");
}

#[test]
fn without_rules_the_default_decides() {
    for default in [Action::Accept, Action::Drop] {
        let policy = Policy::compile(spec(Vec::new(), default)).expect("valid");
        let mut dice = Dice(3);
        let (tuple, query) = packet(&mut dice, &Match::default());
        let q = query(&tuple);
        assert_eq!(says(&policy, &q), judged(policy.spec(), &q));
        assert!(!policy.has_raw());
    }
}
