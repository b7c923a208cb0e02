//! The heap twin of ports and buffers.
