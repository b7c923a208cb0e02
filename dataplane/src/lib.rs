//! Everything a packet meets, in the order in which it meets it.
#![deny(unsafe_code)]

pub mod io;
pub mod packet;
pub mod drop;
pub mod time;
pub mod conntrack;
pub mod filter;
pub mod forward;
pub mod api;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code, reason = "the one door to DPDK")]
pub mod dpdk;
