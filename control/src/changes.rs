//! Changes of connections, from the bridging thread to whoever listens.
//!
//! *Life-cycle*: one [`Hub`] per process; a [`Subscription`] per listener, whose drop takes it out again. The workers
//! report only while there is one ([`crate::workers::Workers::subscribe`]).
//! *Threads*: the bridging thread reports, control's tokio thread listens. Reporting never waits: what a listener's queue
//! has no room for is lost to it, and both it and the metrics are told how much.
//! *Limits*: [`LISTENERS`] listeners, [`QUEUE`] changes waiting for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use dataplane::api::command::{ConnEvent, ConnEventKind, ConnFilter};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Most listeners: each costs the bridging thread a look at every change.
pub const LISTENERS: usize = 32;

/// Changes that may wait for one listener.
pub const QUEUE: usize = 4096;

/// One change, as control heard of it.
#[derive(Debug)]
pub struct Change {
    /// When control heard of it.
    pub at: SystemTime,
    /// The worker that owns the connection.
    pub worker: usize,
    /// What it is.
    pub event: ConnEvent,
}

/// Which changes a listener wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// New connections.
    pub new: bool,
    /// Changes of known ones.
    pub updates: bool,
    /// Ends.
    pub destroy: bool,
    /// Of which connections, as they are after the change.
    pub filter: ConnFilter,
}

impl Wanted {
    fn wants(&self, event: &ConnEvent) -> bool {
        let kind = match event.kind {
            ConnEventKind::New => self.new,
            ConnEventKind::Update => self.updates,
            ConnEventKind::Destroy(_) => self.destroy,
        };
        kind && event.conn.is_among(&self.filter)
    }
}

struct Listener {
    id: u64,
    wanted: Wanted,
    queue: mpsc::Sender<Arc<Change>>,
    lost: Arc<AtomicU64>,
}

#[derive(Default)]
struct Listeners {
    all: Vec<Listener>,
    next_id: u64,
    closed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Hub {
    listeners: Mutex<Listeners>,
    lost: AtomicU64,
}

impl Hub {
    /// Gives a change to all who want it.
    pub fn report(&self, worker: usize, event: ConnEvent) {
        let listeners = self.listeners.lock();
        if !listeners.all.iter().any(|l| l.wanted.wants(&event)) {
            return;
        }
        let change = Arc::new(Change { at: SystemTime::now(), worker, event });
        for l in listeners.all.iter().filter(|l| l.wanted.wants(&change.event)) {
            if l.queue.try_send(Arc::clone(&change)).is_err() {
                l.lost.fetch_add(1, Relaxed);
                self.lost.fetch_add(1, Relaxed);
            }
        }
    }

    /// Changes that did not find room in a listener's queue, all listeners that ever were together.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.listeners.lock().all.len()
    }

    /// Takes in a listener; `gone` is called when it has left. `None` where there are [`LISTENERS`] already, or the hub
    /// is closed.
    pub fn subscribe(self: &Arc<Self>, wanted: Wanted, gone: Box<dyn FnOnce() + Send>) -> Option<Subscription> {
        let mut listeners = self.listeners.lock();
        if listeners.all.len() >= LISTENERS || listeners.closed {
            return None;
        }
        let (queue, changes) = mpsc::channel(QUEUE);
        let (id, lost) = (listeners.next_id, Arc::new(AtomicU64::new(0)));
        listeners.next_id += 1;
        listeners.all.push(Listener { id, wanted, queue, lost: Arc::clone(&lost) });
        Some(Subscription { id, changes, lost, hub: Arc::clone(self), gone: Some(gone) })
    }

    /// Ends all subscriptions and takes no more: the process stops.
    pub fn close(&self) {
        let mut listeners = self.listeners.lock();
        listeners.closed = true;
        listeners.all.clear();
    }
}

/// One listener's end.
pub struct Subscription {
    id: u64,
    changes: mpsc::Receiver<Arc<Change>>,
    lost: Arc<AtomicU64>,
    hub: Arc<Hub>,
    gone: Option<Box<dyn FnOnce() + Send>>,
}

impl Subscription {
    /// The next change; `None` once the process stops.
    pub async fn next(&mut self) -> Option<Arc<Change>> {
        self.changes.recv().await
    }

    /// The next change, where it is there already.
    pub fn ready(&mut self) -> Option<Arc<Change>> {
        self.changes.try_recv().ok()
    }

    /// Changes that were lost to this listener since this was last asked.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.listeners.lock().all.retain(|l| l.id != self.id);
        if let Some(gone) = self.gone.take() {
            gone();
        }
    }
}
