//! IPv6 header and its extension headers.

use std::net::Ipv6Addr;

use super::{Fragment, IpHeader, be16, be32};
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
/// An atomic fragment (RFC 6946: offset 0, no more) is a whole packet. A later fragment's walk ends at its fragment
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
    let (mut proto, mut l4, mut fragment) = (b[6], HEADER, None);
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
                if fragment.is_some() {
                    return Err(DropReason::Ipv6Extension);
                }
                if more || offset != 0 {
                    fragment = Some(Fragment { id: be32(b, l4 + 4), offset, more, header: l4 });
                }
                8
            }
            AUTHENTICATION => (usize::from(b[l4 + 1]) + 2) * 4,
            _ => (usize::from(b[l4 + 1]) + 1) * 8,
        };
        proto = b[l4];
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
        dont_fragment: true,
    })
}
