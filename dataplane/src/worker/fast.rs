//! A burst of frames of which most are usual packets of known connections: three passes, so that their cache misses overlap.
//!
//! ```text
//! 1  each frame: headers and checksums, tuple, hash      asks for the bucket of the index
//! 2  each tuple: tags of the bucket                       asks for the connection
//! 3  each frame, in its order: compare, move on, rewrite, queue; or the long way
//! ```
//! What goes the long way waits in the batch, so that its lookups overlap too. It goes first where a usual packet behind it
//! may be of the same connection: order within a connection stays.
//!
//! *Threads*: the worker's. *Limits*: one burst.

use super::Worker;
use crate::conntrack::fast::Clock;
use crate::conntrack::tuple::{Key4, Key6};
use crate::drop::DropReason;
use crate::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use crate::nat::fast::Wire;
use crate::parse::fast::{Sight, Station};
use crate::parse::{Receiver, ether, tcp};
use crate::path::Tally;
use crate::time::Nanos;

/// What is known of the frames of a burst, by their place in it.
#[derive(Debug)]
pub(super) struct Sights {
    kinds: [Kind; MAX_BURST],
    v4: [Sight<Key4>; MAX_BURST],
    v6: [Sight<Key6>; MAX_BURST],
}

impl Default for Sights {
    fn default() -> Self {
        Self { kinds: [Kind::Other; MAX_BURST], v4: [Sight::default(); MAX_BURST], v6: [Sight::default(); MAX_BURST] }
    }
}

/// How a burst came.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    port: PortIdx,
    /// Where the network header is.
    l3: usize,
    clock: Clock,
}

/// What keeps a packet from being sent at once.
#[derive(Clone, Copy, Debug)]
enum Unusual {
    /// It goes the long way, untouched; it is of no connection that is known here.
    Unknown,
    /// It goes the long way, untouched.
    Known,
    /// It cannot be sent.
    Unsendable,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    V4,
    V6,
    Other,
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
        self.sight(frames, station, &mut sights);
        let at = Arrival { port: receiver.port, l3: station.l2_len(), clock: self.path.clock(now) };
        let mut tally = Tally::default();
        // Most bursts leave as they are: all by one port.
        let mut way = None;
        let mut done = 0;
        let mut odd = None;
        for (buf, ((kind, v4), v6)) in frames.iter_mut().zip(sights.kinds.iter().zip(&sights.v4).zip(&sights.v6)) {
            let passed = match kind {
                Kind::V4 => self.usual(buf, v4, &at, &mut tally),
                Kind::V6 => self.usual(buf, v6, &at, &mut tally),
                Kind::Other => Err(Unusual::Known),
            };
            if way.is_some() && passed.ok() != way || passed.is_err() {
                odd = Some(passed);
                break;
            }
            way = passed.ok();
            done += 1;
        }
        if let Some(passed) = odd {
            self.express_rest(frames, &sights, (way, done, passed), &at, receiver, &mut tally);
        } else if let Some(egress) = way {
            self.queue_all(frames, egress);
        }
        self.sights = Some(sights);
        self.path.settle(tally);
    }

    /// Takes a mixed burst through what is left of the last pass. The first `done` frames go the same way, what is to be done
    /// with the one behind them is known.
    fn express_rest(
        &mut self,
        frames: &mut Burst<I::Buf>,
        sights: &Sights,
        (way, done, odd): (Option<PortIdx>, usize, Result<PortIdx, Unusual>),
        at: &Arrival,
        receiver: &Receiver,
        tally: &mut Tally,
    ) {
        let now = at.clock.now;
        let mut odd = Some(odd);
        // Whether the batch holds packets that may be of known connections.
        let mut held_up = false;
        for (n, mut buf) in frames.drain(..).enumerate() {
            if let (true, Some(egress)) = (n < done, way) {
                self.queue(buf, egress);
                continue;
            }
            let kind = sights.kinds[n];
            if held_up && !matches!(kind, Kind::Other) {
                self.process(false, now);
                held_up = false;
            }
            let passed = odd.take().unwrap_or_else(|| match kind {
                Kind::V4 => self.usual(&mut buf, &sights.v4[n], at, tally),
                Kind::V6 => self.usual(&mut buf, &sights.v6[n], at, tally),
                Kind::Other => Err(Unusual::Known),
            });
            match passed {
                Ok(egress) => self.queue(buf, egress),
                Err(Unusual::Unsendable) => self.path.stats.drop_packet(DropReason::NoBuffer),
                Err(unusual) => {
                    held_up |= matches!(unusual, Unusual::Known);
                    self.parse(buf, receiver, now);
                }
            }
        }
        self.process(false, now);
    }

    /// The first two passes.
    #[inline(always)]
    fn sight(&self, frames: &Burst<I::Buf>, station: &Station, sights: &mut Sights) {
        let conntrack = &self.path.conntrack;
        let Sights { kinds, v4, v6 } = sights;
        for (((frame, kind), v4), v6) in frames.iter().zip(&mut *kinds).zip(&mut *v4).zip(&mut *v6) {
            *kind = Kind::Other;
            if frame.is_chained() {
                continue;
            }
            let v4 = |sight| (*v4 = conntrack.approach(sight), Kind::V4).1;
            let v6 = |sight| (*v6 = conntrack.approach(sight), Kind::V6).1;
            *kind = station.look(frame.bytes(), frame.rx_checksum(), v4, v6).unwrap_or(Kind::Other);
        }
        for (((_, kind), v4), v6) in frames.iter().zip(kinds).zip(v4).zip(v6) {
            match kind {
                Kind::V4 => conntrack.aim(v4),
                Kind::V6 => conntrack.aim(v6),
                Kind::Other => {}
            }
        }
    }

    /// The last pass: rewrites a packet and says by which port it leaves.
    #[inline(always)]
    fn usual<K: Wire>(
        &mut self,
        buf: &mut I::Buf,
        seen: &Sight<K>,
        at: &Arrival,
        tally: &mut Tally,
    ) -> Result<PortIdx, Unusual> {
        let end = at.l3 + usize::from(seen.len);
        let segment = || tcp::behind_plain_header(buf.bytes().get(at.l3..end)?);
        let Some(pass) = self.path.pass(seen, segment, at.port, tally, at.clock) else {
            return Err(if self.path.conntrack.is_known(seen) { Unusual::Known } else { Unusual::Unknown });
        };
        // What Ethernet has padded it with stays behind.
        if buf.bytes().len() > end && !buf.resize(end) {
            return Err(Unusual::Unsendable);
        }
        let frame = buf.bytes_mut();
        if let Some(ip) = frame.get_mut(at.l3..) {
            seen.key.forward(ip, pass.answered_by.as_ref(), seen.tcp);
        }
        if pass.by.untagged && at.l3 == ether::HEADER {
            if let Some(macs) = frame.first_chunk_mut::<12>() {
                macs[..8].copy_from_slice(&(pass.to | pass.by.mac << 48).to_le_bytes());
                macs[8..].copy_from_slice(&(pass.by.mac >> 16).to_le_bytes()[..4]);
            }
        } else {
            let [a, b, c, d, e, f, ..] = pass.to.to_le_bytes();
            if !self.set_link(buf, at.l3, pass.egress, Some([a, b, c, d, e, f])) {
                return Err(Unusual::Unsendable);
            }
        }
        Ok(pass.egress)
    }
}
