//! The words of rules: protocols, ICMP types, TCP flags, marks.
//!
//! *Sources*: IANA's registries; names are those of iptables and nft, both where they differ.

use super::reader::decimal;

/// IP protocols by name.
pub const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Protocols that are tracked by ports, and that rules can match by them: with SCTP and UDP-Lite. Not DCCP, which Linux 6.18
/// tracks by its addresses.
pub const WITH_PORTS: &[u8] = &[TCP, UDP, 132, 136];

/// ICMP types by name, RFC 792, RFC 950 and RFC 1256.
pub const ICMP_TYPES: &[(&str, u8)] = &[
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];

/// ICMPv6 types by name, RFC 4443, RFC 4861, RFC 2710 and RFC 3810.
pub const ICMPV6_TYPES: &[(&str, u8)] = &[
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbour-solicitation", 135),
    ("neighbour-advertisement", 136),
    ("redirect", 137),
    ("mld2-listener-report", 143),
];

/// TCP flags by name, in the order of their bits.
pub const TCP_FLAGS: &[(&str, u8)] = &[
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ece", 0x40),
    ("cwr", 0x80),
];

/// The value that `table` has for `name`.
pub fn find(table: &[(&str, u8)], name: &str) -> Option<u8> {
    table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

/// TCP flags as iptables' `--tcp-flags` has them: `mask/set`, such as `syn,ack,fin,rst/syn`: of the flags left of the
/// slash those right of it are set and the others clear. `all` and `none` work on both sides. Without a slash, all
/// that are named are set.
pub fn tcp_flags(text: &str) -> Option<(u8, u8)> {
    let side = |text: &str| match text {
        "all" => Some(0xff),
        "none" => Some(0),
        names => names.split(',').try_fold(0, |bits, name| Some(bits | find(TCP_FLAGS, name.trim())?)),
    };
    let (mask, set) = match text.split_once('/') {
        Some((mask, set)) => (side(mask.trim())?, side(set.trim())?),
        None => (side(text)?, side(text)?),
    };
    (mask != 0 && set & !mask == 0).then_some((mask, set))
}

/// A mark as nft and conntrack-tools write it: `value` or `value/mask`, decimal or with 0x, as `(mask, value)`. No bit
/// of the value is outside of the mask: such a mark is never had.
pub fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.trim().strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => u32::try_from(decimal(text.trim())?).ok(),
    };
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    (value & !mask == 0).then_some((mask, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_flags_read_as_iptables_does() {
        assert_eq!(tcp_flags("syn,ack,fin,rst/syn"), Some((0x17, 0x02)));
        assert_eq!(tcp_flags("all/none"), Some((0xff, 0)));
        assert_eq!(tcp_flags("syn"), Some((0x02, 0x02)));
        for bad in ["", "/", "syn/", "/syn", "syn/ack", "none/none", "SYN/SYN", "syn,,ack/syn", "syn/syn/syn"] {
            assert_eq!(tcp_flags(bad), None, "{bad}");
        }
    }

    #[test]
    fn marks_are_numbers_with_or_without_a_mask() {
        assert_eq!(mark("5"), Some((u32::MAX, 5)));
        assert_eq!(mark("0x10"), Some((u32::MAX, 0x10)));
        assert_eq!(mark("0x10/0xff"), Some((0xff, 0x10)));
        assert_eq!(mark("16 / 255"), Some((0xff, 0x10)));
        assert_eq!(mark("0/1"), Some((1, 0)));
        assert_eq!(mark("4294967295/0xffffffff"), Some((u32::MAX, u32::MAX)));
        for bad in ["", "/", "0x", "-1", "+1", "0x+1", "010", "4294967296", "0x100000000", "0x10/0xf", "1/2/3", "0X1"] {
            assert_eq!(mark(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_unique() {
        for table in [PROTOCOLS, ICMP_TYPES, ICMPV6_TYPES, TCP_FLAGS] {
            for (i, (name, _)) in table.iter().enumerate() {
                assert!(table.iter().skip(i + 1).all(|(other, _)| other != name), "{name}");
            }
        }
    }
}
