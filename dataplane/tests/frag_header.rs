//! Stories of transport headers that lie in several fragments: tracked, judged and translated as any other (RFC 1858's attack
//! meets the whole datagram). The topology is drawn in `common/lab.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag::{self, Mode};
use dataplane::io::PortIdx;

const HOST: &str = "10.0.0.2";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const ROUTER: &str = "198.51.100.20";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

/// Sends the fragments, the last first, and gives the datagram that left by `out`.
#[track_caller]
fn passes(lab: &mut Lab, port: PortIdx, pieces: &[Pkt], out: PortIdx) -> Seen {
    for f in pieces.iter().rev() {
        lab.arrive(port, &addressed(port, f).frame());
    }
    lab.run();
    let frames = lab.sent(out);
    assert_eq!(frames.len(), pieces.len(), "{:?}", lab.drops());
    put_together(&frames)
}

/// All ways to cut the first 64 bytes in two or three, and the cut into the shortest fragments.
fn ways(length: usize) -> Vec<Vec<usize>> {
    let cuts: Vec<usize> = (8..length.min(64)).step_by(8).collect();
    let mut ways: Vec<_> = cuts.iter().map(|&c| vec![c]).collect();
    ways.extend(cuts.windows(2).map(<[usize]>::to_vec));
    ways.push(cuts);
    ways
}

fn questions(host: &str, server: &str) -> Vec<Pkt> {
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 3, 3, 7, 0];
    vec![
        udp(host, 4000, server, 53, &[7; 90]),
        tcp(host, 4000, server, 80, SYN, 100, 0, b"").with_options(&options),
        sctp(host, 4000, server, 80, 0, &[init(1, 0x11)]),
        udplite(host, 4000, server, 53, 0, &[7; 91]),
        icmp(host, server, if host.contains('.') { 8 } else { 128 }, 0, [0, 7, 0, 1], &[3; 77]),
    ]
}

#[test]
fn every_header_is_translated_wherever_it_is_cut() {
    everywhere(masqueraded(), |lab| {
        for question in questions(HOST, SERVER) {
            for (n, cuts) in ways(question.l4.len()).into_iter().enumerate() {
                let mut p = question.clone();
                if p.proto != proto::ICMP {
                    p.l4[0..2].copy_from_slice(&(5000 + n as u16).to_be_bytes());
                    p = p.src(HOST);
                }
                // Another host has the port, so that one must be written into the header.
                let taken = lab.passes(LAN, &p.clone().src("10.0.0.3"), WAN);
                let out = passes(lab, LAN, &cut(&p, n as u32, &cuts), WAN);
                assert_eq!((out.src, out.dst, out.ttl), (ip(GATEWAY), ip(SERVER), 63), "{cuts:?}");
                assert_ne!(out.sport, taken.sport);
                assert!(lab.changed().iter().all(|c| !c.starts_with("drop")), "{:?}", lab.drops());
            }
        }
    });
}

/// An IPv6 first fragment without the whole header, TCP's options aside, is INVALID to Linux (RFC 7112); for protocols of
/// which it knows less, it takes it.
#[test]
fn ipv6_headers_may_be_cut_behind_what_must_be_in_the_first_fragment() {
    everywhere(masqueraded(), |lab| {
        let mut ports = 5000..;
        for question in questions(HOST6, SERVER6) {
            let least = match question.proto {
                proto::TCP => 20,
                proto::SCTP | proto::UDPLITE => 1,
                _ => 8,
            };
            for cuts in ways(question.l4.len()) {
                let mut p = question.clone();
                if p.proto != proto::ICMPV6 {
                    p.l4[0..2].copy_from_slice(&(ports.next().expect("a port") as u16).to_be_bytes());
                    p = p.src(HOST6);
                }
                let pieces = cut(&p, 77, &cuts);
                if cuts[0] >= least {
                    let out = passes(lab, LAN, &pieces, WAN);
                    assert_eq!((out.src, out.dst), (ip("2001:db8::1"), ip(SERVER6)), "{cuts:?}");
                    assert!(lab.changed().iter().all(|c| !c.starts_with("drop")), "{:?}", lab.drops());
                } else {
                    lab.arrive(LAN, &addressed(LAN, &pieces[0]).frame());
                    lab.run();
                    lab.moved(&["class invalid original +1", "drop fragment_invalid +1"]);
                }
            }
        }
    });
}

#[test]
fn the_policy_judges_what_the_receiver_puts_together() {
    let mut spec = usual();
    let matches = Match { dport: vec![23..=23], proto: vec![proto::TCP], ..Match::default() };
    spec.rules.insert(0, rule("no-telnet", matches, Action::Drop));
    let syn_only = Match { proto: vec![proto::TCP], tcp_flags: Some((SYN | ACK, ACK)), ..Match::default() };
    spec.rules.insert(1, rule("no-ack", syn_only, Action::Drop));
    everywhere(spec, |lab| {
        for (p, reason) in [
            (tcp(HOST, 4000, SERVER, 23, SYN, 100, 0, b""), DropReason::PolicyRule),
            (tcp(HOST, 4001, SERVER, 80, ACK, 100, 1, b"data"), DropReason::PolicyRule),
            (tcp(HOST, 4002, SERVER, 80, SYN, 100, 0, b"").broken_checksum(), DropReason::InvalidChecksum),
        ] {
            let before = lab.drop_count(reason);
            for f in cut(&p, 9, &[8, 16]) {
                lab.arrive(LAN, &addressed(LAN, &f).frame());
            }
            lab.run();
            assert_eq!((lab.drop_count(reason) - before, lab.collect().len()), (3, 0));
        }
    });
}

#[test]
fn an_error_in_fragments_is_in_the_zone_that_it_came_from() {
    for mode in [Mode::Reassemble, Mode::Virtual] {
        let setup = Setup { defrag: defrag::Setup { mode, ..defrag::Setup::default() }, ..Setup::default() };
        let spec = PolicySpec { interface_ct_zones: vec![7, 7], ..masqueraded() };
        everywhere_with(&setup, spec, |lab| {
            let question = udp(HOST, 4000, SERVER, 53, &[7; 90]);
            let out = lab.passes(LAN, &question, WAN);
            lab.changed();
            let error = icmp(ROUTER, GATEWAY, 3, 1, [0; 4], &out.ip);
            passes(lab, WAN, &cut(&error, 1, &[64]), LAN).assert_quotes(&question);
            lab.moved(&["class related reply +1"]);
        });
    }
}

#[test]
fn an_error_in_small_fragments_is_translated_with_what_it_quotes() {
    everywhere(masqueraded(), |lab| {
        for question in questions(HOST, SERVER) {
            let out = lab.passes(LAN, &question, WAN);
            let error = icmp(ROUTER, GATEWAY, 3, 1, [0; 4], &out.ip);
            for (n, cuts) in ways(error.l4.len()).into_iter().enumerate() {
                let back = passes(lab, WAN, &cut(&error, n as u32, &cuts), LAN);
                assert_eq!((back.src, back.dst), (ip(ROUTER), ip(HOST)), "{cuts:?}");
                back.assert_quotes(&question);
            }
        }
    });
}
