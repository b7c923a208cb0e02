//! Stories of what changes while traffic flows: policy, routes, neighbours, and the operator who looks and flushes.
//!
//! ```text
//!   10.0.0.2 ──┐                                              ┌── 203.0.113.5
//!   10.0.0.9 ──┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ─┤
//!   10.0.0.77 ─┘ (another way to the world)                   └── 198.51.100.254
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::{Command, ConnFilter, Event};
use dataplane::api::policy::*;
use dataplane::api::{DropReason, NeighbourUpdate, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::proto;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

/// [`usual`], but lan may open only connections to this port.
fn only_port(port: u16) -> PolicySpec {
    let mut spec = usual();
    spec.rules[2].matches.dport = vec![port..=port];
    spec
}

fn handshake(lab: &mut Lab, port: u16) {
    lab.passes(LAN, &tcp(HOST, 4000, SERVER, port, SYN, 1, 0, b""), WAN);
    lab.passes(WAN, &tcp(SERVER, port, HOST, 4000, SYN | ACK, 1, 2, b""), LAN);
    lab.passes(LAN, &tcp(HOST, 4000, SERVER, port, ACK, 2, 2, b""), WAN);
}

// ---- Policy ---------------------------------------------------------------------------------------------------------

#[test]
fn a_reload_ends_the_connections_that_it_denies_and_no_others() {
    everywhere(usual(), |lab| {
        handshake(lab, 80);
        handshake(lab, 443);
        lab.reload(only_port(443));
        lab.changed();
        // From either side, whatever the rule for established connections says.
        lab.refuses(WAN, &tcp(SERVER, 80, HOST, 4000, ACK, 2, 2, b"data"), DropReason::PolicyReload);
        lab.moved(&["class established reply +1", "drop policy_reload +1", "event denied +1"]);
        lab.passes(LAN, &tcp(HOST, 4000, SERVER, 443, ACK, 2, 2, b"data"), WAN);
        lab.passes(WAN, &tcp(SERVER, 443, HOST, 4000, ACK, 2, 2, b"data"), LAN);
        lab.moved(&["class established original +1", "class established reply +1"]);
        assert_eq!(lab.entries(), 1);
        // What follows starts anew, and is judged as such.
        lab.refuses(LAN, &tcp(HOST, 4000, SERVER, 80, ACK, 2, 2, b"data"), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
    });
}

#[test]
fn a_reload_of_the_same_policy_changes_nothing() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        for _ in 0..5 {
            lab.reload(masqueraded());
            assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN).sport, out.sport);
            assert_eq!(lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"a"), LAN).dport, 4000);
        }
        let answers: Vec<_> = lab
            .events
            .iter()
            .filter_map(|e| match e {
                Event::PolicyInForce { generation, old: Some((old, _, _)) } => {
                    Some((*generation, old.spec().generation))
                }
                _ => None,
            })
            .collect();
        assert_eq!(answers.len(), 5 * lab.workers.len());
        assert!(answers.iter().all(|(new, old)| *new == old + 1), "the old policy comes back to be freed");
        assert_eq!((lab.entries(), lab.leases()), (1, 1));
    });
}

#[test]
fn a_connection_keeps_its_translation_over_a_reload_without_it() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        lab.reload(usual());
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN).flow(), out.flow());
        assert_eq!(lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"a"), LAN).dst, ip(HOST));
        assert_eq!(lab.passes(LAN, &udp(HOST, 4001, SERVER, 53, b"q"), WAN).src, ip(HOST), "new ones are not");
    });
}

#[test]
fn a_forwarded_connection_is_judged_again_by_its_translated_destination() {
    let forwarded = |to: &str| {
        let mut spec = usual();
        dnat(&mut spec, 8080, WEB, Some(80));
        spec.rules[3].matches.destination = Some(only(to));
        spec.rules[3].matches.dport = vec![80..=80];
        spec
    };
    everywhere(forwarded("10.0.0.9/32"), |lab| {
        for port in 5000..5008 {
            lab.passes(WAN, &udp(SERVER, port, GATEWAY, 8080, b"q"), LAN);
        }
        lab.reload(forwarded("10.0.0.8/31"));
        for port in 5000..5008 {
            let back = lab.passes(LAN, &udp(WEB, 80, SERVER, port, b"a"), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
        }
        lab.reload(forwarded("10.0.0.8/32"));
        for port in 5000..5008 {
            lab.refuses(LAN, &udp(WEB, 80, SERVER, port, b"a"), DropReason::PolicyReload);
        }
        assert_eq!((lab.entries(), lab.signposts()), (0, 0));
    });
}

#[test]
fn rules_of_the_new_policy_count_from_zero_and_decide_at_once() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b"a"), LAN);
        assert_eq!([0, 1, 2, 3].map(|n| lab.rule_packets(n)), [1, 0, 1, 0]);
        let mut spec = usual();
        spec.rules.insert(
            0,
            rule("answers", Match { state: vec![CtState::Established], ..from_to(WAN_ZONE, LAN_ZONE) }, Action::Accept),
        );
        lab.reload(spec);
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b"a"), LAN);
        lab.passes(LAN, &udp(HOST, 4001, SERVER, 53, b"q"), WAN);
        assert_eq!([0, 1, 2, 3, 4].map(|n| lab.rule_packets(n)), [1, 1, 0, 1, 0]);
    });
}

#[test]
fn no_packet_is_lost_while_policies_and_routes_are_replaced() {
    everywhere(masqueraded(), |lab| {
        let mut sent = 0;
        for round in 0..30u16 {
            for port in 4000..4016 {
                lab.arrive(LAN, &addressed(LAN, &udp(HOST, port, SERVER, 53, b"q")).frame());
                sent += 1;
            }
            // Between two bursts, and with frames waiting.
            match round % 3 {
                0 => lab.reload(masqueraded()),
                1 => lab.reroute(fib()),
                _ => lab.run(),
            }
        }
        assert_eq!((lab.collect().len(), lab.total_drops(), lab.entries()), (sent, 0, 16));
    });
}

// ---- Routes and neighbours ------------------------------------------------------------------------------------------

#[test]
fn open_connections_follow_a_change_of_routes() {
    let mut spec = usual();
    spec.default = Action::Accept;
    everywhere(spec, |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        let mut routes = fib();
        let prefix = "203.0.113.0/24".parse().expect("prefix");
        let target = RouteTarget::Via { interface: 0, gateway: Some(ip("10.0.0.77")) };
        routes.routes.push(RouteSpec { prefix, target });
        lab.reroute(routes);
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), LAN);
        lab.reroute(fib());
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        lab.moved(&["class new original +3", "event new +1"]);
        let returned = lab.events.iter().filter(|e| matches!(e, Event::FibInForce { .. })).count();
        assert_eq!(returned, 2 * lab.workers.len());
    });
}

#[test]
fn a_connection_outlives_the_absence_of_its_route() {
    everywhere(usual(), |lab| {
        handshake(lab, 443);
        let mut routes = fib();
        routes.routes.retain(|r| r.prefix.prefix_len() > 0);
        lab.reroute(routes);
        lab.changed();
        let data = tcp(HOST, 4000, SERVER, 443, ACK, 2, 2, b"data");
        lab.refuses_with_error(LAN, &data, DropReason::NoRoute);
        lab.moved(&["class established original +1", "drop no_route +1", "icmp unreachable +1"]);
        // Not even a reload in that state ends it.
        lab.reload(usual());
        lab.refuses_with_error(LAN, &data, DropReason::NoRoute);
        lab.reroute(fib());
        lab.passes(LAN, &data, WAN);
        assert_eq!(lab.entries(), 1);
    });
}

#[test]
fn open_connections_follow_a_neighbours_new_station() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN);
        let update = NeighbourUpdate { interface: 1, address: ip("198.51.100.254"), mac: Some([2, 7, 7, 7, 7, 7]) };
        lab.command(|| Command::Neighbour(update));
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q"), WAN).dst_mac, [2, 7, 7, 7, 7, 7]);
    });
}

// ---- The operator ---------------------------------------------------------------------------------------------------

/// Ten connections of different kinds; some are answered, some translated.
fn crowd(lab: &mut Lab) {
    handshake(lab, 443);
    lab.passes(LAN, &tcp("10.0.0.3", 1, SERVER, 80, SYN, 1, 0, b""), WAN);
    for host in 2..5 {
        lab.passes(LAN, &udp(&format!("10.0.0.{host}"), 4000, "8.8.8.8", 53, b"q"), WAN);
    }
    lab.passes(WAN, &udp("8.8.8.8", 53, HOST, 4000, b"a"), LAN);
    lab.passes(LAN, &ping(HOST, SERVER, 1, 1), WAN);
    lab.passes(LAN, &ping("fd00:1::2", "2001:db8:5::5", 1, 1), WAN);
    lab.passes(LAN, &udp("fd00:1::2", 4000, "2001:db8:5::5", 53, b"q"), WAN);
    lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, 8080, b"q"), LAN);
    lab.passes(LAN, &udp("10.0.0.200", 4000, SERVER, 53, b"q"), WAN);
}

/// Filters, and how many of the crowd each finds.
fn filters() -> Vec<(&'static str, ConnFilter, usize)> {
    let net = |s: &str| Some(s.parse().expect("prefix"));
    let all = ConnFilter::default;
    vec![
        ("all", all(), 10),
        ("IPv4", ConnFilter { family: Some(4), ..all() }, 8),
        ("IPv6", ConnFilter { family: Some(6), ..all() }, 2),
        ("TCP", ConnFilter { proto: Some(proto::TCP), ..all() }, 2),
        ("ICMPv6", ConnFilter { proto: Some(proto::ICMPV6), ..all() }, 1),
        ("source", ConnFilter { source: net("10.0.0.2/32"), ..all() }, 3),
        ("source net", ConnFilter { source: net("10.0.0.0/24"), ..all() }, 7),
        ("destination", ConnFilter { destination: net("8.8.8.8/32"), ..all() }, 3),
        ("reply source", ConnFilter { reply_source: net("10.0.0.9/32"), ..all() }, 1),
        ("reply destination", ConnFilter { reply_destination: net("198.51.100.1/32"), ..all() }, 1),
        ("sport", ConnFilter { sport: Some(4000), ..all() }, 6),
        ("dport", ConnFilter { dport: Some(53), ..all() }, 5),
        ("a port is no ICMP identifier", ConnFilter { sport: Some(1), ..all() }, 1),
        ("reply sport", ConnFilter { reply_sport: Some(80), ..all() }, 2),
        ("reply dport", ConnFilter { reply_dport: Some(5000), ..all() }, 1),
        ("ICMP type", ConnFilter { icmp_type: Some(8), ..all() }, 1),
        ("ICMPv6 type", ConnFilter { icmp_type: Some(128), ..all() }, 1),
        ("ICMP code", ConnFilter { icmp_code: Some(0), ..all() }, 2),
        ("another ICMP code", ConnFilter { icmp_code: Some(1), ..all() }, 0),
        ("ICMP identifier", ConnFilter { icmp_id: Some(1), ..all() }, 2),
        ("a port is no key", ConnFilter { srckey: Some(4000), ..all() }, 0),
        ("reply zone", ConnFilter { reply_ct_zone: Some(0), ..all() }, 10),
        ("another reply zone", ConnFilter { reply_ct_zone: Some(1), ..all() }, 0),
        ("TCP state", ConnFilter { state: Some("SYN_SENT"), ..all() }, 1),
        ("assured", ConnFilter { assured: Some(true), ..all() }, 1),
        ("not assured", ConnFilter { assured: Some(false), ..all() }, 9),
        ("replied", ConnFilter { replied: Some(true), ..all() }, 2),
        ("SNAT", ConnFilter { snat: true, ..all() }, 1),
        ("DNAT", ConnFilter { dnat: true, ..all() }, 1),
        ("NAT", ConnFilter { nat: true, ..all() }, 2),
        ("SNAT to", ConnFilter { nat_to: net("198.51.100.1/32"), ..all() }, 1),
        ("DNAT to", ConnFilter { nat_to: net("10.0.0.0/24"), ..all() }, 1),
        ("an address of what is not translated", ConnFilter { nat_to: net("203.0.113.5/32"), ..all() }, 0),
        ("not expected", ConnFilter { expected: Some(false), ..all() }, 10),
        ("expected", ConnFilter { expected: Some(true), ..all() }, 0),
        (
            "two at once",
            ConnFilter { proto: Some(proto::UDP), dport: Some(53), source: net("10.0.0.0/30"), ..all() },
            2,
        ),
        ("none", ConnFilter { source: net("192.0.2.0/24"), ..all() }, 0),
    ]
}

fn translating() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    let matches = Match { source: Some(only("10.0.0.200/32")), ..from_to(LAN_ZONE, WAN_ZONE) };
    spec.nat.push(NatRuleSpec { matches, ..masquerade() });
    spec
}

#[test]
fn a_list_shows_what_it_is_asked_for() {
    everywhere(translating(), |lab| {
        crowd(lab);
        for (name, filter, expected) in filters() {
            let found = lab.list(filter);
            assert_eq!(found.len(), expected, "{name}: {found:#?}");
        }
        let tcp = lab.list(ConnFilter { assured: Some(true), ..ConnFilter::default() }).remove(0);
        assert_eq!(tcp.original, tuple(HOST, 4000, SERVER, 443, proto::TCP));
        assert_eq!(tcp.reply, tuple(SERVER, 443, HOST, 4000, proto::TCP));
        assert_eq!((tcp.state, tcp.packets, tcp.bytes), (Some("ESTABLISHED"), [2, 1], [80, 40]));
        assert_eq!((tcp.egress, tcp.replied), ([Some(1), Some(0)], true));
        let dnat = lab.list(ConnFilter { dnat: true, ..ConnFilter::default() }).remove(0);
        assert_eq!((dnat.reply.src, dnat.reply.sport, dnat.egress), (ip(WEB), 80, [Some(0), None]));
    });
}

#[test]
fn a_flush_ends_what_it_is_asked_for() {
    for (name, filter, expected) in filters() {
        let mut lab = Lab::with(translating(), Setup { workers: 2, ..Setup::default() });
        crowd(&mut lab);
        lab.changed();
        assert_eq!(lab.flush(filter), expected as u64, "{name}");
        assert_eq!(lab.entries(), 10 - expected, "{name}");
        let event = format!("event flushed +{expected}");
        let events: &[&str] = if expected == 0 { &[] } else { &[&event] };
        lab.moved(events);
        lab.sound();
    }
}

#[test]
fn a_flushed_connections_next_packet_starts_anew() {
    everywhere(translating(), |lab| {
        crowd(lab);
        assert_eq!(lab.flush(ConnFilter::default()), 10);
        assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0));
        lab.changed();
        lab.passes(LAN, &udp(HOST, 4000, "8.8.8.8", 53, b"q"), WAN);
        lab.moved(&["class new original +1", "event new +1"]);
        crowd(lab);
    });
}

/// More connections than one command looks at.
#[test]
fn large_tables_are_walked_in_bounded_pieces() {
    let mut lab = Lab::new(usual());
    for port in 1..=3000 {
        lab.passes(LAN, &udp(HOST, port, SERVER, 53, b""), WAN);
    }
    lab.wait(Nanos::from_secs(10));
    for port in 2001..=3000 {
        lab.passes(LAN, &udp(HOST, port, SERVER, 53, b""), WAN);
    }
    let ports: std::collections::BTreeSet<_> = lab.conns().iter().map(|c| c.original.sport).collect();
    assert_eq!(ports.len(), 3000, "each is listed once");
    lab.wait(Nanos::from_secs(21)); // the older ones are gone, their slots empty
    assert_eq!(lab.conns().len(), 1000);
    assert_eq!(lab.list(ConnFilter { sport: Some(3000), ..ConnFilter::default() }).len(), 1);
    assert_eq!(lab.flush(ConnFilter { dport: Some(53), ..ConnFilter::default() }), 1000);
    assert_eq!(lab.entries(), 0);
}

#[test]
fn a_worker_that_is_told_to_stop_stops() {
    let mut lab = Lab::with(usual(), Setup { workers: 2, ..Setup::default() });
    assert!(lab.workers.iter().all(|w| !w.stopping()));
    lab.command(|| Command::Stop);
    assert!(lab.workers.iter().all(dataplane::worker::Worker::stopping));
}
