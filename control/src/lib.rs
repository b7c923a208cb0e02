//! The process around the dataplane.
