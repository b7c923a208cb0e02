//! Connection tracking: which class a packet has, and the table of one worker's connections.
//!
//! [`Conntrack::track`] classifies; [`Conntrack::confirm`] puts a connection into the table once the policy accepted
//! its first packet; [`Conntrack::tick`] ends those that expired.
//!
//! *Threads*: one worker; nothing is shared. *Limits*: `max` connections of both IP versions together; per tick a
//! bounded number of expiries. *Sources*: `linux/net/netfilter/nf_conntrack_core.c` (`nf_conntrack_in`,
//! `resolve_normal_ct`, `__nf_conntrack_confirm`).

pub mod conn;
pub mod index;
pub mod signpost;
pub mod table;
pub mod tcp;
pub mod timeouts;
pub mod timer;
pub mod tuple;

use self::conn::{Conn, Flags, Unconfirmed};
use self::table::{InsertError, Table};
use self::tcp::{Step, TcpState};
use self::timer::{Link, Timers, Wheel};
use self::tuple::{Direction, Key, Key4, Key6, Tuple};
use crate::api::policy::ConntrackSpec;
use crate::drop::DropReason;
use crate::packet::{L4, Packet};
use crate::parse::icmp;
use crate::time::Nanos;

/// A UDP connection with replies that lives longer than this is a stream.
/// `linux/net/netfilter/nf_conntrack_proto_udp.c`, `nf_conntrack_udp_packet`: two seconds.
const UDP_STREAM_AFTER: Nanos = Nanos::from_secs(2);

/// Names a confirmed connection of this worker: its slot, with the top bit set for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u32);

impl ConnId {
    const V6: u32 = 1 << 31;

    const fn is_v6(self) -> bool {
        self.0 & Self::V6 != 0
    }

    const fn slot(self) -> u32 {
        self.0 & !Self::V6
    }
}

/// What tracking says of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Tracked {
    /// It belongs to a connection.
    Conn {
        /// Which.
        id: ConnId,
        /// Its way within it.
        direction: Direction,
        /// The first reply.
        first_reply: bool,
        /// The connection became assured.
        became_assured: bool,
        /// The connection must be ended once this packet is on its way.
        end: bool,
    },
    /// It starts one.
    New(Unconfirmed),
    /// It replaces connection `old`, which is over: end that, then track again.
    Reopen {
        /// The connection to end.
        old: ConnId,
    },
    /// INVALID, for this reason.
    Invalid(DropReason),
}

/// The connections of both IP versions.
#[derive(Debug)]
struct Tables {
    v4: Table<Key4>,
    v6: Table<Key6>,
}

impl Tables {
    fn conn(&self, id: ConnId) -> &Conn {
        if id.is_v6() { &self.v6.entry(id.slot()).conn } else { &self.v4.entry(id.slot()).conn }
    }

    fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        if id.is_v6() { &mut self.v6.entry_mut(id.slot()).conn } else { &mut self.v4.entry_mut(id.slot()).conn }
    }
}

impl Timers for Tables {
    fn link(&mut self, id: ConnId) -> &mut Link {
        &mut self.conn_mut(id).link
    }

    fn deadline(&self, id: ConnId) -> Nanos {
        self.conn(id).deadline
    }
}

/// Connection tracking of one worker.
#[derive(Debug)]
pub struct Conntrack {
    tables: Tables,
    wheel: Wheel,
    count: usize,
    max: usize,
}

impl Conntrack {
    /// An empty table for `max` connections (at most 2^30) whose hash is keyed with `seed`.
    pub fn new(max: usize, seed: ahash::RandomState, now: Nanos) -> Self {
        let max = max.clamp(1, 1 << 30);
        Self {
            tables: Tables { v4: Table::new(max, seed.clone()), v6: Table::new(max, seed) },
            wheel: Wheel::new(now),
            count: 0,
            max,
        }
    }

    /// Connections in the table.
    pub fn count(&self) -> usize {
        self.count
    }

    /// First pass over a burst: the hash of `t`, its bucket on the way to the cache.
    #[inline]
    pub fn prefetch_bucket(&self, t: &Tuple) -> u64 {
        if t.is_ipv4() {
            let hash = self.tables.v4.hash(&Key4::pack(t));
            self.tables.v4.prefetch_bucket(hash);
            hash
        } else {
            let hash = self.tables.v6.hash(&Key6::pack(t));
            self.tables.v6.prefetch_bucket(hash);
            hash
        }
    }

    /// Second pass over a burst: the likely entry on the way to the cache.
    #[inline]
    pub fn prefetch_entry(&self, is_ipv4: bool, hash: u64) {
        if is_ipv4 {
            self.tables.v4.prefetch_entry(hash);
        } else {
            self.tables.v6.prefetch_entry(hash);
        }
    }

    /// The hash of `t` in this worker's tables.
    #[inline]
    pub fn hash(&self, t: &Tuple) -> u64 {
        if t.is_ipv4() { self.tables.v4.hash(&Key4::pack(t)) } else { self.tables.v6.hash(&Key6::pack(t)) }
    }

    /// The connection that `t` belongs to and `t`'s direction in it. Its deadline may have passed: the wheel comes by
    /// later.
    #[inline]
    pub fn find(&self, t: &Tuple, hash: u64) -> Option<(ConnId, Direction)> {
        if t.is_ipv4() {
            let (slot, d) = self.tables.v4.find(hash, &Key4::pack(t))?;
            Some((ConnId(slot), d))
        } else {
            let (slot, d) = self.tables.v6.find(hash, &Key6::pack(t))?;
            Some((ConnId(slot | ConnId::V6), d))
        }
    }

    /// The live connection that `t` belongs to, and `t`'s direction in it.
    pub fn lookup(&self, t: &Tuple, now: Nanos) -> Option<(ConnId, Direction)> {
        self.find(t, self.hash(t)).filter(|&(id, _)| self.tables.conn(id).deadline > now)
    }

    /// The connection.
    #[inline]
    pub fn conn(&self, id: ConnId) -> &Conn {
        self.tables.conn(id)
    }

    /// The connection, to write.
    #[inline]
    pub fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        self.tables.conn_mut(id)
    }

    /// A connection's tuple of one direction, as that direction's packets come on the wire.
    #[inline]
    pub fn tuple(&self, id: ConnId, direction: Direction) -> Tuple {
        let d = direction.index();
        if id.is_v6() {
            self.tables.v6.entry(id.slot()).keys[d].tuple()
        } else {
            self.tables.v4.entry(id.slot()).keys[d].tuple()
        }
    }

    /// Classifies a packet that is neither untracked nor an ICMP error, and moves its connection's state on. The caller
    /// has made sure that an expired connection of the same tuple is gone.
    pub fn track(&mut self, p: &Packet, hit: Option<(ConnId, Direction)>, spec: &ConntrackSpec, now: Nanos) -> Tracked {
        if let L4::Invalid(reason) = p.kind {
            return Tracked::Invalid(reason);
        }
        if let L4::Tcp(s) = p.kind
            && !tcp::valid_flags(s.flags)
        {
            return Tracked::Invalid(DropReason::InvalidFlags);
        }
        match hit {
            Some((id, direction)) => self.follow(p, id, direction, spec, now),
            None => Self::begin(p, spec),
        }
    }

    /// A packet of a known connection.
    fn follow(&mut self, p: &Packet, id: ConnId, direction: Direction, spec: &ConntrackSpec, now: Nanos) -> Tracked {
        let t = &spec.timeouts;
        let conn = self.tables.conn_mut(id);
        let replied = conn.flags.has(Flags::REPLIED) || direction == Direction::Reply;
        let (timeout, assured, mut end) = match p.kind {
            L4::Tcp(segment) => {
                let old = conn.tcp;
                let (state, end) = match tcp::step(old, direction, tcp::kind(segment.flags)) {
                    Step::To(s) => (s, false),
                    Step::End => (old, true),
                    Step::Ignore => {
                        conn.account(direction, p.ip_len);
                        let first_reply = direction == Direction::Reply && conn.flags.set(Flags::REPLIED);
                        return Tracked::Conn { id, direction, first_reply, became_assured: false, end: false };
                    }
                    Step::Invalid => return Tracked::Invalid(DropReason::InvalidTcpState),
                    Step::Reopen => return Tracked::Reopen { old: id },
                };
                conn.tcp = state;
                let timeout = match state {
                    // Picked up in mid-stream: not worth days before the other side was heard.
                    TcpState::Established if !replied => t.tcp_established.min(t.tcp_unacknowledged),
                    s => s.timeout(t),
                };
                let proper = matches!(old, TcpState::SynRecv | TcpState::Established) && state == TcpState::Established;
                (timeout, proper && replied, end)
            }
            L4::Udp if replied => {
                let stream = now.since(conn.start) > UDP_STREAM_AFTER;
                (if stream { t.udp_stream } else { t.udp }, stream, false)
            }
            L4::Udp => (t.udp, false, false),
            L4::IcmpQuery if p.tuple.is_ipv4() => (t.icmp, false, false),
            L4::IcmpQuery => (t.icmpv6, false, false),
            _ => (t.generic, false, false),
        };
        // A lone reset as the only reply: nobody is there (nf_conntrack_tcp_packet, "we can delete the conntrack").
        if direction == Direction::Reply && !conn.flags.has(Flags::REPLIED) && p.tcp_flags() & tcp::RST != 0 {
            end = true;
        }
        conn.account(direction, p.ip_len);
        let first_reply = direction == Direction::Reply && conn.flags.set(Flags::REPLIED);
        let became_assured = assured && conn.flags.set(Flags::ASSURED);
        let deadline = now + timeout;
        let closer = deadline < conn.deadline;
        conn.deadline = deadline;
        if closer {
            self.wheel.file(id, &mut self.tables);
        }
        Tracked::Conn { id, direction, first_reply, became_assured, end }
    }

    /// A packet of no known connection.
    fn begin(p: &Packet, spec: &ConntrackSpec) -> Tracked {
        let t = &spec.timeouts;
        let (tcp, timeout) = match p.kind {
            L4::Tcp(segment) => match tcp::step(TcpState::None, Direction::Original, tcp::kind(segment.flags)) {
                Step::To(TcpState::Established) if !spec.tcp_loose => {
                    return Tracked::Invalid(DropReason::InvalidTcpState);
                }
                Step::To(TcpState::Established) => (TcpState::Established, t.tcp_established.min(t.tcp_unacknowledged)),
                Step::To(s) => (s, s.timeout(t)),
                _ => return Tracked::Invalid(DropReason::InvalidTcpState),
            },
            L4::Udp => (TcpState::None, t.udp),
            L4::IcmpQuery => {
                let request = matches!(
                    (p.tuple.is_ipv4(), p.tuple.icmp_type()),
                    (true, icmp::v4::ECHO | 13 | 15 | 17) | (false, icmp::v6::ECHO | 139)
                );
                if !request {
                    return Tracked::Invalid(DropReason::InvalidNoRequest);
                }
                (TcpState::None, if p.tuple.is_ipv4() { t.icmp } else { t.icmpv6 })
            }
            L4::Invalid(reason) => return Tracked::Invalid(reason),
            _ => (TcpState::None, t.generic),
        };
        Tracked::New(Unconfirmed {
            original: p.tuple,
            reply: p.tuple.inverse(),
            tcp,
            timeout,
            in_port: p.in_port,
            leased: false,
        })
    }

    /// Puts a connection into the table, its first packet of `bytes` bytes counted.
    ///
    /// # Errors
    /// Why it cannot be: the table is full, or a tuple is taken.
    pub fn confirm(&mut self, u: &Unconfirmed, bytes: u32, now: Nanos) -> Result<ConnId, InsertError> {
        if self.count >= self.max {
            return Err(InsertError::Full);
        }
        let mut conn =
            Conn { deadline: now + u.timeout, start: now, in_port: u.in_port, tcp: u.tcp, ..Conn::default() };
        conn.account(Direction::Original, bytes);
        if u.leased {
            conn.flags.set(Flags::LEASED);
        }
        if u.is_translated() {
            conn.flags.set(Flags::TRANSLATED);
        }
        let id = if u.original.is_ipv4() {
            ConnId(self.tables.v4.insert([Key4::pack(&u.original), Key4::pack(&u.reply)], conn)?)
        } else {
            ConnId(self.tables.v6.insert([Key6::pack(&u.original), Key6::pack(&u.reply)], conn)? | ConnId::V6)
        };
        self.count += 1;
        self.wheel.file(id, &mut self.tables);
        Ok(id)
    }

    /// Takes a connection out of the table.
    pub fn remove(&mut self, id: ConnId) {
        self.unlink(id);
        self.release(id);
    }

    /// Makes a connection unfindable and keeps its entry until `deadline`, when [`Conntrack::tick`] reports it again.
    pub fn defer(&mut self, id: ConnId, deadline: Nanos) {
        let conn = self.tables.conn_mut(id);
        conn.deadline = deadline;
        if conn.flags.set(Flags::DYING) {
            self.unlink(id);
        }
        self.wheel.unfile(id, &mut self.tables);
        self.wheel.file(id, &mut self.tables);
    }

    fn unlink(&mut self, id: ConnId) {
        if id.is_v6() { self.tables.v6.unlink(id.slot()) } else { self.tables.v4.unlink(id.slot()) }
    }

    /// Gives the entry of an unlinked connection back.
    pub fn release(&mut self, id: ConnId) {
        self.wheel.unfile(id, &mut self.tables);
        if id.is_v6() {
            self.tables.v6.free(id.slot())
        } else {
            self.tables.v4.free(id.slot())
        }
        self.count -= 1;
    }

    /// The next connection that has expired; `budget` bounds the work of a tick and is counted down. The caller ends
    /// it before it asks again.
    pub fn tick(&mut self, now: Nanos, budget: &mut u32) -> Option<ConnId> {
        self.wheel.expired(now, budget, &mut self.tables)
    }

    /// Slots of both tables, for dumps: `cursor` counts through IPv4, then IPv6.
    pub fn scan(&self, cursor: u64) -> Scan {
        let v4 = u64::from(self.tables.v4.slots());
        let v6 = u64::from(self.tables.v6.slots());
        let (slot, is_v6) = if cursor < v4 { (cursor, false) } else { (cursor - v4, true) };
        if is_v6 && slot >= v6 {
            return Scan::End;
        }
        // Invariant: slot is below `slots()`, a u32.
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let live = if is_v6 { self.tables.v6.is_live(slot) } else { self.tables.v4.is_live(slot) };
        let id = ConnId(if is_v6 { slot | ConnId::V6 } else { slot });
        if live && !self.conn(id).flags.has(Flags::DYING) { Scan::Conn(id) } else { Scan::Empty }
    }
}

/// What a dump finds at a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A connection.
    Conn(ConnId),
    /// A free slot.
    Empty,
    /// No slot is left.
    End,
}
