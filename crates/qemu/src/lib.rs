//! A [`Workload`](whimbrel_engine::Workload) and a [`Replica`](whimbrel_engine::Replica) made of QEMU virtual machines: stock
//! QEMU, 7.2 and newer. The files are listed in ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod blocks;
pub mod device_state;
pub mod error;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod pager;
pub mod qmp;
pub mod recover;
pub mod replica;
pub mod running;
pub mod source;
pub mod spec;
pub mod tracker;
mod voice;
mod watch;

pub use error::MachineError;
pub use recover::QemuRecover;
pub use replica::{QemuReplica, ReplicaOptions};
pub use source::QemuWorkload;
