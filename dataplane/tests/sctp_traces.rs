//! SCTP's state machine, told by traces: `traces/sctp_*.trace`.
//!
//! ```text
//!   10.0.0.2:4000 ── lan [ gateway ] wan ── 203.0.113.5:80
//! ```
//! A line is a packet: its direction (`>` from lan, `<` from wan), its verification tag (hexadecimal), its chunks, and
//! behind the colon what becomes of it: its class, then the connection's state, `assured` where it is, and its timeout in
//! seconds where the line gives one. `-` is no connection. `INIT=11` announces tag 11, `ABORT+T` has the T bit.
//! `wait 2.5` lets seconds pass. `--- name` begins a new story with an empty table.
//!
//! `sctp_recorded.trace` is what Linux 6.18 said to packets drawn at random; the other files are written by hand and were
//! run there too.

mod common;

use std::path::Path;
use std::time::Duration;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::ConnFilter;
use dataplane::api::policy::*;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

const TYPES: [(&str, u8); 18] = [
    ("DATA", 0),
    ("INIT", 1),
    ("INIT_ACK", 2),
    ("SACK", 3),
    ("HEARTBEAT", 4),
    ("HEARTBEAT_ACK", 5),
    ("ABORT", 6),
    ("SHUTDOWN", 7),
    ("SHUTDOWN_ACK", 8),
    ("ERROR", 9),
    ("COOKIE_ECHO", 10),
    ("COOKIE_ACK", 11),
    ("ECNE", 12),
    ("CWR", 13),
    ("SHUTDOWN_COMPLETE", 14),
    ("AUTH", 15),
    ("ASCONF", 0xc1),
    ("UNKNOWN", 0x3f),
];

/// All passes, so that nothing but tracking decides.
fn open() -> PolicySpec {
    PolicySpec { default: Action::Accept, ..policy() }
}

fn hex(s: &str) -> u32 {
    u32::from_str_radix(s, 16).expect("a hexadecimal number")
}

fn chunk_of(word: &str) -> Vec<u8> {
    let (word, tag) = word.split_once('=').map_or((word, 0), |(w, t)| (w, hex(t)));
    let (name, flags) = word.strip_suffix("+T").map_or((word, 0), |w| (w, 1));
    let kind = TYPES.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no chunk is called {name}")).1;
    if matches!(kind, 1 | 2) { init(kind, tag) } else { chunk(kind, flags, b"body of chunk") }
}

/// The class that a packet had, of the counters that it moved.
fn class_of(moved: &[String]) -> &str {
    let classes: Vec<_> = moved.iter().filter_map(|m| m.strip_prefix("class ")).collect();
    assert_eq!(classes.len(), 1, "one packet has one class: {moved:?}");
    classes[0].split(' ').next().unwrap_or_default()
}

/// Runs one line; gives what it expects and what was seen.
fn line(lab: &mut Lab, text: &str) -> (String, String) {
    let (sent, expected) = text.split_once(" : ").expect("a colon");
    let mut words = sent.split_whitespace();
    let direction = words.next().expect("a direction");
    let vtag = hex(words.next().expect("a tag"));
    let chunks: Vec<_> = words.map(chunk_of).collect();
    lab.changed();
    match direction {
        ">" => lab.send(LAN, &sctp(HOST, 4000, SERVER, 80, vtag, &chunks)),
        "<" => lab.send(WAN, &sctp(SERVER, 80, HOST, 4000, vtag, &chunks)),
        other => panic!("{other} is no direction"),
    };
    let moved = lab.changed();
    let conns = lab.conns();
    assert!(conns.len() <= 1, "{conns:?}");
    let mut seen = class_of(&moved).to_owned();
    match conns.first() {
        None => seen += " -",
        Some(conn) => {
            seen = format!("{seen} {}", conn.state.expect("SCTP has states"));
            if conn.assured {
                seen += " assured";
            }
            if expected.ends_with(|c: char| c.is_ascii_digit()) {
                seen = format!("{seen} {}", conn.timeout_s);
            }
        }
    }
    (expected.split_whitespace().collect::<Vec<_>>().join(" "), seen)
}

/// Runs a trace; gives how many packets it has.
fn run(lab: &mut Lab, name: &str, text: &str) -> usize {
    let (mut packets, mut story) = (0, Vec::new());
    for (n, l) in text.lines().enumerate() {
        let l = l.split('#').next().unwrap_or_default().trim();
        if let Some(seconds) = l.strip_prefix("wait ") {
            let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
            lab.wait(Nanos(u64::try_from(time.as_nanos()).expect("a short time")));
        } else if l.starts_with("---") {
            lab.flush(ConnFilter::default());
            story.clear();
        } else if !l.is_empty() {
            let (expected, seen) = line(lab, l);
            story.push(l);
            assert_eq!(seen, expected, "{name}:{}:\n{}", n + 1, story.join("\n"));
            packets += 1;
        }
    }
    packets
}

fn traces(recorded: bool) -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the traces' directory") {
        let path = entry.expect("a file").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
        let mine = name.starts_with("sctp_") && (name == "sctp_recorded.trace") == recorded;
        if mine {
            all.push((name, std::fs::read_to_string(&path).expect("a trace")));
        }
    }
    assert!(!all.is_empty());
    all
}

#[test]
fn states_tags_and_timeouts_are_as_the_traces_say() {
    everywhere(open(), |lab| {
        for (name, text) in traces(false) {
            assert!(run(lab, &name, &text) > 10);
        }
    });
}

#[test]
fn what_linux_said_to_packets_drawn_at_random_is_said_here() {
    for (workers, arrival) in [(1, Arrival::Rss), (2, Arrival::Anywhere)] {
        let mut lab = Lab::with(open(), Setup { workers, arrival, ..Setup::default() });
        for (name, text) in traces(true) {
            let packets = run(&mut lab, &name, &text);
            assert!(packets > 2000, "{packets} packets");
        }
    }
}
