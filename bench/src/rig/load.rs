//! What comes to a gateway in this process: the same loads for micro-benches and instruction counts.
//!
//! *Life-cycle*: [`Load::rig`] builds a gateway and brings it to the state in which every turn is like the one before.
//! *Limits*: flows as [`Flow::number`] has them.

use clap::ValueEnum;
use dataplane::api::policy::{Match, PolicySpec, RawAction, RawRuleSpec};
use dataplane::time::Nanos;

use super::{LAN, PORTS, ROUTERS, Rig, WAN, policy, snat, with_rules};
use crate::flow::{Case, Endpoints, Flow, SNAT_ADDRESS};
use crate::frame::{self, Link, SHORTEST, Segment};
use crate::tcp::{self, End};

/// Frames that a turn takes of each port.
pub const BURST: usize = 32;

/// How much time passes from turn to turn where connections come and go.
const BRISK: Nanos = Nanos::from_millis(2);
/// How long their connections live: 500 such turns.
const BRIEF: Nanos = Nanos::SECOND;

/// A load. Packets are the shortest that there are, UDP where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// Established flows, both ways.
    Stateful,
    /// The same, their source translated.
    Snat,
    /// The same over IPv6, not translated.
    Ipv6,
    /// Established TCP connections, data both ways.
    Tcp,
    /// Every packet starts a connection, and one ends.
    New,
    /// The same, with a policy of a thousand rules of which the last one accepts.
    NewRules,
    /// The same, with a SYN; two rules.
    NewTcp,
    /// The same, with a UDP packet whose source is translated.
    NewSnat,
    /// Not tracked, accepted.
    Forward,
}

impl Load {
    /// Its name on command lines and in `bench/instructions.tsv`.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether every packet starts a connection: then packets come from the lan side alone.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::New | Self::NewRules | Self::NewTcp | Self::NewSnat)
    }

    /// Which flows those are.
    const fn case(self) -> Case {
        match self {
            Self::Snat | Self::NewSnat => Case::Snat,
            Self::Ipv6 => Case::Ipv6,
            _ => Case::Stateful,
        }
    }

    fn policy(self) -> PolicySpec {
        let mut policy = match self {
            Self::Snat | Self::NewSnat => snat(SNAT_ADDRESS),
            Self::NewRules => with_rules(policy(), 1_000),
            _ => policy(),
        };
        if self == Self::Forward {
            let matches = Match { from: vec![LAN, WAN], ..Match::default() };
            policy.raw = vec![RawRuleSpec { name: "stateless".to_owned(), matches, action: RawAction::Notrack }];
            // As for `scripts/bench`: one rule accepts them.
            policy.rules.truncate(1);
            if let Some(rule) = policy.rules.first_mut() {
                rule.matches = Match::default();
            }
        }
        if self.is_new() {
            policy.conntrack.timeouts.udp = BRIEF;
            policy.conntrack.timeouts.tcp_syn_sent = BRIEF;
        }
        policy
    }

    /// A gateway under this load of so many flows, with room for `max` connections, in its steady state.
    ///
    /// # Panics
    /// Not every flow has become a connection: what would be measured is not what it is called.
    pub fn rig(self, flows: u32, max: usize) -> Rig {
        let frames = |side: usize, of: &dyn Fn(u32, Link, Endpoints) -> Vec<u8>| -> Vec<Vec<u8>> {
            let link = Link { to: PORTS[side], from: ROUTERS[side] };
            let at = |i| {
                let flow = Flow::number(i, self.case());
                if side == 0 { flow.lan } else { flow.wan }
            };
            (0..flows).map(|i| of(i, link, at(i))).collect()
        };
        let udp = |_: u32, link: Link, at: Endpoints| frame::udp(link, at, SHORTEST);
        let tcp = |end: End, step: u32| {
            move |i: u32, link: Link, at: Endpoints| -> Vec<u8> {
                let segment: Segment = tcp::segment(i, end, step);
                frame::tcp(link, at, segment)
            }
        };
        let mut rig = Rig::new(self.policy(), max, [Vec::new(), Vec::new()]);
        match self {
            Self::Tcp => {
                for step in 0..2 {
                    rig.replay([frames(0, &tcp(End::Client, step)), Vec::new()]);
                    rig.warm(1);
                    rig.replay([Vec::new(), frames(1, &tcp(End::Server, step))]);
                    rig.warm(1);
                }
                rig.replay([frames(0, &tcp(End::Client, 2)), frames(1, &tcp(End::Server, 2))]);
                rig.warm(2);
            }
            Self::New | Self::NewRules | Self::NewTcp | Self::NewSnat => {
                let sent = if self == Self::NewTcp { frames(0, &tcp(End::Client, 0)) } else { frames(0, &udp) };
                rig.replay([sent, Vec::new()]);
                rig.pace = BRISK;
                // Until as many end as begin.
                for _ in 0..2 * BRIEF.0 / BRISK.0 {
                    rig.turn();
                }
            }
            _ => {
                rig.replay([frames(0, &udp), frames(1, &udp)]);
                rig.warm(2);
                // By now streams are streams.
                rig.warm(2);
            }
        }
        if !self.is_new() {
            let expected = if self == Self::Forward { 0 } else { u64::from(flows) };
            assert_eq!(rig.stats.conntrack_entries.value(), expected, "connections under load {}", self.name());
        }
        rig
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_of_each_load_is_sent_and_meets_what_its_load_says() {
        for &load in Load::value_variants() {
            let flows = if load.is_new() { 40_000 } else { 96 };
            let mut rig = load.rig(flows, 1 << 16);
            let dropped: u64 = rig.stats.drops.iter().map(|d| d.value()).sum();
            let (sent, opened) = (rig.sent(), rig.stats.ct_events[0].value());
            for _ in 0..64 {
                rig.turn();
            }
            let packets = 64 * BURST as u64 * if load.is_new() { 1 } else { 2 };
            assert_eq!(rig.sent() - sent, packets, "{}", load.name());
            let fresh = rig.stats.ct_events[0].value() - opened;
            assert_eq!(fresh, if load.is_new() { packets } else { 0 }, "{}", load.name());
            assert_eq!(rig.stats.drops.iter().map(|d| d.value()).sum::<u64>(), dropped, "{}", load.name());
        }
    }
}
