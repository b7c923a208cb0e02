//! One rule's conditions, compiled.

use crate::api::policy::{AddrMatch, MAX_ZONES, Match, ZoneId};
use crate::conntrack::tuple::{Tuple, proto};
use crate::packet::CtState;

/// What a packet shows to the rules.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Addresses, protocol and ports as the hook sees them.
    pub tuple: &'a Tuple,
    /// Whether the L4 part of the tuple is known (not for fragments and cut-off headers).
    pub l4_known: bool,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Class.
    pub state: CtState,
    /// The connection's mark; 0 without one.
    pub mark: u32,
    /// Zone that it comes from.
    pub from: ZoneId,
    /// Zone that it goes to, once routed.
    pub to: Option<ZoneId>,
    /// Interface that it came in by; `None` from the gateway itself.
    pub interface_in: Option<u16>,
    /// Interface that it leaves by; `None` to the gateway itself, or not routed yet.
    pub interface_out: Option<u16>,
}

/// A set of up to 256 small numbers.
#[derive(Clone, Copy, Debug)]
struct Bits([u64; 4]);

impl Bits {
    /// All numbers where `items` is empty, else those in it.
    fn any_or(items: &[u8]) -> Self {
        if items.is_empty() {
            return Self([u64::MAX; 4]);
        }
        let mut b = [0; 4];
        for &i in items {
            b[usize::from(i / 64)] |= 1 << (i % 64);
        }
        Self(b)
    }

    const fn has(&self, i: u8) -> bool {
        self.0[(i / 64) as usize] >> (i % 64) & 1 == 1
    }
}

/// Conditions of one rule, cheapest first.
#[derive(Debug)]
pub struct Matcher {
    from: u64,
    to: u64,
    /// The rule says where packets go, so it cannot match before that is known.
    to_given: bool,
    states: u8,
    mark: Option<(u32, u32)>,
    protocols: Bits,
    ports: Option<Ports>,
    icmp_types: Option<Bits>,
    tcp_flags: Option<(u8, u8)>,
    interface_in: Vec<u16>,
    interface_out: Vec<u16>,
    source: Option<AddrMatch>,
    destination: Option<AddrMatch>,
}

#[derive(Debug)]
struct Ports {
    source: Vec<(u16, u16)>,
    destination: Vec<(u16, u16)>,
}

impl Matcher {
    /// Compiles `m`.
    pub fn new(m: &Match) -> Self {
        let zones = |z: &[ZoneId]| {
            if z.is_empty() { u64::MAX } else { z.iter().fold(0, |b, z| b | 1 << (usize::from(z.0) % MAX_ZONES)) }
        };
        let states = |s: &[CtState]| if s.is_empty() { u8::MAX } else { s.iter().fold(0, |b, &s| b | 1 << s as u8) };
        let ranges = |r: &[std::ops::RangeInclusive<u16>]| r.iter().map(|r| (*r.start(), *r.end())).collect::<Vec<_>>();
        let ports = Ports { source: ranges(&m.sport), destination: ranges(&m.dport) };
        Self {
            from: zones(&m.from),
            to: zones(&m.to),
            to_given: !m.to.is_empty(),
            states: states(&m.state),
            mark: m.mark,
            protocols: Bits::any_or(&m.proto),
            ports: (!m.sport.is_empty() || !m.dport.is_empty()).then_some(ports),
            icmp_types: (!m.icmp_type.is_empty()).then(|| Bits::any_or(&m.icmp_type)),
            tcp_flags: m.tcp_flags,
            interface_in: m.interface_in.clone(),
            interface_out: m.interface_out.clone(),
            source: m.source.clone(),
            destination: m.destination.clone(),
        }
    }

    /// Whether the rule matches.
    pub fn matches(&self, q: &Query<'_>) -> bool {
        let zone = |bits: u64, z: ZoneId| bits == u64::MAX || usize::from(z.0) < MAX_ZONES && bits >> z.0 & 1 == 1;
        let t = q.tuple;
        self.protocols.has(t.proto)
            && self.states >> q.state as u8 & 1 == 1
            && self.mark.is_none_or(|(mask, value)| q.mark & mask == value)
            && zone(self.from, q.from)
            && q.to.map_or(!self.to_given, |to| zone(self.to, to))
            && self.ports.as_ref().is_none_or(|p| q.l4_known && p.matches(t))
            && self.icmp_types.as_ref().is_none_or(|b| q.l4_known && t.is_icmp() && b.has(t.icmp_type()))
            && self
                .tcp_flags
                .is_none_or(|(mask, value)| q.l4_known && t.proto == proto::TCP && q.tcp_flags & mask == value)
            && among(&self.interface_in, q.interface_in)
            && among(&self.interface_out, q.interface_out)
            && address(self.source.as_ref(), t.src)
            && address(self.destination.as_ref(), t.dst)
    }
}

impl Ports {
    fn matches(&self, t: &Tuple) -> bool {
        let within = |ranges: &[(u16, u16)], p| ranges.is_empty() || ranges.iter().any(|&(lo, hi)| lo <= p && p <= hi);
        t.has_ports() && within(&self.source, t.sport) && within(&self.destination, t.dport)
    }
}

fn among(list: &[u16], interface: Option<u16>) -> bool {
    list.is_empty() || interface.is_some_and(|i| list.contains(&i))
}

fn address(condition: Option<&AddrMatch>, a: std::net::IpAddr) -> bool {
    condition.is_none_or(|c| c.set.contains(a) != c.negate)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::filter::addrset::AddrSet;

    fn tuple(proto: u8, dport: u16) -> Tuple {
        Tuple {
            src: Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: Ipv4Addr::new(192, 0, 2, 1).into(),
            proto,
            sport: 1024,
            dport,
            ct_zone: 0,
        }
    }

    fn query(t: &Tuple) -> Query<'_> {
        Query {
            tuple: t,
            l4_known: true,
            tcp_flags: 0x02,
            state: CtState::New,
            mark: 0x10,
            from: ZoneId(1),
            to: Some(ZoneId(2)),
            interface_in: Some(0),
            interface_out: Some(1),
        }
    }

    #[test]
    fn an_empty_rule_matches_everything() {
        for p in 0..=255 {
            assert!(Matcher::new(&Match::default()).matches(&query(&tuple(p, 0))));
        }
    }

    #[test]
    fn each_condition_can_refuse() {
        let t = tuple(proto::TCP, 443);
        let other =
            AddrMatch { negate: false, set: Arc::new(AddrSet::new(["203.0.113.0/24".parse().expect("prefix")], [])) };
        let base = Match::default;
        let refusing = [
            Match { from: vec![ZoneId(3)], ..base() },
            Match { to: vec![ZoneId::LOCAL], ..base() },
            Match { proto: vec![proto::UDP], ..base() },
            Match { dport: vec![80..=442, 444..=444], ..base() },
            Match { sport: vec![0..=1023], ..base() },
            Match { icmp_type: vec![8], ..base() },
            Match { tcp_flags: Some((0x12, 0x10)), ..base() },
            Match { state: vec![CtState::Established, CtState::Related], ..base() },
            Match { mark: Some((0xff, 0x11)), ..base() },
            Match { interface_in: vec![1], ..base() },
            Match { interface_out: vec![0], ..base() },
            Match { source: Some(other.clone()), ..base() },
            Match { destination: Some(other.clone()), ..base() },
        ];
        for m in refusing {
            assert!(!Matcher::new(&m).matches(&query(&t)), "{m:?}");
        }
        let accepting = [
            Match { dport: vec![80..=80, 443..=443], ..base() },
            Match { tcp_flags: Some((0x12, 0x02)), ..base() },
            Match { mark: Some((0xf0, 0x10)), ..base() },
            Match { source: Some(AddrMatch { negate: true, ..other }), ..base() },
        ];
        for m in accepting {
            assert!(Matcher::new(&m).matches(&query(&t)), "{m:?}");
        }
    }

    #[test]
    fn a_rule_with_a_destination_zone_does_not_match_before_routing() {
        let t = tuple(proto::TCP, 443);
        let q = Query { to: None, ..query(&t) };
        assert!(!Matcher::new(&Match { to: vec![ZoneId(2)], ..Match::default() }).matches(&q));
        assert!(Matcher::new(&Match::default()).matches(&q));
    }

    #[test]
    fn ports_do_not_match_icmp_or_fragments() {
        let m = Matcher::new(&Match { dport: vec![0..=u16::MAX], ..Match::default() });
        assert!(!m.matches(&query(&tuple(proto::ICMP, 8 << 8))));
        let t = tuple(proto::UDP, 0);
        assert!(!m.matches(&Query { l4_known: false, ..query(&t) }));
        assert!(m.matches(&query(&t)));
    }
}
