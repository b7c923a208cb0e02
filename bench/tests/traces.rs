//! Traces as the dataplane sees them: a whole worker, its ports polled in turns, no wire.

use std::io;

use bench::flow::Case;
use bench::rig::{self, Rig};
use bench::trace::{Side, Trace};
use dataplane::packet::CtState;

fn frames(case: Case, flows: u32) -> [Vec<Vec<u8>>; 2] {
    let trace = Trace::new(case, flows, 1, rig::PORTS).expect("the case can have so many flows");
    Side::BOTH.map(|side| {
        let mut all = Vec::new();
        let keep = |_, frame: &[u8]| -> io::Result<()> {
            all.push(frame.to_vec());
            Ok(())
        };
        trace.packets(side, keep).expect("a Vec takes all");
        all
    })
}

#[test]
fn every_tcp_connection_opens_talks_closes_and_opens_again_without_an_invalid_packet() {
    let flows = 1_000;
    let frames = frames(Case::Tcp, flows);
    let packets = frames.iter().map(Vec::len).sum::<usize>() as u64;
    let mut rig = Rig::new(rig::policy(), 1 << 16, frames);
    let invalid = |rig: &Rig| {
        let place = CtState::ALL.iter().position(|s| *s == CtState::Invalid).expect("there is such a class");
        rig.stats.classified[place].iter().map(|c| c.value()).sum::<u64>()
    };
    // The first time the trace begins in the middle of half of its connections.
    rig.warm(2);
    let (sent, bad, new) = (rig.sent(), invalid(&rig), rig.stats.ct_events[0].value());
    rig.warm(2);
    assert_eq!(invalid(&rig) - bad, 0);
    assert_eq!(rig.sent() - sent, 2 * packets);
    // Each connection begins anew each time.
    assert_eq!(rig.stats.ct_events[0].value() - new, 2 * u64::from(flows));
}
