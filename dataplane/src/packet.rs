//! One packet in flight: where its headers are and what the stages have found out.
//!
//! [`Packet`] is filled left to right: `parse` sets the offsets, tracking the class, direction and connection. The
//! bytes stay in the buffer; offsets are from its first byte.

use crate::api::stats::HandoverCause;
use crate::conntrack::ConnId;
use crate::conntrack::tuple::{Direction, Key, Tuple};
use crate::drop::DropReason;
use crate::io::PortIdx;
use crate::nat::prefix::PrefixRule;
use crate::parse::fast::Sight;
use crate::parse::{Fragment, IpHeader, be16, ipv4, ipv6};

/// Connection tracking's class of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CtState {
    /// First packet of a connection, or a further one before any reply.
    New = 0,
    /// The connection has seen packets both ways.
    Established = 1,
    /// Announced by another connection, or an ICMP error about one.
    Related = 2,
    /// Belongs to nothing and cannot start anything.
    Invalid = 3,
    /// Not tracked: a raw rule or neighbour discovery.
    Untracked = 4,
}

/// How many classes there are.
pub const CT_STATES: usize = 5;

impl CtState {
    /// All classes.
    pub const ALL: [Self; CT_STATES] = [Self::New, Self::Established, Self::Related, Self::Invalid, Self::Untracked];

    /// Its name in rules, metrics and explanations.
    pub const fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
        }
    }
}

/// What tracking looks at in a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flag bits, CWR to FIN.
    pub flags: u8,
    /// What the options of a SYN say; `None` where it has none, and for other segments.
    pub syn: Option<SynOptions>,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The highest number acknowledged: of the first SACK option's right edges and `ack` the latest.
    pub sack: u32,
    /// Window, not scaled.
    pub win: u16,
    /// Payload, bytes.
    pub len: u16,
}

impl TcpSegment {
    /// How many sequence numbers it takes: one per byte, one for a SYN, one for a FIN.
    #[inline]
    pub const fn span(&self) -> u32 {
        self.len as u32 + (self.flags >> 1 & 1) as u32 + (self.flags & 1) as u32
    }
}

/// What the options of a SYN say of its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Window scale, at most 14.
    pub scale: Option<u8>,
    /// Whether it understands selective acknowledgements.
    pub sack_permitted: bool,
}

/// What tracking looks at in an SCTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpPacket {
    /// Verification tag.
    pub vtag: u32,
    /// Initiate tag of its INIT or INIT ACK, 0 where it has none.
    pub init_tag: u32,
    /// Whether it has a DATA chunk.
    pub has_data: bool,
    /// Its chunks.
    pub chunks: SctpChunks,
}

/// What a chunk means to tracking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SctpChunk {
    /// DATA, SACK and all that changes no state.
    #[default]
    Other,
    /// INIT.
    Init,
    /// INIT ACK.
    InitAck,
    /// HEARTBEAT.
    Heartbeat,
    /// HEARTBEAT ACK.
    HeartbeatAck,
    /// ABORT with the receiver's tag.
    Abort,
    /// ABORT with the sender's tag: its sender has no association.
    AbortReflected,
    /// SHUTDOWN.
    Shutdown,
    /// SHUTDOWN ACK.
    ShutdownAck,
    /// ERROR.
    Error,
    /// COOKIE ECHO.
    CookieEcho,
    /// COOKIE ACK.
    CookieAck,
    /// SHUTDOWN COMPLETE with the receiver's tag.
    ShutdownComplete,
    /// SHUTDOWN COMPLETE with the sender's tag: its sender has no association.
    ShutdownCompleteReflected,
}

impl SctpChunk {
    /// Type of a DATA chunk.
    pub const DATA: u8 = 0;
    /// RFC 9260 section 3.3.7: the T bit.
    const REFLECTED: u8 = 1;

    /// The meaning of a chunk of type `kind` (RFC 9260 section 3.2).
    pub const fn of(kind: u8, flags: u8) -> Self {
        match (kind, flags & Self::REFLECTED != 0) {
            (1, _) => Self::Init,
            (2, _) => Self::InitAck,
            (4, _) => Self::Heartbeat,
            (5, _) => Self::HeartbeatAck,
            (6, false) => Self::Abort,
            (6, true) => Self::AbortReflected,
            (7, _) => Self::Shutdown,
            (8, _) => Self::ShutdownAck,
            (9, _) => Self::Error,
            (10, _) => Self::CookieEcho,
            (11, _) => Self::CookieAck,
            (14, false) => Self::ShutdownComplete,
            (14, true) => Self::ShutdownCompleteReflected,
            _ => Self::Other,
        }
    }

    /// Whether it must be the only chunk of its packet.
    pub const fn must_be_alone(self) -> bool {
        matches!(self, Self::Init | Self::InitAck | Self::ShutdownComplete | Self::ShutdownCompleteReflected)
    }

    /// Whether it must be the first chunk of its packet.
    pub const fn must_be_first(self) -> bool {
        matches!(self, Self::CookieEcho | Self::CookieAck)
    }
}

/// The chunks of a packet, in their order. One that follows its like and then says nothing new is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SctpChunks {
    kinds: [SctpChunk; Self::MAX],
    count: u8,
}

impl SctpChunks {
    /// Most that are kept.
    pub const MAX: usize = 15;

    /// Adds a chunk; `false` where there is no room.
    #[must_use]
    pub fn push(&mut self, chunk: SctpChunk) -> bool {
        let n = usize::from(self.count);
        let last = |back: usize| n.checked_sub(back).and_then(|i| self.kinds.get(i)) == Some(&chunk);
        // A second heartbeat with a wrong tag is not a repetition: see `conntrack::sctp`.
        let heartbeat = matches!(chunk, SctpChunk::Heartbeat | SctpChunk::HeartbeatAck);
        if last(1) && (!heartbeat || last(2)) {
            return true;
        }
        let Some(slot) = self.kinds.get_mut(n) else { return false };
        *slot = chunk;
        self.count += 1;
        true
    }

    /// The chunks.
    pub fn iter(&self) -> impl Iterator<Item = SctpChunk> {
        self.kinds.iter().copied().take(usize::from(self.count))
    }
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its tuple, as quoted.
    pub tuple: Tuple,
    /// Where the quote begins, from the ICMP header's first byte.
    pub at: u16,
    /// Where its transport header begins, from the quoted network header's first byte.
    pub l4: u16,
    /// Bytes of its transport header and payload, of which the quote may be a part; 0 where they cannot be known.
    pub len: u16,
}

/// What the transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP; at least 20 bytes of header are there.
    Tcp(TcpSegment),
    /// UDP; 8 bytes of header are there.
    Udp,
    /// UDP-Lite; 8 bytes of header are there.
    UdpLite,
    /// SCTP; 12 bytes of header are there.
    Sctp(SctpPacket),
    /// GRE of any version; `call`: of version 1, with a call id.
    Gre {
        /// Whether it has one; 0 is an id, too.
        call: bool,
    },
    /// ICMP or ICMPv6 query or answer with an identifier; 8 bytes of header are there.
    IcmpQuery,
    /// ICMP or ICMPv6 error; `None` where what it quotes cannot be known.
    IcmpError(Option<Quoted>),
    /// Neighbour or router discovery, multicast listener messages: never tracked.
    NeighbourDiscovery,
    /// Any other protocol.
    Other,
    /// A fragment: its transport header, if it has one, counts only once the datagram is whole.
    Fragment,
    /// Broken in this way.
    Invalid(DropReason),
}

/// One packet in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The port that it came in by.
    pub in_port: PortIdx,
    /// Offset of the network header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset behind the packet's last byte; link padding lies beyond.
    pub end: u16,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Whether the frame was sent to a link-layer group address.
    pub group: bool,
    /// What the transport header is.
    pub kind: L4,
    /// Its identity as on the wire.
    pub tuple: Tuple,
    /// Set where it is a fragment.
    pub fragment: Option<Fragment>,
    /// It is a later fragment of a datagram whose first was judged: tuple and kind are that one's, and it gets its verdict.
    pub later: bool,
    /// Bytes of the IP packet; for a reassembled datagram, of the whole; of a later fragment, what it adds to that.
    pub ip_len: u32,
    /// Bytes of its transport header and payload; for a reassembled datagram, of the whole.
    pub l4_len: u16,
    /// Bytes of the largest IP packet that it came in: less than `ip_len` for a reassembled datagram.
    pub wire_len: u32,
    /// Keyed hash of its tuple in this worker's table.
    pub hash: u64,
    /// The rule that has translated its destination between prefixes as it came; 0 where none has.
    pub prefix: PrefixRule,
    /// Its destination is translated, and its connection is not confirmed yet.
    pub dnat: bool,
    /// A signpost has led it astray: its home must not follow that again.
    pub stale: bool,
    /// Its class, once tracking has seen it.
    pub state: CtState,
    /// Its direction within the connection.
    pub direction: Direction,
    /// Its connection, where it is confirmed.
    pub conn: Option<ConnId>,
}

impl Packet {
    /// What `parse` knows. Frames are at most 64 KiB, so offsets fit.
    #[expect(clippy::cast_possible_truncation, reason = "a frame is one buffer of at most 65,535 bytes")]
    pub fn new(in_port: PortIdx, l3: usize, ip: &IpHeader, group: bool, kind: L4, sport: u16, dport: u16) -> Self {
        Self {
            in_port,
            l3: l3 as u16,
            l4: (l3 + ip.l4) as u16,
            end: (l3 + ip.len) as u16,
            ttl: ip.ttl,
            dont_fragment: ip.dont_fragment,
            group,
            kind,
            tuple: Tuple { src: ip.src, dst: ip.dst, proto: ip.proto, sport, dport, ct_zone: 0 },
            fragment: ip.fragment,
            later: false,
            ip_len: ip.len as u32,
            l4_len: (ip.len - ip.l4) as u16,
            wire_len: ip.len as u32,
            hash: 0,
            prefix: 0,
            dnat: false,
            stale: false,
            state: CtState::Invalid,
            direction: Direction::Original,
            conn: None,
        }
    }

    /// What `parse` would say of a usual UDP packet, which was read and verified already; `None` for TCP, of which a sight does
    /// not say enough. `frame` is what the sight is of, `l3` where its network header is.
    #[inline]
    pub fn of_sight<K: Key>(seen: &Sight<K>, in_port: PortIdx, frame: &[u8], l3: usize) -> Option<Self> {
        if seen.tcp {
            return None;
        }
        let tuple = seen.key.tuple();
        let header = frame.get(l3..)?.first_chunk::<{ ipv4::HEADER }>()?;
        let (l4, ttl, dont_fragment) = match tuple.is_ipv4() {
            true => (ipv4::HEADER, header[8], be16(header, 6) & 0x4000 != 0),
            false => (ipv6::HEADER, header[7], true),
        };
        let len = usize::from(seen.len);
        let ip = IpHeader {
            src: tuple.src,
            dst: tuple.dst,
            proto: tuple.proto,
            l4,
            len,
            ttl,
            fragment: None,
            atomic: None,
            dont_fragment,
            invalid: None,
        };
        let packet = Self::new(in_port, l3, &ip, false, L4::Udp, tuple.sport, tuple.dport);
        Some(Self { tuple, hash: seen.hash, ..packet })
    }

    /// Puts the packet, and what it quotes, into a conntrack zone.
    pub const fn set_ct_zone(&mut self, zone: u16) {
        self.tuple.ct_zone = zone;
        if let L4::IcmpError(Some(quoted)) = &mut self.kind {
            quoted.tuple.ct_zone = zone;
        }
    }

    /// TCP flags, 0 for other protocols.
    pub const fn tcp_flags(&self) -> u8 {
        match self.kind {
            L4::Tcp(s) => s.flags,
            _ => 0,
        }
    }

    /// Marks a packet that is handed on because its flow is not here. One that its port brought to the wrong worker
    /// (`handed` is false) has not followed any signpost yet.
    pub fn astray(&mut self, cause: HandoverCause, handed: bool) -> HandoverCause {
        self.stale = cause == HandoverCause::Stale && handed;
        if cause == HandoverCause::Stale && !handed { HandoverCause::Steer } else { cause }
    }

    /// Offsets of network header, transport header and end, as indices.
    pub fn span(&self) -> (usize, usize, usize) {
        (usize::from(self.l3), usize::from(self.l4), usize::from(self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::RxChecksum;
    use crate::parse::fast::Station;
    use crate::parse::{self, Parsed, Receiver};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A datagram without a checksum, of ten bytes and two of padding.
    fn frame(network: &[u8]) -> Vec<u8> {
        let ethertype = if network[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let udp = [0, 53, 0x12, 0x34, 0, 18, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0];
        [&MAC[..], &[2, 0, 0, 0, 0, 2], &ethertype, network, &udp].concat()
    }

    #[test]
    fn a_sight_of_a_datagram_says_what_parse_says_of_it() {
        let v4 = |flags: u8, sum: [u8; 2]| {
            [&[0x45, 0, 0, 38, 0, 1, flags, 0, 64, 17, sum[0], sum[1]][..], &[10, 0, 0, 1, 10, 0, 0, 2]].concat()
        };
        let address = |n: u8| [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[n]].concat();
        let v6 = [&[0x60, 0, 0, 0, 0, 18, 17, 9][..], &address(1), &address(2)].concat();
        let station = Station { mac: MAC, vlan: None, verify: true, ct_zone: 0, ipv6: true };
        let port = PortIdx::wire(3);
        let receiver = Receiver { port, mac: MAC, vlan: None, verify: true };
        for network in [v4(0, [0x66, 0xc4]), v4(0x40, [0x26, 0xc4]), v6] {
            let frame = frame(&network);
            let seen = station.look(
                &frame,
                RxChecksum::Unknown,
                |s| Packet::of_sight(&Sight { hash: 7, ..s }, port, &frame, 14),
                |s| Packet::of_sight(&Sight { hash: 7, ..s }, port, &frame, 14),
            );
            let Ok(Parsed::Ip(parsed)) = parse::frame(&frame, &receiver, RxChecksum::Unknown) else {
                panic!("it is an IP packet");
            };
            assert_eq!(parsed.kind, L4::Udp);
            assert_eq!(seen.flatten(), Some(Packet { hash: 7, ..parsed }));
        }
    }
}
