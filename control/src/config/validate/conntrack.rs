//! `conntrack`: how many connections there may be and of whom, TCP's settings, helpers, what is reported.

use dataplane::api::policy::{ConntrackSpec, HelperKind, HelperRuleSpec, LimitPer, LimitSpec, LogInvalid, ZoneId};

use super::super::names::{PROTOCOLS, TCP, UDP};
use super::super::node::{Node, Value};
use super::super::reader::{Reader, words};
use super::super::schema::{Conntrack, HelperRule, Limit, Tcp};
use super::matches::{Hook, MatchReader, protocols};
use super::{Names, timeouts};

/// Bytes of memory for each connection that the default allows: nf_conntrack sizes its hash table by the same
/// (`linux/net/netfilter/nf_conntrack_core.c`, `nf_conntrack_init_start`), but ends at 262,144 connections, which a
/// gateway outgrows. At 192 bytes a connection, a full table takes 1.2 % of memory.
const MEMORY_PER_CONNECTION: u64 = 16_384;

/// Where the default ends on small and on large machines.
const DEFAULT_MAX: std::ops::RangeInclusive<u64> = 65_536..=16_777_216;

/// One entry in so many is kept for the gateway's own connections by default, within [`DEFAULT_RESERVE`].
const RESERVED_SHARE: usize = 128;

/// Where the default reserve ends: enough for an operator, and not more than a thousand entries of a large table.
const DEFAULT_RESERVE: std::ops::RangeInclusive<usize> = 16..=1024;

/// Most expectations: nf_conntrack's default is 4,096 on this class of machine.
const MAX_EXPECT: usize = 65_536;

/// Most helper rules: each new connection is matched against all of them.
const MAX_HELPERS: usize = 256;

/// Most limits: each new connection is counted by all that it falls under, and each of sources needs room for as many
/// as there can be connections.
const MAX_LIMITS: usize = 16;

/// Helpers of the kernel that are not built.
const LATER_HELPERS: &[&str] = &["irc", "sip", "h323", "amanda", "netbios-ns", "sane", "snmp"];

/// Reads `conntrack`: most connections, and what a reload may change.
pub fn conntrack<'y>(node: Option<&'y Node>, reader: &Reader<'y>, names: &Names) -> (usize, ConntrackSpec) {
    let mut spec = ConntrackSpec::default();
    let section = node.map(|node| Conntrack::read(node, reader));
    let max = section.as_ref().and_then(|s| s.max).and_then(|node| reader.number(node, 1024..=1 << 30));
    let max = max.unwrap_or_else(|| default_max(memory()));
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    spec.reserve = default_reserve(max);
    let Some(section) = section else { return (max, spec) };
    let set = |to: &mut bool, node: Option<&'y Node>| {
        if let Some(flag) = node.and_then(|node| reader.flag(node)) {
            *to = flag;
        }
    };
    set(&mut spec.checksum, section.checksum);
    if let Some(tcp) = section.tcp.map(|node| Tcp::read(node, reader)) {
        set(&mut spec.tcp_loose, tcp.loose);
        set(&mut spec.tcp_be_liberal, tcp.be_liberal);
        if let Some(n) = tcp.max_retrans.and_then(|node| reader.number(node, 1..=u8::MAX)) {
            spec.tcp_max_retrans = n;
        }
    }
    if let Some(node) = section.timeouts {
        timeouts::timeouts(node, reader, &mut spec.timeouts);
    }
    if let Some(node) = section.timeout_policies {
        spec.timeout_policies = timeouts::policies(node, reader, &spec.timeouts);
    }
    if let Some(node) = section.helpers {
        spec.helpers = helpers(node, reader, names);
    }
    if let Some(n) = section.expect_max.and_then(|node| reader.number(node, 1..=MAX_EXPECT as u64)) {
        spec.expect_max = usize::try_from(n).unwrap_or(MAX_EXPECT);
    }
    if let Some(node) = section.limits {
        spec.limits = limits(node, reader, names);
    }
    if let Some(n) = section.reserve.and_then(|node| reader.number(node, 0..=max as u64 / 2)) {
        spec.reserve = usize::try_from(n).unwrap_or(0);
    }
    if let Some(node) = section.log_invalid {
        spec.log_invalid = log_invalid(node, reader);
    }
    (max, spec)
}

fn helpers<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Vec<HelperRuleSpec> {
    let items = reader.items(node, "a list of helper rules");
    if items.len() > MAX_HELPERS {
        reader.refuse(node, format_args!("has {} rules; accepted: at most {MAX_HELPERS}", items.len()));
        return Vec::new();
    }
    let match_reader = MatchReader { reader, names };
    let mut rules = Vec::new();
    for item in items {
        let rule = HelperRule::read(item, reader);
        let known = HelperKind::ALL.map(|kind| (kind.name(), kind));
        let kind = reader.required(item, "helper", rule.helper).and_then(|n| reader.choice(n, &known, LATER_HELPERS));
        let matches = match_reader.matches(&rule.matches(), Hook::Filter);
        let Some(kind) = kind else { continue };
        let speaks = match kind {
            HelperKind::Ftp | HelperKind::Pptp => TCP,
            HelperKind::Tftp => UDP,
        };
        let name = PROTOCOLS.iter().find(|(_, number)| *number == speaks).map_or("", |(name, _)| *name);
        match reader.required(item, "proto", rule.proto) {
            // What was refused already is error enough.
            Some(node) if !matches.proto.is_empty() && matches.proto != [speaks] => {
                let why = format_args!("is not what {} speaks; accepted: {name}", kind.name());
                reader.refuse(node, why);
            }
            _ => {}
        }
        rules.push(HelperRuleSpec { kind, matches });
    }
    rules
}

fn limits<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Vec<LimitSpec> {
    let items = reader.items(node, "a list of limits");
    if items.len() > MAX_LIMITS {
        reader.refuse(node, format_args!("has {} limits; accepted: at most {MAX_LIMITS}", items.len()));
        return Vec::new();
    }
    let mut limits: Vec<(LimitSpec, u64)> = Vec::new();
    for item in items {
        let Some(limit) = limit(item, reader, names) else { continue };
        let same = |(other, _): &&(LimitSpec, u64)| (other.per, other.from) == (limit.per, limit.from);
        if let Some((_, line)) = limits.iter().find(same) {
            let why = format_args!("counts what the limit in line {line} counts; accepted: each once");
            reader.refuse(item, why);
        }
        limits.push((limit, item.position.0));
    }
    limits.into_iter().map(|(limit, _)| limit).collect()
}

fn limit<'y>(item: &'y Node, reader: &Reader<'y>, names: &Names) -> Option<LimitSpec> {
    let section = Limit::read(item, reader);
    let per = reader.required(item, "per", section.per);
    let per = per.and_then(|node| reader.choice(node, &[("source", false), ("zone", true)], &["destination", "rule"]));
    let max = reader.required(item, "max", section.max).and_then(|node| reader.number(node, 1..=1_u32 << 30));
    let zone_node = if per == Some(true) { reader.required(item, "from", section.from) } else { section.from };
    let from = zone_node.map(|node| zone(node, reader, names));
    let prefix = |node: Option<&'y Node>, most: u8, default: u8| match node {
        Some(node) if per == Some(true) => {
            reader.refuse(node, "has no place here; accepted: with per source");
            default
        }
        Some(node) => reader.number(node, 0..=most).unwrap_or(default),
        None => default,
    };
    // A host has one IPv4 address, and as many IPv6 addresses as it likes of one /64.
    let (v4, v6) = (prefix(section.prefix_v4, 32, 32), prefix(section.prefix_v6, 128, 64));
    let per = if per? { LimitPer::Zone } else { LimitPer::Source { v4, v6 } };
    // A zone that was given and refused is not the same as none.
    let from = match from {
        Some(zone) => Some(zone?),
        None => None,
    };
    Some(LimitSpec { from, per, max: max? })
}

/// The one zone that `node` names.
fn zone<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Option<ZoneId> {
    let known = || words(names.zones.iter().skip(1).map(String::as_str).chain(["local"]));
    let text = reader.text(node, known())?;
    let index = names.zones.iter().position(|z| z == text);
    if index.is_none() {
        reader.refuse_value(node, text, "is not a zone", known());
    }
    u8::try_from(index?).ok().map(ZoneId)
}

/// `true`, `false`, or the protocols whose INVALID packets are reported.
fn log_invalid<'y>(node: &'y Node, reader: &Reader<'y>) -> LogInvalid {
    match &node.value {
        Value::Scalar(text) if text == "true" => LogInvalid::All,
        Value::Scalar(text) if text == "false" => LogInvalid::None,
        Value::Seq(_) => LogInvalid::Protocols(protocols(node, reader, "")),
        _ => LogInvalid::Protocols(protocols(node, reader, "true, false, ")),
    }
}

/// The default of `conntrack.max` on a machine with `memory` bytes.
fn default_max(memory: u64) -> u64 {
    (memory / MEMORY_PER_CONNECTION).clamp(*DEFAULT_MAX.start(), *DEFAULT_MAX.end())
}

/// The default of `conntrack.reserve` of a table of `max` entries.
fn default_reserve(max: usize) -> usize {
    (max / RESERVED_SHARE).clamp(*DEFAULT_RESERVE.start(), *DEFAULT_RESERVE.end())
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
    fn the_default_limit_follows_memory_between_its_ends() {
        assert_eq!(default_max(0), 65_536);
        assert_eq!(default_max(8 << 30), 524_288);
        assert_eq!(default_max(4 << 40), 16_777_216);
        assert!(memory() > 0);
    }

    #[test]
    fn the_default_reserve_is_a_small_share_between_its_ends() {
        assert_eq!(default_reserve(1024), 16);
        assert_eq!(default_reserve(65_536), 512);
        assert_eq!(default_reserve(1 << 30), 1024);
    }
}
