//! The HTTP API on the control socket: what `sluicectl` asks, as JSON.
//!
//! *Life-cycle*: [`router`] once; served on the UNIX socket ([`socket`]) for as long as the gateway runs; [`metrics`]
//! is the part that the TCP address serves, and nothing else is served there.
//! *Threads*: control's tokio thread. *Limits*: a dump holds one chunk of connections at a time, whatever the table's
//! size; who may ask is decided by the socket's mode and group.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::gateway::{Gateway, ReloadError};

pub(crate) mod conntrack;
mod events;
pub(crate) mod show;
pub mod socket;
pub mod wire;

type Shared = State<Arc<Gateway>>;

/// An answer that is an error: a status and a sentence.
pub struct Refusal(StatusCode, String);

/// The JSON of a [`Refusal`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One sentence.
    pub error: String,
}

/// Which file a check or reload is about.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FileRequest {
    /// Its absolute path; the file given at start where there is none.
    pub file: Option<PathBuf>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}

impl Refusal {
    fn bad_request(e: impl ToString) -> Self {
        Self(StatusCode::BAD_REQUEST, e.to_string())
    }

    fn unavailable(e: impl ToString) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
    }
}

impl From<ReloadError> for Refusal {
    fn from(e: ReloadError) -> Self {
        let status = match e {
            ReloadError::Config(_) | ReloadError::NeedsRestart { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

/// Everything that the control socket serves.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/status", get(show::status))
        .route("/v1/check", post(check))
        .route("/v1/reload", post(reload))
        .route("/v1/interfaces", get(show::interfaces))
        .route("/v1/rules", get(show::rules))
        .route("/v1/nat", get(show::nat))
        .route("/v1/routes", get(show::routes))
        .route("/v1/neighbours", get(show::neighbours))
        .route("/v1/sets", get(show::sets))
        .route("/v1/workers", get(show::workers))
        .route("/v1/latency", get(show::latency))
        .route("/v1/latency/reset", post(show::latency_reset))
        .route("/v1/conntrack", get(conntrack::list).post(conntrack::create).delete(conntrack::flush))
        .route("/v1/conntrack/restore", post(conntrack::restore))
        .route("/v1/conntrack/get", post(conntrack::get))
        .route("/v1/conntrack/delete", post(conntrack::delete))
        .route("/v1/conntrack/update", post(conntrack::update))
        .route("/v1/conntrack/count", get(conntrack::count))
        .route("/v1/conntrack/events/{kinds}", get(events::events))
        .route("/v1/conntrack/expectations", get(conntrack::expectations))
        .route("/v1/conntrack/stats", get(conntrack::stats))
        .route("/metrics", get(scrape))
        .fallback(nothing_there)
        .with_state(gateway)
}

/// What the metrics address serves.
pub fn metrics(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(gateway)
}

async fn scrape(State(g): Shared) -> Result<Response, Refusal> {
    let text = crate::metrics::render(&g).map_err(Refusal::unavailable)?;
    Ok(([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response())
}

async fn check(State(g): Shared, Json(r): Json<FileRequest>) -> Result<Json<wire::Checked>, Refusal> {
    let file = r.file.unwrap_or_else(|| g.config_file.clone());
    let config = crate::gateway::read(file).await?;
    let restart = crate::gateway::needs_restart(&g.config(), &config);
    Ok(Json(wire::Checked { file: config.source, needs_restart: restart }))
}

async fn reload(State(g): Shared, Json(r): Json<FileRequest>) -> Result<Json<wire::Reloaded>, Refusal> {
    // A task of its own: a client that goes away in the middle must not leave half a reload.
    let task = tokio::spawn(async move { g.reload(r.file).await });
    let (published, swept) = task.await.map_err(|_| Refusal::unavailable("the reload failed"))??;
    let (generation, seconds) = (published.generation, published.took.as_secs_f64());
    Ok(Json(wire::Reloaded { generation, seconds, connections: Some(swept) }))
}

async fn nothing_there() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "sluiced has no such request: are sluicectl and sluiced of one version?".into())
}

type FilterQuery = Query<wire::FilterSpec>;
