//! The state of a frozen process: threads, signals, timers, files, sockets.
//!
//! Every thread is stopped by ptrace. What /proc, ptrace and duplicated descriptors tell is read from outside; the rest is
//! asked by system calls inside the process (`calls`), after which its registers are as they were.

pub(crate) mod files;
pub(crate) mod process;
mod questions;
pub(crate) mod sockets;
pub mod syscalls;
pub(crate) mod threads;
pub(crate) mod unsent;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use whimbrel_kernel::maps::Vma;
use whimbrel_kernel::namespace;
use whimbrel_kernel::proc::{self, Status};
use whimbrel_kernel::ptrace::Stopped;
use whimbrel_kernel::socket::UnixDiag;
use whimbrel_kernel::task;

use crate::check;
use crate::refusal::{Refusal, Subject};
use crate::state::{
    Attributes, Clocks, Credentials, FileKind, MemoryDescriptor, OpenFile, ProcessState, Signals, State,
};
use files::{Files, Scope};
use threads::{Deliverable, Observed, Surroundings};
use unsent::{Numbered, Unsent};

pub use sockets::{leave_repair, RepairedSocket};
pub use syscalls::RestartMemo;

/// Why the state could not be captured. The process is as it was before, still stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// Something cannot move that was not there, or not visible, when the workload was checked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something is in a state that passes by itself.
    #[error("{subject} {what}: let it run on and try again")]
    Busy {
        /// What.
        subject: Subject,
        /// In which state.
        what: String,
    },
    /// The kernel gave something that we do not understand.
    #[error("{0}")]
    Odd(String),
}

impl Error {
    /// Whether it is worth to let the workload run for a moment and freeze it again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Busy { .. })
    }
}

/// The result of a capture.
pub type Result<T> = std::result::Result<T, Error>;

/// What is read before the freeze: what cannot change, or is needed to clean up after us.
#[derive(Debug)]
pub struct Prefetch {
    own_network: bool,
    diag: UnixDiag,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME of the workload minus ours, in nanoseconds.
    clock_offsets: (i64, i64),
    /// TCP sockets as they are now: what [`leave_repair`] needs if we die while they are in repair mode.
    pub sockets: Vec<RepairedSocket>,
    /// The same sockets, by their descriptors.
    numbered: Vec<Numbered>,
    /// See [`Prefetch::note_unsent`].
    unsent: Unsent,
}

impl Prefetch {
    /// Reads it; the process runs.
    ///
    /// # Errors
    /// The process cannot be examined.
    pub fn read(pid: i32) -> Result<Prefetch> {
        let theirs = proc::clock_offsets_ns(pid)?;
        let ours = proc::clock_offsets_ns(std::process::id() as i32)?;
        let tcp = sockets::prefetch(pid)?;
        Ok(Prefetch {
            own_network: check::has_own_network(pid)?,
            diag: check::unix_diag(pid)?,
            clock_offsets: (theirs.0 - ours.0, theirs.1 - ours.1),
            numbered: tcp.iter().map(|(number, known)| (*number, known.inode)).collect(),
            sockets: tcp.into_iter().map(|(_, known)| known).collect(),
            unsent: Unsent::default(),
        })
    }

    /// To be called when process `pid` is stopped and its network has just been cut: what its connections have not sent by now
    /// goes nowhere before the move, whatever the kernel says later.
    pub fn note_unsent(&mut self, pid: i32) {
        self.unsent = Unsent::note(pid, &self.numbered);
    }
}

/// What a capture needs.
#[derive(Debug)]
pub struct Input<'a> {
    /// The stopped process. The calling thread is its tracer.
    pub stopped: &'a Stopped,
    /// Its mappings now.
    pub mappings: &'a [Vma],
    /// What [`Prefetch::read`] gave.
    pub prefetch: &'a Prefetch,
    /// Has seen every stop of this migration.
    pub memo: &'a mut RestartMemo,
}

/// The result of a capture.
#[derive(Debug)]
pub struct Captured {
    /// What travels.
    pub state: State,
    /// TCP sockets that are in repair mode now: give them to [`leave_repair`] when the workload stays.
    pub repaired: Vec<RepairedSocket>,
}

/// Captures the state of a stopped process whose network is cut. Afterwards its threads are stopped as before, with their own
/// registers, and its TCP connections are in repair mode (silent).
///
/// # Errors
/// Something cannot move, or passes by itself ([`Error::is_transient`]). The process is as it was, and no
/// connection is in repair mode.
pub fn capture(input: Input<'_>) -> Result<Captured> {
    let pid = input.stopped.pid();
    check::mappings(pid, input.mappings)?;
    let prefetch = input.prefetch;
    let tids = input.stopped.tids();
    let mut found = Files::default();
    // what /proc tells is read by another thread while this one, the tracer, asks the process
    let (told, inner_ids) = std::thread::scope(|scope| {
        let outside = scope.spawn(|| look_outside(pid, tids, prefetch, &mut found));
        let told = look_inside(input.stopped, input.mappings, input.memo);
        (
            told,
            outside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    let captured = told.and_then(|told| assemble(prefetch, told, &inner_ids?, &mut found));
    match captured {
        Ok(state) => Ok(Captured {
            state,
            repaired: found.repaired,
        }),
        Err(error) => {
            // best effort: the first error is the one to tell
            let _ = leave_repair(pid, &found.repaired);
            Err(error)
        }
    }
}

/// Threads and descriptors as /proc shows them. Gives the threads' numbers in the workload's namespace.
fn look_outside(
    pid: i32,
    tids: &[i32],
    prefetch: &Prefetch,
    found: &mut Files,
) -> Result<BTreeMap<i32, i32>> {
    let inner_ids = threads::inner_ids(pid, tids)?;
    let scope = Scope {
        pid,
        own_network: prefetch.own_network,
        inner_ids: &inner_ids,
        diag: Some(&prefetch.diag),
    };
    files::capture(&scope, found)?;
    for file in &mut found.files {
        prefetch.unsent.apply(file);
    }
    Ok(inner_ids)
}

/// Undoes what a stop did to the program, without capturing anything: for every stop of the source but the last.
///
/// # Errors
/// A thread cannot be examined.
pub fn mend(stopped: &Stopped, memo: &mut RestartMemo) -> Result<()> {
    let pid = stopped.pid();
    let shared = threads::pending(pid, true)?;
    let caught = Deliverable::new(Status::read(pid)?.hex("SigCgt").unwrap_or(0));
    for tid in stopped.tids() {
        threads::mend_one(pid, *tid, caught, &shared, memo)?;
    }
    Ok(())
}

fn observe(stopped: &Stopped, deliverable: Deliverable, memo: &mut RestartMemo) -> Result<Vec<Observed>> {
    let pid = stopped.pid();
    let surroundings = Surroundings {
        deliverable,
        shared: &threads::pending(pid, true)?,
        our_cpus: &task::affinity(0)?,
    };
    let mut observed = Vec::with_capacity(stopped.tids().len());
    for tid in stopped.tids() {
        let thread = threads::observe(pid, *tid, surroundings, memo)?;
        threads::check(pid, &thread)?;
        observed.push(thread);
    }
    Ok(observed)
}

/// A process with the moment when its timers were read. Threads have the numbers that we see.
#[derive(Debug)]
struct Told {
    process: ProcessState,
    timers_read_at_ns: u64,
}

/// Reads every thread, asks the process what only it can tell, and puts everything about it together.
fn look_inside(stopped: &Stopped, mappings: &[Vma], memo: &mut RestartMemo) -> Result<Told> {
    let pid = stopped.pid();
    let status = Status::read(pid)?;
    let caught = status.hex("SigCgt").unwrap_or(0);
    let observed = observe(stopped, Deliverable::new(caught), memo)?;
    let with_action = caught | status.hex("SigIgn").unwrap_or(0);
    let timers = process::posix_timers(pid)?;
    let answers = questions::ask_all(stopped, mappings, with_action, timers)?;
    let pairs = observed.into_iter().zip(&answers.threads);
    let threads = pairs
        .map(|(thread, answer)| answer.complete(thread.state))
        .collect();
    let told = answers.process;
    let process = ProcessState {
        pid,
        threads,
        memory: MemoryDescriptor {
            brk: told.brk,
            ..process::memory(pid)?
        },
        signals: Signals {
            actions: told.actions,
            pending: threads::pending(pid, true)?,
        },
        timers: told.timers,
        credentials: Credentials {
            securebits: told.securebits,
            ..process::credentials(pid, &status)?
        },
        resource_limits: process::resource_limits(pid)?,
        filesystem: process::filesystem(pid, &status)?,
        attributes: Attributes {
            dumpable: told.dumpable,
            child_subreaper: told.child_subreaper,
            memory_deny_write_execute: told.deny_write_execute,
            ..process::attributes(pid, &status)?
        },
        descriptors: Vec::new(),
    };
    Ok(Told {
        process,
        timers_read_at_ns: answers.read_at_ns,
    })
}

/// Joins both halves, and brings the remaining time of every timer to one common moment.
fn assemble(
    prefetch: &Prefetch,
    told: Told,
    inner_ids: &BTreeMap<i32, i32>,
    found: &mut Files,
) -> Result<State> {
    let now_ns = monotonic_ns()?;
    let mut process = told.process;
    process::localise(&mut process, inner_ids)?;
    process.descriptors = std::mem::take(&mut found.descriptors);
    let aged = now_ns.saturating_sub(told.timers_read_at_ns);
    process::age(&mut process.timers, aged);
    for (index, read_at_ns) in &found.timers_read_at {
        if let Some(OpenFile {
            kind: FileKind::Timer(timer),
            ..
        }) = found.files.get_mut(*index)
        {
            timer.remaining_ns = process::aged(timer.remaining_ns, now_ns.saturating_sub(*read_at_ns));
        }
    }
    let (_, boottime_ns) = namespace::clocks()?;
    let realtime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clocks = Clocks {
        monotonic_ns: now_ns.saturating_add_signed(prefetch.clock_offsets.0),
        boottime_ns: (boottime_ns as u64).saturating_add_signed(prefetch.clock_offsets.1),
        realtime_ns: realtime.as_nanos() as u64,
    };
    Ok(State {
        processes: vec![process],
        files: std::mem::take(&mut found.files),
        pipes: std::mem::take(&mut found.pipes),
        clocks,
    })
}

/// Our CLOCK_MONOTONIC.
fn monotonic_ns() -> Result<u64> {
    Ok(namespace::clocks()?.0 as u64)
}
