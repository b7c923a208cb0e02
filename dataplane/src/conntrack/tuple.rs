//! The identity of a packet: addresses, protocol and L4 ids of one direction.
//!
//! [`Tuple`] serves both IP versions and is what rules, translation and dumps speak. Tables keep the compact keys
//! [`Key4`] and [`Key6`] of it.
//! *Sources*: `linux/net/netfilter/nf_conntrack_core.c` (`nf_ct_get_tuple`, `nf_ct_invert_tuple`),
//! `nf_conntrack_proto_icmp.c` (`icmp_invert_tuple`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
    /// DCCP.
    pub const DCCP: u8 = 33;
}

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// The way of the first packet.
    Original = 0,
    /// The other way.
    Reply = 1,
}

impl Direction {
    /// The other direction.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    /// 0 for original, 1 for reply: index of per-direction arrays.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Addresses, protocol and L4 ids of one direction, host byte order.
///
/// `src` and `dst` are of one IP version. For protocols with ports, `sport` and `dport` are those. For ICMP queries
/// `sport` is the query identifier and `dport` is `type << 8 | code`. For GRE version 1 `dport` is the call id that the
/// packet carries, and `sport` that of the other way, 0 until PPTP has announced it. Otherwise both are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same IP version.
    pub dst: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Source port, ICMP query identifier or GRE key.
    pub sport: u16,
    /// Destination port, ICMP type and code or GRE key.
    pub dport: u16,
    /// Conntrack zone: equal addresses in different ones are different connections. 0 unless an interface says
    /// otherwise.
    pub ct_zone: u16,
}

impl Tuple {
    /// Whether this is IPv4.
    #[inline]
    pub const fn is_ipv4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// Whether `proto` is the ICMP of this tuple's IP version.
    #[inline]
    pub const fn is_icmp(&self) -> bool {
        match self.src {
            IpAddr::V4(_) => self.proto == proto::ICMP,
            IpAddr::V6(_) => self.proto == proto::ICMPV6,
        }
    }

    /// Whether `sport` and `dport` are ports: rules match on them and NAT may choose them. DCCP is tracked by
    /// its addresses, as Linux 6.18 does.
    #[inline]
    pub const fn has_ports(&self) -> bool {
        matches!(self.proto, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP)
    }

    /// What of a reply's tuple NAT may choose: the destination port, or the identifier of an ICMP query.
    #[inline]
    pub const fn id(&self) -> u16 {
        if self.is_icmp() { self.sport } else { self.dport }
    }

    /// Whether RSS hashes the ports, so that choosing one chooses where packets arrive.
    #[inline]
    pub const fn is_spread_by_ports(&self) -> bool {
        matches!(self.proto, proto::TCP | proto::UDP)
    }

    /// The tuple of a packet that answers this one. An involution for every tuple that tracking accepts.
    #[inline]
    pub const fn inverse(&self) -> Self {
        let (sport, dport) = if self.is_icmp() {
            (self.sport, (icmp_inverse_type(self.is_ipv4(), (self.dport >> 8) as u8) as u16) << 8 | self.dport & 0xff)
        } else {
            (self.dport, self.sport)
        };
        Self { src: self.dst, dst: self.src, proto: self.proto, sport, dport, ct_zone: self.ct_zone }
    }

    /// Whether both are the same on the wire, whatever their conntrack zones.
    #[inline]
    pub fn same_wire(&self, other: &Self) -> bool {
        *self == Self { ct_zone: self.ct_zone, ..*other }
    }

    /// The ICMP type, for ICMP tuples.
    pub const fn icmp_type(&self) -> u8 {
        (self.dport >> 8) as u8
    }

    /// The ICMP code, for ICMP tuples.
    pub const fn icmp_code(&self) -> u8 {
        (self.dport & 0xff) as u8
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, proto, sport, dport, .. } = self;
        if self.is_icmp() {
            write!(f, "src={src} dst={dst} type={} code={} id={sport}", self.icmp_type(), self.icmp_code())
        } else if self.has_ports() {
            write!(f, "src={src} dst={dst} sport={sport} dport={dport}")
        } else if *proto == proto::GRE {
            write!(f, "src={src} dst={dst} srckey={sport:#x} dstkey={dport:#x}")
        } else {
            write!(f, "src={src} dst={dst} proto={proto}")
        }
    }
}

/// The type that answers query `t` (or that `t` answers); other types are their own inverse.
#[inline]
const fn icmp_inverse_type(ipv4: bool, t: u8) -> u8 {
    match (ipv4, t) {
        (true, 0) => 8,
        (true, 8) => 0,
        (true, 13 | 15 | 17) => t + 1,
        (true, 14 | 16 | 18) => t - 1,
        (false, 128 | 139) => t + 1,
        (false, 129 | 140) => t - 1,
        _ => t,
    }
}

/// A table key: the compact form of a tuple of one IP version.
pub trait Key: Copy + Eq + Default + fmt::Debug + Send + 'static {
    /// The compact form of `t`, which is of this key's IP version.
    fn pack(t: &Tuple) -> Self;
    /// The tuple again.
    fn tuple(&self) -> Tuple;
    /// A keyed hash that an outsider cannot predict.
    fn hash(&self, seed: &ahash::RandomState) -> u64;
}

/// IPv4 tuple in 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key4 {
    addresses: u64,
    rest: u64,
}

impl Key for Key4 {
    #[inline]
    fn pack(t: &Tuple) -> Self {
        let (IpAddr::V4(s), IpAddr::V4(d)) = (t.src, t.dst) else {
            debug_assert!(false, "an IPv6 tuple in an IPv4 table");
            return Self::default();
        };
        Self { addresses: u64::from(s.to_bits()) << 32 | u64::from(d.to_bits()), rest: pack_rest(t) }
    }

    #[inline]
    fn tuple(&self) -> Tuple {
        let src = Ipv4Addr::from_bits((self.addresses >> 32) as u32);
        let dst = Ipv4Addr::from_bits((self.addresses & 0xffff_ffff) as u32);
        unpack_rest(src.into(), dst.into(), self.rest)
    }

    #[inline]
    fn hash(&self, seed: &ahash::RandomState) -> u64 {
        seed.hash_one(u128::from(self.addresses) << 64 | u128::from(self.rest))
    }
}

impl Key4 {
    /// The key of these addresses (source above destination) and ports (likewise), all in host byte order.
    #[inline]
    pub const fn new(addresses: u64, ports: u32, proto: u8, ct_zone: u16) -> Self {
        Self { addresses, rest: (ct_zone as u64) << 40 | (ports as u64) << 8 | proto as u64 }
    }

    /// Source address above destination address.
    #[inline]
    pub const fn addresses(&self) -> u64 {
        self.addresses
    }

    /// Source port above destination port, of a protocol that has some.
    #[inline]
    pub const fn ports(&self) -> u32 {
        ports_of(self.rest)
    }

    /// The key of what answers it untranslated, of a protocol that has ports.
    #[inline]
    pub const fn inverse(&self) -> Self {
        let rest = self.rest & !PORTS | (self.ports().rotate_left(16) as u64) << 8;
        Self { addresses: self.addresses.rotate_left(32), rest }
    }
}

/// Where a key's last word has the ports.
const PORTS: u64 = 0xffff_ffff << 8;

/// IPv6 tuple in 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key6 {
    src: [u64; 2],
    dst: [u64; 2],
    rest: u64,
}

impl Key for Key6 {
    #[inline]
    fn pack(t: &Tuple) -> Self {
        let (IpAddr::V6(s), IpAddr::V6(d)) = (t.src, t.dst) else {
            debug_assert!(false, "an IPv4 tuple in an IPv6 table");
            return Self::default();
        };
        Self { src: halves(s.to_bits()), dst: halves(d.to_bits()), rest: pack_rest(t) }
    }

    #[inline]
    fn tuple(&self) -> Tuple {
        let whole = |h: [u64; 2]| Ipv6Addr::from_bits(u128::from(h[0]) << 64 | u128::from(h[1]));
        unpack_rest(whole(self.src).into(), whole(self.dst).into(), self.rest)
    }

    #[inline]
    fn hash(&self, seed: &ahash::RandomState) -> u64 {
        let whole = |h: [u64; 2]| u128::from(h[0]) << 64 | u128::from(h[1]);
        seed.hash_one((whole(self.src), whole(self.dst), self.rest))
    }
}

impl Key6 {
    /// The key of these addresses (source before destination) and ports (source above destination), all in host byte order.
    #[inline]
    pub const fn new([a, b, c, d]: [u64; 4], ports: u32, proto: u8, ct_zone: u16) -> Self {
        let rest = (ct_zone as u64) << 40 | (ports as u64) << 8 | proto as u64;
        Self { src: [a, b], dst: [c, d], rest }
    }

    /// Source address before destination address.
    #[inline]
    pub const fn addresses(&self) -> [u64; 4] {
        let ([a, b], [c, d]) = (self.src, self.dst);
        [a, b, c, d]
    }

    /// Source port above destination port, of a protocol that has some.
    #[inline]
    pub const fn ports(&self) -> u32 {
        ports_of(self.rest)
    }
}

#[inline]
const fn ports_of(rest: u64) -> u32 {
    (rest >> 8 & 0xffff_ffff) as u32
}

const fn halves(v: u128) -> [u64; 2] {
    [(v >> 64) as u64, (v & 0xffff_ffff_ffff_ffff) as u64]
}

#[inline]
fn pack_rest(t: &Tuple) -> u64 {
    u64::from(t.ct_zone) << 40 | u64::from(t.sport) << 24 | u64::from(t.dport) << 8 | u64::from(t.proto)
}

#[expect(clippy::cast_possible_truncation, reason = "each field is cut out of its place")]
#[inline]
const fn unpack_rest(src: IpAddr, dst: IpAddr, rest: u64) -> Tuple {
    let (sport, dport) = ((rest >> 24) as u16, (rest >> 8) as u16);
    Tuple { src, dst, proto: rest as u8, sport, dport, ct_zone: (rest >> 40) as u16 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn tuples() -> impl Strategy<Value = Tuple> {
        let v4 = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>()).prop_map(
            |(s, d, proto, sport, dport, ct_zone)| Tuple {
                src: Ipv4Addr::from_bits(s).into(),
                dst: Ipv4Addr::from_bits(d).into(),
                proto,
                sport,
                dport,
                ct_zone,
            },
        );
        let v6 = (any::<u128>(), any::<u128>(), any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>()).prop_map(
            |(s, d, proto, sport, dport, ct_zone)| Tuple {
                src: Ipv6Addr::from_bits(s).into(),
                dst: Ipv6Addr::from_bits(d).into(),
                proto,
                sport,
                dport,
                ct_zone,
            },
        );
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn inverse_twice_is_the_tuple(t in tuples()) {
            prop_assert_eq!(t.inverse().inverse(), t);
        }

        #[test]
        fn a_key_gives_its_tuple_back(t in tuples()) {
            if t.is_ipv4() {
                prop_assert_eq!(Key4::pack(&t).tuple(), t);
            } else {
                prop_assert_eq!(Key6::pack(&t).tuple(), t);
            }
        }
    }

    proptest! {
        #[test]
        fn an_inverse_key_is_that_of_the_inverse_tuple(t in tuples()) {
            let t = Tuple { proto: proto::UDP, ..t };
            if t.is_ipv4() {
                prop_assert_eq!(Key4::pack(&t).inverse(), Key4::pack(&t.inverse()));
            }
        }
    }

    #[test]
    fn echo_request_is_answered_by_echo_reply_with_the_same_id() {
        let t = Tuple {
            src: Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: Ipv4Addr::new(10, 0, 0, 2).into(),
            proto: proto::ICMP,
            sport: 77,
            dport: 8 << 8,
            ct_zone: 0,
        };
        let r = t.inverse();
        assert_eq!((r.sport, r.icmp_type()), (77, 0));
    }
}
