//! The workers' histograms of burst time and of packets' time in the box, as quantiles.
//!
//! The workers count in buckets for ever; this copies the counts into `hdrhistogram`'s, whose buckets are the same, and
//! asks those. A reset writes nothing that a worker owns: it keeps what was counted and takes it off from then on.
//!
//! *Life-cycle*: a [`Reset`] with the gateway. *Threads*: control's tokio thread; counters are read while workers write
//! them, so a quantile may miss the last bursts. *Limits*: as long as [`MAX_NS`] counts what is longer.

use std::time::Instant;

use dataplane::api::histogram::{self, MAX_NS};
use dataplane::api::stats::WorkerStats;
use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::api::wire;
use crate::gateway::Gateway;

/// Digits that a quantile is right to: those of the workers' buckets.
const DIGITS: u8 = 2;

/// Durations of one worker, or of all; nanoseconds.
#[derive(Clone, Debug)]
struct Times {
    burst: Histogram<u64>,
    packet: Histogram<u64>,
}

/// What was counted at the last reset.
#[derive(Debug)]
struct Before {
    workers: Vec<Times>,
    when: Instant,
}

/// Since when counts are shown.
#[derive(Debug, Default)]
pub struct Reset(Mutex<Option<Before>>);

/// Quantiles by worker and of all since the last reset, which this is where `reset` says so.
pub fn latency(g: &Gateway, reset: bool) -> wire::Latency {
    let now: Vec<Times> = g.workers.stats().map(Times::of).collect();
    let mut before = g.latency_reset.0.lock();
    let mut since = now.clone();
    if let Some(before) = &*before {
        since.iter_mut().zip(&before.workers).for_each(|(times, before)| times.take_off(before));
    }
    let total = since.iter().fold(Times::none(), Times::and);
    let workers = since.iter().enumerate().map(|(worker, t)| wire::WorkerLatency { worker, times: t.quantiles() });
    let answer = wire::Latency {
        seconds: before.as_ref().map_or(g.started, |b| b.when).elapsed().as_secs_f64(),
        workers: workers.collect(),
        total: total.quantiles(),
    };
    if reset {
        *before = Some(Before { workers: now, when: Instant::now() });
    }
    answer
}

impl Times {
    fn none() -> Self {
        Self { burst: empty(), packet: empty() }
    }

    fn of(stats: &WorkerStats) -> Self {
        Self { burst: copy(&stats.burst), packet: copy(&stats.latency) }
    }

    fn and(mut self, other: &Self) -> Self {
        // Equal bounds: nothing can be out of them.
        let _ = self.burst.add(&other.burst);
        let _ = self.packet.add(&other.packet);
        self
    }

    fn take_off(&mut self, before: &Self) {
        // Counts only grow, and the bounds are equal: it cannot fail.
        let _ = self.burst.subtract(&before.burst);
        let _ = self.packet.subtract(&before.packet);
    }

    fn quantiles(&self) -> wire::Times {
        wire::Times { burst: quantiles(&self.burst), packet: quantiles(&self.packet) }
    }
}

fn empty() -> Histogram<u64> {
    // Invariant: constants that it takes; a test makes one.
    Histogram::new_with_bounds(1, MAX_NS, DIGITS).expect("bounds of two digits")
}

fn copy(counts: &histogram::Histogram) -> Histogram<u64> {
    let mut copy = empty();
    for (ns, n) in counts.counts() {
        copy.saturating_record_n(ns, n);
    }
    copy
}

fn quantiles(h: &Histogram<u64>) -> wire::Quantiles {
    let us = |ns: u64| (!h.is_empty()).then_some(ns as f64 / 1e3);
    let at = |quantile: f64| us(h.value_at_quantile(quantile));
    wire::Quantiles {
        count: h.len(),
        min_us: us(h.min()),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        p9999_us: at(0.9999),
        max_us: us(h.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_are_those_of_the_workers() {
        // What lies in the workers' buckets, below which no other value is, lies there in hdrhistogram's.
        let theirs = histogram::Histogram::new();
        let ours = empty();
        let mut ns = 0;
        while ns <= MAX_NS {
            theirs.record(ns, 1);
            ns += 1 + ns / 100;
        }
        theirs.record(MAX_NS, 1);
        assert!(theirs.counts().count() > 1900);
        for (shortest, _) in theirs.counts() {
            assert_eq!(ours.lowest_equivalent(shortest), shortest);
            assert!(shortest == 0 || ours.lowest_equivalent(shortest - 1) < shortest);
        }
    }

    #[test]
    fn quantiles_are_right_to_a_hundredth() {
        let counts = histogram::Histogram::new();
        (1..=100_000).for_each(|us| counts.record(us * 1000, 1));
        let q = quantiles(&copy(&counts));
        let all = [q.min_us, q.p50_us, q.p90_us, q.p99_us, q.p999_us, q.p9999_us, q.max_us].map(Option::unwrap);
        let exact = [1.0, 50_000.0, 90_000.0, 99_000.0, 99_900.0, 99_990.0, 100_000.0];
        assert_eq!(q.count, 100_000);
        for (got, exact) in all.into_iter().zip(exact) {
            assert!((got - exact).abs() <= exact / 100.0, "{got} for {exact}");
        }
    }

    #[test]
    fn what_was_counted_before_is_taken_off() {
        let stats = WorkerStats::new(1);
        stats.burst.record(900, 5);
        stats.latency.record(900, 50);
        let before = Times::of(&stats);
        stats.burst.record(5000, 1);
        let mut since = Times::of(&stats);
        since.take_off(&before);
        let q = since.quantiles();
        assert_eq!((q.burst.count, q.packet.count, q.packet.p50_us), (1, 0, None));
        assert!(q.burst.min_us.is_some_and(|us| us >= 4.9), "{q:?}");
    }
}
