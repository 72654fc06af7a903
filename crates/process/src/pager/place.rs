//! Pages that have arrived, and pages that nobody ever wrote.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use whimbrel_engine::Tell;
use whimbrel_kernel::uffd::{Partial, Uffd};
use whimbrel_policy::{PageRun, PAGE_SIZE};

use super::book::{Piece, Record};
use super::events::SETTLE_PAUSE;
use super::{PagerError, ProcessPager, Result, State};
use crate::layout::Span;
use crate::tracker::PRIVATE;

/// How long a page that has arrived is tried to be placed.
const PLACE_MAX: Duration = Duration::from_secs(10);
/// Pages that are placed before somebody else may have the lock.
const PAGES_AT_ONCE: u64 = 16;
/// Pages after one that nobody ever wrote that are filled with it: whoever touches the one mostly touches them next.
const HOLES_AT_ONCE: u64 = 15;
static ZERO_PAGE: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// What became of an attempt to fill something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// All of it is there, or its place is gone.
    Done,
    /// Something changes: it has to be decided anew.
    Again,
    /// The process has ended.
    Dead,
}

impl ProcessPager {
    /// See [`whimbrel_engine::Pager::place`].
    pub(super) fn place_run(&self, run: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<()> {
        let bytes = run.count.checked_mul(PAGE_SIZE);
        if data.is_some_and(|data| Some(data.len() as u64) != bytes) {
            return Err(PagerError::Unfit(format!(
                "{} pages came with another number of bytes than they have; this is a bug or an attack",
                run.count
            )));
        }
        if run.space != PRIVATE {
            return Ok(()); // none of those was ever missing
        }
        // However long it says that it is: only what is missing counts.
        let wanted = self.lock().book.missing_of(run.first, run.count);
        for part in wanted {
            let mut done = 0;
            while done < part.count {
                let some = PageRun {
                    first: part.first.saturating_add(done),
                    count: PAGES_AT_ONCE.min(part.count - done),
                    ..part
                };
                let from = ((some.first - run.first) * PAGE_SIZE) as usize;
                let data = data.map(|data| data.get(from..).unwrap_or_default());
                self.place_surely(some, data, tell)?;
                done += some.count;
            }
        }
        Ok(())
    }

    /// Tries until nothing changes for a moment; who serves the pager sees to that.
    fn place_surely(&self, some: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<()> {
        let deadline = Instant::now() + PLACE_MAX;
        while !self.place_some(some, data, tell)? {
            if Instant::now() >= deadline {
                return Err(PagerError::Unfit(format!(
                    "page {:#x} cannot be placed: the workload changes its mappings without a pause, or nobody serves it",
                    some.first
                )));
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
        if self.eager.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn place_some(&self, some: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<bool> {
        let mut state = self.lock();
        let placed = state.finished || state.place(some, data, tell)?;
        if placed {
            state.starving = None;
        } else {
            state.starving.get_or_insert_with(Instant::now);
        }
        if std::mem::take(&mut state.grown) {
            self.ring();
        }
        Ok(placed)
    }
}

impl State {
    /// Puts those pages that are missing where they belong now. False: something changes, and it is to be tried again.
    fn place(&mut self, some: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<bool> {
        if self.book.missing_of(some.first, some.count).is_empty() {
            return Ok(true);
        }
        if !self.is_exact() {
            self.handle(tell)?;
            if !self.is_exact() {
                return Ok(false);
            }
        }
        let runs = self.book.missing_of(some.first, some.count);
        for space in self.uffds.keys().copied().collect::<Vec<u32>>() {
            match self.place_in(space, &runs, (some.first, data), tell)? {
                Filled::Done => {}
                Filled::Again => {
                    self.handle(tell)?;
                    return Ok(false);
                }
                Filled::Dead => self.end(space, tell)?,
            }
        }
        for run in self.book.missing_of(some.first, some.count) {
            let PageRun { first, count, .. } = run;
            self.record(&Record::Placed { first, count }, tell)?;
            self.waiters.served(run);
        }
        Ok(true)
    }

    /// In one address space. `content` is the number of a page, and the bytes from there on.
    fn place_in(
        &mut self,
        space: u32,
        runs: &[PageRun],
        (first, data): (u64, Option<&[u8]>),
        tell: Tell<'_>,
    ) -> Result<Filled> {
        let (Some(addresses), Some(uffd)) = (self.book.spaces().get(&space), self.uffds.get(&space)) else {
            return Ok(Filled::Done);
        };
        let uffd = uffd.clone();
        let places = runs.iter().flat_map(|run| {
            let span = Span::of(run);
            addresses.lineage.places(span.start, span.len())
        });
        for piece in places.collect::<Vec<Piece>>() {
            let (_, source, bytes) = piece;
            let from = (source - first * PAGE_SIZE) as usize;
            let part = data.map(|data| data.get(from..from + bytes as usize).unwrap_or_default());
            let mut gone = Vec::new();
            let filled = fill(&uffd, piece, part, &mut gone)?;
            for span in gone {
                self.record(&Record::Forgot { space, span }, tell)?;
            }
            if filled != Filled::Done {
                return Ok(filled);
            }
        }
        Ok(Filled::Done)
    }

    /// A page that nobody ever wrote, and some after it.
    pub(super) fn fill_hole(&self, space: u32, address: u64, write: bool) -> Result<Filled> {
        let (Some(addresses), Some(uffd)) = (self.book.spaces().get(&space), self.uffds.get(&space)) else {
            return Ok(Filled::Dead);
        };
        let filled = match write {
            true => uffd.copy(address, &ZERO_PAGE, 0),
            false => uffd.zeropage(address, PAGE_SIZE, 0),
        };
        if let Err(Partial { error, .. }) = filled {
            return match error.errno() {
                Some(libc::EAGAIN) => Ok(Filled::Again),
                Some(libc::ESRCH) => Ok(Filled::Dead),
                // It is there, or nothing is there any more.
                Some(libc::EEXIST | libc::ENOENT) => {
                    self.wake(space, address);
                    Ok(Filled::Done)
                }
                _ => Err(error.into()),
            };
        }
        let is_hole = |address: &u64| {
            let source = addresses.lineage.source_of(*address);
            !source.is_some_and(|source| self.book.is_missing(source))
        };
        let next = (1..=HOLES_AT_ONCE).map(|page| address + page * PAGE_SIZE);
        let count = next.take_while(is_hole).count() as u64;
        if count > 0 {
            // Only the page of zeros keeps off guard pages. Nobody waits for these: what cannot be filled is filled when it is touched.
            let _ = uffd.zeropage(address + PAGE_SIZE, count * PAGE_SIZE, 0);
        }
        Ok(Filled::Done)
    }
}

/// Fills a piece, page by page where it has to be. Pages that have no place any more are added to `gone`.
fn fill(uffd: &Uffd, (here, _, bytes): Piece, data: Option<&[u8]>, gone: &mut Vec<Span>) -> Result<Filled> {
    let mut at = 0;
    let mut most = bytes;
    while at < bytes {
        let count = most.min(bytes - at);
        let to = here + at;
        let filled = match data {
            Some(data) => {
                let part = data.get(at as usize..(at + count) as usize).unwrap_or_default();
                uffd.copy(to, part, 0)
            }
            None => uffd.zeropage(to, count, 0),
        };
        let Err(Partial { done, error }) = filled else {
            at += count;
            continue;
        };
        at += done;
        match error.errno() {
            // Asked again it says why.
            _ if done > 0 => {}
            Some(libc::EAGAIN) => return Ok(Filled::Again),
            Some(libc::ESRCH) => return Ok(Filled::Dead),
            Some(libc::EEXIST) => {
                // It fails when the process has ended: nobody waits.
                let _ = uffd.wake(to, PAGE_SIZE);
                at += PAGE_SIZE;
            }
            Some(libc::ENOENT) if count > PAGE_SIZE => most = PAGE_SIZE,
            // The kernel looks for the mapping before it looks whether something changes: what was moved away at this very moment is
            // not gone.
            Some(libc::ENOENT) if uffd.is_changing().unwrap_or(false) => return Ok(Filled::Again),
            Some(libc::ENOENT) => {
                let _ = uffd.wake(to, PAGE_SIZE);
                let page = Span {
                    start: to,
                    end: to + PAGE_SIZE,
                };
                crate::layout::push_span(gone, page);
                at += PAGE_SIZE;
            }
            _ => return Err(error.into()),
        }
    }
    Ok(Filled::Done)
}
