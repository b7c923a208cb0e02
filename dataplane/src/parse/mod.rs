//! Bytes to offsets: bounds are proved here and only here.
//!
//! [`frame`] takes a received frame to a [`Packet`]. A broken Ethernet or IP header is a drop
//! with its reason; a broken transport header is an INVALID packet, which tracking classifies and policy decides on
//! (as Linux does). What a `Packet` promises later stages: `l3 + 20 (or 40) <= l4 <= end <= frame length`, and for each
//! [`L4`] kind the header that it names lies within `l4..end`.
//!
//! *Limits*: one VLAN tag; at most [`ipv6::MAX_EXTENSIONS`] extension headers.
//! *Sources*: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443; IEEE 802.1Q.

pub mod checksum;
pub mod crc32c;
pub mod ether;
pub mod fast;
pub mod gre;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod l4;
pub mod sctp;
pub mod tcp;

use std::net::IpAddr;

use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::io::{PortIdx, RxChecksum};
use crate::packet::{L4, Packet};

/// What the network header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol.
    pub proto: u8,
    /// Where the transport header begins, from the network header's first byte.
    pub l4: usize,
    /// Length of the packet by its header, bytes.
    pub len: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Set where the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// Set where it is an atomic IPv6 fragment.
    pub atomic: Option<Atomic>,
    /// Whether routers may not fragment it: IPv4's DF; always for IPv6.
    pub dont_fragment: bool,
    /// Why the packet is INVALID, whatever its payload.
    pub invalid: Option<DropReason>,
}

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification (16 bits for IPv4).
    pub id: u32,
    /// Offset of its first byte in the datagram's payload.
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
    /// Where the IPv6 fragment header is, from the network header's first byte; 0 for IPv4.
    pub header: usize,
}

/// The fragment header of an atomic fragment, by offsets from the network header's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// Where it is.
    pub header: usize,
    /// Where the byte is that names it: the next header field before it.
    pub named_at: usize,
}

/// What a received frame is.
#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    /// An IP packet.
    Ip(Packet),
    /// An atomic IPv6 fragment (RFC 6946): a whole packet, once its fragment header is taken out.
    Atomic {
        /// Offset of the network header.
        l3: usize,
        /// What to take out.
        atomic: Atomic,
    },
    /// ARP: between the wire and the kernel, untouched.
    Arp {
        /// Length of the Ethernet header, VLAN tag included.
        l2_len: usize,
    },
}

/// How the receiving interface wants frames to be.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// The port that the frame came in by.
    pub port: PortIdx,
    /// MAC address of the interface.
    pub mac: [u8; 6],
    /// VLAN of the wire side.
    pub vlan: Option<u16>,
    /// Verify transport checksums.
    pub verify: bool,
}

/// Parses a whole frame of one segment.
///
/// # Errors
/// Why the frame must be dropped.
pub fn frame(bytes: &[u8], receiver: &Receiver, hardware: RxChecksum) -> Result<Parsed, DropReason> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(DropReason::ChainedTooLong);
    }
    let eth = ether::parse(bytes, receiver)?;
    let l3 = eth.l2_len;
    let ip = match eth.ethertype {
        ether::IPV4 => ipv4::parse(&bytes[l3..])?,
        ether::IPV6 => ipv6::parse(&bytes[l3..])?,
        ether::ARP => return Ok(Parsed::Arp { l2_len: l3 }),
        _ => return Err(DropReason::EthType),
    };
    // Hardware that finds it wrong is not taken at its word: some call every UDP datagram without a checksum broken
    // (`linux/drivers/net/ethernet/intel/ixgbe/ixgbe_main.c`, `ixgbe_rx_checksum`: "82599 errata"). What it finds right
    // is right where it knows the protocol. What the kernel sends through a twin, Linux does not verify either.
    let known = matches!(ip.proto, proto::TCP | proto::UDP | proto::SCTP);
    let verify = receiver.verify && !receiver.port.is_twin() && !(known && hardware == RxChecksum::Good);
    let payload = &bytes[l3 + ip.l4..l3 + ip.len];
    let (kind, sport, dport) = match (ip.invalid, ip.fragment) {
        (Some(reason), _) => (L4::Invalid(reason), 0, 0),
        (None, Some(_)) => (L4::Fragment, 0, 0),
        (None, None) => l4::parse(&l4::Payload {
            head: payload,
            rest: &[],
            total: payload.len(),
            src: ip.src,
            dst: ip.dst,
            proto: ip.proto,
            ttl: ip.ttl,
            verify,
        }),
    };
    let packet = Packet::new(receiver.port, l3, &ip, eth.group, kind, sport, dport);
    match ip.atomic {
        Some(atomic) if ip.invalid.is_none() => Ok(Parsed::Atomic { l3, atomic }),
        _ => Ok(Parsed::Ip(packet)),
    }
}

/// Big-endian u16 at `at`; the caller has checked the bounds.
#[inline]
pub(crate) fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

/// Big-endian u32 at `at`; the caller has checked the bounds.
#[inline]
pub(crate) fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
