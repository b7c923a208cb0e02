//! Signposts: tuples whose home is this worker but whose flow another worker owns.
//!
//! *Life-cycle*: placed and taken back by messages of the owner. *Threads*: the home's worker alone.
//! *Limits*: as many as the worker's table has connections; beyond it placing is refused and the owner told.

use super::index::Index;
use super::tuple::Tuple;

/// A worker's index.
pub type WorkerId = u16;

/// Which question of its owner's a signpost answers: the asker's place for it, and how often that has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The place.
    pub slot: u16,
    /// Its use.
    pub turn: u32,
}

#[derive(Debug)]
struct Post {
    tuple: Tuple,
    owner: WorkerId,
    /// The last question that it answers.
    ticket: Option<Ticket>,
    /// Whether it was given in place of what was asked for: then it answers no other question.
    lent: bool,
    next_free: u32,
}

/// Why a signpost was not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// No room.
    Full,
    /// Another owner has one for the same tuple.
    Clash,
}

/// The signposts of one worker.
#[derive(Debug)]
pub struct Signposts {
    index: Index,
    posts: Vec<Post>,
    free: u32,
    count: usize,
    seed: ahash::RandomState,
}

const NONE: u32 = u32::MAX;

impl Signposts {
    /// Room for `capacity` signposts.
    pub fn new(capacity: usize, seed: ahash::RandomState) -> Self {
        Self { index: Index::new(capacity), posts: Vec::with_capacity(capacity), free: NONE, count: 0, seed }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Who owns the flow of `tuple`.
    pub fn owner(&self, tuple: &Tuple) -> Option<WorkerId> {
        if self.count == 0 {
            return None;
        }
        self.find(tuple).map(|slot| self.posts[slot as usize].owner)
    }

    /// Places a signpost. Placing the same one again changes nothing.
    ///
    /// # Errors
    /// [`PlaceError`], and nothing changed.
    pub fn place(&mut self, tuple: Tuple, owner: WorkerId) -> Result<(), PlaceError> {
        self.answer(tuple, owner, None, false)
    }

    /// Places the signpost that answers `ticket`; `lent`: in place of another that was asked for.
    ///
    /// # Errors
    /// [`PlaceError`], and nothing changed.
    pub fn answer(
        &mut self,
        tuple: Tuple,
        owner: WorkerId,
        ticket: Option<Ticket>,
        lent: bool,
    ) -> Result<(), PlaceError> {
        if let Some(slot) = self.find(&tuple) {
            let post = &mut self.posts[slot as usize];
            if post.owner != owner || (post.lent || lent) && post.ticket != ticket {
                return Err(PlaceError::Clash);
            }
            post.ticket = ticket;
            return Ok(());
        }
        let slot = if self.free != NONE {
            self.free
        } else if self.posts.len() < self.posts.capacity() {
            u32::try_from(self.posts.len()).map_err(|_| PlaceError::Full)?
        } else {
            return Err(PlaceError::Full);
        };
        self.index.insert(self.seed.hash_one(tuple), slot).map_err(|_| PlaceError::Full)?;
        let post = Post { tuple, owner, ticket, lent, next_free: NONE };
        match self.posts.get_mut(slot as usize) {
            Some(p) => {
                self.free = p.next_free;
                *p = post;
            }
            None => self.posts.push(post), // within the capacity taken at start
        }
        self.count += 1;
        Ok(())
    }

    /// Takes back the signpost of `tuple` where `owner` placed it.
    pub fn remove(&mut self, tuple: &Tuple, owner: WorkerId) -> bool {
        self.revoke(tuple, owner, None)
    }

    /// The same where it answers `ticket`, if one is given: what has come to nothing takes no other's.
    pub fn revoke(&mut self, tuple: &Tuple, owner: WorkerId, ticket: Option<Ticket>) -> bool {
        let Some(slot) = self.find(tuple) else { return false };
        let post = &self.posts[slot as usize];
        if post.owner != owner || ticket.is_some() && post.ticket != ticket {
            return false;
        }
        self.index.remove(self.seed.hash_one(tuple), slot);
        self.posts[slot as usize].next_free = self.free;
        self.free = slot;
        self.count -= 1;
        true
    }

    fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.index
            .find(self.seed.hash_one(tuple), |slot| self.posts.get(slot as usize).is_some_and(|p| p.tuple == *tuple))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn tuple(n: u16) -> Tuple {
        Tuple {
            src: Ipv4Addr::new(192, 0, 2, 1).into(),
            dst: Ipv4Addr::new(198, 51, 100, 1).into(),
            proto: 6,
            sport: n,
            dport: 80,
            ct_zone: 0,
        }
    }

    #[test]
    fn what_answers_one_question_is_not_taken_back_with_another() {
        let mut s = Signposts::new(9, ahash::RandomState::with_seeds(1, 2, 3, 4));
        let ticket = |slot| Some(Ticket { slot, turn: 1 });
        assert_eq!(s.answer(tuple(1), 0, ticket(1), true), Ok(()));
        assert_eq!(s.answer(tuple(1), 0, ticket(2), false), Err(PlaceError::Clash), "lent for another question");
        assert!(!s.revoke(&tuple(1), 0, ticket(2)));
        assert_eq!(s.owner(&tuple(1)), Some(0));
        assert!(s.revoke(&tuple(1), 0, ticket(1)));
        assert_eq!(s.answer(tuple(1), 0, ticket(3), false), Ok(()));
        assert_eq!(s.answer(tuple(1), 0, ticket(4), true), Err(PlaceError::Clash));
        assert_eq!(s.answer(tuple(1), 0, ticket(5), false), Ok(()), "asked for again");
        assert!(!s.revoke(&tuple(1), 0, ticket(3)) && s.revoke(&tuple(1), 0, None));
    }

    #[test]
    fn a_clash_and_a_full_table_are_refused() {
        let mut s = Signposts::new(2, ahash::RandomState::with_seeds(1, 2, 3, 4));
        assert_eq!(s.place(tuple(1), 0), Ok(()));
        assert_eq!(s.place(tuple(1), 0), Ok(()));
        assert_eq!(s.place(tuple(1), 1), Err(PlaceError::Clash));
        assert_eq!(s.place(tuple(2), 1), Ok(()));
        assert_eq!(s.place(tuple(3), 1), Err(PlaceError::Full));
        assert!(!s.remove(&tuple(1), 1) && s.remove(&tuple(1), 0));
        assert_eq!(s.owner(&tuple(1)), None);
        assert_eq!(s.place(tuple(3), 1), Ok(()));
        assert_eq!((s.owner(&tuple(3)), s.count()), (Some(1), 2));
    }
}
