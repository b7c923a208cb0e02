//! Cutting an IPv4 packet into fragments that fit the next link.
//!
//! *Threads*: any; functions of bytes. *Limits*: a packet becomes at most [`MAX_FRAGMENTS`]. *Sources*: RFC 791 section 3.2.

use crate::parse::{be16, checksum, ipv4};

/// 9,000 bytes over a link of the smallest MTU that is configurable, with room for longest headers.
pub const MAX_FRAGMENTS: usize = 16;

/// Where fragment `n` of an IPv4 packet of `len` bytes with `header` bytes of header begins and ends in the packet's
/// payload, for `mtu`; `None` beyond the last.
pub fn piece(header: usize, len: usize, mtu: usize, n: usize) -> Option<(usize, usize)> {
    let payload = len.checked_sub(header)?;
    let step = mtu.checked_sub(header)? / 8 * 8;
    let start = n.checked_mul(step).filter(|&s| step > 0 && s < payload)?;
    Some((start, (start + step).min(payload)))
}

/// Writes one fragment of the IPv4 packet `packet` (header first) into `out`; gives its length. Options that are not
/// copied (RFC 791: copied flag clear) become no-operations in later fragments.
pub fn write(out: &mut [u8], packet: &[u8], (start, end): (usize, usize)) -> Option<usize> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let len = header + (end - start);
    let field = be16(packet, 6);
    let offset = usize::from(field & 0x1fff) + start / 8;
    let last = header + end >= packet.len();
    let more = u16::from(!last) << 13 | field & 0x2000;
    let out = out.get_mut(..len)?;
    out[..header].copy_from_slice(&packet[..header]);
    out[header..].copy_from_slice(packet.get(header + start..header + end)?);
    if start > 0 {
        blank_uncopied_options(&mut out[ipv4::HEADER..header]);
    }
    out[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
    out[6..8].copy_from_slice(&(u16::try_from(offset).ok()? & 0x1fff | more).to_be_bytes());
    out[10..12].copy_from_slice(&[0, 0]);
    let sum = !checksum::sum(&out[..header]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

fn blank_uncopied_options(options: &mut [u8]) {
    let mut i = 0;
    while i < options.len() {
        let size = match options[i] {
            0 => return,
            1 => 1,
            _ => usize::from(options.get(i + 1).copied().unwrap_or(0)),
        };
        if size == 0 || i + size > options.len() {
            return;
        }
        if options[i] & 0x80 == 0 {
            options[i..i + size].fill(1);
        }
        i += size;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fragments_put_together_are_the_packet(payload in proptest::collection::vec(any::<u8>(), 1..3000), words in 0usize..=10, mtu in 68usize..1500) {
            let header = 20 + words * 4;
            prop_assume!(mtu >= header + 8);
            let mut packet = vec![1u8; header]; // options: no-operations
            packet[..20].fill(0);
            packet[0] = 0x40 | (header / 4) as u8;
            packet.extend(&payload);
            let len = packet.len();
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let mut whole = vec![0; payload.len()];
            let mut n = 0;
            while let Some(cut) = piece(header, len, mtu, n) {
                let mut out = vec![0; mtu];
                let size = write(&mut out, &packet, cut).expect("fits");
                prop_assert!(size <= mtu);
                prop_assert_eq!(checksum::sum(&out[..header]), 0xffff);
                let field = be16(&out, 6);
                let at = usize::from(field & 0x1fff) * 8;
                whole[at..at + size - header].copy_from_slice(&out[header..size]);
                n += 1;
                prop_assert_eq!(field & 0x2000 == 0, piece(header, len, mtu, n).is_none());
            }
            prop_assert_eq!(whole, payload);
        }
    }
}
