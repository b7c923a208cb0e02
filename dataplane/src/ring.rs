//! How workers speak to each other: rings of packets and rings of notes, one per ordered pair.
//!
//! Frames for another worker are gathered and put into its ring by one write, so that the line which both sides look at
//! changes owner once per burst instead of once per packet; the receiver takes a chunk at once for the same reason. A frame
//! of TCP or UDP travels as it is, 16 bytes a parcel: its owner reads the headers anew, which are in the lines
//! that it rewrites anyway. What cannot be read anew (fragments, what was translated between prefixes, what a signpost has led astray)
//! travels with its description, which waits in a ring beside: it is put there before the parcel, so it is there when
//! the parcel is.
//!
//! *Order*: what one worker hands to another arrives in the order in which it was handed over, however it travels. Notes overtake
//! packets and never the other way round: a note is in its ring at once, a packet at the end of its burst.
//!
//! *Life-cycle*: [`mesh`] makes the rings of all workers before any runs. *Threads*: each [`Parcels`] and [`Notes`] belongs to one
//! worker; rings are single producer, single consumer. *Limits*: [`PACKET_RING`] packets, of them [`DESCRIPTIONS`] with a
//! description, and [`NOTE_RING`] notes per ordered pair of workers; [`MAX_BURST`] gathered frames. A full ring refuses, and
//! the caller counts it.

use arrayvec::ArrayVec;

use crate::api::stats::HandoverCause;
use crate::conntrack::signpost::{Ticket, WorkerId};
use crate::conntrack::tuple::Tuple;
use crate::io::{MAX_BURST, PortIdx};
use crate::packet::Packet;

/// Packets that one worker may have under way to another.
pub const PACKET_RING: usize = 1024;

/// Packets with a description among them.
pub const DESCRIPTIONS: usize = 512;

/// Notes that one worker may have under way to another.
pub const NOTE_RING: usize = 4096;

/// Most workers: gathered frames are found by a mask.
const MAX_WORKERS: usize = u128::BITS as usize;

/// A packet on its way to another worker.
#[derive(Debug)]
pub struct Parcel<B> {
    /// The frame.
    pub buf: B,
    /// The port that it came in by.
    pub port: PortIdx,
    /// Why it travels.
    pub cause: HandoverCause,
    /// Whether what is known of it comes along: [`Parcels::description`].
    pub described: bool,
    /// So many further fragments of the same datagram come right behind it.
    pub follow: u8,
}

/// A small message from worker to worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The sender wants to own the flow of this tuple, whose home you are. Where it is taken, one with another port of this
    /// range will do. Answered by one of the next four.
    Place(Tuple, Ticket, Option<(u16, u16)>),
    /// The tuple is yours alone, and its packets are sent to you.
    Placed(Tuple, Ticket),
    /// Another connection has it; this one, with another port of your own, is yours alone.
    Lent(Tuple, Ticket),
    /// It cannot be: another connection has it.
    Clash(Tuple, Ticket),
    /// It cannot be: there is no room for a signpost.
    Full(Tuple, Ticket),
    /// The sender does not want, or own, the flow of this tuple any longer; only what answers the ticket, if there is one, was
    /// its.
    Remove(Tuple, Option<Ticket>),
    /// The sender expects a connection with this key (source port 0 is any) and will own it.
    Expect(Tuple),
    /// It does no longer.
    Unexpect(Tuple),
    /// What you expect with this key cannot be kept: another one is expected, or there is no room.
    Unexpected(Tuple),
}

/// The way to one other worker.
#[derive(Debug)]
struct Way<B> {
    ring: rtrb::Producer<Parcel<B>>,
    descriptions: rtrb::Producer<Packet>,
    /// Frames that wait for the end of the burst.
    gathered: ArrayVec<Parcel<B>, MAX_BURST>,
}

/// The way from one other worker.
#[derive(Debug)]
struct Source<B> {
    ring: rtrb::Consumer<Parcel<B>>,
    descriptions: rtrb::Consumer<Packet>,
}

/// One worker's ends of the packet rings to and from every other.
#[derive(Debug)]
pub struct Parcels<B> {
    out: Vec<Option<Way<B>>>,
    inn: Vec<Option<Source<B>>>,
    /// Bit `n` is set where frames for worker `n` are gathered.
    gathered: u128,
}

/// One worker's ends of the note rings to and from every other.
#[derive(Debug)]
pub struct Notes {
    out: Vec<Option<rtrb::Producer<Note>>>,
    inn: Vec<Option<rtrb::Consumer<Note>>>,
}

/// The rings between `workers` workers, by worker.
pub fn mesh<B>(workers: usize) -> Vec<(Parcels<B>, Notes)> {
    let (out, inn) = rings(workers, PACKET_RING);
    let (described, descriptions) = rings(workers, DESCRIPTIONS);
    let way = |(ring, descriptions): (Option<_>, Option<_>)| {
        ring.zip(descriptions).map(|(ring, descriptions)| Way { ring, descriptions, gathered: ArrayVec::new() })
    };
    let source = |(ring, descriptions): (Option<_>, Option<_>)| {
        ring.zip(descriptions).map(|(ring, descriptions)| Source { ring, descriptions })
    };
    let outs = out.into_iter().zip(described).map(|(a, b)| a.into_iter().zip(b).map(way).collect());
    let inns = inn.into_iter().zip(descriptions).map(|(a, b)| a.into_iter().zip(b).map(source).collect());
    let parcels = outs.zip(inns).map(|(out, inn)| Parcels { out, inn, gathered: 0 });
    let (out, inn) = rings(workers, NOTE_RING);
    let notes = out.into_iter().zip(inn).map(|(out, inn)| Notes { out, inn });
    parcels.zip(notes).collect()
}

type Ends<T> = Vec<Vec<Option<T>>>;

/// A ring for each ordered pair: `producers[from][to]`, `consumers[to][from]`.
fn rings<T>(workers: usize, size: usize) -> (Ends<rtrb::Producer<T>>, Ends<rtrb::Consumer<T>>) {
    let mut producers: Ends<rtrb::Producer<T>> = (0..workers).map(|_| (0..workers).map(|_| None).collect()).collect();
    let mut consumers: Ends<rtrb::Consumer<T>> = (0..workers).map(|_| (0..workers).map(|_| None).collect()).collect();
    for from in 0..workers {
        for to in (0..workers).filter(|&to| to != from) {
            let (producer, consumer) = rtrb::RingBuffer::new(size);
            producers[from][to] = Some(producer);
            consumers[to][from] = Some(consumer);
        }
    }
    (producers, consumers)
}

impl<B> Way<B> {
    /// Puts what was gathered into the ring by one write. What finds no room is freed, the last first: order stays.
    fn flush(&mut self, mut tell: impl FnMut(HandoverCause, bool)) {
        let wanted = self.gathered.len();
        let chunk = match self.ring.write_chunk_uninit(wanted) {
            Err(rtrb::chunks::ChunkError::TooFewSlots(room)) => self.ring.write_chunk_uninit(room),
            chunk => chunk,
        };
        let sent = chunk.as_ref().map_or(0, rtrb::chunks::WriteChunkUninit::len);
        for (n, parcel) in self.gathered.iter().enumerate() {
            tell(parcel.cause, n < sent);
        }
        if let Ok(chunk) = chunk {
            chunk.fill_from_iter(self.gathered.drain(..sent));
        }
        self.gathered.clear();
    }
}

impl<B> Parcels<B> {
    /// Gathers a frame for `to`, which reads it anew. It leaves with [`Parcels::flush`], or when so many are gathered; `tell` hears
    /// of each what it was handed over for and whether it found room.
    ///
    /// # Errors
    /// The frame, where there is no such worker.
    pub fn gather(
        &mut self,
        to: WorkerId,
        frame: (B, PortIdx),
        cause: HandoverCause,
        tell: impl FnMut(HandoverCause, bool),
    ) -> Result<(), B> {
        let (buf, port) = frame;
        let Some(Some(way)) = self.out.get_mut(usize::from(to)) else { return Err(buf) };
        if way.gathered.is_full() {
            way.flush(tell);
        }
        way.gathered.push(Parcel { buf, port, cause, described: false, follow: 0 });
        self.gathered |= 1 << (usize::from(to) % MAX_WORKERS);
        Ok(())
    }

    /// Hands over what was gathered, visible to each worker at once.
    #[inline]
    pub fn flush(&mut self, mut tell: impl FnMut(HandoverCause, bool)) {
        while self.gathered != 0 {
            let to = self.gathered.trailing_zeros();
            self.gathered &= self.gathered - 1;
            if let Some(Some(way)) = self.out.get_mut(to as usize) {
                way.flush(&mut tell);
            }
        }
    }

    /// Hands all of `packets` to `to` behind what was gathered for it, visible there at once, or none: `false` where its rings
    /// have no room for them. The first says how many belong to it.
    #[must_use]
    pub fn send_all(
        &mut self,
        to: WorkerId,
        cause: HandoverCause,
        follow: u8,
        packets: impl ExactSizeIterator<Item = (B, Packet)>,
        tell: impl FnMut(HandoverCause, bool),
    ) -> bool {
        let Some(Some(way)) = self.out.get_mut(usize::from(to)) else { return false };
        if !way.gathered.is_empty() {
            way.flush(tell);
        }
        if way.descriptions.slots() < packets.len() {
            return false;
        }
        let Ok(chunk) = way.ring.write_chunk_uninit(packets.len()) else { return false };
        let mut follow = Some(follow);
        chunk.fill_from_iter(packets.map(|(buf, packet)| {
            let described = way.descriptions.push(packet).is_ok();
            debug_assert!(described, "there is room");
            Parcel { buf, port: packet.in_port, cause, described, follow: follow.take().unwrap_or(0) }
        }));
        true
    }

    /// Takes at most `limit` packets from worker `from`, in their order, and no more than `out` has room for.
    #[inline]
    pub fn receive_burst(&mut self, from: usize, limit: usize, out: &mut ArrayVec<Parcel<B>, MAX_BURST>) {
        let Some(Some(Source { ring, .. })) = self.inn.get_mut(from) else { return };
        let n = ring.slots().min(limit).min(out.remaining_capacity());
        if n > 0
            && let Ok(chunk) = ring.read_chunk(n)
        {
            out.extend(chunk);
        }
    }

    /// The next packet from worker `from`.
    #[inline]
    pub fn receive(&mut self, from: usize) -> Option<Parcel<B>> {
        self.inn.get_mut(from)?.as_mut()?.ring.pop().ok()
    }

    /// What is known of the packet from worker `from` that was taken last and has not been asked about. To be asked once for each
    /// that is `described`, in their order.
    #[inline]
    pub fn description(&mut self, from: usize) -> Option<Packet> {
        self.inn.get_mut(from)?.as_mut()?.descriptions.pop().ok()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.inn.len()
    }
}

impl Notes {
    /// Tells `to` something; `false` where the ring is full.
    #[must_use]
    pub fn tell(&mut self, to: WorkerId, note: Note) -> bool {
        match self.out.get_mut(usize::from(to)) {
            Some(Some(ring)) => ring.push(note).is_ok(),
            _ => false,
        }
    }

    /// The next note from worker `from`.
    #[inline]
    pub fn receive(&mut self, from: usize) -> Option<Note> {
        self.inn.get_mut(from)?.as_mut()?.pop().ok()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.inn.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_FRAME: PortIdx = PortIdx(2);

    fn gather(from: &mut Parcels<u32>, n: u32, told: &mut Vec<bool>) {
        let cause = if n.is_multiple_of(2) { HandoverCause::Steer } else { HandoverCause::Signpost };
        from.gather(1, (n, A_FRAME), cause, |_, sent| told.push(sent)).expect("there is a worker 1");
    }

    fn packets(ids: std::ops::Range<u32>) -> impl ExactSizeIterator<Item = (u32, Packet)> {
        let header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 255, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let mut frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &header].concat();
        let sum = !crate::parse::checksum::sum(&header);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let receiver = crate::parse::Receiver { port: PortIdx::twin(0), mac: [0; 6], vlan: None, verify: false };
        let parsed = crate::parse::frame(&frame, &receiver, crate::io::RxChecksum::Unknown);
        let Ok(crate::parse::Parsed::Ip(packet)) = parsed else { panic!("a packet: {parsed:?}") };
        ids.map(move |n| (n, packet))
    }

    fn taken(from: &mut Parcels<u32>, limit: usize) -> Vec<(u32, u8)> {
        let mut out = ArrayVec::new();
        from.receive_burst(0, limit, &mut out);
        out.into_iter().map(|p| (p.buf, p.follow)).collect()
    }

    #[test]
    fn a_parcel_takes_little_more_than_the_pointer_to_its_frame() {
        assert_eq!(size_of::<Parcel<*const u8>>(), 16);
    }

    #[test]
    fn gathered_frames_arrive_together_and_in_order_with_what_is_described() {
        let mut ends = mesh::<u32>(2);
        let (mut b, mut a) = (ends.remove(1).0, ends.remove(0).0);
        let mut told = Vec::new();
        for n in 0..3 {
            gather(&mut a, n, &mut told);
        }
        assert!(taken(&mut b, 64).is_empty(), "nothing before the end of the burst");
        // A datagram in two fragments does not overtake the frames before it.
        assert!(a.send_all(1, HandoverCause::Fragment, 1, packets(3..5), |_, sent| told.push(sent)));
        gather(&mut a, 5, &mut told);
        assert_eq!(taken(&mut b, 64), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 0)]);
        a.flush(|_, sent| told.push(sent));
        assert_eq!((taken(&mut b, 64), told), (vec![(5, 0)], vec![true; 4]));
        assert!([0; 2].map(|_| b.description(0).is_some()).iter().all(|&d| d));
        assert!(b.description(0).is_none());
    }

    #[test]
    fn what_finds_no_room_is_told_and_the_first_stay() {
        let mut ends = mesh::<u32>(2);
        let (mut b, mut a) = (ends.remove(1).0, ends.remove(0).0);
        let mut told = Vec::new();
        let all = u32::try_from(PACKET_RING).expect("small") + 10;
        for n in 0..all {
            gather(&mut a, n, &mut told);
        }
        a.flush(|_, sent| told.push(sent));
        assert_eq!((told.len(), told.iter().filter(|&&sent| !sent).count()), (PACKET_RING + 10, 10));
        assert!(!a.send_all(1, HandoverCause::Fragment, 1, packets(0..2), |_, _| {}), "all or none");
        assert!(taken(&mut b, 1).len() == 1 && b.description(0).is_none());
        assert!(!a.send_all(1, HandoverCause::Fragment, 1, packets(0..2), |_, _| {}), "one place is too few");
        let mut rest = Vec::new();
        loop {
            let chunk = taken(&mut b, 64);
            if chunk.is_empty() {
                break;
            }
            assert!(chunk.len() <= 64);
            rest.extend(chunk.into_iter().map(|(n, _)| n));
        }
        assert_eq!(rest, (1..all - 10).collect::<Vec<_>>());
    }

    #[test]
    fn descriptions_have_a_bound_of_their_own() {
        let mut ends = mesh::<u32>(2);
        let mut a = ends.remove(0).0;
        let one = |a: &mut Parcels<u32>| a.send_all(1, HandoverCause::Fragment, 0, packets(0..1), |_, _| {});
        assert_eq!((0..PACKET_RING).filter(|_| one(&mut a)).count(), DESCRIPTIONS);
        let mut told = Vec::new();
        gather(&mut a, 1, &mut told);
        a.flush(|_, sent| told.push(sent));
        assert_eq!(told, [true], "frames need none");
    }

    #[test]
    fn nobody_hands_anything_to_himself() {
        let mut a = mesh::<u32>(2).remove(0).0;
        assert_eq!(a.gather(0, (7, A_FRAME), HandoverCause::Steer, |_, _| {}), Err(7));
        assert_eq!(a.gather(9, (7, A_FRAME), HandoverCause::Steer, |_, _| {}), Err(7));
        assert!(!a.send_all(0, HandoverCause::Steer, 0, packets(0..1), |_, _| {}));
    }
}
