//! Reading the private pages of a frozen process, for the source while it migrates and for the pages that follow afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use whimbrel_engine::PageStore;
use whimbrel_kernel::memory::{self, MemFile};
use whimbrel_kernel::pidfd;
use whimbrel_policy::{PageRun, PAGE_SIZE};

use crate::tracker::PRIVATE;

/// The result of what the kernel crate does.
type Result<T> = whimbrel_kernel::error::Result<T>;

/// The private memory of one process, whatever process has its number later.
#[derive(Debug)]
pub struct MemoryStore {
    pid: i32,
    memory: MemFile,
    /// Readable when it has ended.
    process: OwnedFd,
}

impl MemoryStore {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it may not be read.
    pub fn open(pid: i32) -> Result<MemoryStore> {
        let process = pidfd::open(pid)?;
        let memory = MemFile::open(pid)?;
        Ok(MemoryStore { pid, memory, process })
    }

    /// Whether it is there no more: then what was read may be anybody's.
    fn is_gone(&self) -> bool {
        pidfd::wait_exit(self.process.as_fd(), Duration::ZERO).unwrap_or(true)
    }

    /// Private pages into `buffer`; what cannot be read is added to `failed`.
    pub(crate) fn read_private(
        &self,
        runs: &[PageRun],
        buffer: &mut [u8],
        failed: &mut Vec<PageRun>,
    ) -> Result<()> {
        let (mut runs, mut buffer) = (runs, buffer);
        while !runs.is_empty() {
            let spans: Vec<memory::Span> = runs
                .iter()
                .map(|run| (run.first * PAGE_SIZE, bytes_of(run)))
                .collect();
            let got = memory::readv(self.pid, &spans, buffer)?;
            let (whole, bytes) = whole_runs(runs, got);
            runs = runs.get(whole..).unwrap_or_default();
            buffer = buffer.get_mut(bytes..).unwrap_or_default();
            let Some((first, rest)) = runs.split_first() else {
                return Ok(());
            };
            let (one, others) = buffer.split_at_mut(bytes_of(first).min(buffer.len()));
            // Through the protection, or gone.
            if self.memory.read(first.first * PAGE_SIZE, one).is_err() {
                failed.push(*first);
            }
            (runs, buffer) = (rest, others);
        }
        Ok(())
    }
}

impl PageStore for MemoryStore {
    type Error = whimbrel_kernel::error::Error;

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        let mut rest = buffer;
        for some in runs.chunk_by(|a, b| (a.space == PRIVATE) == (b.space == PRIVATE)) {
            let bytes: usize = some.iter().map(bytes_of).sum();
            let (part, others) = rest.split_at_mut(bytes.min(rest.len()));
            rest = others;
            let is_private = some.first().is_some_and(|run| run.space == PRIVATE);
            let before = failed.len();
            let read = match is_private {
                true => self.read_private(some, part, failed),
                false => Ok(()),
            };
            if !is_private || self.is_gone() {
                failed.truncate(before);
                failed.extend_from_slice(some);
            } else {
                read?;
            }
        }
        Ok(())
    }
}

/// The memory of a frozen copy that may be gone already: then nothing of it can be had.
#[derive(Debug)]
pub struct CopyStore(pub(crate) Option<MemoryStore>);

impl PageStore for CopyStore {
    type Error = whimbrel_kernel::error::Error;

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        match &mut self.0 {
            Some(store) => store.read(runs, buffer, failed),
            None => {
                failed.extend_from_slice(runs);
                Ok(())
            }
        }
    }
}

pub(crate) fn bytes_of(run: &PageRun) -> usize {
    (run.count * PAGE_SIZE) as usize
}

/// How many of the runs fit into `got` bytes, and their length.
fn whole_runs(runs: &[PageRun], got: usize) -> (usize, usize) {
    let mut bytes = 0;
    for (index, run) in runs.iter().enumerate() {
        if bytes + bytes_of(run) > got {
            return (index, bytes);
        }
        bytes += bytes_of(run);
    }
    (runs.len(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: PRIVATE,
            first,
            count,
        }
    }

    #[test]
    fn only_whole_runs_count_as_read() {
        let runs = [run(9, 1), run(9, 2), run(9, 3)];
        assert_eq!(whole_runs(&runs, 3 * 4096 + 100), (2, 3 * 4096));
        assert_eq!(whole_runs(&runs, 0), (0, 0));
        assert_eq!(whole_runs(&runs, 6 * 4096), (3, 6 * 4096));
    }

    /// What an ended process had cannot be had: not from whoever has its number now, and not as an error that may pass.
    #[test]
    fn of_a_process_that_has_ended_nothing_can_be_had() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut store = MemoryStore::open(child.id() as i32).unwrap();
        child.kill().unwrap();
        let mut nothing_is_read = || {
            let (mut buffer, mut failed) = (vec![0; 3 * 4096], Vec::new());
            let runs = [run(5, 1), run(9, 2)];
            store.read(&runs, &mut buffer, &mut failed).unwrap();
            assert_eq!(failed, runs);
        };
        // Before somebody has taken note of its end, and after.
        let process = pidfd::open(child.id() as i32).unwrap();
        assert!(pidfd::wait_exit(process.as_fd(), Duration::from_secs(10)).unwrap());
        nothing_is_read();
        child.wait().unwrap();
        nothing_is_read();
    }

    #[test]
    fn only_private_pages_can_be_had() {
        let data = vec![7u8; 3 * 4096];
        let first = (data.as_ptr() as u64).div_ceil(4096);
        let mut store = MemoryStore::open(std::process::id() as i32).unwrap();
        let object = PageRun {
            space: whimbrel_policy::SpaceId(3),
            ..run(0, 1)
        };
        let runs = [run(first, 1), object, run(0, 1), run(first, 1)];
        let (mut buffer, mut failed) = (vec![0; 4 * 4096], Vec::new());
        store.read(&runs, &mut buffer, &mut failed).unwrap();
        assert_eq!(failed, [object, run(0, 1)]);
        assert!(buffer[..4096]
            .iter()
            .chain(&buffer[3 * 4096..])
            .all(|byte| *byte == 7));
    }
}
