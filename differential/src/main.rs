//! `sluice-differential`: runs scenarios and seeds through the kernel and Sluice; `scripts/differential` calls it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use differential::compare::Kind;
use differential::generator::Generator;
use differential::kernel::Kernel;
use differential::record::{self, Recorder};
use differential::runner::{Run, Totals};
use differential::scenario::Scenario;
use differential::seeds::{self, Subjects};

/// The same frames through the Linux kernel and through Sluice, compared packet by packet.
#[derive(Parser)]
struct Options {
    /// Scenario files to play.
    #[arg(long = "scenario", num_args = 1..)]
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
    /// What is not compared: class, out, conn, state, timeout, counters, mark.
    #[arg(long, value_delimiter = ',')]
    ignore: Vec<String>,
    /// Writes down what the kernel made of it, into this directory.
    #[arg(long)]
    record: Option<PathBuf>,
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

/// What is printed of a run, and what all runs together come to.
struct Report {
    totals: Totals,
    shown: usize,
    show: usize,
}

impl Report {
    fn take(&mut self, name: &str, run: &Run<'_>) {
        println!("{name}: {} packets, {} differences", run.totals.packets, run.totals.differences);
        for report in run.reports.iter().take(self.show.saturating_sub(self.shown)) {
            println!("{name}: {report}");
            self.shown += 1;
        }
        self.totals.add(&run.totals);
    }

    fn print(&self) {
        let t = &self.totals;
        let classes: Vec<String> = t.classes.iter().map(|(k, n)| format!("{k} {n}")).collect();
        println!("packets: {} ({} passed), flows: {}, {}", t.packets, t.passed, t.flows, classes.join(", "));
        let mut sorts: Vec<_> = t.sorts.iter().collect();
        sorts.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (sort, n) in sorts.iter().take(40) {
            println!("  {n:6} {sort}");
        }
        for (name, n) in &t.explained {
            println!("explained: {name} {n}");
        }
        println!("differences: {}", t.differences);
    }
}

fn run(options: &Options) -> io::Result<u64> {
    let mut report = Report { totals: Totals::default(), shown: 0, show: options.show };
    let kind = |name: &String| Kind::named(name).ok_or(io::Error::other(format!("nothing to ignore is called {name}")));
    let ignore: Vec<Kind> = options.ignore.iter().map(kind).collect::<Result<_, _>>()?;
    let head = record::head()?;
    for path in &options.scenarios {
        let text = std::fs::read_to_string(path)?;
        let named = |e: String| io::Error::other(format!("{}: {e}", path.display()));
        let scenario = Scenario::parse(&text).map_err(named)?;
        let subjects = Subjects { policy: &scenario.policy, workers: &options.workers, seed: 1 }.make();
        let subjects = subjects.unwrap_or_else(|e| {
            println!("{}: Sluice cannot be set up: {e}", path.display());
            report.totals.differences += 1;
            Vec::new()
        });
        let mut kernel = Recorder::new(Kernel::new(&scenario.policy).map_err(|e| named(e.to_string()))?, &head);
        let mut run = Run::new(&scenario.policy, &mut kernel, subjects);
        run.ignore.clone_from(&ignore);
        run.play(&scenario).map_err(|e| named(e.to_string()))?;
        report.take(&path.display().to_string(), &run);
        if let Some(directory) = &options.record {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            write(&directory.join(format!("{name}.rec")), kernel.finish().as_bytes())?;
        }
    }
    for seed in seeds::numbers(&options.seed).map_err(io::Error::other)? {
        let (name, policy) = seeds::policy(seed, options.policy.as_deref()).map_err(io::Error::other)?;
        let subjects = Subjects { policy: &policy, workers: &options.workers, seed }.make()?;
        let mut kernel = Recorder::new(Kernel::new(&policy)?, &head);
        let mut run = Run::new(&policy, &mut kernel, subjects);
        run.ignore.clone_from(&ignore);
        run.generate(&mut Generator::new(seed, &policy), options.packets)?;
        report.take(&format!("seed {seed} ({name})"), &run);
        if let Some(directory) = &options.record {
            let file = directory.join(format!("seed-{seed}-{}.rec.z", options.packets));
            write(&file, &record::pack(&kernel.finish()))?;
        }
    }
    report.print();
    Ok(report.totals.differences)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}
