//! One packet in flight: where its headers are and what the stages have found out.

/// Connection tracking's class of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CtState {
    /// First packet of a connection, or a further one before any reply.
    New = 0,
    /// The connection has seen packets both ways.
    Established = 1,
    /// Announced by another connection, or an ICMP error about one.
    Related = 2,
    /// Belongs to nothing and cannot start anything.
    Invalid = 3,
    /// Not tracked: a raw rule or neighbour discovery.
    Untracked = 4,
}

/// How many classes there are.
pub const CT_STATES: usize = 5;

impl CtState {
    /// All classes.
    pub const ALL: [Self; CT_STATES] =
        [Self::New, Self::Established, Self::Related, Self::Invalid, Self::Untracked];

    /// Its name in rules, metrics and explanations.
    pub const fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
        }
    }
}
