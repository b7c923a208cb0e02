//! Stories of PPTP: calls by two ids, plain and translated, and their end.
//!
//! ```text
//!   10.0.0.2 ── lan [ gateway 198.51.100.1 ] wan ── 203.0.113.5:1723
//! ```

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::ftp::{FAR, FAR6, GATEWAY, HOST, HOST6};
use common::lab::*;
use common::pkt::*;
use common::pptp::*;
use common::session::{Session, Side};
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::conntrack::tuple::proto;
use dataplane::time::Nanos;
use proptest::prelude::*;

/// A story on every way through the gateway.
fn on_every_way(story: impl Fn(&mut Lab, &Way)) {
    for way in ways() {
        everywhere(way.spec.clone(), |lab| story(lab, &way));
    }
}

fn way(name: &str) -> Way {
    ways().into_iter().find(|w| w.name == name).expect("a way")
}

fn is_translated(way: &Way) -> bool {
    !way.spec.nat.is_empty()
}

#[test]
fn a_call_is_related_from_either_side() {
    on_every_way(|lab, way| {
        for (n, first) in [Side::Client, Side::Server, Side::Client, Side::Server].into_iter().enumerate() {
            let port = 4000 + n as u16;
            let mut talk = Talk::open(lab, way, port);
            let (own, pac) = (0x1111 + n as u16, 0x2222 + n as u16);
            talk.refuses(lab, Side::Client, pac);
            let pns = talk.call(lab, own, pac);
            assert_eq!(pns != own, is_translated(way), "{}", way.name);
            assert_eq!(lab.expectations().len(), 2);
            lab.changed();
            let second = if first == Side::Client { Side::Server } else { Side::Client };
            let ids = |side| if side == Side::Client { (pac, pac) } else { (pns, own) };
            let (said, heard) = ids(first);
            talk.passes(lab, first, said, heard);
            lab.moved(&["class related original +1", "event new +1"]);
            assert_eq!(lab.expectations(), []);
            let (said, heard) = ids(second);
            talk.passes(lab, second, said, heard);
            lab.moved(&["class established reply +1", "event replied +1"]);
            let (said, heard) = ids(first);
            talk.passes(lab, first, said, heard);
            lab.moved(&["class established original +1", "event assured +1"]);
            talk.refuses(lab, Side::Server, 0x7777);
            lab.sound();
        }
    });
}

#[test]
fn expectations_and_connections_show_both_ids() {
    everywhere(masqueraded(), |lab| {
        let mut talk = Talk::open(lab, &way("masqueraded"), 4000);
        let pns = talk.call(lab, 0x1111, 0x2222);
        let gre = |src, sport, dst, dport| tuple(src, sport, dst, dport, proto::GRE);
        let waiting = lab.expectations();
        let shown: Vec<_> = waiting.iter().map(|e| (e.tuple, e.helper, e.timeout_s)).collect();
        let original = gre(HOST, 0x1111, FAR, 0x2222);
        let reply = gre(FAR, 0x2222, GATEWAY, pns);
        assert_eq!(shown.len(), 2);
        for t in [original, reply] {
            assert!(shown.contains(&(t, HelperKind::Pptp, 299)), "{t} is not among {shown:?}");
        }
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        let conns = lab.conns();
        let call = conns.iter().find(|c| c.original.proto == proto::GRE).expect("the call");
        assert!((28..=30).contains(&call.timeout_s));
        assert_eq!((call.original, call.reply, call.expected), (original, reply, true));
        let control = conns.iter().find(|c| c.original.proto == proto::TCP).expect("the control connection");
        assert_eq!(control.helper, Some(HelperKind::Pptp));
        // The other way round.
        let mut talk = Talk::open(lab, &way("masqueraded"), 4001);
        let pns = talk.call(lab, 0x1112, 0x2223);
        talk.passes(lab, Side::Server, pns, 0x1112);
        talk.passes(lab, Side::Client, 0x2223, 0x2223);
        talk.passes(lab, Side::Client, 0x2223, 0x2223);
        let conns = lab.conns();
        let call = conns.iter().find(|c| c.original == gre(FAR, 0x2223, GATEWAY, pns)).expect("the call");
        assert!((178..=180).contains(&call.timeout_s));
        assert_eq!(call.reply, gre(HOST, 0x1112, FAR, 0x2223));
    });
}

#[test]
fn a_disconnect_ends_the_call_and_another_may_follow() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        for n in 0..3 {
            let (own, pac) = (0x1111 + n, 0x2222 + n);
            let pns = talk.call(lab, own, pac);
            talk.passes(lab, Side::Client, pac, pac);
            talk.passes(lab, Side::Server, pns, own);
            assert_eq!(talk.client(lab, &ids(12, &[own])), ids(12, &[pns]), "clear");
            talk.passes(lab, Side::Client, pac, pac); // asked for, no more
            let heard = talk.server(lab, &ids(13, &[pac]));
            assert_eq!(heard, ids(13, &[if is_translated(way) { own } else { pac }]), "as Linux has it");
            assert_eq!(lab.entries(), 1);
            talk.refuses(lab, Side::Client, pac);
            talk.refuses(lab, Side::Server, pns);
        }
    });
}

#[test]
fn a_call_ends_with_its_control_connection() {
    on_every_way(|lab, way| {
        for established in [false, true] {
            let mut talk = Talk::open(lab, way, 4000);
            let pns = talk.call(lab, 0x1111, 0x2222);
            if established {
                talk.passes(lab, Side::Server, pns, 0x1111);
            }
            let client = talk.tcp.client.clone();
            let reset = client.segment(RST, client.next, 0, b"");
            talk.tcp.raw(lab, Side::Client, &reset);
            lab.wait(Nanos::from_secs(11));
            assert_eq!((lab.entries(), lab.expectations().len()), (0, 0));
            talk.refuses(lab, Side::Server, pns);
        }
    });
}

/// Whatever ids were said since.
#[test]
fn a_call_ends_with_its_control_connection_though_another_was_asked_for() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        let pns = talk.call(lab, 0x1111, 0x2222);
        talk.passes(lab, Side::Server, pns, 0x1111);
        talk.server(lab, &ids(9, &[0x3333]));
        let client = talk.tcp.client.clone();
        let reset = client.segment(RST, client.next, 0, b"");
        talk.tcp.raw(lab, Side::Client, &reset);
        lab.wait(Nanos::from_secs(11));
        assert_eq!((lab.entries(), lab.expectations().len()), (0, 0));
    });
}

#[test]
fn a_call_nobody_uses_is_not_expected_for_ever() {
    let mut spec = strict();
    spec.conntrack.timeouts.expect_pptp = Nanos::from_secs(20);
    everywhere(spec, |lab| {
        let mut talk = Talk::open(lab, &way("plain"), 4000);
        talk.call(lab, 0x1111, 0x2222);
        lab.wait(Nanos::from_secs(21));
        assert_eq!(lab.expectations(), []);
        talk.refuses(lab, Side::Client, 0x2222);
        // Its reply is said again, so it is waited for again.
        talk.server(lab, &call_reply(0x2222, 0x1111, 1));
        assert_eq!(lab.expectations().len(), 2);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
    });
}

#[test]
fn a_second_call_at_the_same_time_is_not_expected() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        let pns = talk.call(lab, 0x1111, 0x2222);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        talk.call(lab, 0x1112, 0x2223);
        assert_eq!(lab.expectations(), []);
        talk.refuses(lab, Side::Client, 0x2223);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        talk.passes(lab, Side::Server, pns, 0x1111);
    });
}

/// The server answers a second request with the id that the first has got. Where ids are translated, it cannot know that the
/// client's has changed.
#[test]
fn a_call_that_is_asked_for_again_by_another_id() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        let pns = talk.call(lab, 0x1111, 0x2222);
        assert_eq!(talk.call(lab, 0x1112, 0x2222) == pns, is_translated(way));
        if is_translated(way) {
            assert_eq!(lab.expectations().len(), 2);
            talk.passes(lab, Side::Server, pns, 0x1112);
            talk.passes(lab, Side::Client, 0x2222, 0x2222);
            // Once its connection is there, that stays.
            talk.call(lab, 0x1113, 0x2222);
            talk.passes(lab, Side::Server, pns, 0x1112);
            talk.passes(lab, Side::Client, 0x2222, 0x2222);
            lab.sound();
        } else {
            assert_eq!(lab.expectations(), []);
            talk.refuses(lab, Side::Server, pns);
            talk.refuses(lab, Side::Client, 0x2222);
        }
    });
}

#[test]
fn clients_behind_one_address_may_choose_the_same_id() {
    everywhere(masqueraded(), |lab| {
        let hosts = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        let mut talks = Vec::new();
        for (n, client) in hosts.into_iter().enumerate() {
            let mut talk = Talk::open(lab, &Way { client, ..way("masqueraded") }, 4000);
            let pac = 0x2222 + n as u16;
            let pns = talk.call(lab, 0x1111, pac);
            talks.push((talk, pns, pac));
        }
        for (talk, pns, pac) in &talks {
            talk.passes(lab, Side::Server, *pns, 0x1111);
            talk.passes(lab, Side::Client, *pac, *pac);
        }
        let mut known: Vec<u16> = talks.iter().map(|(_, pns, _)| *pns).collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), hosts.len());
        lab.sound();
    });
}

/// The server gives two clients behind one address the same id: their packets differ by who sent them, and by the id that
/// the server is told.
#[test]
fn the_server_may_choose_the_same_id_twice() {
    everywhere(masqueraded(), |lab| {
        let mut talks = Vec::new();
        for client in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
            let mut talk = Talk::open(lab, &Way { client, ..way("masqueraded") }, 4000);
            let pns = talk.call(lab, 0x1111, 0x2222);
            talks.push((talk, pns));
        }
        for (talk, pns) in &talks {
            talk.passes(lab, Side::Client, 0x2222, 0x2222);
            talk.passes(lab, Side::Server, *pns, 0x1111);
        }
        lab.sound();
    });
}

#[test]
fn a_connection_that_was_there_before_the_call_does_not_stand_in_its_way() {
    let mut spec = masqueraded();
    spec.rules.push(rule("any gre", Match { proto: vec![proto::GRE], ..Match::default() }, Action::Accept));
    everywhere(spec, |lab| {
        let mut talk = Talk::open(lab, &way("masqueraded"), 4000);
        lab.passes(LAN, &gre(HOST, FAR, 0x2222), WAN);
        let pns = talk.call(lab, 0x1111, 0x2222);
        lab.changed();
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        lab.moved(&["class related original +1", "event new +1"]);
        talk.passes(lab, Side::Server, pns, 0x1111);
        talk.server(lab, &ids(13, &[0x2222]));
        lab.changed();
        lab.passes(LAN, &gre(HOST, FAR, 0x2222), WAN);
        lab.moved(&["class new original +1"]);
    });
}

#[test]
fn messages_that_do_not_belong_lead_nowhere() {
    let good = [start_request(), start_reply(), call_request(0x1111), call_reply(0x2222, 0x1111, 1)];
    everywhere(strict(), |lab| {
        let mut port = 4000;
        let mut tried = |lab: &mut Lab, change: &dyn Fn(usize, &mut Vec<u8>), expected: usize| {
            port += 1;
            let tcp = Session::open(lab, LAN, (HOST, port), WAN, (FAR, 1723));
            let mut talk = Talk { tcp };
            for (n, m) in good.iter().enumerate() {
                let mut m = m.clone();
                change(n, &mut m);
                let side = if n % 2 == 0 { Side::Client } else { Side::Server };
                assert_eq!(talk.says(lab, side, &m), m, "nothing is changed");
            }
            assert_eq!(lab.expectations().len(), expected);
            lab.flush(Default::default());
        };
        tried(lab, &|_, _| {}, 2);
        for message in 0..4 {
            for (at, byte) in [(3, 2), (4, 0x1b), (7, 0), (8, 1), (9, 0), (9, 255)] {
                tried(
                    lab,
                    &|n, m| {
                        if n == message {
                            m[at] = byte
                        }
                    },
                    0,
                );
            }
            // One byte too few.
            tried(
                lab,
                &|n, m| {
                    if n == message {
                        m.truncate(m.len() - 1)
                    }
                },
                0,
            );
        }
        tried(
            lab,
            &|n, m| {
                if n == 1 {
                    m[14] = 2
                }
            },
            0,
        ); // the session is not granted
        tried(
            lab,
            &|n, m| {
                if n == 3 {
                    m[16] = 2
                }
            },
            0,
        ); // the call is not granted
        tried(
            lab,
            &|n, m| {
                if n == 3 {
                    m[15] = 0x12
                }
            },
            0,
        ); // another's call
        // Linux looks at neither the protocol's version nor the length.
        tried(
            lab,
            &|n, m| {
                if n < 2 {
                    m[12] = 9
                }
            },
            2,
        );
        tried(
            lab,
            &|n, m| {
                if n == 3 {
                    m[1] = 7
                }
            },
            2,
        );
    });
}

#[test]
fn messages_are_read_however_they_are_cut() {
    on_every_way(|lab, way| {
        for (n, step) in [1, 2, 7, 13, 14, 15, 17, 31, 1000].into_iter().enumerate() {
            let port = 4000 + n as u16;
            let mut talk = Talk::open(lab, way, port);
            let (own, pac) = (0x1100 + n as u16, 0x2200 + n as u16);
            // An echo, the request and another echo at once.
            let text = [ids(5, &[7, 7]), call_request(own), ids(5, &[8, 8])].concat();
            let mut got = Vec::new();
            for piece in text.chunks(step) {
                got.extend(talk.client(lab, piece));
            }
            let pns = if is_translated(way) { talk.tcp.server.peer.1 } else { own };
            assert_eq!(got, [ids(5, &[7, 7]), call_request(pns), ids(5, &[8, 8])].concat(), "pieces of {step}");
            let (mut got, start) = (Vec::new(), talk.tcp.server.next);
            let text = [call_reply(pac, pns, 1), ids(15, &[pns])].concat();
            for piece in text.chunks(step) {
                got.extend(talk.server(lab, piece));
            }
            assert_eq!(got, [call_reply(pac, own, 1), ids(15, &[own])].concat(), "pieces of {step}");
            // Sent again in one piece, it is the same.
            let waits = talk.tcp.server.waits;
            let again = talk.tcp.server.segment(ACK | PSH, start, waits, &text);
            let seen = talk.tcp.raw(lab, Side::Server, &again);
            assert!(seen[0].ip.ends_with(&got), "pieces of {step}");
            talk.passes(lab, Side::Server, pns, own);
            talk.passes(lab, Side::Client, pac, pac);
        }
    });
}

/// What of it was to be changed is not there, and the next message stands in its place.
#[test]
fn a_message_that_breaks_off_changes_nothing_of_the_next() {
    on_every_way(|lab, way| {
        for (n, length) in (1..168).step_by(3).chain([11, 12, 14]).enumerate() {
            let mut talk = Talk::open(lab, way, 4000 + n as u16);
            talk.client(lab, &call_request(0x1111)[..length]);
            talk.call(lab, 0x1200 + n as u16, 0x2200 + n as u16);
            talk.server(lab, &call_reply(0x2222, 0x3333, 1)[..length.min(31)]);
            assert_eq!(talk.server(lab, &start_reply()), start_reply());
            lab.flush(Default::default());
        }
    });
}

#[test]
fn a_lost_segment_is_read_when_it_comes() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        let request = call_request(0x1111);
        let client = talk.tcp.client.clone();
        let echo = ids(5, &[7, 7]);
        // The echo overtakes the request.
        let later = client.segment(ACK | PSH, client.next.wrapping_add(168), client.waits, &echo);
        assert_eq!(talk.tcp.raw(lab, Side::Client, &later).len(), 1);
        let asked = talk.client(lab, &request);
        let pns = be16_at(&asked, 12);
        assert_eq!(pns != 0x1111, is_translated(way));
        assert_eq!(talk.client(lab, &echo), echo);
        assert_eq!(talk.server(lab, &call_reply(0x2222, pns, 1)), call_reply(0x2222, 0x1111, 1));
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
    });
}

#[test]
fn incoming_calls_are_expected_too() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        assert_eq!(talk.server(lab, &ids(9, &[0x2222])), ids(9, &[0x2222]));
        let answered = talk.client(lab, &ids(10, &[0x1111, 0x2222, 0x0100]));
        let pns = be16_at(&answered, 12);
        assert_eq!(pns != 0x1111, is_translated(way));
        assert_eq!(talk.server(lab, &ids(11, &[pns])), ids(11, &[0x1111]));
        talk.passes(lab, Side::Server, pns, 0x1111);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
    });
}

#[test]
fn errors_about_a_call_are_related_and_translated() {
    on_every_way(|lab, way| {
        let mut talk = Talk::open(lab, way, 4000);
        let pns = talk.call(lab, 0x1111, 0x2222);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        talk.passes(lab, Side::Server, pns, 0x1111);
        let (client, server) = (talk.tcp.client.clone(), talk.tcp.server.clone());
        for (from, to, said, heard) in [(&client, &server, 0x2222, 0x2222), (&server, &client, pns, 0x1111)] {
            let sent = gre(&from.address, &from.peer.0, said);
            let arrived = lab.passes(from.link, &sent, to.link);
            assert_eq!(call_id(&arrived), heard);
            lab.changed();
            let error = icmp(&to.address, &arrived.src.to_string(), 3, 3, [0; 4], &arrived.ip);
            let seen = lab.passes(to.link, &error, from.link);
            assert_eq!((seen.src, seen.dst), (ip(&from.peer.0), ip(&from.address)), "{}", way.name);
            assert_eq!(be16_at(&seen.payload, 26), said, "{}", way.name);
            let quoted = seen.quoted();
            assert_eq!((quoted.src, quoted.dst), (ip(&from.address), ip(&from.peer.0)));
        }
        // Of no call.
        let unknown = gre(&server.peer.0, &server.address, 0x7777);
        lab.refuses(
            server.link,
            &icmp(&server.address, &server.peer.0, 3, 3, [0; 4], &unknown.ip()),
            DropReason::InvalidNoParent,
        );
    });
}

#[test]
fn calls_that_look_the_same_are_not_both_expected() {
    let mut spec = helped(strict(), HelperKind::Pptp, 1724);
    spec.rules[2].matches.dport.push(1724..=1724);
    everywhere(spec, |lab| {
        let mut first = Talk::open(lab, &way("plain"), 4000);
        first.call(lab, 0x1111, 0x2222);
        let tcp = Session::open(lab, LAN, (HOST, 4001), WAN, (FAR, 1724));
        let mut second = Talk { tcp };
        second.client(lab, &start_request());
        second.server(lab, &start_reply());
        second.call(lab, 0x1111, 0x2222);
        assert_eq!(lab.expectations().len(), 2);
        first.passes(lab, Side::Client, 0x2222, 0x2222);
        first.passes(lab, Side::Server, 0x1111, 0x1111);
    });
}

#[test]
fn a_call_that_cannot_be_expected_waits() {
    let mut spec = masqueraded();
    spec.conntrack.expect_max = 3;
    let mut lab = Lab::new(spec);
    let mut first = Talk::open(&mut lab, &way("masqueraded"), 4000);
    first.call(&mut lab, 0x1111, 0x2222);
    let mut second = Talk::open(&mut lab, &way("masqueraded"), 4001);
    let pns = be16_at(&second.client(&mut lab, &call_request(0x1112)), 12);
    let server = second.tcp.server.clone();
    let reply = server.segment(ACK | PSH, server.next, server.waits, &call_reply(0x2223, pns, 1));
    lab.refuses(WAN, &reply, DropReason::ExpectFull);
    // The first call is used, so there is room.
    first.passes(&mut lab, Side::Client, 0x2222, 0x2222);
    assert_eq!(second.server(&mut lab, &call_reply(0x2223, pns, 1)), call_reply(0x2223, 0x1112, 1));
    second.passes(&mut lab, Side::Client, 0x2223, 0x2223);
    lab.sound();
}

#[test]
fn an_id_may_be_zero_and_other_gre_is_no_call() {
    let mut spec = strict();
    spec.rules.push(rule("any gre", Match { proto: vec![proto::GRE], ..Match::default() }, Action::Accept));
    everywhere(spec, |lab| {
        let mut talk = Talk::open(lab, &way("plain"), 4000);
        assert_eq!(talk.call(lab, 0, 0x2222), 0);
        lab.changed();
        let plain = |src, dst| other(src, dst, proto::GRE, &[0x20, 0, 8, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        lab.passes(WAN, &plain(FAR, HOST), LAN);
        lab.moved(&["class new original +1", "event new +1"]);
        talk.passes(lab, Side::Server, 0, 0);
        lab.moved(&["class related original +1", "event new +1"]);
        talk.passes(lab, Side::Client, 0x2222, 0x2222);
        lab.moved(&["class established reply +1", "event replied +1"]);
        lab.passes(LAN, &plain(HOST, FAR), WAN);
        lab.moved(&["class established reply +1", "event replied +1"]);
    });
}

#[test]
fn without_a_rule_and_over_ipv6_there_is_no_helper() {
    let mut spec = strict();
    spec.conntrack.helpers.clear();
    for (spec, client, service) in [(spec, HOST, FAR), (strict(), HOST6, FAR6)] {
        everywhere(spec, |lab| {
            let tcp = Session::open(lab, LAN, (client, 4000), WAN, (service, 1723));
            let mut talk = Talk { tcp };
            talk.client(lab, &start_request());
            talk.server(lab, &start_reply());
            assert_eq!(talk.call(lab, 0x1111, 0x2222), 0x1111);
            assert_eq!(lab.expectations(), []);
            assert_eq!(lab.conns()[0].helper, None);
        });
    }
}

#[test]
fn everything_is_gone_after_a_flush() {
    on_every_way(|lab, way| {
        for n in 0..4 {
            let mut talk = Talk::open(lab, way, 4000 + n);
            let pns = talk.call(lab, 0x1111 + n, 0x2222 + n);
            if n % 2 == 0 {
                talk.passes(lab, Side::Server, pns, 0x1111 + n);
            }
        }
        lab.sound();
        lab.flush(Default::default());
        assert_eq!((lab.entries(), lab.expectations().len()), (0, 0));
        lab.sound();
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_talk_arrives_and_nothing_is_left(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        common::calls::talks(&mut common::oracle::Input(&bytes));
    }
}
