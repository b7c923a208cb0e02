//! Stories of plain forwarding and filtering, on one, two and four workers.
//! The topology is drawn in `common/lab.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;

/// Runs a story on gateways of one, two and four workers, with and without RSS.
fn everywhere(spec: dataplane::api::policy::PolicySpec, story: impl Fn(&mut Lab)) {
    for workers in [1, 2, 4] {
        for arrival in [Arrival::Rss, Arrival::Anywhere] {
            for seed in 1..=3 {
                let mut lab = Lab::with(spec.clone(), Setup { workers, arrival, seed, ..Setup::default() });
                story(&mut lab);
                assert_eq!(lab.pool.live(), 0, "buffers leaked");
            }
        }
    }
}

#[test]
fn a_udp_question_and_its_answer() {
    everywhere(usual(), |lab| {
        let out = lab.passes(LAN, &udp("10.0.0.2", 4000, "203.0.113.5", 53, b"question"), WAN);
        assert_eq!(out.flow(), "10.0.0.2:4000 > 203.0.113.5:53");
        assert_eq!((out.ttl, out.src_mac, out.dst_mac), (63, WAN_MAC, [2, 0, 0, 0, 2, 1]));
        lab.moved(&["class new original +1", "event new +1"]);
        let back = lab.passes(WAN, &udp("203.0.113.5", 53, "10.0.0.2", 4000, b"answer"), LAN);
        assert_eq!((back.ttl, back.dst_mac), (63, [2, 0, 0, 0, 2, 0]));
        lab.moved(&["class established reply +1", "event replied +1"]);
        assert_eq!(lab.entries(), 1);
        lab.wait(dataplane::time::Nanos::from_secs(31));
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn nobody_from_outside_gets_in() {
    everywhere(usual(), |lab| {
        lab.refuses(WAN, &udp("203.0.113.5", 53, "10.0.0.2", 4000, b""), DropReason::PolicyDefault);
        lab.refuses(WAN, &tcp("203.0.113.5", 80, "10.0.0.2", 4000, SYN | ACK, 1, 1, b""), DropReason::InvalidTcpState);
        assert_eq!(lab.entries(), 0);
    });
}

#[test]
fn masquerade_there_and_back() {
    let mut spec = usual();
    spec.nat = vec![masquerade()];
    everywhere(spec, |lab| {
        for port in [1000, 4000, 4001, 4002, 4003, 65535] {
            let out = lab.passes(LAN, &tcp("10.0.0.2", port, "203.0.113.5", 443, SYN, 1, 0, b""), WAN);
            assert_eq!(out.src, ip("198.51.100.1"));
            let back = lab.passes(WAN, &tcp("203.0.113.5", 443, "198.51.100.1", out.sport, SYN | ACK, 1, 2, b""), LAN);
            assert_eq!(back.flow(), format!("203.0.113.5:443 > 10.0.0.2:{port}"));
            let on = lab.passes(LAN, &tcp("10.0.0.2", port, "203.0.113.5", 443, ACK, 2, 2, b"data"), WAN);
            assert_eq!(on.sport, out.sport);
        }
        assert_eq!((lab.entries(), lab.leases(), lab.signposts()), (6, 6, 0));
        let out = lab.passes(LAN, &ping("10.0.0.2", "203.0.113.5", 77, 1), WAN);
        let back = lab.passes(
            WAN,
            &icmp("203.0.113.5", "198.51.100.1", 0, 0, [(out.sport >> 8) as u8, out.sport as u8, 0, 1], b""),
            LAN,
        );
        assert_eq!(back.flow(), "203.0.113.5 > 10.0.0.2 icmp 0/0 id 77");
    });
}

#[test]
fn a_port_forward_there_and_back() {
    let mut spec = usual();
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    everywhere(spec, |lab| {
        for port in 5000..5010 {
            let out = lab.passes(WAN, &tcp("203.0.113.5", port, "198.51.100.1", 8080, SYN, 1, 0, b""), LAN);
            assert_eq!(out.flow(), format!("203.0.113.5:{port} > 10.0.0.9:80"));
            let back = lab.passes(LAN, &tcp("10.0.0.9", 80, "203.0.113.5", port, SYN | ACK, 1, 2, b""), WAN);
            assert_eq!(back.flow(), format!("198.51.100.1:8080 > 203.0.113.5:{port}"));
        }
        // How many of them have their replies' home elsewhere is arithmetic; each of those has a signpost there.
        let steer = dataplane::steer::Steer::new(0, lab.workers.len() as u16);
        let away = lab.conns().iter().filter(|c| steer.home(&c.original) != steer.home(&c.reply)).count();
        assert_eq!(lab.signposts(), away);
        lab.wait(dataplane::time::Nanos::from_secs(200));
        assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0));
    });
}
