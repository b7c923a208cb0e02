//! An ICMP error of the input's choice translated with what it quotes, and back.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::oracle::translates_error_chosen(data);
});
