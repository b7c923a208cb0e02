//! How long packets were in the box, as the worker counts it from the one time that each turn is given.
//!
//! ```text
//!   10.0.0.2 ── lan [ gateway ] wan ── 203.0.113.5
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::histogram::Histogram;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

/// One turn of `worker`, `ns` nanoseconds after the last one.
fn turn(lab: &mut Lab, worker: usize, ns: u64) {
    lab.now = lab.now + Nanos(ns);
    lab.workers[worker].step(lab.now);
}

/// Durations and how many, since `before`.
fn since(h: &Histogram, before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let had = |ns| before.iter().find(|(b, _)| *b == ns).map_or(0, |(_, n)| *n);
    h.counts().map(|(ns, n)| (ns, n - had(ns))).filter(|(_, n)| *n > 0).collect()
}

#[test]
fn each_packet_of_a_turn_was_in_the_box_for_as_long_as_the_turn_took() {
    let mut lab = Lab::new(usual());
    let stats = lab.stats[0].clone();
    let (bursts, packets): (Vec<_>, Vec<_>) = (stats.burst.counts().collect(), stats.latency.counts().collect());
    turn(&mut lab, 0, 100); // whatever came before is charged
    for port in [5000, 5001, 5002] {
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, port, SERVER, 53, b"")).frame());
    }
    // One that is dropped was there as long.
    lab.arrive(WAN, &addressed(WAN, &udp(SERVER, 53, HOST, 7, b"")).frame());
    turn(&mut lab, 0, 5_000_000); // nothing was in the box before this turn
    assert_eq!(lab.sent(WAN).len(), 3);
    turn(&mut lab, 0, 200);
    assert_eq!(since(&stats.burst, &bursts), [(200, 1)]);
    assert_eq!(since(&stats.latency, &packets), [(200, 4)]);
    turn(&mut lab, 0, 7_000); // the turn before found nothing
    assert_eq!(since(&stats.latency, &packets), [(200, 4)]);
}

#[test]
fn a_packet_that_is_handed_over_is_counted_at_both_workers() {
    let mut lab = Lab::with(usual(), Setup { workers: 2, arrival: Arrival::Anywhere, ..Setup::default() });
    let steer = lab.workers[0].path().steer.clone();
    let at_home_at_1 = |port: &u16| steer.home(&tuple(HOST, *port, SERVER, 53, proto::UDP)) == 1;
    let port = (5000..6000).find(at_home_at_1).expect("one of a thousand");
    let stats = lab.stats.clone();
    let before: Vec<Vec<_>> = stats.iter().map(|s| s.latency.counts().collect()).collect();
    turn(&mut lab, 0, 100);
    turn(&mut lab, 1, 100);
    lab.arrive_at(0, LAN, &addressed(LAN, &udp(HOST, port, SERVER, 53, b"")).frame());
    turn(&mut lab, 0, 100);
    turn(&mut lab, 0, 130);
    turn(&mut lab, 1, 3_000); // it waited in the ring
    turn(&mut lab, 1, 170);
    assert_eq!(since(&stats[0].latency, &before[0]), [(130, 1)]);
    assert_eq!(since(&stats[1].latency, &before[1]), [(170, 1)]);
}
