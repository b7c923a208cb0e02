//! Messages whole, cut, several at once and broken; what a session makes of them.

use proptest::prelude::*;

use super::*;

/// A message of `kind` and its right length, with `body` behind the header and nothing after that.
fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut m = vec![0; kind.size() as usize];
    m[..2].copy_from_slice(&u16::try_from(kind.size()).expect("short").to_be_bytes());
    m[2..8].copy_from_slice(b"\x00\x01\x1a\x2b\x3c\x4d");
    m[8..10].copy_from_slice(&(kind as u16).to_be_bytes());
    m[12..12 + body.len()].copy_from_slice(body);
    m
}

/// All whole messages of a stream in `segments`.
fn read<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Vec<Message> {
    let mut reader = Reader::default();
    let mut all = Vec::new();
    for segment in segments {
        reader.segment(segment);
        let mut rest = segment;
        while !rest.is_empty() {
            let (n, found) = reader.read(rest);
            assert!(n > 0 && n <= rest.len());
            rest = &rest[n..];
            if let Some((at, Found::Whole(m))) = found {
                assert_eq!(at, m.kind.size());
                all.push(m);
            }
        }
    }
    all
}

#[test]
fn every_kind_is_read_with_its_ids_and_its_result() {
    for (n, kind) in (1..).zip(Kind::ALL) {
        assert_eq!((Kind::of(n), kind as u16), (Some(kind), n));
        let body = match kind {
            Kind::StopReply => &[1, 0, 0, 0][..],
            Kind::StartReply => &[1, 0, 1, 0],
            Kind::OutReply | Kind::InReply => &[0x22, 0x22, 0x11, 0x11, 1],
            _ => &[0x22, 0x22],
        };
        let found = read([&message(kind, body)[..]]);
        assert_eq!(found.len(), 1, "{kind:?}");
        let granted = matches!(kind, Kind::StartReply | Kind::StopReply | Kind::OutReply | Kind::InReply);
        assert_eq!((found[0].kind, found[0].granted), (kind, granted));
        if kind == Kind::OutReply {
            assert_eq!((found[0].id, found[0].peer), (0x2222, 0x1111));
        }
    }
    assert_eq!((Kind::of(0), Kind::of(16), Kind::of(u16::MAX)), (None, None, None));
}

#[test]
fn what_is_no_control_message_says_nothing() {
    let good = message(Kind::OutRequest, &[0x11, 0x11]);
    for (at, byte) in [(3, 2), (4, 0), (7, 0x4e), (8, 1), (9, 0), (9, 16)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(read([&bad[..]]), [], "byte {at}");
        // The next segment is read again.
        assert_eq!(read([&bad[..], &good[..]]).len(), 1, "byte {at}");
    }
    // A message of an unknown kind is stepped over.
    let mut unknown = good.clone();
    unknown[9] = 99;
    assert_eq!(read([&[&unknown[..], &good].concat()[..]]).len(), 1);
}

#[test]
fn a_message_is_whole_when_as_much_is_there_as_its_kind_has() {
    let good = message(Kind::OutReply, &[0x22, 0x22, 0x11, 0x11, 1]);
    for n in 0..good.len() {
        assert_eq!(read([&good[..n]]), [], "{n} bytes");
        // What follows in the next segment completes it, but a header begins anew.
        assert_eq!(read([&good[..n], &good[n..]]).len(), 1, "{n} bytes");
        assert_eq!(read([&good[..n], &good[..]]).len(), 1, "{n} bytes");
    }
    // Linux does not look at the length; here it says where the next message begins.
    for (length, following) in [(0, 0), (12, 0), (31, 0), (32, 1), (33, 0), (u16::MAX, 0)] {
        let mut odd = good.clone();
        odd[..2].copy_from_slice(&length.to_be_bytes());
        assert_eq!(read([&odd[..]]).len(), 1, "length {length}");
        assert_eq!(read([&[&odd[..], &good].concat()[..]]).len(), 1 + following, "length {length}");
    }
}

fn begin(control: &mut Control) {
    let m = |kind| Message { kind, id: 0, peer: 0, granted: true };
    assert_eq!(control.hear(&m(Kind::StartRequest), true, None), Effect::Pass);
    assert_eq!(control.hear(&m(Kind::StartReply), false, None), Effect::Pass);
}

#[test]
fn a_call_that_was_asked_for_is_connected() {
    let m = |kind, id, peer, granted| Message { kind, id, peer, granted };
    let mut c = Control::default();
    assert_eq!(c.hear(&m(Kind::OutRequest, 1, 0, false), true, None), Effect::Refused, "no session yet");
    begin(&mut c);
    assert_eq!(c.hear(&m(Kind::StartRequest, 0, 0, false), true, None), Effect::Refused, "there is one");
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 0, true), false, None), Effect::Refused, "nobody asked");
    assert_eq!(c.hear(&m(Kind::OutRequest, 1, 0, false), true, Some(4000)), Effect::Pass);
    assert_eq!((c.own, c.pns), (1, 4000));
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 1, true), false, None), Effect::Refused, "another's");
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 4000, true), true, None), Effect::Refused, "the wrong way");
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 4000, true), false, None), Effect::Connected);
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 4000, true), false, None), Effect::Connected, "said again");
    assert_eq!(c.pac, 2);
    assert_eq!(c.hear(&m(Kind::Clear, 1, 0, false), true, None), Effect::Pass);
    assert_eq!(c.hear(&m(Kind::Disconnect, 2, 0, false), false, None), Effect::Over);
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 4000, true), false, None), Effect::Refused, "over");
}

#[test]
fn a_refused_call_and_a_refused_session_lead_nowhere() {
    let m = |kind, id, peer, granted| Message { kind, id, peer, granted };
    let mut c = Control::default();
    begin(&mut c);
    c.hear(&m(Kind::OutRequest, 1, 0, false), true, None);
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 1, false), false, None), Effect::Pass);
    assert_eq!(c.hear(&m(Kind::OutReply, 2, 1, true), false, None), Effect::Refused);
    let mut c = Control::default();
    c.hear(&m(Kind::StartRequest, 0, 0, false), true, None);
    c.hear(&m(Kind::StartReply, 0, 0, false), false, None);
    assert_eq!(c.hear(&m(Kind::OutRequest, 1, 0, false), true, None), Effect::Refused);
}

#[test]
fn an_incoming_call_takes_three_steps() {
    let m = |kind, id, peer, granted| Message { kind, id, peer, granted };
    let mut c = Control::default();
    begin(&mut c);
    assert_eq!(c.hear(&m(Kind::InReply, 1, 2, true), true, None), Effect::Refused);
    assert_eq!(c.hear(&m(Kind::InRequest, 2, 0, false), false, None), Effect::Pass);
    assert_eq!(c.hear(&m(Kind::InConnected, 1, 0, false), false, None), Effect::Refused);
    assert_eq!(c.hear(&m(Kind::InReply, 1, 3, true), true, None), Effect::Refused, "another's");
    assert_eq!(c.hear(&m(Kind::InReply, 1, 2, true), true, None), Effect::Pass);
    assert_eq!(c.hear(&m(Kind::InConnected, 1, 0, false), false, None), Effect::Connected);
    assert_eq!((c.own, c.pns, c.pac), (1, 1, 2));
}

#[test]
fn ids_are_replaced_where_they_stand() {
    let mut c = Control::default();
    assert_eq!(c.replacement(Kind::SetLink, false, 4000), None, "no call yet");
    assert_eq!(c.replacement(Kind::OutRequest, true, 4000), Some((12, 4000)));
    (c.own, c.pns, c.pac) = (0x1111, 4000, 0x2222);
    assert_eq!(c.replacement(Kind::OutReply, false, 4000), Some((14, 0x1111)));
    assert_eq!(c.replacement(Kind::Clear, true, 4000), Some((12, 4000)));
    for kind in [Kind::InConnected, Kind::WanError, Kind::SetLink, Kind::Disconnect] {
        assert_eq!(c.replacement(kind, false, 4000), Some((12, 0x1111)), "{kind:?}");
        assert_eq!(c.replacement(kind, true, 4000), None, "{kind:?}");
    }
    assert_eq!(c.replacement(Kind::StartRequest, true, 4000), None);
}

#[test]
fn a_full_list_of_patches_waits_for_the_receiver() {
    let mut p = Patches::default();
    let at = |n: usize| (u32::MAX - 8).wrapping_add(24 * n as u32); // across the turn of the numbers
    for n in 0..PATCHES {
        assert_eq!(p.set(at(n), 7), Ok(()), "{n}");
    }
    assert_eq!(p.set(5000, 7), Err(Full));
    assert_eq!(p.set(at(0), 8), Ok(()), "the same again");
    p.acknowledged(at(0).wrapping_add(1));
    assert_eq!(p.set(5000, 7), Err(Full));
    p.acknowledged(at(0).wrapping_add(2));
    assert_eq!(p.set(5000, 7), Ok(()));
    p.unset(5000);
    assert_eq!(p.set(6000, 7), Ok(()));
}

proptest! {
    #[test]
    fn cuts_make_no_difference(kinds in prop::collection::vec(1u16..=15, 1..6), ids in any::<[u8; 5]>(), cuts in prop::collection::vec(1usize..300, 1..40)) {
        let stream: Vec<u8> = kinds.iter().flat_map(|&k| message(Kind::of(k).expect("known"), &ids[..4])).collect();
        let whole = read([&stream[..]]);
        prop_assert_eq!(whole.iter().map(|m| m.kind as u16).collect::<Vec<_>>(), kinds);
        let (mut pieces, mut rest) = (Vec::new(), &stream[..]);
        for cut in cuts.into_iter().cycle() {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(read(pieces), whole);
    }

    #[test]
    fn anything_is_read_to_its_end(pieces in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x1a), Just(0x2b), Just(0x3c), Just(0x4d), any::<u8>()], 0..80), 0..10)) {
        let _ = read(pieces.iter().map(|p| &p[..]));
    }

    #[test]
    fn patches_are_the_same_in_every_cut(at in any::<u32>(), offset in 0u32..40, id in any::<u16>(), cut in 0usize..60) {
        let mut p = Patches::default();
        p.set(at.wrapping_add(offset), id).expect("room");
        let mut whole = [0xaa; 60];
        p.apply(at, &mut whole);
        let mut parts = [0xaa; 60];
        let (first, second) = parts.split_at_mut(cut);
        prop_assert_eq!(p.touches(at, cut as u32), (offset as usize) < cut);
        p.apply(at, first);
        p.apply(at.wrapping_add(cut as u32), second);
        prop_assert_eq!(parts, whole);
        prop_assert_eq!(be16(&whole, offset as usize), id);
    }
}
