//! A TCP connection as two end hosts would have it, most of the time.
//!
//! Both ends keep what a host keeps: sequence numbers, windows with scale, out-of-order data, FINs. What they send waits
//! in a queue per direction, from which it goes through the router in order or not, once, twice or never; on its way a
//! segment may be changed, above all around the edges that a firewall checks. What arrives moves the receiving end.
//!
//! *Sources*: RFC 9293, 7323, 2018, 5961 (challenge ACKs).

use std::net::IpAddr;

use super::dice::Dice;
use super::{Flow, Host, Places, Shot};
use crate::frame::{Ip, Side, be16, be32, proto};
use crate::observe::{Exit, Observation};
use crate::packet::flags::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};
use crate::packet::{Packet, Tcp, pattern};

/// What an end knows of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Listen,
    SynSent,
    SynReceived,
    Open,
    /// Our FIN is out.
    Closing,
    /// Over; a late segment may still be answered.
    Done,
}

/// A segment on its way.
#[derive(Clone, Debug, Default)]
struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
    win: u16,
    urgent: u16,
    len: usize,
    options: Vec<u8>,
}

/// One end.
#[derive(Clone, Debug)]
struct End {
    side: Side,
    own: (IpAddr, u16),
    /// The other end as this one knows it; `None` before anything came.
    peer: Option<(IpAddr, u16)>,
    state: State,
    una: u32,
    next: u32,
    received: u32,
    /// Out-of-order data: from, to.
    ahead: Option<(u32, u32)>,
    /// What it lets the other send, bytes.
    window: u32,
    /// What the other lets it send, bytes.
    allowed: u32,
    offers_scale: Option<u8>,
    scale: u8,
    peer_scale: u8,
    sack: bool,
    fin_at: Option<u32>,
    peer_done: bool,
}

impl End {
    fn new(side: Side, own: (IpAddr, u16), peer: Option<(IpAddr, u16)>, dice: &mut Dice) -> Self {
        // Now and then across the wrap.
        let start = if dice.percent(10) { u32::MAX - dice.within(0..=3000) } else { dice.word() };
        Self {
            side,
            own,
            peer,
            state: State::Closed,
            una: start,
            next: start,
            received: 0,
            ahead: None,
            window: dice.of(&[1, 512, 1460, 4096, 29200, 65535, 65535, 262_144, 1_000_000]),
            allowed: 1,
            offers_scale: dice.percent(75).then(|| dice.of(&[0, 1, 2, 7, 7, 10, 14, 15])),
            scale: 0,
            peer_scale: 0,
            sack: dice.percent(70),
            fin_at: None,
            peer_done: false,
        }
    }

    fn win(&self, syn: bool) -> u16 {
        let shift = if syn { 0 } else { self.scale.min(14) };
        u16::try_from(self.window >> shift).unwrap_or(u16::MAX)
    }

    fn syn_options(&self, dice: &mut Dice, answer: bool) -> Vec<u8> {
        let mut o = Vec::new();
        if dice.percent(90) {
            o.extend([2, 4, 5, 0xb4]);
        }
        if self.sack {
            o.extend([4, 2]);
        }
        if dice.percent(30) {
            o.extend([8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
        }
        if let Some(shift) = self.offers_scale
            && (!answer || self.scale != u8::MAX)
        {
            o.extend([1, 3, 3, shift]);
        }
        o
    }

    fn segment(&self, flags: u8, seq: u32, len: usize) -> Segment {
        Segment { seq, ack: self.received, flags, win: self.win(flags & SYN != 0), len, ..Segment::default() }
    }

    /// An acknowledgement of what there is, with SACK where data is missing.
    fn acknowledge(&self) -> Segment {
        let mut s = self.segment(ACK, self.next, 0);
        if let Some((from, to)) = self.ahead.filter(|_| self.sack) {
            s.options.extend([1, 1, 5, 10]);
            s.options.extend(from.to_be_bytes());
            s.options.extend(to.to_be_bytes());
        }
        s
    }

    /// Something this end does by itself.
    fn act(&mut self, dice: &mut Dice, out: &mut Vec<Segment>) {
        match self.state {
            State::Closed => {
                self.state = State::SynSent;
                let mut s = self.segment(SYN, self.next, 0);
                s.ack = 0;
                s.options = self.syn_options(dice, false);
                if dice.percent(10) {
                    s.flags |= ECE | CWR;
                }
                self.next = self.next.wrapping_add(1);
                out.push(s);
            }
            State::Listen | State::Done => {}
            State::SynSent | State::SynReceived => {
                if dice.percent(40) {
                    let flags = if self.state == State::SynSent { SYN } else { SYN | ACK };
                    let mut s = self.segment(flags, self.next.wrapping_sub(1), 0);
                    s.options = self.syn_options(dice, flags & ACK != 0);
                    out.push(s);
                }
            }
            State::Open => self.act_open(dice, out),
            State::Closing => match dice.below(4) {
                0 => out.push(self.segment(FIN | ACK, self.fin_at.unwrap_or(self.next), 0)),
                1 => out.push(self.acknowledge()),
                _ => {}
            },
        }
    }

    fn act_open(&mut self, dice: &mut Dice, out: &mut Vec<Segment>) {
        match dice.below(100) {
            0..60 => {
                let room = self.una.wrapping_add(self.allowed).wrapping_sub(self.next);
                let room = if room > 1 << 30 { 0 } else { room };
                let mut len = dice.of(&[1, 10, 100, 536, 1400, 1460]).min(room);
                if dice.percent(6) {
                    // To the edge, and over it.
                    len = room.saturating_add(dice.within(0..=2)).saturating_sub(1).min(1460);
                }
                if len == 0 {
                    return out.push(self.acknowledge());
                }
                let mut flags = ACK | if dice.percent(40) { PSH } else { 0 };
                let mut s = self.segment(flags, self.next, len as usize);
                if dice.percent(2) {
                    flags |= URG;
                    s.urgent = 1;
                }
                s.flags = flags;
                self.next = self.next.wrapping_add(len);
                out.push(s);
            }
            60..70 => {
                // A retransmission of what is not acknowledged.
                let outstanding = self.next.wrapping_sub(self.una);
                if outstanding > 0 && outstanding < 1 << 30 {
                    out.push(self.segment(ACK, self.una, outstanding.min(1460) as usize));
                }
            }
            70..80 => out.push(self.acknowledge()),
            80..83 => out.push(self.segment(ACK, self.next.wrapping_sub(1), dice.below(2))), // keepalive
            83..88 => {
                self.window = dice.of(&[0, 0, 1, 100, 1460, 10_000, 65_535, 500_000]);
                out.push(self.acknowledge());
            }
            88..97 => {
                self.fin_at = Some(self.next);
                out.push(self.segment(FIN | ACK, self.next, 0));
                self.next = self.next.wrapping_add(1);
                self.state = State::Closing;
            }
            _ => {
                out.push(self.segment(RST | if dice.percent(50) { ACK } else { 0 }, self.next, 0));
                self.state = State::Done;
            }
        }
    }

    /// A segment arrives; `from` is who it says it is from.
    fn receive(&mut self, s: &Segment, from: (IpAddr, u16), dice: &mut Dice, out: &mut Vec<Segment>) {
        self.peer = Some(from);
        match self.state {
            State::Listen | State::Done if s.flags & (SYN | ACK | RST) == SYN => {
                if self.state == State::Done {
                    self.next = dice.word();
                    self.una = self.next;
                    self.fin_at = None;
                }
                self.begin(s);
                self.state = State::SynReceived;
                let mut answer = self.segment(SYN | ACK, self.next, 0);
                answer.options = self.syn_options(dice, true);
                self.next = self.next.wrapping_add(1);
                out.push(answer);
            }
            State::Listen | State::Closed | State::Done => {
                if s.flags & RST == 0 && dice.percent(70) {
                    // Nobody is here.
                    let mut reset = self.segment(RST, s.ack, 0);
                    if s.flags & ACK == 0 {
                        reset.flags = RST | ACK;
                        reset.seq = 0;
                        let fin = u32::from(s.flags & (SYN | FIN) != 0);
                        reset.ack = s.seq.wrapping_add(fin).wrapping_add(u32::try_from(s.len).unwrap_or(0));
                    }
                    reset.win = 0;
                    out.push(reset);
                }
            }
            State::SynSent if s.flags & RST != 0 => {
                if s.flags & ACK != 0 && s.ack == self.next {
                    self.state = State::Done;
                }
            }
            State::SynSent if s.flags & SYN != 0 => {
                self.begin(s);
                if s.flags & ACK != 0 && s.ack == self.next {
                    self.una = s.ack;
                    self.state = State::Open;
                    out.push(self.acknowledge());
                } else if s.flags & ACK == 0 {
                    self.state = State::SynReceived; // simultaneous open
                    let mut answer = self.segment(SYN | ACK, self.next.wrapping_sub(1), 0);
                    answer.options = self.syn_options(dice, true);
                    out.push(answer);
                }
            }
            State::SynSent => {}
            _ => self.receive_synchronised(s, dice, out),
        }
    }

    fn begin(&mut self, s: &Segment) {
        self.received = s.seq.wrapping_add(1);
        self.allowed = u32::from(s.win);
        let scale = s.options.windows(3).find(|w| w[0] == 3 && w[1] == 3).map(|w| w[2].min(14));
        if let (Some(theirs), Some(ours)) = (scale, self.offers_scale) {
            (self.scale, self.peer_scale) = (ours.min(14), theirs);
        } else {
            (self.scale, self.peer_scale) = (0, 0);
            self.offers_scale = None;
        }
        self.sack &= s.options.windows(2).any(|w| w == [4, 2]);
    }

    fn receive_synchronised(&mut self, s: &Segment, dice: &mut Dice, out: &mut Vec<Segment>) {
        let len = u32::try_from(s.len).unwrap_or(0);
        let distance = s.seq.wrapping_sub(self.received);
        let acceptable = distance < self.window.max(1) || distance.wrapping_neg() <= len;
        if s.flags & RST != 0 {
            if distance == 0 {
                self.state = State::Done;
            } else if distance < self.window {
                out.push(self.acknowledge());
            }
            return;
        }
        if s.flags & SYN != 0 || !acceptable {
            if self.state == State::SynReceived && s.flags & (SYN | ACK) == (SYN | ACK) && s.ack == self.next {
                self.state = State::Open; // the other half of a simultaneous open
                self.una = s.ack;
            }
            out.push(self.acknowledge());
            return;
        }
        if s.flags & ACK != 0 {
            let advance = s.ack.wrapping_sub(self.una);
            if advance <= self.next.wrapping_sub(self.una) && advance < 1 << 30 {
                self.una = s.ack;
                self.allowed = u32::from(s.win) << self.peer_scale.min(14);
            }
            if self.state == State::SynReceived && s.ack == self.next {
                self.state = State::Open;
            }
        }
        let end = s.seq.wrapping_add(len);
        if distance == 0 || distance > 1 << 31 {
            if end.wrapping_sub(self.received) < 1 << 30 {
                self.received = end;
                if let Some((from, to)) = self.ahead
                    && from.wrapping_sub(self.received).wrapping_sub(1) > 1 << 30
                {
                    self.received = if to.wrapping_sub(self.received) < 1 << 30 { to } else { self.received };
                    self.ahead = None;
                }
            }
        } else if len > 0 {
            self.ahead = Some((s.seq, end));
        }
        if s.flags & FIN != 0 && end == self.received && !self.peer_done {
            self.received = self.received.wrapping_add(1);
            self.peer_done = true;
            out.push(self.acknowledge());
            if dice.percent(60) && self.state == State::Open {
                self.fin_at = Some(self.next);
                out.push(self.segment(FIN | ACK, self.next, 0));
                self.next = self.next.wrapping_add(1);
                self.state = State::Closing;
            }
        } else if (len > 0 && dice.percent(70)) || s.flags & FIN != 0 {
            out.push(self.acknowledge());
        }
        if self.state == State::Closing && self.peer_done && self.una == self.next {
            self.state = State::Done;
        }
    }
}

/// A TCP connection between two hosts.
#[derive(Debug)]
pub struct TcpFlow {
    ends: [End; 2],
    queues: [Vec<Segment>; 2],
    /// Segments that went out, to be sent again.
    past: Vec<(usize, Segment)>,
    /// Packets that it may still send.
    budget: usize,
    /// The end that sent the shot under way.
    under_way: usize,
}

impl TcpFlow {
    /// A connection that `places` allows.
    pub fn new(places: &Places, dice: &mut Dice) -> Self {
        let (client, server, public) = places.pair(proto::TCP, dice);
        let mut flow = Self::between(client, server, public, dice);
        if dice.percent(8) && places.is_plain() {
            // In mid-stream: the firewall has not seen how it began.
            let [a, b] = &mut flow.ends;
            b.peer = Some(a.own);
            (a.received, b.received) = (b.next, a.next);
            (a.state, b.state) = (State::Open, State::Open);
            (a.scale, b.scale) = (a.offers_scale.unwrap_or(0).min(14), b.offers_scale.unwrap_or(0).min(14));
            (a.peer_scale, b.peer_scale) = (b.scale, a.scale);
            (a.allowed, b.allowed) = (b.window, a.window);
        }
        flow.budget = dice.of(&[4, 8, 15, 30, 60, 120]);
        flow
    }

    /// A connection that `client` opens to `public`, which leads to `server` if anywhere.
    pub fn between(client: Host, server: Host, public: super::End, dice: &mut Dice) -> Self {
        let a = End::new(client.0, (client.1, client.2), Some(public), dice);
        let mut b = End::new(server.0, (server.1, server.2), None, dice);
        b.state = State::Listen;
        Self { ends: [a, b], queues: Default::default(), past: Vec::new(), budget: 30, under_way: 0 }
    }

    fn packet(&self, end: usize, s: &Segment) -> Option<Packet> {
        let e = &self.ends[end];
        let (peer, peer_port) = e.peer?;
        let tcp = Tcp {
            sport: e.own.1,
            dport: peer_port,
            seq: s.seq,
            ack: s.ack,
            flags: s.flags,
            win: s.win,
            urgent: s.urgent,
            options: s.options.clone(),
        };
        Some(Packet::new(e.own.0, peer, proto::TCP, tcp.bytes(&pattern(s.len))))
    }

    /// Changes a segment as an attacker, a broken stack or a long way through the network might.
    fn perturb(&self, end: usize, s: &mut Segment, dice: &mut Dice) {
        let window = self.ends[1 - end].window;
        let edges = [
            1,
            2,
            window,
            window.wrapping_add(1),
            window.wrapping_mul(2),
            window.wrapping_mul(2).wrapping_add(1),
            66_000,
        ];
        let edge = match dice.below(8) {
            n @ 0..7 => edges[n],
            _ => dice.word(),
        };
        let delta = if dice.percent(50) { edge } else { edge.wrapping_neg() };
        match dice.below(16) {
            0..=2 => s.seq = s.seq.wrapping_add(delta),
            3..=5 => s.ack = s.ack.wrapping_add(delta),
            6 => s.win = dice.of(&[0, 1, 1460, 65535]),
            7 => s.flags = dice.byte(),
            8 => {
                s.flags =
                    dice.of(&[SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, ACK, FIN, SYN | FIN, 0, SYN | PSH, SYN | URG])
            }
            9..=11 => {
                // A reset: exact, inside the window, below, beyond.
                *s = self.ends[end].segment(
                    RST | if dice.percent(50) { ACK } else { 0 },
                    self.ends[1 - end].received,
                    0,
                );
                s.seq = match dice.below(4) {
                    0 => s.seq,
                    1 => s.seq.wrapping_add(dice.within(1..=window.max(1))),
                    2 => s.seq.wrapping_sub(dice.within(1..=100_000)),
                    _ => s.seq.wrapping_add(window).wrapping_add(dice.within(0..=100_000)),
                };
            }
            12..=13 => {
                // A SYN, as if the connection began anew.
                s.flags = SYN;
                s.len = 0;
                s.seq = if dice.percent(50) { dice.word() } else { s.seq };
                s.ack = if dice.percent(50) { 0 } else { s.ack };
                s.options = self.ends[end].syn_options(dice, false);
            }
            14 => s.len = dice.of(&[0, 1, 1460]),
            _ => {
                s.options = (0..dice.below(11) * 4).map(|_| dice.of(&[0, 1, 2, 3, 4, 5, 8, 10, 255])).collect();
            }
        }
    }
}

impl Flow for TcpFlow {
    fn next(&mut self, dice: &mut Dice) -> Option<Shot> {
        for _ in 0..20 {
            self.budget = self.budget.checked_sub(1)?;
            let mut end = dice.below(2);
            if self.queues[end].is_empty() && dice.percent(80) {
                end = 1 - end;
            }
            if self.queues[end].is_empty() || dice.percent(15) {
                let mut out = Vec::new();
                self.ends[end].act(dice, &mut out);
                self.queues[end].extend(out);
            }
            let queued = self.queues[end].len();
            let mut segment = if queued == 0 {
                match self.past.len() {
                    n if n > 0 && dice.percent(20) => {
                        let (from, segment) = self.past[dice.below(n)].clone();
                        end = from;
                        segment
                    }
                    _ => continue,
                }
            } else {
                let at = if dice.percent(12) { dice.below(queued) } else { 0 };
                let segment = self.queues[end].remove(at);
                if dice.percent(4) {
                    continue; // lost before it came to the router
                }
                if dice.percent(4) {
                    self.queues[end].insert(0, segment.clone());
                }
                segment
            };
            self.past.push((end, segment.clone()));
            if self.past.len() > 40 {
                self.past.remove(0);
            }
            if dice.percent(7) {
                self.perturb(end, &mut segment, dice);
            }
            let Some(packet) = self.packet(end, &segment) else { continue };
            self.under_way = end;
            return Some(Shot::new(self.ends[end].side, packet));
        }
        None
    }

    fn seen(&mut self, seen: &Observation, dice: &mut Dice) {
        let to = 1 - self.under_way;
        for (exit, frame) in &seen.out {
            if *exit != Exit::Link(self.ends[to].side) {
                continue;
            }
            let Some(p) = Ip::of_frame(frame).filter(|p| p.proto == proto::TCP && p.fragment.is_none()) else {
                continue;
            };
            let Some((segment, sport)) = read(p.payload()) else { continue };
            if dice.percent(5) {
                // Lost behind the router; yet the other end may know the address from elsewhere: simultaneous open.
                if self.ends[to].state == State::Listen && dice.percent(60) {
                    self.ends[to].peer = Some((p.src, sport));
                    self.ends[to].state = State::Closed;
                }
                continue;
            }
            let mut out = Vec::new();
            self.ends[to].receive(&segment, (p.src, sport), dice, &mut out);
            self.queues[to].extend(out);
        }
        let done = self.ends.iter().all(|e| e.state == State::Done) && self.queues.iter().all(Vec::is_empty);
        if done && dice.percent(30) {
            // The client comes again from the same port.
            let start = dice.word();
            let a = &mut self.ends[0];
            (a.state, a.una, a.next, a.fin_at, a.peer_done) = (State::Closed, start, start, None, false);
            let b = &mut self.ends[1];
            (b.state, b.peer_done) = (State::Done, false);
        }
    }
}

fn read(b: &[u8]) -> Option<(Segment, u16)> {
    let header = usize::from(b.get(12)? >> 4) * 4;
    let options = b.get(20..header)?.to_vec();
    let segment = Segment {
        seq: be32(b, 4)?,
        ack: be32(b, 8)?,
        flags: b[13],
        win: be16(b, 14)?,
        urgent: 0,
        len: b.len() - header,
        options,
    };
    Some((segment, be16(b, 0)?))
}
