//! Whole turns of a worker, by load: receive, parse, lookup, verdict, rewrite, transmit, and for new connections their expiry.
//!
//! `cargo bench -p sluice-bench --bench path`. A turn has 64 packets, those of new connections 32. Frames are copied into
//! buffers of a pool, as a driver would deliver them; that is some 5 ns of each packet.

use std::time::{Duration, Instant};

use bench::rig::load::{BURST, Load};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Loads and how many flows they have. Connections that come and go need more flows than live at a time.
const CASES: [(Load, &[u32]); 9] = [
    (Load::Forward, &[1_000]),
    (Load::Stateful, &[1_000, 65_536, 1_000_000]),
    (Load::Snat, &[1_000, 65_536, 1_000_000]),
    (Load::Ipv6, &[1_000, 65_536]),
    (Load::Tcp, &[1_000, 65_536]),
    (Load::New, &[65_536]),
    (Load::NewRules, &[65_536]),
    (Load::NewTcp, &[65_536]),
    (Load::NewSnat, &[65_536]),
];

fn path(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
    for (load, sizes) in CASES {
        let burst = if load.is_new() { BURST } else { 2 * BURST };
        group.throughput(Throughput::Elements(burst as u64));
        for &flows in sizes {
            // Made where it is measured alone: another filter leaves it out.
            let mut rig = None;
            group.bench_function(BenchmarkId::new(load.name(), flows), |b| {
                let rig = rig.get_or_insert_with(|| load.rig(flows, 1 << 20));
                b.iter_custom(|turns| {
                    let start = Instant::now();
                    for _ in 0..turns {
                        rig.turn();
                    }
                    start.elapsed()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, path);
criterion_main!(benches);
