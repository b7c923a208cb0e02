//! Carrying out a plan on a frame's bytes: translation, TTL, link header, fragments, transmit queue.

use super::Worker;
use super::neighbour::{HELD_FOR, Held};
use crate::drop::DropReason;
use crate::forward::fragment;
use crate::forward::icmp_error::IcmpError;
use crate::io::{Buf, Burst, Io, PortIdx};
use crate::nat::rewrite;
use crate::packet::Packet;
use crate::parse::ether;
use crate::path::{L2, Plan, Rewrite};
use crate::time::Nanos;

impl<I: Io> Worker<I> {
    /// Rewrites a packet and sends it.
    #[inline]
    pub(super) fn forward(&mut self, mut buf: I::Buf, packet: &Packet, plan: &Plan, now: Nanos) {
        let error = self.unreachable(buf.bytes(), packet, plan);
        if let Err(reason) = self.rewrite(&mut buf, packet, plan) {
            return self.path.stats.drop_packet(reason);
        }
        self.dispatch(buf, usize::from(packet.l3), plan, error, now);
    }

    /// All that changes in a packet but its TTL: its connection's translation, that between prefixes, and TCP's largest segment.
    #[inline]
    pub(super) fn rewrite(&self, buf: &mut I::Buf, packet: &Packet, plan: &Plan) -> Result<(), DropReason> {
        Self::translate(buf, packet, plan);
        self.clamp(buf, packet, plan);
        self.outward(buf, packet, plan)
    }

    /// The error to send should the next hop not answer, and where. It quotes the packet as it came: it must be built now.
    #[inline]
    pub(super) fn unreachable(&mut self, frame: &[u8], packet: &Packet, plan: &Plan) -> Option<(I::Buf, PortIdx)> {
        match plan.l2 {
            L2::Resolve(_) => Some((self.make_error(frame, packet, IcmpError::HostUnreachable)?, packet.in_port)),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn translate(buf: &mut I::Buf, packet: &Packet, plan: &Plan) {
        match &plan.rewrite {
            Rewrite::None => {}
            Rewrite::Tuple(to) => rewrite::translate(buf.bytes_mut(), packet, to),
            Rewrite::Error(quoted, to) => rewrite::translate_error(buf.bytes_mut(), packet, quoted, to),
        }
    }

    /// Rewrites a later fragment of the datagram `whole` and sends it. It lives as long as that: `ip_do_fragment` gives all the
    /// same TTL.
    pub(super) fn forward_later(&mut self, mut buf: I::Buf, l3: usize, whole: &Packet, plan: &Plan, now: Nanos) {
        let to = match &plan.rewrite {
            Rewrite::None => None,
            Rewrite::Tuple(to) => Some((to.src, to.dst)),
            Rewrite::Error(_, to) => Some((to.src, to.dst)),
        };
        if let Some((src, dst)) = to {
            rewrite::translate_addresses(buf.bytes_mut(), l3, &whole.tuple, src, dst);
        }
        if let Err(reason) = self.outward_later(&mut buf, l3, whole, plan) {
            return self.path.stats.drop_packet(reason);
        }
        rewrite::set_ttl(buf.bytes_mut(), l3, whole.ttl);
        self.dispatch(buf, l3, plan, None, now);
    }

    /// Sends a translated packet as the plan says. `error` goes back should the next hop not answer.
    #[inline]
    pub(super) fn dispatch(
        &mut self,
        mut buf: I::Buf,
        l3: usize,
        plan: &Plan,
        error: Option<(I::Buf, PortIdx)>,
        now: Nanos,
    ) {
        if plan.hop {
            rewrite::decrement_ttl(buf.bytes_mut(), l3);
        }
        match plan.l2 {
            L2::Keep => self.send_link(buf, l3, plan.egress, None),
            L2::To(mac) if plan.fragment => self.send_fragments(buf, l3, plan.egress, mac),
            L2::To(mac) => self.send_link(buf, l3, plan.egress, Some(mac)),
            L2::Resolve(address) => {
                self.hold(Held { buf, l3, egress: plan.egress, address, until: now + HELD_FOR, error });
            }
        }
    }

    /// Gives a frame the link header of `egress` and queues it. `to`: its new destination; `None` leaves both MAC
    /// addresses as they are.
    #[inline]
    pub(super) fn send_link(&mut self, mut buf: I::Buf, l3: usize, egress: PortIdx, to: Option<[u8; 6]>) {
        if self.set_link(&mut buf, l3, egress, to) {
            self.queue(buf, egress);
        } else {
            self.path.stats.drop_packet(DropReason::NoBuffer);
        }
    }

    /// Gives a frame the link header of `egress`, as [`Worker::send_link`]. `false` where it has no room.
    #[inline]
    #[must_use]
    pub(super) fn set_link(&self, buf: &mut I::Buf, l3: usize, egress: PortIdx, to: Option<[u8; 6]>) -> bool {
        let interface = &self.path.interfaces[usize::from(egress.interface())];
        let vlan = if egress.is_twin() { None } else { interface.vlan };
        if vlan.is_none() && l3 == ether::HEADER {
            if let (Some(to), Some(macs)) = (to, buf.bytes_mut().first_chunk_mut::<12>()) {
                macs[..6].copy_from_slice(&to);
                macs[6..].copy_from_slice(&interface.mac);
            }
            return true;
        }
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
            return false;
        }
        let b = buf.bytes_mut();
        b[..12].copy_from_slice(&macs);
        if let Some(id) = vlan {
            b[12..14].copy_from_slice(&ether::VLAN.to_be_bytes());
            b[14..16].copy_from_slice(&id.to_be_bytes());
        }
        b[want - 2..want].copy_from_slice(&ethertype);
        true
    }

    /// Cuts an IPv4 packet to the egress MTU and sends the fragments; what fits goes as it is.
    pub(super) fn send_fragments(&mut self, buf: I::Buf, l3: usize, egress: PortIdx, mac: [u8; 6]) {
        let mtu = usize::from(self.path.interfaces[usize::from(egress.interface())].mtu);
        let packet = &buf.bytes()[l3..];
        if packet.len() <= mtu {
            return self.send_link(buf, l3, egress, Some(mac));
        }
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

    #[inline]
    pub(super) fn queue(&mut self, buf: I::Buf, port: PortIdx) {
        let i = usize::from(port.0);
        if self.tx[i].is_full() {
            self.flush_port(i);
        }
        self.tx[i].push(buf);
    }

    /// Queues a whole burst, which is empty afterwards.
    #[inline]
    pub(super) fn queue_all(&mut self, frames: &mut Box<Burst<I::Buf>>, port: PortIdx) {
        let i = usize::from(port.0);
        if self.tx[i].is_empty() {
            std::mem::swap(&mut self.tx[i], frames);
        } else {
            frames.drain(..).for_each(|buf| self.queue(buf, port));
        }
    }

    pub(super) fn flush(&mut self) {
        for i in 0..self.tx.len() {
            if !self.tx[i].is_empty() {
                self.flush_port(i);
            }
        }
    }

    /// Transmits what is queued for a port; what the device refuses is dropped, so the queue is empty afterwards.
    fn flush_port(&mut self, i: usize) {
        let port = PortIdx(u16::try_from(i).unwrap_or(0));
        let burst = &mut *self.tx[i];
        let size = |b: &Burst<I::Buf>| b.iter().map(|f| f.bytes().len() as u64).sum::<u64>();
        let (frames, bytes) = (burst.len(), size(burst));
        self.io.tx_burst(port, burst);
        let refused = burst.len();
        let counters = self.path.stats.port(port);
        counters.tx_packets.add((frames - refused) as u64);
        counters.tx_bytes.add(bytes - if refused == 0 { 0 } else { size(burst) });
        for _ in 0..refused {
            self.path.stats.drop_packet(DropReason::TxFull);
        }
        burst.clear();
    }
}
