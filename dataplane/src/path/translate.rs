//! How a new connection is translated: destination first, source once the policy has accepted it.
//!
//! *Threads*: the worker's. *Limits*: [`nat::ADDRESSES`] addresses of a pool are tried, of each so many ports as
//! [`nat::ports`] says. *Sources*: `linux/net/netfilter/nf_nat_core.c` (`get_unique_tuple`), `nf_nat_masquerade.c`.

use std::net::IpAddr;

use super::Path;
use super::hop::Hop;
use crate::api::command::Event;
use crate::api::policy::{Hairpin, NatKind, NatRuleSpec, OnReload, PreservePort, ZoneId};
use crate::conntrack::Conntrack;
use crate::conntrack::conn::{Flags, Unconfirmed};
use crate::conntrack::signpost::Signposts;
use crate::conntrack::tuple::Tuple;
use crate::drop::DropReason;
use crate::filter::{Destination, Query, Sides, Source};
use crate::io::PortIdx;
use crate::nat::ports::Wish;
use crate::nat::{self, Sources};
use crate::time::Nanos;

/// What a connection's source becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewSource {
    /// Itself.
    Itself,
    /// What the rule of this index says.
    Rule(usize),
    /// This address: it uses a public address of a server on its own side.
    Hairpin(IpAddr),
}

impl NewSource {
    /// The rule that says it.
    pub(super) const fn rule(self) -> Option<usize> {
        if let Self::Rule(n) = self { Some(n) } else { None }
    }
}

impl Path {
    /// The rule that translates the destination of a new connection.
    pub(super) fn destination_rule(&self, q: &Query<'_>) -> Option<Destination> {
        if !self.policy.translates() {
            return None;
        }
        self.policy.destination(q, self)
    }

    /// Translates the destination of a connection that came in by `in_port`.
    pub(super) fn choose_destination(
        &self,
        u: &mut Unconfirmed,
        rule: Destination,
        in_port: PortIdx,
    ) -> Result<(), DropReason> {
        let Some(spec) = self.policy.nat_rule(rule.rule) else { return Ok(()) };
        let own = self.fib.primary(in_port.interface(), u.original.dst);
        let to = nat::destination(spec, rule.back, &u.original, own).ok_or(DropReason::NatNoAddress)?;
        (u.reply.src, u.reply.sport) = to;
        u.bound.set(bound_by(spec));
        u.bound.set(self.bound_to(&u.original, &u.reply));
        Ok(())
    }

    /// What becomes of the source of a connection that `q` shows as POSTROUTING sees it, and whose destination rule
    /// `destination` has translated; `original` is as its first packet came.
    pub(super) fn source_of(
        &self,
        q: &Query<'_>,
        original: &Tuple,
        destination: Option<Destination>,
        in_port: PortIdx,
        egress: PortIdx,
    ) -> NewSource {
        if egress.is_twin() || !self.policy.translates() {
            return NewSource::Itself;
        }
        let rule = destination.and_then(|d| Some((d.rule, self.policy.nat_rule(d.rule)?)));
        if let Some((n, NatRuleSpec { kind: NatKind::Twice { .. }, .. })) = rule {
            return NewSource::Rule(n);
        }
        match (self.policy.source(q), rule) {
            (Source::Rule(n), _) => NewSource::Rule(n),
            // An exemption of what stays inside is not meant for what has come by a public address.
            (_, Some((_, spec))) if egress == in_port => match spec.kind {
                NatKind::Dnat { .. } if spec.hairpin == Hairpin::Auto => NewSource::Hairpin(original.dst),
                NatKind::Netmap { from, to, .. } => {
                    NewSource::Hairpin(nat::mapped(original.src, from, to).unwrap_or(original.dst))
                }
                _ => NewSource::Itself,
            },
            (Source::Nothing | Source::Exempt, _) => NewSource::Itself,
        }
    }

    /// Translates a connection's source: by rule, because it follows its master's (`follows`: the reply tuple says so already),
    /// or because the reply tuple is taken (as Linux' null binding does).
    pub(super) fn choose_source(
        &mut self,
        u: &mut Unconfirmed,
        source: NewSource,
        follows: bool,
        hop: Hop,
    ) -> Result<(), DropReason> {
        let Self { policy, conntrack, signposts, denied, steer, ports, fib, .. } = self;
        // The worker where it is at home may just have said so.
        let taken = |t: &Tuple| is_taken(conntrack, signposts, t) || denied.contains(t);
        if follows && !taken(&u.reply) {
            // Its port is kept wherever that leads: a signpost will be there.
            u.leased = u.reply.dst != u.original.src;
            return Ok(());
        }
        let is_v4 = u.reply.is_ipv4();
        let rule = match source {
            NewSource::Rule(n) if !follows => policy.nat_rule(n),
            _ => None,
        };
        let sources = match (rule, source) {
            (Some(rule), _) => {
                let own = fib.masquerade(hop.egress.interface(), hop.next, u.reply.src);
                Sources::of(rule, &u.original, own).ok_or(DropReason::NatNoAddress)?
            }
            (None, NewSource::Hairpin(address)) => Sources::One(address),
            (None, _) => {
                let hash = conntrack.hash(&u.reply);
                let free = conntrack.find(&u.reply, hash).is_none();
                if free && signposts.owner(&u.reply).is_none() && !denied.contains(&u.reply) {
                    u.free[1] = Some(hash);
                    return Ok(());
                }
                Sources::One(u.reply.dst)
            }
        };
        let netmap = matches!(rule, Some(NatRuleSpec { kind: NatKind::Netmap { .. }, .. }));
        let range = rule.and_then(|r| r.ports.as_ref()).map(|r| (*r.start(), *r.end()));
        let preserve = rule.map_or(PreservePort::Auto, |r| r.preserve_port);
        let keep = preserve != PreservePort::Never;
        let wish = |reply| Wish { reply, range, keep, anyones: false };
        let mut found = None;
        let mut n = 0;
        while let (None, Some(address)) = (found, sources.nth(is_v4, n)) {
            let reply = Tuple { dst: address, ..u.reply };
            let kept = || (!taken(&reply)).then_some(reply);
            found = match preserve {
                PreservePort::Strict => {
                    let has_id = u.reply.has_ports() || u.reply.is_icmp();
                    let range = range.filter(|_| has_id);
                    kept().filter(|t| range.is_none_or(|(low, high)| (low..=high).contains(&t.id())))
                }
                // Ports are mapped one to one as well, wherever replies then arrive.
                _ if netmap => kept().or_else(|| ports.choose(&wish(reply), steer, taken)),
                _ => ports.choose(&wish(reply), steer, taken),
            };
            n += 1;
        }
        // This worker's share is used up: one of another's, who has not been asked in vain.
        u.borrows = None;
        n = 0;
        while let (None, Some(address)) = (found, sources.nth(is_v4, n).filter(|_| preserve != PreservePort::Strict)) {
            let wish = wish(Tuple { dst: address, ..u.reply });
            found = ports.borrow(&wish, steer, |t| {
                let home = steer.home(t);
                !taken(t) && denied.iter().all(|d| d.dst != t.dst || steer.home(d) != home)
            });
            u.borrows = found.filter(|t| !steer.is_home(t)).map(|_| wish.range());
            n += 1;
        }
        let Some(reply) = found else {
            let choice = u.reply.has_ports() || u.reply.is_icmp();
            return Err(if choice { DropReason::NatNoPort } else { DropReason::NatClash });
        };
        // What no rule translates has no address whose ports could run out; nor has netmap.
        u.leased = rule.is_some() && !netmap;
        u.reply = reply;
        if let Some(rule) = rule {
            u.bound.set(bound_by(rule));
            if rule.masquerades() {
                u.bound.set(Flags::MASQUERADED);
            }
        }
        u.bound.set(self.bound_to(&u.original, &u.reply));
        Ok(())
    }

    /// Which addresses of the gateway a translation is bound to.
    pub(super) fn bound_to(&self, original: &Tuple, reply: &Tuple) -> Flags {
        let mut flags = Flags::default();
        let bound = [
            (reply.dst != original.src, reply.dst, Flags::OWN_SOURCE),
            (reply.src != original.dst, reply.src, Flags::OWN_DESTINATION),
            (reply.src != original.dst, original.dst, Flags::OWN_DESTINATION),
        ];
        for (translated, address, flag) in bound {
            if translated && self.fib.is_local(address) {
                flags.set(flag);
            }
        }
        flags
    }

    /// Counts and reports that a new connection found no translation.
    pub(super) fn translation_failed(&mut self, u: &Unconfirmed, rule: Option<usize>, reason: DropReason, now: Nanos) {
        self.stats.nat_failures.add(1);
        let Some(rule) = rule else { return };
        if let Some(counters) = self.rules.nat(rule) {
            counters.failures.add(1);
        }
        if !self.reports.is_full() && self.nat_limit.allow(now) {
            self.reports.push(Event::NatFailed {
                generation: self.policy.spec().generation,
                rule: u32::try_from(rule).unwrap_or(u32::MAX),
                reason,
                interface: u.in_port.interface(),
                tuple: u.original,
            });
        }
    }

    /// Counts a connection for the rules that translate it.
    pub(super) fn count_translation(&self, destination: Option<Destination>, source: NewSource) {
        let destination = destination.map(|d| d.rule);
        let source = source.rule();
        for rule in destination.into_iter().chain(source.filter(|_| source != destination)) {
            if let Some(counters) = self.rules.nat(rule) {
                counters.connections.add(1);
            }
        }
    }
}

impl Sides for Path {
    fn is_local(&self, a: IpAddr) -> bool {
        self.fib.is_local(a)
    }

    fn side_of(&self, a: IpAddr) -> Option<u16> {
        // Those of one link are on many.
        if matches!(a, IpAddr::V6(a) if a.is_unicast_link_local()) { None } else { self.fib.side_of(a) }
    }

    fn zone_of(&self, interface: u16) -> Option<ZoneId> {
        Some(self.policy.zone_of(PortIdx::wire(interface))).filter(|z| *z != ZoneId(u8::MAX))
    }
}

pub(super) fn bound_by(rule: &NatRuleSpec) -> Flags {
    if rule.on_reload == OnReload::End { Flags::ENDS_ON_RELOAD } else { Flags::default() }
}

/// Whether a connection or a signpost has `t`, expired ones too: they still stand in the index.
pub(super) fn is_taken(conntrack: &Conntrack, signposts: &Signposts, t: &Tuple) -> bool {
    conntrack.find(t, conntrack.hash(t)).is_some() || signposts.owner(t).is_some()
}
