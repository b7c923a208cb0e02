//! `sluice-bench turns`: under `valgrind --tool=callgrind`, the difference between two numbers of turns is what their packets
//! cost. That is what `scripts/check.sh instructions` does.

use std::time::Instant;

use bench::rig::load::Load;

/// Least room for connections.
const ROOM: usize = 1 << 20;
/// The turns are made in so many parts, and the fastest one counts.
const PARTS: u32 = 10;

/// How many of what.
#[derive(clap::Args)]
pub struct Args {
    /// What comes.
    #[arg(value_enum)]
    load: Load,
    /// Of how many flows; where connections come and go, more than live at a time: 40,000.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    flows: u32,
    /// How many turns, once the gateway is in its steady state.
    #[arg(value_parser = clap::value_parser!(u32).range(10..))]
    turns: u32,
}

/// Prints how many packets these turns took, without those before, and the time per packet.
pub fn run(args: &Args) {
    let mut rig = args.load.rig(args.flows, ROOM.max(args.flows as usize));
    let first = rig.sent();
    let mut best = f64::MAX;
    for _ in 0..PARTS {
        let before = rig.sent();
        let start = Instant::now();
        for _ in 0..args.turns / PARTS {
            rig.turn();
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / (rig.sent() - before) as f64);
    }
    println!("packets {}", rig.sent() - first);
    println!("{best:.1} ns per packet");
    println!("connections {}, new {}", rig.stats.conntrack_entries.value(), rig.stats.ct_events[0].value());
    println!("dropped {}", rig.stats.drops.iter().map(|d| d.value()).sum::<u64>());
}
