//! Netlink as netfilter speaks it: messages and attributes, written and read.
//!
//! *Limits*: messages of at most 64 KiB; nested attributes as deep as the caller goes.
//! *Sources*: `linux/include/uapi/linux/netlink.h`, `nfnetlink.h`.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// The socket's receive buffer, bytes: a lock-step run has at most a few messages under way.
const RECEIVE_BUFFER: usize = 4 << 20;
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
/// `MSG_DONTWAIT`.
const DONT_WAIT: i32 = 0x40;

/// Request flag.
pub const REQUEST: u16 = 1;
/// Ask for an answer of success or failure.
pub const ACK: u16 = 4;

/// An attribute: its type without flags, and its value.
pub type Attr<'a> = (u16, &'a [u8]);

/// The attributes of `b`, as far as they are whole.
pub fn attrs(b: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    let mut rest = b;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind`.
pub fn attr(b: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(b).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// Appends an attribute.
pub fn put(b: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    b.extend(len.to_ne_bytes());
    b.extend(kind.to_ne_bytes());
    b.extend(value);
    b.resize(b.len().next_multiple_of(4), 0);
}

/// The flag of an attribute that holds attributes.
pub const NESTED: u16 = 0x8000;

/// A message that was received: its type, its nfgenmsg and attributes.
#[derive(Debug)]
pub struct Received<'a> {
    /// Subsystem and message type.
    pub kind: u16,
    /// Attributes.
    pub attrs: &'a [u8],
}

/// A netfilter netlink socket of the network namespace in which it was made.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netfilter {
    /// A new socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attrs: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut b = Vec::with_capacity(HEADER + 4 + attrs.len());
        b.extend(u32::try_from(HEADER + 4 + attrs.len()).unwrap_or(u32::MAX).to_ne_bytes());
        b.extend(kind.to_ne_bytes());
        b.extend(flags.to_ne_bytes());
        b.extend(self.sequence.to_ne_bytes());
        b.extend(0u32.to_ne_bytes());
        b.extend([family, 0]);
        b.extend(resource.to_be_bytes());
        b.extend(attrs);
        self.socket.send(&b, 0).map(drop)
    }

    /// Sends one message and waits for the kernel's verdict on it.
    ///
    /// # Errors
    /// The kernel's, that verdict among them.
    pub fn ask(&mut self, kind: u16, family: u8, resource: u16, attrs: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK, family, resource, attrs)?;
        self.receive(true, |_| ()).map(drop)
    }

    /// Takes one datagram and hands each message in it to `each`; `Ok(false)` where there is none and `wait` is not set.
    ///
    /// # Errors
    /// The kernel's; an error message in the datagram is one as well.
    pub fn receive(&mut self, wait: bool, mut each: impl FnMut(Received<'_>)) -> io::Result<bool> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, if wait { 0 } else { DONT_WAIT }) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
        let mut rest = self.buffer.as_slice();
        while let Some(head) = rest.get(..HEADER) {
            let u16_at = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
            let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let Some(body) = rest.get(HEADER..len) else { break };
            if u16_at(4) == NLMSG_ERROR {
                let code = body.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
            } else if let Some(attrs) = body.get(4..) {
                each(Received { kind: u16_at(4), attrs });
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(true)
    }
}
