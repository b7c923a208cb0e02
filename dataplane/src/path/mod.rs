//! The packet's way through tracking, translation, routing and filter: from a parsed [`Packet`] to an [`Outcome`].
//!
//! Nothing here touches bytes: `parse` has read what is needed, and the worker carries out the plan. The order of the
//! steps is a security property:
//!
//! ```text
//! raw → conntrack
//!   first packet of a connection: DNAT → route → TTL, MTU → filter → SNAT → confirm → (wait for a signpost)
//!   later packets:                what was found for this direction and class, while its epoch is current
//!   ICMP error about one:         the connection's translation → route → TTL → filter
//!   INVALID, UNTRACKED:           route → TTL, MTU → filter; never translated
//! ```
//!
//! *Life-cycle*: made with its worker. *Threads*: that worker alone. *Limits*: tables sized at start; one signpost note
//! per connection and direction of travel; reports to control at most [`REPORTS`] per burst.
//! *Sources*: `linux/net/netfilter` (hooks and their order), `linux/net/ipv4/ip_forward.c`.

mod error;
mod expected;
mod fast;
mod find;
mod follow;
mod helper;
mod hop;
mod lifecycle;
mod operator;
mod pptp;
mod prefix;
pub mod reserve;
mod sweep;
mod translate;
mod view;

use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_channel::Sender;

use self::fast::Egress;
pub use self::fast::{Finder, Tally, Way, Ways};
pub use self::helper::{Acknowledge, Help};
use self::hop::Hop;
use self::pptp::Call;
use self::reserve::{CHOICES, First, RESERVATIONS, Reservations, Slot};
use self::translate::NewSource;
use crate::api::command::{ConnEventKind, Event, Message};
use crate::api::policy::{RawAction, ZoneId};
use crate::api::rules::{RuleCounters, Trail};
use crate::api::stats::{CtEvent, HandoverCause, WorkerStats};
use crate::conntrack::conn::{Cached, Flags, Unconfirmed};
use crate::conntrack::expect::{EXPECTATIONS, Expectation, Expectations};
use crate::conntrack::limit::Limits;
use crate::conntrack::signpost::{Signposts, WorkerId};
use crate::conntrack::tuple::{Direction, Tuple};
use crate::conntrack::{ConnId, Conntrack, Tracked};
use crate::drop::DropReason;
use crate::filter::{Policy, Query, Verdict};
use crate::forward::icmp_error::{IcmpError, RateLimit};
use crate::forward::neighbour::Neighbours;
use crate::forward::route::Fib;
use crate::helper::Helpers;
use crate::io::PortIdx;
use crate::nat::ports::Ports;
use crate::nat::rewrite::ErrorTarget;
use crate::packet::{CtState, L4, Packet, Quoted};
use crate::steer::{Note, Notes, Steer};
use crate::time::Nanos;

/// Reports to control that one burst may cause.
pub const REPORTS: usize = 16;

/// Refusals of signposts that wait for room in a ring; while this is full no further notes are read.
const REFUSALS: usize = 64;

/// How long an ended connection waits before it tries again to take its signpost back.
const RETRY: Nanos = Nanos::from_millis(100);

/// What a worker knows of an interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// MAC address of the wire port and of its twin.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// VLAN on the wire.
    pub vlan: Option<u16>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rewrite and send it.
    Forward(Plan),
    /// Discard it, and tell its sender where an error is given.
    Drop(Refusal),
    /// It is another worker's.
    Handover(WorkerId, HandoverCause),
    /// It waits for this reservation to be settled, behind those that do already: see [`Path::next_settled`].
    Wait(Slot),
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason that is counted.
    pub reason: DropReason,
    /// What its sender is told.
    pub error: Option<IcmpError>,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, error: None }
    }
}

impl From<DropReason> for Outcome {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason.into())
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Drop(refusal)
    }
}

/// How to rewrite and send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it leaves.
    pub egress: PortIdx,
    /// Its link-layer destination.
    pub l2: L2,
    /// Its translation.
    pub rewrite: Rewrite,
    /// Whether this is a hop: lower the TTL.
    pub hop: bool,
    /// Cut it into fragments of the egress MTU.
    pub fragment: bool,
    /// Show it to its connection's helper first: see [`Path::help`].
    pub helped: bool,
}

/// Link-layer destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2 {
    /// As the frame has it: between wire and kernel.
    Keep,
    /// This station.
    To([u8; 6]),
    /// The station that has this address on the egress link, once it is known.
    Resolve(IpAddr),
}

/// Translation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// None.
    None,
    /// Give it this tuple.
    Tuple(Tuple),
    /// Translate an ICMP error and what it quotes.
    Error(Quoted, ErrorTarget),
}

/// Where a worker reports changes of connections.
#[derive(Clone, Debug)]
pub struct EventSink {
    /// The worker's index.
    pub worker: usize,
    /// Its way to control.
    pub messages: Sender<Message>,
}

/// One worker's stages and all that they know.
#[derive(Debug)]
pub struct Path {
    /// Which worker owns what.
    pub steer: Steer,
    /// The connections of this worker.
    pub conntrack: Conntrack,
    /// Tuples that are home here and owned elsewhere.
    pub signposts: Signposts,
    /// The connections of this worker that a helper watches.
    pub helpers: Helpers,
    /// What they have announced.
    pub expectations: Expectations,
    /// What other workers expect: keys, and who.
    pub announced: Signposts,
    /// Next hops' MAC addresses.
    pub neighbours: Neighbours,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// How many connections a source or a zone may have.
    pub limits: Box<Limits>,
    /// This worker's counters of its rules.
    pub rules: Arc<RuleCounters>,
    /// The forwarding table in force.
    pub fib: Arc<Fib>,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// The same by port, as usual packets need them.
    egresses: Vec<Egress>,
    /// This worker's counters.
    pub stats: Arc<WorkerStats>,
    /// What control should hear of.
    pub reports: ArrayVec<Event, REPORTS>,
    /// Where changes of connections are reported, while somebody listens.
    pub events: Option<EventSink>,
    notes: Notes,
    refusals: ArrayVec<(WorkerId, Note), REFUSALS>,
    reservations: Reservations,
    /// Tuples that are another worker's connections', while a choice among others is made.
    denied: ArrayVec<Tuple, CHOICES>,
    ports: Ports,
    log_limit: RateLimit,
    invalid_limit: RateLimit,
    nat_limit: RateLimit,
    /// Changes with policy and routes; what was cached under an older one is found out again.
    epoch: u32,
    /// Changes with the policy alone.
    policy_epoch: u32,
}

/// What a [`Path`] is made of.
#[derive(Debug)]
pub struct PathSetup {
    /// Which worker this is.
    pub steer: Steer,
    /// Rings of notes to the other workers.
    pub notes: Notes,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// Counters.
    pub stats: Arc<WorkerStats>,
    /// Most connections of this worker.
    pub conntrack_max: usize,
    /// Seeds of hashes and port choice: random per start.
    pub seeds: [u64; 4],
    /// The first policy.
    pub policy: Arc<Policy>,
    /// The first forwarding table.
    pub fib: Arc<Fib>,
}

impl Path {
    /// A path without connections.
    pub fn new(setup: PathSetup, now: Nanos) -> Self {
        let [a, b, c, d] = setup.seeds;
        let seed = ahash::RandomState::with_seeds(a, b, c, d);
        let alone = setup.steer.is_alone();
        let posts = if alone { 1 } else { setup.conntrack_max };
        let expectations = EXPECTATIONS.div_ceil(usize::from(setup.steer.workers()));
        Self {
            limits: Box::new(Limits::new(&setup.policy, setup.conntrack_max, usize::from(setup.steer.workers()))),
            steer: setup.steer,
            conntrack: Conntrack::new(setup.conntrack_max, seed.clone(), now),
            signposts: Signposts::new(posts, seed.clone()),
            helpers: Helpers::new(setup.conntrack_max, seed.clone()),
            expectations: Expectations::new(expectations, seed.clone()),
            announced: Signposts::new(if alone { 1 } else { EXPECTATIONS }, seed.clone()),
            neighbours: Neighbours::new(seed.clone()),
            rules: Arc::new(RuleCounters::new(setup.policy.spec())),
            policy: setup.policy,
            fib: setup.fib,
            egresses: setup.interfaces.iter().flat_map(Egress::of).collect(),
            interfaces: setup.interfaces,
            stats: setup.stats,
            reports: ArrayVec::new(),
            events: None,
            notes: setup.notes,
            refusals: ArrayVec::new(),
            reservations: Reservations::new(if alone { 0 } else { RESERVATIONS }),
            denied: ArrayVec::new(),
            ports: Ports::new(setup.seeds.map(|s| s.rotate_left(17) ^ d), seed),
            log_limit: RateLimit::new(now),
            invalid_limit: RateLimit::new(now),
            nat_limit: RateLimit::new(now),
            epoch: 1,
            policy_epoch: 1,
        }
    }

    /// Judges by `policy` from now on; gives back what it replaces.
    pub fn set_policy(
        &mut self,
        policy: Arc<Policy>,
        rules: Arc<RuleCounters>,
        limits: Box<Limits>,
    ) -> (Arc<Policy>, Arc<RuleCounters>, Box<Limits>) {
        self.epoch = next_epoch(self.epoch);
        self.policy_epoch = next_epoch(self.policy_epoch);
        let limits = self.limits.replace(limits);
        (std::mem::replace(&mut self.policy, policy), std::mem::replace(&mut self.rules, rules), limits)
    }

    /// Routes by `fib` from now on; gives back what it replaces.
    pub fn set_fib(&mut self, fib: Arc<Fib>) -> Arc<Fib> {
        self.epoch = next_epoch(self.epoch);
        std::mem::replace(&mut self.fib, fib)
    }

    /// Takes a packet through all stages. Its hash must be that of its tuple.
    pub fn judge(&mut self, p: &mut Packet, now: Nanos) -> Outcome {
        let from = self.policy.zone_of(p.in_port);
        let discovery = matches!(p.kind, L4::NeighbourDiscovery);
        let raw = match self.policy.has_raw() {
            true => self.policy.raw(&self.query(p, &p.tuple, CtState::Untracked, from, None)),
            false => RawAction::Accept,
        };
        if raw == RawAction::Drop && !(discovery && self.stays_on_link(p)) {
            return DropReason::RawRule.into();
        }
        if discovery || raw == RawAction::Notrack {
            p.state = CtState::Untracked;
            self.classify(p);
            return self.stateless(p, from, None, now);
        }
        if let L4::IcmpError(quoted) = p.kind {
            return self.error(p, quoted, from, now);
        }
        let call = if matches!(p.kind, L4::Gre { call: true }) { self.call_of(&p.tuple, p.stale) } else { Call::None };
        match call {
            Call::None => {}
            Call::Here(whole) => (p.tuple, p.hash) = (whole, self.conntrack.hash(&whole)),
            Call::At(owner) => return Outcome::Handover(owner, HandoverCause::Expectation),
        }
        if p.later {
            return self.follow(p, from, now);
        }
        loop {
            let hit = match self.lookup(&p.tuple, p.hash, now) {
                Some(hit) => Some(hit),
                None if call != Call::None => None,
                None => match self.owner_of_miss(&p.tuple, p, now) {
                    Some((owner, cause)) => return Outcome::Handover(owner, cause),
                    None => None,
                },
            };
            if let Some((id, direction)) = hit
                && self.conntrack.conn(id).judged != self.policy_epoch
            {
                if let Some(slot) = self.waits_for(id) {
                    return Outcome::Wait(slot);
                }
                let class = self.conntrack.conn(id).class(direction);
                if let Err(reason) = self.judge_again(id, now) {
                    self.stats.classify(class, direction);
                    return reason.into();
                }
            }
            let adjusted = hit.and_then(|(id, direction)| self.as_senders_count(p, id, direction));
            match self.conntrack.track(adjusted.as_ref().unwrap_or(p), hit, &self.policy.spec().conntrack, now) {
                Tracked::Conn { id, direction, first_reply, became_assured, changed, end } => {
                    let outcome = self.known(p, id, direction, from, now);
                    if (first_reply || became_assured || changed) && p.conn.is_some() {
                        self.emit(ConnEventKind::Update, id, now);
                    }
                    if first_reply {
                        self.stats.ct_event(CtEvent::Replied);
                    }
                    if became_assured {
                        self.stats.ct_event(CtEvent::Assured);
                    }
                    if end && p.conn.is_some() {
                        self.end(id, CtEvent::Closed, now);
                    }
                    return outcome;
                }
                Tracked::New(unconfirmed) => {
                    // Used up by the first packet that it matches, whatever becomes of that.
                    let place = self.expectation_of(&p.tuple, now);
                    let expected = place.and_then(|place| self.fulfil(place));
                    let outcome = self.first(p, unconfirmed, expected, from, now);
                    if let Some(place) = place {
                        self.withdraw(place, now);
                    }
                    return outcome;
                }
                Tracked::Reopen { old } => self.end(old, CtEvent::Closed, now),
                Tracked::Invalid(reason) => return self.invalid(p, from, reason, now),
            }
        }
    }

    /// A packet of a known connection.
    fn known(&mut self, p: &mut Packet, id: ConnId, direction: Direction, from: ZoneId, now: Nanos) -> Outcome {
        p.conn = Some(id);
        p.direction = direction;
        p.state = self.conntrack.conn(id).class(direction);
        self.classify(p);
        let cached = self.conntrack.conn(id).cache[direction.index()];
        let current = cached.epoch == self.epoch && cached.is_of(p.state) && cached.in_port == p.in_port;
        let (cached, l2) = match self.l2(p.in_port, &cached).filter(|_| current) {
            Some(l2) => (cached, l2),
            None => match self.find_out(p, id, direction, from, now) {
                Ok(found) => found,
                Err(refusal) => {
                    // It is over: nothing is to be said of it any more.
                    p.conn = p.conn.filter(|_| refusal.reason != DropReason::NatAddressGone);
                    return refusal.into();
                }
            },
        };
        let hop = !p.in_port.is_twin() && !cached.egress.is_twin();
        let fragment = match self.limits(p, cached.egress, hop) {
            Ok(fragment) => fragment,
            Err(refusal) => return refusal.into(),
        };
        self.count(cached.counter(), p);
        if !cached.accepts() {
            return self.denied(self.rules.rule_of(cached.counter()), None);
        }
        let rewrite = if self.conntrack.conn(id).flags.has(Flags::TRANSLATED) {
            Rewrite::Tuple(self.conntrack.tuple(id, direction.opposite()).inverse())
        } else {
            Rewrite::None
        };
        let helped = self.conntrack.conn(id).flags.has(Flags::HELPED);
        Outcome::Forward(Plan { egress: cached.egress, l2, rewrite, hop, fragment, helped })
    }

    /// The link-layer destination of what was cached; `None` where the neighbour is not known any more.
    #[inline]
    fn l2(&self, in_port: PortIdx, cached: &Cached) -> Option<L2> {
        if cached.egress.is_twin() || in_port.is_twin() {
            return Some(L2::Keep);
        }
        self.neighbours.mac(cached.neighbour).map(L2::To)
    }

    /// Finds rule, egress and neighbour of one direction and class.
    fn find_out(
        &mut self,
        p: &Packet,
        id: ConnId,
        direction: Direction,
        from: ZoneId,
        now: Nanos,
    ) -> Result<(Cached, L2), Refusal> {
        let target = self.conntrack.tuple(id, direction.opposite()).inverse();
        let hop = self.route(p, p.in_port, p.tuple.src, target.dst)?;
        self.still_has_addresses(id, (direction == Direction::Original).then_some(hop.egress), now)?;
        self.limits(p, hop.egress, hop.next.is_some())?; // what is not forwarded meets no rule, and is not marked
        let seen = Tuple { dst: target.dst, dport: target.dport, ..p.tuple };
        let (verdict, counter) = self.judged(&self.query(p, &seen, p.state, from, Some(hop)));
        self.mark(id, verdict.mark, now);
        let (neighbour, l2) = self.resolve(hop);
        let cached = Cached::new(self.epoch, counter, p.state, verdict.accept, p.in_port);
        let cached = cached.leaving(hop.egress, neighbour);
        self.conntrack.conn_mut(id).cache[direction.index()] = cached;
        Ok((cached, l2))
    }

    /// Gives a connection the mark that rules have set. What the rules said of the other direction may depend on it.
    fn mark(&mut self, id: ConnId, mark: u32, now: Nanos) {
        let conn = self.conntrack.conn_mut(id);
        if conn.mark != mark {
            conn.mark = mark;
            conn.forget();
            self.emit(ConnEventKind::Update, id, now);
        }
    }

    /// The first packet of a connection, `expected` where another one announced it.
    fn first(
        &mut self,
        p: &mut Packet,
        mut u: Unconfirmed,
        expected: Option<Expectation>,
        from: ZoneId,
        now: Nanos,
    ) -> Outcome {
        let follows = expected.is_some_and(|e| self.follow_master(&mut u, &e));
        p.state = if u.expected { CtState::Related } else { CtState::New };
        self.stats.classify(p.state, Direction::Original);
        let query = Query { mark: u.mark, ..self.query(p, &p.tuple, p.state, from, None) };
        let destination = if follows || p.in_port.is_twin() { None } else { self.destination_rule(&query) };
        if let Some(rule) = destination
            && let Err(reason) = self.choose_destination(&mut u, rule, p.in_port)
        {
            self.translation_failed(&u, Some(rule.rule), reason, now);
            return reason.into();
        }
        let target = u.reply.inverse();
        p.dnat = target.dst != p.tuple.dst;
        let seen = Tuple { dst: target.dst, dport: target.dport, ..p.tuple };
        let zone = if u.expected { u.reply.ct_zone } else { 0 };
        let hop = match self.route_into(zone, p.group, p.in_port, p.tuple.src, target.dst) {
            Ok(hop) => hop,
            Err(refusal) => return refusal.into(),
        };
        u.reply.ct_zone = self.policy.ct_zone_of(hop.egress);
        let is_hop = hop.next.is_some();
        let fragment = match self.limits(p, hop.egress, is_hop) {
            Ok(fragment) => fragment,
            Err(refusal) => return refusal.into(),
        };
        let mut query = self.query(p, &seen, p.state, from, Some(hop));
        query.mark = u.mark;
        let (verdict, counter) = self.judged(&query);
        query.mark = verdict.mark; // POSTROUTING sees what the filter has set
        let source = match follows {
            true => NewSource::Itself,
            false => self.source_of(&query, &u.original, destination, p.in_port, hop.egress),
        };
        u.helper = self.policy.helper(&query);
        self.decided(p, &seen, verdict, counter, now);
        if !verdict.accept {
            return self.denied(verdict.rule, None);
        }
        u.mark = verdict.mark;
        if verdict.timeout_policy != 0 {
            u.timeout_policy = verdict.timeout_policy;
            u.timeout = u.l4.first_timeout(p, self.policy.spec().conntrack.timeouts_of(verdict.timeout_policy));
        }
        let local = p.in_port.is_twin() || hop.egress.is_twin();
        if let Err(reason) = self.make_room(p.tuple.src, from, local, now) {
            return reason.into();
        }
        let before = u;
        if let Err(reason) = self.choose_source(&mut u, source, follows, hop) {
            let rule = source.rule().or(destination.map(|d| d.rule));
            self.translation_failed(&u, rule, reason, now);
            return reason.into();
        }
        let id = match self.confirm(&u, Some(p.ip_len), now) {
            Ok(id) => id,
            Err(reason) => return reason.into(),
        };
        p.conn = Some(id);
        let (neighbour, l2) = self.resolve(hop);
        let conn = self.conntrack.conn_mut(id);
        let cached = Cached::new(self.epoch, counter, p.state, true, p.in_port);
        conn.cache[Direction::Original.index()] = cached.leaving(hop.egress, neighbour);
        let rewrite = if u.is_translated() { Rewrite::Tuple(u.reply.inverse()) } else { Rewrite::None };
        let plan = Plan { egress: hop.egress, l2, rewrite, hop: is_hop, fragment, helped: u.helper.is_some() };
        if conn.flags.has(Flags::PENDING) {
            let waits = self.pending_first(id, First { before, destination, source, follows, hop, plan });
            return waits.map_or(DropReason::SignpostWait.into(), Outcome::Wait);
        }
        conn.judged = self.policy_epoch;
        self.count_translation(destination, source);
        self.emit(ConnEventKind::New, id, now);
        Outcome::Forward(plan)
    }

    /// An INVALID packet: counted, reported where that is wanted, and left to the policy.
    fn invalid(&mut self, p: &mut Packet, from: ZoneId, reason: DropReason, now: Nanos) -> Outcome {
        p.state = CtState::Invalid;
        self.classify(p);
        let reported = !p.later && self.policy.spec().conntrack.log_invalid.has(p.tuple.proto);
        if reported && !self.reports.is_full() && self.invalid_limit.allow(now) {
            self.reports.push(Event::InvalidLog { reason, interface: p.in_port.interface(), tuple: p.tuple });
        }
        self.stateless(p, from, Some(reason), now)
    }

    /// A packet without a connection: INVALID (for `reason`) or UNTRACKED.
    fn stateless(&mut self, p: &mut Packet, from: ZoneId, reason: Option<DropReason>, now: Nanos) -> Outcome {
        let seen = p.tuple;
        self.uncached(p, &seen, Rewrite::None, from, reason, now)
    }

    /// Route and filter of a packet for which nothing is cached.
    fn uncached(
        &mut self,
        p: &Packet,
        seen: &Tuple,
        rewrite: Rewrite,
        from: ZoneId,
        reason: Option<DropReason>,
        now: Nanos,
    ) -> Outcome {
        let hop = match self.route(p, p.in_port, p.tuple.src, seen.dst) {
            Ok(hop) => hop,
            Err(refusal) => return refusal.into(),
        };
        let is_hop = hop.next.is_some();
        let fragment = match self.limits(p, hop.egress, is_hop) {
            Ok(fragment) => fragment,
            Err(refusal) => return refusal.into(),
        };
        let (_, l2) = self.resolve(hop);
        let plan = Plan { egress: hop.egress, l2, rewrite, hop: is_hop, fragment, helped: false };
        // Neighbour discovery on the gateway's own links is to IPv6 what ARP is to IPv4: not the policy's.
        if matches!(p.kind, L4::NeighbourDiscovery) && !is_hop {
            return Outcome::Forward(plan);
        }
        let (verdict, counter) = self.judged(&self.query(p, seen, p.state, from, Some(hop)));
        self.decided(p, seen, verdict, counter, now);
        if let Some(id) = p.conn {
            self.mark(id, verdict.mark, now);
        }
        if verdict.accept { Outcome::Forward(plan) } else { self.denied(verdict.rule, reason) }
    }

    /// Whether a packet goes no further than between wire and kernel.
    fn stays_on_link(&self, p: &Packet) -> bool {
        self.route(p, p.in_port, p.tuple.src, p.tuple.dst).is_ok_and(|hop| hop.next.is_none())
    }

    /// Counts a packet's class, once for a datagram.
    #[inline]
    fn classify(&self, p: &Packet) {
        if !p.later {
            self.stats.classify(p.state, p.direction);
        }
    }

    /// Counts a packet on a rules' counter, once for a datagram.
    #[inline]
    fn count(&self, counter: u32, p: &Packet) {
        let bytes = u64::from(p.ip_len);
        if p.later { self.rules.count_more(counter, bytes) } else { self.rules.count(counter, bytes) }
    }

    /// What the policy says, and the counter of packets of which it says so.
    fn judged(&self, query: &Query<'_>) -> (Verdict, u32) {
        let mut trail = Trail::Nothing;
        let verdict = self.policy.judge(query, |rule| trail = self.rules.passed(trail, rule));
        (verdict, self.rules.of(trail, verdict.rule))
    }

    /// Counts a rule's decision, and reports it where the rule, or one on the way to it, wants that.
    fn decided(&mut self, p: &Packet, seen: &Tuple, verdict: Verdict, counter: u32, now: Nanos) {
        self.count(counter, p);
        if p.later {
            return;
        }
        for rule in verdict.passing.into_iter().chain(verdict.log.then_some(verdict.rule)) {
            if self.reports.is_full() || !self.log_limit.allow(now) {
                return;
            }
            self.reports.push(Event::RuleLog {
                generation: self.policy.spec().generation,
                rule,
                accepted: verdict.accept,
                interface: p.in_port.interface(),
                tuple: *seen,
            });
        }
    }

    /// The drop of a packet that rule `rule` denied; an INVALID one keeps the reason why it is.
    fn denied(&self, rule: u32, invalid: Option<DropReason>) -> Outcome {
        let by_default = rule as usize >= self.policy.spec().rules.len();
        let reason = if by_default { DropReason::PolicyDefault } else { DropReason::PolicyRule };
        invalid.unwrap_or(reason).into()
    }

    /// What the rules see of a packet.
    fn query<'a>(&self, p: &Packet, tuple: &'a Tuple, state: CtState, from: ZoneId, hop: Option<Hop>) -> Query<'a> {
        let to = hop.map(|h| if h.egress.is_twin() { ZoneId::LOCAL } else { self.policy.zone_of(h.egress) });
        Query {
            tuple,
            l4_known: !matches!(p.kind, L4::Fragment | L4::Invalid(DropReason::InvalidLength)),
            tcp_flags: p.tcp_flags(),
            state,
            mark: p.conn.map_or(0, |id| self.conntrack.conn(id).mark),
            from,
            to,
            interface_in: (!p.in_port.is_twin()).then_some(p.in_port.interface()),
            interface_out: hop.filter(|h| !h.egress.is_twin()).map(|h| h.egress.interface()),
        }
    }

    /// Ends connections that have expired, at most `budget` looked at, and expectations.
    pub fn tick(&mut self, mut budget: u32, now: Nanos) {
        self.tick_expectations(now);
        while let Some(id) = self.conntrack.tick(now, &mut budget) {
            self.end(id, CtEvent::Expired, now);
        }
    }
}

/// The epoch after `epoch`; never 0, which is that of nothing.
const fn next_epoch(epoch: u32) -> u32 {
    if epoch == u32::MAX { 1 } else { epoch + 1 }
}
