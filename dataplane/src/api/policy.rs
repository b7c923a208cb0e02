//! What the operator wants of packets, as plain data: [`PolicySpec`], which [`Policy::compile`] turns into the
//! immutable snapshot that workers judge by.
//!
//! *Life-cycle*: `control` builds a spec from the YAML, compiles it, wraps the policy in an `Arc` and sends it to each
//! worker; the worker sends the old one back, so it is freed on the control thread.
//! *Threads*: a compiled policy is never written again.

use std::ops::RangeInclusive;

pub use super::nat::{
    Hairpin, MAX_RANGES, Mss, NatKind, NatRuleSpec, NetmapSide, OnReload, Pool, PreservePort, ToPort,
};
pub use crate::conntrack::limit::Limits;
pub use crate::conntrack::timeouts::Timeouts;
pub use crate::filter::Policy;
pub use crate::filter::addrset::AddrSet;
pub use crate::packet::CtState;

/// Most zones, `local` among them.
pub const MAX_ZONES: usize = 64;

/// Most rules of one policy.
pub const MAX_RULES: usize = 1 << 20;

/// A security zone: an index into [`PolicySpec::zones`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ZoneId(pub u8);

impl ZoneId {
    /// The gateway itself; always index 0 of [`PolicySpec::zones`].
    pub const LOCAL: Self = Self(0);
}

/// The whole policy as the operator wrote it, names resolved.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// Counts policies from 1; every accepted reload adds one.
    pub generation: u64,
    /// Zone names by [`ZoneId`]; `zones[0]` is `local`. At most [`MAX_ZONES`].
    pub zones: Vec<String>,
    /// The zone of each interface, in the order of the launch configuration's interfaces.
    pub interface_zones: Vec<ZoneId>,
    /// The conntrack zone of each interface, in the same order; 0, also where the list ends early, is the common one.
    pub interface_ct_zones: Vec<u16>,
    /// What SYNs that enter or leave by each interface may announce at most, in the same order; none where the list ends early.
    pub interface_mss: Vec<Option<Mss>>,
    /// Rules of the raw hook, first match decides.
    pub raw: Vec<RawRuleSpec>,
    /// Translation rules, first match of each hook decides.
    pub nat: Vec<NatRuleSpec>,
    /// Filter rules, first match decides.
    pub rules: Vec<RuleSpec>,
    /// What happens to a packet that no rule matches.
    pub default: Action,
    /// Connection tracking's settings that a reload may change.
    pub conntrack: ConntrackSpec,
}

/// What a filter rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass the packet.
    Accept,
    /// Discard it, silently.
    Drop,
    /// Ask the next rule: for rules that only set a mark.
    Continue,
}

/// Settings of connection tracking.
#[derive(Clone, Debug)]
pub struct ConntrackSpec {
    /// Idle timeouts by protocol and state.
    pub timeouts: Timeouts,
    /// Named timeouts that rules give to their connections: [`RuleSpec::timeout_policy`] counts them from 1. At most 255.
    pub timeout_policies: Vec<(String, Timeouts)>,
    /// `conntrack.tcp.loose`: a plain ACK out of nothing starts a connection.
    pub tcp_loose: bool,
    /// `conntrack.tcp.be_liberal`: only resets are checked against the window.
    pub tcp_be_liberal: bool,
    /// `conntrack.tcp.max_retrans`: retransmissions of one segment after which the timeout is `tcp_max_retrans`.
    pub tcp_max_retrans: u8,
    /// `conntrack.checksum`: verify L4 checksums before tracking.
    pub checksum: bool,
    /// `conntrack.helpers`: which new connections a helper watches; the first that matches.
    pub helpers: Vec<HelperRuleSpec>,
    /// `conntrack.expect_max`: most expectations, all workers together.
    pub expect_max: usize,
    /// `conntrack.limits`: most connections of a source or a zone.
    pub limits: Vec<LimitSpec>,
    /// `conntrack.reserve`: entries, of all workers together, that only connections from or to zone `local` may take.
    pub reserve: usize,
    /// `conntrack.log_invalid`: IP protocols whose INVALID packets are reported, rate-limited.
    pub log_invalid: LogInvalid,
}

impl Default for ConntrackSpec {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            timeout_policies: Vec::new(),
            tcp_loose: true,
            tcp_be_liberal: false,
            tcp_max_retrans: 3,
            checksum: true,
            helpers: Vec::new(),
            expect_max: 1024,
            limits: Vec::new(),
            reserve: 0,
            log_invalid: LogInvalid::None,
        }
    }
}

impl ConntrackSpec {
    /// The timeouts of policy `index`, counted from 1; the general ones for 0 and where there is no such policy.
    #[inline]
    pub fn timeouts_of(&self, index: u8) -> &Timeouts {
        match index {
            0 => &self.timeouts,
            n => self.timeout_policies.get(usize::from(n) - 1).map_or(&self.timeouts, |(_, t)| t),
        }
    }
}

/// Which INVALID packets are reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogInvalid {
    /// None.
    #[default]
    None,
    /// Those of every protocol.
    All,
    /// Those of these IP protocols.
    Protocols(Vec<u8>),
}

impl LogInvalid {
    /// Whether those of IP protocol `proto` are reported.
    #[inline]
    pub fn has(&self, proto: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Protocols(some) => some.contains(&proto),
        }
    }
}

/// A protocol whose connections announce others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HelperKind {
    /// RFC 959, RFC 2428.
    Ftp,
    /// RFC 1350.
    Tftp,
    /// RFC 2637.
    Pptp,
}

impl HelperKind {
    /// All helpers.
    pub const ALL: [Self; 3] = [Self::Ftp, Self::Tftp, Self::Pptp];

    /// Its name in the YAML and in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ftp => "ftp",
            Self::Tftp => "tftp",
            Self::Pptp => "pptp",
        }
    }
}

/// Assigns a helper to new connections.
#[derive(Clone, Debug)]
pub struct HelperRuleSpec {
    /// Which helper.
    pub kind: HelperKind,
    /// Which connections: matched as the filter does, on the destination after DNAT; `to` and `state` may be given.
    pub matches: Match,
}

/// What a limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitPer {
    /// Each original source network of these prefix lengths.
    Source {
        /// IPv4 prefix length, 0..=32.
        v4: u8,
        /// IPv6 prefix length, 0..=128.
        v6: u8,
    },
    /// The zone as a whole.
    Zone,
}

/// Most connections that one source, or one zone, may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSpec {
    /// Only connections from this zone; all where there is none.
    pub from: Option<ZoneId>,
    /// What is counted.
    pub per: LimitPer,
    /// Most connections, all workers together: each worker allows its equal share, rounded up.
    pub max: u32,
}

/// What a rule looks at. An empty list matches everything.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Zones that the packet comes from; empty is any.
    pub from: Vec<ZoneId>,
    /// Zones that the packet goes to; empty is any. Not known in the raw and DNAT hooks.
    pub to: Vec<ZoneId>,
    /// Source addresses.
    pub source: Option<AddrMatch>,
    /// Destination addresses.
    pub destination: Option<AddrMatch>,
    /// IP protocol numbers.
    pub proto: Vec<u8>,
    /// Source ports; matches only TCP, UDP, UDP-Lite and SCTP.
    pub sport: Vec<RangeInclusive<u16>>,
    /// Destination ports; likewise.
    pub dport: Vec<RangeInclusive<u16>>,
    /// ICMP or ICMPv6 types, by the packet's own version.
    pub icmp_type: Vec<u8>,
    /// TCP flags: `(mask, value)`, as iptables' `--tcp-flags`.
    pub tcp_flags: Option<(u8, u8)>,
    /// Connection tracking classes; empty is any.
    pub state: Vec<CtState>,
    /// The connection's mark: `(mask, value)`; a packet without a connection has mark 0.
    pub mark: Option<(u32, u32)>,
    /// Interfaces that the packet came in by (index); empty is any.
    pub interface_in: Vec<u16>,
    /// Interfaces that the packet leaves by (index); empty is any.
    pub interface_out: Vec<u16>,
}

/// An address condition.
#[derive(Clone, Debug)]
pub struct AddrMatch {
    /// Match what is outside the set.
    pub negate: bool,
    /// The addresses; shared where a named set is used by many rules.
    pub set: std::sync::Arc<AddrSet>,
}

/// One rule of the filter hook.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    /// Unique name: counters are carried over a reload by it.
    pub name: String,
    /// What it matches.
    pub matches: Match,
    /// What it does.
    pub action: Action,
    /// Report the first packet of each connection that it decides on, rate-limited.
    pub log: bool,
    /// Set these bits of the connection's mark: `(mask, value)`.
    pub set_mark: Option<(u32, u32)>,
    /// Timeout policy of connections that it accepts, an index from 1 into [`ConntrackSpec::timeout_policies`]; 0 for
    /// none.
    pub timeout_policy: u8,
}

/// What a raw rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawAction {
    /// Leave the packet out of connection tracking and translation.
    Notrack,
    /// Track it; ends the raw rules for this packet.
    Accept,
    /// Discard it before anything is tracked.
    Drop,
}

/// One rule of the raw hook.
#[derive(Clone, Debug)]
pub struct RawRuleSpec {
    /// Unique name.
    pub name: String,
    /// What it matches; `to` and `state` are not known here and must be empty.
    pub matches: Match,
    /// What it does.
    pub action: RawAction,
}

/// Why a policy was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More zones than [`MAX_ZONES`].
    #[error("{count} zones, at most {MAX_ZONES} are possible")]
    TooManyZones {
        /// How many there are.
        count: usize,
    },
    /// More rules than [`MAX_RULES`].
    #[error("{count} rules, at most {MAX_RULES} are possible")]
    TooManyRules {
        /// How many there are.
        count: usize,
    },
    /// A rule names a zone or an interface that the spec does not have.
    #[error("rule {rule}: {what} index {index} does not exist")]
    UnknownIndex {
        /// The rule's name.
        rule: String,
        /// `zone` or `interface`.
        what: &'static str,
        /// The index it used.
        index: usize,
    },
    /// A rule that translates as none can.
    #[error("rule {rule}: {why}")]
    Translation {
        /// The rule's name.
        rule: String,
        /// Why it cannot.
        why: &'static str,
    },
    /// A rule matches on what its hook cannot know.
    #[error("rule {rule}: {key} is not known in the {hook} hook")]
    NotInThisHook {
        /// The rule's name.
        rule: String,
        /// The key.
        key: &'static str,
        /// The hook.
        hook: &'static str,
    },
}
