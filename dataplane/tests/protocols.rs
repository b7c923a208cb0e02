//! Stories of the protocols that are neither TCP, ICMP nor SCTP: UDP, UDP-Lite, GRE, and any other by its addresses.
//!
//! ```text
//!   10.0.0.2, .3 ──┐                                                  ┌─ 203.0.113.5
//!   10.0.0.9 ──────┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ──┤
//!   fd00:1::2 ─────┘      [ fd00:1::1            2001:db8::1  ]       └─ 2001:db8:5::5
//! ```
//! Each expectation was tried on Linux 6.18; where Sluice differs on purpose, docs/LINUX.md says so.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
const WEB: &str = "10.0.0.9";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

const NEW: &[&str] = &["class new original +1", "event new +1"];
const FIRST_REPLY: &[&str] = &["class established reply +1", "event replied +1"];

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

fn unchecked(spec: PolicySpec) -> PolicySpec {
    PolicySpec { conntrack: ConntrackSpec { checksum: false, ..spec.conntrack }, ..spec }
}

/// Timeout and assurance of the only connection.
fn only_conn(lab: &mut Lab) -> (u32, bool) {
    let conns = lab.conns();
    assert_eq!(conns.len(), 1, "{conns:?}");
    (conns[0].timeout_s, conns[0].assured)
}

// ---- UDP ------------------------------------------------------------------------------------------------------------

#[test]
fn udp_becomes_a_stream_after_two_seconds_with_both_sides() {
    everywhere(usual(), |lab| {
        for (host, server) in [(HOST, SERVER), (HOST6, SERVER6)] {
            let (question, answer) = (udp(host, 4000, server, 53, b"?"), udp(server, 53, host, 4000, b"!"));
            lab.passes(LAN, &question, WAN);
            lab.passes(WAN, &answer, LAN);
            lab.passes(LAN, &question, WAN);
            assert_eq!(only_conn(lab), (29, false));
            lab.wait(Nanos::from_millis(1900));
            lab.passes(WAN, &answer, LAN);
            assert_eq!(only_conn(lab), (29, false));
            lab.changed();
            lab.wait(Nanos::from_millis(200));
            lab.passes(WAN, &answer, LAN);
            lab.moved(&["class established reply +1", "event assured +1"]);
            assert_eq!(only_conn(lab), (119, true));
            lab.wait(Nanos::from_secs(119));
            assert_eq!(lab.entries(), 1);
            lab.wait(Nanos::from_secs(2));
            assert_eq!(lab.entries(), 0);
        }
    });
}

#[test]
fn a_late_first_answer_makes_no_udp_stream_but_what_follows_does() {
    everywhere(usual(), |lab| {
        let (question, answer) = (udp(HOST, 4000, SERVER, 53, b"?"), udp(SERVER, 53, HOST, 4000, b"!"));
        lab.passes(LAN, &question, WAN);
        lab.wait(Nanos::from_secs(10));
        lab.passes(WAN, &answer, LAN);
        assert_eq!(only_conn(lab), (29, false));
        lab.passes(LAN, &question, WAN);
        assert_eq!(only_conn(lab), (119, true));
    });
}

#[test]
fn udp_without_an_answer_is_never_a_stream() {
    everywhere(usual(), |lab| {
        for _ in 0..5 {
            lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"?"), WAN);
            lab.wait(Nanos::from_secs(2));
        }
        assert_eq!(only_conn(lab), (27, false));
    });
}

// ---- UDP-Lite -------------------------------------------------------------------------------------------------------

#[test]
fn udplite_is_tracked_by_ports_and_a_stream_at_the_first_packet_after_an_answer() {
    everywhere(usual(), |lab| {
        for (host, server) in [(HOST, SERVER), (HOST6, SERVER6)] {
            lab.changed();
            lab.passes(LAN, &udplite(host, 4000, server, 53, 0, b"question"), WAN);
            lab.moved(NEW);
            lab.refuses(WAN, &udplite(server, 54, host, 4000, 0, b"answer"), DropReason::PolicyDefault);
            lab.moved(&["class new original +1", "drop policy_default +1"]);
            lab.passes(WAN, &udplite(server, 53, host, 4000, 0, b"answer"), LAN);
            lab.moved(FIRST_REPLY);
            assert_eq!(only_conn(lab), (29, false));
            lab.passes(WAN, &udplite(server, 53, host, 4000, 0, b"answer"), LAN);
            lab.moved(&["class established reply +1", "event assured +1"]);
            assert_eq!(only_conn(lab), (119, true));
            lab.wait(Nanos::from_secs(121));
            assert_eq!(lab.entries(), 0);
        }
    });
}

#[test]
fn udplite_checksums_cover_what_they_say_and_no_less_than_the_header() {
    let payload = b"sixteen bytes ok";
    for verify in [true, false] {
        let spec = if verify { usual() } else { unchecked(usual()) };
        everywhere(spec, |lab| {
            for (host, server) in [(HOST, SERVER), (HOST6, SERVER6)] {
                let length = u16::try_from(payload.len()).expect("short") + 8;
                for coverage in [0, 8, 9, 15, length - 1, length] {
                    lab.passes(LAN, &udplite(host, 4000, server, 53, coverage, payload), WAN);
                    // What is not covered may be damaged on the way.
                    let mut damaged = udplite(host, 4000, server, 53, coverage, payload);
                    let last = damaged.l4.len() - 1;
                    damaged.l4[last] ^= 0xff;
                    if (1..length).contains(&coverage) {
                        lab.passes(LAN, &damaged, WAN);
                    } else if verify {
                        lab.refuses(LAN, &damaged, DropReason::InvalidChecksum);
                    }
                }
                lab.changed();
                for coverage in [1, 7, length + 1, u16::MAX] {
                    let p = udplite(host, 4000, server, 53, coverage, payload);
                    lab.refuses(LAN, &p, DropReason::InvalidCoverage);
                    lab.moved(&["class invalid original +1", "drop invalid_coverage +1"]);
                }
                let without = udplite(host, 4000, server, 53, 0, payload).without_checksum();
                lab.refuses(LAN, &without, DropReason::InvalidChecksum);
                lab.refuses(LAN, &other(host, server, proto::UDPLITE, &[0; 7]), DropReason::InvalidLength);
            }
        });
    }
}

#[test]
fn udplite_in_fragments_is_verified_as_a_whole() {
    everywhere(usual(), |lab| {
        for coverage in [0, 8, 50, 108] {
            let p = udplite(HOST, 4000, SERVER, 53, coverage, &[7; 100]);
            let mut broken = p.clone();
            broken.l4[if coverage == 8 { 2 } else { 49 }] ^= 1;
            for f in p.fragments(40) {
                lab.arrive(LAN, &addressed(LAN, &f).frame());
            }
            lab.run();
            assert_eq!(lab.collect().len(), 3, "coverage {coverage}");
            let before = lab.drop_count(DropReason::InvalidChecksum);
            for f in broken.fragments(40) {
                lab.arrive(LAN, &addressed(LAN, &f).frame());
            }
            lab.run();
            assert_eq!(lab.drop_count(DropReason::InvalidChecksum), before + 3, "coverage {coverage}");
            assert!(lab.collect().is_empty());
        }
    });
}

#[test]
fn udplite_hosts_share_an_address_by_their_ports() {
    everywhere(masqueraded(), |lab| {
        let mut ports = Vec::new();
        for host in [HOST, OTHER] {
            let out = lab.passes(LAN, &udplite(host, 4000, SERVER, 53, 8, b"question"), WAN);
            assert_eq!((out.src, out.dport), (ip(GATEWAY), 53));
            assert!(out.sport >= 1024);
            ports.push(out.sport);
        }
        assert_ne!(ports[0], ports[1]);
        for (host, port) in [(HOST, ports[0]), (OTHER, ports[1])] {
            let back = lab.passes(WAN, &udplite(SERVER, 53, GATEWAY, port, 8, b"answer"), LAN);
            assert_eq!(back.flow(), format!("{SERVER}:53 > {host}:4000"));
        }
        assert_eq!(lab.leases(), 2);
    });
}

#[test]
fn udplite_ports_are_forwarded() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat[0].matches.proto = vec![proto::UDPLITE];
    everywhere(spec, |lab| {
        for port in 5000..5004 {
            let seen = lab.passes(WAN, &udplite(SERVER, port, GATEWAY, 8080, 0, b"question"), LAN);
            assert_eq!(seen.flow(), format!("{SERVER}:{port} > {WEB}:80"));
            let seen = lab.passes(LAN, &udplite(WEB, 80, SERVER, port, 0, b"answer"), WAN);
            assert_eq!(seen.flow(), format!("{GATEWAY}:8080 > {SERVER}:{port}"));
        }
    });
}
