//! ICMP errors that a worker sends, and packets that wait for their next hop's MAC address.

use std::net::IpAddr;

use super::Worker;
use crate::api::command::{Event, Message};
use crate::api::stats::IcmpErrorKind;
use crate::drop::DropReason;
use crate::forward::icmp_error::{self, IcmpError};
use crate::forward::neighbour::NeighbourUpdate;
use crate::io::{Buf, Io, PortIdx};
use crate::packet::Packet;
use crate::time::Nanos;

/// Packets that may wait for next hops to be resolved, all together and per next hop.
pub(super) const HELD: usize = 128;
const HELD_PER_NEIGHBOUR: usize = 64;
/// How long a packet waits for its next hop. The kernel asks three times, a second apart
/// (`linux/Documentation/networking/ip-sysctl.rst`, `mcast_solicit`, `retrans_time_ms`).
pub(super) const HELD_FOR: Nanos = Nanos::from_millis(3500);

/// A packet that waits for its next hop's MAC address. It is rewritten already; `error` was built before that.
#[derive(Debug)]
pub(super) struct Held<B> {
    pub(super) buf: B,
    pub(super) l3: usize,
    pub(super) egress: PortIdx,
    pub(super) address: IpAddr,
    pub(super) until: Nanos,
    pub(super) error: Option<(B, PortIdx)>,
}

impl<I: Io> Worker<I> {
    /// Answers a dropped packet with an ICMP error, within the rate limit.
    pub(super) fn answer(&mut self, original: &[u8], p: &Packet, error: IcmpError, now: Nanos) {
        if p.in_port.is_twin() || !icmp_error::may_answer(p) {
            return;
        }
        if !self.icmp_limit.allow(now) {
            self.path.stats.icmp_errors[IcmpErrorKind::Suppressed as usize].add(1);
            return;
        }
        if let Some(buf) = self.make_error(original, p, error) {
            self.path.stats.icmp_errors[error.kind() as usize].add(1);
            self.queue(buf, p.in_port);
        }
    }

    /// The frame of an ICMP error about a packet, to go out of the port that it came in by.
    pub(super) fn make_error(&mut self, original: &[u8], p: &Packet, error: IcmpError) -> Option<I::Buf> {
        if p.in_port.is_twin() || !icmp_error::may_answer(p) {
            return None;
        }
        let interface = p.in_port.interface();
        let own = || self.path.fib.error_source(interface, p.tuple.src);
        let src = self.path.translated_source_of_error(p).or_else(own)?;
        let mac = self.path.interfaces.get(usize::from(interface))?.mac;
        let mut buf = self.io.alloc()?;
        if !buf.resize(icmp_error::MAX_FRAME) {
            return None;
        }
        let len = icmp_error::build(buf.bytes_mut(), original, p, error, src, mac)?;
        if !buf.resize(len) {
            return None;
        }
        self.outward_own(&mut buf, p, true);
        Some(buf)
    }

    /// Keeps a packet until its next hop is known; asks control to have it resolved. Where too many wait, the oldest makes
    /// room: whoever scans a subnet must not keep others from being resolved.
    pub(super) fn hold(&mut self, held: Held<I::Buf>) {
        let same = self.held.iter().filter(|h| h.address == held.address && h.egress == held.egress).count();
        if same >= HELD_PER_NEIGHBOUR {
            self.path.stats.drop_packet(DropReason::NeighbourQueueFull);
            return;
        }
        if self.held.is_full() {
            self.held.remove(0);
            self.path.stats.drop_packet(DropReason::NeighbourQueueFull);
        }
        if same == 0 {
            self.ask(held.egress, held.address);
        }
        self.held.push(held);
    }

    /// Has control have the kernel resolve a next hop.
    fn ask(&self, egress: PortIdx, address: IpAddr) {
        let event = Event::Resolve { interface: egress.interface(), address };
        let _ = self.messages.try_send(Message { worker: self.index, event });
    }

    /// A neighbour changed: packets that waited for it go, or are given up.
    pub(super) fn neighbour(&mut self, update: &NeighbourUpdate) {
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
        self.send_fragments(held.buf, held.l3, held.egress, mac);
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

    pub(super) fn give_up_held(&mut self, now: Nanos) {
        while let Some(i) = self.held.iter().position(|h| h.until <= now) {
            let held = self.held.remove(i);
            let (egress, address) = (held.egress, held.address);
            self.give_up(held);
            // Nobody has said that it does not answer: the question was lost, or the kernel could not ask. Under traffic
            // that does not pause it would never be asked again.
            if self.held.iter().any(|h| h.until > now && h.egress == egress && h.address == address) {
                self.ask(egress, address);
            }
        }
    }
}
