//! TCP connections as tables of segments, accepted and refused ones: `traces/*.trace`, through the whole gateway.
//!
//! ```text
//!   client 10.0.0.2:4000 ── lan [ gateway ] wan ── 203.0.113.5:443 server
//! ```
//! A line is a segment and what becomes of it:
//!
//! ```text
//! > SA 1000 ack 5001 len 10 win 2000 opts mss,ws7 | ESTABLISHED SYN_RECV 60 assured
//! ```
//!
//! `>` is the client's, `<` the server's. Then flags (`.` for none) and sequence number; what is left out of the rest is
//! 0 or empty. Behind the bar: its class, for INVALID with the reason; then the connection's state, the seconds that it
//! has to live, and whether it is assured; or `-` where there is no connection. Other lines: `set NAME VALUE` (a setting
//! or a timeout), `wait SECONDS`, `flush` (ends the connection), `absolute` (see below), `#` and a comment.
//!
//! Each side's sequence numbers are shifted by some amount, so that every trace also runs across the wrap; a number with
//! `=` before it stays as it is, and so do all those of a trace that is `absolute`. All of them are what Linux 6.18 does: `conntrack` shows the same states and timeouts.

#![allow(clippy::cast_possible_truncation)]

mod common;

use std::fmt::Write;
use std::path::Path;

use common::lab::*;
use common::pkt::*;
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::io::PortIdx;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

/// A line of a trace.
enum Line {
    Set(String, u64),
    Wait(u64),
    Flush,
    Absolute,
    Segment(Segment, String),
}

/// A sequence number: whose it is, so that it can be shifted.
#[derive(Clone, Copy)]
enum Number {
    Absolute(u32),
    Of(usize, u32),
}

impl Number {
    /// `text`, as a number of side `of`.
    fn read(text: &str, of: usize) -> Self {
        let number = |t: &str| t.parse::<i64>().unwrap_or_else(|_| panic!("{t} is no number")) as u32;
        text.strip_prefix('=').map_or_else(|| Self::Of(of, number(text)), |t| Self::Absolute(number(t)))
    }

    fn shifted(self, shift: [u32; 2]) -> u32 {
        match self {
            Self::Absolute(n) => n,
            Self::Of(side, n) => n.wrapping_add(shift[side]),
        }
    }
}

enum Opt {
    Bytes(Vec<u8>),
    Sack(Vec<(Number, Number)>),
}

struct Segment {
    from: usize,
    flags: u8,
    seq: Number,
    ack: Number,
    len: usize,
    win: u16,
    options: Vec<Opt>,
}

impl Segment {
    fn read(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let from = usize::from(words.next() == Some("<"));
        let flags = words.next().expect("flags").chars().map(|c| match c {
            'F' => FIN,
            'S' => SYN,
            'R' => RST,
            'P' => PSH,
            'A' => ACK,
            'U' => 0x20,
            'E' => 0x40,
            'C' => 0x80,
            '.' => 0,
            _ => panic!("{c} is no flag"),
        });
        let mut segment = Self {
            from,
            flags: flags.sum(),
            seq: Number::read(words.next().expect("a sequence number"), from),
            ack: Number::Absolute(0),
            len: 0,
            win: 0,
            options: Vec::new(),
        };
        while let Some(key) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{key} of what?"));
            match key {
                "ack" => segment.ack = Number::read(value, 1 - from),
                "len" => segment.len = value.parse().expect("a length"),
                "win" => segment.win = value.parse().expect("a window"),
                "opts" => segment.options = value.split(',').map(|o| Opt::read(o, 1 - from)).collect(),
                _ => panic!("what is {key}?"),
            }
        }
        segment
    }

    /// The frame between these ends.
    fn packet(&self, ends: &[(&str, u16); 2], shift: [u32; 2]) -> Pkt {
        let ((src, sport), (dst, dport)) = (ends[self.from], ends[1 - self.from]);
        let mut options = Vec::new();
        for o in &self.options {
            match o {
                Opt::Bytes(b) => options.extend(b),
                Opt::Sack(blocks) => {
                    options.extend([1, 1, 5, (2 + 8 * blocks.len()) as u8]);
                    for (left, right) in blocks {
                        options.extend(left.shifted(shift).to_be_bytes());
                        options.extend(right.shifted(shift).to_be_bytes());
                    }
                }
            }
        }
        let (seq, ack) = (self.seq.shifted(shift), self.ack.shifted(shift));
        let payload = vec![b'x'; self.len];
        tcp(src, sport, dst, dport, self.flags, seq, ack, &payload).tcp_with(self.win, &options)
    }
}

impl Opt {
    /// An option by its name; `x` and hexadecimal digits for any bytes. Its numbers are those of side `of`.
    fn read(text: &str, of: usize) -> Self {
        if let Some(blocks) = text.strip_prefix("sack").filter(|b| b.contains('-')) {
            let block = |b: &str| {
                let (left, right) = b.split_once('-').expect("two edges");
                (Number::read(left, of), Number::read(right, of))
            };
            return Self::Sack(blocks.split('+').map(block).collect());
        }
        Self::Bytes(match text {
            "mss" => vec![2, 4, 0x05, 0xb4],
            "sackok" => vec![4, 2],
            "ts" => vec![8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            "nop" => vec![1],
            _ => match (text.strip_prefix("ws"), text.strip_prefix('x')) {
                (Some(scale), _) => vec![3, 3, scale.parse().expect("a scale")],
                (_, Some(hex)) => (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits"))
                    .collect(),
                _ => panic!("what is {text}?"),
            },
        })
    }
}

/// A trace: its name, and its lines with their numbers.
struct Trace {
    name: String,
    lines: Vec<(usize, Line)>,
}

impl Trace {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a trace");
        let lines = text.lines().enumerate().filter_map(|(n, line)| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut words = line.split_whitespace();
            let line = match words.next()? {
                "set" => {
                    let name = words.next().expect("a name");
                    Line::Set(name.into(), words.next().expect("a value").parse().expect("a number"))
                }
                "wait" => Line::Wait(words.next().expect("a number").parse().expect("a number")),
                "flush" => Line::Flush,
                "absolute" => Line::Absolute,
                _ => {
                    let (segment, expected) = line.split_once('|').expect("a bar");
                    let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
                    Line::Segment(Segment::read(segment), expected)
                }
            };
            Some((n + 1, line))
        });
        Self { name: path.file_name().expect("a name").to_string_lossy().into(), lines: lines.collect() }
    }

    /// All traces.
    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
        let mut paths: Vec<_> = folder.read_dir().expect("the traces").map(|e| e.expect("a file").path()).collect();
        paths.retain(|p| !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("sctp_"))); // sctp_traces.rs
        paths.sort();
        paths.iter().map(|p| Self::read(p)).collect()
    }

    /// Its policy: everything passes, but for INVALID, whose reason is seen when it is dropped.
    fn policy(&self) -> PolicySpec {
        let mut spec = PolicySpec { default: Action::Accept, ..policy() };
        spec.rules = vec![rule("invalid", state(&[CtState::Invalid]), Action::Drop)];
        for (_, line) in &self.lines {
            let Line::Set(name, value) = line else { continue };
            let conntrack = &mut spec.conntrack;
            match name.as_str() {
                "be_liberal" => conntrack.tcp_be_liberal = *value != 0,
                "loose" => conntrack.tcp_loose = *value != 0,
                "max_retrans" => conntrack.tcp_max_retrans = *value as u8,
                _ => assert!(conntrack.timeouts.set(name, Nanos::from_secs(*value)), "{name} is no timeout"),
            }
        }
        spec
    }

    /// Runs it between these ends; gives what went otherwise than expected.
    fn run(&self, lab: &mut Lab, ends: &[(&str, u16); 2], shift: [u32; 2]) -> String {
        let mut wrong = String::new();
        lab.changed();
        for (n, line) in &self.lines {
            match line {
                Line::Set(..) | Line::Absolute => {}
                Line::Wait(seconds) => lab.wait(Nanos::from_secs(*seconds)),
                Line::Flush => {
                    lab.flush(Default::default());
                }
                Line::Segment(segment, expected) => {
                    let got = judged(lab, segment.from, &segment.packet(ends, shift));
                    if got != *expected {
                        let _ = writeln!(wrong, "{}:{n}: {got}, expected {expected}", self.name);
                    }
                }
            }
            lab.changed();
        }
        wrong
    }
}

/// What became of a segment, in the words of a trace.
fn judged(lab: &mut Lab, from: usize, p: &Pkt) -> String {
    let ports: [PortIdx; 2] = [LAN, WAN];
    let out = lab.send(ports[from], p);
    let changed = lab.changed();
    let word = |kind: &str| changed.iter().find_map(|c| c.strip_prefix(kind)?.split(' ').next()).unwrap_or_default();
    let class = word("class ").to_uppercase();
    let reason = word("drop ");
    assert_eq!(class == "INVALID", !reason.is_empty(), "{changed:?}");
    let passed: Vec<_> = out.iter().map(|(port, seen)| (*port, seen.tcp_flags)).collect();
    let expected = if reason.is_empty() { vec![(ports[1 - from], p.l4[13])] } else { Vec::new() };
    assert_eq!(passed, expected, "it passes unchanged, or not at all");
    let conns = lab.conns();
    assert!(conns.len() <= 1, "{conns:?}");
    let conn = conns.first().map_or("-".into(), |c| {
        format!("{} {}{}", c.state.unwrap_or("?"), c.timeout_s, if c.assured { " assured" } else { "" })
    });
    [class.as_str(), reason, &conn].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

const ENDS: [(&str, u16); 2] = [("10.0.0.2", 4000), ("203.0.113.5", 443)];
const ENDS6: [(&str, u16); 2] = [("fd00:1::2", 4000), ("2001:db8:5::5", 443)];

#[test]
fn every_segment_of_every_trace_is_judged_as_it_says() {
    let traces = Trace::all();
    assert!(traces.len() > 40, "{} traces", traces.len());
    // Across the wrap from both sides, at it, and half round the circle.
    let shifts = [[0, 0], [-1001, -5001], [-1002, -5002], [-3000, -6000], [i32::MIN, i32::MIN], [i32::MAX, -1100]];
    let mut wrong = String::new();
    for trace in &traces {
        for ends in [ENDS, ENDS6] {
            for shift in shifts {
                if shift != [0, 0] && trace.lines.iter().any(|(_, l)| matches!(l, Line::Absolute)) {
                    continue;
                }
                let mut lab = Lab::with(trace.policy(), Setup { stations: 4, ..Setup::default() });
                let differs = trace.run(&mut lab, &ends, shift.map(i32::cast_unsigned));
                if !differs.is_empty() {
                    let _ = write!(wrong, "shifted by {shift:?}:\n{differs}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn traces_are_the_same_on_any_number_of_workers() {
    for trace in Trace::all() {
        everywhere_with(&Setup { stations: 4, ..Setup::default() }, trace.policy(), |lab| {
            let wrong = trace.run(lab, &ENDS, [0, 0]);
            assert!(wrong.is_empty(), "{wrong}");
        });
    }
}

/// ```text
///   client ── two fragments of 600 and 440 bytes ── lan [ gateway ] wan ── server
/// ```
#[test]
fn a_segment_in_fragments_counts_as_long_as_it_is() {
    let (client, server) = (ENDS[0], ENDS[1]);
    let segment = |from: (&str, u16), to: (&str, u16), flags, seq, ack, len: usize| {
        tcp(from.0, from.1, to.0, to.1, flags, seq, ack, &vec![b'x'; len])
    };
    everywhere(usual(), |lab| {
        lab.passes(LAN, &segment(client, server, SYN, 1000, 0, 0), WAN);
        lab.passes(WAN, &segment(server, client, SYN | ACK, 5000, 1001, 0), LAN);
        let data = segment(client, server, ACK | PSH, 1001, 5001, 1020);
        for part in data.fragments(600) {
            lab.arrive(LAN, &addressed(LAN, &part).frame());
        }
        lab.run();
        assert_eq!(lab.collect().len(), 2);
        lab.refuses(WAN, &segment(server, client, ACK, 5001, 2022, 0), DropReason::InvalidWindow);
        lab.passes(WAN, &segment(server, client, ACK, 5001, 2021, 0), LAN);
    });
}
