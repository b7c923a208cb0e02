//! Transport headers: what tracking needs of them.
//!
//! *Sources*: RFC 9293, RFC 768, RFC 3828; `linux/net/netfilter/nf_conntrack_proto_{tcp,udp}.c` for which breakage is
//! INVALID.

use std::net::IpAddr;

use super::gre::{self, Gre};
use super::{be16, checksum, icmp, sctp, tcp};
use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::packet::L4;

/// UDP header, bytes.
pub const UDP_HEADER: usize = 8;

/// Transport header and payload of one packet, or of a datagram that came in fragments.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The first part, where the header must be.
    pub head: &'a [u8],
    /// The parts behind it, each of which begins at an even offset.
    pub rest: &'a [&'a [u8]],
    /// Bytes of all parts.
    pub total: usize,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether to verify checksums.
    pub verify: bool,
}

impl<'a> Payload<'a> {
    /// All parts, in their order.
    pub(super) fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.head).chain(self.rest.iter().copied())
    }

    /// Whether the checksum over the pseudo header and the first `len` bytes is right.
    #[inline]
    fn verified(&self, len: usize) -> bool {
        !self.verify || self.sums_up(checksum::pseudo(self.src, self.dst, self.proto, self.total), len)
    }

    /// Whether `start` and the first `len` bytes make the sum of data with a right checksum.
    #[inline]
    fn sums_up(&self, start: u64, len: usize) -> bool {
        if let Some(data) = self.head.get(..len) {
            return checksum::fold(checksum::add(start, data)) == 0xffff;
        }
        let (mut acc, mut left) = (start, len);
        for part in self.parts() {
            let data = part.get(..left).unwrap_or(part);
            acc = checksum::add(acc, data);
            left -= data.len();
        }
        left == 0 && checksum::fold(acc) == 0xffff
    }

    /// The same over all of it, without a pseudo header.
    pub(super) fn verified_plain(&self) -> bool {
        !self.verify || self.sums_up(0, self.total)
    }

    /// The same over all of it, pseudo header included.
    #[inline]
    pub(super) fn verified_all(&self) -> bool {
        self.verified(self.total)
    }
}

/// Parses transport data: its kind, and the two L4 ids of its tuple.
#[inline]
pub fn parse(b: &Payload<'_>) -> (L4, u16, u16) {
    match b.proto {
        proto::TCP => tcp(b),
        proto::UDP => udp(b),
        proto::UDPLITE => udplite(b),
        proto::SCTP => sctp::parse(b),
        proto::GRE => match gre::parse(b.head) {
            Gre::Plain => (L4::Gre { call: false }, 0, 0),
            Gre::Call(id) => (L4::Gre { call: true }, 0, id),
            Gre::NotPpp => invalid(DropReason::InvalidGre),
        },
        proto::ICMP if b.src.is_ipv4() => icmp::parse_v4(b),
        proto::ICMPV6 if b.src.is_ipv6() => icmp::parse_v6(b),
        proto::ICMP | proto::ICMPV6 => invalid(DropReason::InvalidIcmpVersion),
        _ => (L4::Other, 0, 0),
    }
}

const fn invalid(reason: DropReason) -> (L4, u16, u16) {
    (L4::Invalid(reason), 0, 0)
}

#[inline]
fn tcp(p: &Payload<'_>) -> (L4, u16, u16) {
    let Some(segment) = tcp::parse(p.head, p.total) else { return invalid(DropReason::InvalidLength) };
    let (sport, dport) = (be16(p.head, 0), be16(p.head, 2));
    if !p.verified_all() {
        return (L4::Invalid(DropReason::InvalidChecksum), sport, dport);
    }
    (L4::Tcp(segment), sport, dport)
}

#[inline]
fn udp(p: &Payload<'_>) -> (L4, u16, u16) {
    let b = p.head;
    if b.len() < UDP_HEADER {
        return invalid(DropReason::InvalidLength);
    }
    let len = usize::from(be16(b, 4));
    if len < UDP_HEADER || len > p.total {
        return invalid(DropReason::InvalidLength);
    }
    let (sport, dport) = (be16(b, 0), be16(b, 2));
    // A checksum of zero means none: RFC 768; over IPv6 it may not be (RFC 8200), yet Linux accepts it there too. The
    // sum is over all that IP carries, even behind the datagram's end: there UDP's options lie, whose own checksum makes
    // both sums agree (RFC 9868 section 9).
    let absent = be16(b, 6) == 0;
    if !absent && !p.verified_all() {
        return (L4::Invalid(DropReason::InvalidChecksum), sport, dport);
    }
    (L4::Udp, sport, dport)
}

/// UDP-Lite: where UDP has its length there is how much the checksum covers; 0 is all of it.
///
/// `linux/net/netfilter/nf_conntrack_proto_udp.c`, `udplite_error`, computes with UDP's protocol number in the pseudo
/// header and so refuses every right checksum; this is RFC 3828's.
fn udplite(p: &Payload<'_>) -> (L4, u16, u16) {
    let b = p.head;
    if b.len() < UDP_HEADER {
        return invalid(DropReason::InvalidLength);
    }
    let (sport, dport) = (be16(b, 0), be16(b, 2));
    let covered = match usize::from(be16(b, 4)) {
        0 => p.total,
        n => n,
    };
    let kind = if covered < UDP_HEADER || covered > p.total {
        L4::Invalid(DropReason::InvalidCoverage)
    } else if be16(b, 6) == 0 || !p.verified(covered) {
        L4::Invalid(DropReason::InvalidChecksum) // it may not be left out, whether verified or not
    } else {
        L4::UdpLite
    };
    (kind, sport, dport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_than_its_header_is_invalid_at_each_byte() {
        let payload = |head, proto| Payload {
            head,
            rest: &[],
            total: 20,
            src: std::net::Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: std::net::Ipv4Addr::new(10, 0, 0, 2).into(),
            proto,
            ttl: 64,
            verify: false,
        };
        let mut b = [0u8; 20];
        b[12] = 5 << 4;
        for n in 0..20 {
            assert_eq!(parse(&payload(&b[..n], proto::TCP)).0, L4::Invalid(DropReason::InvalidLength), "{n} bytes");
        }
        assert!(matches!(parse(&payload(&b, proto::TCP)).0, L4::Tcp(_)));
        let u = [0, 1, 0, 2, 0, 8, 0, 0];
        for n in 0..8 {
            assert_eq!(parse(&payload(&u[..n], proto::UDP)).0, L4::Invalid(DropReason::InvalidLength), "{n} bytes");
        }
        assert_eq!(parse(&payload(&u, proto::UDP)).0, L4::Udp);
    }
}
