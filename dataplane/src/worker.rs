//! READ FIRST: one lcore's loop.
//!
//! [`Worker::step`] is one turn: commands, frames of every port, packets from other workers, timers, transmit. It owns
//! all it touches; [`crate::path`] decides what becomes of each packet, this file carries it out on the frame's bytes.
//!
//! *Life-cycle*: built by `launch` (or a test), moved to its thread, ends after [`Command::Stop`]. *Threads*: one.
//! *Limits*: per turn [`COMMANDS`] commands, one burst per port and per other worker, [`EXPIRIES`] looks at timers;
//! [`HELD`] packets wait for neighbours.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender};

use crate::api::command::{Command, ConnFilter, ConnView, Event, Message, SCAN_PER_COMMAND};
use crate::api::stats::{CtEvent, HandoverCause, IcmpErrorKind};
use crate::conntrack::Scan;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::drop::DropReason;
use crate::forward::fragment;
use crate::forward::icmp_error::{self, IcmpError, RateLimit};
use crate::forward::neighbour::NeighbourUpdate;
use crate::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use crate::nat::rewrite;
use crate::packet::{L4, Packet};
use crate::parse::{self, Parsed, Receiver as FrameReceiver, ether};
use crate::path::{L2, Outcome, Path, Plan, Refusal, Rewrite};
use crate::steer::{self, Parcel, Parcels};
use crate::time::Nanos;

/// Commands taken per turn.
const COMMANDS: usize = 8;
/// Connections that the timer wheel looks at per turn.
const EXPIRIES: u32 = 64;
/// Packets that may wait for next hops to be resolved, all together and per next hop.
const HELD: usize = 64;
const HELD_PER_NEIGHBOUR: usize = 8;
/// How long a packet waits for its next hop. The kernel asks three times, a second apart
/// (`linux/Documentation/networking/ip-sysctl.rst`, `mcast_solicit`, `retrans_time_ms`).
const HELD_FOR: Nanos = Nanos::from_millis(3500);
/// One of so many frames has its RSS hash compared with ours.
const RSS_SAMPLE: u32 = 256;

/// A packet with all that is known of it.
#[derive(Debug)]
struct InFlight<B> {
    buf: B,
    packet: Packet,
    stale: bool,
}

type Batch<B> = ArrayVec<InFlight<B>, MAX_BURST>;

/// A packet that waits for its next hop's MAC address. It is rewritten already; `error` was built before that.
#[derive(Debug)]
struct Held<B> {
    buf: B,
    l3: usize,
    egress: PortIdx,
    address: IpAddr,
    until: Nanos,
    error: Option<(B, PortIdx)>,
}

/// What a worker is made of besides its ports and its path.
#[derive(Debug)]
pub struct WorkerSetup<B> {
    /// Its index, 0-based.
    pub index: usize,
    /// Frames per receive, 1..=[`MAX_BURST`].
    pub burst: usize,
    /// By interface: whether its wire port spreads frames by our RSS key, so that they come home by themselves.
    pub rss: Vec<bool>,
    /// Verify transport checksums.
    pub parcels: Parcels<B>,
    /// From control.
    pub commands: Receiver<Command>,
    /// To control.
    pub messages: Sender<Message>,
}

/// One lcore's worth of gateway.
#[derive(Debug)]
pub struct Worker<I: Io> {
    io: I,
    path: Path,
    index: usize,
    burst: usize,
    rss: Vec<bool>,
    /// Frames taken on trust, by interface: each port's first is compared.
    samples: Vec<u32>,
    parcels: Parcels<I::Buf>,
    commands: Receiver<Command>,
    messages: Sender<Message>,
    /// Frames on their way out, by port.
    tx: Vec<Burst<I::Buf>>,
    held: ArrayVec<Held<I::Buf>, HELD>,
    icmp_limit: RateLimit,
    stopping: bool,
    last: Nanos,
    last_busy: bool,
}

impl<I: Io> Worker<I> {
    /// A worker ready to run.
    pub fn new(setup: WorkerSetup<I::Buf>, path: Path, io: I, now: Nanos) -> Self {
        let ports = path.interfaces.len() * 2;
        Self {
            io,
            path,
            index: setup.index,
            burst: setup.burst.clamp(1, MAX_BURST),
            samples: vec![0; setup.rss.len()],
            rss: setup.rss,
            parcels: setup.parcels,
            commands: setup.commands,
            messages: setup.messages,
            tx: (0..ports).map(|_| Burst::new()).collect(),
            held: ArrayVec::new(),
            icmp_limit: RateLimit::new(now),
            stopping: false,
            last: now,
            last_busy: false,
        }
    }

    /// One turn at time `now`. Says whether it moved any packet.
    pub fn step(&mut self, now: Nanos) -> bool {
        self.account(now);
        self.take_commands(now);
        let mut busy = false;
        for port in 0..self.tx.len() {
            busy |= self.receive(port, now);
        }
        busy |= self.receive_parcels(now);
        self.path.tick(EXPIRIES, now);
        self.give_up_held(now);
        self.flush();
        self.report();
        self.last_busy = busy;
        busy
    }

    /// Whether [`Command::Stop`] has come.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    /// The stages' state, for tests and inspection.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ports.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Charges the time since the last turn to what that turn did.
    fn account(&mut self, now: Nanos) {
        let elapsed = now.since(self.last).0;
        self.last = now;
        let stats = &self.path.stats;
        if self.last_busy {
            stats.busy_ns.add(elapsed);
            stats.burst.record(elapsed);
        } else {
            stats.idle_ns.add(elapsed);
        }
    }

    // ---- Receive ----------------------------------------------------------------------------------------------------

    /// A burst of one port.
    fn receive(&mut self, port: usize, now: Nanos) -> bool {
        // Invariant: there are at most 2 * 32,767 ports.
        let port = PortIdx(u16::try_from(port).unwrap_or(0));
        let mut frames: Burst<I::Buf> = Burst::new();
        self.io.rx_burst(port, self.burst, &mut frames);
        // After the poll and before any lookup: see `Path::read_notes`.
        self.path.read_notes(now);
        if frames.is_empty() {
            return false;
        }
        let counters = self.path.stats.port(port);
        counters.rx_packets.add(frames.len() as u64);
        counters.rx_bytes.add(frames.iter().map(|f| f.bytes().len() as u64).sum());
        let interface = &self.path.interfaces[usize::from(port.interface())];
        let receiver = FrameReceiver {
            port,
            mac: interface.mac,
            vlan: interface.vlan,
            verify: self.path.policy.spec().conntrack.checksum,
        };
        let mut batch = Batch::new();
        for buf in frames {
            if let Some(packet) = self.parse(buf, &receiver) {
                batch.push(packet);
            }
        }
        self.process(batch, false, now);
        true
    }

    /// Parses a frame and sends on what is not this worker's to judge: ARP, other workers' packets.
    fn parse(&mut self, buf: I::Buf, receiver: &FrameReceiver) -> Option<InFlight<I::Buf>> {
        let mut buf = if buf.is_chained() {
            match self.io.linearise(buf) {
                Ok(b) => b,
                Err(_) => {
                    self.path.stats.drop_packet(DropReason::ChainedTooLong);
                    return None;
                }
            }
        } else {
            buf
        };
        let packet = match parse::frame(buf.bytes(), receiver, buf.rx_checksum()) {
            Ok(Parsed::Ip(packet)) => packet,
            Ok(Parsed::Arp { l2_len }) => {
                let port = receiver.port;
                let other = PortIdx(port.0 ^ 1); // wire and twin
                self.send_link(buf, l2_len, other, None);
                return None;
            }
            Err(reason) => {
                self.path.stats.drop_packet(reason);
                return None;
            }
        };
        // Ethernet pads short frames; what is forwarded is the packet.
        if buf.bytes().len() > usize::from(packet.end) && !buf.resize(usize::from(packet.end)) {
            self.path.stats.drop_packet(DropReason::NoBuffer);
            return None;
        }
        let inflight = InFlight { buf, packet, stale: false };
        if self.path.steer.is_alone() || self.comes_home(&inflight) {
            return Some(inflight);
        }
        let home = self.path.home(&inflight.packet);
        if home == self.path.steer.me() {
            return Some(inflight);
        }
        let cause = if matches!(inflight.packet.kind, L4::IcmpError(_)) {
            HandoverCause::IcmpError
        } else {
            HandoverCause::Steer
        };
        self.hand_over(inflight, home, cause, false);
        None
    }

    /// Whether the port's RSS has brought this packet to its home. Samples are compared with our own hash; a port that
    /// disagrees is steered in software from then on.
    fn comes_home(&mut self, f: &InFlight<I::Buf>) -> bool {
        let p = &f.packet;
        let interface = usize::from(p.in_port.interface());
        if p.in_port.is_twin() || !self.rss.get(interface).is_some_and(|&r| r) {
            return false;
        }
        if matches!(p.kind, L4::IcmpError(_)) {
            return false; // hashed by its own addresses, belongs to the quoted packet's home
        }
        if !matches!(p.kind, L4::Tcp(_) | L4::Udp) {
            return true;
        }
        let sample = self.samples[interface];
        self.samples[interface] = sample.wrapping_add(1);
        if sample.is_multiple_of(RSS_SAMPLE) {
            let agrees = f.buf.rss_hash() == Some(steer::toeplitz(&p.tuple)) && self.path.steer.is_home(&p.tuple);
            if !agrees {
                self.rss[interface] = false;
                self.path.stats.rss_mismatches.add(1);
                return false;
            }
        }
        true
    }

    /// Packets that other workers handed over.
    fn receive_parcels(&mut self, now: Nanos) -> bool {
        let mut busy = false;
        for from in 0..self.parcels.workers() {
            let mut batch = Batch::new();
            while batch.len() < self.burst {
                let Some(Parcel { buf, packet, stale }) = self.parcels.receive(from) else { break };
                batch.push(InFlight { buf, packet, stale });
            }
            if !batch.is_empty() {
                busy = true;
                self.path.read_notes(now);
                self.process(batch, true, now);
            }
        }
        busy
    }

    fn hand_over(&mut self, f: InFlight<I::Buf>, to: u16, cause: HandoverCause, stale: bool) {
        let parcel = Parcel { buf: f.buf, packet: f.packet, stale };
        match self.parcels.send(to, parcel) {
            Ok(()) => self.path.stats.handover(cause),
            Err(_) => self.path.stats.drop_packet(DropReason::HandoverFull),
        }
    }

    // ---- Judge and carry out ----------------------------------------------------------------------------------------

    /// A batch through all stages. The lookups' memory is asked for first, for all packets, so that the misses overlap.
    /// `handed`: another worker has sent them here.
    fn process(&mut self, batch: Batch<I::Buf>, handed: bool, now: Nanos) {
        let mut hashes: ArrayVec<u64, MAX_BURST> = ArrayVec::new();
        for f in &batch {
            hashes.push(self.path.conntrack.prefetch_bucket(&f.packet.tuple));
        }
        for (f, &hash) in batch.iter().zip(&hashes) {
            self.path.conntrack.prefetch_entry(f.packet.tuple.is_ipv4(), hash);
        }
        for mut f in batch {
            match self.path.judge(&mut f.packet, f.stale, now) {
                Outcome::Forward(plan) => self.forward(f, &plan, now),
                Outcome::Drop(Refusal { reason, error }) => {
                    self.path.stats.drop_packet(reason);
                    if let Some(error) = error {
                        self.answer(&f, error, now);
                    }
                }
                // Its port brought it to the wrong worker: no signpost has led it astray yet.
                Outcome::Handover(to, HandoverCause::Stale) if !handed => {
                    self.hand_over(f, to, HandoverCause::Steer, false);
                }
                Outcome::Handover(to, cause) => self.hand_over(f, to, cause, cause == HandoverCause::Stale),
            }
        }
    }

    /// Rewrites a packet and sends it.
    fn forward(&mut self, f: InFlight<I::Buf>, plan: &Plan, now: Nanos) {
        let InFlight { mut buf, packet, .. } = f;
        let l3 = usize::from(packet.l3);
        let waits = matches!(plan.l2, L2::Resolve(_));
        // The error to send should the next hop not answer quotes the packet as it came: it must be built now.
        let error = if waits { self.make_error(buf.bytes(), &packet, IcmpError::HostUnreachable) } else { None };
        match &plan.rewrite {
            Rewrite::None => {}
            Rewrite::Tuple(to) => rewrite::translate(buf.bytes_mut(), &packet, to),
            Rewrite::Error(quoted, to) => rewrite::translate_error(buf.bytes_mut(), &packet, quoted, to),
        }
        if plan.hop {
            rewrite::decrement_ttl(buf.bytes_mut(), l3);
        }
        match plan.l2 {
            L2::Keep => self.send_link(buf, l3, plan.egress, None),
            L2::To(mac) if plan.fragment => self.send_fragments(buf, l3, plan.egress, mac),
            L2::To(mac) => self.send_link(buf, l3, plan.egress, Some(mac)),
            L2::Resolve(address) => {
                let error = error.map(|e| (e, packet.in_port));
                self.hold(Held { buf, l3, egress: plan.egress, address, until: now + HELD_FOR, error });
            }
        }
    }

    /// Gives a frame the link header of `egress` and queues it. `to`: its new destination; `None` leaves both MAC
    /// addresses as they are.
    fn send_link(&mut self, mut buf: I::Buf, l3: usize, egress: PortIdx, to: Option<[u8; 6]>) {
        let interface = &self.path.interfaces[usize::from(egress.interface())];
        let vlan = if egress.is_twin() { None } else { interface.vlan };
        let b = buf.bytes();
        let mut macs = [0; 12];
        macs.copy_from_slice(&b[..12]);
        let ethertype = [b[l3 - 2], b[l3 - 1]];
        if let Some(to) = to {
            macs[..6].copy_from_slice(&to);
            macs[6..].copy_from_slice(&interface.mac);
        }
        let want = ether::HEADER + if vlan.is_some() { ether::TAG } else { 0 };
        let fits = if want > l3 { buf.grow_front(want - l3) } else { buf.shrink_front(l3 - want) };
        if !fits {
            self.path.stats.drop_packet(DropReason::NoBuffer);
            return;
        }
        let b = buf.bytes_mut();
        b[..12].copy_from_slice(&macs);
        if let Some(id) = vlan {
            b[12..14].copy_from_slice(&ether::VLAN.to_be_bytes());
            b[14..16].copy_from_slice(&id.to_be_bytes());
        }
        b[want - 2..want].copy_from_slice(&ethertype);
        self.queue(buf, egress);
    }

    /// Cuts an IPv4 packet to the egress MTU and sends the fragments.
    fn send_fragments(&mut self, buf: I::Buf, l3: usize, egress: PortIdx, mac: [u8; 6]) {
        let mtu = usize::from(self.path.interfaces[usize::from(egress.interface())].mtu);
        let packet = &buf.bytes()[l3..];
        let header = usize::from(packet[0] & 0x0f) * 4;
        for n in 0..fragment::MAX_FRAGMENTS {
            let packet = &buf.bytes()[l3..];
            let Some(cut) = fragment::piece(header, packet.len(), mtu, n) else { return };
            let Some(mut out) = self.io.alloc() else {
                self.path.stats.drop_packet(DropReason::NoBuffer);
                return;
            };
            let len = l3 + header + (cut.1 - cut.0);
            if !out.resize(len) {
                self.path.stats.drop_packet(DropReason::NoBuffer);
                return;
            }
            out.bytes_mut()[..l3].copy_from_slice(&buf.bytes()[..l3]);
            if fragment::write(&mut out.bytes_mut()[l3..], packet, cut).is_some() {
                self.send_link(out, l3, egress, Some(mac));
            }
        }
    }

    fn queue(&mut self, buf: I::Buf, port: PortIdx) {
        let i = usize::from(port.0);
        if self.tx[i].is_full() {
            self.flush_port(i);
        }
        self.tx[i].push(buf);
    }

    fn flush(&mut self) {
        for i in 0..self.tx.len() {
            if !self.tx[i].is_empty() {
                self.flush_port(i);
            }
        }
    }

    /// Transmits what is queued for a port; what the device refuses is dropped, so the queue is empty afterwards.
    fn flush_port(&mut self, i: usize) {
        let port = PortIdx(u16::try_from(i).unwrap_or(0));
        let burst = &mut self.tx[i];
        let size = |b: &Burst<I::Buf>| b.iter().map(|f| f.bytes().len() as u64).sum::<u64>();
        let (frames, bytes) = (burst.len(), size(burst));
        self.io.tx_burst(port, burst);
        let refused = burst.len();
        let counters = self.path.stats.port(port);
        counters.tx_packets.add((frames - refused) as u64);
        counters.tx_bytes.add(bytes - size(burst));
        for _ in 0..refused {
            self.path.stats.drop_packet(DropReason::TxFull);
        }
        burst.clear();
    }

    // ---- ICMP errors and neighbours ---------------------------------------------------------------------------------

    /// Answers a dropped packet with an ICMP error, within the rate limit.
    fn answer(&mut self, f: &InFlight<I::Buf>, error: IcmpError, now: Nanos) {
        if f.packet.in_port.is_twin() || !icmp_error::may_answer(&f.packet) {
            return;
        }
        if !self.icmp_limit.allow(now) {
            self.path.stats.icmp_errors[IcmpErrorKind::Suppressed as usize].add(1);
            return;
        }
        if let Some(buf) = self.make_error(f.buf.bytes(), &f.packet, error) {
            self.path.stats.icmp_errors[error.kind() as usize].add(1);
            self.queue(buf, f.packet.in_port);
        }
    }

    /// The frame of an ICMP error about a packet, to go out of the port that it came in by.
    fn make_error(&mut self, original: &[u8], p: &Packet, error: IcmpError) -> Option<I::Buf> {
        if p.in_port.is_twin() || !icmp_error::may_answer(p) {
            return None;
        }
        let interface = p.in_port.interface();
        let src = self.path.fib.primary(interface, p.tuple.src)?;
        let mac = self.path.interfaces.get(usize::from(interface))?.mac;
        let mut buf = self.io.alloc()?;
        if !buf.resize(icmp_error::MAX_FRAME) {
            return None;
        }
        let len = icmp_error::build(buf.bytes_mut(), original, p, error, src, mac)?;
        buf.resize(len).then_some(buf)
    }

    /// Keeps a packet until its next hop is known; asks control to have it resolved.
    fn hold(&mut self, held: Held<I::Buf>) {
        let same = self.held.iter().filter(|h| h.address == held.address && h.egress == held.egress).count();
        if same == 0 && self.held.len() < HELD {
            let event = Event::Resolve { interface: held.egress.interface(), address: held.address };
            let _ = self.messages.try_send(Message { worker: self.index, event });
        }
        if same >= HELD_PER_NEIGHBOUR || self.held.try_push(held).is_err() {
            self.path.stats.drop_packet(DropReason::NeighbourQueueFull);
        }
    }

    /// A neighbour changed: packets that waited for it go, or are given up.
    fn neighbour(&mut self, update: &NeighbourUpdate) {
        self.path.neighbours.update(update);
        let waits = |h: &Held<I::Buf>| h.egress.interface() == update.interface && h.address == update.address;
        while let Some(i) = self.held.iter().position(waits) {
            let held = self.held.remove(i);
            match update.mac {
                Some(mac) => self.release(held, mac),
                None => self.give_up(held),
            }
        }
    }

    fn release(&mut self, held: Held<I::Buf>, mac: [u8; 6]) {
        let mtu = usize::from(self.path.interfaces[usize::from(held.egress.interface())].mtu);
        if held.buf.bytes().len() - held.l3 > mtu {
            self.send_fragments(held.buf, held.l3, held.egress, mac);
        } else {
            self.send_link(held.buf, held.l3, held.egress, Some(mac));
        }
    }

    fn give_up(&mut self, held: Held<I::Buf>) {
        self.path.stats.drop_packet(DropReason::NeighbourUnresolved);
        if let Some((error, port)) = held.error {
            if self.icmp_limit.allow(self.last) {
                self.path.stats.icmp_errors[IcmpErrorKind::Unreachable as usize].add(1);
                self.queue(error, port);
            } else {
                self.path.stats.icmp_errors[IcmpErrorKind::Suppressed as usize].add(1);
            }
        }
    }

    fn give_up_held(&mut self, now: Nanos) {
        while let Some(i) = self.held.iter().position(|h| h.until <= now) {
            let held = self.held.remove(i);
            self.give_up(held);
        }
    }

    // ---- Control ----------------------------------------------------------------------------------------------------

    fn take_commands(&mut self, now: Nanos) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { return };
            let event = match command {
                Command::Policy { policy, rules } => {
                    let generation = policy.spec().generation;
                    let old = self.path.set_policy(policy, rules);
                    Event::PolicyInForce { generation, old: Some(old) }
                }
                Command::Fib(fib) => Event::FibInForce { old: self.path.set_fib(fib) },
                Command::Neighbour(update) => {
                    self.neighbour(&update);
                    continue;
                }
                Command::List { cursor, filter, into } => self.list(cursor, &filter, into, now),
                Command::Flush { cursor, filter } => self.flush_conns(cursor, &filter, now),
                Command::Stop => {
                    self.stopping = true;
                    return;
                }
            };
            self.say(event);
        }
    }

    /// Answers control. The channel is sized for all answers under way; one that does not fit is lost, and control's
    /// own time limit notices.
    fn say(&self, event: Event) {
        let _ = self.messages.try_send(Message { worker: self.index, event });
    }

    fn report(&mut self) {
        while let Some(event) = self.path.reports.pop() {
            self.say(event);
        }
    }

    fn list(&self, cursor: u64, filter: &ConnFilter, mut into: Vec<ConnView>, now: Nanos) -> Event {
        let mut at = cursor;
        let mut next = None;
        for _ in 0..SCAN_PER_COMMAND {
            if into.len() == into.capacity() {
                next = Some(at);
                break;
            }
            match self.path.conntrack.scan(at) {
                Scan::End => return Event::Listed { next: None, conns: into },
                Scan::Empty => {}
                Scan::Conn(id) => {
                    let view = self.view(id, now);
                    if self.path.conntrack.conn(id).deadline > now && matches(filter, &view) {
                        into.push(view);
                    }
                }
            }
            at += 1;
            next = Some(at);
        }
        Event::Listed { next, conns: into }
    }

    fn flush_conns(&mut self, cursor: u64, filter: &ConnFilter, now: Nanos) -> Event {
        let mut ended = 0;
        let end = cursor + u64::from(SCAN_PER_COMMAND);
        for at in cursor..end {
            match self.path.conntrack.scan(at) {
                Scan::End => return Event::Flushed { next: None, ended },
                Scan::Empty => {}
                Scan::Conn(id) => {
                    if matches(filter, &self.view(id, now)) {
                        self.path.end(id, CtEvent::Flushed, now);
                        ended += 1;
                    }
                }
            }
        }
        Event::Flushed { next: Some(end), ended }
    }

    fn view(&self, id: crate::conntrack::ConnId, now: Nanos) -> ConnView {
        let conn = self.path.conntrack.conn(id);
        let original = self.path.conntrack.tuple(id, Direction::Original);
        let egress = |d: usize| (conn.cache[d].epoch != 0).then(|| conn.cache[d].egress.interface());
        ConnView {
            original,
            reply: self.path.conntrack.tuple(id, Direction::Reply),
            tcp_state: (original.proto == proto::TCP).then(|| conn.tcp.name()),
            timeout_s: u32::try_from(conn.deadline.since(now).as_secs()).unwrap_or(u32::MAX),
            replied: conn.flags.has(Flags::REPLIED),
            assured: conn.flags.has(Flags::ASSURED),
            packets: conn.packets,
            bytes: conn.bytes,
            egress: [egress(0), egress(1)],
        }
    }
}

/// Whether a connection is among those that `f` asks for.
fn matches(f: &ConnFilter, c: &ConnView) -> bool {
    let net = |n: &Option<ipnet::IpNet>, a: IpAddr| n.is_none_or(|n| n.contains(&a));
    let Tuple { src, dst, proto, sport, dport } = c.original;
    let plain = c.original.inverse();
    let ports = c.original.has_ports();
    f.family.is_none_or(|v| v == if src.is_ipv4() { 4 } else { 6 })
        && f.proto.is_none_or(|p| p == proto)
        && net(&f.source, src)
        && net(&f.destination, dst)
        && net(&f.reply_source, c.reply.src)
        && net(&f.reply_destination, c.reply.dst)
        && f.sport.is_none_or(|p| ports && p == sport)
        && f.dport.is_none_or(|p| ports && p == dport)
        && f.tcp_state.is_none_or(|s| c.tcp_state == Some(s))
        && f.assured.is_none_or(|a| a == c.assured)
        && f.replied.is_none_or(|r| r == c.replied)
        && (!f.snat || (c.reply.dst, c.reply.dport) != (plain.dst, plain.dport))
        && (!f.dnat || (c.reply.src, c.reply.sport) != (plain.src, plain.sport))
}
