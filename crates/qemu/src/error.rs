//! What can go wrong with a machine.

use std::io;
use std::path::PathBuf;

use whimbrel_policy::RunTooLong;

use crate::qmp::QmpError;

/// One sentence that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A system call.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// It cannot move, or not to here.
    #[error("{0}")]
    Refused(String),
    /// A file.
    #[error("cannot {verb} {path}: {source}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the other end sent, or what a journal says.
    #[error(
        "{what} of the machine cannot be decoded ({source}); both ends must run the same release of whimbrel"
    )]
    Decode {
        /// What it should be.
        what: &'static str,
        /// Why not.
        source: postcard::Error,
    },
    /// More pages than a machine can have.
    #[error("the other end names pages that no machine can have ({0}); this is a bug or an attack")]
    Pages(RunTooLong),
    /// A call came out of order, or something does not fit together.
    #[error("{0}")]
    Unfit(String),
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, MachineError>;

impl From<RunTooLong> for MachineError {
    fn from(error: RunTooLong) -> Self {
        MachineError::Pages(error)
    }
}

impl MachineError {
    /// A file that could not be had.
    pub(crate) fn file(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> MachineError {
        let path = path.into();
        move |source| MachineError::File { verb, path, source }
    }

    /// One that does not decode.
    pub(crate) fn decode(what: &'static str) -> impl FnOnce(postcard::Error) -> MachineError {
        move |source| MachineError::Decode { what, source }
    }

    /// Why it cannot move.
    pub(crate) fn refused(sentence: impl Into<String>) -> MachineError {
        MachineError::Refused(sentence.into())
    }

    /// Something does not fit together.
    pub(crate) fn unfit(sentence: impl Into<String>) -> MachineError {
        MachineError::Unfit(sentence.into())
    }
}
