//! [`Mbuf`]: one frame in DPDK's memory, owned.
//!
//! *Life-cycle*: received or allocated by [`super::DpdkIo`]; freed by `Drop`, or taken by the device when sent.
//! *Threads*: one owner at a time; may move between workers. *Limits*: a frame of one segment; a chained one shows its
//! first segment only, until [`crate::io::Io::linearise`].

use std::slice;

use dpdk_sys as sys;

use crate::io::{Buf, RxChecksum};

/// [`sys::SHIM_CSUM_GOOD`] as wide as the flags are.
#[expect(clippy::cast_possible_truncation, reason = "checked by the line below")]
const GOOD: u8 = sys::SHIM_CSUM_GOOD as u8;
const _: () = assert!(GOOD as u32 == sys::SHIM_CSUM_GOOD);

/// One frame. What its owner asks often is cached beside the pointer, so that [`Buf`] needs no foreign call.
#[repr(transparent)]
pub struct Mbuf(sys::shim_frame);

// SAFETY: an `Mbuf` owns its mbuf alone: there is no Clone, `shim_rx_burst` and `shim_alloc` hand each mbuf out once, and
// Drop or transmission ends it. DPDK lets any thread free an mbuf or read and write one that it alone holds: the
// pool's common part is multi-producer multi-consumer, and its caches are found by the calling thread's own lcore id.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// The frame as the shim wants it, to edit through.
    pub(super) fn frame_mut(&mut self) -> &mut sys::shim_frame {
        &mut self.0
    }

    fn flag(&self, flag: u32) -> bool {
        u32::from(self.0.flags) & flag != 0
    }
}

impl Buf for Mbuf {
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: `data` points to `len` bytes inside the buffer of an mbuf that this value owns: set so by the shim, and
        // kept so by `resize`, `grow_front` and `shrink_front`, which move within head- and tailroom only. The bytes
        // are initialised memory of the pool, and nobody else writes them while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.0.data, usize::from(self.0.len)) }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed uniquely, and no other mbuf shares the buffer (the pool makes direct
        // mbufs, and nothing here attaches one to another).
        unsafe { slice::from_raw_parts_mut(self.0.data, usize::from(self.0.len)) }
    }

    #[inline]
    fn is_chained(&self) -> bool {
        self.flag(sys::SHIM_CHAINED)
    }

    #[inline]
    fn resize(&mut self, len: usize) -> bool {
        let room = u32::from(self.0.len) + u32::from(self.0.tailroom);
        let Ok(len) = u16::try_from(len) else { return false };
        let Ok(tailroom) = u16::try_from(room.wrapping_sub(u32::from(len))) else { return false };
        if self.is_chained() {
            return false;
        }
        self.0.len = len;
        self.0.tailroom = tailroom;
        true
    }

    #[inline]
    fn grow_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let (Some(headroom), Some(len)) = (self.0.headroom.checked_sub(n), self.0.len.checked_add(n)) else {
            return false;
        };
        // SAFETY: `data - headroom` is the buffer's start, and `n <= headroom` by the subtraction above: still inside.
        self.0.data = unsafe { self.0.data.sub(usize::from(n)) };
        self.0.headroom = headroom;
        self.0.len = len;
        true
    }

    #[inline]
    fn shrink_front(&mut self, n: usize) -> bool {
        let Ok(n) = u16::try_from(n) else { return false };
        let (Some(headroom), Some(len)) = (self.0.headroom.checked_add(n), self.0.len.checked_sub(n)) else {
            return false;
        };
        // SAFETY: `n <= len` by the subtraction above, so the pointer stays inside the buffer or at its end.
        self.0.data = unsafe { self.0.data.add(usize::from(n)) };
        self.0.headroom = headroom;
        self.0.len = len;
        true
    }

    #[inline]
    fn rss_hash(&self) -> Option<u32> {
        self.flag(sys::SHIM_RSS).then_some(self.0.rss)
    }

    #[inline]
    fn rx_checksum(&self) -> RxChecksum {
        if self.flag(sys::SHIM_CSUM_GOOD) {
            RxChecksum::Good
        } else if self.flag(sys::SHIM_CSUM_BAD) {
            RxChecksum::Bad
        } else {
            RxChecksum::Unknown
        }
    }

    #[inline]
    fn vouch(&mut self) {
        self.0.flags |= GOOD;
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: shim_free wants frames whose mbufs the caller owns and never uses again; this value owns one and ends.
        unsafe { sys::shim_free(&raw const self.0, 1) };
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf").field("len", &self.0.len).field("chained", &self.is_chained()).finish_non_exhaustive()
    }
}
