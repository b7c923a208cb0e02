//! Stories of SCTP: translated, in fragments, with wrong checksums, put into the table by hand.
//!
//! ```text
//!   10.0.0.2, .3 ──┐                                                  ┌─ 203.0.113.5
//!   10.0.0.9 ──────┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ──┤
//!   fd00:1::2 ─────┘      [ fd00:1::1            2001:db8::1  ]       └─ 2001:db8:5::5
//! ```
//! `Seen::read` asserts the checksum of every packet that leaves whole. The state machine has traces: sctp_traces.rs.

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::command::{Command, ConnSpec, Event, home_of};
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::{Tuple, proto};

const HOST: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
const WEB: &str = "10.0.0.9";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const GATEWAY6: &str = "2001:db8::1";
const SERVER6: &str = "2001:db8:5::5";

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn data(body: &[u8]) -> Vec<u8> {
    chunk(0, 3, &[&[0; 12], body].concat())
}

fn cookie_echo() -> Vec<u8> {
    chunk(10, 0, b"a cookie")
}

fn cookie_ack() -> Vec<u8> {
    chunk(11, 0, b"")
}

fn masqueraded() -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..usual() }
}

/// Opens an association from `client` to port 80 of `to` and back again, through translations on either side; gives the
/// client's port as the server sees it.
fn open(lab: &mut Lab, inside: (&str, u16), outside: (&str, u16), server: (&str, u16), public: &str) -> u16 {
    let (host, port) = inside;
    let out = lab.passes(LAN, &sctp(host, port, outside.0, outside.1, 0, &[init(INIT, 0x11)]), WAN);
    assert_eq!((out.src, out.dst, out.dport), (ip(public), ip(server.0), server.1));
    let back = |vtag, chunks: &[Vec<u8>]| sctp(server.0, server.1, public, out.sport, vtag, chunks);
    let seen = lab.passes(WAN, &back(0x11, &[init(INIT_ACK, 0x22)]), LAN);
    assert_eq!(seen.flow(), format!("{}:{} > {host}:{port}", outside.0, outside.1));
    lab.passes(LAN, &sctp(host, port, outside.0, outside.1, 0x22, &[cookie_echo(), data(b"early")]), WAN);
    lab.passes(WAN, &back(0x11, &[cookie_ack(), data(b"odd")]), LAN);
    out.sport
}

#[test]
fn associations_pass_masquerade_in_both_ip_versions() {
    everywhere(masqueraded(), |lab| {
        open(lab, (HOST, 4000), (SERVER, 80), (SERVER, 80), GATEWAY);
        open(lab, (HOST6, 4000), (SERVER6, 80), (SERVER6, 80), GATEWAY6);
        let conns = lab.conns();
        assert!(conns.iter().all(|c| (c.state, c.assured, c.timeout_s) == (Some("ESTABLISHED"), true, 210)));
        assert_eq!((conns.len(), lab.leases()), (2, 2));
    });
}

#[test]
fn hosts_share_an_address_by_their_ports() {
    everywhere(masqueraded(), |lab| {
        let ports = [HOST, OTHER, WEB].map(|host| open(lab, (host, 4000), (SERVER, 80), (SERVER, 80), GATEWAY));
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2], "{ports:?}");
        assert!(ports.iter().all(|p| *p >= 1024));
    });
}

#[test]
fn one_workers_hosts_keep_their_ports_where_they_are_free() {
    let mut lab = Lab::new(masqueraded());
    for port in [1, 512, 1024, 4000, u16::MAX] {
        assert_eq!(open(&mut lab, (HOST, port), (SERVER, 80), (SERVER, 80), GATEWAY), port);
    }
}

#[test]
fn a_forwarded_port_leads_to_the_server() {
    let mut spec = usual();
    dnat(&mut spec, 8080, WEB, Some(80));
    spec.nat[0].matches.proto = vec![proto::SCTP];
    everywhere(spec, |lab| {
        for port in 5000..5004 {
            let seen = lab.passes(WAN, &sctp(SERVER, port, GATEWAY, 8080, 0, &[init(INIT, 0x11)]), LAN);
            assert_eq!(seen.flow(), format!("{SERVER}:{port} > {WEB}:80"));
            let seen = lab.passes(LAN, &sctp(WEB, 80, SERVER, port, 0x11, &[init(INIT_ACK, 0x22)]), WAN);
            assert_eq!(seen.flow(), format!("{GATEWAY}:8080 > {SERVER}:{port}"));
        }
    });
}

#[test]
fn what_is_invalid_leaves_no_trace() {
    everywhere(masqueraded(), |lab| {
        lab.refuses(LAN, &sctp(HOST, 4000, SERVER, 80, 7, &[data(b"")]), DropReason::InvalidSctpState);
        lab.moved(&["class invalid original +1", "drop invalid_sctp_state +1"]);
        lab.refuses(LAN, &sctp(HOST, 4000, SERVER, 80, 7, &[init(INIT, 1)]), DropReason::InvalidSctpTag);
        lab.refuses(LAN, &other(HOST, SERVER, proto::SCTP, &[0; 11]), DropReason::InvalidLength);
        lab.refuses(LAN, &other(HOST6, SERVER6, proto::SCTP, b""), DropReason::InvalidLength);
        assert_eq!((lab.entries(), lab.leases()), (0, 0));
    });
}

#[test]
fn a_wrong_checksum_is_invalid_and_stays_wrong_where_nobody_verifies() {
    let unchecked = ConntrackSpec { checksum: false, ..ConntrackSpec::default() };
    let first = sctp(HOST, 4000, SERVER, 80, 0, &[init(INIT, 0x11)]);
    everywhere(masqueraded(), |lab| {
        for at in 8..12 {
            let mut p = first.clone();
            p.l4[at] ^= 1;
            lab.refuses(LAN, &p, DropReason::InvalidChecksum);
        }
    });
    everywhere(PolicySpec { conntrack: unchecked, ..masqueraded() }, |lab| {
        lab.arrive(LAN, &addressed(LAN, &first.clone().broken_checksum()).frame());
        lab.run();
        let wrong = lab.sent(WAN).remove(0);
        let right = lab.passes(LAN, &first, WAN).ip;
        let off: Vec<_> = wrong[14..].iter().zip(&right).map(|(a, b)| a ^ b).collect();
        assert_eq!(off.iter().filter(|b| **b != 0).count(), 1, "as wrong as it came");
        assert_eq!(off[20 + 8], 0x10);
    });
}

#[test]
fn a_packet_in_fragments_is_walked_to_its_end_and_its_checksum_put_right() {
    everywhere(masqueraded(), |lab| {
        let port = open(lab, (HOST, 4000), (SERVER, 80), (SERVER, 80), GATEWAY);
        // SHUTDOWN stands in the last fragment.
        let shutdown = chunk(7, 0, &[0; 4]);
        let p = sctp(HOST, 4000, SERVER, 80, 0x22, &[data(&[7; 60]), data(&[8; 60]), shutdown]);
        for f in p.fragments(48) {
            lab.arrive(LAN, &addressed(LAN, &f).frame());
        }
        lab.run();
        let out = lab.collect();
        assert_eq!(out.len(), 4);
        let whole: Vec<u8> = out.iter().flat_map(|(_, s)| s.ip[20..].to_vec()).collect();
        assert_eq!(whole[8..12], sctp_checksum(&whole));
        assert_eq!(be16_at(&whole, 0), port);
        assert_eq!(lab.conns()[0].state, Some("SHUTDOWN_SENT"));
        // One bit of the last fragment is wrong.
        let mut fragments = p.fragments(48);
        fragments[3].l4[0] ^= 1;
        let before = lab.drop_count(DropReason::InvalidChecksum);
        for f in fragments {
            lab.arrive(LAN, &addressed(LAN, &f).frame());
        }
        lab.run();
        assert_eq!(lab.drop_count(DropReason::InvalidChecksum), before + 4);
    });
}

#[test]
fn a_restored_association_learns_its_tags() {
    everywhere(usual(), |lab| {
        let original = tuple(HOST, 4000, SERVER, 80, proto::SCTP);
        create(lab, original, Some("ESTABLISHED"));
        lab.passes(WAN, &sctp(SERVER, 80, HOST, 4000, 0x11, &[data(b"more")]), LAN);
        lab.passes(LAN, &sctp(HOST, 4000, SERVER, 80, 0x22, &[chunk(3, 0, &[0; 12])]), WAN);
        for (port, p) in [
            (LAN, sctp(HOST, 4000, SERVER, 80, 0x33, &[data(b"")])),
            (WAN, sctp(SERVER, 80, HOST, 4000, 0x33, &[data(b"")])),
        ] {
            lab.refuses(port, &p, DropReason::InvalidSctpTag);
        }
        lab.passes(LAN, &sctp(HOST, 4000, SERVER, 80, 0x22, &[chunk(7, 0, &[0; 4])]), WAN);
        assert_eq!(lab.conns()[0].state, Some("SHUTDOWN_SENT"));
    });
}

/// Puts a connection into the table, as `conntrack create` does.
fn create(lab: &mut Lab, original: Tuple, state: Option<&'static str>) {
    let spec = ConnSpec {
        original,
        reply: original.inverse(),
        state,
        timeout_s: 100,
        replied: true,
        assured: true,
        mark: 0,
        expected: false,
        helper: None,
        sides: None,
        timeout_policy: 0,
        age_ms: 0,
        packets: [0; 2],
        bytes: [0; 2],
        interface: 0,
        local: false,
        judge: false,
    };
    let command = Command::Create { conns: vec![spec], refused: Vec::with_capacity(1) };
    lab.tell(home_of(&original, lab.workers.len()), command);
    lab.run();
    let made = lab.events.drain(..).any(|e| matches!(e, Event::Created { made: 1, .. }));
    assert!(made, "it was refused");
}
