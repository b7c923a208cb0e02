//! `sluice-differential`: runs scenarios and seeds through the kernel and Sluice; `scripts/differential` calls it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use differential::compare::Kind;
use differential::generator::Generator;
use differential::kernel::Kernel;
use differential::observe::System;
use differential::policy::Policy;
use differential::process::Process;
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
    /// Frames of each seed for the process, which is slower; a tenth of --packets where nothing is said.
    #[arg(long)]
    process_packets: Option<u64>,
    /// The `sluiced` to run; without, the dataplane library in this process is all that is compared.
    #[arg(long)]
    sluiced: Option<PathBuf>,
    /// Leaves out the dataplane library in this process.
    #[arg(long)]
    process_only: bool,
    /// Sends most of a seed's datagrams in fragments, cut in every way.
    #[arg(long)]
    fragments: bool,
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
    /// Writes every packet and what the kernel made of it to this file.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Writes down what the kernel made of it, into this directory.
    #[arg(long)]
    record: Option<PathBuf>,
}

fn main() -> ExitCode {
    match Session::new(Options::parse()).and_then(|mut s| s.run()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("sluice-differential: {e}");
            ExitCode::from(2)
        }
    }
}

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

/// What is compared with the kernel at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pass {
    /// The dataplane library, on all numbers of workers side by side.
    InProcess,
    /// `sluiced` on so many workers.
    Process(usize),
}

impl Pass {
    fn name(self) -> String {
        match self {
            Self::InProcess => "in-process".into(),
            Self::Process(1) => "sluiced on 1 worker".into(),
            Self::Process(n) => format!("sluiced on {n} workers"),
        }
    }
}

/// What is sent in a pass.
#[derive(Clone, Copy)]
enum Traffic<'a> {
    Scenario(&'a Scenario),
    /// Seed and frames.
    Seed(u64, u64),
}

/// A call of this program.
struct Session {
    options: Options,
    ignore: Vec<Kind>,
    head: String,
    totals: BTreeMap<Pass, Totals>,
    shown: usize,
}

impl Session {
    fn new(options: Options) -> io::Result<Self> {
        let kind =
            |name: &String| Kind::named(name).ok_or(io::Error::other(format!("nothing to ignore is called {name}")));
        let ignore = options.ignore.iter().map(kind).collect::<Result<_, _>>()?;
        Ok(Self { ignore, head: record::head()?, totals: BTreeMap::new(), shown: 0, options })
    }

    fn run(&mut self) -> io::Result<u64> {
        let passes = if self.options.process_only { None } else { Some(Pass::InProcess) };
        let workers = self.options.workers.iter().filter(|_| self.options.sluiced.is_some());
        let passes: Vec<Pass> = passes.into_iter().chain(workers.map(|&n| Pass::Process(n))).collect();
        for path in self.options.scenarios.clone() {
            let text = std::fs::read_to_string(&path)?;
            let named = |e: String| io::Error::other(format!("{}: {e}", path.display()));
            let scenario = Scenario::parse(&text).map_err(named)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            for &pass in &passes {
                let played = self.pass(pass, &name, &scenario.policy, Traffic::Scenario(&scenario));
                let record = played.map_err(|e| named(e.to_string()))?;
                self.write(pass, &format!("{name}.rec"), record.as_bytes())?;
            }
        }
        for seed in seeds::numbers(&self.options.seed).map_err(io::Error::other)? {
            let (name, policy) = seeds::policy(seed, self.options.policy.as_deref()).map_err(io::Error::other)?;
            for &pass in &passes {
                let all = self.options.packets;
                let packets = match pass {
                    Pass::InProcess => all,
                    Pass::Process(_) => self.options.process_packets.unwrap_or(all / 10),
                };
                let record =
                    self.pass(pass, &format!("seed {seed} ({name})"), &policy, Traffic::Seed(seed, packets))?;
                let kind = if self.options.fragments { "fragments" } else { "seed" };
                self.write(pass, &format!("{kind}-{seed}-{all}.rec.z"), &record::pack(&record))?;
            }
        }
        Ok(self.print())
    }

    /// One run; the record of the kernel.
    fn pass(&mut self, pass: Pass, name: &str, policy: &Policy, traffic: Traffic<'_>) -> io::Result<String> {
        let begin = Instant::now();
        let seed = if let Traffic::Seed(seed, _) = traffic { seed } else { 1 };
        let subjects = match pass {
            Pass::InProcess => Subjects { policy, workers: &self.options.workers, seed }.make(),
            Pass::Process(workers) => {
                let sluiced = self.options.sluiced.clone().unwrap_or_default();
                Process::new(&sluiced, policy, workers).map(|p| vec![Box::new(p) as Box<dyn System>])
            }
        };
        let subjects = subjects.unwrap_or_else(|e| {
            println!("{name}, {}: Sluice cannot be set up: {e}", pass.name());
            self.totals.entry(pass).or_default().differences += 1;
            Vec::new()
        });
        if subjects.is_empty() && pass != Pass::InProcess {
            return Ok(String::new());
        }
        let mut kernel = Recorder::new(Kernel::new(policy)?, &self.head);
        let mut run = Run::new(policy, &mut kernel, subjects);
        run.ignore.clone_from(&self.ignore);
        if let Some(path) = &self.options.log {
            let file = std::fs::File::options().create(true).append(true).open(path)?;
            run.log = Some(Box::new(io::BufWriter::new(file)));
        }
        match traffic {
            Traffic::Scenario(scenario) => run.play(scenario)?,
            Traffic::Seed(seed, packets) => {
                let mut generator =
                    if self.options.fragments { Generator::fragmented } else { Generator::new }(seed, policy);
                let mut told = Instant::now();
                while run.totals.packets < packets {
                    run.generate(&mut generator, 1000.min(packets - run.totals.packets))?;
                    if told.elapsed() > PROGRESS {
                        told = Instant::now();
                        let Totals { packets, differences, .. } = run.totals;
                        eprintln!("{name}, {}: {packets} packets, {differences} differences so far", pass.name());
                    }
                }
            }
        }
        let Totals { packets, differences, .. } = run.totals;
        let took = begin.elapsed().as_secs_f64();
        println!("{name}, {}: {packets} packets, {differences} differences, {took:.1} s", pass.name());
        for report in run.reports.iter().take(self.options.show.saturating_sub(self.shown)) {
            println!("{name}: {report}");
            self.shown += 1;
        }
        self.totals.entry(pass).or_default().add(&run.totals);
        drop(run);
        Ok(kernel.finish())
    }

    /// Writes down a record, where that is wanted.
    fn write(&self, pass: Pass, file: &str, bytes: &[u8]) -> io::Result<()> {
        match &self.options.record {
            Some(directory) if pass == Pass::InProcess => write(&directory.join(file), bytes),
            _ => Ok(()),
        }
    }

    /// Prints what all came to; the number of differences.
    fn print(&self) -> u64 {
        let mut sorts: Vec<(Pass, &String, u64)> = Vec::new();
        let mut explained: BTreeMap<&str, u64> = BTreeMap::new();
        for (pass, t) in &self.totals {
            println!("{}: {} packets ({} passed) of {} flows, by class", pass.name(), t.packets, t.passed, t.flows);
            for (system, classes) in &t.classes {
                let classes: Vec<String> = classes.iter().map(|(class, n)| format!("{class} {n}")).collect();
                println!("  {system}: {}", classes.join(", "));
            }
            sorts.extend(t.sorts.iter().map(|(sort, n)| (*pass, sort, *n)));
            for (name, n) in &t.explained {
                *explained.entry(name).or_default() += n;
            }
        }
        sorts.sort_by_key(|(_, _, n)| std::cmp::Reverse(*n));
        for (pass, sort, n) in sorts.iter().take(40) {
            println!("  {n:6} {}: {sort}", pass.name());
        }
        for (name, n) in &explained {
            println!("explained: {name} {n}");
        }
        let differences = self.totals.values().map(|t| t.differences).sum();
        println!("differences: {differences}");
        differences
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}
