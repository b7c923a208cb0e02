//! Building packets, sound ones and broken ones.
//!
//! *Limits*: none checked here; what is built may be longer than a link takes.
//! *Sources*: RFC 791, 8200, 9293, 768, 792, 4443.

use std::net::IpAddr;

use crate::frame::proto;

/// TCP's flags.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
    /// Urgent.
    pub const URG: u8 = 32;
    /// ECN echo.
    pub const ECE: u8 = 64;
    /// Congestion window reduced.
    pub const CWR: u8 = 128;
}

/// One's complement sum of `b`, not inverted.
pub fn sum(start: u32, b: &[u8]) -> u16 {
    let mut acc = u64::from(start);
    for pair in b.chunks(2) {
        acc += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    u16::try_from(acc).unwrap_or(0)
}

/// Sum of the pseudo header, not folded, of `len` bytes of `proto`.
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u32 {
    let octets = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let addresses = u32::from(sum(0, &octets(src))) + u32::from(sum(0, &octets(dst)));
    addresses + u32::from(proto) + u32::try_from(len & 0xffff).unwrap_or(0) + u32::try_from(len >> 16).unwrap_or(0)
}

/// The transport checksum of `l4`, whose own checksum field counts as it stands.
pub fn transport_sum(src: IpAddr, dst: IpAddr, proto: u8, l4: &[u8]) -> u16 {
    if proto == proto::ICMP { sum(0, l4) } else { sum(pseudo(src, dst, proto, l4.len()), l4) }
}

/// Puts the right checksum into `l4`, where its protocol has one that covers all of it.
pub fn seal(src: IpAddr, dst: IpAddr, proto: u8, l4: &mut [u8]) {
    if proto == proto::SCTP {
        if let Some(field) = l4.get_mut(8..12) {
            field.fill(0);
            let crc = crc32c(l4);
            l4[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        return;
    }
    let Some(at) = crate::frame::Ip::checksum_at(proto) else { return };
    if l4.len() < at + 2 {
        return;
    }
    l4[at..at + 2].fill(0);
    let value = match !transport_sum(src, dst, proto, l4) {
        0 if proto == proto::UDP || proto == proto::UDPLITE => 0xffff,
        v => v,
    };
    l4[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// SCTP's checksum (RFC 9260, appendix A).
pub fn crc32c(b: &[u8]) -> u32 {
    !b.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

/// Payload of `len` bytes that tells where it was cut.
pub fn pattern(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}

/// A TCP segment's header fields.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Window, not scaled.
    pub win: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; padded to a multiple of four.
    pub options: Vec<u8>,
}

impl Tcp {
    /// Header and payload, checksum still zero.
    pub fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4).min(40), 0);
        let words = u8::try_from(5 + options.len() / 4).unwrap_or(15);
        let mut b = Vec::with_capacity(20 + options.len() + payload.len());
        b.extend(self.sport.to_be_bytes());
        b.extend(self.dport.to_be_bytes());
        b.extend(self.seq.to_be_bytes());
        b.extend(self.ack.to_be_bytes());
        b.extend([words << 4, self.flags]);
        b.extend(self.win.to_be_bytes());
        b.extend([0, 0]);
        b.extend(self.urgent.to_be_bytes());
        b.extend(options);
        b.extend(payload);
        b
    }
}

/// A UDP datagram, checksum still zero.
pub fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut b = Vec::with_capacity(8 + payload.len());
    b.extend(sport.to_be_bytes());
    b.extend(dport.to_be_bytes());
    b.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    b.extend([0, 0]);
    b.extend(payload);
    b
}

/// An ICMP or ICMPv6 message, checksum still zero.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut b = vec![kind, code, 0, 0];
    b.extend(rest);
    b.extend(payload);
    b
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source.
    pub src: IpAddr,
    /// Destination, of the same IP version.
    pub dst: IpAddr,
    /// Transport protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's identification.
    pub id: u16,
    /// IPv4: routers may not fragment it.
    pub df: bool,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers in front of the transport header: type and whole bytes, next header filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Transport header and payload.
    pub l4: Vec<u8>,
}

impl Packet {
    /// A packet with the right transport checksum.
    pub fn new(src: IpAddr, dst: IpAddr, proto: u8, mut l4: Vec<u8>) -> Self {
        seal(src, dst, proto, &mut l4);
        Self { src, dst, proto, ttl: 64, id: 1, df: false, tos: 0, options: Vec::new(), extensions: Vec::new(), l4 }
    }

    /// Flips a bit of the transport checksum.
    pub fn break_checksum(&mut self) {
        let at = if self.proto == proto::SCTP { Some(8) } else { crate::frame::Ip::checksum_at(self.proto) };
        if let Some(b) = at.and_then(|at| self.l4.get_mut(at)) {
            *b ^= 0x10;
        }
    }

    /// Whole.
    pub fn ip(&self) -> Vec<u8> {
        self.piece(None, &self.l4)
    }

    /// A fragment: payload bytes `at..at + part.len()` of the datagram.
    pub fn piece(&self, fragment: Option<(u32, usize, bool)>, part: &[u8]) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let header = 20 + self.options.len();
                let field = match fragment {
                    Some((_, at, more)) => u16::try_from(at / 8).unwrap_or(0) | u16::from(more) << 13,
                    None => 0,
                } | u16::from(self.df) << 14;
                let mut b = vec![0x40 | u8::try_from(header / 4).unwrap_or(15), self.tos];
                b.extend(u16::try_from(header + part.len()).unwrap_or(u16::MAX).to_be_bytes());
                let id = fragment.map_or(self.id, |(id, ..)| u16::try_from(id & 0xffff).unwrap_or(0));
                b.extend(id.to_be_bytes());
                b.extend(field.to_be_bytes());
                b.extend([self.ttl, self.proto, 0, 0]);
                b.extend(s.octets());
                b.extend(d.octets());
                b.extend(&self.options);
                let check = !sum(0, &b);
                b[10..12].copy_from_slice(&check.to_be_bytes());
                b.extend(part);
                b
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut chain = self.extensions.clone();
                if let Some((id, at, more)) = fragment {
                    let mut header = vec![0, 0];
                    header.extend((u16::try_from(at & 0xfff8).unwrap_or(0) | u16::from(more)).to_be_bytes());
                    header.extend(id.to_be_bytes());
                    chain.push((44, header));
                }
                let mut rest = Vec::new();
                for n in 0..chain.len() {
                    let next = chain.get(n + 1).map_or(self.proto, |(t, _)| *t);
                    let mut header = chain[n].1.clone();
                    if let Some(b) = header.first_mut() {
                        *b = next;
                    }
                    rest.extend(header);
                }
                rest.extend(part);
                let mut b = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                b.extend(u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes());
                b.extend([chain.first().map_or(self.proto, |(t, _)| *t), self.ttl]);
                b.extend(s.octets());
                b.extend(d.octets());
                b.extend(rest);
                b
            }
            _ => Vec::new(),
        }
    }

    /// Cut into fragments of `step` bytes of payload each.
    pub fn fragments(&self, id: u32, step: usize) -> Vec<Vec<u8>> {
        let step = step.max(8) / 8 * 8;
        let count = self.l4.len().div_ceil(step).max(1);
        (0..count)
            .map(|n| {
                let end = self.l4.len().min((n + 1) * step);
                self.piece(Some((id, n * step, n + 1 < count)), &self.l4[n * step..end])
            })
            .collect()
    }
}
