//! A connection: what is kept per entry of the table, and the unconfirmed one that is not in it yet.
//!
//! *Life-cycle*: a packet that starts a connection makes an [`Unconfirmed`] on the stack; NAT edits its reply tuple;
//! only when the policy has accepted the packet does `Conntrack::confirm` turn it into a [`Conn`]. A refused packet
//! leaves nothing behind. *Threads*: the owner's worker alone.
//! *Sources*: `linux/include/net/netfilter/nf_conntrack.h`.

use super::l4::{L4Head, L4State};
use super::timer::Link;
use super::tuple::{Direction, Tuple};
use crate::api::policy::HelperKind;
use crate::io::PortIdx;
use crate::packet::CtState;
use crate::time::Nanos;

/// What was found out for one direction of a connection and holds until policy or routes change.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Cached {
    /// The worker's epoch in which this was found; 0 is never current.
    pub epoch: u32,
    /// The counter of what the rules decided, the class that packets had, and whether they accept.
    decision: u32,
    /// Where packets came in: rules know zones and interfaces, tuples do not.
    pub in_port: PortIdx,
    /// Where packets leave.
    pub egress: PortIdx,
    /// The next hop's entry among the neighbours; unused where `egress` is a twin.
    pub neighbour: u32,
}

/// Bits of [`Cached::decision`]: the counter, below it three bits of class and one of acceptance.
const DECISION_SHIFT: u32 = 4;
const _: () = assert!(crate::api::policy::MAX_RULES + crate::api::rules::TRAILS < 1 << (32 - DECISION_SHIFT));

impl Cached {
    /// What was found for packets of class `state` that came in by `in_port`.
    pub const fn new(epoch: u32, counter: u32, state: CtState, accept: bool, in_port: PortIdx) -> Self {
        let decision = counter << DECISION_SHIFT | (state as u32) << 1 | accept as u32;
        Self { epoch, decision, in_port, egress: PortIdx(0), neighbour: 0 }
    }

    /// The same with where packets leave.
    pub const fn leaving(self, egress: PortIdx, neighbour: u32) -> Self {
        Self { egress, neighbour, ..self }
    }

    /// All of it, to compare.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let first = self.epoch as u64 | (self.decision as u64) << 32;
        [first, self.in_port.0 as u64 | (self.egress.0 as u64) << 16 | (self.neighbour as u64) << 32]
    }

    /// The counter of packets of which this holds: see [`crate::api::rules`].
    pub const fn counter(&self) -> u32 {
        self.decision >> DECISION_SHIFT
    }

    /// The same, of the first of its [`words`](Self::words).
    pub const fn counter_of(word: u64) -> u32 {
        (word >> 32) as u32 >> DECISION_SHIFT
    }

    /// Whether the rule that decided accepts.
    pub const fn accepts(&self) -> bool {
        self.decision & 1 == 1
    }

    /// Whether this is about packets of class `state` and accepts them.
    #[inline]
    pub const fn accepts_class(&self, state: CtState) -> bool {
        self.decision & 15 == (state as u32) << 1 | 1
    }

    /// Whether this is about packets of class `state`.
    pub const fn is_of(&self, state: CtState) -> bool {
        self.decision >> 1 & 7 == state as u32
    }
}

impl Default for Cached {
    fn default() -> Self {
        Self::new(0, 0, CtState::New, false, PortIdx(0))
    }
}

/// Flags of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// A reply was seen.
    pub const REPLIED: Self = Self(1);
    /// Worth keeping under pressure.
    pub const ASSURED: Self = Self(2);
    /// The reply's home worker holds a signpost to us.
    pub const SIGNPOSTED: Self = Self(4);
    /// Its source is translated and the port is leased.
    pub const LEASED: Self = Self(8);
    /// Ended, but its signpost could not be taken back yet: not found any more, retried by the wheel.
    pub const DYING: Self = Self(16);
    /// Some address or port is translated.
    pub const TRANSLATED: Self = Self(32);
    /// Another connection announced it: RELATED until the reply was seen.
    pub const EXPECTED: Self = Self(64);
    /// A helper watches it: the helper table has what that needs.
    pub const HELPED: Self = Self(128);
    /// The original tuple's home worker holds a signpost to us, as for a connection that came where it was expected.
    pub const SIGNPOSTED_ORIGINAL: Self = Self(256);
    /// Its helper has changed lengths, so sequence numbers are adjusted.
    pub const ADJUSTED: Self = Self(512);
    /// The entry holds a connection; set and cleared by the table.
    pub const LIVE: Self = Self(1024);
    /// Not yet a connection: another worker is asked whether the reply tuple is free. It holds both tuples meanwhile.
    pub const PENDING: Self = Self(1 << 15);

    /// Its source is translated to the primary address of the interface that it leaves by, whichever that is.
    pub const MASQUERADED: Self = Self(2048);
    /// Its source is translated to an address of the gateway's.
    pub const OWN_SOURCE: Self = Self(4096);
    /// Its destination is translated, and was one of them before or is one now.
    pub const OWN_DESTINATION: Self = Self(8192);
    /// A reload that would translate it otherwise ends it.
    pub const ENDS_ON_RELOAD: Self = Self(16384);

    /// Those that say that a translation is bound to addresses of the gateway.
    pub const BOUND_TO_ADDRESSES: Self = Self(Self::MASQUERADED.0 | Self::OWN_SOURCE.0 | Self::OWN_DESTINATION.0);

    /// Whether any of `f` is set.
    pub const fn has_any(self, f: Self) -> bool {
        self.0 & f.0 != 0
    }

    /// These and `f`.
    pub const fn with(self, f: Self) -> Self {
        Self(self.0 | f.0)
    }

    /// Of these, those that are in `f`.
    pub const fn only(self, f: Self) -> Self {
        Self(self.0 & f.0)
    }

    /// Whether all of `f` are set.
    pub const fn has(self, f: Self) -> bool {
        self.0 & f.0 == f.0
    }

    /// Clears `f`.
    pub const fn clear(&mut self, f: Self) {
        self.0 &= !f.0;
    }

    /// Sets `f`; says whether it was not set before.
    pub const fn set(&mut self, f: Self) -> bool {
        let fresh = !self.has(f);
        self.0 |= f.0;
        fresh
    }
}

/// Points in time are kept in units of 2^26 ns, 67 ms: 32 bits of them last nine years, or half of that either way.
const COARSE: u32 = 26;

/// A point in time, kept in four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coarse(u32);

impl Coarse {
    /// The first such point that is not before `t`: what was set for some seconds is shown as that.
    #[inline]
    pub fn at(t: Nanos) -> Self {
        Self(u32::try_from(t.0.div_ceil(1 << COARSE)).unwrap_or(u32::MAX))
    }

    /// That point.
    #[inline]
    pub fn nanos(self) -> Nanos {
        Nanos(u64::from(self.0) << COARSE)
    }
}

/// A confirmed connection, without its tuples (the table keeps those beside it).
///
/// With two IPv4 tuples before it the first cache line ends in front of `bytes`.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Conn {
    deadline: Coarse,
    /// When it was confirmed, in the same units; before the process's start where a saved table says so.
    start: i32,
    /// The policy epoch in which the connection as a whole was last accepted.
    pub judged: u32,
    /// The port that its first packet came in by.
    pub in_port: PortIdx,
    /// What has happened to it.
    pub flags: Flags,
    /// The state that its protocol's tracker has it in; what else that knows lies apart, in the table.
    pub l4: L4Head,
    /// Its place in the timer wheel.
    pub link: Link,
    /// Index of its timeout policy, from 1; 0 for the general timeouts.
    pub timeout_policy: u8,
    /// In which set of limits it is counted; 0 for none.
    pub counted: u8,
    /// Bytes of IP packets, original and reply.
    pub bytes: [u64; 2],
    /// What was found out per direction.
    pub cache: [Cached; 2],
    /// The lower 32 bits of 48 each, by direction: at a hundred million a second they last a month.
    packets: [u32; 2],
    packets_high: [u16; 2],
    /// The connection's mark: set by rules and by the operator, matched by rules.
    pub mark: u32,
}

const _: () = assert!(size_of::<Conn>() <= 96, "128 bytes with both IPv4 tuples: two cache lines");

impl Conn {
    /// A connection that starts at `now` and expires after `timeout`.
    pub fn new(l4: L4Head, timeout: Nanos, in_port: PortIdx, now: Nanos) -> Self {
        let start = i32::try_from(now.0 >> COARSE).unwrap_or(i32::MAX);
        Self { deadline: Coarse::at(now + timeout), start, in_port, l4, ..Self::default() }
    }

    /// When it expires if nothing comes, less than 67 ms after its timeout.
    #[inline]
    pub fn deadline(&self) -> Nanos {
        self.deadline.nanos()
    }

    /// It expires at `t` if nothing comes. Says whether that is sooner than before.
    #[inline]
    pub fn set_deadline(&mut self, t: Nanos) -> bool {
        let old = std::mem::replace(&mut self.deadline, Coarse::at(t));
        self.deadline.0 < old.0
    }

    /// It expires then if nothing comes; `false`, and nothing changed, where that is sooner than before.
    #[inline(always)]
    pub const fn extend(&mut self, deadline: Coarse) -> bool {
        let later = deadline.0 >= self.deadline.0;
        if later {
            self.deadline = deadline;
        }
        later
    }

    /// Whether it expires at `now` or has: rounded down, that is all that counts.
    #[inline(always)]
    pub const fn is_over(&self, now: Nanos) -> bool {
        self.deadline.0 as u64 <= now.0 >> COARSE
    }

    /// How long ago it was confirmed, to 67 ms.
    pub fn age(&self, now: Nanos) -> Nanos {
        Nanos(now.0.saturating_add_signed(-(i64::from(self.start) << COARSE)))
    }

    /// The class of its packets of this direction: `nf_conntrack_core.c`, `resolve_normal_ct`.
    #[inline]
    pub fn class(&self, direction: Direction) -> CtState {
        if direction == Direction::Reply || self.flags.has(Flags::REPLIED) {
            CtState::Established
        } else if self.flags.has(Flags::EXPECTED) {
            CtState::Related
        } else {
            CtState::New
        }
    }

    /// Packets, original and reply.
    pub fn packets(&self) -> [u64; 2] {
        [0, 1].map(|d| u64::from(self.packets_high[d]) << 32 | u64::from(self.packets[d]))
    }

    /// Gives a connection of a saved table what it had; `age` is cut to four and a half years.
    pub fn restore(&mut self, age: Nanos, now: Nanos, packets: [u64; 2], bytes: [u64; 2]) {
        let start = (i128::from(now.0) - i128::from(age.0)) >> COARSE;
        self.start = i32::try_from(start).unwrap_or(if start < 0 { i32::MIN } else { i32::MAX });
        self.packets = packets.map(|n| (n & 0xffff_ffff) as u32);
        self.packets_high = packets.map(|n| (n >> 32 & 0xffff) as u16);
        self.bytes = bytes;
    }

    /// Has both directions found out again.
    pub fn forget(&mut self) {
        self.cache = [Cached::default(); 2];
    }

    /// Counts one packet of `bytes` bytes.
    #[inline]
    pub fn account(&mut self, direction: Direction, bytes: u32) {
        let i = direction.index();
        self.packets[i] = self.packets[i].wrapping_add(1);
        if self.packets[i] == 0 {
            self.packets_high[i] = self.packets_high[i].wrapping_add(1);
        }
        self.bytes[i] = self.bytes[i].wrapping_add(u64::from(bytes));
    }
}

/// A connection that the policy has not accepted yet.
#[derive(Clone, Copy, Debug)]
pub struct Unconfirmed {
    /// As its first packet came.
    pub original: Tuple,
    /// As replies will come: NAT edits this.
    pub reply: Tuple,
    /// What the protocol's tracker knows after the first packet.
    pub l4: L4State,
    /// Idle timeout after the first packet.
    pub timeout: Nanos,
    /// Index of the timeout policy that its rule gives it, from 1; 0 for the general timeouts.
    pub timeout_policy: u8,
    /// The mark that rules gave it.
    pub mark: u32,
    /// Whether another connection announced it.
    pub expected: bool,
    /// The helper that is to watch it.
    pub helper: Option<HelperKind>,
    /// The port that the packet came in by.
    pub in_port: PortIdx,
    /// Whether a source port or identifier was leased for it.
    pub leased: bool,
    /// What its translation is bound to: [`Flags::MASQUERADED`], [`Flags::OWN_SOURCE`], [`Flags::OWN_DESTINATION`],
    /// [`Flags::ENDS_ON_RELOAD`].
    pub bound: Flags,
    /// Of each tuple that no connection has, as was found out already: its hash.
    pub free: [Option<u64>; 2],
    /// Ports of which the reply tuple may have another one, where its home has that and not this: first and last.
    pub borrows: Option<(u16, u16)>,
}

impl Unconfirmed {
    /// Whether anything is translated.
    pub fn is_translated(&self) -> bool {
        !self.reply.same_wire(&self.original.inverse())
    }
}
