//! The log of a workload: the file that its output is added to. It moves along: what is there before the freeze travels
//! early, what came since then travels with the state.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// As much as a log keeps when it moves, in bytes.
pub const TAIL_MAX: u64 = 16 << 20;

/// A piece of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// So many bytes before it were left behind because they were too many.
    pub cut: u64,
    /// What was written.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Where the next piece begins, as an offset in the source's file.
    pub next: u64,
}

/// What was written from `from` on; of more than `most` bytes the last ones.
pub fn read(path: &Path, from: u64, most: u64) -> Result<Chunk> {
    let failed = |e| Error::file("read the log", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // Somebody emptied the file (logrotate): all of it is new.
    let from = if from > length { 0 } else { from };
    let cut = (length - from).saturating_sub(most);
    file.seek(SeekFrom::Start(from + cut)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(length - from - cut)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let next = from + cut + bytes.len() as u64;
    Ok(Chunk { cut, bytes, next })
}

/// Adds a piece, with a line that tells of what was left behind.
pub fn append(path: &Path, chunk: &Chunk) -> Result<()> {
    let failed = |e| Error::file("write the log", path, e);
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)?;
    if chunk.cut > 0 {
        writeln!(
            file,
            "[whimbrel: {} bytes before this were left behind when the workload moved]",
            chunk.cut
        )
        .map_err(failed)?;
    }
    file.write_all(&chunk.bytes).map_err(failed)
}
