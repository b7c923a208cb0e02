//! A usual packet of a connection that is under way: all that [`Conntrack::track`] would do to it, where that is little.
//!
//! Nothing is written before everything is known to be usual: what is not goes the long way from the start, as if this had
//! never looked. *Threads*: the worker's. *Limits*: one connection, two cache lines of it and a third for TCP.

use super::conn::{Cached, Coarse, Conn, Flags};
use super::l4::{Context, L4Body, L4Head, Step};
use super::table::Table;
use super::tcp::{TcpState, TcpTrack};
use super::timeouts::Timeouts;
use super::tuple::{Direction, Key, Key4, Key6};
use super::udp::UdpTrack;
use super::{Conntrack, Tables};
use crate::api::policy::ConntrackSpec;
use crate::io::PortIdx;
use crate::packet::{CtState, TcpSegment};
use crate::parse::fast::{NO_HINT, Sight};
use crate::time::Nanos;

/// A kind of key that has a table.
pub trait Tabled: Key {
    /// Its table.
    #[doc(hidden)]
    fn table(tables: &Tables) -> &Table<Self>;
    /// The same, to write.
    #[doc(hidden)]
    fn table_mut(tables: &mut Tables) -> &mut Table<Self>;
}

impl Tabled for Key4 {
    #[inline(always)]
    fn table(tables: &Tables) -> &Table<Self> {
        &tables.v4
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut Table<Self> {
        &mut tables.v4
    }
}

impl Tabled for Key6 {
    #[inline(always)]
    fn table(tables: &Tables) -> &Table<Self> {
        &tables.v6
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut Table<Self> {
        &mut tables.v6
    }
}

/// Under which circumstances packets come.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The port that they came in by.
    pub port: PortIdx,
    /// What was cached in another epoch holds no longer.
    pub epoch: u32,
    /// Settings of tracking.
    pub spec: &'a ConntrackSpec,
    /// Now, and what follows from it.
    pub clock: Clock,
}

/// A point in time, and the deadlines that most packets which come then set: found out once for a burst.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The point.
    pub now: Nanos,
    udp: Coarse,
    udp_stream: Coarse,
}

impl Clock {
    /// With these timeouts, `now`.
    pub fn new(now: Nanos, general: &Timeouts) -> Self {
        Self { now, udp: Coarse::at(now + general.udp), udp_stream: Coarse::at(now + general.udp_stream) }
    }
}

/// What becomes of a usual packet of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Passed<K> {
    /// Its class: ESTABLISHED, or as before a reply.
    pub state: CtState,
    /// Its direction.
    pub direction: Direction,
    /// What was found out for it.
    pub cached: Cached,
    /// The tuple of what would answer it once translated; `None` where nothing is.
    pub answered_by: Option<K>,
}

/// Flags that tell whether a connection is one like most.
const TELLING: Flags = Flags::LIVE.with(Flags::DYING).with(Flags::PENDING).with(Flags::HELPED).with(Flags::ADJUSTED);

impl Conntrack {
    /// First pass over a burst: the hash of a usual packet's tuple, its bucket on the way to the cache.
    #[inline(always)]
    pub fn approach<K: Tabled>(&self, seen: Sight<K>) -> Sight<K> {
        let table = K::table(&self.tables);
        let hash = table.hash(&seen.key);
        table.prefetch_bucket(hash);
        Sight { hash, ..seen }
    }

    /// Second pass: the likely connection, on the way to the cache.
    #[inline(always)]
    pub fn aim<K: Tabled>(&self, seen: &mut Sight<K>) {
        seen.hint = K::table(&self.tables).prefetch_candidate(seen.hash, seen.tcp).unwrap_or(NO_HINT);
    }

    /// Whether any connection has a usual packet's tuple.
    #[inline]
    pub fn is_known<K: Tabled>(&self, seen: &Sight<K>) -> bool {
        K::table(&self.tables).find(seen.hash, &seen.key).is_some()
    }

    /// Last pass: moves the connection on, where the packet belongs to one whose cached verdict accepts it and for which
    /// it changes nothing but counters, windows and the deadline. `ready` says from the cached verdict whether the packet
    /// can leave. `None`, and nothing has changed, where any of this is otherwise.
    #[inline(always)]
    pub fn advance<K: Tabled, T>(
        &mut self,
        seen: &Sight<K>,
        segment: impl FnOnce() -> Option<TcpSegment>,
        at: &Circumstances<'_>,
        ready: impl FnOnce(&Cached) -> Option<T>,
    ) -> Option<(Passed<K>, T)> {
        let table = K::table_mut(&mut self.tables);
        let (direction, entry, body) = table.find_at(seen.hint, seen.hash, &seen.key)?;
        let conn = &mut entry.conn;
        let replied = conn.flags.has(Flags::REPLIED);
        if conn.flags.only(TELLING) != Flags::LIVE || !replied && direction == Direction::Reply {
            return None;
        }
        let state = conn.class(direction);
        let cached = conn.cache[direction.index()];
        let usable = (cached.epoch == at.epoch) & (cached.in_port == at.port) & cached.accepts_class(state);
        if !usable || conn.is_over(at.clock.now) {
            return None;
        }
        let ready = ready(&cached)?;
        if let L4Head::Udp = conn.l4 {
            let assured = conn.flags.has(Flags::ASSURED);
            // What is assured was a stream once, and is one ever since.
            if replied && !assured && UdpTrack::of_body(body).is_stream(at.clock.now) {
                return None;
            }
            let mut deadline = if assured { at.clock.udp_stream } else { at.clock.udp };
            if conn.timeout_policy != 0 {
                let own = at.spec.timeouts_of(conn.timeout_policy);
                deadline = Coarse::at(at.clock.now + if assured { own.udp_stream } else { own.udp });
            }
            if !conn.extend(deadline) {
                return None; // the timer must be moved
            }
        } else if !replied || !segment().is_some_and(|s| advance_tcp(conn, body, &s, direction, at)) {
            return None;
        }
        conn.account(direction, u32::from(seen.len));
        let translated = conn.flags.has(Flags::TRANSLATED);
        let answered_by = translated.then(|| entry.keys[direction.opposite().index()]);
        Some((Passed { state, direction, cached, answered_by }, ready))
    }
}

/// Moves a TCP connection on, where a segment is of those of which an open one has many; `false`, and nothing has changed,
/// where it is not.
fn advance_tcp(
    conn: &mut Conn,
    body: &mut L4Body,
    segment: &TcpSegment,
    direction: Direction,
    at: &Circumstances<'_>,
) -> bool {
    let L4Head::Tcp(head) = conn.l4 else { return false };
    if head.state() != TcpState::Established || !conn.flags.has(Flags::ASSURED) {
        return false;
    }
    let now = at.clock.now;
    let timeouts = at.spec.timeouts_of(conn.timeout_policy);
    let remaining = conn.deadline().since(now);
    let context = Context { spec: at.spec, timeouts, direction, replied: true, assured: true, remaining, now };
    let mut track = TcpTrack::join(head, body);
    match track.step(segment, &context) {
        Step::Pass { timeout: Some(timeout), end: false, changed: false, .. }
            if conn.extend(Coarse::at(now + timeout)) =>
        {
            let (head, numbers) = track.split();
            (conn.l4, *body) = (L4Head::Tcp(head), numbers);
            true
        }
        _ => false,
    }
}
