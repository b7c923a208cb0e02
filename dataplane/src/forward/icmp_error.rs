//! ICMP errors that the gateway makes itself: time exceeded, unreachable, fragmentation needed, packet too big.
//!
//! They are built from the packet as it came, before any translation, and go back by the way it came: out of its port,
//! to the station that sent the frame. So the sender's own addresses stand in the quote, and an error about a DNATed
//! packet comes from the address of the interface that its sender knows.
//! *Threads*: one worker. *Limits*: [`RateLimit`]; the quote ends at 576 (IPv4) or 1,280 (IPv6) bytes of packet.
//! *Sources*: RFC 792, RFC 1812 section 4.3.2, RFC 1191, RFC 4443 sections 2.4 and 3; `linux/net/ipv4/icmp.c`.

use std::net::IpAddr;

use crate::api::stats::IcmpErrorKind;
use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::packet::{L4, Packet};
use crate::parse::{checksum, ether, icmp, ipv4, ipv6};
use crate::time::Nanos;

/// Longest IPv4 error, RFC 1812 section 4.3.2.3.
const MAX_V4: usize = 576;
/// Longest IPv6 error: the minimum MTU, RFC 4443 section 2.4 (c).
const MAX_V6: usize = 1280;
/// Longest frame that [`build`] writes.
pub const MAX_FRAME: usize = ether::HEADER + ether::TAG + MAX_V6;

/// An error to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// The rest of a fragmented datagram did not come.
    ReassemblyTime,
    /// Larger than the next link's MTU, which is this.
    TooBig(u16),
    /// No route.
    NoRoute,
    /// The next hop does not answer, or an unreachable route.
    HostUnreachable,
    /// A prohibit route.
    Prohibited,
    /// The field at this offset of the packet is none that can be forwarded.
    Parameter(u8),
}

impl IcmpError {
    /// How it is counted.
    pub const fn kind(self) -> IcmpErrorKind {
        match self {
            Self::TimeExceeded | Self::ReassemblyTime => IcmpErrorKind::TimeExceeded,
            Self::TooBig(_) => IcmpErrorKind::TooBig,
            Self::Parameter(_) => IcmpErrorKind::Parameter,
            _ => IcmpErrorKind::Unreachable,
        }
    }

    /// ICMP type, code, and the MTU or pointer that goes with it.
    const fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (icmp::v4::TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTime => (icmp::v4::TIME_EXCEEDED, 1, 0),
            Self::TooBig(mtu) => (icmp::v4::UNREACHABLE, 4, mtu as u32),
            Self::NoRoute => (icmp::v4::UNREACHABLE, 0, 0),
            Self::HostUnreachable => (icmp::v4::UNREACHABLE, 1, 0),
            Self::Prohibited => (icmp::v4::UNREACHABLE, 13, 0),
            Self::Parameter(at) => (icmp::v4::PARAMETER, 0, (at as u32) << 24),
        }
    }

    /// ICMPv6 type, code, and the MTU or pointer that goes with it.
    const fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (icmp::v6::TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTime => (icmp::v6::TIME_EXCEEDED, 1, 0),
            Self::TooBig(mtu) => (icmp::v6::TOO_BIG, 0, mtu as u32),
            Self::NoRoute => (icmp::v6::UNREACHABLE, 0, 0),
            Self::HostUnreachable => (icmp::v6::UNREACHABLE, 3, 0),
            Self::Prohibited => (icmp::v6::UNREACHABLE, 1, 0),
            Self::Parameter(at) => (icmp::v6::PARAMETER, 0, at as u32),
        }
    }
}

/// Whether an error about `p` may be sent at all (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)): not about errors,
/// later fragments, group addresses, or sources that are no single host.
pub fn may_answer(p: &Packet) -> bool {
    let single = match p.tuple.src {
        IpAddr::V4(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast() && !a.is_loopback(),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_loopback(),
    };
    let about_error = match p.kind {
        L4::IcmpError(_) => true,
        L4::Invalid(reason) if p.tuple.is_icmp() => {
            reason == DropReason::InvalidLength || icmp::may_be_error(p.tuple.is_ipv4(), p.tuple.icmp_type())
        }
        _ => false,
    };
    single && !about_error && !p.group && !p.tuple.dst.is_multicast() && p.fragment.is_none_or(|f| f.offset == 0)
}

/// Writes the frame of `error` about the packet `p` in `original` into `out`, from address `src`; gives its length.
/// `None` where `out` is too short (below [`MAX_FRAME`]) or `src` is not of the packet's IP version.
pub fn build(
    out: &mut [u8],
    original: &[u8],
    p: &Packet,
    error: IcmpError,
    src: IpAddr,
    mac: [u8; 6],
) -> Option<usize> {
    let (l3, _, end) = p.span();
    let packet = original.get(l3..end)?;
    let out = out.get_mut(..MAX_FRAME)?;
    out[..6].copy_from_slice(&original[6..12]);
    out[6..12].copy_from_slice(&mac);
    out[12..l3].copy_from_slice(&original[12..l3]); // VLAN tag, type
    let body = &mut out[l3..];
    let len = match (src, p.tuple.src) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let quote = packet.len().min(MAX_V4 - ipv4::HEADER - icmp::HEADER);
            let len = ipv4::HEADER + icmp::HEADER + quote;
            let (kind, code, mtu) = error.v4();
            let (header, message) = body[..len].split_at_mut(ipv4::HEADER);
            header.fill(0);
            header[0] = 0x45;
            header[1] = 0xc0; // internetwork control, RFC 1812 section 4.3.2.5
            header[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            header[8] = 64;
            header[9] = proto::ICMP;
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let sum = !checksum::sum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            write_message(message, kind, code, mtu, &packet[..quote]);
            let sum = !checksum::sum(message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            len
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let quote = packet.len().min(MAX_V6 - ipv6::HEADER - icmp::HEADER);
            let len = ipv6::HEADER + icmp::HEADER + quote;
            let (kind, code, mtu) = error.v6();
            let (header, message) = body[..len].split_at_mut(ipv6::HEADER);
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&u16::try_from(icmp::HEADER + quote).ok()?.to_be_bytes());
            header[6] = proto::ICMPV6;
            header[7] = 64;
            header[8..24].copy_from_slice(&src.octets());
            header[24..40].copy_from_slice(&dst.octets());
            write_message(message, kind, code, mtu, &packet[..quote]);
            let pseudo = checksum::pseudo(src.into(), dst.into(), proto::ICMPV6, message.len());
            let sum = !checksum::fold(checksum::add(pseudo, message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            len
        }
        _ => return None,
    };
    Some(l3 + len)
}

/// Type, code, zero checksum, MTU (in the last 16 bits for IPv4, all 32 for IPv6: the same bytes), quote.
fn write_message(message: &mut [u8], kind: u8, code: u8, mtu: u32, quote: &[u8]) {
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&mtu.to_be_bytes());
    message[8..].copy_from_slice(quote);
}

/// A token bucket: at most `RATE` errors a second, `BURST` at once, per worker.
///
/// `linux/net/ipv4/icmp.c`, `icmp_global_allow`: 1,000 and 50 by default.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// Credit in nanoseconds of [`COST`] each.
    credit: u64,
    last: Nanos,
}

/// Credit that one error costs: a thousandth of a second.
const COST: u64 = 1_000_000;
/// Errors at once.
const BURST: u64 = 50;

impl RateLimit {
    /// A full bucket.
    pub const fn new(now: Nanos) -> Self {
        Self { credit: BURST * COST, last: now }
    }

    /// Takes one token, where there is one.
    pub fn allow(&mut self, now: Nanos) -> bool {
        self.credit = (self.credit + now.since(self.last).0).min(BURST * COST);
        self.last = now;
        let allowed = self.credit >= COST;
        if allowed {
            self.credit -= COST;
        }
        allowed
    }
}
