//! Stories of FTP: every way to announce a data connection, plain and translated, and the connections that come of it.
//!
//! ```text
//!   client 10.0.0.2, fd00:1::2 ── lan [ gateway 198.51.100.1, 2001:db8::1 ] wan ── server 203.0.113.5, 2001:db8:5::5
//!   server 10.0.0.9, fd00:1::2 ── lan [ gateway …:21 → server            ] wan ── client 203.0.113.5, 2001:db8:5::5
//! ```
//! The policy accepts what is ESTABLISHED and RELATED, and new connections to port 21 alone: a data connection that nobody
//! expects is dropped.

mod common;

use common::ftp::*;
use common::lab::*;
use common::session::Side;
use dataplane::api::policy::*;

#[test]
fn every_form_announces_a_data_connection_by_every_way() {
    for way in ways() {
        everywhere(way.spec.clone(), |lab| {
            for side in [Side::Client, Side::Server] {
                let mut s = login(lab, &way, if side == Side::Client { 4000 } else { 4001 });
                let address = s.end(side).address.clone();
                for (port, line) in forms(&address, side, 5000) {
                    let heard = s.says(lab, side, &line);
                    let public = s.other(side).peer.0.clone();
                    let (at, asked) = announced(&heard, &public);
                    assert_eq!(at, public, "{}: {line} became {heard}", way.name);
                    assert_eq!(asked, port, "{}: the port is kept", way.name);
                    assert_eq!(lab.expectations().len(), 1);
                    let sport = if side == Side::Client { 20 } else { 6000 + port };
                    data(lab, &mut s, side, (&at, asked), port, sport);
                    assert_eq!(lab.expectations(), []);
                    lab.sound();
                }
                s.in_step(lab);
            }
            let conns = lab.conns();
            let (data, control): (Vec<_>, Vec<_>) = conns.iter().partition(|c| c.expected);
            assert!(control.len() == 2 && control.iter().all(|c| c.helper == Some(HelperKind::Ftp)));
            assert!(data.len() >= 2 && data.iter().all(|c| c.helper.is_none() && c.assured));
        });
    }
}
