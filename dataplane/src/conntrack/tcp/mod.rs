//! TCP as a middlebox sees it: states, windows, resets, and what to make of segments that do not fit.
//!
//! A segment meets three judges. The *state machine* ([`transition`]) knows its flags, direction and the connection's
//! state. The *windows* know its numbers. *Resets* are held against what their sender was told of last, because one that
//! its receiver will not heed must not close the connection here.
//!
//! # Windows
//!
//! A middlebox sees segments that may be lost behind it, and misses those that were lost before it. What it knows for
//! certain of a side S, with R the other one, are bounds, each of which only grows:
//!
//! ```text
//! end(S)     = max(seq + len)                     over S's segments
//! max_win(S) = max(win + (sack - ack))            over S's segments
//! max_end(S) = max(sack + max(win, 1))            over R's segments
//! ```
//!
//! `win` is scaled (not in a SYN) if both SYNs carried the option; `sack` is the highest number acknowledged, selectively
//! or not. A SYN and a FIN count one in `len`. A segment of S can then be genuine only if
//!
//! ```text
//! I    seq       <= max_end(S)                        R has room for its first byte
//! II   seq + len >= end(S) - max_win(R)               it is no older than R's window is large
//! III  sack      <= end(R)                            R has sent what it acknowledges
//! IV   sack      >= end(R) - max(max_win(S), 66000)   nor is the acknowledgement older than S's window
//! ```
//!
//! II holds of itself while R is unheard. These are van Rooij's conditions, but for I, which Linux asks of the first byte
//! only, so that a window probe passes; and for IV's constant, which keeps small windows from refusing acknowledgements
//! that crossed.
//!
//! A segment for which all hold counts: it moves the bounds, the state and the timeout. Where only II or IV fail it is
//! old, and where I fails by less than another window its sender is careless: both pass, for the receiver knows better
//! what to do with them, and change nothing (but careless data moves `end`, as it may be acknowledged). Else it is
//! INVALID. `be_liberal` has all of these count without moving a bound, and so has each side of a connection that was
//! picked up in mid-stream, whose scale is unknown.
//!
//! # Being out of step
//!
//! A SYN on an open connection may be an attack or the sign that its sender has started anew: it passes and is
//! remembered. Its receiver knows. Either it answers with a challenge ACK (RFC 5961), which changes nothing; or with a
//! SYN/ACK that acknowledges the remembered SYN, which then is the connection that both sides have.
//!
//! *Life-cycle*: part of a connection. *Threads*: its owner's worker. *Limits*: 52 bytes; constant time but for the
//! options, which `parse` has bounded.
//! *Sources*: RFC 9293, RFC 5961, RFC 7323, RFC 2018; Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter",
//! 2001; `linux/net/netfilter/nf_conntrack_proto_tcp.c`, whose verdicts these are.

mod memo;
mod resync;
mod seq;
mod state;
mod window;

pub use self::seq::Seq;
pub use self::state::{Kind, TcpState, Transition, kind, transition, valid_flags};

use self::memo::Memo;
use self::resync::Reset;
use self::window::{Admission, Edges, Numbers, Passage, Side, Traits};
use super::l4::{BODY_WORDS, Context, L4Body, Step};
use super::timeouts::Timeouts;
use super::tuple::Direction;
use crate::api::policy::ConntrackSpec;
use crate::drop::DropReason;
use crate::packet::TcpSegment;
use crate::time::Nanos;

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;
/// URG flag.
pub const URG: u8 = 0x20;

/// A FIN or reset outside the windows shortens only lives that are longer than this.
/// `linux/net/netfilter/nf_conntrack_proto_tcp.c`, `nf_tcp_handle_invalid`: 120 s.
const WORTH_SHORTENING: Nanos = Nanos::from_secs(120);

/// What is known of a TCP connection.
///
/// This is how it is worked with; between two segments it is kept in two parts, see [`TcpTrack::split`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpTrack {
    /// By direction.
    edges: [Edges; 2],
    last_seq: Seq,
    last_ack: Seq,
    last_len: u16,
    /// As in the header.
    last_win: u16,
    /// By direction.
    traits: [Traits; 2],
    last: Memo,
    /// How often the last segment was repeated.
    repeats: u8,
    state: TcpState,
}

const _: () = assert!(size_of::<TcpTrack>() <= 52);

/// What a connection keeps of its TCP state beside what every packet needs; its numbers are in an [`L4Body`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpHead {
    last: Memo,
    repeats: u8,
    state: TcpState,
}

impl TcpHead {
    /// Its state.
    pub const fn state(&self) -> TcpState {
        self.state
    }
}

impl TcpTrack {
    /// The connection that a segment out of nothing starts.
    ///
    /// # Errors
    /// The segment starts none.
    pub fn begin(s: &TcpSegment, spec: &ConntrackSpec) -> Result<Self, DropReason> {
        let kind = kind(s.flags);
        let mut track = match transition(TcpState::None, Direction::Original, kind) {
            Transition::To(TcpState::SynSent) => Self::opened(s),
            Transition::To(_) if spec.tcp_loose => Self::picked_up(s),
            _ => return Err(DropReason::InvalidTcpState),
        };
        // Nothing can be outside windows that this segment has made.
        track.admit(s, Direction::Original, kind, false);
        track.last.note(kind, Direction::Original);
        track.state = if kind == Kind::Syn { TcpState::SynSent } else { TcpState::Established };
        Ok(track)
    }

    /// After a SYN.
    fn opened(s: &TcpSegment) -> Self {
        let (mut sender, mut receiver) = (Side::default(), Side::default());
        window::open(&mut sender, &mut receiver, s, Seq(s.seq) + s.span(), Direction::Original);
        let mut track = Self::default();
        track.put_sides(Direction::Original, sender, receiver);
        track
    }

    /// After a segment in mid-stream. Scales are not known, so neither side is held to its window.
    fn picked_up(s: &TcpSegment) -> Self {
        let mut track = Self::lenient(TcpState::None);
        let (end, max_win) = (Seq(s.seq) + s.span(), u32::from(s.win).max(1));
        track.edges[0] = Edges { end, max_end: end + max_win, max_win, ..Edges::default() };
        track
    }

    /// A connection in this state of whose windows nothing is known: neither side is held to them.
    pub const fn lenient(state: TcpState) -> Self {
        let traits = Traits::LIBERAL.with(Traits::SACKS);
        // One that is over was closed in order, as far as anybody knows: a new SYN may follow.
        let over = matches!(state, TcpState::TimeWait | TcpState::Close);
        let closed = if over { traits.with(Traits::CLOSED_FIRST) } else { traits };
        let edges = Edges { end: Seq(0), max_end: Seq(0), max_win: 0, max_ack: Seq(0) };
        Self {
            edges: [edges; 2],
            last_seq: Seq(0),
            last_ack: Seq(0),
            last_len: 0,
            last_win: 0,
            traits: [closed, traits],
            last: Memo::NONE,
            repeats: 0,
            state,
        }
    }

    /// The two parts that are kept in different places.
    #[inline]
    pub fn split(&self) -> (TcpHead, L4Body) {
        let mut words = [0; BODY_WORDS];
        for (e, w) in self.edges.iter().zip(words.as_chunks_mut::<4>().0) {
            *w = [e.end.0, e.max_end.0, e.max_win, e.max_ack.0];
        }
        let pair = |hi: u16, lo: u16| u32::from(hi) << 16 | u32::from(lo);
        words[8] = self.last_seq.0;
        words[9] = self.last_ack.0;
        words[10] = pair(self.last_len, self.last_win);
        words[11] = pair(self.traits[0].bits(), self.traits[1].bits());
        (TcpHead { last: self.last, repeats: self.repeats, state: self.state }, L4Body(words))
    }

    /// What [`TcpTrack::split`] has taken apart.
    #[inline]
    pub fn join(head: TcpHead, body: &L4Body) -> Self {
        let [a, b, c, d, e, f, g, h, seq, ack, last, traits] = body.0;
        Self {
            edges: [
                Edges { end: Seq(a), max_end: Seq(b), max_win: c, max_ack: Seq(d) },
                Edges { end: Seq(e), max_end: Seq(f), max_win: g, max_ack: Seq(h) },
            ],
            last_seq: Seq(seq),
            last_ack: Seq(ack),
            last_len: (last >> 16) as u16,
            last_win: (last & 0xffff) as u16,
            traits: [Traits::of_bits((traits >> 16) as u16), Traits::of_bits((traits & 0xffff) as u16)],
            last: head.last,
            repeats: head.repeats,
            state: head.state,
        }
    }

    /// Its state.
    pub const fn state(&self) -> TcpState {
        self.state
    }

    /// The idle timeout after the first segment.
    pub fn first_timeout(&self, t: &Timeouts) -> Nanos {
        self.unreplied(self.timeout(Kind::Ack, t, u8::MAX), t)
    }

    /// Moves the connection on by a segment with valid flags.
    #[inline]
    pub fn step(&mut self, s: &TcpSegment, c: &Context<'_>) -> Step {
        let (kind, direction, mut old) = (kind(s.flags), c.direction, self.state);
        let mut new = match transition(old, direction, kind) {
            Transition::To(new) => new,
            Transition::Invalid => return Step::Invalid(DropReason::InvalidTcpState),
            Transition::Reopen if self.may_reopen(direction) => return Step::Reopen,
            Transition::Ignore | Transition::Reopen => {
                if !self.answers_ignored_syn(s, kind, direction) {
                    self.ignore(s, kind, direction);
                    return Step::UNCHANGED;
                }
                self.take_over(direction);
                old = TcpState::SynSent; // an update is due, whatever the state was
                TcpState::SynRecv
            }
        };
        let mut checked = true;
        match new {
            TcpState::SynSent2 => self.last.put(Memo::SIMULTANEOUS, true),
            TcpState::SynRecv if self.completes_crossing(kind, direction) => new = TcpState::Established,
            TcpState::TimeWait if self.is_challenge(old, kind, direction) => {
                self.last.put(Memo::CHALLENGE, false);
                return Step::UNCHANGED;
            }
            TcpState::Close if kind == Kind::Rst => match self.reset(s, c) {
                Reset::TooLow => return Step::Invalid(DropReason::InvalidRst),
                Reset::Checked(state) => new = state,
                Reset::Unchecked(state) => (new, checked) = (state, false),
            },
            _ => {}
        }
        if checked {
            match self.admit(s, direction, kind, c.spec.tcp_be_liberal) {
                Admission::Counts(_) | Admission::Unchecked => {}
                Admission::Stray => return Step::UNCHANGED,
                Admission::Outside => return self.refuse(kind, c),
            }
        }
        self.count(old, new, kind, c)
    }

    /// The segment counts: the connection is in state `new` now.
    fn count(&mut self, old: TcpState, new: TcpState, kind: Kind, c: &Context<'_>) -> Step {
        self.last.note(kind, c.direction);
        self.state = new;
        if new == TcpState::FinWait && old != new {
            let traits = &mut self.traits[c.direction.index()];
            *traits = traits.with(Traits::CLOSED_FIRST);
        }
        let (changed, timeout) = (new != old, self.timeout(kind, c.timeouts, c.spec.tcp_max_retrans));
        if c.replied {
            let proper = matches!(old, TcpState::SynRecv | TcpState::Established) && new == TcpState::Established;
            return Step::Pass { timeout: Some(timeout), assured: proper, end: false, changed };
        }
        // A SYN that is repeated does not keep the connection alive: the port may be another's by now.
        let repeated = kind == Kind::Syn && old == TcpState::SynSent;
        let timeout = (!repeated).then(|| self.unreplied(timeout, c.timeouts));
        // Only a reset has come in answer, or its sender has thought better of it: there is no connection to keep.
        Step::Pass { timeout, assured: false, end: kind == Kind::Rst, changed }
    }

    /// The segment is INVALID. A FIN or a reset of each side out of the windows means that it is the windows that are
    /// wrong and both sides are done: then days are too long to wait.
    fn refuse(&mut self, kind: Kind, c: &Context<'_>) -> Step {
        let reason = DropReason::InvalidWindow;
        if !c.assured || !matches!(kind, Kind::Rst | Kind::Fin) {
            return Step::Invalid(reason);
        }
        let answers = self.last.is_kind(Kind::Fin) || self.last.is_kind(Kind::Rst);
        if !answers || self.last.direction() == c.direction {
            self.last.note(kind, c.direction);
            return Step::Invalid(reason);
        }
        let timeout = c.timeouts.tcp_unacknowledged;
        if c.remaining < WORTH_SHORTENING || c.remaining <= timeout {
            return Step::Invalid(reason);
        }
        Step::InvalidShortens { reason, timeout }
    }

    /// The idle timeout after a segment of `kind`. Days hold only where nothing is outstanding.
    fn timeout(&self, kind: Kind, t: &Timeouts, max_retrans: u8) -> Nanos {
        let usual = self.state.timeout(t);
        let outstanding = self.traits.iter().any(|side| side.has(Traits::UNACKED));
        if self.repeats >= max_retrans && usual > t.tcp_max_retrans {
            t.tcp_max_retrans
        } else if kind == Kind::Rst {
            t.tcp_close
        } else if outstanding && usual > t.tcp_unacknowledged {
            t.tcp_unacknowledged
        } else if self.last_win == 0 && usual > t.tcp_max_retrans {
            t.tcp_max_retrans
        } else {
            usual
        }
    }

    /// The timeout while no reply was seen: a connection picked up in mid-stream is not worth days yet.
    fn unreplied(&self, timeout: Nanos, t: &Timeouts) -> Nanos {
        if self.state == TcpState::Established { timeout.min(t.tcp_unacknowledged) } else { timeout }
    }

    /// Holds a segment against the windows. One that counts is compared with the last, to know retransmissions.
    fn admit(&mut self, s: &TcpSegment, direction: Direction, kind: Kind, liberal: bool) -> Admission {
        let (mut sender, mut receiver) = self.sides(direction);
        let passage = Passage { direction, state: self.state, liberal };
        let admission = window::admit(&mut sender, &mut receiver, s, &passage);
        self.put_sides(direction, sender, receiver);
        if let Admission::Counts(n) = admission
            && kind == Kind::Ack
        {
            self.compare(s, &n, direction);
        }
        admission
    }

    /// Counts how often the same segment came in a row.
    fn compare(&mut self, s: &TcpSegment, n: &Numbers, direction: Direction) {
        let same = self.last.direction() == direction
            && (self.last_seq, self.last_ack, self.last_win) == (n.seq, n.ack, s.win)
            && self.last_end() == n.end;
        if same {
            self.repeats = self.repeats.saturating_add(1);
            return;
        }
        self.keep(s);
        self.last_ack = n.ack;
        self.repeats = 0;
    }

    /// Sender and receiver of a segment in `direction`.
    fn sides(&self, direction: Direction) -> (Side, Side) {
        let [original, reply] = [0, 1].map(|d| Side { edges: self.edges[d], traits: self.traits[d] });
        if direction == Direction::Original { (original, reply) } else { (reply, original) }
    }

    fn put_sides(&mut self, direction: Direction, sender: Side, receiver: Side) {
        let sides = if direction == Direction::Original { [sender, receiver] } else { [receiver, sender] };
        self.edges = sides.map(|s| s.edges);
        self.traits = sides.map(|s| s.traits);
    }

    /// Remembers a segment's numbers.
    fn keep(&mut self, s: &TcpSegment) {
        self.last_seq = Seq(s.seq);
        // Invariant: a datagram's 65,535 bytes hold a header of 20, so SYN and FIN find room.
        self.last_len = u16::try_from(s.span()).unwrap_or(u16::MAX);
        self.last_win = s.win;
    }

    /// Behind the last byte of the segment that is remembered.
    fn last_end(&self) -> Seq {
        self.last_seq + u32::from(self.last_len)
    }
}

#[cfg(test)]
mod tests;
