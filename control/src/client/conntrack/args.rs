//! How connections are named on the command line: tuples, and what is new about them. Options and letters are those of
//! conntrack-tools.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use dataplane::api::Tuple;

use crate::api::wire::{self, Way};
use crate::client::ClientError;

/// What stands beside addresses in tuples.
#[derive(Debug, Default, Args)]
pub struct Ends {
    /// Original source port.
    #[arg(long, visible_alias = "orig-port-src")]
    pub(super) sport: Option<u16>,
    /// Original destination port.
    #[arg(long, visible_alias = "orig-port-dst")]
    pub(super) dport: Option<u16>,
    /// Source port of the reply direction.
    #[arg(long)]
    pub(super) reply_port_src: Option<u16>,
    /// Destination port of the reply direction.
    #[arg(long)]
    pub(super) reply_port_dst: Option<u16>,
    /// ICMP or ICMPv6 type.
    #[arg(long, visible_alias = "icmpv6-type")]
    pub(super) icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code; 0 where left out.
    #[arg(long, visible_alias = "icmpv6-code")]
    pub(super) icmp_code: Option<u8>,
    /// ICMP or ICMPv6 identifier.
    #[arg(long, visible_alias = "icmpv6-id")]
    pub(super) icmp_id: Option<u16>,
    /// Source key of GRE.
    #[arg(long, visible_alias = "orig-key-src", value_parser = key)]
    pub(super) srckey: Option<u16>,
    /// Destination key of GRE.
    #[arg(long, visible_alias = "orig-key-dst", value_parser = key)]
    pub(super) dstkey: Option<u16>,
    /// Source key of GRE, reply direction.
    #[arg(long, value_parser = key)]
    pub(super) reply_key_src: Option<u16>,
    /// Destination key of GRE, reply direction.
    #[arg(long, value_parser = key)]
    pub(super) reply_key_dst: Option<u16>,
}

/// One connection by its tuples.
#[derive(Debug, Args)]
pub struct Tuples {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `gre`, ... or a number.
    #[arg(short, long, visible_alias = "protonum", value_parser = protocol)]
    pub proto: u8,
    /// Original source.
    #[arg(short = 's', long = "src", visible_alias = "orig-src")]
    source: Option<IpAddr>,
    /// Original destination.
    #[arg(short = 'd', long = "dst", visible_alias = "orig-dst")]
    destination: Option<IpAddr>,
    /// Source of the reply direction.
    #[arg(short = 'r', long = "reply-src")]
    reply_source: Option<IpAddr>,
    /// Destination of the reply direction.
    #[arg(short = 'q', long = "reply-dst")]
    reply_destination: Option<IpAddr>,
    #[command(flatten)]
    ends: Ends,
    /// Conntrack zone; 0, which is the common one, where left out.
    #[arg(short = 'w', long, visible_alias = "orig-zone", default_value_t = 0)]
    zone: u16,
    /// Conntrack zone of the reply direction; the same where left out.
    #[arg(long)]
    reply_zone: Option<u16>,
}

impl Tuples {
    /// The direction that was given: the original one, or by -r and -q the reply's.
    pub fn given(&self) -> Result<Way, ClientError> {
        match (self.source, self.destination, self.reply_source, self.reply_destination) {
            (Some(_), Some(_), ..) => Ok(self.original()?.1),
            (None, None, Some(src), Some(dst)) => {
                let way = Way {
                    sport: self.ends.reply_port_src,
                    dport: self.ends.reply_port_dst,
                    srckey: self.ends.reply_key_src,
                    dstkey: self.ends.reply_key_dst,
                    zone: self.reply_zone.unwrap_or(self.zone),
                    ..self.way(src, dst)
                };
                way.tuple(self.proto).map_err(ClientError::Argument)?;
                Ok(way)
            }
            _ => Err(ClientError::Argument("--src and --dst, or --reply-src and --reply-dst, are needed".into())),
        }
    }

    /// Both directions; what is not said of the reply answers the original.
    pub fn both(&self) -> Result<(Way, Way), ClientError> {
        let (tuple, original) = self.original()?;
        let plain = Way::new(&tuple.inverse());
        let reply = Way {
            src: self.reply_source.unwrap_or(plain.src),
            dst: self.reply_destination.unwrap_or(plain.dst),
            sport: self.ends.reply_port_src.or(plain.sport),
            dport: self.ends.reply_port_dst.or(plain.dport),
            srckey: self.ends.reply_key_src.or(plain.srckey),
            dstkey: self.ends.reply_key_dst.or(plain.dstkey),
            zone: self.reply_zone.unwrap_or(self.zone),
            ..plain
        };
        reply.tuple(self.proto).map_err(ClientError::Argument)?;
        Ok((original, reply))
    }

    fn original(&self) -> Result<(Tuple, Way), ClientError> {
        let (Some(src), Some(dst)) = (self.source, self.destination) else {
            return Err(ClientError::Argument("--src and --dst are needed".into()));
        };
        let way = Way {
            sport: self.ends.sport,
            dport: self.ends.dport,
            srckey: self.ends.srckey,
            dstkey: self.ends.dstkey,
            ..self.way(src, dst)
        };
        Ok((way.tuple(self.proto).map_err(ClientError::Argument)?, way))
    }

    /// What both directions have.
    fn way(&self, src: IpAddr, dst: IpAddr) -> Way {
        let nothing = Tuple { src, dst, proto: 0, sport: 0, dport: 0, ct_zone: self.zone };
        let Ends { icmp_type, icmp_code, icmp_id, .. } = self.ends;
        Way { icmp_type, icmp_code, icmp_id, ..Way::new(&nothing) }
    }
}

/// What `conntrack update` changes.
#[derive(Debug, Args)]
pub struct NewValues {
    /// The new mark: `value`, or `value/mask` for only these bits.
    #[arg(short, long, value_parser = wire::mark)]
    mark: Option<(u32, u32)>,
    /// Seconds until it expires if nothing comes.
    #[arg(short, long)]
    timeout: Option<u32>,
    /// `ASSURED`: it can be given, not taken.
    #[arg(short = 'u', long, ignore_case = true)]
    status: Option<Given>,
}

/// The one status that can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Given {
    Assured,
}

impl NewValues {
    /// As they travel.
    pub fn change(&self) -> Result<wire::Change, ClientError> {
        let Self { mark, timeout, .. } = *self;
        let change = wire::Change { mark, timeout, assured: self.status == Some(Given::Assured) };
        if change == wire::Change::default() {
            return Err(ClientError::Argument("--mark, --timeout or --status ASSURED is needed".into()));
        }
        Ok(change)
    }
}

/// What a connection that is made by hand has besides its tuples.
#[derive(Debug, Args)]
pub struct NewConn {
    #[command(flatten)]
    tuples: Tuples,
    /// State of TCP or SCTP, which need one.
    #[arg(long, value_parser = wire::state)]
    state: Option<&'static str>,
    /// Seconds until it expires if nothing comes.
    #[arg(short, long)]
    timeout: u32,
    /// Its mark.
    #[arg(short, long, value_parser = wire::mark)]
    mark: Option<(u32, u32)>,
    /// `ASSURED`, `SEEN_REPLY`; both with a comma.
    #[arg(short = 'u', long, value_delimiter = ',', ignore_case = true)]
    status: Vec<Fresh>,
    /// The helper that watches it: `ftp`, `tftp`, `pptp`.
    #[arg(long)]
    helper: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Fresh {
    Assured,
    SeenReply,
    /// No status at all.
    #[value(hide = true)]
    Unset,
}

impl NewConn {
    /// As it travels; it begins at `now`, seconds since 1970.
    pub fn conn(&self, now: u64) -> Result<wire::Conn, ClientError> {
        let proto = self.tuples.proto;
        match (proto, self.state) {
            (6 | 132, None) => return Err(ClientError::Argument("--state is needed".into())),
            (6 | 132, Some(_)) | (_, None) => {}
            (_, Some(_)) => return Err(ClientError::Argument(format!("protocol {proto} has no states"))),
        }
        let (original, reply) = self.tuples.both()?;
        Ok(wire::Conn {
            interface: None,
            local: false,
            proto,
            state: self.state.map(str::to_owned),
            timeout: self.timeout,
            original,
            reply,
            replied: self.status.contains(&Fresh::SeenReply),
            assured: self.status.contains(&Fresh::Assured),
            expected: false,
            // As conntrack-tools, which ignore the mask here.
            mark: self.mark.map_or(0, |(_, value)| value),
            helper: self.helper.clone(),
            sides: None,
            timeout_policy: None,
            start: now,
            age: 0,
            gre_timeouts: None,
            worker: 0,
        })
    }
}

/// Which events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mask {
    /// All of them.
    All,
    /// New connections.
    New,
    /// Changes of known ones.
    #[value(alias = "UPDATE")]
    Updates,
    /// Ends.
    Destroy,
}

/// The kinds as the request's path has them.
pub fn kinds(masks: &[Mask]) -> String {
    let all = masks.is_empty() || masks.contains(&Mask::All);
    let known = [(Mask::New, "new"), (Mask::Updates, "updates"), (Mask::Destroy, "destroy")];
    let wanted = known.iter().filter(|(m, _)| all || masks.contains(m)).map(|(_, name)| *name);
    wanted.collect::<Vec<_>>().join(",")
}

pub(super) fn protocol(text: &str) -> Result<u8, String> {
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

/// A GRE key, decimal or with 0x. PPTP's are of 16 bits.
pub(super) fn key(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "a number from 0 to 65535, decimal or with 0x, is needed".into())
}
