//! A talk over a control connection through whole workers: the input says what is said, cut, lost and repeated, see
//! `talk::talks`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::talk::talks(&mut common::oracle::Input(data));
});
