//! Why a workload cannot move: one sentence that names what stands in the way and what to do about it.

use std::fmt;

/// What stands in the way. PIDs and TIDs are those that the operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A process.
    Process {
        /// Its PID.
        pid: i32,
    },
    /// One of its threads.
    Thread {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
    },
    /// One of its descriptors.
    Descriptor {
        /// The process.
        pid: i32,
        /// The number.
        fd: i32,
    },
    /// One of its mappings.
    Mapping {
        /// The process.
        pid: i32,
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Process { pid } => write!(out, "process {pid}"),
            Subject::Thread { pid, tid } => write!(out, "thread {tid} of process {pid}"),
            Subject::Descriptor { pid, fd } => write!(out, "descriptor {fd} of process {pid}"),
            Subject::Mapping { pid, start, end } => {
                write!(out, "mapping {start:#x}-{end:#x} of process {pid}")
            }
        }
    }
}

/// A reason not to move, found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject} {what}: {cure}")]
pub struct Refusal {
    /// What stands in the way.
    pub subject: Subject,
    /// What is wrong with it, a phrase that begins with a verb.
    pub what: String,
    /// What the operator can do.
    pub cure: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(subject: Subject, what: impl Into<String>, cure: impl Into<String>) -> Refusal {
        Refusal {
            subject,
            what: what.into(),
            cure: cure.into(),
        }
    }
}
