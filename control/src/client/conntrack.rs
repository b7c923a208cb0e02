//! `sluicectl conntrack`: the connection table, with the words, options and lines of conntrack-tools.
//!
//! As with those, connections go to standard output and how many there were to standard error, and a command that found
//! nothing to change has failed.

use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use hyper::Method;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::cli::document;
use super::http::Client;
use super::{ClientError, show};
use crate::api::ErrorBody;
use crate::api::wire::{self, Asked, FilterSpec, Report};
use args::{Mask, NewConn, NewValues, Tuples, kinds};
use line::{Format, Style};
use select::{Filter, Selection};

mod args;
mod file;
mod line;
mod select;

/// What can be done to the connection table.
#[derive(Debug, Subcommand)]
pub(super) enum Conntrack {
    /// List connections.
    List {
        #[command(flatten)]
        filter: Filter,
        /// How to write them; several with commas.
        #[arg(short, long, value_delimiter = ',')]
        output: Vec<Format>,
    },
    /// Show one connection, by either of its tuples.
    Get {
        #[command(flatten)]
        tuples: Tuples,
        /// How to write it; several with commas.
        #[arg(short, long, value_delimiter = ',')]
        output: Vec<Format>,
    },
    /// Put a connection into the table.
    Create {
        #[command(flatten)]
        conn: NewConn,
    },
    /// Change the connections that match.
    Update {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        values: NewValues,
        /// How to write them; several with commas.
        #[arg(short, long, value_delimiter = ',')]
        output: Vec<Format>,
    },
    /// End the connections that match, and show them; needs a filter.
    Delete {
        #[command(flatten)]
        filter: Filter,
        /// How to write them; several with commas.
        #[arg(short, long, value_delimiter = ',')]
        output: Vec<Format>,
    },
    /// End all connections, or those that match.
    Flush {
        #[command(flatten)]
        filter: Filter,
    },
    /// Count connections.
    Count {
        #[command(flatten)]
        filter: Filter,
    },
    /// What happened, by worker, since start.
    ///
    /// The words of `conntrack -S` first: found, packets of known connections; invalid, INVALID packets; insert, new
    /// connections; insert_failed, those whose tuples were taken; drop, those that found the table full; early_drop,
    /// connections ended to make room; error, dropped packets with a bad checksum, length, ICMP type or parent.
    Stats,
    /// Watch connections come, change and go.
    Events {
        /// `NEW`, `UPDATES`, `DESTROY` or `ALL`; several with commas.
        #[arg(short = 'e', long, value_delimiter = ',', ignore_case = true)]
        event_mask: Vec<Mask>,
        #[command(flatten)]
        filter: Filter,
        /// How to write them; several with commas.
        #[arg(short, long, value_delimiter = ',')]
        output: Vec<Format>,
        /// End after so many.
        #[arg(short, long, value_name = "NUMBER")]
        count: Option<u64>,
    },
    /// Save connections to a file.
    Save {
        /// The file; replaced where it is there, and only once the new one is whole.
        file: PathBuf,
        #[command(flatten)]
        filter: Filter,
    },
    /// Put the connections of a saved file into the table.
    Restore {
        /// The file.
        file: PathBuf,
        /// Restore the good lines of a file that has bad ones.
        #[arg(long)]
        keep_going: bool,
    },
    /// Connections that others have announced.
    #[command(subcommand)]
    Expect(Expect),
}

/// What can be done to expectations.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum Expect {
    /// List them.
    List,
}

impl Conntrack {
    /// Runs the command, writing to `out`, and to `notes` how many connections there were.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(
        self,
        client: &Client,
        json: bool,
        out: &mut impl Write,
        notes: &mut impl Write,
    ) -> Result<(), ClientError> {
        match self {
            Self::List { filter, output } => {
                let path = with_query("/v1/conntrack", &filter.spec()?)?;
                let style = Style::new(&output, TimeZone::system());
                show_all(client, Method::GET, &path, &(), json, &style, out).await.map(drop)
            }
            Self::Get { tuples, output } => {
                let asked = Asked { proto: tuples.proto, way: tuples.given()? };
                let found = client.ask_with(Method::POST, "/v1/conntrack/get", &asked).await?;
                let conn: wire::Conn =
                    Option::ok_or_else(found, || ClientError::Nothing("there is no such connection".into()))?;
                if json {
                    return document(out, &conn);
                }
                writeln!(out, "{}", Style::new(&output, TimeZone::system()).line(&conn))?;
                counted(1, "shown", notes)
            }
            Self::Create { conn } => {
                let conns = [conn.conn(now())?];
                let made: wire::Restored = client.ask_with(Method::POST, "/v1/conntrack", &conns).await?;
                match made.refused.into_iter().next() {
                    Some(refused) => Err(ClientError::Refused(refused.why)),
                    None => counted(made.made, "created", notes),
                }
            }
            Self::Update { selection, values, output } => {
                let path = with_query("/v1/conntrack/update", &selection.spec()?)?;
                let style = Style::new(&output, TimeZone::system());
                let n = show_all(client, Method::POST, &path, &values.change()?, json, &style, out).await?;
                counted(n, "updated", notes)
            }
            Self::Delete { filter, output } => {
                let spec = filter.spec()?;
                if spec == FilterSpec::default() {
                    let error = "conntrack delete needs a filter; `conntrack flush` ends all connections";
                    return Err(ClientError::Argument(error.into()));
                }
                let path = with_query("/v1/conntrack/delete", &spec)?;
                let style = Style::new(&output, TimeZone::system());
                let n = show_all(client, Method::POST, &path, &(), json, &style, out).await?;
                counted(n, "deleted", notes)
            }
            Self::Flush { filter } => {
                let path = with_query("/v1/conntrack", &filter.spec()?)?;
                let flushed: wire::Flushed = client.ask(Method::DELETE, &path).await?;
                if json {
                    return document(out, &flushed);
                }
                let s = if flushed.ended == 1 { "" } else { "s" };
                Ok(writeln!(out, "{} connection{s} ended", flushed.ended)?)
            }
            Self::Count { filter } => {
                let path = with_query("/v1/conntrack/count", &filter.spec()?)?;
                let count: wire::Count = client.ask(Method::GET, &path).await?;
                if json { document(out, &count) } else { Ok(writeln!(out, "{}", count.connections)?) }
            }
            Self::Stats => {
                let value: Value = client.ask(Method::GET, "/v1/conntrack/stats").await?;
                if json {
                    return document(out, &value);
                }
                let rows: Vec<_> = serde_json::from_value(value).map_err(|e| ClientError::Broken(e.to_string()))?;
                Ok(show::conntrack_stats(out, &rows)?)
            }
            Self::Events { event_mask, filter, output, count } => {
                let path = format!("/v1/conntrack/events/{}", kinds(&event_mask));
                let path = with_query(&path, &filter.spec()?)?;
                let style = Style::new(&output, TimeZone::system());
                events(client, &path, json, &style, count, out).await
            }
            Self::Save { file, filter } => {
                let path = with_query("/v1/conntrack", &filter.spec()?)?;
                let connections = file::save(client, &path, &file, now()).await?;
                if json {
                    return document(out, &serde_json::json!({"file": file, "connections": connections}));
                }
                Ok(writeln!(out, "{connections} connections saved to {}", file.display())?)
            }
            Self::Restore { file, keep_going } => {
                let report = file::restore(client, &file, keep_going).await?;
                if json {
                    return document(out, &report);
                }
                writeln!(out, "{} of {} connections restored", report.made, report.connections)?;
                for (why, (n, line)) in &report.refused {
                    writeln!(out, "{n} not restored: {why} (first in line {line})")?;
                }
                Ok(())
            }
            Self::Expect(Expect::List) => {
                let all: Vec<wire::Expectation> = client.ask(Method::GET, "/v1/conntrack/expectations").await?;
                if json {
                    return document(out, &all);
                }
                for expectation in &all {
                    writeln!(out, "{}", line::expectation(expectation))?;
                }
                Ok(())
            }
        }
    }
}

/// Writes the connections of the answer as they come, and answers how many there were.
async fn show_all(
    client: &Client,
    method: Method,
    path: &str,
    body: &impl Serialize,
    json: bool,
    style: &Style,
    out: &mut impl Write,
) -> Result<u64, ClientError> {
    let mut n = 0;
    let each = |text: Option<&[u8]>| {
        let Some(text) = text else { return Ok(()) };
        let conn = connection(text)?;
        n += 1;
        if json {
            out.write_all(text)?;
            return Ok(out.write_all(b"\n")?);
        }
        Ok(writeln!(out, "{}", style.line(&conn))?)
    };
    client.lines(method, path, body, each).await?;
    Ok(n)
}

/// Writes events as they come, until there were `count` or the gateway stops.
async fn events(
    client: &Client,
    path: &str,
    json: bool,
    style: &Style,
    count: Option<u64>,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let mut left = count;
    let each = |text: Option<&[u8]>| {
        let Some(text) = text else { return Ok(out.flush()?) };
        let report: Report = parsed(text)?;
        if json {
            out.write_all(text)?;
            out.write_all(b"\n")?;
        } else {
            writeln!(out, "{}", style.event(&report))?;
        }
        if let (Some(left), Report::Change { .. }) = (&mut left, &report) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Err(ClientError::Enough);
            }
        }
        Ok(())
    };
    match client.lines(Method::GET, path, &(), each).await {
        Err(ClientError::Enough) => Ok(()),
        result => result,
    }
}

/// A line of a dump; one that is an error ends it.
fn connection(text: &[u8]) -> Result<wire::Conn, ClientError> {
    parsed(text)
}

fn parsed<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(text).map_err(|e| {
        let body = serde_json::from_slice::<ErrorBody>(text);
        body.map_or_else(|_| ClientError::Broken(e.to_string()), |b| ClientError::Refused(b.error))
    })
}

/// Says how many connections there were, as conntrack-tools do; none is a failure.
fn counted(n: u64, done: &str, notes: &mut impl Write) -> Result<(), ClientError> {
    let said = format!("{n} flow entries have been {done}.");
    if n == 0 {
        return Err(ClientError::Nothing(said));
    }
    Ok(writeln!(notes, "sluicectl v{}: {said}", crate::gateway::VERSION)?)
}

fn with_query(path: &str, spec: &FilterSpec) -> Result<String, ClientError> {
    let query = serde_urlencoded::to_string(spec).map_err(|e| ClientError::Argument(e.to_string()))?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests;
