//! ICMP errors: those that come, which belong to the connection that they are about, and where those come from that the
//! gateway makes.
//!
//! *Threads*: the worker's. *Sources*: RFC 5508 section 4 (REQ-3 to REQ-6); `linux/net/netfilter/nf_conntrack_proto_icmp.c`
//! (`nf_conntrack_inet_error`), `nf_nat_core.c` (`nf_nat_icmp_reply_translation`).

use std::net::IpAddr;

use super::pptp::Call;
use super::{Outcome, Path, Rewrite};
use crate::api::policy::ZoneId;
use crate::api::stats::HandoverCause;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::drop::DropReason;
use crate::nat::rewrite::ErrorTarget;
use crate::packet::{CtState, Packet, Quoted};
use crate::parse::icmp;
use crate::time::Nanos;

impl Path {
    /// An ICMP error: RELATED where it is about a connection, and translated as that is.
    pub(super) fn error(&mut self, p: &mut Packet, quoted: Option<Quoted>, from: ZoneId, now: Nanos) -> Outcome {
        let Some(quoted) = quoted else { return self.invalid(p, from, DropReason::InvalidQuote, now) };
        if quoted.tuple.src != p.tuple.dst {
            return self.invalid(p, from, DropReason::InvalidErrorTarget, now);
        }
        let mut tuple = quoted.tuple.inverse();
        if tuple.proto == proto::GRE && tuple.sport != 0 {
            match self.call_of(&tuple, p.stale) {
                Call::None => {}
                Call::Here(whole) => tuple = whole,
                Call::At(owner) => return Outcome::Handover(owner, HandoverCause::IcmpError),
            }
        }
        let Some((id, direction)) = self.lookup(&tuple, self.conntrack.hash(&tuple), now) else {
            return match self.owner_of_miss(&tuple, p, now) {
                Some((owner, HandoverCause::Stale)) => Outcome::Handover(owner, HandoverCause::Stale),
                Some((owner, _)) => Outcome::Handover(owner, HandoverCause::IcmpError),
                None => self.invalid(p, from, DropReason::InvalidNoParent, now),
            };
        };
        if self.conntrack.conn(id).flags.has(Flags::PENDING) {
            return self.invalid(p, from, DropReason::InvalidNoParent, now); // nothing of it has left yet
        }
        let judged = self.conntrack.conn(id).judged == self.policy_epoch || self.judge_again(id, now).is_ok();
        if !judged || self.still_has_addresses(id, None, now).is_err() {
            return self.invalid(p, from, DropReason::InvalidNoParent, now);
        }
        p.state = CtState::Related;
        p.direction = direction;
        p.conn = Some(id);
        self.classify(p);
        // The error goes the way of packets of `direction`; what it quotes went the other way.
        let other = self.conntrack.tuple(id, direction.opposite());
        let target = other.inverse();
        let src = if target.src == tuple.src { p.tuple.src } else { target.src };
        let to = ErrorTarget { src, dst: target.dst, quoted: other };
        let rewrite = if self.conntrack.conn(id).flags.has(Flags::TRANSLATED) {
            if icmp::is_redirect(&p.tuple) {
                return DropReason::NatRedirect.into();
            }
            Rewrite::Error(quoted, to)
        } else {
            Rewrite::None
        };
        let seen = Tuple { dst: target.dst, ..p.tuple };
        let mut outcome = self.uncached(p, &seen, rewrite, from, None, now);
        if let Outcome::Forward(plan) = &mut outcome {
            plan.helped = self.conntrack.conn(id).flags.has(Flags::ADJUSTED);
        }
        outcome
    }

    /// The source of an error that the gateway itself makes about a packet of a translated connection: the address that
    /// stands for the other end, where that or its port is translated for whom the error is for. So has Linux, whose errors pass
    /// through translation as any other (`nf_nat_icmp_reply_translation`).
    pub fn translated_source_of_error(&self, p: &Packet) -> Option<IpAddr> {
        if p.dnat {
            return Some(p.tuple.dst);
        }
        let id = p.conn.filter(|&id| self.conntrack.conn(id).flags.has(Flags::TRANSLATED))?;
        let stands = self.conntrack.tuple(id, p.direction).inverse();
        let is = self.conntrack.tuple(id, p.direction.opposite());
        // The identifier of an ICMP query is its source's.
        let port = stands.sport != is.sport && (!stands.is_icmp() || p.direction == Direction::Reply);
        (stands.src != is.src || port).then_some(stands.src)
    }
}
