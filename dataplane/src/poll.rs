//! How a worker waits while nothing comes: what `dataplane.poll` chooses.
//!
//! *Life-cycle*: a [`BackOff`] per worker, made with its thread. *Threads*: the worker's. *Limits*: a sleep is [`LONGEST`] at
//! most, and the kernel's timer slack (50 µs unless the thread has a real-time policy) on top. Interrupts of a NIC's receive
//! queue, which would wake a worker without delay, are not used.

use std::time::Duration;

/// What a worker does in turns that find nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Adaptive where all ports are software; with a NIC, polls on and offers its CPU to others, without sleeping.
    #[default]
    Auto,
    /// Polls on, whatever else waits for the CPU.
    Busy,
    /// Backs off step by step, to short sleeps.
    Adaptive,
}

/// What to do before the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the next turn follows at once.
    Spin,
    /// Let the CPU take breath, and its sibling thread go on.
    Pause,
    /// Offer the CPU to other threads.
    Yield,
    /// Sleep so long.
    Sleep(Duration),
}

/// How far a worker has backed off.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    /// The last step that it takes.
    most: Step,
    /// Empty turns since the last that moved anything.
    idle: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Pause,
    Yield,
    Sleep,
}

impl BackOff {
    /// For a worker whose ports are all `software`, or not.
    pub const fn new(poll: Poll, software: bool) -> Self {
        let most = match (poll, software) {
            (Poll::Busy, _) => Step::Pause,
            (Poll::Auto, false) => Step::Yield,
            (Poll::Auto, true) | (Poll::Adaptive, _) => Step::Sleep,
        };
        Self { most, idle: 0 }
    }

    /// A turn has moved something.
    #[inline]
    pub const fn moved(&mut self) {
        self.idle = 0;
    }

    /// A turn has found nothing: what to do before the next one.
    #[inline]
    pub fn rest(&mut self) -> Rest {
        let idle = self.idle;
        self.idle = idle.saturating_add(1);
        if idle < SPIN_TURNS {
            Rest::Spin
        } else if idle < PAUSE_TURNS || self.most == Step::Pause {
            Rest::Pause
        } else if idle < YIELD_TURNS || self.most == Step::Yield {
            Rest::Yield
        } else {
            let doubled = (idle - YIELD_TURNS) / NAPS;
            Rest::Sleep(FIRST.saturating_mul(1 << doubled.min(8)).min(LONGEST))
        }
    }
}

/// Empty turns without as much as a pause: the gaps between bursts under load.
const SPIN_TURNS: u32 = 16;

/// Empty turns before the CPU is offered to others.
const PAUSE_TURNS: u32 = 1_000;

/// Empty turns before the first sleep: some milliseconds.
const YIELD_TURNS: u32 = 20_000;

/// The first sleep.
const FIRST: Duration = Duration::from_micros(5);

/// Sleeps of each length.
const NAPS: u32 = 16;

/// The longest sleep. A software port's sender waits; a NIC's 1,024 descriptors fill in 69 µs at 10 Gbit/s line rate, so a
/// burst that ends a long silence may lose frames: hence not by default.
pub const LONGEST: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// What so many empty turns have it do.
    fn rests(poll: Poll, software: bool, turns: u32) -> Vec<Rest> {
        let mut back_off = BackOff::new(poll, software);
        (0..turns).map(|_| back_off.rest()).collect()
    }

    #[test]
    fn a_busy_worker_never_gives_its_cpu_away() {
        for software in [false, true] {
            let rests = rests(Poll::Busy, software, 3 * YIELD_TURNS);
            assert!(rests.iter().all(|r| matches!(r, Rest::Spin | Rest::Pause)));
        }
    }

    #[test]
    fn with_a_nic_a_worker_yields_but_does_not_sleep_unless_told_to() {
        let rests_of = |poll| rests(poll, false, 3 * YIELD_TURNS);
        let auto = rests_of(Poll::Auto);
        assert!(auto.contains(&Rest::Yield) && !auto.iter().any(|r| matches!(r, Rest::Sleep(_))));
        assert!(rests_of(Poll::Adaptive).contains(&Rest::Sleep(LONGEST)));
    }

    #[test]
    fn an_adaptive_worker_backs_off_in_steps_up_to_the_bound() {
        let all = rests(Poll::Adaptive, true, 2 * YIELD_TURNS);
        let mut steps = all.clone();
        steps.dedup();
        let naps = [5, 10, 20, 40, 50].map(|us| Rest::Sleep(Duration::from_micros(us)));
        assert_eq!(steps[..3], [Rest::Spin, Rest::Pause, Rest::Yield]);
        assert_eq!(steps[3..], naps);
        assert_eq!(all, rests(Poll::Auto, true, 2 * YIELD_TURNS), "that is what software ports get");
    }

    #[test]
    fn what_moves_brings_it_back_to_the_first_step() {
        let mut back_off = BackOff::new(Poll::Adaptive, true);
        (0..2 * YIELD_TURNS).for_each(|_| assert_ne!(back_off.rest(), Rest::Sleep(Duration::ZERO)));
        assert_eq!(back_off.rest(), Rest::Sleep(LONGEST));
        back_off.moved();
        assert_eq!(back_off.rest(), Rest::Spin);
    }

    #[test]
    fn a_worker_that_is_idle_for_ever_sleeps_on() {
        let mut back_off = BackOff { idle: u32::MAX - 1, ..BackOff::new(Poll::Adaptive, true) };
        for _ in 0..4 {
            assert_eq!(back_off.rest(), Rest::Sleep(LONGEST));
        }
    }
}
