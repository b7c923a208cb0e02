//! Connection tracking.
pub mod timeouts;
pub mod tuple;
