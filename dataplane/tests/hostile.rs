//! Hostile input: whatever arrives, nothing panics, no buffer is lost, and good traffic goes on.
//!
//! The oracles are those of the fuzz targets (`fuzz/`); here they meet random bytes, every truncation of right packets,
//! and, in `crashes/`, each input that once broke something.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::oracle::{self, Input};
use common::pkt::*;
use common::talk;
use dataplane::io::PortIdx;
use dataplane::time::Nanos;
use proptest::prelude::*;

/// Bytes that begin like a frame for the gateway: else nearly all would end at the first check.
fn framed() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop_oneof![Just([8u8, 0]), Just([0x86, 0xdd]), Just([8, 6]), Just([0x81, 0]), any::<[u8; 2]>()];
    let body = proptest::collection::vec(any::<u8>(), 0..186);
    let first = prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()];
    (ethertype, first, body, any::<bool>()).prop_map(|(ethertype, first, mut body, sized)| {
        if let Some(b) = body.first_mut() {
            *b = first;
        }
        if sized && body.len() >= 40 {
            let n = body.len() as u16;
            body[2..4].copy_from_slice(&n.to_be_bytes());
            if first >> 4 == 6 {
                body[4..6].copy_from_slice(&(n - 40).to_be_bytes());
                body[6] = [0, 6, 17, 43, 44, 51, 58, 60][usize::from(body[6] % 8)];
            } else {
                let header = usize::from(first & 15).clamp(5, 10) * 4;
                body[9] = [1, 6, 17, 47][usize::from(body[9] % 4)];
                body[10..12].fill(0);
                let sum = !dataplane::parse::checksum::sum(&body[..header]);
                body[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        [&LAN_MAC[..], &[2, 0, 0, 0, 0, 0x10], &ethertype, &body].concat()
    })
}

proptest! {
    #[test]
    fn parsing_keeps_its_promises_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        oracle::parses(&bytes);
    }

    #[test]
    fn parsing_keeps_its_promises_for_anything_that_begins_well(bytes in framed()) {
        oracle::parses(&bytes);
    }

    #[test]
    fn what_begins_well_is_translated_and_back_or_not_at_all(frame in framed(), rest in proptest::collection::vec(any::<u8>(), 100)) {
        oracle::translates(&frame, &mut Input(&rest));
        oracle::translates_error(&frame, &mut Input(&rest));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_gateway_survives_any_frames(
        frames in proptest::collection::vec((0u16..4, framed()), 1..120), workers in 1usize..=4, anywhere in any::<bool>(), verify in any::<bool>(),
    ) {
        let arrival = if anywhere { Arrival::Anywhere } else { Arrival::Rss };
        let setup = Setup { workers, arrival, stations: 12, ..Setup::default() };
        let mut lab = Lab::with(oracle::busy_policy(verify), setup);
        for (port, frame) in &frames {
            lab.arrive(PortIdx(*port), frame);
        }
        lab.run();
        lab.sound();
        still_works(&mut lab);
    }

    #[test]
    fn a_gateway_survives_any_course_of_events(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        oracle::survives(&mut Input(&bytes));
    }

    #[test]
    fn a_talk_reaches_the_other_side_whole_however_it_is_cut_lost_and_repeated(bytes in talks()) {
        talk::talks(&mut Input(&bytes));
    }

    #[test]
    fn any_text_is_read_to_its_end(flags in any::<[u8; 2]>(), text in texts()) {
        talk::reads(&[&flags[..], &text].concat());
    }
}

/// Text in which something may be announced.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let word = proptest::sample::select(vec![
        "\nPORT ",
        "\nEPRT ",
        "\n227 ",
        "\n229 ",
        "10,0,0,2,19,137",
        "(|||6446|)",
        "|1|10.0.0.2|5001|",
        "|2|fd00:1::2|1|",
        "\r\n",
        "(",
        ")",
        ",",
        "1",
        " ",
        "x",
        "|",
    ]);
    let part = prop_oneof![word.prop_map(|w| w.as_bytes().to_vec()), proptest::collection::vec(any::<u8>(), 0..4)];
    proptest::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

/// What a talk is made of: flags, words, and how they are sent.
fn talks() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::collection::vec(prop_oneof![4 => 0u8..16, 1 => any::<u8>()], 0..30);
    (any::<[u8; 2]>(), words, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|(flags, words, how)| {
        let words = words.into_iter().flat_map(|w| [0, w]).collect::<Vec<_>>();
        [&flags[..], &words, &[0xff], &how].concat()
    })
}

/// Takes all that has left.
fn discard(lab: &mut Lab) {
    for port in [LAN, WAN, LAN_TWIN, WAN_TWIN] {
        lab.sent(port);
    }
}

/// Everything that waits is given up, no buffer is missing, and a good flow passes.
#[track_caller]
fn still_works(lab: &mut Lab) {
    discard(lab);
    lab.wait(Nanos::from_secs(200));
    discard(lab);
    assert_eq!(lab.pool.live(), 0, "buffers leaked");
    lab.passes(LAN, &udp("10.0.0.3", 6000, "203.0.113.9", 53, b"question"), WAN);
}

#[test]
fn every_truncation_of_every_kind_of_packet_is_survived() {
    for (port, p) in oracle::templates() {
        let frame = addressed(port, &p).frame();
        let mut lab = Lab::with(oracle::busy_policy(true), Setup { workers: 2, stations: 12, ..Setup::default() });
        for n in 0..=frame.len() {
            oracle::parses(&frame[..n]);
            lab.arrive(port, &frame[..n]);
            if n % 32 == 0 {
                lab.run();
                lab.sound();
            }
        }
        lab.run();
        lab.sound();
        let drops = lab.total_drops();
        assert!(drops >= frame.len() as u64 - 30, "of {} truncations only {drops} were dropped", frame.len());
        still_works(&mut lab);
    }
}

/// Truncated within the transport header, with lengths that agree: a packet that a sender made so.
#[test]
fn every_truncation_of_a_transport_header_with_honest_lengths_is_survived() {
    for (port, p) in oracle::templates() {
        let mut lab = Lab::with(oracle::busy_policy(false), Setup { workers: 2, stations: 12, ..Setup::default() });
        for n in 0..=p.l4.len().min(100) {
            let mut short = addressed(port, &p);
            short.l4.truncate(n);
            oracle::parses(&short.frame());
            lab.arrive(port, &short.frame());
            lab.run();
        }
        lab.sound();
        still_works(&mut lab);
    }
}

#[test]
fn every_single_byte_of_every_kind_of_packet_may_be_anything() {
    for (port, p) in oracle::templates() {
        let frame = addressed(port, &p).frame();
        let mut lab = Lab::with(oracle::busy_policy(false), Setup { workers: 2, stations: 12, ..Setup::default() });
        for at in 0..frame.len().min(100) {
            for value in [0, 1, 0x7f, 0x80, 0xff, frame[at] ^ 0x10, frame[at].wrapping_add(1)] {
                let mut b = frame.clone();
                b[at] = value;
                oracle::parses(&b);
                lab.arrive(port, &b);
                // And the same behind a right header checksum.
                if p.src.is_ipv4() && b.len() >= 34 {
                    b[24..26].fill(0);
                    let sum = !dataplane::parse::checksum::sum(&b[14..34]);
                    b[24..26].copy_from_slice(&sum.to_be_bytes());
                    lab.arrive(port, &b);
                }
            }
            lab.run();
            discard(&mut lab);
        }
        lab.sound();
        still_works(&mut lab);
    }
}

/// Each file of `crashes/` is an input of the fuzz target that its name begins with.
#[test]
fn what_once_broke_something_does_not_any_more() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crashes");
    for entry in std::fs::read_dir(dir).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.ends_with(".bin") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("it can be read");
        match name.split('-').next() {
            Some("parse") => oracle::parses_repaired(&bytes),
            Some("nat") => drop(oracle::translates_chosen(&bytes)),
            Some("icmp_error") => drop(oracle::translates_error_chosen(&bytes)),
            Some("path") => oracle::survives(&mut Input(&bytes)),
            Some("pptp") => common::calls::talks(&mut Input(&bytes)),
            _ => panic!("{name} names no fuzz target"),
        }
    }
}
