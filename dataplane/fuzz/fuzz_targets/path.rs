//! Whole workers on heap ports: the input is a course of events, see `oracle::survives`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::oracle::survives(&mut common::oracle::Input(data));
});
