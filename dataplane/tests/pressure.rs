//! A full table, limits and the reserve: who gets in, who makes room. Marks, timeout policies, conntrack zones.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::api::stats::CtEvent;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";

fn event(lab: &Lab, event: CtEvent) -> u64 {
    lab.stats.iter().map(|s| s.ct_events[event as usize].value()).sum()
}

/// The usual policy, and the gateway may speak and be spoken to.
fn with_local() -> PolicySpec {
    let mut spec = usual();
    spec.rules.push(rule("out", from_to(ZoneId::LOCAL, WAN_ZONE), Action::Accept));
    spec.rules.push(rule("in", from_to(LAN_ZONE, ZoneId::LOCAL), Action::Accept));
    spec
}

/// A lab of one worker with room for `max` connections.
fn small(spec: PolicySpec, max: usize) -> Lab {
    Lab::with(spec, Setup { conntrack_max: max, ..Setup::default() })
}

fn question(sport: u16) -> Pkt {
    udp(HOST, sport, SERVER, 53, b"q")
}

/// A TCP connection that is assured: handshake done.
fn assured(lab: &mut Lab, sport: u16) {
    lab.passes(LAN, &tcp(HOST, sport, SERVER, 80, SYN, 100, 0, b""), WAN);
    lab.passes(WAN, &tcp(SERVER, 80, HOST, sport, SYN | ACK, 500, 101, b""), LAN);
    lab.passes(LAN, &tcp(HOST, sport, SERVER, 80, ACK, 101, 501, b""), WAN);
}

// ---- Early drop -----------------------------------------------------------------------------------------------------

#[test]
fn a_full_table_gives_up_what_nobody_has_answered() {
    let mut lab = small(usual(), 16);
    for port in 0..15 {
        assured(&mut lab, 1000 + port);
    }
    for port in 0..1000 {
        lab.passes(LAN, &question(2000 + port), WAN);
        assert!(lab.entries() <= 16);
    }
    assert_eq!(event(&lab, CtEvent::EarlyDrop), 999);
    assert_eq!(lab.owned().iter().filter(|c| c.assured).count(), 15, "none that is assured was given up");
    assert_eq!(lab.drop_count(DropReason::ConntrackFull), 0);
}

#[test]
fn what_was_answered_goes_after_what_was_not() {
    let mut lab = small(usual(), 8);
    for port in 0..8 {
        lab.passes(LAN, &question(1000 + port), WAN);
    }
    for port in 0..7 {
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000 + port, b"a"), LAN);
    }
    lab.passes(LAN, &question(2000), WAN);
    assert_eq!(lab.owned().iter().filter(|c| c.replied).count(), 7);
    assert!(lab.owned().iter().all(|c| c.original.sport != 1007), "the one without an answer is gone");
    lab.passes(WAN, &udp(SERVER, 53, HOST, 2000, b"a"), LAN);
    lab.passes(LAN, &question(2001), WAN);
    assert_eq!((lab.entries(), event(&lab, CtEvent::EarlyDrop)), (8, 2));
}

#[test]
fn a_table_of_assured_connections_is_full() {
    let mut lab = small(usual(), 4);
    for port in 0..4 {
        assured(&mut lab, 1000 + port);
    }
    lab.refuses(LAN, &question(2000), DropReason::ConntrackFull);
    assert_eq!((lab.entries(), event(&lab, CtEvent::EarlyDrop)), (4, 0));
}

#[test]
fn a_denied_packet_makes_nobody_go() {
    let mut lab = small(usual(), 4);
    for port in 0..4 {
        lab.passes(LAN, &question(1000 + port), WAN);
    }
    lab.refuses(WAN, &udp(SERVER, 1, HOST, 2, b""), DropReason::PolicyDefault);
    assert_eq!((lab.entries(), event(&lab, CtEvent::EarlyDrop)), (4, 0));
}

// ---- Reserve --------------------------------------------------------------------------------------------------------

#[test]
fn the_operator_gets_in_where_the_table_is_full_for_others() {
    let mut spec = with_local();
    spec.conntrack.reserve = 2;
    let mut lab = small(spec, 8);
    for port in 0..6 {
        assured(&mut lab, 1000 + port);
    }
    lab.refuses(LAN, &question(2000), DropReason::ConntrackFull);
    lab.passes(LAN, &tcp(HOST, 3000, "10.0.0.1", 22, SYN, 1, 0, b""), LAN_TWIN);
    lab.passes(WAN_TWIN, &udp(GATEWAY, 4000, SERVER, 53, b""), WAN);
    assert_eq!(lab.entries(), 8);
    // The gateway's own are not given up for others, not even unanswered, but for each other.
    lab.refuses(LAN, &question(2001), DropReason::ConntrackFull);
    lab.passes(LAN, &tcp(HOST, 3001, "10.0.0.1", 22, SYN, 1, 0, b""), LAN_TWIN);
    assert_eq!((lab.entries(), event(&lab, CtEvent::EarlyDrop)), (8, 1));
}

// ---- Limits ---------------------------------------------------------------------------------------------------------

fn limit(per: LimitPer, max: u32) -> PolicySpec {
    let mut spec = usual();
    spec.conntrack.limits = vec![LimitSpec { from: Some(LAN_ZONE), per, max }];
    spec
}

#[test]
fn a_source_at_its_limit_is_refused_and_others_are_not() {
    let mut lab = Lab::new(limit(LimitPer::Source { v4: 32, v6: 128 }, 3));
    for port in 0..3 {
        lab.passes(LAN, &question(1000 + port), WAN);
    }
    lab.refuses(LAN, &question(2000), DropReason::LimitSource);
    lab.passes(LAN, &question(1000), WAN);
    lab.passes(LAN, &question(2000).src("10.0.0.3"), WAN);
    // What ends counts no more.
    lab.wait(Nanos::from_secs(31));
    for port in 0..3 {
        lab.passes(LAN, &question(3000 + port), WAN);
    }
    lab.refuses(LAN, &question(4000), DropReason::LimitSource);
}

#[test]
fn workers_share_a_limit_evenly() {
    everywhere(limit(LimitPer::Zone, 40), |lab| {
        let passed = (0..400).filter(|n| !lab.send(LAN, &question(1000 + n)).is_empty()).count();
        assert_eq!(passed, 40);
        assert_eq!(lab.drop_count(DropReason::LimitZone), 360);
    });
}

#[test]
fn a_reload_keeps_the_count_of_a_limit_that_stays() {
    let mut lab = Lab::new(limit(LimitPer::Zone, 2));
    lab.passes(LAN, &question(1000), WAN);
    lab.passes(LAN, &question(1001), WAN);
    lab.reload(limit(LimitPer::Zone, 2));
    lab.refuses(LAN, &question(1002), DropReason::LimitZone);
    lab.reload(usual());
    lab.passes(LAN, &question(1002), WAN);
    lab.reload(limit(LimitPer::Zone, 2));
    for port in [1003, 1004] {
        lab.passes(LAN, &question(port), WAN);
    }
    lab.refuses(LAN, &question(1005), DropReason::LimitZone);
    lab.wait(Nanos::from_secs(31));
    assert_eq!(lab.entries(), 0);
    for port in [1003, 1004] {
        lab.passes(LAN, &question(port), WAN);
    }
    lab.refuses(LAN, &question(1005), DropReason::LimitZone);
}

// ---- Marks ----------------------------------------------------------------------------------------------------------

/// UDP gets mark 0x10, port 53 of it 0x13; what has 0x13 may pass.
fn marking() -> PolicySpec {
    let set =
        |name: &str, matches: Match, mark| RuleSpec { set_mark: Some(mark), ..rule(name, matches, Action::Continue) };
    let mut spec = policy();
    spec.rules = vec![
        set("udp", Match { proto: vec![proto::UDP], state: vec![CtState::New], ..Match::default() }, (u32::MAX, 0x10)),
        set("dns", Match { dport: vec![53..=53], state: vec![CtState::New], ..Match::default() }, (0xf, 3)),
        rule("marked", Match { mark: Some((0xff, 0x13)), ..Match::default() }, Action::Accept),
    ];
    spec
}

#[test]
fn a_rule_marks_the_connection_and_later_rules_and_packets_see_it() {
    everywhere(marking(), |lab| {
        lab.passes(LAN, &question(1000), WAN);
        assert_eq!(lab.conns()[0].mark, 0x13);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), LAN);
        lab.refuses(LAN, &udp(HOST, 1000, SERVER, 54, b""), DropReason::PolicyDefault);
        assert_eq!([0, 1, 2, 3].map(|n| lab.rule_packets(n)), [2, 1, 2, 1]);
    });
}

#[test]
fn a_rule_that_says_continue_counts_each_packet_of_a_known_connection() {
    let mut spec = policy();
    let udp_only = Match { proto: vec![proto::UDP], ..Match::default() };
    spec.rules = vec![
        rule("out", from_to(LAN_ZONE, WAN_ZONE), Action::Continue),
        rule("udp", udp_only.clone(), Action::Continue),
        rule("dns", Match { dport: vec![53..=53], ..udp_only.clone() }, Action::Accept),
        rule("answers", state(&[CtState::Established]), Action::Accept),
    ];
    everywhere(spec.clone(), |lab| {
        for _ in 0..3 {
            lab.passes(LAN, &question(1000), WAN);
        }
        let size = lab.rule_bytes(2);
        for _ in 0..2 {
            lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"answer"), LAN);
        }
        lab.refuses(LAN, &udp(HOST, 1000, SERVER, 54, b""), DropReason::PolicyDefault);
        lab.refuses(WAN, &udp(SERVER, 54, HOST, 1000, b""), DropReason::PolicyDefault);
        lab.refuses(LAN, &tcp(HOST, 1000, SERVER, 54, SYN, 1, 0, b""), DropReason::PolicyDefault);
        assert_eq!([0, 1, 2, 3, 4].map(|n| lab.rule_packets(n)), [5, 7, 3, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(|n| lab.rule_bytes(n)), [size + 28 + 40, size + 2 * 34 + 2 * 28, size, 2 * 34]);
        // Another policy begins to count anew, for connections that are known as well.
        lab.reload(spec.clone());
        lab.passes(LAN, &question(1000), WAN);
        assert_eq!([0, 1, 2, 3, 4].map(|n| lab.rule_packets(n)), [1, 1, 1, 0, 0]);
    });
}

#[test]
fn a_rule_that_only_continues_can_report() {
    use dataplane::api::command::Event;
    let mut spec = marking();
    spec.rules[1].log = true;
    let mut lab = Lab::new(spec);
    lab.passes(LAN, &question(1000), WAN);
    let reported = lab.events.iter().filter_map(|e| match e {
        Event::RuleLog { rule, accepted, .. } => Some((*rule, *accepted)),
        _ => None,
    });
    assert_eq!(reported.collect::<Vec<_>>(), [(1, true)]);
}

#[test]
fn a_mark_that_the_operator_changes_is_judged_at_once() {
    use dataplane::api::command::{Command, ConnChange, ConnFilter};
    everywhere(marking(), |lab| {
        lab.passes(LAN, &question(1000), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), LAN);
        let change = ConnChange { mark: Some((u32::MAX, 7)), ..ConnChange::default() };
        lab.command(|| Command::Update {
            cursor: 0,
            filter: ConnFilter::default(),
            change,
            into: Vec::with_capacity(8),
        });
        assert_eq!(lab.conns()[0].mark, 7);
        lab.refuses(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), DropReason::PolicyDefault);
    });
}

#[test]
fn source_translation_sees_the_mark_of_the_filter() {
    let mut spec = marking();
    let matches = Match { mark: Some((0xff, 0x13)), ..from_to(LAN_ZONE, WAN_ZONE) };
    spec.nat.push(NatRuleSpec { matches, ..masquerade() });
    everywhere(spec, |lab| assert_eq!(lab.passes(LAN, &question(1000), WAN).src, ip(GATEWAY)));
}

// ---- Timeout policies -----------------------------------------------------------------------------------------------

fn timed(udp: u64) -> PolicySpec {
    let mut spec = usual();
    let timeouts = Timeouts { udp: Nanos::from_secs(udp), ..Timeouts::default() };
    spec.conntrack.timeout_policies.push(("dns".into(), timeouts));
    spec.rules[2].timeout_policy = 1;
    spec
}

#[test]
fn a_rule_gives_its_connections_timeouts_of_their_own() {
    everywhere(timed(5), |lab| {
        lab.passes(LAN, &question(1000), WAN);
        assert_eq!(lab.conns()[0].timeout_s, 5);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), LAN);
        assert_eq!(lab.conns()[0].timeout_s, 5);
        lab.wait(Nanos::from_millis(5200));
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn a_reload_changes_the_timeouts_of_what_lives_at_its_next_packet() {
    everywhere(timed(5), |lab| {
        lab.passes(LAN, &question(1000), WAN);
        lab.reload(timed(50));
        lab.passes(LAN, &question(1000), WAN);
        assert_eq!(lab.conns()[0].timeout_s, 50);
        lab.reload(usual());
        lab.passes(LAN, &question(1000), WAN);
        assert_eq!(lab.conns()[0].timeout_s, 30);
    });
}

// ---- Conntrack zones ------------------------------------------------------------------------------------------------

/// lan is in conntrack zone 7, and the gateway translates what leaves it.
fn zoned() -> PolicySpec {
    let mut spec = usual();
    spec.interface_ct_zones = vec![7, 0];
    spec.nat.push(masquerade());
    spec.rules.push(rule("back", from_to(WAN_ZONE, LAN_ZONE), Action::Accept));
    spec
}

#[test]
fn a_connection_out_of_a_zone_is_answered_from_the_common_one() {
    everywhere(zoned(), |lab| {
        let out = lab.passes(LAN, &question(1000), WAN);
        let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"a"), LAN);
        assert_eq!(back.flow(), "203.0.113.5:53 > 10.0.0.2:1000");
        let conn = &lab.conns()[0];
        assert_eq!((conn.original.ct_zone, conn.reply.ct_zone), (7, 0));
        let error = icmp(SERVER, GATEWAY, 3, 3, [0; 4], &udp(GATEWAY, out.sport, SERVER, 53, b"q").ip());
        assert_eq!(lab.passes(WAN, &error, LAN).dst, ip(HOST));
        assert_eq!(lab.entries(), 1);
    });
}

#[test]
fn the_same_tuple_in_two_zones_is_two_connections() {
    let mut spec = zoned();
    spec.nat.clear();
    everywhere(spec, |lab| {
        lab.passes(LAN, &question(1000), WAN);
        // The same words from the other side, whatever they want there, are another connection.
        lab.send(WAN, &question(1000).dst("10.0.0.3"));
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), LAN);
        let zones: Vec<_> = lab.conns().iter().map(|c| (c.original.ct_zone, c.reply.ct_zone)).collect();
        assert!(zones.contains(&(7, 0)), "{zones:?}");
    });
}

#[test]
fn an_answer_finds_its_zone_where_addresses_overlap() {
    use dataplane::api::{RouteSpec, RouteTarget};
    let mut routes = fib();
    let hidden = |interface| RouteTarget::Via { interface, gateway: None };
    // 10.0.0.0/24 is preferred out of wan; lan's route to it is hidden, but lan is where the question came from.
    routes.routes[0].target = hidden(1);
    routes.others = vec![RouteSpec { prefix: "10.0.0.0/24".parse().expect("prefix"), target: hidden(0) }];
    everywhere(zoned(), |lab| {
        lab.reroute(routes.clone());
        let out = lab.passes(LAN, &question(1000), WAN);
        let back = lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"a"), LAN);
        assert_eq!(back.dst, ip(HOST));
    });
}
