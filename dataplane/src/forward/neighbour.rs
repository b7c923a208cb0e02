//! Neighbours: which MAC address a next hop has.
//!
//! *Life-cycle*: control mirrors the kernel's neighbour table and sends each change. A packet to an unknown neighbour is
//! held by the worker, and control has the kernel resolve it. *Threads*: each worker has its own copy.
//! *Limits*: [`CAPACITY`] neighbours; further ones are not taken and stay unresolved.

use std::net::IpAddr;

use crate::conntrack::index::Index;
use crate::parse::fast::mac_word;

/// Most neighbours of all interfaces together.
pub const CAPACITY: usize = 1 << 16;

/// A change of one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourUpdate {
    /// Interface index.
    pub interface: u16,
    /// The neighbour's address on that link.
    pub address: IpAddr,
    /// Its MAC address; `None` where it went away or resolution failed.
    pub mac: Option<[u8; 6]>,
}

#[derive(Debug)]
struct Entry {
    interface: u16,
    /// Counts who has had this slot, so that a stale reference is recognised.
    generation: u16,
    address: IpAddr,
    known: bool,
}

/// The neighbours that one worker knows.
#[derive(Debug)]
pub struct Neighbours {
    index: Index,
    entries: Vec<Entry>,
    /// By slot: the MAC address as a word and above it the generation that it is for: nobody refers to that of a free slot.
    words: Vec<u64>,
    free: Vec<u16>,
    seed: ahash::RandomState,
}

impl Neighbours {
    /// None yet.
    pub fn new(seed: ahash::RandomState) -> Self {
        Self {
            index: Index::new(CAPACITY),
            entries: Vec::with_capacity(CAPACITY),
            words: Vec::with_capacity(CAPACITY),
            free: Vec::with_capacity(CAPACITY),
            seed,
        }
    }

    /// A reference to the neighbour, to be kept and resolved by [`Neighbours::mac`]; `None` where it is not known.
    pub fn find(&self, interface: u16, address: IpAddr) -> Option<u32> {
        let slot = self.slot(interface, address)?;
        Some(slot << 16 | u32::from(self.entries[slot as usize].generation))
    }

    /// The MAC address behind a reference; `None` where the neighbour has gone since.
    #[inline]
    pub fn mac(&self, reference: u32) -> Option<[u8; 6]> {
        let [a, b, c, d, e, f, ..] = self.mac_word(reference)?.to_le_bytes();
        Some([a, b, c, d, e, f])
    }

    /// The same as a word: see [`mac_word`].
    #[inline(always)]
    pub fn mac_word(&self, reference: u32) -> Option<u64> {
        let word = *self.words.get((reference >> 16) as usize)?;
        // Nobody has the address that a free slot has.
        let mac = word & 0xffff_ffff_ffff;
        (word >> 48 == u64::from(reference & 0xffff) && mac != 0).then_some(mac)
    }

    /// Takes a change.
    pub fn update(&mut self, u: &NeighbourUpdate) {
        let slot = self.slot(u.interface, u.address);
        match (slot, u.mac) {
            (Some(slot), Some(mac)) => self.set_mac(slot, mac),
            (Some(slot), None) => {
                let e = &mut self.entries[slot as usize];
                e.known = false;
                e.generation = e.generation.wrapping_add(1);
                self.set_mac(slot, [0; 6]);
                let hash = self.hash(u.interface, u.address);
                self.index.remove(hash, slot);
                // Invariant: slots are below CAPACITY = 2^16, and each is freed once.
                self.free.push(u16::try_from(slot).unwrap_or(0));
            }
            (None, Some(mac)) => self.insert(u.interface, u.address, mac),
            (None, None) => {}
        }
    }

    fn insert(&mut self, interface: u16, address: IpAddr, mac: [u8; 6]) {
        let hash = self.hash(interface, address);
        let slot = match self.free.pop() {
            Some(slot) => u32::from(slot),
            None if self.entries.len() < CAPACITY => {
                self.entries.push(Entry { interface, generation: 0, address, known: false });
                self.words.push(0);
                u32::try_from(self.entries.len() - 1).unwrap_or(0)
            }
            None => return,
        };
        if self.index.insert(hash, slot).is_err() {
            self.free.push(u16::try_from(slot).unwrap_or(0));
            return;
        }
        let e = &mut self.entries[slot as usize];
        (e.interface, e.address, e.known) = (interface, address, true);
        self.set_mac(slot, mac);
    }

    /// What a reference to the slot finds from now on.
    fn set_mac(&mut self, slot: u32, mac: [u8; 6]) {
        let slot = slot as usize;
        self.words[slot] = mac_word(mac) | u64::from(self.entries[slot].generation) << 48;
    }

    fn hash(&self, interface: u16, address: IpAddr) -> u64 {
        match address {
            IpAddr::V4(a) => self.seed.hash_one(u64::from(interface) << 32 | u64::from(a.to_bits())),
            IpAddr::V6(a) => self.seed.hash_one((interface, a.to_bits())),
        }
    }

    #[inline]
    fn slot(&self, interface: u16, address: IpAddr) -> Option<u32> {
        let hash = self.hash(interface, address);
        self.index.find(hash, |slot| {
            self.entries.get(slot as usize).is_some_and(|e| e.known && e.interface == interface && e.address == address)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_reference_to_a_neighbour_that_left_finds_nobody_even_when_its_slot_is_used_again() {
        let mut n = Neighbours::new(ahash::RandomState::with_seeds(1, 2, 3, 4));
        let (a, b) = (IpAddr::from(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::from(Ipv4Addr::new(10, 0, 0, 2)));
        n.update(&NeighbourUpdate { interface: 0, address: a, mac: Some([1; 6]) });
        let r = n.find(0, a).expect("known");
        assert_eq!(n.mac(r), Some([1; 6]));
        assert_eq!(n.find(1, a), None);
        n.update(&NeighbourUpdate { interface: 0, address: a, mac: Some([2; 6]) });
        assert_eq!(n.mac(r), Some([2; 6]));
        n.update(&NeighbourUpdate { interface: 0, address: a, mac: None });
        assert_eq!((n.mac(r), n.find(0, a)), (None, None));
        n.update(&NeighbourUpdate { interface: 0, address: b, mac: Some([3; 6]) });
        assert_eq!(n.mac(r), None);
        assert_eq!(n.find(0, b).and_then(|r| n.mac(r)), Some([3; 6]));
    }
}
