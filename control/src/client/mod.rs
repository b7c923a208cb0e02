//! `sluicectl`: the command line, the request over the control socket, and how the answer is shown.
//!
//! *Life-cycle*: one process per command. *Threads*: one. *Limits*: a dump is shown line by line as it comes, so its
//! size does not matter; a reader that stops reading (`| head`) ends it without an error.

pub mod cli;
mod conntrack;
pub mod http;
pub mod show;
pub mod table;

use std::io;
use std::path::PathBuf;

/// Why a command failed, and with which exit status.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("cannot reach sluiced at {socket}: {error}")]
    Unreachable {
        /// The socket.
        socket: String,
        /// What the system said.
        error: io::Error,
    },
    /// The gateway said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("the answer of sluiced broke off: {0}")]
    Broken(String),
    /// It is not ready in time.
    #[error("sluiced was not ready within {seconds} s: {last}")]
    NotReady {
        /// How long was waited.
        seconds: f64,
        /// The last failure.
        last: String,
    },
    /// An argument that the command line parser cannot check.
    #[error("{0}")]
    Argument(String),
    /// A part of the contract that is not built.
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A saved table that is none, or not whole.
    #[error("{0}")]
    BadFile(String),
    /// As many events as were asked for.
    #[error("enough")]
    Enough,
    /// Nothing was there that it could be done to; the sentence goes to standard error as it is.
    #[error("{0}")]
    Nothing(String),
    /// Standard output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// 2 for what cannot be asked, 1 for what failed, 0 where the reader had enough.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NotSupported(_) | Self::Argument(_) => 2,
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }
}
