//! The heap twin of ports and buffers: what tests run whole workers on, and nothing else.
//!
//! A [`MemBuf`] has headroom and may be chained, as an mbuf does; a [`MemIo`] is a set of queues into which a test puts
//! frames and from which it takes them. *Limits*: [`FRAME_ROOM`] bytes per segment, as many buffers as the pool is given.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Buf, Burst, FRAME_ROOM, Io, PortIdx, RxChecksum};

/// Bytes in front of a fresh frame, as DPDK's default.
const HEADROOM: usize = 128;

/// Counts the buffers that live, so that a test can see a leak.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    live: Arc<AtomicUsize>,
    limit: usize,
}

impl Pool {
    /// A pool of at most `limit` buffers.
    pub fn new(limit: usize) -> Self {
        Self { live: Arc::default(), limit }
    }

    /// Buffers in use.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// A frame of one segment with these bytes, or `None` where the pool is empty or the bytes do not fit.
    pub fn frame(&self, bytes: &[u8]) -> Option<MemBuf> {
        if bytes.len() > FRAME_ROOM || self.live.fetch_add(1, Ordering::Relaxed) >= self.limit {
            if bytes.len() <= FRAME_ROOM {
                self.live.fetch_sub(1, Ordering::Relaxed);
            }
            return None;
        }
        let mut data = vec![0; HEADROOM + FRAME_ROOM];
        data[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        Some(MemBuf {
            data,
            start: HEADROOM,
            len: bytes.len(),
            rest: Vec::new(),
            rss: None,
            checksum: RxChecksum::Unknown,
            live: Arc::clone(&self.live),
        })
    }
}

/// A frame on the heap.
#[derive(Debug)]
pub struct MemBuf {
    data: Vec<u8>,
    start: usize,
    len: usize,
    /// Further segments.
    rest: Vec<u8>,
    rss: Option<u32>,
    checksum: RxChecksum,
    live: Arc<AtomicUsize>,
}

impl MemBuf {
    /// Cuts the frame behind its first `at` bytes: the rest becomes further segments.
    #[must_use]
    pub fn chained(mut self, at: usize) -> Self {
        if at < self.len {
            self.rest = self.data[self.start + at..self.start + self.len].to_vec();
            self.len = at;
        }
        self
    }

    /// Adds further segments behind the first.
    #[must_use]
    pub fn with_tail(mut self, tail: &[u8]) -> Self {
        self.rest.extend_from_slice(tail);
        self
    }

    /// As if the NIC had computed this RSS hash.
    #[must_use]
    pub fn with_rss(mut self, hash: u32) -> Self {
        self.rss = Some(hash);
        self
    }

    /// As if the NIC had verified the checksum.
    #[must_use]
    pub fn with_checksum(mut self, verdict: RxChecksum) -> Self {
        self.checksum = verdict;
        self
    }
}

impl Drop for MemBuf {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Buf for MemBuf {
    fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.start..self.start + self.len]
    }

    fn is_chained(&self) -> bool {
        !self.rest.is_empty()
    }

    fn resize(&mut self, len: usize) -> bool {
        let fits = self.start + len <= self.data.len();
        if fits {
            self.len = len;
        }
        fits
    }

    fn grow_front(&mut self, n: usize) -> bool {
        let fits = n <= self.start;
        if fits {
            self.start -= n;
            self.len += n;
        }
        fits
    }

    fn shrink_front(&mut self, n: usize) -> bool {
        let fits = n <= self.len;
        if fits {
            self.start += n;
            self.len -= n;
        }
        fits
    }

    fn rss_hash(&self) -> Option<u32> {
        self.rss
    }

    fn rx_checksum(&self) -> RxChecksum {
        self.checksum
    }

    fn vouch(&mut self) {
        self.checksum = RxChecksum::Good;
    }
}

/// One worker's queues.
#[derive(Debug)]
pub struct MemIo {
    pool: Pool,
    rx: Vec<VecDeque<MemBuf>>,
    tx: Vec<VecDeque<MemBuf>>,
    /// Frames that a port takes before it refuses.
    pub tx_limit: usize,
}

impl MemIo {
    /// Queues for `interfaces` interfaces.
    pub fn new(interfaces: usize, pool: Pool) -> Self {
        let queues = || (0..interfaces * 2).map(|_| VecDeque::new()).collect();
        Self { pool, rx: queues(), tx: queues(), tx_limit: usize::MAX }
    }

    /// A frame arrives.
    pub fn inject(&mut self, port: PortIdx, buf: MemBuf) {
        self.rx[usize::from(port.0)].push_back(buf);
    }

    /// The next frame that was sent.
    pub fn sent(&mut self, port: PortIdx) -> Option<MemBuf> {
        self.tx[usize::from(port.0)].pop_front()
    }

    /// Frames that wait to be received.
    pub fn waiting(&self) -> usize {
        self.rx.iter().map(VecDeque::len).sum()
    }
}

impl Io for MemIo {
    type Buf = MemBuf;

    fn rx_burst(&mut self, port: PortIdx, limit: usize, out: &mut Burst<MemBuf>) {
        let queue = &mut self.rx[usize::from(port.0)];
        let n = limit.min(out.remaining_capacity()).min(queue.len());
        out.extend(queue.drain(..n));
    }

    fn tx_burst(&mut self, port: PortIdx, bufs: &mut Burst<MemBuf>) {
        let queue = &mut self.tx[usize::from(port.0)];
        let n = bufs.len().min(self.tx_limit.saturating_sub(queue.len()));
        queue.extend(bufs.drain(..n));
    }

    fn alloc(&mut self) -> Option<MemBuf> {
        self.pool.frame(&[])
    }

    fn linearise(&mut self, mut buf: MemBuf) -> Result<MemBuf, MemBuf> {
        let whole = buf.len + buf.rest.len();
        if buf.start + whole > buf.data.len() {
            return Err(buf);
        }
        let rest = std::mem::take(&mut buf.rest);
        let at = buf.start + buf.len;
        buf.data[at..at + rest.len()].copy_from_slice(&rest);
        buf.len = whole;
        Ok(buf)
    }
}
