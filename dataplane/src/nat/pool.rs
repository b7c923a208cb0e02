//! Addresses that a rule translates to, of either IP version or both.
//!
//! *Life-cycle*: part of a rule. *Threads*: immutable. *Limits*: at most [`MAX_RANGES`] ranges; of IPv6 at most 2^64
//! addresses each are used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Most ranges of a pool.
pub const MAX_RANGES: usize = 1024;

/// A run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u128,
    /// So many follow the first one.
    more: u64,
    /// How many addresses of its IP version come in runs before it.
    before: u64,
}

/// Addresses of both IP versions, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    v4: Box<[Run]>,
    v6: Box<[Run]>,
}

impl Pool {
    /// The pool of these ranges, first and last included; `None` where there are more than [`MAX_RANGES`], none, or one
    /// mixes IP versions or ends before it begins.
    pub fn new(ranges: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Option<Self> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut before = [0_u64; 2];
        for (first, last) in ranges {
            let (runs, before, first, last) = match (first, last) {
                (IpAddr::V4(f), IpAddr::V4(l)) => (&mut v4, &mut before[0], f.to_bits().into(), l.to_bits().into()),
                (IpAddr::V6(f), IpAddr::V6(l)) => (&mut v6, &mut before[1], f.to_bits(), l.to_bits()),
                _ => return None,
            };
            let more = u64::try_from(u128::checked_sub(last, first)?).unwrap_or(u64::MAX);
            runs.push(Run { first, more, before: *before });
            *before = before.saturating_add(more).saturating_add(1);
        }
        let count = v4.len() + v6.len();
        let pool = Self { v4: v4.into(), v6: v6.into() };
        (1..=MAX_RANGES).contains(&count).then_some(pool)
    }

    fn runs(&self, is_ipv4: bool) -> &[Run] {
        if is_ipv4 { &self.v4 } else { &self.v6 }
    }

    /// How many addresses of this IP version there are; 2^64 - 1 stands for more.
    pub fn len(&self, is_ipv4: bool) -> u64 {
        self.runs(is_ipv4).last().map_or(0, |r| r.before.saturating_add(r.more).saturating_add(1))
    }

    /// Whether there is none of this IP version.
    pub fn is_empty(&self, is_ipv4: bool) -> bool {
        self.runs(is_ipv4).is_empty()
    }

    /// The address of this IP version at place `n`, counted round.
    pub fn nth(&self, is_ipv4: bool, n: u64) -> Option<IpAddr> {
        let runs = self.runs(is_ipv4);
        let n = n.checked_rem(self.len(is_ipv4))?;
        let run = runs.get(runs.partition_point(|r| r.before <= n).checked_sub(1)?)?;
        let bits = run.first + u128::from(n - run.before);
        Some(match is_ipv4 {
            true => Ipv4Addr::from_bits(u32::try_from(bits).ok()?).into(),
            false => Ipv6Addr::from_bits(bits).into(),
        })
    }

    /// Whether `address` is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (is_ipv4, bits) = match address {
            IpAddr::V4(a) => (true, a.to_bits().into()),
            IpAddr::V6(a) => (false, a.to_bits()),
        };
        self.runs(is_ipv4).iter().any(|r| u128::checked_sub(bits, r.first).is_some_and(|d| d <= r.more.into()))
    }

    /// Its ranges as they were given, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<IpAddr>> {
        let v4 = |bits: u128| IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)));
        let v6 = |bits| IpAddr::V6(Ipv6Addr::from_bits(bits));
        let of_v4 = self.v4.iter().map(move |r| v4(r.first)..=v4(r.first + u128::from(r.more)));
        of_v4.chain(self.v6.iter().map(move |r| v6(r.first)..=v6(r.first + u128::from(r.more))))
    }
}

impl From<IpAddr> for Pool {
    fn from(address: IpAddr) -> Self {
        Self::new([(address, address)]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn addresses_are_counted_through_all_ranges_of_a_version() {
        let ranges =
            [("198.51.100.8", "198.51.100.9"), ("2001:db8::1", "2001:db8::3"), ("203.0.113.255", "203.0.114.0")];
        let pool = Pool::new(ranges.map(|(a, b)| (ip(a), ip(b)))).expect("a pool");
        let all: Vec<_> = (0..pool.len(true)).map(|n| pool.nth(true, n).expect("one").to_string()).collect();
        assert_eq!(all, ["198.51.100.8", "198.51.100.9", "203.0.113.255", "203.0.114.0"]);
        assert_eq!(pool.nth(true, 5), Some(ip("198.51.100.9")), "counted round");
        assert_eq!((pool.len(false), pool.nth(false, 2)), (3, Some(ip("2001:db8::3"))));
        let text: Vec<_> = pool.ranges().map(|r| format!("{}-{}", r.start(), r.end())).collect();
        assert_eq!(text, ["198.51.100.8-198.51.100.9", "203.0.113.255-203.0.114.0", "2001:db8::1-2001:db8::3"]);
    }

    #[test]
    fn what_is_no_range_makes_no_pool() {
        for (a, b) in [("198.51.100.2", "198.51.100.1"), ("198.51.100.1", "2001:db8::1")] {
            assert_eq!(Pool::new([(ip(a), ip(b))]), None);
        }
        assert_eq!(Pool::new([]), None);
        assert_eq!(Pool::from(ip("2001:db8::7")).nth(true, 0), None);
    }

    #[test]
    fn a_whole_address_space_is_a_pool() {
        let pool = Pool::new([(ip("::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))]).expect("a pool");
        assert_eq!(pool.len(false), u64::MAX);
        assert_eq!(pool.nth(false, u64::MAX - 1), Some(ip("::ffff:ffff:ffff:fffe")));
        let pool = Pool::new([(ip("0.0.0.0"), ip("255.255.255.255"))]).expect("a pool");
        assert_eq!(pool.nth(true, u64::from(u32::MAX)), Some(ip("255.255.255.255")));
    }

    proptest! {
        #[test]
        fn what_comes_out_is_in_it(ranges in proptest::collection::vec((any::<u32>(), 0_u32..1000), 1..9), n in any::<u64>()) {
            let ends = |(first, more): (u32, u32)| {
                (IpAddr::V4(first.into()), IpAddr::V4(first.saturating_add(more).into()))
            };
            let pool = Pool::new(ranges.into_iter().map(ends)).expect("a pool");
            let address = pool.nth(true, n).expect("there is one");
            prop_assert!(pool.contains(address));
            prop_assert!(pool.ranges().any(|r| r.contains(&address)));
        }
    }
}
