//! [`Generator`]: sends test frames into one port at a rate, takes them from the other, counts and times them.
//!
//! It is a worker of the dataplane's own DPDK runtime, with other things to do in its turns: each receives a burst, then
//! sends what the rate asks for by now. A frame that the port has no room for is not kept: on a wire it would be lost,
//! and it counts as offered. A generator that was kept from running does not make up for all of it, or it would offer
//! bursts that nobody asked for: what is older than [`CATCH_UP`] is left out, and missing from what was offered.
//!
//! *Life-cycle*: one for all trials. *Threads*: its own; trials come by a channel and their [`Outcome`]s go back by
//! another. *Limits*: the time of a frame is from just before its burst is sent to just after the poll that received it,
//! so the generator's own copying of a burst (at most [`MAX_BURST`] frames) is in it.

use crossbeam_channel::{Receiver, Sender};
use dataplane::api::Nanos;
use dataplane::api::command::Command;
use dataplane::dpdk::{DpdkIo, WorkerLoop};
use dataplane::io::{Buf, Burst, Io, MAX_BURST, PortIdx};
use hdrhistogram::Histogram;

use super::frame::{Frames, Stamp, Way};
use super::search::Tally;

/// What to send.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Tells its frames from late ones of others.
    pub id: u16,
    /// The frames.
    pub frames: Frames,
    /// Which way they go.
    pub way: Way,
    /// Frames per second; `None` for as many as can be made.
    pub rate: Option<u64>,
    /// For how long, unless `count` is reached before.
    pub duration: Nanos,
    /// Most frames.
    pub count: u64,
    /// How long to wait for frames that are missing at the end.
    pub settle: Nanos,
    /// One of so many frames is timed, at least 1.
    pub sample: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Frames.
    pub tally: Tally,
    /// Frames for which the port or the pool had no room; they are among the offered and the lost.
    pub refused: u64,
    /// Times of the frames that were timed, nanoseconds.
    pub times: Histogram<u64>,
}

/// Longest time that a frame can take, nanoseconds.
pub const LONGEST: u64 = 10_000_000_000;

/// Frames of so much time are sent late, where the generator was kept from running; older ones not at all.
const CATCH_UP: Nanos = Nanos(200_000);

/// Turns between two looks at the channels while a trial runs.
const TURNS: u32 = 256;

/// See the module. `now` reads the clock.
pub struct Generator<I: Io, N> {
    io: I,
    now: N,
    commands: Receiver<Command>,
    trials: Receiver<Trial>,
    outcomes: Sender<Outcome>,
    running: Option<Box<Running>>,
    burst: Burst<I::Buf>,
    turn: u32,
    stopping: bool,
}

/// A trial under way.
struct Running {
    trial: Trial,
    start: Nanos,
    /// When the last frame was offered, once that is so.
    ended: Option<Nanos>,
    /// Frames of the schedule that were left out.
    skipped: u64,
    offered: u64,
    refused: u64,
    received: u64,
    times: Histogram<u64>,
}

impl<I: Io, N: FnMut() -> Nanos> Generator<I, N> {
    /// A generator on the first two interfaces of `io`.
    pub fn new(io: I, now: N, commands: Receiver<Command>, trials: Receiver<Trial>, outcomes: Sender<Outcome>) -> Self {
        let burst = Burst::new();
        Self { io, now, commands, trials, outcomes, running: None, burst, turn: 0, stopping: false }
    }

    /// One turn; whether a trial is under way.
    pub fn turn(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        if self.running.is_none() || self.turn.is_multiple_of(TURNS) {
            self.stopping |= self.commands.try_iter().any(|c| matches!(c, Command::Stop));
        }
        let Some(mut running) = self.running.take() else {
            self.receive(LAN, |_, _| {});
            self.receive(WAN, |_, _| {});
            if let Ok(trial) = self.trials.try_recv() {
                let start = (self.now)();
                self.running = Some(Box::new(Running::new(trial, start)));
            }
            return self.running.is_some();
        };
        let (from, to) = match running.trial.way {
            Way::Original => (LAN, WAN),
            Way::Reply => (WAN, LAN),
        };
        self.receive(to, |now, frame| running.take(now, frame));
        if self.turn.is_multiple_of(TURNS) {
            self.receive(from, |_, _| {}); // what the gateway says to its neighbours
        }
        if running.ended.is_none() {
            self.send(from, &mut running);
        }
        if let Some(ended) = running.ended
            && (running.is_complete() || (self.now)().since(ended) > running.trial.settle)
        {
            // Nobody takes it where the main thread has given up.
            let _ = self.outcomes.send(running.outcome(ended));
        } else {
            self.running = Some(running);
        }
        true
    }

    /// Receives a burst and reads the clock after it.
    fn receive(&mut self, port: PortIdx, mut take: impl FnMut(Nanos, &[u8])) {
        let mut frames: Burst<I::Buf> = Burst::new();
        self.io.rx_burst(port, MAX_BURST, &mut frames);
        if frames.is_empty() {
            return;
        }
        let now = (self.now)();
        for frame in &frames {
            take(now, frame.bytes());
        }
    }

    /// Offers what the schedule asks for by now, at most a burst.
    fn send(&mut self, port: PortIdx, running: &mut Running) {
        let now = (self.now)();
        let due = running.due(now);
        for number in running.offered..running.offered + due {
            let stamp = Stamp { trial: running.trial.id, number, sent: now.0 };
            let frame = self.io.alloc().and_then(|mut buf| {
                let fits = buf.resize(running.trial.frames.length(number));
                if fits {
                    running.trial.frames.write(stamp, buf.bytes_mut());
                }
                fits.then_some(buf)
            });
            match frame {
                Some(buf) => self.burst.push(buf),
                None => running.refused += 1,
            }
        }
        running.offered += due;
        self.io.tx_burst(port, &mut self.burst);
        running.refused += self.burst.len() as u64;
        self.burst.clear();
        if running.offered >= running.trial.count || now.since(running.start) >= running.trial.duration {
            running.ended = Some(now);
        }
    }
}

impl Running {
    fn new(trial: Trial, start: Nanos) -> Self {
        // Invariant: constants that it takes; the tests make one.
        let times = Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds of three digits");
        Self { trial, start, ended: None, skipped: 0, offered: 0, refused: 0, received: 0, times }
    }

    /// Frames of the schedule until `now`, those left out included.
    fn scheduled(&self, now: Nanos) -> u64 {
        match self.trial.rate {
            Some(rate) => at(rate, now.since(self.start)),
            None => self.offered.saturating_add(MAX_BURST as u64),
        }
    }

    /// How many to offer at `now`, at most a burst.
    fn due(&mut self, now: Nanos) -> u64 {
        let end = Nanos(now.0.min(self.start.0.saturating_add(self.trial.duration.0)));
        let mut behind = self.scheduled(end).saturating_sub(self.offered + self.skipped);
        if let Some(rate) = self.trial.rate {
            let most = at(rate, CATCH_UP).max(MAX_BURST as u64);
            self.skipped += behind.saturating_sub(most);
            behind = behind.min(most);
        }
        behind.min(MAX_BURST as u64).min(self.trial.count.saturating_sub(self.offered))
    }

    /// A frame has come out of the gateway.
    fn take(&mut self, now: Nanos, frame: &[u8]) {
        let Some(stamp) = Stamp::of(frame).filter(|s| s.trial == self.trial.id) else { return };
        self.received += 1;
        if stamp.number.is_multiple_of(self.trial.sample) {
            self.times.saturating_record(now.0.saturating_sub(stamp.sent));
        }
    }

    const fn is_complete(&self) -> bool {
        self.received + self.refused >= self.offered
    }

    fn outcome(self, ended: Nanos) -> Outcome {
        let elapsed = ended.since(self.start).0;
        let wanted = match self.trial.rate {
            Some(_) => self.scheduled(ended).min(self.trial.count),
            None => self.offered,
        };
        let Self { offered, received, refused, times, .. } = self;
        Outcome { tally: Tally { wanted, offered, received, elapsed }, refused, times }
    }
}

impl<N: FnMut() -> Nanos + Send + 'static> WorkerLoop for Generator<DpdkIo, N> {
    fn step(&mut self, _: Nanos) -> bool {
        self.turn()
    }

    fn stopping(&self) -> bool {
        self.stopping
    }
}

/// Where the gateway's clients are.
const LAN: PortIdx = PortIdx::wire(0);
/// Where its servers are.
const WAN: PortIdx = PortIdx::wire(1);

/// Frames in `time` at `rate` per second.
fn at(rate: u64, time: Nanos) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(time.0) / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use crossbeam_channel::unbounded;
    use dataplane::io::mem::{MemBuf, MemIo, Pool};

    use super::*;
    use crate::rfc2544::frame::Size;

    /// A generator in virtual time, and the gateway between its ports.
    struct Lab {
        generator: Generator<MemIo, Box<dyn FnMut() -> Nanos>>,
        now: Rc<Cell<u64>>,
        trials: Sender<Trial>,
        outcomes: Receiver<Outcome>,
        commands: Sender<Command>,
    }

    impl Lab {
        fn new() -> Self {
            let now = Rc::new(Cell::new(5_000));
            let clock = Rc::clone(&now);
            let (trials, inbox) = unbounded();
            let (out, outcomes) = unbounded();
            let (commands, told) = unbounded();
            let io = MemIo::new(2, Pool::new(4096));
            let clock: Box<dyn FnMut() -> Nanos> = Box::new(move || Nanos(clock.get()));
            Self { generator: Generator::new(io, clock, told, inbox, out), now, trials, outcomes, commands }
        }

        /// Turns of 1 µs until the trial's end; `gateway` gets each frame that was sent and says what comes out.
        fn run(&mut self, trial: Trial, mut gateway: impl FnMut(u64, MemBuf) -> Vec<MemBuf>) -> Outcome {
            let (from, to) = if trial.way == Way::Original { (LAN, WAN) } else { (WAN, LAN) };
            self.trials.send(trial).expect("the generator lives");
            for _ in 0..1_000_000 {
                self.now.set(self.now.get() + 1000);
                self.generator.turn();
                while let Some(frame) = self.generator.io.sent(from) {
                    for out in gateway(self.now.get(), frame) {
                        self.generator.io.inject(to, out);
                    }
                }
                if let Ok(outcome) = self.outcomes.try_recv() {
                    return outcome;
                }
            }
            panic!("the trial does not end");
        }
    }

    fn trial(rate: Option<u64>) -> Trial {
        let frames = Frames::new(Size::Fixed(64), 10, Way::Original, [2; 6], [4; 6]);
        let duration = Nanos(10_000_000);
        let settle = Nanos(1_000_000);
        Trial { id: 3, frames, way: Way::Original, rate, duration, count: u64::MAX, settle, sample: 1 }
    }

    #[test]
    fn a_rate_is_kept_and_what_comes_back_is_counted_and_timed() {
        for way in [Way::Original, Way::Reply] {
            let outcome = Lab::new().run(Trial { way, ..trial(Some(2_500_000)) }, |_, frame| vec![frame]);
            assert_eq!((outcome.tally.wanted, outcome.tally.offered), (25_000, 25_000));
            assert_eq!((outcome.tally.received, outcome.refused, outcome.tally.lost()), (25_000, 0, 0));
            assert_eq!(outcome.tally.elapsed, 10_000_000);
            assert_eq!(outcome.times.len(), 25_000);
            assert_eq!((outcome.times.min(), outcome.times.max()), (1000, 1000), "received in the next turn");
        }
    }

    #[test]
    fn what_the_gateway_keeps_is_lost_and_waited_for_once() {
        let mut lab = Lab::new();
        let mut n = 0;
        let outcome = lab.run(trial(Some(1_000_000)), |_, frame| {
            n += 1;
            if n % 10 == 0 { vec![] } else { vec![frame] }
        });
        assert_eq!((outcome.tally.offered, outcome.tally.lost()), (10_000, 1_000));
        assert!(lab.now.get() >= 5_000 + 10_000_000 + 1_000_000, "it has settled");
    }

    #[test]
    fn frames_of_an_earlier_trial_do_not_count() {
        let mut lab = Lab::new();
        let mut kept = Vec::new();
        let first = lab.run(trial(Some(1_000_000)), |_, frame| {
            kept.push(frame);
            vec![]
        });
        assert_eq!(first.tally.lost(), 10_000);
        kept.truncate(1000);
        let second = lab.run(Trial { id: 4, ..trial(Some(1_000_000)) }, |_, frame| {
            let late = kept.pop();
            [Some(frame), late].into_iter().flatten().collect()
        });
        assert_eq!((second.tally.received, second.tally.lost()), (10_000, 0));
    }

    #[test]
    fn a_generator_that_was_kept_from_running_offers_less_and_no_great_burst() {
        let mut lab = Lab::new();
        let now = Rc::clone(&lab.now);
        let (mut sent, mut paused, mut after) = (0, 0, 0);
        let outcome = lab.run(trial(Some(1_000_000)), |at, frame| {
            sent += 1;
            if sent == 5_000 {
                now.set(at + 2_000_000);
                paused = at + 2_000_000;
            }
            after += u64::from(paused > 0 && at < paused + 300_000);
            vec![frame]
        });
        assert_eq!(outcome.tally.wanted, 10_000);
        assert!((8_150..=8_250).contains(&outcome.tally.offered), "{}", outcome.tally.offered);
        assert!(!outcome.tally.on_time());
        assert!((400..=520).contains(&after), "{after} frames in 300 µs: 300, and 200 that were late");
    }

    #[test]
    fn a_number_of_frames_ends_a_trial_and_a_sample_is_timed() {
        let limited = Trial { count: 777, sample: 10, ..trial(Some(1_000_000)) };
        let outcome = Lab::new().run(limited, |_, frame| vec![frame]);
        assert_eq!((outcome.tally.offered, outcome.tally.received, outcome.times.len()), (777, 777, 78));
    }

    #[test]
    fn flat_out_is_a_burst_each_turn() {
        let outcome = Lab::new().run(trial(None), |_, frame| vec![frame]);
        let turns = 10_000;
        assert!((turns..=turns + 1).contains(&(outcome.tally.offered / 64)), "{:?}", outcome.tally);
        assert!(outcome.tally.on_time());
    }

    #[test]
    fn frames_that_find_no_buffer_are_offered_and_lost() {
        let mut lab = Lab::new();
        let mut kept = Vec::new();
        let outcome = lab.run(Trial { count: 5000, ..trial(Some(1_000_000)) }, |_, frame| {
            kept.push(frame);
            vec![]
        });
        assert_eq!((outcome.tally.offered, outcome.refused, outcome.tally.lost()), (5000, 5000 - 4096, 5000));
    }

    #[test]
    fn it_stops_when_it_is_told_to_in_the_middle_of_a_trial_too() {
        let mut lab = Lab::new();
        lab.trials.send(trial(Some(1))).expect("it lives");
        for _ in 0..10 {
            lab.generator.turn();
        }
        assert!(lab.generator.running.is_some() && !lab.generator.stopping);
        lab.commands.send(Command::Stop).expect("it lives");
        for _ in 0..2 * TURNS {
            lab.generator.turn();
        }
        assert!(lab.generator.stopping);
    }
}
