//! `raw`, `policy`, and what rules of all hooks have: rules in the order in which they are asked.

use std::collections::HashMap;

use dataplane::api::policy::{Action, MAX_RULES, RawAction, RawRuleSpec, RuleSpec};

use super::super::node::Node;
use super::super::reader::{Reader, words};
use super::super::schema::{Policy, RawRule, Rule};
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
pub(super) type Seen<'y> = HashMap<&'y str, u64>;

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

    /// The rules of a section.
    pub(super) fn items(&self, node: &'y Node) -> &'y [Node] {
        let items = self.reader.items(node, "a list of rules");
        if items.len() > MAX_RULES {
            self.reader.refuse(node, format_args!("has {} rules; accepted: at most {MAX_RULES}", items.len()));
            return &[];
        }
        items
    }

    /// A rule's name, which no other of the section has.
    pub(super) fn name(&self, rule: &'y Node, name: Option<&'y Node>, seen: &mut Seen<'y>) -> Option<&'y str> {
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

    /// Reads what rules match.
    pub(super) fn match_reader(&self) -> MatchReader<'_, 'y> {
        MatchReader { reader: self.reader, names: self.names }
    }
}
