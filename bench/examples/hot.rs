//! Drives one worker in this process, to time it or to count its instructions: `hot CASE FLOWS TURNS`.

use std::time::Instant;

use bench::flow::{Case, Flow, SNAT_ADDRESS};
use bench::frame;
use bench::rig::{self, PORTS, ROUTERS, Rig};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let snat = args.get(1).is_some_and(|a| a == "snat");
    let flows: u32 = args.get(2).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let turns: u32 = args.get(3).and_then(|a| a.parse().ok()).unwrap_or(100_000);
    let case = if snat { Case::Snat } else { Case::Stateful };
    let frames = |side: usize| {
        let frame = |i| {
            let flow = Flow::number(i, case);
            let at = if side == 0 { flow.lan } else { flow.wan };
            frame::udp(frame::Link { to: PORTS[side], from: ROUTERS[side] }, at, frame::SHORTEST)
        };
        (0..flows).map(frame).collect()
    };
    let fresh = args.get(1).is_some_and(|a| a == "new");
    let mut policy = if snat { rig::snat(SNAT_ADDRESS) } else { rig::policy() };
    if fresh {
        policy.conntrack.timeouts.udp = dataplane::time::Nanos::from_secs(1);
    }
    let mut rig = Rig::new(policy, 1 << 20, [frames(0), if fresh { Vec::new() } else { frames(1) }]);
    if fresh {
        rig.pace = dataplane::time::Nanos(100_000);
    }
    rig.warm(2);
    rig.warm(2);
    let mut best = f64::MAX;
    for _ in 0..10 {
        let before = rig.sent();
        let start = Instant::now();
        for _ in 0..turns / 10 {
            rig.turn();
        }
        let ns = start.elapsed().as_secs_f64() * 1e9 / (rig.sent() - before) as f64;
        best = best.min(ns);
    }
    println!("entries {}, new {}", rig.stats.conntrack_entries.value(), rig.stats.ct_events[0].value());
    println!(
        "{:.1} ns per packet, best of 10; dropped {}",
        best,
        rig.stats.drops.iter().map(|d| d.value()).sum::<u64>()
    );
}
