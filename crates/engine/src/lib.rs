//! Source and destination of one migration: carries a policy's orders out over a workload and a link.
#![forbid(unsafe_code)]

pub mod contract;

pub use contract::{Mode, Outcome, Recover, Replica, Workload};
