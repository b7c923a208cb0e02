//! Differences that are meant: docs/LINUX.md says why, a scenario shows each.

use dataplane::api::Tuple;

use crate::compare::{Difference, Kind, split};
use crate::frame::{ETH, Ip, Side, be16, proto};
use crate::observe::{Class, Exit, Observation};
use crate::packet::{pseudo, sum, transport_sum};
use crate::policy::Policy;

/// A packet and what both systems made of it.
pub struct Context<'a> {
    /// What both were set up with.
    pub policy: &'a Policy,
    /// What was sent.
    pub frame: &'a [u8],
    /// Where.
    pub side: Side,
    /// Transport header and payload of the whole datagram, as far as it has come.
    pub l4: &'a [u8],
    /// What the kernel made of it.
    pub reference: &'a Observation,
    /// What Sluice made of it.
    pub subject: &'a Observation,
    /// Whether an INVALID packet of the flow came before there was a connection.
    pub spoilt: bool,
    /// Why Sluice does not take the datagram that this is a fragment of.
    pub datagram: Option<&'static str>,
}

impl Context<'_> {
    fn ip(&self) -> Option<Ip<'_>> {
        Ip::of_frame(self.frame)
    }

    fn is_ipv4(&self) -> bool {
        self.ip().is_some_and(|p| p.src.is_ipv4())
    }

    fn is_fragment(&self) -> bool {
        self.ip().is_some_and(|p| p.fragment.is_some())
    }

    fn is(&self, proto: u8) -> bool {
        self.ip().is_some_and(|p| p.proto == proto)
    }

    /// Whether one system says INVALID and the other does not.
    fn one_says_invalid(&self) -> bool {
        (self.reference.class == Some(Class::Invalid)) != (self.subject.class == Some(Class::Invalid))
    }

    /// What an ICMP error quotes.
    pub fn quote(&self) -> Option<&[u8]> {
        let p = self.ip()?;
        let kind = *self.l4.first()?;
        let error = if p.src.is_ipv4() { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 };
        self.l4.get(8..).filter(|_| p.is_icmp() && error)
    }
}

/// A difference that is meant.
pub struct Explained {
    /// Its name in reports.
    pub name: &'static str,
    /// Whether this is one.
    pub is: fn(&Context<'_>, &Difference) -> bool,
}

/// All of them.
pub const EXPLAINED: &[Explained] = &[
    Explained {
        // Two workers choose other ports; the comparison writes the one that Sluice chose into a fragment whose datagram's
        // checksum lies in another.
        name: "port set in a fragment without the checksum",
        is: |c, _| {
            let sealed = c.is(proto::TCP) && c.is_fragment();
            sealed && !c.policy.nat.is_empty() && c.subject.reason == Some("invalid_checksum")
        },
    },
    Explained {
        // Scenario fragments6.
        name: "identification of IPv6 fragments",
        is: |_, d| d.kind == Kind::Identification,
    },
    Explained {
        // Scenario fragments6_atomic.
        name: "IPv6 fragment that is all of its datagram, with the identification of others",
        is: |c, _| {
            let header = c.frame.get(ETH + 40..ETH + 48).filter(|_| c.frame[ETH + 6] == 44 && !c.is_ipv4());
            header.is_some_and(|h| h[2] == 0 && h[3] & !6 == 0) && c.reference.class.is_none()
        },
    },
    Explained {
        // Scenario mtu.
        name: "error of the router about a datagram in fragments",
        is: |c, d| {
            let one = c.reference.out.len() == 1 && c.subject.out.len() == 1;
            d.kind == Kind::Out
                && one
                && c.is_fragment()
                && matches!(c.subject.reason, Some("mtu_exceeded" | "ttl_expired"))
        },
    },
    Explained {
        // Scenario protocols.
        name: "UDP-Lite checksum",
        is: |c, _| c.is(proto::UDPLITE) && c.policy.checksum && c.one_says_invalid() && udp_lite_sums(c),
    },
    Explained {
        // Scenario dccp.
        name: "DCCP checksum mended",
        is: |c, d| d.kind == Kind::Out && c.is(proto::DCCP) && !c.policy.nat.is_empty() && same_but_checksum(c),
    },
    Explained {
        // Scenario checksum_off_nat.
        name: "wrong SCTP checksum that stays wrong",
        is: |c, d| d.kind == Kind::Out && c.is(proto::SCTP) && !c.policy.checksum && same_but_checksum(c),
    },
    Explained {
        // Scenario checksum_off_nat.
        name: "translated error with a wrong checksum",
        is: |c, d| {
            let wrong = |p: Ip<'_>| transport_sum(p.src, p.dst, p.proto, c.l4) != 0xffff;
            let dropped = d.kind == Kind::Out && c.reference.out.is_empty() && !c.policy.nat.is_empty();
            dropped && !c.policy.checksum && c.quote().is_some() && c.ip().is_some_and(wrong)
        },
    },
    Explained {
        // Scenario gre_short.
        name: "translated GRE of less than 8 bytes or of an unknown version",
        is: |c, d| {
            let dropped = c.reference.out.is_empty() && matches!(d.kind, Kind::Out | Kind::Conn);
            let odd = c.l4.len() < 8 || c.l4[1] & 7 > 1;
            dropped && c.is(proto::GRE) && odd && !c.policy.nat.is_empty()
        },
    },
    Explained {
        // Scenario icmp_error_short.
        name: "error that quotes less than 8 bytes of a translated packet's transport header, or a header cut short",
        is: |c, d| {
            let dropped = d.kind == Kind::Out && c.reference.out.is_empty() && !c.policy.nat.is_empty();
            let short = |q: &[u8]| {
                let header = quoted_header(q, c.is_ipv4());
                q.len() < 8 + header || c.is_ipv4() && header < 20
            };
            dropped && c.quote().is_some_and(short)
        },
    },
    Explained {
        // Scenario icmp_error_short.
        name: "transport checksum that an error quotes",
        is: |c, d| d.kind == Kind::Out && !c.policy.nat.is_empty() && same_but_quoted_checksum(c),
    },
    Explained {
        // Scenario fragments6.
        name: "IPv6 datagram that needs no fragments any more",
        is: |c, d| d.kind == Kind::Out && same_but_whole(c),
    },
    Explained {
        // Scenario icmp_error_quote.
        name: "error in fragments of which the first does not hold all that is quoted",
        is: |c, d| {
            let invalid = c.subject.class == Some(Class::Invalid);
            c.is_fragment() && c.quote().is_some() && (invalid || d.kind == Kind::Out)
        },
    },
    Explained {
        // Scenario local.
        name: "discovery between the router and a link",
        is: |c, d| {
            let discovery = c.ip().is_some_and(|p| p.is_icmp()) && c.subject.class == Some(Class::Untracked);
            d.kind == Kind::Out && discovery && matches!(c.subject.out.as_slice(), [(Exit::Local, _)])
        },
    },
    Explained {
        // Scenario ftp_nat.
        name: "FTP text behind a gap or in fragments, where addresses are rewritten",
        is: |c, _| matches!(c.subject.reason, Some("helper_order" | "helper_fragments")),
    },
    Explained {
        // Scenario ftp_partial.
        name: "FTP command that breaks off at the end of a segment",
        is: |c, d| {
            let text = c.l4.get(12).and_then(|o| c.l4.get(usize::from(o >> 4) * 4..)).unwrap_or_default();
            let begins = |command: &[u8]| {
                let n = text.len().min(command.len());
                n > 0 && text[..n].eq_ignore_ascii_case(&command[..n]) && !text.ends_with(b"\n")
            };
            let dropped =
                d.kind == Kind::Out && c.reference.out.is_empty() && c.reference.about.is_some_and(|t| is_ftp(&t));
            dropped
                && !c.policy.helpers.is_empty()
                && [&b"PORT "[..], b"EPRT ", b"227 ", b"229 "].into_iter().any(begins)
        },
    },
    Explained {
        // Scenario ftp_dnat.
        name: "EPRT in which translation changes nothing",
        is: |c, d| {
            let text = |b: &[u8]| Some(b.get(usize::from(*b.get(12)? >> 4) * 4..)?.to_vec());
            let eprt = text(c.l4).filter(|t| t.starts_with(b"EPRT |2|"));
            let left = c.subject.out.iter().find_map(|(_, frame)| text(Ip::of_frame(frame)?.payload()));
            d.kind == Kind::Out && eprt.is_some() && eprt == left && !c.policy.nat.is_empty()
        },
    },
    Explained {
        // Scenario ftp_nat.
        name: "error about a connection whose sequence numbers are shifted",
        is: |c, d| {
            let translated = d.kind == Kind::Out && !c.policy.nat.is_empty() && !c.policy.helpers.is_empty();
            let made = matches!(c.subject.reason, Some("ttl_expired" | "mtu_exceeded"));
            translated && (made || c.quote().is_some()) && c.reference.about.is_some_and(|t| is_ftp(&t))
        },
    },
    Explained {
        // Scenario helper_pptp_differs.
        name: "PPTP message in pieces, behind another one, or of an incoming call, where ids are rewritten",
        is: |c, d| {
            let ([(there, a)], [(here, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else {
                return false;
            };
            let control = |frame: &[u8]| {
                let p = Ip::of_frame(frame).filter(|p| p.proto == proto::TCP)?;
                let pptp = [0, 2].iter().any(|&at| be16(p.payload(), at) == Some(1723));
                pptp.then(|| p.payload().len())
            };
            let same = there == here && control(a).is_some() && control(a) == control(b);
            d.kind == Kind::Out && same && follows_calls(c)
        },
    },
    Explained {
        // Scenario helper_pptp_differs.
        name: "error about a packet of a translated call",
        is: |c, _| {
            let (reference, subject) = (c.reference.class, c.subject.class);
            let call =
                c.quote().and_then(Ip::read).is_some_and(|q| q.proto == proto::GRE && q.payload().get(1) == Some(&1));
            reference == Some(Class::Invalid) && subject == Some(Class::Related) && call && follows_calls(c)
        },
    },
    Explained {
        // Scenario ftp_invalid.
        name: "expectation that an INVALID packet used up",
        is: |c, _| {
            let (reference, subject) = (c.reference.class, c.subject.class);
            c.spoilt && reference == Some(Class::New) && subject == Some(Class::Related) && !c.policy.helpers.is_empty()
        },
    },
    Explained {
        // Scenario wrong_side.
        name: "error that goes back where its packet came from",
        is: |c, d| {
            let ([(there, a)], [(here, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else {
                return false;
            };
            let error = |frame| {
                let p = Ip::of_frame(frame).filter(Ip::is_icmp_error)?;
                Some((p.dst, p.payload().get(..2)?.to_vec()))
            };
            let made = matches!(c.subject.reason, Some("ttl_expired" | "mtu_exceeded"));
            let back = *here == Exit::Link(c.side) && *there == Exit::Link(c.side.other());
            d.kind == Kind::Out && made && back && error(a).is_some() && error(a) == error(b)
        },
    },
    Explained {
        // Scenario icmp_ttl.
        name: "no error about an ICMP message that is cut short",
        is: |c, d| {
            let silent = c.subject.out.is_empty() && c.subject.reason == Some("ttl_expired");
            d.kind == Kind::Out && silent && c.ip().is_some_and(|p| p.is_icmp()) && (1..8).contains(&c.l4.len())
        },
    },
    Explained {
        // Scenario icmpv6_redirect.
        name: "no error about a redirect",
        is: |c, d| {
            let silent = c.subject.out.is_empty() && matches!(c.subject.reason, Some("ttl_expired" | "mtu_exceeded"));
            d.kind == Kind::Out && silent && c.is(proto::ICMPV6) && c.l4.first() == Some(&137)
        },
    },
    Explained {
        // Scenario timeout_policy.
        name: "timeout policy of a connection that is picked up",
        is: |c, d| {
            let new =
                c.reference.class == Some(Class::New) && c.is(proto::TCP) && !c.policy.timeout_policies.is_empty();
            d.kind == Kind::Timeout && new && c.reference.conn.as_ref().is_some_and(|conn| conn.state == "ESTABLISHED")
        },
    },
    Explained {
        // Scenarios nat_masquerade and nat_dnat.
        name: "translated tuple that a flow of another worker has",
        is: |c, _| c.subject.reason == Some("signpost_clash"),
    },
];

/// The name of the explanation of `difference`, if there is one.
pub fn name(context: &Context<'_>, difference: &Difference) -> Option<&'static str> {
    EXPLAINED.iter().find(|e| (e.is)(context, difference)).map(|e| e.name)
}

/// Whether a tuple is that of an FTP control connection.
const fn is_ftp(t: &Tuple) -> bool {
    t.proto == proto::TCP && (t.sport == 21 || t.dport == 21)
}

/// Whether call ids are rewritten.
fn follows_calls(c: &Context<'_>) -> bool {
    !c.policy.nat.is_empty() && c.policy.helpers.iter().any(|(name, ..)| name == "pptp")
}

/// Length of the network header that `quote` begins with.
fn quoted_header(quote: &[u8], v4: bool) -> usize {
    match Ip::read(quote) {
        Some(p) => p.l4,
        // Linux does not look at the version of what is quoted.
        None if v4 => quote.first().map_or(0, |b| usize::from(b & 15) * 4),
        None => 40,
    }
}

/// Whether the checksum of a UDP-Lite packet is right by RFC 3828, or as Linux computes it: with UDP's protocol number in
/// the pseudo header.
fn udp_lite_sums(c: &Context<'_>) -> bool {
    let covered = be16(c.l4, 4).map_or(0, usize::from);
    let part = if covered == 0 { Some(c.l4) } else { c.l4.get(..covered) };
    let (Some(p), Some(part)) = (c.ip(), part) else { return false };
    [proto::UDPLITE, proto::UDP].into_iter().any(|n| sum(pseudo(p.src, p.dst, n, c.l4.len()), part) == 0xffff)
}

/// Whether both sent one frame and these differ in the transport checksum alone.
fn same_but_checksum(c: &Context<'_>) -> bool {
    let ([(exit, a)], [(other, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else { return false };
    let without = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        let p = Ip::of_frame(&frame)?;
        let field =
            if p.proto == proto::SCTP { 8..12 } else { Ip::checksum_at(p.proto)?..Ip::checksum_at(p.proto)? + 2 };
        let l4 = ETH + p.l4;
        frame.get_mut(l4 + field.start..l4 + field.end)?.fill(0);
        Some(frame)
    };
    exit == other && without(a).is_some_and(|a| Some(a) == without(b))
}

/// Whether both sent one error and these differ in the transport checksum that they quote, where that is of a header cut
/// short or of DCCP, and in what follows from it; ours must be right.
fn same_but_quoted_checksum(c: &Context<'_>) -> bool {
    let ([(exit, a)], [(other, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else { return false };
    let without = |frame: &[u8]| {
        let p = Ip::of_frame(frame)?;
        let q = p.quoted()?;
        let (l4, inner) = (ETH + p.l4, ETH + p.quote_at()? + q.l4);
        let length = q.payload().len();
        let field = match q.proto {
            proto::TCP if length < 20 => 16..18,
            proto::SCTP => 8..12,
            proto::DCCP => 6..8,
            _ => return None,
        };
        let sealed = transport_sum(p.src, p.dst, p.proto, p.payload()) == 0xffff;
        let mut rest = frame.to_vec();
        rest[l4 + 2..l4 + 4].fill(0);
        rest.get_mut(inner + field.start..(inner + field.end).min(frame.len()))?.fill(0);
        Some((rest, sealed))
    };
    let (Some((a, _)), Some((b, sealed))) = (without(a), without(b)) else { return false };
    exit == other && a == b && sealed
}

/// Whether Linux sent one IPv6 packet whole of which Sluice sent the fragments.
fn same_but_whole(c: &Context<'_>) -> bool {
    let [(exit, whole)] = c.reference.out.as_slice() else { return false };
    let Some(p) = Ip::of_frame(whole).filter(|p| p.fragment.is_none() && !p.src.is_ipv4()) else { return false };
    let mut payload = Vec::new();
    for (other, frame) in &c.subject.out {
        let Some((q, f)) = Ip::of_frame(frame).and_then(|q| Some((q, q.fragment?))) else { return false };
        if other != exit || (q.src, q.dst, q.bytes[7]) != (p.src, p.dst, p.bytes[7]) {
            return false;
        }
        let (mut header, part) = split(&q);
        let extensions = header.split_off(40);
        let at = extensions.len() + f.offset;
        payload.resize(payload.len().max(at + part.len()), 0);
        payload[..extensions.len()].copy_from_slice(&extensions);
        payload[at..at + part.len()].copy_from_slice(part);
    }
    payload == p.bytes[40..]
}
