//! `sluice-bench`: what `scripts/bench` needs beside the two programs that it compares.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bench::flow::{Case, Flow, MAX_FLOWS};
use bench::frame::{self, Mac};
use bench::pcap;
use clap::{Parser, Subcommand, ValueEnum};

/// MAC of DPDK's first and second pcap port: `02:70:63:61:70:NN`, NN counts the ports of the process.
const PCAP_PORTS: [Mac; 2] = [[0x02, b'p', b'c', b'a', b'p', 0], [0x02, b'p', b'c', b'a', b'p', 1]];
/// The router that clients are behind, and the one that servers are behind; `scripts/bench` names them as neighbours.
const ROUTERS: [Mac; 2] = [[0x02, 0, 0, 0, 0, 0x0a], [0x02, 0, 0, 0, 0, 0x0b]];

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write lan.pcap (originals) and wan.pcap (replies): one 60-byte UDP frame per flow.
    Trace {
        /// What the gateway does to the flows.
        #[arg(long, value_enum)]
        case: CaseArg,
        /// How many flows.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
        flows: u32,
        /// Where to write them.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum CaseArg {
    Stateful,
    Snat,
}

fn main() -> ExitCode {
    let Command::Trace { case, flows, out } = Args::parse().command;
    let case = match case {
        CaseArg::Stateful => Case::Stateful,
        CaseArg::Snat => Case::Snat,
    };
    match trace(case, flows, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluice-bench: {}: {e}", out.display());
            ExitCode::FAILURE
        }
    }
}

fn trace(case: Case, flows: u32, out: &Path) -> io::Result<()> {
    let file = |name| File::create(out.join(name)).map(BufWriter::new);
    let originals = (0..flows).map(|i| frame::udp(PCAP_PORTS[0], ROUTERS[0], Flow::number(i, case).original));
    let replies = (0..flows).map(|i| frame::udp(PCAP_PORTS[1], ROUTERS[1], Flow::number(i, case).reply));
    pcap::write(file("lan.pcap")?, originals)?;
    pcap::write(file("wan.pcap")?, replies)
}
