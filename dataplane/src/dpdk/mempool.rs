//! [`Pool`]: the one mempool that all ports and workers take mbufs from.
//!
//! *Life-cycle*: made after the EAL, freed by [`Pool::close`] when no mbuf is out and nobody else holds it. Where one is
//! still out, pool and EAL stay until the process ends: an [`super::mbuf::Mbuf`] then never points into freed memory.
//! *Threads*: any. *Limits*: [`mbufs_needed`]; an empty pool makes `alloc` return `None` and drivers drop on receive.

use std::ptr::NonNull;
use std::sync::Arc;

use dpdk_sys as sys;

use super::eal::Eal;
use super::last_error;
use crate::api::launch::{InterfaceConfig, LaunchConfig, LaunchError};
use crate::io::FRAME_ROOM;
use crate::worker::PARKED;

/// The pool of all mbufs.
#[derive(Debug)]
pub struct Pool {
    raw: NonNull<sys::rte_mempool>,
    /// Whose memory it is.
    eal: Eal,
}

// SAFETY: DPDK's pools of the default kind take and give from any thread at once; per-lcore caches are reached only with
// the calling thread's own lcore id. The pointer is freed by `close` alone, which holds the last reference.
unsafe impl Send for Pool {}

// SAFETY: as for Send: every call made through `&Pool` (take, give, count) is one that DPDK allows from many threads.
unsafe impl Sync for Pool {}

impl Pool {
    /// Makes a pool of `mbufs` buffers with room for `room` bytes each.
    pub(super) fn new(eal: Eal, mbufs: u32, room: u16) -> Result<Self, LaunchError> {
        // SAFETY: the EAL is initialised (`eal` proves it); the name is NUL-terminated and of fewer than 26 bytes; the cache
        // is at most RTE_MEMPOOL_CACHE_MAX_SIZE (512) and, with at least `MIN_MBUFS`, below n / 1.5; no private area.
        let raw = unsafe { sys::rte_pktmbuf_pool_create(c"sluice".as_ptr(), mbufs, CACHE, 0, room, ANY_NODE) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, eal }),
            None => Err(LaunchError::Pool { mbufs, source: last_error("rte_pktmbuf_pool_create") }),
        }
    }

    /// The EAL, which lives as long as the pool.
    pub(super) fn eal(&self) -> &Eal {
        &self.eal
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }

    /// Mbufs that somebody holds now: workers, queues, drivers.
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool is live while `self` is.
        unsafe { sys::rte_mempool_in_use_count(self.as_ptr()) }
    }

    /// Frees the pool and cleans the EAL up, or says how many mbufs are still out and keeps both.
    pub(super) fn close(this: Arc<Self>) -> Result<(), u32> {
        let out = this.in_use();
        match Arc::try_unwrap(this) {
            Ok(pool) if out == 0 => {
                // SAFETY: no mbuf is out, and nobody but `pool`, which ends here, knows the pointer.
                unsafe { sys::rte_mempool_free(pool.as_ptr()) };
                drop(pool.eal);
                Ok(())
            }
            Ok(pool) => {
                std::mem::forget(pool);
                Err(out)
            }
            Err(shared) => {
                std::mem::forget(shared);
                Err(out)
            }
        }
    }
}

/// How many mbufs a configuration needs: what all queues may hold, what workers have in flight and in their caches,
/// fragments that wait, and slack for bursts that do; `config.mbufs` overrules it.
pub fn mbufs_needed(config: &LaunchConfig) -> u32 {
    if let Some(mbufs) = config.mbufs {
        return mbufs.max(MIN_MBUFS);
    }
    let workers = u32::try_from(config.workers.len()).unwrap_or(u32::MAX);
    let parked = if workers > 1 { PARKED } else { 0 };
    let per_worker: u32 = config
        .interfaces
        .iter()
        .map(|interface| {
            let wire = 2 * u32::from(descriptors(interface));
            let twin = if config.twins { 2 * u32::from(SOFTWARE_DESCRIPTORS) } else { 0 };
            wire.saturating_add(twin)
        })
        .fold(CACHE * 2 + 1024, u32::saturating_add)
        .saturating_add(u32::try_from(config.defrag_setup().frames() + parked).unwrap_or(u32::MAX));
    let needed = workers.saturating_mul(per_worker).saturating_add(4096).max(DEFAULT_MBUFS);
    // One below a power of two fills the pool's ring exactly.
    needed.checked_next_power_of_two().map_or(u32::MAX / 2, |n| n - 1)
}

/// Bytes of each mbuf's data area: headroom, and the largest frame of any interface in one segment.
pub fn room(config: &LaunchConfig) -> u16 {
    let largest = config.interfaces.iter().map(|i| usize::from(i.mtu) + L2_SLACK).max().unwrap_or(0);
    let room = largest.max(FRAME_ROOM).next_multiple_of(64) + sys::RTE_PKTMBUF_HEADROOM as usize;
    u16::try_from(room).unwrap_or(u16::MAX)
}

/// Bytes of memory that each mbuf occupies.
pub fn bytes_per_mbuf(config: &LaunchConfig) -> usize {
    usize::from(room(config)) + usize::try_from(MBUF_OVERHEAD).unwrap_or(0)
}

/// MB of packet memory that a configuration needs: the pool, and what the EAL and drivers want beside it. Ordinary pages
/// cost more, because DPDK lets no mbuf cross a page.
pub fn megabytes_needed(config: &LaunchConfig, huge: bool) -> u32 {
    let mbuf = u64::from(room(config)) + MBUF_OVERHEAD;
    let each = match huge {
        true => mbuf,
        false if mbuf <= PAGE => PAGE / (PAGE / mbuf),
        false => mbuf.next_multiple_of(PAGE),
    };
    let pool = u64::from(mbufs_needed(config)) * each;
    let ports = config.interfaces.len() * if config.twins { 2 } else { 1 };
    let beside = EAL_MB.saturating_add(PORT_MB.saturating_mul(u32::try_from(ports).unwrap_or(u32::MAX)));
    u32::try_from(pool.div_ceil(1 << 20)).unwrap_or(u32::MAX).saturating_add(beside)
}

/// Descriptors per queue of the interface's wire port: enough of them for 50 µs at 10 Gbit/s line rate on a NIC, where
/// software ports need no more than a few bursts.
pub(super) fn descriptors(interface: &InterfaceConfig) -> u16 {
    if super::eal::pci_address(&interface.device).is_some() { NIC_DESCRIPTORS } else { SOFTWARE_DESCRIPTORS }
}

/// Descriptors per queue of a NIC.
pub(super) const NIC_DESCRIPTORS: u16 = 1024;

/// Descriptors per queue of a virtual device.
pub(super) const SOFTWARE_DESCRIPTORS: u16 = 256;

/// Mbufs that each lcore keeps to itself.
const CACHE: u32 = 256;

/// Fewest mbufs: a pool must be larger than its caches.
const MIN_MBUFS: u32 = 2047;

/// Mbufs unless more are needed.
const DEFAULT_MBUFS: u32 = 16383;

/// Two VLAN tags, the Ethernet header, the FCS that some NICs leave on, and slack.
const L2_SLACK: usize = 64;

/// `struct rte_mbuf`, the pool's header per element, and padding that spreads elements over memory channels.
const MBUF_OVERHEAD: u64 = 128 + 64 + 64;

/// An ordinary page, bytes.
const PAGE: u64 = 4096;

/// What the EAL's heap and our pool's caches take.
const EAL_MB: u32 = 16;

/// What a driver takes per port: net_tap makes a pool of its own, of which the caches are the most.
const PORT_MB: u32 = 4;

/// `SOCKET_ID_ANY`.
const ANY_NODE: i32 = -1;
