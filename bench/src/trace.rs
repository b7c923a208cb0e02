//! Traces: what comes to each port, place by place, and in which queue of it.
//!
//! Flows are spread over the queues as a NIC does it that is set up as the dataplane wants it: by [`Steer::home`] itself.
//! *Limits*: [`Trace::new`] refuses what a case cannot have.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use dataplane::steer::Steer;

use crate::flow::{Case, Endpoints, Flow};
use crate::frame::{self, Link, Mac};
use crate::pcap;
use crate::tcp::{self, End, Layout};

/// MAC of DPDK's first and second pcap port: `02:70:63:61:70:NN`, NN counts the ports of the process.
pub const PCAP_PORTS: [Mac; 2] = [[0x02, b'p', b'c', b'a', b'p', 0], [0x02, b'p', b'c', b'a', b'p', 1]];

/// The router that clients are behind, and the one that servers are behind.
pub const ROUTERS: [Mac; 2] = [[0x02, 0, 0, 0, 0, 0x0a], [0x02, 0, 0, 0, 0, 0x0b]];

/// Of so many packets of [`Case::Mixed`] one starts a flow.
pub const MIXED: u32 = 10;

/// Flows of each port that [`Case::Mixed`] starts, one after the other. All of them take longer to come than a connection lives
/// that has a timeout of 100 ms: at 13 Mpps 0.23 s.
pub const BRIEF_FLOWS: u32 = 150_000;

/// One of the gateway's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where clients are.
    Lan,
    /// Where servers are.
    Wan,
}

impl Side {
    /// Both, in the order of their port ids.
    pub const BOTH: [Self; 2] = [Self::Lan, Self::Wan];

    /// Its name in file names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
        }
    }

    fn of(self, flow: &Flow) -> Endpoints {
        match self {
            Self::Lan => flow.lan,
            Self::Wan => flow.wan,
        }
    }
}

/// Why there is no such trace.
#[derive(Debug, PartialEq, Eq)]
pub enum TraceError {
    /// Fewer flows than the case can have.
    TooFew {
        /// The case.
        case: Case,
        /// The fewest.
        least: u32,
    },
    /// Each flow takes several frames, which would not fit any memory.
    TooMany {
        /// The case.
        case: Case,
        /// The most.
        most: u32,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { case, least } => write!(f, "case {} needs at least {least} flows", case.name()),
            Self::TooMany { case, most } => {
                write!(f, "case {} takes several frames a flow: at most {most} flows", case.name())
            }
        }
    }
}

impl std::error::Error for TraceError {}

/// One trace, for both ports.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    case: Case,
    flows: u32,
    queues: u16,
    links: [Link; 2],
}

impl Trace {
    /// The trace of `flows` flows for `queues` queues of each port, 1 to 128. `gateway` are the MAC addresses that frames are
    /// for; those of DPDK's pcap ports otherwise.
    ///
    /// # Errors
    /// A number of flows that the case cannot have.
    pub fn new(case: Case, flows: u32, queues: u16, gateway: [Mac; 2]) -> Result<Self, TraceError> {
        let (least, most) = match case {
            Case::Tcp => (tcp::MIN_FLOWS * u32::from(queues), 400_000),
            // Each port has half of them.
            Case::NewConnections => (2, u32::MAX),
            _ => (1, u32::MAX),
        };
        if flows < least {
            return Err(TraceError::TooFew { case, least });
        }
        if flows > most {
            return Err(TraceError::TooMany { case, most });
        }
        let links = [0, 1].map(|n| Link { to: gateway[n], from: ROUTERS[n] });
        Ok(Self { case, flows, queues, links })
    }

    /// Writes `lan.Q.pcap` and `wan.Q.pcap` for each queue Q into `directory`, and returns how many frames they have.
    ///
    /// # Errors
    /// Those of files; a queue that would have no frame.
    pub fn write(&self, directory: &Path) -> io::Result<u64> {
        let mut frames = 0;
        for side in Side::BOTH {
            let file = |queue| {
                let name: PathBuf = directory.join(format!("{}.{queue}.pcap", side.name()));
                File::create(name).and_then(|f| pcap::Writer::new(BufWriter::with_capacity(1 << 20, f)))
            };
            let mut files = (0..self.queues).map(file).collect::<io::Result<Vec<_>>>()?;
            self.packets(side, |queue, frame| files[queue].frame(frame))?;
            for (queue, file) in files.into_iter().enumerate() {
                let count = file.finish()?;
                if count == 0 {
                    let why = format!("queue {queue} of {} would have no frame: more flows are needed", side.name());
                    return Err(io::Error::other(why));
                }
                frames += count;
            }
        }
        Ok(frames)
    }

    /// Gives each frame of `side`, in order, to `out` with the queue that it is for.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn packets(&self, side: Side, mut out: impl FnMut(usize, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let steer = Steer::new(0, self.queues);
        let link = self.links[usize::from(side == Side::Wan)];
        let queue = |at: Endpoints| usize::from(steer.home(&at.tuple()));
        match self.case {
            Case::Tcp => {
                let layout = Layout::new(self.flows);
                let end = if side == Side::Lan { End::Client } else { End::Server };
                for t in 0..layout.places() {
                    let (flow, step) = layout.at(end, t);
                    let at = side.of(&Flow::number(flow, Case::Tcp));
                    out(queue(at), &frame::tcp(link, at, tcp::segment(flow, end, step)))?;
                }
            }
            Case::Mixed => {
                let places = (BRIEF_FLOWS * MIXED).max(self.flows.div_ceil(MIXED - 1) * MIXED);
                for t in 0..places {
                    let flow = match t % MIXED {
                        0 => Flow::brief(t / MIXED),
                        n => Flow::number((t / MIXED * (MIXED - 1) + n - 1) % self.flows, Case::Mixed),
                    };
                    let at = side.of(&flow);
                    out(queue(at), &frame::udp(link, at, frame::SHORTEST))?;
                }
            }
            case => {
                let flows = if case == Case::NewConnections { self.flows / 2 } else { self.flows };
                for (i, flow) in (0_u32..).zip(Flow::all(case, flows)) {
                    let at = side.of(&flow);
                    if case == Case::Fragments {
                        // Hosts have fewer than 65,536 flows with each other, so identifications differ.
                        let id = u16::try_from(i & 0xffff).unwrap_or(0);
                        let queue = usize::from(steer.home(&at.without_ports()));
                        for half in frame::halves(link, at, frame::LONGEST, id) {
                            out(queue, &half)?;
                        }
                    } else {
                        out(queue(at), &frame::udp(link, at, payload(case, i)))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes of data in flow `i`'s datagrams.
fn payload(case: Case, i: u32) -> u16 {
    match (case, i % 12) {
        (Case::Large, _) | (Case::Imix, 0) => frame::LONGEST,
        (Case::Imix, 3 | 5 | 7 | 9) => frame::MIDDLE,
        _ => frame::SHORTEST,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use clap::ValueEnum;

    use super::*;

    fn frames(case: Case, flows: u32, queues: u16, side: Side) -> Vec<Vec<Vec<u8>>> {
        let mut all = vec![Vec::new(); usize::from(queues)];
        let trace = Trace::new(case, flows, queues, PCAP_PORTS).expect("the case can have so many flows");
        trace
            .packets(side, |queue, frame| {
                all[queue].push(frame.to_vec());
                Ok(())
            })
            .expect("a Vec takes all");
        all
    }

    /// Addresses and ports as they stand in a frame.
    fn endpoints(frame: &[u8]) -> Endpoints {
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let v4 = |at: usize| IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four bytes")));
        let v6 = |at: usize| IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes")));
        if frame[12..14] == [0x86, 0xdd] {
            Endpoints { source: v6(22), destination: v6(38), sport: port(54), dport: port(56) }
        } else {
            Endpoints { source: v4(26), destination: v4(30), sport: port(34), dport: port(36) }
        }
    }

    /// Flows that a test can afford: a million and a half packets of `mixed` are too many.
    fn cases() -> impl Iterator<Item = Case> {
        Case::value_variants().iter().copied().filter(|&c| c != Case::Mixed)
    }

    #[test]
    fn every_frame_is_in_the_queue_that_the_dataplane_says() {
        let steer = Steer::new(0, 2);
        for case in cases() {
            for side in Side::BOTH {
                for (queue, frames) in frames(case, 4_000, 2, side).iter().enumerate() {
                    for frame in frames {
                        let at = endpoints(frame);
                        let tuple = if case == Case::Fragments { at.without_ports() } else { at.tuple() };
                        assert_eq!(usize::from(steer.home(&tuple)), queue, "{case:?} {at:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn two_queues_have_about_half_of_the_frames_each_and_all_of_them_together() {
        for case in cases() {
            for side in Side::BOTH {
                let one = frames(case, 20_000, 1, side)[0].len();
                let two: Vec<usize> = frames(case, 20_000, 2, side).iter().map(Vec::len).collect();
                assert_eq!(two.iter().sum::<usize>(), one);
                assert!(two[0] * 20 > one * 9 && two[1] * 20 > one * 9, "{case:?}: {two:?}");
            }
        }
    }

    #[test]
    fn both_directions_of_an_untranslated_tcp_connection_keep_step_in_each_queue() {
        let [lan, wan] = Side::BOTH.map(|side| frames(Case::Tcp, 2_000, 2, side));
        for queue in 0..2 {
            assert_eq!(lan[queue].len(), wan[queue].len());
            // The answer to a SYN comes after it, at least two bursts.
            let synack: HashMap<Endpoints, usize> = wan[queue]
                .iter()
                .enumerate()
                .filter(|(_, f)| f[47] == 0x12)
                .map(|(t, f)| (endpoints(f).inverse(), t))
                .collect();
            let length = lan[queue].len();
            for (t, syn) in lan[queue].iter().enumerate().filter(|(_, f)| f[47] == 0x02) {
                let gap = (synack[&endpoints(syn)] + length - t) % length;
                assert!((64..length / 2).contains(&gap), "{gap}");
            }
        }
    }

    #[test]
    fn every_packet_of_new_connections_is_a_flow_of_its_own() {
        let mut seen = HashSet::new();
        for side in Side::BOTH {
            for frame in &frames(Case::NewConnections, 100_000, 1, side)[0] {
                let at = endpoints(frame);
                assert!(seen.insert(at) && !seen.contains(&at.inverse()), "{at:?}");
            }
        }
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn one_packet_in_ten_of_mixed_is_new_and_nine_are_of_the_flows() {
        let trace = Trace::new(Case::Mixed, 1_000, 1, PCAP_PORTS).expect("mixed can have a thousand flows");
        let (mut brief, mut established, mut packets) = (HashSet::new(), HashSet::new(), 0);
        trace
            .packets(Side::Lan, |_, frame| {
                packets += 1;
                let at = endpoints(frame);
                match at.dport {
                    crate::flow::BRIEF_SERVICE => assert!(brief.insert(at), "{at:?} comes twice"),
                    _ => drop(established.insert(at)),
                }
                Ok(())
            })
            .expect("nothing fails");
        assert_eq!((brief.len(), established.len(), packets), (150_000, 1_000, 1_500_000));
    }

    #[test]
    fn imix_is_seven_to_four_to_one() {
        let mut sizes = HashMap::new();
        for frame in &frames(Case::Imix, 12_000, 1, Side::Lan)[0] {
            *sizes.entry(frame.len()).or_insert(0) += 1;
        }
        assert_eq!(sizes, HashMap::from([(60, 7_000), (566, 4_000), (1514, 1_000)]));
    }

    #[test]
    fn frames_go_from_the_router_of_their_side_to_the_gateway() {
        for (n, side) in Side::BOTH.into_iter().enumerate() {
            for frame in &frames(Case::Fragments, 10, 1, side)[0] {
                assert_eq!(frame[..6], PCAP_PORTS[n]);
                assert_eq!(frame[6..12], ROUTERS[n]);
            }
        }
    }

    #[test]
    fn tcp_refuses_too_few_and_too_many_flows() {
        let refused = |flows, queues| Trace::new(Case::Tcp, flows, queues, PCAP_PORTS).expect_err("it is refused");
        assert_eq!(refused(519, 1), TraceError::TooFew { case: Case::Tcp, least: 520 });
        assert_eq!(refused(1_039, 2), TraceError::TooFew { case: Case::Tcp, least: 1_040 });
        assert_eq!(refused(400_001, 1).to_string(), "case tcp takes several frames a flow: at most 400000 flows");
    }
}
