//! What must hold for any input. Each function takes bytes as an attacker, or a fuzzer, would choose them.

use std::net::IpAddr;

use dataplane::api::command::ConnFilter;
use dataplane::api::policy::PolicySpec;
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::defrag::{self, Mode};
use dataplane::io::{PortIdx, RxChecksum};
use dataplane::nat::rewrite::{self, ErrorTarget};
use dataplane::packet::{L4, Packet, Quoted};
use dataplane::parse::{self, Parsed, Receiver, checksum};
use dataplane::time::Nanos;

use super::lab::*;
use super::pkt::*;

/// Bytes, taken from the front; zero when there are none left.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((&b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        b
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        front
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}

// ---- Parsing --------------------------------------------------------------------------------------------------------

/// A wire port that takes every station's frames: a test does not have to know our MAC address.
pub fn receiver(bytes: &[u8], vlan: Option<u16>, verify: bool) -> Receiver {
    let mut mac = [0; 6];
    let n = bytes.len().min(6);
    mac[..n].copy_from_slice(&bytes[..n]);
    Receiver { port: PortIdx::wire(0), mac, vlan, verify }
}

/// Parses `bytes` in all ways; asserts what `parse` promises of each packet that it finds.
pub fn parses(bytes: &[u8]) {
    for verify in [false, true] {
        for vlan in [None, Some(7)] {
            let wire = receiver(bytes, vlan, verify);
            let twin = Receiver { port: PortIdx::twin(0), ..wire };
            for receiver in [wire, twin] {
                for hardware in [RxChecksum::Unknown, RxChecksum::Good, RxChecksum::Bad] {
                    match parse::frame(bytes, &receiver, hardware) {
                        Ok(Parsed::Ip(p)) => promised(&p, bytes),
                        Ok(Parsed::Atomic { l3, atomic }) => {
                            let mut frame = bytes.to_vec();
                            parse::ipv6::take_out_fragment(&mut frame, l3, atomic);
                            let rest = &frame[8..];
                            match parse::frame(rest, &receiver, hardware) {
                                Ok(Parsed::Ip(p)) => promised(&p, rest),
                                other => panic!("{other:?} is left of an atomic fragment"),
                            }
                        }
                        Ok(Parsed::Arp { l2_len }) => assert!(l2_len <= bytes.len()),
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

fn promised(p: &Packet, bytes: &[u8]) {
    let (l3, l4, end) = p.span();
    assert!(l3 == 14 || l3 == 18);
    assert!(l4 >= l3 + if p.tuple.is_ipv4() { 20 } else { 40 });
    assert!(l4 <= end && end <= bytes.len());
    assert_eq!((p.ip_len as usize, p.wire_len as usize), (end - l3, end - l3));
    assert_eq!(usize::from(p.l4_len), end - l4);
    assert_eq!(p.tuple.src.is_ipv4(), p.tuple.dst.is_ipv4());
    assert!(p.fragment.is_some() || p.kind != L4::Fragment);
    assert!(p.fragment.is_none() || matches!(p.kind, L4::Fragment | L4::Invalid(_)));
    let room = end - l4;
    match p.kind {
        L4::Tcp(_) => assert!(room >= 20 && p.tuple.proto == proto::TCP),
        L4::Udp => assert!(room >= 8 && p.tuple.proto == proto::UDP),
        L4::UdpLite => assert!(room >= 8 && p.tuple.proto == proto::UDPLITE),
        L4::Sctp(s) => assert!(room >= 16 && p.tuple.proto == proto::SCTP && s.chunks.iter().count() > 0),
        L4::IcmpQuery | L4::NeighbourDiscovery | L4::IcmpError(None) => assert!(room >= 8 && p.tuple.is_icmp()),
        L4::IcmpError(Some(q)) => {
            assert!(p.tuple.is_icmp());
            assert_eq!(q.tuple.is_ipv4(), p.tuple.is_ipv4());
            assert_eq!(q.tuple.src.is_ipv4(), q.tuple.dst.is_ipv4());
            let quoted = usize::from(q.at) + usize::from(q.l4);
            assert!(quoted <= room);
            let needed = match (q.tuple.has_ports(), q.tuple.is_icmp()) {
                (true, _) => 4,
                (_, true) => 8,
                _ => 0,
            };
            assert!(room - quoted >= needed);
        }
        L4::Gre { call } => assert!(p.tuple.proto == proto::GRE && p.tuple.sport == 0 && (call || p.tuple.dport == 0)),
        L4::Other | L4::Fragment | L4::Invalid(_) => {}
    }
}

/// [`parses`] for the bytes as they are and behind a right IPv4 header checksum: chance does not find one.
pub fn parses_repaired(bytes: &[u8]) {
    parses(bytes);
    let mut b = bytes.to_vec();
    for l3 in [14, 18] {
        repair(&mut b, l3);
    }
    parses(&b);
}

/// Puts the checksum of an IPv4 header at `l3` right, where there is one.
fn repair(b: &mut [u8], l3: usize) {
    let Some(&first) = b.get(l3) else { return };
    if b[l3 - 2..l3] == [8, 0]
        && let Some(h) = b.get_mut(l3..l3 + usize::from(first & 15).max(5) * 4)
    {
        h[10..12].fill(0);
        let sum = !checksum::sum(h);
        h[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

// ---- Translation ----------------------------------------------------------------------------------------------------

/// A tuple that a packet of `from` may be translated to: other addresses and ports, taken from `input`.
pub fn target(from: &Tuple, input: &mut Input<'_>) -> Tuple {
    let mut to = *from;
    let address = |old: IpAddr, input: &mut Input<'_>| match (input.byte() % 4, old) {
        (0, old) => old,
        (_, IpAddr::V4(_)) => IpAddr::from(input.array::<4>()),
        (_, IpAddr::V6(_)) => IpAddr::from(input.array::<16>()),
    };
    to.src = address(from.src, input);
    to.dst = address(from.dst, input);
    if from.has_ports() {
        (to.sport, to.dport) = (input.word(), input.word());
    } else if from.proto == proto::GRE && from.dport != 0 {
        to.dport = input.word(); // version 1, but for a call id of 0
    } else if from.is_icmp() {
        to.sport = input.word(); // the identifier; type and code are no port
    }
    to
}

/// Whether the transport checksum is right, for packets that carry one.
fn l4_right(b: &[u8], p: &Packet) -> bool {
    let (_, l4, end) = p.span();
    let data = &b[l4..end];
    match p.kind {
        L4::Udp if be16_at(data, 6) == 0 => true,
        L4::Udp => {
            let len = usize::from(be16_at(data, 4));
            transport_ok(p.tuple.src, p.tuple.dst, proto::UDP, &data[..len])
        }
        L4::Tcp(_) | L4::UdpLite => transport_ok(p.tuple.src, p.tuple.dst, p.tuple.proto, data),
        L4::Sctp(_) => data[8..12] == sctp_checksum(data),
        L4::IcmpQuery | L4::IcmpError(_) if p.tuple.is_ipv4() => checksum::sum(data) == 0xffff,
        L4::IcmpQuery | L4::IcmpError(_) => transport_ok(p.tuple.src, p.tuple.dst, proto::ICMPV6, data),
        _ => true,
    }
}

/// Asserts that two frames are the same, but for checksums of which one is all ones and the other all zeros: the same
/// number in one's complement. Deltas lead from one to the other where the original's sender chose the unusual one.
fn assert_same(a: &[u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    for at in (0..a.len()).step_by(2) {
        let end = (at + 2).min(a.len());
        let (x, y) = (&a[at..end], &b[at..end]);
        let zero = |w: &[u8]| w == [0, 0] || w == [0xff, 0xff];
        assert!(x == y || zero(x) && zero(y), "byte {at}: {x:02x?} became {y:02x?}");
    }
}

/// The packet of `frame`, where there is one.
pub fn packet_of(frame: &[u8], verify: bool) -> Option<Packet> {
    match parse::frame(frame, &receiver(frame, None, verify), RxChecksum::Unknown) {
        Ok(Parsed::Ip(p)) => Some(p),
        _ => None,
    }
}

/// Translates `frame`'s packet to a tuple of `input`'s choice: it has that tuple then, its checksums are right if they
/// were, and translating it back gives what it was. Says whether there was anything to translate.
pub fn translates(frame: &[u8], input: &mut Input<'_>) -> bool {
    let Some(p) = packet_of(frame, false) else { return false };
    if !matches!(p.kind, L4::Tcp(_) | L4::Udp | L4::UdpLite | L4::Sctp(_) | L4::Gre { .. } | L4::IcmpQuery | L4::Other)
    {
        return false; // INVALID is never translated, fragments as a whole, errors below
    }
    let to = target(&p.tuple, input);
    let mut b = frame.to_vec();
    rewrite::translate(&mut b, &p, &to);
    let q = packet_of(&b, false).expect("it is a packet still");
    assert_eq!((q.tuple, q.kind), (to, p.kind), "it has the tuple that was asked for");
    assert_eq!(l4_right(&b, &q), l4_right(frame, &p), "a right checksum stays right, a wrong one wrong");
    rewrite::translate(&mut b, &q, &p.tuple);
    assert_same(frame, &b);
    true
}

/// The same for an ICMP error.
pub fn translates_error(frame: &[u8], input: &mut Input<'_>) -> bool {
    let Some(p) = packet_of(frame, false) else { return false };
    let L4::IcmpError(Some(quoted)) = p.kind else { return false };
    if p.tuple.is_ipv4() && quoted.l4 < 20 {
        return false; // its header lies about its length: there is no checksum to be right
    }
    let outer = target(&Tuple { proto: 0, ..p.tuple }, input);
    let to = ErrorTarget { src: outer.src, dst: outer.dst, quoted: target(&quoted.tuple, input) };
    let mut b = frame.to_vec();
    rewrite::translate_error(&mut b, &p, &quoted, &to);
    let q = packet_of(&b, false).expect("it is a packet still");
    assert_eq!((q.tuple.src, q.tuple.dst), (to.src, to.dst));
    assert_eq!(q.kind, L4::IcmpError(Some(Quoted { tuple: to.quoted, ..quoted })));
    assert_eq!(l4_right(&b, &q), l4_right(frame, &p), "the message's checksum");
    assert_eq!(quote_right(&b, &q, &quoted), quote_right(frame, &p, &quoted), "the quoted header's checksum");
    let back = ErrorTarget { src: p.tuple.src, dst: p.tuple.dst, quoted: quoted.tuple };
    let there = Quoted { tuple: to.quoted, ..quoted };
    rewrite::translate_error(&mut b, &q, &there, &back);
    assert_same(frame, &b);
    true
}

/// Whether the quoted IPv4 header's checksum is right.
fn quote_right(b: &[u8], p: &Packet, quoted: &Quoted) -> bool {
    let at = usize::from(p.l4) + usize::from(quoted.at);
    !p.tuple.is_ipv4() || checksum::sum(&b[at..at + usize::from(quoted.l4)]) == 0xffff
}

// ---- The whole gateway ----------------------------------------------------------------------------------------------

/// Packets to begin with: each is right, and something in the policy is for it.
pub fn templates() -> Vec<(PortIdx, Pkt)> {
    const HOST: &str = "10.0.0.2";
    const SERVER: &str = "203.0.113.5";
    const ME: &str = "198.51.100.1";
    const HOST6: &str = "fd00:1::2";
    const SERVER6: &str = "2001:db8:5::5";
    const ME6: &str = "2001:db8::1";
    let question = udp(HOST, 4000, SERVER, 53, b"question");
    let question6 = udp(HOST6, 4000, SERVER6, 53, b"question");
    let mut extended = udp(HOST6, 4000, SERVER6, 53, b"extended");
    extended.proto = 0;
    extended.l4 = [&[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0], &extended.l4[..]].concat();
    let mut fragment6 = udp(HOST6, 4000, SERVER6, 53, b"fragment");
    fragment6.proto = 44;
    fragment6.l4 = [&[17, 0, 0, 1, 0, 0, 0, 9], &fragment6.l4[..]].concat();
    let [first, second] = <[Pkt; 2]>::try_from(udp(HOST, 4001, SERVER, 53, &[7; 24]).fragments(16)).expect("two");
    vec![
        (LAN, tcp(HOST, 4000, SERVER, 443, SYN, 1, 0, b"")),
        (WAN, tcp(SERVER, 443, ME, 4000, SYN | ACK, 1, 2, b"")),
        (LAN, tcp(HOST, 4000, SERVER, 443, ACK | PSH, 2, 2, b"data")),
        (LAN, tcp(HOST, 4000, SERVER, 443, ACK, 6, 2, b"\nPORT 10,0,0,2,19,137\r\n")),
        (LAN, tcp(HOST, 4000, SERVER, 443, FIN | ACK, 6, 2, b"")),
        (WAN, tcp(SERVER, 443, ME, 4000, ACK, 2, 30, b"\n227 (203,0,113,5,19,137)\r\n")),
        (WAN, tcp(SERVER, 20, ME, 5001, SYN, 1, 0, b"")),
        (LAN, udp(HOST, 4000, SERVER, 53, b"\x00\x01")),
        (WAN, tcp(SERVER, 443, ME, 4000, RST, 2, 0, b"")),
        (WAN, tcp(SERVER, 5000, ME, 8080, SYN, 1, 0, b"")),
        (LAN, tcp("10.0.0.9", 80, SERVER, 5000, SYN | ACK, 1, 2, b"")),
        (LAN, question.clone()),
        (WAN, udp(SERVER, 53, ME, 4000, b"answer")),
        (WAN, udp(SERVER, 5000, ME, 8080, b"forwarded")),
        (LAN, question6.clone()),
        (WAN, udp(SERVER6, 53, ME6, 4000, b"answer")),
        (LAN, ping(HOST, SERVER, 7, 1)),
        (WAN, pong(SERVER, ME, 7, 1)),
        (LAN, ping(HOST6, SERVER6, 7, 1)),
        (WAN, pong(SERVER6, ME6, 7, 1)),
        (WAN, icmp("198.51.100.20", ME, 3, 4, [0, 0, 5, 0], &question.clone().src(ME).ip())),
        (WAN, icmp("2001:db8::10", ME6, 2, 0, [0, 0, 5, 0], &question6.clone().src(ME6).ip())),
        (WAN, icmp("198.51.100.20", ME, 11, 0, [0; 4], &ping(ME, SERVER, 7, 1).ip())),
        (LAN, icmp(HOST, SERVER, 3, 3, [0; 4], &udp(SERVER, 53, HOST, 4000, b"answer").ip())),
        (LAN, other(HOST, SERVER, 47, b"generic routing")),
        (LAN, other(HOST, SERVER, 47, &[0x30, 1, 0x88, 0x0b, 0, 4, 0x12, 0x34, 1, 2, 3, 4])),
        (LAN, other(HOST6, SERVER6, 47, &[0x20, 0, 8, 0, 0, 0, 0, 7, 1, 2, 3, 4])),
        (LAN, other(HOST6, SERVER6, 50, b"secret")),
        (LAN, ping(HOST, "10.0.0.1", 9, 1)),
        (LAN_TWIN, pong("10.0.0.1", HOST, 9, 1)),
        (WAN_TWIN, udp(ME, 4000, SERVER, 53, b"own")),
        (LAN, icmp("fe80::2", "ff02::1:ff00:1", 135, 0, [0; 4], &[0; 24]).ttl(255).to_mac([0x33, 0x33, 0xff, 0, 0, 1])),
        (LAN, udp("0.0.0.0", 68, "255.255.255.255", 67, b"discover").to_mac([0xff; 6])),
        (LAN, question.clone().ttl(1)),
        (LAN, udp(HOST, 4000, SERVER, 53, &[0; 1400]).df()),
        (LAN, udp(HOST, 4000, SERVER, 53, &[0; 1400])),
        (LAN, udp(HOST, 4000, "198.51.100.5", 53, b"nobody there")),
        // By the outside addresses of an inside host, and of none.
        (WAN, udp(SERVER6, 53, "2001:db8:f:7:cf32::2", 4000, b"answer")),
        (LAN, udp(HOST6, 4000, "2001:db8:f:7:cf32::2", 53, b"to itself")),
        (WAN, ping(SERVER6, "2001:db8:f:7:ffff:ffff:ffff:ffff", 7, 1)),
        (LAN, tcp(HOST6, 4000, SERVER6, 443, SYN, 1, 0, b"").with_options(&[2, 4, 5, 0xb4])),
        (LAN, extended),
        (LAN, fragment6),
        (LAN, first),
        (LAN, second),
        (LAN, question.vlan(7)),
        (LAN, udplite(HOST, 4000, SERVER, 53, 8, b"light")),
        (WAN, udplite(SERVER, 53, ME, 4000, 0, b"light")),
        (LAN, udplite(HOST6, 4000, SERVER6, 53, 10, b"light")),
        (LAN, sctp(HOST, 4000, SERVER, 80, 0, &[init(1, 1)])),
        (WAN, sctp(SERVER, 80, ME, 4000, 1, &[init(2, 2)])),
        (LAN, sctp(HOST, 4000, SERVER, 80, 2, &[chunk(10, 0, b"cookie"), chunk(0, 3, &[0; 20])])),
        (WAN, sctp(SERVER, 80, ME, 4000, 1, &[chunk(11, 0, b""), chunk(4, 0, b"heartbeat")])),
        (LAN, sctp(HOST, 4000, SERVER, 80, 2, &[chunk(6, 1, b"")])),
        (LAN, sctp(HOST6, 4000, SERVER6, 80, 9, &[chunk(4, 0, b"heartbeat")])),
        (WAN, icmp("198.51.100.20", ME, 3, 4, [0, 0, 5, 0], &sctp(ME, 4000, SERVER, 80, 0, &[init(1, 1)]).ip())),
    ]
}

/// A policy that uses every stage. `verify`: checksums; without, mutated packets get further.
pub fn busy_policy(verify: bool) -> PolicySpec {
    let mut spec = usual();
    spec.nat.push(masquerade());
    dnat(&mut spec, 8080, "10.0.0.9", Some(80));
    use dataplane::api::policy::{Action, HelperKind, Mss, NatKind, NatRuleSpec, ZoneId};
    let (inside, outside) = ("fd00:1::/64".parse().expect("prefix"), "2001:db8:f:7::/64".parse().expect("prefix"));
    spec.nat.push(NatRuleSpec::new("npt", from_to(LAN_ZONE, WAN_ZONE), NatKind::Nptv6 { inside, outside }));
    spec.interface_mss = vec![Some(Mss::Fixed(1000)), Some(Mss::Auto)];
    spec = helped(helped(spec, HelperKind::Ftp, 443), HelperKind::Tftp, 53);
    spec.rules.push(rule("to-me", from_to(LAN_ZONE, ZoneId::LOCAL), Action::Accept));
    let mut own = from_to(ZoneId::LOCAL, WAN_ZONE);
    own.to.push(LAN_ZONE);
    spec.rules.push(rule("from-me", own, Action::Accept));
    spec.conntrack.checksum = verify;
    spec
}

/// Drives a gateway with what `input` says: raw frames, right packets with bytes changed, answers to and errors about
/// what left, pauses, reloads, flushes. Nothing may panic, the steering invariant holds, no buffer is lost, and a good
/// flow passes afterwards.
pub fn survives(input: &mut Input<'_>) {
    let flags = input.byte();
    let verify = flags & 0x20 != 0;
    let setup = Setup {
        workers: [1, 2, 2, 4][usize::from(flags & 3)],
        arrival: if flags & 4 == 0 { Arrival::Rss } else { Arrival::Anywhere },
        seed: u64::from(input.byte()),
        conntrack_max: if flags & 8 == 0 { 256 } else { 8 },
        wan_mtu: if flags & 0x10 == 0 { 1500 } else { 1280 },
        defrag: defrag::Setup {
            memory: 1 << 20,
            mode: if flags & 0x40 == 0 { Mode::Reassemble } else { Mode::Virtual },
            ..defrag::Setup::default()
        },
        stations: 12,
        ..Setup::default()
    };
    let mut lab = Lab::with(busy_policy(verify), setup);
    let templates = templates();
    let mut left: Vec<(PortIdx, Vec<u8>)> = Vec::new();
    let mut turns = 0;
    while !input.0.is_empty() && turns < 200 {
        turns += 1;
        let op = input.byte();
        match op % 16 {
            0 => {
                let (port, len) = (PortIdx(u16::from(input.byte() % 4)), usize::from(input.byte()));
                let bytes = input.take(len);
                lab.arrive(port, bytes);
            }
            1..=8 => {
                let (port, p) = &templates[usize::from(input.byte()) % templates.len()];
                let mut b = addressed(*port, p).frame();
                mutate(&mut b, op >> 4, input);
                arrive(&mut lab, *port, &b, op);
            }
            9 | 10 => {
                if let Some((port, b)) = left.get(usize::from(input.byte()) % left.len().max(1)) {
                    let mut b = answer_to(b);
                    mutate(&mut b, op >> 4, input);
                    arrive(&mut lab, *port, &b, op);
                }
            }
            11 => {
                if let Some((port, b)) = left.get(usize::from(input.byte()) % left.len().max(1)) {
                    let mut b = error_about(*port, b, input.byte());
                    mutate(&mut b, op >> 4, input);
                    arrive(&mut lab, *port, &b, op);
                }
            }
            12 => lab.wait(Nanos::from_millis(u64::from(input.byte()) * 500)),
            13 => lab.reload(if op & 0x10 == 0 { usual() } else { busy_policy(verify) }),
            14 => {
                lab.flush(ConnFilter { replied: Some(op & 0x10 == 0), ..ConnFilter::default() });
            }
            _ => lab.neighbour(1, "198.51.100.5", op & 0x10 == 0),
        }
        if op & 0x80 == 0 {
            lab.run();
            lab.sound();
            leave(&mut lab, &mut left);
        }
    }
    lab.run();
    lab.sound();
    leave(&mut lab, &mut left);
    // What waits for fragments or neighbours is given up; what was full has room again.
    lab.reload(busy_policy(true));
    lab.wait(Nanos::from_secs(700));
    leave(&mut lab, &mut left);
    lab.flush(ConnFilter::default());
    assert_eq!(lab.pool.live(), 0, "buffers leaked");
    assert_eq!((lab.entries(), lab.signposts(), lab.leases()), (0, 0, 0));
    lab.passes(LAN, &udp("10.0.0.3", 6000, "203.0.113.9", 53, b"question"), WAN);
    lab.sound();
}

fn arrive(lab: &mut Lab, port: PortIdx, bytes: &[u8], op: u8) {
    // Some come in two segments.
    if op & 0x30 == 0x30 && bytes.len() > 1 {
        lab.arrive_chained(port, bytes, bytes.len() / 2);
    } else if op & 0x30 == 0x20
        && let Some(fragments) = fragmented(bytes, 8 << (op >> 6))
    {
        for f in fragments {
            lab.arrive(port, &f);
        }
    } else {
        lab.arrive(port, bytes);
    }
}

/// An untagged frame of IPv4 in fragments with `step` bytes each; `None` where it is none, or is one.
fn fragmented(bytes: &[u8], step: usize) -> Option<Vec<Vec<u8>>> {
    let payload = bytes.get(34..).filter(|p| p.len() > step)?;
    if bytes[12..15] != [8, 0, 0x45] || be16_at(bytes, 20) & 0x3fff != 0 || be16_at(bytes, 16) < 20 {
        return None;
    }
    let count = payload.len().div_ceil(step);
    let piece = |(n, part): (usize, &[u8])| {
        let mut f = [&bytes[..34], part].concat();
        f[16..18].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
        f[20..22].copy_from_slice(&((n * step / 8) as u16 | u16::from(n + 1 < count) << 13).to_be_bytes());
        repair(&mut f, 14);
        f
    };
    Some(payload.chunks(step).enumerate().map(piece).collect())
}

/// Changes up to three bytes, cuts or pads; then puts an IPv4 header's checksum right in most cases, or nothing would
/// get past it.
fn mutate(b: &mut Vec<u8>, how: u8, input: &mut Input<'_>) {
    for _ in 0..how & 3 {
        let at = usize::from(input.word());
        let n = b.len().max(1);
        if let Some(byte) = b.get_mut(at % n) {
            *byte ^= input.byte();
        }
    }
    match how & 0x0c {
        0x04 => b.truncate(usize::from(input.byte()).max(1)),
        0x08 => b.resize(b.len() + usize::from(input.byte()), 0xee),
        _ => {}
    }
    if how & 3 != 3 {
        repair(b, 14);
    }
}

/// The frame that answers `b`: addresses and ports swapped, checksums as right as they were.
fn answer_to(b: &[u8]) -> Vec<u8> {
    let mut out = b.to_vec();
    out[..6].copy_from_slice(&b[6..12]);
    out[6..12].copy_from_slice(&b[..6]);
    let Some(p) = packet_of(b, false) else { return out };
    let (l3, l4, end) = p.span();
    let (at, n) = if p.tuple.is_ipv4() { (l3 + 12, 4) } else { (l3 + 8, 16) };
    out[at..at + n].copy_from_slice(&b[at + n..at + 2 * n]);
    out[at + n..at + 2 * n].copy_from_slice(&b[at..at + n]);
    match p.kind {
        L4::Tcp(_) | L4::Udp | L4::UdpLite | L4::Sctp(_) => {
            out[l4..l4 + 2].copy_from_slice(&b[l4 + 2..l4 + 4]);
            out[l4 + 2..l4 + 4].copy_from_slice(&b[l4..l4 + 2]);
            if let L4::Tcp(s) = p.kind {
                out[l4 + 13] = s.flags | ACK;
            }
        }
        L4::IcmpQuery => out[l4] = p.tuple.inverse().icmp_type(),
        _ => {}
    }
    seal(&mut out, l4, end, &p);
    out
}

/// Puts the transport checksum right.
fn seal(b: &mut [u8], l4: usize, end: usize, p: &Packet) {
    if matches!(p.kind, L4::Sctp(_)) {
        let sum = sctp_checksum(&b[l4..end]);
        b[l4 + 8..l4 + 12].copy_from_slice(&sum);
        return;
    }
    let (at, pseudo) = match (p.kind, p.tuple.is_ipv4()) {
        (L4::Tcp(_), _) => (16, true),
        (L4::Udp, _) if be16_at(b, l4 + 6) != 0 => (6, true),
        (L4::UdpLite, _) => (6, true),
        (L4::IcmpQuery, v4) => (2, !v4),
        _ => return,
    };
    let len = if p.kind == L4::Udp { usize::from(be16_at(b, l4 + 4)) } else { end - l4 };
    b[l4 + at..l4 + at + 2].fill(0);
    let pseudo = if pseudo { checksum::pseudo(p.tuple.dst, p.tuple.src, p.tuple.proto, len) } else { 0 };
    let sum = !checksum::fold(checksum::add(pseudo, covered(p.tuple.proto, &b[l4..l4 + len])));
    b[l4 + at..l4 + at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An ICMP error about the packet in `b`, which left by `port`.
fn error_about(port: PortIdx, b: &[u8], how: u8) -> Vec<u8> {
    let Some(p) = packet_of(b, false) else { return b.to_vec() };
    let (l3, _, end) = p.span();
    let quote = &b[l3..end.min(l3 + 40 + usize::from(how))];
    let (to, v4) = (p.tuple.src.to_string(), p.tuple.is_ipv4());
    let from = match (how & 1, v4, port.interface()) {
        (0, ..) => p.tuple.dst.to_string(),
        (_, true, 0) => "10.0.0.66".into(),
        (_, true, _) => "198.51.100.20".into(),
        (_, false, _) => "2001:db8::10".into(),
    };
    let error = icmp(&from, &to, if v4 { 3 } else { 1 }, how & 3, [0; 4], quote);
    addressed(port, &error).frame()
}

/// Takes what has left; each is a packet whose headers are in order, and for which its link has room.
fn leave(lab: &mut Lab, left: &mut Vec<(PortIdx, Vec<u8>)>) {
    for port in [LAN, WAN, LAN_TWIN, WAN_TWIN] {
        for frame in lab.sent(port) {
            match parse::frame(&frame, &receiver(&frame, None, false), RxChecksum::Unknown) {
                Ok(Parsed::Ip(p)) => {
                    promised(&p, &frame);
                    assert_eq!(usize::from(p.end), frame.len(), "no padding leaves");
                    if left.len() < 64 {
                        left.push((port, frame));
                    }
                }
                Ok(Parsed::Arp { .. }) => {}
                Ok(Parsed::Atomic { .. }) => panic!("left by {port:?} with a fragment header: {frame:02x?}"),
                Err(reason) => panic!("left by {port:?}, {}: {frame:02x?}", reason.label()),
            }
        }
    }
}

// ---- For fuzz targets: all of the input from one slice --------------------------------------------------------------

/// The first byte chooses a packet to begin with, or raw bytes; two say how many bytes are for the frame; then come
/// changes, then the translation.
fn chosen(bytes: &[u8]) -> (Vec<u8>, Input<'_>) {
    let mut input = Input(bytes);
    let choice = usize::from(input.byte());
    let templates = templates();
    let frame = match templates.get(choice) {
        Some((port, p)) => {
            let mut b = addressed(*port, p).frame();
            let how = input.byte();
            mutate(&mut b, how, &mut input);
            b
        }
        None => {
            let len = usize::from(input.word());
            input.take(len).to_vec()
        }
    };
    (frame, input)
}

/// [`translates`] for a frame that `bytes` choose.
pub fn translates_chosen(bytes: &[u8]) -> bool {
    let (frame, mut input) = chosen(bytes);
    translates(&frame, &mut input)
}

/// [`translates_error`] for a frame that `bytes` choose.
pub fn translates_error_chosen(bytes: &[u8]) -> bool {
    let (frame, mut input) = chosen(bytes);
    translates_error(&frame, &mut input)
}
