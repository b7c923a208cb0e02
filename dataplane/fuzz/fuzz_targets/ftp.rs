//! Any text as a control connection's: read whole and in pieces, see `talk::reads`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::talk::reads(data);
});
