//! Ethernet frames with one UDP datagram or TCP segment over IPv4 or IPv6, whole or in two fragments, checksums right.

use std::net::IpAddr;

use crate::flow::Endpoints;

/// UDP payload of the shortest frame that Ethernet allows: 60 bytes (64 on the wire, with the FCS); 80 with IPv6.
pub const SHORTEST: u16 = 18;
/// UDP payload of the longest frame on a link of 1,500 bytes.
pub const LONGEST: u16 = 1500 - 28;
/// UDP payload of the middle size of the simple IMIX: 570 bytes on the wire.
pub const MIDDLE: u16 = 566 - 42;

/// A MAC address.
pub type Mac = [u8; 6];

/// The two stations of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Who receives it.
    pub to: Mac,
    /// Who sends it.
    pub from: Mac,
}

/// What a TCP segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`FIN`], [`SYN`], [`PSH`] and [`ACK`]. A SYN carries options: largest segment, window scale, SACK permitted.
    pub flags: u8,
    /// Bytes of data, an even number.
    pub payload: u16,
}

/// Flags of TCP: RFC 9293 section 3.1.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

const ETH_LEN: usize = 14;
/// Ethernet's shortest frame, without FCS.
const ETH_MIN: usize = 60;
const IPV4_LEN: usize = 20;
const UDP_LEN: u16 = 8;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// More fragments follow: RFC 791 section 3.1.
const MORE: u16 = 0x2000;
/// Largest segment 1,460, SACK permitted, window scale 7: RFC 9293, 2018, 7323; padded to four bytes each.
const SYN_OPTIONS: [u8; 12] = [2, 4, 5, 180, 4, 2, 1, 1, 3, 3, 7, 1];

/// The frame with a UDP datagram of `payload` zeros; an even number of them.
pub fn udp(link: Link, at: Endpoints, payload: u16) -> Vec<u8> {
    let length = UDP_LEN + payload;
    let mut udp = vec![0; usize::from(length)];
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    ports_and_checksum(&mut udp, at, UDP, 6);
    packet(link, at, UDP, [0, 0], &udp)
}

/// The frame with a TCP segment.
pub fn tcp(link: Link, at: Endpoints, segment: Segment) -> Vec<u8> {
    let options: &[u8] = if segment.flags & SYN != 0 { &SYN_OPTIONS } else { &[] };
    let mut tcp = vec![0; 20];
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = if options.is_empty() { 5 << 4 } else { 8 << 4 };
    tcp[13] = segment.flags;
    tcp[14..16].copy_from_slice(&0x2000_u16.to_be_bytes());
    tcp.extend(options);
    tcp.resize(tcp.len() + usize::from(segment.payload), 0);
    ports_and_checksum(&mut tcp, at, TCP, 16);
    packet(link, at, TCP, [0, 0], &tcp)
}

/// The datagram of [`udp`] over IPv4 in two fragments as long as each other, but for 8 bytes at most. `id` tells datagrams
/// apart.
pub fn halves(link: Link, at: Endpoints, payload: u16, id: u16) -> [Vec<u8>; 2] {
    let whole = udp(link, at, payload);
    let data = &whole[ETH_LEN + IPV4_LEN..];
    let half = data.len() / 2 / 8 * 8;
    let units = u16::try_from(half / 8).unwrap_or(0);
    [packet(link, at, UDP, [id, MORE], &data[..half]), packet(link, at, UDP, [id, units], &data[half..])]
}

/// Fills in the ports, and the checksum in the two bytes from `offset` on.
fn ports_and_checksum(l4: &mut [u8], at: Endpoints, protocol: u8, offset: usize) {
    l4[..2].copy_from_slice(&at.sport.to_be_bytes());
    l4[2..4].copy_from_slice(&at.dport.to_be_bytes());
    let sum = match checksum(pseudo_header(at, protocol, l4.len()), l4) {
        0 if protocol == UDP => 0xffff, // RFC 768: zero means that there is none
        sum => sum,
    };
    l4[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sum of both addresses, the protocol and the length.
fn pseudo_header(at: Endpoints, protocol: u8, length: usize) -> u32 {
    let words = |a: IpAddr| match a {
        IpAddr::V4(a) => sum(0, &a.octets()),
        IpAddr::V6(a) => sum(0, &a.octets()),
    };
    words(at.source) + words(at.destination) + u32::from(protocol) + u32::try_from(length).unwrap_or(0)
}

/// One IP packet, padded as Ethernet wants it; `fragment` is IPv4's identification, and the word with flags and offset.
fn packet(link: Link, at: Endpoints, protocol: u8, fragment: [u16; 2], data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + 40 + data.len());
    frame.extend(link.to);
    frame.extend(link.from);
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    match (at.source, at.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend(fragment[0].to_be_bytes());
            frame.extend(fragment[1].to_be_bytes());
            frame.extend([64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let sum = checksum(0, &frame[ETH_LEN..]);
            frame[ETH_LEN + 10..ETH_LEN + 12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        // Invariant: a flow has addresses of one IP version.
        _ => debug_assert!(false, "{at:?}"),
    }
    frame.extend(data);
    frame.resize(frame.len().max(ETH_MIN), 0);
    frame
}

/// The internet checksum of `bytes`, an even number of them, on top of `start`.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let sum = sum(start, bytes);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(0)
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).fold(start, |s, w| s + u32::from(u16::from_be_bytes([w[0], w[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Case, Flow};

    const LINK: Link = Link { to: [2, 0, 0, 0, 0, 1], from: [2, 0, 0, 0, 0, 2] };

    /// The sums over header and pseudo header of a frame as it stands, both 0 where they are right.
    fn sums(frame: &[u8]) -> (u16, u16) {
        if frame[12..14] == [0x86, 0xdd] {
            let length = u16::from_be_bytes([frame[18], frame[19]]);
            let l4 = &frame[54..54 + usize::from(length)];
            return (0, checksum(sum(0, &frame[22..54]) + u32::from(frame[20]) + u32::from(length), l4));
        }
        let length = u16::from_be_bytes([frame[16], frame[17]]);
        let l4 = &frame[34..14 + usize::from(length)];
        let pseudo = sum(0, &frame[26..34]) + u32::from(frame[23]) + u32::from(length - 20);
        (checksum(0, &frame[14..34]), checksum(pseudo, l4))
    }

    #[test]
    fn the_checksums_of_every_frame_verify() {
        for case in [Case::Snat, Case::Dnat, Case::Ipv6] {
            for i in (0..1_000_000).step_by(997) {
                let flow = Flow::number(i, case);
                for at in [flow.lan, flow.wan] {
                    for payload in [SHORTEST, MIDDLE, LONGEST] {
                        assert_eq!(sums(&udp(LINK, at, payload)), (0, 0), "UDP of flow {i}, {case:?}");
                    }
                    for flags in [SYN, ACK] {
                        let segment = Segment { seq: i, ack: !i, flags, payload: 6 };
                        assert_eq!(sums(&tcp(LINK, at, segment)), (0, 0), "TCP of flow {i}, {case:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_reads_as_written() {
        let at = Flow::number(0, Case::Stateful).lan;
        let frame = udp(LINK, at, SHORTEST);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        assert_eq!(frame[26..34], [10, 0, 0, 2, 198, 18, 0, 1]);
        assert_eq!(frame[34..38], [4, 0, 0, 53]);
    }

    #[test]
    fn frames_have_the_lengths_of_their_sizes() {
        let (v4, v6) = (Flow::number(0, Case::Imix).lan, Flow::number(0, Case::Ipv6).lan);
        assert_eq!([SHORTEST, MIDDLE, LONGEST].map(|p| udp(LINK, v4, p).len()), [60, 566, 1514]);
        assert_eq!(udp(LINK, v6, SHORTEST).len(), 80);
        let segment = |flags, payload| tcp(LINK, v4, Segment { seq: 1, ack: 2, flags, payload }).len();
        assert_eq!([segment(ACK, 0), segment(ACK | PSH, 6), segment(SYN, 0)], [60, 60, 66]);
    }

    #[test]
    fn a_segment_reads_as_written() {
        let at = Flow::number(0, Case::Tcp).lan;
        let frame = tcp(LINK, at, Segment { seq: 0x0102_0304, ack: 0x0506_0708, flags: ACK | PSH, payload: 6 });
        assert_eq!(frame[23], 6);
        assert_eq!(frame[38..48], [1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18]);
    }

    #[test]
    fn two_fragments_are_the_datagram() {
        let at = Flow::number(0, Case::Stateful).lan;
        let whole = udp(LINK, at, LONGEST);
        let [first, last] = halves(LINK, at, LONGEST, 7);
        assert_eq!([&first[34..], &last[34..]].concat(), whole[34..]);
        assert_eq!((&first[18..22], first.len()), (&[0, 7, 0x20, 0][..], 34 + 736));
        assert_eq!((&last[18..22], last.len()), (&[0, 7, 0, 92][..], 34 + 744));
        for f in [&first, &last] {
            assert_eq!(checksum(0, &f[14..34]), 0);
            assert_eq!(usize::from(u16::from_be_bytes([f[16], f[17]])), f.len() - 14);
        }
    }
}
