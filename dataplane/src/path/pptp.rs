//! PPTP at work: what a control connection says becomes a call, by whose ids GRE packets find their connection.
//!
//! A GRE packet carries the id of its receiver only. What it lacks is looked up by *ways*, among the expectations: the call's
//! two tuples, and the inverse of what an error about each quotes. Whoever gets such a packet and owns no call with its key
//! asks what others have told, before anything else, and hands it over; so a call goes to its control connection's owner even
//! where a connection without a call has had the same packets before.
//!
//! ```text
//!   way        packets of                  lacks                   from the owner's tuples of the control connection
//!   0          the opener                  the opener's own id     original addresses; ids: own, pac
//!   1          the other side              its own id              reply addresses; ids: pac, pns
//!   2, 3       errors about 1, about 0     what the quote lacks    the inverse is known of each of the two
//! ```
//!
//! *Threads*: the worker's; others learn by notes. *Limits*: one call per control connection; another one's packets are not
//! RELATED, as in Linux. Per segment the work is proportional to its length.
//! *Sources*: `linux/net/netfilter/nf_conntrack_pptp.c`, `linux/net/ipv4/netfilter/nf_nat_pptp.c`.

use super::Path;
use super::helper::Help;
use crate::api::policy::HelperKind;
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::expect::Expectation;
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tcp::{ACK, RST, SYN};
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::drop::DropReason;
use crate::helper::pptp::{Control, Effect, Found, Message, Side};
use crate::helper::seqadj::{ahead, before};
use crate::packet::{Packet, TcpSegment};
use crate::time::Nanos;

/// Whose a GRE packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// No call's that anyone knows.
    None,
    /// One of this worker: the packet's whole tuple.
    Here(Tuple),
    /// One of that worker.
    At(WorkerId),
}

/// Whose messages are read.
#[derive(Clone, Copy, Debug)]
struct Speaker {
    id: ConnId,
    opener: bool,
    /// The opener's port on the other side, where addresses are rewritten.
    port: Option<u16>,
}

impl Path {
    /// The call of a GRE packet with this tuple; of an error, its inverse.
    pub(super) fn call_of(&self, t: &Tuple, stale: bool) -> Call {
        if let Some(e) = self.expectations.find(t).and_then(|place| self.expectations.at(place)) {
            return Call::Here(e.whole());
        }
        match self.announced.owner(t) {
            Some(owner) if !stale => Call::At(owner),
            _ => Call::None,
        }
    }

    /// A segment of a control connection.
    pub(super) fn pptp(
        &mut self,
        p: &Packet,
        id: ConnId,
        segment: &TcpSegment,
        payload: &[u8],
        now: Nanos,
    ) -> Result<Help, DropReason> {
        let (d, o) = (p.direction.index(), p.direction.opposite().index());
        let port = self.translates(id).then(|| self.conntrack.tuple(id, Direction::Reply).dport);
        let handshake =
            segment.flags & (SYN | ACK) == SYN | ACK && self.conntrack.conn(id).l4.name() == Some("SYN_RECV");
        let Some(helped) = self.helpers.find_mut(id) else { return Ok(Help::Pass) };
        if handshake {
            helped.pptp = Default::default(); // its numbers begin anew
        }
        if segment.flags & ACK != 0 {
            helped.pptp[o].patches.acknowledged(segment.ack);
        }
        if segment.flags & (SYN | RST) != 0 || payload.is_empty() {
            return Ok(Help::Pass);
        }
        // Nothing is kept of a packet that cannot pass.
        let (mut side, mut control) = (helped.pptp[d].clone(), helped.control);
        let who = Speaker { id, opener: p.direction == Direction::Original, port };
        self.messages(who, &mut side, &mut control, segment.seq, payload, now)?;
        // Invariant: a packet has less than 65,536 bytes.
        let touched = side.patches.touches(segment.seq, u32::try_from(payload.len()).unwrap_or(0));
        if let Some(helped) = self.helpers.find_mut(id) {
            helped.pptp[d] = side;
            helped.control = control;
        }
        Ok(if touched { Help::Patch } else { Help::Pass })
    }

    /// Reads what is new of a segment's payload. Order matters little, for no message changes its length: what comes behind a
    /// gap is read where a message begins with it.
    fn messages(
        &mut self,
        who: Speaker,
        side: &mut Side,
        control: &mut Control,
        seq: u32,
        payload: &[u8],
        now: Nanos,
    ) -> Result<(), DropReason> {
        let end = seq.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        let next = side.next.unwrap_or(seq);
        let mut later = None;
        let mut old = ahead(seq, next);
        if before(next, seq) {
            side.hole = Some((next, side.reader.clone()));
            side.reader.lose();
        } else if let Some((_, reader)) = side.hole.take_if(|(at, _)| *at == seq && before(seq, next)) {
            later = Some(std::mem::replace(&mut side.reader, reader));
            old = 0;
        }
        let mut text = payload.get(old as usize..).unwrap_or_default();
        let mut at = seq.wrapping_add(old);
        if let Some(length) = side.reader.segment(text) {
            side.patches.cut(at.wrapping_sub(length), at);
        }
        while !text.is_empty() {
            let (n, found) = side.reader.read(text);
            text = text.get(n..).unwrap_or_default();
            at = at.wrapping_add(u32::try_from(n).unwrap_or(0));
            if let Some((length, found)) = found {
                self.found(who, side, control, at.wrapping_sub(length), found, now)?;
            }
        }
        if let Some(reader) = later {
            side.reader = reader;
        }
        side.next = Some(if before(next, end) { end } else { next });
        side.patches.reached(end);
        Ok(())
    }

    /// A message that begins at `start` was read, or its header.
    fn found(
        &mut self,
        who: Speaker,
        side: &mut Side,
        control: &mut Control,
        start: u32,
        found: Found,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let (Found::Begun(kind) | Found::Whole(Message { kind, .. })) = found;
        let replacement = who.port.and_then(|port| control.replacement(kind, who.opener, port));
        let effect = match found {
            // Its first bytes may leave before its last have come.
            Found::Begun(_) => Effect::Pass,
            Found::Whole(m) => control.hear(&m, who.opener, who.port),
        };
        if let Some((offset, id)) = replacement {
            let at = start.wrapping_add(offset);
            if effect == Effect::Refused {
                side.patches.unset(at);
            } else {
                side.patches.set(at, id).map_err(|_| DropReason::HelperEdits)?;
            }
        }
        match effect {
            Effect::Pass | Effect::Refused => Ok(()),
            Effect::Connected => self.connect(who.id, control, now),
            Effect::Over => {
                self.end_call(who.id, now);
                Ok(())
            }
        }
    }

    /// A call's tuples: of the opener's packets, of the other side's.
    fn call_tuples(&self, id: ConnId, c: &Control) -> [Tuple; 2] {
        let of = |direction| Tuple { proto: proto::GRE, ..self.conntrack.tuple(id, direction) };
        [
            Tuple { sport: c.own, dport: c.pac, ..of(Direction::Original) },
            Tuple { sport: c.pac, dport: c.pns, ..of(Direction::Reply) },
        ]
    }

    /// Expects the packets of a call, and makes its ways.
    fn connect(&mut self, id: ConnId, control: &Control, now: Nanos) -> Result<(), DropReason> {
        let tuples = self.call_tuples(id, control);
        let Some(ways) = self.helpers.find(id).map(|h| h.ways) else { return Ok(()) };
        let deadline = now + self.policy.spec().conntrack.timeouts.expect_pptp;
        let known = [ways[0], ways[1]].map(|place| self.expectations.at(place?).map(Expectation::whole));
        let keys = tuples.map(|t| Tuple { sport: 0, ..t });
        match known.map(|t| t.map(|t| Tuple { sport: 0, ..t })) {
            [None, None] => {}
            _ if known == tuples.map(Some) => {
                // Said again.
                self.keep_call(id);
                self.room_for_call()?;
                for place in ways.into_iter().take(2).flatten() {
                    self.expectations.renew(place, deadline);
                }
                self.stats.expectations.set(self.expectations.count() as u64);
                return Ok(());
            }
            // The opener has chosen another id for the same call, of which only it knows. Where the call's connection is
            // there, it goes on as it was.
            [original, reply] if [original, reply] == keys.map(Some) => {
                if known.into_iter().flatten().any(|t| self.conntrack.lookup(&t, now).is_some()) {
                    return Ok(());
                }
                self.forget_call(id, now);
            }
            // Another call while there is one. Where both have the same id of the other side, neither is found any more.
            [original, _] => {
                if original == Some(keys[0]) {
                    self.forget_call(id, now);
                } else {
                    self.keep_call(id);
                }
                return Ok(());
            }
        }
        let [original, reply] = tuples;
        if keys.iter().any(|key| self.is_way(key)) {
            return Ok(()); // another call's packets look the same
        }
        self.room_for_call()?;
        for (n, (key, direction, lacks)) in
            [(keys[0], Direction::Reply, original.sport), (keys[1], Direction::Original, reply.sport)]
                .into_iter()
                .enumerate()
        {
            let e = Expectation::new(key, id, direction, HelperKind::Pptp, lacks, deadline);
            let made = self.add_way(n, e, now);
            if made.is_err() {
                self.forget_call(id, now);
                return made;
            }
        }
        for (n, (t, direction)) in [(2, (reply, Direction::Original)), (3, (original, Direction::Reply))] {
            let key = Tuple { dport: 0, ..t };
            // An id of 0 cannot be told from none.
            if t.sport != 0 && !self.is_way(&key) {
                // Without it there is no way for errors, and that is all.
                let _ = self.add_way(n, Expectation::kept(key, id, direction, t.dport), now);
            }
        }
        Ok(())
    }

    fn room_for_call(&self) -> Result<(), DropReason> {
        let fits = self.expectations.count() + 2 <= self.expect_share().max(2);
        if fits { Ok(()) } else { Err(DropReason::ExpectFull) }
    }

    fn is_way(&self, key: &Tuple) -> bool {
        self.expectations.find(key).is_some() || self.announced.owner(key).is_some()
    }

    fn add_way(&mut self, n: usize, e: Expectation, now: Nanos) -> Result<(), DropReason> {
        let place = self.expectations.insert(e).ok_or(DropReason::ExpectFull)?;
        if let Some(way) = self.helpers.find_mut(e.master).and_then(|h| h.ways.get_mut(n)) {
            *way = Some(place);
        }
        self.tell_expected(place, now)
    }

    /// The tuple of a call's packets that go with those of `direction` of its control connection.
    pub(super) fn call_tuple(&self, id: ConnId, direction: Direction) -> Option<Tuple> {
        let place = self.helpers.find(id)?.ways.get(direction.index()).copied()??;
        self.expectations.at(place).map(Expectation::whole)
    }

    /// A call's packets are not waited for any more, but found still.
    pub(super) fn keep_call(&mut self, id: ConnId) {
        for place in self.helpers.find(id).map(|h| h.ways).into_iter().flatten().flatten() {
            self.expectations.keep(place);
        }
        self.stats.expectations.set(self.expectations.count() as u64);
    }

    /// A call's packets are not found any more.
    pub(super) fn forget_call(&mut self, id: ConnId, now: Nanos) {
        for place in self.helpers.find(id).map(|h| h.ways).into_iter().flatten().flatten() {
            self.end_expectation(place, now);
        }
    }

    /// A control connection ends or its call is over, and the call's connection with it: that of its packets, whatever ids have
    /// been said since.
    pub(super) fn end_call(&mut self, id: ConnId, now: Nanos) {
        for direction in [Direction::Original, Direction::Reply] {
            let call = self.call_tuple(id, direction).and_then(|t| self.conntrack.lookup(&t, now));
            if let Some((call, _)) = call {
                self.end(call, CtEvent::Closed, now);
            }
        }
        self.forget_call(id, now);
    }

    /// Whether call ids are rewritten.
    pub(super) fn translates(&self, id: ConnId) -> bool {
        self.conntrack.conn(id).flags.has(Flags::TRANSLATED)
    }
}
