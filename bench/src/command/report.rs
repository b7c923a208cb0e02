//! `sluice-bench report`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use bench::report::{About, Report};
use bench::results::{Bar, HEADING, Round, Row, bars, rows};

/// What to print, of what.
#[derive(clap::Args)]
pub struct Args {
    /// File of rounds.
    #[arg(long)]
    rounds: PathBuf,
    /// Print the heading of the lines.
    #[arg(long)]
    heading: bool,
    /// Print the lines of the cells after so many, as they came; 0 prints all.
    #[arg(long)]
    after: Option<usize>,
    /// Print the bars.
    #[arg(long)]
    bars: bool,
    /// What stands above the report, NAME=VALUE.
    #[arg(long, value_parser = about)]
    about: Vec<(String, String)>,
    /// Directory for report.md, rates.svg and ratios.svg.
    #[arg(long)]
    out: Option<PathBuf>,
    /// File for all of it as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn about(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("{text} is not NAME=VALUE"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// Prints and writes what was asked for.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.heading {
        println!("{HEADING}");
    }
    let text = fs::read_to_string(&args.rounds).map_err(super::of_file(&args.rounds))?;
    let rounds = text.lines().map(serde_json::from_str).collect::<Result<Vec<Round>, _>>()?;
    let rows = rows(&rounds);
    if let Some(after) = args.after {
        rows.iter().skip(after).map(Row::tsv).for_each(|line| println!("{line}"));
    }
    let bars = bars(&rows);
    if args.bars {
        bars.iter().map(Bar::tsv).for_each(|line| println!("{line}"));
    }
    let report = Report { about: About::clone(&args.about), rows, bars, rounds };
    if let Some(out) = &args.out {
        for (name, text) in
            [("report.md", report.markdown()), ("rates.svg", report.rates()), ("ratios.svg", report.ratios())]
        {
            let path = out.join(name);
            fs::write(&path, text).map_err(super::of_file(&path))?;
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n").map_err(super::of_file(path))?;
    }
    Ok(())
}
