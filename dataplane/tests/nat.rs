//! Stories of translation, on one, two and four workers.
//!
//! ```text
//!   10.0.0.2 ──┐                                             ┌── 203.0.113.5
//!   10.0.0.9 ──┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ─┤
//!   fd00:1::2 ─┘      [ fd00:1::1            2001:db8::1  ]  └── 2001:db8:5::5
//! ```
//! Unless a story says otherwise, lan is masqueraded towards wan.

mod common;

use std::collections::BTreeSet;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::ConnFilter;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const GATEWAY6: &str = "2001:db8::1";
const SERVER6: &str = "2001:db8:5::5";

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

fn snat(to_address: &str, preserve_port: PreservePort) -> NatRuleSpec {
    NatRuleSpec { kind: NatKind::Snat { to: ip(to_address).into() }, preserve_port, ..masquerade() }
}

/// The class that Linux keeps a port in.
fn class(port: u16) -> u8 {
    match port {
        0..=511 => 0,
        512..=1023 => 1,
        _ => 2,
    }
}

// ---- Source ---------------------------------------------------------------------------------------------------------

#[test]
fn masquerade_there_and_back() {
    everywhere(masqueraded(), |lab| {
        for port in [1, 511, 512, 1000, 1023, 1024, 4000, 4001, 4002, 4003, 65535] {
            let out = lab.passes(LAN, &tcp(HOST, port, SERVER, 443, SYN, 1, 0, b""), WAN);
            assert_eq!((out.src, out.dst, out.dport, out.ttl), (ip(GATEWAY), ip(SERVER), 443, 63));
            let plain = tuple(HOST, port, SERVER, 443, proto::TCP);
            let kept = tuple(SERVER, 443, GATEWAY, port, proto::TCP);
            if lab.home(&plain) == lab.home(&kept) {
                assert_eq!(out.sport, port, "the port is kept where replies to it come home");
            }
            assert_eq!(class(out.sport), class(port));
            let back = lab.passes(WAN, &tcp(SERVER, 443, GATEWAY, out.sport, SYN | ACK, 1, 2, b""), LAN);
            assert_eq!(back.flow(), format!("203.0.113.5:443 > 10.0.0.2:{port}"));
            let on = lab.passes(LAN, &tcp(HOST, port, SERVER, 443, ACK, 2, 2, b"data"), WAN);
            assert_eq!((on.flow(), on.payload.as_slice()), (out.flow(), &b"data"[..]));
            lab.moved(&[
                "class established original +1",
                "class established reply +1",
                "class new original +1",
                "event assured +1",
                "event new +1",
                "event replied +1",
            ]);
        }
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (11, 11, 0));
    });
}

#[test]
fn ipv6_is_masqueraded_too() {
    everywhere(masqueraded(), |lab| {
        for port in 4000..4010 {
            let out = lab.passes(LAN, &udp(HOST6, port, SERVER6, 53, b"question"), WAN);
            assert_eq!((out.src, out.dst), (ip(GATEWAY6), ip(SERVER6)));
            let back = lab.passes(WAN, &udp(SERVER6, 53, GATEWAY6, out.sport, b"answer"), LAN);
            assert_eq!(back.flow(), format!("2001:db8:5::5:53 > fd00:1::2:{port}"));
        }
        assert_eq!((lab.leases(), lab.signposts()), (10, 0));
    });
}

#[test]
fn a_port_that_is_taken_is_chosen_anew_within_its_class() {
    everywhere(masqueraded(), |lab| {
        for port in [300, 900, 4000] {
            let mut ports = BTreeSet::new();
            for host in 2..42 {
                let host = format!("10.0.0.{host}");
                let out = lab.passes(LAN, &udp(&host, port, SERVER, 53, b""), WAN);
                assert!(ports.insert(out.sport), "port {} used twice", out.sport);
                assert_eq!(class(out.sport), class(port));
                let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b""), LAN);
                assert_eq!(back.flow(), format!("203.0.113.5:53 > {host}:{port}"));
            }
        }
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (120, 120, 0));
    });
}

#[test]
fn one_external_port_serves_many_destinations() {
    let mut lab = Lab::new(masqueraded());
    for n in 1..=50 {
        let out = lab.passes(LAN, &udp(HOST, 4000, &format!("203.0.113.{n}"), 53, b""), WAN);
        assert_eq!(out.sport, 4000);
    }
    lab.sound();
}

#[test]
fn strict_keeps_the_port_and_refuses_who_cannot_have_it() {
    let mut spec = usual();
    spec.nat = vec![snat("198.51.100.7", PreservePort::Strict)];
    everywhere(spec, |lab| {
        for port in 4000..4020 {
            let out = lab.passes(LAN, &udp(HOST, port, SERVER, 53, b""), WAN);
            assert_eq!(out.flow(), format!("198.51.100.7:{port} > 203.0.113.5:53"));
            let back = lab.passes(WAN, &udp(SERVER, 53, "198.51.100.7", port, b""), LAN);
            assert_eq!(back.flow(), format!("203.0.113.5:53 > 10.0.0.2:{port}"));
        }
        let away = lab.owned().iter().filter(|c| lab.home(&c.reply) != usize::from(c.worker)).count();
        assert_eq!((lab.signposts(), lab.leases()), (away, 20));
        lab.changed();
        // A second host wants the same ports.
        for port in 4000..4020 {
            lab.refuses(LAN, &udp("10.0.0.3", port, SERVER, 53, b""), DropReason::NatNoPort);
        }
        lab.moved(&["class new original +20", "drop nat_no_port +20", "nat failures +20"]);
        assert_eq!((lab.entries(), lab.leases()), (20, 20));
        let back = lab.passes(WAN, &udp(SERVER, 53, "198.51.100.7", 4000, b""), LAN);
        assert_eq!(back.dst, ip(HOST));
    });
}

#[test]
fn masquerade_needs_an_address_of_the_packets_version() {
    everywhere(masqueraded(), |lab| {
        let mut routes = fib();
        routes.addresses.retain(|(_, a)| *a != "2001:db8::1/64".parse().expect("prefix"));
        lab.reroute(routes);
        lab.refuses(LAN, &udp(HOST6, 4000, SERVER6, 53, b""), DropReason::NatNoAddress);
        lab.moved(&["class new original +1", "drop nat_no_address +1", "nat failures +1"]);
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
    });
}

#[test]
fn a_rule_for_one_ip_version_does_not_touch_the_other() {
    let mut spec = usual();
    spec.nat = vec![snat("198.51.100.7", PreservePort::Auto)];
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b""), WAN);
        assert_eq!((out.flow().as_str(), lab.leases()), ("fd00:1::2:4000 > 2001:db8:5::5:53", 0));
        lab.passes(WAN, &udp(SERVER6, 53, HOST6, 4000, b""), LAN);
    });
}

#[test]
fn query_identifiers_are_translated_like_ports() {
    everywhere(masqueraded(), |lab| {
        let mut ids = BTreeSet::new();
        for host in 2..12 {
            let host = format!("10.0.0.{host}");
            let out = lab.passes(LAN, &ping(&host, SERVER, 77, 1), WAN);
            assert_eq!(out.src, ip(GATEWAY));
            assert!(ids.insert(out.sport), "identifier {} used twice", out.sport);
            let back = lab.passes(WAN, &pong(SERVER, GATEWAY, out.sport, 1), LAN);
            assert_eq!(back.flow(), format!("203.0.113.5 > {host} icmp 0/0 id 77"));
        }
        if lab.workers.len() == 1 {
            assert!(ids.contains(&77), "the first keeps its own");
        }
        let out = lab.passes(LAN, &ping(HOST6, SERVER6, 77, 1), WAN);
        let back = lab.passes(WAN, &pong(SERVER6, GATEWAY6, out.sport, 1), LAN);
        assert_eq!(back.flow(), "2001:db8:5::5 > fd00:1::2 icmp 129/0 id 77");
        assert_eq!(lab.leases(), 11);
    });
}

#[test]
fn of_two_hosts_with_a_portless_protocol_to_one_peer_the_second_is_refused() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &other(HOST, SERVER, 47, b"first"), WAN);
        assert_eq!(out.src, ip(GATEWAY));
        lab.changed();
        lab.refuses(LAN, &other("10.0.0.3", SERVER, 47, b"second"), DropReason::NatClash);
        assert_eq!((lab.entries(), lab.leases()), (1, 1));
        let back = lab.passes(WAN, &other(SERVER, GATEWAY, 47, b"answer"), LAN);
        assert_eq!(back.dst, ip(HOST));
        lab.passes(LAN, &other("10.0.0.3", "203.0.113.6", 47, b"another peer"), WAN);
    });
}

/// 511 low ports, and more hosts than that.
#[test]
fn when_a_class_of_ports_is_used_up_new_connections_are_refused_and_old_ones_live() {
    let mut lab = Lab::new(masqueraded());
    let mut kept = Vec::new();
    for port in 101..=103 {
        for host in 2..=250 {
            let p = udp(&format!("10.0.0.{host}"), port, SERVER, 53, b"");
            if let [(_, out)] = &lab.send(LAN, &p)[..] {
                kept.push((p, out.sport));
            }
        }
    }
    let refused = lab.drop_count(DropReason::NatNoPort);
    assert_eq!(refused + kept.len() as u64, 747);
    assert!((400..=511).contains(&kept.len()), "{} ports found", kept.len());
    assert_eq!(lab.leases(), kept.len() as u64);
    let n = kept.len();
    lab.moved(&[
        "class new original +747",
        &format!("drop nat_no_port +{refused}"),
        &format!("event new +{n}"),
        &format!("nat failures +{refused}"),
    ]);
    for (p, port) in kept {
        let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, port, b""), LAN);
        assert_eq!((back.dst, back.dport), (p.src, u16::from_be_bytes([p.l4[0], p.l4[1]])));
    }
    lab.sound();
    lab.wait(Nanos::from_secs(31));
    assert_eq!(lab.leases(), 0);
    lab.passes(LAN, &udp("10.0.0.250", 103, SERVER, 53, b""), WAN);
}

#[test]
fn a_datagram_without_a_checksum_leaves_without_one() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question").without_checksum(), WAN);
        assert_eq!((out.src, &out.ip[26..28]), (ip(GATEWAY), &[0, 0][..]));
    });
}

#[test]
fn fragments_of_a_translated_packet_are_pieces_of_the_translated_packet() {
    everywhere_with(&Setup { wan_mtu: 1280, ..Setup::default() }, masqueraded(), |lab| {
        let payload = vec![7; 1400];
        let out = lab.send(LAN, &udp(HOST, 4000, SERVER, 53, &payload));
        assert_eq!(out.len(), 2, "{:?}", lab.drops());
        let whole = [&out[0].1.ip[20..], &out[1].1.ip[20..]].concat();
        let sport = u16::from_be_bytes([whole[0], whole[1]]);
        assert_eq!(whole, udp(GATEWAY, sport, SERVER, 53, &payload).l4);
    });
}

// ---- Destination ----------------------------------------------------------------------------------------------------

#[test]
fn a_port_forward_there_and_back() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    everywhere(spec, |lab| {
        for port in 5000..5010 {
            let out = lab.passes(WAN, &tcp(SERVER, port, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
            assert_eq!(out.flow(), format!("203.0.113.5:{port} > 10.0.0.9:80"));
            let back = lab.passes(LAN, &tcp(WEB, 80, SERVER, port, SYN | ACK, 1, 2, b""), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
            let on = lab.passes(WAN, &tcp(SERVER, port, GATEWAY, 8080, ACK | PSH, 2, 2, b"GET /"), LAN);
            assert_eq!((on.flow(), on.payload.as_slice()), (out.flow(), &b"GET /"[..]));
        }
        lab.moved(&[
            "class established original +10",
            "class established reply +10",
            "class new original +10",
            "event assured +10",
            "event new +10",
            "event replied +10",
        ]);
        // How many of them have their replies' home elsewhere is arithmetic; each of those has a signpost there.
        let away = lab.conns().iter().filter(|c| lab.home(&c.original) != lab.home(&c.reply)).count();
        assert_eq!((lab.signposts(), lab.leases()), (away, 0));
    });
}

#[test]
fn a_forward_without_a_port_keeps_the_port() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, None);
    everywhere(spec, |lab| {
        for port in 5000..5004 {
            let out = lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"there"), LAN);
            assert_eq!(out.flow(), format!("203.0.113.5:{port} > 10.0.0.9:8080"));
            let back = lab.passes(LAN, &udp(WEB, 8080, SERVER, port, b"back"), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
        }
    });
}

/// All of an address goes inside, ICMP and portless protocols too, IPv6 as well.
#[test]
fn a_whole_address_is_forwarded() {
    let forward = |name: &str, public: &str, inside: &str| NatRuleSpec {
        name: name.into(),
        matches: Match { from: vec![WAN_ZONE], destination: Some(only(public)), ..Match::default() },
        kind: NatKind::Dnat { to: ip(inside).into(), port: None },
        ..masquerade()
    };
    let mut spec = usual();
    spec.nat = vec![forward("v4", "198.51.100.7/32", WEB), forward("v6", "2001:db8::7/128", HOST6)];
    spec.rules.push(rule("in", from_to(WAN_ZONE, LAN_ZONE), Action::Accept));
    everywhere(spec, |lab| {
        let out = lab.passes(WAN, &ping(SERVER, "198.51.100.7", 5, 1), LAN);
        assert_eq!(out.flow(), "203.0.113.5 > 10.0.0.9 icmp 8/0 id 5");
        let back = lab.passes(LAN, &pong(WEB, SERVER, 5, 1), WAN);
        assert_eq!(back.flow(), "198.51.100.7 > 203.0.113.5 icmp 0/0 id 5");
        lab.passes(WAN, &other(SERVER, "198.51.100.7", 50, b"esp"), LAN);
        assert_eq!(lab.passes(LAN, &other(WEB, SERVER, 50, b"esp"), WAN).flow(), "198.51.100.7 > 203.0.113.5");
        let out = lab.passes(WAN, &tcp(SERVER6, 9, "2001:db8::7", 443, SYN, 1, 0, b""), LAN);
        assert_eq!(out.flow(), "2001:db8:5::5:9 > fd00:1::2:443");
        let back = lab.passes(LAN, &tcp(HOST6, 443, SERVER6, 9, SYN | ACK, 1, 2, b""), WAN);
        assert_eq!(back.flow(), "2001:db8::7:443 > 2001:db8:5::5:9");
        let out = lab.passes(WAN, &ping(SERVER6, "2001:db8::7", 5, 1), LAN);
        assert_eq!(out.flow(), "2001:db8:5::5 > fd00:1::2 icmp 128/0 id 5");
    });
}

/// A server that answers to the gateway only: destination and source are translated.
#[test]
fn both_ends_are_translated() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat.push(NatRuleSpec { matches: from_to(WAN_ZONE, LAN_ZONE), ..masquerade() });
    everywhere(spec, |lab| {
        for port in 5000..5010 {
            let out = lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"there"), LAN);
            assert_eq!((out.src, out.dst, out.dport), (ip("10.0.0.1"), ip(WEB), 80));
            let back = lab.passes(LAN, &udp(WEB, 80, "10.0.0.1", out.sport, b"back"), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
        }
        assert_eq!((lab.leases(), lab.signposts()), (10, 0));
    });
}

/// ```text
///   10.0.0.2 ──┐
///              ├─ lan [ 198.51.100.1:8080 → 10.0.0.9:80 ]
///   10.0.0.9 ──┘
/// ```
#[test]
fn a_host_reaches_its_neighbour_by_the_public_address() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat[0].matches.from = vec![LAN_ZONE, WAN_ZONE];
    spec.nat.push(NatRuleSpec { matches: from_to(LAN_ZONE, LAN_ZONE), ..masquerade() });
    spec.rules.push(rule("hairpin", from_to(LAN_ZONE, LAN_ZONE), Action::Accept));
    everywhere(spec, |lab| {
        for port in 5000..5010 {
            let out = lab.passes(LAN, &tcp(HOST, port, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
            assert_eq!((out.src, out.dst, out.dport), (ip("10.0.0.1"), ip(WEB), 80));
            let back = lab.passes(LAN, &tcp(WEB, 80, "10.0.0.1", out.sport, SYN | ACK, 1, 2, b""), LAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 10.0.0.2:{port}"));
        }
    });
}

/// A service of the gateway's own, under another port and an address of another interface.
#[test]
fn a_forward_may_lead_to_the_gateway_itself() {
    let mut spec = usual();
    dnat(&mut spec, 2222, "10.0.0.1", Some(22));
    spec.rules.push(rule("ssh", Match { dport: vec![22..=22], ..from_to(WAN_ZONE, ZoneId::LOCAL) }, Action::Accept));
    everywhere(spec, |lab| {
        for port in 5000..5008 {
            let up = lab.passes(WAN, &tcp(SERVER, port, GATEWAY, 2222, SYN, 1, 0, b""), WAN_TWIN);
            assert_eq!((up.flow(), up.ttl), (format!("203.0.113.5:{port} > 10.0.0.1:22"), 64));
            let answer = tcp("10.0.0.1", 22, SERVER, port, SYN | ACK, 1, 2, b"").to_mac(HOST_MAC);
            let out = lab.passes(WAN_TWIN, &answer, WAN);
            assert_eq!((out.flow(), out.ttl), (format!("198.51.100.1:2222 > 203.0.113.5:{port}"), 64));
        }
        lab.refuses(WAN, &tcp(SERVER, 1, GATEWAY, 22, RST, 1, 0, b""), DropReason::InvalidTcpState);
    });
}

/// What the kernel sends with an inside address leaves with the outside one where a rule names no zone.
#[test]
fn the_gateways_own_packets_are_masqueraded_where_a_rule_is_for_them() {
    let mut spec = usual();
    spec.rules.push(rule("from-me", from_to(ZoneId::LOCAL, WAN_ZONE), Action::Accept));
    spec.nat = vec![NatRuleSpec { matches: Match { to: vec![WAN_ZONE], ..Match::default() }, ..masquerade() }];
    everywhere(spec, |lab| {
        for port in 4000..4008 {
            let out = lab.passes(WAN_TWIN, &udp("10.0.0.1", port, SERVER, 53, b"q").to_mac(HOST_MAC), WAN);
            assert_eq!((out.src, out.ttl), (ip(GATEWAY), 64));
            let up = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"a"), WAN_TWIN);
            assert_eq!(up.flow(), format!("203.0.113.5:53 > 10.0.0.1:{port}"));
        }
        assert_eq!((lab.leases(), lab.signposts()), (8, 0));
    });
}

// ---- What is not translated, and what must be though no rule says so ------------------------------------------------

/// The gateway's own connection wants the port that a host's connection has been given.
#[test]
fn a_connection_without_a_rule_gets_another_port_where_its_replies_would_be_anothers() {
    let mut spec = masqueraded();
    spec.rules.push(rule("own", from_to(ZoneId::LOCAL, WAN_ZONE), Action::Accept));
    everywhere(spec, |lab| {
        let hosts = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).sport;
        let own = lab.passes(WAN_TWIN, &udp(GATEWAY, hosts, SERVER, 53, b"").to_mac(HOST_MAC), WAN);
        assert_eq!(own.src, ip(GATEWAY));
        assert_ne!(own.sport, hosts);
        let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, own.sport, b"own"), WAN_TWIN);
        assert_eq!(back.flow(), format!("203.0.113.5:53 > 198.51.100.1:{hosts}"));
        let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, hosts, b"host's"), LAN);
        assert_eq!(back.flow(), "203.0.113.5:53 > 10.0.0.2:4000");
        lab.moved(&["class established reply +2", "class new original +2", "event new +2", "event replied +2"]);
        assert_eq!(lab.leases(), 1, "its own address has no ports to run out of");
    });
}

#[test]
fn two_forwards_to_one_server_do_not_mix_their_clients_up() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    dnat(&mut spec, 8081, WEB, Some(80));
    everywhere(spec, |lab| {
        for port in 5000..5020 {
            let first = lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"1"), LAN);
            assert_eq!(first.sport, port);
            lab.changed();
            let second = lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8081, b"2"), LAN);
            let back = lab.passes(LAN, &udp(WEB, 80, SERVER, port, b"1"), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
            assert_ne!(second.sport, port);
            let back = lab.passes(LAN, &udp(WEB, 80, SERVER, second.sport, b"2"), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8081 > 203.0.113.5:{port}"));
        }
    });
}

#[test]
fn invalid_packets_are_never_translated() {
    let mut spec = masqueraded();
    spec.rules[1].action = Action::Accept; // a policy that lets INVALID pass
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &tcp(HOST, 4000, SERVER, 443, RST, 1, 0, b""), WAN);
        assert_eq!(out.src, ip(HOST));
        lab.passes(LAN, &tcp(HOST, 4000, SERVER, 443, SYN, 1, 0, b""), WAN);
        let out = lab.passes(LAN, &tcp(HOST, 4000, SERVER, 443, SYN | FIN, 1, 0, b""), WAN);
        assert_eq!(out.src, ip(HOST));
        lab.moved(&["class invalid original +2", "class new original +1", "event new +1"]);
        let mut state = lab.owned();
        assert_eq!(state.remove(0).tcp, "SYN_SENT");
    });
}

#[test]
fn a_translation_is_chosen_once_by_the_first_rule_that_matches() {
    let mut spec = usual();
    let by_host = Match { source: Some(only("10.0.0.3/32")), ..from_to(LAN_ZONE, WAN_ZONE) };
    spec.nat = vec![NatRuleSpec { matches: by_host, ..snat("198.51.100.7", PreservePort::Auto) }, masquerade()];
    everywhere(spec, |lab| {
        assert_eq!(lab.passes(LAN, &udp("10.0.0.3", 1024, SERVER, 53, b""), WAN).src, ip("198.51.100.7"));
        assert_eq!(lab.passes(LAN, &udp(HOST, 1024, SERVER, 53, b""), WAN).src, ip(GATEWAY));
        assert_eq!(lab.passes(LAN, &udp("10.0.0.3", 1024, SERVER, 53, b""), WAN).src, ip("198.51.100.7"));
    });
}

// ---- Leases ---------------------------------------------------------------------------------------------------------

#[test]
fn every_lease_is_given_back_however_its_connection_ends() {
    let mut spec = masqueraded();
    dnat(&mut spec, 8080, WEB, Some(80));
    everywhere(spec, |lab| {
        let open = |lab: &mut Lab| {
            for n in 0..8 {
                lab.passes(LAN, &tcp(HOST, 4000 + n, SERVER, 443, SYN, 1, 0, b""), WAN);
                lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), WAN);
                lab.passes(LAN, &ping(HOST, SERVER, 4000 + n, 1), WAN);
                lab.passes(WAN, &udp(SERVER, 4000 + n, GATEWAY, 8080, b""), LAN);
            }
            lab.passes(LAN, &other(HOST, SERVER, 47, b""), WAN);
            assert_eq!((lab.entries(), lab.leases()), (33, 25));
            lab.sound();
            lab.changed();
        };
        open(lab);
        lab.wait(Nanos::from_secs(601));
        lab.moved(&["event expired +33"]);
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (0, 0, 0));
        open(lab);
        assert_eq!(lab.flush(ConnFilter::default()), 33);
        lab.moved(&["event flushed +33"]);
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (0, 0, 0));
        open(lab);
        for n in 0..8 {
            lab.passes(LAN, &tcp(HOST, 4000 + n, SERVER, 443, RST, 2, 0, b""), WAN);
        }
        lab.moved(&["class new original +8", "event closed +8"]);
        assert_eq!((lab.entries(), lab.leases()), (25, 17));
        // The policy has changed its mind.
        let mut nothing = policy();
        nothing.rules = vec![rule("established", state(&[CtState::Established]), Action::Accept)];
        lab.reload(nothing);
        for n in 0..8 {
            lab.refuses(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), DropReason::PolicyReload);
        }
        assert_eq!(lab.leases(), 9);
    });
}
