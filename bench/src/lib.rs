//! The instrument behind `scripts/bench`: traces of many flows in both directions, which DPDK's pcap ports replay for ever, the
//! configurations of the systems that are measured on them, and what comes out: medians, ratios, bars, a report.
//!
//! The same trace drives every system. It is known in advance, replies included, because translation of sources keeps ports
//! that are free, and translation of destinations follows rules.

pub mod flow;
pub mod frame;
pub mod pcap;
pub mod policy;
pub mod tcp;
pub mod trace;

pub mod plot;
pub mod report;
pub mod results;
pub mod scrape;

pub mod rfc2544;
pub mod rig;
