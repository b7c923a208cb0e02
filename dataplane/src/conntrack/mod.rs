//! Connection tracking: which class a packet has, and the table of one worker's connections.
//!
//! [`Conntrack::track`] classifies; [`Conntrack::confirm`] puts a connection into the table once the policy accepted
//! its first packet; [`Conntrack::tick`] ends those that expired.
//!
//! *Threads*: one worker; nothing is shared. *Limits*: `max` connections of both IP versions together; per tick a
//! bounded number of expiries. *Sources*: `linux/net/netfilter/nf_conntrack_core.c` (`nf_conntrack_in`,
//! `resolve_normal_ct`, `__nf_conntrack_confirm`).

pub mod conn;
pub mod expect;
pub mod fast;
pub mod gre;
pub mod index;
pub mod l4;
pub mod limit;
pub mod sctp;
pub mod signpost;
pub mod table;
pub mod tcp;
pub mod timeouts;
pub mod timer;
pub mod tuple;
pub mod udp;

use self::conn::{Conn, Flags, Unconfirmed};
use self::l4::{Context, L4Body, L4State, Step};
use self::table::{InsertError, Table};
use self::timer::{Link, Timers, Wheel};
use self::tuple::{Direction, Key, Key4, Key6, Tuple};
use crate::api::policy::ConntrackSpec;
use crate::drop::DropReason;
use crate::packet::{L4, Packet};
use crate::time::Nanos;

/// Entries that the search for a victim looks at.
pub const VICTIM_LOOKS: usize = 64;
/// Entries behind an answered connection that are looked at for one that was not, before that one goes: few, so that a flood
/// whose target answers does not have the search go round the table in no time, and find whoever waits for an answer.
const PREFERENCE: usize = 8;

/// Connections looked at besides those that packets belong to: what bounds the work of a packet and of a turn is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// Entries, in search of one that makes room: at most [`VICTIM_LOOKS`] for a connection that finds none.
    pub victims: u64,
    /// Connections that may have expired: at most what [`Conntrack::tick`] is given.
    pub timers: u64,
}

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
        /// The protocol's state changed.
        changed: bool,
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
pub struct Tables {
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

impl Tables {
    fn prefetch_buckets(&self, id: ConnId) {
        if id.is_v6() { self.v6.prefetch_buckets_of(id.slot()) } else { self.v4.prefetch_buckets_of(id.slot()) }
    }

    fn prefetch_entry(&self, id: ConnId) {
        if id.is_v6() { self.v6.prefetch_slot(id.slot()) } else { self.v4.prefetch_slot(id.slot()) }
    }

    fn both_mut(&mut self, id: ConnId) -> (&mut Conn, &mut L4Body) {
        if id.is_v6() { self.v6.both_mut(id.slot()) } else { self.v4.both_mut(id.slot()) }
    }
}

impl Timers for Tables {
    fn link(&mut self, id: ConnId) -> &mut Link {
        &mut self.conn_mut(id).link
    }

    fn deadline(&self, id: ConnId) -> Nanos {
        self.conn(id).deadline()
    }
}

/// Connection tracking of one worker.
#[derive(Debug)]
pub struct Conntrack {
    tables: Tables,
    wheel: Wheel,
    count: usize,
    max: usize,
    /// Where the search for a victim goes on.
    hand: u64,
    looks: Looks,
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
            hand: 0,
            looks: Looks::default(),
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

    /// Second pass over a burst: the likely entry on the way to the cache. Where there is none, `t` starts a connection: then
    /// the bucket of its answers is.
    #[inline]
    pub fn prefetch_entry(&self, t: &Tuple, hash: u64) {
        let likely = match t.is_ipv4() {
            true => self.tables.v4.prefetch_entry(hash),
            false => self.tables.v6.prefetch_entry(hash),
        };
        if !likely {
            self.prefetch_bucket(&t.inverse());
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
        self.find(t, self.hash(t)).filter(|&(id, _)| self.tables.conn(id).deadline() > now)
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
        if !l4::plausible(p) {
            return Tracked::Invalid(DropReason::InvalidFlags);
        }
        match hit {
            Some((id, direction)) => self.follow(p, id, direction, spec, now),
            None => match l4::begin(p, spec, &spec.timeouts, now) {
                Ok((l4, timeout)) => Tracked::New(Unconfirmed {
                    original: p.tuple,
                    reply: p.tuple.inverse(),
                    l4,
                    timeout,
                    timeout_policy: 0,
                    mark: 0,
                    expected: false,
                    helper: None,
                    in_port: p.in_port,
                    leased: false,
                    bound: Flags::default(),
                    free: [Some(p.hash), None],
                    borrows: None,
                }),
                Err(reason) => Tracked::Invalid(reason),
            },
        }
    }

    /// A packet of a known connection.
    fn follow(&mut self, p: &Packet, id: ConnId, direction: Direction, spec: &ConntrackSpec, now: Nanos) -> Tracked {
        let (conn, body) = self.tables.both_mut(id);
        let context = Context {
            spec,
            timeouts: spec.timeouts_of(conn.timeout_policy),
            direction,
            replied: conn.flags.has(Flags::REPLIED),
            assured: conn.flags.has(Flags::ASSURED),
            remaining: conn.deadline().since(now),
            now,
        };
        let mut l4 = L4State::join(conn.l4, body);
        let step = l4.step(p, &context);
        (conn.l4, *body) = l4.split();
        let (timeout, assured, end, changed) = match step {
            Step::Pass { timeout, assured, end, changed } => (timeout, assured, end, changed),
            Step::Invalid(reason) => return Tracked::Invalid(reason),
            Step::InvalidShortens { reason, timeout } => {
                self.prolong(id, now + timeout);
                return Tracked::Invalid(reason);
            }
            Step::Reopen => return Tracked::Reopen { old: id },
        };
        if timeout.is_some() {
            conn.account(direction, p.ip_len);
        }
        let first_reply = direction == Direction::Reply && conn.flags.set(Flags::REPLIED);
        let became_assured = assured && conn.flags.set(Flags::ASSURED);
        if timeout.is_some_and(|t| conn.set_deadline(now + t)) {
            self.wheel.file(id, &mut self.tables);
        }
        Tracked::Conn { id, direction, first_reply, became_assured, changed, end }
    }

    /// Most connections.
    pub fn max(&self) -> usize {
        self.max
    }

    /// What was looked at so far.
    pub const fn looks(&self) -> Looks {
        self.looks
    }

    /// A connection that makes room for another, among the next [`VICTIM_LOOKS`] entries: one that is over or without a reply,
    /// or the first that is not assured, where none is among the [`PREFERENCE`] behind it; never one that `spared` names and that is not over. `nf_conntrack_core.c`, `early_drop`,
    /// looks at as few.
    pub fn victim(&mut self, now: Nanos, spared: impl Fn(&Conn) -> bool) -> Option<ConnId> {
        let mut second = None;
        let mut left = VICTIM_LOOKS;
        while left > 0 {
            left -= 1;
            self.looks.victims += 1;
            let id = match self.scan(self.hand) {
                Scan::End => {
                    self.hand = 0;
                    continue;
                }
                Scan::Empty => None,
                Scan::Conn(id) => Some(id),
            };
            self.hand += 1;
            let Some(id) = id else { continue };
            let conn = self.conn(id);
            if conn.is_over(now) {
                return Some(id); // the wheel has not come by yet
            }
            if conn.flags.has(Flags::ASSURED) || spared(conn) {
                continue;
            }
            if !conn.flags.has(Flags::REPLIED) {
                return Some(id);
            }
            if second.is_none() {
                second = Some((id, self.hand));
                left = left.min(PREFERENCE);
            }
        }
        let (id, behind) = second?;
        self.hand = behind;
        Some(id)
    }

    /// Puts a connection into the table, its first packet of `bytes` bytes counted where there was one.
    ///
    /// # Errors
    /// Why it cannot be: the table is full, or a tuple is taken.
    pub fn confirm(&mut self, u: &Unconfirmed, bytes: Option<u32>, now: Nanos) -> Result<ConnId, InsertError> {
        if self.count >= self.max {
            return Err(InsertError::Full);
        }
        let (head, body) = u.l4.split();
        let mut conn = Conn::new(head, u.timeout, u.in_port, now);
        conn.mark = u.mark;
        conn.timeout_policy = u.timeout_policy;
        if let Some(bytes) = bytes {
            conn.account(Direction::Original, bytes);
        }
        conn.flags.set(u.bound);
        if u.leased {
            conn.flags.set(Flags::LEASED);
        }
        if u.is_translated() {
            conn.flags.set(Flags::TRANSLATED);
        }
        if u.expected {
            conn.flags.set(Flags::EXPECTED);
        }
        let id = if u.original.is_ipv4() {
            ConnId(self.tables.v4.insert([Key4::pack(&u.original), Key4::pack(&u.reply)], u.free, conn, body)?)
        } else {
            let keys = [Key6::pack(&u.original), Key6::pack(&u.reply)];
            ConnId(self.tables.v6.insert(keys, u.free, conn, body)? | ConnId::V6)
        };
        self.count += 1;
        self.wheel.file(id, &mut self.tables);
        Ok(id)
    }

    /// Gives a connection another reply tuple.
    ///
    /// # Errors
    /// As for [`Conntrack::confirm`], and nothing changed.
    pub fn replace_reply(&mut self, id: ConnId, u: &Unconfirmed) -> Result<(), InsertError> {
        self.replace_port(id, &u.reply)?;
        let flags = &mut self.conn_mut(id).flags;
        for (flag, wanted) in [(Flags::LEASED, u.leased), (Flags::TRANSLATED, u.is_translated())] {
            flags.clear(flag);
            if wanted {
                flags.set(flag);
            }
        }
        flags.clear(Flags::BOUND_TO_ADDRESSES);
        flags.clear(Flags::ENDS_ON_RELOAD);
        flags.set(u.bound);
        Ok(())
    }

    /// Gives a connection another reply tuple that differs in the port alone.
    ///
    /// # Errors
    /// As for [`Conntrack::confirm`], and nothing changed.
    pub fn replace_port(&mut self, id: ConnId, reply: &Tuple) -> Result<(), InsertError> {
        if id.is_v6() {
            self.tables.v6.replace_reply(id.slot(), Key6::pack(reply))
        } else {
            self.tables.v4.replace_reply(id.slot(), Key4::pack(reply))
        }
    }

    /// Takes a connection out of the table.
    pub fn remove(&mut self, id: ConnId) {
        self.unlink(id);
        self.release(id);
    }

    /// Makes a connection unfindable and keeps its entry until `deadline`, when [`Conntrack::tick`] reports it again.
    pub fn defer(&mut self, id: ConnId, deadline: Nanos) {
        let conn = self.tables.conn_mut(id);
        conn.set_deadline(deadline);
        if conn.flags.set(Flags::DYING) {
            self.unlink(id);
        }
        self.wheel.unfile(id, &mut self.tables);
        self.wheel.file(id, &mut self.tables);
    }

    /// The connection expires at `deadline` if nothing comes.
    pub fn prolong(&mut self, id: ConnId, deadline: Nanos) {
        if self.tables.conn_mut(id).set_deadline(deadline) {
            self.wheel.file(id, &mut self.tables);
        }
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
        let before = *budget;
        let expired = self.wheel.expired(now, budget, &mut self.tables);
        self.looks.timers += u64::from(before - *budget);
        let id = expired?;
        // While the caller ends this one, what the next ones will need is on its way: the buckets of the next, whose entry
        // the wheel has just written, and the entry of the one behind.
        if let Some(next) = self.wheel.next() {
            self.tables.prefetch_buckets(next);
            if let Some(after) = self.tables.link(next).follower() {
                self.tables.prefetch_entry(after);
            }
        }
        Some(id)
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
        let hidden = |f: Flags| f.has(Flags::DYING) || f.has(Flags::PENDING);
        if live && !hidden(self.conn(id).flags) { Scan::Conn(id) } else { Scan::Empty }
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
