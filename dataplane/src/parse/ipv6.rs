//! IPv6 header and its extension headers.
//!
//! *Threads*: any; functions of bytes. *Limits*: [`MAX_EXTENSIONS`] headers; hop-by-hop options are stepped over, not
//! carried out. *Sources*: RFC 8200 sections 3 and 4, RFC 4302 section 2.2, RFC 6946.

use std::net::Ipv6Addr;

use super::{Atomic, Fragment, IpHeader, be16, be32};
use crate::drop::DropReason;

/// Length of the fixed header, bytes.
pub const HEADER: usize = 40;

/// Where the source address is in it.
pub const SOURCE_AT: u8 = 8;
/// Where the destination address is.
pub const DESTINATION_AT: u8 = 24;

/// Most extension headers walked; what has more is INVALID.
pub const MAX_EXTENSIONS: usize = 32;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION: u8 = 60;

/// What stands at one place of a chain of headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An extension header: the protocol behind it, and its length as it says.
    Extension {
        /// Next header.
        next: u8,
        /// Bytes.
        size: usize,
    },
    /// The same, a fragment header: with its field of offset and flag.
    Fragment {
        /// Next header.
        next: u8,
        /// Offset in bytes, and in the last bit whether more follow.
        field: u16,
    },
    /// The transport, or a header that is not known.
    End,
    /// An extension header is cut short.
    Cut,
    /// Nothing follows, not even a transport.
    Nothing,
}

impl Link {
    /// Bytes of a fragment header.
    pub const FRAGMENT: usize = 8;

    /// The link of protocol `proto` whose bytes are at the beginning of `b`.
    pub fn read(proto: u8, b: &[u8]) -> Self {
        match (proto, b) {
            (HOP_BY_HOP | ROUTING | DESTINATION, [next, length, ..]) => {
                Self::Extension { next: *next, size: (usize::from(*length) + 1) * 8 }
            }
            (AUTHENTICATION, [next, length, ..]) => {
                Self::Extension { next: *next, size: (usize::from(*length) + 2) * 4 }
            }
            (FRAGMENT, [next, _, high, low, ..]) => {
                Self::Fragment { next: *next, field: u16::from_be_bytes([*high, *low]) }
            }
            (HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT, _) => Self::Cut,
            (NO_NEXT_HEADER, _) => Self::Nothing,
            _ => Self::End,
        }
    }
}

/// Parses the header of RFC 8200 section 3 and walks the extension headers to the transport.
///
/// An atomic fragment (RFC 6946: offset 0, no more) is a whole packet, with a header too many: [`take_out_fragment`]. A
/// later fragment's walk ends at its fragment header: what follows is payload. A chain that breaks off, and one at whose end nothing follows, make the packet
/// INVALID; a header whose length leads beyond the packet ends the walk at the packet's end, with what it says is next, as in
/// `linux/net/ipv6/exthdrs_core.c` (`ipv6_skip_exthdr`).
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
    let (mut proto, mut l4) = (b[6], HEADER);
    let (mut fragment, mut atomic, mut invalid): (Option<Fragment>, _, _) = (None, None, None);
    let mut named_at = 6;
    for n in 0.. {
        if fragment.is_some_and(|f| f.offset != 0) {
            break;
        }
        let (next, size) = match Link::read(proto, &b[l4..len]) {
            Link::End => break,
            Link::Nothing => {
                invalid = Some(DropReason::InvalidNoNextHeader);
                break;
            }
            // A node that forwards looks at the hop-by-hop options behind the fixed header, and finds them broken.
            Link::Cut if proto == HOP_BY_HOP && n == 0 => return Err(DropReason::Ipv6Extension),
            Link::Extension { size, .. } if proto == HOP_BY_HOP && n == 0 && l4 + size > len => {
                return Err(DropReason::Ipv6Extension);
            }
            Link::Extension { .. } | Link::Fragment { .. } if n == MAX_EXTENSIONS => {
                invalid = Some(DropReason::InvalidExtension);
                break;
            }
            Link::Cut => {
                invalid = Some(DropReason::InvalidExtension);
                break;
            }
            Link::Extension { next, size } => (next, size),
            Link::Fragment { next, field } => {
                if fragment.is_some() || atomic.is_some() {
                    return Err(DropReason::Ipv6Extension);
                }
                if l4 + Link::FRAGMENT > len {
                    invalid = Some(DropReason::InvalidExtension);
                    break;
                }
                let (offset, more) = (u32::from(field & 0xfff8), field & 1 == 1);
                if more || offset != 0 {
                    fragment = Some(Fragment { id: be32(b, l4 + 4), offset, more, header: l4 });
                } else {
                    atomic = Some(Atomic { header: l4, named_at });
                }
                (next, Link::FRAGMENT)
            }
        };
        (proto, named_at) = (next, l4);
        l4 = (l4 + size).min(len);
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
        invalid,
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
