//! Forwarding.
pub mod neighbour;
pub mod route;
