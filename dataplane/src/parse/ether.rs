//! Ethernet II with at most one 802.1Q tag.

use super::{Receiver, be16};
use crate::drop::DropReason;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
const QINQ: u16 = 0x88a8;

/// Length of an untagged header, bytes.
pub const HEADER: usize = 14;
/// Length of a VLAN tag, bytes.
pub const TAG: usize = 4;

/// Length of the header of frames with this VLAN, bytes.
#[inline]
pub const fn length(vlan: Option<u16>) -> usize {
    if vlan.is_some() { HEADER + TAG } else { HEADER }
}

/// What the link header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ether {
    /// What the frame carries.
    pub ethertype: u16,
    /// Length of the header, tag included.
    pub l2_len: usize,
    /// Whether the destination is a multicast or the broadcast address.
    pub group: bool,
}

/// Parses the link header, checks that the frame is for this station and of the interface's VLAN.
///
/// A tag with VLAN 0 only carries a priority (802.1Q section 9.3): the frame counts as untagged.
///
/// # Errors
/// `eth_truncated`, `eth_other_host`, `vlan_unknown`.
#[inline]
pub fn parse(b: &[u8], receiver: &Receiver) -> Result<Ether, DropReason> {
    if b.len() < HEADER {
        return Err(DropReason::EthTruncated);
    }
    let group = b[0] & 1 == 1;
    if !group && b[..6] != receiver.mac && !receiver.port.is_twin() {
        return Err(DropReason::EthOtherHost);
    }
    let mut ethertype = be16(b, 12);
    let mut l2_len = HEADER;
    let mut vlan = None;
    if ethertype == VLAN {
        if b.len() < HEADER + TAG {
            return Err(DropReason::EthTruncated);
        }
        vlan = Some(be16(b, 14) & 0xfff).filter(|&id| id != 0);
        ethertype = be16(b, 16);
        l2_len += TAG;
    }
    let expected = if receiver.port.is_twin() { None } else { receiver.vlan };
    if vlan != expected || ethertype == VLAN || ethertype == QINQ {
        return Err(DropReason::VlanUnknown);
    }
    Ok(Ether { ethertype, l2_len, group })
}
