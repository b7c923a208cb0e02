//! Ports that say they spread frames by our key, and do not.
//!
//! ```text
//!   10.0.0.2 …  ── lan: lies    [ worker 0 | 1 | 2 | 3 ]    wan: honest ── 203.0.113.5
//! ```
//! Whatever such a port does, packets are classified, translated and sent as if it did what it says. What it costs: until it is
//! found out a frame at the wrong worker is looked up there in vain.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::policy::*;
use dataplane::api::stats::HandoverCause;
use dataplane::steer;

const WORKERS: usize = 4;

/// What lan does with the `n`-th frame whose hash is `hash`: to which worker it brings it, and what it says of the hash.
type Lie = fn(n: usize, hash: u32, p: &Pkt) -> (usize, Option<u32>);

fn right(hash: u32) -> (usize, Option<u32>) {
    (usize::from(steer::reta_entry(hash as usize % steer::RETA_SIZE, WORKERS as u16)), Some(hash))
}

/// A flow of client `n`.
struct Flow {
    tcp: bool,
    client: &'static str,
    server: &'static str,
    port: u16,
    /// Whom the server sees.
    seen: (String, u16),
}

const FLOWS: u16 = 160;

fn flows() -> Vec<Flow> {
    let flow = |n: u16| {
        let (client, server) = if n & 2 == 0 { ("10.0.0.2", "203.0.113.5") } else { ("fd00:1::2", "2001:db8:5::5") };
        Flow { tcp: n & 1 == 0, client, server, port: 4000 + n, seen: (client.into(), 4000 + n) }
    };
    (0..FLOWS).map(flow).collect()
}

impl Flow {
    /// The `nth` question: of TCP the first two are the handshake's.
    fn question(&self, nth: u32) -> Pkt {
        let Self { client, port, server, .. } = *self;
        match nth {
            _ if !self.tcp => udp(client, port, server, 53, &nth.to_be_bytes()),
            0 => tcp(client, port, server, 53, SYN, 100, 0, b""),
            1 => tcp(client, port, server, 53, ACK, 101, 501, b""),
            n => tcp(client, port, server, 53, ACK | PSH, 101 + (n - 2) * 4, 501 + (n - 2) * 4, &n.to_be_bytes()),
        }
    }

    fn answer(&self, nth: u32) -> Pkt {
        let (server, (to, port)) = (self.server, (&*self.seen.0, self.seen.1));
        match nth {
            _ if !self.tcp => udp(server, 53, to, port, &nth.to_be_bytes()),
            0 => tcp(server, 53, to, port, SYN | ACK, 500, 101, b""),
            1 => tcp(server, 53, to, port, ACK, 501, 101, b""),
            n => tcp(server, 53, to, port, ACK | PSH, 501 + (n - 2) * 4, 101 + (n - 1) * 4, &n.to_be_bytes()),
        }
    }
}

/// `rounds` questions of each flow with their answers. Gives the lab, with what was counted besides hand-overs.
fn talk(spec: PolicySpec, rounds: u32, lie: Lie) -> (Lab, Vec<String>) {
    let mut lab = Lab::with(spec, Setup { workers: WORKERS, buffers: 8192, ..Setup::default() });
    let (mut flows, mut sent) = (flows(), 0);
    for nth in 0..rounds {
        let questions: Vec<_> = flows.iter().map(|f| addressed(LAN, &f.question(nth))).collect();
        let asked = lab.stream(questions, |lab, p| {
            let frame = p.frame();
            let (worker, hash) = lie(sent, rss(&frame, LAN).expect("a hash"), &p);
            sent += 1;
            let buf = lab.pool.frame(&frame).expect("a buffer is free");
            let buf = if let Some(hash) = hash { buf.with_rss(hash) } else { buf };
            lab.workers[worker].io().inject(LAN, buf);
        });
        assert_eq!(asked.len(), flows.len(), "round {nth}: {:?}", lab.drops());
        if nth == 0 {
            let owned = lab.owned();
            for flow in &mut flows {
                let own = owned.iter().find(|c| c.original.sport == flow.port).expect("its connection");
                flow.seen = (own.reply.dst.to_string(), own.reply.dport);
            }
        }
        let answers: Vec<_> = flows.iter().map(|f| addressed(WAN, &f.answer(nth))).collect();
        let answered = lab.stream(answers, |lab, p| lab.arrive(WAN, &p.frame()));
        assert_eq!(answered.len(), flows.len(), "round {nth}: {:?}", lab.drops());
        assert!(answered.iter().all(|(port, _)| *port == LAN));
    }
    assert_eq!((lab.entries(), lab.total_drops(), lab.pool.live()), (flows.len(), 0, 0));
    lab.sound();
    let changed = lab.changed();
    (lab, changed)
}

/// With `lie`, all is classified as on an honest port, and the lie is found out by each worker that it reached.
fn is_found_out(what: &str, rounds: u32, lie: Lie) -> Lab {
    let (honest, expected) = talk(usual(), rounds, |_, hash, _| right(hash));
    assert_eq!(honest.rss_mismatches(), [0; WORKERS]);
    let (lab, counted) = talk(usual(), rounds, lie);
    assert_eq!(counted, expected, "{what}");
    assert_eq!(lab.rss_mismatches(), [1; WORKERS], "{what}: one port, seen by each worker");
    assert_eq!([HandoverCause::Stale, HandoverCause::Signpost].map(|c| lab.handovers(c)), [0, 0], "{what}");
    lab
}

#[test]
fn a_port_with_another_table_is_found_out() {
    let lab = is_found_out("rotated", 6, |_, hash, _| ((right(hash).0 + 1) % WORKERS, Some(hash)));
    assert_eq!(lab.handovers(HandoverCause::Steer), 6 * u64::from(FLOWS), "each is steered once, none twice");
}

#[test]
fn a_port_with_another_hash_is_found_out_even_where_it_spreads_rightly() {
    let lab = is_found_out("hash", 6, |_, hash, _| (right(hash).0, Some(hash ^ 0x100)));
    assert_eq!(lab.handovers(HandoverCause::Steer), 0, "software finds that they are right");
    is_found_out("both", 6, |n, hash, _| (n % WORKERS, Some(hash.rotate_left(9))));
}

#[test]
fn a_port_without_a_hash_is_found_out() {
    is_found_out("none", 6, |n, _, _| (n % WORKERS, None));
    is_found_out(
        "one queue",
        6,
        |n, hash, _| if n < 64 { (n % WORKERS, None) } else { (usize::from(hash == 0), None) },
    );
}

/// Frames of a kind come in step with the samples of another: each kind is sampled by itself.
#[test]
fn a_port_that_lies_about_one_kind_alone_is_found_out() {
    let kinds: [(&str, Lie); 4] = [
        ("TCP", |n, hash, p| if p.proto == 6 { (n / 4 % WORKERS, Some(!hash)) } else { right(hash) }),
        ("UDP", |n, hash, p| if p.proto == 17 { (n / 4 % WORKERS, Some(!hash)) } else { right(hash) }),
        ("IPv4", |n, hash, p| if p.src.is_ipv4() { (n / 4 % WORKERS, None) } else { right(hash) }),
        ("IPv6", |n, hash, p| if p.src.is_ipv6() { (n / 4 % WORKERS, None) } else { right(hash) }),
    ];
    for (what, lie) in kinds {
        is_found_out(what, 6, lie);
    }
}

/// By then all connections are known, and what comes home goes the short way, unasked. What is led astray does not find
/// its connection, and of that of each kind the 256th at the latest is asked.
#[test]
fn a_port_that_begins_to_lie_after_ten_thousand_packets_is_found_out() {
    let rounds = 10_000 / u32::from(FLOWS) + 40;
    let lab = is_found_out("later", rounds, |n, hash, _| {
        if n < 10_000 { right(hash) } else { ((right(hash).0 + 1 + n % 3) % WORKERS, Some(hash)) }
    });
    let lied = u64::from(rounds) * u64::from(FLOWS) - 10_000;
    assert_eq!(lab.handovers(HandoverCause::Steer), lied, "each is at its owner with the first hop");
}

/// What is translated has its own replies by the honest port; the lie changes no choice of a port that matters.
#[test]
fn translated_connections_survive_a_lie_as_well() {
    let spec = PolicySpec { nat: vec![masquerade()], ..usual() };
    let (_, expected) = talk(spec.clone(), 4, |_, hash, _| right(hash));
    let (lab, counted) = talk(spec, 4, |n, hash, _| (n % WORKERS, Some(hash)));
    assert_eq!(counted, expected);
    assert_eq!(lab.rss_mismatches(), [1; WORKERS]);
}
