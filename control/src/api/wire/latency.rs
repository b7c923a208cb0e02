//! `show latency`.

use serde::{Deserialize, Serialize};

/// Burst times and packets' times in the box, by worker and of all.
#[derive(Debug, Serialize, Deserialize)]
pub struct Latency {
    /// For how long they were counted: since start or the last reset, seconds.
    pub seconds: f64,
    /// By worker.
    pub workers: Vec<WorkerLatency>,
    /// All workers' together.
    pub total: Times,
}

/// One worker's.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerLatency {
    /// Its index.
    pub worker: usize,
    /// Its times.
    #[serde(flatten)]
    pub times: Times,
}

/// Both kinds of times.
#[derive(Debug, Serialize, Deserialize)]
pub struct Times {
    /// Turns of the loop that moved packets.
    pub burst: Quantiles,
    /// Packets in the box, from the poll that received them until their burst was sent.
    pub packet: Quantiles,
}

/// Quantiles, microseconds, right to two digits; `None` where nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many.
    pub count: u64,
    /// The shortest.
    pub min_us: Option<f64>,
    /// The median.
    pub p50_us: Option<f64>,
    /// 90 % were no longer.
    pub p90_us: Option<f64>,
    /// 99 % were no longer.
    pub p99_us: Option<f64>,
    /// 99.9 % were no longer.
    pub p999_us: Option<f64>,
    /// 99.99 % were no longer.
    pub p9999_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
}
