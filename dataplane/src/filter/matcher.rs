//! One rule's conditions, compiled: what decides whether a rule matches, also for those that the classifier proposes.
//!
//! *Threads*: immutable once built.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::addrset::merge;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits(pub(super) [u64; 4]);

impl Bits {
    /// All numbers.
    pub(super) const ALL: Self = Self([u64::MAX; 4]);

    /// Those in `items`.
    pub(super) fn of(items: &[u8]) -> Self {
        let mut b = [0; 4];
        for &i in items {
            b[usize::from(i / 64)] |= 1 << (i % 64);
        }
        Self(b)
    }

    pub(super) const fn has(&self, i: u8) -> bool {
        self.0[(i / 64) as usize] >> (i % 64) & 1 == 1
    }
}

/// Conditions of one rule. What most rules have is in place, so that one look at memory decides; the rest is behind a
/// pointer.
#[derive(Debug)]
pub struct Matcher {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) source: Addresses,
    pub(super) destination: Addresses,
    /// Mask and value; a mask of 0 matches every mark.
    mark: (u32, u32),
    /// From the lowest to the highest port that the rule names.
    sport: (u16, u16),
    dport: (u16, u16),
    pub(super) protocols: Protocols,
    pub(super) states: u8,
    /// The rule names zones, so that what is in none does not match.
    pub(super) from_given: bool,
    /// Likewise; and it cannot match before it is known where the packet goes.
    pub(super) to_given: bool,
    /// The rule names ports, so it matches only what has some.
    pub(super) ported: bool,
    pub(super) rest: Option<Box<Rest>>,
}

/// Conditions that few rules have.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Source ports, where they are not one range: sorted, disjoint ranges.
    pub(super) sports: Vec<(u16, u16)>,
    /// Destination ports, likewise.
    pub(super) dports: Vec<(u16, u16)>,
    pub(super) icmp_types: Option<Bits>,
    pub(super) tcp_flags: Option<(u8, u8)>,
    pub(super) interface_in: Vec<u16>,
    pub(super) interface_out: Vec<u16>,
}

/// A condition on IP protocols.
#[derive(Debug)]
pub(super) enum Protocols {
    Any,
    One(u8),
    Many(Box<Bits>),
}

/// A condition on an address.
#[derive(Debug)]
pub(super) enum Addresses {
    Any,
    /// From the one to the other.
    V4(u32, u32),
    V6(Box<(u128, u128)>),
    Set(AddrMatch),
}

impl Matcher {
    /// Compiles `m`.
    pub fn new(m: &Match) -> Self {
        let zones = |z: &[ZoneId]| {
            if z.is_empty() { u64::MAX } else { z.iter().fold(0, |b, z| b | 1 << (usize::from(z.0) % MAX_ZONES)) }
        };
        let states = |s: &[CtState]| if s.is_empty() { u8::MAX } else { s.iter().fold(0, |b, &s| b | 1 << s as u8) };
        let (sport, sports) = ports(&m.sport);
        let (dport, dports) = ports(&m.dport);
        let rest = Rest {
            sports,
            dports,
            icmp_types: (!m.icmp_type.is_empty()).then(|| Bits::of(&m.icmp_type)),
            tcp_flags: m.tcp_flags,
            interface_in: m.interface_in.clone(),
            interface_out: m.interface_out.clone(),
        };
        Self {
            from: zones(&m.from),
            to: zones(&m.to),
            source: Addresses::new(m.source.as_ref()),
            destination: Addresses::new(m.destination.as_ref()),
            mark: m.mark.unwrap_or((0, 0)),
            sport,
            dport,
            protocols: match m.proto[..] {
                [] => Protocols::Any,
                [one] => Protocols::One(one),
                ref many => Protocols::Many(Box::new(Bits::of(many))),
            },
            states: states(&m.state),
            from_given: !m.from.is_empty(),
            to_given: !m.to.is_empty(),
            ported: !m.sport.is_empty() || !m.dport.is_empty(),
            rest: (!rest.is_empty()).then(|| Box::new(rest)),
        }
    }

    /// Whether the rule matches.
    pub fn matches(&self, q: &Query<'_>) -> bool {
        let zone = |bits: u64, z: ZoneId| usize::from(z.0) < MAX_ZONES && bits >> z.0 & 1 == 1;
        let within = |(lo, hi): (u16, u16), port: u16| lo <= port && port <= hi;
        let t = q.tuple;
        self.protocols.has(t.proto)
            && self.states >> q.state as u8 & 1 == 1
            && q.mark & self.mark.0 == self.mark.1
            && (!self.from_given || zone(self.from, q.from))
            && (!self.to_given || q.to.is_some_and(|to| zone(self.to, to)))
            && (!self.ported
                || q.l4_known && t.has_ports() && within(self.sport, t.sport) && within(self.dport, t.dport))
            && self.source.has(t.src)
            && self.destination.has(t.dst)
            && self.rest.as_ref().is_none_or(|r| r.matches(q))
    }

    /// Whether it asks for nothing but zones, class, protocol and addresses.
    pub(super) fn is_plain(&self) -> bool {
        !self.ported && self.rest.is_none() && self.mark == (0, 0)
    }

    /// The source ports that it asks for: sorted, disjoint ranges.
    pub(super) fn sports(&self) -> &[(u16, u16)] {
        self.rest.as_ref().map(|r| &r.sports[..]).filter(|r| !r.is_empty()).unwrap_or(std::slice::from_ref(&self.sport))
    }

    /// The destination ports, likewise.
    pub(super) fn dports(&self) -> &[(u16, u16)] {
        self.rest.as_ref().map(|r| &r.dports[..]).filter(|r| !r.is_empty()).unwrap_or(std::slice::from_ref(&self.dport))
    }
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.sports.is_empty()
            && self.dports.is_empty()
            && self.icmp_types.is_none()
            && self.tcp_flags.is_none()
            && self.interface_in.is_empty()
            && self.interface_out.is_empty()
    }

    fn matches(&self, q: &Query<'_>) -> bool {
        let t = q.tuple;
        let among = |ranges: &[(u16, u16)], p: u16| {
            let at = ranges.partition_point(|&(_, hi)| hi < p);
            ranges.is_empty() || ranges.get(at).is_some_and(|&(lo, _)| lo <= p)
        };
        let listed = |list: &[u16], i: Option<u16>| list.is_empty() || i.is_some_and(|i| list.contains(&i));
        // `Matcher` has seen to it that there are ports where any are asked for.
        among(&self.sports, t.sport)
            && among(&self.dports, t.dport)
            && self.icmp_types.as_ref().is_none_or(|b| q.l4_known && t.is_icmp() && b.has(t.icmp_type()))
            && self
                .tcp_flags
                .is_none_or(|(mask, value)| q.l4_known && t.proto == proto::TCP && q.tcp_flags & mask == value)
            && listed(&self.interface_in, q.interface_in)
            && listed(&self.interface_out, q.interface_out)
    }
}

impl Protocols {
    fn has(&self, p: u8) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => *one == p,
            Self::Many(bits) => bits.has(p),
        }
    }

    /// As a set.
    pub(super) fn bits(&self) -> Bits {
        match self {
            Self::Any => Bits::ALL,
            Self::One(one) => Bits::of(&[*one]),
            Self::Many(bits) => **bits,
        }
    }
}

impl Addresses {
    fn new(condition: Option<&AddrMatch>) -> Self {
        let Some(c) = condition else { return Self::Any };
        match (c.negate, c.set.v4(), c.set.v6()) {
            (false, &[(lo, hi)], []) => Self::V4(lo, hi),
            (false, [], &[one]) => Self::V6(Box::new(one)),
            _ => Self::Set(c.clone()),
        }
    }

    fn has(&self, a: IpAddr) -> bool {
        match (self, a) {
            (Self::Any, _) => true,
            (Self::V4(lo, hi), IpAddr::V4(a)) => (*lo..=*hi).contains(&a.to_bits()),
            (Self::V6(one), IpAddr::V6(a)) => (one.0..=one.1).contains(&a.to_bits()),
            (Self::Set(c), a) => c.set.contains(a) != c.negate,
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The lowest and the highest port of `ranges`, all where there are none, and the ranges themselves, sorted and merged,
/// where they are not one.
fn ports(ranges: &[RangeInclusive<u16>]) -> ((u16, u16), Vec<(u16, u16)>) {
    let mut sorted: Vec<_> = ranges.iter().filter(|r| !r.is_empty()).map(|r| (*r.start(), *r.end())).collect();
    merge(&mut sorted, |p| p.checked_add(1));
    match (ranges, &sorted[..]) {
        ([], _) => ((0, u16::MAX), Vec::new()),
        (_, []) => ((u16::MAX, 0), Vec::new()), // no port is in empty ranges
        (_, &[one]) => (one, Vec::new()),
        (_, &[(lo, _), .., (_, hi)]) => ((lo, hi), sorted),
    }
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
    fn all_zones_are_not_the_same_as_any() {
        let t = tuple(proto::TCP, 443);
        let q = Query { from: ZoneId(u8::MAX), to: Some(ZoneId(u8::MAX)), ..query(&t) };
        let all: Vec<_> = (0..64).map(ZoneId).collect();
        assert!(Matcher::new(&Match::default()).matches(&q));
        assert!(!Matcher::new(&Match { from: all.clone(), ..Match::default() }).matches(&q));
        assert!(!Matcher::new(&Match { to: all, ..Match::default() }).matches(&q));
    }

    #[test]
    fn ranges_that_are_empty_hold_no_port() {
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
        let empty = Match { dport: vec![443..=80, 9..=8], ..Match::default() };
        assert!(!Matcher::new(&empty).matches(&query(&tuple(proto::TCP, 443))));
        assert!(!Matcher::new(&empty).matches(&query(&tuple(proto::TCP, 0))));
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
