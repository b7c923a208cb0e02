//! The stream against a model that applies its edits to the whole text at once.

use proptest::prelude::*;

use super::*;

fn text(b: &[u8]) -> Text {
    b.iter().copied().collect()
}

/// Distance from the one before, length, replacement.
type Cut = (usize, usize, Vec<u8>);

/// An edit as a range of the sender's text and one of the receiver's: beginning and length each.
type Place = (usize, usize, usize, usize);

/// A sender's text from sequence number `start` on, and edits of it.
fn streams() -> impl Strategy<Value = (u32, Vec<u8>, Vec<Cut>)> {
    let edit = (0usize..20, 1usize..20, proptest::collection::vec(b'A'..=b'Z', 0..30));
    let start = prop_oneof![any::<u32>(), (0u32..200).prop_map(|n| n.wrapping_sub(100))];
    (start, proptest::collection::vec(b'a'..=b'z', 200), proptest::collection::vec(edit, 0..=EDITS))
}

/// The stream, the receiver's text, and the edits as ranges of the sender's text with where they begin for the receiver.
fn build(start: u32, sent: &[u8], edits: &[Cut]) -> (Stream, Vec<u8>, Vec<Place>) {
    let mut stream = Stream::default();
    let (mut at, mut received, mut ranges) = (0, Vec::new(), Vec::new());
    for (gap, old, new) in edits {
        received.extend(&sent[at..at + gap]);
        at += gap;
        stream.replace(start.wrapping_add(at as u32), *old as u32, text(new)).expect("room");
        ranges.push((at, *old, received.len(), new.len()));
        received.extend(new);
        at += old;
    }
    received.extend(&sent[at..]);
    (stream, received, ranges)
}

/// What a segment becomes: its number for the receiver, and its bytes.
fn passed(stream: &Stream, seq: u32, bytes: &[u8]) -> (u32, Vec<u8>) {
    let mut out = bytes.to_vec();
    for s in stream.splices(seq, bytes.len() as u32).iter().rev() {
        out.splice(s.at..s.at + s.old, s.text.iter().copied());
    }
    (stream.there(seq), out)
}

proptest! {
    #[test]
    fn segments_of_any_cut_give_the_receiver_the_edited_text(
        (start, sent, edits) in streams(), cuts in proptest::collection::vec(0usize..200, 0..12), again in proptest::collection::vec((0usize..200, 0usize..80), 0..8),
    ) {
        let (stream, want, _) = build(start, &sent, &edits);
        let mut got = vec![None; want.len()];
        let mut deliver = |from: usize, to: usize| {
            let (seq, bytes) = passed(&stream, start.wrapping_add(from as u32), &sent[from..to]);
            let at = seq.wrapping_sub(start) as usize;
            for (n, b) in bytes.into_iter().enumerate() {
                prop_assert!(got[at + n].is_none_or(|old| old == b), "byte {} differs", at + n);
                got[at + n] = Some(b);
            }
            Ok(())
        };
        let mut cuts = cuts;
        cuts.extend([0, 200]);
        cuts.sort_unstable();
        for w in cuts.windows(2) {
            deliver(w[0], w[1])?;
        }
        for (from, len) in again {
            deliver(from, (from + len).min(200))?;
        }
        prop_assert_eq!(got.into_iter().map(|b| b.unwrap_or(b'?')).collect::<Vec<_>>(), want);
    }

    #[test]
    fn an_acknowledgement_never_covers_part_of_an_edit((start, sent, edits) in streams(), ack in 0usize..320) {
        let (stream, received, ranges) = build(start, &sent, &edits);
        let ack = ack.min(received.len());
        let to_sender = stream.back(start.wrapping_add(ack as u32)).wrapping_sub(start) as usize;
        prop_assert!(to_sender <= sent.len());
        for (at, old, there, new) in ranges {
            let covered = ack >= there + new && ack > there;
            prop_assert!(!(at..at + old).contains(&to_sender) || to_sender == at, "in the middle of an edit");
            prop_assert_eq!(to_sender >= at + old, covered || ack > there + new);
        }
        // Outside of edits it is the inverse.
        if stream.there(start.wrapping_add(to_sender as u32)) == start.wrapping_add(ack as u32) {
            prop_assert_eq!(stream.edge(start.wrapping_add(ack as u32), false), start.wrapping_add(to_sender as u32));
        }
    }

    #[test]
    fn selective_edges_shrink_to_whole_edits((start, sent, edits) in streams(), edge in 0usize..320) {
        let (stream, received, _) = build(start, &sent, &edits);
        let edge = start.wrapping_add(edge.min(received.len()) as u32);
        let (down, up) = (stream.edge(edge, false), stream.edge(edge, true));
        prop_assert!(!before(up, down));
        prop_assert!(!before(edge, stream.there(down)) && !before(stream.there(up), edge));
    }
}

#[test]
fn an_open_edit_withholds_and_its_text_comes_with_its_end() {
    let mut s = Stream::default();
    s.withhold(105, 9).expect("room"); // "PORT 10,0,0,2," of which five bytes pass
    assert_eq!(passed(&s, 100, b"PORT 10,0,0,2,"), (100, b"PORT ".to_vec()));
    assert!(s.withholds(100, 14) && !s.withholds(100, 5) && s.is_open());
    s.withhold(105, 12).expect("more of the same");
    assert_eq!(passed(&s, 114, b"19,"), (105, b"".to_vec()));
    s.close(16, text(b"198,51,100,1,19,137\r"));
    assert_eq!(passed(&s, 117, b"137\r\n"), (105, b"198,51,100,1,19,137\r\n".to_vec()));
    // And once more, in other pieces.
    assert_eq!(passed(&s, 100, b"PORT 10,0,0,2,19,137\r\n"), (100, b"PORT 198,51,100,1,19,137\r\n".to_vec()));
    assert_eq!(passed(&s, 122, b"NOOP\r\n"), (126, b"NOOP\r\n".to_vec()));
    assert_eq!((s.back(105), s.back(110), s.back(126)), (105, 105, 122));
}

#[test]
fn an_edit_is_forgotten_only_once_it_was_acknowledged() {
    let mut s = Stream::default();
    for n in 0..EDITS as u32 {
        s.replace(n * 100, 10, text(b"a longer text")).expect("room");
    }
    assert_eq!(s.replace(1000, 10, text(b"x")), Err(Full));
    s.acknowledged(9);
    assert_eq!(s.replace(1000, 10, text(b"x")), Err(Full));
    s.acknowledged(10);
    assert_eq!(s.replace(1000, 10, text(b"x")), Ok(()));
    assert_eq!(s.there(1010), 1010 + 4 * 3 - 9, "what was forgotten still counts");
    assert_eq!(s.replace(1100, 10, text(b"x")), Err(Full));
}

#[test]
fn what_lies_a_gigabyte_behind_is_forgotten() {
    let mut s = Stream::default();
    s.replace(0, 4, text(b"longer")).expect("room");
    s.reached(FAR);
    assert_eq!(s.splices(0, 4).len(), 1);
    s.reached(FAR + 1);
    assert!(s.splices(0, 4).is_empty());
    // Half the number space further on the offset is the same.
    assert_eq!(s.there(3 << 30), (3 << 30) + 2);
    assert!(!s.is_plain());
}
