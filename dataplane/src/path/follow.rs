//! A later fragment of a datagram whose first was judged: it gets that one's verdict and translation.
//!
//! It is no packet of its own to tracking: nothing moves and nothing is counted but its bytes. Where the first has made or met
//! a connection, that says what becomes of the others, wherever it lives: hand-over keeps their order. Without one there
//! is nothing to follow.
//!
//! *Threads*: the worker's. *Limits*: none of its own.

use super::{Outcome, Path};
use crate::api::policy::ZoneId;
use crate::drop::DropReason;
use crate::packet::{L4, Packet};
use crate::time::Nanos;

impl Path {
    /// Takes a later fragment after its first one. Its tuple is the datagram's.
    pub(super) fn follow(&mut self, p: &mut Packet, from: ZoneId, now: Nanos) -> Outcome {
        if let L4::Invalid(reason) = p.kind {
            return self.invalid(p, from, reason, now);
        }
        let Some((id, direction)) = self.lookup(&p.tuple, p.hash, now) else {
            return match self.owner_of_miss(&p.tuple, p, now) {
                Some((owner, cause)) => Outcome::Handover(owner, cause),
                None => DropReason::FragmentFirst.into(),
            };
        };
        if self.conntrack.conn(id).judged != self.policy_epoch {
            if let Some(slot) = self.waits_for(id) {
                return Outcome::Wait(slot);
            }
            if let Err(reason) = self.judge_again(id, now) {
                return reason.into();
            }
        }
        let conn = self.conntrack.conn_mut(id);
        let bytes = &mut conn.bytes[direction.index()];
        *bytes = bytes.wrapping_add(u64::from(p.ip_len));
        self.known(p, id, direction, from, now)
    }
}
