//! 60-byte Ethernet frames (64 on the wire, with the FCS): IPv4, UDP, 18 bytes of payload, every checksum right.

use crate::flow::Endpoints;

/// Length without the FCS: the shortest that Ethernet allows.
pub const FRAME_LEN: usize = 60;

/// A MAC address.
pub type Mac = [u8; 6];

const ETH_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const UDP: u8 = 17;

/// The frame from station `from` to station `to`.
pub fn udp(to: Mac, from: Mac, at: Endpoints) -> [u8; FRAME_LEN] {
    const IP_TOTAL: u16 = 46;
    const UDP_TOTAL: u16 = 26;

    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..ETH_LEN].copy_from_slice(&[0x08, 0x00]);

    let ip = &mut frame[ETH_LEN..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&IP_TOTAL.to_be_bytes());
    ip[8] = 64;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&at.source.octets());
    ip[16..20].copy_from_slice(&at.destination.octets());
    let sum = checksum(0, &ip[..IPV4_LEN]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    // The pseudo header: both addresses, the protocol and the UDP length.
    let pseudo: u32 = ip[12..20].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>()
        + u32::from(UDP)
        + u32::from(UDP_TOTAL);
    let udp = &mut ip[IPV4_LEN..];
    udp[..2].copy_from_slice(&at.sport.to_be_bytes());
    udp[2..4].copy_from_slice(&at.dport.to_be_bytes());
    udp[4..6].copy_from_slice(&UDP_TOTAL.to_be_bytes());
    let sum = match checksum(pseudo, udp) {
        0 => 0xffff, // RFC 768: zero means that there is none
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
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
                let frame = udp(TO, FROM, at);
                assert_eq!(checksum(0, &frame[14..34]), 0, "IPv4 header of flow {i}");
                // Addresses, protocol and length are the pseudo header; then header and data.
                let pseudo = 17 + 26;
                assert_eq!(checksum(pseudo, &frame[26..60]), 0, "UDP of flow {i}");
            }
        }
    }

    #[test]
    fn a_frame_reads_as_written() {
        let at = Flow::number(0, Case::Stateful).original;
        let frame = udp(TO, FROM, at);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        assert_eq!(frame[26..30], at.source.octets());
        assert_eq!(frame[30..34], at.destination.octets());
        assert_eq!(frame[34..38], [4, 0, 0, 53]);
    }
}
