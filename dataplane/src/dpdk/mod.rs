//! DPDK: the EAL, the pool, ports and their queues, mbufs, and the threads that poll.
//!
//! The only place of this crate with `unsafe`. All that leaves it is safe to use in any order: a queue pair exists once
//! and belongs to one worker, an [`mbuf::Mbuf`] is freed once, and memory outlives what points into it (see
//! `mempool`).
//!
//! *Life-cycle*: `runtime::Runtime` owns everything, `crate::api::launch` starts and stops it.

pub(crate) mod eal;
mod io;
mod lcore;
pub mod mbuf;
pub(crate) mod mempool;
mod port;
pub(crate) mod runtime;

pub use io::DpdkIo;
pub use lcore::WorkerLoop;

use std::ffi::{CStr, c_int};

use crate::api::launch::DpdkError;

/// A call's result: negative is an error number, as most of DPDK returns it.
fn check(call: &'static str, ret: c_int) -> Result<c_int, DpdkError> {
    if ret < 0 { Err(error(call, -ret)) } else { Ok(ret) }
}

/// The error `errno` of `call` in words.
fn error(call: &'static str, errno: c_int) -> DpdkError {
    // SAFETY: rte_strerror takes any number and returns a NUL-terminated string, constant or of this thread, that stays
    // until this thread calls it again; it is copied on the next line.
    let text = unsafe { dpdk_sys::rte_strerror(errno) };
    // SAFETY: `text` is not null and NUL-terminated, by the line above.
    let text = unsafe { CStr::from_ptr(text) };
    DpdkError { call, errno, text: text.to_string_lossy().into_owned() }
}

/// The error that `rte_errno` holds after `call` failed.
fn last_error(call: &'static str) -> DpdkError {
    // SAFETY: shim_errno reads a thread-local and has no precondition.
    let errno = unsafe { dpdk_sys::shim_errno() };
    error(call, errno)
}

/// DPDK's version: `DPDK 22.11.11`.
pub fn version() -> String {
    // SAFETY: shim_version has no precondition and returns a constant NUL-terminated string.
    let text = unsafe { dpdk_sys::shim_version() };
    // SAFETY: `text` is not null and NUL-terminated, by the line above.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}
