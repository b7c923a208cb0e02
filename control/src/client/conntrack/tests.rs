//! The command line of `sluicectl conntrack`.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Conntrack,
}

fn command(arguments: &[&str]) -> Result<Conntrack, String> {
    let all = ["conntrack"].iter().chain(arguments);
    Cli::try_parse_from(all).map(|cli| cli.command).map_err(|e| e.to_string())
}

fn filter(arguments: &[&str]) -> Result<FilterSpec, String> {
    let all: Vec<&str> = ["list"].iter().chain(arguments).copied().collect();
    match command(&all)? {
        Conntrack::List { filter, .. } => filter.spec().map_err(|e| e.to_string()),
        other => panic!("{other:?}"),
    }
}

fn created(arguments: &[&str]) -> Result<wire::Conn, String> {
    let all: Vec<&str> = ["create"].iter().chain(arguments).copied().collect();
    match command(&all)? {
        Conntrack::Create { conn } => conn.conn(1000).map_err(|e| e.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn filters_read_as_conntrack_tools_have_them() {
    let spec =
        filter(&["-p", "tcp", "-s", "192.0.2.1", "-d", "10.0.0.0/8", "--dport", "443", "--state", "established"]);
    let expect = FilterSpec {
        proto: Some(6),
        source: Some("192.0.2.1/32".parse().expect("prefix")),
        destination: Some("10.0.0.0/8".parse().expect("prefix")),
        dport: Some(443),
        state: Some("ESTABLISHED".into()),
        ..FilterSpec::default()
    };
    assert_eq!(spec, Ok(expect.clone()));
    let long = ["--proto", "6", "--orig-src", "192.0.2.1", "--orig-dst", "10.0.0.0/8", "--orig-port-dst", "443"];
    assert_eq!(filter(&long).map(|f| FilterSpec { state: expect.state.clone(), ..f }), Ok(expect));
    let spec = filter(&["-f", "ipv6", "-n", "-u", "assured,SEEN_REPLY", "-m", "0x10/0xff", "-w", "7"]);
    let expect = FilterSpec {
        family: Some(6),
        snat: true,
        assured: Some(true),
        replied: Some(true),
        mark: Some("0x10/0xff".into()),
        zone: Some(7),
        ..FilterSpec::default()
    };
    assert_eq!(spec, Ok(expect));
    let spec = filter(&["-n", "198.51.100.2", "-g", "192.0.2.10"]).expect("both directions");
    assert_eq!(spec.reply_destination, Some("198.51.100.2/32".parse().expect("prefix")));
    assert_eq!(spec.reply_source, Some("192.0.2.10/32".parse().expect("prefix")));
    assert!(spec.snat && spec.dnat);
    assert_eq!(spec.to_filter().map(|f| (f.mark, f.ct_zone)), Ok((None, None)));
    let spec = filter(&["-m", "5", "-w", "0"]).expect("mark and zone");
    assert_eq!(spec.to_filter().map(|f| (f.mark, f.ct_zone)), Ok((Some((u32::MAX, 5)), Some(0))));
}

#[test]
fn every_part_of_both_tuples_can_be_asked_for() {
    let of = |text: &str| filter(&text.split(' ').collect::<Vec<_>>());
    let none = FilterSpec::default;
    let net = |text: &str| Some(text.parse().expect("prefix"));
    for (text, expect) in [
        ("--reply-port-src 1 --reply-port-dst 2", FilterSpec { reply_sport: Some(1), reply_dport: Some(2), ..none() }),
        (
            "--icmp-type 8 --icmp-code 0 --icmp-id 77",
            FilterSpec { icmp_type: Some(8), icmp_code: Some(0), icmp_id: Some(77), ..none() },
        ),
        ("--icmpv6-type 128", FilterSpec { icmp_type: Some(128), ..none() }),
        ("--srckey 0x1 --orig-key-dst 2", FilterSpec { srckey: Some(1), dstkey: Some(2), ..none() }),
        (
            "--reply-key-src 3 --reply-key-dst 0x4",
            FilterSpec { reply_srckey: Some(3), reply_dstkey: Some(4), ..none() },
        ),
        ("--reply-zone 7", FilterSpec { reply_zone: Some(7), ..none() }),
        ("-j", FilterSpec { nat: true, ..none() }),
        ("--any-nat 198.51.100.2", FilterSpec { nat: true, nat_to: net("198.51.100.2/32"), ..none() }),
        ("-s 10.1.2.3 --mask-src 255.255.0.0", FilterSpec { source: net("10.1.0.0/16"), ..none() }),
        ("-d 2001:db8::1 --mask-dst ffff:ffff::", FilterSpec { destination: net("2001:db8::/32"), ..none() }),
        ("-u EXPECTED", FilterSpec { expected: Some(true), ..none() }),
        ("-u ASSURED,UNSET", FilterSpec { assured: Some(true), ..none() }),
    ] {
        assert_eq!(of(text), Ok(expect.clone()), "{text}");
        let query = with_query("/x", &expect).expect("query");
        let back: FilterSpec = serde_urlencoded::from_str(query.split_once('?').expect("query").1).expect("read");
        assert_eq!(back, expect, "{query}");
        let conntrack = expect.to_filter().map(|f| format!("{f:?}"));
        assert_ne!(conntrack, none().to_filter().map(|f| format!("{f:?}")), "it gets as far as the workers");
    }
    for (text, why) in [
        ("-u FIXED_TIMEOUT", "no connection is FIXED_TIMEOUT: packets always move the timeout on"),
        ("-u ASSURED,OFFLOAD", "no connection is OFFLOAD: the workers see all packets"),
        ("-u UNSET", "UNSET alone chooses nothing: every listed connection has a status"),
        ("-s 10.0.0.0/8 --mask-src 255.0.0.0", "--mask-src and a prefix contradict each other"),
        ("-s 10.0.0.1 --mask-src 255.0.255.0", "--mask-src 255.0.255.0 is no mask of this IP version"),
        ("-d 10.0.0.1 --mask-dst ffff::", "--mask-dst ffff:: is no mask of this IP version"),
    ] {
        assert_eq!(of(text), Err(why.into()), "{text}");
    }
    assert!(of("--mask-src 255.0.0.0").is_err_and(|e| e.contains("--src")));
    assert!(of("--srckey 65536").is_err_and(|e| e.contains("0 to 65535")));
}

#[test]
fn what_cannot_match_is_refused() {
    assert!(filter(&["-u", "UNREPLIED,SEEN_REPLY"]).is_err());
    assert!(filter(&["-n", "198.51.100.2", "-q", "198.51.100.3"]).is_err());
    assert!(filter(&["--state", "OPEN"]).expect_err("no such state").contains("SYN_SENT2"));
    assert!(filter(&["-p", "256"]).is_err());
    assert!(filter(&["-s", "lan"]).is_err());
    assert!(filter(&["-m", "0x10/0x0f"]).expect_err("no such mark").contains("without bits outside"));
    assert!(filter(&["-t", "600"]).is_err(), "a timeout is no filter, as with conntrack-tools");
}

#[test]
fn a_filter_survives_the_query_string() {
    let arguments = ["-p", "udp", "-s", "2001:db8::/32", "-u", "UNREPLIED", "-g", "-m", "1/3", "-w", "9"];
    let spec = filter(&arguments).expect("filter");
    let query = with_query("/x", &spec).expect("query");
    let back: FilterSpec = serde_urlencoded::from_str(query.split_once('?').expect("query").1).expect("read");
    assert_eq!(back, spec);
    assert_eq!(with_query("/x", &FilterSpec::default()).expect("query"), "/x");
}

#[test]
fn a_connection_is_made_from_its_original_direction_or_from_both() {
    let common = ["-p", "tcp", "-s", "192.0.2.1", "-d", "203.0.113.5", "--sport", "1000", "--dport", "80"];
    let with = |more: &[&str]| created(&[&common[..], more].concat());
    let plain = with(&["--state", "ESTABLISHED", "-t", "600", "-m", "5", "-u", "ASSURED"]).expect("a connection");
    assert_eq!((plain.state.as_deref(), plain.timeout, plain.mark), (Some("ESTABLISHED"), 600, 5));
    assert_eq!((plain.assured, plain.replied, plain.start), (true, false, 1000));
    let (original, reply, _) = plain.check().expect("it goes together");
    assert_eq!(reply, original.inverse());
    let nat = with(&["--state", "SYN_SENT", "-t", "1", "-q", "198.51.100.2", "--reply-port-dst", "7"]).expect("SNAT");
    let (_, reply, _) = nat.check().expect("it goes together");
    assert_eq!(reply.to_string(), "src=203.0.113.5 dst=198.51.100.2 sport=80 dport=7");
    assert_eq!(with(&["-t", "600"]), Err("--state is needed".into()));
    assert!(with(&["--state", "ESTABLISHED"]).is_err_and(|e| e.contains("--timeout")));
    let zones = with(&["--state", "CLOSE", "-t", "1", "-w", "3", "--reply-zone", "4"]).expect("zones");
    assert_eq!((zones.original.zone, zones.reply.zone), (3, 4));
}

#[test]
fn other_protocols_are_made_from_what_they_are_tracked_by() {
    let ping = "-p icmp -s 192.0.2.1 -d 192.0.2.2 --icmp-type 8 --icmp-id 77 -t 30";
    let ping = created(&ping.split(' ').collect::<Vec<_>>()).expect("a ping");
    assert_eq!((ping.reply.icmp_type, ping.reply.icmp_code, ping.reply.icmp_id), (Some(0), Some(0), Some(77)));
    let gre = "-p gre -s 192.0.2.1 -d 192.0.2.2 --srckey 0x1 --dstkey 2 -t 30";
    let gre = created(&gre.split(' ').collect::<Vec<_>>()).expect("a tunnel");
    assert_eq!((gre.reply.srckey, gre.reply.dstkey), (Some(2), Some(1)));
    let esp = "-p 50 -s 192.0.2.1 -d 192.0.2.2 -t 30";
    assert!(created(&esp.split(' ').collect::<Vec<_>>()).is_ok());
    for (bad, why) in [
        ("-p udp -s 192.0.2.1 -d 192.0.2.2 -t 30", "protocol 17 needs a source and a destination port"),
        ("-p udp -s 192.0.2.1 -t 30", "--src and --dst are needed"),
        ("-p udp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2 --state ESTABLISHED -t 1", "protocol 17 has no states"),
        ("-p udp -s 192.0.2.1 -d ::1 --sport 1 --dport 2 -t 1", "192.0.2.1 and ::1 mix IPv4 and IPv6"),
        (
            "-p 50 -s 192.0.2.1 -d 192.0.2.2 --sport 1 -t 1",
            "protocol 50 of this IP version does not have a source and a destination port",
        ),
    ] {
        assert_eq!(created(&bad.split(' ').collect::<Vec<_>>()), Err(why.into()));
    }
}

#[test]
fn one_connection_is_asked_for_by_either_direction() {
    let get = |text: &str| {
        let all: Vec<&str> = ["get"].into_iter().chain(text.split(' ')).collect();
        match command(&all)? {
            Conntrack::Get { tuples, .. } => {
                let way = tuples.given().map_err(|e| e.to_string())?;
                way.tuple(tuples.proto)
            }
            other => panic!("{other:?}"),
        }
    };
    let original = get("-p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2").expect("a tuple");
    assert_eq!(original.to_string(), "src=192.0.2.1 dst=192.0.2.2 sport=1 dport=2");
    let reply = get("-p tcp -r 192.0.2.2 -q 192.0.2.1 --reply-port-src 2 --reply-port-dst 1 -w 5").expect("a tuple");
    assert_eq!((reply.to_string().as_str(), reply.ct_zone), ("src=192.0.2.2 dst=192.0.2.1 sport=2 dport=1", 5));
    assert!(get("-p tcp -s 192.0.2.1 -d 192.0.2.2").is_err_and(|e| e.contains("port")));
    assert!(get("-p tcp -s 192.0.2.1").is_err_and(|e| e.contains("--dst")));
}

#[test]
fn an_update_says_what_is_new_and_a_filter_does_not() {
    let change = |text: &str| match command(&text.split(' ').collect::<Vec<_>>()) {
        Ok(Conntrack::Update { selection, values, .. }) => {
            let change = values.change().map_err(|e| e.to_string())?;
            Ok((selection.spec().expect("filter"), change))
        }
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e),
    };
    let (spec, new) = change("update -s 192.0.2.1 -m 0x1/0xf -t 99 -u ASSURED").expect("an update");
    assert_eq!(spec, FilterSpec { source: Some("192.0.2.1/32".parse().expect("prefix")), ..FilterSpec::default() });
    assert_eq!(new, wire::Change { mark: Some((0xf, 1)), timeout: Some(99), assured: true });
    assert!(change("update -s 192.0.2.1").is_err_and(|e| e.contains("is needed")));
    assert!(change("update -s 192.0.2.1 -u UNREPLIED").is_err());
}

#[test]
fn event_masks_are_named_as_conntrack_names_them() {
    assert_eq!(kinds(&[]), "new,updates,destroy");
    assert_eq!(kinds(&[Mask::New, Mask::All]), "new,updates,destroy");
    assert_eq!(kinds(&[Mask::Destroy, Mask::New]), "new,destroy");
    assert!(command(&["events", "-e", "NEW,DESTROY", "-p", "tcp", "-o", "timestamp,extended", "-c", "3"]).is_ok());
    assert!(command(&["events", "-e", "OLD"]).is_err());
}
