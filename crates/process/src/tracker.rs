//! Which private pages of the workload were written: userfaultfd in `WP_ASYNC` mode and `PAGEMAP_SCAN`
//! (Documentation/admin-guide/mm/pagemap.rst).
//!
//! Registering must not act on an outdated view of the maps (it would split mappings under the workload's feet), so it is
//! done while the workload is stopped for about a millisecond, in each round. The scan itself runs beside it.
//!
//! A mapping may fall out of the tracking with its marks left behind: mremap(2) can join what it moves with a tracked neighbour, and
//! the kernel then forgets the registration of both, but not the neighbour's write protection marks (seen on
//! Linux 6.18). Its pages look unwritten from then on, whatever is written to them, and take that along when they are moved again. So a
//! mapping that was not registered at a look counts as written as a whole, and marks that it has are taken away.

use std::sync::atomic::{AtomicUsize, Ordering};

use whimbrel_kernel::maps::Vma;
use whimbrel_kernel::pagemap::{category, flag, Pagemap, Region, ScanArgs};
use whimbrel_kernel::pidfd;
use whimbrel_kernel::uffd::{self, Uffd};
use whimbrel_policy::{PageRun, SpaceId, PAGE_SIZE};

use crate::layout::{push_span, Span};

/// The space of the first process' private pages.
pub const PRIVATE: SpaceId = SpaceId(0);
/// A huge page of x86-64.
pub const HUGE_BYTES: u64 = 2 << 20;
/// Pages between two runs that are rather looked at as well than skipped by another system call.
const PEEK_GAP_PAGES: u64 = 64;
/// One piece of work of the frozen scan.
const JOB_BYTES: u64 = 256 << 20;
/// Threads of the frozen scan; a page table is walked at the speed of the memory, which two of them use up.
const SCAN_THREADS: usize = 2;

/// The result of what the kernel crate does.
type Result<T> = whimbrel_kernel::error::Result<T>;

/// Watches the private pages of one process.
#[derive(Debug)]
pub struct Tracker {
    pid: i32,
    pagemap: Pagemap,
    uffd: Option<Uffd>,
    /// What was huge before it was tracked: the first write to a protected huge page splits it.
    huge: Vec<Span>,
    /// Whether this kernel tells guard pages apart (Linux 6.15).
    tells_guards: bool,
    /// Ranges whose last scan failed: their marks may be gone.
    failed: Vec<Span>,
    /// Ranges that were not registered at the last look: marks that they have mean nothing.
    strange: Vec<Span>,
}

/// What the frozen scan found.
#[derive(Debug, Default)]
pub struct FrozenScan {
    /// Written since the last scan (everything, if nothing is tracked).
    pub written: Vec<PageRun>,
    /// Private pages with content of their own.
    pub present: Vec<PageRun>,
    /// Guard pages.
    pub guards: Vec<Span>,
    /// What is huge, or was before it was tracked.
    pub huge: Vec<Span>,
}

impl Tracker {
    /// Only looks; nothing is tracked, and every page counts as written.
    ///
    /// # Errors
    /// The page map cannot be opened.
    pub fn watch(pid: i32) -> Result<Tracker> {
        let pagemap = Pagemap::open(pid)?;
        Ok(Tracker {
            pid,
            tells_guards: tells_guards(&pagemap)?,
            pagemap,
            uffd: None,
            huge: Vec::new(),
            failed: Vec::new(),
            strange: Vec::new(),
        })
    }

    /// Puts a userfaultfd into the process, whose leader is stopped.
    ///
    /// # Errors
    /// The process cannot be traced, or this kernel cannot track (Linux 6.7 is needed).
    pub fn arm(&mut self, vmas: &[Vma]) -> Result<()> {
        self.huge = self.huge_spans(vmas)?;
        let uffd = uffd::inject_stopped(self.pid, self.pid, 0)?;
        uffd.api(uffd::feature::TRACK_WRITES)?;
        self.uffd = Some(uffd);
        Ok(())
    }

    /// Registers all private mappings; the process is stopped and `vmas` are true. Repeating it changes nothing.
    ///
    /// # Errors
    /// A mapping that cannot be tracked, because something else has a userfaultfd on it.
    pub fn register(&mut self, vmas: &[Vma]) -> Result<()> {
        let Some(uffd) = &self.uffd else { return Ok(()) };
        let strange = self.strangers(vmas)?;
        self.strange.extend(strange);
        for vma in private(vmas) {
            uffd.register(vma.start, vma.len(), uffd::mode::WP)?;
        }
        Ok(())
    }

    /// The private mappings that are not registered. A mapping is as a whole, so that its first page tells.
    fn strangers(&self, vmas: &[Vma]) -> Result<Vec<Span>> {
        let args = ScanArgs {
            flags: flag::CHECK_WPASYNC,
            mask: category::PRESENT,
            returned: category::PRESENT,
            ..ScanArgs::default()
        };
        let mut found = Vec::new();
        let mut strangers = Vec::new();
        for vma in private(vmas) {
            match self
                .pagemap
                .scan(vma.start..vma.start + PAGE_SIZE, args, &mut found)
            {
                Ok(()) => {}
                Err(error) if error.errno() == Some(libc::EPERM) => strangers.push(span_of(vma)),
                Err(error) => return Err(error),
            }
        }
        Ok(strangers)
    }

    /// Takes away the marks of mappings that were registered a moment ago: nothing of ours has marked them yet.
    fn clean(&mut self, vmas: &[Vma]) -> Result<()> {
        let Some(uffd) = &self.uffd else { return Ok(()) };
        let marked = ScanArgs {
            inverted: category::WRITTEN,
            mask: category::WRITTEN,
            anyof: category::PRESENT | category::SWAPPED,
            ..ScanArgs::default()
        };
        let strange = std::mem::take(&mut self.strange);
        let mut found = Vec::new();
        for span in strange.iter().flat_map(|span| parts(vmas, *span)) {
            found.clear();
            self.pagemap.scan(span.start..span.end, marked, &mut found)?;
            let cleaned = found
                .iter()
                .all(|region| uffd.write_protect(region.start, region.len(), false).is_ok());
            if !cleaned {
                // It has changed meanwhile: again at the next look, and until then it counts as written.
                self.strange.push(span);
            }
        }
        Ok(())
    }

    /// Pages written since the last scan, get-and-clear, of a running process whose private mappings were registered.
    /// Mappings that have changed since then are reported the next time.
    ///
    /// # Errors
    /// The process has ended.
    pub fn scan(&mut self, vmas: &[Vma]) -> Result<Vec<PageRun>> {
        let mut found = Vec::new();
        self.clean(vmas)?;
        let failed = std::mem::take(&mut self.failed);
        // Only what the layout shows: something newer may lie there by now.
        let uncertain = failed.iter().chain(&self.strange);
        for span in uncertain.flat_map(|span| parts(vmas, *span)) {
            self.pagemap.scan(
                span.start..span.end,
                self.without_guards(ScanArgs::private_present()),
                &mut found,
            )?;
        }
        for vma in private(vmas) {
            match self.pagemap.scan(
                vma.start..vma.end,
                self.without_guards(ScanArgs::take_written()),
                &mut found,
            ) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(libc::ESRCH) => return Err(error),
                Err(_) => self.failed.push(span_of(vma)),
            }
        }
        found.sort_unstable_by_key(|region| region.start);
        Ok(runs(found.iter()))
    }

    /// Those of `runs` that were written since the last scan.
    ///
    /// # Errors
    /// The process has ended.
    pub fn rewritten(&self, runs: &[PageRun], out: &mut Vec<PageRun>) -> Result<()> {
        let args = ScanArgs {
            mask: category::WRITTEN,
            anyof: category::PRESENT | category::SWAPPED,
            ..ScanArgs::default()
        };
        let mut regions = Vec::new();
        for window in windows(runs) {
            let (Some(first), Some(last)) = (window.first(), window.last()) else {
                continue;
            };
            regions.clear();
            self.pagemap
                .scan(Span::of(first).start..Span::of(last).end, args, &mut regions)?;
            intersect(window, &regions, out);
        }
        Ok(())
    }

    /// The last scan, of a stopped process. Big mappings are shared out between threads.
    ///
    /// # Errors
    /// The process has ended.
    pub fn scan_frozen(&mut self, vmas: &[Vma]) -> Result<FrozenScan> {
        let jobs = jobs(vmas);
        let next = AtomicUsize::new(0);
        let work = || self.work(&jobs, &next);
        let mut found = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..SCAN_THREADS.min(jobs.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let mut all = work()?;
            for helper in helpers {
                all.extend(
                    helper
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                );
            }
            Ok::<_, whimbrel_kernel::error::Error>(all)
        })?;
        found.sort_unstable_by_key(|region| region.start);
        let (guards, found): (Vec<Region>, Vec<Region>) = found
            .into_iter()
            .partition(|region| region.categories & category::GUARD != 0);
        let span = |region: &Region| Span {
            start: region.start,
            end: region.end,
        };
        if self.uffd.is_some() {
            let strangers = self.strangers(vmas)?;
            self.strange.extend(strangers);
        }
        let written =
            |region: &&Region| region.categories & category::WRITTEN != 0 || self.is_uncertain(region);
        Ok(FrozenScan {
            written: runs(found.iter().filter(written)),
            present: runs(found.iter()),
            guards: guards.iter().map(span).collect(),
            huge: self.huge_now(vmas, &found),
        })
    }

    fn work(&self, jobs: &[Span], next: &AtomicUsize) -> Result<Vec<Region>> {
        let mut found = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            self.pagemap
                .scan(job.start..job.end, self.with_guards(), &mut found)?;
        }
        Ok(found)
    }

    /// A guard looks like a page in swap, but cannot be read.
    fn without_guards(&self, args: ScanArgs) -> ScanArgs {
        let guard = if self.tells_guards { category::GUARD } else { 0 };
        ScanArgs {
            inverted: args.inverted | guard,
            mask: args.mask | guard,
            ..args
        }
    }

    /// Private pages that are there, with what is huge, and guards, told apart.
    fn with_guards(&self) -> ScanArgs {
        let args = ScanArgs::private_present();
        let guard = if self.tells_guards { category::GUARD } else { 0 };
        ScanArgs {
            returned: args.returned | category::HUGE | guard,
            ..args
        }
    }

    /// Regions are no larger than mappings, and mappings fail as a whole.
    fn is_uncertain(&self, region: &Region) -> bool {
        let span = Span {
            start: region.start,
            end: region.end,
        };
        let mut uncertain = self.failed.iter().chain(&self.strange);
        uncertain.any(|uncertain| uncertain.overlaps(&span))
    }

    /// What is huge now or was before it was tracked, as far as it is still mapped: whole huge pages.
    fn huge_now(&self, vmas: &[Vma], found: &[Region]) -> Vec<Span> {
        let huge = found
            .iter()
            .filter(|region| region.categories & category::HUGE != 0);
        let mut spans: Vec<Span> = huge
            .filter_map(|region| whole_huge(region.start, region.end))
            .collect();
        for old in &self.huge {
            spans.extend(parts(vmas, *old).filter_map(|part| whole_huge(part.start, part.end)));
        }
        spans.sort_unstable();
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => merged.push(span),
            }
        }
        merged
    }

    fn huge_spans(&self, vmas: &[Vma]) -> Result<Vec<Span>> {
        let args = ScanArgs {
            mask: category::HUGE,
            returned: category::HUGE,
            ..ScanArgs::default()
        };
        let mut found = Vec::new();
        for vma in private(vmas).filter(|vma| vma.len() >= HUGE_BYTES) {
            self.pagemap.scan(vma.start..vma.end, args, &mut found)?;
        }
        Ok(found
            .iter()
            .filter_map(|region| whole_huge(region.start, region.end))
            .collect())
    }

    /// Ends the tracking and makes huge pages again of what were some. Best effort: a page that cannot be had stays small.
    pub fn disarm(&mut self) {
        if self.uffd.take().is_none() {
            return;
        }
        let spans: Vec<_> = self
            .huge
            .drain(..)
            .map(|span| (span.start, span.len() as usize))
            .collect();
        if let Ok(process) = pidfd::open(self.pid) {
            let _ = pidfd::collapse(std::os::fd::AsFd::as_fd(&process), &pieces(&spans));
        }
    }
}

/// One request for each huge page, so that one that fails does not keep the others from being made.
pub(crate) fn pieces(spans: &[(u64, usize)]) -> Vec<(u64, usize)> {
    let step = HUGE_BYTES as usize;
    spans
        .iter()
        .flat_map(|(start, bytes)| (0..bytes / step).map(move |i| (start + (i * step) as u64, step)))
        .collect()
}

/// A kernel that does not know a category refuses it, also where nothing is mapped.
fn tells_guards(pagemap: &Pagemap) -> Result<bool> {
    let args = ScanArgs {
        mask: category::GUARD,
        ..ScanArgs::default()
    };
    match pagemap.scan(PAGE_SIZE..2 * PAGE_SIZE, args, &mut Vec::new()) {
        Err(error) if error.errno() == Some(libc::EINVAL) => Ok(false),
        other => other.map(|()| true),
    }
}

fn private(vmas: &[Vma]) -> impl Iterator<Item = &Vma> {
    vmas.iter().filter(|vma| !vma.shared && !vma.is_special())
}

fn span_of(vma: &Vma) -> Span {
    Span {
        start: vma.start,
        end: vma.end,
    }
}

/// The parts of `span` that are private mappings.
fn parts(vmas: &[Vma], span: Span) -> impl Iterator<Item = Span> + '_ {
    let inside = private(vmas).filter(move |vma| vma.start < span.end && span.start < vma.end);
    inside.map(move |vma| Span {
        start: vma.start.max(span.start),
        end: vma.end.min(span.end),
    })
}

fn whole_huge(start: u64, end: u64) -> Option<Span> {
    let (start, end) = (start.next_multiple_of(HUGE_BYTES), end / HUGE_BYTES * HUGE_BYTES);
    (start < end).then_some(Span { start, end })
}

fn jobs(vmas: &[Vma]) -> Vec<Span> {
    let mut jobs = Vec::new();
    for vma in private(vmas) {
        let mut start = vma.start;
        while start < vma.end {
            let end = vma.end.min((start + JOB_BYTES) / HUGE_BYTES * HUGE_BYTES);
            jobs.push(Span { start, end });
            start = end;
        }
    }
    jobs
}

fn runs<'a>(regions: impl Iterator<Item = &'a Region>) -> Vec<PageRun> {
    let mut spans: Vec<Span> = Vec::new();
    for region in regions {
        match spans.last_mut() {
            // A range that failed before may be told twice.
            Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
            _ => push_span(
                &mut spans,
                Span {
                    start: region.start,
                    end: region.end,
                },
            ),
        }
    }
    spans.iter().map(|span| span.run(PRIVATE)).collect()
}

/// Cuts ascending runs where the gap is large or the order ends.
fn windows(runs: &[PageRun]) -> impl Iterator<Item = &[PageRun]> {
    runs.chunk_by(|a, b| {
        let after = a.first + a.count;
        a.space == b.space && b.first >= after && b.first - after <= PEEK_GAP_PAGES
    })
}

/// The parts of ascending `window` that lie in ascending `regions`.
fn intersect(window: &[PageRun], regions: &[Region], out: &mut Vec<PageRun>) {
    let mut at = 0;
    for run in window {
        let span = Span::of(run);
        while regions.get(at).is_some_and(|region| region.end <= span.start) {
            at += 1;
        }
        let inside = regions
            .iter()
            .skip(at)
            .take_while(|region| region.start < span.end);
        for region in inside {
            let (start, end) = (region.start.max(span.start), region.end.min(span.end));
            out.push(PageRun {
                space: run.space,
                first: start / PAGE_SIZE,
                count: (end - start) / PAGE_SIZE,
            });
        }
    }
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

    fn region(first: u64, last: u64) -> Region {
        Region {
            start: first * PAGE_SIZE,
            end: last * PAGE_SIZE,
            categories: 0,
        }
    }

    #[test]
    fn runs_that_lie_close_are_looked_at_together() {
        let runs = [run(1, 2), run(10, 5), run(500, 1), run(400, 1)];
        let cut: Vec<_> = windows(&runs).map(<[_]>::len).collect();
        assert_eq!(cut, [2, 1, 1]);
    }

    #[test]
    fn only_what_was_asked_for_is_told() {
        let mut out = Vec::new();
        intersect(
            &[run(1, 4), run(6, 2), run(20, 10)],
            &[region(0, 2), region(4, 7), region(22, 40)],
            &mut out,
        );
        assert_eq!(out, [run(1, 1), run(4, 1), run(6, 1), run(22, 8)]);
    }

    #[test]
    fn big_mappings_become_several_jobs_that_cover_them() {
        let vma = Vma {
            start: 0x1000,
            end: 0x1000 + 3 * JOB_BYTES,
            ..Vma::default()
        };
        let shared = Vma {
            shared: true,
            ..vma.clone()
        };
        let jobs = jobs(&[vma.clone(), shared]);
        assert!(jobs.len() >= 3);
        assert_eq!((jobs[0].start, jobs[jobs.len() - 1].end), (vma.start, vma.end));
        assert!(jobs.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    #[test]
    fn huge_pages_are_whole() {
        let expected = Span {
            start: 0x20_0000,
            end: 0x60_0000,
        };
        assert_eq!(whole_huge(0x1000, 0x61_0000), Some(expected));
        assert_eq!(whole_huge(0x1000, 0x30_0000), None);
        assert_eq!(pieces(&[(0, 0x60_0000)]).len(), 3);
    }
}
