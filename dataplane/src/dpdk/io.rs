//! [`DpdkIo`]: one worker's queue pair of every port, behind the trait that the stages know.
//!
//! *Life-cycle*: made by [`super::runtime`] once per worker, after the ports started; owned by the worker.
//! *Threads*: the worker's alone. *Limits*: a device with fewer receive queues than workers is not polled by those
//! beyond; with fewer transmit queues than workers, its queues are shared under a spin lock.

use std::hint;
use std::mem::{self, MaybeUninit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dpdk_sys as sys;

use super::mbuf::Mbuf;
use super::mempool::Pool;
use crate::io::{Burst, Io, MAX_BURST, PortIdx};

const _: () = assert!(MAX_BURST <= sys::SHIM_BURST as usize, "the shim's arrays hold a whole burst");

/// All queue pairs of one worker.
#[derive(Debug)]
pub struct DpdkIo {
    /// By [`PortIdx`].
    pub(super) slots: Box<[Slot]>,
    pub(super) pool: Arc<Pool>,
}

/// One port as one worker uses it; the default is a port that is not there.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// DPDK's port id.
    pub(super) port: u16,
    /// Our receive queue; `None` where the device has too few.
    pub(super) rx: Option<u16>,
    /// Our transmit queue.
    pub(super) tx: Option<TxQueue>,
}

/// A transmit queue.
#[derive(Debug)]
pub(super) struct TxQueue {
    pub(super) queue: u16,
    /// Held while sending where several workers share the queue.
    pub(super) shared: Option<Arc<SpinLock>>,
}

/// The one lock of the dataplane: a device that has fewer transmit queues than there are workers asks for it.
#[derive(Debug, Default)]
pub(super) struct SpinLock(AtomicBool);

impl SpinLock {
    fn hold<T>(&self, act: impl FnOnce() -> T) -> T {
        while self.0.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            hint::spin_loop();
        }
        let result = act();
        self.0.store(false, Ordering::Release);
        result
    }
}

impl Io for DpdkIo {
    type Buf = Mbuf;

    fn rx_burst(&mut self, port: PortIdx, limit: usize, out: &mut Burst<Mbuf>) {
        let Some(&Slot { port, rx: Some(queue), .. }) = self.slots.get(usize::from(port.0)) else { return };
        let had = out.len();
        // Invariant: at most MAX_BURST (64), so it fits.
        let room = u16::try_from(limit.min(out.remaining_capacity())).unwrap_or(0);
        // SAFETY: `had <= capacity`, so the pointer stays inside the array's allocation or at its end.
        let tail = unsafe { out.as_mut_ptr().add(had) };
        // SAFETY: `port` is started and has queue `queue`, which no other thread polls (one `DpdkIo` per worker, made
        // once, and `&mut self`); `tail` has room for `room <= SHIM_BURST` values of `Mbuf`, which is a transparent
        // pointer to an mbuf.
        let got = unsafe { sys::shim_rx_burst(port, queue, tail.cast::<*mut sys::rte_mbuf>(), room) };
        // SAFETY: the shim returns at most `room` and has initialised so many elements behind the `had` first ones.
        unsafe { out.set_len(had + usize::from(got)) };
    }

    fn tx_burst(&mut self, port: PortIdx, bufs: &mut Burst<Mbuf>) {
        let Some(&Slot { port, tx: Some(ref tx), .. }) = self.slots.get(usize::from(port.0)) else { return };
        // Invariant: at most MAX_BURST (64), so it fits.
        let n = u16::try_from(bufs.len()).unwrap_or(0);
        let frames = bufs.as_ptr().cast::<*mut sys::rte_mbuf>();
        let send = || {
            // SAFETY: `port` is started and has queue `queue`, which this thread alone uses, by ownership or by the lock;
            // `frames` are `n <= SHIM_BURST` frames whose mbufs `bufs` owns. The device owns the first `sent` after.
            unsafe { sys::shim_tx_burst(port, tx.queue, frames, n, TX_TRIES) }
        };
        let sent = match &tx.shared {
            None => send(),
            Some(lock) => lock.hold(send),
        };
        if sent == n {
            // SAFETY: 0 is within the capacity; what was in the array belongs to the device and must not be dropped.
            unsafe { bufs.set_len(0) };
        } else {
            bufs.drain(..usize::from(sent)).for_each(mem::forget);
        }
    }

    fn alloc(&mut self) -> Option<Mbuf> {
        let mut one = MaybeUninit::<Mbuf>::uninit();
        // SAFETY: the pool is live (`self.pool`), and `one` is room for one frame, which `Mbuf` is.
        let ret = unsafe { sys::shim_alloc(self.pool.as_ptr(), one.as_mut_ptr().cast::<*mut sys::rte_mbuf>(), 1) };
        // SAFETY: shim_alloc returned 0, so it has written a frame, whose mbuf nobody else owns.
        (ret == 0).then(|| unsafe { one.assume_init() })
    }

    fn linearise(&mut self, mut buf: Mbuf) -> Result<Mbuf, Mbuf> {
        // SAFETY: the pool is live (`self.pool`), and `buf` owns its mbuf; whatever mbuf the frame names after is owned
        // by it alone, the old one being freed where it was replaced.
        let ret = unsafe { sys::shim_linearise(self.pool.as_ptr(), buf.pointer_mut()) };
        if ret == 0 { Ok(buf) } else { Err(buf) }
    }
}

/// Tries without progress before a burst's rest is given back.
const TX_TRIES: u32 = 8;
