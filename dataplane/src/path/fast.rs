//! Usual packets of known connections: [`Path::judge`] of those for which it would only read what was cached.
//!
//! *Threads*: the worker's. *Limits*: as [`crate::conntrack::fast`].

use super::{Interface, Path};
use crate::conntrack::fast::{Circumstances, Clock};
use crate::conntrack::tuple::Direction;
use crate::io::PortIdx;
use crate::nat::fast::Wire;
use crate::packet::{CT_STATES, CtState, TcpSegment};
use crate::parse::fast::{Sight, Station, mac_word};
use crate::time::Nanos;

/// How a usual packet leaves. It is a hop.
#[derive(Clone, Copy, Debug)]
pub struct Pass<K> {
    /// By which port.
    pub egress: PortIdx,
    /// What that is like.
    pub by: Egress,
    /// To which station: see [`mac_word`](crate::parse::fast::mac_word).
    pub to: u64,
    /// What would answer it once translated; `None` where nothing is.
    pub answered_by: Option<K>,
}

/// How usual packets leave by a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Egress {
    /// MAC address of the interface: see [`mac_word`].
    pub mac: u64,
    /// Longest IP packet that leaves by it unasked, bytes: 0 for a twin.
    mtu: u16,
    /// Whether frames have no tag.
    pub untagged: bool,
}

impl Egress {
    /// Of the wire and the twin of `interface`.
    pub fn of(interface: &Interface) -> [Self; 2] {
        let wire = Self { mac: mac_word(interface.mac), mtu: interface.mtu, untagged: interface.vlan.is_none() };
        [wire, Self { mtu: 0, ..wire }]
    }
}

/// What is counted of a burst's usual packets, until the burst is through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    classes: [[u32; 2]; CT_STATES],
    counter: u32,
    packets: u32,
    bytes: u64,
}

impl Path {
    /// The time of a burst.
    #[inline]
    pub fn clock(&self, now: Nanos) -> Clock {
        Clock::new(now, &self.policy.spec().conntrack.timeouts)
    }

    /// How frames of wire port `port` look to the fast path; `None` where the policy has each packet go the long way.
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

    /// Takes a usual packet that came in by `port` through all stages, where that changes nothing but counters, windows and
    /// deadlines. `None`, and nothing has changed, where it must go the long way.
    #[inline(always)]
    pub fn pass<K: Wire>(
        &mut self,
        seen: &Sight<K>,
        segment: impl FnOnce() -> Option<TcpSegment>,
        port: PortIdx,
        tally: &mut Tally,
        clock: Clock,
    ) -> Option<Pass<K>> {
        let Self { conntrack, policy, neighbours, egresses, epoch, .. } = self;
        let at = Circumstances { port, epoch: *epoch, spec: &policy.spec().conntrack, clock };
        let (passed, (by, to)) = conntrack.advance(seen, segment, &at, |cached| {
            let by = *egresses.get(usize::from(cached.egress.0))?;
            if seen.len <= by.mtu { Some((by, neighbours.mac_word(cached.neighbour)?)) } else { None }
        })?;
        let counter = passed.cached.counter();
        if counter != tally.counter {
            self.count_run(tally);
            tally.counter = counter;
        }
        tally.packets += 1;
        tally.bytes += u64::from(seen.len);
        tally.classes[passed.state as usize][passed.direction.index()] += 1;
        Some(Pass { egress: passed.cached.egress, by, to, answered_by: passed.answered_by })
    }

    fn count_run(&self, tally: &mut Tally) {
        if tally.packets > 0 {
            self.rules.count_many(tally.counter, u64::from(tally.packets), tally.bytes);
            (tally.packets, tally.bytes) = (0, 0);
        }
    }

    /// Counts what was tallied.
    pub fn settle(&self, mut tally: Tally) {
        self.count_run(&mut tally);
        for state in [CtState::New, CtState::Established, CtState::Related] {
            for direction in [Direction::Original, Direction::Reply] {
                let n = tally.classes[state as usize][direction.index()];
                if n > 0 {
                    self.stats.classify_many(state, direction, u64::from(n));
                }
            }
        }
    }
}
