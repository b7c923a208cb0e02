//! Connections under a policy or addresses that are newer than they are.
//!
//! ```text
//!   policy denies it                                          ended (denied)
//!   rules would translate it otherwise, and say `end`         ended (retranslated)
//!   an address of its translation was the gateway's,
//!   and is no more; masquerade: not of the way out            ended (address_gone)
//!   no route at the moment                                    judged when there is one again
//!   else                                                      goes on as it is
//! ```
//! *Threads*: the worker's: with the next packet of a connection, or when control has the table swept.
//! *Limits*: one connection at a time. *Sources*: `linux/net/netfilter/nf_nat_masquerade.c`, `nf_nat_core.c`
//! (`nf_nat_oif_changed`).

use super::hop::Hop;
use super::translate::{NewSource, bound_by};
use super::{Path, Refusal};
use crate::api::policy::{NatKind, NatRuleSpec, OnReload};
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

/// What the rules in force say of a connection's translation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ruled {
    /// Whether they would have made another one.
    differs: bool,
    /// What those that would want done then.
    on_reload: OnReload,
    /// What theirs is bound to.
    pub(super) bound: Flags,
    /// Whether it takes a port of an address.
    pub(super) leased: bool,
}

impl Path {
    /// Judges a connection under a new policy by what its first packet was: an error where that denies it, or would
    /// translate it otherwise and ends such, and it is ended. Where there is no route at the moment, that is not the policy's
    /// doing: it stays, and is judged later.
    pub(super) fn judge_again(&mut self, id: ConnId, now: Nanos) -> Result<(), DropReason> {
        let conn = self.conntrack.conn(id);
        let (in_port, mark, flags) = (conn.in_port, conn.mark, conn.flags);
        let original = self.conntrack.tuple(id, Direction::Original);
        let reply = self.conntrack.tuple(id, Direction::Reply);
        let target = reply.inverse();
        let zone = self.zone_of_way(id, Direction::Original);
        let Ok(hop) = self.route_into(zone, false, in_port, original.src, target.dst) else { return Ok(()) };
        let seen = Tuple { dst: target.dst, dport: target.dport, ..original };
        let state = if flags.has(Flags::EXPECTED) { CtState::Related } else { CtState::New };
        let mut query = Query { mark, state, ..self.first_query(&seen, in_port, hop.egress) };
        let verdict = self.policy.judge(&query, |_| {});
        if !verdict.accept {
            self.end(id, CtEvent::Denied, now);
            return Err(DropReason::PolicyReload);
        }
        query.mark = verdict.mark;
        // What follows its master's translation is not the rules'.
        if !flags.has(Flags::EXPECTED) && (self.policy.translates() || flags.has(Flags::TRANSLATED)) {
            let ruled = self.ruled(&original, &reply, &query, in_port, hop);
            if ruled.differs && (ruled.on_reload == OnReload::End || flags.has(Flags::ENDS_ON_RELOAD)) {
                self.end(id, CtEvent::Retranslated, now);
                return Err(DropReason::NatReload);
            }
            if !ruled.differs {
                let flags = &mut self.conntrack.conn_mut(id).flags;
                flags.clear(Flags::ENDS_ON_RELOAD);
                flags.clear(Flags::MASQUERADED);
                flags.set(ruled.bound);
            }
        }
        let conn = self.conntrack.conn_mut(id);
        conn.timeout_policy = verdict.timeout_policy;
        conn.judged = self.policy_epoch;
        Ok(())
    }

    /// The first packet of a connection as rules see it behind routing: `seen` has its destination translated.
    fn first_query<'a>(&self, seen: &'a Tuple, in_port: PortIdx, egress: PortIdx) -> Query<'a> {
        Query {
            tuple: seen,
            l4_known: true,
            tcp_flags: crate::conntrack::tcp::SYN,
            state: CtState::New,
            mark: 0,
            from: self.policy.zone_of(in_port),
            to: Some(self.policy.zone_of(egress)),
            interface_in: (!in_port.is_twin()).then_some(in_port.interface()),
            interface_out: (!egress.is_twin()).then_some(egress.interface()),
        }
    }

    /// What the rules say of a connection that is made otherwise than by its first packet.
    pub(super) fn ruled_as_made(&self, original: &Tuple, reply: &Tuple, mark: u32, in_port: PortIdx) -> Option<Ruled> {
        let target = reply.inverse();
        let hop = self.route_into(0, false, in_port, original.src, target.dst).ok()?;
        let seen = Tuple { dst: target.dst, dport: target.dport, ..*original };
        let query = Query { mark, ..self.first_query(&seen, in_port, hop.egress) };
        Some(self.ruled(original, reply, &query, in_port, hop)).filter(|r| !r.differs)
    }

    /// Compares a connection's translation with what the rules would make of its first packet; `seen` shows that as POSTROUTING
    /// sees it.
    fn ruled(&self, original: &Tuple, reply: &Tuple, seen: &Query<'_>, in_port: PortIdx, hop: Hop) -> Ruled {
        let egress = hop.egress;
        // PREROUTING comes before the rules that set marks.
        let first = Query { tuple: original, to: None, interface_out: None, mark: 0, ..*seen };
        let destination = if in_port.is_twin() { None } else { self.destination_rule(&first) };
        let destination_rule = destination.and_then(|d| self.policy.nat_rule(d.rule));
        // The identifier of an ICMP query is its source's.
        let same_port = |port| port == reply.sport || !original.has_ports();
        let same_destination = match (destination, destination_rule) {
            (Some(d), Some(rule)) => {
                let own = self.fib.primary(in_port.interface(), original.dst);
                nat::destination(rule, d.back, original, own).is_some_and(|(address, port)| {
                    let same = match &rule.kind {
                        // Any of the pool will do, and the primary address may be another by now.
                        NatKind::Dnat { to: pool, .. } | NatKind::Twice { to: pool, .. } => pool.contains(reply.src),
                        NatKind::Redirect { .. } => self.fib.is_on(in_port.interface(), reply.src),
                        _ => address == reply.src,
                    };
                    same && same_port(port)
                })
            }
            _ => reply.src == original.dst && same_port(original.dport),
        };
        let source = self.source_of(seen, original, destination, in_port, egress);
        let source_rule = source.rule().and_then(|n| self.policy.nat_rule(n));
        let same_source = match (source, source_rule) {
            (_, Some(rule)) => {
                let own = self.fib.masquerade(egress.interface(), hop.next, reply.src);
                let address = match rule.masquerades() {
                    true => self.fib.is_on(egress.interface(), reply.dst),
                    false => Sources::of(rule, original, own).is_some_and(|s| s.contains(reply.dst)),
                };
                let chosen = reply.is_icmp() || reply.has_ports();
                address && (!chosen || rule.ports.as_ref().is_none_or(|r| r.contains(&reply.id())))
            }
            (NewSource::Hairpin(address), None) => reply.dst == address,
            // Its port may be another, where its own was taken.
            (_, None) => reply.dst == original.src,
        };
        let mut bound = self.bound_to(original, reply);
        for rule in destination_rule.into_iter().chain(source_rule) {
            bound.set(bound_by(rule));
        }
        if source_rule.is_some_and(NatRuleSpec::masquerades) {
            bound.set(Flags::MASQUERADED);
        }
        Ruled {
            differs: !(same_destination && same_source),
            on_reload: if bound.has(Flags::ENDS_ON_RELOAD) { OnReload::End } else { OnReload::Keep },
            bound,
            leased: source_rule.is_some_and(|r| !matches!(r.kind, NatKind::Netmap { .. })),
        }
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
        let original = self.conntrack.tuple(id, Direction::Original);
        let delivered = self.conntrack.conn(id).cache[Direction::Original.index()].egress.is_twin();
        let gone = flags.has(Flags::OWN_SOURCE) && !self.fib.is_local(reply.dst)
            || flags.has(Flags::OWN_DESTINATION)
                && !self.fib.is_local(reply.src)
                && (delivered || !self.fib.is_local(original.dst))
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
