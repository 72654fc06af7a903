//! What to send, in which order, and when to switch: the decisions of a migration and nothing else.
//!
//! No I/O, no clock, no thread, no unsafe: the caller passes the time in and carries the orders out.
//! The engine and the simulator drive the same objects. `no_std + alloc` lets the compiler keep it so.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod migration;
pub mod pages;

pub use migration::{Event, Limits, Migration, Order, Scan, Sent};
pub use pages::{PageRun, PageSet, Pages, SpaceId, PAGE_SIZE};
