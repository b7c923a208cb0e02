//! Connections under a policy or addresses that are newer than they are.
//!
//! ```text
//!   policy denies it                                          ended (denied)
//!   rules would translate it otherwise, and say `end`         ended (retranslated)
//!   its source or target was an address of the gateway's,
//!   and is no more; masquerade: not of the way out            ended (address_gone)
//!   else                                                      goes on as it is
//! ```
//! *Threads*: the worker's: with the next packet of a connection, or when control has the table swept.
//! *Limits*: one connection at a time. *Sources*: `linux/net/netfilter/nf_nat_masquerade.c`, `nf_nat_core.c`
//! (`nf_nat_oif_changed`).

use super::translate::NewSource;
use super::{Path, Refusal};
use crate::api::policy::{NatKind, OnReload};
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::drop::DropReason;
use crate::filter::Query;
use crate::io::PortIdx;
use crate::nat::{self, Sources};
use crate::packet::CtState;
use crate::time::Nanos;

impl Path {
    /// Judges a connection under a new policy by what its first packet was: an error where that denies it, or would
    /// translate it otherwise and ends such, and it is ended. Where there is no route at the moment, that is not the policy's
    /// doing and the connection stays.
    pub(super) fn judge_again(&mut self, id: ConnId, now: Nanos) -> Result<(), DropReason> {
        let conn = self.conntrack.conn(id);
        let (in_port, mark, flags) = (conn.in_port, conn.mark, conn.flags);
        let original = self.conntrack.tuple(id, Direction::Original);
        let target = self.conntrack.tuple(id, Direction::Reply).inverse();
        let zone = self.zone_of_way(id, Direction::Original);
        if let Ok(hop) = self.route_into(zone, false, in_port, original.src, target.dst) {
            let seen = Tuple { dst: target.dst, dport: target.dport, ..original };
            let query = Query {
                tuple: &seen,
                l4_known: true,
                tcp_flags: crate::conntrack::tcp::SYN,
                state: if flags.has(Flags::EXPECTED) { CtState::Related } else { CtState::New },
                mark,
                from: self.policy.zone_of(in_port),
                to: Some(self.policy.zone_of(hop.egress)),
                interface_in: (!in_port.is_twin()).then_some(in_port.interface()),
                interface_out: (!hop.egress.is_twin()).then_some(hop.egress.interface()),
            };
            let verdict = self.policy.judge(&query, |_| {});
            if !verdict.accept {
                self.end(id, CtEvent::Denied, now);
                return Err(DropReason::PolicyReload);
            }
            if let Some(on_reload) = self.would_differ(id, &query, in_port, hop.egress)
                && (on_reload == OnReload::End || flags.has(Flags::ENDS_ON_RELOAD))
            {
                self.end(id, CtEvent::Retranslated, now);
                return Err(DropReason::NatReload);
            }
            self.conntrack.conn_mut(id).timeout_policy = verdict.timeout_policy;
        }
        self.conntrack.conn_mut(id).judged = self.policy_epoch;
        Ok(())
    }

    /// Whether the rules would not have translated a connection as it is, and what those that would have want done then.
    /// `seen` shows it as POSTROUTING sees it. What follows its master's translation is not theirs.
    fn would_differ(&self, id: ConnId, seen: &Query<'_>, in_port: PortIdx, egress: PortIdx) -> Option<OnReload> {
        let flags = self.conntrack.conn(id).flags;
        if !self.policy.translates() && !flags.has(Flags::TRANSLATED) || flags.has(Flags::EXPECTED) {
            return None;
        }
        let original = self.conntrack.tuple(id, Direction::Original);
        let reply = self.conntrack.tuple(id, Direction::Reply);
        let first = Query { tuple: &original, to: None, interface_out: None, ..*seen };
        let destination = if in_port.is_twin() { None } else { self.destination_rule(&first) };
        let destination_rule = destination.and_then(|d| self.policy.nat_rule(d.rule));
        // The identifier of an ICMP query is its source's.
        let same_port = |port| port == reply.sport || !original.has_ports();
        let same_destination = match (destination, destination_rule) {
            (Some(d), Some(rule)) => {
                let own = self.fib.primary(in_port.interface(), original.dst);
                nat::destination(rule, d.back, &original, own).is_some_and(|(address, port)| {
                    let same = match &rule.kind {
                        // Any of the pool will do.
                        NatKind::Dnat { to: pool, .. } | NatKind::Twice { to: pool, .. } => pool.contains(reply.src),
                        _ => address == reply.src,
                    };
                    same && same_port(port)
                })
            }
            _ => reply.src == original.dst && same_port(original.dport),
        };
        let source = self.source_of(seen, &original, destination, in_port, egress);
        let source_rule = if let NewSource::Rule(n) = source { self.policy.nat_rule(n) } else { None };
        let same_source = match (source, source_rule) {
            (_, Some(rule)) => {
                let own = self.fib.primary(egress.interface(), reply.dst);
                let masqueraded = matches!(rule.kind, NatKind::Masquerade | NatKind::Twice { source: None, .. });
                let address = match masqueraded {
                    // The primary address may be another by now.
                    true => self.fib.is_on(egress.interface(), reply.dst),
                    false => Sources::of(rule, &original, own).is_some_and(|s| s.contains(reply.dst)),
                };
                let chosen = reply.is_icmp() || reply.has_ports();
                address && (!chosen || rule.ports.as_ref().is_none_or(|r| r.contains(&reply.id())))
            }
            (NewSource::Hairpin(address), None) => reply.dst == address,
            // Its port may be another, where its own was taken.
            (_, None) => reply.dst == original.src,
        };
        if same_destination && same_source {
            return None;
        }
        let ends = |rule: Option<&crate::api::policy::NatRuleSpec>| rule.is_some_and(|r| r.on_reload == OnReload::End);
        Some(if ends(destination_rule) || ends(source_rule) { OnReload::End } else { OnReload::Keep })
    }

    /// Ends a connection whose translated address is not the gateway's any more; with the way out of its original packets,
    /// also one that is masqueraded behind another interface than that.
    ///
    /// # Errors
    /// It is ended.
    pub(super) fn still_has_addresses(
        &mut self,
        id: ConnId,
        egress: Option<PortIdx>,
        now: Nanos,
    ) -> Result<(), Refusal> {
        let flags = self.conntrack.conn(id).flags;
        if !flags.has_any(Flags::BOUND_TO_ADDRESSES) {
            return Ok(());
        }
        let reply = self.conntrack.tuple(id, Direction::Reply);
        let elsewhere = |e: PortIdx| !self.fib.is_on(e.interface(), reply.dst);
        let gone = flags.has(Flags::OWN_SOURCE) && !self.fib.is_local(reply.dst)
            || flags.has(Flags::OWN_DESTINATION) && !self.fib.is_local(reply.src)
            || flags.has(Flags::MASQUERADED) && egress.is_some_and(elsewhere);
        if !gone {
            return Ok(());
        }
        self.end(id, CtEvent::AddressGone, now);
        Err(DropReason::NatAddressGone.into())
    }

    /// Judges a connection if it has not been since policy and addresses changed last. Says whether it stays.
    pub fn sweep(&mut self, id: ConnId, now: Nanos) -> bool {
        if self.conntrack.conn(id).judged != self.policy_epoch && self.judge_again(id, now).is_err() {
            return false;
        }
        let egress = self.conntrack.conn(id).flags.has(Flags::MASQUERADED).then(|| {
            let conn = self.conntrack.conn(id);
            let original = self.conntrack.tuple(id, Direction::Original);
            let target = self.conntrack.tuple(id, Direction::Reply).inverse();
            let zone = self.zone_of_way(id, Direction::Original);
            self.route_into(zone, false, conn.in_port, original.src, target.dst).ok().map(|hop| hop.egress)
        });
        self.still_has_addresses(id, egress.flatten(), now).is_ok()
    }
}
