//! IPv4 header.

use std::net::Ipv4Addr;

use super::{Fragment, IpHeader, be16, be32, checksum};
use crate::drop::DropReason;

/// Shortest header, bytes.
pub const HEADER: usize = 20;

/// Parses and verifies the header of RFC 791 section 3.1; the five checks of RFC 1812 section 5.2.2.
///
/// # Errors
/// `ipv4_truncated`, `ipv4_version`, `ipv4_header_length`, `ipv4_checksum`.
#[inline]
pub fn parse(b: &[u8]) -> Result<IpHeader, DropReason> {
    if b.len() < HEADER {
        return Err(DropReason::Ipv4Truncated);
    }
    if b[0] >> 4 != 4 {
        return Err(DropReason::Ipv4Version);
    }
    let header = usize::from(b[0] & 0x0f) * 4;
    let len = usize::from(be16(b, 2));
    if header < HEADER || header > len {
        return Err(DropReason::Ipv4HeaderLength);
    }
    if len > b.len() {
        return Err(DropReason::Ipv4Truncated);
    }
    if checksum::sum(&b[..header]) != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    let flags = be16(b, 6);
    let (more, offset) = (flags & 0x2000 != 0, u32::from(flags & 0x1fff) * 8);
    let fragment = (more || offset != 0).then(|| Fragment { id: u32::from(be16(b, 4)), offset, more, header: 0 });
    Ok(IpHeader {
        src: Ipv4Addr::from_bits(be32(b, 12)).into(),
        dst: Ipv4Addr::from_bits(be32(b, 16)).into(),
        proto: b[9],
        l4: header,
        len,
        ttl: b[8],
        fragment,
        atomic: None,
        dont_fragment: flags & 0x4000 != 0,
        invalid: None,
    })
}
