//! `conntrack`: limits, TCP's settings, idle timeouts.

use dataplane::api::Nanos;
use dataplane::api::policy::{ConntrackSpec, Timeouts};

use super::super::error::quoted;
use super::super::node::Node;
use super::super::reader::{Reader, decimal, words};
use super::super::schema::{Conntrack, Tcp};

/// Bytes of memory for each connection that the default allows: nf_conntrack sizes its hash table by the same
/// (`linux/net/netfilter/nf_conntrack_core.c`, `nf_conntrack_init_start`), but ends at 262,144 connections, which a
/// gateway outgrows. At 192 bytes a connection, a full table takes 1.2 % of memory.
const MEMORY_PER_CONNECTION: u64 = 16_384;

/// Where the default ends on small and on large machines.
const DEFAULT_MAX: std::ops::RangeInclusive<u64> = 65_536..=16_777_216;

/// Shortest and longest timeout: the timer wheel's resolution, and a year.
const TIMEOUT_NANOS: std::ops::RangeInclusive<u64> = 100_000_000..=365 * 86_400 * 1_000_000_000;

/// Timeouts of nf_conntrack for parts that are not built.
const LATER_TIMEOUTS: &[&str] = &[
    "sctp_closed",
    "sctp_cookie_wait",
    "sctp_cookie_echoed",
    "sctp_established",
    "sctp_shutdown_sent",
    "sctp_shutdown_recd",
    "sctp_shutdown_ack_sent",
    "sctp_heartbeat_sent",
    "gre",
    "gre_stream",
    "dccp_request",
    "dccp_respond",
    "dccp_partopen",
    "dccp_open",
    "dccp_closereq",
    "dccp_closing",
    "dccp_timewait",
    "udplite",
    "udplite_stream",
    "frag",
    "frag_v4",
    "frag_v6",
    "expect",
];

/// Reads `conntrack`: most connections, and what a reload may change.
pub fn conntrack<'y>(node: Option<&'y Node>, reader: &Reader<'y>) -> (usize, ConntrackSpec) {
    let mut spec = ConntrackSpec::default();
    let section = node.map(|node| Conntrack::read(node, reader));
    let max = section.as_ref().and_then(|s| s.max).and_then(|node| reader.number(node, 1024..=1 << 30));
    let max = max.unwrap_or_else(|| default_max(memory()));
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let Some(section) = section else { return (max, spec) };
    if let Some(checksum) = section.checksum.and_then(|node| reader.flag(node)) {
        spec.checksum = checksum;
    }
    if let Some(tcp) = section.tcp.map(|node| Tcp::read(node, reader)) {
        if let Some(loose) = tcp.loose.and_then(|node| reader.flag(node)) {
            spec.tcp_loose = loose;
        }
        if let Some(node) = tcp.be_liberal {
            reader.choice(node, &[("false", ())], &["true"]);
        }
    }
    if let Some(node) = section.timeouts {
        timeouts(node, reader, &mut spec.timeouts);
    }
    (max, spec)
}

fn timeouts<'y>(node: &'y Node, reader: &Reader<'y>, timeouts: &mut Timeouts) {
    for (key, value) in reader.entries(node, "a mapping of timeouts") {
        let name = key.text.as_str();
        if LATER_TIMEOUTS.contains(&name) {
            reader.refuse_later(node, key);
        } else if !Timeouts::NAMES.contains(&name) {
            let known = words(Timeouts::NAMES.iter().copied());
            reader.refuse_key(node, key, format!("unknown key {}; accepted: {known}", quoted(name)));
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

/// The default of `conntrack.max` on a machine with `memory` bytes.
fn default_max(memory: u64) -> u64 {
    (memory / MEMORY_PER_CONNECTION).clamp(*DEFAULT_MAX.start(), *DEFAULT_MAX.end())
}

/// Bytes of memory that this machine has; 0 where the kernel does not tell.
fn memory() -> u64 {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let rest = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.map_or(0, |kib| kib.saturating_mul(1024))
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

    #[test]
    fn the_default_limit_follows_memory_between_its_ends() {
        assert_eq!(default_max(0), 65_536);
        assert_eq!(default_max(8 << 30), 524_288);
        assert_eq!(default_max(4 << 40), 16_777_216);
        assert!(memory() > 0);
    }
}
