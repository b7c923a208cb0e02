//! What a seed stands for: its policy, its gateways.

use std::io;

use crate::inprocess::InProcess;
use crate::observe::System;
use crate::policy::Policy;

/// `3` and `5-8`, spelled out.
///
/// # Errors
/// What is no number.
pub fn numbers(texts: &[String]) -> Result<Vec<u64>, String> {
    let mut all = Vec::new();
    for text in texts {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let number = |t: &str| t.parse::<u64>().map_err(|e| format!("seed {t}: {e}"));
        all.extend(number(from)?..=number(to)?);
    }
    Ok(all)
}

/// What a seed's policy may have beside its translation: what reports call it, one in how many seeds has it and which of
/// those, and the header lines in front of the others.
const EXTRAS: [(&str, u64, u64, &str); 7] = [
    ("not loose", 5, 4, "set loose=no"),
    ("liberal", 7, 3, "set liberal=yes"),
    ("no checksums", 9, 2, "set checksum=no"),
    (
        "marks",
        3,
        0,
        "rule continue from=lan proto=tcp state=new set_mark=0x10/0xf0\n\
         rule continue proto=tcp dport=443,8080 state=established set_mark=0x20/0xf0\n\
         rule continue proto=udp set_mark=0x3/0xf\n\
         rule accept mark=0x3/0xf from=lan to=wan proto=udp state=new set_mark=0x100/0x100\n\
         rule drop mark=0x20/0xf0 proto=tcp dport=8080 state=established",
    ),
    (
        "timeout policy",
        6,
        1,
        "timeout_policy other udp=20 udp_stream=50 tcp_syn_sent=70 tcp_established=5000 tcp_close=40 tcp_unacknowledged=200\n\
         rule accept from=lan to=wan proto=udp,tcp state=new timeout=other",
    ),
    ("zone", 8, 5, "zone lan 7"),
    ("helpers", 3, 2, "helper ftp tcp 21\nhelper tftp udp 69"),
];

/// The policy of a seed and what to call it: all kinds of translation, of settings and of rules come in turn.
///
/// # Errors
/// No policy has that name.
pub fn policy(seed: u64, name: Option<&str>) -> Result<(String, Policy), String> {
    let kinds = ["plain", "masquerade", "dnat", "snat"];
    let mut name = name.unwrap_or(kinds[usize::try_from(seed % 4).unwrap_or(0)]).to_owned();
    let (mut policy, usual) = (Policy::default(), Policy::text(&name).ok_or(format!("no policy is called {name}"))?);
    for (extra, of, which, lines) in EXTRAS {
        // Linux does not find an expectation of another zone; in Sluice a connection in a zone has them too.
        if seed % of == which && !(extra == "helpers" && policy.zones != [0; 2]) {
            policy.lines(lines)?;
            name += &format!(", {extra}");
        }
    }
    policy.lines(usual)?;
    Ok((name, policy))
}

/// The gateways that are compared with the reference.
#[derive(Clone, Copy, Debug)]
pub struct Subjects<'a> {
    /// What they are set up with.
    pub policy: &'a Policy,
    /// How many workers each has.
    pub workers: &'a [usize],
    /// The seed of their own choices.
    pub seed: u64,
}

impl Subjects<'_> {
    /// The gateways.
    ///
    /// # Errors
    /// The configuration does not take the policy.
    pub fn make(&self) -> io::Result<Vec<Box<dyn System>>> {
        let one = |(n, workers): (u64, &usize)| -> io::Result<Box<dyn System>> {
            Ok(Box::new(InProcess::new(self.policy, *workers, self.seed + n)?))
        };
        (0..).zip(self.workers).map(one).collect()
    }
}
