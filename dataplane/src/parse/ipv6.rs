//! IPv6 header and its extension headers.

use std::net::Ipv6Addr;

use super::{Atomic, Fragment, IpHeader, be16, be32};
use crate::drop::DropReason;

/// Length of the fixed header, bytes.
pub const HEADER: usize = 40;

/// Most extension headers walked.
pub const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Parses the header of RFC 8200 section 3 and walks the extension headers to the transport.
///
/// An atomic fragment (RFC 6946: offset 0, no more) is a whole packet, with a header too many: [`take_out_fragment`]. A later fragment's walk ends at its fragment
/// header: what follows is payload.
///
/// # Errors
/// `ipv6_truncated`, `ipv6_version`, `ipv6_extension`.
pub fn parse(b: &[u8]) -> Result<IpHeader, DropReason> {
    if b.len() < HEADER {
        return Err(DropReason::Ipv6Truncated);
    }
    if b[0] >> 4 != 6 {
        return Err(DropReason::Ipv6Version);
    }
    let len = HEADER + usize::from(be16(b, 4));
    if len > b.len() {
        return Err(DropReason::Ipv6Truncated);
    }
    let (mut proto, mut l4, mut fragment, mut atomic) = (b[6], HEADER, None, None);
    let mut named_at = 6;
    for n in 0.. {
        let known = matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION);
        if !known || fragment.is_some_and(|f: Fragment| f.offset != 0) {
            break;
        }
        if n == MAX_EXTENSIONS || l4 + 8 > len {
            return Err(DropReason::Ipv6Extension);
        }
        let size = match proto {
            FRAGMENT => {
                let field = be16(b, l4 + 2);
                let (offset, more) = (u32::from(field & 0xfff8), field & 1 == 1);
                if fragment.is_some() || atomic.is_some() {
                    return Err(DropReason::Ipv6Extension);
                }
                if more || offset != 0 {
                    fragment = Some(Fragment { id: be32(b, l4 + 4), offset, more, header: l4 });
                } else {
                    atomic = Some(Atomic { header: l4, named_at });
                }
                8
            }
            AUTHENTICATION => (usize::from(b[l4 + 1]) + 2) * 4,
            _ => (usize::from(b[l4 + 1]) + 1) * 8,
        };
        proto = b[l4];
        named_at = l4;
        l4 += size;
        if l4 > len {
            return Err(DropReason::Ipv6Extension);
        }
    }
    let address = |at: usize| {
        let mut a = [0; 16];
        a.copy_from_slice(&b[at..at + 16]);
        Ipv6Addr::from(a)
    };
    Ok(IpHeader {
        src: address(8).into(),
        dst: address(24).into(),
        proto,
        l4,
        len,
        ttl: b[7],
        fragment,
        atomic,
        dont_fragment: true,
    })
}

/// Takes the header of an atomic fragment out of the packet that begins at `l3`: what is before it moves eight bytes
/// towards the end, and the frame's first eight bytes are free.
pub fn take_out_fragment(frame: &mut [u8], l3: usize, atomic: Atomic) {
    let at = l3 + atomic.header;
    frame[l3 + atomic.named_at] = frame[at];
    let length = be16(frame, l3 + 4).saturating_sub(8);
    frame[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
    frame.copy_within(0..at, 8);
}
