//! Expectations at work: made here, told to the other workers, fulfilled by a new connection's first packet.
//!
//! A new connection is looked up among the expectations of the worker that it arrives at, and of all others by what they
//! told: `announced` holds their keys. The worker that owns the announcing connection owns the announced one too, wherever
//! its tuples are at home; signposts at both homes lead there. They are placed before the key is taken back, so its packets
//! find the way at any time.
//!
//! Where two workers announce the same at once, each before it has heard of the other, neither is expected: the connections
//! could not be told apart. Whoever has heard of one before takes another port, where addresses are rewritten, or refuses.
//!
//! *Threads*: the worker's; others learn by notes. *Limits*: one expectation per connection, a new one replaces it; this
//! worker's share of `conntrack.expect_max`; [`LOOKS`] expectations looked at per tick.
//! *Sources*: `linux/net/netfilter/nf_conntrack_expect.c`, `nf_nat_helper.c` (`nf_nat_follow_master`).

use super::{Path, RETRY};
use crate::api::command::ExpectView;
use crate::api::policy::HelperKind;
use crate::conntrack::ConnId;
use crate::conntrack::conn::{Flags, Unconfirmed};
use crate::conntrack::expect::{Expectation, key_of};
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::drop::DropReason;
use crate::nat;
use crate::steer::Note;
use crate::time::Nanos;

/// Expectations that a tick looks at.
const LOOKS: u32 = 8;

impl Path {
    /// The sender of connection `id`'s packets of `direction` waits at its port `port`. Gives the port that the other side
    /// is to hear of: another one, where `choose` allows and the same is taken.
    pub(super) fn announce(
        &mut self,
        id: ConnId,
        direction: Direction,
        helper: HelperKind,
        port: u16,
        choose: bool,
        now: Nanos,
    ) -> Result<u16, DropReason> {
        let other = self.conntrack.tuple(id, direction.opposite());
        // TFTP is answered at the port of the request itself, which is translated already.
        let public = if helper == HelperKind::Tftp { other.dport } else { port };
        let with = |port| Tuple { sport: 0, dport: port, ..other };
        let before = self.helpers.find(id).and_then(|h| self.expectations.at(h.expectation?));
        let same = before.filter(|e| (e.direction, e.helper, e.port) == (direction, helper, port));
        let public = if let Some(e) = same {
            e.key.dport
        } else if choose {
            let random = self.ports.draw();
            let free = |port| !self.is_taken(&with(port), id, now);
            let chosen = nat::ports::choose_announced(public, &self.steer, random, free);
            chosen.ok_or(DropReason::NatNoPort)?
        } else if self.is_taken(&with(public), id, now) {
            return Err(DropReason::ExpectClash);
        } else {
            public
        };
        let timeouts = &self.policy.spec().conntrack.timeouts;
        let timeout = match helper {
            HelperKind::Ftp => timeouts.expect_ftp,
            HelperKind::Tftp => timeouts.expect_tftp,
            HelperKind::Pptp => timeouts.expect_pptp,
        };
        let e = Expectation::new(with(public), id, direction, helper, port, now + timeout);
        self.expect(e, now)?;
        Ok(public)
    }

    /// Whether another connection waits for what has this key, here or elsewhere.
    fn is_taken(&self, key: &Tuple, id: ConnId, now: Nanos) -> bool {
        let here = self.expectations.find(key).and_then(|place| self.expectations.at(place));
        here.is_some_and(|e| e.master != id && e.deadline > now) || self.announced.owner(key).is_some()
    }

    /// Makes an expectation, in place of its connection's last one, and tells the other workers.
    fn expect(&mut self, e: Expectation, now: Nanos) -> Result<(), DropReason> {
        if let Some(place) = self.expectations.find(&e.key)
            && let Some(old) = self.expectations.at_mut(place)
        {
            if old.master == e.master {
                // Announced again: nothing new for the others.
                (old.direction, old.port, old.deadline) = (e.direction, e.port, e.deadline);
                return Ok(());
            }
            self.end_expectation(place, now); // its time is over
        }
        if let Some(place) = self.helpers.find(e.master).and_then(|h| h.expectation) {
            self.end_expectation(place, now);
        }
        if self.expectations.count() >= self.expect_share() {
            return Err(DropReason::ExpectFull);
        }
        let place = self.expectations.insert(e).ok_or(DropReason::ExpectFull)?;
        if let Some(helped) = self.helpers.find_mut(e.master) {
            helped.expectation = Some(place);
        }
        self.tell_expected(place, now)
    }

    /// Tells all other workers of a new expectation.
    ///
    /// # Errors
    /// There is no room in a ring, and the expectation has ended.
    pub(super) fn tell_expected(&mut self, place: u32, now: Nanos) -> Result<(), DropReason> {
        let Some(e) = self.expectations.at_mut(place) else { return Ok(()) };
        for worker in (0..self.steer.workers()).filter(|&w| w != self.steer.me()) {
            if !self.notes.tell(worker, Note::Expect(e.key)) {
                break;
            }
            e.told |= 1u128 << (worker & 127);
        }
        if e.told.count_ones() + 1 < u32::from(self.steer.workers()) {
            self.end_expectation(place, now);
            return Err(DropReason::SignpostFull);
        }
        self.stats.expectations.set(self.expectations.count() as u64);
        Ok(())
    }

    /// How many expectations this worker may have.
    pub(super) fn expect_share(&self) -> usize {
        self.policy.spec().conntrack.expect_max.div_ceil(usize::from(self.steer.workers()))
    }

    /// The expectation of this worker that a packet of `t` would fulfil.
    #[inline]
    pub(super) fn expectation_of(&self, t: &Tuple, now: Nanos) -> Option<u32> {
        let place = self.expectations.find(&key_of(t))?;
        let is = |e: &Expectation| e.waits() && e.deadline > now && (e.helper != HelperKind::Pptp || e.whole() == *t);
        self.expectations.at(place).is_some_and(is).then_some(place)
    }

    /// Uses an expectation up: it is not found any more. The other workers hear of it by [`Path::withdraw`], once they
    /// have the signposts of its connection. A call is found as long as it lasts.
    pub(super) fn fulfil(&mut self, place: u32) -> Option<Expectation> {
        let e = *self.expectations.at(place)?;
        if e.helper == HelperKind::Pptp {
            self.keep_call(e.master);
        } else {
            self.forget(place, &e);
        }
        Some(e)
    }

    /// Ends an expectation.
    pub(super) fn end_expectation(&mut self, place: u32, now: Nanos) {
        let Some(&e) = self.expectations.at(place) else { return };
        self.forget(place, &e);
        self.withdraw(place, now);
    }

    fn forget(&mut self, place: u32, e: &Expectation) {
        self.expectations.end(place);
        if let Some(helped) = self.helpers.find_mut(e.master) {
            for held in std::iter::once(&mut helped.expectation).chain(&mut helped.ways) {
                held.take_if(|held| *held == place);
            }
        }
        self.stats.expectations.set(self.expectations.count() as u64);
    }

    /// Tells the other workers that an expectation has ended; whom it cannot tell now, later.
    pub(super) fn withdraw(&mut self, place: u32, now: Nanos) {
        let Some(&Expectation { key, mut told, .. }) = self.expectations.at(place) else { return };
        // One that has followed it with the same key goes on where they have it.
        if self.expectations.find(&key).is_none() {
            for worker in 0..self.steer.workers() {
                let bit = 1u128 << (worker & 127);
                if told & bit != 0 && self.notes.tell(worker, Note::Unexpect(key)) {
                    told &= !bit;
                }
            }
            if told != 0
                && let Some(e) = self.expectations.at_mut(place)
            {
                (e.told, e.deadline) = (told, now + RETRY);
                return;
            }
        }
        self.expectations.release(place);
    }

    /// Ends expectations whose time is over, and tries again to tell of such that have ended.
    pub(super) fn tick_expectations(&mut self, now: Nanos) {
        let mut budget = LOOKS;
        while let Some(place) = self.expectations.due(now, &mut budget) {
            match self.expectations.at(place) {
                Some(e) if e.waits() && e.helper == HelperKind::Pptp => self.keep_call(e.master),
                Some(e) if e.waits() => self.end_expectation(place, now),
                _ => self.withdraw(place, now),
            }
        }
    }

    /// Another worker expects what has this key. Gives whom to tell that it cannot be: all who expect the same.
    pub(super) fn note_expect(&mut self, key: Tuple, from: WorkerId, now: Nanos) -> [Option<WorkerId>; 2] {
        if self.expectations.find(&key).is_some() {
            self.expectation_refused(&key, now);
            return [Some(from), None];
        }
        let other = self.announced.owner(&key).filter(|&w| w != from);
        match self.announced.place(key, from) {
            Ok(()) => [None, None],
            Err(_) => {
                if let Some(other) = other {
                    self.announced.remove(&key, other);
                }
                [Some(from), other]
            }
        }
    }

    /// What this worker expects cannot be: another expects the same, or cannot keep it and would not know its packets.
    pub(super) fn expectation_refused(&mut self, key: &Tuple, now: Nanos) {
        if let Some(place) = self.expectations.find(key) {
            match self.expectations.at(place) {
                // Two calls that errors cannot tell apart: no error finds either.
                Some(e) if e.helper == HelperKind::Pptp && e.key.sport != 0 => {
                    return self.end_expectation(place, now);
                }
                Some(e) if e.helper == HelperKind::Pptp => self.forget_call(e.master, now),
                _ => self.end_expectation(place, now),
            }
            self.stats.drop_packet(DropReason::ExpectClash);
        }
    }

    /// Makes a new connection the one that was expected: RELATED, with its master's mark, and translated as it follows
    /// from its master's translation. Says whether it is translated so; the rules have no say then.
    pub(super) fn follow_master(&self, u: &mut Unconfirmed, e: &Expectation) -> bool {
        let master = self.conntrack.conn(e.master);
        let own = self.conntrack.tuple(e.master, e.direction);
        u.expected = true;
        u.mark = master.mark;
        u.reply.ct_zone = own.ct_zone; // where the announcer is
        if !master.flags.has(Flags::TRANSLATED) {
            return false;
        }
        if e.helper == HelperKind::Pptp {
            let reply = self.call_tuple(e.master, e.direction);
            u.reply = reply.unwrap_or(u.reply);
            return reply.is_some();
        }
        u.reply = Tuple { src: own.src, sport: e.port, dst: own.dst, dport: u.original.sport, ..u.reply };
        true
    }

    /// The expectations of this worker's connections, within the capacity of `into`.
    pub fn list_expectations(&self, into: &mut Vec<ExpectView>, now: Nanos) {
        into.clear();
        let room = into.capacity();
        let waiting = self.expectations.live().filter(|e| e.deadline > now);
        into.extend(waiting.take(room).map(|e| ExpectView {
            timeout_s: u32::try_from(e.deadline.since(now).as_secs()).unwrap_or(u32::MAX),
            tuple: e.whole(),
            helper: e.helper,
            master: self.conntrack.tuple(e.master, Direction::Original),
            permanent: false,
        }));
    }
}
