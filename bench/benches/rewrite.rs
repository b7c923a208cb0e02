//! What a hop's change of a packet costs: TTL alone, and source address and port with it; by the short way (`nat::fast`) and by
//! the long way (`nat::rewrite`).
//!
//! `cargo bench -p sluice-bench --bench rewrite`. Each packet is changed there and back, so that it stays as it was but for
//! its TTL, which is set anew.

use std::hint::black_box;
use std::time::Duration;

use bench::flow::{Case, Flow, SNAT_ADDRESS};
use bench::frame::{self, ACK, Link, PSH, SHORTEST, Segment};
use bench::rig::{PORTS, ROUTERS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::conntrack::tuple::{Key4, Key6, Tuple, proto};
use dataplane::io::{PortIdx, RxChecksum};
use dataplane::nat::fast::Wire;
use dataplane::nat::rewrite;
use dataplane::packet::Packet;
use dataplane::parse::{self, Parsed, Receiver};

const LINK: Link = Link { to: PORTS[0], from: ROUTERS[0] };
/// Where the network header is.
const L3: usize = 14;

/// A frame, its description, and the tuple that it is to get.
struct Made {
    frame: Vec<u8>,
    packet: Packet,
    to: Tuple,
}

fn made(case: Case, tcp: bool) -> Made {
    let at = Flow::number(7, case).lan;
    let frame = if tcp {
        frame::tcp(LINK, at, Segment { seq: 1, ack: 2, flags: ACK | PSH, payload: 6 })
    } else {
        frame::udp(LINK, at, SHORTEST)
    };
    let receiver = Receiver { port: PortIdx::wire(0), mac: PORTS[0], vlan: None, verify: true };
    let Ok(Parsed::Ip(packet)) = parse::frame(&frame, &receiver, RxChecksum::Unknown) else {
        panic!("a packet");
    };
    let from = packet.tuple;
    let src = if from.is_ipv4() { SNAT_ADDRESS.into() } else { from.dst };
    Made { frame, packet, to: Tuple { src, sport: 40_000, ..from } }
}

/// Lowers the TTL as [`Wire::forward`] does, and undoes it, so that it never gets to 0.
fn short<K: Wire>(made: &mut Made, translate: bool) {
    let (from, to) = (K::pack(&made.packet.tuple), K::pack(&made.to));
    let (answers_from, answers_to) = (K::pack(&made.packet.tuple.inverse()), K::pack(&made.to.inverse()));
    let tcp = made.packet.tuple.proto == proto::TCP;
    let ip = &mut made.frame[L3..];
    from.forward(black_box(&mut *ip), translate.then_some(&answers_to), tcp);
    to.forward(black_box(&mut *ip), translate.then_some(&answers_from), tcp);
}

fn long(made: &mut Made, translate: bool) {
    let back = Packet { tuple: made.to, ..made.packet };
    for (packet, to) in [(&made.packet, &made.to), (&back, &made.packet.tuple)] {
        let frame = black_box(&mut made.frame[..]);
        rewrite::decrement_ttl(frame, L3);
        if translate {
            rewrite::translate(frame, packet, to);
        }
    }
}

fn rewrite(c: &mut Criterion) {
    let mut group = c.benchmark_group("rewrite");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500)).sample_size(20);
    group.throughput(Throughput::Elements(2));
    for (name, case, tcp) in [("udp4", Case::Snat, false), ("tcp4", Case::Snat, true), ("udp6", Case::Ipv6, false)] {
        for (what, translate) in [("ttl", false), ("snat", true)] {
            let mut made = made(case, tcp);
            let ttl = |frame: &mut [u8]| rewrite::set_ttl(frame, L3, 64);
            group.bench_function(format!("short/{name}/{what}"), |b| {
                b.iter(|| {
                    if case == Case::Ipv6 {
                        short::<Key6>(&mut made, translate)
                    } else {
                        short::<Key4>(&mut made, translate)
                    }
                    ttl(&mut made.frame);
                });
            });
            group.bench_function(format!("long/{name}/{what}"), |b| {
                b.iter(|| {
                    long(&mut made, translate);
                    ttl(&mut made.frame);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rewrite);
criterion_main!(benches);
