//! Packets on their way to and from other workers.
//!
//! *Order.* A worker hands over in the order in which it looked at packets: what is gathered during a burst leaves at the end of
//! that burst, and before any datagram in fragments for the same worker, which does not wait. So between two workers, and with
//! that within a connection, nothing overtakes.
//!
//! *Notes.* A signpost is asked for by a note, which is in its ring at once, and its packet leaves after the answer: what waits
//! here has no note behind it that it would need. On the other side a chunk is taken out of the ring first, then all notes are
//! read, then tuples are looked up: whatever note was sent before one of these packets is known by then. The fragments of a
//! datagram that lie beyond the chunk were put into the ring together with its first.
//!
//! A frame that comes as it is takes the same way through its owner as one from a port, the short one where that serves, but is not
//! steered again: it is judged here, and where it does not belong goes back marked. Its checksum was verified where it came in.
//!
//! *Threads*: the worker's. *Limits*: per turn a burst from each other worker; rings as [`crate::ring`].

use arrayvec::Drain;

use super::Worker;
use crate::api::stats::{HandoverCause, WorkerStats};
use crate::conntrack::signpost::WorkerId;
use crate::cpu::prefetch;
use crate::defrag::Piece;
use crate::drop::DropReason;
use crate::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use crate::packet::{L4, Packet};
use crate::steer::{Parcel, Parcels};
use crate::time::Nanos;

/// Counts a packet that was handed over, or was to be.
fn tell(stats: &WorkerStats, cause: HandoverCause, sent: bool) {
    if sent { stats.handover(cause) } else { stats.drop_packet(DropReason::HandoverFull) }
}

/// Whether the frame of a packet says all that is known of it, so that its owner can read it anew.
const fn speaks_for_itself(p: &Packet) -> bool {
    matches!(p.kind, L4::Tcp(_) | L4::Udp) && p.fragment.is_none() && !p.later && p.prefix == 0 && !p.stale
}

/// Hands packets over with what is known of them, all or none; `follow`: how many belong to the first.
pub(super) fn send_all<B>(
    parcels: &mut Parcels<B>,
    stats: &WorkerStats,
    to: WorkerId,
    cause: HandoverCause,
    follow: u8,
    packets: impl ExactSizeIterator<Item = (B, Packet)>,
) {
    let count = packets.len();
    let sent = parcels.send_all(to, cause, follow, packets, |cause, sent| tell(stats, cause, sent));
    for _ in 0..count {
        tell(stats, cause, sent);
    }
}

impl<I: Io> Worker<I> {
    /// Hands a packet over; it leaves at the end of the burst at the latest.
    pub(super) fn hand_over(&mut self, buf: I::Buf, packet: Packet, to: WorkerId, cause: HandoverCause) {
        if !speaks_for_itself(&packet) {
            let one = std::iter::once((buf, packet));
            return send_all(&mut self.parcels, &self.path.stats, to, cause, 0, one);
        }
        self.gather(buf, packet.in_port, to, cause);
    }

    /// Hands a frame over as it is, whose checksum was verified where the policy wants that.
    pub(super) fn gather(&mut self, mut buf: I::Buf, port: PortIdx, to: WorkerId, cause: HandoverCause) {
        if self.path.policy.spec().conntrack.checksum {
            buf.vouch();
        }
        let stats = &self.path.stats;
        let tell = |cause, sent| tell(stats, cause, sent);
        if self.parcels.gather(to, (buf, port), cause, tell).is_err() {
            debug_assert!(false, "whom packets are steered to is another worker");
            stats.drop_packet(DropReason::HandoverFull);
        }
    }

    /// Sends what was gathered for other workers.
    #[inline]
    pub(super) fn flush_parcels(&mut self) {
        let stats = &self.path.stats;
        self.parcels.flush(|cause, sent| tell(stats, cause, sent));
    }

    /// Packets that other workers handed over.
    pub(super) fn receive_parcels(&mut self, now: Nanos) -> bool {
        let Some(mut inbox) = self.inbox.take() else { return false };
        let mut busy = false;
        for from in 0..self.parcels.workers() {
            self.parcels.receive_burst(from, self.burst, &mut inbox);
            if inbox.is_empty() {
                continue;
            }
            busy = true;
            self.moved += inbox.len() as u64;
            for parcel in inbox.iter() {
                if let Some(first) = parcel.buf.bytes().first() {
                    prefetch(first);
                }
            }
            // Behind the chunk and before any lookup: see `Path::read_notes`.
            self.read_notes(now);
            self.take_parcels(from, inbox.drain(..), now);
            self.flush_parcels();
        }
        self.inbox = Some(inbox);
        busy
    }

    /// Takes a chunk of worker `from` through all stages: frames that came in by one port at a time, in their order.
    fn take_parcels(&mut self, from: usize, mut parcels: Drain<'_, Parcel<I::Buf>, MAX_BURST>, now: Nanos) {
        let Some(mut frames) = self.rx.take() else { return };
        let mut at = PortIdx::default();
        while let Some(Parcel { buf, port, described, follow, .. }) = parcels.next() {
            if !described {
                if port != at {
                    self.take_handed(&mut frames, at, now);
                    at = port;
                }
                frames.push(buf); // a chunk is one burst at most
                continue;
            }
            self.take_handed(&mut frames, at, now);
            let Some(packet) = self.parcels.description(from) else {
                debug_assert!(false, "a description is there before its packet");
                self.path.stats.drop_packet(DropReason::HandoverFull);
                continue;
            };
            if packet.kind == L4::Fragment {
                self.process(true, now); // what came before goes first
                self.fragment(buf, packet, now); // its addresses' home puts it together
            } else if follow > 0 {
                self.process(true, now);
                self.train.push(Piece { buf, packet });
                self.receive_train(from, parcels.by_ref(), follow);
                self.judge_train(packet, true, now);
            } else {
                self.enqueue(buf, packet);
            }
        }
        self.take_handed(&mut frames, at, now);
        self.process(true, now);
        self.rx = Some(frames);
    }

    /// Takes the fragments that follow a datagram's first one out of the chunk, or the ring.
    fn receive_train(&mut self, from: usize, mut chunk: impl Iterator<Item = Parcel<I::Buf>>, follow: u8) {
        for _ in 0..follow {
            let Some(Parcel { buf, .. }) = chunk.next().or_else(|| self.parcels.receive(from)) else { return };
            if let Some(packet) = self.parcels.description(from) {
                self.train.push(Piece { buf, packet });
            }
        }
    }

    /// Takes frames through all stages that came in by `port` of another worker; none is left.
    fn take_handed(&mut self, frames: &mut Box<Burst<I::Buf>>, port: PortIdx, now: Nanos) {
        if frames.is_empty() {
            return;
        }
        self.process(true, now); // what came before goes first
        self.handed = true;
        self.take_frames(frames, port, now);
        self.handed = false;
    }
}
