//! Steering: which worker a packet belongs to. How it gets there: [`crate::ring`].
//!
//! The invariant: **for any tuple T on the wire, the worker home(T) either owns T's flow or holds a signpost to the
//! owner.** home(T) = RETA[Toeplitz(T)] with a key of 16-bit period, so both directions of an untranslated flow have one
//! home, and the hash depends only on the exclusive or of all 16-bit words of the tuple: a source port that brings
//! replies home can be computed instead of searched for.
//!
//! *Life-cycle*: fixed at start. *Threads*: each worker has its own [`Steer`]. *Limits*: 128 workers.
//! *Sources*: Microsoft's RSS hashing (Toeplitz); Woo and Park, "Scalable TCP session monitoring with symmetric
//! receive-side scaling" (2012) for the key.

use std::net::IpAddr;

pub use crate::conntrack::signpost::Ticket;
use crate::conntrack::signpost::WorkerId;
use crate::conntrack::tuple::Tuple;
pub use crate::ring::{NOTE_RING, Note, Notes, PACKET_RING, Parcel, Parcels, mesh};

/// The 16 bits of which the RSS key is a repetition.
pub const RSS_KEY_WORD: u16 = 0x6d5a;

/// Entries of the redirection table; devices with larger ones repeat it.
pub const RETA_SIZE: usize = 128;
/// The bits of a hash that select its entry.
const RETA_MASK: u16 = 0x7f;

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
