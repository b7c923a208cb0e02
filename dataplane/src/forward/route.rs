//! The forwarding table: which interface and next hop a destination has, and which addresses are the gateway's own.
//!
//! *Life-cycle*: `control` mirrors the kernel's tables into a [`FibSpec`], builds a [`Fib`] and sends an `Arc` of it to
//! each worker, which sends the old one back. *Threads*: immutable once built.
//! *Limits*: none here; the kernel's table bounds it. *Sources*: RFC 1812 section 5.2.4.3 (longest match).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::RandomState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::ranges::Ranges;

/// What control knows of routes and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FibSpec {
    /// Routes, at most one per prefix (the caller has chosen by metric).
    pub routes: Vec<RouteSpec>,
    /// Routes that one of the same prefix hides, best first: only conntrack zones ask for them, which may overlap.
    pub others: Vec<RouteSpec>,
    /// Addresses of each interface with their prefix length, the primary one of each version first.
    pub addresses: Vec<(u16, IpNet)>,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destinations.
    pub prefix: IpNet,
    /// Where they are.
    pub target: RouteTarget,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteTarget {
    /// Out of `interface`, to `gateway`, or to the destination itself where there is none.
    Via {
        /// Interface index.
        interface: u16,
        /// The next router.
        gateway: Option<IpAddr>,
    },
    /// Discard silently.
    Blackhole,
    /// Discard and answer host unreachable.
    Unreachable,
    /// Discard and answer administratively prohibited.
    Prohibit,
}

/// What the table says of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The gateway itself.
    Local,
    /// Forward out of `interface` to the station that has `address`.
    Via {
        /// Interface index.
        interface: u16,
        /// The next hop's address on that link.
        address: IpAddr,
    },
    /// Discard silently.
    Blackhole,
    /// Discard and answer host unreachable.
    Unreachable,
    /// Discard and answer administratively prohibited.
    Prohibit,
    /// No route.
    None,
}

/// What holds for an IPv4 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    target: Option<RouteTarget>,
    /// It is the gateway's own.
    pub local: bool,
    /// It is the directed broadcast address of an attached subnet.
    pub broadcast: bool,
}

impl Place {
    /// The next hop of `dst`, which is there.
    #[inline]
    pub fn next_hop(&self, dst: Ipv4Addr) -> NextHop {
        if self.local { NextHop::Local } else { Fib::next_hop(self.target, dst.into()) }
    }
}

/// The compiled table.
#[derive(Debug)]
pub struct Fib {
    /// All that is known of IPv4 addresses, but for conntrack zones.
    places: Ranges<Place>,
    v4: PrefixMap<Ipv4Net, RouteTarget>,
    v6: PrefixMap<Ipv6Net, RouteTarget>,
    others_v4: PrefixMap<Ipv4Net, Vec<RouteTarget>>,
    others_v6: PrefixMap<Ipv6Net, Vec<RouteTarget>>,
    /// The gateway's IPv6 addresses.
    local: std::collections::HashSet<Ipv6Addr, RandomState>,
    on: std::collections::HashSet<(u16, IpAddr), RandomState>,
    /// Per interface: its addresses.
    of_interface: Vec<Vec<IpNet>>,
    /// Per interface: primary IPv4 and IPv6 address.
    primary: Vec<(Option<Ipv4Addr>, Option<Ipv6Addr>)>,
    spec: FibSpec,
}

impl Fib {
    /// Builds the table. Link-local IPv6 prefixes need no route: they stay on their link.
    pub fn build(spec: FibSpec) -> Self {
        let mut v4 = PrefixMap::new();
        let mut v6 = PrefixMap::new();
        for r in &spec.routes {
            match r.prefix {
                IpNet::V4(p) => drop(v4.insert(p.trunc(), r.target)),
                IpNet::V6(p) => drop(v6.insert(p.trunc(), r.target)),
            }
        }
        let mut others_v4: PrefixMap<Ipv4Net, Vec<RouteTarget>> = PrefixMap::new();
        let mut others_v6: PrefixMap<Ipv6Net, Vec<RouteTarget>> = PrefixMap::new();
        for r in &spec.others {
            match r.prefix {
                IpNet::V4(p) => others_v4.entry(p.trunc()).or_default().push(r.target),
                IpNet::V6(p) => others_v6.entry(p.trunc()).or_default().push(r.target),
            }
        }
        let mut local = std::collections::HashSet::with_hasher(RandomState::new());
        let mut on = std::collections::HashSet::with_hasher(RandomState::new());
        // Of IPv4: address, whether it is ours, whether it is a subnet's broadcast address.
        let mut points: Vec<(Ipv4Addr, bool, bool)> = Vec::new();
        let mut of_interface: Vec<Vec<IpNet>> = Vec::new();
        let mut primary: Vec<(Option<Ipv4Addr>, Option<Ipv6Addr>)> = Vec::new();
        for &(interface, net) in &spec.addresses {
            let i = usize::from(interface);
            if primary.len() <= i {
                primary.resize(i + 1, (None, None));
            }
            if of_interface.len() <= i {
                of_interface.resize(i + 1, Vec::new());
            }
            of_interface[i].push(net);
            match net.addr() {
                IpAddr::V4(a) => points.push((a, true, false)),
                IpAddr::V6(a) => drop(local.insert(a)),
            }
            on.insert((interface, net.addr()));
            match net {
                IpNet::V4(n) => {
                    primary[i].0.get_or_insert(n.addr());
                    if n.prefix_len() < 31 {
                        // The lowest address is a host's like any other: linux since 5.14, `fib_add_ifaddr`.
                        points.push((n.broadcast(), false, true));
                    }
                }
                IpNet::V6(n) if !n.addr().is_unicast_link_local() => {
                    primary[i].1.get_or_insert(n.addr());
                }
                IpNet::V6(_) => {}
            }
        }
        let places = places(&v4, points);
        Self { places, v4, v6, others_v4, others_v6, local, on, of_interface, primary, spec }
    }

    /// What is known of an IPv4 address.
    #[inline]
    pub fn place(&self, a: Ipv4Addr) -> Place {
        self.places.of(a.to_bits()).copied().unwrap_or_default()
    }

    /// The next hop of a unicast destination.
    pub fn lookup(&self, dst: IpAddr) -> NextHop {
        match dst {
            IpAddr::V4(a) => self.place(a).next_hop(a),
            IpAddr::V6(a) if self.local.contains(&a) => NextHop::Local,
            IpAddr::V6(a) => Self::next_hop(self.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, t)| *t), dst),
        }
    }

    /// The same by routes out of interfaces that `allowed` names alone, where one leads there: addresses of different
    /// conntrack zones may overlap.
    pub fn lookup_among(&self, dst: IpAddr, allowed: impl Fn(u16) -> bool) -> NextHop {
        if self.is_local(dst) {
            return NextHop::Local;
        }
        let ours = |t: &&RouteTarget| matches!(t, RouteTarget::Via { interface, .. } if allowed(*interface));
        // Prefixes come from the shortest to the longest.
        let (best, other) = match dst {
            IpAddr::V4(a) => {
                let net = Ipv4Net::from(a);
                let best = self.v4.cover(&net).filter(|(_, t)| ours(t)).last().map(|(p, t)| (p.prefix_len(), *t));
                let others =
                    self.others_v4.cover(&net).filter_map(|(p, t)| Some((p.prefix_len(), *t.iter().find(ours)?)));
                (best, others.last())
            }
            IpAddr::V6(a) => {
                let net = Ipv6Net::from(a);
                let best = self.v6.cover(&net).filter(|(_, t)| ours(t)).last().map(|(p, t)| (p.prefix_len(), *t));
                let others =
                    self.others_v6.cover(&net).filter_map(|(p, t)| Some((p.prefix_len(), *t.iter().find(ours)?)));
                (best, others.last())
            }
        };
        let target = match (best, other) {
            (Some((b, _)), Some((o, t))) if o > b => Some(t),
            (Some((_, t)), _) | (None, Some((_, t))) => Some(t),
            (None, None) => return self.lookup(dst),
        };
        Self::next_hop(target, dst)
    }

    fn next_hop(target: Option<RouteTarget>, dst: IpAddr) -> NextHop {
        match target {
            Some(RouteTarget::Via { interface, gateway }) => {
                NextHop::Via { interface, address: gateway.unwrap_or(dst) }
            }
            Some(RouteTarget::Blackhole) => NextHop::Blackhole,
            Some(RouteTarget::Unreachable) => NextHop::Unreachable,
            Some(RouteTarget::Prohibit) => NextHop::Prohibit,
            None => NextHop::None,
        }
    }

    /// Whether `a` is an address of the gateway itself.
    pub fn is_local(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => self.place(a).local,
            IpAddr::V6(a) => self.local.contains(&a),
        }
    }

    /// The interface that `a` is on: as its address, or by the route there.
    pub fn side_of(&self, a: IpAddr) -> Option<u16> {
        match self.lookup(a) {
            NextHop::Local => {
                let first = self.of_interface.iter().position(|all| all.iter().any(|n| n.addr() == a));
                first.and_then(|i| u16::try_from(i).ok())
            }
            NextHop::Via { interface, .. } => Some(interface),
            _ => None,
        }
    }

    /// The address that stands for those behind the gateway in what leaves `interface` for `dst` by way of `next`. IPv4: the
    /// one whose subnet the next hop is in, else the first. IPv6: one of the destination's kind (unique local or global),
    /// of these the one that has most leading bits in common with it (RFC 6724 section 5, rules 6 and 8), else the first.
    pub fn masquerade(&self, interface: u16, next: Option<IpAddr>, dst: IpAddr) -> Option<IpAddr> {
        let primary = self.primary(interface, dst)?;
        let own = self.of_interface.get(usize::from(interface))?.iter().filter(|n| n.addr().is_ipv4() == dst.is_ipv4());
        let best = match dst {
            IpAddr::V4(_) => own.into_iter().find(|n| next.is_some_and(|next| n.contains(&next))).map(IpNet::addr),
            IpAddr::V6(d) => {
                let rank = |a: Ipv6Addr| {
                    let common = (a.to_bits() ^ d.to_bits()).leading_zeros();
                    (a.is_unique_local() == d.is_unique_local(), common.min(64))
                };
                let all = own.filter_map(|n| if let IpNet::V6(n) = n { Some(n.addr()) } else { None });
                let global = all.filter(|a| !a.is_unicast_link_local());
                global.reduce(|best, a| if rank(a) > rank(best) { a } else { best }).map(IpAddr::V6)
            }
        };
        Some(best.unwrap_or(primary))
    }

    /// Whether `a` is an address of `interface`.
    pub fn is_on(&self, interface: u16, a: IpAddr) -> bool {
        self.on.contains(&(interface, a))
    }

    /// The primary address of `interface` in the IP version of `like`: what masquerade and ICMP errors use.
    pub fn primary(&self, interface: u16, like: IpAddr) -> Option<IpAddr> {
        let (v4, v6) = self.primary.get(usize::from(interface))?;
        match like {
            IpAddr::V4(_) => v4.map(IpAddr::V4),
            IpAddr::V6(_) => v6.map(IpAddr::V6),
        }
    }

    /// The source of an ICMP error that leaves by `interface`: its primary address, else that of any other interface, as
    /// Linux' `inet_select_addr` chooses.
    pub fn error_source(&self, interface: u16, like: IpAddr) -> Option<IpAddr> {
        let mut others = (0..self.primary.len()).filter_map(|i| self.primary(u16::try_from(i).ok()?, like));
        self.primary(interface, like).or_else(|| others.next())
    }

    /// What the table was built from.
    pub fn spec(&self) -> &FibSpec {
        &self.spec
    }
}

/// Routes and single addresses as ranges.
fn places(routes: &PrefixMap<Ipv4Net, RouteTarget>, mut points: Vec<(Ipv4Addr, bool, bool)>) -> Ranges<Place> {
    points.sort_unstable();
    let points = points.chunk_by(|a, b| a.0 == b.0).filter_map(|same| {
        let &(a, ..) = same.first()?;
        let target = routes.get_lpm(&Ipv4Net::from(a)).map(|(_, t)| *t);
        let (local, broadcast) = same.iter().fold((false, false), |(l, b), &(_, local, broad)| (l | local, b | broad));
        Some((a.to_bits(), a.to_bits(), Place { target, local, broadcast }))
    });
    let routes = routes.iter().map(|(p, t)| {
        let place = Place { target: Some(*t), ..Place::default() };
        (p.network().to_bits(), p.broadcast().to_bits(), place)
    });
    Ranges::new(Place::default(), routes.chain(points))
}
