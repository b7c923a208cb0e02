//! One policy, said three ways: as a scenario's header lines, as nft rules and sysctls for the kernel, as Sluice's YAML.
//!
//! ```text
//! usual                                              established and related pass, invalid does not, lan may begin
//! default accept                                     what no rule matches; drop where nothing is said
//! rule accept from=wan to=lan proto=tcp dport=80 state=new src=198.51.100.0/24 dst=10.0.0.9
//! raw notrack from=lan proto=udp dport=53            also: raw accept, raw drop
//! nat masquerade | nat snat 198.51.100.7 | nat dnat tcp 198.51.100.1:8080 10.0.0.9:80
//! set loose=no liberal=yes checksum=no
//! timeout udp=2 tcp_close=3                          nf_conntrack's names, seconds
//! helper ftp tcp 21
//! mtu wan 1400
//! ```
//! *Limits*: what both systems can say. A rule without `to` holds for what is forwarded and what is delivered.

use std::fmt::Write as _;

use crate::frame::Side;

/// Values of a match by key: `from`, `to`, `src`, `dst`, `proto`, `sport`, `dport`, `state`.
pub type Matches = Vec<(String, String)>;

/// One translation rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nat {
    /// From lan to wan, the source becomes the outer address.
    Masquerade,
    /// From lan to wan, the source becomes this address.
    Snat(String),
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
}

/// What both systems are set up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Filter rules: accept or not, and what they match.
    pub rules: Vec<(bool, Matches)>,
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
    /// Idle timeouts that are not the default, seconds.
    pub timeouts: Vec<(String, u32)>,
    /// Helpers: name, protocol, destination port.
    pub helpers: Vec<(String, String, String)>,
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
            helpers: Vec::new(),
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
    let wan = (10..=30).map(|n| format!("198.51.100.{n}")).chain((10..=18).map(|n| format!("2001:db8::{n}")));
    [lan.collect(), wan.chain(GATEWAYS.map(String::from)).collect()]
}

impl Policy {
    /// A policy by the name of what it is to try.
    pub fn named(name: &str) -> Option<Self> {
        let text = match name {
            "plain" => "usual",
            "masquerade" => "usual\nnat masquerade",
            "snat" => "usual\nnat snat 198.51.100.7",
            "dnat" => {
                "usual\nrule accept from=wan to=lan state=new\nnat dnat tcp 198.51.100.1:8080 10.0.0.9:80\n\
                 nat dnat udp 198.51.100.1:5353 10.0.0.9:53\nnat dnat tcp [2001:db8::1]:8080 [fd00:1::9]:80\nnat masquerade"
            }
            _ => return None,
        };
        let mut policy = Self::default();
        text.lines().try_for_each(|l| policy.line(l).map(drop)).ok()?;
        Some(policy)
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
            ["nat", "masquerade"] => self.nat.push(Nat::Masquerade),
            ["nat", "snat", address] => self.nat.push(Nat::Snat((*address).into())),
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
            ["timeout", rest @ ..] => {
                for (key, value) in matches(rest)? {
                    self.timeouts.push((key, value.parse().map_err(|e| format!("{value}: {e}"))?));
                }
            }
            ["helper", name, proto, port] => self.helpers.push(((*name).into(), (*proto).into(), (*port).into())),
            ["mtu", side, mtu] => {
                let mtu = mtu.parse().map_err(|e| format!("{mtu}: {e}"))?;
                self.mtu[usize::from(*side == "wan")] = mtu;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn rule(&mut self, words: &[&str]) -> Result<(), String> {
        let (action, rest) = words.split_first().ok_or("a rule needs an action")?;
        self.rules.push((*action == "accept", matches(rest)?));
        Ok(())
    }

    /// Commands for a shell in the kernel router's namespace whose interfaces are there: addresses, routes, sysctls.
    pub fn shell(&self) -> String {
        let mut s = String::from("set -e\nip link set lo up\n");
        let sysctls = [
            ("net.ipv4.ip_forward", 1),
            ("net.ipv4.icmp_ratelimit", 0),
            ("net.ipv4.icmp_ratemask", 0),
            ("net.ipv4.icmp_echo_ignore_broadcasts", 1),
            ("net.ipv6.conf.all.forwarding", 1),
            ("net.ipv6.conf.all.accept_dad", 0),
            ("net.ipv6.conf.default.accept_dad", 0),
            ("net.ipv6.icmp.ratelimit", 0),
        ];
        for (key, value) in sysctls {
            _ = writeln!(s, "sysctl -qw {key}={value}");
        }
        for name in ["all", "default", "lan", "wan"] {
            _ = writeln!(s, "sysctl -qw net.ipv4.conf.{name}.rp_filter=0 net.ipv4.conf.{name}.send_redirects=0");
        }
        s += "sysctl -qw net.netfilter.nf_conntrack_acct=1\n";
        for (side, n) in [("lan", 0), ("wan", 1)] {
            let mac = mac_text(Side::ALL[n].router_mac());
            _ = writeln!(s, "ip link set {side} addrgenmode none address {mac} mtu {} up", self.mtu[n]);
            for a in ADDRESSES[n] {
                let nodad = if a.contains("::") { " nodad" } else { "" };
                _ = writeln!(s, "ip address add {a} dev {side}{nodad}");
            }
            let mac = mac_text(Side::ALL[n].station_mac());
            s += "ip -batch - <<'END'\n";
            for a in &stations()[n] {
                _ = writeln!(s, "neigh replace {a} lladdr {mac} dev {side} nud permanent");
            }
            s += "END\n";
        }
        for gateway in GATEWAYS {
            _ = writeln!(s, "ip route add default via {gateway}");
        }
        let yes = |b| u8::from(b);
        _ = writeln!(
            s,
            "sysctl -qw net.netfilter.nf_conntrack_tcp_loose={} net.netfilter.nf_conntrack_tcp_be_liberal={} \
             net.netfilter.nf_conntrack_checksum={}",
            yes(self.loose),
            yes(self.liberal),
            yes(self.checksum)
        );
        for (name, seconds) in &self.timeouts {
            let (proto, rest) = name.split_once('_').map_or((name.as_str(), None), |(p, r)| (p, Some(r)));
            let rest = rest.map(|r| format!("_{r}")).unwrap_or_default();
            _ = writeln!(s, "sysctl -qw net.netfilter.nf_conntrack_{proto}_timeout{rest}={seconds}");
        }
        s
    }

    /// The nft rules. Log group 1 tells of each packet's class once tracking has seen it, group 2 of what is delivered.
    pub fn nft(&self) -> String {
        let mut s = String::from("table inet diff {\n");
        for (n, (name, proto, _)) in self.helpers.iter().enumerate() {
            _ = writeln!(s, " ct helper h{n} {{ type \"{name}\" protocol {proto}; }}");
        }
        s += " chain raw { type filter hook prerouting priority raw;\n";
        for (action, m) in &self.raw {
            _ = writeln!(s, "  {} {action}", nft_matches(m));
        }
        s += " }\n chain classify { type filter hook prerouting priority mangle;\n";
        for (condition, prefix) in [
            ("ct state invalid", "i"),
            ("ct state untracked", "u"),
            ("ct state new", "n"),
            ("ct state established ct direction original", "e"),
            ("ct state established ct direction reply", "E"),
            ("ct state related ct direction original", "r"),
            ("ct state related ct direction reply", "R"),
        ] {
            _ = writeln!(s, "  {condition} log prefix \"{prefix}\" group 1 queue-threshold 1");
        }
        for (n, (_, proto, port)) in self.helpers.iter().enumerate() {
            _ = writeln!(s, "  {proto} dport {port} ct helper set \"h{n}\"");
        }
        let policy = if self.default_accept { "accept" } else { "drop" };
        for (chain, hook, other) in [("forward", "forward", "local"), ("input", "input", "")] {
            _ = writeln!(s, " }}\n chain {chain} {{ type filter hook {hook} priority filter; policy {policy};");
            for (accept, m) in &self.rules {
                let to = m.iter().find(|(k, _)| k == "to").map(|(_, v)| v.as_str());
                let here = if hook == "input" { to.is_none_or(|t| t == "local") } else { to != Some(other) };
                if here {
                    _ = writeln!(s, "  {} {}", nft_matches(m), if *accept { "accept" } else { "drop" });
                }
            }
        }
        // The router answers nothing itself but the errors that forwarding needs.
        s += " }\n chain delivered { type filter hook input priority security; log group 2 queue-threshold 1; }\n";
        s += " chain output { type filter hook output priority -500; policy drop;\n";
        s += "  icmp type { destination-unreachable, time-exceeded, parameter-problem } icmp code != 3 accept\n";
        s += "  icmp type { time-exceeded, parameter-problem } accept\n";
        s += "  icmpv6 type { packet-too-big, time-exceeded, parameter-problem } accept\n";
        s += "  icmpv6 type destination-unreachable icmpv6 code != 4 accept\n }\n";
        s += " chain translate_destination { type nat hook prerouting priority dstnat;\n";
        for nat in &self.nat {
            if let Nat::Dnat { proto, address, port, to_address, to_port } = nat {
                let (ip, to) = match (address.contains("::"), to_port) {
                    (true, Some(p)) => ("ip6", format!("[{to_address}]:{p}")),
                    (false, Some(p)) => ("ip", format!("{to_address}:{p}")),
                    (v6, None) => (if v6 { "ip6" } else { "ip" }, to_address.clone()),
                };
                let l4 = match port {
                    Some(p) => format!("{proto} dport {p}"),
                    None => format!("meta l4proto {proto}"),
                };
                _ = writeln!(s, "  iifname wan {ip} daddr {address} {l4} dnat {ip} to {to}");
            }
        }
        s += " }\n chain translate_source { type nat hook postrouting priority srcnat;\n";
        for nat in &self.nat {
            match nat {
                Nat::Masquerade => s += "  iifname lan oifname wan masquerade\n",
                Nat::Snat(a) if a.contains("::") => {
                    _ = writeln!(s, "  iifname lan oifname wan meta nfproto ipv6 snat ip6 to {a}");
                }
                Nat::Snat(a) => _ = writeln!(s, "  iifname lan oifname wan meta nfproto ipv4 snat ip to {a}"),
                Nat::Dnat { .. } => {}
            }
        }
        s + " }\n}\n"
    }

    /// Sluice's configuration on the ports `devices`, with `head` in front.
    pub fn yaml(&self, head: &str, devices: [&str; 2]) -> String {
        let mut s = format!("{head}\ninterfaces:\n");
        for (n, side) in ["lan", "wan"].into_iter().enumerate() {
            let [v4, v6] = ADDRESSES[n];
            _ = writeln!(
                s,
                "  {side}: {{device: \"{}\", zone: {side}, addresses: [{v4}, \"{v6}\"], mtu: {}}}",
                devices[n], self.mtu[n]
            );
        }
        _ = writeln!(
            s,
            "routes:\n  - {{to: 0.0.0.0/0, via: {}}}\n  - {{to: \"::/0\", via: \"{}\"}}",
            GATEWAYS[0], GATEWAYS[1]
        );
        s += "neighbours:\n";
        for (n, side) in Side::ALL.into_iter().enumerate() {
            for a in &stations()[n] {
                let mac = mac_text(side.station_mac());
                _ = writeln!(s, "  - {{interface: {}, address: \"{a}\", mac: \"{mac}\"}}", side.name());
            }
        }
        s += "conntrack:\n";
        _ = writeln!(
            s,
            "  checksum: {}\n  tcp: {{loose: {}, be_liberal: {}}}",
            self.checksum, self.loose, self.liberal
        );
        if !self.timeouts.is_empty() {
            s += "  timeouts:\n";
            for (name, seconds) in &self.timeouts {
                _ = writeln!(s, "    {name}: {seconds}s");
            }
        }
        if !self.helpers.is_empty() {
            s += "  helpers:\n";
            for (name, proto, port) in &self.helpers {
                _ = writeln!(s, "    - {{helper: {name}, proto: {proto}, dport: {port}}}");
            }
        }
        if !self.raw.is_empty() {
            s += "raw:\n";
            for (n, (action, m)) in self.raw.iter().enumerate() {
                _ = writeln!(s, "  - {{name: raw{n}, {}action: {action}}}", yaml_matches(m));
            }
        }
        if !self.nat.is_empty() {
            s += "nat:\n";
        }
        for (n, nat) in self.nat.iter().enumerate() {
            match nat {
                Nat::Masquerade => _ = writeln!(s, "  - {{name: nat{n}, type: masquerade, from: lan, to: wan}}"),
                Nat::Snat(a) => {
                    _ = writeln!(s, "  - {{name: nat{n}, type: snat, from: lan, to: wan, to_address: \"{a}\"}}");
                }
                Nat::Dnat { proto, address, port, to_address, to_port } => {
                    let port = port.as_ref().map(|p| format!(", dport: {p}")).unwrap_or_default();
                    let to_port = to_port.as_ref().map(|p| format!(", to_port: {p}")).unwrap_or_default();
                    _ = writeln!(
                        s,
                        "  - {{name: nat{n}, type: dnat, from: wan, proto: {proto}, destination: \"{address}\"{port}, \
                         to_address: \"{to_address}\"{to_port}}}"
                    );
                }
            }
        }
        _ = writeln!(s, "policy:\n  default: {}", if self.default_accept { "accept" } else { "drop" });
        if !self.rules.is_empty() {
            s += "  rules:\n";
        }
        for (n, (accept, m)) in self.rules.iter().enumerate() {
            let action = if *accept { "accept" } else { "drop" };
            _ = writeln!(s, "    - {{name: rule{n}, {}action: {action}}}", yaml_matches(m));
        }
        s
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

/// nft conditions that say what `m` does.
fn nft_matches(m: &Matches) -> String {
    let mut s = String::new();
    for (key, value) in m {
        let list = format!("{{ {value} }}");
        let ip = if value.contains(':') { "ip6" } else { "ip" };
        match key.as_str() {
            "from" => s += &format!(" iifname {list}"),
            "to" if value == "local" => {}
            "to" => s += &format!(" oifname {list}"),
            "src" => s += &format!(" {ip} saddr {list}"),
            "dst" => s += &format!(" {ip} daddr {list}"),
            "proto" => s += &format!(" meta l4proto {list}"),
            "sport" => s += &format!(" th sport {list}"),
            "dport" => s += &format!(" th dport {list}"),
            "state" => s += &format!(" ct state {list}"),
            _ => s += &format!(" unknown-{key}"),
        }
    }
    s
}

fn yaml_matches(m: &Matches) -> String {
    let mut s = String::new();
    for (key, value) in m {
        let key = match key.as_str() {
            "src" => "source",
            "dst" => "destination",
            k => k,
        };
        let values: Vec<String> = value.split(',').map(|v| format!("\"{v}\"")).collect();
        let values = values.join(", ");
        let plain = values.replace('"', "");
        let text = if matches!(key, "sport" | "dport") { plain } else { values };
        s += &format!("{key}: [{text}], ");
    }
    s
}
