//! GRE: one connection for each pair of addresses, whatever the key; for version 1, PPTP's, one for each call id.
//!
//! A packet of version 1 carries the call id that its receiver has chosen, and nothing tells the sender's. Until a helper
//! knows both from PPTP's control connection, each direction of a call is a connection of its own that sees no reply.
//! The first packet after a reply makes a stream: assured, with the longer timeout.
//!
//! *Threads*: the owner's worker; functions of their arguments. *Sources*: RFC 2784, RFC 2890, RFC 2637 section 4.1;
//! `linux/net/netfilter/nf_conntrack_proto_gre.c` (`gre_pkt_to_tuple`, `nf_conntrack_gre_packet`).

use super::l4::{Context, Step};

/// A further packet of a GRE connection.
pub const fn step(c: &Context<'_>) -> Step {
    let timeout = if c.replied { c.timeouts.gre_stream } else { c.timeouts.gre };
    Step::Pass { timeout: Some(timeout), assured: c.replied, end: false, changed: false }
}
