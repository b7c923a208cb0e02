//! Going through the connections after policy or addresses changed: what the new ones do not allow is ended at once, not
//! with its next packet, and whoever changed them learns how much that was.
//!
//! *Life-cycle*: [`begin`] with each reload; [`end_with_addresses`] is a task of the kernel mirror's. *Threads*: control's
//! tokio thread, one step of each worker under way at a time. *Limits*: a reload waits [`PATIENCE`]; the rest is gone
//! through while nobody waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dataplane::api::stats::CtEvent;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use crate::api::wire::Swept;
use crate::workers::{WorkerError, Workers};

/// How long a reload waits until all connections were looked at.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections have ended for one reason since start.
fn ended(workers: &Workers, event: CtEvent) -> u64 {
    workers.stats().filter_map(|s| Some(s.ct_events.get(event as usize)?.value())).fold(0, u64::wrapping_add)
}

/// A look at all connections, from before the change that it follows.
pub struct Sweep {
    workers: Arc<Workers>,
    before: [u64; 3],
    kept: AtomicU64,
    finished: AtomicBool,
}

/// What the change can end connections for.
const EVENTS: [CtEvent; 3] = [CtEvent::Denied, CtEvent::Retranslated, CtEvent::AddressGone];

/// Notes what has ended so far. From then on each connection that a packet comes for is judged anew, so this comes before
/// the change.
pub fn begin(workers: &Arc<Workers>) -> Arc<Sweep> {
    Arc::new(Sweep {
        workers: Arc::clone(workers),
        before: EVENTS.map(|event| ended(workers, event)),
        kept: AtomicU64::new(0),
        finished: AtomicBool::new(false),
    })
}

impl Sweep {
    /// Has all workers look at all their connections, and waits for them until `patience` is over; they go on all the same.
    pub async fn run(self: &Arc<Self>, patience: Duration) -> Swept {
        let all = Arc::clone(self);
        let mut task = tokio::spawn(async move {
            if let Err(e) = all.look().await {
                tracing::warn!("connections under the new policy: {e}; they are judged with their next packets");
            }
        });
        if tokio::time::timeout(patience, &mut task).await.is_err() {
            let all = Arc::clone(self);
            tokio::spawn(async move {
                let _ = task.await;
                tracing::info!("connections under the new policy: {}", all.so_far());
            });
        }
        self.so_far()
    }

    /// What is known now.
    fn so_far(&self) -> Swept {
        let since = |i: usize| ended(&self.workers, EVENTS[i]).wrapping_sub(self.before[i]);
        Swept {
            kept: self.kept.load(Relaxed),
            denied: since(0),
            retranslated: since(1),
            address_gone: since(2),
            finished: self.finished.load(Relaxed),
        }
    }

    async fn look(&self) -> Result<(), WorkerError> {
        let one = |worker| async move {
            let mut next = Some(0);
            while let Some(cursor) = next {
                let (kept, then) = self.workers.sweep(worker, cursor).await?;
                self.kept.fetch_add(kept, Relaxed);
                next = then;
            }
            Ok(())
        };
        join_all((0..self.workers.len()).map(one)).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        self.finished.store(true, Relaxed);
        Ok(())
    }
}

/// An address that its interface had and has no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

/// Addresses that went together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vanished {
    /// Which.
    pub addresses: Vec<Gone>,
    /// How many connections had ended for want of an address before: [`ended_with_addresses`].
    pub before: u64,
}

/// How many connections have ended for want of an address since start.
pub fn ended_with_addresses(workers: &Workers) -> u64 {
    ended(workers, CtEvent::AddressGone)
}

/// Ends the connections of addresses that went, as they come through `gone`, and says how many those were. Addresses that
/// go while others' connections are being ended wait together for the next turn.
pub async fn end_with_addresses(workers: Arc<Workers>, mut gone: mpsc::UnboundedReceiver<Vanished>) {
    let mut said = 0;
    while let Some(Vanished { addresses: mut all, before }) = gone.recv().await {
        // What has ended otherwise meanwhile is not theirs, and nothing is told twice.
        said = before.max(said);
        while let Ok(more) = gone.try_recv() {
            all.extend(more.addresses);
        }
        if let Err(e) = begin(&workers).look().await {
            tracing::warn!(target: "sluice::nat", "connections of addresses that are gone: {e}");
        }
        let now = ended(&workers, CtEvent::AddressGone);
        let ended = now.wrapping_sub(std::mem::replace(&mut said, now));
        let line = line(&all, ended);
        match ended {
            0 => tracing::info!(target: "sluice::nat", "{line}"),
            _ => tracing::warn!(target: "sluice::nat", "{line}"),
        }
    }
}

/// How many connections went with which addresses.
fn line(gone: &[Gone], ended: u64) -> String {
    let each: Vec<_> = gone.iter().map(|g| format!("{} of {}", g.address, g.interface)).collect();
    let connections = if ended == 1 { "connection" } else { "connections" };
    let (addresses, are) = if each.len() == 1 { ("address", "is") } else { ("addresses", "are") };
    format!("{addresses} {} {are} gone: {ended} {connections} ended", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_went_together_are_said_together() {
        let gone = |address: &str| Gone { interface: "wan".into(), address: address.parse().expect("address") };
        let one = [gone("198.51.100.2")];
        assert_eq!(line(&one, 17), "address 198.51.100.2 of wan is gone: 17 connections ended");
        let two = [gone("198.51.100.2"), gone("2001:db8::2")];
        assert_eq!(line(&two, 1), "addresses 198.51.100.2 of wan, 2001:db8::2 of wan are gone: 1 connection ended");
    }
}
