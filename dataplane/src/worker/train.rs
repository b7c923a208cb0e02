//! Datagrams that came in fragments: put together, judged once, sent on as the fragments that came.
//!
//! A whole datagram lies in the worker's `train`. *Limits*: those of [`crate::defrag`]; one datagram at a time.

use arrayvec::ArrayVec;

use super::Worker;
use crate::api::stats::{FragmentResult, HandoverCause};
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tuple::proto;
use crate::defrag::{Arrived, Piece, TRAIN, Train};
use crate::drop::DropReason;
use crate::forward::icmp_error::IcmpError;
use crate::io::{Buf, Io};
use crate::packet::{L4, Packet};
use crate::parse::{icmp, l4, sctp, tcp};
use crate::path::{Outcome, Refusal};
use crate::steer::Parcel;
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
        }
    }

    /// Tracking sees an unfit IPv6 fragment by itself. Where what it has of its datagram does not make it INVALID, as with a
    /// protocol that nobody looks into, it goes on.
    fn alone(&self, bytes: &[u8], packet: &mut Packet) {
        let payload = bytes.get(usize::from(packet.l4)..usize::from(packet.end)).unwrap_or_default();
        let verify = self.path.policy.spec().conntrack.checksum;
        let (kind, sport, dport) = parse_l4(packet, payload, &[], verify);
        let first = packet.fragment.is_some_and(|f| f.offset == 0);
        if !first || matches!(kind, L4::Invalid(_)) {
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
            let (kind, ..) = parse_l4(packet, payload, &[], false); // about an error there is none
            self.answer(buf.bytes(), &Packet { kind, ..*packet }, IcmpError::ReassemblyTime, now);
        }
        self.train = train;
    }

    /// The datagram in the train is whole: to its home with it, or judge it here.
    fn whole(&mut self, now: Nanos) {
        let verify = self.path.policy.spec().conntrack.checksum;
        let packet = match whole_packet(&self.train, verify) {
            Ok(packet) => packet,
            Err(reason) => return self.lose_train(reason),
        };
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
            Outcome::Forward(plan) => {
                if plan.helped
                    && let Err(reason) = self.help_train(&packet, now)
                {
                    return self.lose_train(reason);
                }
                self.train.reverse(); // so that the first comes off first
                if let Some(first) = self.train.pop() {
                    let head = Packet { end: first.packet.end, ..packet };
                    self.forward(first.buf, &head, &plan, now);
                }
                while let Some(piece) = self.train.pop() {
                    let l3 = usize::from(piece.packet.l3);
                    self.forward_later(piece.buf, l3, &packet.tuple, &plan, now);
                }
            }
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
        }
    }

    /// Hands all fragments of the train over, or none.
    fn hand_over_train(&mut self, packet: Packet, to: WorkerId, cause: HandoverCause) {
        let count = self.train.len();
        // Invariant: a train has at most TRAIN + 1 pieces.
        let follow = u8::try_from(count.saturating_sub(1)).unwrap_or(0);
        let parcels = self.train.drain(..).enumerate().map(|(n, piece)| Parcel {
            buf: piece.buf,
            packet: if n == 0 { packet } else { piece.packet },
            follow: if n == 0 { follow } else { 0 },
        });
        if self.parcels.send_all(to, parcels) {
            for _ in 0..count {
                self.path.stats.handover(cause);
            }
        } else {
            for _ in 0..count {
                self.path.stats.drop_packet(DropReason::HandoverFull);
            }
        }
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

/// What the fragments of a whole datagram are together.
fn whole_packet<B: Buf>(train: &Train<B>, verify: bool) -> Result<Packet, DropReason> {
    let payload = |p: &Piece<B>| usize::from(p.packet.l4)..usize::from(p.packet.end);
    let (first, later) = train.split_first().ok_or(DropReason::FragmentInvalid)?;
    let head = &first.buf.bytes()[payload(first)];
    let rest: ArrayVec<&[u8], { TRAIN + 1 }> = later.iter().map(|p| &p.buf.bytes()[payload(p)]).collect();
    let total = head.len() + rest.iter().map(|part| part.len()).sum::<usize>();
    let wire_len = train.iter().map(|p| p.packet.ip_len).max().unwrap_or(0);
    let tuple = first.packet.tuple;
    let (kind, sport, dport) = parse_l4(&first.packet, head, &rest, verify);
    if kind == L4::Invalid(DropReason::InvalidLength) && cuts_header(tuple.proto, head) {
        return Err(DropReason::FragmentInvalid);
    }
    let mut packet = first.packet;
    packet.kind = kind;
    (packet.tuple.sport, packet.tuple.dport) = (sport, dport);
    packet.fragment = None;
    // Invariant: `Defrag` refuses payloads beyond 65,535 bytes.
    packet.l4_len = u16::try_from(total).unwrap_or(u16::MAX);
    packet.ip_len = u32::from(packet.l4 - packet.l3) + u32::try_from(total).unwrap_or(0);
    if !tuple.is_ipv4() {
        packet.ip_len -= 8; // the datagram has no fragment header
    }
    packet.wire_len = wire_len;
    Ok(packet)
}

/// Parses what a packet's fragments carry: `head`, and `rest` behind it.
fn parse_l4(packet: &Packet, head: &[u8], rest: &[&[u8]], verify: bool) -> (L4, u16, u16) {
    let total = head.len() + rest.iter().map(|part| part.len()).sum::<usize>();
    let verify = verify && !packet.in_port.is_twin();
    let (tuple, ttl) = (&packet.tuple, packet.ttl);
    let (src, dst, proto) = (tuple.src, tuple.dst, tuple.proto);
    l4::parse(&l4::Payload { head, rest, total, src, dst, proto, ttl, verify })
}

/// Whether the transport header does not end within the first fragment, whose payload is `b`.
fn cuts_header(protocol: u8, b: &[u8]) -> bool {
    let header = match protocol {
        proto::TCP => b.get(12).map_or(tcp::TCP_HEADER, |o| usize::from(o >> 4) * 4),
        proto::UDP | proto::UDPLITE => l4::UDP_HEADER,
        proto::SCTP => sctp::HEADER,
        proto::ICMP | proto::ICMPV6 => icmp::HEADER,
        _ => 0,
    };
    b.len() < header
}
