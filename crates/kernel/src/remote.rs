//! System calls run by a stopped thread of another process.
//!
//! Two ways:
//! - before [`Remote::install`], one by one: the thread runs a `syscall` instruction that its process has anyway (in the vdso)
//!   and is stopped at the entry and at the exit of the call (PTRACE_SYSCALL);
//! - after it, by a page of our own code in the process, which runs a table of calls and stops once at the end: hundreds of
//!   calls for the price of one (see [`batch`]).
//!
//! Neither forces a SIGTRAP: the kernel would take away the action of a process that ignores or blocks that signal.
//!
//! **If we are killed meanwhile**, a thread that runs the code of the area ends its table and then gives itself its own registers
//! and signal mask back. A thread that makes single calls without the area (the mmap(2) of the area is one, its munmap(2) another)
//! does the same after [`Remote::secure`]; otherwise our death takes the process with it. Do these calls with one thread, and
//! restore the others before the area goes.

pub mod batch;
mod landing;
mod spawn;

use std::cell::Cell;

pub use batch::{Call, BATCH_CALLS_MAX, SCRATCH_BYTES};
pub use landing::blank_landing;
use landing::Landing;

use crate::error::{Error, Result};
use crate::ptrace::{self, Regs, Stop, Stopped};
use crate::{maps, memory};

/// What a batch ends with: nobody uses it without a terminal, and by default it does nothing.
const END_SIGNAL: i32 = libc::SIGWINCH;
/// Every other signal has to wait until the thread is itself again (SIGKILL and SIGSTOP cannot be blocked anyway). SIGTRAP
/// stays open, since the kernel resets the handler of a blocked one when it forces it.
const MASK_WHILE_REMOTE: u64 = !(1 << (END_SIGNAL - 1) | 1 << (libc::SIGTRAP - 1));
/// Stops that may come before the one we wait for (event stops, births of threads).
const STRAY_STOPS_MAX: usize = 4 * BATCH_CALLS_MAX;
/// TF and RF would trap, DF would turn our string instructions around.
const EFLAGS_CLEARED: u64 = 0x1_0500;

/// Is this return value of a system call an error?
pub fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

/// Finds a `syscall` instruction in the vdso of a process.
pub fn find_gadget(pid: i32, vmas: &[maps::Vma]) -> Result<u64> {
    let vdso = vdso_of(vmas).ok_or_else(|| {
        Error::other(format!(
            "process {pid} has no vdso: it cannot be driven from outside"
        ))
    })?;
    let mut text = vec![0; vdso.len() as usize];
    memory::read(pid, vdso.start, &mut text)?;
    find_syscall(&text)
        .map(|offset| vdso.start + offset)
        .ok_or_else(|| Error::other(format!("the vdso of process {pid} has no syscall instruction")))
}

fn vdso_of(vmas: &[maps::Vma]) -> Option<&maps::Vma> {
    vmas.iter().find(|vma| vma.path == "[vdso]")
}

/// Offset of the first `syscall` instruction in code.
pub fn find_syscall(code: &[u8]) -> Option<u64> {
    code.windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .map(|at| at as u64)
}

/// Stops the leader of process `pid` for as long as `work` takes, and lets it make system calls for us. Our death meanwhile does it
/// no harm.
///
/// # Errors
/// Those of `work`; EPERM: another tracer has it.
pub fn with_leader<T>(pid: i32, work: impl FnOnce(&mut Remote) -> Result<T>) -> Result<T> {
    let stopped = Stopped::stop_leader(pid)?;
    let done = with_stopped(pid, pid, work);
    stopped.detach();
    done
}

/// The same with thread `tid`, which is stopped already.
pub fn with_stopped<T>(pid: i32, tid: i32, work: impl FnOnce(&mut Remote) -> Result<T>) -> Result<T> {
    let vmas = maps::read(pid)?;
    let mut remote = Remote::new(pid, tid, find_gadget(pid, &vmas)?)?;
    remote.secure(&vmas)?;
    let done = work(&mut remote);
    remote.restore()?;
    // Out of the single step's stop, so that our death delivers nothing.
    ptrace::park(&[tid])?;
    done
}

/// A stopped thread that runs system calls for us. Its own registers and mask come back with [`Remote::restore`].
#[derive(Debug)]
pub struct Remote {
    pid: i32,
    tid: i32,
    gadget: u64,
    landing: Option<Landing>,
    scratch: Option<u64>,
    regs: Regs,
    mask: u64,
    /// Whether [`MASK_WHILE_REMOTE`] is set.
    masked: Cell<bool>,
    calls: u64,
    /// Genuine [`END_SIGNAL`]s that came in between and are owed to the process.
    swallowed: Cell<bool>,
    born: Vec<i32>,
}

impl Remote {
    /// Takes over thread `tid` of process `pid`, which is stopped; `gadget` is the address of a `syscall` instruction there.
    pub fn new(pid: i32, tid: i32, gadget: u64) -> Result<Self> {
        let regs = ptrace::regs(tid)?;
        let mask = ptrace::sigmask(tid)?;
        Ok(Self {
            pid,
            tid,
            gadget,
            landing: None,
            scratch: None,
            regs,
            mask,
            masked: Cell::new(false),
            calls: 0,
            swallowed: Cell::new(false),
            born: Vec::new(),
        })
    }

    /// The thread.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How many calls have run.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The registers that it had when it was taken over.
    pub fn regs(&self) -> &Regs {
        &self.regs
    }

    /// The mask that it had when it was taken over.
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// From now on single calls use the `syscall` instruction at `gadget`.
    pub fn set_gadget(&mut self, gadget: u64) {
        self.gadget = gadget;
        self.landing = None;
    }

    /// From now on, until [`Remote::restore`] and after it, our death during a single call does the thread no harm. Only one thread
    /// of a process at a time. False if its vdso has no room for the code that this needs, or must not be written.
    pub fn secure(&mut self, vmas: &[maps::Vma]) -> Result<bool> {
        if let Some(vdso) = vdso_of(vmas) {
            self.landing = Landing::lay_for(self.pid, vdso, &self.regs, self.mask)?;
        }
        Ok(self.landing.is_some())
    }

    /// Puts registers and mask back. The thread stays stopped; once let go it first comes to an event stop if it is still
    /// traced ([`ptrace::park`] waits for that), so that an interrupted system call is restarted as if we had not been there.
    pub fn restore(&self) -> Result<()> {
        // in this order: as long as the thread stands in the area, it would give itself the mask back
        ptrace::set_sigmask(self.tid, self.mask)?;
        ptrace::set_regs(self.tid, &self.regs)?;
        self.masked.set(false);
        if self.swallowed.replace(false) {
            ptrace::signal_process(self.pid, END_SIGNAL)?;
        }
        // A restart is looked at only on the way through signal handling, which this makes sure of.
        ptrace::interrupt(self.tid)?;
        self.landing.as_ref().map_or(Ok(()), Landing::erase)
    }

    /// Puts the thread to work at `regs`. The mask comes second: a thread that stands in the area gives itself its own back if
    /// we die now, one with its own registers would keep ours.
    fn set_out(&self, regs: &Regs) -> Result<()> {
        ptrace::set_regs(self.tid, regs)?;
        if !self.masked.replace(true) {
            ptrace::set_sigmask(self.tid, MASK_WHILE_REMOTE)?;
        }
        Ok(())
    }

    /// The registers for a call of ours: not in a system call, so that the kernel rewinds nothing for a restart.
    fn base_regs(&self) -> Regs {
        let mut regs = self.regs;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !EFLAGS_CLEARED;
        regs
    }

    /// Runs one call; the result is what the kernel returned, negative errno on failure.
    ///
    /// # Errors
    /// The thread ended, or the call did not return within [`ptrace::WAIT_MAX`].
    pub fn raw(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        self.calls += 1;
        match self.scratch {
            Some(_) => self.raw_in_area(number, args),
            None => self.raw_at_gadget(number, args),
        }
    }

    fn raw_at_gadget(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        let arg = |index: usize| args.get(index).copied().unwrap_or(0);
        let mut regs = self.base_regs();
        regs.rip = self.gadget;
        if let Some(landing) = &self.landing {
            landing.lay()?;
            (regs.rip, regs.r15) = (landing.gadget(), landing.frame());
        }
        let behind = regs.rip + 2;
        regs.rax = number as u64;
        (regs.rdi, regs.rsi, regs.rdx) = (arg(0), arg(1), arg(2));
        (regs.r10, regs.r8, regs.r9) = (arg(3), arg(4), arg(5));
        self.set_out(&regs)?;
        let what = format!("system call {number}");
        // its entry, then its exit
        for _ in 0..2 {
            ptrace::resume_to_syscall(self.tid, 0)?;
            self.wait_for(&what, ptrace::resume_to_syscall, |stop| Ok(stop == Stop::Syscall))?;
        }
        let regs = ptrace::regs(self.tid)?;
        if regs.rip != behind {
            return Err(self.astray(&what, regs.rip));
        }
        Ok(regs.rax as i64)
    }

    /// Runs one call that must succeed.
    pub fn call(&mut self, what: &str, number: i64, args: &[u64]) -> Result<u64> {
        let result = self.raw(number, args)?;
        if is_error(result) {
            return Err(self.failed(what, args, result));
        }
        Ok(result as u64)
    }

    fn failed(&self, what: &str, args: &[u64], result: i64) -> Error {
        let args: Vec<String> = args.iter().map(|arg| format!("{arg:#x}")).collect();
        let what = format!("run {what}({}) in thread {}", args.join(", "), self.tid);
        Error::call(what, std::io::Error::from_raw_os_error(-result as i32))
    }

    fn astray(&self, what: &str, rip: u64) -> Error {
        Error::other(format!(
            "thread {} of process {} stands at {rip:#x} after {what}",
            self.tid, self.pid
        ))
    }

    /// Waits until the thread, which runs, makes the stop that `is_end` accepts; after any other it goes on with `resume`.
    fn wait_for(
        &mut self,
        what: &str,
        resume: fn(i32, i32) -> Result<()>,
        is_end: impl Fn(Stop) -> Result<bool>,
    ) -> Result<()> {
        for _ in 0..STRAY_STOPS_MAX {
            let stop = ptrace::wait(self.tid)?;
            if is_end(stop)? {
                return Ok(());
            }
            self.pass(stop, what)?;
            resume(self.tid, 0)?;
        }
        Err(Error::other(format!(
            "thread {} does not get through {what}",
            self.tid
        )))
    }

    /// Deals with a stop that is not the one waited for.
    fn pass(&mut self, stop: Stop, what: &str) -> Result<()> {
        match stop {
            Stop::Event { .. } => Ok(()),
            Stop::Clone => {
                self.born.push(ptrace::event_message(self.tid)? as i32);
                Ok(())
            }
            Stop::Signal(END_SIGNAL) => {
                self.swallowed.set(true);
                Ok(())
            }
            other => Err(Error::other(format!(
                "thread {} of process {} was to run {what} and {other}",
                self.tid, self.pid
            ))),
        }
    }
}
