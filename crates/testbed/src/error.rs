//! What can go wrong while hosts are made and used.

use std::io;
use std::time::Duration;

/// Why a host, a link or a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something, or refused.
    #[error("{what}: {reason}; hosts need root, namespaces and the programs that scripts/setup installs")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// The answer.
        reason: io::Error,
    },
    /// A command ran and failed.
    #[error("`{command}` on {host} failed ({status}): {output}")]
    Failed {
        /// The command line.
        command: String,
        /// Where.
        host: String,
        /// Its exit status in words.
        status: String,
        /// Both of its outputs.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}; so far: {seen}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen instead.
        seen: String,
    },
    /// Something was left behind that was not there before, or is gone.
    #[error("not as before:\n{0}")]
    NotAsBefore(String),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was tried when an I/O operation fails.
pub(crate) trait Doing<T> {
    /// `what` is a phrase such as "cannot read /proc/1/stat".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|reason| Error::Io { what: what(), reason })
    }
}
