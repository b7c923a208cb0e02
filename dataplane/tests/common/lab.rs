//! A gateway of one or more workers on heap ports, stepped in one thread in virtual time.
//!
//! ```text
//!   10.0.0.2..250        lan               wan        198.51.100.10..250, and the world
//!   fd00:1::2   ───────[ 10.0.0.1/24      198.51.100.1/24 ]─────── via 198.51.100.254
//!                      [ fd00:1::1/64     2001:db8::1/64  ]        via 2001:db8::fe
//! ```
//! Workers are stepped in a random order drawn from a seed, so a failure can be replayed. Frames arrive as [`Arrival`]
//! says: where RSS would bring them, or at any worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use dataplane::api::command::{Command, ConnFilter, ConnView, Event, ExpectView, Message, SCAN_PER_COMMAND};
use dataplane::api::policy::*;
use dataplane::api::rules::RuleCounters;
use dataplane::api::stats::{CtEvent, HandoverCause, IcmpErrorKind, WorkerStats};
use dataplane::api::{DropReason, Fib, FibSpec, NeighbourUpdate};
use dataplane::conntrack::conn::Flags;
use dataplane::conntrack::tuple::{Direction, Tuple};
use dataplane::conntrack::{ConnId, Scan};
use dataplane::defrag;
use dataplane::io::mem::{MemBuf, MemIo, Pool};
use dataplane::io::{Buf, PortIdx};
use dataplane::packet::CtState;
use dataplane::parse::{self, Parsed};
use dataplane::path::{Interface, Path, PathSetup};
use dataplane::steer::{self, NOTE_RING, Steer, mesh};
use dataplane::time::Nanos;
use dataplane::worker::{Worker, WorkerSetup};

use super::pkt::{Pkt, Seen};
pub use super::rules::*;

pub const LAN: PortIdx = PortIdx::wire(0);
pub const WAN: PortIdx = PortIdx::wire(1);
pub const LAN_TWIN: PortIdx = PortIdx::twin(0);
pub const WAN_TWIN: PortIdx = PortIdx::twin(1);
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The station behind every neighbour address of the lab is `HOST_MAC` with the interface in the last byte.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0];

/// Turns after which a worker must have answered a walk over its table.
const TURNS_PER_ANSWER: u32 = 1 + SCAN_PER_COMMAND;

/// At which worker frames arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Where a NIC with our key and table brings them.
    Rss,
    /// At any, in turn: a port without RSS.
    Anywhere,
}

/// What a lab is made with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub workers: usize,
    pub arrival: Arrival,
    pub seed: u64,
    pub conntrack_max: usize,
    pub buffers: usize,
    pub defrag: defrag::Setup,
    pub lan_mtu: u16,
    pub wan_mtu: u16,
    pub lan_vlan: Option<u16>,
    /// Known stations on each link: so many host numbers from the lowest on, and the routers.
    pub stations: u8,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 1,
            arrival: Arrival::Rss,
            seed: 1,
            conntrack_max: 4096,
            buffers: 4096,
            defrag: defrag::Setup::default(),
            lan_mtu: 1500,
            wan_mtu: 1500,
            lan_vlan: None,
            stations: 249,
        }
    }
}

/// Runs a story on gateways of one, two and four workers, with and without RSS, in several orders. At each end no
/// buffer is left and the steering invariant holds.
pub fn everywhere(spec: PolicySpec, story: impl Fn(&mut Lab)) {
    everywhere_with(&Setup::default(), spec, story);
}

/// The same for a gateway that differs from the usual one.
pub fn everywhere_with(setup: &Setup, spec: PolicySpec, story: impl Fn(&mut Lab)) {
    for workers in [1, 2, 4] {
        for arrival in [Arrival::Rss, Arrival::Anywhere] {
            for seed in 1..=3 {
                let mut lab = Lab::with(spec.clone(), Setup { workers, arrival, seed, ..setup.clone() });
                story(&mut lab);
                lab.sound();
                assert_eq!(lab.pool.live(), 0, "buffers leaked");
            }
        }
    }
}

/// One connection as its owner has it, wherever that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub worker: u16,
    pub original: Tuple,
    pub reply: Tuple,
    pub leased: bool,
    pub tcp: &'static str,
    pub replied: bool,
    pub assured: bool,
}

/// The running gateway.
pub struct Lab {
    pub workers: Vec<Worker<MemIo>>,
    pub now: Nanos,
    pub pool: Pool,
    pub stats: Vec<Arc<WorkerStats>>,
    commands: Vec<Sender<Command>>,
    messages: Receiver<Message>,
    pub events: Vec<Event>,
    arrival: Arrival,
    turn: usize,
    random: u64,
    generation: u64,
    conntrack_max: usize,
    before: BTreeMap<String, u64>,
}

impl Lab {
    pub fn new(spec: PolicySpec) -> Self {
        Self::with(spec, Setup::default())
    }

    pub fn with(spec: PolicySpec, setup: Setup) -> Self {
        let pool = Pool::new(setup.buffers);
        let policy = Arc::new(Policy::compile(spec).expect("policy"));
        let fib = Arc::new(Fib::build(fib()));
        let (messages_tx, messages) = crossbeam_channel::bounded(4096);
        let interfaces = vec![
            Interface { mac: LAN_MAC, mtu: setup.lan_mtu, vlan: setup.lan_vlan },
            Interface { mac: WAN_MAC, mtu: setup.wan_mtu, vlan: None },
        ];
        let (mut workers, mut commands, mut stats) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (parcels, notes)) in mesh(setup.workers).into_iter().enumerate() {
            let counters = Arc::new(WorkerStats::new(interfaces.len()));
            let (tx, rx) = crossbeam_channel::bounded(256);
            let path = Path::new(
                PathSetup {
                    steer: Steer::new(index as u16, setup.workers as u16),
                    notes,
                    interfaces: interfaces.clone(),
                    stats: Arc::clone(&counters),
                    conntrack_max: setup.conntrack_max,
                    seeds: [setup.seed, index as u64, 3, 4],
                    policy: Arc::clone(&policy),
                    fib: Arc::clone(&fib),
                },
                Nanos(0),
            );
            let rss = vec![setup.arrival == Arrival::Rss; interfaces.len()];
            let seed = ahash::RandomState::with_seeds(setup.seed, 5, 6, 7);
            let setup = WorkerSetup {
                index,
                burst: 32,
                rss,
                defrag: setup.defrag,
                seed,
                parcels,
                commands: rx,
                messages: messages_tx.clone(),
            };
            workers.push(Worker::new(setup, path, MemIo::new(interfaces.len(), pool.clone()), Nanos(0)));
            commands.push(tx);
            stats.push(counters);
        }
        let mut lab = Self {
            workers,
            now: Nanos::SECOND,
            pool,
            stats,
            commands,
            messages,
            events: Vec::new(),
            arrival: setup.arrival,
            turn: 0,
            random: setup.seed | 1,
            generation: 1,
            conntrack_max: setup.conntrack_max,
            before: BTreeMap::new(),
        };
        let lan = (2..=250).take(usize::from(setup.stations)).map(|n| (0, format!("10.0.0.{n}")));
        let wan = (10..=253).take(usize::from(setup.stations)).chain([254]).map(|n| (1, format!("198.51.100.{n}")));
        let others = [(0, "fd00:1::2"), (1, "2001:db8::10"), (1, "2001:db8::fe")].map(|(i, a)| (i, a.to_string()));
        for (n, (interface, address)) in lan.chain(wan).chain(others).enumerate() {
            let update = station(interface, &address, true);
            for worker in 0..lab.workers.len() {
                lab.tell(worker, Command::Neighbour(update));
            }
            if n % 100 == 99 {
                lab.run();
            }
        }
        lab.run();
        lab.changed();
        lab
    }

    /// A neighbour appears or goes.
    pub fn neighbour(&mut self, interface: u16, address: &str, there: bool) {
        let update = station(interface, address, there);
        self.command(|| Command::Neighbour(update));
    }

    /// Tells every worker, and lets them act.
    pub fn command(&mut self, make: impl Fn() -> Command) {
        for c in &self.commands {
            c.send(make()).expect("the worker lives");
        }
        self.run();
    }

    /// Tells one worker; it has not acted yet.
    pub fn tell(&mut self, worker: usize, command: Command) {
        self.commands[worker].send(command).expect("the worker lives");
    }

    /// Puts a policy into force.
    pub fn reload(&mut self, mut spec: PolicySpec) {
        self.generation += 1;
        spec.generation = self.generation;
        let policy = Arc::new(Policy::compile(spec).expect("policy"));
        let (capacity, workers) = (self.conntrack_max, self.workers.len());
        self.command(|| Command::Policy {
            policy: Arc::clone(&policy),
            rules: Arc::new(RuleCounters::new(policy.spec())),
            limits: Box::new(Limits::new(&policy, capacity, workers)),
        });
    }

    /// Puts a forwarding table into force.
    pub fn reroute(&mut self, spec: FibSpec) {
        let fib = Arc::new(Fib::build(spec));
        self.command(|| Command::Fib(Arc::clone(&fib)));
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A frame arrives; nothing is processed yet.
    pub fn arrive(&mut self, port: PortIdx, bytes: &[u8]) {
        let buf = self.pool.frame(bytes).expect("a buffer is free");
        self.arrive_buf(port, buf);
    }

    /// The same, for a buffer with properties of its own.
    pub fn arrive_buf(&mut self, port: PortIdx, buf: MemBuf) {
        let bytes = buf.bytes().to_vec();
        self.arrive_hashed(port, &bytes, buf);
    }

    /// A frame arrives in two segments, the first of `at` bytes.
    pub fn arrive_chained(&mut self, port: PortIdx, bytes: &[u8], at: usize) {
        let buf = self.pool.frame(bytes).expect("a buffer is free").chained(at);
        self.arrive_hashed(port, bytes, buf);
    }

    /// `buf` arrives where the NIC's hash over `bytes` brings it.
    fn arrive_hashed(&mut self, port: PortIdx, bytes: &[u8], buf: MemBuf) {
        let workers = self.workers.len();
        let (worker, buf) = match self.arrival {
            // The kernel's side has no RSS of ours.
            Arrival::Rss if !port.is_twin() => {
                let hash = rss(bytes, port);
                let entry = steer::reta_entry(hash.unwrap_or(0) as usize % steer::RETA_SIZE, workers as u16);
                let buf = match hash {
                    Some(h) => buf.with_rss(h),
                    None => buf,
                };
                (usize::from(entry), buf)
            }
            _ => {
                self.turn += 1;
                (self.turn % workers, buf)
            }
        };
        self.workers[worker].io().inject(port, buf);
    }

    /// A frame arrives at one worker, wherever it belongs; it carries no RSS hash.
    pub fn arrive_at(&mut self, worker: usize, port: PortIdx, bytes: &[u8]) {
        let buf = self.pool.frame(bytes).expect("a buffer is free");
        self.workers[worker].io().inject(port, buf);
    }

    /// One turn of one worker.
    pub fn step(&mut self, worker: usize) {
        self.now = self.now + Nanos(1000);
        self.workers[worker].step(self.now);
    }

    /// Fills the ring of notes from worker 0 to one that sleeps: each of `questions` begins a connection whose replies are at
    /// home there, and their ends are more than the ring can tell.
    pub fn crowd(&mut self, questions: impl Iterator<Item = Pkt>) {
        for (n, question) in questions.take(NOTE_RING + 10).enumerate() {
            self.arrive_at(0, WAN, &question.frame());
            if n % 30 == 29 {
                self.run();
                self.collect();
            }
        }
        self.run();
        self.collect();
        let entries = self.entries();
        assert!(self.flush_at(0, ConnFilter { replied: Some(false), ..ConnFilter::default() }) > NOTE_RING as u64);
        assert_eq!(self.entries(), entries - NOTE_RING, "some stay until their signposts are gone");
    }

    /// Where replies and questions of `t` arrive.
    pub fn home(&self, t: &Tuple) -> usize {
        usize::from(self.workers[0].path().steer.home(t))
    }

    /// Steps workers in random order until nothing moves: no frame, and after that no note (the answer to an answer).
    pub fn run(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            for _ in 0..self.workers.len() {
                let n = (self.random() % self.workers.len() as u64) as usize;
                self.workers[n].step(self.now);
                self.now = self.now + Nanos(1000);
            }
            let mut busy = self.commands.iter().any(|c| !c.is_empty());
            busy |= self.workers.iter().any(|w| w.path().pending() > 0);
            for w in &mut self.workers {
                busy |= w.step(self.now);
            }
            idle = if busy { 0 } else { idle + 1 };
        }
        self.events.extend(self.messages.try_iter().map(|m| m.event));
    }

    /// Time passes; timers run. The longer the wait, the coarser its steps.
    pub fn wait(&mut self, time: Nanos) {
        let end = self.now + time;
        let step = Nanos((time.0 / 500).max(Nanos::from_millis(100).0));
        while self.now < end {
            self.now = (self.now + step).min(end);
            for w in &mut self.workers {
                w.step(self.now);
            }
        }
        self.run();
    }

    /// All frames that have left by `port` since the last time, in the workers' order.
    pub fn sent(&mut self, port: PortIdx) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for w in &mut self.workers {
            while let Some(buf) = w.io().sent(port) {
                out.push(buf.bytes().to_vec());
            }
        }
        out
    }

    /// Sends `p` in by `port` (to the gateway's MAC address, unless it says otherwise) and gives all that left, with
    /// the ports it left by.
    pub fn send(&mut self, port: PortIdx, p: &Pkt) -> Vec<(PortIdx, Seen)> {
        self.arrive(port, &addressed(port, p).frame());
        self.run();
        self.collect()
    }

    /// All that has left, read.
    pub fn collect(&mut self) -> Vec<(PortIdx, Seen)> {
        let mut out = Vec::new();
        for port in [LAN, WAN, LAN_TWIN, WAN_TWIN] {
            out.extend(self.sent(port).iter().map(|f| (port, Seen::read(f))));
        }
        out
    }

    /// Sends `p` and expects exactly one packet, out of `egress`.
    #[track_caller]
    pub fn passes(&mut self, port: PortIdx, p: &Pkt, egress: PortIdx) -> Seen {
        let mut out = self.send(port, p);
        assert_eq!(out.len(), 1, "one packet expected, drops: {:?}, got {out:?}", self.drops());
        let (at, seen) = out.remove(0);
        assert_eq!(at, egress, "left by another port: {seen:?}");
        seen
    }

    /// Sends `p` and expects it to be dropped, for `reason`, and an ICMP error about it to go back by `port`.
    #[track_caller]
    pub fn refuses_with_error(&mut self, port: PortIdx, p: &Pkt, reason: DropReason) -> Seen {
        let before = self.drop_count(reason);
        let mut out = self.send(port, p);
        assert_eq!(self.drop_count(reason), before + 1, "not {}: {:?}", reason.label(), self.drops());
        assert_eq!(out.len(), 1, "one error expected, got {out:?}");
        let (at, seen) = out.remove(0);
        assert_eq!(at, port, "left by another port: {seen:?}");
        seen
    }

    /// Sends `p` and expects it to be dropped, for `reason` alone, with nothing sent.
    #[track_caller]
    pub fn refuses(&mut self, port: PortIdx, p: &Pkt, reason: DropReason) {
        let before = self.drop_count(reason);
        let all = self.total_drops();
        let out = self.send(port, p);
        assert!(out.is_empty(), "nothing expected, got {out:?}");
        assert_eq!(self.drop_count(reason), before + 1, "not {}: {:?}", reason.label(), self.drops());
        assert_eq!(self.total_drops(), all + 1, "more drops: {:?}", self.drops());
    }

    pub fn drop_count(&self, reason: DropReason) -> u64 {
        self.stats.iter().map(|s| s.drops[reason as usize].value()).sum()
    }

    pub fn total_drops(&self) -> u64 {
        DropReason::ALL.iter().map(|&r| self.drop_count(r)).sum()
    }

    /// The drops so far that are not zero.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL.iter().map(|&r| (r.label(), self.drop_count(r))).filter(|&(_, n)| n > 0).collect()
    }

    pub fn handovers(&self, cause: HandoverCause) -> u64 {
        self.stats.iter().map(|s| s.handovers[cause as usize].value()).sum()
    }

    pub fn entries(&self) -> usize {
        self.workers.iter().map(|w| w.path().conntrack.count()).sum()
    }

    /// Ports that were found not to spread frames as they say, by worker.
    pub fn rss_mismatches(&self) -> Vec<u64> {
        self.stats.iter().map(|s| s.rss_mismatches.value()).collect()
    }

    /// Packets that each worker has classified.
    pub fn judged(&self) -> Vec<u64> {
        self.stats.iter().map(|s| s.classified.iter().flatten().map(|c| c.value()).sum()).collect()
    }

    /// Runs frames through the gateway, some at a time; gives all that left. `arrive` brings each in.
    pub fn stream<T>(
        &mut self,
        frames: impl IntoIterator<Item = T>,
        mut arrive: impl FnMut(&mut Self, T),
    ) -> Vec<(PortIdx, Seen)> {
        let mut out = Vec::new();
        let at_once = 32 * self.workers.len();
        let mut frames = frames.into_iter().peekable();
        while frames.peek().is_some() {
            for frame in frames.by_ref().take(at_once) {
                arrive(self, frame);
            }
            self.run();
            out.extend(self.collect());
        }
        out
    }

    pub fn signposts(&self) -> usize {
        self.workers.iter().map(|w| w.path().signposts.count()).sum()
    }

    pub fn leases(&self) -> u64 {
        self.stats.iter().flat_map(|s| &s.nat).flat_map(|n| &n.leases).fold(0, |n, c| n.wrapping_add(c.value()))
    }

    /// All connections, as `conntrack list` gets them.
    pub fn conns(&mut self) -> Vec<ConnView> {
        self.list(ConnFilter::default())
    }

    /// Those that `filter` asks for.
    pub fn list(&mut self, filter: ConnFilter) -> Vec<ConnView> {
        let mut all = Vec::new();
        for n in 0..self.workers.len() {
            let mut cursor = 0;
            loop {
                let command = Command::List { cursor, filter, into: Vec::with_capacity(8) };
                self.commands[n].send(command).expect("the worker lives");
                let mut answer = None;
                for _ in 0..TURNS_PER_ANSWER {
                    self.workers[n].step(self.now);
                    for m in self.messages.try_iter() {
                        match m.event {
                            Event::Listed { next, conns } => answer = Some((next, conns)),
                            other => self.events.push(other),
                        }
                    }
                    if answer.is_some() {
                        break;
                    }
                }
                let (next, conns) = answer.expect("an answer");
                all.extend(conns);
                match next {
                    Some(c) => cursor = c,
                    None => break,
                }
            }
        }
        all
    }

    /// Takes what the workers have said; gives how much there is.
    pub fn heard(&mut self) -> usize {
        self.events.extend(self.messages.try_iter().map(|m| m.event));
        self.events.len()
    }

    /// Ends the connections that `filter` asks for; gives their number.
    pub fn flush(&mut self, filter: ConnFilter) -> u64 {
        let all = (0..self.workers.len()).map(|n| self.flush_at(n, filter)).sum();
        self.run();
        all
    }

    /// Those of one worker, while the others sleep.
    pub fn flush_at(&mut self, worker: usize, filter: ConnFilter) -> u64 {
        let (mut all, mut cursor) = (0, 0);
        loop {
            self.commands[worker].send(Command::Flush { cursor, filter }).expect("the worker lives");
            let mut answer = None;
            for _ in 0..TURNS_PER_ANSWER {
                self.workers[worker].step(self.now);
                for m in self.messages.try_iter() {
                    match m.event {
                        Event::Flushed { next, ended } => answer = Some((next, ended)),
                        other => self.events.push(other),
                    }
                }
                if answer.is_some() {
                    break;
                }
            }
            let (next, ended) = answer.expect("an answer");
            all += ended;
            match next {
                Some(c) => cursor = c,
                None => return all,
            }
        }
    }

    /// Packets that rule `n` of the policy in force has seen, all workers together; the default comes last.
    pub fn rule_packets(&self, n: usize) -> u64 {
        self.workers.iter().map(|w| w.path().rules.totals()[n].0).sum()
    }

    /// Bytes, likewise.
    pub fn rule_bytes(&self, n: usize) -> u64 {
        self.workers.iter().map(|w| w.path().rules.totals()[n].1).sum()
    }

    /// All live connections, read from the tables of their owners.
    pub fn owned(&self) -> Vec<Owned> {
        let mut all = Vec::new();
        for (worker, w) in (0..).zip(&self.workers) {
            let ct = &w.path().conntrack;
            let ids = (0..).map(|at| ct.scan(at)).take_while(|s| *s != Scan::End).filter_map(|s| match s {
                Scan::Conn(id) => Some(id),
                _ => None,
            });
            let live = |id: &ConnId| ct.conn(*id).deadline() > self.now;
            all.extend(ids.filter(live).map(|id| Owned {
                worker,
                original: ct.tuple(id, Direction::Original),
                reply: ct.tuple(id, Direction::Reply),
                leased: ct.conn(id).flags.has(Flags::LEASED),
                tcp: ct.conn(id).l4.name().unwrap_or("NONE"),
                replied: ct.conn(id).flags.has(Flags::REPLIED),
                assured: ct.conn(id).flags.has(Flags::ASSURED),
            }));
        }
        all
    }

    /// The one invariant that makes private tables right: each connection's tuples lead to its owner, from wherever
    /// their packets arrive, and belong to no other connection. To be asked when no note is under way.
    #[track_caller]
    pub fn sound(&self) {
        let owned = self.owned();
        let mut tuples = BTreeSet::new();
        for c in &owned {
            for t in [c.original, c.reply] {
                assert!(tuples.insert(format!("{t:?}")), "two connections have {t}: {owned:?}");
                let home = self.home(&t);
                let post = self.workers[home].path().signposts.owner(&t);
                let expected = (home != usize::from(c.worker)).then_some(c.worker);
                assert_eq!(post, expected, "signpost at {home} for {t} of {c:?}");
            }
        }
        // What one worker expects, all others know of, and nothing else.
        let mut keys = BTreeSet::new();
        let mut expected = vec![0; self.workers.len()];
        for (worker, w) in self.workers.iter().enumerate() {
            for e in w.path().expectations.known() {
                assert!(keys.insert(format!("{:?}", e.key)), "expected twice: {e:?}");
                for (other, o) in self.workers.iter().enumerate().filter(|&(n, _)| n != worker) {
                    assert_eq!(o.path().announced.owner(&e.key), Some(worker as u16), "{e:?} at {other}");
                    expected[other] += 1;
                }
            }
            assert_eq!(self.stats[worker].expectations.value(), w.path().expectations.count() as u64);
        }
        for (w, expected) in self.workers.iter().zip(expected) {
            assert_eq!(w.path().announced.count(), expected, "keys of expectations that are over");
        }
    }

    /// All expectations, as `conntrack expect list` gets them.
    pub fn expectations(&mut self) -> Vec<ExpectView> {
        let mut all = Vec::new();
        for n in 0..self.workers.len() {
            self.commands[n].send(Command::Expectations { into: Vec::with_capacity(64) }).expect("the worker lives");
            self.workers[n].step(self.now);
            for m in self.messages.try_iter() {
                match m.event {
                    Event::Expectations { expectations } => all.extend(expectations),
                    other => self.events.push(other),
                }
            }
        }
        all
    }

    /// Every counter that is not zero, by its metric name. Frames and bytes of ports are left out.
    fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        let mut add = |name: String, n: u64| *all.entry(name).or_insert(0) += n;
        for s in &self.stats {
            for &r in DropReason::ALL {
                add(format!("drop {}", r.label()), s.drops[r as usize].value());
            }
            for c in CtState::ALL {
                for (d, name) in [(Direction::Original, "original"), (Direction::Reply, "reply")] {
                    add(format!("class {} {name}", c.label()), s.classified[c as usize][d.index()].value());
                }
            }
            for &c in HandoverCause::ALL {
                add(format!("handover {}", c.label()), s.handovers[c as usize].value());
            }
            for &e in CtEvent::ALL {
                add(format!("event {}", e.label()), s.ct_events[e as usize].value());
            }
            for &k in IcmpErrorKind::ALL {
                add(format!("icmp {}", k.label()), s.icmp_errors[k as usize].value());
            }
            add("nat failures".into(), s.nat_failures.value());
        }
        all.retain(|_, n| *n > 0);
        all
    }

    /// What has changed since the last call: `name +n`, all counters but traffic and hand-overs: which worker a packet
    /// passes on its way is the arrival's business.
    pub fn changed(&mut self) -> Vec<String> {
        let now = self.counters();
        let diff = now
            .iter()
            .filter_map(|(k, &n)| {
                let d = n - self.before.get(k).copied().unwrap_or(0);
                (d > 0 && !k.starts_with("handover")).then(|| format!("{k} +{d}"))
            })
            .collect();
        self.before = now;
        diff
    }

    /// Asserts that exactly these counters have moved since the last time.
    #[track_caller]
    pub fn moved(&mut self, expected: &[&str]) {
        assert_eq!(self.changed(), expected);
    }
}

/// The station that has `address` on a link, or had it.
fn station(interface: u16, address: &str, there: bool) -> NeighbourUpdate {
    let mut mac = HOST_MAC;
    mac[5] = interface as u8;
    NeighbourUpdate { interface, address: ip(address), mac: there.then_some(mac) }
}

/// `p` for the gateway's own station, unless it says otherwise.
pub fn addressed(port: PortIdx, p: &Pkt) -> Pkt {
    let mut p = p.clone();
    if p.dst_mac == [0; 6] {
        p.dst_mac = if port.interface() == 0 { LAN_MAC } else { WAN_MAC };
    }
    p
}

/// What a NIC with our key computes: addresses and ports of TCP and UDP, addresses alone of all other IP.
pub fn rss(bytes: &[u8], port: PortIdx) -> Option<u32> {
    let receiver = parse::Receiver { port: PortIdx::twin(port.interface()), mac: [0; 6], vlan: None, verify: false };
    match parse::frame(bytes, &receiver, dataplane::io::RxChecksum::Unknown) {
        Ok(Parsed::Ip(p)) => Some(steer::toeplitz(&p.tuple)),
        _ => None,
    }
}

pub fn tuple(src: &str, sport: u16, dst: &str, dport: u16, proto: u8) -> Tuple {
    Tuple { src: ip(src), dst: ip(dst), proto, sport, dport, ct_zone: 0 }
}
