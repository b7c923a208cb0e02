//! Stories of ICMP errors: those that pass through, and those that the gateway makes.
//!
//! ```text
//!   10.0.0.2 ──┐                                                  ┌─ 203.0.113.5
//!   10.0.0.9 ──┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ──┤
//!   10.0.0.66 ─┤      [ fd00:1::1            2001:db8::1  ]       ├─ 198.51.100.20 (router)
//!   (router)   └─ fd00:1::2                                       └─ 2001:db8:5::5
//! ```
//! `Seen::read` and `Seen::quoted` assert every checksum of what leaves; `assert_quotes` that an error reaches the sender
//! with the very bytes that it sent.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::Event;
use dataplane::api::policy::*;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const INSIDE_ROUTER: &str = "10.0.0.66";
const GATEWAY: &str = "198.51.100.1";
const ROUTER: &str = "198.51.100.20";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const GATEWAY6: &str = "2001:db8::1";
const ROUTER6: &str = "2001:db8::10";
const SERVER6: &str = "2001:db8:5::5";

const RELATED_REPLY: &[&str] = &["class related reply +1"];
const RELATED_ORIGINAL: &[&str] = &["class related original +1"];

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

fn forwarded() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec
}

/// Destination unreachable, or its ICMPv6 kin, from `from` about a packet as it was seen there: all of it.
fn unreachable(from: &str, to: &str, packet: &[u8]) -> Pkt {
    let kind = if from.contains('.') { 3 } else { 1 };
    icmp(from, to, kind, 1, [0; 4], packet)
}

// ---- Through the gateway --------------------------------------------------------------------------------------------

#[test]
fn every_kind_of_error_about_a_known_connection_is_related() {
    everywhere(usual(), |lab| {
        let question = udp(HOST, 4000, SERVER, 53, b"question");
        let out = lab.passes(LAN, &question, WAN);
        lab.changed();
        for from in [ROUTER, SERVER] {
            for (kind, code) in [(3, 0), (3, 3), (3, 4), (4, 0), (5, 1), (11, 0), (12, 0)] {
                let error = lab.passes(WAN, &icmp(from, HOST, kind, code, [0, 0, 5, 0], &out.ip), LAN);
                assert_eq!((error.src, error.dst, error.ttl), (ip(from), ip(HOST), 63));
                assert_eq!(error.dport, u16::from(kind) << 8 | u16::from(code));
                error.assert_quotes(&question);
                lab.moved(RELATED_REPLY);
            }
        }
        let question = udp(HOST6, 4000, SERVER6, 53, b"question");
        let out = lab.passes(LAN, &question, WAN);
        lab.changed();
        for from in [ROUTER6, SERVER6] {
            for kind in [1, 2, 3, 4, 100, 127] {
                let error = lab.passes(WAN, &icmp(from, HOST6, kind, 0, [0, 0, 5, 0], &out.ip), LAN);
                assert_eq!((error.src, error.dst), (ip(from), ip(HOST6)));
                error.assert_quotes(&question);
                lab.moved(RELATED_REPLY);
            }
        }
        assert_eq!(lab.entries(), 2);
    });
}

#[test]
fn an_error_changes_neither_state_nor_timeout_nor_counters_of_its_connection() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &tcp(HOST, 4000, SERVER, 443, SYN, 1, 0, b""), WAN);
        lab.wait(Nanos::from_secs(100));
        let before = lab.conns();
        lab.passes(WAN, &unreachable(ROUTER, HOST, &out.ip), LAN);
        let after = lab.conns();
        assert_eq!((after[0].packets, after[0].replied), ([1, 0], false));
        assert!(after[0].timeout_s <= before[0].timeout_s);
        assert_eq!(after[0].state, Some("SYN_SENT"));
        lab.wait(Nanos::from_secs(21));
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn an_error_about_an_answer_goes_the_way_of_questions() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        let answer = udp(SERVER, 53, HOST, 4000, b"answer");
        let seen = lab.passes(WAN, &answer, LAN);
        lab.changed();
        let error = lab.passes(LAN, &icmp(HOST, SERVER, 3, 3, [0; 4], &seen.ip), WAN);
        assert_eq!((error.src, error.dst), (ip(HOST), ip(SERVER)));
        error.assert_quotes(&answer);
        lab.moved(RELATED_ORIGINAL);
    });
}

/// What hosts and routers quote: all of it, RFC 1812's 548 bytes, RFC 792's 8, or just the ports.
fn quotes(packet: &[u8], l4: usize) -> Vec<&[u8]> {
    let n = packet.len();
    [n, n.min(548), n.min(l4 + 28), n.min(l4 + 20), l4 + 8, l4 + 4].into_iter().map(|n| &packet[..n]).collect()
}

#[test]
fn an_error_finds_its_way_back_through_masquerade_however_short_its_quote() {
    everywhere(masqueraded(), |lab| {
        for port in [4000, 4001, 4002] {
            let questions = [
                tcp(HOST, port, SERVER, 443, SYN, 1, 0, b""),
                udp(HOST, port, SERVER, 53, b"an odd payload."),
                udp(HOST, port, SERVER, 54, b"question").without_checksum(),
                udp(HOST, port, SERVER, 55, &[9; 700]),
            ];
            for question in questions {
                let out = lab.passes(LAN, &question, WAN);
                assert_eq!(out.src, ip(GATEWAY));
                lab.changed();
                for quote in quotes(&out.ip, 20) {
                    for from in [ROUTER, SERVER] {
                        let error = lab.passes(WAN, &unreachable(from, GATEWAY, quote), LAN);
                        assert_eq!((error.src, error.dst), (ip(from), ip(HOST)), "a router keeps its address");
                        error.quoted();
                        error.assert_quotes(&question);
                        lab.moved(RELATED_REPLY);
                    }
                }
            }
        }
        let question = ping(HOST, SERVER, 77, 1);
        let out = lab.passes(LAN, &question, WAN);
        lab.changed();
        for quote in [&out.ip[..], &out.ip[..28]] {
            let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, quote), LAN);
            assert_eq!(error.quoted().sport, 77);
            error.assert_quotes(&question);
            lab.moved(RELATED_REPLY);
        }
        let question = other(HOST, SERVER, 47, b"gre");
        let out = lab.passes(LAN, &question, WAN);
        let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, &out.ip), LAN);
        error.assert_quotes(&question);
    });
}

#[test]
fn icmpv6_errors_find_their_way_back_through_masquerade() {
    everywhere(masqueraded(), |lab| {
        for port in [4000, 4001, 4002] {
            for question in
                [tcp(HOST6, port, SERVER6, 443, SYN, 1, 0, b""), udp(HOST6, port, SERVER6, 53, b"an odd payload.")]
            {
                let out = lab.passes(LAN, &question, WAN);
                assert_eq!(out.src, ip(GATEWAY6));
                lab.changed();
                for quote in quotes(&out.ip, 40) {
                    let error = lab.passes(WAN, &unreachable(ROUTER6, GATEWAY6, quote), LAN);
                    assert_eq!((error.src, error.dst), (ip(ROUTER6), ip(HOST6)));
                    error.quoted();
                    error.assert_quotes(&question);
                    lab.moved(RELATED_REPLY);
                }
            }
        }
        let question = ping(HOST6, SERVER6, 77, 1);
        let out = lab.passes(LAN, &question, WAN);
        lab.passes(WAN, &unreachable(ROUTER6, GATEWAY6, &out.ip), LAN).assert_quotes(&question);
    });
}

/// Inside addresses do not leak: neither the host's nor that of a router on its side.
#[test]
fn an_error_from_behind_masquerade_comes_from_the_public_address() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        let answer = udp(SERVER, 53, GATEWAY, out.sport, b"answer");
        let seen = lab.passes(WAN, &answer, LAN);
        lab.changed();
        for from in [HOST, INSIDE_ROUTER] {
            let error = lab.passes(LAN, &icmp(from, SERVER, 3, 3, [0; 4], &seen.ip), WAN);
            assert_eq!((error.src, error.dst), (ip(GATEWAY), ip(SERVER)));
            error.quoted();
            error.assert_quotes(&answer);
            lab.moved(RELATED_ORIGINAL);
        }
    });
}

#[test]
fn an_error_from_behind_a_port_forward_comes_from_the_public_address() {
    everywhere(forwarded(), |lab| {
        for port in 5000..5004 {
            let question = tcp(SERVER, port, GATEWAY, 8080, SYN, 1, 0, b"");
            let seen = lab.passes(WAN, &question, LAN);
            lab.changed();
            for from in [WEB, INSIDE_ROUTER] {
                for quote in quotes(&seen.ip, 20) {
                    let error = lab.passes(LAN, &unreachable(from, SERVER, quote), WAN);
                    assert_eq!((error.src, error.dst), (ip(GATEWAY), ip(SERVER)));
                    error.quoted();
                    error.assert_quotes(&question);
                    lab.moved(RELATED_REPLY);
                }
            }
        }
    });
}

#[test]
fn an_error_about_a_forwarded_servers_answer_reaches_the_server() {
    everywhere(forwarded(), |lab| {
        for port in 5000..5004 {
            lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"question"), LAN);
            let answer = udp(WEB, 80, SERVER, port, b"answer");
            let seen = lab.passes(LAN, &answer, WAN);
            assert_eq!(seen.src, ip(GATEWAY));
            lab.changed();
            for from in [SERVER, ROUTER] {
                let error = lab.passes(WAN, &unreachable(from, GATEWAY, &seen.ip), LAN);
                assert_eq!((error.src, error.dst), (ip(from), ip(WEB)));
                error.quoted();
                error.assert_quotes(&answer);
                lab.moved(RELATED_ORIGINAL);
            }
        }
    });
}

#[test]
fn errors_pass_where_both_ends_are_translated() {
    let mut spec = forwarded();
    spec.nat.push(NatRuleSpec { matches: from_to(WAN_ZONE, LAN_ZONE), ..masquerade() });
    everywhere(spec, |lab| {
        let question = udp(SERVER, 5000, GATEWAY, 8080, b"question");
        let seen = lab.passes(WAN, &question, LAN);
        let error = lab.passes(LAN, &unreachable(WEB, "10.0.0.1", &seen.ip), WAN);
        assert_eq!((error.src, error.dst), (ip(GATEWAY), ip(SERVER)));
        error.assert_quotes(&question);
        let answer = udp(WEB, 80, "10.0.0.1", seen.sport, b"answer");
        let out = lab.passes(LAN, &answer, WAN);
        let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, &out.ip), LAN);
        assert_eq!((error.src, error.dst), (ip("10.0.0.1"), ip(WEB)));
        error.quoted();
        error.assert_quotes(&answer);
    });
}

#[test]
fn an_error_about_nothing_known_is_invalid() {
    use DropReason::{InvalidErrorTarget as Target, InvalidNoParent as Parent, InvalidQuote as Quote};
    everywhere(masqueraded(), |lab| {
        let question = udp(HOST, 4000, SERVER, 53, b"question");
        let out = lab.passes(LAN, &question, WAN);
        let other_flow = udp(GATEWAY, 1, SERVER, 53, b"never sent");
        let own_error = icmp(GATEWAY, SERVER, 3, 3, [0; 4], &udp(SERVER, 53, GATEWAY, 9, b"").ip());
        let mut later_fragment = udp(GATEWAY, out.sport, SERVER, 53, b"question");
        later_fragment.fragment = Some((8, false));
        let with = |at: usize, value: u8| {
            let mut quote = out.ip.clone();
            quote[at] = value;
            quote
        };
        lab.changed();
        let wrong = [
            (Parent, unreachable(ROUTER, GATEWAY, &other_flow.ip())),
            // The untranslated packet has never been on that side.
            (Parent, unreachable(ROUTER, HOST, &question.ip())),
            // Not to the one that sent what is quoted.
            (Target, unreachable(ROUTER, "198.51.100.77", &out.ip)),
            (Quote, unreachable(ROUTER, GATEWAY, &own_error.ip())),
            (Quote, unreachable(ROUTER, GATEWAY, &later_fragment.ip())),
            (Quote, unreachable(ROUTER, GATEWAY, &out.ip[..23])),
            (Quote, unreachable(ROUTER, GATEWAY, &out.ip[..19])),
            (Quote, unreachable(ROUTER, GATEWAY, b"")),
            // A header length below 20 bytes, or beyond the quote.
            (Quote, unreachable(ROUTER, GATEWAY, &with(0, 0x44))),
            (Quote, unreachable(ROUTER, GATEWAY, &with(0, 0x4f))),
            (Quote, unreachable(ROUTER, GATEWAY, &udp(HOST6, 1, SERVER6, 2, b"").ip())),
        ];
        for (n, (reason, error)) in wrong.iter().enumerate() {
            lab.refuses(WAN, error, *reason);
            let drop = format!("drop {} +1", reason.label());
            assert_eq!(lab.changed(), ["class invalid original +1", &drop], "case {n}");
        }
        let six = lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b"question"), WAN);
        let no_next = [&six.ip[..6], &[59], &six.ip[7..]].concat();
        lab.changed();
        let wrong = [
            (Parent, unreachable(ROUTER6, GATEWAY6, &udp(GATEWAY6, 1, SERVER6, 53, b"").ip())),
            (Target, unreachable(ROUTER6, "2001:db8::77", &six.ip)),
            (Quote, unreachable(ROUTER6, GATEWAY6, &unreachable(GATEWAY6, SERVER6, &six.ip).ip())),
            (Quote, unreachable(ROUTER6, GATEWAY6, &six.ip[..43])),
            (Quote, unreachable(ROUTER6, GATEWAY6, &six.ip[..39])),
            (Quote, unreachable(ROUTER6, GATEWAY6, &no_next)),
        ];
        for (n, (reason, error)) in wrong.iter().enumerate() {
            lab.refuses(WAN, error, *reason);
            let drop = format!("drop {} +1", reason.label());
            assert_eq!(lab.changed(), ["class invalid original +1", &drop], "IPv6 case {n}");
        }
    });
}

#[test]
fn related_errors_obey_the_policy() {
    let mut spec = usual();
    spec.rules[0].matches.state = vec![dataplane::packet::CtState::Established];
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        lab.changed();
        lab.refuses(WAN, &unreachable(ROUTER, HOST, &out.ip), DropReason::PolicyDefault);
        lab.moved(&["class related reply +1", "drop policy_default +1"]);
    });
}

// ---- Made by the gateway --------------------------------------------------------------------------------------------

#[test]
fn a_packet_whose_ttl_runs_out_is_answered_from_the_side_that_it_came_by() {
    everywhere(masqueraded(), |lab| {
        let p = udp(HOST, 4000, SERVER, 53, b"question").ttl(1);
        let error = lab.refuses_with_error(LAN, &p, DropReason::TtlExpired);
        assert_eq!(error.flow(), "10.0.0.1 > 10.0.0.2 icmp 11/0 id 0");
        assert_eq!((error.ttl, error.src_mac, error.dst_mac), (64, LAN_MAC, [2, 0, 0, 0, 0, 0x10]));
        assert_eq!(error.payload, p.ip());
        error.quoted();
        lab.moved(&["class new original +1", "drop ttl_expired +1", "icmp time_exceeded +1"]);
        let p = udp(HOST6, 4000, SERVER6, 53, b"question").ttl(0);
        let error = lab.refuses_with_error(LAN, &p, DropReason::TtlExpired);
        assert_eq!(error.flow(), "fd00:1::1 > fd00:1::2 icmp 3/0 id 0");
        assert_eq!(error.payload, p.ip());
        lab.moved(&["class new original +1", "drop ttl_expired +1", "icmp time_exceeded +1"]);
        assert_eq!(lab.entries(), 0, "only what is forwarded leaves a connection");
        // In the reply direction: the sender sees its own view.
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        lab.changed();
        let p = udp(SERVER, 53, GATEWAY, out.sport, b"answer").ttl(1);
        let error = lab.refuses_with_error(WAN, &p, DropReason::TtlExpired);
        assert_eq!(error.flow(), "198.51.100.1 > 203.0.113.5 icmp 11/0 id 0");
        assert_eq!(error.payload, p.ip());
        lab.moved(&["class established reply +1", "drop ttl_expired +1", "event replied +1", "icmp time_exceeded +1"]);
    });
}

/// ```text
///   lan, MTU 1500 [ gateway ] wan, MTU 1280 (IPv4 and IPv6)
/// ```
#[test]
fn a_packet_too_large_that_may_not_be_cut_is_answered_with_the_mtu() {
    everywhere_with(&Setup { wan_mtu: 1280, ..Setup::default() }, masqueraded(), |lab| {
        let p = udp(HOST, 4000, SERVER, 53, &[1; 1300]).df();
        let error = lab.refuses_with_error(LAN, &p, DropReason::MtuExceeded);
        assert_eq!(error.flow(), "10.0.0.1 > 10.0.0.2 icmp 3/4 id 0");
        assert_eq!((&error.ip[24..28], error.ip_len), (&[0, 0, 5, 0][..], 576));
        assert_eq!(error.payload, p.ip()[..548]);
        lab.moved(&["class new original +1", "drop mtu_exceeded +1", "icmp too_big +1"]);
        let p = udp(HOST6, 4000, SERVER6, 53, &[1; 1300]);
        let error = lab.refuses_with_error(LAN, &p, DropReason::MtuExceeded);
        assert_eq!(error.flow(), "fd00:1::1 > fd00:1::2 icmp 2/0 id 0");
        assert_eq!((&error.ip[44..48], error.ip_len), (&[0, 0, 5, 0][..], 1280));
        lab.moved(&["class new original +1", "drop mtu_exceeded +1", "icmp too_big +1"]);
        // On an open connection as well.
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"small"), WAN);
        lab.changed();
        lab.refuses_with_error(LAN, &udp(HOST, 4000, SERVER, 53, &[1; 1300]).df(), DropReason::MtuExceeded);
        lab.moved(&["class new original +1", "drop mtu_exceeded +1", "icmp too_big +1"]);
    });
}

/// ```text
///   wan, MTU 1500 [ 198.51.100.1:8080 → 10.0.0.9:80 ] lan, MTU 1280
/// ```
#[test]
fn fragmentation_needed_for_a_forwarded_packet_comes_from_the_public_address() {
    everywhere_with(&Setup { lan_mtu: 1280, ..Setup::default() }, forwarded(), |lab| {
        let p = udp(SERVER, 5000, GATEWAY, 8080, &[1; 1300]).df();
        let error = lab.refuses_with_error(WAN, &p, DropReason::MtuExceeded);
        assert_eq!(error.flow(), "198.51.100.1 > 203.0.113.5 icmp 3/4 id 0");
        assert_eq!(error.quoted().dst, ip(GATEWAY));
    });
}

#[test]
fn routes_that_lead_nowhere_say_so_or_keep_silent() {
    everywhere(usual(), |lab| {
        let mut routes = fib();
        routes.routes.retain(|r| r.prefix.prefix_len() > 0);
        let route =
            |prefix: &str, target| dataplane::api::RouteSpec { prefix: prefix.parse().expect("prefix"), target };
        use dataplane::api::RouteTarget::*;
        for (v4, v6, target) in [
            ("203.0.113.1/32", "2001:db8:5::1/128", Unreachable),
            ("203.0.113.2/32", "2001:db8:5::2/128", Prohibit),
            ("203.0.113.3/32", "2001:db8:5::3/128", Blackhole),
        ] {
            routes.routes.extend([route(v4, target), route(v6, target)]);
        }
        lab.reroute(routes);
        let cases = [
            (1, DropReason::RouteUnreachable, (3, 1), (1, 3)),
            (2, DropReason::RouteProhibit, (3, 13), (1, 1)),
            (4, DropReason::NoRoute, (3, 0), (1, 0)),
        ];
        for (n, reason, (t4, c4), (t6, c6)) in cases {
            let error = lab.refuses_with_error(LAN, &udp(HOST, 1, &format!("203.0.113.{n}"), 2, b""), reason);
            assert_eq!(error.flow(), format!("10.0.0.1 > 10.0.0.2 icmp {t4}/{c4} id 0"));
            let drop = format!("drop {} +1", reason.label());
            lab.moved(&["class new original +1", &drop, "icmp unreachable +1"]);
            let error = lab.refuses_with_error(LAN, &udp(HOST6, 1, &format!("2001:db8:5::{n}"), 2, b""), reason);
            assert_eq!(error.flow(), format!("fd00:1::1 > fd00:1::2 icmp {t6}/{c6} id 0"));
            lab.moved(&["class new original +1", &drop, "icmp unreachable +1"]);
        }
        lab.refuses(LAN, &udp(HOST, 1, "203.0.113.3", 2, b""), DropReason::RouteBlackhole);
        lab.moved(&["class new original +1", "drop route_blackhole +1"]);
    });
}

#[test]
fn no_error_is_sent_about_an_error_or_to_more_than_one_host() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        lab.changed();
        lab.refuses(WAN, &unreachable(ROUTER, HOST, &out.ip).ttl(1), DropReason::TtlExpired);
        lab.moved(&["class related reply +1", "drop ttl_expired +1"]);
        lab.refuses(WAN, &icmp(ROUTER, HOST, 40, 0, [0; 4], b"").ttl(1), DropReason::TtlExpired);
        lab.moved(&["class invalid original +1", "drop ttl_expired +1"]);
        lab.refuses(LAN, &icmp(HOST6, SERVER6, 137, 0, [0; 4], &[0; 40]).ttl(1), DropReason::TtlExpired);
        lab.moved(&["class invalid original +1", "drop ttl_expired +1"]);
        // INVALID is no error by itself: an answer that nobody asked for, a type that starts nothing.
        for p in [
            pong(HOST, SERVER, 7, 1),
            icmp(HOST, SERVER, 14, 0, [0; 4], b""),
            icmp(HOST6, SERVER6, 200, 0, [0; 4], b""),
        ] {
            lab.refuses_with_error(LAN, &p.ttl(1), DropReason::TtlExpired);
            lab.moved(&["class invalid original +1", "drop ttl_expired +1", "icmp time_exceeded +1"]);
        }
        // Sent to everybody on the link, to one address beyond.
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 2, b"").ttl(1).to_mac([0xff; 6]), DropReason::EthOtherHost);
        lab.moved(&["class new original +1", "drop eth_other_host +1"]);
        // From an address that is no single host: martian, and silent.
        for src in ["224.0.0.1", "255.255.255.255", "10.0.0.255", "127.0.0.1"] {
            lab.refuses(LAN, &udp(src, 1, SERVER, 2, b"").ttl(1), DropReason::MartianSource);
        }
        lab.refuses(LAN, &udp("0.0.0.0", 1, SERVER, 2, b"").ttl(1), DropReason::MartianSource);
        lab.refuses(LAN, &udp("::", 1, SERVER6, 2, b"").ttl(1), DropReason::MartianSource);
    });
}

#[test]
fn errors_are_rate_limited() {
    everywhere(usual(), |lab| {
        let p = udp(HOST, 4000, SERVER, 53, b"").ttl(1);
        for _ in 0..400 {
            lab.arrive(LAN, &addressed(LAN, &p).frame());
        }
        lab.run();
        let sent = lab.collect().len();
        // All are of one flow and so one worker's: 50 at once, and a thousand a second.
        assert!((50..=52).contains(&sent), "{sent} errors");
        lab.moved(&[
            "class new original +400",
            "drop ttl_expired +400",
            &format!("icmp suppressed +{}", 400 - sent),
            &format!("icmp time_exceeded +{sent}"),
        ]);
        lab.wait(Nanos::from_secs(1));
        lab.refuses_with_error(LAN, &p, DropReason::TtlExpired);
    });
}

// ---- Neighbours -----------------------------------------------------------------------------------------------------

/// 198.51.100.5 is on the wan link, but nobody knows its MAC address.
const STRANGER: &str = "198.51.100.5";

fn resolves(lab: &mut Lab) -> Vec<(u16, std::net::IpAddr)> {
    lab.events
        .drain(..)
        .filter_map(|e| match e {
            Event::Resolve { interface, address } => Some((interface, address)),
            _ => None,
        })
        .collect()
}

#[test]
fn packets_wait_for_their_next_hop_and_go_when_it_is_known() {
    everywhere(masqueraded(), |lab| {
        for n in 0..3 {
            assert!(lab.send(LAN, &udp(HOST, 4000, STRANGER, 53, &[n])).is_empty());
        }
        lab.moved(&["class new original +3", "event new +1"]);
        assert_eq!(resolves(lab), [(1, ip(STRANGER))], "one question, not three");
        lab.neighbour(0, STRANGER, true); // on another link: somebody else
        assert!(lab.collect().is_empty());
        lab.neighbour(1, STRANGER, true);
        let out = lab.collect();
        let payloads: Vec<_> = out.iter().map(|(port, s)| (*port, s.src, s.ttl, s.payload.clone())).collect();
        let expected: Vec<_> = (0..3).map(|n| (WAN, ip(GATEWAY), 63, vec![n])).collect();
        assert_eq!(payloads, expected);
        lab.moved(&[]);
        lab.passes(LAN, &udp(HOST, 4000, STRANGER, 53, b"now at once"), WAN);
    });
}

#[test]
fn a_next_hop_that_does_not_answer_is_given_up_with_an_error_about_the_packet_as_it_came() {
    everywhere(masqueraded(), |lab| {
        let p = udp(HOST, 4000, STRANGER, 53, b"question");
        assert!(lab.send(LAN, &p).is_empty());
        lab.changed();
        lab.wait(Nanos::from_secs(3));
        assert!(lab.collect().is_empty());
        lab.wait(Nanos::from_secs(1));
        let out = lab.collect();
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].0, out[0].1.flow().as_str()), (LAN, "10.0.0.1 > 10.0.0.2 icmp 3/1 id 0"));
        assert_eq!(out[0].1.payload, p.ip());
        lab.moved(&["drop neighbour_unresolved +1", "icmp unreachable +1"]);
        // The kernel may know sooner.
        assert!(lab.send(LAN, &p).is_empty());
        lab.neighbour(1, STRANGER, false);
        assert_eq!(lab.collect().len(), 1);
        lab.moved(&["class new original +1", "drop neighbour_unresolved +1", "icmp unreachable +1"]);
        resolves(lab);
    });
}

#[test]
fn few_packets_wait_for_one_next_hop() {
    everywhere(usual(), |lab| {
        for n in 0..70 {
            lab.send(LAN, &udp(HOST, 4000, STRANGER, 53, &[n]));
        }
        lab.moved(&["class new original +70", "drop neighbour_queue_full +6", "event new +1"]);
        lab.neighbour(1, STRANGER, true);
        assert_eq!(lab.collect().len(), 64);
    });
}

#[test]
fn a_question_that_was_lost_is_asked_again_under_traffic_that_does_not_pause() {
    everywhere(usual(), |lab| {
        for n in 0..10 {
            lab.send(LAN, &udp(HOST, 4000, STRANGER, 53, &[n]));
            lab.wait(Nanos::from_secs(1));
        }
        let asked = resolves(lab);
        assert!(asked.len() > 3, "asked {} times in ten seconds", asked.len());
        lab.neighbour(1, STRANGER, true);
        lab.collect();
    });
}

#[test]
fn a_scan_of_absent_hosts_keeps_nobody_from_being_resolved() {
    everywhere(usual(), |lab| {
        for host in 1..=300 {
            assert!(lab.send(LAN, &udp("fd00:1::2", 4000, &format!("2001:db8::dead:{host}"), 53, b"scan")).is_empty());
        }
        resolves(lab);
        lab.send(LAN, &udp(HOST, 4000, STRANGER, 53, b"hello"));
        assert_eq!(resolves(lab), [(1, ip(STRANGER))]);
        lab.neighbour(1, STRANGER, true);
        let out = lab.collect();
        assert!(out.iter().any(|(port, s)| *port == WAN && s.payload == b"hello"), "its packet waited");
        lab.wait(Nanos::from_secs(4));
        lab.collect();
    });
}

#[test]
fn a_packet_that_waits_is_cut_when_it_goes() {
    everywhere_with(&Setup { wan_mtu: 1280, ..Setup::default() }, usual(), |lab| {
        let p = udp(HOST, 4000, STRANGER, 53, &[5; 1400]);
        assert!(lab.send(LAN, &p).is_empty());
        lab.neighbour(1, STRANGER, true);
        let out = lab.collect();
        assert_eq!(out.len(), 2);
        assert_eq!([&out[0].1.ip[20..], &out[1].1.ip[20..]].concat(), p.l4);
    });
}

#[test]
fn a_next_hop_that_goes_away_is_asked_for_again() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, "198.51.100.50", 53, b""), WAN);
        lab.neighbour(1, "198.51.100.50", false);
        assert!(lab.send(LAN, &udp(HOST, 4000, "198.51.100.50", 53, b"")).is_empty());
        assert_eq!(resolves(lab), [(1, ip("198.51.100.50"))]);
        lab.neighbour(1, "198.51.100.50", true);
        assert_eq!(lab.collect().len(), 1);
    });
}

#[test]
fn protocols_without_ports_are_answered_too() {
    everywhere(usual(), |lab| {
        for p in [0xfd, 47, 50] {
            let error = lab.refuses_with_error(LAN, &other(HOST, SERVER, p, b"payload").ttl(1), DropReason::TtlExpired);
            assert_eq!(error.quoted().proto, p);
        }
    });
}

#[test]
fn an_interface_without_an_address_answers_with_another_ones() {
    let mut routes = fib();
    routes.addresses.retain(|(interface, _)| *interface != 0);
    everywhere(usual(), |lab| {
        lab.reroute(routes.clone());
        let (port, error) = lab.send(LAN, &udp(HOST, 4000, SERVER, 53, b"").ttl(1)).pop().expect("an error");
        assert_eq!((port, error.flow().as_str()), (LAN, "198.51.100.1 > 10.0.0.2 icmp 11/0 id 0"));
    });
}
