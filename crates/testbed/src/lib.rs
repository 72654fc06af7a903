//! Two hosts on one machine: for `whimbrel demo`, the integration tests and the measurements.
//!
//! A host is a set of namespaces (PID, mount, network, UTS, IPC, cgroup) with a root tree of its own: an overlay
//! over the machine's tree whose writes go to a tmpfs, with `/tmp`, `/run`, `/dev/shm`, `/proc` and `/sys` of its own.
//! It has a bridge `br0` that holds the link to a switch. The switch and a client are network namespaces.
//!
//! ```text
//!     alpha: br0 10.77.0.1 -- eth0 ====\           /==== eth0 -- br0 10.77.0.2 :beta
//!                                       [ switch ]
//!                                           |
//!                                         eth0 10.77.0.100 :client
//! ```
//!
//! The two double lines are shaped, 1 Gbit/s each way unless told otherwise. IPv6: the same with `fd77::`.
//!
//! A [`Relay`] in the network of the client makes the way between the hosts longer, and can be cut.
//!
//! A host can also run a virtual machine ([`vm`]), whose guest checks itself.
//!
//! Everything lives and dies with the [`TwoHosts`] that made it, also when its owner is killed: each host's PID 1
//! waits for the end of a pipe.
#![forbid(unsafe_code)]

mod cgroup;
mod error;
mod host;
mod inventory;
mod network;
mod relay;
mod running;
mod two_hosts;

pub mod programs;
pub mod vm;

pub use error::{Error, Result};
pub use host::{Command, Host};
pub use inventory::Inventory;
pub use network::Traffic;
pub use relay::Relay;
pub use running::{Finished, Running};
pub use two_hosts::{at, Builder, TwoHosts, ALPHA, BETA, CLIENT, SHARED};
