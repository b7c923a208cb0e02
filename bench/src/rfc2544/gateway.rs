//! The gateway's own word on latency, asked over its control socket.
//!
//! *Limits*: one request per connection, five seconds. *Sources*: RFC 9112 for as much of HTTP as this needs.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// A running sluiced.
#[derive(Clone, Debug)]
pub struct Gateway {
    socket: PathBuf,
}

/// What packets' time in the box and burst times were, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// How many.
    pub count: u64,
    /// Median, 99 %, 99.9 %, longest.
    pub us: [f64; 4],
}

impl Gateway {
    /// The one that listens at `socket`.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Has it count anew.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn reset(&self) -> io::Result<()> {
        self.ask("POST /v1/latency/reset").map(drop)
    }

    /// What it has counted: packets' time in the box, and burst times.
    ///
    /// # Errors
    /// Where it does not answer, or something else.
    pub fn latency(&self) -> io::Result<[Quantiles; 2]> {
        let answer = self.ask("GET /v1/latency")?;
        let of = |kind: &str| quantiles(&answer["total"][kind]).ok_or_else(|| io::Error::other("no latency in it"));
        Ok([of("packet")?, of("burst")?])
    }

    fn ask(&self, what: &str) -> io::Result<Value> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // HTTP/1.0: the answer ends with the connection, and is not cut into chunks.
        write!(stream, "{what} HTTP/1.0\r\nHost: sluice\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        parse(&answer)
    }
}

fn parse(answer: &str) -> io::Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => serde_json::from_str(body).map_err(io::Error::other),
        _ => Err(io::Error::other(head.lines().next().unwrap_or("no answer").to_owned())),
    }
}

fn quantiles(of: &Value) -> Option<Quantiles> {
    let us = |key: &str| of[key].as_f64().unwrap_or(0.0);
    Some(Quantiles { count: of["count"].as_u64()?, us: [us("p50_us"), us("p99_us"), us("p999_us"), us("max_us")] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_refusal_is_its_first_line() {
        let good = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"total\": {\"packet\": {\"count\": 7, \"p50_us\": 1.5, \
                    \"p99_us\": 2, \"p999_us\": 3, \"max_us\": 4}, \"burst\": {\"count\": 0}}}";
        let answer = parse(good).expect("JSON");
        let packet = quantiles(&answer["total"]["packet"]);
        assert_eq!(packet, Some(Quantiles { count: 7, us: [1.5, 2.0, 3.0, 4.0] }));
        assert_eq!(quantiles(&answer["total"]["burst"]), Some(Quantiles::default()));
        assert_eq!(quantiles(&answer["nothing"]), None);
        let refused = parse("HTTP/1.0 404 Not Found\r\n\r\n{}").expect_err("refused");
        assert_eq!(refused.to_string(), "HTTP/1.0 404 Not Found");
        assert!(parse("").is_err());
    }
}
