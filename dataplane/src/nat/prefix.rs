//! Prefix translation of IPv6 addresses: without state, and checksum-neutral (RFC 6296).
//!
//! A [`PrefixMap`] replaces a prefix by one of the same length and makes good for that in one 16-bit word behind it, so that the
//! one's complement sum of the address stays as it was: transport checksums need no change, and no port has to be known.
//! The word is the subnet (bits 48 to 63) for prefixes of at most 48 bits, else the first of the interface identifier that is not
//! all ones. One's complement has two zeros, so 0xffff is never written, and an address that has it there has no image.
//!
//! *Life-cycle*: compiled with the policy. *Threads*: read by all workers. *Limits*: [`MAX_PREFIXES`] rules, asked in their
//! order. *Sources*: RFC 6296 sections 3.1 to 3.7, and erratum 8757: what section 3.7 says of identifiers that are all zeros is
//! meant of those that are all ones. All zeros are translated like any other, for an ordinary address may become that.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::api::policy::{MAX_ZONES, Match, ZoneId};
use crate::io::PortIdx;
use crate::parse::checksum;

/// Most rules that translate prefixes.
pub const MAX_PREFIXES: usize = 64;

/// Longest prefix that can be translated: behind it there must be a word to make good in.
const LONGEST: u8 = 64;
/// Longest prefix that leaves the subnet's word free.
const LONGEST_SUBNET: u8 = 48;
/// The word of bits 48 to 63.
const SUBNET: usize = 3;
/// The value of a word that means the same as 0.
const ALL_ONES: u16 = 0xffff;

/// A mapping between two prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMap {
    inside: u128,
    outside: u128,
    mask: u128,
    /// Whether it makes good in the subnet's word.
    in_subnet: bool,
    /// What the sum of the inside prefix is more than that of the outside one.
    difference: u16,
}

impl PrefixMap {
    /// The mapping between `inside` and `outside`. `None` where they are not of one length of 1 to 64 bits.
    pub fn new(inside: Ipv6Net, outside: Ipv6Net) -> Option<Self> {
        let len = inside.prefix_len();
        if len != outside.prefix_len() || len == 0 || len > LONGEST {
            return None;
        }
        let sum = |prefix: Ipv6Net| checksum::sum(&prefix.network().octets());
        Some(Self {
            inside: inside.network().to_bits(),
            outside: outside.network().to_bits(),
            mask: u128::MAX << (128 - u32::from(len)),
            in_subnet: len <= LONGEST_SUBNET,
            difference: plus(sum(inside), !sum(outside)),
        })
    }

    /// Whether `a` has the inside prefix.
    #[inline]
    pub fn is_inside(&self, a: Ipv6Addr) -> bool {
        a.to_bits() & self.mask == self.inside
    }

    /// Whether `a` has the outside prefix.
    #[inline]
    pub fn is_outside(&self, a: Ipv6Addr) -> bool {
        a.to_bits() & self.mask == self.outside
    }

    /// What `a`, which has the inside prefix, is outside; `None` where it has no image.
    pub fn outward(&self, a: Ipv6Addr) -> Option<Ipv6Addr> {
        self.map(a, self.outside, self.difference)
    }

    /// What `a`, which has the outside prefix, is inside; `None` where it is nobody's image.
    pub fn inward(&self, a: Ipv6Addr) -> Option<Ipv6Addr> {
        self.map(a, self.inside, !self.difference)
    }

    fn map(&self, a: Ipv6Addr, prefix: u128, difference: u16) -> Option<Ipv6Addr> {
        let mut words = Ipv6Addr::from_bits(a.to_bits() & !self.mask | prefix).segments();
        let (subnet, identifier) = words.split_at_mut(SUBNET + 1);
        let word = if self.in_subnet {
            subnet.last_mut().filter(|w| **w != ALL_ONES)
        } else {
            identifier.iter_mut().find(|w| **w != ALL_ONES)
        }?;
        *word = match plus(*word, difference) {
            ALL_ONES => 0,
            sum => sum,
        };
        Some(Ipv6Addr::from(words))
    }
}

/// One's complement sum.
fn plus(a: u16, b: u16) -> u16 {
    checksum::fold(u64::from(a) + u64::from(b))
}

/// Zones and interfaces on one side of a rule.
#[derive(Debug)]
struct Side {
    /// A bit for each zone; all are any.
    zones: u64,
    /// Empty is any.
    interfaces: Vec<u16>,
}

impl Side {
    fn new(zones: &[ZoneId], interfaces: &[u16]) -> Self {
        let bits = zones.iter().fold(0, |bits, z| bits | 1 << (usize::from(z.0) % MAX_ZONES));
        Self { zones: if zones.is_empty() { u64::MAX } else { bits }, interfaces: interfaces.to_vec() }
    }

    /// Whether a wire port, which is in `zone`, is on this side.
    fn has(&self, End { zone, port }: End) -> bool {
        let zone = self.zones == u64::MAX || usize::from(zone.0) < MAX_ZONES && self.zones >> zone.0 & 1 == 1;
        zone && !port.is_twin() && (self.interfaces.is_empty() || self.interfaces.contains(&port.interface()))
    }
}

/// A port with the zone that it is in.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The zone.
    pub zone: ZoneId,
    /// The port.
    pub port: PortIdx,
}

/// A rule that translates prefixes, compiled.
#[derive(Debug)]
struct Rule {
    map: PrefixMap,
    inside: Side,
    outside: Side,
}

/// A rule in force, counted from 1; 0 is none.
pub type PrefixRule = u8;

/// All rules that translate prefixes; the first that fits decides.
#[derive(Debug, Default)]
pub struct Prefixes(Vec<Rule>);

impl Prefixes {
    /// Adds a rule.
    ///
    /// # Errors
    /// Why there is no such rule.
    pub fn add(&mut self, inside: Ipv6Net, outside: Ipv6Net, m: &Match) -> Result<(), &'static str> {
        let narrower = m.source.is_some()
            || m.destination.is_some()
            || m.tcp_flags.is_some()
            || m.mark.is_some()
            || !(m.proto.is_empty() && m.sport.is_empty() && m.dport.is_empty())
            || !(m.icmp_type.is_empty() && m.state.is_empty());
        if narrower {
            return Err("prefix translation has no state, so it can match only zones and interfaces");
        }
        if self.0.len() == MAX_PREFIXES {
            return Err("at most 64 rules can translate prefixes");
        }
        let map = PrefixMap::new(inside, outside).ok_or("both prefixes must be of one length of 1 to 64 bits")?;
        let (inside, outside) = (Side::new(&m.from, &m.interface_in), Side::new(&m.to, &m.interface_out));
        self.0.push(Rule { map, inside, outside });
        Ok(())
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn numbered(&self) -> impl Iterator<Item = (PrefixRule, &Rule)> {
        (1..).zip(&self.0)
    }

    fn rule(&self, rule: PrefixRule) -> Option<&Rule> {
        self.0.get(usize::from(rule).checked_sub(1)?)
    }

    /// The rule by which `dst` is translated of a packet that came in by `from`, from outside or back to its own side, and
    /// what it becomes: `None` where that cannot be.
    pub fn arriving(&self, from: End, dst: Ipv6Addr) -> Option<(PrefixRule, Option<Ipv6Addr>)> {
        let fits = |r: &Rule| r.map.is_outside(dst) && (r.outside.has(from) || r.inside.has(from));
        self.numbered().find(|(_, r)| fits(r)).map(|(n, r)| (n, r.map.inward(dst)))
    }

    /// What `a` is inside by rule `rule`.
    pub fn inward(&self, rule: PrefixRule, a: IpAddr) -> Option<Ipv6Addr> {
        let (IpAddr::V6(a), rule) = (a, self.rule(rule)?) else { return None };
        rule.map.is_outside(a).then(|| rule.map.inward(a)).flatten()
    }

    /// What `a` is outside by rule `rule`.
    pub fn outward(&self, rule: PrefixRule, a: IpAddr) -> Option<Ipv6Addr> {
        let (IpAddr::V6(a), rule) = (a, self.rule(rule)?) else { return None };
        rule.map.is_inside(a).then(|| rule.map.outward(a)).flatten()
    }

    /// What the inside address `a` of a packet becomes that came in by `from`, or is the gateway's own where that is `None`,
    /// and leaves by `to`; `arrived` is the rule that translated its destination, with the end that it came in by.
    /// The outer `None` is for an address that stays, the inner one for one without an image.
    pub fn leaving(
        &self,
        from: Option<End>,
        to: End,
        arrived: (PrefixRule, End),
        a: IpAddr,
    ) -> Option<Option<Ipv6Addr>> {
        let IpAddr::V6(a) = a else { return None };
        if to.port.is_twin() {
            return None;
        }
        let out = |r: &Rule| r.outside.has(to) && from.is_none_or(|from| r.inside.has(from));
        let back = |n, r: &Rule| n == arrived.0 && r.inside.has(arrived.1);
        let rule = self.numbered().find(|&(n, r)| r.map.is_inside(a) && (out(r) || back(n, r)));
        rule.map(|(_, r)| r.map.outward(a))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(inside: &str, outside: &str) -> PrefixMap {
        PrefixMap::new(inside.parse().expect("prefix"), outside.parse().expect("prefix")).expect("a mapping")
    }

    fn address(s: &str) -> Ipv6Addr {
        s.parse().expect("address")
    }

    /// One's complement sum of all words of an address, with one zero.
    fn words(a: Ipv6Addr) -> u32 {
        a.segments().iter().map(|&w| u32::from(w)).sum::<u32>() % 0xffff
    }

    fn mappings() -> impl Strategy<Value = (PrefixMap, u8)> {
        (1u8..=64, any::<(u128, u128)>()).prop_map(|(len, (a, b))| {
            let net = |a| Ipv6Net::new(Ipv6Addr::from_bits(a), len).expect("a length").trunc();
            (PrefixMap::new(net(a), net(b)).expect("a mapping"), len)
        })
    }

    /// Addresses with words that are all ones or all zeros more often than chance has them.
    fn hosts() -> impl Strategy<Value = u128> {
        let word = prop_oneof![any::<u16>(), Just(0), Just(ALL_ONES), Just(1), Just(0xfffe)];
        proptest::array::uniform8(word).prop_map(|w| Ipv6Addr::from(w).to_bits())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn there_and_back_is_the_identity_and_the_sum_stays((map, len) in mappings(), host in hosts()) {
            let within = |prefix: u128| Ipv6Addr::from_bits(host & !map.mask | prefix);
            let (inside, outside) = (within(map.inside), within(map.outside));
            let [_, _, _, subnet, identifier @ ..] = inside.segments();
            let none = if len <= 48 { subnet == ALL_ONES } else { identifier == [ALL_ONES; 4] };
            prop_assert_eq!(map.outward(inside).is_none(), none);
            prop_assert_eq!(map.inward(outside).is_none(), none);
            if let (Some(out), Some(back)) = (map.outward(inside), map.inward(outside)) {
                prop_assert!(map.is_outside(out) && map.is_inside(back));
                prop_assert_eq!(map.inward(out), Some(inside));
                prop_assert_eq!(map.outward(back), Some(outside));
                prop_assert_eq!(words(out), words(inside));
                prop_assert_eq!(words(back), words(outside));
            }
        }

        #[test]
        fn two_hosts_never_become_one((map, _) in mappings(), a in hosts(), b in hosts()) {
            let [a, b] = [a, b].map(|host| Ipv6Addr::from_bits(host & !map.mask | map.inside));
            prop_assume!(a != b);
            prop_assert!(map.outward(a) != map.outward(b) || map.outward(a).is_none());
        }
    }

    #[test]
    fn the_example_of_rfc_6296() {
        let map = map("fd01:203:405::/48", "2001:db8:1::/48");
        assert_eq!(map.difference, 0xd54f);
        let (inside, outside) = (address("fd01:203:405:1::1234"), address("2001:db8:1:d550::1234"));
        assert_eq!(map.outward(inside), Some(outside));
        assert_eq!(map.inward(outside), Some(inside));
    }

    #[test]
    fn shorter_prefixes_make_good_in_the_subnet_too() {
        let map = map("fd00::/16", "2001::/16");
        assert_eq!(map.outward(address("fd00:2:3:4::5")), Some(address("2001:2:3:dd03::5")));
    }

    #[test]
    fn longer_prefixes_make_good_in_the_first_word_that_is_not_all_ones() {
        let map = map("fd01:203:405:6000::/52", "2001:db8:1:7000::/52");
        let d = 0xd54f_u32 + 0x6000 + u32::from(!0x7000_u16);
        let d = (d & 0xffff) + (d >> 16);
        assert_eq!(u32::from(map.difference), (d & 0xffff) + (d >> 16));
        let outward = |s: &str| map.outward(address(s)).map(|a| a.segments());
        let w = 1 + map.difference;
        assert_eq!(outward("fd01:203:405:6abc:1::9"), Some([0x2001, 0xdb8, 1, 0x7abc, w, 0, 0, 9]));
        assert_eq!(outward("fd01:203:405:6abc:ffff:1::9"), Some([0x2001, 0xdb8, 1, 0x7abc, 0xffff, w, 0, 9]));
        assert_eq!(
            outward("fd01:203:405:6abc:ffff:ffff:ffff:1"),
            Some([0x2001, 0xdb8, 1, 0x7abc, 0xffff, 0xffff, 0xffff, w])
        );
        assert_eq!(outward("fd01:203:405:6abc:ffff:ffff:ffff:ffff"), None);
        assert!(outward("fd01:203:405:6abc::").is_some(), "all zeros are an identifier as any");
    }

    #[test]
    fn a_word_that_would_become_all_ones_becomes_zero() {
        let map = map("fd01:203:405::/48", "2001:db8:1::/48");
        let word = ALL_ONES - map.difference;
        let inside = Ipv6Addr::from([0xfd01, 0x203, 0x405, word, 0, 0, 0, 1]);
        assert_eq!(map.outward(inside), Some(address("2001:db8:1:0::1")));
        assert_eq!(map.inward(address("2001:db8:1:0::1")), Some(inside));
        assert_eq!(map.outward(address("fd01:203:405:ffff::1")), None);
        assert_eq!(map.inward(address("2001:db8:1:ffff::1")), None);
    }

    #[test]
    fn prefixes_must_be_of_one_length_that_leaves_a_word() {
        let new = |a: &str, b: &str| PrefixMap::new(a.parse().expect("prefix"), b.parse().expect("prefix"));
        assert!(new("fd00::/48", "2001:db8::/48").is_some() && new("fd00::/64", "2001:db8::/64").is_some());
        for (a, b) in [("fd00::/48", "2001:db8::/56"), ("fd00::/65", "2001:db8::/65"), ("::/0", "::/0")] {
            assert_eq!(new(a, b), None, "{a} {b}");
        }
    }
}
