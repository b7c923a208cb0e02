//! The gateway of the dataplane's own tests, as it stands there: heap ports, virtual time, one worker or several.
//!
//! *Sources*: `dataplane/tests/common/`, included, not copied.
#![allow(missing_docs, dead_code, clippy::cast_possible_truncation, clippy::disallowed_types)]
#![allow(clippy::too_many_arguments, clippy::precedence, clippy::wrong_self_convention)]

#[path = "../../dataplane/tests/common/lab.rs"]
pub mod gateway;
#[path = "../../dataplane/tests/common/pkt.rs"]
pub mod pkt;
#[path = "../../dataplane/tests/common/rules.rs"]
pub mod rules;
