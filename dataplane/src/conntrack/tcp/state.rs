//! The states of a connection, and which segment leads from one to the next.
//!
//! *Sources*: RFC 9293 section 3.3.2; `linux/net/netfilter/nf_conntrack_proto_tcp.c` (`tcp_conntracks`,
//! `tcp_valid_flags`, `get_conntrack_index`).

use super::super::timeouts::Timeouts;
use super::super::tuple::Direction;
use super::{ACK, FIN, RST, SYN, URG};
use crate::time::Nanos;

/// State of a tracked TCP connection; names as conntrack prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen.
    #[default]
    None,
    /// SYN seen.
    SynSent,
    /// SYN and SYN/ACK seen.
    SynRecv,
    /// Handshake complete, or picked up in mid-stream.
    Established,
    /// One FIN seen.
    FinWait,
    /// The FIN was acknowledged.
    CloseWait,
    /// FINs seen both ways.
    LastAck,
    /// Closed; late segments may come.
    TimeWait,
    /// Reset.
    Close,
    /// SYNs seen both ways: simultaneous open.
    SynSent2,
}

impl TcpState {
    /// All states.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// Its name in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Its idle timeout.
    pub const fn timeout(self, t: &Timeouts) -> Nanos {
        match self {
            Self::None | Self::SynSent => t.tcp_syn_sent,
            Self::SynRecv => t.tcp_syn_recv,
            Self::Established => t.tcp_established,
            Self::FinWait => t.tcp_fin_wait,
            Self::CloseWait => t.tcp_close_wait,
            Self::LastAck => t.tcp_last_ack,
            Self::TimeWait => t.tcp_time_wait,
            Self::Close => t.tcp_close,
            Self::SynSent2 => t.tcp_syn_sent2,
        }
    }

    /// Whether the connection is ending or has ended.
    pub const fn is_closing(self) -> bool {
        matches!(self, Self::FinWait | Self::CloseWait | Self::LastAck | Self::TimeWait | Self::Close)
    }
}

/// What a segment is to the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// RST, whatever else.
    Rst = 1,
    /// SYN and ACK.
    SynAck = 2,
    /// SYN without ACK.
    Syn = 3,
    /// FIN.
    Fin = 4,
    /// ACK alone.
    Ack = 5,
}

/// Whether some stack sends this set of flags; PSH, ECE and CWR do not count, and the set must hold one of SYN, RST, ACK
/// that the rest may go with.
pub const fn valid_flags(flags: u8) -> bool {
    match flags & (FIN | SYN | RST | ACK | URG) {
        SYN | ACK | RST => true,
        f if f == SYN | URG || f == SYN | ACK || f == RST | ACK => true,
        f if f == FIN | ACK || f == FIN | ACK | URG || f == ACK | URG => true,
        _ => false,
    }
}

/// The kind of a segment with valid flags.
pub const fn kind(flags: u8) -> Kind {
    if flags & RST != 0 {
        Kind::Rst
    } else if flags & SYN != 0 {
        if flags & ACK != 0 { Kind::SynAck } else { Kind::Syn }
    } else if flags & FIN != 0 {
        Kind::Fin
    } else {
        Kind::Ack
    }
}

/// What the state machine says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The connection is in this state now, if windows and resets' numbers allow.
    To(TcpState),
    /// The segment passes and changes no state.
    Ignore,
    /// The segment is INVALID.
    Invalid,
    /// The old connection is over and the segment starts a new one, if the old one was closed in order; else as
    /// [`Transition::Ignore`].
    Reopen,
}

/// The transition of a segment of `kind` in `direction` with the connection in state `old`.
pub const fn transition(old: TcpState, direction: Direction, kind: Kind) -> Transition {
    use Direction::{Original, Reply};
    use TcpState as S;
    match (kind, direction, old) {
        (Kind::Rst, _, S::None) => Transition::Invalid,
        (Kind::Rst, _, _) => Transition::To(S::Close),

        (Kind::Syn, Original, S::None | S::SynSent) => Transition::To(S::SynSent),
        (Kind::Syn, Original, S::SynSent2) => Transition::To(S::SynSent2),
        (Kind::Syn, _, S::TimeWait) | (Kind::Syn, Original, S::Close) => Transition::Reopen,
        (Kind::Syn, Original, _) => Transition::Ignore,
        (Kind::Syn, Reply, S::SynSent | S::SynSent2) => Transition::To(S::SynSent2),
        (Kind::Syn, Reply, _) => Transition::Invalid,

        (Kind::SynAck, Original, S::SynRecv | S::SynSent2) => Transition::To(S::SynRecv),
        (Kind::SynAck, Original, _) | (Kind::SynAck, Reply, S::None) => Transition::Invalid,
        (Kind::SynAck, Reply, S::SynSent | S::SynSent2) => Transition::To(S::SynRecv),
        (Kind::SynAck, Reply, _) => Transition::Ignore,

        (Kind::Fin, _, S::None | S::SynSent | S::SynSent2) => Transition::Invalid,
        (Kind::Fin, _, S::SynRecv | S::Established) => Transition::To(S::FinWait),
        (Kind::Fin, _, S::FinWait | S::CloseWait | S::LastAck) => Transition::To(S::LastAck),
        (Kind::Fin, _, S::TimeWait) => Transition::To(S::TimeWait),
        (Kind::Fin, _, S::Close) => Transition::To(S::Close),

        (Kind::Ack, Original, S::SynSent | S::SynSent2) | (Kind::Ack, Reply, S::None) => Transition::Invalid,
        (Kind::Ack, Original, S::None | S::SynRecv) => Transition::To(S::Established),
        (Kind::Ack, Reply, S::SynSent | S::SynSent2) => Transition::Ignore,
        (Kind::Ack, Reply, S::SynRecv) => Transition::To(S::SynRecv),
        (Kind::Ack, _, S::Established) => Transition::To(S::Established),
        (Kind::Ack, _, S::FinWait | S::CloseWait) => Transition::To(S::CloseWait),
        (Kind::Ack, _, S::LastAck | S::TimeWait) => Transition::To(S::TimeWait),
        (Kind::Ack, _, S::Close) => Transition::To(S::Close),
    }
}

#[cfg(test)]
mod tests {
    use super::super::PSH;
    use super::*;

    #[test]
    fn flag_sets_that_no_stack_sends_are_invalid() {
        let valid = [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, ACK, ACK | URG, FIN | ACK, FIN | ACK | URG];
        for flags in 0..=u8::MAX {
            // PSH and the ECN flags go with anything.
            let rest = flags & !(PSH | 0xc0);
            assert_eq!(valid_flags(flags), valid.contains(&rest), "{flags:#04x}");
        }
    }

    /// By row the state, by column the segment: RST, SYN/ACK, SYN, FIN, ACK. `-` is INVALID, `.` passes and changes
    /// nothing, `!` starts anew.
    const ORIGINAL: &str = "
        NONE         -      -         SYN_SENT   -          ESTABLISHED
        SYN_SENT     CLOSE  -         SYN_SENT   -          -
        SYN_RECV     CLOSE  SYN_RECV  .          FIN_WAIT   ESTABLISHED
        ESTABLISHED  CLOSE  -         .          FIN_WAIT   ESTABLISHED
        FIN_WAIT     CLOSE  -         .          LAST_ACK   CLOSE_WAIT
        CLOSE_WAIT   CLOSE  -         .          LAST_ACK   CLOSE_WAIT
        LAST_ACK     CLOSE  -         .          LAST_ACK   TIME_WAIT
        TIME_WAIT    CLOSE  -         !          TIME_WAIT  TIME_WAIT
        CLOSE        CLOSE  -         !          CLOSE      CLOSE
        SYN_SENT2    CLOSE  SYN_RECV  SYN_SENT2  -          -";
    const REPLY: &str = "
        NONE         -      -         -          -          -
        SYN_SENT     CLOSE  SYN_RECV  SYN_SENT2  -          .
        SYN_RECV     CLOSE  .         -          FIN_WAIT   SYN_RECV
        ESTABLISHED  CLOSE  .         -          FIN_WAIT   ESTABLISHED
        FIN_WAIT     CLOSE  .         -          LAST_ACK   CLOSE_WAIT
        CLOSE_WAIT   CLOSE  .         -          LAST_ACK   CLOSE_WAIT
        LAST_ACK     CLOSE  .         -          LAST_ACK   TIME_WAIT
        TIME_WAIT    CLOSE  .         !          TIME_WAIT  TIME_WAIT
        CLOSE        CLOSE  .         -          CLOSE      CLOSE
        SYN_SENT2    CLOSE  SYN_RECV  SYN_SENT2  -          .";

    #[test]
    fn every_state_and_segment_leads_where_the_table_says() {
        let kinds = [Kind::Rst, Kind::SynAck, Kind::Syn, Kind::Fin, Kind::Ack];
        for (direction, table) in [(Direction::Original, ORIGINAL), (Direction::Reply, REPLY)] {
            let rows: Vec<Vec<&str>> =
                table.lines().map(|l| l.split_whitespace().collect()).filter(|r: &Vec<_>| !r.is_empty()).collect();
            assert_eq!(rows.len(), TcpState::ALL.len());
            for row in rows {
                let old = TcpState::named(row[0]).expect("a state");
                assert_eq!(row.len(), 1 + kinds.len());
                for (kind, word) in kinds.into_iter().zip(&row[1..]) {
                    let expected = match *word {
                        "-" => Transition::Invalid,
                        "." => Transition::Ignore,
                        "!" => Transition::Reopen,
                        name => Transition::To(TcpState::named(name).expect("a state")),
                    };
                    assert_eq!(transition(old, direction, kind), expected, "{kind:?} {direction:?} in {old:?}");
                }
            }
        }
    }
}
