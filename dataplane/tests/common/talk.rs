//! What must hold of any talk over a control connection, however it is cut, lost, repeated and reordered.

use dataplane::api::policy::PolicySpec;
use dataplane::helper::ftp::{ARGUMENT, Form, Parser, write};

use super::ftp::*;
use super::lab::*;
use super::oracle::Input;
use super::pkt::ACK;
use super::session::Side;

/// What a talk is made of, `@` standing for the speaker's own address with commas.
const WORDS: [&str; 16] = [
    "PORT @,19,137\r\n",
    "PORT ",
    "@,19,138",
    "EPRT |1|!|5003|\r\n",
    "EPRT ",
    "|1|!|5004|",
    "227 (@,19,141)\r\n",
    "227 =",
    "229 x (|||5006|)\r\n",
    "229 ",
    "(|||5007|)",
    "\r\n",
    "\n",
    "NOOP\r\n",
    "10,0,0,3,19,137",
    "|",
];

/// Reads `bytes` as a control connection's text: to its end, with the same result whole as in pieces, and what is announced
/// can be written again and is the same then.
pub fn reads(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (replies, step) = (input.byte() & 1 == 1, usize::from(input.byte()).max(1));
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut parser = Parser::new(replies);
        let mut found = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            while !rest.is_empty() {
                let (n, ended) = parser.read(rest);
                assert!(n > 0 && n <= rest.len() && parser.unfinished() <= ARGUMENT);
                rest = &rest[n..];
                found.extend(ended);
            }
        }
        found
    };
    let found = read(&mut std::iter::once(input.0));
    assert_eq!(found, read(&mut input.0.chunks(step)));
    for a in found.iter().filter_map(|e| e.announcement) {
        assert_ne!(a.port, 0);
        let text =
            write(a.form, a.address.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()), a.port).expect("its own form");
        let (before, behind) = match a.form {
            Form::Port => ("\nPORT ", "\r\n"),
            Form::Eprt => ("\nEPRT ", "\r\n"),
            Form::Pasv => ("\n227 ", "\r\n"),
            Form::Epsv => ("\n229 (", ")\r\n"),
        };
        let line = [before.as_bytes(), &text, behind.as_bytes()].concat();
        let again = read(&mut std::iter::once(&line[..]));
        assert_eq!(again.iter().filter_map(|e| e.announcement).collect::<Vec<_>>(), [a]);
    }
    let request = matches!(input.0, [0, 1 | 2, ..]);
    assert_eq!(dataplane::helper::tftp::is_request(input.0), request);
}

/// One side talks as `input` says. The other receives every byte of it once and in order; only announced addresses and
/// ports differ, and only where they must. Numbers and acknowledgements agree in the end.
pub fn talks(input: &mut Input<'_>) {
    let flags = input.byte();
    let way = ways().into_iter().filter(|w| w.client.contains('.')).nth(usize::from(flags) % 5).expect("a way");
    let setup = Setup {
        workers: [1, 2, 4, 2][usize::from(flags >> 3 & 3)],
        arrival: if flags & 0x20 == 0 { Arrival::Rss } else { Arrival::Anywhere },
        seed: u64::from(input.byte()),
        stations: 12,
        ..Setup::default()
    };
    let side = if flags & 0x40 == 0 { Side::Client } else { Side::Server };
    let spec: PolicySpec = way.spec.clone();
    let mut lab = Lab::with(spec, setup);
    let mut s = login(&mut lab, &way, 4000);
    let own = s.end(side).address.clone();
    let mut text = String::new();
    while !input.0.is_empty() && text.len() < 600 && input.byte() != 0xff {
        let b = input.byte();
        match WORDS.get(usize::from(b)) {
            Some(word) => text.push_str(&word.replace('@', &own.replace('.', ",")).replace('!', &own)),
            None => text.push(char::from(b & 0x7f)),
        }
    }
    text.push_str("\r\nNOOP\r\n");

    let start = s.end(side).next;
    s.end(side).next = start.wrapping_add(text.len() as u32);
    let mut segments = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let len = usize::from(input.byte() % 60 + 1).min(text.len() - at);
        segments.push((start.wrapping_add(at as u32), &text[at..at + len]));
        at += len;
    }
    let heard = |lab: &mut Lab, s: &mut super::session::Session| {
        let other = s.other(side).clone();
        let opposite = if side == Side::Client { Side::Server } else { Side::Client };
        s.raw(lab, opposite, &other.segment(ACK, other.next, other.waits, b""));
    };
    for n in 0..segments.len() {
        let how = input.byte();
        let (seq, piece) = segments[n];
        if how & 3 != 1 {
            s.sends(&mut lab, side, seq, piece);
        }
        if how & 4 != 0 {
            let (seq, piece) = segments[usize::from(input.byte()) % segments.len()];
            s.sends(&mut lab, side, seq, piece);
        }
        if how & 8 != 0 {
            heard(&mut lab, &mut s);
        }
    }
    // What was lost is sent until it has arrived: twice at most, for nothing is lost any more.
    for _ in 0..2 {
        for (seq, piece) in &segments {
            s.sends(&mut lab, side, *seq, piece);
            heard(&mut lab, &mut s);
        }
    }
    s.in_step(&mut lab);
    same(&text, &s.other(side).text(), &own, &s.other(side).peer.0.clone());
    lab.sound();
    lab.flush(Default::default());
    assert_eq!((lab.expectations(), lab.entries(), lab.pool.live()), (vec![], 0, 0));
}

/// Line by line the same, but for addresses of announcements.
fn same(sent: &str, got: &str, own: &str, public: &str) {
    let (sent, got): (Vec<_>, Vec<_>) = (sent.split('\n').collect(), got.split('\n').collect());
    assert_eq!(sent.len(), got.len(), "{sent:?} became {got:?}");
    for (sent, got) in sent.into_iter().zip(got).filter(|(sent, got)| sent != got) {
        let plain = |line: &str| {
            [own, public].iter().fold(line.to_owned(), |l, a| l.replace(&a.replace('.', ","), "@").replace(a, "@"))
        };
        assert_eq!(plain(sent), plain(got), "{sent:?} became {got:?}");
        assert!(["PORT", "EPRT", "227 ", "229 "].contains(&&sent[..4].to_uppercase()[..]), "{sent:?} became {got:?}");
    }
}
