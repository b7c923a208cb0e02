//! Properties of the tracker, on its own: traces (`dataplane/tests/traces`) hold it against Linux through the gateway.

use proptest::prelude::*;

use super::*;
use crate::packet::SynOptions;

/// The tracker with what a connection keeps beside it.
struct Tracked {
    track: TcpTrack,
    spec: ConntrackSpec,
    replied: bool,
    assured: bool,
}

impl Tracked {
    fn begin(s: &TcpSegment) -> Self {
        let spec = ConntrackSpec::default();
        let track = TcpTrack::begin(s, &spec).expect("it starts a connection");
        Self { track, spec, replied: false, assured: false }
    }

    fn step(&mut self, direction: Direction, s: &TcpSegment) -> Step {
        let context = Context {
            spec: &self.spec,
            timeouts: &self.spec.timeouts,
            direction,
            replied: self.replied,
            assured: self.assured,
            remaining: Nanos::from_secs(300),
            now: Nanos::SECOND,
        };
        let step = self.track.step(s, &context);
        if let Step::Pass { assured, .. } = step {
            self.replied |= direction == Direction::Reply;
            self.assured |= assured;
        }
        step
    }

    /// After a handshake from these initial numbers; both offer these windows and scales.
    fn open(isn: [u32; 2], win: u16, scale: Option<u8>) -> Self {
        let syn = Some(SynOptions { scale, sack_permitted: true });
        let (client, server) = (isn[0], isn[1]);
        let mut t = Self::begin(&TcpSegment { syn, win, ..segment(SYN, client, 0) });
        let ack = client.wrapping_add(1);
        let step = t.step(Direction::Reply, &TcpSegment { syn, win, ..segment(SYN | ACK, server, ack) });
        assert!(matches!(step, Step::Pass { changed: true, .. }));
        t.step(Direction::Original, &TcpSegment { win, ..segment(ACK, ack, server.wrapping_add(1)) });
        assert_eq!((t.track.state(), t.assured), (TcpState::Established, true));
        t
    }
}

fn segment(flags: u8, seq: u32, ack: u32) -> TcpSegment {
    TcpSegment { flags, syn: None, seq, ack, sack: ack, win: 1000, len: 0 }
}

fn direction(reply: bool) -> Direction {
    if reply { Direction::Reply } else { Direction::Original }
}

const DAYS: Option<Nanos> = Some(Nanos::from_secs(432_000));

#[test]
fn a_restored_connection_goes_on_wherever_it_is() {
    let restored = |state| Tracked {
        track: TcpTrack::lenient(state),
        spec: ConntrackSpec::default(),
        replied: true,
        assured: true,
    };
    let mut t = restored(TcpState::Established);
    // Its first segments tell where both sides are, so that it is worth days again.
    assert!(matches!(t.step(Direction::Reply, &segment(ACK, 3 << 30, 7)), Step::Pass { timeout: DAYS, .. }));
    assert!(matches!(t.step(Direction::Original, &segment(ACK, 7, 3 << 30)), Step::Pass { timeout: DAYS, .. }));
    // Nobody knows the scales: nothing is out of the window.
    for (d, seq, ack) in [(Direction::Original, 1 << 30, 1 << 29), (Direction::Reply, 1 << 31, 1 << 28)] {
        assert!(matches!(t.step(d, &segment(ACK, seq, ack)), Step::Pass { timeout: Some(_), .. }));
    }
    for state in TcpState::ALL {
        let mut t = restored(state);
        assert_eq!(t.track.state(), state);
        let reopens = matches!(state, TcpState::TimeWait | TcpState::Close);
        assert_eq!(t.step(Direction::Original, &segment(SYN, 5, 0)) == Step::Reopen, reopens, "{state:?}");
    }
}

#[test]
fn a_segment_that_is_repeated_for_ever_stays_repeated() {
    let mut t = Tracked::open([1000, 5000], 1000, None);
    let ack = segment(ACK, 1001, 5001);
    for n in 1..=600 {
        let expected = Nanos::from_secs(if n < 3 { 432_000 } else { 300 });
        assert_eq!(t.step(Direction::Original, &ack), Step::pass(expected).assured(), "repetition {n}");
    }
}

impl Step {
    fn assured(self) -> Self {
        match self {
            Self::Pass { timeout, end, changed, .. } => Self::Pass { timeout, assured: true, end, changed },
            other => other,
        }
    }
}

// ---- Any segments ---------------------------------------------------------------------------------------------------

prop_compose! {
    /// Any segment at all; numbers crowd around few places, as those of a connection do.
    fn any_segment()(
        flags: u8,
        scale in proptest::option::of(0..=14u8),
        sack_permitted: bool,
        options: bool,
        bases in proptest::array::uniform3(prop_oneof![Just(0), Just(1 << 31), Just(u32::MAX), any::<u32>()]),
        by in proptest::array::uniform3(-70_000i32..70_000),
        win in prop_oneof![Just(0), Just(1), Just(u16::MAX), any::<u16>()],
        len in prop_oneof![Just(0), Just(65_515), 0..2000u16],
    ) -> TcpSegment {
        let [seq, ack, sack] = [0, 1, 2].map(|n| bases[n].wrapping_add_signed(by[n]));
        let syn = options.then_some(SynOptions { scale, sack_permitted });
        TcpSegment { flags, syn, seq, ack, sack, win, len }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_segments_panics(
        segments in proptest::collection::vec((any::<bool>(), any_segment()), 1..40),
        liberal: bool,
        max_retrans: u8,
        restored in proptest::option::of(0..10usize),
    ) {
        let mut spec = ConntrackSpec { tcp_be_liberal: liberal, tcp_max_retrans: max_retrans, ..ConntrackSpec::default() };
        spec.tcp_loose = !liberal;
        let mut conn = restored.map(|n| Tracked {
            track: TcpTrack::lenient(TcpState::ALL[n]), spec: spec.clone(), replied: false, assured: false,
        });
        for (reply, s) in segments {
            if !valid_flags(s.flags) {
                continue;
            }
            let Some(t) = &mut conn else {
                conn = TcpTrack::begin(&s, &spec).ok().map(|track| {
                    Tracked { track, spec: spec.clone(), replied: false, assured: false }
                });
                continue;
            };
            let before = t.track.state();
            match t.step(direction(reply), &s) {
                Step::Pass { end: true, .. } | Step::Reopen => conn = None,
                Step::Pass { timeout: Some(_), changed, .. } => {
                    // Or another connection has taken over one that was in SYN_RECV itself.
                    let state = t.track.state();
                    let same = state == before;
                    prop_assert!(changed != same || changed && state == TcpState::SynRecv);
                }
                // The one that counts and does not renew the timeout: SYNs that cross.
                Step::Pass { timeout: None, changed, .. } => {
                    let crossed = (before, t.track.state()) == (TcpState::SynSent, TcpState::SynSent2);
                    prop_assert!(changed == crossed && (crossed || t.track.state() == before));
                }
                Step::Invalid(_) | Step::InvalidShortens { .. } => prop_assert_eq!(t.track.state(), before),
            }
        }
    }

    /// A segment whose numbers both are further off than any window.
    #[test]
    fn a_segment_outside_both_windows_changes_no_state(
        isn: [u32; 2],
        reply: bool,
        flags in (0..=u8::MAX).prop_filter("some stack sends them", |f| valid_flags(*f)),
        win in 1..u16::MAX,
        scale in proptest::option::of(0..=4u8),
        seq in 3_000_000..(u32::MAX - 3_000_000),
        ack in 3_000_000..(u32::MAX - 3_000_000),
        len in 0..1460u16,
    ) {
        let mut t = Tracked::open(isn, win, scale);
        let (own, other) = (isn[usize::from(reply)], isn[usize::from(!reply)]);
        let blind = TcpSegment { len, win: 9999, ..segment(flags, own.wrapping_add(seq), other.wrapping_add(ack)) };
        let step = t.step(direction(reply), &blind);
        prop_assert!(matches!(step, Step::Invalid(_)) || step == Step::UNCHANGED, "{step:?}");
        prop_assert_eq!(t.track.state(), TcpState::Established);
        // Nor does it spoil anything: both go on where they were, as far as their windows go.
        for (d, me, peer) in [(Direction::Original, isn[0], isn[1]), (Direction::Reply, isn[1], isn[0])] {
            let (seq, ack) = (me.wrapping_add(1), peer.wrapping_add(1));
            let step = t.step(d, &TcpSegment { win, ..segment(ACK, seq, ack) });
            prop_assert!(matches!(step, Step::Pass { timeout: Some(_), .. }), "{step:?}");
            let ahead = TcpSegment { win, ..segment(ACK, seq.wrapping_add(win.into()).wrapping_add(3_000_000), ack) };
            prop_assert!(matches!(t.step(d, &ahead), Step::Invalid(_)));
        }
    }
}

// ---- Two ends and a bad network -------------------------------------------------------------------------------------

/// Numbers from a seed: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n
    }

    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

/// One end, as RFC 9293 has it. Its stream: 0 is the SYN, then data, then the FIN. Numbers are offsets in it.
#[derive(Debug)]
struct End {
    isn: u32,
    scale: Option<u8>,
    sacks: bool,
    /// Where its FIN is.
    fin: u32,
    /// First unacknowledged, next to send.
    una: u32,
    next: u32,
    /// Up to where the other side lets it send.
    edge: u32,
    /// Next expected, and what is there beyond that.
    expected: u32,
    beyond: Vec<(u32, u32)>,
    /// Up to where it lets the other side send.
    offered: u32,
    heard: bool,
    /// Of the other side.
    their: (u32, Option<u8>, bool),
}

impl End {
    fn new(dice: &mut Dice) -> Self {
        let pick = [None, Some(0), Some(2), Some(7)];
        Self {
            isn: [u32::MAX, u32::MAX - 700, 0, (1 << 31) - 500][dice.below(4) as usize],
            scale: pick[dice.below(4) as usize],
            sacks: dice.percent(50),
            fin: 1 + dice.below(4000) as u32,
            una: 0,
            next: 0,
            edge: 0,
            expected: 0,
            beyond: Vec::new(),
            offered: 1 + dice.below(900) as u32,
            heard: false,
            their: (0, None, false),
        }
    }

    /// Whether it has sent all and heard all, and knows it.
    fn done(&self) -> bool {
        self.una > self.fin
    }

    /// The segment with the stream from `seq`, `len` of it.
    fn segment(&mut self, seq: u32, len: u32, dice: &mut Dice) -> TcpSegment {
        let opening = seq == 0;
        let closing = len > 0 && seq + len > self.fin;
        if !opening && dice.percent(60) {
            // Whoever reads makes room; what was offered is never taken back.
            self.offered = self.offered.max(self.expected + dice.below(1200) as u32);
        }
        let scale = match (opening, self.scale, self.their.1) {
            (false, Some(own), Some(_)) => own,
            _ => 0,
        };
        let room = self.offered.saturating_sub(self.expected) >> scale;
        let ack = self.their.0.wrapping_add(self.expected);
        let mut sack = ack;
        if self.sacks && self.their.2 && !opening {
            for &(_, end) in &self.beyond {
                sack = Seq(sack).later(Seq(self.their.0.wrapping_add(end))).0;
            }
        }
        let mut flags = if self.heard { ACK } else { 0 };
        flags |= if opening { SYN } else { 0 } | if closing { FIN } else { 0 };
        self.next = self.next.max(seq + len);
        TcpSegment {
            flags,
            syn: opening.then_some(SynOptions { scale: self.scale, sack_permitted: self.sacks }),
            seq: self.isn.wrapping_add(seq),
            ack: if self.heard { ack } else { 0 },
            sack: if self.heard { sack } else { 0 },
            win: u16::try_from(room).unwrap_or(u16::MAX),
            len: u16::try_from(len - u32::from(opening) - u32::from(closing)).expect("it is short"),
        }
    }

    /// What it might send now: something new, something again, a probe, an acknowledgement.
    fn speak(&mut self, server: bool, dice: &mut Dice) -> Option<TcpSegment> {
        if server && !self.heard {
            return None;
        }
        if self.una == 0 {
            return Some(self.segment(0, 1, dice)); // the SYN, until it is acknowledged
        }
        let mss = 1 + dice.below(300) as u32;
        let all = self.fin + 1;
        let (seq, len) = match dice.below(10) {
            0..=4 => (self.next, self.edge.saturating_sub(self.next).min(all.saturating_sub(self.next)).min(mss)),
            5 | 6 if self.una < self.next => (self.una, (self.next - self.una).min(mss)),
            // A probe of a window that is closed.
            7 if self.edge == self.next && self.una == self.next && self.next < all => (self.next, 1),
            // A keepalive.
            8 if self.una == self.next && self.una > 1 => (self.una - 1, 0),
            _ => (self.next, 0),
        };
        Some(self.segment(seq, len, dice))
    }

    /// A segment arrives.
    fn hear(&mut self, s: &TcpSegment) {
        if s.flags & SYN != 0 {
            self.heard = true;
            let o = s.syn.expect("every SYN here has options");
            self.their = (s.seq, o.scale, o.sack_permitted);
        } else if !self.heard {
            return;
        }
        let seq = s.seq.wrapping_sub(self.their.0);
        let end = seq.wrapping_add(s.span());
        if s.flags & ACK != 0 {
            let ack = s.ack.wrapping_sub(self.isn);
            assert!(ack <= self.next, "{self:?} {s:?}");
            let scaled = s.flags & SYN == 0 && self.scale.is_some() && self.their.1.is_some();
            let scale = if scaled { self.their.1.unwrap_or(0) } else { 0 };
            self.una = self.una.max(ack);
            self.edge = self.edge.max(ack + (u32::from(s.win) << scale));
        }
        // A keepalive lies before all that is new, even before the stream.
        if end > seq && end <= self.offered.max(1) {
            self.beyond.push((seq, end));
        }
        self.beyond.sort_unstable();
        while let Some(at) = self.beyond.iter().position(|&(from, _)| from <= self.expected) {
            let (_, end) = self.beyond.swap_remove(at);
            self.expected = self.expected.max(end);
        }
    }
}

/// One way between the ends: what has not reached the tracker, and what it has let pass.
#[derive(Default)]
struct Way {
    before: Vec<TcpSegment>,
    after: Vec<TcpSegment>,
}

/// Any of the first few; or the first, where the network keeps order.
fn any_of(queue: &mut Vec<TcpSegment>, disorder: u64, dice: &mut Dice) -> Option<TcpSegment> {
    let n = (queue.len() as u64).min(1 + disorder);
    if n == 0 {
        return None;
    }
    let at = dice.below(n) as usize;
    // Some come twice.
    Some(if dice.percent(10) && disorder > 0 { queue[at] } else { queue.remove(at) })
}

#[expect(clippy::cast_possible_truncation, reason = "numbers are small here")]
fn talk(seed: u64) {
    let mut dice = Dice(seed | 1);
    let mut ends = [End::new(&mut dice), End::new(&mut dice)];
    let mut ways = [Way::default(), Way::default()];
    let (loss, disorder) = (dice.below(25), dice.below(6));
    let mut conn: Option<Tracked> = None;
    let mut steps = 0;
    while !(ends[0].done() && ends[1].done()) {
        steps += 1;
        assert!(steps < 200_000, "seed {seed}: it never ends, {ends:?}");
        let side = dice.below(2) as usize;
        match dice.below(3) {
            0 if ways[side].before.len() < 8 => {
                ways[side].before.extend(ends[side].speak(side == 1, &mut dice));
            }
            1 => {
                let Some(s) = any_of(&mut ways[side].before, disorder, &mut dice) else { continue };
                if dice.percent(loss) {
                    continue;
                }
                let Some(t) = &mut conn else {
                    conn = Some(Tracked::begin(&s));
                    ways[side].after.push(s);
                    continue;
                };
                let step = t.step(direction(side == 1), &s);
                assert!(
                    matches!(step, Step::Pass { end: false, .. }),
                    "seed {seed}, step {steps}: {step:?} for {s:?} of {side} in {:?}",
                    t.track
                );
                ways[side].after.push(s);
            }
            _ => {
                let Some(s) = any_of(&mut ways[side].after, disorder, &mut dice) else { continue };
                if dice.percent(loss) {
                    continue;
                }
                let other = 1 - side;
                ends[other].hear(&s);
                if ends[0].una > 0 {
                    // A SYN that data overtakes, answered by a SYN/ACK that was under way as well, would take the
                    // connection over: here as in Linux.
                    ways[0].before.retain(|s| s.flags & SYN == 0);
                }
            }
        }
    }
    let conn = conn.expect("they have talked");
    assert_eq!(conn.track.state(), TcpState::TimeWait, "seed {seed}: {ends:?}");
    assert!(ends[0].expected == ends[1].fin + 1 && ends[1].expected == ends[0].fin + 1);
}

proptest! {
    #[test]
    fn nothing_of_two_well_behaved_ends_is_invalid(seed: u64) {
        talk(seed);
    }
}
