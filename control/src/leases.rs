//! Translated ports: of each address how many are in use and free, and how long the free ones last at the present rate.
//!
//! An address holds each port once for every destination, so what is called free here is what is left if all went to
//! one: the number that an operator wants to know before it is needed.
//!
//! *Life-cycle*: the gateway owns a [`Meter`]; [`watch`] feeds it once a second for as long as the gateway runs, and the
//! metrics read it when they are scraped. *Threads*: control's tokio thread. *Limits*: addresses that are in use (the
//! workers count [`NAT_ADDRESSES`](dataplane::api::stats::NAT_ADDRESSES) each one by one), and of pools of at most
//! [`SMALL_POOL`] addresses all, until there are [`MOST_ADDRESSES`].

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use dataplane::api::policy::{NatKind, NatRuleSpec, Pool};
use dataplane::api::stats::NAT_PROTOCOLS;
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::gateway::Gateway;

/// Addresses of a pool that are all listed, in use or not.
pub const SMALL_POOL: u64 = 32;

/// Addresses after which only those in use are listed.
pub const MOST_ADDRESSES: usize = 256;

/// How often the use is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Over how long a rate is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// Ports that a rule without `source_ports` chooses from for nearly all connections: clients use those from 1024 up.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// Identifiers that it chooses from.
const IDENTIFIERS: RangeInclusive<u16> = 0..=u16::MAX;

/// IP protocols by index of [`NAT_PROTOCOLS`]; of the others nothing is known to be free.
const NUMBERS: [&[u8]; 3] = [&[6], &[17], &[1, 58]];

/// Something of each protocol of [`NAT_PROTOCOLS`].
pub type PerProto<T> = [T; NAT_PROTOCOLS.len()];

/// Ports of one address and protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Leases.
    pub used: u64,
    /// What rules may still choose, where that is known; `None` where no rule translates to the address.
    pub free: Option<u64>,
}

/// The ports of all addresses that are translated to.
pub fn ports(g: &Gateway) -> BTreeMap<IpAddr, PerProto<Ports>> {
    let config = g.config();
    let live = |i: usize| match &g.kernel {
        Some(kernel) => kernel.state.read().addresses(i),
        None => config.interfaces[i].addresses.clone(),
    };
    let interfaces: Vec<_> =
        config.interfaces.iter().enumerate().map(|(i, interface)| (interface.zone.0, primaries(&live(i)))).collect();
    let sources = sources(&config.policy.nat, &interfaces);
    let mut all: BTreeMap<IpAddr, PerProto<Ports>> =
        sources.iter().flat_map(|s| s.listed()).take(MOST_ADDRESSES).map(|a| (a, Default::default())).collect();
    for (address, used) in used(g) {
        for (ports, used) in all.entry(address).or_default().iter_mut().zip(used) {
            ports.used = used;
        }
    }
    for (address, protocols) in &mut all {
        for (ports, space) in protocols.iter_mut().zip(spaces(&sources, *address)) {
            ports.free = space.map(|space| space.saturating_sub(ports.used));
        }
    }
    all
}

/// Leases by address, of all workers together.
fn used(g: &Gateway) -> Used {
    let mut used = Used::new();
    for place in g.workers.stats().flat_map(|s| &s.nat) {
        let Some(address) = place.address() else { continue };
        let sums = used.entry(address).or_default();
        for (sum, counter) in sums.iter_mut().zip(&place.leases) {
            *sum = sum.wrapping_add(counter.value());
        }
    }
    used
}

/// The addresses of an interface that masquerade uses: the first of each IP version.
fn primaries(addresses: &[IpNet]) -> Vec<IpAddr> {
    let link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    let first = |v4: bool| addresses.iter().map(IpNet::addr).find(|a| a.is_ipv4() == v4 && !link_local(a));
    first(true).into_iter().chain(first(false)).collect()
}

/// Where a rule takes new sources from.
struct Source<'a> {
    rule: &'a NatRuleSpec,
    addresses: Addresses<'a>,
}

enum Addresses<'a> {
    Pool(&'a Pool),
    Interfaces(Vec<IpAddr>),
}

/// The rules that choose source ports; `interfaces` are the zone and the primary addresses of each.
fn sources<'a>(rules: &'a [NatRuleSpec], interfaces: &[(u8, Vec<IpAddr>)]) -> Vec<Source<'a>> {
    let of = |rule: &'a NatRuleSpec| {
        let pool = match &rule.kind {
            NatKind::Snat { to } => Some(to),
            NatKind::Twice { source, .. } => source.as_ref(),
            NatKind::Masquerade => None,
            NatKind::None
            | NatKind::Dnat { .. }
            | NatKind::Redirect { .. }
            | NatKind::Netmap { .. }
            | NatKind::Nptv6 { .. } => return None,
        };
        let m = &rule.matches;
        let leaves_by = |i: usize, zone: u8| {
            (m.to.is_empty() || m.to.iter().any(|z| z.0 == zone))
                && (m.interface_out.is_empty() || m.interface_out.iter().any(|&o| usize::from(o) == i))
        };
        let egress = || {
            let all = interfaces.iter().enumerate().filter(|&(i, (zone, _))| leaves_by(i, *zone));
            all.flat_map(|(_, (_, addresses))| addresses.clone()).collect()
        };
        Some(Source { rule, addresses: pool.map_or_else(|| Addresses::Interfaces(egress()), Addresses::Pool) })
    };
    rules.iter().filter_map(of).collect()
}

impl Source<'_> {
    /// Its addresses, where they are few.
    fn listed(&self) -> Vec<IpAddr> {
        match &self.addresses {
            Addresses::Interfaces(all) => all.clone(),
            Addresses::Pool(pool) => {
                let small = |v4| (0..pool.len(v4)).filter_map(move |n| pool.nth(v4, n));
                let few = pool.len(true).saturating_add(pool.len(false)) <= SMALL_POOL;
                if few { small(true).chain(small(false)).collect() } else { Vec::new() }
            }
        }
    }

    /// Whether it may choose `address`.
    fn has(&self, address: IpAddr) -> bool {
        match &self.addresses {
            Addresses::Pool(pool) => pool.contains(address),
            Addresses::Interfaces(all) => all.contains(&address),
        }
    }

    /// The ports (or identifiers) that it may choose for protocol `kind`.
    fn ports(&self, kind: usize) -> Option<RangeInclusive<u16>> {
        let proto = &self.rule.matches.proto;
        let numbers = NUMBERS.get(kind)?;
        let may = proto.is_empty() || proto.iter().any(|p| numbers.contains(p));
        let default = if numbers.contains(&1) { IDENTIFIERS } else { PORTS };
        may.then(|| self.rule.ports.clone().unwrap_or(default))
    }
}

/// How many ports of `address` all rules together may choose from.
fn spaces(sources: &[Source<'_>], address: IpAddr) -> PerProto<Option<u64>> {
    let of_address: Vec<_> = sources.iter().filter(|s| s.has(address)).collect();
    std::array::from_fn(|kind| {
        let mut ranges: Vec<_> = of_address.iter().filter_map(|s| s.ports(kind)).collect();
        ranges.sort_unstable_by_key(|r| *r.start());
        let (mut space, mut next) = (None, 0);
        for r in ranges {
            let (first, end) = (u32::from(*r.start()).max(next), u32::from(*r.end()) + 1);
            *space.get_or_insert(0) += u64::from(end.saturating_sub(first));
            next = next.max(end);
        }
        space
    })
}

/// Leases by address.
type Used = BTreeMap<IpAddr, PerProto<u64>>;

/// Remembers the use of the last seconds.
#[derive(Debug, Default)]
pub struct Meter(Mutex<VecDeque<(Duration, Used)>>);

impl Meter {
    /// Takes in the use at `now`, since an arbitrary start.
    fn take(&self, now: Duration, used: Used) {
        let mut samples = self.0.lock();
        // The last sample from before the window is what the window began with.
        while samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            samples.pop_front();
        }
        samples.push_back((now, used));
    }

    /// Leases of `address` for protocol `kind` that were made and not given back, per second.
    fn rate(&self, address: IpAddr, kind: usize) -> f64 {
        let samples = self.0.lock();
        let (Some((begin, before)), Some((end, after))) = (samples.front(), samples.back()) else { return 0.0 };
        let of = |used: &Used| used.get(&address).map_or(0, |u| u[kind]);
        let seconds = end.saturating_sub(*begin).as_secs_f64();
        if seconds > 0.0 { (of(after) as f64 - of(before) as f64) / seconds } else { 0.0 }
    }

    /// Seconds until no port of `address` is free for protocol `kind`, at the rate of the last seconds; infinite where
    /// the use does not grow.
    pub fn exhaustion_seconds(&self, address: IpAddr, kind: usize, free: u64) -> f64 {
        let rate = self.rate(address, kind);
        match free {
            0 => 0.0,
            _ if rate > 0.0 => free as f64 / rate,
            _ => f64::INFINITY,
        }
    }
}

/// Feeds the gateway's meter for as long as the gateway runs.
pub async fn watch(g: Arc<Gateway>) {
    let begin = tokio::time::Instant::now();
    loop {
        g.leases.take(begin.elapsed(), used(&g));
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use dataplane::api::policy::{Match, ZoneId};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn rule(kind: NatKind) -> NatRuleSpec {
        NatRuleSpec::new("r", Match::default(), kind)
    }

    fn snat(first: &str, last: &str) -> NatRuleSpec {
        rule(NatKind::Snat { to: Pool::new([(ip(first), ip(last))]).expect("a pool") })
    }

    fn interfaces() -> Vec<(u8, Vec<IpAddr>)> {
        vec![(1, vec![ip("10.0.0.1")]), (2, vec![ip("203.0.113.1"), ip("2001:db8::1")])]
    }

    #[test]
    fn the_space_of_an_address_is_what_any_rule_may_choose() {
        let ports = |rule: NatRuleSpec, ports| NatRuleSpec { ports: Some(ports), ..rule };
        let mut udp = ports(snat("198.51.100.1", "198.51.100.1"), 9000..=9009);
        udp.matches.proto = vec![17];
        let rules = [
            ports(snat("198.51.100.1", "198.51.100.2"), 4000..=4999),
            ports(snat("198.51.100.1", "198.51.100.1"), 4500..=5499),
            ports(snat("198.51.100.1", "198.51.100.1"), 4600..=4700),
            ports(snat("198.51.100.3", "198.51.100.3"), 65_535..=65_535),
            snat("198.51.100.4", "198.51.100.4"),
            udp,
        ];
        let sources = sources(&rules, &interfaces());
        let of = |address: &str| spaces(&sources, ip(address));
        assert_eq!(of("198.51.100.1"), [Some(1500), Some(1510), Some(1500), None]);
        assert_eq!(of("198.51.100.2"), [Some(1000), Some(1000), Some(1000), None]);
        assert_eq!(of("198.51.100.3"), [Some(1), Some(1), Some(1), None]);
        assert_eq!(of("198.51.100.4"), [Some(64_512), Some(64_512), Some(65_536), None]);
        assert_eq!(of("198.51.100.5"), [None; 4], "no rule translates to it");
    }

    #[test]
    fn small_pools_and_interfaces_are_listed_whole() {
        let mut masquerade = rule(NatKind::Masquerade);
        masquerade.matches.to = vec![ZoneId(2)];
        let to = Pool::from(ip("10.0.0.9"));
        let rules = [
            masquerade,
            snat("198.51.100.0", "198.51.100.31"),
            snat("192.0.2.0", "192.0.2.32"),
            snat("2001:db8:1::", "2001:db8:1::ffff:ffff"),
            rule(NatKind::Twice { to: to.clone(), port: None, source: Some(ip("10.0.0.7").into()) }),
            rule(NatKind::Dnat { to, port: None }),
        ];
        let sources = sources(&rules, &interfaces());
        let listed: Vec<_> = sources.iter().map(|s| s.listed().len()).collect();
        assert_eq!(listed, [2, 32, 0, 0, 1], "the gateway's two, all of a small pool, none of large ones");
        assert_eq!(sources[0].listed(), [ip("203.0.113.1"), ip("2001:db8::1")]);
        let everywhere = [rule(NatKind::Masquerade)];
        assert_eq!(super::sources(&everywhere, &interfaces())[0].listed().len(), 3);
        let mut by_lan = rule(NatKind::Masquerade);
        by_lan.matches.interface_out = vec![0];
        assert_eq!(super::sources(&[by_lan], &interfaces())[0].listed(), [ip("10.0.0.1")]);
    }

    #[test]
    fn masquerade_uses_the_first_address_of_each_version() {
        let nets: Vec<IpNet> = ["fe80::1/64", "203.0.113.1/24", "203.0.113.2/24", "2001:db8::1/64"]
            .map(|n| n.parse().expect("net"))
            .to_vec();
        assert_eq!(primaries(&nets), [ip("203.0.113.1"), ip("2001:db8::1")]);
        assert_eq!(primaries(&nets[..1]), [] as [IpAddr; 0]);
    }

    #[test]
    fn free_ports_last_as_long_as_the_net_growth_of_ten_seconds_says() {
        let a = ip("198.51.100.1");
        let meter = Meter::default();
        let at = Duration::from_secs;
        let used = |n| BTreeMap::from([(a, [n, 0, 7, 0])]);
        assert_eq!(meter.exhaustion_seconds(a, 0, 100), f64::INFINITY, "nothing is known yet");
        meter.take(at(0), BTreeMap::new());
        assert_eq!(meter.exhaustion_seconds(a, 0, 100), f64::INFINITY, "one look tells no rate");
        meter.take(at(1), used(10));
        assert_eq!(meter.exhaustion_seconds(a, 0, 100), 10.0);
        for second in 2..=20 {
            meter.take(at(second), used(10 + 5 * (second - 1)));
        }
        assert_eq!(meter.exhaustion_seconds(a, 0, 100), 20.0, "five a second");
        assert_eq!(meter.exhaustion_seconds(a, 2, 100), f64::INFINITY, "as many come as go");
        assert_eq!(meter.exhaustion_seconds(ip("198.51.100.2"), 0, 100), f64::INFINITY);
        assert_eq!(meter.exhaustion_seconds(a, 0, 0), 0.0);
        for second in 21..=40 {
            meter.take(at(second), used(105 - second));
        }
        assert_eq!(meter.exhaustion_seconds(a, 0, 100), f64::INFINITY, "it shrinks");
        assert!(meter.0.lock().len() <= 12, "what is older than the window is forgotten");
    }
}
