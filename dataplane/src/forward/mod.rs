//! Forwarding.
pub mod fragment;
pub mod icmp_error;
pub mod neighbour;
pub mod ranges;
pub mod route;
