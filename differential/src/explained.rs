//! Differences that are meant: docs/LINUX.md says why, a scenario shows each.

use crate::compare::Difference;
use crate::frame::Side;
use crate::observe::Observation;
use crate::policy::Policy;

/// A packet and what both systems made of it.
pub struct Context<'a> {
    /// What both were set up with.
    pub policy: &'a Policy,
    /// What was sent.
    pub frame: &'a [u8],
    /// Where.
    pub side: Side,
    /// What the kernel made of it.
    pub reference: &'a Observation,
    /// What Sluice made of it.
    pub subject: &'a Observation,
}

/// A difference that is meant.
pub struct Explained {
    /// Its name in reports.
    pub name: &'static str,
    /// Whether this is one.
    pub is: fn(&Context<'_>, &Difference) -> bool,
}

/// All of them.
pub const EXPLAINED: &[Explained] = &[];

/// The name of the explanation of `difference`, if there is one.
pub fn name(context: &Context<'_>, difference: &Difference) -> Option<&'static str> {
    EXPLAINED.iter().find(|e| (e.is)(context, difference)).map(|e| e.name)
}
