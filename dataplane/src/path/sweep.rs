//! Connections under a policy or addresses that are newer than they are.
//!
//! *Threads*: the worker's: with the next packet of a connection, or when control has the table swept.
//! *Limits*: one connection at a time. *Sources*: `linux/net/netfilter/nf_nat_masquerade.c`.

use super::Path;
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::drop::DropReason;
use crate::filter::Query;
use crate::packet::CtState;
use crate::time::Nanos;

impl Path {
    /// Judges a connection under a new policy by what its first packet was: an error where that denies it, and it is ended.
    /// Where there is no route at the moment, that is not the policy's doing and the connection stays.
    pub(super) fn judge_again(&mut self, id: ConnId, now: Nanos) -> Result<(), DropReason> {
        let conn = self.conntrack.conn(id);
        let (in_port, mark, expected) = (conn.in_port, conn.mark, conn.flags.has(Flags::EXPECTED));
        let original = self.conntrack.tuple(id, Direction::Original);
        let target = self.conntrack.tuple(id, Direction::Reply).inverse();
        let zone = self.zone_of_way(id, Direction::Original);
        if let Ok(hop) = self.route_into(zone, false, in_port, original.src, target.dst) {
            let seen = Tuple { dst: target.dst, dport: target.dport, ..original };
            let query = Query {
                tuple: &seen,
                l4_known: true,
                tcp_flags: crate::conntrack::tcp::SYN,
                state: if expected { CtState::Related } else { CtState::New },
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
            self.conntrack.conn_mut(id).timeout_policy = verdict.timeout_policy;
        }
        self.conntrack.conn_mut(id).judged = self.policy_epoch;
        Ok(())
    }

    /// Judges a connection if it has not been since policy and addresses changed last. Says whether it stays.
    pub fn sweep(&mut self, id: ConnId, now: Nanos) -> bool {
        self.conntrack.conn(id).judged == self.policy_epoch || self.judge_again(id, now).is_ok()
    }
}
