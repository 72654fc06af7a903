//! Which pages the guest has written: userfaultfd WP_ASYNC on the blocks in QEMU's address space, and PAGEMAP_SCAN.
//!
//! vCPUs, disks and network cards of the machine all write through QEMU's own address space, so that one table of marks sees them all.
//! Devices whose memory another process writes (vhost-user) or the hardware (VFIO) are refused.

use whimbrel_kernel::pagemap::{Pagemap, Region, ScanArgs};
use whimbrel_kernel::uffd::{mode, Uffd};
use whimbrel_policy::{PageRun, Pages, SpaceId, PAGE_SIZE};

use crate::error::Result;
use crate::memory::{near, GuestMemory};

/// Tracks one machine.
#[derive(Debug)]
pub struct Tracker {
    uffd: Option<Uffd>,
    pagemap: Pagemap,
    /// Pages that have memory, as of the last scan.
    present: Pages,
    /// Told by a scan that then failed: told again.
    owed: Vec<PageRun>,
}

/// What a scan was told.
#[derive(Debug, Default)]
struct Told {
    /// Whether it is there must be looked at.
    unsure: Vec<PageRun>,
    there: Vec<PageRun>,
    gone: Vec<PageRun>,
}

impl Tracker {
    /// Nothing is tracked yet.
    ///
    /// # Errors
    /// There is no such process.
    pub fn new(pid: i32) -> Result<Tracker> {
        Ok(Tracker {
            uffd: None,
            pagemap: Pagemap::open(pid)?,
            present: Pages::new(),
            owed: Vec::new(),
        })
    }

    /// Writes are noted from here on.
    ///
    /// # Errors
    /// EBUSY: another userfaultfd watches the memory.
    pub fn arm(&mut self, uffd: Uffd, memory: &GuestMemory) -> Result<()> {
        for block in memory.blocks() {
            uffd.register(block.host, block.bytes, mode::WP)?;
        }
        self.uffd = Some(uffd);
        Ok(())
    }

    /// Whether writes are noted.
    pub fn is_armed(&self) -> bool {
        self.uffd.is_some()
    }

    /// Ends it.
    pub fn disarm(&mut self) {
        self.uffd = None;
    }

    /// Pages that have memory, as of the last scan.
    pub fn present(&self) -> &Pages {
        &self.present
    }

    /// Everything that was written since the scan before and is there; in the first one all that is there. What was dropped since only
    /// leaves [`Tracker::present`].
    ///
    /// # Errors
    /// QEMU has ended. What this scan was told is not lost.
    pub fn take(&mut self, memory: &GuestMemory) -> Result<Vec<PageRun>> {
        let mut told = Told {
            unsure: std::mem::take(&mut self.owed),
            ..Told::default()
        };
        let outcome = self.scan(memory, false, &mut told);
        let there = outcome.and_then(|()| self.look(memory, &told));
        if there.is_err() {
            self.owed = [told.unsure, told.there, told.gone].concat();
        }
        there
    }

    /// The same of a paused machine: nothing is protected any more.
    pub fn take_last(&mut self, memory: &GuestMemory) -> Result<Vec<PageRun>> {
        if self.is_armed() {
            let mut told = Told {
                unsure: self.owed.clone(),
                ..Told::default()
            };
            self.scan(memory, true, &mut told)?;
            self.look(memory, &told)
        } else {
            let there = memory.present(&memory.everything(), false)?;
            self.present = Pages::from_runs(&there)?;
            Ok(Vec::new())
        }
    }

    fn scan(&self, memory: &GuestMemory, last: bool, told: &mut Told) -> Result<()> {
        let mut regions = Vec::new();
        for (index, block) in memory.blocks().iter().enumerate() {
            regions.clear();
            let is_sure = !last && !block.is_shared();
            let args = match (last, is_sure) {
                (true, _) => ScanArgs::written(),
                (false, true) => ScanArgs::take_all_written_told(),
                (false, false) => ScanArgs::take_all_written(),
            };
            let scanned = self.pagemap.scan(block.span(), args, &mut regions);
            // Also on failure: what was told is protected now.
            for region in &regions {
                let list = match (is_sure, region.is_private_there()) {
                    (false, _) => &mut told.unsure,
                    (true, true) => &mut told.there,
                    (true, false) => &mut told.gone,
                };
                list.push(run(index, block.host, region));
            }
            scanned?;
        }
        Ok(())
    }

    /// Which of the pages that were told are there; the others are not any more.
    fn look(&mut self, memory: &GuestMemory, told: &Told) -> Result<Vec<PageRun>> {
        let unsure = Pages::from_runs(&told.unsure)?;
        let mut there = memory.present(&unsure.runs().collect::<Vec<_>>(), false)?;
        there.extend_from_slice(&told.there);
        let there = Pages::from_runs(&there)?;
        self.present.subtract(&unsure);
        self.present.subtract(&Pages::from_runs(&told.gone)?);
        for run in there.runs() {
            self.present.insert(run)?;
        }
        Ok(there.runs().collect())
    }

    /// Which of `runs`, in order, were written since the last scan; clears nothing.
    ///
    /// # Errors
    /// QEMU has ended.
    pub fn peek(&self, memory: &GuestMemory, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<()> {
        if !self.is_armed() {
            return Ok(());
        }
        let mut regions = Vec::new();
        for group in near(runs) {
            let Some((first, last)) = group.first().zip(group.last()) else {
                continue;
            };
            let (block, offset) = memory.locate(first)?;
            memory.locate(last)?;
            let start = block.host + offset;
            let end = block.host + (last.first + last.count) * PAGE_SIZE;
            regions.clear();
            self.pagemap.scan(start..end, ScanArgs::written(), &mut regions)?;
            let index = first.space.0 as usize;
            let written: Vec<PageRun> = regions
                .iter()
                .map(|region| run(index, block.host, region))
                .collect();
            crate::memory::intersect(group, &written, out);
        }
        Ok(())
    }
}

fn run(index: usize, host: u64, region: &Region) -> PageRun {
    PageRun {
        space: SpaceId(index as u32),
        first: (region.start - host) / PAGE_SIZE,
        count: region.len() / PAGE_SIZE,
    }
}
