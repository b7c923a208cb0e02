//! What a hop does to a usual packet, in one pass over its headers: TTL, and with it addresses, ports and checksums.
//!
//! *Threads*: any; functions of bytes. *Sources*: as [`super::rewrite`], whose result this is for such packets.

use super::rewrite::put16;
use crate::conntrack::tuple::{Key, Key4, Key6};
use crate::parse::checksum::Delta;
use crate::parse::{be16, ipv4, ipv6};

/// A tuple that usual packets have.
pub trait Wire: Key {
    /// Lowers the TTL of the packet `ip` that has this tuple, and gives it the one to which a packet with tuple `answered_by`
    /// is the answer. `ip` begins with a header without options and at least eight bytes of UDP or twenty of TCP behind it;
    /// shorter ones stay as they are.
    fn forward(&self, ip: &mut [u8], answered_by: Option<&Self>, tcp: bool);
}

/// Where a UDP header has its checksum.
const UDP_SUM: usize = 6;
/// Where a TCP header has its checksum.
const TCP_SUM: usize = 16;

/// A TTL of one, in its word of the header.
const TTL_ONE: u16 = 0x0100;
/// Where the TTL stands in the word that begins with the identification.
const TTL_SHIFT: u32 = 24;

impl Wire for Key4 {
    #[inline(always)]
    fn forward(&self, ip: &mut [u8], answered_by: Option<&Self>, tcp: bool) {
        let Some((h, payload)) = ip.split_first_chunk_mut::<{ ipv4::HEADER }>() else { return };
        // TTL and checksum are written together: identification, flags, TTL, protocol and checksum as one word.
        let mut word = u64::from_be_bytes([h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11]]);
        let mut sum = (word & 0xffff) as u16;
        if let Some(answer) = answered_by {
            let (old, new) = (self.addresses(), answer.addresses().rotate_left(32));
            let addresses = Delta::default().replace64(old, new);
            sum = addresses.and(Delta::default().replace16(TTL_ONE, 0)).apply(sum);
            h[12..20].copy_from_slice(&new.to_be_bytes());
            transport(payload, addresses, self.ports(), answer.ports().rotate_left(16), tcp);
        } else {
            // The same for the TTL alone: one less in the upper byte of a word is one more here, with the carry.
            sum = sum.wrapping_add(TTL_ONE).wrapping_add(u16::from(sum >= !TTL_ONE));
        }
        word = (word & !0xffff | u64::from(sum)).wrapping_sub(1 << TTL_SHIFT);
        h[4..12].copy_from_slice(&word.to_be_bytes());
    }
}

impl Wire for Key6 {
    #[inline(always)]
    fn forward(&self, ip: &mut [u8], answered_by: Option<&Self>, tcp: bool) {
        let Some((h, payload)) = ip.split_first_chunk_mut::<{ ipv6::HEADER }>() else { return };
        h[7] = h[7].wrapping_sub(1);
        if let Some(answer) = answered_by {
            let [a, b, c, d] = answer.addresses();
            let (old, new) = (self.addresses(), [c, d, a, b]);
            let addresses = (0..4).fold(Delta::default(), |delta, n| delta.replace64(old[n], new[n]));
            for (to, half) in h[8..].as_chunks_mut::<8>().0.iter_mut().zip(new) {
                *to = half.to_be_bytes();
            }
            transport(payload, addresses, self.ports(), answer.ports().rotate_left(16), tcp);
        }
    }
}

/// Gives a transport header these ports. `addresses`: what changed of the pseudo header.
#[inline(always)]
fn transport(payload: &mut [u8], addresses: Delta, old: u32, new: u32, tcp: bool) {
    let at = if tcp { TCP_SUM } else { UDP_SUM };
    let Some(head) = payload.get_mut(..at + 2) else { return };
    head[..4].copy_from_slice(&new.to_be_bytes());
    let field = be16(head, at);
    if !tcp && field == 0 {
        return; // RFC 768: there is none
    }
    let sum = addresses.replace32(old, new).apply(field);
    put16(head, at, if !tcp && sum == 0 { 0xffff } else { sum });
}
