//! How a connection, an event and an expectation are written: as conntrack-tools write them, or as
//! /proc/net/nf_conntrack has them.
//!
//! *Sources*: the output of conntrack 1.4.7 and of the kernel; linux/net/netfilter/nf_conntrack_standalone.c
//! (`ct_seq_show`, `print_tuple`).

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::api::wire::{Conn, Expectation, Report, Way};

/// A part of the form of output; several go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As `conntrack -L`.
    Default,
    /// As `conntrack -L -o extended`: with the network protocol.
    Extended,
    /// As the lines of /proc/net/nf_conntrack.
    #[value(name = "nf_conntrack")]
    NfConntrack,
    /// With a number that tells connections apart.
    Id,
    /// With how long it has been there, and since when.
    Ktimestamp,
    /// Events with the time at which control heard of them.
    Timestamp,
}

/// How lines are written.
#[derive(Clone, Debug, Default)]
pub struct Style {
    extended: bool,
    kernel: bool,
    id: bool,
    ktimestamp: bool,
    timestamp: bool,
    /// Where dates are read; UTC where there is none.
    zone: Option<TimeZone>,
}

impl Style {
    /// All of `formats` together, dates as clocks show them in `zone`.
    pub fn new(formats: &[Format], zone: TimeZone) -> Self {
        let has = |f| formats.contains(&f);
        Self {
            extended: has(Format::Extended),
            kernel: has(Format::NfConntrack),
            id: has(Format::Id),
            ktimestamp: has(Format::Ktimestamp),
            timestamp: has(Format::Timestamp),
            zone: Some(zone),
        }
    }

    /// One connection in one line, without the line's end.
    pub fn line(&self, c: &Conn) -> String {
        let mut out = String::with_capacity(256);
        self.write_conn(&mut out, c, true, true);
        if !self.kernel && self.ktimestamp {
            let _ = write!(out, "delta-time={} [start={}] ", c.age, self.date(c.start));
        }
        self.write_helper(&mut out, c);
        // One holder is the table; the kernel counts the reader as well.
        let _ = write!(out, "use={} ", if self.kernel { 2 } else { 1 });
        self.finish(out, c)
    }

    /// One event in one line; what was lost is a line too.
    pub fn event(&self, report: &Report) -> String {
        let mut out = String::with_capacity(256);
        let (event, time, reason, stop, c) = match report {
            Report::Lost { lost } => return format!("# lost {lost}"),
            Report::Change { event, time, reason, stop, conn } => (event.as_str(), time, reason, stop, conn),
        };
        if self.timestamp {
            let _ = write!(out, "[{time:.6}]\t");
        }
        let kind = if event == "update" { "[UPDATE]" } else { &format!("[{}]", event.to_uppercase()) };
        let _ = write!(out, "{kind:>9} ");
        let ended = stop.is_some();
        self.write_conn(&mut out, c, ended, false);
        if ended {
            let _ = write!(out, "delta-time={} ", c.age);
        }
        if ended || self.ktimestamp {
            let _ = write!(out, "[start={}] ", self.date(c.start));
        }
        if let Some(stop) = stop {
            let _ = write!(out, "[stop={}] ", self.date(*stop));
        }
        self.write_helper(&mut out, c);
        if let Some(reason) = reason {
            let _ = write!(out, "reason={reason} ");
        }
        self.finish(out, c)
    }

    /// Writing to a string does not fail, so results are let go in here. Events have no marks of 0, and counters only at
    /// the end.
    fn write_conn(&self, out: &mut String, c: &Conn, counters: bool, listed: bool) {
        let kernel = self.kernel && listed;
        if self.extended || self.kernel {
            let (name, number) = if c.original.src.is_ipv4() { ("ipv4", 2) } else { ("ipv6", 10) };
            let _ = write!(out, "{name:<8} {number} ");
        }
        let name = if kernel && c.proto == DCCP { "unknown" } else { proto_name(c.proto) };
        let _ = write!(out, "{name:<8} {} ", c.proto);
        if listed || c.timeout > 0 {
            let _ = write!(out, "{} ", c.timeout);
        }
        if let Some(state) = &c.state {
            let _ = write!(out, "{state} ");
        }
        if let (true, Some([timeout, stream])) = (kernel, c.gre_timeouts) {
            let _ = write!(out, "timeout={timeout}, stream_timeout={stream} ");
        }
        let one_zone = c.original.zone == c.reply.zone;
        let more = |way: &Way, direction: &str| {
            let mut more = String::from(if c.proto == DCCP && !kernel { "sport=0 dport=0 " } else { "" });
            if !one_zone && way.zone != 0 {
                let _ = write!(more, "zone-{direction}={} ", way.zone);
            }
            more
        };
        // The kernel prints counters only with nf_conntrack_acct, which is off by default.
        let counters = counters && !kernel;
        write_way(out, &c.original, kernel, &more(&c.original, "orig"), counters);
        if !c.replied {
            out.push_str("[UNREPLIED] ");
        }
        write_way(out, &c.reply, kernel, &more(&c.reply, "reply"), counters);
        if c.assured {
            out.push_str("[ASSURED] ");
        }
        if listed || c.mark != 0 {
            let _ = write!(out, "mark={} ", c.mark);
        }
        if one_zone && (kernel || c.original.zone != 0) {
            let _ = write!(out, "zone={} ", c.original.zone);
        }
    }

    fn write_helper(&self, out: &mut String, c: &Conn) {
        if let (false, Some(helper)) = (self.kernel, &c.helper) {
            let _ = write!(out, "helper={helper} ");
        }
    }

    fn finish(&self, mut out: String, c: &Conn) -> String {
        if self.id {
            let _ = write!(out, "id={} ", id(c));
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// A point in time as ctime(3) writes it.
    fn date(&self, seconds: u64) -> String {
        let timestamp = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default();
        let zone = self.zone.clone().unwrap_or(TimeZone::UTC);
        timestamp.to_zoned(zone).strftime("%a %b %e %H:%M:%S %Y").to_string()
    }
}

/// One expectation in one line, as `conntrack -L expect`.
pub fn expectation(e: &Expectation) -> String {
    let mut out = format!("{} proto={} ", e.timeout, e.proto);
    write_way(&mut out, &e.tuple, false, "", false);
    // What may be anything has no bit in its mask.
    let mask = |a: IpAddr| match a {
        IpAddr::V4(a) => {
            if a.is_unspecified() {
                "0.0.0.0"
            } else {
                "255.255.255.255"
            }
        }
        IpAddr::V6(a) => {
            if a.is_unspecified() {
                "::"
            } else {
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            }
        }
    };
    let _ = write!(out, "mask-src={} mask-dst={} ", mask(e.tuple.src), mask(e.tuple.dst));
    if let (Some(sport), Some(dport)) = (e.tuple.sport, e.tuple.dport) {
        let bits = |port: u16| if port == 0 { 0 } else { u16::MAX };
        let _ = write!(out, "sport={} dport={} ", bits(sport), bits(dport));
    }
    if e.tuple.srckey.is_some() {
        out.push_str("srckey=0xffff dstkey=0xffff "); // a call has both
    }
    let mut master = String::new();
    write_way(&mut master, &e.master, false, "", false);
    let _ = write!(out, "master-{} ", master.trim_end().replacen(" dst=", " master-dst=", 1));
    if e.permanent {
        out.push_str("PERMANENT ");
    }
    let _ = write!(out, "class=0 helper={}", e.helper);
    out
}

fn write_way(out: &mut String, w: &Way, kernel: bool, more: &str, counters: bool) {
    let address = |a: IpAddr| match a {
        IpAddr::V6(a) if kernel => uncompressed(a),
        a => a.to_string(),
    };
    let _ = write!(out, "src={} dst={} ", address(w.src), address(w.dst));
    if let (Some(sport), Some(dport)) = (w.sport, w.dport) {
        let _ = write!(out, "sport={sport} dport={dport} ");
    }
    if let (Some(t), Some(code), Some(id)) = (w.icmp_type, w.icmp_code, w.icmp_id) {
        let _ = write!(out, "type={t} code={code} id={id} ");
    }
    if let (Some(src), Some(dst)) = (w.srckey, w.dstkey) {
        let _ = write!(out, "srckey={src:#x} dstkey={dst:#x} ");
    }
    out.push_str(more);
    if counters {
        let _ = write!(out, "packets={} bytes={} ", w.packets, w.bytes);
    }
}

/// A number that stays with a connection and tells it from others, as far as 32 bits can.
fn id(c: &Conn) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let w = &c.original;
    (c.proto, w.src, w.dst, w.zone, w.sport, w.dport).hash(&mut hasher);
    (w.icmp_type, w.icmp_code, w.icmp_id, w.srckey, w.dstkey).hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The kernel's `%pI6`.
fn uncompressed(a: Ipv6Addr) -> String {
    a.segments().map(|s| format!("{s:04x}")).join(":")
}

/// This kernel tracks it by its addresses only, but conntrack-tools go on writing its ports.
const DCCP: u8 = 33;

/// The kernel's name of a tracked protocol; all others are `unknown`.
fn proto_name(p: u8) -> &'static str {
    match p {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        47 => "gre",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests;
