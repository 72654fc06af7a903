//! The records of a book on a memory file system, so that whoever takes over after a dead controller knows what it knew.
//!
//! The first byte says whether somebody has taken events out of the kernel whose records are not written yet: if its writer died with it
//! set, nobody knows any more where pages belong. Then records follow, each behind its length. The last one may be cut off.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::book::Record;
use super::PagerError;

/// Of a length.
const LENGTH_BYTES: usize = 4;

type Result<T> = std::result::Result<T, PagerError>;

/// Its writer.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    end: u64,
    /// From here on the log does not tell everything.
    spoilt: bool,
}

/// What a log says.
#[derive(Debug)]
pub(super) struct Contents {
    pub log: Log,
    /// Its writer died at a moment after which nobody knows where pages belong.
    pub busy: bool,
    pub records: Vec<Record>,
}

fn failed<'a>(path: &'a Path, verb: &'static str) -> impl FnOnce(io::Error) -> PagerError + 'a {
    move |source| PagerError::Log {
        verb,
        path: path.to_owned(),
        source,
    }
}

impl Log {
    /// A new one with its first record.
    pub fn create(path: &Path, first: &Record) -> Result<Log> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(failed(path, "make"))?;
        let mut log = Log {
            path: path.to_owned(),
            file,
            end: 1,
            spoilt: false,
        };
        log.set_busy(false)?;
        log.append(first)?;
        Ok(log)
    }

    /// What is there; `None` if there is no log.
    pub fn read(path: &Path) -> Result<Option<Contents>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(path, "read")(e)),
        };
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(failed(path, "open"))?;
        let (records, end) = parse(bytes.get(1..).unwrap_or_default());
        let log = Log {
            path: path.to_owned(),
            file,
            end: 1 + end as u64,
            spoilt: false,
        };
        Ok(Some(Contents {
            log,
            busy: bytes.first() != Some(&0),
            records,
        }))
    }

    /// Events are about to be taken, or are all written down.
    pub fn set_busy(&mut self, busy: bool) -> Result<()> {
        let byte = [u8::from(busy || self.spoilt)];
        let written = self.file.write_all_at(&byte, 0);
        written.map_err(failed(&self.path, "write"))
    }

    /// Something will be unknown to whoever comes after us.
    pub fn spoil(&mut self) {
        self.spoilt = true;
        // The byte has its place: if even that fails, the next attempt to say it comes with the next event.
        let _ = self.set_busy(true);
    }

    pub fn append(&mut self, record: &Record) -> Result<()> {
        let encoded = postcard::to_stdvec(record).map_err(io::Error::other);
        let encoded = encoded.map_err(failed(&self.path, "write"))?;
        let mut bytes = Vec::with_capacity(LENGTH_BYTES + encoded.len());
        bytes.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&encoded);
        let written = self.file.write_all_at(&bytes, self.end);
        written.map_err(failed(&self.path, "write"))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Nothing is missing any more.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&self.path, "remove")(e)),
            _ => Ok(()),
        }
    }
}

/// The whole records, and how many bytes they take.
fn parse(bytes: &[u8]) -> (Vec<Record>, usize) {
    let (mut records, mut at) = (Vec::new(), 0);
    loop {
        let head = bytes.get(at..at + LENGTH_BYTES);
        let Some(length) = head.and_then(|head| head.try_into().ok()).map(u32::from_le_bytes) else {
            return (records, at);
        };
        let end = at + LENGTH_BYTES + length as usize;
        let body = bytes.get(at + LENGTH_BYTES..end);
        let Some(record) = body.and_then(|body| postcard::from_bytes(body).ok()) else {
            return (records, at);
        };
        records.push(record);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Span;
    use crate::pager::book::{Book, FIRST};

    fn records() -> Vec<Record> {
        let span = Span {
            start: 0x10_0000,
            end: 0x20_0000,
        };
        let moved = Record::Moved {
            space: FIRST,
            from: 0x10_0000,
            to: 0x30_0000,
            bytes: 0x1000,
        };
        vec![
            Record::Begin {
                missing: vec![(0x100, 0x100)],
                spans: vec![span],
                kept: Some(5),
            },
            moved,
            Record::Settled { space: FIRST },
            Record::Placed {
                first: 0x103,
                count: 7,
            },
        ]
    }

    fn book(records: &[Record]) -> Book {
        let mut book = Book::default();
        records
            .iter()
            .for_each(|record| drop(book.apply(record).unwrap()));
        book
    }

    #[test]
    fn who_reads_the_log_has_the_same_book_and_writes_on() {
        let path = std::env::temp_dir().join(format!("whimbrel-log-{}", std::process::id()));
        assert!(Log::read(&path).unwrap().is_none());
        let all = records();
        let mut log = Log::create(&path, &all[0]).unwrap();
        all[1..3].iter().for_each(|record| log.append(record).unwrap());
        let whole = fs::read(&path).unwrap();
        // Its writer was killed in the middle of the next one.
        log.append(&all[3]).unwrap();
        let mut cut = fs::read(&path).unwrap();
        cut.truncate(cut.len() - 1);
        assert!(cut.len() > whole.len());
        fs::write(&path, cut).unwrap();
        let contents = Log::read(&path).unwrap().unwrap();
        assert!(!contents.busy && contents.records == all[..3]);
        let mut log = contents.log;
        log.append(&all[3]).unwrap();
        log.set_busy(true).unwrap();
        let contents = Log::read(&path).unwrap().unwrap();
        assert!(contents.busy && book(&contents.records) == book(&all));
        log.set_busy(false).unwrap();
        log.spoil();
        log.set_busy(false).unwrap();
        assert!(
            Log::read(&path).unwrap().unwrap().busy,
            "it does not tell everything"
        );
        log.remove().unwrap();
        log.remove().unwrap();
        assert!(!path.exists());
    }
}
