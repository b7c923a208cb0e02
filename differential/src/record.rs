//! What the kernel made of a run, kept as text and played again in its place.
//!
//! ```text
//! kernel 6.18.44
//! 5210 3f n w= 1:10.0.0.2/198.51.100.10/6/4000/80|198.51.100.10/10.0.0.2/6/80/4000 SYN_SENT - 120 1/0 48/0
//! 84 c1 E l~26:c633 1 SYN_RECV r 60 1/1 48/48
//! wait 2500000 .
//! ```
//! A line has the microseconds since the one before, two digits of the running digest of all frames, the class (`nerui`,
//! capitals for the reply direction, `-` for none), what left, and the connection. What left is written as its difference
//! from the frame that a router would forward unchanged; a connection's tuples are written once and have a number.
//!
//! *Life-cycle*: [`Recorder`] writes around a kernel, [`Recorded`] reads. *Limits*: the frames themselves are not kept:
//! they are made again, and the digest tells where they are not the same.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use dataplane::api::Tuple;

use crate::frame::{ETH, Ip, Side, tuple};
use crate::observe::{Class, ConnState, Exit, Observation, System};

/// The first line of a record: which kernel it is of.
///
/// # Errors
/// The kernel does not say.
pub fn head() -> io::Result<String> {
    Ok(format!("kernel {}", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()))
}

/// A record, packed.
pub fn pack(text: &str) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 9)
}

/// A packed record's text.
///
/// # Errors
/// These bytes are no packed record.
pub fn unpack(bytes: &[u8]) -> io::Result<String> {
    let text = miniz_oxide::inflate::decompress_to_vec(bytes).map_err(|e| io::Error::other(e.to_string()))?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// Letters of exits: lan, wan, the router itself.
const EXITS: [(char, Exit); 3] = [('l', Exit::Link(Side::Lan)), ('w', Exit::Link(Side::Wan)), ('o', Exit::Local)];

/// Letters of classes.
const CLASSES: [(char, Class); 5] = [
    ('n', Class::New),
    ('e', Class::Established),
    ('r', Class::Related),
    ('i', Class::Invalid),
    ('u', Class::Untracked),
];

/// A running digest of frames: FNV-1a.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Takes a frame in.
    pub fn add(&mut self, side: Side, frame: &[u8]) {
        for b in [u8::from(side == Side::Wan)].iter().chain(frame) {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Two digits of it.
    fn short(self) -> String {
        format!("{:02x}", (self.0 >> 40) & 0xff)
    }
}

/// The frame that a router makes of `frame` when it forwards it to `exit` untranslated.
fn forwarded(frame: &[u8], exit: Exit) -> Vec<u8> {
    let Exit::Link(side) = exit else { return frame.get(ETH..).unwrap_or(&[]).to_vec() };
    let mut b = frame.to_vec();
    if b.len() < ETH + 20 {
        return b;
    }
    b[..6].copy_from_slice(&side.station_mac());
    b[6..12].copy_from_slice(&side.router_mac());
    if b[ETH] >> 4 == 4 {
        b[ETH + 8] = b[ETH + 8].wrapping_sub(1);
        b[ETH + 10..ETH + 12].fill(0);
        let header = usize::from(b[ETH] & 15) * 4;
        let check = !crate::packet::sum(0, b.get(ETH..ETH + header).unwrap_or(&[]));
        b[ETH + 10..ETH + 12].copy_from_slice(&check.to_be_bytes());
    } else {
        b[ETH + 7] = b[ETH + 7].wrapping_sub(1);
    }
    b
}

/// `bytes` as a difference from `base`: `=`, `~OFFSET:HEX,…`, or `!HEX`.
fn encode(base: &[u8], bytes: &[u8]) -> String {
    if base.len() != bytes.len() {
        return format!("!{}", hex(bytes));
    }
    let mut s = String::new();
    let mut at = 0;
    while at < bytes.len() {
        if base[at] == bytes[at] {
            at += 1;
            continue;
        }
        // Up to the next two bytes that agree.
        let rest =
            (at..bytes.len()).find(|&n| base[n..].iter().take(2).eq(bytes[n..].iter().take(2))).unwrap_or(bytes.len());
        _ = write!(s, "{}{at}:{}", if s.is_empty() { "~" } else { "," }, hex(&bytes[at..rest]));
        at = rest;
    }
    if s.is_empty() { "=".into() } else { s }
}

fn decode(base: Vec<u8>, text: &str) -> Option<Vec<u8>> {
    if text == "=" {
        return Some(base);
    }
    if let Some(all) = text.strip_prefix('!') {
        return unhex(all);
    }
    let mut b = base;
    for patch in text.strip_prefix('~')?.split(',') {
        let (at, bytes) = patch.split_once(':')?;
        let (at, bytes) = (at.parse::<usize>().ok()?, unhex(bytes)?);
        b.get_mut(at..at + bytes.len())?.copy_from_slice(&bytes);
    }
    Some(b)
}

fn hex(b: &[u8]) -> String {
    b.iter().fold(String::new(), |mut s, b| {
        _ = write!(s, "{b:02x}");
        s
    })
}

fn unhex(s: &str) -> Option<Vec<u8>> {
    (0..s.len()).step_by(2).map(|n| u8::from_str_radix(s.get(n..n + 2)?, 16).ok()).collect()
}

fn tuple_text(t: &Tuple) -> String {
    format!("{}/{}/{}/{}/{}", t.src, t.dst, t.proto, t.sport, t.dport)
}

fn tuple_of(s: &str) -> Option<Tuple> {
    let mut f = s.split('/');
    let t = tuple(
        f.next()?.parse().ok()?,
        f.next()?.parse().ok()?,
        f.next()?.parse().ok()?,
        f.next()?.parse().ok()?,
        f.next()?.parse().ok()?,
    );
    Some(t)
}

fn outs(frame: &[u8], out: &[(Exit, Vec<u8>)]) -> String {
    if out.is_empty() {
        return ".".into();
    }
    let one = |(exit, bytes): &(Exit, Vec<u8>)| {
        let letter = EXITS.iter().find(|(_, e)| e == exit).map_or('?', |(c, _)| *c);
        format!("{letter}{}", encode(&forwarded(frame, *exit), bytes))
    };
    out.iter().map(one).collect::<Vec<_>>().join("+")
}

fn read_outs(frame: &[u8], text: &str) -> Option<Vec<(Exit, Vec<u8>)>> {
    if text == "." {
        return Some(Vec::new());
    }
    let one = |s: &str| {
        let exit = EXITS.iter().find(|(c, _)| s.starts_with(*c))?.1;
        Some((exit, decode(forwarded(frame, exit), s.get(1..)?)?))
    };
    text.split('+').map(one).collect()
}

/// A system whose observations are written down.
pub struct Recorder<S> {
    system: S,
    text: String,
    digest: Digest,
    last: Duration,
    numbers: HashMap<(Tuple, Tuple), usize>,
    open: bool,
}

impl<S: System> Recorder<S> {
    /// A record of `system`, beginning with `head`.
    pub fn new(system: S, head: &str) -> Self {
        let last = Duration::ZERO;
        Self {
            system,
            text: format!("{head}\n"),
            digest: Digest::default(),
            last,
            numbers: HashMap::new(),
            open: false,
        }
    }

    /// The whole record.
    pub fn finish(mut self) -> String {
        self.close();
        self.text
    }

    /// Ends the line of the last frame.
    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.text.push('\n');
        }
    }

    fn since(&mut self, at: Duration) -> u128 {
        let since = at.saturating_sub(self.last).as_micros();
        self.last = at;
        since
    }
}

impl<S: System> System for Recorder<S> {
    fn name(&self) -> String {
        self.system.name()
    }

    fn send(&mut self, at: Duration, side: Side, frame: &[u8]) -> io::Result<Observation> {
        let seen = self.system.send(at, side, frame)?;
        self.close();
        self.digest.add(side, frame);
        let letter = seen.class.and_then(|c| CLASSES.iter().find(|(_, k)| *k == c)).map_or('-', |(l, _)| *l);
        let letter = if seen.reply { letter.to_ascii_uppercase() } else { letter };
        let since = self.since(at);
        _ = write!(self.text, "{since} {} {letter} {}", self.digest.short(), outs(frame, &seen.out));
        if seen.about != Ip::of_frame(frame).and_then(|p| p.about())
            && let Some(t) = &seen.about
        {
            _ = write!(self.text, " ?{}", tuple_text(t));
        }
        self.open = true;
        Ok(seen)
    }

    fn find(&mut self, t: &Tuple) -> io::Result<Option<ConnState>> {
        let found = self.system.find(t)?;
        if let Some(c) = found.as_ref().filter(|_| self.open) {
            let next = self.numbers.len() + 1;
            let number = *self.numbers.entry((c.original, c.reply)).or_insert(next);
            _ = write!(self.text, " {number}");
            if number == next {
                _ = write!(self.text, ":{}|{}", tuple_text(&c.original), tuple_text(&c.reply));
            }
            let flags = [(c.replied, 'r'), (c.assured, 'a')].iter().filter(|f| f.0).map(|f| f.1).collect::<String>();
            let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
            _ = write!(self.text, " {} {} {}", dash(&c.state), dash(&flags), c.timeout);
            _ = write!(self.text, " {}/{} {}/{}", c.packets[0], c.packets[1], c.bytes[0], c.bytes[1]);
            if c.mark != 0 {
                _ = write!(self.text, " {}", c.mark);
            }
        }
        Ok(found)
    }

    fn now(&self) -> Duration {
        self.system.now()
    }

    fn wait(&mut self, at: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        let out = self.system.wait(at)?;
        self.close();
        let since = self.since(at);
        _ = writeln!(self.text, "wait {since} {}", outs(&[], &out));
        Ok(out)
    }
}

/// A record in the place of the system that it is of.
#[derive(Debug)]
pub struct Recorded {
    lines: Vec<String>,
    next: usize,
    at: Duration,
    digest: Digest,
    tuples: HashMap<usize, (Tuple, Tuple)>,
    conn: Option<ConnState>,
}

impl Recorded {
    /// Plays `text`, which a [`Recorder`] wrote.
    pub fn new(text: &str) -> Self {
        Self {
            lines: text.lines().skip(1).map(str::to_owned).collect(),
            next: 0,
            at: Duration::ZERO,
            digest: Digest::default(),
            tuples: HashMap::new(),
            conn: None,
        }
    }

    /// Whether all of it was played.
    pub fn is_over(&self) -> bool {
        self.next == self.lines.len()
    }

    fn wrong(&self, what: &str) -> io::Error {
        io::Error::other(format!("record, line {}: {what}", self.next + 2))
    }

    fn take(&mut self) -> io::Result<Vec<String>> {
        let line = self.lines.get(self.next).ok_or_else(|| self.wrong("it ends here; make the records again"))?;
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let micros = words.iter().find_map(|w| w.parse().ok()).ok_or_else(|| self.wrong("no time"))?;
        self.at += Duration::from_micros(micros);
        Ok(words)
    }

    fn conn(&mut self, words: &[String]) -> Option<ConnState> {
        let mut w = words.iter();
        let number = w.next()?;
        let number = match number.split_once(':') {
            Some((n, tuples)) => {
                let (n, (original, reply)) = (n.parse().ok()?, tuples.split_once('|')?);
                self.tuples.insert(n, (tuple_of(original)?, tuple_of(reply)?));
                n
            }
            None => number.parse().ok()?,
        };
        let (original, reply) = *self.tuples.get(&number)?;
        let (state, flags, timeout) = (w.next()?, w.next()?, w.next()?.parse().ok()?);
        let mut pair = || {
            let (a, b) = w.next()?.split_once('/')?;
            Some([a.parse().ok()?, b.parse().ok()?])
        };
        Some(ConnState {
            original,
            reply,
            state: if state == "-" { String::new() } else { state.clone() },
            replied: flags.contains('r'),
            assured: flags.contains('a'),
            timeout,
            packets: pair()?,
            bytes: pair()?,
            mark: w.next().map_or(Some(0), |m| m.parse().ok())?,
        })
    }

    fn observation(&mut self, frame: &[u8], words: &[String]) -> Option<Observation> {
        let [_, _, letter, out, rest @ ..] = words else { return None };
        let letter = letter.chars().next()?;
        let class = CLASSES.iter().find(|(l, _)| *l == letter.to_ascii_lowercase()).map(|(_, c)| *c);
        let (about, rest) = match rest.split_first().and_then(|(f, r)| Some((f.strip_prefix('?')?, r))) {
            Some((t, rest)) => (Some(tuple_of(t)?), rest),
            None => (Ip::of_frame(frame).and_then(|p| p.about()), rest),
        };
        self.conn = if rest.is_empty() { None } else { Some(self.conn(rest)?) };
        Some(Observation {
            class,
            reply: letter.is_ascii_uppercase(),
            out: read_outs(frame, out)?,
            about,
            ..Observation::default()
        })
    }
}

impl System for Recorded {
    fn name(&self) -> String {
        "recorded kernel".into()
    }

    fn send(&mut self, _: Duration, side: Side, frame: &[u8]) -> io::Result<Observation> {
        let words = self.take()?;
        self.digest.add(side, frame);
        if words.get(1) != Some(&self.digest.short()) {
            return Err(self.wrong("another frame than when this was recorded: make the records again"));
        }
        let seen = self.observation(frame, &words).ok_or_else(|| self.wrong("not understood"))?;
        self.next += 1;
        Ok(seen)
    }

    fn find(&mut self, _: &Tuple) -> io::Result<Option<ConnState>> {
        Ok(self.conn.clone())
    }

    /// The time of the next frame: what time it was there is what time it is here.
    fn now(&self) -> Duration {
        let micros = self.lines.get(self.next).and_then(|l| l.split(' ').next()?.parse().ok());
        self.at + Duration::from_micros(micros.unwrap_or(0))
    }

    fn wait(&mut self, _: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        let words = self.take()?;
        let out = words.get(2).and_then(|t| read_outs(&[], t)).ok_or_else(|| self.wrong("no wait"))?;
        self.next += 1;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_undone() {
        for (base, bytes) in [
            ("0011223344", "0011223344"),
            ("0011223344", "ff11223345"),
            ("0011223344", "00aabb3344"),
            ("0011", "001122"),
            ("", "1122"),
            ("1122", ""),
        ] {
            let (base, bytes) = (unhex(base).expect("hex"), unhex(bytes).expect("hex"));
            assert_eq!(decode(base.clone(), &encode(&base, &bytes)), Some(bytes));
        }
    }
}
