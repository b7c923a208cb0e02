//! READ FIRST: one lcore's loop.
//!
//! [`Worker::step`] is one turn: commands, frames of every port, packets from other workers, timers, transmit. It owns
//! all it touches; [`crate::path`] decides what becomes of each packet, this file carries it out on the frame's bytes.
//!
//! *Life-cycle*: built by `launch` (or a test), moved to its thread, ends after [`Command::Stop`]. *Threads*: one.
//! *Limits*: per turn a few commands, one burst per port and per other worker, [`EXPIRIES`] looks at timers and one per packet;
//! a bounded number of packets waits for neighbours.

mod control;
mod fast;
mod first;
mod handover;
mod header;
mod helped;
mod mss;
mod neighbour;
mod parked;
mod prefix;
mod send;
mod train;
mod walk;

use std::mem;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender};

use self::control::Creating;
use self::fast::Sights;
use self::neighbour::{HELD, Held};
pub use self::parked::PARKED;
use self::parked::Parked;
use self::walk::Walks;
use crate::api::command::{Command, Message};
use crate::api::stats::HandoverCause;
use crate::conntrack::tuple::{Tuple, proto};
use crate::defrag::{self, Defrag, Train};
use crate::drop::DropReason;
use crate::forward::icmp_error::RateLimit;
use crate::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use crate::packet::{L4, Packet};
use crate::parse::{self, Parsed, Receiver as FrameReceiver, ipv6};
use crate::path::{Outcome, Path, Refusal};
use crate::steer::{self, Parcel, Parcels};
use crate::time::Nanos;

/// Connections that the timer wheel looks at per turn, besides one for each packet of it.
const EXPIRIES: u32 = 64;
/// One of so many frames of a kind, the first among them, has its RSS hash compared with ours.
const RSS_SAMPLE: u32 = 256;
/// Kinds of frames that a device may hash each in its way: TCP and UDP over IPv4 and IPv6.
const RSS_KINDS: usize = 4;

/// Packets in hand: frames, and beside each what is known of it.
#[derive(Debug)]
struct Batch<B> {
    bufs: ArrayVec<B, MAX_BURST>,
    packets: ArrayVec<Packet, MAX_BURST>,
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
    /// How many fragments may wait, and for what.
    pub defrag: defrag::Setup,
    /// Keys the hash of waiting fragments: random per start.
    pub seed: ahash::RandomState,
    /// Rings to the other workers.
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
    /// Frames taken on trust, by interface and kind.
    samples: Vec<[u32; RSS_KINDS]>,
    parcels: Parcels<I::Buf>,
    commands: Receiver<Command>,
    messages: Sender<Message>,
    /// The batch in hand; empty between two, and taken out while it is worked on.
    batch: Option<Box<Batch<I::Buf>>>,
    /// Room for what is known of a burst's frames; taken out while it is worked on.
    sights: Option<Box<Sights>>,
    /// Frames on their way out, by port.
    tx: Vec<Box<Burst<I::Buf>>>,
    /// Room for the frames of a burst; taken out while it is worked on.
    rx: Option<Box<Burst<I::Buf>>>,
    /// Room for what another worker has handed over, likewise.
    inbox: Option<Box<ArrayVec<Parcel<I::Buf>, MAX_BURST>>>,
    /// Whether the frames in hand come from another worker: they are not steered again.
    handed: bool,
    held: ArrayVec<Held<I::Buf>, HELD>,
    parked: Parked<I::Buf>,
    /// Connections that the operator makes, while some are pending.
    creating: Option<Creating>,
    defrag: Defrag<I::Buf>,
    /// The datagram in hand, as the fragments that it came in; empty between two.
    train: Train<I::Buf>,
    walks: Walks,
    icmp_limit: RateLimit,
    stopping: bool,
    last: Nanos,
    last_busy: bool,
    /// Packets that this turn has received, from ports and from other workers.
    moved: u64,
}

impl<I: Io> Worker<I> {
    /// A worker ready to run.
    pub fn new(setup: WorkerSetup<I::Buf>, path: Path, io: I, now: Nanos) -> Self {
        let ports = path.interfaces.len() * 2;
        let parked = Parked::new(path.steer.is_alone());
        Self {
            io,
            path,
            index: setup.index,
            burst: setup.burst.clamp(1, MAX_BURST),
            samples: vec![[0; RSS_KINDS]; setup.rss.len()],
            rss: setup.rss,
            parcels: setup.parcels,
            commands: setup.commands,
            messages: setup.messages,
            batch: Some(Box::new(Batch { bufs: ArrayVec::new(), packets: ArrayVec::new() })),
            sights: Some(Box::default()),
            tx: (0..ports).map(|_| Box::default()).collect(),
            rx: Some(Box::default()),
            inbox: Some(Box::default()),
            handed: false,
            held: ArrayVec::new(),
            parked,
            creating: None,
            defrag: Defrag::new(&setup.defrag, setup.seed),
            train: Train::new(),
            walks: Walks::new(),
            icmp_limit: RateLimit::new(now),
            stopping: false,
            last: now,
            last_busy: false,
            moved: 0,
        }
    }

    /// One turn at time `now`. Says whether it moved any packet.
    pub fn step(&mut self, now: Nanos) -> bool {
        self.account(now);
        self.take_commands(now);
        self.walk(now);
        let mut busy = false;
        for port in 0..self.tx.len() {
            busy |= self.receive(port, now);
        }
        busy |= self.receive_parcels(now);
        // As many may have begun as packets were moved: so many more may end.
        let begun = u32::try_from(self.moved).unwrap_or(u32::MAX);
        self.path.tick(EXPIRIES.saturating_add(begun), now);
        self.path.expire_reservations(now);
        busy |= self.release_parked(now);
        self.flush_parcels();
        self.give_up_held(now);
        self.expire_fragments(now);
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
            stats.burst.record(elapsed, 1);
            stats.latency.record(elapsed, mem::take(&mut self.moved));
        } else {
            stats.idle_ns.add(elapsed);
        }
    }

    // ---- Receive ----------------------------------------------------------------------------------------------------

    /// A burst of one port.
    fn receive(&mut self, port: usize, now: Nanos) -> bool {
        // Invariant: there are at most 2 * 32,767 ports.
        let port = PortIdx(u16::try_from(port).unwrap_or(0));
        let Some(mut frames) = self.rx.take() else { return false };
        self.io.rx_burst(port, self.burst, &mut frames);
        // After the poll and before any lookup: see `Path::read_notes`.
        let mut busy = self.read_notes(now);
        if !frames.is_empty() {
            self.take_in(&mut frames, port, now);
            busy = true;
        }
        self.rx = Some(frames);
        self.flush_parcels();
        busy
    }

    /// Takes the frames of a burst; none is left.
    fn take_in(&mut self, frames: &mut Box<Burst<I::Buf>>, port: PortIdx, now: Nanos) {
        let counters = self.path.stats.port(port);
        counters.rx_packets.add(frames.len() as u64);
        self.moved += frames.len() as u64;
        counters.rx_bytes.add(frames.iter().map(|f| f.bytes().len() as u64).sum());
        self.take_frames(frames, port, now);
    }

    /// Takes frames through all stages that came in by `port`, here or at another worker; none is left.
    fn take_frames(&mut self, frames: &mut Box<Burst<I::Buf>>, port: PortIdx, now: Nanos) {
        let interface = &self.path.interfaces[usize::from(port.interface())];
        let receiver = FrameReceiver {
            port,
            mac: interface.mac,
            vlan: interface.vlan,
            verify: self.path.policy.spec().conntrack.checksum,
        };
        if let Some(station) = self.path.station(port) {
            self.express(frames, &station, &receiver, now);
        } else {
            for buf in frames.drain(..) {
                self.parse(buf, &receiver, now);
            }
            self.process(false, now);
        }
    }

    /// Parses a frame into the batch, and sends on what is not to be judged here or now: ARP, fragments, other workers'
    /// packets.
    #[inline]
    fn parse(&mut self, buf: I::Buf, receiver: &FrameReceiver, now: Nanos) {
        let mut buf = if buf.is_chained() {
            match self.io.linearise(buf) {
                Ok(b) => b,
                Err(_) => {
                    self.path.stats.drop_packet(DropReason::ChainedTooLong);
                    return;
                }
            }
        } else {
            buf
        };
        let mut parsed = parse::frame(buf.bytes(), receiver, buf.rx_checksum());
        if let Ok(Parsed::Atomic { l3, atomic }) = parsed {
            ipv6::take_out_fragment(buf.bytes_mut(), l3, atomic);
            parsed = if buf.shrink_front(8) {
                parse::frame(buf.bytes(), receiver, buf.rx_checksum())
            } else {
                Err(DropReason::ChainedTooLong)
            };
            if let Ok(Parsed::Ip(packet)) = &mut parsed
                && header::is_discovery(packet)
            {
                packet.kind = L4::Invalid(DropReason::FragmentInvalid);
            }
        }
        let mut packet = match parsed {
            Ok(Parsed::Ip(mut packet)) => {
                let zone = self.path.policy.ct_zone_of(receiver.port);
                if zone != 0 {
                    packet.set_ct_zone(zone);
                }
                packet
            }
            Ok(Parsed::Arp { l2_len }) => {
                let port = receiver.port;
                let other = PortIdx(port.0 ^ 1); // wire and twin
                self.send_link(buf, l2_len, other, None);
                return;
            }
            Ok(Parsed::Atomic { .. }) => {
                debug_assert!(false, "a packet has one fragment header at most");
                self.path.stats.drop_packet(DropReason::Ipv6Extension);
                return;
            }
            Err(reason) => {
                self.path.stats.drop_packet(reason);
                return;
            }
        };
        if let Err(Refusal { reason, error }) = self.inward(&mut buf, &mut packet) {
            self.path.stats.drop_packet(reason);
            if let Some(error) = error {
                self.answer(buf.bytes(), &packet, error, now);
            }
            return;
        }
        self.arrive(buf, packet, now);
    }

    /// Takes a packet of which all is read: it goes to its home, or into the batch.
    #[inline]
    fn arrive(&mut self, mut buf: I::Buf, packet: Packet, now: Nanos) {
        // Ethernet pads short frames; what is forwarded is the packet.
        if buf.bytes().len() > usize::from(packet.end) && !buf.resize(usize::from(packet.end)) {
            self.path.stats.drop_packet(DropReason::NoBuffer);
            return;
        }
        // What belongs to a connection here stays: others of its packets have taken the short way before it.
        let mine = self.path.steer.is_alone() || self.handed;
        let home = if mine || self.comes_home(&buf, &packet) || self.path.has(&packet) {
            self.path.steer.me()
        } else {
            self.path.home(&packet)
        };
        if home != self.path.steer.me() {
            let cause = match packet.kind {
                L4::Fragment => HandoverCause::Fragment,
                L4::IcmpError(_) => HandoverCause::IcmpError,
                _ if packet.prefix != 0 => HandoverCause::Prefix,
                _ => HandoverCause::Steer,
            };
            self.hand_over(buf, packet, home, cause);
        } else if packet.kind == L4::Fragment {
            self.process(false, now); // what came before goes first
            self.fragment(buf, packet, now);
        } else {
            self.enqueue(buf, packet);
        }
    }

    /// Whether the port's RSS has brought this packet to its home. Samples are compared with our own hash, of each kind
    /// apart: a device may know our key and yet hash some kinds otherwise. A port that disagrees is steered in software from
    /// then on.
    ///
    /// Only what belongs to no connection here gets as far as this: who finds its connection is right here, whatever the
    /// port says of it. And trust decides nothing but who looks first: what is here by mistake finds no connection, and
    /// [`Path::judge`] sends it home. So a port that lies costs a lookup in vain until it is found out, and that is
    /// after [`RSS_SAMPLE`] such frames of a kind at the latest.
    fn comes_home(&mut self, buf: &I::Buf, p: &Packet) -> bool {
        let interface = usize::from(p.in_port.interface());
        // The device has hashed the address that it came with.
        if p.in_port.is_twin() || p.prefix != 0 || !self.rss.get(interface).is_some_and(|&r| r) {
            return false;
        }
        match p.kind {
            // Hashed by its own addresses, belongs to the quoted packet's home.
            L4::IcmpError(_) => return false,
            // All of a datagram must meet, and not every device leaves the ports of a first fragment out of its hash.
            L4::Fragment => return false,
            _ => {}
        }
        match p.kind {
            L4::Tcp(_) | L4::Udp => self.is_trusted(buf, interface, &p.tuple),
            _ => true,
        }
    }

    /// Whether an interface's port, which has been so far, is right about a frame of TCP or UDP.
    fn is_trusted(&mut self, buf: &I::Buf, interface: usize, t: &Tuple) -> bool {
        let kind = usize::from(t.proto == proto::UDP) + if t.is_ipv4() { 0 } else { 2 };
        let sample = self.samples[interface][kind];
        self.samples[interface][kind] = sample.wrapping_add(1);
        if sample.is_multiple_of(RSS_SAMPLE) {
            let agrees = buf.rss_hash() == Some(steer::toeplitz(t)) && self.path.steer.is_home(t);
            if !agrees {
                self.rss[interface] = false;
                self.path.stats.rss_mismatches.add(1);
                return false;
            }
        }
        true
    }

    // ---- Judge and carry out ----------------------------------------------------------------------------------------

    /// Adds a packet to the batch. At most [`MAX_BURST`] come between two calls of [`Worker::process`].
    #[inline]
    fn enqueue(&mut self, buf: I::Buf, packet: Packet) {
        if let Some(batch) = &mut self.batch {
            batch.bufs.push(buf);
            batch.packets.push(packet);
        }
    }

    /// The batch through all stages. The lookups' memory is asked for first, for all packets, so that the misses overlap.
    /// `handed`: another worker has sent them here.
    fn process(&mut self, handed: bool, now: Nanos) {
        let handed = handed || self.handed;
        let Some(mut batch) = self.batch.take() else { return };
        let Batch { bufs, packets } = &mut *batch;
        for p in packets.iter_mut() {
            p.hash = self.path.conntrack.prefetch_bucket(&p.tuple);
        }
        for p in packets.iter() {
            self.path.conntrack.prefetch_entry(&p.tuple, p.hash);
        }
        for (buf, packet) in bufs.drain(..).zip(packets.iter_mut()) {
            self.judge(buf, packet, handed, now);
        }
        packets.clear();
        self.batch = Some(batch);
    }

    /// One packet through all stages.
    #[inline]
    fn judge(&mut self, buf: I::Buf, packet: &mut Packet, handed: bool, now: Nanos) {
        match self.path.judge(packet, now) {
            Outcome::Forward(plan) if packet.later => {
                self.forward_later(buf, usize::from(packet.l3), packet, &plan, now);
            }
            Outcome::Forward(plan) => self.forward_judged(buf, packet, &plan, now),
            Outcome::Drop(Refusal { reason, error }) => {
                self.path.stats.drop_packet(reason);
                if let Some(error) = error {
                    self.answer(buf.bytes(), packet, error, now);
                }
            }
            Outcome::Handover(to, cause) => {
                let cause = packet.astray(cause, handed);
                self.hand_over(buf, *packet, to, cause);
            }
            Outcome::Wait(slot) => self.park(buf, *packet, slot, now),
        }
    }
}
