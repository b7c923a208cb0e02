//! Ethernet frames with one UDP datagram over IPv4, whole or in two fragments, every checksum right.

use crate::flow::Endpoints;

/// Payload of the shortest frame that Ethernet allows: 60 bytes (64 on the wire, with the FCS).
pub const SHORTEST: u16 = 18;
/// Payload of the longest frame on a link of 1,500 bytes.
pub const LONGEST: u16 = 1500 - 28;

/// A MAC address.
pub type Mac = [u8; 6];

const ETH_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP_LEN: u16 = 8;
const UDP: u8 = 17;
/// More fragments follow: RFC 791 section 3.1.
const MORE: u16 = 0x2000;

/// The frame from station `from` to station `to` with `payload` zeros; an even number of them.
pub fn udp(to: Mac, from: Mac, at: Endpoints, payload: u16) -> Vec<u8> {
    let length = UDP_LEN + payload;
    let mut udp = vec![0; usize::from(length)];
    udp[..2].copy_from_slice(&at.sport.to_be_bytes());
    udp[2..4].copy_from_slice(&at.dport.to_be_bytes());
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    // The pseudo header: both addresses, the protocol and the UDP length.
    let words = |a: std::net::Ipv4Addr| (a.to_bits() >> 16) + (a.to_bits() & 0xffff);
    let pseudo = words(at.source) + words(at.destination) + u32::from(UDP) + u32::from(length);
    let sum = match checksum(pseudo, &udp) {
        0 => 0xffff, // RFC 768: zero means that there is none
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(to, from, at, 0, 0, &udp)
}

/// The same in two fragments as long as each other, but for 8 bytes at most. `id` tells datagrams apart.
pub fn halves(to: Mac, from: Mac, at: Endpoints, payload: u16, id: u16) -> [Vec<u8>; 2] {
    let whole = udp(to, from, at, payload);
    let data = &whole[ETH_LEN + IPV4_LEN..];
    let half = data.len() / 2 / 8 * 8;
    let units = u16::try_from(half / 8).unwrap_or(0);
    [packet(to, from, at, id, MORE, &data[..half]), packet(to, from, at, id, units, &data[half..])]
}

/// One IPv4 packet; `field` is the word with flags and fragment offset.
fn packet(to: Mac, from: Mac, at: Endpoints, id: u16, field: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETH_LEN + IPV4_LEN];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..ETH_LEN].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[ETH_LEN..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&u16::try_from(IPV4_LEN + data.len()).unwrap_or(u16::MAX).to_be_bytes());
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[6..8].copy_from_slice(&field.to_be_bytes());
    ip[8] = 64;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&at.source.octets());
    ip[16..20].copy_from_slice(&at.destination.octets());
    let sum = checksum(0, ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(data);
    frame
}

/// The internet checksum of `bytes`, an even number of them, on top of `sum`.
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let sum = bytes.chunks_exact(2).fold(sum, |s, w| s + u32::from(u16::from_be_bytes([w[0], w[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Case, Flow};

    const TO: Mac = [2, 0, 0, 0, 0, 1];
    const FROM: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn the_checksums_of_every_frame_verify() {
        for i in (0..1_000_000).step_by(997) {
            let flow = Flow::number(i, Case::Snat);
            for at in [flow.original, flow.reply] {
                for payload in [SHORTEST, LONGEST] {
                    let frame = udp(TO, FROM, at, payload);
                    assert_eq!(checksum(0, &frame[14..34]), 0, "IPv4 header of flow {i}");
                    // Addresses, protocol and length are the pseudo header; then header and data.
                    let pseudo = u32::from(17 + 8 + payload);
                    assert_eq!(checksum(pseudo, &frame[26..]), 0, "UDP of flow {i}");
                }
            }
        }
    }

    #[test]
    fn a_frame_reads_as_written() {
        let at = Flow::number(0, Case::Stateful).original;
        let frame = udp(TO, FROM, at, SHORTEST);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        assert_eq!(frame[26..30], at.source.octets());
        assert_eq!(frame[30..34], at.destination.octets());
        assert_eq!(frame[34..38], [4, 0, 0, 53]);
    }

    #[test]
    fn two_fragments_are_the_datagram() {
        let at = Flow::number(0, Case::Stateful).original;
        let whole = udp(TO, FROM, at, LONGEST);
        let [first, last] = halves(TO, FROM, at, LONGEST, 7);
        assert_eq!([&first[34..], &last[34..]].concat(), whole[34..]);
        assert_eq!((&first[18..22], first.len()), (&[0, 7, 0x20, 0][..], 34 + 736));
        assert_eq!((&last[18..22], last.len()), (&[0, 7, 0, 92][..], 34 + 744));
        for f in [&first, &last] {
            assert_eq!(checksum(0, &f[14..34]), 0);
            assert_eq!(usize::from(u16::from_be_bytes([f[16], f[17]])), f.len() - 14);
        }
    }
}
