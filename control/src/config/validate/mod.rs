//! From the schema to a [`Config`]: every name resolved, every range checked.
//!
//! A value that is refused leaves a stand-in behind, so that validation can go on and name what else is wrong; the
//! configuration is handed out only where nothing was refused. Names of refused things stay known, so that one
//! mistake is one error.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use dataplane::api::launch::{DefragConfig, DefragMode, HugePages, InterfaceConfig, LaunchConfig, Poll};
use dataplane::api::policy::{AddrSet, Mss, PolicySpec};

use super::node::{Node, Value};
use super::reader::Reader;
use super::schema::{Control, Dataplane, Defrag, Document, Metrics};
use super::{Config, ControlConfig, Interface};

mod conntrack;
mod matches;
mod nat;
mod network;
mod rules;
mod sets;
mod timeouts;

/// Most workers.
const MAX_WORKERS: usize = 64;

/// EAL arguments that follow from other keys.
const OWN_EAL_ARGS: &[(&str, &str)] = &[
    ("-l", "dataplane.workers"),
    ("-c", "dataplane.workers"),
    ("-S", "dataplane.workers"),
    ("--lcores", "dataplane.workers"),
    ("--main-lcore", "dataplane.workers"),
    ("--no-huge", "dataplane.hugepages"),
    ("--vdev", "interfaces"),
    ("--file-prefix", "the instance"),
];

/// What rules refer to by name.
struct Names {
    zones: Vec<String>,
    interfaces: Vec<Interface>,
    /// By interface.
    ct_zones: Vec<u16>,
    /// By interface.
    mss: Vec<Option<Mss>>,
    timeout_policies: Vec<String>,
    sets: Vec<(String, Arc<AddrSet>)>,
    set_index: HashMap<String, usize>,
}

/// Checks the document `root`; what is wrong goes to `reader`, and the result counts only where nothing is.
pub fn document<'y>(root: &'y Node, reader: &Reader<'y>) -> Config {
    let document = Document::read(root, reader);
    let mut launch = dataplane_section(document.dataplane, reader);
    let mut names = Names {
        zones: vec!["local".into()],
        interfaces: Vec::new(),
        ct_zones: Vec::new(),
        mss: Vec::new(),
        timeout_policies: Vec::new(),
        sets: Vec::new(),
        set_index: HashMap::new(),
    };
    match document.interfaces {
        Some(node) => launch.interfaces = network::interfaces(node, reader, &mut names),
        None => reader.refuse_missing(root, "interfaces"),
    }
    let routes = document.routes.map(|node| network::routes(node, reader, &names));
    let neighbours = document.neighbours.map(|node| network::neighbours(node, reader, &names));
    if let Some(node) = document.sets {
        sets::sets(node, reader, &mut names);
    }
    let (conntrack_max, conntrack) = conntrack::conntrack(document.conntrack, reader, &names);
    names.timeout_policies = conntrack.timeout_policies.iter().map(|(name, _)| name.clone()).collect();
    launch.conntrack_max = conntrack_max;
    launch.defrag = defrag(document.defrag, reader);
    let rules = rules::Rules { reader, names: &names };
    let raw = document.raw.map(|node| rules.raw(node));
    let nat = document.nat.map(|node| rules.nat(node));
    let (default, filter) = match document.policy {
        Some(node) => rules.policy(node),
        None => {
            reader.refuse_missing(root, "policy");
            rules::NOTHING
        }
    };
    let metrics_listen = document.metrics.and_then(|node| metrics(node, reader));
    let control = control(document.control, reader);
    Config {
        launch,
        policy: PolicySpec {
            generation: 0,
            interface_zones: names.interfaces.iter().map(|i| i.zone).collect(),
            interface_ct_zones: names.ct_zones,
            interface_mss: names.mss,
            zones: names.zones,
            raw: raw.unwrap_or_default(),
            nat: nat.unwrap_or_default(),
            rules: filter,
            default,
            conntrack,
        },
        interfaces: names.interfaces,
        routes: routes.unwrap_or_default(),
        neighbours: neighbours.unwrap_or_default(),
        metrics_listen,
        control,
        sets: names.sets,
        source: reader.file().to_owned(),
    }
}

/// `dataplane`; interfaces and connections come from sections of their own.
fn dataplane_section<'y>(node: Option<&'y Node>, reader: &Reader<'y>) -> LaunchConfig {
    let mut launch = LaunchConfig {
        workers: vec![0],
        hugepages: HugePages::Auto,
        burst: 64,
        eal_args: Vec::new(),
        file_prefix: String::new(),
        interfaces: Vec::<InterfaceConfig>::new(),
        conntrack_max: 0,
        defrag: DefragConfig::default(),
        mbufs: None,
        poll: Poll::Auto,
        twins: true,
    };
    let Some(section) = node.map(|node| Dataplane::read(node, reader)) else { return launch };
    if let Some(node) = section.workers {
        launch.workers = workers(node, reader);
    }
    if let Some(node) = section.hugepages {
        let known = [("auto", HugePages::Auto), ("on", HugePages::On), ("off", HugePages::Off)];
        launch.hugepages = reader.choice(node, &known, &[]).unwrap_or(HugePages::Auto);
    }
    if let Some(node) = section.burst {
        launch.burst = usize::from(reader.number(node, 1..=64_u8).unwrap_or(64));
    }
    if let Some(node) = section.eal_args {
        let accepted = "a list of arguments";
        for item in reader.items(node, accepted) {
            let Some(text) = reader.text(item, "an argument of the EAL") else { continue };
            let own = OWN_EAL_ARGS.iter().find(|(arg, _)| {
                let rest = text.strip_prefix(arg);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('=') || arg.len() == 2)
            });
            if let Some((_, key)) = own {
                reader.refuse(item, format_args!("follows from {key}; accepted: other arguments"));
            }
            launch.eal_args.push(text.to_owned());
        }
    }
    if let Some(node) = section.poll {
        let known = [("auto", Poll::Auto), ("busy", Poll::Busy), ("adaptive", Poll::Adaptive)];
        launch.poll = reader.choice(node, &known, &[]).unwrap_or(Poll::Auto);
    }
    launch.mbufs = section.mbufs.and_then(|node| reader.number(node, 1024..=16_777_216_u32));
    launch
}

fn workers<'y>(node: &'y Node, reader: &Reader<'y>) -> Vec<usize> {
    let mut cpus = Vec::new();
    let accepted = "the CPUs of the workers, such as [1, 2]";
    if matches!(node.value, Value::Scalar(_)) {
        // `workers: 2` means two workers to one and CPU 2 to another.
        reader.refuse(node, format_args!("is not a list; accepted: {accepted}"));
        return cpus;
    }
    let items = reader.one_or_many(node, accepted);
    if items.len() > MAX_WORKERS {
        reader.refuse(node, format_args!("has {} workers; accepted: at most {MAX_WORKERS}", items.len()));
        return cpus;
    }
    for item in items {
        let Some(cpu) = reader.number(item, 0..=1023_u16).map(usize::from) else { continue };
        if cpus.contains(&cpu) {
            reader.refuse_value(item, &cpu.to_string(), "is given twice", "each CPU once");
        }
        cpus.push(cpu);
    }
    cpus
}

/// `defrag`: the largest datagram in the most fragments must find room, and a gateway is no host's memory.
fn defrag<'y>(node: Option<&'y Node>, reader: &Reader<'y>) -> DefragConfig {
    let mut defrag = DefragConfig::default();
    let Some(section) = node.map(|node| Defrag::read(node, reader)) else { return defrag };
    if let Some(n) = section.memory.and_then(|node| reader.number(node, 1 << 20..=1_u64 << 30)) {
        defrag.memory = usize::try_from(n).unwrap_or(defrag.memory);
    }
    let modes = [("reassemble", DefragMode::Reassemble), ("virtual", DefragMode::Virtual)];
    if let Some(mode) = section.mode.and_then(|node| reader.choice(node, &modes, &[])) {
        defrag.mode = mode;
    }
    defrag
}

fn metrics<'y>(node: &'y Node, reader: &Reader<'y>) -> Option<SocketAddr> {
    let section = Metrics::read(node, reader);
    let listen = reader.required(node, "listen", section.listen)?;
    let accepted = "an address and a port such as 127.0.0.1:9477 or [::1]:9477";
    reader.parsed(listen, accepted, |text| text.parse().ok().filter(|a: &SocketAddr| a.port() != 0))
}

fn control<'y>(node: Option<&'y Node>, reader: &Reader<'y>) -> ControlConfig {
    let mut control = ControlConfig { socket: PathBuf::from("/run/sluice/sluice.sock"), group: None };
    let Some(section) = node.map(|node| Control::read(node, reader)) else { return control };
    if let Some(node) = section.socket {
        // unix(7): sun_path holds 108 bytes with its end.
        let accepted = "an absolute path of at most 107 bytes";
        let is_path = |text: &str| text.starts_with('/') && text.len() <= 107 && !text.contains('\0');
        if let Some(path) = reader.parsed(node, accepted, |text| is_path(text).then(|| text.into())) {
            control.socket = path;
        }
    }
    if let Some(node) = section.group {
        // groupadd(8): letters, digits, `_`, `-`, `.`; at most 32.
        let is_group = |text: &str| {
            text.len() <= 32
                && !text.starts_with('-')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        control.group = reader.parsed(node, "the name of a group", |text| is_group(text).then(|| text.to_owned()));
    }
    control
}

/// Whether `text` can name a rule, a set or a zone: letters, digits, `_`, `-`, `.`, at most 63, a letter or digit
/// first.
fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// What [`is_name`] accepts.
const NAME: &str = "letters, digits, _ - . and a letter or digit first, at most 63";
