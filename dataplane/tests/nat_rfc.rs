//! What RFC 4787, RFC 5382 and RFC 5508 require of translation and no other file is about; `docs/RFC.md` has the whole table, and
//! every test that it names is there. The topology is drawn in `common/lab.rs`.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const ROUTER: &str = "198.51.100.20";

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

/// RFC 5382 REQ-2 and REQ-4: each end's SYN crosses the other's. The one that comes first from outside is not answered: its sender
/// would take an answer for the end of it.
#[test]
fn a_simultaneous_open_passes_though_one_syn_comes_before_its_hole_is_there() {
    everywhere(masqueraded(), |lab| {
        let theirs = tcp(SERVER, 5000, GATEWAY, 4000, SYN, 500, 0, b"");
        lab.refuses(WAN, &theirs, DropReason::PolicyDefault);
        let ours = lab.passes(LAN, &tcp(HOST, 4000, SERVER, 5000, SYN, 100, 0, b""), WAN);
        // Through another worker's port the hole may lie elsewhere; the ends have agreed on what they see.
        let theirs = tcp(SERVER, 5000, GATEWAY, ours.sport, SYN, 500, 0, b"");
        let there = lab.passes(WAN, &theirs, LAN);
        assert_eq!(there.flow(), format!("{SERVER}:5000 > {HOST}:4000"));
        lab.passes(LAN, &tcp(HOST, 4000, SERVER, 5000, SYN | ACK, 100, 501, b""), WAN);
        lab.passes(WAN, &tcp(SERVER, 5000, GATEWAY, ours.sport, SYN | ACK, 500, 101, b""), LAN);
        lab.passes(LAN, &tcp(HOST, 4000, SERVER, 5000, ACK, 101, 501, b""), WAN);
        lab.passes(WAN, &tcp(SERVER, 5000, GATEWAY, ours.sport, ACK | PSH, 501, 101, b"data"), LAN);
        let all = lab.owned();
        assert_eq!(all.iter().map(|c| (c.tcp, c.assured)).collect::<Vec<_>>(), [("ESTABLISHED", true)]);
    });
}

/// RFC 5382 REQ-7, RFC 4787 REQ-3: no two inside ends are one to the same server, whatever the protocol.
#[test]
fn no_two_connections_are_one_outside() {
    everywhere(masqueraded(), |lab| {
        let mut seen = BTreeSet::new();
        for host in 2..34 {
            let host = format!("10.0.0.{host}");
            for p in [
                tcp(&host, 4000, SERVER, 80, SYN, 7, 0, b""),
                udp(&host, 4000, SERVER, 80, b""),
                udplite(&host, 4000, SERVER, 80, 0, b""),
                sctp(&host, 4000, SERVER, 80, 0, &[init(1, 5)]),
                ping(&host, SERVER, 7, 1),
            ] {
                let out = lab.passes(LAN, &p, WAN);
                assert!(seen.insert((out.proto, out.sport)), "{} is used twice", out.flow());
            }
        }
        assert_eq!(seen.len(), 5 * 32);
    });
}

/// RFC 4787 REQ-6: what goes out keeps the mapping; here also what comes in.
#[test]
fn packets_of_either_direction_keep_a_translation() {
    everywhere(masqueraded(), |lab| {
        let ask = |port| udp(HOST, port, SERVER, 53, b"question");
        let out = lab.passes(LAN, &ask(4000), WAN);
        let quiet = lab.passes(LAN, &ask(4001), WAN);
        for n in 0..6 {
            lab.wait(Nanos::from_secs(25));
            if n % 2 == 0 {
                lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"answer"), LAN);
            } else {
                assert_eq!(lab.passes(LAN, &ask(4000), WAN).sport, out.sport);
            }
        }
        lab.refuses(WAN, &udp(SERVER, 53, GATEWAY, quiet.sport, b"answer"), DropReason::PolicyDefault);
    });
}

/// RFC 4787 REQ-8, RFC 5382 REQ-3: address and port of whom was asked, and nobody else.
#[test]
fn only_who_was_asked_may_answer() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        for (from, port) in [(SERVER, 54), ("203.0.113.6", 53)] {
            lab.refuses(WAN, &udp(from, port, GATEWAY, out.sport, b"answer"), DropReason::PolicyDefault);
        }
        lab.passes(WAN, &udp(SERVER, 53, GATEWAY, out.sport, b"answer"), LAN);
    });
}

/// RFC 4787 REQ-11: neither how full the table is nor what others do changes what a flow gets.
#[test]
fn a_translation_does_not_change_while_it_lives() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        for n in 0..200 {
            lab.passes(LAN, &udp(OTHER, 5000 + n, SERVER, 53, b"question"), WAN);
            if n % 40 == 0 {
                lab.reload(masqueraded());
                assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"again"), WAN).sport, out.sport);
            }
        }
    });
}

/// RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6: an error neither ends nor refreshes what it is about.
#[test]
fn no_error_ends_a_translation_or_keeps_it() {
    everywhere(masqueraded(), |lab| {
        for (n, p) in [
            tcp(HOST, 4000, SERVER, 80, SYN, 7, 0, b""),
            udp(HOST, 4000, SERVER, 53, b"question"),
            ping(HOST, SERVER, 7, 1),
        ]
        .into_iter()
        .enumerate()
        {
            let out = lab.passes(LAN, &p, WAN);
            for (kind, code) in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)] {
                for from in [ROUTER, SERVER] {
                    lab.passes(WAN, &icmp(from, GATEWAY, kind, code, [0; 4], &out.ip), LAN);
                }
            }
            assert_eq!(lab.entries(), n + 1);
            assert_eq!(lab.passes(LAN, &p, WAN).sport, out.sport);
        }
        lab.wait(Nanos::from_secs(20));
        let out = lab.passes(LAN, &udp(OTHER, 4000, SERVER, 54, b"question"), WAN);
        lab.wait(Nanos::from_secs(20));
        lab.passes(WAN, &icmp(ROUTER, GATEWAY, 3, 1, [0; 4], &out.ip), LAN);
        lab.wait(Nanos::from_secs(11));
        let late = udp(SERVER, 54, GATEWAY, out.sport, b"answer");
        lab.refuses(WAN, &late, DropReason::PolicyDefault);
    });
}

/// RFC 4787 REQ-14: fragments in any order, through translation.
#[test]
fn fragments_are_translated_in_any_order() {
    everywhere(masqueraded(), |lab| {
        let text: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let question = udp(HOST, 4000, SERVER, 2049, &text);
        for (id, order) in (1..).zip([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]) {
            let pieces = cut(&question, id, &[1000, 2000]);
            for n in order {
                lab.arrive(LAN, &addressed(LAN, &pieces[n]).frame());
                lab.run();
            }
            let out = put_together(&lab.sent(WAN));
            assert_eq!((out.src, &out.payload), (ip(GATEWAY), &text), "{order:?}");
        }
    });
}

/// RFC 5508 REQ-3: an error that is broken itself is dropped, and nothing else is asked of it.
#[test]
fn an_error_with_a_wrong_checksum_is_dropped_silently() {
    everywhere(masqueraded(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        let error = icmp(ROUTER, GATEWAY, 3, 1, [0; 4], &out.ip);
        lab.refuses(WAN, &error.clone().broken_checksum(), DropReason::InvalidChecksum);
        lab.passes(WAN, &error, LAN);
    });
}

/// RFC 5508 REQ-4 and REQ-5: errors about no translation go no further, from either side.
#[test]
fn errors_about_nothing_that_is_translated_are_dropped_silently() {
    everywhere(masqueraded(), |lab| {
        let never = udp(GATEWAY, 4000, SERVER, 53, b"question").ip();
        lab.refuses(WAN, &icmp(ROUTER, GATEWAY, 3, 1, [0; 4], &never), DropReason::InvalidNoParent);
        let never = udp(SERVER, 53, HOST, 4000, b"answer").ip();
        lab.refuses(LAN, &icmp(HOST, SERVER, 3, 3, [0; 4], &never), DropReason::InvalidNoParent);
    });
}

/// RFC 5508 REQ-1: queries and their answers pass, each kind of them.
#[test]
fn every_kind_of_query_is_translated_and_answered() {
    everywhere(masqueraded(), |lab| {
        for (id, (ask, answer)) in (7..).zip([(8, 0), (13, 14), (15, 16), (17, 18)]) {
            let [high, low] = u16::to_be_bytes(id);
            let out = lab.passes(LAN, &icmp(HOST, SERVER, ask, 0, [high, low, 0, 1], b"query"), WAN);
            assert_eq!((out.src, out.proto), (ip(GATEWAY), proto::ICMP));
            let [seen_high, seen_low] = out.sport.to_be_bytes();
            let back = lab.passes(WAN, &icmp(SERVER, GATEWAY, answer, 0, [seen_high, seen_low, 0, 1], b"answer"), LAN);
            assert_eq!((back.dst, back.sport, back.payload), (ip(HOST), id, b"answer".to_vec()));
        }
    });
}

#[test]
fn every_test_that_the_table_of_rfcs_names_is_there() {
    let dataplane = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(dataplane.join("../docs/RFC.md")).expect("docs/RFC.md");
    let mut found = 0;
    for named in table.split('`').filter(|part| part.contains(".rs::") && !part.contains(' ')) {
        let (file, path) = named.split_once("::").expect("a file and a test");
        let test = path.rsplit("::").next().expect("a name");
        let places = [dataplane.join("tests").join(file), dataplane.join("src").join(file)];
        let text = places.iter().find_map(|p| std::fs::read_to_string(p).ok());
        let text = text.unwrap_or_else(|| panic!("no file {file}"));
        assert!(text.contains(&format!("fn {test}(")), "no test {named}");
        found += 1;
    }
    assert!(found > 60, "{found} tests are named");
}
