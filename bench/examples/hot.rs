//! Drives one worker in this process, to time it or to count its instructions: `hot CASE FLOWS TURNS`.
//!
//! ```text
//!   stateful, snat             packets of known connections
//!   long                       the same, by a policy that has each packet go the long way
//!   forward                    packets that are not tracked
//!   new, new-snat, new-tcp     each packet starts a connection; a flow's connection has expired when it comes again
//!   new-rules                  the same, by 1,000 rules
//! ```

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use bench::flow::{Case, Flow, SNAT_ADDRESS};
use bench::frame;
use bench::rig::{self, LAN, PORTS, ROUTERS, Rig, WAN};
use dataplane::api::policy::{Action, AddrMatch, AddrSet, Match, PolicySpec, RawAction, RawRuleSpec, RuleSpec};
use dataplane::conntrack::tuple::proto;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

/// Rules of the case with many.
const RULES: u32 = 1000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let name = args.get(1).map_or("stateful", String::as_str);
    let flows: u32 = args.get(2).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let turns: u32 = args.get(3).and_then(|a| a.parse().ok()).unwrap_or(100_000);
    let fresh = name.starts_with("new");
    let case = if name.ends_with("snat") { Case::Snat } else { Case::Stateful };
    let frames = |side: usize| {
        let frame = |i| {
            let flow = Flow::number(i, case);
            let at = if side == 0 { flow.lan } else { flow.wan };
            let link = frame::Link { to: PORTS[side], from: ROUTERS[side] };
            match name {
                "new-tcp" => frame::tcp(link, at, frame::Segment { seq: i, ack: 0, flags: frame::SYN, payload: 0 }),
                _ => frame::udp(link, at, frame::SHORTEST),
            }
        };
        (0..flows).map(frame).collect()
    };
    let mut policy = if case == Case::Snat { rig::snat(SNAT_ADDRESS) } else { rig::policy() };
    match name {
        "new-rules" => policy.rules = many(policy.rules),
        "forward" => untracked(&mut policy),
        "long" => {
            let tcp_flags = Some((0xff, 0xff));
            let matches = Match { proto: vec![proto::TCP], tcp_flags, ..Match::default() };
            policy.raw.push(RawRuleSpec { name: "odd".to_owned(), matches, action: RawAction::Drop });
        }
        _ => {}
    }
    if fresh {
        let timeouts = &mut policy.conntrack.timeouts;
        (timeouts.udp, timeouts.tcp_syn_sent) = (Nanos::from_secs(1), Nanos::from_secs(1));
    }
    let mut rig = Rig::new(policy, 1 << 20, [frames(0), if fresh { Vec::new() } else { frames(1) }]);
    if fresh {
        // All of them come within three seconds, of which a connection lives little more than one.
        rig.pace = Nanos(3_000_000_000 * 32 / u64::from(flows.max(1)));
    }
    rig.warm(2);
    rig.warm(2);
    let mut best = f64::MAX;
    for _ in 0..10 {
        let before = rig.sent();
        let start = Instant::now();
        for _ in 0..turns / 10 {
            rig.turn();
        }
        let ns = start.elapsed().as_secs_f64() * 1e9 / (rig.sent() - before) as f64;
        best = best.min(ns);
    }
    println!("entries {}, new {}", rig.stats.conntrack_entries.value(), rig.stats.ct_events[0].value());
    println!(
        "{:.1} ns per packet, best of 10; sent {}, dropped {}",
        best,
        rig.sent(),
        rig.stats.drops.iter().map(|d| d.value()).sum::<u64>()
    );
}

/// Rules for one service of one server each, which no flow uses, between those that there are.
fn many(mut rules: Vec<RuleSpec>) -> Vec<RuleSpec> {
    let last = rules.split_off(1);
    let service = |n: u32| {
        let host = ipnet::Ipv4Net::from(Ipv4Addr::from_bits(0xc612_0000 | n));
        let destination = Some(AddrMatch { negate: false, set: Arc::new(AddrSet::new([host.into()], [])) });
        let matches = Match {
            from: vec![LAN],
            to: vec![WAN],
            destination,
            proto: vec![proto::UDP],
            dport: vec![443..=443],
            state: vec![CtState::New],
            ..Match::default()
        };
        RuleSpec { name: format!("service-{n}"), matches, ..rules[0].clone() }
    };
    let services: Vec<_> = (2..RULES).map(service).collect();
    rules.into_iter().chain(services).chain(last).collect()
}

/// Nothing is tracked, and all of that passes.
fn untracked(policy: &mut PolicySpec) {
    let raw = RawRuleSpec { name: "all".to_owned(), matches: Match::default(), action: RawAction::Notrack };
    policy.raw.push(raw);
    let matches = Match { state: vec![CtState::Untracked], ..Match::default() };
    let first = policy.rules[0].clone();
    policy.rules.insert(0, RuleSpec { name: "untracked".to_owned(), matches, action: Action::Accept, ..first });
}
