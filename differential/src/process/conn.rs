//! One connection, asked for by tuple on the control socket; zones are left out of the answer.
//!
//! *Limits*: what `/v1/conntrack/get` says; see `control/src/api/wire`.

use dataplane::api::Tuple;
use serde_json::{Value, json};

use crate::frame::{proto, tuple};
use crate::observe::ConnState;

/// The body of a question for `t`.
pub fn question(t: &Tuple) -> String {
    let mut way = json!({ "src": t.src, "dst": t.dst, "zone": t.ct_zone });
    let [kind, code] = t.dport.to_be_bytes();
    let keys: &[(&str, u16)] = match t.proto {
        _ if t.is_icmp() => &[("icmp_type", kind.into()), ("icmp_code", code.into()), ("icmp_id", t.sport)],
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => &[("sport", t.sport), ("dport", t.dport)],
        proto::GRE => &[("srckey", t.sport), ("dstkey", t.dport)],
        _ => &[],
    };
    for (key, value) in keys {
        way[key] = (*value).into();
    }
    json!({ "proto": t.proto, "way": way }).to_string()
}

/// The connection of an answer; `None` where there is none.
pub fn answer(text: &str) -> Option<ConnState> {
    let v: Value = serde_json::from_str(text).ok()?;
    let number = |v: &Value| v.as_u64();
    let proto = u8::try_from(number(&v["proto"])?).ok()?;
    let way = |w: &Value| {
        let port = |key: &str| number(&w[key]).and_then(|n| u16::try_from(n).ok());
        let (sport, dport) = match (port("icmp_type"), port("icmp_id")) {
            (Some(kind), Some(id)) => (id, kind << 8 | port("icmp_code").unwrap_or(0)),
            _ => (port("sport").or(port("srckey")).unwrap_or(0), port("dport").or(port("dstkey")).unwrap_or(0)),
        };
        Some(tuple(w["src"].as_str()?.parse().ok()?, w["dst"].as_str()?.parse().ok()?, proto, sport, dport))
    };
    let both = |key: &str| Some([number(&v["original"][key])?, number(&v["reply"][key])?]);
    Some(ConnState {
        original: way(&v["original"])?,
        reply: way(&v["reply"])?,
        state: v["state"].as_str().unwrap_or_default().into(),
        replied: v["replied"].as_bool()?,
        assured: v["assured"].as_bool()?,
        timeout: u32::try_from(number(&v["timeout"])?).ok()?,
        packets: both("packets")?,
        bytes: both("bytes")?,
        mark: number(&v["mark"]).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_asked_for_by_type_and_identifier() {
        let a = |s: &str| s.parse().expect("an address");
        let t = tuple(a("10.0.0.2"), a("10.0.0.3"), 1, 7, 0x0800);
        let v: Value = serde_json::from_str(&question(&t)).expect("JSON");
        assert_eq!(v["way"]["icmp_type"], 8);
        assert_eq!(v["way"]["icmp_id"], 7);
        assert_eq!(v["way"]["sport"], Value::Null);
    }

    #[test]
    fn an_answer_is_a_connection_or_none() {
        assert_eq!(answer("null"), None);
        let text = r#"{"proto":6,"state":"SYN_SENT","timeout":120,"replied":false,"assured":false,"mark":3,"worker":0,
            "original":{"src":"10.0.0.2","dst":"10.0.0.3","sport":1,"dport":2,"packets":1,"bytes":40},
            "reply":{"src":"10.0.0.3","dst":"10.0.0.2","sport":2,"dport":1,"packets":0,"bytes":0}}"#;
        let c = answer(text).expect("a connection");
        assert_eq!((c.original.inverse(), c.state.as_str(), c.mark), (c.reply, "SYN_SENT", 3));
        assert_eq!((c.packets, c.bytes), ([1, 0], [40, 0]));
    }
}
