use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::io::PortIdx;
use crate::packet::L4;
use crate::parse::{Fragment, IpHeader};

const MIB: usize = 1 << 20;

/// A fragment whose "frame" is its place, so that a train can be read.
fn piece(id: u32, offset: u32, len: usize, more: bool) -> Piece<(u32, u32)> {
    piece_from(Ipv4Addr::new(10, 0, 0, 1).into(), id, offset, len, more)
}

fn piece_from(src: IpAddr, id: u32, offset: u32, len: usize, more: bool) -> Piece<(u32, u32)> {
    let (dst, headers, at) = match src {
        IpAddr::V4(_) => (Ipv4Addr::new(10, 0, 0, 2).into(), 20, 0),
        IpAddr::V6(_) => (Ipv6Addr::LOCALHOST.into(), 48, 40),
    };
    let ip = IpHeader {
        src,
        dst,
        proto: proto::UDP,
        l4: headers,
        len: headers + len,
        ttl: 64,
        fragment: Some(Fragment { id, offset, more, header: at }),
        atomic: None,
        dont_fragment: false,
        invalid: None,
    };
    let packet = Packet::new(PortIdx(0), 14, &ip, false, L4::Fragment, 0, 0);
    Piece { buf: (offset, offset + len as u32), packet }
}

fn defrag(memory: usize) -> Defrag<(u32, u32)> {
    let setup = Setup { memory, ..Setup::default() };
    Defrag::new(&setup, ahash::RandomState::with_seeds(1, 2, 3, 4))
}

/// What one more fragment of a datagram, and the first, take.
fn costs() -> (usize, usize) {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    d.insert(piece(1, 0, 8, true), Nanos(0), &mut train);
    let first = d.memory();
    d.insert(piece(1, 8, 8, true), Nanos(0), &mut train);
    (d.memory() - first, first)
}

fn spoofed(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0b00_0000 + n).into()
}

fn cuts(total: usize, step: usize) -> Vec<Piece<(u32, u32)>> {
    (0..total.div_ceil(step))
        .map(|n| {
            let start = n * step;
            let end = total.min(start + step);
            piece(7, start as u32, end - start, end < total)
        })
        .collect()
}

proptest! {
    #[test]
    fn any_order_gives_the_whole_in_order(total in 9usize..2000, step in 1usize..40, order in any::<u64>()) {
        let mut pieces = cuts(total, (step * 8).max(total.div_ceil(TRAIN).next_multiple_of(8)));
        let mut random = order | 1;
        for i in (1..pieces.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pieces.swap(i, (random >> 33) as usize % (i + 1));
        }
        prop_assume!(pieces.len() > 1);
        let (mut d, mut train) = (defrag(MIB), Train::new());
        let count = pieces.len();
        for (n, p) in pieces.into_iter().enumerate() {
            let arrived = d.insert(p, Nanos(0), &mut train);
            prop_assert_eq!(arrived, if n + 1 == count { Arrived::Whole } else { Arrived::Waits });
        }
        prop_assert_eq!((d.memory(), d.queues()), (0, 0));
        let mut at = 0;
        for p in &train {
            prop_assert_eq!(p.buf.0, at);
            at = p.buf.1;
        }
        prop_assert_eq!(at as usize, total);
    }

    /// Every fragment comes out once: whole, lost or given up; and the memory never passes its mark.
    #[test]
    fn whatever_comes_is_bounded_and_given_back(
        input in proptest::collection::vec((0u32..9, 0u32..300, 0u32..40, 1usize..64, any::<bool>()), 0..1500),
        virtually in any::<bool>(),
    ) {
        let mode = if virtually { Mode::Virtual } else { Mode::Reassemble };
        let setup = Setup { memory: MIB, mode, ..Setup::default() };
        let mut d = Defrag::new(&setup, ahash::RandomState::with_seeds(1, 2, 3, 4));
        let mut inside = 0;
        for (source, id, offset, len, more) in input {
            let mut train = Train::new();
            let len = if more { len * 8 } else { len };
            let src = match source {
                0 => Ipv6Addr::from_bits(1 << 80 | u128::from(id)).into(),
                n => spoofed(n * 1000 + id % (n * n)),
            };
            d.insert(piece_from(src, id, offset * 8, len, more), Nanos(0), &mut train);
            inside = inside + 1 - train.len();
            train.clear();
            if let Some(q) = d.begun(&mut train) {
                prop_assert!(virtually && !train.is_empty());
                inside -= train.len();
                d.judged(q, &train[0].packet);
            }
            prop_assert!(d.memory() <= MIB && (virtually || d.queues() <= inside));
        }
        let mut train = Train::new();
        while d.expire(&Timeouts::default(), Nanos::from_secs(61), &mut train) {
            inside -= train.len();
            train.clear();
        }
        prop_assert_eq!((inside, d.memory(), d.queues()), (0, 0, 0));
    }
}

#[test]
fn a_duplicate_is_passed_over_and_a_partial_overlap_loses_the_datagram() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    assert_eq!(d.insert(piece(1, 0, 64, true), Nanos(0), &mut train), Arrived::Waits);
    let within = d.insert(piece(1, 8, 16, true), Nanos(0), &mut train);
    assert_eq!(within, Arrived::Lost(DropReason::FragmentDuplicate));
    train.clear();
    let partial = d.insert(piece(1, 56, 16, true), Nanos(0), &mut train);
    assert_eq!(partial, Arrived::Lost(DropReason::FragmentOverlap));
    assert_eq!((train.len(), d.queues(), d.memory()), (2, 0, 0));
}

#[test]
fn lengths_that_cannot_be_lose_the_datagram() {
    let wrong = [
        (80, 8, true),      // behind the last
        (72, 16, false),    // another end
        (0, 0, true),       // nothing
        (65_528, 8, false), // 65,536 bytes
    ];
    for (offset, len, more) in wrong {
        let (mut d, mut train) = (defrag(MIB), Train::new());
        d.insert(piece(1, 64, 8, false), Nanos(0), &mut train);
        let arrived = d.insert(piece(1, offset, len, more), Nanos(0), &mut train);
        assert_eq!(arrived, Arrived::Lost(DropReason::FragmentInvalid), "{offset} {len} {more}");
        assert_eq!((train.len(), d.queues()), (2, 0), "{offset} {len} {more}");
    }
    // A middle fragment that is no multiple of eight bytes is lost alone.
    let (mut d, mut train) = (defrag(MIB), Train::new());
    d.insert(piece(1, 64, 8, false), Nanos(0), &mut train);
    assert_eq!(d.insert(piece(1, 0, 63, true), Nanos(0), &mut train), Arrived::Lost(DropReason::FragmentInvalid));
    assert_eq!((train.len(), d.queues()), (1, 1));
}

#[test]
fn a_datagram_is_as_long_as_its_header_can_say_and_no_longer() {
    for (length, whole) in [(65_515, true), (65_516, false)] {
        let (mut d, mut train) = (defrag(MIB), Train::new());
        for start in (0..65_000).step_by(2000) {
            d.insert(piece(1, start, 2000, true), Nanos(0), &mut train);
        }
        let arrived = d.insert(piece(1, 66_000 - 2000, 1000, true), Nanos(0), &mut train);
        assert_ne!(arrived, Arrived::Whole);
        train.clear();
        let mut d = defrag(MIB);
        let mut arrived = Arrived::Waits;
        for p in cuts(length, 2000) {
            arrived = d.insert(p, Nanos(0), &mut train);
        }
        assert_eq!(arrived == Arrived::Whole, whole, "{length}: {arrived:?}");
    }
}

#[test]
fn one_fragment_too_many_loses_the_datagram() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    for n in 0..TRAIN as u32 {
        assert_eq!(d.insert(piece(1, n * 16, 8, true), Nanos(0), &mut train), Arrived::Waits);
    }
    let arrived = d.insert(piece(1, 8, 8, true), Nanos(0), &mut train);
    assert_eq!((arrived, train.len(), d.queues()), (Arrived::Lost(DropReason::FragmentCount), TRAIN + 1, 0));
}

#[test]
fn at_the_mark_the_oldest_makes_room_and_the_one_that_came_stays() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    let (_, datagram) = costs();
    let room = (MIB / datagram) as u32;
    for n in 0..room {
        assert_eq!(d.insert(piece_from(spoofed(n), n, 0, 8, true), Nanos(0), &mut train), Arrived::Waits, "{n}");
    }
    let arrived = d.insert(piece_from(spoofed(room), room, 0, 8, true), Nanos(0), &mut train);
    assert_eq!((arrived, train.len(), d.queues()), (Arrived::Lost(DropReason::FragmentLimit), 1, room as usize));
    assert_eq!(train[0].packet.tuple.src, spoofed(0));
    train.clear();
    let arrived = d.insert(piece_from(spoofed(room), room, 8, 8, false), Nanos(0), &mut train);
    assert_eq!(arrived, Arrived::Whole);
}

#[test]
fn a_flood_of_first_fragments_costs_no_datagram_in_progress() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    for offset in [0, 64] {
        d.insert(piece(1, offset, 8, true), Nanos(0), &mut train);
    }
    for n in 0..100_000 {
        d.insert(piece_from(spoofed(n), n, 0, 8, true), Nanos(0), &mut train);
        assert!(train.iter().all(|p| p.packet.tuple.src != piece(1, 0, 8, true).packet.tuple.src), "{n}");
        assert!(d.memory() <= MIB);
        train.clear();
    }
    d.insert(piece(1, 72, 8, false), Nanos(0), &mut train);
    train.clear();
    assert_eq!(d.insert(piece(1, 8, 56, true), Nanos(0), &mut train), Arrived::Whole);
}

/// Datagrams in progress may not hold all of it: who begins one must have a chance.
#[test]
fn datagrams_in_progress_leave_room_for_new_ones() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    for n in 0..10_000 {
        for offset in [0, 64] {
            d.insert(piece_from(spoofed(n), n, offset, 8, true), Nanos(0), &mut train);
            train.clear();
        }
    }
    let (fragment, datagram) = costs();
    let alone = MIB / 8 / datagram;
    for n in 0..alone as u32 {
        d.insert(piece_from(spoofed(20_000 + n), 1, 0, 8, true), Nanos(0), &mut train);
        assert!(train.iter().all(|p| p.packet.fragment.is_some_and(|f| f.id != 1)), "{n}");
        train.clear();
    }
    assert!(d.memory() > MIB - datagram - fragment);
}

#[test]
fn a_source_at_its_share_loses_its_own_oldest_datagram() {
    for source in [spoofed(1), Ipv6Addr::from_bits(1 << 80).into()] {
        let (mut d, mut train) = (defrag(4 * MIB), Train::new());
        d.insert(piece_from(spoofed(9999), 5, 0, 8, true), Nanos(0), &mut train);
        let (_, datagram) = costs();
        let share = (4 * MIB / SHARE / datagram) as u32;
        for n in 0..share {
            assert_eq!(d.insert(piece_from(source, n, 0, 8, true), Nanos(0), &mut train), Arrived::Waits, "{n}");
        }
        let arrived = d.insert(piece_from(source, share, 0, 8, true), Nanos(0), &mut train);
        assert_eq!((arrived, train.len()), (Arrived::Lost(DropReason::FragmentShare), 1));
        assert_eq!(train[0].packet.fragment.map(|f| f.id), Some(0));
        train.clear();
        // An IPv6 source is its network: another host of it is no other source.
        let neighbour = match source {
            IpAddr::V4(_) => continue,
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() | 77).into(),
        };
        let arrived = d.insert(piece_from(neighbour, 0, 0, 8, true), Nanos(0), &mut train);
        assert_eq!(arrived, Arrived::Lost(DropReason::FragmentShare));
    }
}

/// However small the memory, the largest datagram in the most fragments passes.
#[test]
fn the_share_holds_the_largest_datagram() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    let step = 65_515usize.div_ceil(TRAIN).next_multiple_of(8);
    for p in cuts(65_515, step).into_iter().rev() {
        let last = d.insert(p, Nanos(0), &mut train);
        assert_eq!(last == Arrived::Waits, train.is_empty());
    }
    assert_eq!(train.len(), 65_515usize.div_ceil(step));
}

#[test]
fn a_datagram_is_given_up_after_its_versions_timeout() {
    let (mut d, mut train, t) = (defrag(MIB), Train::new(), Timeouts::default());
    d.insert(piece_from(Ipv6Addr::LOCALHOST.into(), 1, 8, 8, true), Nanos(0), &mut train);
    d.insert(piece(1, 8, 8, true), Nanos(0), &mut train);
    d.insert(piece(1, 0, 8, true), Nanos::from_secs(29), &mut train);
    assert!(!d.expire(&t, Nanos::from_millis(29_999), &mut train));
    assert!(d.expire(&t, Nanos::from_secs(30), &mut train));
    assert_eq!((train.len(), train[0].buf), (2, (0, 8)));
    train.clear();
    assert!(!d.expire(&t, Nanos::from_millis(59_999), &mut train));
    assert!(d.expire(&t, Nanos::from_secs(60), &mut train));
    assert_eq!(d.queues(), 0);
}

#[test]
fn fragments_of_different_datagrams_do_not_mix() {
    let (mut d, mut train) = (defrag(MIB), Train::new());
    d.insert(piece(1, 0, 8, true), Nanos(0), &mut train);
    let mut zone = piece(1, 8, 8, false);
    zone.packet.tuple.ct_zone = 5;
    let mut tcp = piece(1, 8, 8, false);
    tcp.packet.tuple.proto = proto::TCP;
    for other in [piece(2, 8, 8, false), piece_from(spoofed(1), 1, 8, 8, false), zone, tcp] {
        assert_eq!(d.insert(other, Nanos(0), &mut train), Arrived::Waits);
    }
    assert_eq!(d.queues(), 5);
}
