//! The report of a run: Markdown with two plots, and the same as JSON.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Serialize;

use crate::plot::{Group, Value};
use crate::results::{Bar, FLOOR, Round, Row};

/// Machine, versions and command: name and value.
pub type About = Vec<(String, String)>;

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// See [`About`].
    #[serde(serialize_with = "as_map")]
    pub about: About,
    /// Medians.
    pub rows: Vec<Row>,
    /// What the bars say.
    pub bars: Vec<Bar>,
    /// What the medians are of.
    pub rounds: Vec<Round>,
}

fn as_map<S: serde::Serializer>(about: &About, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(about.iter().map(|(name, value)| (name, value)))
}

impl Report {
    /// The report as Markdown; `rates.svg` and `ratios.svg` are to stand beside it.
    pub fn markdown(&self) -> String {
        let mut m = String::from("# Bench\n\n");
        for (name, value) in &self.about {
            let _ = writeln!(m, "- {name}: {}", cell(value));
        }
        m.push_str(
            "\nRates are packets sent by both ports together, in new-connections connections started. A rate means nothing on another day or
machine; the ratio to testpmd on the same trace in the same run does.\n\n",
        );
        if self.rows.iter().any(|r| r.cell.workers > 1) {
            m.push_str(
                "Where there are no more CPUs than workers, control threads share a CPU with one of them. Of two workers' packets, the share
`handover.CAUSE` went from one to the other.\n\n",
            );
        }
        m.push_str("| case | flows | workers | system | Mpps | slowest to fastest round | ns per packet | ratio to testpmd |\n");
        m.push_str("|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let [mpps, ns, ratio] = row.figures();
            let c = &row.cell;
            let range = row.range.map_or_else(|| "-".to_owned(), |[least, most]| format!("{least:.2} to {most:.2}"));
            let (case, flows, workers, system) = (cell(&c.case), c.flows, c.workers, cell(&c.system));
            let _ = writeln!(m, "| {case} | {flows} | {workers} | {system} | {mpps} | {range} | {ns} | {ratio} |");
        }
        if !self.bars.is_empty() {
            m.push_str("\n## Bars\n\n| what | bar | measured | |\n|---|---|---|---|\n");
            for bar in &self.bars {
                let verdict = bar.verdict();
                let _ =
                    writeln!(m, "| {} | {} {:.2} | {:.3} | {verdict} |", bar.what, bar.bound, bar.wanted, bar.measured);
            }
        }
        m.push_str("\n![Rates](rates.svg)\n\n![Ratios to testpmd](ratios.svg)\n");
        self.details(&mut m);
        self.voids(&mut m);
        m
    }

    /// Where packets went and what they were, where that is worth a word.
    fn details(&self, m: &mut String) {
        let names: BTreeSet<&String> = self.rows.iter().flat_map(|r| r.details.keys()).collect();
        if names.is_empty() {
            return;
        }
        m.push_str("\n## Shares of the received packets\n\n| case | flows | workers | system |");
        for name in &names {
            let _ = write!(m, " {} |", cell(name));
        }
        let _ = writeln!(m, "\n|---|---|---|---|{}", "---|".repeat(names.len()));
        for row in self.rows.iter().filter(|r| !r.details.is_empty()) {
            let c = &row.cell;
            let _ = write!(m, "| {} | {} | {} | {} |", cell(&c.case), c.flows, c.workers, cell(&c.system));
            for name in &names {
                let share = row.details.get(*name).map_or_else(String::new, |s| format!("{s:.5}"));
                let _ = write!(m, " {share} |");
            }
            m.push('\n');
        }
    }

    fn voids(&self, m: &mut String) {
        let mut void = self.rows.iter().filter_map(|r| Some((r, r.void.as_ref()?))).peekable();
        if void.peek().is_some() {
            m.push_str("\n## Void rounds\n\n");
        }
        for (row, why) in void {
            let c = &row.cell;
            let (void, rounds) = (row.void_rounds, row.rounds);
            let _ = writeln!(
                m,
                "- {}, {} flows, {} workers, {}: {void} of {rounds}, {}",
                c.case,
                c.flows,
                c.workers,
                c.system,
                cell(why)
            );
        }
    }

    /// The plot of rates.
    pub fn rates(&self) -> String {
        let groups = self.groups(|row| row.mpps.map(|value| (value, None)));
        crate::plot::bars("Mpps, both ports together (new-connections: million connections a second)", &groups, 2)
    }

    /// The plot of ratios, with the bars as marks.
    pub fn ratios(&self) -> String {
        let mark = |row: &Row| {
            let what = format!("{}, {} flows: ratio to testpmd", row.cell.case, row.cell.flows);
            let ours = row.cell.system == crate::results::OURS && row.cell.workers == 1;
            self.bars.iter().find(|b| ours && b.what == what).map(|b| b.wanted)
        };
        let others = |row: &Row| row.ratio_to_testpmd.filter(|_| row.cell.system != FLOOR);
        let groups = self.groups(|row| others(row).map(|value| (value, mark(row))));
        crate::plot::bars("Ratio to testpmd on the same trace; a stroke is the bar", &groups, 3)
    }

    /// Bars by case, flows and workers.
    fn groups(&self, of: impl Fn(&Row) -> Option<(f64, Option<f64>)>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for row in &self.rows {
            let Some((value, mark)) = of(row) else { continue };
            let c = &row.cell;
            let workers = if c.workers > 1 { format!(", {} workers", c.workers) } else { String::new() };
            let label = format!("{}, {} flows{workers}", c.case, c.flows);
            let value = Value { series: c.system.clone(), value, mark };
            match groups.iter_mut().find(|g| g.label == label) {
                Some(group) => group.values.push(value),
                None => groups.push(Group { label, values: vec![value] }),
            }
        }
        groups
    }
}

/// Text that may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Cell, Measured, OURS, bars, rows};

    fn report() -> Report {
        let round = |system: &str, mpps, void: Option<&str>| {
            let cell = Cell { case: "snat".to_owned(), flows: 1_000, workers: 1, system: system.to_owned() };
            let details = [("invalid".to_owned(), 0.25)].into_iter().filter(|_| system == OURS).collect();
            Round { cell, round: 1, measured: Measured { mpps, details, void: void.map(str::to_owned) } }
        };
        let rounds = vec![round(FLOOR, 80.0, None), round(OURS, 20.0, None), round("kernel", 0.5, Some("it broke"))];
        let rows = rows(&rounds);
        let about = vec![("machine".to_owned(), "a | b".to_owned())];
        Report { about, bars: bars(&rows), rows, rounds }
    }

    #[test]
    fn the_markdown_has_machine_rows_bars_shares_and_what_is_void() {
        let m = report().markdown();
        for line in [
            "- machine: a \\| b",
            "| snat | 1000 | 1 | sluice | 20.00 | 20.00 to 20.00 | 50.0 | 0.250 |",
            "| snat | 1000 | 1 | kernel | - | - | - | - |",
            "| snat, 1000 flows: ratio to testpmd | at least 0.40 | 0.250 | not met: 1.60 times too slow |",
            "| snat | 1000 | 1 | sluice | 0.25000 |",
            "- snat, 1000 flows, 1 workers, kernel: 1 of 1, it broke",
        ] {
            assert!(m.lines().any(|l| l == line), "{line} in\n{m}");
        }
    }

    #[test]
    fn two_workers_come_with_a_word_on_who_shares_their_cpus() {
        let mut report = report();
        assert!(!report.markdown().contains("control threads share"));
        report.rows[1].cell.workers = 2;
        assert!(report.markdown().contains("control threads share"));
    }

    #[test]
    fn the_json_has_the_same_by_name() {
        let json = serde_json::to_value(report()).expect("a report is JSON");
        assert_eq!(json["about"]["machine"], "a | b");
        assert_eq!(json["rows"][1]["system"], "sluice");
        assert_eq!(json["rows"][1]["ratio_to_testpmd"], 0.25);
        assert_eq!(json["rows"][2]["mpps"], serde_json::Value::Null);
        assert_eq!(json["bars"][0]["met"], false);
        assert_eq!(json["rounds"][0]["mpps"], 80.0);
    }

    #[test]
    fn the_plots_show_every_system_that_has_a_figure_and_the_bar() {
        let report = report();
        let (rates, ratios) = (report.rates(), report.ratios());
        assert!(rates.contains(">80.00<") && rates.contains(">20.00<") && !rates.contains("kernel"));
        assert!(ratios.contains(">0.250<") && !ratios.contains("testpmd</text>"));
        assert_eq!(ratios.matches("stroke-width=\"2\"").count(), 1);
    }
}
