//! Helpers at work: what a connection's text announces becomes an expectation; what must be changed in the text is noted
//! in the connection's streams, and the worker carries it out.
//!
//! Where addresses are rewritten, text is read in order and only so: what comes behind a gap would be sent on with numbers
//! that a change within the gap makes wrong, so it is dropped and comes again. The beginning of an argument is withheld until
//! its end is there, and its sender told that it has arrived, or it might wait for that.
//!
//! *Threads*: the worker's. *Limits*: per segment the work is proportional to its length.
//! *Sources*: `linux/net/netfilter/nf_conntrack_ftp.c`, `nf_nat_ftp.c`, `nf_conntrack_tftp.c`; PPTP's are in
//! [`super::pptp`].

use super::Path;
use crate::api::policy::HelperKind;
use crate::api::stats::CtEvent;
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tcp::{ACK, FIN, RST, SYN};
use crate::conntrack::tuple::Direction;
use crate::drop::DropReason;
use crate::helper::ftp::Ended;
use crate::helper::seqadj::{ahead, before};
use crate::helper::{FtpSide, Hole, ftp, tftp};
use crate::packet::{CtState, L4, Packet, TcpSegment};
use crate::time::Nanos;

/// The window that an acknowledgement of ours offers where the other side's is not known.
const SMALL_WINDOW: u16 = 512;

/// What is to be done with a packet besides its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// Nothing.
    Pass,
    /// Adjust its numbers and its text to the connection's streams.
    Adjust {
        /// Tell its sender that bytes have arrived which are withheld.
        acknowledge: Option<Acknowledge>,
    },
    /// Change some of its text: see [`crate::helper::pptp::Patches`].
    Patch,
}

/// An acknowledgement on behalf of a receiver who has not got the bytes yet: the sender may wait for it before it sends
/// what we wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// The sender's next byte.
    pub ack: u32,
    /// The receiver's window, as its header last had it.
    pub window: u16,
}

/// Whose text is read.
#[derive(Clone, Copy, Debug)]
struct Speaker {
    id: ConnId,
    direction: Direction,
    /// Whether addresses in it are rewritten.
    rewrites: bool,
}

impl Path {
    /// The packet with its acknowledgements in the numbers of whom they are for, where a helper has changed lengths: each
    /// side's segments are tracked as they come, before they are changed. `None` where nothing was.
    #[inline]
    pub(super) fn as_senders_count(&self, p: &Packet, id: ConnId, direction: Direction) -> Option<Packet> {
        if !self.conntrack.conn(id).flags.has(Flags::ADJUSTED) {
            return None;
        }
        let stream = &self.helpers.find(id)?.ftp[direction.opposite().index()].stream;
        let mut p = *p;
        if let L4::Tcp(s) = &mut p.kind {
            (s.ack, s.sack) = (stream.back(s.ack), stream.edge(s.sack, true));
        }
        Some(p)
    }

    /// Has the helper of a packet's connection look at it. `window` is that of its TCP header. Must run before the packet
    /// leaves: what it announces may come at once.
    ///
    /// # Errors
    /// Why the packet cannot pass; its sender will send it again.
    pub fn help(&mut self, p: &Packet, window: u16, payload: &[u8], now: Nanos) -> Result<Help, DropReason> {
        let Some(id) = p.conn else { return Ok(Help::Pass) };
        let Some(kind) = self.helpers.find(id).map(|h| h.kind) else { return Ok(Help::Pass) };
        match (kind, p.kind) {
            (HelperKind::Tftp, L4::Udp) if tftp::is_request(payload) => {
                let port = self.conntrack.tuple(id, Direction::Original).sport;
                let announced = self.announce(id, Direction::Original, kind, port, false, now);
                // A first packet that cannot pass leaves no connection behind.
                if announced.is_err() && self.conntrack.conn(id).packets() == [1, 0] {
                    self.end(id, CtEvent::Refused, now);
                }
                announced.map(|_| Help::Pass)
            }
            (HelperKind::Ftp, L4::Tcp(segment)) if p.state == CtState::Established => {
                self.ftp(p, id, &segment, window, payload, now)
            }
            (HelperKind::Pptp, L4::Tcp(segment)) if p.state == CtState::Established => {
                self.pptp(p, id, &segment, payload, now)
            }
            _ => Ok(Help::Pass),
        }
    }

    fn ftp(
        &mut self,
        p: &Packet,
        id: ConnId,
        segment: &TcpSegment,
        window: u16,
        payload: &[u8],
        now: Nanos,
    ) -> Result<Help, DropReason> {
        let (d, o) = (p.direction.index(), p.direction.opposite().index());
        let handshake =
            segment.flags & (SYN | ACK) == SYN | ACK && self.conntrack.conn(id).l4.name() == Some("SYN_RECV");
        let Some(helped) = self.helpers.find_mut(id) else { return Ok(Help::Pass) };
        if handshake {
            helped.restart(p.direction, segment.seq, segment.ack);
        }
        if segment.flags & ACK != 0 && !helped.ftp[o].stream.is_plain() {
            let acked = helped.ftp[o].stream.back(segment.ack);
            helped.ftp[o].stream.acknowledged(acked);
        }
        if segment.flags & SYN == 0 {
            helped.ftp[d].window = Some(window);
        }
        let fin = segment.flags & FIN != 0;
        if segment.flags & (SYN | RST) == 0 && (fin || !payload.is_empty()) {
            // Nothing is kept of a packet that cannot pass.
            let mut side = helped.ftp[d].clone();
            let who = Speaker { id, direction: p.direction, rewrites: self.rewrites(id, p.direction) };
            self.read(who, &mut side, segment.seq, payload, fin, now)?;
            if let Some(helped) = self.helpers.find_mut(id) {
                helped.ftp[d] = side;
            }
        }
        let Some(helped) = self.helpers.find(id) else { return Ok(Help::Pass) };
        let (own, other) = (&helped.ftp[d], &helped.ftp[o]);
        if own.stream.is_plain() && other.stream.is_plain() {
            return Ok(Help::Pass);
        }
        // Invariant: a packet has less than 65,536 bytes.
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let withheld = own.next.filter(|_| own.stream.withholds(segment.seq, len));
        let window = other.window.unwrap_or(SMALL_WINDOW);
        self.conntrack.conn_mut(id).flags.set(Flags::ADJUSTED);
        Ok(Help::Adjust { acknowledge: withheld.map(|ack| Acknowledge { ack, window }) })
    }

    /// Reads what is new of a segment's payload.
    fn read(
        &mut self,
        who: Speaker,
        side: &mut FtpSide,
        seq: u32,
        payload: &[u8],
        fin: bool,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let rewrites = who.rewrites;
        let end = seq.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        let next = side.next.unwrap_or(seq);
        if before(next, seq) {
            // Bytes are missing. Where they may have to be rewritten, those behind them do not know their place yet.
            if rewrites {
                return Err(DropReason::HelperOrder);
            }
            side.hole = Some(Hole { seq: next, parser: side.parser.clone() });
            side.parser.lose();
        } else if let Some(mut hole) = side.hole.take_if(|h| h.seq == seq && before(seq, next)) {
            std::mem::swap(&mut side.parser, &mut hole.parser);
            self.read_on(who, side, seq, payload, now)?;
            if before(end, next) {
                std::mem::swap(&mut side.parser, &mut hole.parser);
                side.hole = Some(Hole { seq: end, ..hole });
            } else {
                side.next = Some(end);
            }
            return Ok(());
        }
        let old = ahead(seq, next);
        let fresh = payload.get(old as usize..).unwrap_or_default();
        self.read_on(who, side, seq.wrapping_add(old), fresh, now)?;
        side.next = Some(if before(next, end) { end } else { next });
        let unfinished = u32::try_from(side.parser.unfinished()).unwrap_or(0);
        if rewrites && unfinished > 0 && !fresh.is_empty() {
            side.stream.withhold(end.wrapping_sub(unfinished), unfinished).map_err(|_| DropReason::HelperEdits)?;
        }
        if fin {
            side.parser.lose();
            side.stream.close_empty();
        }
        side.stream.reached(end);
        Ok(())
    }

    /// Reads `text`, which begins at sequence number `seq`.
    fn read_on(
        &mut self,
        who: Speaker,
        side: &mut FtpSide,
        mut seq: u32,
        mut text: &[u8],
        now: Nanos,
    ) -> Result<(), DropReason> {
        while !text.is_empty() {
            let (n, ended) = side.parser.read(text);
            text = text.get(n..).unwrap_or_default();
            seq = seq.wrapping_add(u32::try_from(n).unwrap_or(0));
            if let Some(ended) = ended {
                self.ended(who, side, seq, ended, now)?;
            }
        }
        Ok(())
    }

    /// An argument has ended with the byte before `end`.
    fn ended(
        &mut self,
        who: Speaker,
        side: &mut FtpSide,
        end: u32,
        ended: Ended,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let Speaker { id, direction, rewrites } = who;
        let Ended { text, announcement } = ended;
        let length = u32::try_from(text.len()).unwrap_or(0);
        let mut written = None;
        let own = self.conntrack.tuple(id, direction);
        // Another address than the speaker's own: not followed, or it could open the way to any host.
        if let Some(a) = announcement.filter(|a| a.address.is_none_or(|address| address == own.src)) {
            let port = self.announce(id, direction, HelperKind::Ftp, a.port, rewrites, now)?;
            if rewrites {
                let address = self.conntrack.tuple(id, direction.opposite()).dst;
                written = ftp::write(a.form, address, port).and_then(|mut w| {
                    w.try_push(*text.last()?).ok()?;
                    (w != text).then_some(w)
                });
            }
        }
        if side.stream.is_open() {
            side.stream.close(length, written.unwrap_or(text));
        } else if let Some(written) = written {
            let at = end.wrapping_sub(length);
            side.stream.replace(at, length, written).map_err(|_| DropReason::HelperEdits)?;
        }
        Ok(())
    }

    /// Whether a connection's helper may have to change its text.
    pub fn may_rewrite(&self, id: ConnId) -> bool {
        match self.helpers.find(id).map(|h| h.kind) {
            Some(HelperKind::Ftp) => self.rewrites(id, Direction::Original) || self.rewrites(id, Direction::Reply),
            Some(HelperKind::Pptp) => self.translates(id),
            Some(HelperKind::Tftp) | None => false,
        }
    }

    /// Whether the address that a connection's side knows itself by is another to the other side.
    fn rewrites(&self, id: ConnId, direction: Direction) -> bool {
        let other = self.conntrack.tuple(id, direction.opposite());
        self.conntrack.conn(id).flags.has(Flags::TRANSLATED) && self.conntrack.tuple(id, direction).src != other.dst
    }

    /// A connection with a helper ends, and with it what it announced.
    pub(super) fn end_help(&mut self, id: ConnId, now: Nanos) {
        if let Some(place) = self.helpers.find(id).and_then(|h| h.expectation) {
            self.end_expectation(place, now);
        }
        if self.helpers.find(id).is_some_and(|h| h.kind == HelperKind::Pptp) {
            self.end_call(id, now);
        }
        self.helpers.remove(id);
    }
}
