//! Routing, TTL and MTU: where a packet goes, if anywhere.
//!
//! *Sources*: RFC 1812 sections 5.2 and 5.3; `linux/net/ipv4/route.c` (martians), `linux/net/ipv4/ip_forward.c`.

use std::net::IpAddr;

use super::{L2, Path, Refusal};
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::Direction;
use crate::drop::DropReason;
use crate::forward::icmp_error::IcmpError;
use crate::forward::route::{NextHop, Place};
use crate::io::PortIdx;
use crate::packet::Packet;

/// A neighbour reference that leads nowhere.
const UNKNOWN: u32 = u32::MAX;

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) egress: PortIdx,
    /// Next hop on the egress link; `None` between wire and kernel.
    pub(super) next: Option<IpAddr>,
}

impl Path {
    /// Where a packet from `in_port` with source `src` to `dst` (after translation) goes.
    pub(super) fn route(&self, p: &Packet, in_port: PortIdx, src: IpAddr, dst: IpAddr) -> Result<Hop, Refusal> {
        self.route_into(self.zone_of_target(p), p.group, in_port, src, dst)
    }

    /// The same, by the routes of conntrack zone `zone` alone, of all where it is 0; `group` where the frame was sent to a
    /// link-layer group address.
    pub(super) fn route_into(
        &self,
        zone: u16,
        group: bool,
        in_port: PortIdx,
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<Hop, Refusal> {
        let drop = |reason: DropReason| Err(reason.into());
        let interface = in_port.interface();
        if in_port.is_twin() {
            return Ok(Hop { egress: PortIdx::wire(interface), next: None }); // the kernel has routed it
        }
        let here = Ok(Hop { egress: PortIdx::twin(interface), next: None });
        if self.is_martian_source(src) {
            return drop(DropReason::MartianSource);
        }
        let place = if let IpAddr::V4(a) = dst { self.fib.place(a) } else { Place::default() };
        let many = match dst {
            IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || place.broadcast,
            IpAddr::V6(a) => a.is_multicast(),
        };
        if many {
            return here; // the kernel knows who listens
        }
        if dst.is_loopback() || dst.is_unspecified() || is_this_network(dst) {
            return drop(DropReason::MartianDestination);
        }
        let next = match (zone, dst) {
            (0, IpAddr::V4(a)) => place.next_hop(a),
            (0, IpAddr::V6(_)) => self.fib.lookup(dst),
            (zone, _) => self.fib.lookup_among(dst, |i| self.policy.ct_zone_of(PortIdx::wire(i)) == zone),
        };
        match next {
            NextHop::Local => here,
            NextHop::Via { .. } if is_link_local(src) || is_link_local(dst) => drop(DropReason::LinkLocalScope),
            NextHop::None if is_link_local(dst) => drop(DropReason::LinkLocalScope),
            NextHop::Via { .. } if src.is_unspecified() => drop(DropReason::MartianSource),
            // RFC 1812 section 5.3.4: what came as a link-layer broadcast is not forwarded.
            NextHop::Via { .. } if group => drop(DropReason::EthOtherHost),
            NextHop::Via { interface, address } => Ok(Hop { egress: PortIdx::wire(interface), next: Some(address) }),
            NextHop::Blackhole => drop(DropReason::RouteBlackhole),
            NextHop::Unreachable => {
                Err(Refusal { reason: DropReason::RouteUnreachable, error: Some(IcmpError::HostUnreachable) })
            }
            NextHop::Prohibit => Err(Refusal { reason: DropReason::RouteProhibit, error: Some(IcmpError::Prohibited) }),
            NextHop::None => Err(Refusal { reason: DropReason::NoRoute, error: Some(IcmpError::NoRoute) }),
        }
    }

    /// The conntrack zone that a packet goes to, where it answers a connection out of one, or belongs to one that a host in
    /// one has announced; else 0. Addresses in zones may overlap, so the destination alone does not say where it is.
    fn zone_of_target(&self, p: &Packet) -> u16 {
        p.conn.map_or(0, |id| self.zone_of_way(id, p.direction))
    }

    /// The same for packets of this direction of a connection.
    pub(super) fn zone_of_way(&self, id: ConnId, direction: Direction) -> u16 {
        match direction {
            Direction::Reply => self.conntrack.tuple(id, Direction::Original).ct_zone,
            Direction::Original if self.conntrack.conn(id).flags.has(Flags::EXPECTED) => {
                self.conntrack.tuple(id, Direction::Reply).ct_zone
            }
            Direction::Original => 0,
        }
    }

    /// Sources that no wire may bring. The unspecified address is one that is still looking for its own (DHCP, duplicate
    /// address detection): it may speak to the kernel, but not further.
    fn is_martian_source(&self, src: IpAddr) -> bool {
        match src {
            IpAddr::V4(a) => {
                let place = self.fib.place(a);
                let many = a.is_multicast() || a.is_broadcast() || place.broadcast;
                many || a.is_loopback() || is_this_network(src) && !a.is_unspecified() || place.local
            }
            IpAddr::V6(a) => a.is_multicast() || a.is_loopback() || self.fib.is_local(src),
        }
    }

    /// TTL and MTU, which come before the filter as in Linux' `ip_forward`: whether the packet must be cut.
    pub(super) fn limits(&self, p: &Packet, egress: PortIdx, hop: bool) -> Result<bool, Refusal> {
        if !self.policy.prefixes().is_empty() {
            self.has_image(p, egress)?;
        }
        if !hop {
            return Ok(false);
        }
        if p.ttl <= 1 {
            return Err(Refusal { reason: DropReason::TtlExpired, error: Some(IcmpError::TimeExceeded) });
        }
        let mtu = self.interfaces.get(usize::from(egress.interface())).map_or(0, |i| i.mtu);
        let too_big = p.wire_len > u32::from(mtu);
        if too_big && p.dont_fragment {
            return Err(Refusal { reason: DropReason::MtuExceeded, error: Some(IcmpError::TooBig(mtu)) });
        }
        Ok(too_big)
    }

    /// The neighbour reference to keep and the link-layer destination of a hop.
    pub(super) fn resolve(&self, hop: Hop) -> (u32, L2) {
        let Some(address) = hop.next else { return (UNKNOWN, L2::Keep) };
        let reference = self.neighbours.find(hop.egress.interface(), address);
        match reference.and_then(|r| Some((r, self.neighbours.mac(r)?))) {
            Some((r, mac)) => (r, L2::To(mac)),
            None => (UNKNOWN, L2::Resolve(address)),
        }
    }
}

/// Whether an address is in 0.0.0.0/8, "this network" (RFC 1122 section 3.2.1.3).
fn is_this_network(a: IpAddr) -> bool {
    matches!(a, IpAddr::V4(a) if a.octets()[0] == 0)
}

/// Whether an address is valid on its own link only: IPv6's fe80::/10. IPv4's 169.254/16 is forwarded, as Linux does.
fn is_link_local(a: IpAddr) -> bool {
    matches!(a, IpAddr::V6(a) if a.is_unicast_link_local())
}
