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
//! ```
//! Keys of every packet: `len`, `data` (hex), `ttl`, `id`, `tos`, `df`, `badsum`, `nosum`, `ext` (IPv6: hop, dst, route),
//! `ipopt` (hex), `cut` (bytes of the IP packet that are there), `frag` and `order`, `only` (which fragments are sent).
//! Of TCP: `seq`, `ack`, `win`, `urg`, `opts` (mss1460, ws7, sackok, sack:A-B, ts, nop, raw:hex), `off` (header words).
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
        for (n, line) in text.lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(l, _)| l).trim();
            if line.is_empty() {
                continue;
            }
            scenario.line(n + 1, line).map_err(|e| format!("line {}: {e}: {line}", n + 1))?;
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
