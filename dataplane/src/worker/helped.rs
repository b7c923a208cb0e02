//! Packets of connections with a helper: it sees them before they leave, and may change their text and numbers.
//!
//! *Limits*: [`EDITS`](crate::helper::seqadj::EDITS) changes per segment. *Threads*: the worker's.

use super::{Worker, header};
use crate::conntrack::tcp::FIN;
use crate::drop::DropReason;
use crate::forward::icmp_error::IcmpError;
use crate::helper::seqadj::Splice;
use crate::io::{Buf, Io};
use crate::nat::segment;
use crate::packet::{L4, Packet};
use crate::parse::be16;
use crate::parse::l4::UDP_HEADER;
use crate::path::{Acknowledge, Help, Plan};
use crate::time::Nanos;

impl<I: Io> Worker<I> {
    /// Shows a packet to its connection's helper, and sends it on as that wants it.
    pub(super) fn forward_helped(&mut self, mut buf: I::Buf, packet: &Packet, mut plan: Plan, now: Nanos) {
        if let (Some(id), L4::IcmpError(Some(quoted))) = (packet.conn, packet.kind) {
            // What it quotes went the other way, with other numbers than its sender's.
            if let Some((own, other)) = self.path.helpers.streams(id, packet.direction.opposite()) {
                segment::adjust_quote(buf.bytes_mut(), packet, &quoted, own, other);
            }
            return self.forward(buf, packet, &plan, now);
        }
        let (window, at) = transport(buf.bytes(), packet);
        let payload = buf.bytes().get(at..usize::from(packet.end)).unwrap_or_default();
        let len = payload.len();
        let acknowledge = match self.path.help(packet, window, payload, now) {
            Ok(Help::Pass) => return self.forward(buf, packet, &plan, now),
            Ok(Help::Adjust { acknowledge }) => acknowledge,
            Ok(Help::Patch) => return self.forward_patched(buf, packet, &plan, now),
            Err(reason) => return self.path.stats.drop_packet(reason),
        };
        let (Some(id), L4::Tcp(s)) = (packet.conn, packet.kind) else { return self.forward(buf, packet, &plan, now) };
        // Invariant: a packet has less than 65,536 bytes.
        let len = u32::try_from(len).unwrap_or(0);
        let streams = self.path.helpers.streams(id, packet.direction);
        let splices = streams.map(|(own, _)| own.splices(s.seq, len)).unwrap_or_default();
        if plan.hop && !self.fits(packet, &mut plan, &splices) {
            // The sender is to leave room for what the text grows by.
            let grown = u16::try_from(segment::growth(&splices)).unwrap_or(0);
            let mtu = self.path.interfaces.get(usize::from(plan.egress.interface())).map_or(0, |i| i.mtu);
            self.path.stats.drop_packet(DropReason::MtuExceeded);
            return self.answer(buf.bytes(), packet, IcmpError::TooBig(mtu.saturating_sub(grown)), now);
        }
        if let Some(acknowledge) = acknowledge {
            self.acknowledge(buf.bytes(), packet, acknowledge);
        }
        let error = self.unreachable(buf.bytes(), packet, &plan);
        if let Err(reason) = self.rewrite(&mut buf, packet, &plan) {
            return self.path.stats.drop_packet(reason);
        }
        if let Some((own, other)) = self.path.helpers.streams(id, packet.direction)
            && !segment::adjust(&mut buf, packet, own, other, &splices)
        {
            return self.path.stats.drop_packet(DropReason::NoBuffer);
        }
        self.dispatch(buf, usize::from(packet.l3), &plan, error, now);
    }

    /// Sends a packet on with call ids replaced.
    fn forward_patched(&mut self, mut buf: I::Buf, packet: &Packet, plan: &Plan, now: Nanos) {
        let error = self.unreachable(buf.bytes(), packet, plan);
        if let Err(reason) = self.rewrite(&mut buf, packet, plan) {
            return self.path.stats.drop_packet(reason);
        }
        if let Some(helped) = packet.conn.and_then(|id| self.path.helpers.find(id)) {
            segment::patch(buf.bytes_mut(), packet, &helped.pptp[packet.direction.index()].patches);
        }
        self.dispatch(buf, usize::from(packet.l3), plan, error, now);
    }

    /// The same for the datagram in the train: its helper reads one fragment after the other. Where it may have to rewrite
    /// what it reads, the datagram cannot pass: fragments stay as they came.
    pub(super) fn help_train(&mut self, packet: &Packet, now: Nanos) -> Result<(), DropReason> {
        if matches!(packet.kind, L4::IcmpError(_)) {
            return Ok(()); // too small to be fragmented
        }
        if packet.conn.is_some_and(|id| self.path.may_rewrite(id)) {
            return Err(DropReason::HelperFragments);
        }
        let Self { path, train, .. } = self;
        let mut part = *packet;
        let last = train.len().saturating_sub(1);
        let (window, mut header) = header::transport(train, packet);
        for (n, piece) in train.iter().enumerate() {
            let payload = header::payload(piece);
            let (of_header, payload) = payload.split_at(header.min(payload.len()));
            header -= of_header.len();
            if payload.is_empty() && n < last {
                continue;
            }
            if let (L4::Tcp(s), L4::Tcp(whole)) = (&mut part.kind, packet.kind) {
                s.flags = if n == last { whole.flags } else { whole.flags & !FIN };
            }
            path.help(&part, window, payload, now)?;
            match &mut part.kind {
                L4::Tcp(s) => s.seq = s.seq.wrapping_add(u32::try_from(payload.len()).unwrap_or(0)),
                _ => break, // a datagram says at its beginning what it is
            }
        }
        Ok(())
    }

    /// Whether the egress link takes the packet with its new text; it may be cut where its sender allows that.
    fn fits(&self, packet: &Packet, plan: &mut Plan, splices: &[Splice]) -> bool {
        let mtu = self.path.interfaces.get(usize::from(plan.egress.interface())).map_or(0, |i| i64::from(i.mtu));
        let grown = i64::try_from(segment::growth(splices)).unwrap_or(0);
        let too_big = i64::from(packet.ip_len) + grown > mtu;
        plan.fragment = too_big;
        !too_big || !packet.dont_fragment
    }

    /// Tells the sender of a segment that it has arrived, though not all of it goes on yet.
    fn acknowledge(&mut self, frame: &[u8], packet: &Packet, a: Acknowledge) {
        let Some(mut buf) = self.io.alloc() else { return };
        if !buf.resize(segment::ACKNOWLEDGEMENT) {
            return;
        }
        let len = segment::acknowledgement(buf.bytes_mut(), frame, packet, a.ack, a.window);
        if len.is_some_and(|len| buf.resize(len)) {
            self.outward_own(&mut buf, packet, false);
            self.queue(buf, packet.in_port);
        }
    }
}

/// The window of a TCP segment, and where its payload begins, or a UDP datagram's.
fn transport(b: &[u8], packet: &Packet) -> (u16, usize) {
    let l4 = usize::from(packet.l4);
    match packet.kind {
        L4::Tcp(_) => (be16(b, l4 + 14), l4 + usize::from(b[l4 + 12] >> 4) * 4),
        _ => (0, l4 + UDP_HEADER),
    }
}
