//! Translation as the operator sees it: `show nat`, and what the metrics say of rules and ports.

mod common;

use std::net::IpAddr;

use common::{Lab, eventually, tcp_conn};
use dataplane::api::stats::CtEvent;
use serde_json::Value;

const RULES: &str = "    - {name: out, from: lan, to: wan, action: accept}";

const NAT: &str = r#"  - {name: tunnel, type: none, from: lan, to: wan, destination: 10.99.0.0/16}
  - {name: customers, type: snat, from: lan, to: wan, source: 192.0.2.0/25, to_address: 203.0.113.8/31, source_ports: 4000-4015}
  - {name: many, type: snat, from: lan, to: wan, source: 192.0.2.128/25, to_address: 198.18.0.0/16}
  - {name: out, type: masquerade, from: lan, to: wan, on_reload: end}
  - {name: web, type: dnat, from: wan, proto: tcp, dport: 8000-8009, to_address: 192.0.2.10, to_port: 9000-9009}
"#;

/// Starts a gateway with the translations `nat`, which are its second policy.
fn lab(workers: usize, nat: &str) -> Lab {
    let lab = Lab::start(workers, RULES);
    translate(&lab, nat);
    lab
}

/// Reloads with the translations `nat` instead; what it answers.
fn translate(lab: &Lab, nat: &str) -> String {
    let yaml = lab.yaml(RULES);
    let (head, rest) = yaml.split_once("\nnat:\n").expect("there are rules");
    let (_, tail) = rest.split_once("\npolicy:\n").expect("and an end of them");
    std::fs::write(lab.file(), format!("{head}\nnat:\n{nat}policy:\n{tail}")).expect("write");
    lab.ctl(&["reload"]).expect("reload")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Counts connections and failures of translation rule `rule` as worker `worker` would.
fn count(lab: &Lab, worker: usize, rule: usize, connections: u64, failures: u64) {
    let seen = lab.fake.seen[worker].lock();
    let (_, counters, _) = seen.policy.as_ref().expect("a policy is in force");
    let counters = counters.nat(rule).expect("there is such a rule");
    counters.connections.add(connections);
    counters.failures.add(failures);
}

#[test]
fn show_nat_has_every_rule_with_what_it_did() {
    let lab = lab(2, NAT);
    count(&lab, 0, 1, 5, 0);
    count(&lab, 1, 1, 2, 3);
    count(&lab, 1, 4, 9, 0);
    let expect = "\
#  NAME       TYPE        CONNECTIONS  FAILURES  MATCH                                    TO
1  tunnel     none                  0         0  from lan to wan destination 10.99.0.0/16  untranslated
2  customers  snat                  7         3  from lan to wan source 192.0.2.0/25 destination 0.0.0.0/0  203.0.113.8/31, source ports 4000-4015
";
    let text = lab.ctl(&["show", "nat"]).expect("show");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    for (line, expect) in text.lines().zip(expect.lines()) {
        assert_eq!(words(line), words(expect));
    }
    let all = json(&lab.ctl(&["--json", "show", "nat"]).expect("show"));
    let of = |i: usize, key: &str| all[i][key].clone();
    assert_eq!((of(1, "connections"), of(1, "failures")), (7.into(), 3.into()));
    assert_eq!(
        (of(3, "kind"), of(3, "to")),
        ("masquerade".into(), "the egress interface's address, ended by a reload".into())
    );
    assert_eq!((of(4, "to"), of(4, "connections")), ("192.0.2.10 ports 9000-9009 one to one".into(), 9.into()));
    lab.stop();
}

#[test]
fn connections_and_failures_stay_with_the_rule_that_had_them() {
    let lab = lab(2, NAT);
    count(&lab, 0, 1, 5, 1);
    count(&lab, 1, 3, 4, 2);
    // The workers count each failure for itself too, and those that no rule had.
    lab.stats[0].nat_failures.add(3);
    lab.stats[1].nat_failures.add(2);
    let metric = |name: &str, rule: &str| lab.metric(&format!("sluice_nat_{name}{{rule=\"{rule}\"}}"));
    assert_eq!(metric("rule_connections_total", "customers"), Some(5.0));
    assert_eq!(metric("rule_connections_total", "web"), Some(0.0));
    assert_eq!(metric("failures_total", "customers"), Some(1.0));
    assert_eq!(metric("failures_total", "out"), Some(2.0));
    assert_eq!(metric("failures_total", ""), Some(2.0), "those of no rule");

    translate(&lab, "  - {name: out, type: masquerade, from: lan, to: wan}\n");
    count(&lab, 0, 0, 1, 0);
    eventually("the workers have handed the old counters back", || {
        metric("rule_connections_total", "out") == Some(5.0)
    });
    assert_eq!(metric("failures_total", "out"), Some(2.0));
    assert_eq!(metric("rule_connections_total", "customers"), None);
    assert_eq!(metric("failures_total", ""), Some(3.0), "and of a rule that is gone");
    lab.stop();
}

#[test]
fn ports_are_used_free_and_last_some_seconds() {
    let lab = lab(2, NAT);
    let ip = |text: &str| text.parse::<IpAddr>().expect("address");
    let (customer, large) = (ip("203.0.113.9"), ip("198.18.7.7"));
    for worker in [0, 1] {
        for _ in 0..3 {
            lab.stats[worker].lease(customer, 0, 1);
        }
        lab.stats[worker].lease(large, 1, 1);
    }
    lab.stats[1].lease(customer, 0, -1);
    let metric = |name: &str, address: &str, proto: &str| {
        lab.metric(&format!("sluice_nat_{name}{{address=\"{address}\",proto=\"{proto}\"}}"))
    };
    assert_eq!(metric("ports_used", "203.0.113.9", "tcp"), Some(5.0));
    assert_eq!(metric("ports_free", "203.0.113.9", "tcp"), Some(11.0), "of the rule's sixteen");
    assert_eq!(metric("ports_free", "203.0.113.8", "udp"), Some(16.0), "an address of a small pool that nobody uses");
    assert_eq!(metric("ports_used", "198.18.7.7", "udp"), Some(2.0), "an address of a large pool that is in use");
    assert_eq!(metric("ports_free", "198.18.7.7", "udp"), Some(64_510.0));
    assert_eq!(metric("ports_free", "198.18.7.7", "icmp"), Some(65_536.0));
    assert_eq!(metric("ports_used", "198.18.0.0", "udp"), None, "another that is not");
    assert_eq!(metric("ports_free", "198.51.100.2", "tcp"), Some(64_512.0), "masquerade's");
    assert_eq!(metric("ports_free", "203.0.113.9", "other"), None);
    assert_eq!(metric("exhaustion_seconds", "203.0.113.8", "tcp"), Some(f64::INFINITY));
    assert!(lab.scrape().contains("sluice_nat_exhaustion_seconds{address=\"203.0.113.8\",proto=\"tcp\"} +Inf\n"));
    for _ in 0..11 {
        lab.stats[0].lease(customer, 0, 1);
    }
    assert_eq!(metric("ports_free", "203.0.113.9", "tcp"), Some(0.0));
    assert_eq!(metric("exhaustion_seconds", "203.0.113.9", "tcp"), Some(0.0), "there is none left");
    lab.stop();
}

#[test]
fn a_reload_says_what_became_of_the_connections() {
    let lab = lab(2, NAT);
    lab.fake.seen[0].lock().conns = (0..5000).map(tcp_conn).collect();
    lab.fake.seen[1].lock().conns = (5000..5010).map(tcp_conn).collect();
    let original = |sport| tcp_conn(sport).original;
    // The last of the first worker's is beyond the first step.
    lab.fake.seen[0].lock().doomed = vec![(original(7), CtEvent::Denied), (original(4999), CtEvent::Denied)];
    lab.fake.seen[1].lock().doomed = vec![(original(5005), CtEvent::Retranslated)];
    let answer = translate(&lab, "  - {name: out, type: masquerade, from: lan, to: wan}\n");
    let (head, connections) = answer.split_once("; ").expect("two parts");
    assert!(head.starts_with("policy generation 3 is in force after ") && head.ends_with(" ms"), "{answer}");
    assert_eq!(connections, "5007 connections kept, 3 ended (2 denied, 1 translated otherwise)\n");
    assert_eq!(lab.fake.seen[0].lock().sweeps, 1 + 2, "one of the reload before, and two for as many chunks");

    let again = json(&lab.ctl(&["--json", "reload"]).expect("reload"));
    let expect = serde_json::json!({
        "kept": 5007, "denied": 0, "retranslated": 0, "address_gone": 0, "finished": true
    });
    assert_eq!((&again["connections"], &again["generation"]), (&expect, &4.into()));
    lab.stop();
}
