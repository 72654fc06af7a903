//! Source and destination of one migration: carries a policy's orders out over a workload and a link.
#![forbid(unsafe_code)]

pub mod contract;
pub mod error;
pub mod journal;
mod link;
pub mod observer;
mod send;

pub use contract::{Mode, Outcome, Recover, Replica, Workload};
pub use error::{Error, Failure, Result, Whereabouts};
pub use journal::{Journals, Record};
pub use link::LINK_TIMEOUT;
pub use observer::{Observer, Phase, Progress, Round, DESTINATION_PHASES, SOURCE_PHASES};
