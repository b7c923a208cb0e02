//! Every form, and what is none. That cuts make no difference is asserted in `tests/common/talk.rs`.

use proptest::prelude::*;

use super::*;

/// All that a parser finds in `text`, after a first line that it does not read.
fn found(replies: bool, text: &[u8]) -> Vec<(String, Announcement)> {
    let mut parser = Parser::new(replies);
    assert_eq!(parser.read(b"\n"), (1, None));
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (n, ended) = parser.read(rest);
        rest = &rest[n..];
        if let Some(Ended { mut text, announcement: Some(a) }) = ended {
            text.pop();
            out.push((String::from_utf8(text.to_vec()).expect("ASCII"), a));
        }
    }
    out
}

/// The one announcement of a line.
#[track_caller]
fn one(replies: bool, line: &str) -> (Form, Option<IpAddr>, u16) {
    let found = found(replies, line.as_bytes());
    assert_eq!(found.len(), 1, "{line:?}: {found:?}");
    (found[0].1.form, found[0].1.address, found[0].1.port)
}

fn v4(a: &str) -> Option<IpAddr> {
    Some(a.parse().expect("address"))
}

#[test]
fn commands_of_every_form() {
    for line in [
        "PORT 10,0,0,2,19,137\r\n",
        "port 10,0,0,2,19,137\r\n",
        "Port  010,0,0,2,19,137\n",
        "PORT 10,0,0,2,19,137\r\nRETR x\r\n",
    ] {
        assert_eq!(one(false, line), (Form::Port, v4("10.0.0.2"), 5001));
    }
    for line in ["EPRT |1|10.0.0.2|5001|\r\n", "eprt !1!10.0.0.2!5001!\r\n", "TYPE I\r\nEPRT |1|10.0.0.2|5001|\r\n"] {
        assert_eq!(one(false, line), (Form::Eprt, v4("10.0.0.2"), 5001));
    }
    assert_eq!(one(false, "EPRT |2|fd00:1::2|65535|\r\n"), (Form::Eprt, v4("fd00:1::2"), 65535));
    assert_eq!(one(false, "EPRT |2|fd00:0001:0000:0000:0000:0000:0000:0002|1|\r\n"), (Form::Eprt, v4("fd00:1::2"), 1));
}

/// As servers write them: in brackets, in others, without, behind an equals sign, with numbers of their own in front.
#[test]
fn replies_of_every_form() {
    for line in [
        "227 Entering Passive Mode (10,0,0,9,19,137).\r\n",
        "227 Entering Passive Mode (10,0,0,9,19,137)\r\n",
        "227 Entering Passive Mode [10,0,0,9,19,137]\r\n",
        "227 Entering Passive Mode 10,0,0,9,19,137\r\n",
        "227 =10,0,0,9,19,137\r\n",
        "227 10,0,0,9,19,137\n",
        "227 Version 2.0 of passive mode, 3 tries (10,0,0,9,19,137)\r\n",
        "230-hello\r\n227 x (10,0,0,9,19,137)\r\n",
    ] {
        assert_eq!(one(true, line), (Form::Pasv, v4("10.0.0.9"), 5001), "{line:?}");
    }
    for line in [
        "229 Entering Extended Passive Mode (|||6446|)\r\n",
        "229 (!!!6446!)\r\n",
        "229 Entering (extended) passive mode (|||6446|).\r\n",
    ] {
        assert_eq!(one(true, line), (Form::Epsv, None, 6446), "{line:?}");
    }
}

#[test]
fn what_announces_nothing() {
    let commands: &[&str] = &[
        "PORT 10,0,0,2,19\r\n",
        "PORT 10,0,0,2,19,137,1\r\n",
        "PORT 10,0,0,2,19,\r\n",
        "PORT 10,0,0,256,19,137\r\n",
        "PORT 10,0,0,2,300,1\r\n",
        "PORT 10,0,0,2,0,0\r\n",
        "PORT 10,0,0,-2,19,137\r\n",
        "PORT 10.0.0.2,19,137\r\n",
        "PORT 10,0,0,2,19,137 \r\n",
        "PORT\r\n10,0,0,2,19,137\r\n",
        "PORTS 10,0,0,2,19,137\r\n",
        " PORT 10,0,0,2,19,137\r\n",
        "XPORT 10,0,0,2,19,137\r\n",
        "SITE PORT 10,0,0,2,19,137\r\n",
        "227 x (10,0,0,9,19,137)\r\n",
        "EPRT |1|10.0.0.2|0|\r\n",
        "EPRT |1|10.0.0.2|65536|\r\n",
        "EPRT |1|10.0.0.2|005001|\r\n",
        "EPRT |2|10.0.0.2|5001|\r\n",
        "EPRT |1|fd00:1::2|5001|\r\n",
        "EPRT |2|fe80::1%eth0|5001|\r\n",
        "EPRT |3|10.0.0.2|5001|\r\n",
        "EPRT |1|10.0.0.2|5001\r\n",
        "EPRT |1|10.0.0.2|5001||\r\n",
        "EPRT 1|1|10.0.0.2|5001|\r\n",
        "EPRT |||5001|\r\n",
        "EPRT |1||5001|\r\n",
        "EPRT\r\n",
    ];
    for line in commands {
        assert_eq!(found(false, line.as_bytes()), [], "{line:?}");
    }
    let replies: &[&str] = &[
        "227-x (10,0,0,9,19,137)\r\n",
        "2270 x (10,0,0,9,19,137)\r\n",
        " 227 x (10,0,0,9,19,137)\r\n",
        "227 x (10,0,0,9,19)\r\n",
        "227 x (10,0,0,9,19,137,1)\r\n",
        "227 x (10, 0, 0, 9, 19, 137)\r\n",
        "200 227 x (10,0,0,9,19,137)\r\n",
        "PORT 10,0,0,2,19,137\r\n",
        "229 x |||6446|\r\n",
        "229 x (|||6446|\r\n",
        "229 x (||6446|)\r\n",
        "229 x (|1||6446|)\r\n",
        "229 x (|||6446!)\r\n",
        "229 x (|||0|)\r\n",
        "229 x (|||65536|)\r\n",
        "229 x ()\r\n",
    ];
    for line in replies {
        assert_eq!(found(true, line.as_bytes()), [], "{line:?}");
    }
}

#[test]
fn the_first_line_is_not_read_and_neither_is_what_follows_a_gap() {
    let mut parser = Parser::new(false);
    assert_eq!(parser.read(b"PORT 10,0,0,2,19,137\r\n"), (22, None));
    assert_eq!(parser.read(b"PORT 10,0,"), (10, None));
    assert_eq!(parser.unfinished(), 5);
    parser.lose();
    assert_eq!(parser.read(b"0,2,19,137\r\n"), (12, None));
    let (n, ended) = parser.read(b"PORT 10,0,0,2,19,137\r\n");
    assert!(n == 21 && ended.is_some_and(|e| e.announcement.is_some()));
}

#[test]
fn an_argument_too_long_is_none_and_what_follows_it_is_read() {
    let line = [b"EPRT |2|", &[b'0'; 200][..], b"|1|\r\nPORT 10,0,0,2,19,137\r\n"].concat();
    assert_eq!(found(false, &line).len(), 1);
    let line = [b"227 ", &[b'1'; 200][..], b"(10,0,0,9,19,137)\r\n"].concat();
    assert_eq!(found(true, &line).len(), 1);
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(), port in 1u16..) {
        let (v4, v6) = (IpAddr::from(v4), IpAddr::from(v6));
        for (form, address) in [(Form::Port, v4), (Form::Eprt, v4), (Form::Eprt, v6), (Form::Pasv, v4), (Form::Epsv, v4), (Form::Epsv, v6)] {
            let text = write(form, address, port).expect("this form has room for it");
            prop_assert!(text.len() <= ARGUMENT);
            prop_assert_eq!(parse(form, &text), Some(Announcement { form, address: (form != Form::Epsv).then_some(address), port }));
        }
        prop_assert_eq!((write(Form::Port, v6, port), write(Form::Pasv, v6, port)), (None, None));
    }
}

#[test]
fn addresses_are_written_as_linux_writes_them() {
    let text = |form, address: &str, port| {
        let text = write(form, address.parse().expect("address"), port).expect("room");
        String::from_utf8(text.to_vec()).expect("ASCII")
    };
    assert_eq!(text(Form::Port, "198.51.100.1", 5001), "198,51,100,1,19,137");
    assert_eq!(text(Form::Eprt, "2001:db8::1", 5001), "|2|2001:0db8:0000:0000:0000:0000:0000:0001|5001|");
    assert_eq!(text(Form::Eprt, "198.51.100.1", 5001), "|1|198.51.100.1|5001|");
    assert_eq!(text(Form::Epsv, "198.51.100.1", 5001), "|||5001|");
}
