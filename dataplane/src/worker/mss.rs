//! TCP's largest segment: what SYNs announce that enter or leave by an interface with a clamp.
//!
//! *Threads*: the worker's. *Limits*: segments that are no SYN cost a branch; options are read as far as the header goes.

use arrayvec::ArrayVec;

use super::{Worker, header};
use crate::api::policy::Mss;
use crate::conntrack::tcp::SYN;
use crate::defrag::Train;
use crate::io::{Buf, Io};
use crate::nat::mss;
use crate::packet::Packet;
use crate::parse::tcp::TCP_HEADER;
use crate::parse::{ipv4, ipv6};
use crate::path::{Path, Plan};

impl<I: Io> Worker<I> {
    /// Lowers what a packet announces, where it is a SYN. It may be translated already.
    #[inline]
    pub(super) fn clamp(&self, buf: &mut I::Buf, packet: &Packet, plan: &Plan) {
        if packet.tcp_flags() & SYN != 0
            && let Some(max) = largest_segment(&self.path, packet, plan)
        {
            let (_, l4, end) = packet.span();
            mss::clamp(buf.bytes_mut().get_mut(l4..end).unwrap_or_default(), max);
        }
    }

    /// The same for the datagram in `train`, `packet` being the whole: its header may lie in several fragments.
    pub(super) fn clamp_train(path: &Path, train: &mut Train<I::Buf>, packet: &Packet, plan: &Plan) {
        if packet.tcp_flags() & SYN != 0
            && let Some(max) = largest_segment(path, packet, plan)
        {
            let mut head: ArrayVec<u8, { header::HEAD }> = header::head(train);
            head.truncate(mss::LONGEST_HEADER);
            if mss::clamp(&mut head, max) {
                header::write(train, 0, &head);
            }
        }
    }
}

/// The most that a segment may hold which answers a SYN on this way; `None` where neither interface says.
fn largest_segment(path: &Path, packet: &Packet, plan: &Plan) -> Option<u16> {
    let headers = TCP_HEADER + if packet.tuple.is_ipv4() { ipv4::HEADER } else { ipv6::HEADER };
    let of = |interface: u16| {
        let at = usize::from(interface);
        match path.policy.spec().interface_mss.get(at).copied().flatten()? {
            Mss::Fixed(max) => Some(max),
            Mss::Auto => {
                let mtu = usize::from(path.interfaces.get(at)?.mtu);
                u16::try_from(mtu.saturating_sub(headers)).ok()
            }
        }
    };
    let (came, leaves) = (of(packet.in_port.interface()), of(plan.egress.interface()));
    came.into_iter().chain(leaves).min()
}
