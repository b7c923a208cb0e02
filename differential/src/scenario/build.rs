//! From a scenario's line to frames.
//!
//! *Limits*: a line that refers to a packet which did not leave builds nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Line;
use crate::frame::{Ip, Side, proto, to_router};
use crate::observe::Exit;
use crate::packet::{Packet, Tcp, flags, icmp, pattern, udp};

/// A labelled packet: as it was sent and as it left.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The IP packet that was sent.
    pub ip: Vec<u8>,
    /// What left of it by each link, first frame, IP packet alone.
    pub left: BTreeMap<Side, Vec<u8>>,
}

impl Sent {
    /// What was sent and, of all that left, the first of each link.
    pub fn new(ip: &[u8], out: &[(Exit, Vec<u8>)]) -> Self {
        let mut left = BTreeMap::new();
        for (exit, frame) in out {
            if let Exit::Link(side) = exit {
                left.entry(*side).or_insert_with(|| frame.get(14..).unwrap_or(&[]).to_vec());
            }
        }
        Self { ip: ip.to_vec(), left }
    }
}

/// The frames of a line, in the order in which they are sent.
pub type Built = Vec<Vec<u8>>;

impl Line {
    /// The value of a key.
    fn key(&self, name: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        self.words.iter().any(|w| w == name)
    }

    /// A number, decimal or 0x…; wraps below zero, as sequence numbers do.
    fn number(&self, name: &str, default: u32) -> Result<u32, String> {
        let Some(text) = self.key(name) else { return Ok(default) };
        number(text).ok_or(format!("{name}={text} is no number"))
    }

    fn short(&self, name: &str, default: u16) -> Result<u16, String> {
        let n = self.number(name, default.into())?;
        u16::try_from(n).map_err(|_| format!("{name}={n} is above 65535"))
    }

    fn byte(&self, name: &str, default: u8) -> Result<u8, String> {
        let n = self.number(name, default.into())?;
        u8::try_from(n).map_err(|_| format!("{name}={n} is above 255"))
    }

    /// The frames of this line, or none where a packet that it refers to did not leave.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn frames(&self, sent: &BTreeMap<String, Sent>) -> Result<Built, String> {
        let word = |n: usize| self.words.get(n).map(String::as_str).ok_or("too few words");
        let labelled = |w: &str| sent.get(w).ok_or(format!("no packet is called {w}"));
        let kind = word(0)?;
        if kind == "hex" {
            return Ok(vec![to_router(self.side, &hex(word(1)?)?)]);
        }
        if kind == "again" {
            return Ok(vec![to_router(self.side, &labelled(word(1)?)?.ip)]);
        }
        if kind == "error" {
            let about = self.key("about").ok_or("about=@LABEL is missing")?;
            let Some(quoted) = labelled(about)?.left.get(&self.side) else { return Ok(Vec::new()) };
            return self.finish(self.error(word(1)?, word(2)?, quoted)?);
        }
        let at = if kind == "ip" { 2 } else { 1 };
        let (src, sport, dst, dport) = if word(at)? == "reply" {
            let Some(left) = labelled(word(at + 1)?)?.left.get(&self.side) else { return Ok(Vec::new()) };
            let t = Ip::read(left).and_then(|p| p.tuple()).ok_or("the packet has no tuple")?;
            (t.dst, t.dport, t.src, t.sport)
        } else {
            let ((s, sp), (d, dp)) = (endpoint(word(at)?)?, endpoint(word(at + 1)?)?);
            (s, sp, d, dp)
        };
        let p = self.plain(kind, src, sport, dst, dport, self.words.get(at + 2).map(String::as_str))?;
        self.finish(p)
    }

    /// Every packet but errors about others.
    fn plain(
        &self,
        kind: &str,
        src: IpAddr,
        sport: u16,
        dst: IpAddr,
        dport: u16,
        detail: Option<&str>,
    ) -> Result<Packet, String> {
        let payload = self.payload(if kind == "icmp" { 16 } else { 0 })?;
        let detail = || detail.ok_or("too few words");
        Ok(match kind {
            "tcp" => {
                let tcp = Tcp {
                    sport,
                    dport,
                    seq: self.number("seq", 0)?,
                    ack: self.number("ack", 0)?,
                    flags: tcp_flags(detail()?)?,
                    win: self.short("win", 65535)?,
                    urgent: self.short("urg", 0)?,
                    options: self.key("opts").map_or(Ok(Vec::new()), tcp_options)?,
                };
                let mut l4 = tcp.bytes(&payload);
                if let Some(words) = self.key("off").and_then(|o| o.parse::<u8>().ok()) {
                    l4[12] = words << 4;
                }
                Packet::new(src, dst, proto::TCP, l4)
            }
            "udp" | "udplite" => {
                let mut l4 = udp(sport, dport, &payload);
                if let Some(len) = self.key("ulen").and_then(number) {
                    l4[4..6].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
                }
                let p = if kind == "udp" { proto::UDP } else { proto::UDPLITE };
                Packet::new(src, dst, p, l4)
            }
            "icmp" => {
                let (t, c) = type_code(detail()?)?;
                let [a, b] = self.short("id", 0)?.to_be_bytes();
                let [c1, d] = self.short("seq", 0)?.to_be_bytes();
                let p = if src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
                Packet::new(src, dst, p, icmp(t, c, [a, b, c1, d], &payload))
            }
            "sctp" => {
                let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                l4.extend(self.number("vtag", 0)?.to_be_bytes());
                l4.extend([0; 4]);
                l4.extend(sctp_chunks(self.key("chunks").unwrap_or("data"))?);
                Packet::new(src, dst, proto::SCTP, l4)
            }
            "dccp" => {
                let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                let kind = self.byte("type", 0)?;
                l4.extend([4, 0, 0, 0, kind << 1 | 1, 0]);
                l4.extend(u64::from(self.number("seq", 0)?).to_be_bytes().split_at(2).1);
                l4.extend(payload);
                Packet::new(src, dst, proto::DCCP, l4)
            }
            "gre" => {
                let version = self.byte("version", 0)?;
                let key = self.key("key").and_then(number);
                let mut l4 = vec![if key.is_some() { 0x20 } else { 0 }, version];
                if version == 1 {
                    l4.extend([0x88, 0x0b]);
                    l4.extend(u16::try_from(payload.len()).unwrap_or(0).to_be_bytes());
                    l4.extend(u16::try_from(key.unwrap_or(0) & 0xffff).unwrap_or(0).to_be_bytes());
                } else {
                    l4.extend([0x08, 0x00]);
                    l4.extend(key.map(u32::to_be_bytes).into_iter().flatten());
                }
                l4.extend(payload);
                Packet::new(src, dst, proto::GRE, l4)
            }
            "ip" => {
                let p = self.words.get(1).and_then(|w| w.parse().ok()).ok_or("a protocol number is needed")?;
                Packet::new(src, dst, p, payload)
            }
            other => return Err(format!("{other} is no kind of packet")),
        })
    }

    /// An ICMP error that quotes `quoted`.
    fn error(&self, from: &str, what: &str, quoted: &[u8]) -> Result<Packet, String> {
        let src: IpAddr = from.parse().map_err(|_| format!("{from} is no address"))?;
        let about = Ip::read(quoted).ok_or("what is quoted is no packet")?;
        let dst = match self.key("to") {
            Some(a) => a.parse().map_err(|_| format!("{a} is no address"))?,
            None => about.src,
        };
        let (kind, code) = type_code(what)?;
        let most = if src.is_ipv4() { 548 } else { 1232 };
        let mut quote = quoted[..quoted.len().min(self.number("quote", most)? as usize)].to_vec();
        // As the router at fault saw it: some hops on.
        if let Some(ttl) = quote.get_mut(if src.is_ipv4() { 8 } else { 7 }) {
            *ttl = 1;
        }
        if let Some(flip) = self.key("flip").and_then(number)
            && let Some(b) = quote.get_mut(flip as usize)
        {
            *b ^= 0x01;
        }
        if src.is_ipv4() && quote.len() >= 20 && self.key("flip").is_none() {
            quote[10..12].fill(0);
            let check = !crate::packet::sum(0, &quote[..20]);
            quote[10..12].copy_from_slice(&check.to_be_bytes());
        }
        quote.extend(std::iter::repeat_n(0, self.number("pad", 0)? as usize));
        let rest = if let Some(gateway) = self.key("gateway") {
            match gateway.parse() {
                Ok(IpAddr::V4(a)) => a.octets(),
                _ => return Err(format!("{gateway} is no IPv4 address")),
            }
        } else {
            self.number("mtu", 0)?.to_be_bytes()
        };
        let p = if src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
        Ok(Packet::new(src, dst, p, icmp(kind, code, rest, &quote)))
    }

    fn payload(&self, default: u32) -> Result<Vec<u8>, String> {
        match (self.key("data"), self.key("text")) {
            (Some(h), _) => hex(h),
            (_, Some(t)) => Ok(t.replace("\\r\\n", "\r\n").replace('_', " ").into_bytes()),
            _ => Ok(pattern(self.number("len", default)? as usize)),
        }
    }

    /// The keys that any packet may have.
    fn finish(&self, mut p: Packet) -> Result<Built, String> {
        p.ttl = self.byte("ttl", 64)?;
        p.id = self.short("id4", 1)?;
        p.tos = self.byte("tos", 0)?;
        p.df = self.flag("df");
        if let Some(options) = self.key("ipopt") {
            p.options = hex(options)?;
        }
        for name in self.key("ext").into_iter().flat_map(|e| e.split(',')) {
            let kind = match name {
                "hop" => 0,
                "route" => 43,
                "dst" => 60,
                "ah" => 51,
                "mobility" => 135,
                n => n.parse().map_err(|_| format!("{n} is no extension header"))?,
            };
            p.extensions.push((kind, vec![0, if kind == 51 { 4 } else { 0 }, 1, 4, 0, 0, 0, 0]));
            if kind == 51
                && let Some((_, b)) = p.extensions.last_mut()
            {
                b.resize(24, 0);
            }
        }
        if self.flag("badsum") {
            p.break_checksum();
        }
        if self.flag("nosum")
            && let Some(field) = Ip::checksum_at(p.proto).and_then(|at| p.l4.get_mut(at..at + 2))
        {
            field.fill(0);
        }
        let id = self.number("id4", 1)?;
        let mut packets = match self.key("frag") {
            Some(step) => p.fragments(id, number(step).ok_or("frag= needs bytes")? as usize),
            None => vec![p.ip()],
        };
        if let Some(piece) = self.key("piece") {
            let cut = piece.trim_end_matches('+').split_once(':').and_then(|(a, n)| Some((number(a)?, number(n)?)));
            let (at, len) = cut.ok_or(format!("piece={piece}: OFFSET:BYTES expected"))?;
            let (at, end) = (at as usize, (at as usize + len as usize).min(p.l4.len()));
            let part = p.l4.get(at..end).ok_or(format!("piece={piece}: beyond the packet"))?;
            packets = vec![p.piece(Some((id, at, piece.ends_with('+'))), part)];
        }
        if let Some(order) = self.key("order") {
            let pick = |n: &str| n.parse::<usize>().ok().and_then(|n| packets.get(n.checked_sub(1)?).cloned());
            let picked: Option<Vec<_>> = order.split(',').map(pick).collect();
            packets = picked.ok_or(format!("order={order}: there are {} fragments", packets.len()))?;
        }
        if let Some(cut) = self.key("cut").and_then(number) {
            for b in &mut packets {
                cut_short(b, cut as usize);
            }
        }
        Ok(packets.iter().map(|ip| to_router(self.side, ip)).collect())
    }
}

/// Shortens an IP packet to `len` bytes, its length field with it.
fn cut_short(b: &mut Vec<u8>, len: usize) {
    b.truncate(len);
    if b.first().is_some_and(|v| v >> 4 == 4) && b.len() >= 20 {
        let total = u16::try_from(b.len()).unwrap_or(u16::MAX);
        b[2..4].copy_from_slice(&total.to_be_bytes());
        b[10..12].fill(0);
        let header = usize::from(b[0] & 15) * 4;
        let check = !crate::packet::sum(0, &b[..header.min(b.len())]);
        b[10..12].copy_from_slice(&check.to_be_bytes());
    } else if b.len() >= 40 {
        let total = u16::try_from(b.len() - 40).unwrap_or(u16::MAX);
        b[4..6].copy_from_slice(&total.to_be_bytes());
    }
}

fn number(text: &str) -> Option<u32> {
    if let Some(h) = text.strip_prefix("0x") {
        return u32::from_str_radix(h, 16).ok();
    }
    match text.strip_prefix('-') {
        Some(t) => t.parse::<u32>().ok().map(u32::wrapping_neg),
        None => text.parse().ok(),
    }
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<char> = text.chars().filter(|c| *c != '.').collect();
    let pairs = digits.chunks(2).map(|p| u8::from_str_radix(&p.iter().collect::<String>(), 16));
    pairs.collect::<Result<_, _>>().map_err(|e| format!("{text}: {e}"))
}

/// `address:port`, `[address]:port` or an address alone.
fn endpoint(text: &str) -> Result<(IpAddr, u16), String> {
    if let Ok(a) = text.parse() {
        return Ok((a, 0));
    }
    let (a, p) = text.rsplit_once(':').ok_or(format!("{text} is no address"))?;
    let a = a.trim_start_matches('[').trim_end_matches(']');
    match (a.parse(), p.parse()) {
        (Ok(a), Ok(p)) => Ok((a, p)),
        _ => Err(format!("{text} is no address and port")),
    }
}

fn type_code(text: &str) -> Result<(u8, u8), String> {
    let (t, c) = text.split_once('/').unwrap_or((text, "0"));
    t.parse().ok().zip(c.parse().ok()).ok_or(format!("{text}: type/code expected"))
}

fn tcp_flags(text: &str) -> Result<u8, String> {
    if let Some(n) = text.strip_prefix('f').and_then(|n| n.parse::<u32>().ok()) {
        return u8::try_from(n & 0x3f).map_err(|e| e.to_string());
    }
    text.chars().try_fold(0, |f, c| {
        Ok(f | match c {
            'S' => flags::SYN,
            'A' => flags::ACK,
            'F' => flags::FIN,
            'R' => flags::RST,
            'P' => flags::PSH,
            'U' => flags::URG,
            'E' => flags::ECE,
            'C' => flags::CWR,
            '-' => 0,
            _ => return Err(format!("{text}: flags are of SAFRPUEC")),
        })
    })
}

fn tcp_options(text: &str) -> Result<Vec<u8>, String> {
    let mut b = Vec::new();
    for option in text.split(',') {
        let wrong = || format!("{option} is no TCP option");
        if let Some(n) = option.strip_prefix("mss") {
            b.extend([2, 4]);
            b.extend(n.parse::<u16>().map_err(|_| wrong())?.to_be_bytes());
        } else if let Some(n) = option.strip_prefix("ws") {
            b.extend([3, 3, n.parse().map_err(|_| wrong())?]);
        } else if let Some(h) = option.strip_prefix("raw:") {
            b.extend(hex(h)?);
        } else if let Some(blocks) = option.strip_prefix("sack:") {
            let blocks: Vec<&str> = blocks.split('+').collect();
            b.extend([5, u8::try_from(2 + blocks.len() * 8).map_err(|_| wrong())?]);
            for block in blocks {
                let (from, to) = block.split_once("..").ok_or_else(wrong)?;
                b.extend(number(from).ok_or_else(wrong)?.to_be_bytes());
                b.extend(number(to).ok_or_else(wrong)?.to_be_bytes());
            }
        } else {
            match option {
                "sackok" => b.extend([4, 2]),
                "ts" => b.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]),
                "nop" => b.push(1),
                "eol" => b.push(0),
                _ => return Err(wrong()),
            }
        }
    }
    Ok(b)
}

/// `init:7` (its tag), `data`, `sack`, `heartbeat:BYTES` …, joined by `+`.
fn sctp_chunks(text: &str) -> Result<Vec<u8>, String> {
    let mut b = Vec::new();
    for chunk in text.split('+') {
        let (name, value) = chunk.split_once(':').unwrap_or((chunk, ""));
        let n = || number(value).unwrap_or(0);
        let init = || [n().to_be_bytes().as_slice(), &[0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat();
        let (kind, flag, body) = match name {
            "data" => (0, 3, vec![0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, b'd', b'a', b't', b'a']),
            "init" => (1, 0, init()),
            "initack" => (2, 0, [init(), vec![0, 7, 0, 8, 1, 2, 3, 4]].concat()),
            "sack" => (3, 0, vec![0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0]),
            "heartbeat" => (4, 0, vec![0, 1, 0, 8, 1, 2, 3, 4]),
            "heartbeatack" => (5, 0, vec![0, 1, 0, 8, 1, 2, 3, 4]),
            "abort" => (6, u8::try_from(n() & 1).unwrap_or(0), vec![]),
            "shutdown" => (7, 0, vec![0, 0, 0, 1]),
            "shutdownack" => (8, 0, vec![]),
            "error" => (9, 0, vec![0, 9, 0, 4]),
            "cookieecho" => (10, 0, vec![1, 2, 3, 4]),
            "cookieack" => (11, 0, vec![]),
            "shutdowncomplete" => (14, u8::try_from(n() & 1).unwrap_or(0), vec![]),
            "zero" => (0, 3, vec![]),
            other => (other.parse().map_err(|_| format!("{other} is no SCTP chunk"))?, 0, vec![]),
        };
        let len = if name == "zero" { 0 } else { u16::try_from(4 + body.len()).unwrap_or(4) };
        b.extend([kind, flag]);
        b.extend(len.to_be_bytes());
        b.extend(body);
        b.resize(b.len().next_multiple_of(4), 0);
    }
    Ok(b)
}
