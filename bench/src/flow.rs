//! Which flows a trace has: flow `i` is always the same one, and all are distinct, before and after translation.
//!
//! *Limits*: [`MAX_FLOWS`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::steer::Steer;

/// Most flows of one trace.
pub const MAX_FLOWS: u32 = 10_000_000;

/// The address that SNAT translates to: TEST-NET-2, RFC 5737.
pub const SNAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The gateway's address that DNAT translates from: TEST-NET-3, RFC 5737.
pub const DNAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Servers behind DNAT: port `DNAT_PORT + n` of [`DNAT_ADDRESS`] leads to server `n`.
pub const DNAT_SERVERS: u16 = 16;

/// The first of their ports.
pub const DNAT_PORT: u16 = 1000;

/// The port that servers listen on.
pub const SERVICE: u16 = 53;

/// The port of flows that are new each time: rules give them a short timeout.
pub const BRIEF_SERVICE: u16 = 123;

/// Source ports per server, from 1,024 up.
const PORTS: u32 = 60_000;
/// Clients are numbered in 10.0.0.0/8.
const CLIENTS: u32 = 0x0a00_0000;
/// Servers of clients on the wan side, apart from all clients: 10.128.0.0/9.
const INNER: u32 = 0x0a80_0000;
/// Servers are numbered in 198.18.0.0/15, the range for benchmarks: RFC 2544 appendix C.2.2.
const SERVERS: u32 = 0xc612_0000;
/// Clients on the wan side, apart from all servers: 198.19.0.0/16.
const OUTER: u32 = 0xc613_0000;
/// IPv6 clients: 2001:db8:a::/48, RFC 3849.
const CLIENTS6: u128 = 0x2001_0db8_000a << 80;
/// IPv6 servers: 2001:db8:b::/48.
const SERVERS6: u128 = 0x2001_0db8_000b << 80;
/// More clients than ports and coprime to them, so that client and port do not repeat together; a prime, as is the other.
const CLIENT_COUNT: u32 = 65_521;
/// Clients on the wan side.
const OUTER_COUNT: u32 = 65_519;
/// Steps from one flow's client and port to the next one's, coprime to how many there are: were they to run side by side, RSS,
/// which adds up their bits, would hardly tell flows apart.
const CLIENT_STEP: u32 = 40_503;
/// See [`CLIENT_STEP`].
const PORT_STEP: u32 = 48_271;

/// What the gateway does to the flows, and what their packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Case {
    /// No state: everything is accepted untracked.
    Forward,
    /// State, no translation.
    Stateful,
    /// The source becomes [`SNAT_ADDRESS`], its port stays.
    Snat,
    /// The destination [`DNAT_ADDRESS`] becomes one of [`DNAT_SERVERS`] servers.
    Dnat,
    /// State, IPv6: frames of 80 bytes.
    Ipv6,
    /// State, frames of 64, 570 and 1,518 bytes on the wire, 7 to 4 to 1.
    Imix,
    /// State, datagrams that fill a link of 1,500 bytes.
    Large,
    /// The same, each in two fragments.
    Fragments,
    /// Every packet starts a flow.
    NewConnections,
    /// TCP connections from handshake to close.
    Tcp,
    /// Nine packets of established flows, then one that starts a flow.
    Mixed,
}

impl Case {
    /// The name in results and on command lines.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }
}

/// Addresses and ports of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same IP version.
    pub destination: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl Endpoints {
    /// The same pair of hosts, the other way.
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self { source: self.destination, destination: self.source, sport: self.dport, dport: self.sport }
    }

    /// What RSS hashes: the dataplane's own tuple, of UDP or TCP alike.
    pub const fn tuple(self) -> Tuple {
        let Self { source: src, destination: dst, sport, dport } = self;
        Tuple { src, dst, proto: proto::UDP, sport, dport, ct_zone: 0 }
    }

    /// What RSS hashes of a fragment: addresses alone.
    pub const fn without_ports(self) -> Tuple {
        Tuple { sport: 0, dport: 0, ..self.tuple() }
    }
}

/// What comes to the gateway's two ports at one place of a trace: the two directions of a flow, or two flows' first packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// On the lan port.
    pub lan: Endpoints,
    /// On the wan port.
    pub wan: Endpoints,
}

impl Flow {
    /// Flow number `i`, `i` below [`MAX_FLOWS`].
    pub fn number(i: u32, case: Case) -> Self {
        match case {
            Case::Ipv6 => {
                let client = Ipv6Addr::from_bits(CLIENTS6 + 2 + u128::from(nth_client(i, CLIENT_COUNT)));
                let server = Ipv6Addr::from_bits(SERVERS6 + 1 + u128::from(i / PORTS));
                both_ways(endpoints(client, server, i, SERVICE))
            }
            Case::Dnat => {
                let client = Ipv4Addr::from(OUTER + 2 + nth_client(i, OUTER_COUNT));
                let nth = u16::try_from(i % u32::from(DNAT_SERVERS)).unwrap_or(0);
                let wan = endpoints(client, DNAT_ADDRESS, i, DNAT_PORT + nth);
                let lan = Endpoints { destination: dnat_server(nth).into(), dport: SERVICE, ..wan }.inverse();
                Self { lan, wan }
            }
            Case::NewConnections => Self { lan: outward(i, SERVICE), wan: inward(i, SERVICE) },
            Case::Snat => {
                let lan = outward(i, SERVICE);
                Self { lan, wan: Endpoints { source: SNAT_ADDRESS.into(), ..lan }.inverse() }
            }
            _ => both_ways(outward(i, SERVICE)),
        }
    }

    /// Two flows that are to be new each time, beside the established ones of [`Case::Mixed`].
    pub fn brief(i: u32) -> Self {
        Self { lan: outward(i, BRIEF_SERVICE), wan: inward(i, BRIEF_SERVICE) }
    }

    /// The first `flows` flows of `case`. Those to be translated at their source are such as keep their port on two
    /// workers as on one: their replies arrive where their originals do.
    pub fn all(case: Case, flows: u32) -> impl Iterator<Item = Self> {
        let steer = Steer::new(0, 2);
        (0..)
            .map(move |i| Self::number(i, case))
            .filter(move |f| case != Case::Snat || steer.home(&f.lan.tuple()) == steer.home(&f.wan.tuple()))
            .take(flows as usize)
    }
}

/// Server `n` behind DNAT; numbered so that for half of them RSS brings replies to another queue than originals.
pub fn dnat_server(n: u16) -> Ipv4Addr {
    Ipv4Addr::from(INNER + 10 + 3 * u32::from(n))
}

const fn both_ways(lan: Endpoints) -> Flow {
    Flow { lan, wan: lan.inverse() }
}

fn nth_client(i: u32, of: u32) -> u32 {
    nth(i, CLIENT_STEP, of)
}

fn nth(i: u32, step: u32, of: u32) -> u32 {
    // Invariant: below `of`.
    u32::try_from(u64::from(i) * u64::from(step) % u64::from(of)).unwrap_or(0)
}

fn endpoints(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, i: u32, dport: u16) -> Endpoints {
    let sport = u16::try_from(1024 + nth(i, PORT_STEP, PORTS)).unwrap_or(u16::MAX);
    Endpoints { source: source.into(), destination: destination.into(), sport, dport }
}

/// From a client on the lan side to a server on the wan side.
fn outward(i: u32, dport: u16) -> Endpoints {
    let (client, server) = (CLIENTS + 2 + nth_client(i, CLIENT_COUNT), SERVERS + 1 + i / PORTS);
    endpoints(Ipv4Addr::from(client), Ipv4Addr::from(server), i, dport)
}

/// From a client on the wan side to a server on the lan side.
fn inward(i: u32, dport: u16) -> Endpoints {
    let (client, server) = (OUTER + 2 + nth_client(i, OUTER_COUNT), INNER + 1 + i / PORTS);
    endpoints(Ipv4Addr::from(client), Ipv4Addr::from(server), i, dport)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_million_flows_are_distinct_before_and_after_translation() {
        for &case in Case::value_variants() {
            let (mut lan, mut wan) = (HashSet::new(), HashSet::new());
            for (i, flow) in Flow::all(case, 1_000_000).enumerate() {
                assert!(lan.insert(flow.lan), "{case:?}: flow {i} on the lan port");
                assert!(wan.insert(flow.wan), "{case:?}: flow {i} on the wan port");
            }
            assert_eq!(lan.len(), 1_000_000);
        }
    }

    #[test]
    fn flows_that_are_to_be_new_are_replies_of_none() {
        let mut seen = HashSet::new();
        for i in 0..300_000 {
            for flow in [Flow::number(i, Case::NewConnections), Flow::brief(i)] {
                for at in [flow.lan, flow.wan] {
                    assert!(seen.insert(at), "flow {i}");
                    assert!(!seen.contains(&at.inverse()), "flow {i}");
                }
            }
        }
    }

    #[test]
    fn the_last_flow_stays_in_the_ranges() {
        let flow = Flow::number(MAX_FLOWS - 1, Case::NewConnections);
        let octets = |a: IpAddr| match a {
            IpAddr::V4(a) => a.octets(),
            IpAddr::V6(_) => panic!("an IPv4 flow"),
        };
        assert_eq!(octets(flow.lan.source)[0], 10);
        assert!(octets(flow.lan.source)[1] < 128);
        assert_eq!(octets(flow.lan.destination)[..2], [198, 18]);
        assert_eq!(octets(flow.wan.source)[..2], [198, 19]);
        assert_eq!(octets(flow.wan.destination)[..2], [10, 128]);
    }

    #[test]
    fn the_reply_to_a_translated_flow_goes_to_the_snat_address_and_the_kept_port() {
        for flow in Flow::all(Case::Snat, 100_000) {
            assert_eq!(flow.wan.destination, IpAddr::from(SNAT_ADDRESS));
            assert_eq!(flow.wan.dport, flow.lan.sport);
            assert_eq!(flow.wan.source, flow.lan.destination);
        }
    }

    #[test]
    fn snat_flows_come_home_both_ways_and_dnat_flows_do_not_always() {
        let steer = Steer::new(0, 2);
        let split = |f: &Flow| steer.home(&f.lan.tuple()) != steer.home(&f.wan.tuple());
        assert_eq!(Flow::all(Case::Snat, 10_000).filter(split).count(), 0);
        let dnat = Flow::all(Case::Dnat, 10_000).filter(split).count();
        assert!((4_000..6_000).contains(&dnat), "{dnat}");
    }

    #[test]
    fn each_dnat_port_leads_to_its_server() {
        for flow in Flow::all(Case::Dnat, 1_000) {
            assert_eq!(flow.wan.destination, IpAddr::from(DNAT_ADDRESS));
            assert_eq!(flow.lan.source, IpAddr::from(dnat_server(flow.wan.dport - DNAT_PORT)));
            assert_eq!((flow.lan.destination, flow.lan.dport), (flow.wan.source, flow.wan.sport));
        }
    }
}
