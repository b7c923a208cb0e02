//! Stories of the gateway itself: what goes to the kernel and what comes from it.
//!
//! ```text
//!                     kernel: lan twin, wan twin
//!                        │                │
//!   10.0.0.2 ── lan [ 10.0.0.1  gateway  198.51.100.1 ] wan ── 203.0.113.5
//!                   [ fd00:1::1          2001:db8::1  ]
//! ```
//! The gateway may be pinged from lan and may speak to everybody.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::packet::CtState;

const HOST: &str = "10.0.0.2";
const ME: &str = "10.0.0.1";
const OUTSIDE: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";
const HOST6: &str = "fd00:1::2";
const ME6: &str = "fd00:1::1";
const SERVER6: &str = "2001:db8:5::5";

/// The station of [`HOST`].
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x10];

fn with_local() -> PolicySpec {
    let mut spec = usual();
    spec.rules.push(rule(
        "to-me",
        Match { state: vec![CtState::New], ..from_to(LAN_ZONE, ZoneId::LOCAL) },
        Action::Accept,
    ));
    spec.rules.push(rule("from-me", Match { from: vec![ZoneId::LOCAL], ..Match::default() }, Action::Accept));
    spec
}

#[test]
fn a_ping_to_the_gateway_goes_to_the_kernel_untouched_and_its_answer_out() {
    everywhere(with_local(), |lab| {
        for (host, me) in [(HOST, ME), (HOST, OUTSIDE), (HOST6, ME6)] {
            let request = addressed(LAN, &ping(host, me, 7, 1));
            let up = lab.passes(LAN, &request, LAN_TWIN);
            assert_eq!((up.src_mac, up.dst_mac, up.ttl, up.ip), (STATION, LAN_MAC, 64, request.ip()));
            lab.moved(&["class new original +1", "event new +1"]);
            let answer = pong(me, host, 7, 1).from_mac(LAN_MAC).to_mac(STATION);
            let out = lab.passes(LAN_TWIN, &answer, LAN);
            assert_eq!((out.src_mac, out.dst_mac, out.ttl, out.ip), (LAN_MAC, STATION, 64, answer.ip()));
            lab.moved(&["class established reply +1", "event replied +1"]);
        }
        lab.refuses(WAN, &ping(SERVER, OUTSIDE, 7, 1), DropReason::PolicyDefault);
    });
}

#[test]
fn the_gateways_own_connections_are_tracked() {
    everywhere(with_local(), |lab| {
        let out = lab.passes(WAN_TWIN, &udp(OUTSIDE, 4000, SERVER, 53, b"q").to_mac(HOST_MAC), WAN);
        assert_eq!((out.ttl, out.dst_mac), (64, HOST_MAC));
        lab.moved(&["class new original +1", "event new +1"]);
        let up = lab.passes(WAN, &udp(SERVER, 53, OUTSIDE, 4000, b"a"), WAN_TWIN);
        assert_eq!((up.ttl, up.dst_mac), (64, WAN_MAC));
        lab.moved(&["class established reply +1", "event replied +1"]);
        lab.refuses(WAN, &udp(SERVER, 53, OUTSIDE, 4001, b"a"), DropReason::PolicyDefault);
        // An error about it reaches the kernel.
        lab.changed();
        let error = icmp("198.51.100.20", OUTSIDE, 3, 3, [0; 4], &out.ip);
        lab.passes(WAN, &error, WAN_TWIN);
        lab.moved(&["class related reply +1"]);
        // No TTL is lowered and none runs out between wire and kernel.
        lab.passes(WAN, &udp(SERVER, 53, OUTSIDE, 4000, b"a").ttl(1), WAN_TWIN);
        lab.passes(WAN_TWIN, &udp(OUTSIDE, 4000, SERVER, 53, b"q").ttl(1).to_mac(HOST_MAC), WAN);
    });
}

#[test]
fn the_kernels_errors_about_a_forwarded_connection_are_related() {
    let mut spec = with_local();
    spec.nat = vec![masquerade()];
    everywhere(spec, |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b"question"), WAN);
        let answer = udp(SERVER, 53, OUTSIDE, out.sport, b"answer");
        let seen = lab.passes(WAN, &answer, LAN);
        lab.changed();
        let error = icmp(OUTSIDE, SERVER, 3, 13, [0; 4], &seen.ip).to_mac(HOST_MAC);
        let error = lab.passes(WAN_TWIN, &error, WAN);
        assert_eq!(error.src, ip(OUTSIDE));
        error.assert_quotes(&answer);
        lab.moved(&["class related original +1"]);
    });
}

#[test]
fn a_new_rule_for_the_gateway_is_asked_for_each_way() {
    let mut spec = usual();
    spec.default = Action::Drop;
    everywhere(spec, |lab| {
        lab.refuses(LAN, &ping(HOST, ME, 7, 1), DropReason::PolicyDefault);
        lab.refuses(LAN_TWIN, &ping(ME, HOST, 7, 1).to_mac(STATION), DropReason::PolicyDefault);
        lab.moved(&["class new original +2", "drop policy_default +2"]);
    });
}

// ---- ARP and neighbour discovery ------------------------------------------------------------------------------------

/// An ARP frame: who has 10.0.0.1, or its answer.
fn arp(dst: [u8; 6], src: [u8; 6], vlan: Option<u16>, operation: u8) -> Vec<u8> {
    let mut b = [dst, src].concat();
    if let Some(id) = vlan {
        b.extend([0x81, 0]);
        b.extend(id.to_be_bytes());
    }
    b.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    b.extend(src);
    b.extend([10, 0, 0, 2]);
    b.extend([0; 6]);
    b.extend([10, 0, 0, 1]);
    b
}

#[test]
fn arp_goes_between_wire_and_kernel_untouched() {
    let silent = policy(); // drops everything that the policy is asked about
    everywhere(silent, |lab| {
        let question = arp([0xff; 6], STATION, None, 1);
        lab.arrive(LAN, &question);
        lab.run();
        assert_eq!(lab.sent(LAN_TWIN), [question]);
        let answer = arp(STATION, LAN_MAC, None, 2);
        lab.arrive(LAN_TWIN, &answer);
        lab.run();
        assert_eq!(lab.sent(LAN), [answer]);
        lab.moved(&[]);
        // Somebody else's conversation.
        lab.arrive(LAN, &arp([2, 9, 9, 9, 9, 9], STATION, None, 2));
        lab.run();
        assert!(lab.collect().is_empty());
        lab.moved(&["drop eth_other_host +1"]);
    });
}

#[test]
fn the_kernel_knows_nothing_of_vlans() {
    everywhere_with(&Setup { lan_vlan: Some(7), ..Setup::default() }, with_local(), |lab| {
        lab.arrive(LAN, &arp([0xff; 6], STATION, Some(7), 1));
        lab.arrive(LAN_TWIN, &arp(STATION, LAN_MAC, None, 2));
        lab.run();
        assert_eq!(lab.sent(LAN_TWIN), [arp([0xff; 6], STATION, None, 1)]);
        assert_eq!(lab.sent(LAN), [arp(STATION, LAN_MAC, Some(7), 2)]);
        assert_eq!(lab.passes(LAN, &ping(HOST, ME, 7, 1).vlan(7), LAN_TWIN).vlan, None);
        assert_eq!(lab.passes(LAN_TWIN, &pong(ME, HOST, 7, 1).to_mac(STATION), LAN).vlan, Some(7));
    });
}

#[test]
fn neighbour_discovery_on_the_link_is_not_the_policys() {
    everywhere(policy(), |lab| {
        // Neighbour solicitation to the solicited-node group of fd00:1::1; router solicitation; a listener report.
        let group = [0x33, 0x33, 0xff, 0, 0, 1];
        for (kind, dst) in [(135, "ff02::1:ff00:1"), (133, "ff02::2"), (143, "ff02::16"), (131, "ff02::1:ff00:1")] {
            let p = icmp("fe80::2", dst, kind, 0, [0; 4], &[0; 24]).ttl(255).to_mac(group);
            assert_eq!(lab.passes(LAN, &p, LAN_TWIN).ip, p.ip());
            lab.moved(&["class untracked original +1"]);
        }
        let answer = icmp(ME6, "fe80::2", 136, 0, [0x60, 0, 0, 0], &[0; 16]).ttl(255).to_mac(STATION);
        lab.passes(LAN_TWIN, &answer, LAN);
        lab.moved(&["class untracked original +1"]);
        // To the gateway's own address, from a neighbour that checks that it is still there.
        lab.passes(LAN, &icmp(HOST6, ME6, 135, 0, [0; 4], &[0; 16]).ttl(255), LAN_TWIN);
        // Across the gateway it is traffic like any other.
        lab.changed();
        lab.refuses(LAN, &icmp(HOST6, SERVER6, 135, 0, [0; 4], &[0; 16]), DropReason::PolicyDefault);
        lab.moved(&["class untracked original +1", "drop policy_default +1"]);
        // Broken, it is INVALID.
        let broken = icmp("fe80::2", "ff02::1:ff00:1", 135, 0, [0; 4], &[0; 16]).to_mac(group).broken_checksum();
        lab.refuses(LAN, &broken, DropReason::InvalidChecksum);
        lab.moved(&["class invalid original +1", "drop invalid_checksum +1"]);
    });
}

// ---- To everybody, and to nobody ------------------------------------------------------------------------------------

#[test]
fn broadcast_and_multicast_go_to_the_kernel_where_the_policy_lets_them() {
    everywhere(with_local(), |lab| {
        // DHCP: from nobody yet, to everybody.
        let discover = udp("0.0.0.0", 68, "255.255.255.255", 67, b"discover").to_mac([0xff; 6]);
        lab.passes(LAN, &discover, LAN_TWIN);
        lab.passes(LAN, &udp(HOST, 1, "10.0.0.255", 2, b"").to_mac([0xff; 6]), LAN_TWIN);
        lab.passes(LAN, &udp(HOST, 5353, "224.0.0.251", 5353, b"").to_mac([1, 0, 0x5e, 0, 0, 0xfb]).ttl(1), LAN_TWIN);
        lab.passes(LAN, &udp("fe80::2", 546, "ff02::1:2", 547, b"").to_mac([0x33, 0x33, 0, 1, 0, 2]).ttl(1), LAN_TWIN);
        lab.moved(&["class new original +4", "event new +4"]);
        lab.refuses(
            WAN,
            &udp(SERVER, 5353, "224.0.0.251", 5353, b"").to_mac([1, 0, 0x5e, 0, 0, 0xfb]),
            DropReason::PolicyDefault,
        );
        // Out of the kernel they go to the wire.
        lab.passes(LAN_TWIN, &udp(ME, 67, "255.255.255.255", 68, b"offer").to_mac([0xff; 6]), LAN);
    });
}

#[test]
fn the_lowest_address_of_a_subnet_is_a_host() {
    everywhere(with_local(), |lab| {
        lab.neighbour(0, "10.0.0.0", true);
        lab.neighbour(1, "198.51.100.0", true);
        lab.passes(LAN, &udp("10.0.0.0", 1, "198.51.100.0", 2, b""), WAN);
        lab.passes(WAN, &udp("198.51.100.0", 2, "10.0.0.0", 1, b""), LAN);
    });
}

#[test]
fn a_frame_for_another_station_is_not_ours() {
    everywhere(with_local(), |lab| {
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 2, b"").to_mac([2, 9, 9, 9, 9, 9]), DropReason::EthOtherHost);
        lab.refuses(LAN, &ping(HOST, ME, 1, 2).to_mac(WAN_MAC), DropReason::EthOtherHost);
        lab.refuses(LAN, &udp(HOST, 1, SERVER, 2, b"").to_mac([0xff; 6]), DropReason::EthOtherHost);
        lab.moved(&["class new original +1", "drop eth_other_host +3"]);
    });
}

#[test]
fn impossible_addresses_are_martians() {
    everywhere(with_local(), |lab| {
        for src in
            ["127.0.0.1", "127.9.9.9", "224.0.0.1", "255.255.255.255", ME, OUTSIDE, "10.0.0.255", "0.0.0.0", "0.1.2.3"]
        {
            lab.refuses(LAN, &udp(src, 1, SERVER, 2, b""), DropReason::MartianSource);
        }
        for src in ["::1", "ff02::1", ME6, "::"] {
            lab.refuses(LAN, &udp(src, 1, SERVER6, 2, b""), DropReason::MartianSource);
        }
        for dst in ["127.0.0.1", "0.0.0.0", "0.1.2.3"] {
            lab.refuses(LAN, &udp(HOST, 1, dst, 2, b""), DropReason::MartianDestination);
        }
        for dst in ["::1", "::"] {
            lab.refuses(LAN, &udp(HOST6, 1, dst, 2, b""), DropReason::MartianDestination);
        }
        assert_eq!(lab.entries(), 0);
        lab.moved(&["class new original +18", "drop martian_destination +5", "drop martian_source +13"]);
    });
}

#[test]
fn link_local_addresses_stay_on_their_link() {
    everywhere(with_local(), |lab| {
        let mut routes = fib();
        routes.addresses.push((0, "fe80::1/64".parse().expect("prefix")));
        lab.reroute(routes);
        lab.passes(LAN, &ping("fe80::2", "fe80::1", 1, 1), LAN_TWIN);
        lab.passes(LAN_TWIN, &pong("fe80::1", "fe80::2", 1, 1).to_mac(STATION), LAN);
        lab.refuses(LAN, &udp("fe80::2", 1, SERVER6, 2, b""), DropReason::LinkLocalScope);
        lab.refuses(LAN, &udp(HOST6, 1, "fe80::3", 2, b""), DropReason::LinkLocalScope);
        // The gateway's errors come from an address that reaches further.
        let error = lab.refuses_with_error(LAN, &udp(HOST6, 1, SERVER6, 2, b"").ttl(1), DropReason::TtlExpired);
        assert_eq!(error.src, ip(ME6));
    });
}

#[test]
fn what_is_neither_ip_nor_arp_is_dropped() {
    everywhere(with_local(), |lab| {
        for port in [LAN, LAN_TWIN] {
            let mut frame = addressed(port, &udp(HOST, 1, SERVER, 2, b"")).frame();
            frame[12..14].copy_from_slice(&[0x88, 0xcc]); // LLDP
            lab.arrive(port, &frame);
            lab.run();
            assert!(lab.collect().is_empty());
            lab.moved(&["drop eth_type +1"]);
        }
    });
}
