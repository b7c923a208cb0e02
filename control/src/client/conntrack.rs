//! How a connection is written: as conntrack-tools write it, or as /proc/net/nf_conntrack does.
//!
//! *Sources*: linux/net/netfilter/nf_conntrack_standalone.c (`ct_seq_show`, `print_tuple`);
//! libnetfilter_conntrack src/conntrack/snprintf_default.c.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use clap::ValueEnum;

use crate::api::wire::{Conn, Way};

/// A form of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As `conntrack -L`.
    #[default]
    Default,
    /// As `conntrack -L -o extended`: with the network protocol.
    Extended,
    /// As the lines of /proc/net/nf_conntrack.
    #[value(name = "nf_conntrack")]
    NfConntrack,
}

/// One connection in one line, without the line's end.
pub fn line(c: &Conn, format: Format) -> String {
    let mut out = String::with_capacity(256);
    write_line(&mut out, c, format);
    out
}

/// Writing to a string does not fail, so results are let go in here.
fn write_line(out: &mut String, c: &Conn, format: Format) {
    if format != Format::Default {
        let (name, number) = if c.original.src.is_ipv4() { ("ipv4", 2) } else { ("ipv6", 10) };
        let _ = write!(out, "{name:<8} {number} ");
    }
    let _ = write!(out, "{:<8} {} {} ", proto_name(c.proto), c.proto, c.timeout);
    if let Some(state) = &c.state {
        let _ = write!(out, "{state} ");
    }
    write_way(out, &c.original, c.proto, format);
    if !c.replied {
        out.push_str("[UNREPLIED] ");
    }
    write_way(out, &c.reply, c.proto, format);
    if c.assured {
        out.push_str("[ASSURED] ");
    }
    // Sluice has neither marks nor conntrack zones; one holder is the table, the kernel counts the reader as well.
    out.push_str(if format == Format::NfConntrack { "mark=0 zone=0 use=2" } else { "mark=0 use=1" });
}

fn write_way(out: &mut String, w: &Way, proto: u8, format: Format) {
    let kernel = format == Format::NfConntrack;
    let address = |a: IpAddr| match a {
        IpAddr::V6(a) if kernel => uncompressed(a),
        a => a.to_string(),
    };
    let _ = write!(out, "src={} dst={} ", address(w.src), address(w.dst));
    if let (Some(sport), Some(dport)) = (w.sport, w.dport) {
        let _ = write!(out, "sport={sport} dport={dport} ");
    }
    if let (Some(t), Some(code), Some(id)) = (w.icmp_type, w.icmp_code, w.icmp_id) {
        let _ = write!(out, "type={t} code={code} id={id} ");
    }
    if proto == GRE {
        out.push_str("srckey=0x0 dstkey=0x0 ");
    }
    // The kernel prints these only with nf_conntrack_acct, which is off by default.
    if !kernel {
        let _ = write!(out, "packets={} bytes={} ", w.packets, w.bytes);
    }
}

const GRE: u8 = 47;

/// The kernel's `%pI6`.
fn uncompressed(a: Ipv6Addr) -> String {
    a.segments().map(|s| format!("{s:04x}")).join(":")
}

/// The kernel's name of a tracked protocol; all others are `unknown`.
fn proto_name(p: u8) -> &'static str {
    match p {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        GRE => "gre",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(src: &str, dst: &str, ports: Option<(u16, u16)>) -> Way {
        Way {
            src: src.parse().expect("address"),
            dst: dst.parse().expect("address"),
            sport: ports.map(|p| p.0),
            dport: ports.map(|p| p.1),
            icmp_type: None,
            icmp_code: None,
            icmp_id: None,
            packets: 3,
            bytes: 180,
            egress: None,
        }
    }

    fn tcp() -> Conn {
        Conn {
            proto: 6,
            state: Some("ESTABLISHED".into()),
            timeout: 431_999,
            original: way("192.0.2.10", "203.0.113.5", Some((41_644, 22))),
            reply: way("203.0.113.5", "198.51.100.2", Some((22, 41_644))),
            replied: true,
            assured: true,
            worker: 0,
        }
    }

    #[test]
    fn tcp_as_the_kernel_writes_it() {
        let expect = "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=41644 dport=22 \
                      src=203.0.113.5 dst=198.51.100.2 sport=22 dport=41644 [ASSURED] mark=0 zone=0 use=2";
        assert_eq!(line(&tcp(), Format::NfConntrack), expect);
    }

    #[test]
    fn tcp_as_conntrack_tools_write_it() {
        let rest = "tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=41644 dport=22 packets=3 bytes=180 \
                    src=203.0.113.5 dst=198.51.100.2 sport=22 dport=41644 packets=3 bytes=180 [ASSURED] mark=0 use=1";
        assert_eq!(line(&tcp(), Format::Default), rest);
        assert_eq!(line(&tcp(), Format::Extended), format!("ipv4     2 {rest}"));
    }

    #[test]
    fn unreplied_udp_over_ipv6() {
        let c = Conn {
            proto: 17,
            state: None,
            timeout: 29,
            original: way("2001:db8::1", "2001:db8::2", Some((1024, 53))),
            reply: way("2001:db8::2", "2001:db8::1", Some((53, 1024))),
            replied: false,
            assured: false,
            worker: 0,
        };
        let expect = "ipv6     10 udp      17 29 src=2001:0db8:0000:0000:0000:0000:0000:0001 \
                      dst=2001:0db8:0000:0000:0000:0000:0000:0002 sport=1024 dport=53 [UNREPLIED] \
                      src=2001:0db8:0000:0000:0000:0000:0000:0002 dst=2001:0db8:0000:0000:0000:0000:0000:0001 \
                      sport=53 dport=1024 mark=0 zone=0 use=2";
        assert_eq!(line(&c, Format::NfConntrack), expect);
        assert!(line(&c, Format::Extended).starts_with("ipv6     10 udp      17 29 src=2001:db8::1 dst=2001:db8::2 "));
    }

    #[test]
    fn icmp_has_type_code_and_id() {
        let mut c = Conn { proto: 1, state: None, ..tcp() };
        for (w, t) in [(&mut c.original, 8), (&mut c.reply, 0)] {
            *w = Way {
                sport: None,
                dport: None,
                icmp_type: Some(t),
                icmp_code: Some(0),
                icmp_id: Some(77),
                ..w.clone()
            };
        }
        c.assured = false;
        let expect = "ipv4     2 icmp     1 431999 src=192.0.2.10 dst=203.0.113.5 type=8 code=0 id=77 \
                      src=203.0.113.5 dst=198.51.100.2 type=0 code=0 id=77 mark=0 zone=0 use=2";
        assert_eq!(line(&c, Format::NfConntrack), expect);
    }

    #[test]
    fn other_protocols_have_addresses_only() {
        let mut c = Conn { proto: 50, state: None, ..tcp() };
        (c.original.sport, c.original.dport, c.reply.sport, c.reply.dport) = (None, None, None, None);
        let expect = "ipv4     2 unknown  50 431999 src=192.0.2.10 dst=203.0.113.5 \
                      src=203.0.113.5 dst=198.51.100.2 [ASSURED] mark=0 zone=0 use=2";
        assert_eq!(line(&c, Format::NfConntrack), expect);
    }
}
