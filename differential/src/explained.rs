//! Differences that are meant: docs/LINUX.md says why, a scenario shows each.

use crate::compare::Difference;
use crate::frame::{Ip, Side};
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
    /// Why Sluice does not take the datagram that this is a fragment of.
    pub datagram: Option<&'static str>,
}

/// A difference that is meant.
pub struct Explained {
    /// Its name in reports.
    pub name: &'static str,
    /// Whether this is one.
    pub is: fn(&Context<'_>, &Difference) -> bool,
}

/// All of them.
pub const EXPLAINED: &[Explained] = &[
    Explained {
        // Scenario fragments4_small.
        name: "first fragment without the transport header",
        is: |c, _| c.datagram == Some("fragment_invalid") && is_ipv4(c.frame),
    },
    Explained {
        // Scenarios ipv6_extension and protocols.
        name: "IPv6 extension header cut short",
        is: |c, _| c.subject.reason == Some("ipv6_extension"),
    },
];

/// The name of the explanation of `difference`, if there is one.
pub fn name(context: &Context<'_>, difference: &Difference) -> Option<&'static str> {
    EXPLAINED.iter().find(|e| (e.is)(context, difference)).map(|e| e.name)
}

fn is_ipv4(frame: &[u8]) -> bool {
    Ip::of_frame(frame).is_some_and(|p| p.src.is_ipv4())
}
