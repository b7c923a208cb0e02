//! Segments that do not fit, and what they say: SYNs on open connections, their answers, resets.
//!
//! *Sources*: RFC 5961 sections 3 and 4; RFC 9293 section 3.5.1 (half-open connections);
//! `linux/net/netfilter/nf_conntrack_proto_tcp.c` (`nf_conntrack_tcp_packet`).

use super::super::l4::Context;
use super::super::tuple::Direction;
use super::memo::Memo;
use super::window::{Edges, Side, Traits};
use super::{Kind, Seq, TcpState, TcpTrack};
use crate::packet::TcpSegment;

/// What a reset is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// INVALID: its receiver has acknowledged more than its number says.
    TooLow,
    /// It leads to this state, if it is inside the window.
    Checked(TcpState),
    /// It leads to this state, wherever the window is.
    Unchecked(TcpState),
}

impl TcpTrack {
    /// Whether a SYN after the end may start a new connection: after a FIN, or after a reset of its own sender. Else the
    /// sides may disagree about the end, and the SYN is ignored.
    pub(super) fn may_reopen(&self, direction: Direction) -> bool {
        let closed = self.traits.iter().any(|side| side.has(Traits::CLOSED_FIRST));
        closed || self.last.direction() == direction && self.last.is_kind(Kind::Rst)
    }

    /// Lets a segment pass that changes no state, and remembers it: the answer may tell more.
    pub(super) fn ignore(&mut self, s: &TcpSegment, kind: Kind, direction: Direction) {
        self.last.note(kind, direction);
        self.keep(s);
        if kind == Kind::Syn && direction == Direction::Original {
            self.last.note_syn(s.syn);
            // An ACK in LAST_ACK would be taken for that of the FIN.
            self.last.put(Memo::CHALLENGE, self.state == TcpState::LastAck);
        }
        if kind == Kind::Ack && direction == Direction::Reply && self.state == TcpState::SynSent {
            self.last_ack = Seq(s.ack); // a reset may answer with this number
        }
    }

    /// Whether a segment answers a SYN of the other side that was ignored.
    pub(super) fn answers_ignored_syn(&self, s: &TcpSegment, kind: Kind, direction: Direction) -> bool {
        kind == Kind::SynAck
            && self.last.is_kind(Kind::Syn)
            && self.last.direction() != direction
            && Seq(s.ack) == self.last_end()
    }

    /// The ignored SYN was the true one: the connection is what it and its answer, in `direction`, say.
    pub(super) fn take_over(&mut self, direction: Direction) {
        let end = self.last_end();
        self.last.put(Memo::CHALLENGE, false);
        let edges = Edges { end, max_end: end, max_win: u32::from(self.last_win).max(1), max_ack: Seq(0) };
        let opener = Side { edges, traits: self.last.traits() };
        let (answerer, _) = self.sides(direction);
        let answerer = Side { edges: Edges::default(), traits: answerer.traits.only(Traits::LIBERAL) };
        self.put_sides(direction, answerer, opener);
    }

    /// Whether an ACK in LAST_ACK challenges a SYN that was ignored, and acknowledges no FIN.
    pub(super) fn is_challenge(&self, old: TcpState, kind: Kind, direction: Direction) -> bool {
        old == TcpState::LastAck
            && kind == Kind::Ack
            && self.last.is_kind(Kind::Syn)
            && self.last.direction() != direction
            && self.last.has(Memo::CHALLENGE)
    }

    /// Whether a segment is the ACK that completes a simultaneous open.
    pub(super) fn completes_crossing(&self, kind: Kind, direction: Direction) -> bool {
        kind == Kind::Ack && direction == Direction::Reply && self.last.has(Memo::SIMULTANEOUS)
    }

    /// What a reset is worth, by what its sender was told of last. On an open connection only the exact number closes;
    /// any other makes the receiver challenge its sender (RFC 5961 section 3.2).
    pub(super) fn reset(&self, s: &TcpSegment, c: &Context<'_>) -> Reset {
        let (old, seq) = (self.state, Seq(s.seq));
        if old.is_closing() {
            return Reset::Unchecked(TcpState::Close); // the ports may be in use again, whatever is remembered
        }
        let open = old == TcpState::Established && c.assured;
        let mut new = TcpState::Close;
        let (_, receiver) = self.sides(c.direction);
        // After a SYN that was ignored, what the receiver has acknowledged may be another connection's.
        if receiver.traits.has(Traits::ACKED) && !self.last.is_kind(Kind::Syn) {
            let expected = receiver.edges.max_ack;
            let numberless = seq == Seq(0) && !open;
            if !numberless && seq.is_before(expected) {
                return Reset::TooLow;
            }
            let follows = self.last.is_kind(Kind::Ack) && self.last.direction() == c.direction;
            if !open || seq == expected || follows && seq == self.last_end() {
                return Reset::Checked(TcpState::Close);
            }
            new = old;
        }
        // It answers what was let through without being understood.
        let answers_syn = c.replied && self.last.is_kind(Kind::Syn) && self.last.direction() != c.direction;
        let answers_ack = !c.assured && self.last.is_kind(Kind::Ack);
        if (answers_syn || answers_ack) && Seq(s.ack) == self.last_end() {
            return Reset::Unchecked(new);
        }
        if old == TcpState::SynSent && self.last.is_kind(Kind::Ack) && seq == self.last_ack {
            return Reset::Unchecked(new);
        }
        Reset::Checked(new)
    }
}
