//! Floods at full rate, with connections that matter in between; and a million connections that end in the same second.
//!
//! ```text
//!   flood: any source ── wan [ gateway ] lan ── 10.0.0.9          sessions: 10.0.0.2:* ── lan, wan ── 203.0.113.5:443
//!                             10.0.0.1:22                         operator: 10.0.0.2:* ── lan
//! ```
//! Every burst is full: 24 packets of the flood and 8 of sessions, one after the other without a pause. What bounds the work is
//! counted: entries looked at per packet ([`VICTIM_LOOKS`]) and per turn.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::net::Ipv4Addr;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::api::stats::CtEvent;
use dataplane::conntrack::{Looks, VICTIM_LOOKS};
use dataplane::io::PortIdx;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const SERVER: &str = "203.0.113.5";
/// Connections that a turn looks at because their time may be over.
const EXPIRIES: u64 = 64;
const SESSIONS: u16 = 64;
const RESERVE: usize = 32;

/// wan may open connections to lan, lan to wan and to the gateway itself, which has a reserve.
fn open() -> PolicySpec {
    let mut spec = usual();
    let new = |from, to| Match { state: vec![CtState::New], ..from_to(from, to) };
    spec.rules.push(rule("in", new(WAN_ZONE, LAN_ZONE), Action::Accept));
    spec.rules.push(rule("operator", new(LAN_ZONE, ZoneId::LOCAL), Action::Accept));
    spec.conntrack.reserve = RESERVE;
    spec
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn,
    /// The target answers each.
    SynAnswered,
    Udp,
    Icmp,
}

/// The next packet of a flood: another source each time.
fn flood(kind: Kind, r: &mut Random) -> Pkt {
    let src = Ipv4Addr::from_bits(0x1400_0000 | r.next() & 0x3fff_ffff).to_string();
    let port = 1024 + (r.next() % 60000) as u16;
    match kind {
        Kind::Syn | Kind::SynAnswered => tcp(&src, port, "10.0.0.9", 80, SYN, r.next(), 0, b""),
        Kind::Udp => udp(&src, port, "10.0.0.9", 53, b"flood"),
        Kind::Icmp => ping(&src, "10.0.0.9", port, 1),
    }
}

/// A session's segments, by direction, `nth` of those that carry data.
struct Session(u16);

impl Session {
    fn client_says(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Pkt {
        addressed(LAN, &tcp("10.0.0.2", self.0, SERVER, 443, flags, seq, ack, data))
    }

    fn server_says(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Pkt {
        addressed(WAN, &tcp(SERVER, 443, "10.0.0.2", self.0, flags, seq, ack, data))
    }

    fn data(&self, nth: u32) -> [(PortIdx, Pkt); 2] {
        let (seq, ack) = (101 + nth * 4, 501 + nth * 4);
        let question = self.client_says(ACK | PSH, seq, ack, &nth.to_be_bytes());
        [(LAN, question), (WAN, self.server_says(ACK | PSH, ack, seq + 4, &nth.to_be_bytes()))]
    }
}

/// What the target of a SYN answers.
fn answer(syn: &Seen) -> Pkt {
    let ack = be32(&syn.ip[24..]).wrapping_add(1);
    addressed(LAN, &tcp("10.0.0.9", 80, &syn.src.to_string(), syn.sport, SYN | ACK, 7, ack, b""))
}

fn is_of_session(seen: &Seen) -> bool {
    seen.dport == 443 || seen.sport == 443
}

fn sessions(lab: &mut Lab) -> Vec<Session> {
    let all: Vec<_> = (0..SESSIONS).map(|n| Session(20000 + n)).collect();
    for s in &all {
        lab.passes(LAN, &s.client_says(SYN, 100, 0, b""), WAN);
        lab.passes(WAN, &s.server_says(SYN | ACK, 500, 101, b""), LAN);
        lab.passes(LAN, &s.client_says(ACK, 101, 501, b""), WAN);
    }
    all
}

fn looks(lab: &Lab) -> Vec<Looks> {
    lab.workers.iter().map(|w| w.path().conntrack.looks()).collect()
}

fn event(lab: &Lab, event: CtEvent) -> u64 {
    lab.stats.iter().map(|s| s.ct_events[event as usize].value()).sum()
}

/// One turn of each worker; no turn looks at more than it may.
#[track_caller]
fn turn(lab: &mut Lab) {
    let before = looks(lab);
    for n in 0..lab.workers.len() {
        lab.step(n);
    }
    for (now, before) in looks(lab).iter().zip(before) {
        // One more for each packet: of four ports and of other workers, a burst each.
        let most = EXPIRIES + 32 * (4 + lab.workers.len() as u64 - 1);
        assert!(now.timers - before.timers <= most, "{} timers in a turn", now.timers - before.timers);
    }
}

/// `bursts` full bursts of a flood with sessions in between, on `workers` workers that hold `max` connections each.
fn stands(kind: Kind, workers: usize, max: usize, bursts: u32) {
    let setup = Setup { workers, conntrack_max: max, buffers: 1 << 14, ..Setup::default() };
    let mut lab = Lab::with(open(), setup);
    let sessions = sessions(&mut lab);
    let mut random = Random(9);
    let (mut expected, mut arrived, mut flooded, mut ssh) = (0, 0, 0u64, 0);
    let before: u64 = looks(&lab).iter().map(|l| l.victims).sum();
    for burst in 0..bursts {
        for n in 0..8 * workers as u32 {
            if n % 8 < 6 {
                for _ in 0..4 {
                    lab.arrive(WAN, &addressed(WAN, &flood(kind, &mut random)).frame());
                    flooded += 1;
                }
            }
            // Eight packets of sessions for each worker and burst, one direction after the other.
            let at = (burst * 8 * workers as u32 + n) as usize;
            let (nth, half) = (at / 2 / sessions.len(), at % 2);
            let [question, answer] = sessions[at / 2 % sessions.len()].data(nth as u32);
            let (port, p) = if half == 0 { question } else { answer };
            lab.arrive(port, &p.frame());
            expected += 1;
        }
        while lab.workers.iter_mut().any(|w| w.io().waiting() > 0) {
            turn(&mut lab);
        }
        for (port, seen) in lab.collect() {
            arrived += usize::from(is_of_session(&seen));
            if kind == Kind::SynAnswered && port == LAN && !is_of_session(&seen) {
                lab.arrive(LAN, &answer(&seen).frame());
            }
        }
        if burst % 50 == 49 {
            let p = addressed(LAN, &tcp("10.0.0.2", 30000 + burst as u16, "10.0.0.1", 22, SYN, 1, 0, b""));
            lab.arrive(LAN, &p.frame());
            while lab.workers.iter_mut().any(|w| w.io().waiting() > 0) {
                turn(&mut lab);
            }
            ssh += lab.collect().iter().filter(|(port, _)| *port == LAN_TWIN).count() as u32;
        }
    }
    let what = format!("{kind:?} on {workers}: {:?}", lab.drops());
    assert_eq!(arrived, expected, "sessions lose nothing: {what}");
    assert_eq!(ssh, bursts / 50, "the operator gets in: {what}");
    // In a round of the table a packet is refused for every 64 entries in a row that must stay: the sessions came one by one.
    let rounds = flooded / (workers * max) as u64 + 1;
    let refused = lab.drop_count(DropReason::ConntrackFull);
    assert!(
        refused <= rounds * (u64::from(SESSIONS) / VICTIM_LOOKS as u64 + 1),
        "{refused} in {rounds} rounds: {what}"
    );
    let late = if kind == Kind::SynAnswered { lab.drop_count(DropReason::InvalidTcpState) } else { 0 };
    assert!(late * 100 <= flooded, "{late} answers of {flooded} find their question gone");
    assert_eq!(lab.total_drops(), refused + late, "{what}");
    let limit = workers * (max - RESERVE.div_ceil(workers));
    let entries = lab.entries();
    assert!((limit..=limit + ssh as usize).contains(&entries), "{entries} of {limit}: {what}");
    assert_eq!(lab.owned().iter().filter(|c| c.assured).count(), sessions.len(), "{what}");
    let looked = looks(&lab).iter().map(|l| l.victims).sum::<u64>() - before;
    assert!(looked <= flooded * VICTIM_LOOKS as u64, "{looked} looks for {flooded} packets");
    // And in fact far fewer: the next entry is mostly one that can go, or, where all are answered, the first of nine.
    let most = if kind == Kind::SynAnswered { 12 } else { 4 };
    assert!(looked <= flooded * most, "{looked} looks for {flooded} packets: {what}");
    assert!(event(&lab, CtEvent::EarlyDrop) > flooded / 2, "{what}");
    lab.sound();
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes(*b.first_chunk().expect("four bytes"))
}

#[test]
fn a_syn_flood_harms_no_established_connection() {
    stands(Kind::Syn, 1, 1024, 400);
    stands(Kind::Syn, 4, 256, 200);
}

/// What the target has answered is given up after what it has not, and before all that is assured.
#[test]
fn a_syn_flood_whose_target_answers_harms_none_either() {
    stands(Kind::SynAnswered, 1, 1024, 400);
}

#[test]
fn floods_of_udp_and_icmp_harm_no_established_connection() {
    stands(Kind::Udp, 1, 1024, 400);
    stands(Kind::Udp, 4, 256, 200);
    stands(Kind::Icmp, 1, 1024, 400);
    stands(Kind::Icmp, 4, 256, 200);
}

/// The worst that a flood can meet: nothing may go. Each packet looks at so many entries, and is refused.
#[test]
fn a_packet_looks_at_a_bounded_number_of_entries_where_nothing_may_go() {
    let mut lab = Lab::with(open(), Setup { conntrack_max: SESSIONS as usize + RESERVE, ..Setup::default() });
    let all = sessions(&mut lab);
    let mut random = Random(1);
    for n in 0..1000 {
        let before = looks(&lab)[0].victims;
        lab.refuses(WAN, &flood(Kind::Syn, &mut random), DropReason::ConntrackFull);
        assert_eq!(looks(&lab)[0].victims - before, VICTIM_LOOKS as u64);
        let [(port, question), _] = all[n % all.len()].data(0);
        lab.passes(port, &question, WAN);
    }
    lab.passes(LAN, &tcp("10.0.0.2", 30000, "10.0.0.1", 22, SYN, 1, 0, b""), LAN_TWIN);
}

/// How many of 200 new connections get in whose answer takes as long as `rtt` packets of a SYN flood, in a table of 1,024;
/// `answers`: the flood's target answers.
fn got_in(rtt: u32, answers: bool) -> usize {
    let mut lab = Lab::with(open(), Setup { conntrack_max: 1024, buffers: 1 << 14, ..Setup::default() });
    sessions(&mut lab);
    let mut random = Random(4);
    let mut send = |lab: &mut Lab, n| {
        for _ in 0..n / 8 {
            let flood: Vec<_> = (0..8).map(|_| addressed(WAN, &flood(Kind::Syn, &mut random)).frame()).collect();
            let reached = lab.stream(flood, |lab, f| lab.arrive(WAN, &f));
            for (_, seen) in reached.iter().filter(|(port, _)| answers && *port == LAN) {
                lab.arrive(LAN, &answer(seen).frame());
            }
        }
        lab.run();
        lab.collect();
    };
    send(&mut lab, 3000);
    let mut done = 0;
    for n in 0..200 {
        let s = Session(40000 + n);
        lab.passes(LAN, &s.client_says(SYN, 100, 0, b""), WAN);
        send(&mut lab, rtt);
        let answered = lab.send(WAN, &s.server_says(SYN | ACK, 500, 101, b"")).len();
        send(&mut lab, 64);
        let acknowledged = lab.send(LAN, &s.client_says(ACK, 101, 501, b"")).len();
        done += answered.min(acknowledged);
    }
    done
}

/// A connection that waits for its answer is one among those of the flood, and goes when the hand has gone round to it: after as
/// many new flows as there are entries that may go. Here those are 1,024, less the reserve, the sessions and
/// what has got in.
#[test]
fn new_connections_get_in_while_their_answer_comes_within_a_round_of_the_table() {
    for answers in [false, true] {
        assert_eq!(got_in(400, answers), 200, "all; answers: {answers}");
        let few = got_in(2000, answers);
        assert!(few < 20, "hardly any with the first SYN: {few}; answers: {answers}");
    }
}

/// The wheel may lag behind where much ends at once. What is over is no longer in the way, be it assured.
#[test]
fn a_full_table_whose_connections_are_over_takes_new_ones_at_once() {
    let max = 512;
    let mut lab = Lab::with(usual(), Setup { conntrack_max: max, ..Setup::default() });
    let questions =
        |from: u16| (0..max as u16).map(move |n| addressed(LAN, &udp("10.0.0.2", from + n, SERVER, 53, b"q")));
    // Answered, and asked again after two seconds: assured.
    for round in 0..2 {
        lab.stream(questions(1000), |lab, p| lab.arrive(LAN, &p.frame()));
        lab.stream(questions(1000), |lab, p| {
            let port = be16_at(&p.l4, 0);
            lab.arrive(WAN, &addressed(WAN, &udp(SERVER, 53, "10.0.0.2", port, b"a")).frame());
        });
        if round == 0 {
            lab.now = lab.now + Nanos::from_secs(3);
        }
    }
    assert_eq!(lab.owned().iter().filter(|c| c.assured).count(), max);
    lab.now = lab.now + Nanos::from_secs(200);
    for p in questions(4000).take(32) {
        lab.arrive(LAN, &p.frame());
    }
    lab.step(0);
    assert_eq!((lab.collect().len(), lab.total_drops()), (32, 0));
    assert_eq!(event(&lab, CtEvent::EarlyDrop), 0, "they have expired");
}

// ---- All at once ----------------------------------------------------------------------------------------------------

/// A million connections whose time is over in the same second, while bursts go on: each turn ends so many, none more,
/// and after as many turns as that takes all are gone. Sessions lose nothing meanwhile.
#[test]
fn a_million_connections_that_end_in_the_same_second_are_bounded_work_per_turn() {
    const MANY: u32 = 1_000_000;
    let setup = Setup { conntrack_max: MANY as usize + 1024, buffers: 1 << 12, ..Setup::default() };
    let mut lab = Lab::with(open(), setup);
    let all = sessions(&mut lab);
    // One frame with other addresses each time; UDP over IPv4 may go without a checksum.
    let mut frame = addressed(LAN, &udp("10.0.0.3", 7, "198.18.0.0", 53, b"q").without_checksum()).frame();
    let begin = lab.now;
    for n in 0..MANY {
        frame[32..34].copy_from_slice(&(n as u16).to_be_bytes());
        frame[34..36].copy_from_slice(&(1024 + (n >> 16) as u16).to_be_bytes());
        frame[24..26].fill(0);
        let sum = !dataplane::parse::checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        lab.arrive(LAN, &frame);
        if n % 32 == 31 {
            lab.step(0);
            while lab.workers[0].io().sent(WAN).is_some() {}
        }
    }
    assert_eq!((lab.entries(), lab.total_drops()), (MANY as usize + all.len(), 0));
    assert!(lab.now.since(begin) < Nanos::SECOND, "all in one second");
    // Until the last is over; nobody has looked meanwhile. A turn takes ten microseconds from now on.
    lab.now = lab.now + Nanos::from_secs(30) + Nanos::from_millis(300);
    let mut turns = 0;
    while lab.entries() > all.len() {
        let before = lab.entries();
        let s = &all[turns % all.len()];
        let [(port, question), _] = s.data(0); // again and again
        lab.arrive(port, &question.frame());
        turn(&mut lab);
        lab.now = lab.now + Nanos(9000);
        assert!(before - lab.entries() <= EXPIRIES as usize + 1, "one for the packet");
        assert_eq!(lab.collect().len(), 1, "turn {turns}: {:?}", lab.drops());
        turns += 1;
    }
    let least = MANY as usize / (EXPIRIES as usize + 1);
    assert!((least..=least + least / 100 + 1).contains(&turns), "{turns} turns, where {least} are the least");
    assert_eq!(event(&lab, CtEvent::Expired), u64::from(MANY));
    assert_eq!((lab.entries(), lab.pool.live()), (all.len(), 0));
}
