//! The usual frame, read straight: Ethernet with the tag that the interface wants, IPv4 without options or IPv6 without
//! extension headers, no fragment, with UDP or a TCP segment that only carries data or acknowledges some.
//!
//! What is not usual, or broken in any way, is left to [`super::frame`], which says what is wrong with it; what is
//! [`Sight`]ed here, that function accepts with the same tuple and lengths. *Threads*: any; functions of bytes.
//! *Sources*: as [`super`].

use super::{be16, checksum, ether, ipv4, ipv6, l4, tcp};
use crate::conntrack::tcp::{ACK, FIN, RST, SYN, URG};
use crate::conntrack::tuple::{Key4, Key6, proto};
use crate::io::RxChecksum;

/// How a port's usual frames begin.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// MAC address of the interface.
    pub mac: [u8; 6],
    /// VLAN of the wire.
    pub vlan: Option<u16>,
    /// Whether to verify transport checksums.
    pub verify: bool,
    /// Conntrack zone of what comes in here.
    pub ct_zone: u16,
    /// Whether IPv6 is read here: not where prefixes are translated, which comes before all else.
    pub ipv6: bool,
}

/// No candidate for a packet's connection.
pub const NO_HINT: u32 = u32::MAX;

/// A usual packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight<K> {
    /// Its tuple.
    pub key: K,
    /// Keyed hash of that, once computed.
    pub hash: u64,
    /// What the table's index has for that hash; [`NO_HINT`] where nothing.
    pub hint: u32,
    /// Length of the IP packet, bytes.
    pub len: u16,
    /// Whether it is TCP, else UDP.
    pub tcp: bool,
}

/// Bytes of a packet that are there before it is looked at: the shortest usual one.
const IP4: usize = ipv4::HEADER + l4::UDP_HEADER;
const IP6: usize = ipv6::HEADER + l4::UDP_HEADER;

impl Station {
    /// Length of the link header of usual frames, bytes.
    #[inline(always)]
    pub const fn l2_len(&self) -> usize {
        ether::length(self.vlan)
    }

    /// Looks at a frame; what `v4` or `v6` makes of it, where it is usual. They are called where all that they get is still in
    /// registers.
    #[inline(always)]
    pub fn look<R>(
        &self,
        frame: &[u8],
        hardware: RxChecksum,
        v4: impl FnOnce(Sight<Key4>) -> R,
        v6: impl FnOnce(Sight<Key6>) -> R,
    ) -> Option<R> {
        let verify = self.verify && hardware != RxChecksum::Good;
        if self.vlan.is_some() {
            return self.look_tagged(frame, verify, v4, v6);
        }
        self.look_at::<{ ether::HEADER }, { ether::HEADER + IP4 }, { ether::HEADER + IP6 }, R>(frame, verify, v4, v6)
    }

    #[inline(never)]
    fn look_tagged<R>(
        &self,
        frame: &[u8],
        verify: bool,
        v4: impl FnOnce(Sight<Key4>) -> R,
        v6: impl FnOnce(Sight<Key6>) -> R,
    ) -> Option<R> {
        const L3: usize = ether::HEADER + ether::TAG;
        let link = frame.first_chunk::<L3>()?;
        if be16(link, 12) != ether::VLAN || be16(link, 14) & 0xfff != self.vlan? {
            return None;
        }
        self.look_at::<L3, { L3 + IP4 }, { L3 + IP6 }, R>(frame, verify, v4, v6)
    }

    /// Looks at a frame whose network header is at `L3`; `N4` and `N6` are the lengths of the shortest ones.
    #[inline(always)]
    fn look_at<const L3: usize, const N4: usize, const N6: usize, R>(
        &self,
        frame: &[u8],
        verify: bool,
        v4: impl FnOnce(Sight<Key4>) -> R,
        v6: impl FnOnce(Sight<Key6>) -> R,
    ) -> Option<R> {
        let f = frame.first_chunk::<N4>()?;
        if word(f, 0) & MAC_BITS != mac_word(self.mac).to_le() {
            return None;
        }
        match be16(f, L3 - 2) {
            ether::IPV4 => self.look4::<L3, N4>(f, frame, verify).map(v4),
            ether::IPV6 if self.ipv6 => self.look6::<L3, N6>(frame.first_chunk::<N6>()?, frame, verify).map(v6),
            _ => None,
        }
    }

    #[inline(always)]
    fn look4<const L3: usize, const N: usize>(&self, f: &[u8; N], frame: &[u8], verify: bool) -> Option<Sight<Key4>> {
        let (len, protocol) = (be16(f, L3 + 2), f[L3 + 9]);
        let payload = frame.get(L3 + ipv4::HEADER..L3 + usize::from(len))?;
        // Version 4 without options, no fragment, and it may live for another hop.
        let usual = (f[L3] == 0x45) & (be16(f, L3 + 6) & 0x3fff == 0) & (f[L3 + 8] > 1);
        let last = u64::from(u32::from_ne_bytes([f[L3 + 16], f[L3 + 17], f[L3 + 18], f[L3 + 19]]));
        let sum = checksum::carry(checksum::carry(word(f, L3), word(f, L3 + 8)), last);
        if !(usual & checksum::is_complete(sum)) {
            return None;
        }
        let addresses = word(f, L3 + 12);
        let data = len.checked_sub(20)?;
        let pseudo = checksum::carry(checksum::native(u16::from(protocol), data), addresses);
        let ports = u32::from_be_bytes([f[L3 + 20], f[L3 + 21], f[L3 + 22], f[L3 + 23]]);
        if !transport(protocol, payload, verify, pseudo) {
            return None;
        }
        let key = Key4::new(u64::from_be(addresses), ports, protocol, self.ct_zone);
        Some(Sight { key, hash: 0, hint: NO_HINT, len, tcp: protocol == proto::TCP })
    }

    #[inline(always)]
    fn look6<const L3: usize, const N: usize>(&self, f: &[u8; N], frame: &[u8], verify: bool) -> Option<Sight<Key6>> {
        let (data, protocol) = (be16(f, L3 + 4), f[L3 + 6]);
        let len = data.saturating_add(40);
        let payload = frame.get(L3 + ipv6::HEADER..L3 + usize::from(len))?;
        if f[L3] >> 4 != 6 || f[L3 + 7] <= 1 || len == u16::MAX {
            return None;
        }
        let words = [word(f, L3 + 8), word(f, L3 + 16), word(f, L3 + 24), word(f, L3 + 32)];
        let pseudo = words.iter().fold(checksum::native(u16::from(protocol), data), |acc, &w| checksum::carry(acc, w));
        let ports = u32::from_be_bytes([f[L3 + 40], f[L3 + 41], f[L3 + 42], f[L3 + 43]]);
        if !transport(protocol, payload, verify, pseudo) {
            return None;
        }
        let [a, b, c, d] = words;
        let addresses = [u64::from_be(a), u64::from_be(b), u64::from_be(c), u64::from_be(d)];
        let key = Key6::new(addresses, ports, protocol, self.ct_zone);
        Some(Sight { key, hash: 0, hint: NO_HINT, len, tcp: protocol == proto::TCP })
    }
}

/// The bytes of a word that a MAC address takes.
const MAC_BITS: u64 = 0xffff_ffff_ffff_u64.to_le();

/// A MAC address as a word: its first byte is the lowest.
#[inline(always)]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The eight bytes at `at`, in the machine's order; the caller has checked the bounds.
#[inline(always)]
fn word<const N: usize>(h: &[u8; N], at: usize) -> u64 {
    u64::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3], h[at + 4], h[at + 5], h[at + 6], h[at + 7]])
}

/// Whether the transport header is usual, and the checksum over all that IP carries right or absent.
#[inline(always)]
fn transport(protocol: u8, payload: &[u8], mut verify: bool, pseudo: u64) -> bool {
    let Some(head) = payload.first_chunk::<{ l4::UDP_HEADER }>() else { return false };
    if protocol == proto::UDP {
        let len = usize::from(be16(head, 4));
        if len < l4::UDP_HEADER || len > payload.len() {
            return false;
        }
        verify &= be16(head, 6) != 0;
    } else if protocol == proto::TCP {
        let Some(fixed) = payload.first_chunk::<{ tcp::TCP_HEADER }>() else { return false };
        let header = usize::from(fixed[12] >> 4) * 4;
        let plain = fixed[13] & (SYN | FIN | RST | URG | ACK) == ACK;
        if !plain || header < tcp::TCP_HEADER || header > payload.len() {
            return false;
        }
    } else {
        return false;
    }
    !verify || checksum::is_complete(checksum::add_native(pseudo, payload))
}
