//! The filter stage: judges a packet by the policy.
//!
//! [`Policy`] is the compiled, immutable snapshot of raw, NAT and filter rules; [`Query`] is what a packet shows them.
//! A `classifier` finds the few rules that may match, so that cost hardly grows with their number; connections are judged
//! once per direction and class, not per packet.
//!
//! *Threads*: read by all workers, written by none. *Limits*: rules that only marks or TCP flags tell apart are walked
//! first to last; [`MAX_RULES`] in all.

use ipnet::IpNet;

pub mod addrset;
mod classifier;
mod matcher;
mod nat;

use self::classifier::Classifier;
use self::matcher::Matcher;
pub use self::matcher::Query;
use self::nat::NatHooks;
pub use self::nat::{Destination, Sides, Source};
use crate::api::policy::{
    Action, ConntrackSpec, HelperKind, MAX_RULES, MAX_ZONES, Match, NatKind, NatRuleSpec, NetmapSide, PolicyError,
    PolicySpec, RawAction, ZoneId,
};
use crate::io::PortIdx;
use crate::nat::prefix::{End, Prefixes};

/// What the filter says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the rule that decided; the number of rules stands for the default.
    pub rule: u32,
    /// Whether it accepts.
    pub accept: bool,
    /// Whether the rule asks for a report.
    pub log: bool,
    /// The first rule on the way that said "continue" and asks for a report.
    pub passing: Option<u32>,
    /// The connection's mark after the rules.
    pub mark: u32,
    /// The timeout policy that the rule gives, from 1; 0 for none.
    pub timeout_policy: u8,
}

/// The immutable, compiled policy.
#[derive(Debug)]
pub struct Policy {
    raw: Vec<(Matcher, RawAction)>,
    raw_is_by_tuple: bool,
    raw_classifier: Classifier,
    nat: NatHooks,
    rules: Vec<Rule>,
    classifier: Classifier,
    helpers: Vec<(Matcher, HelperKind)>,
    prefixes: Prefixes,
    spec: PolicySpec,
}

/// One rule of the filter, compiled: what judging needs of it, on two cache lines.
#[derive(Debug)]
#[repr(align(64))]
struct Rule {
    matcher: Matcher,
    /// Mask and value; a mask of 0 sets nothing.
    set_mark: (u32, u32),
    action: Action,
    log: bool,
    timeout_policy: u8,
}

const _: () = assert!(size_of::<Rule>() == 128);

impl Policy {
    /// Compiles `spec`: the only way to make a policy.
    ///
    /// # Errors
    /// Where a rule names what does not exist or matches what its hook cannot know.
    pub fn compile(spec: PolicySpec) -> Result<Self, PolicyError> {
        if spec.zones.len() > MAX_ZONES {
            return Err(PolicyError::TooManyZones { count: spec.zones.len() });
        }
        let count = spec.rules.len().max(spec.nat.len()).max(spec.raw.len());
        if count > MAX_RULES {
            return Err(PolicyError::TooManyRules { count });
        }
        let compile = |name: &str, m: &Match| {
            let unknown = |what, index| PolicyError::UnknownIndex { rule: name.to_owned(), what, index };
            for z in m.from.iter().chain(&m.to) {
                if usize::from(z.0) >= spec.zones.len() {
                    return Err(unknown("zone", usize::from(z.0)));
                }
            }
            for &i in m.interface_in.iter().chain(&m.interface_out) {
                if usize::from(i) >= spec.interface_zones.len() {
                    return Err(unknown("interface", usize::from(i)));
                }
            }
            Ok(Matcher::new(m))
        };
        let early = |name: &str, m: &Match, hook| {
            let key = if !m.to.is_empty() {
                "to"
            } else if !m.interface_out.is_empty() {
                "interface_out"
            } else {
                return Ok(());
            };
            Err(PolicyError::NotInThisHook { rule: name.to_owned(), key, hook })
        };
        let mut raw = Vec::with_capacity(spec.raw.len());
        for r in &spec.raw {
            early(&r.name, &r.matches, "raw")?;
            if !r.matches.state.is_empty() {
                return Err(PolicyError::NotInThisHook { rule: r.name.clone(), key: "state", hook: "raw" });
            }
            raw.push((compile(&r.name, &r.matches)?, r.action));
        }
        let mut prefixes = Prefixes::default();
        for r in &spec.nat {
            compile(&r.name, &r.matches)?;
            let refused = |why| PolicyError::Translation { rule: r.name.clone(), why };
            if r.ports.as_ref().is_some_and(|p| p.is_empty()) {
                return Err(refused("its range of ports is empty"));
            }
            let destination = match &r.kind {
                NatKind::Nptv6 { inside, outside } => {
                    prefixes.add(*inside, *outside, &r.matches).map_err(refused)?;
                    false
                }
                NatKind::Netmap { from, to, side } => {
                    let fits = |a: &IpNet, b: &IpNet| {
                        a.addr().is_ipv4() == b.addr().is_ipv4() && a.prefix_len() == b.prefix_len()
                    };
                    if !fits(from, to) {
                        return Err(refused("its two prefixes differ in length or IP version"));
                    }
                    *side == NetmapSide::Destination
                }
                NatKind::Dnat { .. } | NatKind::Twice { .. } | NatKind::Redirect { .. } => true,
                NatKind::None | NatKind::Masquerade | NatKind::Snat { .. } => false,
            };
            if destination {
                early(&r.name, &r.matches, "prerouting")?;
            }
        }
        let nat = NatHooks::compile(&spec.nat);
        let mut rules = Vec::with_capacity(spec.rules.len());
        for r in &spec.rules {
            rules.push(Rule {
                matcher: compile(&r.name, &r.matches)?,
                action: r.action,
                log: r.log,
                set_mark: r.set_mark.unwrap_or((0, 0)),
                timeout_policy: r.timeout_policy,
            });
        }
        let mut helpers = Vec::with_capacity(spec.conntrack.helpers.len());
        for r in &spec.conntrack.helpers {
            helpers.push((compile(r.kind.name(), &r.matches)?, r.kind));
        }
        let raw_is_by_tuple = spec.raw.iter().all(|r| r.matches.tcp_flags.is_none());
        let raw_classifier = Classifier::new(raw.iter().map(|(m, _)| (m, true)));
        let classifier = Classifier::new(rules.iter().map(|r| (&r.matcher, r.action != Action::Continue)));
        Ok(Self { raw, raw_is_by_tuple, raw_classifier, nat, rules, classifier, helpers, prefixes, spec })
    }

    /// The policy before there is one: no rule, all is dropped.
    pub fn closed(interfaces: usize) -> Self {
        let spec = PolicySpec {
            generation: 0,
            zones: vec!["local".to_owned()],
            interface_zones: vec![ZoneId(u8::MAX); interfaces],
            interface_ct_zones: Vec::new(),
            interface_mss: Vec::new(),
            raw: Vec::new(),
            nat: Vec::new(),
            rules: Vec::new(),
            default: Action::Drop,
            conntrack: ConntrackSpec::default(),
        };
        Self {
            raw: Vec::new(),
            raw_is_by_tuple: true,
            raw_classifier: Classifier::default(),
            nat: NatHooks::default(),
            rules: Vec::new(),
            classifier: Classifier::default(),
            helpers: Vec::new(),
            prefixes: Prefixes::default(),
            spec,
        }
    }

    /// What it was compiled from.
    pub fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    /// The zone that packets from `port` come from: `local` for a TAP twin.
    #[inline]
    pub fn zone_of(&self, port: PortIdx) -> ZoneId {
        if port.is_twin() {
            return ZoneId::LOCAL;
        }
        // An interface without a zone is in none that a rule can name.
        self.spec.interface_zones.get(usize::from(port.interface())).copied().unwrap_or(ZoneId(u8::MAX))
    }

    /// A port with its zone.
    #[inline]
    pub fn end(&self, port: PortIdx) -> End {
        End { zone: self.zone_of(port), port }
    }

    /// The rules that translate prefixes.
    #[inline]
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// Whether there is any raw rule.
    #[inline]
    pub fn has_raw(&self) -> bool {
        !self.raw.is_empty()
    }

    /// What the raw hook says; no rule means track.
    pub fn raw(&self, q: &Query<'_>) -> RawAction {
        let matches = |i: usize| self.raw.get(i).is_some_and(|(m, _)| m.matches(q));
        self.raw_classifier.find(q, matches).and_then(|i| self.raw.get(i)).map_or(RawAction::Accept, |&(_, a)| a)
    }

    /// Whether all that the raw hook looks at is a packet's tuple and the port that it came in by, so that what it said of
    /// one packet of a connection's direction holds for all.
    #[inline]
    pub fn raw_is_by_tuple(&self) -> bool {
        self.raw_is_by_tuple
    }

    /// Whether there is any translation rule.
    #[inline]
    pub fn translates(&self) -> bool {
        !self.nat.is_empty()
    }

    /// The rule that translates the destination of a new connection.
    pub fn destination(&self, q: &Query<'_>, sides: &impl Sides) -> Option<Destination> {
        self.nat.destination(&self.spec.nat, q, sides)
    }

    /// What becomes of the source of a new connection.
    pub fn source(&self, q: &Query<'_>) -> Source {
        self.nat.source(&self.spec.nat, q)
    }

    /// The translation rule of this index.
    pub fn nat_rule(&self, index: usize) -> Option<&NatRuleSpec> {
        self.spec.nat.get(index)
    }

    /// The helper of a new connection: that of the first rule that matches and is for its protocol.
    pub fn helper(&self, q: &Query<'_>) -> Option<HelperKind> {
        let first = self.helpers.iter().find(|(m, h)| h.watches(q.tuple) && m.matches(q));
        first.map(|&(_, h)| h)
    }

    /// The conntrack zone of packets that come in by `port`, or leave by it.
    #[inline]
    pub fn ct_zone_of(&self, port: PortIdx) -> u16 {
        self.spec.interface_ct_zones.get(usize::from(port.interface())).copied().unwrap_or(0)
    }

    /// The first rule that matches and does not say "continue" decides, else the default. Marks are set on the way, and
    /// later rules see them. `passed` gets the rules that say "continue", in order.
    #[inline]
    pub fn judge(&self, q: &Query<'_>, passed: impl FnMut(u32)) -> Verdict {
        let mut judgement = Judgement::new(q, passed);
        let decides = self.classifier.find(q, |i| self.rules.get(i).is_some_and(|r| judgement.meets(i, r)));
        judgement.verdict(self, decides)
    }

    /// The same by asking every rule in turn: what [`Policy::judge`] must say, for tests and measurements.
    pub fn judge_linear(&self, q: &Query<'_>, passed: impl FnMut(u32)) -> Verdict {
        let mut judgement = Judgement::new(q, passed);
        let decides = self.rules.iter().enumerate().find(|&(i, r)| judgement.meets(i, r));
        judgement.verdict(self, decides.map(|(i, _)| i))
    }

    /// What the rules' classifiers take, bytes.
    pub fn classifier_memory(&self) -> usize {
        self.raw_classifier.memory() + self.nat.classifier_memory() + self.classifier.memory()
    }
}

/// A packet on its way through the rules.
struct Judgement<'a, F> {
    q: Query<'a>,
    passed: F,
    passing: Option<u32>,
}

impl<'a, F: FnMut(u32)> Judgement<'a, F> {
    #[inline]
    fn new(q: &Query<'a>, passed: F) -> Self {
        Self { q: *q, passed, passing: None }
    }

    /// Whether rule `i` decides. What it does on the way is done.
    #[inline]
    fn meets(&mut self, i: usize, rule: &Rule) -> bool {
        if !rule.matcher.matches(&self.q) {
            return false;
        }
        let (mask, value) = rule.set_mark;
        self.q.mark = self.q.mark & !mask | value & mask;
        if rule.action != Action::Continue {
            return true;
        }
        (self.passed)(number(i));
        if rule.log && self.passing.is_none() {
            self.passing = Some(number(i));
        }
        false
    }

    #[inline]
    fn verdict(&self, policy: &Policy, decides: Option<usize>) -> Verdict {
        let (passing, mark) = (self.passing, self.q.mark);
        match decides.and_then(|i| Some((i, policy.rules.get(i)?))) {
            Some((i, r)) => {
                let (accept, timeout_policy) = (r.action == Action::Accept, r.timeout_policy);
                Verdict { rule: number(i), accept, log: r.log, passing, mark, timeout_policy }
            }
            None => {
                let accept = policy.spec.default == Action::Accept;
                Verdict { rule: number(policy.rules.len()), accept, log: false, passing, mark, timeout_policy: 0 }
            }
        }
    }
}

/// A rule's index. Invariant: `compile` bounds how many there are.
fn number(i: usize) -> u32 {
    u32::try_from(i).unwrap_or(u32::MAX)
}
