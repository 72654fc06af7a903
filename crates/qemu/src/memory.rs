//! Reading and writing the memory of a machine, from outside.
//!
//! What lies in a shared file is read and written through the file: a hole stays a hole when it is read, and nothing
//! is mapped into QEMU that it does not touch. Private memory goes by process_vm_readv(2) and its sister.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_engine::PageStore;
use whimbrel_kernel::pagemap::{Pagemap, Region, ScanArgs};
use whimbrel_kernel::remote::{self, Call};
use whimbrel_kernel::{maps, memory, pidfd, sparse};
use whimbrel_policy::{Page, PageRun, Pages, SpaceId, PAGE_SIZE};

use crate::blocks::{self, Backing, Block, Listed, Place};
use crate::error::{MachineError, Result};

/// `MADV_DONTNEED_LOCKED` (Linux 5.18): also drops what is locked.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// Pages whose drop may wait.
const DROPS_MAX: u64 = 1 << 20;
/// What is missing between two runs that are read together, in pages.
const GAP_PAGES: u64 = 8;

/// The blocks that we carry, of one QEMU. The number of a block is its space.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    pid: i32,
    process: Arc<OwnedFd>,
    blocks: Arc<Vec<Block>>,
    /// Private memory to be dropped before anything else touches it.
    drops: Pages,
}

impl GuestMemory {
    /// Of process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn new(pid: i32, blocks: Vec<Block>) -> Result<GuestMemory> {
        Ok(GuestMemory {
            pid,
            process: Arc::new(pidfd::open(pid)?),
            blocks: Arc::new(blocks),
            drops: Pages::new(),
        })
    }

    /// The same from what a journal says, without the monitor: QEMU may be waiting for a page, or for nobody.
    ///
    /// # Errors
    /// Something else lies there.
    pub fn reopen(pid: i32, places: &[Place]) -> Result<GuestMemory> {
        let vmas = maps::read(pid)?;
        let open = |(name, bytes, host): &Place| {
            let listed = Listed {
                name: name.clone(),
                page_bytes: PAGE_SIZE,
                used: *bytes,
                total: *bytes,
                host: Some(*host),
            };
            blocks::open(pid, &vmas, listed, *host)
        };
        let blocks: Result<Vec<Block>> = places.iter().map(open).collect();
        GuestMemory::new(pid, blocks?)
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The blocks, in the order of their spaces.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Readable when QEMU has ended.
    pub fn process(&self) -> &Arc<OwnedFd> {
        &self.process
    }

    fn is_gone(&self) -> bool {
        pidfd::wait_exit(self.process.as_fd(), Duration::ZERO).unwrap_or(true)
    }

    /// The block of a run and the run's first byte in it.
    ///
    /// # Errors
    /// No block has these pages.
    pub fn locate(&self, run: &PageRun) -> Result<(&Block, u64)> {
        let block = self.blocks.get(run.space.0 as usize);
        let end = run
            .first
            .checked_add(run.count)
            .and_then(|end| end.checked_mul(PAGE_SIZE));
        match (block, end) {
            (Some(block), Some(end)) if end <= block.bytes => Ok((block, run.first * PAGE_SIZE)),
            _ => Err(MachineError::unfit(format!(
                "no memory block of the machine has pages {:#x} to {:#x} of space {}; this is a bug or an attack",
                run.first,
                run.first.saturating_add(run.count),
                run.space.0
            ))),
        }
    }

    /// The page at an address of QEMU.
    pub fn page_at(&self, address: u64) -> Option<PageRun> {
        let index = self
            .blocks
            .iter()
            .position(|block| block.span().contains(&address))?;
        let block = self.blocks.get(index)?;
        Some(PageRun {
            space: SpaceId(index as u32),
            first: (address - block.host) / PAGE_SIZE,
            count: 1,
        })
    }

    /// Writes the pages of `run`.
    pub fn write(&mut self, run: &PageRun, data: &[u8]) -> Result<()> {
        self.flush_before(run)?;
        let (block, offset) = self.locate(run)?;
        match &block.backing {
            Backing::Shared(file, base) => file.write_all_at(data, base + offset).map_err(
                MachineError::file("write", format!("memory block {}", block.name)),
            ),
            Backing::Private => Ok(memory::write(self.pid, block.host + offset, data)?),
        }
    }

    /// The pages of `run` go; they read as zeros.
    pub fn forget(&mut self, run: &PageRun) -> Result<()> {
        let (block, offset) = self.locate(run)?;
        match &block.backing {
            Backing::Shared(file, base) => {
                Ok(sparse::punch_hole(file, base + offset, run.count * PAGE_SIZE)?)
            }
            Backing::Private => {
                self.drops.insert(*run)?;
                match self.drops.len() < DROPS_MAX {
                    true => Ok(()),
                    false => self.flush(),
                }
            }
        }
    }

    fn flush_before(&mut self, run: &PageRun) -> Result<()> {
        let from = Page {
            space: run.space,
            number: run.first,
        };
        let next = self.drops.runs_from(from).next();
        match next {
            Some(drop) if drop.space == run.space && drop.first < run.first + run.count => self.flush(),
            _ => Ok(()),
        }
    }

    /// Carries out the drops that wait: QEMU's leader makes the calls, since nobody may give away the memory of another process.
    ///
    /// # Errors
    /// Another tracer has it, or it has ended.
    pub fn flush(&mut self) -> Result<()> {
        if self.drops.is_empty() {
            return Ok(());
        }
        let drops: Vec<PageRun> = std::mem::take(&mut self.drops).runs().collect();
        let mut calls = Vec::new();
        // Most were never there.
        for run in self.present(&drops, true)? {
            let (block, offset) = self.locate(&run)?;
            let args = [block.host + offset, run.count * PAGE_SIZE, MADV_DONTNEED_LOCKED];
            calls.push(Call::new(
                "madvise(MADV_DONTNEED_LOCKED)",
                libc::SYS_madvise,
                &args,
            ));
        }
        if calls.is_empty() {
            return Ok(());
        }
        remote::with_leader(self.pid, |remote| {
            remote.install(None)?;
            let done = remote.batch(&mut calls);
            remote.uninstall()?;
            done
        })?;
        Ok(())
    }

    /// Those of `runs` that have memory, in `runs` that ascend. Looking allocates nothing. Of private memory the page of zeros counts only with
    /// `zeros`.
    pub fn present(&self, runs: &[PageRun], zeros: bool) -> Result<Vec<PageRun>> {
        let pagemap = Pagemap::open(self.pid)?;
        let mut found = Vec::new();
        // Asked once for each block: the end of the data is far away in memory that is full, and the kernel walks there.
        let mut data: Option<(SpaceId, Vec<PageRun>)> = None;
        for group in near(runs) {
            let Some((first, last)) = group.first().zip(group.last()) else {
                continue;
            };
            let whole = PageRun {
                count: last.first + last.count - first.first,
                ..*first
            };
            let mut there = self.mapped(&pagemap, &whole, zeros)?;
            let (block, _) = self.locate(&whole)?;
            if let Backing::Shared(file, base) = &block.backing {
                // What QEMU has not touched may lie in the file nevertheless.
                let untouched = without(&whole, &there);
                if !untouched.is_empty() {
                    if data.as_ref().is_none_or(|(space, _)| *space != whole.space) {
                        let ranges = sparse::data_ranges_in(file, *base..base + block.bytes)?;
                        let pages = |(start, end): &(u64, u64)| pages(whole.space, start - base, end - base);
                        data = Some((whole.space, ranges.iter().map(pages).collect()));
                    }
                    let data = data.as_ref().map(|(_, data)| data.as_slice()).unwrap_or_default();
                    let from = data.partition_point(|one| one.first + one.count <= whole.first);
                    let data = data.get(from..).unwrap_or_default();
                    intersect(&untouched, data, &mut there);
                    there.sort_unstable_by_key(|run| run.first);
                }
            }
            intersect(group, &there, &mut found);
        }
        Ok(found)
    }

    /// What of a run is in QEMU's page tables.
    fn mapped(&self, pagemap: &Pagemap, run: &PageRun, zeros: bool) -> Result<Vec<PageRun>> {
        let (block, offset) = self.locate(run)?;
        let args = match (&block.backing, zeros) {
            (Backing::Shared(..), _) => ScanArgs::mapped(),
            (Backing::Private, true) => ScanArgs::occupied(),
            (Backing::Private, false) => ScanArgs::private_there(),
        };
        let start = block.host + offset;
        let mut regions = Vec::new();
        pagemap.scan(start..start + run.count * PAGE_SIZE, args, &mut regions)?;
        let of_block = |region: &Region| pages(run.space, region.start - block.host, region.end - block.host);
        Ok(regions.iter().map(of_block).collect())
    }

    /// Every page of every block.
    pub fn everything(&self) -> Vec<PageRun> {
        let whole = |(index, block): (usize, &Block)| PageRun {
            space: SpaceId(index as u32),
            first: 0,
            count: block.bytes / PAGE_SIZE,
        };
        self.blocks
            .iter()
            .enumerate()
            .map(whole)
            .filter(|run| run.count > 0)
            .collect()
    }

    fn read_one(&self, run: &PageRun, buffer: &mut [u8]) -> Result<()> {
        let (block, offset) = self.locate(run)?;
        match &block.backing {
            Backing::Shared(file, base) => file
                .read_exact_at(buffer, base + offset)
                .map_err(MachineError::file("read", format!("memory block {}", block.name))),
            Backing::Private => Ok(memory::read(self.pid, block.host + offset, buffer)?),
        }
    }
}

impl PageStore for GuestMemory {
    type Error = MachineError;

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        let before = failed.len();
        let mut rest = buffer;
        for run in runs {
            let bytes = (run.count * PAGE_SIZE) as usize;
            let (part, others) = rest.split_at_mut(bytes.min(rest.len()));
            rest = others;
            if self.read_one(run, part).is_err() {
                failed.push(*run);
            }
        }
        // What was read of a process that has ended may be anybody's; its file is still its own.
        if self.blocks.iter().any(|block| !block.is_shared()) && self.is_gone() {
            failed.truncate(before);
            failed.extend_from_slice(runs);
        }
        Ok(())
    }
}

/// The memory of a paused machine that may be gone already: then nothing of it can be had.
#[derive(Debug)]
pub struct CopyMemory(pub(crate) Option<GuestMemory>);

impl PageStore for CopyMemory {
    type Error = MachineError;

    fn read(&mut self, runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>) -> Result<()> {
        match &mut self.0 {
            Some(memory) => memory.read(runs, buffer, failed),
            None => {
                failed.extend_from_slice(runs);
                Ok(())
            }
        }
    }
}

/// The pages of a part of a block, in bytes.
fn pages(space: SpaceId, start: u64, end: u64) -> PageRun {
    PageRun {
        space,
        first: start / PAGE_SIZE,
        count: end.div_ceil(PAGE_SIZE) - start / PAGE_SIZE,
    }
}

/// What of a run is in none of the ascending `others`.
fn without(run: &PageRun, others: &[PageRun]) -> Vec<PageRun> {
    let (mut from, end) = (run.first, run.first + run.count);
    let mut rest = Vec::new();
    let last = PageRun {
        first: end,
        count: 1,
        ..*run
    };
    for other in others.iter().chain([&last]) {
        if other.first > from {
            rest.push(PageRun {
                first: from,
                count: other.first - from,
                ..*run
            });
        }
        from = from.max(other.first + other.count);
    }
    rest
}

/// Cuts ascending runs where the gap is large or the block ends.
pub(crate) fn near(runs: &[PageRun]) -> impl Iterator<Item = &[PageRun]> {
    runs.chunk_by(|a, b| {
        let after = a.first + a.count;
        a.space == b.space && b.first >= after && b.first - after <= GAP_PAGES
    })
}

/// Adds the parts of ascending `runs` that lie in ascending `others`; all of one space.
pub(crate) fn intersect(runs: &[PageRun], others: &[PageRun], out: &mut Vec<PageRun>) {
    let mut at = 0;
    for run in runs {
        let end = run.first + run.count;
        while others
            .get(at)
            .is_some_and(|other| other.first + other.count <= run.first)
        {
            at += 1;
        }
        for other in others.iter().skip(at).take_while(|other| other.first < end) {
            let (from, to) = (run.first.max(other.first), end.min(other.first + other.count));
            out.push(PageRun {
                space: run.space,
                first: from,
                count: to - from,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    #[test]
    fn only_what_is_in_both_is_told() {
        let mut out = Vec::new();
        intersect(
            &[run(1, 4), run(6, 2), run(20, 10)],
            &[run(0, 2), run(4, 3), run(22, 18)],
            &mut out,
        );
        assert_eq!(out, [run(1, 1), run(4, 1), run(6, 1), run(22, 8)]);
    }

    #[test]
    fn what_is_not_mapped_is_what_is_left() {
        let rest = |others: &[PageRun]| without(&run(10, 10), others);
        assert_eq!(rest(&[]), [run(10, 10)]);
        assert_eq!(rest(&[run(10, 10)]), []);
        assert_eq!(
            rest(&[run(10, 2), run(14, 1), run(18, 2)]),
            [run(12, 2), run(15, 3)]
        );
    }

    #[test]
    fn runs_that_lie_close_are_looked_at_together() {
        let runs = [run(1, 2), run(5, 5), run(500, 1), run(400, 1)];
        let cut: Vec<_> = near(&runs).map(<[_]>::len).collect();
        assert_eq!(cut, [2, 1, 1]);
    }
}
