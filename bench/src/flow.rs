//! Which flows a trace has: flow `i` is always the same one, and all are distinct, before and after translation.
//!
//! *Limits*: [`MAX_FLOWS`].

use std::net::Ipv4Addr;

/// Most flows of one trace.
pub const MAX_FLOWS: u32 = 10_000_000;

/// The address that SNAT translates to: TEST-NET-2, RFC 5737.
pub const SNAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Source ports per server, from 1,024 up.
const PORTS: u32 = 60_000;
/// Clients are numbered in 10.0.0.0/8.
const CLIENTS: u32 = 0x0a00_0000;
/// Servers are numbered in 198.18.0.0/15, the range for benchmarks: RFC 2544 appendix C.2.2.
const SERVERS: u32 = 0xc612_0000;
/// More clients than ports and coprime to them, so that client and port do not repeat together.
const CLIENT_COUNT: u32 = 65_521;

/// What the gateway does to the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// State, no translation.
    Stateful,
    /// The source becomes [`SNAT_ADDRESS`], its port stays.
    Snat,
    /// State, datagrams that fill a link of 1,500 bytes.
    Large,
    /// The same, each in two fragments.
    Fragments,
}

/// Addresses and ports of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// One flow, as its packets come to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// From the client, on the lan port.
    pub original: Endpoints,
    /// From the server, on the wan port.
    pub reply: Endpoints,
}

impl Flow {
    /// Flow number `i` of a trace, `i` below [`MAX_FLOWS`].
    pub fn number(i: u32, case: Case) -> Self {
        let client = Ipv4Addr::from(CLIENTS + 2 + i % CLIENT_COUNT);
        let server = Ipv4Addr::from(SERVERS + 1 + i / PORTS);
        let sport = u16::try_from(1024 + i % PORTS).unwrap_or(u16::MAX);
        let original = Endpoints { source: client, destination: server, sport, dport: 53 };
        let answers_to = match case {
            Case::Stateful | Case::Large | Case::Fragments => client,
            Case::Snat => SNAT_ADDRESS,
        };
        let reply = Endpoints { source: server, destination: answers_to, sport: 53, dport: sport };
        Self { original, reply }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_million_flows_are_distinct_before_and_after_translation() {
        for case in [Case::Stateful, Case::Snat] {
            let mut originals = HashSet::new();
            let mut replies = HashSet::new();
            for i in 0..1_000_000 {
                let flow = Flow::number(i, case);
                assert!(originals.insert(flow.original), "original of flow {i}");
                assert!(replies.insert(flow.reply), "reply of flow {i}");
            }
        }
    }

    #[test]
    fn the_last_flow_stays_in_the_ranges() {
        let flow = Flow::number(MAX_FLOWS - 1, Case::Stateful);
        assert_eq!(flow.original.source.octets()[0], 10);
        assert_eq!(flow.original.destination.octets()[..2], [198, 18]);
    }

    #[test]
    fn the_reply_to_a_translated_flow_goes_to_the_snat_address_and_the_kept_port() {
        let flow = Flow::number(61_000, Case::Snat);
        assert_eq!(flow.reply.destination, SNAT_ADDRESS);
        assert_eq!(flow.reply.dport, flow.original.sport);
        assert_eq!(flow.reply.source, flow.original.destination);
    }
}
