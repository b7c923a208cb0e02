//! What a rule matches, and what it cannot: keys that its hook does not know, IP versions that never meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::api::policy::{AddrMatch, AddrSet, CtState, Match, ZoneId};

use super::super::address::{self, Element, Union, of_version, versions, whole_version};
use super::super::error::quoted;
use super::super::names::{
    ICMP, ICMP_TYPES, ICMPV6, ICMPV6_TYPES, PROTOCOLS, TCP, TCP_FLAGS, WITH_PORTS, find, mark, tcp_flags,
};
use super::super::node::{Node, Value};
use super::super::reader::{Reader, decimal, words};
use super::super::schema::Matches;
use super::{Names, network};

/// Where a rule acts, which decides what it can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before connection tracking.
    Raw,
    /// After it, before routing: PREROUTING.
    Dnat,
    /// After routing and the filter: POSTROUTING.
    Snat,
    /// After routing.
    Filter,
}

/// IP versions: what a condition leaves possible.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Whether IPv4 is.
    pub v4: bool,
    /// Whether IPv6 is.
    pub v6: bool,
}

impl Versions {
    /// What both leave possible.
    pub const fn both(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    /// Whether nothing is left.
    pub const fn none(self) -> bool {
        !self.v4 && !self.v6
    }

    /// The version where one is left.
    pub const fn label(self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }
}

/// Reads match keys with the names that rules may use.
pub struct MatchReader<'a, 'y> {
    /// Takes what is wrong.
    pub reader: &'a Reader<'y>,
    /// Zones, interfaces and sets.
    pub names: &'a Names,
}

impl<'y> MatchReader<'_, 'y> {
    /// Reads the match keys of a rule in `hook`.
    pub fn matches(&self, keys: &Matches<'y>, hook: Hook) -> Match {
        self.check_hook(keys, hook);
        let proto = self.proto(keys.proto);
        let matches = Match {
            from: self.zones(keys.from),
            to: self.zones(keys.to),
            source: keys.source.and_then(|node| self.addresses(node)),
            destination: keys.destination.and_then(|node| self.addresses(node)),
            sport: self.ports(keys.sport, &proto, keys.proto.is_some()),
            dport: self.ports(keys.dport, &proto, keys.proto.is_some()),
            icmp_type: self.icmp_types(keys.icmp_type, &proto),
            tcp_flags: keys.tcp_flags.and_then(|node| self.tcp_flags(node, &proto)),
            state: self.states(keys.state),
            mark: keys.mark.and_then(|node| self.mark(node)),
            interface_in: self.interfaces(keys.interface_in),
            interface_out: self.interfaces(keys.interface_out),
            proto,
        };
        self.check_zones(keys, &matches, hook);
        self.check_versions(keys, &matches);
        matches
    }

    fn check_hook(&self, keys: &Matches<'y>, hook: Hook) {
        const ROUTING: &str = "routing";
        const TRACKING: &str = "connection tracking";
        let (to, out) = (("to", keys.to, ROUTING), ("interface_out", keys.interface_out, ROUTING));
        let (state, mark) = (("state", keys.state, TRACKING), ("mark", keys.mark, TRACKING));
        let unknown: &[(&str, Option<&Node>, &str)] = match hook {
            Hook::Raw => &[to, out, state, mark],
            Hook::Dnat => &[to, out, ("mark", keys.mark, "the filter, which sets marks")],
            Hook::Snat | Hook::Filter => &[],
        };
        for (key, node, before) in unknown {
            if let Some(node) = node {
                let why = format_args!("cannot be asked here: the rule acts before {before}; accepted: no {key:?}");
                self.reader.refuse(node, why);
            }
        }
    }

    /// Refuses what never happens: packets from the gateway to itself do not pass the dataplane.
    fn check_zones(&self, keys: &Matches<'y>, matches: &Match, hook: Hook) {
        let local = [ZoneId::LOCAL];
        let refuse = |node: Option<&Node>, message: &str| {
            if let Some(node) = node {
                self.reader.refuse_value(node, "local", message, "another zone");
            }
        };
        if matches.from == local && matches.to == local {
            refuse(keys.to, r#"is never where packets with "from: local" go"#);
        }
        if hook == Hook::Dnat && matches.from.contains(&ZoneId::LOCAL) {
            refuse(keys.from, "is not supported yet in rules that change the destination");
        }
        if hook == Hook::Snat && matches.to.contains(&ZoneId::LOCAL) {
            refuse(keys.to, "passes no source translation");
        }
        if matches.from == local && keys.interface_in.is_some() {
            refuse(keys.from, r#"has no "interface_in""#);
        }
        if matches.to == local && keys.interface_out.is_some() {
            refuse(keys.to, r#"has no "interface_out""#);
        }
    }

    fn check_versions(&self, keys: &Matches<'y>, matches: &Match) {
        let source = addresses_versions(matches.source.as_ref());
        let destination = addresses_versions(matches.destination.as_ref());
        let accepted = "one IP version in a rule";
        if let Some(node) = keys.destination
            && source.both(destination).none()
        {
            let (destination, source) = (destination.label(), source.label());
            self.reader.refuse(node, format_args!("is {destination}, but source is {source}; accepted: {accepted}"));
        } else if let Some(node) = keys.proto
            && source.both(destination).both(proto_versions(&matches.proto)).none()
        {
            let version = source.both(destination).label();
            self.reader.refuse(node, format_args!("never goes with {version} addresses; accepted: {accepted}"));
        }
    }

    /// Narrows `matches` to the IP versions of the new addresses in `node`, which no packet of the other can be given.
    pub fn narrow(&self, keys: &Matches<'y>, matches: &mut Match, node: &'y Node, wanted: Versions) {
        let conditions = [
            ("destination", keys.destination, addresses_versions(matches.destination.as_ref())),
            ("source", keys.source, addresses_versions(matches.source.as_ref())),
            ("proto", keys.proto, proto_versions(&matches.proto)),
        ];
        for (key, given, versions) in conditions {
            if given.is_some() && wanted.both(versions).none() {
                let (has, needs) = (wanted.label(), versions.label());
                let why = format_args!("is {has}, but {key} is {needs}; accepted: an {needs} address");
                self.reader.refuse(node, why);
                return;
            }
        }
        if wanted.v4 && wanted.v6 {
            return;
        }
        let (wanted_whole, other) = match wanted.v4 {
            true => (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            false => (Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()),
        };
        match &mut matches.destination {
            None => {
                let set = Arc::new(AddrSet::new([whole_version(wanted_whole)], []));
                matches.destination = Some(AddrMatch { negate: false, set });
            }
            Some(AddrMatch { negate: true, set }) => {
                let mut union = Union::default();
                union.add_set(set);
                union.add(Element::Prefix(whole_version(other)));
                *set = union.into_set();
            }
            Some(AddrMatch { negate: false, set }) => {
                let (v4, v6) = versions(set);
                if v4 && v6 {
                    *set = of_version(set, wanted_whole);
                }
            }
        }
    }

    fn zones(&self, node: Option<&'y Node>) -> Vec<ZoneId> {
        let Some(node) = node else { return Vec::new() };
        let known = || words(self.names.zones.iter().skip(1).map(String::as_str).chain(["local", "any"]));
        let items = self.reader.one_or_many(node, &known());
        let mut zones = Vec::new();
        for item in items {
            let Some(text) = self.reader.text(item, known()) else { continue };
            if text == "any" {
                if items.len() > 1 {
                    self.reader.refuse_value(item, text, "leaves nothing to the other zones", "any alone");
                }
                return Vec::new();
            }
            let index = self.names.zones.iter().position(|z| z == text);
            match index.and_then(|i| u8::try_from(i).ok()) {
                Some(i) => zones.push(ZoneId(i)),
                None => self.reader.refuse_value(item, text, "is not a zone", known()),
            }
        }
        zones
    }

    fn interfaces(&self, node: Option<&'y Node>) -> Vec<u16> {
        let items = node.map(|node| self.reader.one_or_many(node, "names of interfaces")).unwrap_or_default();
        items.iter().filter_map(|item| network::interface(item, self.reader, self.names)).collect()
    }

    /// A condition on addresses: elements and sets, one or a list, or `{not: …}`, or the text `not …`.
    fn addresses(&self, node: &'y Node) -> Option<AddrMatch> {
        let accepted = format!(r#"{}, a list of these, or {{not: …}}"#, address::ACCEPTED);
        if let Value::Map(entries) = &node.value {
            let [(key, inner)] = entries.as_slice() else {
                self.reader.refuse(node, format_args!("has {} keys; accepted: {accepted}", entries.len()));
                return None;
            };
            if key.text != "not" {
                let message = format!("unknown key {}; accepted: not", quoted(&key.text));
                self.reader.refuse_key(node, key, message);
                return None;
            }
            return Some(AddrMatch { negate: true, set: self.address_set(inner, &accepted)? });
        }
        if let Value::Scalar(text) = &node.value
            && let Some(rest) = text.strip_prefix("not ")
        {
            return Some(AddrMatch { negate: true, set: self.address_text(node, rest.trim())? });
        }
        Some(AddrMatch { negate: false, set: self.address_set(node, &accepted)? })
    }

    fn address_set(&self, node: &'y Node, accepted: &str) -> Option<Arc<AddrSet>> {
        let items = self.reader.one_or_many(node, accepted);
        if let [only] = items {
            return self.address_text(only, self.reader.text(only, accepted)?);
        }
        let mut union = Union::default();
        for item in items {
            let set = self.reader.text(item, accepted).and_then(|text| self.address_text(item, text));
            union.add_set(&set.unwrap_or_default());
        }
        if items.is_empty() { None } else { Some(union.into_set()) }
    }

    /// A named set, shared, or the set of one element.
    fn address_text(&self, node: &'y Node, text: &str) -> Option<Arc<AddrSet>> {
        if let Some(&index) = self.names.set_index.get(text) {
            return Some(Arc::clone(&self.names.sets[index].1));
        }
        match Element::parse(text) {
            Ok(element) => {
                let mut union = Union::default();
                union.add(element);
                Some(union.into_set())
            }
            Err((why, accepted)) => {
                // What begins with a letter and has no colon can only have meant a set.
                if text.starts_with(|c: char| c.is_alphabetic()) && !text.contains(':') {
                    let sets = words(self.names.sets.iter().map(|(name, _)| name.as_str()));
                    let accepted = if sets.is_empty() { "an address; no sets are defined".into() } else { sets };
                    self.reader.refuse_value(node, text, "is not a set", accepted);
                } else {
                    let accepted = if why == "is not valid" { address::ACCEPTED.into() } else { accepted };
                    self.reader.refuse_value(node, text, why, accepted);
                }
                None
            }
        }
    }

    fn proto(&self, node: Option<&'y Node>) -> Vec<u8> {
        node.map(|node| protocols(node, self.reader, "")).unwrap_or_default()
    }

    /// A mark, to match or to set: `(mask, value)`.
    pub fn mark(&self, node: &'y Node) -> Option<(u32, u32)> {
        let accepted = "a number such as 5 or 0x10, or number/mask such as 0x10/0xff without bits outside of the mask";
        self.reader.parsed(node, accepted, mark)
    }

    fn ports(&self, node: Option<&'y Node>, proto: &[u8], given: bool) -> Vec<RangeInclusive<u16>> {
        let Some(node) = node else { return Vec::new() };
        // Where `proto` was given but refused, that is error enough.
        if !(proto.iter().all(|p| WITH_PORTS.contains(p)) && (given || !proto.is_empty())) {
            let accepted = "in rules whose proto is tcp, udp or both (or sctp, udplite)";
            self.reader.refuse(node, format_args!("needs a protocol with ports; accepted: {accepted}"));
        }
        let accepted = "a port from 0 to 65535, a range such as 1024-2047, a list of these";
        let mut ports = Vec::new();
        for item in self.reader.one_or_many(node, accepted) {
            ports.extend(self.reader.parsed(item, accepted, port_range));
        }
        ports
    }

    fn icmp_types(&self, node: Option<&'y Node>, proto: &[u8]) -> Vec<u8> {
        let Some(node) = node else { return Vec::new() };
        let table = match proto {
            [ICMP] => ICMP_TYPES,
            [ICMPV6] => ICMPV6_TYPES,
            _ => {
                let accepted = "in rules whose proto is icmp or icmpv6, not both: their numbers differ";
                self.reader.refuse(node, format_args!("needs its protocol; accepted: {accepted}"));
                return Vec::new();
            }
        };
        let accepted = || format!("{}, or a number from 0 to 255", words(table.iter().map(|(name, _)| *name)));
        let mut types = Vec::new();
        for item in self.reader.one_or_many(node, &accepted()) {
            let Some(text) = self.reader.text(item, accepted()) else { continue };
            let number = || decimal(text).and_then(|n| u8::try_from(n).ok());
            match find(table, text).or_else(number) {
                Some(icmp_type) => types.push(icmp_type),
                None if text.contains('/') => {
                    self.reader.refuse_value(item, text, "has a code, which is not supported yet", accepted());
                }
                None => self.reader.refuse_value(item, text, "is not a type of this protocol", accepted()),
            }
        }
        types
    }

    /// `mask/set` as iptables has it, or a list of flags that are set and of `not flag` that are clear.
    fn tcp_flags(&self, node: &'y Node, proto: &[u8]) -> Option<(u8, u8)> {
        if proto != [TCP] {
            self.reader.refuse(node, "needs TCP; accepted: in rules whose proto is tcp");
        }
        let names = words(TCP_FLAGS.iter().map(|(name, _)| *name));
        let Value::Seq(_) = &node.value else {
            let accepted = format!(r#"mask/set such as "syn,ack,fin,rst/syn", of {names}, all, none"#);
            return self.reader.parsed(node, accepted, tcp_flags);
        };
        let accepted = format!(r#"flags and "not" flags, each once, of {names}"#);
        let (mut mask, mut set) = (0, 0);
        for item in self.reader.one_or_many(node, &accepted) {
            let (bit, is_set) = self.reader.parsed(item, &accepted, |text| {
                let name = text.strip_prefix("not ").map(str::trim);
                let bit = find(TCP_FLAGS, name.unwrap_or(text)).filter(|bit| mask & bit == 0)?;
                Some((bit, name.is_none()))
            })?;
            mask |= bit;
            set |= if is_set { bit } else { 0 };
        }
        (mask != 0).then_some((mask, set))
    }

    fn states(&self, node: Option<&'y Node>) -> Vec<CtState> {
        let known = CtState::ALL.map(|state| (state.label(), state));
        let accepted = words(known.iter().map(|(name, _)| *name));
        let items = node.map(|node| self.reader.one_or_many(node, &accepted)).unwrap_or_default();
        items.iter().filter_map(|item| self.reader.choice(item, &known, &["snat", "dnat"])).collect()
    }
}

/// A port, or `first-last`.
pub fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| u16::try_from(decimal(text.trim())?).ok();
    Some(port(first)?..=port(last)?).filter(|range| !range.is_empty())
}

/// Reads protocols, one or a list; `or` is what else `accepted` says first.
pub fn protocols<'y>(node: &'y Node, reader: &Reader<'y>, or: &str) -> Vec<u8> {
    let accepted = || format!("{or}{}, or a number from 0 to 255", words(PROTOCOLS.iter().map(|(name, _)| *name)));
    let mut protocols = Vec::new();
    for item in reader.one_or_many(node, &accepted()) {
        let Some(text) = reader.text(item, accepted()) else { continue };
        let number = || decimal(text).and_then(|n| u8::try_from(n).ok());
        match find(PROTOCOLS, text).or_else(number) {
            Some(proto) => protocols.push(proto),
            None => reader.refuse_value(item, text, "is not a protocol", accepted()),
        }
    }
    protocols
}

/// The IP versions of which a condition can match packets. `not` leaves both: what is outside an IPv4 prefix may be
/// IPv6.
fn addresses_versions(addresses: Option<&AddrMatch>) -> Versions {
    match addresses {
        Some(AddrMatch { negate: false, set }) if !set.is_empty() => {
            let (v4, v6) = versions(set);
            Versions { v4, v6 }
        }
        _ => Versions { v4: true, v6: true },
    }
}

fn proto_versions(proto: &[u8]) -> Versions {
    let only = |p| !proto.is_empty() && proto.iter().all(|&q| q == p);
    Versions { v4: !only(ICMPV6), v6: !only(ICMP) }
}
