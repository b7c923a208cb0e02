//! `sluice-differential`: runs scenarios and seeds through the kernel and Sluice; `scripts/differential` calls it.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use differential::generator::Generator;
use differential::inprocess::InProcess;
use differential::kernel::Kernel;
use differential::observe::System;
use differential::policy::Policy;
use differential::runner::{Run, Totals};
use differential::scenario::Scenario;

/// The same frames through the Linux kernel and through Sluice, compared packet by packet.
#[derive(Parser)]
struct Options {
    /// Scenario files to play.
    #[arg(long = "scenario")]
    scenarios: Vec<PathBuf>,
    /// Seeds to generate traffic from; `1-20` is twenty.
    #[arg(long, value_delimiter = ',')]
    seed: Vec<String>,
    /// Frames of each seed.
    #[arg(long, default_value_t = 10_000)]
    packets: u64,
    /// plain, masquerade, snat or dnat; each seed has its own where nothing is said.
    #[arg(long)]
    policy: Option<String>,
    /// How many workers Sluice has; several numbers are several gateways.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,
    /// Differences that are shown in full.
    #[arg(long, default_value_t = 20)]
    show: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("sluice-differential: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> io::Result<u64> {
    let mut totals = Totals::default();
    let mut shown = 0;
    let mut finish = |name: &str, run: &Run<'_>| {
        println!("{name}: {} packets, {} differences", run.totals.packets, run.totals.differences);
        for report in run.reports.iter().take(options.show.saturating_sub(shown)) {
            println!("{name}: {report}");
            shown += 1;
        }
        totals.add(&run.totals);
    };
    for path in &options.scenarios {
        let text = std::fs::read_to_string(path)?;
        let named = |e: String| io::Error::other(format!("{}: {e}", path.display()));
        let scenario = Scenario::parse(&text).map_err(named)?;
        let mut run = start(options, &scenario.policy, 1).map_err(|e| named(e.to_string()))?;
        run.play(&scenario).map_err(|e| named(e.to_string()))?;
        finish(&path.display().to_string(), &run);
    }
    for seed in seeds(&options.seed)? {
        let (name, policy) = policy_of(seed, options.policy.as_deref())?;
        let mut run = start(options, &policy, seed)?;
        let mut generator = Generator::new(seed, &policy);
        run.generate(&mut generator, options.packets)?;
        finish(&format!("seed {seed} {name}"), &run);
    }
    print(&totals);
    Ok(totals.differences)
}

/// A run through a fresh kernel router and fresh gateways.
fn start<'a>(options: &Options, policy: &'a Policy, seed: u64) -> io::Result<Run<'a>> {
    let kernel = Kernel::new(policy)?;
    let mut subjects: Vec<Box<dyn System>> = Vec::new();
    for (n, workers) in (0..).zip(&options.workers) {
        subjects.push(Box::new(InProcess::new(policy, *workers, seed + n)?));
    }
    Ok(Run::new(policy, Box::new(kernel), subjects))
}

/// `3` and `5-8`, spelled out.
fn seeds(texts: &[String]) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    for text in texts {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let number = |t: &str| t.parse::<u64>().map_err(|e| io::Error::other(format!("seed {t}: {e}")));
        all.extend(number(from)?..=number(to)?);
    }
    Ok(all)
}

/// The policy of a seed: all kinds of translation and settings of TCP come in turn.
fn policy_of(seed: u64, name: Option<&str>) -> io::Result<(String, Policy)> {
    let kinds = ["plain", "masquerade", "dnat", "snat"];
    let name = name.unwrap_or(kinds[usize::try_from(seed % 4).unwrap_or(0)]);
    let mut policy = Policy::named(name).ok_or(io::Error::other(format!("no policy is called {name}")))?;
    policy.loose = seed % 5 != 4;
    policy.liberal = false;
    Ok((format!("{name}{}", if policy.loose { "" } else { ", not loose" }), policy))
}

fn print(totals: &Totals) {
    let classes: Vec<String> = totals.classes.iter().map(|(k, n)| format!("{k} {n}")).collect();
    println!("packets: {} ({} passed), flows: {}, {}", totals.packets, totals.passed, totals.flows, classes.join(", "));
    for (name, n) in &totals.explained {
        println!("explained: {name} {n}");
    }
    let mut sorts: Vec<_> = totals.sorts.iter().collect();
    sorts.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (sort, n) in sorts.iter().take(40) {
        println!("  {n:6} {sort}");
    }
    println!("differences: {}", totals.differences);
}
