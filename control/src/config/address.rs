//! Addresses as people write them: `10.0.0.0/8`, `192.0.2.1`, `192.0.2.10-192.0.2.20`, and the files of sets.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use dataplane::api::policy::AddrSet;
use ipnet::IpNet;

use super::error::quoted;

/// Most bytes of a set's file: about four million prefixes.
pub const MAX_SET_BYTES: u64 = 64 << 20;

/// What an address condition may be made of.
pub const ACCEPTED: &str =
    r#"a prefix such as 10.0.0.0/8, an address, a range such as 192.0.2.1-192.0.2.9, the name of a set"#;

/// Some addresses: one element of a condition or of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A prefix without host bits.
    Prefix(IpNet),
    /// Both ends inclusive, of one IP version, in order.
    Range(IpAddr, IpAddr),
}

impl Element {
    /// Reads a prefix, an address or a range.
    ///
    /// # Errors
    /// What is wrong, to follow the value, and what is accepted.
    pub fn parse(text: &str) -> Result<Self, (&'static str, String)> {
        const SHAPES: &str = "a prefix, an address or a range first-last";
        if let Some((first, last)) = text.split_once('-') {
            let ends = first.trim().parse::<IpAddr>().ok().zip(last.trim().parse::<IpAddr>().ok());
            let (first, last) = ends.ok_or(("is not valid", SHAPES.to_owned()))?;
            if first.is_ipv4() != last.is_ipv4() {
                return Err(("mixes IPv4 and IPv6", "two ends of one IP version".to_owned()));
            }
            if first > last {
                return Err(("ends before it begins", format!("{last}-{first}")));
            }
            return Ok(Self::Range(first, last));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Prefix(address.into()));
        }
        prefix(text).map(Self::Prefix).map_err(|(why, accepted)| (why, accepted.unwrap_or_else(|| SHAPES.into())))
    }
}

/// Reads a prefix that has no host bits.
///
/// # Errors
/// What is wrong, to follow the value, and what would be accepted, where that can be said.
pub fn prefix(text: &str) -> Result<IpNet, (&'static str, Option<String>)> {
    let net: IpNet = text.parse().map_err(|_| ("is not valid", None))?;
    if net.trunc() != net {
        return Err(("has bits set beyond its prefix length", Some(net.trunc().to_string())));
    }
    Ok(net)
}

/// Elements and whole sets, to be made one.
#[derive(Debug, Default)]
pub struct Union {
    prefixes: Vec<IpNet>,
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Union {
    /// Adds an element.
    pub fn add(&mut self, element: Element) {
        match element {
            Element::Prefix(p) => self.prefixes.push(p),
            Element::Range(first, last) => self.ranges.push((first, last)),
        }
    }

    /// Adds all that is in `set`.
    pub fn add_set(&mut self, set: &AddrSet) {
        self.ranges.extend(set.intervals_v4().map(|(a, b)| (a.into(), b.into())));
        self.ranges.extend(set.intervals_v6().map(|(a, b)| (a.into(), b.into())));
    }

    /// The set of all that was added.
    pub fn into_set(self) -> Arc<AddrSet> {
        Arc::new(AddrSet::new(self.prefixes, self.ranges))
    }
}

/// Reads the file of a set: one element per line, `#` begins a comment. What is wrong goes to `refuse` with its line.
pub fn read_file(path: &Path, mut refuse: impl FnMut(Option<u64>, String)) -> Arc<AddrSet> {
    let mut union = Union::default();
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_SET_BYTES + 1).read_to_string(&mut text));
    match read {
        Err(e) => refuse(None, format!("cannot be read: {e}")),
        Ok(n) if n as u64 > MAX_SET_BYTES => {
            refuse(None, format!("is too large; accepted: at most {MAX_SET_BYTES} bytes"));
        }
        Ok(_) => {
            for (line, number) in text.lines().zip(1..) {
                let line = line.split('#').next().unwrap_or_default().trim();
                if line.is_empty() {
                    continue;
                }
                match Element::parse(line) {
                    Ok(element) => union.add(element),
                    Err((why, accepted)) => {
                        refuse(Some(number), format!("{} {why}; accepted: {accepted}", quoted(line)));
                    }
                }
            }
        }
    }
    union.into_set()
}

/// The IP versions that `set` has addresses of.
pub fn versions(set: &AddrSet) -> (bool, bool) {
    (set.intervals_v4().next().is_some(), set.intervals_v6().next().is_some())
}

/// The part of `set` that is of the IP version of `like`.
pub fn of_version(set: &AddrSet, like: IpAddr) -> Arc<AddrSet> {
    let mut union = Union::default();
    match like {
        IpAddr::V4(_) => union.ranges.extend(set.intervals_v4().map(|(a, b)| (a.into(), b.into()))),
        IpAddr::V6(_) => union.ranges.extend(set.intervals_v6().map(|(a, b)| (a.into(), b.into()))),
    }
    union.into_set()
}

/// All addresses of the IP version of `like`.
pub fn whole_version(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => ipnet::Ipv4Net::default().into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::default().into(),
    }
}

/// Whether a host can have `address`.
pub fn is_unicast(address: IpAddr) -> bool {
    let reserved = match address {
        IpAddr::V4(a) => a.is_broadcast() || a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(a) => a.to_ipv4_mapped().is_some(),
    };
    !(reserved || address.is_multicast() || address.is_unspecified() || address.is_loopback())
}
