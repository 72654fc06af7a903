//! What two ends of a migration say to each other: handshake, messages, pages. No sockets of its own: everything
//! works over [`std::io::Read`] and [`std::io::Write`], and the caller sets the time limits.
//!
//! | module | what |
//! |---|---|
//! | [`key`] | the one-time key and the migration's id |
//! | [`handshake`] | the first words on every connection: version and proof of the key |
//! | [`frame`] | the header before everything else, and the limits |
//! | [`control`] | messages |
//! | [`bulk`] | layouts and pages |
//! | [`pack`] | pages packed together |
//! | [`wish`] | faults and acknowledgements of post-copy |
//!
//! Whatever arrives is hostile: no input makes a decoder panic, and none makes it reserve memory beyond what has arrived.
#![forbid(unsafe_code)]

pub mod bulk;
pub mod control;
pub mod error;
pub mod frame;
pub mod handshake;
#[doc(hidden)]
pub mod hostile;
pub mod key;
pub mod pack;
pub mod wish;

pub use bulk::{Bulk, BulkReader, BulkWriter};
pub use control::{write_message, DestinationTimes, Message, MessageDecoder, Sentence};
pub use error::{Error, Result};
pub use frame::{Run, FRAME_PAGES_MAX, PAGE_BYTES};
pub use handshake::{initiate, respond, Greeting, StreamKind, Versions};
pub use key::{Key, MigrationId};
pub use pack::Packer;
pub use wish::{write_wishes, FaultTimes, Latency, Wish, WishReader};
