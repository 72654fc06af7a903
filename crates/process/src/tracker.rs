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
use whimbrel_kernel::uffd::{self, Injection, Uffd};
use whimbrel_policy::{PageRun, Pages, SpaceId, PAGE_SIZE};

use crate::layout::{push_span, Span, ADDRESS_MAX};

/// The space of the first process' private pages.
pub const PRIVATE: SpaceId = SpaceId(0);
/// A huge page of x86-64.
pub const HUGE_BYTES: u64 = 2 << 20;
/// Pages between two runs that are rather looked at as well than skipped by another system call.
const PEEK_GAP_PAGES: u64 = 64;
/// The same in bytes.
const PEEK_GAP_BYTES: u64 = PEEK_GAP_PAGES * PAGE_SIZE;
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
    /// What was seen to be huge: the first write to a protected huge page splits it.
    huge: Vec<Span>,
    /// Pages that the scans have found to have content of their own. A page that was not written since then still has it.
    known: Pages,
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
            known: Pages::new(),
            failed: Vec::new(),
            strange: Vec::new(),
        })
    }

    /// Puts a userfaultfd into the process, whose leader is stopped.
    ///
    /// # Errors
    /// The process cannot be traced, or this kernel cannot track (Linux 6.7 is needed).
    pub fn arm(&mut self) -> Result<()> {
        let how = Injection {
            features: uffd::feature::TRACK_WRITES,
            ..Injection::default()
        };
        self.uffd = Some(uffd::inject_stopped(self.pid, self.pid, how)?.0);
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
            match self.take(span_of(vma), &mut found) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(libc::ESRCH) => return Err(error),
                Err(_) => self.failed.push(span_of(vma)),
            }
        }
        found.sort_unstable_by_key(|region| region.start);
        let written = runs(found.iter());
        self.note_known(&written)?;
        Ok(written)
    }

    /// Get-and-clear of one mapping.
    fn take(&self, span: Span, found: &mut Vec<Region>) -> Result<()> {
        let args = self.without_guards(ScanArgs::take_written());
        let changed = self.changed(span)?;
        changed
            .iter()
            .try_for_each(|part| self.pagemap.scan(part.start..part.end, args, found))
    }

    /// The parts of a tracked mapping with all that was written or was never there, and some pages between them.
    fn changed(&self, span: Span) -> Result<Vec<Span>> {
        let mut regions = Vec::new();
        self.pagemap
            .scan(span.start..span.end, ScanArgs::written(), &mut regions)?;
        Ok(merged(regions.iter().map(span_of_region), PEEK_GAP_BYTES))
    }

    fn note_known(&mut self, runs: &[PageRun]) -> Result<()> {
        let too_long =
            |error: whimbrel_policy::RunTooLong| whimbrel_kernel::error::Error::other(error.to_string());
        runs.iter()
            .try_for_each(|run| self.known.insert(*run).map_err(too_long))
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
    /// What was not written since the scans before is known from them; only the rest is looked at closely.
    ///
    /// # Errors
    /// The process has ended.
    pub fn scan_frozen(&mut self, vmas: &[Vma]) -> Result<FrozenScan> {
        let Looked {
            seen,
            mut found,
            strange,
        } = self.look(&jobs(vmas))?;
        self.strange.extend(strange);
        found.sort_unstable_by_key(|region| region.start);
        let (guards, found): (Vec<Region>, Vec<Region>) = found
            .into_iter()
            .partition(|region| region.categories & category::GUARD != 0);
        let written = |region: &&Region| {
            region.categories & (category::WRITTEN | category::SWAPPED) != 0
                || self.is_uncertain(span_of_region(region))
        };
        let written = runs(found.iter().filter(written));
        let huge = self.huge_now(vmas, &found);
        self.forget_unmapped(vmas);
        for span in seen {
            self.known.remove(span.run(PRIVATE));
        }
        self.note_known(&runs(found.iter()))?;
        Ok(FrozenScan {
            written,
            present: self.known.runs().collect(),
            guards: guards.iter().map(span_of_region).collect(),
            huge,
        })
    }

    fn look(&self, jobs: &[Job]) -> Result<Looked> {
        let next = AtomicUsize::new(0);
        let work = || self.work(jobs, &next);
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..SCAN_THREADS.min(jobs.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let mut all = work()?;
            for helper in helpers {
                let more = helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                all.seen.extend(more.seen);
                all.found.extend(more.found);
                all.strange.extend(more.strange);
            }
            Ok(all)
        })
    }

    fn work(&self, jobs: &[Job], next: &AtomicUsize) -> Result<Looked> {
        let mut looked = Looked::default();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let parts = self.worth_a_look(job, &mut looked.strange)?;
            let args = self.with_guards(job.anonymous);
            for part in &parts {
                self.pagemap.scan(part.start..part.end, args, &mut looked.found)?;
            }
            looked.seen.extend(parts);
        }
        Ok(looked)
    }

    /// The parts of a job that the scans before do not tell about.
    fn worth_a_look(&self, job: &Job, strange: &mut Vec<Span>) -> Result<Vec<Span>> {
        if self.uffd.is_none() {
            return Ok(vec![job.span]);
        }
        match self.changed(job.span) {
            Ok(changed) if job.anonymous && !self.is_uncertain(job.span) => Ok(changed),
            Ok(_) => Ok(vec![job.span]),
            // It is not registered: nothing is known of it.
            Err(error) if error.errno() == Some(libc::EPERM) => {
                strange.push(job.span);
                Ok(vec![job.span])
            }
            Err(error) => Err(error),
        }
    }

    /// What lay between today's mappings is gone.
    fn forget_unmapped(&mut self, vmas: &[Vma]) {
        let mut from = 0;
        let end = Span {
            start: ADDRESS_MAX,
            end: ADDRESS_MAX,
        };
        for span in private(vmas).map(span_of).chain([end]) {
            let gap = Span {
                start: from,
                end: span.start,
            };
            self.known.remove(gap.run(PRIVATE));
            from = span.end;
        }
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

    /// Private pages that are there, with what is huge, and guards, told apart. A copy of a file's page that was dropped
    /// looks like an unwritten page in swap, so that these are told apart too.
    fn with_guards(&self, anonymous: bool) -> ScanArgs {
        let args = ScanArgs::private_present();
        let guard = if self.tells_guards { category::GUARD } else { 0 };
        let swapped = if anonymous { 0 } else { category::SWAPPED };
        ScanArgs {
            returned: args.returned | category::HUGE | guard | swapped,
            ..args
        }
    }

    /// Regions and jobs are no larger than mappings, and mappings fail as a whole.
    fn is_uncertain(&self, span: Span) -> bool {
        let mut uncertain = self.failed.iter().chain(&self.strange);
        uncertain.any(|uncertain| uncertain.overlaps(&span))
    }

    /// What is huge now or was seen to be, as far as it is still mapped: whole huge pages.
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
        merged(spans.into_iter(), 0)
    }

    /// Remembers what is huge in those of `vmas` that smaps says have huge pages: the last scan does not look at what was not
    /// written. `vmas` were read with flags.
    ///
    /// # Errors
    /// The process has ended.
    pub fn note_huge(&mut self, vmas: &[Vma]) -> Result<()> {
        let args = ScanArgs {
            mask: category::HUGE,
            returned: category::HUGE,
            ..ScanArgs::default()
        };
        let mut found = Vec::new();
        for vma in private(vmas).filter(|vma| vma.huge_bytes > 0) {
            self.pagemap.scan(vma.start..vma.end, args, &mut found)?;
        }
        let huge = found
            .iter()
            .filter_map(|region| whole_huge(region.start, region.end));
        self.huge.extend(huge);
        self.huge.sort_unstable();
        self.huge = merged(std::mem::take(&mut self.huge).into_iter(), 0);
        Ok(())
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

/// What was looked at closely, and what was found there.
#[derive(Debug, Default)]
struct Looked {
    seen: Vec<Span>,
    found: Vec<Region>,
    /// What turned out not to be registered.
    strange: Vec<Span>,
}

fn span_of_region(region: &Region) -> Span {
    Span {
        start: region.start,
        end: region.end,
    }
}

/// Ascending spans, joined where at most `gap` bytes lie between two of them.
fn merged(spans: impl Iterator<Item = Span>, gap: u64) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end.saturating_add(gap) => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
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

/// A part of a mapping to look at.
#[derive(Debug)]
struct Job {
    span: Span,
    /// Nothing lies behind it: what is dropped is not there.
    anonymous: bool,
}

fn jobs(vmas: &[Vma]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for vma in private(vmas) {
        let mut start = vma.start;
        while start < vma.end {
            let end = vma.end.min((start + JOB_BYTES) / HUGE_BYTES * HUGE_BYTES);
            let span = Span { start, end };
            jobs.push(Job {
                span,
                anonymous: vma.is_anonymous(),
            });
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
        assert_eq!(
            (jobs[0].span.start, jobs[jobs.len() - 1].span.end),
            (vma.start, vma.end)
        );
        assert!(jobs.windows(2).all(|pair| pair[0].span.end == pair[1].span.start));
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
