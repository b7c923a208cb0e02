//! One HTTP request over a UNIX socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ClientError;
use crate::api::ErrorBody;

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The gateway whose control socket is `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks and answers the JSON.
    ///
    /// # Errors
    /// Where nobody answers, or the answer is no.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.ask_with(method, path, &()).await
    }

    /// Asks with a JSON body and answers the JSON.
    ///
    /// # Errors
    /// Where nobody answers, or the answer is no.
    pub async fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body).await?;
        let whole = response.into_body().collect().await.map_err(broken)?.to_bytes();
        serde_json::from_slice(&whole).map_err(broken)
    }

    /// Asks and hands each line of the answer to `each` as it comes, and `None` where that is all for now.
    ///
    /// # Errors
    /// Where nobody answers, the answer is no, it breaks off, or `each` fails.
    pub async fn lines(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(Option<&[u8]>) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut body = self.send(method, path, body).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            rest.extend_from_slice(&data);
            let mut from = 0;
            while let Some(length) = rest[from..].iter().position(|&b| b == b'\n') {
                each(Some(&rest[from..from + length]))?;
                from += length + 1;
            }
            rest.drain(..from);
            each(None)?;
        }
        if rest.is_empty() { Ok(()) } else { Err(ClientError::Broken("the last line is cut".into())) }
    }

    async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |error| ClientError::Unreachable { socket: self.socket.display().to_string(), error };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sluiced")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body).map_err(broken)?)))
            .map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let whole = response.into_body().collect().await.map_err(broken)?.to_bytes();
        match serde_json::from_slice::<ErrorBody>(&whole) {
            Ok(body) => Err(ClientError::Refused(body.error)),
            Err(_) => Err(ClientError::Refused(format!("{status}: {}", String::from_utf8_lossy(&whole)))),
        }
    }
}

fn broken(e: impl ToString) -> ClientError {
    ClientError::Broken(e.to_string())
}
