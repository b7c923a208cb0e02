//! A usual packet of a connection that is under way: all that [`Conntrack::track`](super::Conntrack::track) would do to it,
//! where that is little.
//!
//! Nothing is written before everything is known to be usual: what is not goes the long way from the start, as if this had
//! never looked. *Threads*: the worker's. *Limits*: one connection, two cache lines of it and a third for TCP.

use super::Conntrack;
use super::conn::{Cached, Coarse, Conn, Flags};
use super::l4::{Context, L4Body, L4Head, Step};
use super::table::{Aim, Lane};
use super::tcp::{TcpState, TcpTrack};
use super::timeouts::Timeouts;
use super::timer::Wheel;
use super::tuple::{Direction, Key, Key4, Key6};
use super::udp::UdpTrack;
use crate::api::policy::ConntrackSpec;
use crate::packet::{CtState, TcpSegment};
use crate::parse::fast::Sight;
use crate::time::Nanos;

/// When packets come, under which settings, and the deadlines that most of them set: found out once for a burst.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Settings of tracking.
    pub spec: &'a ConntrackSpec,
    /// Now.
    pub now: Nanos,
    udp: Coarse,
    udp_stream: Coarse,
}

impl<'a> Clock<'a> {
    /// Under these settings, `now`.
    pub fn new(now: Nanos, spec: &'a ConntrackSpec) -> Self {
        let Timeouts { udp, udp_stream, .. } = spec.timeouts;
        Self { spec, now, udp: Coarse::at(now + udp), udp_stream: Coarse::at(now + udp_stream) }
    }
}

/// What becomes of a usual packet of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Passed<K> {
    /// Its direction.
    pub direction: Direction,
    /// The tuple of what would answer it once translated; `None` where nothing is.
    pub answered_by: Option<K>,
}

/// Flags that tell whether a connection is one like most.
const TELLING: Flags = Flags::LIVE.with(Flags::DYING).with(Flags::PENDING).with(Flags::HELPED).with(Flags::ADJUSTED);

impl Conntrack {
    /// What the first passes over a burst need: of IPv4, of IPv6.
    #[inline]
    pub fn aims(&self) -> (Aim<'_, Key4>, Aim<'_, Key6>) {
        (self.tables.v4.aim(), self.tables.v6.aim())
    }

    /// What the last one changes, likewise, and the timers.
    #[inline]
    pub fn lanes(&mut self) -> (Lane<'_, Key4>, Lane<'_, Key6>, &Wheel) {
        (self.tables.v4.lane(), self.tables.v6.lane(), &self.wheel)
    }
}

impl<K: Key> Lane<'_, K> {
    /// Moves a connection on, where the packet belongs to one whose cached verdict accepts it and for which it changes nothing
    /// but counters, windows and the deadline. `ready` says from the cached verdict and the packet's class whether it
    /// can leave. `None`, and nothing has changed, where any of this is otherwise.
    #[inline(always)]
    pub fn advance(
        &mut self,
        seen: &Sight<K>,
        segment: impl FnOnce() -> Option<TcpSegment>,
        clock: &Clock<'_>,
        wheel: &Wheel,
        ready: impl FnOnce(&Cached, CtState) -> bool,
    ) -> Option<Passed<K>> {
        let mut found = self.find(seen.hint, seen.hash, &seen.key)?;
        let direction = found.direction;
        let conn = &mut found.entry.conn;
        let flags = conn.flags;
        let replied = flags.has(Flags::REPLIED);
        if flags.only(TELLING) != Flags::LIVE || !replied && direction == Direction::Reply {
            return None;
        }
        if conn.is_over(clock.now) || !ready(&conn.cache[direction.index()], conn.class(direction)) {
            return None;
        }
        if let L4Head::Udp(stream) = conn.l4 {
            let own = conn.timeout_policy;
            if replied && !stream && UdpTrack::join(false, found.body()?).is_stream(clock.now) {
                return None; // it becomes one
            }
            let mut deadline = if stream { clock.udp_stream } else { clock.udp };
            if own != 0 {
                let own = clock.spec.timeouts_of(own);
                deadline = Coarse::at(clock.now + if stream { own.udp_stream } else { own.udp });
            }
            if !found.entry.conn.extend(deadline) {
                return None; // the timer must be moved
            }
        } else {
            let (conn, body) = found.both()?;
            if !replied || !advance_tcp(conn, body, &segment()?, direction, clock, wheel) {
                return None;
            }
        }
        found.entry.conn.account(direction, u32::from(seen.len));
        let answered_by = flags.has(Flags::TRANSLATED).then(|| found.entry.keys[direction.opposite().index()]);
        Some(Passed { direction, answered_by })
    }
}

/// Moves a TCP connection on, where a segment is of those of which an open one has many; `false`, and nothing has changed,
/// where it is not.
fn advance_tcp(
    conn: &mut Conn,
    body: &mut L4Body,
    segment: &TcpSegment,
    direction: Direction,
    clock: &Clock<'_>,
    wheel: &Wheel,
) -> bool {
    let L4Head::Tcp(head) = conn.l4 else { return false };
    if head.state() != TcpState::Established || !conn.flags.has(Flags::ASSURED) {
        return false;
    }
    let Clock { spec, now, .. } = *clock;
    let timeouts = spec.timeouts_of(conn.timeout_policy);
    let remaining = conn.deadline().since(now);
    let context = Context { spec, timeouts, direction, replied: true, assured: true, remaining, now };
    let mut track = TcpTrack::join(head, body);
    match track.step(segment, &context) {
        // Data that is not acknowledged yet leaves minutes instead of days: mostly the wheel looks sooner than that anyway.
        Step::Pass { timeout: Some(timeout), end: false, changed: false, .. }
            if conn.extend(Coarse::at(now + timeout)) || wheel.looks_by(&conn.link, now + timeout) =>
        {
            conn.set_deadline(now + timeout);
            let (head, numbers) = track.split();
            (conn.l4, *body) = (L4Head::Tcp(head), numbers);
            true
        }
        _ => false,
    }
}
