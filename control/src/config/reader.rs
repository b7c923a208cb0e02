//! Reading single values: each function takes what it understands and refuses the rest in the contract's words. None
//! stops at an error: it is noted, the caller goes on with a stand-in, and the notes decide at the end.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use super::error::{ConfigError, MAX_PROBLEMS, Problem, quoted, visible};
use super::node::{Key, Node, Value};

/// Collects what is wrong with one file while its values are read.
#[derive(Debug)]
pub struct Reader<'y> {
    file: &'y Path,
    root: &'y Node,
    problems: RefCell<ConfigError>,
}

impl<'y> Reader<'y> {
    /// A reader of the tree `root`, which came from `file`.
    pub fn new(file: &'y Path, root: &'y Node) -> Self {
        let problems = RefCell::new(ConfigError { problems: Vec::new(), omitted: 0 });
        Self { file, root, problems }
    }

    /// What was refused, in the order of the file, the files of sets after it; `Ok` where nothing was.
    pub fn finish(self) -> Result<(), ConfigError> {
        let mut error = self.problems.into_inner();
        error.problems.sort_by_cached_key(|p| (p.file != self.file, p.file.clone(), p.position));
        if error.problems.is_empty() { Ok(()) } else { Err(error) }
    }

    /// The file that is read.
    pub fn file(&self) -> &Path {
        self.file
    }

    /// Notes that the value `node` is refused; `why` follows the value.
    pub fn refuse(&self, node: &Node, why: impl Display) {
        self.refuse_as(node, &node.shown(), why);
    }

    /// Notes that `node` is refused for the part `text` of it.
    pub fn refuse_value(&self, node: &Node, text: &str, why: &str, accepted: impl Display) {
        self.refuse_as(node, &quoted(text), format_args!("{why}; accepted: {accepted}"));
    }

    fn refuse_as(&self, node: &Node, value: &str, why: impl Display) {
        self.note(|| self.problem(node, node.position, None, format!("{value} {why}")));
    }

    /// Notes that the mapping `map` lacks `key`; where it is no mapping, that has been said.
    pub fn refuse_missing(&self, map: &Node, key: &str) {
        if let Value::Map(_) | Value::Null = map.value {
            let message = format!("key {} is missing", quoted(key));
            self.note(|| self.problem(map, map.position, None, message));
        }
    }

    /// Notes that `key` of the mapping `map` is refused.
    pub fn refuse_key(&self, map: &Node, key: &Key, message: impl Into<String>) {
        self.note(|| self.problem(map, key.position, None, message.into()));
    }

    /// Notes that `key` of the mapping `map` belongs to a part that is not built.
    pub fn refuse_later(&self, map: &Node, key: &Key) {
        let message = format!("key {} is not supported yet", quoted(&key.text));
        self.note(|| self.problem(map, key.position, Some(key), message));
    }

    /// Notes a problem that is not in the YAML file itself; `node` is what led there.
    pub fn refuse_elsewhere(&self, node: &Node, file: &Path, line: u64, message: String) {
        self.note(|| Problem {
            file: file.to_owned(),
            position: Some((line, None)),
            path: self.root.path_of(node).unwrap_or_default(),
            message,
        });
    }

    fn problem(&self, node: &Node, (line, column): (u64, u64), key: Option<&Key>, message: String) -> Problem {
        let mut path = self.root.path_of(node).unwrap_or_default();
        if let Some(key) = key {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&key.text);
        }
        let path = visible(path.chars());
        Problem { file: self.file.to_owned(), position: Some((line, Some(column))), path, message }
    }

    /// Finding a path costs a walk through the tree, so problems beyond the cap are only counted.
    fn note(&self, problem: impl FnOnce() -> Problem) {
        let mut error = self.problems.borrow_mut();
        if error.problems.len() < MAX_PROBLEMS {
            error.problems.push(problem());
        } else {
            error.omitted += 1;
        }
    }

    /// The value of `key` in the mapping `map`, which must have it.
    pub fn required(&self, map: &Node, key: &str, value: Option<&'y Node>) -> Option<&'y Node> {
        if value.is_none() {
            self.refuse_missing(map, key);
        }
        value
    }

    /// A scalar's text, not empty. `accepted` says what belongs here.
    pub fn text(&self, node: &'y Node, accepted: impl Display) -> Option<&'y str> {
        match &node.value {
            Value::Scalar(text) if !text.is_empty() => return Some(text),
            Value::Scalar(_) => self.refuse(node, format_args!("is empty; accepted: {accepted}")),
            Value::Null => self.refuse(node, format_args!("is no value; accepted: {accepted}")),
            Value::Seq(_) => self.refuse(node, format_args!("is a list; accepted: {accepted}")),
            Value::Map(_) => self.refuse(node, format_args!("is a mapping; accepted: {accepted}")),
        }
        None
    }

    /// A scalar that `parse` understands.
    pub fn parsed<T>(
        &self,
        node: &'y Node,
        accepted: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(node, &accepted)?;
        let value = parse(text);
        if value.is_none() {
            self.refuse_value(node, text, "is not valid", accepted);
        }
        value
    }

    /// `true` or `false`.
    pub fn flag(&self, node: &'y Node) -> Option<bool> {
        self.choice(node, &[("true", true), ("false", false)], &[])
    }

    /// A decimal number within `range`.
    pub fn number<T>(&self, node: &'y Node, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let accepted = format!("a number from {} to {}", range.start(), range.end());
        let text = self.text(node, &accepted)?;
        match decimal(text) {
            None if text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0') => {}
            None => {
                self.refuse_value(node, text, "is not a number", accepted);
                return None;
            }
            Some(n) => {
                if let Some(n) = T::try_from(n).ok().filter(|n| range.contains(n)) {
                    return Some(n);
                }
            }
        }
        self.refuse_value(node, text, "is out of range", accepted);
        None
    }

    /// One of the words in `known`; those in `later` are refused as not supported yet.
    pub fn choice<T: Copy>(&self, node: &'y Node, known: &[(&str, T)], later: &[&str]) -> Option<T> {
        let accepted = words(known.iter().map(|(word, _)| *word));
        let text = self.text(node, &accepted)?;
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let why = if later.contains(&text) { "is not supported yet" } else { "is not known" };
        self.refuse_value(node, text, why, accepted);
        None
    }

    /// The items of a list; nothing written is an empty one.
    pub fn items(&self, node: &'y Node, accepted: &str) -> &'y [Node] {
        match &node.value {
            Value::Seq(items) => return items,
            Value::Null => {}
            Value::Scalar(_) | Value::Map(_) => {
                self.refuse(node, format_args!("is not a list; accepted: {accepted}"));
            }
        }
        &[]
    }

    /// The items of a list that is not empty, or the one value that stands in its place.
    pub fn one_or_many(&self, node: &'y Node, accepted: &str) -> &'y [Node] {
        match &node.value {
            Value::Seq(items) if items.is_empty() => {
                self.refuse(node, format_args!("is an empty list; accepted: {accepted}"));
                &[]
            }
            Value::Seq(items) => items,
            _ => std::slice::from_ref(node),
        }
    }

    /// The entries of a mapping with names as keys; nothing written is an empty one.
    pub fn entries(&self, node: &'y Node, accepted: &str) -> &'y [(Key, Node)] {
        match &node.value {
            Value::Map(entries) => return entries,
            Value::Null => {}
            Value::Scalar(_) | Value::Seq(_) => {
                self.refuse(node, format_args!("is not a mapping; accepted: {accepted}"));
            }
        }
        &[]
    }
}

/// A number as it is written: decimal digits, no sign, no leading zero.
pub fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// Words as an error lists them.
pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}
