//! The control side of the command channels: send to workers, wait for their answers.
//!
//! *Life-cycle*: [`Workers::attach`] once after the dataplane started; the bridging thread it starts ends when the
//! workers have dropped their ends of the message channel.
//! *Threads*: one std thread, `sluice-messages`, blocks on the workers' messages and sorts them ([`bridge`]). All else
//! runs on control's one tokio thread. What workers send back (old policies and forwarding tables) is freed on these two.
//! *Limits*: a worker answers commands about its connections in the order it got them, so one is under way
//! per worker, and no other's; dumps of several clients take turns chunk by chunk.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use dataplane::api::command::{
    CREATE_PER_COMMAND, Command, ConnChange, ConnFilter, ConnSpec, ConnView, CreateError, ExpectView, Message, home_of,
};
use dataplane::api::launch::{Handle, PortInfo, WorkerHandle};
use dataplane::api::stats::WorkerStats;
use dataplane::api::{SavedSides, Tuple};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::changes::{Hub, Subscription, Wanted};
use crate::ledger::Ledger;
use bridge::{Answer, Bridge};

mod bridge;

/// Connections that one step of a walk reports.
pub const LIST_CHUNK: usize = 256;

/// Wishes for neighbours that may wait for the kernel mirror; those beyond are forgotten, and the worker asks again.
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

/// What became of connections that were to be made: how many were, and which were not and why, by their place.
pub type Made = (u64, Vec<(usize, CreateError)>);

/// The receiving end of one worker's answers, and how many of them nobody has taken: a client that went away in the
/// middle leaves some.
struct Talk {
    answers: mpsc::UnboundedReceiver<Answer>,
    outstanding: usize,
}

/// One worker as control sees it.
struct Worker {
    cpu: usize,
    commands: Sender<Command>,
    stats: Arc<WorkerStats>,
    talk: AsyncMutex<Talk>,
    generation: watch::Receiver<u64>,
}

/// All workers.
pub struct Workers {
    workers: Vec<Worker>,
    ports: Vec<PortInfo>,
    hugepages: bool,
    limit_per_worker: usize,
    changes: Arc<Hub>,
    /// Whether the workers were told to report changes; `None` where not all of them have got the last word.
    told: AsyncMutex<Option<bool>>,
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
                talk: AsyncMutex::new(Talk { answers, outstanding: 0 }),
                generation,
            });
            ends.push((answer, in_force));
        }
        let changes = Arc::new(Hub::default());
        let heard = Arc::clone(&changes);
        let bridge = Bridge { messages: dataplane.messages, ends, resolve, ledger, interface_names, changes: heard };
        std::thread::Builder::new().name("sluice-messages".into()).spawn(move || bridge.run())?;
        let all = Self {
            workers,
            ports: dataplane.ports,
            hugepages: dataplane.hugepages,
            limit_per_worker: dataplane.conntrack_limit_per_worker,
            changes,
            told: AsyncMutex::new(Some(false)),
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
        self.walk(worker, Command::List { cursor, filter, into: Vec::with_capacity(LIST_CHUNK) }).await
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
        match self.ask(worker, Command::Flush { cursor, filter }).await? {
            Answer::Flushed(next, ended) => Ok((ended, next)),
            _ => Err(WorkerError::Stuck { worker }),
        }
    }

    /// Has `worker` judge the next connections from `cursor` again; answers how many stay, and where to go on.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn sweep(&self, worker: usize, cursor: u64) -> Result<(u64, Option<u64>), WorkerError> {
        match self.ask(worker, Command::Sweep { cursor }).await? {
            Answer::Swept(next, kept) => Ok((kept, next)),
            _ => Err(WorkerError::Stuck { worker }),
        }
    }

    /// Has `worker` end the matching connections among the next from `cursor`; answers them as they were just before, and
    /// where to go on.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn delete(
        &self,
        worker: usize,
        cursor: u64,
        filter: ConnFilter,
    ) -> Result<(Vec<ConnView>, Option<u64>), WorkerError> {
        self.walk(worker, Command::Delete { cursor, filter, into: Vec::with_capacity(LIST_CHUNK) }).await
    }

    /// Has `worker` change the matching connections among the next from `cursor`; answers them with the change, and where
    /// to go on.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn update(
        &self,
        worker: usize,
        cursor: u64,
        filter: ConnFilter,
        change: ConnChange,
    ) -> Result<(Vec<ConnView>, Option<u64>), WorkerError> {
        self.walk(worker, Command::Update { cursor, filter, change, into: Vec::with_capacity(LIST_CHUNK) }).await
    }

    /// One step of a walk that reports what it comes by.
    async fn walk(&self, worker: usize, command: Command) -> Result<(Vec<ConnView>, Option<u64>), WorkerError> {
        match self.ask(worker, command).await? {
            Answer::Listed(next, conns) => Ok((conns, next)),
            _ => Err(WorkerError::Stuck { worker }),
        }
    }

    /// The connection that has `tuple` in either direction, and the worker that owns it.
    ///
    /// # Errors
    /// Where a worker has ended or is stuck.
    pub async fn get(&self, tuple: Tuple) -> Result<Option<(usize, ConnView)>, WorkerError> {
        for worker in 0..self.len() {
            match self.ask(worker, Command::Get { tuple }).await? {
                Answer::Got(Some(conn)) => return Ok(Some((worker, conn))),
                Answer::Got(None) => {}
                _ => return Err(WorkerError::Stuck { worker }),
            }
        }
        Ok(None)
    }

    /// What FTP's helper knows of the connection of `worker` that has `tuple`; `None` where there is none with that helper.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn sides(&self, worker: usize, tuple: Tuple) -> Result<Option<Box<SavedSides>>, WorkerError> {
        match self.ask(worker, Command::Sides { tuple, into: Box::default() }).await? {
            Answer::Sides(sides) => Ok(sides),
            _ => Err(WorkerError::Stuck { worker }),
        }
    }

    /// Puts `conns` into the tables of the workers where they belong, [`CREATE_PER_COMMAND`] at a time.
    ///
    /// # Errors
    /// Where a worker has ended or is stuck; what came before is in the tables.
    pub async fn create(&self, conns: Vec<ConnSpec>) -> Result<Made, WorkerError> {
        let mut home: Vec<Vec<(usize, ConnSpec)>> = vec![Vec::new(); self.len()];
        for (place, conn) in conns.into_iter().enumerate() {
            home[home_of(&conn.original, self.len())].push((place, conn));
        }
        let (mut all, mut none) = (0, Vec::new());
        for (worker, mut conns) in home.into_iter().enumerate() {
            while !conns.is_empty() {
                let batch = conns.drain(..conns.len().min(CREATE_PER_COMMAND));
                let (places, conns): (Vec<_>, Vec<_>) = batch.unzip();
                let command = Command::Create { refused: Vec::with_capacity(conns.len()), conns };
                let Answer::Created(made, refused) = self.ask(worker, command).await? else {
                    return Err(WorkerError::Stuck { worker });
                };
                all += made;
                none.extend(refused.into_iter().filter_map(|(n, why)| Some((*places.get(n)?, why))));
            }
        }
        none.sort_unstable_by_key(|(place, _)| *place);
        Ok((all, none))
    }

    /// The expectations of `worker`'s connections, at most `most`.
    ///
    /// # Errors
    /// Where the worker has ended or is stuck.
    pub async fn expectations(&self, worker: usize, most: usize) -> Result<Vec<ExpectView>, WorkerError> {
        match self.ask(worker, Command::Expectations { into: Vec::with_capacity(most) }).await? {
            Answer::Expectations(all) => Ok(all),
            _ => Err(WorkerError::Stuck { worker }),
        }
    }

    /// What becomes of changes that nobody could take.
    pub fn changes(&self) -> &Hub {
        &self.changes
    }

    /// Reports the changes that are `wanted` from now on, until the subscription is dropped. The workers report while
    /// anybody listens; `None` where too many do already.
    ///
    /// # Errors
    /// Where a worker has ended or is stuck.
    pub async fn subscribe(self: &Arc<Self>, wanted: Wanted) -> Result<Option<Subscription>, WorkerError> {
        let workers = Arc::clone(self);
        let last_gone = move || {
            // Without a runtime control is being torn down, and the workers with it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { workers.settle().await });
            }
        };
        let Some(subscription) = self.changes.subscribe(wanted, Box::new(last_gone)) else { return Ok(None) };
        self.settle().await?;
        Ok(Some(subscription))
    }

    /// Tells the workers whether anybody listens, where that is news to them; returns when they know.
    async fn settle(&self) -> Result<(), WorkerError> {
        let mut told = self.told.lock().await;
        let listened = self.changes.listeners() > 0;
        if *told != Some(listened) {
            *told = None;
            self.broadcast(|_| Command::Subscribe(listened)).await?;
            if listened {
                // Commands are done in order: who answers the next one reports already.
                let nowhere = Ipv4Addr::UNSPECIFIED.into();
                let tuple = Tuple { src: nowhere, dst: nowhere, proto: 0, sport: 0, dport: 0, ct_zone: 0 };
                self.get(tuple).await?;
            }
            *told = Some(listened);
        }
        Ok(())
    }

    async fn ask(&self, worker: usize, command: Command) -> Result<Answer, WorkerError> {
        let mut talk = self.workers[worker].talk.lock().await;
        self.begin(worker, &mut talk, command).await?;
        self.answer(worker, &mut talk).await
    }

    /// Sends a command once all that nobody took is out of the way.
    async fn begin(&self, worker: usize, talk: &mut Talk, command: Command) -> Result<(), WorkerError> {
        while talk.outstanding > 0 {
            self.answer(worker, talk).await?;
        }
        self.send(worker, command).await?;
        talk.outstanding += 1;
        Ok(())
    }

    async fn answer(&self, worker: usize, talk: &mut Talk) -> Result<Answer, WorkerError> {
        match timeout(COMMAND_TIMEOUT, talk.answers.recv()).await {
            Ok(Some(answer)) => {
                talk.outstanding -= 1;
                Ok(answer)
            }
            Ok(None) => Err(WorkerError::Gone { worker }),
            Err(_) => Err(WorkerError::Stuck { worker }),
        }
    }
}
