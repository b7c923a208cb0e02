//! What a new flow's judgement costs, by kind and number of rules: every rule asked in turn beside the classifier.
//!
//! `cargo bench -p sluice-bench --bench classify`. Flows hit rules at random, more of them than a cache or a branch
//! predictor learns by heart. A first line for each policy says how long it took to compile and how large the classifier is.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dataplane::api::policy::{
    Action, AddrMatch, AddrSet, ConntrackSpec, CtState, Match, Policy, PolicySpec, RuleSpec, ZoneId,
};
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::filter::Query;

/// Flows of one measurement.
const FLOWS: usize = 1 << 16;
/// Rules up to which they are also asked in turn.
const LINEAR: usize = 10_000;

/// Numbers from a seed: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % u64::from(n)).unwrap_or(0)
    }
}

/// A rule's conditions and a tuple that meets them.
type Made = (Match, Tuple);

fn net(a: u32, length: u8) -> Option<AddrMatch> {
    let p = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(a), length).expect("length fits").trunc();
    Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([p.into()], [])) })
}

fn tuple(dice: &mut Dice) -> Tuple {
    Tuple {
        src: Ipv4Addr::from_bits(0x0b00_0000 | dice.below(1 << 24)).into(),
        dst: Ipv4Addr::from_bits(0xc633_0000 | dice.below(1 << 16)).into(),
        proto: proto::UDP,
        sport: u16::try_from(1024 + dice.below(60_000)).unwrap_or(0),
        dport: u16::try_from(dice.below(1 << 16)).unwrap_or(0),
        ct_zone: 0,
    }
}

/// A service: a host and a port.
fn service(dice: &mut Dice) -> Made {
    let (host, port) = (0xc612_0000 | dice.below(1 << 17), [53, 80, 443, 5060, 8080][dice.below(5) as usize]);
    let m = Match { destination: net(host, 32), proto: vec![proto::UDP], dport: vec![port..=port], ..Match::default() };
    (m, Tuple { dst: Ipv4Addr::from_bits(host).into(), dport: port, ..tuple(dice) })
}

/// A service of an IPv6 host, of 65,536 in each of 16 networks.
fn service6(dice: &mut Dice) -> Made {
    let host = 0x2001_0db8 << 96 | u128::from(dice.below(16)) << 64 | u128::from(dice.below(1 << 16));
    let p = ipnet::Ipv6Net::new(host.into(), 128).expect("length fits");
    let destination = Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([p.into()], [])) });
    let (src, t) = (Ipv6Addr::from_bits(0x2001_0db8_ffff << 80 | u128::from(dice.below(1 << 24))), tuple(dice));
    let m = Match { destination, proto: vec![proto::UDP], dport: vec![443..=443], ..Match::default() };
    (m, Tuple { src: src.into(), dst: Ipv6Addr::from_bits(host).into(), dport: 443, ..t })
}

/// A customer: a source network, to anywhere.
fn customer(dice: &mut Dice) -> Made {
    let a = 0x0a00_0000 | dice.below(1 << 16) << 8;
    let m = Match { source: net(a, 24), from: vec![ZoneId(1)], state: vec![CtState::New], ..Match::default() };
    (m, Tuple { src: Ipv4Addr::from_bits(a | dice.below(256)).into(), ..tuple(dice) })
}

/// Some ports of any host.
fn ports(dice: &mut Dice) -> Made {
    let (lo, more) = (dice.below(60_000), dice.below(20));
    let [lo, hi] = [lo, lo + more].map(|p| u16::try_from(p).unwrap_or(0));
    let m = Match { proto: vec![proto::UDP], dport: vec![lo..=hi], ..Match::default() };
    (m, Tuple { dport: lo, ..tuple(dice) })
}

/// From a network to a network, of many lengths, for some ports or all: as access lists of carriers are.
fn access(dice: &mut Dice) -> Made {
    const LENGTHS: [(u8, u8); 12] = [
        (0, 32),
        (0, 24),
        (32, 0),
        (24, 0),
        (8, 28),
        (16, 24),
        (24, 16),
        (24, 24),
        (20, 32),
        (32, 24),
        (32, 32),
        (28, 32),
    ];
    let (from, to) = LENGTHS[dice.below(12) as usize];
    let (src, dst) = (0x0a00_0000 | dice.below(1 << 24), 0xc612_0000 | dice.below(1 << 17));
    let t = Tuple { src: Ipv4Addr::from_bits(src).into(), dst: Ipv4Addr::from_bits(dst).into(), ..tuple(dice) };
    let dport = match dice.below(4) {
        0 => Vec::new(),
        1 => vec![t.dport..=t.dport.saturating_add(1000)],
        _ => vec![t.dport..=t.dport],
    };
    let proto = if dport.is_empty() { Vec::new() } else { vec![proto::UDP] };
    (Match { source: net(src, from), destination: net(dst, to), proto, dport, ..Match::default() }, t)
}

/// Between two of twenty zones.
fn zones(dice: &mut Dice) -> Made {
    let (mut m, t) = service(dice);
    m.from = vec![ZoneId(u8::try_from(dice.below(20)).unwrap_or(0))];
    m.to = vec![ZoneId(u8::try_from(dice.below(20)).unwrap_or(0))];
    if dice.below(8) == 0 {
        (m.from, m.to) = (vec![ZoneId(1)], vec![ZoneId(2)]); // the flows' own
    }
    (m, t)
}

/// Groups of eight networks each to groups of eight.
fn groups(dice: &mut Dice) -> Made {
    let mut group = |base: u32, bits: u32| {
        let all: Vec<u32> = (0..8).map(|_| base | dice.below(1 << bits)).collect();
        let nets =
            all.iter().map(|&a| ipnet::Ipv4Net::new(Ipv4Addr::from_bits(a), 28).expect("length fits").trunc().into());
        (Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new(nets, [])) }), Ipv4Addr::from_bits(all[0]))
    };
    let ((source, src), (destination, dst)) = (group(0x0a00_0000, 24), group(0xc612_0000, 17));
    (Match { source, destination, ..Match::default() }, Tuple { src: src.into(), dst: dst.into(), ..tuple(dice) })
}

/// Large boxes at random, which no tree tells apart: the worst case.
fn overlapping(dice: &mut Dice) -> Made {
    let mut range = |n: u32| {
        let (a, b) = (dice.below(n), dice.below(n));
        (a.min(b), a.max(b))
    };
    let addresses = |(lo, hi): (u32, u32)| {
        let ends = (Ipv4Addr::from_bits(lo).into(), Ipv4Addr::from_bits(hi).into());
        Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([], [ends])) })
    };
    let ports = |(lo, hi): (u32, u32)| vec![u16::try_from(lo).unwrap_or(0)..=u16::try_from(hi).unwrap_or(0)];
    let (source, destination) = (addresses(range(u32::MAX)), addresses(range(u32::MAX)));
    let (sport, dport) = (ports(range(1 << 16)), ports(range(1 << 16)));
    (Match { source, destination, sport, dport, ..Match::default() }, tuple(dice))
}

/// All of them, with a rule for any flow of another class here and there.
fn mixed(dice: &mut Dice) -> Made {
    match dice.below(100) {
        0..40 => service(dice),
        40..70 => customer(dice),
        70..75 => ports(dice),
        75..95 => access(dice),
        95..99 => zones(dice),
        _ => (Match { state: vec![CtState::Invalid], ..Match::default() }, tuple(dice)),
    }
}

/// A kind of rules by name.
type Kind = (&'static str, fn(&mut Dice) -> Made);

const KINDS: [Kind; 9] = [
    ("services", service),
    ("services6", service6),
    ("customers", customer),
    ("ports", ports),
    ("access", access),
    ("zones", zones),
    ("groups", groups),
    ("mixed", mixed),
    ("overlapping", overlapping),
];

/// A policy of `count` rules of one kind, established flows first, and flows that meet them.
fn made(count: usize, kind: fn(&mut Dice) -> Made) -> (PolicySpec, Vec<Tuple>) {
    let dice = &mut Dice(42);
    let rule = |n: usize, matches, action| RuleSpec {
        name: format!("rule-{n}"),
        matches,
        action,
        log: false,
        set_mark: None,
        timeout_policy: 0,
    };
    let known = Match { state: vec![CtState::Established, CtState::Related], ..Match::default() };
    let mut rules = vec![rule(0, known, Action::Accept)];
    let mut hits = Vec::new();
    for n in 1..count {
        let (matches, tuple) = kind(dice);
        hits.push(tuple);
        rules.push(rule(n, matches, if n % 5 == 0 { Action::Drop } else { Action::Accept }));
    }
    // One in 16 meets no rule but by chance.
    let flows = (0..FLOWS).map(|_| {
        let hit = dice.below(u32::try_from(hits.len()).unwrap_or(u32::MAX)) as usize;
        if dice.below(16) == 0 { tuple(dice) } else { hits[hit] }
    });
    let flows = flows.collect();
    let spec = PolicySpec {
        generation: 1,
        zones: (0..20).map(|z| format!("zone-{z}")).collect(),
        interface_zones: vec![ZoneId(1), ZoneId(2)],
        interface_ct_zones: Vec::new(),
        interface_mss: Vec::new(),
        raw: Vec::new(),
        nat: Vec::new(),
        rules,
        default: Action::Drop,
        conntrack: ConntrackSpec::default(),
    };
    (spec, flows)
}

fn query(tuple: &Tuple) -> Query<'_> {
    Query {
        tuple,
        l4_known: true,
        tcp_flags: 0,
        state: CtState::New,
        mark: 0,
        from: ZoneId(1),
        to: Some(ZoneId(2)),
        interface_in: Some(0),
        interface_out: Some(1),
    }
}

fn classify(c: &mut Criterion) {
    let only = std::env::var("CLASSIFY_ONLY").ok();
    for (name, kind) in KINDS {
        let mut group = c.benchmark_group(name);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
        for count in [10, 100, 1_000, 10_000, 100_000] {
            if only.as_ref().is_some_and(|only| !format!("{name}/{count}/").contains(only)) {
                continue;
            }
            let (spec, flows) = made(count, kind);
            let start = Instant::now();
            let policy = Policy::compile(spec).expect("valid");
            eprintln!("{name} {count}: compiled in {:?}, {} KiB", start.elapsed(), policy.classifier_memory() / 1024);
            let mut at = 0;
            let mut next = || {
                at = (at + 1) % FLOWS;
                &flows[at]
            };
            group.bench_function(BenchmarkId::new("compiled", count), |b| {
                b.iter(|| policy.judge(&query(black_box(next())), |_| {}));
            });
            if count <= LINEAR {
                group.bench_function(BenchmarkId::new("linear", count), |b| {
                    b.iter(|| policy.judge_linear(&query(black_box(next())), |_| {}));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, classify);
criterion_main!(benches);
