//! What the gateway says in its log of what workers report. One test: the log is the process's.

mod common;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use common::{Fake, Lab, eventually, tcp_conn};
use control::ledger::Ledger;
use control::sweep::{self, Gone, Vanished};
use control::workers::Workers;
use dataplane::api::DropReason;
use dataplane::api::command::Event;
use dataplane::api::stats::CtEvent;
use parking_lot::Mutex;
use tokio::sync::mpsc;

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

    lab.fake.report(0, Event::NatFailed { generation: 1, rule: 0, reason: DropReason::NatNoPort, interface: 0, tuple });
    lab.fake
        .report(1, Event::NatFailed { generation: 1, rule: 9, reason: DropReason::NatNoAddress, interface: 7, tuple });
    eventually("the failures are reported", || log.lines("sluice::nat").len() == 2);
    let mut lines = log.lines("sluice::nat");
    lines.sort();
    let expect = [
        " WARN sluice::nat: tcp src=192.0.2.10 dst=203.0.113.5 sport=1000 dport=443 \
         rule=\"?\" reason=\"nat_no_address\" interface=\"?\" worker=1",
        " WARN sluice::nat: tcp src=192.0.2.10 dst=203.0.113.5 sport=1000 dport=443 \
         rule=\"out\" reason=\"nat_no_port\" interface=\"lan\" worker=0",
    ];
    assert_eq!(lines, expect);

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
    log.0.lock().clear();
    gone_addresses_and_long_looks(&log);
}

fn gone_addresses_and_long_looks(log: &Log) {
    let (attachment, fake) = Fake::start(2, 2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (workers, _) = Workers::attach(attachment, vec!["lan".into(), "wan".into()], ledger).expect("thread");
        fake.seen[0].lock().conns = (0..9).map(tcp_conn).collect();
        fake.seen[1].lock().conns = (100..5000).map(tcp_conn).collect();
        let ends = |sport| (tcp_conn(sport).original, CtEvent::AddressGone);
        fake.seen[0].lock().doomed = vec![ends(3)];
        fake.seen[1].lock().doomed = vec![ends(100), ends(4999)];

        let (gone, vanished) = mpsc::unbounded_channel();
        let task = tokio::spawn(sweep::end_with_addresses(Arc::clone(&workers), vanished));
        let of_wan = |address: &str| Gone { interface: "wan".into(), address: address.parse().expect("address") };
        let went = |addresses| Vanished { addresses, before: sweep::ended_with_addresses(&workers) };
        gone.send(went(vec![of_wan("198.51.100.2")])).expect("it listens");
        gone.send(went(vec![of_wan("2001:db8::2")])).expect("it listens");
        gone.send(went(vec![])).expect("it listens");
        drop(gone);
        task.await.expect("it ends with the channel");
        let expect =
            " WARN sluice::nat: addresses 198.51.100.2 of wan, 2001:db8::2 of wan are gone: 3 connections ended";
        assert_eq!(log.lines("sluice::nat"), [expect]);

        let (gone, vanished) = mpsc::unbounded_channel();
        let task = tokio::spawn(sweep::end_with_addresses(Arc::clone(&workers), vanished));
        gone.send(went(vec![of_wan("198.51.100.3")])).expect("it listens");
        drop(gone);
        task.await.expect("it ends with the channel");
        let expect = " INFO sluice::nat: address 198.51.100.3 of wan is gone: 0 connections ended";
        assert_eq!(log.lines("198.51.100.3"), [expect]);

        // Nobody waits, and it goes on all the same.
        fake.seen[0].lock().doomed = vec![(tcp_conn(5).original, CtEvent::Retranslated)];
        let (hold, held) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = Arc::clone(&fake.seen[1]);
        let worker = std::thread::spawn(move || {
            let _hangs = busy.lock();
            hold.send(()).expect("it waits");
            let _ = released.recv();
        });
        held.recv().expect("the worker hangs");
        let swept = sweep::begin(&workers).run(Duration::from_millis(1)).await;
        assert!(!swept.finished, "{swept:?}");
        assert!(log.lines("under the new policy").is_empty());
        drop(release);
        worker.join().expect("it hangs no longer");
        let done = async {
            while log.lines("under the new policy").is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), done).await.expect("it ends within 5 s");
        let line = log.lines("under the new policy").concat();
        assert!(line.ends_with("4905 connections kept, 1 ended (1 translated otherwise)"), "{line}");
    });
    fake.stop();
}
