//! Transport headers: what tracking needs of them.
//!
//! *Sources*: RFC 9293, RFC 768, RFC 792, RFC 4443; `linux/net/netfilter/nf_conntrack_proto_{tcp,udp,icmp,icmpv6}.c` for
//! which breakage is INVALID.

use super::{IpHeader, be16, be32, checksum, icmp};
use crate::conntrack::tuple::proto;
use crate::drop::DropReason;
use crate::packet::{L4, TcpSegment};

/// Shortest TCP header, bytes.
pub const TCP_HEADER: usize = 20;
/// UDP header, bytes.
pub const UDP_HEADER: usize = 8;

/// Parses the transport data `b` of a whole packet: its kind, and the two L4 ids of its tuple.
pub fn parse(b: &[u8], ip: &IpHeader, is_v4: bool, verify: bool) -> (L4, u16, u16) {
    match ip.proto {
        proto::TCP => tcp(b, ip, verify),
        proto::UDP => udp(b, ip, verify),
        proto::ICMP if is_v4 => icmp::parse_v4(b, verify),
        proto::ICMPV6 if !is_v4 => icmp::parse_v6(b, ip, verify),
        _ => (L4::Other, 0, 0),
    }
}

const fn invalid(reason: DropReason) -> (L4, u16, u16) {
    (L4::Invalid(reason), 0, 0)
}

fn tcp(b: &[u8], ip: &IpHeader, verify: bool) -> (L4, u16, u16) {
    if b.len() < TCP_HEADER {
        return invalid(DropReason::InvalidLength);
    }
    let header = usize::from(b[12] >> 4) * 4;
    if header < TCP_HEADER || header > b.len() {
        return invalid(DropReason::InvalidLength);
    }
    let (sport, dport) = (be16(b, 0), be16(b, 2));
    if verify && !checksum::transport_ok(ip.src, ip.dst, proto::TCP, b) {
        return (L4::Invalid(DropReason::InvalidChecksum), sport, dport);
    }
    let segment = TcpSegment { flags: b[13], seq: be32(b, 4), ack: be32(b, 8) };
    (L4::Tcp(segment), sport, dport)
}

fn udp(b: &[u8], ip: &IpHeader, verify: bool) -> (L4, u16, u16) {
    if b.len() < UDP_HEADER {
        return invalid(DropReason::InvalidLength);
    }
    let len = usize::from(be16(b, 4));
    if len < UDP_HEADER || len > b.len() {
        return invalid(DropReason::InvalidLength);
    }
    let (sport, dport) = (be16(b, 0), be16(b, 2));
    // A checksum of zero means none: RFC 768; over IPv6 it may not be (RFC 8200), yet Linux accepts it there too.
    let absent = be16(b, 6) == 0;
    if verify && !absent && !checksum::transport_ok(ip.src, ip.dst, proto::UDP, &b[..len]) {
        return (L4::Invalid(DropReason::InvalidChecksum), sport, dport);
    }
    (L4::Udp, sport, dport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_than_its_header_is_invalid_at_each_byte() {
        let ip = IpHeader {
            src: std::net::Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: std::net::Ipv4Addr::new(10, 0, 0, 2).into(),
            proto: proto::TCP,
            l4: 20,
            len: 40,
            ttl: 64,
            fragment: None,
            dont_fragment: false,
        };
        let mut b = [0u8; 20];
        b[12] = 5 << 4;
        for n in 0..20 {
            assert_eq!(tcp(&b[..n], &ip, false).0, L4::Invalid(DropReason::InvalidLength), "{n} bytes");
        }
        assert!(matches!(tcp(&b, &ip, false).0, L4::Tcp(_)));
        let u = [0, 1, 0, 2, 0, 8, 0, 0];
        for n in 0..8 {
            assert_eq!(udp(&u[..n], &ip, false).0, L4::Invalid(DropReason::InvalidLength), "{n} bytes");
        }
        assert_eq!(udp(&u, &ip, true).0, L4::Udp);
    }
}
