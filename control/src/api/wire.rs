//! What travels over the control socket, for both ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use change::{Change, Expectation, Refused, Report, Restored};
pub use conntrack::{Asked, Conn, Names, Way};
pub use filter::{FilterSpec, mark, state};
pub use latency::{Latency, Quantiles, Times, WorkerLatency};
pub use reload::{Reloaded, Swept};
pub use sides::Side;

mod change;
mod conntrack;
mod filter;
mod latency;
mod reload;
mod sides;

/// `status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether policy and forwarding table are in force.
    pub ready: bool,
    /// Version of sluiced.
    pub version: String,
    /// Version of DPDK.
    pub dpdk: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_seconds: f64,
    /// The configuration in force.
    pub config: PathBuf,
    /// Number of the policy in force.
    pub generation: u64,
    /// How many workers.
    pub workers: usize,
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
    /// How many interfaces.
    pub interfaces: usize,
    /// How many of them have a carrier.
    pub interfaces_up: usize,
    /// Connections now.
    pub connections: u64,
    /// Most connections.
    pub connections_limit: u64,
}

/// `check`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checked {
    /// The file.
    pub file: PathBuf,
    /// The first key that a reload would refuse.
    pub needs_restart: Option<String>,
}

/// A line of `show interfaces`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Whether it has a carrier.
    pub up: bool,
    /// Mbit/s, 0 where unknown.
    pub speed_mbps: u32,
    /// As in the configuration.
    pub device: String,
    /// The poll mode driver.
    pub driver: String,
    /// Whether the device steers packets to workers.
    pub rss: bool,
    /// Whether it verifies checksums of TCP and UDP.
    #[serde(default)]
    pub rx_checksums: bool,
    /// MAC address.
    pub mac: String,
    /// VLAN, where tagged.
    pub vlan: Option<u16>,
    /// Largest IP packet.
    pub mtu: u16,
    /// As the kernel has them now.
    pub addresses: Vec<IpNet>,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// A line of `show rules`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rule {
    /// `raw` or `filter`.
    pub hook: String,
    /// Position in its hook, from 1; `None` for the default.
    pub position: Option<usize>,
    /// Its name.
    pub name: String,
    /// What it matches, as words.
    pub matches: String,
    /// What it does.
    pub action: String,
    /// Packets that it decided on; not counted for raw rules.
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}

/// A line of `show nat`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Nat {
    /// Position, from 1.
    pub position: usize,
    /// Its name.
    pub name: String,
    /// `none`, `masquerade`, `snat`, `dnat`, `twice`, `redirect`, `netmap` or `nptv6`.
    pub kind: String,
    /// What it matches, as words.
    pub matches: String,
    /// The new addresses and ports and how they are chosen, as words.
    pub to: String,
    /// Connections that it translated; not counted where there is no state (nptv6).
    #[serde(default)]
    pub connections: u64,
    /// New connections for which it found no port or no address.
    #[serde(default)]
    pub failures: u64,
}

/// A line of `show routes`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Route {
    /// Destinations.
    pub to: IpNet,
    /// The next router.
    pub via: Option<IpAddr>,
    /// The interface; `None` for what is discarded.
    pub interface: Option<String>,
    /// `unicast`, `blackhole`, `unreachable`, `prohibit`.
    pub kind: String,
    /// Smaller wins.
    pub metric: u32,
    /// Who installed it in the kernel.
    pub protocol: String,
}

/// A line of `show neighbours`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// The interface.
    pub interface: String,
    /// Its MAC address, where known.
    pub mac: Option<String>,
    /// The kernel's word for how well it is known.
    pub state: String,
}

/// A line of `show sets`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Disjoint IPv4 ranges.
    pub ipv4_ranges: usize,
    /// Disjoint IPv6 ranges.
    pub ipv6_ranges: usize,
}

/// A line of `show workers` and of `conntrack stats`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Worker {
    /// Its index.
    pub worker: usize,
    /// Its CPU.
    pub cpu: usize,
    /// Share of its time that moved packets, 0 to 1, since start.
    pub busy: f64,
    /// Connections in its table.
    pub connections: u64,
    /// Most of them.
    pub limit: u64,
    /// Signposts in its table.
    pub signposts: u64,
    /// Packets given to other workers, by cause.
    pub handovers: BTreeMap<String, u64>,
    /// Packets by class, both directions.
    pub classified: BTreeMap<String, u64>,
    /// What happened to connections.
    pub events: BTreeMap<String, u64>,
    /// Failed choices of a translated port.
    pub nat_failures: u64,
    /// Expectations now.
    pub expectations: u64,
    /// Reports of changed connections that found no room.
    pub events_lost: u64,
    /// Packets dropped, by reason; reasons without any are left out.
    pub drops: BTreeMap<String, u64>,
}

/// `conntrack count`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub connections: u64,
}

/// `conntrack flush`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// How many were ended.
    pub ended: u64,
}
