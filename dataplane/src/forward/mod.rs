//! Forwarding.
pub mod fragment;
pub mod icmp_error;
pub mod neighbour;
pub mod route;
