//! Steering: which worker a packet belongs to, and how workers speak to each other.
//!
//! The invariant: **for any tuple T on the wire, the worker home(T) either owns T's flow or holds a signpost to the
//! owner.** home(T) = RETA[Toeplitz(T)] with a key of 16-bit period, so both directions of an untranslated flow have one
//! home, and the hash depends only on the exclusive or of all 16-bit words of the tuple: a source port that brings
//! replies home can be computed instead of searched for.
//!
//! *Life-cycle*: [`mesh`] makes the rings of all workers before any runs. *Threads*: each [`Parcels`] and [`Notes`] belongs to one
//! worker; rings are single producer, single consumer. *Limits*: [`PACKET_RING`] packets and [`NOTE_RING`] notes per
//! ordered pair of workers; a full ring refuses, and the caller counts it.
//! *Sources*: Microsoft's RSS hashing (Toeplitz); Woo and Park, "Scalable TCP session monitoring with symmetric
//! receive-side scaling" (2012) for the key.

use std::net::IpAddr;

pub use crate::conntrack::signpost::Ticket;
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tuple::Tuple;
use crate::packet::Packet;

/// The 16 bits of which the RSS key is a repetition.
pub const RSS_KEY_WORD: u16 = 0x6d5a;

/// Entries of the redirection table; devices with larger ones repeat it.
pub const RETA_SIZE: usize = 128;
/// The bits of a hash that select its entry.
const RETA_MASK: u16 = 0x7f;

/// Packets that one worker may have under way to another.
pub const PACKET_RING: usize = 1024;

/// Notes that one worker may have under way to another.
pub const NOTE_RING: usize = 4096;

/// `TABLES[0]` and `[1]`: hash of a 16-bit word's upper and lower byte. The hash is linear, so they add up.
static TABLES: [[u16; 256]; 2] = tables(false);
/// The same for the inverse function.
static INVERSE: [[u16; 256]; 2] = tables(true);

/// Toeplitz of one 16-bit word with the periodic key, upper half of the result (the lower half is the same).
const fn word_hash(word: u16) -> u16 {
    let mut h = 0;
    let mut bit = 0;
    while bit < 16 {
        if word & (0x8000 >> bit) != 0 {
            h ^= RSS_KEY_WORD.rotate_left(bit);
        }
        bit += 1;
    }
    h
}

/// The word whose hash is `h`.
///
/// The hash of w is w(1/x) * k(x) over GF(2) modulo x^16 + 1, k being the key word: reversal, then multiplication. Twice
/// the hash is multiplication by k(1/x) * k(x). An odd number of ones makes k a unit, and a unit's 16th power is
/// u(x)^16 = u(x^16) = u(1) = 1. So hashing 32 times is the identity, and 31 more times undo one.
const fn word_hash_inverse(h: u16) -> u16 {
    let mut w = h;
    let mut n = 0;
    while n < 31 {
        w = word_hash(w);
        n += 1;
    }
    w
}

#[expect(clippy::cast_possible_truncation, reason = "i is below 256")]
const fn tables(inverse: bool) -> [[u16; 256]; 2] {
    let mut t = [[0; 256]; 2];
    let mut i = 0;
    while i < 256 {
        let (hi, lo) = ((i as u16) << 8, i as u16);
        t[0][i] = if inverse { word_hash_inverse(hi) } else { word_hash(hi) };
        t[1][i] = if inverse { word_hash_inverse(lo) } else { word_hash(lo) };
        i += 1;
    }
    t
}

#[inline]
fn linear(tables: &[[u16; 256]; 2], w: u16) -> u16 {
    let [hi, lo] = w.to_be_bytes();
    tables[0][usize::from(hi)] ^ tables[1][usize::from(lo)]
}

/// Exclusive or of all 16-bit words that RSS hashes: addresses, and ports where the protocol's are hashed.
#[inline]
pub fn fold(t: &Tuple) -> u16 {
    let addresses = match (t.src, t.dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let x = s.to_bits() ^ d.to_bits();
            halves(x)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let x = s.to_bits() ^ d.to_bits();
            let words = x.to_be_bytes();
            words.as_chunks::<2>().0.iter().fold(0, |acc, w| acc ^ u16::from_be_bytes(*w))
        }
        _ => 0,
    };
    if t.is_spread_by_ports() { addresses ^ t.sport ^ t.dport } else { addresses }
}

const fn halves(x: u32) -> u16 {
    (x >> 16) as u16 ^ (x & 0xffff) as u16
}

/// The 32-bit Toeplitz hash of `t`, as a NIC with our key computes it.
#[inline]
pub fn toeplitz(t: &Tuple) -> u32 {
    let h = u32::from(linear(&TABLES, fold(t)));
    h << 16 | h
}

/// Where tuples live.
#[derive(Clone, Debug)]
pub struct Steer {
    me: WorkerId,
    workers: u16,
    reta: [u8; RETA_SIZE],
}

impl Steer {
    /// Steering as worker `me` of `workers` (1..=128) sees it.
    pub fn new(me: WorkerId, workers: u16) -> Self {
        let workers = workers.clamp(1, 128);
        let mut reta = [0; RETA_SIZE];
        for (i, r) in reta.iter_mut().enumerate() {
            *r = reta_entry(i, workers);
        }
        Self { me, workers, reta }
    }

    /// This worker.
    pub const fn me(&self) -> WorkerId {
        self.me
    }

    /// How many workers there are.
    pub const fn workers(&self) -> u16 {
        self.workers
    }

    /// Whether there is no other worker.
    pub const fn is_alone(&self) -> bool {
        self.workers == 1
    }

    /// The worker at which packets of `t` arrive.
    #[inline]
    pub fn home(&self, t: &Tuple) -> WorkerId {
        self.home_of_fold(fold(t))
    }

    #[inline]
    fn home_of_fold(&self, x: u16) -> WorkerId {
        WorkerId::from(self.reta[usize::from(linear(&TABLES, x)) % RETA_SIZE])
    }

    /// Whether this worker is home to `t`.
    #[inline]
    pub fn is_home(&self, t: &Tuple) -> bool {
        self.is_alone() || self.home(t) == self.me
    }

    /// The `random`-th source port, ours or not by chance, for which replies come home: `reply` is the tuple of the
    /// reply with destination port 0.
    #[inline]
    pub fn port_home(&self, reply: &Tuple, random: u32) -> u16 {
        let base = fold(&Tuple { dport: 0, ..*reply });
        let [a, b, c, d] = random.to_be_bytes();
        let mut hash = u16::from_be_bytes([a, b]);
        // Replace the bits that select the RETA entry by an entry of ours: entries are dealt in turns.
        let nth = usize::from(u16::from_be_bytes([c, d])) % RETA_SIZE.div_ceil(usize::from(self.workers));
        let entry = (usize::from(self.me) + nth * usize::from(self.workers)) % RETA_SIZE;
        let entry = if self.reta[entry] == u8::try_from(self.me).unwrap_or(0) { entry } else { usize::from(self.me) };
        hash = hash & !RETA_MASK | u16::try_from(entry).unwrap_or(0);
        linear(&INVERSE, hash) ^ base
    }

    /// Whether identifier or port `id` of a translated connection belongs to this worker: where RSS does not see it, all
    /// are shared out instead, and no two workers choose the same one for the same peer.
    #[inline]
    pub fn owns_id(&self, id: u16) -> bool {
        self.is_alone() || self.home_of_fold(id) == self.me
    }
}

/// Entry `i` of the redirection table for `workers` queues: what a NIC's table must hold.
#[expect(clippy::cast_possible_truncation, reason = "below RETA_SIZE")]
pub const fn reta_entry(i: usize, workers: u16) -> u8 {
    ((i % RETA_SIZE) % workers as usize) as u8
}

/// A packet on its way to another worker.
#[derive(Debug)]
pub struct Parcel<B> {
    /// The frame.
    pub buf: B,
    /// What is known of it.
    pub packet: Packet,
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

/// One worker's ends of the packet rings to and from every other.
#[derive(Debug)]
pub struct Parcels<B> {
    out: Vec<Option<rtrb::Producer<Parcel<B>>>>,
    inn: Vec<Option<rtrb::Consumer<Parcel<B>>>>,
}

/// One worker's ends of the note rings to and from every other.
#[derive(Debug)]
pub struct Notes {
    out: Vec<Option<rtrb::Producer<Note>>>,
    inn: Vec<Option<rtrb::Consumer<Note>>>,
}

/// The rings between `workers` workers, by worker.
pub fn mesh<B>(workers: usize) -> Vec<(Parcels<B>, Notes)> {
    let (parcels_out, parcels_in) = rings(workers, PACKET_RING);
    let (notes_out, notes_in) = rings(workers, NOTE_RING);
    let parcels = parcels_out.into_iter().zip(parcels_in).map(|(out, inn)| Parcels { out, inn });
    let notes = notes_out.into_iter().zip(notes_in).map(|(out, inn)| Notes { out, inn });
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

impl<B> Parcels<B> {
    /// Hands a packet to `to`.
    ///
    /// # Errors
    /// The parcel, where the ring is full.
    #[expect(clippy::result_large_err, reason = "the parcel goes back to its sender, it is not an error value")]
    pub fn send(&mut self, to: WorkerId, parcel: Parcel<B>) -> Result<(), Parcel<B>> {
        match self.out.get_mut(usize::from(to)) {
            Some(Some(ring)) => ring.push(parcel).map_err(|rtrb::PushError::Full(p)| p),
            _ => Err(parcel),
        }
    }

    /// Hands all of `parcels` to `to`, visible there at once, or none: `false` where the ring has no room for them.
    #[must_use]
    pub fn send_all(&mut self, to: WorkerId, parcels: impl ExactSizeIterator<Item = Parcel<B>>) -> bool {
        let Some(Some(ring)) = self.out.get_mut(usize::from(to)) else { return false };
        match ring.write_chunk_uninit(parcels.len()) {
            Ok(chunk) => {
                chunk.fill_from_iter(parcels);
                true
            }
            Err(_) => false,
        }
    }

    /// The next packet from worker `from`.
    #[inline]
    pub fn receive(&mut self, from: usize) -> Option<Parcel<B>> {
        self.inn.get_mut(from)?.as_mut()?.pop().ok()
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
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::tuple::proto;

    /// Toeplitz as Microsoft defines it, bit by bit.
    fn toeplitz_by_definition(input: &[u8]) -> u32 {
        let key: Vec<u8> = RSS_KEY_WORD.to_be_bytes().iter().copied().cycle().take(input.len() + 4).collect();
        let mut hash = 0;
        for bit in 0..input.len() * 8 {
            if input[bit / 8] & (0x80 >> (bit % 8)) != 0 {
                let window = (0..32).fold(0u32, |w, i| {
                    let k = bit + i;
                    w << 1 | u32::from(key[k / 8] >> (7 - k % 8) & 1)
                });
                hash ^= window;
            }
        }
        hash
    }

    fn tcp(s: u32, d: u32, sport: u16, dport: u16) -> Tuple {
        Tuple {
            src: Ipv4Addr::from_bits(s).into(),
            dst: Ipv4Addr::from_bits(d).into(),
            proto: proto::TCP,
            sport,
            dport,
            ct_zone: 0,
        }
    }

    proptest! {
        #[test]
        fn equals_toeplitz_by_its_definition(s in any::<u32>(), d in any::<u32>(), sport in any::<u16>(), dport in any::<u16>(),
                                             s6 in any::<u128>(), d6 in any::<u128>()) {
            let input: Vec<u8> = [&s.to_be_bytes()[..], &d.to_be_bytes(), &sport.to_be_bytes(), &dport.to_be_bytes()].concat();
            prop_assert_eq!(toeplitz(&tcp(s, d, sport, dport)), toeplitz_by_definition(&input));
            let v6 = Tuple { src: IpAddr::V6(s6.into()), dst: IpAddr::V6(d6.into()), proto: proto::ICMPV6, sport, dport, ct_zone: 0 };
            let input: Vec<u8> = [s6.to_be_bytes(), d6.to_be_bytes()].concat();
            prop_assert_eq!(toeplitz(&v6), toeplitz_by_definition(&input));
        }

        #[test]
        fn both_directions_have_one_home(s in any::<u32>(), d in any::<u32>(), sport in any::<u16>(), dport in any::<u16>(), n in 1u16..=16) {
            let steer = Steer::new(0, n);
            let t = tcp(s, d, sport, dport);
            prop_assert_eq!(steer.home(&t), steer.home(&t.inverse()));
            prop_assert!(steer.home(&t) < n);
        }

        #[test]
        fn a_computed_port_brings_replies_home(s in any::<u32>(), d in any::<u32>(), sport in any::<u16>(), random in any::<u32>(), n in 1u16..=16, me in 0u16..16) {
            let steer = Steer::new(me % n, n);
            let reply = tcp(s, d, sport, 0);
            let port = steer.port_home(&reply, random);
            prop_assert_eq!(steer.home(&Tuple { dport: port, ..reply }), me % n);
        }
    }

    #[test]
    fn the_word_hash_is_a_bijection_and_its_inverse_is_right() {
        for w in 0..=u16::MAX {
            assert_eq!(linear(&INVERSE, linear(&TABLES, w)), w);
        }
    }
}
