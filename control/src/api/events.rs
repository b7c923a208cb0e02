//! The stream of changes of connections.
//!
//! *Life-cycle*: a subscription per request; it ends with its reader, or with the process. *Limits*: changes wait in the
//! subscription's queue, not here: a reader that does not keep up loses some, and a line of the stream says how many.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::conntrack::{NDJSON, names, write_line};
use super::{FilterQuery, Refusal, Shared, wire};
use crate::changes::{Change, Subscription, Wanted};
use crate::gateway::Gateway;

/// Most changes that are written at once.
const CHUNK: usize = 256;

/// How long a loss may wait to be told where nothing else happens.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Kinds of changes as the path names them.
const KINDS: [&str; 3] = ["new", "updates", "destroy"];

pub async fn events(
    State(g): Shared,
    Path(kinds): Path<String>,
    Query(filter): FilterQuery,
) -> Result<Response, Refusal> {
    let filter = filter.to_filter().map_err(Refusal::bad_request)?;
    if let Some(unknown) = kinds.split(',').find(|k| !KINDS.contains(k)) {
        return Err(Refusal::bad_request(format!("there are no {unknown} events: the kinds are {}", KINDS.join(", "))));
    }
    let [new, updates, destroy] = KINDS.map(|k| kinds.split(',').any(|kind| kind == k));
    // Before: what is lost while it is taken in is lost to it.
    let lost_before = lost_by_workers(&g);
    let subscription = g.workers.subscribe(Wanted { new, updates, destroy, filter }).await?;
    let Some(subscription) = subscription else {
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "too many clients listen already".into()));
    };
    let stream = Stream { g, subscription, lost_before };
    let stream = futures_util::stream::unfold(stream, |mut stream| async {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(stream)).into_response())
}

struct Stream {
    g: Arc<Gateway>,
    subscription: Subscription,
    /// What the workers had lost when that was last told.
    lost_before: u64,
}

impl Stream {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut chunk = Vec::new();
            let first = timeout(TELL_AFTER, self.subscription.next()).await;
            // What is lost was lost before what is still in the queue, as far as that can be told.
            let by_workers = lost_by_workers(&self.g);
            let lost = self.subscription.lost() + by_workers.saturating_sub(self.lost_before);
            self.lost_before = by_workers;
            if lost > 0 {
                write_line(&mut chunk, &wire::Report::Lost { lost });
            }
            if let Ok(first) = first {
                let first = first?;
                self.write(&mut chunk, &first);
                for _ in 1..CHUNK {
                    let Some(change) = self.subscription.ready() else { break };
                    self.write(&mut chunk, &change);
                }
            }
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
        }
    }

    fn write(&self, chunk: &mut Vec<u8>, change: &Change) {
        let config = self.g.config();
        let time = change.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // A microsecond is what conntrack-tools print, and what a double holds.
        let time = (time.as_secs_f64() * 1e6).round() / 1e6;
        write_line(chunk, &wire::Report::new(change, time, &names(&config, change.at)));
    }
}

/// Changes that did not find room on their way to control.
fn lost_by_workers(g: &Gateway) -> u64 {
    g.workers.stats().map(|s| s.events_lost.value()).sum()
}
