//! Neighbours: which MAC address a next hop has.

use std::net::IpAddr;

/// A change of one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourUpdate {
    /// Interface index.
    pub interface: u16,
    /// The neighbour's address on that link.
    pub address: IpAddr,
    /// Its MAC address; `None` where it went away or resolution failed.
    pub mac: Option<[u8; 6]>,
}
