//! What the kernel made of scenarios and seeds, as recorded, against Sluice on one worker and on two.
//!
//! `recorded/open.txt` lists what is still open: a name and how many differences it may have at most.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use differential::generator::Generator;
use differential::record::{self, Recorded};
use differential::runner::Run;
use differential::scenario::Scenario;
use differential::seeds::{self, Subjects};

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files(name: &str, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory(name)).expect("the directory is there");
    let mut all: Vec<_> = all.map(|f| f.expect("a file").path()).collect();
    all.retain(|f| f.to_string_lossy().ends_with(ending));
    all.sort();
    all
}

/// Names with open differences, and how many.
fn open() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(directory("recorded/open.txt")).unwrap_or_default();
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.filter_map(|l| l.split_once(' ')).map(|(n, c)| (n.to_owned(), c.parse().expect("a number"))).collect()
}

/// Judges what `run` of `name` came to; the first reports, where it is too much.
fn judge(name: &str, differences: u64, reports: &[String], failures: &mut Vec<String>) {
    let allowed = open().get(name).copied().unwrap_or(0);
    if differences > allowed {
        let shown: Vec<_> = reports.iter().take(3).cloned().collect();
        failures.push(format!("{name}: {differences} differences, {allowed} are known\n{}", shown.join("\n")));
    } else if differences < allowed {
        println!("{name}: {differences} differences, {allowed} are listed in recorded/open.txt");
    }
}

#[test]
fn scenarios_go_as_the_kernel_had_them() {
    let mut failures = Vec::new();
    for path in files("scenarios", ".scn") {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let scenario = Scenario::parse(&std::fs::read_to_string(&path).expect("a file")).expect("a scenario");
        let file = directory("recorded").join(format!("{name}.rec"));
        let Ok(text) = std::fs::read_to_string(&file) else {
            failures.push(format!("{name} is not recorded: scripts/differential --record"));
            continue;
        };
        let subjects = match (Subjects { policy: &scenario.policy, workers: &[1, 2], seed: 1 }).make() {
            Ok(subjects) => subjects,
            Err(e) => {
                judge(&name, 1, &[e.to_string()], &mut failures);
                continue;
            }
        };
        let mut reference = Recorded::new(&text);
        let mut run = Run::new(&scenario.policy, &mut reference, subjects);
        let played = run.play(&scenario);
        let (differences, reports) = (run.totals.differences, std::mem::take(&mut run.reports));
        match played {
            Ok(()) => judge(&name, differences, &reports, &mut failures),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
        if !reference.is_over() {
            failures.push(format!("{name}: the record goes on: make it again"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn seeds_go_as_the_kernel_had_them() {
    let mut failures = Vec::new();
    for path in files("recorded", ".rec.z") {
        let name = path.file_name().expect("a name").to_string_lossy().trim_end_matches(".rec.z").to_owned();
        let generator = if name.starts_with("fragments") { Generator::fragmented } else { Generator::new };
        let mut numbers = name.split('-').skip(1).map(|n| n.parse::<u64>().expect("seed-SEED-PACKETS"));
        let (seed, packets) = (numbers.next().expect("a seed"), numbers.next().expect("packets"));
        let text = record::unpack(&std::fs::read(&path).expect("a file")).expect("a record");
        let (_, policy) = seeds::policy(seed, None).expect("a policy");
        let subjects = Subjects { policy: &policy, workers: &[1, 2], seed }.make().expect("gateways");
        let mut reference = Recorded::new(&text);
        let mut run = Run::new(&policy, &mut reference, subjects);
        match run.generate(&mut generator(seed, &policy), packets) {
            Ok(()) => judge(&name, run.totals.differences, &run.reports, &mut failures),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
