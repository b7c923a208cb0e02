//! Differences that are meant: docs/LINUX.md says why, a scenario shows each.

use crate::compare::{Difference, Kind};
use crate::frame::{Ip, Side, be16, proto};
use crate::observe::{Class, Observation};
use crate::packet::{pseudo, sum};
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

    fn is(&self, proto: u8) -> bool {
        self.ip().is_some_and(|p| p.proto == proto)
    }

    /// Whether one system says INVALID and the other does not.
    fn one_says_invalid(&self) -> bool {
        (self.reference.class == Some(Class::Invalid)) != (self.subject.class == Some(Class::Invalid))
    }

    /// What an ICMP error quotes.
    fn quote(&self) -> Option<&[u8]> {
        let p = self.ip()?;
        let kind = *self.l4.first()?;
        let error = if p.src.is_ipv4() { matches!(kind, 3 | 4 | 11 | 12) } else { kind < 128 };
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
        // Scenario fragments4_small.
        name: "first fragment without the transport header",
        is: |c, _| c.datagram == Some("fragment_invalid") && c.is_ipv4(),
    },
    Explained {
        // Scenario fragments6.
        name: "identification of IPv6 fragments",
        is: |_, d| d.kind == Kind::Identification,
    },
    Explained {
        // Scenario mtu.
        name: "packet too big about a fragment",
        is: |c, d| {
            let fragment = c.ip().is_some_and(|p| p.fragment.is_some() && !p.src.is_ipv4());
            d.kind == Kind::Out && fragment && c.subject.reason == Some("mtu_exceeded") && c.subject.out.len() == 1
        },
    },
    Explained {
        // Scenario protocols.
        name: "UDP-Lite checksum",
        is: |c, _| c.is(proto::UDPLITE) && c.policy.checksum && c.one_says_invalid() && udp_lite_sums(c),
    },
    Explained {
        // Scenario checksum_off_sctp.
        name: "SCTP checksum that nobody verifies",
        is: |c, d| {
            let translated = c.is(proto::SCTP) && !c.policy.checksum && !c.policy.nat.is_empty();
            d.kind == Kind::Out && translated && same_but_sctp_checksum(c)
        },
    },
    Explained {
        // Scenario dccp.
        name: "DCCP checksum mended",
        is: |c, d| d.kind == Kind::Out && c.is(proto::DCCP) && !c.policy.nat.is_empty() && same_but_checksum(c),
    },
    Explained {
        // Scenario icmp_error_short.
        name: "error that quotes less than 8 bytes of a translated packet's transport header",
        is: |c, d| {
            let short = c.quote().and_then(|q| quoted_l4(q, c.is_ipv4())).is_some_and(|l4| l4.len() < 8);
            d.kind == Kind::Out && short && c.reference.out.is_empty() && !c.policy.nat.is_empty()
        },
    },
    Explained {
        // Scenario translated_short.
        name: "translated GRE that Linux does not read",
        is: |c, _| {
            let version = c.l4.get(1).map_or(0, |b| b & 7);
            let odd = c.is(proto::GRE) && (c.l4.len() < 8 || version > 1) && !c.policy.nat.is_empty();
            odd && c.reference.out.is_empty() && c.subject.out.len() == 1
        },
    },
    Explained {
        // Scenario translated_short.
        name: "checksum in a quote that is cut short",
        is: |c, d| {
            let cut = c.quote().and_then(Ip::read).filter(|q| matches!(q.proto, proto::TCP | proto::SCTP));
            d.kind == Kind::Out && cut.is_some() && !c.policy.nat.is_empty() && same_but_quoted_checksum(c)
        },
    },
    Explained {
        // Scenario icmpv6_redirect.
        name: "no error about a redirect",
        is: |c, d| {
            let redirect = c.is(proto::ICMPV6) && c.l4.first() == Some(&137);
            d.kind == Kind::Out && redirect && c.subject.reason == Some("ttl_expired") && c.subject.out.is_empty()
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
        let at = crate::frame::ETH + p.l4 + Ip::checksum_at(p.proto)?;
        frame.get_mut(at..at + 2)?.fill(0);
        Some(frame)
    };
    exit == other && without(a).is_some_and(|a| Some(a) == without(b))
}

/// Whether both sent one ICMP error and these differ in its checksum and that of the packet that it quotes alone.
fn same_but_quoted_checksum(c: &Context<'_>) -> bool {
    let ([(exit, a)], [(other, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else { return false };
    let without = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        let p = Ip::of_frame(&frame)?;
        let (l4, quote, quoted) = (crate::frame::ETH + p.l4, crate::frame::ETH + p.quote_at()?, p.quoted()?);
        let (at, size) = if quoted.proto == proto::SCTP { (8, 4) } else { (16, 2) };
        let field = quote + quoted.l4 + at;
        let end = frame.len().min(field + size);
        frame.get_mut(field..end)?.fill(0);
        frame.get_mut(l4 + 2..l4 + 4)?.fill(0);
        Some(frame)
    };
    exit == other && without(a).is_some_and(|a| Some(a) == without(b))
}

/// The transport data of a quoted packet, whatever version its header says that it has.
fn quoted_l4(quote: &[u8], is_v4: bool) -> Option<&[u8]> {
    match is_v4 {
        true => quote.get(usize::from(quote.first()? & 15) * 4..),
        false => Ip::read(quote).map(|q| q.payload()),
    }
}

/// Whether both sent one SCTP packet and these differ in the checksum alone.
fn same_but_sctp_checksum(c: &Context<'_>) -> bool {
    let ([(exit, a)], [(other, b)]) = (c.reference.out.as_slice(), c.subject.out.as_slice()) else { return false };
    let without = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        let l4 = crate::frame::ETH + Ip::of_frame(&frame)?.l4;
        frame.get_mut(l4 + 8..l4 + 12)?.fill(0);
        Some(frame)
    };
    exit == other && without(a).is_some_and(|a| Some(a) == without(b))
}
