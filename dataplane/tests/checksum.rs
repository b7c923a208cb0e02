//! Stories of checksums that the hardware has looked at. What it finds right is taken at its word, where it knows the protocol; all
//! else is verified in software. A device that lies cannot be found out.

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use common::right::is_right;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::io::RxChecksum;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

/// A right packet of each protocol that has a checksum, and whether hardware knows it.
fn packets() -> Vec<(Pkt, bool)> {
    let both = [(HOST, SERVER), ("fd00:1::2", "2001:db8:5::5")];
    let of = |(s, d)| {
        [
            (tcp(s, 4000, d, 80, SYN, 7, 0, b""), true),
            (udp(s, 4000, d, 53, b"question"), true),
            (sctp(s, 4000, d, 80, 0, &[init(1, 5)]), true),
            (udplite(s, 4000, d, 53, 0, b"question"), false),
            (ping(s, d, 7, 1), false),
        ]
    };
    both.into_iter().flat_map(of).collect()
}

/// Frames that leave once `p` has come with this verdict.
fn after(lab: &mut Lab, p: &Pkt, verdict: RxChecksum) -> Vec<Vec<u8>> {
    let buf = lab.pool.frame(&addressed(LAN, p).frame()).expect("a buffer is free");
    lab.arrive_buf(LAN, buf.with_checksum(verdict));
    lab.run();
    lab.sent(WAN)
}

#[test]
fn only_a_verdict_of_right_about_a_protocol_that_hardware_knows_spares_the_software() {
    everywhere(usual(), |lab| {
        for (p, known) in packets() {
            for verdict in [RxChecksum::Unknown, RxChecksum::Good, RxChecksum::Bad] {
                let before = lab.drop_count(DropReason::InvalidChecksum);
                let passes = known && verdict == RxChecksum::Good;
                let out = after(lab, &p.clone().broken_checksum(), verdict).len();
                assert_eq!(out, usize::from(passes), "a wrong one of protocol {}, {verdict:?}", p.proto);
                assert_eq!(lab.drop_count(DropReason::InvalidChecksum) - before, u64::from(!passes));
                assert_eq!(after(lab, &p, verdict).len(), 1, "a right one of protocol {}, {verdict:?}", p.proto);
            }
        }
    });
}

#[test]
fn what_hardware_wrongly_calls_right_leaves_as_wrong_as_it_came() {
    everywhere(PolicySpec { nat: vec![masquerade()], ..usual() }, |lab| {
        for (p, _) in packets().into_iter().filter(|(_, known)| *known) {
            let frames = after(lab, &p.clone().broken_checksum(), RxChecksum::Good);
            assert_eq!(frames.len(), 1, "{:?}", lab.drops());
            assert!(!is_right(&frames[0][14..]), "the gateway vouches for nothing that it has not checked");
        }
    });
}

#[test]
fn an_ipv4_header_is_verified_in_software() {
    everywhere(usual(), |lab| {
        let mut frame = addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"question")).frame();
        frame[24] ^= 1;
        let buf = lab.pool.frame(&frame).expect("a buffer is free").with_checksum(RxChecksum::Good);
        lab.arrive_buf(LAN, buf);
        lab.run();
        lab.moved(&["drop ipv4_checksum +1"]);
    });
}

#[test]
fn a_datagram_in_fragments_is_verified_in_software() {
    everywhere(usual(), |lab| {
        for src in [HOST, "fd00:1::2"] {
            let dst = if src == HOST { SERVER } else { "2001:db8:5::5" };
            for f in cut(&udp(src, 4000, dst, 53, &[7; 100]).broken_checksum(), 1, &[40, 80]) {
                assert!(after(lab, &f, RxChecksum::Good).is_empty());
            }
        }
        lab.moved(&["class invalid original +2", "drop invalid_checksum +6"]);
    });
}
