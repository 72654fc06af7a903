//! What to send, in which order, and when to switch: the decisions of a migration and nothing else.
//!
//! No I/O, no clock, no thread, no unsafe: the caller passes the time in and carries the orders out.
//! The engine and the simulator drive the same objects. `no_std + alloc` lets the compiler keep it so.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod balloon;
pub mod collect;
pub mod converge;
pub mod dirty;
pub mod estimate;
pub mod fact;
mod ledger;
pub mod migration;
pub mod packing;
pub mod pages;
pub mod postcopy;
pub mod predict;
mod progress;
pub mod skip;
pub mod strategy;
pub mod switchover;
pub mod teleport;
#[cfg(feature = "serde")]
pub mod trace;

pub use migration::{Event, Hints, Limits, Migration, MigrationError, Order, Scan, Sent};
pub use pages::{Page, PageRun, PageSet, Pages, RunTooLong, SpaceId, PAGE_SIZE};
pub use progress::{Phase, Progress, Round};
pub use strategy::{Auto, Hybrid, Passes, PostCopy, PreCopy, StopCopy, StopReason, Strategy};
