//! What a worker does for control: commands and reports.

use super::Worker;
use super::walk::{Task, Walk};
use crate::api::command::{CREATE_PER_COMMAND, Command, ConnFilter, ConnSpec, CreateError, Event, Message};
use crate::drop::DropReason;
use crate::io::Io;
use crate::path::EventSink;
use crate::time::Nanos;

/// Commands taken per turn.
const COMMANDS: usize = 8;

impl<I: Io> Worker<I> {
    pub(super) fn take_commands(&mut self, now: Nanos) {
        for _ in 0..COMMANDS {
            if self.creating.is_some() {
                return; // a tenth of a second at most
            }
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
                Command::List { cursor, filter, into } => {
                    self.begin_walk(Walk::new(cursor, filter, Task::List(into)));
                    continue;
                }
                Command::Flush { cursor, filter } => {
                    self.begin_walk(Walk::new(cursor, filter, Task::Flush(0)));
                    continue;
                }
                Command::Sweep { cursor } => {
                    self.begin_walk(Walk::new(cursor, ConnFilter::default(), Task::Sweep(0)));
                    continue;
                }
                Command::Delete { cursor, filter, into } => {
                    self.begin_walk(Walk::new(cursor, filter, Task::Delete(into)));
                    continue;
                }
                Command::Update { cursor, filter, change, into } => {
                    self.begin_walk(Walk::new(cursor, filter, Task::Update(change, into)));
                    continue;
                }
                Command::Get { tuple } => {
                    let found = self.path.known_to_all(&tuple, now);
                    Event::Got { conn: found.map(|id| self.path.view(id, now)) }
                }
                Command::Sides { tuple, mut into } => {
                    let found = self.path.sides(&tuple, &mut into, now);
                    Event::Sides { found, sides: into }
                }
                Command::Create { conns, refused } => {
                    self.create(conns, refused, now);
                    continue;
                }
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
    pub(super) fn say(&self, event: Event) {
        let _ = self.messages.try_send(Message { worker: self.index, event });
    }

    pub(super) fn report(&mut self) {
        while let Some(event) = self.path.reports.pop() {
            self.say(event);
        }
    }

    /// Puts connections into the table, between two bursts. The answer comes when none is pending any more.
    fn create(&mut self, conns: Vec<ConnSpec>, mut refused: Vec<(usize, CreateError)>, now: Nanos) {
        refused.clear();
        let (mut made, mut pending) = (0, 0);
        for (n, conn) in conns.iter().take(CREATE_PER_COMMAND).enumerate() {
            match self.path.create(conn, n, now) {
                Ok(true) => made += 1,
                Ok(false) => pending += 1,
                Err(e) if refused.len() < refused.capacity() => refused.push((n, e)),
                Err(_) => {}
            }
        }
        let creating = Creating { conns, refused, made, pending };
        if pending == 0 { self.say(creating.answer()) } else { self.creating = Some(creating) }
    }

    /// One of the operator's connections that was pending is live, or not to be for a reason.
    pub(super) fn made(&mut self, nth: u16, refused: Option<DropReason>) {
        let Some(mut creating) = self.creating.take() else { return };
        match refused {
            None => creating.made += 1,
            Some(reason) if creating.refused.len() < creating.refused.capacity() => {
                let clash = reason == DropReason::SignpostClash;
                let e = if clash { CreateError::Exists } else { CreateError::Full };
                creating.refused.push((usize::from(nth), e));
            }
            Some(_) => {}
        }
        creating.pending -= 1;
        if creating.pending == 0 { self.say(creating.answer()) } else { self.creating = Some(creating) }
    }
}

/// Connections that the operator makes, of which some wait for other workers to say that their reply tuples are free.
#[derive(Debug)]
pub(super) struct Creating {
    conns: Vec<ConnSpec>,
    refused: Vec<(usize, CreateError)>,
    made: u64,
    pending: usize,
}

impl Creating {
    fn answer(self) -> Event {
        Event::Created { made: self.made, refused: self.refused, conns: self.conns }
    }
}
