//! `conntrack.timeouts` and `conntrack.timeout_policies`: idle times by nf_conntrack's names.

use dataplane::api::Nanos;
use dataplane::api::policy::Timeouts;

use super::super::error::quoted;
use super::super::node::Node;
use super::super::reader::{Reader, decimal, words};
use super::{NAME, is_name};

/// Shortest and longest timeout: the timer wheel's resolution, and a year.
const TIMEOUT_NANOS: std::ops::RangeInclusive<u64> = 100_000_000..=365 * 86_400 * 1_000_000_000;

/// Most timeout policies: rules name them by one byte, of which 0 says "none".
const MAX_POLICIES: usize = 255;

/// Timeouts for helpers that are not built.
const LATER: &[&str] = &["expect_irc", "expect_sip"];

/// Timeouts of what is not a connection: a policy, which belongs to a connection, cannot have them.
fn is_of_no_connection(name: &str) -> bool {
    name.starts_with("frag_") || name.starts_with("expect_")
}

/// Reads `conntrack.timeouts` into `timeouts`.
pub fn timeouts<'y>(node: &'y Node, reader: &Reader<'y>, timeouts: &mut Timeouts) {
    read(node, reader, timeouts, |_| true);
}

/// Reads `conntrack.timeout_policies`; what a policy leaves out is as `general` has it.
pub fn policies<'y>(node: &'y Node, reader: &Reader<'y>, general: &Timeouts) -> Vec<(String, Timeouts)> {
    let entries = reader.entries(node, "a mapping of names to timeouts");
    if entries.len() > MAX_POLICIES {
        reader.refuse(node, format_args!("has {} policies; accepted: at most {MAX_POLICIES}", entries.len()));
        return Vec::new();
    }
    let mut policies = Vec::new();
    for (key, node_of_policy) in entries {
        if !is_name(&key.text) {
            let message = format!("{} cannot name a timeout policy; accepted: {NAME}", quoted(&key.text));
            reader.refuse_key(node, key, message);
        }
        let mut own = general.clone();
        read(node_of_policy, reader, &mut own, |name| !is_of_no_connection(name));
        policies.push((key.text.clone(), own));
    }
    policies
}

fn read<'y>(node: &'y Node, reader: &Reader<'y>, timeouts: &mut Timeouts, fits: fn(&str) -> bool) {
    for (key, value) in reader.entries(node, "a mapping of timeouts") {
        let name = key.text.as_str();
        if LATER.contains(&name) {
            reader.refuse_later(node, key);
        } else if !Timeouts::NAMES.contains(&name) || !fits(name) {
            let known = words(Timeouts::NAMES.iter().copied().filter(|name| fits(name)));
            let message = if Timeouts::NAMES.contains(&name) {
                format!("key {} is not about a connection; accepted: {known}", quoted(name))
            } else {
                format!("unknown key {}; accepted: {known}", quoted(name))
            };
            reader.refuse_key(node, key, message);
        } else {
            let accepted = "a time from 100ms to 365d such as 30s, 2m, 1h, 5d or 500ms; without a unit, seconds";
            let in_range = |text: &str| duration(text).filter(|d| TIMEOUT_NANOS.contains(&d.0));
            if let Some(time) = reader.parsed(value, accepted, in_range) {
                let known = timeouts.set(name, time);
                debug_assert!(known, "{name} is in NAMES");
            }
        }
    }
}

/// A number and its unit; seconds without one.
fn duration(text: &str) -> Option<Nanos> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    decimal(number)?.checked_mul(millis)?.checked_mul(1_000_000).map(Nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, nanos) in [
            ("5d", 432_000_000_000_000),
            ("1h", 3_600_000_000_000),
            ("2m", 120_000_000_000),
            ("30s", 30_000_000_000),
            ("30", 30_000_000_000),
            ("500ms", 500_000_000),
        ] {
            assert_eq!(duration(text), Some(Nanos(nanos)), "{text}");
        }
        for bad in ["", "s", "1.5s", "-1s", "1 s", "1h30m", "030s", "1w", "99999999999999999999d", "999999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
