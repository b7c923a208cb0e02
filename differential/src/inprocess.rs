//! Sluice's workers on heap ports in one thread, in virtual time: the gateway of the dataplane's own tests.
//!
//! *Life-cycle*: one per run. *Threads*: one. *Limits*: errors that the gateway makes are limited to 1,000 a second, as
//! in the process.

use std::io;
use std::path::Path;
use std::time::Duration;

use control::config;
use dataplane::api::{DropReason, Nanos, Tuple};
use dataplane::defrag;
use dataplane::packet::CtState;

use crate::frame::{ETH, Side};
use crate::lab::gateway::{self, Arrival, Lab, Setup};
use crate::observe::{Class, ConnState, Exit, Observation, System};
use crate::policy::{FRAGMENTS, Policy, stations};

/// The dataplane library as a system.
pub struct InProcess {
    lab: Lab,
    workers: usize,
    zones: Vec<u16>,
    start: Nanos,
    classified: [[u64; 2]; Class::ALL.len()],
    dropped: Vec<u64>,
}

impl InProcess {
    /// A gateway of `workers` workers.
    ///
    /// # Errors
    /// The configuration does not take the policy.
    pub fn new(policy: &Policy, workers: usize, seed: u64) -> io::Result<Self> {
        let yaml = policy.yaml("dataplane: {workers: [0]}", ["net_null0", "net_null1"]);
        let config = config::parse(&yaml, Path::new("differential.yaml"))
            .map_err(|e| io::Error::other(format!("{e}\n{yaml}")))?;
        let mut spec = config.policy;
        spec.generation = 1;
        let setup = Setup {
            workers,
            seed,
            arrival: if seed.is_multiple_of(2) { Arrival::Rss } else { Arrival::Anywhere },
            conntrack_max: 1 << 18,
            buffers: 1 << 15,
            defrag: defrag::Setup { memory: FRAGMENTS, ..defrag::Setup::default() },
            lan_mtu: policy.mtu[0],
            wan_mtu: policy.mtu[1],
            ..Setup::default()
        };
        let mut lab = Lab::with(spec, setup);
        for (n, link) in (0..).zip(stations()) {
            for address in link {
                lab.neighbour(n, &address, true);
            }
        }
        let start = lab.now;
        let zones = policy.all_zones();
        Ok(Self { lab, workers, zones, start, classified: Default::default(), dropped: vec![0; DropReason::ALL.len()] })
    }

    /// Counters of classes: by class, and of the original and the reply direction.
    fn counters(&self) -> [[u64; 2]; Class::ALL.len()] {
        let states = [CtState::New, CtState::Established, CtState::Related, CtState::Invalid, CtState::Untracked];
        states.map(|s| [0, 1].map(|d| self.lab.stats.iter().map(|w| w.classified[s as usize][d].value()).sum()))
    }

    fn advance(&mut self, at: Duration) {
        let target = self.start + Nanos(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
        if target > self.lab.now {
            let far = target.since(self.lab.now) > Nanos::from_millis(200);
            if far {
                self.lab.wait(target - self.lab.now);
            } else {
                self.lab.now = target;
            }
        }
    }

    fn collect(&mut self) -> Vec<(Exit, Vec<u8>)> {
        let mut out = Vec::new();
        for (port, side) in [(gateway::LAN, Side::Lan), (gateway::WAN, Side::Wan)] {
            out.extend(self.lab.sent(port).into_iter().map(|f| (Exit::Link(side), f)));
        }
        for port in [gateway::LAN_TWIN, gateway::WAN_TWIN] {
            let packets = self.lab.sent(port).into_iter();
            out.extend(packets.filter_map(|f| Some((Exit::Local, f.get(ETH..)?.to_vec()))));
        }
        out
    }
}

impl System for InProcess {
    fn name(&self) -> String {
        format!("in-process, {} worker{}", self.workers, if self.workers == 1 { "" } else { "s" })
    }

    fn send(&mut self, at: Duration, side: Side, frame: &[u8]) -> io::Result<Observation> {
        self.advance(at);
        let port = if side == Side::Lan { gateway::LAN } else { gateway::WAN };
        self.lab.arrive(port, frame);
        self.lab.run();
        let mut seen = Observation { out: self.collect(), ..Observation::default() };
        let counters = self.counters();
        for ((class, now), before) in Class::ALL.into_iter().zip(&counters).zip(&self.classified) {
            for (reply, _) in [false, true].into_iter().zip(now.iter().zip(before)).filter(|(_, (n, b))| n > b) {
                (seen.class, seen.reply) = (Some(class), reply);
            }
        }
        self.classified = counters;
        for (seen_before, &reason) in self.dropped.iter_mut().zip(DropReason::ALL) {
            let now = self.lab.drop_count(reason);
            if std::mem::replace(seen_before, now) < now {
                seen.reason = Some(reason.label());
            }
        }
        Ok(seen)
    }

    fn find(&mut self, t: &Tuple) -> io::Result<Option<ConnState>> {
        let now = self.lab.now;
        let tuples: Vec<Tuple> = self.zones.iter().map(|&ct_zone| Tuple { ct_zone, ..*t }).collect();
        let places = self.lab.workers.iter().flat_map(|w| tuples.iter().map(move |t| (w, t)));
        let found =
            places.into_iter().find_map(|(w, t)| Some(w.path().view(w.path().conntrack.lookup(t, now)?.0, now)));
        Ok(found.map(|v| {
            ConnState {
                original: v.original,
                reply: v.reply,
                state: v.state.unwrap_or_default().into(),
                replied: v.replied,
                assured: v.assured,
                timeout: v.timeout_s,
                packets: v.packets,
                bytes: v.bytes,
                mark: v.mark,
            }
            .anywhere()
        }))
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.lab.now.since(self.start).0)
    }

    fn wait(&mut self, at: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        self.advance(at);
        Ok(self.collect())
    }
}
