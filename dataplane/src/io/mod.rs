//! The edge between the stages and whatever carries frames: traits [`Io`] and [`Buf`].
//!
//! Two things implement them: [`mem`], buffers and ports on the heap for tests, and `dpdk`, mbufs and NIC queues.
//! The choice is made by type where a worker is built, never by `cfg` inside a stage.
//!
//! *Threads*: an `Io` belongs to one worker. A `Buf` may travel to another worker (hand-over), hence `Send`.
//! *Limits*: a burst is at most [`MAX_BURST`] frames; a frame is one segment once [`Io::linearise`] has seen it.

pub mod mem;

use arrayvec::ArrayVec;

/// Most frames one call receives or sends.
pub const MAX_BURST: usize = 64;

/// Frames on their way in or out.
pub type Burst<B> = ArrayVec<B, MAX_BURST>;

/// A queue pair of one port as a worker sees it: interface `i` has its wire at `2 * i` and its TAP twin at `2 * i + 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortIdx(pub u16);

impl PortIdx {
    /// The port on the wire side of interface `interface`.
    pub const fn wire(interface: u16) -> Self {
        Self(interface * 2)
    }

    /// The kernel's side of interface `interface`: its TAP twin.
    pub const fn twin(interface: u16) -> Self {
        Self(interface * 2 + 1)
    }

    /// The interface that this port belongs to.
    pub const fn interface(self) -> u16 {
        self.0 / 2
    }

    /// Whether this is the kernel's side.
    pub const fn is_twin(self) -> bool {
        self.0 % 2 == 1
    }
}

/// What the NIC says of the L4 checksum of a received frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RxChecksum {
    /// Not looked at: software verifies.
    #[default]
    Unknown,
    /// Verified and right.
    Good,
    /// Verified and wrong.
    Bad,
}

/// One frame, owned. Dropping it frees it; it is never cloned.
pub trait Buf: Send + Sized {
    /// The first segment's bytes: the whole frame unless [`Buf::is_chained`].
    fn bytes(&self) -> &[u8];

    /// The same, to rewrite in place.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Whether the frame goes on in further segments.
    fn is_chained(&self) -> bool;

    /// Sets the length of a one-segment frame; new bytes at the tail are unspecified. `false`, and nothing
    /// changed, where `len` does not fit the segment.
    #[must_use]
    fn resize(&mut self, len: usize) -> bool;

    /// Adds `n` unspecified bytes in front. `false`, and nothing changed, where there is no headroom.
    #[must_use]
    fn grow_front(&mut self, n: usize) -> bool;

    /// Takes `n` bytes from the front. `false`, and nothing changed, where the first segment is shorter.
    #[must_use]
    fn shrink_front(&mut self, n: usize) -> bool;

    /// The RSS hash that the NIC computed, where it did.
    fn rss_hash(&self) -> Option<u32>;

    /// The NIC's verdict on the L4 checksum.
    fn rx_checksum(&self) -> RxChecksum;

    /// Software has found the L4 checksum right: nobody needs to look again, and [`Buf::rx_checksum`] may say so.
    fn vouch(&mut self) {}
}

/// All queue pairs of one worker, and the pool that it makes frames from.
pub trait Io {
    /// The frame type.
    type Buf: Buf;

    /// Receives into `out` at most `limit` frames, and no more than `out` has room for.
    fn rx_burst(&mut self, port: PortIdx, limit: usize, out: &mut Burst<Self::Buf>);

    /// Sends from the front of `bufs` and removes what was sent. What the device refused after a bounded number of
    /// tries stays in `bufs`, in order, owned by the caller.
    fn tx_burst(&mut self, port: PortIdx, bufs: &mut Burst<Self::Buf>);

    /// A new empty frame (length 0) with room for at least [`FRAME_ROOM`] bytes; `None` when the pool is empty.
    fn alloc(&mut self) -> Option<Self::Buf>;

    /// Makes one segment out of a chained frame. `Err` gives the frame back unchanged where it does not fit one
    /// segment or no buffer is to be had.
    ///
    /// # Errors
    /// The frame itself.
    fn linearise(&mut self, buf: Self::Buf) -> Result<Self::Buf, Self::Buf>;
}

/// Room of a fresh buffer behind its headroom, bytes: a 1,500-byte packet with Ethernet and a VLAN tag fits with slack.
pub const FRAME_ROOM: usize = 2048;
