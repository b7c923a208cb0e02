//! Stories of virtual reassembly: fragments wait for the first alone, and get its verdict and translation.
//! The topology is drawn in `common/lab.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::api::stats::FragmentResult;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag::{self, Mode};
use dataplane::io::PortIdx;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

fn virtually() -> Setup {
    Setup { defrag: defrag::Setup { mode: Mode::Virtual, ..defrag::Setup::default() }, ..Setup::default() }
}

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

fn big() -> Vec<u8> {
    (0..5000).map(|n| n as u8).collect()
}

fn arrive(lab: &mut Lab, port: PortIdx, f: &Pkt) {
    lab.arrive(port, &addressed(port, f).frame());
    lab.run();
}

fn result(lab: &Lab, result: FragmentResult) -> u64 {
    lab.stats.iter().map(|s| s.fragments[result as usize].value()).sum()
}

#[test]
fn each_fragment_leaves_as_soon_as_the_first_is_known() {
    everywhere_with(&virtually(), masqueraded(), |lab| {
        for (host, server, gateway) in [(HOST, SERVER, GATEWAY), (HOST6, SERVER6, "2001:db8::1")] {
            for (order, leaves) in
                [([0, 1, 2, 3], [1, 1, 1, 1]), ([2, 0, 3, 1], [0, 2, 1, 1]), ([3, 2, 1, 0], [0, 0, 0, 4])]
            {
                let id = u16::from(order[0] as u8);
                let p = udp(host, 4000 + id, server, 2049, &big());
                let pieces = cut(&p, u32::from(id), &[1448, 2896, 4344]);
                let mut frames = Vec::new();
                for (n, count) in order.into_iter().zip(leaves) {
                    arrive(lab, LAN, &pieces[n]);
                    let sent = lab.sent(WAN);
                    assert_eq!(sent.len(), count, "{n} of {order:?}: {:?}", lab.drops());
                    frames.extend(sent);
                }
                // The first leaves before those that waited for it.
                frames.sort_by_key(|f| if host == HOST { be16_at(f, 20) & 0x1fff } else { be16_at(f, 56) & 0xfff8 });
                let out = put_together(&frames);
                assert_eq!((out.src, out.payload, out.ttl), (ip(gateway), big(), 63));
                lab.moved(&["class new original +1", "event new +1"]);
                // Counted as what it is: one packet of so many bytes.
                let conn =
                    lab.conns().into_iter().find(|c| c.original.sport == 4000 + id && c.original.src == ip(host));
                let header = if host == HOST { 20 } else { 40 };
                assert_eq!(conn.map(|c| (c.packets, c.bytes)), Some(([1, 0], [header + 5008, 0])));
            }
        }
        let waiting: u64 = lab.stats.iter().map(|s| s.fragment_queues.value()).sum();
        assert_eq!((lab.pool.live(), waiting), (0, 0), "what is whole is forgotten");
    });
}

#[test]
fn answers_and_forwarded_datagrams_find_their_way() {
    let mut spec = masqueraded();
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere_with(&virtually(), spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 2049, b"question"), WAN);
        for (p, id, flow) in [
            (udp(SERVER, 2049, GATEWAY, out.sport, &big()), 1, "203.0.113.5:2049 > 10.0.0.2:4000"),
            (udp(SERVER, 5000, GATEWAY, 8080, &big()), 2, "203.0.113.5:5000 > 10.0.0.9:80"),
        ] {
            for f in [2, 0, 3, 1].map(|n| cut(&p, id, &[1448, 2896, 4344]).remove(n)) {
                arrive(lab, WAN, &f);
            }
            let frames = lab.sent(LAN);
            assert_eq!(frames.len(), 4, "{:?}", lab.drops());
            assert_eq!(put_together(&frames).flow(), flow);
        }
        assert_eq!(result(lab, FragmentResult::Virtual), 8);
    });
}

#[test]
fn what_follows_a_refused_first_fragment_is_refused() {
    let mut spec = usual();
    let matches = Match { dport: vec![53..=53], ..Match::default() };
    spec.rules.insert(0, rule("no-dns", Match { proto: vec![proto::UDP], ..matches }, Action::Drop));
    everywhere_with(&virtually(), spec, |lab| {
        let pieces = cut(&udp(HOST, 4000, SERVER, 53, &big()), 1, &[1448, 2896, 4344]);
        for f in &pieces {
            arrive(lab, LAN, f);
        }
        lab.moved(&["class new original +1", "drop fragment_first +3", "drop policy_rule +1"]);
        for n in [2, 1, 0, 3] {
            arrive(lab, LAN, &pieces[n]);
        }
        assert!(lab.collect().is_empty());
        assert_eq!((lab.total_drops(), lab.entries()), (8, 0));
    });
}

#[test]
fn a_first_fragment_must_hold_the_whole_header() {
    everywhere_with(&virtually(), usual(), |lab| {
        let echo = icmp(HOST, SERVER, 8, 0, [0, 7, 0, 1], &[3; 100]);
        for (n, p) in [echo, udp(HOST, 4000, SERVER, 53, &[3; 100])].iter().enumerate() {
            // Eight bytes are as short as a fragment can be, and all that these headers are.
            let pieces = cut(p, n as u32, &[8]);
            arrive(lab, LAN, &pieces[0]);
            arrive(lab, LAN, &pieces[1]);
            assert_eq!(lab.sent(WAN).len(), 2, "{:?}", lab.drops());
        }
        lab.changed();
        // Fragments are multiples of eight bytes, an authentication header is not.
        let mut behind = udplite(HOST6, 4000, SERVER6, 53, 0, &[3; 100]);
        behind.l4.splice(0..0, [136, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        behind.proto = 51;
        for f in cut(&behind, 9, &[16, 64]) {
            arrive(lab, LAN, &f);
        }
        assert!(lab.collect().is_empty());
        lab.moved(&["drop fragment_first +2", "drop fragment_header +1"]);
    });
}

/// RFC 3128: a fragment that would write over the header that was judged.
#[test]
fn nothing_overlaps_what_has_passed() {
    everywhere_with(&virtually(), usual(), |lab| {
        let p = udp(HOST, 4000, SERVER, 53, &big());
        let pieces = cut(&p, 1, &[1448, 2896, 4344]);
        arrive(lab, LAN, &pieces[0]);
        arrive(lab, LAN, &pieces[1]);
        assert_eq!(lab.sent(WAN).len(), 2);
        lab.changed();
        arrive(lab, LAN, &piece(&p, 1, 0, 8));
        arrive(lab, LAN, &piece(&p, 1, 0, 1448));
        lab.moved(&["drop fragment_duplicate +2"]);
        arrive(lab, LAN, &piece(&p, 1, 2888, 3000));
        lab.moved(&["drop fragment_overlap +1"]);
        // One that waits for the first lies where the first has its ports.
        let p = tcp(HOST, 4000, SERVER, 80, SYN, 100, 0, &[7; 200]);
        let p = Pkt { proto: 0xfd, ..p };
        arrive(lab, LAN, &piece(&p, 2, 8, 16));
        arrive(lab, LAN, &piece(&p, 2, 0, 200));
        lab.moved(&["drop fragment_overlap +2"]);
        // What comes now has no first any more, until its time is over.
        arrive(lab, LAN, &pieces[2]);
        arrive(lab, LAN, &pieces[3]);
        assert!(lab.collect().is_empty());
        lab.moved(&["drop fragment_first +2"]);
        lab.wait(Nanos::from_secs(90));
        lab.moved(&["event expired +1"]);
    });
}

#[test]
fn tcp_and_sctp_are_put_together_all_the_same() {
    everywhere_with(&virtually(), masqueraded(), |lab| {
        for p in [
            tcp(HOST, 4000, SERVER, 80, SYN, 100, 0, &[7; 200]),
            sctp(HOST, 4000, SERVER, 80, 0, &[init(1, 0x11), chunk(200, 0, &[7; 100])]),
        ] {
            let pieces = cut(&p, 3, &[16, 48]);
            arrive(lab, LAN, &pieces[0]);
            arrive(lab, LAN, &pieces[2]);
            assert!(lab.sent(WAN).is_empty());
            arrive(lab, LAN, &pieces[1]);
            let frames = lab.sent(WAN);
            if p.proto == proto::TCP {
                assert_eq!(put_together(&frames).src, ip(GATEWAY));
            }
        }
        assert_eq!(result(lab, FragmentResult::Reassembled), 6);
    });
}

#[test]
fn untracked_datagrams_and_errors_pass_too() {
    let mut spec = masqueraded();
    spec.raw = vec![RawRuleSpec {
        name: "free".into(),
        matches: Match { proto: vec![proto::UDP], sport: vec![9..=9], ..Match::default() },
        action: RawAction::Notrack,
    }];
    spec.rules.push(rule("untracked", state(&[dataplane::packet::CtState::Untracked]), Action::Accept));
    everywhere_with(&virtually(), spec, |lab| {
        let pieces = cut(&udp(HOST, 9, SERVER, 53, &big()), 1, &[1448, 2896, 4344]);
        for n in [1, 0, 2, 3] {
            arrive(lab, LAN, &pieces[n]);
        }
        assert_eq!(put_together(&lab.sent(WAN)).flow(), "10.0.0.2:9 > 203.0.113.5:53");
        lab.moved(&["class untracked original +1"]);

        let question = udp(HOST, 4000, SERVER, 53, &[7; 500]);
        let out = lab.passes(LAN, &question, WAN);
        let pieces = cut(&icmp("198.51.100.20", GATEWAY, 3, 1, [0; 4], &out.ip), 2, &[104, 304]);
        lab.changed();
        for f in &pieces {
            arrive(lab, WAN, f);
        }
        let back = put_together(&lab.sent(LAN));
        assert_eq!(back.dst, ip(HOST));
        back.assert_quotes(&question);
        lab.moved(&["class related reply +1"]);
    });
}

#[test]
fn fragments_of_a_broken_or_unwanted_datagram_hold_no_more_memory_than_the_mark() {
    let memory = 1 << 20;
    let setup = Setup { defrag: defrag::Setup { memory, ..virtually().defrag }, ..virtually() };
    let mut spec = usual();
    spec.rules.push(rule("all", Match { from: vec![LAN_ZONE], ..Match::default() }, Action::Accept));
    let mut lab = Lab::with(spec, setup);
    let slow = cut(&udp(HOST, 4000, SERVER, 53, &big()), 9, &[1448, 2896, 4344]);
    arrive(&mut lab, LAN, &slow[3]);
    arrive(&mut lab, LAN, &slow[1]);
    for n in 0..5000u32 {
        let src = std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).to_string();
        let start = if n % 2 == 0 { 0 } else { 8 };
        arrive(&mut lab, LAN, &piece(&udp(&src, 4000, SERVER, 53, &[7; 100]), n, start, start + 8));
        assert!(lab.stats[0].fragment_memory.value() <= memory as u64);
    }
    lab.collect();
    assert!(lab.drop_count(DropReason::FragmentLimit) > 1000);
    arrive(&mut lab, LAN, &slow[0]);
    arrive(&mut lab, LAN, &slow[2]);
    assert_eq!(put_together(&lab.sent(WAN)).payload, big());
    lab.wait(Nanos::from_secs(120));
    assert_eq!((lab.pool.live(), lab.stats[0].fragment_memory.value()), (0, 0));
}
