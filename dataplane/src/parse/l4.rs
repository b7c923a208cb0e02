//! Transport headers: what tracking needs of them.
//!
//! *Sources*: RFC 9293, RFC 768, RFC 792, RFC 4443; `linux/net/netfilter/nf_conntrack_proto_{tcp,udp,icmp,icmpv6}.c` for
//! which breakage is INVALID.

use std::net::IpAddr;

use super::{be16, checksum, icmp, tcp};
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
    /// Bytes of all parts.
    pub total: usize,
    /// Running checksum of the parts behind the head, each of which begins at an even offset.
    pub rest: u64,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The protocol.
    pub proto: u8,
    /// Whether to verify checksums.
    pub verify: bool,
}

impl Payload<'_> {
    /// Whether the checksum of the first `len` bytes, pseudo header included, is right. Of several parts only the sum of
    /// all is known.
    #[inline]
    fn verified(&self, len: usize) -> bool {
        if !self.verify {
            return true;
        }
        let pseudo = checksum::pseudo(self.src, self.dst, self.proto, len);
        let whole = self.head.len() == self.total;
        let data = if whole { &self.head[..len] } else { self.head };
        (whole || len == self.total) && checksum::fold(checksum::add(pseudo + self.rest, data)) == 0xffff
    }

    /// The same without a pseudo header, over all of it.
    pub(super) fn verified_plain(&self) -> bool {
        !self.verify || checksum::fold(checksum::add(self.rest, self.head)) == 0xffff
    }

    /// The same over all of it.
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
        proto::ICMP if b.src.is_ipv4() => icmp::parse_v4(b),
        proto::ICMPV6 if b.src.is_ipv6() => icmp::parse_v6(b),
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
    // A checksum of zero means none: RFC 768; over IPv6 it may not be (RFC 8200), yet Linux accepts it there too.
    let absent = be16(b, 6) == 0;
    if !absent && !p.verified(len) {
        return (L4::Invalid(DropReason::InvalidChecksum), sport, dport);
    }
    (L4::Udp, sport, dport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_than_its_header_is_invalid_at_each_byte() {
        let payload = |head, proto| Payload {
            head,
            total: 20,
            rest: 0,
            src: std::net::Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: std::net::Ipv4Addr::new(10, 0, 0, 2).into(),
            proto,
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
