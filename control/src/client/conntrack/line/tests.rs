//! Lines as conntrack 1.4.7 and the kernel write them. Where they differ: the kernel's counters are left out of
//! nf_conntrack lines, and ends of connections say why.

use std::time::Duration;

use dataplane::api::Tuple;
use dataplane::api::command::{ConnView, ExpectView};
use dataplane::api::policy::{ConntrackSpec, HelperKind};

use super::*;
use crate::api::wire::Names;

fn tuple(proto: u8, [src, dst]: [&str; 2], sport: u16, dport: u16) -> Tuple {
    let ip = |text: &str| text.parse().expect("address");
    Tuple { src: ip(src), dst: ip(dst), proto, sport, dport, ct_zone: 0 }
}

/// An unreplied connection of 300 s, 7 s old.
fn conn(original: Tuple, state: Option<&'static str>) -> Conn {
    let view = ConnView {
        original,
        reply: original.inverse(),
        state,
        timeout_s: 300,
        replied: false,
        assured: false,
        expected: false,
        mark: 0,
        helper: None,
        timeout_policy: 0,
        age_ms: 7000,
        packets: [3, 2],
        bytes: [180, 120],
        interface: 0,
        local: false,
        egress: [None, None],
    };
    let conntrack = ConntrackSpec::default();
    Conn::new(&view, 0, &Names { interfaces: &[], conntrack: &conntrack, now: Duration::from_secs(1_795_162_757) })
}

fn line(c: &Conn, formats: &[Format]) -> String {
    Style::new(formats, TimeZone::UTC).line(c)
}

/// An established one behind source translation.
fn tcp() -> Conn {
    let c = conn(tuple(6, ["192.0.2.10", "203.0.113.5"], 41_644, 22), Some("ESTABLISHED"));
    let reply = Way { dst: "198.51.100.2".parse().expect("address"), ..c.reply.clone() };
    Conn { timeout: 431_999, reply, replied: true, assured: true, ..c }
}

#[test]
fn tcp_as_the_kernel_writes_it() {
    let expect = "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=41644 dport=22 \
                  src=203.0.113.5 dst=198.51.100.2 sport=22 dport=41644 [ASSURED] mark=0 zone=0 use=2";
    assert_eq!(line(&tcp(), &[Format::NfConntrack]), expect);
}

#[test]
fn tcp_as_conntrack_tools_write_it() {
    let rest = "tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=41644 dport=22 packets=3 bytes=180 \
                src=203.0.113.5 dst=198.51.100.2 sport=22 dport=41644 packets=2 bytes=120 [ASSURED] mark=0 use=1";
    assert_eq!(line(&tcp(), &[]), rest);
    assert_eq!(line(&tcp(), &[Format::Default]), rest);
    assert_eq!(line(&tcp(), &[Format::Extended]), format!("ipv4     2 {rest}"));
    let c = Conn { mark: 5, helper: Some("ftp".into()), ..tcp() };
    let expect = "[ASSURED] mark=5 delta-time=7 [start=Fri Nov 20 08:19:10 2026] helper=ftp use=1";
    assert!(line(&c, &[Format::Ktimestamp]).ends_with(expect), "{}", line(&c, &[Format::Ktimestamp]));
}

#[test]
fn an_identifier_stays_and_tells_connections_apart() {
    let (a, b) = (tcp(), Conn { timeout: 3, mark: 9, ..tcp() });
    let other = conn(tuple(6, ["192.0.2.10", "203.0.113.5"], 41_645, 22), Some("ESTABLISHED"));
    let id = |c: &Conn| line(c, &[Format::Id]).rsplit_once(" id=").expect("an id").1.to_owned();
    assert_eq!(id(&a), id(&b));
    assert_ne!(id(&a), id(&other));
}

#[test]
fn zones_are_after_the_mark_or_where_only_one_direction_has_them() {
    let mut c = conn(tuple(17, ["192.0.2.10", "203.0.113.5"], 1, 53), None);
    (c.original.zone, c.reply.zone) = (7, 7);
    assert!(line(&c, &[]).ends_with(" mark=0 zone=7 use=1"));
    assert!(line(&c, &[Format::NfConntrack]).ends_with(" mark=0 zone=7 use=2"));
    c.reply.zone = 0;
    let expect = "udp      17 300 src=192.0.2.10 dst=203.0.113.5 sport=1 dport=53 zone-orig=7 packets=3 bytes=180 \
                  [UNREPLIED] src=203.0.113.5 dst=192.0.2.10 sport=53 dport=1 packets=2 bytes=120 mark=0 use=1";
    assert_eq!(line(&c, &[]), expect);
    assert!(line(&c, &[Format::NfConntrack]).ends_with(" mark=0 use=2"));
    (c.original.zone, c.reply.zone) = (0, 3);
    assert!(line(&c, &[]).contains(" dport=1 zone-reply=3 packets="));
}

#[test]
fn unreplied_udp_over_ipv6() {
    let c = conn(tuple(17, ["2001:db8::1", "2001:db8::2"], 1024, 53), None);
    let expect = "ipv6     10 udp      17 300 src=2001:0db8:0000:0000:0000:0000:0000:0001 \
                  dst=2001:0db8:0000:0000:0000:0000:0000:0002 sport=1024 dport=53 [UNREPLIED] \
                  src=2001:0db8:0000:0000:0000:0000:0000:0002 dst=2001:0db8:0000:0000:0000:0000:0000:0001 \
                  sport=53 dport=1024 mark=0 zone=0 use=2";
    assert_eq!(line(&c, &[Format::NfConntrack]), expect);
    assert!(line(&c, &[Format::Extended]).starts_with("ipv6     10 udp      17 300 src=2001:db8::1 dst=2001:db8::2 "));
}

#[test]
fn protocols_show_what_they_are_tracked_by() {
    let hosts = ["192.0.2.10", "203.0.113.5"];
    for (c, kernel, tools) in [
        (
            conn(tuple(1, hosts, 77, 8 << 8), None),
            "icmp     1 300 src=192.0.2.10 dst=203.0.113.5 type=8 code=0 id=77 [UNREPLIED] \
             src=203.0.113.5 dst=192.0.2.10 type=0 code=0 id=77 mark=0 zone=0 use=2",
            "icmp     1 300 src=192.0.2.10 dst=203.0.113.5 type=8 code=0 id=77 packets=3 bytes=180 ",
        ),
        (
            conn(tuple(132, hosts, 1, 2), Some("COOKIE_WAIT")),
            "sctp     132 300 COOKIE_WAIT src=192.0.2.10 dst=203.0.113.5 sport=1 dport=2 [UNREPLIED] \
             src=203.0.113.5 dst=192.0.2.10 sport=2 dport=1 mark=0 zone=0 use=2",
            "sctp     132 300 COOKIE_WAIT src=192.0.2.10 dst=203.0.113.5 sport=1 dport=2 packets=3 ",
        ),
        (
            conn(tuple(47, hosts, 1, 0xabc), None),
            "gre      47 300 timeout=30, stream_timeout=180 src=192.0.2.10 dst=203.0.113.5 srckey=0x1 dstkey=0xabc \
             [UNREPLIED] src=203.0.113.5 dst=192.0.2.10 srckey=0xabc dstkey=0x1 mark=0 zone=0 use=2",
            "gre      47 300 src=192.0.2.10 dst=203.0.113.5 srckey=0x1 dstkey=0xabc packets=3 bytes=180 ",
        ),
        (
            conn(tuple(33, hosts, 0, 0), None),
            "unknown  33 300 src=192.0.2.10 dst=203.0.113.5 [UNREPLIED] src=203.0.113.5 dst=192.0.2.10 mark=0 zone=0 use=2",
            "dccp     33 300 src=192.0.2.10 dst=203.0.113.5 sport=0 dport=0 packets=3 bytes=180 ",
        ),
        (
            conn(tuple(50, hosts, 0, 0), None),
            "unknown  50 300 src=192.0.2.10 dst=203.0.113.5 [UNREPLIED] src=203.0.113.5 dst=192.0.2.10 mark=0 zone=0 use=2",
            "unknown  50 300 src=192.0.2.10 dst=203.0.113.5 packets=3 bytes=180 ",
        ),
    ] {
        assert_eq!(line(&c, &[Format::NfConntrack]), format!("ipv4     2 {kernel}"));
        assert!(line(&c, &[]).starts_with(tools), "{}", line(&c, &[]));
    }
}

#[test]
fn events_are_those_of_conntrack_with_a_reason_at_the_end() {
    let style = Style::new(&[Format::Timestamp, Format::Extended], TimeZone::UTC);
    let event = |event: &str, conn: Conn, reason: Option<&str>| {
        let stop = reason.map(|_| 1_795_162_757);
        Report::Change {
            event: event.into(),
            time: 1_795_162_750.164_769,
            reason: reason.map(Into::into),
            stop,
            conn: Box::new(conn),
        }
    };
    let fresh = conn(tuple(6, ["127.0.0.1", "127.0.0.1"], 34_152, 8000), Some("SYN_SENT"));
    let expect = "[1795162750.164769]\t    [NEW] ipv4     2 tcp      6 300 SYN_SENT src=127.0.0.1 dst=127.0.0.1 \
                  sport=34152 dport=8000 [UNREPLIED] src=127.0.0.1 dst=127.0.0.1 sport=8000 dport=34152";
    assert_eq!(style.event(&event("new", fresh.clone(), None)), expect);
    let style = Style::new(&[], TimeZone::UTC);
    let marked = Conn { mark: 7, ..tcp() };
    let expect = " [UPDATE] tcp      6 431999 ESTABLISHED src=192.0.2.10 dst=203.0.113.5 sport=41644 dport=22 \
                  src=203.0.113.5 dst=198.51.100.2 sport=22 dport=41644 [ASSURED] mark=7";
    assert_eq!(style.event(&event("update", marked, None)), expect);
    let expect = "[DESTROY] tcp      6 SYN_SENT src=127.0.0.1 dst=127.0.0.1 sport=34152 dport=8000 packets=3 bytes=180 \
                  [UNREPLIED] src=127.0.0.1 dst=127.0.0.1 sport=8000 dport=34152 packets=2 bytes=120 delta-time=7 \
                  [start=Fri Nov 20 08:19:10 2026] [stop=Fri Nov 20 08:19:17 2026] reason=expired";
    assert_eq!(style.event(&event("destroy", Conn { timeout: 0, ..fresh }, Some("expired"))), expect);
    assert_eq!(style.event(&Report::Lost { lost: 12 }), "# lost 12");
}

#[test]
fn dates_are_those_of_the_clock_on_the_wall() {
    let style = Style::new(&[Format::Ktimestamp], TimeZone::fixed(jiff::tz::offset(-5)));
    assert!(style.line(&tcp()).contains(" [start=Fri Nov 20 03:19:10 2026] "), "{}", style.line(&tcp()));
}

#[test]
fn expectations_are_those_of_conntrack() {
    let master = tuple(6, ["192.0.2.10", "203.0.113.5"], 1000, 21);
    let view = |tuple| ExpectView { timeout_s: 297, tuple, helper: HelperKind::Ftp, master, permanent: false };
    let e = Expectation::new(&view(tuple(6, ["203.0.113.5", "192.0.2.10"], 0, 5000)), 0);
    let expect = "297 proto=6 src=203.0.113.5 dst=192.0.2.10 sport=0 dport=5000 mask-src=255.255.255.255 \
                  mask-dst=255.255.255.255 sport=0 dport=65535 master-src=192.0.2.10 master-dst=203.0.113.5 sport=1000 \
                  dport=21 class=0 helper=ftp";
    assert_eq!(expectation(&e), expect);
    let call =
        ExpectView { helper: HelperKind::Pptp, ..view(tuple(47, ["192.0.2.10", "203.0.113.5"], 0x1111, 0x2222)) };
    let expect = "297 proto=47 src=192.0.2.10 dst=203.0.113.5 srckey=0x1111 dstkey=0x2222 mask-src=255.255.255.255 \
                  mask-dst=255.255.255.255 srckey=0xffff dstkey=0xffff master-src=192.0.2.10 master-dst=203.0.113.5 \
                  sport=1000 dport=21 class=0 helper=pptp";
    assert_eq!(expectation(&Expectation::new(&call, 0)), expect);
    let any = Expectation::new(&view(tuple(6, ["::", "2001:db8::1"], 0, 5000)), 0);
    assert!(expectation(&any).contains(" mask-src=:: mask-dst=ffff:"), "{}", expectation(&any));
}
