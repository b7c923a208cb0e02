//! Reading frames: enough to know a packet's tuple, what an ICMP error quotes, and where the fields are that translation
//! changes.
//!
//! Written apart from the dataplane's parser on purpose: a fault of that one must not hide in the harness.
//! *Limits*: eight IPv6 extension headers. *Sources*: RFC 791, 8200, 792, 4443, 9293, 768.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::api::Tuple;

/// IP protocol numbers that the harness builds or reads.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// Bytes of an Ethernet header.
pub const ETH: usize = 14;

/// Which link of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The inner one.
    Lan,
    /// The outer one.
    Wan,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Lan, Self::Wan];

    /// Its name in scenarios, and that of the interface.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
        }
    }

    /// 0 for lan, 1 for wan.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Lan => Self::Wan,
            Self::Wan => Self::Lan,
        }
    }

    /// The router's MAC address there.
    pub const fn router_mac(self) -> [u8; 6] {
        match self {
            Self::Lan => [2, 0, 0, 0, 1, 1],
            Self::Wan => [2, 0, 0, 0, 1, 2],
        }
    }

    /// The MAC address of every station there.
    pub const fn station_mac(self) -> [u8; 6] {
        match self {
            Self::Lan => [2, 0, 0, 0, 2, 0],
            Self::Wan => [2, 0, 0, 0, 2, 1],
        }
    }
}

/// Big-endian u16 at `at`, where there is one.
pub fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

/// Big-endian u32 at `at`, where there is one.
pub fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// A packet's place in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Offset of its payload, bytes.
    pub offset: usize,
    /// Whether more follow.
    pub more: bool,
}

/// An IP packet, read.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// All of it, from the network header on; link padding cut off where the length field allows.
    pub bytes: &'a [u8],
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Transport protocol, behind extension headers.
    pub proto: u8,
    /// Where the transport header begins.
    pub l4: usize,
    /// Set where it is a fragment.
    pub fragment: Option<Fragment>,
}

impl<'a> Ip<'a> {
    /// Reads the packet of an Ethernet frame.
    pub fn of_frame(frame: &'a [u8]) -> Option<Self> {
        match be16(frame, 12)? {
            0x0800 | 0x86dd => Self::read(frame.get(ETH..)?),
            _ => None,
        }
    }

    /// Reads a packet, which may be cut short.
    pub fn read(b: &'a [u8]) -> Option<Self> {
        let len = match b.first()? >> 4 {
            4 => usize::from(be16(b, 2)?),
            _ => 40 + usize::from(be16(b, 4)?),
        };
        let b = b.get(..len.max(40.min(b.len()))).unwrap_or(b);
        match b[0] {
            0x45..=0x4f => Self::v4(b),
            0x60..=0x6f => Self::v6(b),
            _ => None,
        }
    }

    fn v4(b: &'a [u8]) -> Option<Self> {
        let l4 = usize::from(b.first()? & 15) * 4;
        if b.len() < 20.max(l4) {
            return None;
        }
        let field = be16(b, 6)?;
        let fragment = (field & 0x3fff != 0).then_some(Fragment {
            id: u32::from(be16(b, 4)?),
            offset: usize::from(field & 0x1fff) * 8,
            more: field & 0x2000 != 0,
        });
        let address = |at| be32(b, at).map(|a| IpAddr::V4(Ipv4Addr::from_bits(a)));
        Some(Self { bytes: b, src: address(12)?, dst: address(16)?, proto: b[9], l4, fragment })
    }

    fn v6(b: &'a [u8]) -> Option<Self> {
        if b.len() < 40 {
            return None;
        }
        let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(b.get(at..at + 16)?).ok()?)));
        let (mut proto, mut l4, mut fragment) = (b[6], 40, None);
        for _ in 0..8 {
            let next = match proto {
                0 | 43 | 60 | 135 => (usize::from(*b.get(l4 + 1)?) + 1) * 8,
                44 => {
                    let field = be16(b, l4 + 2)?;
                    fragment = Some(Fragment {
                        id: be32(b, l4 + 4)?,
                        offset: usize::from(field & 0xfff8),
                        more: field & 1 != 0,
                    });
                    8
                }
                51 => (usize::from(*b.get(l4 + 1)?) + 2) * 4,
                _ => break,
            };
            proto = *b.get(l4)?;
            l4 += next;
            if fragment.is_some_and(|f| f.offset > 0) {
                break;
            }
        }
        (l4 <= b.len()).then_some(Self { bytes: b, src: address(8)?, dst: address(24)?, proto, l4, fragment })
    }

    /// Transport header and payload.
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.l4..).unwrap_or(&[])
    }

    /// Whether ports stand where those of TCP do and are part of the tuple; this kernel does not know DCCP any more.
    pub const fn has_ports(&self) -> bool {
        matches!(self.proto, proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE)
    }

    /// Whether it is the ICMP of its own IP version.
    pub const fn is_icmp(&self) -> bool {
        match self.src {
            IpAddr::V4(_) => self.proto == proto::ICMP,
            IpAddr::V6(_) => self.proto == proto::ICMPV6,
        }
    }

    /// Whether it is an ICMP error of any kind, redirects included.
    pub fn is_icmp_error(&self) -> bool {
        let Some(&kind) = self.payload().first() else { return false };
        self.is_icmp() && if self.src.is_ipv4() { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 }
    }

    /// Its tuple by its own header; an ICMP error's is that of any other message.
    pub fn tuple(&self) -> Option<Tuple> {
        if self.fragment.is_some_and(|f| f.offset > 0) {
            return None;
        }
        let b = self.payload();
        let (sport, dport) = if self.has_ports() {
            (be16(b, 0)?, be16(b, 2)?)
        } else if self.is_icmp() {
            (be16(b, 4)?, be16(b, 0)?)
        } else {
            (0, 0)
        };
        Some(tuple(self.src, self.dst, self.proto, sport, dport))
    }

    /// Where the packet that an ICMP error quotes begins, from this packet's first byte.
    pub fn quote_at(&self) -> Option<usize> {
        (self.is_icmp_error() && self.bytes.len() > self.l4 + 8).then_some(self.l4 + 8)
    }

    /// The packet that an ICMP error quotes, read as Linux does: whatever version and lengths it says it has.
    pub fn quoted(&self) -> Option<Ip<'a>> {
        let quote = &self.bytes[self.quote_at()?..];
        if self.src.is_ipv4() { Ip::v4(quote) } else { Ip::v6(quote) }
    }

    /// The tuple of the connection that this packet is of or about: an ICMP error's is the quoted one.
    pub fn about(&self) -> Option<Tuple> {
        match self.quoted() {
            Some(quoted) => quoted.tuple(),
            None => self.tuple(),
        }
    }

    /// Offset of the transport checksum in the transport header.
    pub const fn checksum_at(proto: u8) -> Option<usize> {
        match proto {
            proto::TCP => Some(16),
            proto::UDP | proto::UDPLITE | proto::DCCP => Some(6),
            proto::ICMP | proto::ICMPV6 => Some(2),
            _ => None,
        }
    }
}

/// A tuple outside of any conntrack zone.
pub const fn tuple(src: IpAddr, dst: IpAddr, proto: u8, sport: u16, dport: u16) -> Tuple {
    Tuple { src, dst, proto, sport, dport, ct_zone: 0 }
}

/// `b` with an Ethernet header as a station on `side` sends it to the router.
pub fn to_router(side: Side, ip: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH + ip.len());
    frame.extend(side.router_mac());
    frame.extend(side.station_mac());
    frame.extend(if ip.first().is_some_and(|b| b >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(ip);
    frame
}

/// One line that a person reads: addresses, ports, flags and lengths.
pub fn describe(ip: &[u8]) -> String {
    let Some(p) = Ip::read(ip) else { return format!("{} bytes", ip.len()) };
    let b = p.payload();
    let mut s = match p.tuple() {
        Some(t) if p.has_ports() => format!("{}:{} > {}:{}", t.src, t.sport, t.dst, t.dport),
        _ => format!("{} > {}", p.src, p.dst),
    };
    match p.proto {
        _ if p.fragment.is_some_and(|f| f.offset > 0) => s += &format!(" proto {}", p.proto),
        proto::TCP => s += &describe_tcp(b),
        proto::UDP => s += &format!(" udp {}", b.len().saturating_sub(8)),
        _ if p.is_icmp() => {
            s += &format!(" icmp {}/{}", b.first().unwrap_or(&0), b.get(1).unwrap_or(&0));
            match p.quote_at() {
                Some(at) => s += &format!(" [{}]", describe(&ip[at..])),
                None => s += &format!(" id {} len {}", be16(b, 4).unwrap_or(0), b.len()),
            }
        }
        other => s += &format!(" proto {other} len {}", b.len()),
    }
    if let Some(f) = p.fragment {
        s += &format!(" frag id {} at {} of {}{}", f.id, f.offset, b.len(), if f.more { "+" } else { "" });
    }
    s
}

fn describe_tcp(b: &[u8]) -> String {
    let Some(&flags) = b.get(13) else { return format!(" tcp cut at {}", b.len()) };
    let mut s = String::from(" ");
    for (bit, c) in [(2, 'S'), (16, 'A'), (1, 'F'), (4, 'R'), (8, 'P'), (32, 'U'), (64, 'E'), (128, 'C')] {
        if flags & bit != 0 {
            s.push(c);
        }
    }
    let header = usize::from(b[12] >> 4) * 4;
    s += &format!(
        " seq={} ack={} win={} len={}",
        be32(b, 4).unwrap_or(0),
        be32(b, 8).unwrap_or(0),
        be16(b, 14).unwrap_or(0),
        b.len().saturating_sub(header)
    );
    if let Some(options) = b.get(20..header).filter(|o| !o.is_empty()) {
        s += " opts=";
        for byte in options {
            s += &format!("{byte:02x}");
        }
    }
    if let Some(line) = b.get(header..).and_then(|text| std::str::from_utf8(text).ok()?.strip_suffix("\r\n")) {
        s += &format!(" {line:?}");
    }
    s
}
