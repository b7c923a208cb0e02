//! `interfaces`, `routes`, `neighbours`.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::api::launch::InterfaceConfig;
use dataplane::api::policy::{MAX_ZONES, Mss, ZoneId};
use ipnet::IpNet;

use super::super::address::{is_unicast, prefix};
use super::super::error::quoted;
use super::super::node::{Key, Node, Value};
use super::super::reader::{Reader, decimal, words};
use super::super::schema;
use super::super::{Interface, StaticNeighbour, StaticRoute};
use super::{NAME, Names, is_name};

/// Segments that `mss` may be: as in `linux/include/net/tcp.h`, `TCP_MIN_MSS`, the smallest one has 8 bytes left beside 40
/// bytes of IP options and 40 of TCP's; the largest is what an IPv4 packet holds without either.
const MSS: std::ops::RangeInclusive<u16> = 88..=65_495;

/// Most interfaces: DPDK as Debian builds it has 32 ports.
const MAX_INTERFACES: usize = 32;

/// Most addresses of one interface.
const MAX_ADDRESSES: usize = 256;

/// Reads `interfaces` into `names`, and what the dataplane needs of them.
pub fn interfaces<'y>(node: &'y Node, reader: &Reader<'y>, names: &mut Names) -> Vec<InterfaceConfig> {
    let entries = reader.entries(node, "a mapping of interface names");
    if let (Value::Null, _) | (Value::Map(_), []) = (&node.value, entries) {
        reader.refuse(node, "has no interfaces; accepted: at least one");
    }
    if entries.len() > MAX_INTERFACES {
        let count = entries.len();
        reader.refuse(node, format_args!("has {count} interfaces; accepted: at most {MAX_INTERFACES}"));
        return Vec::new();
    }
    let mut launch: Vec<InterfaceConfig> = Vec::new();
    for (key, node) in entries {
        check_interface_name(node, key, reader);
        let section = schema::Interface::read(node, reader);
        let device = reader.required(node, "device", section.device).and_then(|n| device(n, reader, &launch));
        let zone = reader.required(node, "zone", section.zone).and_then(|n| zone(n, reader, names));
        let mtu = section.mtu.and_then(|n| reader.number(n, 1280..=9000_u16)).unwrap_or(1500);
        let vlan = section.vlan.and_then(|n| reader.number(n, 1..=4094_u16));
        let ct_zone = section.ct_zone.and_then(|n| reader.number(n, 1..=u16::MAX)).unwrap_or(0);
        let mss = section.mss.and_then(|n| mss(n, reader));
        let addresses = section.addresses.map(|n| addresses(n, reader, names)).unwrap_or_default();
        launch.push(InterfaceConfig {
            name: key.text.clone(),
            device: device.unwrap_or_default().to_owned(),
            mtu,
            vlan,
        });
        names.interfaces.push(Interface {
            name: key.text.clone(),
            zone: zone.unwrap_or(ZoneId::LOCAL),
            addresses,
            mtu,
        });
        names.ct_zones.push(ct_zone);
        names.mss.push(mss);
    }
    launch
}

/// `linux/net/core/dev.c`, `dev_valid_name`; `%` would be a pattern to the kernel, and sysctl has `all` and `default`.
fn check_interface_name(node: &Node, key: &Key, reader: &Reader<'_>) {
    let name = &key.text;
    let reserved = [".", "..", "lo", "all", "default"].contains(&name.as_str());
    let legal = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
    if name.is_empty() || name.len() > 15 || reserved || !name.chars().all(legal) {
        let message = format!(
            "{} cannot name an interface; accepted: 1 to 15 visible ASCII characters without / : %, \
             other than . .. lo all default",
            quoted(name)
        );
        reader.refuse_key(node, key, message);
    }
}

fn mss<'y>(node: &'y Node, reader: &Reader<'y>) -> Option<Mss> {
    let accepted = format!("auto, or a number from {} to {}", MSS.start(), MSS.end());
    let number = |text: &str| u16::try_from(decimal(text)?).ok().filter(|n| MSS.contains(n)).map(Mss::Fixed);
    reader.parsed(node, accepted, |text| if text == "auto" { Some(Mss::Auto) } else { number(text) })
}

/// A device that no interface before has: PCI address, vdev, or `bus:device` of another bus of DPDK.
fn device<'y>(node: &'y Node, reader: &Reader<'y>, before: &[InterfaceConfig]) -> Option<&'y str> {
    let accepted = r#"a PCI address such as "0000:3b:00.0" or a DPDK vdev such as "net_tap0,iface=dtap0""#;
    let text = reader.text(node, accepted)?;
    let Some(id) = device_id(text) else {
        reader.refuse_value(node, text, "is not a DPDK device", accepted);
        return None;
    };
    if let Some(other) = before.iter().find(|i| device_id(&i.device).as_ref() == Some(&id)) {
        let why = format!("is the device of interface {} already", other.name);
        reader.refuse_value(
            node,
            text,
            &why,
            "each device once; vdevs differ in their number, as net_tap0 and net_tap1",
        );
    }
    Some(text)
}

/// The part of a device's text that tells it from others, in one spelling.
fn device_id(text: &str) -> Option<String> {
    let id = text.split(',').next().unwrap_or_default();
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return None;
    }
    if let Some(pci) = pci_address(id.strip_prefix("pci:").unwrap_or(id)) {
        return Some(pci);
    }
    let words = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b));
    let vdev = ["net_", "eth_"].iter().any(|p| id.strip_prefix(p).is_some_and(|rest| !rest.is_empty()));
    let bus = ["auxiliary:", "vmbus:", "fslmc:", "vdev:", "dpaa:"].iter().any(|p| id.starts_with(p));
    ((vdev || bus) && words(id)).then(|| id.to_owned())
}

/// `[domain:]bus:device.function`, with the domain and in lower case.
fn pci_address(text: &str) -> Option<String> {
    let hex =
        |text: &str, max: usize| !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (rest, function) = text.split_once('.')?;
    let mut parts = rest.rsplit(':');
    let (device, bus, domain) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0000"));
    let legal = parts.next().is_none()
        && hex(device, 2)
        && hex(bus, 2)
        && hex(domain, 8)
        && matches!(function.as_bytes(), [b'0'..=b'7']);
    legal.then(|| format!("{domain:0>4}:{bus:0>2}:{device:0>2}.{function}").to_ascii_lowercase())
}

fn zone<'y>(node: &'y Node, reader: &Reader<'y>, names: &mut Names) -> Option<ZoneId> {
    let text = reader.text(node, format_args!("the name of a zone: {NAME}"))?;
    if text == "local" || text == "any" {
        let accepted = "another name; local is the gateway itself, any is every zone";
        reader.refuse_value(node, text, "is not a zone of interfaces", accepted);
        return None;
    }
    if !is_name(text) {
        reader.refuse_value(node, text, "cannot name a zone", NAME);
        return None;
    }
    let index = names.zones.iter().position(|z| z == text).unwrap_or_else(|| {
        names.zones.push(text.to_owned());
        names.zones.len() - 1
    });
    if index >= MAX_ZONES {
        reader.refuse_value(node, text, "is one zone too many", format!("at most {}", MAX_ZONES - 1));
        return None;
    }
    u8::try_from(index).ok().map(ZoneId)
}

fn addresses<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Vec<IpNet> {
    let accepted = "an address with its prefix length, such as 192.0.2.1/24";
    let mut own: Vec<IpNet> = Vec::new();
    let items = reader.items(node, &format!("a list, each {accepted}"));
    if items.len() > MAX_ADDRESSES {
        reader.refuse(node, format_args!("has {} addresses; accepted: at most {MAX_ADDRESSES}", items.len()));
        return own;
    }
    for item in items {
        let Some(text) = reader.text(item, accepted) else { continue };
        let Ok(net) = text.parse::<IpNet>() else {
            reader.refuse_value(item, text, "is not an address with a prefix length", accepted);
            continue;
        };
        if let Some(why) = unfit_for_host(net) {
            reader.refuse_value(item, text, why, "an address that a host can have");
            continue;
        }
        if own.iter().any(|n| n.addr() == net.addr()) {
            reader.refuse_value(item, text, "is given twice", "each address once");
            continue;
        }
        let clash = names.interfaces.iter().find_map(|i| {
            let with = i.addresses.iter().find(|n| overlap(n, &net) && !is_link_local(net.addr()))?;
            Some(format!("overlaps {with} of interface {}", i.name))
        });
        if let Some(why) = clash {
            reader.refuse_value(item, text, &why, "subnets that are on one interface only");
        }
        own.push(net);
    }
    own
}

fn unfit_for_host(net: IpNet) -> Option<&'static str> {
    if !is_unicast(net.addr()) {
        return Some("is not a unicast address");
    }
    match net {
        IpNet::V4(n) if n.prefix_len() == 0 => Some("covers everything"),
        IpNet::V6(n) if n.prefix_len() == 0 => Some("covers everything"),
        IpNet::V4(n) if n.prefix_len() < 31 && n.addr() == n.network() => Some("is the address of the subnet"),
        IpNet::V4(n) if n.prefix_len() < 31 && n.addr() == n.broadcast() => {
            Some("is the broadcast address of the subnet")
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Index of the interface that `node` names.
pub fn interface<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Option<u16> {
    let known = || words(names.interfaces.iter().map(|i| i.name.as_str()));
    let text = reader.text(node, format_args!("the name of an interface: {}", known()))?;
    let index = names.interfaces.iter().position(|i| i.name == text);
    if index.is_none() {
        reader.refuse_value(node, text, "is not an interface", known());
    }
    index.and_then(|i| u16::try_from(i).ok())
}

/// The interface that has `address` on its link, and whether it is the gateway's own.
fn on_link(address: IpAddr, names: &Names) -> Option<(u16, bool)> {
    let own = |i: &Interface| i.addresses.iter().any(|n| n.addr() == address);
    let index = names.interfaces.iter().position(|i| i.addresses.iter().any(|n| n.contains(&address)))?;
    Some((u16::try_from(index).ok()?, own(&names.interfaces[index])))
}

/// Reads `routes`.
pub fn routes<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Vec<StaticRoute> {
    let mut seen = HashMap::new();
    let mut routes = Vec::new();
    for item in reader.items(node, "a list of routes") {
        let Some(route) = route(item, reader, names) else { continue };
        if let Some(line) = seen.insert(route.to, item.position.0) {
            let why = format!("has a route in line {line} already");
            reader.refuse_value(item, &route.to.to_string(), &why, "one route for each prefix");
        }
        routes.push(route);
    }
    routes
}

fn route<'y>(item: &'y Node, reader: &Reader<'y>, names: &Names) -> Option<StaticRoute> {
    let section = schema::Route::read(item, reader);
    let to = reader.required(item, "to", section.to).and_then(|node| {
        let accepted = "a prefix such as 10.0.0.0/8, or 0.0.0.0/0 and ::/0 for the default routes";
        let text = reader.text(node, accepted)?;
        let refuse = |(why, better): (&str, Option<String>)| {
            reader.refuse_value(node, text, why, better.as_deref().unwrap_or(accepted));
        };
        prefix(text).map_err(refuse).ok()
    });
    let interface = section.interface.map(|node| interface(node, reader, names));
    let Some(via_node) = section.via else {
        if section.interface.is_none() {
            reader.refuse(item, r#"leads nowhere; accepted: with "via", "interface" or both"#);
        }
        return Some(StaticRoute { to: to?, via: None, interface: Some(interface??) });
    };
    let via: IpAddr = reader.parsed(via_node, "an IP address", |text| text.parse().ok())?;
    let shown = via.to_string();
    if !is_unicast(via) {
        reader.refuse_value(via_node, &shown, "is not a unicast address", "the address of a router");
        return None;
    }
    if to.is_some_and(|to| to.addr().is_ipv4() != via.is_ipv4()) {
        let accepted = "a router of the IP version of the destinations";
        reader.refuse_value(via_node, &shown, r#"and "to" mix IPv4 and IPv6"#, accepted);
        return None;
    }
    let link = if is_link_local(via) { None } else { on_link(via, names) };
    if let Some((_, true)) = link {
        reader.refuse_value(via_node, &shown, "is the gateway's own address", "the address of a router");
        return None;
    }
    let interface = match (interface, link) {
        (Some(given), Some((found, _))) if given? != found => {
            let accepted =
                format!("an address that is not on the link of {}", names.interfaces[usize::from(found)].name);
            reader.refuse_value(via_node, &shown, r#"is on another interface's link"#, accepted);
            None
        }
        (Some(given), _) => Some(given?),
        (None, Some((found, _))) => Some(found),
        (None, None) => {
            let accepted = r#"an address in a subnet of an interface, or "interface" beside it"#;
            reader.refuse_value(via_node, &shown, "is on no interface's link", accepted);
            None
        }
    };
    Some(StaticRoute { to: to?, via: Some(via), interface })
}

/// Reads `neighbours`.
pub fn neighbours<'y>(node: &'y Node, reader: &Reader<'y>, names: &Names) -> Vec<StaticNeighbour> {
    let mut seen = HashMap::new();
    let mut neighbours = Vec::new();
    for item in reader.items(node, "a list of neighbours") {
        let section = schema::Neighbour::read(item, reader);
        let interface = reader.required(item, "interface", section.interface).and_then(|n| interface(n, reader, names));
        let address = reader
            .required(item, "address", section.address)
            .and_then(|n| Some((n, reader.parsed(n, "an IP address", |text| text.parse::<IpAddr>().ok())?)));
        let mac = reader
            .required(item, "mac", section.mac)
            .and_then(|n| reader.parsed(n, r#"a unicast MAC address such as "02:00:00:00:00:0a""#, unicast_mac));
        let (Some(interface), Some((address_node, address)), Some(mac)) = (interface, address, mac) else {
            continue;
        };
        let shown = address.to_string();
        let of = &names.interfaces[usize::from(interface)];
        if !is_link_local(address) && !of.addresses.iter().any(|n| n.contains(&address)) {
            let accepted = format!("an address in {}", words_of(&of.addresses));
            let why = format!("is in no subnet of interface {}", of.name);
            reader.refuse_value(address_node, &shown, &why, accepted);
        } else if of.addresses.iter().any(|n| n.addr() == address) {
            reader.refuse_value(address_node, &shown, "is the gateway's own address", "another station's");
        } else if let Some(line) = seen.insert((interface, address), item.position.0) {
            let why = format!("has a neighbour entry in line {line} already");
            reader.refuse_value(address_node, &shown, &why, "one entry for each address");
        }
        neighbours.push(StaticNeighbour { interface, address, mac });
    }
    neighbours
}

fn words_of(nets: &[IpNet]) -> String {
    if nets.is_empty() {
        return "a link-local IPv6 address; the interface has no addresses".into();
    }
    nets.iter().map(|n| n.trunc().to_string()).collect::<Vec<_>>().join(", ")
}

fn unicast_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_one_spelling() {
        for (text, id) in [
            ("0000:3b:00.0", "0000:3b:00.0"),
            ("3B:00.0,mprq_en=1", "0000:3b:00.0"),
            ("pci:0000:3b:00.1", "0000:3b:00.1"),
            ("net_tap0,iface=dtap0", "net_tap0"),
            ("net_af_packet,iface=veth-wan", "net_af_packet"),
            ("auxiliary:mlx5_core.sf.2", "auxiliary:mlx5_core.sf.2"),
        ] {
            assert_eq!(device_id(text).as_deref(), Some(id), "{text}");
        }
        for bad in ["eth0", "", "net_", "0000:3b:00.8", "0000:3b:00", "1:2:3:4.0", "net_tap0 ,x", "3g:00.0"] {
            assert_eq!(device_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_unicast_macs_name_a_station() {
        assert_eq!(unicast_mac("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
        for bad in [
            "",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02:00:00:00:00",
            "2:0:0:0:0:a",
            "02:00:00:00:00:0a:0b",
            "02:00:00:00:00:+a",
        ] {
            assert_eq!(unicast_mac(bad), None, "{bad}");
        }
    }
}
