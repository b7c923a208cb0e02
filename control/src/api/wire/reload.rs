//! What a reload did.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// `reload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// Number of the policy in force.
    pub generation: u64,
    /// From compiling until the last worker had it.
    pub seconds: f64,
    /// What became of the connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Swept>,
}

/// What became of the connections under a new policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// How many stay.
    pub kept: u64,
    /// How many were ended because the policy denies them.
    pub denied: u64,
    /// How many because it translates them otherwise.
    pub retranslated: u64,
    /// How many because an address of theirs is not the gateway's any more.
    pub address_gone: u64,
    /// Whether all have been looked at; if not, that goes on.
    pub finished: bool,
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, denied, retranslated, address_gone, finished } = *self;
        let connections = if kept == 1 { "connection" } else { "connections" };
        write!(f, "{kept} {connections} kept, ")?;
        let causes =
            [(denied, "denied"), (retranslated, "translated otherwise"), (address_gone, "without their address")];
        let mut words = String::new();
        for (n, cause) in causes.iter().filter(|(n, _)| *n > 0) {
            let comma = if words.is_empty() { "" } else { ", " };
            write!(words, "{comma}{n} {cause}")?;
        }
        match denied + retranslated + address_gone {
            0 => f.write_str("none ended")?,
            ended => write!(f, "{ended} ended ({words})")?,
        }
        f.write_str(if finished { "" } else { " so far; the others are still being looked at" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_connections_is_one_sentence() {
        let all = Swept { kept: 120, denied: 2, retranslated: 1, address_gone: 0, finished: true };
        assert_eq!(all.to_string(), "120 connections kept, 3 ended (2 denied, 1 translated otherwise)");
        let none = Swept { kept: 1, finished: true, ..Swept::default() };
        assert_eq!(none.to_string(), "1 connection kept, none ended");
        let part = Swept { kept: 7, address_gone: 4, ..Swept::default() };
        let expect =
            "7 connections kept, 4 ended (4 without their address) so far; the others are still being looked at";
        assert_eq!(part.to_string(), expect);
    }
}
