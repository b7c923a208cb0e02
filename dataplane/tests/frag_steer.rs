//! Datagrams in fragments on several workers: their fragments arrive at any, in any order, among those of others.
//!
//! ```text
//!   10.0.0.2..21   lan [ worker 0 | worker 1 | … ] wan   203.0.113.1..20, 198.51.100.20 (router)
//!   10.0.0.9:80 ◄── 198.51.100.1:8000..8015, from outside and (hairpin) from inside
//! ```
//! Whatever happens, a datagram is judged once, by the worker that owns its connection, and leaves whole or not at all.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeMap;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag::{self, Mode};
use dataplane::io::PortIdx;
use dataplane::time::Nanos;

const GATEWAY: &str = "198.51.100.1";
const WEB: &str = "10.0.0.9";
const ROUTER: &str = "198.51.100.20";

/// Everything that the gateway can do to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Snat,
    Dnat,
    Hairpin,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn spec(way: Way) -> PolicySpec {
    let mut spec = usual();
    match way {
        Way::Plain => {}
        Way::Snat => spec.nat = vec![masquerade()],
        Way::Dnat | Way::Hairpin => {
            dnat(&mut spec, 8000, WEB, Some(80));
            spec.nat[0].matches.dport = vec![8000..=8015];
            if way == Way::Hairpin {
                spec.nat[0].matches.from = vec![LAN_ZONE];
                let back = NatRuleSpec { name: "back".into(), matches: from_to(LAN_ZONE, LAN_ZONE), ..masquerade() };
                spec.nat.push(back);
                spec.rules.push(rule("inside", from_to(LAN_ZONE, LAN_ZONE), Action::Accept));
            }
        }
    }
    spec
}

/// A datagram, what came of it, and who must judge it.
struct Datagram {
    port: PortIdx,
    packet: Pkt,
    pieces: Vec<Pkt>,
    whole: bool,
    judge: usize,
}

/// A question of one of many flows; a flow's second question is one of an established or a half-open connection.
fn question(way: Way, n: usize, r: &mut Random) -> (PortIdx, Pkt) {
    let data: Vec<u8> = (0..100 + r.below(5000)).map(|i| (i * 7 + n) as u8).collect();
    let (client, server) = (format!("10.0.0.{}", 10 + n % 12), format!("203.0.113.{}", 1 + n % 20));
    let sport = 4000 + n as u16;
    match way {
        Way::Dnat => (WAN, udp(&server, sport, GATEWAY, 8000 + (n % 16) as u16, &data)),
        Way::Hairpin => (LAN, udp(&client, sport, GATEWAY, 8000 + (n % 16) as u16, &data)),
        _ => {
            let p = match n % 5 {
                0 => icmp(&client, &server, 8, 0, [(n >> 8) as u8, n as u8, 0, 1], &data),
                1 => tcp(&client, sport, &server, 80, SYN, 100, 0, &data[..80]),
                2 => udp("fd00:1::2", sport, &format!("2001:db8:5::{n:x}"), 53, &data),
                _ => udp(&client, sport, &server, 53, &data),
            };
            (LAN, p)
        }
    }
}

/// Cuts it anywhere, even within its header.
fn cuts(p: &Pkt, r: &mut Random) -> Vec<usize> {
    let least = if p.src.is_ipv4() { 8 } else { 24 };
    let mut at = least + r.below(6) * 8;
    let mut cuts = Vec::new();
    while at < p.l4.len() {
        cuts.push(at);
        at += 8 + r.below(170) * 8;
    }
    cuts
}

fn tuple_of(p: &Pkt) -> dataplane::conntrack::tuple::Tuple {
    let (sport, dport) = match p.proto {
        proto::ICMP => (be16_at(&p.l4, 4), be16_at(&p.l4, 0)),
        _ => (be16_at(&p.l4, 0), be16_at(&p.l4, 2)),
    };
    tuple(&p.src.to_string(), sport, &p.dst.to_string(), dport, p.proto)
}

/// Everything arrives, mixed; gives what left, by port and identification.
fn mix(lab: &mut Lab, r: &mut Random, datagrams: &[Datagram]) -> BTreeMap<(u16, u32), Vec<Vec<u8>>> {
    // A fragment may overtake those of its own datagram and of others, but not by minutes: a hundred datagrams are under way.
    let mut frames: Vec<(usize, PortIdx, Vec<u8>)> = Vec::new();
    for (n, d) in datagrams.iter().enumerate() {
        for f in &d.pieces {
            frames.push((n * 10 + r.below(300), d.port, addressed(d.port, f).frame()));
        }
    }
    r.shuffle(&mut frames);
    frames.sort_by_key(|f| f.0);
    for (_, port, frame) in frames {
        let worker = r.below(lab.workers.len());
        lab.arrive_at(worker, port, &frame);
        for _ in 0..r.below(3) {
            let worker = r.below(lab.workers.len());
            lab.step(worker);
        }
    }
    lab.run();
    let mut left: BTreeMap<(u16, u32), Vec<Vec<u8>>> = BTreeMap::new();
    for port in [LAN, WAN] {
        for f in lab.sent(port) {
            let v6 = f[12] == 0x86;
            let id = if v6 { u32::from(be16_at(&f, 60)) } else { u32::from(be16_at(&f, 18)) };
            left.entry((port.0, id)).or_default().push(f);
        }
    }
    left
}

fn classified(lab: &Lab) -> Vec<u64> {
    lab.stats.iter().map(|s| s.classified.iter().flatten().map(|c| c.value()).sum()).collect()
}

/// Sends datagrams and asserts what must hold; gives those that left, in order.
fn judged_once(lab: &mut Lab, r: &mut Random, datagrams: &[Datagram], what: &str) -> Vec<Option<Seen>> {
    let before = classified(lab);
    let left = mix(lab, r, datagrams);
    let mut expected = before;
    let mut seen = Vec::new();
    for (n, d) in datagrams.iter().enumerate() {
        let frames: Vec<_> = left.iter().filter(|((_, id), _)| *id == n as u32).collect();
        if !d.whole {
            assert!(frames.is_empty(), "{what}: {n} is not whole and leaves");
            seen.push(None);
            continue;
        }
        expected[d.judge] += 1;
        assert_eq!(frames.len(), 1, "{what}: {n} leaves by one port; drops {:?}", lab.drops());
        let out = put_together(frames[0].1);
        assert_eq!(out.ip.len(), d.packet.ip().len(), "{what}: {n}");
        assert_eq!(
            frames[0].1.len(),
            d.pieces.len() - usize::from(d.pieces.len() > cuts_of(d)),
            "{what}: {n} as it came"
        );
        seen.push(Some(out));
    }
    assert_eq!(classified(lab), expected, "{what}: each is judged once, by its owner");
    lab.sound();
    seen
}

/// How many fragments it came in, duplicates left out.
fn cuts_of(d: &Datagram) -> usize {
    let mut places: Vec<_> = d
        .pieces
        .iter()
        .map(|p| if p.src.is_ipv4() { p.fragment.map_or(0, |f| f.0) } else { be16_at(&p.l4, 2) })
        .collect();
    places.sort_unstable();
    places.dedup();
    places.len()
}

fn story(way: Way, mode: Mode, workers: usize, seed: u64) {
    let what = format!("{way:?} {mode:?} {workers} workers, seed {seed}");
    let mut r = Random(seed * 7919 + 1);
    let defrag = defrag::Setup { mode, ..defrag::Setup::default() };
    let setup = Setup { workers, seed, defrag, arrival: Arrival::Anywhere, ..Setup::default() };
    let mut lab = Lab::with(spec(way), setup);
    let datagrams: Vec<_> = (0..60)
        .map(|n| {
            let (port, packet) = question(way, n, &mut r);
            let mut pieces = cut(&packet, n as u32, &cuts(&packet, &mut r));
            let whole = pieces.len() > 1 && (mode == Mode::Virtual || r.below(4) > 0);
            if !whole {
                let lost = r.below(pieces.len());
                pieces.remove(lost);
            } else if mode == Mode::Reassemble && r.below(4) == 0 {
                pieces.push(pieces[r.below(pieces.len())].clone());
            }
            let judge = lab.home(&tuple_of(&packet));
            Datagram { port, packet, pieces, whole, judge }
        })
        .collect();
    let out = judged_once(&mut lab, &mut r, &datagrams, &what);

    // Answers to those that arrived, and an error about each: both find the owner.
    let (back, other) = if way == Way::Hairpin || way == Way::Dnat { (LAN, datagrams[0].port) } else { (WAN, LAN) };
    let asked: Vec<_> = datagrams.iter().zip(&out).filter_map(|(d, o)| Some((d, o.as_ref()?))).collect();
    let answers: Vec<_> = asked
        .iter()
        .enumerate()
        .filter(|(_, (d, _))| matches!(d.packet.proto, proto::UDP))
        .map(|(n, (d, o))| {
            let packet = udp(&o.dst.to_string(), o.dport, &o.src.to_string(), o.sport, &[n as u8; 3000]);
            let pieces = cut(&packet, 0, &cuts(&packet, &mut r));
            Datagram { port: back, whole: true, judge: d.judge, packet, pieces }
        })
        .enumerate()
        .map(|(n, mut d)| {
            let cuts: Vec<_> = d.pieces.iter().map(|p| p.l4.len() - if p.src.is_ipv4() { 0 } else { 8 }).collect();
            let mut at = 0;
            d.pieces = cuts
                .iter()
                .map(|len| {
                    at += len;
                    piece(&d.packet, n as u32, at - len, at)
                })
                .collect();
            d
        })
        .collect();
    for (d, seen) in answers.iter().zip(judged_once(&mut lab, &mut r, &answers, &what)) {
        let seen = seen.expect("it left");
        assert_eq!(seen.payload, d.packet.l4[8..], "{what}");
    }
    if back == WAN {
        for (n, (d, o)) in asked.iter().enumerate().filter(|(_, (d, _))| d.packet.src.is_ipv4()) {
            // What the router had of it was the first fragment.
            let first = d.pieces.iter().find(|p| p.fragment.is_some_and(|f| f.0 == 0)).expect("a first fragment");
            if first.l4.len() < 40 {
                continue;
            }
            let mut quote = Pkt { l4: o.ip[20..20 + first.l4.len()].to_vec(), src: o.src, ..first.clone() };
            quote.ttl = o.ttl;
            let error = icmp(ROUTER, &o.src.to_string(), 3, 1, [0; 4], &quote.ip());
            // Without the rest, the first must hold what is quoted.
            let least = if mode == Mode::Virtual { 6 } else { 1 };
            let pieces = cut(&error, n as u32, &[8 * (least + r.below(2))]);
            let error = [Datagram { port: WAN, whole: true, judge: d.judge, packet: error, pieces }];
            let before = classified(&lab);
            for f in &error[0].pieces {
                let worker = r.below(workers);
                lab.arrive_at(worker, WAN, &addressed(WAN, f).frame());
            }
            lab.run();
            let frames = lab.sent(other);
            assert_eq!(frames.len(), 2, "{what}: {n} {:?}", lab.drops());
            let seen = put_together(&frames);
            assert_eq!(seen.dst, d.packet.src, "{what}: {n}");
            seen.assert_quotes(first);
            let by: Vec<_> = classified(&lab).iter().zip(before).map(|(a, b)| a - b).collect();
            assert_eq!((by[d.judge], by.iter().sum::<u64>()), (1, 1), "{what}: {n} {by:?}");
        }
    }
    lab.wait(Nanos::from_secs(200));
    lab.collect();
    assert_eq!(lab.pool.live(), 0, "{what}: buffers leaked");
}

#[test]
fn every_datagram_is_judged_once_by_its_owner_and_leaves_whole_or_not_at_all() {
    for seed in 0..8 {
        for way in [Way::Plain, Way::Snat, Way::Dnat, Way::Hairpin] {
            for workers in [2, 3, 4] {
                story(way, Mode::Reassemble, workers, seed);
            }
        }
    }
}

#[test]
fn the_same_holds_where_fragments_wait_for_the_first_alone() {
    for seed in 0..8 {
        for way in [Way::Plain, Way::Snat, Way::Dnat, Way::Hairpin] {
            for workers in [2, 4] {
                story(way, Mode::Virtual, workers, seed);
            }
        }
    }
}
