//! Which pages of a process are there, and which were written: ioctl `PAGEMAP_SCAN` on `/proc/pid/pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst, Linux 6.7). Our kernel headers are older, hence the definitions here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Regions that one call can return: 96 KiB of buffer.
const BUFFER_REGIONS: usize = 4096;

/// What a page is, and what a scan can ask for (`PAGE_IS_*`).
pub mod category {
    /// Its mapping is registered for asynchronous write protection.
    pub const WP_ALLOWED: u64 = 1;
    /// Written since it was last protected. A page that was never touched counts as written, and so does a dropped one.
    pub const WRITTEN: u64 = 2;
    /// Belongs to a file or to shared memory (a private mapping of a file: not yet copied).
    pub const FILE: u64 = 4;
    /// In memory.
    pub const PRESENT: u64 = 8;
    /// In swap (or being moved by the kernel).
    pub const SWAPPED: u64 = 16;
    /// The common page of zeros.
    pub const ZERO: u64 = 32;
    /// Part of a huge page that is mapped as one.
    pub const HUGE: u64 = 64;
    /// Soft-dirty.
    pub const SOFT_DIRTY: u64 = 128;
    /// A guard page (MADV_GUARD_INSTALL, Linux 6.13; told since 6.15).
    pub const GUARD: u64 = 256;
}

/// What a scan does beside telling (`PM_SCAN_*`).
pub mod flag {
    /// Write-protect the pages that match, so that they count as not written.
    pub const WP_MATCHING: u64 = 1;
    /// Fail with EPERM if a mapping in the range is not registered for asynchronous write protection.
    pub const CHECK_WPASYNC: u64 = 2;
}

/// A run of pages with the same categories.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Those of the returned categories that it has.
    pub categories: u64,
}

impl Region {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it is private, there and not zero; of a scan that returns these categories.
    pub fn is_private_there(&self) -> bool {
        use category::{FILE, PRESENT, SWAPPED, ZERO};
        self.categories & (PRESENT | SWAPPED) != 0 && self.categories & (FILE | ZERO) == 0
    }

    /// Never, for a region that the kernel told.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<PmScanArg>() == 96 && size_of::<Region>() == 24);

/// What to look for. A page matches if, after flipping the `inverted` categories, it has all of `mask` and (if not 0) one of `anyof`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanArgs {
    /// [`flag`]s.
    pub flags: u64,
    /// Categories whose absence counts.
    pub inverted: u64,
    /// Categories that a page must have.
    pub mask: u64,
    /// Categories of which a page must have one.
    pub anyof: u64,
    /// Categories to be told in [`Region::categories`]; neighbours that differ in them are separate regions.
    pub returned: u64,
}

impl ScanArgs {
    /// Written and there, private, not zero; protects what it tells, so that the next scan tells only what was written since.
    ///
    /// **What this scan tells is told once.** Pages that then fail to travel must be remembered by the caller.
    pub fn take_written() -> Self {
        use category::{FILE, PRESENT, SWAPPED, WRITTEN, ZERO};
        Self {
            flags: flag::WP_MATCHING | flag::CHECK_WPASYNC,
            inverted: FILE | ZERO,
            mask: WRITTEN | FILE | ZERO,
            anyof: PRESENT | SWAPPED,
            returned: WRITTEN,
        }
    }

    /// Written since it was last protected, or never there; protects what it tells, so that the next scan tells only what was
    /// written, dropped or filled since. As fast as [`ScanArgs::written`].
    ///
    /// **What this scan tells is told once**, as with [`ScanArgs::take_written`].
    pub fn take_all_written() -> Self {
        Self {
            flags: flag::WP_MATCHING | flag::CHECK_WPASYNC,
            ..Self::written()
        }
    }

    /// The same, each told with what it was before: [`ScanArgs::take_all_written`] makes an entry of private memory that holds nothing
    /// look as if it was in swap, to every later scan. As slow as [`ScanArgs::private_there`].
    pub fn take_all_written_told() -> Self {
        use category::{FILE, PRESENT, SWAPPED, WRITTEN, ZERO};
        Self {
            returned: WRITTEN | FILE | ZERO | PRESENT | SWAPPED,
            ..Self::take_all_written()
        }
    }

    /// Written since it was last protected, or never there; changes nothing. The kernel answers exactly this question in about
    /// 2 ns a page, and every other one in ten times that: ask it first, and then the others about what it tells.
    pub fn written() -> Self {
        Self {
            flags: flag::CHECK_WPASYNC,
            inverted: 0,
            mask: category::WRITTEN,
            anyof: 0,
            returned: category::WRITTEN,
        }
    }

    /// Everything for which no thread would fault as missing: pages that are there or in swap, the page of zeros, too. Changes nothing.
    pub fn occupied() -> Self {
        use category::{PRESENT, SWAPPED};
        Self {
            flags: 0,
            inverted: 0,
            mask: 0,
            anyof: PRESENT | SWAPPED,
            returned: PRESENT | SWAPPED,
        }
    }

    /// Pages that the process has mapped; changes nothing. Unlike [`category::SWAPPED`] it is not set by marks of write protection where
    /// nothing is.
    pub fn mapped() -> Self {
        use category::PRESENT;
        Self {
            flags: 0,
            inverted: 0,
            mask: PRESENT,
            anyof: 0,
            returned: PRESENT,
        }
    }

    /// Private pages that are there and not the page of zeros; changes nothing.
    pub fn private_there() -> Self {
        Self {
            returned: 0,
            ..Self::private_present()
        }
    }

    /// Private pages that are there, each told with whether it was written; changes nothing.
    pub fn private_present() -> Self {
        use category::{FILE, PRESENT, SWAPPED, WRITTEN, ZERO};
        Self {
            flags: 0,
            inverted: FILE | ZERO,
            mask: FILE | ZERO,
            anyof: PRESENT | SWAPPED,
            returned: WRITTEN,
        }
    }
}

/// The page map of a process. It stays with the address space that the process had when it was opened.
#[derive(Debug)]
pub struct Pagemap {
    pid: i32,
    file: File,
}

impl Pagemap {
    /// Opens the page map (needs the right to ptrace the process).
    pub fn open(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| Error::call(format!("open {path}"), e))?;
        Ok(Self { pid, file })
    }

    /// Adds to `found` the regions of `range` that match, in order of address. Several threads may scan at once.
    ///
    /// # Errors
    /// EPERM: a mapping in the range is not tracked ([`flag::CHECK_WPASYNC`]). ESRCH: the process has ended. What was scanned
    /// before the error is in `found` and **has been write-protected** (with [`flag::WP_MATCHING`]).
    pub fn scan(&self, range: std::ops::Range<u64>, args: ScanArgs, found: &mut Vec<Region>) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let before = found.len();
            found.reserve(BUFFER_REGIONS);
            let (regions, walked) = self.scan_once(from..range.end, args, found.spare_capacity_mut())?;
            // SAFETY: the kernel has filled this many elements, which lie within the capacity reserved above.
            unsafe { found.set_len(before + regions) };
            join(found, before);
            if walked <= from {
                return Err(Error::other(format!(
                    "the scan of process {} stands still at {from:#x}",
                    self.pid
                )));
            }
            from = walked;
        }
        Ok(())
    }

    fn scan_once(
        &self,
        range: std::ops::Range<u64>,
        args: ScanArgs,
        buffer: &mut [std::mem::MaybeUninit<Region>],
    ) -> Result<(usize, u64)> {
        let room = buffer.len().min(BUFFER_REGIONS);
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: args.flags,
            start: range.start,
            end: range.end,
            vec: buffer.as_mut_ptr() as u64,
            vec_len: room as u64,
            category_inverted: args.inverted,
            category_mask: args.mask,
            category_anyof_mask: args.anyof,
            return_mask: args.returned,
            ..PmScanArg::default()
        };
        // SAFETY: `arg` is the structure that the request means, and the kernel fills at most `vec_len` regions of the buffer.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        if result < 0 {
            let what = format!(
                "scan pages {:#x}-{:#x} of process {}",
                range.start, range.end, self.pid
            );
            return Err(Error::call(what, io::Error::last_os_error()));
        }
        Ok(((result as usize).min(room), arg.walk_end))
    }
}

/// A region that was cut by the end of a buffer becomes one again.
fn join(found: &mut Vec<Region>, at: usize) {
    let (Some(last), Some(next)) = (at.checked_sub(1).and_then(|i| found.get(i)), found.get(at)) else {
        return;
    };
    if last.end == next.start && last.categories == next.categories {
        let end = next.end;
        found.remove(at);
        if let Some(last) = found.get_mut(at - 1) {
            last.end = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, categories: u64) -> Region {
        Region {
            start,
            end,
            categories,
        }
    }

    #[test]
    fn a_region_cut_by_the_end_of_the_buffer_is_one_again() {
        let mut found = vec![
            region(0, 1, 2),
            region(5, 9, 2),
            region(9, 12, 2),
            region(20, 21, 2),
        ];
        join(&mut found, 2);
        assert_eq!(found, [region(0, 1, 2), region(5, 12, 2), region(20, 21, 2)]);
        let apart = [region(0, 5, 2), region(5, 9, 3), region(10, 12, 3)];
        for at in 0..4 {
            let mut found = apart.to_vec();
            join(&mut found, at);
            assert_eq!(found, apart);
        }
    }
}
