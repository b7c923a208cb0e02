//! One worker's connections of one IP version: entries in a slab, both tuples of each in an index.
//!
//! *Life-cycle*: index and address space for all entries are taken at start; memory of entries is touched as they are
//! first used. *Threads*: the owner's worker alone. *Limits*: `capacity` entries; beyond it `insert` refuses.

use super::conn::{Conn, Flags};
use super::index::{Index, View};
use super::l4::L4Body;
use super::timer::Link;
use super::tuple::{Direction, Key};
use crate::cpu::{prefer_huge_pages, prefetch};

/// Both tuples and the connection: what every packet needs, in whole cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Entry<K> {
    /// Original and reply tuple.
    pub keys: [K; 2],
    /// The rest.
    pub conn: Conn,
}

const _: () = assert!(
    size_of::<Entry<super::tuple::Key4>>() + size_of::<L4Body>() <= 176,
    "192 bytes with its share of the index"
);

/// Why an entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No entry, or no place in the index.
    Full,
    /// A tuple is taken.
    Clash,
}

/// The table.
#[derive(Debug)]
pub struct Table<K> {
    index: Index,
    entries: Vec<Entry<K>>,
    /// By slot: what the protocols' trackers know, which not every packet needs.
    bodies: Vec<L4Body>,
    free: u32,
    seed: ahash::RandomState,
}

const NONE: u32 = u32::MAX;

impl<K: Key> Table<K> {
    /// An empty table for `capacity` connections.
    pub fn new(capacity: usize, seed: ahash::RandomState) -> Self {
        let mut entries = Vec::with_capacity(capacity);
        prefer_huge_pages(entries.spare_capacity_mut());
        let mut bodies = Vec::with_capacity(capacity);
        prefer_huge_pages(bodies.spare_capacity_mut());
        Self { index: Index::new(capacity * 2), entries, bodies, free: NONE, seed }
    }

    /// The keyed hash of `key`.
    #[inline]
    pub fn hash(&self, key: &K) -> u64 {
        key.hash(&self.seed)
    }

    /// First pass of a lookup: bring the bucket closer.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Second pass: bring the likely entry closer. Says whether there is one.
    #[inline]
    pub fn prefetch_entry(&self, hash: u64) -> bool {
        let Some(value) = self.index.candidate(hash) else { return false };
        if let Some(entry) = self.entries.get((value >> 1) as usize) {
            prefetch(&entry.keys);
            prefetch(&entry.conn);
            prefetch(&entry.conn.cache);
        }
        true
    }

    /// What the index has for `key`: slot and direction.
    fn value(&self, hash: u64, key: &K) -> Option<u32> {
        self.index.find(hash, |value| has_key(&self.entries, value, key))
    }

    /// What a burst's lookups need of the table.
    #[inline]
    pub fn aim(&self) -> Aim<'_, K> {
        Aim { index: self.index.view(), entries: &self.entries, bodies: &self.bodies, seed: self.seed.clone() }
    }

    /// What its packets change in the table.
    #[inline]
    pub fn lane(&mut self) -> Lane<'_, K> {
        Lane { index: &self.index, entries: &mut self.entries, bodies: &mut self.bodies }
    }

    /// Last pass: the entry that has `key`, and in which direction.
    #[inline]
    pub fn find(&self, hash: u64, key: &K) -> Option<(u32, Direction)> {
        let value = self.value(hash, key)?;
        Some((value >> 1, if value & 1 == 0 { Direction::Original } else { Direction::Reply }))
    }

    /// Adds a connection. `free`: the hash of each key that is known not to be there.
    ///
    /// # Errors
    /// [`InsertError`], and nothing changed.
    pub fn insert(
        &mut self,
        keys: [K; 2],
        free: [Option<u64>; 2],
        conn: Conn,
        body: L4Body,
    ) -> Result<u32, InsertError> {
        let mut hashes = [0; 2];
        for ((key, free), hash) in keys.iter().zip(free).zip(&mut hashes) {
            *hash = free.unwrap_or_else(|| self.hash(key));
            debug_assert_eq!(*hash, self.hash(key), "the hash of this key");
            debug_assert!(free.is_none() || self.value(*hash, key).is_none(), "a key that is there");
            if free.is_none() && self.value(*hash, key).is_some() {
                return Err(InsertError::Clash);
            }
        }
        let slot = if self.free != NONE {
            self.free
        } else if self.entries.len() < self.entries.capacity() {
            u32::try_from(self.entries.len()).map_err(|_| InsertError::Full)?
        } else {
            return Err(InsertError::Full);
        };
        self.index.insert(hashes[0], slot << 1).map_err(|_| InsertError::Full)?;
        if self.index.insert(hashes[1], slot << 1 | 1).is_err() {
            self.index.remove(hashes[0], slot << 1);
            return Err(InsertError::Full);
        }
        let mut entry = Entry { keys, conn };
        entry.conn.flags.set(Flags::LIVE);
        match (self.entries.get_mut(slot as usize), self.bodies.get_mut(slot as usize)) {
            (Some(e), Some(b)) => {
                self.free = e.conn.link.next_free();
                *e = entry;
                *b = body;
            }
            // Within the capacity taken at start; both have the same slots.
            _ => {
                self.entries.push(entry);
                self.bodies.push(body);
            }
        }
        Ok(slot)
    }

    /// Gives an entry another reply tuple.
    ///
    /// # Errors
    /// [`InsertError`], and nothing changed.
    pub fn replace_reply(&mut self, slot: u32, key: K) -> Result<(), InsertError> {
        let hash = self.hash(&key);
        if self.find(hash, &key).is_some() {
            return Err(InsertError::Clash);
        }
        let old = self.entries.get(slot as usize).ok_or(InsertError::Full)?.keys[1];
        let old_hash = self.hash(&old);
        // First out, then in: the two may look alike to the index.
        self.index.remove(old_hash, slot << 1 | 1);
        if self.index.insert(hash, slot << 1 | 1).is_err() {
            // Invariant: its place has just become free.
            let back = self.index.insert(old_hash, slot << 1 | 1);
            debug_assert!(back.is_ok(), "there is room for what was there");
            return Err(InsertError::Full);
        }
        if let Some(e) = self.entries.get_mut(slot as usize) {
            e.keys[1] = key;
        }
        Ok(())
    }

    /// Makes an entry unfindable; it stays until [`Table::free`].
    pub fn unlink(&mut self, slot: u32) {
        let Some(keys) = self.entries.get(slot as usize).map(|e| e.keys) else { return };
        let hashes = keys.map(|k| self.hash(&k));
        self.index.remove(hashes[0], slot << 1);
        self.index.remove(hashes[1], slot << 1 | 1);
    }

    /// Brings closer what [`Table::unlink`] of an entry at hand will write.
    pub fn prefetch_buckets_of(&self, slot: u32) {
        if let Some(entry) = self.entries.get(slot as usize) {
            entry.keys.iter().for_each(|key| self.index.prefetch(self.hash(key)));
        }
    }

    /// Brings an entry closer.
    pub fn prefetch_slot(&self, slot: u32) {
        if let Some(entry) = self.entries.get(slot as usize) {
            prefetch(&entry.keys);
            prefetch(&entry.conn.cache);
        }
    }

    /// Gives the entry of an unlinked connection back.
    pub fn free(&mut self, slot: u32) {
        if let Some(e) = self.entries.get_mut(slot as usize) {
            debug_assert!(e.conn.flags.has(Flags::LIVE), "freed twice");
            e.conn.flags.clear(Flags::LIVE);
            e.conn.link = Link::free(self.free);
            self.free = slot;
        }
    }

    /// The entry in `slot`; slots come from [`Table::insert`] and [`Table::find`].
    #[inline]
    pub fn entry(&self, slot: u32) -> &Entry<K> {
        &self.entries[slot as usize]
    }

    /// The same, to write.
    #[inline]
    pub fn entry_mut(&mut self, slot: u32) -> &mut Entry<K> {
        &mut self.entries[slot as usize]
    }

    /// The connection in `slot` and what its tracker knows, to write.
    #[inline]
    pub fn both_mut(&mut self, slot: u32) -> (&mut Conn, &mut L4Body) {
        (&mut self.entries[slot as usize].conn, &mut self.bodies[slot as usize])
    }

    /// How many slots were ever used: what a dump walks.
    pub fn slots(&self) -> u32 {
        // Invariant: `insert` refuses slots beyond u32.
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Whether `slot` holds a connection.
    pub fn is_live(&self, slot: u32) -> bool {
        self.entries.get(slot as usize).is_some_and(|e| e.conn.flags.has(Flags::LIVE))
    }

    /// Bytes of index per capacity and of one entry, all in.
    pub fn memory_per_connection(&self) -> usize {
        self.index.memory() / self.entries.capacity().max(1) + size_of::<Entry<K>>() + size_of::<L4Body>()
    }
}

/// What the first passes of a burst's lookups need of a table, by value: what a loop holds in registers.
#[derive(Clone, Debug)]
pub struct Aim<'a, K> {
    index: View<'a>,
    entries: &'a [Entry<K>],
    bodies: &'a [L4Body],
    seed: ahash::RandomState,
}

impl<K: Key> Aim<'_, K> {
    /// First pass: the hash of `key`, its bucket on the way to the cache.
    #[inline(always)]
    pub fn hash(&self, key: &K) -> u64 {
        let hash = key.hash(&self.seed);
        self.index.prefetch(hash);
        hash
    }

    /// Second pass: what the index has for `hash`, with the connection on the way to the cache. `tcp`: with what TCP's tracker
    /// knows of it.
    #[inline(always)]
    pub fn candidate(&self, hash: u64, tcp: bool) -> Option<u32> {
        let value = self.index.candidate(hash)?;
        let slot = (value >> 1) as usize;
        if let Some(entry) = self.entries.get(slot) {
            prefetch(&entry.keys);
            if size_of::<Entry<K>>() > 128 {
                prefetch(&entry.conn);
            }
            prefetch(&entry.conn.cache);
        }
        if tcp && let Some(body) = self.bodies.get(slot) {
            // Half of them lie in two lines.
            prefetch(body.first_word());
            prefetch(body.last_word());
        }
        Some(value)
    }

    /// Where there is no candidate the packet may start a connection: the bucket of its answers' tuple, `inverse`, too.
    #[cold]
    pub fn expect(&self, inverse: &K) {
        self.index.prefetch(inverse.hash(&self.seed));
    }
}

/// What the last pass of a burst changes in a table.
#[derive(Debug)]
pub struct Lane<'a, K> {
    index: &'a Index,
    entries: &'a mut [Entry<K>],
    bodies: &'a mut [L4Body],
}

/// An entry that a tuple was found in.
#[derive(Debug)]
pub struct Found<'a, K> {
    /// The tuple's direction.
    pub direction: Direction,
    /// The entry.
    pub entry: &'a mut Entry<K>,
    slot: usize,
    bodies: &'a mut [L4Body],
}

impl<K> Found<'_, K> {
    /// What its tracker knows.
    #[inline(always)]
    pub fn body(&mut self) -> Option<&mut L4Body> {
        self.bodies.get_mut(self.slot)
    }

    /// It and what its tracker knows.
    #[inline(always)]
    pub fn both(&mut self) -> Option<(&mut Conn, &mut L4Body)> {
        Some((&mut self.entry.conn, self.bodies.get_mut(self.slot)?))
    }
}

impl<K: Key> Lane<'_, K> {
    /// The entry that has `key`, with its direction and, of all entries by slot, what their trackers know. `hint` is what the
    /// index had for `hash` a moment ago. It may have become wrong: the entry may be freed, and whoever asks must look
    /// whether it is live.
    #[inline(always)]
    pub fn find(&mut self, hint: u32, hash: u64, key: &K) -> Option<Found<'_, K>> {
        let mut value = hint;
        if !has_key(self.entries, hint, key) {
            value = self.search(hash, key)?;
        }
        let slot = (value >> 1) as usize;
        let direction = if value & 1 == 0 { Direction::Original } else { Direction::Reply };
        Some(Found { direction, entry: self.entries.get_mut(slot)?, slot, bodies: self.bodies })
    }

    /// What the index has for `key`.
    #[cold]
    #[inline(never)]
    pub fn search(&self, hash: u64, key: &K) -> Option<u32> {
        self.index.find(hash, |value| has_key(self.entries, value, key))
    }
}

#[inline(always)]
fn has_key<K: Key>(entries: &[Entry<K>], value: u32, key: &K) -> bool {
    entries.get((value >> 1) as usize).is_some_and(|e| e.keys[(value & 1) as usize] == *key)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::conntrack::tuple::{Key4, Tuple, proto};

    fn key(dport: u16) -> Key4 {
        let (src, dst) = (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(198, 51, 100, 1).into());
        Key4::pack(&Tuple { src, dst, proto: proto::UDP, sport: 53, dport, ct_zone: 0 })
    }

    /// Few buckets, so that old and new often look alike.
    #[test]
    fn an_entry_is_found_by_its_new_reply_tuple_and_not_by_its_old() {
        let mut table: Table<Key4> = Table::new(8, ahash::RandomState::with_seeds(1, 2, 3, 4));
        let slots: Vec<u32> = (0..8)
            .map(|n| table.insert([key(n), key(100 + n)], [None; 2], Conn::default(), L4Body::default()).expect("room"))
            .collect();
        let find = |table: &Table<Key4>, k: Key4| table.find(table.hash(&k), &k);
        let mut replies: Vec<u16> = (100..108).collect();
        for n in 0..2000 {
            let i = usize::from(n % 8);
            assert_eq!(table.replace_reply(slots[i], key(replies[(i + 1) % 8])), Err(InsertError::Clash));
            assert_eq!(table.replace_reply(slots[i], key(0)), Err(InsertError::Clash));
            let old = std::mem::replace(&mut replies[i], 1000 + n);
            assert_eq!(table.replace_reply(slots[i], key(1000 + n)), Ok(()));
            assert_eq!(find(&table, key(old)), None);
            for (i, &reply) in replies.iter().enumerate() {
                assert_eq!(find(&table, key(reply)), Some((slots[i], Direction::Reply)));
                assert_eq!(find(&table, key(u16::try_from(i).expect("few"))), Some((slots[i], Direction::Original)));
            }
        }
        for slot in slots {
            table.unlink(slot);
            table.free(slot);
        }
        assert!(replies.iter().all(|&reply| find(&table, key(reply)).is_none()));
    }

    #[test]
    fn an_ipv4_connection_takes_at_most_192_bytes_with_its_share_of_the_index() {
        let table: Table<Key4> = Table::new(100_000, ahash::RandomState::with_seeds(1, 2, 3, 4));
        assert!(table.memory_per_connection() <= 192, "{} bytes", table.memory_per_connection());
    }
}
