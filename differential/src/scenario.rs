//! Scenarios: text files that say packet by packet what is sent.
//!
//! ```text
//! # a comment
//! usual                                                   header lines: see `policy`
//! nat masquerade
//! @syn lan > tcp 10.0.0.2:4000 198.51.100.10:80 S seq=100 win=1000 opts=mss1460,sackok,ws7
//! wan > tcp reply @syn SA seq=300 ack=101                 addresses and ports: those of @syn as it left, reversed
//! wan > error 198.51.100.254 3/1 about=@syn quote=28      an ICMP error that quotes @syn as it left
//! lan > udp 10.0.0.2:5000 198.51.100.10:53 len=2000 frag=1024 order=2,1
//! lan > icmp 10.0.0.2 198.51.100.10 8/0 id=7 seq=1 badsum
//! lan > ip 50 10.0.0.2 198.51.100.10 len=30
//! lan > again @syn                                        the same frame once more; keys of a packet may follow
//! wait 2.5                                                seconds
//! each F,P S,4001 SA,4002                                 what follows once for each, with $F and $P replaced, until
//! end
//! each N 1000..1063                                       a range
//! ```
//! Flags are of SAFRPUEC, `-` for none, or `f1003`: the lower six bits of that number.
//! Keys of every packet: `len`, `data` (hex), `ttl`, `tos`, `df`, `badsum`, `nosum`, `ext` (IPv6: hop, dst, route),
//! `ipopt` (hex), `cut` (bytes of the IP packet that are there), `frag` and `order`, `piece` (one fragment: `OFFSET:BYTES`,
//! with a `+` where more follow), `id4` (identification).
//! Of TCP: `seq`, `ack`, `win`, `urg`, `opts` (mss1460, ws7, sackok, sack:A..B+C..D, ts, nop, raw:hex), `off` (header words).
//! *Limits*: a label must stand before it is used.

mod build;

use std::time::Duration;

use crate::frame::Side;
use crate::policy::Policy;

pub use build::{Built, Sent};

/// A packet line, in words.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its number in the file.
    pub number: usize,
    /// Its text.
    pub text: String,
    /// What other lines call it.
    pub label: Option<String>,
    /// Where it is sent.
    pub side: Side,
    words: Vec<String>,
    keys: Vec<(String, String)>,
}

/// One step of a scenario.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet, or the fragments of one.
    Packet(Line),
    /// Time passes.
    Wait(Duration),
}

/// A scenario.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// What both systems are set up with.
    pub policy: Policy,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// The first line that is wrong, with its number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut scenario = Self::default();
        let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(l, _)| l).trim().to_owned());
        let lines: Vec<(usize, String)> = (1..).zip(lines).filter(|(_, l)| !l.is_empty()).collect();
        for (n, line) in expand(&lines)? {
            scenario.line(n, &line).map_err(|e| format!("line {n}: {e}: {line}"))?;
        }
        Ok(scenario)
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace().peekable();
        let label = words.next_if(|w| w.starts_with('@')).map(str::to_owned);
        let first = words.next().unwrap_or_default();
        let side = Side::ALL.into_iter().find(|s| s.name() == first);
        if let Some(side) = side
            && words.next_if_eq(&">").is_some()
        {
            let (mut plain, mut keys) = (Vec::new(), Vec::new());
            for w in words {
                match w.split_once('=') {
                    Some((k, v)) => keys.push((k.to_owned(), v.to_owned())),
                    None => plain.push(w.to_owned()),
                }
            }
            let text = line.to_owned();
            self.steps.push(Step::Packet(Line { number, text, label, side, words: plain, keys }));
            return Ok(());
        }
        if first == "wait" {
            let seconds: f64 = words.next().and_then(|w| w.parse().ok()).ok_or("wait needs seconds")?;
            self.steps.push(Step::Wait(Duration::from_secs_f64(seconds)));
            return Ok(());
        }
        if label.is_some() || !self.steps.is_empty() || !self.policy.line(line)? {
            return Err("neither a header line nor a packet".into());
        }
        Ok(())
    }
}

/// Writes out what stands between `each` and `end`.
fn expand(lines: &[(usize, String)]) -> Result<Vec<(usize, String)>, String> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some((n, line)) = lines.get(at) {
        at += 1;
        let Some(head) = line.strip_prefix("each ") else {
            all.push((*n, line.clone()));
            continue;
        };
        let mut depth = 1;
        let begin = at;
        while depth > 0 {
            let (_, inner) = lines.get(at).ok_or(format!("line {n}: each without end"))?;
            depth = if inner.starts_with("each ") { depth + 1 } else { depth - usize::from(inner == "end") };
            at += 1;
        }
        let mut words = head.split_whitespace();
        let names: Vec<&str> = words.next().unwrap_or_default().split(',').collect();
        for value in words.flat_map(range) {
            let values: Vec<&str> = value.split(',').collect();
            if values.len() != names.len() {
                return Err(format!("line {n}: {value}: {} values expected", names.len()));
            }
            let set = |text: &str| {
                names.iter().zip(&values).fold(text.to_owned(), |t, (k, v)| t.replace(&format!("${k}"), v))
            };
            let body: Vec<_> = lines[begin..at - 1].iter().map(|(n, l)| (*n, set(l))).collect();
            all.extend(expand(&body)?);
        }
    }
    Ok(all)
}

/// `3..5` is 3, 4 and 5; anything else is itself.
fn range(word: &str) -> Vec<String> {
    let bounds = word.split_once("..").and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
    bounds.map_or_else(|| vec![word.to_owned()], |(a, b)| (a..=b).map(|n| n.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repeats_its_body_with_every_value() {
        let text = "usual\neach A,B x,1 y,2\neach N 3..4\nlan > udp $A $B len=$N\nend\nend\nwait 1";
        let s = Scenario::parse(text).expect("a scenario");
        let texts: Vec<String> = s
            .steps
            .iter()
            .map(|s| match s {
                Step::Packet(line) => line.text.clone(),
                Step::Wait(d) => format!("{d:?}"),
            })
            .collect();
        let udp = |a, b, n| format!("lan > udp {a} {b} len={n}");
        assert_eq!(texts, [udp("x", 1, 3), udp("x", 1, 4), udp("y", 2, 3), udp("y", 2, 4), "1s".into()]);
    }

    #[test]
    fn a_line_that_is_nothing_is_refused_with_its_number() {
        assert!(Scenario::parse("usual\n\nnonsense here").expect_err("refused").starts_with("line 3:"));
        assert!(Scenario::parse("each A 1").expect_err("refused").contains("each without end"));
    }
}
