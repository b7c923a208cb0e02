//! Stories of steering: which worker judges a packet, and how it gets there.
//!
//! ```text
//!   10.0.0.9 ── lan [ worker 0 | worker 1 | … ] wan ── 203.0.113.5
//!                   198.51.100.1:8000..8063 → 10.0.0.9:80
//! ```
//! Everything here is about packets that arrive where they do not belong.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::{Command, ConnFilter};
use dataplane::api::policy::*;
use dataplane::api::stats::HandoverCause;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag;
use dataplane::io::Buf;
use dataplane::steer::{NOTE_RING, PACKET_RING, Steer};
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";

fn forwarded() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8000, WEB, Some(80));
    spec.nat[0].matches.dport = vec![8000..=8063];
    spec
}

fn workers(workers: usize) -> Setup {
    Setup { workers, ..Setup::default() }
}

/// Who asks 198.51.100.1, and at which port: the hash is linear, so that alone decides how far apart the homes of
/// questions and answers are.
#[derive(Clone, Debug)]
struct Client {
    address: String,
    port: u16,
    asks: u16,
}

impl Client {
    fn question(&self) -> Pkt {
        addressed(WAN, &udp(&self.address, self.port, GATEWAY, self.asks, b"question"))
    }

    fn answer(&self) -> Pkt {
        addressed(LAN, &udp(WEB, 80, &self.address, self.port, b"answer"))
    }

    /// The answer as the client must see it.
    fn answered(&self) -> String {
        format!("198.51.100.1:{} > {}:{}", self.asks, self.address, self.port)
    }

    /// The homes of question and answer.
    fn homes(&self, steer: &Steer) -> (usize, usize) {
        let question = tuple(&self.address, self.port, GATEWAY, self.asks, proto::UDP);
        let answer = tuple(WEB, 80, &self.address, self.port, proto::UDP);
        (usize::from(steer.home(&question)), usize::from(steer.home(&answer)))
    }
}

/// Clients whose questions come home to `owner` and their answers to `home`; no two have address and port in common.
fn clients(lab: &Lab, owner: usize, home: usize) -> impl Iterator<Item = Client> + use<> {
    let steer = lab.workers[0].path().steer.clone();
    (1..250)
        .flat_map(|n| (1024..4096).map(move |port| (n, port)))
        .filter(move |(_, port)| usize::from(port % 16) == owner * 4 + home)
        .filter_map(move |(n, port)| {
            let client = |asks| Client { address: format!("203.0.113.{n}"), port, asks };
            (8000..8064).map(client).find(|c| c.homes(&steer) == (owner, home))
        })
}

// ---- Where a NIC cannot be trusted ----------------------------------------------------------------------------------

#[test]
fn a_packet_that_arrives_at_the_wrong_worker_is_judged_by_the_right_one() {
    for n in [2, 4, 8] {
        let mut lab = Lab::with(usual(), Setup { arrival: Arrival::Anywhere, ..workers(n) });
        for port in 1000..1100 {
            lab.passes(LAN, &udp(HOST, port, SERVER, 53, b"q"), WAN);
            lab.passes(WAN, &udp(SERVER, 53, HOST, port, b"a"), LAN);
        }
        assert_eq!(lab.owned().iter().filter(|c| lab.home(&c.original) != usize::from(c.worker)).count(), 0);
        let steered = lab.handovers(HandoverCause::Steer);
        assert!(steered > 0 && steered < 200, "{steered} of 200 handed over");
        assert_eq!(lab.handovers(HandoverCause::Stale), 0);
    }
}

#[test]
fn packets_that_rss_brings_home_are_not_handed_over() {
    let mut lab = Lab::with(usual(), workers(4));
    for port in 1000..1300 {
        lab.passes(LAN, &udp(HOST, port, SERVER, 53, b"q"), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, port, b"a"), LAN);
    }
    assert!(dataplane::api::stats::HandoverCause::ALL.iter().all(|&c| lab.handovers(c) == 0));
}

/// Lan says that it spreads frames by our key, and does not: they come to any worker, with a hash of its own.
fn lying_port(with_hash: bool) {
    for n in [2, 4] {
        let mut lab = Lab::with(forwarded(), workers(n));
        // Wan is honest, and speaks first at every worker.
        for worker in 0..n {
            let client = clients(&lab, worker, worker).next().expect("a client");
            lab.passes(WAN, &client.question(), LAN);
        }
        for (i, client) in clients(&lab, 0, 1).take(300).enumerate() {
            lab.passes(WAN, &client.question(), LAN);
            let buf = lab.pool.frame(&client.answer().frame()).expect("a buffer is free");
            let buf = if with_hash { buf.with_rss(0xdead_beef) } else { buf };
            lab.workers[i % n].io().inject(LAN, buf);
            lab.run();
            let out = lab.collect();
            assert_eq!(out.len(), 1, "answer {i}: {:?}", lab.drops());
            assert_eq!(out[0].1.flow(), client.answered());
        }
        let mismatches: u64 = lab.stats.iter().map(|s| s.rss_mismatches.value()).sum();
        assert_eq!(mismatches, n as u64, "each worker has found out");
        assert_eq!(lab.total_drops(), 0);
        lab.sound();
    }
}

#[test]
fn a_port_with_another_hash_is_found_out_and_steered_in_software() {
    lying_port(true);
}

#[test]
fn a_port_without_a_hash_is_found_out_and_steered_in_software() {
    lying_port(false);
}

/// NICs hash some packets by addresses alone (IPv6 with extension headers), or bring them to queue 0.
#[test]
fn a_packet_that_an_honest_port_brings_to_the_wrong_worker_finds_its_signpost_all_the_same() {
    let mut lab = Lab::with(forwarded(), workers(4));
    for worker in 0..4 {
        let client = clients(&lab, worker, worker).next().expect("a client");
        lab.passes(WAN, &client.question(), LAN);
        lab.passes(LAN, &client.answer(), WAN);
    }
    for client in clients(&lab, 0, 1).take(50) {
        lab.passes(WAN, &client.question(), LAN);
        lab.arrive_at(2, LAN, &client.answer().frame());
        lab.run();
        let out = lab.collect();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].1.flow(), client.answered());
    }
    let handovers = [HandoverCause::Steer, HandoverCause::Signpost, HandoverCause::Stale].map(|c| lab.handovers(c));
    assert_eq!(handovers, [50, 50, 0]);
    lab.sound();
}

/// A NIC that hashes a first fragment's ports brings it elsewhere than the others.
#[test]
fn fragments_that_an_honest_port_scatters_are_put_together_all_the_same() {
    let mut lab = Lab::with(usual(), workers(4));
    for n in 0..20 {
        let mut p = udp(HOST, 4000 + n, SERVER, 53, &[7; 2500]);
        p.id = n;
        let fragments = p.fragments(1480);
        lab.arrive_at(usize::from(n % 4), LAN, &addressed(LAN, &fragments[1]).frame());
        lab.run();
        lab.arrive_at(usize::from(n / 4 % 4), LAN, &addressed(LAN, &fragments[0]).frame());
        lab.run();
        assert_eq!(lab.collect().len(), 2);
        lab.moved(&["class new original +1", "event new +1"]);
    }
    lab.sound();
}

// ---- Hand-over ------------------------------------------------------------------------------------------------------

#[test]
fn answers_find_the_owner_by_its_signpost() {
    let mut lab = Lab::with(forwarded(), workers(4));
    let clients: Vec<_> = clients(&lab, 2, 1).take(20).collect();
    for client in &clients {
        lab.passes(WAN, &client.question(), LAN);
        let back = lab.passes(LAN, &client.answer(), WAN);
        assert_eq!(back.flow(), client.answered());
    }
    assert_eq!(lab.handovers(HandoverCause::Signpost), 20);
    assert_eq!((lab.signposts(), lab.workers[1].path().signposts.count()), (20, 20));
    assert!(lab.owned().iter().all(|c| c.worker == 2));
    lab.sound();
}

#[test]
fn errors_are_judged_where_the_packet_that_they_quote_belongs() {
    let mut lab = Lab::with(forwarded(), workers(4));
    for client in clients(&lab, 2, 1).take(20) {
        let seen = lab.passes(WAN, &client.question(), LAN);
        let error = lab.passes(LAN, &icmp(WEB, &client.address, 3, 3, [0; 4], &seen.ip), WAN);
        error.assert_quotes(&client.question());
        lab.moved(&["class new original +1", "class related reply +1", "event new +1"]);
    }
    // By its own addresses each arrives anywhere; then the quote's home; then, by its signpost, the owner.
    assert!(lab.handovers(HandoverCause::IcmpError) >= 20);
}

#[test]
fn a_full_ring_drops_with_its_own_reason_and_recovers() {
    let mut lab = Lab::with(usual(), Setup { arrival: Arrival::Anywhere, ..workers(2) });
    let p = addressed(LAN, &udp(HOST, 4000, SERVER, 53, b""));
    let home = lab.home(&tuple(HOST, 4000, SERVER, 53, proto::UDP));
    let other = 1 - home;
    for _ in 0..PACKET_RING + 100 {
        lab.arrive_at(other, LAN, &p.frame());
        lab.step(other);
    }
    assert_eq!(lab.drop_count(DropReason::HandoverFull), 100);
    lab.run();
    assert_eq!(lab.collect().len(), PACKET_RING);
    let n = PACKET_RING;
    lab.moved(&[&format!("class new original +{n}"), "drop handover_full +100", "event new +1"]);
    lab.arrive_at(other, LAN, &p.frame());
    lab.run();
    assert_eq!(lab.collect().len(), 1);
    assert_eq!(lab.pool.live(), 0);
}

/// The signpost was there before the question left, so it is there before the answer: even where the home of the answer
/// has done nothing in between, and however the answer gets there.
#[test]
fn an_answer_finds_the_signpost_that_was_placed_before_its_question_left() {
    for client_of in 0..3 {
        let mut lab = Lab::with(forwarded(), Setup { arrival: Arrival::Anywhere, ..workers(4) });
        let client = clients(&lab, 0, 1).nth(client_of).expect("a client");
        lab.arrive_at(0, WAN, &client.question().frame());
        lab.step(0); // the others sleep
        assert_eq!((lab.collect().len(), lab.owned().len()), (0, 0));
        lab.step(1);
        assert_eq!((lab.signposts(), lab.owned().len()), (1, 0));
        lab.step(0);
        assert_eq!((lab.collect().len(), lab.owned().len()), (1, 1));
        match client_of {
            0 => lab.arrive_at(1, LAN, &client.answer().frame()),
            1 => {
                lab.arrive_at(2, LAN, &client.answer().frame());
                lab.step(2);
            }
            _ => {
                // In fragments, of which another worker hands over the last.
                let mut large = client.answer();
                large.l4 = udp(WEB, 80, &client.address, client.port, &[7; 2000]).l4;
                let fragments = large.fragments(1480);
                let meets = (0..4).find(|&w| w != lab.home(&tuple(WEB, 0, &client.address, 0, proto::UDP)));
                for f in &fragments {
                    lab.arrive_at(meets.expect("another"), LAN, &f.frame());
                }
                lab.step(meets.expect("another"));
            }
        }
        lab.step(1);
        lab.run();
        let out = lab.collect();
        assert_eq!(out.len(), if client_of == 2 { 2 } else { 1 }, "{:?}", lab.drops());
        assert_eq!(out[0].1.src, ip(GATEWAY), "the answer was translated: case {client_of}");
        lab.moved(&["class established reply +1", "class new original +1", "event new +1", "event replied +1"]);
        lab.sound();
    }
}

// ---- Signposts ------------------------------------------------------------------------------------------------------

#[test]
fn whose_reply_tuple_another_worker_knows_to_be_taken_gets_another_port() {
    let mut lab = Lab::with(forwarded(), workers(4));
    let (steer, mut seen) = (lab.workers[0].path().steer.clone(), 0);
    let all: Vec<_> = (0..4).flat_map(|o| (0..4).flat_map(move |h| [(o, h)])).collect();
    for (owner, home) in all {
        for client in clients(&lab, owner, home).take(4) {
            let second = Client { asks: client.asks ^ 1, ..client.clone() };
            let second_owner = second.homes(&steer).0;
            seen += usize::from(second_owner != owner && second_owner != home);
            lab.passes(WAN, &client.question(), LAN);
            let other = lab.passes(WAN, &second.question(), LAN);
            assert_ne!(other.sport, client.port);
            lab.moved(&["class new original +2", "event new +2"]);
            let back = lab.passes(LAN, &client.answer(), WAN);
            assert_eq!(back.flow(), client.answered());
            let answer = addressed(LAN, &udp(WEB, 80, &client.address, other.sport, b"answer"));
            assert_eq!(lab.passes(LAN, &answer, WAN).flow(), second.answered());
            lab.changed();
            lab.sound();
        }
    }
    assert!(seen > 3, "{seen} cases that only a third worker knows of");
}

#[test]
fn no_connection_is_made_whose_home_has_no_room_for_a_signpost() {
    let mut lab = Lab::with(forwarded(), Setup { conntrack_max: 16, ..workers(4) });
    let mut passed = 0;
    for owner in [0, 1, 2] {
        for client in clients(&lab, owner, 3).take(16) {
            passed += lab.send(WAN, &client.question()).len();
        }
    }
    assert_eq!((passed, lab.entries(), lab.workers[3].path().signposts.count()), (16, 16, 16));
    lab.moved(&["class new original +48", "drop signpost_full +32", "event new +16"]);
    lab.sound();
}

/// A gateway of two workers with a connection that 0 owns, and the ring of notes from 0 to 1 full.
fn crowded() -> (Lab, Client) {
    let mut lab = Lab::with(forwarded(), Setup { conntrack_max: 8192, buffers: 16384, ..workers(2) });
    let mut all = clients(&lab, 0, 1);
    let first = all.next().expect("a client");
    lab.passes(WAN, &first.question(), LAN);
    lab.passes(LAN, &first.answer(), WAN);
    lab.crowd(all.map(|client| client.question()));
    (lab, first)
}

#[test]
fn no_connection_is_made_whose_signpost_cannot_be_asked_for() {
    let (mut lab, client) = crowded();
    let next = clients(&lab, 0, 1).nth(NOTE_RING / 2).expect("a client");
    lab.arrive_at(0, WAN, &next.question().frame());
    lab.changed();
    lab.step(0);
    lab.moved(&["class new original +1", "drop signpost_full +1"]);
    assert_eq!((lab.owned().len(), lab.workers[0].path().pending(), lab.pool.live()), (1, 0, 0));
    lab.run();
    lab.wait(Nanos::from_secs(1)); // what could not be taken back at once is now
    assert_eq!((lab.entries(), lab.signposts(), lab.collect().len()), (1, 1, 0));
    lab.sound();
    lab.passes(WAN, &next.question(), LAN);
    lab.passes(LAN, &client.answer(), WAN);
    lab.sound();
}

#[test]
fn packets_of_a_connection_that_is_not_yet_live_wait_behind_its_first_in_order() {
    let mut lab = Lab::with(forwarded(), workers(2));
    let client = clients(&lab, 0, 1).next().expect("a client");
    for n in 0..5 {
        let question = addressed(WAN, &udp(&client.address, client.port, GATEWAY, client.asks, &[n; 8]));
        lab.arrive_at(0, WAN, &question.frame());
        lab.step(0);
    }
    assert_eq!((lab.collect().len(), lab.owned().len(), lab.workers[0].path().pending()), (0, 0, 1));
    lab.run();
    let out: Vec<_> = lab.collect().into_iter().map(|(_, seen)| seen.payload[0]).collect();
    assert_eq!(out, [0, 1, 2, 3, 4]);
    lab.moved(&["class new original +5", "event new +1"]);
    lab.sound();
}

/// Whatever its kind of reassembly, and with packets behind it.
#[test]
fn a_datagram_in_fragments_waits_as_a_whole() {
    for mode in [defrag::Mode::Reassemble, defrag::Mode::Virtual] {
        let setup = Setup { defrag: defrag::Setup { mode, ..defrag::Setup::default() }, ..workers(2) };
        let mut lab = Lab::with(forwarded(), setup);
        let mut seen = 0;
        for client in clients(&lab, 0, 1).take(8) {
            let mut large = client.question();
            large.l4 = udp(&client.address, client.port, GATEWAY, client.asks, &[7; 4000]).l4;
            large.id = client.port;
            let met = lab.home(&tuple(&client.address, 0, GATEWAY, 0, proto::UDP));
            for f in large.fragments(1480) {
                lab.arrive_at(met, WAN, &f.frame());
            }
            lab.step(met);
            lab.step(0);
            lab.arrive_at(0, WAN, &client.question().frame());
            lab.step(0);
            assert_eq!((lab.collect().len(), lab.workers[0].path().pending()), (0, 1));
            lab.run();
            let out = lab.collect();
            assert_eq!(out.len(), 4, "{mode:?}: {:?}", lab.drops());
            assert!(out[..3].iter().all(|(_, seen)| seen.fragment.is_some()) && out[3].1.fragment.is_none());
            assert!(out.iter().all(|(port, seen)| (*port, seen.dst) == (LAN, ip(WEB))));
            lab.passes(LAN, &client.answer(), WAN);
            lab.sound();
            seen += 1;
        }
        assert_eq!((seen, lab.total_drops(), lab.pool.live()), (8, 0, 0));
    }
}

#[test]
fn what_waits_in_vain_is_dropped_and_leaves_nothing() {
    for mode in [defrag::Mode::Reassemble, defrag::Mode::Virtual] {
        let setup = Setup { defrag: defrag::Setup { mode, ..defrag::Setup::default() }, ..workers(2) };
        let mut lab = Lab::with(forwarded(), setup);
        let client = clients(&lab, 0, 1).next().expect("a client");
        let mut large = client.question();
        large.l4 = udp(&client.address, client.port, GATEWAY, client.asks, &[7; 4000]).l4;
        let met = lab.home(&tuple(&client.address, 0, GATEWAY, 0, proto::UDP));
        if met != 0 {
            continue; // the one who sleeps
        }
        for f in large.fragments(1480) {
            lab.arrive_at(met, WAN, &f.frame());
        }
        lab.step(0);
        assert_eq!(lab.pool.live(), 3);
        lab.now = lab.now + Nanos::from_millis(99);
        lab.step(0);
        assert_eq!((lab.pool.live(), lab.entries()), (3, 1));
        lab.now = lab.now + Nanos::from_millis(1);
        lab.step(0);
        lab.moved(&["class new original +1", "drop signpost_timeout +3"]);
        assert_eq!((lab.pool.live(), lab.entries(), lab.leases()), (0, 0, 0));
        // The answer comes late, and is taken back.
        lab.step(1);
        lab.run();
        assert_eq!((lab.entries(), lab.signposts(), lab.collect().len()), (0, 0, 0));
        lab.passes(WAN, &client.question(), LAN);
        lab.sound();
    }
}

fn only_client(client: &Client) -> ConnFilter {
    let source = format!("{}/32", client.address).parse().expect("prefix");
    ConnFilter { source: Some(source), sport: Some(client.port), ..ConnFilter::default() }
}

/// Ends the connection of `client` at worker 0, without any other worker moving.
fn end_quietly(lab: &mut Lab, client: &Client) {
    let entries = lab.entries();
    let filter = only_client(client);
    lab.tell(0, Command::Flush { cursor: 0, filter });
    lab.step(0);
    assert_eq!(lab.entries(), entries, "it stays until its signpost is gone");
}

#[test]
fn a_signpost_that_cannot_be_taken_back_at_once_is_taken_back_later() {
    let (mut lab, client) = crowded();
    end_quietly(&mut lab, &client);
    lab.run();
    lab.wait(Nanos::from_secs(1));
    assert_eq!((lab.entries(), lab.signposts()), (0, 0));
    lab.collect();
    lab.sound();
}

#[test]
fn a_signpost_taken_back_late_is_not_that_of_the_connection_that_follows() {
    let (mut lab, client) = crowded();
    let before = lab.entries();
    end_quietly(&mut lab, &client);
    lab.step(1); // reads its notes: there is room again
    lab.arrive_at(0, WAN, &client.question().frame());
    lab.step(0);
    assert_eq!(lab.entries(), before + 1);
    lab.run();
    lab.wait(Nanos::from_secs(1));
    lab.collect();
    assert_eq!((lab.entries(), lab.signposts()), (1, 1));
    lab.sound();
    lab.passes(LAN, &client.answer(), WAN);
}

/// Whenever it is tried again: also while the connection that follows waits for that very signpost.
#[test]
fn a_signpost_is_not_taken_back_from_the_connection_that_waits_for_it() {
    for late in [0, 50, 100, 150, 200, 250, 300] {
        let (mut lab, client) = crowded();
        end_quietly(&mut lab, &client);
        lab.step(1); // there is room again
        lab.now = lab.now + Nanos::from_millis(late);
        lab.arrive_at(0, WAN, &client.question().frame());
        lab.step(0);
        for _ in 0..9 {
            lab.now = lab.now + Nanos::from_millis(10);
            lab.step(0);
        }
        assert_eq!(lab.workers[0].path().pending(), 1);
        lab.run();
        assert_eq!(lab.collect().len(), 1);
        lab.sound();
        lab.passes(LAN, &client.answer(), WAN);
    }
}

/// Worker 1 still has the signpost: its ring of notes is full, the one that takes it back is not in it. A connection of the
/// answer's own would share its tuple with what worker 0 may begin.
#[test]
fn a_packet_that_a_signpost_leads_astray_comes_back_and_begins_nothing_while_that_stands() {
    let (mut lab, client) = crowded();
    end_quietly(&mut lab, &client);
    lab.changed();
    let handovers = |lab: &Lab| (lab.handovers(HandoverCause::Signpost), lab.handovers(HandoverCause::Stale));
    let before = handovers(&lab).0;
    lab.arrive_at(1, LAN, &client.answer().frame());
    lab.step(1);
    assert_eq!(handovers(&lab), (before + 1, 0));
    lab.step(0);
    assert_eq!(handovers(&lab), (before + 1, 1));
    lab.step(1);
    assert_eq!(handovers(&lab), (before + 1, 1), "no ping-pong");
    lab.moved(&["class new original +1", "drop signpost_clash +1"]);
    lab.wait(Nanos::from_secs(1));
    lab.collect();
    lab.changed();
    lab.passes(LAN, &client.answer(), WAN);
    lab.moved(&["class new original +1", "event new +1"]); // lan may open connections to wan
    lab.sound();
}

#[test]
fn no_note_is_lost_while_a_worker_sleeps() {
    let mut lab = Lab::with(forwarded(), Setup { conntrack_max: 8192, ..workers(4) });
    for home in 1..4 {
        for client in clients(&lab, 0, home).take(500) {
            lab.arrive_at(0, WAN, &client.question().frame());
        }
        lab.run();
    }
    assert_eq!((lab.entries(), lab.signposts(), lab.collect().len()), (1500, 1500, 1500));
    let end = lab.now + Nanos::from_secs(40);
    while lab.now < end {
        lab.now = lab.now + Nanos::from_millis(100);
        lab.workers[0].step(lab.now);
    }
    assert_eq!(lab.entries(), 0, "all have expired, and their signposts' way out was free");
    lab.run();
    assert_eq!(lab.signposts(), 0);
    for port in [LAN, WAN] {
        for w in &mut lab.workers {
            while let Some(buf) = w.io().sent(port) {
                assert!(!buf.is_chained());
            }
        }
    }
    assert_eq!(lab.pool.live(), 0);
}
