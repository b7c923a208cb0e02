//! What is wrong with a configuration, said so that it can be put right: file, line, column, YAML path, value, and
//! what is accepted.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most characters of a value that an error shows.
const MAX_SHOWN: usize = 60;

/// Most problems that one run reports; the rest is only counted.
pub const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The YAML file, or the file of a set.
    pub file: PathBuf,
    /// Line and column, both from 1; `None` where the file as a whole is meant, no column for the file of a set.
    pub position: Option<(u64, Option<u64>)>,
    /// YAML path such as `policy.rules[3].dport[0]`; empty for the whole document.
    pub path: String,
    /// The value, what is wrong with it, and what is accepted.
    pub message: String,
}

impl Problem {
    /// A problem of `file` as a whole.
    pub(super) fn of_file(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), position: None, path: String::new(), message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", visible(self.file.to_string_lossy().chars()))?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:")?;
            if let Some(column) = column {
                write!(f, "{column}:")?;
            }
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Why a configuration was refused: at least one problem, in the order in which validation met them. `Display` prints
/// one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, at most 100.
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub omitted: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], omitted: 0 }
    }
}

/// A value as an error shows it: in quotes, shortened, nothing in it that a terminal would act on.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", shortened(text).replace('"', "\\\""))
}

/// At most the first [`MAX_SHOWN`] characters of `text`, control characters escaped.
pub(super) fn shortened(text: &str) -> String {
    let mut shown = visible(text.chars().take(MAX_SHOWN));
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// `text` with what does not print escaped.
pub(super) fn visible(text: impl IntoIterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in text {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}
