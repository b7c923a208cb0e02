//! Choice of a source port (or query identifier): free, of the right class, and bringing replies home.
//!
//! A port is leased by the reply tuple that carries it: the tuple is in the owner's table, or its signpost at its home,
//! and nobody else can have it. The choice only takes tuples whose home is this worker, so asking its own tables is
//! enough: the hash partitions the port space among workers without a shared pool. Identifiers, and ports that RSS does
//! not hash (UDP-Lite, SCTP), do not decide where replies arrive: they are shared out among the workers instead.
//! *Limits*: [`MAX_TRIES`] ports are looked at, however full the address is.
//! *Sources*: RFC 4787 REQ-3 and REQ-4, RFC 6056 section 3.3.1; `linux/net/netfilter/nf_nat_core.c`
//! (`nf_nat_l4proto_unique_tuple`) for the classes.

use crate::conntrack::tuple::Tuple;
use crate::steer::Steer;

/// Ports looked at before the choice fails.
pub const MAX_TRIES: u32 = 128;

/// Arithmetic steps spent on finding ports that come home, where the range is too narrow to compute them.
const MAX_STEPS: u32 = 2048;

/// The ports that may stand in for `port`: those of its class.
const fn class(port: u16) -> (u16, u16) {
    match port {
        0..=511 => (1, 511),
        512..=1023 => (600, 1023),
        _ => (1024, u16::MAX),
    }
}

/// A cheap source of numbers that an outsider cannot predict: xorshift64*, seeded at start.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeds it; zero would be a fixed point.
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// Chooses the id at which replies arrive: the reply's destination port, or an ICMP query's identifier.
///
/// `reply` is the reply tuple with the wanted id in place. It is kept where `taken` does not say otherwise and replies
/// come home. `None` where nothing was found within the bounds.
pub fn choose(reply: &Tuple, steer: &Steer, random: &mut Random, taken: impl Fn(&Tuple) -> bool) -> Option<Tuple> {
    if reply.is_icmp() {
        let ids = Ids { wanted: reply.sport, low: 0, high: u16::MAX };
        return ids.choose(|id| Tuple { sport: id, ..*reply }, steer, random, taken);
    }
    if !reply.has_ports() {
        return (!taken(reply)).then_some(*reply); // nothing to choose: a signpost will bring replies here
    }
    let with = |port| Tuple { dport: port, ..*reply };
    let (low, high) = class(reply.dport);
    if !reply.is_spread_by_ports() {
        return Ids { wanted: reply.dport, low, high }.choose(with, steer, random, taken);
    }
    let good = |t: &Tuple| steer.is_home(t) && !taken(t);
    if good(reply) {
        return Some(*reply);
    }
    if low >= 1024 {
        // The class is nearly the whole space: a port that comes home can be computed.
        return (0..MAX_TRIES)
            .map(|_| steer.port_home(reply, random.next()))
            .filter(|&p| p >= low)
            .map(with)
            .find(|t| !taken(t));
    }
    let size = u32::from(high - low) + 1;
    let start = random.next() % size;
    let mut tries = 0;
    for step in 0..size.min(MAX_STEPS) {
        // Invariant: low + anything below size is at most high.
        let t = with(u16::try_from(u32::from(low) + (start + step) % size).unwrap_or(high));
        if steer.is_home(&t) {
            if !taken(&t) {
                return Some(t);
            }
            tries += 1;
            if tries == MAX_TRIES {
                return None;
            }
        }
    }
    None
}

/// The port that a helper announces in place of `port`, which is kept where `free` says so. The announced connection may
/// come from any source port, so no port brings it home; others than the client's own are taken from this worker's share,
/// as identifiers are. `linux/net/netfilter/nf_nat_helper.c`, `nf_nat_exp_find_port`, takes them from 1024 on.
pub fn choose_announced(port: u16, steer: &Steer, random: &mut Random, free: impl Fn(u16) -> bool) -> Option<u16> {
    if free(port) {
        return Some(port);
    }
    let (low, high) = class(u16::MAX);
    let size = u32::from(high - low) + 1;
    let start = random.next() % size;
    // Invariant: low + anything below size is at most high.
    let candidates = (0..MAX_STEPS).map(|n| u16::try_from(u32::from(low) + (start + n) % size).unwrap_or(high));
    candidates.filter(|&p| steer.owns_id(p)).take(MAX_TRIES as usize).find(|&p| free(p))
}

/// Identifiers, or ports, that RSS does not hash: each belongs to one of the workers.
#[derive(Clone, Copy, Debug)]
struct Ids {
    wanted: u16,
    low: u16,
    high: u16,
}

impl Ids {
    /// The wanted one, or another of ours in the range.
    fn choose(
        self,
        with: impl Fn(u16) -> Tuple,
        steer: &Steer,
        random: &mut Random,
        taken: impl Fn(&Tuple) -> bool,
    ) -> Option<Tuple> {
        let good = |id: u16| Some(with(id)).filter(|t| !taken(t));
        if steer.owns_id(self.wanted)
            && let Some(t) = good(self.wanted)
        {
            return Some(t);
        }
        let size = u32::from(self.high - self.low) + 1;
        let start = random.next() % size;
        let mut tries = 0;
        for step in 0..size.min(MAX_STEPS) {
            // Invariant: low + anything below size is at most high.
            let id = u16::try_from(u32::from(self.low) + (start + step) % size).unwrap_or(self.high);
            if steer.owns_id(id) {
                if let Some(t) = good(id) {
                    return Some(t);
                }
                tries += 1;
                if tries == MAX_TRIES {
                    return None;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::tuple::proto;

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
            let mut random = Random::new(seed);
            if let Some(t) = choose(&reply(port), &steer, &mut random, |t| used.contains(&t.dport)) {
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
                let t = choose(&reply_of(proto, port), &steer, &mut Random::new(7), |_| false).expect("all are free");
                assert_eq!(t.dport, port);
            }
        }
    }

    #[test]
    fn announced_ports_are_kept_where_free_and_others_shared_out_among_the_workers() {
        let alone = Steer::new(0, 1);
        for port in [1, 21, 1023, 1024, u16::MAX] {
            for steer in [&alone, &Steer::new(1, 4)] {
                assert_eq!(choose_announced(port, steer, &mut Random::new(7), |_| true), Some(port));
            }
        }
        let other = choose_announced(5001, &alone, &mut Random::new(7), |p| p != 5001).expect("a port is free");
        assert!(other != 5001 && other >= 1024);
        assert_eq!(choose_announced(5001, &alone, &mut Random::new(7), |_| false), None);
        let mut all = BTreeSet::new();
        for me in 0..4 {
            let steer = Steer::new(me, 4);
            let mut mine = BTreeSet::new();
            for n in 0..500 {
                let free = |p| p != 21 && !mine.contains(&p);
                let port = choose_announced(21, &steer, &mut Random::new(n), free);
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
                let mut random = Random::new(u64::from(me) + 1);
                let mut mine = BTreeSet::new();
                for _ in 0..2000 {
                    let wanted = reply_of(proto, 5000);
                    let t = choose(&wanted, &steer, &mut random, |t| mine.contains(&t.dport)).expect("a port is free");
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
                let mut random = Random::new(9);
                let wanted = reply_of(proto::SCTP, port);
                let t = choose(&wanted, &steer, &mut random, |t| t.dport == port).expect("a port is free");
                assert!(range.contains(&t.dport) && steer.owns_id(t.dport), "{port} became {}", t.dport);
            }
        }
    }

    #[test]
    fn a_portless_protocol_has_one_connection_for_each_pair_of_addresses() {
        let steer = Steer::new(0, 2);
        let wanted = reply_of(proto::GRE, 0);
        assert_eq!(choose(&wanted, &steer, &mut Random::new(1), |_| false), Some(wanted));
        assert_eq!(choose(&wanted, &steer, &mut Random::new(1), |_| true), None);
    }

    #[test]
    fn a_full_address_is_given_up_in_bounded_tries() {
        for proto in [proto::UDP, proto::SCTP, proto::ICMP] {
            let tries = std::cell::Cell::new(0u32);
            let steer = Steer::new(0, 1);
            let none = choose(&reply_of(proto, 5000), &steer, &mut Random::new(1), |_| {
                tries.set(tries.get() + 1);
                true
            });
            assert_eq!(none, None);
            assert!(tries.get() <= MAX_TRIES + 1);
        }
    }
}
