//! Whether two observations of one packet say the same.
//!
//! Frames must be equal byte for byte, but for what a router may choose: fragments of one datagram are compared put
//! together, and errors that the router itself makes by what they say and about what.

use crate::frame::{ETH, Ip};
use crate::observe::{ConnState, Exit, Observation};

/// Seconds by which timeouts may differ: the kernel counts whole seconds of its own clock.
pub const TIMEOUT_TOLERANCE: u32 = 2;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Class or direction.
    Class,
    /// What left.
    Out,
    /// The identification of what left in IPv6 fragments.
    Identification,
    /// Whether there is a connection, or its tuples.
    Conn,
    /// Its state, its flags.
    State,
    /// Its timeout.
    Timeout,
    /// Its counters.
    Counters,
    /// Its mark.
    Mark,
}

impl Kind {
    /// The kind of that name, in lower case.
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Class,
            Self::Out,
            Self::Identification,
            Self::Conn,
            Self::State,
            Self::Timeout,
            Self::Counters,
            Self::Mark,
        ];
        all.into_iter().find(|k| format!("{k:?}").eq_ignore_ascii_case(name))
    }
}

/// One thing that two observations do not agree on.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What.
    pub kind: Kind,
    /// Reference, then subject.
    pub text: String,
}

/// All that `subject` has otherwise than `reference` of what was sent as `frame`; the connection too where `conn` says that
/// both were asked for it.
pub fn differences(frame: &[u8], reference: &Observation, subject: &Observation, conn: bool) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut add = |kind, a: String, b: String| {
        if a != b {
            all.push(Difference { kind, text: format!("{a} / {b}") });
        }
    };
    add(Kind::Class, reference.class_text(), subject.class_text());
    let passed_on = Ip::of_frame(frame).is_some_and(|p| p.is_icmp_error());
    let (mut a, mut b) = (departures(&reference.out, passed_on), departures(&subject.out, passed_on));
    let ids = (take_ids(&mut a), take_ids(&mut b));
    if a != b {
        add(Kind::Out, texts(&a), texts(&b));
    } else {
        add(Kind::Identification, format!("{:x?}", ids.0), format!("{:x?}", ids.1));
    }
    if !conn {
        return all;
    }
    match (&reference.conn, &subject.conn) {
        (Some(a), Some(b)) => {
            add(Kind::Conn, tuples(a), tuples(b));
            let flags = |c: &ConnState| format!("{} replied={} assured={}", c.state, c.replied, c.assured);
            add(Kind::State, flags(a), flags(b));
            if a.timeout.abs_diff(b.timeout) > TIMEOUT_TOLERANCE {
                add(Kind::Timeout, format!("{} s", a.timeout), format!("{} s", b.timeout));
            }
            let counters = |c: &ConnState| format!("packets {:?} bytes {:?}", c.packets, c.bytes);
            add(Kind::Counters, counters(a), counters(b));
            add(Kind::Mark, a.mark.to_string(), b.mark.to_string());
        }
        (a, b) => {
            let text = |c: &Option<ConnState>| c.as_ref().map_or("no connection".into(), ConnState::to_string);
            add(Kind::Conn, text(a), text(b));
        }
    }
    all
}

fn tuples(c: &ConnState) -> String {
    format!("{} | {}", c.original, c.reply)
}

/// Something that left, as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Departure {
    /// A frame or packet, all of it.
    Whole(Exit, Vec<u8>),
    /// A datagram that left in fragments: its header without length and fragment fields, its payload, and its
    /// identification where that is not part of the header.
    Datagram { exit: Exit, link: Vec<u8>, header: Vec<u8>, id: u32, payload: Vec<u8> },
    /// An error that the router made: its addresses, type, code and word, and what it quotes as far as both must.
    Error { exit: Exit, link: Vec<u8>, addresses: String, head: Vec<u8>, quote: Vec<u8> },
}

/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

/// Quoted bytes that are compared: a router quotes at least the header and eight bytes.
const QUOTE: usize = 28;

/// What left, as it is compared; an error is the router's own where it was not `passed_on`.
fn departures(out: &[(Exit, Vec<u8>)], passed_on: bool) -> Vec<Departure> {
    let mut all: Vec<Departure> = Vec::new();
    for (exit, bytes) in out {
        let (link, ip) = match exit {
            Exit::Link(_) => bytes.split_at(ETH.min(bytes.len())),
            Exit::Local => (&[][..], bytes.as_slice()),
        };
        let Some(p) = Ip::read(ip) else {
            all.push(Departure::Whole(*exit, bytes.clone()));
            continue;
        };
        if let Some(f) = p.fragment {
            let (header, part) = split(&p);
            let found = all.iter_mut().find_map(|d| match d {
                Departure::Datagram { exit: e, header: h, payload, .. } if e == exit && *h == header => Some(payload),
                _ => None,
            });
            let payload = match found {
                Some(payload) => payload,
                None => {
                    let (link, id) = (link.to_vec(), if p.src.is_ipv4() { 0 } else { f.id });
                    all.push(Departure::Datagram { exit: *exit, link, header, id, payload: Vec::new() });
                    match all.last_mut() {
                        Some(Departure::Datagram { payload, .. }) => payload,
                        _ => continue,
                    }
                }
            };
            if payload.len() < f.offset + part.len() {
                payload.resize(f.offset + part.len(), 0);
            }
            payload[f.offset..f.offset + part.len()].copy_from_slice(part);
        } else if p.is_icmp_error() && !passed_on {
            let b = p.payload();
            let quote = p.quote_at().map_or(&[][..], |at| &ip[at..]);
            all.push(Departure::Error {
                exit: *exit,
                link: link.to_vec(),
                addresses: format!("{} > {}", p.src, p.dst),
                head: [b.get(..2).unwrap_or(&[]), b.get(4..8).unwrap_or(&[])].concat(),
                quote: quote[..quote.len().min(if p.src.is_ipv4() { QUOTE } else { QUOTE + 20 })].to_vec(),
            });
        } else {
            all.push(Departure::Whole(*exit, bytes.clone()));
        }
    }
    all.iter_mut().for_each(flatten);
    all.sort_by_key(|d| match d {
        Departure::Whole(e, _) | Departure::Datagram { exit: e, .. } | Departure::Error { exit: e, .. } => *e,
    });
    all
}

/// The identifications of all IPv6 datagrams, which become zero.
fn take_ids(all: &mut [Departure]) -> Vec<u32> {
    let id = |d: &mut Departure| match d {
        Departure::Datagram { id, .. } => Some(std::mem::take(id)),
        _ => None,
    };
    all.iter_mut().filter_map(id).collect()
}

/// A fragment's network header without what differs between fragments of one datagram, and what follows. Of IPv6, the
/// extension headers in front of the fragment header are part of it, that itself is not.
pub(crate) fn split<'a>(p: &Ip<'a>) -> (Vec<u8>, &'a [u8]) {
    let b = p.bytes;
    if p.src.is_ipv4() {
        let mut header = b[..p.l4.min(b.len())].to_vec();
        for field in [2..4, 6..8, 10..12] {
            header[field].fill(0);
        }
        return (header, p.payload());
    }
    let (mut next, mut at) = (6, 40);
    let mut header = b[..40].to_vec();
    header[4..6].fill(0);
    while b[next] != FRAGMENT {
        let Some(len) = b.get(at + 1).map(|len| (usize::from(*len) + 1) * 8) else { break };
        header.extend(b.get(at..at + len).unwrap_or_default());
        (next, at) = (at, at + len);
    }
    header[next] = b.get(at).copied().unwrap_or(0);
    (header, b.get(at + 8..).unwrap_or_default())
}

/// A datagram put together, as it would be without a fragment header: Linux moves extension headers to its front.
fn flatten(d: &mut Departure) {
    if let Departure::Datagram { header, payload, .. } = d
        && header[0] >> 4 == 6
    {
        let mut all = header.split_off(40);
        all.append(payload);
        *payload = all;
    }
}

fn texts(all: &[Departure]) -> String {
    if all.is_empty() {
        return "nothing left".into();
    }
    let text = |d: &Departure| match d {
        Departure::Whole(exit, b) => {
            let at = if *exit == Exit::Local { 0 } else { ETH };
            let ip = b.get(at..).unwrap_or(&[]);
            format!("{} {} {}", exit.name(), crate::frame::describe(ip), hex(b))
        }
        Departure::Datagram { exit, payload, header, .. } => {
            format!("{} a datagram of {} bytes in fragments {}", exit.name(), payload.len(), hex(header))
        }
        Departure::Error { exit, addresses, head, quote, .. } => {
            format!("{} an error {addresses} {} about {}", exit.name(), hex(head), crate::frame::describe(quote))
        }
    };
    all.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Bytes as hexadecimal digits, of long ones the beginning.
pub fn hex(b: &[u8]) -> String {
    let mut s: String = b.iter().take(100).map(|b| format!("{b:02x}")).collect();
    if b.len() > 100 {
        s.push('…');
    }
    s
}
