//! Plots: horizontal bars in groups, as SVG that any browser shows.
//!
//! Written by hand: two plots of rectangles and words do not need a drawing library.

use std::fmt::Write;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Whose it is: bars of one series have one colour.
    pub series: String,
    /// Its length.
    pub value: f64,
    /// Where a mark across it stands.
    pub mark: Option<f64>,
}

/// Bars that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What stands beside them.
    pub label: String,
    /// From top to bottom.
    pub values: Vec<Value>,
}

/// Series that have the same colour in every plot.
const KNOWN: [&str; 4] = ["testpmd", "sluice", "ovs", "kernel"];

/// Told apart also by who sees no red or no green: Okabe and Ito's palette.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

const WIDTH: f64 = 900.0;
const LEFT: f64 = 260.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 60.0;
const BAR: f64 = 12.0;
const GAP: f64 = 8.0;
/// Width of a number.
const NUMBER: f64 = 36.0;
/// Lines of the grid, at most.
const TICKS: f64 = 8.0;

/// The plot, with numbers of so many digits.
pub fn bars(title: &str, groups: &[Group], digits: usize) -> String {
    let mut series: Vec<&str> = Vec::new();
    for value in groups.iter().flat_map(|g| &g.values) {
        if !series.contains(&value.series.as_str()) {
            series.push(&value.series);
        }
    }
    let place = |of: &str| KNOWN.iter().chain(series.iter().filter(|s| !KNOWN.contains(s))).position(|s| *s == of);
    let colour = |of: &str| COLOURS[place(of).unwrap_or(0) % COLOURS.len()];
    let most = groups.iter().flat_map(|g| &g.values).map(|v| v.value.max(v.mark.unwrap_or(0.0))).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - RIGHT);
    let rows: usize = groups.iter().map(|g| g.values.len()).sum();
    let bottom = TOP + rows as f64 * BAR + groups.len() as f64 * GAP;

    let mut s = String::new();
    let _ = writeln!(
        s,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{:.0}" font-family="sans-serif" font-size="11">"#,
        bottom + 30.0
    );
    let _ = writeln!(s, r##"<rect width="100%" height="100%" fill="#fff"/>"##);
    let _ = writeln!(s, r#"<text x="10" y="20" font-size="14">{}</text>"#, escape(title));
    for (i, name) in series.iter().enumerate() {
        let at = 10.0 + i as f64 * 110.0;
        let _ = writeln!(s, r#"<rect x="{at}" y="32" width="10" height="10" fill="{}"/>"#, colour(name));
        let _ = writeln!(s, r#"<text x="{}" y="41">{}</text>"#, at + 14.0, escape(name));
    }
    let step = step(most);
    let mut tick = 0.0;
    while tick <= most {
        let at = x(tick);
        let _ = writeln!(s, r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom:.1}" stroke="#ddd"/>"##);
        let _ =
            writeln!(s, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#, bottom + 15.0, short(tick));
        tick += step;
    }
    let mut y = TOP;
    for group in groups {
        let middle = y + group.values.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(
            s,
            r#"<text x="{}" y="{middle:.1}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            escape(&group.label)
        );
        for v in &group.values {
            let (length, high) = (x(v.value) - LEFT, BAR - 1.0);
            let _ = writeln!(
                s,
                r#"<rect x="{LEFT}" y="{y:.1}" width="{length:.1}" height="{high}" fill="{}"/>"#,
                colour(&v.series)
            );
            // A mark that would cross the number has it behind itself.
            let crossed = |mark: &f64| (0.0..NUMBER).contains(&(x(*mark) - x(v.value)));
            let after = x(v.mark.filter(crossed).unwrap_or(v.value)) + 4.0;
            let _ =
                writeln!(s, r#"<text x="{after:.1}" y="{:.1}" font-size="10">{:.digits$}</text>"#, y + 9.0, v.value);
            if let Some(mark) = v.mark {
                let at = x(mark);
                let _ = writeln!(
                    s,
                    r##"<line x1="{at:.1}" y1="{y:.1}" x2="{at:.1}" y2="{:.1}" stroke="#000" stroke-width="2"/>"##,
                    y + BAR
                );
            }
            y += BAR;
        }
        y += GAP;
    }
    s.push_str("</svg>\n");
    s
}

/// A round number between lines of the grid.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / TICKS).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|n| n * power).find(|s| most / s <= TICKS).unwrap_or(10.0 * power)
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(values: &[(&str, f64, Option<f64>)]) -> Group {
        let values = values.iter().map(|&(s, value, mark)| Value { series: s.to_owned(), value, mark }).collect();
        Group { label: "a & b".to_owned(), values }
    }

    #[test]
    fn the_longest_bar_fills_the_width_and_others_are_in_proportion() {
        let svg = bars("t", &[group(&[("x", 40.0, None), ("y", 10.0, None)])], 2);
        assert!(svg.contains(r#"width="570.0" height="11""#), "{svg}");
        assert!(svg.contains(r#"width="142.5" height="11""#), "{svg}");
        assert!(svg.contains(">40.00</text>") && svg.contains("a &amp; b"));
    }

    #[test]
    fn a_mark_beyond_all_bars_is_within_the_plot() {
        let svg = bars("t", &[group(&[("x", 0.1, Some(0.4))])], 3);
        assert!(svg.contains(r#"<line x1="830.0""#), "{svg}");
    }

    #[test]
    fn a_number_stands_behind_its_bar_and_behind_a_mark_that_would_cross_it() {
        let at = |mark| bars("t", &[group(&[("x", 0.5, Some(mark)), ("y", 1.0, None)])], 3);
        assert!(at(0.9).contains(r#"<text x="549.0""#), "{}", at(0.9));
        assert!(at(0.52).contains(r#"<text x="560.4""#), "{}", at(0.52));
    }

    #[test]
    fn a_system_has_its_colour_whatever_others_there_are() {
        let colour = |svg: String| svg.split("height=\"11\" fill=").nth(1).map(|s| s[..9].to_owned());
        let alone = colour(bars("t", &[group(&[("sluice", 1.0, None)])], 2));
        assert_eq!(alone.as_deref(), Some("\"#e69f00\""));
        assert_ne!(alone, colour(bars("t", &[group(&[("other", 1.0, None)])], 2)));
    }

    #[test]
    fn the_grid_has_few_and_round_lines() {
        assert_eq!([0.7, 1.0, 9.0, 91.0].map(step), [0.1, 0.2, 2.0, 20.0]);
    }

    #[test]
    fn a_plot_of_nothing_is_a_plot() {
        assert!(bars("t", &[], 2).ends_with("</svg>\n"));
    }
}
