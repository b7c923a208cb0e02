//! A set of addresses as sorted, disjoint intervals: membership in a binary search.
//!
//! *Threads*: immutable once built. *Limits*: none of its own; control bounds what it loads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses of both IP versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddrSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddrSet {
    /// The set of all addresses in `prefixes` and in the inclusive `ranges`; a range whose ends are of different IP
    /// versions or in the wrong order holds nothing.
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>, ranges: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let mut set = Self::default();
        for p in prefixes {
            match p {
                IpNet::V4(n) => set.v4.push((n.network().to_bits(), n.broadcast().to_bits())),
                IpNet::V6(n) => set.v6.push((n.network().to_bits(), n.broadcast().to_bits())),
            }
        }
        for r in ranges {
            match r {
                (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => set.v4.push((a.to_bits(), b.to_bits())),
                (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => set.v6.push((a.to_bits(), b.to_bits())),
                _ => {}
            }
        }
        merge(&mut set.v4, |v| v.checked_add(1));
        merge(&mut set.v6, |v| v.checked_add(1));
        set
    }

    /// Whether `a` is in the set.
    pub fn contains(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => within(&self.v4, a.to_bits()),
            IpAddr::V6(a) => within(&self.v6, a.to_bits()),
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The disjoint IPv4 intervals, ascending, as numbers; no two of them touch.
    pub(super) fn v4(&self) -> &[(u32, u32)] {
        &self.v4
    }

    /// The IPv6 intervals, likewise.
    pub(super) fn v6(&self) -> &[(u128, u128)] {
        &self.v6
    }

    /// The disjoint IPv4 intervals, ascending.
    pub fn intervals_v4(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
        self.v4.iter().map(|&(a, b)| (a.into(), b.into()))
    }

    /// The disjoint IPv6 intervals, ascending.
    pub fn intervals_v6(&self) -> impl Iterator<Item = (Ipv6Addr, Ipv6Addr)> {
        self.v6.iter().map(|&(a, b)| (a.into(), b.into()))
    }
}

/// Sorts intervals and joins those that overlap or touch.
pub(super) fn merge<T: Ord + Copy>(v: &mut Vec<(T, T)>, next: impl Fn(T) -> Option<T>) {
    v.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(v.len());
    for &(lo, hi) in v.iter() {
        match out.last_mut() {
            Some(last) if next(last.1).is_none_or(|n| lo <= n) => last.1 = last.1.max(hi),
            _ => out.push((lo, hi)),
        }
    }
    *v = out;
}

fn within<T: Ord + Copy>(v: &[(T, T)], a: T) -> bool {
    let i = v.partition_point(|&(lo, _)| lo <= a);
    i > 0 && v[i - 1].1 >= a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn membership_is_that_of_the_prefixes(
            prefixes in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            probes in proptest::collection::vec(any::<u32>(), 50),
        ) {
            let nets: Vec<IpNet> = prefixes.iter().map(|&(a, l)| {
                IpNet::new(Ipv4Addr::from_bits(a).into(), l).expect("length is at most 32")
            }).collect();
            let set = AddrSet::new(nets.iter().copied(), []);
            let ends = nets.iter().filter_map(|n| match n { IpNet::V4(n) => Some([n.network(), n.broadcast()]), IpNet::V6(_) => None });
            for a in probes.into_iter().map(Ipv4Addr::from_bits).chain(ends.flatten()) {
                prop_assert_eq!(set.contains(a.into()), nets.iter().any(|n| n.contains(&IpAddr::V4(a))));
            }
        }
    }

    #[test]
    fn the_whole_space_and_its_last_address() {
        let all =
            AddrSet::new(["0.0.0.0/0".parse().expect("prefix"), "255.255.255.255/32".parse().expect("prefix")], []);
        assert!(all.contains(Ipv4Addr::BROADCAST.into()) && all.contains(Ipv4Addr::UNSPECIFIED.into()));
        assert!(!all.contains(Ipv6Addr::LOCALHOST.into()));
    }
}
