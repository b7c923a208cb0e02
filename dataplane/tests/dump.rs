//! Watching stalls nothing: a walk over a large table takes many turns, and packets pass in each of them.
//!
//! ```text
//!   10.0.0.2 ── lan [ gateway ] wan ── 203.0.113.5        control: list, update, flush
//! ```

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::{Command, ConnChange, ConnFilter, Event, SCAN_PER_COMMAND};

const HOST: &str = "10.0.0.2";
const SERVER: &str = "203.0.113.5";

/// Fewer than one command looks at.
const CONNECTIONS: u16 = 3000;

/// Most entries that a walk may look at in one turn: a burst waits for as many at most.
const PER_TURN: u16 = 64;

/// Gives worker 0 `command` and steps it, a packet of a connection of port 5000 arriving before each turn, until it
/// answers; gives the answer and the number of turns.
fn turns(lab: &mut Lab, command: Command) -> (Event, u16) {
    let packet = addressed(LAN, &udp(HOST, 5000, SERVER, 53, b"")).frame();
    lab.events.clear();
    lab.tell(0, command);
    for turn in 1..=CONNECTIONS {
        lab.arrive(LAN, &packet);
        lab.step(0);
        assert_eq!(lab.sent(WAN).len(), 1, "the packet of turn {turn} has left in that turn");
        if lab.heard() > 0 {
            return (lab.events.remove(0), turn);
        }
    }
    panic!("no answer after {CONNECTIONS} turns");
}

#[test]
fn a_walk_over_a_large_table_takes_many_turns_and_packets_pass_in_each() {
    let mut lab = Lab::new(usual());
    for port in 5000..5000 + CONNECTIONS {
        lab.passes(LAN, &udp(HOST, port, SERVER, 53, b""), WAN);
    }
    let filter = ConnFilter::default();
    let least = CONNECTIONS / PER_TURN;

    let into = Vec::with_capacity(SCAN_PER_COMMAND as usize);
    let (answer, n) = turns(&mut lab, Command::List { cursor: 0, filter, into });
    assert!(n >= least, "{n} turns");
    assert!(matches!(answer, Event::Listed { next: None, conns } if conns.len() == usize::from(CONNECTIONS)));

    let change = ConnChange { mark: Some((u32::MAX, 5)), ..ConnChange::default() };
    let into = Vec::with_capacity(SCAN_PER_COMMAND as usize);
    let (answer, n) = turns(&mut lab, Command::Update { cursor: 0, filter, change, into });
    assert!(n >= least, "{n} turns");
    let Event::Listed { next: None, conns } = answer else { panic!("{answer:?}") };
    assert_eq!(conns.iter().filter(|c| c.mark == 5).count(), usize::from(CONNECTIONS));

    // The packet's connection is ended and begun anew on the way, perhaps behind the walk.
    let (answer, n) = turns(&mut lab, Command::Flush { cursor: 0, filter });
    assert!(n >= least, "{n} turns");
    assert!(matches!(answer, Event::Flushed { next: None, ended } if ended >= u64::from(CONNECTIONS)));
    assert!(lab.entries() <= 1);
}
