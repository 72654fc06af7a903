//! What can go wrong between two ends, in sentences.

use std::io;

use crate::handshake::Versions;

/// Why a stream cannot be used any further. None of them can be mended on the same connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer ended the connection between two messages.
    #[error("the other end closed the connection")]
    Closed,
    /// The peer ended the connection inside a message.
    #[error("the connection broke off in the middle of a message")]
    BrokenOff,
    /// Reading or writing failed, or timed out.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// The first bytes are not ours.
    #[error("what answers there is not whimbrel: check the address and the port")]
    NotWhimbrel,
    /// No protocol version that both ends speak.
    #[error("the versions do not fit: this whimbrel speaks protocol {ours}, the other end {theirs}: install the same release on both hosts")]
    Version {
        /// What this end speaks.
        ours: Versions,
        /// What the peer speaks.
        theirs: Versions,
    },
    /// The peer did not prove that it knows our key.
    #[error("the other end does not know the key of this migration: check that the key is the one that `whimbrel receive` printed")]
    WrongKey,
    /// The peer says that our proof is wrong.
    #[error("the other end refused the key: use the key that `whimbrel receive` printed for this migration")]
    KeyRefused,
    /// The peer talks to itself, or somebody sends our own words back.
    #[error("the other end sent our own greeting back: the address leads to this end itself")]
    Reflected,
    /// A field of a frame has a value that this version does not know.
    #[error("the other end sent something that this version does not understand ({what} {value}): install the same release on both hosts")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A length is over its limit.
    #[error("the other end announced {what} of {bytes} bytes, and at most {bytes_max} are allowed")]
    TooLong {
        /// What would be too long.
        what: &'static str,
        /// The length announced.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A frame's content does not have the shape that its kind demands.
    #[error("the other end sent a damaged message ({what})")]
    Damaged {
        /// Which message.
        what: &'static str,
    },
    /// The system gave no random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(String),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// True if a read or write ended because nothing moved within the socket's time limit.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::BrokenOff,
            _ => Error::Io(e),
        }
    }
}
