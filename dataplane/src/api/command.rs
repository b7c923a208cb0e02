//! What the control thread tells a worker, and what a worker tells control.
//!
//! *Threads*: each worker has one bounded command channel, polled once per loop; all workers share one event channel
//! back. *Limits*: a command costs a bounded amount of work: dumps and flushes walk at most [`SCAN_PER_COMMAND`] table
//! slots, then reply with a cursor, and control asks again.

use std::net::IpAddr;
use std::sync::Arc;

use super::policy::Policy;
use super::stats::RuleCounters;
use crate::conntrack::tuple::Tuple;
use crate::forward::neighbour::NeighbourUpdate;
use crate::forward::route::Fib;

/// Connection table slots that one [`Command::List`] or [`Command::Flush`] looks at.
pub const SCAN_PER_COMMAND: u32 = 512;

/// A request to one worker.
#[derive(Debug)]
pub enum Command {
    /// Judge by this policy from the next burst on. `rules` are this worker's counters, one per rule, then one for the
    /// default. Answer: [`Event::PolicyInForce`].
    Policy {
        /// The new snapshot.
        policy: Arc<Policy>,
        /// Where this worker counts what its rules decide.
        rules: Arc<RuleCounters>,
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
    /// End the matching connections among the next from `cursor`. Answer: [`Event::Flushed`].
    Flush {
        /// Where to begin.
        cursor: u64,
        /// Which to end.
        filter: ConnFilter,
    },
    /// Leave the loop; the worker thread ends and frees what it owns.
    Stop,
}

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
        old: Option<(Arc<Policy>, Arc<RuleCounters>)>,
    },
    /// The forwarding table is in force; the old one comes back to be freed.
    FibInForce {
        /// What it replaced.
        old: Arc<Fib>,
    },
    /// Part of a dump.
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
    /// A packet waits for this neighbour: have the kernel resolve it.
    Resolve {
        /// Interface index.
        interface: u16,
        /// The next hop.
        address: IpAddr,
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
    /// TCP state by its name (`ESTABLISHED`, ...).
    pub tcp_state: Option<&'static str>,
    /// Whether assured.
    pub assured: Option<bool>,
    /// Whether the reply was seen.
    pub replied: Option<bool>,
    /// Only connections whose source is translated.
    pub snat: bool,
    /// Only connections whose destination is translated.
    pub dnat: bool,
}

/// One connection as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnView {
    /// As its first packet came.
    pub original: Tuple,
    /// As replies come on the wire.
    pub reply: Tuple,
    /// TCP state by its name, other protocols `None`.
    pub tcp_state: Option<&'static str>,
    /// Seconds until it expires if nothing comes.
    pub timeout_s: u32,
    /// Whether a reply was seen.
    pub replied: bool,
    /// Whether kept under pressure.
    pub assured: bool,
    /// Packets, original and reply.
    pub packets: [u64; 2],
    /// Bytes (IP packet lengths), original and reply.
    pub bytes: [u64; 2],
    /// Interfaces that packets leave by, original and reply; `None` before one did.
    pub egress: [Option<u16>; 2],
}
