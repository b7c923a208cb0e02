//! Usual packets of known connections take a short way. Whatever comes, it must end as the long way does: same frames in the
//! same order within each connection, same counters, same connections. Order across connections may differ, and with it whom early
//! drop takes, which is why no table is full here.
//!
//! *Sources*: the long way itself, which the other tests and the kernel hold to account. A raw rule that looks at TCP flags
//! has every packet take it.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeMap;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::ConnFilter;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::filter::Policy;
use dataplane::io::{PortIdx, RxChecksum};
use dataplane::packet::L4;
use dataplane::parse::fast::Station;
use dataplane::parse::{self, Parsed, Receiver};
use dataplane::time::Nanos;

struct Rng(u64);

impl Rng {
    fn n(&mut self, m: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % m
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.n(all.len() as u64) as usize]
    }
}

/// A rule that no packet matches, and that has raw look at each.
fn long_way(mut spec: PolicySpec) -> PolicySpec {
    let matches = Match { proto: vec![proto::TCP], tcp_flags: Some((0xff, 0xff)), ..Match::default() };
    spec.raw.push(RawRuleSpec { name: "never".into(), matches, action: RawAction::Drop });
    spec
}

fn a_policy(r: &mut Rng) -> PolicySpec {
    let mut spec = match r.n(4) {
        0 => usual(),
        1 => translating(vec![masquerade()]),
        2 => {
            let mut spec = usual();
            dnat(&mut spec, 53, "10.0.0.3", Some(153));
            spec
        }
        _ => PolicySpec { default: Action::Accept, ..policy() },
    };
    if r.n(4) == 0 {
        spec.conntrack.checksum = false;
    }
    if r.n(4) == 0 {
        spec.rules.insert(0, RuleSpec { set_mark: Some((1, 1)), ..rule("mark", Match::default(), Action::Continue) });
    }
    if r.n(3) == 0 {
        let matches = Match { proto: vec![proto::UDP], dport: vec![54..=54], ..Match::default() };
        spec.raw.push(RawRuleSpec { name: "notrack".into(), matches, action: RawAction::Notrack });
    }
    if r.n(4) == 0 {
        spec.interface_ct_zones = vec![7, 7];
    }
    spec
}

/// One packet among few hosts and ports, so that connections are met again; now and then something is odd about it.
fn a_packet(r: &mut Rng) -> (PortIdx, Vec<u8>) {
    let lan = r.n(2) == 0;
    let v6 = r.n(4) == 0;
    let inside: &[&str] = if v6 { &["fd00:1::2", "fd00:1::3"] } else { &["10.0.0.2", "10.0.0.3"] };
    let outside: &[&str] =
        if v6 { &["2001:db8:5::5", "2001:db8:5::6"] } else { &["203.0.113.5", "198.51.100.20", "198.51.100.1"] };
    let (src, dst) = if lan { (r.of(inside), r.of(outside)) } else { (r.of(outside), r.of(inside)) };
    let dst = if !lan && !v6 && r.n(2) == 0 { "198.51.100.1" } else { dst };
    let (client, server) = (1000 + r.n(3) as u16, 53 + r.n(2) as u16);
    let (sport, dport) = if lan { (client, server) } else { (server, client) };
    let (sport, dport) = if r.n(8) == 0 { (dport, sport) } else { (sport, dport) };
    let payload = &[7u8; 64][..r.n(40) as usize];
    let flags = r.of(&[SYN, SYN | ACK, ACK, ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
    let (seq, ack) = (1 + r.n(3) as u32, 1 + r.n(3) as u32);
    let mut p = match r.n(10) {
        0..=4 => udp(src, sport, dst, dport, payload),
        5..=7 => tcp(src, sport, dst, dport, flags, seq, ack, payload),
        8 => ping(src, dst, 9, 1),
        _ => udp(src, sport, dst, dport, &[1; 1600][..1400 + r.n(150) as usize]),
    };
    if r.n(8) == 0 && p.proto == proto::TCP {
        p = p.tcp_with(500, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    match r.n(30) {
        0 => p.ttl = r.n(3) as u8,
        1 => p.l4[6] ^= 1,
        2 if !v6 => p.fragment = Some((8, true)),
        3 if p.proto == proto::UDP => p.l4[6..8].fill(0),
        4 if p.proto == proto::UDP => p.l4[5] ^= 3,
        5 => p.dont_fragment = true,
        _ => {}
    }
    let port = if lan { LAN } else { WAN };
    let mut p = addressed(port, &p);
    if r.n(40) == 0 {
        p.dst_mac[5] ^= 1;
    }
    let mut frame = p.frame();
    match r.n(30) {
        0 => frame.truncate(frame.len() - 1),
        1 => frame[14] ^= 0x10,
        2 => frame[24] ^= 1,
        _ if frame.len() < 60 => frame.resize(60, 0x55),
        _ => {}
    }
    (port, frame)
}

/// TCP connections from lan to wan that talk as stacks do: their next sequence numbers, client's and server's.
#[derive(Default)]
struct Talks(BTreeMap<(u8, u16), (u32, u32)>);

impl Talks {
    /// What comes next of one of them; often a segment of data or an acknowledgement, now and then its end or a repetition.
    /// Answers go to where its client is seen, which the policy says.
    fn next(&mut self, r: &mut Rng, seen_at: &str) -> Vec<(PortIdx, Vec<u8>)> {
        let (host, port) = (2 + r.n(2) as u8, 2000 + r.n(3) as u16);
        let client = format!("10.0.0.{host}");
        let server = "203.0.113.9";
        // Masquerade keeps free ports; both hosts use other ones.
        let port = port + 10 * u16::from(host);
        let back = if seen_at.is_empty() { client.as_str() } else { seen_at };
        let up = |flags, seq, ack, data: &[u8]| {
            (LAN, addressed(LAN, &tcp(&client, port, server, 443, flags, seq, ack, data)).frame())
        };
        let down = |flags, seq, ack, data: &[u8]| {
            (WAN, addressed(WAN, &tcp(server, 443, back, port, flags, seq, ack, data)).frame())
        };
        let Some((c, s)) = self.0.get_mut(&(host, port)) else {
            let (c, s) = (r.n(1 << 32) as u32, r.n(1 << 32) as u32);
            self.0.insert((host, port), (c.wrapping_add(1), s.wrapping_add(1)));
            return vec![
                up(SYN, c, 0, b""),
                down(SYN | ACK, s, c.wrapping_add(1), b""),
                up(ACK, c.wrapping_add(1), s.wrapping_add(1), b""),
            ];
        };
        let data = &[9u8; 700][..1 + r.n(600) as usize];
        match r.n(20) {
            0 => {
                let end = vec![up(FIN | ACK, *c, *s, b""), down(FIN | ACK, *s, c.wrapping_add(1), b"")];
                let last = up(ACK, c.wrapping_add(1), s.wrapping_add(1), b"");
                self.0.remove(&(host, port));
                end.into_iter().chain([last]).collect()
            }
            1 => vec![up(ACK, c.wrapping_sub(100_000), *s, b"")], // stray
            2 => vec![down(RST, s.wrapping_add(1 << 30), 0, b"")], // forged
            3..=10 => {
                let segment = up(ACK | PSH, *c, *s, data);
                *c = c.wrapping_add(data.len() as u32);
                vec![segment, down(ACK, *s, *c, b"")]
            }
            _ => {
                let segment = down(ACK, *s, *c, data);
                *s = s.wrapping_add(data.len() as u32);
                vec![segment, up(ACK, *c, *s, b"")]
            }
        }
    }
}

/// Frames by egress and connection, in their order.
fn sorted(lab: &mut Lab) -> BTreeMap<(u16, u8, Vec<u8>), Vec<Vec<u8>>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for port in [LAN, WAN, LAN_TWIN, WAN_TWIN] {
        for frame in lab.sent(port) {
            let l3 = if frame[12] == 0x81 { 18 } else { 14 };
            // Protocol, addresses and ports.
            let (proto, from, to) = if frame[l3] >> 4 == 4 { (9, 12, 24) } else { (6, 8, 44) };
            let ends = frame.get(l3 + from..l3 + to).unwrap_or(&frame[l3..]).to_vec();
            all.entry((port.0, frame[l3 + proto], ends)).or_default().push(frame);
        }
    }
    all
}

fn counted(lab: &mut Lab) -> String {
    let s = &lab.stats[0];
    let classified: Vec<_> = s.classified.iter().flatten().map(|c| c.value()).collect();
    let ports: Vec<_> =
        s.ports.iter().map(|p| [&p.rx_packets, &p.rx_bytes, &p.tx_packets, &p.tx_bytes].map(|c| c.value())).collect();
    let rules = lab.workers[0].path().rules.totals();
    let conns: std::collections::BTreeSet<_> = lab.conns().iter().map(|c| format!("{c:?}")).collect();
    format!("{:?}\n{classified:?}\n{ports:?}\n{rules:?}\n{conns:#?}", lab.drops())
}

/// Packets of the story that took the short way: UDP, TCP.
fn both_ways_agree(seed: u64) -> [u64; 2] {
    let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let spec = a_policy(&mut r);
    let vlan = (r.n(3) == 0).then_some(5);
    let setup = Setup { seed, lan_vlan: vlan, wan_mtu: if r.n(3) == 0 { 1450 } else { 1500 }, ..Setup::default() };
    let mut short = Lab::with(spec.clone(), setup.clone());
    let mut long = Lab::with(long_way(spec), setup);
    let tag = |port, frame: &[u8]| match vlan {
        Some(id) if port == LAN => [&frame[..12], &[0x81, 0, 0, id as u8], &frame[12..]].concat(),
        _ => frame.to_vec(),
    };
    let mut talks = Talks::default();
    let (mut fast, mut before) = ([0; 2], 0);
    for turn in 0..150 {
        let mut kind = 0;
        match r.n(25) {
            0 => {
                let spec = a_policy(&mut r);
                short.reload(spec.clone());
                long.reload(long_way(spec));
            }
            1 => {
                let time = Nanos::from_millis(r.of(&[500, 3000, 29_000, 31_000, 121_000]));
                short.wait(time);
                long.wait(time);
            }
            2 => {
                let there = r.n(2) == 0;
                short.neighbour(0, "10.0.0.3", there);
                long.neighbour(0, "10.0.0.3", there);
            }
            3 => {
                let filter = ConnFilter { proto: Some(proto::TCP), ..ConnFilter::default() };
                assert_eq!(short.flush(filter), long.flush(filter), "seed {seed}");
            }
            n => {
                kind = usize::from(n > 14);
                let masqueraded = !short.workers[0].path().policy.spec().nat.is_empty();
                let seen_at = if masqueraded { "198.51.100.1" } else { "" };
                let frames: Vec<_> = match kind {
                    0 => (0..1 + r.n(20)).map(|_| a_packet(&mut r)).collect(),
                    _ => (0..1 + r.n(8)).flat_map(|_| talks.next(&mut r, seen_at)).collect(),
                };
                for (port, frame) in &frames {
                    let frame = tag(*port, frame);
                    short.arrive(*port, &frame);
                    long.arrive(*port, &frame);
                }
                short.run();
                long.run();
            }
        }
        assert_eq!(sorted(&mut short), sorted(&mut long), "seed {seed}, turn {turn}: frames");
        assert_eq!(counted(&mut short), counted(&mut long), "seed {seed}, turn {turn}: counters and connections");
        let now = short.stats[0].fast_packets.value();
        fast[kind] += now - before;
        before = now;
        assert_eq!(long.stats[0].fast_packets.value(), 0);
    }
    short.sound();
    fast
}

#[test]
fn the_short_way_ends_as_the_long_one() {
    let mut fast = [0; 2];
    for seed in 1..=150 {
        let [mixed, talks] = both_ways_agree(seed);
        fast = [fast[0] + mixed, fast[1] + talks];
    }
    // Else this would hold of a gateway without a short way.
    assert!(fast[0] > 2_000 && fast[1] > 10_000, "{fast:?} packets took the short way");
}

/// Whatever has a sight, the parser reads alike; and most usual frames have one.
#[test]
fn what_is_seen_at_first_sight_is_what_the_parser_reads() {
    let mut r = Rng(1);
    let station = Station { mac: LAN_MAC, vlan: None, verify: true, ct_zone: 3, ipv6: true };
    let receiver = Receiver { port: LAN, mac: LAN_MAC, vlan: None, verify: true };
    let mut seen = 0;
    for _ in 0..200_000 {
        let (port, mut frame) = a_packet(&mut r);
        if port != LAN {
            continue;
        }
        if r.n(4) == 0 {
            let at = r.n(frame.len() as u64) as usize;
            frame[at] ^= 1 << r.n(8);
        }
        let v4 = |s: parse::fast::Sight<dataplane::conntrack::tuple::Key4>| {
            (dataplane::conntrack::tuple::Key::tuple(&s.key), s.len, s.tcp)
        };
        let v6 = |s: parse::fast::Sight<dataplane::conntrack::tuple::Key6>| {
            (dataplane::conntrack::tuple::Key::tuple(&s.key), s.len, s.tcp)
        };
        let Some((tuple, len, tcp)) = station.look(&frame, RxChecksum::Unknown, v4, v6) else { continue };
        seen += 1;
        let Ok(Parsed::Ip(mut p)) = parse::frame(&frame, &receiver, RxChecksum::Unknown) else {
            panic!("the parser refuses {frame:02x?}");
        };
        p.set_ct_zone(3);
        assert_eq!((p.tuple, p.ip_len), (tuple, u32::from(len)), "{frame:02x?}");
        assert_eq!(p.fragment, None);
        assert!(matches!((p.kind, tcp), (L4::Udp, false) | (L4::Tcp(_), true)), "{:?}", p.kind);
        assert!(p.ttl > 1 && !p.group);
    }
    assert!(seen > 30_000, "only {seen}");
}

#[test]
fn only_a_raw_rule_that_looks_at_flags_closes_the_short_way() {
    let open = |spec| Policy::compile(spec).expect("policy").raw_is_by_tuple();
    let mut notrack = usual();
    let matches = Match { proto: vec![proto::UDP], dport: vec![53..=53], ..Match::default() };
    notrack.raw.push(RawRuleSpec { name: "dns".into(), matches, action: RawAction::Notrack });
    assert_eq!([open(usual()), open(notrack), open(long_way(usual()))], [true, true, false]);
}
