//! What whole-worker tests share: packets to build and read ([`pkt`]), a gateway to send them through ([`lab`]), and what
//! must hold for any bytes at all ([`oracle`], [`reassembly`], of which property tests and fuzz targets are made).
#![allow(dead_code, clippy::cast_possible_truncation, clippy::disallowed_types, clippy::too_many_arguments)]
#![allow(clippy::precedence, clippy::wrong_self_convention)]

pub mod calls;
pub mod frag;
pub mod ftp;
pub mod lab;
pub mod oracle;
pub mod pkt;
pub mod pptp;
pub mod reassembly;
pub mod right;
pub mod rules;
pub mod session;
pub mod talk;
pub mod ways;
