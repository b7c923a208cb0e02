//! The incomplete datagrams of one worker: found by key, bounded in memory, given up in a fair order.
//!
//! Every datagram is in three lists by age: of its IP version (for its timeout), of its class, of its source and class.
//!
//! *Memory* is what is really occupied: a waiting frame counts the whole buffer that it keeps from others, however few
//! bytes are in it, a datagram what is written down of it. So giving one up always frees what the next fragment needs.
//!
//! *Fairness*, as in a segmented least-recently-used cache: a datagram of which one fragment has come is *on probation*,
//! one that made progress is *protected*. At the mark the oldest on probation goes first, and a protected one only where
//! there is none, or where they hold more than their part ([`PROTECTED`]). A flood of first fragments turns probation
//! over and costs no datagram in progress. A source at its share ([`SHARE`]) loses its own in the same order.
//!
//! *Life-cycle*: allocated at start. *Threads*: one worker. *Limits*: [`super::Setup::memory`]. Work per fragment is
//! constant: nothing here walks a list. *Sources*: segmented LRU: Karedla, Love and Wherry (1994).

use std::net::IpAddr;

use super::list::{Link, List, NONE};
use super::shape::{Extent, Shape};
use super::{Mode, Piece, Setup, TRAIN, Train};
use crate::conntrack::index::Index;
use crate::drop::DropReason;
use crate::packet::Packet;
use crate::time::Nanos;

/// A source may occupy one part in so many of the memory, but always one datagram of [`TRAIN`] fragments.
pub const SHARE: usize = 8;
/// Most parts of four that protected datagrams may hold while there are others.
const PROTECTED: usize = 3;
/// Places in which sources are counted; those that meet in one share it.
const SOURCES: usize = 1024;

/// The lists that a datagram is in.
const FAMILY: usize = 0;
const CLASS: usize = 1;
const SOURCE: usize = 2;

/// Which datagram a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) id: u32,
    /// 0 for IPv6, whose fragments may name different ones (RFC 8200: only the first one's counts).
    pub(super) proto: u8,
    pub(super) ct_zone: u16,
    /// By which port they must come; 0 where that does not matter.
    pub(super) port: u16,
}

/// How far a datagram has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Probation = 0,
    Protected = 1,
}

/// What is known of the first fragment of a datagram whose fragments do not wait for all the others.
#[derive(Clone, Copy, Debug)]
pub(super) enum First {
    /// It has not come.
    Unknown,
    /// What it was, as it was judged.
    Judged(Packet),
    /// It was refused.
    Refused,
}

#[derive(Debug)]
pub(super) struct Queue {
    key: Key,
    hash: u64,
    pub(super) shape: Shape,
    born: Nanos,
    /// Frames that wait.
    frames: usize,
    source: usize,
    class: Class,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    /// By class.
    lists: [List; 2],
    used: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table<B> {
    index: Index,
    seed: ahash::RandomState,
    queues: Vec<Option<Queue>>,
    links: Vec<[Link; 3]>,
    free_queues: Vec<u32>,
    /// By queue, in virtual mode; else none.
    firsts: Vec<First>,
    frames: Vec<Option<Piece<B>>>,
    free_frames: Vec<u32>,
    /// IPv4, IPv6.
    families: [List; 2],
    classes: [List; 2],
    sources: Vec<Source>,
    live: usize,
    used: usize,
    /// Of that, by protected datagrams.
    protected: usize,
    limit: usize,
    share: usize,
    frame_cost: usize,
    queue_cost: usize,
}

impl<B> Table<B> {
    /// An empty table.
    pub(super) fn new(setup: &Setup, seed: ahash::RandomState) -> Self {
        let frame_cost = setup.frame + size_of::<Option<Piece<B>>>();
        let virtually = setup.mode == Mode::Virtual;
        let first_cost = if virtually { size_of::<First>() } else { 0 };
        let queue_cost = size_of::<Option<Queue>>() + size_of::<[Link; 3]>() + first_cost;
        let frames = setup.memory / frame_cost;
        // Where frames go on at once, a datagram may be there without one.
        let queues = setup.memory / if virtually { queue_cost } else { queue_cost + frame_cost };
        let numbers = |n: usize| (0..u32::try_from(n).unwrap_or(NONE)).rev().collect();
        Self {
            index: Index::new(queues * 2),
            seed,
            queues: (0..queues).map(|_| None).collect(),
            links: vec![[Link::FREE; 3]; queues],
            free_queues: numbers(queues),
            firsts: if virtually { vec![First::Unknown; queues] } else { Vec::new() },
            frames: (0..frames).map(|_| None).collect(),
            free_frames: numbers(frames),
            families: [List::EMPTY; 2],
            classes: [List::EMPTY; 2],
            sources: vec![Source { lists: [List::EMPTY; 2], used: 0 }; SOURCES],
            live: 0,
            used: 0,
            protected: 0,
            limit: setup.memory,
            share: (setup.memory / SHARE).max(TRAIN * frame_cost + queue_cost),
            frame_cost,
            queue_cost,
        }
    }

    /// Bytes that are occupied.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Incomplete datagrams.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// The datagram with this key.
    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.index.find(self.seed.hash_one(key), |q| self.queue(q).is_some_and(|q| q.key == *key))
    }

    pub(super) fn queue(&self, q: u32) -> Option<&Queue> {
        self.queues.get(q as usize)?.as_ref()
    }

    pub(super) fn queue_mut(&mut self, q: u32) -> Option<&mut Queue> {
        self.queues.get_mut(q as usize)?.as_mut()
    }

    /// What is known of its first fragment, in virtual mode.
    pub(super) fn first(&mut self, q: u32) -> Option<&mut First> {
        self.firsts.get_mut(q as usize)
    }

    /// Begins a datagram; there is memory for it. `None` where the index has no room.
    pub(super) fn open(&mut self, key: Key, now: Nanos) -> Option<u32> {
        let hash = self.seed.hash_one(key);
        let source = self.source_of(key.src);
        let q = self.free_queues.pop()?;
        if self.index.insert(hash, q).is_err() {
            self.free_queues.push(q);
            return None;
        }
        let queue = Queue { key, hash, shape: Shape::EMPTY, born: now, frames: 0, source, class: Class::Probation };
        if let Some(place) = self.queues.get_mut(q as usize) {
            *place = Some(queue);
        }
        if let Some(first) = self.first(q) {
            *first = First::Unknown;
        }
        self.families[family(&key)].append(&mut self.links, FAMILY, q);
        self.classes[Class::Probation as usize].append(&mut self.links, CLASS, q);
        if let Some(source) = self.sources.get_mut(source) {
            source.lists[Class::Probation as usize].append(&mut self.links, SOURCE, q);
        }
        self.live += 1;
        self.charge(source, Class::Probation, self.queue_cost);
        Some(q)
    }

    /// Ends a datagram: the frames that wait come into `train`, in the order of their offsets.
    pub(super) fn close(&mut self, q: u32, train: &mut Train<B>) {
        let Some(mut queue) = self.queues.get_mut(q as usize).and_then(Option::take) else { return };
        let cost = self.queue_cost + queue.frames * self.frame_cost;
        self.take_frames(&mut queue.shape, train);
        self.index.remove(queue.hash, q);
        self.families[family(&queue.key)].remove(&mut self.links, FAMILY, q);
        self.classes[queue.class as usize].remove(&mut self.links, CLASS, q);
        if let Some(source) = self.sources.get_mut(queue.source) {
            source.lists[queue.class as usize].remove(&mut self.links, SOURCE, q);
        }
        self.live -= 1;
        self.release(queue.source, queue.class, cost);
        self.free_queues.push(q);
    }

    /// Takes the frames out that wait, in the order of their offsets; the datagram stays.
    pub(super) fn flush(&mut self, q: u32, train: &mut Train<B>) {
        let Some(mut queue) = self.queues.get_mut(q as usize).and_then(Option::take) else { return };
        self.take_frames(&mut queue.shape, train);
        self.release(queue.source, queue.class, queue.frames * self.frame_cost);
        queue.frames = 0;
        if let Some(place) = self.queues.get_mut(q as usize) {
            *place = Some(queue);
        }
    }

    fn take_frames(&mut self, shape: &mut Shape, train: &mut Train<B>) {
        for frame in shape.take_frames() {
            if let Some(piece) = self.frames.get_mut(frame as usize).and_then(Option::take) {
                self.free_frames.push(frame);
                train.push(piece); // a shape has TRAIN of them at most
            }
        }
    }

    /// Files a new fragment at its place. Its frame waits, where there is one; there is memory for it.
    pub(super) fn place(&mut self, q: u32, at: usize, e: Extent, piece: Option<Piece<B>>) {
        let Some(queue) = self.queues.get_mut(q as usize).and_then(Option::as_mut) else { return };
        let mut frame = NONE;
        if let Some(piece) = piece {
            let Some(free) = self.free_frames.pop() else {
                debug_assert!(false, "memory was made");
                return;
            };
            frame = free;
            if let Some(place) = self.frames.get_mut(frame as usize) {
                *place = Some(piece);
            }
            queue.frames += 1;
        }
        queue.shape.place(at, e, frame);
        let (source, class) = (queue.source, queue.class);
        if frame != NONE {
            self.charge(source, class, self.frame_cost);
        }
    }

    /// A datagram has made progress.
    pub(super) fn protect(&mut self, q: u32) {
        let Some(queue) = self.queues.get_mut(q as usize).and_then(Option::as_mut) else { return };
        if queue.class == Class::Protected {
            return;
        }
        queue.class = Class::Protected;
        self.protected += self.queue_cost + queue.frames * self.frame_cost;
        self.classes[Class::Probation as usize].remove(&mut self.links, CLASS, q);
        self.classes[Class::Protected as usize].append(&mut self.links, CLASS, q);
        if let Some(Source { lists: [probation, protected], .. }) = self.sources.get_mut(queue.source) {
            probation.remove(&mut self.links, SOURCE, q);
            protected.append(&mut self.links, SOURCE, q);
        }
    }

    /// Makes room for a frame from `src`, of datagram `own` or a new one. What has to go comes into `train`, with the reason.
    ///
    /// # Errors
    /// The reason why there is none: the datagram itself was the next to go.
    pub(super) fn make_room(
        &mut self,
        src: IpAddr,
        own: Option<u32>,
        train: &mut Train<B>,
    ) -> Result<Option<DropReason>, DropReason> {
        let needed = self.frame_cost + if own.is_none() { self.queue_cost } else { 0 };
        let source = self.source_of(src);
        let mut given_up = None;
        // Each turn frees a datagram, and one with a frame frees enough: a bounded number of turns.
        while let Some(s) = self.sources.get(source).filter(|s| s.used + needed > self.share) {
            let [probation, protected] = &s.lists;
            let oldest = probation.oldest().or_else(|| protected.oldest());
            let Some(oldest) = oldest else { return Err(DropReason::FragmentShare) };
            self.close(oldest, train);
            if own == Some(oldest) {
                return Err(DropReason::FragmentShare);
            }
            given_up = Some(DropReason::FragmentShare);
        }
        while self.used + needed > self.limit {
            let Some(next) = self.next_to_go() else { return Err(DropReason::FragmentLimit) };
            self.close(next, train);
            if own == Some(next) {
                return Err(DropReason::FragmentLimit);
            }
            given_up = Some(DropReason::FragmentLimit);
        }
        Ok(given_up)
    }

    /// The datagram that makes room for others.
    fn next_to_go(&self) -> Option<u32> {
        let [probation, protected] = &self.classes;
        if self.protected > self.limit / 4 * PROTECTED { protected.oldest() } else { probation.oldest() }
            .or_else(|| protected.oldest())
            .or_else(|| probation.oldest())
    }

    /// The oldest datagram of an IP version, and when its first fragment came.
    pub(super) fn oldest(&self, is_v4: bool) -> Option<(u32, Nanos)> {
        let q = self.families[usize::from(!is_v4)].oldest()?;
        Some((q, self.queue(q)?.born))
    }

    fn charge(&mut self, source: usize, class: Class, bytes: usize) {
        self.used += bytes;
        if let Some(source) = self.sources.get_mut(source) {
            source.used += bytes;
        }
        if class == Class::Protected {
            self.protected += bytes;
        }
    }

    fn release(&mut self, source: usize, class: Class, bytes: usize) {
        self.used -= bytes;
        if let Some(source) = self.sources.get_mut(source) {
            source.used -= bytes;
        }
        if class == Class::Protected {
            self.protected -= bytes;
        }
    }

    /// Where a source is counted: IPv4 by its address, IPv6 by its network of 64 bits, which is one host's to fill.
    fn source_of(&self, src: IpAddr) -> usize {
        let name = match src {
            IpAddr::V4(a) => u64::from(a.to_bits()),
            IpAddr::V6(a) => {
                let [a, b, c, d, e, f, g, h, ..] = a.octets();
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
        };
        // The remainder is below SOURCES.
        usize::try_from(self.seed.hash_one((src.is_ipv4(), name)) % SOURCES as u64).unwrap_or(0)
    }
}

fn family(key: &Key) -> usize {
    usize::from(key.src.is_ipv6())
}
