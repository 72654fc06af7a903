//! What the kernel tells of the workload, and what follows from it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_engine::waiters::Waiter;
use whimbrel_engine::{News, Tell};
use whimbrel_kernel::fd;
use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::uffd::{Event, Uffd};
use whimbrel_policy::postcopy::{Fault, ThreadId};
use whimbrel_policy::PAGE_SIZE;

use super::book::{Piece, Record};
use super::place::Filled;
use super::{page_at, ProcessPager, Result, State};
use crate::layout::{Span, ADDRESS_MAX};

/// How long to wait for a thread that is about to tell what it has changed.
pub(super) const SETTLE_PAUSE: Duration = Duration::from_micros(50);
/// How long nothing may be filled because something always changes, before the workload is frozen for a moment.
const STARVE_MAX: Duration = Duration::from_millis(10);
/// How long it is frozen then, and how long at most if one of its threads takes long in the kernel.
const BREATHER: Duration = Duration::from_millis(5);
const BREATHER_MAX: Duration = Duration::from_millis(200);
/// Bit of a fault's flags: the thread wants to write.
const FAULT_WRITE: u64 = 1;
/// Nothing is mapped below (`vm.mmap_min_addr`).
const ADDRESS_MIN: u64 = 1 << 16;

impl ProcessPager {
    /// See [`whimbrel_engine::Pager::serve`].
    pub(super) fn wait_and_handle(&self, timeout: Duration, tell: Tell<'_>) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let (uffds, unsettled) = {
                let mut state = self.lock_soon();
                state.breathe(&self.group());
                let uffds: Vec<Arc<Uffd>> = state.uffds.values().cloned().collect();
                (uffds, state.is_unsettled())
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = if unsettled { left.min(SETTLE_PAUSE) } else { left };
            let mut fds: Vec<BorrowedFd<'_>> = vec![self.ended.as_fd(), self.news.0.as_fd()];
            fds.extend(uffds.iter().map(|uffd| uffd.as_fd()));
            let ready = fd::wait_readable(&fds, pause)?;
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            if is_ready(0) {
                self.lock_soon().end_all(tell)?;
                return Ok(false);
            }
            if is_ready(1) {
                // How many bytes does not matter, nor that somebody else was faster.
                let _ = fd::read(self.news.0.as_fd(), 64);
            }
            let told = ready.iter().skip(2).any(|ready| *ready);
            if told || unsettled {
                self.lock_soon().handle(tell)?;
            }
            if told || Instant::now() >= deadline {
                return Ok(true);
            }
        }
    }
}

impl State {
    /// Whether something has to be looked at again soon, event or not.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.waiters.undecided.is_empty() || !self.is_exact() || self.starving.or(self.breather).is_some()
    }

    /// Nothing can be filled while something changes. If several threads change something all the time, so that nobody ever gets
    /// a page, they are frozen for a moment.
    fn breathe(&mut self, group: &Group) {
        if self.paused || self.finished {
            return;
        }
        let starved = self.starving.is_some_and(|since| since.elapsed() > STARVE_MAX);
        match self.breather {
            // What fails is tried again: the group may be about to go.
            None if starved => self.breather = group.freeze_soon().ok().map(|()| Instant::now()),
            Some(since)
                if since.elapsed() > BREATHER
                    && (!starved || since.elapsed() > BREATHER_MAX)
                    && group.thaw().is_ok() =>
            {
                self.breather = None;
                self.starving = None;
            }
            _ => {}
        }
    }

    /// Whether nothing in the book hangs in the air.
    pub(super) fn is_exact(&self) -> bool {
        self.book
            .spaces()
            .values()
            .all(|addresses| addresses.is_settled())
    }

    /// Reads all that is told, and decides what can be decided.
    pub(super) fn handle(&mut self, tell: Tell<'_>) -> Result<()> {
        let mut done = BTreeSet::new();
        // A fork brings a new one.
        while let Some(space) = self.uffds.keys().find(|space| !done.contains(*space)).copied() {
            done.insert(space);
            self.drain(space, tell)?;
        }
        let spaces: Vec<u32> = self.uffds.keys().copied().collect();
        let mut quiet = BTreeSet::new();
        for space in spaces {
            if self.settle(space, tell)? {
                quiet.insert(space);
            }
        }
        self.decide(&quiet, tell)?;
        if self.waiters.undecided.is_empty() {
            // Whoever places pages says so itself.
            self.starving = self.starving.filter(|_| !self.is_exact());
        } else {
            self.starving.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn drain(&mut self, space: u32, tell: Tell<'_>) -> Result<()> {
        while let Some(uffd) = self.uffds.get(&space).cloned() {
            if fd::poll_now(uffd.as_fd(), libc::POLLIN)? & libc::POLLIN == 0 {
                break;
            }
            // As short as can be: whoever finds this set knows nothing.
            self.log.set_busy(true)?;
            for event in uffd.events()? {
                self.take_in(space, event, tell)?;
            }
            self.log.set_busy(false)?;
        }
        Ok(())
    }

    fn take_in(&mut self, space: u32, event: Event, tell: Tell<'_>) -> Result<()> {
        match event {
            Event::Fault {
                address,
                flags,
                thread,
            } => {
                self.waiters.add(Waiter {
                    space,
                    address: address / PAGE_SIZE * PAGE_SIZE,
                    write: flags & FAULT_WRITE != 0,
                    thread,
                    since: Instant::now(),
                    told: None,
                });
                return Ok(());
            }
            Event::Fork(uffd) => return self.forked(space, uffd, tell),
            Event::Remap { from, to, bytes } => {
                let record = Record::Moved {
                    space,
                    from,
                    to,
                    bytes,
                };
                self.record(&record, tell)?;
                self.send_on(space, from, from.saturating_add(bytes));
            }
            Event::Remove { start, end } => {
                let span = Span { start, end };
                self.record(&Record::Forgot { space, span }, tell)?;
            }
            Event::Unmap { start, end } => {
                let span = Span { start, end };
                self.record(&Record::Unmapped { space, span }, tell)?;
                self.send_on(space, start, end);
            }
        }
        self.waiters.reconsider(space);
        Ok(())
    }

    fn forked(&mut self, space: u32, uffd: Uffd, tell: Tell<'_>) -> Result<()> {
        // If nobody can keep it, only we hold it: whoever comes after us cannot go on.
        let kept = self.keeper.keep(uffd.as_fd()).unwrap_or(None);
        if kept.is_none() {
            self.log.spoil();
        }
        let child = self.next_space;
        self.next_space += 1;
        self.record(&Record::Forked { space, child, kept }, tell)?;
        self.uffds.insert(child, Arc::new(uffd));
        self.grown = true;
        Ok(())
    }

    /// Whoever waits in a range that is not what it was touches it again.
    fn send_on(&mut self, space: u32, start: u64, end: u64) {
        if let Some(uffd) = self.uffds.get(&space) {
            // It fails when the process has ended: nobody waits.
            let _ = uffd.wake(start, end.saturating_sub(start));
        }
        self.waiters
            .forget(space, |address| (start..end).contains(&address));
    }

    /// Whoever waits at this page touches it again.
    pub(super) fn wake(&self, space: u32, address: u64) {
        if let Some(uffd) = self.uffds.get(&space) {
            // It fails when the process has ended: nobody waits.
            let _ = uffd.wake(address, PAGE_SIZE);
        }
    }

    /// Everybody who waits touches its page again.
    pub(super) fn wake_all(&self) {
        for uffd in self.uffds.values() {
            let _ = uffd.wake(ADDRESS_MIN, ADDRESS_MAX - ADDRESS_MIN);
        }
    }

    /// True if nothing is under way in an address space: what the book says of it is exact.
    fn settle(&mut self, space: u32, tell: Tell<'_>) -> Result<bool> {
        let Some(uffd) = self.uffds.get(&space).cloned() else {
            return Ok(false);
        };
        match uffd.is_changing() {
            Ok(true) => return Ok(false),
            Err(error) if error.errno() == Some(libc::ESRCH) => return self.end(space, tell).map(|()| false),
            Err(error) => return Err(error.into()),
            Ok(false) => {}
        }
        let Some(addresses) = self.book.spaces().get(&space).filter(|one| !one.is_settled()) else {
            return Ok(true);
        };
        let mut gone = Vec::new();
        for piece in addresses.doubts() {
            match unmapped_parts(&uffd, piece)? {
                Some(parts) => gone.extend(parts),
                None => return Ok(false),
            }
        }
        // The kernel looks for a mapping before it looks whether something changes: only if nothing has begun meanwhile were the answers true.
        if !gone.is_empty() && uffd.is_changing().unwrap_or(true) {
            return Ok(false);
        }
        for span in gone {
            self.record(&Record::Forgot { space, span }, tell)?;
        }
        self.record(&Record::Settled { space }, tell)?;
        self.waiters.reconsider(space);
        Ok(true)
    }

    /// The workload has ended, and what it left running ends with it: nothing is wanted any more.
    fn end_all(&mut self, tell: Tell<'_>) -> Result<()> {
        for space in self.book.spaces().keys().copied().collect::<Vec<u32>>() {
            self.end(space, tell)?;
        }
        Ok(())
    }

    /// The address space is gone with its process.
    pub(super) fn end(&mut self, space: u32, tell: Tell<'_>) -> Result<()> {
        let kept = self
            .book
            .spaces()
            .get(&space)
            .and_then(|addresses| addresses.kept);
        self.record(&Record::Ended { space }, tell)?;
        self.uffds.remove(&space);
        self.waiters.forget(space, |_| true);
        // What stays with PID 1 holds nothing but a number, until the end.
        let _ = kept.map(|number| self.keeper.drop_one(number));
        Ok(())
    }

    /// What the threads wait for whose address space is quiet.
    fn decide(&mut self, quiet: &BTreeSet<u32>, tell: Tell<'_>) -> Result<()> {
        for waiter in std::mem::take(&mut self.waiters.undecided) {
            let Some(addresses) = self.book.spaces().get(&waiter.space) else {
                continue;
            };
            if !quiet.contains(&waiter.space) {
                self.waiters.undecided.push(waiter);
                continue;
            }
            let source = addresses.lineage.source_of(waiter.address);
            if let Some(source) = source.filter(|source| self.book.is_missing(*source)) {
                let page = page_at(source);
                if self.waiters.wait(waiter, page) {
                    let thread = ThreadId(waiter.thread);
                    tell(News::Fault(Fault {
                        page,
                        thread,
                        repeated: false,
                    }));
                }
                continue;
            }
            match self.fill_hole(waiter.space, waiter.address, waiter.write)? {
                Filled::Done => self.waiters.served_here(),
                Filled::Again => self.waiters.undecided.push(waiter),
                Filled::Dead => self.end(waiter.space, tell)?,
            }
        }
        Ok(())
    }
}

/// The parts of a piece that are not watched (any more). `None`: something changes at this moment.
fn unmapped_parts(uffd: &Uffd, (here, _, bytes): Piece) -> Result<Option<Vec<Span>>> {
    let mut gone = Vec::new();
    let mut parts = vec![Span {
        start: here,
        end: here + bytes,
    }];
    while let Some(part) = parts.pop() {
        match uffd.is_registered(part.start, part.len()) {
            Ok(true) => {}
            Ok(false) if part.len() <= PAGE_SIZE => crate::layout::push_span(&mut gone, part),
            // Some of it may be, or it is several mappings.
            Ok(false) => {
                let middle = part.start + part.len() / PAGE_SIZE / 2 * PAGE_SIZE;
                parts.push(Span {
                    start: middle,
                    ..part
                });
                parts.push(Span { end: middle, ..part });
            }
            Err(error) if matches!(error.errno(), Some(libc::EAGAIN | libc::ESRCH)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(gone))
}
