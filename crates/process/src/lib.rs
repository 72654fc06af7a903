//! A [`Workload`](whimbrel_engine::Workload) and a [`Replica`](whimbrel_engine::Replica) made of Linux processes.
//! The files are listed in ARCHITECTURE.md.
#![forbid(unsafe_code)]

mod calls;
pub mod capture;
pub mod check;
pub mod container;
pub mod cpu;
mod descriptors;
pub mod files;
pub mod layout;
pub mod nature;
mod objects;
pub mod pager;
pub mod rebuild;
pub mod recover;
pub mod refusal;
pub mod replica;
pub mod source;
pub mod spec;
pub mod state;
pub mod store;
pub mod stub;
pub mod survey;
pub mod tracker;
pub mod vdso;

pub use recover::ProcessRecover;
pub use replica::ProcessReplica;
pub use source::ProcessWorkload;
