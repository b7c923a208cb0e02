//! Any rules, any packets, any reloads and changes of addresses, drawn from a seed: at the end nothing is left.
//!
//! *Sources*: what must hold is the lab's [`Lab::sound`] and that ports, signposts and connections are all given back.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::{Command, ConnFilter};
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

/// Stories; each is another one.
const RUNS: u64 = 120;

struct Rng(u64);
impl Rng {
    fn n(&mut self, m: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % m
    }
}

fn net(s: &str) -> ipnet::IpNet {
    s.parse().expect("prefix")
}

fn rules(r: &mut Rng) -> Vec<NatRuleSpec> {
    let mut all = Vec::new();
    let n = 1 + r.n(5);
    for i in 0..n {
        let zone = |r: &mut Rng| match r.n(4) {
            0 => vec![],
            1 => vec![LAN_ZONE],
            2 => vec![WAN_ZONE],
            _ => vec![LAN_ZONE, WAN_ZONE],
        };
        let mut m = Match { from: zone(r), ..Match::default() };
        let v6 = r.n(5) == 0;
        let lan_net = if v6 { "fd00:1::/120" } else { "10.0.0.0/28" };
        let out_net = if v6 { "2001:db8:99::/120" } else { "192.0.2.0/28" };
        let p = |a: &str, b: &str, c: &str, d: &str| Pool::new([(ip(a), ip(b)), (ip(c), ip(d))]).expect("a pool");
        let pub_pool = p("198.51.100.1", "198.51.100.3", "2001:db8::1", "2001:db8::3");
        let lan_pool = p("10.0.0.2", "10.0.0.4", "fd00:1::2", "fd00:1::4");
        let port = match r.n(4) {
            0 => Some(ToPort::One(53)),
            1 => Some(ToPort::Shift { from: 50, to: 60 }),
            _ => None,
        };
        if r.n(3) == 0 {
            m.destination =
                Some(only(["198.51.100.1/32", "198.51.100.0/24", "192.0.2.0/28", "2001:db8::/64"][r.n(4) as usize]));
        }
        if r.n(4) == 0 {
            m.proto = vec![proto::UDP];
        }
        let kind = match r.n(9) {
            0 => NatKind::None,
            1 => {
                m.to = zone(r);
                NatKind::Masquerade
            }
            2 => {
                m.to = zone(r);
                NatKind::Snat { to: pub_pool }
            }
            3 | 4 => NatKind::Dnat { to: lan_pool, port },
            5 => NatKind::Twice { to: lan_pool, port, source: (r.n(2) == 0).then_some(pub_pool) },
            6 => NatKind::Redirect { port },
            7 => {
                m.to = zone(r);
                if r.n(2) == 0 {
                    m.source = Some(only(lan_net));
                }
                NatKind::Netmap { from: net(lan_net), to: net(out_net), side: NetmapSide::Source }
            }
            _ => NatKind::Netmap { from: net(out_net), to: net(lan_net), side: NetmapSide::Destination },
        };
        let mut rule = NatRuleSpec::new(&format!("r{i}"), m, kind);
        rule.ports = match r.n(4) {
            0 => Some(50..=53),
            1 => Some(50..=250),
            _ => None,
        };
        rule.preserve_port = [PreservePort::Auto, PreservePort::Strict, PreservePort::Never][r.n(3) as usize];
        rule.persistent = r.n(2) == 0;
        rule.on_reload = if r.n(2) == 0 { OnReload::End } else { OnReload::Keep };
        rule.hairpin = if r.n(3) == 0 { Hairpin::Off } else { Hairpin::Auto };
        all.push(rule);
    }
    all
}
fn open(r: &mut Rng) -> PolicySpec {
    let mut s = policy();
    s.default = Action::Accept;
    if r.n(4) == 0 {
        s.rules.push(rule(
            "no",
            Match { proto: vec![proto::UDP], dport: vec![52..=52], ..Match::default() },
            Action::Drop,
        ));
    }
    s.nat = rules(r);
    s
}
fn pkt(r: &mut Rng) -> (dataplane::io::PortIdx, Pkt) {
    let lan = r.n(3) != 0;
    let v6 = r.n(4) == 0;
    let pick = |r: &mut Rng, l: &[&str]| l[r.n(l.len() as u64) as usize].to_string();
    let lans: &[&str] =
        if v6 { &["fd00:1::2", "fd00:1::3", "fd00:1::4"] } else { &["10.0.0.2", "10.0.0.3", "10.0.0.4"] };
    let wans: &[&str] =
        if v6 { &["2001:db8:5::5", "2001:db8:5::6"] } else { &["203.0.113.5", "203.0.113.6", "198.51.100.20"] };
    let publics: &[&str] = if v6 {
        &["2001:db8::1", "2001:db8::2", "2001:db8:99::2", "fd00:1::1"]
    } else {
        &["198.51.100.1", "198.51.100.2", "192.0.2.2", "192.0.2.3", "10.0.0.1"]
    };
    let src = if lan { pick(r, lans) } else { pick(r, wans) };
    let dst = match r.n(3) {
        0 => pick(r, publics),
        1 => pick(r, wans),
        _ => pick(r, lans),
    };
    let (sp, dp) = (50 + r.n(4) as u16, 50 + r.n(4) as u16);
    let p = match r.n(8) {
        0..=3 => udp(&src, sp, &dst, dp, b"x"),
        4 => tcp(&src, sp, &dst, dp, SYN, 1, 0, b""),
        5 => ping(&src, &dst, sp, 1),
        6 => other(&src, &dst, 50, b"12345678"),
        _ => udplite(&src, sp, &dst, dp, 0, b"x"),
    };
    (if lan { LAN } else { WAN }, p)
}

/// The gateway's addresses and routes, or some of them.
fn ways(r: &mut Rng) -> dataplane::api::FibSpec {
    let mut f = fib();
    match r.n(4) {
        0 => f.addresses[1].1 = net("198.51.100.2/24"),
        1 => drop(f.addresses.remove(0)),
        2 => {
            f.addresses.push((0, net("198.51.100.1/24")));
            f.addresses.remove(1);
        }
        _ => {}
    }
    if r.n(3) == 0 {
        f.routes.retain(|x| x.prefix.prefix_len() != 0);
    }
    f
}

fn run(seed: u64) {
    let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let workers = [1, 2, 3, 4][r.n(4) as usize];
    let mut lab = Lab::with(open(&mut r), Setup { workers, seed, ..Setup::default() });
    for a in ["fd00:1::3", "fd00:1::4", "10.0.0.3", "10.0.0.4"] {
        lab.neighbour(0, a, true);
    }
    for _ in 0..200 {
        match r.n(40) {
            0 => {
                let policy = open(&mut r);
                lab.reload(policy);
            }
            1 => {
                let ways = ways(&mut r);
                lab.reroute(ways);
            }
            2 => lab.command(|| Command::Sweep { cursor: 0 }),
            3 => drop(lab.flush(ConnFilter { proto: Some(proto::UDP), ..ConnFilter::default() })),
            4 => lab.wait(Nanos::from_secs(20)),
            _ => {
                let (port, p) = pkt(&mut r);
                lab.send(port, &p);
            }
        }
    }
    lab.reroute(fib());
    lab.flush(ConnFilter::default());
    lab.wait(Nanos::from_secs(10));
    lab.collect();
    let uses = lab.stats.iter().flat_map(|s| s.nat.iter());
    let left = uses.flat_map(|n| &n.leases).filter(|l| l.value() != 0).count();
    assert_eq!((lab.entries(), lab.signposts(), left), (0, 0, 0), "seed {seed}, {workers} workers");
    assert_eq!(lab.pool.live(), 0, "seed {seed}: buffers");
}

#[test]
fn nothing_is_left_of_any_rules_and_any_packets() {
    for seed in 1..=RUNS {
        run(seed);
    }
}
