//! Translation between IPv6 prefixes, around everything else: destinations become inside ones as packets come, sources outside
//! ones as they leave, so that tracking, rules and routes know inside addresses only.
//!
//! It has no state, so it is all packets': also those that are INVALID or UNTRACKED, fragments, errors and what they quote. Only
//! neighbour discovery, which speaks of its own link, and the gateway's own addresses are left alone. A packet from inside to the
//! outside prefix comes back (hairpin): its destination is translated, which is noted, and therefore its source too, wherever it leaves.
//!
//! *Threads*: the worker's. *Limits*: a packet that is under way while the policy changes leaves by the new one's rules.
//! *Sources*: RFC 6296 sections 2 and 3; which addresses of an error are translated: `linux/net/ipv6/netfilter/ip6t_NPT.c`.

use std::net::{IpAddr, Ipv6Addr};

use super::{Path, Plan, Refusal, Rewrite};
use crate::drop::DropReason;
use crate::forward::icmp_error::IcmpError;
use crate::io::PortIdx;
use crate::nat::prefix::PrefixRule;
use crate::packet::{L4, Packet};
use crate::parse::ipv6;

impl Path {
    /// What the destination becomes of a packet that has just come, and by which rule.
    ///
    /// # Errors
    /// Where it cannot be translated.
    pub fn inward(&self, p: &Packet) -> Result<Option<(PrefixRule, Ipv6Addr)>, Refusal> {
        let IpAddr::V6(dst) = p.tuple.dst else { return Ok(None) };
        if p.in_port.is_twin() || p.kind == L4::NeighbourDiscovery {
            return Ok(None);
        }
        match self.policy.prefixes().arriving(self.policy.end(p.in_port), dst) {
            Some(_) if self.fib.is_local(dst.into()) => Ok(None),
            Some((rule, Some(to))) => Ok(Some((rule, to))),
            Some((_, None)) => Err(no_image(ipv6::DESTINATION_AT)),
            None => Ok(None),
        }
    }

    /// What the quoted source becomes of an error whose destination was translated: what it quotes left by the same rule.
    pub fn inward_quoted(&self, p: &Packet) -> Option<Ipv6Addr> {
        let L4::IcmpError(Some(quoted)) = p.kind else { return None };
        self.policy.prefixes().inward(p.prefix, quoted.tuple.src)
    }

    /// What source and quoted destination become of a packet that leaves as `plan` says.
    ///
    /// # Errors
    /// Where the source cannot be translated.
    pub fn outward(&self, p: &Packet, plan: &Plan) -> Result<[Option<Ipv6Addr>; 2], DropReason> {
        let (src, quoted) = match (&plan.rewrite, p.kind) {
            (Rewrite::None, L4::IcmpError(Some(q))) => (p.tuple.src, Some(q.tuple.dst)),
            (Rewrite::None, _) => (p.tuple.src, None),
            (Rewrite::Tuple(to), _) => (to.src, None),
            (Rewrite::Error(_, to), _) => (to.src, Some(to.quoted.dst)),
        };
        let src = match self.leaving(p, plan.egress, src) {
            Some(None) => return Err(DropReason::NatPrefix),
            Some(image) => image,
            None => None,
        };
        Ok([src, quoted.and_then(|dst| self.leaving(p, plan.egress, dst)).flatten()])
    }

    /// What source and quoted destination become of a packet that the gateway has made, about `p` and from address `src`, and
    /// that leaves by where that came in.
    pub fn outward_own(&self, p: &Packet, src: IpAddr) -> [Option<Ipv6Addr>; 2] {
        let (prefixes, end) = (self.policy.prefixes(), self.policy.end(p.in_port));
        [prefixes.leaving(None, end, (p.prefix, end), src).flatten(), prefixes.outward(p.prefix, p.tuple.dst)]
    }

    /// Whether a packet has an address to leave by `egress` with.
    pub(super) fn has_image(&self, p: &Packet, egress: PortIdx) -> Result<(), Refusal> {
        match self.leaving(p, egress, p.tuple.src) {
            Some(None) => Err(no_image(ipv6::SOURCE_AT)),
            _ => Ok(()),
        }
    }

    fn leaving(&self, p: &Packet, egress: PortIdx, a: IpAddr) -> Option<Option<Ipv6Addr>> {
        if p.kind == L4::NeighbourDiscovery {
            return None;
        }
        let (from, to) = (self.policy.end(p.in_port), self.policy.end(egress));
        let routed = (!p.in_port.is_twin()).then_some(from);
        self.policy.prefixes().leaving(routed, to, (p.prefix, from), a)
    }
}

/// The refusal of a packet whose address at offset `at` of its header has no image (RFC 6296 section 3.7).
const fn no_image(at: u8) -> Refusal {
    Refusal { reason: DropReason::NatPrefix, error: Some(IcmpError::Parameter(at)) }
}
