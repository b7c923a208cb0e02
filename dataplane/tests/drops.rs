//! Every drop reason is reached: one scenario each, on one worker where the reason allows.
//!
//! [`provoke`] has no wildcard arm: a new reason does not compile until it has a scenario here.

mod common;

use std::collections::BTreeSet;

use common::ftp;
use common::lab::*;
use common::pkt::*;
use common::session::Session;
use dataplane::api::policy::*;
use dataplane::api::{DropReason, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::proto;
use dataplane::helper::HELPED;
use dataplane::io::PortIdx;
use dataplane::steer::PACKET_RING;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";
const GATEWAY: &str = "198.51.100.1";
const HOST6: &str = "fd00:1::2";
const SERVER6: &str = "2001:db8:5::5";

/// A frame that any policy of this file would forward.
fn good() -> Vec<u8> {
    addressed(LAN, &udp(HOST, 4000, SERVER, 53, b"question")).frame()
}

fn good6() -> Vec<u8> {
    addressed(LAN, &udp(HOST6, 4000, SERVER6, 53, b"question")).frame()
}

/// A lab of one worker that has received `p` by `port`.
fn after(spec: PolicySpec, port: PortIdx, p: &Pkt) -> Lab {
    let mut lab = Lab::new(spec);
    lab.send(port, p);
    lab
}

/// A lab of one worker that has received `frame` from lan.
fn after_frame(frame: &[u8]) -> Lab {
    let mut lab = Lab::new(usual());
    lab.arrive(LAN, frame);
    lab.run();
    lab
}

/// `frame` with one byte replaced.
fn with_byte(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    frame
}

/// A lab that allows one connection, after two.
fn limited(per: LimitPer, question: &Pkt) -> Lab {
    let mut spec = usual();
    spec.conntrack.limits = vec![LimitSpec { from: Some(LAN_ZONE), per, max: 1 }];
    let mut lab = Lab::new(spec);
    lab.send(LAN, question);
    lab.send(LAN, &udp(HOST, 4001, SERVER, 53, b""));
    lab
}

fn via_route(target: RouteTarget) -> Lab {
    let mut lab = Lab::new(usual());
    let mut routes = fib();
    routes.routes.push(RouteSpec { prefix: "203.0.113.0/24".parse().expect("prefix"), target });
    lab.reroute(routes);
    lab.send(LAN, &udp(HOST, 4000, SERVER, 53, b""));
    lab
}

fn masqueraded(preserve_port: PreservePort) -> PolicySpec {
    PolicySpec { nat: vec![NatRuleSpec { preserve_port, ..masquerade() }], ..usual() }
}

/// Forwards of ports 8000 to 8063 to one server: clients' tuples meet behind it.
fn forwarded() -> PolicySpec {
    let mut spec = usual();
    dnat(&mut spec, 8000, "10.0.0.9", Some(80));
    spec.nat[0].matches.dport = vec![8000..=8063];
    spec
}

fn masqueraded_ftp() -> PolicySpec {
    helped(masqueraded(PreservePort::Auto), HelperKind::Ftp, 21)
}

/// A lab of one worker whose FTP client has said `text`.
fn announced(spec: PolicySpec, text: &[u8]) -> Lab {
    let mut lab = Lab::new(spec);
    let s = Session::login(&mut lab, LAN, (HOST, 4000), WAN, (SERVER, 21)).client;
    lab.send(LAN, &s.segment(ACK, s.next, s.waits, text));
    lab
}

/// What frag.rs, frag_limits.rs and frag_virtual.rs are about.
const FRAGMENTS: &[DropReason] = &[
    DropReason::FragmentInvalid,
    DropReason::FragmentOverlap,
    DropReason::FragmentDuplicate,
    DropReason::FragmentCount,
    DropReason::FragmentLimit,
    DropReason::FragmentShare,
    DropReason::FragmentTimeout,
    DropReason::FragmentHeader,
    DropReason::FragmentFirst,
];

/// A lab in which `reason` has just happened.
fn provoke(reason: DropReason) -> Option<Lab> {
    use DropReason as R;
    let question = udp(HOST, 4000, SERVER, 53, b"question");
    Some(match reason {
        // Fragments have files of their own.
        R::FragmentInvalid | R::FragmentOverlap | R::FragmentDuplicate | R::FragmentCount => return None,
        R::FragmentLimit | R::FragmentShare | R::FragmentTimeout => return None,
        R::FragmentHeader | R::FragmentFirst => return None,

        R::ChainedTooLong => {
            let mut lab = Lab::new(usual());
            let buf = lab.pool.frame(&good()).expect("a buffer is free").with_tail(&[0; 4000]);
            lab.arrive_buf(LAN, buf);
            lab.run();
            lab
        }
        R::NoBuffer => {
            // The packet must be cut, and there is one buffer: its own.
            let mut lab = Lab::with(usual(), Setup { buffers: 1, wan_mtu: 1280, ..Setup::default() });
            lab.send(LAN, &udp(HOST, 4000, SERVER, 53, &[0; 1400]));
            lab
        }
        R::EthTruncated => after_frame(&good()[..13]),
        R::EthOtherHost => after(usual(), LAN, &question.to_mac([2, 9, 9, 9, 9, 9])),
        R::EthType => after_frame(&with_byte(good(), 12, 0x99)),
        R::VlanUnknown => after(usual(), LAN, &question.vlan(9)),
        R::Ipv4Truncated => after_frame(&good()[..33]),
        R::Ipv4Version => after_frame(&with_byte(good(), 14, 0x55)),
        R::Ipv4HeaderLength => after_frame(&with_byte(good(), 14, 0x44)),
        R::Ipv4Checksum => after_frame(&with_byte(good(), 24, 0)),
        R::Ipv6Truncated => after_frame(&good6()[..53]),
        R::Ipv6Version => after_frame(&with_byte(good6(), 14, 0x40)),
        R::Ipv6Extension => after(usual(), LAN, &other(HOST6, SERVER6, 0, &[17, 9, 0, 0, 0, 0, 0, 0])),
        R::HandoverFull => {
            let mut lab = Lab::with(usual(), Setup { workers: 2, arrival: Arrival::Anywhere, ..Setup::default() });
            let wrong = 1 - lab.home(&tuple(HOST, 4000, SERVER, 53, proto::UDP));
            for _ in 0..=PACKET_RING {
                lab.arrive_at(wrong, LAN, &good());
                lab.step(wrong);
            }
            lab.run();
            lab
        }
        R::SignpostFull => {
            let mut lab = Lab::with(forwarded(), Setup { workers: 4, conntrack_max: 4, ..Setup::default() });
            let mut count = [0; 4];
            for port in 1024..2048 {
                let question = tuple(SERVER, port, GATEWAY, 8000 + port % 64, proto::UDP);
                let answer = tuple("10.0.0.9", 80, SERVER, port, proto::UDP);
                let (owner, home) = (lab.home(&question), lab.home(&answer));
                if owner != 3 && home == 3 && count[owner] < 4 {
                    count[owner] += 1;
                    lab.send(WAN, &udp(SERVER, port, GATEWAY, 8000 + port % 64, b""));
                }
            }
            lab
        }
        R::SignpostClash => {
            let mut lab = Lab::with(forwarded(), Setup { workers: 4, ..Setup::default() });
            for port in 1024..1100 {
                for asks in 8000..8004 {
                    lab.send(WAN, &udp(SERVER, port, GATEWAY, asks, b""));
                }
            }
            lab
        }
        R::RawRule => {
            let raw = RawRuleSpec { name: "no".into(), matches: Match::default(), action: RawAction::Drop };
            after(PolicySpec { raw: vec![raw], ..usual() }, LAN, &question)
        }
        R::InvalidExtension => after(usual(), LAN, &other(HOST6, SERVER6, 60, &[17])),
        R::InvalidNoNextHeader => after(usual(), LAN, &other(HOST6, SERVER6, 59, b"")),
        R::InvalidLength => after(usual(), LAN, &other(HOST, SERVER, proto::TCP, &[0; 19])),
        R::InvalidChecksum => after(usual(), LAN, &question.broken_checksum()),
        R::InvalidCoverage => after(usual(), LAN, &udplite(HOST, 4000, SERVER, 53, 7, b"question")),
        R::InvalidFlags => after(usual(), LAN, &tcp(HOST, 1, SERVER, 2, SYN | FIN, 1, 0, b"")),
        R::InvalidTcpState => after(usual(), LAN, &tcp(HOST, 1, SERVER, 2, RST, 1, 0, b"")),
        R::InvalidWindow => {
            let mut lab = after(usual(), LAN, &tcp(HOST, 1, SERVER, 2, SYN, 100, 0, b""));
            lab.send(WAN, &tcp(SERVER, 2, HOST, 1, SYN | ACK, 500, 102, b""));
            lab
        }
        R::InvalidRst => {
            let mut lab = after(usual(), LAN, &tcp(HOST, 1, SERVER, 2, SYN, 100, 0, b""));
            lab.send(WAN, &tcp(SERVER, 2, HOST, 1, SYN | ACK, 500, 101, b""));
            lab.send(LAN, &tcp(HOST, 1, SERVER, 2, RST, 100, 0, b""));
            lab
        }
        R::InvalidSctpChunks => after(usual(), LAN, &sctp(HOST, 4000, SERVER, 80, 0, &[])),
        R::InvalidSctpTag => after(usual(), LAN, &sctp(HOST, 4000, SERVER, 80, 7, &[init(1, 1)])),
        R::InvalidSctpState => after(usual(), LAN, &sctp(HOST, 4000, SERVER, 80, 0, &[chunk(0, 3, &[0; 12])])),
        R::InvalidGre => after(usual(), LAN, &other(HOST, SERVER, proto::GRE, &[0, 1, 8, 0, 0, 0, 0, 0])),
        R::InvalidIcmpType => after(usual(), LAN, &icmp(HOST, SERVER, 40, 0, [0; 4], b"")),
        R::InvalidIcmpVersion => after(usual(), LAN, &other(HOST, SERVER, proto::ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0])),
        R::InvalidRedirect => after(usual(), WAN, &icmp(SERVER6, HOST6, 137, 0, [0; 4], &[0; 40])),
        R::InvalidQuote => after(usual(), WAN, &icmp(SERVER, HOST, 3, 3, [0; 4], &question.ip()[..23])),
        R::InvalidErrorTarget => after(usual(), WAN, &icmp(SERVER, "10.0.0.3", 3, 3, [0; 4], &question.ip())),
        R::InvalidNoParent => after(usual(), WAN, &icmp(SERVER, HOST, 3, 3, [0; 4], &question.ip())),
        R::InvalidNoRequest => after(usual(), WAN, &pong(SERVER, HOST, 1, 1)),
        R::ExpectFull => {
            let mut spec = masqueraded_ftp();
            spec.conntrack.expect_max = 0;
            announced(spec, b"PORT 10,0,0,2,19,137\r\n")
        }
        R::ExpectClash => {
            let mut lab = Lab::new(ftp::strict());
            for port in [4000, 4001] {
                let s = Session::login(&mut lab, LAN, (HOST, port), WAN, (SERVER, 21)).client;
                lab.send(LAN, &s.segment(ACK, s.next, s.waits, b"PORT 10,0,0,2,19,137\r\n"));
            }
            lab
        }
        R::HelperFull => {
            let spec = helped(usual(), HelperKind::Tftp, 69);
            let mut lab = Lab::with(spec, Setup { conntrack_max: HELPED + 1, ..Setup::default() });
            for port in (1024..).take(HELPED + 1) {
                lab.arrive(LAN, &addressed(LAN, &udp(HOST, port, SERVER, 69, b"")).frame());
                lab.step(0);
                lab.sent(WAN);
            }
            lab
        }
        R::HelperOrder => {
            let mut lab = Lab::new(masqueraded_ftp());
            let s = Session::login(&mut lab, LAN, (HOST, 4000), WAN, (SERVER, 21)).client;
            lab.send(LAN, &s.segment(ACK, s.next + 1, s.waits, b"NOOP\r\n"));
            lab
        }
        R::HelperEdits => announced(masqueraded_ftp(), &b"PORT 10,0,0,2,19,137\r\n".repeat(5)),
        R::HelperFragments => {
            let mut lab = Lab::new(masqueraded_ftp());
            let s = Session::login(&mut lab, LAN, (HOST, 4000), WAN, (SERVER, 21)).client;
            for p in s.segment(ACK, s.next, s.waits, b"NOOP\r\n").fragments(24) {
                lab.send(LAN, &p);
            }
            lab
        }
        R::ConntrackFull => {
            // The only entry belongs to the gateway itself, and that is not given up for others.
            let mut spec = usual();
            spec.rules.push(rule("local", from_to(ZoneId::LOCAL, WAN_ZONE), Action::Accept));
            let mut lab = Lab::with(spec, Setup { conntrack_max: 1, ..Setup::default() });
            lab.send(WAN_TWIN, &udp(GATEWAY, 4001, SERVER, 53, b""));
            lab.send(LAN, &question);
            lab
        }
        R::LimitSource => limited(LimitPer::Source { v4: 32, v6: 128 }, &question),
        R::LimitZone => limited(LimitPer::Zone, &question),
        R::NatNoAddress => {
            let mut lab = Lab::new(masqueraded(PreservePort::Auto));
            let mut routes = fib();
            routes.addresses.retain(|(interface, _)| *interface == 0);
            lab.reroute(routes);
            lab.send(LAN, &question);
            lab
        }
        R::NatNoPort => {
            let mut lab = Lab::new(masqueraded(PreservePort::Strict));
            lab.send(LAN, &question);
            lab.send(LAN, &question.src("10.0.0.3"));
            lab
        }
        R::NatClash => {
            let mut lab = Lab::new(masqueraded(PreservePort::Auto));
            lab.send(LAN, &other(HOST, SERVER, 47, b""));
            lab.send(LAN, &other("10.0.0.3", SERVER, 47, b""));
            lab
        }
        R::NatReload => {
            let mut lab = Lab::new(masqueraded(PreservePort::Auto));
            lab.send(LAN, &question);
            let elsewhere = NatKind::Snat { to: ip("198.51.100.7").into() };
            let rule = NatRuleSpec { kind: elsewhere, on_reload: OnReload::End, ..masquerade() };
            lab.reload(PolicySpec { nat: vec![rule], ..usual() });
            lab.send(LAN, &question);
            lab
        }
        R::NatAddressGone => {
            let mut lab = Lab::new(masqueraded(PreservePort::Auto));
            lab.send(LAN, &question);
            let mut routes = fib();
            routes.addresses.retain(|(interface, _)| *interface == 0);
            lab.reroute(routes);
            lab.send(LAN, &question);
            lab
        }
        R::NatRedirect => {
            let mut lab = Lab::new(masqueraded(PreservePort::Auto));
            let (_, out) = lab.send(LAN, &question).remove(0);
            lab.send(WAN, &icmp(SERVER, GATEWAY, 5, 1, [198, 51, 100, 20], &out.ip));
            lab
        }
        R::NatPrefix => {
            // Below 48 bits the subnet makes good for the prefix, and one of all ones has no image.
            let (inside, outside) = ("fd00:1::/40".parse(), "2001:db8::/40".parse());
            let kind = NatKind::Nptv6 { inside: inside.expect("prefix"), outside: outside.expect("prefix") };
            let nat = vec![NatRuleSpec::new("npt", from_to(LAN_ZONE, WAN_ZONE), kind)];
            after(PolicySpec { nat, ..usual() }, LAN, &udp("fd00:1:0:ffff::2", 4000, SERVER6, 53, b"question"))
        }
        R::MartianSource => after(usual(), LAN, &question.src("127.0.0.1")),
        R::MartianDestination => after(usual(), LAN, &question.dst("127.0.0.1")),
        R::NoRoute => {
            let mut lab = Lab::new(usual());
            let mut routes = fib();
            routes.routes.retain(|r| r.prefix.prefix_len() > 0);
            lab.reroute(routes);
            lab.send(LAN, &question);
            lab
        }
        R::RouteBlackhole => via_route(RouteTarget::Blackhole),
        R::RouteUnreachable => via_route(RouteTarget::Unreachable),
        R::RouteProhibit => via_route(RouteTarget::Prohibit),
        R::PolicyRule => {
            let spec = PolicySpec { rules: vec![rule("no", Match::default(), Action::Drop)], ..policy() };
            after(spec, LAN, &question)
        }
        R::PolicyDefault => after(policy(), LAN, &question),
        R::PolicyReload => {
            let mut lab = after(usual(), LAN, &question);
            lab.reload(policy());
            lab.send(LAN, &question);
            lab
        }
        R::TtlExpired => after(usual(), LAN, &question.ttl(1)),
        R::MtuExceeded => {
            let mut lab = Lab::with(usual(), Setup { wan_mtu: 1280, ..Setup::default() });
            lab.send(LAN, &udp(HOST, 4000, SERVER, 53, &[0; 1400]).df());
            lab
        }
        R::LinkLocalScope => after(usual(), LAN, &udp("fe80::2", 1, SERVER6, 2, b"")),
        R::NeighbourUnresolved => {
            let mut lab = after(usual(), LAN, &udp(HOST, 1, "198.51.100.5", 2, b""));
            lab.wait(Nanos::from_secs(4));
            lab
        }
        R::NeighbourQueueFull => {
            let mut lab = Lab::new(usual());
            for n in 0..65 {
                lab.send(LAN, &udp(HOST, 1, "198.51.100.5", 2, &[n]));
            }
            lab
        }
        R::TxFull => {
            let mut lab = Lab::new(usual());
            lab.workers[0].io().tx_limit = 0;
            lab.send(LAN, &question);
            lab
        }
    })
}

#[test]
fn every_reason_is_reached() {
    let mut reached = BTreeSet::new();
    for &reason in DropReason::ALL {
        let Some(mut lab) = provoke(reason) else { continue };
        assert!(lab.drop_count(reason) > 0, "{} was not reached: {:?}", reason.label(), lab.drops());
        let others = lab.total_drops() - lab.drop_count(reason);
        assert_eq!(others, 0, "more than {} happened: {:?}", reason.label(), lab.drops());
        lab.collect();
        lab.sound();
        reached.insert(reason);
        // Whatever it was, it costs no buffer but those of packets that wait for a neighbour.
        lab.wait(Nanos::from_secs(4));
        lab.collect();
        assert_eq!(lab.pool.live(), 0, "{} leaks", reason.label());
    }
    let missing: Vec<_> = DropReason::ALL.iter().filter(|r| !reached.contains(r) && !FRAGMENTS.contains(r)).collect();
    assert!(missing.is_empty(), "no scenario for {missing:?}");
}

// ---- Buffers and transmit queues --------------------------------------------------------------------------------

#[test]
fn what_a_full_transmit_queue_refuses_is_counted_and_freed() {
    everywhere(usual(), |lab| {
        for w in &mut lab.workers {
            w.io().tx_limit = 3;
        }
        for _ in 0..10 {
            lab.arrive(LAN, &good());
        }
        lab.run();
        lab.moved(&["class new original +10", "drop tx_full +7", "event new +1"]);
        assert_eq!(lab.collect().len(), 3);
    });
}

#[test]
fn without_buffers_no_error_is_sent_and_nothing_breaks() {
    let mut lab = Lab::with(usual(), Setup { buffers: 1, ..Setup::default() });
    lab.refuses(LAN, &udp(HOST, 4000, SERVER, 53, b"").ttl(1), DropReason::TtlExpired);
    lab.moved(&["class new original +1", "drop ttl_expired +1"]);
    lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
}
