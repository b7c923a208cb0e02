//! One EAL on ordinary memory, no NIC, no root: frames travel through real DPDK ports and nothing is left behind.
//!
//! ```text
//!   in.pcap ──▶ file ──▶ worker 0 ◀──▶ loop, queue 0   (net_ring: what is sent comes back)
//!                           │
//!   out.pcap ◀── file ◀─────┴──── worker 1 ◀──▶ loop, queue 1   (sends frames of its own)
//! ```
//! The file port has one queue each way: worker 1 does not poll it, and both workers share its transmit queue.
//! One test function: the EAL starts once per process.
#![cfg(feature = "dpdk")]

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, process};

use crossbeam_channel::{Receiver, Sender, unbounded};

use dataplane::api::command::Command;
use dataplane::api::launch::{
    self, DefragConfig, HugePages, InterfaceConfig, LaunchConfig, LaunchError, Link, Poll, StopReport, WorkerSeat,
};
use dataplane::dpdk::mbuf::Mbuf;
use dataplane::dpdk::{DpdkIo, WorkerLoop};
use dataplane::io::{Buf, Burst, FRAME_ROOM, Io, PortIdx, RxChecksum};
use dataplane::time::Nanos;

const FILE: PortIdx = PortIdx::wire(0);
const LOOP: PortIdx = PortIdx::wire(1);

/// What worker 0 saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A frame of the file in one segment.
    Whole,
    /// A chained one, which became one segment.
    Joined,
    /// A frame out of the ring, now written to the file.
    Back,
}

#[test]
fn frames_go_through_chains_become_one_segment_and_nothing_is_leaked() {
    let dir = Scratch(std::env::temp_dir().join(format!("sluice-smoke-{}", process::id())));
    fs::create_dir_all(&dir.0).expect("temporary directory is writable");
    let (input, output) = (dir.0.join("in.pcap"), dir.0.join("out.pcap"));
    let sent: Vec<Vec<u8>> = [60, 64, 1514, 3000, 128].iter().zip(0..).map(|(&len, i)| frame(i, len)).collect();
    write_pcap(&input, &sent);

    let cpu = first_cpu();
    let file = format!("net_pcap0,rx_pcap={},tx_pcap={}", input.display(), output.display());
    let config = LaunchConfig {
        workers: vec![cpu, cpu],
        hugepages: HugePages::Off,
        burst: 32,
        eal_args: Vec::new(),
        file_prefix: format!("sluice-smoke-{}", process::id()),
        interfaces: vec![
            interface("file", file),
            interface("loop", "net_ring0".into()),
            interface("null", "net_null0".into()),
        ],
        conntrack_max: 1000,
        defrag: DefragConfig::default(),
        mbufs: Some(4095),
        poll: Poll::Auto,
        twins: false,
    };
    refuses_what_the_configuration_alone_tells(&config);

    let (tell, seen) = unbounded();
    let build = |seat: WorkerSeat| {
        let WorkerSeat { index, workers, io, commands, ports, .. } = seat;
        assert_eq!((workers, ports.len()), (2, 3));
        match index {
            0 => Either::Forward(Forward { io, commands, tell: tell.clone(), stop: false }),
            _ => Either::Speak(Speak { io, commands, tell: tell.clone(), kept: None, said: 0, stop: false }),
        }
    };
    let handle = launch::start(&config, build).expect("starts on ordinary memory");
    assert!(!handle.hugepages);
    assert_eq!(handle.notes, Vec::<String>::new());
    assert_eq!(handle.conntrack_limit_per_worker, 500);
    assert_eq!(handle.ports[0].driver, "net_pcap");
    assert_eq!(handle.ports[1].driver, "net_ring");
    assert!(handle.ports[..2].iter().all(|port| !port.rss), "neither device has RSS");
    assert!(handle.ports[2].rss, "net_null takes key and table");
    assert!(handle.link(1).up);
    assert_eq!(handle.link(3), Link { up: false, speed_mbps: 0 });

    let mut want = sent;
    want[3].drain(..1500);
    want.extend((0..10).map(|i| frame(100 + i, 64)));
    let (mut whole, mut joined, mut back) = (0, 0, 0);
    while back < want.len() {
        match seen.recv_timeout(Duration::from_secs(10)).expect("all frames come through") {
            Seen::Whole => whole += 1,
            Seen::Joined => joined += 1,
            Seen::Back => back += 1,
        }
    }
    assert_eq!((whole, joined), (4, 1));
    assert_eq!(launch::start(&config, no_worker).map(drop), Err(LaunchError::AlreadyStarted));
    assert_eq!(handle.stop(), Ok(StopReport::default()), "nothing leaked, though worker 1 kept a frame");

    let mut got = read_pcap(&output);
    got.sort();
    want.sort();
    assert_eq!(got, want);
}

/// Refused before the EAL's one start is spent.
fn refuses_what_the_configuration_alone_tells(good: &LaunchConfig) {
    let refused = |edit: fn(&mut LaunchConfig)| {
        let mut config = good.clone();
        edit(&mut config);
        launch::start(&config, no_worker).map(drop).expect_err("refused").to_string()
    };
    assert_eq!(refused(|c| c.workers.clear()), "0 workers: 1 to 127 are possible");
    assert_eq!(refused(|c| c.burst = 65), "burst 65: 1 to 64 is possible");
    assert_eq!(refused(|c| c.interfaces.clear()), "no interface is configured, at least one is needed");
    assert!(refused(|c| c.workers = vec![4000]).starts_with("worker CPU 4000 is not among the CPUs"));
    assert!(refused(|c| c.interfaces[0].name = "a,b".into()).starts_with("interface name \"a,b\": 1 to 15 letters"));
    assert_eq!(refused(|c| c.eal_args = vec!["a\0b".into()]), "EAL argument \"a\\0b\" holds a NUL byte");
}

fn no_worker(_: WorkerSeat) -> Either {
    unreachable!("nothing starts")
}

/// Worker 0: file to loop, loop to file.
struct Forward {
    io: DpdkIo,
    commands: Receiver<Command>,
    tell: Sender<Seen>,
    stop: bool,
}

impl Forward {
    fn step(&mut self) -> bool {
        let (mut got, mut out) = (Burst::new(), Burst::new());
        self.io.rx_burst(FILE, 2, &mut got);
        assert!(got.len() <= 2, "the limit holds");
        let mut moved = !got.is_empty();
        for mut buf in got {
            assert_eq!((buf.rss_hash(), buf.rx_checksum()), (None, RxChecksum::Unknown));
            let chained = buf.is_chained();
            if chained {
                buf = one_segment(&mut self.io, buf);
            }
            self.tell.send(if chained { Seen::Joined } else { Seen::Whole }).expect("the test listens");
            out.push(buf);
        }
        self.io.tx_burst(LOOP, &mut out);
        assert!(out.is_empty(), "the ring has room");

        moved |= loop_to_file(&mut self.io, &self.tell);
        self.stop |= matches!(self.commands.try_recv(), Ok(Command::Stop));
        moved
    }
}

/// What comes back on the worker's own queue goes to the file.
fn loop_to_file(io: &mut DpdkIo, tell: &Sender<Seen>) -> bool {
    let mut back = Burst::new();
    io.rx_burst(LOOP, 64, &mut back);
    let n = back.len();
    io.tx_burst(FILE, &mut back);
    assert!(back.is_empty(), "a file takes all");
    (0..n).for_each(|_| tell.send(Seen::Back).expect("the test listens"));
    n > 0
}

/// A chained frame of 3,000 bytes does not fit one segment; without its first 1,500 it does.
fn one_segment(io: &mut DpdkIo, buf: Mbuf) -> Mbuf {
    let first = buf.bytes().to_vec();
    let mut buf = io.linearise(buf).expect_err("3,000 bytes are more than a buffer's room");
    assert!(buf.is_chained() && buf.bytes() == first, "unchanged");
    assert!(!buf.resize(100), "only a whole frame is resized");
    let mut burst = Burst::new();
    burst.push(buf);
    io.tx_burst(LOOP, &mut burst);
    let mut buf = burst.pop().expect("a chained frame is not sent");
    assert!(!buf.shrink_front(first.len() + 1) && buf.shrink_front(1500));
    let buf = io.linearise(buf).expect("1,500 bytes fit");
    assert!(!buf.is_chained());
    buf
}

/// Worker 1: sends ten frames of its own round the loop, and keeps one until it ends.
struct Speak {
    io: DpdkIo,
    commands: Receiver<Command>,
    tell: Sender<Seen>,
    kept: Option<Mbuf>,
    said: u8,
    stop: bool,
}

impl Speak {
    fn step(&mut self) -> bool {
        let mut none = Burst::new();
        for port in [FILE, PortIdx::twin(0), PortIdx(999)] {
            self.io.rx_burst(port, 64, &mut none);
        }
        assert!(none.is_empty());
        self.stop |= matches!(self.commands.try_recv(), Ok(Command::Stop));
        if self.said == 10 {
            return loop_to_file(&mut self.io, &self.tell);
        }
        let mut buf = self.io.alloc().expect("the pool has buffers");
        assert!(buf.bytes().is_empty() && buf.resize(FRAME_ROOM) && !buf.resize(FRAME_ROOM + 1));
        assert!(!buf.resize(usize::from(u16::MAX) + 1));
        // Written behind a gap, then the gap is taken away, then the header is put in front.
        let text = frame(100 + self.said, 64);
        assert!(buf.resize(70) && buf.shrink_front(20));
        buf.bytes_mut().copy_from_slice(&text[14..]);
        assert!(buf.grow_front(14) && !buf.grow_front(1000));
        buf.bytes_mut()[..14].copy_from_slice(&text[..14]);
        let mut burst = Burst::new();
        burst.push(buf);
        self.io.tx_burst(PortIdx::twin(1), &mut burst);
        assert_eq!(burst.len(), 1, "what a port that is not there does not take stays with us");
        self.io.tx_burst(LOOP, &mut burst);
        assert!(burst.is_empty(), "the ring has room");
        self.said += 1;
        self.kept = self.io.alloc();
        true
    }
}

enum Either {
    Forward(Forward),
    Speak(Speak),
}

impl WorkerLoop for Either {
    fn step(&mut self, _now: Nanos) -> bool {
        match self {
            Self::Forward(worker) => worker.step(),
            Self::Speak(worker) => worker.step(),
        }
    }

    fn stopping(&self) -> bool {
        match self {
            Self::Forward(worker) => worker.stop,
            Self::Speak(worker) => worker.stop,
        }
    }
}

fn interface(name: &str, device: String) -> InterfaceConfig {
    InterfaceConfig { name: name.into(), device, mtu: 1500, vlan: None }
}

fn first_cpu() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
    list.trim().split([',', '-']).next().and_then(|cpu| cpu.parse().ok()).expect("a number")
}

/// A broadcast Ethernet header, then a pattern that `i` sets apart.
fn frame(i: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, i, 0x88, 0xb5]);
    frame.extend((0_u8..251).cycle().map(|at| at ^ i).take(len - 14));
    frame
}

/// Writes a classic little-endian pcap file.
fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let len = u32::try_from(frame.len()).expect("a frame is short");
        for word in [0, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    fs::write(path, file).expect("temporary directory is writable");
}

fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).expect("the port wrote a file");
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        frames.push(tail[..len].to_vec());
        rest = &tail[len..];
    }
    frames
}

/// Removes the directory when the test ends, however it does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
