//! The kernel's side of the gateway: its TAP twins, and the mirror of its routes and neighbours.
//!
//! The kernel decides, Sluice copies: addresses, routes and neighbours from the YAML are put into the kernel
//! ([`setup`]), and whatever the kernel then has, by whomever, is mirrored to the workers ([`mirror`]). So `ip addr`,
//! `ip route`, FRR and keepalived work on a running gateway.
//!
//! *Life-cycle*: [`setup::bring_up`] once when the twins are there, then [`mirror::Mirror::start`]; what was put into
//! the kernel vanishes with the twins.
//! *Threads*: control's tokio thread. *Sources*: rtnetlink(7); linux/net/ipv4/fib_trie.c (`fib_table_insert`),
//! linux/net/ipv6/ip6_fib.c (`fib6_add_rt2node`), linux/net/core/neighbour.c (`neigh_add`).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::ErrorMessage;

pub mod mirror;
pub mod resolve;
pub mod route;
pub mod setup;
pub mod state;

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be had.
    #[error("no netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// The netlink connection ended.
    #[error("the netlink connection ended")]
    Closed,
    /// The kernel's tables could not be read.
    #[error("the kernel's {table} cannot be read: {cause}")]
    Dump {
        /// Which table.
        table: &'static str,
        /// What the kernel said.
        cause: String,
    },
    /// An interface's TAP would become another program's.
    #[error(
        "interface {name}: the kernel has an interface {taken} already; another sluiced, or whatever made it, must go first"
    )]
    NameTaken {
        /// The interface.
        name: String,
        /// What it would make in the kernel.
        taken: String,
    },
    /// An interface's TAP twin did not appear.
    #[error("interface {name}: its TAP twin did not appear in the kernel")]
    NoTwin {
        /// The interface.
        name: String,
    },
    /// The twin's settings were refused.
    #[error("interface {name}: {what} was refused: {cause}")]
    Link {
        /// The interface.
        name: String,
        /// The setting.
        what: &'static str,
        /// What the kernel said.
        cause: String,
    },
    /// An address was refused.
    #[error("interface {name}: address {address} was refused: {cause}")]
    Address {
        /// The interface.
        name: String,
        /// The address.
        address: IpNet,
        /// What the kernel said.
        cause: String,
    },
    /// A route was refused.
    #[error("route to {to}: the kernel refused it: {cause}")]
    Route {
        /// Its destinations.
        to: IpNet,
        /// What the kernel said.
        cause: String,
    },
    /// A neighbour was refused.
    #[error("neighbour {address}: the kernel refused it: {cause}")]
    Neighbour {
        /// Its address.
        address: IpAddr,
        /// What the kernel said.
        cause: String,
    },
}

/// What the kernel said, in its own words where it gave an error number.
fn cause(e: &rtnetlink::Error) -> String {
    match e {
        rtnetlink::Error::NetlinkError(m) => message_cause(m),
        other => other.to_string(),
    }
}

fn message_cause(m: &ErrorMessage) -> String {
    m.to_io().to_string()
}

/// The error number, where there is one.
fn errno(e: &rtnetlink::Error) -> Option<i32> {
    match e {
        rtnetlink::Error::NetlinkError(m) => m.to_io().raw_os_error(),
        _ => None,
    }
}
