//! The bridging thread: what workers say, sorted to whom it concerns.
//!
//! Answers go to whoever waits for them, retired policies to the [`Ledger`], wishes for neighbours to the kernel mirror,
//! changes of connections to who listens ([`Hub`]), reports to the log. *Life-cycle*: ends when the workers have dropped
//! their ends of the channel. *Threads*: one of its own; it waits for nobody, so that no worker finds the channel full.

use std::sync::Arc;

use crossbeam_channel::Receiver;
use dataplane::api::SavedSides;
use dataplane::api::command::{ConnView, CreateError, Event, ExpectView, Message};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::ResolveRequest;
use crate::api::show::proto_name;
use crate::changes::Hub;
use crate::ledger::Ledger;

/// A worker's answer to a command about its connections.
pub enum Answer {
    Listed(Option<u64>, Vec<ConnView>),
    Flushed(Option<u64>, u64),
    Swept(Option<u64>, u64),
    Got(Option<ConnView>),
    Sides(Option<Box<SavedSides>>),
    Created(u64, Vec<(usize, CreateError)>),
    Expectations(Vec<ExpectView>),
}

/// What the bridging thread owns.
pub struct Bridge {
    pub messages: Receiver<Message>,
    /// By worker: where its answers go, and the policy that it judges by.
    pub ends: Vec<(mpsc::UnboundedSender<Answer>, watch::Sender<u64>)>,
    pub resolve: mpsc::Sender<ResolveRequest>,
    pub ledger: Arc<Mutex<Ledger>>,
    pub interface_names: Vec<String>,
    pub changes: Arc<Hub>,
}

impl Bridge {
    pub fn run(self) {
        while let Ok(Message { worker, event }) = self.messages.recv() {
            let Some((answers, in_force)) = self.ends.get(worker) else { continue };
            // A send fails only when control is being torn down.
            let answer = |answer| drop(answers.send(answer));
            match event {
                Event::PolicyInForce { generation, old } => {
                    if let Some((_, counters, _)) = &old {
                        self.ledger.lock().retire(worker, counters);
                    }
                    in_force.send_replace(generation);
                }
                Event::FibInForce { old } => drop(old),
                Event::Listed { next, conns } => answer(Answer::Listed(next, conns)),
                Event::Flushed { next, ended } => answer(Answer::Flushed(next, ended)),
                Event::Swept { next, kept } => answer(Answer::Swept(next, kept)),
                Event::Got { conn } => answer(Answer::Got(conn)),
                Event::Sides { found, sides } => answer(Answer::Sides(found.then_some(sides))),
                // The connections of the command come back to be freed here.
                Event::Created { made, refused, conns: _ } => answer(Answer::Created(made, refused)),
                Event::Expectations { expectations } => answer(Answer::Expectations(expectations)),
                Event::Conn(event) => self.changes.report(worker, event),
                Event::Resolve { interface, address } => {
                    let _ = self.resolve.try_send(ResolveRequest { interface, address });
                }
                Event::InvalidLog { reason, interface, tuple } => {
                    let (reason, interface) = (reason.label(), self.interface(interface));
                    let proto = proto_name(tuple.proto);
                    tracing::info!(target: "sluice::invalid", reason, interface, worker, "{proto} {tuple}");
                }
                Event::NatFailed { generation, rule, reason, interface, tuple } => {
                    let ledger = self.ledger.lock();
                    let (rule, interface) = (ledger.nat_rule_name(generation, rule), self.interface(interface));
                    let (reason, proto) = (reason.label(), proto_name(tuple.proto));
                    tracing::warn!(target: "sluice::nat", rule, reason, interface, worker, "{proto} {tuple}");
                }
                Event::RuleLog { generation, rule, accepted, interface, tuple } => {
                    let ledger = self.ledger.lock();
                    let (rule, interface) = (ledger.rule_name(generation, rule), self.interface(interface));
                    let action = if accepted { "accept" } else { "drop" };
                    let proto = proto_name(tuple.proto);
                    tracing::info!(target: "sluice::rule", rule, action, interface, worker, "{proto} {tuple}");
                }
            }
        }
    }

    fn interface(&self, index: u16) -> &str {
        self.interface_names.get(usize::from(index)).map_or("?", String::as_str)
    }
}
