//! Everything a packet meets, in the order in which it meets it.
//!
//! One lcore runs one [`worker::Worker`] to completion: it takes a burst of frames from [`io`], finds their headers
//! ([`parse`]), makes fragments whole ([`defrag`]), hands over what
//! belongs to another lcore ([`steer`]), and takes the rest along the [`path`]: the
//! connection it belongs to ([`conntrack`]), its translation ([`nat`]), its verdict ([`filter`]), its next hop
//! ([`forward`]). A packet that goes no further has a [`drop::DropReason`].
//!
//! Nothing on this way allocates, locks, logs, panics or reads a clock. `control` sees this crate through [`api`] alone.
//! Without features the crate has no DPDK in it: the same stages run on heap buffers ([`io::mem`]) in tests.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod worker;

pub mod io;
pub mod packet;
pub mod parse;

pub mod defrag;
pub mod ring;
pub mod steer;

pub mod path;

pub mod conntrack;
pub mod filter;
pub mod forward;
pub mod helper;
pub mod nat;

pub mod cpu;
pub mod drop;
pub mod poll;
pub mod time;

pub mod api;
#[cfg(feature = "dpdk")]
#[allow(unsafe_code, reason = "the one door to DPDK")]
pub mod dpdk;
