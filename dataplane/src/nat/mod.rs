//! Address translation: choosing it edits a new connection's reply tuple; applying it rewrites a packet to the inverse
//! of the other direction's tuple. There is nothing else to it.
//!
//! *Threads*: one worker. *Sources*: RFC 3022, RFC 4787, RFC 5382, RFC 5508; `linux/net/netfilter/nf_nat_core.c`.

pub mod mss;
pub mod pool;
pub mod ports;
pub mod prefix;
pub mod rewrite;
pub mod segment;

use crate::api::policy::{NatKind, NatRuleSpec};
use crate::conntrack::conn::Unconfirmed;

/// Applies a DNAT rule: the reply comes from the new destination.
pub fn dnat(u: &mut Unconfirmed, rule: &NatRuleSpec) {
    if let NatKind::Dnat { to, port } = &rule.kind
        && let Some(address) = to.nth(u.original.is_ipv4(), 0)
    {
        u.reply.src = address;
        if let Some(port) = port
            && u.original.has_ports()
        {
            u.reply.sport = port.apply(u.original.dport);
        }
    }
}
