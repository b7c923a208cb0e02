//! The kernel mirror against the kernel itself, in a network namespace of its own.
//!
//! Needs root (or the right to make network namespaces); says so and passes where that is missing.
//!
//! ```text
//!  fake worker <- mirror <- netlink <- kernel [ lan (veth) ]------[ far ] another namespace
//!                                             [ wan (veth) ]---[ beyond ] the same
//! ```

mod common;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command as Process};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Fake, Lab, Seen, eventually, tcp_conn};
use control::config::{Config, ControlConfig, Interface, StaticNeighbour, StaticRoute};
use control::kernel::mirror::Mirror;
use control::kernel::setup;
use control::kernel::state::TwinSpec;
use control::ledger::Ledger;
use control::workers::Workers;
use dataplane::api::command::Event;
use dataplane::api::launch::{DefragConfig, HugePages, InterfaceConfig, LaunchConfig, Poll};
use dataplane::api::policy::{Action, ConntrackSpec, PolicySpec, ZoneId};
use dataplane::api::stats::CtEvent;
use dataplane::api::{FibSpec, NextHop, RouteTarget};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;

fn ip(a: &str) -> IpAddr {
    a.parse().expect("address")
}

fn run(command: &str) {
    let ok = Process::new("sh").args(["-ec", command]).status().expect("sh").success();
    assert!(ok, "{command}");
}

fn config() -> Config {
    let names = ["lan", "wan"];
    let addresses = [vec!["192.0.2.1/24", "2001:db8:1::1/64"], vec!["198.51.100.2/30"]];
    let interface = |(name, addresses): (&&str, &Vec<&str>)| Interface {
        name: (*name).to_owned(),
        zone: ZoneId(1),
        addresses: addresses.iter().map(|a| a.parse().expect("prefix")).collect(),
        mtu: 1400,
    };
    let launch =
        |name: &&str| InterfaceConfig { name: (*name).to_owned(), device: String::new(), mtu: 1400, vlan: None };
    Config {
        launch: LaunchConfig {
            workers: vec![0],
            hugepages: HugePages::Off,
            burst: 32,
            eal_args: Vec::new(),
            file_prefix: String::new(),
            interfaces: names.iter().map(launch).collect(),
            conntrack_max: 1,
            defrag: DefragConfig::default(),
            mbufs: None,
            poll: Poll::Auto,
            twins: true,
        },
        policy: PolicySpec {
            generation: 0,
            zones: vec!["local".into(), "any".into()],
            interface_zones: vec![ZoneId(1); 2],
            interface_ct_zones: Vec::new(),
            interface_mss: Vec::new(),
            raw: Vec::new(),
            nat: Vec::new(),
            rules: Vec::new(),
            default: Action::Drop,
            conntrack: ConntrackSpec::default(),
        },
        interfaces: names.iter().zip(&addresses).map(interface).collect(),
        routes: vec![
            StaticRoute { to: "0.0.0.0/0".parse().expect("prefix"), via: Some(ip("198.51.100.1")), interface: Some(1) },
            StaticRoute {
                to: "2001:db8:2::/48".parse().expect("prefix"),
                via: Some(ip("2001:db8:1::2")),
                interface: Some(0),
            },
        ],
        neighbours: vec![StaticNeighbour { interface: 1, address: ip("198.51.100.1"), mac: [2, 0, 0, 0, 0, 9] }],
        metrics_listen: None,
        control: ControlConfig { socket: PathBuf::from("/nonexistent"), group: None },
        sets: Vec::new(),
        source: PathBuf::new(),
    }
}

struct Bench {
    fake: Fake,
    _far: Far,
}

/// A namespace at the other end of `lan`, held open by a sleeping process.
struct Far(Child);

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    fn seen(&self) -> parking_lot::MutexGuard<'_, Seen> {
        self.fake.seen[0].lock()
    }

    fn lookup(&self, dst: &str) -> NextHop {
        self.seen().fib.as_ref().map_or(NextHop::None, |f| f.lookup(ip(dst)))
    }

    fn spec(&self) -> FibSpec {
        self.seen().fib.as_ref().expect("published").spec().clone()
    }

    /// What the worker would use for a neighbour; the outer `None` where it was told nothing.
    fn neighbour(&self, interface: u16, address: &str) -> Option<Option<[u8; 6]>> {
        let told = &self.seen().neighbours;
        told.iter().rev().find(|n| n.interface == interface && n.address == ip(address)).map(|n| n.mac)
    }
}

/// Lets the mirror run until `done` holds; fails after `within`.
async fn until(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const SOON: Duration = Duration::from_secs(1);

/// Runs `story` on a thread in a fresh namespace that has both links, with the other ends in a second namespace.
fn in_empty_namespace(story: impl FnOnce(Far) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: no network namespace can be made: {e}");
            return;
        }
        let mut far = Far(Process::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("unshare"));
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("namespace");
        let theirs = format!("/proc/{}/ns/net", far.0.id());
        while std::fs::read_link(&theirs).is_ok_and(|n| n == own) {
            assert!(far.0.try_wait().expect("child").is_none(), "the far namespace did not come up");
            std::thread::yield_now();
        }
        run(&format!(
            "ip link set lo up
             ip link add lan type veth peer name far netns {pid}; ip link add wan type veth peer name beyond netns {pid}
             nsenter -t {pid} -n ip link set far address 02:00:00:00:00:0a up
             nsenter -t {pid} -n ip link set beyond up
             nsenter -t {pid} -n ip addr add 192.0.2.10/24 dev far",
            pid = far.0.id()
        ));
        story(far);
    });
    if let Err(e) = thread.join() {
        std::panic::resume_unwind(e);
    }
}

/// Runs `story` in a fresh namespace with both interfaces set up and mirrored.
fn in_namespace<F: Future<Output = ()>>(story: impl FnOnce(Bench, rtnetlink::Handle, Config) -> F + Send + 'static) {
    in_empty_namespace(move |far| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let config = config();
            let (attachment, fake) = Fake::start(1, 2);
            let ledger = Arc::new(Mutex::new(Ledger::default()));
            let names = vec!["lan".into(), "wan".into()];
            let (workers, wishes) = Workers::attach(attachment, names, ledger).expect("thread");
            let (connection, netlink, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            setup::bring_up(&netlink, &config).await.expect("the kernel takes the configuration");
            // Three questions in 150 ms instead of 3 s.
            run("echo 50 > /proc/sys/net/ipv4/neigh/lan/retrans_time_ms");
            let twins = config.interfaces.iter();
            let twins = twins.map(|i| TwinSpec { name: i.name.clone(), addresses: i.addresses.clone() }).collect();
            let mirror = Mirror::start(twins, workers, wishes).await.expect("mirror");
            let task = tokio::spawn(mirror.run());
            story(Bench { fake, _far: far }, netlink, config).await;
            task.abort();
        });
    });
}

#[test]
fn what_the_yaml_says_is_in_the_kernel_and_comes_back() {
    in_namespace(|b, _, _| async move {
        until("the first table", SOON, || b.seen().fib.is_some()).await;
        assert_eq!(b.lookup("192.0.2.1"), NextHop::Local);
        assert_eq!(b.lookup("2001:db8:1::1"), NextHop::Local, "usable at once, without duplicate address detection");
        assert_eq!(b.lookup("192.0.2.7"), NextHop::Via { interface: 0, address: ip("192.0.2.7") });
        assert_eq!(b.lookup("8.8.8.8"), NextHop::Via { interface: 1, address: ip("198.51.100.1") });
        assert_eq!(b.lookup("2001:db8:2::5"), NextHop::Via { interface: 0, address: ip("2001:db8:1::2") });
        let link_local = || b.spec().addresses.iter().any(|(i, n)| *i == 0 && n.to_string().starts_with("fe80:"));
        until("a link-local address of its own", SOON * 3, link_local).await;
        assert!(!b.spec().routes.iter().any(|r| r.prefix.to_string().starts_with("fe80:")));
        until("the static neighbour", SOON, || b.neighbour(1, "198.51.100.1") == Some(Some([2, 0, 0, 0, 0, 9]))).await;
        run("ip link show lan | grep -q 'mtu 1400 '");
        run("test $(cat /proc/sys/net/ipv6/conf/lan/forwarding) = 1");
        run("test $(cat /proc/sys/net/ipv4/conf/lan/rp_filter) = 0");
        b.fake.stop();
    });
}

#[test]
fn routes_added_and_removed_by_hand_are_in_force_within_a_second() {
    in_namespace(|b, _, _| async move {
        let via = |address: &str| NextHop::Via { interface: 0, address: ip(address) };
        run("ip route add 10.0.0.0/8 via 192.0.2.10 metric 50");
        until("a new route", SOON, || b.lookup("10.1.1.1") == via("192.0.2.10")).await;
        run("ip route add 10.0.0.0/8 via 192.0.2.11 metric 10");
        until("a better metric", SOON, || b.lookup("10.1.1.1") == via("192.0.2.11")).await;
        run("ip route replace 10.0.0.0/8 via 192.0.2.12 metric 10");
        until("a replacement", SOON, || b.lookup("10.1.1.1") == via("192.0.2.12")).await;
        run("ip route del 10.0.0.0/8 metric 10");
        until("the worse metric again", SOON, || b.lookup("10.1.1.1") == via("192.0.2.10")).await;
        run(
            "ip route add blackhole 10.9.0.0/16; ip route add prohibit 10.8.0.0/16; ip route add unreachable 10.7.0.0/16",
        );
        until("a blackhole", SOON, || b.lookup("10.9.0.1") == NextHop::Blackhole).await;
        until("a prohibition", SOON, || b.lookup("10.8.0.1") == NextHop::Prohibit).await;
        until("an unreachable", SOON, || b.lookup("10.7.0.1") == NextHop::Unreachable).await;
        run("ip route add 172.16.0.0/12 nexthop via 192.0.2.20 nexthop via 192.0.2.21");
        until("the first leg of several", SOON, || b.lookup("172.16.0.1") == via("192.0.2.20")).await;
        run("ip route add 10.6.0.0/16 via inet6 fe80::5 dev lan");
        until("IPv4 by an IPv6 router", SOON, || b.lookup("10.6.0.1") == via("fe80::5")).await;
        run("ip route add 10.5.0.0/16 via 192.0.2.10 table 100");
        run("ip route add 10.4.0.0/16 via 192.0.2.10");
        until("the main table", SOON, || b.lookup("10.4.0.1") == via("192.0.2.10")).await;
        assert_eq!(b.lookup("10.5.0.1"), via("192.0.2.10"), "by 10/8: other tables are not mirrored");
        assert!(!b.spec().routes.iter().any(|r| r.prefix.to_string() == "10.5.0.0/16"));
        b.fake.stop();
    });
}

#[test]
fn ipv6_legs_come_and_go() {
    in_namespace(|b, _, _| async move {
        let via = |address: &str| NextHop::Via { interface: 0, address: ip(address) };
        run("ip -6 route add 2001:db8:f::/48 via 2001:db8:1::a");
        until("a route", SOON, || b.lookup("2001:db8:f::1") == via("2001:db8:1::a")).await;
        run("ip -6 route append 2001:db8:f::/48 via 2001:db8:1::b");
        run("ip -6 route del 2001:db8:f::/48 via 2001:db8:1::a");
        until("the second leg alone", SOON, || b.lookup("2001:db8:f::1") == via("2001:db8:1::b")).await;
        run("ip -6 route replace 2001:db8:f::/48 via 2001:db8:1::c");
        until("a replacement", SOON, || b.lookup("2001:db8:f::1") == via("2001:db8:1::c")).await;
        run("ip -6 route del 2001:db8:f::/48");
        until("nothing", SOON, || b.lookup("2001:db8:f::1") == NextHop::None).await;
        b.fake.stop();
    });
}

#[test]
fn addresses_and_links_are_followed() {
    in_namespace(|b, _, _| async move {
        until("the first table", SOON, || b.seen().fib.is_some()).await;
        run("ip addr add 203.0.113.1/24 dev lan");
        until("a new address", SOON, || b.lookup("203.0.113.1") == NextHop::Local).await;
        assert_eq!(b.seen().fib.as_ref().expect("fib").primary(0, ip("0.0.0.0")), Some(ip("192.0.2.1")));
        {
            let mut worker = b.fake.seen[0].lock();
            worker.conns = (0..5).map(tcp_conn).collect();
            worker.doomed = vec![(tcp_conn(3).original, CtEvent::AddressGone)];
            assert_eq!(worker.sweeps, 0, "nothing has gone yet");
        }
        run("ip addr del 203.0.113.1/24 dev lan");
        until("its end", SOON, || b.lookup("203.0.113.1") != NextHop::Local).await;
        until("the end of its connections", SOON, || b.seen().conns.len() == 4).await;
        assert_eq!(b.seen().sweeps, 1);
        run("ip link set wan down");
        until("routes of a link that is down", SOON, || b.lookup("8.8.8.8") == NextHop::None).await;
        run("ip link set wan up; ip route add default via 198.51.100.1");
        until("routes again", SOON, || {
            b.lookup("8.8.8.8") == NextHop::Via { interface: 1, address: ip("198.51.100.1") }
        })
        .await;
        run(
            "ip link add other type veth peer name other2; ip link set other2 up; ip addr add 198.18.0.1/24 dev other; ip link set other up; ip route add 10.3.0.0/16 dev lan",
        );
        until("the route after it", SOON, || b.lookup("10.3.0.1") != b.lookup("8.8.8.8")).await;
        assert_ne!(b.lookup("198.18.0.1"), NextHop::Local, "interfaces that are not twins are not the gateway's");
        assert_eq!(b.lookup("198.18.0.7"), b.lookup("8.8.8.8"), "nor are their routes");
        b.fake.stop();
    });
}

#[test]
fn a_wish_for_a_neighbour_makes_the_kernel_ask() {
    in_namespace(|b, _, _| async move {
        let wish = |a: &str| b.fake.report(0, Event::Resolve { interface: 0, address: ip(a) });
        wish("192.0.2.10");
        until("the answer", SOON, || b.neighbour(0, "192.0.2.10") == Some(Some([2, 0, 0, 0, 0, 10]))).await;
        let told = |a: &str| b.seen().neighbours.iter().filter(|n| n.address == ip(a)).count();
        assert_eq!(told("192.0.2.10"), 1);

        wish("192.0.2.99");
        until("the failure", SOON * 3, || b.neighbour(0, "192.0.2.99") == Some(None)).await;

        // A worker that forgot, or whose wish crossed the answer, is told again, but not with every packet.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for _ in 0..50 {
            wish("192.0.2.10");
        }
        until("the answer again", SOON, || told("192.0.2.10") == 2).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(told("192.0.2.10"), 2);

        run("ip neigh del 192.0.2.10 dev lan");
        until("its end", SOON, || b.neighbour(0, "192.0.2.10") == Some(None)).await;
        b.fake.stop();
    });
}

#[test]
fn a_reload_changes_the_kernel_as_far_as_the_yaml_changed() {
    in_namespace(|b, netlink, old| async move {
        let mut new = old.clone();
        new.routes[0].via = Some(ip("192.0.2.10"));
        new.routes[0].interface = Some(0);
        new.routes.remove(1);
        new.neighbours.clear();
        new.interfaces[1].addresses = vec!["198.51.100.6/30".parse().expect("prefix")];
        run("ip route add 10.0.0.0/8 via 192.0.2.77");
        setup::change(&netlink, &old, &new).await.expect("the kernel takes the change");
        let lan = |address: &str| NextHop::Via { interface: 0, address: ip(address) };
        until("the new default", SOON, || b.lookup("8.8.8.8") == lan("192.0.2.10")).await;
        until("the new address", SOON, || b.lookup("198.51.100.6") == NextHop::Local).await;
        until("the old one's end", SOON, || b.lookup("198.51.100.2") != NextHop::Local).await;
        assert_eq!(b.lookup("2001:db8:2::5"), NextHop::None);
        assert_eq!(b.lookup("10.1.1.1"), lan("192.0.2.77"), "what others put there stays");
        until("the neighbour's end", SOON, || b.neighbour(1, "198.51.100.1") == Some(None)).await;
        b.fake.stop();
    });
}

#[test]
fn thousands_of_routes_in_a_row_become_few_tables() {
    in_namespace(|b, _, _| async move {
        until("the first table", SOON, || b.seen().fib.is_some()).await;
        let before = b.seen().fibs;
        run(
            "for i in $(seq 0 199); do for j in 0 64 128 192; do echo route add 10.$i.$j.0/24 via 192.0.2.10; done; done | ip -batch -",
        );
        let all = |spec: &FibSpec| {
            let gateway = Some(ip("192.0.2.10"));
            spec.routes.iter().filter(|r| r.target == RouteTarget::Via { interface: 0, gateway }).count()
        };
        until("all of them", SOON * 3, || all(&b.spec()) == 800).await;
        let tables = b.seen().fibs - before;
        assert!(tables < 50, "{tables} tables for 800 routes");
        b.fake.stop();
    });
}

#[test]
fn the_whole_gateway_shows_and_reloads_what_the_kernel_has() {
    in_empty_namespace(|_far| {
        let rules = "    - {name: all, action: accept}";
        let lab = Lab::start_with(2, rules, true);
        let routes = lab.ctl(&["show", "routes"]).expect("routes");
        let expect = "\
TO               TYPE     VIA           INTERFACE  METRIC  PROTOCOL
default          unicast  198.51.100.1  wan             0  static
192.0.2.0/24     unicast  -             lan             0  kernel
198.51.100.0/30  unicast  -             wan             0  kernel
";
        assert_eq!(routes, expect);
        run("ip neigh replace 192.0.2.77 lladdr 02:00:00:00:00:4d dev lan");
        let shown = || lab.ctl(&["show", "neighbours"]).expect("neighbours");
        eventually("the neighbour", || shown().contains("192.0.2.77  lan        02:00:00:00:00:4d  permanent\n"));

        let yaml = lab.yaml(rules).replace("[192.0.2.1/24]", "[192.0.2.1/24, 10.77.0.1/24]");
        std::fs::write(lab.file(), yaml.replace("via: 198.51.100.1", "via: 10.77.0.9")).expect("write");
        lab.ctl(&["reload"]).expect("reload");
        let line = "default          unicast  10.77.0.9  lan             0  static\n";
        eventually("the new route", || lab.ctl(&["show", "routes"]).expect("routes").contains(line));
        let interfaces = lab.ctl(&["--json", "show", "interfaces"]).expect("interfaces");
        let interfaces: serde_json::Value = serde_json::from_str(&interfaces).expect("JSON");
        let addresses = interfaces[0]["addresses"].as_array().expect("a list");
        assert_eq!(addresses[..2], ["192.0.2.1/24", "10.77.0.1/24"]);

        // What the kernel refuses: the policy is in force all the same, and the answer says both.
        std::fs::write(lab.file(), lab.yaml(rules).replace("via: 198.51.100.1", "via: 198.51.100.3")).expect("write");
        let error = lab.ctl(&["reload"]).expect_err("a broadcast address is no router").to_string();
        assert!(
            error.starts_with("policy generation 3 is in force, but route to 0.0.0.0/0: the kernel refused"),
            "{error}"
        );
        lab.stop();
    });
}
