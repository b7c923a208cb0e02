//! Frames: built from what a test means, read back into what it wants to see.

use std::net::IpAddr;

use dataplane::conntrack::tuple::proto;
use dataplane::parse::{checksum, crc32c};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// Big-endian u16 at `at`.
pub fn be16_at(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

/// Whether the transport data `b`, its checksum field included, is right.
pub fn transport_ok(src: IpAddr, dst: IpAddr, proto: u8, b: &[u8]) -> bool {
    checksum::fold(checksum::add(checksum::pseudo(src, dst, proto, b.len()), covered(proto, b))) == 0xffff
}

/// What the checksum covers of transport data: all, but for UDP-Lite.
pub fn covered(proto: u8, b: &[u8]) -> &[u8] {
    match proto {
        proto::UDPLITE => match usize::from(be16_at(b, 4)) {
            0 => b,
            n => &b[..n.min(b.len())],
        },
        _ => b,
    }
}

/// A packet as a test writes it.
#[derive(Clone, Debug)]
pub struct Pkt {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub id: u16,
    /// IPv4: `(offset in bytes, more)`.
    pub fragment: Option<(u16, bool)>,
    pub proto: u8,
    /// Transport header and payload, checksum in place.
    pub l4: Vec<u8>,
}

fn base(src: &str, dst: &str, proto: u8) -> Pkt {
    Pkt {
        src_mac: [2, 0, 0, 0, 0, 0x10],
        dst_mac: [0; 6],
        vlan: None,
        src: src.parse().expect("address"),
        dst: dst.parse().expect("address"),
        ttl: 64,
        dont_fragment: false,
        id: 1,
        fragment: None,
        proto,
        l4: Vec::new(),
    }
}

/// A UDP datagram.
pub fn udp(src: &str, sport: u16, dst: &str, dport: u16, payload: &[u8]) -> Pkt {
    let mut p = base(src, dst, proto::UDP);
    p.l4.extend(sport.to_be_bytes());
    p.l4.extend(dport.to_be_bytes());
    p.l4.extend(((8 + payload.len()) as u16).to_be_bytes());
    p.l4.extend([0, 0]);
    p.l4.extend(payload);
    p.seal(6)
}

/// A UDP-Lite datagram whose checksum covers `coverage` bytes; 0 is all.
pub fn udplite(src: &str, sport: u16, dst: &str, dport: u16, coverage: u16, payload: &[u8]) -> Pkt {
    let mut p = base(src, dst, proto::UDPLITE);
    p.l4.extend(sport.to_be_bytes());
    p.l4.extend(dport.to_be_bytes());
    p.l4.extend(coverage.to_be_bytes());
    p.l4.extend([0, 0]);
    p.l4.extend(payload);
    p.seal(6)
}

/// An SCTP packet.
pub fn sctp(src: &str, sport: u16, dst: &str, dport: u16, vtag: u32, chunks: &[Vec<u8>]) -> Pkt {
    let mut p = base(src, dst, proto::SCTP);
    p.l4.extend(sport.to_be_bytes());
    p.l4.extend(dport.to_be_bytes());
    p.l4.extend(vtag.to_be_bytes());
    p.l4.extend([0; 4]);
    for c in chunks {
        p.l4.extend(c);
        p.l4.resize(p.l4.len().next_multiple_of(4), 0);
    }
    p.sealed()
}

/// An SCTP chunk, its padding left out.
pub fn chunk(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = ((4 + body.len()) as u16).to_be_bytes();
    [&[kind, flags, high, low], body].concat()
}

/// INIT (1) or INIT ACK (2) with an initiate tag.
pub fn init(kind: u8, tag: u32) -> Vec<u8> {
    chunk(kind, 0, &[&tag.to_be_bytes()[..], &[0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1]].concat())
}

/// SCTP's checksum over transport data, its field counted as zero.
pub fn sctp_checksum(b: &[u8]) -> [u8; 4] {
    crc32c::sum([&b[..8], &[0; 4], &b[12..]]).to_le_bytes()
}

/// A TCP segment.
pub fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Pkt {
    let mut p = base(src, dst, proto::TCP);
    p.l4.extend(sport.to_be_bytes());
    p.l4.extend(dport.to_be_bytes());
    p.l4.extend(seq.to_be_bytes());
    p.l4.extend(ack.to_be_bytes());
    p.l4.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    p.l4.extend(payload);
    p.seal(16)
}

impl Pkt {
    /// The TCP segment with this window and these options, padded with zeros.
    pub fn tcp_with(mut self, win: u16, options: &[u8]) -> Self {
        let mut padded = options.to_vec();
        padded.resize(options.len().next_multiple_of(4), 0);
        self.l4[12] = ((20 + padded.len()) * 4) as u8;
        self.l4[14..16].copy_from_slice(&win.to_be_bytes());
        self.l4.splice(20..20, padded);
        self.seal(16)
    }

    /// What [`Seen::flow`] says of a packet with these ends.
    pub fn flow_of(src: &str, sport: u16, dst: &str, dport: u16) -> String {
        format!("{src}:{sport} > {dst}:{dport}")
    }

    /// TCP options, padded with zeros to whole words.
    pub fn with_options(mut self, options: &[u8]) -> Self {
        let mut options = options.to_vec();
        options.resize(options.len().div_ceil(4) * 4, 0);
        self.l4[12] = ((20 + options.len()) / 4 << 4) as u8;
        self.l4.splice(20..20, options);
        self.sealed()
    }
}

/// An ICMP or ICMPv6 message, by the addresses' version.
pub fn icmp(src: &str, dst: &str, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Pkt {
    let v4 = src.contains('.');
    let mut p = base(src, dst, if v4 { proto::ICMP } else { proto::ICMPV6 });
    p.l4.extend([kind, code, 0, 0]);
    p.l4.extend(rest);
    p.l4.extend(payload);
    p.seal(2)
}

/// An echo request.
pub fn ping(src: &str, dst: &str, id: u16, seq: u16) -> Pkt {
    let kind = if src.contains('.') { 8 } else { 128 };
    let [a, b] = id.to_be_bytes();
    let [c, d] = seq.to_be_bytes();
    icmp(src, dst, kind, 0, [a, b, c, d], b"0123456789abcdef")
}

/// The answer to it.
pub fn pong(src: &str, dst: &str, id: u16, seq: u16) -> Pkt {
    let kind = if src.contains('.') { 0 } else { 129 };
    let [a, b] = id.to_be_bytes();
    let [c, d] = seq.to_be_bytes();
    icmp(src, dst, kind, 0, [a, b, c, d], b"0123456789abcdef")
}

/// Any other protocol.
pub fn other(src: &str, dst: &str, proto: u8, payload: &[u8]) -> Pkt {
    let mut p = base(src, dst, proto);
    p.l4 = payload.to_vec();
    p
}

impl Pkt {
    /// Puts the right checksum at offset `at` of the transport header.
    fn seal(mut self, at: usize) -> Self {
        self.l4[at..at + 2].fill(0);
        let sum = if self.proto == proto::ICMP {
            checksum::sum(&self.l4)
        } else {
            let pseudo = checksum::pseudo(self.src, self.dst, self.proto, self.l4.len());
            checksum::fold(checksum::add(pseudo, covered(self.proto, &self.l4)))
        };
        let sum = match !sum {
            0 if matches!(self.proto, proto::UDP | proto::UDPLITE) => 0xffff,
            s => s,
        };
        self.l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// Another destination, with the transport checksum that goes with it.
    pub fn dst(mut self, dst: &str) -> Self {
        self.dst = dst.parse().expect("address");
        self.sealed()
    }

    /// Another source, likewise.
    pub fn src(mut self, src: &str) -> Self {
        self.src = src.parse().expect("address");
        self.sealed()
    }

    fn sealed(mut self) -> Self {
        match self.proto {
            proto::SCTP if self.l4.len() >= 12 => {
                let sum = sctp_checksum(&self.l4);
                self.l4[8..12].copy_from_slice(&sum);
                self
            }
            proto::TCP => self.seal(16),
            proto::UDP | proto::UDPLITE => self.seal(6),
            proto::ICMP | proto::ICMPV6 => self.seal(2),
            _ => self,
        }
    }

    /// A UDP datagram whose sender computed no checksum.
    pub fn without_checksum(mut self) -> Self {
        self.l4[6..8].fill(0);
        self
    }

    /// Any bit of the transport checksum flipped: it is wrong now.
    pub fn broken_checksum(mut self) -> Self {
        let at = match self.proto {
            proto::TCP => 16,
            proto::UDP | proto::UDPLITE => 6,
            proto::SCTP => 8,
            _ => 2,
        };
        self.l4[at] ^= 0x10;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn df(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.dst_mac = mac;
        self
    }

    pub fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.src_mac = mac;
        self
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        let mut b = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                b.extend([0x45, 0]);
                b.extend(((20 + self.l4.len()) as u16).to_be_bytes());
                b.extend(self.id.to_be_bytes());
                let (offset, more) = self.fragment.unwrap_or((0, false));
                let field = offset / 8 | u16::from(more) << 13 | u16::from(self.dont_fragment) << 14;
                b.extend(field.to_be_bytes());
                b.extend([self.ttl, self.proto, 0, 0]);
                b.extend(s.octets());
                b.extend(d.octets());
                let sum = !checksum::sum(&b);
                b[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                b.extend([0x60, 0, 0, 0]);
                b.extend((self.l4.len() as u16).to_be_bytes());
                b.extend([self.proto, self.ttl]);
                b.extend(s.octets());
                b.extend(d.octets());
            }
            _ => panic!("two IP versions"),
        }
        b.extend(&self.l4);
        b
    }

    /// The Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.extend(self.dst_mac);
        b.extend(self.src_mac);
        if let Some(id) = self.vlan {
            b.extend([0x81, 0x00]);
            b.extend(id.to_be_bytes());
        }
        b.extend(if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        b.extend(self.ip());
        b
    }

    /// The IPv4 packet cut into fragments with `step` bytes of payload each (a multiple of 8).
    pub fn fragments(&self, step: usize) -> Vec<Pkt> {
        let count = self.l4.len().div_ceil(step);
        (0..count)
            .map(|n| {
                let mut p = self.clone();
                p.fragment = Some(((n * step) as u16, n + 1 < count));
                p.l4 = self.l4[n * step..self.l4.len().min((n + 1) * step)].to_vec();
                p
            })
            .collect()
    }
}

/// A packet as it left the gateway. Reading one asserts that all its checksums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub proto: u8,
    /// Ports; ICMP: identifier (or unused field) and type and code.
    pub sport: u16,
    pub dport: u16,
    pub tcp_flags: u8,
    /// `(offset in bytes, more)`.
    pub fragment: Option<(u16, bool)>,
    pub ip_len: usize,
    /// The whole IP packet.
    pub ip: Vec<u8>,
    /// What follows the transport header (for ICMP: its 8 bytes).
    pub payload: Vec<u8>,
}

impl Seen {
    /// Reads a frame.
    pub fn read(frame: &[u8]) -> Self {
        let (ethertype, l3, vlan) = if be16_at(frame, 12) == 0x8100 {
            (be16_at(frame, 16), 18, Some(be16_at(frame, 14)))
        } else {
            (be16_at(frame, 12), 14, None)
        };
        let mut seen = match ethertype {
            0x0800 => Self::ipv4(&frame[l3..]),
            0x86dd => Self::ipv6(&frame[l3..]),
            other => panic!("ethertype {other:#06x}"),
        };
        seen.dst_mac.copy_from_slice(&frame[..6]);
        seen.src_mac.copy_from_slice(&frame[6..12]);
        seen.vlan = vlan;
        seen.ip = frame[l3..].to_vec();
        seen
    }

    fn ipv4(b: &[u8]) -> Self {
        assert_eq!(checksum::sum(&b[..20]), 0xffff, "IPv4 checksum");
        let len = usize::from(be16_at(b, 2));
        assert_eq!(len, b.len(), "no padding leaves");
        let field = be16_at(b, 6);
        let fragment = (field & 0x3fff != 0).then_some(((field & 0x1fff) * 8, field & 0x2000 != 0));
        let address = |at: usize| IpAddr::from([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Self::l4(address(12), address(16), b[8], b[9], fragment, len, &b[20..])
    }

    fn ipv6(b: &[u8]) -> Self {
        let len = 40 + usize::from(be16_at(b, 4));
        assert_eq!(len, b.len(), "no padding leaves");
        let address = |at: usize| {
            let mut a = [0u8; 16];
            a.copy_from_slice(&b[at..at + 16]);
            IpAddr::from(a)
        };
        Self::l4(address(8), address(24), b[7], b[6], None, len, &b[40..])
    }

    fn l4(src: IpAddr, dst: IpAddr, ttl: u8, p: u8, fragment: Option<(u16, bool)>, ip_len: usize, b: &[u8]) -> Self {
        if fragment.is_none() {
            let right = match p {
                proto::ICMP if src.is_ipv4() => checksum::sum(b) == 0xffff,
                proto::UDP if be16_at(b, 6) == 0 => true,
                proto::TCP | proto::UDP | proto::UDPLITE => transport_ok(src, dst, p, b),
                proto::ICMPV6 if src.is_ipv6() => transport_ok(src, dst, p, b),
                proto::SCTP if b.len() >= 12 => b[8..12] == sctp_checksum(b),
                _ => true,
            };
            assert!(right, "transport checksum of {src} > {dst} protocol {p}");
        }
        let (sport, dport, flags, payload) = match p {
            proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP
                if fragment == Some((0, true)) && (4..20).contains(&b.len()) =>
            {
                (be16_at(b, 0), be16_at(b, 2), 0, &b[4..])
            }
            proto::TCP if b.len() >= 20 => (be16_at(b, 0), be16_at(b, 2), b[13], &b[20..]),
            proto::UDP | proto::UDPLITE if b.len() >= 8 => (be16_at(b, 0), be16_at(b, 2), 0, &b[8..]),
            proto::SCTP if b.len() >= 12 => (be16_at(b, 0), be16_at(b, 2), 0, &b[12..]),
            proto::ICMP | proto::ICMPV6 if b.len() >= 8 => (be16_at(b, 4), be16_at(b, 0), 0, &b[8..]),
            _ => (0, 0, 0, b),
        };
        Self {
            src_mac: [0; 6],
            dst_mac: [0; 6],
            vlan: None,
            src,
            dst,
            ttl,
            proto: p,
            sport,
            dport,
            tcp_flags: flags,
            fragment,
            ip_len,
            ip: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// Of a TCP segment: its sequence number, its acknowledgement, and its header with options.
    pub fn tcp(&self) -> (u32, u32, &[u8]) {
        let l4 = &self.ip[if self.src.is_ipv4() { 20 } else { 40 }..];
        let be32 = |at: usize| u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]]);
        (be32(4), be32(8), &l4[..usize::from(l4[12] >> 4) * 4])
    }

    /// What follows a TCP segment's header, options and all.
    pub fn text(&self) -> String {
        let l4 = &self.ip[if self.src.is_ipv4() { 20 } else { 40 }..];
        String::from_utf8_lossy(&l4[usize::from(l4[12] >> 4) * 4..]).into_owned()
    }

    /// `src:sport > dst:dport`, for assertions that a person reads.
    pub fn flow(&self) -> String {
        let Self { src, sport, dst, dport, .. } = self;
        if matches!(self.proto, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP) {
            format!("{src}:{sport} > {dst}:{dport}")
        } else if matches!(self.proto, proto::ICMP | proto::ICMPV6) {
            format!("{src} > {dst} icmp {}/{} id {sport}", dport >> 8, dport & 0xff)
        } else {
            format!("{src} > {dst}")
        }
    }

    /// The packet that an ICMP error quotes; its own checksums are asserted where it is whole.
    pub fn quoted(&self) -> Self {
        let b = &self.payload;
        if self.src.is_ipv4() {
            let len = usize::from(be16_at(b, 2));
            assert_eq!(checksum::sum(&b[..20]), 0xffff, "quoted IPv4 checksum");
            if len == b.len() {
                return Self::ipv4(b);
            }
            let address = |at: usize| IpAddr::from([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            Self::l4(address(12), address(16), b[8], b[9], Some((0, true)), len, &b[20..])
        } else if 40 + usize::from(be16_at(b, 4)) == b.len() {
            Self::ipv6(b)
        } else {
            let address = |at: usize| <[u8; 16]>::try_from(&b[at..at + 16]).expect("16 bytes").into();
            Self::l4(address(8), address(24), b[7], b[6], Some((0, true)), b.len(), &b[40..])
        }
    }

    /// Asserts that an ICMP error quotes `sent` as its sender sent it, but for what routers change on the way: the TTL.
    #[track_caller]
    pub fn assert_quotes(&self, sent: &Pkt) {
        let (quote, sent) = (without_ttl(&self.payload), without_ttl(&sent.ip()));
        assert!(quote.len() <= sent.len(), "more is quoted than was sent");
        assert_eq!(quote, sent[..quote.len()], "the quote is not what was sent");
    }
}

/// An IP packet with TTL and IPv4 checksum zeroed.
fn without_ttl(packet: &[u8]) -> Vec<u8> {
    let mut b = packet.to_vec();
    if b[0] >> 4 == 4 {
        b[8] = 0;
        b[10..12].fill(0);
    } else {
        b[7] = 0;
    }
    b
}
