//! Any bytes as a frame: what `parse` promises of the packets that it finds.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::oracle::parses_repaired(data);
});
