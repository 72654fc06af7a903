//! The only crate with unsafe Linux calls (see ARCHITECTURE.md).

pub mod announce;
pub mod caps;
pub mod cpu;
pub mod error;
pub mod fd;
pub mod features;
pub mod frames;
pub mod freezer;
pub mod identity;
pub mod maps;
pub mod memory;
pub mod namespace;
pub mod netlink;
pub mod pagemap;
pub mod pidfd;
pub mod proc;
pub mod ptrace;
pub mod remote;
pub mod signal;
pub mod socket;
pub mod sparse;
pub mod spawn;
pub mod task;
pub mod uffd;
