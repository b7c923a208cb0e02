//! Stories of ICMP errors and what they quote: every protocol, odd quotes, redirects.
//!
//! ```text
//!   10.0.0.2, .3 ──┐                                                  ┌─ 203.0.113.5
//!   10.0.0.9 ──────┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ──┤
//!   fd00:1::2 ─────┘      [ fd00:1::1            2001:db8::1  ]       ├─ 198.51.100.20, 2001:db8::10 (router)
//!                                                                     └─ 2001:db8:5::5
//! ```
//! `assert_quotes` holds an error against the very bytes that its receiver has sent. The stories of icmp.rs are about where errors
//! go; each class here was tried on Linux 6.18.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const ROUTER: &str = "198.51.100.20";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const GATEWAY6: &str = "2001:db8::1";
const ROUTER6: &str = "2001:db8::10";
const SERVER6: &str = "2001:db8:5::5";

const RELATED_REPLY: &[&str] = &["class related reply +1"];

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

/// Destination unreachable about a packet as it was seen at `from`.
fn unreachable(from: &str, to: &str, packet: &[u8]) -> Pkt {
    icmp(from, to, if from.contains('.') { 3 } else { 1 }, 1, [0; 4], packet)
}

/// First packets of all protocols that are neither TCP, UDP nor ICMP.
fn questions(host: &str, server: &str) -> Vec<Pkt> {
    let call = [0x30, 1, 0x88, 0x0b, 0, 4, 0x12, 0x34, 1, 2, 3, 4];
    vec![
        udplite(host, 4000, server, 53, 0, b"an odd payload."),
        udplite(host, 4001, server, 53, 9, b"an odd payload."),
        sctp(host, 4000, server, 80, 0, &[init(1, 0x11)]),
        other(host, server, proto::GRE, b"\0\0\x08\0plain"),
        other(host, server, proto::GRE, &call),
        other(host, server, proto::DCCP, &[0x0f, 0xa0, 0, 80, 4, 0, 0, 0, 1, 2, 3, 4]),
        other(host, server, 50, b"secret"),
        other(host, server, 0xfd, b""),
    ]
}

#[test]
fn errors_about_every_protocol_are_related_and_find_their_way_back_through_masquerade() {
    for spec in [usual(), masqueraded()] {
        everywhere(spec, |lab| {
            for (host, server, router, l4) in [(HOST, SERVER, ROUTER, 20), (HOST6, SERVER6, ROUTER6, 40)] {
                for question in questions(host, server) {
                    let out = lab.passes(LAN, &question, WAN);
                    lab.changed();
                    let n = out.ip.len();
                    let least = if matches!(question.proto, proto::UDPLITE | proto::SCTP) { l4 + 4 } else { l4 };
                    // A GRE header that is cut short does not tell its call id.
                    let least = if question.proto == proto::GRE { l4 + 8 } else { least };
                    // Half a checksum cannot be put right.
                    let half = |cut| matches!(question.proto, proto::UDPLITE | proto::DCCP) && cut == l4 + 7;
                    for cut in (least..=n).filter(|&cut| !half(cut)) {
                        let error = lab.passes(WAN, &unreachable(router, &out.src.to_string(), &out.ip[..cut]), LAN);
                        assert_eq!((error.src, error.dst), (ip(router), ip(host)));
                        error.quoted();
                        error.assert_quotes(&question);
                        lab.moved(RELATED_REPLY);
                    }
                }
            }
        });
    }
}

#[test]
fn quotes_that_do_not_reach_the_ports_are_about_nothing() {
    everywhere(masqueraded(), |lab| {
        for question in &questions(HOST, SERVER)[..3] {
            let out = lab.passes(LAN, question, WAN);
            for cut in 0..24 {
                lab.refuses(WAN, &unreachable(ROUTER, GATEWAY, &out.ip[..cut]), DropReason::InvalidQuote);
            }
        }
    });
}

#[test]
fn errors_about_answers_of_a_forwarded_port_reach_the_server() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat[0].matches.proto = vec![proto::SCTP, proto::UDPLITE];
    everywhere(spec, |lab| {
        for port in 5000..5003 {
            lab.passes(WAN, &sctp(SERVER, port, GATEWAY, 8080, 0, &[init(1, 0x11)]), LAN);
            let answer = sctp(WEB, 80, SERVER, port, 0x11, &[init(2, 0x22)]);
            let seen = lab.passes(LAN, &answer, WAN);
            let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, &seen.ip[..36]), LAN);
            assert_eq!(error.dst, ip(WEB));
            error.assert_quotes(&answer);
            // From behind the forward: it comes from the public address.
            let question = udplite(SERVER, port, GATEWAY, 8080, 8, b"question");
            let seen = lab.passes(WAN, &question, LAN);
            let error = lab.passes(LAN, &unreachable(WEB, SERVER, &seen.ip), WAN);
            assert_eq!((error.src, error.dst), (ip(GATEWAY), ip(SERVER)));
            error.assert_quotes(&question);
        }
    });
}

/// What the sender made wrong, or a router on the way, is not ours to put right: it stays as wrong as it was.
#[test]
fn a_quoted_checksum_is_left_as_wrong_as_it_was() {
    let cases: [(Pkt, usize); 3] = [
        (udp(HOST, 4000, SERVER, 53, b"question"), 26),
        (udplite(HOST, 4000, SERVER, 53, 0, b"question"), 26),
        (sctp(HOST, 4000, SERVER, 80, 0, &[init(1, 0x11)]), 28),
    ];
    everywhere(masqueraded(), |lab| {
        for (question, at) in &cases {
            let out = lab.passes(LAN, question, WAN);
            let mut quote = out.ip[..32].to_vec();
            quote[*at] ^= 0x40;
            let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, &quote), LAN);
            let sent = question.ip();
            let off: Vec<_> = (20..32).filter(|&i| error.payload[i] != sent[i]).collect();
            // In one's complement a carry may reach the next byte.
            assert!(off.contains(at) || off.contains(&(at + 1)), "{off:?}");
            assert!(off.iter().all(|i| (*at & !1..=at | 1).contains(i)), "only the checksum: {off:?}");
        }
    });
}

#[test]
fn a_quoted_first_fragment_is_enough() {
    everywhere(masqueraded(), |lab| {
        let question = udp(HOST, 4000, SERVER, 53, &[7; 100]);
        let out = lab.passes(LAN, &question, WAN);
        let mut first = udp(GATEWAY, out.sport, SERVER, 53, &[7; 100]);
        first.fragment = Some((0, true));
        lab.changed();
        let error = lab.passes(WAN, &unreachable(ROUTER, GATEWAY, &first.ip()[..40]), LAN);
        assert_eq!((error.dst, be16_at(&error.payload, 20)), (ip(HOST), 4000));
        lab.moved(RELATED_REPLY);
        let question = udp(HOST6, 4000, SERVER6, 53, &[7; 100]);
        let out = lab.passes(LAN, &question, WAN);
        let with = |header: &[u8]| [&out.ip[..6], &[header[0]], &out.ip[7..40], &header[1..], &out.ip[40..]].concat();
        lab.changed();
        let headers: [&[u8]; 4] = [
            &[44, proto::UDP, 0, 0, 1, 0, 0, 0, 9],             // a first fragment
            &[60, proto::UDP, 0, 1, 4, 0, 0, 0, 0],             // destination options
            &[0, proto::UDP, 0, 1, 4, 0, 0, 0, 0],              // hop-by-hop options
            &[51, proto::UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // authentication
        ];
        for header in headers {
            let error = lab.passes(WAN, &unreachable(ROUTER6, GATEWAY6, &with(header)), LAN);
            assert_eq!((error.dst, &error.payload[40..40 + header.len() - 1]), (ip(HOST6), &header[1..]));
            lab.moved(RELATED_REPLY);
        }
        let wrong: [&[u8]; 2] = [
            &[44, proto::UDP, 0, 0, 8, 0, 0, 0, 9], // a later fragment
            &[59],
        ];
        for header in wrong {
            let quote = with(header);
            lab.refuses(WAN, &unreachable(ROUTER6, GATEWAY6, &quote), DropReason::InvalidQuote);
        }
    });
}

#[test]
fn a_quoted_headers_version_and_checksum_are_not_looked_at() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        lab.changed();
        for (at, value) in [(0, 0x65), (10, !out.ip[10]), (3, 10), (2, 0xff), (8, 0)] {
            let mut quote = out.ip.clone();
            quote[at] = value;
            let error = lab.passes(WAN, &unreachable(ROUTER, HOST, &quote), LAN);
            assert_eq!(error.payload, quote, "as it came");
            lab.moved(RELATED_REPLY);
        }
    });
}

// ---- Made by the gateway --------------------------------------------------------------------------------------------

/// ```text
///   10.0.0.0/24 leaves as 198.51.100.7; 198.51.100.8:8080 is 10.0.0.9:80
/// ```
#[test]
fn an_error_about_a_packet_to_a_translated_address_comes_from_that_address() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat[0].matches.destination = Some(only("198.51.100.8/32"));
    spec.nat.push(NatRuleSpec { kind: NatKind::Snat { to: ip("198.51.100.7").into() }, ..masquerade() });
    everywhere(spec, |lab| {
        for port in 5000..5003 {
            let dying = udp(SERVER, port, "198.51.100.8", 8080, b"question").ttl(1);
            let error = lab.refuses_with_error(WAN, &dying, DropReason::TtlExpired);
            assert_eq!(error.flow(), "198.51.100.8 > 203.0.113.5 icmp 11/0 id 0", "before there is a connection");
            lab.passes(WAN, &udp(SERVER, port, "198.51.100.8", 8080, b"question"), LAN);
            let error = lab.refuses_with_error(WAN, &dying, DropReason::TtlExpired);
            assert_eq!(error.flow(), "198.51.100.8 > 203.0.113.5 icmp 11/0 id 0");
            let out = lab.passes(LAN, &udp(HOST, port, SERVER, 53, b"question"), WAN);
            let dying = udp(SERVER, 53, "198.51.100.7", out.sport, b"answer").ttl(1);
            let error = lab.refuses_with_error(WAN, &dying, DropReason::TtlExpired);
            assert_eq!(error.flow(), "198.51.100.7 > 203.0.113.5 icmp 11/0 id 0");
            // Who sends through a translation sees the gateway's own address.
            let dying = udp(HOST, port, SERVER, 53, b"question").ttl(1);
            let error = lab.refuses_with_error(LAN, &dying, DropReason::TtlExpired);
            assert_eq!(error.flow(), "10.0.0.1 > 10.0.0.2 icmp 11/0 id 0");
        }
    });
}

// ---- Redirects ------------------------------------------------------------------------------------------------------

#[test]
fn a_redirect_about_a_translated_connection_goes_no_further() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        lab.changed();
        let redirect = icmp(ROUTER, GATEWAY, 5, 1, [198, 51, 100, 21], &out.ip);
        lab.refuses(WAN, &redirect, DropReason::NatRedirect);
        lab.moved(&["class related reply +1", "drop nat_redirect +1"]);
    });
}

/// An ICMPv6 redirect with one option, about a packet.
fn redirect6(from: &str, to: &str, option: u8, packet: &[u8]) -> Pkt {
    let length = u8::try_from((8 + packet.len()).div_ceil(8)).expect("a short packet");
    let mut body = [&[0; 32][..], &[option, length, 0, 0, 0, 0, 0, 0], packet].concat();
    body.resize(32 + usize::from(length) * 8, 0);
    icmp(from, to, 137, 0, [0; 4], &body).ttl(255)
}

#[test]
fn an_icmpv6_redirect_is_related_where_a_router_of_the_link_sends_it() {
    let mut spec = usual();
    spec.rules.push(rule("own", Match { from: vec![ZoneId::LOCAL], ..Match::default() }, Action::Accept));
    everywhere(spec, |lab| {
        let out = lab.passes(WAN_TWIN, &udp(GATEWAY6, 4000, SERVER6, 53, b"question"), WAN);
        lab.changed();
        let right = redirect6("fe80::fe", GATEWAY6, 4, &out.ip);
        lab.passes(WAN, &right, WAN_TWIN);
        lab.moved(RELATED_REPLY);
        lab.passes(WAN, &redirect6("fe80::fe", GATEWAY6, 4, &out.ip[..44]), WAN_TWIN);
        lab.moved(RELATED_REPLY);
        let mut code = right.clone();
        code.l4[1] = 1;
        let mut empty_option = right.clone();
        empty_option.l4[41] = 0;
        let wrong = [
            right.clone().ttl(254),
            redirect6(ROUTER6, GATEWAY6, 4, &out.ip),
            redirect6("fe80::fe", GATEWAY6, 2, &out.ip),
            code.dst(GATEWAY6),
            empty_option.dst(GATEWAY6),
            icmp("fe80::fe", GATEWAY6, 137, 0, [0; 4], &[0; 32]).ttl(255),
        ];
        for (n, p) in wrong.iter().enumerate() {
            lab.refuses(WAN, p, DropReason::InvalidRedirect);
            assert_eq!(lab.changed(), ["class invalid original +1", "drop invalid_redirect +1"], "case {n}");
        }
        let strange = udp(GATEWAY6, 1, SERVER6, 53, b"never sent");
        lab.refuses(WAN, &redirect6("fe80::fe", GATEWAY6, 4, &strange.ip()), DropReason::InvalidNoParent);
        lab.refuses(WAN, &redirect6("fe80::fe", GATEWAY6, 4, &out.ip[..43]), DropReason::InvalidNoParent);
    });
}
