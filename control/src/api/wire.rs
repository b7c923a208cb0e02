//! What travels over the control socket, for both ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dataplane::api::Tuple;
use dataplane::api::command::{ConnFilter, ConnView};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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

/// `reload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// Number of the policy in force.
    pub generation: u64,
    /// From compiling until the last worker had it.
    pub seconds: f64,
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
    /// `masquerade`, `snat` or `dnat`.
    pub kind: String,
    /// What it matches, as words.
    pub matches: String,
    /// The new address and port, as words.
    pub to: String,
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

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP query identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// Packets.
    pub packets: u64,
    /// Bytes of the IP packets.
    pub bytes: u64,
    /// Interface that its packets leave by, once one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
}

/// One connection, a line of `conntrack list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conn {
    /// IP protocol number.
    pub proto: u8,
    /// TCP state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Seconds until it expires.
    pub timeout: u32,
    /// As its first packet came.
    pub original: Way,
    /// As replies come on the wire.
    pub reply: Way,
    /// Whether a reply was seen.
    pub replied: bool,
    /// Whether kept under pressure.
    pub assured: bool,
    /// Which worker owns it.
    pub worker: usize,
}

impl Conn {
    /// Of a worker's view.
    pub fn new(v: &ConnView, worker: usize, interface: impl Fn(u16) -> Option<String>) -> Self {
        let way = |t: &Tuple, i: usize| {
            let (icmp, ports) = (t.is_icmp(), has_ports(t.proto));
            Way {
                src: t.src,
                dst: t.dst,
                sport: ports.then_some(t.sport),
                dport: ports.then_some(t.dport),
                icmp_type: icmp.then(|| t.icmp_type()),
                icmp_code: icmp.then(|| t.icmp_code()),
                icmp_id: icmp.then_some(t.sport),
                packets: v.packets[i],
                bytes: v.bytes[i],
                egress: v.egress[i].and_then(&interface),
            }
        };
        Self {
            proto: v.original.proto,
            state: v.state.map(str::to_owned),
            timeout: v.timeout_s,
            original: way(&v.original, 0),
            reply: way(&v.reply, 1),
            replied: v.replied,
            assured: v.assured,
            worker,
        }
    }
}

/// TCP, UDP, DCCP, SCTP, UDP-Lite.
const fn has_ports(proto: u8) -> bool {
    matches!(proto, 6 | 17 | 33 | 132 | 136)
}

/// TCP states by the names that nf_conntrack gives them.
pub const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// A [`ConnFilter`] as it travels in a query string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSpec {
    /// IP version: 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
    /// IP protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<u8>,
    /// Original source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// Original destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNet>,
    /// Source of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_source: Option<IpNet>,
    /// Destination of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_destination: Option<IpNet>,
    /// Original source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Original destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// TCP state, one of [`TCP_STATES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether assured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assured: Option<bool>,
    /// Whether the reply was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replied: Option<bool>,
    /// Only where the source is translated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snat: bool,
    /// Only where the destination is translated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dnat: bool,
}

impl FilterSpec {
    /// What the workers understand.
    ///
    /// # Errors
    /// Where the state has no such name.
    pub fn to_filter(&self) -> Result<ConnFilter, String> {
        let state = match &self.state {
            None => None,
            Some(s) => Some(state(s)?),
        };
        Ok(ConnFilter {
            family: self.family,
            proto: self.proto,
            source: self.source,
            destination: self.destination,
            reply_source: self.reply_source,
            reply_destination: self.reply_destination,
            sport: self.sport,
            dport: self.dport,
            state,
            assured: self.assured,
            mark: None,
            ct_zone: None,
            replied: self.replied,
            snat: self.snat,
            dnat: self.dnat,
        })
    }
}

/// The TCP state called `name`, in any case.
///
/// # Errors
/// One sentence with all names where there is none.
pub fn state(name: &str) -> Result<&'static str, String> {
    let found = TCP_STATES.iter().find(|s| s.eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| format!("there is no TCP state {name}: the states are {}", TCP_STATES.join(", ")))
}
