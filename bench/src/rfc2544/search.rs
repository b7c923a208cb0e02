//! The highest rate without loss, by halving: RFC 2544 section 26.1, with what a trial finds out as an argument.
//!
//! *Limits*: a search ends at a rate of [`LOWEST`] or when what is left is small enough, so after a few dozen trials.

/// Rates below this are not looked for, frames per second.
pub const LOWEST: u64 = 1000;

/// What counts as the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Largest distance between a rate that passed and one that did not, as a part of the latter, above 0.
    pub resolution: f64,
    /// Largest part of the frames that may be lost; 0 for RFC 2544.
    pub tolerance: f64,
    /// How often a rate that did not pass gets another try; 0 for RFC 2544.
    pub retries: u32,
}

/// What a trial found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Frames that were to be sent by the rate that was asked for.
    pub wanted: u64,
    /// Frames that the generator came to offer; fewer where it was late.
    pub offered: u64,
    /// Frames that came out of the gateway.
    pub received: u64,
    /// How long was sent, nanoseconds.
    pub elapsed: u64,
}

impl Tally {
    /// Frames lost.
    pub const fn lost(&self) -> u64 {
        self.offered.saturating_sub(self.received)
    }

    /// Part of the offered frames that was lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        self.lost() as f64 / self.offered.max(1) as f64
    }

    /// Frames per second that were offered.
    pub fn rate(&self) -> u64 {
        let rate = u128::from(self.offered) * 1_000_000_000 / u128::from(self.elapsed.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// Whether the generator kept the rate that was asked for, to a hundredth.
    pub const fn on_time(&self) -> bool {
        self.offered.saturating_add(self.wanted / 100) >= self.wanted
    }
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The highest rate that passed, frames per second; 0 where none did.
    pub rate: u64,
    /// Whether the generator could not offer more, so that the gateway's own limit was not seen.
    pub generator: bool,
}

/// Searches from as fast as the generator can (`None`) down. `trial` sends at a rate of frames per second.
///
/// # Errors
/// Those of `trial`.
pub fn throughput<E>(terms: Terms, mut trial: impl FnMut(Option<u64>) -> Result<Tally, E>) -> Result<Found, E> {
    let good = |t: &Tally| t.on_time() && t.loss() <= terms.tolerance && t.received > 0;
    let flat_out = trial(None)?;
    let (mut passed, mut failed) = (0, flat_out.rate());
    // It is late by nature.
    if flat_out.received > 0 && flat_out.loss() <= terms.tolerance {
        return Ok(Found { rate: failed, generator: true });
    }
    let mut generator = false;
    while (failed - passed) as f64 > terms.resolution * failed as f64 {
        let rate = passed + (failed - passed) / 2;
        if rate < LOWEST {
            break;
        }
        let mut tally = trial(Some(rate))?;
        for _ in 0..terms.retries {
            if !good(&tally) {
                tally = trial(Some(rate))?;
            }
        }
        if good(&tally) {
            passed = rate;
        } else {
            failed = rate;
            generator = !tally.on_time() && tally.loss() <= terms.tolerance;
        }
    }
    Ok(Found { rate: passed, generator })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const TERMS: Terms = Terms { resolution: 0.01, tolerance: 0.0, retries: 0 };

    /// A second of a gateway that forwards `most` frames, and of a generator that makes at most `fastest`.
    fn gateway(most: u64, fastest: u64, rate: Option<u64>) -> Tally {
        let wanted = rate.unwrap_or(fastest);
        let offered = wanted.min(fastest);
        Tally { wanted, offered, received: offered.min(most), elapsed: 1_000_000_000 }
    }

    fn search(terms: Terms, mut trial: impl FnMut(Option<u64>) -> Tally) -> (Found, u32) {
        let mut trials = 0;
        let counted = |rate| {
            trials += 1;
            Ok::<_, Infallible>(trial(rate))
        };
        let found = throughput(terms, counted).unwrap_or_else(|e| match e {});
        (found, trials)
    }

    #[test]
    fn the_rate_found_is_below_the_limit_by_the_resolution_at_most() {
        for most in [2_000, 12_345, 999_999, 7_654_321, 9_999_999] {
            for resolution in [0.2, 0.01, 0.001] {
                let (found, trials) = search(Terms { resolution, ..TERMS }, |r| gateway(most, 10_000_000, r));
                assert!(found.rate <= most, "{found:?} of {most}");
                assert!((most - found.rate) as f64 <= resolution * most as f64 * 1.01, "{found:?} of {most}");
                assert!(!found.generator && trials < 40, "{trials} trials");
            }
        }
    }

    #[test]
    fn a_gateway_that_keeps_up_with_the_generator_takes_one_trial() {
        let (found, trials) = search(TERMS, |r| gateway(20_000_000, 10_000_000, r));
        assert_eq!((found, trials), (Found { rate: 10_000_000, generator: true }, 1));
    }

    #[test]
    fn a_gateway_that_forwards_nothing_ends_the_search() {
        let (found, trials) = search(TERMS, |r| gateway(0, 10_000_000, r));
        assert_eq!(found, Found { rate: 0, generator: false });
        assert!(trials < 20, "{trials} trials");
    }

    #[test]
    fn a_loss_that_is_tolerated_passes_and_one_that_is_not_does_not() {
        // One frame in a thousand is lost at any rate.
        let leaky = |r: Option<u64>| {
            let t = gateway(5_000_000, 10_000_000, r);
            Tally { received: t.received.min(t.offered - t.offered / 1000), ..t }
        };
        assert_eq!(search(TERMS, leaky).0.rate, 0);
        let (found, _) = search(Terms { tolerance: 0.001, ..TERMS }, leaky);
        assert!((4_950_000..=5_005_006).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn a_rate_gets_as_many_tries_as_are_allowed() {
        // Every second trial is disturbed.
        let mut trial = 0;
        let mut disturbed = |r: Option<u64>| {
            trial += 1;
            let t = gateway(5_000_000, 10_000_000, r);
            if trial % 2 == 0 { Tally { received: 0, ..t } } else { t }
        };
        let (found, _) = search(Terms { retries: 1, ..TERMS }, &mut disturbed);
        assert!((4_950_000..=5_000_000).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn a_generator_that_is_late_below_its_flat_out_rate_is_blamed() {
        // Paced, it makes 4 million; the gateway would forward 9.
        let paced = |r: Option<u64>| gateway(9_000_000, if r.is_none() { 10_000_000 } else { 4_000_000 }, r);
        let (found, _) = search(TERMS, paced);
        assert!(found.generator && found.rate <= 4_040_404, "{found:?}");
    }
}
