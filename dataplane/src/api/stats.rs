//! Counters of one worker: written by it alone, read by control at any time.
//!
//! *Threads*: single writer, so a count is a relaxed load and a relaxed store, no locked instruction; readers may see
//! counters of one packet at slightly different times. *Limits*: all arrays are sized at start.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::histogram::Histogram;
use crate::conntrack::tuple::Direction;
use crate::drop::{DROP_REASONS, DropReason};
use crate::io::PortIdx;
use crate::packet::{CT_STATES, CtState};

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owner calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Replaces the value. Only the owner calls this.
    #[inline]
    pub fn set(&self, v: u64) {
        self.0.store(v, Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Names an index of a counter array, with its metric label.
macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $label:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

labelled! {
    /// Why a packet went to another worker.
    HandoverCause {
        /// The port has no usable RSS: software steering.
        Steer "steer";
        /// A signpost named the flow's owner.
        Signpost "signpost";
        /// An ICMP error whose quoted packet belongs to another worker.
        IcmpError "icmp_error";
        /// The flow that a signpost named is gone; back to the tuple's home.
        Stale "stale";
        /// A reassembled datagram, or fragments of one.
        Fragment "fragment";
        /// The first packet of a connection that another worker expects.
        Expectation "expectation";
        /// Translation between prefixes has given it another home than its port's RSS knows.
        Prefix "prefix";
    }
}

labelled! {
    /// What happened to connections.
    CtEvent {
        /// Confirmed.
        New "new";
        /// The reply was seen for the first time.
        Replied "replied";
        /// Became assured.
        Assured "assured";
        /// Ended by its timeout.
        Expired "expired";
        /// Ended by its protocol (a reset in SYN_SENT, a new SYN in TIME_WAIT).
        Closed "closed";
        /// Ended by the operator.
        Flushed "flushed";
        /// Ended because a reload denies it.
        Denied "denied";
        /// Ended because a reload translates it otherwise.
        Retranslated "retranslated";
        /// Ended because the address that it was translated to is not the gateway's any more.
        AddressGone "address_gone";
        /// Ended early to make room.
        EarlyDrop "early_drop";
        /// Ended at once, for its first packet could not pass its helper.
        Refused "refused";
    }
}

labelled! {
    /// ICMP errors that the gateway makes itself.
    IcmpErrorKind {
        /// Destination unreachable.
        Unreachable "unreachable";
        /// Time exceeded.
        TimeExceeded "time_exceeded";
        /// Fragmentation needed, or packet too big.
        TooBig "too_big";
        /// Parameter problem.
        Parameter "parameter_problem";
        /// Not sent: the rate limit was reached.
        Suppressed "suppressed";
    }
}

labelled! {
    /// What became of a fragment.
    FragmentResult {
        /// Its datagram became whole, and was judged.
        Reassembled "reassembled";
        /// Its datagram's first fragment was judged, and it got the same verdict (virtual mode).
        Virtual "virtual";
        /// The rest of its datagram did not come in time.
        Timeout "timeout";
        /// It overlapped another, or another it.
        Overlap "overlap";
        /// It was there already.
        Duplicate "duplicate";
        /// Its datagram made room for others.
        Limit "limit";
        /// Its datagram made room for others of the same source.
        Share "share";
        /// Its datagram came in too many.
        Count "count";
        /// Its datagram's first fragment did not hold the transport header (virtual mode).
        Header "header";
        /// Its datagram's first fragment was refused (virtual mode).
        First "first";
        /// Its length, or one of its datagram's, cannot be.
        Invalid "invalid";
    }
}

impl FragmentResult {
    /// What a drop for this reason is; `None` where the reason is not about fragments.
    pub const fn of(reason: DropReason) -> Option<Self> {
        Some(match reason {
            DropReason::FragmentTimeout => Self::Timeout,
            DropReason::FragmentOverlap => Self::Overlap,
            DropReason::FragmentDuplicate => Self::Duplicate,
            DropReason::FragmentLimit => Self::Limit,
            DropReason::FragmentShare => Self::Share,
            DropReason::FragmentCount => Self::Count,
            DropReason::FragmentHeader => Self::Header,
            DropReason::FragmentFirst => Self::First,
            DropReason::FragmentInvalid => Self::Invalid,
            _ => return None,
        })
    }
}

/// Traffic of one port queue.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortCounters {
    /// Frames received.
    pub rx_packets: Counter,
    /// Bytes received, Ethernet header on.
    pub rx_bytes: Counter,
    /// Frames sent.
    pub tx_packets: Counter,
    /// Bytes sent, Ethernet header on.
    pub tx_bytes: Counter,
}

/// Translated addresses whose use is counted one by one; what finds no place is counted for none.
pub const NAT_ADDRESSES: usize = 1024;

/// Places that are looked at for an address.
const NAT_LOOKS: usize = 16;

/// Protocols whose ports or identifiers are counted, by index of [`NatUse::leases`].
pub const NAT_PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "other"];

/// Ports in use of one translated address.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct NatUse {
    /// The address as IPv6 (IPv4 mapped), upper and lower half; zero where the place is free.
    address: [Counter; 2],
    /// Leases by [`NAT_PROTOCOLS`].
    pub leases: [Counter; 4],
}

impl NatUse {
    /// Whose ports they are; `None` where the place was never used.
    pub fn address(&self) -> Option<IpAddr> {
        let bits = u128::from(self.address[0].value()) << 64 | u128::from(self.address[1].value());
        (bits != 0).then(|| Ipv6Addr::from_bits(bits).to_canonical())
    }

    fn set_address(&self, a: IpAddr) {
        let octets = match a {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        for (half, bytes) in self.address.iter().zip(octets.as_chunks::<8>().0) {
            half.set(u64::from_be_bytes(*bytes));
        }
    }
}

/// All counters of one worker. They are aligned, those in memory of their own too, so that no two workers share a cache
/// line.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerStats {
    /// By [`PortIdx`].
    pub ports: Box<[PortCounters]>,
    /// By [`DropReason`].
    pub drops: [Counter; DROP_REASONS],
    /// By [`CtState`] and [`Direction`].
    pub classified: [[Counter; 2]; CT_STATES],
    /// By [`HandoverCause`]: packets given to another worker.
    pub handovers: [Counter; HandoverCause::ALL.len()],
    /// By [`CtEvent`].
    pub ct_events: [Counter; CtEvent::ALL.len()],
    /// By [`IcmpErrorKind`].
    pub icmp_errors: [Counter; IcmpErrorKind::ALL.len()],
    /// By [`FragmentResult`]: fragments that wait no longer.
    pub fragments: [Counter; FragmentResult::ALL.len()],
    /// Datagrams now of which fragments are missing.
    pub fragment_queues: Counter,
    /// Bytes that they occupy.
    pub fragment_memory: Counter,
    /// Connections in the table now.
    pub conntrack_entries: Counter,
    /// Signposts in the table now.
    pub signposts: Counter,
    /// Failed choices of a source port.
    pub nat_failures: Counter,
    /// Leases of translated ports in the table now, by address in the order of their first use.
    pub nat: Box<[NatUse]>,
    /// Loop iterations' time that moved packets, nanoseconds.
    pub busy_ns: Counter,
    /// Loop iterations' time that found nothing, nanoseconds.
    pub idle_ns: Counter,
    /// Burst time: how long each loop iteration took that moved packets.
    pub burst: Histogram,
    /// Time of packets in the box, from the poll that received them until they were given to a port: each packet that an
    /// iteration received counts as long as the whole iteration took, for its burst leaves at the end. Dropped packets
    /// count too. A packet that is handed over counts once at each of the two workers, its wait in the ring
    /// between them not; what else waits (fragments, packets without a next hop or a word of their replies' home) counts
    /// when it arrives, and its wait does not. Nor does what a packet waited in the device for the poll.
    pub latency: Histogram,
    /// Reports of changed connections that found no room.
    pub events_lost: Counter,
    /// Expectations now.
    pub expectations: Counter,
    /// Ports whose RSS hash disagreed with ours and that are steered in software since.
    pub rss_mismatches: Counter,
    /// Packets of known connections that took the short way.
    pub fast_packets: Counter,
}

impl WorkerStats {
    /// All zero, for `interfaces` interfaces.
    pub fn new(interfaces: usize) -> Self {
        Self {
            ports: (0..interfaces * 2).map(|_| PortCounters::default()).collect(),
            drops: [const { Counter(AtomicU64::new(0)) }; DROP_REASONS],
            classified: Default::default(),
            handovers: Default::default(),
            ct_events: Default::default(),
            icmp_errors: Default::default(),
            fragments: Default::default(),
            fragment_queues: Counter::default(),
            fragment_memory: Counter::default(),
            conntrack_entries: Counter::default(),
            signposts: Counter::default(),
            nat_failures: Counter::default(),
            nat: (0..NAT_ADDRESSES).map(|_| NatUse::default()).collect(),
            busy_ns: Counter::default(),
            idle_ns: Counter::default(),
            burst: Histogram::new(),
            latency: Histogram::new(),
            events_lost: Counter::default(),
            expectations: Counter::default(),
            rss_mismatches: Counter::default(),
            fast_packets: Counter::default(),
        }
    }

    /// Counts one dropped packet.
    #[inline]
    pub fn drop_packet(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Counts what became of `n` fragments.
    #[inline]
    pub fn fragments(&self, result: FragmentResult, n: usize) {
        self.fragments[result as usize].add(n as u64);
    }

    /// Counts one classified packet.
    #[inline]
    pub fn classify(&self, state: CtState, direction: Direction) {
        self.classify_many(state, direction, 1);
    }

    /// Counts `n` classified packets.
    #[inline]
    pub fn classify_many(&self, state: CtState, direction: Direction, n: u64) {
        self.classified[state as usize][direction.index()].add(n);
    }

    /// Counts one packet handed over.
    #[inline]
    pub fn handover(&self, cause: HandoverCause) {
        self.handovers[cause as usize].add(1);
    }

    /// Counts one change of a connection.
    #[inline]
    pub fn ct_event(&self, event: CtEvent) {
        self.ct_events[event as usize].add(1);
    }

    /// Counts a lease of a port (or identifier) of `address`, or with `change` -1 its return. `kind` indexes
    /// [`NAT_PROTOCOLS`].
    pub fn lease(&self, address: IpAddr, kind: usize, change: i64) {
        let address = address.to_canonical();
        let bits = match address {
            IpAddr::V4(a) => u64::from(a.to_bits()),
            IpAddr::V6(a) => a.segments().iter().fold(0_u64, |h, &s| h.wrapping_mul(31).wrapping_add(u64::from(s))),
        };
        let first = usize::try_from(bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).unwrap_or(0);
        let places = || (0..NAT_LOOKS).map(|n| (first + n) % NAT_ADDRESSES);
        let of = |place: &usize| self.nat[*place].address() == Some(address);
        let free = |place: &usize| self.nat[*place].address().is_none();
        // A place is its address's for good: where a lease was counted its return is.
        let Some(place) = places().find(|place| of(place) || free(place)) else { return };
        if free(&place) {
            self.nat[place].set_address(address);
        }
        self.nat[place].leases[kind].add(change.cast_unsigned());
    }

    /// The counters of one port.
    #[inline]
    pub fn port(&self, port: PortIdx) -> &PortCounters {
        &self.ports[usize::from(port.0)]
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// Everything that a worker writes.
    fn memory(s: &WorkerStats) -> Vec<Range<usize>> {
        let bytes = |r: Range<*const u8>| r.start.addr()..r.end.addr();
        let of = |first: *const u8, size: usize| first.addr()..first.addr() + size;
        vec![
            of(std::ptr::from_ref(s).cast(), size_of::<WorkerStats>()),
            of(s.ports.as_ptr().cast(), size_of_val(&*s.ports)),
            of(s.nat.as_ptr().cast(), size_of_val(&*s.nat)),
            bytes(s.burst.memory()),
            bytes(s.latency.memory()),
        ]
    }

    #[test]
    fn all_that_a_worker_counts_begins_and_ends_with_a_cache_line() {
        // As control makes them: one after the other, from the same heap.
        let workers: Vec<_> = (0..4).map(|_| std::sync::Arc::new(WorkerStats::new(1))).collect();
        for part in workers.iter().flat_map(|s| memory(s)) {
            assert!(part.start.is_multiple_of(64) && part.end.is_multiple_of(64), "{part:x?}");
        }
    }
}
