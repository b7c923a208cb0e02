//! Datagrams in fragments: in order, reversed, shuffled, sent twice, lost, interleaved, and such as contradict each other.
//!
//! *Limits*: [`HELD`] fragments that come late; one datagram in forty is never complete, so that neither side's memory
//! fills up. *Sources*: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722, RFC 6946 for what fragments may be.

use std::collections::VecDeque;

use super::dice::Dice;
use crate::frame::Side;
use crate::packet::{Packet, pattern};

/// Fragments that wait for their turn, at most.
const HELD: usize = 24;

/// Most fragments of a datagram.
const MOST: usize = 48;

/// Payload of a fragment that fits the links, whatever stands in front.
const LARGEST: usize = 1400;

/// A fragment: where it begins, what it has, whether more follow.
#[derive(Clone, Debug)]
struct Piece {
    at: usize,
    part: Vec<u8>,
    more: bool,
}

impl Piece {
    fn end(&self) -> usize {
        self.at + self.part.len()
    }
}

/// Cuts datagrams.
#[derive(Debug, Default)]
pub struct Cutter {
    held: VecDeque<(Side, Vec<u8>)>,
}

impl Cutter {
    /// The fragments of `packet` in the order in which they are sent now; some may be held back.
    pub fn cut(&mut self, mut packet: Packet, id: u32, side: Side, dice: &mut Dice) -> Vec<Vec<u8>> {
        let v4 = packet.src.is_ipv4();
        packet.df = dice.percent(15);
        if v4 {
            if dice.percent(3) {
                packet.options = vec![1; dice.of(&[4, 8, 40])];
            }
        } else {
            extend(&mut packet, dice);
        }
        let step = dice.of(&[8, 16, 24, 64, 256, 512, 1000, LARGEST]);
        let step = step.max(packet.l4.len().div_ceil(MOST).next_multiple_of(8));
        let mut pieces = pieces(&packet.l4, step);
        match dice.below(20) {
            0..8 => {}
            8..12 => pieces.reverse(),
            _ => shuffle(&mut pieces, dice),
        }
        if dice.percent(12) {
            let head = packet.l4.iter().copied().take(8).collect();
            spoil(&mut pieces, head, v4, dice);
        }
        let mut frames: Vec<_> = pieces.iter().map(|p| packet.piece(Some((id, p.at, p.more)), &p.part)).collect();
        if dice.percent(15) && self.held.len() < HELD {
            let late = frames.split_off(dice.below(frames.len().max(1)));
            self.held.extend(late.into_iter().map(|frame| (side, frame)));
        }
        frames
    }

    /// A fragment that was held back, now and then; in the end all of them.
    pub fn late(&mut self, dice: &mut Dice) -> Option<(Side, Vec<u8>)> {
        if self.held.is_empty() || !dice.percent(25) {
            return None;
        }
        let n = dice.below(self.held.len());
        self.held.remove(n)
    }
}

/// IPv6 extension headers in front of the fragment header, and behind it.
fn extend(packet: &mut Packet, dice: &mut Dice) {
    const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    const DESTINATION: u8 = 60;
    if dice.percent(5) {
        let kind = dice.of(&[0, DESTINATION]);
        packet.extensions.push((kind, OPTIONS.to_vec()));
    }
    if dice.percent(5) {
        let mut header = OPTIONS;
        header[0] = packet.proto;
        packet.l4.splice(0..0, header);
        packet.proto = DESTINATION;
    }
}

/// `bytes` in pieces of `step`, a multiple of 8.
fn pieces(bytes: &[u8], step: usize) -> Vec<Piece> {
    let count = bytes.len().div_ceil(step).max(1);
    let piece = |n: usize| {
        let part = bytes[n * step..bytes.len().min((n + 1) * step)].to_vec();
        Piece { at: n * step, part, more: n + 1 < count }
    };
    (0..count).map(piece).collect()
}

fn shuffle(pieces: &mut [Piece], dice: &mut Dice) {
    for n in (1..pieces.len()).rev() {
        pieces.swap(n, dice.below(n + 1));
    }
}

/// Something that fragments should not be: one more, one less, one changed.
fn spoil(pieces: &mut Vec<Piece>, head: Vec<u8>, v4: bool, dice: &mut Dice) {
    if pieces.is_empty() {
        return;
    }
    let n = dice.below(pieces.len());
    let mut p = pieces[n].clone();
    let whole = pieces.iter().map(Piece::end).max().unwrap_or(0);
    let eights = |bytes: usize| bytes / 8 * 8;
    match dice.below(16) {
        0 => {
            pieces.remove(n);
            return;
        }
        1..5 => {} // once more
        5 => p.part.reverse(),
        6 => {
            // Its first half, or its second.
            let half = eights(p.part.len() / 2);
            if dice.percent(50) && half > 0 {
                p.part.truncate(half);
                p.more = true;
            } else {
                (p.at, p.part) = (p.at + half, p.part.split_off(half));
            }
        }
        7 => {
            // It and what is in front of it, or a part of that.
            let more = eights(p.at).min(dice.of(&[8, 64, 2000]));
            p.at -= more;
            p.part = [pattern(more), p.part].concat();
        }
        8 => {
            // It and more than it, as far as the datagram goes, or further.
            let more = dice.of(&[8, 64, 1200]);
            p.part.resize(eights(p.part.len()), 0);
            p.part.extend(pattern(more));
            p.more = p.end() < whole;
        }
        9 => {
            // Across the border of two.
            p.at = eights(p.at + p.part.len() / 2);
            p.part = pattern(eights(p.part.len()).max(8));
            p.more = true;
        }
        10 => p.more = !p.more,
        11 => p.part = Vec::new(),
        12 => {
            let odd = p.part.len().saturating_sub(dice.within(1..=7) as usize);
            p.part.truncate(odd);
        }
        // Beyond what a datagram can be. IPv4: scenario fragments4_overlap; Linux waits with them.
        13 if !v4 => (p.at, p.part) = (65_528 - dice.of(&[0, 8, 1392]), pattern(dice.of(&[7, 8, 200, 1400]))),
        14 => {
            // All of it in one.
            (p.at, p.part, p.more) = (0, pattern(whole.min(LARGEST)), false);
        }
        _ => (p.at, p.more) = (whole.next_multiple_of(8), dice.percent(50)),
    }
    p.part.truncate(LARGEST);
    let by_itself = |p: &Piece| !v4 && p.at == 0 && (!p.more || p.part.is_empty());
    if by_itself(&p) || pieces.iter().any(by_itself) {
        return; // scenario fragments6_atomic
    }
    if p.at == 0 {
        // What looks into extension headers finds some.
        p.part.iter_mut().zip(head).for_each(|(b, own)| *b = own);
    }
    if v4 && p.more && !p.part.is_empty() && !p.part.len().is_multiple_of(8) {
        // Linux cuts a middle fragment to a multiple of 8 bytes; here it is dropped.
        p.part.truncate(eights(p.part.len()).max(8));
        p.part.resize(8.max(p.part.len()), 0);
    }
    // An empty IPv6 fragment that comes first is remembered by Linux alone: docs/LINUX.md.
    let first = usize::from(!v4 && p.part.is_empty());
    if dice.percent(50) && n >= first {
        pieces[n] = p;
    } else {
        pieces.insert(first + dice.below(pieces.len() + 1 - first), p);
    }
}
