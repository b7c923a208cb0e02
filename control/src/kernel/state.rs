//! What the kernel has: links, addresses, routes and neighbours, kept true by its notifications.
//!
//! [`State`] is a pure function of the messages it was given: no socket, no clock. [`State::apply`] says what a message
//! changes for the workers ([`Effect`]); where a notification does not say enough to be applied (the kernel removes
//! routes of a link that went down without a word), it asks for a fresh dump of the routes.
//!
//! *Threads*: written by the mirror, read by the API, behind a lock. *Limits*: the kernel's tables bound it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use dataplane::api::{FibSpec, NeighbourUpdate, RouteSpec};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::route::KernelRoute;

/// An interface whose twin the state looks for.
#[derive(Clone, Debug)]
pub struct TwinSpec {
    /// The twin's name.
    pub name: String,
    /// Addresses in the order of preference; those that the kernel has besides come after them.
    pub addresses: Vec<IpNet>,
}

/// A link of the kernel that is a twin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinLink {
    /// The kernel's index.
    pub ifindex: u32,
    /// Administratively up.
    pub up: bool,
    /// With carrier.
    pub running: bool,
}

/// One neighbour of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, where the kernel has a usable one.
    pub mac: Option<[u8; 6]>,
    /// The kernel's word for how well it knows it.
    pub state: NeighbourState,
}

/// What a message changes for the workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Routes or addresses may have changed: build the forwarding table anew.
    pub fib: bool,
    /// The routes must be dumped again to know.
    pub dump_routes: bool,
    /// A neighbour's entry to tell the workers, if it is news to them.
    pub neighbour: Option<NeighbourUpdate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    net: IpNet,
    secondary: bool,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    twins: Vec<TwinSpec>,
    links: Vec<Option<TwinLink>>,
    /// By kernel index: addresses and links may be announced in either order.
    addresses: HashMap<u32, Vec<Address>>,
    routes: BTreeMap<IpNet, Vec<KernelRoute>>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
}

impl State {
    /// Knows nothing yet; position in `twins` is the interface index.
    pub fn new(twins: Vec<TwinSpec>) -> Self {
        let links = vec![None; twins.len()];
        Self { twins, links, addresses: HashMap::new(), routes: BTreeMap::new(), neighbours: BTreeMap::new() }
    }

    /// Takes in one notification or one line of a dump; `flags` are those of its netlink header.
    pub fn apply(&mut self, message: &RouteNetlinkMessage, flags: u16) -> Effect {
        match message {
            RouteNetlinkMessage::NewLink(m) => self.new_link(m),
            RouteNetlinkMessage::DelLink(m) => self.del_link(m),
            RouteNetlinkMessage::NewAddress(m) => self.new_address(m),
            RouteNetlinkMessage::DelAddress(m) => self.del_address(m),
            RouteNetlinkMessage::NewRoute(m) => {
                KernelRoute::read(m).map(|r| self.new_route(r, flags)).unwrap_or_default()
            }
            RouteNetlinkMessage::DelRoute(m) => KernelRoute::read(m).map(|r| self.del_route(&r)).unwrap_or_default(),
            RouteNetlinkMessage::NewNeighbour(m) => self.neighbour(m, false),
            RouteNetlinkMessage::DelNeighbour(m) => self.neighbour(m, true),
            _ => Effect::default(),
        }
    }

    /// Forgets all routes: a dump follows.
    pub fn forget_routes(&mut self) {
        self.routes.clear();
    }

    /// Sets the order of preference of the addresses of every interface.
    pub fn prefer(&mut self, interface: usize, addresses: Vec<IpNet>) {
        if let Some(t) = self.twins.get_mut(interface) {
            t.addresses = addresses;
        }
    }

    /// The order of preference of interface `interface`'s addresses.
    pub fn preferred(&self, interface: usize) -> &[IpNet] {
        self.twins.get(interface).map_or(&[], |t| &t.addresses)
    }

    /// The twins' links.
    pub fn links(&self) -> &[Option<TwinLink>] {
        &self.links
    }

    /// The kernel's index of interface `interface`'s twin.
    pub fn ifindex(&self, interface: u16) -> Option<u32> {
        self.links.get(usize::from(interface))?.map(|l| l.ifindex)
    }

    /// The interface that kernel index `ifindex` is the twin of.
    pub fn interface(&self, ifindex: u32) -> Option<u16> {
        let i = self.links.iter().position(|l| l.is_some_and(|l| l.ifindex == ifindex))?;
        u16::try_from(i).ok()
    }

    /// The addresses of interface `interface`, preferred ones first.
    pub fn addresses(&self, interface: usize) -> Vec<IpNet> {
        let Some(link) = self.links.get(interface).copied().flatten() else { return Vec::new() };
        let mut found: Vec<Address> = self.addresses.get(&link.ifindex).cloned().unwrap_or_default();
        let wanted = &self.twins[interface].addresses;
        let rank = |a: &Address| wanted.iter().position(|w| w.addr() == a.net.addr()).unwrap_or(usize::MAX);
        found.sort_by_key(|a| (rank(a), a.secondary));
        found.into_iter().map(|a| a.net).collect()
    }

    /// The routes that forwarding uses: per prefix the one with the lowest metric among those out of our interfaces.
    pub fn routes(&self) -> impl Iterator<Item = (&KernelRoute, dataplane::api::RouteTarget)> {
        self.routes.values().filter_map(|of_prefix| self.usable(of_prefix).min_by_key(|(r, _)| r.metric))
    }

    /// Those of one prefix's routes that forwarding can use.
    fn usable<'a>(
        &self,
        of_prefix: &'a [KernelRoute],
    ) -> impl Iterator<Item = (&'a KernelRoute, dataplane::api::RouteTarget)> {
        let target = |r: &'a KernelRoute| Some((r, r.target(|i| self.interface(i))?));
        of_prefix.iter().filter(|r| r.tos == 0).filter_map(target)
    }

    /// The neighbours on our interfaces, with the interface's index.
    pub fn neighbours(&self) -> impl Iterator<Item = (u16, IpAddr, Neighbour)> {
        self.neighbours.iter().filter_map(|(&(ifindex, address), &n)| Some((self.interface(ifindex)?, address, n)))
    }

    /// What is known of one neighbour.
    pub fn neighbour_of(&self, interface: u16, address: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&(self.ifindex(interface)?, address)).copied()
    }

    /// The forwarding table that all this makes.
    pub fn fib(&self) -> FibSpec {
        let spec = |(r, target): (&KernelRoute, _)| RouteSpec { prefix: r.prefix, target };
        let routes = self.routes().map(spec).collect();
        let mut others = Vec::new();
        for of_prefix in self.routes.values().filter(|r| r.len() > 1) {
            let mut usable: Vec<_> = self.usable(of_prefix).collect();
            usable.sort_by_key(|(r, _)| r.metric);
            others.extend(usable.into_iter().skip(1).map(spec));
        }
        let mut addresses = Vec::new();
        for (i, interface) in (0..self.twins.len()).zip(0u16..) {
            addresses.extend(self.addresses(i).into_iter().map(|net| (interface, net)));
        }
        FibSpec { routes, others, addresses }
    }

    fn new_link(&mut self, m: &LinkMessage) -> Effect {
        let name = m.attributes.iter().find_map(|a| if let LinkAttribute::IfName(n) = a { Some(n) } else { None });
        let Some(name) = name else { return Effect::default() };
        let now = TwinLink {
            ifindex: m.header.index,
            up: m.header.flags.contains(LinkFlags::Up),
            running: m.header.flags.contains(LinkFlags::LowerUp),
        };
        let mut changed = false;
        for (twin, link) in self.twins.iter().zip(&mut self.links) {
            if twin.name == *name {
                changed |= link.replace(now) != Some(now);
            } else if link.is_some_and(|l| l.ifindex == now.ifindex) {
                *link = None; // renamed away
                changed = true;
            }
        }
        // A link that goes down takes its IPv4 routes along without a notification.
        Effect { fib: changed, dump_routes: changed, neighbour: None }
    }

    fn del_link(&mut self, m: &LinkMessage) -> Effect {
        let ifindex = m.header.index;
        self.addresses.remove(&ifindex);
        self.neighbours.retain(|(i, _), _| *i != ifindex);
        let mut changed = false;
        for link in self.links.iter_mut().filter(|l| l.is_some_and(|l| l.ifindex == ifindex)) {
            *link = None;
            changed = true;
        }
        Effect { fib: changed, dump_routes: changed, neighbour: None }
    }

    fn new_address(&mut self, m: &AddressMessage) -> Effect {
        let Some(net) = address_of(m) else { return Effect::default() };
        let flags = address_flags(m);
        let of_link = self.addresses.entry(m.header.index).or_default();
        let now = Address { net, secondary: net.addr().is_ipv4() && flags.contains(AddressFlags::Secondary) };
        let old = of_link.iter_mut().find(|a| a.net == net);
        let usable = !flags.contains(AddressFlags::Dadfailed);
        let changed = match (old, usable) {
            (Some(old), true) => std::mem::replace(old, now) != now,
            (None, true) => {
                of_link.push(now);
                true
            }
            (Some(_), false) => {
                of_link.retain(|a| a.net != net);
                true
            }
            (None, false) => false,
        };
        Effect { fib: changed, ..Effect::default() }
    }

    fn del_address(&mut self, m: &AddressMessage) -> Effect {
        let Some(net) = address_of(m) else { return Effect::default() };
        let Some(of_link) = self.addresses.get_mut(&m.header.index) else { return Effect::default() };
        let before = of_link.len();
        of_link.retain(|a| a.net != net);
        let changed = of_link.len() != before;
        // Routes that prefer the address as their source go with it, without a notification.
        Effect { fib: changed, dump_routes: changed, neighbour: None }
    }

    fn new_route(&mut self, route: KernelRoute, flags: u16) -> Effect {
        let v6 = route.prefix.addr().is_ipv6();
        let of_prefix = self.routes.entry(route.prefix).or_default();
        let same: Vec<usize> = (0..of_prefix.len()).filter(|&i| of_prefix[i].same_slot(&route)).collect();
        let replaces = flags & NLM_F_REPLACE != 0;
        // IPv6 joins an appended route to its siblings: what the entry then is, only a dump says. With several entries
        // in one slot it is the same for a replacement.
        let unclear = (v6 && flags & NLM_F_APPEND != 0 && !same.is_empty()) || (replaces && same.len() > 1);
        match same.first() {
            Some(&first) if replaces => of_prefix[first] = route,
            Some(_) if of_prefix.contains(&route) => {}
            _ => of_prefix.push(route),
        }
        Effect { fib: true, dump_routes: unclear, neighbour: None }
    }

    fn del_route(&mut self, route: &KernelRoute) -> Effect {
        let Some(of_prefix) = self.routes.get_mut(&route.prefix) else { return Effect::default() };
        let exact = of_prefix.iter().position(|r| r.same_slot(route) && r.kind == route.kind && r.hops == route.hops);
        let slots = of_prefix.iter().filter(|r| r.same_slot(route)).count();
        match exact {
            Some(i) => drop(of_prefix.remove(i)),
            None if slots == 0 => return Effect::default(),
            // One leg of several went, or its flags changed since: only a dump says.
            None => return Effect { fib: true, dump_routes: true, neighbour: None },
        }
        if of_prefix.is_empty() {
            self.routes.remove(&route.prefix);
        }
        Effect { fib: true, ..Effect::default() }
    }

    fn neighbour(&mut self, m: &NeighbourMessage, deleted: bool) -> Effect {
        if !matches!(m.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
            return Effect::default();
        }
        let (mut address, mut mac) = (None, None);
        for a in &m.attributes {
            match a {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
                NeighbourAttribute::LinkLayerAddress(l) => mac = <[u8; 6]>::try_from(l.as_slice()).ok(),
                _ => {}
            }
        }
        let Some(address) = address.filter(|a| !a.is_multicast()) else { return Effect::default() };
        let state = m.header.state;
        let usable = matches!(
            state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        let key = (m.header.ifindex, address);
        let now = Neighbour { mac: mac.filter(|_| usable), state };
        if deleted {
            self.neighbours.remove(&key);
        } else {
            self.neighbours.insert(key, now);
        }
        // While the kernel still asks, the workers wait.
        let settled = deleted || now.mac.is_some() || state == NeighbourState::Failed;
        let update = self.interface(m.header.ifindex).filter(|_| settled).map(|interface| NeighbourUpdate {
            interface,
            address,
            mac: now.mac.filter(|_| !deleted),
        });
        Effect { neighbour: update, ..Effect::default() }
    }
}

fn address_of(m: &AddressMessage) -> Option<IpNet> {
    let mut found = None;
    for a in &m.attributes {
        match a {
            // On a point-to-point link IFA_ADDRESS is the peer's, IFA_LOCAL ours.
            AddressAttribute::Local(a) => found = Some(*a),
            AddressAttribute::Address(a) => found = found.or(Some(*a)),
            _ => {}
        }
    }
    IpNet::new(found?, m.header.prefix_len).ok()
}

fn address_flags(m: &AddressMessage) -> AddressFlags {
    let wide = m.attributes.iter().find_map(|a| if let AddressAttribute::Flags(f) = a { Some(*f) } else { None });
    wide.unwrap_or_else(|| {
        let narrow = m.header.flags;
        if narrow.contains(AddressHeaderFlags::Secondary) { AddressFlags::Secondary } else { AddressFlags::empty() }
    })
}
