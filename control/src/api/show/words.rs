//! What a rule matches, said in words near those of the YAML.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::api::policy::{Action, AddrMatch, AddrSet, ConntrackSpec, Match, RuleSpec, ZoneId};

/// Ranges of an unnamed address set that are spelled out; the rest is counted.
pub const SHOWN: usize = 4;

pub fn action_word(a: Action) -> &'static str {
    match a {
        Action::Accept => "accept",
        Action::Drop => "drop",
        Action::Continue => "continue",
    }
}

/// What a filter rule does: its action, then what else it has.
pub fn rule_words(r: &RuleSpec, conntrack: &ConntrackSpec) -> String {
    let mut words = String::from(action_word(r.action));
    if r.log {
        words.push_str(", log");
    }
    // Invariant: writing to a string does not fail.
    if let Some(mark) = r.set_mark {
        let _ = write!(words, ", set_mark {}", mark_word(mark));
    }
    let policy = usize::from(r.timeout_policy).checked_sub(1).and_then(|i| conntrack.timeout_policies.get(i));
    if let Some((name, _)) = policy {
        let _ = write!(words, ", timeout {name}");
    }
    words
}

fn mark_word((mask, value): (u32, u32)) -> String {
    if mask == u32::MAX { format!("{value:#x}") } else { format!("{value:#x}/{mask:#x}") }
}

pub fn match_words(
    m: &Match,
    zones: &[String],
    interfaces: &[&str],
    set_name: impl Fn(&Arc<AddrSet>) -> Option<String>,
) -> String {
    let mut out = Vec::new();
    let zone = |z: &ZoneId| zones.get(usize::from(z.0)).map_or("?", String::as_str).to_owned();
    let interface = |i: &u16| interfaces.get(usize::from(*i)).copied().unwrap_or("?").to_owned();
    let mut list = |key: &str, values: Vec<String>| {
        if !values.is_empty() {
            out.push(format!("{key} {}", values.join(",")));
        }
    };
    list("from", m.from.iter().map(zone).collect());
    list("to", m.to.iter().map(zone).collect());
    list("in", m.interface_in.iter().map(interface).collect());
    list("out", m.interface_out.iter().map(interface).collect());
    list("source", m.source.iter().map(|a| addresses(a, &set_name)).collect());
    list("destination", m.destination.iter().map(|a| addresses(a, &set_name)).collect());
    list("proto", m.proto.iter().map(|p| proto_name(*p)).collect());
    list("sport", m.sport.iter().map(range).collect());
    list("dport", m.dport.iter().map(range).collect());
    list("icmp_type", m.icmp_type.iter().map(u8::to_string).collect());
    list("tcp_flags", m.tcp_flags.iter().map(|(mask, value)| format!("{mask:#04x}/{value:#04x}")).collect());
    list("mark", m.mark.iter().map(|m| mark_word(*m)).collect());
    list("state", m.state.iter().map(|s| s.label().to_owned()).collect());
    if out.is_empty() { "any".into() } else { out.join(" ") }
}

/// The name of an IP protocol that rules can name, else its number.
pub fn proto_name(p: u8) -> String {
    let names = [(1, "icmp"), (6, "tcp"), (17, "udp"), (33, "dccp"), (47, "gre"), (50, "esp"), (51, "ah")];
    let more = [(58, "icmpv6"), (132, "sctp"), (136, "udplite")];
    let found = names.iter().chain(&more).find(|(n, _)| *n == p);
    found.map_or_else(|| p.to_string(), |(_, name)| (*name).to_owned())
}

/// A port, or a range of ports.
pub fn range(r: &RangeInclusive<u16>) -> String {
    if r.start() == r.end() { r.start().to_string() } else { format!("{}-{}", r.start(), r.end()) }
}

fn addresses(a: &AddrMatch, set_name: impl Fn(&Arc<AddrSet>) -> Option<String>) -> String {
    let mut text = String::from(if a.negate { "not " } else { "" });
    if let Some(name) = set_name(&a.set) {
        text.push_str(&name);
        return text;
    }
    let v4 = a.set.intervals_v4().map(|(lo, hi)| between(lo, hi, prefix4(lo.to_bits(), hi.to_bits())));
    let v6 = a.set.intervals_v6().map(|(lo, hi)| between(lo, hi, prefix6(lo.to_bits(), hi.to_bits())));
    let mut all = v4.chain(v6);
    text.push_str(&all.by_ref().take(SHOWN).collect::<Vec<_>>().join(","));
    let more = all.count();
    if more > 0 {
        // Invariant: writing to a string does not fail.
        let _ = write!(text, " and {more} more");
    }
    text
}

/// A range of addresses, as a prefix where `prefix` is its length.
pub fn between(lo: impl ToString, hi: impl ToString, prefix: Option<u32>) -> String {
    let (lo, hi) = (lo.to_string(), hi.to_string());
    match prefix {
        _ if lo == hi => lo,
        Some(length) => format!("{lo}/{length}"),
        None => format!("{lo}-{hi}"),
    }
}

/// The length of the prefix that `lo..=hi` is, if it is one.
pub fn prefix4(lo: u32, hi: u32) -> Option<u32> {
    let host = (lo ^ hi).count_ones();
    (lo ^ hi == u32::try_from(low_bits(host)).unwrap_or(u32::MAX) && lo & (lo ^ hi) == 0).then_some(32 - host)
}

/// The same of IPv6.
pub fn prefix6(lo: u128, hi: u128) -> Option<u32> {
    let host = (lo ^ hi).count_ones();
    (lo ^ hi == low_bits(host) && lo & (lo ^ hi) == 0).then_some(128 - host)
}

fn low_bits(n: u32) -> u128 {
    1u128.checked_shl(n).map_or(u128::MAX, |v| v - 1)
}

#[cfg(test)]
mod tests {
    use dataplane::api::policy::Timeouts;

    use super::*;

    #[test]
    fn ranges_that_are_prefixes_are_written_as_such() {
        let set = |p: &[&str], r: &[(&str, &str)]| {
            let prefixes = p.iter().map(|p| p.parse().expect("prefix"));
            let ranges = r.iter().map(|(a, b)| (a.parse().expect("address"), b.parse().expect("address")));
            AddrMatch { negate: false, set: Arc::new(AddrSet::new(prefixes, ranges)) }
        };
        let none = |_: &Arc<AddrSet>| None;
        assert_eq!(addresses(&set(&["10.0.0.0/8", "192.0.2.1/32", "::/0"], &[]), none), "10.0.0.0/8,192.0.2.1,::/0");
        assert_eq!(addresses(&set(&["0.0.0.0/0"], &[]), none), "0.0.0.0/0");
        assert_eq!(addresses(&set(&[], &[("10.0.0.1", "10.0.0.2")]), none), "10.0.0.1-10.0.0.2");
        let many = set(&["1.0.0.0/32", "2.0.0.0/32", "3.0.0.0/32", "4.0.0.0/32", "5.0.0.0/32", "6.0.0.0/32"], &[]);
        assert_eq!(addresses(&many, none), "1.0.0.0,2.0.0.0,3.0.0.0,4.0.0.0 and 2 more");
        assert_eq!(addresses(&AddrMatch { negate: true, ..many }, |_| Some("mgmt".into())), "not mgmt");
    }

    #[test]
    fn what_a_rule_does_is_said_in_full() {
        let spec = ConntrackSpec { timeout_policies: vec![("slow".into(), Timeouts::default())], ..Default::default() };
        let mut rule = RuleSpec {
            name: "r".into(),
            matches: Match::default(),
            action: Action::Continue,
            log: false,
            set_mark: Some((u32::MAX, 5)),
            timeout_policy: 0,
        };
        assert_eq!(rule_words(&rule, &spec), "continue, set_mark 0x5");
        rule = RuleSpec { action: Action::Accept, log: true, set_mark: None, timeout_policy: 1, ..rule };
        assert_eq!(rule_words(&rule, &spec), "accept, log, timeout slow");
    }

    #[test]
    fn a_rule_reads_like_its_yaml() {
        let m = Match {
            from: vec![ZoneId(1)],
            to: vec![ZoneId(0)],
            proto: vec![6],
            dport: vec![22..=22, 8000..=8080],
            mark: Some((0xff, 0x10)),
            ..Match::default()
        };
        let zones = ["local".to_owned(), "lan".to_owned()];
        let words = "from lan to local proto tcp dport 22,8000-8080 mark 0x10/0xff";
        assert_eq!(match_words(&m, &zones, &[], |_| None), words);
        assert_eq!(match_words(&Match::default(), &zones, &[], |_| None), "any");
    }
}
