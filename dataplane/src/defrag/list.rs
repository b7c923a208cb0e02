//! Lists by age whose links lie beside what they hold: a member is appended and taken out in constant time.
//!
//! *Threads*: one worker. *Limits*: what holds the links is sized at start; a member is in a list once at most.

/// No member.
pub(super) const NONE: u32 = u32::MAX;

/// A member's neighbours in one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    older: u32,
    newer: u32,
}

impl Link {
    /// In no list.
    pub(super) const FREE: Self = Self { older: NONE, newer: NONE };
}

/// The ends of one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    oldest: u32,
    newest: u32,
}

impl List {
    /// Nobody is in it.
    pub(super) const EMPTY: Self = Self { oldest: NONE, newest: NONE };

    /// The member that has been in it longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Appends `member`, which is in no list that uses link `of`.
    pub(super) fn append<const N: usize>(&mut self, links: &mut [[Link; N]], of: usize, member: u32) {
        let before = self.newest;
        if let Some(link) = at(links, of, member) {
            *link = Link { older: before, newer: NONE };
            self.newest = member;
        }
        match at(links, of, before) {
            Some(link) => link.newer = member,
            None => self.oldest = member,
        }
    }

    /// Takes `member` out, which is in this list.
    pub(super) fn remove<const N: usize>(&mut self, links: &mut [[Link; N]], of: usize, member: u32) {
        let Some(link) = at(links, of, member) else { return };
        let Link { older, newer } = std::mem::replace(link, Link::FREE);
        match at(links, of, older) {
            Some(link) => link.newer = newer,
            None => self.oldest = newer,
        }
        match at(links, of, newer) {
            Some(link) => link.older = older,
            None => self.newest = older,
        }
    }
}

fn at<const N: usize>(links: &mut [[Link; N]], of: usize, member: u32) -> Option<&mut Link> {
    links.get_mut(member as usize)?.get_mut(of)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_is_what_a_queue_would_be(steps in proptest::collection::vec(0u32..8, 0..200)) {
            let (mut list, mut links, mut model) = (List::EMPTY, [[Link::FREE; 2]; 8], Vec::new());
            for member in steps {
                match model.iter().position(|&m| m == member) {
                    Some(i) => {
                        model.remove(i);
                        list.remove(&mut links, 1, member);
                    }
                    None => {
                        model.push(member);
                        list.append(&mut links, 1, member);
                    }
                }
                let (mut seen, mut next) = (Vec::new(), list.oldest);
                while next != NONE {
                    seen.push(next);
                    next = links[next as usize][1].newer;
                }
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(list.newest, model.last().copied().unwrap_or(NONE));
            }
        }
    }
}
