//! What whole-worker tests share: packets to build and read ([`pkt`]), a gateway to send them through ([`lab`]).
#![allow(dead_code, clippy::cast_possible_truncation, clippy::disallowed_types)]

pub mod lab;
pub mod pkt;
