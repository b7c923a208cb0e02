//! Lookups in the connection table by bursts of 32, in the passes that the worker makes: hash and bucket, candidate and entry,
//! then the entry itself. Flows come in an order of chance.
//!
//! `cargo bench -p sluice-bench --bench table`. A line for each size says what a connection takes: as the table reckons, and
//! by what the process grew. `TABLE_FLOWS=10000000` measures that many instead of the usual sizes; they take 2.5 GB.

use std::hint::black_box;
use std::time::Duration;

use bench::flow::{Case, Flow};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::conntrack::conn::Conn;
use dataplane::conntrack::l4::L4Body;
use dataplane::conntrack::table::Table;
use dataplane::conntrack::tuple::{Direction, Key, Key4};

/// Lookups that are made together.
const BURST: usize = 32;
/// Lookups of one measurement, in their order; a multiple of [`BURST`].
const ORDER: usize = 1 << 20;

/// Numbers from a seed: xorshift64*.
fn dice(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Bytes of this process that are in memory: the pages themselves counted, where the usual counter lags behind.
fn resident() -> usize {
    let map = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = map.lines().find_map(|l| l.strip_prefix("Rss:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) * 1024
}

fn key(i: u32, direction: Direction, case: Case) -> Key4 {
    let flow = Flow::number(i, case);
    Key4::pack(&if direction == Direction::Original { flow.lan } else { flow.wan }.tuple())
}

fn fill(flows: u32) -> Table<Key4> {
    let mut table = Table::new(flows as usize, ahash::RandomState::with_seeds(1, 2, 3, 4));
    for i in 0..flows {
        let keys = [Direction::Original, Direction::Reply].map(|d| key(i, d, Case::Snat));
        table.insert(keys, [None; 2], Conn::default(), L4Body::default()).expect("room");
    }
    table
}

/// Looks a burst up and counts a packet for each connection; says how many were found.
fn lookup(table: &mut Table<Key4>, keys: &[Key4], hashes: &mut [u64; BURST], hints: &mut [u32; BURST]) -> usize {
    let aim = table.aim();
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = aim.hash(key);
    }
    for (hint, hash) in hints.iter_mut().zip(&*hashes) {
        *hint = aim.candidate(*hash, false).unwrap_or(u32::MAX);
    }
    let mut lane = table.lane();
    let mut found = 0;
    for ((key, hash), hint) in keys.iter().zip(&*hashes).zip(&*hints) {
        if let Some(hit) = lane.find(*hint, *hash, key) {
            hit.entry.conn.account(hit.direction, 46);
            found += 1;
        }
    }
    found
}

fn table(c: &mut Criterion) {
    let asked = std::env::var("TABLE_FLOWS").ok().map(|n| vec![n.parse().expect("a number of flows")]);
    let mut group = c.benchmark_group("table");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(Throughput::Elements(BURST as u64));
    let made = |flows: u32| {
        let before = resident();
        let table = fill(flows);
        let grown = resident().saturating_sub(before) as f64 / f64::from(flows);
        println!("table {flows}: {} bytes per connection all in", table.memory_per_connection());
        println!("table {flows}: the process grew by {grown:.1} bytes per connection");
        (flows, table)
    };
    // All at once, before anything is freed: what is taken then is not new.
    let tables: Vec<_> = asked.unwrap_or_else(|| vec![1_000, 65_536, 1_000_000]).into_iter().map(made).collect();
    for (flows, mut table) in tables {
        let mut state = 42;
        // Misses are tuples of another case, of which no flow is the same.
        for (what, case) in [("hit", Case::Snat), ("miss", Case::NewConnections)] {
            let of = |n: u64| {
                let i = u32::try_from((n >> 32) % u64::from(flows)).unwrap_or(0);
                let direction = if n & 1 == 0 || what == "miss" { Direction::Original } else { Direction::Reply };
                let key = key(i, direction, case);
                if what == "miss" { Key4::new(key.addresses() | 1 << 63, key.ports(), 17, 0) } else { key }
            };
            let order: Vec<_> = (0..ORDER).map(|_| of(dice(&mut state))).collect();
            let (mut hashes, mut hints) = ([0; BURST], [0; BURST]);
            let mut at = 0;
            group.bench_function(BenchmarkId::new(what, flows), |b| {
                b.iter(|| {
                    let found = lookup(&mut table, black_box(&order[at..at + BURST]), &mut hashes, &mut hints);
                    assert_eq!(found, if what == "hit" { BURST } else { 0 });
                    at = (at + BURST) % ORDER;
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, table);
criterion_main!(benches);
