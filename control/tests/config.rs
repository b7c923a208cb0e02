//! The contract of the configuration: what ships loads, and what is wrong is said in exactly these words.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control::config::{Config, load, parse};
use dataplane::api::Nanos;
use dataplane::api::launch::{HugePages, Poll};
use dataplane::api::policy::{
    Action, ConntrackSpec, CtState, Hairpin, HelperKind, LimitPer, LimitSpec, LogInvalid, Match, Mss, NatKind,
    NatRuleSpec, NetmapSide, OnReload, Policy, Pool, PreservePort, Timeouts, ToPort, ZoneId,
};
use proptest::prelude::*;

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("control is in the workspace").to_owned()
}

fn yaml_files(dir: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(dir)).expect("the folder is there");
    let mut files: Vec<_> = entries.map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    files
}

/// Loads a file as the user would from the repository's root: messages name it from there.
fn load_from_root(path: &Path) -> Result<Config, String> {
    load(path).map_err(|e| e.to_string().replace(&format!("{}/", root().display()), ""))
}

#[test]
fn every_shipped_configuration_loads() {
    let files = yaml_files("configs");
    assert!(files.len() >= 3);
    for path in files {
        if let Err(e) = load_from_root(&path) {
            panic!("{e}");
        }
    }
}

/// Each file of configs/bad begins with its whole message, a line of it after each `# expect: `.
#[test]
fn every_bad_configuration_gives_exactly_its_message() {
    let files = yaml_files("configs/bad");
    assert!(files.len() >= 25);
    let mut wrong = String::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
        let got = load_from_root(&path).expect_err("a bad configuration loads");
        if got != expected.join("\n") {
            let lines = got.lines().map(|line| format!("# expect: {line}\n")).collect::<String>();
            wrong.push_str(&format!("{} gives\n{lines}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Reads `rules` and what else `sections` has into a gateway of two interfaces.
fn gateway(sections: &str) -> Result<Config, String> {
    let text = format!(
        "interfaces:\n  \
           lan: {{device: net_tap0, zone: lan, addresses: [10.0.0.1/24, \"fd00::1/64\"]}}\n  \
           wan: {{device: net_tap1, zone: wan, addresses: [203.0.113.1/24]}}\n{sections}"
    );
    parse(&text, Path::new("x.yaml")).map_err(|e| e.to_string())
}

/// The match of the one filter rule `keys`.
fn one_match(keys: &str) -> Match {
    let config = gateway(&format!("policy:\n  rules:\n    - {{name: r, action: accept, {keys}}}\n"));
    let mut rules = config.expect("the rule is right").policy.rules;
    assert_eq!(rules.len(), 1);
    rules.remove(0).matches
}

/// The one NAT rule `keys`.
fn one_nat(keys: &str) -> NatRuleSpec {
    let config = gateway(&format!("policy: {{}}\nnat:\n  - {{name: r, {keys}}}\n"));
    let mut rules = config.expect("the rule is right").policy.nat;
    assert_eq!(rules.len(), 1);
    rules.remove(0)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn how_workers_wait_is_chosen_by_a_word_and_left_to_the_ports_without_one() {
    let poll = |section: &str| gateway(&format!("{section}policy: {{}}\n")).expect("it is right").launch.poll;
    assert_eq!(poll(""), Poll::Auto);
    assert_eq!(poll("dataplane: {burst: 16}\n"), Poll::Auto);
    for (word, meant) in [("auto", Poll::Auto), ("busy", Poll::Busy), ("adaptive", Poll::Adaptive)] {
        assert_eq!(poll(&format!("dataplane: {{poll: {word}}}\n")), meant);
    }
}

#[test]
fn the_lab_is_what_it_says() {
    let config = load_from_root(&root().join("configs/lab.yaml")).expect("it loads");
    let (lan, wan) = (ZoneId(1), ZoneId(2));
    assert_eq!(config.launch.workers, [0, 1]);
    assert_eq!(config.launch.hugepages, HugePages::Auto);
    assert_eq!((config.launch.burst, config.launch.mbufs), (64, None));
    let devices: Vec<_> = config.launch.interfaces.iter().map(|i| (i.name.as_str(), i.device.as_str())).collect();
    assert_eq!(devices, [("lan", "net_tap0,iface=dlan"), ("wan", "net_tap1,iface=dwan")]);
    assert_eq!(config.policy.zones, ["local", "lan", "wan"]);
    assert_eq!(config.policy.interface_zones, [lan, wan]);
    assert_eq!(config.interfaces[0].zone, lan);
    assert_eq!(config.interfaces[0].addresses[0].to_string(), "10.10.0.1/24");
    assert_eq!(config.interfaces[1].addresses[1].to_string(), "2001:db8:113::1/64");
    assert_eq!(config.interfaces[1].mtu, 1500);

    let nat = &config.policy.nat;
    assert_eq!(nat[0].kind, NatKind::Masquerade);
    assert_eq!((&nat[0].matches.from, &nat[0].matches.to), (&vec![lan], &vec![wan]));
    let source = nat[0].matches.source.as_ref().expect("a source");
    assert!(!source.negate && source.set.contains(ip("10.10.0.77")) && !source.set.contains(ip("fd10:10::2")));
    assert_eq!(nat[1].kind, NatKind::Dnat { to: ip("10.10.0.2").into(), port: Some(ToPort::One(80)) });
    assert_eq!((&nat[1].matches.dport, &nat[1].matches.proto), (&vec![8080..=8080], &vec![6]));

    let rules: Vec<_> = config.policy.rules.iter().map(|r| (r.name.as_str(), r.action)).collect();
    assert_eq!(rules.first(), Some(&("established", Action::Accept)));
    assert_eq!(rules.get(1), Some(&("invalid", Action::Drop)));
    assert_eq!(config.policy.default, Action::Drop);
    assert_eq!(config.metrics_listen, Some(([127, 0, 0, 1], 9477).into()));
    assert_eq!(config.control.socket, Path::new("/run/sluice/sluice.sock"));
    assert_eq!(config.control.group, None);
    assert!(dataplane::api::policy::Policy::compile(config.policy).is_ok());
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = gateway("policy:\n").expect("it is enough");
    assert_eq!((config.launch.workers, config.launch.burst), (vec![0], 64));
    assert!(config.launch.conntrack_max >= 65_536);
    assert_eq!(config.launch.defrag.memory, 4 << 20);
    assert_eq!(config.policy.conntrack.timeouts, Timeouts::default());
    assert!(config.policy.conntrack.tcp_loose && config.policy.conntrack.checksum);
    assert_eq!((config.policy.default, config.policy.rules.len()), (Action::Drop, 0));
    assert_eq!(config.metrics_listen, None);
    assert!(config.routes.is_empty() && config.neighbours.is_empty() && config.sets.is_empty());
}

#[test]
fn the_reference_names_every_default_timeout() {
    let config = load_from_root(&root().join("configs/gateway.yaml")).expect("it loads");
    assert_eq!(config.policy.conntrack.timeouts, Timeouts::default());
    let text = std::fs::read_to_string(root().join("configs/gateway.yaml")).expect("it can be read");
    for name in Timeouts::NAMES {
        assert!(text.contains(&format!("    {name}: ")), "{name}");
    }
    assert_eq!(config.launch.interfaces[2].vlan, Some(20));
    assert_eq!(config.launch.mbufs, Some(65_536));
    assert_eq!(config.control.group.as_deref(), Some("sluice"));
    // The router is in wan's subnet; the link-local one has its interface beside it.
    assert_eq!(config.routes[0].interface, Some(1));
    assert_eq!((config.routes[1].via, config.routes[1].interface), (Some(ip("fe80::1")), Some(1)));
    assert_eq!((config.routes[2].via, config.routes[2].interface), (None, Some(2)));
    assert_eq!(config.neighbours[0].mac, [2, 0, 0, 0, 0, 10]);
}

#[test]
fn zones_are_one_or_many_and_any_is_all() {
    assert_eq!(one_match("from: lan").from, [ZoneId(1)]);
    assert_eq!(one_match("from: [wan, local]").from, [ZoneId(2), ZoneId::LOCAL]);
    assert_eq!(one_match("from: any, to: local").from, []);
    assert_eq!(one_match("interface_in: [wan], interface_out: lan").interface_in, [1]);
}

#[test]
fn addresses_are_prefixes_ranges_sets_and_lists_of_them() {
    let set = |keys: &str| one_match(keys).source.expect("a source");
    let s = set("source: 10.0.0.0/8");
    assert!(!s.negate && s.set.contains(ip("10.9.9.9")) && !s.set.contains(ip("11.0.0.0")));
    let s = set("source: [192.0.2.1, 192.0.2.10-192.0.2.20, \"2001:db8::/32\"]");
    for a in ["192.0.2.1", "192.0.2.10", "192.0.2.20", "2001:db8::7"] {
        assert!(s.set.contains(ip(a)), "{a}");
    }
    assert!(!s.set.contains(ip("192.0.2.2")) && !s.set.contains(ip("192.0.2.21")));
    for keys in ["source: {not: 10.0.0.0/8}", "source: not 10.0.0.0/8", "source: {not: [10.0.0.0/8]}"] {
        let s = set(keys);
        assert!(s.negate && s.set.contains(ip("10.0.0.1")), "{keys}");
    }
}

#[test]
fn rules_share_a_named_set_and_lists_take_it_in() {
    let config = gateway(
        "sets:\n  mgmt: {type: prefix, elements: [10.0.0.0/8]}\n\
         policy:\n  rules:\n    \
           - {name: a, source: mgmt, action: accept}\n    \
           - {name: b, destination: not mgmt, action: accept}\n    \
           - {name: c, source: [mgmt, \"fd00::/8\"], action: accept}\n",
    )
    .expect("it is right");
    let rule = |i: usize| &config.policy.rules[i].matches;
    let (a, b) = (rule(0).source.as_ref().expect("set"), rule(1).destination.as_ref().expect("set"));
    assert!(Arc::ptr_eq(&a.set, &config.sets[0].1) && Arc::ptr_eq(&b.set, &config.sets[0].1) && b.negate);
    let c = rule(2).source.as_ref().expect("set");
    assert!(c.set.contains(ip("10.1.1.1")) && c.set.contains(ip("fd00::1")) && !c.set.contains(ip("11.0.0.1")));
}

#[test]
fn ports_icmp_types_flags_and_states_are_read() {
    let m = one_match("proto: [tcp, udp], dport: [22, 8000-8010], sport: 0-65535, state: new");
    assert_eq!((m.proto, m.dport, m.sport), (vec![6, 17], vec![22..=22, 8000..=8010], vec![0..=65535]));
    assert_eq!(m.state, [CtState::New]);
    assert_eq!(one_match("proto: icmp, icmp_type: [echo-request, 13]").icmp_type, [8, 13]);
    assert_eq!(one_match("proto: icmpv6, icmp_type: echo-request").icmp_type, [128]);
    assert_eq!(one_match("proto: 58, icmp_type: packet-too-big").icmp_type, [2]);
    assert_eq!(one_match("proto: tcp, tcp_flags: \"syn,ack,fin,rst/syn\"").tcp_flags, Some((0x17, 0x02)));
    assert_eq!(one_match("proto: tcp, tcp_flags: [syn, not ack]").tcp_flags, Some((0x12, 0x02)));
    assert_eq!(one_match("state: [established, untracked]").state, [CtState::Established, CtState::Untracked]);
}

#[test]
fn translation_is_narrowed_to_the_version_of_its_address() {
    let (v4, v6) = (ip("198.51.100.7"), ip("2001:db8::7"));
    let matches = |keys: &str, a: IpAddr| {
        let destination = one_nat(keys).matches.destination.expect("it is narrowed");
        destination.set.contains(a) != destination.negate
    };
    for keys in [
        "type: snat, to_address: 203.0.113.1",
        "type: dnat, to_address: 10.0.0.2",
        "type: dnat, to_address: 10.0.0.2, destination: [198.51.100.0/24, \"2001:db8::/32\"]",
        "type: snat, to_address: 203.0.113.1, destination: not 10.0.0.0/8",
    ] {
        assert!(matches(keys, v4) && !matches(keys, v6), "{keys}");
    }
    assert!(!matches("type: snat, to_address: 203.0.113.1, destination: not 198.51.100.0/24", v4));
    let keys = "type: dnat, to_address: \"fd00::2\"";
    assert!(matches(keys, v6) && !matches(keys, v4));
    assert!(one_nat("type: masquerade, from: local, to: wan").matches.destination.is_none());
    assert_eq!(one_nat("type: masquerade, preserve_port: strict").preserve_port, PreservePort::Strict);
}

/// The pool of these ranges.
fn pool(ranges: &[(&str, &str)]) -> Pool {
    Pool::new(ranges.iter().map(|(first, last)| (ip(first), ip(last)))).expect("a pool")
}

#[test]
fn pools_are_addresses_ranges_prefixes_and_lists_of_them() {
    let to = |text: &str| match one_nat(&format!("type: snat, to_address: {text}")).kind {
        NatKind::Snat { to } => to,
        other => panic!("{other:?}"),
    };
    assert_eq!(to("203.0.113.7"), pool(&[("203.0.113.7", "203.0.113.7")]));
    assert_eq!(to("203.0.113.7-203.0.113.9"), pool(&[("203.0.113.7", "203.0.113.9")]));
    assert_eq!(to("203.0.113.0/28"), pool(&[("203.0.113.0", "203.0.113.15")]));
    let mixed = to("[203.0.113.7, \"2001:db8::/64\", 198.51.100.1-198.51.100.3]");
    let wanted = [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
        ("198.51.100.1", "198.51.100.3"),
    ];
    assert_eq!(mixed, pool(&wanted));
}

#[test]
fn a_pool_of_both_versions_is_not_narrowed() {
    let both = "[203.0.113.7, \"2001:db8::7\"]";
    assert!(one_nat(&format!("type: snat, to_address: {both}")).matches.destination.is_none());
    assert!(one_nat(&format!("type: dnat, to_address: {both}")).matches.destination.is_none());
    let twice = |source: &str| {
        let rule = one_nat(&format!("type: twice, to_address: {both}, to_source: {source}"));
        let NatKind::Twice { to, port: None, source } = rule.kind else { panic!("{:?}", rule.kind) };
        assert_eq!((to.len(true), to.len(false)), (1, 1));
        (source, rule.matches.destination)
    };
    assert!(matches!(twice("masquerade"), (None, None)));
    assert!(matches!(twice("[10.0.0.1, \"fd00::1\"]"), (Some(_), None)));
    let (source, destination) = twice("10.0.0.1");
    assert_eq!(source, Some(ip("10.0.0.1").into()));
    let destination = destination.expect("narrowed to the version of the source");
    assert!(destination.set.contains(ip("198.51.100.1")) && !destination.set.contains(ip("2001:db8::1")));
}

#[test]
fn a_list_of_addresses_has_an_end() {
    let list = (0..1025_u32).map(|n| format!("10.{}.{}.1", n / 256, n % 256)).collect::<Vec<_>>();
    let rule = |count: usize| {
        let list = list[..count].join(", ");
        gateway(&format!("policy: {{}}\nnat:\n  - {{name: r, type: snat, to_address: [{list}]}}\n"))
    };
    assert!(rule(1024).is_ok());
    let error = rule(1025).expect_err("it is too long");
    assert!(error.contains("has 1025 ranges; accepted: at most 1024"), "{error}");
}

#[test]
fn destination_ports_become_one_or_are_mapped_one_to_one() {
    let port = |keys: &str| match one_nat(keys).kind {
        NatKind::Dnat { port, .. } | NatKind::Twice { port, .. } | NatKind::Redirect { port } => port,
        other => panic!("{other:?}"),
    };
    let shift = Some(ToPort::Shift { from: 9000, to: 8000 });
    assert_eq!(port("type: dnat, proto: sctp, to_address: 10.0.0.2, to_port: 80"), Some(ToPort::One(80)));
    assert_eq!(port("type: dnat, proto: tcp, to_address: 10.0.0.2"), None);
    assert_eq!(port("type: dnat, proto: udplite, dport: 9000-9010, to_address: 10.0.0.2, to_port: 8000-8010"), shift);
    let keys = "type: twice, proto: [tcp, udp], dport: 9000-9001, to_address: 10.0.0.2, to_source: masquerade";
    assert_eq!(port(&format!("{keys}, to_port: 8000-8001")), shift);
    assert_eq!(port("type: redirect, proto: tcp, dport: 1-65535, to_port: 3128-3128"), Some(ToPort::One(3128)));
    let all = Some(ToPort::Shift { from: 0, to: 1 });
    assert_eq!(port("type: redirect, proto: tcp, dport: 0-65534, to_port: 1-65535"), all);
    assert_eq!(port("type: redirect"), None);
}

#[test]
fn source_ports_are_chosen_as_the_rule_says() {
    let rule = one_nat("type: masquerade, source_ports: 4000-5000, random: true, on_reload: end");
    assert_eq!(
        (rule.ports, rule.preserve_port, rule.on_reload),
        (Some(4000..=5000), PreservePort::Never, OnReload::End)
    );
    let rule = one_nat("type: snat, to_address: 203.0.113.8/29, preserve_port: strict, persistent: true");
    assert_eq!((rule.ports, rule.preserve_port, rule.persistent), (None, PreservePort::Strict, true));
    let keys = "type: twice, to_address: 10.0.0.2, to_source: masquerade, source_ports: 65535, persistent: true";
    let rule = one_nat(keys);
    assert_eq!((rule.ports, rule.persistent), (Some(65535..=65535), true));
    let rule = one_nat("type: masquerade, random: false, preserve_port: auto");
    assert_eq!((rule.preserve_port, rule.persistent, rule.on_reload), (PreservePort::Auto, false, OnReload::Keep));
}

#[test]
fn dnat_serves_clients_behind_the_gateway_unless_told_not_to() {
    assert_eq!(one_nat("type: dnat, to_address: 10.0.0.2").hairpin, Hairpin::Auto);
    assert_eq!(one_nat("type: dnat, to_address: 10.0.0.2, hairpin: auto").hairpin, Hairpin::Auto);
    assert_eq!(one_nat("type: dnat, to_address: 10.0.0.2, hairpin: off").hairpin, Hairpin::Off);
}

#[test]
fn exemptions_and_redirects_need_no_address() {
    assert_eq!(one_nat("type: none, from: lan, to: wan, destination: 10.0.0.0/8").kind, NatKind::None);
    assert_eq!(one_nat("type: redirect, from: lan, on_reload: end").on_reload, OnReload::End);
}

#[test]
fn netmap_replaces_the_end_that_is_like_its_prefix() {
    let net = |text: &str| text.parse::<ipnet::IpNet>().expect("a prefix");
    let rule =
        one_nat("type: netmap, to: wan, source: 10.0.0.0/24, destination: 10.0.0.0/8, to_prefix: 203.0.113.0/24");
    let (from, to) = (net("10.0.0.0/24"), net("203.0.113.0/24"));
    assert_eq!(rule.kind, NatKind::Netmap { from, to, side: NetmapSide::Source });
    assert!(rule.matches.source.is_some_and(|s| s.set.contains(ip("10.0.0.9")) && !s.set.contains(ip("10.0.1.0"))));
    let rule = one_nat(
        "type: netmap, from: wan, source: not 10.0.0.0/24, destination: 203.0.113.0/24, to_prefix: 10.0.0.0/24",
    );
    assert_eq!(rule.kind, NatKind::Netmap { from: to, to: from, side: NetmapSide::Destination });
    assert!(rule.matches.destination.is_some_and(|d| d.set.contains(ip("203.0.113.9"))));
    let rule = one_nat("type: netmap, source: 10.0.0.5, to_prefix: 203.0.113.5/32");
    let (from, to) = (net("10.0.0.5/32"), net("203.0.113.5/32"));
    assert_eq!(rule.kind, NatKind::Netmap { from, to, side: NetmapSide::Source });
}

#[test]
fn prefixes_without_state_may_be_shared_between_other_zones() {
    let net = |text: &str| text.parse().expect("a prefix");
    let keys = "type: nptv6, from: lan, to: wan, source: \"fd00:1::/48\", to_prefix: \"2001:db8:1::/48\"";
    let rule = one_nat(keys);
    assert_eq!(rule.kind, NatKind::Nptv6 { inside: net("fd00:1::/48"), outside: net("2001:db8:1::/48") });
    assert!(rule.matches.source.is_none());
    let other = keys.replace("to: wan", "to: lan");
    assert!(gateway(&format!("policy: {{}}\nnat:\n  - {{name: a, {keys}}}\n  - {{name: b, {other}}}\n")).is_ok());
    let many: String = (0..257)
        .map(|n| {
            format!("  - {{name: r{n}, type: nptv6, source: \"fd00:{n:x}::/32\", to_prefix: \"2001:{n:x}::/32\"}}\n")
        })
        .collect();
    let error = gateway(&format!("policy: {{}}\nnat:\n{many}")).expect_err("too many");
    assert!(error.ends_with("is one rule too many; accepted: 256 of type nptv6"), "{error}");
}

#[test]
fn interfaces_bound_the_segments_of_what_goes_through_them() {
    let text = "interfaces:\n  a: {device: net_tap0, zone: lan, mss: auto}\n  b: {device: net_tap1, zone: wan, mss: 1360}\n  \
                c: {device: net_tap2, zone: wan}\npolicy: {}\n";
    let config = parse(text, Path::new("x.yaml")).expect("it is right");
    assert_eq!(config.policy.interface_mss, [Some(Mss::Auto), Some(Mss::Fixed(1360)), None]);
}

#[test]
fn times_have_units() {
    let config = gateway(
        "policy: {}\nconntrack:\n  max: 2048\n  checksum: false\n  tcp: {loose: false}\n  \
         timeouts: {tcp_established: 1h, udp: 500ms, icmp: 7}\n",
    )
    .expect("it is right");
    let conntrack = &config.policy.conntrack;
    assert_eq!(config.launch.conntrack_max, 2048);
    assert_eq!(conntrack.timeouts.tcp_established, Nanos::from_secs(3600));
    assert_eq!(conntrack.timeouts.udp, Nanos::from_millis(500));
    assert_eq!(conntrack.timeouts.icmp, Nanos::from_secs(7));
    assert!(!conntrack.tcp_loose && !conntrack.checksum);
}

/// `conntrack` with these keys, and 4,096 connections.
fn conntrack(keys: &str) -> ConntrackSpec {
    let config = gateway(&format!("policy: {{}}\nconntrack:\n  max: 4096\n  {keys}\n"));
    config.expect("the section is right").policy.conntrack
}

#[test]
fn every_timeout_can_be_set_and_no_other_changes() {
    for name in Timeouts::NAMES {
        let mut wanted = Timeouts::default();
        assert!(wanted.set(name, Nanos::from_secs(77)));
        assert_eq!(conntrack(&format!("timeouts: {{{name}: 77}}")).timeouts, wanted, "{name}");
    }
}

#[test]
fn timeout_policies_begin_with_the_general_timeouts_wherever_those_stand() {
    let spec = conntrack("timeout_policies: {a: {udp: 5s}, b: {}}\n  timeouts: {udp: 7s, icmp: 9s}");
    let general = Timeouts { udp: Nanos::from_secs(7), icmp: Nanos::from_secs(9), ..Timeouts::default() };
    let a = Timeouts { udp: Nanos::from_secs(5), ..general.clone() };
    assert_eq!(spec.timeouts, general);
    assert_eq!(spec.timeout_policies, [("a".to_owned(), a.clone()), ("b".to_owned(), general)]);
    assert_eq!(spec.timeouts_of(1), &a);
}

#[test]
fn rules_name_timeout_policies_set_marks_and_match_them() {
    let config = gateway(
        "policy:\n  rules:\n    \
           - {name: plain, action: accept}\n    \
           - {name: set, set_mark: 0x10/0xff, action: continue}\n    \
           - {name: tell, from: lan, log: true, action: continue}\n    \
           - {name: slow, mark: 16, timeout: b, set_mark: 5, action: accept}\n\
         conntrack:\n  timeout_policies: {a: {udp: 1m}, b: {udp: 2m}}\n",
    )
    .expect("it is right");
    let rules = &config.policy.rules;
    let of = |i: usize| (rules[i].action, rules[i].set_mark, rules[i].timeout_policy, rules[i].matches.mark);
    assert_eq!(of(0), (Action::Accept, None, 0, None));
    assert_eq!(of(1), (Action::Continue, Some((0xff, 0x10)), 0, None));
    assert_eq!((of(2).0, rules[2].log), (Action::Continue, true));
    assert_eq!(of(3), (Action::Accept, Some((u32::MAX, 5)), 2, Some((u32::MAX, 16))));
    let nat = one_nat("type: masquerade, to: wan, mark: 0/1");
    assert_eq!(nat.matches.mark, Some((1, 0)));
}

#[test]
fn tcp_settings_limits_and_reports_are_read() {
    let spec = conntrack("tcp: {be_liberal: true, max_retrans: 5}\n  expect_max: 77\n  reserve: 100");
    assert!(spec.tcp_be_liberal && spec.tcp_loose);
    assert_eq!((spec.tcp_max_retrans, spec.expect_max, spec.reserve), (5, 77, 100));
    assert_eq!(conntrack("reserve: 0").reserve, 0);
    assert_eq!(conntrack("log_invalid: true").log_invalid, LogInvalid::All);
    assert_eq!(conntrack("log_invalid: false").log_invalid, LogInvalid::None);
    assert_eq!(conntrack("log_invalid: tcp").log_invalid, LogInvalid::Protocols(vec![6]));
    let some = LogInvalid::Protocols(vec![6, 17, 1, 132]);
    assert_eq!(conntrack("log_invalid: [tcp, udp, icmp, 132]").log_invalid, some);
    let spec = conntrack(
        "limits: [{per: source, max: 1000}, {per: source, prefix_v4: 24, prefix_v6: 48, max: 9, from: lan}, \
         {per: zone, from: local, max: 5}]",
    );
    let wanted = [
        LimitSpec { from: None, per: LimitPer::Source { v4: 32, v6: 64 }, max: 1000 },
        LimitSpec { from: Some(ZoneId(1)), per: LimitPer::Source { v4: 24, v6: 48 }, max: 9 },
        LimitSpec { from: Some(ZoneId::LOCAL), per: LimitPer::Zone, max: 5 },
    ];
    assert_eq!(spec.limits, wanted);
}

#[test]
fn lists_that_cost_every_new_connection_are_short() {
    let limits: String = (1..=17).map(|n| format!("{{per: source, prefix_v4: {n}, max: 5}}, ")).collect();
    let helpers = "{helper: ftp, proto: tcp}, ".repeat(257);
    let policies: String = (0..256).map(|n| format!("p{n}: {{}}, ")).collect();
    for (key, list, why) in [
        ("limits", format!("[{limits}]"), "has 17 limits; accepted: at most 16"),
        ("helpers", format!("[{helpers}]"), "has 257 rules; accepted: at most 256"),
        ("timeout_policies", format!("{{{policies}}}"), "has 256 policies; accepted: at most 255"),
    ] {
        let error = gateway(&format!("policy: {{}}\nconntrack:\n  {key}: {list}\n")).expect_err(key);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_conntrack_leaves_out_has_its_default() {
    let (spec, wanted) = (conntrack("checksum: true"), ConntrackSpec::default());
    assert_eq!((spec.tcp_loose, spec.tcp_be_liberal, spec.tcp_max_retrans), (true, false, 3));
    assert_eq!(spec.expect_max, wanted.expect_max);
    assert_eq!(spec.reserve, 32, "one in 128");
    assert!(spec.helpers.is_empty() && spec.limits.is_empty() && spec.timeout_policies.is_empty());
    assert_eq!(spec.log_invalid, LogInvalid::None);
    let config = gateway("policy: {}\nconntrack: {max: 1024}\n").expect("it is enough");
    assert_eq!((config.policy.conntrack.reserve, config.policy.interface_ct_zones), (16, vec![0, 0]));
    let config = gateway("policy: {}\n").expect("it is enough");
    assert!((512..=1024).contains(&config.policy.conntrack.reserve));
}

#[test]
fn helpers_are_assigned_by_rule() {
    let spec = conntrack(
        "helpers: [{helper: ftp, proto: tcp, dport: [21, 2121], from: lan, to: wan, state: new}, \
         {helper: tftp, proto: udp, destination: 10.0.0.0/8}, {helper: pptp, proto: tcp, dport: 1723}]",
    );
    let kinds: Vec<_> = spec.helpers.iter().map(|h| h.kind).collect();
    assert_eq!(kinds, [HelperKind::Ftp, HelperKind::Tftp, HelperKind::Pptp]);
    let ftp = &spec.helpers[0].matches;
    assert_eq!((&ftp.proto, &ftp.dport), (&vec![6], &vec![21..=21, 2121..=2121]));
    assert_eq!((&ftp.from, &ftp.to, &ftp.state), (&vec![ZoneId(1)], &vec![ZoneId(2)], &vec![CtState::New]));
    assert!(spec.helpers[1].matches.destination.as_ref().is_some_and(|d| d.set.contains(ip("10.1.2.3"))));
}

#[test]
fn interfaces_have_conntrack_zones() {
    let text = "interfaces:\n  a: {device: net_tap0, zone: lan, ct_zone: 65535}\n  b: {device: net_tap1, zone: wan}\n\
                policy: {}\n";
    let config = parse(text, Path::new("x.yaml")).expect("it is right");
    assert_eq!(config.policy.interface_ct_zones, [65_535, 0]);
}

#[test]
fn the_reference_compiles_with_all_that_it_shows() {
    let policy = load_from_root(&root().join("configs/gateway.yaml")).expect("it loads").policy;
    let spec = &policy.conntrack;
    assert_eq!((spec.timeout_policies.len(), spec.helpers.len(), spec.limits.len()), (1, 3, 2));
    assert_eq!((spec.reserve, spec.expect_max), (1024, 1024));
    assert_eq!(policy.interface_ct_zones, [0, 0, 7]);
    assert!(policy.rules.iter().any(|r| r.timeout_policy == 1) && policy.rules.iter().any(|r| r.set_mark.is_some()));
    assert!(Policy::compile(policy).is_ok());
}

#[test]
fn a_hundred_thousand_rules_load_and_compile() {
    use std::fmt::Write;
    let mut text = "interfaces:\n  a: {device: net_tap0, zone: lan}\n  b: {device: net_tap1, zone: wan}\n\
                    policy:\n  rules:\n"
        .to_owned();
    for n in 0..100_000 {
        let host = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
        let rule =
            format_args!("{{name: r{n}, from: wan, destination: {host}, proto: tcp, dport: 443, action: accept}}");
        writeln!(text, "    - {rule}").expect("it is a string");
    }
    let config = parse(&text, Path::new("x.yaml")).expect("it is right");
    assert_eq!(config.policy.rules.len(), 100_000);
    assert!(Policy::compile(config.policy).expect("it is right").classifier_memory() < 16 << 20);
}

#[test]
fn there_is_an_example_of_every_translation() {
    let config = load_from_root(&root().join("configs/nat.yaml")).expect("it loads");
    let kind = |rule: &NatRuleSpec| match rule.kind {
        NatKind::None => 0,
        NatKind::Masquerade => 1,
        NatKind::Snat { .. } => 2,
        NatKind::Dnat { .. } => 3,
        NatKind::Twice { .. } => 4,
        NatKind::Redirect { .. } => 5,
        NatKind::Netmap { side: NetmapSide::Source, .. } => 6,
        NatKind::Netmap { side: NetmapSide::Destination, .. } => 7,
        NatKind::Nptv6 { .. } => 8,
    };
    let kinds: std::collections::BTreeSet<_> = config.policy.nat.iter().map(kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    assert_eq!(config.policy.interface_mss, [None, None, Some(Mss::Auto), Some(Mss::Fixed(1360))]);
    assert!(Policy::compile(config.policy).is_ok());
}

#[test]
fn of_a_thousand_errors_a_hundred_are_shown() {
    let rules: String = (0..1000).map(|i| format!("    - {{name: r{i}, action: deny}}\n")).collect();
    let error = gateway(&format!("policy:\n  rules:\n{rules}")).expect_err("none is right");
    assert_eq!(error.lines().count(), 101);
    assert!(error.ends_with("\nand 900 more"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/nonexistent/sluice.yaml")).expect_err("it is not there");
    let want = "/nonexistent/sluice.yaml: cannot be read: No such file or directory (os error 2)";
    assert_eq!(error.to_string(), want);
}

/// A shipped configuration without its comments.
fn shipped(file: &str) -> String {
    let text = std::fs::read_to_string(root().join(file)).expect("it can be read");
    text.lines().filter(|l| !l.trim_start().starts_with('#')).map(|l| format!("{l}\n")).collect()
}

/// Texts near a right one: characters dropped, doubled or replaced. Most are not YAML.
fn mangled(text: String) -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "", ":", "- ", "[", "]", "{", "}", "\n", "  ", "\t", "&a ", "*a", "!!str ", "|\n", ">\n", "\"", "'", "#", "~",
        "<<: ", "é\u{0}", "\u{feff}", "---\n", "...\n", "name: ",
    ];
    let mutation = (any::<prop::sample::Index>(), 0..20_usize, prop::sample::select(WORDS), any::<bool>());
    prop::collection::vec(mutation, 1..4).prop_map(move |mutations| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, length, word, double) in mutations {
            let start = at.index(chars.len() + 1);
            let end = (start + length).min(chars.len());
            let mut insert: Vec<char> = word.chars().collect();
            if double {
                insert.extend_from_slice(&chars[start..end]);
                insert.extend_from_slice(&chars[start..end]);
            }
            chars.splice(start..end, insert);
        }
        chars.into_iter().collect()
    })
}

/// Texts that are YAML still: words replaced by other words of the file or by those that lie at a limit.
fn misworded(text: String) -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "~",
        "[]",
        "{}",
        "[[a]]",
        "{not: any}",
        "-1",
        "0",
        "65535",
        "65536",
        "18446744073709551616",
        "1e999",
        ".nan",
        "::/0",
        "0.0.0.0-255.255.255.255",
        "0.0.0.0/33",
        "::ffff:1.2.3.4",
        "255.255.255.255/32",
        "not",
        "any",
        "local",
        "syn/",
        "/",
        "-",
        "a-b",
        "é",
        "99999999999d",
        "all/all",
        "00:00.0",
    ];
    let is_word = |c: char| c.is_alphanumeric() || "._-/:".contains(c);
    let mut words: Vec<(usize, usize)> = Vec::new();
    for (i, c) in text.char_indices() {
        match words.last_mut() {
            Some((_, end)) if *end == i && is_word(c) => *end += c.len_utf8(),
            _ if is_word(c) => words.push((i, i + c.len_utf8())),
            _ => {}
        }
    }
    let swap = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    prop::collection::vec(swap, 1..6).prop_map(move |mut swaps| {
        // From the last to the first, each word once, so that positions hold.
        swaps.sort_by_key(|(at, _)| std::cmp::Reverse(at.index(words.len())));
        swaps.dedup_by_key(|(at, _)| at.index(words.len()));
        let mut out = text.clone();
        for (at, with) in swaps {
            let (start, end) = words[at.index(words.len())];
            let i = with.index(words.len() + WORDS.len());
            let word = words.get(i).map_or_else(|| WORDS[i - words.len()], |&(start, end)| &text[start..end]);
            // A key keeps its colon more often than not.
            let end = if text[..end].ends_with(':') && i % 4 != 0 { end - 1 } else { end };
            out.replace_range(start..end, word.trim_end_matches(':'));
        }
        out
    })
}

#[test]
fn a_file_name_with_what_does_not_print_is_shown_escaped() {
    let text = "interfaces: {}\npolicy: {default: drop}\nsets: {a: {type: prefix, file: \"b\\tc\"}}\n";
    let e = parse(text, Path::new("/nowhere/x.yaml")).expect_err("there is no such file").to_string();
    assert!(e.contains(r#""b\tc" cannot be read"#), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a hand slips to, there is a configuration or an error that a terminal can show.
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![
        4 => misworded(shipped("configs/gateway.yaml")),
        2 => misworded(shipped("configs/nat.yaml")),
        2 => mangled(shipped("configs/gateway.yaml")),
        1 => any::<String>(),
    ]) {
        let file = root().join("configs/x.yaml");
        match parse(&text, &file) {
            Ok(config) => prop_assert!(!config.interfaces.is_empty()),
            Err(e) => {
                prop_assert!(!e.problems.is_empty());
                for problem in e.problems {
                    let line = problem.to_string();
                    prop_assert!(!line.contains(|c: char| c.is_control()) && line.len() < 2000, "{:?}", line);
                }
            }
        }
    }
}
