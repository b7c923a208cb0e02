//! TFTP: a request announces an answer from any port of the server.
//!
//! *Threads*: any. *Sources*: RFC 1350 section 5; `linux/net/netfilter/nf_conntrack_tftp.c`, which looks at the first two
//! bytes and no further.

/// Bytes of a datagram that say what it is.
pub const OPCODE: usize = 2;

/// Whether a datagram is a request to read or to write.
pub const fn is_request(payload: &[u8]) -> bool {
    matches!(payload, [0, 1 | 2, ..])
}

#[cfg(test)]
mod tests {
    use super::is_request;

    #[test]
    fn two_bytes_make_a_request() {
        assert!(is_request(b"\x00\x01file\x00octet\x00") && is_request(b"\x00\x02"));
        for other in [&b""[..], b"\x00", b"\x01\x00", b"\x00\x00", b"\x00\x03\x00\x01", b"\x00\x05", b"\x01\x01"] {
            assert!(!is_request(other), "{other:?}");
        }
    }
}
