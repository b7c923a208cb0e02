//! The connection tables: listed, counted, changed and ended in bounded chunks, one worker after the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dataplane::api::command::{ConnChange, ConnFilter, ConnView};
use dataplane::api::policy::HelperKind;
use tokio::sync::mpsc;

use super::{FilterQuery, Refusal, Shared, wire};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::workers::{WorkerError, Workers};

/// Chunks of text that may wait for a slow client; then the dump waits, and no worker with it.
const CHUNKS_AHEAD: usize = 4;

/// Most connections that one request may put into the tables.
pub const MOST_AT_ONCE: usize = 1024;

/// One JSON object per line.
pub const NDJSON: &str = "application/x-ndjson";

/// What happens to the connections of a walk through the tables, each of which is a line of the answer.
#[derive(Clone, Copy)]
enum Deed {
    List,
    Delete,
    Update(ConnChange),
}

pub async fn list(State(g): Shared, Query(filter): FilterQuery) -> Result<Response, Refusal> {
    start(g, &filter, Deed::List)
}

pub async fn delete(State(g): Shared, Query(filter): FilterQuery) -> Result<Response, Refusal> {
    start(g, &filter, Deed::Delete)
}

pub async fn update(
    State(g): Shared,
    Query(filter): FilterQuery,
    Json(change): Json<wire::Change>,
) -> Result<Response, Refusal> {
    start(g, &filter, Deed::Update(change.into()))
}

fn start(g: Arc<Gateway>, filter: &wire::FilterSpec, deed: Deed) -> Result<Response, Refusal> {
    let filter = filter.to_filter().map_err(Refusal::bad_request)?;
    let (text, lines) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(walk(g, filter, deed, text));
    Ok(lines_of(lines))
}

/// Does `deed` to the matching connections of all workers and writes them to `text`. A worker that fails in the middle
/// ends it with an error line. A list ends when its reader is gone; the rest goes on, for half of what was asked for is
/// what nobody asked for.
async fn walk(g: Arc<Gateway>, filter: ConnFilter, deed: Deed, text: mpsc::Sender<Bytes>) {
    let config = g.config();
    for worker in 0..g.workers.len() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let step = match deed {
                Deed::List => g.workers.list(worker, from, filter).await,
                Deed::Delete => g.workers.delete(worker, from, filter).await,
                Deed::Update(change) => g.workers.update(worker, from, filter, change).await,
            };
            let names = names(&config, SystemTime::now());
            let mut chunk = Vec::new();
            let written = match step {
                Ok((conns, next)) => {
                    cursor = next;
                    write_all(&g.workers, worker, &conns, deed, &names, &mut chunk).await
                }
                Err(e) => Err(e),
            };
            if let Err(e) = written {
                write_line(&mut chunk, &super::ErrorBody { error: e.to_string() });
                drop(text.send(chunk.into()).await);
                return;
            }
            let gone = text.is_closed() || (!chunk.is_empty() && text.send(chunk.into()).await.is_err());
            if gone && matches!(deed, Deed::List) {
                return;
            }
        }
    }
}

/// Writes the connections of a step. A list may be what a table is restored from, so it has all that helpers know.
async fn write_all(
    workers: &Workers,
    worker: usize,
    conns: &[ConnView],
    deed: Deed,
    names: &wire::Names<'_>,
    chunk: &mut Vec<u8>,
) -> Result<(), WorkerError> {
    for view in conns {
        let mut conn = wire::Conn::new(view, worker, names);
        if matches!(deed, Deed::List) && view.helper == Some(HelperKind::Ftp) {
            let sides = workers.sides(worker, view.original).await?;
            conn.sides = sides.map(|sides| wire::Side::both(&sides));
        }
        write_line(chunk, &conn);
    }
    Ok(())
}

/// An answer of the chunks of text that come.
fn lines_of(chunks: mpsc::Receiver<Bytes>) -> Response {
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, Infallible>(chunk), chunks))
    });
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(stream)).into_response()
}

/// What indices mean by `config`, at `now`.
pub fn names(config: &Config, now: SystemTime) -> wire::Names<'_> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::Names { interfaces: &config.interfaces, conntrack: &config.policy.conntrack, now }
}

pub fn write_line(chunk: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Invariant: these types have string keys only and a vector takes all that is written.
    if serde_json::to_writer(&mut *chunk, value).is_ok() {
        chunk.push(b'\n');
    }
}

/// The connection that has the tuple that the body describes, in either direction.
pub async fn get(State(g): Shared, Json(tuple): Json<wire::Asked>) -> Result<Json<Option<wire::Conn>>, Refusal> {
    let tuple = tuple.way.tuple(tuple.proto).map_err(Refusal::bad_request)?;
    let found = g.workers.get(tuple).await?;
    let config = g.config();
    let names = names(&config, SystemTime::now());
    Ok(Json(found.map(|(worker, view)| wire::Conn::new(&view, worker, &names))))
}

/// Makes connections by hand: the operator's word stands until the next reload, whatever the policy says.
pub async fn create(State(g): Shared, Json(conns): Json<Vec<wire::Conn>>) -> Result<Json<wire::Restored>, Refusal> {
    make(g, conns, false).await
}

/// Makes connections of a saved table: the policy is asked about each when its next packet comes.
pub async fn restore(State(g): Shared, Json(conns): Json<Vec<wire::Conn>>) -> Result<Json<wire::Restored>, Refusal> {
    make(g, conns, true).await
}

async fn make(g: Arc<Gateway>, conns: Vec<wire::Conn>, judge: bool) -> Result<Json<wire::Restored>, Refusal> {
    if conns.len() > MOST_AT_ONCE {
        let error = format!("{} connections in one request; at most {MOST_AT_ONCE} are possible", conns.len());
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, error));
    }
    let config = g.config();
    let names = names(&config, SystemTime::now());
    let (mut places, mut specs, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (place, conn) in conns.iter().enumerate() {
        match conn.to_spec(&names, judge) {
            Ok(spec) => {
                places.push(place);
                specs.push(spec);
            }
            Err(why) => refused.push(wire::Refused { place, why }),
        }
    }
    // A task of its own: what was sent is made, whether or not the client waits for it.
    let workers = Arc::clone(&g.workers);
    let task = tokio::spawn(async move { workers.create(specs).await });
    let (made, not) = task.await.map_err(|_| Refusal::unavailable("the task failed"))??;
    refused.extend(
        not.into_iter().filter_map(|(n, why)| Some(wire::Refused { place: *places.get(n)?, why: why.to_string() })),
    );
    refused.sort_unstable_by_key(|r| r.place);
    Ok(Json(wire::Restored { made, refused }))
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

pub async fn expectations(State(g): Shared) -> Result<Json<Vec<wire::Expectation>>, Refusal> {
    let most = g.config().policy.conntrack.expect_max;
    let mut all = Vec::new();
    for worker in 0..g.workers.len() {
        let here = g.workers.expectations(worker, most).await?;
        all.extend(here.iter().map(|e| wire::Expectation::new(e, worker)));
    }
    Ok(Json(all))
}

pub async fn stats(State(g): Shared) -> Json<Vec<wire::Worker>> {
    Json(super::show::all_workers(&g))
}

impl From<WorkerError> for Refusal {
    fn from(e: WorkerError) -> Self {
        Self::unavailable(e)
    }
}
