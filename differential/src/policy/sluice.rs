//! A policy as Sluice takes it: YAML.

use std::fmt::Write as _;

use super::{ADDRESSES, FRAGMENTS, GATEWAYS, Matches, Nat, Policy, mac_text, stations};
use crate::frame::Side;

impl Policy {
    /// Sluice's configuration on the ports `devices`, with `head` in front.
    pub fn yaml(&self, head: &str, devices: [&str; 2]) -> String {
        let mut s = format!("{head}\ninterfaces:\n");
        for (n, side) in ["lan", "wan"].into_iter().enumerate() {
            let [v4, v6] = ADDRESSES[n];
            _ = writeln!(
                s,
                "  {side}: {{device: \"{}\", zone: {side}, addresses: [{v4}, \"{v6}\"], mtu: {}{}}}",
                devices[n],
                self.mtu[n],
                if self.zones[n] == 0 { String::new() } else { format!(", ct_zone: {}", self.zones[n]) }
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
        _ = writeln!(s, "defrag: {{memory: {FRAGMENTS}}}");
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
        if !self.timeout_policies.is_empty() {
            s += "  timeout_policies:\n";
            for (name, timeouts) in &self.timeout_policies {
                let values: Vec<String> = timeouts.iter().map(|(name, t)| format!("{name}: {t}s")).collect();
                _ = writeln!(s, "    {name}: {{{}}}", values.join(", "));
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
                Nat::Masquerade(m) => {
                    let m = yaml_matches(m);
                    _ = writeln!(s, "  - {{name: nat{n}, {m}type: masquerade, from: lan, to: wan}}");
                }
                Nat::Snat(a, m) => {
                    let m = yaml_matches(m);
                    _ = writeln!(s, "  - {{name: nat{n}, {m}type: snat, from: lan, to: wan, to_address: \"{a}\"}}");
                }
                Nat::Dnat { proto, address, port, to_address, to_port } => {
                    let port = port.as_ref().map(|p| format!(", dport: {p}")).unwrap_or_default();
                    let to_port = to_port.as_ref().map(|p| format!(", to_port: {p}")).unwrap_or_default();
                    _ = writeln!(
                        s,
                        "  - {{name: nat{n}, type: dnat, from: wan, proto: {proto}, destination: \"{address}\"{port}, \
                         to_address: \"{to_address}\"{to_port}, hairpin: off}}"
                    );
                }
                Nat::Yaml(rule) => _ = writeln!(s, "  - {{name: nat{n}, {rule}}}"),
                Nat::Prerouting(_) | Nat::Postrouting(_) => {}
            }
        }
        _ = writeln!(s, "policy:\n  default: {}", if self.default_accept { "accept" } else { "drop" });
        if !self.rules.is_empty() {
            s += "  rules:\n";
        }
        for (n, rule) in self.rules.iter().enumerate() {
            let mark = rule.set_mark.as_ref().map_or(String::new(), |m| format!("set_mark: {m}, "));
            let timeout = rule.timeout.as_ref().map_or(String::new(), |t| format!("timeout: {t}, "));
            let (m, action) = (yaml_matches(&rule.matches), &rule.action);
            _ = writeln!(s, "    - {{name: rule{n}, {m}{mark}{timeout}action: {action}}}");
        }
        s
    }
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
        s += &match key {
            "sport" | "dport" => format!("{key}: [{plain}], "),
            "mark" => format!("mark: {value}, "),
            _ => format!("{key}: [{values}], "),
        };
    }
    s
}
