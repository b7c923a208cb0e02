//! An FTP session: a control connection whose text announces data connections, and these.
//!
//! The ends go by the text as it reached them, so what a helper wrote into it has its consequences. Each segment of text
//! holds one whole line, and what announces is not sent again once it was heard; through translation no segment is lost,
//! changed or overtaken before the router, and only the last is sent again. Where Sluice does otherwise than Linux then is
//! in docs/LINUX.md, and scenarios show it.
//!
//! *Sources*: RFC 959, 2428.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use super::dice::Dice;
use super::tcp::TcpFlow;
use super::{End, Flow, Host, Places, Shot};
use crate::frame::{Ip, be16, be32, proto};
use crate::observe::{Exit, Observation};
use crate::packet::flags::{ACK, FIN, PSH, SYN};
use crate::packet::{Packet, Tcp};

/// FTP's control port.
pub const PORT: u16 = 21;

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// A piece of the control connection.
#[derive(Clone, Debug)]
struct Piece {
    seq: u32,
    flags: u8,
    text: Vec<u8>,
}

/// One end of the control connection.
#[derive(Debug)]
struct Speaker {
    host: Host,
    peer: Option<End>,
    next: u32,
    una: u32,
    received: u32,
    outbox: VecDeque<(u8, Vec<u8>)>,
    /// What is out and not acknowledged.
    sent: VecDeque<Piece>,
    heard: Vec<u8>,
    open: bool,
    /// The data port that it announced last.
    port: u16,
}

impl Speaker {
    fn new(host: Host, peer: Option<End>, dice: &mut Dice) -> Self {
        let start = if dice.percent(10) { u32::MAX - dice.within(0..=300) } else { dice.word() };
        Self {
            host,
            peer,
            next: start,
            una: start,
            received: 0,
            outbox: VecDeque::new(),
            sent: VecDeque::new(),
            heard: Vec::new(),
            open: false,
            port: 0,
        }
    }

    fn say(&mut self, line: &str) {
        self.outbox.push_back((ACK | PSH, format!("{line}\r\n").into_bytes()));
    }

    /// The next piece of the outbox, which is then out.
    fn send(&mut self) -> Option<Piece> {
        let (flags, text) = self.outbox.pop_front()?;
        let piece = Piece { seq: self.next, flags, text };
        let length = u32::try_from(piece.text.len()).unwrap_or(0) + u32::from(flags & (SYN | FIN) != 0);
        self.next = self.next.wrapping_add(length);
        if length > 0 {
            self.sent.push_back(piece.clone());
        }
        Some(piece)
    }

    /// Takes a piece in order; the lines that are whole now.
    fn receive(&mut self, piece: &Piece, ack: u32, from: End) -> Vec<String> {
        self.peer = Some(from);
        if piece.flags & SYN != 0 && !self.open {
            self.open = true;
            self.received = piece.seq;
        }
        if piece.flags & ACK != 0 && ack.wrapping_sub(self.una) <= self.next.wrapping_sub(self.una) {
            self.una = ack;
            self.sent.retain(|p| ack.wrapping_sub(p.seq) > 1 << 31 || ack == p.seq);
        }
        if piece.seq != self.received {
            return Vec::new();
        }
        let length = u32::try_from(piece.text.len()).unwrap_or(0) + u32::from(piece.flags & (SYN | FIN) != 0);
        self.received = self.received.wrapping_add(length);
        self.heard.extend(&piece.text);
        let mut lines = Vec::new();
        while let Some(end) = self.heard.windows(2).position(|w| w == b"\r\n") {
            lines.push(String::from_utf8_lossy(&self.heard[..end]).into_owned());
            self.heard.drain(..end + 2);
        }
        lines
    }
}

/// An FTP session between two hosts.
#[derive(Debug)]
pub struct FtpFlow {
    ends: [Speaker; 2],
    data: Vec<TcpFlow>,
    translated: bool,
    /// Whether the client may say EPRT: Linux writes its address anew behind a forwarded port, though nothing changes.
    eprt: bool,
    /// Commands that the client still has.
    commands: usize,
    budget: usize,
    /// The data connection whose shot is under way, or the end of the control connection.
    under_way: Result<usize, usize>,
}

impl FtpFlow {
    /// A session that `places` allows.
    pub fn new(places: &Places, dice: &mut Dice) -> Self {
        let (client, server, public) = places.pair_to(proto::TCP, Some(PORT), dice);
        let mut ends = [Speaker::new(client, Some(public), dice), Speaker::new(server, None, dice)];
        ends[CLIENT].outbox.push_back((SYN, Vec::new()));
        let commands = dice.of(&[1, 2, 4, 8]);
        let eprt = public.0 == server.1 || public.0.is_ipv4();
        let translated = !places.is_plain();
        Self { ends, data: Vec::new(), translated, eprt, commands, budget: 150, under_way: Err(CLIENT) }
    }

    /// What the client says next.
    fn command(&mut self, dice: &mut Dice) {
        let client = &mut self.ends[CLIENT];
        if self.commands == 0 {
            client.say("QUIT");
            client.outbox.push_back((ACK | FIN, Vec::new()));
            client.open = false;
            return;
        }
        self.commands -= 1;
        client.port = u16::try_from(dice.within(1024..=65535)).unwrap_or(1024);
        let (address, port) = (client.host.1, client.port);
        let line = match (address, dice.below(5)) {
            (IpAddr::V4(_), 0 | 1) => format!("PORT {}", numbers(address, port)),
            (IpAddr::V4(_), 2) => "PASV".into(),
            (_, 3) => "EPSV".into(),
            _ if !self.eprt => "EPSV".into(),
            (a, _) => format!("EPRT |{}|{a}|{port}|", if a.is_ipv4() { 1 } else { 2 }),
        };
        client.say(&if dice.percent(5) { line.to_lowercase() } else { line });
        if dice.percent(30) {
            client.say(dice.of(&["TYPE I", "NOOP", "LIST", "RETR 227.txt"]));
        }
    }

    /// The server hears a line.
    fn serve(&mut self, line: &str, dice: &mut Dice) {
        let client = (self.ends[CLIENT].host.0, self.ends[CLIENT].host.1, self.ends[CLIENT].port);
        let upper = line.to_uppercase();
        let server = &mut self.ends[SERVER];
        if let Some(place) = upper.strip_prefix("PORT ").and_then(of_numbers).or_else(|| of_bars(&upper)) {
            server.say("200 very well");
            let source = if dice.percent(70) { PORT - 1 } else { 40000 };
            let data = TcpFlow::between((server.host.0, server.host.1, source), client, place, dice);
            self.data.push(data);
        } else if upper.starts_with("PASV") || upper.starts_with("EPSV") {
            server.port = u16::try_from(dice.within(1024..=65535)).unwrap_or(1024);
            let text = if upper.starts_with("PASV") {
                format!("227 Entering Passive Mode ({}).", numbers(server.host.1, server.port))
            } else {
                format!("229 Entering Extended Passive Mode (|||{}|)", server.port)
            };
            server.say(&text);
        } else if upper.starts_with("QUIT") {
            server.say("221 farewell");
            server.outbox.push_back((ACK | FIN, Vec::new()));
        } else {
            server.say(if dice.percent(50) { "200 done" } else { "502 never heard of it" });
        }
    }

    /// The client hears a line.
    fn hear(&mut self, line: &str, dice: &mut Dice) {
        let [client, server] = &self.ends;
        let inside = line.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(inside, _)| inside);
        let place = match line.get(..3) {
            Some("227") => of_numbers(inside),
            Some("229") => inside.trim_matches('|').parse().ok().and_then(|port| Some((client.peer?.0, port))),
            _ => None,
        };
        if let Some(place) = place {
            let port = u16::try_from(dice.within(1024..=65535)).unwrap_or(1024);
            let listener = (server.host.0, server.host.1, server.port);
            self.data.push(TcpFlow::between((client.host.0, client.host.1, port), listener, place, dice));
        }
    }

    fn packet(&self, end: usize, piece: &Piece) -> Option<Packet> {
        let e = &self.ends[end];
        let (peer, port) = e.peer?;
        let tcp = Tcp {
            sport: e.host.2,
            dport: port,
            seq: piece.seq,
            ack: if piece.flags & ACK == 0 { 0 } else { e.received },
            flags: piece.flags,
            win: 29200,
            ..Tcp::default()
        };
        Some(Packet::new(e.host.1, peer, proto::TCP, tcp.bytes(&piece.text)))
    }
}

impl Flow for FtpFlow {
    fn next(&mut self, dice: &mut Dice) -> Option<Shot> {
        for _ in 0..20 {
            self.budget = self.budget.checked_sub(1)?;
            if !self.data.is_empty() && dice.percent(60) {
                let n = dice.below(self.data.len());
                if let Some(shot) = self.data[n].next(dice) {
                    self.under_way = Ok(n);
                    return Some(shot);
                }
                self.data.remove(n);
                continue;
            }
            let idle = self.ends.iter().all(|e| e.outbox.is_empty() && e.sent.is_empty());
            if idle && self.ends[CLIENT].open {
                self.command(dice);
            }
            let end = dice.below(2);
            let last = self.ends[end].sent.len() == 1 || !self.translated;
            let again = self.ends[end].sent.front().filter(|p| last && (self.data.is_empty() || !announces(&p.text)));
            let again = again.cloned().filter(|_| dice.percent(15));
            let Some(piece) = again.or_else(|| self.ends[end].send()) else { continue };
            if dice.percent(3) && !self.translated {
                continue; // lost before it came to the router
            }
            if let Some(packet) = self.packet(end, &piece) {
                self.under_way = Err(end);
                let shot = Shot::new(self.ends[end].host.0, packet);
                return Some(Shot { intact: self.translated, ..shot });
            }
        }
        None
    }

    fn seen(&mut self, seen: &Observation, dice: &mut Dice) {
        let from = match self.under_way {
            Ok(n) => return self.data.get_mut(n).map_or((), |flow| flow.seen(seen, dice)),
            Err(end) => end,
        };
        let to = 1 - from;
        for (exit, frame) in &seen.out {
            let Some(p) = Ip::of_frame(frame).filter(|_| *exit == Exit::Link(self.ends[to].host.0)) else { continue };
            if p.proto != proto::TCP || p.fragment.is_some() || dice.percent(3) {
                continue;
            }
            let Some((piece, ack, port)) = read(p.payload()) else { continue };
            let opened = self.ends[to].open;
            let before = self.ends[to].received;
            let lines = self.ends[to].receive(&piece, ack, (p.src, port));
            if !opened && self.ends[to].open {
                if to == SERVER {
                    self.ends[SERVER].outbox.push_back((SYN | ACK, Vec::new()));
                    self.ends[SERVER].say("220 at your service");
                } else {
                    self.ends[CLIENT].outbox.push_back((ACK, Vec::new()));
                }
            } else if self.ends[to].received != before && dice.percent(70) || piece.seq != before {
                self.ends[to].outbox.push_back((ACK, Vec::new()));
            }
            for line in lines {
                if to == SERVER { self.serve(&line, dice) } else { self.hear(&line, dice) }
            }
        }
    }
}

/// Whether a line announces a data connection.
fn announces(text: &[u8]) -> bool {
    [&b"PORT"[..], b"EPRT", b"227 ", b"229 "]
        .iter()
        .any(|word| text.get(..4).is_some_and(|t| t.eq_ignore_ascii_case(word)))
}

/// The six numbers of PORT and 227.
fn numbers(address: IpAddr, port: u16) -> String {
    let [high, low] = port.to_be_bytes();
    format!("{},{high},{low}", address.to_string().replace('.', ","))
}

fn of_numbers(text: &str) -> Option<End> {
    let n: Vec<u8> = text.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
    let &[a, b, c, d, high, low] = n.as_slice() else { return None };
    Some((Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
}

/// The argument of EPRT.
fn of_bars(line: &str) -> Option<End> {
    let mut parts = line.strip_prefix("EPRT |")?.split('|').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn read(b: &[u8]) -> Option<(Piece, u32, u16)> {
    let header = usize::from(b.get(12)? >> 4) * 4;
    let piece = Piece { seq: be32(b, 4)?, flags: *b.get(13)?, text: b.get(header..)?.to_vec() };
    Some((piece, be32(b, 8)?, be16(b, 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_places_are_read_as_they_are_written() {
        let a: IpAddr = "10.0.0.2".parse().expect("an address");
        assert_eq!(of_numbers(&numbers(a, 0x1234)), Some((a, 0x1234)));
        assert_eq!(of_bars("EPRT |1|10.0.0.2|4660|"), Some((a, 0x1234)));
        assert_eq!(of_bars("EPRT |2|FD00::1|7|"), "fd00::1".parse().ok().map(|a| (IpAddr::V6(a), 7)));
        assert_eq!(of_numbers("10,0,0,2,256,0"), None);
    }
}
