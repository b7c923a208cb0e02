//! Fragments wait here until their datagram is whole, because tracking sees whole datagrams or nothing.
//!
//! The fragments themselves are kept, in the order of their offsets: a whole datagram is a *train* of frames that is
//! judged once and then leaves as the fragments that came. So what came in fragments leaves in fragments, none larger
//! than the largest that came, and no byte is copied.
//!
//! A fragment that lies wholly within what is there is passed over; any other overlap loses the datagram (`shape`).
//! Lengths that contradict each other lose an IPv4 datagram, and of an IPv6 one that fragment. The fragment that makes
//! a datagram whole needs no room: nothing is given up for it.
//!
//! In *virtual* mode fragments wait only for the first, whose verdict and translation all get; the others then pass as they
//! come. What came is written down all the same, so overlaps are refused and the end of a datagram is known. TCP and
//! SCTP are put together in either mode: tracking needs their length, and SCTP's checksum cannot be mended without.
//!
//! *Life-cycle*: with the worker. *Threads*: one. *Limits*: [`Setup::memory`], shared out as `table` says; [`TRAIN`]
//! fragments per datagram; `frag_v4` (30 s) or `frag_v6` (60 s) after its first fragment a datagram is given up.
//! *Sources*: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722, RFC 6946; `linux/net/ipv4/ip_fragment.c`
//! (`ip_frag_queue`), `linux/net/ipv6/netfilter/nf_conntrack_reasm.c` (`nf_ct_frag6_queue`).

mod list;
mod shape;
mod table;

use std::net::IpAddr;

use arrayvec::ArrayVec;

use self::shape::{Extent, Fit, Shape};
pub use self::table::SHARE;
use self::table::{First, Key, Table};
use crate::conntrack::timeouts::Timeouts;
use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::packet::Packet;
use crate::parse::{Fragment, icmp, ipv6, l4, tcp};
use crate::time::Nanos;

/// Fragments of one datagram: 65,535 bytes in fragments for a link of 1,280 bytes' MTU, and some.
pub const TRAIN: usize = 64;
/// Default of [`Setup::memory`]: the high mark of Linux' `net.ipv4.ipfrag_high_thresh`.
pub const MEMORY: usize = 4 << 20;
/// Bytes that a waiting frame takes unless links want larger ones: 2,048 for the frame, 128 before it, and 256 of
/// what DPDK knows of it.
pub const FRAME: usize = 2048 + 128 + 256;
/// Largest datagram, RFC 791; largest payload of an IPv6 packet, RFC 8200.
const LARGEST: u32 = 65_535;

/// What is there of a datagram of which nothing has come.
static NOTHING: Shape = Shape::EMPTY;

/// Whether fragments wait for all the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// For all: tracking sees the datagram whole.
    #[default]
    Reassemble,
    /// For the first, whose verdict and translation the others get.
    Virtual,
}

/// How much may wait, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Bytes per worker, at least 1 MiB.
    pub memory: usize,
    /// Bytes that a waiting frame takes.
    pub frame: usize,
    /// Whether fragments wait for all the others.
    pub mode: Mode,
}

impl Setup {
    /// Frames that may wait, at most.
    pub const fn frames(&self) -> usize {
        self.memory / self.frame
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self { memory: MEMORY, frame: FRAME, mode: Mode::Reassemble }
    }
}

/// A frame with what is known of it.
#[derive(Debug)]
pub struct Piece<B> {
    /// The frame.
    pub buf: B,
    /// Its headers.
    pub packet: Packet,
}

/// The fragments of one datagram, in the order of their offsets; where they are lost, with the one that lost them.
pub type Train<B> = ArrayVec<Piece<B>, { TRAIN + 1 }>;

/// Names an incomplete datagram until the next fragment comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueId(u32);

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It waits for the others.
    Waits,
    /// The datagram is whole: it is in the train.
    Whole,
    /// The fragments in the train are to be dropped, for this reason. The one that came waits, where it is not among them.
    Lost(DropReason),
    /// Virtual mode: a fragment, in the train, of a datagram whose first was this when it was judged.
    Later(Packet),
    /// The last in the train is the fragment: it cannot be part of anything, and is INVALID by itself. Those before it are
    /// lost with it.
    Invalid,
}

/// What its lengths make of a fragment.
enum Length {
    Right,
    /// It is dropped, but what it says of its datagram's length is believed.
    Empty,
    /// It is dropped; whether its datagram with it.
    Wrong {
        ends: bool,
    },
    /// It is INVALID; whether its datagram is dropped.
    Invalid {
        ends: bool,
    },
}

/// The incomplete datagrams of one worker.
#[derive(Debug)]
pub struct Defrag<B> {
    table: Table<B>,
    /// The datagram of which the first fragment has just come, in virtual mode.
    begun: Option<QueueId>,
}

impl<B> Defrag<B> {
    /// None yet.
    pub fn new(setup: &Setup, seed: ahash::RandomState) -> Self {
        Self { table: Table::new(setup, seed), begun: None }
    }

    /// Bytes that they occupy: whole buffers, however short the frames in them.
    pub fn memory(&self) -> usize {
        self.table.used()
    }

    /// Incomplete datagrams.
    pub fn queues(&self) -> usize {
        self.table.live()
    }

    /// Takes a fragment. `train` must be empty; the answer says what is in it now.
    pub fn insert(&mut self, piece: Piece<B>, now: Nanos, train: &mut Train<B>) -> Arrived {
        let packet = &piece.packet;
        let Some(f) = packet.fragment else { return lost(piece, train, DropReason::FragmentInvalid) };
        let (e, tuple) = (extent(packet, &f), &packet.tuple);
        let proto = if tuple.is_ipv4() { tuple.proto } else { 0 };
        let key = Key { src: tuple.src, dst: tuple.dst, id: f.id, proto, ct_zone: tuple.ct_zone, port: port(packet) };
        let q = self.table.find(&key);
        let shape = q.and_then(|q| self.table.queue(q)).map_or(&NOTHING, |q| &q.shape);
        match length(packet, e, shape) {
            Length::Right => {}
            Length::Empty => {
                // An IPv6 one is dropped, but believed: `nf_ct_frag6_queue` looks at its length last.
                self.note(q, e);
                return lost(piece, train, DropReason::FragmentInvalid);
            }
            Length::Wrong { ends } => {
                self.spoil(q.filter(|_| ends), train);
                return lost(piece, train, DropReason::FragmentInvalid);
            }
            Length::Invalid { ends } => {
                self.spoil(q.filter(|_| ends), train);
                train.push(piece);
                return Arrived::Invalid;
            }
        }
        let (at, whole) = match shape.fit(e) {
            Fit::New(at) => (at, shape.is_whole_with(e)),
            Fit::Duplicate => {
                // What it says of the length counts all the same, as with Linux.
                self.note(q, e);
                return lost(piece, train, DropReason::FragmentDuplicate);
            }
            Fit::Overlap => {
                self.spoil(q, train);
                return lost(piece, train, DropReason::FragmentOverlap);
            }
            Fit::TooMany => {
                self.spoil(q, train);
                return lost(piece, train, DropReason::FragmentCount);
            }
        };
        if let Some(q) = q {
            self.table.protect(q);
            match self.table.first(q).map(|f| *f) {
                None | Some(First::Unknown) => {}
                Some(first) => return self.follow(q, (at, e, whole), first, piece, train),
            }
        }
        if whole {
            return self.complete(q, at, piece, train);
        }
        let given_up = match self.table.make_room(key.src, q, train) {
            Ok(given_up) => given_up,
            Err(reason) => return lost(piece, train, reason),
        };
        let Some(q) = q.or_else(|| self.table.open(key, now)) else {
            return lost(piece, train, DropReason::FragmentLimit);
        };
        if e.start == 0 && self.table.first(q).is_some() && passes_virtually(&piece.packet) {
            self.begun = Some(QueueId(q));
        }
        self.table.place(q, at, e, Some(piece));
        given_up.map_or(Arrived::Waits, Arrived::Lost)
    }

    /// Virtual mode, to be asked after each fragment: the datagram of which the first has just come. It is first in the
    /// train, which must be empty, and those behind it have waited for it. What becomes of it is to be said with
    /// [`Defrag::judged`] or [`Defrag::refused`].
    pub fn begun(&mut self, train: &mut Train<B>) -> Option<QueueId> {
        let q = self.begun.take()?;
        self.table.flush(q.0, train);
        Some(q)
    }

    /// A fragment of a datagram whose first is known: it does not wait.
    fn follow(
        &mut self,
        q: u32,
        (at, e, whole): (usize, Extent, bool),
        first: First,
        piece: Piece<B>,
        train: &mut Train<B>,
    ) -> Arrived {
        let judged = if let First::Judged(packet) = first { Some(packet) } else { None };
        if whole && judged.is_some() {
            self.table.close(q, train);
        } else {
            self.table.place(q, at, e, None);
        }
        train.push(piece);
        judged.map_or(Arrived::Lost(DropReason::FragmentFirst), Arrived::Later)
    }

    /// Believes what a fragment that is dropped says of its datagram's length. Not in virtual mode: what it says does not reach
    /// the receiver, to whom nothing is whole without it.
    fn note(&mut self, q: Option<u32>, e: Extent) {
        if let Some(q) = q.filter(|&q| self.table.first(q).is_none())
            && let Some(queue) = self.table.queue_mut(q)
        {
            queue.shape.note(e);
        }
    }

    /// Ends a datagram that cannot be right. Where its first fragment has gone on, the rest must not (RFC 5722 section 4): it is
    /// remembered until its time is over.
    fn spoil(&mut self, q: Option<u32>, train: &mut Train<B>) {
        let Some(q) = q else { return };
        match self.table.first(q) {
            Some(first @ (First::Judged(_) | First::Refused)) => *first = First::Refused,
            _ => self.table.close(q, train),
        }
    }

    /// Virtual mode: the first fragment of this datagram was judged, as `packet`; those to come are alike.
    pub fn judged(&mut self, q: QueueId, packet: &Packet) {
        if let Some(first) = self.table.first(q.0) {
            *first = First::Judged(*packet);
        }
    }

    /// Virtual mode: the first fragment of this datagram was refused, and so are those to come.
    pub fn refused(&mut self, q: QueueId) {
        if let Some(first) = self.table.first(q.0) {
            *first = First::Refused;
        }
    }

    /// The last that was missing: it does not wait.
    fn complete(&mut self, q: Option<u32>, at: usize, piece: Piece<B>, train: &mut Train<B>) -> Arrived {
        self.end(q, train);
        let in_port = piece.packet.in_port;
        // Invariant: there are fewer than TRAIN others, and `at` of them lie before it.
        train.insert(at.min(train.len()), piece);
        let length: u32 = train.iter().map(|p| payload(&p.packet)).sum();
        let Some(first) = train.first_mut() else { return Arrived::Waits };
        first.packet.in_port = in_port; // fragments of two interfaces count as the last one's
        if header(&first.packet) + length > LARGEST {
            return Arrived::Lost(DropReason::FragmentInvalid);
        }
        Arrived::Whole
    }

    fn end(&mut self, q: Option<u32>, train: &mut Train<B>) {
        if let Some(q) = q {
            self.table.close(q, train);
        }
    }

    /// Gives up one datagram whose time is over; its fragments are in `train` then.
    pub fn expire(&mut self, t: &Timeouts, now: Nanos, train: &mut Train<B>) -> bool {
        for (is_v4, timeout) in [(true, t.frag_v4), (false, t.frag_v6)] {
            if let Some((q, born)) = self.table.oldest(is_v4)
                && born + timeout <= now
            {
                self.table.close(q, train);
                return true;
            }
        }
        false
    }
}

/// Where the datagram's payload begins in a fragment. Behind an IPv6 fragment header there may be more extension headers:
/// they belong to the payload.
fn data(p: &Packet, f: &Fragment) -> usize {
    if p.tuple.is_ipv4() { usize::from(p.l4) } else { usize::from(p.l3) + f.header + ipv6::Link::FRAGMENT }
}

/// The port that a datagram's fragments must all come by, where that matters: what the kernel sends is no wire's, and
/// link-local and multicast addresses mean something on one link alone. One more than its number, else 0.
fn port(p: &Packet) -> u16 {
    let on_link = match p.tuple.dst {
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_multicast(),
        IpAddr::V4(_) => false,
    };
    if p.in_port.is_twin() || on_link { p.in_port.0 + 1 } else { 0 }
}

fn extent(p: &Packet, f: &Fragment) -> Extent {
    let length = u32::try_from(usize::from(p.end).saturating_sub(data(p, f))).unwrap_or(0);
    Extent { start: f.offset, end: f.offset + length, more: f.more }
}

/// Bytes of the datagram's payload in a fragment.
fn payload(p: &Packet) -> u32 {
    p.fragment.map_or(0, |f| extent(p, &f).end - f.offset)
}

/// What counts towards the largest length beside the payload: IPv4's header, or IPv6's extension headers before the
/// fragment header.
fn header(p: &Packet) -> u32 {
    let before = match p.fragment {
        Some(f) if !p.tuple.is_ipv4() => f.header.saturating_sub(ipv6::HEADER),
        _ => usize::from(p.l4 - p.l3),
    };
    u32::try_from(before).unwrap_or(0)
}

/// Whether a fragment's length is one that it can have, and goes with what is known of its datagram's.
///
/// RFC 791 and RFC 8200 have all but the last fragment be multiples of 8 bytes; Linux cuts IPv4's to one, we drop them.
fn length(p: &Packet, e: Extent, shape: &Shape) -> Length {
    let odd = e.more && !(e.end - e.start).is_multiple_of(8);
    let empty = e.start == e.end;
    if p.tuple.is_ipv4() {
        return match (odd, empty || e.end > LARGEST || !shape.agrees(e)) {
            (true, _) => Length::Wrong { ends: false },
            (false, true) => Length::Wrong { ends: true },
            (false, false) => Length::Right,
        };
    }
    if e.end > LARGEST {
        Length::Wrong { ends: false }
    } else if e.start == 0 && cuts_header(p) {
        Length::Invalid { ends: false }
    } else if odd {
        Length::Invalid { ends: true }
    } else if !shape.agrees(e) {
        Length::Wrong { ends: false }
    } else if empty {
        Length::Empty
    } else {
        Length::Right
    }
}

/// Whether a datagram with this first fragment may pass before it is whole.
const fn passes_virtually(first: &Packet) -> bool {
    !matches!(first.tuple.proto, proto::TCP | proto::SCTP)
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

fn lost<B>(piece: Piece<B>, train: &mut Train<B>, reason: DropReason) -> Arrived {
    train.push(piece);
    Arrived::Lost(reason)
}

#[cfg(test)]
mod tests;
