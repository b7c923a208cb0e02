//! What a worker does for control: commands, dumps, flushes, reports.

use std::net::IpAddr;

use super::Worker;
use crate::api::command::{Command, ConnFilter, ConnView, Event, Message, SCAN_PER_COMMAND};
use crate::api::stats::CtEvent;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::conntrack::{ConnId, Scan};
use crate::io::Io;
use crate::time::Nanos;

/// Commands taken per turn.
const COMMANDS: usize = 8;

impl<I: Io> Worker<I> {
    pub(super) fn take_commands(&mut self, now: Nanos) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { return };
            let event = match command {
                Command::Policy { policy, rules } => {
                    let generation = policy.spec().generation;
                    let old = self.path.set_policy(policy, rules);
                    Event::PolicyInForce { generation, old: Some(old) }
                }
                Command::Fib(fib) => Event::FibInForce { old: self.path.set_fib(fib) },
                Command::Neighbour(update) => {
                    self.neighbour(&update);
                    continue;
                }
                Command::List { cursor, filter, into } => self.list(cursor, &filter, into, now),
                Command::Flush { cursor, filter } => self.flush_conns(cursor, &filter, now),
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
                    let view = self.view(id, now);
                    if self.path.conntrack.conn(id).deadline > now && matches(filter, &view) {
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
                    if matches(filter, &self.view(id, now)) {
                        self.path.end(id, CtEvent::Flushed, now);
                        ended += 1;
                    }
                }
            }
        }
        Event::Flushed { next: Some(end), ended }
    }

    /// A connection as dumps show it.
    pub fn view(&self, id: ConnId, now: Nanos) -> ConnView {
        let conn = self.path.conntrack.conn(id);
        let original = self.path.conntrack.tuple(id, Direction::Original);
        let egress = |d: usize| (conn.cache[d].epoch != 0).then(|| conn.cache[d].egress.interface());
        ConnView {
            original,
            reply: self.path.conntrack.tuple(id, Direction::Reply),
            tcp_state: (original.proto == proto::TCP).then(|| conn.tcp.name()),
            timeout_s: u32::try_from(conn.deadline.since(now).as_secs()).unwrap_or(u32::MAX),
            replied: conn.flags.has(Flags::REPLIED),
            assured: conn.flags.has(Flags::ASSURED),
            packets: conn.packets,
            bytes: conn.bytes,
            egress: [egress(0), egress(1)],
        }
    }
}

/// Whether a connection is among those that `f` asks for.
fn matches(f: &ConnFilter, c: &ConnView) -> bool {
    let net = |n: &Option<ipnet::IpNet>, a: IpAddr| n.is_none_or(|n| n.contains(&a));
    let Tuple { src, dst, proto, sport, dport } = c.original;
    let plain = c.original.inverse();
    let ports = c.original.has_ports();
    f.family.is_none_or(|v| v == if src.is_ipv4() { 4 } else { 6 })
        && f.proto.is_none_or(|p| p == proto)
        && net(&f.source, src)
        && net(&f.destination, dst)
        && net(&f.reply_source, c.reply.src)
        && net(&f.reply_destination, c.reply.dst)
        && f.sport.is_none_or(|p| ports && p == sport)
        && f.dport.is_none_or(|p| ports && p == dport)
        && f.tcp_state.is_none_or(|s| c.tcp_state == Some(s))
        && f.assured.is_none_or(|a| a == c.assured)
        && f.replied.is_none_or(|r| r == c.replied)
        && (!f.snat || (c.reply.dst, c.reply.dport) != (plain.dst, plain.dport))
        && (!f.dnat || (c.reply.src, c.reply.sport) != (plain.src, plain.sport))
}
