//! Stories of expectations: how long they live, what uses them up, how many there are, at which worker their connection
//! arrives.
//!
//! ```text
//!   10.0.0.2 ── lan [ gateway 198.51.100.1 ] wan ── 203.0.113.5:21
//! ```
//! New connections to port 21 pass, others only where they are RELATED.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::sync::Arc;

use common::ftp::*;
use common::lab::*;
use common::oracle;
use common::pkt::*;
use common::session::{Session, Side};
use dataplane::api::command::{Command, ConnFilter, ConnSpec};
use dataplane::api::policy::*;
use dataplane::api::stats::{HandoverCause, WorkerStats};
use dataplane::api::{DropReason, Fib};
use dataplane::conntrack::tuple::proto;
use dataplane::io::PortIdx;
use dataplane::packet::CtState;
use dataplane::path::{Interface, Path, PathSetup};
use dataplane::steer::{Note, Notes, Steer, mesh};
use dataplane::time::Nanos;

fn logged_in(lab: &mut Lab, port: u16) -> Session {
    Session::login(lab, LAN, (HOST, port), WAN, (FAR, 21))
}

/// The client announces that it waits at `port`; gives address and port that the server hears of.
fn announce(lab: &mut Lab, s: &mut Session, port: u16) -> (String, u16) {
    let line = format!("PORT {}\r\n", comma(&s.client.address, port));
    let heard = s.says(lab, Side::Client, &line);
    s.says(lab, Side::Server, "200 ok\r\n");
    announced(&heard, "")
}

/// The server's data connection.
fn call(to: &(String, u16), sport: u16) -> Pkt {
    tcp(FAR, sport, &to.0, to.1, SYN, 1, 0, b"")
}

// ---- Their life -----------------------------------------------------------------------------------------------------

#[test]
fn one_connection_is_related_and_the_next_is_new() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        lab.changed();
        lab.passes(WAN, &call(&to, 20), LAN);
        lab.moved(&["class related original +1", "event new +1"]);
        // The same SYN again is the same connection, unreplied still.
        lab.passes(WAN, &call(&to, 20), LAN);
        lab.moved(&["class related original +1"]);
        lab.refuses(WAN, &call(&to, 21), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
    });
}

#[test]
fn a_dropped_first_packet_has_used_it_up() {
    let mut spec = strict();
    spec.rules.remove(1); // what is RELATED is not accepted
    everywhere(spec, |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        lab.changed();
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
        lab.moved(&["class related original +1", "drop policy_default +1"]);
        assert_eq!(lab.expectations(), []);
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
        // Neither is one that dies on its way to the filter.
        let to = announce(lab, &mut s, 5002);
        lab.refuses_with_error(WAN, &call(&to, 20).ttl(1), DropReason::TtlExpired);
        assert_eq!(lab.expectations(), []);
        assert_eq!(lab.entries(), 1);
        lab.sound();
    });
}

/// Linux forgets an expectation here; a packet that belongs to nothing should change nothing.
#[test]
fn an_invalid_packet_leaves_it() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        for flags in [RST, RST | ACK, SYN | ACK, SYN | FIN, FIN | ACK] {
            lab.send(WAN, &tcp(FAR, 20, &to.0, to.1, flags, 1, 1, b""));
        }
        lab.refuses(WAN, &call(&to, 20).broken_checksum(), DropReason::InvalidChecksum);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &call(&to, 20), LAN);
    });
}

#[test]
fn a_connection_taken_up_in_mid_stream_is_related_too() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        let seen = lab.passes(WAN, &tcp(FAR, 20, &to.0, to.1, ACK, 1, 1, b"data"), LAN);
        assert_eq!(seen.flow(), "203.0.113.5:20 > 10.0.0.2:5001");
        assert_eq!(lab.expectations(), []);
    });
}

/// Control connections outlive what they announced, even with text that was not acknowledged.
fn patient() -> PolicySpec {
    let mut spec = masqueraded();
    spec.conntrack.timeouts.tcp_unacknowledged = Nanos::from_secs(3600);
    spec
}

#[test]
fn it_is_waited_for_five_minutes_or_as_long_as_the_policy_says() {
    everywhere(patient(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        let view = lab.expectations().remove(0);
        assert!((298..=300).contains(&view.timeout_s), "{view:?}");
        lab.wait(Nanos::from_secs(290));
        assert_eq!(lab.expectations().len(), 1);
        lab.wait(Nanos::from_secs(11));
        assert_eq!(lab.expectations(), []);
        lab.sound();
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
        let mut spec = patient();
        spec.conntrack.timeouts.expect_ftp = Nanos::from_secs(5);
        lab.reload(spec);
        let to = announce(lab, &mut s, 5002);
        // To the nanosecond, not when somebody comes to sweep.
        lab.now = lab.now + Nanos::from_secs(5);
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
        lab.run();
        lab.sound();
    });
}

#[test]
fn a_new_announcement_takes_the_place_of_the_old_one() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let first = announce(lab, &mut s, 5001);
        let second = announce(lab, &mut s, 5002);
        assert_eq!(lab.expectations().len(), 1);
        lab.sound();
        lab.refuses(WAN, &call(&first, 20), DropReason::PolicyDefault);
        assert_eq!(lab.passes(WAN, &call(&second, 20), LAN).dport, 5002);
        // The same once more, before and after it was used.
        let third = announce(lab, &mut s, 5003);
        assert_eq!(announce(lab, &mut s, 5003), third);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &call(&third, 20), LAN);
        let again = announce(lab, &mut s, 5003);
        lab.passes(WAN, &call(&again, 21), LAN);
        // The server's word counts as the client's.
        let fourth = announce(lab, &mut s, 5004);
        s.says(lab, Side::Server, &format!("227 ({})\r\n", comma(FAR, 6000)));
        lab.refuses(WAN, &call(&fourth, 20), DropReason::PolicyDefault);
        lab.passes(LAN, &tcp(HOST, 7000, FAR, 6000, SYN, 1, 0, b""), WAN);
    });
}

#[test]
fn it_ends_with_the_connection_that_announced_it() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        // A reset is not the end yet: the connection stays for ten seconds.
        let p = s.client.segment(RST, s.client.next, 0, b"");
        s.raw(lab, Side::Client, &p);
        assert_eq!(lab.expectations().len(), 1);
        lab.wait(Nanos::from_secs(11));
        assert_eq!((lab.expectations(), lab.entries()), (vec![], 0));
        lab.sound();
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);

        let mut s = logged_in(lab, 4001);
        let to = announce(lab, &mut s, 5001);
        lab.passes(WAN, &call(&to, 20), LAN);
        let to = announce(lab, &mut s, 5002);
        assert_eq!(lab.flush(ConnFilter { dport: Some(21), ..ConnFilter::default() }), 1);
        assert_eq!(lab.expectations(), []);
        lab.sound();
        lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
        // What it has announced lives on.
        assert_eq!(lab.entries(), 1);
        lab.passes(LAN, &tcp(HOST, 5001, FAR, 20, SYN | ACK, 9, 2, b""), WAN);
    });
}

#[test]
fn a_reset_control_connection_keeps_it_for_as_long_as_it_is_there() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        let p = s.client.segment(RST, s.client.next, 0, b"");
        s.raw(lab, Side::Client, &p);
        lab.passes(WAN, &call(&to, 20), LAN);
    });
}

// ---- Whose they are -------------------------------------------------------------------------------------------------

#[test]
fn without_a_rule_for_it_nothing_is_related() {
    let mut off = strict();
    off.conntrack.helpers.clear();
    let mut other_port = strict();
    other_port.conntrack.helpers[0].matches.dport = vec![2121..=2121];
    let mut other_protocol = strict();
    other_protocol.conntrack.helpers[0].kind = HelperKind::Tftp;
    other_protocol.conntrack.helpers[0].matches.proto.clear();
    let mut other_zone = strict();
    other_zone.conntrack.helpers[0].matches.from = vec![WAN_ZONE];
    for spec in [off, other_port, other_protocol, other_zone] {
        everywhere(spec, |lab| {
            let mut s = logged_in(lab, 4000);
            let to = announce(lab, &mut s, 5001);
            assert_eq!(lab.expectations(), []);
            lab.refuses(WAN, &call(&to, 20), DropReason::PolicyDefault);
            assert_eq!(lab.conns()[0].helper, None);
        });
    }
}

/// The rule sees what the filter sees: the destination behind DNAT, zones both, the class.
#[test]
fn the_rule_that_assigns_matches_as_the_filter_does() {
    let mut spec = forwarded();
    spec.nat[0].matches.dport = vec![2100..=2100];
    spec.nat[0].kind = NatKind::Dnat { to: ip(INSIDE).into(), port: Some(ToPort::One(21)) };
    spec.conntrack.helpers = vec![HelperRuleSpec {
        kind: HelperKind::Ftp,
        matches: Match {
            destination: Some(only("10.0.0.9/32")),
            dport: vec![21..=21],
            state: vec![CtState::New],
            ..from_to(WAN_ZONE, LAN_ZONE)
        },
    }];
    everywhere(spec, |lab| {
        let mut s = Session::login(lab, WAN, (FAR, 4000), LAN, (GATEWAY, 2100));
        s.says(lab, Side::Server, &format!("227 ({})\r\n", comma(INSIDE, 6000)));
        let (at, port) = announced(&s.client.text(), "");
        assert_eq!(at, GATEWAY);
        assert_eq!(
            lab.passes(WAN, &tcp(FAR, 7000, GATEWAY, port, SYN, 1, 0, b""), LAN).flow(),
            "203.0.113.5:7000 > 10.0.0.9:6000"
        );
        assert_eq!(lab.conns().iter().filter(|c| c.helper == Some(HelperKind::Ftp)).count(), 1);
    });
}

#[test]
fn a_connection_keeps_its_helper_over_a_reload_and_an_older_one_gets_none() {
    everywhere(strict(), |lab| {
        let mut helped = logged_in(lab, 4000);
        let mut spec = strict();
        spec.conntrack.helpers.clear();
        lab.reload(spec);
        let mut plain = logged_in(lab, 4001);
        lab.reload(strict());
        announce(lab, &mut plain, 5001);
        assert_eq!(lab.expectations(), []);
        announce(lab, &mut helped, 5001);
        assert_eq!(lab.expectations().len(), 1);
    });
}

/// Whoever announces another's address asks us to open a way to that.
#[test]
fn another_address_than_its_own_is_not_followed() {
    for spec in [strict(), masqueraded()] {
        everywhere(spec, |lab| {
            let mut s = logged_in(lab, 4000);
            for line in ["PORT 10,0,0,3,19,137\r\n", "EPRT |1|10.0.0.1|5001|\r\n", "EPRT |2|fd00:1::2|5001|\r\n"] {
                assert_eq!(s.says(lab, Side::Client, line), line);
            }
            for line in ["227 (203,0,113,6,19,137)\r\n", "227 (10,0,0,2,19,137)\r\n"] {
                assert_eq!(s.says(lab, Side::Server, line), line);
            }
            // Nor is what the other side has to say.
            s.says(lab, Side::Server, "PORT 203,0,113,5,19,137\r\n");
            s.says(lab, Side::Client, "227 (10,0,0,2,19,137)\r\n");
            assert_eq!(lab.expectations(), []);
            s.in_step(lab);
        });
    }
}

#[test]
fn only_from_the_peer_and_to_the_announced_port() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        lab.refuses(WAN, &tcp("203.0.113.6", 20, &to.0, to.1, SYN, 1, 0, b""), DropReason::PolicyDefault);
        lab.refuses(WAN, &tcp(FAR, 20, &to.0, to.1 ^ 1, SYN, 1, 0, b""), DropReason::PolicyDefault);
        lab.refuses(WAN, &udp(FAR, 20, &to.0, to.1, b""), DropReason::PolicyDefault);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &call(&to, 1), LAN);
    });
}

#[test]
fn what_waits_is_shown_with_whom_it_belongs_to() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        let view = lab.expectations().remove(0);
        assert_eq!(view.tuple, tuple(FAR, 0, GATEWAY, to.1, proto::TCP));
        assert_eq!((view.helper, view.permanent), (HelperKind::Ftp, false));
        assert_eq!(view.master, tuple(HOST, 4000, FAR, 21, proto::TCP));
        let first = lab.stats.iter().map(|s| s.expectations.value()).sum::<u64>();
        assert_eq!(first, 1);
    });
}

#[test]
fn a_mark_passes_from_the_control_connection_to_the_data_connection() {
    let mut spec = masqueraded();
    spec.rules[2].set_mark = Some((0xff, 7));
    everywhere(spec, |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        lab.passes(WAN, &call(&to, 20), LAN);
        let conns = lab.conns();
        assert!(conns.len() == 2 && conns.iter().all(|c| c.mark == 7), "{conns:?}");
    });
}

#[test]
fn conntrack_zones_keep_them_apart() {
    let mut spec = strict();
    spec.interface_ct_zones = vec![5, 5];
    everywhere(spec, |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        assert_eq!(lab.expectations()[0].tuple.ct_zone, 5);
        lab.passes(WAN, &call(&to, 20), LAN);
        assert!(lab.conns().iter().all(|c| c.original.ct_zone == 5 && c.reply.ct_zone == 5));
    });
    // The client's zone is not the server's.
    let mut spec = strict();
    spec.interface_ct_zones = vec![5, 6];
    everywhere(spec, |lab| {
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        assert_eq!(lab.expectations()[0].tuple.ct_zone, 6);
        lab.passes(WAN, &call(&to, 20), LAN);
    });
}

#[test]
fn an_announced_connection_finds_its_zone_where_addresses_overlap() {
    use dataplane::api::{RouteSpec, RouteTarget};
    let mut routes = fib();
    let link = |interface| RouteTarget::Via { interface, gateway: None };
    // 10.0.0.0/24 is preferred out of wan; lan's route to it is hidden, but lan is where the client is.
    routes.routes[0].target = link(1);
    routes.others = vec![RouteSpec { prefix: "10.0.0.0/24".parse().expect("prefix"), target: link(0) }];
    let mut spec = masqueraded();
    spec.interface_ct_zones = vec![7, 0];
    everywhere(spec, |lab| {
        lab.reroute(routes.clone());
        let mut s = logged_in(lab, 4000);
        let to = announce(lab, &mut s, 5001);
        data(lab, &mut s, Side::Client, (&to.0, to.1), 5001, 20);
        let zones: Vec<_> = lab.conns().iter().map(|c| (c.original.ct_zone, c.reply.ct_zone)).collect();
        assert!(zones.contains(&(7, 0)) && zones.contains(&(0, 7)), "{zones:?}");
    });
}

/// Where the control connection is not translated, rules decide on the data connection as on any other.
#[test]
fn rules_translate_what_follows_an_untranslated_master() {
    let spec = PolicySpec { nat: vec![masquerade()], ..strict() };
    everywhere(spec, |lab| {
        let mut s = Session::login(lab, WAN, (FAR, 4000), LAN, (INSIDE, 21));
        s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(FAR, 5001)));
        let out = lab.passes(LAN, &tcp(INSIDE, 20, FAR, 5001, SYN, 1, 0, b""), WAN);
        assert_eq!((out.src, out.dst, out.dport), (ip(GATEWAY), ip(FAR), 5001));
        lab.passes(WAN, &tcp(FAR, 5001, GATEWAY, out.sport, SYN | ACK, 1, 2, b""), LAN);
    });
}

// ---- How many -------------------------------------------------------------------------------------------------------

#[test]
fn two_hosts_that_wait_at_one_port_are_told_apart() {
    everywhere(masqueraded(), |lab| {
        let hosts = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        let mut heard = Vec::new();
        for host in hosts {
            let mut s = Session::login(lab, LAN, (host, 4000), WAN, (FAR, 21));
            heard.push(announce(lab, &mut s, 5001));
            s.in_step(lab);
        }
        lab.sound();
        for (to, host) in heard.iter().zip(hosts) {
            assert_eq!(heard.iter().filter(|h| *h == to).count(), 1, "{heard:?}");
            assert_eq!(lab.passes(WAN, &call(to, 20), LAN).flow(), format!("203.0.113.5:20 > {host}:5001"));
        }
    });
}

/// Without translation there is no other port to choose.
#[test]
fn what_another_connection_waits_for_cannot_be_announced() {
    everywhere(strict(), |lab| {
        let mut first = logged_in(lab, 4000);
        let mut second = logged_in(lab, 4001);
        announce(lab, &mut first, 5001);
        let p = second.client.segment(ACK, second.client.next, second.client.waits, b"PORT 10,0,0,2,19,137\r\n");
        lab.refuses(LAN, &p, DropReason::ExpectClash);
        assert_eq!(lab.expectations().len(), 1);
        // Sent again when that is over.
        lab.passes(WAN, &call(&(HOST.into(), 5001), 20), LAN);
        announce(lab, &mut second, 5001);
        lab.passes(WAN, &call(&(HOST.into(), 5001), 21), LAN);
    });
}

#[test]
fn a_full_table_lets_no_announcement_pass() {
    let mut spec = patient();
    spec.conntrack.expect_max = 8;
    everywhere(spec, |lab| {
        let mut passed = 0;
        let mut sessions = Vec::new();
        for n in 0..20 {
            let mut s = logged_in(lab, 4000 + n);
            let p = s.client.segment(ACK, s.client.next, s.client.waits, b"PORT 10,0,0,2,19,137\r\n");
            let seen = s.raw(lab, Side::Client, &p);
            passed += seen.len();
            if seen.is_empty() {
                sessions.push(s);
            }
        }
        assert_eq!(lab.expectations().len(), passed);
        assert_eq!(lab.drop_count(DropReason::ExpectFull) as usize, 20 - passed);
        let share = 8usize.div_ceil(lab.workers.len());
        assert!(passed <= share * lab.workers.len() && passed >= share, "{passed} of 20");
        // One that is used up makes room: the client sends its announcement again.
        lab.wait(Nanos::from_secs(299));
        lab.wait(Nanos::from_secs(2));
        assert_eq!(lab.expectations(), []);
        let s = sessions.first_mut().expect("one was refused");
        announce(lab, s, 5001);
        assert_eq!(lab.expectations().len(), 1);
    });
}

// ---- Workers --------------------------------------------------------------------------------------------------------

/// Four workers; the first packet of the data connection arrives at each of them in turn, as no RSS brings it anywhere.
#[test]
fn the_data_connection_may_arrive_at_any_worker() {
    let setup = Setup { workers: 4, arrival: Arrival::Anywhere, ..Setup::default() };
    for spec in [strict(), masqueraded()] {
        let mut lab = Lab::with(spec, setup.clone());
        for n in 0..32 {
            let mut s = logged_in(&mut lab, 4000 + n);
            let to = announce(&mut lab, &mut s, 5001 + n);
            let owner =
                lab.owned().iter().find(|c| c.original.sport == 4000 + n).expect("the control connection").worker;
            let frame = addressed(WAN, &call(&to, 20 + n)).frame();
            lab.arrive_at(usize::from(n) % 4, WAN, &frame);
            lab.run();
            let out = lab.collect();
            assert_eq!((out.len(), out[0].1.dport), (1, 5001 + n));
            let data = lab.owned().into_iter().find(|c| c.original.dport == to.1).expect("the data connection");
            assert_eq!(data.worker, owner, "one owner for both");
            lab.sound();
            // Both directions find it, from wherever they come.
            for _ in 0..4 {
                lab.passes(LAN, &tcp(HOST, 5001 + n, FAR, 20 + n, SYN | ACK, 9, 2, b""), WAN);
                lab.passes(WAN, &tcp(FAR, 20 + n, &to.0, to.1, ACK, 2, 10, b""), LAN);
            }
        }
        assert!(lab.handovers(HandoverCause::Expectation) > 8);
        lab.wait(Nanos::from_secs(5 * 86_400 + 2));
        assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0));
        lab.sound();
    }
}

/// Two packets of the data connection, and two connections for one expectation, before any note is read.
#[test]
fn packets_that_come_before_the_notes_are_read_meet_at_the_owner() {
    for seed in 1..=20 {
        let mut lab = Lab::with(masqueraded(), Setup { workers: 4, seed, ..Setup::default() });
        let mut s = logged_in(&mut lab, 4000);
        let to = announce(&mut lab, &mut s, 5001);
        lab.changed();
        for sport in [20, 20, 21, 20, 21] {
            lab.arrive(WAN, &addressed(WAN, &call(&to, sport)).frame());
        }
        lab.run();
        let first: Vec<_> = lab.collect().iter().map(|(_, s)| s.sport).collect();
        assert!(first == [20; 3] || first == [21; 2], "{first:?}");
        assert_eq!(lab.entries(), 2);
        lab.sound();
    }
}

/// One worker's path, and the ends of the rings by which two others would speak to it.
fn one_of_three(spec: PolicySpec) -> (Path, [Notes; 2]) {
    let mut notes = mesh::<()>(3).into_iter().map(|(_, notes)| notes);
    let mut next = || notes.next().expect("three");
    let (own, others) = (next(), [next(), next()]);
    let setup = PathSetup {
        steer: Steer::new(0, 3),
        notes: own,
        interfaces: vec![
            Interface { mac: LAN_MAC, mtu: 1500, vlan: None },
            Interface { mac: WAN_MAC, mtu: 1500, vlan: None },
        ],
        stats: Arc::new(WorkerStats::new(2)),
        conntrack_max: 100,
        seeds: [1, 2, 3, 4],
        policy: Arc::new(Policy::compile(spec).expect("policy")),
        fib: Arc::new(Fib::build(fib())),
    };
    (Path::new(setup, Nanos(0)), others)
}

/// What two workers announce at once, before either has heard of the other, is expected by neither: the announced connection
/// of the one would reach the other's client.
#[test]
fn two_that_announce_the_same_at_once_both_lose_it() {
    let key = tuple(FAR, 0, GATEWAY, 5001, proto::TCP);
    // Who hears of both tells both.
    let (mut path, mut others) = one_of_three(strict());
    for other in &mut others {
        assert!(other.tell(0, Note::Expect(key)));
    }
    path.read_notes(Nanos(1));
    assert_eq!(path.announced.count(), 0);
    for other in &mut others {
        assert_eq!((other.receive(0), other.receive(0)), (Some(Note::Unexpected(key)), None));
    }
    // One after the other has taken it back is none of these.
    assert!(
        others[0].tell(0, Note::Expect(key))
            && others[0].tell(0, Note::Unexpect(key))
            && others[1].tell(0, Note::Expect(key))
    );
    path.read_notes(Nanos(2));
    assert_eq!((path.announced.owner(&key), others[0].receive(0), others[1].receive(0)), (Some(2), None, None));

    // Who expects it itself gives it up too.
    let (mut path, mut others) = one_of_three(strict());
    let client = (4000..).find(|&port| path.steer.home(&tuple(HOST, port, FAR, 21, proto::TCP)) == 0).expect("a port");
    let key = tuple(FAR, 0, HOST, 5001, proto::TCP);
    let mut says = |from: PortIdx, p: Pkt, text: &[u8]| {
        let frame = addressed(from, &p).frame();
        let mut packet = oracle::packet_of(&frame, true).expect("a packet");
        packet.in_port = from;
        packet.hash = path.conntrack.prefetch_bucket(&packet.tuple);
        path.judge(&mut packet, Nanos(3));
        path.help(&packet, 1000, text, Nanos(3)).expect("it passes");
    };
    says(LAN, tcp(HOST, client, FAR, 21, SYN, 0, 0, b""), b"");
    says(WAN, tcp(FAR, 21, HOST, client, SYN | ACK, 0, 1, b""), b"");
    let text = b"NOOP\r\nPORT 10,0,0,2,19,137\r\n";
    says(LAN, tcp(HOST, client, FAR, 21, ACK, 1, 1, text), text);
    assert_eq!(others[0].receive(0), Some(Note::Expect(key)));
    assert_eq!(path.expectations.count(), 1);
    assert!(others[0].tell(0, Note::Expect(key)));
    path.read_notes(Nanos(4));
    assert_eq!((path.expectations.count(), path.announced.count()), (0, 0));
    assert_eq!((others[0].receive(0), others[0].receive(0)), (Some(Note::Unexpect(key)), Some(Note::Unexpected(key))));
    assert_eq!((others[1].receive(0), others[1].receive(0)), (Some(Note::Expect(key)), Some(Note::Unexpect(key))));
    assert_eq!(path.stats.drops[DropReason::ExpectClash as usize].value(), 1);
}

/// An expectation that one worker announces while another gives its own up, in all orders.
#[test]
fn keys_that_come_and_go_leave_nothing_behind() {
    for seed in 1..=10 {
        let mut lab = Lab::with(strict(), Setup { workers: 4, seed, ..Setup::default() });
        let mut all: Vec<Session> = (0..8).map(|n| logged_in(&mut lab, 4000 + n)).collect();
        let mut random = seed;
        for _ in 0..200 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let s = &mut all[(random >> 33) as usize % 8];
            let port = 5000 + (random >> 40) as u16 % 4;
            let text = format!("PORT {}\r\n", comma(HOST, port));
            let p = s.client.segment(ACK, s.client.next, s.client.waits, text.as_bytes());
            lab.arrive(LAN, &addressed(LAN, &p).frame());
            if random >> 50 & 3 == 0 {
                lab.arrive(WAN, &addressed(WAN, &call(&(HOST.into(), port), 20 + (random >> 52) as u16 % 4)).frame());
            }
            s.client.next = s.client.next.wrapping_add(text.len() as u32);
            lab.step((random >> 44) as usize % 4);
            if random >> 54 & 7 == 0 {
                lab.run();
                lab.sound();
                lab.collect();
            }
        }
        lab.run();
        lab.collect();
        lab.sound();
        assert!(lab.flush(ConnFilter::default()) > 0);
        lab.sound();
        assert_eq!(lab.expectations(), []);
    }
}

// ---- The operator ---------------------------------------------------------------------------------------------------

#[test]
fn a_connection_of_a_saved_table_gets_its_helper_back() {
    everywhere(strict(), |lab| {
        let original = tuple(HOST, 4000, FAR, 21, proto::TCP);
        let home = lab.home(&original);
        let spec = ConnSpec {
            original,
            reply: original.inverse(),
            state: Some("ESTABLISHED"),
            timeout_s: 600,
            replied: true,
            assured: true,
            mark: 0,
            expected: false,
            helper: Some(HelperKind::Ftp),
            sides: None,
            timeout_policy: 0,
            age_ms: 0,
            packets: [3, 3],
            bytes: [300, 300],
            interface: 0,
            local: false,
            judge: false,
        };
        lab.tell(home, Command::Create { conns: vec![spec], refused: Vec::with_capacity(1) });
        lab.run();
        assert_eq!(lab.conns()[0].helper, Some(HelperKind::Ftp));
        // Where a line begins is not known yet.
        let text = b"NOOP\r\nPORT 10,0,0,2,19,137\r\n";
        lab.passes(LAN, &tcp(HOST, 4000, FAR, 21, ACK, 100, 1, text), WAN);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &call(&(HOST.into(), 5001), 20), LAN);
    });
}
