//! The timer wheel: which connections may have expired.
//!
//! Lazy: a packet only stores a new deadline in its connection. The wheel visits the connection at the deadline it knew
//! and files it again where the deadline has moved on. Only a deadline that comes closer moves it at once.
//!
//! *Threads*: one worker. *Limits*: a visit to the wheel looks at a bounded number of connections; deadlines beyond the
//! horizon (8.7 minutes) are filed at the horizon. *Sources*: Varghese and Lauck, "Hashed and hierarchical timing
//! wheels" (1987).

use super::ConnId;
use crate::time::Nanos;

/// Length of a slot.
pub const TICK: Nanos = Nanos::from_millis(128);
/// Number of slots.
const SLOTS: u64 = HEADS as u64;
const HEADS: usize = 4096;
/// No connection.
const NONE: u32 = u32::MAX;

/// A connection's place in the wheel, in ten bytes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(Rust, packed(2))]
pub struct Link {
    next: u32,
    prev: u32,
    /// 0 where not filed, else slot + 1.
    slot: u16,
}

impl Link {
    /// The link of a free entry: in no slot, and the list of free entries goes on at `next`.
    pub const fn free(next: u32) -> Self {
        Self { next, prev: NONE, slot: 0 }
    }

    /// The connection behind this one in its slot.
    #[inline]
    pub fn next(&self) -> Option<ConnId> {
        let next = self.next;
        (self.slot != 0 && next != NONE).then_some(ConnId(next))
    }

    /// Where the list of free entries goes on.
    pub const fn next_free(&self) -> u32 {
        self.next
    }
}

/// Whatever holds the links and deadlines of connections.
pub trait Timers {
    /// The link of `id`.
    fn link(&mut self, id: ConnId) -> &mut Link;
    /// The deadline of `id`.
    fn deadline(&self, id: ConnId) -> Nanos;
}

/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    heads: Box<[u32]>,
    /// The tick whose slot is being emptied.
    cursor: u64,
}

impl Wheel {
    /// An empty wheel that begins at `now`.
    pub fn new(now: Nanos) -> Self {
        Self { heads: vec![NONE; HEADS].into_boxed_slice(), cursor: now.0 / TICK.0 }
    }

    /// Files `id` by its deadline; where it is filed for a later slot already, moves it.
    pub fn file(&mut self, id: ConnId, timers: &mut impl Timers) {
        let due = self.due(timers.deadline(id));
        let slot = usize::try_from(due % SLOTS).unwrap_or(0);
        let filed = timers.link(id).slot;
        if filed != 0 {
            let distance = |s: u64| (s + SLOTS - self.cursor % SLOTS) % SLOTS;
            if distance(u64::from(filed) - 1) <= distance(slot as u64) {
                return;
            }
            self.unfile(id, timers);
        }
        let head = self.heads[slot];
        // Invariant: slot is below SLOTS = 4096.
        *timers.link(id) = Link { next: head, prev: NONE, slot: u16::try_from(slot + 1).unwrap_or(0) };
        if head != NONE {
            timers.link(ConnId(head)).prev = id.0;
        }
        self.heads[slot] = id.0;
    }

    /// Takes `id` out.
    pub fn unfile(&mut self, id: ConnId, timers: &mut impl Timers) {
        let Link { next, prev, slot } = std::mem::take(timers.link(id));
        if slot == 0 {
            return;
        }
        if prev == NONE {
            self.heads[usize::from(slot) - 1] = next;
        } else {
            timers.link(ConnId(prev)).next = next;
        }
        if next != NONE {
            timers.link(ConnId(next)).prev = prev;
        }
    }

    /// The next connection whose deadline is not after `now`, taken out of the wheel; those on the way whose deadline
    /// has moved are filed again. Looks at `budget` connections at most and counts it down.
    pub fn expired(&mut self, now: Nanos, budget: &mut u32, timers: &mut impl Timers) -> Option<ConnId> {
        let current = now.0 / TICK.0;
        loop {
            let head = self.heads[usize::try_from(self.cursor % SLOTS).unwrap_or(0)];
            if head == NONE {
                if self.cursor >= current {
                    return None;
                }
                // An idle wheel catches up with one slot after the other: at most SLOTS steps.
                self.cursor = if current - self.cursor > SLOTS { current - SLOTS } else { self.cursor + 1 };
                continue;
            }
            if *budget == 0 || self.cursor > current {
                return None;
            }
            *budget -= 1;
            let id = ConnId(head);
            let deadline = timers.deadline(id);
            if deadline <= now {
                self.unfile(id, timers);
                return Some(id);
            }
            self.unfile(id, timers);
            self.file(id, timers);
        }
    }

    /// The connection that [`Wheel::expired`] looks at next, where that is known already.
    #[inline]
    pub fn next(&self) -> Option<ConnId> {
        let head = *self.heads.get(usize::try_from(self.cursor % SLOTS).unwrap_or(0))?;
        (head != NONE).then_some(ConnId(head))
    }

    /// The tick at whose end `deadline` has passed, not beyond the horizon.
    fn due(&self, deadline: Nanos) -> u64 {
        (deadline.0.div_ceil(TICK.0)).clamp(self.cursor, self.cursor + SLOTS - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Fake(Vec<(Link, Nanos)>);

    impl Timers for Fake {
        fn link(&mut self, id: ConnId) -> &mut Link {
            &mut self.0[id.0 as usize].0
        }
        fn deadline(&self, id: ConnId) -> Nanos {
            self.0[id.0 as usize].1
        }
    }

    fn drain(wheel: &mut Wheel, fake: &mut Fake, now: Nanos) -> Vec<u32> {
        let mut out = Vec::new();
        let mut budget = u32::MAX;
        while let Some(id) = wheel.expired(now, &mut budget, fake) {
            out.push(id.0);
        }
        out.sort_unstable();
        out
    }

    proptest! {
        #[test]
        fn each_expires_once_within_a_tick_of_its_deadline(
            deadlines in proptest::collection::vec(0u64..3_000_000, 1..60),
            moves in proptest::collection::vec((0usize..60, 0u64..3_000_000), 0..60),
            step in 1u64..200_000,
        ) {
            let mut fake = Fake(deadlines.iter().map(|&ms| (Link::default(), Nanos::from_millis(ms))).collect());
            let mut wheel = Wheel::new(Nanos(0));
            for n in 0..fake.0.len() {
                wheel.file(ConnId(n as u32), &mut fake);
            }
            for (n, ms) in moves {
                if let Some(e) = fake.0.get_mut(n) {
                    e.1 = Nanos::from_millis(ms);
                    wheel.file(ConnId(n as u32), &mut fake);
                }
            }
            let mut seen = vec![false; fake.0.len()];
            let mut now = 0;
            while now < 3_200_000 {
                now += step;
                for id in drain(&mut wheel, &mut fake, Nanos::from_millis(now)) {
                    prop_assert!(!std::mem::replace(&mut seen[id as usize], true));
                    prop_assert!(fake.0[id as usize].1 <= Nanos::from_millis(now));
                }
                for (n, e) in fake.0.iter().enumerate() {
                    prop_assert!(seen[n] || e.1 + TICK + TICK > Nanos::from_millis(now), "{n} is late");
                }
            }
        }
    }

    #[test]
    fn work_per_visit_is_bounded() {
        let mut fake = Fake(vec![(Link::default(), Nanos::from_millis(1)); 100]);
        let mut wheel = Wheel::new(Nanos(0));
        for n in 0..100 {
            wheel.file(ConnId(n), &mut fake);
        }
        let mut budget = 10;
        let mut seen = 0;
        while wheel.expired(Nanos::SECOND, &mut budget, &mut fake).is_some() {
            seen += 1;
        }
        assert_eq!(seen, 10);
    }
}
