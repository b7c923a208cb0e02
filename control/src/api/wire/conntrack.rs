//! A connection as it travels, is kept in a file, and comes back.
//!
//! Indices of the running policy (interfaces, timeout policies, helpers) are names here, so that a line means the same
//! to another process and to another configuration.

use std::net::IpAddr;
use std::time::Duration;

use dataplane::api::Tuple;
use dataplane::api::command::{ConnSpec, ConnView};
use dataplane::api::policy::{ConntrackSpec, HelperKind};
use serde::{Deserialize, Serialize};

use super::filter::state;
use super::sides::Side;
use crate::config::Interface;

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP query identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// Source key of GRE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srckey: Option<u16>,
    /// Destination key of GRE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dstkey: Option<u16>,
    /// Conntrack zone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zone: u16,
    /// Packets.
    #[serde(default)]
    pub packets: u64,
    /// Bytes of the IP packets.
    #[serde(default)]
    pub bytes: u64,
    /// Interface that its packets leave by, once one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
}

impl Way {
    /// Of a tuple; nothing was counted yet.
    pub fn new(t: &Tuple) -> Self {
        let (icmp, ports, gre) = (t.is_icmp(), has_ports(t.proto), t.proto == GRE);
        Self {
            src: t.src,
            dst: t.dst,
            sport: ports.then_some(t.sport),
            dport: ports.then_some(t.dport),
            icmp_type: icmp.then(|| t.icmp_type()),
            icmp_code: icmp.then(|| t.icmp_code()),
            icmp_id: icmp.then_some(t.sport),
            srckey: gre.then_some(t.sport),
            dstkey: gre.then_some(t.dport),
            zone: t.ct_zone,
            packets: 0,
            bytes: 0,
            egress: None,
        }
    }

    /// The tuple of protocol `proto` that this is.
    ///
    /// # Errors
    /// What is missing, or does not belong to the protocol.
    pub fn tuple(&self, proto: u8) -> Result<Tuple, String> {
        let Self { src, dst, zone: ct_zone, .. } = *self;
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(format!("{src} and {dst} mix IPv4 and IPv6"));
        }
        let plain = Tuple { src, dst, proto, sport: 0, dport: 0, ct_zone };
        let (icmp, ports, gre) = (plain.is_icmp(), has_ports(proto), proto == GRE);
        let given = [
            ("a source and a destination port", ports, self.sport.is_some(), self.dport.is_some()),
            ("an ICMP type and identifier", icmp, self.icmp_type.is_some(), self.icmp_id.is_some()),
            ("a source and a destination key", gre, self.srckey.is_some(), self.dstkey.is_some()),
        ];
        for (what, belongs, a, b) in given {
            if belongs && !(a && b) {
                return Err(format!("protocol {proto} needs {what}"));
            }
            if !belongs && (a || b) {
                return Err(format!("protocol {proto} of this IP version does not have {what}"));
            }
        }
        let (sport, dport) = match (self.icmp_type, self.icmp_id) {
            (Some(kind), Some(id)) => (id, u16::from_be_bytes([kind, self.icmp_code.unwrap_or(0)])),
            _ => (self.sport.or(self.srckey).unwrap_or(0), self.dport.or(self.dstkey).unwrap_or(0)),
        };
        Ok(Tuple { sport, dport, ..plain })
    }
}

/// A tuple that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// IP protocol number.
    pub proto: u8,
    /// The rest.
    pub way: Way,
}

/// One connection: a line of `conntrack list`, and of a saved table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conn {
    /// IP protocol number.
    pub proto: u8,
    /// State of TCP or SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Seconds until it expires.
    pub timeout: u32,
    /// As its first packet came.
    pub original: Way,
    /// As replies come on the wire.
    pub reply: Way,
    /// Whether a reply was seen.
    pub replied: bool,
    /// Whether kept under pressure.
    pub assured: bool,
    /// Whether another connection announced it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expected: bool,
    /// Its mark.
    #[serde(default)]
    pub mark: u32,
    /// The helper that watches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<String>,
    /// What that knows of an FTP control connection, original direction first; a list has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sides: Option<[Side; 2]>,
    /// The timeout policy that a rule gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_policy: Option<String>,
    /// When it began, seconds since 1970; 0 where that is not known, and then it begins when it is put into a table.
    #[serde(default)]
    pub start: u64,
    /// Seconds since then.
    #[serde(default)]
    pub age: u32,
    /// Of GRE, its two timeouts in seconds: before a reply and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gre_timeouts: Option<[u64; 2]>,
    /// Interface that its first packet came in by; where it is not known, the policy is not asked about the connection
    /// once it is put into a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether the gateway itself sent the first packet, out of that interface.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Which worker owns it.
    #[serde(default)]
    pub worker: usize,
}

/// What the indices in connections mean, and what time it is.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// By index.
    pub interfaces: &'a [Interface],
    /// Timeouts, with their policies.
    pub conntrack: &'a ConntrackSpec,
    /// Since 1970.
    pub now: Duration,
}

impl Conn {
    /// Of a worker's view.
    pub fn new(v: &ConnView, worker: usize, names: &Names<'_>) -> Self {
        let interface = |i: u16| names.interfaces.get(usize::from(i)).map(|i| i.name.clone());
        let way = |t: &Tuple, i: usize| Way {
            packets: v.packets[i],
            bytes: v.bytes[i],
            egress: v.egress[i].and_then(interface),
            ..Way::new(t)
        };
        let policy = usize::from(v.timeout_policy).checked_sub(1);
        let policy = policy.and_then(|i| names.conntrack.timeout_policies.get(i));
        let timeouts = names.conntrack.timeouts_of(v.timeout_policy);
        Self {
            proto: v.original.proto,
            state: v.state.map(str::to_owned),
            timeout: v.timeout_s,
            original: way(&v.original, 0),
            reply: way(&v.reply, 1),
            replied: v.replied,
            assured: v.assured,
            expected: v.expected,
            mark: v.mark,
            helper: v.helper.map(|h| h.name().to_owned()),
            sides: None,
            timeout_policy: policy.map(|(name, _)| name.clone()),
            start: names.now.saturating_sub(Duration::from_millis(v.age_ms)).as_secs(),
            age: u32::try_from(v.age_ms / 1000).unwrap_or(u32::MAX),
            interface: interface(v.interface),
            local: v.local,
            gre_timeouts: (v.original.proto == GRE).then(|| [timeouts.gre.as_secs(), timeouts.gre_stream.as_secs()]),
            worker,
        }
    }

    /// What can be told without a running gateway: whether its parts go together.
    ///
    /// # Errors
    /// One sentence.
    pub fn check(&self) -> Result<(Tuple, Tuple, Option<&'static str>), String> {
        let (original, reply) = (self.original.tuple(self.proto)?, self.reply.tuple(self.proto)?);
        if original.is_ipv4() != reply.is_ipv4() {
            return Err("original and reply mix IPv4 and IPv6".into());
        }
        Ok((original, reply, self.state.as_deref().map(state).transpose()?))
    }

    /// What a worker makes it from; `judge`: the policy is asked about it at its next packet, where the interface that its
    /// first packet came in by is known.
    ///
    /// # Errors
    /// One sentence, where it does not go together or a name is not known.
    pub fn to_spec(&self, names: &Names<'_>, judge: bool) -> Result<ConnSpec, String> {
        let (original, reply, state) = self.check()?;
        let helper = match &self.helper {
            None => None,
            Some(name) => {
                let kind = HelperKind::ALL.into_iter().find(|h| h.name() == name);
                Some(kind.ok_or_else(|| format!("there is no helper {name}"))?)
            }
        };
        let sides = match &self.sides {
            None => None,
            Some([original, reply]) => Some(Box::new([original.saved()?, reply.saved()?])),
        };
        let policies = &names.conntrack.timeout_policies;
        let timeout_policy = match &self.timeout_policy {
            None => 0,
            Some(name) => {
                let index = policies.iter().position(|(n, _)| n == name);
                let index = index.and_then(|i| u8::try_from(i + 1).ok());
                index.ok_or_else(|| format!("there is no timeout policy {name}"))?
            }
        };
        let interface = match &self.interface {
            None => 0,
            Some(name) => {
                let index = names.interfaces.iter().position(|i| i.name == *name);
                let index = index.and_then(|i| u16::try_from(i).ok());
                index.ok_or_else(|| format!("there is no interface {name}"))?
            }
        };
        Ok(ConnSpec {
            original,
            reply,
            state,
            timeout_s: self.timeout,
            replied: self.replied,
            assured: self.assured,
            expected: self.expected,
            mark: self.mark,
            helper,
            sides,
            timeout_policy,
            age_ms: self.age_at(names.now),
            packets: [self.original.packets, self.reply.packets],
            bytes: [self.original.bytes, self.reply.bytes],
            interface,
            local: self.local,
            judge: judge && self.interface.is_some(),
        })
    }

    /// How old it is at `now`, milliseconds.
    fn age_at(&self, now: Duration) -> u64 {
        if self.start == 0 {
            return 0;
        }
        let start = Duration::from_secs(self.start).saturating_add(HALF);
        u64::try_from(now.saturating_sub(start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Half a second: a start that is known to the second is taken for its middle, so that it stays in it.
const HALF: Duration = Duration::from_millis(500);

const GRE: u8 = 47;

/// TCP, UDP, SCTP, UDP-Lite: the protocols that are tracked by their ports.
const fn has_ports(proto: u8) -> bool {
    matches!(proto, 6 | 17 | 132 | 136)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
const fn is_zero(n: &u16) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(proto: u8, text: [&str; 2], sport: u16, dport: u16) -> Way {
        let [src, dst] = text.map(|a| a.parse().expect("address"));
        Way::new(&Tuple { src, dst, proto, sport, dport, ct_zone: 0 })
    }

    #[test]
    fn a_tuple_comes_back_from_its_line() {
        for proto in [1, 6, 17, 33, 47, 50, 132, 136] {
            let ports = if [33, 50].contains(&proto) { (0, 0) } else { (77, 8 << 8 | 3) };
            let (src, dst) = ("192.0.2.1".parse().expect("address"), "192.0.2.2".parse().expect("address"));
            let t = Tuple { src, dst, proto, sport: ports.0, dport: ports.1, ct_zone: 9 };
            assert_eq!(Way::new(&t).tuple(proto), Ok(t), "{proto}");
        }
    }

    #[test]
    fn a_start_stays_in_its_second_however_often_it_is_saved() {
        let conntrack = ConntrackSpec::default();
        let at = |ms| Names { interfaces: &[], conntrack: &conntrack, now: Duration::from_millis(ms) };
        let original = way(17, ["192.0.2.1", "192.0.2.2"], 1, 2);
        let text = serde_json::json!({
            "proto": 17, "timeout": 30, "original": original, "reply": original, "replied": false, "assured": false,
        });
        let mut c: Conn = serde_json::from_value(text).expect("a connection");
        assert_eq!(c.to_spec(&at(5_000_000), false).map(|s| s.age_ms), Ok(0), "it begins now where nothing is said");
        for start in [1, 1_795_162_750] {
            c.start = start;
            for now in [1_795_162_757_000, 1_795_162_999_999, 9_795_162_757_123] {
                let age = c.to_spec(&at(now), true).expect("a spec").age_ms;
                // What clocks are read apart, and what is lost to coarse units.
                for late in 0..400 {
                    assert_eq!((now + late - age - 67) / 1000, start);
                }
            }
        }
        c.start = u64::MAX;
        assert_eq!(c.to_spec(&at(5_000_000), false).map(|s| s.age_ms), Ok(0), "none begins later");
    }

    #[test]
    fn parts_that_do_not_go_together_are_named() {
        let tcp = way(6, ["192.0.2.1", "192.0.2.2"], 1, 2);
        assert_eq!(
            tcp.tuple(1),
            Err("protocol 1 of this IP version does not have a source and a destination port".into())
        );
        let no_port = Way { dport: None, ..tcp.clone() };
        assert_eq!(no_port.tuple(6), Err("protocol 6 needs a source and a destination port".into()));
        let mixed = Way { dst: "2001:db8::1".parse().expect("address"), ..tcp };
        assert_eq!(mixed.tuple(6), Err("192.0.2.1 and 2001:db8::1 mix IPv4 and IPv6".into()));
        let ping = way(58, ["2001:db8::1", "2001:db8::2"], 1, 128 << 8);
        assert!(ping.tuple(1).is_err_and(|e| e.contains("of this IP version")), "ICMP has no place in IPv6");
    }
}
