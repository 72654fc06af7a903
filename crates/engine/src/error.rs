//! Why a migration or a recovery failed, in sentences for the user.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use whimbrel_wire::{Message, Sentence};

/// What went wrong. Where the workload is afterwards stands beside it in [`Failure`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made.
    #[error("cannot reach the destination {address}: {cause}: is `whimbrel receive` running there, and listening on that address?")]
    Unreachable {
        /// The address as the user gave it.
        address: String,
        /// What the system says.
        cause: io::Error,
    },
    /// The handshake failed: version, key, or no whimbrel at all.
    #[error("{peer}: {cause}")]
    Handshake {
        /// The other end's address.
        peer: String,
        /// What does not fit.
        cause: whimbrel_wire::Error,
    },
    /// The connection broke.
    #[error("the connection to {peer} was lost: {cause}")]
    Link {
        /// The other end's address.
        peer: String,
        /// How.
        cause: whimbrel_wire::Error,
    },
    /// The other end is connected but says nothing any more.
    #[error("{peer} has said nothing for {} seconds: its host or the network is gone", .silence.as_secs())]
    Silent {
        /// The other end's address.
        peer: String,
        /// The link's time limit.
        silence: Duration,
    },
    /// The destination cannot take the workload.
    #[error("the destination refuses: {0}")]
    Refused(Sentence),
    /// The other end failed and said why.
    #[error("the other end gave up: {0}")]
    Aborted(Sentence),
    /// The source wanted to know whether its workload could come, and nothing else.
    #[error("the source only asked")]
    OnlyAsked,
    /// Padding came through too fast or too late to say anything of the link.
    #[error("the rate of the link could not be measured: try again")]
    Unmeasured,
    /// The other end said something that has no place here.
    #[error(
        "the other end said {got} where {expected} was expected: install the same release on both hosts"
    )]
    Unexpected {
        /// The message's name.
        got: &'static str,
        /// What would have been right.
        expected: &'static str,
    },
    /// The other end lives but does not answer.
    #[error("the other end has not sent {expected} within {} seconds", .waited.as_secs())]
    Late {
        /// What is missing.
        expected: &'static str,
        /// How long we waited.
        waited: Duration,
    },
    /// Destination: the source lost us and asks what became of the migration, which ends it.
    #[error("the source lost the connection and takes the workload back")]
    Queried,
    /// The destination did not start the workload and never will.
    #[error("the destination has given this migration up")]
    Fenced,
    /// The destination does not answer after the offer.
    #[error("it is not known whether {workload} runs at the destination: it stays frozen here until the destination answers; if you are sure that it does not run there, `whimbrel resume {id} --here --force` takes it back")]
    Undecided {
        /// The migration.
        id: whimbrel_wire::MigrationId,
        /// The workload's name.
        workload: String,
    },
    /// Destination: it runs here, but the source may not know it yet.
    #[error("the workload runs here, but {source_address} has not confirmed it: its journal is kept until the source asks")]
    Unconfirmed {
        /// The source's address.
        source_address: String,
    },
    /// Source: it runs at the destination, which still lacks pages that are here.
    #[error("{workload} runs at the destination, but pages of its memory are still here ({why}): the frozen copy is kept for them; see `whimbrel ps`, and `whimbrel resume {id}` goes on sending")]
    Unserved {
        /// The migration.
        id: whimbrel_wire::MigrationId,
        /// The workload's name.
        workload: String,
        /// Why nobody sends them now.
        why: String,
    },
    /// Destination: it had to be ended, since its memory cannot be had; its own sentence.
    #[error("{0}")]
    Ended(String),
    /// The user does not want it any more.
    #[error("cancelled")]
    Cancelled,
    /// The workload or the replica failed; its own sentence.
    #[error("{0}")]
    Workload(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A journal could not be written, read or locked.
    #[error("the journal {} could not be {what}: {cause}", .path.display())]
    Journal {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        cause: io::Error,
    },
    /// Another process acts on this migration.
    #[error("another whimbrel process is working on migration {id}: wait for it, or end it first")]
    Busy {
        /// The migration.
        id: whimbrel_wire::MigrationId,
    },
    /// The decisions and their carrying out do not fit together: a fault of this program.
    #[error("a fault inside whimbrel ({0}): please report it")]
    Internal(String),
    /// A socket could not be set up.
    #[error("cannot {what}: {cause}")]
    Socket {
        /// What was tried.
        what: String,
        /// What the system says.
        cause: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}: too many processes or too little memory on this host")]
    Thread(io::Error),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps the error of a workload, a replica or a recovery.
    pub fn workload(e: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Workload(Box::new(e))
    }

    /// True if the other end may still wait for a word that does not reach it on this connection.
    pub(crate) fn is_lost_link(&self) -> bool {
        matches!(self, Error::Link { .. } | Error::Silent { .. } | Error::Queried)
    }

    /// The other host answers, but nobody listens there.
    pub(crate) fn is_connection_refused(&self) -> bool {
        matches!(self, Error::Unreachable { cause, .. } if cause.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(crate) fn unexpected(got: &Message, expected: &'static str) -> Self {
        Error::Unexpected {
            got: got.name(),
            expected,
        }
    }

    /// What the other end may be told.
    pub(crate) fn sentence(&self) -> Sentence {
        Sentence::new(&self.to_string())
    }
}

/// Where the workload is after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// At the source, and nothing there was touched.
    Untouched,
    /// At the source, where it runs on.
    Source,
    /// Frozen at the source: the destination was asked to start it and has not answered. It is not known yet where
    /// it runs; a guardian goes on asking.
    Undecided,
    /// It runs at the destination, but something after that failed.
    Destination,
}

/// A migration that did not go as wished.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// Where the workload is now.
    pub whereabouts: Whereabouts,
}
