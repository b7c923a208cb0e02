//! The control side of the command channels: send to workers, wait for their answers.
//!
//! *Life-cycle*: [`Workers::attach`] once after the dataplane started; the bridging thread it starts ends when the
//! workers have dropped their ends of the message channel.
//! *Threads*: one std thread, `sluice-messages`, blocks on the workers' messages and sorts them: answers to dumps go to
//! whoever waits for them, retired policies to the [`Ledger`], wishes for neighbours to the kernel mirror. All else runs
//! on control's one tokio thread. What workers send back (old policies and forwarding tables) is freed on these two.
//! *Limits*: a worker answers dump and flush commands in the order it got them, so at most one is under way per worker;
//! dumps of several clients take turns chunk by chunk. Wishes for neighbours beyond [`RESOLVE_QUEUE`] are forgotten:
//! the worker asks again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use dataplane::api::command::{Command, ConnFilter, ConnView, Event, Message};
use dataplane::api::launch::{Handle, PortInfo, WorkerHandle};
use dataplane::api::stats::WorkerStats;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::api::show::proto_name;
use crate::ledger::Ledger;

/// Connections per chunk of a dump.
pub const LIST_CHUNK: usize = 256;

/// Wishes for neighbours that may wait for the kernel mirror.
pub const RESOLVE_QUEUE: usize = 1024;

/// How long a worker may take to accept or answer a command before it counts as stuck.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command did not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// The worker's loop has ended.
    #[error("worker {worker} has ended")]
    Gone {
        /// Its index.
        worker: usize,
    },
    /// The worker accepted or answered nothing for [`COMMAND_TIMEOUT`].
    #[error("worker {worker} did not answer within {} s", COMMAND_TIMEOUT.as_secs())]
    Stuck {
        /// Its index.
        worker: usize,
    },
}

/// A worker's wish: have the kernel resolve this neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResolveRequest {
    /// Interface index.
    pub interface: u16,
    /// The next hop.
    pub address: IpAddr,
}

/// What control needs of a started dataplane; the [`Handle`] itself stays with whoever stops it.
#[derive(Debug)]
pub struct Attachment {
    /// By worker index.
    pub workers: Vec<WorkerHandle>,
    /// Answers and reports of all workers.
    pub messages: Receiver<Message>,
    /// The wire port of each interface.
    pub ports: Vec<PortInfo>,
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
    /// Most connections that each worker's table holds.
    pub conntrack_limit_per_worker: usize,
}

impl From<&Handle> for Attachment {
    fn from(h: &Handle) -> Self {
        let worker =
            |w: &WorkerHandle| WorkerHandle { cpu: w.cpu, commands: w.commands.clone(), stats: Arc::clone(&w.stats) };
        Self {
            workers: h.workers.iter().map(worker).collect(),
            messages: h.messages.clone(),
            ports: h.ports.clone(),
            hugepages: h.hugepages,
            conntrack_limit_per_worker: h.conntrack_limit_per_worker,
        }
    }
}

/// An answer to a dump or flush.
enum ScanAnswer {
    Listed(Option<u64>, Vec<ConnView>),
    Flushed(Option<u64>, u64),
}

/// The receiving end of one worker's scan answers, and how many of them nobody has taken: a client that went away in
/// the middle leaves one.
struct Scan {
    answers: mpsc::UnboundedReceiver<ScanAnswer>,
    outstanding: usize,
}

/// One worker as control sees it.
struct Worker {
    cpu: usize,
    commands: Sender<Command>,
    stats: Arc<WorkerStats>,
    scan: AsyncMutex<Scan>,
    generation: watch::Receiver<u64>,
}

/// All workers.
pub struct Workers {
    workers: Vec<Worker>,
    ports: Vec<PortInfo>,
    hugepages: bool,
    limit_per_worker: usize,
}

impl Workers {
    /// Takes up the channels.
    ///
    /// # Errors
    /// Where the bridging thread cannot be started.
    pub fn attach(
        dataplane: Attachment,
        interface_names: Vec<String>,
        ledger: Arc<Mutex<Ledger>>,
    ) -> std::io::Result<(Arc<Self>, mpsc::Receiver<ResolveRequest>)> {
        let (resolve, wishes) = mpsc::channel(RESOLVE_QUEUE);
        let mut workers = Vec::new();
        let mut ends = Vec::new();
        for w in dataplane.workers {
            let (answer, answers) = mpsc::unbounded_channel();
            let (in_force, generation) = watch::channel(0);
            workers.push(Worker {
                cpu: w.cpu,
                commands: w.commands,
                stats: w.stats,
                scan: AsyncMutex::new(Scan { answers, outstanding: 0 }),
                generation,
            });
            ends.push((answer, in_force));
        }
        let bridge = Bridge { messages: dataplane.messages, ends, resolve, ledger, interface_names };
        std::thread::Builder::new().name("sluice-messages".into()).spawn(move || bridge.run())?;
        let all = Self {
            workers,
            ports: dataplane.ports,
            hugepages: dataplane.hugepages,
            limit_per_worker: dataplane.conntrack_limit_per_worker,
        };
        Ok((Arc::new(all), wishes))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is none, which a started dataplane never has.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// The CPU of each.
    pub fn cpus(&self) -> impl Iterator<Item = usize> {
        self.workers.iter().map(|w| w.cpu)
    }

    /// The counters of each.
    pub fn stats(&self) -> impl ExactSizeIterator<Item = &WorkerStats> {
        self.workers.iter().map(|w| &*w.stats)
    }

    /// The wire port of each interface.
    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    /// Whether packet memory is in huge pages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// Most connections that each worker's table holds.
    pub fn limit_per_worker(&self) -> usize {
        self.limit_per_worker
    }

    /// Sends `command` to `worker`, waiting while its channel is full.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn send(&self, worker: usize, command: Command) -> Result<(), WorkerError> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let mut command = command;
        loop {
            match self.workers[worker].commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(WorkerError::Gone { worker }),
                Err(TrySendError::Full(_)) if Instant::now() >= deadline => {
                    return Err(WorkerError::Stuck { worker });
                }
                Err(TrySendError::Full(back)) => command = back,
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends one command to every worker, made by `make` from the worker's index.
    ///
    /// # Errors
    /// The first worker's that failed; the others have got theirs all the same.
    pub async fn broadcast(&self, mut make: impl FnMut(usize) -> Command) -> Result<(), WorkerError> {
        let mut result = Ok(());
        for worker in 0..self.len() {
            result = result.and(self.send(worker, make(worker)).await);
        }
        result
    }

    /// Waits until `worker` judges by policy `generation` or a later one.
    ///
    /// # Errors
    /// Where the worker has ended, or is not there by `deadline`.
    pub async fn in_force(&self, worker: usize, generation: u64, deadline: Instant) -> Result<(), WorkerError> {
        let mut seen = self.workers[worker].generation.clone();
        match timeout_at(deadline, seen.wait_for(|&g| g >= generation)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WorkerError::Gone { worker }),
            Err(_) => Err(WorkerError::Stuck { worker }),
        }
    }

    /// Asks `worker` for the next connections from `cursor` that match; answers them and where to go on.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn list(
        &self,
        worker: usize,
        cursor: u64,
        filter: ConnFilter,
    ) -> Result<(Vec<ConnView>, Option<u64>), WorkerError> {
        let command = Command::List { cursor, filter, into: Vec::with_capacity(LIST_CHUNK) };
        match self.scan(worker, command).await? {
            ScanAnswer::Listed(next, conns) => Ok((conns, next)),
            ScanAnswer::Flushed(..) => Err(WorkerError::Stuck { worker }),
        }
    }

    /// Has `worker` end the matching connections among the next from `cursor`; answers how many and where to go on.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn flush(
        &self,
        worker: usize,
        cursor: u64,
        filter: ConnFilter,
    ) -> Result<(u64, Option<u64>), WorkerError> {
        match self.scan(worker, Command::Flush { cursor, filter }).await? {
            ScanAnswer::Flushed(next, ended) => Ok((ended, next)),
            ScanAnswer::Listed(..) => Err(WorkerError::Stuck { worker }),
        }
    }

    async fn scan(&self, worker: usize, command: Command) -> Result<ScanAnswer, WorkerError> {
        let mut scan = self.workers[worker].scan.lock().await;
        let scan = &mut *scan;
        let next = async |scan: &mut Scan| match timeout(COMMAND_TIMEOUT, scan.answers.recv()).await {
            Ok(Some(answer)) => {
                scan.outstanding -= 1;
                Ok(answer)
            }
            Ok(None) => Err(WorkerError::Gone { worker }),
            Err(_) => Err(WorkerError::Stuck { worker }),
        };
        while scan.outstanding > 0 {
            next(scan).await?;
        }
        self.send(worker, command).await?;
        scan.outstanding += 1;
        next(scan).await
    }
}

/// What the bridging thread owns.
struct Bridge {
    messages: Receiver<Message>,
    ends: Vec<(mpsc::UnboundedSender<ScanAnswer>, watch::Sender<u64>)>,
    resolve: mpsc::Sender<ResolveRequest>,
    ledger: Arc<Mutex<Ledger>>,
    interface_names: Vec<String>,
}

impl Bridge {
    fn run(self) {
        while let Ok(Message { worker, event }) = self.messages.recv() {
            let Some((answer, in_force)) = self.ends.get(worker) else { continue };
            match event {
                Event::PolicyInForce { generation, old } => {
                    if let Some((_, counters, _)) = &old {
                        self.ledger.lock().retire(worker, counters);
                    }
                    in_force.send_replace(generation);
                }
                Event::FibInForce { old } => drop(old),
                // A send fails only when control is being torn down.
                Event::Listed { next, conns } => drop(answer.send(ScanAnswer::Listed(next, conns))),
                Event::Flushed { next, ended } => drop(answer.send(ScanAnswer::Flushed(next, ended))),
                Event::Got { .. }
                | Event::Created { .. }
                | Event::Updated { .. }
                | Event::Expectations { .. }
                | Event::Conn(_)
                | Event::InvalidLog { .. } => {}
                Event::Resolve { interface, address } => {
                    let _ = self.resolve.try_send(ResolveRequest { interface, address });
                }
                Event::RuleLog { generation, rule, accepted, interface, tuple } => {
                    let ledger = self.ledger.lock();
                    let rule = ledger.rule_name(generation, rule);
                    let interface = self.interface_names.get(usize::from(interface)).map_or("?", String::as_str);
                    let action = if accepted { "accept" } else { "drop" };
                    let proto = proto_name(tuple.proto);
                    tracing::info!(target: "sluice::rule", rule, action, interface, worker, "{proto} {tuple}");
                }
            }
        }
    }
}
