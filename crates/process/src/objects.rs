//! Shared memory objects at the source: memfds, shared anonymous memory, files that are carried.
//!
//! Write protection does not see all writes to them (another mapping, write(2) on a descriptor), so they are compared:
//! a hash of every page as it was last read for sending is kept, and once the workload is frozen, what hashes to
//! something else has been written. While it runs each object is reported once, when it is first seen.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use whimbrel_kernel::sparse;
use whimbrel_policy::{PageRun, SpaceId, PAGE_SIZE};
use xxhash_rust::xxh3::xxh3_128;

use crate::layout::{ObjectKind, SharedObject, Span};
use crate::state::FileId;

/// How much is read at once for comparing: stays in the cache.
const CHUNK_BYTES: u64 = 256 << 10;

/// A failure with an object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Its file cannot be opened or read.
    #[error("cannot read the shared memory object {name} of the workload ({source}); whimbrel needs CAP_SYS_ADMIN for it")]
    Read {
        /// How `/proc/pid/maps` calls it.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
}

/// An object that was found in the maps or among the descriptors of the workload.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its identity.
    pub id: FileId,
    /// What it is.
    pub kind: ObjectKind,
    /// Where it can be opened: `/proc/pid/fd/N` or `/proc/pid/map_files/RANGE`.
    pub place: PathBuf,
}

/// The shared objects of a workload.
#[derive(Debug, Default)]
pub struct Objects {
    known: BTreeMap<u32, Known>,
    spaces: HashMap<FileId, u32>,
    last_space: u32,
}

#[derive(Debug)]
struct Known {
    layout: SharedObject,
    file: File,
    /// Hash of each page as it was last read for sending.
    sent: HashMap<u64, u128>,
    reported: bool,
}

/// What a scan found in the objects.
#[derive(Debug, Default)]
pub struct ObjectScan {
    /// Pages that are new or have changed.
    pub written: Vec<PageRun>,
    /// Pages that hold data.
    pub present: Vec<PageRun>,
}

impl Objects {
    /// Takes over which objects exist now. Those that are gone are forgotten, and their space is never used again.
    ///
    /// # Errors
    /// An object that cannot be opened.
    pub fn update(&mut self, found: &[Found]) -> Result<(), ObjectError> {
        let seen: HashMap<FileId, &Found> = found.iter().map(|f| (f.id, f)).collect();
        self.known.retain(|_, known| seen.contains_key(&known.layout.id));
        self.spaces.retain(|id, _| seen.contains_key(id));
        for found in found {
            if !self.spaces.contains_key(&found.id) {
                self.add(found)?;
            }
        }
        for known in self.known.values_mut() {
            known.refresh()?;
        }
        Ok(())
    }

    fn add(&mut self, found: &Found) -> Result<(), ObjectError> {
        let unreadable = |source| ObjectError::Read {
            name: found.place.display().to_string(),
            source,
        };
        let file = File::open(&found.place).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        self.last_space += 1;
        let layout = SharedObject {
            space: self.last_space,
            id: found.id,
            kind: found.kind.clone(),
            size,
        };
        self.spaces.insert(found.id, self.last_space);
        let known = Known {
            layout,
            file,
            sent: HashMap::new(),
            reported: false,
        };
        self.known.insert(self.last_space, known);
        Ok(())
    }

    /// The objects for the layout, ascending by space.
    pub fn layout(&self) -> Vec<SharedObject> {
        self.known.values().map(|k| k.layout.clone()).collect()
    }

    /// The space of an object.
    pub fn space(&self, id: FileId) -> Option<u32> {
        self.spaces.get(&id).copied()
    }

    /// While the workload runs: the data of the objects that were not reported yet.
    ///
    /// # Errors
    /// What lseek(2) gives.
    pub fn scan_running(&mut self) -> Result<Vec<PageRun>, ObjectError> {
        let mut runs = Vec::new();
        for known in self.known.values_mut().filter(|k| !k.reported) {
            runs.extend(known.data()?);
            known.reported = true;
        }
        Ok(runs)
    }

    /// When it is frozen: compares everything with what was sent.
    ///
    /// # Errors
    /// An object that cannot be read.
    pub fn scan_frozen(&mut self) -> Result<ObjectScan, ObjectError> {
        let mut scan = ObjectScan::default();
        for known in self.known.values() {
            let present = known.data()?;
            for run in &present {
                known.compare(run, &mut scan.written)?;
            }
            scan.present.extend(present);
        }
        Ok(scan)
    }

    /// Reads the pages of `run` for sending and remembers what they held. `false` if they are not there (any more).
    pub fn read(&mut self, run: &PageRun, buffer: &mut [u8]) -> bool {
        let Some(known) = self.known.get_mut(&run.space.0) else {
            return false;
        };
        if known.read(run.first, buffer).is_err() {
            return false;
        }
        for (page, bytes) in (run.first..).zip(buffer.chunks_exact(PAGE_SIZE as usize)) {
            known.sent.insert(page, xxh3_128(bytes));
        }
        true
    }

    /// Forgets what was sent: the migration failed, and the next one begins anew.
    pub fn clear(&mut self) {
        *self = Objects::default();
    }
}

impl Known {
    fn refresh(&mut self) -> Result<(), ObjectError> {
        let metadata = self.file.metadata().map_err(|e| self.unreadable(e))?;
        self.layout.size = metadata.len();
        match &mut self.layout.kind {
            ObjectKind::Memfd { seals, .. } => *seals = sparse::seals(&self.file)?,
            ObjectKind::CarriedFile { mode, uid, gid, .. } => {
                (*mode, *uid, *gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
            }
            ObjectKind::SharedAnonymous | ObjectKind::Unlinked { .. } => {}
        }
        Ok(())
    }

    fn unreadable(&self, source: io::Error) -> ObjectError {
        let name = match &self.layout.kind {
            ObjectKind::Memfd { name, .. } => format!("/memfd:{name}"),
            ObjectKind::SharedAnonymous => "of MAP_SHARED | MAP_ANONYMOUS".to_owned(),
            ObjectKind::Unlinked { path } | ObjectKind::CarriedFile { path, .. } => path.clone(),
        };
        ObjectError::Read { name, source }
    }

    fn data(&self) -> Result<Vec<PageRun>, ObjectError> {
        let space = SpaceId(self.layout.space);
        let ranges = sparse::data_ranges(&self.file, self.layout.size)?;
        let mut spans = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            let first = start - start % PAGE_SIZE;
            crate::layout::push_span(
                &mut spans,
                Span {
                    start: first,
                    end: end.next_multiple_of(PAGE_SIZE),
                },
            );
        }
        Ok(spans.iter().map(|s| s.run(space)).collect())
    }

    /// Fills `buffer` from page `first` on; what lies beyond the end of the object reads as zeros.
    fn read(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut done, start) = (0, first * PAGE_SIZE);
        while let Some(rest) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.file.read_at(rest, start + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Adds the pages of `run` that differ from what was sent.
    fn compare(&self, run: &PageRun, written: &mut Vec<PageRun>) -> Result<(), ObjectError> {
        let mut buffer = vec![0; (run.count * PAGE_SIZE).min(CHUNK_BYTES) as usize];
        let chunk_pages = CHUNK_BYTES / PAGE_SIZE;
        let mut first = run.first;
        while first < run.first + run.count {
            let count = (run.first + run.count - first).min(chunk_pages);
            let bytes = buffer.get_mut(..(count * PAGE_SIZE) as usize).unwrap_or_default();
            self.read(first, bytes).map_err(|e| self.unreadable(e))?;
            for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_SIZE as usize)) {
                if self.sent.get(&page) != Some(&xxh3_128(bytes)) {
                    push_page(written, run.space, page);
                }
            }
            first += count;
        }
        Ok(())
    }
}

/// Appends one page, joining it with the run before.
fn push_page(runs: &mut Vec<PageRun>, space: SpaceId, page: u64) {
    match runs.last_mut() {
        Some(last) if last.space == space && last.first + last.count == page => last.count += 1,
        _ => runs.push(PageRun {
            space,
            first: page,
            count: 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A file in memory that stands in for a workload's object.
    fn object(name: &str) -> (Found, File, PathBuf) {
        let path = PathBuf::from(format!("/dev/shm/whimbrel-objects-{}-{name}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let metadata = file.metadata().unwrap();
        let id = FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let found = Found {
            id,
            kind: ObjectKind::SharedAnonymous,
            place: path.clone(),
        };
        (found, file, path)
    }

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(1),
            first,
            count,
        }
    }

    #[test]
    fn what_was_written_behind_our_back_is_found_by_comparing() {
        let (found, file, path) = object("compare");
        file.set_len(1000 * PAGE_SIZE).unwrap();
        file.write_all_at(&[1; 3 * 4096], 10 * PAGE_SIZE).unwrap();
        let mut objects = Objects::default();
        objects.update(std::slice::from_ref(&found)).unwrap();
        assert_eq!(objects.scan_running().unwrap(), [run(10, 3)]);
        assert_eq!(objects.scan_running().unwrap(), [], "reported once while it runs");

        let mut buffer = [0; 3 * 4096];
        assert!(objects.read(&run(10, 3), &mut buffer));
        assert_eq!(buffer, [1; 3 * 4096]);
        assert_eq!(objects.scan_frozen().unwrap().written, []);

        file.write_all_at(&[2], 11 * PAGE_SIZE + 5).unwrap();
        file.write_all_at(&[3], 500 * PAGE_SIZE).unwrap();
        let scan = objects.scan_frozen().unwrap();
        assert_eq!(scan.written, [run(11, 1), run(500, 1)]);
        assert_eq!(scan.present, [run(10, 3), run(500, 1)]);
        // Looking has allocated nothing.
        assert_eq!(file.metadata().unwrap().blocks(), 4 * 8);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn sizes_follow_and_spaces_are_never_used_twice() {
        let (first, file, path) = object("sizes");
        let mut objects = Objects::default();
        objects.update(std::slice::from_ref(&first)).unwrap();
        file.set_len(5000).unwrap();
        objects.update(std::slice::from_ref(&first)).unwrap();
        assert_eq!(objects.layout()[0].size, 5000);
        objects.update(&[]).unwrap();
        assert!(objects.layout().is_empty());
        objects.update(std::slice::from_ref(&first)).unwrap();
        assert_eq!(objects.layout()[0].space, 2);
        assert_eq!(objects.space(first.id), Some(2));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_tail_of_the_last_page_reads_as_zeros() {
        let (found, file, path) = object("tail");
        file.write_all_at(&[9; 100], 0).unwrap();
        let mut objects = Objects::default();
        objects.update(&[found]).unwrap();
        let mut buffer = [7; 4096];
        assert!(objects.read(&run(0, 1), &mut buffer));
        assert!(buffer[..100].iter().all(|b| *b == 9) && buffer[100..].iter().all(|b| *b == 0));
        assert!(!objects.read(
            &PageRun {
                space: SpaceId(9),
                first: 0,
                count: 1
            },
            &mut buffer
        ));
        fs::remove_file(path).unwrap();
    }
}
