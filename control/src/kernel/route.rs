//! One kernel route, cut down to what forwarding needs, and the rule which of several for a prefix wins.

use std::net::IpAddr;

use dataplane::api::RouteTarget;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteType,
    RouteVia,
};

/// Where one leg of a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The kernel's interface index.
    pub ifindex: u32,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The kernel says that it cannot be used now.
    pub dead: bool,
}

/// A route of the kernel's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destinations.
    pub prefix: IpNet,
    /// Smaller wins.
    pub metric: u32,
    /// Type of service; forwarding looks only at routes without.
    pub tos: u8,
    /// Unicast, blackhole, ...
    pub kind: RouteType,
    /// Who installed it.
    pub protocol: RouteProtocol,
    /// Legs, in the kernel's order.
    pub hops: Vec<Hop>,
}

impl KernelRoute {
    /// Reads a message; `None` for what is not a route to mirror: another table, a cached clone, a type that does not
    /// forward, a source-specific route, or IPv6's link-local and multicast prefixes.
    pub fn read(m: &RouteMessage) -> Option<Self> {
        let table = m.attributes.iter().find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None });
        if table.unwrap_or(u32::from(m.header.table)) != u32::from(RouteHeader::RT_TABLE_MAIN)
            || m.header.flags.contains(RouteFlags::Cloned)
            || m.header.source_prefix_length != 0
        {
            return None;
        }
        let kinds = [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
        if !kinds.contains(&m.header.kind) {
            return None;
        }
        let mut to = match m.header.address_family {
            AddressFamily::Inet => IpAddr::from([0u8; 4]),
            AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
            _ => return None,
        };
        let (mut metric, mut ifindex, mut gateway, mut legs) = (0, None, None, Vec::new());
        for a in &m.attributes {
            match a {
                RouteAttribute::Destination(d) => to = address(d)?,
                RouteAttribute::Priority(p) => metric = *p,
                RouteAttribute::Oif(i) => ifindex = Some(*i),
                RouteAttribute::Gateway(g) => gateway = address(g),
                RouteAttribute::Via(v) => gateway = via(v),
                RouteAttribute::MultiPath(hops) => legs.clone_from(hops),
                _ => {}
            }
        }
        let prefix = IpNet::new(to, m.header.destination_prefix_length).ok()?.trunc();
        if let IpNet::V6(p) = prefix
            && (p.addr().is_unicast_link_local() || p.addr().is_multicast())
        {
            return None;
        }
        let mut hops: Vec<Hop> = legs
            .iter()
            .map(|leg| Hop {
                ifindex: leg.interface_index,
                gateway: leg.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(g) => address(g),
                    RouteAttribute::Via(v) => via(v),
                    _ => None,
                }),
                dead: leg.flags.contains(RouteNextHopFlags::Dead),
            })
            .collect();
        if let Some(ifindex) = ifindex.filter(|_| hops.is_empty()) {
            hops.push(Hop { ifindex, gateway, dead: m.header.flags.contains(RouteFlags::Dead) });
        }
        let RouteHeader { tos, kind, protocol, .. } = m.header;
        Some(Self { prefix, metric, tos, kind, protocol, hops })
    }

    /// Whether this is the same entry of the kernel's table as `other`, whatever its legs.
    pub fn same_slot(&self, other: &Self) -> bool {
        (self.prefix, self.metric, self.tos) == (other.prefix, other.metric, other.tos)
    }

    /// Where it leads, given the interface that a kernel index is a twin of; `None` where it leads out of none of ours.
    pub fn target(&self, interface_of: impl Fn(u32) -> Option<u16>) -> Option<RouteTarget> {
        match self.kind {
            RouteType::BlackHole => Some(RouteTarget::Blackhole),
            RouteType::Unreachable => Some(RouteTarget::Unreachable),
            RouteType::Prohibit => Some(RouteTarget::Prohibit),
            _ => self.hops.iter().filter(|h| !h.dead).find_map(|h| {
                let interface = interface_of(h.ifindex)?;
                Some(RouteTarget::Via { interface, gateway: h.gateway })
            }),
        }
    }
}

fn address(a: &RouteAddress) -> Option<IpAddr> {
    match a {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn via(v: &RouteVia) -> Option<IpAddr> {
    match v {
        RouteVia::Inet(v4) => Some((*v4).into()),
        RouteVia::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// The name that `ip route` shows for who installed a route.
pub fn protocol_name(p: RouteProtocol) -> String {
    match p {
        RouteProtocol::Unspec => "none".into(),
        RouteProtocol::IcmpRedirect => "redirect".into(),
        RouteProtocol::Other(n) => n.to_string(),
        other => format!("{other:?}").to_lowercase(),
    }
}
