//! TCP's states as a middlebox sees them.
//!
//! A transition depends on the old state, the direction and the first of RST, SYN/ACK, SYN, FIN, ACK that the segment
//! has. Sequence numbers and windows are not looked at yet: a segment is judged by its flags alone.
//! *Sources*: RFC 9293 section 3.3.2; `linux/net/netfilter/nf_conntrack_proto_tcp.c` (`tcp_conntracks`,
//! `tcp_valid_flags`, `nf_conntrack_tcp_packet`).

mod seq;
mod state;

pub use self::seq::Seq;
pub use self::state::{Kind, TcpState, Transition, kind, transition, valid_flags};

use super::l4::{Context, Step};
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

/// What is known of a TCP connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpTrack {
    state: TcpState,
}

impl TcpTrack {
    /// The connection that a segment out of nothing starts.
    ///
    /// # Errors
    /// The segment starts none.
    pub fn begin(segment: &TcpSegment, spec: &ConntrackSpec) -> Result<Self, DropReason> {
        match transition(TcpState::None, Direction::Original, kind(segment.flags)) {
            Transition::To(TcpState::Established) if !spec.tcp_loose => Err(DropReason::InvalidTcpState),
            Transition::To(state) => Ok(Self { state }),
            _ => Err(DropReason::InvalidTcpState),
        }
    }

    /// A connection in this state of whose windows nothing is known.
    pub const fn lenient(state: TcpState) -> Self {
        Self { state }
    }

    /// Its state.
    pub const fn state(&self) -> TcpState {
        self.state
    }

    /// The idle timeout after the first segment.
    pub fn first_timeout(&self, t: &Timeouts) -> Nanos {
        match self.state {
            // Picked up in mid-stream: not worth days before the other side was heard.
            TcpState::Established => t.tcp_established.min(t.tcp_unacknowledged),
            s => s.timeout(t),
        }
    }

    /// Moves the connection on by a segment with valid flags.
    pub fn step(&mut self, segment: &TcpSegment, c: &Context<'_>) -> Step {
        let replied = c.replied || c.direction == Direction::Reply;
        let old = self.state;
        let (state, mut end) = match transition(old, c.direction, kind(segment.flags)) {
            Transition::To(s) => (s, false),
            Transition::End => (old, true),
            Transition::Ignore => return Step::Pass { timeout: None, assured: false, end: false, changed: false },
            Transition::Invalid => return Step::Invalid(DropReason::InvalidTcpState),
            Transition::Reopen => return Step::Reopen,
        };
        self.state = state;
        let timeout = match state {
            TcpState::Established if !replied => c.timeouts.tcp_established.min(c.timeouts.tcp_unacknowledged),
            s => s.timeout(c.timeouts),
        };
        let proper = matches!(old, TcpState::SynRecv | TcpState::Established) && state == TcpState::Established;
        // A lone reset as the only reply: nobody is there (nf_conntrack_tcp_packet, "we can delete the conntrack").
        if c.direction == Direction::Reply && !c.replied && segment.flags & RST != 0 {
            end = true;
        }
        Step::Pass { timeout: Some(timeout), assured: proper && replied, end, changed: state != old }
    }
}
