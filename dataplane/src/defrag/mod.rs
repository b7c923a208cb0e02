//! Fragments wait here until their datagram is whole, because tracking sees whole datagrams or nothing.
//!
//! The fragments themselves are kept, in the order of their offsets: a whole datagram is a *train* of frames that is
//! judged once and then leaves as the fragments that came. So what came in fragments leaves in fragments, none larger
//! than the largest that came, and no byte is copied.
//!
//! A fragment that lies wholly within what is there is passed over; a partial overlap loses an IPv4 datagram, any overlap
//! an IPv6 one.
//!
//! *Life-cycle*: with the worker. *Threads*: one. *Limits*: [`QUEUES`] datagrams, [`FRAGMENTS`] fragments and [`MEMORY`]
//! bytes of frames per worker, [`TRAIN`] fragments per datagram; at a limit the oldest datagram makes room. `frag_v4`
//! (30 s) or `frag_v6` (60 s) after its first fragment a datagram is given up.
//! *Sources*: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722, RFC 6946; `linux/net/ipv4/ip_fragment.c`,
//! `linux/net/ipv6/netfilter/nf_conntrack_reasm.c`, `linux/net/ipv4/inet_fragment.c` (`inet_frag_queue_insert`).

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::conntrack::index::Index;
use crate::conntrack::timeouts::Timeouts;
use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::packet::Packet;
use crate::parse::{icmp, l4, tcp};
use crate::time::Nanos;

/// Incomplete datagrams at once.
pub const QUEUES: usize = 256;
/// Waiting fragments, all together.
pub const FRAGMENTS: usize = 1024;
/// Bytes of waiting frames: the high mark of `net.ipv4.ipfrag_high_thresh`.
pub const MEMORY: usize = 4 << 20;
/// Fragments of one datagram: 65,535 bytes in fragments for a link of 1,280 bytes' MTU, and some.
pub const TRAIN: usize = 64;
/// Largest datagram.
const LARGEST: u32 = 65_535;
/// No fragment, no queue.
const NONE: u16 = u16::MAX;

/// A frame with what is known of it.
#[derive(Debug)]
pub struct Piece<B> {
    /// The frame.
    pub buf: B,
    /// Its headers.
    pub packet: Packet,
    /// Its size, bytes.
    pub size: usize,
}

/// The fragments of one datagram, in the order of their offsets; where they are lost, with the one that lost them.
pub type Train<B> = ArrayVec<Piece<B>, { TRAIN + 1 }>;

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It waits for the others.
    Waits,
    /// The datagram is whole: it is in the train.
    Whole,
    /// The fragments in the train are to be dropped, for this reason.
    Lost(DropReason),
    /// The fragment in the train cannot be part of anything: it is INVALID by itself.
    Invalid,
}

/// Which datagram a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    /// 0 for IPv6, whose fragments may name different ones (RFC 8200: only the first one's counts).
    proto: u8,
    ct_zone: u16,
}

#[derive(Debug)]
struct Slot<B> {
    piece: Piece<B>,
    /// First byte behind it in the datagram's payload.
    end: u32,
    next: u16,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    key: Key,
    /// Slot of the fragment with the lowest offset.
    head: u16,
    count: u16,
    /// Payload bytes there are, and in all, once the last fragment has come.
    bytes: u32,
    total: Option<u32>,
    deadline: Nanos,
    /// Counts queues, so that the oldest can be told.
    born: u64,
}

/// The incomplete datagrams of one worker.
#[derive(Debug)]
pub struct Defrag<B> {
    index: Index,
    queues: Vec<Option<Queue>>,
    slots: Vec<Option<Slot<B>>>,
    free: ArrayVec<u16, FRAGMENTS>,
    seed: ahash::RandomState,
    memory: usize,
    live: usize,
    births: u64,
    sweep: usize,
}

impl<B> Defrag<B> {
    /// None yet.
    pub fn new(seed: ahash::RandomState) -> Self {
        Self {
            index: Index::new(QUEUES * 2),
            queues: (0..QUEUES).map(|_| None).collect(),
            slots: (0..FRAGMENTS).map(|_| None).collect(),
            free: (0..FRAGMENTS).rev().filter_map(|i| u16::try_from(i).ok()).collect(),
            seed,
            memory: 0,
            live: 0,
            births: 0,
            sweep: 0,
        }
    }

    /// Bytes of frames that wait.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Incomplete datagrams.
    pub fn queues(&self) -> usize {
        self.live
    }

    /// Takes a fragment. `train` must be empty; the answer says what is in it now.
    pub fn insert(&mut self, piece: Piece<B>, t: &Timeouts, now: Nanos, train: &mut Train<B>) -> Arrived {
        let Some(f) = piece.packet.fragment else { return lost(piece, train, DropReason::FragmentInvalid) };
        let is_v4 = piece.packet.tuple.is_ipv4();
        // Behind an IPv6 fragment header there may be more extension headers: they belong to the datagram.
        let data = if is_v4 { usize::from(piece.packet.l4) } else { usize::from(piece.packet.l3) + f.header + 8 };
        let length = u32::try_from(usize::from(piece.packet.end).saturating_sub(data)).unwrap_or(0);
        let end = f.offset + length;
        let odd = length == 0 || end > LARGEST || f.more && length % 8 != 0;
        if odd || !is_v4 && f.offset == 0 && cuts_header(&piece.packet) {
            return unfit(piece, train);
        }
        let tuple = &piece.packet.tuple;
        let proto = if is_v4 { tuple.proto } else { 0 };
        let key = Key { src: tuple.src, dst: tuple.dst, id: f.id, proto, ct_zone: tuple.ct_zone };
        let q = match self.find(&key) {
            Some(q) => q,
            None => {
                let timeout = if is_v4 { t.frag_v4 } else { t.frag_v6 };
                if self.live == QUEUES {
                    self.evict(train);
                    match self.open(key, now + timeout) {
                        Some(q) if !self.free.is_empty() => self.place(q, piece, f.offset, end, f.more),
                        _ => train.push(piece),
                    }
                    return Arrived::Lost(DropReason::FragmentLimit);
                }
                match self.open(key, now + timeout) {
                    Some(q) => q,
                    None => return lost(piece, train, DropReason::FragmentLimit),
                }
            }
        };
        if self.free.is_empty() || self.memory + piece.size > MEMORY {
            // The oldest makes room for the next fragment; this one is lost, and its datagram with it.
            self.evict(train);
            train.push(piece);
            return Arrived::Lost(DropReason::FragmentLimit);
        }
        // One that contradicts the datagram's length: IPv4 loses the datagram, IPv6 that fragment (`ip_frag_queue` and
        // `nf_ct_frag6_queue` do so).
        if !self.agrees(q, end, f.more) {
            if is_v4 {
                self.close(q, train);
            }
            return lost(piece, train, DropReason::FragmentInvalid);
        }
        let refused = match self.overlap(q, f.offset, end) {
            Overlap::Within => return lost(piece, train, DropReason::FragmentDuplicate),
            Overlap::Partial => Some(DropReason::FragmentInvalid),
            Overlap::None if self.queues[q].is_some_and(|q| usize::from(q.count) >= TRAIN) => {
                Some(DropReason::FragmentLimit)
            }
            Overlap::None => None,
        };
        if let Some(reason) = refused {
            self.close(q, train);
            return lost(piece, train, reason);
        }
        let in_port = piece.packet.in_port;
        self.place(q, piece, f.offset, end, f.more);
        let queue = self.queues[q];
        if queue.is_some_and(|q| q.total == Some(q.bytes)) {
            self.close(q, train);
            if let Some(first) = train.first_mut() {
                first.packet.in_port = in_port; // fragments of two interfaces count as the last one's
            }
            return Arrived::Whole;
        }
        Arrived::Waits
    }

    /// Gives up one datagram whose time is over; its fragments are in `train` then. Looks at one queue per call.
    pub fn expire(&mut self, now: Nanos, train: &mut Train<B>) -> bool {
        if self.live == 0 {
            return false;
        }
        let q = self.sweep;
        self.sweep = (self.sweep + 1) % QUEUES;
        let over = self.queues[q].is_some_and(|q| q.deadline <= now);
        if over {
            self.close(q, train);
        }
        over
    }

    fn find(&self, key: &Key) -> Option<usize> {
        let hash = self.seed.hash_one(key);
        let q = self.index.find(hash, |q| self.queues[q as usize].is_some_and(|q| q.key == *key))?;
        Some(q as usize)
    }

    fn open(&mut self, key: Key, deadline: Nanos) -> Option<usize> {
        let q = self.queues.iter().position(Option::is_none)?;
        self.index.insert(self.seed.hash_one(key), u32::try_from(q).ok()?).ok()?;
        self.births += 1;
        let queue = Queue { key, head: NONE, count: 0, bytes: 0, total: None, deadline, born: self.births };
        self.queues[q] = Some(queue);
        self.live += 1;
        Some(q)
    }

    /// Takes a datagram's fragments out, into `train`.
    fn close(&mut self, q: usize, train: &mut Train<B>) {
        let Some(queue) = self.queues[q].take() else { return };
        self.index.remove(self.seed.hash_one(queue.key), u32::try_from(q).unwrap_or(u32::MAX));
        self.live -= 1;
        let mut at = queue.head;
        while at != NONE {
            let Some(slot) = self.slots[usize::from(at)].take() else { break };
            self.memory -= slot.piece.size;
            self.free.push(at);
            at = slot.next;
            train.push(slot.piece); // `place` allows TRAIN of them
        }
    }

    /// Takes the oldest datagram out.
    fn evict(&mut self, train: &mut Train<B>) {
        let born = |q: &usize| self.queues[*q].map_or(u64::MAX, |q| q.born);
        if let Some(oldest) = (0..QUEUES).min_by_key(born) {
            self.close(oldest, train);
        }
    }

    fn overlap(&self, q: usize, offset: u32, end: u32) -> Overlap {
        let mut at = self.queues[q].map_or(NONE, |q| q.head);
        let mut covered = offset;
        let mut touched = false;
        while at != NONE {
            let Some(slot) = &self.slots[usize::from(at)] else { break };
            let start = slot.piece.packet.fragment.map_or(0, |f| f.offset);
            if start < end && slot.end > offset {
                touched = true;
                if start <= covered {
                    covered = covered.max(slot.end);
                }
            }
            at = slot.next;
        }
        match (touched, covered >= end) {
            (false, _) => Overlap::None,
            (true, true) => Overlap::Within,
            (true, false) => Overlap::Partial,
        }
    }

    /// Whether a fragment that ends at `end` agrees with what is known of the datagram's length.
    fn agrees(&self, q: usize, end: u32, more: bool) -> bool {
        let Some(queue) = &self.queues[q] else { return false };
        let beyond = queue.total.is_some_and(|t| end > t || !more && end != t);
        let before_others = !more && self.last_end(queue) > end;
        !beyond && !before_others
    }

    /// First byte behind all that is there.
    fn last_end(&self, queue: &Queue) -> u32 {
        let (mut at, mut end) = (queue.head, 0);
        while at != NONE {
            let Some(slot) = &self.slots[usize::from(at)] else { break };
            (end, at) = (slot.end, slot.next);
        }
        end
    }

    /// Files a fragment that overlaps none and fits; a slot is free.
    fn place(&mut self, q: usize, piece: Piece<B>, offset: u32, end: u32, more: bool) {
        let (Some(queue), Some(slot)) = (&mut self.queues[q], self.free.pop()) else {
            debug_assert!(false, "the caller has a queue and a free slot");
            return;
        };
        if !more {
            queue.total = Some(end);
        }
        queue.count += 1;
        queue.bytes += end - offset;
        self.memory += piece.size;
        // Find the last fragment before this one.
        let (mut before, mut at) = (NONE, queue.head);
        while at != NONE {
            let Some(s) = &self.slots[usize::from(at)] else { break };
            if s.piece.packet.fragment.is_some_and(|f| f.offset > offset) {
                break;
            }
            (before, at) = (at, s.next);
        }
        self.slots[usize::from(slot)] = Some(Slot { piece, end, next: at });
        if before == NONE {
            queue.head = slot;
        } else if let Some(s) = &mut self.slots[usize::from(before)] {
            s.next = slot;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    None,
    Within,
    Partial,
}

/// Whether a first IPv6 fragment ends within its transport header: RFC 7112 section 5, as
/// `linux/net/ipv6/reassembly.c`, `ipv6frag_thdr_truncated`, has it.
fn cuts_header(p: &Packet) -> bool {
    let needed = match p.tuple.proto {
        proto::TCP => tcp::TCP_HEADER,
        proto::UDP => l4::UDP_HEADER,
        proto::ICMPV6 => icmp::HEADER,
        _ => 1,
    };
    usize::from(p.end.saturating_sub(p.l4)) < needed
}

/// A fragment that no datagram can have: IPv4 drops it, with what is in the train; in IPv6 it is an INVALID packet.
fn unfit<B>(piece: Piece<B>, train: &mut Train<B>) -> Arrived {
    if piece.packet.tuple.is_ipv4() {
        return lost(piece, train, DropReason::FragmentInvalid);
    }
    train.push(piece);
    Arrived::Invalid
}

fn lost<B>(piece: Piece<B>, train: &mut Train<B>, reason: DropReason) -> Arrived {
    train.push(piece);
    Arrived::Lost(reason)
}

#[cfg(test)]
mod tests;
