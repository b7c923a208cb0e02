//! Stories of each kind of translation rule, on one, two and four workers.
//!
//! ```text
//!   10.0.0.2 ──┐                                             ┌── 203.0.113.5
//!   10.0.0.9 ──┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ─┤
//!   fd00:1::2 ─┘      [ fd00:1::1            2001:db8::1  ]  └── 2001:db8:5::5
//! ```

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::{Command, Event};
use dataplane::api::policy::*;
use dataplane::api::{DropReason, Tuple};
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

fn pool(ranges: &[(&str, &str)]) -> Pool {
    Pool::new(ranges.iter().map(|(a, b)| (ip(a), ip(b)))).expect("a pool")
}

fn to_wan(kind: NatKind) -> NatRuleSpec {
    NatRuleSpec::new("out", from_to(LAN_ZONE, WAN_ZONE), kind)
}

/// What comes to TCP and UDP ports `dport` of `public` from wan.
fn public(public: &str, dport: std::ops::RangeInclusive<u16>) -> Match {
    Match {
        from: vec![WAN_ZONE],
        proto: vec![proto::TCP, proto::UDP],
        destination: Some(only(public)),
        dport: vec![dport],
        ..Match::default()
    }
}

// ---- Pools ----------------------------------------------------------------------------------------------------------

#[test]
fn a_pool_is_used_to_its_last_address_and_its_last_port() {
    let addresses = pool(&[("198.51.100.20", "198.51.100.21"), ("198.51.100.30", "198.51.100.30")]);
    let out = NatRuleSpec { ports: Some(5000..=5007), ..to_wan(NatKind::Snat { to: addresses.clone() }) };
    everywhere(translating(vec![out]), |lab| {
        let workers = lab.workers.len();
        let mut used = BTreeSet::new();
        let mut refused = 0;
        for n in 0..200 {
            let host = format!("10.0.0.{}", 2 + n % 40);
            match lab.send(LAN, &udp(&host, 4000 + n / 40, SERVER, 53, b"")).pop() {
                Some((WAN, out)) => {
                    assert!(addresses.contains(out.src) && (5000..=5007).contains(&out.sport), "{}", out.flow());
                    assert!(used.insert((out.src, out.sport)), "{} twice", out.flow());
                    let back = lab.passes(WAN, &udp(SERVER, 53, &out.src.to_string(), out.sport, b""), LAN);
                    assert_eq!(back.dst, ip(&host));
                }
                Some(other) => panic!("{other:?}"),
                None => refused += 1,
            }
        }
        assert_eq!(used.len(), 24, "three addresses with eight ports each");
        assert_eq!(lab.drop_count(DropReason::NatNoPort), refused);
        assert_eq!((lab.leases(), refused), (24, 176));
        lab.heard();
        let named =
            lab.events.iter().any(|e| matches!(e, Event::NatFailed { rule: 0, reason: DropReason::NatNoPort, .. }));
        assert!(named, "the rule is named");
        // Another destination has them all once more.
        lab.passes(LAN, &udp(HOST, 4000, "203.0.113.6", 53, b""), WAN);
        // What ends is free again.
        lab.wait(Nanos::from_secs(200));
        assert_eq!((lab.entries(), lab.leases()), (0, 0), "{workers} workers");
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
    });
}

/// All connections of one worker's: once its share of the ports is used up it has the others' too, to the last.
#[test]
fn no_port_is_lost_to_a_worker_that_has_none_left() {
    type Query = fn(&str, u16, &str) -> Pkt;
    let tcp_query: Query = |host, port, server| tcp(host, port, server, 443, SYN, 1, 0, b"");
    let queries: [(u8, Query); 4] = [
        (proto::TCP, tcp_query),
        (proto::UDP, |host, port, server| udp(host, port, server, 443, b"")),
        (proto::UDPLITE, |host, port, server| udplite(host, port, server, 443, 8, b"12345678")),
        (proto::ICMP, |host, port, server| ping(host, server, port, 1)),
    ];
    let pooled = || NatKind::Snat { to: ip("198.51.100.20").into() };
    for (proto, query) in queries {
        let out = NatRuleSpec { ports: Some(5000..=5015), ..to_wan(pooled()) };
        everywhere(translating(vec![out]), |lab| {
            let first = |lab: &Lab, host: &str, port: u16| match proto {
                proto::ICMP => lab.home(&Tuple { sport: port, dport: 8 << 8, ..tuple(host, 0, SERVER, 0, proto) }),
                _ => lab.home(&tuple(host, port, SERVER, 443, proto)),
            };
            let worker = first(lab, HOST, 4000);
            let all = (2..=250).flat_map(|n| (4000..4008).map(move |port| (format!("10.0.0.{n}"), port)));
            let all: Vec<_> = all.filter(|(host, port)| first(lab, host, *port) == worker).take(17).collect();
            let mut used = BTreeSet::new();
            for (host, port) in all.iter().take(16) {
                let out = lab.passes(LAN, &query(host, *port, SERVER), WAN);
                let fresh = used.insert(out.sport); // or identifier
                assert!((5000..=5015).contains(&out.sport) && fresh, "{}", out.flow());
            }
            let (host, port) = &all[16];
            lab.refuses(LAN, &query(host, *port, SERVER), DropReason::NatNoPort);
            lab.sound();
            assert_eq!(lab.leases(), 16);
            lab.wait(Nanos::from_secs(500));
            assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (0, 0, 0));
            lab.passes(LAN, &query(host, *port, SERVER), WAN);
        });
    }
}

#[test]
fn a_persistent_client_keeps_its_address() {
    let kind = NatKind::Snat { to: pool(&[("198.51.100.16", "198.51.100.31")]) };
    for persistent in [true, false] {
        everywhere(translating(vec![NatRuleSpec { persistent, ..to_wan(kind.clone()) }]), |lab| {
            let mut addresses = BTreeSet::new();
            for n in 1..=40 {
                let out = lab.passes(LAN, &udp(HOST, 4000, &format!("203.0.113.{n}"), 53, b""), WAN);
                addresses.insert(out.src);
            }
            assert_eq!(addresses.len() == 1, persistent, "{addresses:?}");
        });
    }
}

#[test]
fn each_ip_version_has_its_part_of_a_pool() {
    let kind = NatKind::Snat { to: pool(&[("198.51.100.20", "198.51.100.20"), ("2001:db8::20", "2001:db8::20")]) };
    everywhere(translating(vec![to_wan(kind)]), |lab| {
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).src, ip("198.51.100.20"));
        assert_eq!(lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b""), WAN).src, ip("2001:db8::20"));
    });
}

#[test]
fn ports_are_drawn_where_the_rule_says_so() {
    let rule = NatRuleSpec { preserve_port: PreservePort::Never, ..masquerade() };
    everywhere(translating(vec![rule]), |lab| {
        let out = |lab: &mut Lab, n: u16| lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), WAN).sport;
        let kept = (0..200).filter(|&n| out(lab, n) == 4000 + n).count();
        assert!(kept <= 3, "{kept} of 200 kept their port");
    });
}

#[test]
fn servers_of_a_pool_share_the_clients() {
    let servers = NatKind::Dnat { to: pool(&[(WEB, "10.0.0.12")]), port: Some(ToPort::One(80)) };
    everywhere(translating(vec![NatRuleSpec::new("web", public("198.51.100.1/32", 8080..=8080), servers)]), |lab| {
        let mut seen = BTreeSet::new();
        for n in 1..=60 {
            let client = format!("203.0.113.{n}");
            let out = lab.passes(WAN, &tcp(&client, 5000, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
            assert_eq!(out.dport, 80);
            seen.insert(out.dst);
            let back = lab.passes(LAN, &tcp(&out.dst.to_string(), 80, &client, 5000, SYN | ACK, 1, 2, b""), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > {client}:5000"));
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    });
}

// ---- Destinations ---------------------------------------------------------------------------------------------------

#[test]
fn a_range_of_ports_goes_inside_one_to_one() {
    let kind = NatKind::Dnat { to: ip(WEB).into(), port: Some(ToPort::Shift { from: 8000, to: 18_000 }) };
    everywhere(translating(vec![NatRuleSpec::new("range", public("198.51.100.1/32", 8000..=8099), kind)]), |lab| {
        for port in [8000, 8001, 8050, 8099] {
            let out = lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, port, b""), LAN);
            assert_eq!(out.flow(), format!("203.0.113.5:5000 > 10.0.0.9:{}", port + 10_000));
            let back = lab.passes(LAN, &udp(WEB, port + 10_000, SERVER, 5000, b""), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:{port} > 203.0.113.5:5000"));
        }
        let out = lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, 8100, b""), WAN_TWIN);
        assert_eq!(out.dport, 8100);
    });
}

#[test]
fn a_redirect_leads_to_the_gateway_itself() {
    let redirect = |proto, dport, port| {
        let matches = Match { from: vec![LAN_ZONE], proto: vec![proto], dport: vec![dport], ..Match::default() };
        NatRuleSpec::new("dns", matches, NatKind::Redirect { port })
    };
    let rules = vec![
        redirect(proto::UDP, 53..=53, Some(ToPort::One(5353))),
        redirect(proto::TCP, 80..=89, Some(ToPort::Shift { from: 80, to: 3128 })),
        redirect(proto::TCP, 443..=443, None),
    ];
    everywhere(translating(rules), |lab| {
        for (host, server, own) in [(HOST, SERVER, "10.0.0.1"), (HOST6, SERVER6, "fd00:1::1")] {
            for port in 4000..4010 {
                let up = lab.passes(LAN, &udp(host, port, server, 53, b"name?"), LAN_TWIN);
                assert_eq!(up.flow(), Pkt::flow_of(host, port, own, 5353));
                let down = lab.passes(LAN_TWIN, &udp(own, 5353, host, port, b"address").to_mac(HOST_MAC), LAN);
                assert_eq!(down.flow(), Pkt::flow_of(server, 53, host, port));
            }
        }
        assert_eq!(lab.passes(LAN, &tcp(HOST, 1, SERVER, 87, SYN, 1, 0, b""), LAN_TWIN).dport, 3135);
        assert_eq!(lab.passes(LAN, &tcp(HOST, 1, SERVER, 443, SYN, 1, 0, b""), LAN_TWIN).dport, 443);
        lab.passes(LAN, &tcp(HOST, 1, SERVER, 444, SYN, 1, 0, b""), WAN);
    });
}

#[test]
fn both_ends_are_translated_by_one_rule() {
    for (source, expect) in [(None, "10.0.0.1"), (Some(ip("10.0.0.77").into()), "10.0.0.77")] {
        let kind = NatKind::Twice { to: ip(WEB).into(), port: Some(ToPort::One(80)), source };
        everywhere(translating(vec![NatRuleSpec::new("both", public("198.51.100.1/32", 8080..=8080), kind)]), |lab| {
            for port in 5000..5010 {
                let out = lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"there"), LAN);
                assert_eq!((out.src, out.dst, out.dport), (ip(expect), ip(WEB), 80));
                let back = lab.passes(LAN, &udp(WEB, 80, expect, out.sport, b"back"), WAN);
                assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
            }
            assert_eq!((lab.leases(), lab.signposts()), (10, 0));
        });
    }
}

// ---- Prefixes -------------------------------------------------------------------------------------------------------

/// 10.0.0.0/24 is 192.0.2.0/24 to all who are outside, whoever begins.
#[test]
fn a_prefix_is_mapped_both_ways() {
    let (from, to) = ("10.0.0.0/24".parse().expect("prefix"), "192.0.2.0/24".parse().expect("prefix"));
    let matches = Match { source: Some(only("10.0.0.0/24")), ..from_to(LAN_ZONE, WAN_ZONE) };
    let rule = NatRuleSpec::new("map", matches, NatKind::Netmap { from, to, side: NetmapSide::Source });
    everywhere(translating(vec![rule]), |lab| {
        for n in 2..20 {
            let (inside, outside) = (format!("10.0.0.{n}"), format!("192.0.2.{n}"));
            let out = lab.passes(LAN, &tcp(&inside, 4000, SERVER, 443, SYN, 1, 0, b""), WAN);
            assert_eq!(out.flow(), format!("{outside}:4000 > 203.0.113.5:443"), "ports stay");
            let back = lab.passes(WAN, &tcp(SERVER, 443, &outside, 4000, SYN | ACK, 1, 2, b""), LAN);
            assert_eq!(back.flow(), format!("203.0.113.5:443 > {inside}:4000"));
            let seen = lab.passes(WAN, &udp(SERVER, 5000, &outside, 53, b"q"), LAN);
            assert_eq!(seen.flow(), format!("203.0.113.5:5000 > {inside}:53"));
            let back = lab.passes(LAN, &udp(&inside, 53, SERVER, 5000, b"a"), WAN);
            assert_eq!(back.flow(), format!("{outside}:53 > 203.0.113.5:5000"));
            let pinged = lab.passes(WAN, &ping(SERVER, &outside, 7, 1), LAN);
            assert_eq!(pinged.dst, ip(&inside));
            assert_eq!(lab.passes(LAN, &pong(&inside, SERVER, 7, 1), WAN).src, ip(&outside));
        }
        assert_eq!(lab.leases(), 0, "a prefix has no ports to run out of");
        // A neighbour by its outside address: both ends look as they do from outside.
        let out = lab.passes(LAN, &udp(HOST, 6000, "192.0.2.9", 53, b"q"), LAN);
        assert_eq!(out.flow(), "192.0.2.2:6000 > 10.0.0.9:53");
        let back = lab.passes(LAN, &udp(WEB, 53, "192.0.2.2", 6000, b"a"), LAN);
        assert_eq!(back.flow(), "192.0.2.9:53 > 10.0.0.2:6000");
    });
}

#[test]
fn a_prefix_of_destinations_is_mapped() {
    let (from, to) = ("192.0.2.0/28".parse().expect("prefix"), "10.0.0.0/28".parse().expect("prefix"));
    let matches = Match { from: vec![WAN_ZONE], destination: Some(only("192.0.2.0/28")), ..Match::default() };
    let rule = NatRuleSpec::new("map", matches, NatKind::Netmap { from, to, side: NetmapSide::Destination });
    everywhere(translating(vec![rule]), |lab| {
        let out = lab.passes(WAN, &udp(SERVER, 5000, "192.0.2.9", 53, b"q"), LAN);
        assert_eq!(out.flow(), "203.0.113.5:5000 > 10.0.0.9:53");
        assert_eq!(lab.passes(LAN, &udp(WEB, 53, SERVER, 5000, b"a"), WAN).src, ip("192.0.2.9"));
        assert_eq!(lab.passes(LAN, &udp(WEB, 9, SERVER, 9, b""), WAN).src, ip(WEB), "one way only");
    });
}

// ---- Exemptions, hairpins -------------------------------------------------------------------------------------------

#[test]
fn what_is_exempt_is_not_translated() {
    let vpn = Match { destination: Some(only("203.0.113.64/26")), ..from_to(LAN_ZONE, WAN_ZONE) };
    let health = Match { source: Some(only("203.0.113.7/32")), ..Match::default() };
    let web = NatKind::Dnat { to: ip(WEB).into(), port: None };
    let rules = vec![
        NatRuleSpec::new("vpn", vpn, NatKind::None),
        NatRuleSpec::new("health", health, NatKind::None),
        masquerade(),
        NatRuleSpec::new("web", public("198.51.100.1/32", 80..=80), web),
    ];
    everywhere(translating(rules), |lab| {
        assert_eq!(lab.passes(LAN, &udp(HOST, 1000, "203.0.113.70", 53, b""), WAN).src, ip(HOST));
        assert_eq!(lab.passes(LAN, &udp(HOST, 1000, SERVER, 53, b""), WAN).src, ip(GATEWAY));
        assert_eq!(lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, 80, b""), LAN).dst, ip(WEB));
        assert_eq!(lab.passes(WAN, &udp("203.0.113.7", 5000, GATEWAY, 80, b""), WAN_TWIN).dst, ip(GATEWAY));
    });
}

/// A client beside the server uses the public address, and no rule says anything of it. RFC 4787 REQ-9: the server sees the
/// public address.
#[test]
fn a_forward_serves_clients_beside_the_server() {
    let forward = |destination: Option<&str>, hairpin| {
        let matches = Match { destination: destination.map(only), ..public("198.51.100.1/32", 8080..=8080) };
        let web = NatKind::Dnat { to: ip(WEB).into(), port: Some(ToPort::One(80)) };
        translating(vec![NatRuleSpec { hairpin, ..NatRuleSpec::new("web", matches, web) }, masquerade()])
    };
    for destination in [Some("198.51.100.1/32"), None] {
        everywhere(forward(destination, Hairpin::Auto), |lab| {
            for port in 5000..5010 {
                let out = lab.passes(LAN, &tcp(HOST, port, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
                assert_eq!((out.src, out.dst, out.dport), (ip(GATEWAY), ip(WEB), 80));
                let back = lab.passes(LAN, &tcp(WEB, 80, GATEWAY, out.sport, SYN | ACK, 1, 2, b""), LAN);
                assert_eq!(back.flow(), format!("198.51.100.1:8080 > 10.0.0.2:{port}"));
            }
            // Others' servers are theirs.
            assert_eq!(lab.passes(LAN, &tcp(HOST, 1, SERVER, 8080, SYN, 1, 0, b""), WAN).dst, ip(SERVER));
        });
        everywhere(forward(destination, Hairpin::Off), |lab| {
            lab.passes(LAN, &tcp(HOST, 5000, GATEWAY, 8080, SYN, 1, 0, b""), LAN_TWIN);
        });
    }
}

/// A rule that serves lan alone is not opened to wan by being a hairpin.
#[test]
fn a_hairpin_opens_nothing_to_others() {
    let proxy = Match { from: vec![LAN_ZONE], proto: vec![proto::TCP], dport: vec![80..=80], ..Match::default() };
    let rule = NatRuleSpec::new("proxy", proxy, NatKind::Dnat { to: ip(WEB).into(), port: Some(ToPort::One(3128)) });
    everywhere(translating(vec![rule]), |lab| {
        let up = lab.passes(WAN, &tcp(SERVER, 5000, GATEWAY, 80, SYN, 1, 0, b""), WAN_TWIN);
        assert_eq!(up.dport, 80);
    });
}

// ---- Addresses that go, policies that change ------------------------------------------------------------------------

/// The interface's address without, or with another one.
fn wan_address(address: Option<&str>) -> dataplane::api::FibSpec {
    let mut routes = fib();
    routes.addresses.retain(|(i, a)| *i == 0 || !a.addr().is_ipv4());
    routes.addresses.extend(address.map(|a| (1, a.parse().expect("prefix"))));
    routes
}

#[test]
fn a_masqueraded_connection_ends_with_its_address() {
    everywhere(translating(vec![masquerade()]), |lab| {
        for n in 0..6 {
            lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), WAN);
        }
        lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b""), WAN);
        lab.reroute(wan_address(Some("198.51.100.2/24")));
        lab.changed();
        // Its next packet ends one, the sweep the others; what has another address is left.
        lab.refuses(LAN, &udp(HOST, 4000, SERVER, 53, b""), DropReason::NatAddressGone);
        lab.moved(&["class new original +1", "drop nat_address_gone +1", "event address_gone +1"]);
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).src, ip("198.51.100.2"));
        assert_eq!(sweep(lab), 2);
        assert_eq!((lab.entries(), lab.leases()), (2, 2));
        assert_eq!(lab.passes(LAN, &udp(HOST, 4001, SERVER, 53, b""), WAN).src, ip("198.51.100.2"));
    });
}

#[test]
fn an_address_that_joins_or_comes_first_ends_nothing() {
    everywhere(translating(vec![masquerade()]), |lab| {
        let before = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        let mut routes = wan_address(Some("198.51.100.2/24"));
        routes.addresses.push((1, "198.51.100.1/24".parse().expect("prefix")));
        lab.reroute(routes);
        assert_eq!(sweep(lab), 1);
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).flow(), before.flow());
        assert_eq!(lab.passes(LAN, &udp(HOST, 4001, SERVER, 53, b""), WAN).src, ip("198.51.100.2"));
    });
}

#[test]
fn a_redirected_connection_ends_with_its_address() {
    let matches = Match { from: vec![WAN_ZONE], proto: vec![proto::UDP], dport: vec![53..=53], ..Match::default() };
    let rule = NatRuleSpec::new("dns", matches, NatKind::Redirect { port: Some(ToPort::One(5353)) });
    everywhere(translating(vec![rule]), |lab| {
        assert_eq!(lab.passes(WAN, &udp(SERVER, 4000, "192.0.2.9", 53, b""), WAN_TWIN).dst, ip(GATEWAY));
        lab.reroute(wan_address(Some("198.51.100.2/24")));
        assert_eq!(sweep(lab), 0);
        assert_eq!(lab.passes(WAN, &udp(SERVER, 4000, "192.0.2.9", 53, b""), WAN_TWIN).dst, ip("198.51.100.2"));
    });
}

/// Has all workers sweep their tables; says how many connections stay.
fn sweep(lab: &mut Lab) -> u64 {
    lab.events.clear();
    lab.command(|| Command::Sweep { cursor: 0 });
    lab.run();
    let kept = |e: &Event| if let Event::Swept { next: None, kept } = e { Some(*kept) } else { None };
    let answers: Vec<u64> = lab.events.iter().filter_map(kept).collect();
    assert_eq!(answers.len(), lab.workers.len(), "each worker answers once");
    answers.iter().sum()
}

#[test]
fn a_reload_ends_what_it_translates_otherwise_where_a_rule_says_so() {
    let snat = |to: &str, on_reload| NatRuleSpec { on_reload, ..to_wan(NatKind::Snat { to: ip(to).into() }) };
    let first = || translating(vec![snat("198.51.100.7", OnReload::Keep)]);
    for (before, after, ends) in [
        (OnReload::Keep, OnReload::Keep, false),
        (OnReload::End, OnReload::Keep, true),
        (OnReload::Keep, OnReload::End, true),
    ] {
        everywhere(translating(vec![snat("198.51.100.7", before)]), |lab| {
            for n in 0..5 {
                lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), WAN);
            }
            lab.reload(translating(vec![snat("198.51.100.7", before)]));
            assert_eq!(sweep(lab), 5, "the same translation is no other one");
            lab.reload(translating(vec![snat("198.51.100.8", after)]));
            lab.changed();
            if ends {
                lab.refuses(LAN, &udp(HOST, 4000, SERVER, 53, b""), DropReason::NatReload);
                lab.moved(&["class new original +1", "drop nat_reload +1", "event retranslated +1"]);
            } else {
                assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).src, ip("198.51.100.7"));
            }
            assert_eq!(sweep(lab), if ends { 0 } else { 5 });
            assert_eq!(lab.leases(), if ends { 0 } else { 5 });
            let new: IpAddr = lab.passes(LAN, &udp(HOST, 5000, SERVER, 53, b""), WAN).src;
            assert_eq!(new, ip("198.51.100.8"));
        });
    }
    // Rules that go: what they said of their connections holds.
    for (on_reload, kept) in [(OnReload::Keep, 1), (OnReload::End, 0)] {
        everywhere(translating(vec![snat("198.51.100.7", on_reload)]), |lab| {
            lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
            lab.reload(translating(Vec::new()));
            assert_eq!(sweep(lab), kept);
        });
    }
    // And what was not translated before.
    everywhere(translating(Vec::new()), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        lab.reload(translating(vec![snat("198.51.100.7", OnReload::End)]));
        assert_eq!(sweep(lab), 0);
    });
    everywhere(first(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        let pool = pool(&[("198.51.100.5", "198.51.100.9")]);
        lab.reload(translating(vec![NatRuleSpec { on_reload: OnReload::End, ..to_wan(NatKind::Snat { to: pool }) }]));
        assert_eq!(sweep(lab), 1, "its address is one of the pool");
    });
}

#[test]
fn a_reload_ends_forwards_that_lead_elsewhere() {
    let web = |to: &str, port| {
        let kind = NatKind::Dnat { to: ip(to).into(), port: Some(ToPort::One(port)) };
        let rule = NatRuleSpec::new("web", public("198.51.100.1/32", 8080..=8080), kind);
        translating(vec![NatRuleSpec { on_reload: OnReload::End, ..rule }])
    };
    everywhere(web(WEB, 80), |lab| {
        for (policy, kept) in [(web(WEB, 80), 1), (web(WEB, 81), 0), (web("10.0.0.8", 81), 0)] {
            lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, 8080, b""), LAN);
            lab.reload(policy);
            assert_eq!(sweep(lab), kept);
        }
    });
}

/// All kinds at once are judged as what they are: a reload of the same policy ends nothing.
#[test]
fn a_reload_of_the_same_rules_ends_nothing() {
    let net = |text: &str| text.parse().expect("prefix");
    let end = |r: NatRuleSpec| NatRuleSpec { on_reload: OnReload::End, ..r };
    let inside = Match { source: Some(only("10.0.0.32/27")), ..from_to(LAN_ZONE, WAN_ZONE) };
    let exempt = Match { source: Some(only("10.0.0.20/32")), ..from_to(LAN_ZONE, WAN_ZONE) };
    let web = |port| NatKind::Dnat { to: ip(WEB).into(), port: Some(ToPort::One(port)) };
    let dns = Match { from: vec![LAN_ZONE], proto: vec![proto::UDP], dport: vec![53..=53], ..Match::default() };
    let twice = NatKind::Twice { to: ip(WEB).into(), port: None, source: None };
    let map = NatKind::Netmap { from: net("10.0.0.32/27"), to: net("192.0.2.32/27"), side: NetmapSide::Source };
    let pooled = NatKind::Snat { to: pool(&[("198.51.100.16", "198.51.100.31"), ("2001:db8::20", "2001:db8::2f")]) };
    let rules = vec![
        end(NatRuleSpec::new("exempt", exempt, NatKind::None)),
        end(NatRuleSpec::new("dns", dns, NatKind::Redirect { port: Some(ToPort::One(5353)) })),
        end(NatRuleSpec::new("map", inside, map)),
        end(NatRuleSpec::new("web", public("198.51.100.1/32", 8080..=8080), web(80))),
        end(NatRuleSpec::new("both", public("198.51.100.1/32", 8081..=8081), twice)),
        end(NatRuleSpec { ports: Some(2000..=2999), ..to_wan(pooled) }),
    ];
    everywhere(translating(rules.clone()), |lab| {
        for n in 0..6 {
            lab.passes(LAN, &udp("10.0.0.20", 4000 + n, SERVER, 443, b""), WAN);
            lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 443, b""), WAN);
            lab.passes(LAN, &udp(HOST6, 4000 + n, SERVER6, 443, b""), WAN);
            lab.passes(LAN, &ping(HOST, SERVER, n, 1), WAN);
            lab.passes(LAN, &other(HOST, &format!("203.0.113.{}", 10 + n), 50, b""), WAN);
            lab.passes(LAN, &udp("10.0.0.33", 4000 + n, SERVER, 443, b""), WAN);
            lab.passes(WAN, &udp(SERVER, 4000 + n, "192.0.2.34", 443, b""), LAN);
            lab.passes(LAN, &udp(HOST, 4000 + n, SERVER, 53, b""), LAN_TWIN);
            lab.passes(WAN, &tcp(SERVER, 4000 + n, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
            lab.passes(LAN, &tcp(HOST, 4000 + n, GATEWAY, 8080, SYN, 1, 0, b""), LAN);
            lab.passes(WAN, &tcp(SERVER, 4000 + n, GATEWAY, 8081, SYN, 1, 0, b""), LAN);
        }
        let all = lab.entries() as u64;
        assert_eq!(all, 66);
        for _ in 0..2 {
            lab.reload(translating(rules.clone()));
            assert_eq!(sweep(lab), all);
        }
        lab.reroute(fib());
        assert_eq!(sweep(lab), all);
    });
}
