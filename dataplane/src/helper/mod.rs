//! Helpers: what reads the connections that announce others (FTP's and PPTP's control connections, TFTP's requests).
//!
//! The protocols' text is read and written in [`ftp`], [`tftp`] and [`pptp`]; [`seqadj`] keeps sequence numbers right
//! where that changes lengths, and [`saved`] carries all that over a restart. [`Helpers`] holds what a helper knows of
//! each of its connections, beside the connection table: few connections have one. What they announce lies in
//! [`crate::conntrack::expect`], and `path::helper` brings all together.
//!
//! *Life-cycle*: a connection gets its helper by rule when it is confirmed, never by its port alone, and keeps it to its end.
//! *Threads*: one worker. *Limits*: [`HELPED`] connections with a helper per worker; a new one beyond is refused, with its
//! reason. *Sources*: `linux/net/netfilter/nf_conntrack_helper.c`; nftables' `ct helper` objects.

pub mod ftp;
pub mod pptp;
pub mod saved;
pub mod seqadj;
pub mod tftp;

use self::ftp::Parser;
use self::seqadj::Stream;
use crate::api::policy::HelperKind;
use crate::conntrack::ConnId;
use crate::conntrack::index::Index;
use crate::conntrack::tuple::{Direction, Tuple, proto};

/// Most connections with a helper on one worker.
pub const HELPED: usize = 16_384;

/// By how many tuples the packets of a call are known, and errors about them: see `path::pptp`.
pub const WAYS: usize = 4;

/// No slot.
const NONE: u32 = u32::MAX;

impl HelperKind {
    /// The protocol of the connections that it can watch; nftables refuses others, too.
    pub const fn proto(self) -> u8 {
        match self {
            Self::Ftp | Self::Pptp => proto::TCP,
            Self::Tftp => proto::UDP,
        }
    }

    /// Whether it can watch a connection with such a tuple; PPTP's ids go with IPv4 alone, as in Linux.
    pub fn watches(self, t: &Tuple) -> bool {
        self.proto() == t.proto && (self != Self::Pptp || t.is_ipv4())
    }
}

/// Bytes that a stream goes on from: where, and how its parser stood there.
#[derive(Clone, Debug)]
pub struct Hole {
    /// Sequence number of the first missing byte.
    pub seq: u32,
    /// The parser as it stood before it.
    pub parser: Parser,
}

/// One direction of an FTP control connection.
#[derive(Clone, Debug)]
pub struct FtpSide {
    /// Sequence number of its SYN, where that was seen.
    pub begin: Option<u32>,
    /// Sequence number that comes next; `None` before the first payload.
    pub next: Option<u32>,
    /// What was read up to there.
    pub parser: Parser,
    /// Where bytes are missing that may still come.
    pub hole: Option<Hole>,
    /// What is changed on the way.
    pub stream: Stream,
    /// The window that its last segment offered, as it stands in the header.
    pub window: Option<u16>,
}

impl FtpSide {
    fn new(replies: bool) -> Self {
        let stream = Stream::default();
        Self { begin: None, next: None, parser: Parser::new(replies), hole: None, stream, window: None }
    }

    /// Another connection has taken over the tuple, and this side begins at `seq`.
    fn restart(&mut self, seq: u32) {
        self.stream.restart(seq);
        self.begin = Some(seq);
        (self.next, self.hole, self.window) = (None, None, None);
        self.parser.lose();
    }
}

/// What a helper keeps of one connection.
#[derive(Clone, Debug)]
pub struct Helped {
    /// The connection.
    pub conn: ConnId,
    /// Which helper.
    pub kind: HelperKind,
    /// What it waits for: a place among the expectations.
    pub expectation: Option<u32>,
    /// FTP: by direction.
    pub ftp: [FtpSide; 2],
    /// PPTP: by direction.
    pub pptp: [pptp::Side; 2],
    /// PPTP: what was said.
    pub control: pptp::Control,
    /// PPTP: places among the expectations by which its call's packets are known.
    pub ways: [Option<u32>; WAYS],
    next_free: u32,
}

impl Helped {
    /// A handshake has begun, and maybe another connection has taken over: its SYN/ACK of this direction has `seq` and
    /// acknowledges the other side's first number. One that comes again changes nothing.
    pub fn restart(&mut self, direction: Direction, seq: u32, ack: u32) {
        let [original, reply] = &mut self.ftp;
        let (own, other) = match direction {
            Direction::Original => (original, reply),
            Direction::Reply => (reply, original),
        };
        let acked = other.stream.back(ack).wrapping_sub(1);
        if own.begin != Some(seq) || other.begin != Some(acked) {
            own.restart(seq);
            other.restart(acked);
        }
    }
}

/// The connections of one worker that a helper watches.
#[derive(Debug)]
pub struct Helpers {
    index: Index,
    slots: Vec<Helped>,
    free: u32,
    count: usize,
    seed: ahash::RandomState,
}

impl Helpers {
    /// Room for `capacity` connections, at most [`HELPED`].
    pub fn new(capacity: usize, seed: ahash::RandomState) -> Self {
        let capacity = capacity.clamp(1, HELPED);
        Self { index: Index::new(capacity), slots: Vec::with_capacity(capacity), free: NONE, count: 0, seed }
    }

    /// How many connections have a helper.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there is room for another.
    pub fn has_room(&self) -> bool {
        self.free != NONE || self.slots.len() < self.slots.capacity()
    }

    fn slot(&self, conn: ConnId) -> Option<usize> {
        let is = |slot: u32| self.slots.get(slot as usize).is_some_and(|h| h.conn == conn);
        Some(self.index.find(self.seed.hash_one(conn), is)? as usize)
    }

    /// What a connection's helper knows.
    pub fn find(&self, conn: ConnId) -> Option<&Helped> {
        self.slots.get(self.slot(conn)?)
    }

    /// The same, to write.
    pub fn find_mut(&mut self, conn: ConnId) -> Option<&mut Helped> {
        let slot = self.slot(conn)?;
        self.slots.get_mut(slot)
    }

    /// Gives a connection a helper; `false` where there is no room.
    #[must_use]
    pub fn add(&mut self, conn: ConnId, kind: HelperKind) -> bool {
        let slot = if self.free != NONE {
            self.free
        } else if self.slots.len() < self.slots.capacity() {
            u32::try_from(self.slots.len()).unwrap_or(NONE)
        } else {
            return false;
        };
        if self.index.insert(self.seed.hash_one(conn), slot).is_err() {
            return false;
        }
        let ftp = [FtpSide::new(false), FtpSide::new(true)];
        let pptp = Default::default();
        let control = pptp::Control::default();
        let helped = Helped { conn, kind, expectation: None, ftp, pptp, control, ways: [None; WAYS], next_free: NONE };
        match self.slots.get_mut(slot as usize) {
            Some(h) => {
                self.free = h.next_free;
                *h = helped;
            }
            None => self.slots.push(helped), // within the capacity taken at start
        }
        self.count += 1;
        true
    }

    /// The connection is over.
    pub fn remove(&mut self, conn: ConnId) {
        let Some(slot) = self.slot(conn) else { return };
        // Invariant: slots are below NONE.
        let value = u32::try_from(slot).unwrap_or(NONE);
        self.index.remove(self.seed.hash_one(conn), value);
        if let Some(h) = self.slots.get_mut(slot) {
            h.next_free = self.free;
            self.free = value;
            self.count -= 1;
        }
    }

    /// The streams of a connection that its helper may change: that of `direction` first, then the other.
    pub fn streams(&self, conn: ConnId, direction: Direction) -> Option<(&Stream, &Stream)> {
        let [original, reply] = &self.find(conn)?.ftp;
        Some(match direction {
            Direction::Original => (&original.stream, &reply.stream),
            Direction::Reply => (&reply.stream, &original.stream),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_refuses_and_a_freed_place_is_used_again() {
        let mut h = Helpers::new(2, ahash::RandomState::with_seeds(1, 2, 3, 4));
        assert!(h.add(ConnId(7), HelperKind::Ftp) && h.add(ConnId(1 << 31 | 7), HelperKind::Tftp));
        assert!(!h.has_room() && !h.add(ConnId(8), HelperKind::Ftp));
        assert_eq!(h.find(ConnId(7)).map(|h| h.kind), Some(HelperKind::Ftp));
        assert_eq!(h.find(ConnId(1 << 31 | 7)).map(|h| h.kind), Some(HelperKind::Tftp));
        h.remove(ConnId(7));
        h.remove(ConnId(7));
        assert!(h.find(ConnId(7)).is_none() && h.count() == 1);
        assert!(h.add(ConnId(8), HelperKind::Tftp) && h.count() == 2);
    }
}
