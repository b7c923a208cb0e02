//! Choice of a source port (or query identifier): free, within the rule's range or the port's class, and bringing replies
//! home.
//!
//! A port is leased by the reply tuple that carries it: the tuple is in the owner's table, or its signpost at its home,
//! and nobody else can have it. So one port of an address serves as many destinations as there are. The choice only takes
//! tuples whose home is this worker, so asking its own tables is enough: the hash partitions the port space among workers
//! without a shared pool. Identifiers, and ports that RSS does not hash (UDP-Lite, SCTP), do not decide where replies arrive:
//! they are shared out among the workers instead.
//!
//! ```text
//!   the original port             kept where it may be, is free and ours
//!   a few at random               unpredictable (ChaCha8); while half of the ports are free, the second is the last that is tried
//!   what the crowd does not rule out    where most are taken: crowd.rs
//! ```
//! *Threads*: one worker. *Limits*: [`MAX_TRIES`] ports are looked at, however full the address is, and [`MAX_STEPS`] considered.
//! *Sources*: RFC 4787 REQ-1, REQ-3 and REQ-4, RFC 6056 section 3.3.1; `linux/net/netfilter/nf_nat_core.c`
//! (`nf_nat_l4proto_unique_tuple`) for the classes.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use super::crowd::Crowds;
use crate::conntrack::tuple::Tuple;
use crate::steer::Steer;

/// Ports looked at in the tables before the choice fails.
pub const MAX_TRIES: u32 = 128;

/// Arithmetic steps spent on finding ports that come home, where the range is too narrow to compute them.
const MAX_STEPS: u32 = 2048;

/// Ports tried at random before the crowd is asked.
const AT_RANDOM: u32 = 8;

/// The ports that may stand in for `port`: those of its class.
const fn class(port: u16) -> (u16, u16) {
    match port {
        0..=511 => (1, 511),
        512..=1023 => (600, 1023),
        _ => (1024, u16::MAX),
    }
}

/// Numbers that an outsider cannot predict from those that he has seen: ChaCha of eight rounds, seeded at start.
#[derive(Debug)]
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: [u64; 4]) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.as_chunks_mut::<8>().0.iter_mut().zip(seed) {
            *bytes = word.to_le_bytes();
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    fn next(&mut self) -> u32 {
        self.0.next_u32()
    }
}

/// What port a connection needs.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The tuple of replies, with the original port in place.
    pub reply: Tuple,
    /// The ports to choose from, first and last; those of the original one's class where there is none.
    pub range: Option<(u16, u16)>,
    /// Whether the original one is kept where that can be.
    pub keep: bool,
    /// Whether ports of other workers' shares will do.
    pub anyones: bool,
}

impl Wish {
    /// The ports to choose from.
    pub const fn range(&self) -> (u16, u16) {
        match self.range {
            Some(range) => range,
            None if self.reply.is_icmp() => (0, u16::MAX),
            None => class(self.reply.id()),
        }
    }

    /// Whether this worker may choose `port`: replies come home, or it is of this worker's share.
    fn allows(&self, port: u16, steer: &Steer) -> bool {
        if self.anyones || steer.is_alone() {
            return true;
        }
        let t = &self.reply;
        if t.is_spread_by_ports() { steer.is_home(&with(t, port)) } else { steer.owns_id(port) }
    }

    /// What its crowd is known by.
    const fn crowd(&self) -> Tuple {
        with(&self.reply, self.anyones as u16)
    }
}

/// One worker's choice of ports.
#[derive(Debug)]
pub struct Ports {
    random: Random,
    crowds: Crowds,
}

impl Ports {
    /// `seed` must be random per start.
    pub fn new(seed: [u64; 4], hash: ahash::RandomState) -> Self {
        Self { random: Random::new(seed), crowds: Crowds::new(hash) }
    }

    /// Chooses the id at which replies arrive: the reply's destination port, or an ICMP query's identifier. `taken` says
    /// whether a tuple cannot be had. `None` where nothing was found within the bounds.
    pub fn choose(&mut self, wish: &Wish, steer: &Steer, taken: impl Fn(&Tuple) -> bool) -> Option<Tuple> {
        let reply = &wish.reply;
        if !reply.is_icmp() && !reply.has_ports() {
            return (!taken(reply)).then_some(*reply); // nothing to choose: a signpost will bring replies here
        }
        let original = reply.id();
        let (low, high) = wish.range();
        // The class of a low port begins above 0 and may end below it: Linux keeps such a port all the same.
        let allowed = wish.range.is_none_or(|_| (low..=high).contains(&original));
        let free = |port: u16| Some(with(reply, port)).filter(|t| !taken(t));
        if wish.keep
            && allowed
            && wish.allows(original, steer)
            && let Some(t) = free(original)
        {
            return Some(t);
        }
        if low > high {
            return None;
        }
        if u32::from(high - low) < MAX_TRIES {
            let start = within(self.random.next(), low, high);
            return (start..=high).chain(low..start).filter(|&p| wish.allows(p, steer)).find_map(free);
        }
        let of = wish.crowd();
        let crowd = match self.crowds.find(&of) {
            Some(crowd) => crowd,
            None => match self.at_random(wish, steer, free) {
                Some(t) => return Some(t),
                None => self.crowds.begin(of),
            },
        };
        let (mut at, mut tries) = (within(self.random.next(), low, high), 0);
        for _ in 0..MAX_STEPS {
            at = self.crowds.next(crowd, at, low, high)?;
            if wish.allows(at, steer) {
                if let Some(t) = free(at) {
                    return Some(t);
                }
                tries += 1;
            }
            self.crowds.rule_out(crowd, at);
            if tries == MAX_TRIES {
                return None;
            }
        }
        None
    }

    /// A few ports at random.
    fn at_random(&mut self, wish: &Wish, steer: &Steer, free: impl Fn(u16) -> Option<Tuple>) -> Option<Tuple> {
        let (low, high) = wish.range();
        // Where the range is most of the space, a port that comes home can be computed.
        let compute = wish.reply.is_spread_by_ports() && !wish.anyones && high - low >= u16::MAX / 2;
        let base = with(&wish.reply, 0);
        let mut tries = 0;
        for _ in 0..AT_RANDOM * 8 {
            let port = match compute {
                true => steer.port_home(&base, self.random.next()),
                false => within(self.random.next(), low, high),
            };
            if !(low..=high).contains(&port) || !wish.allows(port, steer) {
                continue;
            }
            if let Some(t) = free(port) {
                return Some(t);
            }
            tries += 1;
            if tries == AT_RANDOM {
                break;
            }
        }
        None
    }

    /// A tuple whose port is another worker's, who is to be asked for it or one like it; or, where the port does not decide
    /// where replies arrive and that is here, any that is free. `can` says which tuples may be asked for.
    pub fn borrow(&mut self, wish: &Wish, steer: &Steer, can: impl Fn(&Tuple) -> bool) -> Option<Tuple> {
        let reply = &wish.reply;
        if steer.is_alone() || !reply.is_icmp() && !reply.has_ports() {
            return None;
        }
        if !reply.is_spread_by_ports() && steer.is_home(reply) {
            return self.choose(&Wish { keep: false, anyones: true, ..*wish }, steer, |t| !can(t));
        }
        let (low, high) = wish.range();
        if low > high {
            return None;
        }
        let start = within(self.random.next(), low, high);
        let next = |n: u32| u16::try_from(u32::from(start - low).wrapping_add(n) % (u32::from(high - low) + 1));
        let candidates = (0..MAX_TRIES).filter_map(|n| Some(with(reply, low + next(n).ok()?)));
        candidates.into_iter().find(|t| !steer.is_home(t) && can(t))
    }

    /// Whether [`Ports::freed`] has anything to do.
    #[inline]
    pub fn has_crowds(&self) -> bool {
        !self.crowds.is_empty()
    }

    /// Tuple `t` is not taken any more.
    #[inline]
    pub fn freed(&mut self, t: &Tuple) {
        if self.has_crowds() && (t.has_ports() || t.is_icmp()) {
            for anyones in [0, 1] {
                self.crowds.allow(&with(t, anyones), t.id());
            }
        }
    }

    /// A number that an outsider cannot predict.
    pub fn draw(&mut self) -> u32 {
        self.random.next()
    }
}

/// The port that a helper announces in place of `port`, which is kept where `free` says so. The announced connection may
/// come from any source port, so no port brings it home; others than the client's own are taken from this worker's share, from
/// a `random` place on, as identifiers are. `linux/net/netfilter/nf_nat_helper.c`, `nf_nat_exp_find_port`, takes them from
/// 1024 on.
pub fn choose_announced(port: u16, steer: &Steer, random: u32, free: impl Fn(u16) -> bool) -> Option<u16> {
    if free(port) {
        return Some(port);
    }
    let (low, high) = class(u16::MAX);
    let start = within(random, low, high);
    let candidates = (start..=high).chain(low..start).take(MAX_STEPS as usize);
    candidates.filter(|&p| steer.owns_id(p)).take(MAX_TRIES as usize).find(|&p| free(p))
}

/// One of `low..=high` by a random number. The range is at most 2^16 long, so the bias is below 2^-16.
fn within(random: u32, low: u16, high: u16) -> u16 {
    let size = u64::from(high.saturating_sub(low)) + 1;
    let offset = (u64::from(random) * size) >> 32;
    low.saturating_add(u16::try_from(offset).unwrap_or(u16::MAX))
}

/// The same tuple with another id.
const fn with(reply: &Tuple, id: u16) -> Tuple {
    if reply.is_icmp() { Tuple { sport: id, ..*reply } } else { Tuple { dport: id, ..*reply } }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::tuple::proto;

    fn ports(seed: u64) -> Ports {
        Ports::new([seed, 2, 3, 4], ahash::RandomState::with_seeds(1, 2, 3, 4))
    }

    fn keeping(reply: Tuple) -> Wish {
        Wish { reply, range: None, keep: true, anyones: false }
    }

    fn reply(port: u16) -> Tuple {
        reply_of(proto::UDP, port)
    }

    fn reply_of(proto: u8, port: u16) -> Tuple {
        Tuple {
            src: Ipv4Addr::new(192, 0, 2, 1).into(),
            dst: Ipv4Addr::new(198, 51, 100, 1).into(),
            proto,
            sport: 53,
            dport: port,
            ct_zone: 0,
        }
    }

    proptest! {
        #[test]
        fn the_choice_is_free_of_its_class_and_comes_home(
            port in any::<u16>(), used in proptest::collection::btree_set(any::<u16>(), 0..2000), workers in 1u16..=8, me in 0u16..8, seed in any::<u64>(),
        ) {
            let steer = Steer::new(me % workers, workers);
            if let Some(t) = ports(seed).choose(&keeping(reply(port)), &steer, |t| used.contains(&t.dport)) {
                prop_assert!(!used.contains(&t.dport));
                prop_assert!(steer.is_home(&t));
                prop_assert!(t.dport == port || (class(port).0..=class(port).1).contains(&t.dport));
            }
        }
    }

    #[test]
    fn the_original_port_is_kept_where_it_is_free() {
        let steer = Steer::new(0, 1);
        for proto in [proto::UDP, proto::UDPLITE, proto::SCTP] {
            for port in [0, 1, 511, 512, 1023, 1024, u16::MAX - 1, u16::MAX] {
                let t = ports(7).choose(&keeping(reply_of(proto, port)), &steer, |_| false).expect("all are free");
                assert_eq!(t.dport, port);
            }
        }
    }

    #[test]
    fn announced_ports_are_kept_where_free_and_others_shared_out_among_the_workers() {
        let alone = Steer::new(0, 1);
        for port in [1, 21, 1023, 1024, u16::MAX] {
            for steer in [&alone, &Steer::new(1, 4)] {
                assert_eq!(choose_announced(port, steer, 7, |_| true), Some(port));
            }
        }
        let other = choose_announced(5001, &alone, 7 << 20, |p| p != 5001).expect("a port is free");
        assert!(other != 5001 && other >= 1024);
        assert_eq!(choose_announced(5001, &alone, 7, |_| false), None);
        let mut all = BTreeSet::new();
        for me in 0..4 {
            let steer = Steer::new(me, 4);
            let mut mine = BTreeSet::new();
            for n in 0..500 {
                let free = |p| p != 21 && !mine.contains(&p);
                let port = choose_announced(21, &steer, n * 8_000_000, free);
                mine.insert(port.expect("a port is free"));
            }
            all.extend(mine);
        }
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn workers_never_choose_the_same_port() {
        for proto in [proto::UDP, proto::UDPLITE, proto::SCTP] {
            let mut seen = BTreeSet::new();
            for me in 0..4 {
                let steer = Steer::new(me, 4);
                let mut ports = ports(u64::from(me) + 1);
                let mut mine = BTreeSet::new();
                for _ in 0..2000 {
                    let wanted = reply_of(proto, 5000);
                    let t =
                        ports.choose(&keeping(wanted), &steer, |t| mine.contains(&t.dport)).expect("a port is free");
                    assert!(mine.insert(t.dport));
                    assert!(seen.insert(t.dport), "port {} chosen twice", t.dport);
                }
            }
        }
    }

    #[test]
    fn ports_that_rss_does_not_hash_stay_in_their_class_and_with_their_worker() {
        for (port, range) in [(53, 1..=511), (600, 600..=1023), (5000, 1024..=u16::MAX)] {
            for me in 0..3 {
                let steer = Steer::new(me, 3);
                let wanted = reply_of(proto::SCTP, port);
                let t = ports(9).choose(&keeping(wanted), &steer, |t| t.dport == port).expect("a port is free");
                assert!(range.contains(&t.dport) && steer.owns_id(t.dport), "{port} became {}", t.dport);
            }
        }
    }

    #[test]
    fn a_portless_protocol_has_one_connection_for_each_pair_of_addresses() {
        let steer = Steer::new(0, 2);
        let wanted = reply_of(proto::GRE, 0);
        assert_eq!(ports(1).choose(&keeping(wanted), &steer, |_| false), Some(wanted));
        assert_eq!(ports(1).choose(&keeping(wanted), &steer, |_| true), None);
    }

    #[test]
    fn a_full_address_is_given_up_in_bounded_tries() {
        for proto in [proto::UDP, proto::SCTP, proto::ICMP] {
            let tries = std::cell::Cell::new(0u32);
            let steer = Steer::new(0, 1);
            let none = ports(1).choose(&keeping(reply_of(proto, 5000)), &steer, |_| {
                tries.set(tries.get() + 1);
                true
            });
            assert_eq!(none, None);
            assert!(tries.get() <= MAX_TRIES + AT_RANDOM + 1);
        }
    }

    /// An address is filled up towards one destination, and given back: every port serves, and finding one costs as much
    /// at the end as at the beginning.
    #[test]
    fn the_last_port_costs_what_the_first_one_costs() {
        for (proto, workers, range) in [
            (proto::UDP, 1, None),
            (proto::UDP, 3, None),
            (proto::SCTP, 2, None),
            (proto::TCP, 2, Some((20_000, 29_999))),
            (proto::TCP, 1, Some((5000, 5015))),
        ] {
            let steer = Steer::new(0, workers);
            let reply = reply_of(proto, 5000);
            let (low, high) = range.unwrap_or((1024, u16::MAX));
            let ours = (low..=high).filter(|&p| keeping(reply).allows(p, &steer)).count();
            let mut ports = ports(11);
            let mut used = BTreeSet::new();
            let tries = std::cell::Cell::new(0);
            let mut last_percent = 0;
            for n in 0..ours {
                let before = tries.get();
                let wish = Wish { reply, range, keep: false, anyones: false };
                let t = ports.choose(&wish, &steer, |t| {
                    tries.set(tries.get() + 1);
                    used.contains(&t.dport)
                });
                assert!(used.insert(t.unwrap_or_else(|| panic!("{n} of {ours} are used")).dport));
                assert!(tries.get() - before <= MAX_TRIES + AT_RANDOM);
                if n >= ours - ours / 100 {
                    last_percent += tries.get() - before;
                }
            }
            assert!(used.iter().all(|p| (low..=high).contains(p)));
            // Each port that is taken is found out once.
            let few = u32::try_from(ours / 100).expect("few") * 8;
            assert!(last_percent <= few, "{last_percent} tries for the last {} ports", ours / 100);
            let wish = Wish { reply, range, keep: true, anyones: false };
            assert_eq!(ports.choose(&wish, &steer, |t| used.contains(&t.dport)), None);
            let back: Vec<u16> = used.iter().copied().step_by(97).collect();
            for &port in &back {
                used.remove(&port);
                ports.freed(&with(&reply, port));
            }
            // At 99 % one goes and one comes.
            let before = tries.get();
            for (n, &port) in back.iter().enumerate() {
                let t = ports.choose(&Wish { keep: false, ..wish }, &steer, |t| {
                    tries.set(tries.get() + 1);
                    used.contains(&t.dport)
                });
                used.insert(t.expect("one is free").dport);
                let gone = (port..=high).chain(low..port).find(|p| used.contains(p) && n % 2 == 0).unwrap_or(port);
                if used.remove(&gone) {
                    ports.freed(&with(&reply, gone));
                }
            }
            assert!(tries.get() - before <= 3 * u32::try_from(back.len()).expect("few") + MAX_TRIES);
            while let Some(t) = ports.choose(&wish, &steer, |t| used.contains(&t.dport)) {
                assert!(used.insert(t.dport));
            }
            assert_eq!(used.len(), ours, "all serve again");
            assert_eq!(ports.choose(&wish, &steer, |t| used.contains(&t.dport)), None);
        }
    }

    #[test]
    fn a_port_outside_the_range_is_not_kept() {
        let steer = Steer::new(0, 1);
        for (range, kept) in [((4000, 6000), true), ((6000, 7000), false), ((5000, 5000), true), ((80, 80), false)] {
            let wish = Wish { reply: reply(5000), range: Some(range), keep: true, anyones: false };
            let t = ports(3).choose(&wish, &steer, |_| false).expect("all are free");
            assert_eq!(t.dport == 5000, kept);
            assert!((range.0..=range.1).contains(&t.dport));
        }
    }

    /// What is chosen looks like nothing in particular: all of the range, each about as often, and not in order.
    #[test]
    fn ports_are_drawn_evenly() {
        let steer = Steer::new(0, 1);
        let mut ports = ports(5);
        let mut sixteenths = [0_u32; 16];
        let mut ascending = 0;
        let mut last = 0;
        for _ in 0..16_000 {
            let wish = Wish { reply: reply(5000), range: None, keep: false, anyones: false };
            let port = ports.choose(&wish, &steer, |_| false).expect("all are free").dport;
            sixteenths[usize::from(port - 1024) * 16 / 64_512] += 1;
            ascending += u32::from(port > last);
            last = port;
        }
        assert!(sixteenths.iter().all(|n| (800..1200).contains(n)), "{sixteenths:?}");
        assert!((7500..8500).contains(&ascending), "{ascending}");
    }
}
