//! Usual packets of known connections: [`Path::judge`] of those for which it would only read what was cached.
//!
//! *Life-cycle*: [`Path::ways`] lends what the last pass over a run of packets needs; what it has counted is
//! [settled](Tally::settle) before anything else looks. *Threads*: the worker's. *Limits*: as [`crate::conntrack::fast`].

use super::{Interface, Path};
use crate::api::rules::RuleCounters;
use crate::api::stats::WorkerStats;
use crate::conntrack::conn::Cached;
use crate::conntrack::fast::Clock;
use crate::conntrack::table::Lane;
use crate::conntrack::timer::Wheel;
use crate::conntrack::tuple::{Direction, Key4, Key6};
use crate::forward::neighbour::Neighbours;
use crate::io::PortIdx;
use crate::packet::CtState;
use crate::parse::ether;
use crate::parse::fast::{Station, mac_word};
use crate::time::Nanos;

/// How usual packets leave by a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Egress {
    /// MAC address of the interface: see [`mac_word`].
    mac: u64,
    /// Longest IP packet that leaves by it unasked, bytes: 0 for a twin.
    mtu: u16,
    /// Whether frames have no tag.
    untagged: bool,
}

impl Egress {
    /// Of the wire and the twin of `interface`.
    pub fn of(interface: &Interface) -> [Self; 2] {
        let wire = Self { mac: mac_word(interface.mac), mtu: interface.mtu, untagged: interface.vlan.is_none() };
        [wire, Self { mtu: 0, ..wire }]
    }
}

/// What the last pass over usual packets needs of a [`Path`].
#[derive(Debug)]
pub struct Ways<'a> {
    /// Connections of IPv4.
    pub v4: Lane<'a, Key4>,
    /// Connections of IPv6.
    pub v6: Lane<'a, Key6>,
    /// When and under which settings.
    pub clock: Clock<'a>,
    /// Their timers.
    pub wheel: &'a Wheel,
    /// What finds a way out.
    pub finder: Finder<'a>,
}

/// What says how a packet leaves for which something is cached.
#[derive(Clone, Copy, Debug)]
pub struct Finder<'a> {
    neighbours: &'a Neighbours,
    egresses: &'a [Egress],
    rules: &'a RuleCounters,
    stats: &'a WorkerStats,
    epoch: u32,
    port: PortIdx,
}

/// How packets leave that have the same cached verdict: found out for the first, compared for the others.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What is cached for them.
    same: [u64; 2],
    state: CtState,
    mtu: u16,
    /// By which port.
    pub egress: PortIdx,
    /// Whether frames have no tag there.
    untagged: bool,
    /// Destination and the first two bytes of the source of the link header, and its next four bytes.
    pub macs: (u64, u32),
}

impl Way {
    /// That of no packet.
    pub const NONE: Self = Self {
        same: [0; 2], // epoch 0 is never current
        state: CtState::Invalid,
        mtu: 0,
        egress: PortIdx(0),
        untagged: true,
        macs: (0, 0),
    };

    /// Whether a packet of `len` bytes and class `state` goes this way.
    #[inline(always)]
    pub fn is_of(&self, cached: &Cached, state: CtState, len: u16) -> bool {
        let [a, b] = cached.words();
        ((a ^ self.same[0]) | (b ^ self.same[1]) == 0) & (state as u8 == self.state as u8) & (len <= self.mtu)
    }

    /// Whether the link header of frames whose network header is at `l3` keeps its length.
    #[inline(always)]
    pub const fn keeps_length(&self, l3: usize) -> bool {
        self.untagged && l3 == ether::HEADER
    }

    /// Whether frames whose network header is at `l3` can be queued together with those of `other`.
    pub fn leaves_like(&self, other: &Self, l3: usize) -> bool {
        self.egress == other.egress && (self.keeps_length(l3) || self.to() == other.to())
    }

    /// The MAC address of the station that they are sent to.
    pub const fn to(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.macs.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    const fn counter(&self) -> u32 {
        Cached::counter_of(self.same[0])
    }
}

/// What is counted of packets that go one way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// By direction.
    pub packets: [u32; 2],
    /// Bytes of IP packets.
    pub bytes: u64,
}

impl Tally {
    /// Counts what was tallied of packets that went `way`.
    pub fn settle(self, way: &Way, finder: &Finder<'_>) {
        let [original, reply] = self.packets.map(u64::from);
        if original + reply == 0 {
            return;
        }
        finder.rules.count_many(way.counter(), original + reply, self.bytes);
        finder.stats.fast_packets.add(original + reply);
        for (direction, n) in [(Direction::Original, original), (Direction::Reply, reply)] {
            if n > 0 {
                finder.stats.classify_many(way.state, direction, n);
            }
        }
    }
}

impl Finder<'_> {
    /// The way of a packet of `len` bytes; `None` where it is not accepted, must be looked into, or cannot leave at once.
    #[inline(never)]
    pub fn find(&self, cached: &Cached, state: CtState, len: u16) -> Option<Way> {
        if cached.epoch != self.epoch || cached.in_port != self.port || !cached.accepts_class(state) {
            return None;
        }
        let by = *self.egresses.get(usize::from(cached.egress.0))?;
        if len > by.mtu {
            return None;
        }
        let to = self.neighbours.mac_word(cached.neighbour)?;
        let own = by.mac.to_le_bytes();
        Some(Way {
            same: cached.words(),
            state,
            mtu: by.mtu,
            egress: cached.egress,
            untagged: by.untagged,
            macs: (to | by.mac << 48, u32::from_le_bytes([own[2], own[3], own[4], own[5]])),
        })
    }
}

impl Path {
    /// How frames of wire port `port` look to the short way; `None` where the policy has each packet go the long one.
    #[inline]
    pub fn station(&self, port: PortIdx) -> Option<Station> {
        if port.is_twin() || !self.policy.raw_is_by_tuple() {
            return None;
        }
        let interface = self.interfaces.get(usize::from(port.interface()))?;
        Some(Station {
            mac: interface.mac,
            vlan: interface.vlan,
            verify: self.policy.spec().conntrack.checksum,
            ct_zone: self.policy.ct_zone_of(port),
            ipv6: self.policy.prefixes().is_empty(),
        })
    }

    /// What packets need that have come in by `port`.
    #[inline]
    pub fn ways(&mut self, port: PortIdx, now: Nanos) -> Ways<'_> {
        let Self { conntrack, policy, neighbours, egresses, rules, stats, epoch, .. } = self;
        let (v4, v6, wheel) = conntrack.lanes();
        let clock = Clock::new(now, &policy.spec().conntrack);
        Ways { v4, v6, clock, wheel, finder: Finder { neighbours, egresses, rules, stats, epoch: *epoch, port } }
    }
}
