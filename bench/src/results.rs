//! What was measured: rounds, their medians, and what the bars say of them.
//!
//! `scripts/bench` appends a [`Round`] to a file of JSON lines for each turn of each system; a [`Row`] is the median of the
//! rounds of one cell, and its ratio to testpmd in the same cell.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The system that others are compared with.
pub const FLOOR: &str = "testpmd";
/// Ours.
pub const OURS: &str = "sluice";

/// What one turn measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Million packets a second sent by both ports together; in new-connections million connections a second.
    pub mpps: f64,
    /// Shares of the received packets, by name: `invalid`, `new`, `dropped.REASON`, `handover.CAUSE`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, f64>,
    /// Why the measurement does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub void: Option<String>,
}

/// What was measured, of what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// The case; new-connections with the number of rules.
    pub case: String,
    /// Flows in the trace.
    pub flows: u64,
    /// Cores that forward.
    pub workers: u16,
    /// The system.
    pub system: String,
}

/// One turn of one system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Of what.
    #[serde(flatten)]
    pub cell: Cell,
    /// Which turn, from 1.
    pub round: u32,
    /// What came out.
    #[serde(flatten)]
    pub measured: Measured,
}

/// One line of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Of what.
    #[serde(flatten)]
    pub cell: Cell,
    /// The median; `None` where too many rounds were void.
    pub mpps: Option<f64>,
    /// Time per packet at that rate.
    pub ns_per_packet: Option<f64>,
    /// To testpmd in the same cell, where that was measured.
    pub ratio_to_testpmd: Option<f64>,
    /// The slowest and the fastest round that counts.
    pub range: Option<[f64; 2]>,
    /// Rounds, and of them those that do not count.
    pub rounds: usize,
    /// See `rounds`.
    pub void_rounds: usize,
    /// Why rounds do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub void: Option<String>,
    /// Medians of [`Measured::details`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, f64>,
}

/// The heading of [`Row::tsv`].
pub const HEADING: &str = "case\tflows\tworkers\tsystem\tmpps\tns_per_packet\tratio_to_testpmd";

impl Row {
    /// The line as it is printed, tab-separated, with `-` for what there is not.
    pub fn tsv(&self) -> String {
        let Cell { case, flows, workers, system } = &self.cell;
        let [mpps, ns, ratio] = self.figures();
        format!("{case}\t{flows}\t{workers}\t{system}\t{mpps}\t{ns}\t{ratio}")
    }

    /// Rate, time per packet and ratio as they are printed.
    pub fn figures(&self) -> [String; 3] {
        let number = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
        // Slow ones with as many figures as fast ones.
        let digits = if self.mpps.is_some_and(|m| m < 1.0) { 4 } else { 2 };
        [number(self.mpps, digits), number(self.ns_per_packet, 1), number(self.ratio_to_testpmd, 3)]
    }
}

/// The median; of an even number of values the mean of the two in the middle. `None` of none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The rows of all rounds, cells in the order in which they first come.
pub fn rows(rounds: &[Round]) -> Vec<Row> {
    let mut cells: Vec<&Cell> = Vec::new();
    for round in rounds {
        if !cells.contains(&&round.cell) {
            cells.push(&round.cell);
        }
    }
    let rate = |cell: &Cell| {
        let counts = |r: &&Round| r.cell == *cell && r.measured.void.is_none();
        median(rounds.iter().filter(counts).map(|r| r.measured.mpps).collect())
    };
    let row = |cell: &Cell| {
        let all: Vec<&Round> = rounds.iter().filter(|r| r.cell == *cell).collect();
        let counted: Vec<f64> = all.iter().filter(|r| r.measured.void.is_none()).map(|r| r.measured.mpps).collect();
        let void_rounds = all.len() - counted.len();
        // A median of the few that were right by chance would be a choice.
        let mpps = if void_rounds * 2 >= all.len() { None } else { rate(cell) };
        let floor = rate(&Cell { system: FLOOR.to_owned(), ..cell.clone() });
        let mut details: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, value) in all.iter().flat_map(|r| &r.measured.details) {
            details.entry(name.clone()).or_default().push(*value);
        }
        Row {
            cell: cell.clone(),
            mpps,
            ns_per_packet: mpps.filter(|&m| m > 0.0).map(|m| 1000.0 / m),
            ratio_to_testpmd: mpps.zip(floor.filter(|&f| f > 0.0)).map(|(m, f)| m / f),
            range: mpps.map(|_| {
                [counted.iter().copied().fold(f64::MAX, f64::min), counted.iter().copied().fold(0.0, f64::max)]
            }),
            rounds: all.len(),
            void_rounds,
            void: all.iter().find_map(|r| r.measured.void.clone()),
            details: details.into_iter().filter_map(|(name, values)| Some((name, median(values)?))).collect(),
        }
    };
    cells.into_iter().map(row).collect()
}

/// One bar, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bar {
    /// What it is about.
    pub what: String,
    /// `at least` or `at most`.
    pub bound: &'static str,
    /// The bar.
    pub wanted: f64,
    /// What came out.
    pub measured: f64,
    /// Whether that will do.
    pub met: bool,
}

impl Bar {
    fn at_least(what: impl Into<String>, wanted: f64, measured: f64) -> Self {
        Self { what: what.into(), bound: "at least", wanted, measured, met: measured >= wanted }
    }

    fn at_most(what: impl Into<String>, wanted: f64, measured: f64) -> Self {
        Self { what: what.into(), bound: "at most", wanted, measured, met: measured <= wanted }
    }

    /// `met`, or by how much not.
    pub fn verdict(&self) -> String {
        let missing = if self.bound == "at least" { self.wanted / self.measured } else { self.measured / self.wanted };
        if self.met { "met".to_owned() } else { format!("not met: {missing:.2} times too slow") }
    }

    /// The line as it is printed, tab-separated.
    pub fn tsv(&self) -> String {
        format!("{}\t{} {:.2}\t{:.3}\t{}", self.what, self.bound, self.wanted, self.measured, self.verdict())
    }
}

/// Bars of docs/BENCH.md that the ratio to testpmd decides on: case, flows, ratio.
const RATIOS: [(&str, u64, f64); 6] = [
    ("snat", 1_000, 0.40),
    ("snat", 65_536, 0.35),
    ("snat", 1_000_000, 0.40),
    ("stateful", 1_000, 0.45),
    ("stateful", 65_536, 0.40),
    ("stateful", 1_000_000, 0.45),
];

/// New connections, M/s, one worker, a policy of 1,000 rules.
const NEW_CONNECTIONS: f64 = 3.0;

/// What a second worker brings, by case.
const SECOND_WORKER: [(&str, f64); 3] = [("stateful", 1.9), ("snat", 1.9), ("dnat", 1.6)];

/// The most that new flows may cost with 10,000 rules, in terms of that with 10.
const MANY_RULES: f64 = 1.5;

/// 10 Gbit/s of the shortest frames, Mpps: 84 bytes each with preamble and gap.
const LINE_RATE: f64 = 14.88;

/// The bars that were measured.
pub fn bars(rows: &[Row]) -> Vec<Bar> {
    let find = |case: &str, flows: Option<u64>, workers: u16| {
        rows.iter().find(|r| {
            let c = &r.cell;
            c.system == OURS && c.case == case && c.workers == workers && flows.is_none_or(|f| f == c.flows)
        })
    };
    let rate = |case: &str, flows, workers| find(case, flows, workers).and_then(|r| r.mpps);
    let mut bars = Vec::new();
    for (case, flows, wanted) in RATIOS {
        if let Some(ratio) = find(case, Some(flows), 1).and_then(|r| r.ratio_to_testpmd) {
            bars.push(Bar::at_least(format!("{case}, {flows} flows: ratio to testpmd"), wanted, ratio));
        }
    }
    if let Some(rate) = rate("new-connections-1000", None, 1) {
        bars.push(Bar::at_least("new connections, 1,000 rules: M/s", NEW_CONNECTIONS, rate));
    }
    if let (Some(few), Some(many)) = (rate("new-connections-10", None, 1), rate("new-connections-10000", None, 1)) {
        bars.push(Bar::at_most("new connections: cost with 10,000 rules to that with 10", MANY_RULES, few / many));
    }
    for (case, wanted) in SECOND_WORKER {
        for two in rows.iter().filter(|r| r.cell.case == case && r.cell.workers == 2 && r.cell.system == OURS) {
            let flows = two.cell.flows;
            if let (Some(one), Some(two)) = (rate(case, Some(flows), 1), two.mpps) {
                bars.push(Bar::at_least(format!("{case}, {flows} flows: two workers to one"), wanted, two / one));
            }
        }
    }
    if let Some(rate) = rate("snat", Some(65_536), 1) {
        bars.push(Bar::at_least("snat, 65536 flows: 10 Gbit/s line rate, Mpps", LINE_RATE, rate));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(case: &str, workers: u16, system: &str, mpps: f64) -> Round {
        let cell = Cell { case: case.to_owned(), flows: 65_536, workers, system: system.to_owned() };
        Round { cell, round: 1, measured: Measured { mpps, ..Measured::default() } }
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_row_has_the_median_and_its_ratio_to_testpmd_in_the_same_cell() {
        let mut rounds = vec![];
        for (floor, ours) in [(40.0, 9.0), (50.0, 10.0), (30.0, 30.0)] {
            rounds.push(round("snat", 1, FLOOR, floor));
            rounds.push(round("snat", 1, OURS, ours));
            rounds.push(round("snat", 2, FLOOR, 1.0));
        }
        let lines: Vec<String> = rows(&rounds).iter().map(Row::tsv).collect();
        assert_eq!(
            lines,
            [
                "snat\t65536\t1\ttestpmd\t40.00\t25.0\t1.000",
                "snat\t65536\t1\tsluice\t10.00\t100.0\t0.250",
                "snat\t65536\t2\ttestpmd\t1.00\t1000.0\t1.000"
            ]
        );
        assert_eq!(HEADING.split('\t').count(), lines[0].split('\t').count());
    }

    #[test]
    fn a_system_without_testpmd_beside_it_has_no_ratio() {
        assert_eq!(rows(&[round("snat", 1, OURS, 10.0)])[0].tsv(), "snat\t65536\t1\tsluice\t10.00\t100.0\t-");
    }

    #[test]
    fn a_slow_system_has_figures_too() {
        assert_eq!(rows(&[round("snat", 1, "kernel", 0.0014)])[0].tsv(), "snat\t65536\t1\tkernel\t0.0014\t714285.7\t-");
    }

    #[test]
    fn void_rounds_do_not_count_and_half_of_them_void_the_row() {
        let void = |mpps| {
            let mut r = round("tcp", 1, OURS, mpps);
            r.measured.void = Some("2 % of the packets were INVALID".to_owned());
            r
        };
        let one = rows(&[void(50.0), round("tcp", 1, OURS, 7.0), round("tcp", 1, OURS, 8.0)]);
        assert_eq!((one[0].mpps, one[0].void_rounds, one[0].rounds), (Some(7.5), 1, 3));
        let half = rows(&[void(50.0), round("tcp", 1, OURS, 7.0)]);
        assert_eq!(half[0].tsv(), "tcp\t65536\t1\tsluice\t-\t-\t-");
        assert!(half[0].void.is_some());
    }

    #[test]
    fn details_are_medians_too() {
        let mut rounds = vec![];
        for share in [0.1, 0.5, 0.2] {
            let mut r = round("dnat", 2, OURS, 10.0);
            r.measured.details.insert("handover.signpost".to_owned(), share);
            rounds.push(r);
        }
        assert_eq!(rows(&rounds)[0].details, BTreeMap::from([("handover.signpost".to_owned(), 0.2)]));
    }

    #[test]
    fn a_round_reads_as_it_was_written() {
        let mut written = round("snat", 1, OURS, 9.5);
        written.measured.details.insert("new".to_owned(), 0.5);
        let line = serde_json::to_string(&written).expect("a round is JSON");
        assert_eq!(
            line,
            r#"{"case":"snat","flows":65536,"workers":1,"system":"sluice","round":1,"mpps":9.5,"details":{"new":0.5}}"#
        );
        assert_eq!(serde_json::from_str::<Round>(&line).expect("its own line"), written);
    }

    #[test]
    fn bars_say_what_is_met_and_by_how_much_not() {
        let rounds = [
            round("snat", 1, FLOOR, 40.0),
            round("snat", 1, OURS, 15.0),
            round("snat", 2, OURS, 24.0),
            round("new-connections-10", 1, OURS, 1.8),
            round("new-connections-1000", 1, OURS, 1.5),
            round("new-connections-10000", 1, OURS, 1.0),
        ];
        let lines: Vec<String> = bars(&rows(&rounds)).iter().map(Bar::tsv).collect();
        assert_eq!(
            lines,
            [
                "snat, 65536 flows: ratio to testpmd\tat least 0.35\t0.375\tmet",
                "new connections, 1,000 rules: M/s\tat least 3.00\t1.500\tnot met: 2.00 times too slow",
                "new connections: cost with 10,000 rules to that with 10\tat most 1.50\t1.800\tnot met: 1.20 times too slow",
                "snat, 65536 flows: two workers to one\tat least 1.90\t1.600\tnot met: 1.19 times too slow",
                "snat, 65536 flows: 10 Gbit/s line rate, Mpps\tat least 14.88\t15.000\tmet"
            ]
        );
    }

    #[test]
    fn what_was_not_measured_has_no_bar() {
        assert_eq!(bars(&rows(&[round("forward", 1, OURS, 15.0)])), []);
    }
}
