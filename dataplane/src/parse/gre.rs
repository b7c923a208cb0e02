//! GRE: its version, and the key of version 1.
//!
//! *Threads*: any; functions of bytes. *Limits*: none; a header that is cut short counts as one without a key.
//! *Sources*: RFC 2784, RFC 2637 section 4.1; `linux/net/netfilter/nf_conntrack_proto_gre.c` (`gre_pkt_to_tuple`).

use super::be16;

/// Where the call id is in a header of version 1.
pub const CALL_ID: usize = 6;
/// Bytes that a header of version 1 has at least.
const HEADER: usize = 8;
/// The protocol that version 1 carries: PPP.
const PPP: u16 = 0x880b;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gre {
    /// Any version but 1, or cut short.
    Plain,
    /// Version 1, to the receiver's call of this id.
    Call(u16),
    /// Version 1 that carries something else than PPP.
    NotPpp,
}

/// Reads the header.
pub fn parse(b: &[u8]) -> Gre {
    if b.len() < HEADER || b[1] & 7 != 1 {
        Gre::Plain
    } else if be16(b, 2) == PPP {
        Gre::Call(be16(b, CALL_ID))
    } else {
        Gre::NotPpp
    }
}
