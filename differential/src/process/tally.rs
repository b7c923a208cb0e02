//! The process's counters at one moment, read from its metrics.
//!
//! *Limits*: those that tell what became of a packet. A worker writes its counters one after the other while they are read.

use dataplane::api::DropReason;

use crate::observe::Class;

/// Counters, all workers together where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames received from the wire.
    pub received: u64,
    /// Frames sent to the wire.
    pub sent: u64,
    /// By [`Class`], of the original and the reply direction.
    pub classified: [[u64; 2]; Class::ALL.len()],
    /// By [`DropReason`].
    pub drops: Vec<u64>,
    /// Packets given from worker to worker.
    pub handovers: u64,
    /// Errors that the gateway made.
    pub errors: u64,
    /// By worker: how long it has found nothing to do.
    pub idle: Vec<u64>,
}

impl Tally {
    /// Reads Prometheus's text format.
    pub fn read(text: &str) -> Self {
        let mut all = Self { drops: vec![0; DropReason::ALL.len()], ..Self::default() };
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if let Some((sample, value)) = line.rsplit_once(' ') {
                all.sample(sample, number(value));
            }
        }
        all
    }

    fn sample(&mut self, sample: &str, value: u64) {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let label = |key: &str| {
            let mut pairs = labels.trim_end_matches('}').split(',').filter_map(|p| p.split_once('='));
            pairs.find(|(k, _)| *k == key).map_or("", |(_, v)| v.trim_matches('"'))
        };
        match name {
            "sluice_packets_total" if label("direction") == "rx" => self.received += value,
            "sluice_packets_total" => self.sent += value,
            "sluice_dropped_packets_total" => {
                let reason = DropReason::ALL.iter().position(|r| r.label() == label("reason"));
                if let Some(count) = reason.and_then(|n| self.drops.get_mut(n)) {
                    *count = value;
                }
            }
            "sluice_handover_packets_total" => self.handovers += value,
            "sluice_icmp_errors_total" if label("kind") != "suppressed" => self.errors += value,
            "sluice_classified_packets_total" => {
                if let Some(class) = Class::named(label("state")) {
                    self.classified[class as usize][usize::from(label("direction") == "reply")] = value;
                }
            }
            "sluice_worker_cycles_total" if label("kind") == "idle" => {
                let worker = label("worker").parse().unwrap_or(0);
                if self.idle.len() <= worker {
                    self.idle.resize(worker + 1, 0);
                }
                self.idle[worker] = value;
            }
            _ => {}
        }
    }

    /// Whether nothing happened since `earlier` but that time has passed.
    pub fn is_but_later(&self, earlier: &Self) -> bool {
        *self == Self { idle: self.idle.clone(), ..earlier.clone() }
    }

    /// Whether each worker has looked for something to do since `earlier` and found nothing.
    pub fn all_looked_since(&self, earlier: &Self) -> bool {
        self.idle.iter().zip(&earlier.idle).all(|(now, then)| now > then)
    }

    /// Packets that began a connection, or would have.
    pub const fn begun(&self) -> u64 {
        self.classified[Class::New as usize][0]
    }

    /// Whether something was classified or dropped since `earlier`.
    pub fn has_judged_since(&self, earlier: &Self) -> bool {
        self.classified != earlier.classified || self.drops != earlier.drops
    }
}

/// A sample's value; counters are whole.
fn number(text: &str) -> u64 {
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    whole.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP sluice_packets_total Frames\n\
        sluice_packets_total{direction=\"rx\",interface=\"lan\"} 3\nsluice_packets_total{direction=\"rx\",interface=\"wan\"} 4\n\
        sluice_packets_total{direction=\"tx\",interface=\"wan\"} 5\n\
        sluice_classified_packets_total{direction=\"reply\",state=\"related\"} 6\n\
        sluice_worker_cycles_total{kind=\"idle\",worker=\"1\"} 70\nsluice_worker_cycles_total{kind=\"busy\",worker=\"1\"} 9\n";

    #[test]
    fn metrics_are_read() {
        let t = Tally::read(TEXT);
        assert_eq!((t.received, t.sent), (7, 5));
        assert_eq!(t.classified[Class::Related as usize], [0, 6]);
        assert_eq!(t.idle, [0, 70]);
    }

    #[test]
    fn time_alone_is_no_event_and_all_workers_must_have_looked() {
        let then = Tally { idle: vec![5, 5], ..Tally::default() };
        let later = |idle| Tally { idle, ..then.clone() };
        assert!(later(vec![6, 5]).is_but_later(&then) && later(vec![6, 6]).all_looked_since(&then));
        assert!(!later(vec![6, 5]).all_looked_since(&then));
        assert!(!Tally { sent: 1, ..later(vec![6, 6]) }.is_but_later(&then));
    }
}
