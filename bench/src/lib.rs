//! The load of `scripts/bench`: traces of many UDP flows in both directions, which DPDK's pcap ports replay for ever.
//!
//! The same trace drives sluiced and dpdk-testpmd. It is known in advance, replies included, because SNAT with
//! `preserve_port: strict` keeps the source port.

pub mod flow;
pub mod frame;
pub mod pcap;
pub mod rfc2544;
