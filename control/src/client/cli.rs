//! The command line of `sluicectl` and what each command does.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::Method;
use ipnet::IpNet;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::conntrack::{Format, line};
use super::http::Client;
use super::{ClientError, show};
use crate::api::wire::{self, FilterSpec};
use crate::api::{ErrorBody, FileRequest};

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
    },
    /// The connection table.
    #[command(subcommand)]
    Conntrack(Conntrack),
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

#[derive(Debug, Subcommand)]
enum Conntrack {
    /// List connections.
    List {
        #[command(flatten)]
        filter: Filter,
        /// How to write them.
        #[arg(short, long, default_value = "default")]
        output: Format,
    },
    /// Count connections.
    Count {
        #[command(flatten)]
        filter: Filter,
    },
    /// End all connections, or those that match.
    Flush {
        #[command(flatten)]
        filter: Filter,
    },
    /// End the connections that match; needs a filter.
    Delete {
        #[command(flatten)]
        filter: Filter,
    },
    /// What happened to connections, by worker.
    Stats,
    /// One connection (not supported yet).
    Get(Unsupported),
    /// Watch connections come and go (not supported yet).
    Events(Unsupported),
}

/// Filters as conntrack-tools name them.
#[derive(Debug, Default, Args)]
struct Filter {
    /// `ipv4` or `ipv6`.
    #[arg(short, long, value_parser = family)]
    family: Option<u8>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `gre`, ... or a number.
    #[arg(short, long, value_parser = protocol)]
    proto: Option<u8>,
    /// Original source, address or prefix.
    #[arg(short = 's', long = "src", visible_alias = "orig-src", value_parser = prefix)]
    source: Option<IpNet>,
    /// Original destination, address or prefix.
    #[arg(short = 'd', long = "dst", visible_alias = "orig-dst", value_parser = prefix)]
    destination: Option<IpNet>,
    /// Source of the reply direction, address or prefix.
    #[arg(short = 'r', long = "reply-src", value_parser = prefix)]
    reply_source: Option<IpNet>,
    /// Destination of the reply direction, address or prefix.
    #[arg(short = 'q', long = "reply-dst", value_parser = prefix)]
    reply_destination: Option<IpNet>,
    /// Original source port.
    #[arg(long, visible_alias = "orig-port-src")]
    sport: Option<u16>,
    /// Original destination port.
    #[arg(long, visible_alias = "orig-port-dst")]
    dport: Option<u16>,
    /// TCP state: `ESTABLISHED`, `SYN_SENT`, ...
    #[arg(long, value_parser = wire::state)]
    state: Option<&'static str>,
    /// Only connections whose source is translated, to this address where given.
    #[arg(short = 'n', long = "src-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    src_nat: Option<Option<IpNet>>,
    /// Only connections whose destination is translated, to this address where given.
    #[arg(short = 'g', long = "dst-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    dst_nat: Option<Option<IpNet>>,
    /// `ASSURED`, `SEEN_REPLY`, `UNREPLIED`, `SRC_NAT`, `DST_NAT`; several with commas.
    #[arg(short = 'u', long, value_delimiter = ',', ignore_case = true)]
    status: Vec<ConnStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum ConnStatus {
    Assured,
    SeenReply,
    Unreplied,
    SrcNat,
    DstNat,
    /// All listed connections are.
    Confirmed,
}

impl Filter {
    fn spec(&self) -> Result<FilterSpec, ClientError> {
        let has = |s| self.status.contains(&s);
        if has(ConnStatus::SeenReply) && has(ConnStatus::Unreplied) {
            return Err(ClientError::Argument("no connection is both SEEN_REPLY and UNREPLIED".into()));
        }
        // The reply goes to the translated source and comes from the translated destination.
        let translated = |given: Option<IpNet>, nat: Option<Option<IpNet>>, option: &str| match (given, nat.flatten()) {
            (Some(a), Some(b)) if a != b => {
                Err(ClientError::Argument(format!("{option} contradicts the reply address")))
            }
            (a, b) => Ok(a.or(b)),
        };
        Ok(FilterSpec {
            family: self.family,
            proto: self.proto,
            source: self.source,
            destination: self.destination,
            reply_source: translated(self.reply_source, self.dst_nat, "--dst-nat")?,
            reply_destination: translated(self.reply_destination, self.src_nat, "--src-nat")?,
            sport: self.sport,
            dport: self.dport,
            state: self.state.map(str::to_owned),
            assured: has(ConnStatus::Assured).then_some(true),
            replied: match (has(ConnStatus::SeenReply), has(ConnStatus::Unreplied)) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            snat: self.src_nat.is_some() || has(ConnStatus::SrcNat),
            dnat: self.dst_nat.is_some() || has(ConnStatus::DstNat),
        })
    }
}

/// Runs one command, writing to `out`.
///
/// # Errors
/// Why it failed.
pub async fn run(cli: Cli, out: &mut impl Write) -> Result<(), ClientError> {
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
            let ms = reloaded.seconds * 1e3;
            Ok(writeln!(out, "policy generation {} is in force after {ms:.1} ms", reloaded.generation)?)
        }
        Command::Show { what } => part(&client, what, json, out).await,
        Command::Conntrack(command) => conntrack(&client, command, json, out).await,
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
        Part::Latency => Err(ClientError::NotSupported("show latency")),
    }
}

async fn conntrack(client: &Client, command: Conntrack, json: bool, out: &mut impl Write) -> Result<(), ClientError> {
    match command {
        Conntrack::List { filter, output } => {
            let path = with_query("/v1/conntrack", &filter.spec()?)?;
            client.lines(&path, |text| connection(text, json, output, out)).await
        }
        Conntrack::Count { filter } => {
            let path = with_query("/v1/conntrack/count", &filter.spec()?)?;
            let count: wire::Count = client.ask(Method::GET, &path).await?;
            if json { document(out, &count) } else { Ok(writeln!(out, "{}", count.connections)?) }
        }
        Conntrack::Flush { filter } => end(client, &filter.spec()?, json, out).await,
        Conntrack::Delete { filter } => {
            let spec = filter.spec()?;
            if spec == FilterSpec::default() {
                let error = "conntrack delete needs a filter; `conntrack flush` ends all connections";
                return Err(ClientError::Argument(error.into()));
            }
            end(client, &spec, json, out).await
        }
        Conntrack::Stats => {
            let value: Value = client.ask(Method::GET, "/v1/conntrack/stats").await?;
            if json {
                return document(out, &value);
            }
            let rows: Vec<_> = serde_json::from_value(value).map_err(|e| ClientError::Broken(e.to_string()))?;
            Ok(show::conntrack_stats(out, &rows)?)
        }
        Conntrack::Get(_) => Err(ClientError::NotSupported("conntrack get")),
        Conntrack::Events(_) => Err(ClientError::NotSupported("conntrack events")),
    }
}

/// Writes one line of a dump; a line that is an error ends it.
fn connection(text: &[u8], json: bool, output: Format, out: &mut impl Write) -> Result<(), ClientError> {
    let conn: wire::Conn = match serde_json::from_slice(text) {
        Ok(conn) => conn,
        Err(e) => {
            let body = serde_json::from_slice::<ErrorBody>(text);
            return Err(body.map_or_else(|_| ClientError::Broken(e.to_string()), |b| ClientError::Refused(b.error)));
        }
    };
    if json {
        out.write_all(text)?;
        return Ok(out.write_all(b"\n")?);
    }
    Ok(writeln!(out, "{}", line(&conn, output))?)
}

async fn end(client: &Client, spec: &FilterSpec, json: bool, out: &mut impl Write) -> Result<(), ClientError> {
    let flushed: wire::Flushed = client.ask(Method::DELETE, &with_query("/v1/conntrack", spec)?).await?;
    if json {
        return document(out, &flushed);
    }
    let s = if flushed.ended == 1 { "" } else { "s" };
    Ok(writeln!(out, "{} connection{s} ended", flushed.ended)?)
}

fn with_query(path: &str, spec: &FilterSpec) -> Result<String, ClientError> {
    let query = serde_urlencoded::to_string(spec).map_err(|e| ClientError::Argument(e.to_string()))?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

fn document(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ClientError::Broken(e.to_string()))?;
    Ok(writeln!(out, "{text}")?)
}

fn family(text: &str) -> Result<u8, String> {
    match text {
        "ipv4" | "4" => Ok(4),
        "ipv6" | "6" => Ok(6),
        _ => Err("`ipv4` or `ipv6` is needed".into()),
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().map_err(|_| "a protocol's name or a number 0 to 255 is needed".to_owned())?,
    })
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    net.map(|n| n.trunc()).map_err(|_| "an address or a prefix is needed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(arguments: &[&str]) -> Result<FilterSpec, String> {
        let all = ["sluicectl", "conntrack", "list"].iter().chain(arguments);
        let cli = Cli::try_parse_from(all).map_err(|e| e.to_string())?;
        let Command::Conntrack(Conntrack::List { filter, .. }) = cli.command else {
            return Err("not a list".into());
        };
        filter.spec().map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn filters_read_as_conntrack_tools_have_them() {
        let spec =
            filter(&["-p", "tcp", "-s", "192.0.2.1", "-d", "10.0.0.0/8", "--dport", "443", "--state", "established"]);
        let expect = FilterSpec {
            proto: Some(6),
            source: Some("192.0.2.1/32".parse().expect("prefix")),
            destination: Some("10.0.0.0/8".parse().expect("prefix")),
            dport: Some(443),
            state: Some("ESTABLISHED".into()),
            ..FilterSpec::default()
        };
        assert_eq!(spec, Ok(expect));
        let spec = filter(&["-f", "ipv6", "-n", "-u", "assured,SEEN_REPLY"]);
        let expect = FilterSpec {
            family: Some(6),
            snat: true,
            assured: Some(true),
            replied: Some(true),
            ..FilterSpec::default()
        };
        assert_eq!(spec, Ok(expect));
        let spec = filter(&["-n", "198.51.100.2", "-g", "192.0.2.10"]).expect("both directions");
        assert_eq!(spec.reply_destination, Some("198.51.100.2/32".parse().expect("prefix")));
        assert_eq!(spec.reply_source, Some("192.0.2.10/32".parse().expect("prefix")));
        assert!(spec.snat && spec.dnat);
    }

    #[test]
    fn what_cannot_match_is_refused() {
        assert!(filter(&["-u", "UNREPLIED,SEEN_REPLY"]).is_err());
        assert!(filter(&["-n", "198.51.100.2", "-q", "198.51.100.3"]).is_err());
        assert!(filter(&["--state", "OPEN"]).expect_err("no such state").contains("SYN_SENT2"));
        assert!(filter(&["-p", "256"]).is_err());
        assert!(filter(&["-s", "lan"]).is_err());
    }

    #[test]
    fn a_filter_survives_the_query_string() {
        let spec = filter(&["-p", "udp", "-s", "2001:db8::/32", "-u", "UNREPLIED", "-g"]).expect("filter");
        let query = with_query("/x", &spec).expect("query");
        let back: FilterSpec = serde_urlencoded::from_str(query.split_once('?').expect("query").1).expect("read");
        assert_eq!(back, spec);
        assert_eq!(with_query("/x", &FilterSpec::default()).expect("query"), "/x");
    }
}
