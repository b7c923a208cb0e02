//! Whose a packet is: which connection has its tuple, or which worker may have it.
//!
//! *Threads*: the worker's. *Limits*: a packet that a signpost has led astray comes back once, marked, and follows none again.

use super::Path;
use crate::api::stats::{CtEvent, HandoverCause};
use crate::conntrack::ConnId;
use crate::conntrack::expect::key_of;
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::packet::{L4, Packet};
use crate::time::Nanos;

impl Path {
    /// The worker that must look at a packet, by what software can see of it: its own tuple's home, or for an ICMP
    /// error that of the packet it quotes. What starts and finds nothing may be looked at anywhere.
    pub fn home(&self, p: &Packet) -> WorkerId {
        match p.kind {
            L4::IcmpError(Some(q)) => self.steer.home(&q.tuple),
            L4::IcmpError(None) | L4::Invalid(_) | L4::NeighbourDiscovery => self.steer.me(),
            _ => self.steer.home(&p.tuple),
        }
    }

    /// Whether a whole TCP or UDP packet belongs to a connection here.
    pub fn has(&self, p: &Packet) -> bool {
        let usual = matches!(p.kind, L4::Tcp(_) | L4::Udp) && !p.later;
        usual && self.conntrack.find(&p.tuple, self.conntrack.hash(&p.tuple)).is_some()
    }

    /// The live connection of `t`; one that has expired unnoticed is ended on the way.
    #[inline]
    pub(super) fn lookup(&mut self, t: &Tuple, hash: u64, now: Nanos) -> Option<(ConnId, Direction)> {
        let hit = self.conntrack.find(t, hash)?;
        if self.conntrack.conn(hit.0).deadline() > now {
            return Some(hit);
        }
        self.end(hit.0, CtEvent::Expired, now);
        None
    }

    /// Which other worker a tuple belongs to that no connection here has.
    pub(super) fn owner_of_miss(&self, t: &Tuple, p: &Packet, now: Nanos) -> Option<(WorkerId, HandoverCause)> {
        if self.steer.is_alone() || matches!(p.kind, L4::Invalid(_)) {
            return None;
        }
        // A connection that is there comes before one that is expected.
        let signpost = self.signposts.owner(t).filter(|_| !p.stale);
        if let Some(owner) = signpost {
            return Some((owner, HandoverCause::Signpost));
        }
        if self.expectation_of(t, now).is_some() {
            return None; // whoever's home it is
        }
        let home = self.steer.home(t);
        if home != self.steer.me() {
            return Some((home, HandoverCause::Stale)); // a signpost sent it here, and its flow has ended
        }
        let expects = self.announced.owner(&key_of(t)).filter(|_| !p.stale);
        expects.map(|owner| (owner, HandoverCause::Expectation))
    }
}
