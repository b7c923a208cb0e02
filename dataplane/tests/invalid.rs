//! Stories of packets without a connection: INVALID ones and their reports, untracked ones.
//!
//! ```text
//!   10.0.0.2 ───┐                                                  ┌─ 203.0.113.5
//!   fd00:1::2 ──┴─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ──┴─ 2001:db8:5::5
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::Event;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";
const GATEWAY6: &str = "2001:db8::1";

const UNTRACKED: &[&str] = &["class untracked original +1"];

// ---- INVALID --------------------------------------------------------------------------------------------------------

fn logging(log_invalid: LogInvalid) -> PolicySpec {
    PolicySpec { conntrack: ConntrackSpec { log_invalid, ..ConntrackSpec::default() }, ..usual() }
}

/// The reports of INVALID packets so far.
fn reports(lab: &mut Lab) -> Vec<(DropReason, u16, Tuple)> {
    lab.run();
    lab.events
        .drain(..)
        .filter_map(|e| match e {
            Event::InvalidLog { reason, interface, tuple } => Some((reason, interface, tuple)),
            _ => None,
        })
        .collect()
}

/// One INVALID packet each of UDP, TCP, SCTP, ICMP and IPv6 without a transport.
fn broken() -> Vec<Pkt> {
    vec![
        udp(HOST, 4000, SERVER, 53, b"").broken_checksum(),
        tcp(HOST, 4000, SERVER, 80, FIN, 1, 0, b""),
        sctp(HOST, 4000, SERVER, 80, 0, &[]),
        pong(HOST, SERVER, 7, 1),
        other(HOST6, SERVER6, 59, b""),
    ]
}

#[test]
fn invalid_packets_of_the_chosen_protocols_are_reported_with_their_reason() {
    let some = LogInvalid::Protocols(vec![proto::UDP, proto::ICMP]);
    for (log, expected) in [(LogInvalid::None, vec![]), (LogInvalid::All, vec![0, 1, 2, 3, 4]), (some, vec![0, 3])] {
        everywhere(logging(log), |lab| {
            for p in broken() {
                assert!(lab.send(LAN, &p).is_empty());
            }
            let mut seen = reports(lab);
            let mut all = [
                (DropReason::InvalidChecksum, 0, tuple(HOST, 4000, SERVER, 53, proto::UDP)),
                (DropReason::InvalidFlags, 0, tuple(HOST, 4000, SERVER, 80, proto::TCP)),
                (DropReason::InvalidSctpChunks, 0, tuple(HOST, 4000, SERVER, 80, proto::SCTP)),
                (DropReason::InvalidNoRequest, 0, tuple(HOST, 7, SERVER, 0, proto::ICMP)),
                (DropReason::InvalidNoNextHeader, 0, tuple(HOST6, 0, SERVER6, 0, 59)),
            ]
            .into_iter()
            .enumerate()
            .filter(|(n, _)| expected.contains(n))
            .map(|(_, r)| r)
            .collect::<Vec<_>>();
            all.sort_by_key(|r| r.0);
            seen.sort_by_key(|r| r.0);
            assert_eq!(seen, all);
        });
    }
}

#[test]
fn a_packet_is_reported_whatever_the_policy_makes_of_it() {
    let mut spec = logging(LogInvalid::All);
    spec.rules.insert(0, rule("invalid-out", state(&[dataplane::packet::CtState::Invalid]), Action::Accept));
    everywhere(spec, |lab| {
        lab.passes(LAN, &sctp(HOST, 4000, SERVER, 80, 0, &[]), WAN);
        lab.passes(WAN, &icmp(SERVER, HOST, 3, 3, [0; 4], b"nothing"), LAN);
        let reasons: Vec<_> = reports(lab).into_iter().map(|(reason, interface, _)| (reason, interface)).collect();
        assert_eq!(reasons, [(DropReason::InvalidSctpChunks, 0), (DropReason::InvalidQuote, 1)]);
    });
}

#[test]
fn reports_of_invalid_packets_are_rate_limited() {
    let mut lab = Lab::new(logging(LogInvalid::All));
    for round in 0..3 {
        for _ in 0..1000 {
            lab.arrive(LAN, &addressed(LAN, &sctp(HOST, 4000, SERVER, 80, 0, &[])).frame());
        }
        lab.run();
        let n = reports(&mut lab).len();
        assert!((50..=100).contains(&n), "{n} reports in round {round}");
        assert_eq!(lab.drop_count(DropReason::InvalidSctpChunks), 1000 * (round + 1), "all are counted");
        lab.wait(Nanos::from_secs(1));
    }
}

#[test]
fn invalid_packets_are_never_translated() {
    let mut spec = PolicySpec { nat: vec![masquerade()], ..usual() };
    spec.rules.insert(0, rule("invalid-out", state(&[dataplane::packet::CtState::Invalid]), Action::Accept));
    everywhere(spec, |lab| {
        for p in &broken()[1..4] {
            let out = lab.passes(LAN, p, WAN);
            assert_eq!((out.src, &out.ip[20..]), (ip(HOST), &p.l4[..]));
        }
        assert_eq!((lab.entries(), lab.leases()), (0, 0));
    });
}

#[test]
fn icmp_of_the_other_ip_version_is_invalid() {
    everywhere(usual(), |lab| {
        for kind in [0, 3, 8, 128, 129, 135] {
            let body = [kind, 0, 0, 0, 0, 7, 0, 1];
            lab.refuses(LAN, &other(HOST, SERVER, proto::ICMPV6, &body), DropReason::InvalidIcmpVersion);
            lab.refuses(LAN, &other(HOST6, SERVER6, proto::ICMP, &body), DropReason::InvalidIcmpVersion);
        }
    });
}

// ---- IPv6's chain of headers ----------------------------------------------------------------------------------------

/// `p` behind extension headers: each its number and its bytes without the first.
fn behind(mut p: Pkt, headers: &[(u8, &[u8])]) -> Pkt {
    for (number, bytes) in headers.iter().rev() {
        p.l4 = [&[p.proto], *bytes, &p.l4].concat();
        p.proto = *number;
    }
    p
}

const PADDING: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const AUTHENTICATION: &[u8] = &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn extension_headers_are_walked_to_the_transport() {
    everywhere(usual(), |lab| {
        let chains: [&[(u8, &[u8])]; 7] = [
            &[(0, PADDING)],
            &[(60, PADDING)],
            &[(43, &[0, 2, 0, 0, 0, 0, 0])],
            &[(60, PADDING), (0, PADDING)],
            &[(51, AUTHENTICATION)],
            &[(51, &[0, 0, 0, 0, 0, 0, 0])],
            &[(0, PADDING), (60, PADDING), (43, &[0, 2, 0, 0, 0, 0, 0]), (51, AUTHENTICATION), (60, PADDING)],
        ];
        for (n, chain) in (0..).zip(chains) {
            let question = behind(udp(HOST6, 4000 + n, SERVER6, 53, b"question"), chain);
            lab.passes(LAN, &question, WAN);
            lab.moved(&["class new original +1", "event new +1"]);
            lab.passes(WAN, &udp(SERVER6, 53, HOST6, 4000 + n, b"answer"), LAN);
            lab.moved(&["class established reply +1", "event replied +1"]);
        }
        let ports: Vec<_> = lab.conns().iter().map(|c| (c.original.proto, c.original.dport)).collect();
        assert_eq!(ports, [(proto::UDP, 53); 7]);
    });
}

#[test]
fn headers_that_are_not_known_are_protocols_of_their_own() {
    everywhere(usual(), |lab| {
        for p in [50, 135, 139, 140, 253, 41] {
            lab.passes(LAN, &behind(other(HOST6, SERVER6, p, b"\x3b\0\0\0\0\0\0\0"), &[(60, PADDING)]), WAN);
            lab.moved(&["class new original +1", "event new +1"]);
        }
        assert!(lab.conns().iter().all(|c| c.timeout_s == 600));
    });
}

#[test]
fn a_chain_that_breaks_off_is_invalid() {
    everywhere(usual(), |lab| {
        let cut: [(u8, &[u8]); 7] = [
            (60, b""),
            (60, &[17]),
            (43, &[17]),
            (51, &[17]),
            (44, &[17, 0, 0]),
            (44, &[17, 0, 0, 0, 0]),
            (60, &[51, 0, 1, 4, 0, 0, 0, 0, 17]),
        ];
        for (first, bytes) in cut {
            lab.refuses(LAN, &other(HOST6, SERVER6, first, bytes), DropReason::InvalidExtension);
            lab.moved(&["class invalid original +1", "drop invalid_extension +1"]);
        }
        for chain in [&[][..], &[(60, PADDING)]] {
            let p = behind(other(HOST6, SERVER6, 59, b"whatever"), chain);
            lab.refuses(LAN, &p, DropReason::InvalidNoNextHeader);
            lab.moved(&["class invalid original +1", "drop invalid_no_next_header +1"]);
        }
        // A length that leads beyond the packet: nothing is there of what comes next.
        lab.refuses(LAN, &other(HOST6, SERVER6, 60, &[17, 9, 1, 4, 0, 0, 0, 0]), DropReason::InvalidLength);
        lab.passes(LAN, &other(HOST6, SERVER6, 60, &[253, 9, 1, 4, 0, 0, 0, 0]), WAN);
        // But for the hop-by-hop options, which every node reads.
        lab.refuses(LAN, &other(HOST6, SERVER6, 0, &[17, 9, 1, 4, 0, 0, 0, 0]), DropReason::Ipv6Extension);
        lab.refuses(LAN, &other(HOST6, SERVER6, 0, &[17]), DropReason::Ipv6Extension);
    });
}

#[test]
fn so_many_headers_are_walked_and_no_more() {
    everywhere(usual(), |lab| {
        let p = |n| behind(udp(HOST6, 4000, SERVER6, 53, b""), &vec![(60, PADDING); n]);
        lab.passes(LAN, &p(32), WAN);
        lab.refuses(LAN, &p(33), DropReason::InvalidExtension);
    });
}

// ---- UNTRACKED ------------------------------------------------------------------------------------------------------

fn notrack(name: &str, matches: Match) -> RawRuleSpec {
    RawRuleSpec { name: name.into(), matches, action: RawAction::Notrack }
}

/// Untracked packets may pass everywhere.
fn untracking(raw: Vec<RawRuleSpec>) -> PolicySpec {
    let mut spec = PolicySpec { raw, nat: vec![masquerade()], ..usual() };
    spec.rules.push(rule("untracked", state(&[dataplane::packet::CtState::Untracked]), Action::Accept));
    spec
}

#[test]
fn every_protocol_can_be_left_untracked_even_where_it_is_broken() {
    everywhere(untracking(vec![notrack("all", Match::default())]), |lab| {
        let right = [
            tcp(HOST, 1, SERVER, 2, FIN | SYN, 1, 0, b""),
            udplite(HOST, 1, SERVER, 2, 8, b"light"),
            sctp(HOST, 1, SERVER, 2, 7, &[chunk(0, 3, &[0; 12])]),
            other(HOST, SERVER, proto::GRE, &[0, 1, 8, 0, 0, 0, 0, 0]),
            pong(HOST, SERVER, 7, 1),
            icmp(HOST, SERVER, 3, 3, [0; 4], b"about nothing"),
            other(HOST6, SERVER6, 59, b""),
            other(HOST6, SERVER6, 60, &[17]),
        ];
        for p in right {
            let out = lab.passes(LAN, &p, WAN);
            assert_eq!(out.src, p.src, "untracked packets are not translated");
            lab.moved(UNTRACKED);
        }
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn raw_rules_see_what_the_gateway_itself_sends() {
    let own = Match { from: vec![ZoneId::LOCAL], proto: vec![proto::UDP], dport: vec![123..=123], ..Match::default() };
    let back = Match { from: vec![WAN_ZONE], proto: vec![proto::UDP], sport: vec![123..=123], ..Match::default() };
    everywhere(untracking(vec![notrack("ntp-out", own), notrack("ntp-back", back)]), |lab| {
        lab.passes(WAN_TWIN, &udp(GATEWAY, 123, SERVER, 123, b"time?"), WAN);
        lab.moved(UNTRACKED);
        lab.passes(WAN, &udp(SERVER, 123, GATEWAY, 123, b"now"), WAN_TWIN);
        lab.moved(UNTRACKED);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn what_the_kernel_sends_is_not_verified() {
    let mut spec = usual();
    spec.rules.push(rule("own", Match { from: vec![ZoneId::LOCAL], ..Match::default() }, Action::Accept));
    everywhere(spec, |lab| {
        let p = udp(GATEWAY, 4000, SERVER, 53, b"own").broken_checksum();
        lab.arrive(WAN_TWIN, &addressed(WAN_TWIN, &p).frame());
        lab.run();
        lab.moved(&["class new original +1", "event new +1"]);
        assert_eq!(lab.sent(WAN).len(), 1);
    });
}

#[test]
fn neighbour_discovery_is_untracked_and_with_a_wrong_checksum_invalid() {
    let spec = untracking(Vec::new());
    everywhere(spec, |lab| {
        for kind in (130..=136).chain([143, 151, 152]) {
            let p = icmp("fe80::2", "ff02::1", kind, 0, [0; 4], &[0; 24]).ttl(255).to_mac([0x33, 0x33, 0, 0, 0, 1]);
            lab.passes(LAN, &p, LAN_TWIN);
            lab.moved(UNTRACKED);
            lab.refuses(LAN, &p.broken_checksum(), DropReason::InvalidChecksum);
            lab.moved(&["class invalid original +1", "drop invalid_checksum +1"]);
            // What would be forwarded is the policy's.
            lab.passes(LAN, &icmp(HOST6, SERVER6, kind, 0, [0; 4], &[0; 24]), WAN);
            lab.moved(UNTRACKED);
        }
        lab.passes(LAN_TWIN, &icmp("fe80::1", "ff02::1", 134, 0, [0; 4], &[0; 24]).ttl(255), LAN);
        lab.moved(UNTRACKED);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn a_raw_rule_drops_discovery_that_would_be_forwarded_but_silences_no_link() {
    let all = RawRuleSpec { name: "none".into(), matches: Match::default(), action: RawAction::Drop };
    everywhere(untracking(vec![all]), |lab| {
        let p = icmp("fe80::2", "ff02::1", 135, 0, [0; 4], &[0; 24]).ttl(255).to_mac([0x33, 0x33, 0, 0, 0, 1]);
        lab.passes(LAN, &p, LAN_TWIN);
        lab.passes(WAN, &icmp("2001:db8::10", GATEWAY6, 136, 0, [0; 4], &[0; 24]).ttl(255), WAN_TWIN);
        lab.refuses(LAN, &icmp(HOST6, SERVER6, 136, 0, [0; 4], &[0; 24]), DropReason::RawRule);
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 2, b""), DropReason::RawRule);
    });
}
