//! One worker in this process, without DPDK: what micro-benchmarks and instruction counts drive.
//!
//! The gateway is that of `scripts/bench`: lan and wan, one router behind each. Frames come from a list that is replayed for
//! ever, as from a pcap port, and go back to a pool.
//! *Life-cycle*: [`Rig::new`], [`Rig::warm`] until every connection is there, then [`Rig::turn`]s are measured;
//! [`load`] has the usual ways there.

pub mod load;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dataplane::api::policy::{
    Action, AddrMatch, AddrSet, ConntrackSpec, Match, NatKind, NatRuleSpec, PolicySpec, RuleSpec, ZoneId,
};
use dataplane::api::stats::WorkerStats;
use dataplane::api::{FibSpec, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::proto;
use dataplane::filter::Policy;
use dataplane::forward::neighbour::NeighbourUpdate;
use dataplane::forward::route::Fib;
use dataplane::io::{Buf, Burst, Io, PortIdx, RxChecksum};
use dataplane::packet::CtState;
use dataplane::path::{Interface, Path, PathSetup};
use dataplane::steer::{Steer, mesh};
use dataplane::time::Nanos;
use dataplane::worker::{Worker, WorkerSetup};

use crate::frame::Mac;

/// MAC addresses of lan and wan.
pub const PORTS: [Mac; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
/// The routers behind them.
pub const ROUTERS: [Mac; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]];

/// The zone of the lan interface.
pub const LAN: ZoneId = ZoneId(1);
/// The zone of the wan interface.
pub const WAN: ZoneId = ZoneId(2);

const HEADROOM: usize = 128;
/// Buffers of the pool.
const BUFFERS: usize = 512;

/// A frame in a buffer of the pool.
pub struct RigBuf {
    data: Box<[u8]>,
    start: u16,
    len: u16,
}

impl fmt::Debug for RigBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RigBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Buf for RigBuf {
    #[inline]
    fn bytes(&self) -> &[u8] {
        let start = usize::from(self.start);
        self.data.get(start..start + usize::from(self.len)).unwrap_or_default()
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        let start = usize::from(self.start);
        self.data.get_mut(start..start + usize::from(self.len)).unwrap_or_default()
    }

    #[inline]
    fn is_chained(&self) -> bool {
        false
    }

    fn resize(&mut self, len: usize) -> bool {
        let fits = usize::from(self.start) + len <= self.data.len();
        if let (true, Ok(len)) = (fits, u16::try_from(len)) {
            self.len = len;
        }
        fits
    }

    fn grow_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let Some(start) = self.start.checked_sub(n) else { return false };
        (self.start, self.len) = (start, self.len + n);
        true
    }

    fn shrink_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let Some(len) = self.len.checked_sub(n) else { return false };
        (self.start, self.len) = (self.start + n, len);
        true
    }

    fn rss_hash(&self) -> Option<u32> {
        None
    }

    #[inline]
    fn rx_checksum(&self) -> RxChecksum {
        RxChecksum::Unknown
    }
}

/// Ports that replay frames.
#[derive(Debug)]
pub struct RigIo {
    pool: Vec<RigBuf>,
    frames: [Vec<Vec<u8>>; 2],
    next: [usize; 2],
    /// Frames that were sent.
    pub sent: u64,
}

impl RigIo {
    fn new(frames: [Vec<Vec<u8>>; 2]) -> Self {
        let mut io = Self { pool: Vec::new(), frames: Default::default(), next: [0; 2], sent: 0 };
        io.replay(frames);
        io
    }

    /// Other frames from now on, and buffers that they fit in.
    fn replay(&mut self, frames: [Vec<Vec<u8>>; 2]) {
        let longest = frames.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let room = (HEADROOM + longest + 64).next_multiple_of(64);
        if self.pool.first().is_none_or(|b| b.data.len() < room) {
            let buf = || RigBuf { data: vec![0; room].into_boxed_slice(), start: 0, len: 0 };
            self.pool = (0..BUFFERS).map(|_| buf()).collect();
        }
        (self.frames, self.next) = (frames, [0; 2]);
    }
}

impl Io for RigIo {
    type Buf = RigBuf;

    fn rx_burst(&mut self, port: PortIdx, limit: usize, out: &mut Burst<RigBuf>) {
        let side = usize::from(port.interface());
        let Some(frames) = self.frames.get(side).filter(|f| !port.is_twin() && !f.is_empty()) else { return };
        for _ in 0..limit.min(out.remaining_capacity()) {
            let Some(mut buf) = self.pool.pop() else { return };
            let at = self.next[side];
            self.next[side] = if at + 1 == frames.len() { 0 } else { at + 1 };
            let frame = &frames[at];
            buf.start = 128;
            buf.len = u16::try_from(frame.len()).unwrap_or(0);
            buf.bytes_mut().copy_from_slice(frame);
            out.push(buf);
        }
    }

    fn tx_burst(&mut self, _: PortIdx, bufs: &mut Burst<RigBuf>) {
        self.sent += bufs.len() as u64;
        self.pool.extend(bufs.drain(..));
    }

    fn alloc(&mut self) -> Option<RigBuf> {
        self.pool.pop()
    }

    fn linearise(&mut self, buf: RigBuf) -> Result<RigBuf, RigBuf> {
        Ok(buf)
    }
}

/// The gateway.
#[derive(Debug)]
pub struct Rig {
    /// Its worker.
    pub worker: Worker<RigIo>,
    /// What it counts.
    pub stats: Arc<WorkerStats>,
    now: Nanos,
    /// How much time passes from turn to turn.
    pub pace: Nanos,
    // The ends of its channels that control would hold.
    _commands: crossbeam_channel::Sender<dataplane::api::command::Command>,
    _messages: crossbeam_channel::Receiver<dataplane::api::command::Message>,
}

impl Rig {
    /// A gateway with `policy` and room for `max` connections, to whose lan and wan these `frames` come.
    ///
    /// # Panics
    /// The policy does not compile.
    pub fn new(policy: PolicySpec, max: usize, frames: [Vec<Vec<u8>>; 2]) -> Self {
        let interfaces: Vec<_> = PORTS.iter().map(|&mac| Interface { mac, mtu: 1500, vlan: None }).collect();
        let stats = Arc::new(WorkerStats::new(interfaces.len()));
        let (parcels, notes) = mesh(1).remove(0);
        let (commands_tx, commands) = crossbeam_channel::bounded(16);
        let (messages, messages_rx) = crossbeam_channel::bounded(16);
        let setup = PathSetup {
            steer: Steer::new(0, 1),
            notes,
            interfaces,
            stats: Arc::clone(&stats),
            conntrack_max: max,
            seeds: [1, 2, 3, 4],
            policy: Arc::new(Policy::compile(policy).expect("a policy that compiles")),
            fib: Arc::new(Fib::build(fib())),
        };
        let now = Nanos::SECOND;
        let mut path = Path::new(setup, now);
        for (interface, mac) in (0..).zip(ROUTERS) {
            for address in ROUTER_ADDRESSES[usize::from(interface)] {
                path.neighbours.update(&NeighbourUpdate { interface, address, mac: Some(mac) });
            }
        }
        let setup = WorkerSetup {
            index: 0,
            burst: 32,
            rss: vec![false; 2],
            defrag: dataplane::defrag::Setup::default(),
            seed: ahash::RandomState::with_seeds(1, 5, 6, 7),
            parcels,
            commands,
            messages,
        };
        let worker = Worker::new(setup, path, RigIo::new(frames), now);
        Self { worker, stats, now, pace: Nanos(1_000), _commands: commands_tx, _messages: messages_rx }
    }

    /// Has these frames come from now on. The worker holds none back.
    pub fn replay(&mut self, frames: [Vec<Vec<u8>>; 2]) {
        self.worker.io().replay(frames);
    }

    /// Lets time pass in which nothing happens.
    pub fn wait(&mut self, time: Nanos) {
        self.now = self.now + time;
    }

    /// Turns until every frame has come `times` times; time passes.
    pub fn warm(&mut self, times: usize) {
        let longest = self.worker.io().frames.iter().map(Vec::len).max().unwrap_or(0);
        for _ in 0..(longest * times).div_ceil(32) {
            self.turn();
        }
        self.wait(Nanos::from_secs(3));
    }

    /// One turn of the worker's loop.
    #[inline(never)]
    pub fn turn(&mut self) {
        self.now = self.now + self.pace;
        self.worker.step(self.now);
    }

    /// Frames that were sent so far.
    pub fn sent(&mut self) -> u64 {
        self.worker.io().sent
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(site: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, 2))
}

/// The routers behind lan and wan.
const ROUTER_ADDRESSES: [[IpAddr; 2]; 2] = [[v4(192, 0, 2, 2), v6(1)], [v4(203, 0, 113, 2), v6(2)]];

fn fib() -> FibSpec {
    let net = |s: &str| s.parse().expect("a prefix");
    let via = |interface, address| RouteTarget::Via { interface, gateway: Some(address) };
    let [lan, wan] = ROUTER_ADDRESSES;
    let route = |prefix, target| RouteSpec { prefix, target };
    FibSpec {
        routes: vec![
            route(net("10.0.0.0/8"), via(0, lan[0])),
            route(net("198.18.0.0/15"), via(1, wan[0])),
            route(net("2001:db8:a::/48"), via(0, lan[1])),
            route(net("2001:db8:b::/48"), via(1, wan[1])),
        ],
        others: Vec::new(),
        addresses: vec![
            (0, net("192.0.2.1/24")),
            (1, net("203.0.113.1/24")),
            (0, net("2001:db8:1::1/64")),
            (1, net("2001:db8:2::1/64")),
        ],
    }
}

/// The policy of `scripts/bench`: established passes, lan may open connections to wan.
pub fn policy() -> PolicySpec {
    let rule = |name: &str, matches, action| RuleSpec {
        name: name.to_owned(),
        matches,
        action,
        log: false,
        set_mark: None,
        timeout_policy: 0,
    };
    let established = Match { state: vec![CtState::Established, CtState::Related], ..Match::default() };
    let out = Match { from: vec![LAN], to: vec![WAN], state: vec![CtState::New], ..Match::default() };
    PolicySpec {
        generation: 1,
        zones: vec!["local".to_owned(), "lan".to_owned(), "wan".to_owned()],
        interface_zones: vec![LAN, WAN],
        interface_ct_zones: Vec::new(),
        interface_mss: Vec::new(),
        raw: Vec::new(),
        nat: Vec::new(),
        rules: vec![rule("established", established, Action::Accept), rule("lan-out", out, Action::Accept)],
        default: Action::Drop,
        conntrack: ConntrackSpec::default(),
    }
}

/// The same with the source translated to `address`, the port kept.
pub fn snat(address: Ipv4Addr) -> PolicySpec {
    let matches = Match { from: vec![LAN], to: vec![WAN], ..Match::default() };
    let to = IpAddr::V4(address).into();
    let mut rule = NatRuleSpec::new("out", matches, NatKind::Snat { to });
    rule.preserve_port = dataplane::api::policy::PreservePort::Strict;
    PolicySpec { nat: vec![rule], ..policy() }
}

/// The same with `count` rules in all: those added stand before the last one, and no packet of the loads meets them.
pub fn with_rules(mut policy: PolicySpec, count: usize) -> PolicySpec {
    let Some(last) = policy.rules.pop() else { return policy };
    // TEST-NET-1 to its 1024th neighbour: nobody's destination here.
    for n in 0..u32::try_from(count.saturating_sub(policy.rules.len() + 1)).unwrap_or(0) {
        let host = Ipv4Addr::from_bits(0xc000_0300 + n / 4);
        let set = Arc::new(AddrSet::new([format!("{host}/32").parse().expect("a prefix")], []));
        let port = [53, 123, 443, 8080][n as usize % 4];
        let matches = Match {
            destination: Some(AddrMatch { negate: false, set }),
            proto: vec![proto::UDP],
            dport: vec![port..=port],
            ..Match::default()
        };
        policy.rules.push(RuleSpec { name: format!("rule-{n}"), matches, ..last.clone() });
    }
    policy.rules.push(last);
    policy
}
