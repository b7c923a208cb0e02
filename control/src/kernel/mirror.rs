//! The mirror: kernel notifications in, forwarding tables and neighbours out to the workers.
//!
//! It subscribes first and dumps second, so nothing falls between. Changes of routes and addresses are gathered for
//! `SETTLE` and then go out as one new table; neighbours go out at once, packets wait for them. When the kernel says
//! that notifications were lost, everything is dumped anew.
//!
//! *Life-cycle*: [`Mirror::start`] returns once the workers have been sent what the kernel has; [`Mirror::run`] then
//! runs until it is dropped. *Threads*: control's tokio thread; large tables are built on a helper thread.
//! *Limits*: a worker that accepts no command for [`COMMAND_TIMEOUT`] is logged and sent the table again; a neighbour's
//! entry that it missed, it asks for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::api::command::Command;
use dataplane::api::{Fib, FibSpec, NeighbourUpdate};
use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::RouteMessage;
use netlink_sys::{AsyncSocket, SocketAddr};
use parking_lot::RwLock;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::resolve::Asked;
use super::state::{Effect, State, TwinSpec};
use super::{KernelError, cause};
use crate::sweep::{self, Gone, Vanished};
#[cfg(doc)]
use crate::workers::COMMAND_TIMEOUT;
use crate::workers::{ResolveRequest, Workers};

/// How long changes are gathered: a routing daemon sends thousands in a row.
const SETTLE: Duration = Duration::from_millis(20);

/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Receive buffer asked for, bytes; the kernel's `rmem_max` may grant less.
const RECEIVE_BUFFER: u32 = 8 << 20;

/// What must be asked of the kernel before the next table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dump {
    Nothing,
    Routes,
    All,
}

type Events = futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// See the module.
pub struct Mirror {
    requests: Handle,
    events: Events,
    twins: Vec<TwinSpec>,
    state: Arc<RwLock<State>>,
    workers: Arc<Workers>,
    wishes: mpsc::Receiver<ResolveRequest>,
    nudge: Arc<Notify>,
    asked: Asked,
    /// What the workers were told of neighbours.
    sent: HashMap<(u16, IpAddr), [u8; 6]>,
    published: Option<FibSpec>,
    /// Whom to tell of addresses that went.
    gone: mpsc::UnboundedSender<Vanished>,
    due: Option<Instant>,
    dump: Dump,
}

impl Mirror {
    /// Subscribes, dumps, and sends the workers their first table and neighbours.
    ///
    /// # Errors
    /// Where netlink cannot be had or read.
    pub async fn start(
        twins: Vec<TwinSpec>,
        workers: Arc<Workers>,
        wishes: mpsc::Receiver<ResolveRequest>,
    ) -> Result<Self, KernelError> {
        let (requests, events) = subscribe()?;
        let (gone, vanished) = mpsc::unbounded_channel();
        tokio::spawn(sweep::end_with_addresses(Arc::clone(&workers), vanished));
        let mut mirror = Self {
            requests,
            events,
            state: Arc::new(RwLock::new(State::new(twins.clone()))),
            twins,
            workers,
            wishes,
            nudge: Arc::default(),
            asked: Asked::default(),
            sent: HashMap::new(),
            published: None,
            gone,
            due: None,
            dump: Dump::All,
        };
        mirror.flush().await?;
        Ok(mirror)
    }

    /// What the kernel has, for others to look at.
    pub fn state(&self) -> Arc<RwLock<State>> {
        Arc::clone(&self.state)
    }

    /// Wakes the mirror when something that it cannot see has changed in the state: a preference.
    pub fn nudge(&self) -> Arc<Notify> {
        Arc::clone(&self.nudge)
    }

    /// Mirrors until dropped.
    pub async fn run(mut self) {
        loop {
            let due = self.due;
            let settled = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.events.next() => match event {
                    Some((message, _)) => self.take(message).await,
                    None => self.reconnect().await,
                },
                () = self.nudge.notified() => self.need(Dump::Nothing),
                Some(wish) = self.wishes.recv() => self.resolve(wish).await,
                () = settled => {
                    if let Err(e) = self.flush().await {
                        tracing::error!("kernel mirror: {e}; trying again");
                        self.dump = Dump::All;
                        self.due = Some(Instant::now() + AGAIN);
                    }
                }
            }
        }
    }

    async fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                let effect = self.state.write().apply(&inner, message.header.flags);
                let Effect { fib, dump_routes, neighbour } = effect;
                if dump_routes {
                    self.need(Dump::Routes);
                } else if fib {
                    self.need(Dump::Nothing);
                }
                if let Some(update) = neighbour {
                    self.tell(update).await;
                }
            }
            NetlinkPayload::Overrun(_) => {
                tracing::warn!("kernel mirror: notifications were lost; reading all tables anew");
                self.need(Dump::All);
            }
            _ => {}
        }
    }

    fn need(&mut self, dump: Dump) {
        self.dump = self.dump.max(dump);
        self.due.get_or_insert_with(|| Instant::now() + SETTLE);
    }

    async fn reconnect(&mut self) {
        tracing::error!("kernel mirror: the netlink connection ended; opening another");
        loop {
            sleep(AGAIN).await;
            match subscribe() {
                Ok((requests, events)) => {
                    (self.requests, self.events) = (requests, events);
                    self.need(Dump::All);
                    return;
                }
                Err(e) => tracing::error!("kernel mirror: {e}"),
            }
        }
    }

    /// Dumps what must be dumped and publishes what changed.
    async fn flush(&mut self) -> Result<(), KernelError> {
        self.due = None;
        let dump = std::mem::replace(&mut self.dump, Dump::Nothing);
        if dump == Dump::All {
            let fresh = dump_all(&self.requests, self.fresh_state()).await?;
            *self.state.write() = fresh;
        } else if dump == Dump::Routes {
            let routes = dump_routes(&self.requests).await?;
            let mut state = self.state.write();
            state.forget_routes();
            for r in routes {
                state.apply(&RouteNetlinkMessage::NewRoute(r), 0);
            }
        }
        let spec = self.state.read().fib();
        if self.published.as_ref() != Some(&spec) {
            let copy = spec.clone();
            // Invariant: the closure does not panic and is not cancelled, so joining it cannot fail.
            let Ok(fib) = tokio::task::spawn_blocking(move || Arc::new(Fib::build(copy))).await else {
                return Err(KernelError::Closed);
            };
            tracing::debug!(routes = spec.routes.len(), addresses = spec.addresses.len(), "new forwarding table");
            let before = sweep::ended_with_addresses(&self.workers);
            match self.workers.broadcast(|_| Command::Fib(Arc::clone(&fib))).await {
                Ok(()) => {
                    let old = self.published.replace(spec);
                    self.tell_of_gone(old, before);
                }
                Err(e) => {
                    tracing::error!("forwarding table: {e}; sending it again");
                    self.due = Some(Instant::now() + AGAIN);
                }
            }
        }
        if dump != Dump::Nothing {
            self.sync_neighbours().await;
        }
        Ok(())
    }

    /// Has the connections of addresses ended that the forwarding table before had. The workers have got the new one.
    fn tell_of_gone(&self, old: Option<FibSpec>, before: u64) {
        let (Some(old), Some(new)) = (old, &self.published) else { return };
        let has = |&(interface, net): &(u16, IpNet)| {
            new.addresses.iter().any(|(i, n)| (*i, n.addr()) == (interface, net.addr()))
        };
        let named = |&(interface, net): &(u16, IpNet)| Gone {
            interface: self.twins.get(usize::from(interface)).map(|t| t.name.clone()).unwrap_or_default(),
            address: net.addr(),
        };
        let addresses: Vec<_> = old.addresses.iter().filter(|a| !has(a)).map(named).collect();
        if !addresses.is_empty() {
            // It fails only when control is being torn down.
            let _ = self.gone.send(Vanished { addresses, before });
        }
    }

    fn fresh_state(&self) -> State {
        let mut fresh = State::new(self.twins.clone());
        let old = self.state.read();
        for i in 0..self.twins.len() {
            fresh.prefer(i, old.preferred(i).to_vec());
        }
        fresh
    }

    /// Tells the workers what they do not know of neighbours, after a dump or a change of links.
    async fn sync_neighbours(&mut self) {
        let has: HashMap<(u16, IpAddr), [u8; 6]> =
            self.state.read().neighbours().filter_map(|(i, a, n)| Some(((i, a), n.mac?))).collect();
        let gone: Vec<_> = self.sent.keys().filter(|k| !has.contains_key(k)).copied().collect();
        for (interface, address) in gone {
            self.tell(NeighbourUpdate { interface, address, mac: None }).await;
        }
        for ((interface, address), mac) in has {
            self.tell(NeighbourUpdate { interface, address, mac: Some(mac) }).await;
        }
    }

    /// Sends a neighbour's entry where it is news, or where a worker waits for it.
    async fn tell(&mut self, update: NeighbourUpdate) {
        let NeighbourUpdate { interface, address, mac } = update;
        let waited_for = self.asked.settled(ResolveRequest { interface, address });
        let known = match mac {
            Some(mac) => self.sent.insert((interface, address), mac),
            None => self.sent.remove(&(interface, address)),
        };
        if known != mac || waited_for {
            self.send(update).await;
        }
    }

    async fn send(&self, update: NeighbourUpdate) {
        if let Err(e) = self.workers.broadcast(|_| Command::Neighbour(update)).await {
            tracing::error!(address = %update.address, "neighbour: {e}");
        }
    }

    async fn resolve(&mut self, wish: ResolveRequest) {
        let ResolveRequest { interface, address } = wish;
        if !self.asked.may_ask(wish, Instant::now()) {
            return;
        }
        let (known, ifindex) = {
            let state = self.state.read();
            (state.neighbour_of(interface, address).and_then(|n| n.mac), state.ifindex(interface))
        };
        if known.is_some() {
            // The wish crossed the answer.
            self.send(NeighbourUpdate { interface, address, mac: known }).await;
            return;
        }
        let Some(ifindex) = ifindex else { return };
        // As `ip neighbour replace ADDRESS dev TWIN use`: the kernel asks on the twin as if it had a packet to send.
        let request = self.requests.neighbours().add(ifindex, address);
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
        if let Err(e) = request.execute().await {
            tracing::debug!(%address, "the kernel does not resolve: {}", cause(&e));
            self.tell(NeighbourUpdate { interface, address, mac: None }).await;
        }
    }
}

fn subscribe() -> Result<(Handle, Events), KernelError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
    ];
    // Two sockets: a dump must not crowd out the notifications.
    let (mut listening, _, events) = rtnetlink::new_multicast_connection(&groups).map_err(KernelError::Socket)?;
    if let Err(e) = listening.socket_mut().socket_ref().set_rx_buf_sz(RECEIVE_BUFFER) {
        tracing::debug!("netlink receive buffer: {e}");
    }
    let (asking, requests, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
    tokio::spawn(listening);
    tokio::spawn(asking);
    Ok((requests, events))
}

async fn dump_all(handle: &Handle, mut state: State) -> Result<State, KernelError> {
    let failed = |table| move |e: rtnetlink::Error| KernelError::Dump { table, cause: cause(&e) };
    let mut links = handle.link().get().execute();
    while let Some(m) = links.try_next().await.map_err(failed("links"))? {
        state.apply(&RouteNetlinkMessage::NewLink(m), 0);
    }
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(m) = addresses.try_next().await.map_err(failed("addresses"))? {
        state.apply(&RouteNetlinkMessage::NewAddress(m), 0);
    }
    for m in dump_routes(handle).await? {
        state.apply(&RouteNetlinkMessage::NewRoute(m), 0);
    }
    let mut neighbours = std::pin::pin!(handle.neighbours().get().execute());
    while let Some(m) = neighbours.try_next().await.map_err(failed("neighbours"))? {
        state.apply(&RouteNetlinkMessage::NewNeighbour(m), 0);
    }
    Ok(state)
}

async fn dump_routes(handle: &Handle) -> Result<Vec<RouteMessage>, KernelError> {
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let mut all = Vec::new();
    for family in [v4, v6] {
        let mut routes = std::pin::pin!(handle.route().get(family).execute());
        while let Some(m) =
            routes.try_next().await.map_err(|e| KernelError::Dump { table: "routes", cause: cause(&e) })?
        {
            all.push(m);
        }
    }
    Ok(all)
}
