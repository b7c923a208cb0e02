//! `status` and `show`: what is in force, as plain lists.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use dataplane::api::policy::{CtState, Match, PolicySpec, RawAction};
use dataplane::api::stats::{CtEvent, HandoverCause, PortCounters};
use dataplane::api::{DropReason, RouteTarget};

use super::{Shared, wire};
use crate::gateway::{Gateway, VERSION};
use crate::kernel::route::protocol_name;
use crate::ledger::DEFAULT_RULE;
use nat::{kind_word, nat_words};
use words::{action_word, match_words, rule_words};

mod nat;
mod words;

pub(crate) use words::proto_name;

pub async fn status(State(g): Shared) -> Json<wire::Status> {
    let config = g.config();
    Json(wire::Status {
        ready: true,
        version: VERSION.into(),
        dpdk: g.dpdk_version.clone(),
        pid: std::process::id(),
        uptime_seconds: g.started.elapsed().as_secs_f64(),
        config: config.source.clone(),
        generation: g.publisher.generation(),
        workers: g.workers.len(),
        hugepages: g.workers.hugepages(),
        interfaces: config.interfaces.len(),
        interfaces_up: (0..config.interfaces.len()).filter(|&i| g.interface_up(i)).count(),
        connections: g.workers.stats().map(|s| s.conntrack_entries.value()).sum(),
        connections_limit: g.workers.limit_per_worker().saturating_mul(g.workers.len()) as u64,
    })
}

pub async fn interfaces(State(g): Shared) -> Json<Vec<wire::Interface>> {
    let config = g.config();
    let all = config.interfaces.iter().zip(&config.launch.interfaces).enumerate().map(|(i, (interface, launch))| {
        let total = |of: fn(&PortCounters) -> u64| g.workers.stats().filter_map(|s| s.ports.get(2 * i)).map(of).sum();
        let port = g.workers.ports().get(i);
        wire::Interface {
            name: interface.name.clone(),
            zone: config.policy.zones.get(usize::from(interface.zone.0)).cloned().unwrap_or_default(),
            up: g.interface_up(i),
            speed_mbps: (g.link)(i).map_or(0, |l| l.speed_mbps),
            device: launch.device.clone(),
            driver: port.map(|p| p.driver.clone()).unwrap_or_default(),
            rss: port.is_some_and(|p| p.rss),
            rx_checksums: port.is_some_and(|p| p.rx_checksums),
            mac: port.map(|p| mac_text(p.mac)).unwrap_or_default(),
            vlan: launch.vlan,
            mtu: interface.mtu,
            addresses: match &g.kernel {
                Some(k) => k.state.read().addresses(i),
                None => interface.addresses.clone(),
            },
            rx_packets: total(|p| p.rx_packets.value()),
            rx_bytes: total(|p| p.rx_bytes.value()),
            tx_packets: total(|p| p.tx_packets.value()),
            tx_bytes: total(|p| p.tx_bytes.value()),
        }
    });
    Json(all.collect())
}

pub async fn rules(State(g): Shared) -> Json<Vec<wire::Rule>> {
    let config = g.config();
    let spec = &config.policy;
    let totals: BTreeMap<String, _> = g.ledger.lock().totals().into_iter().collect();
    let mut all = Vec::new();
    for (i, r) in spec.raw.iter().enumerate() {
        let action = match r.action {
            RawAction::Notrack => "notrack",
            RawAction::Accept => "accept",
            RawAction::Drop => "drop",
        };
        all.push(wire::Rule {
            hook: "raw".into(),
            position: Some(i + 1),
            name: r.name.clone(),
            matches: words(&g, spec, &r.matches),
            action: action.into(),
            packets: None,
            bytes: None,
        });
    }
    let filter = spec
        .rules
        .iter()
        .enumerate()
        .map(|(i, r)| (Some(i + 1), r.name.as_str(), words(&g, spec, &r.matches), rule_words(r, &spec.conntrack)));
    let default = (None, DEFAULT_RULE, "any".to_owned(), action_word(spec.default).to_owned());
    for (position, name, matches, action) in filter.chain([default]) {
        let total = totals.get(name);
        all.push(wire::Rule {
            hook: "filter".into(),
            position,
            name: name.into(),
            matches,
            action,
            packets: total.map(|t| t.packets),
            bytes: total.map(|t| t.bytes),
        });
    }
    Json(all)
}

pub async fn nat(State(g): Shared) -> Json<Vec<wire::Nat>> {
    let config = g.config();
    let totals: BTreeMap<String, _> = g.ledger.lock().nat_totals().into_iter().collect();
    let all = config.policy.nat.iter().enumerate().map(|(i, r)| {
        let total = totals.get(&r.name).copied().unwrap_or_default();
        wire::Nat {
            position: i + 1,
            name: r.name.clone(),
            kind: kind_word(&r.kind).into(),
            matches: words(&g, &config.policy, &r.matches),
            to: nat_words(r),
            connections: total.connections,
            failures: total.failures,
        }
    });
    Json(all.collect())
}

pub async fn routes(State(g): Shared) -> Json<Vec<wire::Route>> {
    let config = g.config();
    let Some(kernel) = &g.kernel else { return Json(Vec::new()) };
    let state = kernel.state.read();
    let all = state.routes().map(|(r, target)| {
        let (kind, interface, via) = match target {
            RouteTarget::Via { interface, gateway } => ("unicast", Some(interface), gateway),
            RouteTarget::Blackhole => ("blackhole", None, None),
            RouteTarget::Unreachable => ("unreachable", None, None),
            RouteTarget::Prohibit => ("prohibit", None, None),
        };
        wire::Route {
            to: r.prefix,
            via,
            interface: interface.and_then(|i| Some(config.interfaces.get(usize::from(i))?.name.clone())),
            kind: kind.into(),
            metric: r.metric,
            protocol: protocol_name(r.protocol),
        }
    });
    Json(all.collect())
}

pub async fn neighbours(State(g): Shared) -> Json<Vec<wire::Neighbour>> {
    let config = g.config();
    let Some(kernel) = &g.kernel else { return Json(Vec::new()) };
    let state = kernel.state.read();
    let all = state.neighbours().map(|(interface, address, n)| wire::Neighbour {
        address,
        interface: config.interfaces.get(usize::from(interface)).map(|i| i.name.clone()).unwrap_or_default(),
        mac: n.mac.map(mac_text),
        state: n.state.to_string(),
    });
    Json(all.collect())
}

pub async fn sets(State(g): Shared) -> Json<Vec<wire::Set>> {
    let config = g.config();
    let all = config.sets.iter().map(|(name, set)| wire::Set {
        name: name.clone(),
        ipv4_ranges: set.intervals_v4().count(),
        ipv6_ranges: set.intervals_v6().count(),
    });
    Json(all.collect())
}

pub async fn workers(State(g): Shared) -> Json<Vec<wire::Worker>> {
    Json(all_workers(&g))
}

pub async fn latency(State(g): Shared) -> Json<wire::Latency> {
    Json(crate::latency::latency(&g, false))
}

pub async fn latency_reset(State(g): Shared) -> Json<wire::Latency> {
    Json(crate::latency::latency(&g, true))
}

pub fn all_workers(g: &Gateway) -> Vec<wire::Worker> {
    let all = g.workers.stats().zip(g.workers.cpus()).enumerate().map(|(worker, (s, cpu))| {
        let (busy, idle) = (s.busy_ns.value() as f64, s.idle_ns.value() as f64);
        let labelled = |label: &str, value: u64| (label.to_owned(), value);
        wire::Worker {
            worker,
            cpu,
            busy: if busy + idle > 0.0 { busy / (busy + idle) } else { 0.0 },
            connections: s.conntrack_entries.value(),
            limit: g.workers.limit_per_worker() as u64,
            signposts: s.signposts.value(),
            handovers: HandoverCause::ALL
                .iter()
                .zip(&s.handovers)
                .map(|(c, n)| labelled(c.label(), n.value()))
                .collect(),
            classified: CtState::ALL
                .iter()
                .zip(&s.classified)
                .map(|(c, [original, reply])| labelled(c.label(), original.value() + reply.value()))
                .collect(),
            events: CtEvent::ALL.iter().zip(&s.ct_events).map(|(e, n)| labelled(e.label(), n.value())).collect(),
            nat_failures: s.nat_failures.value(),
            expectations: s.expectations.value(),
            events_lost: s.events_lost.value(),
            drops: DropReason::ALL
                .iter()
                .zip(&s.drops)
                .filter(|(_, n)| n.value() > 0)
                .map(|(r, n)| labelled(r.label(), n.value()))
                .collect(),
        }
    });
    all.collect()
}

fn words(g: &Gateway, spec: &PolicySpec, m: &Match) -> String {
    let config = g.config();
    let names: Vec<&str> = config.interfaces.iter().map(|i| i.name.as_str()).collect();
    let set_name = |set: &std::sync::Arc<dataplane::api::policy::AddrSet>| {
        config.sets.iter().find(|(_, s)| std::sync::Arc::ptr_eq(s, set)).map(|(name, _)| name.clone())
    };
    match_words(m, &spec.zones, &names, set_name)
}

/// A MAC address as people write it.
fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
