//! Stories of fragments that must not pass, or must not harm others: what comes by another way, after another policy, behind
//! what cannot be right.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::defrag::{self, Mode};
use dataplane::io::PortIdx;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

fn virtually() -> Setup {
    Setup { defrag: defrag::Setup { mode: Mode::Virtual, ..defrag::Setup::default() }, ..Setup::default() }
}

fn arrive(lab: &mut Lab, port: PortIdx, f: &Pkt) {
    lab.arrive(port, &addressed(port, f).frame());
    lab.run();
}

/// A policy that denies the connection is in force: what follows a first fragment of before must not pass.
#[test]
fn a_reload_ends_what_follows_a_first_fragment() {
    everywhere_with(&virtually(), usual(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 2049, b"q"), WAN);
        lab.passes(WAN, &udp(SERVER, 2049, HOST, out.sport, b"a"), LAN);
        let pieces = cut(&udp(HOST, 4000, SERVER, 2049, &[7; 4000]), 1, &[1448, 2896]);
        arrive(lab, LAN, &pieces[0]);
        assert_eq!(lab.sent(WAN).len(), 1);
        let mut spec = usual();
        spec.rules.pop(); // lan-out
        lab.reload(spec);
        lab.changed();
        arrive(lab, LAN, &pieces[1]);
        let sent = lab.sent(WAN).len();
        let changed = lab.changed();
        // A whole packet of the connection is denied, to compare.
        lab.arrive(LAN, &addressed(LAN, &udp(HOST, 4000, SERVER, 2049, b"q")).frame());
        lab.run();
        assert_eq!((sent, lab.sent(WAN).len()), (0, 0), "{changed:?} then {:?}", lab.changed());
    });
}

/// What leaves as whole must have an end.
#[test]
fn a_datagram_has_an_end_though_the_one_that_said_so_was_dropped() {
    let mut lab = Lab::new(usual());
    let p = other(HOST, SERVER, 0xfd, &[7; 16]);
    let longer = other(HOST, SERVER, 0xfd, &[7; 24]);
    arrive(&mut lab, LAN, &piece(&longer, 1, 8, 16)); // more
    arrive(&mut lab, LAN, &piece(&p, 1, 8, 16)); // last: a duplicate
    arrive(&mut lab, LAN, &piece(&longer, 1, 0, 8));
    let frames = lab.sent(WAN);
    let ends = frames.iter().filter(|f| be16_at(f, 20) & 0x2000 == 0).count();
    assert_eq!((frames.len(), ends), (2, 1), "{:?}", lab.changed());
}

#[test]
fn an_ipv6_datagram_has_an_end_though_the_one_that_said_so_was_empty() {
    let mut lab = Lab::new(usual());
    let p = other("fd00:1::2", "2001:db8:5::5", 0xfd, &[7; 16]);
    let longer = other("fd00:1::2", "2001:db8:5::5", 0xfd, &[7; 24]);
    arrive(&mut lab, LAN, &piece(&longer, 1, 8, 16));
    arrive(&mut lab, LAN, &piece(&p, 1, 16, 16));
    arrive(&mut lab, LAN, &piece(&longer, 1, 0, 8));
    let frames = lab.sent(WAN);
    let ends = frames.iter().filter(|f| be16_at(f, 56) & 1 == 0).count();
    assert_eq!((frames.len(), ends), (2, 1), "{:?}", lab.changed());
}

/// RFC 1812 section 5.3.1: no packet leaves with TTL 0.
#[test]
fn all_fragments_leave_with_the_ttl_of_the_first() {
    let mut lab = Lab::new(usual());
    for ttl in [1, 0] {
        let pieces = cut(&udp(HOST, 4000, SERVER, 53, &[7; 100]), 1, &[48]);
        arrive(&mut lab, LAN, &pieces[0]);
        arrive(&mut lab, LAN, &pieces[1].clone().ttl(ttl));
        let ttls: Vec<_> = lab.sent(WAN).iter().map(|f| f[22]).collect();
        assert_eq!(ttls, [63, 63]);
    }
}

/// A fragment from a wire that claims to be the gateway's own does not become part of what the kernel sends.
#[test]
fn fragments_of_a_wire_do_not_join_the_kernels() {
    let mut spec = usual();
    spec.rules.push(rule("out", from_to(ZoneId::LOCAL, LAN_ZONE), Action::Accept));
    let mut lab = Lab::with(spec, Setup::default());
    let own = cut(&udp("10.0.0.1", 53, HOST, 4000, &[7; 100]), 1, &[48]);
    let forged = cut(&udp("10.0.0.1", 53, HOST, 4000, &[0xee; 100]), 1, &[48]);
    // From the WAN, as a link-layer broadcast.
    arrive(&mut lab, WAN, &forged[1].clone().to_mac([0xff; 6]));
    for f in &own {
        lab.arrive(LAN_TWIN, &f.clone().from_mac(LAN_MAC).to_mac(HOST_MAC).frame());
        lab.run();
    }
    let frames = lab.sent(LAN);
    let forged = frames.iter().any(|f| f.ends_with(&[0xee; 8]));
    assert!(
        !forged,
        "a forged fragment left, to {:x?}: {:?}",
        frames.iter().map(|f| f[..6].to_vec()).collect::<Vec<_>>(),
        lab.changed()
    );
}

/// Only a datagram's beginning is a TFTP request.
#[test]
fn a_later_fragment_is_no_tftp_request() {
    let mut lab = Lab::new(helped(usual(), HelperKind::Tftp, 69));
    let mut data = vec![0, 3, 0, 1];
    data.resize(40, 7);
    data.extend([0, 1, b'x', 0, b'o', 0]);
    data.resize(100, 7);
    for f in cut(&udp(HOST, 4000, SERVER, 69, &data), 1, &[48]) {
        arrive(&mut lab, LAN, &f);
    }
    assert_eq!(lab.sent(WAN).len(), 2);
    assert_eq!(lab.expectations().len(), 0);
}

/// RFC 5722: fragments of a datagram with an overlap are discarded, those not yet received too. A first fragment has passed
/// already: what comes after the overlap must not be let through beside it.
#[test]
fn nothing_follows_an_overlap_in_virtual_mode() {
    use dataplane::conntrack::tuple::proto;
    let mut spec = usual();
    spec.rules.pop();
    let dns = Match { proto: vec![proto::UDP], dport: vec![53..=53], ..from_to(LAN_ZONE, WAN_ZONE) };
    spec.rules.push(rule("dns", dns, Action::Accept));
    let mut lab = Lab::with(spec, virtually());
    let (h, s) = ("fd00:1::2", "2001:db8:5::5");
    // Destination options, then UDP to port 53: judged and sent.
    let mut a = udp(h, 4000, s, 53, &[7; 200]);
    a.l4.splice(0..0, [17, 0, 1, 4, 0, 0, 0, 0]);
    a.proto = 60;
    arrive(&mut lab, LAN, &piece(&a, 1, 0, 16));
    assert_eq!(lab.sent(WAN).len(), 1, "{:?}", lab.drops());
    arrive(&mut lab, LAN, &piece(&a, 1, 8, 24)); // an overlap: ends the datagram
    lab.changed();
    // A UDP header to port 53 that is a destination options header as well, and behind it one to port 22.
    let mut b = udp(h, 4000, s, 53, &[7; 200]);
    b.l4[..16].copy_from_slice(&[17, 0, 0, 53, 0, 16, 1, 9, 0x0f, 0xa0, 0, 22, 0, 16, 0, 0]);
    arrive(&mut lab, LAN, &piece(&b, 1, 0, 8));
    arrive(&mut lab, LAN, &piece(&b, 1, 8, 16));
    assert_eq!(lab.sent(WAN).len(), 0, "{:?}", lab.changed());
}

/// RFC 6980 section 5: neighbour discovery with a fragment header is ignored. The kernel would, if it could see the header.
#[test]
fn discovery_in_fragments_is_dropped() {
    for mode in [Mode::Reassemble, Mode::Virtual] {
        let setup = Setup { defrag: defrag::Setup { mode, ..defrag::Setup::default() }, ..Setup::default() };
        let mut lab = Lab::with(policy(), setup);
        let mut p = icmp("fd00:1::2", "fd00:1::1", 135, 0, [0; 4], &[7; 100]);
        p.ttl = 255;
        arrive(&mut lab, LAN, &fragments_v6(&p, 77, 1232)[0]);
        let atomic: Vec<_> = lab.sent(LAN_TWIN).iter().map(|f| (f[20], f.len())).collect();
        for f in cut(&p, 78, &[48]) {
            arrive(&mut lab, LAN, &f);
        }
        let cut = lab.sent(LAN_TWIN).len();
        assert!(atomic.is_empty() && cut == 0, "{mode:?}: atomic {atomic:?} (next header, length), in fragments {cut}");
    }
}

/// A host of the same /64 floods first fragments: a neighbour's datagram in progress is lost.
#[test]
fn a_source_at_its_share_keeps_what_makes_progress() {
    let mut lab = Lab::new(usual());
    let slow = cut(&udp("fd00:1::2", 4000, "2001:db8:5::5", 53, &[7; 3000]), 1, &[1232, 2464]);
    arrive(&mut lab, LAN, &slow[0]);
    arrive(&mut lab, LAN, &slow[1]);
    let mut n = 0;
    for id in 0..400 {
        arrive(&mut lab, LAN, &cut(&udp("fd00:1::3", 4000, "2001:db8:5::5", 53, &[7; 100]), id, &[48])[0]);
        n = id;
        if lab.drop_count(DropReason::FragmentShare) > 0 {
            break;
        }
    }
    arrive(&mut lab, LAN, &slow[2]);
    assert_eq!(lab.sent(WAN).len(), 3, "after {n}: {:?}", lab.drops());
}

#[test]
fn a_fragment_that_came_as_a_broadcast_is_not_forwarded() {
    let mut lab = Lab::new(usual());
    let f = cut(&udp("10.0.0.2", 4000, "203.0.113.5", 53, &[7; 100]), 1, &[48]);
    arrive(&mut lab, LAN, &f[0]);
    arrive(&mut lab, LAN, &f[1].clone().to_mac([0xff; 6]));
    assert_eq!(lab.sent(WAN).len(), 0, "RFC 1812 5.3.4");
}
