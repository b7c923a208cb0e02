//! FTP through the lab: policies, the ways through the gateway, announcements and data connections.

use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;

use super::lab::*;
use super::pkt::*;
use super::session::{Session, Side};
pub use super::ways::Way;
use super::ways::{both_ends, masquerading, only_control};

pub const HOST: &str = "10.0.0.2";
pub const INSIDE: &str = "10.0.0.9";
pub const FAR: &str = "203.0.113.5";
pub const GATEWAY: &str = "198.51.100.1";
pub const HOST6: &str = "fd00:1::2";
pub const FAR6: &str = "2001:db8:5::5";
pub const GATEWAY6: &str = "2001:db8::1";

/// Nothing but control connections may begin.
pub fn strict() -> PolicySpec {
    only_control(HelperKind::Ftp, 21)
}

pub fn masqueraded() -> PolicySpec {
    masquerading(strict())
}

/// Port 21 of the gateway leads to the server inside, by either IP version.
pub fn forwarded() -> PolicySpec {
    let mut p = strict();
    for (own, to) in [("198.51.100.1/32", INSIDE), ("2001:db8::1/128", HOST6)] {
        p.nat.push(NatRuleSpec {
            name: format!("ftp-{to}"),
            matches: Match {
                from: vec![WAN_ZONE],
                proto: vec![proto::TCP],
                dport: vec![21..=21],
                destination: Some(only(own)),
                ..Match::default()
            },
            kind: NatKind::Dnat { to: ip(to).into(), port: None },
            ..masquerade()
        });
    }
    p
}

/// Both ends are translated: the server inside sees the gateway's inner address.
pub fn both() -> PolicySpec {
    both_ends(forwarded())
}

pub fn ways() -> Vec<Way> {
    vec![
        Way::out("plain", strict(), HOST, FAR),
        Way::out("plain 6", strict(), HOST6, FAR6),
        Way::inwards("plain inwards", strict(), FAR, INSIDE),
        Way::out("masqueraded", masqueraded(), HOST, FAR),
        Way::out("masqueraded 6", masqueraded(), HOST6, FAR6),
        Way::inwards("forwarded", forwarded(), FAR, GATEWAY),
        Way::inwards("forwarded 6", forwarded(), FAR6, GATEWAY6),
        Way::inwards("both", both(), FAR, GATEWAY),
        Way::inwards("both 6", both(), FAR6, GATEWAY6),
    ]
}

pub fn login(lab: &mut Lab, way: &Way, port: u16) -> Session {
    let (from, to) = way.links;
    Session::login(lab, from, (way.client, port), to, (way.service, 21))
}

/// `PORT` and `227` as they are written.
pub fn comma(address: &str, port: u16) -> String {
    format!("{},{},{}", address.replace('.', ","), port >> 8, port & 255)
}

/// The address and port that a line announces.
pub fn announced(line: &str, default: &str) -> (String, u16) {
    if line.contains('|') {
        let fields: Vec<&str> = line.split('|').collect();
        let address = if fields[2].is_empty() { default.to_owned() } else { ip(fields[2]).to_string() };
        return (address, fields[3].parse().expect("a port"));
    }
    let digits = line.split(|c: char| !c.is_ascii_digit() && c != ',').find(|s| s.contains(','));
    let n: Vec<u16> = digits.expect("numbers").split(',').map(|n| n.parse().expect("a number")).collect();
    assert_eq!(n.len(), 6, "{line}");
    (format!("{}.{}.{}.{}", n[0], n[1], n[2], n[3]), n[4] << 8 | n[5])
}

/// The announcements that `side` can make of ports from `port` on, at `address`.
pub fn forms(address: &str, side: Side, port: u16) -> Vec<(u16, String)> {
    let v4 = address.contains('.');
    let family = if v4 { 1 } else { 2 };
    let eprt = (port, format!("EPRT |{family}|{address}|{port}|\r\n"));
    let epsv = (port, format!("229 Entering Extended Passive Mode (|||{port}|)\r\n"));
    match side {
        Side::Client if v4 => vec![eprt, (port + 1, format!("PORT {}\r\n", comma(address, port + 1)))],
        Side::Client => vec![eprt],
        Side::Server if v4 => vec![
            epsv,
            (port + 1, format!("227 Entering Passive Mode ({}).\r\n", comma(address, port + 1))),
            (port + 2, format!("227 {}\r\n", comma(address, port + 2))),
        ],
        Side::Server => vec![epsv],
    }
}

/// The data connection to what `side` has announced: from the other end, who heard `address` and `port`. The announcer gets
/// it at `real`. Three segments pass, RELATED, then ESTABLISHED.
#[track_caller]
pub fn data(lab: &mut Lab, s: &mut Session, side: Side, heard: (&str, u16), real: u16, sport: u16) {
    let (caller, callee) = (s.other(side).clone(), s.end(side).clone());
    lab.changed();
    let out = lab.passes(caller.link, &tcp(&caller.address, sport, heard.0, heard.1, SYN, 1, 0, b""), callee.link);
    assert_eq!((out.dst, out.dport), (ip(&callee.address), real), "it arrives where the announcer waits");
    assert_eq!(out.src, ip(&callee.peer.0), "it comes from whom the announcer speaks with");
    assert_eq!(out.sport, sport);
    let (src, own) = (out.src.to_string(), callee.address.clone());
    let back = lab.passes(callee.link, &tcp(&own, real, &src, out.sport, SYN | ACK, 9, 2, b""), caller.link);
    assert_eq!(back.flow(), Pkt::flow_of(heard.0, heard.1, &caller.address, sport));
    lab.passes(caller.link, &tcp(&caller.address, sport, heard.0, heard.1, ACK, 2, 10, b"data"), callee.link);
    lab.moved(&[
        "class established original +1",
        "class established reply +1",
        "class related original +1",
        "event assured +1",
        "event new +1",
        "event replied +1",
    ]);
}
