//! N workers against one: the same traffic, the same answers.
//!
//! ```text
//!   10.0.0.0/26 masqueraded ─┐                                        ┌─ 203.0.113.0/24
//!   10.0.0.64/26 strict ─────┤                                        │
//!   10.0.0.128/26 SNAT ──────┼─ lan [ 10.0.0.1 gateway 198.51.100.1 ] wan
//!   10.0.0.192/26 plain ─────┤      [ fd00:1::1        2001:db8::1  ] │
//!   fd00:1::/64 masqueraded ─┘                                        └─ 2001:db8:5::/64
//!   10.0.0.6..9, fd00:1::9: servers with forwarded ports
//! ```
//! A script of conversations is drawn from a seed: handshakes, data, resets, queries, errors from hosts and routers of
//! both sides, packets out of nowhere, pauses, reloads, flushes. End hosts answer what they see, so a translation may
//! differ in the port that was chosen, and in nothing else. After every step the steering invariant must hold.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::lab::*;
use common::pkt::*;
use dataplane::api::command::ConnFilter;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::io::PortIdx;
use dataplane::packet::CtState;
use dataplane::time::Nanos;

/// Numbers from a seed: xorshift64*.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n as u64).unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }
}

// ---- The gateway ----------------------------------------------------------------------------------------------------

fn snat_of(source: &str, kind: NatKind, preserve_port: PreservePort) -> NatRuleSpec {
    let matches = Match { source: Some(only(source)), ..from_to(LAN_ZONE, WAN_ZONE) };
    NatRuleSpec { preserve_port, ..NatRuleSpec::new(source, matches, kind) }
}

/// Forwards `port` of `public` to a server.
fn forward(from: ZoneId, public: &str, port: u16, to_address: &str, to_port: Option<u16>) -> NatRuleSpec {
    NatRuleSpec {
        name: format!("{public} {port}"),
        matches: Match {
            from: vec![from],
            proto: vec![proto::TCP, proto::UDP],
            destination: Some(only(public)),
            dport: vec![port..=port],
            ..Match::default()
        },
        kind: NatKind::Dnat { to: ip(to_address).into(), port: to_port.map(ToPort::One) },
        ..masquerade()
    }
}

/// Lan may open connections; `udp`: over UDP as well.
fn gateway(udp: bool) -> PolicySpec {
    let snat = |a: &str| NatKind::Snat { to: ip(a).into() };
    let lan_to_lan = NatRuleSpec { matches: from_to(LAN_ZONE, LAN_ZONE), ..masquerade() };
    let twice = Match { destination: Some(only("10.0.0.7/32")), ..from_to(WAN_ZONE, LAN_ZONE) };
    let mut spec = policy();
    spec.nat = vec![
        forward(WAN_ZONE, "198.51.100.1/32", 8080, "10.0.0.9", Some(80)),
        forward(WAN_ZONE, "198.51.100.1/32", 8081, "10.0.0.8", None),
        forward(WAN_ZONE, "198.51.100.1/32", 8082, "10.0.0.7", Some(80)),
        forward(LAN_ZONE, "198.51.100.1/32", 8083, "10.0.0.6", Some(80)),
        forward(WAN_ZONE, "2001:db8::1/128", 8080, "fd00:1::9", Some(80)),
        NatRuleSpec { matches: twice, ..masquerade() },
        lan_to_lan,
        snat_of("10.0.0.0/26", NatKind::Masquerade, PreservePort::Auto),
        snat_of("10.0.0.64/26", snat("198.51.100.7"), PreservePort::Strict),
        snat_of("10.0.0.128/26", snat("198.51.100.8"), PreservePort::Auto),
        snat_of("fd00:1::/64", NatKind::Masquerade, PreservePort::Auto),
    ];
    let new = |from, to| Match { state: vec![CtState::New], ..from_to(from, to) };
    spec.rules = vec![
        rule("established", state(&[CtState::Established, CtState::Related]), Action::Accept),
        rule("invalid", state(&[CtState::Invalid]), Action::Drop),
        rule("no-telnet", Match { dport: vec![23..=23], ..Match::default() }, Action::Drop),
    ];
    if !udp {
        let no_udp = Match { proto: vec![proto::UDP], ..new(LAN_ZONE, WAN_ZONE) };
        spec.rules.push(rule("no-udp", no_udp, Action::Drop));
    }
    spec.rules.extend([
        rule("lan-out", new(LAN_ZONE, WAN_ZONE), Action::Accept),
        rule("hairpin", new(LAN_ZONE, LAN_ZONE), Action::Accept),
        rule("in", Match { destination: Some(only("10.0.0.6/30")), ..new(WAN_ZONE, LAN_ZONE) }, Action::Accept),
        rule("in6", Match { destination: Some(only("fd00:1::9/128")), ..new(WAN_ZONE, LAN_ZONE) }, Action::Accept),
        rule("to-me", new(LAN_ZONE, ZoneId::LOCAL), Action::Accept),
        rule("from-me", Match { from: vec![ZoneId::LOCAL], ..Match::default() }, Action::Accept),
    ]);
    spec
}

// ---- The conversations ----------------------------------------------------------------------------------------------

/// One end of a conversation: what it is, what it has seen, where it is in its TCP sequence.
#[derive(Clone)]
struct End {
    side: PortIdx,
    address: String,
    port: u16,
    /// What last arrived here, and what its sender had sent.
    seen: Option<(Seen, Pkt)>,
    seq: u32,
    ack: u32,
}

#[derive(Clone)]
struct Talk {
    id: u16,
    proto: u8,
    client: End,
    server: End,
    /// Where the client believes its server to be.
    dialled: (String, u16),
}

/// Who of a conversation does what.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The client sends; TCP with these flags.
    Ask(u8),
    /// The server answers what it has seen last.
    Answer(u8),
    /// The host or a router at the server's end finds fault with what arrived there.
    ErrorAtServer { router: bool, quote: usize },
    /// The same at the client's end.
    ErrorAtClient { router: bool, quote: usize },
    /// The client's packet has one hop to live.
    Dying,
    /// A stranger sends to where the client is.
    Stranger(u8),
    /// Client or server sends a datagram in fragments, the last first or not.
    Large { ask: bool, backwards: bool },
}

/// A step of the script: acts of different conversations that happen at once, or something that concerns all.
#[derive(Clone, Debug)]
enum Step {
    Acts(Vec<(usize, Act)>),
    Wait(u64),
    Reload { udp: bool },
    Flush(ConnFilter),
}

fn end(side: PortIdx, address: String, port: u16) -> End {
    End { side, address, port, seen: None, seq: u32::from(port) * 7919, ack: 0 }
}

/// Conversation `n`. Where a translation keeps ports, no two may want the same.
fn talk(n: u16, dice: &mut Dice) -> Talk {
    let host = |base: u16| format!("10.0.0.{}", base + 10 + n % 50);
    let busy = dice.of(&[1000, 4000, 4001]);
    let own = 20_000 + n;
    let server = format!("203.0.113.{}", dice.of(&[5, 6]));
    // The first are the gateway's own: they want ports that hosts behind it want too, but no two of them the same.
    let kind = if n < 3 { 11 } else { dice.below(12) };
    let mut l4 = dice.of(&[proto::TCP, proto::TCP, proto::UDP, proto::ICMP, 47, proto::UDPLITE, proto::SCTP]);
    let port = dice.of(&[53, 443, 23]);
    let (client, server, dialled) = match kind {
        0..=2 => (end(LAN, host(0), busy), end(WAN, server.clone(), port), (server, port)),
        3 => (end(LAN, host(64), own), end(WAN, server.clone(), port), (server, port)),
        4 => (end(LAN, host(128), busy), end(WAN, server.clone(), port), (server, port)),
        5 => (end(LAN, host(192 - 10), busy), end(WAN, server.clone(), port), (server, port)),
        6 => {
            let server = format!("2001:db8:5::{}", dice.of(&[5, 6]));
            let client = format!("fd00:1::{:x}", 0x100 + n);
            (end(LAN, client, busy), end(WAN, server.clone(), port), (server, port))
        }
        7 => {
            l4 = dice.of(&[proto::TCP, proto::UDP]);
            let client = end(WAN, "2001:db8:5::7".into(), own);
            (client, end(LAN, "fd00:1::9".into(), 80), ("2001:db8::1".into(), 8080))
        }
        8 => {
            l4 = dice.of(&[proto::TCP, proto::UDP]);
            let (to, to_port, public) =
                dice.of(&[("10.0.0.9", 80, 8080), ("10.0.0.8", 8081, 8081), ("10.0.0.7", 80, 8082)]);
            let client = end(WAN, "203.0.113.7".into(), own);
            (client, end(LAN, to.into(), to_port), ("198.51.100.1".into(), public))
        }
        9 => {
            l4 = dice.of(&[proto::TCP, proto::UDP]);
            (end(LAN, host(0), busy), end(LAN, "10.0.0.6".into(), 80), ("198.51.100.1".into(), 8083))
        }
        10 => (end(LAN, host(192 - 10), own), end(LAN_TWIN, "10.0.0.1".into(), 22), ("10.0.0.1".into(), 22)),
        _ => {
            let port = if n < 3 && l4 != proto::ICMP { [1000, 4000, 4001][usize::from(n)] } else { own };
            let (client, peer) = (end(WAN_TWIN, "198.51.100.1".into(), port), dice.of(&[53, 443]));
            (client, end(WAN, server.clone(), peer), (server, peer))
        }
    };
    let mut talk = Talk { id: n, proto: l4, client, server, dialled };
    if l4 == proto::ICMP && talk.client.address.contains(':') {
        talk.proto = proto::ICMPV6;
    }
    if l4 == 47 {
        // Nothing tells two portless conversations of one pair of addresses apart: a peer each.
        let v4 = talk.server.address.contains('.');
        if talk.server.side == WAN {
            talk.server.address =
                if v4 { format!("203.0.113.{}", 100 + n) } else { format!("2001:db8:5::{:x}", 0x100 + n) };
            talk.dialled.0.clone_from(&talk.server.address);
        } else {
            talk.proto = proto::TCP;
        }
    }
    talk
}

fn script(seed: u64, steps: usize) -> (Vec<Talk>, Vec<Step>) {
    let mut dice = Dice::new(seed);
    let talks: Vec<_> = (0..40).map(|n| talk(n, &mut dice)).collect();
    let together = if dice.percent(50) { 1 } else { 6 };
    let mut udp = true;
    let steps = (0..steps)
        .map(|_| match dice.below(100) {
            0..=4 => Step::Wait(dice.of(&[701, 2903, 2903, 31_307, 61_703, 125_101])),
            5 => {
                udp = !udp;
                Step::Reload { udp }
            }
            6 => Step::Flush(ConnFilter {
                proto: Some(dice.of(&[proto::TCP, proto::UDP, proto::ICMP])),
                replied: Some(dice.percent(50)),
                ..ConnFilter::default()
            }),
            _ => {
                let mut who: Vec<usize> = (0..together).map(|_| dice.below(talks.len())).collect();
                who.sort_unstable();
                who.dedup();
                let mut acts: Vec<_> = who.into_iter().map(|n| (n, act(&mut dice))).collect();
                // Some errors quote too little to be recognised by: one at a time.
                let mut errors = 0;
                acts.retain(|(_, a)| {
                    errors += usize::from(matches!(a, Act::ErrorAtServer { .. } | Act::ErrorAtClient { .. }));
                    errors < 2 || !matches!(a, Act::ErrorAtServer { .. } | Act::ErrorAtClient { .. })
                });
                Step::Acts(acts)
            }
        })
        .collect();
    (talks, steps)
}

fn act(dice: &mut Dice) -> Act {
    // What flags are plausible depends on what was seen: 0 stands for that. Others are sent whether they fit or not.
    let flags = match dice.below(100) {
        0..=69 => 0,
        70..=81 => FIN | ACK,
        82..=86 => RST | ACK,
        87..=89 => RST,
        90..=94 => SYN,
        95..=97 => SYN | ACK,
        98 => ACK,
        _ => 0x3f,
    };
    let error = |dice: &mut Dice| (dice.percent(50), dice.of(&[2000, 548, 28, 8]));
    match dice.below(100) {
        0..=46 => Act::Ask(flags),
        47..=81 => Act::Answer(flags),
        82..=87 => {
            let (router, quote) = error(dice);
            Act::ErrorAtServer { router, quote }
        }
        88..=93 => {
            let (router, quote) = error(dice);
            Act::ErrorAtClient { router, quote }
        }
        94..=95 => Act::Dying,
        96..=97 => Act::Large { ask: dice.percent(50), backwards: dice.percent(50) },
        _ => Act::Stranger(flags),
    }
}

/// What every packet of conversation `id` carries, to be recognised by.
fn mark(id: u16) -> [u8; 8] {
    let [a, b] = id.to_be_bytes();
    [b'<', b'#', b'#', a | 0x80, b, b'#', b'#', b'>']
}

/// Whether a packet that left is conversation `id`'s own, and no error about it.
fn carries(seen: &Seen, id: u16) -> bool {
    let chunk_header = if seen.proto == proto::SCTP { 4 } else { 0 };
    seen.payload.get(chunk_header..) == Some(&mark(id))
}

impl Talk {
    /// A packet of this conversation's protocol.
    fn packet(&self, from: (&str, u16), to: (&str, u16), flags: u8, seq: u32, ack: u32, query: bool) -> Pkt {
        let ((src, sport), (dst, dport)) = (from, to);
        match self.proto {
            proto::TCP => tcp(src, sport, dst, dport, flags, seq, ack, &mark(self.id)),
            proto::UDP => udp(src, sport, dst, dport, &mark(self.id)),
            proto::UDPLITE => udplite(src, sport, dst, dport, 8, &mark(self.id)),
            // Heartbeats may come first, and need no more state than their tag.
            proto::SCTP => sctp(src, sport, dst, dport, 7, &[chunk(if query { 4 } else { 5 }, 0, &mark(self.id))]),
            proto::ICMP | proto::ICMPV6 => {
                let kind = match (self.proto == proto::ICMP, query) {
                    (true, true) => 8,
                    (true, false) => 0,
                    (false, true) => 128,
                    (false, false) => 129,
                };
                let [a, b] = if query { sport } else { dport }.to_be_bytes();
                icmp(src, dst, kind, 0, [a, b, 0, 1], &mark(self.id))
            }
            p => other(src, dst, p, &mark(self.id)),
        }
    }

    fn ask(&self, flags: u8) -> Pkt {
        let flags = match flags {
            0 if self.client.seen.is_some() => ACK | PSH,
            0 => SYN,
            f => f,
        };
        let c = &self.client;
        self.packet((&c.address, c.port), (&self.dialled.0, self.dialled.1), flags, c.seq, c.ack, true)
    }

    fn answer(&self, flags: u8) -> Option<Pkt> {
        let (seen, asked) = self.server.seen.as_ref()?;
        let flags = match flags {
            // After TIME_WAIT this opens a connection of the server's own, with a tuple that the client's would meet.
            SYN if (seen.src, seen.dst) != (asked.src, asked.dst) => SYN | ACK,
            0 if seen.tcp_flags & (SYN | ACK) == SYN => SYN | ACK,
            0 => ACK | PSH,
            f => f,
        };
        let s = &self.server;
        let client = seen.src.to_string();
        // What a query's answer carries is the identifier as it was seen.
        Some(self.packet((&s.address, s.port), (&client, seen.sport), flags, s.seq, s.ack, false))
    }

    /// A datagram of this conversation, for which no link has room: as many marks as it takes.
    fn large(&self, p: &Pkt) -> Vec<Pkt> {
        let (src, dst) = (p.src.to_string(), p.dst.to_string());
        let marks = mark(self.id).repeat(300);
        let port = |at: usize| u16::from_be_bytes([p.l4[at], p.l4[at + 1]]);
        let large = match p.proto {
            proto::UDP => udp(&src, port(0), &dst, port(2), &marks),
            proto::UDPLITE => udplite(&src, port(0), &dst, port(2), 0, &marks),
            proto::ICMP => icmp(&src, &dst, p.l4[0], p.l4[1], [p.l4[4], p.l4[5], 0, 1], &marks),
            47 => other(&src, &dst, 47, &marks),
            _ => return vec![p.clone()], // TCP and SCTP do not send such, and `Pkt` cuts IPv4 alone
        };
        if p.src.is_ipv4() { large.fragments(1480) } else { vec![p.clone()] }
    }

    /// An error about what `end` has seen, from itself or a router beside it.
    fn error(&self, end: &End, router: bool, quote: usize) -> Option<Pkt> {
        let (seen, _) = end.seen.as_ref()?;
        let v4 = seen.src.is_ipv4();
        let from = match (router && !end.side.is_twin(), end.side.interface(), v4) {
            (false, ..) => end.address.as_str(),
            (true, 0, true) => "10.0.0.66",
            (true, 0, false) => "fd00:1::66",
            (true, _, true) => "198.51.100.20",
            (true, _, false) => "2001:db8::20",
        };
        let (kind, code) = if v4 { (3, 1) } else { (1, 3) };
        let header = if v4 { 20 } else { 40 };
        let quote = &seen.ip[..seen.ip.len().min(header + quote)];
        Some(icmp(from, &seen.src.to_string(), kind, code, [0; 4], quote))
    }
}

// ---- The world ------------------------------------------------------------------------------------------------------

struct World {
    lab: Lab,
    talks: Vec<Talk>,
}

impl World {
    fn new(talks: &[Talk], setup: Setup) -> Self {
        let mut lab = Lab::with(gateway(true), setup);
        for t in talks {
            for e in [&t.client, &t.server] {
                if e.side == LAN && e.address.contains(':') {
                    lab.neighbour(0, &e.address, true);
                }
            }
        }
        lab.changed();
        Self { lab, talks: talks.to_vec() }
    }

    /// One step; what a person, and the other world, can see of it.
    fn step(&mut self, step: &Step) -> Vec<String> {
        let mut out = match step {
            Step::Acts(acts) => self.acts(acts),
            Step::Wait(ms) => {
                self.lab.wait(Nanos::from_millis(*ms));
                Vec::new()
            }
            Step::Reload { udp } => {
                self.lab.reload(gateway(*udp));
                Vec::new()
            }
            Step::Flush(filter) => {
                let n = self.lab.flush(*filter);
                vec![format!("{n} flushed")]
            }
        };
        self.lab.sound();
        assert_eq!(self.lab.pool.live(), 0, "buffers leaked");
        self.forget();
        // However many turns it took, the next step begins at the same time in every world. No timeout is a multiple of
        // this, so none is met by a hair.
        let turn = 9_700_000;
        self.lab.now = Nanos(self.lab.now.0.next_multiple_of(turn));
        out.extend(self.lab.changed());
        out
    }

    /// A port that was chosen may be another's once its conversation is over, and whose is not the same in every world:
    /// those who spoke to it stop.
    fn forget(&mut self) {
        let live = self.lab.owned();
        for t in &mut self.talks {
            let is = |c: &Owned| {
                let of = (c.original.src, c.original.dst, c.original.proto, c.original.sport);
                of == (ip(&t.client.address), ip(&t.dialled.0), t.proto, if t.proto == 47 { 0 } else { t.client.port })
            };
            // The gateway's own connections share its address with those that are masqueraded.
            let shared = t
                .server
                .seen
                .as_ref()
                .is_some_and(|(s, p)| (s.src, s.dst) != (p.src, p.dst) || t.client.side.is_twin());
            if shared && !live.iter().any(is) {
                (t.server.seen, t.client.seen) = (None, None);
            }
        }
    }

    fn acts(&mut self, acts: &[(usize, Act)]) -> Vec<String> {
        let mut sent: Vec<(usize, Act, Pkt)> = Vec::new();
        for &(n, act) in acts {
            let t = &self.talks[n];
            let (side, packet) = match act {
                Act::Ask(flags) => (t.client.side, Some(t.ask(flags))),
                Act::Dying => (t.client.side, Some(t.ask(0).ttl(1))),
                Act::Answer(flags) => (t.server.side, t.answer(flags)),
                Act::Large { ask: true, .. } => (t.client.side, Some(t.ask(0))),
                Act::Large { ask: false, .. } => (t.server.side, t.answer(0)),
                Act::ErrorAtServer { router, quote } => (t.server.side, t.error(&t.server, router, quote)),
                Act::ErrorAtClient { router, quote } => (t.client.side, t.error(&t.client, router, quote)),
                Act::Stranger(flags) => {
                    let from = if t.client.address.contains('.') { "203.0.113.66" } else { "2001:db8:5::66" };
                    let port = t.server.port;
                    (WAN, Some(t.packet((from, port), (&t.client.address, t.client.port), flags | ACK, 1, 1, false)))
                }
            };
            let Some(p) = packet else { continue };
            let mut frames = match act {
                Act::Large { .. } => t.large(&p),
                _ => vec![p.clone()],
            };
            if let Act::Large { backwards: true, .. } = act {
                frames.reverse();
            }
            for f in &mut frames {
                f.id = if f.fragment.is_some() { t.id } else { f.id };
                self.lab.arrive(side, &addressed(side, f).frame());
            }
            sent.push((n, act, p));
        }
        self.lab.run();
        let arrived = self.lab.collect();
        let mut out: Vec<String> = Vec::new();
        for (port, seen) in arrived {
            // An error quotes too little of a packet to carry its mark: then there is one act of that kind at most.
            let of = |id: u16| seen.ip.windows(8).any(|w| w == mark(id));
            let (n, act, p) = sent
                .iter()
                .find(|(n, ..)| of(self.talks[*n].id))
                .or_else(|| {
                    sent.iter().find(|(_, act, _)| matches!(act, Act::ErrorAtServer { .. } | Act::ErrorAtClient { .. }))
                })
                .expect("what leaves was sent by somebody");
            let line = self.arrive(*n, *act, p, port, seen);
            out.push(format!("{n} {act:?}: {line}"));
        }
        out.sort();
        out
    }

    /// A packet of an act reaches an end, or comes back as an error of the gateway.
    fn arrive(&mut self, n: usize, act: Act, p: &Pkt, port: PortIdx, seen: Seen) -> String {
        let t = &mut self.talks[n];
        if let Act::Large { ask, .. } = act {
            let (side, address) =
                if ask { (t.server.side, &t.server.address) } else { (t.client.side, &t.client.address) };
            if port == side {
                assert_eq!(seen.dst, ip(address), "the right end");
            }
            // Ports and identifiers are where the header is, and chosen as the case may be.
            let Seen { src, dst, ttl, fragment, ip_len, .. } = seen;
            return format!("{port:?} {src} > {dst} ttl {ttl} fragment {fragment:?} of {ip_len} bytes");
        }
        let line = |s: &Seen, chosen: Option<u16>| {
            let star = |v: u16| if Some(v) == chosen { "*".to_string() } else { v.to_string() };
            let (a, b) = (star(s.sport), star(s.dport));
            format!("{} {a} > {} {b} ttl {} proto {} flags {:#x}", s.src, s.dst, s.ttl, s.proto, s.tcp_flags)
        };
        match act {
            // From the kernel to the wire is no hop: there nothing dies.
            Act::Ask(_) | Act::Dying if port == t.server.side && carries(&seen, t.id) => {
                let text = line(&seen, Some(seen.sport));
                assert_eq!(seen.dst.to_string(), t.server.address, "the right server");
                t.client.seq = t.client.seq.wrapping_add(8 + u32::from(seen.tcp_flags & SYN != 0));
                t.server.ack = t.client.seq;
                if seen.tcp_flags & SYN != 0 {
                    t.client.seen = None; // it may open a new connection, with another port
                }
                t.server.seen = Some((seen, p.clone()));
                text
            }
            Act::Answer(_) if port == t.client.side && carries(&seen, t.id) => {
                assert_eq!((seen.src, seen.dst), (ip(&t.dialled.0), ip(&t.client.address)), "the right client");
                if matches!(t.proto, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP) {
                    assert_eq!((seen.sport, seen.dport), (t.dialled.1, t.client.port), "the right client");
                } else if t.proto != 47 {
                    assert_eq!(seen.sport, t.client.port, "the right identifier");
                }
                let text = line(&seen, None);
                t.server.seq = t.server.seq.wrapping_add(8 + u32::from(seen.tcp_flags & SYN != 0));
                t.client.ack = t.server.seq;
                t.client.seen = Some((seen, p.clone()));
                text
            }
            Act::ErrorAtServer { .. } if port == t.client.side => {
                let (_, asked) = t.server.seen.as_ref().expect("something was wrong with it");
                seen.assert_quotes(asked);
                assert_eq!(seen.dst, asked.src);
                line(&seen, None)
            }
            Act::ErrorAtClient { .. } if port == t.server.side => {
                let (_, answered) = t.client.seen.as_ref().expect("something was wrong with it");
                seen.assert_quotes(answered);
                assert_eq!(seen.dst, answered.src);
                line(&seen, None)
            }
            // Its connection has gone: what it meets is the policy, or an error of the gateway.
            _ => {
                let chosen = t.server.seen.as_ref().map(|(s, _)| s.sport);
                format!("elsewhere: {port:?} {}", line(&seen, chosen))
            }
        }
    }

    /// All connections, but for the ports that were chosen.
    fn table(&mut self) -> Vec<String> {
        let leased: Vec<_> = self.lab.owned().into_iter().filter(|c| c.leased).map(|c| c.original).collect();
        let mut all: Vec<_> = self
            .lab
            .conns()
            .into_iter()
            .map(|mut c| {
                if leased.contains(&c.original) {
                    if c.reply.is_icmp() { c.reply.sport = 0 } else { c.reply.dport = 0 }
                }
                // A connection that no rule translates may have been given a port, or not: another's choice decides.
                if c.original.src == ip("198.51.100.1") {
                    if c.reply.is_icmp() { c.reply.sport = 0 } else { c.reply.dport = 0 }
                }
                c.timeout_s = c.timeout_s.div_ceil(2) * 2;
                format!("{c:?}")
            })
            .collect();
        all.sort();
        all
    }
}

/// Runs the script of `seed` in a world of one worker and in another; both must tell the same story.
fn compare(seed: u64, setups: &[Setup]) {
    let (talks, steps) = script(seed, 250);
    let mut one = World::new(&talks, Setup { seed, ..Setup::default() });
    let mut many: Vec<_> = setups.iter().map(|s| World::new(&talks, Setup { seed, ..s.clone() })).collect();
    let mut most = 0;
    for (n, step) in steps.iter().enumerate() {
        let expected = one.step(step);
        most = most.max(one.lab.entries());
        for (world, setup) in many.iter_mut().zip(setups) {
            let got = world.step(step);
            assert_eq!(got, expected, "seed {seed}, step {n} {step:?}, {} workers, {:?}", setup.workers, setup.arrival);
        }
    }
    let expected = one.table();
    for (world, setup) in many.iter_mut().zip(setups) {
        assert_eq!(world.table(), expected, "seed {seed}, {} workers, {:?}", setup.workers, setup.arrival);
    }
    assert!(most > 4, "{most} connections at once");
}

fn setups() -> Vec<Setup> {
    let arrivals = [Arrival::Rss, Arrival::Anywhere];
    [2, 4, 8]
        .into_iter()
        .flat_map(|workers| arrivals.map(|arrival| Setup { workers, arrival, ..Setup::default() }))
        .collect()
}

#[test]
fn many_workers_tell_the_same_story_as_one() {
    for seed in 1..=24 {
        compare(seed, &setups());
    }
}

/// Which turn each worker gets is drawn from the lab's seed: another order, the same story.
#[test]
fn the_order_of_turns_makes_no_difference() {
    let (talks, steps) = script(99, 250);
    let mut worlds: Vec<_> = (1..=6)
        .map(|seed| World::new(&talks, Setup { seed, workers: 4, arrival: Arrival::Anywhere, ..Setup::default() }))
        .collect();
    for (n, step) in steps.iter().enumerate() {
        let stories: Vec<_> = worlds.iter_mut().map(|w| w.step(step)).collect();
        assert!(stories.windows(2).all(|w| w[0] == w[1]), "step {n} {step:?}: {stories:#?}");
    }
}
