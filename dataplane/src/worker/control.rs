//! What a worker does for control: commands, dumps, flushes, reports.

use super::Worker;
use crate::api::command::{
    CREATE_PER_COMMAND, Command, ConnChange, ConnFilter, ConnSpec, ConnView, Event, Message, SCAN_PER_COMMAND,
};
use crate::api::stats::CtEvent;
use crate::conntrack::Scan;
use crate::io::Io;
use crate::path::EventSink;
use crate::time::Nanos;

/// Commands taken per turn.
const COMMANDS: usize = 8;

impl<I: Io> Worker<I> {
    pub(super) fn take_commands(&mut self, now: Nanos) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { return };
            let event = match command {
                Command::Policy { policy, rules, limits } => {
                    let generation = policy.spec().generation;
                    let old = self.path.set_policy(policy, rules, limits);
                    Event::PolicyInForce { generation, old: Some(old) }
                }
                Command::Fib(fib) => Event::FibInForce { old: self.path.set_fib(fib) },
                Command::Neighbour(update) => {
                    self.neighbour(&update);
                    continue;
                }
                Command::List { cursor, filter, into } => self.list(cursor, &filter, into, now),
                Command::Flush { cursor, filter } => self.flush_conns(cursor, &filter, now),
                Command::Get { tuple } => {
                    let found = self.path.conntrack.lookup(&tuple, now);
                    Event::Got { conn: found.map(|(id, _)| self.path.view(id, now)) }
                }
                Command::Create(conns) => self.create(&conns, now),
                Command::Update { cursor, filter, change } => self.update(cursor, &filter, change, now),
                Command::Expectations { mut into } => {
                    self.path.list_expectations(&mut into, now);
                    Event::Expectations { expectations: into }
                }
                Command::Subscribe(on) => {
                    self.path.events = on.then(|| EventSink { worker: self.index, messages: self.messages.clone() });
                    continue;
                }
                Command::Stop => {
                    self.stopping = true;
                    return;
                }
            };
            self.say(event);
        }
    }

    /// Answers control. The channel is sized for all answers under way; one that does not fit is lost, and control's
    /// own time limit notices.
    fn say(&self, event: Event) {
        let _ = self.messages.try_send(Message { worker: self.index, event });
    }

    pub(super) fn report(&mut self) {
        while let Some(event) = self.path.reports.pop() {
            self.say(event);
        }
    }

    fn list(&self, cursor: u64, filter: &ConnFilter, mut into: Vec<ConnView>, now: Nanos) -> Event {
        let mut at = cursor;
        let mut next = None;
        for _ in 0..SCAN_PER_COMMAND {
            if into.len() == into.capacity() {
                next = Some(at);
                break;
            }
            match self.path.conntrack.scan(at) {
                Scan::End => return Event::Listed { next: None, conns: into },
                Scan::Empty => {}
                Scan::Conn(id) => {
                    let view = self.path.view(id, now);
                    if self.path.conntrack.conn(id).deadline() > now && view.is_among(filter) {
                        into.push(view);
                    }
                }
            }
            at += 1;
            next = Some(at);
        }
        Event::Listed { next, conns: into }
    }

    fn flush_conns(&mut self, cursor: u64, filter: &ConnFilter, now: Nanos) -> Event {
        let mut ended = 0;
        let end = cursor + u64::from(SCAN_PER_COMMAND);
        for at in cursor..end {
            match self.path.conntrack.scan(at) {
                Scan::End => return Event::Flushed { next: None, ended },
                Scan::Empty => {}
                Scan::Conn(id) => {
                    if self.path.view(id, now).is_among(filter) {
                        self.path.end(id, CtEvent::Flushed, now);
                        ended += 1;
                    }
                }
            }
        }
        Event::Flushed { next: Some(end), ended }
    }

    /// Puts connections into the table. This is the control thread's doing and happens between two bursts; the list of
    /// refusals is as long as the command at most.
    fn create(&mut self, conns: &[ConnSpec], now: Nanos) -> Event {
        let mut refused = Vec::new();
        let conns = &conns[..conns.len().min(CREATE_PER_COMMAND)];
        for (n, conn) in conns.iter().enumerate() {
            if let Err(e) = self.path.create(conn, now) {
                refused.push((n, e));
            }
        }
        Event::Created { made: (conns.len() - refused.len()) as u64, refused }
    }

    fn update(&mut self, cursor: u64, filter: &ConnFilter, change: ConnChange, now: Nanos) -> Event {
        let end = cursor + u64::from(SCAN_PER_COMMAND);
        let mut changed = 0;
        for at in cursor..end {
            match self.path.conntrack.scan(at) {
                Scan::End => return Event::Updated { next: None, changed },
                Scan::Empty => {}
                Scan::Conn(id) => {
                    if self.path.view(id, now).is_among(filter) {
                        self.path.change(id, change, now);
                        changed += 1;
                    }
                }
            }
        }
        Event::Updated { next: Some(end), changed }
    }
}
