//! Starting the dataplane: EAL, ports, workers; and the [`Handle`] by which control speaks to them.
//!
//! *Life-cycle*: [`start`] once per process (EAL allows no second time); [`Handle::stop`] ends the workers, closes the
//! ports and returns all memory.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::command::{Command, Message};
#[cfg(feature = "dpdk")]
use super::policy::Policy;
use super::stats::WorkerStats;
pub use crate::defrag::Mode as DefragMode;
pub use crate::poll::Poll;
#[cfg(feature = "dpdk")]
use crate::{
    forward::route::{Fib, FibSpec},
    path::{Interface, Path, PathSetup},
    steer::{Steer, mesh},
    time::Nanos,
    worker::{Worker, WorkerSetup},
};

/// Which memory packets and tables live in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages where enough are free or can be reserved, else ordinary pages.
    #[default]
    Auto,
    /// Huge pages or no start.
    On,
    /// Ordinary pages.
    Off,
}

/// One interface.
#[derive(Clone, Debug)]
pub struct InterfaceConfig {
    /// Its name in the YAML, and that of its TAP twin in the kernel; at most 15 bytes.
    pub name: String,
    /// A PCI address (`0000:3b:00.0`) or a vdev with its arguments (`net_tap0,iface=dtap0`).
    pub device: String,
    /// Largest IP packet, bytes, 1280..=9000.
    pub mtu: u16,
    /// Its VLAN, 1..=4094; `None` for untagged.
    pub vlan: Option<u16>,
}

/// What may wait of datagrams in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefragConfig {
    /// Bytes per worker, 1,048,576..=1,073,741,824.
    pub memory: usize,
    /// Whether fragments wait for all the others, or for the first alone.
    pub mode: DefragMode,
}

impl Default for DefragConfig {
    fn default() -> Self {
        Self { memory: crate::defrag::MEMORY, mode: DefragMode::Reassemble }
    }
}

/// What is fixed at start.
#[derive(Clone, Debug)]
pub struct LaunchConfig {
    /// CPU of each worker; at least one.
    pub workers: Vec<usize>,
    /// Memory.
    pub hugepages: HugePages,
    /// Frames per receive, 1..=64.
    pub burst: usize,
    /// Further arguments of the EAL.
    pub eal_args: Vec<String>,
    /// DPDK file prefix: tells instances on one machine apart.
    pub file_prefix: String,
    /// The interfaces; at least one.
    pub interfaces: Vec<InterfaceConfig>,
    /// Most connections, all workers together.
    pub conntrack_max: usize,
    /// Fragments that wait.
    pub defrag: DefragConfig,
    /// Packet buffers, all together; `None` for what the queues and workers need. A `net_pcap` port that replays for
    /// ever keeps its whole file in them.
    pub mbufs: Option<u32>,
    /// What workers do while nothing comes.
    pub poll: Poll,
    /// Whether every interface has a TAP twin in the kernel. Without, nothing reaches the gateway itself: for tests and
    /// for measuring forwarding alone.
    pub twins: bool,
}

impl LaunchConfig {
    /// Packet buffers that will be made.
    #[cfg(feature = "dpdk")]
    pub fn mbufs_needed(&self) -> u32 {
        crate::dpdk::mempool::mbufs_needed(self)
    }

    /// Memory for packets, MB: the buffers and what DPDK wants beside them, in huge pages or ordinary ones.
    #[cfg(feature = "dpdk")]
    pub fn megabytes_needed(&self, huge: bool) -> u32 {
        crate::dpdk::mempool::megabytes_needed(self, huge)
    }

    /// How much may wait of datagrams in fragments.
    #[cfg(feature = "dpdk")]
    pub(crate) fn defrag_setup(&self) -> crate::defrag::Setup {
        let DefragConfig { memory, mode } = self.defrag;
        crate::defrag::Setup { memory, frame: crate::dpdk::mempool::bytes_per_mbuf(self), mode }
    }

    /// What can be told from the configuration alone.
    #[cfg(feature = "dpdk")]
    fn validate(&self) -> Result<(), LaunchError> {
        if self.workers.is_empty() || self.workers.len() > MAX_WORKERS {
            return Err(LaunchError::Workers { count: self.workers.len() });
        }
        if self.interfaces.is_empty() {
            return Err(LaunchError::NoInterfaces);
        }
        if !(1..=crate::io::MAX_BURST).contains(&self.burst) {
            return Err(LaunchError::Burst { burst: self.burst });
        }
        let allowed = crate::dpdk::eal::allowed_cpus();
        for &cpu in &self.workers {
            if !crate::dpdk::eal::cpu_in_list(&allowed, cpu) {
                return Err(LaunchError::Cpu { cpu, allowed });
            }
        }
        for interface in &self.interfaces {
            // Also part of an argument of the EAL, where a comma would begin the next one.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            let name = &interface.name;
            if !(1..=15).contains(&name.len()) || !name.bytes().all(plain) || name == "." || name == ".." {
                return Err(LaunchError::InterfaceName { name: name.clone() });
            }
        }
        Ok(())
    }
}

/// Most workers: DPDK's lcores, less the control thread's.
pub const MAX_WORKERS: usize = 127;

/// What control knows of a started port.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The poll mode driver's name.
    pub driver: String,
    /// The gateway's MAC address there; the TAP twin has the same.
    pub mac: [u8; 6],
    /// Whether the device took our RSS key and table, so that packets need no steering in software. `false` with one
    /// worker, which needs none either way.
    pub rss: bool,
    /// Whether the device verifies TCP's and UDP's checksums, so that software does so only where it finds one wrong or leaves
    /// it open. A device that calls a wrong one right cannot be found out.
    pub rx_checksums: bool,
}

/// Link state of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether there is a carrier.
    pub up: bool,
    /// Mbit/s; 0 where unknown.
    pub speed_mbps: u32,
}

/// One running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    /// The CPU it runs on.
    pub cpu: usize,
    /// Bounded; a full channel means that earlier commands are still under way.
    pub commands: Sender<Command>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
}

/// The running dataplane.
#[derive(Debug)]
pub struct Handle {
    /// By worker index.
    pub workers: Vec<WorkerHandle>,
    /// Answers and reports of all workers.
    pub messages: Receiver<Message>,
    /// The wire port of each interface.
    pub ports: Vec<PortInfo>,
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
    /// Most connections that each worker's table holds.
    pub conntrack_limit_per_worker: usize,
    /// What the operator should know of how it started, one sentence each.
    pub notes: Vec<String>,
    #[cfg(feature = "dpdk")]
    runtime: crate::dpdk::runtime::Runtime,
}

/// What a worker is built from.
#[cfg(feature = "dpdk")]
#[derive(Debug)]
pub struct WorkerSeat {
    /// Which worker, 0-based; also the queue it polls.
    pub index: usize,
    /// How many there are.
    pub workers: usize,
    /// Its queue pair of every port.
    pub io: crate::dpdk::DpdkIo,
    /// Its commands.
    pub commands: Receiver<Command>,
    /// Its way back; shared by all, bounded: a worker uses `try_send`.
    pub messages: Sender<Message>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// The wire port of each interface.
    pub ports: Vec<PortInfo>,
}

/// Starts EAL, ports and one thread per worker; `build` makes each worker, in order, on the calling thread, which becomes
/// DPDK's main lcore.
///
/// # Errors
/// Whatever does not start; all that did is stopped and freed before this returns, but the EAL allows no second try.
#[cfg(feature = "dpdk")]
pub fn start<L: crate::dpdk::WorkerLoop>(
    config: &LaunchConfig,
    build: impl FnMut(WorkerSeat) -> L,
) -> Result<Handle, LaunchError> {
    config.validate()?;
    let started = crate::dpdk::runtime::Runtime::start(config, build)?;
    let workers = config.workers.iter().zip(started.workers);
    Ok(Handle {
        workers: workers.map(|(&cpu, (commands, stats))| WorkerHandle { cpu, commands, stats }).collect(),
        messages: started.messages,
        ports: started.ports,
        hugepages: started.hugepages,
        conntrack_limit_per_worker: config.conntrack_max.div_ceil(config.workers.len()),
        notes: started.notes,
        runtime: started.runtime,
    })
}

/// Starts the gateway: [`start`] with the workers of this crate. Until control publishes a policy and a forwarding table
/// they have no rule, no route, and drop all but ARP and neighbour discovery.
///
/// # Errors
/// Whatever does not start.
#[cfg(feature = "dpdk")]
pub fn gateway(config: &LaunchConfig) -> Result<Handle, LaunchError> {
    let policy = Arc::new(Policy::closed(config.interfaces.len()));
    let fib = Arc::new(Fib::build(FibSpec::default()));
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let mut rings = mesh(config.workers.len()).into_iter();
    start(config, |seat| {
        // Invariant: one set of rings per worker was made above.
        let (parcels, notes) = rings.next().unwrap_or_else(|| mesh(1).remove(0));
        let number = |n: usize| u16::try_from(n).unwrap_or(0);
        let interfaces = config.interfaces.iter().zip(&seat.ports);
        let path = Path::new(
            PathSetup {
                steer: Steer::new(number(seat.index), number(seat.workers)),
                notes,
                interfaces: interfaces.map(|(i, p)| Interface { mac: p.mac, mtu: i.mtu, vlan: i.vlan }).collect(),
                stats: seat.stats,
                conntrack_max: config.conntrack_max.div_ceil(seat.workers),
                seeds: [random(), random(), random(), random()],
                policy: Arc::clone(&policy),
                fib: Arc::clone(&fib),
            },
            Nanos(0),
        );
        let setup = WorkerSetup {
            index: seat.index,
            burst: config.burst,
            rss: seat.ports.iter().map(|p| p.rss).collect(),
            defrag: config.defrag_setup(),
            seed: ahash::RandomState::with_seeds(random(), random(), random(), random()),
            parcels,
            commands: seat.commands,
            messages: seat.messages,
        };
        Worker::new(setup, path, seat.io, Nanos(0))
    })
}

/// DPDK's version, as the linked library names itself.
#[cfg(feature = "dpdk")]
pub fn dpdk_version() -> String {
    crate::dpdk::version()
}

#[cfg(feature = "dpdk")]
impl Handle {
    /// Carrier and speed of interface `interface`'s wire; down where there is no such interface.
    pub fn link(&self, interface: usize) -> Link {
        self.runtime.link(interface).unwrap_or(Link { up: false, speed_mbps: 0 })
    }

    /// Tells every worker to stop, waits for them, closes the ports and frees all memory.
    ///
    /// # Errors
    /// A worker panicked; the rest is closed all the same.
    pub fn stop(self) -> Result<StopReport, StopError> {
        self.runtime.stop()
    }
}

/// How the dataplane ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Packet buffers that nobody gave back; 0 unless something is wrong.
    pub leaked_mbufs: u32,
    /// What did not close as it should, one sentence each.
    pub notes: Vec<String>,
}

/// What went wrong while stopping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// A worker's thread had panicked.
    #[error("worker {worker} had panicked")]
    WorkerPanicked {
        /// Which.
        worker: usize,
    },
}

/// A call of DPDK that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text} (errno {errno})")]
pub struct DpdkError {
    /// The function.
    pub call: &'static str,
    /// Its error number, positive.
    pub errno: i32,
    /// The number in words.
    pub text: String,
}

/// Why the dataplane did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// No workers, or too many.
    #[error("{count} workers: 1 to {MAX_WORKERS} are possible")]
    Workers {
        /// How many were asked for.
        count: usize,
    },
    /// No interfaces.
    #[error("no interface is configured, at least one is needed")]
    NoInterfaces,
    /// Burst out of range.
    #[error("burst {burst}: 1 to {} is possible", crate::io::MAX_BURST)]
    Burst {
        /// What was asked for.
        burst: usize,
    },
    /// A worker's CPU is not ours.
    #[error("worker CPU {cpu} is not among the CPUs that this process may use ({allowed})")]
    Cpu {
        /// What was asked for.
        cpu: usize,
        /// The kernel's list.
        allowed: String,
    },
    /// The kernel could not have an interface of this name.
    #[error("interface name {name:?}: 1 to 15 letters, digits, dots, dashes and underscores are possible")]
    InterfaceName {
        /// The name.
        name: String,
    },
    /// An argument holds a NUL byte.
    #[error("EAL argument {argument:?} holds a NUL byte")]
    EalArgument {
        /// The argument.
        argument: String,
    },
    /// Not enough huge pages where they are required.
    #[error(
        "{megabytes} MB of 2 MB huge pages are needed, {free_megabytes} MB are free and the rest could not be reserved: \
         raise /proc/sys/vm/nr_hugepages, or set dataplane.hugepages to off"
    )]
    HugePages {
        /// Needed, MB.
        megabytes: u32,
        /// Free, MB.
        free_megabytes: u32,
    },
    /// A second start in one process.
    #[error("DPDK was already started in this process and allows no second start")]
    AlreadyStarted,
    /// The EAL refused.
    #[error("DPDK's EAL did not start")]
    Eal {
        /// What it said.
        source: DpdkError,
    },
    /// No memory for packets.
    #[error("no memory for {mbufs} packet buffers")]
    Pool {
        /// How many were asked for.
        mbufs: u32,
        /// What DPDK said.
        source: DpdkError,
    },
    /// No port came of a device.
    #[error("interface {interface}: no such device, or its driver refuses it: {device}")]
    Device {
        /// Which interface.
        interface: String,
        /// As configured.
        device: String,
        /// What DPDK said.
        source: DpdkError,
    },
    /// The kernel made no TAP.
    #[error(
        "interface {interface}: the kernel made no TAP of this name ({source}): /dev/net/tun and CAP_NET_ADMIN are \
         needed, and no other interface may have the name"
    )]
    Twin {
        /// Which interface.
        interface: String,
        /// What DPDK said.
        source: DpdkError,
    },
    /// A device without queues.
    #[error("interface {interface}: the device has no {kind} queue")]
    NoQueue {
        /// Which interface.
        interface: String,
        /// `receive` or `transmit`.
        kind: &'static str,
    },
    /// A device with smaller frames.
    #[error("interface {interface}: MTU {mtu} is more than the device's {most}")]
    Mtu {
        /// Which interface.
        interface: String,
        /// As configured.
        mtu: u16,
        /// The device's largest.
        most: u16,
    },
    /// A port refused.
    #[error("interface {interface}: its port did not start")]
    Port {
        /// Which interface.
        interface: String,
        /// What DPDK said.
        source: DpdkError,
    },
    /// A worker's thread did not start.
    #[error("worker {worker} on CPU {cpu}")]
    Thread {
        /// Which worker.
        worker: usize,
        /// Its CPU.
        cpu: usize,
        /// What DPDK or the kernel said.
        source: DpdkError,
    },
}
