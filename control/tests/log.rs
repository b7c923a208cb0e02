//! What the gateway says in its log of what workers report. One test: the log is the process's.

mod common;

use std::io::Write;
use std::sync::Arc;

use common::{Lab, eventually, tcp_conn};
use dataplane::api::DropReason;
use dataplane::api::command::Event;
use parking_lot::Mutex;

/// A log that a test can read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines that contain `what`.
    fn lines(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).expect("text");
        text.lines().filter(|l| l.contains(what)).map(str::to_owned).collect()
    }
}

#[test]
fn reports_name_rules_interfaces_reasons_and_levels() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).init();
    let lab =
        Lab::start(2, "    - {name: ssh, from: lan, to: local, proto: tcp, dport: 22, action: accept, log: true}");
    let tuple = tcp_conn(1000).original;

    lab.fake.report(1, Event::InvalidLog { reason: DropReason::InvalidChecksum, interface: 1, tuple });
    eventually("the packet is reported", || !log.lines("sluice::invalid").is_empty());
    let expect = " INFO sluice::invalid: tcp src=192.0.2.10 dst=203.0.113.5 sport=1000 dport=443 \
                  reason=\"invalid_checksum\" interface=\"wan\" worker=1";
    assert_eq!(log.lines("sluice::invalid"), [expect]);

    lab.fake.report(0, Event::RuleLog { generation: 1, rule: 0, accepted: true, interface: 0, tuple });
    eventually("the rule is reported", || !log.lines("sluice::rule").is_empty());
    let expect = " INFO sluice::rule: tcp src=192.0.2.10 dst=203.0.113.5 sport=1000 dport=443 \
                  rule=\"ssh\" action=\"accept\" interface=\"lan\" worker=0";
    assert_eq!(log.lines("sluice::rule"), [expect]);

    // The worse of two workers; the table is looked at once a second.
    let table = || log.lines("sluice::conntrack");
    lab.stats[1].conntrack_entries.set(760);
    eventually("75 % is reported", || !table().is_empty());
    let expect =
        " WARN sluice::conntrack: the connection table is 75 % full (conntrack.max) worker=1 entries=760 limit=1000";
    assert_eq!(table(), [expect]);
    lab.stats[1].conntrack_entries.set(995);
    eventually("90 % and full are reported", || table().len() == 3);
    assert!(table()[1].contains("the connection table is 90 % full (conntrack.max) worker=1 entries=995 limit=1000"));
    assert!(table()[2].contains("the connection table is full (conntrack.max)"), "{:?}", table());
    assert!(table()[2].ends_with(" worker=1 entries=995 limit=1000 reserve=10 refused=0"), "{:?}", table());
    lab.stats[1].conntrack_entries.set(0);
    eventually("all are left", || table().len() == 6);
    assert!(
        table()[3].ends_with("the connection table is below 75 % again worker=0 entries=0 limit=1000")
            || table()[3].ends_with("the connection table is below 75 % again worker=1 entries=0 limit=1000")
    );
    assert!(table()[5].contains(" INFO sluice::conntrack: the connection table is no longer full "));
    lab.stop();
}
