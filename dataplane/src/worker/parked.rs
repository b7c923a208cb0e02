//! Packets that wait for another worker to say that a new connection's reply tuple is free: see [`crate::path::reserve`].
//!
//! The first is judged, and its way known; those behind it are judged when it has left, in their order. A datagram in
//! fragments waits as a whole, unless it is followed fragment by fragment.
//!
//! *Life-cycle*: from [`Outcome::Wait`](crate::path::Outcome) until the reservation is settled, a tenth of a second at most. *Threads*: the
//! worker's. *Limits*: [`PARKED`] frames; a packet that finds no room is dropped (`signpost_wait`), and with a first one its
//! connection.

use super::Worker;
use crate::defrag::{Piece, TRAIN};
use crate::drop::DropReason;
use crate::io::{Buf, Io};
use crate::packet::Packet;
use crate::path::Plan;
use crate::path::reserve::{RESERVATIONS, Settled, Slot};
use crate::time::Nanos;

/// Frames of a worker that may wait: one for each reservation, and the longest datagrams besides.
pub const PARKED: usize = RESERVATIONS + 4 * TRAIN;

const NONE: u16 = u16::MAX;
const _: () = assert!(PARKED < NONE as usize);

#[derive(Debug)]
struct Frame<B> {
    buf: B,
    packet: Packet,
    /// So many further frames of the same datagram come behind it.
    follow: u8,
}

#[derive(Debug)]
struct Place<B> {
    frame: Option<Frame<B>>,
    next: u16,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u16,
    last: u16,
}

const EMPTY: List = List { first: NONE, last: NONE };

/// The frames of one worker that wait, by reservation and in order.
#[derive(Debug)]
pub(super) struct Parked<B> {
    places: Vec<Place<B>>,
    free: u16,
    count: usize,
    /// Lists that have begun.
    begun: usize,
    lists: Vec<List>,
}

impl<B: Buf> Parked<B> {
    /// Room for all that may wait; none where the worker is `alone`, and has nobody to ask.
    pub(super) fn new(alone: bool) -> Self {
        let (places, lists) = if alone { (0, 0) } else { (PARKED, RESERVATIONS) };
        let next = |n: usize| u16::try_from(n + 1).ok().filter(|&n| usize::from(n) < places).unwrap_or(NONE);
        Self {
            places: (0..places).map(|n| Place { frame: None, next: next(n) }).collect(),
            free: if alone { NONE } else { 0 },
            count: 0,
            begun: 0,
            lists: vec![EMPTY; lists],
        }
    }

    /// Whether `frames` more may wait for reservation `slot`. Those behind the first packet leave a place for each that may
    /// become another reservation's first.
    fn has_room(&self, slot: Slot, frames: usize) -> bool {
        let kept = if self.has_begun(slot) { self.lists.len() - self.begun } else { 0 };
        self.places.len() - self.count >= frames + kept
    }

    /// Whether anything waits for reservation `slot`.
    fn has_begun(&self, slot: Slot) -> bool {
        self.lists.get(usize::from(slot)).is_some_and(|list| list.first != NONE)
    }

    /// Adds a frame at the end of a list; `false` where there is no room, and the frame is freed.
    #[must_use]
    fn push(&mut self, slot: Slot, frame: Frame<B>) -> bool {
        let at = self.free;
        let Some(list) = self.lists.get_mut(usize::from(slot)) else { return false };
        let Some(place) = self.places.get_mut(usize::from(at)) else { return false };
        self.free = std::mem::replace(&mut place.next, NONE);
        place.frame = Some(frame);
        self.count += 1;
        let last = std::mem::replace(&mut list.last, at);
        match self.places.get_mut(usize::from(last)) {
            Some(last) => last.next = at,
            None => {
                list.first = at;
                self.begun += 1;
            }
        }
        true
    }

    /// Takes a list as it is: who comes to wait from now on begins another.
    fn take(&mut self, slot: Slot) -> u16 {
        let first = self.lists.get_mut(usize::from(slot)).map_or(NONE, |list| std::mem::replace(list, EMPTY).first);
        self.begun -= usize::from(first != NONE);
        first
    }

    /// The next frame of a list that was taken.
    fn pop(&mut self, at: &mut u16) -> Option<Frame<B>> {
        let place = self.places.get_mut(usize::from(*at))?;
        let frame = place.frame.take()?;
        let next = std::mem::replace(&mut place.next, self.free);
        self.free = std::mem::replace(at, next);
        self.count -= 1;
        Some(frame)
    }
}

impl<I: Io> Worker<I> {
    /// Reads what other workers have told, and sees to the packets that have waited for it. Must run where
    /// [`Path::read_notes`](crate::path::Path::read_notes) must. Says whether any has.
    pub(super) fn read_notes(&mut self, now: Nanos) -> bool {
        self.path.read_notes(now);
        self.release_parked(now)
    }

    /// Has a packet wait.
    pub(super) fn park(&mut self, buf: I::Buf, packet: Packet, slot: Slot, now: Nanos) {
        let fits = self.parked.has_room(slot, 1);
        if !fits || !self.parked.push(slot, Frame { buf, packet, follow: 0 }) {
            self.path.stats.drop_packet(DropReason::SignpostWait);
            self.forsake(slot, now);
        }
    }

    /// A packet finds no room: where it is a connection's first, that is lost with it.
    fn forsake(&mut self, slot: Slot, now: Nanos) {
        if !self.parked.has_begun(slot) {
            self.path.forsake(slot, now);
        }
    }

    /// Has the datagram in the train wait, `packet` being the whole.
    pub(super) fn park_train(&mut self, packet: Packet, slot: Slot, now: Nanos) {
        if !self.parked.has_room(slot, self.train.len()) {
            self.lose_train(DropReason::SignpostWait);
            self.forsake(slot, now);
            return;
        }
        // Invariant: a train has at most TRAIN + 1 pieces.
        let mut follow = u8::try_from(self.train.len().saturating_sub(1)).unwrap_or(0);
        let mut whole = Some(packet);
        for Piece { buf, packet } in self.train.drain(..) {
            let packet = whole.take().unwrap_or(packet);
            let pushed = self.parked.push(slot, Frame { buf, packet, follow });
            debug_assert!(pushed, "there is room");
            follow = 0;
        }
    }

    /// Sends on, judges or drops what has waited for reservations that are settled.
    #[inline]
    pub(super) fn release_parked(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while let Some((slot, settled)) = self.path.next_settled() {
            any = true;
            self.release_list(slot, settled, now);
        }
        any
    }

    fn release_list(&mut self, slot: Slot, settled: Settled, now: Nanos) {
        debug_assert!(self.train.is_empty(), "nothing is in hand where notes are read");
        let mut at = self.parked.take(slot);
        let (mut plan, lost) = match settled {
            Settled::Sent(plan) => (Some(plan), None),
            Settled::Made(nth) => {
                self.made(nth, None);
                (None, None)
            }
            Settled::Lost(reason) => (None, Some(reason)),
            Settled::Refused(nth, reason) => {
                self.made(nth, Some(reason));
                (None, None)
            }
        };
        while let Some(Frame { buf, mut packet, follow }) = self.parked.pop(&mut at) {
            if let Some(reason) = lost {
                self.path.stats.drop_packet(reason);
                continue;
            }
            if follow == 0 {
                match plan.take() {
                    Some(plan) => self.forward_judged(buf, &packet, &plan, now),
                    None => self.judge(buf, &mut packet, true, now),
                }
                continue;
            }
            self.train.push(Piece { buf, packet });
            for _ in 0..follow {
                if let Some(Frame { buf, packet, .. }) = self.parked.pop(&mut at) {
                    self.train.push(Piece { buf, packet });
                }
            }
            match plan.take() {
                Some(plan) => self.forward_judged_train(&packet, &plan, now),
                None => self.judge_train(packet, true, now),
            }
        }
    }

    /// Sends a packet as its plan says, past its connection's helper.
    #[inline]
    pub(super) fn forward_judged(&mut self, buf: I::Buf, packet: &Packet, plan: &Plan, now: Nanos) {
        if plan.helped {
            self.forward_helped(buf, packet, *plan, now);
        } else {
            self.forward(buf, packet, plan, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::PortIdx;
    use crate::io::mem::{MemBuf, Pool};
    use crate::packet::L4;
    use crate::parse::{self, Parsed, Receiver};

    fn frame(pool: &Pool, mark: u8) -> Frame<MemBuf> {
        let mut bytes = [0; 14 + 20];
        bytes[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 255]);
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum: u32 = bytes[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("small");
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        let receiver = Receiver { port: PortIdx::twin(0), mac: [0; 6], vlan: None, verify: false };
        let Ok(Parsed::Ip(packet)) = parse::frame(&bytes, &receiver, crate::io::RxChecksum::Unknown) else {
            panic!("a packet")
        };
        assert_eq!(packet.kind, L4::Other);
        let buf = pool.frame(&bytes).expect("a buffer is free");
        Frame { buf, packet: Packet { ttl: mark, ..packet }, follow: 0 }
    }

    fn drain(parked: &mut Parked<MemBuf>, slot: Slot) -> Vec<u8> {
        let mut at = parked.take(slot);
        std::iter::from_fn(|| parked.pop(&mut at)).map(|f| f.packet.ttl).collect()
    }

    #[test]
    fn frames_wait_in_the_order_of_their_list_and_leave_their_places() {
        let pool = Pool::new(PARKED + 1);
        let mut parked = Parked::new(false);
        for round in 0..3 {
            for n in 0..100 {
                assert!(parked.push(Slot::from(n % 3), frame(&pool, n)));
            }
            for slot in [1, 0, 2] {
                let expected: Vec<_> = (0..100).filter(|n| u16::from(n % 3) == slot).collect();
                assert_eq!(drain(&mut parked, slot), expected, "round {round}");
            }
            assert_eq!((parked.count, pool.live()), (0, 0));
        }
    }

    #[test]
    fn what_comes_while_a_list_is_worked_off_begins_another() {
        let pool = Pool::new(4);
        let mut parked = Parked::new(false);
        assert!(parked.push(7, frame(&pool, 1)) && parked.push(7, frame(&pool, 2)));
        let mut at = parked.take(7);
        assert_eq!(parked.pop(&mut at).map(|f| f.packet.ttl), Some(1));
        assert!(parked.push(7, frame(&pool, 3)));
        assert_eq!(parked.pop(&mut at).map(|f| f.packet.ttl), Some(2));
        assert!(parked.pop(&mut at).is_none());
        assert_eq!(drain(&mut parked, 7), [3]);
    }

    /// What comes behind one first packet leaves a place for each other's.
    #[test]
    fn followers_leave_room_for_those_that_are_first() {
        let pool = Pool::new(PARKED + 1);
        let mut parked = Parked::new(false);
        let mut followers = 0;
        while parked.has_room(0, 1) {
            assert!(parked.push(0, frame(&pool, 1)));
            followers += 1;
        }
        assert_eq!(followers, PARKED - RESERVATIONS + 1);
        for slot in 1..u16::try_from(RESERVATIONS).expect("few") {
            assert!(parked.has_room(slot, 1) && parked.push(slot, frame(&pool, 1)));
        }
        assert!(!parked.has_room(1, 1) && !parked.has_room(0, 1));
    }

    #[test]
    fn a_full_lot_takes_no_more_and_one_alone_has_none() {
        let pool = Pool::new(PARKED + 1);
        let mut parked = Parked::new(false);
        let kept = (0..=PARKED).filter(|_| parked.push(0, frame(&pool, 1))).count();
        assert_eq!((kept, parked.has_room(1, 1)), (PARKED, false));
        assert_eq!(drain(&mut parked, 0).len(), PARKED);
        assert!(parked.has_room(0, PARKED) && !parked.has_room(0, PARKED + 1));
        assert!(!Parked::new(true).push(0, frame(&pool, 1)));
    }
}
