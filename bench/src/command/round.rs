//! `sluice-bench round`.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use bench::flow::Case;
use bench::results::{Cell, Measured, Round};
use bench::scrape::{Page, measure};

/// What was measured, of what.
#[derive(clap::Args)]
pub struct Args {
    /// File of rounds.
    #[arg(long)]
    rounds: PathBuf,
    /// What the gateway did to the flows.
    #[arg(long, value_enum)]
    case: Case,
    /// Rules in the filter, in new-connections.
    #[arg(long)]
    rules: Option<u32>,
    /// How many flows.
    #[arg(long)]
    flows: u64,
    /// Cores that forwarded.
    #[arg(long)]
    workers: u16,
    /// What was measured.
    #[arg(long)]
    system: String,
    /// Which turn.
    #[arg(long)]
    round: u32,
    /// Its rate, Mpps; or else
    #[arg(long, conflicts_with_all = ["first", "last"])]
    mpps: Option<f64>,
    /// a scrape of sluiced's metrics before
    #[arg(long, requires = "last", required_unless_present = "mpps")]
    first: Option<PathBuf>,
    /// and one after.
    #[arg(long)]
    last: Option<PathBuf>,
    /// Why the round does not count.
    #[arg(long)]
    void: Option<String>,
}

/// Appends the round, and prints its rate with what there is to say.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let read = |path: &PathBuf| fs::read_to_string(path).map(|text| Page::parse(&text)).map_err(super::of_file(path));
    let mut measured = match (&args.first, &args.last) {
        (Some(first), Some(last)) => measure(args.case, &read(first)?, &read(last)?)?,
        _ => Measured { mpps: args.mpps.unwrap_or_default(), ..Measured::default() },
    };
    if args.void.is_some() {
        measured.void.clone_from(&args.void);
    }
    let case = match args.rules {
        Some(rules) if args.case == Case::NewConnections => format!("{}-{rules}", args.case.name()),
        _ => args.case.name(),
    };
    let cell = Cell { case, flows: args.flows, workers: args.workers, system: args.system.clone() };
    let round = Round { cell, round: args.round, measured };
    let mut line = serde_json::to_string(&round)?;
    line.push('\n');
    let file = OpenOptions::new().create(true).append(true).open(&args.rounds);
    file.and_then(|mut f| f.write_all(line.as_bytes())).map_err(super::of_file(&args.rounds))?;

    let Measured { mpps, details, void } = &round.measured;
    let shares: String = details.iter().map(|(name, share)| format!(", {name} {:.3} %", share * 100.0)).collect();
    let void = void.as_ref().map(|why| format!(", VOID: {why}")).unwrap_or_default();
    println!("{mpps:.4} Mpps{shares}{void}");
    Ok(())
}
