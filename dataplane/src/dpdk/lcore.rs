//! A worker's thread: registers with DPDK, sits on its CPU, and steps its loop until that says it is stopping.
//!
//! *Threads*: everything here runs on the worker's own thread.

use std::{hint, thread};

use dpdk_sys as sys;

use super::io::DpdkIo;
use super::{check, last_error};
use crate::api::launch::LaunchError;
use crate::poll::{BackOff, Rest};
use crate::time::{Clock, Nanos};
use crate::worker::Worker;

/// What a worker thread drives: implemented by the worker.
pub trait WorkerLoop: Send + 'static {
    /// One turn of the loop; whether it moved any packet.
    fn step(&mut self, now: Nanos) -> bool;

    /// Whether the worker was told to stop.
    fn stopping(&self) -> bool;
}

/// This thread as DPDK knows it: with an lcore id, hence with mempool caches. Not `Send`: it is about one thread.
#[derive(Debug)]
pub(super) struct Lcore(std::marker::PhantomData<*const ()>);

impl Lcore {
    /// Makes the calling thread an lcore and puts it on `cpu`.
    pub(super) fn register(worker: usize, cpu: usize) -> Result<Self, LaunchError> {
        // SAFETY: called once per thread, after rte_eal_init (workers are spawned with the EAL held by the runtime).
        let ret = unsafe { sys::rte_thread_register() };
        if ret < 0 {
            return Err(LaunchError::Thread { worker, cpu, source: last_error("rte_thread_register") });
        }
        let lcore = Self(std::marker::PhantomData);
        let number = u32::try_from(cpu).unwrap_or(u32::MAX);
        // SAFETY: shim_pin takes any number (it refuses those that no CPU set holds) and concerns this thread alone.
        let ret = unsafe { sys::shim_pin(number) };
        check("rte_thread_set_affinity", ret).map_err(|source| LaunchError::Thread { worker, cpu, source })?;
        Ok(lcore)
    }
}

impl Drop for Lcore {
    fn drop(&mut self) {
        // SAFETY: this thread was registered by `register`, and `Lcore` does not leave its thread.
        unsafe { sys::rte_thread_unregister() };
    }
}

impl WorkerLoop for Worker<DpdkIo> {
    fn step(&mut self, now: Nanos) -> bool {
        Self::step(self, now)
    }

    fn stopping(&self) -> bool {
        Self::stopping(self)
    }
}

/// Steps `work` until it stops, and waits as `back_off` says after turns that found nothing.
pub(super) fn run(work: &mut impl WorkerLoop, clock: Clock, mut back_off: BackOff) {
    while !work.stopping() {
        if work.step(clock.now()) {
            back_off.moved();
            continue;
        }
        match back_off.rest() {
            Rest::Spin => {}
            Rest::Pause => hint::spin_loop(),
            Rest::Yield => thread::yield_now(),
            Rest::Sleep(time) => thread::sleep(time),
        }
    }
}
