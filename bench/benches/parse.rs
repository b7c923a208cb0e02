//! What finding a frame's headers costs, checksums verified and not: the long way (`parse::frame`) and the first sight of
//! usual frames (`parse::fast`).
//!
//! `cargo bench -p sluice-bench --bench parse`. Frames are in the cache: this is the work, not the wait for memory.

use std::hint::black_box;
use std::time::Duration;

use bench::flow::{Case, Flow};
use bench::frame::{self, ACK, LONGEST, Link, PSH, SHORTEST, Segment};
use bench::rig::{PORTS, ROUTERS};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::io::{PortIdx, RxChecksum};
use dataplane::parse::fast::Station;
use dataplane::parse::{self, Receiver};

/// Frames of a burst, each of another flow.
const BURST: u32 = 32;

/// A kind of frames by name, and how to make that of flow `i`.
type Kind = (&'static str, fn(u32) -> Vec<u8>);

const LINK: Link = Link { to: PORTS[0], from: ROUTERS[0] };

fn udp4(i: u32) -> Vec<u8> {
    frame::udp(LINK, Flow::number(i, Case::Stateful).lan, SHORTEST)
}

fn large(i: u32) -> Vec<u8> {
    frame::udp(LINK, Flow::number(i, Case::Large).lan, LONGEST)
}

fn udp6(i: u32) -> Vec<u8> {
    frame::udp(LINK, Flow::number(i, Case::Ipv6).lan, SHORTEST)
}

fn tcp4(i: u32) -> Vec<u8> {
    let segment = Segment { seq: i, ack: !i, flags: ACK | PSH, payload: 6 };
    frame::tcp(LINK, Flow::number(i, Case::Stateful).lan, segment)
}

const KINDS: [Kind; 4] = [("udp4", udp4), ("udp4-1500", large), ("tcp4", tcp4), ("udp6", udp6)];

fn parse(c: &mut Criterion) {
    let receiver = Receiver { port: PortIdx::wire(0), mac: PORTS[0], vlan: None, verify: true };
    let station = Station { mac: PORTS[0], vlan: None, verify: true, ct_zone: 0, ipv6: true };
    let mut group = c.benchmark_group("parse");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500)).sample_size(20);
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for (name, make) in KINDS {
        let frames: Vec<_> = (0..BURST).map(make).collect();
        for (verified, hardware) in [("software", RxChecksum::Unknown), ("hardware", RxChecksum::Good)] {
            assert!(frames.iter().all(|f| station.look(f, hardware, |_| (), |_| ()).is_some()), "{name} is usual");
            group.bench_function(BenchmarkId::new(format!("frame/{name}"), verified), |b| {
                b.iter(|| {
                    for frame in &frames {
                        let _ = black_box(parse::frame(black_box(frame), &receiver, hardware));
                    }
                });
            });
            group.bench_function(BenchmarkId::new(format!("sight/{name}"), verified), |b| {
                b.iter(|| {
                    for frame in &frames {
                        let _ = station.look(black_box(frame), hardware, black_box, |sight| {
                            black_box(&sight);
                            Default::default()
                        });
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
