//! Bringing a policy into force: compile, hand one snapshot to every worker, wait until each judges by it.
//!
//! *Life-cycle*: one [`Publisher`] per process; generations count up from 1. *Threads*: control's tokio thread; the
//! compiler runs on a helper thread, so netlink and the API go on. One publication at a time.
//! *Limits*: workers have [`COMMAND_TIMEOUT`] to take the policy over; one that does not is named, and will still take
//! it when it comes to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dataplane::api::command::Command;
use dataplane::api::policy::{Limits, Policy, PolicyError, PolicySpec};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ledger::Ledger;
use crate::workers::{COMMAND_TIMEOUT, WorkerError, Workers};

/// Why a policy did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The compiler refused it; nothing has changed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The compiler itself failed; nothing has changed.
    #[error("the policy compiler failed")]
    Compiler,
    /// A worker did not take it over.
    #[error("policy generation {generation} was sent, but {worker}")]
    Worker {
        /// The new generation.
        generation: u64,
        /// Which worker, and why.
        worker: WorkerError,
    },
}

/// A policy that is in force on every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its number.
    pub generation: u64,
    /// From the start of compiling until the last worker had it.
    pub took: Duration,
}

/// See the module.
pub struct Publisher {
    workers: Arc<Workers>,
    ledger: Arc<Mutex<Ledger>>,
    generation: AtomicU64,
    turn: tokio::sync::Mutex<()>,
}

impl Publisher {
    /// With no policy in force yet.
    pub fn new(workers: Arc<Workers>, ledger: Arc<Mutex<Ledger>>) -> Self {
        Self { workers, ledger, generation: AtomicU64::new(0), turn: tokio::sync::Mutex::new(()) }
    }

    /// The newest generation; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Brings `spec` into force under the next generation.
    ///
    /// # Errors
    /// Where it does not compile, or a worker does not take it over in time.
    pub async fn publish(&self, mut spec: PolicySpec) -> Result<Published, PublishError> {
        let _turn = self.turn.lock().await;
        let begin = Instant::now();
        let generation = self.generation() + 1;
        spec.generation = generation;
        let compiled = tokio::task::spawn_blocking(move || Policy::compile(spec)).await;
        let policy = Arc::new(compiled.map_err(|_| PublishError::Compiler)??);
        self.generation.store(generation, Relaxed);
        let counters = self.ledger.lock().open(&policy, self.workers.len());
        let failed = |worker| PublishError::Worker { generation, worker };
        self.workers
            .broadcast(|w| Command::Policy {
                policy: Arc::clone(&policy),
                rules: Arc::clone(&counters[w]),
                limits: Box::new(Limits::new(&policy, self.workers.limit_per_worker(), self.workers.len())),
            })
            .await
            .map_err(failed)?;
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        for worker in 0..self.workers.len() {
            self.workers.in_force(worker, generation, deadline).await.map_err(failed)?;
        }
        Ok(Published { generation, took: begin.elapsed() })
    }
}
