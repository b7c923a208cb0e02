//! One policy, said three ways: as a scenario's header lines, as nft rules and sysctls for the kernel ([`kernel`]), as
//! Sluice's YAML ([`sluice`]).
//!
//! ```text
//! usual                                              established and related pass, invalid does not, lan may begin
//! default accept                                     what no rule matches; drop where nothing is said
//! rule accept from=wan to=lan proto=tcp dport=80 state=new src=198.51.100.0/24 dst=10.0.0.9 mark=0x10/0xf0
//! rule continue dport=5000 set_mark=0x10/0xf0        also on rules that accept; so is timeout=NAME
//! raw notrack from=lan proto=udp dport=53            also: raw accept, raw drop
//! nat masquerade | nat snat 198.51.100.7 mark=5 | nat dnat tcp 198.51.100.1:8080 10.0.0.9:80
//! nat yaml type: redirect, from: lan, …              any other rule, as the YAML has it,
//! nat prerouting iifname lan … redirect to :5353     and what says the same in nft; also: nat postrouting …
//! set loose=no liberal=yes checksum=no
//! timeout udp=2 tcp_close=3                          nf_conntrack's names, seconds
//! timeout_policy voice udp=5 udp_stream=9            of TCP and UDP, which nft has names for
//! helper ftp tcp 21
//! zone lan 7                                         what comes in there is in that conntrack zone
//! mtu wan 1400
//! ```
//! *Limits*: what both systems can say. A rule without `to` holds for what is forwarded and what is delivered.

mod kernel;
mod sluice;

use crate::frame::Side;

/// Bytes for waiting fragments, so many that none is given up for want of room: what goes first then is each system's own.
pub const FRAGMENTS: usize = 32 << 20;

/// Values of a match by key: `from`, `to`, `src`, `dst`, `proto`, `sport`, `dport`, `state`, `mark`.
pub type Matches = Vec<(String, String)>;

/// Timeouts by nf_conntrack's names, seconds.
pub type Timeouts = Vec<(String, u32)>;

/// One filter rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `accept`, `drop` or `continue`.
    pub action: String,
    /// What it matches.
    pub matches: Matches,
    /// The mark that it sets, and its mask where not all bits.
    pub set_mark: Option<String>,
    /// The timeout policy that it gives.
    pub timeout: Option<String>,
}

/// One translation rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nat {
    /// From lan to wan, the source becomes the outer address.
    Masquerade(Matches),
    /// From lan to wan, the source becomes this address.
    Snat(String, Matches),
    /// From wan, this protocol, address and port become that address and port.
    Dnat {
        /// `tcp`, `udp` …
        proto: String,
        /// The address that is translated.
        address: String,
        /// Its port; `None` is every port.
        port: Option<String>,
        /// The new destination.
        to_address: String,
        /// The new port.
        to_port: Option<String>,
    },
    /// A rule in Sluice's words.
    Yaml(String),
    /// A rule in nft's words, of prerouting.
    Prerouting(String),
    /// The same, of postrouting.
    Postrouting(String),
}

/// What both systems are set up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Filter rules.
    pub rules: Vec<Rule>,
    /// Whether what no rule matches passes.
    pub default_accept: bool,
    /// Translation.
    pub nat: Vec<Nat>,
    /// Raw rules: action and what they match.
    pub raw: Vec<(String, Matches)>,
    /// `nf_conntrack_tcp_loose`.
    pub loose: bool,
    /// `nf_conntrack_tcp_be_liberal`.
    pub liberal: bool,
    /// `nf_conntrack_checksum`.
    pub checksum: bool,
    /// Idle timeouts that are not the default.
    pub timeouts: Timeouts,
    /// Timeouts that rules give, by name.
    pub timeout_policies: Vec<(String, Timeouts)>,
    /// Helpers: name, protocol, destination port.
    pub helpers: Vec<(String, String, String)>,
    /// Conntrack zones, of lan and wan; 0 for none.
    pub zones: [u16; 2],
    /// Largest IP packet, of lan and wan.
    pub mtu: [u16; 2],
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            default_accept: false,
            nat: Vec::new(),
            raw: Vec::new(),
            loose: true,
            liberal: false,
            checksum: true,
            timeouts: Vec::new(),
            timeout_policies: Vec::new(),
            helpers: Vec::new(),
            zones: [0; 2],
            mtu: [1500; 2],
        }
    }
}

/// Router addresses, as YAML and `ip` take them: of lan, of wan.
pub const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1/24", "fd00:1::1/64"], ["198.51.100.1/24", "2001:db8::1/64"]];
/// Default routers, behind wan.
pub const GATEWAYS: [&str; 2] = ["198.51.100.254", "2001:db8::fe"];

/// The stations that the router can reach without asking: of lan, of wan.
pub fn stations() -> [Vec<String>; 2] {
    let lan = (2..=20).map(|n| format!("10.0.0.{n}")).chain((2..=9).map(|n| format!("fd00:1::{n}")));
    let wan = [7, 8]
        .into_iter()
        .chain(10..=30)
        .map(|n| format!("198.51.100.{n}"))
        .chain((10..=18).map(|n| format!("2001:db8::{n}")));
    [lan.collect(), wan.chain(GATEWAYS.map(String::from)).collect()]
}

impl Policy {
    /// The header lines of a policy by the name of the translation that it is to try.
    pub fn text(name: &str) -> Option<&'static str> {
        Some(match name {
            "plain" => "usual",
            "masquerade" => "usual\nnat masquerade",
            "snat" => "usual\nnat snat 198.51.100.7",
            "dnat" => {
                "usual\nrule accept from=wan to=lan state=new\nnat dnat tcp 198.51.100.1:8080 10.0.0.9:80\n\
                 nat dnat udp 198.51.100.1:5353 10.0.0.9:53\nnat dnat tcp [2001:db8::1]:8080 [fd00:1::9]:80\n\
                 nat dnat tcp 198.51.100.1:21 10.0.0.9:21\nnat dnat udp 198.51.100.1:69 10.0.0.9:69\n\
                 nat dnat tcp [2001:db8::1]:21 [fd00:1::9]:21\nnat masquerade"
            }
            _ => return None,
        })
    }

    /// Takes several header lines.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn lines(&mut self, text: &str) -> Result<(), String> {
        text.lines().try_for_each(|l| if self.line(l)? { Ok(()) } else { Err(format!("{l}: no header line")) })
    }

    /// Takes one header line; says whether it was one.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn line(&mut self, line: &str) -> Result<bool, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["usual"] => {
                for text in
                    ["accept state=established,related", "drop state=invalid", "accept from=lan to=wan state=new"]
                {
                    self.rule(&text.split(' ').collect::<Vec<_>>())?;
                }
            }
            ["default", action] => self.default_accept = *action == "accept",
            ["rule", rest @ ..] => self.rule(rest)?,
            ["raw", action @ ("notrack" | "accept" | "drop"), rest @ ..] => {
                self.raw.push(((*action).into(), matches(rest)?));
            }
            ["nat", "yaml", rest @ ..] => self.nat.push(Nat::Yaml(rest.join(" "))),
            ["nat", "prerouting", rest @ ..] => self.nat.push(Nat::Prerouting(rest.join(" "))),
            ["nat", "postrouting", rest @ ..] => self.nat.push(Nat::Postrouting(rest.join(" "))),
            ["nat", "masquerade", rest @ ..] => self.nat.push(Nat::Masquerade(matches(rest)?)),
            ["nat", "snat", address, rest @ ..] => self.nat.push(Nat::Snat((*address).into(), matches(rest)?)),
            ["nat", "dnat", proto, from, to] => {
                let (address, port) = split_port(from);
                let (to_address, to_port) = split_port(to);
                self.nat.push(Nat::Dnat { proto: (*proto).into(), address, port, to_address, to_port });
            }
            ["set", rest @ ..] => {
                for (key, value) in matches(rest)? {
                    let on = value == "yes";
                    match key.as_str() {
                        "loose" => self.loose = on,
                        "liberal" => self.liberal = on,
                        "checksum" => self.checksum = on,
                        _ => return Err(format!("nothing to set is called {key}")),
                    }
                }
            }
            ["timeout", rest @ ..] => self.timeouts.extend(timeouts(rest)?),
            ["timeout_policy", name, rest @ ..] => self.timeout_policies.push(((*name).into(), timeouts(rest)?)),
            ["helper", name, proto, port] => self.helpers.push(((*name).into(), (*proto).into(), (*port).into())),
            ["zone", side, zone] => self.zones[of_side(side)?] = number(zone)?,
            ["mtu", side, mtu] => self.mtu[of_side(side)?] = number(mtu)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// All conntrack zones in which a tuple may be, the common one first.
    pub fn all_zones(&self) -> Vec<u16> {
        let mut all = vec![0];
        all.extend(self.zones.iter().filter(|z| **z != 0));
        all
    }

    fn rule(&mut self, words: &[&str]) -> Result<(), String> {
        let (action, rest) = words.split_first().ok_or("a rule needs an action")?;
        let mut matches = matches(rest)?;
        let mut take = |key: &str| {
            let at = matches.iter().position(|(k, _)| k == key)?;
            Some(matches.remove(at).1)
        };
        let (set_mark, timeout) = (take("set_mark"), take("timeout"));
        self.rules.push(Rule { action: (*action).into(), matches, set_mark, timeout });
        Ok(())
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn matches(words: &[&str]) -> Result<Matches, String> {
    let pair =
        |w: &&str| w.split_once('=').map(|(k, v)| (k.into(), v.into())).ok_or(format!("{w}: KEY=VALUE expected"));
    words.iter().map(pair).collect()
}

fn timeouts(words: &[&str]) -> Result<Timeouts, String> {
    matches(words)?.into_iter().map(|(key, value)| Ok((key, number(&value)?))).collect()
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// The index of a side's name.
fn of_side(name: &str) -> Result<usize, String> {
    Side::ALL.iter().position(|s| s.name() == name).ok_or(format!("{name} is no side"))
}

/// `a:1` is address and port, `[a]:1` where the address is of IPv6.
fn split_port(s: &str) -> (String, Option<String>) {
    if let Some((a, p)) = s.strip_prefix('[').and_then(|s| s.split_once("]:")) {
        return (a.into(), Some(p.into()));
    }
    match s.split_once(':') {
        Some((a, p)) if !p.contains(':') => (a.into(), Some(p.into())),
        _ => (s.into(), None),
    }
}
