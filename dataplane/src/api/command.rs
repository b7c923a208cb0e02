//! What the control thread tells a worker, and what a worker tells control.
//!
//! *Threads*: each worker has one bounded command channel, polled once per loop; all workers share one event channel
//! back. *Limits*: a command costs a bounded amount of work: dumps, flushes and updates go a few table slots further each
//! turn, and after at most [`SCAN_PER_COMMAND`] they reply with a cursor, and control asks again.

use std::net::IpAddr;
use std::sync::Arc;

use super::policy::{HelperKind, Policy};
use super::rules::RuleCounters;
use super::stats::CtEvent;
use crate::conntrack::limit::Limits;
use crate::conntrack::tuple::Tuple;
use crate::drop::DropReason;
use crate::forward::neighbour::NeighbourUpdate;
use crate::forward::route::Fib;
use crate::helper::saved::SavedSides;
use crate::steer::Steer;

/// Connection table slots that one [`Command::List`], [`Command::Delete`], [`Command::Update`],
/// [`Command::Flush`] or [`Command::Sweep`] looks at.
pub const SCAN_PER_COMMAND: u32 = 4096;

/// A request to one worker.
#[derive(Debug)]
pub enum Command {
    /// Judge by this policy from the next burst on. `rules` are this worker's counters of its rules. Answer: [`Event::PolicyInForce`].
    Policy {
        /// The new snapshot.
        policy: Arc<Policy>,
        /// Where this worker counts what its rules decide.
        rules: Arc<RuleCounters>,
        /// The policy's limits for this worker.
        limits: Box<Limits>,
    },
    /// Route by this table from the next burst on. Answer: [`Event::FibInForce`].
    Fib(Arc<Fib>),
    /// A neighbour became known, changed or went away. No answer.
    Neighbour(NeighbourUpdate),
    /// Look at the next connections from `cursor` (0 to begin) and put those that match into `into`, never beyond its
    /// capacity. Answer: [`Event::Listed`].
    List {
        /// Where to begin.
        cursor: u64,
        /// Which to report.
        filter: ConnFilter,
        /// An empty vector whose capacity bounds the answer.
        into: Vec<ConnView>,
    },
    /// End the matching connections among the next from `cursor`, and put each into `into` as it was just before, never
    /// beyond its capacity. Answer: [`Event::Listed`].
    Delete {
        /// Where to begin.
        cursor: u64,
        /// Which to end.
        filter: ConnFilter,
        /// An empty vector whose capacity bounds the answer.
        into: Vec<ConnView>,
    },
    /// End the matching connections among the next from `cursor`. Answer: [`Event::Flushed`].
    Flush {
        /// Where to begin.
        cursor: u64,
        /// Which to end.
        filter: ConnFilter,
    },
    /// Judge the next connections from `cursor` by the policy and the addresses in force, and end those that they deny,
    /// translate otherwise or have no address for. Answer: [`Event::Swept`].
    Sweep {
        /// Where to begin.
        cursor: u64,
    },
    /// Look for the connection that has this tuple, in either direction. Answer: [`Event::Got`].
    Get {
        /// As on the wire.
        tuple: Tuple,
    },
    /// Tell what the helper knows of the FTP control connection that has this tuple. Answer: [`Event::Sides`].
    Sides {
        /// Of either direction, as on the wire.
        tuple: Tuple,
        /// Room for the answer.
        into: Box<SavedSides>,
    },
    /// Put these connections into the table, at most [`CREATE_PER_COMMAND`]; each must be home here by its original
    /// tuple ([`home_of`]). Answer: [`Event::Created`].
    Create {
        /// The connections.
        conns: Vec<ConnSpec>,
        /// An empty vector with room for as many refusals.
        refused: Vec<(usize, CreateError)>,
    },
    /// Change the matching connections among the next from `cursor`, and put each into `into` as it is then, never beyond
    /// its capacity. Answer: [`Event::Listed`].
    Update {
        /// Where to begin.
        cursor: u64,
        /// Which to change.
        filter: ConnFilter,
        /// What to change.
        change: ConnChange,
        /// An empty vector whose capacity bounds the answer.
        into: Vec<ConnView>,
    },
    /// Report all expectations, within the capacity of `into`. Answer: [`Event::Expectations`].
    Expectations {
        /// An empty vector whose capacity bounds the answer.
        into: Vec<ExpectView>,
    },
    /// From now on report each change of a connection as [`Event::Conn`], or no longer. No answer.
    Subscribe(bool),
    /// Leave the loop; the worker thread ends and frees what it owns.
    Stop,
}

/// Connections that one [`Command::Create`] may hold.
pub const CREATE_PER_COMMAND: usize = 16;

/// An answer or a report of worker `worker`.
#[derive(Debug)]
pub struct Message {
    /// Which worker says it, 0-based.
    pub worker: usize,
    /// What it says.
    pub event: Event,
}

/// What a worker tells control.
#[derive(Debug)]
pub enum Event {
    /// The policy is in force; the old snapshot and counters come back to be freed and summed.
    PolicyInForce {
        /// The generation now in force.
        generation: u64,
        /// What it replaced.
        old: Option<(Arc<Policy>, Arc<RuleCounters>, Box<Limits>)>,
    },
    /// The forwarding table is in force; the old one comes back to be freed.
    FibInForce {
        /// What it replaced.
        old: Arc<Fib>,
    },
    /// Part of a dump, or of what was ended or changed.
    Listed {
        /// Where to go on; `None` at the end.
        next: Option<u64>,
        /// The vector of the command, filled.
        conns: Vec<ConnView>,
    },
    /// Part of a flush.
    Flushed {
        /// Where to go on; `None` at the end.
        next: Option<u64>,
        /// How many connections were ended.
        ended: u64,
    },
    /// Part of a sweep. What it ended is counted as events of connections.
    Swept {
        /// Where to go on; `None` at the end.
        next: Option<u64>,
        /// How many connections it left.
        kept: u64,
    },
    /// What [`Command::Get`] found.
    Got {
        /// The connection.
        conn: Option<ConnView>,
    },
    /// What [`Command::Sides`] found.
    Sides {
        /// Whether there is such a connection, with that helper.
        found: bool,
        /// The room of the command, filled where it is.
        sides: Box<SavedSides>,
    },
    /// What became of [`Command::Create`].
    Created {
        /// How many connections were made.
        made: u64,
        /// Those that were not, by their place in the command, and why.
        refused: Vec<(usize, CreateError)>,
        /// The connections of the command, to be freed.
        conns: Vec<ConnSpec>,
    },
    /// The expectations of this worker's connections.
    Expectations {
        /// The vector of the command, filled.
        expectations: Vec<ExpectView>,
    },
    /// Something happened to a connection; only after [`Command::Subscribe`]. Those that find no room are counted
    /// ([`super::stats::WorkerStats::events_lost`]).
    Conn(ConnEvent),
    /// A packet was INVALID and `conntrack.log_invalid` asks for a report (already rate-limited by the worker).
    InvalidLog {
        /// Why it is.
        reason: DropReason,
        /// Interface that the packet came in by.
        interface: u16,
        /// The packet's tuple, as far as it is known.
        tuple: Tuple,
    },
    /// A packet waits for this neighbour: have the kernel resolve it.
    Resolve {
        /// Interface index.
        interface: u16,
        /// The next hop.
        address: IpAddr,
    },
    /// A translation rule found no port or no address for a new connection (already rate-limited by the worker).
    NatFailed {
        /// Generation of the policy that `rule` indexes.
        generation: u64,
        /// Index among its translation rules.
        rule: u32,
        /// [`DropReason::NatNoPort`] or [`DropReason::NatNoAddress`].
        reason: DropReason,
        /// Interface that the packet came in by.
        interface: u16,
        /// The packet's tuple.
        tuple: Tuple,
    },
    /// A rule with `log` decided on the first packet of a connection (already rate-limited by the worker).
    RuleLog {
        /// Generation of the policy that `rule` indexes.
        generation: u64,
        /// Index of the rule.
        rule: u32,
        /// What it decided.
        accepted: bool,
        /// Interface that the packet came in by.
        interface: u16,
        /// The packet's tuple.
        tuple: Tuple,
    },
}

/// Which connections a dump or flush is about; `None` matches all. Filters as conntrack-tools has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnFilter {
    /// IP version: 4 or 6.
    pub family: Option<u8>,
    /// IP protocol number.
    pub proto: Option<u8>,
    /// Original source.
    pub source: Option<ipnet::IpNet>,
    /// Original destination.
    pub destination: Option<ipnet::IpNet>,
    /// Source of the reply direction.
    pub reply_source: Option<ipnet::IpNet>,
    /// Destination of the reply direction.
    pub reply_destination: Option<ipnet::IpNet>,
    /// Original source port.
    pub sport: Option<u16>,
    /// Original destination port.
    pub dport: Option<u16>,
    /// Source port of the reply direction.
    pub reply_sport: Option<u16>,
    /// Destination port of the reply direction.
    pub reply_dport: Option<u16>,
    /// ICMP or ICMPv6 type of the original direction.
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code of the original direction.
    pub icmp_code: Option<u8>,
    /// ICMP or ICMPv6 identifier of the original direction.
    pub icmp_id: Option<u16>,
    /// Original source key of GRE.
    pub srckey: Option<u16>,
    /// Original destination key of GRE.
    pub dstkey: Option<u16>,
    /// Source key of GRE, reply direction.
    pub reply_srckey: Option<u16>,
    /// Destination key of GRE, reply direction.
    pub reply_dstkey: Option<u16>,
    /// State by its name (`ESTABLISHED`, ...).
    pub state: Option<&'static str>,
    /// Mark: `(mask, value)`.
    pub mark: Option<(u32, u32)>,
    /// Conntrack zone of the original direction.
    pub ct_zone: Option<u16>,
    /// Conntrack zone of the reply direction.
    pub reply_ct_zone: Option<u16>,
    /// Whether assured.
    pub assured: Option<bool>,
    /// Whether the reply was seen.
    pub replied: Option<bool>,
    /// Whether another connection announced it.
    pub expected: Option<bool>,
    /// Only connections whose source is translated.
    pub snat: bool,
    /// Only connections whose destination is translated.
    pub dnat: bool,
    /// Only connections of which either is translated.
    pub nat: bool,
    /// Only connections of which either is translated to one of these.
    pub nat_to: Option<ipnet::IpNet>,
}

/// One connection as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnView {
    /// As its first packet came.
    pub original: Tuple,
    /// As replies come on the wire.
    pub reply: Tuple,
    /// State by its name, `None` for protocols without states.
    pub state: Option<&'static str>,
    /// Seconds until it expires if nothing comes.
    pub timeout_s: u32,
    /// Whether a reply was seen.
    pub replied: bool,
    /// Whether kept under pressure.
    pub assured: bool,
    /// Whether another connection announced it.
    pub expected: bool,
    /// Its mark.
    pub mark: u32,
    /// The helper that watches it.
    pub helper: Option<HelperKind>,
    /// Its timeout policy, from 1; 0 for the general timeouts.
    pub timeout_policy: u8,
    /// Milliseconds since it was confirmed.
    pub age_ms: u64,
    /// Packets, original and reply.
    pub packets: [u64; 2],
    /// Bytes (IP packet lengths), original and reply.
    pub bytes: [u64; 2],
    /// Interface that the first packet came in by, or of its TAP twin.
    pub interface: u16,
    /// Whether the gateway itself sent the first packet.
    pub local: bool,
    /// Interfaces that packets leave by, original and reply; `None` before one did.
    pub egress: [Option<u16>; 2],
}

/// A connection that the operator puts into the table, or that a saved table holds. What TCP's windows were is not known,
/// so such a connection is not checked against them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnSpec {
    /// As its first packet came, conntrack zone included.
    pub original: Tuple,
    /// As replies come on the wire.
    pub reply: Tuple,
    /// State by its name, for protocols that have states.
    pub state: Option<&'static str>,
    /// Seconds until it expires if nothing comes.
    pub timeout_s: u32,
    /// Whether a reply was seen.
    pub replied: bool,
    /// Whether kept under pressure.
    pub assured: bool,
    /// Whether another connection announced it.
    pub expected: bool,
    /// Its mark.
    pub mark: u32,
    /// The helper that watches it.
    pub helper: Option<HelperKind>,
    /// What FTP's helper knew of it.
    pub sides: Option<Box<SavedSides>>,
    /// Its timeout policy, from 1; 0 for the general timeouts.
    pub timeout_policy: u8,
    /// Milliseconds since it was confirmed.
    pub age_ms: u64,
    /// Packets, original and reply.
    pub packets: [u64; 2],
    /// Bytes, original and reply.
    pub bytes: [u64; 2],
    /// Interface that the first packet came in by, or of its TAP twin; 0 where that is not known.
    pub interface: u16,
    /// Whether the gateway itself sent the first packet.
    pub local: bool,
    /// Whether the policy is asked about it at its next packet, as after a reload: for a saved table, which another
    /// policy may have made.
    pub judge: bool,
}

/// Why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// One of its tuples belongs to a connection already.
    #[error("such a connection exists already")]
    Exists,
    /// The table is full.
    #[error("the connection table is full")]
    Full,
    /// Its state is none of its protocol's, its tuples do not go together, or its helper cannot have known that.
    #[error("the state, the tuples or what the helper knows do not fit the protocol")]
    Unfit,
}

/// What an update changes; `None` leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnChange {
    /// Bits of the mark: `(mask, value)`.
    pub mark: Option<(u32, u32)>,
    /// Seconds until it expires if nothing comes.
    pub timeout_s: Option<u32>,
    /// Whether kept under pressure. It can be given, not taken.
    pub assured: bool,
}

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnEvent {
    /// What.
    pub kind: ConnEventKind,
    /// The connection after it; at its end, as it was last.
    pub conn: ConnView,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnEventKind {
    /// It was confirmed.
    New,
    /// Its state, its flags or its mark changed.
    Update,
    /// It ended, and why.
    Destroy(CtEvent),
}

/// One expectation as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectView {
    /// Seconds until it expires.
    pub timeout_s: u32,
    /// The tuple that is waited for; a source port of 0 is any, an unspecified source address too.
    pub tuple: Tuple,
    /// Which helper made it.
    pub helper: HelperKind,
    /// Original tuple of the connection that announced it.
    pub master: Tuple,
    /// Whether it goes on after its first connection.
    pub permanent: bool,
}

/// The worker at whose table a connection belongs by its original tuple, of `workers` workers.
pub fn home_of(original: &Tuple, workers: usize) -> usize {
    let workers = u16::try_from(workers).unwrap_or(u16::MAX);
    usize::from(Steer::new(0, workers).home(original))
}
