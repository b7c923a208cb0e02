//! Reassembly held against a naive one: bytes in an array, rules as the RFCs have them and, for what overlaps, as Linux has.
//!
//! RFC 791 section 3.2 and RFC 8200 section 4.5 say where bytes go, RFC 5722 section 4 (with erratum 3089) that an overlap
//! ends an IPv6 datagram and a duplicate does not; Linux does the same for IPv4, and counts as one piece what came in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::api::DropReason;
use dataplane::conntrack::timeouts::Timeouts;
use dataplane::conntrack::tuple::proto;
use dataplane::defrag::{Arrived, Defrag, Mode, Piece, Setup, TRAIN, Train};
use dataplane::io::RxChecksum;
use dataplane::packet::L4;
use dataplane::parse::{self, Parsed, checksum};
use dataplane::time::Nanos;

use super::oracle::{Input, receiver};

/// What becomes of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Waits,
    /// These bytes are the datagram.
    Whole(Vec<u8>),
    /// So many fragments are lost, this one with them.
    Lost(DropReason, usize),
    /// It is INVALID by itself; so many others are lost.
    Invalid(usize),
    /// Virtual mode: so many go on, this one with them.
    Goes(usize),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::Whole(_) => "whole",
            Self::Lost(reason, _) => reason.label(),
            Self::Invalid(0) => "invalid",
            Self::Invalid(_) => "invalid with others",
            Self::Goes(1) => "goes",
            Self::Goes(_) => "goes with others",
        }
    }
}

/// One fragment as it stands in a frame.
#[derive(Clone, Debug)]
struct Fragment {
    /// Which datagram, 0..4.
    of: usize,
    start: usize,
    more: bool,
    data: Vec<u8>,
    /// Bytes of IPv4 options or IPv6 extension headers before the fragment header.
    extra: usize,
    proto: u8,
}

impl Fragment {
    /// One or more fragments: anywhere, at the end of what an offset can say, where others are, or into the first gap.
    fn read(input: &mut Input<'_>, models: &[Model; 4]) -> Vec<Self> {
        let how = input.byte();
        let of = usize::from(how & 3);
        let gap = models[of].bytes.iter().position(Option::is_none).unwrap_or(models[of].bytes.len());
        let size = match how >> 4 & 3 {
            0 => input.word() % 4_000,
            _ => u16::from(input.byte() & 15) * 8,
        };
        let kinds = input.byte();
        let size = usize::from(size) + if kinds & 0x1c == 0 { usize::from(kinds >> 5) } else { 0 };
        let (start, size, count) = match how >> 2 & 3 {
            0 => (usize::from(input.word() >> 3) * 8, size, 1),
            1 => (usize::from(0x1fff - (input.byte() & 0x7f) as u16) * 8, size, 1),
            2 if how & 0x30 == 0x30 => (gap / 8 * 8, 8, 1 + usize::from(input.byte() % 80)),
            2 => (usize::from(input.byte() & 31) * 8, size, 1),
            _ => {
                // Into the gap, so that the datagram can become whole.
                let behind = models[of].bytes.iter().skip(gap).position(Option::is_some);
                (gap / 8 * 8, behind.map_or(size, |n| size.min(n).max(8)), 1)
            }
        };
        let proto = [proto::UDP, proto::TCP, 0xfd, proto::UDP][usize::from(kinds & 3)];
        let salt = input.byte();
        let extra = if kinds & 0x10 == 0 { 0 } else { 8 };
        let more = how & 0x40 == 0 || count > 1;
        (0..count)
            .map(|n| start + n * 2 * size)
            .map(|start| {
                let data = (0..size).map(|n| (start + n) as u8 ^ salt).collect();
                Self { of, start, more, data, extra, proto }
            })
            .filter(|f| f.start < 65_536)
            .collect()
    }

    fn end(&self) -> usize {
        self.start + self.data.len()
    }

    fn frame(&self, v6: bool) -> Vec<u8> {
        let mut b = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 9];
        let id = 7 + self.of as u16 % 2;
        let field = (self.start / 8) as u16;
        if v6 {
            b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            b.extend(((self.extra + 8 + self.data.len()) as u16).to_be_bytes());
            b.extend([if self.extra > 0 { 60 } else { 44 }, 64]);
            b.extend(Ipv6Addr::from_bits(1 << 64 | (self.of as u128) << 66 | 1).octets());
            b.extend(Ipv6Addr::from_bits(5).octets());
            if self.extra > 0 {
                b.extend([44, 0, 1, 4, 0, 0, 0, 0]);
            }
            b.extend([self.proto, 0]);
            b.extend((field << 3 | u16::from(self.more)).to_be_bytes());
            b.extend(u32::from(id).to_be_bytes());
        } else {
            b.extend([8, 0, 0x45 + (self.extra / 4) as u8, 0]);
            b.extend(((20 + self.extra + self.data.len()) as u16).to_be_bytes());
            b.extend(id.to_be_bytes());
            b.extend((field | u16::from(self.more) << 13).to_be_bytes());
            b.extend([64, proto::UDP, 0, 0]);
            b.extend(Ipv4Addr::new(10, 0, 0, self.of as u8).octets());
            b.extend(Ipv4Addr::new(10, 0, 1, 1).octets());
            b.extend(vec![1; self.extra]);
            let sum = !checksum::sum(&b[14..]);
            b[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        b.extend(&self.data);
        b
    }
}

/// A datagram as a byte array.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Each byte that is there, and the number of the piece that it came with or continued.
    bytes: Vec<Option<(u8, usize)>>,
    total: Option<usize>,
    fragments: usize,
    /// As far as an empty fragment has said that there is more.
    said: usize,
    /// Of the fragments, the ones that wait.
    waiting: usize,
    /// What counts beside the payload, of the fragment with offset 0.
    extra: usize,
    /// Virtual mode: the first has gone on.
    gone: bool,
    /// Virtual mode: it had gone on when something came that cannot be.
    refused: bool,
}

impl Model {
    /// Takes a fragment. What ends the datagram leaves an empty model behind.
    fn take(&mut self, f: &Fragment, v6: bool, mode: Mode) -> Outcome {
        let outcome = self.judge(f, v6, mode);
        let ends = match &outcome {
            Outcome::Waits => false,
            Outcome::Whole(_) => true,
            Outcome::Lost(DropReason::FragmentOverlap | DropReason::FragmentCount, _) => true,
            Outcome::Lost(DropReason::FragmentInvalid, lost) => *lost > 1 || !v6 && !self.is_odd(f),
            Outcome::Invalid(_) => self.is_odd(f) && !Self::is_cut(f, v6),
            Outcome::Goes(_) => self.is_whole(),
            Outcome::Lost(..) => false,
        };
        if ends && self.gone && !matches!(outcome, Outcome::Goes(_)) {
            self.refused = true;
        } else if ends {
            *self = Self::default();
        }
        outcome
    }

    fn is_odd(&self, f: &Fragment) -> bool {
        f.more && !f.data.len().is_multiple_of(8)
    }

    /// Linux wants so much of the transport header in an IPv6 datagram's first fragment.
    fn is_cut(f: &Fragment, v6: bool) -> bool {
        let header = match f.proto {
            proto::TCP => 20,
            proto::UDP => 8,
            _ => 1,
        };
        v6 && f.start == 0 && f.data.len() < header
    }

    fn is_whole(&self) -> bool {
        self.total.is_some_and(|t| self.bytes.len() == t && self.bytes.iter().all(Option::is_some))
    }

    fn judge(&mut self, f: &Fragment, v6: bool, mode: Mode) -> Outcome {
        let lost = |reason, others: usize| Outcome::Lost(reason, others + 1);
        let beyond = f.end() > 65_535;
        if v6 && beyond {
            return lost(DropReason::FragmentInvalid, 0);
        }
        if Self::is_cut(f, v6) {
            return Outcome::Invalid(0);
        }
        if self.is_odd(f) {
            return if v6 { Outcome::Invalid(self.waiting) } else { lost(DropReason::FragmentInvalid, 0) };
        }
        // A length that is known is not contradicted, and the last fragment has nothing behind it.
        let contradicts = self.total.is_some_and(|t| f.end() > t || !f.more && f.end() != t);
        let end = self.bytes.len().max(self.said);
        if beyond || contradicts || !f.more && end > f.end() {
            return lost(DropReason::FragmentInvalid, if v6 { 0 } else { self.waiting });
        }
        if f.data.is_empty() {
            // Of IPv6 it is believed.
            let believed = v6 && self.fragments > 0 && mode == Mode::Reassemble;
            if believed && f.more {
                self.said = self.said.max(f.end());
            } else if believed {
                self.total = Some(f.end());
            }
            return lost(DropReason::FragmentInvalid, if v6 { 0 } else { self.waiting });
        }
        let there: Vec<_> = (f.start..f.end()).map(|at| self.bytes.get(at).copied().flatten()).collect();
        if there.iter().any(Option::is_some) {
            let one_piece = there.iter().all(|b| b.is_some_and(|(_, p)| Some(p) == there[0].map(|(_, p)| p)));
            return if one_piece {
                // What it says of the length is believed.
                if !f.more && mode == Mode::Reassemble {
                    self.total = Some(f.end());
                }
                lost(DropReason::FragmentDuplicate, 0)
            } else {
                lost(DropReason::FragmentOverlap, self.waiting)
            };
        }
        if self.fragments == TRAIN {
            return lost(DropReason::FragmentCount, self.waiting);
        }
        let continues = self.fragments > 0 && f.start == self.bytes.len();
        let piece = if continues { self.bytes[f.start - 1].map_or(0, |(_, p)| p) } else { self.fragments + 1 };
        if self.bytes.len() < f.end() {
            self.bytes.resize(f.end(), None);
        }
        for (n, b) in f.data.iter().enumerate() {
            self.bytes[f.start + n] = Some((*b, piece));
        }
        self.fragments += 1;
        if self.refused {
            self.total = if f.more { self.total } else { Some(f.end()) };
            return lost(DropReason::FragmentFirst, 0);
        }
        self.waiting += 1;
        if f.start == 0 {
            self.extra = if v6 { f.extra } else { 20 + f.extra };
        }
        if !f.more {
            self.total = Some(f.end());
        }
        if self.is_whole() && !self.gone {
            let bytes: Vec<u8> = self.bytes.iter().flatten().map(|b| b.0).collect();
            return if self.extra + bytes.len() > 65_535 {
                Outcome::Lost(DropReason::FragmentInvalid, self.waiting)
            } else {
                Outcome::Whole(bytes)
            };
        }
        self.gone |= mode == Mode::Virtual && f.start == 0 && (!v6 || f.proto != proto::TCP);
        if self.gone { Outcome::Goes(std::mem::take(&mut self.waiting)) } else { Outcome::Waits }
    }
}

/// Feeds fragments of a few datagrams, as `input` says, to both: each must do the same with each. Gives what has happened,
/// by name.
pub fn reassembles(v6: bool, input: &mut Input<'_>) -> BTreeMap<&'static str, usize> {
    let mut happened = BTreeMap::new();
    let mode = if input.byte() & 1 == 0 { Mode::Reassemble } else { Mode::Virtual };
    // Room for all fragments that four datagrams may have: limits are others' business.
    let setup = Setup { memory: 1 << 20, mode, ..Setup::default() };
    let mut defrag: Defrag<Vec<u8>> = Defrag::new(&setup, ahash::RandomState::with_seeds(1, 2, 3, 4));
    let mut models: [Model; 4] = Default::default();
    let mut turns = 0;
    while !input.0.is_empty() && turns < 400 {
        turns += 1;
        for f in Fragment::read(input, &models) {
            if f.start == 0 && !f.more || f.extra + f.data.len() > 65_000 {
                continue; // no fragment, or none that a frame holds
            }
            let frame = f.frame(v6);
            let packet = match parse::frame(&frame, &receiver(&frame, None, true), RxChecksum::Unknown) {
                Ok(Parsed::Ip(p)) if p.kind == L4::Fragment => p,
                other => panic!("{f:?} is no fragment: {other:?}"),
            };
            let mut train = Train::new();
            let arrived = defrag.insert(Piece { buf: frame, packet }, Nanos(0), &mut train);
            let outcome = outcome(&mut defrag, arrived, &mut train, v6);
            assert_eq!(outcome, models[f.of].take(&f, v6, mode), "{f:?}");
            *happened.entry(outcome.name()).or_default() += 1;
            let live = models.iter().filter(|m| m.fragments > 0).count();
            assert_eq!((defrag.queues(), defrag.memory() == 0), (live, live == 0));
        }
    }
    let mut waiting = 0;
    let mut train = Train::new();
    while defrag.expire(&Timeouts::default(), Nanos::from_secs(60), &mut train) {
        waiting += train.len();
        train.clear();
    }
    assert_eq!(waiting, models.iter().map(|m| m.waiting).sum());
    assert_eq!((defrag.queues(), defrag.memory()), (0, 0));
    happened
}

fn outcome(defrag: &mut Defrag<Vec<u8>>, arrived: Arrived, train: &mut Train<Vec<u8>>, v6: bool) -> Outcome {
    let before = train.len();
    let outcome = match arrived {
        Arrived::Waits => Outcome::Waits,
        Arrived::Whole => Outcome::Whole(train.iter().flat_map(|p| payload(p, v6).to_vec()).collect()),
        Arrived::Lost(reason) => Outcome::Lost(reason, before),
        Arrived::Invalid => Outcome::Invalid(before - 1),
        Arrived::Later(first) => {
            assert!(first.fragment.is_some_and(|f| f.offset == 0) && before == 1);
            Outcome::Goes(1)
        }
    };
    train.clear();
    let Some(q) = defrag.begun(train) else { return outcome };
    assert_eq!(outcome, Outcome::Waits);
    let mut behind = 0;
    for p in train.iter() {
        let offset = p.packet.fragment.map_or(0, |f| f.offset);
        assert!(offset >= behind, "in the order of their offsets");
        behind = offset + payload(p, v6).len() as u32;
    }
    assert_eq!(train[0].packet.fragment.map(|f| f.offset), Some(0), "the first leads");
    defrag.judged(q, &train[0].packet);
    Outcome::Goes(train.len())
}

/// A fragment's part of the datagram.
fn payload(p: &Piece<Vec<u8>>, v6: bool) -> &[u8] {
    let (l3, l4, end) = p.packet.span();
    let at = match (v6, p.packet.fragment) {
        (true, Some(f)) => l3 + f.header + 8,
        _ => l4,
    };
    assert!(matches!((v6, p.packet.tuple.src), (true, IpAddr::V6(_)) | (false, IpAddr::V4(_))));
    &p.buf[at..end]
}
