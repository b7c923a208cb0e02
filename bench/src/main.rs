//! `sluice-bench`: what `scripts/bench` needs beside the two programs that it compares.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bench::flow::{Case, Endpoints, Flow, MAX_FLOWS};
use bench::frame::{self, Mac};
use bench::{pcap, rfc2544};
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
    /// Write lan.pcap (originals) and wan.pcap (replies): one UDP datagram per flow.
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
    /// Throughput, latency and loss by RFC 2544, of a gateway in another process.
    Rfc2544(rfc2544::Args),
    /// How late an idle gateway in another process is: single packets after gaps.
    Wakeup(rfc2544::wakeup::Args),
}

#[derive(Clone, Copy, ValueEnum)]
enum CaseArg {
    Stateful,
    Snat,
    Large,
    Fragments,
}

fn main() -> ExitCode {
    let (case, flows, out) = match Args::parse().command {
        Command::Trace { case, flows, out } => (case, flows, out),
        Command::Rfc2544(args) => return done(rfc2544::run(&args, &mut io::stdout().lock())),
        Command::Wakeup(args) => return done(rfc2544::wakeup::run(&args, &mut io::stdout().lock())),
    };
    let case = match case {
        CaseArg::Stateful => Case::Stateful,
        CaseArg::Snat => Case::Snat,
        CaseArg::Large => Case::Large,
        CaseArg::Fragments => Case::Fragments,
    };
    match trace(case, flows, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluice-bench: {}: {e}", out.display());
            ExitCode::FAILURE
        }
    }
}

fn done(result: Result<(), rfc2544::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluice-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn trace(case: Case, flows: u32, out: &Path) -> io::Result<()> {
    let file = |name| File::create(out.join(name)).map(BufWriter::new);
    let side = |n: usize, end: fn(&Flow) -> Endpoints| {
        (0..flows).flat_map(move |i| frames(case, PCAP_PORTS[n], ROUTERS[n], end(&Flow::number(i, case)), i))
    };
    pcap::write(file("lan.pcap")?, side(0, |f| f.original))?;
    pcap::write(file("wan.pcap")?, side(1, |f| f.reply))
}

/// What one end of flow number `i` sends.
fn frames(case: Case, to: Mac, from: Mac, at: Endpoints, i: u32) -> Vec<Vec<u8>> {
    // Identifications of one pair of hosts differ as long as fewer than 65,536 flows have it: `Flow::number` sees to that.
    let id = u16::try_from(i & 0xffff).unwrap_or(0);
    match case {
        Case::Stateful | Case::Snat => vec![frame::udp(to, from, at, frame::SHORTEST)],
        Case::Large => vec![frame::udp(to, from, at, frame::LONGEST)],
        Case::Fragments => frame::halves(to, from, at, frame::LONGEST, id).into(),
    }
}
