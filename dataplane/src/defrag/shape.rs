//! What is there of one datagram: where its fragments lie, and how long it is.
//!
//! Fragments lie in a sorted array, so that a fragment's place is found by halving and the work for it does not depend on
//! what came before. Which overlaps are tolerated is Linux': a fragment within one *run* is there already, any other
//! overlap is refused. A run is what grew by fragments that came in their order.
//!
//! *Threads*: one worker. *Limits*: [`TRAIN`] fragments.
//! *Sources*: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722 section 4 (erratum 3089 for duplicates);
//! `linux/net/ipv4/inet_fragment.c` (`inet_frag_queue_insert`).

use arrayvec::ArrayVec;

use super::TRAIN;
use super::list::NONE;

/// One fragment's place in its datagram's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) start: u32,
    /// First byte behind it.
    pub(super) end: u32,
    /// Whether more follow.
    pub(super) more: bool,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
    /// It came behind the one before it when that was the last: one run with it.
    joined: bool,
    /// Where its frame waits, or [`NONE`].
    frame: u32,
}

/// How a fragment goes with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is new, and belongs at this place.
    New(usize),
    /// Its bytes are there.
    Duplicate,
    /// Some of its bytes are there.
    Overlap,
    /// It is new, but there are [`TRAIN`] already.
    TooMany,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    spans: ArrayVec<Span, TRAIN>,
    /// Payload bytes there are.
    bytes: u32,
    /// Payload bytes in all, once the last fragment has come.
    total: Option<u32>,
    /// As far as an empty fragment has said that there is more.
    said: u32,
}

impl Shape {
    /// Of a datagram of which nothing has come.
    pub(super) const EMPTY: Self = Self { spans: ArrayVec::new_const(), bytes: 0, total: None, said: 0 };

    /// First byte behind all that is there, or is said to be.
    fn end(&self) -> u32 {
        self.spans.last().map_or(0, |s| s.end).max(self.said)
    }

    /// Remembers what a fragment that agrees but adds nothing says of the datagram's length.
    pub(super) fn note(&mut self, e: Extent) {
        if e.more {
            self.said = self.said.max(e.end);
        } else {
            self.total = Some(e.end);
        }
    }

    /// Whether a fragment agrees with what is known of the datagram's length.
    pub(super) fn agrees(&self, e: Extent) -> bool {
        let beyond = self.total.is_some_and(|t| e.end > t || !e.more && e.end != t);
        let before_others = !e.more && self.end() > e.end;
        !beyond && !before_others
    }

    /// How a fragment that is not empty goes with the others.
    pub(super) fn fit(&self, e: Extent) -> Fit {
        // Those before this place end before the fragment begins.
        let at = self.spans.partition_point(|s| s.end <= e.start);
        match self.spans.get(at) {
            Some(first) if first.start < e.end => {
                let within = e.start >= first.start && e.end <= self.run_end(at);
                if within { Fit::Duplicate } else { Fit::Overlap }
            }
            _ if self.spans.is_full() => Fit::TooMany,
            _ => Fit::New(at),
        }
    }

    /// Where the run ends that the span at `at` is part of.
    fn run_end(&self, at: usize) -> u32 {
        let mut end = self.spans.get(at).map_or(0, |s| s.end);
        for s in self.spans.iter().skip(at + 1).take_while(|s| s.joined) {
            end = s.end;
        }
        end
    }

    /// Whether the datagram is whole with a new fragment that agrees with its length.
    pub(super) fn is_whole_with(&self, e: Extent) -> bool {
        let total = if e.more { self.total } else { Some(e.end) };
        total == Some(self.bytes + (e.end - e.start))
    }

    /// Files a new fragment at its place; `frame` is where it waits, or [`NONE`].
    pub(super) fn place(&mut self, at: usize, e: Extent, frame: u32) {
        let joined = at == self.spans.len() && self.spans.last().is_some_and(|s| s.end == e.start);
        let span = Span { start: e.start, end: e.end, joined, frame };
        // Invariant: `fit` has found room, and the place within what is there.
        if at > self.spans.len() || self.spans.try_insert(at, span).is_err() {
            debug_assert!(false, "a fragment is placed where it fits");
            return;
        }
        self.bytes += e.end - e.start;
        if !e.more {
            self.total = Some(e.end);
        }
    }

    /// Where the fragments' frames wait, in the order of their offsets. Each is given once.
    pub(super) fn take_frames(&mut self) -> impl Iterator<Item = u32> {
        self.spans.iter_mut().map(|s| std::mem::replace(&mut s.frame, NONE)).filter(|&f| f != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u32, end: u32) -> Extent {
        Extent { start, end, more: true }
    }

    fn shape(pieces: &[(u32, u32)]) -> Shape {
        let mut s = Shape::EMPTY;
        for &(start, end) in pieces {
            match s.fit(extent(start, end)) {
                Fit::New(at) => s.place(at, extent(start, end), 0),
                other => panic!("{start}..{end}: {other:?}"),
            }
        }
        s
    }

    #[test]
    fn what_lies_within_a_run_is_a_duplicate() {
        let s = shape(&[(0, 16), (16, 32), (32, 48)]);
        for (start, end) in [(0, 48), (0, 16), (8, 24), (40, 48), (16, 48)] {
            assert_eq!(s.fit(extent(start, end)), Fit::Duplicate, "{start}..{end}");
        }
        for (start, end) in [(40, 56), (0, 56)] {
            assert_eq!(s.fit(extent(start, end)), Fit::Overlap, "{start}..{end}");
        }
        assert_eq!(s.fit(extent(48, 56)), Fit::New(3));
    }

    /// Neighbours that came in another order are two runs to Linux.
    #[test]
    fn what_spans_two_runs_is_an_overlap() {
        let s = shape(&[(16, 32), (0, 16)]);
        assert_eq!(s.fit(extent(0, 16)), Fit::Duplicate);
        assert_eq!(s.fit(extent(16, 24)), Fit::Duplicate);
        assert_eq!(s.fit(extent(8, 24)), Fit::Overlap);
        assert_eq!(s.fit(extent(0, 32)), Fit::Overlap);
    }

    #[test]
    fn what_touches_nothing_is_new_and_knows_its_place() {
        let s = shape(&[(16, 32), (64, 72)]);
        for (start, end, at) in [(0, 16, 0), (32, 64, 1), (40, 48, 1), (72, 80, 2)] {
            assert_eq!(s.fit(extent(start, end)), Fit::New(at), "{start}..{end}");
        }
        assert_eq!(s.fit(extent(8, 24)), Fit::Overlap);
        assert_eq!(s.fit(extent(24, 80)), Fit::Overlap);
    }

    #[test]
    fn the_last_fragment_that_there_is_room_for_is_taken_and_no_more() {
        let pieces: Vec<_> = (0..TRAIN as u32).map(|n| (n * 16, n * 16 + 8)).collect();
        let s = shape(&pieces[..TRAIN - 1]);
        assert_eq!(s.fit(extent(8, 16)), Fit::New(1));
        let s = shape(&pieces);
        assert_eq!(s.fit(extent(8, 16)), Fit::TooMany);
        assert_eq!(s.fit(extent(0, 8)), Fit::Duplicate);
    }
}
