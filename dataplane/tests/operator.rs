//! What the operator does to connections: get, create, update, watch.

mod common;

use common::ftp::{announced, comma, masqueraded};
use common::lab::*;
use common::pkt::*;
use common::session::{Session, Side};
use dataplane::api::command::*;
use dataplane::api::policy::*;
use dataplane::api::stats::CtEvent;
use dataplane::api::{DropReason, Edit, SavedSide, SavedSides, StreamParts, Text};
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";

/// Packets of known connections pass, nothing starts one.
fn closed() -> PolicySpec {
    let mut spec = policy();
    spec.rules = vec![rule("established", state(&[CtState::Established]), Action::Accept)];
    spec
}

/// A masqueraded connection whose reply was seen, as a saved table has it.
fn saved(proto: u8, sport: u16, external: u16) -> ConnSpec {
    ConnSpec {
        original: tuple(HOST, sport, SERVER, 80, proto),
        reply: tuple(SERVER, 80, GATEWAY, external, proto),
        state: (proto == proto::TCP).then_some("ESTABLISHED"),
        timeout_s: 300,
        replied: true,
        assured: true,
        mark: 5,
        expected: false,
        helper: None,
        sides: None,
        timeout_policy: 0,
        age_ms: 0,
        packets: [10, 1 << 40],
        bytes: [1000, 1 << 50],
        interface: 0,
        local: false,
        judge: false,
    }
}

/// What the walks that have ended since were about, and took each from the table's beginning to its end.
fn reported(lab: &mut Lab) -> Vec<ConnView> {
    let mut all = Vec::new();
    for e in lab.events.drain(..) {
        if let Event::Listed { next, conns } = e {
            assert_eq!(next, None);
            all.extend(conns);
        }
    }
    all
}

/// Puts connections where they belong; gives what was made, and what was refused.
fn create(lab: &mut Lab, conns: &[ConnSpec]) -> (u64, Vec<CreateError>) {
    for c in conns {
        let home = home_of(&c.original, lab.workers.len());
        lab.tell(home, Command::Create { conns: vec![c.clone()], refused: Vec::with_capacity(1) });
    }
    lab.run();
    let (mut made, mut why) = (0, Vec::new());
    for e in lab.events.drain(..) {
        if let Event::Created { made: n, refused, .. } = e {
            made += n;
            why.extend(refused.into_iter().map(|(_, e)| e));
        }
    }
    (made, why)
}

#[test]
fn a_connection_put_into_the_table_is_followed_and_translated() {
    everywhere(closed(), |lab| {
        let conns: Vec<_> = (0..32).map(|n| saved(proto::TCP, 1000 + n, 2000 + n)).collect();
        assert_eq!(create(lab, &conns), (32, vec![]));
        for n in 0..32 {
            // What TCP's windows were is not known, so any sequence number goes.
            let out = lab.passes(LAN, &tcp(HOST, 1000 + n, SERVER, 80, ACK, 7_000_000, 9, b"data"), WAN);
            assert_eq!(out.flow(), format!("198.51.100.1:{} > 203.0.113.5:80", 2000 + n));
            let back = lab.passes(WAN, &tcp(SERVER, 80, GATEWAY, 2000 + n, ACK, 1, 2, b"data"), LAN);
            assert_eq!((back.dst, back.dport), (ip(HOST), 1000 + n));
        }
        let all = lab.conns();
        assert!(all.iter().all(|c| c.mark == 5 && c.assured && c.packets == [11, (1 << 40) + 1]), "{all:?}");
        assert_eq!((lab.entries(), lab.leases()), (32, 32));
        lab.sound();
    });
}

#[test]
fn a_restored_connection_may_be_older_than_the_process() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    everywhere(closed(), |lab| {
        let age = |lab: &mut Lab, sport| {
            let of = ConnFilter { sport: Some(sport), ..ConnFilter::default() };
            lab.list(of).first().map(|c| c.age_ms).expect("it is there")
        };
        // 0, within the uptime, beyond it, as far back as can be kept, and what no clock says.
        let ages = [0, 500, 30 * DAY_MS, 4 * 365 * DAY_MS, u64::MAX];
        for (sport, age_ms) in (1000..).zip(ages) {
            create(lab, &[ConnSpec { age_ms, ..saved(proto::UDP, sport, sport) }]);
        }
        for (sport, age_ms) in (1000..).zip(ages).take(4) {
            let seen = age(lab, sport);
            assert!((age_ms..age_ms + 68).contains(&seen), "{age_ms} ms: {seen} ms");
        }
        assert!(age(lab, 1004) > 4 * 365 * DAY_MS);
        lab.wait(Nanos::from_secs(100));
        let seen = age(lab, 1002);
        assert!((30 * DAY_MS + 100_000..30 * DAY_MS + 100_068).contains(&seen), "it goes on: {seen}");
    });
}

#[test]
fn the_policy_is_asked_about_a_restored_connection() {
    let mut open = closed();
    open.rules.push(rule("web", Match { dport: vec![80..=80], ..from_to(LAN_ZONE, WAN_ZONE) }, Action::Accept));
    for (spec, passes) in [(closed(), false), (open, true)] {
        everywhere(spec, |lab| {
            create(lab, &[ConnSpec { judge: true, ..saved(proto::UDP, 1000, 2000) }]);
            let out = lab.send(WAN, &udp(SERVER, 80, GATEWAY, 2000, b"a"));
            assert_eq!((out.len(), lab.entries()), if passes { (1, 1) } else { (0, 0) });
        });
    }
}

/// What the helper knows of a connection, on whichever worker.
fn sides(lab: &mut Lab, tuple: Tuple) -> Option<Box<SavedSides>> {
    lab.command(|| Command::Sides { tuple, into: Box::default() });
    let mut answers = lab.events.drain(..).filter_map(|e| match e {
        Event::Sides { found: true, sides } => Some(sides),
        _ => None,
    });
    answers.next()
}

/// The connections of a gateway in another one, as a saved table brings them there.
fn carried_over(lab: &mut Lab, spec: PolicySpec, workers: usize) -> Lab {
    let mut after = Lab::with(spec, Setup { workers, seed: 7, ..Setup::default() });
    for c in lab.conns() {
        let spec = ConnSpec {
            original: c.original,
            reply: c.reply,
            state: c.state,
            timeout_s: c.timeout_s,
            replied: c.replied,
            assured: c.assured,
            expected: c.expected,
            mark: c.mark,
            helper: c.helper,
            sides: sides(lab, c.reply),
            timeout_policy: c.timeout_policy,
            age_ms: c.age_ms,
            packets: c.packets,
            bytes: c.bytes,
            interface: c.interface,
            local: c.local,
            judge: true,
        };
        assert_eq!(create(&mut after, &[spec]), (1, vec![]));
    }
    after
}

#[test]
fn an_ftp_connection_whose_text_was_lengthened_goes_on_after_a_restore() {
    everywhere(masqueraded(), |lab| {
        let mut s = Session::login(lab, LAN, (HOST, 4000), WAN, (SERVER, 21));
        let line = format!("PORT {}\r\n", comma(HOST, 5001));
        let (at, heard) = (s.client.next, s.says(lab, Side::Client, &line));
        assert!(heard.len() > line.len() && heard.contains("198,51,100,1,"), "{heard}");
        s.says(lab, Side::Server, "200 ok\r\n");
        // The next one is cut within its argument, which is withheld.
        assert_eq!(s.says(lab, Side::Client, "PORT 10,0,0,2,19,"), "PORT ");
        for workers in [1, 2] {
            let mut s = s.clone();
            let mut after = carried_over(lab, masqueraded(), workers);
            let after = &mut after;
            assert_eq!(after.conns()[0].helper, Some(HelperKind::Ftp));
            let numbers = |s: &Session| (s.client.waits, s.server.waits);
            let before = numbers(&s);
            let again = s.sends(after, Side::Client, at, &line);
            assert_eq!(
                again.iter().map(Seen::text).collect::<Vec<_>>(),
                [heard.as_str()],
                "sent again, it is changed alike"
            );
            assert_eq!(numbers(&s), before);
            let rest = s.says(after, Side::Client, "138\r\n");
            let (address, port) = announced(&format!("PORT {rest}"), "");
            assert!(rest.ends_with("\r\n") && address == GATEWAY, "{rest}");
            s.says(after, Side::Server, "200 ok\r\n");
            s.says(after, Side::Client, "NOOP\r\n");
            s.in_step(after);
            let call = tcp(SERVER, 20, &address, port, SYN, 1, 0, b"");
            assert_eq!(after.passes(WAN, &call, LAN).flow(), "203.0.113.5:20 > 10.0.0.2:5002");
            after.sound();
        }
        // Without what the helper knew the client would be told of bytes that it has not sent.
        let original = tuple(HOST, 4000, SERVER, 21, proto::TCP);
        assert_eq!(sides(lab, original).map(|s| s[0].stream.edits.len()), Some(2));
        assert_eq!(sides(lab, Tuple { dport: 22, ..original }), None);
    });
}

#[test]
fn a_related_connection_is_related_after_a_restore_too() {
    everywhere(masqueraded(), |lab| {
        let mut s = Session::login(lab, LAN, (HOST, 4000), WAN, (SERVER, 21));
        let heard = s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(HOST, 5001)));
        let (address, port) = announced(&heard, "");
        let call = tcp(SERVER, 20, &address, port, SYN, 1, 0, b"");
        lab.passes(WAN, &call, LAN);
        let mut after = carried_over(lab, masqueraded(), 2);
        after.changed();
        assert_eq!(after.passes(WAN, &call, LAN).flow(), "203.0.113.5:20 > 10.0.0.2:5001");
        after.moved(&["class related original +1"]);
        let of = ConnFilter { expected: Some(true), ..ConnFilter::default() };
        assert_eq!(after.list(of).iter().map(|c| c.original.sport).collect::<Vec<_>>(), [20]);
    });
}

#[test]
fn what_no_helper_can_have_known_is_refused() {
    everywhere(closed(), |lab| {
        let bad = StreamParts { open: true, ..StreamParts::default() };
        let far = [Edit { at: 1, old: 65, text: Text::new() }].into_iter().collect();
        let side = |stream| Some(Box::new([SavedSide::default(), SavedSide { stream, ..SavedSide::default() }]));
        let ftp = ConnSpec { helper: Some(HelperKind::Ftp), ..saved(proto::TCP, 1, 2) };
        let conns = [
            ConnSpec { sides: side(bad), ..ftp.clone() },
            ConnSpec { sides: side(StreamParts { edits: far, ..StreamParts::default() }), ..ftp.clone() },
            ConnSpec { sides: Some(Box::default()), helper: None, ..ftp.clone() },
            ConnSpec { sides: Some(Box::default()), helper: Some(HelperKind::Tftp), ..saved(proto::UDP, 1, 2) },
        ];
        assert_eq!(create(lab, &conns), (0, vec![CreateError::Unfit; conns.len()]));
        assert_eq!(create(lab, &[ConnSpec { sides: Some(Box::default()), ..ftp }]), (1, vec![]));
    });
}

/// Wherever the connection lives that has the tuple as its reply's.
#[test]
fn a_tuple_that_another_connection_answers_to_is_refused() {
    let mut spec = usual();
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere(spec, |lab| {
        for port in 4000..4016 {
            lab.passes(WAN, &udp("203.0.113.5", port, "198.51.100.1", 8080, b"q"), LAN);
        }
        for c in lab.conns() {
            let taken = ConnSpec { original: c.reply, reply: c.reply.inverse(), ..saved(proto::UDP, 1, 2) };
            assert_eq!(create(lab, &[taken]), (0, vec![CreateError::Exists]));
        }
        lab.sound();
    });
}

/// The worker that makes it need not know: the answer waits for the one that does.
#[test]
fn a_reply_tuple_that_is_another_connections_is_refused_wherever_that_lives() {
    let mut spec = usual();
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere(spec, |lab| {
        for port in 4000..4016 {
            lab.passes(WAN, &udp("203.0.113.5", port, "198.51.100.1", 8080, b"q"), LAN);
        }
        for c in lab.conns() {
            for dport in 8081..8085 {
                let original = Tuple { dport, ..c.original };
                let taken = ConnSpec { original, reply: c.reply, ..saved(proto::UDP, 1, 2) };
                assert_eq!(create(lab, &[taken]), (0, vec![CreateError::Exists]));
            }
        }
        assert_eq!(lab.entries(), 16);
        lab.sound();
    });
}

#[test]
fn a_connection_that_is_there_or_makes_no_sense_is_refused() {
    everywhere(closed(), |lab| {
        assert_eq!(create(lab, &[saved(proto::UDP, 1000, 2000)]), (1, vec![]));
        assert_eq!(create(lab, &[saved(proto::UDP, 1000, 2001)]), (0, vec![CreateError::Exists]));
        let odd = [
            ConnSpec { state: Some("ESTABLISHED"), ..saved(proto::UDP, 1, 2) },
            ConnSpec { state: Some("OPEN"), ..saved(proto::TCP, 1, 2) },
            ConnSpec { reply: tuple(SERVER, 80, GATEWAY, 2, proto::TCP), ..saved(proto::UDP, 1, 2) },
            ConnSpec { reply: tuple("2001:db8::1", 80, "2001:db8::2", 2, proto::UDP), ..saved(proto::UDP, 1, 2) },
            ConnSpec {
                original: Tuple { dst: ip("2001:db8::1"), ..saved(proto::UDP, 1, 2).original },
                ..saved(proto::UDP, 1, 2)
            },
        ];
        assert_eq!(create(lab, &odd), (0, vec![CreateError::Unfit; odd.len()]));
        assert_eq!(lab.entries(), 1);
    });
    let mut lab = Lab::with(closed(), Setup { conntrack_max: 1, ..Setup::default() });
    assert_eq!(create(&mut lab, &[saved(proto::UDP, 1, 2), saved(proto::UDP, 3, 4)]), (1, vec![CreateError::Full]));
}

#[test]
fn a_connection_put_into_the_table_ends_as_any_other() {
    everywhere(closed(), |lab| {
        let conns: Vec<_> =
            (0..8).map(|n| ConnSpec { timeout_s: 5, ..saved(proto::UDP, 1000 + n, 2000 + n) }).collect();
        assert_eq!(create(lab, &conns).0, 8);
        lab.wait(Nanos::from_secs(6));
        assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0));
        lab.refuses(WAN, &udp(SERVER, 80, GATEWAY, 2000, b""), DropReason::PolicyDefault);
    });
}

#[test]
fn a_timeout_is_shown_as_it_was_set_and_kept_to_a_fifteenth_of_a_second() {
    let mut lab = Lab::new(closed());
    let spec = ConnSpec { timeout_s: 5, ..saved(proto::UDP, 1000, 2000) };
    let there = |lab: &mut Lab, at: Nanos| {
        lab.now = at;
        lab.command(|| Command::Get { tuple: spec.original });
        lab.events.drain(..).find_map(|e| if let Event::Got { conn } = e { conn } else { None })
    };
    // Steps that do not go evenly into the 67 ms in which deadlines are kept.
    for step in 0..50 {
        lab.now = Nanos::from_millis(1000 + 10_009 * step);
        let start = lab.now;
        assert_eq!(create(&mut lab, std::slice::from_ref(&spec)), (1, vec![]));
        assert_eq!(there(&mut lab, start).map(|c| c.timeout_s), Some(5), "step {step}");
        assert_eq!(there(&mut lab, start + Nanos::from_millis(1080)).map(|c| c.timeout_s), Some(3), "step {step}");
        assert!(there(&mut lab, start + Nanos::from_millis(4999)).is_some(), "step {step}: early");
        assert!(there(&mut lab, start + Nanos::from_millis(5068)).is_none(), "step {step}: late");
        lab.wait(Nanos::from_millis(300));
        assert_eq!(lab.entries(), 0);
    }
}

#[test]
fn a_connection_is_found_by_either_of_its_tuples() {
    everywhere(closed(), |lab| {
        create(lab, &[saved(proto::UDP, 1000, 2000)]);
        for (t, there) in [
            (tuple(HOST, 1000, SERVER, 80, proto::UDP), true),
            (tuple(SERVER, 80, GATEWAY, 2000, proto::UDP), true),
            (tuple(SERVER, 80, HOST, 1000, proto::UDP), false),
            (Tuple { ct_zone: 1, ..tuple(HOST, 1000, SERVER, 80, proto::UDP) }, false),
        ] {
            lab.command(|| Command::Get { tuple: t });
            let found: Vec<_> = lab
                .events
                .drain(..)
                .filter_map(|e| if let Event::Got { conn } = e { conn } else { None })
                .map(|c| c.original.sport)
                .collect();
            assert_eq!(found, if there { vec![1000] } else { vec![] }, "{t}");
        }
    });
}

#[test]
fn a_ping_that_has_got_another_identifier_has_its_source_translated_and_nothing_else() {
    everywhere(closed(), |lab| {
        let original = Tuple { sport: 9, dport: 8 << 8, ..saved(proto::ICMP, 0, 0).original };
        let reply = Tuple { sport: 10, dport: 0, ..saved(proto::ICMP, 0, 0).reply };
        create(lab, &[ConnSpec { original, reply, ..saved(proto::ICMP, 0, 0) }]);
        let none = ConnFilter::default;
        let to = |address: &str| address.parse().ok();
        for (filter, found) in [
            (ConnFilter { snat: true, ..none() }, 1),
            (ConnFilter { dnat: true, ..none() }, 0),
            (ConnFilter { nat: true, ..none() }, 1),
            (ConnFilter { nat_to: to("198.51.100.1/32"), ..none() }, 1),
            (ConnFilter { nat_to: to("203.0.113.5/32"), ..none() }, 0),
        ] {
            assert_eq!(lab.list(filter).len(), found, "{filter:?}");
        }
    });
}

#[test]
fn an_update_changes_those_that_match_and_no_others() {
    everywhere(closed(), |lab| {
        create(lab, &[ConnSpec { assured: false, ..saved(proto::UDP, 1000, 2000) }, saved(proto::UDP, 1001, 2001)]);
        let filter = ConnFilter { sport: Some(1000), ..ConnFilter::default() };
        let change = ConnChange { mark: Some((0xff00, 0xab00)), timeout_s: Some(20), assured: true };
        lab.command(|| Command::Update { cursor: 0, filter, change, into: Vec::with_capacity(8) });
        let told: Vec<_> = reported(lab).iter().map(|c| (c.original.sport, c.mark, c.timeout_s, c.assured)).collect();
        assert_eq!(told, [(1000, 0xab05, 20, true)]);
        let mut seen: Vec<_> = lab.conns().iter().map(|c| (c.original.sport, c.mark, c.timeout_s, c.assured)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(1000, 0xab05, 20, true), (1001, 5, 300, true)]);
        lab.wait(Nanos::from_secs(21));
        assert_eq!(lab.entries(), 1);
    });
}

#[test]
fn what_a_deletion_reports_is_what_has_ended() {
    // Between the turns of a walk connections come and go, before it and behind it.
    for seed in 1..=8 {
        let mut lab = Lab::with(usual(), Setup { seed, ..Setup::default() });
        for port in 1000..1400 {
            lab.passes(LAN, &udp(HOST, port, SERVER, 53, b"q"), WAN);
        }
        lab.command(|| Command::Subscribe(true));
        lab.events.clear();
        let filter = ConnFilter { dport: Some(53), ..ConnFilter::default() };
        let (mut cursor, mut told) = (Some(0), Vec::new());
        let mut port = 2000;
        while let Some(from) = cursor {
            // Less room than there is to report, so it takes several commands.
            lab.tell(0, Command::Delete { cursor: from, filter, into: Vec::with_capacity(50) });
            let mut answer = None;
            while answer.is_none() {
                for dport in [53, 53, 54] {
                    port += 1;
                    lab.arrive(LAN, &addressed(LAN, &udp(HOST, port, SERVER, dport, b"q")).frame());
                }
                lab.step(0);
                lab.heard();
                let listed = |e: &Event| matches!(e, Event::Listed { .. });
                answer = lab.events.iter().position(listed).map(|at| lab.events.remove(at));
            }
            let Some(Event::Listed { next, conns }) = answer else { panic!("no answer") };
            assert!(conns.len() <= 50);
            told.extend(conns.iter().map(|c| (c.original.sport, c.original.dport)));
            cursor = next;
        }
        let ended = lab.events.drain(..).filter_map(|e| match e {
            Event::Conn(ConnEvent { kind: ConnEventKind::Destroy(CtEvent::Flushed), conn }) => {
                Some((conn.original.sport, conn.original.dport))
            }
            _ => None,
        });
        assert_eq!(told, ended.collect::<Vec<_>>(), "those, and in this order");
        assert!(told.len() >= 400 && told.iter().all(|&(_, dport)| dport == 53), "{}", told.len());
        lab.run();
        let left: Vec<_> = lab.conns().iter().map(|c| (c.original.sport, c.original.dport)).collect();
        assert!(told.iter().all(|t| !left.contains(t)));
        lab.collect();
    }
}

#[test]
fn a_watcher_hears_of_every_change_and_only_while_it_listens() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 999, SERVER, 53, b"q"), WAN);
        lab.command(|| Command::Subscribe(true));
        lab.passes(LAN, &udp(HOST, 1000, SERVER, 53, b"q"), WAN);
        lab.passes(LAN, &udp(HOST, 1000, SERVER, 53, b"q"), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 1000, b"a"), LAN);
        lab.wait(Nanos::from_secs(31));
        lab.command(|| Command::Subscribe(false));
        lab.passes(LAN, &udp(HOST, 1001, SERVER, 53, b"q"), WAN);
        let of = |port| {
            let events = lab.events.iter().filter_map(|e| match e {
                Event::Conn(c) if c.conn.original.sport == port => Some((c.kind, c.conn.replied, c.conn.packets)),
                _ => None,
            });
            events.collect::<Vec<_>>()
        };
        let expired = ConnEventKind::Destroy(CtEvent::Expired);
        let life =
            [(ConnEventKind::New, false, [1, 0]), (ConnEventKind::Update, true, [2, 1]), (expired, true, [2, 1])];
        assert_eq!(of(1000), life);
        assert_eq!(of(999), [(expired, false, [1, 0])]);
        assert_eq!(of(1001), []);
        assert_eq!(lab.stats.iter().map(|s| s.events_lost.value()).sum::<u64>(), 0);
    });
}

#[test]
fn reports_that_find_no_room_are_counted_and_leave_room_for_answers() {
    let mut lab = Lab::with(usual(), Setup { conntrack_max: 8192, buffers: 8192, ..Setup::default() });
    lab.command(|| Command::Subscribe(true));
    // Nobody reads the messages while these arrive.
    for n in 0..5000u16 {
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 1000 + n, SERVER, 53, b"q")).frame());
        lab.step(0);
    }
    let lost = lab.stats[0].events_lost.value();
    assert!(lost > 1000, "{lost}");
    assert_eq!(lab.conns().len(), 5000, "the answers of a dump came through");
    let heard = lab.events.iter().filter(|e| matches!(e, Event::Conn(_))).count() as u64;
    assert_eq!(heard + lost, 5000);
}

#[test]
fn a_dump_looks_at_a_bounded_number_of_entries_per_turn() {
    let mut lab = Lab::with(usual(), Setup { conntrack_max: 8192, ..Setup::default() });
    for n in 0..5000u16 {
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 1000 + n, SERVER, 53, b"q")).frame());
        lab.step(0);
        lab.sent(WAN);
    }
    let mut cursor = Some(0);
    let (mut seen, mut turns) = (0, 0);
    while let Some(at) = cursor {
        // A packet that arrives with the question leaves in the same turn.
        lab.tell(0, Command::List { cursor: at, filter: ConnFilter::default(), into: Vec::with_capacity(4096) });
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 1000, SERVER, 53, b"q")).frame());
        lab.step(0);
        assert_eq!(lab.sent(WAN).len(), 1);
        turns += 1;
        while lab.heard() == 0 {
            lab.step(0);
            turns += 1;
        }
        let mut answers = lab.events.drain(..).filter_map(|e| match e {
            Event::Listed { next, conns } => Some((next, conns.len())),
            _ => None,
        });
        let (next, n) = answers.next().expect("an answer");
        assert!(next.is_none_or(|next| next - at <= u64::from(SCAN_PER_COMMAND)));
        seen += n;
        cursor = next;
    }
    assert_eq!(seen, 5000);
    assert!(turns >= 5000 / 32, "{turns} turns for 5000 connections");
}
