//! Raw bindings to the part of DPDK that Sluice uses: nothing safe, nothing clever.
//!
//! `build.rs` lists every name. What DPDK defines inline, and every structure whose layout differs between releases,
//! is behind a `shim_*` function of `shim/shim.c`, documented in `shim/shim.h`.
//! `scripts/check-dpdk-headers` compiles all of it against another release's headers.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs, clippy::all, clippy::pedantic)]

use core::marker::{PhantomData, PhantomPinned};

/// A packet buffer of DPDK, seen by pointer only.
#[repr(C)]
pub struct rte_mbuf {
    _inside: [u8; 0],
    _foreign: PhantomData<(*mut u8, PhantomPinned)>,
}

/// A pool of packet buffers, seen by pointer only.
#[repr(C)]
pub struct rte_mempool {
    _inside: [u8; 0],
    _foreign: PhantomData<(*mut u8, PhantomPinned)>,
}

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
