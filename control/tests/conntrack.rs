//! `sluicectl conntrack` against a gateway without packets: what is asked of the workers, and what is shown.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use common::{Lab, eventually, tcp_conn};
use control::changes::QUEUE;
use dataplane::api::command::{CREATE_PER_COMMAND, ConnEvent, ConnEventKind, ConnView, Event, ExpectView, home_of};
use dataplane::api::policy::HelperKind;
use dataplane::api::stats::CtEvent;
use dataplane::api::{Edit, SavedSide, StreamParts, Tuple};
use serde_json::Value;

const RULES: &str = "    - {name: established, state: [established, related], action: accept}
    - {name: lan-out, from: lan, to: wan, state: new, action: accept}";

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// A sluicectl of its own.
fn spawn(lab: &Lab, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sluicectl"))
        .args(["--socket", lab.socket().to_str().expect("path")])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sluicectl")
}

fn udp_conn(sport: u16) -> ConnView {
    let base = tcp_conn(sport);
    let original = Tuple { proto: 17, dport: 53, ..base.original };
    ConnView { original, reply: original.inverse(), state: None, timeout_s: 30, assured: false, ..base }
}

#[test]
fn a_long_table_is_listed_in_full() {
    let lab = Lab::start(2, RULES);
    for (w, seen) in lab.fake.seen.iter().enumerate() {
        let base = u16::try_from(20_000 * w).expect("port");
        seen.lock().conns = (0..10_000).map(|i| tcp_conn(base + i)).collect();
    }
    let text = lab.ctl(&["conntrack", "list", "-o", "nf_conntrack"]).expect("list");
    assert_eq!(text.lines().count(), 20_000);
    let first = "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=0 dport=443 \
                 src=203.0.113.5 dst=198.51.100.2 sport=443 dport=0 [ASSURED] mark=0 zone=0 use=2";
    assert_eq!(text.lines().next(), Some(first));
    let ports: std::collections::HashSet<_> = text.lines().collect();
    assert_eq!(ports.len(), 20_000, "each once");
    let one = lab.ctl(&["--json", "conntrack", "list", "--sport", "20007"]).expect("list");
    let one = json(&one);
    assert_eq!((&one["worker"], &one["original"]["egress"]), (&1.into(), &"wan".into()));
    assert_eq!(lab.ctl(&["conntrack", "list", "-p", "udp"]).expect("list"), "");
    lab.stop();
}

#[test]
fn connections_are_counted_and_flushed_by_filter() {
    let lab = Lab::start(2, RULES);
    let ping = ConnView {
        original: Tuple {
            src: "192.0.2.11".parse().expect("address"),
            dst: "203.0.113.5".parse().expect("address"),
            proto: 1,
            sport: 9,
            dport: 8 << 8,
            ct_zone: 0,
        },
        reply: Tuple {
            src: "203.0.113.5".parse().expect("address"),
            dst: "192.0.2.11".parse().expect("address"),
            proto: 1,
            sport: 9,
            dport: 0,
            ct_zone: 0,
        },
        state: None,
        replied: false,
        assured: false,
        ..tcp_conn(1)
    };
    lab.fake.seen[0].lock().conns = (0..1500).map(tcp_conn).collect();
    lab.fake.seen[1].lock().conns = vec![ping, tcp_conn(9000)];
    let count = |filter: &[&str]| {
        let all: Vec<&str> = ["conntrack", "count"].iter().chain(filter).copied().collect();
        lab.ctl(&all).expect("count").trim().parse::<u64>().expect("number")
    };
    assert_eq!(count(&["-p", "tcp"]), 1501);
    assert_eq!(count(&["-n"]), 1501);
    assert_eq!(count(&["-u", "UNREPLIED"]), 1);
    let line = lab.ctl(&["conntrack", "list", "-p", "icmp"]).expect("list");
    assert!(line.contains("type=8 code=0 id=9 packets=10 bytes=1000 [UNREPLIED] src=203.0.113.5"), "{line}");
    assert_eq!(lab.ctl(&["conntrack", "flush", "--sport", "9000"]).expect("flush"), "1 connection ended\n");
    assert_eq!(lab.ctl(&["conntrack", "flush"]).expect("flush"), "1501 connections ended\n");
    assert_eq!(count(&[]), 0);
    lab.stop();
}

#[test]
fn a_client_that_leaves_in_the_middle_does_no_harm() {
    let lab = Lab::start(1, RULES);
    lab.fake.seen[0].lock().conns = (0..60_000).map(tcp_conn).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluicectl"))
        .args(["--socket", lab.socket().to_str().expect("path"), "conntrack", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sluicectl");
    let mut first = [0u8; 100];
    std::io::Read::read_exact(child.stdout.as_mut().expect("pipe"), &mut first).expect("a line");
    drop(child.stdout.take()); // as `| head -1`
    let out = child.wait_with_output().expect("sluicectl ends");
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
    assert_eq!(lab.ctl(&["conntrack", "list", "--sport", "59999"]).expect("list").lines().count(), 1);
    lab.stop();
}

#[test]
fn filters_by_mark_and_zone_reach_the_workers() {
    let lab = Lab::start(1, RULES);
    let zoned = |sport, ct_zone| {
        let base = tcp_conn(sport);
        ConnView { original: Tuple { ct_zone, ..base.original }, ..base }
    };
    lab.fake.seen[0].lock().conns =
        vec![ConnView { mark: 0x15, ..tcp_conn(1) }, ConnView { mark: 0x25, ..tcp_conn(2) }, zoned(3, 7), tcp_conn(4)];
    let count = |filter: &[&str]| {
        let all: Vec<&str> = ["conntrack", "count"].iter().chain(filter).copied().collect();
        lab.ctl(&all).expect("count").trim().parse::<u64>().expect("number")
    };
    assert_eq!((count(&["-m", "0x15"]), count(&["-m", "5/0xf"]), count(&["-m", "0"])), (1, 2, 2));
    assert_eq!((count(&["-w", "7"]), count(&["-w", "0"]), count(&["-w", "7", "-m", "1"])), (1, 3, 0));
    let line = lab.ctl(&["conntrack", "list", "-w", "7"]).expect("list");
    assert!(line.contains(" dport=443 zone-orig=7 packets=10 "), "{line}");
    let line = lab.ctl(&["conntrack", "list", "-m", "0x25", "-o", "id,extended"]).expect("list");
    assert!(line.starts_with("ipv4     2 tcp ") && line.contains(" mark=37 use=1 id="), "{line}");
    lab.stop();
}

#[test]
fn filters_by_keys_ports_and_translation_reach_the_workers() {
    let lab = Lab::start(1, RULES);
    let gre = Tuple { proto: 47, sport: 0x1234, dport: 0x5678, ..tcp_conn(1).original };
    let plain = udp_conn(5000);
    lab.fake.seen[0].lock().conns = vec![
        ConnView { original: gre, reply: gre.inverse(), state: None, ..tcp_conn(1) },
        ConnView { expected: true, ..plain },
        tcp_conn(5000),
    ];
    for (filter, found) in [
        ("--srckey 0x1234", "gre"),
        ("--dstkey 0x5678", "gre"),
        ("--reply-key-src 0x5678 --reply-key-dst 0x1234", "gre"),
        ("--srckey 5000", ""),
        ("--reply-port-src 53", "udp"),
        ("--reply-port-dst 5000", "udp tcp"),
        ("--any-nat", "tcp"),
        ("-j 198.51.100.0/24", "tcp"),
        ("-j 192.0.2.10", ""),
        ("-u EXPECTED", "udp"),
        ("--icmp-type 8", ""),
    ] {
        let all: Vec<&str> = ["conntrack", "list"].into_iter().chain(filter.split(' ')).collect();
        let text = lab.ctl(&all).expect("list");
        let names: Vec<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(names.join(" "), found, "{filter}");
    }
    lab.stop();
}

#[test]
fn what_is_deleted_is_shown_and_counted() {
    let lab = Lab::start(2, RULES);
    lab.fake.seen[0].lock().conns = (0..1500).flat_map(|i| [tcp_conn(i), udp_conn(i)]).collect();
    lab.fake.seen[1].lock().conns = vec![udp_conn(7)];
    let (out, notes) = lab.ctl_with_notes(&["conntrack", "delete", "-p", "udp"]).expect("delete");
    assert_eq!((out.lines().count(), out.lines().filter(|l| l.starts_with("udp      17 30 ")).count()), (1501, 1501));
    assert!(notes.ends_with(": 1501 flow entries have been deleted.\n"), "{notes}");
    assert_eq!(lab.ctl(&["conntrack", "count"]).expect("count"), "1500\n");
    let none = lab.ctl(&["conntrack", "delete", "-p", "udp"]).expect_err("there are none left");
    assert_eq!((none.exit_status(), none.to_string().as_str()), (1, "0 flow entries have been deleted."));
    let all = lab.ctl(&["conntrack", "delete"]).expect_err("without a filter it would be a flush");
    assert_eq!(all.exit_status(), 2);
    assert_eq!(lab.ctl(&["conntrack", "count"]).expect("count"), "1500\n");
    lab.stop();
}

#[test]
fn a_delete_whose_reader_leaves_goes_on_to_the_end() {
    let lab = Lab::start(1, RULES);
    lab.fake.seen[0].lock().conns = (0..60_000).map(tcp_conn).collect();
    let mut child = spawn(&lab, &["conntrack", "delete", "-p", "tcp"]);
    let mut first = [0u8; 100];
    child.stdout.as_mut().expect("pipe").read_exact(&mut first).expect("a line");
    drop(child.stdout.take());
    let _ = child.wait();
    eventually("the last is gone", || lab.fake.seen[0].lock().conns.is_empty());
    lab.stop();
}

#[test]
fn one_connection_is_found_on_whichever_worker_by_either_tuple() {
    let lab = Lab::start(3, RULES);
    lab.fake.seen[2].lock().conns = vec![tcp_conn(1000)];
    let original = "-p tcp -s 192.0.2.10 -d 203.0.113.5 --sport 1000 --dport 443";
    let reply = "-p tcp -r 203.0.113.5 -q 198.51.100.2 --reply-port-src 443 --reply-port-dst 1000";
    let get = |tuple: &str| {
        let all: Vec<&str> = ["conntrack", "get"].into_iter().chain(tuple.split(' ')).collect();
        lab.ctl_with_notes(&all)
    };
    let (line, notes) = get(original).expect("found");
    assert!(line.starts_with("tcp      6 431999 ESTABLISHED src=192.0.2.10 "), "{line}");
    assert!(notes.ends_with(": 1 flow entries have been shown.\n"), "{notes}");
    assert_eq!(get(reply).expect("found").0, line);
    let found = lab.ctl(&[&["--json", "conntrack", "get"], &original.split(' ').collect::<Vec<_>>()[..]].concat());
    assert_eq!(json(&found.expect("found"))["worker"], 2);
    let none = get(&original.replace("1000", "1001")).expect_err("there is no such connection");
    assert_eq!((none.exit_status(), none.to_string().as_str()), (1, "there is no such connection"));
    assert_eq!(get("-p tcp -s 192.0.2.10 -d 203.0.113.5").expect_err("no ports").exit_status(), 2);
    lab.stop();
}

#[test]
fn a_connection_is_made_on_the_worker_where_it_belongs() {
    let lab = Lab::start(2, RULES);
    let create = |sport: &str| {
        let text = format!(
            "conntrack create -p tcp -s 192.0.2.10 -d 203.0.113.5 --sport {sport} --dport 443 --state ESTABLISHED \
             -t 600 -m 5 -u ASSURED,SEEN_REPLY -q 198.51.100.2"
        );
        lab.ctl_with_notes(&text.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>())
    };
    for sport in 1000..1020_u16 {
        let (out, notes) = create(&sport.to_string()).expect("it is made");
        assert!(out.is_empty() && notes.ends_with(": 1 flow entries have been created.\n"), "{notes}");
    }
    let mut made = 0;
    for (worker, seen) in lab.fake.seen.iter().enumerate() {
        for spec in &seen.lock().created {
            made += 1;
            assert_eq!(home_of(&spec.original, 2), worker);
            assert_eq!(spec.reply.dst.to_string(), "198.51.100.2");
            assert_eq!((spec.state, spec.timeout_s, spec.mark), (Some("ESTABLISHED"), 600, 5));
            assert!(spec.assured && spec.replied && spec.age_ms <= 60_000);
            assert!(!spec.judge, "the operator's word stands");
        }
    }
    assert_eq!(made, 20);
    assert!(lab.fake.seen.iter().all(|s| !s.lock().created.is_empty()), "both workers have got some");
    let again = create("1000").expect_err("it is there");
    assert_eq!((again.exit_status(), again.to_string().as_str()), (1, "such a connection exists already"));
    lab.stop();
}

#[test]
fn an_update_changes_what_matches_and_shows_it_as_it_is_then() {
    let lab = Lab::start(2, RULES);
    lab.fake.seen[0].lock().conns = (0..600).map(tcp_conn).collect();
    lab.fake.seen[1].lock().conns = vec![udp_conn(1)];
    let text = "conntrack update -p tcp -m 0x1/0xf -t 99";
    let (out, notes) = lab.ctl_with_notes(&text.split(' ').collect::<Vec<_>>()).expect("update");
    assert_eq!(out.lines().filter(|l| l.starts_with("tcp      6 99 ") && l.contains(" mark=1 ")).count(), 600);
    assert!(notes.ends_with(": 600 flow entries have been updated.\n"), "{notes}");
    assert!(lab.fake.seen[0].lock().conns.iter().all(|c| (c.mark, c.timeout_s) == (1, 99)));
    assert_eq!(lab.fake.seen[1].lock().conns[0].mark, 0);
    lab.ctl(&["conntrack", "update", "-p", "udp", "-u", "ASSURED"]).expect("update");
    assert!(lab.fake.seen[1].lock().conns[0].assured);
    let none = lab.ctl(&["conntrack", "update", "-p", "50", "-t", "1"]).expect_err("none");
    assert_eq!(none.to_string(), "0 flow entries have been updated.");
    assert_eq!(lab.ctl(&["conntrack", "update", "-p", "tcp"]).expect_err("nothing new").exit_status(), 2);
    lab.stop();
}

#[test]
fn expectations_of_all_workers_are_listed() {
    let lab = Lab::start(2, RULES);
    let master = tcp_conn(1000).original;
    let expected = |dport| ExpectView {
        timeout_s: 297,
        tuple: Tuple { src: master.dst, dst: master.src, sport: 0, dport, ..master },
        helper: HelperKind::Ftp,
        master: Tuple { dport: 21, ..master },
        permanent: false,
    };
    lab.fake.seen[0].lock().expectations = vec![expected(5000)];
    lab.fake.seen[1].lock().expectations = vec![expected(5001)];
    let text = lab.ctl(&["conntrack", "expect", "list"]).expect("list");
    let expect = "297 proto=6 src=203.0.113.5 dst=192.0.2.10 sport=0 dport=5000 mask-src=255.255.255.255 \
                  mask-dst=255.255.255.255 sport=0 dport=65535 master-src=192.0.2.10 master-dst=203.0.113.5 sport=1000 \
                  dport=21 class=0 helper=ftp";
    assert_eq!((text.lines().count(), text.lines().next()), (2, Some(expect)));
    let all = json(&lab.ctl(&["--json", "conntrack", "expect", "list"]).expect("list"));
    assert_eq!((&all[1]["worker"], &all[1]["tuple"]["dport"]), (&1.into(), &5001.into()));
    lab.stats[1].expectations.set(1);
    assert_eq!(lab.metric(r#"sluice_conntrack_expectations{worker="1"}"#), Some(1.0));
    lab.stop();
}

/// A stream of events, line by line.
struct Events {
    child: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Starts `sluicectl conntrack events` and waits until it is heard and the workers were told to report.
    fn follow(lab: &Lab, arguments: &[&str]) -> Self {
        let listeners = || lab.metric("sluice_conntrack_listeners").expect("a metric");
        let before = listeners();
        let told = || lab.fake.seen.iter().all(|s| s.lock().subscribed.last() == Some(&true));
        let mut child = spawn(lab, &[&["conntrack", "events"], arguments].concat());
        let (line, lines) = sync_channel(0);
        let out = BufReader::new(child.stdout.take().expect("pipe"));
        // It ends with the stream, or with the test that no longer listens.
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|text| line.send(text)));
        eventually("it is heard", || listeners() > before);
        eventually("the workers report", told);
        Self { child, lines }
    }

    /// The next line; `None` where the stream has ended.
    fn next(&self) -> Option<String> {
        match self.lines.recv_timeout(Duration::from_secs(10)) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no event within 10 s"),
        }
    }

    /// The next line, which must come.
    #[track_caller]
    fn line(&self) -> String {
        self.next().expect("the stream goes on")
    }

    /// Ends it as Ctrl-C would.
    fn stop(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

fn change(lab: &Lab, worker: usize, kind: ConnEventKind, conn: ConnView) {
    lab.fake.report(worker, Event::Conn(ConnEvent { kind, conn }));
}

#[test]
fn events_come_as_they_happen_by_kind_and_filter() {
    let lab = Lab::start(2, RULES);
    let all = Events::follow(&lab, &[]);
    let ends = Events::follow(&lab, &["-e", "DESTROY", "-p", "tcp", "-o", "timestamp,extended"]);
    let fresh = ConnView { state: Some("SYN_SENT"), timeout_s: 120, replied: false, assured: false, ..tcp_conn(1) };
    change(&lab, 0, ConnEventKind::New, fresh.clone());
    assert!(all.line().starts_with("    [NEW] tcp      6 120 SYN_SENT src=192.0.2.10 "));
    change(&lab, 1, ConnEventKind::Update, tcp_conn(1));
    assert!(all.line().starts_with(" [UPDATE] tcp      6 431999 ESTABLISHED src=192.0.2.10 "));
    let gone = || change(&lab, 0, ConnEventKind::Destroy(CtEvent::Expired), ConnView { timeout_s: 0, ..udp_conn(1) });
    gone();
    let line = all.line();
    assert!(line.starts_with("[DESTROY] udp      17 src=192.0.2.10 ") && line.contains(" packets=10 bytes=1000 "));
    assert!(line.contains(" delta-time=1 [start=") && line.ends_with("] reason=expired"), "{line}");
    change(&lab, 0, ConnEventKind::Destroy(CtEvent::Closed), tcp_conn(2));
    assert!(all.line().ends_with(" reason=closed"));
    let line = ends.line();
    assert!(line.starts_with('[') && line.contains("]\t[DESTROY] ipv4     2 tcp "), "{line}");
    assert!(line.contains(" sport=2 ") && line.ends_with(" reason=closed"), "{line}");
    ends.stop();
    all.stop();
    lab.stop();
}

#[test]
fn workers_report_while_anybody_listens() {
    let lab = Lab::start(2, RULES);
    let told = || lab.fake.seen.iter().map(|s| s.lock().subscribed.clone()).collect::<Vec<_>>();
    assert_eq!(told(), vec![Vec::<bool>::new(); 2]);
    let first = Events::follow(&lab, &[]);
    let mut second = Events::follow(&lab, &["-c", "1", "-e", "NEW"]);
    first.stop();
    eventually("it has gone", || lab.metric("sluice_conntrack_listeners") == Some(1.0));
    change(&lab, 0, ConnEventKind::New, tcp_conn(1));
    assert!(second.line().starts_with("    [NEW] "));
    let ended = second.child.wait().expect("it ends by itself after one");
    assert!(ended.success());
    eventually("the last has gone", || told() == vec![vec![true, false]; 2]);
    let third = Events::follow(&lab, &[]);
    third.stop();
    eventually("and again", || told() == vec![vec![true, false, true, false]; 2]);
    lab.stop();
}

#[test]
fn events_are_json_where_asked_and_end_with_the_gateway() {
    let lab = Lab::start(1, RULES);
    let mut events = Events::follow(&lab, &["--json"]);
    change(&lab, 0, ConnEventKind::Destroy(CtEvent::Flushed), ConnView { mark: 9, ..tcp_conn(7) });
    let line = json(&events.line());
    assert_eq!((&line["event"], &line["reason"]), (&"destroy".into(), &"flushed".into()));
    assert_eq!((&line["conn"]["original"]["sport"], &line["conn"]["mark"]), (&7.into(), &9.into()));
    let (start, stop) = (line["conn"]["start"].as_u64().expect("start"), line["stop"].as_u64().expect("stop"));
    assert_eq!(stop - start, 1, "it was a second old");
    assert!((line["time"].as_f64().expect("time") - stop as f64).abs() < 1.0);
    lab.stop();
    assert_eq!(events.next(), None);
    assert!(events.child.wait().expect("it ends").success());
}

#[test]
fn what_a_listener_cannot_take_is_counted_and_told() {
    let lab = Lab::start(1, RULES);
    let events = Events::follow(&lab, &["-e", "NEW"]);
    lab.stats[0].events_lost.add(5);
    assert_eq!(events.line(), "# lost 5", "what the worker lost is told though nothing else happens");
    assert_eq!(lab.metric("sluice_conntrack_events_lost_total"), Some(5.0));
    // Nobody reads until far more has come than pipes, sockets and the queue hold.
    let many = 20 * u32::try_from(QUEUE).expect("small");
    for _ in 0..many {
        change(&lab, 0, ConnEventKind::New, tcp_conn(1));
    }
    eventually("some are lost", || lab.metric("sluice_conntrack_events_lost_total").is_some_and(|n| n > 5.0));
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < many {
        match events.line().strip_prefix("# lost ") {
            Some(n) => lost += n.parse::<u32>().expect("number"),
            None => seen += 1,
        }
    }
    assert_eq!(seen + lost, many, "each is either shown or told of");
    assert_eq!(lab.metric("sluice_conntrack_events_lost_total"), Some(f64::from(lost + 5)));
    events.stop();
    lab.stop();
}

#[test]
fn a_saved_table_comes_back_with_names_on_another_number_of_workers() {
    let lab = Lab::start(1, RULES);
    let policies = "conntrack: {timeout_policies: {slow: {udp: 5m}, voice: {udp: 1m}}, max: 2000, reserve: 20}";
    let with_policies = |lab: &Lab| {
        std::fs::write(lab.file(), lab.yaml(RULES).replace("conntrack: {max: 2000, reserve: 20}", policies))
            .expect("written");
        lab.ctl(&["reload"]).expect("reload");
    };
    with_policies(&lab);
    let ftp = ConnView { helper: Some(HelperKind::Ftp), timeout_policy: 2, mark: 7, ..tcp_conn(1) };
    let zoned = ConnView {
        original: Tuple { ct_zone: 7, ..tcp_conn(2).original },
        age_ms: 1_000_000,
        expected: true,
        interface: 1,
        local: true,
        ..tcp_conn(2)
    };
    let conns: Vec<_> = (1000..3000).map(udp_conn).chain([ftp.clone(), zoned.clone()]).collect();
    lab.fake.seen[0].lock().conns.clone_from(&conns);
    let edit = Edit { at: 9, old: 3, text: b"long\r".iter().copied().collect() };
    let stream = StreamParts { offset: 7, edits: [edit].into_iter().collect(), ..StreamParts::default() };
    let sides = Box::new([SavedSide { next: Some(12), stream, ..SavedSide::default() }, SavedSide::default()]);
    lab.fake.seen[0].lock().sides.push((ftp.original, sides.clone()));
    let file = std::env::temp_dir().join(format!("sluice-saved-{}.ndjson", std::process::id()));
    let path = file.to_str().expect("path").to_owned();
    let said = lab.ctl(&["conntrack", "save", &path]).expect("save");
    assert_eq!(said, format!("2002 connections saved to {path}\n"));
    let text = std::fs::read_to_string(&file).expect("it is there");
    let header = json(text.lines().next().expect("a line"));
    assert_eq!((&header["format"], &header["connections"]), (&"sluice-conntrack".into(), &2002.into()));
    lab.stop();

    let lab = Lab::start(2, RULES);
    // The same names, at other places.
    let policies = "conntrack: {timeout_policies: {voice: {udp: 1m}, slow: {udp: 5m}}, max: 2000, reserve: 20}";
    std::fs::write(lab.file(), lab.yaml(RULES).replace("conntrack: {max: 2000, reserve: 20}", policies))
        .expect("written");
    lab.ctl(&["reload"]).expect("reload");
    let said = lab.ctl(&["conntrack", "restore", &path]).expect("restore");
    assert_eq!(said, "2002 of 2002 connections restored\n");
    let mut back = Vec::new();
    for (worker, seen) in lab.fake.seen.iter().enumerate() {
        let seen = seen.lock();
        assert!(seen.batches.iter().all(|&n| n <= CREATE_PER_COMMAND));
        assert!(seen.created.iter().all(|s| home_of(&s.original, 2) == worker));
        back.extend(seen.created.iter().cloned());
    }
    let of = |original: Tuple| back.iter().find(|s| s.original == original).expect("it came back");
    let (a, b) = (of(ftp.original), of(zoned.original));
    assert_eq!((a.helper, a.timeout_policy, a.mark), (Some(HelperKind::Ftp), 1, 7));
    assert_eq!((&a.sides, &b.sides), (&Some(sides), &None), "what its helper knows comes along");
    assert_eq!((a.expected, b.expected), (false, true));
    assert_eq!((a.reply, a.state, a.timeout_s), (ftp.reply, ftp.state, ftp.timeout_s));
    assert_eq!((a.packets, a.bytes, a.replied, a.assured), (ftp.packets, ftp.bytes, true, true));
    assert_eq!((a.interface, a.local, b.interface, b.local), (0, false, 1, true), "by their names");
    assert!((999_000..1_060_000).contains(&b.age_ms), "it goes on from its start");
    assert!(back.iter().all(|s| s.judge), "another policy may have made them");
    assert_eq!(back.len(), conns.len());
    let again = lab.ctl(&["conntrack", "restore", &path]).expect("restore");
    let expect =
        "0 of 2002 connections restored\n2002 not restored: such a connection exists already (first in line 2)\n";
    assert_eq!(again, expect);
    std::fs::remove_file(&file).expect("removed");
    lab.stop();
}

#[test]
fn a_bad_line_is_named_and_nothing_is_lost() {
    let lab = Lab::start(1, RULES);
    lab.fake.seen[0].lock().conns = (1..=4).map(udp_conn).collect();
    let file = lab.dir.join("table.ndjson");
    let path = file.to_str().expect("path").to_owned();
    lab.ctl(&["conntrack", "save", &path]).expect("save");
    let good = std::fs::read_to_string(&file).expect("it is there");
    lab.fake.seen[0].lock().conns.clear();
    let restore = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).expect("written");
        lab.ctl(&[&["conntrack", "restore", path.as_str()], more].concat()).map_err(|e| e.to_string())
    };
    let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
    lines[2] = lines[2].replace("192.0.2.10", "192.0.2.300");
    lines[3] = lines[3].replace(r#""sport":53,"#, "");
    let bad = lines.join("\n");
    let error = restore(&bad, &[]).expect_err("two bad lines");
    let shown: Vec<&str> = error.lines().collect();
    assert!(shown[0].starts_with(&format!("{path}:3: invalid IP address syntax")), "{error}");
    assert_eq!(shown[1], format!("{path}:4: protocol 17 needs a source and a destination port"));
    assert_eq!(shown[2], "nothing was restored; with --keep-going the 2 good lines would be");
    assert!(lab.fake.seen[0].lock().created.is_empty());
    let said = restore(&bad, &["--keep-going"]).expect("the others");
    assert!(said.starts_with("2 of 4 connections restored\n1 not restored: "), "{said}");
    // Neither does a line that is no text, or has no end, keep the others back.
    lines[2] = "x".repeat(200_000);
    std::fs::write(&file, [lines[..3].join("\n").as_bytes(), b"\n\xff\xfe\n", lines[4].as_bytes()].concat())
        .expect("written");
    let said = lab.ctl(&["conntrack", "restore", &path, "--keep-going"]).expect("the others");
    assert!(said.starts_with("0 of 4 connections restored\n"), "{said}");
    assert!(said.contains("is longer than 65536 bytes (first in line 3)"), "{said}");
    // A name that the configuration does not have is one connection's problem, not the file's.
    let named = good.replacen(r#""age":1"#, r#""timeout_policy":"gone","age":1"#, 1);
    let said = restore(&named, &[]).expect("the others");
    assert!(said.contains("1 not restored: there is no timeout policy gone (first in line 2)"), "{said}");
    let cut = good.lines().take(4).collect::<Vec<_>>().join("\n");
    let error = restore(&cut, &[]).expect_err("it breaks off");
    assert!(error.contains("has 3 connections where its first line says 4"), "{error}");
    for (text, why) in [
        ("", ":1: is no header"),
        ("{\"proto\":6}\n", ":1: is no header"),
        (&good.replacen("\"version\":1", "\"version\":2", 1), ":1: is sluice-conntrack version 2; accepted: "),
    ] {
        let error = restore(text, &[]).expect_err(why);
        assert!(error.starts_with(&format!("{path}{why}")), "{error}");
    }
    let gone = lab.ctl(&["conntrack", "restore", "/nonexistent.ndjson"]).expect_err("no file").to_string();
    assert_eq!(gone, "/nonexistent.ndjson: No such file or directory (os error 2)");
    lab.stop();
}

#[test]
fn a_save_that_fails_leaves_the_old_file_and_nothing_beside_it() {
    let lab = Lab::start(1, RULES);
    let file = lab.dir.join("table.ndjson");
    std::fs::write(&file, "precious").expect("written");
    let socket = lab.dir.join("nobody.sock");
    let out = Command::new(env!("CARGO_BIN_EXE_sluicectl"))
        .args(["--socket", socket.to_str().expect("path"), "conntrack", "save", file.to_str().expect("path")])
        .output()
        .expect("sluicectl");
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "precious");
    let left = std::fs::read_dir(&lab.dir)
        .expect("folder")
        .filter(|e| e.as_ref().expect("entry").file_name().to_string_lossy().ends_with(".tmp"));
    assert_eq!(left.count(), 0);
    let error = lab.ctl(&["conntrack", "save", "/nonexistent/table"]).expect_err("no such folder").to_string();
    assert_eq!(error, "/nonexistent/table: No such file or directory (os error 2)");
    lab.stop();
}

#[test]
fn the_alarm_is_the_worst_workers() {
    let lab = Lab::start(2, RULES);
    let alarm = || ["75", "90", "full"].map(|l| lab.metric(&format!(r#"sluice_conntrack_alarm{{level="{l}"}}"#)));
    let (no, yes) = (Some(0.0), Some(1.0));
    assert_eq!(alarm(), [no, no, no]);
    lab.stats[1].conntrack_entries.set(750);
    assert_eq!(alarm(), [yes, no, no]);
    lab.stats[1].conntrack_entries.set(900);
    assert_eq!(alarm(), [yes, yes, no]);
    lab.stats[1].conntrack_entries.set(989);
    assert_eq!(alarm(), [yes, yes, no]);
    lab.stats[1].conntrack_entries.set(990);
    assert_eq!(alarm(), [yes, yes, yes], "all but its half of the reserve is used");
    std::fs::write(lab.file(), lab.yaml(RULES).replace("reserve: 20", "reserve: 0")).expect("written");
    lab.ctl(&["reload"]).expect("reload");
    assert_eq!(alarm(), [no, no, no], "the fake counts what is in its table");
    lab.stats[1].conntrack_entries.set(999);
    assert_eq!(alarm(), [yes, yes, no], "the reserve is what the policy in force says");
    lab.stats[1].conntrack_entries.set(10);
    assert_eq!(alarm(), [no, no, no]);
    lab.stop();
}
