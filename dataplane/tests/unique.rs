//! No two live connections share a tuple, on however many workers, and whatever comes in which order.
//!
//! ```text
//!   10.0.0.2..4    masqueraded ──┐                                ┌── 203.0.113.5, .6
//!   10.0.0.66..68  strict ───────┤                                │
//!   10.0.0.130..   plain ────────┼─ lan [ 2 to 8 workers ] wan ───┤   198.51.100.1:8080..8083 → 10.0.0.9:80
//!   10.0.0.6, .8, .9: servers ───┘                                └── 198.51.100.21, .22, .23 → 10.0.0.8
//! ```
//! Few clients, few ports, and many ways to the same servers, so that reply tuples meet all the time. Packets of all kinds,
//! answers to what has left, policies, flushes, connections that the operator makes and pauses are thrown at the workers, which take
//! their turns one by one, as the seed says; one or the other sleeps for a while. After every turn of any worker all their
//! tables are compared.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::{Command, ConnFilter};
use dataplane::api::policy::*;
use dataplane::api::rules::RuleCounters;
use dataplane::api::stats::HandoverCause;
use dataplane::conntrack::limit::Limits;
use dataplane::conntrack::timeouts::Timeouts;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::defrag;
use dataplane::io::PortIdx;
use dataplane::time::Nanos;

const GATEWAY: &str = "198.51.100.1";
const WEB: &str = "10.0.0.9";
const OUTSIDE: [&str; 2] = ["203.0.113.5", "203.0.113.6"];
const CONNTRACK_MAX: usize = 256;

/// Numbers from a seed: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }
}

fn dnat_of(from: ZoneId, public: &str, dport: &[u16], to: &str, to_port: Option<u16>) -> NatRuleSpec {
    let ported = !dport.is_empty();
    NatRuleSpec {
        name: format!("{public} {dport:?}"),
        matches: Match {
            from: vec![from],
            proto: if ported { vec![proto::TCP, proto::UDP] } else { Vec::new() },
            destination: Some(only(public)),
            dport: dport.iter().map(|&p| p..=p).collect(),
            ..Match::default()
        },
        kind: NatKind::Dnat { to: ip(to).into(), port: to_port.map(ToPort::One) },
        ..masquerade()
    }
}

/// The gateway; `open`: it lets UDP pass.
fn gateway(open: bool) -> PolicySpec {
    let mut spec = helped(policy(), HelperKind::Tftp, 69);
    let source = |s: &str| Match { source: Some(only(s)), ..from_to(LAN_ZONE, WAN_ZONE) };
    let strict = NatRuleSpec {
        preserve_port: PreservePort::Strict,
        ..NatRuleSpec::new("strict", source("10.0.0.64/26"), NatKind::Snat { to: ip("198.51.100.7").into() })
    };
    spec.nat = vec![
        dnat_of(WAN_ZONE, "198.51.100.1/32", &[8080, 8081, 8082, 8083], WEB, Some(80)),
        dnat_of(LAN_ZONE, "198.51.100.1/32", &[8090, 8091], "10.0.0.6", Some(80)),
        dnat_of(WAN_ZONE, "198.51.100.21/32", &[], "10.0.0.8", None),
        dnat_of(WAN_ZONE, "198.51.100.22/32", &[], "10.0.0.8", None),
        dnat_of(WAN_ZONE, "198.51.100.23/32", &[], "10.0.0.8", None),
        strict,
        NatRuleSpec {
            // So few that workers must borrow from each other, and run out.
            ports: Some(4000..=4005),
            ..NatRuleSpec::new("out", source("10.0.0.0/26"), NatKind::Masquerade)
        },
        NatRuleSpec { matches: from_to(LAN_ZONE, LAN_ZONE), ..masquerade() },
    ];
    if !open {
        spec.rules.push(rule("no-udp", Match { proto: vec![proto::UDP], ..Match::default() }, Action::Drop));
    }
    spec.default = Action::Accept;
    spec.conntrack.limits = vec![LimitSpec { from: None, per: LimitPer::Source { v4: 32, v6: 64 }, max: 1000 }];
    for name in Timeouts::NAMES {
        let seconds = if name.starts_with("tcp") || name.starts_with("expect") { 3 } else { 1 };
        assert!(spec.conntrack.timeouts.set(name, Nanos::from_secs(seconds)));
    }
    spec
}

/// A packet that may begin a connection, and the port that it comes in by.
fn question(dice: &mut Dice) -> (PortIdx, Pkt) {
    let port = dice.of(&[4000, 4001, 4002, 4003]);
    let outside = dice.of(&OUTSIDE);
    let (from, src, dst, dport) = match dice.below(10) {
        0..=2 => (WAN, outside, GATEWAY, dice.of(&[8080, 8081, 8082, 8083])),
        3 => (WAN, outside, dice.of(&["198.51.100.21", "198.51.100.22", "198.51.100.23"]), 80),
        4 => (LAN, dice.of(&["10.0.0.66", "10.0.0.67", "10.0.0.68"]), outside, dice.of(&[53, 69])),
        5 => (LAN, dice.of(&["10.0.0.2", "10.0.0.3", "10.0.0.4"]), outside, dice.of(&[53, 69])),
        6 => (LAN, dice.of(&["10.0.0.2", "10.0.0.3", "10.0.0.130"]), GATEWAY, dice.of(&[8090, 8091])),
        7 => (LAN, "10.0.0.130", outside, 53),
        // The tuples of answers, and of questions without translation to the same servers.
        8 => {
            let (src, dst) = (dice.of(&[WEB, "10.0.0.8", "10.0.0.6"]), dice.of(&[outside, outside, GATEWAY]));
            return (LAN, packet(dice, (src, 80), (dst, port)));
        }
        _ => (WAN, outside, dice.of(&[WEB, "10.0.0.8"]), 80),
    };
    (from, packet(dice, (src, port), (dst, dport)))
}

fn packet(dice: &mut Dice, (src, sport): (&str, u16), (dst, dport): (&str, u16)) -> Pkt {
    match dice.below(12) {
        _ if dport == 69 => udp(src, sport, dst, 69, b"\0\x01file\0octet\0"),
        0..=3 => tcp(src, sport, dst, dport, dice.of(&[SYN, SYN, SYN, RST]), 1, 0, b""),
        4..=7 => udp(src, sport, dst, dport, b"question"),
        8 => ping(src, dst, dice.of(&[7, 8]), 1),
        9 => other(src, dst, dice.of(&[proto::GRE, 50]), b"\0\0\x08\0payload"),
        10 => udplite(src, sport, dst, dport, 8, b"question"),
        _ => udp(src, sport, dst, dport, &[7; 3000]),
    }
}

/// What answers a packet that has left.
fn answer(seen: &Seen, dice: &mut Dice) -> Option<Pkt> {
    let (src, dst) = (seen.dst.to_string(), seen.src.to_string());
    let (sport, dport) = (seen.dport, seen.sport);
    Some(match seen.proto {
        proto::TCP if seen.tcp_flags == SYN => {
            tcp(&src, sport, &dst, dport, dice.of(&[SYN | ACK, RST | ACK]), 9, 2, b"")
        }
        proto::TCP => tcp(&src, sport, &dst, dport, RST | ACK, 10, 2, b""),
        proto::UDP if sport == 69 => udp(&src, dice.of(&[7000, 7001]), &dst, dport, b"data"),
        proto::UDP if seen.fragment.is_none() => udp(&src, sport, &dst, dport, b"answer"),
        proto::UDPLITE => udplite(&src, sport, &dst, dport, 8, b"answer"),
        proto::ICMP if dport == 8 << 8 || seen.dport == 8 << 8 => pong(&src, &dst, seen.sport, 1),
        proto::GRE | 50 => other(&src, &dst, seen.proto, b"\0\0\x08\0payload"),
        _ => return None,
    })
}

/// A tuple, as maps have it.
type Key = (IpAddr, IpAddr, u8, u16, u16);

struct World {
    /// Which one this is.
    run: String,
    lab: Lab,
    dice: Dice,
    /// Answers under way, with the port that they will come in by.
    answers: Vec<(PortIdx, Pkt)>,
    /// Who sleeps, and for how many turns of others.
    asleep: Option<(usize, usize)>,
    generation: u64,
    /// What the run has met.
    met: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(workers: usize, seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let arrival = dice.of(&[Arrival::Rss, Arrival::Anywhere]);
        let mode = dice.of(&[defrag::Mode::Reassemble, defrag::Mode::Virtual]);
        let setup = Setup {
            workers,
            arrival,
            seed,
            conntrack_max: CONNTRACK_MAX,
            defrag: defrag::Setup { mode, ..defrag::Setup::default() },
            ..Setup::default()
        };
        let lab = Lab::with(gateway(true), setup);
        let run = format!("{workers} workers, seed {seed}");
        Self { run, lab, dice, answers: Vec::new(), asleep: None, generation: 1, met: BTreeMap::new() }
    }

    fn note(&mut self, what: &'static str, n: usize) {
        *self.met.entry(what).or_default() += n;
    }

    /// One thing happens.
    fn act(&mut self) {
        match self.dice.below(1000) {
            0..=449 => self.turn(),
            450..=799 => {
                let (port, p) = question(&mut self.dice);
                self.arrive(port, p);
            }
            800..=929 if !self.answers.is_empty() => {
                let n = self.dice.below(self.answers.len());
                let (port, p) = self.answers.swap_remove(n);
                self.arrive(port, p);
            }
            930..=969 => {
                let time = self.dice.of(&[1, 10, 50, 101, 400]);
                self.lab.now = self.lab.now + Nanos::from_millis(time);
            }
            970..=979 => {
                let workers = self.lab.workers.len();
                self.asleep = Some((self.dice.below(workers), self.dice.below(60)));
            }
            980..=985 => {
                let filter = ConnFilter { replied: Some(self.dice.percent(50)), ..ConnFilter::default() };
                let worker = self.dice.below(self.lab.workers.len());
                self.lab.tell(worker, Command::Flush { cursor: 0, filter });
            }
            986..=988 => self.reload(),
            989..=995 => self.create(),
            _ => {}
        }
        self.collect();
    }

    fn arrive(&mut self, port: PortIdx, p: Pkt) {
        let frames = if p.l4.len() > 1480 { p.fragments(1480) } else { vec![p] };
        for f in frames {
            let f = addressed(port, &f).frame();
            if self.dice.percent(20) {
                let worker = self.dice.below(self.lab.workers.len());
                self.lab.arrive_at(worker, port, &f);
            } else {
                self.lab.arrive(port, &f);
            }
        }
    }

    /// A worker has its turn, unless it is the one who sleeps.
    fn turn(&mut self) {
        let worker = self.dice.below(self.lab.workers.len());
        match &mut self.asleep {
            Some((who, _)) if *who == worker => return,
            Some((_, 0)) => self.asleep = None,
            Some((_, left)) => *left -= 1,
            None => {}
        }
        self.lab.step(worker);
        self.check();
    }

    /// The workers hear of a new policy one after the other.
    fn reload(&mut self) {
        self.generation += 1;
        let spec = PolicySpec { generation: self.generation, ..gateway(self.dice.percent(70)) };
        let policy = Arc::new(Policy::compile(spec).expect("policy"));
        let workers = self.lab.workers.len();
        for worker in 0..workers {
            self.lab.tell(
                worker,
                Command::Policy {
                    policy: Arc::clone(&policy),
                    rules: Arc::new(RuleCounters::new(policy.spec())),
                    limits: Box::new(Limits::new(&policy, CONNTRACK_MAX, workers)),
                },
            );
        }
    }

    /// The operator makes a connection like those that packets make.
    fn create(&mut self) {
        let (src, port) = (self.dice.of(&OUTSIDE), self.dice.of(&[4000, 4001, 4002, 4003]));
        let asks = self.dice.of(&[8080, 8081, 8082, 8083]);
        let original = tuple(src, port, GATEWAY, asks, proto::UDP);
        let spec = made(original, tuple(WEB, 80, src, port, proto::UDP));
        let home = self.lab.home(&original);
        self.lab.tell(home, Command::Create { conns: vec![spec], refused: Vec::with_capacity(1) });
    }

    /// What has left is answered, some time, mostly.
    fn collect(&mut self) {
        for (port, seen) in self.lab.collect() {
            if self.dice.percent(60)
                && self.answers.len() < 64
                && let Some(p) = answer(&seen, &mut self.dice)
            {
                self.answers.push((port, p));
            }
        }
    }

    /// No tuple is two connections'; each leads to its owner; and none is in two places at its home.
    fn check(&mut self) {
        let owned = self.lab.owned();
        let run = &self.run;
        let mut whose: BTreeMap<Key, (u16, Tuple)> = BTreeMap::new();
        let (mut signposted, mut moved, mut borrowed) = (0, 0, 0);
        for c in &owned {
            moved += usize::from(c.original.dst == ip(GATEWAY) && c.reply.dport != c.original.sport);
            let tuples = if c.original == c.reply { &[c.original][..] } else { &[c.original, c.reply] };
            for t in tuples {
                let key = (t.src, t.dst, t.proto, t.sport, t.dport);
                if let Some((worker, other)) = whose.insert(key, (c.worker, c.original)) {
                    panic!("{run}: {t} is of two connections, {other} at worker {worker} and {c:?}");
                }
                let home = self.lab.home(t);
                let post = self.lab.workers[home].path().signposts.owner(t);
                let expected = (home != usize::from(c.worker)).then_some(c.worker);
                assert_eq!(post, expected, "{run}: the signpost at {home} for {t} of {c:?}");
                signposted += usize::from(expected.is_some());
                borrowed +=
                    usize::from(expected.is_some() && *t == c.reply && t.dst == ip(GATEWAY) && c.original.has_ports());
            }
        }
        let pending = self.lab.workers.iter().map(|w| w.path().pending()).sum();
        self.note("signposts", signposted);
        self.note("other ports", moved);
        self.note("borrowed ports", borrowed);
        self.note("pending", pending);
    }

    /// All that is under way arrives, and all connections' time passes. Nothing is left.
    fn end(mut self) -> BTreeMap<&'static str, usize> {
        self.asleep = None;
        for _ in 0..50 {
            let workers = self.lab.workers.len();
            for worker in 0..workers {
                self.lab.step(worker);
                self.check();
            }
        }
        self.lab.run();
        self.lab.sound();
        self.lab.wait(Nanos::from_secs(10));
        self.lab.collect();
        let (lab, run) = (&self.lab, &self.run);
        let paths = || lab.workers.iter().map(|w| w.path());
        assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0), "{run}: connections, signposts, ports");
        assert_eq!(paths().map(|p| p.pending()).sum::<usize>(), 0, "{run}: reservations");
        assert_eq!(
            paths().map(|p| p.expectations.count() + p.announced.count()).sum::<usize>(),
            0,
            "{run}: expectations"
        );
        assert_eq!(paths().map(|p| p.limits.sources()).sum::<usize>(), 0, "{run}: places within limits");
        assert_eq!(lab.pool.live(), 0, "{run}: buffers");
        for (what, reason) in [
            ("clashes", DropReason::NatClash),
            ("no port", DropReason::NatNoPort),
            ("timeouts", DropReason::SignpostTimeout),
            ("own tuple taken", DropReason::SignpostClash),
        ] {
            let n = self.lab.drop_count(reason) as usize;
            self.note(what, n);
        }
        for (what, cause) in [("stale", HandoverCause::Stale), ("expected", HandoverCause::Expectation)] {
            let n = self.lab.handovers(cause) as usize;
            self.note(what, n);
        }
        self.met
    }
}

fn run(workers: usize, seed: u64, acts: usize) -> BTreeMap<&'static str, usize> {
    let mut world = World::new(workers, seed);
    for _ in 0..acts {
        world.act();
    }
    world.end()
}

#[test]
fn no_two_live_connections_share_a_tuple_under_any_interleaving() {
    let mut met: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 1..=RUNS {
        let workers = [2, 3, 4, 8][seed as usize % 4];
        for (what, n) in run(workers, seed, 3000) {
            *met.entry(what).or_default() += n;
        }
    }
    for (what, n) in &met {
        assert!(*n > 0, "the runs have met no {what}: {met:?}");
    }
}

/// Runs of the simulation; each is another story.
const RUNS: u64 = 60;
