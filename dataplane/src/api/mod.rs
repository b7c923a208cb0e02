//! The seam: all that `control` may import from this crate (`scripts/check.sh seam` greps for it).
//!
//! Policy and forwarding snapshots go in, commands and events pass through one channel pair per worker, counters are
//! read in place.

pub mod command;
pub mod histogram;
pub mod launch;
pub mod nat;
pub mod policy;
pub mod rules;
pub mod stats;

pub use crate::conntrack::tuple::{Direction, Tuple};
pub use crate::drop::DropReason;
pub use crate::forward::neighbour::NeighbourUpdate;
pub use crate::forward::route::{Fib, FibSpec, NextHop, RouteSpec, RouteTarget};
pub use crate::helper::ftp::Line as FtpLine;
pub use crate::helper::saved::{SavedSide, SavedSides};
pub use crate::helper::seqadj::{Edit, Parts as StreamParts, Text};
pub use crate::time::Nanos;
