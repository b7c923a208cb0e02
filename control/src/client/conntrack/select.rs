//! Which connections a command is about: filters. Options and letters are those of conntrack-tools.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::args::{Ends, protocol};
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
    /// Mask of the original source, where that is an address.
    #[arg(long, value_name = "MASK", requires = "source")]
    mask_src: Option<IpAddr>,
    /// Original destination, address or prefix.
    #[arg(short = 'd', long = "dst", visible_alias = "orig-dst", value_parser = prefix)]
    destination: Option<IpNet>,
    /// Mask of the original destination, where that is an address.
    #[arg(long, value_name = "MASK", requires = "destination")]
    mask_dst: Option<IpAddr>,
    /// Source of the reply direction, address or prefix.
    #[arg(short = 'r', long = "reply-src", value_parser = prefix)]
    reply_source: Option<IpNet>,
    /// Destination of the reply direction, address or prefix.
    #[arg(short = 'q', long = "reply-dst", value_parser = prefix)]
    reply_destination: Option<IpNet>,
    #[command(flatten)]
    ends: Ends,
    /// State of TCP or SCTP: `ESTABLISHED`, `SYN_SENT`, ...
    #[arg(long, value_parser = wire::state)]
    state: Option<&'static str>,
    /// Conntrack zone of the original direction; 0 is the common one.
    #[arg(short = 'w', long, visible_alias = "orig-zone")]
    zone: Option<u16>,
    /// Conntrack zone of the reply direction.
    #[arg(long)]
    reply_zone: Option<u16>,
    /// Only connections whose source is translated, to this address where given.
    #[arg(short = 'n', long = "src-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    src_nat: Option<Option<IpNet>>,
    /// Only connections whose destination is translated, to this address where given.
    #[arg(short = 'g', long = "dst-nat", value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    dst_nat: Option<Option<IpNet>>,
    /// Only connections of which either is translated, to this address where given.
    #[arg(short = 'j', long, value_name = "ADDRESS", num_args = 0..=1, value_parser = prefix)]
    any_nat: Option<Option<IpNet>>,
}

/// All filters.
#[derive(Debug, Default, Args)]
pub struct Filter {
    #[command(flatten)]
    selection: Selection,
    /// `value`, or `value/mask`: only these bits.
    #[arg(short, long, value_parser = mark_text)]
    mark: Option<String>,
    /// `ASSURED`, `SEEN_REPLY`, `UNREPLIED`, `EXPECTED`, `SRC_NAT`, `DST_NAT`; several with commas.
    #[arg(short = 'u', long, value_delimiter = ',', ignore_case = true)]
    status: Vec<ConnStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum ConnStatus {
    Assured,
    SeenReply,
    Unreplied,
    Expected,
    SrcNat,
    DstNat,
    /// All listed connections are.
    Confirmed,
    /// No status at all: conntrack-tools take it beside others, where it adds nothing.
    #[value(hide = true)]
    Unset,
    /// Refused, as those below, with the reason.
    #[value(hide = true)]
    FixedTimeout,
    #[value(hide = true)]
    Offload,
    #[value(hide = true)]
    HwOffload,
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
            source: masked(self.source, self.mask_src, "--mask-src")?,
            destination: masked(self.destination, self.mask_dst, "--mask-dst")?,
            reply_source: translated(self.reply_source, self.dst_nat, "--dst-nat")?,
            reply_destination: translated(self.reply_destination, self.src_nat, "--src-nat")?,
            sport: self.ends.sport,
            dport: self.ends.dport,
            reply_sport: self.ends.reply_port_src,
            reply_dport: self.ends.reply_port_dst,
            icmp_type: self.ends.icmp_type,
            icmp_code: self.ends.icmp_code,
            icmp_id: self.ends.icmp_id,
            srckey: self.ends.srckey,
            dstkey: self.ends.dstkey,
            reply_srckey: self.ends.reply_key_src,
            reply_dstkey: self.ends.reply_key_dst,
            state: self.state.map(str::to_owned),
            mark: None,
            zone: self.zone,
            reply_zone: self.reply_zone,
            assured: None,
            replied: None,
            expected: None,
            snat: self.src_nat.is_some(),
            dnat: self.dst_nat.is_some(),
            nat: self.any_nat.is_some(),
            nat_to: self.any_nat.flatten(),
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
        if has(ConnStatus::FixedTimeout) {
            return Err(ClientError::Argument(
                "no connection is FIXED_TIMEOUT: packets always move the timeout on".into(),
            ));
        }
        if has(ConnStatus::Offload) || has(ConnStatus::HwOffload) {
            return Err(ClientError::Argument("no connection is OFFLOAD: the workers see all packets".into()));
        }
        if self.status == [ConnStatus::Unset] {
            return Err(ClientError::Argument(
                "UNSET alone chooses nothing: every listed connection has a status".into(),
            ));
        }
        let mut spec = self.selection.spec()?;
        spec.mark.clone_from(&self.mark);
        spec.assured = has(ConnStatus::Assured).then_some(true);
        spec.expected = has(ConnStatus::Expected).then_some(true);
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

/// `address` with a mask that is given apart.
fn masked(address: Option<IpNet>, mask: Option<IpAddr>, option: &str) -> Result<Option<IpNet>, ClientError> {
    let (Some(net), Some(mask)) = (address, mask) else { return Ok(address) };
    if net.prefix_len() != net.max_prefix_len() {
        return Err(ClientError::Argument(format!("{option} and a prefix contradict each other")));
    }
    let one_version = net.addr().is_ipv4() == mask.is_ipv4();
    let net = IpNet::with_netmask(net.addr(), mask).ok().filter(|_| one_version);
    let net = net.ok_or_else(|| ClientError::Argument(format!("{option} {mask} is no mask of this IP version")))?;
    Ok(Some(net.trunc()))
}

/// A mark that is passed on as it was written.
fn mark_text(text: &str) -> Result<String, String> {
    wire::mark(text).map(|_| text.to_owned())
}
