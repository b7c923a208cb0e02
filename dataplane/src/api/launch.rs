//! Starting the dataplane: EAL, ports, workers; and the [`Handle`] by which control speaks to them.
//!
//! *Life-cycle*: [`start`] once per process (EAL allows no second time); [`Handle::stop`] ends the workers, closes the
//! ports and returns all memory.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::command::{Command, Message};
use super::stats::WorkerStats;

/// Which memory packets and tables live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages where enough are free or can be reserved, else ordinary pages.
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
}

/// What control knows of a started port.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The poll mode driver's name.
    pub driver: String,
    /// Its MAC address; the TAP twin has the same.
    pub mac: [u8; 6],
    /// Whether the device took our RSS key and table, so that packets need no steering in software.
    pub rss: bool,
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
}
