//! Questions on the control socket: one connection, kept open, one question at a time.
//!
//! *Threads*: the one that made it; it waits for each answer. *Limits*: answers with a known length; nobody waits longer
//! than [`PATIENCE`].
//! *Sources*: RFC 9112.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the control socket.
#[derive(Debug)]
pub struct Api {
    stream: UnixStream,
    /// What was read of an answer.
    answer: Vec<u8>,
}

impl Api {
    /// Connects to `socket`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// What there is at `path`.
    ///
    /// # Errors
    /// The connection broke, or the answer is not success: [`io::ErrorKind::NotFound`] where there is no such request,
    /// [`io::ErrorKind::InvalidInput`] where it makes no sense.
    pub fn get(&mut self, path: &str) -> io::Result<String> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: sluiced\r\n\r\n"))
    }

    /// The answer to a JSON body.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn post(&mut self, path: &str, json: &str) -> io::Result<String> {
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nhost: sluiced\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
            json.len()
        ))
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.stream.write_all(request.as_bytes())?;
        self.answer.clear();
        let (status, head, length) = loop {
            self.more()?;
            if let Some(head) = head(&self.answer)? {
                break head;
            }
        };
        while self.answer.len() < head + length {
            self.more()?;
        }
        let body = String::from_utf8_lossy(&self.answer[head..head + length]).into_owned();
        match status {
            200..300 => Ok(body),
            400 => Err(io::Error::new(io::ErrorKind::InvalidInput, body)),
            404 => Err(io::Error::new(io::ErrorKind::NotFound, body)),
            _ => Err(io::Error::other(format!("{status}: {body}"))),
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut part = [0; 1 << 15];
        match self.stream.read(&mut part)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.answer.extend(&part[..n]);
                Ok(())
            }
        }
    }
}

/// Status, length of the head and of the body, once all of the head is there.
fn head(b: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(b).map_err(io::Error::other)? else { return Ok(None) };
    let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.parse().ok());
    let length = length.ok_or(io::Error::other("an answer without a length"))?;
    Ok(Some((response.code.unwrap_or(0), head, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(head(&text[..30]).expect("a head"), None);
        assert_eq!(head(text).expect("a head"), Some((200, text.len() - 2, 2)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
    }
}
