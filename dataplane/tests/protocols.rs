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
            assert_eq!(only_conn(lab), (30, false));
            lab.wait(Nanos::from_millis(1900));
            lab.passes(WAN, &answer, LAN);
            assert_eq!(only_conn(lab), (30, false));
            lab.changed();
            lab.wait(Nanos::from_millis(200));
            lab.passes(WAN, &answer, LAN);
            lab.moved(&["class established reply +1", "event assured +1"]);
            assert_eq!(only_conn(lab), (120, true));
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
        assert_eq!(only_conn(lab), (30, false));
        lab.passes(LAN, &question, WAN);
        assert_eq!(only_conn(lab), (120, true));
    });
}

#[test]
fn udp_without_an_answer_is_never_a_stream() {
    everywhere(usual(), |lab| {
        for _ in 0..5 {
            lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"?"), WAN);
            lab.wait(Nanos::from_secs(2));
        }
        assert_eq!(only_conn(lab), (28, false));
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
            assert_eq!(only_conn(lab), (30, false));
            lab.passes(WAN, &udplite(server, 53, host, 4000, 0, b"answer"), LAN);
            lab.moved(&["class established reply +1", "event assured +1"]);
            assert_eq!(only_conn(lab), (120, true));
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

// ---- GRE ------------------------------------------------------------------------------------------------------------

/// GRE without and with a key, and PPTP's version 1 with a call id.
const PLAIN: &[u8] = &[0, 0, 8, 0, 1, 2, 3, 4];

fn keyed(key: u8) -> Vec<u8> {
    [&[0x20, 0, 8, 0, 0, 0, 0, key], b"data".as_slice()].concat()
}

fn call(id: u16) -> Vec<u8> {
    [&[0x30, 1, 0x88, 0x0b, 0, 4][..], &id.to_be_bytes(), b"data"].concat()
}

#[test]
fn gre_is_one_connection_for_each_pair_of_addresses_whatever_the_key() {
    everywhere(usual(), |lab| {
        for (host, server) in [(HOST, SERVER), (HOST6, SERVER6)] {
            lab.changed();
            lab.passes(LAN, &other(host, server, proto::GRE, PLAIN), WAN);
            lab.moved(NEW);
            for key in [0, 5] {
                lab.passes(LAN, &other(host, server, proto::GRE, &keyed(key)), WAN);
                lab.moved(&["class new original +1"]);
            }
            // Versions that nobody defined, and headers that are cut short, have no key either.
            for header in [&[0, 2, 8, 0, 0, 0, 0, 9][..], &[0, 7, 8, 0], &[0x30, 1, 0x88, 0x0b, 0, 4, 9], &[0; 3], b""]
            {
                lab.passes(LAN, &other(host, server, proto::GRE, header), WAN);
                lab.moved(&["class new original +1"]);
            }
            assert_eq!(only_conn(lab), (30, false));
            lab.passes(WAN, &other(server, host, proto::GRE, &keyed(6)), LAN);
            lab.moved(FIRST_REPLY);
            assert_eq!(only_conn(lab), (30, false));
            lab.passes(LAN, &other(host, server, proto::GRE, PLAIN), WAN);
            lab.moved(&["class established original +1", "event assured +1"]);
            assert_eq!(only_conn(lab), (180, true));
            lab.wait(Nanos::from_secs(181));
            assert_eq!(lab.entries(), 0);
        }
    });
}

#[test]
fn calls_of_gre_version_1_are_kept_apart_by_their_ids() {
    everywhere(usual(), |lab| {
        for id in [1, 0x1234, u16::MAX] {
            lab.passes(LAN, &other(HOST, SERVER, proto::GRE, &call(id)), WAN);
            lab.moved(NEW);
        }
        lab.passes(LAN, &other(HOST, SERVER, proto::GRE, &call(1)), WAN);
        lab.moved(&["class new original +1"]);
        // What comes back carries the other side's id, which nobody has announced.
        lab.refuses(WAN, &other(SERVER, HOST, proto::GRE, &call(1)), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
        let mut keys: Vec<_> =
            lab.conns().iter().map(|c| (c.original.sport, c.original.dport, c.reply.sport)).collect();
        keys.sort_unstable();
        assert_eq!(keys, [(0, 1, 1), (0, 0x1234, 0x1234), (0, u16::MAX, u16::MAX)]);
        let shown = lab.conns().iter().find(|c| c.original.dport == 0x1234).map(|c| c.original.to_string());
        assert_eq!(shown.as_deref(), Some("src=10.0.0.2 dst=203.0.113.5 srckey=0x0 dstkey=0x1234"));
    });
}

#[test]
fn gre_version_1_carries_ppp_or_is_invalid() {
    everywhere(usual(), |lab| {
        for (host, server) in [(HOST, SERVER), (HOST6, SERVER6)] {
            lab.changed();
            lab.refuses(LAN, &other(host, server, proto::GRE, &[0x30, 1, 8, 0, 0, 4, 0, 5]), DropReason::InvalidGre);
            lab.moved(&["class invalid original +1", "drop invalid_gre +1"]);
        }
    });
}

#[test]
fn a_masqueraded_call_keeps_its_id_and_a_second_host_with_the_same_is_refused() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &other(HOST, SERVER, proto::GRE, &call(7)), WAN);
        assert_eq!((out.src, &out.ip[20..]), (ip(GATEWAY), &call(7)[..]));
        let out = lab.passes(LAN, &other(OTHER, SERVER, proto::GRE, &call(8)), WAN);
        assert_eq!(out.src, ip(GATEWAY));
    });
    let mut lab = Lab::new(masqueraded());
    lab.passes(LAN, &other(HOST, SERVER, proto::GRE, &call(7)), WAN);
    lab.refuses(LAN, &other(OTHER, SERVER, proto::GRE, &call(7)), DropReason::NatClash);
}

// ---- Any other protocol ---------------------------------------------------------------------------------------------

/// DCCP had a tracker in Linux until 6.16; 6.18 knows its addresses alone.
#[test]
fn dccp_is_tracked_by_its_addresses() {
    let with_ports = |s: u16, d: u16| [&s.to_be_bytes()[..], &d.to_be_bytes(), &[4, 0, 0, 0, 1, 2, 3, 4]].concat();
    everywhere(usual(), |lab| {
        lab.passes(LAN, &other(HOST, SERVER, proto::DCCP, &with_ports(4000, 5001)), WAN);
        lab.moved(NEW);
        lab.passes(LAN, &other(HOST, SERVER, proto::DCCP, &with_ports(4001, 5001)), WAN);
        lab.moved(&["class new original +1"]);
        lab.passes(WAN, &other(SERVER, HOST, proto::DCCP, &with_ports(5001, 4000)), LAN);
        lab.moved(FIRST_REPLY);
        assert_eq!(only_conn(lab), (600, false));
    });
}
