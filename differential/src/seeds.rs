//! What a seed stands for: its policy, its gateways.

use std::io;

use crate::inprocess::InProcess;
use crate::observe::System;
use crate::policy::Policy;

/// `3` and `5-8`, spelled out.
///
/// # Errors
/// What is no number.
pub fn numbers(texts: &[String]) -> Result<Vec<u64>, String> {
    let mut all = Vec::new();
    for text in texts {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let number = |t: &str| t.parse::<u64>().map_err(|e| format!("seed {t}: {e}"));
        all.extend(number(from)?..=number(to)?);
    }
    Ok(all)
}

/// The policy of a seed and what to call it: all kinds of translation and settings of TCP come in turn.
///
/// # Errors
/// No policy has that name.
pub fn policy(seed: u64, name: Option<&str>) -> Result<(String, Policy), String> {
    let kinds = ["plain", "masquerade", "dnat", "snat"];
    let name = name.unwrap_or(kinds[usize::try_from(seed % 4).unwrap_or(0)]);
    let mut policy = Policy::named(name).ok_or(format!("no policy is called {name}"))?;
    policy.loose = seed % 5 != 4;
    policy.liberal = false;
    Ok((format!("{name}{}", if policy.loose { "" } else { ", not loose" }), policy))
}

/// The gateways that are compared with the reference.
#[derive(Clone, Copy, Debug)]
pub struct Subjects<'a> {
    /// What they are set up with.
    pub policy: &'a Policy,
    /// How many workers each has.
    pub workers: &'a [usize],
    /// The seed of their own choices.
    pub seed: u64,
}

impl Subjects<'_> {
    /// The gateways.
    ///
    /// # Errors
    /// The configuration does not take the policy.
    pub fn make(&self) -> io::Result<Vec<Box<dyn System>>> {
        let one = |(n, workers): (u64, &usize)| -> io::Result<Box<dyn System>> {
            Ok(Box::new(InProcess::new(self.policy, *workers, self.seed + n)?))
        };
        (0..).zip(self.workers).map(one).collect()
    }
}
