//! The filter stage: judges a packet by the policy.

pub mod addrset;

use crate::api::policy::{PolicyError, PolicySpec};

/// The immutable, compiled policy.
#[derive(Debug)]
pub struct Policy {
    spec: PolicySpec,
}

impl Policy {
    /// Compiles `spec`: the only way to make a policy.
    ///
    /// # Errors
    /// Where a rule names what does not exist or matches what its hook cannot know.
    pub fn compile(spec: PolicySpec) -> Result<Self, PolicyError> {
        Ok(Self { spec })
    }

    /// What it was compiled from.
    pub fn spec(&self) -> &PolicySpec {
        &self.spec
    }
}
