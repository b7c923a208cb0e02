//! [`Mbuf`]: one frame in DPDK's memory, owned.
//!
//! *Life-cycle*: received or allocated by [`super::DpdkIo`]; freed by `Drop`, or taken by the device when sent.
//! *Threads*: one owner at a time; may move between workers. *Limits*: a frame of one segment; a chained one shows its
//! first segment only, until [`crate::io::Io::linearise`].

use std::ptr::NonNull;
use std::slice;

use dpdk_sys as sys;

use crate::io::{Buf, RxChecksum};

/// One frame. Its owner reads and edits the mbuf in place: what it asks often lies in one cache line.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: an `Mbuf` owns its mbuf alone: there is no Clone, `shim_rx_burst` and `shim_alloc` hand each mbuf out once, and
// Drop or transmission ends it. DPDK lets any thread free an mbuf or read and write one that it alone holds: the
// pool's common part is multi-producer multi-consumer, and its caches are found by the calling thread's own lcore id.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// The pointer as the shim wants it, to replace the mbuf by another.
    pub(super) fn pointer_mut(&mut self) -> *mut *mut sys::rte_mbuf {
        (&raw mut self.0).cast()
    }

    /// The field at `at`, one of the shim's `SHIM_AT_*`, whose size is that of `T`.
    #[inline(always)]
    fn at<T>(&self, at: u32) -> *mut T {
        self.0.as_ptr().cast::<u8>().wrapping_add(at as usize).cast()
    }

    #[inline(always)]
    fn read<T: Copy>(&self, at: u32) -> T {
        // SAFETY: `at` is the offset of a field of this size in an mbuf (`offsetof` in the shim, which the device aligns), and this
        // value owns the mbuf: it is initialised, and nobody else writes it.
        unsafe { self.at::<T>(at).read() }
    }

    #[inline(always)]
    fn write<T: Copy>(&mut self, at: u32, value: T) {
        // SAFETY: as in `read`; `self` is borrowed uniquely.
        unsafe { self.at::<T>(at).write(value) }
    }

    #[inline(always)]
    fn len(&self) -> u16 {
        self.read(sys::SHIM_AT_LEN)
    }

    #[inline(always)]
    fn headroom(&self) -> u16 {
        self.read(sys::SHIM_AT_HEADROOM)
    }

    #[inline(always)]
    fn data(&self) -> *mut u8 {
        let buffer: *mut u8 = self.read(sys::SHIM_AT_BUFFER);
        buffer.wrapping_add(usize::from(self.headroom()))
    }

    /// Sets where the data begins and how long it is; both lie within the buffer. Further segments stay as they are.
    #[inline(always)]
    fn set(&mut self, headroom: u16, len: u16) {
        let packet: u32 = self.read(sys::SHIM_AT_PACKET_LEN);
        let packet = packet.wrapping_sub(u32::from(self.len())).wrapping_add(u32::from(len));
        self.write(sys::SHIM_AT_PACKET_LEN, packet);
        self.write(sys::SHIM_AT_HEADROOM, headroom);
        self.write(sys::SHIM_AT_LEN, len);
    }

    #[inline(always)]
    fn flags(&self) -> u64 {
        self.read(sys::SHIM_AT_FLAGS)
    }
}

impl Buf for Mbuf {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        // SAFETY: an mbuf's data lies within its buffer: so the device has set it, and `set` is given places within only. The
        // bytes are initialised memory of the pool, and nobody else writes them while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.data(), usize::from(self.len())) }
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed uniquely, and no other mbuf shares the buffer (the pool makes direct
        // mbufs, and nothing here attaches one to another).
        unsafe { slice::from_raw_parts_mut(self.data(), usize::from(self.len())) }
    }

    #[inline(always)]
    fn is_chained(&self) -> bool {
        self.read::<u16>(sys::SHIM_AT_SEGMENTS) > 1
    }

    #[inline]
    fn resize(&mut self, len: usize) -> bool {
        let room = self.read::<u16>(sys::SHIM_AT_SIZE).saturating_sub(self.headroom());
        let Ok(len) = u16::try_from(len) else { return false };
        if self.is_chained() || len > room {
            return false;
        }
        self.set(self.headroom(), len);
        true
    }

    #[inline]
    fn grow_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let (Some(headroom), Some(len)) = (self.headroom().checked_sub(n), self.len().checked_add(n)) else {
            return false;
        };
        self.set(headroom, len);
        true
    }

    #[inline]
    fn shrink_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let (Some(headroom), Some(len)) = (self.headroom().checked_add(n), self.len().checked_sub(n)) else {
            return false;
        };
        self.set(headroom, len);
        true
    }

    #[inline]
    fn rss_hash(&self) -> Option<u32> {
        (self.flags() & u64::from(sys::SHIM_OL_RSS) != 0).then(|| self.read(sys::SHIM_AT_RSS))
    }

    #[inline(always)]
    fn rx_checksum(&self) -> RxChecksum {
        match self.flags() & u64::from(sys::SHIM_OL_CSUM) {
            GOOD => RxChecksum::Good,
            BAD => RxChecksum::Bad,
            _ => RxChecksum::Unknown,
        }
    }

    #[inline]
    fn vouch(&mut self) {
        let flags = self.flags() & !u64::from(sys::SHIM_OL_CSUM) | GOOD;
        self.write(sys::SHIM_AT_FLAGS, flags);
    }
}

/// The device has verified the checksum, and it is right.
const GOOD: u64 = sys::SHIM_OL_CSUM_GOOD as u64;
/// The same, and it is wrong.
const BAD: u64 = sys::SHIM_OL_CSUM_BAD as u64;

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: shim_free wants mbufs that the caller owns and never uses again; this value owns one and ends.
        unsafe { sys::shim_free((&raw const self.0).cast(), 1) };
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf").field("len", &self.len()).field("chained", &self.is_chained()).finish_non_exhaustive()
    }
}
