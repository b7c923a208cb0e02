//! What FTP's helper knows of one direction of a connection, taken out of it and put back: for a saved table.
//!
//! All of it goes along but what was to fill a hole: text that was changed on its way is changed alike when it is sent
//! again, numbers are adjusted as before, and a line that has begun goes on. What was announced does not: expectations
//! last seconds, and a saved table may wait longer.
//!
//! *Life-cycle*: control makes the room and frees it; the worker fills it, or reads it. *Threads*: the worker's.
//! *Limits*: as many edits as a stream has; what no stream can be is refused.

use super::ftp::{Line, Parser};
use super::seqadj::{Parts, Stream, before};
use super::{FtpSide, Helped};

/// One direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedSide {
    /// Sequence number that comes next; `None` before the first payload.
    pub next: Option<u32>,
    /// The line that has begun there; `None` where that is not known, or nothing follows from it.
    pub line: Option<Line>,
    /// The window that its last segment offered, as it stands in the header.
    pub window: Option<u16>,
    /// What is changed on the way.
    pub stream: Parts,
}

/// Both directions, original and reply.
pub type SavedSides = [SavedSide; 2];

impl SavedSide {
    fn of(side: &FtpSide) -> Self {
        Self { next: side.next, line: side.parser.line(), window: side.window, stream: side.stream.parts() }
    }

    fn side(&self, replies: bool) -> Option<FtpSide> {
        let mut side = FtpSide::new(replies);
        if let Some(line) = &self.line {
            side.parser = Parser::within(replies, line);
        }
        side.stream = Stream::of(self.stream.clone())?;
        (side.next, side.window) = (self.next, self.window);
        if let Some(last) = self.stream.edits.last() {
            // What was changed has been read, and an argument that has begun is the open change or comes behind all.
            let next = self.next?;
            let begun = u32::try_from(side.parser.unfinished()).ok()?;
            let fits = if self.stream.open {
                begun == last.old && next == last.end()
            } else {
                !before(next.wrapping_sub(begun), last.end())
            };
            if !fits {
                return None;
            }
        }
        Some(side)
    }
}

/// The directions that were saved; `None` where they cannot have been.
pub fn restored(saved: &SavedSides) -> Option<[FtpSide; 2]> {
    let [original, reply] = saved;
    Some([original.side(false)?, reply.side(true)?])
}

impl Helped {
    /// Writes both directions into `into`.
    pub fn save(&self, into: &mut SavedSides) {
        for (saved, side) in into.iter_mut().zip(&self.ftp) {
            *saved = SavedSide::of(side);
        }
    }

    /// Whether numbers are adjusted.
    pub fn is_adjusted(&self) -> bool {
        self.ftp.iter().any(|side| !side.stream.is_plain())
    }
}

#[cfg(test)]
mod tests {
    use super::super::seqadj::{Edit, Text};
    use super::*;

    fn text(s: &str) -> Text {
        s.bytes().collect()
    }

    fn edit(at: u32, old: u32, new: &str) -> Edit {
        Edit { at, old, text: text(new) }
    }

    #[test]
    fn a_line_goes_on_wherever_it_was_cut() {
        for (replies, line) in [
            (false, "PORT 10,0,0,2,19,137\r\n"),
            (false, "EPRT |1|10.0.0.2|5001|\r\n"),
            (true, "227 Entering (10,0,0,2,19,137).\r\n"),
            (true, "229 (|||5001|)\r\n"),
        ] {
            let whole = Parser::within(replies, &Line::new()).read(line.as_bytes()).1.expect("an announcement");
            for at in 0..line.len() {
                let (begun, rest) = line.as_bytes().split_at(at);
                let mut parser = Parser::within(replies, &Line::new());
                if parser.read(begun).1.is_some() {
                    break; // it has ended
                }
                let saved = parser.line().expect("it may announce something yet");
                let mut again = Parser::within(replies, &saved);
                assert_eq!(again.unfinished(), parser.unfinished(), "{line} cut at {at}: {saved:?}");
                assert_eq!(again.read(rest).1, Some(whole.clone()), "{line} cut at {at}");
            }
        }
        let mut parser = Parser::within(false, &Line::new());
        assert_eq!(parser.read(b"USER x").1, None);
        assert_eq!(parser.line(), None, "nothing follows from the rest of this line");
    }

    #[test]
    fn what_no_stream_can_be_is_refused() {
        let of = |edits: &[Edit], open| {
            let parts = Parts { offset: 7, edits: edits.iter().cloned().collect(), open, acked: Some(1) };
            Stream::of(parts.clone()).map(|s| s.parts() == parts)
        };
        assert_eq!(of(&[], false), Some(true));
        assert_eq!(of(&[edit(u32::MAX, 3, "abcd"), edit(2, 1, "x")], false), Some(true), "across the turn of numbers");
        assert_eq!(of(&[edit(5, 3, "")], true), Some(true));
        for bad in [
            of(&[], true),
            of(&[edit(5, 3, "abc")], true),
            of(&[edit(5, 0, "abc")], false),
            of(&[edit(5, 65, "abc")], false),
            of(&[edit(5, 3, "abc"), edit(7, 3, "abc")], false),
            of(&[edit(5, 3, "abc"), edit(1, 3, "abc")], false),
            of(&[edit(5, 3, "abc"), edit(5 + (1 << 30) + 1, 3, "abc")], false),
        ] {
            assert_eq!(bad, None);
        }
    }

    #[test]
    fn changes_that_lie_ahead_or_across_a_begun_argument_are_refused() {
        let side = |next: Option<u32>, line: &str, edits: &[Edit], open| {
            let line = Some(line.bytes().collect());
            let stream = Parts { offset: 0, edits: edits.iter().cloned().collect(), open, acked: None };
            SavedSide { next, line, window: None, stream }.side(false).is_some()
        };
        assert!(side(Some(1000), "", &[edit(900, 64, "")], false));
        assert!(
            side(Some(1000), "PORT 10,0", &[edit(940, 56, "x")], false),
            "the argument begins where the change ends"
        );
        assert!(side(Some(1000), "PORT 10,0", &[edit(996, 4, "")], true));
        for (next, line, edits, open) in [
            (Some(1000), "", edit(1010, 64, ""), false),
            (Some(1000), "", edit(990, 11, "x"), false),
            (None, "", edit(900, 64, ""), false),
            (Some(1000), "PORT 10,0", edit(996, 4, "x"), false),
            (Some(1000), "PORT 10,0", edit(990, 7, "x"), false),
            (Some(1000), "PORT 10,0", edit(995, 4, ""), true),
            (Some(1000), "PORT 10,0", edit(997, 3, ""), true),
            (Some(1000), "", edit(996, 4, ""), true),
        ] {
            assert!(!side(next, line, std::slice::from_ref(&edits), open), "{next:?} {line} {edits:?} {open}");
        }
    }
}
