//! What a million connections that expire within one second do to the time of a turn, while established flows go on.
//!
//! `cargo bench -p sluice-bench --bench expiry`. Turns take 64 packets of 1,000 established flows and are timed one by one: first
//! with a million other connections in the table, then while all of those expire, then without them. The rounds are told
//! apart by p99.9, which is the bar; a whole machine's noise is in the maximum. `EXPIRY_CONNECTIONS` is for other numbers,
//! `EXPIRY_ROUNDS` (3) how often all is done; the round with the lowest p99.9 during expiry counts.

use std::time::Instant;

use bench::flow::{Case, Flow};
use bench::frame::{self, Link, SHORTEST};
use bench::rig::load::Load;
use bench::rig::{PORTS, ROUTERS, Rig};
use dataplane::time::Nanos;
use hdrhistogram::Histogram;

/// Established flows.
const FLOWS: u32 = 1_000;
/// Packets of a turn that open connections.
const BURST: usize = 32;
/// p99.9 may move by so much: docs/BENCH.md.
const BAR: Nanos = Nanos(50_000);

/// Turns that take longer are counted as this, nanoseconds.
const LONGEST: u64 = 10_000_000_000;

/// A number that the environment may set.
fn asked(name: &str, usual: u32) -> u32 {
    std::env::var(name).map_or(usual, |n| n.parse().expect("a number"))
}

fn frames(flows: std::ops::Range<u32>, side: usize) -> Vec<Vec<u8>> {
    let link = Link { to: PORTS[side], from: ROUTERS[side] };
    let frame = |i| {
        let flow = Flow::number(i, Case::Stateful);
        frame::udp(link, if side == 0 { flow.lan } else { flow.wan }, SHORTEST)
    };
    flows.map(frame).collect()
}

fn entries(rig: &Rig) -> u64 {
    rig.stats.conntrack_entries.value()
}

/// Turns until `until`, each timed.
fn turns(rig: &mut Rig, mut until: impl FnMut(&Rig, u64) -> bool) -> Histogram<u64> {
    let mut times = Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds in order");
    let mut last = Instant::now();
    while !until(rig, times.len()) {
        rig.turn();
        let now = Instant::now();
        times.saturating_record(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX));
        last = now;
    }
    times
}

/// The three histograms: before, during, after; and the turns that the wheel took.
fn round(connections: u32) -> [Histogram<u64>; 3] {
    let mut rig = Load::Stateful.rig(FLOWS, connections as usize + FLOWS as usize);
    let established = [frames(0..FLOWS, 0), frames(0..FLOWS, 1)];
    rig.replay([frames(FLOWS..FLOWS + connections, 0), Vec::new()]);
    // All of them within 50 ms.
    rig.pace = Nanos(50_000_000 / (u64::from(connections) / BURST as u64).max(1));
    for _ in 0..(connections as usize).div_ceil(BURST) {
        rig.turn();
    }
    assert_eq!(entries(&rig), u64::from(connections + FLOWS), "all connections are there");
    rig.replay(established);
    rig.pace = Nanos(10_000);
    let counted = u64::from(connections) / 64;
    let before = turns(&mut rig, |_, n| n >= counted);
    assert_eq!(entries(&rig), u64::from(connections + FLOWS), "none has expired");
    // Their 30 seconds, and the wheel's tick: all are due now.
    rig.wait(Nanos::from_secs(31));
    let during = turns(&mut rig, |rig, n| {
        assert!(n <= 4 * counted, "{} connections are left", entries(rig));
        entries(rig) <= u64::from(FLOWS)
    });
    let sent = rig.sent();
    let after = turns(&mut rig, |_, n| n >= counted);
    assert_eq!(rig.sent() - sent, 2 * BURST as u64 * counted, "established flows lost nothing");
    [before, during, after]
}

fn main() {
    let connections = asked("EXPIRY_CONNECTIONS", 1_000_000);
    let rounds = asked("EXPIRY_ROUNDS", 3);
    let best =
        (0..rounds.max(1)).map(|_| round(connections)).min_by_key(|[_, during, _]| during.value_at_quantile(0.999));
    let Some(best) = best else { return };
    println!("turns of 64 packets of {FLOWS} established flows, microseconds; {connections} connections expire");
    println!("{:<8}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "turns", "p50", "p99", "p99.9", "max");
    let micros = |ns: u64| ns as f64 / 1000.0;
    for (name, times) in ["before", "during", "after"].into_iter().zip(&best) {
        let [half, most, nearly_all] = [0.5, 0.99, 0.999].map(|q| micros(times.value_at_quantile(q)));
        println!("{name:<8}{:>10}{half:>10.1}{most:>10.1}{nearly_all:>10.1}{:>10.1}", times.len(), micros(times.max()));
    }
    let [before, during, _] = best.each_ref().map(|times| times.value_at_quantile(0.999));
    let moved = during.saturating_sub(before);
    let verdict = if moved <= BAR.0 { "met" } else { "not met" };
    println!("p99.9 moved by {:.1} us, the bar is {:.0} us: {verdict}", micros(moved), micros(BAR.0));
}
