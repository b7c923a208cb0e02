//! The same frames through the Linux kernel and through Sluice, compared packet by packet.
//!
//! A [`scenario`] or the [`generator`] says what is sent; a [`runner::Run`] sends it through a reference, which is a kernel
//! router in a namespace ([`kernel`]) or a [`record`] of one, and through Sluice ([`inprocess`]), and
//! [`compare`]s what each [`observe`]d: what left, the packet's class, the connection's state afterwards. What differs on
//! purpose is [`explained`].
//!
//! A tool for those who work on Sluice; nothing of it ships.

pub mod compare;
pub mod explained;
pub mod frame;
pub mod generator;
pub mod inprocess;
pub mod kernel;
mod lab;
pub mod namespace;
pub mod observe;
pub mod packet;
pub mod policy;
pub mod portmap;
pub mod process;
pub mod record;
pub mod runner;
pub mod scenario;
pub mod seeds;
