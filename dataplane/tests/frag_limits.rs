//! Stories of too many fragments: what they cost those who send them, and nobody else.
//! The topology is drawn in `common/lab.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::{Action, Match};
use dataplane::api::stats::FragmentResult;
use dataplane::defrag;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

fn small(workers: usize) -> Setup {
    let defrag = defrag::Setup { memory: 1 << 20, ..defrag::Setup::default() };
    Setup { workers, defrag, arrival: Arrival::Anywhere, ..Setup::default() }
}

/// The first fragment of a datagram from a source that is nobody's.
fn spoofed(n: u32) -> Pkt {
    let src = std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).to_string();
    let mut p = udp(&src, 4000, SERVER, 53, &[7; 8]);
    (p.id, p.fragment) = (n as u16, Some((0, true)));
    addressed(LAN, &p)
}

fn result(lab: &Lab, result: FragmentResult) -> u64 {
    lab.stats.iter().map(|s| s.fragments[result as usize].value()).sum()
}

fn memory(lab: &Lab) -> Vec<u64> {
    lab.stats.iter().map(|s| s.fragment_memory.value()).collect()
}

#[test]
fn a_flood_from_spoofed_sources_leaves_a_slow_datagram_and_a_ping_alone() {
    for workers in [1, 4] {
        let mut spec = usual();
        let from_anywhere = Match { from: vec![LAN_ZONE], ..Match::default() };
        spec.rules.push(rule("all", from_anywhere, Action::Accept));
        let mut lab = Lab::with(spec, small(workers));
        let slow = addressed(LAN, &udp(HOST, 4000, SERVER, 2049, &[7; 6000])).fragments(1480);
        let (last, begun) = slow.split_last().expect("fragments");
        for f in &begun[..2] {
            lab.arrive(LAN, &f.frame());
        }
        lab.run();
        let mut n = 0;
        for round in 0..20 {
            for _ in 0..500 {
                n += 1;
                lab.arrive(LAN, &spoofed(n).frame());
                if n % 100 == 0 {
                    lab.run();
                }
            }
            let mut ping = icmp(HOST, SERVER, 8, 0, [0, 7, 0, 1], &[0xa5; 4000]);
            ping.id = round;
            for f in addressed(LAN, &ping).fragments(1480) {
                lab.arrive(LAN, &f.frame());
            }
            lab.run();
            assert_eq!(lab.sent(WAN).len(), 3, "ping {round}: {:?}", lab.drops());
            assert!(memory(&lab).iter().all(|&m| m <= 1 << 20), "{:?}", memory(&lab));
        }
        for f in begun[2..].iter().chain([last]) {
            lab.arrive(LAN, &f.frame());
        }
        lab.run();
        assert_eq!(lab.sent(WAN).len(), slow.len(), "{:?}", lab.drops());
        let limit = lab.drop_count(DropReason::FragmentLimit);
        assert!(limit > 5000, "{limit}");
        assert_eq!((result(&lab, FragmentResult::Limit), lab.total_drops()), (limit, limit));
        lab.wait(Nanos::from_secs(90));
        assert_eq!((lab.pool.live(), memory(&lab)), (0, vec![0; workers]));
        assert_eq!(result(&lab, FragmentResult::Timeout) + limit, 10_000);
    }
}

#[test]
fn a_source_that_floods_loses_its_own_fragments() {
    let mut lab = Lab::with(usual(), small(1));
    lab.arrive(LAN, &spoofed(1).frame());
    for n in 0..1000 {
        let mut p = udp(HOST, 4000, SERVER, 53, &[7; 1472]);
        (p.id, p.fragment) = (n, Some((0, true)));
        lab.arrive(LAN, &addressed(LAN, &p).frame());
        lab.run();
    }
    let waiting = lab.stats[0].fragment_queues.value();
    let lost = lab.drop_count(DropReason::FragmentShare);
    assert_eq!((waiting + lost, lab.pool.live() as u64, lab.total_drops()), (1001, waiting, lost));
    assert!(waiting < 100, "{waiting}");
    assert_eq!(result(&lab, FragmentResult::Share), lost);
    // Its youngest are still there.
    let mut end = udp(HOST, 4000, SERVER, 53, &[7; 1472]);
    (end.id, end.fragment) = (999, Some((1480, false)));
    lab.arrive(LAN, &addressed(LAN, &end).frame());
    lab.run();
    assert_eq!(result(&lab, FragmentResult::Reassembled), 2);
    lab.wait(Nanos::from_secs(90));
    assert_eq!(lab.drop_count(DropReason::FragmentTimeout), waiting - 1);
}

#[test]
fn a_datagram_in_more_fragments_than_one_may_have_is_dropped_whole() {
    let mut lab = Lab::with(usual(), small(2));
    let pieces = addressed(LAN, &udp(HOST, 4000, SERVER, 53, &[7; 1000])).fragments(8);
    for f in &pieces[..=defrag::TRAIN] {
        lab.arrive(LAN, &f.frame());
    }
    lab.run();
    lab.moved(&[&format!("drop fragment_count +{}", defrag::TRAIN + 1)]);
    assert_eq!(lab.pool.live(), 0);
}
