//! Walks over the connection table at control's wish: dumps, deletions, updates, flushes.
//!
//! A walk goes a few entries further each turn ([`ENTRIES_PER_TURN`]), so that no burst waits for it, and answers when
//! its vector is full, after [`SCAN_PER_COMMAND`] entries, or at the table's end.
//!
//! *Life-cycle*: a command begins it, its answer ends it. *Threads*: the worker's.
//! *Limits*: one walk goes at a time, [`WAITING`] wait; one more is answered at once, with nothing done.

use arrayvec::ArrayVec;

use super::Worker;
use crate::api::command::{ConnChange, ConnFilter, ConnView, Event, SCAN_PER_COMMAND};
use crate::api::stats::CtEvent;
use crate::conntrack::{ConnId, Scan};
use crate::io::Io;
use crate::time::Nanos;

/// Entries that a walk looks at per turn: three to four microseconds for a dump of a full table.
pub const ENTRIES_PER_TURN: u32 = 32;

/// Rules that a sweep looks at per turn, some ten microseconds, but for one that has more to look at for one entry.
const RULES_PER_TURN: u32 = 1024;

/// Walks that may wait for the one that goes.
const WAITING: usize = 8;

/// What a walk does with the connections that match.
#[derive(Debug)]
pub(super) enum Task {
    /// Reports them.
    List(Vec<ConnView>),
    /// Ends them, and reports each as it was.
    Delete(Vec<ConnView>),
    /// Changes them, and reports each as it is then.
    Update(ConnChange, Vec<ConnView>),
    /// Ends them, and counts how many.
    Flush(u64),
    /// Judges them again, and counts how many stay.
    Sweep(u64),
}

impl Task {
    /// Where it puts what it reports.
    fn report(&self) -> Option<&Vec<ConnView>> {
        match self {
            Self::List(into) | Self::Delete(into) | Self::Update(_, into) => Some(into),
            Self::Flush(_) | Self::Sweep(_) => None,
        }
    }
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk {
    at: u64,
    left: u32,
    filter: ConnFilter,
    task: Task,
}

impl Walk {
    /// A walk from `cursor`.
    pub fn new(cursor: u64, filter: ConnFilter, task: Task) -> Self {
        // So that each of its answers comes in time however many rules there are.
        let left = if matches!(task, Task::Sweep(_)) { SCAN_PER_COMMAND / 8 } else { SCAN_PER_COMMAND };
        Self { at: cursor, left, filter, task }
    }

    /// Its answer; `at_end`: no entry is left.
    fn answer(self, at_end: bool) -> Event {
        let next = (!at_end).then_some(self.at);
        match self.task {
            Task::List(conns) | Task::Delete(conns) | Task::Update(_, conns) => Event::Listed { next, conns },
            Task::Flush(ended) => Event::Flushed { next, ended },
            Task::Sweep(kept) => Event::Swept { next, kept },
        }
    }

    fn is_full(&self) -> bool {
        self.task.report().is_some_and(|into| into.len() == into.capacity())
    }
}

/// The walk that goes, which is the first, and those that wait.
pub(super) type Walks = ArrayVec<Walk, { WAITING + 1 }>;

impl<I: Io> Worker<I> {
    /// Begins a walk, or has it wait for its turn.
    pub(super) fn begin_walk(&mut self, walk: Walk) {
        if let Err(refused) = self.walks.try_push(walk) {
            self.say(refused.element().answer(false));
        }
    }

    /// Goes a few entries further.
    pub(super) fn walk(&mut self, now: Nanos) {
        let entries = match self.walks.first() {
            None => return,
            Some(Walk { task: Task::Sweep(_), .. }) => self.sweep_entries(),
            Some(_) => ENTRIES_PER_TURN,
        };
        let mut at_end = false;
        for _ in 0..entries {
            let Some(walk) = self.walks.first_mut() else { return };
            if walk.left == 0 || walk.is_full() {
                break;
            }
            match self.path.conntrack.scan(walk.at) {
                Scan::End => {
                    at_end = true;
                    break;
                }
                Scan::Empty => {}
                Scan::Conn(id) => self.visit(id, now),
            }
            if let Some(walk) = self.walks.first_mut() {
                walk.at += 1;
                walk.left -= 1;
            }
        }
        if at_end || self.walks.first().is_some_and(|w| w.left == 0 || w.is_full()) {
            let walk = self.walks.remove(0);
            self.say(walk.answer(at_end));
        }
    }

    /// Entries that a sweep looks at per turn: each may cost a look at every rule.
    fn sweep_entries(&self) -> u32 {
        let spec = self.path.policy.spec();
        let rules = u32::try_from(spec.rules.len() + spec.nat.len()).unwrap_or(u32::MAX);
        (RULES_PER_TURN / rules.max(1)).clamp(1, ENTRIES_PER_TURN)
    }

    /// Does what is to be done with one connection. Vectors are below their capacity: `walk` has looked.
    fn visit(&mut self, id: ConnId, now: Nanos) {
        let Some(Walk { filter, task, .. }) = self.walks.first_mut() else { return };
        if let Task::Sweep(kept) = task {
            *kept += u64::from(self.path.sweep(id, now));
            return;
        }
        let view = self.path.view(id, now);
        // What has expired is only waiting for the timer wheel to come by.
        if !view.is_among(filter) || self.path.conntrack.conn(id).deadline() <= now {
            return;
        }
        match task {
            Task::List(into) => into.push(view),
            Task::Delete(into) => {
                self.path.end(id, CtEvent::Flushed, now);
                into.push(view);
            }
            Task::Update(change, into) => {
                self.path.change(id, *change, now);
                into.push(self.path.view(id, now));
            }
            Task::Sweep(_) => {}
            Task::Flush(ended) => {
                self.path.end(id, CtEvent::Flushed, now);
                *ended += 1;
            }
        }
    }
}
