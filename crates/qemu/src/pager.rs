//! Pages of a machine that come after it has begun to run (post-copy).
//!
//! A machine's memory never moves, so this is simple: whoever touches a page that is not there waits, and either it is missing,
//! then it is asked for, or nobody ever wrote it (or the balloon has dropped it since), then it is a page of zeros.
//!
//! QEMU itself keeps a duplicate of the userfaultfd: with everybody else dead its threads go on waiting. What is missing is written down
//! once; whoever takes over looks which of it is there by now, since a page that is there is complete.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use whimbrel_engine::waiters::{Waiter, Waiters};
use whimbrel_engine::{Left, News, Pager, Tell};
use whimbrel_kernel::identity::Identity;
use whimbrel_kernel::uffd::{feature, mode, Event, Partial, Uffd};
use whimbrel_kernel::{fd, pidfd};
use whimbrel_kernel::{proc, remote};
use whimbrel_policy::postcopy::{Fault, ThreadId};
use whimbrel_policy::{Page, PageRun, Pages, PAGE_SIZE};
use whimbrel_wire::FaultTimes;

use crate::blocks::{Block, Place};
use crate::error::{MachineError, Result};
use crate::launch::MachineResources;
use crate::memory::GuestMemory;
use crate::source::kill;
use crate::spec::{decode, encode};
use crate::voice::{Voice, Word};
use crate::watch::Made;

pub(crate) const FEATURES: u64 = feature::MISSING_SHMEM | feature::THREAD_ID;
/// Bit of a fault's flags: the thread wants to write.
const FAULT_WRITE: u64 = 1;
/// All blocks are one address space.
const SPACE: u32 = 0;
/// Pages that are placed before somebody else may have the lock.
const PAGES_AT_ONCE: u64 = 64;
/// How long what was said to QEMU may take once it lacks nothing.
const HEARD_MAX: Duration = Duration::from_secs(30);
/// What a number of a descriptor must stand for.
const USERFAULTFD: &str = "anon_inode:[userfaultfd]";
/// The file that says what is missing, in the machine's directory.
pub(crate) const MISSING: &str = "missing";

/// What is needed to go on with pages that come late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerResources {
    /// The userfaultfd's number in QEMU.
    pub inside: i32,
    /// What was missing at the beginning.
    pub missing: PathBuf,
    /// The blocks that are watched, in the order of their spaces: name, bytes, address in QEMU.
    pub blocks: Vec<Place>,
}

/// The content of that file.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    /// Space, first page, pages.
    missing: Vec<(u32, u64, u64)>,
}

impl PagerResources {
    fn forget_missing(&self) -> Result<()> {
        match fs::remove_file(&self.missing) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(MachineError::file("remove", &self.missing)(e))
            }
            _ => Ok(()),
        }
    }
}

impl Begun {
    fn pages(&self) -> Result<Pages> {
        let run = |(space, first, count): &(u32, u64, u64)| PageRun {
            space: whimbrel_policy::SpaceId(*space),
            first: *first,
            count: *count,
        };
        let runs: Vec<PageRun> = self.missing.iter().map(run).collect();
        Ok(Pages::from_runs(&runs)?)
    }
}

/// Serves the missing pages of a machine.
#[derive(Debug)]
pub struct QemuPager {
    state: Mutex<State>,
    uffd: Uffd,
    memory: GuestMemory,
    ended: Arc<OwnedFd>,
    resources: MachineResources,
    made: PagerResources,
    voice: Arc<Voice>,
}

#[derive(Debug)]
struct State {
    missing: Pages,
    waiters: Waiters,
    is_paused: bool,
    is_finished: bool,
    /// QEMU has no duplicate of the userfaultfd any more.
    is_closed: bool,
}

impl QemuPager {
    /// Whoever touches one of `missing` from now on waits. None of them is there.
    pub(crate) fn arm(
        made: Made,
        voice: Arc<Voice>,
        memory: GuestMemory,
        missing: &[PageRun],
        resources: &MachineResources,
    ) -> Result<(QemuPager, PagerResources)> {
        for block in memory.blocks() {
            made.uffd.register(block.host, block.bytes, mode::MISSING)?;
        }
        if let Some(stale) = memory.present(missing, true)?.first() {
            return Err(MachineError::unfit(format!(
                "the kernel has filled page {:#x} with a huge page at the very moment when the machine was to wait for it: try again",
                stale.first
            )));
        }
        let pager = PagerResources {
            inside: made.inside,
            missing: resources.directory.join(MISSING),
            blocks: memory.blocks().iter().map(Block::place).collect(),
        };
        let begun = Begun {
            missing: missing
                .iter()
                .map(|run| (run.space.0, run.first, run.count))
                .collect(),
        };
        fs::write(&pager.missing, encode(&begun)).map_err(MachineError::file("write", &pager.missing))?;
        let missing = Pages::from_runs(missing)?;
        let new = QemuPager::new(made.uffd, memory, missing, resources, pager.clone(), voice);
        Ok((new, pager))
    }

    fn new(
        uffd: Uffd,
        memory: GuestMemory,
        missing: Pages,
        resources: &MachineResources,
        made: PagerResources,
        voice: Arc<Voice>,
    ) -> QemuPager {
        QemuPager {
            state: Mutex::new(State {
                missing,
                waiters: Waiters::new(),
                is_paused: false,
                is_finished: false,
                is_closed: false,
            }),
            uffd,
            ended: Arc::clone(memory.process()),
            memory,
            resources: resources.clone(),
            made,
            voice,
        }
    }

    /// What a dead controller left.
    pub(crate) fn recover(
        resources: &MachineResources,
        made: &PagerResources,
        process: Identity,
    ) -> Result<Left<QemuPager>> {
        let bytes = match fs::read(&made.missing) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Left::Nothing),
            Err(e) => return Err(MachineError::file("read", &made.missing)(e)),
        };
        let begun: Begun = decode("the list of missing pages", &bytes)?
            .ok_or_else(|| MachineError::unfit(format!("{} is empty", made.missing.display())))?;
        let pidfd = pidfd::open(process.pid)?;
        if !process.is_alive() {
            return Ok(Left::Nothing);
        }
        let memory = GuestMemory::reopen(process.pid, &made.blocks)?;
        let voice = Arc::new(Voice::new(None, resources, memory.process())?);
        if resources.running {
            voice.say(Word::Cont);
        }
        voice.say(Word::Settle);
        let link = proc::link(process.pid, &format!("fd/{}", made.inside));
        if !link.is_ok_and(|link| link == USERFAULTFD) {
            // The dead one was about to remove the list: everything had come.
            if !voice.wait(HEARD_MAX)? {
                return Err(unanswered(process.pid));
            }
            return made.forget_missing().map(|()| Left::Nothing);
        }
        let mut missing = begun.pages()?;
        let listed: Vec<PageRun> = missing.runs().collect();
        missing.subtract(&Pages::from_runs(&memory.present(&listed, true)?)?);
        let uffd = Uffd::from(pidfd::getfd(pidfd.as_fd(), made.inside)?);
        let pager = QemuPager::new(uffd, memory, missing, resources, made.clone(), voice);
        if pager.missing_pages() == 0 {
            return pager.finish().map(|()| Left::Nothing);
        }
        // Who was told to the dead one is told to us: every thread that waits looks again.
        for block in pager.memory.blocks() {
            pager.uffd.wake(block.host, block.bytes)?;
        }
        Ok(Left::Pages(pager))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, tell: Tell<'_>) -> Result<()> {
        for event in self.uffd.events()? {
            let Event::Fault {
                address,
                flags,
                thread,
            } = event
            else {
                continue;
            };
            let Some(run) = self.memory.page_at(address) else {
                continue;
            };
            let page = Page {
                space: run.space,
                number: run.first,
            };
            let mut state = self.lock();
            if !state.missing.contains(page) {
                state.waiters.served_here();
                drop(state);
                self.fill(&run, None)?;
                continue;
            }
            let waiter = Waiter {
                space: SPACE,
                address: address / PAGE_SIZE * PAGE_SIZE,
                write: flags & FAULT_WRITE != 0,
                thread,
                since: Instant::now(),
                told: None,
            };
            if !state.waiters.knows(&waiter) && state.waiters.wait(waiter, page) {
                tell(News::Fault(Fault {
                    page,
                    thread: ThreadId(thread),
                    repeated: false,
                }));
            }
        }
        Ok(())
    }

    /// Puts pages where they belong. What is there already stays.
    fn fill(&self, run: &PageRun, data: Option<&[u8]>) -> Result<()> {
        let (block, offset) = self.memory.locate(run)?;
        let (start, bytes) = (block.host + offset, run.count * PAGE_SIZE);
        let mut at = 0;
        while at < bytes {
            let filled = match data {
                Some(data) => self
                    .uffd
                    .copy(start + at, data.get(at as usize..).unwrap_or_default(), 0),
                None => self.uffd.zeropage(start + at, bytes - at, 0),
            };
            let Err(Partial { done, error }) = filled else {
                return Ok(());
            };
            at += done;
            match error.errno() {
                // Asked again it says why.
                _ if done > 0 => {}
                Some(libc::EEXIST) => {
                    // It fails when the process has ended: nobody waits.
                    let _ = self.uffd.wake(start + at, PAGE_SIZE);
                    at += PAGE_SIZE;
                }
                Some(libc::EAGAIN) => std::thread::yield_now(),
                // It has ended, or nobody watches it any more.
                Some(libc::ESRCH | libc::ENOENT) => return Ok(()),
                _ => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn place_some(&self, some: PageRun, data: Option<&[u8]>) -> Result<()> {
        let mut state = self.lock();
        if state.is_finished {
            return Ok(());
        }
        for run in missing_of(&state.missing, &some) {
            let from = ((run.first - some.first) * PAGE_SIZE) as usize;
            let length = (run.count * PAGE_SIZE) as usize;
            let part = data.map(|data| data.get(from..from + length).unwrap_or_default());
            self.fill(&run, part)?;
            state.missing.remove(run);
            state.waiters.served(run);
        }
        Ok(())
    }

    /// Nobody waits from here on.
    fn unwatch(&self) -> Result<()> {
        let mut state = self.lock();
        let missing = state.missing.len();
        if missing > 0 {
            return Err(MachineError::unfit(format!(
                "{missing} pages of the machine are missing, and it must go on waiting for them"
            )));
        }
        if state.is_finished {
            return Ok(());
        }
        for block in self.memory.blocks() {
            // Whoever waits for a page that nobody ever wrote reads zeros.
            self.uffd.unregister(block.host, block.bytes)?;
        }
        state.is_finished = true;
        if std::mem::take(&mut state.is_paused) && self.resources.running {
            self.voice.say(Word::Cont);
        }
        Ok(())
    }

    /// QEMU's own duplicate goes, too.
    fn close_inside(&self) -> Result<()> {
        let inside = self.made.inside as u64;
        remote::with_leader(self.memory.pid(), |remote| {
            remote.call("close", libc::SYS_close, &[inside])
        })?;
        Ok(())
    }
}

fn unanswered(pid: i32) -> MachineError {
    MachineError::unfit(format!(
        "QEMU (process {pid}) lacks nothing any more and does not answer; it is asked again"
    ))
}

/// The parts of `some` that are missing.
fn missing_of(missing: &Pages, some: &PageRun) -> Vec<PageRun> {
    let end = some.first + some.count;
    let from = Page {
        space: some.space,
        number: some.first,
    };
    let inside = missing
        .runs_from(from)
        .take_while(|run| run.space == some.space && run.first < end);
    inside
        .map(|run| {
            let first = run.first.max(some.first);
            PageRun {
                first,
                count: (run.first + run.count).min(end) - first,
                ..run
            }
        })
        .collect()
}

impl Pager for QemuPager {
    type Error = MachineError;

    fn serve(&self, timeout: Duration, tell: Tell<'_>) -> Result<bool> {
        let ready = fd::wait_readable(&[self.ended.as_fd(), self.uffd.as_fd()], timeout)?;
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        if is_ready(0) {
            let mut state = self.lock();
            state.missing = Pages::new();
            state.is_finished = true;
            state.is_closed = true;
            return Ok(false);
        }
        if is_ready(1) && !self.lock().is_finished {
            self.handle(tell)?;
        }
        Ok(true)
    }

    fn place(&self, run: PageRun, data: Option<&[u8]>, _: Tell<'_>) -> Result<()> {
        self.memory.locate(&run)?;
        if data.is_some_and(|data| data.len() as u64 != run.count * PAGE_SIZE) {
            return Err(MachineError::unfit(format!(
                "{} pages came with another number of bytes than they have; this is a bug or an attack",
                run.count
            )));
        }
        let mut done = 0;
        while done < run.count {
            let some = PageRun {
                first: run.first + done,
                count: PAGES_AT_ONCE.min(run.count - done),
                ..run
            };
            let from = (done * PAGE_SIZE) as usize;
            self.place_some(some, data.map(|data| data.get(from..).unwrap_or_default()))?;
            done += some.count;
        }
        Ok(())
    }

    fn look_again(&self, run: PageRun) -> Result<()> {
        let addresses = self.lock().waiters.look_again(run);
        for (_, address) in addresses {
            // It fails when the process has ended: nobody waits.
            let _ = self.uffd.wake(address, PAGE_SIZE);
        }
        Ok(())
    }

    fn missing_pages(&self) -> u64 {
        self.lock().missing.len()
    }

    fn missing(&self) -> Vec<PageRun> {
        self.lock().missing.runs().collect()
    }

    fn waiting(&self) -> Vec<Fault> {
        self.lock().waiters.faults()
    }

    fn times(&self) -> FaultTimes {
        self.lock().waiters.times()
    }

    fn pause(&self) -> Result<()> {
        let mut state = self.lock();
        if !state.is_finished && !std::mem::replace(&mut state.is_paused, true) {
            self.voice.say(Word::Stop);
        }
        Ok(())
    }

    /// Nobody waits for an answer of QEMU's before all pages are there; then everybody does, since what was said would be lost with us.
    fn finish(&self) -> Result<()> {
        self.unwatch()?;
        match self.voice.wait(HEARD_MAX) {
            Ok(true) => {}
            Ok(false) => return Err(unanswered(self.memory.pid())),
            Err(refused) => {
                // Whoever comes back asks whether it was heard this time.
                self.voice.say(Word::Cont);
                return Err(refused);
            }
        }
        let mut state = self.lock();
        if !state.is_closed {
            self.close_inside()?;
            state.is_closed = true;
        }
        drop(state);
        self.made.forget_missing()
    }

    fn give_up(&self, sentence: &str) -> Result<()> {
        let _state = self.lock();
        let noted = self.resources.note_trouble(sentence);
        kill(self.ended.as_fd(), self.memory.pid())?;
        noted
    }
}
