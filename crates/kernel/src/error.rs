//! What can go wrong in a system call.

use std::io;

/// A failed system call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error("cannot {what}: {source}")]
    Call {
        /// What was tried, with its target.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The result of most functions here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failed call.
    pub fn call(what: impl Into<String>, source: io::Error) -> Self {
        Self::Call {
            what: what.into(),
            source,
        }
    }
    /// Anything else.
    pub fn other(what: impl Into<String>) -> Self {
        Self::Other(what.into())
    }
    /// The error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { source, .. } => source.raw_os_error(),
            Self::Other(_) => None,
        }
    }
}
