//! Properties of the header rewriter: translated, a packet has the tuple that was asked for and right checksums;
//! translated back, it is what it was. For every protocol, both IP versions, errors with what they quote.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::lab::*;
use common::oracle::{self, Input};
use common::pkt::*;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::nat::rewrite;
use dataplane::packet::L4;
use dataplane::parse::checksum;
use proptest::prelude::*;

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = any::<(u32, u32)>().prop_map(|(a, b)| (Ipv4Addr::from_bits(a).into(), Ipv4Addr::from_bits(b).into()));
    let v6 = any::<(u128, u128)>().prop_map(|(a, b)| (Ipv6Addr::from_bits(a).into(), Ipv6Addr::from_bits(b).into()));
    prop_oneof![v4, v6]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..80),
        Just(vec![0; 40]),
        Just(vec![0xff; 41])
    ]
}

/// Right packets of every protocol.
fn packets() -> impl Strategy<Value = Pkt> {
    let what = (0usize..11, addresses(), any::<(u16, u16)>(), payload(), any::<(u8, u32, u32)>(), any::<bool>());
    what.prop_map(|(kind, (src, dst), (sport, dport), payload, (flags, seq, ack), odd)| {
        let (s, d) = (src.to_string(), dst.to_string());
        let p = match kind {
            0 | 1 => tcp(&s, sport, &d, dport, flags, seq, ack, &payload),
            2 => udp(&s, sport, &d, dport, &payload),
            3 => udp(&s, sport, &d, dport, &payload).without_checksum(),
            4 => ping(&s, &d, sport, dport),
            5 => pong(&s, &d, sport, dport),
            6 => udplite(&s, sport, &d, dport, [0, 8, 8 + payload.len() as u16][usize::from(flags % 3)], &payload),
            7 => checksummed(other(&s, &d, proto::DCCP, &with_header(sport, dport, 16, &payload)), 6),
            8 => sctp(&s, sport, &d, dport, seq, &[chunk(0, 3, &payload), chunk(3, flags, &payload)]),
            9 => {
                other(&s, &d, proto::GRE, &[&[0x30, 1, 0x88, 0x0b, 0, 4], &sport.to_be_bytes()[..], &payload].concat())
            }
            _ => other(&s, &d, [89, 50, 4][usize::from(flags % 3)], &payload),
        };
        if odd { p.vlan(0) } else { p }
    })
}

fn with_header(sport: u16, dport: u16, header: usize, payload: &[u8]) -> Vec<u8> {
    let mut b = [&sport.to_be_bytes()[..], &dport.to_be_bytes()].concat();
    b.resize(header, 0);
    b.extend(payload);
    b
}

/// With the checksum that protocols with UDP's pseudo header have, at offset `at`.
fn checksummed(mut p: Pkt, at: usize) -> Pkt {
    let pseudo = checksum::pseudo(p.src, p.dst, p.proto, p.l4.len());
    let sum = !checksum::fold(checksum::add(pseudo, &p.l4));
    p.l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    p
}

/// The packet with IPv4 options: `words` words of no-operations.
fn with_options(frame: &[u8], words: usize) -> Vec<u8> {
    let mut b = frame[..34].to_vec();
    b[14] = 0x45 + words as u8;
    let len = (frame.len() - 14 + 4 * words) as u16;
    b[16..18].copy_from_slice(&len.to_be_bytes());
    b.extend(std::iter::repeat_n(1, 4 * words));
    b[24..26].fill(0);
    let sum = !checksum::sum(&b[14..]);
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    b.extend(&frame[34..]);
    b
}

/// Errors about any of those packets, quoting at least its ports.
fn errors() -> impl Strategy<Value = Pkt> {
    (packets(), addresses(), 0usize..120, 0usize..5).prop_map(|(p, (router4, _), quote, kind)| {
        let v4 = p.src.is_ipv4();
        let router = if router4.is_ipv4() == v4 { router4 } else { p.dst };
        let kind = if v4 { [3, 4, 5, 11, 12][kind] } else { [1, 2, 3, 4, 100][kind] };
        let packet = p.ip();
        let least = if v4 { 28 } else { 48 };
        let quote = &packet[..packet.len().min(least + quote)];
        icmp(&router.to_string(), &p.src.to_string(), kind, 1, [0; 4], quote)
    })
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 80)
}

/// Whether the transport checksum of an arbitrary packet is right.
fn right(p: &Seen) -> bool {
    let l4 = &p.ip[if p.src.is_ipv4() { 20 } else { 40 }..];
    match p.proto {
        proto::DCCP => transport_ok(p.src, p.dst, p.proto, l4),
        _ => true, // `Seen::read` has asserted it
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn translated_and_back_is_what_it_was(p in packets(), options in 0usize..=10, choices in choices()) {
        let mut frame = p.frame();
        if p.src.is_ipv4() && p.vlan.is_none() {
            frame = with_options(&frame, options);
        }
        prop_assert!(oracle::translates(&frame, &mut Input(&choices)), "{:?}", p);
    }

    #[test]
    fn checksums_are_right_after_translation(p in packets(), choices in choices()) {
        let mut frame = p.frame();
        let packet = oracle::packet_of(&frame, true).expect("a packet");
        prop_assert!(!matches!(packet.kind, L4::Invalid(_)), "{:?}", packet.kind);
        let to = oracle::target(&packet.tuple, &mut Input(&choices));
        rewrite::translate(&mut frame, &packet, &to);
        rewrite::decrement_ttl(&mut frame, usize::from(packet.l3));
        let seen = Seen::read(&frame); // asserts IPv4, TCP, UDP, ICMP
        prop_assert!(right(&seen), "checksum of protocol {}", p.proto);
        prop_assert_eq!((seen.src, seen.dst, seen.ttl), (to.src, to.dst, 63));
    }

    #[test]
    fn an_error_translated_and_back_is_what_it_was(p in errors(), choices in choices()) {
        prop_assert!(oracle::translates_error(&p.frame(), &mut Input(&choices)), "{:?}", p);
    }

    #[test]
    fn an_incremental_checksum_is_the_full_one(p in packets(), choices in choices()) {
        // A packet built for the target from scratch is the packet that was translated to it.
        let mut frame = p.frame();
        let packet = oracle::packet_of(&frame, true).expect("a packet");
        let to = oracle::target(&packet.tuple, &mut Input(&choices));
        rewrite::translate(&mut frame, &packet, &to);
        let (s, d) = (to.src.to_string(), to.dst.to_string());
        let mut fresh = p.clone().src(&s).dst(&d);
        match packet.kind {
            L4::Tcp(_) | L4::Udp | L4::UdpLite | L4::Sctp(_) => {
                fresh.l4[..2].copy_from_slice(&to.sport.to_be_bytes());
                fresh.l4[2..4].copy_from_slice(&to.dport.to_be_bytes());
            }
            L4::Gre { .. } if to.dport != packet.tuple.dport => fresh.l4[6..8].copy_from_slice(&to.dport.to_be_bytes()),
            L4::IcmpQuery => fresh.l4[4..6].copy_from_slice(&to.sport.to_be_bytes()),
            _ => {}
        }
        let unsummed = packet.kind == L4::Udp && p.l4[6..8] == [0, 0];
        let fresh = match p.proto {
            proto::DCCP => { fresh.l4[6..8].fill(0); checksummed(fresh, 6) }
            _ if unsummed => fresh.without_checksum(),
            _ => fresh.src(&s),
        };
        prop_assert_eq!(frame, fresh.frame());
    }
}

#[test]
fn every_ttl_that_may_be_lowered_leaves_a_right_checksum() {
    for ttl in 1..=255 {
        for mut p in [udp("10.0.0.2", 1, "203.0.113.5", 2, b""), udp("fd00:1::2", 1, "2001:db8:5::5", 2, b"")] {
            p.id = u16::from(ttl) * 257;
            let mut frame = p.ttl(ttl).frame();
            rewrite::decrement_ttl(&mut frame, 14);
            assert_eq!(Seen::read(&frame).ttl, ttl - 1);
        }
    }
}

/// The value that a checksum takes in the one place where one's complement has two zeros.
#[test]
fn a_udp_checksum_never_becomes_that_of_a_datagram_without_one() {
    let mut zeros = 0;
    for port in 0..=u16::MAX {
        let mut frame = udp("10.0.0.2", 4000, "203.0.113.5", 53, b"x").frame();
        let p = oracle::packet_of(&frame, true).expect("a packet");
        let to = Tuple { sport: port, src: ip("198.51.100.1"), ..p.tuple };
        rewrite::translate(&mut frame, &p, &to);
        let sum = [frame[40], frame[41]];
        assert_ne!(sum, [0, 0], "port {port}");
        zeros += usize::from(sum == [0xff, 0xff]);
        if sum == [0xff, 0xff] {
            Seen::read(&frame);
            let q = oracle::packet_of(&frame, true).expect("a packet");
            assert_eq!(q.kind, L4::Udp);
            rewrite::translate(&mut frame, &q, &p.tuple);
            assert_eq!(frame, udp("10.0.0.2", 4000, "203.0.113.5", 53, b"x").frame());
        }
    }
    assert_eq!(zeros, 1, "one port makes it zero");
}

/// The templates that property tests and fuzz targets begin with are worth beginning with.
#[test]
fn templates_are_translated() {
    let (mut plain, mut errors) = (0, 0);
    for (port, p) in oracle::templates() {
        let frame = addressed(port, &p).frame();
        let choices: Vec<u8> = (1..80).collect();
        plain += usize::from(oracle::translates(&frame, &mut Input(&choices)));
        errors += usize::from(oracle::translates_error(&frame, &mut Input(&choices)));
    }
    assert!(plain >= 34 && errors == 5, "{plain} packets, {errors} errors");
}
