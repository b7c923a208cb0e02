//! The subcommands.

pub mod config;
pub mod report;
pub mod round;
pub mod trace;
pub mod turns;

use std::path::Path;

/// An error that names the file that it is about.
pub fn of_file(path: &Path) -> impl FnOnce(std::io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}
