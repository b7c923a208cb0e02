//! What can be seen of one packet's way: its class, what left, and the state of its connection afterwards.
//!
//! *Life-cycle*: a [`System`] makes one [`Observation`] per frame that it is sent; the comparison reads it, a record
//! keeps it as text.

use std::fmt;
use std::io;
use std::time::Duration;

use dataplane::api::Tuple;

use crate::frame::Side;

/// A packet's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Starts a connection, or goes on starting one.
    New,
    /// Belongs to one that has answered.
    Established,
    /// Announced by one, or an error about one.
    Related,
    /// Belongs to nothing.
    Invalid,
    /// Not tracked.
    Untracked,
}

impl Class {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::New, Self::Established, Self::Related, Self::Invalid, Self::Untracked];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
        }
    }

    /// The class of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// Where a packet left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// By a link: the bytes are a frame.
    Link(Side),
    /// To the router itself: the bytes are an IP packet.
    Local,
}

impl Exit {
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link(side) => side.name(),
            Self::Local => "local",
        }
    }

    /// The exit of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Link(Side::Lan), Self::Link(Side::Wan), Self::Local].into_iter().find(|e| e.name() == name)
    }
}

/// A connection as its system shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnState {
    /// As its first packet came.
    pub original: Tuple,
    /// As replies come.
    pub reply: Tuple,
    /// The protocol's state by its name, empty where it has none.
    pub state: String,
    /// A reply was seen.
    pub replied: bool,
    /// Kept under pressure.
    pub assured: bool,
    /// Seconds left.
    pub timeout: u32,
    /// Packets, original and reply.
    pub packets: [u64; 2],
    /// Bytes, likewise.
    pub bytes: [u64; 2],
    /// The mark.
    pub mark: u32,
}

impl ConnState {
    /// Without conntrack zones.
    pub fn anywhere(mut self) -> Self {
        (self.original.ct_zone, self.reply.ct_zone) = (0, 0);
        self
    }
}

impl fmt::Display for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { original, reply, state, replied, assured, timeout, packets, bytes, mark } = self;
        write!(f, "[{original} | {reply}] {state} {timeout} s")?;
        write!(f, "{}{}", if *replied { "" } else { " UNREPLIED" }, if *assured { " ASSURED" } else { "" })?;
        write!(f, " packets {}/{} bytes {}/{}", packets[0], packets[1], bytes[0], bytes[1])?;
        if *mark != 0 { write!(f, " mark {mark}") } else { Ok(()) }
    }
}

/// What was seen of one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Its class; `None` where tracking never saw it: broken, or a fragment that waits.
    pub class: Option<Class>,
    /// Whether it was of the reply direction; errors have their connection's.
    pub reply: bool,
    /// What left, in the order in which it left each exit; the packet itself, errors about it, fragments.
    pub out: Vec<(Exit, Vec<u8>)>,
    /// The tuple that the packet is of or about, where the system knows it: a datagram's whose last fragment this is.
    pub about: Option<Tuple>,
    /// Why it was dropped, where the system says so. Not compared.
    pub reason: Option<&'static str>,
    /// The connection of that tuple afterwards: [`System::find`] tells.
    pub conn: Option<ConnState>,
}

impl Observation {
    /// Whether it is a packet of the original direction of a connection, or of one that begins.
    pub const fn is_original(&self) -> bool {
        !self.reply && matches!(self.class, Some(Class::New | Class::Established))
    }

    /// Class and direction as one word.
    pub fn class_text(&self) -> String {
        match self.class {
            None => "-".into(),
            Some(c) => format!("{}{}", c.name(), if self.reply { "<" } else { "" }),
        }
    }
}

/// Something that frames can be sent through.
pub trait System {
    /// What reports call it.
    fn name(&self) -> String;

    /// Sends `frame` in on `side`, `at` this time since the beginning, and sees what comes of it.
    ///
    /// # Errors
    /// The system is broken; the run ends.
    fn send(&mut self, at: Duration, side: Side, frame: &[u8]) -> io::Result<Observation>;

    /// The connection that has `t` in either direction, in whatever conntrack zone; zones themselves are left out of what
    /// it shows.
    ///
    /// # Errors
    /// As [`System::send`].
    fn find(&mut self, t: &Tuple) -> io::Result<Option<ConnState>>;

    /// Of how many packets one has its connection asked for; more are where something else differs, or it is NEW.
    fn sample(&self) -> u64 {
        1
    }

    /// What time it is there; a system in virtual time says what it was last told.
    fn now(&self) -> Duration;

    /// Lets time pass until `at`; what leaves meanwhile.
    ///
    /// # Errors
    /// As [`System::send`].
    fn wait(&mut self, at: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>>;
}
