//! Whether the checksums of an IP packet are right: read and computed here from the RFCs, with nothing of the gateway's own code.
//!
//! RFC 1071, RFC 768, RFC 3828, RFC 4340, RFC 4443, RFC 9260 appendix A; extension headers by RFC 8200 and RFC 4302.

/// One's complement sum of 16-bit words, the last padded with a zero.
pub fn ones(mut sum: u32, b: &[u8]) -> u32 {
    for word in b.chunks(2) {
        sum += u32::from(word[0]) * 256 + u32::from(*word.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum
}

/// CRC32c, bit by bit.
pub fn crc32c(b: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in b {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc % 2 == 1 { crc / 2 ^ 0x82f6_3b78 } else { crc / 2 };
        }
    }
    !crc
}

/// Asserts that all checksums of an IP packet are right that can be computed: its header's, its transport's, and the same of
/// what an ICMP error quotes, as far as that is there. Says whether the transport's was among them.
#[track_caller]
pub fn assert_right(b: &[u8]) -> bool {
    right(b, 0).unwrap_or_else(|what| panic!("{what} is wrong in {b:02x?}"))
}

/// Whether they all are.
pub fn is_right(b: &[u8]) -> bool {
    right(b, 0).is_ok()
}

fn right(b: &[u8], depth: u8) -> Result<bool, String> {
    let be = |at: usize| usize::from(b[at]) * 256 + usize::from(b[at + 1]);
    let v4 = b[0] >> 4 == 4;
    let (addresses, mut proto, mut l4, len, mut fragment) = if v4 {
        let header = usize::from(b[0] & 15) * 4;
        if b.len() >= header && ones(0, &b[..header]) != 0xffff {
            return Err(format!("the IPv4 header's checksum at depth {depth}"));
        }
        (&b[12..20], b[9], header, be(2), be(6) & 0x3fff != 0)
    } else {
        (&b[8..40], b[6], 40, 40 + be(4), false)
    };
    while !v4 && matches!(proto, 0 | 43 | 44 | 51 | 60) && l4 + 8 <= b.len() {
        fragment |= proto == 44;
        let size = match proto {
            44 => 8,
            51 => (usize::from(b[l4 + 1]) + 2) * 4,
            _ => (usize::from(b[l4 + 1]) + 1) * 8,
        };
        (proto, l4) = (b[l4], l4 + size);
    }
    if b.len() < len || fragment || l4 > len {
        return Ok(false);
    }
    let data = &b[l4..len];
    let pseudo = ones(ones(ones(0, addresses), &[0, proto]), &(data.len() as u16).to_be_bytes());
    let covered = |n: usize| if ones(pseudo, &data[..n]) == 0xffff { Ok(true) } else { Err(()) };
    let all = data.len();
    let verdict = match proto {
        6 | 33 => covered(all),
        17 if data[6..8] == [0, 0] => Ok(false),
        17 => covered(all),
        136 => match usize::from(data[4]) * 256 + usize::from(data[5]) {
            0 => covered(all),
            n => covered(n),
        },
        132 => {
            let zeroed = [&data[..8], &[0; 4], &data[12..]].concat();
            if data[8..12] == crc32c(&zeroed).to_le_bytes() { Ok(true) } else { Err(()) }
        }
        1 if v4 => {
            if ones(0, data) == 0xffff {
                Ok(true)
            } else {
                Err(())
            }
        }
        58 if !v4 => covered(all),
        _ => Ok(false),
    };
    let done = verdict.map_err(|()| format!("the checksum of protocol {proto} at depth {depth}"))?;
    let error = v4 && proto == 1 && matches!(data[0], 3 | 4 | 5 | 11 | 12) || !v4 && proto == 58 && data[0] < 128;
    let least = if v4 { 20 } else { 40 };
    if error && data.len() >= 8 + least {
        right(&data[8..], depth + 1)?;
    }
    Ok(done)
}
