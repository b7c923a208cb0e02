//! `sluiced` as it is shipped, on net_tap ports in a network namespace of its own, in lock step.
//!
//! ```text
//!   in-lan = dlan [ port lan, sluiced, port wan ] dwan = in-wan          what its wires carry
//!   to-lan = lan  [ twins                       ] wan  = to-wan          what is delivered to the gateway itself
//! ```
//! nft passes every frame between the TAP devices at both ends of a `=`, so the kernel of that namespace neither sees nor
//! sends any. After each frame the counters are read until it is accounted for: received, judged, and every worker has
//! looked for more and found none.
//!
//! *Life-cycle*: [`Process::new`] moves the calling thread into a new network namespace and starts `sluiced` there; it is
//! stopped with the value. *Threads*: the one that made it. *Limits*: needs root, and as many CPUs as workers.

pub mod api;
mod conn;
mod daemon;
pub mod tally;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use api::Api;
use daemon::Daemon;
use dataplane::api::{DropReason, Tuple};
use nix::poll::{PollFd, PollFlags, poll};
use tally::Tally;
use tun_rs::SyncDevice;

use crate::frame::{ETH, Side};
use crate::namespace::{self, frames, run, tap};
use crate::observe::{Class, ConnState, Exit, Observation, System};
use crate::policy::Policy;

/// How long a frame may take to be accounted for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the first look at the counters waits for something to leave, milliseconds.
const MOMENT: u8 = 1;

/// One of so many packets has its connection asked for.
const SAMPLE: u64 = 8;

/// Where a connection is asked for by tuple.
const GET: &str = "/v1/conntrack/get";

/// A running `sluiced`.
pub struct Process {
    wires: [SyncDevice; 2],
    twins: [SyncDevice; 2],
    api: Api,
    workers: usize,
    zones: Vec<u16>,
    start: Instant,
    buffer: Vec<u8>,
    /// Counters after the frame before.
    tally: Tally,
    /// Dropped last: what it serves goes first.
    _daemon: Daemon,
}

impl Process {
    /// Starts `sluiced` with `policy` on `workers` CPUs.
    ///
    /// # Errors
    /// What could not be made, or what it said when it did not start.
    pub fn new(sluiced: &Path, policy: &Policy, workers: usize) -> io::Result<Self> {
        namespace::enter_new()?;
        let wires = [tap("in-lan")?, tap("in-wan")?];
        let twins = [tap("to-lan")?, tap("to-wan")?];
        run("sh", &["-s"], SHELL)?;
        let daemon = Daemon::start(sluiced, policy, workers)?;
        run("nft", &["-f", "-"], &nft())?;
        let api = Api::connect(&daemon.socket())?;
        let mut process = Self {
            wires,
            twins,
            api,
            workers,
            zones: policy.all_zones(),
            start: Instant::now(),
            buffer: vec![0; 1 << 16],
            tally: Tally::default(),
            _daemon: daemon,
        };
        // What its kernel said before it was cut off.
        loop {
            let (before, now) = (process.tally()?, process.tally()?);
            if now.is_but_later(&before) && now.all_looked_since(&before) {
                process.tally = now;
                break;
            }
        }
        process.collect(&mut Vec::new())?;
        Ok(process)
    }

    /// Reads the counters until one more frame is accounted for, and takes what has left.
    ///
    /// A packet that passed is done once as many frames have left as were counted. Of what did not pass it is not known
    /// whether an error follows or another worker still has it: then all workers must have looked for more and found none.
    fn settle(&mut self, out: &mut Vec<(Exit, Vec<u8>)>) -> io::Result<Tally> {
        self.await_departure()?;
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.tally()?;
        let mut quiet = 0;
        loop {
            self.collect(out)?;
            let frames = out.iter().filter(|(exit, _)| *exit != Exit::Local).count() as u64;
            let judged = last.has_judged_since(&self.tally);
            let passed = judged && last.drops == self.tally.drops && !out.is_empty();
            // What begins a translated connection may still be refused by the worker that its replies would go to.
            let begins = self.workers > 1 && last.begun() != self.tally.begun();
            if passed && !begins && last.sent == self.tally.sent + frames {
                return Ok(last);
            }
            let now = self.tally()?;
            if !now.is_but_later(&last) || now.received == self.tally.received {
                quiet = 0;
                last = now;
            } else if now.all_looked_since(&last) {
                quiet += 1;
                last = now;
            }
            // Where nothing was judged, a fragment may still be on its way to the worker that keeps it.
            if quiet >= if self.workers == 1 || judged && !begins { 1 } else { 3 } {
                self.collect(out)?;
                return Ok(last);
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("a frame is not accounted for: {:?}, then {last:?}", self.tally)));
            }
        }
    }

    fn tally(&mut self) -> io::Result<Tally> {
        Ok(Tally::read(&self.api.get("/metrics")?))
    }

    /// Sleeps until something has left, for a moment at most: meanwhile the workers have the CPUs for themselves.
    fn await_departure(&self) -> io::Result<()> {
        let devices = self.wires.iter().chain(&self.twins);
        let mut fds: Vec<PollFd<'_>> = devices.map(|d| PollFd::new(d.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, MOMENT).map_err(io::Error::from).map(drop)
    }

    /// Adds what has left.
    fn collect(&mut self, out: &mut Vec<(Exit, Vec<u8>)>) -> io::Result<()> {
        for side in Side::ALL {
            let left = frames(&self.wires[side.index()], &mut self.buffer)?;
            out.extend(left.into_iter().map(|f| (Exit::Link(side), f)));
        }
        for twin in &self.twins {
            let delivered = frames(twin, &mut self.buffer)?.into_iter();
            out.extend(delivered.filter_map(|f| Some((Exit::Local, f.get(ETH..)?.to_vec()))));
        }
        Ok(())
    }
}

impl System for Process {
    fn name(&self) -> String {
        format!("sluiced, {} worker{}", self.workers, if self.workers == 1 { "" } else { "s" })
    }

    fn send(&mut self, _: Duration, side: Side, frame: &[u8]) -> io::Result<Observation> {
        self.wires[side.index()].send(frame)?;
        let mut seen = Observation::default();
        let tally = self.settle(&mut seen.out)?;
        let before = std::mem::replace(&mut self.tally, tally);
        for ((class, now), before) in Class::ALL.into_iter().zip(&self.tally.classified).zip(&before.classified) {
            for (reply, _) in [false, true].into_iter().zip(now.iter().zip(before)).filter(|(_, (n, b))| n > b) {
                (seen.class, seen.reply) = (Some(class), reply);
            }
        }
        let mut reasons = DropReason::ALL.iter().zip(self.tally.drops.iter().zip(&before.drops));
        seen.reason = reasons.rfind(|(_, (now, before))| now > before).map(|(r, _)| r.label());
        Ok(seen)
    }

    fn sample(&self) -> u64 {
        SAMPLE
    }

    fn find(&mut self, t: &Tuple) -> io::Result<Option<ConnState>> {
        for &ct_zone in &self.zones {
            match self.api.post(GET, &conn::question(&Tuple { ct_zone, ..*t })) {
                Ok(text) => {
                    if let Some(found) = conn::answer(&text) {
                        return Ok(Some(found));
                    }
                }
                // A tuple that cannot be has no connection either.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(&mut self, at: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        std::thread::sleep(at.saturating_sub(self.now()));
        let mut out = Vec::new();
        self.collect(&mut out)?;
        self.tally = self.tally()?;
        Ok(out)
    }
}

/// Before it starts: nothing speaks of its own accord on devices that come.
const SHELL: &str = "set -e
sysctl -qw net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.router_solicitations=0
sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0
ip link set lo up
for dev in in-lan in-wan to-lan to-wan; do
    sysctl -qw net.ipv6.conf.$dev.disable_ipv6=1
    ip link set $dev mtu 9000 up
done
";

/// Once its ports and twins are there: whatever comes out of one end of a cable goes in at the other.
fn nft() -> String {
    use std::fmt::Write as _;
    let mut s = String::from("table netdev cables {\n");
    let mut one_way = |from: &str, to: &str| {
        _ = writeln!(s, " chain {from}-in {{ type filter hook ingress device \"{from}\" priority 0; policy drop;");
        _ = writeln!(s, "  fwd to \"{to}\"\n }}");
    };
    for side in ["lan", "wan"] {
        one_way(&format!("in-{side}"), &format!("d{side}"));
        one_way(&format!("d{side}"), &format!("in-{side}"));
        one_way(side, &format!("to-{side}"));
    }
    for twin in ["lan", "wan"] {
        _ = writeln!(s, " chain {twin}-out {{ type filter hook egress device \"{twin}\" priority 0; policy drop; }}");
    }
    s + "}\n"
}
