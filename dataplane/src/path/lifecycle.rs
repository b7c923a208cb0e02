//! A connection's way into the table and out of it: source and port, confirmation, signpost, lease, end.
//!
//! *Limits*: while [`REFUSALS`](super::REFUSALS) refusals wait for room, no further notes are read, so that the senders' rings fill and
//! they refuse new connections themselves.

use std::net::IpAddr;

use super::{Path, RETRY};
use crate::api::command::ConnEventKind;
use crate::api::policy::ZoneId;
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::{Conn, Flags, Unconfirmed};
use crate::conntrack::signpost::{PlaceError, WorkerId};
use crate::conntrack::table::InsertError;
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::drop::DropReason;
use crate::steer::{Note, Ticket};
use crate::time::Nanos;

impl Path {
    /// Sees to it that one more connection from `source` in zone `from` may enter the table: within its limits, and with
    /// an entry free, where need be that of a connection that matters less. Connections from or to the gateway itself
    /// (`local`) may take the reserve, and are not given up for others.
    pub(super) fn make_room(
        &mut self,
        source: IpAddr,
        from: ZoneId,
        local: bool,
        now: Nanos,
    ) -> Result<(), DropReason> {
        if !self.limits.is_empty() {
            self.limits.allows(source, from)?;
        }
        let reserve = self.policy.spec().conntrack.reserve.div_ceil(usize::from(self.steer.workers()));
        let limit = self.conntrack.max() - if local { 0 } else { reserve.min(self.conntrack.max() / 2) };
        if self.conntrack.count() < limit {
            return Ok(());
        }
        let spared =
            |c: &Conn| !local && (c.in_port.is_twin() || c.cache[Direction::Original.index()].egress.is_twin());
        let victim = self.conntrack.victim(now, spared).ok_or(DropReason::ConntrackFull)?;
        let over = self.conntrack.conn(victim).is_over(now);
        self.end(victim, if over { CtEvent::Expired } else { CtEvent::EarlyDrop }, now);
        if self.conntrack.count() < limit { Ok(()) } else { Err(DropReason::ConntrackFull) }
    }

    /// Puts a connection into the table, with its first packet's `bytes` or, by the operator, without one. Where its replies
    /// arrive elsewhere it is pending until they may: see [`super::reserve`].
    pub(super) fn confirm(&mut self, u: &Unconfirmed, bytes: Option<u32>, now: Nanos) -> Result<ConnId, DropReason> {
        if u.helper.is_some() && !self.helpers.has_room() {
            return Err(DropReason::HelperFull);
        }
        // A packet that came back as stale has not followed the signpost that is here still, or here again.
        if self.signposts.owner(&u.original).is_some() {
            return Err(DropReason::SignpostClash);
        }
        let id = self.conntrack.confirm(u, bytes, now).map_err(|e| match e {
            InsertError::Full => DropReason::ConntrackFull,
            InsertError::Clash => DropReason::NatClash,
        })?;
        // Only what was expected, and calls, came by another way than their home.
        let original = (u.expected || u.original.proto == proto::GRE) && !self.steer.is_home(&u.original);
        let reply = !self.steer.is_home(&u.reply);
        if original || reply {
            self.reserve(id, u, [original, reply], bytes.is_none(), now)?;
        } else {
            self.stats.ct_event(CtEvent::New);
        }
        if let Some(kind) = u.helper
            && self.helpers.add(id, kind)
        {
            self.conntrack.conn_mut(id).flags.set(Flags::HELPED);
        }
        if u.leased {
            self.lease(&u.reply, 1);
        }
        if !self.limits.is_empty() {
            self.limits.add(u.original.src, self.policy.zone_of(u.in_port));
            self.conntrack.conn_mut(id).counted = self.limits.epoch();
        }
        self.stats.conntrack_entries.set(self.conntrack.count() as u64);
        Ok(id)
    }

    /// Ends a connection, with what its helper knows and expects, and takes its signposts back; where a ring is full, that
    /// is tried again later.
    pub fn end(&mut self, id: ConnId, event: CtEvent, now: Nanos) {
        let flags = self.conntrack.conn(id).flags;
        if flags.has(Flags::PENDING) && !flags.has(Flags::DYING) {
            return self.give_up(id, now);
        }
        if !flags.has(Flags::DYING) {
            self.stats.ct_event(event);
            self.emit(ConnEventKind::Destroy(event), id, now);
            self.give_back(id, now);
        }
        self.take_out(id, now);
    }

    /// Gives back what a connection holds: its port, its place within limits, what its helper knows.
    pub(super) fn give_back(&mut self, id: ConnId, now: Nanos) {
        let flags = self.conntrack.conn(id).flags;
        if flags.has(Flags::LEASED) {
            self.lease(&self.conntrack.tuple(id, Direction::Reply), -1);
        }
        let conn = self.conntrack.conn(id);
        if conn.counted == self.limits.epoch() {
            let from = self.policy.zone_of(conn.in_port);
            self.limits.remove(self.conntrack.tuple(id, Direction::Original).src, from);
        }
        if flags.has(Flags::HELPED) {
            self.end_help(id, now);
        }
    }

    /// Takes a connection out of the table once its signposts are taken back, or such that follow it go on with them.
    pub(super) fn take_out(&mut self, id: ConnId, now: Nanos) {
        let dying = self.conntrack.conn(id).flags.has(Flags::DYING);
        let ticket = self.ticket_of_lost(id);
        if self.ports.has_crowds() {
            for direction in [Direction::Original, Direction::Reply] {
                self.ports.freed(&self.conntrack.tuple(id, direction));
            }
        }
        let signposted = self.conntrack.conn(id).flags.has_any(Flags::SIGNPOSTED_ORIGINAL.with(Flags::SIGNPOSTED));
        for (flag, direction) in
            [(Flags::SIGNPOSTED_ORIGINAL, Direction::Original), (Flags::SIGNPOSTED, Direction::Reply)]
        {
            if !signposted {
                break;
            }
            if !self.conntrack.conn(id).flags.has(flag) {
                continue;
            }
            let t = self.conntrack.tuple(id, direction);
            // A connection that followed a dying one has taken over its tuple, and with it its signpost.
            let followed = dying && self.conntrack.find(&t, self.conntrack.hash(&t)).is_some();
            if !followed && !self.notes.tell(self.steer.home(&t), Note::Remove(t, ticket)) {
                self.conntrack.defer(id, now + RETRY);
                return;
            }
            self.conntrack.conn_mut(id).flags.clear(flag);
        }
        if dying {
            self.conntrack.release(id);
        } else {
            self.conntrack.remove(id);
        }
        self.stats.conntrack_entries.set(self.conntrack.count() as u64);
    }

    /// Counts a lease of a translated port or identifier, or its return.
    pub(super) fn lease(&self, reply: &Tuple, change: i64) {
        let kind = match reply.proto {
            proto::TCP => 0,
            proto::UDP => 1,
            _ if reply.is_icmp() => 2,
            _ => 3,
        };
        self.stats.lease(reply.dst, kind, change);
    }

    /// Reads what other workers have told this one. Must run after frames were received and before they are looked up:
    /// a signpost was sent before the packet whose answer may be among those frames.
    pub fn read_notes(&mut self, now: Nanos) {
        // One that has no room does not hold up what is for others.
        let Self { refusals, notes, .. } = self;
        refusals.retain(|&mut (to, note)| !notes.tell(to, note));
        for from in 0..self.notes.workers() {
            // A note may be answered by two.
            while self.refusals.remaining_capacity() >= 2 {
                let Some(note) = self.notes.receive(from) else { break };
                // Invariant: a worker's index fits, there are at most 128.
                let sender = WorkerId::try_from(from).unwrap_or(0);
                self.note(sender, note, now);
            }
        }
    }

    fn note(&mut self, from: WorkerId, note: Note, now: Nanos) {
        match note {
            Note::Place(t, ticket, ports) => {
                let answer = match self.place(t, from, ticket, now) {
                    Ok(()) => Note::Placed(t, ticket),
                    Err(PlaceError::Clash) => match ports.and_then(|ports| self.lend(&t, ports, from, ticket)) {
                        Some(other) => Note::Lent(other, ticket),
                        None => Note::Clash(t, ticket),
                    },
                    Err(PlaceError::Full) => Note::Full(t, ticket),
                };
                // Without room for the answer there is none: who asked waits in vain, and takes the signpost back. To wait
                // for room here, while others wait for these answers, could be for ever.
                if !self.notes.tell(from, answer)
                    && let Note::Lent(other, _) = answer
                {
                    self.signposts.revoke(&other, from, Some(ticket)); // of which nobody knows
                }
            }
            Note::Remove(t, ticket) => {
                self.signposts.revoke(&t, from, ticket);
                self.ports.freed(&t);
            }
            Note::Lent(t, ticket) => self.lent(&t, ticket, now),
            Note::Placed(t, ticket) => self.placed(&t, ticket, now),
            Note::Clash(t, ticket) => self.clashed(&t, ticket, now),
            Note::Full(t, ticket) => self.no_room(&t, ticket, now),
            Note::Expect(key) => {
                for worker in self.note_expect(key, from, now).into_iter().flatten() {
                    self.refuse(worker, Note::Unexpected(key));
                }
            }
            Note::Unexpect(key) => {
                self.announced.remove(&key, from);
            }
            Note::Unexpected(key) => self.expectation_refused(&key, now),
        }
        self.stats.signposts.set(self.signposts.count() as u64);
    }

    /// Worker `from` wants the flow of `t`, which is at home here: a signpost, unless the tuple is another connection's.
    fn place(&mut self, t: Tuple, from: WorkerId, ticket: Ticket, now: Nanos) -> Result<(), PlaceError> {
        if self.lookup(&t, self.conntrack.hash(&t), now).is_some() {
            return Err(PlaceError::Clash);
        }
        self.signposts.answer(t, from, Some(ticket), false)
    }

    pub(super) fn refuse(&mut self, to: WorkerId, refusal: Note) {
        if !self.notes.tell(to, refusal) {
            // Invariant: `read_notes` reads no note while this is full.
            let _ = self.refusals.try_push((to, refusal));
        }
    }
}
