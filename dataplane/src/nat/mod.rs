//! Address translation: choosing it edits a new connection's reply tuple; applying it rewrites a packet to the inverse
//! of the other direction's tuple. There is nothing else to it.
//!
//! *Threads*: one worker. *Sources*: RFC 3022, RFC 4787, RFC 5382, RFC 5508; `linux/net/netfilter/nf_nat_core.c`.

pub mod crowd;
pub mod fast;
pub mod mss;
pub mod pool;
pub mod ports;
pub mod prefix;
pub mod rewrite;
pub mod segment;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::api::policy::{NatKind, NatRuleSpec, Pool};
use crate::conntrack::tuple::Tuple;

/// Addresses of a pool that are tried for a connection when the first has no port free.
pub const ADDRESSES: u64 = 4;

/// The destination that `rule` gives to a connection whose first packet has tuple `original`: address, and source port (or
/// identifier) of its replies. `back`: it is
/// netmap's other way. `own`: the primary address of the interface that it came in by. `None` where there is no address.
pub fn destination(rule: &NatRuleSpec, back: bool, original: &Tuple, own: Option<IpAddr>) -> Option<(IpAddr, u16)> {
    let is_v4 = original.is_ipv4();
    let (address, port) = match &rule.kind {
        NatKind::Dnat { to, port } | NatKind::Twice { to, port, .. } => {
            (to.nth(is_v4, place(original, rule.persistent)), *port)
        }
        NatKind::Redirect { port } => (own, *port),
        NatKind::Netmap { from, to, .. } if back => (mapped(original.dst, *to, *from), None),
        NatKind::Netmap { from, to, .. } => (mapped(original.dst, *from, *to), None),
        _ => (Some(original.dst), None),
    };
    let plain = original.inverse();
    let port = port.filter(|_| original.has_ports()).map_or(plain.sport, |p| p.apply(original.dport));
    Some((address?, port))
}

/// Addresses that a connection's source may become, best first.
#[derive(Clone, Copy, Debug)]
pub enum Sources<'a> {
    /// This one.
    One(IpAddr),
    /// Those of a pool from this place on, so many.
    Pool(&'a Pool, u64, u64),
}

impl<'a> Sources<'a> {
    /// Those that `rule` gives; `own`: the primary address of the interface that it leaves by. `None` where there is none.
    pub fn of(rule: &'a NatRuleSpec, original: &Tuple, own: Option<IpAddr>) -> Option<Self> {
        match &rule.kind {
            NatKind::Snat { to: pool } | NatKind::Twice { source: Some(pool), .. } => {
                let tries = if rule.persistent { 1 } else { ADDRESSES.min(pool.len(original.is_ipv4())) };
                (tries > 0).then(|| Self::Pool(pool, place(original, rule.persistent), tries))
            }
            NatKind::Netmap { from, to, .. } => mapped(original.src, *from, *to).map(Self::One),
            _ => own.map(Self::One),
        }
    }

    /// The address to try at the `n`-th time.
    pub fn nth(&self, is_ipv4: bool, n: u64) -> Option<IpAddr> {
        match *self {
            Self::One(address) => (n == 0).then_some(address),
            Self::Pool(pool, first, tries) if n < tries => pool.nth(is_ipv4, first.wrapping_add(n)),
            Self::Pool(..) => None,
        }
    }

    /// Whether a connection with this source could have been given it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::One(one) => *one == address,
            Self::Pool(pool, ..) => pool.contains(address),
        }
    }
}

/// Where in a pool a connection begins: the same place for all of a client's where the rule is `persistent`, whatever the
/// worker and however often the gateway is started; else spread over all.
fn place(original: &Tuple, persistent: bool) -> u64 {
    let hash = ahash::RandomState::with_seeds(0x5d1c_e000, 0x6d5a_6d5a, 4787, 2663);
    if persistent { hash.hash_one(original.src) } else { hash.hash_one((original.src, original.dst)) }
}

/// What address `a` of prefix `from` becomes in `to`, of the same length: the host part stays. `None` where it is not in
/// `from`.
pub fn mapped(a: IpAddr, from: IpNet, to: IpNet) -> Option<IpAddr> {
    if !from.contains(&a) {
        return None;
    }
    match (a, from.hostmask(), to.network()) {
        (IpAddr::V4(a), IpAddr::V4(host), IpAddr::V4(net)) => {
            Some(Ipv4Addr::from_bits(a.to_bits() & host.to_bits() | net.to_bits()).into())
        }
        (IpAddr::V6(a), IpAddr::V6(host), IpAddr::V6(net)) => {
            Some(Ipv6Addr::from_bits(a.to_bits() & host.to_bits() | net.to_bits()).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::policy::{Match, ToPort};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn tuple(src: &str, dst: &str, dport: u16) -> Tuple {
        Tuple { src: ip(src), dst: ip(dst), proto: 6, sport: 4000, dport, ct_zone: 0 }
    }

    proptest! {
        #[test]
        fn a_mapped_prefix_maps_back(a in any::<u32>(), b in any::<u128>(), from in any::<u32>(), len in 0_u8..=32, len6 in 0_u8..=128) {
            for (a, from, to) in [
                (IpAddr::from(Ipv4Addr::from(a)), IpNet::new(Ipv4Addr::from(a).into(), len), IpNet::new(Ipv4Addr::from(from).into(), len)),
                (Ipv6Addr::from(b).into(), IpNet::new(Ipv6Addr::from(b).into(), len6), IpNet::new(Ipv6Addr::from(!b).into(), len6)),
            ] {
                let (from, to) = (from.expect("a prefix"), to.expect("a prefix"));
                let there = mapped(a, from, to).expect("it is in it");
                prop_assert!(to.contains(&there));
                prop_assert_eq!(mapped(there, to, from), Some(a));
            }
        }
    }

    #[test]
    fn what_is_not_in_the_prefix_is_not_mapped() {
        assert_eq!(mapped(ip("10.1.1.9"), net("10.1.0.0/24"), net("192.0.2.0/24")), None);
        assert_eq!(mapped(ip("10.1.0.9"), net("10.1.0.0/24"), net("192.0.2.0/24")), Some(ip("192.0.2.9")));
        assert_eq!(mapped(ip("10.1.0.9"), net("10.1.0.0/24"), net("2001:db8::/24")), None);
    }

    #[test]
    fn a_range_of_ports_is_mapped_one_to_one() {
        let to = ip("10.0.0.9").into();
        let kind = NatKind::Dnat { to, port: Some(ToPort::Shift { from: 8000, to: 65_000 }) };
        let rule = NatRuleSpec::new("r", Match::default(), kind);
        for (port, becomes) in [(8000, 65_000), (8099, 65_099), (8535, 65_535)] {
            let found = destination(&rule, false, &tuple("203.0.113.5", "198.51.100.1", port), None);
            assert_eq!(found, Some((ip("10.0.0.9"), becomes)));
        }
    }

    #[test]
    fn a_client_keeps_its_address_where_the_rule_is_persistent() {
        let pool = Pool::new([(ip("198.51.100.0"), ip("198.51.100.255"))]).expect("a pool");
        for persistent in [true, false] {
            let kind = NatKind::Snat { to: pool.clone() };
            let rule = NatRuleSpec { persistent, ..NatRuleSpec::new("r", Match::default(), kind) };
            let first = |dst: &str| {
                let sources = Sources::of(&rule, &tuple("10.0.0.2", dst, 80), None).expect("there are some");
                assert_eq!(sources.nth(true, 1).is_none(), persistent);
                sources.nth(true, 0).expect("one")
            };
            let all: std::collections::BTreeSet<_> = (1..50).map(|n| first(&format!("203.0.113.{n}"))).collect();
            assert_eq!(all.len() == 1, persistent, "{all:?}");
            assert!(all.iter().all(|&a| pool.contains(a)));
        }
    }

    #[test]
    fn a_redirect_needs_an_address() {
        let rule = NatRuleSpec::new("r", Match::default(), NatKind::Redirect { port: None });
        let t = tuple("10.0.0.2", "203.0.113.5", 80);
        assert_eq!(destination(&rule, false, &t, None), None);
        assert_eq!(destination(&rule, false, &t, Some(ip("10.0.0.1"))), Some((ip("10.0.0.1"), 80)));
    }
}
