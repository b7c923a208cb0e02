//! Putting the YAML's part into the kernel: the twins' settings and addresses, static routes and neighbours.
//!
//! *Life-cycle*: [`bring_up`] at start, [`change`] at a reload; nothing is taken back at the end, it vanishes with the
//! twins. *Threads*: control's tokio thread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder};
use tokio::time::{Instant, sleep};

use super::{KernelError, cause, errno};
use crate::config::{Config, StaticNeighbour, StaticRoute};

/// How long a twin may take to appear after the dataplane started.
const TWIN_APPEARS: Duration = Duration::from_secs(5);

/// How long a name may be taken by an instance that is on its way out.
const NAME_FREES: Duration = Duration::from_secs(1);

/// Makes sure that no TAP of `config` is there already. One that is would not be refused but shared: a second instance
/// would take half of the first one's packets.
///
/// # Errors
/// The first name that is taken.
pub async fn names_are_free(config: &Config) -> Result<(), KernelError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
    let connection = tokio::spawn(connection);
    let deadline = Instant::now() + NAME_FREES;
    for (interface, port) in config.interfaces.iter().zip(&config.launch.interfaces) {
        for name in [Some(interface.name.as_str()), tap(&port.device)].into_iter().flatten() {
            let there = || handle.link().get().match_name(name.to_owned()).execute();
            while let Ok(Some(_)) = there().try_next().await {
                if Instant::now() >= deadline {
                    return Err(KernelError::NameTaken { name: interface.name.clone(), taken: name.to_owned() });
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
    connection.abort();
    Ok(())
}

/// The TAP that a device is.
fn tap(device: &str) -> Option<&str> {
    let (driver, arguments) = device.split_once(',')?;
    driver.starts_with("net_tap").then_some(())?;
    arguments.split(',').find_map(|a| a.strip_prefix("iface="))
}

/// Sets up every twin, then installs routes and neighbours.
///
/// # Errors
/// What the kernel refused first.
pub async fn bring_up(handle: &Handle, config: &Config) -> Result<(), KernelError> {
    for device in config.launch.interfaces.iter().map(|i| &i.device) {
        let Some(wire) = kernel_wire(device) else { continue };
        silence(wire);
        if device.contains("_af_packet") {
            // It sets PACKET_FANOUT_FLAG_DEFRAG: `dpdk/drivers/net/af_packet/rte_eth_af_packet.c`.
            tracing::warn!(
                "{wire}: the driver net_af_packet has the kernel join IPv4 fragments and then cuts what is larger than a \
                 frame: such datagrams are lost (ipv4_truncated); net_af_xdp has no such limit"
            );
        }
    }
    let mut indices = Vec::new();
    for interface in &config.interfaces {
        let ifindex = twin(handle, &interface.name).await?;
        indices.push(ifindex);
        sysctls(&interface.name, &TWIN);
        let refused = |what| {
            move |e: rtnetlink::Error| KernelError::Link { name: interface.name.clone(), what, cause: cause(&e) }
        };
        let mtu = LinkUnspec::new_with_index(ifindex).mtu(u32::from(interface.mtu)).build();
        handle.link().set(mtu).execute().await.map_err(refused("its MTU"))?;
        let up = LinkUnspec::new_with_index(ifindex).up().build();
        handle.link().set(up).execute().await.map_err(refused("bringing it up"))?;
        for &address in &interface.addresses {
            add_address(handle, ifindex, &interface.name, address).await?;
        }
    }
    for n in &config.neighbours {
        add_neighbour(handle, &indices, n).await?;
    }
    for r in &config.routes {
        add_route(handle, &indices, r).await?;
    }
    Ok(())
}

/// Makes the kernel follow from configuration `old` to `new`, which has the same interfaces.
///
/// # Errors
/// What the kernel refused first.
pub async fn change(handle: &Handle, old: &Config, new: &Config) -> Result<(), KernelError> {
    let mut indices = Vec::new();
    for interface in &new.interfaces {
        indices.push(twin(handle, &interface.name).await?);
    }
    for r in old.routes.iter().filter(|r| !new.routes.contains(r)) {
        // It may have gone with its address or by the operator's hand.
        if let Ok(message) = route_message(&indices, r) {
            drop(handle.route().del(message).execute().await);
        }
    }
    for n in old.neighbours.iter().filter(|n| !new.neighbours.contains(n)) {
        if let Some(&ifindex) = indices.get(usize::from(n.interface)) {
            drop(handle.neighbours().del(neighbour_message(ifindex, n)).execute().await);
        }
    }
    for ((was, is), &ifindex) in old.interfaces.iter().zip(&new.interfaces).zip(&indices) {
        for &address in was.addresses.iter().filter(|a| !is.addresses.contains(a)) {
            drop(handle.address().del(address_message(ifindex, address)).execute().await);
        }
        for &address in &is.addresses {
            add_address(handle, ifindex, &is.name, address).await?;
        }
    }
    for n in &new.neighbours {
        add_neighbour(handle, &indices, n).await?;
    }
    for r in &new.routes {
        add_route(handle, &indices, r).await?;
    }
    Ok(())
}

/// The kernel's index of the twin called `name`, waiting for it to appear.
async fn twin(handle: &Handle, name: &str) -> Result<u32, KernelError> {
    let deadline = Instant::now() + TWIN_APPEARS;
    loop {
        let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match found {
            Ok(Some(link)) => return Ok(link.header.index),
            _ if Instant::now() >= deadline => return Err(KernelError::NoTwin { name: name.to_owned() }),
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Settings of a twin: IP version, key, value.
const TWIN: [(&str, &str, &str); 5] = [
    ("ipv6", "disable_ipv6", "0"),
    // Addresses are usable at once: Sluice's start must not wait for duplicate address detection.
    ("ipv6", "accept_dad", "0"),
    ("ipv6", "dad_transmits", "0"),
    // Neighbour advertisements carry the router flag, and router advertisements are not followed.
    ("ipv6", "forwarding", "1"),
    // Spoofing is the workers' to judge; the kernel would refuse asymmetric paths.
    ("ipv4", "rp_filter", "0"),
];

/// Settings of a kernel interface that is a wire: the routes lead to the twins, so a strict reverse path filter refuses
/// all that the kernel sees there itself.
const WIRE: [(&str, &str, &str); 4] = [
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "arp_ignore", "8"),
    ("ipv4", "forwarding", "0"),
    ("ipv6", "disable_ipv6", "1"),
];

/// The kernel interface that a device sends and receives through, where the kernel goes on receiving there too.
fn kernel_wire(device: &str) -> Option<&str> {
    let (driver, arguments) = device.split_once(',')?;
    let shared = ["net_af_packet", "eth_af_packet", "net_af_xdp", "eth_af_xdp"];
    shared.iter().any(|d| driver.starts_with(d)).then_some(())?;
    arguments.split(',').find_map(|a| a.strip_prefix("iface="))
}

/// Keeps the kernel from receiving by itself what comes in by wire `name`. Its packet sockets get a copy only: without
/// this the kernel takes packets to the gateway's addresses, which no policy has seen, and answers for them.
fn silence(name: &str) {
    sysctls(name, &WIRE);
    let all = "/proc/sys/net/ipv4/conf/all/rp_filter";
    if std::fs::read_to_string(all).is_ok_and(|v| v.trim() == "2") {
        tracing::warn!("{all} is 2: the kernel takes packets from {name} past the policy; it should be 0 or 1");
    }
}

/// Sets an interface's settings; each only where it can be written (containers mount /proc/sys read-only).
fn sysctls(name: &str, settings: &[(&str, &str, &str)]) {
    for (version, key, value) in settings {
        let path = format!("/proc/sys/net/{version}/conf/{name}/{key}");
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() == *value => continue,
            _ => {}
        }
        if let Err(e) = std::fs::write(&path, value) {
            tracing::warn!("{path} cannot be set to {value}: {e}");
        }
    }
}

async fn add_address(handle: &Handle, ifindex: u32, name: &str, address: IpNet) -> Result<(), KernelError> {
    let mut request = handle.address().add(ifindex, address.addr(), address.prefix_len()).replace();
    *request.message_mut() = address_message(ifindex, address);
    match request.execute().await {
        Err(e) if errno(&e) != Some(nix::libc::EEXIST) => {
            Err(KernelError::Address { name: name.to_owned(), address, cause: cause(&e) })
        }
        _ => Ok(()),
    }
}

fn address_message(ifindex: u32, address: IpNet) -> AddressMessage {
    let length = address.prefix_len();
    match address.addr() {
        IpAddr::V4(a) => AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(a, length).build(),
        IpAddr::V6(a) => {
            let mut m = AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(a, length).build();
            m.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            m
        }
    }
}

async fn add_route(handle: &Handle, indices: &[u32], route: &StaticRoute) -> Result<(), KernelError> {
    let refused = |cause| KernelError::Route { to: route.to, cause };
    let message = route_message(indices, route).map_err(refused)?;
    handle.route().add(message).replace().execute().await.map_err(|e| refused(cause(&e)))
}

fn route_message(indices: &[u32], route: &StaticRoute) -> Result<RouteMessage, String> {
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.addr(), route.to.prefix_len())
        .map_err(|e| e.to_string())?;
    if let Some(via) = route.via {
        message = message.gateway(via).map_err(|e| e.to_string())?;
    } else {
        message = message.scope(netlink_packet_route::route::RouteScope::Link);
    }
    if let Some(&ifindex) = route.interface.and_then(|i| indices.get(usize::from(i))) {
        message = message.output_interface(ifindex);
    }
    Ok(message.build())
}

async fn add_neighbour(handle: &Handle, indices: &[u32], n: &StaticNeighbour) -> Result<(), KernelError> {
    let Some(&ifindex) = indices.get(usize::from(n.interface)) else { return Ok(()) };
    let request = handle.neighbours().add(ifindex, n.address).link_layer_address(&n.mac);
    let request = request.state(NeighbourState::Permanent).replace();
    request.execute().await.map_err(|e| KernelError::Neighbour { address: n.address, cause: cause(&e) })
}

fn neighbour_message(ifindex: u32, n: &StaticNeighbour) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.ifindex = ifindex;
    let (family, address) = match n.address {
        IpAddr::V4(a) => (AddressFamily::Inet, NeighbourAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, NeighbourAddress::Inet6(a)),
    };
    m.header.family = family;
    m.attributes.push(NeighbourAttribute::Destination(address));
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_of_a_device_is_its_argument() {
        assert_eq!(tap("net_tap0,iface=dlan"), Some("dlan"));
        assert_eq!(tap("net_tap1,mac=fixed,iface=dwan"), Some("dwan"));
        assert_eq!(tap("net_af_packet0,iface=eth1"), None);
    }

    #[test]
    fn only_wires_that_the_kernel_shares_are_its_interfaces() {
        assert_eq!(kernel_wire("net_af_packet0,iface=eth1,qpairs=2"), Some("eth1"));
        assert_eq!(kernel_wire("net_af_xdp,start_queue=0,iface=eth2"), Some("eth2"));
        assert_eq!(kernel_wire("net_tap0,iface=dlan"), None);
        assert_eq!(kernel_wire("0000:3b:00.0"), None);
        assert_eq!(kernel_wire("net_pcap0,iface=eth1"), None);
    }
}
