//! Which sequence and acknowledgement numbers each side may send: the four conditions of [`super`]'s documentation.
//!
//! *Sources*: Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", 2001; RFC 7323 section 2, RFC 2018
//! section 3; `linux/net/netfilter/nf_conntrack_proto_tcp.c` (`tcp_in_window`, `tcp_init_sender`).

use super::super::tuple::Direction;
use super::seq::Seq;
use super::state::TcpState;
use super::{ACK, RST, SYN};
use crate::packet::{SynOptions, TcpSegment};

/// An acknowledgement may be this far behind the highest number that the other side has sent, however small the windows:
/// `MAXACKWINCONST` of Linux, the largest window without scaling and some.
const MAX_ACK_WINDOW: u32 = 66_000;

/// Where one side is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Edges {
    /// Behind the last byte that it has sent.
    pub end: Seq,
    /// Behind the last byte that the other side lets it send.
    pub max_end: Seq,
    /// The largest window that it has offered; 0 while nothing was heard of it.
    pub max_win: u32,
    /// The highest number that it has acknowledged, once [`Traits::ACKED`].
    pub max_ack: Seq,
}

/// What one side is like: its window scale in the lowest four bits, above them flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits(u16);

impl Traits {
    const SCALE: u16 = 15;
    /// Its SYN carried the window scale option.
    pub const SCALES: Self = Self(1 << 4);
    /// Its SYN permitted selective acknowledgements.
    pub const SACKS: Self = Self(1 << 5);
    /// It was the first to send a FIN.
    pub const CLOSED_FIRST: Self = Self(1 << 6);
    /// What it sends outside its windows passes.
    pub const LIBERAL: Self = Self(1 << 7);
    /// It has sent what was not acknowledged.
    pub const UNACKED: Self = Self(1 << 8);
    /// It has acknowledged something.
    pub const ACKED: Self = Self(1 << 9);

    /// Whether it has all that `t` has.
    #[inline]
    pub const fn has(self, t: Self) -> bool {
        self.0 & t.0 == t.0
    }

    /// What it has, and what `t` has.
    #[inline]
    pub const fn with(self, t: Self) -> Self {
        Self(self.0 | t.0)
    }

    /// What it has, but for what `t` has.
    #[inline]
    pub const fn without(self, t: Self) -> Self {
        Self(self.0 & !t.0)
    }

    /// Of what it has, what `t` has too.
    #[inline]
    pub const fn only(self, t: Self) -> Self {
        Self(self.0 & t.0)
    }

    /// As it is kept.
    #[inline]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// What was kept.
    #[inline]
    pub const fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Its windows count in units of 2 to this.
    #[inline]
    pub const fn scale(self) -> u32 {
        (self.0 & Self::SCALE) as u32
    }

    /// What a SYN's options say of its sender.
    pub fn of_syn(options: SynOptions) -> Self {
        let scales = options.scale.map_or(Self(0), |s| Self(u16::from(s) & Self::SCALE).with(Self::SCALES));
        if options.sack_permitted { scales.with(Self::SACKS) } else { scales }
    }
}

/// One side of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Side {
    pub edges: Edges,
    pub traits: Traits,
}

/// What the conditions look at in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub seq: Seq,
    /// Behind its last byte.
    pub end: Seq,
    pub ack: Seq,
    /// The highest number that it acknowledges, selectively or not.
    sack: Seq,
}

/// How a segment fits the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// All conditions hold.
    Inside,
    /// Condition I fails, by less than one further window; the others hold.
    Beyond,
    /// Condition II or IV fails: what it says is long known.
    Old,
    /// Condition I or III fails.
    Outside,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It counts, and the windows have moved on.
    Counts(Numbers),
    /// It counts, but the windows stay as they are.
    Unchecked,
    /// It passes and does not count.
    Stray,
    /// It is INVALID.
    Outside,
}

/// What the windows need to know of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    /// The segment's direction.
    pub direction: Direction,
    /// The connection's state before it.
    pub state: TcpState,
    /// Whether segments outside the windows pass whoever sends them.
    pub liberal: bool,
}

/// Holds a segment against the windows and moves them on.
pub(super) fn admit(sender: &mut Side, receiver: &mut Side, s: &TcpSegment, p: &Passage) -> Admission {
    let end = Seq(s.seq) + s.span();
    let ack = Seq(s.ack);
    let sack = if receiver.traits.has(Traits::SACKS) { Seq(s.sack) } else { ack };

    let fresh = sender.edges.max_win == 0;
    if fresh && s.flags & SYN == 0 {
        join(sender, receiver, s, end, sack);
    } else if fresh || opens_anew(sender, s, end, p.state) {
        open(sender, receiver, s, end, p.direction);
        if s.flags & ACK == 0 && (fresh || p.direction == Direction::Reply) {
            return Admission::Unchecked; // a crossing SYN acknowledges nothing
        }
    }

    let n = numbers(sender, receiver, s, Numbers { seq: Seq(s.seq), end, ack, sack }, p.state);
    let fit = fit(&sender.edges, &receiver.edges, &n);
    match fit {
        Fit::Inside => {
            advance(sender, receiver, s, &n);
            return Admission::Counts(n);
        }
        // The receiver may take it all the same, and its acknowledgement must then be known.
        Fit::Beyond => sent(sender, n.end),
        Fit::Old | Fit::Outside => {}
    }
    match fit {
        _ if p.liberal || sender.traits.has(Traits::LIBERAL) => Admission::Unchecked,
        Fit::Outside => Admission::Outside,
        _ => Admission::Stray,
    }
}

/// Whether a SYN begins its side anew: the one before was given up, and this one's numbers are higher.
fn opens_anew(sender: &Side, s: &TcpSegment, end: Seq, state: TcpState) -> bool {
    s.flags & SYN != 0 && matches!(state, TcpState::SynSent | TcpState::SynRecv) && end.is_after(sender.edges.end)
}

/// A side's SYN: here its numbers begin.
pub(super) fn open(sender: &mut Side, receiver: &mut Side, s: &TcpSegment, end: Seq, direction: Direction) {
    let max_win = u32::from(s.win).max(1);
    sender.edges = Edges { end, max_end: end, max_win, ..sender.edges };
    if let Some(options) = s.syn {
        sender.traits = Traits::of_syn(options).with(sender.traits.only(Traits::LIBERAL));
    }
    let both = sender.traits.has(Traits::SCALES) && receiver.traits.has(Traits::SCALES);
    if direction == Direction::Reply && !both {
        // RFC 7323 section 2.2: one side alone cannot scale.
        sender.traits = sender.traits.without(Traits(Traits::SCALE));
        receiver.traits = receiver.traits.without(Traits(Traits::SCALE));
    }
}

/// The first that is heard of a side, in mid-stream: its segment says where both are.
pub(super) fn join(sender: &mut Side, receiver: &mut Side, s: &TcpSegment, end: Seq, sack: Seq) {
    let max_win = u32::from(s.win).max(1); // its scale is not known
    sender.edges = Edges { end, max_end: end + max_win, max_win, ..sender.edges };
    if receiver.edges.max_win == 0 {
        (receiver.edges.end, receiver.edges.max_end) = (sack, sack);
    } else if sack == receiver.edges.end + 1 {
        receiver.edges.end = sack; // the answer to a keepalive, whose byte may not have come by
    }
}

/// The numbers that count: a segment that acknowledges nothing is held to acknowledge all, and a reset that answers a SYN
/// has no number of its own.
fn numbers(sender: &Side, receiver: &Side, s: &TcpSegment, mut n: Numbers, state: TcpState) -> Numbers {
    let is_reset = s.flags & RST != 0;
    if s.flags & ACK == 0 || is_reset && n.ack == Seq(0) {
        (n.ack, n.sack) = (receiver.edges.end, receiver.edges.end);
    }
    if is_reset && s.seq == 0 && state == TcpState::SynSent {
        (n.seq, n.end) = (sender.edges.end, sender.edges.end);
    }
    n
}

/// The four conditions.
fn fit(sender: &Edges, receiver: &Edges, n: &Numbers) -> Fit {
    let data_not_ahead = !n.seq.is_after(sender.max_end);
    let data_not_old = receiver.max_win == 0 || !n.end.is_before(sender.end - receiver.max_win);
    let ack_not_ahead = !n.sack.is_after(receiver.end);
    let ack_not_old = !n.sack.is_before(receiver.end - sender.max_win.max(MAX_ACK_WINDOW));
    match (data_not_ahead, data_not_old && ack_not_old, ack_not_ahead) {
        (true, true, true) => Fit::Inside,
        (true, false, true) => Fit::Old,
        (false, true, true) if n.end.since(sender.max_end) < receiver.max_win => Fit::Beyond,
        _ => Fit::Outside,
    }
}

/// A side has sent up to `end`.
fn sent(sender: &mut Side, end: Seq) {
    sender.edges.end = end;
    sender.traits = sender.traits.with(Traits::UNACKED);
}

/// Moves the windows on by a segment inside them.
fn advance(sender: &mut Side, receiver: &mut Side, s: &TcpSegment, n: &Numbers) {
    let scale = if s.flags & SYN != 0 { 0 } else { sender.traits.scale() };
    let win = u32::from(s.win) << scale;

    sender.edges.max_win = sender.edges.max_win.max(win.wrapping_add(n.sack.since(n.ack)));
    if n.end.is_after(sender.edges.end) {
        sent(sender, n.end);
    }
    if s.flags & ACK != 0 {
        let known = sender.traits.has(Traits::ACKED);
        sender.edges.max_ack = if known { sender.edges.max_ack.later(n.ack) } else { n.ack };
        sender.traits = sender.traits.with(Traits::ACKED);
    }

    if receiver.edges.max_win != 0 && n.end.is_after(sender.edges.max_end) {
        let beyond = n.end.since(sender.edges.max_end);
        receiver.edges.max_win = receiver.edges.max_win.wrapping_add(beyond);
    }
    let edge = n.sack + win;
    if !edge.is_before(receiver.edges.max_end) {
        // A closed window takes one byte all the same: a probe.
        receiver.edges.max_end = edge + u32::from(win == 0);
    }
    if n.ack == receiver.edges.end {
        receiver.traits = receiver.traits.without(Traits::UNACKED);
    }
}
