//! YAML text as a tree in which every value knows where it stands.
//!
//! serde's derive would stop at the first error, word it its own way and lose the path inside "one value or a list";
//! the tree lets the schema report all of them, each with its line. Scalars stay the text that was typed: `on` is not
//! a boolean, `010` not eight, and what a value means is decided by the key that it belongs to.
//!
//! *Limits*: [`MAX_BYTES`], [`MAX_DEPTH`], [`MAX_NODES`] and those on aliases; going beyond is an error at the place
//! where it happens, before memory is spent. Merge keys (`<<`), foreign tags and second documents are refused.

use std::cell::RefCell;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::budget::BudgetBreach;
use serde_yaml::{Error, Location, MergeKeyPolicy, MessageFormatter, Spanned, UserMessageFormatter};

use super::error::{ConfigError, Problem, quoted, shortened, visible};

/// Most bytes of a configuration file: room for more than 200,000 rules.
pub const MAX_BYTES: usize = 32 << 20;

/// Deepest nesting; the schema needs seven levels.
pub const MAX_DEPTH: usize = 16;

/// Most values, aliases expanded.
pub const MAX_NODES: usize = 4_000_000;

/// Most uses of anchors.
const MAX_ALIASES: usize = 10_000;

/// Most values that anchors keep for their aliases.
const MAX_ANCHORED: usize = 100_000;

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Line and column, from 1; where the value came through an alias, that of the alias.
    pub position: (u64, u64),
}

/// What a node holds.
#[derive(Debug)]
pub enum Value {
    /// Nothing was written, or `null` or `~`.
    Null,
    /// A scalar as it was typed, quotes and escapes resolved.
    Scalar(String),
    /// A list.
    Seq(Vec<Node>),
    /// A mapping in the file's order; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Line and column, from 1.
    pub position: (u64, u64),
}

impl Node {
    /// Reads `text`, which came from `file`.
    ///
    /// # Errors
    /// Where it is not YAML, repeats a key, or is beyond the limits.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        if text.len() > MAX_BYTES {
            let message = format!("{} bytes; accepted: at most {MAX_BYTES}", text.len());
            return Err(Problem::of_file(file, message).into());
        }
        let options = serde_yaml::options! {
            budget: serde_yaml::budget! {
                max_depth: MAX_DEPTH,
                flow_nesting_limit: MAX_DEPTH,
                max_nodes: MAX_NODES,
                max_events: MAX_NODES * 2,
                max_aliases: MAX_ALIASES,
                max_recorded_anchor_events: MAX_ANCHORED,
                max_documents: 1,
            },
            alias_limits: serde_yaml::alias_limits! {
                max_total_replayed_events: MAX_NODES,
                max_replay_stack_depth: MAX_DEPTH,
                max_alias_expansions_per_anchor: MAX_ALIASES,
            },
            merge_keys: MergeKeyPolicy::Error,
            reject_unsupported_tags: true,
            non_finite_float_policy: serde_yaml::NonFiniteFloatPolicy::AsString,
            with_snippet: false,
        };
        TRAIL.take();
        let typed: Spanned<Typed> =
            serde_yaml::from_str_with_options(text, options).map_err(|e| syntax_error(&e, &TRAIL.take(), file))?;
        Ok(resolve(typed, text))
    }

    /// The value as an error shows it: a scalar in quotes, a list or a mapping as it would stand in one line.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::Scalar(text) => quoted(text),
            Value::Null | Value::Seq(_) | Value::Map(_) => {
                let mut text = String::new();
                self.flow(&mut text);
                shortened(&text)
            }
        }
    }

    fn flow(&self, text: &mut String) {
        // Beyond this it is cut off in any case.
        if text.len() > 1000 {
            return;
        }
        match &self.value {
            Value::Null => text.push_str("null"),
            Value::Scalar(scalar) => text.push_str(scalar),
            Value::Seq(items) => {
                text.push('[');
                for (i, item) in items.iter().enumerate() {
                    text.push_str(if i == 0 { "" } else { ", " });
                    item.flow(text);
                }
                text.push(']');
            }
            Value::Map(entries) => {
                text.push('{');
                for (i, (key, item)) in entries.iter().enumerate() {
                    text.push_str(if i == 0 { "" } else { ", " });
                    text.push_str(&key.text);
                    text.push_str(": ");
                    item.flow(text);
                }
                text.push('}');
            }
        }
    }

    /// The path of `wanted` below `self`, which is the root; empty for the root itself.
    pub fn path_of(&self, wanted: &Self) -> Option<String> {
        if std::ptr::eq(self, wanted) {
            return Some(String::new());
        }
        let (step, rest) = match &self.value {
            Value::Null | Value::Scalar(_) => return None,
            Value::Seq(items) => {
                items.iter().enumerate().find_map(|(i, n)| n.path_of(wanted).map(|rest| (format!("[{i}]"), rest)))?
            }
            Value::Map(entries) => {
                entries.iter().find_map(|(key, n)| n.path_of(wanted).map(|rest| (key.text.clone(), rest)))?
            }
        };
        let dot = if rest.is_empty() || rest.starts_with('[') { "" } else { "." };
        Some(format!("{step}{dot}{rest}"))
    }
}

/// A node as the deserializer gives it: the text of what it took for a number or a boolean is still in the source.
enum Typed {
    Null,
    Text(String),
    InSource,
    Seq(Vec<Spanned<Typed>>),
    Map(Vec<(Spanned<String>, Spanned<Typed>)>),
}

thread_local! {
    /// Keys and indices that lead to where the deserializer is. An error leaves them standing: that is its path, which
    /// serde has no other way to carry out of a `Deserialize`.
    static TRAIL: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl<'de> Deserialize<'de> for Typed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TypedVisitor)
    }
}

struct TypedVisitor;

impl<'de> Visitor<'de> for TypedVisitor {
    type Value = Typed;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Typed, E> {
        Ok(Typed::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Typed, E> {
        Ok(Typed::InSource)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Typed, E> {
        Ok(Typed::InSource)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Typed, E> {
        Ok(Typed::InSource)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Typed, E> {
        Ok(Typed::InSource)
    }

    fn visit_str<E>(self, text: &str) -> Result<Typed, E> {
        Ok(Typed::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Typed, A::Error> {
        let mut items = Vec::new();
        loop {
            enter(format!("[{}]", items.len()));
            let Some(item) = access.next_element()? else { break };
            leave();
            items.push(item);
        }
        leave();
        Ok(Typed::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Typed, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            enter(key.value.clone());
            let value = access.next_value()?;
            leave();
            entries.push((key, value));
        }
        Ok(Typed::Map(entries))
    }
}

fn enter(step: String) {
    TRAIL.with_borrow_mut(|trail| trail.push(step));
}

fn leave() {
    TRAIL.with_borrow_mut(|trail| drop(trail.pop()));
}

fn resolve(typed: Spanned<Typed>, source: &str) -> Node {
    let position = (typed.referenced.line(), typed.referenced.column());
    let value = match typed.value {
        Typed::Null => Value::Null,
        Typed::Text(text) => Value::Scalar(text),
        Typed::InSource => Value::Scalar(slice(source, typed.defined).trim().to_owned()),
        Typed::Seq(items) => Value::Seq(items.into_iter().map(|n| resolve(n, source)).collect()),
        Typed::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, n)| {
                    let position = (key.referenced.line(), key.referenced.column());
                    (Key { text: key.value, position }, resolve(n, source))
                })
                .collect(),
        ),
    };
    Node { value, position }
}

fn slice(source: &str, at: Location) -> &str {
    let bounds = at.span().byte_offset().zip(at.span().byte_len());
    let range = bounds.and_then(|(start, len)| {
        let start = usize::try_from(start).ok()?;
        Some(start..start.checked_add(usize::try_from(len).ok()?)?)
    });
    range.and_then(|r| source.get(r)).unwrap_or_default()
}

fn syntax_error(e: &Error, trail: &[String], file: &Path) -> ConfigError {
    let e = match e.without_snippet() {
        Error::AliasError { error, .. } => error,
        e => e,
    };
    let too_deep = || format!("nested too deep; accepted: {MAX_DEPTH} levels");
    let message = match e {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key {} is given twice; accepted: each key once", quoted(key))
        }
        Error::MergeKeyNotAllowed { .. } => r#"merge key "<<" is not supported"#.to_owned(),
        Error::MultipleDocuments { .. } => "a second YAML document; accepted: one".to_owned(),
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => too_deep(),
            BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
                format!("too many values; accepted: {MAX_NODES}")
            }
            BudgetBreach::Documents { .. } => "a second YAML document; accepted: one".to_owned(),
            BudgetBreach::RecordedAnchorEvents { .. } | BudgetBreach::RecordedAnchorBytes { .. } => {
                format!("anchors hold too many values; accepted: {MAX_ANCHORED}")
            }
            BudgetBreach::Aliases { .. } | BudgetBreach::AliasAnchorRatio { .. } => {
                format!("too many aliases; accepted: {MAX_ALIASES}, on average 10 of each anchor")
            }
            other => format!("beyond a limit on hostile input: {other:?}"),
        },
        Error::AliasReplayLimitExceeded { .. } | Error::AliasExpansionLimitExceeded { .. } => {
            format!("aliases expand to too many values; accepted: {MAX_NODES}")
        }
        other => {
            let text = UserMessageFormatter.format_message(other);
            // The scanner looks ahead of the budget and has this name for flow collections.
            if text.contains("recursion limit") { too_deep() } else { format!("not YAML: {}", visible(text.chars())) }
        }
    };
    let mut path = String::new();
    for step in trail {
        if !path.is_empty() && !step.starts_with('[') {
            path.push('.');
        }
        path.push_str(step);
    }
    let position = e.location().map(|l| (l.line(), Some(l.column())));
    Problem { file: file.to_owned(), position, path: visible(path.chars()), message }.into()
}

#[cfg(test)]
mod tests;
