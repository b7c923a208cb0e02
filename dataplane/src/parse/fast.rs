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
        if word(f, 0) & MAC_BITS != mac_word(self.mac) {
            return None;
        }
        // EtherType and version, and for IPv4 the header's length.
        let kind = word(f, L3 - 2) & 0xff_ffff;
        if kind == u64::from(ether::IPV4.swap_bytes()) | 0x45 << 16 {
            self.look4::<L3, N4>(f, frame, verify).map(v4)
        } else if kind & 0xf0_ffff == u64::from(ether::IPV6.swap_bytes()) | 0x60 << 16 && self.ipv6 {
            self.look6::<L3, N6>(frame.first_chunk::<N6>()?, frame, verify).map(v6)
        } else {
            None
        }
    }

    /// A packet of version 4 without options. Its header and the transport header behind it are read in words of eight bytes,
    /// the first of which begins with the EtherType.
    #[inline(always)]
    fn look4<const L3: usize, const N: usize>(&self, f: &[u8; N], frame: &[u8], verify: bool) -> Option<Sight<Key4>> {
        let [start, middle, addresses, head] = [word(f, L3 - 2), word(f, L3 + 6), word(f, L3 + 12), word(f, L3 + 20)];
        let len = ((start >> 32 & 0xffff) as u16).swap_bytes();
        let protocol = (middle >> 24 & 0xff) as u8;
        // No fragment, and it may live for another hop.
        let usual = (middle & 0xff3f == 0) & (middle >> 16 & 0xff > 1);
        // The middle ends with the first half of the source, and so does the header's sum without it.
        let sum = checksum::carry(checksum::carry(start >> 16, middle), addresses >> 16);
        if !(usual & checksum::is_complete(sum)) {
            return None;
        }
        let payload = frame.get(L3 + ipv4::HEADER..L3 + usize::from(len))?;
        let behind = payload.get(l4::UDP_HEADER..)?;
        // In bounds, by the slices above.
        let pseudo = checksum::carry(checksum::swapped(u16::from(protocol), len.wrapping_sub(20)), addresses);
        transport(protocol, head, payload, behind, verify, pseudo)?;
        let ports = ((head & 0xffff_ffff) as u32).swap_bytes();
        let key = Key4::new(addresses.swap_bytes(), ports, protocol, self.ct_zone);
        Some(Sight { key, hash: 0, hint: NO_HINT, len, tcp: protocol == proto::TCP })
    }

    /// A packet of version 6 without extension headers.
    #[inline(always)]
    fn look6<const L3: usize, const N: usize>(&self, f: &[u8; N], frame: &[u8], verify: bool) -> Option<Sight<Key6>> {
        let (data, protocol) = (be16(f, L3 + 4), f[L3 + 6]);
        let len = data.checked_add(40)?;
        let payload = frame.get(L3 + ipv6::HEADER..L3 + usize::from(len))?;
        let behind = payload.get(l4::UDP_HEADER..)?;
        if f[L3 + 7] <= 1 {
            return None;
        }
        let [a, b, c, d] = [word(f, L3 + 8), word(f, L3 + 16), word(f, L3 + 24), word(f, L3 + 32)];
        let addresses = checksum::carry(checksum::carry(a, b), checksum::carry(c, d));
        let pseudo = checksum::carry(checksum::swapped(u16::from(protocol), data), addresses);
        let head = word(f, L3 + 40);
        transport(protocol, head, payload, behind, verify, pseudo)?;
        let addresses = [a.swap_bytes(), b.swap_bytes(), c.swap_bytes(), d.swap_bytes()];
        let key = Key6::new(addresses, ((head & 0xffff_ffff) as u32).swap_bytes(), protocol, self.ct_zone);
        Some(Sight { key, hash: 0, hint: NO_HINT, len, tcp: protocol == proto::TCP })
    }
}

/// The bytes of a word that a MAC address takes.
const MAC_BITS: u64 = 0xffff_ffff_ffff;

/// A MAC address as a word: its first byte is the lowest.
#[inline(always)]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The eight bytes at `at`, the first of which is the lowest; the caller has checked the bounds.
#[inline(always)]
fn word<const N: usize>(h: &[u8; N], at: usize) -> u64 {
    // One load: bytes put together would be loaded one by one where not all are used.
    h[at..].first_chunk::<8>().map_or(0, |w| u64::from_le_bytes(*w))
}

/// Whether the transport header is usual, and the checksum over all that IP carries right or absent. `head`: the first eight
/// bytes of `payload` as a word; `behind`: the rest.
#[inline(always)]
fn transport(protocol: u8, head: u64, payload: &[u8], behind: &[u8], mut verify: bool, pseudo: u64) -> Option<()> {
    if protocol == proto::UDP {
        let len = usize::from(((head >> 32 & 0xffff) as u16).swap_bytes());
        if len < l4::UDP_HEADER || len > payload.len() {
            return None;
        }
        verify &= head >> 48 != 0;
    } else if protocol == proto::TCP {
        let fixed = payload.first_chunk::<{ tcp::TCP_HEADER }>()?;
        let header = usize::from(fixed[12] >> 4) * 4;
        let plain = fixed[13] & (SYN | FIN | RST | URG | ACK) == ACK;
        if !plain || header < tcp::TCP_HEADER || header > payload.len() {
            return None;
        }
    } else {
        return None;
    }
    let right = !verify || checksum::is_complete(checksum::add_swapped(checksum::carry(pseudo, head), behind));
    right.then_some(())
}
