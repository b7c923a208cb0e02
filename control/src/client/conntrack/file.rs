//! A connection table in a file: `conntrack save` and `conntrack restore`.
//!
//! The first line is a [`Header`], each further one a connection as `conntrack list --json` writes it. Names, not indices,
//! stand in it, so another configuration and another number of workers can take it in; a timeout is what was left of it.
//! *Life-cycle*: a save writes beside the file and renames at the end: the file is whole or as it was. A restore reads
//! the file twice and sends nothing before all of it was understood.
//! *Limits*: [`BATCH`] connections in a request; memory does not grow with the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::api::conntrack::MOST_AT_ONCE;
use crate::api::wire::{Conn, Restored};
use crate::client::ClientError;
use crate::client::http::Client;

/// Connections in a request.
const BATCH: usize = MOST_AT_ONCE / 2;

/// What the first line begins with.
const FORMAT: &str = "sluice-conntrack";

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Bad lines that are shown; the rest is only counted.
const SHOWN: usize = 20;

/// Longest line, bytes.
const LINE: usize = 65_536;

/// Reasons why connections are refused that are told apart.
const REASONS: usize = 64;

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// When it was saved, seconds since 1970.
    saved: u64,
    /// How many connections follow.
    connections: u64,
}

impl Header {
    /// As a line, always of one length: the count is known only when all else is written.
    fn line(&self) -> String {
        let Self { format, version, saved, connections } = self;
        format!(
            "{{\"format\":\"{format}\",\"version\":{version},\"saved\":{saved:>12},\"connections\":{connections:>12}}}\n"
        )
    }
}

/// What a restore did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Connections of the file.
    pub connections: u64,
    /// How many of them are in the table now.
    pub made: u64,
    /// Why others are not, how many, and the line of the first.
    pub refused: BTreeMap<String, (u64, u64)>,
}

/// Saves the connections of `path` (a request that lists) as `file`; answers how many.
///
/// # Errors
/// Where the list breaks off or the file cannot be written; an older file then is as it was.
pub async fn save(client: &Client, path: &str, file: &Path, now: u64) -> Result<u64, ClientError> {
    let broken = |error| ClientError::File { file: file.to_owned(), error };
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let name = file.with_file_name(name);
    // A connection table tells who talks to whom: it is for its owner.
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name);
    let mut out = BufWriter::new(new.map_err(broken)?);
    let hidden = Hidden(name);
    let mut header = Header { format: FORMAT.into(), version: VERSION, saved: now, connections: 0 };
    out.write_all(header.line().as_bytes()).map_err(broken)?;
    let mut connections = 0;
    let each = |line: Option<&[u8]>| {
        let Some(line) = line else { return Ok(()) };
        super::connection(line)?;
        connections += 1;
        out.write_all(line).and_then(|()| out.write_all(b"\n")).map_err(broken)
    };
    client.lines(Method::GET, path, &(), each).await?;
    header.connections = connections;
    let mut whole = out.into_inner().map_err(|e| broken(e.into_error()))?;
    whole.rewind().and_then(|()| whole.write_all(header.line().as_bytes())).map_err(broken)?;
    whole.sync_all().and_then(|()| std::fs::rename(&hidden.0, file)).map_err(broken)?;
    Ok(connections)
}

/// The file under its first name, which goes away unless it was renamed.
struct Hidden(PathBuf);

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A saved table that is read line by line.
struct Saved {
    file: PathBuf,
    reader: BufReader<File>,
    /// The line that was read last.
    line: Vec<u8>,
    /// Of the line that was read last, from 1.
    number: u64,
    header: Header,
}

impl Saved {
    fn open(file: &Path) -> Result<Self, ClientError> {
        let broken = |error| ClientError::File { file: file.to_owned(), error };
        let mut reader = BufReader::new(File::open(file).map_err(broken)?);
        let mut line = Vec::new();
        read_line(&mut reader, &mut line).map_err(broken)?;
        let wrong = |why: String| ClientError::BadFile(format!("{}:1: {why}", file.display()));
        let header: Header = serde_json::from_slice(&line).map_err(|e| wrong(format!("is no header: {e}")))?;
        if header.format != FORMAT || header.version != VERSION {
            let Header { format, version, .. } = header;
            let why = format!("is {format} version {version}; accepted: {FORMAT} version {VERSION}");
            return Err(wrong(why));
        }
        Ok(Self { file: file.to_owned(), reader, line, number: 1, header })
    }

    /// The next connection, or what is wrong with its line; empty lines and comments (`#`) are passed over.
    fn next(&mut self) -> Result<Option<Result<Conn, String>>, ClientError> {
        loop {
            let broken = |error| ClientError::File { file: self.file.clone(), error };
            if !read_line(&mut self.reader, &mut self.line).map_err(broken)? {
                return Ok(None);
            }
            self.number += 1;
            let text = self.line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            if self.line.len() > LINE {
                return Ok(Some(Err(format!("is longer than {LINE} bytes"))));
            }
            let conn = serde_json::from_slice::<Conn>(text).map_err(|e| e.to_string());
            return Ok(Some(conn.and_then(|conn| conn.check().map(|_| conn))));
        }
    }
}

/// Reads a line into `line`, of one that is longer than [`LINE`] its beginning; `false` at the end of the file.
fn read_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    reader.by_ref().take(LINE as u64 + 1).read_until(b'\n', line)?;
    if line.len() > LINE && !line.ends_with(b"\n") {
        reader.skip_until(b'\n')?;
    }
    Ok(!line.is_empty())
}

/// Puts the connections of `file` into the table. Where some line of it is wrong, none; with `keep_going`, the others.
///
/// # Errors
/// What is wrong with the file, by line; where the gateway cannot be reached.
pub async fn restore(client: &Client, file: &Path, keep_going: bool) -> Result<Report, ClientError> {
    let mut report = Report { connections: look(file, keep_going)?, ..Report::default() };
    let mut saved = Saved::open(file)?;
    let mut more = true;
    while more {
        let (mut numbers, mut conns) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        while more && conns.len() < BATCH {
            match saved.next()? {
                Some(Ok(conn)) => {
                    numbers.push(saved.number);
                    conns.push(conn);
                }
                // This was shown when the file was looked at.
                Some(Err(why)) => report.refuse(why, saved.number),
                None => more = false,
            }
        }
        let restored: Restored = client.ask_with(Method::POST, "/v1/conntrack/restore", &conns).await?;
        report.made += restored.made;
        for refused in restored.refused {
            report.refuse(refused.why, numbers.get(refused.place).copied().unwrap_or_default());
        }
    }
    Ok(report)
}

impl Report {
    fn refuse(&mut self, why: String, line: u64) {
        let known = self.refused.len() < REASONS || self.refused.contains_key(&why);
        let why = if known { why } else { "other reasons".into() };
        self.refused.entry(why).or_insert((0, line)).0 += 1;
    }
}

/// Reads all of `file` and counts its connections, the bad ones with them.
fn look(file: &Path, keep_going: bool) -> Result<u64, ClientError> {
    let mut saved = Saved::open(file)?;
    let (mut good, mut bad, mut problems) = (0_u64, 0_u64, Vec::new());
    while let Some(conn) = saved.next()? {
        match conn {
            Ok(_) => good += 1,
            Err(why) => {
                bad += 1;
                if problems.len() < SHOWN {
                    problems.push(format!("{}:{}: {why}", file.display(), saved.number));
                }
            }
        }
    }
    if bad > problems.len() as u64 {
        problems.push(format!("and {} more lines", bad - problems.len() as u64));
    }
    let (there, said) = (good + bad, saved.header.connections);
    if there != said {
        let shown = file.display();
        problems.push(format!("{shown}: has {there} connections where its first line says {said}"));
    }
    if problems.is_empty() || keep_going {
        return Ok(there);
    }
    problems.push(format!("nothing was restored; with --keep-going the {good} good lines would be"));
    Err(ClientError::BadFile(problems.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_of_one_length_and_reads_back() {
        let header =
            |connections| Header { format: FORMAT.into(), version: VERSION, saved: 1_795_162_750, connections };
        let (none, many) = (header(0).line(), header(999_999_999_999).line());
        assert_eq!(none.len(), many.len());
        assert_eq!(serde_json::from_str::<Header>(&many).expect("JSON"), header(999_999_999_999));
    }
}
