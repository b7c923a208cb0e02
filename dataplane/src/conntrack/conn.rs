//! A connection: what is kept per entry of the table, and the unconfirmed one that is not in it yet.
//!
//! *Life-cycle*: a packet that starts a connection makes an [`Unconfirmed`] on the stack; NAT edits its reply tuple;
//! only when the policy has accepted the packet does `Conntrack::confirm` turn it into a [`Conn`]. A refused packet
//! leaves nothing behind. *Threads*: the owner's worker alone.
//! *Sources*: `linux/include/net/netfilter/nf_conntrack.h`.

use super::tcp::TcpState;
use super::timer::Link;
use super::tuple::{Direction, Tuple};
use crate::io::PortIdx;
use crate::packet::CtState;
use crate::time::Nanos;

/// What was found out for one direction of a connection and holds until policy or routes change.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    /// The worker's epoch in which this was found; 0 is never current.
    pub epoch: u32,
    /// The rule that decided.
    pub rule: u32,
    /// The class that packets had.
    pub state: CtState,
    /// Whether the rule accepts.
    pub accept: bool,
    /// Where packets came in: rules know zones and interfaces, tuples do not.
    pub in_port: PortIdx,
    /// Where packets leave.
    pub egress: PortIdx,
    /// The next hop's entry among the neighbours; unused where `egress` is a twin.
    pub neighbour: u32,
}

impl Default for Cached {
    fn default() -> Self {
        let nowhere = PortIdx(0);
        Self { epoch: 0, rule: 0, state: CtState::New, accept: false, in_port: nowhere, egress: nowhere, neighbour: 0 }
    }
}

/// Flags of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

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

/// A confirmed connection, without its tuples (the table keeps those beside it).
#[derive(Clone, Debug, Default)]
pub struct Conn {
    /// When it expires if nothing comes.
    pub deadline: Nanos,
    /// When it was confirmed, and for UDP when it counts as a stream.
    pub start: Nanos,
    /// Packets, original and reply.
    pub packets: [u64; 2],
    /// Bytes of IP packets, original and reply.
    pub bytes: [u64; 2],
    /// What was found out per direction.
    pub cache: [Cached; 2],
    /// The policy epoch in which the connection as a whole was last accepted.
    pub judged: u32,
    /// The port that its first packet came in by.
    pub in_port: PortIdx,
    /// TCP's state.
    pub tcp: TcpState,
    /// What has happened to it.
    pub flags: Flags,
    /// Its place in the timer wheel.
    pub link: Link,
}

impl Conn {
    /// Counts one packet of `bytes` bytes.
    #[inline]
    pub fn account(&mut self, direction: Direction, bytes: u32) {
        let i = direction.index();
        self.packets[i] += 1;
        self.bytes[i] += u64::from(bytes);
    }
}

/// A connection that the policy has not accepted yet.
#[derive(Clone, Copy, Debug)]
pub struct Unconfirmed {
    /// As its first packet came.
    pub original: Tuple,
    /// As replies will come: NAT edits this.
    pub reply: Tuple,
    /// TCP's state after the first packet.
    pub tcp: TcpState,
    /// Idle timeout after the first packet.
    pub timeout: Nanos,
    /// The port that the packet came in by.
    pub in_port: PortIdx,
    /// Whether a source port or identifier was leased for it.
    pub leased: bool,
}

impl Unconfirmed {
    /// Whether anything is translated.
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.inverse()
    }
}
