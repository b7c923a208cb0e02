//! Stories of TFTP: a request to port 69, answered from any other.
//!
//! ```text
//!   10.0.0.2 ── lan [ gateway 198.51.100.1 ] wan ── 203.0.113.5:69, answers from 3333
//! ```

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::ftp::{FAR, FAR6, GATEWAY, GATEWAY6, HOST, HOST6, INSIDE};
use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const READ: &[u8] = b"\x00\x01file\x00octet\x00";
const WRITE: &[u8] = b"\x00\x02file\x00octet\x00";
const DATA: &[u8] = b"\x00\x03\x00\x01data";
const ACKED: &[u8] = b"\x00\x04\x00\x01";

/// Requests may begin, nothing else.
fn strict() -> PolicySpec {
    let mut p = policy();
    let request =
        Match { proto: vec![proto::UDP], dport: vec![69..=69], state: vec![CtState::New], ..Match::default() };
    p.rules = vec![
        rule("established", state(&[CtState::Established, CtState::Related]), Action::Accept),
        rule("request", request, Action::Accept),
    ];
    helped(p, HelperKind::Tftp, 69)
}

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..strict() }
}

#[test]
fn the_answer_comes_from_any_port_of_the_server() {
    for (spec, client, public, server) in [
        (strict(), HOST, HOST, FAR),
        (strict(), HOST6, HOST6, FAR6),
        (masqueraded(), HOST, GATEWAY, FAR),
        (masqueraded(), HOST6, GATEWAY6, FAR6),
    ] {
        everywhere(spec, |lab| {
            for (port, request) in [(4000, READ), (4001, WRITE), (1000, READ), (300, WRITE)] {
                let out = lab.passes(LAN, &udp(client, port, server, 69, request), WAN);
                assert_eq!(out.src, ip(public));
                lab.changed();
                let back = lab.passes(WAN, &udp(server, 3333, public, out.sport, DATA), LAN);
                assert_eq!(back.flow(), Pkt::flow_of(server, 3333, client, port));
                lab.moved(&["class related original +1", "event new +1"]);
                let on = lab.passes(LAN, &udp(client, port, server, 3333, ACKED), WAN);
                assert_eq!(on.flow(), Pkt::flow_of(public, out.sport, server, 3333));
                lab.passes(WAN, &udp(server, 3333, public, out.sport, DATA), LAN);
                lab.moved(&["class established original +1", "class established reply +1", "event replied +1"]);
                // One answer was announced.
                lab.refuses(WAN, &udp(server, 3334, public, out.sport, DATA), DropReason::PolicyDefault);
                lab.sound();
            }
        });
    }
}

#[test]
fn a_forwarded_request_is_answered_from_the_address_that_was_asked() {
    let mut spec = strict();
    dnat(&mut spec, 69, INSIDE, None);
    spec.rules.pop(); // the forward opens no other port
    everywhere(spec, |lab| {
        for port in 4000..4008 {
            let out = lab.passes(WAN, &udp(FAR, port, GATEWAY, 69, READ), LAN);
            assert_eq!(out.flow(), Pkt::flow_of(FAR, port, INSIDE, 69));
            let back = lab.passes(LAN, &udp(INSIDE, 3333, FAR, port, DATA), WAN);
            assert_eq!(back.flow(), Pkt::flow_of(GATEWAY, 3333, FAR, port));
            let on = lab.passes(WAN, &udp(FAR, port, GATEWAY, 3333, ACKED), LAN);
            assert_eq!(on.flow(), Pkt::flow_of(FAR, port, INSIDE, 3333));
            lab.sound();
        }
    });
}

#[test]
fn hosts_behind_one_address_get_their_own_answers() {
    everywhere(masqueraded(), |lab| {
        let hosts = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        let asked = hosts.map(|h| lab.passes(LAN, &udp(h, 4000, FAR, 69, READ), WAN).sport);
        for (host, port) in hosts.into_iter().zip(asked) {
            let back = lab.passes(WAN, &udp(FAR, 3333, GATEWAY, port, DATA), LAN);
            assert_eq!(back.flow(), Pkt::flow_of(FAR, 3333, host, 4000));
        }
    });
}

#[test]
fn only_requests_announce() {
    everywhere(strict(), |lab| {
        for (n, other) in [&b""[..], b"\x00", DATA, ACKED, b"\x00\x05\x00\x01", b"\x01\x00"].into_iter().enumerate() {
            lab.passes(LAN, &udp(HOST, 4000 + n as u16, FAR, 69, other), WAN);
        }
        assert_eq!(lab.expectations(), []);
        lab.passes(LAN, &udp(HOST, 4100, FAR, 69, b"\x00\x01"), WAN);
        assert_eq!(lab.expectations().len(), 1);
        // A request in fragments is one, too, and where the first of them holds nothing of it.
        for (n, step) in [16, 8].into_iter().enumerate() {
            let port = 4200 + n as u16;
            let fragments = udp(HOST, port, FAR, 69, READ).fragments(step);
            for f in &fragments {
                lab.arrive(LAN, &addressed(LAN, f).frame());
            }
            lab.run();
            assert_eq!((lab.collect().len(), lab.expectations().len()), (fragments.len(), n + 2));
        }
        for port in [4200, 4201] {
            lab.passes(WAN, &udp(FAR, 3333, HOST, port, DATA), LAN);
        }
    });
}

#[test]
fn a_request_that_is_sent_again_is_waited_for_again() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN);
        lab.wait(Nanos::from_secs(20));
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN).sport, out.sport);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &udp(FAR, 3333, GATEWAY, out.sport, DATA), LAN);
        // It was answered already; the next answer comes from another port.
        lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN);
        lab.passes(WAN, &udp(FAR, 3334, GATEWAY, out.sport, DATA), LAN);
        assert_eq!(lab.expectations(), []);
        // The request's own connection ends after 30 s, and what it announced with it.
        lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN);
        lab.wait(Nanos::from_secs(31));
        assert_eq!(lab.expectations(), []);
        lab.refuses(WAN, &udp(FAR, 3335, GATEWAY, out.sport, DATA), DropReason::PolicyDefault);
    });
}

#[test]
fn a_request_that_cannot_be_expected_leaves_no_connection() {
    let mut spec = strict();
    spec.conntrack.expect_max = 1;
    let mut lab = Lab::new(spec);
    lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN);
    lab.refuses(LAN, &udp(HOST, 4001, FAR, 69, READ), DropReason::ExpectFull);
    assert_eq!(lab.entries(), 1);
    lab.changed();
    lab.refuses(LAN, &udp(HOST, 4001, FAR, 69, READ), DropReason::ExpectFull);
    lab.moved(&["class new original +1", "drop expect_full +1", "event new +1", "event refused +1"]);
    lab.passes(LAN, &udp(HOST, 4001, FAR, 69, DATA), WAN);
    assert_eq!(lab.entries(), 2);
}

/// The same server on two ports, asked from one: the answers could not be told apart.
#[test]
fn two_requests_that_would_be_answered_alike_clash() {
    let mut spec = helped(strict(), HelperKind::Tftp, 1069);
    spec.rules[1].matches.dport.push(1069..=1069);
    everywhere(spec, |lab| {
        lab.passes(LAN, &udp(HOST, 4000, FAR, 69, READ), WAN);
        lab.refuses(LAN, &udp(HOST, 4000, FAR, 1069, READ), DropReason::ExpectClash);
        lab.passes(WAN, &udp(FAR, 3333, HOST, 4000, DATA), LAN);
        lab.passes(LAN, &udp(HOST, 4000, FAR, 1069, READ), WAN);
    });
}
