//! [`Histogram`]: durations counted in log-linear buckets, as HdrHistogram lays them out with two significant digits.
//!
//! Durations below 256 ns have a bucket each; above, each doubling has 128 buckets of equal width, so a value is told from
//! its bucket to within 1 in 128. Control copies the counts into an `hdrhistogram::Histogram`, whose buckets for
//! 1..=[`MAX_NS`] are these.
//!
//! *Life-cycle*: made with the worker's statistics. *Threads*: one writer, many readers, as all [`Counter`]s.
//! *Limits*: what is longer than [`MAX_NS`] counts as that long; 27 KB each, of which a worker in steady state touches a
//! few cache lines.

use super::stats::Counter;

/// Longest duration that is told from longer ones, nanoseconds: 10 s.
pub const MAX_NS: u64 = 10_000_000_000;

/// Durations in their buckets.
#[derive(Debug)]
pub struct Histogram {
    lines: Box<[Line]>,
    sum_ns: Counter,
}

/// Buckets that share cache lines with each other, and with nothing else.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([Counter; LINE]);

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        let lines = BUCKETS.div_ceil(LINE as u64);
        Self { lines: (0..lines).map(|_| Line::default()).collect(), sum_ns: Counter::default() }
    }

    /// Counts `n` durations of `ns` nanoseconds. Only the owner calls this.
    #[inline]
    pub fn record(&self, ns: u64, n: u64) {
        let bucket = usize::try_from(bucket_of(ns)).unwrap_or(usize::MAX);
        // Invariant: below BUCKETS, for which there are lines.
        if let Some(counter) = self.lines.get(bucket / LINE).and_then(|line| line.0.get(bucket % LINE)) {
            counter.add(n);
        }
        self.sum_ns.add(ns.wrapping_mul(n));
    }

    /// The buckets that hold any, in order: their shortest duration, nanoseconds, and how many.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counters = self.lines.iter().flat_map(|line| &line.0);
        counters.zip(0..BUCKETS).map(|(n, bucket)| (shortest_in(bucket), n.value())).filter(|(_, n)| *n > 0)
    }

    /// All durations together, nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.value()
    }

    /// Where the buckets lie.
    #[cfg(test)]
    pub(super) fn memory(&self) -> std::ops::Range<*const u8> {
        let range = self.lines.as_ptr_range();
        range.start.cast()..range.end.cast()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of the bucket of `ns` nanoseconds.
const fn bucket_of(ns: u64) -> u64 {
    let ns = if ns > MAX_NS { MAX_NS } else { ns };
    // Bits that are dropped so that 8 remain; as many doublings lie below.
    let doubling = (u64::BITS - HALF_BITS - 1).saturating_sub((ns | (2 * HALF - 1)).leading_zeros());
    doubling as u64 * HALF + (ns >> doubling)
}

/// The shortest duration in `bucket`, nanoseconds.
const fn shortest_in(bucket: u64) -> u64 {
    match (bucket / HALF).checked_sub(1) {
        None => bucket,
        Some(doubling) => (HALF + bucket % HALF) << doubling,
    }
}

/// Buckets for each doubling: two significant digits ask for a resolution of 1 in 100 or better.
const HALF: u64 = 1 << HALF_BITS;
const HALF_BITS: u32 = 7;

const BUCKETS: u64 = bucket_of(MAX_NS) + 1;

/// Counters in the space that the prefetcher takes as one: two cache lines.
const LINE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// The durations at and around which buckets change.
    fn edges() -> impl Iterator<Item = u64> {
        let powers = (0..34).map(|bits| 1_u64 << bits);
        powers.flat_map(|p| [p.saturating_sub(1), p, p + 1, p + p / 3]).filter(|&ns| ns <= MAX_NS).chain([0, MAX_NS])
    }

    #[test]
    fn a_duration_is_told_from_its_bucket_to_within_one_percent() {
        for ns in edges() {
            let shortest = shortest_in(bucket_of(ns));
            assert!(shortest <= ns && ns - shortest <= ns / 128, "{ns} in the bucket of {shortest}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(shortest_in(bucket)), bucket);
            assert_eq!(bucket_of((shortest_in(bucket + 1) - 1).min(MAX_NS)), bucket);
        }
    }

    #[test]
    fn what_is_recorded_is_counted_once_and_what_is_too_long_as_the_longest() {
        let h = Histogram::new();
        h.record(0, 1);
        h.record(100, 32);
        h.record(100, 8);
        h.record(MAX_NS, 1);
        h.record(MAX_NS + 1, 2);
        h.record(3 * MAX_NS, 4);
        let last = shortest_in(BUCKETS - 1);
        assert_eq!(h.counts().collect::<Vec<_>>(), [(0, 1), (100, 40), (last, 7)]);
        assert_eq!(h.sum_ns(), 4000 + MAX_NS + 2 * (MAX_NS + 1) + 12 * MAX_NS);
    }

    #[test]
    fn no_duration_counts_as_none() {
        let h = Histogram::new();
        h.record(500, 0);
        assert_eq!((h.counts().next(), h.sum_ns()), (None, 0));
    }
}
