//! The command line of `sluicectl` and what each command does.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::conntrack::Conntrack;
use super::http::Client;
use super::{ClientError, show};
use crate::api::FileRequest;
use crate::api::wire;

/// Where sluiced listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";

/// Asks and steers a running sluiced.
#[derive(Debug, Parser)]
#[command(name = "sluicectl", version)]
pub struct Cli {
    /// Print JSON: one document, or one object per line for lists of connections.
    #[arg(long, global = true)]
    json: bool,
    /// The control socket.
    #[arg(long, global = true, value_name = "PATH", env = "SLUICE_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Whether the gateway runs, and what it runs.
    Status {
        /// Wait until it is ready, at most so many seconds.
        #[arg(long, value_name = "SECONDS")]
        wait: Option<f64>,
    },
    /// Check a configuration; no gateway needs to run.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Bring a changed configuration into force.
    Reload {
        /// The file; the one given at start where left out.
        file: Option<PathBuf>,
        /// Take it back unless confirmed in time (not supported yet).
        #[arg(long, value_name = "TIME")]
        confirm: Option<String>,
    },
    /// Show what is in force.
    Show {
        /// Which part.
        what: Part,
        /// Of latency: what was counted is shown for the last time, and counting begins anew, for all who ask.
        #[arg(long)]
        reset: bool,
    },
    /// The connection table.
    #[command(subcommand)]
    Conntrack(Box<Conntrack>),
    /// What a configuration would change (not supported yet).
    Diff(Unsupported),
    /// What would happen to a packet (not supported yet).
    Explain(Unsupported),
    /// Follow packets through the stages (not supported yet).
    Trace(Unsupported),
    /// Capture packets (not supported yet).
    Capture(Unsupported),
    /// The busiest connections (not supported yet).
    Top(Unsupported),
    /// Turn another firewall's rules into a configuration (not supported yet).
    Import(Unsupported),
}

/// Whatever is given to a command that does not exist yet.
#[derive(Debug, Args)]
struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    Interfaces,
    Rules,
    Nat,
    Routes,
    Neighbours,
    Sets,
    Workers,
    Latency,
}

/// Runs one command, writing to `out`, and to `notes` what is not part of the answer.
///
/// # Errors
/// Why it failed.
pub async fn run(cli: Cli, out: &mut impl Write, notes: &mut impl Write) -> Result<(), ClientError> {
    let client = Client::new(&cli.socket);
    let json = cli.json;
    match cli.command {
        Command::Status { wait } => {
            let status = status(&client, wait).await?;
            if json { document(out, &status) } else { Ok(show::status(out, &status)?) }
        }
        Command::Check { file } => {
            crate::config::load(&file)?;
            if json {
                document(out, &serde_json::json!({"file": file, "ok": true}))
            } else {
                Ok(writeln!(out, "{}: ok", file.display())?)
            }
        }
        Command::Reload { confirm: Some(_), .. } => Err(ClientError::NotSupported("reload --confirm")),
        Command::Reload { file, confirm: None } => {
            let file = file.map(std::path::absolute).transpose()?;
            let reloaded: wire::Reloaded = client.ask_with(Method::POST, "/v1/reload", &FileRequest { file }).await?;
            if json {
                return document(out, &reloaded);
            }
            Ok(show::reloaded(out, &reloaded)?)
        }
        Command::Show { what: Part::Latency, reset } => latency(&client, reset, json, out).await,
        Command::Show { reset: true, .. } => Err(ClientError::Argument("--reset is about `show latency` alone".into())),
        Command::Show { what, reset: false } => part(&client, what, json, out).await,
        Command::Conntrack(command) => command.run(&client, json, out, notes).await,
        Command::Diff(_) => Err(ClientError::NotSupported("diff")),
        Command::Explain(_) => Err(ClientError::NotSupported("explain")),
        Command::Trace(_) => Err(ClientError::NotSupported("trace")),
        Command::Capture(_) => Err(ClientError::NotSupported("capture")),
        Command::Top(_) => Err(ClientError::NotSupported("top")),
        Command::Import(_) => Err(ClientError::NotSupported("import")),
    }
}

async fn status(client: &Client, wait: Option<f64>) -> Result<wire::Status, ClientError> {
    let ask = || client.ask::<wire::Status>(Method::GET, "/v1/status");
    let Some(seconds) = wait else {
        let status = ask().await?;
        let not_yet = || ClientError::Refused("sluiced is not ready".into());
        return if status.ready { Ok(status) } else { Err(not_yet()) };
    };
    let Ok(limit) = Duration::try_from_secs_f64(seconds) else {
        return Err(ClientError::Argument(format!("--wait {seconds}: a number of seconds is needed")));
    };
    let deadline = Instant::now() + limit;
    loop {
        // The socket may be there and its process still starting: the answer then comes when it is ready.
        let last = match tokio::time::timeout_at(deadline, ask()).await {
            Ok(Ok(status)) if status.ready => return Ok(status),
            Ok(Ok(_)) => "it is starting".to_owned(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "it listens, but does not answer yet".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(ClientError::NotReady { seconds, last });
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn part(client: &Client, what: Part, json: bool, out: &mut impl Write) -> Result<(), ClientError> {
    macro_rules! table {
        ($path:literal, $show:path) => {{
            let value: Value = client.ask(Method::GET, $path).await?;
            if json {
                return document(out, &value);
            }
            let rows: Vec<_> = serde_json::from_value(value).map_err(|e| ClientError::Broken(e.to_string()))?;
            Ok($show(out, &rows)?)
        }};
    }
    match what {
        Part::Interfaces => table!("/v1/interfaces", show::interfaces),
        Part::Rules => table!("/v1/rules", show::rules),
        Part::Nat => table!("/v1/nat", show::nat),
        Part::Routes => table!("/v1/routes", show::routes),
        Part::Neighbours => table!("/v1/neighbours", show::neighbours),
        Part::Sets => table!("/v1/sets", show::sets),
        Part::Workers => table!("/v1/workers", show::workers),
        Part::Latency => latency(client, false, json, out).await,
    }
}

async fn latency(client: &Client, reset: bool, json: bool, out: &mut impl Write) -> Result<(), ClientError> {
    let (method, path) = if reset { (Method::POST, "/v1/latency/reset") } else { (Method::GET, "/v1/latency") };
    let latency: wire::Latency = client.ask(method, path).await?;
    if json { document(out, &latency) } else { Ok(show::latency(out, &latency)?) }
}

pub(super) fn document(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ClientError::Broken(e.to_string()))?;
    Ok(writeln!(out, "{text}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
