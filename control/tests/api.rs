//! The whole gateway but for DPDK and the kernel: the API over its UNIX socket as `sluicectl` uses it, and the metrics.

mod common;

use std::process::Command;

use common::{Lab, eventually, tcp_conn};
use dataplane::api::DropReason;
use serde_json::Value;

const RULES: &str = "    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
    - {name: ssh, from: lan, to: local, proto: tcp, dport: [22, 8000-8080], source: mgmt, action: accept, log: true}";

const CHANGED: &str = "    - {name: lan-out, from: lan, to: wan, state: new, action: accept}
    - {name: established, state: [established, related], action: accept}
    - {name: bad, state: invalid, action: drop}";

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Counts as worker `worker` would, by the policy it has now.
fn count(lab: &Lab, worker: usize, rule: u32, packets: u64) {
    let seen = lab.fake.seen[worker].lock();
    let (_, counters, _) = seen.policy.as_ref().expect("a policy is in force");
    for _ in 0..packets {
        counters.count(rule, 100);
    }
}

#[test]
fn status_says_what_runs() {
    let lab = Lab::start(2, RULES);
    let text = lab.ctl(&["status"]).expect("status");
    assert!(text.starts_with(&format!("sluiced {} (DPDK none), pid ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("policy generation 1 from "), "{text}");
    assert!(text.contains("2 workers in ordinary pages, 1 of 2 interfaces up\n0 of 2000 connections\n"), "{text}");
    let status = json(&lab.ctl(&["--json", "status"]).expect("status"));
    assert_eq!((&status["ready"], &status["generation"], &status["workers"]), (&true.into(), &1.into(), &2.into()));
    lab.stop();
}

#[test]
fn a_reload_is_in_force_everywhere_before_it_is_answered() {
    let lab = Lab::start(2, RULES);
    lab.write(CHANGED);
    let text = lab.ctl(&["reload"]).expect("reload");
    assert!(text.starts_with("policy generation 2 is in force after "), "{text}");
    for seen in &lab.fake.seen {
        let seen = seen.lock();
        let (policy, _, _) = seen.policy.as_ref().expect("a policy");
        let names: Vec<_> = policy.spec().rules.iter().map(|r| r.name.as_str()).collect();
        assert_eq!((policy.spec().generation, names), (2, vec!["lan-out", "established", "bad"]));
    }
    let again = json(&lab.ctl(&["--json", "reload", lab.file().to_str().expect("path")]).expect("reload"));
    assert_eq!(again["generation"], 3);
    assert_eq!(lab.metric("sluice_policy_generation"), Some(3.0));
    assert_eq!(lab.metric(r#"sluice_reloads_total{result="success"}"#), Some(2.0));
    lab.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let lab = Lab::start(1, RULES);
    lab.write("    - {name: x, from: nowhere, action: accept}");
    let error = lab.ctl(&["reload"]).expect_err("a zone that does not exist").to_string();
    assert!(error.contains("sluice.yaml") && error.contains("nowhere"), "{error}");
    let gone = lab.ctl(&["reload", "/nonexistent.yaml"]).expect_err("no file").to_string();
    assert!(gone.contains("/nonexistent.yaml"), "{gone}");
    let seen = lab.fake.seen[0].lock();
    assert_eq!(seen.policy.as_ref().expect("policy").0.spec().generation, 1);
    drop(seen);
    assert_eq!(lab.metric(r#"sluice_reloads_total{result="failure"}"#), Some(2.0));
    lab.stop();
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    let lab = Lab::start(1, RULES);
    let good = lab.yaml(RULES);
    let cases = [
        ("workers: [1]", "workers: [2]", "dataplane.workers"),
        ("hugepages: off", "hugepages: on", "dataplane.hugepages"),
        ("hugepages: off", "hugepages: off, poll: busy", "dataplane.poll"),
        ("net_null1", "net_null7", "interfaces.wan.device"),
        ("addresses: [192.0.2.1/24]", "addresses: [192.0.2.1/24], mtu: 1400", "interfaces.lan.mtu"),
        ("max: 2000", "max: 4096", "conntrack.max"),
        ("conntrack: {", "defrag: {memory: 1048576}\nconntrack: {", "defrag.memory"),
        ("conntrack: {", "defrag: {mode: virtual}\nconntrack: {", "defrag.mode"),
        ("sluice.sock", "other.sock", "control.socket"),
    ];
    for (from, to, key) in cases {
        assert!(good.contains(from), "{from}");
        std::fs::write(lab.file(), good.replace(from, to)).expect("write");
        let error = lab.ctl(&["reload"]).expect_err(key).to_string();
        let expect = format!("{key} cannot change while the gateway runs: restart sluiced for that");
        assert_eq!(error, expect);
    }
    // Zones and addresses may change.
    std::fs::write(lab.file(), good.replace("192.0.2.1/24", "192.0.2.2/24")).expect("write");
    lab.ctl(&["reload"]).expect("an address may change");
    lab.stop();
}

#[test]
fn rule_counters_are_carried_over_a_reload_by_name() {
    let lab = Lab::start(2, RULES);
    let of = |lab: &Lab, rule: &str| lab.metric(&format!(r#"sluice_rule_packets_total{{rule="{rule}"}}"#));
    count(&lab, 0, 0, 5); // established
    count(&lab, 1, 0, 2);
    count(&lab, 1, 1, 1); // lan-out
    count(&lab, 0, 3, 4); // default
    assert_eq!((of(&lab, "established"), of(&lab, "lan-out"), of(&lab, "ssh")), (Some(7.0), Some(1.0), Some(0.0)));
    lab.write(CHANGED);
    lab.ctl(&["reload"]).expect("reload");
    count(&lab, 0, 0, 10); // lan-out is first now
    assert_eq!((of(&lab, "established"), of(&lab, "lan-out")), (Some(7.0), Some(11.0)));
    assert_eq!((of(&lab, "bad"), of(&lab, "default"), of(&lab, "ssh")), (Some(0.0), Some(4.0), None));
    assert_eq!(lab.metric(r#"sluice_rule_bytes_total{rule="lan-out"}"#), Some(1100.0));
    let rules = json(&lab.ctl(&["--json", "show", "rules"]).expect("rules"));
    assert_eq!((&rules[0]["name"], &rules[0]["packets"]), (&"lan-out".into(), &11.into()));
    lab.stop();
}

#[test]
fn metrics_are_there_without_any_translation() {
    let lab = Lab::start(1, RULES);
    let nat = "nat:\n  - {name: out, type: masquerade, from: lan, to: wan}\n";
    let good = lab.yaml(RULES);
    assert!(good.contains(nat));
    std::fs::write(lab.file(), good.replace(nat, "")).expect("write");
    lab.ctl(&["reload"]).expect("reload");
    assert!(!lab.scrape().contains("sluice_nat_ports_used"), "there is no translated address");
    lab.stop();
}

#[test]
fn every_metric_of_the_contract_is_there_with_help_and_type() {
    let lab = Lab::start(2, RULES);
    let text = lab.scrape();
    let contract = [
        ("sluice_packets_total", "counter"),
        ("sluice_bytes_total", "counter"),
        ("sluice_dropped_packets_total", "counter"),
        ("sluice_fragments_total", "counter"),
        ("sluice_fragment_queues", "gauge"),
        ("sluice_fragment_memory_bytes", "gauge"),
        ("sluice_fragment_memory_limit_bytes", "gauge"),
        ("sluice_conntrack_entries", "gauge"),
        ("sluice_conntrack_limit", "gauge"),
        ("sluice_conntrack_alarm", "gauge"),
        ("sluice_conntrack_expectations", "gauge"),
        ("sluice_conntrack_events_total", "counter"),
        ("sluice_conntrack_events_lost_total", "counter"),
        ("sluice_conntrack_listeners", "gauge"),
        ("sluice_classified_packets_total", "counter"),
        ("sluice_rule_packets_total", "counter"),
        ("sluice_rule_bytes_total", "counter"),
        ("sluice_nat_ports_used", "gauge"),
        ("sluice_nat_ports_free", "gauge"),
        ("sluice_nat_exhaustion_seconds", "gauge"),
        ("sluice_nat_rule_connections_total", "counter"),
        ("sluice_nat_failures_total", "counter"),
        ("sluice_handover_packets_total", "counter"),
        ("sluice_reloads_total", "counter"),
        ("sluice_policy_generation", "gauge"),
        ("sluice_worker_cycles_total", "counter"),
        ("sluice_burst_seconds", "histogram"),
        ("sluice_packet_latency_seconds", "histogram"),
        ("sluice_icmp_errors_total", "counter"),
        ("sluice_signposts", "gauge"),
        ("sluice_interface_up", "gauge"),
        ("sluice_build_info", "gauge"),
        ("sluice_uptime_seconds", "gauge"),
    ];
    for (name, kind) in contract {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        assert!(text.lines().any(|l| l.starts_with(name)), "{name} has no sample");
    }
    for reason in DropReason::ALL {
        let line = format!("sluice_dropped_packets_total{{reason=\"{}\"}} 0\n", reason.label());
        assert!(text.contains(&line), "{line}");
    }
    for line in [
        "sluice_packets_total{interface=\"lan\",direction=\"rx\"} 0",
        "sluice_fragments_total{result=\"reassembled\"} 0",
        "sluice_fragment_queues{worker=\"1\"} 0",
        "sluice_fragment_memory_bytes{worker=\"0\"} 0",
        "sluice_fragment_memory_limit_bytes 4194304",
        "sluice_conntrack_entries{worker=\"1\"} 0",
        "sluice_conntrack_limit 2000",
        "sluice_conntrack_alarm{level=\"full\"} 0",
        "sluice_conntrack_expectations{worker=\"0\"} 0",
        "sluice_conntrack_events_lost_total 0",
        "sluice_classified_packets_total{state=\"new\",direction=\"original\"} 0",
        "sluice_worker_cycles_total{worker=\"0\",kind=\"busy\"} 0",
        "sluice_interface_up{interface=\"lan\"} 1",
        "sluice_interface_up{interface=\"wan\"} 0",
        "sluice_burst_seconds_bucket{le=\"+Inf\"} 0",
        "sluice_packet_latency_seconds_bucket{le=\"+Inf\"} 0",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}");
    }
    assert!(text.to_lowercase().contains("content-type: text/plain; version=0.0.4"));
    assert!(text.lines().filter(|l| l.starts_with("sluice_")).count() > 100);
    lab.stop();
}

#[test]
fn counters_of_all_workers_are_added_up() {
    let lab = Lab::start(2, RULES);
    for (i, s) in lab.stats.iter().enumerate() {
        s.ports[0].rx_packets.add(10 + i as u64); // lan's wire
        s.ports[1].rx_packets.add(1000); // lan's twin is not the wire
        s.ports[2].tx_bytes.add(7);
        s.drop_packet(DropReason::PolicyDefault);
        s.burst.record(400, 1);
        s.burst.record(3_000_000_000, 1);
        s.latency.record(500, 32);
        s.latency.record(3_000, 1);
        s.latency.record(60_000_000_000, 1);
        s.busy_ns.add(1000);
    }
    assert_eq!(lab.metric(r#"sluice_packets_total{interface="lan",direction="rx"}"#), Some(21.0));
    assert_eq!(lab.metric(r#"sluice_bytes_total{interface="wan",direction="tx"}"#), Some(14.0));
    assert_eq!(lab.metric(r#"sluice_dropped_packets_total{reason="policy_default"}"#), Some(2.0));
    assert_eq!(lab.metric(r#"sluice_burst_seconds_bucket{le="0.0000005"}"#), Some(2.0));
    assert_eq!(lab.metric("sluice_burst_seconds_count"), Some(4.0));
    assert_eq!(lab.metric("sluice_burst_seconds_sum"), Some(6.0000008));
    let latency = |le: &str| lab.metric(&format!("sluice_packet_latency_seconds_bucket{{le=\"{le}\"}}"));
    // A bound is within its bucket.
    assert_eq!((latency("0.0000005"), latency("0.000002"), latency("0.000004")), (Some(64.0), Some(64.0), Some(66.0)));
    assert_eq!((latency("0.01"), latency("+Inf")), (Some(66.0), Some(68.0)));
    assert!(lab.metric(r#"sluice_worker_cycles_total{worker="1",kind="busy"}"#).is_some_and(|c| c >= 100.0));
    let interfaces = json(&lab.ctl(&["--json", "show", "interfaces"]).expect("interfaces"));
    assert_eq!((&interfaces[0]["rx_packets"], &interfaces[0]["mac"]), (&21.into(), &"02:00:00:00:00:00".into()));
    lab.stop();
}

#[test]
fn latency_is_shown_by_worker_and_of_all_and_begins_anew_after_a_reset() {
    let lab = Lab::start(2, RULES);
    for (s, ns) in lab.stats.iter().zip([1_000, 100_000]) {
        s.burst.record(ns, 1);
        s.latency.record(ns, 9);
    }
    lab.stats[0].latency.record(2_000_000, 2);
    let text = lab.ctl(&["show", "latency"]).expect("latency");
    let expect = "WORKER  TIME    COUNT  MIN µs  P50 µs  P90 µs  P99 µs  P99.9 µs  P99.99 µs  MAX µs
0       burst       1     1.0     1.0     1.0     1.0       1.0        1.0     1.0
0       packet     11     1.0     1.0  2007.0  2007.0    2007.0     2007.0  2007.0
1       burst       1    99.8   100.4   100.4   100.4     100.4      100.4   100.4
1       packet      9    99.8   100.4   100.4   100.4     100.4      100.4   100.4
all     burst       2     1.0     1.0   100.4   100.4     100.4      100.4   100.4
all     packet     20     1.0   100.4   100.4  2007.0    2007.0     2007.0  2007.0
counted for 0 s
";
    assert_eq!(text, expect);

    let last = json(&lab.ctl(&["--json", "show", "latency", "--reset"]).expect("reset"));
    assert_eq!((&last["total"]["packet"]["count"], &last["workers"][1]["burst"]["count"]), (&20.into(), &1.into()));
    lab.stats[1].latency.record(500, 3);
    let anew = json(&lab.ctl(&["--json", "show", "latency"]).expect("latency"));
    assert_eq!(
        (&anew["workers"][0]["packet"]["count"], &anew["workers"][0]["packet"]["p50_us"]),
        (&0.into(), &Value::Null)
    );
    assert_eq!((&anew["total"]["packet"]["count"], &anew["total"]["packet"]["max_us"]), (&3.into(), &0.501.into()));
    assert_eq!(lab.metric("sluice_packet_latency_seconds_count"), Some(23.0), "metrics go on");
    let error = lab.ctl(&["show", "rules", "--reset"]).expect_err("rules are not counted anew");
    assert_eq!((error.to_string().as_str(), error.exit_status()), ("--reset is about `show latency` alone", 2));
    lab.stop();
}

#[test]
fn tables_are_aligned_for_people() {
    let lab = Lab::start(1, RULES);
    let rules = lab.ctl(&["show", "rules"]).expect("rules");
    let expect = "#  HOOK    NAME         PACKETS  BYTES  ACTION       MATCH
1  filter  established        0      0  accept       state established,related
2  filter  lan-out            0      0  accept       from lan to wan state new
3  filter  ssh                0      0  accept, log  from lan to local source mgmt proto tcp dport 22,8000-8080
-  filter  default            0      0  drop         any
";
    assert_eq!(rules, expect);
    let nat = lab.ctl(&["show", "nat"]).expect("nat");
    assert_eq!(
        nat.lines().nth(1),
        Some("1  out   masquerade            0         0  from lan to wan  the egress interface's address")
    );
    let sets = lab.ctl(&["show", "sets"]).expect("sets");
    assert_eq!(sets, "NAME  IPV4 RANGES  IPV6 RANGES\nmgmt            2            0\n");
    for part in ["interfaces", "routes", "neighbours", "workers"] {
        assert!(lab.ctl(&["show", part]).expect(part).lines().next().is_some_and(|l| !l.ends_with(' ')), "{part}");
    }
    let stats = lab.ctl(&["conntrack", "stats"]).expect("stats");
    let kernel =
        "worker=0 found=0 invalid=0 insert=0 insert_failed=0 drop=0 early_drop=0 error=0 entries=0 limit=1000 ";
    assert!(stats.starts_with(kernel) && stats.contains(" expired=0 "), "{stats}");
    lab.stop();
}

#[test]
fn what_is_not_built_says_so_with_status_2() {
    for command in [
        &["diff", "x.yaml"][..],
        &["explain", "lan", "tcp", "1.2.3.4"],
        &["trace", "--count", "5"],
        &["capture"],
        &["top"],
        &["import", "nft", "file"],
        &["reload", "--confirm", "60s"],
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_sluicectl")).args(command).output().expect("sluicectl");
        let error = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{command:?}: {error}");
        assert!(error.ends_with("is not supported yet\n"), "{command:?}: {error}");
    }
}

#[test]
fn nobody_there_is_one_sentence_and_status_1() {
    let ctl = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_sluicectl"))
            .args(arguments)
            .env("SLUICE_SOCKET", "/nonexistent/sluice.sock")
            .output()
            .expect("sluicectl")
    };
    let out = ctl(&["status"]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        error,
        "sluicectl: cannot reach sluiced at /nonexistent/sluice.sock: No such file or directory (os error 2)\n"
    );
    let out = ctl(&["status", "--wait", "0.1"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stderr).starts_with("sluicectl: sluiced was not ready within 0.1 s: cannot reach")
    );
}

#[test]
fn check_needs_no_gateway() {
    let dir = std::env::temp_dir().join(format!("sluice-check-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("folder");
    let minimal = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/minimal.yaml");
    let check =
        |file: &str| Command::new(env!("CARGO_BIN_EXE_sluicectl")).args(["check", file]).output().expect("sluicectl");
    let good = check(minimal);
    assert_eq!(
        (good.status.code(), String::from_utf8_lossy(&good.stdout)),
        (Some(0), format!("{minimal}: ok\n").into())
    );
    let bad = dir.join("bad.yaml");
    std::fs::write(&bad, "interfaces: 7\n").expect("file");
    let refused = check(bad.to_str().expect("path"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("bad.yaml:1"));
    std::fs::remove_dir_all(&dir).expect("folder");
}

#[test]
fn the_daemon_checks_a_file_too_and_says_its_version() {
    let minimal = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/minimal.yaml");
    let sluiced =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_sluiced")).args(arguments).output().expect("sluiced");
    assert!(sluiced(&["--config", minimal, "--check"]).status.success());
    let version = sluiced(&["-V"]);
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("sluiced {}\n", env!("CARGO_PKG_VERSION")));
    let missing = sluiced(&["--config", "/nonexistent.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn a_stuck_worker_is_named_and_two_dumps_take_turns() {
    let lab = Lab::start(2, RULES);
    lab.fake.seen[0].lock().conns = (0..3000).map(tcp_conn).collect();
    std::thread::scope(|s| {
        let dumps: Vec<_> = (0..4).map(|_| s.spawn(|| lab.ctl(&["conntrack", "list"]).expect("list"))).collect();
        for d in dumps {
            assert_eq!(d.join().expect("dump").lines().count(), 3000);
        }
    });
    // A worker whose loop hangs: the fake's lock stands for whatever holds it up.
    let held = lab.fake.seen[1].lock();
    lab.write(CHANGED);
    let error = lab.ctl(&["reload"]).expect_err("worker 1 hangs").to_string();
    assert_eq!(error, "policy generation 2 was sent, but worker 1 did not answer within 5 s");
    drop(held);
    eventually("the worker takes it in the end", || {
        lab.fake.seen[1].lock().policy.as_ref().is_some_and(|(p, _, _)| p.spec().generation == 2)
    });
    lab.ctl(&["reload"]).expect("all is well again");
    lab.stop();
}

#[test]
fn metrics_are_served_without_any_translation_too() {
    let lab = Lab::start(1, RULES);
    let text = std::fs::read_to_string(lab.file()).expect("the file");
    let without: String = text.lines().filter(|l| !l.contains("nat:") && !l.contains("masquerade")).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    );
    assert_ne!(text, without);
    std::fs::write(lab.file(), without).expect("written");
    lab.ctl(&["reload"]).expect("reload");
    let scrape = lab.scrape();
    assert!(scrape.contains("sluice_packets_total{") && !scrape.contains("sluice_nat_ports"), "{scrape}");
    lab.stop();
}
