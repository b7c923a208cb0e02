//! Which connections a command is about: filters. Options and letters are those of conntrack-tools.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::args::protocol;
use crate::api::wire::{self, FilterSpec};
use crate::client::ClientError;

/// Filters by what does not change while a connection lives, and by its state.
#[derive(Debug, Default, Args)]
pub struct Selection {
    /// `ipv4` or `ipv6`.
    #[arg(short, long, value_parser = family)]
    family: Option<u8>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `gre`, ... or a number.
    #[arg(short, long, visible_alias = "protonum", value_parser = protocol)]
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
    /// State of TCP or SCTP: `ESTABLISHED`, `SYN_SENT`, ...
    #[arg(long, value_parser = wire::state)]
    state: Option<&'static str>,
    /// Conntrack zone of the original direction; 0 is the common one.
    #[arg(short = 'w', long, visible_alias = "orig-zone")]
    zone: Option<u16>,
    /// Only connections whose source is translated, to this address where given.
    #[arg(short = 'n', long = "src-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    src_nat: Option<Option<IpNet>>,
    /// Only connections whose destination is translated, to this address where given.
    #[arg(short = 'g', long = "dst-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    dst_nat: Option<Option<IpNet>>,
}

/// All filters.
#[derive(Debug, Default, Args)]
pub struct Filter {
    #[command(flatten)]
    selection: Selection,
    /// `value`, or `value/mask`: only these bits.
    #[arg(short, long, value_parser = mark_text)]
    mark: Option<String>,
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

impl Selection {
    /// As it travels.
    pub fn spec(&self) -> Result<FilterSpec, ClientError> {
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
            mark: None,
            zone: self.zone,
            assured: None,
            replied: None,
            snat: self.src_nat.is_some(),
            dnat: self.dst_nat.is_some(),
        })
    }
}

impl Filter {
    /// As it travels.
    pub fn spec(&self) -> Result<FilterSpec, ClientError> {
        let has = |s| self.status.contains(&s);
        if has(ConnStatus::SeenReply) && has(ConnStatus::Unreplied) {
            return Err(ClientError::Argument("no connection is both SEEN_REPLY and UNREPLIED".into()));
        }
        let mut spec = self.selection.spec()?;
        spec.mark.clone_from(&self.mark);
        spec.assured = has(ConnStatus::Assured).then_some(true);
        spec.replied = match (has(ConnStatus::SeenReply), has(ConnStatus::Unreplied)) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        spec.snat |= has(ConnStatus::SrcNat);
        spec.dnat |= has(ConnStatus::DstNat);
        Ok(spec)
    }
}

fn family(text: &str) -> Result<u8, String> {
    match text {
        "ipv4" | "4" => Ok(4),
        "ipv6" | "6" => Ok(6),
        _ => Err("`ipv4` or `ipv6` is needed".into()),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|n| n.trunc()).map_err(|_| "an address or a prefix is needed".into())
}

/// A mark that is passed on as it was written.
fn mark_text(text: &str) -> Result<String, String> {
    wire::mark(text).map(|_| text.to_owned())
}
