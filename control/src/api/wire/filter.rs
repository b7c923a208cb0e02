//! Filters of connections as they travel in a query string.

use dataplane::api::command::ConnFilter;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config;

/// States of connections by the names that nf_conntrack gives them, those of TCP first, then what SCTP has besides.
const STATES: [&str; 17] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// A [`ConnFilter`] as it travels in a query string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSpec {
    /// IP version: 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
    /// IP protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<u8>,
    /// Original source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// Original destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNet>,
    /// Source of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_source: Option<IpNet>,
    /// Destination of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_destination: Option<IpNet>,
    /// Original source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Original destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Source port of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_sport: Option<u16>,
    /// Destination port of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_dport: Option<u16>,
    /// ICMP or ICMPv6 type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP or ICMPv6 identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// Original source key of GRE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srckey: Option<u16>,
    /// Original destination key of GRE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dstkey: Option<u16>,
    /// Source key of GRE, reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_srckey: Option<u16>,
    /// Destination key of GRE, reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_dstkey: Option<u16>,
    /// State of TCP or SCTP by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Mark, `value` or `value/mask`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// Conntrack zone of the original direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Conntrack zone of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_zone: Option<u16>,
    /// Whether assured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assured: Option<bool>,
    /// Whether the reply was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replied: Option<bool>,
    /// Whether another connection announced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<bool>,
    /// Only where the source is translated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snat: bool,
    /// Only where the destination is translated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dnat: bool,
    /// Only where either is translated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat: bool,
    /// Only where either is translated to one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_to: Option<IpNet>,
}

impl FilterSpec {
    /// What the workers understand.
    ///
    /// # Errors
    /// Where the state has no such name, or the mark is none.
    pub fn to_filter(&self) -> Result<ConnFilter, String> {
        Ok(ConnFilter {
            family: self.family,
            proto: self.proto,
            source: self.source,
            destination: self.destination,
            reply_source: self.reply_source,
            reply_destination: self.reply_destination,
            sport: self.sport,
            dport: self.dport,
            reply_sport: self.reply_sport,
            reply_dport: self.reply_dport,
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            icmp_id: self.icmp_id,
            srckey: self.srckey,
            dstkey: self.dstkey,
            reply_srckey: self.reply_srckey,
            reply_dstkey: self.reply_dstkey,
            state: self.state.as_deref().map(state).transpose()?,
            mark: self.mark.as_deref().map(mark).transpose()?,
            ct_zone: self.zone,
            reply_ct_zone: self.reply_zone,
            assured: self.assured,
            replied: self.replied,
            expected: self.expected,
            snat: self.snat,
            dnat: self.dnat,
            nat: self.nat,
            nat_to: self.nat_to,
        })
    }
}

/// The state called `name`, in any case.
///
/// # Errors
/// One sentence with all names where there is none.
pub fn state(name: &str) -> Result<&'static str, String> {
    let found = STATES.iter().find(|s| s.eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| format!("there is no state {name}: the states are {}", STATES.join(", ")))
}

/// The mark `value` or `value/mask`, as `(mask, value)`.
///
/// # Errors
/// One sentence where it is none.
pub fn mark(text: &str) -> Result<(u32, u32), String> {
    config::mark(text).ok_or_else(|| {
        format!(
            "{text} is no mark: a number such as 5 or 0x10, or 0x10/0xff without bits outside of the mask, is needed"
        )
    })
}
