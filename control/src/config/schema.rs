//! Which keys there are: the YAML of docs/DESIGN.md section 5, mapping by mapping.
//!
//! Each struct is one mapping with its values as they stand in the tree. Reading one refuses keys that are not known
//! and says which are, and refuses those of parts that are not built (`later`) as such; what values may be is
//! [`super::validate`]'s business. A key that gets built moves from `later` to the fields.

use super::error::quoted;
use super::node::{Node, Value};
use super::reader::{Reader, words};

macro_rules! mapping {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$field_doc:meta])* $field:ident $(= $key:literal)?,)*
        }
        $(later { $($later:literal),* $(,)? })?
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<'y> {
            $($(#[$field_doc])* pub $field: Option<&'y Node>,)*
        }

        impl<'y> $name<'y> {
            /// The keys that are built.
            const KEYS: &'static [&'static str] = &[$(mapping!(@key $field $($key)?)),*];
            /// The keys of parts that are not.
            const LATER: &'static [&'static str] = &[$($($later),*)?];

            /// Reads the mapping `node`; a section that was left empty has no keys.
            pub fn read(node: &'y Node, reader: &Reader<'y>) -> Self {
                let mut mapping = Self { $($field: None,)* };
                match &node.value {
                    Value::Map(entries) => {
                        for (key, value) in entries {
                            match key.text.as_str() {
                                $(mapping!(@key $field $($key)?) => mapping.$field = Some(value),)*
                                text if Self::LATER.contains(&text) => reader.refuse_later(node, key),
                                text => reader.refuse_key(
                                    node,
                                    key,
                                    format!(
                                        "unknown key {}; accepted: {}",
                                        quoted(text),
                                        words(Self::KEYS.iter().copied())
                                    ),
                                ),
                            }
                        }
                    }
                    Value::Null => {}
                    Value::Scalar(_) | Value::Seq(_) => {
                        let keys = words(Self::KEYS.iter().copied());
                        reader.refuse(node, format_args!("is not a mapping; accepted: the keys {keys}"));
                    }
                }
                mapping
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}

/// A mapping that is a rule: what it is known by and what it matches come first wherever rules are.
macro_rules! rule {
    (
        $(#[$doc:meta])*
        $name:ident [$id:ident] { $($own:tt)* }
        later { $($later:literal),* $(,)? }
    ) => {
        mapping! {
            $(#[$doc])*
            $name {
                $id,
                from,
                to,
                source,
                destination,
                proto,
                sport,
                dport,
                icmp_type,
                tcp_flags,
                state,
                mark,
                interface_in,
                interface_out,
                $($own)*
            }
            later { "limit", "connlimit", $($later),* }
        }

        impl<'y> $name<'y> {
            /// What the rule matches.
            pub fn matches(&self) -> Matches<'y> {
                Matches {
                    from: self.from,
                    to: self.to,
                    source: self.source,
                    destination: self.destination,
                    proto: self.proto,
                    sport: self.sport,
                    dport: self.dport,
                    icmp_type: self.icmp_type,
                    tcp_flags: self.tcp_flags,
                    state: self.state,
                    mark: self.mark,
                    interface_in: self.interface_in,
                    interface_out: self.interface_out,
                }
            }
        }
    };
}

/// The match keys of a rule.
#[derive(Debug)]
pub struct Matches<'y> {
    /// Zones that the packet comes from.
    pub from: Option<&'y Node>,
    /// Zones that it goes to.
    pub to: Option<&'y Node>,
    /// Source addresses.
    pub source: Option<&'y Node>,
    /// Destination addresses.
    pub destination: Option<&'y Node>,
    /// Protocols.
    pub proto: Option<&'y Node>,
    /// Source ports.
    pub sport: Option<&'y Node>,
    /// Destination ports.
    pub dport: Option<&'y Node>,
    /// ICMP types.
    pub icmp_type: Option<&'y Node>,
    /// TCP flags.
    pub tcp_flags: Option<&'y Node>,
    /// Connection tracking classes.
    pub state: Option<&'y Node>,
    /// The connection's mark.
    pub mark: Option<&'y Node>,
    /// Interfaces that it came in by.
    pub interface_in: Option<&'y Node>,
    /// Interfaces that it leaves by.
    pub interface_out: Option<&'y Node>,
}

mapping! {
    /// The whole file.
    Document {
        dataplane,
        interfaces,
        routes,
        neighbours,
        sets,
        conntrack,
        defrag,
        raw,
        nat,
        policy,
        metrics,
        control,
    }
    later { "log", "trace", "capture" }
}

mapping! {
    /// `dataplane`: what is fixed at start.
    Dataplane {
        /// CPU of each worker.
        workers,
        /// `auto`, `on` or `off`.
        hugepages,
        /// Frames per receive.
        burst,
        /// Further arguments of the EAL.
        eal_args,
        /// Packet buffers.
        mbufs,
        /// `auto`, `busy` or `adaptive`.
        poll,
    }
}

mapping! {
    /// `interfaces.<name>`.
    Interface {
        /// PCI address or vdev.
        device,
        /// Name of its zone.
        zone,
        /// Addresses with prefix length.
        addresses,
        /// Largest IP packet, bytes.
        mtu,
        /// VLAN that all its frames carry.
        vlan,
        /// Conntrack zone of what comes in by it.
        ct_zone,
        /// `auto`, or the largest segment that a SYN through it may announce.
        mss,
    }
    later { "poll", "mac" }
}

mapping! {
    /// An item of `routes`.
    Route {
        /// Destinations.
        to,
        /// The next router.
        via,
        /// Name of the interface.
        interface,
    }
    later { "type", "metric", "table", "source" }
}

mapping! {
    /// An item of `neighbours`.
    Neighbour {
        /// Name of the interface.
        interface,
        /// Its IP address.
        address,
        /// Its MAC address.
        mac,
    }
}

mapping! {
    /// `sets.<name>`.
    Set {
        /// What it holds: `prefix`.
        kind = "type",
        /// Its members, or
        elements,
        /// a file of them.
        file,
    }
    later { "timeout", "size" }
}

mapping! {
    /// `conntrack`.
    Conntrack {
        /// Most connections.
        max,
        /// Whether checksums are verified.
        checksum,
        /// Settings of TCP.
        tcp,
        /// Idle timeouts by nf_conntrack's names.
        timeouts,
        /// Idle timeouts that rules give to their connections, by name.
        timeout_policies,
        /// Which connections a helper watches.
        helpers,
        /// Most expectations.
        expect_max,
        /// Most connections of a source or a zone.
        limits,
        /// Entries that only the gateway's own connections may take.
        reserve,
        /// Of which protocols INVALID packets are reported.
        log_invalid,
    }
}

mapping! {
    /// `conntrack.tcp`.
    Tcp {
        /// Whether a plain ACK out of nothing starts a connection.
        loose,
        /// Whether packets out of the window pass.
        be_liberal,
        /// Retransmissions after which the timeout is `tcp_max_retrans`.
        max_retrans,
    }
}

mapping! {
    /// An item of `conntrack.limits`.
    Limit {
        /// `source` or `zone`.
        per,
        /// Prefix length of an IPv4 source.
        prefix_v4,
        /// Prefix length of an IPv6 source.
        prefix_v6,
        /// Name of the zone that the connections come from.
        from,
        /// Most connections.
        max,
    }
}

mapping! {
    /// `defrag`.
    Defrag {
        /// Bytes that fragments which wait may occupy.
        memory,
        /// `reassemble` or `virtual`.
        mode,
    }
}

rule! {
    /// An item of `conntrack.helpers`.
    HelperRule [helper] {}
    later {}
}

rule! {
    /// An item of `raw`.
    RawRule [name] {
        /// `notrack`, `accept` or `drop`.
        action,
    }
    later { "log", "helper" }
}

rule! {
    /// An item of `nat`.
    NatRule [name] {
        /// What it does.
        kind = "type",
        /// New sources of snat, new destinations of dnat and twice.
        to_address,
        /// New sources of twice.
        to_source,
        /// New destination ports.
        to_port,
        /// What the prefix becomes that netmap or nptv6 replaces.
        to_prefix,
        /// New source ports.
        source_ports,
        /// `auto` or `strict`.
        preserve_port,
        /// Whether each connection gets a source port by chance.
        random,
        /// Whether a client gets one address of a pool for all it does.
        persistent,
        /// `auto` or `off`.
        hairpin,
        /// `keep` or `end`.
        on_reload,
    }
    later { "log" }
}

mapping! {
    /// `policy`.
    Policy {
        /// What happens to a packet that no rule matches.
        default,
        rules,
    }
}

rule! {
    /// An item of `policy.rules`.
    Rule [name] {
        /// `accept`, `drop` or `continue`.
        action,
        /// Whether its decisions are reported.
        log,
        /// What it sets the connection's mark to.
        set_mark,
        /// Name of the timeout policy that its connections get.
        timeout,
    }
    later { "helper" }
}

mapping! {
    /// `metrics`.
    Metrics {
        /// Address and port to scrape.
        listen,
    }
}

mapping! {
    /// `control`.
    Control {
        /// The socket's path.
        socket,
        /// The group that may use it.
        group,
    }
}
