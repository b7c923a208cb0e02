//! `sluice-bench trace`.

use std::error::Error;
use std::path::PathBuf;

use bench::flow::{Case, MAX_FLOWS};
use bench::trace::{PCAP_PORTS, Trace};

/// What to write.
#[derive(clap::Args)]
pub struct Args {
    /// What the gateway does to the flows, and what their packets are.
    #[arg(long, value_enum)]
    case: Case,
    /// How many flows.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    flows: u32,
    /// Queues of each port.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: u16,
    /// Directory to write them into.
    #[arg(long)]
    out: PathBuf,
}

/// Writes the files, and prints how many frames they have together.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let trace = Trace::new(args.case, args.flows, args.queues, PCAP_PORTS)?;
    println!("{}", trace.write(&args.out).map_err(super::of_file(&args.out))?);
    Ok(())
}
