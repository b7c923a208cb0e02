//! What Prometheus scrapes: the workers' counters, added up when asked and not before.
//!
//! Every label value that can be is there from the start with zero, so that alerts never wait for a first event.
//! *Threads*: control's tokio thread, reading counters that the workers write. *Limits*: labels are interfaces, workers,
//! rules, fixed words and the addresses that the policy translates to: never an address of a packet.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use dataplane::api::DropReason;
use dataplane::api::histogram::Histogram;
use dataplane::api::policy::CtState;
use dataplane::api::stats::{
    Counter, CtEvent, FragmentResult, HandoverCause, IcmpErrorKind, NAT_PROTOCOLS, PortCounters, WorkerStats,
};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::alarm::{self, LEVELS};
use crate::gateway::{Gateway, VERSION};
use crate::leases::{self, Ports};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics in Prometheus's text format.
///
/// # Errors
/// Where the encoder refuses a family, which none gives reason to.
pub fn render(gateway: &Gateway) -> Result<String, prometheus::Error> {
    let mut f = Families::default();
    traffic(&mut f, gateway);
    fragments(&mut f, gateway);
    tracking(&mut f, gateway);
    nat_rules(&mut f, gateway);
    nat_ports(&mut f, gateway);
    policy(&mut f, gateway);
    process(&mut f, gateway);
    // A family without a sample (no address is translated to) is left out: the encoder refuses it.
    f.0.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new().encode(&f.0, &mut text)?;
    // Go reads "inf" as it is written here, but the format's own word is another.
    Ok(String::from_utf8_lossy(&text).replace(" inf\n", " +Inf\n"))
}

fn traffic(f: &mut Families, g: &Gateway) {
    let config = g.config();
    let wire =
        |i: usize, of: fn(&PortCounters) -> &Counter| sum(g, |s| s.ports.get(2 * i).map_or(0, |p| of(p).value()));
    let mut packets = f.counter("sluice_packets_total", "Frames received from and sent to the wire.");
    for (i, interface) in config.interfaces.iter().enumerate() {
        packets.add(&[("interface", &interface.name), ("direction", "rx")], wire(i, |p| &p.rx_packets));
        packets.add(&[("interface", &interface.name), ("direction", "tx")], wire(i, |p| &p.tx_packets));
    }
    let mut bytes = f.counter("sluice_bytes_total", "Bytes of those frames, Ethernet header included.");
    for (i, interface) in config.interfaces.iter().enumerate() {
        bytes.add(&[("interface", &interface.name), ("direction", "rx")], wire(i, |p| &p.rx_bytes));
        bytes.add(&[("interface", &interface.name), ("direction", "tx")], wire(i, |p| &p.tx_bytes));
    }
    let mut drops = f.counter("sluice_dropped_packets_total", "Packets dropped, by reason (docs/DROPS.md).");
    for (i, reason) in DropReason::ALL.iter().enumerate() {
        drops.add(&[("reason", reason.label())], sum(g, |s| s.drops[i].value()));
    }
    let mut errors =
        f.counter("sluice_icmp_errors_total", "ICMP errors that the gateway made, or suppressed by rate limit.");
    for (i, kind) in IcmpErrorKind::ALL.iter().enumerate() {
        errors.add(&[("kind", kind.label())], sum(g, |s| s.icmp_errors[i].value()));
    }
    let mut up = f.gauge("sluice_interface_up", "Whether the interface has a carrier.");
    for (i, interface) in config.interfaces.iter().enumerate() {
        up.add(&[("interface", &interface.name)], u64::from(g.interface_up(i)));
    }
    let mut handover = f.counter("sluice_handover_packets_total", "Packets given to another worker, by cause.");
    for (i, cause) in HandoverCause::ALL.iter().enumerate() {
        handover.add(&[("cause", cause.label())], sum(g, |s| s.handovers[i].value()));
    }
    let mut rss = f.counter(
        "sluice_rss_mismatches_total",
        "Port queues found to hash otherwise than asked, steered in software since.",
    );
    rss.add(&[], sum(g, |s| s.rss_mismatches.value()));
    let mut fast = f.counter(
        "sluice_fastpath_packets_total",
        "Packets of known connections that were carried out from what was cached for them, without any other look.",
    );
    fast.add(&[], sum(g, |s| s.fast_packets.value()));
}

fn fragments(f: &mut Families, g: &Gateway) {
    let mut total =
        f.counter("sluice_fragments_total", "Fragments received that wait no longer, by what became of them.");
    for (i, result) in FragmentResult::ALL.iter().enumerate() {
        total.add(&[("result", result.label())], sum(g, |s| s.fragments[i].value()));
    }
    let mut queues = f.gauge("sluice_fragment_queues", "Datagrams of which the worker waits for fragments.");
    for (name, s) in named_workers(g) {
        queues.add(&[("worker", &name)], s.fragment_queues.value());
    }
    let mut memory = f.gauge("sluice_fragment_memory_bytes", "Bytes that they occupy, whole packet buffers counted.");
    for (name, s) in named_workers(g) {
        memory.add(&[("worker", &name)], s.fragment_memory.value());
    }
    let mut mark = f.gauge("sluice_fragment_memory_limit_bytes", "Most bytes that they may occupy, per worker.");
    mark.add(&[], g.config().launch.defrag.memory as u64);
}

fn tracking(f: &mut Families, g: &Gateway) {
    let mut entries = f.gauge("sluice_conntrack_entries", "Connections in the worker's table.");
    for (name, s) in named_workers(g) {
        entries.add(&[("worker", &name)], s.conntrack_entries.value());
    }
    let limit = g.workers.limit_per_worker().saturating_mul(g.workers.len());
    f.gauge("sluice_conntrack_limit", "Most connections, all workers together.").add(&[], limit as u64);
    let mut alarm = f.gauge(
        "sluice_conntrack_alarm",
        "Whether some worker has filled so many percent of its share of the limit, or all that is not reserved.",
    );
    for (level, reached) in LEVELS.into_iter().zip(alarm::levels(g)) {
        alarm.add(&[("level", level)], reached.into());
    }
    let mut expectations = f.gauge("sluice_conntrack_expectations", "Connections that the worker's helpers expect.");
    for (name, s) in named_workers(g) {
        expectations.add(&[("worker", &name)], s.expectations.value());
    }
    let mut listeners = f.gauge("sluice_conntrack_listeners", "Clients that follow changes of connections.");
    listeners.add(&[], g.workers.changes().listeners() as u64);
    let mut lost = f.counter(
        "sluice_conntrack_events_lost_total",
        "Reports of changed connections that found no room on their way to control or to a listener.",
    );
    lost.add(&[], sum(g, |s| s.events_lost.value()) + g.workers.changes().lost());
    let mut events = f.counter("sluice_conntrack_events_total", "What happened to connections.");
    for (i, event) in CtEvent::ALL.iter().enumerate() {
        events.add(&[("event", event.label())], sum(g, |s| s.ct_events[i].value()));
    }
    let mut classified =
        f.counter("sluice_classified_packets_total", "Packets by connection tracking class and direction.");
    for (i, state) in CtState::ALL.iter().enumerate() {
        for (d, direction) in ["original", "reply"].into_iter().enumerate() {
            let n = sum(g, |s| s.classified[i][d].value());
            classified.add(&[("state", state.label()), ("direction", direction)], n);
        }
    }
    let mut signposts = f.gauge("sluice_signposts", "Signposts to flows of other workers in the worker's table.");
    for (name, s) in named_workers(g) {
        signposts.add(&[("worker", &name)], s.signposts.value());
    }
}

/// What translation rules did. Failures that no rule is blamed for (a translated connection would have had another's
/// tuple) have no name, and neither have those of rules that are gone.
fn nat_rules(f: &mut Families, g: &Gateway) {
    let failures = sum(g, |s| s.nat_failures.value());
    let totals = g.ledger.lock().nat_totals();
    let blamed = totals.iter().map(|(_, t)| t.failures).fold(0, u64::wrapping_add);
    // The counters are read one after the other; this one must not be seen to go back.
    let nameless = failures.saturating_sub(blamed);
    let nameless = g.nameless_failures.fetch_max(nameless, Relaxed).max(nameless);
    let help = "Connections that the rule translated. Carried over reloads by name.";
    let mut connections = f.counter("sluice_nat_rule_connections_total", help);
    for (rule, total) in &totals {
        connections.add(&[("rule", rule)], total.connections);
    }
    let help =
        "New connections for which the rule found no port or no address; without a name, for which there was none.";
    let mut family = f.counter("sluice_nat_failures_total", help);
    for (rule, total) in &totals {
        family.add(&[("rule", rule)], total.failures);
    }
    family.add(&[("rule", "")], nameless);
}

/// Ports of translated addresses: of those that rules name, and of those that are in use.
fn nat_ports(f: &mut Families, g: &Gateway) {
    let ports = leases::ports(g);
    let lines = || {
        let of = |(address, all): (&IpAddr, &leases::PerProto<Ports>)| {
            let address = *address;
            all.map(|p| (address, p)).into_iter().enumerate()
        };
        ports.iter().flat_map(of).map(|(kind, (address, p))| (address, kind, NAT_PROTOCOLS[kind], p))
    };
    let mut family = f.gauge("sluice_nat_ports_used", "Translated source ports and identifiers in use.");
    for (address, _, proto, p) in lines() {
        family.add(&[("address", &address.to_string()), ("proto", proto)], p.used);
    }
    let help = "Ports, or identifiers, that rules may choose and no connection uses; used ones still serve other destinations.";
    let mut family = f.gauge("sluice_nat_ports_free", help);
    for (address, _, proto, p) in lines() {
        if let Some(free) = p.free {
            family.add(&[("address", &address.to_string()), ("proto", proto)], free);
        }
    }
    let help =
        "Seconds until none is free, at the net rate of use of the last ten seconds; +Inf where it does not grow.";
    let mut family = f.gauge("sluice_nat_exhaustion_seconds", help);
    for (address, kind, proto, p) in lines() {
        if let Some(free) = p.free {
            let seconds = g.leases.exhaustion_seconds(address, kind, free);
            family.add_float(&[("address", &address.to_string()), ("proto", proto)], seconds);
        }
    }
}

fn policy(f: &mut Families, g: &Gateway) {
    let totals = g.ledger.lock().totals();
    let mut packets = f.counter(
        "sluice_rule_packets_total",
        "Packets that the rule saw: decided on, or let go on. Carried over reloads by name.",
    );
    for (rule, total) in &totals {
        packets.add(&[("rule", rule)], total.packets);
    }
    let mut bytes = f.counter("sluice_rule_bytes_total", "Bytes of those packets.");
    for (rule, total) in &totals {
        bytes.add(&[("rule", rule)], total.bytes);
    }
    let mut reloads = f.counter("sluice_reloads_total", "Reloads asked for, by result.");
    for (i, result) in ["success", "failure"].into_iter().enumerate() {
        reloads.add(&[("result", result)], g.reloads[i].load(Relaxed));
    }
    let mut generation =
        f.gauge("sluice_policy_generation", "Number of the policy in force; each successful reload adds one.");
    generation.add(&[], g.publisher.generation());
}

fn process(f: &mut Families, g: &Gateway) {
    // Without a known frequency a cycle counts as a nanosecond: the ratio of busy to idle, which matters, is the same.
    let per_ns = g.tsc_hz.unwrap_or(1e9) / 1e9;
    let help = "Time stamp counter ticks that the worker spent moving packets (busy) and finding none (idle).";
    let mut cycles = f.counter("sluice_worker_cycles_total", help);
    for (name, s) in named_workers(g) {
        for (kind, ns) in [("busy", &s.busy_ns), ("idle", &s.idle_ns)] {
            cycles.add_float(&[("worker", &name), ("kind", kind)], (ns.value() as f64 * per_ns).round());
        }
    }
    f.histogram("sluice_burst_seconds", "Time from a burst's arrival to its departure.", durations(g, |s| &s.burst));
    let help = "Time of packets in the box, from the poll that received them until their burst was sent.";
    f.histogram("sluice_packet_latency_seconds", help, durations(g, |s| &s.latency));
    let mut build = f.gauge("sluice_build_info", "Always 1; the labels say what runs.");
    build.add(&[("version", VERSION), ("dpdk", &g.dpdk_version)], 1);
    let mut uptime = f.gauge("sluice_uptime_seconds", "Time since the gateway was ready.");
    uptime.add_float(&[], g.started.elapsed().as_secs_f64());
}

/// A histogram of all workers together. The bounds cut through the workers' buckets: up to 0.8 % more than a bound counts as
/// within it.
fn durations(g: &Gateway, of: fn(&WorkerStats) -> &Histogram) -> proto::Histogram {
    let mut within = [0; DURATION_BOUNDS_NS.len()];
    let mut all = 0;
    for (ns, n) in g.workers.stats().flat_map(|s| of(s).counts()) {
        all += n;
        let first = DURATION_BOUNDS_NS.partition_point(|&bound| bound < ns);
        within[first..].iter_mut().for_each(|count| *count += n);
    }
    let bucket = |(bound, count): (u64, u64)| {
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound as f64 / 1e9);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(DURATION_BOUNDS_NS.into_iter().zip(within).map(bucket).collect());
    histogram.set_sample_count(all);
    histogram.set_sample_sum(sum(g, |s| of(s).sum_ns()) as f64 / 1e9);
    histogram
}

/// Upper bounds of the histograms' buckets, nanoseconds; one more bucket takes what is above.
const DURATION_BOUNDS_NS: [u64; 12] =
    [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 512_000, 2_000_000, 10_000_000];

fn sum(g: &Gateway, of: impl Fn(&WorkerStats) -> u64) -> u64 {
    g.workers.stats().map(of).fold(0, u64::wrapping_add)
}

fn named_workers(g: &Gateway) -> impl Iterator<Item = (String, &WorkerStats)> {
    g.workers.stats().enumerate().map(|(i, s)| (i.to_string(), s))
}

/// Families under construction.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

/// One family under construction.
struct Family<'a> {
    metrics: &'a mut Vec<Metric>,
    counter: bool,
}

impl Families {
    fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        Family { metrics: self.begin(name, help, MetricType::COUNTER), counter: true }
    }

    fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        Family { metrics: self.begin(name, help, MetricType::GAUGE), counter: false }
    }

    fn histogram(&mut self, name: &str, help: &str, h: proto::Histogram) {
        let mut metric = Metric::default();
        metric.set_histogram(h);
        self.begin(name, help, MetricType::HISTOGRAM).push(metric);
    }

    fn begin(&mut self, name: &str, help: &str, kind: MetricType) -> &mut Vec<Metric> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.0.push(family);
        let last = self.0.len() - 1;
        self.0[last].mut_metric()
    }
}

impl Family<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        self.add_float(labels, value as f64);
    }

    fn add_float(&mut self, labels: &[(&str, &str)], value: f64) {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if self.counter {
            let mut c = proto::Counter::default();
            c.set_value(value);
            metric.set_counter(c);
        } else {
            let mut g = proto::Gauge::default();
            g.set_value(value);
            metric.set_gauge(g);
        }
        self.metrics.push(metric);
    }
}
