//! A connection as dumps and events show it.

use std::net::IpAddr;

use super::Path;
use crate::api::command::{ConnFilter, ConnView};
use crate::conntrack::ConnId;
use crate::conntrack::conn::Flags;
use crate::conntrack::tuple::{Direction, Tuple};
use crate::time::Nanos;

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
            timeout_s: seconds(conn.deadline().since(now)),
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
        let ports = self.original.has_ports();
        f.family.is_none_or(|v| v == if src.is_ipv4() { 4 } else { 6 })
            && f.proto.is_none_or(|p| p == proto)
            && net(&f.source, src)
            && net(&f.destination, dst)
            && net(&f.reply_source, self.reply.src)
            && net(&f.reply_destination, self.reply.dst)
            && f.sport.is_none_or(|p| ports && p == sport)
            && f.dport.is_none_or(|p| ports && p == dport)
            && f.state.is_none_or(|s| self.state == Some(s))
            && f.mark.is_none_or(|(mask, value)| self.mark & mask == value)
            && f.ct_zone.is_none_or(|z| z == ct_zone)
            && f.assured.is_none_or(|a| a == self.assured)
            && f.replied.is_none_or(|r| r == self.replied)
            && (!f.snat || (self.reply.dst, self.reply.dport) != (plain.dst, plain.dport))
            && (!f.dnat || (self.reply.src, self.reply.sport) != (plain.src, plain.sport))
    }
}
