//! kernel (see ARCHITECTURE.md).
pub mod announce;
pub mod error;
pub mod fd;
pub mod freezer;
pub mod namespace;
pub mod netlink;
pub mod signal;
pub mod socket;
pub mod sparse;
pub mod spawn;
pub mod task;
