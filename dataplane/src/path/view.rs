//! A connection as dumps and events show it.

use std::net::IpAddr;

use super::Path;
use crate::api::command::{ConnFilter, ConnView};
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple, proto};
use crate::time::Nanos;

/// The kernel counts what is left of a timeout in ticks, of 4 ms with most configurations: within one, all of it is left.
const JIFFY: Nanos = Nanos::from_millis(4);

impl Path {
    /// What is known of a connection.
    pub fn view(&self, id: ConnId, now: Nanos) -> ConnView {
        let conn = self.conntrack.conn(id);
        let egress = |d: usize| (conn.cache[d].epoch != 0).then(|| conn.cache[d].egress.interface());
        let seconds = |t: Nanos| u32::try_from(t.as_secs()).unwrap_or(u32::MAX);
        ConnView {
            original: self.conntrack.tuple(id, Direction::Original),
            reply: self.conntrack.tuple(id, Direction::Reply),
            state: conn.l4.name(),
            timeout_s: seconds((conn.deadline() + JIFFY).since(now)),
            replied: conn.flags.has(Flags::REPLIED),
            assured: conn.flags.has(Flags::ASSURED),
            expected: conn.flags.has(Flags::EXPECTED),
            mark: conn.mark,
            helper: conn.flags.has(Flags::HELPED).then(|| self.helpers.find(id)).flatten().map(|h| h.kind),
            timeout_policy: conn.timeout_policy,
            age_ms: conn.age(now).as_millis(),
            packets: conn.packets(),
            bytes: conn.bytes,
            interface: conn.in_port.interface(),
            local: conn.in_port.is_twin(),
            egress: [egress(0), egress(1)],
        }
    }
}

impl ConnView {
    /// Whether a connection is among those that `f` asks for.
    pub fn is_among(&self, f: &ConnFilter) -> bool {
        let net = |n: &Option<ipnet::IpNet>, a: IpAddr| n.is_none_or(|n| n.contains(&a));
        let Tuple { src, dst, proto, sport, dport, ct_zone } = self.original;
        let plain = self.original.inverse();
        let (ports, icmp, gre) = (self.original.has_ports(), self.original.is_icmp(), proto == proto::GRE);
        let reply = &self.reply;
        // Both directions of a query have one identifier, which goes with the source.
        let (left, right) = (reply.sport != plain.sport, reply.dport != plain.dport);
        let snat = reply.dst != plain.dst || right || icmp && left;
        let dnat = reply.src != plain.src || !icmp && left;
        let is = |wanted: Option<u16>, belongs: bool, value: u16| wanted.is_none_or(|w| belongs && w == value);
        let kind = |wanted: Option<u8>, value: u8| is(wanted.map(u16::from), icmp, value.into());
        f.family.is_none_or(|v| v == if src.is_ipv4() { 4 } else { 6 })
            && f.proto.is_none_or(|p| p == proto)
            && net(&f.source, src)
            && net(&f.destination, dst)
            && net(&f.reply_source, reply.src)
            && net(&f.reply_destination, reply.dst)
            && is(f.sport, ports, sport)
            && is(f.dport, ports, dport)
            && is(f.reply_sport, ports, reply.sport)
            && is(f.reply_dport, ports, reply.dport)
            && kind(f.icmp_type, self.original.icmp_type())
            && kind(f.icmp_code, self.original.icmp_code())
            && is(f.icmp_id, icmp, sport)
            && is(f.srckey, gre, sport)
            && is(f.dstkey, gre, dport)
            && is(f.reply_srckey, gre, reply.sport)
            && is(f.reply_dstkey, gre, reply.dport)
            && f.state.is_none_or(|s| self.state == Some(s))
            && f.mark.is_none_or(|(mask, value)| self.mark & mask == value)
            && is(f.ct_zone, true, ct_zone)
            && is(f.reply_ct_zone, true, reply.ct_zone)
            && f.assured.is_none_or(|a| a == self.assured)
            && f.replied.is_none_or(|r| r == self.replied)
            && f.expected.is_none_or(|e| e == self.expected)
            && (!f.snat || snat)
            && (!f.dnat || dnat)
            && (!f.nat || snat || dnat)
            && f.nat_to.is_none_or(|n| snat && n.contains(&reply.dst) || dnat && n.contains(&reply.src))
    }
}
