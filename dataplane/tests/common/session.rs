//! A TCP connection through the gateway with a client and a server who believe each other: each keeps what it has
//! received, in order, and acknowledges it. Whatever the gateway makes of numbers and text, the two must agree.

use std::net::IpAddr;

use dataplane::io::PortIdx;

use super::lab::Lab;
use super::pkt::*;

/// One end.
#[derive(Clone, Debug)]
pub struct End {
    pub address: String,
    pub port: u16,
    /// Its peer, as it knows it.
    pub peer: (String, u16),
    pub link: PortIdx,
    /// The next number that it sends, and the next that it waits for.
    pub next: u32,
    pub waits: u32,
    pub got: Vec<u8>,
}

impl End {
    /// A segment of this end.
    pub fn segment(&self, flags: u8, seq: u32, ack: u32, text: &[u8]) -> Pkt {
        tcp(&self.address, self.port, &self.peer.0, self.peer.1, flags, seq, ack, text)
    }

    /// What arrives; says whether it was what comes next.
    fn receive(&mut self, seen: &Seen) -> bool {
        let (seq, _, header) = seen.tcp();
        assert_eq!((seen.dst.to_string(), seen.dport), (self.address.clone(), self.port));
        assert_eq!((seen.src.to_string(), seen.sport), self.peer);
        let text = &seen.ip[seen.ip.len() - (seen.ip_len - if seen.src.is_ipv4() { 20 } else { 40 }) + header.len()..];
        let old = self.waits.wrapping_sub(seq) as usize;
        if old > 1 << 31 {
            return false; // beyond: it waits for what is missing
        }
        if let Some(new) = text.get(old..) {
            self.got.extend(new);
            self.waits = self.waits.wrapping_add(new.len() as u32);
        }
        true
    }

    /// All that it has received, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.got).into_owned()
    }
}

/// The connection.
#[derive(Clone, Debug)]
pub struct Session {
    pub client: End,
    pub server: End,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Session {
    /// Opens a connection from `client` on `from` to `service`; it must leave by `to`.
    #[track_caller]
    pub fn open(lab: &mut Lab, from: PortIdx, client: (&str, u16), to: PortIdx, service: (&str, u16)) -> Self {
        let owned = |(a, p): (&str, u16)| (a.to_owned(), p);
        let (client, service) = (owned(client), owned(service));
        let first = |a: &str, p: u16| u32::from(p).wrapping_mul(0x9e37_79b9) ^ a.len() as u32;
        let (iss, irs) = (first(&client.0, client.1), first(&service.0, service.1 ^ 0x55));
        let out = lab.passes(from, &tcp(&client.0, client.1, &service.0, service.1, SYN, iss, 0, b""), to);
        let server = (out.dst.to_string(), out.dport);
        let public = (out.src.to_string(), out.sport);
        let mut s = Self {
            client: End {
                address: client.0,
                port: client.1,
                peer: service,
                link: from,
                next: iss,
                waits: irs,
                got: vec![],
            },
            server: End {
                address: server.0,
                port: server.1,
                peer: public,
                link: to,
                next: irs,
                waits: iss,
                got: vec![],
            },
        };
        s.client.next = iss.wrapping_add(1);
        s.server.waits = s.client.next;
        lab.passes(to, &s.server.segment(SYN | ACK, irs, s.server.waits, b""), from);
        s.server.next = irs.wrapping_add(1);
        s.client.waits = s.server.next;
        lab.passes(from, &s.client.segment(ACK, s.client.next, s.client.waits, b""), to);
        s
    }

    /// The same, with the first words of FTP said.
    #[track_caller]
    pub fn login(lab: &mut Lab, from: PortIdx, client: (&str, u16), to: PortIdx, service: (&str, u16)) -> Self {
        let mut s = Self::open(lab, from, client, to, service);
        s.says(lab, Side::Server, "220 ready\r\n");
        s.says(lab, Side::Client, "USER x\r\n");
        s.says(lab, Side::Server, "230 welcome\r\n");
        (s.client.got, s.server.got) = (vec![], vec![]);
        s
    }

    pub fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// One end sends `text`; gives what the other has received of it.
    #[track_caller]
    pub fn says(&mut self, lab: &mut Lab, side: Side, text: &str) -> String {
        let seq = self.end(side).next;
        self.end(side).next = seq.wrapping_add(text.len() as u32);
        let before = self.other(side).got.len();
        self.sends(lab, side, seq, text);
        let got = self.other(side).got[before..].to_vec();
        String::from_utf8(got).expect("text")
    }

    /// One end sends `text` with number `seq`, new or again. Gives the segments that the other received.
    #[track_caller]
    pub fn sends(&mut self, lab: &mut Lab, side: Side, seq: u32, text: &str) -> Vec<Seen> {
        let end = self.end(side);
        let p = end.segment(ACK | PSH, seq, end.waits, text.as_bytes());
        self.raw(lab, side, &p)
    }

    /// One end sends `p`, a segment of this connection. Whatever leaves is received by whom it is for.
    #[track_caller]
    pub fn raw(&mut self, lab: &mut Lab, side: Side, p: &Pkt) -> Vec<Seen> {
        let link = self.end(side).link;
        let other = self.other(side).link;
        let mut seen = Vec::new();
        for (port, s) in lab.send(link, p) {
            let (seq, ack, _) = s.tcp();
            if port == other
                && s.dport == self.other(side).port
                && IpAddr::to_string(&s.dst) == self.other(side).address
            {
                self.other(side).receive(&s);
                if s.tcp_flags & ACK != 0 {
                    let next = self.other(side).next;
                    assert!(next.wrapping_sub(ack) < 1 << 31, "acknowledges {ack}, which is beyond {next}");
                }
                seen.push(s);
            } else {
                // The gateway itself, on behalf of the other end.
                assert_eq!((port, s.tcp_flags, s.text().as_str()), (link, ACK, ""));
                assert_eq!((s.dst.to_string(), s.dport), (self.end(side).address.clone(), self.end(side).port));
                assert_eq!(seq, self.end(side).waits);
                assert!(self.end(side).next.wrapping_sub(ack) < 1 << 31, "acknowledges what was not sent");
            }
        }
        seen
    }

    pub fn other(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.server,
            Side::Server => &mut self.client,
        }
    }

    /// Both know of each other all that was sent: each acknowledges what it has got.
    #[track_caller]
    pub fn in_step(&mut self, lab: &mut Lab) {
        for side in [Side::Client, Side::Server] {
            let (next, end) = (self.other(side).next, self.end(side).clone());
            let seen = self.raw(lab, side, &end.segment(ACK, end.next, end.waits, b""));
            assert_eq!(seen.len(), 1, "drops: {:?}", lab.drops());
            assert_eq!(seen[0].tcp().1, next, "{side:?} acknowledges all");
            assert_eq!(seen[0].tcp().0, self.other(side).waits, "{side:?} stands where the other waits");
        }
    }
}
