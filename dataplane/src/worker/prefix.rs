//! What translation between prefixes does to bytes; [`crate::path`] says what becomes of which address.
//!
//! Checksums stay as they are: that is what the mapping is made for. An error's checksum covers its quote, whose addresses
//! keep their sum as well. *Threads*: the worker's. *Limits*: a policy without such rules costs a branch.

use super::{Worker, header};
use crate::defrag::Train;
use crate::drop::DropReason;
use crate::io::{Buf, Io};
use crate::nat::rewrite;
use crate::packet::{L4, Packet};
use crate::parse::{icmp, ipv6};
use crate::path::{Path, Plan, Refusal};

impl<I: Io> Worker<I> {
    /// Translates the destination of a packet that has just come, and what it quotes.
    #[inline]
    pub(super) fn inward(&self, buf: &mut I::Buf, packet: &mut Packet) -> Result<(), Refusal> {
        if self.path.policy.prefixes().is_empty() { Ok(()) } else { self.inward_by_rule(buf, packet) }
    }

    fn inward_by_rule(&self, buf: &mut I::Buf, packet: &mut Packet) -> Result<(), Refusal> {
        let Some((rule, dst)) = self.path.inward(packet)? else { return Ok(()) };
        let (l3, l4, end) = packet.span();
        rewrite::set_destination6(buf.bytes_mut(), l3, dst);
        packet.prefix = rule;
        packet.tuple.dst = dst.into();
        if let Some(src) = self.path.inward_quoted(packet)
            && let L4::IcmpError(Some(quoted)) = &mut packet.kind
        {
            quoted.tuple.src = src.into();
            let at = l4 + usize::from(quoted.at) + usize::from(ipv6::SOURCE_AT);
            rewrite::set_address6(&mut buf.bytes_mut()[..end], at, src);
        }
        Ok(())
    }

    /// Translates what the datagram in the train quotes, `packet` being the whole or its first fragment: only now it is known.
    pub(super) fn inward_train(&mut self, packet: &mut Packet) {
        if packet.prefix != 0
            && let Some(src) = self.path.inward_quoted(packet)
            && let L4::IcmpError(Some(quoted)) = &mut packet.kind
        {
            quoted.tuple.src = src.into();
            let at = usize::from(quoted.at) + usize::from(ipv6::SOURCE_AT);
            header::write(&mut self.train, at, &src.octets());
        }
    }

    /// Translates the source of a packet that is on its way out, and what it quotes.
    #[inline]
    pub(super) fn outward(&self, buf: &mut I::Buf, packet: &Packet, plan: &Plan) -> Result<(), DropReason> {
        if self.path.policy.prefixes().is_empty() { Ok(()) } else { self.outward_by_rule(buf, packet, plan) }
    }

    fn outward_by_rule(&self, buf: &mut I::Buf, packet: &Packet, plan: &Plan) -> Result<(), DropReason> {
        let [src, quoted_dst] = self.path.outward(packet, plan)?;
        let (l3, l4, end) = packet.span();
        if let Some(src) = src {
            rewrite::set_source6(buf.bytes_mut(), l3, src);
        }
        if let (Some(dst), L4::IcmpError(Some(quoted))) = (quoted_dst, packet.kind) {
            let at = l4 + usize::from(quoted.at) + usize::from(ipv6::DESTINATION_AT);
            rewrite::set_address6(&mut buf.bytes_mut()[..end], at, dst);
        }
        Ok(())
    }

    /// The same for the first fragment of the datagram in `train`, `packet` being the whole.
    pub(super) fn outward_train(
        path: &Path,
        train: &mut Train<I::Buf>,
        packet: &Packet,
        plan: &Plan,
    ) -> Result<(), DropReason> {
        if path.policy.prefixes().is_empty() {
            return Ok(());
        }
        let [src, quoted_dst] = path.outward(packet, plan)?;
        if let (Some(src), Some(first)) = (src, train.first_mut()) {
            rewrite::set_source6(first.buf.bytes_mut(), usize::from(packet.l3), src);
        }
        if let (Some(dst), L4::IcmpError(Some(quoted))) = (quoted_dst, packet.kind) {
            header::write(train, usize::from(quoted.at) + usize::from(ipv6::DESTINATION_AT), &dst.octets());
        }
        Ok(())
    }

    /// The same for a later fragment of the datagram `whole`.
    #[inline]
    pub(super) fn outward_later(
        &self,
        buf: &mut I::Buf,
        l3: usize,
        whole: &Packet,
        plan: &Plan,
    ) -> Result<(), DropReason> {
        if !self.path.policy.prefixes().is_empty()
            && let [Some(src), _] = self.path.outward(whole, plan)?
        {
            rewrite::set_source6(buf.bytes_mut(), l3, src);
        }
        Ok(())
    }

    /// Translates a packet that the gateway has made about `p`, and that leaves by where that came in: its source, and where
    /// it is an error the destination that it quotes, which is to be what the sender of `p` knows.
    pub(super) fn outward_own(&self, buf: &mut I::Buf, p: &Packet, is_error: bool) {
        if self.path.policy.prefixes().is_empty() || p.tuple.is_ipv4() {
            return;
        }
        let l3 = usize::from(p.l3);
        let b = buf.bytes_mut();
        let Some(src) = rewrite::source6(b, l3) else { return };
        let [src, quoted_dst] = self.path.outward_own(p, src.into());
        if let Some(src) = src {
            rewrite::set_source6(b, l3, src);
        }
        if let Some(dst) = quoted_dst.filter(|_| is_error) {
            let at = l3 + ipv6::HEADER + icmp::HEADER + usize::from(ipv6::DESTINATION_AT);
            rewrite::set_address6(b, at, dst);
        }
    }
}
