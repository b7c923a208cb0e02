//! The rules that systems are given: one list, in the words of each system.
//!
//! [`rules`] are such as a gateway has, all different, and none of them matches a packet of a trace: they are what stands
//! before the rule that does.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::flow::{BRIEF_SERVICE, Case, DNAT_ADDRESS, DNAT_PORT, DNAT_SERVERS, SERVICE, SNAT_ADDRESS, dnat_server};
use crate::frame::Mac;
use crate::trace::{PCAP_PORTS, ROUTERS, Side};

/// A rule of a filter. It is about new connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Where packets come from; they go to the other side.
    pub from: Side,
    /// `tcp` or `udp`.
    pub proto: &'static str,
    /// Source address and prefix length.
    pub source: Option<(Ipv4Addr, u8)>,
    /// Destination address and prefix length.
    pub destination: Option<(Ipv4Addr, u8)>,
    /// Destination port.
    pub dport: u16,
    /// Whether it accepts; else it drops.
    pub accept: bool,
}

/// Services that rules are about.
const TCP_SERVICES: [u16; 8] = [443, 22, 25, 80, 993, 3306, 5432, 8443];
const UDP_SERVICES: [u16; 5] = [123, 161, 500, 4500, 5060];

/// So many rules that match nothing in a trace, at most 65,536.
pub fn rules(count: usize) -> impl Iterator<Item = Rule> {
    (0_u16..=u16::MAX).take(count).map(|i| {
        let n = i / 4;
        let [hi, lo] = n.to_be_bytes();
        let (tcp, udp) = (TCP_SERVICES[usize::from(n) % 8], UDP_SERVICES[usize::from(n) % 5]);
        let net = |a, b, c, len| Some((Ipv4Addr::new(a, b, c, 0), len));
        let host = |a, b| Some((Ipv4Addr::new(a, b, hi, lo), 32));
        let rule =
            |from, proto, source, destination, dport, accept| Rule { from, proto, source, destination, dport, accept };
        match i % 4 {
            // A client network may reach a service.
            0 => rule(Side::Lan, "tcp", net(10, hi, lo, 24), None, tcp, true),
            // Everybody may reach a server.
            1 => rule(Side::Lan, "udp", None, host(198, 18), udp, true),
            // A partner may reach a server of ours.
            2 => rule(Side::Wan, "tcp", net(172, 16 + hi, lo, 24), host(10, 128), tcp, true),
            // A network may not ask others' name servers: all fits but the addresses.
            _ => rule(Side::Lan, "udp", net(172, 16 + hi, lo, 24), net(192, 168, lo, 24), SERVICE, false),
        }
    })
}

/// What a configuration is written for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The case.
    pub case: Case,
    /// Rules in the filter, for [`Case::NewConnections`]: first the one for established connections, last the one that accepts.
    pub rules: usize,
    /// A device for each side, as DPDK takes it.
    pub devices: [String; 2],
    /// CPU of each worker.
    pub cpus: String,
    /// Packet buffers.
    pub mbufs: u64,
    /// Path of the control socket.
    pub socket: String,
}

/// Most connections, where all there are is the trace's flows.
const CONNECTIONS: u32 = 1 << 20;
/// The same where new ones come at several million a second and live for 0.2 s.
const MANY_CONNECTIONS: u32 = 1 << 21;

impl Setup {
    /// Rules that stand before the one that accepts.
    fn before(&self) -> impl Iterator<Item = Rule> {
        rules(if self.case == Case::NewConnections { self.rules.saturating_sub(2) } else { 0 })
    }

    /// The YAML of sluiced.
    pub fn sluice(&self) -> String {
        let Self { case, devices: [lan, wan], cpus, mbufs, socket, .. } = self;
        let mut y = String::new();
        let (lan6, wan6, routes6, neighbours6) = match case {
            Case::Ipv6 => (
                r#", "2001:db8:1::1/64""#,
                r#", "2001:db8:2::1/64""#,
                "  - {to: \"2001:db8:a::/48\", via: \"2001:db8:1::2\"}\n  - {to: \"2001:db8:b::/48\", via: \"2001:db8:2::2\"}\n",
                "  - {interface: lan, address: \"2001:db8:1::2\", mac: \"02:00:00:00:00:0a\"}\n  - {interface: wan, address: \"2001:db8:2::2\", mac: \"02:00:00:00:00:0b\"}\n",
            ),
            _ => ("", "", "", ""),
        };
        let (most, timeouts) = match case {
            Case::NewConnections => (MANY_CONNECTIONS, ", timeouts: {udp: 100ms, udp_stream: 100ms}"),
            Case::Mixed => (MANY_CONNECTIONS, ", timeout_policies: {brief: {udp: 100ms, udp_stream: 100ms}}"),
            _ => (CONNECTIONS, ""),
        };
        let _ = write!(
            y,
            "dataplane: {{workers: [{cpus}], hugepages: on, mbufs: {mbufs}}}
interfaces:
  lan: {{device: \"{lan}\", zone: lan, addresses: [192.0.2.1/24{lan6}]}}
  wan: {{device: \"{wan}\", zone: wan, addresses: [203.0.113.1/24{wan6}]}}
routes:
  - {{to: 10.0.0.0/8, via: 192.0.2.2}}
  - {{to: 198.18.0.0/15, via: 203.0.113.2}}
{routes6}neighbours:
  - {{interface: lan, address: 192.0.2.2, mac: \"02:00:00:00:00:0a\"}}
  - {{interface: wan, address: 203.0.113.2, mac: \"02:00:00:00:00:0b\"}}
{neighbours6}conntrack: {{max: {most}{timeouts}}}
metrics: {{listen: 127.0.0.1:9477}}
control: {{socket: {socket}}}
"
        );
        if *case == Case::Forward {
            y.push_str("raw:\n  - {name: stateless, from: [lan, wan], action: notrack}\n");
        }
        match case {
            Case::Snat => {
                let _ =
                    writeln!(y, "nat:\n  - {{name: out, type: snat, from: lan, to: wan, to_address: {SNAT_ADDRESS}}}");
            }
            Case::Dnat => {
                y.push_str("nat:\n");
                for n in 0..DNAT_SERVERS {
                    let (port, server) = (DNAT_PORT + n, dnat_server(n));
                    let _ = writeln!(
                        y,
                        "  - {{name: server-{n}, type: dnat, from: wan, proto: udp, destination: {DNAT_ADDRESS}, dport: {port}, to_address: {server}, to_port: {SERVICE}}}"
                    );
                }
            }
            _ => {}
        }
        y.push_str("policy:\n  default: drop\n  rules:\n");
        if *case == Case::Forward {
            y.push_str("    - {name: all, from: [lan, wan], to: [lan, wan], action: accept}\n");
            return y;
        }
        y.push_str("    - {name: established, state: [established, related], action: accept}\n");
        for (i, rule) in self.before().enumerate() {
            let (from, to) = sides(rule.from);
            let _ = write!(y, "    - {{name: rule-{i}, from: {from}, to: {to}, proto: {}", rule.proto);
            for (key, net) in [("source", rule.source), ("destination", rule.destination)] {
                if let Some((address, len)) = net {
                    let _ = write!(y, ", {key}: {address}/{len}");
                }
            }
            let _ = writeln!(y, ", dport: {}, state: new, action: {}}}", rule.dport, verdict(&rule));
        }
        if *case == Case::Mixed {
            let brief = "proto: udp, state: new, action: accept, timeout: brief";
            let _ =
                writeln!(y, "    - {{name: brief, from: [lan, wan], to: [lan, wan], dport: {BRIEF_SERVICE}, {brief}}}");
        }
        y.push_str(match case {
            Case::Dnat => "    - {name: wan-in, from: wan, to: lan, state: new, action: accept}\n",
            Case::NewConnections => {
                "    - {name: both, from: [lan, wan], to: [lan, wan], state: new, action: accept}\n"
            }
            _ => "    - {name: lan-out, from: lan, to: wan, state: new, action: accept}\n",
        });
        y
    }

    /// The ruleset of the kernel, for nft: interfaces `lan` and `wan` receive, `to_lan` and `to_wan` send.
    pub fn nft(&self) -> String {
        let mut n = String::from("table inet bench {\n");
        match self.case {
            Case::Forward => n.push_str("  chain untrack { type filter hook prerouting priority raw; notrack; }\n"),
            Case::Snat => {
                let _ = writeln!(
                    n,
                    "  chain source {{ type nat hook postrouting priority srcnat; oifname \"to_wan\" snat ip to {SNAT_ADDRESS}; }}"
                );
            }
            Case::Dnat => {
                let _ = write!(
                    n,
                    "  chain destination {{ type nat hook prerouting priority dstnat; ip daddr {DNAT_ADDRESS} dnat ip to udp dport map {{ "
                );
                let entry = |i| format!("{} : {} . {SERVICE}", DNAT_PORT + i, dnat_server(i));
                n.push_str(&(0..DNAT_SERVERS).map(entry).collect::<Vec<_>>().join(", "));
                n.push_str(" }; }\n");
            }
            _ => {}
        }
        n.push_str("  chain rules {\n    type filter hook forward priority filter; policy drop;\n");
        if self.case == Case::Forward {
            n.push_str("    accept\n");
        } else {
            n.push_str("    ct state established,related accept\n");
        }
        for rule in self.before() {
            let (from, to) = sides(rule.from);
            let _ = write!(n, "    iifname \"{from}\" oifname \"to_{to}\"");
            for (key, net) in [("saddr", rule.source), ("daddr", rule.destination)] {
                if let Some((address, len)) = net {
                    let _ = write!(n, " ip {key} {address}/{len}");
                }
            }
            let _ = writeln!(n, " {} dport {} ct state new {}", rule.proto, rule.dport, verdict(&rule));
        }
        n.push_str(match self.case {
            Case::Forward => "",
            Case::Dnat => "    iifname \"wan\" oifname \"to_lan\" ct state new accept\n",
            Case::NewConnections => "    ct state new accept\n",
            _ => "    iifname \"lan\" oifname \"to_wan\" ct state new accept\n",
        });
        n.push_str("  }\n}\n");
        n
    }

    /// The flows of an Open vSwitch bridge whose port 1 is lan and port 2 wan. It forwards as a router does: MAC addresses, TTL.
    pub fn openflow(&self) -> String {
        let hop = |to: Side| {
            let n = usize::from(to == Side::Wan);
            format!("mod_dl_src:{},mod_dl_dst:{},dec_ttl,output:{}", mac(PCAP_PORTS[n]), mac(ROUTERS[n]), n + 1)
        };
        let mut f = String::new();
        let family = if self.case == Case::Ipv6 { "ipv6" } else { "ip" };
        if self.case == Case::Forward {
            for (port, to) in [(1, Side::Wan), (2, Side::Lan)] {
                let _ = writeln!(f, "table=0,{family},in_port={port},actions={}", hop(to));
            }
            return f;
        }
        let nat = if matches!(self.case, Case::Snat | Case::Dnat) { ",nat" } else { "" };
        let _ = writeln!(f, "table=0,{family},actions=ct(table=1{nat})");
        for (port, to) in [(1, Side::Wan), (2, Side::Lan)] {
            let _ = writeln!(f, "table=1,priority=65000,ct_state=+trk+est,{family},in_port={port},actions={}", hop(to));
        }
        for (i, rule) in self.before().enumerate() {
            let port = if rule.from == Side::Lan { 1 } else { 2 };
            let _ = write!(f, "table=1,priority={},ct_state=+trk+new,{},in_port={port}", 60_000 - i, rule.proto);
            for (key, net) in [("nw_src", rule.source), ("nw_dst", rule.destination)] {
                if let Some((address, len)) = net {
                    let _ = write!(f, ",{key}={address}/{len}");
                }
            }
            let to = if rule.from == Side::Lan { Side::Wan } else { Side::Lan };
            let action = if rule.accept { format!("ct(commit),{}", hop(to)) } else { "drop".to_owned() };
            let _ = writeln!(f, ",tp_dst={},actions={action}", rule.dport);
        }
        let mut accept = |matches: &str, port: u8, commit: &str, to| {
            let _ = writeln!(
                f,
                "table=1,priority=10,ct_state=+trk+new,{matches},in_port={port},actions=ct(commit{commit}),{}",
                hop(to)
            );
        };
        match self.case {
            Case::Snat => accept("ip", 1, &format!(",nat(src={SNAT_ADDRESS})"), Side::Wan),
            Case::Dnat => {
                for n in 0..DNAT_SERVERS {
                    let matches = format!("udp,nw_dst={DNAT_ADDRESS},tp_dst={}", DNAT_PORT + n);
                    accept(&matches, 2, &format!(",nat(dst={}:{SERVICE})", dnat_server(n)), Side::Lan);
                }
            }
            Case::NewConnections => {
                accept("ip", 1, "", Side::Wan);
                accept("ip", 2, "", Side::Lan);
            }
            _ => accept(family, 1, "", Side::Wan),
        }
        f
    }
}

fn sides(from: Side) -> (&'static str, &'static str) {
    match from {
        Side::Lan => ("lan", "wan"),
        Side::Wan => ("wan", "lan"),
    }
}

fn verdict(rule: &Rule) -> &'static str {
    if rule.accept { "accept" } else { "drop" }
}

fn mac(mac: Mac) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;
    use crate::flow::{Endpoints, Flow};

    fn setup(case: Case, rules: usize) -> Setup {
        let devices = ["net_pcap0,rx_pcap=l".to_owned(), "net_pcap1,rx_pcap=w".to_owned()];
        Setup { case, rules, devices, cpus: "1".to_owned(), mbufs: 70_000, socket: "/run/x".to_owned() }
    }

    fn matches(rule: &Rule, from: Side, at: Endpoints) -> bool {
        let within = |net: Option<(Ipv4Addr, u8)>, address: IpAddr| match (net, address) {
            (None, _) => true,
            (Some((net, len)), IpAddr::V4(a)) => (net.to_bits() ^ a.to_bits()) >> (32 - u32::from(len)) == 0,
            (Some(_), IpAddr::V6(_)) => false,
        };
        rule.from == from
            && rule.proto == "udp"
            && rule.dport == at.dport
            && within(rule.source, at.source)
            && within(rule.destination, at.destination)
    }

    #[test]
    fn ten_thousand_rules_are_all_different_and_match_no_new_flow() {
        let rules: Vec<Rule> = rules(10_000).collect();
        assert_eq!(rules.iter().collect::<HashSet<_>>().len(), 10_000);
        for i in (0..1_000_000).step_by(9_973) {
            let flow = Flow::number(i, Case::NewConnections);
            for rule in &rules {
                assert!(!matches(rule, Side::Lan, flow.lan) && !matches(rule, Side::Wan, flow.wan), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_policy_of_a_thousand_rules_has_a_thousand_in_every_system() {
        let setup = setup(Case::NewConnections, 1_000);
        let yaml = setup.sluice();
        let rules: Vec<&str> = yaml.lines().filter(|l| l.starts_with("    - {name:")).collect();
        assert_eq!(rules.len(), 1_000);
        assert!(rules[0].contains("established") && rules[999].contains("name: both"));
        let nft = setup.nft();
        assert_eq!(nft.lines().filter(|l| l.ends_with(" accept") || l.ends_with(" drop")).count(), 1_000);
        // Its established rule is one per port, and so is the last one.
        assert_eq!(setup.openflow().lines().filter(|l| l.starts_with("table=1")).count(), 1_002);
    }

    #[test]
    fn forwarding_without_state_tracks_nothing_in_any_system() {
        let setup = setup(Case::Forward, 10);
        assert!(setup.sluice().contains("action: notrack"));
        assert!(setup.nft().contains("notrack") && !setup.nft().contains("ct state"));
        assert!(!setup.openflow().contains("ct("));
    }

    #[test]
    fn translation_is_the_same_in_every_system() {
        let snat = setup(Case::Snat, 10);
        for text in [snat.sluice(), snat.nft(), snat.openflow()] {
            assert_eq!(text.matches("198.51.100.1").count(), 1, "{text}");
        }
        let dnat = setup(Case::Dnat, 10);
        for text in [dnat.sluice(), dnat.nft(), dnat.openflow()] {
            for n in 0..DNAT_SERVERS {
                assert!(
                    text.contains(&dnat_server(n).to_string()) && text.contains(&(DNAT_PORT + n).to_string()),
                    "{text}"
                );
            }
        }
    }
}
