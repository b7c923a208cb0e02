//! What the operator does to connections: makes them, changes them, watches them.
//!
//! *Threads*: the worker, between two bursts, at control's wish. *Limits*: reports leave half of the message channel to
//! the answers that control waits for; what finds no room is counted.

use super::Path;
use crate::api::command::{ConnChange, ConnEvent, ConnEventKind, ConnSpec, CreateError, Event, Message};
use crate::api::policy::HelperKind;
use crate::conntrack::ConnId;
use crate::conntrack::conn::{Flags, Unconfirmed};
use crate::conntrack::l4::L4State;
use crate::conntrack::tuple::Tuple;
use crate::drop::DropReason;
use crate::helper::saved::{SavedSides, restored};
use crate::io::PortIdx;
use crate::time::Nanos;

impl Path {
    /// Reports what happened to a connection, where somebody listens.
    #[inline]
    pub(super) fn emit(&self, kind: ConnEventKind, id: ConnId, now: Nanos) {
        if let Some(sink) = &self.events {
            let room = sink.messages.capacity().is_none_or(|c| sink.messages.len() < c / 2);
            let event = || Event::Conn(ConnEvent { kind, conn: self.view(id, now) });
            if !room || sink.messages.try_send(Message { worker: sink.worker, event: event() }).is_err() {
                self.stats.events_lost.add(1);
            }
        }
    }

    /// Puts a connection into the table, the `nth` of a command. Says whether it is live; otherwise a reservation will tell.
    ///
    /// # Errors
    /// Why it cannot be; nothing changed.
    pub fn create(&mut self, spec: &ConnSpec, nth: usize, now: Nanos) -> Result<bool, CreateError> {
        let (original, reply) = (spec.original, spec.reply);
        let one_kind = original.proto == reply.proto && original.is_ipv4() == reply.is_ipv4();
        let one_version = |t: &Tuple| t.src.is_ipv4() == t.dst.is_ipv4();
        if !one_kind || !one_version(&original) || !one_version(&reply) {
            return Err(CreateError::Unfit);
        }
        let l4 = L4State::named(original.proto, spec.state).ok_or(CreateError::Unfit)?;
        let sides = match &spec.sides {
            Some(saved) if spec.helper == Some(HelperKind::Ftp) => Some(restored(saved).ok_or(CreateError::Unfit)?),
            Some(_) => return Err(CreateError::Unfit),
            None => None,
        };
        // Another worker's connection may have what is this one's to look up.
        if [original, reply].iter().any(|t| self.signposts.owner(t).is_some()) {
            return Err(CreateError::Exists);
        }
        let in_port = if spec.local { PortIdx::twin(spec.interface) } else { PortIdx::wire(spec.interface) };
        let ruled = self.ruled_as_made(&original, &reply, spec.mark, in_port);
        let unconfirmed = Unconfirmed {
            free: [None; 2],
            original,
            reply,
            l4,
            timeout: Nanos::from_secs(u64::from(spec.timeout_s)),
            timeout_policy: spec.timeout_policy,
            mark: spec.mark,
            expected: spec.expected,
            helper: spec.helper.filter(|h| h.watches(&original)),
            in_port,
            leased: ruled.map_or(reply.dst != original.src, |r| r.leased),
            bound: ruled.map_or_else(|| self.bound_to(&original, &reply), |r| r.bound),
            borrows: None,
        };
        let id = self.confirm(&unconfirmed, None, now).map_err(|reason| match reason {
            DropReason::NatClash | DropReason::SignpostClash => CreateError::Exists,
            _ => CreateError::Full,
        })?;
        let conn = self.conntrack.conn_mut(id);
        let pending = conn.flags.has(Flags::PENDING);
        if !spec.judge && !pending {
            conn.judged = self.policy_epoch;
        }
        conn.restore(Nanos::from_millis(spec.age_ms), now, spec.packets, spec.bytes);
        let helped = self.helpers.find_mut(id).zip(sides).map(|(helped, sides)| {
            helped.ftp = sides;
            helped.is_adjusted()
        });
        let adjusted = helped.unwrap_or(false);
        for (wanted, flag) in
            [(adjusted, Flags::ADJUSTED), (spec.replied, Flags::REPLIED), (spec.assured, Flags::ASSURED)]
        {
            if wanted {
                conn.flags.set(flag);
            }
        }
        if pending {
            // Invariant: a command has few.
            self.pending_made(id, u16::try_from(nth).unwrap_or(u16::MAX), !spec.judge);
        } else {
            self.emit(ConnEventKind::New, id, now);
        }
        Ok(!pending)
    }

    /// The live connection that has `tuple`.
    pub fn known_to_all(&self, tuple: &Tuple, now: Nanos) -> Option<ConnId> {
        let found = self.conntrack.lookup(tuple, now).map(|(id, _)| id);
        found.filter(|&id| !self.conntrack.conn(id).flags.has(Flags::PENDING))
    }

    /// Writes what FTP's helper knows of the connection that has `tuple` into `into`; `false` where there is none.
    pub fn sides(&self, tuple: &Tuple, into: &mut SavedSides, now: Nanos) -> bool {
        let id = self.known_to_all(tuple, now);
        let helped = id.and_then(|id| self.helpers.find(id)).filter(|h| h.kind == HelperKind::Ftp);
        if let Some(helped) = helped {
            helped.save(into);
        }
        helped.is_some()
    }

    /// Changes a connection. What its rules said may depend on its mark, so that is found out again.
    pub fn change(&mut self, id: ConnId, change: ConnChange, now: Nanos) {
        let conn = self.conntrack.conn_mut(id);
        if let Some((mask, value)) = change.mark {
            conn.mark = conn.mark & !mask | value & mask;
            conn.forget();
        }
        if change.assured {
            conn.flags.set(Flags::ASSURED);
        }
        if let Some(seconds) = change.timeout_s {
            self.conntrack.prolong(id, now + Nanos::from_secs(u64::from(seconds)));
        }
        self.emit(ConnEventKind::Update, id, now);
    }
}
