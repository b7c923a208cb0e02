//! `nat`: what each kind of translation needs, and which keys have no place in it.
//!
//! *Life-cycle*, *Threads*: as all of validation. *Limits*: [`MAX_RANGES`] ranges in a pool, [`MAX_NPTV6`] rules for
//! prefixes. *Sources*: iptables' and nftables' words; RFC 6296 section 3 for NPTv6.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use dataplane::api::policy::{
    Hairpin, MAX_RANGES, Match, NatKind, NatRuleSpec, NetmapSide, OnReload, Pool, PreservePort, ToPort,
};
use ipnet::{IpNet, Ipv6Net};

use super::super::address::{Element, is_unicast, prefix};
use super::super::names::WITH_PORTS;
use super::super::node::{Node, Value};
use super::super::schema::{Matches, NatRule};
use super::matches::{Hook, Versions, port_range};
use super::rules::{Rules, Seen};

/// Most rules of kind nptv6: each packet is compared with all of them, for they keep no state.
const MAX_NPTV6: usize = 256;

/// What a pool may be made of.
const POOL: &str = "an address, a prefix, a range such as 198.51.100.8-198.51.100.15, or a list of these";

/// What ports may be.
const PORTS: &str = "a port from 1 to 65535, or a range such as 8000-8010";

/// The kinds of translation, in the order in which errors list them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Masquerade,
    Snat,
    Dnat,
    Twice,
    Redirect,
    Netmap,
    Nptv6,
}

use Kind::{Dnat, Masquerade, Netmap, Nptv6, Redirect, Snat, Twice};

const KINDS: [(&str, Kind); 8] = [
    ("none", Kind::None),
    ("masquerade", Masquerade),
    ("snat", Snat),
    ("dnat", Dnat),
    ("twice", Twice),
    ("redirect", Redirect),
    ("netmap", Netmap),
    ("nptv6", Nptv6),
];

/// The kinds that change a source and choose its port.
const SOURCE: &[Kind] = &[Masquerade, Snat, Twice];

/// The kinds with a pool.
const POOLED: &[Kind] = &[Snat, Dnat, Twice];

impl<'y> Rules<'_, 'y> {
    /// Reads `nat`.
    pub fn nat(&self, node: &'y Node) -> Vec<NatRuleSpec> {
        let mut seen = Seen::new();
        let mut rules: Vec<NatRuleSpec> = Vec::new();
        let mut prefixes: Vec<usize> = Vec::new();
        for item in self.items(node) {
            let Some(rule) = self.nat_rule(item, &mut seen) else { continue };
            if matches!(rule.kind, NatKind::Nptv6 { .. }) {
                if let Some(other) = prefixes.iter().filter_map(|&i| rules.get(i)).find(|r| collide(r, &rule)) {
                    let why = format_args!(
                        "replaces prefixes that rule {} does, between the same zones; accepted: prefixes that are apart",
                        other.name
                    );
                    self.reader.refuse(item, why);
                }
                if prefixes.len() == MAX_NPTV6 {
                    self.reader.refuse(item, format_args!("is one rule too many; accepted: {MAX_NPTV6} of type nptv6"));
                    break;
                }
                prefixes.push(rules.len());
            }
            rules.push(rule);
        }
        rules
    }

    fn nat_rule(&self, item: &'y Node, seen: &mut Seen<'y>) -> Option<NatRuleSpec> {
        let rule = NatRule::read(item, self.reader);
        let name = self.name(item, rule.name, seen);
        let kind = self.reader.required(item, "type", rule.kind);
        let kind = kind.and_then(|node| self.reader.choice(node, &KINDS, &["nat64"]))?;
        let keys = rule.matches();
        let own = |node: Option<&'y Node>, kinds: &[Kind]| {
            let node = node?;
            if !kinds.contains(&kind) {
                let names = KINDS.iter().filter(|(_, k)| kinds.contains(k)).map(|(name, _)| *name).collect::<Vec<_>>();
                let names = match names.as_slice() {
                    [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
                    all => all.concat(),
                };
                self.reader.refuse(node, format_args!("has no place here; accepted: with type {names}"));
                return None;
            }
            Some(node)
        };
        let to_address = own(rule.to_address, POOLED);
        let to_source = own(rule.to_source, &[Twice]);
        let to_prefix = own(rule.to_prefix, &[Netmap, Nptv6]);
        let source_ports = own(rule.source_ports, SOURCE).and_then(|node| self.port_range(node));
        let preserve_port = own(rule.preserve_port, SOURCE);
        let random = own(rule.random, SOURCE);
        let persistent = own(rule.persistent, POOLED);
        let hairpin = own(rule.hairpin, &[Dnat]);
        let on_reload = own(rule.on_reload, &[Masquerade, Snat, Dnat, Twice, Redirect, Netmap]);
        let to_port = match rule.to_port {
            Some(node) if matches!(kind, Masquerade | Snat) => {
                let why =
                    "has no place here: it is the destination's; accepted: \"source_ports\" for those of the source";
                self.reader.refuse(node, why);
                None
            }
            node => own(node, &[Dnat, Twice, Redirect]),
        };

        let required = |key, node| self.reader.required(item, key, node);
        let (matches, kind) = match kind {
            Kind::None => (self.match_reader().matches(&keys, Hook::Snat), Some(NatKind::None)),
            Masquerade => (self.match_reader().matches(&keys, Hook::Snat), Some(NatKind::Masquerade)),
            Snat => {
                let to = required("to_address", to_address).and_then(|node| Some((node, self.pool(node, POOL)?)));
                let mut matches = self.match_reader().matches(&keys, Hook::Snat);
                self.narrow(&keys, &mut matches, to.as_ref(), None);
                (matches, to.map(|(_, to)| NatKind::Snat { to }))
            }
            Dnat | Twice => {
                let to = required("to_address", to_address).and_then(|node| Some((node, self.pool(node, POOL)?)));
                let source = if kind == Twice { required("to_source", to_source) } else { None };
                let source = source.and_then(|node| Some((node, self.source(node)?)));
                let mut matches = self.match_reader().matches(&keys, Hook::Dnat);
                let pool = source.as_ref().and_then(|(node, pool)| Some((*node, pool.as_ref()?)));
                self.narrow(&keys, &mut matches, to.as_ref(), pool);
                let port = to_port.and_then(|node| self.to_port(node, &keys, &matches));
                let kind = match (kind, to, source) {
                    (Dnat, Some((_, to)), _) => Some(NatKind::Dnat { to, port }),
                    (_, Some((_, to)), Some((_, source))) => Some(NatKind::Twice { to, port, source }),
                    _ => None,
                };
                (matches, kind)
            }
            Redirect => {
                let matches = self.match_reader().matches(&keys, Hook::Dnat);
                let port = to_port.and_then(|node| self.to_port(node, &keys, &matches));
                (matches, Some(NatKind::Redirect { port }))
            }
            Netmap => self.netmap(&keys, required("to_prefix", to_prefix)),
            Nptv6 => self.nptv6(item, &keys, required("to_prefix", to_prefix)),
        };

        let flag = |node: Option<&'y Node>| node.and_then(|node| self.reader.flag(node)).unwrap_or(false);
        let known = [("auto", PreservePort::Auto), ("strict", PreservePort::Strict)];
        let mut preserve = preserve_port.and_then(|node| self.reader.choice(node, &known, &[])).unwrap_or_default();
        if let (Some(node), PreservePort::Strict, true) = (preserve_port, preserve, source_ports.is_some()) {
            self.reader.refuse(node, "leaves nothing to choose; accepted: without \"source_ports\"");
        }
        if flag(random) {
            if let (Some(node), PreservePort::Strict) = (random, preserve) {
                self.reader.refuse(node, "and \"preserve_port: strict\" exclude each other; accepted: one of them");
            }
            preserve = PreservePort::Never;
        }
        let known = [("auto", Hairpin::Auto), ("off", Hairpin::Off)];
        let hairpin = hairpin.and_then(|node| self.reader.choice(node, &known, &[])).unwrap_or_default();
        let known = [("keep", OnReload::Keep), ("end", OnReload::End)];
        let on_reload = on_reload.and_then(|node| self.reader.choice(node, &known, &[])).unwrap_or_default();
        Some(NatRuleSpec {
            ports: source_ports,
            preserve_port: preserve,
            persistent: flag(persistent),
            hairpin,
            on_reload,
            ..NatRuleSpec::new(name?, matches, kind?)
        })
    }

    /// Narrows the rule to the IP version of its pools, where they have but one.
    fn narrow(
        &self,
        keys: &Matches<'y>,
        matches: &mut Match,
        to: Option<&(&'y Node, Pool)>,
        source: Option<(&'y Node, &Pool)>,
    ) {
        let Some((node, to)) = to else { return };
        let versions = |pool: &Pool| Versions { v4: !pool.is_empty(true), v6: !pool.is_empty(false) };
        let mut wanted = versions(to);
        if let Some((node, source)) = source {
            let both = wanted.both(versions(source));
            if both.none() {
                let (has, other) = (versions(source).label(), wanted.label());
                let why = format_args!("is {has}, but to_address is {other}; accepted: one IP version in a rule");
                self.reader.refuse(node, why);
                return;
            }
            wanted = both;
        }
        self.match_reader().narrow(keys, matches, node, wanted);
    }

    /// The new source of twice: `None` for the interface's own.
    fn source(&self, node: &'y Node) -> Option<Option<Pool>> {
        if matches!(&node.value, Value::Scalar(text) if text == "masquerade") {
            return Some(None);
        }
        self.pool(node, &format!("masquerade, or {POOL}")).map(Some)
    }

    fn pool(&self, node: &'y Node, accepted: &str) -> Option<Pool> {
        let items = self.reader.one_or_many(node, accepted);
        if items.len() > MAX_RANGES {
            let count = items.len();
            self.reader.refuse(node, format_args!("has {count} ranges; accepted: at most {MAX_RANGES}"));
            return None;
        }
        let ranges: Vec<_> = items.iter().map(|item| self.addresses(item, accepted)).collect();
        Pool::new(ranges.into_iter().collect::<Option<Vec<_>>>()?)
    }

    /// The first and the last address of a range of a pool.
    fn addresses(&self, item: &'y Node, accepted: &str) -> Option<(IpAddr, IpAddr)> {
        let text = self.reader.text(item, accepted)?;
        let (first, last) = match Element::parse(text) {
            Ok(Element::Range(first, last)) => (first, last),
            Ok(Element::Prefix(net)) => (net.network(), net.broadcast()),
            Err(("is not valid", _)) => {
                self.reader.refuse_value(item, text, "is not an address", accepted);
                return None;
            }
            Err((why, accepted)) => {
                self.reader.refuse_value(item, text, why, accepted);
                return None;
            }
        };
        // What is not unicast is at the ends of the address spaces, but for one piece of each.
        let hole = match first {
            IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]),
        };
        if !is_unicast(first) || !is_unicast(last) || (first..=last).contains(&hole) {
            self.reader.refuse_value(item, text, "is not unicast", accepted);
            return None;
        }
        Some((first, last))
    }

    fn port_range(&self, node: &'y Node) -> Option<RangeInclusive<u16>> {
        self.reader.parsed(node, PORTS, |text| port_range(text).filter(|range| *range.start() > 0))
    }

    /// The new destination port, or where those of the match go one to one.
    fn to_port(&self, node: &'y Node, keys: &Matches<'y>, matches: &Match) -> Option<ToPort> {
        if matches.proto.is_empty() && keys.proto.is_none() || !matches.proto.iter().all(|p| WITH_PORTS.contains(p)) {
            let accepted = "in rules whose proto is tcp, udp, sctp or udplite, or some of these";
            self.reader.refuse(node, format_args!("needs a protocol with ports; accepted: {accepted}"));
        }
        let to = self.port_range(node)?;
        if to.start() == to.end() {
            return Some(ToPort::One(*to.start()));
        }
        match matches.dport.as_slice() {
            [from] if from.end() - from.start() == to.end() - to.start() => {
                Some(ToPort::Shift { from: *from.start(), to: *to.start() })
            }
            _ => {
                let ports = to.len();
                self.reader.refuse(
                    node,
                    format_args!("maps ports one to one; accepted: with \"dport\" being one range of {ports} ports"),
                );
                None
            }
        }
    }

    /// netmap: the end whose condition is one prefix like `to_prefix`.
    fn netmap(&self, keys: &Matches<'y>, to_prefix: Option<&'y Node>) -> (Match, Option<NatKind>) {
        let to = to_prefix.and_then(|node| Some((node, self.prefix(node)?)));
        let Some((node, to)) = to else { return (self.match_reader().matches(keys, Hook::Filter), None) };
        let like = |node: Option<&'y Node>| {
            let Value::Scalar(text) = &node?.value else { return None };
            let Ok(Element::Prefix(net)) = Element::parse(text) else { return None };
            (net.prefix_len() == to.prefix_len() && net.addr().is_ipv4() == to.addr().is_ipv4()).then_some(net)
        };
        let (side, from) = match (like(keys.source), like(keys.destination)) {
            (Some(from), None) => (NetmapSide::Source, from),
            (None, Some(from)) => (NetmapSide::Destination, from),
            (both, _) => {
                let why = if both.is_some() { "could replace either end" } else { "replaces nothing" };
                let kind = if to.addr().is_ipv4() { "IPv4" } else { "IPv6" };
                let accepted = format!(
                    "with one of \"source\" and \"destination\" being an {kind} prefix of length {}",
                    to.prefix_len()
                );
                self.reader.refuse(node, format_args!("{why}; accepted: {accepted}"));
                return (self.match_reader().matches(keys, Hook::Filter), None);
            }
        };
        let hook = if side == NetmapSide::Source { Hook::Snat } else { Hook::Dnat };
        (self.match_reader().matches(keys, hook), Some(NatKind::Netmap { from, to, side }))
    }

    /// nptv6: zones, interfaces, and two prefixes.
    fn nptv6(&self, item: &'y Node, keys: &Matches<'y>, to_prefix: Option<&'y Node>) -> (Match, Option<NatKind>) {
        let stateless = [
            keys.destination,
            keys.proto,
            keys.sport,
            keys.dport,
            keys.icmp_type,
            keys.tcp_flags,
            keys.state,
            keys.mark,
        ];
        for node in stateless.into_iter().flatten() {
            let why = "has no place here; accepted beside the prefixes: from, to, interface_in, interface_out";
            self.reader.refuse(node, why);
        }
        let zones = Matches {
            from: keys.from,
            to: keys.to,
            source: None,
            destination: None,
            proto: None,
            sport: None,
            dport: None,
            icmp_type: None,
            tcp_flags: None,
            state: None,
            mark: None,
            interface_in: keys.interface_in,
            interface_out: keys.interface_out,
        };
        let matches = self.match_reader().matches(&zones, Hook::Snat);
        let inside = self.reader.required(item, "source", keys.source).and_then(|node| self.nptv6_prefix(node));
        let outside = to_prefix.and_then(|node| Some((node, self.nptv6_prefix(node)?)));
        let (Some(inside), Some((node, outside))) = (inside, outside) else { return (matches, None) };
        if inside.prefix_len() != outside.prefix_len() {
            let (has, needs) = (outside.prefix_len(), inside.prefix_len());
            let why = format_args!("has length {has}, but source has {needs}; accepted: two prefixes of one length");
            self.reader.refuse(node, why);
        } else if inside == outside {
            self.reader.refuse(node, "is the source itself; accepted: another prefix");
        }
        (matches, Some(NatKind::Nptv6 { inside, outside }))
    }

    fn nptv6_prefix(&self, node: &'y Node) -> Option<Ipv6Net> {
        let accepted = "an IPv6 prefix of at most 64 bits such as 2001:db8:1::/48";
        let text = self.reader.text(node, accepted)?;
        match prefix(text) {
            Ok(IpNet::V6(net)) if net.prefix_len() <= 64 && net.prefix_len() > 0 => return Some(net),
            Ok(IpNet::V6(_)) => self.reader.refuse_value(node, text, "has no such length", accepted),
            Ok(IpNet::V4(_)) => self.reader.refuse_value(node, text, "is IPv4", accepted),
            Err((why, better)) => self.reader.refuse_value(node, text, why, better.as_deref().unwrap_or(accepted)),
        }
        None
    }

    fn prefix(&self, node: &'y Node) -> Option<IpNet> {
        let accepted = "a prefix such as 198.51.100.0/24";
        let text = self.reader.text(node, accepted)?;
        let refuse = |(why, better): (&str, Option<String>)| {
            self.reader.refuse_value(node, text, why, better.as_deref().unwrap_or(accepted));
        };
        prefix(text).map_err(refuse).ok()
    }
}

/// Whether two NPTv6 rules could both be about a packet.
fn collide(a: &NatRuleSpec, b: &NatRuleSpec) -> bool {
    let (NatKind::Nptv6 { inside: ai, outside: ao }, NatKind::Nptv6 { inside: bi, outside: bo }) = (&a.kind, &b.kind)
    else {
        return false;
    };
    fn meet<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        a.is_empty() || b.is_empty() || a.iter().any(|x| b.contains(x))
    }
    let overlap = |x: &Ipv6Net, y: &Ipv6Net| x.contains(y) || y.contains(x);
    (overlap(ai, bi) || overlap(ao, bo))
        && meet(&a.matches.from, &b.matches.from)
        && meet(&a.matches.to, &b.matches.to)
        && meet(&a.matches.interface_in, &b.matches.interface_in)
        && meet(&a.matches.interface_out, &b.matches.interface_out)
}
