//! Translation as the operator wants it: rules, kinds, and where ports come from.
//!
//! *Life-cycle*: part of a [`PolicySpec`](super::policy::PolicySpec). *Threads*: plain data, never written once compiled.
//! *Sources*: the names are iptables' and nftables'; RFC 4787 and RFC 5382 for what they promise, RFC 6296 for NPTv6.

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv6Net};

use super::policy::Match;
pub use crate::nat::pool::{MAX_RANGES, Pool};

/// One translation rule. DNAT, redirect and twice NAT act in PREROUTING (`to` and `interface_out` must be empty), masquerade
/// and SNAT in POSTROUTING; netmap, NPTv6 and `none` in both.
#[derive(Clone, Debug)]
pub struct NatRuleSpec {
    /// Unique name.
    pub name: String,
    /// What it matches. Of rules that act in both hooks, as packets go out (from inside); [`NatKind::Netmap`] says how those
    /// that come in are matched.
    pub matches: Match,
    /// What it does.
    pub kind: NatKind,
    /// Source ports, or identifiers of ICMP queries, that masquerade, SNAT and twice NAT choose from; `None` for those of the
    /// original one's class: below 512, below 1024, all others.
    pub ports: Option<RangeInclusive<u16>>,
    /// Whether they keep the source port.
    pub preserve_port: PreservePort,
    /// Whether one client gets the same address of a pool for all destinations, and none other when that has no port free:
    /// "paired" in RFC 4787's REQ-2.
    pub persistent: bool,
    /// Whether DNAT and netmap also serve clients behind the gateway that use the public address.
    pub hairpin: Hairpin,
    /// What becomes of its connections when a later policy would translate them otherwise.
    pub on_reload: OnReload,
}

impl NatRuleSpec {
    /// A rule of this kind with everything else as the YAML has it by default.
    pub fn new(name: &str, matches: Match, kind: NatKind) -> Self {
        Self {
            name: name.to_owned(),
            matches,
            kind,
            ports: None,
            preserve_port: PreservePort::Auto,
            persistent: false,
            hairpin: Hairpin::Auto,
            on_reload: OnReload::Keep,
        }
    }

    /// Whether the source becomes an address of the interface that packets leave by.
    pub const fn masquerades(&self) -> bool {
        matches!(self.kind, NatKind::Masquerade | NatKind::Twice { source: None, .. })
    }
}

/// What a NAT rule translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatKind {
    /// Nothing: what it matches is left to no later rule of its hooks. In PREROUTING only where `to` and `interface_out` are
    /// not asked for.
    None,
    /// Source becomes the egress interface's primary address.
    Masquerade,
    /// Source becomes an address of the pool.
    Snat {
        /// The new sources.
        to: Pool,
    },
    /// Destination becomes an address of the pool.
    Dnat {
        /// The new destinations.
        to: Pool,
        /// The new destination port.
        port: Option<ToPort>,
    },
    /// Both at once: destination as by DNAT, source as by SNAT or masquerade.
    Twice {
        /// The new destinations.
        to: Pool,
        /// The new destination port.
        port: Option<ToPort>,
        /// The new source: a pool, or that of the egress interface.
        source: Option<Pool>,
    },
    /// Destination becomes the gateway itself: the primary address of the interface that the packet came in by.
    Redirect {
        /// The new destination port.
        port: Option<ToPort>,
    },
    /// Addresses of one prefix become those of another of the same length, host part kept, and ports too.
    Netmap {
        /// What is translated.
        from: IpNet,
        /// Into what, of the same IP version and length.
        to: IpNet,
        /// Which end of a connection.
        side: NetmapSide,
    },
    /// Network prefix translation of IPv6, without state (RFC 6296): sources within `inside` on the way from the rule's zones
    /// to its other ones, destinations within `outside` on the way back. Only zones and interfaces may be matched.
    Nptv6 {
        /// The prefix used inside, at most 64 bits long.
        inside: Ipv6Net,
        /// The one seen outside, of the same length.
        outside: Ipv6Net,
    },
}

/// Which addresses a netmap rule maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetmapSide {
    /// Sources of connections that the rule matches, `from` to `to`, and destinations of those that come the other way (from
    /// the rule's `to` zones and `interface_out`, to what its `source` and `sport` say), `to` to `from`.
    Source,
    /// Destinations of connections that the rule matches; `to` and `interface_out` must be empty.
    Destination,
}

/// What a destination port becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToPort {
    /// This one.
    One(u16),
    /// Ports from `from` on become those from `to` on, one to one. The rule's match bounds them.
    Shift {
        /// The lowest port that the rule matches.
        from: u16,
        /// What that becomes.
        to: u16,
    },
}

impl ToPort {
    /// What `port` becomes.
    pub const fn apply(self, port: u16) -> u16 {
        match self {
            Self::One(to) => to,
            Self::Shift { from, to } => port.wrapping_sub(from).wrapping_add(to),
        }
    }
}

/// Whether SNAT must keep the source port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreservePort {
    /// Keep it where it is free, within the rule's ports and brings replies to the owner's core; else choose another.
    #[default]
    Auto,
    /// Keep it always, refuse the connection where it is taken.
    Strict,
    /// Choose one at random for each connection: iptables' `--random-fully`.
    Never,
}

/// Whether DNAT serves clients behind the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hairpin {
    /// A packet from another zone than the rule's `from` matches too, where it is for an address on the side of `from`: the
    /// gateway's there, or one behind it that the rule names as its destination; and where the target is on another side as
    /// well. If it leaves by the interface that it came in by, its source becomes the address that it was sent to (RFC 4787
    /// REQ-9), so that answers come back. For netmap the side is that of `to`, and the source is mapped as well.
    #[default]
    Auto,
    /// Only what the rule itself matches.
    Off,
}

/// What becomes of connections that a new policy would translate otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReload {
    /// They go on as they are.
    #[default]
    Keep,
    /// They are ended.
    End,
}

/// The largest TCP segment that a SYN through an interface may announce (RFC 9293 section 3.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// What fits the interface's MTU: that less 40 bytes for IPv4, less 60 for IPv6.
    Auto,
    /// This many bytes.
    Fixed(u16),
}
