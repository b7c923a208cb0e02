//! What translation rules must not do: take what is not theirs, lose what is bound to them, count what no rule translates.
//!
//! ```text
//!   10.0.0.2 ──┐                                             ┌── 203.0.113.5
//!   10.0.0.9 ──┼─ lan [ 10.0.0.1   gateway   198.51.100.1 ] wan ─┤
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::{Command, ConnSpec, Event};
use dataplane::api::policy::*;
use dataplane::api::{DropReason, FibSpec, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;

const HOST: &str = "10.0.0.2";
const WEB: &str = "10.0.0.9";
const GATEWAY: &str = "198.51.100.1";
const SERVER: &str = "203.0.113.5";

fn forward(from: ZoneId, proto: u8, dport: u16, destination: Option<&str>, to: &str) -> NatRuleSpec {
    let destination = destination.map(only);
    let matches =
        Match { from: vec![from], proto: vec![proto], dport: vec![dport..=dport], destination, ..Match::default() };
    NatRuleSpec::new("forward", matches, NatKind::Dnat { to: ip(to).into(), port: None })
}

/// 10.0.0.0/24 is 192.0.2.0/24 outside.
fn netmap() -> NatRuleSpec {
    let (from, to) = ("10.0.0.0/24".parse().expect("prefix"), "192.0.2.0/24".parse().expect("prefix"));
    let matches = Match { source: Some(only("10.0.0.0/24")), ..from_to(LAN_ZONE, WAN_ZONE) };
    NatRuleSpec::new("map", matches, NatKind::Netmap { from, to, side: NetmapSide::Source })
}

fn sweep(lab: &mut Lab) -> u64 {
    lab.events.clear();
    lab.command(|| Command::Sweep { cursor: 0 });
    lab.heard();
    lab.events.iter().map(|e| if let Event::Swept { kept, .. } = e { *kept } else { 0 }).sum()
}

/// The gateway's addresses, one in place of another.
fn readdressed(old: &str, new: &str) -> FibSpec {
    let mut routes = fib();
    let net = |a: &str| a.parse().expect("prefix");
    for (_, address) in &mut routes.addresses {
        if *address == net(old) {
            *address = net(new);
        }
    }
    routes
}

// ---- Whose packets a rule takes -------------------------------------------------------------------------------------

#[test]
fn a_rule_for_lan_takes_nothing_from_wan() {
    for to in ["203.0.113.53", WEB] {
        everywhere(translating(vec![forward(LAN_ZONE, proto::UDP, 53, None, to)]), |lab| {
            let up = lab.passes(WAN, &udp(SERVER, 5000, GATEWAY, 53, b""), WAN_TWIN);
            assert_eq!(up.dst, ip(GATEWAY));
        });
    }
}

#[test]
fn a_rule_for_wan_leaves_the_gateways_addresses_of_lan_to_lan() {
    everywhere(translating(vec![forward(WAN_ZONE, proto::TCP, 22, None, WEB)]), |lab| {
        let up = lab.passes(LAN, &tcp(HOST, 5000, "10.0.0.1", 22, SYN, 1, 0, b""), LAN_TWIN);
        assert_eq!(up.dst, ip("10.0.0.1"));
        assert_eq!(
            lab.passes(LAN, &tcp(HOST, 5000, GATEWAY, 22, SYN, 1, 0, b""), LAN).dst,
            ip(WEB),
            "that one is wan's"
        );
    });
}

#[test]
fn a_written_rule_comes_before_what_netmap_implies() {
    let web = forward(WAN_ZONE, proto::TCP, 80, Some("192.0.2.5/32"), WEB);
    for rules in [vec![netmap(), web.clone()], vec![web, netmap()]] {
        everywhere(translating(rules), |lab| {
            assert_eq!(lab.passes(WAN, &tcp(SERVER, 5000, "192.0.2.5", 80, SYN, 1, 0, b""), LAN).dst, ip(WEB));
            assert_eq!(lab.passes(WAN, &udp(SERVER, 5000, "192.0.2.5", 80, b""), LAN).dst, ip("10.0.0.5"));
        });
    }
}

#[test]
fn netmaps_other_way_leads_to_what_the_rule_matches_alone() {
    let mut rule = netmap();
    rule.matches.source = Some(only("10.0.0.0/28"));
    everywhere(translating(vec![rule]), |lab| {
        assert_eq!(lab.passes(WAN, &udp(SERVER, 5000, "192.0.2.5", 53, b""), LAN).dst, ip("10.0.0.5"));
        lab.send(WAN, &udp(SERVER, 5000, "192.0.2.200", 53, b""));
        assert!(lab.conns().iter().all(|c| c.reply.src != ip("10.0.0.200")));
    });
}

/// "What stays inside is not translated" is not said of what has come by a public address.
#[test]
fn an_exemption_of_what_is_inside_leaves_hairpins_whole() {
    let inside = Match {
        to: vec![LAN_ZONE],
        source: Some(only("10.0.0.0/8")),
        destination: Some(only("10.0.0.0/8")),
        ..Match::default()
    };
    let web = forward(WAN_ZONE, proto::TCP, 80, Some("198.51.100.1/32"), WEB);
    everywhere(translating(vec![NatRuleSpec::new("inside", inside, NatKind::None), web, masquerade()]), |lab| {
        assert_eq!(lab.passes(LAN, &tcp(HOST, 5000, GATEWAY, 80, SYN, 1, 0, b""), LAN).src, ip(GATEWAY));
    });
}

#[test]
fn strict_ports_of_a_range_say_nothing_of_what_has_no_ports() {
    let rule = NatRuleSpec { ports: Some(1024..=65535), preserve_port: PreservePort::Strict, ..masquerade() };
    everywhere(translating(vec![rule]), |lab| {
        assert_eq!(lab.passes(LAN, &other(HOST, SERVER, 50, b"12345678"), WAN).src, ip(GATEWAY));
        assert_eq!(lab.passes(LAN, &udp(HOST, 1024, SERVER, 123, b""), WAN).sport, 1024);
        lab.refuses(LAN, &udp(HOST, 123, SERVER, 123, b""), DropReason::NatNoPort);
    });
}

#[test]
fn one_port_serves_as_many_destinations_as_there_are() {
    everywhere(translating(vec![NatRuleSpec { ports: Some(5000..=5000), ..masquerade() }]), |lab| {
        for n in 1..=60 {
            let server = format!("203.0.113.{n}");
            let out = lab.passes(LAN, &udp(HOST, 4000 + n, &server, 53, b""), WAN);
            assert_eq!(out.sport, 5000);
            assert_eq!(lab.passes(WAN, &udp(&server, 53, GATEWAY, 5000, b""), LAN).dport, 4000 + n);
        }
    });
}

/// As the kernel chooses: `inet_select_addr`, `ipv6_dev_get_saddr`.
#[test]
fn masquerade_takes_the_address_that_suits_the_way() {
    everywhere(translating(vec![masquerade()]), |lab| {
        let mut routes = fib();
        let net = |a: &str| a.parse().expect("prefix");
        routes.addresses.retain(|(i, _)| *i == 0);
        let wan = ["198.51.100.1/24", "192.0.2.1/24", "fd00:99::1/64", "2001:db8::1/64", "2001:db8:5::1/64"];
        routes.addresses.extend(wan.map(|a| (1, net(a))));
        let target = RouteTarget::Via { interface: 1, gateway: Some(ip("192.0.2.254")) };
        routes.routes.push(RouteSpec { prefix: net("203.0.113.0/24"), target });
        lab.reroute(routes);
        lab.neighbour(1, "192.0.2.254", true);
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN).src, ip("192.0.2.1"), "next to the router");
        assert_eq!(lab.passes(LAN, &udp(HOST, 4000, "192.88.99.9", 53, b""), WAN).src, ip(GATEWAY));
        let out = lab.passes(LAN, &udp("fd00:1::2", 4000, "2001:db8:5::5", 53, b""), WAN);
        assert_eq!(out.src, ip("2001:db8:5::1"), "of the same kind, and nearest");
    });
}

// ---- What a translation is bound to ---------------------------------------------------------------------------------

#[test]
fn a_reload_while_there_is_no_route_judges_when_there_is_one() {
    let mut closed = usual();
    closed.rules[2].matches.dport = vec![1..=1];
    everywhere(usual(), |lab| {
        lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        lab.passes(WAN, &udp(SERVER, 53, HOST, 4000, b""), LAN);
        let mut routes = fib();
        routes.routes.retain(|r| r.prefix.prefix_len() != 0);
        lab.reroute(routes);
        lab.reload(closed.clone());
        assert_eq!(sweep(lab), 1, "nobody can say yet");
        lab.reroute(fib());
        lab.refuses(LAN, &udp(HOST, 4000, SERVER, 53, b""), DropReason::PolicyReload);
    });
}

#[test]
fn marks_of_the_filter_do_not_make_a_reload_translate_otherwise() {
    let marked = Match { from: vec![LAN_ZONE], proto: vec![proto::UDP], mark: Some((0xff, 1)), ..Match::default() };
    let kind = NatKind::Dnat { to: ip("203.0.113.99").into(), port: None };
    let rule = NatRuleSpec { on_reload: OnReload::End, ..NatRuleSpec::new("marked", marked, kind) };
    let snat = Match { mark: Some((0xff, 1)), ..from_to(LAN_ZONE, WAN_ZONE) };
    let snat = NatRuleSpec::new("snat", snat, NatKind::Snat { to: ip("198.51.100.7").into() });
    let mut spec = translating(vec![rule, NatRuleSpec { on_reload: OnReload::End, ..snat }]);
    spec.rules[2].set_mark = Some((0xff, 1));
    everywhere(spec.clone(), |lab| {
        let out = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        assert_eq!((out.src, out.dst), (ip("198.51.100.7"), ip(SERVER)));
        lab.reload(spec.clone());
        assert_eq!(sweep(lab), 1);
    });
}

#[test]
fn an_error_about_what_is_over_goes_nowhere() {
    let mut closed = translating(vec![masquerade()]);
    closed.rules[2].matches.dport = vec![1..=1];
    everywhere(translating(vec![masquerade()]), |lab| {
        let denied = lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
        let gone = lab.passes(LAN, &udp(HOST, 4001, SERVER, 1, b""), WAN);
        lab.reload(closed.clone());
        let about = |out: &Seen| icmp(SERVER, GATEWAY, 3, 3, [0; 4], &out.ip);
        lab.refuses(WAN, &about(&denied), DropReason::InvalidNoParent);
        lab.reroute(readdressed("198.51.100.1/24", "198.51.100.2/24"));
        let error = icmp(SERVER, "198.51.100.2", 3, 3, [0; 4], &gone.ip);
        lab.refuses(WAN, &error, DropReason::InvalidErrorTarget);
        lab.send(WAN, &about(&gone));
        assert_eq!(lab.entries(), 0, "both are over");
    });
}

#[test]
fn a_forward_ends_with_its_public_address_and_with_its_own_target() {
    let rules = |to| translating(vec![forward(WAN_ZONE, proto::UDP, 53, Some("198.51.100.1/32"), to)]);
    everywhere(rules("10.0.0.1"), |lab| {
        lab.passes(WAN, &udp(SERVER, 4000, GATEWAY, 53, b""), WAN_TWIN);
        lab.reroute(readdressed("10.0.0.1/24", "10.0.0.77/24"));
        assert_eq!(sweep(lab), 0);
    });
    everywhere(rules(WEB), |lab| {
        lab.passes(WAN, &udp(SERVER, 4000, GATEWAY, 53, b""), LAN);
        lab.reroute(readdressed("10.0.0.1/24", "10.0.0.77/24"));
        assert_eq!(sweep(lab), 1, "that is none of its addresses");
        lab.reroute(readdressed("198.51.100.1/24", "198.51.100.2/24"));
        assert_eq!(sweep(lab), 0);
    });
}

/// A connection as a saved table has it.
fn saved(original: (&str, u16), reply_to: &str) -> ConnSpec {
    let (there, back) =
        (tuple(original.0, original.1, SERVER, 53, proto::UDP), tuple(SERVER, 53, reply_to, original.1, proto::UDP));
    ConnSpec { timeout_s: 300, replied: true, assured: true, interface: 0, judge: true, ..made(there, back) }
}

fn restore(lab: &mut Lab, conn: &ConnSpec) {
    let home = lab.home(&conn.original);
    lab.tell(home, Command::Create { conns: vec![conn.clone()], refused: Vec::with_capacity(1) });
    lab.run();
}

#[test]
fn a_restored_connection_is_bound_to_what_a_live_one_is() {
    let rules = || translating(vec![NatRuleSpec { on_reload: OnReload::End, ..masquerade() }]);
    everywhere(rules(), |lab| {
        restore(lab, &saved((HOST, 4000), GATEWAY));
        assert_eq!(lab.leases(), 1);
        lab.reload(translating(Vec::new()));
        assert_eq!(sweep(lab), 0, "its rule says that it ends with it");
    });
    everywhere(rules(), |lab| {
        restore(lab, &saved((HOST, 4000), GATEWAY));
        let mut routes = fib();
        let target = RouteTarget::Via { interface: 0, gateway: Some(ip("10.0.0.77")) };
        routes.routes.push(RouteSpec { prefix: "203.0.113.0/24".parse().expect("prefix"), target });
        lab.reroute(routes);
        assert_eq!(sweep(lab), 0, "another way out");
    });
    everywhere(translating(vec![netmap()]), |lab| {
        restore(lab, &saved((HOST, 4000), "192.0.2.2"));
        assert_eq!((lab.entries(), lab.leases()), (1, 0), "netmap leases no ports");
    });
}

// ---- What is counted ------------------------------------------------------------------------------------------------

/// Addresses with leases, and how many.
fn leases(lab: &Lab) -> Vec<(String, i64)> {
    let all = lab.stats.iter().flat_map(|s| s.nat.iter());
    let sums = all.filter_map(|n| Some((n.address()?, n.leases.iter().map(|l| l.value().cast_signed()).sum())));
    sums.filter(|&(_, sum)| sum != 0).map(|(a, sum)| (a.to_string(), sum)).collect()
}

/// Two forwards to one server: each client's second connection gets another port, of its own address.
#[test]
fn strangers_take_no_place_among_the_translated_addresses() {
    let web = |dport| {
        let rule = forward(WAN_ZONE, proto::UDP, dport, Some("198.51.100.1/32"), WEB);
        NatRuleSpec { kind: NatKind::Dnat { to: ip(WEB).into(), port: Some(ToPort::One(80)) }, ..rule }
    };
    let mut lab = Lab::new(translating(vec![web(80), web(81), masquerade()]));
    for n in 0..1200 {
        let client = format!("203.0.{}.{}", 114 + n / 200, 1 + n % 200);
        lab.send(WAN, &udp(&client, 5000, GATEWAY, 80, b""));
        lab.send(WAN, &udp(&client, 5000, GATEWAY, 81, b""));
    }
    assert_eq!((lab.entries(), leases(&lab)), (2400, Vec::new()));
    lab.passes(LAN, &udp(HOST, 4000, SERVER, 53, b""), WAN);
    assert_eq!(leases(&lab), [(GATEWAY.to_owned(), 1)]);
}

/// More addresses than there are places.
#[test]
fn leases_of_more_addresses_than_are_counted_come_out_even() {
    let pool = Pool::new([(ip("198.18.0.0"), ip("198.18.255.255"))]);
    let rule = NatRuleSpec { kind: NatKind::Snat { to: pool.expect("a pool") }, ..masquerade() };
    let mut lab = Lab::new(translating(vec![rule]));
    for n in 0..40 {
        for m in 0..100 {
            lab.send(LAN, &udp(HOST, 4000, &format!("203.{n}.113.{m}"), 53, b""));
        }
        let counted = leases(&lab);
        assert!(counted.iter().all(|&(_, n)| n > 0) && counted.iter().map(|(_, n)| n).sum::<i64>() <= 100);
        assert!(n > 0 || counted.len() > 90, "{counted:?}");
        lab.wait(Nanos::from_secs(60));
        assert_eq!(leases(&lab), []);
    }
}
