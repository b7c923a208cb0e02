//! The connection tables: listed, counted, flushed in bounded chunks, one worker after the other.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dataplane::api::command::ConnFilter;
use tokio::sync::mpsc;

use super::{FilterQuery, Refusal, Shared, wire};
use crate::gateway::Gateway;
use crate::workers::WorkerError;

/// Chunks of text that may wait for a slow client; then the dump waits, and no worker with it.
const CHUNKS_AHEAD: usize = 4;

/// One JSON object per line.
pub const NDJSON: &str = "application/x-ndjson";

pub async fn list(State(g): Shared, Query(filter): FilterQuery) -> Result<Response, Refusal> {
    let filter = filter.to_filter().map_err(Refusal::bad_request)?;
    let (text, lines) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
    tokio::spawn(dump(g, filter, text));
    let stream = futures_util::stream::unfold(lines, |mut lines| async {
        let chunk = lines.recv().await?;
        Some((Ok::<_, Infallible>(chunk), lines))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(stream)).into_response())
}

/// Writes the matching connections of all workers to `text`; gives up when its reader is gone. A worker that fails in
/// the middle ends the dump with an error line.
async fn dump(g: Arc<Gateway>, filter: ConnFilter, text: mpsc::Sender<Bytes>) {
    let config = g.config();
    let interface = |i: u16| config.interfaces.get(usize::from(i)).map(|i| i.name.clone());
    for worker in 0..g.workers.len() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let mut chunk = Vec::new();
            match g.workers.list(worker, from, filter).await {
                Ok((conns, next)) => {
                    for view in &conns {
                        write_line(&mut chunk, &wire::Conn::new(view, worker, interface));
                    }
                    cursor = next;
                }
                Err(e) => {
                    write_line(&mut chunk, &super::ErrorBody { error: e.to_string() });
                    drop(text.send(chunk.into()).await);
                    return;
                }
            }
            if text.is_closed() || (!chunk.is_empty() && text.send(chunk.into()).await.is_err()) {
                return;
            }
        }
    }
}

fn write_line(chunk: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Invariant: these types have string keys only and a vector takes all that is written.
    if serde_json::to_writer(&mut *chunk, value).is_ok() {
        chunk.push(b'\n');
    }
}

pub async fn count(State(g): Shared, Query(filter): FilterQuery) -> Result<Json<wire::Count>, Refusal> {
    let all = filter == wire::FilterSpec::default();
    let filter = filter.to_filter().map_err(Refusal::bad_request)?;
    if all {
        return Ok(Json(wire::Count { connections: g.workers.stats().map(|s| s.conntrack_entries.value()).sum() }));
    }
    let mut connections = 0;
    for worker in 0..g.workers.len() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let (conns, next) = g.workers.list(worker, from, filter).await?;
            connections += conns.len() as u64;
            cursor = next;
        }
    }
    Ok(Json(wire::Count { connections }))
}

pub async fn flush(State(g): Shared, Query(filter): FilterQuery) -> Result<Json<wire::Flushed>, Refusal> {
    let filter = filter.to_filter().map_err(Refusal::bad_request)?;
    let mut ended = 0;
    for worker in 0..g.workers.len() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let (here, next) = g.workers.flush(worker, from, filter).await?;
            ended += here;
            cursor = next;
        }
    }
    Ok(Json(wire::Flushed { ended }))
}

pub async fn stats(State(g): Shared) -> Json<Vec<wire::Worker>> {
    Json(super::show::all_workers(&g))
}

impl From<WorkerError> for Refusal {
    fn from(e: WorkerError) -> Self {
        Self::unavailable(e)
    }
}
