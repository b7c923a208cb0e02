//! Stories of translation between IPv6 prefixes: stateless, around everything else, and no checksum changes.
//!
//! ```text
//!   fd00:1::2  fd00:1::3     lan                 wan       2001:db8::10, and the world
//!   ────────────────────[ fd00:1::1/64    2001:db8::1/64 ]──────────── via 2001:db8::fe
//!   fd00:1::/48  is outside  2001:db8:f::/48:  fd01 - 2dc8 = cf39, so subnet 0 is subnet cf39
//! ```

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::net::IpAddr;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::command::ConnFilter;
use dataplane::api::policy::*;
use dataplane::api::stats::HandoverCause;
use dataplane::api::{DropReason, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::proto;
use dataplane::defrag::{self, Mode};
use dataplane::io::PortIdx;

const HOST: &str = "fd00:1::2";
const OTHER: &str = "fd00:1::3";
const SERVER: &str = "2001:db8:5::5";
/// The hosts as the world knows them.
const HOST_OUT: &str = "2001:db8:f:cf39::2";
const OTHER_OUT: &str = "2001:db8:f:cf39::3";
const GATEWAY_OUT: &str = "2001:db8:f:cf39::1";
const WAN_GATEWAY: &str = "2001:db8::1";
/// A router outside, and one inside.
const ROUTER: &str = "2001:db8::10";

fn npt(inside: &str, outside: &str) -> NatRuleSpec {
    let kind = NatKind::Nptv6 { inside: inside.parse().expect("prefix"), outside: outside.parse().expect("prefix") };
    NatRuleSpec::new("npt", from_to(LAN_ZONE, WAN_ZONE), kind)
}

/// The usual policy with prefixes translated.
fn translated() -> PolicySpec {
    PolicySpec { nat: vec![npt("fd00:1::/48", "2001:db8:f::/48")], ..usual() }
}

/// The same, and everybody may do anything.
fn open() -> PolicySpec {
    PolicySpec { rules: Vec::new(), default: Action::Accept, ..translated() }
}

fn notrack(mut spec: PolicySpec) -> PolicySpec {
    spec.raw.push(RawRuleSpec { name: "all".into(), matches: Match::default(), action: RawAction::Notrack });
    spec
}

fn virtually() -> Setup {
    Setup { defrag: defrag::Setup { mode: Mode::Virtual, ..defrag::Setup::default() }, ..Setup::default() }
}

/// What must come out where `p` goes in: one hop further, with other addresses, and not a bit else.
fn changed(p: &Pkt, src: &str, dst: &str) -> Vec<u8> {
    let mut b = p.ip();
    b[7] -= 1;
    let octets = |a: &str| match ip(a) {
        IpAddr::V6(a) => a.octets(),
        IpAddr::V4(_) => panic!("an IPv6 address"),
    };
    b[8..24].copy_from_slice(&octets(src));
    b[24..40].copy_from_slice(&octets(dst));
    b
}

/// Packets of every protocol from `src` to `dst`, and answers to them.
fn talks(src: &str, dst: &str) -> Vec<(Pkt, Pkt)> {
    vec![
        (udp(src, 4000, dst, 53, b"question"), udp(dst, 53, src, 4000, b"answer")),
        (udp(src, 4001, dst, 53, b"q").without_checksum(), udp(dst, 53, src, 4001, b"a").without_checksum()),
        (tcp(src, 4000, dst, 80, SYN, 7, 0, b""), tcp(dst, 80, src, 4000, SYN | ACK, 9, 8, b"")),
        (ping(src, dst, 7, 1), pong(dst, src, 7, 1)),
        (udplite(src, 4000, dst, 53, 10, b"light"), udplite(dst, 53, src, 4000, 0, b"light")),
        (sctp(src, 4000, dst, 80, 0, &[init(1, 5)]), sctp(dst, 80, src, 4000, 5, &[init(2, 6)])),
        (other(src, dst, proto::GRE, b"\0\0\x08\0plain"), other(dst, src, proto::GRE, b"\0\0\x08\0plain")),
        (other(src, dst, 50, b"secret"), other(dst, src, 50, b"hidden")),
    ]
}

#[test]
fn every_protocol_goes_out_and_comes_back_with_nothing_but_addresses_changed() {
    for spec in [translated(), notrack(open())] {
        let tracked = spec.raw.is_empty();
        everywhere(spec, |lab| {
            for (question, answer) in talks(HOST, SERVER) {
                let server = question.dst.to_string();
                let out = lab.passes(LAN, &question, WAN);
                assert_eq!(out.ip, changed(&question, HOST_OUT, &server), "protocol {}", question.proto);
                // The world answers whom it knows. The checksum is that of other addresses, and the same.
                let mut from_world = answer.clone();
                from_world.dst = ip(HOST_OUT);
                let back = lab.passes(WAN, &from_world, LAN);
                assert_eq!(back.ip, changed(&answer, &server, HOST), "protocol {}", answer.proto);
            }
            let call = other(HOST, "2001:db8:5::6", proto::GRE, &[0x30, 1, 0x88, 0x0b, 0, 4, 0x12, 0x34, 1, 2, 3, 4]);
            assert_eq!(lab.passes(LAN, &call, WAN).ip, changed(&call, HOST_OUT, "2001:db8:5::6"));
            lab.flush(ConnFilter {
                proto: Some(proto::GRE),
                destination: Some(call.dst.into()),
                ..ConnFilter::default()
            });
            // Tracking knows inside addresses only.
            let conns = lab.conns();
            assert_eq!(conns.len(), if tracked { 8 } else { 0 });
            for c in conns {
                assert_eq!((c.original.src, c.reply.dst), (ip(HOST), ip(HOST)));
                assert!(c.replied, "{c:?}");
            }
            assert_eq!((lab.total_drops(), lab.leases()), (0, 0));
        });
    }
}

#[test]
fn longer_prefixes_change_the_interface_identifier() {
    // fd01 - (2001 + 0db8 + f + 7) = cf32
    let spec = PolicySpec { nat: vec![npt("fd00:1::/64", "2001:db8:f:7::/64")], ..usual() };
    everywhere(spec, |lab| {
        let outside = "2001:db8:f:7:cf32::2";
        let question = udp(HOST, 4000, SERVER, 53, b"question");
        assert_eq!(lab.passes(LAN, &question, WAN).ip, changed(&question, outside, SERVER));
        let answer = udp(SERVER, 53, outside, 4000, b"answer");
        assert_eq!(lab.passes(WAN, &answer, LAN).ip, changed(&answer, SERVER, HOST));
    });
}

#[test]
fn hosts_can_be_reached_from_outside_where_the_policy_lets_them() {
    let mut spec = translated();
    let matches = Match { destination: Some(only("fd00:1::2/128")), ..from_to(WAN_ZONE, LAN_ZONE) };
    spec.rules.push(rule("in", matches, Action::Accept));
    everywhere(spec, |lab| {
        let question = tcp(SERVER, 4000, HOST_OUT, 80, SYN, 7, 0, b"");
        assert_eq!(lab.passes(WAN, &question, LAN).ip, changed(&question, SERVER, HOST));
        let answer = tcp(HOST, 80, SERVER, 4000, SYN | ACK, 9, 8, b"");
        assert_eq!(lab.passes(LAN, &answer, WAN).ip, changed(&answer, HOST_OUT, SERVER));
        lab.refuses(WAN, &tcp(SERVER, 4000, OTHER_OUT, 80, SYN, 7, 0, b""), DropReason::PolicyDefault);
        // Who knows the inside address is not let in by that, for the host would answer from another.
        let direct = lab.passes(WAN, &tcp(SERVER, 4001, HOST, 80, SYN, 7, 0, b""), LAN);
        assert_eq!(direct.dst, ip(HOST));
    });
}

#[test]
fn invalid_packets_are_translated_too_where_they_pass() {
    everywhere(open(), |lab| {
        let stray = tcp(HOST, 4000, SERVER, 80, SYN | FIN, 7, 0, b"");
        assert_eq!(lab.passes(LAN, &stray, WAN).ip, changed(&stray, HOST_OUT, SERVER));
        let stray = tcp(SERVER, 80, HOST_OUT, 4000, RST, 7, 0, b"");
        assert_eq!(lab.passes(WAN, &stray, LAN).ip, changed(&stray, SERVER, HOST));
        // Wrong stays as wrong as it was.
        for (port, p, egress, src, dst) in [
            (LAN, udp(HOST, 4000, SERVER, 53, b"question"), WAN, HOST_OUT, SERVER),
            (WAN, udp(SERVER, 53, HOST_OUT, 4000, b"answer"), LAN, SERVER, HOST),
        ] {
            let p = p.broken_checksum();
            lab.arrive(port, &addressed(port, &p).frame());
            lab.run();
            let frames = lab.sent(egress);
            assert_eq!(frames.len(), 1, "{:?}", lab.drops());
            assert_eq!(frames[0][14..], changed(&p, src, dst));
        }
        lab.moved(&["class invalid original +4"]);
    });
}

#[test]
fn a_host_reaches_another_by_its_outside_address() {
    for spec in [open(), notrack(open())] {
        everywhere(spec, |lab| {
            lab.neighbour(0, OTHER, true);
            for (question, answer) in talks(HOST, OTHER_OUT) {
                if question.dst != ip(OTHER_OUT) {
                    continue;
                }
                let there = lab.passes(LAN, &question, LAN);
                assert_eq!(there.ip, changed(&question, HOST_OUT, OTHER), "protocol {}", question.proto);
                // It answers whom it sees.
                let mut reply = answer.clone();
                (reply.src, reply.dst) = (ip(OTHER), ip(HOST_OUT));
                let back = lab.passes(LAN, &reply, LAN);
                assert_eq!(back.ip, changed(&reply, OTHER_OUT, HOST), "protocol {}", answer.proto);
            }
            assert_eq!(lab.total_drops(), 0);
            // Errors on that way quote what their receiver sent.
            let question = udp(HOST, 4000, OTHER_OUT, 53, b"question");
            let there = lab.passes(LAN, &question, LAN);
            let error = icmp(OTHER, HOST_OUT, 1, 4, [0; 4], &there.ip);
            let back = lab.passes(LAN, &error, LAN);
            assert_eq!((back.src, back.dst), (ip(OTHER_OUT), ip(HOST)));
            back.assert_quotes(&question);
            // So do the gateway's own.
            let late = lab.refuses_with_error(LAN, &question.clone().ttl(1), DropReason::TtlExpired);
            assert_eq!(late.dst, ip(HOST));
            late.assert_quotes(&question);
        });
    }
}

// ---- Errors -----------------------------------------------------------------------------------------------------

/// Errors that routers and the other end send about packets of `talks`.
fn errors_about(sent: &[u8], from: &str, to: &str) -> Vec<Pkt> {
    [1, 2, 3, 4].map(|kind| icmp(from, to, kind, 0, [0, 0, 5, 0], sent)).to_vec()
}

#[test]
fn errors_from_outside_quote_what_the_host_sent() {
    for spec in [translated(), notrack(open())] {
        everywhere(spec, |lab| {
            for (question, _) in talks(HOST, SERVER) {
                let out = lab.passes(LAN, &question, WAN);
                for from in [ROUTER, SERVER] {
                    for error in errors_about(&out.ip, from, HOST_OUT) {
                        let back = lab.passes(WAN, &error, LAN);
                        assert_eq!((back.src, back.dst), (ip(from), ip(HOST)));
                        back.assert_quotes(&question);
                        assert_eq!(be16_at(&back.ip, 42), be16_at(&error.l4, 2), "the checksum stays");
                    }
                }
            }
            assert_eq!(lab.total_drops(), 0);
        });
    }
}

#[test]
fn errors_from_inside_quote_what_the_world_sent() {
    for spec in [open(), notrack(open())] {
        everywhere(spec, |lab| {
            for (question, _) in talks(SERVER, HOST_OUT) {
                if question.dst != ip(HOST_OUT) {
                    continue;
                }
                let there = lab.passes(WAN, &question, LAN);
                // From the host itself, and from a router inside, whose address is translated as well.
                for (from, seen) in [(HOST, HOST_OUT), ("fd00:1:0:9::1", "2001:db8:f:cf42::1")] {
                    for error in errors_about(&there.ip, from, SERVER) {
                        let out = lab.passes(LAN, &error, WAN);
                        assert_eq!((out.src, out.dst), (ip(seen), ip(SERVER)));
                        out.assert_quotes(&question);
                    }
                }
                // One of a router that has a public address shows that, and still no inside address.
                let error = icmp("2001:db8:77::1", SERVER, 3, 0, [0; 4], &there.ip);
                let out = lab.passes(LAN, &error, WAN);
                assert_eq!(out.src, ip("2001:db8:77::1"));
                out.assert_quotes(&question);
            }
        });
    }
}

#[test]
fn a_traceroute_sees_each_hop_and_its_own_packets_in_what_they_quote() {
    everywhere(open(), |lab| {
        // From inside: the gateway, then a router outside.
        let probe = udp(HOST, 4000, SERVER, 33434, b"probe");
        let first = lab.refuses_with_error(LAN, &probe.clone().ttl(1), DropReason::TtlExpired);
        assert_eq!((first.src, first.dst), (ip("fd00:1::1"), ip(HOST)));
        first.assert_quotes(&probe);
        let out = lab.passes(LAN, &probe.clone().ttl(2), WAN);
        let second = lab.passes(WAN, &icmp(ROUTER, HOST_OUT, 3, 0, [0; 4], &out.ip), LAN);
        assert_eq!(second.src, ip(ROUTER));
        second.assert_quotes(&probe);
        // From outside: the gateway quotes the address that was asked for, and not the one behind it.
        let probe = udp(SERVER, 4000, HOST_OUT, 33434, b"probe");
        let first = lab.refuses_with_error(WAN, &probe.clone().ttl(1), DropReason::TtlExpired);
        assert_eq!((first.src, first.dst), (ip(WAN_GATEWAY), ip(SERVER)));
        first.assert_quotes(&probe);
        let first = lab.refuses_with_error(WAN, &ping(SERVER, HOST_OUT, 7, 1).ttl(1), DropReason::TtlExpired);
        first.assert_quotes(&ping(SERVER, HOST_OUT, 7, 1));
    });
}

#[test]
fn errors_that_the_gateway_makes_later_quote_the_outside_address_too() {
    everywhere_with(&Setup { lan_mtu: 1280, ..Setup::default() }, open(), |lab| {
        let large = udp(SERVER, 4000, HOST_OUT, 2049, &[7; 1400]);
        let error = lab.refuses_with_error(WAN, &large, DropReason::MtuExceeded);
        assert_eq!((error.src, error.dst, error.dport >> 8), (ip(WAN_GATEWAY), ip(SERVER), 2));
        error.assert_quotes(&large);
        // Nobody is there: the error is made before the packet waits, and sent when it has waited.
        let probe = udp(SERVER, 4000, "2001:db8:f:cf39::77", 33434, b"probe");
        assert!(lab.send(WAN, &probe).is_empty());
        lab.wait(dataplane::time::Nanos::from_secs(4));
        let out = lab.collect();
        assert_eq!(out.len(), 1, "{out:?}");
        out[0].1.assert_quotes(&probe);
        // Neither does a route that is not there show an inside address.
        let probe = udp(SERVER, 4000, "2001:db8:f:cf40::77", 33434, b"probe");
        let mut routes = fib();
        routes
            .routes
            .push(RouteSpec { prefix: "fd00:1:0:7::/64".parse().expect("prefix"), target: RouteTarget::Unreachable });
        lab.reroute(routes);
        let error = lab.refuses_with_error(WAN, &probe, DropReason::RouteUnreachable);
        error.assert_quotes(&probe);
    });
}

// ---- Fragments --------------------------------------------------------------------------------------------------

fn big() -> Vec<u8> {
    (0..4000).map(|n| n as u8).collect()
}

fn arrive_all(lab: &mut Lab, port: PortIdx, fragments: &[Pkt]) {
    for f in fragments {
        lab.arrive(port, &addressed(port, f).frame());
        lab.run();
    }
}

#[test]
fn each_fragment_of_a_datagram_is_translated() {
    for (setup, spec) in [(Setup::default(), open()), (Setup::default(), notrack(open())), (virtually(), open())] {
        everywhere_with(&setup, spec, |lab| {
            lab.neighbour(0, OTHER, true);
            for (id, (port, egress, src, dst, seen)) in (1..).zip([
                (LAN, WAN, HOST, SERVER, (HOST_OUT, SERVER)),
                (WAN, LAN, SERVER, HOST_OUT, (SERVER, HOST)),
                (LAN, LAN, HOST, OTHER_OUT, (HOST_OUT, OTHER)),
            ]) {
                for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
                    let pieces = cut(&udp(src, 2049, dst, 2049, &big()), id, &[1448, 2896]);
                    arrive_all(lab, port, &order.map(|n| pieces[n].clone()));
                    let frames = lab.sent(egress);
                    assert_eq!(frames.len(), 3, "{:?}", lab.drops());
                    let out = put_together(&frames); // asserts the checksum
                    assert_eq!((out.src, out.dst, out.payload), (ip(seen.0), ip(seen.1), big()));
                    for f in frames {
                        assert_eq!((f[22..38].to_vec(), f[21]), (out.ip[8..24].to_vec(), 63), "each of them");
                    }
                }
            }
            assert_eq!(lab.total_drops(), 0);
        });
    }
}

#[test]
fn an_error_in_fragments_is_translated_with_what_it_quotes() {
    for setup in [Setup::default(), virtually()] {
        everywhere_with(&setup, open(), |lab| {
            let question = udp(HOST, 4000, SERVER, 53, &[3; 200]);
            let out = lab.passes(LAN, &question, WAN);
            let error = icmp(ROUTER, HOST_OUT, 3, 0, [0; 4], &out.ip);
            // The quoted addresses lie in the first fragment; put together first, also in several.
            let cuts: &[&[usize]] = if setup.defrag.mode == Mode::Virtual {
                &[&[64]]
            } else {
                &[&[64], &[24, 40], &[8, 16, 24, 32, 40, 48]]
            };
            for (id, cuts) in (1..).zip(cuts) {
                arrive_all(lab, WAN, &cut(&error, id, cuts));
                let back = put_together(&lab.sent(LAN));
                assert_eq!((back.src, back.dst), (ip(ROUTER), ip(HOST)));
                back.assert_quotes(&question);
            }
            let question = udp(SERVER, 4000, HOST_OUT, 53, &[3; 200]);
            let there = lab.passes(WAN, &question, LAN);
            let error = icmp("fd00:1:0:9::1", SERVER, 3, 0, [0; 4], &there.ip);
            for (id, cuts) in (11..).zip(cuts) {
                arrive_all(lab, LAN, &cut(&error, id, cuts));
                let out = put_together(&lab.sent(WAN));
                assert_eq!((out.src, out.dst), (ip("2001:db8:f:cf42::1"), ip(SERVER)));
                out.assert_quotes(&question);
            }
            assert_eq!(lab.total_drops(), 0);
        });
    }
}

#[test]
fn a_datagram_that_is_given_up_is_reported_with_the_address_that_was_asked_for() {
    everywhere(open(), |lab| {
        let pieces = cut(&udp(SERVER, 2049, HOST_OUT, 2049, &big()), 1, &[1448, 2896]);
        arrive_all(lab, WAN, &pieces[..2]);
        lab.wait(dataplane::time::Nanos::from_secs(61));
        let out = lab.collect();
        assert_eq!(out.len(), 1, "{out:?}");
        let (port, error) = &out[0];
        assert_eq!((*port, error.src, error.dst), (WAN, ip(WAN_GATEWAY), ip(SERVER)));
        assert_eq!(error.payload[24..40], pieces[0].ip()[24..40]);
        assert_eq!(lab.drop_count(DropReason::FragmentTimeout), 2);
    });
}

// ---- Addresses without an image, and those that stay ---------------------------------------------------------------

#[test]
fn an_address_without_an_image_is_refused_with_a_parameter_problem() {
    for (nat, inside, outside) in [
        (npt("fd00:1::/48", "2001:db8:f::/48"), "fd00:1:0:ffff::2", "2001:db8:f:ffff::2"),
        (npt("fd00:1::/64", "2001:db8:f:7::/64"), "fd00:1::ffff:ffff:ffff:ffff", "2001:db8:f:7:ffff:ffff:ffff:ffff"),
    ] {
        everywhere(PolicySpec { nat: vec![nat], ..open() }, |lab| {
            for (port, p, pointer) in [
                (LAN, udp(inside, 4000, SERVER, 53, b"question"), 8),
                (WAN, udp(SERVER, 53, outside, 4000, b"answer"), 24),
                (LAN, udp(HOST, 53, outside, 4000, b"hairpin"), 24),
            ] {
                let error = lab.refuses_with_error(port, &p, DropReason::NatPrefix);
                assert_eq!(
                    (error.dst, error.dport, error.ip[44..48].to_vec()),
                    (p.src, 4 << 8, vec![0, 0, 0, pointer])
                );
                error.assert_quotes(&p);
            }
            assert_eq!(lab.entries(), 0, "what cannot leave is not tracked");
            // Within its own side it may be used.
            lab.neighbour(0, inside, true);
            let fib = {
                let mut f = fib();
                let target = RouteTarget::Via { interface: 0, gateway: None };
                f.routes.push(RouteSpec { prefix: "fd00:1:0:ffff::/64".parse().expect("prefix"), target });
                f
            };
            lab.reroute(fib);
            assert_eq!(lab.passes(LAN, &udp(HOST, 53, inside, 53, b""), LAN).dst, ip(inside));
        });
    }
}

#[test]
fn neighbour_discovery_and_the_gateways_own_addresses_are_left_alone() {
    // The gateway's own address on wan lies within the outside prefix.
    let spec = PolicySpec { nat: vec![npt("fd00:1::/48", "2001:db8::/48")], ..open() };
    everywhere(spec, |lab| {
        let own = lab.passes(WAN, &ping(ROUTER, WAN_GATEWAY, 7, 1), WAN_TWIN);
        assert_eq!((own.src, own.dst), (ip(ROUTER), ip(WAN_GATEWAY)));
        let answer = lab.passes(WAN_TWIN, &pong(WAN_GATEWAY, ROUTER, 7, 1), WAN);
        assert_eq!((answer.src, answer.dst), (ip(WAN_GATEWAY), ip(ROUTER)));
        let target = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let solicit = icmp(ROUTER, WAN_GATEWAY, 135, 0, [0; 4], &target).ttl(255);
        assert_eq!(lab.passes(WAN, &solicit, WAN_TWIN).dst, ip(WAN_GATEWAY));
    });
}

#[test]
fn the_gateway_itself_speaks_to_the_world_as_one_of_the_inside() {
    everywhere(open(), |lab| {
        let there = lab.passes(WAN, &ping(SERVER, GATEWAY_OUT, 7, 1), WAN_TWIN);
        assert_eq!((there.src, there.dst), (ip(SERVER), ip("fd00:1::1")));
        let back = lab.passes(WAN_TWIN, &pong("fd00:1::1", SERVER, 7, 1), WAN);
        assert_eq!((back.src, back.dst), (ip(GATEWAY_OUT), ip(SERVER)));
        let own = lab.passes(WAN_TWIN, &udp("fd00:1::1", 123, SERVER, 123, b"time"), WAN);
        assert_eq!((own.src, own.dst), (ip(GATEWAY_OUT), ip(SERVER)));
        let answer = lab.passes(WAN, &udp(SERVER, 123, GATEWAY_OUT, 123, b"time"), WAN_TWIN);
        assert_eq!(answer.dst, ip("fd00:1::1"));
        assert_eq!(lab.entries(), 2);
    });
}

#[test]
fn only_the_zones_and_interfaces_of_the_rule_count() {
    let only_lan = from_to(LAN_ZONE, ZoneId::LOCAL);
    let by_other = Match { interface_out: vec![0], ..from_to(LAN_ZONE, WAN_ZONE) };
    let from_other = Match { interface_in: vec![1], ..from_to(LAN_ZONE, WAN_ZONE) };
    for matches in [only_lan, by_other, from_other] {
        let mut spec = open();
        spec.nat[0].matches = matches.clone();
        let mut lab = Lab::new(spec);
        assert_eq!(lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b""), WAN).src, ip(HOST), "{matches:?}");
    }
    // Of both sides' ends each counts: sources that are not inside ones, destinations that are not outside ones stay.
    let mut lab = Lab::new(open());
    assert_eq!(lab.passes(LAN, &udp("fd00:2::2", 1, SERVER, 2, b""), WAN).src, ip("fd00:2::2"));
    assert_eq!(lab.passes(WAN, &udp(SERVER, 1, "fd00:1::2", 2, b""), LAN).src, ip(SERVER));
    // The first of several rules that fits decides.
    let mut spec = open();
    spec.nat.insert(0, npt("fd00:1::/64", "2001:db8:e:7::/64"));
    let mut lab = Lab::new(spec);
    assert_eq!(lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b""), WAN).src, ip("2001:db8:e:7:cf33::2"));
    assert_eq!(lab.passes(LAN, &udp("fd00:1:0:1::2", 1, SERVER, 2, b""), WAN).src, ip("2001:db8:f:cf3a::2"));
    assert_eq!(lab.passes(WAN, &udp(SERVER, 2, HOST_OUT, 1, b""), LAN).dst, ip(HOST));
}

// ---- With the rest of the gateway ---------------------------------------------------------------------------------

#[test]
fn other_translation_sees_inside_addresses() {
    let mut spec = open();
    spec.nat.push(NatRuleSpec {
        matches: Match {
            from: vec![WAN_ZONE],
            destination: Some(only("fd00:1::2/128")),
            proto: vec![proto::UDP],
            dport: vec![8080..=8080],
            ..Match::default()
        },
        kind: NatKind::Dnat { to: ip(OTHER).into(), port: Some(ToPort::One(80)) },
        ..NatRuleSpec::new("forward", Match::default(), NatKind::None)
    });
    everywhere(spec, |lab| {
        lab.neighbour(0, OTHER, true);
        let question = udp(SERVER, 4000, HOST_OUT, 8080, b"question");
        let there = lab.passes(WAN, &question, LAN);
        assert_eq!(there.flow(), format!("{SERVER}:4000 > {OTHER}:80"));
        let back = lab.passes(LAN, &udp(OTHER, 80, SERVER, 4000, b"answer"), WAN);
        assert_eq!(back.flow(), format!("{HOST_OUT}:8080 > {SERVER}:4000"));
        // Errors: of a router inside, of the gateway.
        let out = lab.passes(LAN, &icmp("fd00:1:0:9::1", SERVER, 3, 0, [0; 4], &there.ip), WAN);
        assert_eq!(out.dst, ip(SERVER));
        out.assert_quotes(&question);
        let own = lab.refuses_with_error(WAN, &question.clone().ttl(1), DropReason::TtlExpired);
        assert_eq!((own.src, own.dst), (ip(HOST_OUT), ip(SERVER)), "it comes from the address that was asked");
        own.assert_quotes(&question);
    });
}

#[test]
fn masquerade_leaves_nothing_to_translate() {
    let mut spec = translated();
    spec.nat.push(masquerade());
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        assert_eq!(out.src, ip(WAN_GATEWAY));
        let back = lab.passes(WAN, &udp(SERVER, 53, WAN_GATEWAY, out.sport, b"answer"), LAN);
        assert_eq!((back.dst, back.dport), (ip(HOST), 4000));
    });
}

#[test]
fn answers_are_handed_to_the_worker_that_the_inside_addresses_belong_to() {
    // RSS is linear, so it depends on the two prefixes whether all answers must be handed over, or none.
    let mut brought_home = [false, false];
    for prefix in 11..=18 {
        let nat = vec![npt("fd00:1::/48", &format!("2001:db8:{prefix}::/48"))];
        let mut lab = Lab::with(PolicySpec { nat, ..usual() }, Setup { workers: 4, ..Setup::default() });
        for port in 4000..4016 {
            let out = lab.passes(LAN, &udp(HOST, port, SERVER, 53, b"question"), WAN);
            lab.passes(WAN, &udp(SERVER, 53, &out.src.to_string(), port, b"answer"), LAN);
        }
        lab.sound();
        let handed = lab.handovers(HandoverCause::Prefix);
        assert!([0, 16].contains(&handed), "{handed}");
        brought_home[usize::from(handed == 0)] = true;
        assert!(lab.conns().iter().all(|c| c.replied));
        let mismatches: u64 = lab.stats.iter().map(|s| s.rss_mismatches.value()).sum();
        assert_eq!(mismatches, 0, "a port is not blamed for what was translated since");
    }
    assert_eq!(brought_home, [true, true], "both were seen");
}

#[test]
fn a_reload_takes_effect_on_the_next_packet() {
    everywhere(usual(), |lab| {
        let question = udp(HOST, 4000, SERVER, 53, b"question");
        assert_eq!(lab.passes(LAN, &question, WAN).src, ip(HOST));
        lab.reload(translated());
        assert_eq!(lab.passes(LAN, &question, WAN).src, ip(HOST_OUT));
        assert_eq!(lab.passes(WAN, &udp(SERVER, 53, HOST_OUT, 4000, b"answer"), LAN).dst, ip(HOST));
        lab.reload(usual());
        assert_eq!(lab.passes(LAN, &question, WAN).src, ip(HOST));
        assert_eq!(lab.entries(), 1, "it is one connection all the time");
    });
}

#[test]
fn rules_that_cannot_be_are_refused_with_the_reason() {
    let refused = |nat: Vec<NatRuleSpec>| match Policy::compile(PolicySpec { nat, ..usual() }) {
        Err(PolicyError::Translation { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let rule = || npt("fd00:1::/48", "2001:db8:f::/48");
    let narrow = Match { proto: vec![proto::TCP], ..from_to(LAN_ZONE, WAN_ZONE) };
    assert!(refused(vec![NatRuleSpec { matches: narrow, ..rule() }]).contains("zones and interfaces"));
    assert!(refused(vec![npt("fd00:1::/48", "2001:db8:f::/56")]).contains("one length"));
    assert!(refused(vec![npt("fd00:1::/72", "2001:db8:f::/72")]).contains("one length"));
    assert!(refused(vec![rule(); 65]).contains("at most 64"));
}
