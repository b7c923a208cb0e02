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
use crate::steer::Note;
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
        let victim = self.conntrack.victim(spared).ok_or(DropReason::ConntrackFull)?;
        self.end(victim, CtEvent::EarlyDrop, now);
        if self.conntrack.count() < limit { Ok(()) } else { Err(DropReason::ConntrackFull) }
    }

    /// Puts a connection into the table and, where its replies arrive elsewhere, a signpost there.
    pub(super) fn confirm(&mut self, u: &Unconfirmed, bytes: u32, now: Nanos) -> Result<ConnId, DropReason> {
        if u.helper.is_some() && !self.helpers.has_room() {
            return Err(DropReason::HelperFull);
        }
        let id = self.conntrack.confirm(u, bytes, now).map_err(|e| match e {
            InsertError::Full => DropReason::ConntrackFull,
            InsertError::Clash => DropReason::NatClash,
        })?;
        // Only what was expected, and calls, came by another way than their home.
        let original = (u.expected || u.original.proto == proto::GRE) && !self.steer.is_home(&u.original);
        if original {
            if !self.notes.tell(self.steer.home(&u.original), Note::Place(u.original)) {
                self.conntrack.remove(id);
                return Err(DropReason::SignpostFull);
            }
            self.conntrack.conn_mut(id).flags.set(Flags::SIGNPOSTED_ORIGINAL);
        }
        if !self.steer.is_home(&u.reply) {
            if !self.notes.tell(self.steer.home(&u.reply), Note::Place(u.reply)) {
                self.take_out(id, now);
                return Err(DropReason::SignpostFull);
            }
            self.conntrack.conn_mut(id).flags.set(Flags::SIGNPOSTED);
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
        self.stats.ct_event(CtEvent::New);
        self.stats.conntrack_entries.set(self.conntrack.count() as u64);
        Ok(id)
    }

    /// Ends a connection, with what its helper knows and expects, and takes its signposts back; where a ring is full, that
    /// is tried again later.
    pub fn end(&mut self, id: ConnId, event: CtEvent, now: Nanos) {
        let flags = self.conntrack.conn(id).flags;
        if !flags.has(Flags::DYING) {
            self.stats.ct_event(event);
            self.emit(ConnEventKind::Destroy(event), id, now);
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
        self.take_out(id, now);
    }

    /// Takes a connection out of the table once its signposts are taken back, or such that follow it go on with them.
    fn take_out(&mut self, id: ConnId, now: Nanos) {
        let dying = self.conntrack.conn(id).flags.has(Flags::DYING);
        for direction in [Direction::Original, Direction::Reply] {
            self.ports.freed(&self.conntrack.tuple(id, direction));
        }
        for (flag, direction) in
            [(Flags::SIGNPOSTED_ORIGINAL, Direction::Original), (Flags::SIGNPOSTED, Direction::Reply)]
        {
            if !self.conntrack.conn(id).flags.has(flag) {
                continue;
            }
            let t = self.conntrack.tuple(id, direction);
            // A connection that followed a dying one has taken over its tuple, and with it its signpost.
            let followed = dying && self.conntrack.find(&t, self.conntrack.hash(&t)).is_some();
            if !followed && !self.notes.tell(self.steer.home(&t), Note::Remove(t)) {
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
    fn lease(&self, reply: &Tuple, change: i64) {
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
        while let Some(&(to, note)) = self.refusals.last() {
            if !self.notes.tell(to, note) {
                break;
            }
            self.refusals.pop();
        }
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
            Note::Place(t) => {
                let placed = if self.lookup(&t, self.conntrack.hash(&t), now).is_some() {
                    Err(PlaceError::Clash)
                } else {
                    self.signposts.place(t, from)
                };
                let refusal = match placed {
                    Ok(()) => None,
                    Err(PlaceError::Clash) => Some(Note::Clash(t)),
                    Err(PlaceError::Full) => Some(Note::Full(t)),
                };
                if let Some(refusal) = refusal {
                    self.refuse(from, refusal);
                }
            }
            Note::Remove(t) => {
                self.signposts.remove(&t, from);
                self.ports.freed(&t);
            }
            Note::Clash(t) => self.refused(&t, DropReason::SignpostClash, now),
            Note::Full(t) => self.refused(&t, DropReason::SignpostFull, now),
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

    fn refuse(&mut self, to: WorkerId, refusal: Note) {
        if !self.notes.tell(to, refusal) {
            // Invariant: `read_notes` reads no note while this is full.
            let _ = self.refusals.try_push((to, refusal));
        }
    }

    /// Ends a connection whose signpost could not be placed: packets of tuple `t` would be lost.
    fn refused(&mut self, t: &Tuple, reason: DropReason, now: Nanos) {
        let Some((id, direction)) = self.conntrack.lookup(t, now) else { return };
        let flag = match direction {
            Direction::Original => Flags::SIGNPOSTED_ORIGINAL,
            Direction::Reply => Flags::SIGNPOSTED,
        };
        if self.conntrack.conn(id).flags.has(flag) {
            // The signpost is taken back all the same: this refusal may be of an earlier connection with the same reply,
            // and the home heeds its owner alone.
            self.stats.drop_packet(reason);
            self.end(id, CtEvent::Refused, now);
        }
    }
}
