//! Idle timeouts by protocol and state, with nf_conntrack's names and defaults.
//!
//! *Sources*: `linux/Documentation/networking/nf_conntrack-sysctl.rst`.

use crate::time::Nanos;

macro_rules! timeouts {
    ($($name:ident $default:literal $help:literal;)*) => {
        /// Idle timeouts; names are those of the sysctls without `nf_conntrack_` and `_timeout`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Timeouts {
            $(#[doc = $help] pub $name: Nanos,)*
        }

        impl Default for Timeouts {
            fn default() -> Self {
                Self { $($name: Nanos::from_secs($default),)* }
            }
        }

        impl Timeouts {
            /// All names, as the YAML has them.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// Sets the timeout called `name`; `false` where there is none of that name.
            #[must_use]
            pub fn set(&mut self, name: &str, value: Nanos) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

timeouts! {
    tcp_syn_sent 120 "TCP: SYN seen.";
    tcp_syn_recv 60 "TCP: SYN and SYN/ACK seen.";
    tcp_established 432_000 "TCP: established, five days.";
    tcp_fin_wait 120 "TCP: one FIN seen.";
    tcp_close_wait 60 "TCP: the FIN was acknowledged.";
    tcp_last_ack 30 "TCP: FINs seen both ways.";
    tcp_time_wait 120 "TCP: closed, late segments may come.";
    tcp_close 10 "TCP: reset.";
    tcp_syn_sent2 120 "TCP: simultaneous open.";
    tcp_max_retrans 300 "TCP: after the third retransmission.";
    tcp_unacknowledged 300 "TCP: data is outstanding.";
    udp 30 "UDP: one-way, or young.";
    udp_stream 120 "UDP: a stream, both ways for longer than 2 s.";
    icmp 30 "ICMP queries.";
    icmpv6 30 "ICMPv6 queries.";
    gre 30 "GRE: one-way.";
    gre_stream 180 "GRE: both ways.";
    sctp_closed 10 "SCTP: over, or nothing known.";
    sctp_cookie_wait 3 "SCTP: INIT or INIT ACK seen.";
    sctp_cookie_echoed 3 "SCTP: COOKIE ECHO seen.";
    sctp_established 210 "SCTP: COOKIE ACK seen.";
    sctp_shutdown_sent 3 "SCTP: SHUTDOWN seen.";
    sctp_shutdown_recd 3 "SCTP: SHUTDOWN seen, from the responder.";
    sctp_shutdown_ack_sent 3 "SCTP: SHUTDOWN ACK seen.";
    sctp_heartbeat_sent 30 "SCTP: HEARTBEAT seen first.";
    generic 600 "Any other protocol.";
    frag_v4 30 "IPv4 fragments: the rest of the datagram is waited for (`net.ipv4.ipfrag_time`).";
    frag_v6 60 "IPv6 fragments: the rest of the datagram is waited for (RFC 8200 section 4.5).";
    expect_ftp 300 "Expectations of FTP's data connections.";
    expect_tftp 300 "Expectations of TFTP's answers.";
    expect_pptp 300 "Expectations of PPTP's calls.";
}
