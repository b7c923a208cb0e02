//! A kernel router between two TAP devices in a network namespace of its own, in lock step.
//!
//! ```text
//!   stations 02:00:00:00:02:00 ── lan [ 10.0.0.1 fd00:1::1 | 198.51.100.1 2001:db8::1 ] wan ── stations 02:00:00:00:02:01
//! ```
//! Writing to a TAP takes the frame through the whole kernel before it returns, so what left can be read at once. An
//! nft rule behind connection tracking logs each packet by class and direction, also of what is
//! dropped later.
//!
//! *Life-cycle*: [`Kernel::new`] moves the calling thread into a new network namespace, and each further one into
//! another; a namespace goes when its last user does. *Threads*: the one that made it. *Limits*: needs root.
//! *Sources*: `linux/include/uapi/linux/netfilter/nfnetlink_log.h`; `linux/net/netfilter/nfnetlink_log.c`.

pub mod ct;
pub mod netlink;

use std::io;
use std::time::{Duration, Instant};

use dataplane::api::Tuple;
use netlink::{Netfilter, attr, put};
use tun_rs::SyncDevice;

use crate::frame::{Ip, Side};
use crate::namespace::{self, run, tap};
use crate::observe::{Class, ConnState, Exit, Observation, System};
use crate::policy::Policy;

const LOG_PACKET: u16 = 0x0400;
const LOG_CONFIG: u16 = 0x0401;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_QTHRESH: u16 = 5;
const CFG_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;

/// Bytes of each packet that are logged with its class: all headers, and those of what an error quotes.
const HEADERS: u32 = 512;

/// A kernel router.
pub struct Kernel {
    taps: [SyncDevice; 2],
    log: Netfilter,
    conntrack: Netfilter,
    zones: Vec<u16>,
    start: Instant,
    buffer: Vec<u8>,
}

impl Kernel {
    /// A router with `policy` in a new network namespace, which the calling thread enters.
    ///
    /// # Errors
    /// What could not be made; running without root is the usual cause.
    pub fn new(policy: &Policy) -> io::Result<Self> {
        namespace::enter_new()?;
        let taps = [tap("lan")?, tap("wan")?];
        run("sh", &["-s"], &policy.shell())?;
        run("nft", &["-f", "-"], &policy.nft())?;
        let mut log = Netfilter::new()?;
        bind(&mut log, 1, HEADERS)?;
        bind(&mut log, 2, u32::from(u16::MAX))?;
        let mut kernel = Self {
            taps,
            log,
            conntrack: Netfilter::new()?,
            zones: policy.all_zones(),
            start: Instant::now(),
            buffer: vec![0; 1 << 16],
        };
        kernel.frames()?; // what the interfaces said when they came up
        Ok(kernel)
    }

    /// All frames that wait.
    fn frames(&mut self) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        let mut out = Vec::new();
        for side in Side::ALL {
            let frames = namespace::frames(&self.taps[side.index()], &mut self.buffer)?;
            out.extend(frames.into_iter().map(|f| (Exit::Link(side), f)));
        }
        Ok(out)
    }
}

impl System for Kernel {
    fn name(&self) -> String {
        "kernel".into()
    }

    fn send(&mut self, _: Duration, side: Side, frame: &[u8]) -> io::Result<Observation> {
        self.taps[side.index()].send(frame)?;
        let mut seen = Observation { out: self.frames()?, ..Observation::default() };
        let mut about = None;
        let (log, out) = (&mut self.log, &mut seen.out);
        let mut classified = None;
        while log.receive(false, |m| {
            if m.kind != LOG_PACKET {
                return;
            }
            let payload = attr(m.attrs, NFULA_PAYLOAD).unwrap_or(&[]);
            let class = match attr(m.attrs, NFULA_PREFIX).and_then(|p| p.first()) {
                Some(b'i') => (Class::Invalid, false),
                Some(b'u') => (Class::Untracked, false),
                Some(b'n') => (Class::New, false),
                Some(b'e') => (Class::Established, false),
                Some(b'E') => (Class::Established, true),
                Some(b'r') => (Class::Related, false),
                Some(b'R') => (Class::Related, true),
                _ => {
                    out.push((Exit::Local, payload.to_vec()));
                    return;
                }
            };
            classified = Some(class);
            about = Ip::read(payload).and_then(|p| p.about());
        })? {}
        if let Some((class, reply)) = classified {
            (seen.class, seen.reply) = (Some(class), reply);
        }
        seen.about = about.or_else(|| Ip::of_frame(frame).and_then(|p| p.about()));
        Ok(seen)
    }

    fn find(&mut self, t: &Tuple) -> io::Result<Option<ConnState>> {
        for &ct_zone in &self.zones {
            if let Some(found) = ct::find(&mut self.conntrack, &Tuple { ct_zone, ..*t })? {
                return Ok(Some(found.anywhere()));
            }
        }
        Ok(None)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(&mut self, at: Duration) -> io::Result<Vec<(Exit, Vec<u8>)>> {
        std::thread::sleep(at.saturating_sub(self.now()));
        self.frames()
    }
}

/// Has log group `group` sent to `socket` at once, with `copy` bytes of each packet.
fn bind(socket: &mut Netfilter, group: u16, copy: u32) -> io::Result<()> {
    let configure = |socket: &mut Netfilter, kind: u16, value: &[u8]| {
        let mut attrs = Vec::new();
        put(&mut attrs, kind, value);
        socket.ask(LOG_CONFIG, 0, group, &attrs)
    };
    configure(socket, NFULA_CFG_CMD, &[CFG_BIND])?;
    let [a, b, c, d] = copy.to_be_bytes();
    configure(socket, NFULA_CFG_MODE, &[a, b, c, d, COPY_PACKET, 0])?;
    configure(socket, NFULA_CFG_QTHRESH, &1u32.to_be_bytes())
}
