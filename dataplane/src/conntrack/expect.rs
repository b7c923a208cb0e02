//! Expectations: connections that a helper has heard announced, and that are RELATED when they come.
//!
//! An expectation is found by a key: the tuple of the announced connection's first packet with source port 0, which
//! stands for any. It is used up by the first packet that it matches, ends with the connection that announced it, and at
//! its deadline.
//!
//! PPTP's calls have their GRE packets in both directions, which carry one call id each: the receiver's. An entry with helper
//! PPTP is therefore not only what is waited for, it says which id the packet's tuple lacks ([`Expectation::whole`]), and
//! is *kept* for that when it is no longer waited for, until the call is over.
//!
//! *Life-cycle*: made by the announcer's owner; other workers are told ([`crate::steer::Note::Expect`]). One that has
//! ended is not found any more, and keeps its place until all others were told so. *Threads*: that worker.
//! *Limits*: [`EXPECTATIONS`] on all workers together, shared out evenly, and `conntrack.expect_max` of them in use.
//! *Sources*: `linux/net/netfilter/nf_conntrack_expect.c`.

use super::ConnId;
use super::index::Index;
use super::tuple::{Direction, Tuple};
use crate::api::policy::HelperKind;
use crate::time::Nanos;

/// Room for expectations, all workers together.
pub const EXPECTATIONS: usize = 65_536;

/// No place.
const NONE: u32 = u32::MAX;

/// A connection that was announced.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// What is waited for, as its first packet will come; source port 0. Of what errors about a call lead to, the inverse
    /// of the packet that they quote; destination port 0.
    pub key: Tuple,
    /// The connection that announced it.
    pub master: ConnId,
    /// Which side of that did: the one that the new connection goes to.
    pub direction: Direction,
    /// Which helper understood it.
    pub helper: HelperKind,
    /// The announcer's own port, before translation; of a call's packets, the id that the key lacks.
    pub port: u16,
    /// When it is waited for no longer; of an ended one, when the others are told again.
    pub deadline: Nanos,
    /// Workers that know of it, one bit each.
    pub told: u128,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// Not waited for; tuples are looked up in it.
    Kept,
    /// Ended, but some worker does not know.
    Ended,
    Free {
        next: u32,
    },
}

impl Expectation {
    /// What `master` announced in `direction`.
    pub const fn new(
        key: Tuple,
        master: ConnId,
        direction: Direction,
        helper: HelperKind,
        port: u16,
        deadline: Nanos,
    ) -> Self {
        Self { key, master, direction, helper, port, deadline, told: 0, state: State::Live }
    }

    /// One that is kept from the beginning: packets with this key belong to `master`'s call.
    pub const fn kept(key: Tuple, master: ConnId, direction: Direction, id: u16) -> Self {
        let deadline = Nanos(u64::MAX);
        let e = Self::new(key, master, direction, HelperKind::Pptp, id, deadline);
        Self { state: State::Kept, ..e }
    }

    /// Whether it is waited for.
    pub fn waits(&self) -> bool {
        self.state == State::Live
    }

    /// Whether it can be found.
    pub fn is_known(&self) -> bool {
        matches!(self.state, State::Live | State::Kept)
    }

    /// What is waited for, or its key with the call id that it lacks.
    pub fn whole(&self) -> Tuple {
        match self.helper {
            HelperKind::Pptp if self.key.sport == 0 => Tuple { sport: self.port, ..self.key },
            HelperKind::Pptp => Tuple { dport: self.port, ..self.key },
            HelperKind::Ftp | HelperKind::Tftp => self.key,
        }
    }
}

/// The key by which packets of `t` find the expectation that they fulfil.
pub const fn key_of(t: &Tuple) -> Tuple {
    Tuple { sport: 0, ..*t }
}

/// The expectations of one worker.
#[derive(Debug)]
pub struct Expectations {
    index: Index,
    places: Vec<Expectation>,
    free: u32,
    live: usize,
    kept: usize,
    ended: usize,
    /// Where [`Expectations::due`] goes on.
    hand: usize,
    seed: ahash::RandomState,
}

impl Expectations {
    /// Room for `capacity` expectations.
    pub fn new(capacity: usize, seed: ahash::RandomState) -> Self {
        let places = Vec::with_capacity(capacity);
        Self { index: Index::new(capacity), places, free: NONE, live: 0, kept: 0, ended: 0, hand: 0, seed }
    }

    /// How many are waited for.
    pub fn count(&self) -> usize {
        self.live
    }

    /// The place of the expectation with this key.
    pub fn find(&self, key: &Tuple) -> Option<u32> {
        if self.live + self.kept == 0 {
            return None;
        }
        let is = |place: u32| self.places.get(place as usize).is_some_and(|e| e.key == *key && e.is_known());
        self.index.find(self.seed.hash_one(key), is)
    }

    /// The expectation in `place`; places come from [`Expectations::find`] and [`Expectations::insert`].
    pub fn at(&self, place: u32) -> Option<&Expectation> {
        self.places.get(place as usize)
    }

    /// The same, to write.
    pub fn at_mut(&mut self, place: u32) -> Option<&mut Expectation> {
        self.places.get_mut(place as usize)
    }

    /// Adds one whose key is not there. Gives its place; `None` where there is no room.
    pub fn insert(&mut self, e: Expectation) -> Option<u32> {
        let place = if self.free != NONE {
            self.free
        } else if self.places.len() < self.places.capacity() {
            u32::try_from(self.places.len()).ok()?
        } else {
            return None;
        };
        self.index.insert(self.seed.hash_one(e.key), place).ok()?;
        let waits = e.waits();
        match self.places.get_mut(place as usize) {
            Some(p) => {
                if let State::Free { next } = p.state {
                    self.free = next;
                }
                *p = e;
            }
            None => self.places.push(e), // within the capacity taken at start
        }
        *(if waits { &mut self.live } else { &mut self.kept }) += 1;
        Some(place)
    }

    /// One is not waited for any more, but kept.
    pub fn keep(&mut self, place: u32) {
        if let Some(e) = self.places.get_mut(place as usize).filter(|e| e.waits()) {
            (e.state, e.deadline) = (State::Kept, Nanos(u64::MAX));
            self.live -= 1;
            self.kept += 1;
        }
    }

    /// One that is kept is waited for again, until `deadline`.
    pub fn renew(&mut self, place: u32, deadline: Nanos) {
        let Some(e) = self.places.get_mut(place as usize).filter(|e| e.is_known()) else { return };
        if !e.waits() {
            self.kept -= 1;
            self.live += 1;
        }
        (e.state, e.deadline) = (State::Live, deadline);
    }

    /// Ends one: it is found no more, and its place is kept.
    pub fn end(&mut self, place: u32) {
        let Some(e) = self.places.get_mut(place as usize).filter(|e| e.is_known()) else { return };
        *(if e.waits() { &mut self.live } else { &mut self.kept }) -= 1;
        e.state = State::Ended;
        let key = e.key;
        self.index.remove(self.seed.hash_one(key), place);
        self.ended += 1;
    }

    /// Gives the place of an ended one back.
    pub fn release(&mut self, place: u32) {
        let Some(e) = self.places.get_mut(place as usize).filter(|e| e.state == State::Ended) else { return };
        e.state = State::Free { next: self.free };
        self.free = place;
        self.ended -= 1;
    }

    /// The next place in turn that has something due; `budget` bounds the places looked at and is counted down.
    pub fn due(&mut self, now: Nanos, budget: &mut u32) -> Option<u32> {
        if self.live + self.ended == 0 {
            return None;
        }
        while *budget > 0 {
            *budget -= 1;
            self.hand = if self.hand + 1 < self.places.len() { self.hand + 1 } else { 0 };
            let due = |e: &Expectation| matches!(e.state, State::Live | State::Ended) && e.deadline <= now;
            if self.places.get(self.hand).is_some_and(due) {
                return u32::try_from(self.hand).ok();
            }
        }
        None
    }

    /// Those that are waited for.
    pub fn live(&self) -> impl Iterator<Item = &Expectation> {
        self.places.iter().filter(|e| e.waits())
    }

    /// Those that can be found: other workers know of them.
    pub fn known(&self) -> impl Iterator<Item = &Expectation> {
        self.places.iter().filter(|e| e.is_known())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn expectation(dport: u16, deadline: u64) -> Expectation {
        let key = Tuple {
            src: Ipv4Addr::new(203, 0, 113, 5).into(),
            dst: Ipv4Addr::new(10, 0, 0, 2).into(),
            proto: 6,
            sport: 0,
            dport,
            ct_zone: 0,
        };
        Expectation::new(key, ConnId(1), Direction::Original, HelperKind::Ftp, dport, Nanos::from_secs(deadline))
    }

    fn table(capacity: usize) -> Expectations {
        Expectations::new(capacity, ahash::RandomState::with_seeds(1, 2, 3, 4))
    }

    #[test]
    fn any_source_port_finds_it_until_it_ends() {
        let mut t = table(2);
        let e = expectation(5001, 300);
        let place = t.insert(e).expect("room");
        for sport in [0, 1, 20, u16::MAX] {
            assert_eq!(t.find(&key_of(&Tuple { sport, ..e.key })), Some(place));
        }
        assert_eq!(t.find(&Tuple { dport: 5002, ..e.key }), None);
        assert_eq!(t.find(&Tuple { ct_zone: 1, ..e.key }), None);
        t.end(place);
        assert_eq!((t.find(&e.key), t.count()), (None, 0));
    }

    #[test]
    fn a_place_is_taken_until_it_is_released() {
        let mut t = table(2);
        let first = t.insert(expectation(1, 300)).expect("room");
        t.insert(expectation(2, 300)).expect("room");
        assert_eq!(t.insert(expectation(3, 300)), None);
        t.end(first);
        assert_eq!(t.insert(expectation(3, 300)), None);
        t.release(first);
        assert_eq!(t.insert(expectation(3, 300)), Some(first));
        t.release(first);
        assert_eq!((t.count(), t.live().count()), (2, 2), "a live one is not released");
    }

    #[test]
    fn what_is_kept_is_found_and_never_due() {
        let mut t = table(2);
        let mut e = expectation(5001, 300);
        (e.helper, e.port, e.key.proto) = (HelperKind::Pptp, 0x1111, 47);
        let place = t.insert(e).expect("room");
        assert_eq!(e.whole(), Tuple { sport: 0x1111, ..e.key });
        t.keep(place);
        t.keep(place);
        assert_eq!((t.find(&e.key), t.count(), t.live().count(), t.known().count()), (Some(place), 0, 0, 1));
        let mut budget = 10;
        assert_eq!(t.due(Nanos(u64::MAX), &mut budget), None);
        t.renew(place, Nanos::from_secs(7));
        t.renew(place, Nanos::from_secs(8));
        assert_eq!(
            (t.count(), t.due(Nanos::from_secs(7), &mut 10), t.due(Nanos::from_secs(8), &mut 10)),
            (1, None, Some(place))
        );
        t.keep(place);
        t.end(place);
        assert_eq!((t.find(&e.key), t.count()), (None, 0));
        t.release(place);
        let error = Expectation::kept(Tuple { sport: 7, dport: 0, ..e.key }, ConnId(1), Direction::Reply, 9);
        assert_eq!((t.insert(error), t.count()), (Some(place), 0));
        assert_eq!(error.whole(), Tuple { sport: 7, dport: 9, ..e.key });
    }

    #[test]
    fn what_is_due_is_found_in_bounded_looks() {
        let mut t = table(100);
        for n in 1..=100 {
            t.insert(expectation(n, u64::from(n))).expect("room");
        }
        let mut seen = 0;
        for _ in 0..100 {
            let mut budget = 10;
            while let Some(place) = t.due(Nanos::from_secs(50), &mut budget) {
                assert!(t.at(place).is_some_and(|e| e.deadline <= Nanos::from_secs(50)));
                t.end(place);
                t.release(place);
                seen += 1;
            }
            assert_eq!(budget, 0);
        }
        assert_eq!((seen, t.count()), (50, 50));
    }
}
