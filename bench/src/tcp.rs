//! TCP connections from handshake to close, laid out over the two ports of a trace so that both stay in step.
//!
//! Two pcap ports run freely, but whoever forwards polls them in turn with the same burst, so that place `t` of one file and
//! place `t` of the other come at nearly the same time. Each connection's packets are therefore spaced by many bursts:
//! packet `p` of flow `j` stands at place `j * STEPS + p * spacing` of the lan file, and the answer to it half a spacing later
//! in the wan file, both modulo the file's length. The spacing is 1 modulo [`STEPS`], so that each place has one packet.
//!
//! A connection ends in TIME_WAIT before its first SYN comes round again, which may reopen it there: RFC 9293 section 3.6.1.
//! *Limits*: [`MIN_FLOWS`]; fewer would bring the packets of a connection too close to each other.

use crate::frame::{ACK, FIN, PSH, SYN, Segment};

/// Packets of a connection in each direction.
pub const STEPS: u32 = 10;

/// Fewest flows: answers are at least 128 places behind, four bursts of 32.
pub const MIN_FLOWS: u32 = 520;

/// Data of a segment, bytes: frames are the shortest.
const DATA: u16 = 6;

/// Which end of a connection sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client, on the lan port.
    Client,
    /// The server, on the wan port.
    Server,
}

/// Where the connections' packets are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    flows: u64,
    spacing: u64,
}

impl Layout {
    /// The layout of so many flows, at least [`MIN_FLOWS`]: a connection lives for half of the trace.
    pub fn new(flows: u32) -> Self {
        let steps = u64::from(STEPS);
        Self { flows: u64::from(flows), spacing: steps * (u64::from(flows) / (2 * steps)) + 1 }
    }

    /// Places of each file.
    pub fn places(&self) -> u64 {
        self.flows * u64::from(STEPS)
    }

    /// Which flow's which packet stands at place `t` of the file that `end` sends.
    pub fn at(&self, end: End, t: u64) -> (u32, u32) {
        let behind = match end {
            End::Client => 0,
            End::Server => self.spacing / 2,
        };
        let (places, steps) = (self.places(), u64::from(STEPS));
        let t = (t + places - behind) % places;
        let step = t % steps;
        let flow = (t + places - step * self.spacing % places) % places / steps;
        // Invariant: both are below u32 numbers.
        (u32::try_from(flow).unwrap_or(0), u32::try_from(step).unwrap_or(0))
    }
}

/// What packet `step` of flow `flow` from `end` says.
///
/// The client opens and sends a segment at each step, the server answers each; the server closes first, the client then.
///
/// ```text
/// step  0        1     2 ..                STEPS - 2   STEPS - 1
/// client SYN     ACK   data                data        FIN
/// server SYN-ACK data  data .. STEPS - 3   FIN         ACK
/// ```
pub fn segment(flow: u32, end: End, step: u32) -> Segment {
    let (last, data) = (STEPS - 1, u32::from(DATA));
    // Where the sequence numbers begin: anywhere, so that some wrap.
    let client = flow.wrapping_mul(0x9e37_79b9).wrapping_add(1);
    let server = flow.wrapping_mul(0x85eb_ca6b).wrapping_add(2);
    // What each has sent before this packet: its SYN counts as one byte, and so does its FIN.
    let client_sent = |step: u32| if step == 0 { 0 } else { 1 + data * step.saturating_sub(2) };
    let server_sent = |step: u32| match step {
        0 => 0,
        s if s == last => 2 + data * (last - 2),
        s => 1 + data * (s - 1),
    };
    let (seq, ack) = match end {
        End::Client => (client.wrapping_add(client_sent(step)), server.wrapping_add(server_sent(step))),
        // The client's packet of the same step has come.
        End::Server if step == last => {
            (server.wrapping_add(server_sent(step)), client.wrapping_add(client_sent(step) + 1))
        }
        End::Server => (server.wrapping_add(server_sent(step)), client.wrapping_add(client_sent(step + 1))),
    };
    let (flags, payload) = match (end, step) {
        (End::Client, 0) => (SYN, 0),
        (End::Server, 0) => (SYN | ACK, 0),
        (End::Client, 1) => (ACK, 0),
        (End::Client, s) if s == last => (FIN | ACK, 0),
        (End::Server, s) if s == last - 1 => (FIN | ACK, 0),
        (End::Server, s) if s == last => (ACK, 0),
        _ => (PSH | ACK, DATA),
    };
    Segment { seq, ack: if flags & ACK == 0 { 0 } else { ack }, flags, payload }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Sequence space that a segment takes.
    fn takes(s: Segment) -> u32 {
        u32::from(s.payload) + u32::from(s.flags & SYN != 0) + u32::from(s.flags & FIN != 0)
    }

    #[test]
    fn each_place_has_one_packet_and_each_packet_one_place() {
        for flows in [MIN_FLOWS, 1_000, 1_003] {
            let layout = Layout::new(flows);
            for end in [End::Client, End::Server] {
                let seen: HashSet<_> = (0..layout.places()).map(|t| layout.at(end, t)).collect();
                assert_eq!(seen.len() as u64, layout.places());
                assert!(seen.iter().all(|&(flow, step)| flow < flows && step < STEPS));
            }
        }
    }

    #[test]
    fn the_packets_of_a_connection_are_in_order_and_four_bursts_apart() {
        for flows in [MIN_FLOWS, 1_000, 65_536] {
            let layout = Layout::new(flows);
            let places = layout.places();
            // Where the packets of some flows are, read from the file itself.
            let mut at = std::collections::HashMap::new();
            for t in 0..places {
                for end in [End::Client, End::Server] {
                    let (flow, step) = layout.at(end, t);
                    if flow % 97 == 0 {
                        at.insert((flow, 2 * step + u32::from(end == End::Server)), t);
                    }
                }
            }
            for flow in (0..flows).step_by(97) {
                let mut whole = 0;
                for n in 1..2 * STEPS {
                    let gap = (at[&(flow, n)] + places - at[&(flow, n - 1)]) % places;
                    assert!((128..places / 2).contains(&gap), "{flows} flows, packet {n} of {flow}: {gap}");
                    whole += gap;
                }
                assert!(whole < places * 3 / 4, "a connection ends well before it begins again");
            }
        }
    }

    #[test]
    fn every_segment_continues_what_its_end_sent_and_acknowledges_all_that_came() {
        for flow in [0, 1, 77, 65_535, 999_999] {
            let mut next: [Option<u32>; 2] = [None, None];
            for step in 0..STEPS {
                for (n, end) in [End::Client, End::Server].into_iter().enumerate() {
                    let s = segment(flow, end, step);
                    if let Some(seq) = next[n] {
                        assert_eq!(s.seq, seq, "{end:?} at step {step} of flow {flow}");
                    } else {
                        assert!(s.flags & SYN != 0, "{end:?} begins with a SYN");
                    }
                    assert_eq!(s.ack, next[1 - n].unwrap_or(0), "{end:?} at step {step} of flow {flow}");
                    next[n] = Some(s.seq.wrapping_add(takes(s)));
                }
            }
        }
    }

    #[test]
    fn both_ends_close_and_the_last_acknowledgement_is_the_closers() {
        let flags = |end, step| segment(5, end, step).flags;
        assert_eq!(flags(End::Server, STEPS - 2), FIN | ACK);
        assert_eq!(flags(End::Client, STEPS - 1), FIN | ACK);
        assert_eq!(flags(End::Server, STEPS - 1), ACK);
    }
}
