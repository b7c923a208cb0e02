//! [`Connection`]: a generator whose two ports are joined to the gateway's, and trials of it.
//!
//! *Life-cycle*: once per process, for DPDK starts once; [`Connection::close`] ends it. *Threads*: the caller's; the
//! generator has its own.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use dataplane::api::Nanos;
use dataplane::api::launch::{self, DefragConfig, Handle, HugePages, InterfaceConfig, LaunchConfig, Poll, WorkerSeat};
use dataplane::time::Clock;

use super::frame::{Frames, Size, Way};
use super::generator::{Generator, Outcome, Trial};
use super::search::Tally;
use super::{Error, Mac};

/// The stations that the gateway has as its neighbours on both links.
const ROUTERS: [Mac; 2] = [[2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0x0b]];

/// How fast flows are made known to the gateway, frames per second.
const LEARNING: u64 = 100_000;

/// Packet buffers: rings of both ports, and bursts.
const MBUFS: u32 = 16_383;

/// How long the links may take to come up.
pub const LINK_UP: Duration = Duration::from_secs(20);

/// How the generator is joined to the gateway.
#[derive(Debug, clap::Args)]
pub struct ConnectionArgs {
    /// The memif socket at which the gateway serves interfaces 0 (lan) and 1 (wan).
    #[arg(long, required_unless_present = "devices")]
    socket: Option<PathBuf>,
    /// Instead of memif: two devices of DPDK, to the gateway's lan and wan.
    #[arg(long, num_args = 2, value_names = ["LAN", "WAN"], conflicts_with = "socket")]
    devices: Option<Vec<String>>,
    /// The gateway's MAC addresses there.
    #[arg(long, num_args = 2, value_names = ["LAN", "WAN"], value_parser = mac, required = true)]
    macs: Vec<Mac>,
    /// The CPU that sends and receives.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// DPDK's file prefix.
    #[arg(long, default_value = "sluice-bench")]
    file_prefix: String,
    /// Seconds to wait for missing frames.
    #[arg(long, default_value_t = 2.0)]
    settle: f64,
}

/// See the module.
pub struct Connection {
    handle: Handle,
    macs: Vec<Mac>,
    settle: Nanos,
    trials: Sender<Trial>,
    outcomes: Receiver<Outcome>,
    /// Trials so far.
    count: Cell<u16>,
}

impl Connection {
    /// Starts the generator and waits for the links.
    ///
    /// # Errors
    /// Where DPDK, a device or the gateway fails.
    pub fn open(args: &ConnectionArgs) -> Result<Self, Error> {
        let settle = seconds("settle", args.settle)?;
        let (trials, inbox) = bounded(1);
        let (sender, outcomes) = bounded(1);
        let clock = Clock::start();
        let build = move |seat: WorkerSeat| {
            Generator::new(seat.io, move || clock.now(), seat.commands, inbox.clone(), sender.clone())
        };
        let handle = launch::start(&launch_config(args), build).map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(String::new, |cause| format!(": {cause}"));
            Error::Launch(e, cause)
        })?;
        let connection = Self { handle, macs: args.macs.clone(), settle, trials, outcomes, count: Cell::new(0) };
        connection.wait_for_links()?;
        Ok(connection)
    }

    fn wait_for_links(&self) -> Result<(), Error> {
        let end = Instant::now() + LINK_UP;
        for (interface, name) in ["lan", "wan"].into_iter().enumerate() {
            while !self.handle.link(interface).up {
                if Instant::now() > end {
                    return Err(Error::Link(name));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// A trial of `flows` flows, for `duration` and with every frame timed.
    pub fn trial(&self, size: Size, flows: u32, way: Way, rate: Option<u64>, duration: Nanos) -> Trial {
        let end = usize::from(way == Way::Reply);
        self.count.set(self.count.get().wrapping_add(1));
        Trial {
            id: self.count.get(),
            frames: Frames::new(size, flows, way, self.macs[end], ROUTERS[end]),
            way,
            rate,
            duration,
            count: u64::MAX,
            settle: self.settle,
            sample: 1,
        }
    }

    /// Runs a trial to its end.
    ///
    /// # Errors
    /// Where the generator has ended.
    pub fn run(&self, trial: Trial) -> Result<Outcome, Error> {
        self.trials.send(trial).map_err(|_| Error::Generator)?;
        self.outcomes.recv().map_err(|_| Error::Generator)
    }

    /// Has the gateway see each flow, and its answer.
    ///
    /// # Errors
    /// Where it does not forward them.
    pub fn learn(&self, flows: u32) -> Result<(), Error> {
        for (way, name) in [(Way::Original, "from lan to wan"), (Way::Reply, "from wan to lan")] {
            let mut last = Tally { wanted: 0, offered: 0, received: 0, elapsed: 0 };
            for _ in 0..3 {
                let trial = self.trial(Size::Fixed(64), flows, way, Some(LEARNING), Nanos::from_secs(60));
                last = self.run(Trial { count: flows.into(), ..trial })?.tally;
                if last.lost() == 0 {
                    break;
                }
            }
            if last.lost() > 0 {
                return Err(Error::Learning { way: name, received: last.received, offered: last.offered });
            }
        }
        Ok(())
    }

    /// Ends the generator.
    pub fn close(self) {
        // Its report is about mbufs and ports of a process that ends: what was measured stands.
        let _ = self.handle.stop();
    }
}

fn launch_config(args: &ConnectionArgs) -> LaunchConfig {
    let memif = |id: usize| {
        let socket = args.socket.as_deref().unwrap_or(Path::new("")).display();
        format!("net_memif{id},role=client,id={id},socket={socket},socket-abstract=no")
    };
    let device = |n: usize| args.devices.as_ref().and_then(|d| d.get(n).cloned()).unwrap_or_else(|| memif(n));
    let interface =
        |n: usize, name: &str| InterfaceConfig { name: name.into(), device: device(n), mtu: 1500, vlan: None };
    LaunchConfig {
        workers: vec![args.cpu],
        // A NIC reads packets where they lie; memif copies them.
        hugepages: if args.devices.is_some() { HugePages::Auto } else { HugePages::Off },
        burst: 64,
        eal_args: Vec::new(),
        file_prefix: args.file_prefix.clone(),
        interfaces: vec![interface(0, "lan"), interface(1, "wan")],
        conntrack_max: 1,
        defrag: DefragConfig::default(),
        mbufs: Some(MBUFS),
        poll: Poll::Auto,
        twins: false,
    }
}

/// The argument `name`, seconds.
///
/// # Errors
/// Where it is too short or too long.
pub fn seconds(name: &'static str, value: f64) -> Result<Nanos, Error> {
    let value = within(name, value, 0.01, 86_400.0, "seconds from 0.01 to 86400")?;
    Ok(Nanos(u64::try_from(Duration::from_secs_f64(value).as_nanos()).unwrap_or(u64::MAX)))
}

/// The argument `name`, where it is between `least` and `most`.
///
/// # Errors
/// Where it is not; `accepted` says what is.
pub fn within(name: &'static str, value: f64, least: f64, most: f64, accepted: &'static str) -> Result<f64, Error> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(Error::Argument { name, value, accepted }) }
}

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| "six bytes in hexadecimal with colons between".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!(mac("02:00:00:00:01:0a"), Ok([2, 0, 0, 0, 1, 10]));
        for bad in ["", "02:00:00:00:01", "02:00:00:00:01:0a:0b", "02:00:00:00:01:0g", "0200:00:00:01:0a"] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(seconds("trial", 0.5).ok(), Some(Nanos(500_000_000)));
        for bad in [0.0, -1.0, 1e6, f64::NAN] {
            let error = seconds("trial", bad).expect_err("out of bounds").to_string();
            assert_eq!(error, format!("--trial {bad}: seconds from 0.01 to 86400"));
        }
    }
}
