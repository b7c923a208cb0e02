//! What a rule looks at, as intervals and small sets: what the tree is built from.
//!
//! A shape may be larger than what its rule matches, never smaller; where [`Shape::ends`] is set it is exactly that.
//!
//! *Threads*: control, but for the few functions that make a packet's key.

use std::borrow::Cow;
use std::fmt::Debug;

use super::ANY;
use crate::api::policy::{AddrMatch, AddrSet};
use crate::conntrack::tuple::proto;
use crate::filter::matcher::{Addresses, Bits, Matcher};

/// How many dimensions there are: source, destination, source port, destination port, interface in, interface out. What
/// stands for ICMP's type in a tuple's destination port does so here.
pub const DIMS: usize = 6;

/// All values of each.
pub fn space<A: Address>() -> [(A, A); DIMS] {
    let addresses = (A::MIN, A::MAX);
    let ports = (A::MIN, A::from(u16::MAX.into()));
    let interfaces = (A::MIN, A::from(interface(u16::MAX)));
    [addresses, addresses, ports, ports, interfaces, interfaces]
}

/// Most intervals that a rule is cut into along a dimension; a set of more counts as all between its ends.
const PIECES: usize = 64;

/// What has few values and no order: zone from, zone to, state, protocol.
pub mod category {
    use crate::api::policy::{MAX_ZONES, ZoneId};

    /// How many there are.
    pub const COUNT: usize = 4;
    /// How many values each has at most.
    pub const VALUES: [usize; COUNT] = [MAX_ZONES + 1, MAX_ZONES + 2, 8, 256];
    /// The state's place among them.
    pub const STATE: usize = 2;
    /// In no zone that a rule can name.
    pub const NO_ZONE: u8 = 64;
    /// Not routed yet.
    pub const NOWHERE: u8 = 65;
    const _: () = assert!(MAX_ZONES == NO_ZONE as usize);

    /// A zone's value.
    #[inline]
    pub fn zone(z: ZoneId) -> u8 {
        z.0.min(NO_ZONE)
    }
}

/// An interface's value; 0 is none.
#[inline]
pub fn interface(i: u16) -> u32 {
    u32::from(i) + 1
}

/// An IP version's addresses as numbers, and whatever else is on a dimension.
pub trait Address: Copy + Ord + Debug + From<u32> + 'static {
    const MIN: Self;
    const MAX: Self;
    /// The protocol number of this version's ICMP.
    const ICMP: u8;
    /// The number before; itself for the first.
    fn before(self) -> Self;
    /// The number after, if there is one.
    fn after(self) -> Option<Self>;
    /// As a port; the greatest where it is more.
    fn port(self) -> u16;
    /// A set's intervals of this version.
    fn intervals(set: &AddrSet) -> &[(Self, Self)];
    /// A condition that is one interval of this version.
    fn single(a: &Addresses) -> Option<(Self, Self)>;
}

impl Address for u32 {
    const MIN: Self = 0;
    const MAX: Self = Self::MAX;
    const ICMP: u8 = proto::ICMP;
    fn before(self) -> Self {
        self.saturating_sub(1)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn port(self) -> u16 {
        u16::try_from(self).unwrap_or(u16::MAX)
    }
    fn intervals(set: &AddrSet) -> &[(Self, Self)] {
        set.v4()
    }
    fn single(a: &Addresses) -> Option<(Self, Self)> {
        if let &Addresses::V4(lo, hi) = a { Some((lo, hi)) } else { None }
    }
}

impl Address for u128 {
    const MIN: Self = 0;
    const MAX: Self = Self::MAX;
    const ICMP: u8 = proto::ICMPV6;
    fn before(self) -> Self {
        self.saturating_sub(1)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn port(self) -> u16 {
        u16::try_from(self).unwrap_or(u16::MAX)
    }
    fn intervals(set: &AddrSet) -> &[(Self, Self)] {
        set.v6()
    }
    fn single(a: &Addresses) -> Option<(Self, Self)> {
        if let Addresses::V6(one) = a { Some(**one) } else { None }
    }
}

/// What a rule matches along a dimension.
#[derive(Debug)]
pub enum Span<'a, A: Address> {
    /// All.
    All,
    /// From the one to the other.
    One(A, A),
    /// Sorted intervals of which no two touch.
    Many(Cow<'a, [(A, A)]>),
    /// All but such intervals.
    Not(&'a [(A, A)]),
}

impl<'a, A: Address> Span<'a, A> {
    /// `None` where nothing of this version matches.
    fn of(a: &'a Addresses) -> Option<Self> {
        match a {
            Addresses::Any => Some(Self::All),
            Addresses::V4(..) | Addresses::V6(_) => A::single(a).map(|(lo, hi)| Self::One(lo, hi)),
            Addresses::Set(AddrMatch { negate, set }) => match (negate, A::intervals(set)) {
                (false, []) => None,
                (false, list) => Some(Self::Many(list.into())),
                (true, []) => Some(Self::All),
                (true, &[(lo, hi)]) if lo == A::MIN && hi == A::MAX => None,
                (true, list) => Some(Self::Not(list)),
            },
        }
    }

    fn numbers(list: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut list: Vec<_> = list.collect();
        crate::filter::addrset::merge(&mut list, |v| v.checked_add(1));
        match list[..] {
            [(lo, hi)] => Self::One(lo.into(), hi.into()),
            _ => Self::Many(list.into_iter().map(|(lo, hi)| (lo.into(), hi.into())).collect()),
        }
    }

    /// Whether it tells nothing apart.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether all of a region is in it.
    pub fn covers(&self, (lo, hi): (A, A)) -> bool {
        match self {
            Self::All => true,
            &Self::One(a, b) => a <= lo && hi <= b,
            Self::Many(list) => {
                let i = list.partition_point(|&(_, end)| end < lo);
                list.get(i).is_some_and(|&(a, b)| a <= lo && hi <= b)
            }
            Self::Not(list) => {
                let i = list.partition_point(|&(_, end)| end < lo);
                list.get(i).is_none_or(|&(a, _)| hi < a)
            }
        }
    }

    /// Puts into `out` what lies within a region: ascending intervals, or one around them where they are too many.
    pub fn within(&self, (lo, hi): (A, A), out: &mut Vec<(A, A)>) {
        out.clear();
        let among = |list: &'_ [(A, A)]| {
            let first = list.partition_point(|&(_, end)| end < lo);
            first..list.partition_point(|&(start, _)| start <= hi).max(first)
        };
        match self {
            Self::All => out.push((lo, hi)),
            &Self::One(a, b) => {
                if a <= hi && b >= lo {
                    out.push((a.max(lo), b.min(hi)));
                }
            }
            Self::Many(list) => {
                let inside = list.get(among(list)).unwrap_or_default();
                match inside {
                    [(first, _), .., (_, last)] if inside.len() > PIECES => {
                        out.push(((*first).max(lo), (*last).min(hi)));
                    }
                    _ => out.extend(inside.iter().map(|&(a, b)| (a.max(lo), b.min(hi)))),
                }
            }
            Self::Not(list) => match list.get(among(list)).unwrap_or_default() {
                inside @ &[(a, b), .., (c, d)] if inside.len() > PIECES => {
                    let first = if a > lo { lo } else { b.after().unwrap_or(b) };
                    out.push((first, if d < hi { hi } else { c.before() }));
                }
                inside => {
                    let mut next = Some(lo);
                    for &(a, b) in inside {
                        out.extend(next.filter(|&from| from < a).map(|from| (from, a.before())));
                        next = b.after();
                    }
                    out.extend(next.filter(|&from| from <= hi).map(|from| (from, hi)));
                }
            },
        }
    }
}

/// What a rule looks at.
#[derive(Debug)]
pub struct Shape<'a, A: Address> {
    /// Its index.
    pub rule: u32,
    /// By dimension.
    pub spans: [Span<'a, A>; DIMS],
    /// The values that it takes of each category.
    pub categories: [Bits; category::COUNT],
    /// What an entry says of each category: its only value, or [`ANY`].
    pub only: [u8; category::COUNT],
    /// Whether it is the end of every packet in its shape, so that later rules need not be asked.
    pub ends: bool,
}

impl<'a, A: Address> Shape<'a, A> {
    /// Of a rule that ends the search when it matches, or may not. `None` where it matches no packet of this IP version.
    pub fn new(rule: u32, m: &'a Matcher, ends: bool) -> Option<Self> {
        let rest = m.rest.as_deref();
        let ports = |list: &[(u16, u16)]| {
            if m.ported { Span::numbers(list.iter().map(|&(lo, hi)| (lo.into(), hi.into()))) } else { Span::All }
        };
        let interfaces = |list: Option<&[u16]>| match list {
            None | Some([]) => Span::All,
            Some(list) => Span::numbers(list.iter().map(|&i| (interface(i), interface(i)))),
        };
        let mut protocols = m.protocols.bits();
        let mut dport = ports(m.dports());
        if m.ported {
            if m.sports().iter().chain(m.dports()).any(|r| r.0 > r.1) {
                return None;
            }
            protocols = and(protocols, Bits::of(&[proto::TCP, proto::UDP, proto::UDPLITE, proto::SCTP]));
        }
        if let Some(types) = rest.and_then(|r| r.icmp_types) {
            protocols = and(protocols, Bits::of(&[A::ICMP]));
            let named = (0..=u8::MAX).filter(|&t| types.has(t)).map(u32::from);
            dport = Span::numbers(named.map(|t| (t << 8, t << 8 | 0xff)));
        }
        if rest.is_some_and(|r| r.tcp_flags.is_some()) {
            protocols = and(protocols, Bits::of(&[proto::TCP]));
        }
        if protocols == Bits([0; 4]) {
            return None;
        }
        let spans = [
            Span::of(&m.source)?,
            Span::of(&m.destination)?,
            ports(m.sports()),
            dport,
            interfaces(rest.map(|r| &r.interface_in[..])),
            interfaces(rest.map(|r| &r.interface_out[..])),
        ];
        let (from, to) = (u64::from(!m.from_given), u64::from(!m.to_given));
        let categories =
            [Bits([m.from, from, 0, 0]), Bits([m.to, to << 1 | to, 0, 0]), Bits([m.states.into(), 0, 0, 0]), protocols];
        Some(Self { rule, spans, only: categories.each_ref().map(only), categories, ends: ends && m.is_plain() })
    }
}

/// The only value in a set; [`ANY`] where there are more.
fn only(bits: &Bits) -> u8 {
    let mut ones = (0..4).zip(bits.0).filter(|&(_, word)| word != 0);
    match (ones.next(), ones.next()) {
        (Some((i, word)), None) if word.is_power_of_two() => {
            u8::try_from(i * 64 + word.trailing_zeros()).unwrap_or(ANY)
        }
        _ => ANY,
    }
}

/// What is in both.
pub fn and(a: Bits, b: Bits) -> Bits {
    let mut both = a;
    both.0.iter_mut().zip(b.0).for_each(|(a, b)| *a &= b);
    both
}
