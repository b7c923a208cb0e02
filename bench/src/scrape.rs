//! What a round measured, from two scrapes of sluiced's metrics.
//!
//! The gateway's own uptime is the clock: it stands in the same page as the counters, so however late a scrape is answered,
//! the rate is right. Sources: Prometheus' text exposition format.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use crate::flow::Case;
use crate::results::Measured;

/// One page of metrics.
#[derive(Debug, Default)]
pub struct Page {
    /// Name and labels as they stand, and value.
    samples: Vec<(String, f64)>,
}

/// Why two scrapes tell nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum ScrapeError {
    /// A page has no such metric.
    Missing(&'static str),
    /// No time has passed between them.
    NoTime,
}

impl fmt::Display for ScrapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "no metric {name} in a scrape"),
            Self::NoTime => write!(f, "no time has passed between the scrapes"),
        }
    }
}

impl std::error::Error for ScrapeError {}

impl Page {
    /// Reads a page; lines that are no samples are left out.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (key, value) = line.rsplit_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        };
        Self { samples: text.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect() }
    }

    /// The samples of metric `name`: their labels, without braces, and values.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.samples.iter().filter_map(move |(key, value)| {
            let rest = key.strip_prefix(name)?;
            if rest.is_empty() {
                return Some(("", *value));
            }
            Some((rest.strip_prefix('{')?.strip_suffix('}')?, *value))
        })
    }

    /// The sum of a metric's samples that carry this label, `key="value"`; of all with an empty one.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.of(name)
            .filter(|(labels, _)| label.is_empty() || labels.split(',').any(|l| l == label))
            .map(|(_, v)| v)
            .sum()
    }

    /// The sums of a metric by the values of one label.
    pub fn by(&self, name: &str, key: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, value) in self.of(name) {
            let of_key = |l: &str| Some(l.strip_prefix(key)?.strip_prefix("=\"")?.strip_suffix('"')?.to_owned());
            if let Some(label) = labels.split(',').find_map(of_key) {
                *sums.entry(label).or_insert(0.0) += value;
            }
        }
        sums
    }
}

/// Share of packets that may be INVALID in a case that is to have none.
const INVALID: f64 = 0.001;
/// Share of packets that must have been new in a case that is to have nothing else.
const NEW: f64 = 0.95;
/// Shares of packets that may have been new where one in ten is to be.
const MIXED_NEW: RangeInclusive<f64> = 0.095..=0.105;
/// Share of packets that must have been untracked where all are to be.
const UNTRACKED: f64 = 0.99;
/// Share of received packets that must have been sent on, or lost on the way from worker to worker: ports that replay for ever
/// offer more than a worker takes from another.
const FORWARDED: f64 = 0.99;

/// What was measured between two scrapes: sent packets, or started connections in [`Case::NewConnections`].
///
/// # Errors
/// Pages that are not of a running gateway.
pub fn measure(case: Case, first: &Page, last: &Page) -> Result<Measured, ScrapeError> {
    let uptime = "sluice_uptime_seconds";
    if first.of(uptime).next().is_none() || last.of(uptime).next().is_none() {
        return Err(ScrapeError::Missing(uptime));
    }
    let seconds = last.sum(uptime, "") - first.sum(uptime, "");
    if seconds <= 0.0 {
        return Err(ScrapeError::NoTime);
    }
    let grown = |name: &str, label: &str| last.sum(name, label) - first.sum(name, label);
    let received = grown("sluice_packets_total", "direction=\"rx\"");
    let sent = grown("sluice_packets_total", "direction=\"tx\"");
    let new = grown("sluice_conntrack_events_total", "event=\"new\"");
    let counted = if case == Case::NewConnections { new } else { sent };

    let mut details = BTreeMap::new();
    let mut share = |name: &str, count: f64| {
        let share = if received > 0.0 { count / received } else { 0.0 };
        if count != 0.0 {
            details.insert(name.to_owned(), share);
        }
        share
    };
    let invalid = share("invalid", grown("sluice_classified_packets_total", "state=\"invalid\""));
    let new = share("new", new);
    share("early_drop", grown("sluice_conntrack_events_total", "event=\"early_drop\""));
    for (kind, name, key) in
        [("dropped", "sluice_dropped_packets_total", "reason"), ("handover", "sluice_handover_packets_total", "cause")]
    {
        let before = first.by(name, key);
        for (label, value) in last.by(name, key) {
            share(&format!("{kind}.{label}"), value - before.get(&label).copied().unwrap_or(0.0));
        }
    }
    let untracked = grown("sluice_classified_packets_total", "state=\"untracked\"") / received.max(1.0);
    let lost = grown("sluice_dropped_packets_total", "reason=\"handover_full\"");
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let void = if received == 0.0 {
        Some("no packets were received".to_owned())
    } else if matches!(case, Case::Tcp | Case::Stateful | Case::Snat | Case::Dnat) && invalid > INVALID {
        Some(format!("{} of the packets were INVALID", percent(invalid)))
    } else if case == Case::NewConnections && new < NEW {
        Some(format!("only {} of the packets were new", percent(new)))
    } else if case == Case::Mixed && !MIXED_NEW.contains(&new) {
        Some(format!("{} of the packets were new", percent(new)))
    } else if case == Case::Forward && untracked < UNTRACKED {
        Some(format!("only {} of the packets were untracked", percent(untracked)))
    } else if !matches!(case, Case::NewConnections | Case::Fragments) && sent + lost < received * FORWARDED {
        Some(format!("only {} of the packets were forwarded", percent(sent / received)))
    } else {
        None
    };
    Ok(Measured { mpps: counted / seconds / 1e6, details, void })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_worker_could_not_take_from_another_is_reported_and_does_not_void() {
        let full = "sluice_dropped_packets_total{reason=\"handover_full\"} 400\n";
        let last = Page::parse(&format!(
            "{full}sluice_packets_total{{direction=\"rx\"}} 1000\nsluice_packets_total{{direction=\"tx\"}} 600
sluice_uptime_seconds 2"
        ));
        let m = measure(Case::Dnat, &page(1.0, 0, 0, 0, 0), &last).expect("whole pages");
        assert_eq!((m.void, m.details["dropped.handover_full"]), (None, 0.4));
    }

    fn page(uptime: f64, rx: u64, tx: u64, new: u64, invalid: u64) -> Page {
        Page::parse(&format!(
            "# HELP sluice_packets_total Frames.
sluice_packets_total{{interface=\"lan\",direction=\"rx\"}} {rx}
sluice_packets_total{{interface=\"wan\",direction=\"rx\"}} 0
sluice_packets_total{{interface=\"lan\",direction=\"tx\"}} {tx}
sluice_conntrack_events_total{{event=\"new\"}} {new}
sluice_classified_packets_total{{state=\"invalid\",direction=\"original\"}} {invalid}
sluice_handover_packets_total{{cause=\"signpost\"}} {tx}
sluice_handover_packets_total_of_another{{cause=\"signpost\"}} 7
sluice_uptime_seconds {uptime}
"
        ))
    }

    #[test]
    fn the_rate_is_of_sent_packets_over_the_gateways_own_time() {
        let m = measure(Case::Stateful, &page(1.5, 100, 100, 9, 0), &page(3.5, 4_000_100, 4_000_100, 9, 0))
            .expect("whole pages");
        assert!((m.mpps - 2.0).abs() < 1e-9);
        assert_eq!(m.void, None);
        assert_eq!(m.details, BTreeMap::from([("handover.signpost".to_owned(), 1.0)]));
    }

    #[test]
    fn new_connections_are_counted_by_their_events() {
        let m = measure(Case::NewConnections, &page(1.0, 0, 0, 0, 0), &page(2.0, 1_000_000, 1_000_000, 990_000, 0));
        let m = m.expect("whole pages");
        assert!((m.mpps - 0.99).abs() < 1e-9);
        assert_eq!(m.void, None);
    }

    #[test]
    fn a_case_is_void_where_its_packets_are_not_what_they_should_be() {
        let zero = page(1.0, 0, 0, 0, 0);
        let void = |case, last| measure(case, &zero, &last).expect("whole pages").void.unwrap_or_default();
        assert_eq!(void(Case::Tcp, page(2.0, 1_000, 1_000, 0, 2)), "0.20 % of the packets were INVALID");
        assert_eq!(void(Case::Tcp, page(2.0, 1_000, 1_000, 0, 1)), "");
        assert_eq!(void(Case::NewConnections, page(2.0, 1_000, 1_000, 500, 0)), "only 50.00 % of the packets were new");
        assert_eq!(void(Case::Mixed, page(2.0, 1_000, 1_000, 90, 0)), "9.00 % of the packets were new");
        assert_eq!(void(Case::Mixed, page(2.0, 1_000, 1_000, 101, 0)), "");
        assert_eq!(void(Case::Forward, page(2.0, 1_000, 1_000, 0, 0)), "only 0.00 % of the packets were untracked");
        assert_eq!(void(Case::Stateful, page(2.0, 1_000, 900, 0, 0)), "only 90.00 % of the packets were forwarded");
        assert_eq!(void(Case::Stateful, page(2.0, 0, 0, 0, 0)), "no packets were received");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let whole = page(1.0, 0, 0, 0, 0);
        assert_eq!(
            measure(Case::Snat, &Page::parse(""), &whole).err(),
            Some(ScrapeError::Missing("sluice_uptime_seconds"))
        );
        assert_eq!(measure(Case::Snat, &whole, &whole).err(), Some(ScrapeError::NoTime));
    }
}
