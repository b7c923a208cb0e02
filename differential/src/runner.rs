//! A run: frames go to the reference and to every subject, and what they saw is compared.
//!
//! *Life-cycle*: a [`Run`] per scenario or seed. *Limits*: a flow's history keeps its last [`HISTORY`] packets; a flow
//! that differed once is compared no more.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::api::Tuple;

use crate::compare::{self, Difference, Kind};
use crate::explained;
use crate::frame::{ETH, Ip, Side, describe, tuple};
use crate::generator::Generator;
use crate::observe::{Class, ConnState, Exit, Observation, System};
use crate::policy::Policy;
use crate::portmap::PortMap;
use crate::scenario::{Scenario, Sent, Step};

/// Packets of one flow that a report shows.
pub const HISTORY: usize = 60;

/// Something that is compared with the reference.
struct Subject {
    system: Box<dyn System>,
    /// Flows in which it has differed.
    lost: HashSet<usize>,
    /// Why it does not take datagrams whose fragments are still coming.
    datagrams: HashMap<Datagram, &'static str>,
    /// Where it chose other ports than the reference.
    ports: PortMap,
}

impl Subject {
    fn new(system: Box<dyn System>) -> Self {
        Self { system, lost: HashSet::new(), datagrams: HashMap::new(), ports: PortMap::default() }
    }

    /// Sends `frame`, of which the reference saw `seen`, and sees it with the reference's ports; whether its connection
    /// was asked for, which it is in any case where it is `due`.
    fn send(
        &mut self,
        due: bool,
        at: Duration,
        side: Side,
        frame: &[u8],
        seen: &Observation,
    ) -> io::Result<(Observation, bool)> {
        let mut raw = self.system.send(at, side, &self.ports.outward(frame))?;
        if let Some(t) = Ip::of_frame(frame).and_then(|p| p.tuple()).filter(|_| seen.is_original()) {
            self.ports.learn_departures(&t, &seen.out, &raw.out);
        }
        let mut other = self.ports.inward(raw.clone());
        let asked =
            due || seen.class == Some(Class::New) || !compare::differences(frame, seen, &other, false).is_empty();
        if asked && let Some(t) = &seen.about {
            raw.conn = self.system.find(&self.ports.tuple(t))?;
            if let (Some(a), Some(b)) = (&seen.conn, &raw.conn) {
                self.ports.learn(a, b);
            }
            let gone = seen.conn.is_none() && raw.conn.is_none();
            other = self.ports.inward(raw);
            if gone {
                self.ports.forget(t);
            }
        }
        let datagram = datagram(frame);
        if let (Some(key), Some(reason)) = (datagram, other.reason.filter(|r| r.starts_with("fragment_"))) {
            self.datagrams.insert(key, reason);
        }
        Ok((other, asked))
    }
}

/// What a fragment has in common with the others of its datagram: source, destination and identification.
type Datagram = (IpAddr, IpAddr, u32);

/// What expectations look at: they take any source port.
const fn ends(t: &Tuple) -> (IpAddr, IpAddr, u16) {
    (t.src, t.dst, t.dport)
}

fn datagram(frame: &[u8]) -> Option<Datagram> {
    Ip::of_frame(frame).and_then(|p| Some((p.src, p.dst, p.fragment?.id)))
}

/// What a run counted.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Frames sent.
    pub packets: u64,
    /// By system, and by class and direction as it sees them.
    pub classes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Frames of which something left.
    pub passed: u64,
    /// Differences that nothing explains.
    pub differences: u64,
    /// Explained ones by name.
    pub explained: BTreeMap<&'static str, u64>,
    /// Flows seen.
    pub flows: u64,
    /// Differences by what they look like.
    pub sorts: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.passed += other.passed;
        self.differences += other.differences;
        self.flows += other.flows;
        for (system, classes) in &other.classes {
            for (class, n) in classes {
                self.count(system, class, *n);
            }
        }
        for (k, n) in &other.sorts {
            *self.sorts.entry(k.clone()).or_default() += n;
        }
        for (k, n) in &other.explained {
            *self.explained.entry(k).or_default() += n;
        }
    }

    fn count(&mut self, system: &str, class: &str, n: u64) {
        let classes = self.classes.entry(system.to_owned()).or_default();
        *classes.entry(class.to_owned()).or_default() += n;
    }
}

/// One run.
pub struct Run<'a> {
    policy: &'a Policy,
    reference: &'a mut dyn System,
    subjects: Vec<Subject>,
    flows: HashMap<Tuple, usize>,
    history: HashMap<usize, VecDeque<String>>,
    next_flow: usize,
    /// Payloads of datagrams whose fragments are still coming.
    pieces: HashMap<Datagram, Vec<u8>>,
    /// Whether every connection is asked for.
    pub ask_all: bool,
    /// What is not compared.
    pub ignore: Vec<Kind>,
    /// Where every packet is written down.
    pub log: Option<Box<dyn io::Write>>,
    /// Flows of which an INVALID packet came before there was a connection.
    spoilt: HashSet<usize>,
    /// From where to where, whatever the source port.
    spoilt_ends: HashSet<(IpAddr, IpAddr, u16)>,
    /// What it has counted.
    pub totals: Totals,
    /// Reports of differences.
    pub reports: Vec<String>,
}

impl<'a> Run<'a> {
    /// A run of `policy` through `reference` and `subjects`.
    pub fn new(policy: &'a Policy, reference: &'a mut dyn System, subjects: Vec<Box<dyn System>>) -> Self {
        let subjects = subjects.into_iter().map(Subject::new).collect();
        Self {
            policy,
            reference,
            subjects,
            flows: HashMap::new(),
            history: HashMap::new(),
            next_flow: 0,
            pieces: HashMap::new(),
            ask_all: false,
            ignore: Vec::new(),
            log: None,
            spoilt: HashSet::new(),
            spoilt_ends: HashSet::new(),
            totals: Totals::default(),
            reports: Vec::new(),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Duration {
        self.reference.now()
    }

    /// Sends one frame to all and compares; gives what the reference saw.
    ///
    /// # Errors
    /// A system is broken.
    pub fn send(&mut self, side: Side, frame: &[u8]) -> io::Result<Observation> {
        let at = self.reference.now();
        let mut seen = self.reference.send(at, side, frame)?;
        if let Some(t) = &seen.about {
            seen.conn = self.reference.find(t)?;
        }
        self.totals.packets += 1;
        self.totals.count(&self.reference.name(), &seen.class_text(), 1);
        self.totals.passed += u64::from(!seen.out.is_empty());
        let flow = self.flow(frame, &seen);
        let line = format!(
            "#{} {:.3} s {} > {} : {}{}",
            self.totals.packets,
            at.as_secs_f64(),
            side.name(),
            describe(frame.get(ETH..).unwrap_or(&[])),
            seen.class_text(),
            if seen.out.is_empty() { " dropped" } else { "" }
        );
        let mut lines = vec![line];
        let l4 = self.payload(frame, seen.class.is_some());
        for subject in &mut self.subjects {
            let due = self.ask_all || self.totals.packets.is_multiple_of(subject.system.sample());
            let (other, asked) = subject.send(due, at, side, frame, &seen)?;
            self.totals.count(&subject.system.name(), &other.class_text(), 1);
            let context = explained::Context {
                policy: self.policy,
                frame,
                side,
                l4: &l4,
                reference: &seen,
                subject: &other,
                spoilt: self.spoilt.contains(&flow) || seen.about.is_some_and(|t| self.spoilt_ends.contains(&ends(&t))),
                datagram: datagram(frame).and_then(|d| subject.datagrams.get(&d).copied()),
            };
            let mut left = Vec::new();
            let mut apart = false;
            let mut named = None;
            if subject.lost.contains(&flow) {
                continue;
            }
            for d in compare::differences(frame, &seen, &other, asked) {
                // Where the connections themselves differ, what comes after is only a consequence; and what only one of
                // them took may have left traces that do not show. Errors leave none.
                apart |= match d.kind {
                    Kind::Class => context.quote().is_none(),
                    Kind::Out | Kind::Identification => false,
                    _ => true,
                };
                if self.ignore.contains(&d.kind) {
                    continue;
                }
                match explained::name(&context, &d) {
                    Some(name) => named = Some(name),
                    None => left.push(d),
                }
            }
            if apart {
                subject.lost.insert(flow);
            }
            if let Some(name) = named {
                *self.totals.explained.entry(name).or_default() += 1;
            }
            if left.is_empty() {
                continue;
            }
            self.totals.differences += 1;
            *self.totals.sorts.entry(sort(frame, &seen, &other, &left)).or_default() += 1;
            let history = self.history.entry(flow).or_default();
            let mut report = format!("DIFFERENCE kernel / {}\n", subject.system.name());
            for line in history.iter().chain(&lines) {
                _ = writeln!(report, "    {line}");
            }
            for Difference { kind, text } in &left {
                _ = writeln!(report, "  {kind:?}: {text}");
            }
            let conn = |o: &Observation| o.conn.as_ref().map_or("none".into(), ConnState::to_string);
            _ = writeln!(report, "  kernel: {} {}", seen.class_text(), conn(&seen));
            _ = writeln!(report, "  sluice: {} {} {}", other.class_text(), conn(&other), other.reason.unwrap_or(""));
            _ = writeln!(report, "  frame: {}", frame.iter().map(|b| format!("{b:02x}")).collect::<String>());
            self.reports.push(report);
        }
        if let Some(c) = &seen.conn {
            lines[0] += &format!(" {c}");
        } else if seen.class == Some(Class::Invalid) {
            self.spoilt.insert(flow);
            self.spoilt_ends.extend(seen.about.map(|t| ends(&t)));
        }
        if let Some(log) = &mut self.log {
            writeln!(log, "{}", lines[0])?;
        }
        let history = self.history.entry(flow).or_default();
        history.extend(lines);
        while history.len() > HISTORY {
            history.pop_front();
        }
        Ok(seen)
    }

    /// Lets time pass for all.
    ///
    /// # Errors
    /// A system is broken.
    pub fn wait(&mut self, time: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        let at = self.reference.now() + time;
        let out = self.reference.wait(at)?;
        for s in &mut self.subjects {
            s.system.wait(at)?;
        }
        Ok(out)
    }

    /// Transport header and payload of the datagram that `frame` is or is part of, as far as it has come; all of it has
    /// where it was `judged`.
    fn payload(&mut self, frame: &[u8], judged: bool) -> Vec<u8> {
        let Some(p) = Ip::of_frame(frame) else { return Vec::new() };
        let part = p.payload();
        let (Some(key), Some(f)) = (datagram(frame), p.fragment) else { return part.to_vec() };
        let mut whole = self.pieces.remove(&key).unwrap_or_default();
        if whole.len() < f.offset + part.len() {
            whole.resize(f.offset + part.len(), 0);
        }
        whole[f.offset..f.offset + part.len()].copy_from_slice(part);
        if !judged {
            self.pieces.insert(key, whole.clone());
        }
        whole
    }

    /// The flow that a packet belongs to.
    fn flow(&mut self, frame: &[u8], seen: &Observation) -> usize {
        let own = seen.about.or_else(|| Ip::of_frame(frame).and_then(|p| p.about())).map(|t| either_way(&t));
        let tuples: Vec<Tuple> = match (&seen.conn, own) {
            (Some(c), own) => {
                [Some(either_way(&c.original)), Some(either_way(&c.reply)), own].into_iter().flatten().collect()
            }
            (None, own) => own.into_iter().collect(),
        };
        let flow = tuples.iter().find_map(|t| self.flows.get(t).copied()).unwrap_or_else(|| {
            self.next_flow += 1;
            self.totals.flows += 1;
            self.next_flow
        });
        for t in tuples {
            self.flows.insert(t, flow);
        }
        flow
    }

    /// Plays a scenario.
    ///
    /// # Errors
    /// A system is broken, or a line cannot be built.
    pub fn play(&mut self, scenario: &Scenario) -> io::Result<()> {
        self.ask_all = true;
        let mut sent: BTreeMap<String, Sent> = BTreeMap::new();
        for step in &scenario.steps {
            match step {
                Step::Wait(time) => drop(self.wait(*time)?),
                Step::Packet(line) => {
                    let wrong = |e| io::Error::other(format!("line {}: {e}: {}", line.number, line.text));
                    let mut out = Vec::new();
                    let frames = line.frames(&sent).map_err(wrong)?;
                    for frame in &frames {
                        let before = self.reports.len();
                        out.extend(self.send(line.side, frame)?.out);
                        for report in &mut self.reports[before..] {
                            *report = format!("line {}: {}\n{report}", line.number, line.text);
                        }
                    }
                    if let (Some(label), Some(frame)) = (&line.label, frames.first()) {
                        sent.insert(label.clone(), Sent::new(frame.get(ETH..).unwrap_or(&[]), &out));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Sends `packets` frames of `generator`.
    ///
    /// # Errors
    /// A system is broken.
    pub fn generate(&mut self, generator: &mut Generator, packets: u64) -> io::Result<()> {
        for _ in 0..packets {
            let (side, frame) = generator.next_frame();
            let seen = self.send(side, &frame)?;
            generator.seen(&seen);
        }
        Ok(())
    }
}

/// What a difference looks like, coarsely: protocol, classes, states, and what differs.
fn sort(frame: &[u8], reference: &Observation, subject: &Observation, left: &[Difference]) -> String {
    let ip = Ip::of_frame(frame);
    let kind = match &ip {
        Some(p) if p.is_icmp_error() => "icmp error".into(),
        Some(p) if p.fragment.is_some() => "fragment".into(),
        Some(p) if p.proto == crate::frame::proto::TCP => {
            let text = describe(p.bytes);
            format!("tcp {}", text.split(' ').nth(3).unwrap_or("?"))
        }
        Some(p) => format!("protocol {}", p.proto),
        None => "no packet".into(),
    };
    let one = |o: &Observation| {
        let state = o.conn.as_ref().map_or("none", |c| c.state.as_str());
        format!("{} {} {state}", o.class_text(), if o.out.is_empty() { "dropped" } else { "passed" })
    };
    let kinds: Vec<String> = left.iter().map(|d| format!("{:?}", d.kind)).collect();
    format!("{kind}: {} / {}: {}", one(reference), one(subject), kinds.join(" "))
}

/// The same for both directions of a flow.
fn either_way(t: &Tuple) -> Tuple {
    let icmp = t.is_icmp();
    let (a, b) = ((t.src, t.sport), (t.dst, if icmp { t.sport } else { t.dport }));
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    tuple(a.0, b.0, t.proto, a.1, b.1)
}
