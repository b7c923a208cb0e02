//! The alarm of the connection table: at 75 %, at 90 % and full, by the worker that is worst off.
//!
//! *Life-cycle*: [`watch`] runs for as long as the gateway; the metric asks [`levels`] when it is scraped.
//! *Threads*: control's tokio thread. *Limits*: a line for each level reached and for each left, at most one a minute of
//! each; a table that stays full and goes on refusing says so once a minute.

use std::sync::Arc;
use std::time::Duration;

use dataplane::api::DropReason;

use crate::gateway::Gateway;

/// The levels by their names in the metric.
pub const LEVELS: [&str; 3] = ["75", "90", "full"];

/// Index of `full` in [`LEVELS`].
const FULL: usize = 2;

/// How often the table is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How soon the same is said again.
const AGAIN: Duration = Duration::from_secs(60);

/// Which levels a worker has reached with `entries` of its share of `limit`, of which `reserve` are kept for the
/// gateway's own connections. Full is where others find no room, and is above the rest however large the reserve.
fn reached(entries: u64, limit: u64, reserve: u64) -> [bool; LEVELS.len()] {
    let full = entries >= limit.saturating_sub(reserve);
    let above = |percent: u64| full || entries.saturating_mul(100) >= limit.saturating_mul(percent);
    [above(75), above(90), full]
}

/// Which of [`LEVELS`] some worker has reached.
pub fn levels(g: &Gateway) -> [bool; LEVELS.len()] {
    let (limit, reserve) = shares(g);
    let all = g.workers.stats().map(|s| reached(s.conntrack_entries.value(), limit, reserve));
    all.fold([false; LEVELS.len()], |mut any, one| {
        any.iter_mut().zip(one).for_each(|(any, one)| *any |= one);
        any
    })
}

/// A worker's share of the limit and of the reserve, which is at most half of it, as the workers reckon.
fn shares(g: &Gateway) -> (u64, u64) {
    let limit = g.workers.limit_per_worker();
    let reserve = g.config().policy.conntrack.reserve.div_ceil(g.workers.len().max(1)).min(limit / 2);
    (limit as u64, reserve as u64)
}

/// What has been said.
#[derive(Debug, Default)]
struct Alarm {
    /// Whether each level was last said to be reached.
    said: [bool; LEVELS.len()],
    /// When it was last said that each was left, and that it was reached.
    at: [[Option<Duration>; 2]; LEVELS.len()],
    /// Refused connections when that was last said.
    refused: u64,
}

/// Something to say of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    /// It is reached; connections refused since the last such line.
    Reached(u64),
    /// It is left.
    Left,
}

impl Alarm {
    /// What is to be said at `now` (since an arbitrary start) of the levels as they are, where `refused` connections were
    /// refused since start.
    fn step(&mut self, now: Duration, levels: [bool; LEVELS.len()], refused: u64) -> Vec<(usize, Say)> {
        let mut lines = Vec::new();
        for (level, is) in levels.into_iter().enumerate() {
            let still_refusing = level == FULL && is && refused > self.refused;
            let last = &mut self.at[level][usize::from(is)];
            let due = last.is_none_or(|last| now.saturating_sub(last) >= AGAIN);
            if (is != self.said[level] || still_refusing) && due {
                *last = Some(now);
                self.said[level] = is;
                let since = refused.saturating_sub(self.refused);
                if level == FULL && is {
                    self.refused = refused;
                }
                lines.push((level, if is { Say::Reached(since) } else { Say::Left }));
            }
        }
        lines
    }
}

/// Says when a level is reached and when it is left, for as long as the gateway runs.
pub async fn watch(g: Arc<Gateway>) {
    let mut alarm = Alarm::default();
    let begin = tokio::time::Instant::now();
    let refusals = || g.workers.stats().map(|s| s.drops[DropReason::ConntrackFull as usize].value()).sum::<u64>();
    let mut before = 0;
    loop {
        let refused = refusals();
        let mut now = levels(&g);
        // A table that refuses is full, whatever it counts.
        if refused > before {
            now = [true; LEVELS.len()];
        }
        before = refused;
        for (level, say) in alarm.step(begin.elapsed(), now, refused) {
            report(&g, level, say);
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn report(g: &Gateway, level: usize, say: Say) {
    let (limit, reserve) = shares(g);
    let worst = g.workers.stats().map(|s| s.conntrack_entries.value()).enumerate().max_by_key(|(_, n)| *n);
    let (worker, entries) = worst.unwrap_or_default();
    let name = LEVELS[level];
    match say {
        Say::Reached(refused) if level == FULL => tracing::warn!(
            target: "sluice::conntrack", worker, entries, limit, reserve, refused,
            "the connection table is full (conntrack.max): connections that nobody answered make room, others are refused"
        ),
        Say::Reached(_) => tracing::warn!(
            target: "sluice::conntrack", worker, entries, limit,
            "the connection table is {name} % full (conntrack.max)"
        ),
        Say::Left if level == FULL => tracing::info!(
            target: "sluice::conntrack", worker, entries, limit, "the connection table is no longer full"
        ),
        Say::Left => tracing::info!(
            target: "sluice::conntrack", worker, entries, limit, "the connection table is below {name} % again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [bool; 3] = [false; 3];
    const ALL: [bool; 3] = [true; 3];

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn levels_are_shares_of_the_limit_and_the_last_is_before_the_reserve() {
        assert_eq!(reached(749, 1000, 10), NONE);
        assert_eq!(reached(750, 1000, 10), [true, false, false]);
        assert_eq!(reached(899, 1000, 10), [true, false, false]);
        assert_eq!(reached(900, 1000, 10), [true, true, false]);
        assert_eq!(reached(989, 1000, 10), [true, true, false]);
        assert_eq!(reached(990, 1000, 10), ALL);
        assert_eq!(reached(1000, 1000, 0), ALL);
        assert_eq!(reached(500, 1000, 500), ALL, "full for all but the gateway itself");
        assert_eq!(reached(u64::MAX, u64::MAX, 0), ALL);
    }

    #[test]
    fn each_level_is_said_once_when_reached_and_once_when_left() {
        let mut alarm = Alarm::default();
        assert_eq!(alarm.step(at(0), NONE, 0), []);
        assert_eq!(alarm.step(at(1), [true, false, false], 0), [(0, Say::Reached(0))]);
        assert_eq!(alarm.step(at(2), [true, false, false], 0), []);
        assert_eq!(alarm.step(at(3), ALL, 5), [(1, Say::Reached(5)), (2, Say::Reached(5))]);
        assert_eq!(alarm.step(at(4), NONE, 5), [(0, Say::Left), (1, Say::Left), (2, Say::Left)]);
        assert_eq!(alarm.step(at(5), NONE, 5), []);
    }

    #[test]
    fn a_level_that_comes_and_goes_is_said_once_a_minute() {
        let mut alarm = Alarm::default();
        let mut lines = Vec::new();
        for second in 0..180 {
            lines.extend(alarm.step(at(second), [second % 2 == 0, false, false], 0).iter().map(|_| second));
        }
        assert_eq!(lines, [0, 1, 60, 61, 120, 121]);
    }

    #[test]
    fn what_was_not_said_in_time_is_said_when_it_still_holds() {
        let mut alarm = Alarm::default();
        assert_eq!(alarm.step(at(0), [true, false, false], 0).len(), 1);
        assert_eq!(alarm.step(at(1), NONE, 0).len(), 1);
        assert_eq!(alarm.step(at(2), [true, false, false], 0), []);
        assert_eq!(alarm.step(at(60), [true, false, false], 0), [(0, Say::Reached(0))]);
    }

    #[test]
    fn a_table_that_stays_full_says_what_it_refuses_once_a_minute() {
        let mut alarm = Alarm::default();
        let full = |lines: Vec<(usize, Say)>| lines.into_iter().find(|(level, _)| *level == FULL).map(|(_, say)| say);
        assert_eq!(full(alarm.step(at(0), ALL, 10)), Some(Say::Reached(10)));
        assert_eq!(full(alarm.step(at(30), ALL, 100)), None);
        assert_eq!(full(alarm.step(at(60), ALL, 150)), Some(Say::Reached(140)));
        assert_eq!(full(alarm.step(at(120), ALL, 150)), None, "nothing more was refused");
        assert_eq!(full(alarm.step(at(130), NONE, 150)), Some(Say::Left));
    }
}
