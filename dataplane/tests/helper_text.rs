//! Stories of control connections whose text is rewritten: cuts, repetitions, losses, numbers, lengths.
//!
//! ```text
//!   10.0.0.2 ── lan [ masquerade to 198.51.100.1 ] wan ── 203.0.113.5:21
//! ```
//! "PORT 10,0,0,2,19,137" (20 bytes) becomes "PORT 198,51,100,1,19,137" (24). What the two ends have received is compared to the byte: see `common/session.rs`.

#![allow(clippy::cast_possible_truncation)]

mod common;

use common::ftp::*;
use common::lab::*;
use common::pkt::*;
use common::session::{Session, Side};
use dataplane::api::DropReason;
use dataplane::api::policy::*;
use dataplane::packet::CtState;

const PORT: &str = "PORT 10,0,0,2,19,137\r\n";

fn logged_in(lab: &mut Lab) -> Session {
    Session::login(lab, LAN, (HOST, 4000), WAN, (FAR, 21))
}

/// What the server gets of the client's one announcement, which the client repeats in full: where it has it right, the data
/// connection to it works.
#[track_caller]
fn works(lab: &mut Lab, s: &mut Session) {
    let text = s.server.text();
    let line = text.lines().rev().find(|l| l.starts_with("PORT")).expect("an announcement");
    let (at, port) = announced(line, GATEWAY);
    assert_eq!(at, GATEWAY, "{text:?}");
    data(lab, s, Side::Client, (&at, port), 5001, 20);
    lab.sound();
}

// ---- Cuts -----------------------------------------------------------------------------------------------------------

#[test]
fn a_command_cut_anywhere_is_completed_by_the_next_segment() {
    for way in ways() {
        everywhere(way.spec.clone(), |lab| {
            for side in [Side::Client, Side::Server] {
                let mut control = 4000;
                let address = if side == Side::Client { way.client } else { way.service };
                let address = if side == Side::Server && address == GATEWAY { INSIDE } else { address };
                let address = if side == Side::Server && address == GATEWAY6 { HOST6 } else { address };
                let (port, line) = forms(address, side, 5000).pop().expect("a form");
                // Every cut of the argument, and some before and behind it.
                for cut in 2..line.len() {
                    control += 1;
                    let mut s = login(lab, &way, control);
                    s.says(lab, side, &line[..cut]);
                    s.says(lab, side, &line[cut..]);
                    let text = s.other(side).text();
                    let (at, asked) = announced(&text, &s.other(side).peer.0.clone());
                    assert_eq!(at, s.other(side).peer.0, "{}: cut at {cut}: {text:?}", way.name);
                    assert!(text.ends_with("\r\n") && text[..4] == line[..4], "{text:?}");
                    s.in_step(lab);
                    if cut % 7 == 0 {
                        data(lab, &mut s, side, (&at, asked), port, 20);
                    }
                    lab.flush(Default::default());
                    lab.sound();
                }
            }
        });
    }
}

#[test]
fn a_command_typed_one_byte_at_a_time_is_complete_in_the_end() {
    for way in ways() {
        everywhere(way.spec.clone(), |lab| {
            let mut s = login(lab, &way, 4000);
            let (port, line) = forms(way.client, Side::Client, 5000).pop().expect("a form");
            for b in line.chars() {
                s.says(lab, Side::Client, &b.to_string());
            }
            let text = s.server.text();
            let (at, asked) = announced(&text, "");
            assert_eq!(at, s.server.peer.0, "{}: {text:?}", way.name);
            s.in_step(lab);
            data(lab, &mut s, Side::Client, (&at, asked), port, 20);
            s.says(lab, Side::Client, "NOOP\r\n");
            assert!(s.server.text().ends_with("\r\nNOOP\r\n"));
            s.in_step(lab);
        });
    }
}

/// More digits than any argument has, in pieces cut anywhere.
#[test]
fn an_argument_without_end_is_let_go() {
    everywhere(both(), |lab| {
        for (line, cuts) in [
            (format!("227 {}\r\n", "1".repeat(150)), vec![5, 68, 69, 132]),
            (format!("227 1{}\r\n", "1".repeat(63)), vec![5]),
            (format!("227 1{}\r\n", "1".repeat(63)), vec![5, 68]),
            (format!("229 {}\r\n", "(".repeat(150)), vec![5, 68, 69]),
            (format!("227 {}1,1)\r\n", "1,".repeat(70)), vec![6, 60, 67, 70]),
        ] {
            let mut s = Session::login(lab, WAN, (FAR, 4000), LAN, (GATEWAY, 21));
            let mut from = 0;
            for to in cuts.into_iter().chain([line.len()]) {
                s.says(lab, Side::Server, &line[from..to]);
                from = to;
            }
            assert!(s.client.text().ends_with(&line), "{:?}", s.client.text());
            s.in_step(lab);
            lab.flush(Default::default());
        }
    });
}

/// Its bytes have been acknowledged on the server's behalf, so they must reach it: as they are where they announce nothing.
#[test]
fn what_turns_out_to_be_no_command_is_let_go_unchanged() {
    everywhere(masqueraded(), |lab| {
        for line in ["PORT 10,0,0,2,19\r\n", "PORT 10,0,0,3,19,137\r\n", "PORT 1x\r\n", "PORT 10,0,0,2,19,137,1\r\n"] {
            let mut s = logged_in(lab);
            for b in line.chars() {
                s.says(lab, Side::Client, &b.to_string());
            }
            assert_eq!(s.server.text(), line);
            s.in_step(lab);
            assert_eq!(lab.expectations(), []);
            lab.flush(Default::default());
        }
        // Longer than any argument.
        let mut s = logged_in(lab);
        let line = format!("EPRT {}\r\nNOOP\r\n", "|".repeat(150));
        for piece in line.as_bytes().chunks(11) {
            s.says(lab, Side::Client, std::str::from_utf8(piece).expect("ASCII"));
        }
        assert_eq!(s.server.text(), line);
        s.in_step(lab);
    });
}

#[test]
fn a_sender_that_waits_hears_that_withheld_bytes_have_arrived() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        // As a sender does that has timestamps: the answer has them too, the other way round.
        let stamps = [1, 1, 8, 10, 0, 0, 0, 77, 0, 0, 0, 55];
        let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, b"PORT 10,0,").with_options(&stamps);
        let end = s.client.next + 10;
        let out = lab.send(LAN, &p);
        assert_eq!(out.len(), 2, "{out:?}");
        let (back, on) = (&out[0].1, &out[1].1);
        assert_eq!((out[0].0, back.flow(), back.tcp_flags), (LAN, Pkt::flow_of(FAR, 21, HOST, 4000), ACK));
        assert_eq!((back.tcp().0, back.tcp().1), (s.client.waits, end));
        assert_eq!(&back.tcp().2[20..], [1, 1, 8, 10, 0, 0, 0, 55, 0, 0, 0, 77]);
        assert_eq!((back.src_mac, back.dst_mac), (LAN_MAC, p.src_mac));
        assert_eq!((out[1].0, on.text().as_str()), (WAN, "PORT "));
        // The answer was lost: the same again.
        let again = lab.send(LAN, &p);
        assert_eq!(again.len(), 2);
        assert_eq!((again[0].1.tcp().1, again[1].1.text().as_str()), (end, "PORT "));
        s.server.waits += 5;
        s.server.got.extend(b"PORT ");
        s.client.next = end;
        s.says(lab, Side::Client, "0,2,19,137\r\n");
        s.in_step(lab);
        works(lab, &mut s);
    });
}

#[test]
fn a_connection_that_closes_in_the_middle_of_a_command_closes() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        s.says(lab, Side::Client, "PORT 10,0,0");
        assert_eq!(s.server.text(), "PORT ");
        let end = s.client.clone();
        s.client.next += 1;
        let seen = s.raw(lab, Side::Client, &end.segment(FIN | ACK, end.next, end.waits, b""));
        assert_eq!(
            (seen[0].tcp().0, seen[0].tcp_flags),
            (s.server.waits, FIN | ACK),
            "the half command is lost with it"
        );
        let server = s.server.clone();
        let seen = s.raw(lab, Side::Server, &server.segment(ACK, server.next, server.waits + 1, b""));
        assert_eq!(seen[0].tcp().1, end.next + 1);
    });
}

#[test]
fn several_commands_in_one_segment_are_several_commands() {
    for way in ways().into_iter().filter(|w| w.client.contains('.')) {
        everywhere(way.spec.clone(), |lab| {
            let mut s = login(lab, &way, 4000);
            let first = format!("PORT {}\r\n", comma(way.client, 5005));
            let last = format!("PORT {}\r\n", comma(way.client, 5001));
            let text = format!("TYPE I\r\n{first}NOOP\r\n{last}RETR x\r\nPOR");
            s.says(lab, Side::Client, &text);
            let got = s.server.text();
            let lines: Vec<&str> = got.split("\r\n").collect();
            assert_eq!((lines[0], lines[2], lines[4], lines[5]), ("TYPE I", "NOOP", "RETR x", "POR"), "{got:?}");
            let (at, asked) = announced(lines[3], "");
            assert_eq!(lab.expectations().len(), 1, "the last one counts");
            data(lab, &mut s, Side::Client, (&at, asked), 5001, 20);
            s.says(lab, Side::Client, &format!("T {}\r\n", comma(way.client, 5002)));
            assert_eq!(lab.expectations().len(), 1, "cut in the middle of the word");
            s.in_step(lab);
        });
    }
}

// ---- Repetition and loss --------------------------------------------------------------------------------------------

#[test]
fn what_is_sent_again_is_rewritten_alike_however_it_is_cut() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        let start = s.client.next;
        let text = format!("SYST\r\n{PORT}TYPE I\r\n");
        s.says(lab, Side::Client, "SYST\r\n");
        s.says(lab, Side::Client, PORT);
        s.says(lab, Side::Client, "TYPE I\r\n");
        let got = s.server.text();
        // The server has lost it all, and gets it again in all ways that a sender may cut it.
        let fresh = s.server.clone();
        for step in [1, 2, 5, 6, 11, 22, 28, 36] {
            s.server = fresh.clone();
            (s.server.waits, s.server.got) = (fresh.waits.wrapping_sub(got.len() as u32), vec![]);
            for (n, piece) in text.as_bytes().chunks(step).enumerate() {
                let seq = start.wrapping_add((n * step) as u32);
                s.sends(lab, Side::Client, seq, std::str::from_utf8(piece).expect("ASCII"));
            }
            assert_eq!(s.server.text(), got, "in pieces of {step}");
        }
        assert_eq!(lab.expectations().len(), 1);
        s.in_step(lab);
        s.server.got.drain(..);
        // And late, after two more.
        let line = |port: u16| format!("PORT {}\r\n", comma(HOST, port));
        s.says(lab, Side::Client, &line(5002));
        s.says(lab, Side::Client, &line(5001));
        let seen = s.sends(lab, Side::Client, start.wrapping_add(6), PORT);
        assert!(got.contains(&seen[0].text()), "{:?}", seen[0].text());
        s.in_step(lab);
        works(lab, &mut s);
    });
}

#[test]
fn a_lost_announcement_comes_before_what_follows_it() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        let start = s.client.next;
        s.client.next = start.wrapping_add(PORT.len() as u32 + 8);
        // The announcement is lost before the gateway, and what follows does not know its place yet.
        let later = s.client.segment(ACK | PSH, start.wrapping_add(PORT.len() as u32), s.client.waits, b"RETR x\r\n");
        lab.refuses(LAN, &later, DropReason::HelperOrder);
        let fin = s.client.segment(FIN | ACK, s.client.next, s.client.waits, b"");
        lab.refuses(LAN, &fin, DropReason::HelperOrder);
        s.sends(lab, Side::Client, start, PORT);
        s.sends(lab, Side::Client, start.wrapping_add(PORT.len() as u32), "RETR x\r\n");
        assert!(s.server.text().ends_with("\r\nRETR x\r\n"));
        s.in_step(lab);
        works(lab, &mut s);
    });
}

/// Without translation nothing has to wait.
#[test]
fn a_late_segment_is_read_when_it_comes() {
    everywhere(strict(), |lab| {
        let mut s = logged_in(lab);
        let start = s.client.next;
        let length = PORT.len() as u32;
        s.client.next = start.wrapping_add(length + 16);
        s.sends(lab, Side::Client, start.wrapping_add(length), "RETR x\r\n");
        assert_eq!(lab.expectations(), []);
        s.sends(lab, Side::Client, start, PORT);
        assert_eq!(lab.expectations().len(), 1);
        s.sends(lab, Side::Client, start.wrapping_add(length), "RETR x\r\nNOOP 1\r\n");
        assert!(s.server.text().ends_with("\r\nRETR x\r\nNOOP 1\r\n"));
        s.in_step(lab);
        data(lab, &mut s, Side::Client, (HOST, 5001), 5001, 20);
        // What stands behind a gap may be in the middle of a line.
        let gap = s.client.next.wrapping_add(5);
        s.client.next = gap.wrapping_add(length);
        s.sends(lab, Side::Client, gap, PORT);
        assert_eq!(lab.expectations(), []);
        s.says(lab, Side::Client, PORT);
        assert_eq!(lab.expectations().len(), 1);
    });
}

/// A sender may send again more than was missing, in segments cut otherwise than before.
#[test]
fn a_retransmission_that_fills_a_gap_is_read_to_its_end() {
    everywhere(strict(), |lab| {
        for cuts in [vec![], vec![9], vec![4, 30], vec![30]] {
            let mut s = logged_in(lab);
            let start = s.client.next;
            let all = format!("NOOP 123\r\nRETR x\r\n{PORT}");
            // The first line is lost; the next one comes.
            s.client.next = start.wrapping_add(all.len() as u32);
            s.sends(lab, Side::Client, start.wrapping_add(10), "RETR x\r\n");
            let mut from = 0;
            for to in cuts.into_iter().chain([all.len()]) {
                s.sends(lab, Side::Client, start.wrapping_add(from as u32), &all[from..to]);
                from = to;
            }
            assert_eq!(lab.expectations().len(), 1);
            data(lab, &mut s, Side::Client, (HOST, 5001), 5001, 20);
            // And what follows is in step.
            s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(HOST, 5002)));
            assert_eq!(lab.expectations().len(), 1);
            lab.flush(Default::default());
        }
    });
}

#[test]
fn more_than_is_remembered_waits_for_acknowledgements() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        let acknowledged = s.server.waits;
        for n in 0..4 {
            s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(HOST, 5010 + n)));
        }
        let fifth = s.client.segment(ACK | PSH, s.client.next, s.client.waits, PORT.as_bytes());
        lab.refuses(LAN, &fifth, DropReason::HelperEdits);
        let server = s.server.clone();
        // The server has got the first of them only.
        let first = s.server.text().find("\r\n").expect("a line") as u32 + 2;
        s.raw(lab, Side::Server, &server.segment(ACK, server.next, acknowledged.wrapping_add(first), b""));
        s.says(lab, Side::Client, PORT);
        s.in_step(lab);
        works(lab, &mut s);
    });
}

// ---- Numbers --------------------------------------------------------------------------------------------------------

/// A policy under which both directions are rewritten.
#[test]
fn both_directions_keep_their_own_numbers() {
    everywhere(both(), |lab| {
        let mut s = Session::login(lab, WAN, (FAR, 4000), LAN, (GATEWAY, 21));
        for n in 0..6 {
            let (client, server) = (5000 + n, 6000 + n);
            s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(FAR, client)));
            s.says(lab, Side::Server, "200 ok\r\n");
            s.in_step(lab);
            s.says(lab, Side::Client, "PASV\r\n");
            s.says(lab, Side::Server, &format!("227 Entering Passive Mode ({})\r\n", comma(INSIDE, server)));
            s.in_step(lab);
            lab.sound();
        }
        assert!(s.client.text().contains("(198,51,100,1,") && s.server.text().contains("PORT 10,0,0,1,"));
        assert!(!s.client.text().contains("10,0,0,9") && !s.server.text().contains("203,0,113"));
    });
}

#[test]
fn acknowledgements_and_sack_blocks_stand_at_the_edges_of_what_was_rewritten() {
    let mut lab = Lab::new(masqueraded());
    let mut s = logged_in(&mut lab);
    let (start, there) = (s.client.next, s.server.waits);
    s.says(&mut lab, Side::Client, PORT); // 22 bytes, of which the server gets 26
    s.says(&mut lab, Side::Client, "NOOP\r\n");
    s.says(&mut lab, Side::Client, PORT);
    let mut heard = |ack: u32, blocks: &[(u32, u32)]| {
        let mut options = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
        for (left, right) in blocks {
            options.extend(there.wrapping_add(*left).to_be_bytes());
            options.extend(there.wrapping_add(*right).to_be_bytes());
        }
        let p = s.server.segment(ACK, s.server.next, there.wrapping_add(ack), b"").with_options(&options);
        let seen = s.raw(&mut lab, Side::Server, &p).remove(0);
        let (_, ack, header) = seen.tcp();
        let be32 = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]).wrapping_sub(start);
        let blocks: Vec<_> = header[24..].chunks(8).map(|b| (be32(b), be32(&b[4..]))).collect();
        (ack.wrapping_sub(start), blocks)
    };
    assert_eq!(heard(0, &[(5, 26)]), (0, vec![(5, 22)]), "the argument begins after PORT and its blank");
    assert_eq!(heard(4, &[(26, 32)]), (4, vec![(22, 28)]));
    assert_eq!(heard(12, &[(26, 32), (32, 58)]), (5, vec![(22, 28), (28, 50)]), "in the middle: nothing of it");
    assert_eq!(heard(24, &[(40, 58)]), (5, vec![(49, 50)]), "and a block only what is whole");
    assert_eq!(heard(25, &[(32, 50)]), (21, vec![(28, 33)]));
    assert_eq!(heard(26, &[]), (22, vec![]));
    assert_eq!(heard(32, &[(37, 58), (26, 32)]), (28, vec![(33, 50), (22, 28)]));
    assert_eq!(heard(58, &[]), (50, vec![]));
}

/// Both ends have forgotten the connection, and begin another one with the same ports.
#[test]
fn a_connection_that_takes_over_the_tuple_is_read_from_its_beginning() {
    everywhere(masqueraded(), |lab| {
        let mut s = logged_in(lab);
        s.says(lab, Side::Client, PORT);
        s.says(lab, Side::Client, "PORT 10,0,0,2,19,");
        for (n, iss) in [0x1000_0000, 0x9000_0000, 0x7fff_fff0, s.client.next.wrapping_sub(30)].into_iter().enumerate()
        {
            let irs = iss ^ 0x5555_5555;
            (s.client.next, s.client.waits) = (iss, irs);
            let seen = lab.passes(LAN, &s.client.segment(SYN, iss, 0, b""), WAN);
            s.server.waits = seen.tcp().0.wrapping_add(1);
            s.server.next = irs.wrapping_add(1);
            let seen = lab.passes(WAN, &s.server.segment(SYN | ACK, irs, s.server.waits, b""), LAN);
            s.client.next = iss.wrapping_add(1);
            assert_eq!(seen.tcp().1, s.client.next, "it acknowledges the SYN, take-over {n}");
            s.client.waits = seen.tcp().0.wrapping_add(1);
            s.in_step(lab);
            (s.client.got, s.server.got) = (vec![], vec![]);
            s.says(lab, Side::Client, "USER x\r\n");
            s.says(lab, Side::Client, PORT);
            s.in_step(lab);
            assert_eq!(s.server.text(), "USER x\r\nPORT 198,51,100,1,19,137\r\n");
            s.says(lab, Side::Client, "PORT 10,0,");
            s.says(lab, Side::Client, "0,2,19,138\r\n");
            s.in_step(lab);
        }
    });
}

#[test]
fn the_urgent_pointer_points_at_the_same_byte() {
    let mut lab = Lab::new(masqueraded());
    let mut s = logged_in(&mut lab);
    let mut urgent = |text: &str, at: u16| {
        let mut p = s.client.segment(ACK | 0x20, s.client.next, s.client.waits, text.as_bytes());
        p.l4[18..20].copy_from_slice(&at.to_be_bytes());
        let p = p.with_options(&[]);
        s.client.next = s.client.next.wrapping_add(text.len() as u32);
        let seen = s.raw(&mut lab, Side::Client, &p).remove(0);
        be16_at(seen.tcp().2, 18)
    };
    assert_eq!(urgent("PORT 10,0,0,2,19,137\r\nABOR\r\n", 24), 28);
    assert_eq!(urgent("NOOP\r\n", 2), 2);
}

#[test]
fn a_checksum_that_came_in_wrong_goes_out_wrong() {
    let mut spec = masqueraded();
    spec.conntrack.checksum = false;
    let mut lab = Lab::new(spec);
    let s = logged_in(&mut lab);
    let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, PORT.as_bytes()).broken_checksum();
    lab.arrive(LAN, &addressed(LAN, &p).frame());
    lab.run();
    let frame = lab.sent(WAN).remove(0);
    let (src, dst) = (ip(GATEWAY), ip(FAR));
    assert!(frame.ends_with(b"PORT 198,51,100,1,19,137\r\n"));
    assert!(!transport_ok(src, dst, 6, &frame[34..]));
    let mut l4 = frame[34..].to_vec();
    l4[16] ^= 0x10;
    assert!(transport_ok(src, dst, 6, &l4), "wrong by as much as before");
}

/// Who gets an error must know the segment again: RFC 5927 section 4.1 has it compare the number.
#[test]
fn errors_quote_the_numbers_that_their_segments_were_sent_with() {
    everywhere(both(), |lab| {
        let mut s = Session::login(lab, WAN, (FAR, 4000), LAN, (GATEWAY, 21));
        s.says(lab, Side::Client, &format!("PORT {}\r\n", comma(FAR, 5000)));
        s.says(lab, Side::Server, &format!("227 ({}).\r\n", comma(INSIDE, 6000)));
        for side in [Side::Client, Side::Server] {
            let text = "200 NOOP\r\n";
            let end = s.end(side).clone();
            let sent = end.segment(ACK | PSH, end.next, end.waits, text.as_bytes());
            s.end(side).next = end.next.wrapping_add(text.len() as u32);
            let seen = s.raw(lab, side, &sent).pop().expect("the segment");
            let (seq, ack, _) = seen.tcp();
            assert_ne!((seq, ack), (end.next, end.waits), "both are shifted");
            let receiver = s.other(side).clone();
            for quote in [28, 32, 34, 40, seen.ip.len()] {
                let error = icmp(&receiver.address, &receiver.peer.0, 3, 1, [0; 4], &seen.ip[..quote]);
                let error = lab.passes(receiver.link, &error, end.link);
                error.assert_quotes(&sent);
                error.quoted();
            }
        }
    });
}

// ---- Lengths --------------------------------------------------------------------------------------------------------

/// A segment as large as the link takes, which the rewritten text makes four bytes larger.
#[test]
fn text_that_outgrows_the_link_is_cut_or_refused() {
    let mut lab = Lab::new(masqueraded());
    let mut s = logged_in(&mut lab);
    let filler = format!("X{}\r\n", "x".repeat(1500 - 40 - 22 - 3));
    let text = format!("{filler}{PORT}");
    let mut p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, text.as_bytes()).df();
    assert_eq!(p.ip().len(), 1500);
    let error = lab.refuses_with_error(LAN, &p, DropReason::MtuExceeded);
    assert_eq!((error.flow().contains("icmp 3/4"), be16_at(&error.ip, 26)), (true, 1496));
    error.assert_quotes(&p);
    // Smaller, as it was told: in two segments.
    let seq = s.client.next;
    s.client.next = seq.wrapping_add(text.len() as u32);
    s.sends(&mut lab, Side::Client, seq, &text[..1456]);
    s.sends(&mut lab, Side::Client, seq.wrapping_add(1456), &text[1456..]);
    assert_eq!(s.server.text(), format!("{filler}PORT 198,51,100,1,19,137\r\n"));
    s.in_step(&mut lab);
    works(&mut lab, &mut s);
    // Whoever lets routers cut: two fragments.
    p.dont_fragment = false;
    let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, text.as_bytes());
    let out = lab.send(LAN, &p);
    assert_eq!(out.iter().map(|(_, s)| s.ip_len).sum::<usize>(), 1504 + 20);
    assert!(out.iter().all(|(_, s)| s.ip_len <= 1500 && s.fragment.is_some()));
}

#[test]
fn a_full_buffer_and_an_empty_pool_lose_the_segment_and_nothing_else() {
    let mut lab = Lab::with(masqueraded(), Setup { buffers: 1, wan_mtu: 9000, lan_mtu: 9000, ..Setup::default() });
    let mut s = logged_in(&mut lab);
    // No buffer for the acknowledgement: the sender tries again.
    s.says(&mut lab, Side::Client, "PORT 10,0,");
    s.says(&mut lab, Side::Client, "0,2,19,137\r\n");
    works(&mut lab, &mut s);
    // The rewritten text does not fit the buffer.
    let text = format!("X{}\r\n{PORT}", "x".repeat(2048 + 128 - 128 - 54 - 22 - 3));
    let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, text.as_bytes());
    lab.refuses(LAN, &p, DropReason::NoBuffer);
}

// ---- Fragments ------------------------------------------------------------------------------------------------------

#[test]
fn segments_in_fragments_are_read_but_not_rewritten() {
    everywhere(strict(), |lab| {
        let mut s = logged_in(lab);
        let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, PORT.as_bytes());
        s.client.next = s.client.next.wrapping_add(22);
        for f in p.fragments(24) {
            lab.arrive(LAN, &addressed(LAN, &f).frame());
        }
        lab.run();
        assert_eq!(lab.collect().len(), 2);
        assert_eq!(lab.expectations().len(), 1);
        lab.passes(WAN, &tcp(FAR, 20, HOST, 5001, SYN, 1, 0, b""), LAN);
    });
    everywhere(masqueraded(), |lab| {
        let s = logged_in(lab);
        let p = s.client.segment(ACK | PSH, s.client.next, s.client.waits, PORT.as_bytes());
        for f in p.fragments(24) {
            lab.arrive(LAN, &addressed(LAN, &f).frame());
        }
        lab.run();
        assert_eq!(lab.collect(), []);
        assert_eq!(lab.drop_count(DropReason::HelperFragments), 2);
        assert_eq!(lab.expectations(), []);
    });
}

// ---- The gateway's own ------------------------------------------------------------------------------------------------

/// The kernel's FTP client, masqueraded for its inner address: all is the same on the twin.
#[test]
fn the_gateways_own_client_is_helped_too() {
    let mut spec = masqueraded();
    spec.rules.push(rule(
        "own",
        Match { state: vec![CtState::New], ..from_to(ZoneId::LOCAL, WAN_ZONE) },
        Action::Accept,
    ));
    spec.nat = vec![NatRuleSpec { matches: Match { to: vec![WAN_ZONE], ..Match::default() }, ..masquerade() }];
    everywhere(spec, |lab| {
        let mut s = Session::login(lab, WAN_TWIN, ("10.0.0.1", 4000), WAN, (FAR, 21));
        s.says(lab, Side::Client, "PORT 10,0,0,1,");
        s.says(lab, Side::Client, "19,137\r\n");
        let (at, port) = announced(&s.server.text(), "");
        assert_eq!(at, GATEWAY);
        s.in_step(lab);
        let up = lab.passes(WAN, &tcp(FAR, 20, GATEWAY, port, SYN, 1, 0, b""), WAN_TWIN);
        assert_eq!(up.flow(), "203.0.113.5:20 > 10.0.0.1:5001");
    });
}
