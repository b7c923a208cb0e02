//! `sluice-bench`: what `scripts/bench` needs beside the programs that it compares. One subcommand, one file.

mod command;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use bench::rfc2544;
use clap::{Parser, Subcommand};

use command::{config, report, round, trace, turns};

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a trace: lan.Q.pcap and wan.Q.pcap for each queue Q. Prints how many frames it has.
    Trace(trace::Args),
    /// Print the configuration of a system for a case.
    Config(config::Args),
    /// Append what one turn measured to a file, and print its rate.
    Round(round::Args),
    /// Print results: lines of a cell, or all of it as report, plots and JSON.
    Report(report::Args),
    /// Turns of one worker in this process, to time them or to count their instructions.
    Turns(turns::Args),
    /// Throughput, latency and loss by RFC 2544, of a gateway in another process.
    Rfc2544(rfc2544::Args),
    /// How late an idle gateway in another process is: single packets after gaps.
    Wakeup(rfc2544::wakeup::Args),
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn Error>> = match Args::parse().command {
        Command::Trace(args) => trace::run(&args),
        Command::Config(args) => {
            config::run(&args);
            Ok(())
        }
        Command::Round(args) => round::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Turns(args) => {
            turns::run(&args);
            Ok(())
        }
        Command::Rfc2544(args) => rfc2544::run(&args, &mut io::stdout().lock()).map_err(Into::into),
        Command::Wakeup(args) => rfc2544::wakeup::run(&args, &mut io::stdout().lock()).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluice-bench: {e}");
            ExitCode::FAILURE
        }
    }
}
