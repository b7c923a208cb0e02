//! What must hold of any talk over a PPTP control connection and of the GRE packets around it, however they are cut, lost,
//! repeated, reordered and broken.

use super::lab::*;
use super::oracle::Input;
use super::pkt::*;
use super::pptp::*;
use super::session::Side;

/// Both sides talk as `input` says. Each receives every byte of the other once and in order; what differs are ids in
/// messages, where they may. Whatever GRE packets come, workers agree on whose they are, and nothing is left in the end.
pub fn talks(input: &mut Input<'_>) {
    let flags = input.byte();
    let way = ways().into_iter().nth(usize::from(flags) % 5).expect("a way");
    let setup = Setup {
        workers: [1, 2, 4, 2][usize::from(flags >> 3 & 3)],
        arrival: if flags & 0x20 == 0 { Arrival::Rss } else { Arrival::Anywhere },
        seed: u64::from(input.byte()),
        stations: 12,
        ..Setup::default()
    };
    let mut spec = way.spec.clone();
    spec.conntrack.timeouts.expect_pptp = dataplane::time::Nanos::from_secs(5);
    let mut lab = Lab::with(spec, setup);
    let mut talks = [Talk::open(&mut lab, &way, 4000), Talk::open(&mut lab, &way, 4001)];
    let mut in_step = [[true; 2]; 2];
    let mut turns = 0;
    while !input.0.is_empty() && turns < 40 {
        turns += 1;
        let op = input.byte();
        let talk = &mut talks[usize::from(op >> 7)];
        if op & 3 == 0 {
            let (from, _) = talk.ends(if op & 4 == 0 { Side::Client } else { Side::Server });
            let id = [0x11, 0x22, 4000, 4001, u16::from(input.byte())][usize::from(op >> 3 & 7).min(4)];
            let packet = gre(&from.address, &from.peer.0, id);
            let link = from.link;
            lab.send(link, &packet);
        } else {
            let side = if op & 4 == 0 { Side::Client } else { Side::Server };
            let (text, whole) = text(input, talk.tcp.server.peer.1);
            let in_step = &mut in_step[usize::from(op >> 7)][usize::from(op >> 2 & 1)];
            *in_step &= whole;
            says(&mut lab, talk, side, &text, *in_step, input);
        }
        if op & 0x40 != 0 {
            lab.wait(dataplane::time::Nanos::from_secs(u64::from(input.byte() % 7)));
        }
        lab.sound();
    }
    lab.flush(Default::default());
    lab.sound();
    assert_eq!((lab.expectations(), lab.entries(), lab.pool.live()), (vec![], 0, 0));
}

/// Some messages, of which some are broken, and whether all are as long as they say. `port`: by what the other side may know
/// the client's id.
fn text(input: &mut Input<'_>, port: u16) -> (Vec<u8>, bool) {
    let (mut text, mut whole) = (Vec::new(), true);
    for _ in 0..=input.byte() % 3 {
        let b = input.byte();
        let id = |b: u8| [0x11, 0x22, port, 0][usize::from(b & 3)];
        let kind = [7, 8, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1, 2, 3, 4, 5][usize::from(b >> 4)];
        let mut m = ids(kind, &[id(b), id(b >> 2), 0x0100]);
        let change = input.byte();
        if change & 0xe0 == 0 {
            m[usize::from(change) % 12] ^= input.byte();
            whole &= change % 12 > 1;
        } else if change & 0xe0 == 0x20 {
            m.truncate(usize::from(input.byte()).clamp(1, m.len()));
            whole = false;
        }
        text.extend(m);
    }
    (text, whole)
}

/// `side` says `text` in pieces, of which some are lost and some come twice, until all has arrived.
/// `in_step`: whether it is known where messages begin.
fn says(lab: &mut Lab, talk: &mut Talk, side: Side, text: &[u8], in_step: bool, input: &mut Input<'_>) {
    let start = talk.tcp.end(side).next;
    talk.tcp.end(side).next = start.wrapping_add(text.len() as u32);
    let before = talk.tcp.other(side).got.len();
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let len = if input.byte() & 1 == 0 { 200 } else { usize::from(input.byte() % 40 + 1) };
        let end = text.len().min(at + len);
        pieces.push((start.wrapping_add(at as u32), &text[at..end]));
        at = end;
    }
    let send = |lab: &mut Lab, talk: &mut Talk, (seq, piece): (u32, &[u8])| {
        let end = talk.tcp.end(side);
        let p = end.segment(ACK | PSH, seq, end.waits, piece);
        for seen in talk.tcp.raw(lab, side, &p) {
            assert!(transport_ok(seen.src, seen.dst, 6, &seen.ip[20..]), "checksum");
            assert_eq!(seen.ip_len, 40 + piece.len(), "a message keeps its length");
        }
    };
    for n in 0..pieces.len() {
        let how = input.byte();
        if how & 3 != 1 {
            send(lab, talk, pieces[n]);
        }
        if how & 4 != 0 {
            send(lab, talk, pieces[usize::from(input.byte()) % pieces.len()]);
        }
    }
    let opposite = if side == Side::Client { Side::Server } else { Side::Client };
    for _ in 0..2 {
        for &piece in &pieces {
            send(lab, talk, piece);
            let other = talk.tcp.other(side).clone();
            talk.tcp.raw(lab, opposite, &other.segment(ACK, other.next, other.waits, b""));
        }
    }
    let got = &talk.tcp.other(side).got[before..];
    assert_eq!(got.len(), text.len(), "all of it has arrived");
    // An id stands 12 or 14 bytes behind the beginning of what looks like a message.
    let is_id = |n: usize| {
        (12..16).any(|back| {
            n >= back
                && text[n - back..].starts_with(&[text[n - back], text[n - back + 1], 0, 1, 0x1a, 0x2b, 0x3c, 0x4d])
        })
    };
    for (n, (sent, got)) in text.iter().zip(got).enumerate() {
        assert!(!in_step || sent == got || is_id(n), "byte {n} of {text:02x?} became {got:02x}");
    }
}
