use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::conntrack::tuple::{Tuple, proto};
use crate::io::PortIdx;
use crate::packet::L4;
use crate::parse::{Fragment, IpHeader};

/// A fragment whose "frame" is its place, so that a train can be read.
fn piece(id: u32, offset: u32, len: usize, more: bool) -> Piece<(u32, u32)> {
    let ip = IpHeader {
        src: Ipv4Addr::new(10, 0, 0, 1).into(),
        dst: Ipv4Addr::new(10, 0, 0, 2).into(),
        proto: proto::UDP,
        l4: 20,
        len: 20 + len,
        ttl: 64,
        fragment: Some(Fragment { id, offset, more, header: 0 }),
        atomic: None,
        dont_fragment: false,
        invalid: None,
    };
    let packet = Packet::new(PortIdx(0), 14, &ip, false, L4::Fragment, 0, 0);
    Piece { buf: (offset, offset + len as u32), packet, size: 34 + len }
}

fn defrag() -> Defrag<(u32, u32)> {
    Defrag::new(ahash::RandomState::with_seeds(1, 2, 3, 4))
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
        let mut d = defrag();
        let mut train = Train::new();
        let count = pieces.len();
        for (n, p) in pieces.into_iter().enumerate() {
            let arrived = d.insert(p, &Timeouts::default(), Nanos(0), &mut train);
            prop_assert_eq!(arrived, if n + 1 == count { Arrived::Whole } else { Arrived::Waits });
        }
        prop_assert_eq!((d.memory(), d.queues(), d.free.len()), (0, 0, FRAGMENTS));
        let mut at = 0;
        for p in &train {
            prop_assert_eq!(p.buf.0, at);
            at = p.buf.1;
        }
        prop_assert_eq!(at as usize, total);
    }

    #[test]
    fn whatever_comes_is_bounded_and_given_back(
        input in proptest::collection::vec((0u32..400, 0u32..40, 1usize..64, any::<bool>()), 0..1500),
    ) {
        let mut d = defrag();
        for (id, offset, len, more) in input {
            let mut train = Train::new();
            let len = if more { len * 8 } else { len };
            d.insert(piece(id, offset * 8, len, more), &Timeouts::default(), Nanos(0), &mut train);
            prop_assert!(d.queues() <= QUEUES && d.memory() <= MEMORY);
        }
        let mut train = Train::new();
        while d.queues() > 0 {
            d.expire(Nanos::from_secs(31), &mut train);
            train.clear();
        }
        prop_assert_eq!((d.memory(), d.free.len()), (0, FRAGMENTS));
    }
}

#[test]
fn a_duplicate_is_passed_over_and_a_partial_overlap_loses_the_datagram() {
    let (mut d, mut train) = (defrag(), Train::new());
    assert_eq!(d.insert(piece(1, 0, 64, true), &Timeouts::default(), Nanos(0), &mut train), Arrived::Waits);
    assert_eq!(
        d.insert(piece(1, 8, 16, true), &Timeouts::default(), Nanos(0), &mut train),
        Arrived::Lost(DropReason::FragmentDuplicate)
    );
    train.clear();
    assert_eq!(
        d.insert(piece(1, 56, 16, true), &Timeouts::default(), Nanos(0), &mut train),
        Arrived::Lost(DropReason::FragmentInvalid)
    );
    assert_eq!((train.len(), d.queues()), (2, 0));
}

#[test]
fn lengths_that_contradict_each_other_lose_the_datagram() {
    let (mut d, mut train) = (defrag(), Train::new());
    d.insert(piece(1, 64, 8, false), &Timeouts::default(), Nanos(0), &mut train);
    assert_eq!(
        d.insert(piece(1, 80, 8, true), &Timeouts::default(), Nanos(0), &mut train),
        Arrived::Lost(DropReason::FragmentInvalid)
    );
    train.clear();
    let ping_of_death = piece(2, 65_528, 64, false);
    assert_eq!(
        d.insert(ping_of_death, &Timeouts::default(), Nanos(0), &mut train),
        Arrived::Lost(DropReason::FragmentInvalid)
    );
}

#[test]
fn the_oldest_makes_room() {
    let (mut d, mut train) = (defrag(), Train::new());
    for id in 0..QUEUES as u32 {
        assert_eq!(d.insert(piece(id, 0, 8, true), &Timeouts::default(), Nanos(0), &mut train), Arrived::Waits);
    }
    let one_more = piece(QUEUES as u32, 0, 8, true);
    assert_eq!(
        d.insert(one_more, &Timeouts::default(), Nanos(0), &mut train),
        Arrived::Lost(DropReason::FragmentLimit)
    );
    assert_eq!((train.len(), d.queues()), (1, QUEUES));
    train.clear();
    assert_eq!(d.insert(piece(QUEUES as u32, 8, 8, false), &Timeouts::default(), Nanos(0), &mut train), Arrived::Whole);
}

#[test]
fn tuples_of_different_datagrams_do_not_mix() {
    let (mut d, mut train) = (defrag(), Train::new());
    d.insert(piece(1, 0, 8, true), &Timeouts::default(), Nanos(0), &mut train);
    let mut other = piece(1, 8, 8, false);
    other.packet.tuple = Tuple { src: Ipv4Addr::new(10, 0, 0, 9).into(), ..other.packet.tuple };
    assert_eq!(d.insert(other, &Timeouts::default(), Nanos(0), &mut train), Arrived::Waits);
    assert_eq!(d.queues(), 2);
}
