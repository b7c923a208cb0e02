//! What the keyed hash of a table key costs: of many keys, whose hashes do not wait for each other, and of one after the other.
//!
//! `cargo bench -p sluice-bench --bench hash`.

use std::hint::black_box;
use std::time::Duration;

use bench::flow::{Case, Flow};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::conntrack::tuple::{Key, Key4, Key6};

/// Keys of a burst: five bits choose one.
const BURST: u32 = 32;

fn keys<K: Key>(case: Case) -> Vec<K> {
    (0..BURST).map(|i| K::pack(&Flow::number(i, case).lan.tuple())).collect()
}

fn bursts<K: Key>(c: &mut Criterion, name: &str, case: Case) {
    let seed = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let keys: Vec<K> = keys(case);
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500)).sample_size(20);
    group.throughput(Throughput::Elements(u64::from(BURST)));
    let mut hashes = [0; BURST as usize];
    group.bench_function("burst", |b| {
        b.iter(|| {
            for (hash, key) in hashes.iter_mut().zip(black_box(&keys)) {
                *hash = key.hash(&seed);
            }
            black_box(&mut hashes);
        });
    });
    group.bench_function("chain", |b| {
        b.iter(|| {
            // Each key is chosen by the hash of the one before.
            (0..BURST).fold(0, |hash: u64, _| black_box(&keys)[(hash & 31) as usize].hash(&seed))
        });
    });
    group.finish();
}

fn hash(c: &mut Criterion) {
    bursts::<Key4>(c, "hash/ipv4", Case::Stateful);
    bursts::<Key6>(c, "hash/ipv6", Case::Ipv6);
}

criterion_group!(benches, hash);
criterion_main!(benches);
