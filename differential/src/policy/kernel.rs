//! A policy as the kernel router takes it: a shell script and nft rules.

use std::fmt::Write as _;

use super::{ADDRESSES, FRAGMENTS, GATEWAYS, Matches, Nat, Policy, Rule, mac_text, stations};
use crate::frame::Side;

impl Policy {
    /// Commands for a shell in the kernel router's namespace whose interfaces are there: addresses, routes, sysctls.
    pub fn shell(&self) -> String {
        let mut s = String::from("set -e\nip link set lo up\n");
        let sysctls = [
            ("net.ipv4.ip_forward", 1),
            ("net.ipv4.icmp_ratelimit", 0),
            ("net.ipv4.icmp_ratemask", 0),
            ("net.ipv4.icmp_echo_ignore_broadcasts", 1),
            // Fragments may come as late as they like: docs/LINUX.md says why.
            ("net.ipv4.ipfrag_max_dist", 0),
            ("net.ipv4.ipfrag_high_thresh", 2 * FRAGMENTS),
            ("net.netfilter.nf_conntrack_frag6_high_thresh", 2 * FRAGMENTS),
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

    /// The nft rules. Log group 1 tells of each packet's class once tracking has seen it, group 2 of what is delivered, translated.
    pub fn nft(&self) -> String {
        let mut s = String::from("table inet diff {\n");
        for (n, (name, proto, _)) in self.helpers.iter().enumerate() {
            _ = writeln!(s, " ct helper h{n} {{ type \"{name}\" protocol {proto}; }}");
        }
        for (name, timeouts) in &self.timeout_policies {
            for proto in ["tcp", "udp"] {
                let values: Vec<String> = timeouts.iter().filter_map(|(n, t)| nft_timeout(proto, n, *t)).collect();
                if !values.is_empty() {
                    _ = writeln!(
                        s,
                        " ct timeout {name}_{proto} {{\n  protocol {proto}; policy = {{ {} }};\n }}",
                        values.join(", ")
                    );
                }
            }
        }
        s += " chain raw { type filter hook prerouting priority raw;\n";
        for (side, zone) in ["lan", "wan"].iter().zip(self.zones).filter(|(_, z)| *z != 0) {
            _ = writeln!(s, "  iifname {side} ct original zone set {zone}");
        }
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
        let policy = if self.default_accept { "accept" } else { "drop" };
        for (chain, hook, other) in [("forward", "forward", "local"), ("input", "input", "")] {
            _ = writeln!(s, " }}\n chain {chain} {{ type filter hook {hook} priority filter; policy {policy};");
            for (n, (_, proto, port)) in self.helpers.iter().enumerate() {
                _ = writeln!(s, "  {proto} dport {port} ct helper set \"h{n}\"");
            }
            for rule in &self.rules {
                let to = rule.matches.iter().find(|(k, _)| k == "to").map(|(_, v)| v.as_str());
                let here = if hook == "input" { to.is_none_or(|t| t == "local") } else { to != Some(other) };
                if here {
                    self.nft_rule(&mut s, rule);
                }
            }
        }
        // The router answers nothing itself but the errors that forwarding needs.
        s += " }\n chain delivered { type filter hook input priority 150; log group 2 queue-threshold 1; }\n";
        s += " chain output { type filter hook output priority -500; policy drop;\n";
        s += "  icmp type { destination-unreachable, time-exceeded, parameter-problem } icmp code != 3 accept\n";
        s += "  icmp type { time-exceeded, parameter-problem } accept\n";
        s += "  icmpv6 type { packet-too-big, time-exceeded, parameter-problem } accept\n";
        s += "  icmpv6 type destination-unreachable icmpv6 code != 4 accept\n }\n";
        if !self.nat.is_empty() {
            self.nft_nat(&mut s);
        }
        s + "}\n"
    }

    /// Translation; where there are no rules for it, nothing of the kernel's is there.
    fn nft_nat(&self, s: &mut String) {
        *s += " chain translate_destination { type nat hook prerouting priority dstnat;\n";
        for nat in &self.nat {
            if let Nat::Prerouting(rule) = nat {
                _ = writeln!(s, "  {rule}");
            }
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
        *s += " }\n chain translate_source { type nat hook postrouting priority srcnat;\n";
        for nat in &self.nat {
            match nat {
                Nat::Masquerade(m) => _ = writeln!(s, "  iifname lan oifname wan {} masquerade", nft_matches(m)),
                Nat::Snat(a, m) => {
                    let (family, ip) = if a.contains("::") { ("ipv6", "ip6") } else { ("ipv4", "ip") };
                    let m = nft_matches(m);
                    _ = writeln!(s, "  iifname lan oifname wan meta nfproto {family} {m} snat {ip} to {a}");
                }
                Nat::Postrouting(rule) => _ = writeln!(s, "  {rule}"),
                Nat::Dnat { .. } | Nat::Prerouting(_) | Nat::Yaml(_) => {}
            }
        }
        *s += " }\n";
    }

    /// A filter rule; a timeout policy needs one of its own for each protocol.
    fn nft_rule(&self, s: &mut String, rule: &Rule) {
        let m = nft_matches(&rule.matches);
        for (name, timeouts) in self.timeout_policies.iter().filter(|(name, _)| Some(name) == rule.timeout.as_ref()) {
            for proto in ["tcp", "udp"] {
                if timeouts.iter().any(|(n, t)| nft_timeout(proto, n, *t).is_some()) {
                    _ = writeln!(s, "  {m} meta l4proto {proto} ct timeout set \"{name}_{proto}\"");
                }
            }
        }
        let mark = rule.set_mark.as_ref().map_or(String::new(), |mark| match mark.split_once('/') {
            Some((value, mask)) => format!("ct mark set ct mark and {:#x} or {value} ", !hex(mask)),
            None => format!("ct mark set {mark} "),
        });
        _ = writeln!(s, "  {m} {mark}{}", rule.action);
    }
}

/// A timeout of `proto` as nft calls it; `None` where the name is another protocol's.
fn nft_timeout(proto: &str, name: &str, seconds: u32) -> Option<String> {
    let name = match (proto, name) {
        ("udp", "udp") => "unreplied",
        ("udp", "udp_stream") => "replied",
        ("tcp", "tcp_max_retrans") => "retrans",
        ("tcp", "tcp_unacknowledged") => "unack",
        ("tcp", name) => name.strip_prefix("tcp_")?,
        _ => return None,
    };
    Some(format!("{name} : {seconds}"))
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
            "mark" => match value.split_once('/') {
                Some((value, mask)) => s += &format!(" ct mark and {mask} == {value}"),
                None => s += &format!(" ct mark {value}"),
            },
            _ => s += &format!(" unknown-{key}"),
        }
    }
    s
}

/// The number that `0x…` is.
fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}
