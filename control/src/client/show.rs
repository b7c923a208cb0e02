//! Answers as people read them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::table::{self, Align::Left, Align::Right};
use crate::api::wire;

/// `status`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn status(out: &mut impl Write, s: &wire::Status) -> io::Result<()> {
    let wire::Status { version, dpdk, pid, generation, workers, interfaces, interfaces_up, .. } = s;
    let pages = if s.hugepages { "huge pages" } else { "ordinary pages" };
    writeln!(out, "sluiced {version} (DPDK {dpdk}), pid {pid}, up {}", duration(s.uptime_seconds))?;
    writeln!(out, "policy generation {generation} from {}", s.config.display())?;
    writeln!(out, "{workers} workers in {pages}, {interfaces_up} of {interfaces} interfaces up")?;
    writeln!(out, "{} of {} connections", s.connections, s.connections_limit)
}

/// `reload`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn reloaded(out: &mut impl Write, r: &wire::Reloaded) -> io::Result<()> {
    write!(out, "policy generation {} is in force after {:.1} ms", r.generation, r.seconds * 1e3)?;
    if let Some(connections) = &r.connections {
        write!(out, "; {connections}")?;
    }
    writeln!(out)
}

/// `show interfaces`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn interfaces(out: &mut impl Write, all: &[wire::Interface]) -> io::Result<()> {
    let head = [
        ("NAME", Left),
        ("ZONE", Left),
        ("LINK", Left),
        ("MAC", Left),
        ("MTU", Right),
        ("VLAN", Right),
        ("DRIVER", Left),
        ("RSS", Left),
        ("RX PACKETS", Right),
        ("RX BYTES", Right),
        ("TX PACKETS", Right),
        ("TX BYTES", Right),
        ("ADDRESSES", Left),
    ];
    let rows = all.iter().map(|i| {
        let link = match (i.up, i.speed_mbps) {
            (false, _) => "down".to_owned(),
            (true, 0) => "up".to_owned(),
            (true, mbps) => format!("{mbps} Mbit/s"),
        };
        let addresses: Vec<String> = i.addresses.iter().map(ToString::to_string).collect();
        vec![
            i.name.clone(),
            i.zone.clone(),
            link,
            i.mac.clone(),
            i.mtu.to_string(),
            i.vlan.map_or_else(|| "-".into(), |v| v.to_string()),
            i.driver.clone(),
            (if i.rss { "yes" } else { "no" }).into(),
            i.rx_packets.to_string(),
            i.rx_bytes.to_string(),
            i.tx_packets.to_string(),
            i.tx_bytes.to_string(),
            addresses.join(" "),
        ]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show rules`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn rules(out: &mut impl Write, all: &[wire::Rule]) -> io::Result<()> {
    let head = [
        ("#", Right),
        ("HOOK", Left),
        ("NAME", Left),
        ("PACKETS", Right),
        ("BYTES", Right),
        ("ACTION", Left),
        ("MATCH", Left),
    ];
    let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let rows = all.iter().map(|r| {
        vec![
            r.position.map_or_else(|| "-".into(), |p| p.to_string()),
            r.hook.clone(),
            r.name.clone(),
            number(r.packets),
            number(r.bytes),
            r.action.clone(),
            r.matches.clone(),
        ]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show nat`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn nat(out: &mut impl Write, all: &[wire::Nat]) -> io::Result<()> {
    let head = [
        ("#", Right),
        ("NAME", Left),
        ("TYPE", Left),
        ("CONNECTIONS", Right),
        ("FAILURES", Right),
        ("MATCH", Left),
        ("TO", Left),
    ];
    let rows = all.iter().map(|r| {
        vec![
            r.position.to_string(),
            r.name.clone(),
            r.kind.clone(),
            r.connections.to_string(),
            r.failures.to_string(),
            r.matches.clone(),
            r.to.clone(),
        ]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show routes`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn routes(out: &mut impl Write, all: &[wire::Route]) -> io::Result<()> {
    let head =
        [("TO", Left), ("TYPE", Left), ("VIA", Left), ("INTERFACE", Left), ("METRIC", Right), ("PROTOCOL", Left)];
    let rows = all.iter().map(|r| {
        vec![
            if r.to.prefix_len() == 0 { "default".into() } else { r.to.to_string() },
            r.kind.clone(),
            r.via.map_or_else(|| "-".into(), |v| v.to_string()),
            r.interface.clone().unwrap_or_else(|| "-".into()),
            r.metric.to_string(),
            r.protocol.clone(),
        ]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show neighbours`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn neighbours(out: &mut impl Write, all: &[wire::Neighbour]) -> io::Result<()> {
    let head = [("ADDRESS", Left), ("INTERFACE", Left), ("MAC", Left), ("STATE", Left)];
    let rows = all.iter().map(|n| {
        let mac = n.mac.clone().unwrap_or_else(|| "-".into());
        vec![n.address.to_string(), n.interface.clone(), mac, n.state.clone()]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show sets`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn sets(out: &mut impl Write, all: &[wire::Set]) -> io::Result<()> {
    let head = [("NAME", Left), ("IPV4 RANGES", Right), ("IPV6 RANGES", Right)];
    let rows = all.iter().map(|s| vec![s.name.clone(), s.ipv4_ranges.to_string(), s.ipv6_ranges.to_string()]);
    table::write(out, &head, &rows.collect::<Vec<_>>())
}

/// `show workers`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn workers(out: &mut impl Write, all: &[wire::Worker]) -> io::Result<()> {
    let head = [
        ("WORKER", Right),
        ("CPU", Right),
        ("BUSY", Right),
        ("CONNECTIONS", Right),
        ("LIMIT", Right),
        ("SIGNPOSTS", Right),
        ("HANDED OVER", Right),
        ("DROPPED", Right),
    ];
    let rows = all.iter().map(|w| {
        vec![
            w.worker.to_string(),
            w.cpu.to_string(),
            format!("{:.1} %", w.busy * 100.0),
            w.connections.to_string(),
            w.limit.to_string(),
            w.signposts.to_string(),
            w.handovers.values().sum::<u64>().to_string(),
            w.drops.values().sum::<u64>().to_string(),
        ]
    });
    table::write(out, &head, &rows.collect::<Vec<_>>())?;
    for w in all {
        for (reason, n) in &w.drops {
            writeln!(out, "worker {} dropped {n}: {reason}", w.worker)?;
        }
    }
    Ok(())
}

/// `show latency`: two lines per worker, and two of all.
///
/// # Errors
/// Where `out` cannot be written.
pub fn latency(out: &mut impl Write, l: &wire::Latency) -> io::Result<()> {
    let head = [
        ("WORKER", Left),
        ("TIME", Left),
        ("COUNT", Right),
        ("MIN µs", Right),
        ("P50 µs", Right),
        ("P90 µs", Right),
        ("P99 µs", Right),
        ("P99.9 µs", Right),
        ("P99.99 µs", Right),
        ("MAX µs", Right),
    ];
    let row = |name: &str, time: &str, q: &wire::Quantiles| {
        let quantiles = [q.min_us, q.p50_us, q.p90_us, q.p99_us, q.p999_us, q.p9999_us, q.max_us];
        let quantiles = quantiles.map(|us| us.map_or_else(|| "-".into(), |us| format!("{us:.1}")));
        [vec![name.to_owned(), time.to_owned(), q.count.to_string()], quantiles.into()].concat()
    };
    let of = |name: String, t: &wire::Times| [row(&name, "burst", &t.burst), row(&name, "packet", &t.packet)];
    let workers = l.workers.iter().flat_map(|w| of(w.worker.to_string(), &w.times));
    table::write(out, &head, &workers.chain(of("all".into(), &l.total)).collect::<Vec<_>>())?;
    writeln!(out, "counted for {}", duration(l.seconds))
}

/// `conntrack stats`: a line per worker, the words of `conntrack -S` first.
///
/// # Errors
/// Where `out` cannot be written.
pub fn conntrack_stats(out: &mut impl Write, all: &[wire::Worker]) -> io::Result<()> {
    for w in all {
        let of = |map: &BTreeMap<String, u64>, names: &[&str]| names.iter().filter_map(|n| map.get(*n)).sum::<u64>();
        let kernel = [
            ("found", of(&w.classified, &["established", "related"])),
            ("invalid", of(&w.classified, &["invalid"])),
            ("insert", of(&w.events, &["new"])),
            ("insert_failed", of(&w.drops, &["nat_clash", "signpost_clash", "signpost_full"])),
            ("drop", of(&w.drops, &["conntrack_full"])),
            ("early_drop", of(&w.events, &["early_drop"])),
            ("error", of(&w.drops, ERRORS)),
        ];
        write!(out, "worker={}", w.worker)?;
        for (name, n) in kernel {
            write!(out, " {name}={n}")?;
        }
        write!(out, " entries={} limit={} signposts={}", w.connections, w.limit, w.signposts)?;
        write!(out, " expectations={} nat_failures={}", w.expectations, w.nat_failures)?;
        for (name, n) in w.events.iter().filter(|(name, _)| !["new", "early_drop"].contains(&name.as_str())) {
            write!(out, " {name}={n}")?;
        }
        writeln!(out, " events_lost={}", w.events_lost)?;
    }
    Ok(())
}

/// Reasons for which the kernel's protocols count an error.
const ERRORS: &[&str] =
    &["invalid_checksum", "invalid_length", "invalid_icmp_type", "invalid_no_parent", "invalid_no_request"];

fn duration(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, m) => format!("{m} min {} s", whole % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(0.4), "0 s");
        assert_eq!(duration(59.9), "59 s");
        assert_eq!(duration(3599.0), "59 min 59 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
        assert_eq!(duration(90_000.0), "1 d 1 h");
    }
}
