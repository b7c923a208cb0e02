//! PPTP through whole workers: the input says what is said, cut, lost, repeated and broken, and which GRE packets come, see
//! `calls::talks`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    common::calls::talks(&mut common::oracle::Input(data));
});
