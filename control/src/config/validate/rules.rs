//! `raw`, `nat`, `policy`: rules in the order in which they are asked.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::api::policy::{
    Action, MAX_RULES, NatKind, NatRuleSpec, PreservePort, RawAction, RawRuleSpec, RuleSpec, ToPort,
};

use super::super::address::{Element, is_unicast};
use super::super::names::{TCP, UDP};
use super::super::node::{Node, Value};
use super::super::reader::{Reader, words};
use super::super::schema::{NatRule, Policy, RawRule, Rule};
use super::matches::{Hook, MatchReader};
use super::{NAME, Names, is_name};

/// What a policy without rules does.
pub const NOTHING: (Action, Vec<RuleSpec>) = (Action::Drop, Vec::new());

/// The name under which the default action is counted.
const DEFAULT_RULE: &str = "default";

/// Actions that decide.
const DECISIONS: [(&str, Action); 2] = [("accept", Action::Accept), ("drop", Action::Drop)];

/// Reads rules with the names that they may use.
pub struct Rules<'a, 'y> {
    /// Takes what is wrong.
    pub reader: &'a Reader<'y>,
    /// Zones, interfaces and sets.
    pub names: &'a Names,
}

/// Rule names of a section, with the line of each.
type Seen<'y> = HashMap<&'y str, u64>;

impl<'y> Rules<'_, 'y> {
    /// Reads `raw`.
    pub fn raw(&self, node: &'y Node) -> Vec<RawRuleSpec> {
        let mut seen = Seen::new();
        let mut rules = Vec::new();
        for item in self.items(node) {
            let rule = RawRule::read(item, self.reader);
            let name = self.name(item, rule.name, &mut seen);
            let matches = self.match_reader().matches(&rule.matches(), Hook::Raw);
            let known = [("notrack", RawAction::Notrack), ("accept", RawAction::Accept), ("drop", RawAction::Drop)];
            let action = self
                .reader
                .required(item, "action", rule.action)
                .and_then(|node| self.reader.choice(node, &known, &["mark", "helper", "zone"]));
            if let (Some(name), Some(action)) = (name, action) {
                rules.push(RawRuleSpec { name: name.to_owned(), matches, action });
            }
        }
        rules
    }

    /// Reads `nat`.
    pub fn nat(&self, node: &'y Node) -> Vec<NatRuleSpec> {
        let mut seen = Seen::new();
        self.items(node).iter().filter_map(|item| self.nat_rule(item, &mut seen)).collect()
    }

    fn nat_rule(&self, item: &'y Node, seen: &mut Seen<'y>) -> Option<NatRuleSpec> {
        let rule = NatRule::read(item, self.reader);
        let name = self.name(item, rule.name, seen);
        let known = [("masquerade", Kind::Masquerade), ("snat", Kind::Snat), ("dnat", Kind::Dnat)];
        let kind = self
            .reader
            .required(item, "type", rule.kind)
            .and_then(|node| self.reader.choice(node, &known, &["redirect", "netmap", "none", "nat64"]))?;
        let keys = rule.matches();
        let hook = if kind == Kind::Dnat { Hook::Dnat } else { Hook::Snat };
        let mut matches = self.match_reader().matches(&keys, hook);
        let no_place = |node: Option<&'y Node>, with: &str| {
            if let Some(node) = node {
                self.reader.refuse(node, format_args!("has no place here; accepted: with type {with}"));
            }
        };
        let to_address = if kind == Kind::Masquerade {
            no_place(rule.to_address, "snat or dnat");
            None
        } else {
            let node = self.reader.required(item, "to_address", rule.to_address);
            node.and_then(|node| self.to_address(node))
        };
        if let Some(to_address) = to_address {
            self.match_reader().narrow(&keys, &mut matches, to_address);
        }
        let to_port = match (kind, rule.to_port) {
            (_, None) => None,
            (Kind::Snat, Some(node)) => {
                self.reader.refuse(node, "is not supported yet for snat; accepted: with type dnat");
                None
            }
            (Kind::Masquerade, node) => {
                no_place(node, "dnat");
                None
            }
            (Kind::Dnat, Some(node)) => {
                let proto = &matches.proto;
                if proto.is_empty() && keys.proto.is_none() || !proto.iter().all(|p| [TCP, UDP].contains(p)) {
                    let accepted = "in rules whose proto is tcp, udp or both";
                    self.reader.refuse(node, format_args!("needs a protocol with ports; accepted: {accepted}"));
                }
                self.reader.number(node, 1..=u16::MAX)
            }
        };
        let mut preserve_port = PreservePort::Auto;
        if kind == Kind::Dnat {
            no_place(rule.preserve_port, "masquerade or snat");
        } else if let Some(node) = rule.preserve_port {
            let known = [("auto", PreservePort::Auto), ("strict", PreservePort::Strict)];
            preserve_port = self.reader.choice(node, &known, &[]).unwrap_or_default();
        }
        let kind = match (kind, to_address) {
            (Kind::Masquerade, _) => NatKind::Masquerade,
            (Kind::Snat, Some((_, to_address))) => NatKind::Snat { to: to_address.into() },
            (Kind::Dnat, Some((_, to_address))) => {
                NatKind::Dnat { to: to_address.into(), port: to_port.map(ToPort::One) }
            }
            (Kind::Snat | Kind::Dnat, None) => return None,
        };
        Some(NatRuleSpec { preserve_port, ..NatRuleSpec::new(name?, matches, kind) })
    }

    fn to_address(&self, node: &'y Node) -> Option<(&'y Node, IpAddr)> {
        let accepted = "one unicast address";
        if let Value::Seq(_) = &node.value {
            self.reader.refuse(node, format_args!("is a pool, which is not supported yet; accepted: {accepted}"));
            return None;
        }
        let text = self.reader.text(node, accepted)?;
        match text.parse::<IpAddr>() {
            Ok(address) if is_unicast(address) => return Some((node, address)),
            Ok(_) => self.reader.refuse_value(node, text, "is not a unicast address", accepted),
            Err(_) if Element::parse(text).is_ok() => {
                self.reader.refuse_value(node, text, "is a pool, which is not supported yet", accepted);
            }
            Err(_) => self.reader.refuse_value(node, text, "is not an address", accepted),
        }
        None
    }

    /// Reads `policy`: the default and the rules.
    pub fn policy(&self, node: &'y Node) -> (Action, Vec<RuleSpec>) {
        let section = Policy::read(node, self.reader);
        let default = section.default.and_then(|node| self.reader.choice(node, &DECISIONS, &["reject"]));
        let default = default.unwrap_or(Action::Drop);
        let mut seen = Seen::new();
        let mut rules = Vec::new();
        for item in section.rules.map(|node| self.items(node)).unwrap_or_default() {
            let rule = Rule::read(item, self.reader);
            let name = self.name(item, rule.name, &mut seen);
            if let (Some(DEFAULT_RULE), Some(node)) = (name, rule.name) {
                let accepted = "another name";
                self.reader.refuse_value(node, DEFAULT_RULE, "counts the default action", accepted);
            }
            let matches = self.match_reader().matches(&rule.matches(), Hook::Filter);
            let action = self.reader.required(item, "action", rule.action).and_then(|node| self.action(node));
            let log = rule.log.and_then(|node| self.reader.flag(node)).unwrap_or(false);
            let set_mark = rule.set_mark.and_then(|node| self.match_reader().mark(node));
            if let (Some(Action::Continue), Some(node)) = (action, rule.action)
                && rule.set_mark.is_none()
                && !log
            {
                self.reader.refuse(node, "would do nothing; accepted: with \"set_mark\" or \"log: true\"");
            }
            let timeout_policy = rule.timeout.and_then(|node| {
                if action.is_some_and(|a| a != Action::Accept) {
                    self.reader.refuse(node, "gives timeouts to what is not accepted; accepted: with action accept");
                }
                self.timeout_policy(node)
            });
            if let (Some(name), Some(action)) = (name, action) {
                let (name, timeout_policy) = (name.to_owned(), timeout_policy.unwrap_or(0));
                rules.push(RuleSpec { name, matches, action, log, set_mark, timeout_policy });
            }
        }
        (default, rules)
    }

    fn action(&self, node: &'y Node) -> Option<Action> {
        let [accept, drop] = DECISIONS;
        self.reader.choice(node, &[accept, drop, ("continue", Action::Continue)], &["reject"])
    }

    /// The number, from 1, of the timeout policy that `node` names.
    fn timeout_policy(&self, node: &'y Node) -> Option<u8> {
        let known = || match self.names.timeout_policies.as_slice() {
            [] => "a name of conntrack.timeout_policies, which has none".to_owned(),
            names => words(names.iter().map(String::as_str)),
        };
        let text = self.reader.text(node, known())?;
        let index = self.names.timeout_policies.iter().position(|name| name == text);
        if index.is_none() {
            self.reader.refuse_value(node, text, "is not a timeout policy", known());
        }
        u8::try_from(index? + 1).ok()
    }

    fn items(&self, node: &'y Node) -> &'y [Node] {
        let items = self.reader.items(node, "a list of rules");
        if items.len() > MAX_RULES {
            self.reader.refuse(node, format_args!("has {} rules; accepted: at most {MAX_RULES}", items.len()));
            return &[];
        }
        items
    }

    fn name(&self, rule: &'y Node, name: Option<&'y Node>, seen: &mut Seen<'y>) -> Option<&'y str> {
        let node = self.reader.required(rule, "name", name)?;
        let text = self.reader.text(node, NAME)?;
        if !is_name(text) {
            self.reader.refuse_value(node, text, "cannot name a rule", NAME);
        } else if let Some(line) = seen.insert(text, node.position.0) {
            let why = format!("names the rule in line {line} already");
            self.reader.refuse_value(node, text, &why, "a name for each rule");
        }
        Some(text)
    }

    fn match_reader(&self) -> MatchReader<'_, 'y> {
        MatchReader { reader: self.reader, names: self.names }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Masquerade,
    Snat,
    Dnat,
}
