//! Reservations: a connection whose packets arrive at another worker is live once that worker has said that their tuple is
//! the connection's alone.
//!
//! A tuple belongs to one connection at most, on all workers together, and its home says whose: it has the connection
//! itself, or one signpost to the owner. Where the home is the owner, that is a look into its own table. Where it is
//! not, the owner asks, and until the answer comes the connection is *pending*: in the table, so that nobody else here takes
//! its tuples, but shown to nobody; its first packet waits, judged, counted and with its way known, and so does what
//! comes for the same tuples meanwhile.
//!
//! ```text
//!   owner                                   home of the reply
//!   confirm, pending   ── Place(T) ──────→  free: a signpost        taken: none      no room: none
//!   packet leaves      ←─ Placed(T) ──────  ────┘                     │                │
//!   that port          ←─ Lent(T') ───────  a signpost for another one of its own, where the owner has none left
//!   another port       ←─ Clash(T) ───────  ──────────────────────────┘                │
//!   packet is dropped  ←─ Full(T) ────────  ───────────────────────────────────────────┘
//!   packet is dropped  ── Remove(T) ─────→  after [`PATIENCE`] without an answer
//! ```
//! The other port is chosen as on a single worker whose table has the taken tuple: most are at home here and need no question.
//! A worker whose share of a rule's ports is used up asks another for one of that one's, each once: so none of them is lost.
//!
//! *Life-cycle*: opened by `confirm`; settled by the answer, by time, or with the connection's end; closed once the worker has
//! seen to the packets. *Threads*: the worker's. *Limits*: [`RESERVATIONS`] at a time, of which [`KEPT`] are for
//! the operator's connections; [`CHOICES`] clashes each. A note answers the question with its ticket and no other.
//! *Sources*: `linux/net/netfilter/nf_nat_core.c` (`nf_nat_alloc_null_binding`, `get_unique_tuple`).

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use super::hop::Hop;
use super::translate::{NewSource, is_taken};
use super::{Path, Plan, Rewrite};
use crate::api::command::{CREATE_PER_COMMAND, ConnEventKind};
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::{Flags, Unconfirmed};
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::table::InsertError;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::drop::DropReason;
use crate::filter::Destination;
use crate::nat::ports::Wish;
use crate::steer::{Note, Ticket};
use crate::time::Nanos;

/// Connections of a worker that may be pending at a time: as many as begin while a question and its answer are under
/// way, at a few bursts each.
pub const RESERVATIONS: usize = 512 + KEPT;

/// How many of them packets leave to the operator, who makes so many at a time.
const KEPT: usize = CREATE_PER_COMMAND;

/// How long a packet waits. An answer takes a turn of two workers, some tens of microseconds.
const PATIENCE: Nanos = Nanos::from_millis(100);

/// Tuples that a connection may find taken, before it is given up.
pub(super) const CHOICES: usize = 16;

/// What is asked about.
const ORIGINAL: u8 = 1;
const REPLY: u8 = 2;

/// No connection: a table has at most 2^30 of an IP version.
const NOBODY: ConnId = ConnId(u32::MAX);

/// Names a reservation.
pub type Slot = u16;

/// What a new connection's first packet was found to need: to send it, and to choose again.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    /// The connection before its source was chosen.
    pub(super) before: Unconfirmed,
    /// The rule that translates its destination.
    pub(super) destination: Option<Destination>,
    /// What its source becomes.
    pub(super) source: NewSource,
    /// Whether it follows its master's translation.
    pub(super) follows: bool,
    /// Where it goes.
    pub(super) hop: Hop,
    /// How it is sent.
    pub(super) plan: Plan,
}

/// What becomes of those who wait for a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The first packet is sent so; the others are judged.
    Sent(Plan),
    /// The connection that the operator made, the so-many-th of its command, is live. Packets are judged.
    Made(u16),
    /// The tuple could not be had: packets are dropped.
    Lost(DropReason),
    /// The same of a connection that the operator made.
    Refused(u16, DropReason),
}

#[derive(Debug)]
enum Phase {
    Free,
    Asked,
    Settled(Settled),
}

#[derive(Debug)]
struct Reservation {
    turn: u32,
    phase: Phase,
    id: ConnId,
    /// What is still asked: [`ORIGINAL`], [`REPLY`].
    asked: u8,
    until: Nanos,
    /// The policy epoch in which the connection was judged; it is marked as never judged meanwhile.
    judged: u32,
    /// Of which the home has said that they are taken.
    denied: ArrayVec<Tuple, CHOICES>,
    /// Of the operator's connections: which of its command's.
    nth: u16,
    /// Of a packet's.
    first: Option<First>,
}

/// The reservations of one worker.
#[derive(Debug)]
pub struct Reservations {
    all: Vec<Reservation>,
    /// By slot, the connection that asks; [`NOBODY`] where none does. What is looked through.
    asking: Vec<ConnId>,
    free: Vec<Slot>,
    /// In the order of their answers.
    settled: VecDeque<Slot>,
    asked: usize,
    /// No question is older.
    until: Nanos,
}

impl Reservations {
    /// Room for `capacity` of them, at most [`RESERVATIONS`].
    pub(super) fn new(capacity: usize) -> Self {
        let empty = || Reservation {
            turn: 0,
            phase: Phase::Free,
            id: ConnId(0),
            asked: 0,
            until: Nanos(0),
            judged: 0,
            denied: ArrayVec::new(),
            nth: 0,
            first: None,
        };
        let mut free: Vec<Slot> = (0..).take(capacity).collect();
        free.reverse();
        Self {
            all: (0..capacity).map(|_| empty()).collect(),
            asking: vec![NOBODY; capacity],
            free,
            settled: VecDeque::with_capacity(capacity),
            asked: 0,
            until: Nanos(0),
        }
    }

    /// How many wait for an answer.
    pub fn asked(&self) -> usize {
        self.asked
    }

    fn open(&mut self, id: ConnId, asked: u8, by_operator: bool, until: Nanos) -> Option<Ticket> {
        if !by_operator && self.free.len() <= KEPT {
            return None;
        }
        let slot = self.free.pop()?;
        let r = self.all.get_mut(usize::from(slot))?;
        r.turn = r.turn.wrapping_add(1);
        (r.phase, r.id, r.asked, r.until) = (Phase::Asked, id, asked, until);
        (r.judged, r.nth, r.first) = (0, 0, None);
        r.denied.clear();
        if let Some(asking) = self.asking.get_mut(usize::from(slot)) {
            *asking = id;
        }
        if self.asked == 0 {
            self.until = until;
        }
        self.asked += 1;
        Some(Ticket { slot, turn: r.turn })
    }

    /// The reservation whose question `ticket` names, while it is open.
    fn of(&mut self, ticket: Ticket) -> Option<&mut Reservation> {
        let r = self.all.get_mut(usize::from(ticket.slot))?;
        (r.turn == ticket.turn && matches!(r.phase, Phase::Asked)).then_some(r)
    }

    /// That of a pending connection.
    fn slot_of(&self, id: ConnId) -> Option<Slot> {
        self.asking.iter().position(|&asks| asks == id).and_then(|slot| Slot::try_from(slot).ok())
    }

    /// It asks no more.
    fn asked_for(&mut self, slot: Slot) {
        self.asked -= 1;
        if let Some(asking) = self.asking.get_mut(usize::from(slot)) {
            *asking = NOBODY;
        }
    }

    fn settle(&mut self, slot: Slot, settled: Settled) {
        if let Some(r) = self.all.get_mut(usize::from(slot)) {
            (r.phase, r.first) = (Phase::Settled(settled), None);
            self.asked_for(slot);
            self.settled.push_back(slot); // each is in it once at most, so there is room
        }
    }

    /// The next that is settled; it is free then.
    #[inline]
    fn take_settled(&mut self) -> Option<(Slot, Settled)> {
        let slot = self.settled.pop_front()?;
        let r = self.all.get_mut(usize::from(slot))?;
        let Phase::Settled(settled) = std::mem::replace(&mut r.phase, Phase::Free) else { return None };
        self.free.push(slot);
        Some((slot, settled))
    }

    fn close(&mut self, ticket: Ticket) {
        if let Some(r) = self.of(ticket) {
            r.phase = Phase::Free;
            self.asked_for(ticket.slot);
            self.free.push(ticket.slot);
        }
    }
}

impl Path {
    /// How many connections wait for another worker's answer.
    pub fn pending(&self) -> usize {
        self.reservations.asked()
    }

    /// The next reservation that is settled. Whoever waits for it must be seen to before anything else is judged.
    #[inline]
    pub fn next_settled(&mut self) -> Option<(Slot, Settled)> {
        self.reservations.take_settled()
    }

    /// Asks for the tuples of connection `id` that are at home elsewhere: `[original, reply]`. It is pending until then.
    ///
    /// # Errors
    /// It cannot be asked, and the connection is gone.
    pub(super) fn reserve(
        &mut self,
        id: ConnId,
        u: &Unconfirmed,
        [original, reply]: [bool; 2],
        by_operator: bool,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let asked = if original { ORIGINAL } else { 0 } | if reply { REPLY } else { 0 };
        let Some(ticket) = self.reservations.open(id, asked, by_operator, now + PATIENCE) else {
            self.conntrack.remove(id);
            return Err(DropReason::SignpostWait);
        };
        let tuples = [(original, u.original, Flags::SIGNPOSTED_ORIGINAL), (reply, u.reply, Flags::SIGNPOSTED)];
        for (_, t, flag) in tuples.into_iter().filter(|(asks, ..)| *asks) {
            let ports = u.borrows.filter(|_| flag == Flags::SIGNPOSTED);
            if !self.notes.tell(self.steer.home(&t), Note::Place(t, ticket, ports)) {
                self.mark_lost(id, ticket);
                self.reservations.close(ticket);
                self.take_out(id, now);
                return Err(DropReason::SignpostFull);
            }
            self.conntrack.conn_mut(id).flags.set(flag);
        }
        let conn = self.conntrack.conn_mut(id);
        conn.flags.set(Flags::PENDING);
        conn.judged = 0; // so that its packets are looked at twice: see `waits_for`
        Ok(())
    }

    /// The first packet of a connection has been confirmed and may leave by `first.plan`, unless its reply tuple is reserved
    /// still: then it waits for that.
    pub(super) fn pending_first(&mut self, id: ConnId, first: First) -> Option<Slot> {
        let slot = self.reservations.slot_of(id)?;
        let r = self.reservations.all.get_mut(usize::from(slot))?;
        (r.judged, r.first) = (self.policy_epoch, Some(first));
        Some(slot)
    }

    /// The same for a connection that the operator makes, the `nth` of its command; `judged`: it has been.
    pub(super) fn pending_made(&mut self, id: ConnId, nth: u16, judged: bool) {
        if let Some(slot) = self.reservations.slot_of(id)
            && let Some(r) = self.reservations.all.get_mut(usize::from(slot))
        {
            (r.judged, r.nth) = (if judged { self.policy_epoch } else { 0 }, nth);
        }
    }

    /// What a packet of a connection has to wait for; only of those that have not been judged in this epoch.
    pub(super) fn waits_for(&self, id: ConnId) -> Option<Slot> {
        if !self.conntrack.conn(id).flags.has(Flags::PENDING) {
            return None;
        }
        self.reservations.slot_of(id)
    }

    /// The first packet of a reservation could not be kept.
    pub fn forsake(&mut self, slot: Slot, now: Nanos) {
        let r = self.reservations.all.get(usize::from(slot));
        let first = r.filter(|r| matches!(r.phase, Phase::Asked) && r.first.is_some());
        if first.is_some() {
            self.lose(slot, DropReason::SignpostWait, now);
        }
    }

    /// A pending connection ends before it has begun.
    pub(super) fn give_up(&mut self, id: ConnId, now: Nanos) {
        match self.reservations.slot_of(id) {
            Some(slot) => self.lose(slot, DropReason::SignpostTimeout, now),
            None => {
                debug_assert!(false, "what is pending has a reservation");
                self.conntrack.conn_mut(id).flags.clear(Flags::PENDING);
                self.give_back(id, now);
                self.take_out(id, now);
            }
        }
    }

    /// Gives up what has waited for too long.
    pub fn expire_reservations(&mut self, now: Nanos) {
        if self.reservations.asked == 0 || now < self.reservations.until {
            return;
        }
        let mut next = now + PATIENCE;
        for slot in 0..self.reservations.all.len() {
            let Some(Reservation { phase: Phase::Asked, until, .. }) = self.reservations.all.get(slot) else {
                continue;
            };
            if *until > now {
                next = next.min(*until);
            } else if let Ok(slot) = Slot::try_from(slot) {
                self.lose(slot, DropReason::SignpostTimeout, now);
            }
        }
        self.reservations.until = next;
    }

    /// The home of `t` has placed our signpost.
    pub(super) fn placed(&mut self, t: &Tuple, ticket: Ticket, now: Nanos) {
        let Some(r) = self.reservations.of(ticket) else { return };
        let id = r.id;
        let is_reply = self.conntrack.tuple(id, Direction::Reply) == *t;
        self.granted(ticket, if is_reply { REPLY } else { ORIGINAL }, now);
    }

    /// A tuple is the connection's. With the last of them it is live.
    fn granted(&mut self, ticket: Ticket, what: u8, now: Nanos) {
        let Some(r) = self.reservations.of(ticket) else { return };
        r.asked &= !what;
        if r.asked != 0 {
            return;
        }
        let (id, judged, nth, first) = (r.id, r.judged, r.nth, r.first);
        let conn = self.conntrack.conn_mut(id);
        conn.flags.clear(Flags::PENDING);
        conn.judged = judged;
        self.stats.ct_event(CtEvent::New);
        self.emit(ConnEventKind::New, id, now);
        // Policy or addresses may have changed meanwhile, and what walks the table in their name has passed this one by.
        let gone = self.still_has_addresses(id, None, now).err();
        let settled = match first {
            Some(_) if gone.is_some() => Settled::Lost(DropReason::NatAddressGone),
            None if gone.is_some() => Settled::Refused(nth, DropReason::NatAddressGone),
            Some(first) if judged == self.policy_epoch => {
                self.count_translation(first.destination, first.source);
                Settled::Sent(first.plan)
            }
            Some(first) => self.judge_again(id, now).map_or_else(Settled::Lost, |()| Settled::Sent(first.plan)),
            None => Settled::Made(nth),
        };
        self.reservations.settle(ticket.slot, settled);
    }

    /// The home has none of ours free as it is, but lends `t`.
    pub(super) fn lent(&mut self, t: &Tuple, ticket: Ticket, now: Nanos) {
        let revoke = Note::Remove(*t, Some(ticket));
        let Some(id) = self.reservations.of(ticket).map(|r| r.id) else {
            return self.refuse(self.steer.home(t), revoke); // too late
        };
        // A clash: another pending connection of ours has asked for it meanwhile, and will hear that it cannot have it.
        if let Err(e) = self.conntrack.replace_port(id, t) {
            self.refuse(self.steer.home(t), revoke);
            self.conntrack.conn_mut(id).flags.clear(Flags::SIGNPOSTED); // for what was asked for there is none
            let reason = if e == InsertError::Full { DropReason::ConntrackFull } else { DropReason::NatClash };
            return self.lose(ticket.slot, reason, now);
        }
        if let Some(first) = self.reservations.of(ticket).and_then(|r| r.first.as_mut()) {
            first.plan.rewrite = Rewrite::Tuple(t.inverse());
        }
        self.granted(ticket, REPLY, now);
    }

    /// Lends one of this worker's ports to `to`, which found none among its own: a tuple like `t` with a port of `ports`.
    pub(super) fn lend(&mut self, t: &Tuple, ports: (u16, u16), to: WorkerId, ticket: Ticket) -> Option<Tuple> {
        let Self { conntrack, signposts, steer, ports: all, .. } = self;
        // Of what RSS does not see, the home of the addresses knows all that is taken.
        let wish = Wish { reply: *t, range: Some(ports), keep: false, anyones: !t.is_spread_by_ports() };
        let other = all.choose(&wish, steer, |t| is_taken(conntrack, signposts, t))?;
        self.signposts.answer(other, to, Some(ticket), true).ok()?;
        Some(other)
    }

    /// Another connection has `t`: another source port, if there is a choice.
    pub(super) fn clashed(&mut self, t: &Tuple, ticket: Ticket, now: Nanos) {
        let chosen = match self.unplaced(t, ticket) {
            Some(Direction::Reply) => self.choose_again(ticket, *t, now),
            Some(Direction::Original) => Err(DropReason::SignpostClash),
            None => return,
        };
        if let Err(reason) = chosen {
            self.lose(ticket.slot, reason, now);
        }
    }

    /// The home of `t` has no room for our signpost.
    pub(super) fn no_room(&mut self, t: &Tuple, ticket: Ticket, now: Nanos) {
        if self.unplaced(t, ticket).is_some() {
            self.lose(ticket.slot, DropReason::SignpostFull, now);
        }
    }

    /// The signpost for `t` was not placed: there is none to take back. Gives which of the connection's tuples that is.
    fn unplaced(&mut self, t: &Tuple, ticket: Ticket) -> Option<Direction> {
        let id = self.reservations.of(ticket)?.id;
        let (direction, flag) = if self.conntrack.tuple(id, Direction::Reply) == *t {
            (Direction::Reply, Flags::SIGNPOSTED)
        } else {
            (Direction::Original, Flags::SIGNPOSTED_ORIGINAL)
        };
        self.conntrack.conn_mut(id).flags.clear(flag);
        Some(direction)
    }

    /// Chooses another source for a pending connection whose reply tuple is taken.
    fn choose_again(&mut self, ticket: Ticket, taken: Tuple, now: Nanos) -> Result<(), DropReason> {
        let epoch = self.policy_epoch;
        let Some(r) = self.reservations.of(ticket) else { return Ok(()) };
        let (id, judged) = (r.id, r.judged);
        let First { before, source, follows, hop, .. } = r.first.ok_or(DropReason::SignpostClash)?;
        if judged != epoch {
            return Err(DropReason::PolicyReload); // the rule that says how to choose is another policy's
        }
        let room = r.denied.try_push(taken).is_ok();
        self.denied = r.denied.clone();
        let mut u = before;
        let chosen = match room {
            true => self.choose_source(&mut u, source, follows, hop),
            false => Err(DropReason::NatNoPort),
        };
        for t in std::mem::take(&mut self.denied) {
            self.ports.freed(&t); // when it is, nobody tells us
        }
        if let Err(reason) = chosen {
            self.translation_failed(&u, source.rule(), reason, now);
            return Err(reason);
        }
        let leased = self.conntrack.conn(id).flags.has(Flags::LEASED);
        self.conntrack.replace_reply(id, &u).map_err(|e| match e {
            InsertError::Full => DropReason::ConntrackFull,
            InsertError::Clash => DropReason::NatClash,
        })?;
        if leased {
            self.lease(&taken, -1);
        }
        if u.leased {
            self.lease(&u.reply, 1);
        }
        if let Some(first) = self.reservations.of(ticket).and_then(|r| r.first.as_mut()) {
            first.plan.rewrite = if u.is_translated() { Rewrite::Tuple(u.reply.inverse()) } else { Rewrite::None };
        }
        if self.steer.is_home(&u.reply) {
            self.granted(ticket, REPLY, now);
        } else if self.notes.tell(self.steer.home(&u.reply), Note::Place(u.reply, ticket, u.borrows)) {
            self.conntrack.conn_mut(id).flags.set(Flags::SIGNPOSTED);
        } else {
            return Err(DropReason::SignpostFull);
        }
        Ok(())
    }

    /// Ends a pending connection without a trace, and takes back what it may have been given since.
    fn lose(&mut self, slot: Slot, reason: DropReason, now: Nanos) {
        let Some(r) = self.reservations.all.get(usize::from(slot)) else { return };
        let (id, nth, packet, ticket) = (r.id, r.nth, r.first.is_some(), Ticket { slot, turn: r.turn });
        self.reservations.settle(slot, if packet { Settled::Lost(reason) } else { Settled::Refused(nth, reason) });
        self.give_back(id, now);
        self.mark_lost(id, ticket);
        self.take_out(id, now);
    }

    /// A connection that has never been live keeps its ticket, to name what it takes back: in fields of the living.
    fn mark_lost(&mut self, id: ConnId, ticket: Ticket) {
        let conn = self.conntrack.conn_mut(id);
        conn.flags.set(Flags::PENDING);
        (conn.mark, conn.judged) = (u32::from(ticket.slot), ticket.turn);
    }

    /// The ticket of a connection that ends without having been live.
    pub(super) fn ticket_of_lost(&self, id: ConnId) -> Option<Ticket> {
        let conn = self.conntrack.conn(id);
        let lost = conn.flags.has(Flags::PENDING);
        lost.then(|| Ticket { slot: u16::try_from(conn.mark).unwrap_or(u16::MAX), turn: conn.judged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_earlier_question_is_not_taken_for_one_to_a_later() {
        let mut all = Reservations::new(KEPT + 1);
        let first = all.open(ConnId(1), REPLY, false, Nanos(5)).expect("there is room");
        assert!(all.of(first).is_some());
        all.close(first);
        let second = all.open(ConnId(2), REPLY, false, Nanos(5)).expect("there is room");
        assert_eq!((first.slot, all.of(first).is_none(), all.of(second).is_some()), (second.slot, true, true));
    }

    #[test]
    fn packets_leave_room_for_the_operator() {
        let mut all = Reservations::new(RESERVATIONS);
        let mut open = |n, by_operator| all.open(ConnId(n), REPLY, by_operator, Nanos(5)).is_some();
        let packets = (0..1000).filter(|&n| open(n, false)).count();
        let operators = (1000..2000).filter(|&n| open(n, true)).count();
        assert_eq!((packets, operators, all.asked()), (RESERVATIONS - KEPT, KEPT, RESERVATIONS));
    }

    #[test]
    fn what_is_settled_is_told_in_the_order_of_its_answers() {
        let mut all = Reservations::new(RESERVATIONS);
        let mut slots: Vec<_> =
            (0..5).filter_map(|n| all.open(ConnId(n), REPLY, false, Nanos(5))).map(|t| t.slot).collect();
        slots.rotate_left(2);
        for &slot in &slots {
            all.settle(slot, Settled::Lost(DropReason::SignpostFull));
        }
        let told: Vec<_> = std::iter::from_fn(|| all.take_settled()).map(|(slot, _)| slot).collect();
        assert_eq!((told, all.asked()), (slots, 0));
    }
}
