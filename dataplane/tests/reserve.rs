//! Reservations of reply tuples, as two workers speak of them: one is a worker's path, the other this file.
//!
//! ```text
//!   client ── wan [ worker 0 ] lan ── 10.0.0.9:80, forwarded from 198.51.100.1:8000..8063
//!                       │
//!                  [ worker 1 ]  home of the answers, played here
//! ```

mod common;

use std::sync::Arc;

use common::lab::*;
use common::oracle;
use common::pkt::*;
use dataplane::api::command::ConnSpec;
use dataplane::api::policy::*;
use dataplane::api::stats::{CtEvent, WorkerStats};
use dataplane::api::{DropReason, Fib};
use dataplane::conntrack::Scan;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::packet::Packet;
use dataplane::path::reserve::{Settled, Slot};
use dataplane::path::{Interface, Outcome, Path, PathSetup, Rewrite};
use dataplane::steer::{Note, Notes, Steer, Ticket, mesh};
use dataplane::time::Nanos;

const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const CLIENT: &str = "203.0.113.5";

const LATE: Nanos = Nanos::from_millis(100);

/// Worker 0 of two, and what the other would speak to it by.
struct One {
    path: Path,
    home: Notes,
    now: Nanos,
}

fn forwarded() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8000, WEB, Some(80));
    spec.nat[0].matches.dport = vec![8000..=8063];
    spec
}

fn made_by_hand(original: Tuple, reply: Tuple) -> ConnSpec {
    ConnSpec { timeout_s: 30, ..made(original, reply) }
}

impl One {
    fn new(spec: PolicySpec) -> Self {
        let mut notes = mesh::<()>(2).into_iter().map(|(_, notes)| notes);
        let mut next = || notes.next().expect("two");
        let setup = PathSetup {
            steer: Steer::new(0, 2),
            notes: next(),
            interfaces: vec![
                Interface { mac: LAN_MAC, mtu: 1500, vlan: None },
                Interface { mac: WAN_MAC, mtu: 1500, vlan: None },
            ],
            stats: Arc::new(WorkerStats::new(2)),
            conntrack_max: 2000,
            seeds: [1, 2, 3, 4],
            policy: Arc::new(Policy::compile(spec).expect("policy")),
            fib: Arc::new(Fib::build(fib())),
        };
        Self { path: Path::new(setup, Nanos(0)), home: next(), now: Nanos::SECOND }
    }

    fn judge(&mut self, p: &Pkt) -> (Packet, Outcome) {
        let frame = addressed(WAN, p).frame();
        let mut packet = oracle::packet_of(&frame, true).expect("a packet");
        packet.in_port = WAN;
        packet.hash = self.path.conntrack.prefetch_bucket(&packet.tuple);
        let outcome = self.path.judge(&mut packet, self.now);
        (packet, outcome)
    }

    /// The first packet of a connection of the `n`-th client whose replies are at home at the other worker.
    fn begin(&mut self, n: usize) -> (Slot, Tuple, Ticket) {
        let p = self.question(n);
        let (_, outcome) = self.judge(&p);
        let Outcome::Wait(slot) = outcome else { panic!("it does not wait: {outcome:?}") };
        let Some(Note::Place(t, ticket, _)) = self.home.receive(0) else { panic!("nothing is asked") };
        (slot, t, ticket)
    }

    fn question(&self, n: usize) -> Pkt {
        let steer = self.path.steer.clone();
        let homes = |port, asks| {
            let question = tuple(CLIENT, port, GATEWAY, asks, proto::UDP);
            (steer.home(&question), steer.home(&tuple(WEB, 80, CLIENT, port, proto::UDP)))
        };
        let far = |port| (8000..8064).find(|&asks| homes(port, asks) == (0, 1)).map(|asks| (port, asks));
        let (port, asks) = (1024..60_000).filter_map(far).nth(n).expect("a client");
        udp(CLIENT, port, GATEWAY, asks, b"question")
    }

    fn hears(&mut self, note: Note) {
        assert!(self.home.tell(0, note));
        self.path.read_notes(self.now);
    }

    fn settled(&mut self) -> Vec<(Slot, Settled)> {
        std::iter::from_fn(|| self.path.next_settled()).collect()
    }

    fn live(&self) -> usize {
        let ct = &self.path.conntrack;
        (0..).map(|at| ct.scan(at)).take_while(|s| *s != Scan::End).filter(|s| matches!(s, Scan::Conn(_))).count()
    }

    fn events(&self, e: CtEvent) -> u64 {
        self.path.stats.ct_events[e as usize].value()
    }
}

#[test]
fn a_connection_is_live_once_its_home_says_so() {
    let mut one = One::new(forwarded());
    let (slot, t, ticket) = one.begin(0);
    assert_eq!((one.live(), one.path.pending(), one.events(CtEvent::New), one.settled()), (0, 1, 0, vec![]));
    one.hears(Note::Placed(t, ticket));
    assert_eq!((one.live(), one.path.pending(), one.events(CtEvent::New)), (1, 0, 1));
    assert!(matches!(one.settled()[..], [(s, Settled::Sent(_))] if s == slot));
    assert_eq!(one.home.receive(0), None);
}

#[test]
fn packets_of_either_direction_wait_for_the_same_answer() {
    let mut one = One::new(forwarded());
    let question = one.question(0);
    let (slot, t, _) = one.begin(0);
    assert_eq!(one.judge(&question).1, Outcome::Wait(slot));
    let answer = udp(WEB, 80, CLIENT, t.dport, b"");
    assert_eq!(one.judge(&answer).1, Outcome::Wait(slot));
    assert_eq!((one.live(), one.path.pending(), one.home.receive(0)), (0, 1, None));
}

#[test]
fn errors_about_a_connection_that_is_not_live_are_about_none() {
    let mut one = One::new(forwarded());
    let (_, t, _) = one.begin(0);
    let quoted = udp(CLIENT, t.dport, WEB, 80, b"question").ip();
    let (_, outcome) = one.judge(&icmp(WEB, CLIENT, 3, 3, [0; 4], &quoted));
    assert_eq!(outcome, Outcome::Drop(DropReason::InvalidNoParent.into()));
}

/// The choice is as on a single worker that knows of the clash: the new port comes home, so there is nothing more to ask.
#[test]
fn after_a_clash_another_port_is_chosen() {
    let mut one = One::new(forwarded());
    let (slot, t, ticket) = one.begin(0);
    one.hears(Note::Clash(t, ticket));
    let [(s, Settled::Sent(plan))] = one.settled()[..] else { panic!("it is not sent") };
    let Rewrite::Tuple(to) = plan.rewrite else { panic!("it is not translated") };
    assert_eq!((s, to.src, to.dst, to.dport), (slot, t.dst, t.src, 80));
    assert!(to.sport != t.dport && one.path.steer.is_home(&to.inverse()));
    assert_eq!((one.live(), one.path.pending(), one.home.receive(0)), (1, 0, None), "nothing is to be taken back");
    assert!(one.path.conntrack.lookup(&to.inverse(), one.now).is_some());
    assert!(one.path.conntrack.lookup(&t, one.now).is_none());
}

#[test]
fn a_strict_port_that_is_taken_is_refused_and_leaves_nothing() {
    let mut spec = forwarded();
    let strict = NatRuleSpec { preserve_port: PreservePort::Strict, ..masquerade() };
    spec.nat.push(NatRuleSpec { matches: from_to(WAN_ZONE, LAN_ZONE), ..strict });
    let mut one = One::new(spec);
    let p = (0..2000)
        .map(|n| udp(CLIENT, 5000 + n, GATEWAY, 8000 + n % 64, b""))
        .find(|p| {
            let sport = u16::from_be_bytes([p.l4[0], p.l4[1]]);
            let asks = u16::from_be_bytes([p.l4[2], p.l4[3]]);
            one.path.steer.home(&tuple(CLIENT, sport, GATEWAY, asks, proto::UDP)) == 0
                && one.path.steer.home(&tuple(WEB, 80, "10.0.0.1", sport, proto::UDP)) == 1
        })
        .expect("a client");
    let (_, outcome) = one.judge(&p);
    let Outcome::Wait(slot) = outcome else { panic!("it does not wait: {outcome:?}") };
    let Some(Note::Place(t, ticket, _)) = one.home.receive(0) else { panic!("nothing is asked") };
    assert_eq!(t.dst, ip("10.0.0.1"));
    let leases = |one: &One| one.path.stats.nat.iter().flat_map(|n| &n.leases).map(|c| c.value()).sum::<u64>();
    assert_eq!(leases(&one), 1);
    one.hears(Note::Clash(t, ticket));
    assert_eq!(one.settled(), [(slot, Settled::Lost(DropReason::NatNoPort))]);
    assert_eq!((one.path.conntrack.count(), leases(&one), one.home.receive(0)), (0, 0, None));
}

#[test]
fn a_home_without_room_refuses_the_packet() {
    let mut one = One::new(forwarded());
    let (slot, t, ticket) = one.begin(0);
    one.hears(Note::Full(t, ticket));
    assert_eq!(one.settled(), [(slot, Settled::Lost(DropReason::SignpostFull))]);
    assert_eq!((one.path.conntrack.count(), one.events(CtEvent::New)), (0, 0));
}

/// The answer to a question that was given up is not the answer to the next: between the two another worker may have got the
/// tuple.
#[test]
fn a_late_answer_does_not_make_the_next_connection_live() {
    let mut one = One::new(forwarded());
    let (slot, t, first) = one.begin(0);
    one.now = one.now + LATE;
    one.path.expire_reservations(one.now);
    assert_eq!(one.settled(), [(slot, Settled::Lost(DropReason::SignpostTimeout))]);
    assert!(matches!(one.home.receive(0), Some(Note::Remove(removed, Some(_))) if removed == t));
    let (_, same, second) = one.begin(0);
    assert_eq!(same, t);
    one.hears(Note::Placed(t, first));
    assert_eq!((one.live(), one.path.pending(), one.settled()), (0, 1, vec![]));
    one.hears(Note::Clash(t, second));
    assert!(matches!(one.settled()[..], [(_, Settled::Sent(_))]));
    assert!(one.path.conntrack.lookup(&t, one.now).is_none());
    // Nor is an answer that comes twice, or after all is said.
    one.hears(Note::Placed(t, second));
    one.hears(Note::Clash(t, second));
    one.hears(Note::Full(t, second));
    assert_eq!((one.live(), one.settled(), one.home.receive(0)), (1, vec![], None));
}

#[test]
fn each_waits_for_its_own_time() {
    let mut one = One::new(forwarded());
    let mut slots = Vec::new();
    for n in 0..10 {
        slots.push(one.begin(n).0);
        one.now = one.now + Nanos::from_millis(10);
        one.path.expire_reservations(one.now);
        let due: Vec<_> = if n == 9 { vec![slots[0]] } else { vec![] };
        assert_eq!(one.settled().iter().map(|(s, _)| *s).collect::<Vec<_>>(), due, "after {} ms", (n + 1) * 10);
    }
    for slot in &slots[1..] {
        one.now = one.now + Nanos::from_millis(10);
        one.path.expire_reservations(one.now);
        assert_eq!(one.settled(), [(*slot, Settled::Lost(DropReason::SignpostTimeout))]);
    }
    assert_eq!((one.path.pending(), one.path.conntrack.count()), (0, 0));
}

/// What is pending here is another's neither as its reply nor as its original tuple.
#[test]
fn tuples_that_wait_are_taken() {
    let mut one = One::new(forwarded());
    let question = one.question(0);
    let (_, t, ticket) = one.begin(0);
    let original = one.judge(&question).0.tuple;
    one.hears(Note::Place(original, ticket, None));
    assert_eq!(one.home.receive(0), Some(Note::Clash(original, ticket)));
    let plain = made_by_hand(t.inverse(), t);
    assert!(one.path.create(&plain, 0, one.now).is_err());
}

/// A policy that came meanwhile is asked before the packet leaves: what walks the table in its name does not see what is not
/// live.
#[test]
fn a_policy_that_denies_it_meanwhile_is_heard() {
    let mut one = One::new(forwarded());
    let (slot, t, ticket) = one.begin(0);
    let mut nothing = policy();
    nothing.generation = 2;
    let policy = Arc::new(Policy::compile(nothing).expect("policy"));
    let rules = Arc::new(dataplane::api::rules::RuleCounters::new(policy.spec()));
    let limits = Box::new(dataplane::conntrack::limit::Limits::new(&policy, 2000, 2));
    one.path.set_policy(policy, rules, limits);
    one.hears(Note::Placed(t, ticket));
    assert_eq!(one.settled(), [(slot, Settled::Lost(DropReason::PolicyReload))]);
    assert_eq!((one.path.conntrack.count(), one.home.receive(0)), (0, Some(Note::Remove(t, None))));
}

#[test]
fn the_operators_connection_is_live_or_refused_as_the_home_says() {
    for taken in [false, true] {
        let mut one = One::new(forwarded());
        let question = one.question(0);
        let (_, t, ticket) = one.begin(0);
        let original = one.judge(&question).0.tuple;
        one.hears(Note::Full(t, ticket));
        one.settled();
        let spec = made_by_hand(original, t);
        assert_eq!(one.path.create(&spec, 3, one.now), Ok(false));
        assert_eq!(one.live(), 0);
        let Some(Note::Place(asked, ticket, _)) = one.home.receive(0) else { panic!("nothing is asked") };
        assert_eq!(asked, t);
        one.hears(if taken { Note::Clash(t, ticket) } else { Note::Placed(t, ticket) });
        let settled: Vec<_> = one.settled().into_iter().map(|(_, s)| s).collect();
        let expected = if taken { Settled::Refused(3, DropReason::SignpostClash) } else { Settled::Made(3) };
        assert_eq!((settled, one.live()), (vec![expected], usize::from(!taken)));
    }
}
