//! UDP and UDP-Lite: when a connection counts as a stream.
//!
//! A reply alone makes none. The first packet of a UDP connection that comes after a reply was seen *and* more than two
//! seconds after the first makes it a stream: assured, with the longer timeout. The reply itself does not, however late.
//! UDP-Lite knows no two seconds: the first packet after a reply makes it a stream.
//!
//! *Life-cycle*: within its connection. *Threads*: the owner's worker.
//! *Sources*: `linux/net/netfilter/nf_conntrack_proto_udp.c` (`nf_conntrack_udp_packet`,
//! `nf_conntrack_udplite_packet`).

use super::l4::{BODY_WORDS, Context, L4Body, Step};
use crate::time::Nanos;

/// How long after its first packet a connection can become a stream.
const STREAM_AFTER: Nanos = Nanos::from_secs(2);

/// What is known of a UDP connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpTrack {
    /// When it can become a stream. Kept in halves, so that it needs no padding.
    after: [u32; 2],
    /// It is one, and stays one: time goes on.
    stream: bool,
}

impl UdpTrack {
    /// A connection whose first packet comes now.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub const fn begin(now: Nanos) -> Self {
        let at = now.0 + STREAM_AFTER.0;
        Self { after: [(at >> 32) as u32, at as u32], stream: false }
    }

    /// As it is kept, in two places.
    #[inline]
    pub const fn split(self) -> (bool, L4Body) {
        let mut words = [0; BODY_WORDS];
        [words[0], words[1]] = self.after;
        (self.stream, L4Body(words))
    }

    /// What was kept.
    #[inline]
    pub const fn join(stream: bool, body: &L4Body) -> Self {
        let [hi, lo, ..] = body.0;
        Self { after: [hi, lo], stream }
    }

    /// Whether a packet that comes `now`, after a reply, makes it a stream.
    #[inline]
    pub fn is_stream(self, now: Nanos) -> bool {
        now > self.stream_after()
    }

    const fn stream_after(self) -> Nanos {
        Nanos((self.after[0] as u64) << 32 | self.after[1] as u64)
    }

    /// A further packet.
    #[inline]
    pub fn step(&mut self, c: &Context<'_>) -> Step {
        self.stream = c.replied && self.is_stream(c.now);
        step(c, self.stream)
    }
}

/// A further packet of a UDP-Lite connection.
pub const fn step_lite(c: &Context<'_>) -> Step {
    step(c, c.replied)
}

#[inline]
const fn step(c: &Context<'_>, stream: bool) -> Step {
    let timeout = if stream { c.timeouts.udp_stream } else { c.timeouts.udp };
    Step::Pass { timeout: Some(timeout), assured: stream, end: false, changed: false }
}
