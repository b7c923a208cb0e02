//! Ways through the gateway for control connections: who calls whom, under which policy.

use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::io::PortIdx;
use dataplane::packet::CtState;

use super::lab::*;

/// Policy, client's and server's link, client, service as the client knows it.
pub struct Way {
    pub name: &'static str,
    pub spec: PolicySpec,
    pub links: (PortIdx, PortIdx),
    pub client: &'static str,
    pub service: &'static str,
}

impl Way {
    /// From inside to outside.
    pub fn out(name: &'static str, spec: PolicySpec, client: &'static str, service: &'static str) -> Self {
        Self { name, spec, links: (LAN, WAN), client, service }
    }

    /// From outside to inside.
    pub fn inwards(name: &'static str, spec: PolicySpec, client: &'static str, service: &'static str) -> Self {
        Self { name, spec, links: (WAN, LAN), client, service }
    }
}

/// Nothing but control connections to `port` may begin, and they have that helper.
pub fn only_control(helper: HelperKind, port: u16) -> PolicySpec {
    let mut p = policy();
    let control =
        Match { proto: vec![proto::TCP], dport: vec![port..=port], state: vec![CtState::New], ..Match::default() };
    p.rules = vec![
        rule("established", state(&[CtState::Established]), Action::Accept),
        rule("related", state(&[CtState::Related]), Action::Accept),
        rule("control", control, Action::Accept),
    ];
    helped(p, helper, port)
}

/// The same, and behind the gateway's address.
pub fn masquerading(p: PolicySpec) -> PolicySpec {
    PolicySpec { nat: vec![masquerade()], ..p }
}

/// Both ends are translated: the server inside sees the gateway's inner address.
pub fn both_ends(mut p: PolicySpec) -> PolicySpec {
    p.nat.push(NatRuleSpec { matches: from_to(WAN_ZONE, LAN_ZONE), ..masquerade() });
    p
}
