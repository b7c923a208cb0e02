//! Virtual reassembly: the first fragment of a datagram is judged for all, the others follow as they come.
//!
//! Each goes to the home of the datagram's tuple by itself, behind the first: rings keep their order. The transport checksum is
//! not verified, for most of what it covers is still to come. *Limits*: those of [`crate::defrag`].

use super::{Worker, handover, header};
use crate::api::stats::{FragmentResult, HandoverCause};
use crate::conntrack::signpost::WorkerId;
use crate::defrag::QueueId;
use crate::drop::DropReason;
use crate::io::{Buf, Io};
use crate::packet::{L4, Packet};
use crate::path::{Outcome, Refusal};
use crate::time::Nanos;

impl<I: Io> Worker<I> {
    /// The first fragment of datagram `q` is first in the train, and those behind it have waited for it.
    pub(super) fn begin(&mut self, q: QueueId, now: Nanos) {
        let Some(mut packet) = header::first(&self.train) else {
            self.defrag.refused(q);
            return self.lose_train(DropReason::FragmentHeader);
        };
        self.inward_train(&mut packet);
        if packet.kind == L4::NeighbourDiscovery && header::is_discovery(&packet) {
            self.defrag.refused(q);
            return self.lose_train(DropReason::FragmentInvalid);
        }
        self.defrag.judged(q, &packet);
        self.path.stats.fragments(FragmentResult::Virtual, self.train.len());
        let home = self.path.home(&packet);
        if !self.path.steer.is_alone() && home != self.path.steer.me() {
            return self.hand_over_first(&packet, packet, home, HandoverCause::Fragment);
        }
        let mut judged = packet;
        judged.hash = self.path.conntrack.prefetch_bucket(&judged.tuple);
        match self.path.judge(&mut judged, now) {
            Outcome::Forward(plan) => {
                self.train.reverse(); // so that the first comes off first
                if let Some(first) = self.train.pop() {
                    self.forward_judged(first.buf, &judged, &plan, now);
                }
                self.follow_first(&packet, now);
            }
            Outcome::Wait(slot) => {
                self.train.reverse();
                if let Some(first) = self.train.pop() {
                    self.park(first.buf, judged, slot, now);
                }
                self.follow_first(&packet, now); // they wait behind it
            }
            Outcome::Drop(Refusal { reason, error }) => {
                self.defrag.refused(q);
                if let Some(error) = error {
                    let train = std::mem::take(&mut self.train);
                    if let Some(first) = train.first() {
                        self.answer(first.buf.bytes(), &judged, error, now);
                    }
                    self.train = train;
                }
                self.lose_train(reason);
            }
            Outcome::Handover(to, cause) => {
                let cause = judged.astray(cause, false);
                self.hand_over_first(&packet, judged, to, cause);
            }
        }
    }

    /// What is left in the train, last first, goes after its first.
    fn follow_first(&mut self, first: &Packet, now: Nanos) {
        while let Some(piece) = self.train.pop() {
            self.later(piece.buf, header::later(first, &piece.packet));
        }
        self.process(false, now);
    }

    /// A later fragment of a datagram whose first was judged: to its home with it, or into the batch.
    pub(super) fn later(&mut self, buf: I::Buf, packet: Packet) {
        let home = self.path.home(&packet);
        if !self.path.steer.is_alone() && home != self.path.steer.me() {
            self.hand_over(buf, packet, home, HandoverCause::Fragment);
        } else {
            self.enqueue(buf, packet);
        }
    }

    /// Hands the first fragment over as `packet`, and those that waited for it as what follows `first`; all or none.
    fn hand_over_first(&mut self, first: &Packet, packet: Packet, to: WorkerId, cause: HandoverCause) {
        let mut judged = Some(packet);
        let pieces = self.train.drain(..).map(|piece| {
            let packet = judged.take().unwrap_or_else(|| header::later(first, &piece.packet));
            (piece.buf, packet)
        });
        handover::send_all(&mut self.parcels, &self.path.stats, to, cause, 0, pieces);
    }
}
