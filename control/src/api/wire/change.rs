//! What happens to connections, as it travels: reports, wishes, and what became of them.

use dataplane::api::command::{ConnChange, ConnEventKind, ExpectView};
use serde::{Deserialize, Serialize};

use super::conntrack::{Conn, Names, Way};
use crate::changes;

/// A line of `conntrack events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Report {
    /// Something happened to a connection.
    Change {
        /// `new`, `update` or `destroy`.
        event: String,
        /// When, seconds since 1970.
        time: f64,
        /// Why it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// When it ended, seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop: Option<u64>,
        /// The connection after it; at its end, as it was last.
        conn: Box<Conn>,
    },
    /// Changes that could not be reported.
    Lost {
        /// How many since the last such line.
        lost: u64,
    },
}

impl Report {
    /// Of what control heard, `names` being those of that time.
    pub fn new(c: &changes::Change, time: f64, names: &Names<'_>) -> Self {
        let (event, reason) = match c.event.kind {
            ConnEventKind::New => ("new", None),
            ConnEventKind::Update => ("update", None),
            ConnEventKind::Destroy(why) => ("destroy", Some(why.label().to_owned())),
        };
        let stop = reason.is_some().then_some(names.now.as_secs());
        let conn = Box::new(Conn::new(&c.event.conn, c.worker, names));
        Self::Change { event: event.into(), time, reason, stop, conn }
    }
}

/// What `conntrack update` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Bits of the mark: mask and value.
    pub mark: Option<(u32, u32)>,
    /// Seconds until it expires if nothing comes.
    pub timeout: Option<u32>,
    /// Whether it is assured from now on.
    pub assured: bool,
}

impl From<Change> for ConnChange {
    fn from(c: Change) -> Self {
        Self { mark: c.mark, timeout_s: c.timeout, assured: c.assured }
    }
}

/// What became of connections that were to be put into the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// How many were.
    pub made: u64,
    /// Those that were not.
    pub refused: Vec<Refused>,
}

/// A connection that was not put into the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its place in the request, from 0.
    pub place: usize,
    /// Why, in one sentence.
    pub why: String,
}

/// A line of `conntrack expect list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// Seconds until it expires.
    pub timeout: u32,
    /// IP protocol number.
    pub proto: u8,
    /// What is waited for; a source port of 0 is any, and so is an unspecified source address.
    pub tuple: Way,
    /// The helper that made it.
    pub helper: String,
    /// Protocol of the connection that announced it.
    pub master_proto: u8,
    /// The original direction of that connection.
    pub master: Way,
    /// Whether it goes on after its first connection.
    pub permanent: bool,
    /// Which worker owns it.
    pub worker: usize,
}

impl Expectation {
    /// Of a worker's view.
    pub fn new(v: &ExpectView, worker: usize) -> Self {
        Self {
            timeout: v.timeout_s,
            proto: v.tuple.proto,
            tuple: Way::new(&v.tuple),
            helper: v.helper.name().to_owned(),
            master_proto: v.master.proto,
            master: Way::new(&v.master),
            permanent: v.permanent,
            worker,
        }
    }
}
