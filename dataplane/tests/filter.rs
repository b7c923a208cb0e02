//! Stories of the filter: which rule decides, on what, and what it counts.
//!
//! ```text
//!   10.0.0.2 ── lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ── 203.0.113.5
//!                            local (twins)
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::Event;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const ESTABLISHED: &[CtState] = &[CtState::Established, CtState::Related];

/// The policy with these rules alone.
fn rules(rules: Vec<RuleSpec>) -> PolicySpec {
    PolicySpec { rules, ..policy() }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let spec = rules(vec![
        rule("established", state(ESTABLISHED), Action::Accept),
        rule(
            "not-this-port",
            Match { proto: vec![proto::UDP], dport: vec![5000..=5009], ..Match::default() },
            Action::Drop,
        ),
        rule("lan-out", from_to(LAN_ZONE, WAN_ZONE), Action::Accept),
        rule("never-asked", from_to(LAN_ZONE, WAN_ZONE), Action::Drop),
    ]);
    everywhere(spec, |lab| {
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 5000, b""), DropReason::PolicyRule);
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 5009, b""), DropReason::PolicyRule);
        lab.passes(LAN, &udp(HOST, 1, SERVER, 5010, b""), WAN);
        lab.passes(LAN, &tcp(HOST, 1, SERVER, 5000, SYN, 1, 0, b""), WAN);
        lab.passes(WAN, &udp(SERVER, 5010, HOST, 1, b"back"), LAN);
        lab.refuses(WAN, &udp(SERVER, 5011, HOST, 1, b""), DropReason::PolicyDefault);
        assert_eq!([0, 1, 2, 3, 4].map(|n| lab.rule_packets(n)), [1, 2, 2, 0, 1]);
        assert_eq!([0, 1, 2, 3, 4].map(|n| lab.rule_bytes(n)), [32, 56, 28 + 40, 0, 28]);
        lab.moved(&[
            "class established reply +1",
            "class new original +5",
            "drop policy_default +1",
            "drop policy_rule +2",
            "event new +2",
            "event replied +1",
        ]);
    });
}

#[test]
fn what_no_rule_matches_meets_the_default() {
    let spec = PolicySpec { default: Action::Accept, ..policy() };
    everywhere(spec, |lab| {
        lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b""), WAN);
        lab.passes(WAN, &tcp(SERVER, 1, HOST, 2, SYN, 1, 0, b""), LAN);
        lab.passes(WAN, &tcp(SERVER, 7, HOST, 8, RST, 1, 0, b""), LAN);
        assert_eq!(lab.rule_packets(0), 3);
        lab.moved(&["class invalid original +1", "class new original +2", "event new +2"]);
    });
}

#[test]
fn each_condition_tells_packets_apart() {
    let accept = |m: Match| rules(vec![rule("only", m, Action::Accept)]);
    let not = |p: &str| AddrMatch { negate: true, ..only(p) };
    let syn = |dport| tcp(HOST, 4000, SERVER, dport, SYN, 1, 0, b"");
    let cases: Vec<(Match, Pkt, Pkt)> = vec![
        (Match { source: Some(only("10.0.0.2/31")), ..Match::default() }, syn(1), udp("10.0.0.4", 1, SERVER, 2, b"")),
        (Match { source: Some(not("10.0.0.4/32")), ..Match::default() }, syn(1), udp("10.0.0.4", 1, SERVER, 2, b"")),
        (
            Match { destination: Some(only("203.0.113.0/24")), ..Match::default() },
            syn(1),
            udp(HOST, 1, "8.8.8.8", 2, b""),
        ),
        (Match { proto: vec![proto::TCP], ..Match::default() }, syn(1), udp(HOST, 1, SERVER, 2, b"")),
        (Match { dport: vec![443..=443], ..Match::default() }, syn(443), syn(444)),
        (
            Match { dport: vec![443..=443], ..Match::default() },
            udp(HOST, 1, SERVER, 443, b""),
            ping(HOST, SERVER, 443, 1),
        ),
        (Match { sport: vec![4000..=4000], ..Match::default() }, syn(1), udp(HOST, 4001, SERVER, 2, b"")),
        (
            Match { icmp_type: vec![8], ..Match::default() },
            ping(HOST, SERVER, 1, 1),
            icmp(HOST, SERVER, 13, 0, [0; 4], &[0; 12]),
        ),
        (
            Match { tcp_flags: Some((SYN | ACK, SYN)), ..Match::default() },
            syn(1),
            tcp(HOST, 1, SERVER, 2, ACK, 1, 1, b""),
        ),
        (Match { state: vec![CtState::New], ..Match::default() }, syn(1), tcp(HOST, 1, SERVER, 2, RST, 1, 1, b"")),
        (Match { interface_in: vec![0], interface_out: vec![1], ..Match::default() }, syn(1), syn(2).dst("10.0.0.9")),
        (Match { to: vec![WAN_ZONE, ZoneId::LOCAL], ..Match::default() }, syn(1), syn(2).dst("10.0.0.9")),
    ];
    for (matches, passes, drops) in cases {
        everywhere(accept(matches.clone()), |lab| {
            lab.passes(LAN, &passes, WAN);
            let out = lab.send(LAN, &drops);
            assert!(out.is_empty(), "{matches:?} let {drops:?} through");
            lab.send(WAN, &tcp(SERVER, 9, "10.0.0.3", 9, RST, 0, 0, b""));
        });
    }
}

/// Rules see the packet between DNAT and SNAT: its new destination and its old source.
#[test]
fn rules_see_the_destination_translated_and_the_source_not() {
    let mut spec = rules(vec![
        rule("established", state(ESTABLISHED), Action::Accept),
        rule(
            "web",
            Match { destination: Some(only("10.0.0.9/32")), dport: vec![80..=80], ..from_to(WAN_ZONE, LAN_ZONE) },
            Action::Accept,
        ),
        rule("this-host", Match { source: Some(only("10.0.0.2/32")), ..from_to(LAN_ZONE, WAN_ZONE) }, Action::Accept),
    ]);
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    spec.rules.pop(); // the helper's own
    spec.nat.push(masquerade());
    everywhere(spec, |lab| {
        lab.passes(WAN, &tcp(SERVER, 5000, "198.51.100.1", 8080, SYN, 1, 0, b""), LAN);
        lab.refuses(WAN, &tcp(SERVER, 5000, "10.0.0.9", 8080, SYN, 1, 0, b""), DropReason::PolicyDefault);
        lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b""), WAN);
        lab.refuses(LAN, &udp("10.0.0.3", 1, SERVER, 2, b""), DropReason::PolicyDefault);
    });
}

#[test]
fn the_gateway_itself_is_a_zone() {
    let spec = rules(vec![
        rule("established", state(ESTABLISHED), Action::Accept),
        rule(
            "ssh",
            Match { proto: vec![proto::TCP], dport: vec![22..=22], ..from_to(LAN_ZONE, ZoneId::LOCAL) },
            Action::Accept,
        ),
        rule("dns-out", Match { dport: vec![53..=53], ..from_to(ZoneId::LOCAL, WAN_ZONE) }, Action::Accept),
    ]);
    everywhere(spec, |lab| {
        lab.passes(LAN, &tcp(HOST, 1, "10.0.0.1", 22, SYN, 1, 0, b""), LAN_TWIN);
        lab.refuses(WAN, &tcp(SERVER, 1, "198.51.100.1", 22, SYN, 1, 0, b""), DropReason::PolicyDefault);
        lab.refuses(LAN, &tcp(HOST, 1, "10.0.0.1", 23, SYN, 1, 0, b""), DropReason::PolicyDefault);
        lab.passes(WAN_TWIN, &udp("198.51.100.1", 1, SERVER, 53, b"").to_mac(HOST_MAC), WAN);
        lab.refuses(WAN_TWIN, &udp("198.51.100.1", 1, SERVER, 54, b"").to_mac(HOST_MAC), DropReason::PolicyDefault);
    });
}

/// A verdict holds for a direction and a class, not for the connection.
#[test]
fn replies_and_later_packets_are_judged_on_their_own() {
    let spec = rules(vec![
        rule("first", Match { state: vec![CtState::New], ..from_to(LAN_ZONE, WAN_ZONE) }, Action::Accept),
        rule("answers", Match { state: vec![CtState::Established], ..from_to(WAN_ZONE, LAN_ZONE) }, Action::Accept),
        rule("no-more", Match { state: vec![CtState::Established], ..from_to(LAN_ZONE, WAN_ZONE) }, Action::Drop),
    ]);
    everywhere(spec, |lab| {
        let (question, answer) = (udp(HOST, 1, SERVER, 2, b"q"), udp(SERVER, 2, HOST, 1, b"a"));
        for _ in 0..3 {
            lab.passes(LAN, &question, WAN);
        }
        for _ in 0..3 {
            lab.passes(WAN, &answer, LAN);
        }
        for _ in 0..3 {
            lab.refuses(LAN, &question, DropReason::PolicyRule);
        }
        assert_eq!([0, 1, 2, 3].map(|n| lab.rule_packets(n)), [3, 3, 3, 0]);
        lab.moved(&[
            "class established original +3",
            "class established reply +3",
            "class new original +3",
            "drop policy_rule +3",
            "event new +1",
            "event replied +1",
        ]);
    });
}

/// Interfaces are not part of a connection, but zones are part of a rule: who forges the tuple of a connection from
/// another side meets the rules of that side.
#[test]
fn a_verdict_does_not_hold_for_packets_from_another_interface() {
    let spec = rules(vec![
        rule("lan-out", from_to(LAN_ZONE, WAN_ZONE), Action::Accept),
        rule("answers", Match { state: ESTABLISHED.to_vec(), ..from_to(WAN_ZONE, LAN_ZONE) }, Action::Accept),
    ]);
    everywhere(spec, |lab| {
        let (question, answer) = (udp(HOST, 1, SERVER, 2, b"q"), udp(SERVER, 2, HOST, 1, b"a"));
        lab.passes(LAN, &question, WAN);
        lab.passes(WAN, &answer, LAN);
        lab.passes(LAN, &question, WAN);
        lab.refuses(LAN, &answer, DropReason::PolicyDefault);
        lab.refuses(WAN, &question, DropReason::PolicyDefault);
        lab.passes(LAN, &question, WAN);
        lab.passes(WAN, &answer, LAN);
    });
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b"q"), WAN);
        lab.passes(LAN, &udp(SERVER, 2, HOST, 1, b"a"), LAN);
        lab.moved(&["class established reply +1", "class new original +1", "event new +1", "event replied +1"]);
    });
}

#[test]
fn a_refused_packet_leaves_no_connection_and_no_lease() {
    let mut spec = rules(vec![rule("no", from_to(LAN_ZONE, WAN_ZONE), Action::Drop)]);
    spec.nat = vec![masquerade()];
    everywhere(spec, |lab| {
        for port in 1..50 {
            lab.refuses(LAN, &tcp(HOST, port, SERVER, 443, SYN, 1, 0, b""), DropReason::PolicyRule);
        }
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (0, 0, 0));
        lab.moved(&["class new original +49", "drop policy_rule +49"]);
    });
}

#[test]
fn a_rule_with_log_reports_first_packets_within_a_limit() {
    let mut spec = usual();
    spec.rules[2].log = true;
    everywhere(spec, |lab| {
        for _ in 0..3 {
            lab.passes(LAN, &udp(HOST, 1, SERVER, 2, b""), WAN);
        }
        let logs = |lab: &mut Lab| {
            let all: Vec<_> = lab.events.drain(..).filter(|e| matches!(e, Event::RuleLog { .. })).collect();
            all
        };
        let got = logs(lab);
        assert_eq!(got.len(), 1, "{got:?}");
        let Event::RuleLog { generation: 1, rule: 2, accepted: true, interface: 0, tuple: t } = got[0] else {
            panic!("{:?}", got[0])
        };
        assert_eq!(t, tuple(HOST, 1, SERVER, 2, proto::UDP));
        for port in 1000..1300 {
            lab.arrive(LAN, &addressed(LAN, &udp(HOST, port, SERVER, 2, b"")).frame());
        }
        lab.run();
        lab.collect();
        let n = logs(lab).len();
        assert!((1..=60 * lab.workers.len()).contains(&n), "{n} reports of 300");
        lab.wait(Nanos::from_secs(1));
        lab.passes(LAN, &udp(HOST, 1400, SERVER, 2, b""), WAN);
        assert_eq!(logs(lab).len(), 1);
    });
}
