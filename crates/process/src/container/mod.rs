//! A workload's surroundings: its namespaces with their first process (init), its control group, its network, its log. Made by
//! `run` for a new workload and by the destination for one that arrives.
//!
//! ```text
//! controller                         init (PID 1 of the workload's PID namespace)
//! Plan: names chosen, nothing made
//! Container::create  -- Setup -----> new namespaces, clocks; a fork of it is PID 1
//!                    <- Launched --
//!                    -- Proceed ---> own session, own /proc
//!                    <- Ready -----
//! run                -- Run -------> child in the control group, log as its output      <- Started
//! or spawn_stub      -- Stub ------> child with that PID, idle, in the control group    <- Started
//! survive            -- Survive ---> from here on it outlives the controller            <- Done
//! ```
//!
//! Before `survive` the end of the controller is the end of init, and with it of everything in the namespace. When the workload
//! ends, init notes how, removes the control group and ends; its network goes with the namespace.

mod clocks;
mod control;
mod create;
mod frames;
pub mod init;
pub mod log;
mod network;
mod registry;
mod resources;
mod spec;

use std::io;
use std::path::Path;

pub use clocks::Clocks;
pub use create::{Command, Container, Keeper, Options, Plan, Started};
pub use frames::Frames;
pub use network::{announce, announce_repeatedly, unlock, Introduction, Lock, ANNOUNCE_PAUSES};
pub use registry::{note_trouble, Entry, Exit, Phase, Registry};
pub use resources::{end, note_started, NetworkResources, Resources};
pub use spec::{Address, ContainerSpec, NetworkSpec, Route};
pub use whimbrel_kernel::identity::Identity;

/// What can go wrong with a container: one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// A file could not be read or written.
    #[error("cannot {what}: {source}")]
    File {
        /// What was tried, with the path.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// This host or this input does not allow it; the sentence says what to do.
    #[error("{0}")]
    Refused(String),
    /// Init reported a failure, or does not answer.
    #[error("{0}")]
    Init(String),
}

/// The result of the functions here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn file(verb: &str, path: &Path, source: io::Error) -> Self {
        Self::File {
            what: format!("{verb} {}", path.display()),
            source,
        }
    }

    fn refused(sentence: impl Into<String>) -> Self {
        Self::Refused(sentence.into())
    }
}

/// As many random bytes as `N`, in lower-case hexadecimal.
fn random_hex<const N: usize>() -> Result<String> {
    Ok(random::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::File {
        what: "get random bytes".to_owned(),
        source: io::Error::other(e.to_string()),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
