//! What a translation rule does, said in words near those of the YAML.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use dataplane::api::policy::{Hairpin, Match, NatKind, NatRuleSpec, NetmapSide, OnReload, Pool, PreservePort, ToPort};

use super::words::{SHOWN, between, prefix4, prefix6, range};

/// What masquerade translates to.
const EGRESS: &str = "the egress interface's address";

/// The kind's name in the YAML.
pub fn kind_word(kind: &NatKind) -> &'static str {
    match kind {
        NatKind::None => "none",
        NatKind::Masquerade => "masquerade",
        NatKind::Snat { .. } => "snat",
        NatKind::Dnat { .. } => "dnat",
        NatKind::Twice { .. } => "twice",
        NatKind::Redirect { .. } => "redirect",
        NatKind::Netmap { .. } => "netmap",
        NatKind::Nptv6 { .. } => "nptv6",
    }
}

/// What it translates to, then what else it has that is not the default.
pub fn nat_words(r: &NatRuleSpec) -> String {
    let mut words = match &r.kind {
        NatKind::None => "untranslated".to_owned(),
        NatKind::Masquerade => EGRESS.to_owned(),
        NatKind::Snat { to } => pool(to),
        NatKind::Dnat { to, port } => destination(to, *port, &r.matches),
        NatKind::Twice { to, port, source } => {
            let source = source.as_ref().map_or_else(|| EGRESS.to_owned(), pool);
            format!("{}, source {source}", destination(to, *port, &r.matches))
        }
        NatKind::Redirect { port } => match port {
            Some(port) => format!("the gateway, {}", ports(*port, &r.matches)),
            None => "the gateway".to_owned(),
        },
        NatKind::Netmap { from, to, side: NetmapSide::Source } => format!("source {from} as {to}, and back"),
        NatKind::Netmap { from, to, side: NetmapSide::Destination } => format!("destination {from} as {to}"),
        NatKind::Nptv6 { inside, outside } => format!("{inside} as {outside}, and back"),
    };
    if let Some(ports) = &r.ports {
        // Invariant: writing to a string does not fail.
        let _ = write!(words, ", source ports {}", range(ports));
    }
    words.push_str(match r.preserve_port {
        PreservePort::Auto => "",
        PreservePort::Strict => ", port kept",
        PreservePort::Never => ", random",
    });
    let more = [
        (r.persistent, ", persistent"),
        (r.hairpin == Hairpin::Off, ", no hairpin"),
        (r.on_reload == OnReload::End, ", ended by a reload"),
    ];
    for (_, word) in more.iter().filter(|(is, _)| *is) {
        words.push_str(word);
    }
    words
}

/// New destinations and their port.
fn destination(to: &Pool, port: Option<ToPort>, m: &Match) -> String {
    let mut all = to.ranges();
    match (all.next(), all.next(), port) {
        (Some(only), None, Some(ToPort::One(port))) if only.start() == only.end() => {
            SocketAddr::new(*only.start(), port).to_string()
        }
        (_, _, Some(port)) => format!("{} {}", pool(to), ports(port, m)),
        (_, _, None) => pool(to),
    }
}

fn ports(port: ToPort, m: &Match) -> String {
    match (port, m.dport.as_slice()) {
        (ToPort::One(port), _) => format!("port {port}"),
        (shift @ ToPort::Shift { to, .. }, [dport]) => format!("ports {to}-{} one to one", shift.apply(*dport.end())),
        (ToPort::Shift { to, .. }, _) => format!("ports from {to} one to one"),
    }
}

/// The ranges of a pool; of a long one the first, and how many more there are.
fn pool(pool: &Pool) -> String {
    let mut all = pool.ranges();
    let mut words = all.by_ref().take(SHOWN).map(|r| addresses(&r)).collect::<Vec<_>>().join(",");
    let more = all.count();
    if more > 0 {
        // Invariant: writing to a string does not fail.
        let _ = write!(words, " and {more} more");
    }
    words
}

fn addresses(r: &RangeInclusive<IpAddr>) -> String {
    let prefix = match (r.start(), r.end()) {
        (IpAddr::V4(lo), IpAddr::V4(hi)) => prefix4(lo.to_bits(), hi.to_bits()),
        (IpAddr::V6(lo), IpAddr::V6(hi)) => prefix6(lo.to_bits(), hi.to_bits()),
        _ => None,
    };
    between(r.start(), r.end(), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(&str, &str)]) -> Pool {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        Pool::new(ranges.iter().map(|(a, b)| (ip(a), ip(b)))).expect("a pool")
    }

    fn one(address: &str) -> Pool {
        of(&[(address, address)])
    }

    fn words(kind: NatKind) -> String {
        nat_words(&NatRuleSpec::new("r", Match::default(), kind))
    }

    #[test]
    fn every_kind_is_said_in_words() {
        let (from, to) = ("10.0.0.0/24".parse().expect("net"), "203.0.113.0/24".parse().expect("net"));
        let (inside, outside) = ("fd00:1::/48".parse().expect("net"), "2001:db8:1::/48".parse().expect("net"));
        let port = Some(ToPort::One(80));
        for (kind, name, expect) in [
            (NatKind::None, "none", "untranslated"),
            (NatKind::Masquerade, "masquerade", "the egress interface's address"),
            (NatKind::Snat { to: of(&[("203.0.113.0", "203.0.113.255")]) }, "snat", "203.0.113.0/24"),
            (NatKind::Dnat { to: one("10.0.0.2"), port: None }, "dnat", "10.0.0.2"),
            (NatKind::Dnat { to: one("10.0.0.2"), port }, "dnat", "10.0.0.2:80"),
            (NatKind::Dnat { to: one("fd00::2"), port }, "dnat", "[fd00::2]:80"),
            (NatKind::Dnat { to: of(&[("10.0.0.2", "10.0.0.4")]), port }, "dnat", "10.0.0.2-10.0.0.4 port 80"),
            (
                NatKind::Twice { to: one("10.0.0.2"), port, source: None },
                "twice",
                "10.0.0.2:80, source the egress interface's address",
            ),
            (
                NatKind::Twice { to: one("10.0.0.2"), port: None, source: Some(one("10.0.0.1")) },
                "twice",
                "10.0.0.2, source 10.0.0.1",
            ),
            (NatKind::Redirect { port: None }, "redirect", "the gateway"),
            (NatKind::Redirect { port }, "redirect", "the gateway, port 80"),
            (
                NatKind::Netmap { from, to, side: NetmapSide::Source },
                "netmap",
                "source 10.0.0.0/24 as 203.0.113.0/24, and back",
            ),
            (
                NatKind::Netmap { from: to, to: from, side: NetmapSide::Destination },
                "netmap",
                "destination 203.0.113.0/24 as 10.0.0.0/24",
            ),
            (NatKind::Nptv6 { inside, outside }, "nptv6", "fd00:1::/48 as 2001:db8:1::/48, and back"),
        ] {
            assert_eq!((kind_word(&kind), words(kind.clone()).as_str()), (name, expect), "{kind:?}");
        }
    }

    #[test]
    fn what_is_not_the_default_is_said() {
        let kind = NatKind::Snat { to: one("203.0.113.7") };
        let rule = NatRuleSpec {
            ports: Some(4000..=4999),
            preserve_port: PreservePort::Never,
            persistent: true,
            on_reload: OnReload::End,
            ..NatRuleSpec::new("r", Match::default(), kind)
        };
        let expect = "203.0.113.7, source ports 4000-4999, random, persistent, ended by a reload";
        assert_eq!(nat_words(&rule), expect);
        let rule = NatRuleSpec { ports: None, preserve_port: PreservePort::Strict, persistent: false, ..rule };
        assert_eq!(nat_words(&rule), "203.0.113.7, port kept, ended by a reload");
        let kind = NatKind::Dnat { to: one("10.0.0.2"), port: Some(ToPort::Shift { from: 9000, to: 8000 }) };
        let matches = Match { dport: vec![9000..=9009], ..Match::default() };
        let rule = NatRuleSpec { hairpin: Hairpin::Off, ..NatRuleSpec::new("r", matches, kind) };
        assert_eq!(nat_words(&rule), "10.0.0.2 ports 8000-8009 one to one, no hairpin");
    }

    #[test]
    fn a_long_pool_is_said_in_part() {
        let all: Vec<_> = (1..=6).map(|n| format!("10.0.{n}.1")).collect();
        let ranges: Vec<_> = all.iter().map(|a| (a.as_str(), a.as_str())).collect();
        assert_eq!(words(NatKind::Snat { to: of(&ranges) }), "10.0.1.1,10.0.2.1,10.0.3.1,10.0.4.1 and 2 more");
    }
}
