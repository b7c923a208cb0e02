//! How often the kernel is asked about one neighbour: a worker asks with every burst that waits.
//!
//! *Limits*: at most `MAX_ASKED` addresses are remembered; beyond that the oldest half is forgotten, so a scan of a
//! large subnet costs memory for no more than that.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::workers::ResolveRequest;

/// The kernel itself asks once per second and thrice (`retrans_time`, `mcast_solicit`), so more often is no use.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Addresses remembered.
const MAX_ASKED: usize = 8192;

/// Who was asked for and when.
#[derive(Debug, Default)]
pub struct Asked(HashMap<ResolveRequest, Instant>);

impl Asked {
    /// Whether the kernel should be asked for `r` at `now`; remembers that it was.
    pub fn may_ask(&mut self, r: ResolveRequest, now: Instant) -> bool {
        if self.0.get(&r).is_some_and(|&at| now.duration_since(at) < AGAIN_AFTER) {
            return false;
        }
        if self.0.len() >= MAX_ASKED {
            let mut times: Vec<Instant> = self.0.values().copied().collect();
            let (_, &mut median, _) = times.select_nth_unstable(MAX_ASKED / 2);
            self.0.retain(|_, at| *at > median);
        }
        self.0.insert(r, now);
        true
    }

    /// The kernel has settled the question; answers whether anyone had asked it.
    pub fn settled(&mut self, r: ResolveRequest) -> bool {
        self.0.remove(&r).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ask(n: u32) -> ResolveRequest {
        ResolveRequest { interface: 0, address: Ipv4Addr::from_bits(n).into() }
    }

    #[test]
    fn one_address_is_asked_for_once_per_second() {
        let (mut a, t) = (Asked::default(), Instant::now());
        assert!(a.may_ask(ask(1), t));
        assert!(!a.may_ask(ask(1), t + AGAIN_AFTER - Duration::from_nanos(1)));
        assert!(a.may_ask(ask(2), t));
        assert!(a.may_ask(ask(1), t + AGAIN_AFTER));
        assert!(a.settled(ask(1)) && !a.settled(ask(1)));
    }

    #[test]
    fn a_scan_does_not_grow_it_without_bound() {
        let (mut a, t) = (Asked::default(), Instant::now());
        for n in 0..5 * MAX_ASKED {
            a.may_ask(
                ask(u32::try_from(n).expect("small")),
                t + Duration::from_nanos(u64::try_from(n).expect("small")),
            );
        }
        assert!(a.0.len() <= MAX_ASKED);
    }
}
