//! IPv6 fragments of the input's choice, in both modes: the same datagram as a naive reassembler's, or the same refusal.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::reassembly::reassembles(true, &mut common::oracle::Input(data));
});
