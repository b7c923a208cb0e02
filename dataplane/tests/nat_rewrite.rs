//! What translation leaves of a packet: of every protocol, with options and extension headers, and of errors with what they quote,
//! cut at every length. Checksums are compared with `common/right.rs`, which shares nothing with the gateway.
//!
//! The second half is about the whole path, for every kind of rule: what comes back to the client is what the server sent.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::oracle::{self, Input};
use common::pkt::*;
use common::right::{assert_right, crc32c, is_right, ones};
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::io::PortIdx;
use dataplane::nat::rewrite::{self, ErrorTarget};
use dataplane::packet::L4;
use dataplane::parse::checksum;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";
const GATEWAY6: &str = "2001:db8::1";

fn dccp(src: &str, sport: u16, dst: &str, dport: u16, payload: &[u8]) -> Pkt {
    let l4 = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[4, 0, 0, 0], &[0; 8], payload].concat();
    let mut p = other(src, dst, proto::DCCP, &l4);
    let pseudo = checksum::pseudo(p.src, p.dst, p.proto, l4.len());
    let sum = !checksum::fold(checksum::add(pseudo, &l4));
    p.l4[6..8].copy_from_slice(&sum.to_be_bytes());
    p
}

/// A right packet of every protocol, some with payloads of odd length.
fn packets(src: &str, dst: &str) -> Vec<Pkt> {
    let call = [0x30, 1, 0x88, 0x0b, 0, 4, 0x12, 0x34, 0, 0, 0, 1, b'd'];
    vec![
        tcp(src, 4000, dst, 80, SYN, 7, 0, b"").with_options(&[2, 4, 5, 0xb4, 4, 2, 1, 1]),
        tcp(src, 4000, dst, 80, ACK | PSH, 8, 9, b"some text"),
        udp(src, 4000, dst, 53, b"question"),
        udp(src, 4000, dst, 53, b"question").without_checksum(),
        udplite(src, 4000, dst, 53, 0, b"all of it"),
        udplite(src, 4000, dst, 53, 8, b"header alone"),
        udplite(src, 4000, dst, 53, 11, b"a part of it"),
        sctp(src, 4000, dst, 80, 9, &[chunk(0, 3, b"twelve bytes"), chunk(3, 0, &[0; 12])]),
        dccp(src, 4000, dst, 80, b"request"),
        ping(src, dst, 7, 1),
        pong(src, dst, 7, 1),
        other(src, dst, proto::GRE, &[0, 0, 8, 0, 1, 2, 3, 4, 5]),
        other(src, dst, proto::GRE, &[0x20, 0, 8, 0, 0, 0, 0, 7, 1, 2, 3, 4]),
        other(src, dst, proto::GRE, &call),
        other(src, dst, 50, b"secret of odd length"),
        other(src, dst, 89, b""),
    ]
}

/// The IP packet of `p` plain, and with options or extension headers.
fn with_headers(p: &Pkt) -> Vec<Vec<u8>> {
    let plain = p.ip();
    if p.src.is_ipv4() {
        let with = |words: usize| {
            let mut b = [&plain[..20], &[1].repeat(4 * words), &plain[20..]].concat();
            let len = b.len() as u16;
            b[0] = 0x45 + words as u8;
            b[2..4].copy_from_slice(&len.to_be_bytes());
            b[10..12].fill(0);
            let sum = !checksum::sum(&b[..20 + 4 * words]);
            b[10..12].copy_from_slice(&sum.to_be_bytes());
            b
        };
        return vec![with(0), with(1), with(10)];
    }
    let with = |first: u8, headers: &[u8]| {
        let mut b = [&plain[..40], headers, &plain[40..]].concat();
        let len = (b.len() - 40) as u16;
        b[4..6].copy_from_slice(&len.to_be_bytes());
        b[6] = first;
        b
    };
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [p.proto, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [[p.proto, 4, 0, 0], [0, 0, 0, 9], [0, 0, 0, 1], [7; 4], [7; 4], [7; 4]].concat();
    vec![plain.clone(), with(0, &[&hop_by_hop[..], &destination].concat()), with(51, &authentication)]
}

fn frame_of(ip: &[u8]) -> Vec<u8> {
    let kind = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 0x10], &kind[..], ip].concat()
}

/// Bytes that look like chance, from a seed.
fn chance(seed: usize) -> Vec<u8> {
    let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..80).map(step).collect()
}

/// All packets of both versions.
fn every_packet() -> impl Iterator<Item = Vec<u8>> {
    [(HOST, SERVER), (HOST6, SERVER6)]
        .into_iter()
        .flat_map(|(src, dst)| packets(src, dst))
        .flat_map(|p| with_headers(&p))
}

#[test]
fn the_checker_finds_what_is_wrong() {
    // The examples of RFC 1071 and of RFC 3720, appendix B.4.
    assert_eq!(ones(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    let p = udp("10.0.0.2", 1, "203.0.113.5", 2, b"abc").ip();
    let error = icmp("198.51.100.9", "10.0.0.2", 3, 1, [0; 4], &p).ip();
    assert!(assert_right(&p) && assert_right(&error));
    for at in 0..p.len() {
        let mut b = p.clone();
        b[at] ^= 1;
        assert!(!is_right(&b), "byte {at}");
    }
}

#[test]
fn every_packet_is_right_after_translation_and_itself_after_the_way_back() {
    let mut summed = 0;
    for (n, before) in every_packet().enumerate() {
        assert_right(&before);
        for seed in 0..40 {
            let mut frame = frame_of(&before);
            let p = oracle::packet_of(&frame, true).expect("a packet");
            assert!(!matches!(p.kind, L4::Invalid(_)), "{:?} of packet {n}", p.kind);
            let to = oracle::target(&p.tuple, &mut Input(&chance(n * 64 + seed)));
            rewrite::translate(&mut frame, &p, &to);
            summed += usize::from(assert_right(&frame[14..]));
            let q = oracle::packet_of(&frame, true).expect("a packet");
            assert_eq!(q.tuple, to);
            rewrite::translate(&mut frame, &q, &p.tuple);
            assert_eq!(frame[14..], before, "packet {n} to {to}");
        }
    }
    assert!(summed > 40 * 3 * 2 * 9, "{summed} checksums were looked at");
}

#[test]
fn errors_are_right_and_reversible_wherever_their_quote_is_cut() {
    let (mut errors, mut whole) = (0, 0);
    for (n, quoted) in every_packet().enumerate() {
        let v4 = quoted[0] >> 4 == 4;
        let (router, to, kind, least) =
            if v4 { ("198.51.100.20", HOST, 3, 20) } else { ("2001:db8::10", HOST6, 1, 40) };
        for cut in least..=quoted.len() {
            let before = icmp(router, to, kind, 1, [0; 4], &quoted[..cut]).ip();
            let mut frame = frame_of(&before);
            let p = oracle::packet_of(&frame, true).expect("a packet");
            let L4::IcmpError(known) = p.kind else { panic!("{:?}", p.kind) };
            let Some(q) = known else { continue }; // cut before its ports
            errors += 1;
            let mut input = Input(&chance(n * 512 + cut)).0.to_vec();
            input[0] |= 1;
            let mut input = Input(&input);
            let target = oracle::target(&q.tuple, &mut input);
            let src = oracle::target(&p.tuple, &mut input).src;
            let towards = ErrorTarget { src, dst: target.src, quoted: target };
            rewrite::translate_error(&mut frame, &p, &q, &towards);
            assert!(assert_right(&frame[14..]), "an error has a checksum");
            whole += usize::from(cut == quoted.len());
            let r = oracle::packet_of(&frame, true).expect("a packet");
            let L4::IcmpError(Some(quote)) = r.kind else { panic!("{:?}", r.kind) };
            assert!(quote.tuple.same_wire(&target), "{} is not {target}", quote.tuple);
            let back = ErrorTarget { src: p.tuple.src, dst: p.tuple.dst, quoted: q.tuple };
            rewrite::translate_error(&mut frame, &r, &quote, &back);
            assert_eq!(frame[14..], before, "packet {n} cut at {cut}");
        }
    }
    assert!(errors > 1900 && whole == every_packet().count(), "{errors} errors, {whole} with all of a packet");
}

#[test]
fn a_missing_checksum_stays_missing_and_a_right_one_never_looks_missing() {
    // In the packet, and in what an error quotes: each port that could make the sum zero.
    for (src, dst, gateway) in [(HOST, SERVER, GATEWAY), (HOST6, SERVER6, GATEWAY6)] {
        for summed in [true, false] {
            let plain = udp(src, 4000, dst, 53, b"x");
            let p = if summed { plain } else { plain.without_checksum() };
            let (l4, kind) = if src == HOST { (20, 3) } else { (40, 1) };
            let router = dst;
            let error = icmp(router, src, kind, 1, [0; 4], &p.ip());
            let mut ones = 0;
            for port in 0..=u16::MAX {
                let mut frame = frame_of(&p.ip());
                let packet = oracle::packet_of(&frame, true).expect("a packet");
                let to = dataplane::conntrack::tuple::Tuple { src: ip(gateway), sport: port, ..packet.tuple };
                rewrite::translate(&mut frame, &packet, &to);
                let sum = be16_at(&frame, 14 + l4 + 6);
                assert_eq!(sum == 0, !summed, "port {port}");
                ones += u32::from(sum == 0xffff);
                if port % 64 != 0 && sum != 0xffff {
                    continue;
                }
                let mut frame = frame_of(&error.ip());
                let packet = oracle::packet_of(&frame, true).expect("a packet");
                let L4::IcmpError(Some(q)) = packet.kind else { panic!("{:?}", packet.kind) };
                let quoted = dataplane::conntrack::tuple::Tuple { src: ip(gateway), sport: port, ..q.tuple };
                let towards = ErrorTarget { src: packet.tuple.src, dst: quoted.src, quoted };
                rewrite::translate_error(&mut frame, &packet, &q, &towards);
                assert_right(&frame[14..]);
                assert_eq!(be16_at(&frame, 14 + l4 + 8 + l4 + 6), sum, "port {port} in the quote");
            }
            assert_eq!(ones, u32::from(summed), "one port makes it zero");
        }
    }
}

// ---- The whole path -----------------------------------------------------------------------------------------------

/// A rule in force, and who speaks to whom through it.
struct Case {
    name: &'static str,
    nat: Vec<NatRuleSpec>,
    /// Where clients are, and servers.
    ports: [PortIdx; 2],
    /// A client, whom it speaks to, and who that is; the port that port 80 becomes, and 8080.
    client: [&'static str; 2],
    asked: [&'static str; 2],
    server: [&'static str; 2],
    /// Whom the server sees, where that is one address.
    seen: [&'static str; 2],
    to_port: Option<u16>,
    /// Whether it is forwarded, and not the gateway's.
    hop: bool,
}

impl Case {
    /// The same with this rule alone.
    fn with(self, rule: NatRuleSpec) -> Self {
        Self { nat: vec![rule], ..self }
    }
}

fn twice(port: Option<ToPort>, source: Option<Pool>) -> NatRuleSpec {
    let dport = if port.is_some() { vec![80..=80] } else { Vec::new() };
    towards(NatKind::Twice { to: pool([HOST, HOST6]), port, source }, Match { dport, ..to_gateway() })
}

/// Inside prefixes and outside ones, for either side.
fn netmaps(side: NetmapSide, matches: &Match) -> Vec<NatRuleSpec> {
    let rule = |(inside, outside): (&str, &str)| {
        let (inside, outside) = (inside.parse().expect("prefix"), outside.parse().expect("prefix"));
        let (from, to) = if side == NetmapSide::Source { (inside, outside) } else { (outside, inside) };
        towards(NatKind::Netmap { from, to, side }, matches.clone())
    };
    [("10.0.0.0/24", "203.0.112.0/24"), ("fd00:1::/64", "2001:db8:9::/64")].map(rule).to_vec()
}

fn towards(kind: NatKind, matches: Match) -> NatRuleSpec {
    NatRuleSpec::new("rule", matches, kind)
}

fn to_gateway() -> Match {
    let addresses = AddrSet::new(["198.51.100.1/32", "2001:db8::1/128"].map(|p| p.parse().expect("prefix")), []);
    let destination = Some(AddrMatch { negate: false, set: std::sync::Arc::new(addresses) });
    Match { from: vec![WAN_ZONE], destination, ..Match::default() }
}

fn pool(addresses: [&str; 2]) -> Pool {
    Pool::new(addresses.map(|a| (ip(a), ip(a)))).expect("a pool")
}

fn cases() -> Vec<Case> {
    let out = |name, kind, seen| Case {
        name,
        nat: vec![towards(kind, from_to(LAN_ZONE, WAN_ZONE))],
        ports: [LAN, WAN],
        client: [HOST, HOST6],
        asked: [SERVER, SERVER6],
        server: [SERVER, SERVER6],
        seen,
        to_port: None,
        hop: true,
    };
    let dnat = |to: [&str; 2], port: Option<u16>| {
        let ports = if port.is_some() { vec![80..=80] } else { Vec::new() };
        towards(NatKind::Dnat { to: pool(to), port: port.map(ToPort::One) }, Match { dport: ports, ..to_gateway() })
    };
    let inwards = |name, nat, seen, to_port| Case {
        name,
        nat,
        ports: [WAN, LAN],
        client: [SERVER, SERVER6],
        asked: [GATEWAY, GATEWAY6],
        server: [HOST, HOST6],
        seen,
        to_port,
        hop: true,
    };
    let own = || towards(NatKind::Masquerade, from_to(WAN_ZONE, LAN_ZONE));
    vec![
        Case { nat: Vec::new(), ..out("none", NatKind::None, [HOST, HOST6]) },
        out("masquerade", NatKind::Masquerade, [GATEWAY, GATEWAY6]),
        out("snat", NatKind::Snat { to: pool(["198.51.100.7", "2001:db8::7"]) }, ["198.51.100.7", "2001:db8::7"]),
        inwards("dnat", vec![dnat([HOST, HOST6], None)], [SERVER, SERVER6], None),
        inwards("dnat to a port", vec![dnat([HOST, HOST6], Some(8080))], [SERVER, SERVER6], Some(8080)),
        inwards("dnat and masquerade", vec![dnat([HOST, HOST6], None), own()], ["10.0.0.1", "fd00:1::1"], None),
        inwards("both, to a port", vec![dnat([HOST, HOST6], Some(8080)), own()], ["10.0.0.1", "fd00:1::1"], Some(8080)),
        Case {
            nat: vec![
                towards(NatKind::None, from_to(LAN_ZONE, WAN_ZONE)),
                towards(NatKind::Masquerade, from_to(LAN_ZONE, WAN_ZONE)),
            ],
            ..out("exempt", NatKind::None, [HOST, HOST6])
        },
        Case {
            nat: vec![NatRuleSpec {
                preserve_port: PreservePort::Never,
                persistent: true,
                ..towards(NatKind::Snat { to: pool(["198.51.100.7", "2001:db8::7"]) }, from_to(LAN_ZONE, WAN_ZONE))
            }],
            ..out("snat at random", NatKind::None, ["198.51.100.7", "2001:db8::7"])
        },
        inwards(
            "dnat of a range of ports",
            vec![towards(
                NatKind::Dnat { to: pool([HOST, HOST6]), port: Some(ToPort::Shift { from: 75, to: 8075 }) },
                Match { dport: vec![75..=85], ..to_gateway() },
            )],
            [SERVER, SERVER6],
            Some(8080),
        ),
        inwards("twice", vec![twice(None, None)], ["10.0.0.1", "fd00:1::1"], None),
        inwards(
            "twice, to a port and from a pool",
            vec![twice(Some(ToPort::One(8080)), Some(pool(["10.0.0.77", "fd00:1::77"])))],
            ["10.0.0.77", "fd00:1::77"],
            Some(8080),
        ),
        Case {
            nat: netmaps(NetmapSide::Source, &from_to(LAN_ZONE, WAN_ZONE)),
            ..out("netmap of sources", NatKind::None, ["203.0.112.2", "2001:db8:9::2"])
        },
        // The same the other way: the prefix leads to its hosts.
        Case {
            asked: ["203.0.112.2", "2001:db8:9::2"],
            ..inwards(
                "netmap of sources, from outside",
                netmaps(NetmapSide::Source, &from_to(LAN_ZONE, WAN_ZONE)),
                [SERVER, SERVER6],
                None,
            )
        },
        Case {
            asked: ["203.0.112.2", "2001:db8:9::2"],
            ..inwards(
                "netmap of destinations",
                netmaps(NetmapSide::Destination, &Match { from: vec![WAN_ZONE], ..Match::default() }),
                [SERVER, SERVER6],
                None,
            )
        },
        Case {
            ports: [LAN, LAN_TWIN],
            server: ["10.0.0.1", "fd00:1::1"],
            hop: false,
            ..out("redirect", NatKind::None, [HOST, HOST6])
                .with(towards(NatKind::Redirect { port: None }, Match { from: vec![LAN_ZONE], ..Match::default() }))
        },
        Case {
            ports: [LAN, LAN],
            asked: [GATEWAY, GATEWAY6],
            server: ["10.0.0.9", "fd00:1::9"],
            ..out("hairpin", NatKind::None, [GATEWAY, GATEWAY6]).with(dnat(["10.0.0.9", "fd00:1::9"], None))
        },
    ]
}

/// What a client asks, and how whoever gets it answers.
type Talk = (fn(&str, &str) -> Pkt, fn(&Seen) -> Pkt);

/// Talks of every protocol; those with ports, to port 80, come first.
const WITH_PORTS: usize = 6;
const TALKS: [Talk; 10] = [
    (|s, d| tcp(s, 4000, d, 80, SYN, 7, 0, b""), |q| tcp(&a(q.dst), q.dport, &a(q.src), q.sport, SYN | ACK, 9, 8, b"")),
    (|s, d| udp(s, 4000, d, 80, b"question"), |q| udp(&a(q.dst), q.dport, &a(q.src), q.sport, b"an answer")),
    (
        |s, d| udp(s, 4001, d, 80, b"q").without_checksum(),
        |q| udp(&a(q.dst), q.dport, &a(q.src), q.sport, b"a").without_checksum(),
    ),
    (
        |s, d| udplite(s, 4000, d, 80, 8, b"question"),
        |q| udplite(&a(q.dst), q.dport, &a(q.src), q.sport, 11, b"an answer"),
    ),
    (
        |s, d| udplite(s, 4001, d, 80, 0, b"question"),
        |q| udplite(&a(q.dst), q.dport, &a(q.src), q.sport, 0, b"an answer"),
    ),
    (|s, d| sctp(s, 4000, d, 80, 0, &[init(1, 5)]), |q| sctp(&a(q.dst), q.dport, &a(q.src), q.sport, 5, &[init(2, 6)])),
    (|s, d| ping(s, d, 7, 1), |q| pong(&a(q.dst), &a(q.src), q.sport, 1)),
    (
        |s, d| other(s, d, proto::GRE, &[0, 0, 8, 0, 1, 2, 3]),
        |q| other(&a(q.dst), &a(q.src), proto::GRE, &[0, 0, 8, 0, 4, 5, 6]),
    ),
    (|s, d| other(s, d, 50, b"question"), |q| other(&a(q.dst), &a(q.src), 50, b"an answer")),
    (|s, d| dccp(s, 4000, d, 80, b"question"), |q| dccp(&a(q.dst), 80, &a(q.src), 4000, b"an answer")),
];

fn a(address: std::net::IpAddr) -> String {
    address.to_string()
}

/// Transport data without what translation changes: ports or identifier, and checksum.
fn kept(proto: u8, l4: &[u8]) -> Vec<u8> {
    let mut b = l4.to_vec();
    match proto {
        proto::TCP => b[16..18].fill(0),
        proto::UDP | proto::UDPLITE | proto::DCCP => b[6..8].fill(0),
        proto::SCTP => b[8..12].fill(0),
        proto::ICMP | proto::ICMPV6 => {
            b[2..6].fill(0);
            return b;
        }
        _ => return b,
    }
    b[..4].fill(0);
    b
}

#[test]
fn what_comes_back_to_the_client_is_what_the_server_sent() {
    for case in cases() {
        let spec = PolicySpec { nat: case.nat.clone(), default: Action::Accept, ..policy() };
        everywhere(spec, |lab| {
            lab.neighbour(0, "fd00:1::9", true);
            let [near, far] = case.ports;
            for version in 0..2 {
                let header = if version == 0 { 20 } else { 40 };
                for (n, (ask, answer)) in TALKS.into_iter().enumerate() {
                    if case.to_port.is_some() && n >= WITH_PORTS {
                        continue;
                    }
                    let what = format!("{}, talk {n}, version {version}", case.name);
                    let question = ask(case.client[version], case.asked[version]);
                    let there = lab.passes(near, &question, far);
                    assert_right(&there.ip);
                    assert_eq!((there.src, there.dst), (ip(case.seen[version]), ip(case.server[version])), "{what}");
                    assert_eq!(kept(question.proto, &there.ip[header..]), kept(question.proto, &question.l4), "{what}");
                    if n < WITH_PORTS {
                        assert_eq!(there.dport, case.to_port.unwrap_or(80), "{what}");
                    }
                    // An error about it, as little as may be and all of it quoted.
                    let kind = if version == 0 { 3 } else { 1 };
                    for cut in [header + 8, there.ip.len()] {
                        let quote = &there.ip[..cut.min(there.ip.len())];
                        let error = icmp(case.server[version], case.seen[version], kind, 1, [0; 4], quote);
                        let back = lab.passes(far, &error, near);
                        assert_right(&back.ip);
                        assert_eq!((back.src, back.dst), (question.dst, question.src), "{what}");
                        back.assert_quotes(&question);
                    }
                    let reply = answer(&there);
                    let back = lab.passes(far, &reply, near);
                    assert_right(&back.ip);
                    let ttl = if case.hop { 63 } else { 64 };
                    assert_eq!((back.src, back.dst, back.ttl), (question.dst, question.src, ttl), "{what}");
                    assert_eq!(kept(reply.proto, &back.ip[header..]), kept(reply.proto, &reply.l4), "{what}");
                    if n < WITH_PORTS {
                        let port = |at: usize| be16_at(&question.l4, at);
                        assert_eq!((back.sport, back.dport), (port(2), port(0)), "{what}");
                    } else if question.proto == proto::ICMP || question.proto == proto::ICMPV6 {
                        assert_eq!(back.sport, 7, "{what}");
                    }
                    // The next question takes the same way: nothing of it is found out anew.
                    assert_eq!(lab.passes(near, &question, far).ip[header..], there.ip[header..], "{what}");
                }
            }
            assert_eq!(lab.total_drops(), 0, "{}: {:?}", case.name, lab.drops());
        });
    }
}
