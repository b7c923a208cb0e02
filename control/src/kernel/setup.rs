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

/// Sets up every twin, then installs routes and neighbours.
///
/// # Errors
/// What the kernel refused first.
pub async fn bring_up(handle: &Handle, config: &Config) -> Result<(), KernelError> {
    let mut indices = Vec::new();
    for interface in &config.interfaces {
        let ifindex = twin(handle, &interface.name).await?;
        indices.push(ifindex);
        sysctls(&interface.name);
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

/// Per-interface settings; each only where it can be written (containers mount /proc/sys read-only).
fn sysctls(name: &str) {
    let settings = [
        ("ipv6", "disable_ipv6", "0"),
        // Addresses are usable at once: Sluice's start must not wait for duplicate address detection.
        ("ipv6", "accept_dad", "0"),
        ("ipv6", "dad_transmits", "0"),
        // Neighbour advertisements carry the router flag, and router advertisements are not followed.
        ("ipv6", "forwarding", "1"),
        // Spoofing is the workers' to judge; the kernel would refuse asymmetric paths.
        ("ipv4", "rp_filter", "0"),
    ];
    for (version, key, value) in settings {
        let path = format!("/proc/sys/net/{version}/conf/{name}/{key}");
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => continue,
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
