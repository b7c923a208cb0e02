//! What is wrong with a configuration, said so that it can be put right: file, line, column, YAML path, value, and
//! what is accepted.

use std::fmt;
use std::path::PathBuf;

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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
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
    /// The problems, at most [`MAX_PROBLEMS`].
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

/// The error where a file as a whole is the problem.
pub(super) fn whole_file(file: &std::path::Path, message: String) -> ConfigError {
    let problem = Problem { file: file.to_owned(), position: None, path: String::new(), message };
    ConfigError { problems: vec![problem], omitted: 0 }
}
