//! Stories of plain forwarding and tracking, on one, two and four workers.
//!
//! ```text
//!   10.0.0.2 ──┐                                             ┌── 203.0.113.5
//!              ├─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ─┤
//!   fd00:1::2 ─┘      [ fd00:1::1            2001:db8::1  ]  └── 2001:db8:5::5
//! ```
//! Lan may open connections to wan; nobody else may. Nothing is translated here: nat.rs.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::io::RxChecksum;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

/// A segment of the connection HOST:4000 > SERVER:443, in its original direction.
fn there(flags: u8, seq: u32, ack: u32, data: &[u8]) -> Pkt {
    tcp(HOST, 4000, SERVER, 443, flags, seq, ack, data)
}

/// A segment back.
fn back(flags: u8, seq: u32, ack: u32, data: &[u8]) -> Pkt {
    tcp(SERVER, 443, HOST, 4000, flags, seq, ack, data)
}

/// Opens the connection.
#[track_caller]
fn handshake(lab: &mut Lab) {
    lab.passes(LAN, &there(SYN, 100, 0, b""), WAN);
    lab.passes(WAN, &back(SYN | ACK, 500, 101, b""), LAN);
    lab.passes(LAN, &there(ACK, 101, 501, b""), WAN);
    lab.changed();
}

/// Closes it from the original side.
#[track_caller]
fn goodbye(lab: &mut Lab) {
    lab.passes(LAN, &there(FIN | ACK, 101, 501, b""), WAN);
    lab.passes(WAN, &back(ACK, 501, 102, b""), LAN);
    lab.passes(WAN, &back(FIN | ACK, 501, 102, b""), LAN);
    lab.passes(LAN, &there(ACK, 102, 502, b""), WAN);
    lab.changed();
}

#[track_caller]
fn tcp_state(lab: &Lab) -> &'static str {
    let owned = lab.owned();
    assert_eq!(owned.len(), 1, "{owned:?}");
    owned[0].tcp
}

// ---- Forwarding -----------------------------------------------------------------------------------------------------

#[test]
fn a_udp_question_and_its_answer() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        assert_eq!((out.flow().as_str(), out.payload.as_slice()), ("10.0.0.2:4000 > 203.0.113.5:53", &b"question"[..]));
        assert_eq!((out.ttl, out.src_mac, out.dst_mac), (63, WAN_MAC, [2, 0, 0, 0, 2, 1]));
        lab.moved(&["class new original +1", "event new +1"]);
        let back = lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b"answer"), LAN);
        assert_eq!((back.flow().as_str(), back.payload.as_slice()), ("203.0.113.5:53 > 10.0.0.2:4000", &b"answer"[..]));
        assert_eq!((back.ttl, back.src_mac, back.dst_mac), (63, LAN_MAC, [2, 0, 0, 0, 2, 0]));
        lab.moved(&["class established reply +1", "event replied +1"]);
        assert_eq!(lab.entries(), 1);
        lab.wait(Nanos::from_secs(31));
        lab.moved(&["event expired +1"]);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn ipv6_goes_the_same_way() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b"question"), WAN);
        assert_eq!(out.flow(), "fd00:1::2:4000 > 2001:db8:5::5:53");
        assert_eq!((out.ttl, out.src_mac, out.dst_mac), (63, WAN_MAC, [2, 0, 0, 0, 2, 1]));
        lab.moved(&["class new original +1", "event new +1"]);
        let back = lab.passes(WAN, &udp(SERVER6, 53, HOST6, 4000, b"answer"), LAN);
        assert_eq!((back.flow().as_str(), back.ttl), ("2001:db8:5::5:53 > fd00:1::2:4000", 63));
        assert_eq!((back.src_mac, back.dst_mac), (LAN_MAC, [2, 0, 0, 0, 2, 0]));
        lab.moved(&["class established reply +1", "event replied +1"]);
    });
}

#[test]
fn nobody_from_outside_gets_in() {
    everywhere(usual(), |lab| {
        lab.refuses(WAN, &udp(SERVER, 53, HOST, 4000, b""), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
        lab.refuses(WAN, &back(SYN | ACK, 1, 1, b""), DropReason::InvalidTcpState);
        lab.moved(&["class invalid original +1", "drop invalid_tcp_state +1"]);
        lab.refuses(WAN, &udp(SERVER6, 53, HOST6, 4000, b""), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1"]);
        assert_eq!(lab.entries(), 0);
    });
}

/// ```text
///   10.0.0.2 ── VLAN 7 ── lan [ gateway ] wan ── untagged
/// ```
#[test]
fn a_vlan_tag_is_taken_off_and_put_on() {
    everywhere_with(&Setup { lan_vlan: Some(7), ..Setup::default() }, usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question").vlan(7), WAN);
        assert_eq!((out.vlan, out.payload.as_slice()), (None, &b"question"[..]));
        let back = lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b"answer"), LAN);
        assert_eq!((back.vlan, back.payload.as_slice()), (Some(7), &b"answer"[..]));
        lab.moved(&["class established reply +1", "class new original +1", "event new +1", "event replied +1"]);
        // Priority bits in the tag do not make another VLAN of it.
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question").vlan(7 | 5 << 13), WAN);
        lab.changed();
        for stray in [udp(HOST, 4000, SERVER, 53, b""), udp(HOST, 4000, SERVER, 53, b"").vlan(8)] {
            lab.refuses(LAN, &stray, DropReason::VlanUnknown);
            lab.moved(&["drop vlan_unknown +1"]);
        }
        // An error of the gateway's own goes back into the VLAN that it is about.
        let error =
            lab.refuses_with_error(LAN, &udp(HOST, 4000, SERVER, 53, b"").vlan(7).ttl(1), DropReason::TtlExpired);
        assert_eq!(error.vlan, Some(7));
    });
}

#[test]
fn a_priority_tag_is_no_vlan() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"").vlan(3 << 13), WAN);
        assert_eq!(out.vlan, None);
        lab.refuses(LAN, &udp(HOST, 4000, SERVER, 53, b"").vlan(1), DropReason::VlanUnknown);
    });
}

#[test]
fn link_padding_does_not_leave() {
    everywhere(usual(), |lab| {
        let p = addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"short"));
        let mut frame = p.frame();
        frame.resize(60, 0xee);
        lab.arrive(LAN, &frame);
        lab.run();
        let out = lab.collect();
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].1.ip_len, out[0].1.payload.as_slice()), (33, &b"short"[..]));
    });
}

#[test]
fn a_frame_in_segments_is_made_one() {
    let p = addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"in pieces"));
    let frame = p.frame();
    everywhere(usual(), |lab| {
        for at in 1..frame.len() {
            lab.arrive_chained(LAN, &frame, at);
            lab.run();
            let out = lab.collect();
            assert_eq!(out.len(), 1, "cut at {at}: {:?}", lab.drops());
            assert_eq!(out[0].1.payload, b"in pieces");
        }
        lab.moved(&[&format!("class new original +{}", frame.len() - 1), "event new +1"]);
        let buf = lab.pool.frame(&frame).expect("a buffer is free").with_tail(&[0; 2100]);
        lab.arrive_buf(LAN, buf);
        lab.run();
        assert!(lab.collect().is_empty());
        lab.moved(&["drop chained_too_long +1"]);
    });
}

/// ```text
///   lan, MTU 1500 [ gateway ] wan, MTU 1280
/// ```
#[test]
fn a_packet_too_large_for_the_next_link_is_cut_where_it_may_be() {
    everywhere_with(&Setup { wan_mtu: 1280, ..Setup::default() }, usual(), |lab| {
        let payload: Vec<u8> = (0..1400u32).map(|n| n as u8).collect();
        let p = udp(HOST, 4000, SERVER, 53, &payload);
        let out = lab.send(LAN, &p);
        assert_eq!(out.len(), 2, "{:?}", lab.drops());
        assert!(out.iter().all(|(port, s)| *port == WAN && s.ip_len <= 1280 && s.ttl == 63));
        assert_eq!((out[0].1.fragment, out[1].1.fragment), (Some((0, true)), Some((1256, false))));
        assert_eq!([&out[0].1.ip[20..], &out[1].1.ip[20..]].concat(), p.l4);
        lab.moved(&["class new original +1", "event new +1"]);
        // Exactly as large as the link takes.
        let fits = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, &payload[..1252]), WAN);
        assert_eq!((fits.fragment, fits.ip_len), (None, 1280));
    });
}

// ---- TCP ------------------------------------------------------------------------------------------------------------

#[test]
fn a_tcp_connection_from_its_first_syn_to_time_wait() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &there(SYN, 100, 0, b""), WAN);
        lab.moved(&["class new original +1", "event new +1"]);
        assert_eq!(tcp_state(lab), "SYN_SENT");
        lab.passes(LAN, &there(SYN, 100, 0, b""), WAN); // again: no answer was seen
        lab.moved(&["class new original +1"]);
        lab.passes(WAN, &back(SYN | ACK, 500, 101, b""), LAN);
        lab.moved(&["class established reply +1", "event replied +1"]);
        assert_eq!(tcp_state(lab), "SYN_RECV");
        lab.passes(LAN, &there(ACK, 101, 501, b""), WAN);
        lab.moved(&["class established original +1", "event assured +1"]);
        assert_eq!(tcp_state(lab), "ESTABLISHED");
        let out = lab.passes(LAN, &there(ACK | PSH, 101, 501, b"hello"), WAN);
        assert_eq!((out.tcp_flags, out.payload.as_slice()), (ACK | PSH, &b"hello"[..]));
        lab.passes(WAN, &back(ACK | PSH, 501, 106, b"world"), LAN);
        lab.moved(&["class established original +1", "class established reply +1"]);
        let life = [
            (true, FIN | ACK, "FIN_WAIT"),
            (false, ACK, "CLOSE_WAIT"),
            (false, FIN | ACK, "LAST_ACK"),
            (true, ACK, "TIME_WAIT"),
        ];
        for (original, flags, state) in life {
            if original {
                lab.passes(LAN, &there(flags, 106, 506, b""), WAN);
                lab.moved(&["class established original +1"]);
            } else {
                lab.passes(WAN, &back(flags, 506, 107, b""), LAN);
                lab.moved(&["class established reply +1"]);
            }
            assert_eq!(tcp_state(lab), state);
        }
        let conn = &lab.conns()[0];
        // What changes nothing is not counted: here the SYN that was sent again.
        assert_eq!((conn.packets, conn.assured, conn.timeout_s), ([5, 4], true, 120));
        assert_eq!(conn.bytes, [5 * 40 + 5, 4 * 40 + 5]);
        lab.wait(Nanos::from_secs(121));
        lab.moved(&["event expired +1"]);
    });
}

#[test]
fn a_syn_from_the_same_side_opens_a_connection_in_time_wait_anew() {
    everywhere(usual(), |lab| {
        handshake(lab);
        goodbye(lab);
        assert_eq!(tcp_state(lab), "TIME_WAIT");
        lab.passes(LAN, &there(SYN, 9000, 0, b""), WAN);
        lab.moved(&["class new original +1", "event closed +1", "event new +1"]);
        assert_eq!(tcp_state(lab), "SYN_SENT");
    });
}

#[test]
fn a_syn_from_the_other_side_in_time_wait_is_a_new_connection_even_where_the_policy_drops_it() {
    everywhere(usual(), |lab| {
        handshake(lab);
        goodbye(lab);
        lab.refuses(WAN, &back(SYN, 9000, 0, b""), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1", "event closed +1"]);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn a_syn_on_an_open_connection_passes_and_opens_nothing() {
    everywhere(usual(), |lab| {
        handshake(lab);
        lab.passes(LAN, &there(SYN, 9000, 0, b""), WAN);
        lab.moved(&["class established original +1"]);
        assert_eq!(tcp_state(lab), "ESTABLISHED");
    });
}

#[test]
fn a_reset_closes_an_open_connection_for_ten_seconds() {
    everywhere(usual(), |lab| {
        handshake(lab);
        lab.passes(WAN, &back(RST, 501, 0, b""), LAN);
        lab.moved(&["class established reply +1"]);
        assert_eq!(tcp_state(lab), "CLOSE");
        lab.wait(Nanos::from_secs(9));
        assert_eq!(lab.entries(), 1);
        lab.wait(Nanos::from_secs(2));
        assert_eq!(lab.entries(), 0);
        lab.moved(&["event expired +1"]);
    });
}

#[test]
fn a_reset_before_any_answer_leaves_nothing() {
    everywhere(usual(), |lab| {
        // From the server: nobody listens.
        lab.passes(LAN, &there(SYN, 100, 0, b""), WAN);
        lab.changed();
        lab.passes(WAN, &back(RST | ACK, 0, 101, b""), LAN);
        lab.moved(&["class established reply +1", "event closed +1", "event replied +1"]);
        assert_eq!(lab.entries(), 0);
        // From the client: it has thought better of it.
        lab.passes(LAN, &there(SYN, 100, 0, b""), WAN);
        lab.changed();
        lab.passes(LAN, &there(RST, 101, 0, b""), WAN);
        lab.moved(&["class new original +1", "event closed +1"]);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn crossing_syns_open_one_connection() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &there(SYN, 100, 0, b""), WAN);
        lab.changed();
        lab.passes(WAN, &back(SYN, 500, 0, b""), LAN);
        lab.moved(&["class established reply +1", "event replied +1"]);
        assert_eq!(tcp_state(lab), "SYN_SENT2");
        lab.passes(LAN, &there(SYN | ACK, 100, 501, b""), WAN);
        assert_eq!(tcp_state(lab), "SYN_RECV");
        lab.passes(WAN, &back(ACK, 501, 101, b""), LAN);
        assert_eq!(lab.entries(), 1);
    });
}

#[test]
fn segments_that_belong_to_nothing_are_invalid() {
    everywhere(usual(), |lab| {
        for flags in [RST, RST | ACK, FIN | ACK, SYN | ACK] {
            lab.refuses(LAN, &there(flags, 1, 1, b""), DropReason::InvalidTcpState);
            lab.moved(&["class invalid original +1", "drop invalid_tcp_state +1"]);
        }
        for flags in [0, FIN, PSH, SYN | FIN, SYN | RST, SYN | FIN | ACK, 0x3f] {
            lab.refuses(LAN, &there(flags, 1, 1, b""), DropReason::InvalidFlags);
            lab.moved(&["class invalid original +1", "drop invalid_flags +1"]);
        }
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn a_connection_is_picked_up_in_mid_stream_where_the_policy_is_loose() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &there(ACK | PSH, 7000, 8000, b"data"), WAN);
        lab.moved(&["class new original +1", "event new +1"]);
        assert_eq!((tcp_state(lab), lab.conns()[0].timeout_s), ("ESTABLISHED", 300));
        lab.passes(WAN, &back(ACK, 8000, 7004, b""), LAN);
        lab.moved(&["class established reply +1", "event replied +1"]);
        lab.passes(LAN, &there(ACK, 7004, 8000, b""), WAN);
        lab.moved(&["class established original +1", "event assured +1"]);
    });
    let mut strict = usual();
    strict.conntrack.tcp_loose = false;
    everywhere(strict, |lab| {
        lab.refuses(LAN, &there(ACK | PSH, 7000, 8000, b"data"), DropReason::InvalidTcpState);
        handshake(lab);
    });
}

// ---- UDP, ICMP, others ----------------------------------------------------------------------------------------------

#[test]
fn udp_without_a_checksum_passes_over_both_ip_versions() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"q").without_checksum(), WAN);
        lab.passes(LAN, &udp(HOST6, 4000, SERVER6, 53, b"q").without_checksum(), WAN);
        lab.moved(&["class new original +2", "event new +2"]);
    });
}

#[test]
fn icmp_queries_are_connections() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &ping(HOST, SERVER, 77, 1), WAN);
        assert_eq!(out.flow(), "10.0.0.2 > 203.0.113.5 icmp 8/0 id 77");
        lab.moved(&["class new original +1", "event new +1"]);
        let answer = lab.passes(WAN, &pong(SERVER, HOST, 77, 1), LAN);
        assert_eq!(answer.flow(), "203.0.113.5 > 10.0.0.2 icmp 0/0 id 77");
        lab.moved(&["class established reply +1", "event replied +1"]);
        lab.passes(LAN, &ping(HOST, SERVER, 77, 2), WAN);
        lab.moved(&["class established original +1"]);
        lab.refuses(WAN, &pong(SERVER, HOST, 78, 1), DropReason::InvalidNoRequest);
        lab.moved(&["class invalid original +1", "drop invalid_no_request +1"]);
        // Timestamp, information, address mask.
        for kind in [13, 15, 17] {
            lab.passes(LAN, &icmp(HOST, SERVER, kind, 0, [0, 9, 0, 1], &[0; 12]), WAN);
            lab.passes(WAN, &icmp(SERVER, HOST, kind + 1, 0, [0, 9, 0, 1], &[0; 12]), LAN);
            lab.moved(&["class established reply +1", "class new original +1", "event new +1", "event replied +1"]);
        }
        // ICMP is never assured.
        assert!(lab.owned().iter().all(|c| !c.assured));
        lab.wait(Nanos::from_secs(31));
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn icmpv6_echo_is_a_connection() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &ping(HOST6, SERVER6, 77, 1), WAN);
        let answer = lab.passes(WAN, &pong(SERVER6, HOST6, 77, 1), LAN);
        assert_eq!(answer.flow(), "2001:db8:5::5 > fd00:1::2 icmp 129/0 id 77");
        lab.moved(&["class established reply +1", "class new original +1", "event new +1", "event replied +1"]);
        lab.refuses(WAN, &pong(SERVER6, HOST6, 78, 1), DropReason::InvalidNoRequest);
    });
}

#[test]
fn icmp_types_that_start_nothing_are_invalid() {
    everywhere(usual(), |lab| {
        for kind in [1, 2, 6, 7, 9, 10, 19, 30, 40, 42, 255] {
            lab.refuses(LAN, &icmp(HOST, SERVER, kind, 0, [0; 4], b"payload"), DropReason::InvalidIcmpType);
            lab.moved(&["class invalid original +1", "drop invalid_icmp_type +1"]);
        }
        for kind in [138, 141, 142, 144, 150, 153, 160, 255] {
            lab.refuses(LAN, &icmp(HOST6, SERVER6, kind, 0, [0; 4], b"payload"), DropReason::InvalidIcmpType);
            lab.moved(&["class invalid original +1", "drop invalid_icmp_type +1"]);
        }
    });
}

#[test]
fn other_protocols_are_connections_between_two_addresses() {
    everywhere(usual(), |lab| {
        for p in [0, 0xfd, 50, 51, 59, proto::DCCP, 4] {
            lab.passes(LAN, &other(HOST, SERVER, p, b"sixteen bytes, ok"), WAN);
            lab.moved(&["class new original +1", "event new +1"]);
            lab.passes(LAN, &other(HOST, SERVER, p, b""), WAN);
            lab.moved(&["class new original +1"]);
            lab.passes(WAN, &other(SERVER, HOST, p, b"x"), LAN);
            lab.moved(&["class established reply +1", "event replied +1"]);
        }
        lab.passes(LAN, &other(HOST6, SERVER6, 50, b"esp"), WAN);
        lab.passes(WAN, &other(SERVER6, HOST6, 50, b"esp"), LAN);
        assert_eq!(lab.entries(), 8);
        lab.wait(Nanos::from_secs(599));
        assert_eq!(lab.entries(), 8);
        lab.wait(Nanos::from_secs(2));
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn extension_headers_do_not_hide_the_transport() {
    everywhere(usual(), |lab| {
        let plain = udp(HOST6, 4000, SERVER6, 53, b"question");
        let mut extended = plain.clone();
        extended.proto = 60; // destination options: one of padding
        extended.l4 = [&[proto::UDP, 0, 1, 4, 0, 0, 0, 0], &plain.l4[..]].concat();
        lab.passes(LAN, &extended, WAN);
        lab.moved(&["class new original +1", "event new +1"]);
        lab.passes(LAN, &plain, WAN);
        lab.passes(WAN, &udp(SERVER6, 53, HOST6, 4000, b"answer"), LAN);
        lab.moved(&["class established reply +1", "class new original +1", "event replied +1"]);
    });
}

// ---- Timeouts and limits --------------------------------------------------------------------------------------------

/// Asserts that the one connection lives for `seconds` more and not longer.
#[track_caller]
fn lives(lab: &mut Lab, seconds: u64, what: &str) {
    lab.wait(Nanos::from_millis(seconds * 1000 - 500));
    assert_eq!(lab.entries(), 1, "{what} ended too early");
    lab.changed();
    lab.wait(Nanos::from_secs(1));
    assert_eq!(lab.entries(), 0, "{what} is there still");
    lab.moved(&["event expired +1"]);
}

#[test]
fn each_kind_of_connection_has_its_timeout() {
    // All different, so that none is taken for another.
    let mut spec = usual();
    for (name, seconds) in Timeouts::NAMES.iter().zip(11..) {
        assert!(spec.conntrack.timeouts.set(name, Nanos::from_secs(seconds)));
    }
    let (syn, syn_ack, ack) = (there(SYN, 1, 0, b""), back(SYN | ACK, 1, 2, b""), there(ACK, 2, 2, b""));
    let (fin, fin_back, ack_back) = (there(FIN | ACK, 2, 2, b""), back(FIN | ACK, 2, 3, b""), back(ACK, 2, 3, b""));
    let script = |n: usize| [&syn, &syn_ack, &ack, &fin, &ack_back, &fin_back, &ack][..n].to_vec();
    let crossing = back(SYN, 1, 0, b"");
    let reset = back(RST, 2, 0, b"");
    let (esp, u, p, p6) = (
        other(HOST, SERVER, 50, b""),
        udp(HOST, 1, SERVER, 2, b""),
        ping(HOST, SERVER, 1, 1),
        ping(HOST6, SERVER6, 1, 1),
    );
    let kinds: Vec<(&str, Vec<&Pkt>)> = vec![
        ("tcp_syn_sent", script(1)),
        ("tcp_syn_recv", script(2)),
        ("tcp_established", script(3)),
        ("tcp_fin_wait", script(4)),
        ("tcp_close_wait", script(5)),
        ("tcp_last_ack", script(6)),
        ("tcp_time_wait", script(7)),
        ("tcp_close", [script(3), vec![&reset]].concat()),
        ("tcp_syn_sent2", vec![&syn, &crossing, &syn]), // the crossing SYN itself does not renew the timeout
        ("udp", vec![&u]),
        ("icmp", vec![&p]),
        ("icmpv6", vec![&p6]),
        ("generic", vec![&esp]),
    ];
    everywhere(spec, |lab| {
        for (name, packets) in &kinds {
            for &p in packets {
                let (from, to) = if p.src == ip(SERVER) { (WAN, LAN) } else { (LAN, WAN) };
                lab.passes(from, p, to);
            }
            let n = Timeouts::NAMES.iter().position(|k| k == name).expect("a timeout");
            lives(lab, 11 + n as u64, name);
        }
    });
}

#[test]
fn an_established_connection_lives_five_days_and_others_at_their_defaults() {
    everywhere(usual(), |lab| {
        handshake(lab);
        lives(lab, 432_000, "tcp");
        lab.passes(LAN, &there(ACK, 1, 1, b""), WAN);
        lives(lab, 300, "a connection picked up, unanswered");
    });
}

#[test]
fn every_packet_starts_the_timeout_again() {
    everywhere(usual(), |lab| {
        for _ in 0..10 {
            lab.passes(LAN, &ping(HOST, SERVER, 1, 1), WAN);
            lab.wait(Nanos::from_secs(29));
        }
        assert_eq!(lab.entries(), 1);
        lab.moved(&["class new original +10", "event new +1"]);
    });
}

#[test]
fn a_packet_may_find_its_connection_expired_before_the_timers_did() {
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        lab.changed();
        lab.now = lab.now + Nanos::from_secs(31);
        lab.refuses(WAN, &udp(SERVER, 53, HOST, 4000, b"late"), DropReason::PolicyDefault);
        lab.moved(&["class new original +1", "drop policy_default +1", "event expired +1"]);
        assert_eq!(lab.entries(), 0);
    });
}

// ---- Raw rules, checksums -------------------------------------------------------------------------------------------

fn raw(name: &str, matches: Match, action: RawAction) -> RawRuleSpec {
    RawRuleSpec { name: name.into(), matches, action }
}

/// Both directions of DNS are left out of tracking; untracked packets may pass.
#[test]
fn what_a_raw_rule_leaves_untracked_passes_both_ways_and_leaves_nothing_behind() {
    let mut spec = usual();
    let dns = |from, sport: &[_], dport: &[_]| Match {
        from: vec![from],
        proto: vec![proto::UDP],
        sport: sport.to_vec(),
        dport: dport.to_vec(),
        ..Match::default()
    };
    spec.raw = vec![
        raw("dns-out", dns(LAN_ZONE, &[], &[53..=53]), RawAction::Notrack),
        raw("dns-back", dns(WAN_ZONE, &[53..=53], &[]), RawAction::Notrack),
    ];
    spec.nat = vec![masquerade()];
    spec.rules.push(rule("untracked", state(&[CtState::Untracked]), Action::Accept));
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        assert_eq!(out.flow(), "10.0.0.2:4000 > 203.0.113.5:53", "untracked packets are not translated");
        lab.moved(&["class untracked original +1"]);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b"answer"), LAN);
        lab.moved(&["class untracked original +1"]);
        assert_eq!((lab.entries(), lab.rule_packets(3)), (0, 2));
        // All else is tracked.
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 54, b""), WAN);
        assert_eq!(out.src, ip("198.51.100.1"));
        // Untracked is what the raw hook said, before any checksum is looked at.
        lab.changed();
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"question").broken_checksum()).frame());
        lab.run();
        assert_eq!(lab.sent(WAN).len(), 1);
        lab.moved(&["class untracked original +1"]);
    });
}

#[test]
fn a_raw_rule_drops_before_anything_is_tracked() {
    let mut spec = usual();
    let telnet = Match { proto: vec![proto::TCP], dport: vec![23..=23], ..Match::default() };
    spec.raw = vec![
        raw("but-this-host", Match { source: Some(only("10.0.0.3/32")), ..telnet.clone() }, RawAction::Accept),
        raw("no-telnet", telnet, RawAction::Drop),
    ];
    everywhere(spec, |lab| {
        lab.refuses(LAN, &tcp(HOST, 4000, SERVER, 23, SYN, 1, 0, b""), DropReason::RawRule);
        lab.moved(&["drop raw_rule +1"]);
        lab.passes(LAN, &tcp("10.0.0.3", 4000, SERVER, 23, SYN, 1, 0, b""), WAN);
        lab.moved(&["class new original +1", "event new +1"]);
    });
}

#[test]
fn a_wrong_checksum_is_invalid_and_changes_no_connection() {
    everywhere(usual(), |lab| {
        handshake(lab);
        lab.refuses(WAN, &back(RST, 501, 0, b"").broken_checksum(), DropReason::InvalidChecksum);
        lab.moved(&["class invalid original +1", "drop invalid_checksum +1"]);
        assert_eq!(tcp_state(lab), "ESTABLISHED");
        for p in [
            udp(HOST, 1, SERVER, 2, b"x"),
            udp(HOST6, 1, SERVER6, 2, b"x"),
            ping(HOST, SERVER, 1, 1),
            ping(HOST6, SERVER6, 1, 1),
            tcp(HOST6, 1, SERVER6, 2, SYN, 1, 0, b""),
        ] {
            lab.refuses(LAN, &p.broken_checksum(), DropReason::InvalidChecksum);
            lab.moved(&["class invalid original +1", "drop invalid_checksum +1"]);
        }
    });
}

#[test]
fn checksums_are_left_alone_where_the_policy_says_so() {
    let mut spec = usual();
    spec.conntrack.checksum = false;
    everywhere(spec, |lab| {
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"q").broken_checksum()).frame());
        let buf =
            lab.pool.frame(&addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"q")).frame()).expect("a buffer is free");
        lab.arrive_buf(LAN, buf.with_checksum(RxChecksum::Bad));
        lab.run();
        assert_eq!(lab.sent(WAN).len(), 2);
        lab.moved(&["class new original +2", "event new +1"]);
    });
}

#[test]
fn the_hardwares_word_is_taken_where_it_finds_a_checksum_right_and_verified_where_it_does_not() {
    everywhere(usual(), |lab| {
        let mut arrives = |p: &Pkt, verdict| {
            let buf = lab.pool.frame(&addressed(LAN, p).frame()).expect("a buffer is free").with_checksum(verdict);
            lab.arrive_buf(LAN, buf);
            lab.run();
            (lab.sent(WAN).len(), lab.changed())
        };
        let right = udp(HOST, 4000, SERVER, 53, b"q");
        assert_eq!(
            arrives(&right.clone().broken_checksum(), RxChecksum::Good),
            (1, vec!["class new original +1".into(), "event new +1".into()])
        );
        assert_eq!(arrives(&right, RxChecksum::Bad), (1, vec!["class new original +1".into()]));
        assert_eq!(
            arrives(&right.clone().without_checksum(), RxChecksum::Bad),
            (1, vec!["class new original +1".into()])
        );
        assert_eq!(
            arrives(&right.broken_checksum(), RxChecksum::Bad),
            (0, vec!["class invalid original +1".into(), "drop invalid_checksum +1".into()])
        );
    });
}
