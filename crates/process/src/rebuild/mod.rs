//! The state of a process put into a stub: a process that has the memory of the source's and nothing else.
//!
//! The stub is stopped by ptrace and runs system calls for us. Afterwards it is the workload, complete and still stopped; not one
//! instruction of it has run. Order matters: files before anything that names them, threads before the timers
//! that signal them, credentials when nothing privileged is left to do, registers last.
//!
//! [`build`] needs the mappings but not what is in them, so that it can run while the last pages still come; [`finish`] does the rest.

mod credentials;
mod files;
mod process;
mod sockets;
mod threads;
mod timers;

use std::os::fd::BorrowedFd;

use whimbrel_kernel::remote::Remote;
use whimbrel_kernel::{namespace, ptrace, task};

use crate::calls::{Plan, Scratch};
use crate::capture::RepairedSocket;
use crate::state::{Clocks, FileId, ProcessState, State};

/// Why the state could not be rebuilt here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Kernel(#[from] whimbrel_kernel::error::Error),
    /// The state contradicts itself or this machine.
    #[error("{0}")]
    Unfit(String),
}

/// The result of a rebuild.
pub type Result<T> = std::result::Result<T, Error>;

/// What a rebuild needs beside the state.
pub struct Target<'a> {
    /// The stub's only thread, with its scratch area installed (outside of the workload's mappings).
    pub remote: &'a mut Remote,
    /// Address of a `syscall` instruction that stays (in the vdso), for when the scratch area is gone.
    pub last_gadget: u64,
    /// The network namespace that sockets must be made in; none for that of the caller.
    pub network: Option<BorrowedFd<'a>>,
    /// Descriptors of ours for the shared memory objects, by their identity at the source.
    pub object: &'a dyn Fn(FileId) -> Option<BorrowedFd<'a>>,
}

/// What [`build`] has built.
#[derive(Debug)]
pub struct Built {
    /// All threads but the leader.
    threads: Vec<Remote>,
    /// What the kernel wrote into the memory of the threads when their restartable sequences were registered.
    rseq: threads::RseqIds,
    /// The TCP connections, all of them in repair mode: for [`crate::capture::leave_repair`] when the network is open and before
    /// the first thread runs.
    pub repaired: Vec<RepairedSocket>,
}

/// The one process of a state.
fn only(state: &State) -> Result<&ProcessState> {
    match state.processes.as_slice() {
        [process] => Ok(process),
        others => Err(Error::Unfit(format!(
            "the state has {} processes, and this version builds one",
            others.len()
        ))),
    }
}

/// Builds of the one process of `state` into the stub what does not depend on the content of its memory.
///
/// # Errors
/// Something cannot be had here (a file, an address, a feature). The stub is of no use then and must be killed.
pub fn build(target: &mut Target<'_>, state: &State) -> Result<Built> {
    let process = only(state)?;
    fits(target, process)?;
    let pid = target.remote.pid();
    let age_ns = age(pid, state.clocks)?;
    process::raise_limits(pid)?;
    let repaired = files::build(target, state, process, age_ns)?;
    process::build(target.remote, process)?;
    let mut threads = threads::spawn(target.remote, process, target.last_gadget)?;
    threads::build(target.remote, &mut threads, process)?;
    let rseq = threads::RseqIds::read(pid, process)?;
    Ok(Built {
        threads,
        rseq,
        repaired,
    })
}

/// Completes what [`build`] began; the memory is all there. Gives the TIDs as we see them, the leader first. All are stopped by ptrace,
/// with the caller as their tracer.
///
/// # Errors
/// As for [`build`].
pub fn finish(remote: &mut Remote, last_gadget: u64, state: &State, built: Built) -> Result<Vec<i32>> {
    let process = only(state)?;
    let pid = remote.pid();
    let mut threads = built.threads;
    built.rseq.write(pid)?;
    timers::build(remote, process, state.clocks, age(pid, state.clocks)?)?;
    process::limit(pid, process)?;
    credentials::build(remote, &mut threads, process)?;
    process::finish(remote, process)?;
    // Late: a signal that is not blocked meanwhile would be lost to our own calls.
    process::queue_signals(remote, process)?;
    threads::queue_signals(remote, &mut threads, process)?;
    remote.set_gadget(last_gadget);
    remote.uninstall()?;
    let mut tids = vec![remote.tid()];
    tids.extend(threads.iter().map(Remote::tid));
    threads::set_registers(&tids, process)?;
    Ok(tids)
}

/// Refuses a state that this machine cannot hold.
fn fits(target: &Target<'_>, process: &ProcessState) -> Result<()> {
    let leader = process.threads.first();
    let leader = leader.ok_or_else(|| Error::Unfit("the state has a process without threads".into()))?;
    if leader.tid != process.pid {
        return Err(Error::Unfit(format!(
            "the first thread of process {} is {}",
            process.pid, leader.tid
        )));
    }
    let here = ptrace::xstate(target.remote.tid())?;
    let components = |area: &[u8]| area.get(XFEATURES).map(<[u8]>::to_vec);
    for thread in &process.threads {
        let area = &thread.extended_registers;
        if area.len() != here.len() || components(area) != components(&here) {
            return Err(Error::Unfit(format!(
                "thread {} has {} bytes of extended registers and this machine {}: choose a destination with the same kind of processor",
                thread.tid,
                area.len(),
                here.len()
            )));
        }
    }
    Ok(())
}

/// Where an XSAVE area given by ptrace names the components that are switched on (linux/user.h, `sw_reserved`).
const XFEATURES: std::ops::Range<usize> = 464..472;

/// How long ago, in nanoseconds, the timers were read, by the workload's own CLOCK_MONOTONIC.
fn age(pid: i32, read_at: Clocks) -> Result<u64> {
    let (ours_ns, _) = namespace::clocks()?;
    let own = namespace::ClockOffsets::of(std::process::id() as i32)?.monotonic_ns;
    let theirs = namespace::ClockOffsets::of(pid)?.monotonic_ns;
    let now_ns = ours_ns.saturating_sub(own).saturating_add(theirs);
    Ok((now_ns.max(0) as u64).saturating_sub(read_at.monotonic_ns))
}

/// A plan in the scratch area of the stub.
fn plan(remote: &Remote) -> Result<Plan> {
    Ok(Plan::new(Scratch::of(remote)?))
}

/// Runs `plan` and begins the next one when it has used up half of the scratch area.
fn run_if_full(plan: Plan, remote: &mut Remote) -> Result<Plan> {
    if !plan.is_full() {
        return Ok(plan);
    }
    plan.run(remote)?;
    self::plan(remote)
}

/// Raises the soft limit to the hard one.
fn raise_limit(pid: i32, resource: u32) -> Result<()> {
    let (_, hard) = task::resource_limit(pid, resource)?;
    Ok(task::set_resource_limit(pid, resource, (hard, hard))?)
}
