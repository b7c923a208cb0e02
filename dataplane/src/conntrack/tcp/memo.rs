//! What is remembered of the last segment, in two bytes.

use super::super::tuple::Direction;
use super::state::Kind;
use super::window::Traits;
use crate::packet::SynOptions;

/// Direction and kind of the last segment that counted or was ignored, and what a SYN that was ignored said.
///
/// ```text
///  0     direction
///  1..=3 kind, 0 for none
///  4..=7 an ignored SYN's window scale
///  8..   flags
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memo(u16);

impl Memo {
    /// Nothing.
    pub const NONE: Self = Self(0);
    const REPLY: u16 = 1;
    const KIND: u16 = 7 << 1;
    const SCALE: u16 = 15 << 4;
    /// An ignored SYN carried the window scale option.
    pub const SCALES: Self = Self(1 << 8);
    /// An ignored SYN permitted selective acknowledgements.
    pub const SACKS: Self = Self(1 << 9);
    /// A challenge ACK may answer the SYN that was ignored in LAST_ACK.
    pub const CHALLENGE: Self = Self(1 << 10);
    /// SYNs have crossed.
    pub const SIMULTANEOUS: Self = Self(1 << 11);

    /// Whether all of `m` is set.
    #[inline]
    pub const fn has(self, m: Self) -> bool {
        self.0 & m.0 == m.0
    }

    /// Sets `m` or clears it.
    #[inline]
    pub const fn put(&mut self, m: Self, on: bool) {
        self.0 = if on { self.0 | m.0 } else { self.0 & !m.0 };
    }

    /// The last segment was of this kind and direction.
    #[inline]
    pub const fn note(&mut self, kind: Kind, direction: Direction) {
        self.0 = self.0 & !(Self::REPLY | Self::KIND) | (kind as u16) << 1 | direction as u16;
    }

    /// Whether the last segment was of this kind.
    #[inline]
    pub const fn is_kind(self, kind: Kind) -> bool {
        self.0 & Self::KIND == (kind as u16) << 1
    }

    /// The last segment's direction; that of the first before there was any.
    #[inline]
    pub const fn direction(self) -> Direction {
        if self.0 & Self::REPLY == 0 { Direction::Original } else { Direction::Reply }
    }

    /// Forgets what earlier SYNs said and remembers what one with these options does.
    pub fn note_syn(&mut self, options: Option<SynOptions>) {
        let o = options.unwrap_or_default();
        self.0 &= Self::REPLY | Self::KIND;
        self.0 |= u16::from(o.scale.unwrap_or(0)) << 4 & Self::SCALE;
        self.put(Self::SCALES, o.scale.is_some());
        self.put(Self::SACKS, o.sack_permitted);
    }

    /// What the ignored SYN says of its sender.
    pub fn traits(self) -> Traits {
        let scale = u8::try_from((self.0 & Self::SCALE) >> 4).unwrap_or(0);
        Traits::of_syn(SynOptions {
            scale: self.has(Self::SCALES).then_some(scale),
            sack_permitted: self.has(Self::SACKS),
        })
    }
}
