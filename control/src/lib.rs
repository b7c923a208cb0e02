//! The process around the dataplane.

pub mod config;
