//! SCTP's associations as a middlebox sees them: states by chunks, and verification tags.
//!
//! Each side chooses a tag and announces it in its INIT or INIT ACK; every packet *to* that side must carry it. Tracking
//! keeps, by direction, the tag that packets of that direction must carry, and 0 where none is known yet. A packet is
//! checked against it as a whole, unless one of its chunks has a rule of its own (RFC 9260 section 8.5.1):
//!
//! | chunk | tag |
//! |---|---|
//! | INIT | 0 |
//! | ABORT, SHUTDOWN COMPLETE | the receiver's, or with the T bit the sender's |
//! | COOKIE ECHO | the receiver's |
//! | SHUTDOWN ACK | any: its sender may know no association (section 8.4) |
//! | HEARTBEAT, HEARTBEAT ACK | the receiver's; the first ones teach it; see below |
//!
//! A connection may begin with a HEARTBEAT: a further path of an association that other addresses opened. Its tags are
//! learned from the first HEARTBEAT of each direction, which anybody may have forged. So a HEARTBEAT with another tag passes, without
//! prolonging anything, and where the *other* side answers it, its tag is the right one: it is taken over and the
//! opposite one forgotten.
//!
//! Both sides may send an INIT (RFC 9260 section 5.2.1). An INIT ACK that comes late must not bring another tag than that
//! on which both have agreed since: [`SctpTrack`] remembers which sides have sent an INIT that said something new, until
//! a COOKIE ACK ends the exchange.
//!
//! Chunks are taken one after the other. Where one of them makes the packet INVALID, what those before it did stays, as
//! in Linux.
//!
//! *Life-cycle*: within its connection. *Threads*: the owner's worker. *Limits*: [`SctpChunks::MAX`] chunks a packet.
//! *Sources*: RFC 9260 sections 4, 5.2, 8.4 and 8.5; `linux/net/netfilter/nf_conntrack_proto_sctp.c`, asked as a black
//! box: `dataplane/tests/traces/sctp_recorded.trace` is what it answered.
//!
//! [`SctpChunks::MAX`]: crate::packet::SctpChunks::MAX

use super::l4::{BODY_WORDS, Context, L4Body, Step};
use super::timeouts::Timeouts;
use super::tuple::Direction;
use crate::drop::DropReason;
use crate::packet::{SctpChunk, SctpPacket};
use crate::time::Nanos;

/// State of a tracked association; names as conntrack prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SctpState {
    /// Nothing seen.
    #[default]
    Unknown,
    /// An INIT was seen and not answered yet, or all is over.
    Closed,
    /// INIT and INIT ACK seen.
    CookieWait,
    /// COOKIE ECHO seen.
    CookieEchoed,
    /// COOKIE ACK seen, or a HEARTBEAT was answered.
    Established,
    /// The originator has sent SHUTDOWN.
    ShutdownSent,
    /// The other side has.
    ShutdownRecd,
    /// SHUTDOWN ACK seen.
    ShutdownAckSent,
    /// A HEARTBEAT came first.
    HeartbeatSent,
}

impl SctpState {
    /// All states.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Closed,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::Established,
        Self::ShutdownSent,
        Self::ShutdownRecd,
        Self::ShutdownAckSent,
        Self::HeartbeatSent,
    ];

    /// Its name in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "NONE",
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Established => "ESTABLISHED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownRecd => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Its idle timeout.
    pub const fn timeout(self, t: &Timeouts) -> Nanos {
        match self {
            Self::Unknown | Self::Closed => t.sctp_closed,
            Self::CookieWait => t.sctp_cookie_wait,
            Self::CookieEchoed => t.sctp_cookie_echoed,
            Self::Established => t.sctp_established,
            Self::ShutdownSent => t.sctp_shutdown_sent,
            Self::ShutdownRecd => t.sctp_shutdown_recd,
            Self::ShutdownAckSent => t.sctp_shutdown_ack_sent,
            Self::HeartbeatSent => t.sctp_heartbeat_sent,
        }
    }

    /// The state after `chunk` in `direction`; `None` where the chunk cannot come now.
    pub const fn after(self, direction: Direction, chunk: SctpChunk) -> Option<Self> {
        use Direction::{Original, Reply};
        use SctpChunk as C;
        let closes = matches!(chunk, C::Abort | C::AbortReflected);
        let completes = matches!(chunk, C::ShutdownComplete | C::ShutdownCompleteReflected);
        Some(match (self, direction, chunk) {
            // A beginning. All but INIT and HEARTBEAT come from associations that nobody here knows (any more).
            (Self::Unknown, Original, C::Heartbeat) => Self::HeartbeatSent,
            (Self::Unknown, Original, C::ShutdownAck) => Self::ShutdownAckSent,
            (Self::Unknown, Original, C::Init | C::InitAck | C::HeartbeatAck) => Self::Closed,
            (Self::Unknown, Original, C::Shutdown | C::Error | C::CookieEcho) => Self::Closed,
            (Self::Unknown, ..) => return None,

            (_, _, C::Other | C::Heartbeat) => self,

            (Self::HeartbeatSent, Original, C::Init) => Self::CookieWait,
            (Self::HeartbeatSent, Original, C::HeartbeatAck) => Self::HeartbeatSent,
            (Self::HeartbeatSent, Original, C::ShutdownAck) => Self::ShutdownAckSent,
            (Self::HeartbeatSent, Original, _) => Self::Closed,
            (Self::HeartbeatSent, Reply, C::HeartbeatAck) => Self::Established,
            (Self::HeartbeatSent, Reply, _) => return None,

            _ if closes => Self::Closed,
            (Self::Closed, Reply, C::InitAck) => Self::CookieWait,
            (Self::CookieWait, _, C::CookieEcho) => Self::CookieEchoed,
            (Self::CookieEchoed, _, C::CookieAck) => Self::Established,
            (Self::CookieEchoed, Reply, C::Error) => Self::Closed,
            (Self::Established, Original, C::Shutdown) => Self::ShutdownSent,
            (Self::Established, Reply, C::Shutdown) => Self::ShutdownRecd,
            (Self::ShutdownSent | Self::ShutdownRecd, Original, C::Init) => Self::Closed,
            (Self::ShutdownSent | Self::ShutdownRecd, _, C::ShutdownAck) => Self::ShutdownAckSent,
            (Self::ShutdownAckSent, ..) if completes => Self::Closed,
            _ => self,
        })
    }
}

/// What is known of an association.
#[derive(Clone, Copy, Debug, Default)]
pub struct SctpTrack {
    state: SctpState,
    /// By direction: whether an INIT that said something new came that way.
    init: [bool; 2],
    /// The direction of a HEARTBEAT with a wrong tag that was not answered yet.
    stray: Option<Direction>,
    /// By direction: the tag is not known, and the first that comes is right.
    lenient: [bool; 2],
    /// By direction: the tag that packets must carry; 0 where it is not known.
    vtags: [u32; 2],
}

/// What a packet has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Walked {
    /// It prolongs the connection.
    prolongs: bool,
    /// It has established the association.
    establishes: bool,
}

impl SctpTrack {
    /// The two parts that are kept in different places: its state, and the rest.
    pub fn split(&self) -> (SctpState, L4Body) {
        let mut words = [0; BODY_WORDS];
        [words[0], words[1]] = self.vtags;
        let stray = match self.stray {
            None => 0,
            Some(Direction::Original) => 1,
            Some(Direction::Reply) => 2,
        };
        words[2] = self.init.iter().chain(&self.lenient).fold(stray, |bits, &b| bits << 1 | u32::from(b));
        (self.state, L4Body(words))
    }

    /// What [`SctpTrack::split`] has taken apart.
    pub fn join(state: SctpState, body: &L4Body) -> Self {
        let [original, reply, bits, ..] = body.0;
        let has = |n: u32| bits >> n & 1 == 1;
        let stray = match bits >> 4 {
            1 => Some(Direction::Original),
            2 => Some(Direction::Reply),
            _ => None,
        };
        Self { state, init: [has(3), has(2)], stray, lenient: [has(1), has(0)], vtags: [original, reply] }
    }

    /// The connection that a packet out of nothing starts.
    ///
    /// # Errors
    /// The packet starts none.
    pub fn begin(p: &SctpPacket) -> Result<Self, DropReason> {
        let (original, reply) = (Direction::Original.index(), Direction::Reply.index());
        let mut track = Self::default();
        for chunk in p.chunks.iter() {
            match SctpState::Unknown.after(Direction::Original, chunk) {
                Some(SctpState::Unknown) | None => return Err(DropReason::InvalidSctpState),
                Some(_) => {}
            }
            match chunk {
                SctpChunk::Init if p.vtag != 0 => return Err(DropReason::InvalidSctpTag),
                SctpChunk::Heartbeat | SctpChunk::HeartbeatAck => track.vtags[original] = p.vtag,
                // RFC 9260 section 8.4 (5): SHUTDOWN COMPLETE answers it, with the same tag.
                SctpChunk::ShutdownAck => track.vtags[reply] = p.vtag,
                _ => {}
            }
        }
        track.walk(p, Direction::Original, true)?;
        Ok(track)
    }

    /// A connection in this state of whose tags nothing is known.
    pub const fn lenient(state: SctpState) -> Self {
        Self { state, init: [false; 2], stray: None, lenient: [true; 2], vtags: [0; 2] }
    }

    /// Its state.
    pub const fn state(&self) -> SctpState {
        self.state
    }

    /// Moves the connection on by a packet.
    pub fn step(&mut self, p: &SctpPacket, c: &Context<'_>) -> Step {
        let old = self.state;
        match self.walk(p, c.direction, false) {
            Ok(Walked { prolongs, establishes }) => Step::Pass {
                timeout: prolongs.then(|| self.state.timeout(c.timeouts)),
                assured: establishes,
                end: false,
                changed: self.state != old,
            },
            Err(reason) => Step::Invalid(reason),
        }
    }

    /// Takes the chunks one after the other. `first`: it is the connection's first packet.
    fn walk(&mut self, p: &SctpPacket, direction: Direction, first: bool) -> Result<Walked, DropReason> {
        let own = direction.index();
        self.learn(p, direction);
        if p.chunks.iter().all(|c| !has_tag_rule(c)) && p.vtag != self.vtags[own] {
            return Err(DropReason::InvalidSctpTag);
        }
        let (mut stray, mut repeated, mut establishes) = (false, false, false);
        for chunk in p.chunks.iter() {
            match chunk {
                SctpChunk::Heartbeat | SctpChunk::HeartbeatAck => {
                    if self.heartbeat(chunk, p, direction, stray)? {
                        stray = true;
                        continue;
                    }
                }
                _ => self.check_tag(chunk, p.vtag, direction)?,
            }
            let old = self.state;
            let new = old.after(direction, chunk).ok_or(DropReason::InvalidSctpState)?;
            match chunk {
                SctpChunk::Init => {
                    self.note_init(p.init_tag, direction, first);
                    repeated = !first && old == SctpState::Closed && new == SctpState::Closed;
                }
                SctpChunk::InitAck => self.note_init_ack(p.init_tag, direction)?,
                SctpChunk::CookieAck => self.init = [false; 2],
                _ => {}
            }
            establishes |= new != old && new == SctpState::Established;
            self.state = new;
        }
        // An INIT that is sent again does not prolong what nobody answers: the entry, and a translation that holds a
        // port, would never go.
        Ok(Walked { prolongs: !stray && !repeated, establishes })
    }

    /// Takes the tag of the first packet for granted where tags are not known.
    fn learn(&mut self, p: &SctpPacket, direction: Direction) {
        let reflected =
            |c| matches!(c, SctpChunk::Init | SctpChunk::AbortReflected | SctpChunk::ShutdownCompleteReflected);
        let own = direction.index();
        if self.lenient[own] && !p.chunks.iter().any(reflected) {
            self.lenient[own] = false;
            self.vtags[own] = p.vtag;
        }
    }

    fn check_tag(&self, chunk: SctpChunk, vtag: u32, direction: Direction) -> Result<(), DropReason> {
        let [own, peer] = [direction, direction.opposite()].map(|d| (self.vtags[d.index()], self.lenient[d.index()]));
        let right = match chunk {
            SctpChunk::Init => vtag == 0,
            SctpChunk::Abort | SctpChunk::ShutdownComplete | SctpChunk::CookieEcho => vtag == own.0,
            SctpChunk::AbortReflected | SctpChunk::ShutdownCompleteReflected => vtag == peer.0 || peer.1,
            _ => true,
        };
        if right { Ok(()) } else { Err(DropReason::InvalidSctpTag) }
    }

    /// Learns the tag of a HEARTBEAT or its answer. Says whether it is one to pass without further consequences;
    /// `stray`: the packet has had one already.
    fn heartbeat(
        &mut self,
        chunk: SctpChunk,
        p: &SctpPacket,
        direction: Direction,
        stray: bool,
    ) -> Result<bool, DropReason> {
        let (own, peer) = (direction.index(), direction.opposite().index());
        if self.vtags[own] == 0 {
            self.vtags[own] = p.vtag;
        } else if self.vtags[own] == p.vtag {
            self.stray = None;
        } else if p.has_data || stray {
            return Err(DropReason::InvalidSctpTag);
        } else if chunk == SctpChunk::Heartbeat {
            self.stray = Some(direction);
            return Ok(true);
        } else if self.stray == Some(direction.opposite()) {
            self.stray = None;
            self.vtags[own] = p.vtag;
            self.vtags[peer] = 0;
        } else {
            return Err(DropReason::InvalidSctpTag);
        }
        Ok(false)
    }

    /// An INIT announces the tag that answers must carry. One that repeats the known tag says nothing new.
    fn note_init(&mut self, tag: u32, direction: Direction, first: bool) {
        let (own, peer) = (direction.index(), direction.opposite().index());
        if first || tag != self.vtags[peer] {
            if self.init == [true; 2] {
                self.init[peer] = false;
            }
            self.init[own] = true;
        }
        self.vtags[peer] = tag;
        self.lenient[peer] = false;
    }

    /// So does an INIT ACK; but another tag than the known one only where it answers the last new INIT, and not where
    /// both sides have sent one.
    fn note_init_ack(&mut self, tag: u32, direction: Direction) -> Result<(), DropReason> {
        let peer = direction.opposite().index();
        let known = self.vtags[peer];
        let late = !self.init[peer] && known != 0 || self.init == [true; 2];
        if late && known != tag && !self.lenient[peer] {
            return Err(DropReason::InvalidSctpTag);
        }
        self.vtags[peer] = tag;
        self.lenient[peer] = false;
        Ok(())
    }
}

/// Whether the packet's tag need not be the receiver's, because of this chunk.
const fn has_tag_rule(chunk: SctpChunk) -> bool {
    use SctpChunk as C;
    matches!(
        chunk,
        C::Init
            | C::CookieEcho
            | C::Abort
            | C::AbortReflected
            | C::ShutdownAck
            | C::ShutdownComplete
            | C::ShutdownCompleteReflected
            | C::Heartbeat
            | C::HeartbeatAck
    )
}
