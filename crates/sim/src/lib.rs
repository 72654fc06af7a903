//! A simulator of migrations: imagined workloads, links and a clock under the policy objects that the engine drives.
//!
//! A scenario is a TOML file ([`Scenario`]); [`simulate`] runs it in virtual time and gives an [`Outcome`]. The same scenario and seed
//! give the same outcome, on every machine.
#![forbid(unsafe_code)]

pub mod chart;
pub mod manager;
mod outcome;
pub mod papers;
pub mod replay;
pub mod report;
mod scenario;
pub mod sweep;
mod world;

pub use outcome::{Outcome, Pause, Predicted, Sample, SimRound};
pub use scenario::{Scenario, ScenarioError};
pub use world::simulate;
