//! Hand-over by burst: what travels between workers, in which order, and that it makes no difference.
//!
//! ```text
//!   any worker ── burst ──→ ring, one write ──→ owner: chunk, notes, lookups
//! ```

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeMap;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::api::stats::HandoverCause;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag;
use dataplane::io::PortIdx;
use dataplane::steer::PACKET_RING;

const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";

/// Plain flows out, and ports of the gateway that lead inside: their answers follow signposts.
fn both() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8000, WEB, Some(80));
    spec.nat[0].matches.dport = vec![8000..=8063];
    spec
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Packet `nth` of flow `n`, its number in the payload; where it comes in.
fn packet(n: u16, nth: u16) -> (PortIdx, Pkt) {
    let data = [n.to_be_bytes(), nth.to_be_bytes()].concat();
    let port = 4000 + n;
    let (at, p) = match n % 6 {
        0 => (LAN, udp("10.0.0.2", port, SERVER, 53, &data)),
        1 => (LAN, udp("fd00:1::2", port, "2001:db8:5::5", 53, &data)),
        // Nobody but the other side can tell these apart from what it has said: they are seen as one direction's.
        2 => (WAN, udp("203.0.113.7", port, GATEWAY, 8000 + n % 64, &data)),
        3 => (LAN, udp(WEB, 80, "203.0.113.7", port - 1, &data)),
        4 => (LAN, icmp("10.0.0.3", SERVER, 8, 0, [(port >> 8) as u8, port as u8, 0, 1], &data)),
        _ => (LAN, other("10.0.0.4", &format!("203.0.113.{}", n % 250), 99, &data)),
    };
    (at, addressed(at, &p))
}

/// The flow and number of a packet that has left.
fn number(seen: &Seen) -> (u16, u16) {
    let data = &seen.payload[seen.payload.len() - 4..];
    (be16_at(data, 0), be16_at(data, 2))
}

/// Each flow comes in at a worker of its own choice, as bursts of all flows mixed; turns are taken in any order.
#[test]
fn packets_of_a_connection_keep_their_order_through_bursts() {
    const FLOWS: u16 = 48;
    let mut led = 0;
    for workers in [2, 4, 8] {
        let setup = Setup { workers, arrival: Arrival::Anywhere, buffers: 16384, ..Setup::default() };
        let mut lab = Lab::with(both(), setup);
        let mut random = Random(workers as u64);
        let mut sent = vec![0; usize::from(FLOWS)];
        // The first of each, so that answers have something to answer.
        for n in 0..FLOWS {
            let (at, p) = packet(n, 0);
            lab.arrive(at, &p.frame());
            lab.run();
            sent[usize::from(n)] = 1;
        }
        assert_eq!(lab.collect().len(), usize::from(FLOWS), "{:?}", lab.drops());
        let mut last = BTreeMap::new();
        for _ in 0..60 {
            for _ in 0..random.below(200) {
                let n = random.below(usize::from(FLOWS)) as u16;
                let nth = &mut sent[usize::from(n)];
                let (at, p) = packet(n, *nth);
                *nth += 1;
                lab.arrive_at(usize::from(n * 7 + n / 6) % workers, at, &p.frame());
            }
            for _ in 0..random.below(12) {
                lab.step(random.below(workers));
            }
            for (_, seen) in lab.collect() {
                let (flow, nth) = number(&seen);
                let before = last.insert(flow, nth).unwrap_or(0);
                assert_eq!(nth, before + 1, "flow {flow} on {workers} workers");
            }
        }
        lab.run();
        for (_, seen) in lab.collect() {
            let (flow, nth) = number(&seen);
            assert_eq!(last.insert(flow, nth).unwrap_or(0) + 1, nth);
        }
        assert!((0..FLOWS).all(|n| last.get(&n).copied().unwrap_or(0) + 1 == sent[usize::from(n)]), "none is lost");
        assert!(lab.handovers(HandoverCause::Steer) > 1000, "{}", lab.handovers(HandoverCause::Steer));
        led += lab.handovers(HandoverCause::Signpost);
        assert_eq!((lab.handovers(HandoverCause::Stale), lab.total_drops(), lab.pool.live()), (0, 0, 0));
        lab.sound();
    }
    assert!(led > 500, "{led} were led by signposts");
}

/// A datagram in fragments travels with what is known of it, the others as frames: one ring, one order.
#[test]
fn datagrams_in_fragments_keep_their_place_among_whole_ones() {
    for mode in [defrag::Mode::Reassemble, defrag::Mode::Virtual] {
        let mut seen = 0;
        for port in 4000..4040 {
            let defrag = defrag::Setup { mode, ..defrag::Setup::default() };
            let setup = Setup { workers: 4, arrival: Arrival::Anywhere, defrag, ..Setup::default() };
            let mut lab = Lab::with(usual(), setup);
            // All come in where fragments are put together, which is not their home.
            let met = lab.home(&tuple("10.0.0.2", 0, SERVER, 0, proto::UDP));
            if met == lab.home(&tuple("10.0.0.2", port, SERVER, 53, proto::UDP)) {
                continue;
            }
            seen += 1;
            let mut expected = Vec::new();
            for n in 0..24u8 {
                let len = if n % 3 == 1 { 2000 } else { 40 };
                let p = addressed(LAN, &udp("10.0.0.2", port, SERVER, 53, &vec![n; len]));
                let pieces = if len == 40 { vec![p] } else { Pkt { id: u16::from(n), ..p }.fragments(1480) };
                for f in pieces {
                    lab.arrive_at(met, LAN, &f.frame());
                    expected.push(n);
                }
            }
            lab.run();
            let order: Vec<_> = lab.collect().iter().map(|(_, s)| *s.payload.last().expect("data")).collect();
            assert_eq!(order, expected, "{mode:?}");
            assert_eq!(lab.pool.live(), 0);
        }
        assert!(seen > 10);
    }
}

/// Frames say nothing of what their first worker has found out: the owner finds the same.
#[test]
fn what_is_wrong_with_a_packet_is_found_wherever_it_arrives() {
    for (what, p, reason) in [
        ("checksum", udp("10.0.0.2", 4000, SERVER, 53, b"data").broken_checksum(), DropReason::PolicyDefault),
        (
            "checksum",
            tcp("10.0.0.2", 4000, SERVER, 53, ACK, 1, 2, b"data").broken_checksum(),
            DropReason::PolicyDefault,
        ),
        ("ttl", udp("10.0.0.2", 4000, SERVER, 53, b"data").ttl(1), DropReason::TtlExpired),
    ] {
        let mut expected = None;
        for worker in 0..4 {
            let mut lab = Lab::with(usual(), Setup { workers: 4, arrival: Arrival::Anywhere, ..Setup::default() });
            lab.arrive_at(worker, LAN, &addressed(LAN, &p).frame());
            lab.run();
            let out: Vec<_> = lab.collect().iter().map(|(port, seen)| (*port, seen.flow())).collect();
            let found = (out, lab.changed());
            let expected = expected.get_or_insert_with(|| found.clone());
            assert_eq!(&found, expected, "{what} at {worker}");
            assert!(reason == DropReason::PolicyDefault || lab.drop_count(reason) == 1, "{:?}", lab.drops());
        }
    }
}

/// Ethernet pads short frames; what travels is without.
#[test]
fn padding_does_not_travel() {
    let p = addressed(LAN, &udp("10.0.0.2", 4000, SERVER, 53, b"a"));
    for worker in 0..4 {
        let mut lab = Lab::with(usual(), Setup { workers: 4, arrival: Arrival::Anywhere, ..Setup::default() });
        for _ in 0..3 {
            let mut frame = p.frame();
            frame.resize(60, 0x55);
            lab.arrive_at(worker, LAN, &frame);
            lab.run();
        }
        let out = lab.sent(WAN);
        assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [p.frame().len(); 3]);
    }
}

/// The same frames as on one worker, with the same counts: which worker they came to matters for hand-overs alone.
#[test]
fn several_workers_do_as_one_does() {
    let story = |workers| {
        let setup = Setup { workers, arrival: Arrival::Anywhere, buffers: 16384, ..Setup::default() };
        let mut lab = Lab::with(both(), setup);
        let mut left = Vec::new();
        for nth in 0..20 {
            for answers in [false, true] {
                let packets: Vec<_> = (0..60).filter(|n| (n % 6 == 3) == answers).map(|n| packet(n, nth)).collect();
                let out = lab.stream(packets, |lab, (at, p)| lab.arrive(at, &p.frame()));
                left.extend(out.iter().map(|(port, seen)| (*port, number(seen), seen.ip.clone())));
            }
        }
        left.sort_by_key(|(port, n, _)| (port.0, *n));
        lab.sound();
        (left, lab.changed(), lab.owned().len())
    };
    let one = story(1);
    assert_eq!((one.0.len(), one.2), (60 * 20, 50));
    for workers in [2, 4, 8] {
        assert_eq!(story(workers), one, "{workers} workers");
    }
}

/// A burst that finds too little room loses its end, and is counted so.
#[test]
fn a_burst_that_does_not_fit_loses_its_last_packets() {
    let mut lab =
        Lab::with(usual(), Setup { workers: 2, buffers: 8192, arrival: Arrival::Anywhere, ..Setup::default() });
    let home = lab.home(&tuple("10.0.0.2", 4000, SERVER, 53, proto::UDP));
    let packets = PACKET_RING + 50;
    for n in 0..packets {
        let p = addressed(LAN, &udp("10.0.0.2", 4000, SERVER, 53, &(n as u32).to_be_bytes()));
        lab.arrive_at(1 - home, LAN, &p.frame());
    }
    while lab.workers[1 - home].io().waiting() > 0 {
        lab.step(1 - home);
    }
    assert_eq!(lab.drop_count(DropReason::HandoverFull), 50);
    assert_eq!(lab.handovers(HandoverCause::Steer), PACKET_RING as u64);
    lab.run();
    let out: Vec<_> =
        lab.collect().iter().map(|(_, s)| u32::from_be_bytes(*s.payload.first_chunk().expect("4"))).collect();
    assert_eq!(out, (0..PACKET_RING as u32).collect::<Vec<_>>());
    assert_eq!(lab.pool.live(), 0);
}
