//! What the lab's gateway is set up with: policies that stories begin from, addresses and routes, connections made by hand.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::api::command::ConnSpec;
use dataplane::api::policy::*;
use dataplane::api::{FibSpec, RouteSpec, RouteTarget};
use dataplane::conntrack::tuple::{Tuple, proto};
use dataplane::packet::CtState;

pub const LAN_ZONE: ZoneId = ZoneId(1);
pub const WAN_ZONE: ZoneId = ZoneId(2);

pub fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

/// The usual policy with these translations; wan may come in, lan may talk to lan, all may talk to the gateway.
pub fn translating(nat: Vec<NatRuleSpec>) -> PolicySpec {
    let mut spec = PolicySpec { nat, ..usual() };
    let new = |from, to| Match { state: vec![CtState::New], ..from_to(from, to) };
    spec.rules.push(rule("in", new(WAN_ZONE, LAN_ZONE), Action::Accept));
    spec.rules.push(rule("beside", new(LAN_ZONE, LAN_ZONE), Action::Accept));
    spec.rules.push(rule("me", Match { to: vec![ZoneId::LOCAL], ..Match::default() }, Action::Accept));
    spec
}

/// A connection as the operator makes one: of one packet that came in by wan, with a second to live.
pub fn made(original: Tuple, reply: Tuple) -> ConnSpec {
    ConnSpec {
        original,
        reply,
        state: None,
        timeout_s: 1,
        replied: false,
        assured: false,
        expected: false,
        mark: 0,
        helper: None,
        sides: None,
        timeout_policy: 0,
        age_ms: 0,
        packets: [1, 0],
        bytes: [40, 0],
        interface: 1,
        local: false,
        judge: false,
    }
}

/// A policy of the lab's zones: what tests add rules to.
pub fn policy() -> PolicySpec {
    PolicySpec {
        generation: 1,
        zones: vec!["local".into(), "lan".into(), "wan".into()],
        interface_zones: vec![LAN_ZONE, WAN_ZONE],
        interface_ct_zones: Vec::new(),
        interface_mss: Vec::new(),
        raw: Vec::new(),
        nat: Vec::new(),
        rules: Vec::new(),
        default: Action::Drop,
        conntrack: ConntrackSpec::default(),
    }
}

pub fn rule(name: &str, matches: Match, action: Action) -> RuleSpec {
    RuleSpec { name: name.into(), matches, action, log: false, set_mark: None, timeout_policy: 0 }
}

pub fn state(states: &[CtState]) -> Match {
    Match { state: states.to_vec(), ..Match::default() }
}

pub fn from_to(from: ZoneId, to: ZoneId) -> Match {
    Match { from: vec![from], to: vec![to], ..Match::default() }
}

/// Exactly these addresses.
pub fn only(prefix: &str) -> AddrMatch {
    AddrMatch { negate: false, set: Arc::new(AddrSet::new([prefix.parse().expect("prefix")], [])) }
}

/// Established and related pass, invalid does not, lan may open connections to wan.
pub fn usual() -> PolicySpec {
    let mut p = policy();
    p.rules = vec![
        rule("established", state(&[CtState::Established, CtState::Related]), Action::Accept),
        rule("invalid", state(&[CtState::Invalid]), Action::Drop),
        rule("lan-out", Match { state: vec![CtState::New], ..from_to(LAN_ZONE, WAN_ZONE) }, Action::Accept),
    ];
    p
}

pub fn masquerade() -> NatRuleSpec {
    NatRuleSpec::new("out", from_to(LAN_ZONE, WAN_ZONE), NatKind::Masquerade)
}

/// DNAT of TCP and UDP port `dport` of 198.51.100.1 to `to_address`:`to_port`, with the rule that lets it in.
pub fn dnat(spec: &mut PolicySpec, dport: u16, to_address: &str, to_port: Option<u16>) {
    spec.nat.push(NatRuleSpec {
        name: format!("dnat-{dport}"),
        matches: Match {
            from: vec![WAN_ZONE],
            proto: vec![proto::TCP, proto::UDP],
            dport: vec![dport..=dport],
            destination: Some(AddrMatch {
                negate: false,
                set: Arc::new(AddrSet::new(["198.51.100.1/32".parse().expect("prefix")], [])),
            }),
            ..Match::default()
        },
        kind: NatKind::Dnat { to: ip(to_address).into(), port: to_port.map(ToPort::One) },
        ..masquerade()
    });
    spec.rules.push(rule(
        &format!("dnat-{dport}"),
        Match { state: vec![CtState::New], ..from_to(WAN_ZONE, LAN_ZONE) },
        Action::Accept,
    ));
}

/// Has `kind` watch TCP (or for TFTP UDP) connections to port `dport`.
pub fn helped(mut spec: PolicySpec, kind: HelperKind, dport: u16) -> PolicySpec {
    let matches = Match { proto: vec![kind.proto()], dport: vec![dport..=dport], ..Match::default() };
    spec.conntrack.helpers.push(HelperRuleSpec { kind, matches });
    spec
}

/// The lab's routes and addresses.
pub fn fib() -> FibSpec {
    let net = |s: &str| s.parse().expect("prefix");
    let via = |interface, gateway: Option<&str>| RouteTarget::Via {
        interface,
        gateway: gateway.map(|g| g.parse().expect("address")),
    };
    FibSpec {
        routes: vec![
            RouteSpec { prefix: net("10.0.0.0/24"), target: via(0, None) },
            RouteSpec { prefix: net("198.51.100.0/24"), target: via(1, None) },
            RouteSpec { prefix: net("0.0.0.0/0"), target: via(1, Some("198.51.100.254")) },
            RouteSpec { prefix: net("fd00:1::/64"), target: via(0, None) },
            RouteSpec { prefix: net("2001:db8::/64"), target: via(1, None) },
            RouteSpec { prefix: net("::/0"), target: via(1, Some("2001:db8::fe")) },
        ],
        others: Vec::new(),
        addresses: vec![
            (0, net("10.0.0.1/24")),
            (1, net("198.51.100.1/24")),
            (0, net("fd00:1::1/64")),
            (1, net("2001:db8::1/64")),
        ],
    }
}
