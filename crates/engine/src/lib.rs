//! Source and destination of one migration: carries a policy's orders out over a workload and a link.
#![forbid(unsafe_code)]

pub mod contract;
pub mod destination;
mod destination_switch;
mod door;
pub mod error;
mod failures;
mod fetch;
pub mod guardian;
mod inbox;
mod intake;
pub mod journal;
mod link;
mod measure;
pub mod observer;
mod residual;
mod rounds;
mod send;
mod serve;
pub mod source;
mod source_switch;
pub mod summary;
mod trace;
pub mod waiters;

pub use contract::{
    Left, Mode, Nature, Never, News, Outcome, PageStore, Pager, Recover, Replica, Tell, Workload,
};
pub use destination::{Incoming, ReceiveOptions, Reception};
pub use error::{Error, Failure, Result, Whereabouts};
pub use guardian::{recover_stale, take_over, GuardianOptions, Settled};
pub use journal::{Journals, Record, Role, State};
pub use link::LINK_TIMEOUT;
pub use measure::Measurement;
pub use observer::{Observer, Phase, Progress, Round, DESTINATION_PHASES, SOURCE_PHASES};
pub use residual::{ResidualOptions, ResidualProgress, RECONNECT_FOR};
pub use source::{measure, migrate, SourceOptions};
pub use summary::{JsonLines, Predicted, Received, ResidualSummary, Summary};
pub use trace::Trace;
pub use whimbrel_policy::postcopy::{Named as Prepaging, NotAnOrder, PIVOTS_MAX};
