//! Datagrams that came in fragments: put together, judged once, sent on as the fragments that came.
//!
//! A whole datagram lies in the worker's `train`. *Limits*: those of [`crate::defrag`]; one datagram at a time.

use super::{Worker, handover, header};
use crate::api::stats::{FragmentResult, HandoverCause};
use crate::conntrack::signpost::WorkerId;
use crate::defrag::{Arrived, Piece};
use crate::drop::DropReason;
use crate::forward::icmp_error::IcmpError;
use crate::io::{Buf, Io};
use crate::packet::{L4, Packet};
use crate::path::{L2, Outcome, Plan, Refusal};
use crate::time::Nanos;

/// Datagrams that are given up per turn, at most.
const EXPIRIES: usize = 8;

impl<I: Io> Worker<I> {
    /// A fragment came.
    pub(super) fn fragment(&mut self, buf: I::Buf, packet: Packet, now: Nanos) {
        match self.defrag.insert(Piece { buf, packet }, now, &mut self.train) {
            Arrived::Waits => {}
            Arrived::Lost(reason) => self.lose_train(reason),
            Arrived::Whole => {
                self.path.stats.fragments(FragmentResult::Reassembled, self.train.len());
                self.whole(now);
            }
            Arrived::Invalid => {
                if let Some(Piece { buf, mut packet }) = self.train.pop() {
                    self.path.stats.fragments(FragmentResult::Invalid, 1);
                    self.alone(buf.bytes(), &mut packet);
                    self.enqueue(buf, packet);
                    self.process(false, now);
                }
                self.lose_train(DropReason::FragmentInvalid);
            }
            Arrived::Later(first) => {
                if let Some(Piece { buf, packet }) = self.train.pop() {
                    self.path.stats.fragments(FragmentResult::Virtual, 1);
                    self.later(buf, header::later(&first, &packet));
                    self.process(false, now);
                }
            }
        }
        if let Some(q) = self.defrag.begun(&mut self.train) {
            self.begin(q, now);
        }
    }

    /// Tracking sees an unfit IPv6 fragment by itself. Where what it has of its datagram does not make it INVALID, as with a
    /// protocol that nobody looks into, it goes on.
    fn alone(&self, bytes: &[u8], packet: &mut Packet) {
        let payload = bytes.get(usize::from(packet.l4)..usize::from(packet.end)).unwrap_or_default();
        let verify = self.path.policy.spec().conntrack.checksum;
        let (kind, sport, dport) = header::parse(packet, payload, verify);
        let first = packet.fragment.is_some_and(|f| f.offset == 0);
        if !first || matches!(kind, L4::Invalid(_) | L4::NeighbourDiscovery) {
            packet.kind = L4::Invalid(DropReason::FragmentInvalid);
        } else {
            packet.kind = kind;
            (packet.tuple.sport, packet.tuple.dport) = (sport, dport);
        }
    }

    /// Gives up datagrams whose time is over, and says what the others occupy.
    pub(super) fn expire_fragments(&mut self, now: Nanos) {
        for _ in 0..EXPIRIES {
            let timeouts = &self.path.policy.spec().conntrack.timeouts;
            if !self.defrag.expire(timeouts, now, &mut self.train) {
                break;
            }
            self.tell_of_timeout(now);
            self.lose_train(DropReason::FragmentTimeout);
        }
        let stats = &self.path.stats;
        stats.fragment_queues.set(self.defrag.queues() as u64);
        stats.fragment_memory.set(self.defrag.memory() as u64);
    }

    /// Tells the sender of the datagram in the train that its time is over, where the first fragment is there: of an IPv6
    /// datagram (RFC 8200 section 4.5), and of an IPv4 datagram to the gateway itself, which puts it together as its
    /// receiver (RFC 792). Of those that go on, Linux tells nobody: `linux/net/ipv4/ip_fragment.c`, `ip_expire`.
    fn tell_of_timeout(&mut self, now: Nanos) {
        let train = std::mem::take(&mut self.train);
        if let Some(Piece { buf, packet }) = train.first()
            && packet.fragment.is_some_and(|f| f.offset == 0)
            && (!packet.tuple.is_ipv4() || self.path.fib.is_local(packet.tuple.dst))
        {
            let payload = buf.bytes().get(usize::from(packet.l4)..usize::from(packet.end)).unwrap_or_default();
            let (kind, ..) = header::parse(packet, payload, false); // about an error there is none
            self.answer(buf.bytes(), &Packet { kind, ..*packet }, IcmpError::ReassemblyTime, now);
        }
        self.train = train;
    }

    /// The datagram in the train is whole: to its home with it, or judge it here.
    fn whole(&mut self, now: Nanos) {
        let verify = self.path.policy.spec().conntrack.checksum;
        header::end(&mut self.train);
        let Some(mut packet) = header::whole(&self.train, verify) else { return };
        self.inward_train(&mut packet);
        if packet.kind == L4::NeighbourDiscovery && header::is_discovery(&packet) {
            return self.lose_train(DropReason::FragmentInvalid);
        }
        let home = self.path.home(&packet);
        if self.path.steer.is_alone() || home == self.path.steer.me() {
            self.judge_train(packet, false, now);
        } else {
            self.hand_over_train(packet, home, HandoverCause::Fragment);
        }
    }

    /// Judges the datagram in the train, `packet` being the whole, and carries it out on each fragment.
    pub(super) fn judge_train(&mut self, mut packet: Packet, handed: bool, now: Nanos) {
        packet.hash = self.path.conntrack.prefetch_bucket(&packet.tuple);
        match self.path.judge(&mut packet, now) {
            Outcome::Forward(plan) => self.forward_judged_train(&packet, &plan, now),
            Outcome::Drop(Refusal { reason, error }) => {
                if let Some(error) = error {
                    let train = std::mem::take(&mut self.train);
                    if let Some(first) = train.first() {
                        let head = Packet { end: first.packet.end, ..packet };
                        self.answer(first.buf.bytes(), &head, error, now);
                    }
                    self.train = train;
                }
                self.lose_train(reason);
            }
            Outcome::Handover(to, cause) => {
                let cause = packet.astray(cause, handed);
                self.hand_over_train(packet, to, cause);
            }
            Outcome::Wait(slot) => self.park_train(packet, slot, now),
        }
    }

    /// Sends the datagram in the train as its plan says, past its connection's helper.
    pub(super) fn forward_judged_train(&mut self, packet: &Packet, plan: &Plan, now: Nanos) {
        if plan.helped
            && let Err(reason) = self.help_train(packet, now)
        {
            return self.lose_train(reason);
        }
        self.forward_train(packet, plan, now);
    }

    /// Rewrites the datagram in the train, `packet` being the whole, and sends it.
    fn forward_train(&mut self, packet: &Packet, plan: &Plan, now: Nanos) {
        // Before it is rewritten: it quotes what came.
        let mut error = None;
        if matches!(plan.l2, L2::Resolve(_)) {
            let train = std::mem::take(&mut self.train);
            let first = train.first();
            error = first.and_then(|p| self.unreachable(p.buf.bytes(), &Packet { end: p.packet.end, ..*packet }, plan));
            self.train = train;
        }
        if !header::translate::<I>(&mut self.train, packet, plan) {
            return self.lose_train(DropReason::NoBuffer);
        }
        Self::clamp_train(&self.path, &mut self.train, packet, plan);
        if let Err(reason) = Self::outward_train(&self.path, &mut self.train, packet, plan) {
            return self.lose_train(reason);
        }
        self.train.reverse(); // so that the first comes off first
        if let Some(first) = self.train.pop() {
            self.dispatch(first.buf, usize::from(packet.l3), plan, error, now);
        }
        while let Some(piece) = self.train.pop() {
            let l3 = usize::from(piece.packet.l3);
            self.forward_later(piece.buf, l3, packet, plan, now);
        }
    }

    /// Hands all fragments of the train over, or none.
    fn hand_over_train(&mut self, packet: Packet, to: WorkerId, cause: HandoverCause) {
        // Invariant: a train has at most TRAIN + 1 pieces.
        let follow = u8::try_from(self.train.len().saturating_sub(1)).unwrap_or(0);
        let mut whole = Some(packet);
        let pieces = self.train.drain(..).map(|Piece { buf, packet }| (buf, whole.take().unwrap_or(packet)));
        handover::send_all(&mut self.parcels, &self.path.stats, to, cause, follow, pieces);
    }

    /// Drops what is in the train.
    pub(super) fn lose_train(&mut self, reason: DropReason) {
        if let Some(result) = FragmentResult::of(reason) {
            self.path.stats.fragments(result, self.train.len());
        }
        for _ in self.train.drain(..) {
            self.path.stats.drop_packet(reason);
        }
    }
}
