//! The trackers of the transport protocols behind one interface: what a packet means to a connection of its protocol.
//!
//! [`begin`] says whether a packet of no known connection may start one; [`L4State::step`] moves a known one on. Each
//! protocol's rules stand in its own file. *Threads*: the owner's worker; functions of their arguments.
//! *Sources*: `linux/net/netfilter/nf_conntrack_core.c` (`nf_conntrack_handle_packet`).

use super::gre;
use super::sctp::{SctpState, SctpTrack};
use super::tcp::{self, TcpHead, TcpState, TcpTrack};
use super::timeouts::Timeouts;
use super::tuple::{Direction, proto};
use super::udp::{self, UdpTrack};
use crate::api::policy::ConntrackSpec;
use crate::drop::DropReason;
use crate::packet::{L4, Packet};
use crate::parse::icmp;
use crate::time::Nanos;

/// What a protocol's tracker keeps of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub enum L4State {
    /// TCP.
    Tcp(TcpTrack),
    /// UDP.
    Udp(UdpTrack),
    /// SCTP.
    Sctp(SctpTrack),
    /// A protocol without a state of its own.
    #[default]
    Plain,
}

/// Words of an [`L4Body`].
pub const BODY_WORDS: usize = 12;

/// What a table keeps of a tracker's state beside the connection: the part that says which state it is.
#[derive(Clone, Copy, Debug, Default)]
pub enum L4Head {
    /// TCP.
    Tcp(TcpHead),
    /// UDP; whether it is a stream.
    Udp(bool),
    /// SCTP.
    Sctp(SctpState),
    /// A protocol without a state of its own.
    #[default]
    Plain,
}

const _: () = assert!(size_of::<L4Head>() <= 4);

/// The rest of it, which a table keeps apart from what every packet needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct L4Body(pub(super) [u32; BODY_WORDS]);

impl L4Body {
    /// Where it begins.
    #[inline(always)]
    pub const fn first_word(&self) -> &u32 {
        &self.0[0]
    }

    /// Where it ends.
    #[inline(always)]
    pub const fn last_word(&self) -> &u32 {
        &self.0[BODY_WORDS - 1]
    }
}

impl L4Head {
    /// The protocol's name of its state; `None` where it has none.
    pub const fn name(&self) -> Option<&'static str> {
        match self {
            Self::Tcp(head) => Some(head.state().name()),
            Self::Sctp(state) => Some(state.name()),
            Self::Udp(_) | Self::Plain => None,
        }
    }
}

/// What a tracker may look at besides the packet.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Settings of tracking.
    pub spec: &'a ConntrackSpec,
    /// The connection's timeouts.
    pub timeouts: &'a Timeouts,
    /// The packet's direction.
    pub direction: Direction,
    /// Whether a reply was seen before this packet.
    pub replied: bool,
    /// Whether the connection is assured already.
    pub assured: bool,
    /// How long it would live if nothing came.
    pub remaining: Nanos,
    /// Now.
    pub now: Nanos,
}

/// What a packet does to a known connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It belongs to the connection.
    Pass {
        /// The idle timeout from now on; `None` leaves the deadline as it is, and the packet is not counted.
        timeout: Option<Nanos>,
        /// The connection is assured from now on.
        assured: bool,
        /// The connection must be ended once this packet is on its way.
        end: bool,
        /// The protocol's state changed: an update event is due.
        changed: bool,
    },
    /// It is INVALID and changes nothing.
    Invalid(DropReason),
    /// It is INVALID, but a sign that both ends are done with the connection: it lives for `timeout` from now on.
    InvalidShortens {
        /// Why it is INVALID.
        reason: DropReason,
        /// The idle timeout, shorter than before.
        timeout: Nanos,
    },
    /// The connection is over, and the packet starts a new one.
    Reopen,
}

impl Step {
    /// It passes and changes nothing, not even the deadline; nor is it counted.
    pub const UNCHANGED: Self = Self::Pass { timeout: None, assured: false, end: false, changed: false };

    /// It passes, and the connection lives for another `timeout`.
    pub const fn pass(timeout: Nanos) -> Self {
        Self::Pass { timeout: Some(timeout), assured: false, end: false, changed: false }
    }
}

/// The state of a connection that `p` starts now, and its first idle timeout.
///
/// # Errors
/// Why the packet cannot start one.
pub fn begin(p: &Packet, spec: &ConntrackSpec, t: &Timeouts, now: Nanos) -> Result<(L4State, Nanos), DropReason> {
    match p.kind {
        L4::Tcp(segment) => {
            let track = TcpTrack::begin(&segment, spec)?;
            Ok((L4State::Tcp(track), track.first_timeout(t)))
        }
        L4::Udp => Ok((L4State::Udp(UdpTrack::begin(now)), t.udp)),
        L4::UdpLite => Ok((L4State::Plain, t.udp)),
        L4::Gre { .. } => Ok((L4State::Plain, t.gre)),
        L4::Sctp(packet) => {
            let track = SctpTrack::begin(&packet)?;
            Ok((L4State::Sctp(track), track.state().timeout(t)))
        }
        L4::IcmpQuery => {
            let is_v4 = p.tuple.is_ipv4();
            let request = matches!(
                (is_v4, p.tuple.icmp_type()),
                (true, icmp::v4::ECHO | 13 | 15 | 17) | (false, icmp::v6::ECHO | 139)
            );
            if !request {
                return Err(DropReason::InvalidNoRequest);
            }
            Ok((L4State::Plain, if is_v4 { t.icmp } else { t.icmpv6 }))
        }
        L4::Invalid(reason) => Err(reason),
        _ => Ok((L4State::Plain, t.generic)),
    }
}

impl L4State {
    /// Moves the connection on by `p`.
    #[inline]
    pub fn step(&mut self, p: &Packet, c: &Context<'_>) -> Step {
        let t = c.timeouts;
        match (p.kind, self) {
            (L4::Tcp(segment), Self::Tcp(track)) => track.step(&segment, c),
            (L4::Udp, Self::Udp(track)) => track.step(c),
            (L4::UdpLite, _) => udp::step_lite(c),
            (L4::Sctp(packet), Self::Sctp(track)) => track.step(&packet, c),
            (L4::Gre { .. }, _) => gre::step(c),
            (L4::IcmpQuery, _) => Step::pass(if p.tuple.is_ipv4() { t.icmp } else { t.icmpv6 }),
            _ => Step::pass(t.generic),
        }
    }

    /// The state of a connection of protocol `proto` that is put into the table by hand; `None` where the protocol has no
    /// state of that name.
    pub fn named(proto: u8, state: Option<&str>) -> Option<Self> {
        match (proto, state) {
            (proto::TCP, Some(name)) => Some(Self::Tcp(TcpTrack::lenient(TcpState::named(name)?))),
            (proto::TCP, None) => Some(Self::Tcp(TcpTrack::lenient(TcpState::Established))),
            (proto::SCTP, Some(name)) => Some(Self::Sctp(SctpTrack::lenient(SctpState::named(name)?))),
            (proto::SCTP, None) => Some(Self::Sctp(SctpTrack::lenient(SctpState::Established))),
            (proto::UDP, None) => Some(Self::Udp(UdpTrack::default())),
            (_, None) => Some(Self::Plain),
            (_, Some(_)) => None,
        }
    }

    /// As it is kept, in two places.
    #[inline]
    pub fn split(&self) -> (L4Head, L4Body) {
        match self {
            Self::Tcp(track) => {
                let (head, body) = track.split();
                (L4Head::Tcp(head), body)
            }
            Self::Udp(track) => {
                let (stream, body) = track.split();
                (L4Head::Udp(stream), body)
            }
            Self::Sctp(track) => {
                let (state, body) = track.split();
                (L4Head::Sctp(state), body)
            }
            Self::Plain => (L4Head::Plain, L4Body::default()),
        }
    }

    /// What was kept.
    #[inline]
    pub fn join(head: L4Head, body: &L4Body) -> Self {
        match head {
            L4Head::Tcp(head) => Self::Tcp(TcpTrack::join(head, body)),
            L4Head::Udp(stream) => Self::Udp(UdpTrack::join(stream, body)),
            L4Head::Sctp(state) => Self::Sctp(SctpTrack::join(state, body)),
            L4Head::Plain => Self::Plain,
        }
    }

    /// The idle timeout of a connection of protocol `proto` that one packet has started, under other timeouts.
    pub fn first_timeout(&self, p: &Packet, t: &Timeouts) -> Nanos {
        match (self, p.kind) {
            (Self::Tcp(track), _) => track.first_timeout(t),
            (Self::Sctp(track), _) => track.state().timeout(t),
            (_, L4::Udp | L4::UdpLite) => t.udp,
            (_, L4::Gre { .. }) => t.gre,
            (_, L4::IcmpQuery) if p.tuple.is_ipv4() => t.icmp,
            (_, L4::IcmpQuery) => t.icmpv6,
            _ => t.generic,
        }
    }
}

/// Whether the flags of a TCP segment are some that a stack sends; true for all else.
#[inline]
pub fn plausible(p: &Packet) -> bool {
    match p.kind {
        L4::Tcp(s) => tcp::valid_flags(s.flags),
        _ => true,
    }
}
