//! Memory that comes after its process has begun to run (post-copy).
//!
//! One lock holds the book ([`book`]), the userfaultfds and who waits. What the kernel tells is read and handled under it, in
//! the order in which it is read; pages are placed under it, a few at a time. While something changes an address space, the kernel
//! refuses to fill anything there (EAGAIN): so where a page belongs is decided when nothing changes, and true until it is there.
//!
//! PID 1 of the container holds duplicates of the userfaultfds: if the last descriptor was closed, threads that wait would read zeros. The
//! log ([`log`]) tells whoever takes over what the book knew.

mod arm;
pub mod book;
mod events;
pub mod lineage;
mod log;
mod place;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use whimbrel_engine::waiters::Waiters;
use whimbrel_engine::{News, Pager, Tell};
use whimbrel_kernel::freezer::Group;
use whimbrel_kernel::uffd::Uffd;
use whimbrel_kernel::{fd, namespace};
use whimbrel_policy::postcopy::Fault;
use whimbrel_policy::{PageRun, RunTooLong};
use whimbrel_wire::FaultTimes;

use crate::container::{self, Keeper};
use crate::tracker::PRIVATE;
use book::{Book, Record};
use log::Log;

pub(crate) use arm::{occupied, Armament};

/// What can go wrong with pages that come late.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// PID 1 of the container.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The log of what is missing.
    #[error("cannot {verb} {path}, which tells what the workload still lacks: {source}")]
    Log {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More pages than there can be.
    #[error("the source owes pages that no process can have ({0}); this is a bug or an attack")]
    Pages(RunTooLong),
    /// A call came out of order, or does not fit.
    #[error("{0}")]
    Unfit(String),
}

impl From<RunTooLong> for PagerError {
    fn from(error: RunTooLong) -> Self {
        PagerError::Pages(error)
    }
}

type Result<T> = std::result::Result<T, PagerError>;

/// What [`crate::recover`] needs to go on with pages that come late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerResources {
    /// The log of what is missing.
    pub log: PathBuf,
}

/// Serves the missing pages of a workload.
#[derive(Debug)]
pub struct ProcessPager {
    state: Mutex<State>,
    /// Threads that want the lock for what the workload waits for; who places pages lets them.
    eager: AtomicUsize,
    /// A byte for whoever waits for events when there is something new to wait for.
    news: (OwnedFd, OwnedFd),
    /// Readable when the workload has ended.
    ended: OwnedFd,
    container: container::Resources,
}

/// What the lock holds.
#[derive(Debug)]
struct State {
    book: Book,
    log: Log,
    uffds: BTreeMap<u32, Arc<Uffd>>,
    next_space: u32,
    keeper: Keeper,
    waiters: Waiters,
    /// There is a userfaultfd that nobody waits for yet.
    grown: bool,
    /// Since when nothing could be filled because something always changes.
    starving: Option<Instant>,
    /// Since when the workload is frozen so that nothing changes for a moment.
    breather: Option<Instant>,
    paused: bool,
    finished: bool,
}

impl State {
    /// With nothing under way and nobody who waits.
    fn new(book: Book, log: Log, uffds: BTreeMap<u32, Arc<Uffd>>, next_space: u32, keeper: Keeper) -> State {
        State {
            book,
            log,
            uffds,
            next_space,
            keeper,
            waiters: Waiters::new(),
            grown: false,
            starving: None,
            breather: None,
            paused: false,
            finished: false,
        }
    }

    /// Writes a record down and carries it out; tells what is not wanted any more.
    fn record(&mut self, record: &Record, tell: Tell<'_>) -> Result<()> {
        // A log that cannot be written is of no use to whoever comes after us; what the kernel has told counts nevertheless.
        if self.log.append(record).is_err() {
            self.log.spoil();
        }
        for run in self.book.apply(record)? {
            tell(News::Gone(run));
        }
        Ok(())
    }
}

impl ProcessPager {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock for somebody whom the workload waits for.
    fn lock_soon(&self) -> MutexGuard<'_, State> {
        self.eager.fetch_add(1, Ordering::Relaxed);
        let state = self.lock();
        self.eager.fetch_sub(1, Ordering::Relaxed);
        state
    }

    fn group(&self) -> Group {
        Group::at(&self.container.group)
    }

    /// There is a new userfaultfd to wait for.
    fn ring(&self) {
        // A full pipe rings already.
        let _ = fd::write_all(std::os::fd::AsFd::as_fd(&self.news.1), &[0]);
    }
}

/// Whoever is dropped in the middle of a breather does not leave the workload frozen; somebody else will serve it.
impl Drop for ProcessPager {
    fn drop(&mut self) {
        let mut state = self.lock();
        if state.breather.take().is_some() && !state.paused {
            let _ = self.group().thaw();
        }
    }
}

impl Pager for ProcessPager {
    type Error = PagerError;

    fn serve(&self, timeout: Duration, tell: Tell<'_>) -> Result<bool> {
        self.wait_and_handle(timeout, tell)
    }

    fn place(&self, run: PageRun, data: Option<&[u8]>, tell: Tell<'_>) -> Result<()> {
        self.place_run(run, data, tell)
    }

    fn look_again(&self, run: PageRun) -> Result<()> {
        let mut state = self.lock();
        let addresses = state.waiters.look_again(run);
        for (space, address) in addresses {
            state.wake(space, address);
        }
        Ok(())
    }

    fn missing_pages(&self) -> u64 {
        self.lock().book.missing().len()
    }

    fn missing(&self) -> Vec<PageRun> {
        self.lock().book.missing().runs().collect()
    }

    fn waiting(&self) -> Vec<Fault> {
        self.lock().waiters.faults()
    }

    fn times(&self) -> FaultTimes {
        self.lock().waiters.times()
    }

    fn pause(&self) -> Result<()> {
        let mut state = self.lock();
        if !state.finished {
            state.paused = true;
            self.group().freeze_soon()?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let mut state = self.lock();
        let missing = state.book.missing().len();
        if missing > 0 {
            return Err(PagerError::Unfit(format!(
                "{missing} pages of the workload are missing, and its threads must go on waiting for them"
            )));
        }
        if state.finished {
            return Ok(());
        }
        // Whoever waits for a page that nobody ever wrote reads zeros when the last one is closed.
        state.uffds.clear();
        state.keeper.drop_all()?;
        if state.paused || state.breather.is_some() {
            self.group().thaw()?;
            state.paused = false;
            state.breather = None;
        }
        state.log.remove()?;
        state.finished = true;
        self.ring();
        Ok(())
    }

    fn give_up(&self, sentence: &str) -> Result<()> {
        let _state = self.lock();
        give_up(&self.container, sentence)
    }
}

/// Ends all of a container's workload, which lacks pages that cannot be had.
pub(crate) fn give_up(container: &container::Resources, sentence: &str) -> Result<()> {
    let noted = container::note_trouble(container, sentence);
    let group = Group::at(&container.group);
    for pid in group.processes()? {
        namespace::kill(pid);
    }
    // Version 1 of the freezer keeps killed processes frozen.
    group.thaw()?;
    Ok(noted?)
}

/// The source's page that holds a byte.
fn page_at(source: u64) -> whimbrel_policy::Page {
    whimbrel_policy::Page {
        space: PRIVATE,
        number: source / whimbrel_policy::PAGE_SIZE,
    }
}
