//! A packet of the input's choice translated to a tuple of its choice, and back.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::oracle::translates_chosen(data);
});
