//! A dataplane without packets, and a gateway around it.
//!
//! [`Fake`] starts threads that answer every command as a worker would and keep what they were told; tests hand them
//! connections to list and events to report. [`Lab`] runs the whole of `sluiced` around it, from the YAML on, but for
//! DPDK and the kernel.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use control::client::{ClientError, cli};
use control::daemon::{self, Dataplane, Listeners};
use control::workers::Attachment;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use dataplane::api::command::{Command, ConnSpec, ConnView, CreateError, Event, ExpectView, Message, SCAN_PER_COMMAND};
use dataplane::api::launch::{Link, PortInfo, WorkerHandle};
use dataplane::api::policy::{Limits, Policy};
use dataplane::api::rules::RuleCounters;
use dataplane::api::stats::{CtEvent, WorkerStats};
use dataplane::api::{Fib, FibSpec, NeighbourUpdate, SavedSides, Tuple};
use parking_lot::Mutex;

/// What one fake worker was told and is to answer.
#[derive(Default)]
pub struct Seen {
    pub policy: Option<(Arc<Policy>, Arc<RuleCounters>, Box<Limits>)>,
    pub fib: Option<Arc<Fib>>,
    pub fibs: usize,
    pub neighbours: Vec<NeighbourUpdate>,
    pub conns: Vec<ConnView>,
    pub expectations: Vec<ExpectView>,
    /// What FTP's helper knows of the connections with these original tuples.
    pub sides: Vec<(Tuple, Box<SavedSides>)>,
    /// Connections that it was told to make, whether or not it did.
    pub created: Vec<ConnSpec>,
    /// Sizes of the commands that brought them.
    pub batches: Vec<usize>,
    /// Connections, by their original tuples, that the next look ends, and why.
    pub doomed: Vec<(Tuple, CtEvent)>,
    /// How many steps of such looks there were.
    pub sweeps: usize,
    /// Each word on whether to report changes.
    pub subscribed: Vec<bool>,
}

/// The fake's side of the channels.
pub struct Fake {
    pub seen: Vec<Arc<Mutex<Seen>>>,
    messages: Sender<Message>,
    commands: Vec<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

impl Fake {
    /// Starts `workers` threads for `interfaces` interfaces.
    pub fn start(workers: usize, interfaces: usize) -> (Attachment, Self) {
        let (messages, receiver) = unbounded();
        let (mut handles, mut seen, mut threads, mut commands) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for worker in 0..workers {
            // Room for few commands, so that senders meet a full channel.
            let (sender, inbox) = bounded(2);
            let stats = Arc::new(WorkerStats::new(interfaces));
            let mine = Arc::new(Mutex::new(Seen::default()));
            handles.push(WorkerHandle { cpu: worker + 1, commands: sender.clone(), stats: Arc::clone(&stats) });
            seen.push(Arc::clone(&mine));
            commands.push(sender);
            let out = messages.clone();
            threads.push(std::thread::spawn(move || work(worker, &inbox, &out, &mine, &stats)));
        }
        let port = |i: usize| PortInfo {
            driver: "net_fake".into(),
            mac: [2, 0, 0, 0, 0, u8::try_from(i).expect("few interfaces")],
            rss: true,
            rx_checksums: false,
        };
        let attachment = Attachment {
            workers: handles,
            messages: receiver,
            ports: (0..interfaces).map(port).collect(),
            hugepages: false,
            conntrack_limit_per_worker: 1000,
        };
        (attachment, Self { seen, messages, commands, threads })
    }

    /// Reports `event` as worker `worker`.
    pub fn report(&self, worker: usize, event: Event) {
        self.messages.send(Message { worker, event }).expect("control listens");
    }

    /// Ends the threads.
    pub fn stop(self) {
        for c in &self.commands {
            let _ = c.send(Command::Stop);
        }
        for t in self.threads {
            t.join().expect("a fake worker failed");
        }
    }
}

fn work(worker: usize, inbox: &Receiver<Command>, out: &Sender<Message>, seen: &Mutex<Seen>, stats: &WorkerStats) {
    let say = |event| drop(out.send(Message { worker, event }));
    while let Ok(command) = inbox.recv() {
        let mut me = seen.lock();
        match command {
            Command::Policy { policy, rules, limits } => {
                let generation = policy.spec().generation;
                let old = me.policy.replace((policy, rules, limits));
                say(Event::PolicyInForce { generation, old });
            }
            Command::Fib(fib) => {
                me.fibs += 1;
                let old = me.fib.replace(fib).unwrap_or_else(|| Arc::new(Fib::build(FibSpec::default())));
                say(Event::FibInForce { old });
            }
            Command::Neighbour(update) => me.neighbours.push(update),
            Command::List { cursor, filter, mut into } => {
                assert!(into.is_empty() && into.capacity() > 0, "a list command brings an empty vector with room");
                let room = into.capacity();
                let mut at = usize::try_from(cursor).expect("cursor");
                let end = me.conns.len().min(at + SCAN_PER_COMMAND as usize);
                while at < end && into.len() < room {
                    if me.conns[at].is_among(&filter) {
                        into.push(me.conns[at].clone());
                    }
                    at += 1;
                }
                let next = (at < me.conns.len()).then_some(at as u64);
                say(Event::Listed { next, conns: into });
            }
            Command::Flush { cursor, filter } => {
                let from = usize::try_from(cursor).expect("cursor");
                let end = me.conns.len().min(from + SCAN_PER_COMMAND as usize);
                let before = me.conns.len();
                let mut i = 0;
                me.conns.retain(|c| {
                    i += 1;
                    !((from..end).contains(&(i - 1)) && c.is_among(&filter))
                });
                let ended = before - me.conns.len();
                let next = (end < before).then_some((end - ended) as u64);
                say(Event::Flushed { next, ended: ended as u64 });
            }
            Command::Sweep { cursor } => {
                me.sweeps += 1;
                let from = usize::try_from(cursor).expect("cursor");
                let before = me.conns.len();
                let end = before.min(from + SCAN_PER_COMMAND as usize);
                let (mut kept, mut i) = (0, 0);
                let doomed = std::mem::take(&mut me.doomed);
                me.conns.retain(|c| {
                    i += 1;
                    let looked_at = (from..end).contains(&(i - 1));
                    let ends = doomed.iter().find(|(original, _)| looked_at && *original == c.original);
                    ends.inspect(|(_, event)| stats.ct_event(*event));
                    kept += u64::from(looked_at && ends.is_none());
                    ends.is_none()
                });
                me.doomed = doomed;
                let ended = before - me.conns.len();
                say(Event::Swept { next: (end < before).then_some((end - ended) as u64), kept });
            }
            Command::Get { tuple } => {
                let conn = me.conns.iter().find(|c| c.original == tuple || c.reply == tuple).cloned();
                say(Event::Got { conn });
            }
            Command::Sides { tuple, mut into } => {
                let kept = me.sides.iter().find(|(original, _)| *original == tuple);
                if let Some((_, sides)) = kept {
                    into.clone_from(sides);
                }
                say(Event::Sides { found: kept.is_some(), sides: into });
            }
            Command::Create { conns, mut refused } => {
                assert!(refused.is_empty() && refused.capacity() >= conns.len(), "there is room for all refusals");
                me.batches.push(conns.len());
                for (n, spec) in conns.iter().enumerate() {
                    me.created.push(spec.clone());
                    if me.conns.iter().any(|c| c.original == spec.original) {
                        refused.push((n, CreateError::Exists));
                    } else {
                        me.conns.push(view_of(spec));
                    }
                }
                say(Event::Created { made: (conns.len() - refused.len()) as u64, refused, conns });
            }
            Command::Delete { cursor, filter, mut into } => {
                let room = into.capacity();
                let mut at = usize::try_from(cursor).expect("cursor");
                let mut left = SCAN_PER_COMMAND;
                for conn in me.conns.split_off(at) {
                    let looks = left > 0 && into.len() < room;
                    left -= u32::from(looks);
                    if looks && conn.is_among(&filter) {
                        into.push(conn);
                    } else {
                        at += usize::from(looks);
                        me.conns.push(conn);
                    }
                }
                let next = (at < me.conns.len()).then_some(at as u64);
                say(Event::Listed { next, conns: into });
            }
            Command::Update { cursor, filter, change, mut into } => {
                let room = into.capacity();
                let mut at = usize::try_from(cursor).expect("cursor");
                let end = me.conns.len().min(at + SCAN_PER_COMMAND as usize);
                while at < end && into.len() < room {
                    let conn = &mut me.conns[at];
                    if conn.is_among(&filter) {
                        let (mask, value) = change.mark.unwrap_or((0, 0));
                        conn.mark = conn.mark & !mask | value & mask;
                        conn.timeout_s = change.timeout_s.unwrap_or(conn.timeout_s);
                        conn.assured |= change.assured;
                        into.push(conn.clone());
                    }
                    at += 1;
                }
                let next = (at < me.conns.len()).then_some(at as u64);
                say(Event::Listed { next, conns: into });
            }
            Command::Expectations { mut into } => {
                let room = into.capacity();
                into.extend(me.expectations.iter().take(room).cloned());
                say(Event::Expectations { expectations: into });
            }
            Command::Subscribe(on) => me.subscribed.push(on),
            Command::Stop => return,
        }
        stats.conntrack_entries.set(me.conns.len() as u64);
    }
}

/// The connection that a worker makes of `spec`.
fn view_of(spec: &ConnSpec) -> ConnView {
    ConnView {
        original: spec.original,
        reply: spec.reply,
        state: spec.state,
        timeout_s: spec.timeout_s,
        replied: spec.replied,
        assured: spec.assured,
        expected: spec.expected,
        mark: spec.mark,
        helper: spec.helper,
        timeout_policy: spec.timeout_policy,
        age_ms: spec.age_ms,
        packets: spec.packets,
        bytes: spec.bytes,
        interface: spec.interface,
        local: spec.local,
        egress: [None, None],
    }
}

/// A masqueraded TCP connection from 192.0.2.10, port `sport`.
pub fn tcp_conn(sport: u16) -> ConnView {
    let ip = |s: &str| s.parse::<IpAddr>().expect("address");
    ConnView {
        original: Tuple { src: ip("192.0.2.10"), dst: ip("203.0.113.5"), proto: 6, sport, dport: 443, ct_zone: 0 },
        reply: Tuple {
            src: ip("203.0.113.5"),
            dst: ip("198.51.100.2"),
            proto: 6,
            sport: 443,
            dport: sport,
            ct_zone: 0,
        },
        state: Some("ESTABLISHED"),
        timeout_s: 431_999,
        replied: true,
        assured: true,
        expected: false,
        mark: 0,
        helper: None,
        timeout_policy: 0,
        age_ms: 1000,
        packets: [10, 8],
        bytes: [1000, 8000],
        interface: 0,
        local: false,
        egress: [Some(1), Some(0)],
    }
}

/// A running gateway without packets.
pub struct Lab {
    pub fake: Fake,
    pub dir: PathBuf,
    pub metrics: SocketAddr,
    pub stats: Vec<Arc<WorkerStats>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Starts a gateway with `rules`, the YAML lines of `policy.rules`.
    pub fn start(workers: usize, rules: &str) -> Self {
        Self::start_with(workers, rules, false)
    }

    /// The same; with `twins`, `lan` and `wan` must be links of this thread's network namespace.
    pub fn start_with(workers: usize, rules: &str, twins: bool) -> Self {
        let number = LABS.fetch_add(1, Relaxed);
        let dir = std::env::temp_dir().join(format!("sluice-lab-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let metrics = free.local_addr().expect("address");
        drop(free);
        let (attachment, fake) = Fake::start(workers, 2);
        let stats = attachment.workers.iter().map(|w| Arc::clone(&w.stats)).collect();
        let mut lab = Self { fake, dir, metrics, stats, stop: None, thread: None };
        lab.write(rules);
        let config = control::config::load(&lab.file()).expect("the lab's configuration is right");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        lab.stop = Some(stop);
        lab.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listeners = Listeners::bind(&config).await.map_err(|e| e.to_string())?;
                let link = Box::new(|i| Some(Link { up: i == 0, speed_mbps: 10_000 }));
                let dataplane = Dataplane { attachment, link, dpdk_version: "none".into(), twins };
                let stop = async { drop(stopped.await) };
                daemon::run(listeners, config, dataplane, |_| {}, stop).await.map_err(|e| e.to_string())
            })
        }));
        lab.ctl(&["status", "--wait", "10"]).expect("the lab comes up");
        lab
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("sluice.yaml")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sluice.sock")
    }

    /// Writes the configuration with `rules`.
    pub fn write(&self, rules: &str) {
        std::fs::write(self.file(), self.yaml(rules)).expect("the file can be written");
    }

    /// The configuration with `rules`.
    pub fn yaml(&self, rules: &str) -> String {
        format!(
            r#"dataplane: {{workers: [{workers}], hugepages: off}}
interfaces:
  lan: {{device: "net_null0", zone: lan, addresses: [192.0.2.1/24]}}
  wan: {{device: "net_null1", zone: wan, addresses: [198.51.100.2/30]}}
routes:
  - {{to: 0.0.0.0/0, via: 198.51.100.1}}
conntrack: {{max: 2000, reserve: 20}}
sets:
  mgmt: {{type: prefix, elements: [10.0.0.0/8, 192.0.2.128/25]}}
nat:
  - {{name: out, type: masquerade, from: lan, to: wan}}
policy:
  default: drop
  rules:
{rules}
metrics: {{listen: "{metrics}"}}
control: {{socket: {socket}}}
"#,
            workers = (1..=self.fake.seen.len()).map(|w| w.to_string()).collect::<Vec<_>>().join(", "),
            metrics = self.metrics,
            socket = self.socket().display(),
        )
    }

    /// Runs sluicectl in this process and answers what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, ClientError> {
        self.ctl_with_notes(arguments).map(|(out, _)| out)
    }

    /// The same, with what it writes to standard error where it succeeds.
    pub fn ctl_with_notes(&self, arguments: &[&str]) -> Result<(String, String), ClientError> {
        let socket = self.socket();
        let all =
            ["sluicectl", "--socket", socket.to_str().expect("path")].into_iter().chain(arguments.iter().copied());
        let cli = cli::Cli::try_parse_from(all).map_err(|e| ClientError::Argument(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        runtime.block_on(cli::run(cli, &mut out, &mut notes))?;
        Ok((String::from_utf8(out).expect("text"), String::from_utf8(notes).expect("text")))
    }

    /// What the metrics address answers.
    pub fn scrape(&self) -> String {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.metrics).expect("metrics are served");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        text
    }

    /// The value of one line of the metrics, named with its labels.
    pub fn metric(&self, line: &str) -> Option<f64> {
        let text = self.scrape();
        text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    /// Stops the gateway as a signal would.
    pub fn stop(mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("started").join().expect("the gateway's thread");
        assert_eq!(ended, Ok(()));
        assert!(!self.socket().exists(), "the socket's file is gone");
        self.fake.stop();
        std::fs::remove_dir_all(&self.dir).expect("the lab's folder");
    }
}

/// Waits until `done` holds, at most 5 s.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come about within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
