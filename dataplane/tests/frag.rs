//! Stories of datagrams that come in fragments: judged once, as a whole, and sent on as the fragments that came.
//! The topology is drawn in `common/lab.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::policy::PolicySpec;
use dataplane::io::PortIdx;
use dataplane::time::Nanos;

/// All frames that left by `port`, put together to the datagram they are fragments of; and how many they were.
#[track_caller]
fn whole(lab: &mut Lab, port: PortIdx) -> (Seen, usize) {
    let frames = lab.sent(port);
    assert!(!frames.is_empty(), "nothing left; drops: {:?}", lab.drops());
    (put_together(&frames), frames.len())
}

/// Sends the fragments in the order that `order` gives.
fn send_all(lab: &mut Lab, port: PortIdx, pieces: &[Pkt], order: impl IntoIterator<Item = usize>) {
    for n in order {
        let mut p = pieces[n].clone();
        p.dst_mac = if port.interface() == 0 { LAN_MAC } else { WAN_MAC };
        lab.arrive(port, &p.frame());
        lab.run();
    }
}

fn masqueraded() -> PolicySpec {
    let mut spec = usual();
    spec.nat = vec![masquerade()];
    spec
}

#[test]
fn a_large_datagram_is_translated_there_and_back() {
    let big: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    everywhere(masqueraded(), |lab| {
        let question = udp("10.0.0.2", 4000, "203.0.113.5", 2049, &big).fragments(1480);
        send_all(lab, LAN, &question, [2, 0, 3, 1]);
        let (out, frames) = whole(lab, WAN);
        assert_eq!((frames, &out.payload), (4, &big));
        assert_eq!((out.src, out.dport, out.ttl), (ip("198.51.100.1"), 2049, 63));
        lab.moved(&["class new original +1", "event new +1"]);

        let answer = udp("203.0.113.5", 2049, "198.51.100.1", out.sport, &big).fragments(1472);
        send_all(lab, WAN, &answer, 0..4);
        let (back, frames) = whole(lab, LAN);
        assert_eq!((frames, back.flow()), (4, "203.0.113.5:2049 > 10.0.0.2:4000".into()));
        assert_eq!(back.payload, big);
        lab.moved(&["class established reply +1", "event replied +1"]);
        assert_eq!(lab.entries(), 1);
    });
}

#[test]
fn a_large_ping_reaches_a_forwarded_port_and_the_gateway_itself() {
    let mut spec = usual();
    spec.rules.push(rule(
        "to-me",
        from_to(LAN_ZONE, dataplane::api::policy::ZoneId::LOCAL),
        dataplane::api::policy::Action::Accept,
    ));
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere(spec, |lab| {
        let ping = icmp("10.0.0.2", "10.0.0.1", 8, 0, [0, 7, 0, 1], &[0xa5; 8000]).fragments(1480);
        send_all(lab, LAN, &ping, (0..ping.len()).rev());
        let (seen, frames) = whole(lab, LAN_TWIN);
        assert_eq!((frames, seen.ttl, seen.payload.len()), (ping.len(), 64, 8000));

        let pieces = udp("203.0.113.5", 5000, "198.51.100.1", 8080, &[1; 3000]).fragments(1480);
        send_all(lab, WAN, &pieces, [0, 2, 1]);
        assert_eq!(whole(lab, LAN).0.flow(), "203.0.113.5:5000 > 10.0.0.9:80");
    });
}

#[test]
fn a_fragment_larger_than_the_next_link_is_cut_again() {
    everywhere_with(&Setup { wan_mtu: 1280, ..Setup::default() }, usual(), |lab| {
        let pieces = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).fragments(1480);
        send_all(lab, LAN, &pieces, [1, 0]);
        let (seen, frames) = whole(lab, WAN);
        assert_eq!((frames, seen.payload), (3, vec![7; 2500]));
        let stubborn: Vec<Pkt> = pieces.into_iter().map(Pkt::df).collect();
        send_all(lab, LAN, &stubborn, [1, 0]);
        let (_, error) = lab.collect().remove(0);
        assert_eq!((error.dport, error.quoted().sport), (3 << 8 | 4, 4000));
    });
}

/// Where IPv4 allows it fragments are cut again, translated ones too; those that fit leave as they came.
#[test]
fn translated_fragments_are_cut_to_the_egress_link_and_no_smaller() {
    let narrow = Setup { wan_mtu: 1280, ..Setup::default() };
    everywhere_with(&narrow, masqueraded(), |lab| {
        let big: Vec<u8> = (0..4000).map(|n| n as u8).collect();
        let pieces = cut(&udp("10.0.0.2", 4000, "203.0.113.5", 53, &big), 7, &[1480, 1688, 2888, 3888]);
        send_all(lab, LAN, &pieces, [4, 3, 0, 1, 2]);
        let frames = lab.sent(WAN);
        let lengths: Vec<_> = frames.iter().map(|f| f.len() - 14).collect();
        assert_eq!(lengths, [1276, 244, 228, 1220, 1020, 140]);
        let out = put_together(&frames);
        assert_eq!((out.src, out.payload), (ip("198.51.100.1"), big));
    });
}

#[test]
fn the_largest_fragment_says_whether_a_datagram_may_be_cut() {
    let narrow = Setup { wan_mtu: 1280, ..Setup::default() };
    everywhere_with(&narrow, masqueraded(), |lab| {
        let pieces = cut(&udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]), 7, &[1000]);
        let first = pieces[0].clone().df();
        send_all(lab, LAN, &[first, pieces[1].clone()], [0, 1]);
        assert_eq!(whole(lab, WAN).1, 3);
        lab.changed();
        let last = pieces[1].clone().df();
        send_all(lab, LAN, &[pieces[0].clone(), last], [0, 1]);
        let error = lab.collect().remove(0).1;
        assert_eq!((error.dport, be16_at(&error.ip, 26)), (3 << 8 | 4, 1280));
        lab.moved(&["class new original +1", "drop mtu_exceeded +2", "icmp too_big +1"]);
    });
}

/// What the sender is told about is what it sent: its own addresses, and the MTU that would do.
#[test]
fn errors_about_datagrams_that_are_too_big_name_what_was_sent() {
    let narrow = Setup { wan_mtu: 1280, lan_mtu: 1400, ..Setup::default() };
    let mut spec = masqueraded();
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere_with(&narrow, spec, |lab| {
        let out = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).df();
        let forwarded = udp("203.0.113.5", 5000, "198.51.100.1", 8080, &[7; 2500]).df();
        let v6 = udp("fd00:1::2", 4000, "2001:db8:5::5", 53, &[7; 2500]);
        for (port, p, from, mtu, reason) in [
            (LAN, &out, "10.0.0.1", 1280, 3 << 8 | 4),
            (WAN, &forwarded, "198.51.100.1", 1400, 3 << 8 | 4),
            (LAN, &v6, "fd00:1::1", 1280, 2 << 8),
        ] {
            let pieces = cut(p, 7, &[1432]);
            send_all(lab, port, &pieces, [1, 0]);
            let (at, error) = lab.collect().remove(0);
            assert_eq!((at, error.src, error.dst, error.dport), (port, ip(from), p.src, reason));
            let header = if p.src.is_ipv4() { 20 } else { 40 };
            assert_eq!(be16_at(&error.ip, header + 6), mtu);
            error.assert_quotes(&pieces[0]);
            lab.moved(&["class new original +1", "drop mtu_exceeded +2", "icmp too_big +1"]);
        }
    });
}

#[test]
fn ipv6_fragments_that_fit_pass_however_long_the_datagram() {
    let narrow = Setup { wan_mtu: 1280, ..Setup::default() };
    everywhere_with(&narrow, masqueraded(), |lab| {
        let p = udp("fd00:1::2", 4000, "2001:db8:5::5", 53, &[7; 4000]);
        send_all(lab, LAN, &fragments_v6(&p, 7, 1232), [1, 0, 2, 3]);
        let (out, frames) = whole(lab, WAN);
        assert_eq!((frames, out.src, out.payload), (4, ip("2001:db8::1"), vec![7; 4000]));
    });
}

#[test]
fn the_policy_sees_the_ports_of_every_fragment() {
    let mut spec = usual();
    spec.rules.insert(
        0,
        rule(
            "no-dns",
            dataplane::api::policy::Match { dport: vec![53..=53], proto: vec![17], ..Default::default() },
            dataplane::api::policy::Action::Drop,
        ),
    );
    everywhere(spec, |lab| {
        let pieces = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).fragments(1480);
        send_all(lab, LAN, &pieces, [1, 0]);
        assert!(lab.collect().is_empty());
        lab.moved(&["class new original +1", "drop policy_rule +2"]);
    });
}

#[test]
fn a_wrong_checksum_over_all_fragments_is_invalid() {
    everywhere(usual(), |lab| {
        let mut pieces = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).fragments(1480);
        pieces[1].l4[100] ^= 1;
        send_all(lab, LAN, &pieces, [0, 1]);
        lab.moved(&["class invalid original +1", "drop invalid_checksum +2"]);
    });
}

#[test]
fn duplicates_are_passed_over_and_overlaps_lose_the_datagram() {
    everywhere(usual(), |lab| {
        let pieces = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).fragments(1480);
        send_all(lab, LAN, &pieces, [0, 0, 1]);
        assert_eq!(whole(lab, WAN).1, 2);
        lab.moved(&["class new original +1", "drop fragment_duplicate +1", "event new +1"]);
        let mut shifted = pieces[1].clone();
        shifted.fragment = Some((1472, false));
        send_all(lab, LAN, &[pieces[0].clone(), shifted], [0, 1]);
        lab.moved(&["drop fragment_overlap +2"]);
    });
}

#[test]
fn a_datagram_that_never_ends_is_given_up() {
    everywhere(usual(), |lab| {
        let pieces = udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 2500]).fragments(1480);
        send_all(lab, LAN, &pieces, [0]);
        lab.wait(Nanos::from_secs(29));
        lab.moved(&[]);
        lab.wait(Nanos::from_secs(32));
        lab.moved(&["drop fragment_timeout +1"]);
        assert!(lab.collect().is_empty(), "IPv4 is not told");
    });
}

#[test]
fn ipv6_fragments_pass_whole_or_not_at_all() {
    everywhere(usual(), |lab| {
        let pieces = fragments_v6(&ping_with("fd00:1::2", "2001:db8::10", &[3; 4000]), 77, 1232);
        send_all(lab, LAN, &pieces, [3, 1, 0, 2]);
        let frames = lab.sent(WAN);
        assert_eq!(frames.len(), 4);
        for (n, f) in frames.iter().enumerate() {
            assert_eq!((f[20], f[21]), (44, 63), "fragment header and hop limit");
            assert_eq!(usize::from(be16_at(f, 56) & 0xfff8), n * 1232);
        }
        lab.moved(&["class new original +1", "event new +1"]);
        // What is there already is passed over, as Linux does; any other overlap loses the datagram (RFC 5722).
        let again = fragments_v6(&ping_with("fd00:1::2", "2001:db8::10", &[3; 4000]), 78, 1232);
        send_all(lab, LAN, &again, [0, 0]);
        lab.moved(&["drop fragment_duplicate +1"]);
        send_all(lab, LAN, &fragments_v6(&ping_with("fd00:1::2", "2001:db8::10", &[3; 4000]), 78, 1240), [0]);
        lab.moved(&["drop fragment_overlap +2"]);
        // One that stays alone: its sender is told.
        send_all(lab, LAN, &pieces, [0]);
        lab.wait(Nanos::from_secs(100));
        lab.moved(&["drop fragment_timeout +1", "event expired +1", "icmp time_exceeded +1"]);
        let (port, error) = lab.collect().remove(0);
        assert_eq!((port, error.dport), (LAN, 3 << 8 | 1));
    });
}

#[test]
fn an_atomic_fragment_leaves_without_its_header() {
    everywhere(usual(), |lab| {
        let whole = ping_with("fd00:1::2", "2001:db8::10", &[3; 400]);
        send_all(lab, LAN, &fragments_v6(&whole, 77, 1232), [0]);
        let out = lab.collect();
        assert_eq!(
            (out.len(), out[0].1.flow().as_str(), out[0].1.payload.len()),
            (1, "fd00:1::2 > 2001:db8::10 icmp 128/0 id 9", 400)
        );
        lab.moved(&["class new original +1", "event new +1"]);
        // Behind destination options the field that named it is theirs.
        let mut behind = whole.clone();
        behind.proto = 60;
        behind.l4 = [&[44, 0, 1, 4, 0, 0, 0, 0], &[58, 0, 0, 0, 0, 0, 0, 5], &whole.l4[..]].concat();
        send_all(lab, LAN, &[behind], [0]);
        let frame = lab.sent(WAN).remove(0);
        assert_eq!((frame[20], frame[54], frame.len()), (60, 58, 14 + 40 + 8 + whole.l4.len()));
        lab.moved(&["class new original +1"]);
    });
}

#[test]
fn a_fragment_that_can_be_part_of_nothing_is_invalid() {
    everywhere(usual(), |lab| {
        let p = ping_with("fd00:1::2", "2001:db8::10", &[3; 400]);
        send_all(lab, LAN, &fragments_v6(&p, 77, 4), [0]);
        lab.moved(&["class invalid original +1", "drop fragment_invalid +1"]);
        send_all(lab, LAN, &fragments_v6(&p, 78, 100), [1]);
        lab.moved(&["class invalid original +1", "drop fragment_invalid +1"]);
    });
}

fn ping_with(src: &str, dst: &str, payload: &[u8]) -> Pkt {
    icmp(src, dst, 128, 0, [0, 9, 0, 1], payload)
}

/// As Linux 6.18 has it: the gateway tells whose datagram to itself, or of IPv6 whose at all, it gave up, where it knows what that was and
/// that it was no error.
#[test]
fn who_is_told_that_a_datagram_was_given_up() {
    everywhere(usual(), |lab| {
        let first = |p: &Pkt| vec![piece(p, 7, 0, 104)];
        let later = |p: &Pkt| vec![piece(p, 7, 104, 112)];
        let v4 = |dst| udp("10.0.0.2", 4000, dst, 53, &[7; 200]);
        let v6 = |dst| udp("fd00:1::2", 4000, dst, 53, &[7; 200]);
        let quote = v4("203.0.113.5").ip();
        for (pieces, told) in [
            (first(&v4("203.0.113.5")), None),
            (first(&v4("10.0.0.1")), Some((11 << 8 | 1, "10.0.0.1"))),
            (later(&v4("10.0.0.1")), None),
            (first(&icmp("10.0.0.2", "10.0.0.1", 3, 1, [0; 4], &quote)), None),
            (first(&v6("2001:db8:5::5")), Some((3 << 8 | 1, "fd00:1::1"))),
            (first(&v6("fd00:1::1")), Some((3 << 8 | 1, "fd00:1::1"))),
            (later(&v6("2001:db8:5::5")), None),
            (first(&icmp("fd00:1::2", "2001:db8:5::5", 1, 1, [0; 4], &[7; 200])), None),
        ] {
            send_all(lab, LAN, &pieces, [0]);
            lab.wait(Nanos::from_secs(61));
            let out = lab.collect();
            match told {
                None => assert!(out.is_empty(), "{out:?}"),
                Some((dport, from)) => {
                    assert_eq!((out.len(), out[0].0, out[0].1.dport, out[0].1.src), (1, LAN, dport, ip(from)));
                    out[0].1.assert_quotes(&pieces[0]);
                }
            }
        }
        assert_eq!(lab.drop_count(dataplane::api::DropReason::FragmentTimeout), 8);
    });
}

/// A burst in which a datagram's fragments stand between two other packets of its flow.
#[test]
fn a_datagram_in_fragments_does_not_overtake_what_came_before_it() {
    let mut lab = Lab::new(usual());
    let of_flow = |payload: &[u8]| addressed(LAN, &udp("10.0.0.2", 4000, "203.0.113.5", 53, payload));
    lab.arrive(LAN, &of_flow(b"first").frame());
    for f in of_flow(&[2; 2000]).fragments(1480) {
        lab.arrive(LAN, &f.frame());
    }
    lab.arrive(LAN, &of_flow(b"last").frame());
    lab.run();
    let lengths: Vec<_> = lab.sent(WAN).iter().map(Vec::len).collect();
    assert_eq!(lengths, [47, 1514, 562, 46]);
}
