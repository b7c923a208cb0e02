//! PPTP's control connection: its messages, and the call that they set up.
//!
//! ```text
//!   0       2      4            8       10         12                    14                16
//!   | length | type | cookie     | kind  | reserved | call id            | peer's call id  | result …
//!     all of  1      1A2B3C4D      1..15              the sender's, or in some kinds the receiver's
//! ```
//! A [`Reader`] takes one direction apart as a stream: how segments cut it makes no difference, several messages in one
//! segment are several messages. What looks like a header at the beginning of a segment is one, whatever was missing before:
//! Linux looks nowhere else. [`Control`] is what both directions have said: one session, one call. The call's data packets
//! carry the id that their receiver has chosen; [`Control::pns`] and [`Control::pac`] are the two.
//!
//! Where addresses are rewritten, the client's id is replaced by the port that its control connection has on the other side:
//! that is unique among all who speak with the same server. Messages keep their length, so a [`Patch`] is all that is kept
//! of a change, and a segment that is sent again is changed again.
//!
//! *Life-cycle*: with the connection's helper. *Threads*: the owner's worker. *Limits*: [`PATCHES`] changes per direction
//! that the receiver has not acknowledged; one call per control connection, as in Linux.
//! *Sources*: RFC 2637 section 2; `linux/net/netfilter/nf_conntrack_pptp.c`, `linux/net/ipv4/netfilter/nf_nat_pptp.c`.

use arrayvec::ArrayVec;

use super::seqadj::{Full, ahead, before};
use crate::parse::{be16, be32};

/// Bytes of a message that say something to us.
const HEAD: usize = 17;
/// Bytes up to the header's end.
const HEADER: u32 = 12;
/// RFC 2637 section 1.4.
const COOKIE: u32 = 0x1a2b_3c4d;
/// Ids of a message stand before this.
const IDS_END: u32 = 16;
/// A control message; the other type is reserved.
const CONTROL: u16 = 1;
/// Result codes: the session, the call, the stop is granted.
const GRANTED: u8 = 1;
/// Changes of one direction that are remembered.
pub const PATCHES: usize = 32;
/// Beyond this distance positions could not be told apart from such that lie ahead.
const FAR: u32 = 1 << 30;

/// What a message is: RFC 2637 section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Start-Control-Connection-Request.
    StartRequest = 1,
    /// Start-Control-Connection-Reply.
    StartReply = 2,
    /// Stop-Control-Connection-Request.
    StopRequest = 3,
    /// Stop-Control-Connection-Reply.
    StopReply = 4,
    /// Echo-Request.
    EchoRequest = 5,
    /// Echo-Reply.
    EchoReply = 6,
    /// Outgoing-Call-Request.
    OutRequest = 7,
    /// Outgoing-Call-Reply.
    OutReply = 8,
    /// Incoming-Call-Request.
    InRequest = 9,
    /// Incoming-Call-Reply.
    InReply = 10,
    /// Incoming-Call-Connected.
    InConnected = 11,
    /// Call-Clear-Request.
    Clear = 12,
    /// Call-Disconnect-Notify.
    Disconnect = 13,
    /// WAN-Error-Notify.
    WanError = 14,
    /// Set-Link-Info.
    SetLink = 15,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::StartRequest,
        Self::StartReply,
        Self::StopRequest,
        Self::StopReply,
        Self::EchoRequest,
        Self::EchoReply,
        Self::OutRequest,
        Self::OutReply,
        Self::InRequest,
        Self::InReply,
        Self::InConnected,
        Self::Clear,
        Self::Disconnect,
        Self::WanError,
        Self::SetLink,
    ];

    /// Of its number in the message.
    fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its length, bytes.
    pub const fn size(self) -> u32 {
        match self {
            Self::StartRequest | Self::StartReply => 156,
            Self::StopRequest | Self::StopReply | Self::EchoRequest | Self::Clear => 16,
            Self::EchoReply => 20,
            Self::OutRequest => 168,
            Self::OutReply => 32,
            Self::InRequest => 220,
            Self::InReply | Self::SetLink => 24,
            Self::InConnected => 28,
            Self::Disconnect => 148,
            Self::WanError => 40,
        }
    }
}

/// A message, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The first id.
    pub id: u16,
    /// The second one, in replies to calls.
    pub peer: u16,
    /// Whether what was asked for is granted, in replies.
    pub granted: bool,
}

/// What a [`Reader`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A message's header is over; no id was read yet.
    Begun(Kind),
    /// So much of a message was read as one of its kind has.
    Whole(Message),
}

/// One direction of a control connection.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The message's first bytes.
    head: ArrayVec<u8, HEAD>,
    /// Bytes of it that were read.
    at: u32,
    /// Nobody knows where the next message begins.
    lost: bool,
}

impl Reader {
    /// A segment begins, with `text` that was not read yet. Where that breaks a message off, gives how many bytes of it
    /// there were.
    pub fn segment(&mut self, text: &[u8]) -> Option<u32> {
        let broken = (self.at > 0 && !self.lost && is_header(text)).then_some(self.at);
        if self.lost || broken.is_some() {
            *self = Self::default();
        }
        broken
    }

    /// Some bytes are missing.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Reads on, up to where there is something to say. Gives how many bytes it has read, and how many bytes of the message
    /// those make that it speaks of.
    pub fn read(&mut self, text: &[u8]) -> (usize, Option<(u32, Found)>) {
        for (n, &b) in text.iter().enumerate() {
            if self.lost {
                break;
            }
            if let Some(found) = self.byte(b) {
                return (n + 1, Some(found));
            }
        }
        (text.len(), None)
    }

    fn byte(&mut self, b: u8) -> Option<(u32, Found)> {
        let _ = self.head.try_push(b); // what is behind the head says nothing
        self.at += 1;
        let at = self.at;
        if at < HEADER {
            self.lost = at == 8 && !is_header(&self.head);
            return None;
        }
        let (length, number) = (u32::from(be16(&self.head, 0)), be16(&self.head, 8));
        let kind = Kind::of(number);
        let found = match kind {
            Some(kind) if at == HEADER && length >= kind.size() => Some(Found::Begun(kind)),
            Some(kind) if at == kind.size() => Some(Found::Whole(self.message(kind))),
            _ => None,
        };
        let size = kind.map_or(HEADER, Kind::size);
        if at >= size.max(length) {
            // A length that cannot be its own says nothing of where the next begins.
            *self = Self { lost: length < size, ..Self::default() };
        }
        found.map(|f| (at, f))
    }

    fn message(&self, kind: Kind) -> Message {
        let id = |at: usize| self.head.get(at..at + 2).map_or(0, |b| be16(b, 0));
        let result = match kind {
            Kind::StopReply => 12,
            Kind::StartReply => 14,
            _ => 16,
        };
        Message { kind, id: id(12), peer: id(14), granted: self.head.get(result) == Some(&GRANTED) }
    }
}

/// Whether a control message begins like `b`, at least 8 bytes.
fn is_header(b: &[u8]) -> bool {
    b.len() >= 8 && be16(b, 2) == CONTROL && be32(b, 4) == COOKIE
}

/// Two bytes of a stream for which the receiver gets others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Sequence number of the first.
    pub at: u32,
    /// What stands there for the receiver.
    pub id: u16,
}

/// What is changed in one direction.
#[derive(Clone, Debug, Default)]
pub struct Patches {
    known: ArrayVec<Patch, PATCHES>,
    acked: Option<u32>,
}

impl Patches {
    /// The bytes at `at` become `id`.
    ///
    /// # Errors
    /// [`Full`]: the oldest is not acknowledged yet.
    pub fn set(&mut self, at: u32, id: u16) -> Result<(), Full> {
        if let Some(known) = self.known.iter_mut().find(|p| p.at == at) {
            known.id = id;
            return Ok(());
        }
        if self.known.is_full() {
            let oldest = self.known.first().ok_or(Full)?.at.wrapping_add(2);
            if self.acked.is_none_or(|acked| before(acked, oldest)) {
                return Err(Full);
            }
            self.known.remove(0);
        }
        self.known.push(Patch { at, id });
        Ok(())
    }

    /// The bytes at `at` stay as they are.
    pub fn unset(&mut self, at: u32) {
        self.known.retain(|p| p.at != at);
    }

    /// A message that began at `start` breaks off at `end`: what was to be changed behind that is something else.
    pub fn cut(&mut self, start: u32, end: u32) {
        self.known.retain(|p| p.at.wrapping_sub(start) >= IDS_END || before(p.at.wrapping_add(1), end));
    }

    /// The receiver has got all before `seq`.
    pub fn acknowledged(&mut self, seq: u32) {
        if !self.known.is_empty() && self.acked.is_none_or(|a| before(a, seq)) {
            self.acked = Some(seq);
        }
    }

    /// The stream has got as far as `seq`: what lies too far behind to be compared with it is forgotten.
    pub fn reached(&mut self, seq: u32) {
        self.known.retain(|p| ahead(p.at, seq) <= FAR);
        self.acked = self.acked.filter(|&a| ahead(a, seq) <= FAR);
    }

    /// Changes what is to be changed in `payload`, which begins at `seq`; says whether that was anything.
    pub fn apply(&self, seq: u32, payload: &mut [u8]) -> bool {
        let mut changed = false;
        for p in &self.known {
            for (at, byte) in [p.at, p.at.wrapping_add(1)].into_iter().zip(p.id.to_be_bytes()) {
                if let Some(b) = payload.get_mut(at.wrapping_sub(seq) as usize) {
                    changed |= *b != byte;
                    *b = byte;
                }
            }
        }
        changed
    }

    /// Whether there is anything to change in the `len` bytes from `seq` on.
    pub fn touches(&self, seq: u32, len: u32) -> bool {
        self.known.iter().any(|p| p.at.wrapping_sub(seq) < len || p.at.wrapping_add(1).wrapping_sub(seq) < len)
    }
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Sequence number that comes next; `None` before the first payload.
    pub next: Option<u32>,
    /// What was read up to there.
    pub reader: Reader,
    /// Where bytes are missing that may still come, and how the reader stood there.
    pub hole: Option<(u32, Reader)>,
    /// What is changed on the way.
    pub patches: Patches,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Session {
    #[default]
    None,
    Error,
    Stopping,
    Requested,
    Confirmed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    None,
    OutRequested,
    OutConfirmed,
    InRequested,
    InReplied,
    InConfirmed,
    Clearing,
}

/// What a message leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Pass,
    /// It does not belong here: nothing of it is changed.
    Refused,
    /// The call is there: its packets are to be expected.
    Connected,
    /// The call is over.
    Over,
}

/// What was said over a control connection. The side that opened it is the PPTP network server ("PNS": whoever dials), the
/// other the access concentrator ("PAC"), as Linux has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    session: Session,
    call: Call,
    /// The opener's call id, as it has chosen it.
    pub own: u16,
    /// The same, as the other side knows it.
    pub pns: u16,
    /// The other side's call id.
    pub pac: u16,
}

impl Control {
    /// What stands in place of an id of such a message, and how many bytes behind the message's beginning; `from_opener`: who
    /// says it. `port` is what the opener's control connection has on the other side, where addresses are rewritten.
    pub fn replacement(&self, kind: Kind, from_opener: bool, port: u16) -> Option<(u32, u16)> {
        let called = self.own != 0 || self.pns != 0;
        match (kind, from_opener) {
            (Kind::OutRequest | Kind::InReply, true) => Some((12, port)),
            (Kind::Clear, true) if called => Some((12, self.pns)),
            (Kind::OutReply, false) if called => Some((14, self.own)),
            // A disconnect's id is the sender's own by RFC 2637; Linux replaces it all the same, and clients expect theirs.
            (Kind::InConnected | Kind::WanError | Kind::SetLink | Kind::Disconnect, false) if called => {
                Some((12, self.own))
            }
            _ => None,
        }
    }

    /// Takes note of a message. `port`: see [`Control::replacement`]; `None` where nothing is rewritten.
    pub fn hear(&mut self, m: &Message, from_opener: bool, port: Option<u16>) -> Effect {
        let heard = if from_opener { self.opener_says(m, port) } else { self.answerer_says(m) };
        heard.unwrap_or(Effect::Refused)
    }

    fn opener_says(&mut self, m: &Message, port: Option<u16>) -> Option<Effect> {
        match m.kind {
            Kind::StartRequest if self.session == Session::None => self.session = Session::Requested,
            Kind::StopRequest => self.session = Session::Stopping,
            Kind::OutRequest if self.session == Session::Confirmed => {
                self.call = Call::OutRequested;
                (self.own, self.pns) = (m.id, port.unwrap_or(m.id));
            }
            Kind::InReply if matches!(self.call, Call::InRequested | Call::InReplied) && m.peer == self.pac => {
                self.call = if m.granted { Call::InReplied } else { Call::None };
                (self.own, self.pns) = (m.id, port.unwrap_or(m.id));
            }
            Kind::Clear if self.session == Session::Confirmed => self.call = Call::Clearing,
            Kind::SetLink | Kind::EchoRequest | Kind::EchoReply => {}
            _ => return None,
        }
        Some(Effect::Pass)
    }

    fn answerer_says(&mut self, m: &Message) -> Option<Effect> {
        let confirmed = self.session == Session::Confirmed;
        match m.kind {
            Kind::StartReply if self.session >= Session::Requested => {
                self.session = if m.granted { Session::Confirmed } else { Session::Error };
            }
            Kind::StopReply if self.session <= Session::Stopping => {
                self.session = if m.granted { Session::None } else { Session::Error };
            }
            Kind::OutReply
                if confirmed && matches!(self.call, Call::OutRequested | Call::OutConfirmed) && m.peer == self.pns =>
            {
                self.call = if m.granted { Call::OutConfirmed } else { Call::None };
                if m.granted {
                    self.pac = m.id;
                    return Some(Effect::Connected);
                }
            }
            Kind::InRequest if confirmed => {
                self.call = Call::InRequested;
                self.pac = m.id;
            }
            Kind::InConnected
                if confirmed && matches!(self.call, Call::InReplied | Call::InConfirmed) && m.id == self.pns =>
            {
                self.call = Call::InConfirmed;
                return Some(Effect::Connected);
            }
            Kind::Disconnect => {
                self.call = Call::None;
                return Some(Effect::Over);
            }
            Kind::WanError | Kind::SetLink | Kind::EchoRequest | Kind::EchoReply => {}
            _ => return None,
        }
        Some(Effect::Pass)
    }
}

#[cfg(test)]
mod tests;
