//! Stories of TCP's largest segment: what SYNs announce that enter or leave by an interface with a clamp.
//! The topology is drawn in `common/lab.rs`. Reading what left asserts that its checksums are right.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::frag::*;
use common::lab::*;
use common::pkt::*;
use dataplane::api::policy::*;
use dataplane::io::PortIdx;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

/// Everybody may do anything, and the interfaces clamp: lan and wan.
fn clamping(lan: Option<Mss>, wan: Option<Mss>) -> PolicySpec {
    PolicySpec { interface_mss: vec![lan, wan], default: Action::Accept, ..policy() }
}

fn auto() -> PolicySpec {
    clamping(None, Some(Mss::Auto))
}

/// A link with an MTU of 1400 behind wan.
fn narrow() -> Setup {
    Setup { wan_mtu: 1400, ..Setup::default() }
}

/// A SYN's options as stacks write them, with this largest segment.
fn options(mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    vec![2, 4, high, low, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]
}

fn syn(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, options: &[u8]) -> Pkt {
    tcp(src, sport, dst, dport, flags, 7, u32::from(flags & ACK != 0), b"").with_options(options)
}

/// The options of a segment that left.
fn options_of(seen: &Seen) -> Vec<u8> {
    seen.tcp().2[20..].to_vec()
}

#[test]
fn both_syns_of_a_connection_announce_what_the_narrow_link_takes() {
    for nat in [Vec::new(), vec![masquerade()]] {
        everywhere_with(&narrow(), PolicySpec { nat, ..auto() }, |lab| {
            for (host, server, mss) in [(HOST, SERVER, 1360), (HOST6, SERVER6, 1340)] {
                let out = lab.passes(LAN, &syn(host, 4000, server, 80, SYN, &options(1460)), WAN);
                assert_eq!(options_of(&out), options(mss));
                let answer = syn(server, 80, &out.src.to_string(), out.sport, SYN | ACK, &options(8960));
                assert_eq!(options_of(&lab.passes(WAN, &answer, LAN)), options(mss));
            }
            assert_eq!(lab.total_drops(), 0);
        });
    }
}

#[test]
fn a_smaller_value_and_a_missing_option_are_left_alone() {
    everywhere_with(&narrow(), auto(), |lab| {
        for (port, (options, left)) in (4000..).zip([
            (options(536), options(536)),
            (options(1360), options(1360)),
            (options(1361), options(1360)),
            (vec![4, 2, 1, 1], vec![4, 2, 1, 1]),
            (vec![], vec![]),
        ]) {
            let p = syn(HOST, port, SERVER, 80, SYN, &options);
            let out = lab.passes(LAN, &p, WAN);
            assert_eq!(options_of(&out), left);
            assert_eq!(out.ip_len, p.ip().len(), "nothing is added");
        }
    });
}

#[test]
fn the_smaller_of_two_interfaces_counts_and_a_number_as_well_as_an_mtu() {
    let fixed = |n| Some(Mss::Fixed(n));
    for (lan, wan, mss) in [
        (fixed(1200), Some(Mss::Auto), 1200),
        (fixed(1400), Some(Mss::Auto), 1360),
        (fixed(1000), fixed(900), 900),
        (fixed(1000), None, 1000),
        (Some(Mss::Auto), None, 1460),
        (None, None, 8960),
        (fixed(0), None, 0),
        (fixed(u16::MAX), None, 8960),
    ] {
        everywhere_with(&narrow(), clamping(lan, wan), |lab| {
            let out = lab.passes(LAN, &syn(HOST, 4000, SERVER, 80, SYN, &options(8960)), WAN);
            assert_eq!(options_of(&out), options(mss), "{lan:?} {wan:?}");
            let back = lab.passes(WAN, &syn(SERVER, 80, HOST, 4000, SYN | ACK, &options(8960)), LAN);
            assert_eq!(options_of(&back), options(mss), "{lan:?} {wan:?}");
        });
    }
    // A policy that knows fewer interfaces than there are clamps none of the others.
    let mut lab = Lab::new(PolicySpec { interface_mss: vec![fixed(500)], ..auto() });
    let own = syn(GATEWAY, 1, SERVER, 80, SYN, &options(1460));
    assert_eq!(options_of(&lab.passes(WAN_TWIN, &own, WAN)), options(1460));
}

#[test]
fn segments_that_are_no_syn_are_left_alone() {
    everywhere_with(&narrow(), auto(), |lab| {
        for (port, flags) in (4000..).zip([ACK, ACK | PSH, ACK | FIN, RST]) {
            let out = lab.passes(LAN, &syn(HOST, port, SERVER, 80, flags, &options(1460)), WAN);
            assert_eq!(options_of(&out), options(1460));
        }
        // Neither is what only looks like one.
        let looks = syn(HOST, 4000, SERVER, 80, SYN, &options(1460)).l4;
        let p = other(HOST, SERVER, 200, &looks);
        assert_eq!(lab.passes(LAN, &p, WAN).payload, looks);
    });
}

#[test]
fn untracked_and_invalid_syns_are_clamped_too() {
    let mut spec = auto();
    spec.raw.push(RawRuleSpec {
        name: "http".into(),
        matches: Match { dport: vec![80..=80], ..Match::default() },
        action: RawAction::Notrack,
    });
    everywhere_with(&narrow(), spec, |lab| {
        let out = lab.passes(LAN, &syn(HOST, 4000, SERVER, 80, SYN, &options(1460)), WAN);
        assert_eq!(options_of(&out), options(1360));
        let out = lab.passes(LAN, &syn(HOST, 4000, SERVER, 81, SYN | FIN, &options(1460)), WAN);
        assert_eq!(options_of(&out), options(1360));
        lab.moved(&["class invalid original +1", "class untracked original +1"]);
    });
}

#[test]
fn the_gateways_own_connections_are_clamped_both_ways() {
    everywhere_with(&narrow(), auto(), |lab| {
        let out = lab.passes(WAN_TWIN, &syn(GATEWAY, 4000, SERVER, 80, SYN, &options(1460)), WAN);
        assert_eq!(options_of(&out), options(1360));
        let back = lab.passes(WAN, &syn(SERVER, 80, GATEWAY, 4000, SYN | ACK, &options(1460)), WAN_TWIN);
        assert_eq!(options_of(&back), options(1360));
        let out = lab.passes(LAN_TWIN, &syn("10.0.0.1", 4000, HOST, 80, SYN, &options(1460)), LAN);
        assert_eq!(options_of(&out), options(1460), "lan has no clamp");
    });
}

#[test]
fn options_at_odd_offsets_and_hostile_ones_keep_their_checksum() {
    everywhere_with(&narrow(), auto(), |lab| {
        for (port, (options, left)) in (4000..).zip([
            (vec![1, 2, 4, 5, 0xb4, 1, 1, 1], vec![1, 2, 4, 5, 0x50, 1, 1, 1]),
            (vec![2, 4, 0xff, 0xff, 1, 2, 4, 0xff, 0xfe, 1, 1, 1], vec![2, 4, 5, 0x50, 1, 2, 4, 5, 0x50, 1, 1, 1]),
            (vec![3, 0, 2, 4, 5, 0xb4, 1, 1], vec![3, 0, 2, 4, 5, 0xb4, 1, 1]),
            (vec![2, 255, 5, 0xb4], vec![2, 255, 5, 0xb4]),
            (vec![1; 40], vec![1; 40]),
            ([vec![1; 36], vec![2, 4, 5, 0xb4]].concat(), [vec![1; 36], vec![2, 4, 5, 0x50]].concat()),
            ([vec![1; 37], vec![2, 4, 5]].concat(), [vec![1; 37], vec![2, 4, 5]].concat()),
        ]) {
            let out = lab.passes(LAN, &syn(HOST, port, SERVER, 80, SYN, &options), WAN);
            assert_eq!(options_of(&out), left);
        }
    });
}

#[test]
fn a_syn_with_data_or_in_fragments_is_clamped_wherever_its_header_lies() {
    let arrive_all = |lab: &mut Lab, port: PortIdx, fragments: &[Pkt]| {
        for f in fragments {
            lab.arrive(port, &addressed(port, f).frame());
            lab.run();
        }
    };
    for nat in [Vec::new(), vec![masquerade()]] {
        everywhere_with(&narrow(), PolicySpec { nat, ..auto() }, |lab| {
            let text: Vec<u8> = (0..200).collect();
            for (host, server, mss) in [(HOST, SERVER, 1360), (HOST6, SERVER6, 1340)] {
                let segment =
                    |port, options: &[u8]| tcp(host, port, server, 80, SYN, 7, 0, &text).with_options(options);
                let out = lab.passes(LAN, &segment(4000, &options(1460)), WAN);
                assert_eq!((options_of(&out), &out.payload[20..]), (options(mss), &text[..]));
                let odd: Vec<u8> = [&[1, 1, 1][..], &options(1460)[..4], &[1]].concat();
                let lowered: Vec<u8> = [&[1, 1, 1][..], &options(mss)[..4], &[1]].concat();
                for (port, (cuts, before, after)) in (4001..).zip([
                    (&[64][..], options(1460), options(mss)),
                    (&[8, 16, 24, 32][..], options(1460), options(mss)),
                    (&[24][..], odd.clone(), lowered.clone()),
                    (&[16][..], odd, lowered),
                ]) {
                    if host == HOST6 && cuts[0] < 20 + before.len() {
                        continue; // all headers of an IPv6 datagram lie in its first fragment
                    }
                    arrive_all(lab, LAN, &cut(&segment(port, &before), u32::from(port), cuts));
                    let frames = lab.sent(WAN);
                    assert_eq!(frames.len(), cuts.len() + 1, "{:?}", lab.drops());
                    assert_eq!(options_of(&put_together(&frames)), after, "{cuts:?}");
                }
            }
            assert_eq!((lab.total_drops(), lab.entries()), (0, 7));
        });
    }
}

#[test]
fn a_clamp_changes_on_reload_with_the_next_syn() {
    everywhere(usual(), |lab| {
        let mut out = |spec: PolicySpec, port| {
            lab.reload(spec);
            options_of(&lab.passes(LAN, &syn(HOST, port, SERVER, 80, SYN, &options(1460)), WAN))
        };
        assert_eq!(out(clamping(None, Some(Mss::Fixed(1000))), 4000), options(1000));
        assert_eq!(
            out(clamping(None, Some(Mss::Fixed(900))), 4000),
            options(900),
            "of a connection that is there, too"
        );
        assert_eq!(out(usual(), 4001), options(1460));
    });
}

#[test]
fn errors_quote_the_syn_as_its_sender_sent_it() {
    everywhere_with(&narrow(), auto(), |lab| {
        let p = syn(HOST, 4000, SERVER, 80, SYN, &options(1460));
        lab.passes(LAN, &p, WAN);
        let late = lab.refuses_with_error(LAN, &p.clone().ttl(1), dataplane::api::DropReason::TtlExpired);
        late.assert_quotes(&p);
    });
}
