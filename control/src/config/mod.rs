//! The configuration: one YAML file in, one checked [`Config`] out, or every error with its line.
//!
//! Three types, each able to say less than the one before: the text; the schema (which keys there are and where each
//! value stands); [`Config`], in which every name is resolved and every range holds. Nothing is ever ignored: a key
//! that is not known, or not built yet, is an error.
//!
//! *Life-cycle*: [`load`] once at start and again for each `check`, `diff` and `reload`; the result is plain data.
//! *Threads*: the control thread. *Limits*: in `node` and `address`; hostile input costs bounded time and memory.
//! *Sources*: docs/DESIGN.md section 5 is the contract; configs/gateway.yaml shows every key.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::api::launch::LaunchConfig;
use dataplane::api::policy::{AddrSet, PolicySpec, ZoneId};
use ipnet::IpNet;

use node::Node;
use reader::Reader;

pub use error::{ConfigError, Problem};
pub(crate) use names::mark;

mod address;
mod error;
mod names;
mod node;
mod reader;
mod schema;
mod validate;

/// A configuration that holds what it promises.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is fixed at start. `file_prefix` is empty: the daemon fills it in.
    pub launch: LaunchConfig,
    /// What workers judge packets by. `generation` is 0: the daemon counts.
    pub policy: PolicySpec,
    /// The interfaces in the file's order; the position is the interface index everywhere else.
    pub interfaces: Vec<Interface>,
    /// Static routes.
    pub routes: Vec<StaticRoute>,
    /// Static neighbours.
    pub neighbours: Vec<StaticNeighbour>,
    /// Where Prometheus scrapes; `None` where the file has no `metrics`.
    pub metrics_listen: Option<SocketAddr>,
    /// The control socket.
    pub control: ControlConfig,
    /// Named sets in the file's order; rules share them.
    pub sets: Vec<(String, Arc<AddrSet>)>,
    /// The file that all this came from.
    pub source: PathBuf,
}

/// An interface as the kernel's TAP twin needs it; its device and VLAN are in [`LaunchConfig::interfaces`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, and that of its TAP twin.
    pub name: String,
    /// Its zone.
    pub zone: ZoneId,
    /// Its addresses with their prefix lengths (host bits kept), the primary one of each version first.
    pub addresses: Vec<IpNet>,
    /// Largest IP packet, bytes, 1280..=9000.
    pub mtu: u16,
}

/// A route that goes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Destinations; no host bits.
    pub to: IpNet,
    /// The next router; `None` where the destinations are on the link.
    pub via: Option<IpAddr>,
    /// Index of the interface; filled in from `via`'s subnet where the file leaves it out.
    pub interface: Option<u16>,
}

/// A neighbour that is not resolved but known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticNeighbour {
    /// Index of the interface.
    pub interface: u16,
    /// Its address, in a subnet of the interface.
    pub address: IpAddr,
    /// Its MAC address, unicast.
    pub mac: [u8; 6],
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Its path, absolute.
    pub socket: PathBuf,
    /// The group that may use it; `None` leaves it to root.
    pub group: Option<String>,
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut bytes = Vec::new();
    let limit = node::MAX_BYTES as u64 + 1;
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|e| Problem::of_file(path, format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Problem::of_file(path, format!("is not UTF-8 from byte {} on", e.utf8_error().valid_up_to())))?;
    parse(&text, path)
}

/// Checks `text`, which came from `file`: errors name it, and the files of sets are looked for beside it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let root = Node::parse(text, file)?;
    let reader = Reader::new(file, &root);
    let config = validate::document(&root, &reader);
    reader.finish()?;
    Ok(config)
}
