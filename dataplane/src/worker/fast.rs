//! A burst of frames of which most are usual packets of known connections: four passes, so that their cache misses overlap.
//!
//! ```text
//! 1  each frame: headers and checksums, tuple
//! 2  each tuple: hash                                     asks for the bucket of the index
//! 3  each hash: tags of the bucket                        asks for the connection
//! 4  each frame, in its order: compare, move on, rewrite, queue; or the long way
//! ```
//! What goes the long way waits in the batch, so that its lookups overlap too. It goes first where a usual packet behind it
//! may be of the same connection: order within a connection stays.
//!
//! *Threads*: the worker's. *Limits*: one burst.

use super::Worker;
use crate::api::stats::HandoverCause;
use crate::conntrack::conn::Cached;
use crate::conntrack::fast::Clock;
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::table::{Aim, Lane};
use crate::conntrack::timer::Wheel;
use crate::conntrack::tuple::{Key, Key4, Key6};
use crate::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use crate::nat::fast::Wire;
use crate::packet::{CtState, Packet, TcpSegment};
use crate::parse::fast::{NO_HINT, Sight, Station};
use crate::parse::{Receiver, ether, tcp};
use crate::path::{Finder, Tally, Way, Ways};
use crate::time::Nanos;

/// What is known of the frames of a burst, by their place in it.
#[derive(Debug)]
pub(super) struct Sights {
    kinds: [Kind; MAX_BURST],
    v4: [Sight<Key4>; MAX_BURST],
    v6: [Sight<Key6>; MAX_BURST],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V4,
    V6,
    Other,
}

impl Default for Sights {
    fn default() -> Self {
        Self { kinds: [Kind::Other; MAX_BURST], v4: [Sight::default(); MAX_BURST], v6: [Sight::default(); MAX_BURST] }
    }
}

/// Frames at the front of a burst, after the last pass.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// So many are ready to leave.
    ready: usize,
    /// By this port, all of them.
    egress: PortIdx,
    /// They still need a link header, for this station: the port's frames have another length of it.
    link: Option<[u8; 6]>,
    /// So many behind them go the long way.
    long: usize,
    /// Some of those may be of known connections.
    known: bool,
    /// The first of them is, if it is usual at all.
    first_known: bool,
}

impl<I: Io> Worker<I> {
    /// Takes a burst through all stages.
    pub(super) fn express(
        &mut self,
        frames: &mut Box<Burst<I::Buf>>,
        station: &Station,
        receiver: &Receiver,
        now: Nanos,
    ) {
        let Some(mut sights) = self.sights.take() else { return };
        let l3 = station.l2_len();
        let (v4, v6) = self.path.conntrack.aims();
        let plain = sight(frames, *station, v4, v6, &mut sights);
        let pass = if plain { pass::<I::Buf, true> } else { pass::<I::Buf, false> };
        let mut done = 0;
        // Whether the batch holds packets that may be of known connections.
        let mut held_up = false;
        while !frames.is_empty() {
            if held_up && sights.kinds.get(done).is_some_and(|&kind| kind != Kind::Other) {
                self.process(false, now);
                held_up = false;
            }
            let run = pass(frames, &sights, done, l3, self.path.ways(receiver.port, now));
            if run.ready == frames.len() && run.link.is_none() {
                self.queue_all(frames, run.egress);
                break;
            }
            let mut place = done + run.ready;
            done = place + run.long;
            for buf in frames.drain(..run.ready) {
                match run.link {
                    None => self.queue(buf, run.egress),
                    to => self.send_link(buf, l3, run.egress, to),
                }
            }
            let mut known = run.first_known;
            for buf in frames.drain(..run.long) {
                let owner = if known { None } else { self.elsewhere(&buf, &sights, place, receiver.port) };
                match owner {
                    Some((owner, cause)) => self.gather(buf, receiver.port, owner, cause),
                    None => self.long_way(buf, &sights, place, receiver, now),
                }
                known = false;
                place += 1;
            }
            held_up |= run.known;
        }
        self.sights = Some(sights);
        self.process(false, now);
    }
}

impl<I: Io> Worker<I> {
    /// Sends a frame the long way; a datagram that was read already is not read again.
    fn long_way(&mut self, buf: I::Buf, sights: &Sights, place: usize, receiver: &Receiver, now: Nanos) {
        let (port, l3) = (receiver.port, ether::length(receiver.vlan));
        let read = match sights.kinds.get(place) {
            Some(Kind::V4) => sights.v4.get(place).and_then(|s| Packet::of_sight(s, port, buf.bytes(), l3)),
            Some(Kind::V6) => sights.v6.get(place).and_then(|s| Packet::of_sight(s, port, buf.bytes(), l3)),
            _ => None,
        };
        match read {
            Some(packet) => self.arrive(buf, packet, now),
            None => self.parse(buf, receiver, now),
        }
    }

    /// Whose a usual packet is that is of no connection here, where another worker's: what [`Worker::parse`] and
    /// [`Path::judge`](crate::path::Path::judge) would find out on the long way, which it is spared.
    fn elsewhere(
        &mut self,
        buf: &I::Buf,
        sights: &Sights,
        place: usize,
        port: PortIdx,
    ) -> Option<(WorkerId, HandoverCause)> {
        if self.path.steer.is_alone() || self.handed || self.path.policy.has_raw() {
            return None;
        }
        let tuple = match sights.kinds.get(place)? {
            Kind::V4 => sights.v4.get(place)?.key.tuple(),
            Kind::V6 => sights.v6.get(place)?.key.tuple(),
            Kind::Other => return None,
        };
        let interface = usize::from(port.interface());
        let trusted = self.rss.get(interface).is_some_and(|&r| r) && self.is_trusted(buf, interface, &tuple);
        if !trusted {
            let home = self.path.steer.home(&tuple);
            if home != self.path.steer.me() {
                return Some((home, HandoverCause::Steer));
            }
        }
        Some((self.path.signposts.owner(&tuple)?, HandoverCause::Signpost))
    }
}

/// The first passes; says whether all frames are of IPv4 and usual. All is handed in by value, so that the loops have it in
/// registers; hashing has a loop of its own, for the hash is a long chain and only short loops have many of them under way
/// at once.
#[inline(never)]
fn sight<B: Buf>(frames: &[B], station: Station, v4: Aim<'_, Key4>, v6: Aim<'_, Key6>, sights: &mut Sights) -> bool {
    let count = frames.len().min(MAX_BURST);
    let Sights { kinds, v4: sights4, v6: sights6 } = sights;
    let (kinds, sights4, sights6) = (&mut kinds[..count], &mut sights4[..count], &mut sights6[..count]);
    let mut plain = true;
    for (n, frame) in frames[..count].iter().enumerate() {
        let see4 = |sight| (sights4[n] = sight, Kind::V4).1;
        let see6 = |sight| (sights6[n] = sight, Kind::V6).1;
        let seen = if frame.is_chained() { None } else { station.look(frame.bytes(), frame.rx_checksum(), see4, see6) };
        kinds[n] = seen.unwrap_or(Kind::Other);
        plain &= kinds[n] == Kind::V4;
    }
    if plain {
        sights4.iter_mut().for_each(|sight| sight.hash = v4.hash(&sight.key));
        for sight in sights4 {
            sight.hint = v4.candidate(sight.hash, sight.tcp).unwrap_or(NO_HINT);
            if sight.hint == NO_HINT {
                v4.expect(&sight.key.inverse());
            }
        }
        return true;
    }
    for n in 0..count {
        match kinds[n] {
            Kind::V4 => sights4[n].hash = v4.hash(&sights4[n].key),
            Kind::V6 => sights6[n].hash = v6.hash(&sights6[n].key),
            Kind::Other => {}
        }
    }
    for n in 0..count {
        match kinds[n] {
            Kind::V4 => sights4[n].hint = v4.candidate(sights4[n].hash, sights4[n].tcp).unwrap_or(NO_HINT),
            Kind::V6 => sights6[n].hint = v6.candidate(sights6[n].hash, sights6[n].tcp).unwrap_or(NO_HINT),
            Kind::Other => {}
        }
    }
    false
}

/// The last pass, over the frames from the first on, whose sights stand from `done` on: rewrites those that leave by the same
/// port. `l3`: where their network headers are; `PLAIN`: all are of IPv4, which saves much asking.
#[inline(never)]
fn pass<B: Buf, const PLAIN: bool>(frames: &mut [B], sights: &Sights, done: usize, l3: usize, ways: Ways<'_>) -> Run {
    let Ways { mut v4, mut v6, clock, wheel, finder } = ways;
    let mut course = Course { way: Way::NONE, tally: Tally::default(), ready: 0, turns: false, l3 };
    let count = frames.len().min(MAX_BURST - done);
    let all = done..done + count;
    let (kinds, sights4, sights6) = (&sights.kinds[all.clone()], &sights.v4[all.clone()], &sights.v6[all]);
    for (n, buf) in frames[..count].iter_mut().enumerate() {
        let went = match kinds[n] {
            _ if PLAIN => advance(buf, &sights4[n], &mut v4, &mut course, (&clock, wheel, &finder)),
            Kind::V4 => advance(buf, &sights4[n], &mut v4, &mut course, (&clock, wheel, &finder)),
            Kind::V6 => advance(buf, &sights6[n], &mut v6, &mut course, (&clock, wheel, &finder)),
            Kind::Other => false,
        };
        if !went {
            break;
        }
        course.ready += 1;
    }
    let Course { way, tally, ready, turns, .. } = course;
    tally.settle(&way, &finder);
    let link = (!way.keeps_length(l3)).then(|| way.to());
    let mut run = Run { ready, egress: way.egress, link, long: 0, known: false, first_known: false };
    if ready == count || turns {
        return run;
    }
    // The next one goes the long way, and with it all behind it that must.
    for n in ready..count {
        let known = match kinds[n] {
            Kind::V4 => v4.search(sights4[n].hash, &sights4[n].key).is_some(),
            Kind::V6 => v6.search(sights6[n].hash, &sights6[n].key).is_some(),
            Kind::Other => true,
        };
        if n > ready && known && kinds[n] != Kind::Other {
            break;
        }
        run.long += 1;
        run.known |= known;
        run.first_known |= known && n == ready;
    }
    run
}

/// Where the last pass is.
#[derive(Debug)]
struct Course {
    /// How packets leave now.
    way: Way,
    /// What was counted of them.
    tally: Tally,
    /// Frames that are ready.
    ready: usize,
    /// The next one could leave, but not together with those.
    turns: bool,
    /// Where network headers are.
    l3: usize,
}

impl Course {
    /// Whether a packet of `len` bytes and this class can leave. Asked before anything is changed.
    #[inline(always)]
    fn goes(&mut self, cached: &Cached, state: CtState, len: u16, finder: &Finder<'_>) -> bool {
        self.way.is_of(cached, state, len) || self.turn(cached, state, len, finder)
    }

    /// The same for one whose way is another.
    #[cold]
    #[inline(never)]
    fn turn(&mut self, cached: &Cached, state: CtState, len: u16, finder: &Finder<'_>) -> bool {
        let Some(other) = finder.find(cached, state, len) else { return false };
        self.turns = self.ready > 0 && !other.leaves_like(&self.way, self.l3);
        if !self.turns {
            std::mem::take(&mut self.tally).settle(&self.way, finder);
            self.way = other;
        }
        !self.turns
    }
}

/// Moves a frame's connection on and rewrites it; `false` where it does not go this way, and nothing has changed.
#[inline(always)]
fn advance<B: Buf, K: Wire>(
    buf: &mut B,
    seen: &Sight<K>,
    lane: &mut Lane<'_, K>,
    course: &mut Course,
    (clock, wheel, finder): (&Clock<'_>, &Wheel, &Finder<'_>),
) -> bool {
    let l3 = course.l3;
    let Some(passed) = lane.advance(
        seen,
        || segment(buf, l3, seen.len),
        clock,
        wheel,
        |c, state| course.goes(c, state, seen.len, finder),
    ) else {
        return false;
    };
    course.tally.packets[passed.direction.index()] += 1;
    course.tally.bytes += u64::from(seen.len);
    carry_out(buf, course.l3, seen, passed.answered_by.as_ref(), &course.way);
    true
}

/// The TCP segment in a usual frame.
fn segment<B: Buf>(buf: &B, l3: usize, len: u16) -> Option<TcpSegment> {
    tcp::behind_plain_header(buf.bytes().get(l3..l3 + usize::from(len))?)
}

/// Rewrites a usual frame; its link header too, where that keeps its length.
#[inline(always)]
fn carry_out<B: Buf, K: Wire>(buf: &mut B, l3: usize, seen: &Sight<K>, answered_by: Option<&K>, way: &Way) {
    // What Ethernet has padded it with stays behind.
    let end = l3 + usize::from(seen.len);
    if buf.bytes().len() > end {
        let shrunk = buf.resize(end);
        debug_assert!(shrunk, "what is there has room");
    }
    let frame = buf.bytes_mut();
    if let Some(ip) = frame.get_mut(l3..) {
        seen.key.forward(ip, answered_by, seen.tcp);
    }
    if way.keeps_length(l3)
        && let Some(link) = frame.first_chunk_mut::<12>()
    {
        link[..8].copy_from_slice(&way.macs.0.to_le_bytes());
        link[8..].copy_from_slice(&way.macs.1.to_le_bytes());
    }
}
