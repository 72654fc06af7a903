//! ptrace(2): stopping a process, and what a stopped thread shows of itself.
//!
//! Everything here belongs to the calling thread: only the thread that seized a tracee may ask it anything.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::proc;

/// General registers of a thread (x86-64, `struct user_regs_struct`).
pub type Regs = libc::user_regs_struct;
/// One queued signal as the kernel keeps it (`siginfo_t`, 128 bytes).
pub type Siginfo = [u8; 128];

const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const NT_X86_XSTATE: usize = 0x202;
/// Largest xstate we take: AMX (8 KiB of tiles) with everything else is below 12 KiB.
const XSTATE_BYTES_MAX: usize = 64 << 10;
/// Queued signals of one thread that we carry; RLIMIT_SIGPENDING is higher, nothing real comes near.
const PENDING_MAX: usize = 4096;
/// How often we look for threads that were born while we stopped the others.
const STOP_PASSES_MAX: usize = 64;

/// System calls stop with a status of their own (`Stop::Syscall`), and not with a SIGTRAP that our death would deliver.
const OPTION_TRACESYSGOOD: u64 = 1;
/// SIGKILL the tracee when its tracer dies.
pub const OPTION_EXITKILL: u64 = 0x0010_0000;
/// Stop at clone, and trace the new thread from its first instruction.
pub const OPTION_TRACECLONE: u64 = 8;
/// What `waitpid` shows in the upper half of a clone stop.
pub const EVENT_CLONE: i32 = 3;

/// A ptrace request whose `data` is a pointer or a number.
fn request(what: &str, request: u32, tid: i32, addr: usize, data: usize) -> Result<i64> {
    // SAFETY: the raw system call (glibc's wrapper treats PEEK requests differently). `data` and `addr` are numbers or point to
    // live, large enough memory of the caller, as each private caller below guarantees.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request as usize, tid as usize, addr, data) };
    if result < 0 {
        let source = io::Error::last_os_error();
        return Err(Error::call(format!("{what} thread {tid} (ptrace)"), source));
    }
    Ok(result)
}

/// Why a tracee reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A PTRACE_EVENT_STOP: after `interrupt`, at the birth of a traced thread, or a group stop (then the signal is a stop signal).
    Event {
        /// SIGTRAP, or the stop signal of a group stop.
        signal: i32,
    },
    /// A signal is about to be delivered.
    Signal(i32),
    /// A clone event of the parent.
    Clone,
    /// The entry or the exit of a system call, after [`resume_to_syscall`].
    Syscall,
    /// Another ptrace event.
    Other(i32),
    /// The thread is gone.
    Gone(i32),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Event { signal } => write!(f, "came to an event stop (signal {signal})"),
            Stop::Signal(signal) => write!(f, "got signal {signal}"),
            Stop::Clone => write!(f, "made a thread"),
            Stop::Syscall => write!(f, "stopped at a system call"),
            Stop::Other(event) => write!(f, "came to ptrace event {event}"),
            Stop::Gone(status) if libc::WIFSIGNALED(*status) => {
                write!(f, "was killed by signal {}", libc::WTERMSIG(*status))
            }
            Stop::Gone(status) => write!(f, "exited with status {}", libc::WEXITSTATUS(*status)),
        }
    }
}

/// How long a thread may take to stop, and a system call to return that it runs for us.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// For so long we only give way to others between two looks: stops come within microseconds.
const EAGER: Duration = Duration::from_micros(300);
/// The longest pause between two looks after that.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Waits until thread `tid` reports, [`WAIT_MAX`] at most.
///
/// # Errors
/// ECHILD: it is not traced by us (any more). Otherwise it did not stop in time: it is in an uninterruptible wait (a dead
/// network file system, a vfork child that has not executed yet) or frozen by a control group.
pub fn wait(tid: i32) -> Result<Stop> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(10);
    loop {
        if let Some(stop) = poll(tid)? {
            return Ok(stop);
        }
        let waited = begin.elapsed();
        if waited < EAGER {
            std::thread::yield_now();
        } else if waited < WAIT_MAX {
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        } else {
            let seconds = WAIT_MAX.as_secs();
            return Err(Error::other(format!(
                "thread {tid} did not stop within {seconds} s: it waits for a device or for a vfork child, or a control group \
                 keeps it frozen"
            )));
        }
    }
}

/// What thread `tid` has to report, if anything.
fn poll(tid: i32) -> Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) } {
        0 => Ok(None),
        found if found == tid => Ok(Some(classify(status))),
        _ => {
            let source = io::Error::last_os_error();
            match source.raw_os_error() {
                Some(libc::EINTR) => Ok(None),
                _ => Err(Error::call(format!("wait for thread {tid}"), source)),
            }
        }
    }
}

fn classify(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        PTRACE_EVENT_STOP => Stop::Event { signal },
        EVENT_CLONE => Stop::Clone,
        other => Stop::Other(other),
    }
}

/// Becomes the tracer of one thread without stopping it.
pub fn seize(tid: i32, options: u64) -> Result<()> {
    request(
        "seize",
        libc::PTRACE_SEIZE,
        tid,
        0,
        (options | OPTION_TRACESYSGOOD) as usize,
    )
    .map(drop)
}

/// Asks a seized thread to stop.
pub fn interrupt(tid: i32) -> Result<()> {
    request("interrupt", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go on, delivering `signal` if it is not 0.
pub fn resume(tid: i32, signal: i32) -> Result<()> {
    request("resume", libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped thread go on until the next entry or exit of a system call ([`Stop::Syscall`]).
pub fn resume_to_syscall(tid: i32, signal: i32) -> Result<()> {
    request("resume", libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Runs one instruction.
pub fn step(tid: i32) -> Result<()> {
    request("single-step", libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// Ends the tracing of a stopped thread; it runs on.
pub fn detach(tid: i32) -> Result<()> {
    request("detach from", libc::PTRACE_DETACH, tid, 0, 0).map(drop)
}

/// Sets `OPTION_*` of a stopped thread.
pub fn set_options(tid: i32, options: u64) -> Result<()> {
    request(
        "set options of",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        (options | OPTION_TRACESYSGOOD) as usize,
    )
    .map(drop)
}

/// The message of the last event: the new thread's number (in our PID namespace) after a clone event.
pub fn event_message(tid: i32) -> Result<u64> {
    let mut message = 0u64;
    let data = &raw mut message as usize;
    request("read the event of", libc::PTRACE_GETEVENTMSG, tid, 0, data)?;
    Ok(message)
}

/// General registers of a stopped thread.
pub fn regs(tid: i32) -> Result<Regs> {
    // SAFETY: user_regs_struct is plain integers, for which zero is a value.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    request(
        "read the registers of",
        libc::PTRACE_GETREGS,
        tid,
        0,
        &raw mut regs as usize,
    )?;
    Ok(regs)
}

/// Sets the general registers of a stopped thread.
pub fn set_regs(tid: i32, regs: &Regs) -> Result<()> {
    let data = std::ptr::from_ref(regs) as usize;
    request("set the registers of", libc::PTRACE_SETREGS, tid, 0, data).map(drop)
}

/// The extended state (x87, SSE, AVX, AMX …) in the XSAVE format of this machine (Intel SDM vol. 1, 13.4).
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    thread_local! {
        /// Far more than most need, so that it is not made anew for every thread of a frozen process.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; XSTATE_BYTES_MAX]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let data = &raw mut vector as usize;
        request(
            "read the xstate of",
            libc::PTRACE_GETREGSET,
            tid,
            NT_X86_XSTATE,
            data,
        )?;
        Ok(buffer.get(..vector.iov_len).unwrap_or_default().to_vec())
    })
}

/// Sets the extended state; the kernel refuses a layout that is not this machine's.
pub fn set_xstate(tid: i32, xstate: &[u8]) -> Result<()> {
    let vector = libc::iovec {
        iov_base: xstate.as_ptr().cast_mut().cast(),
        iov_len: xstate.len(),
    };
    let data = &raw const vector as usize;
    request(
        "set the xstate of",
        libc::PTRACE_SETREGSET,
        tid,
        NT_X86_XSTATE,
        data,
    )
    .map(drop)
}

/// The signal mask of a stopped thread, bit n-1 for signal n.
pub fn sigmask(tid: i32) -> Result<u64> {
    let mut mask = 0u64;
    let data = &raw mut mask as usize;
    request("read the signal mask of", PTRACE_GETSIGMASK, tid, 8, data)?;
    Ok(mask)
}

/// Sets the signal mask of a stopped thread.
pub fn set_sigmask(tid: i32, mask: u64) -> Result<()> {
    let data = &raw const mask as usize;
    request("set the signal mask of", PTRACE_SETSIGMASK, tid, 8, data).map(drop)
}

/// Queued signals: those of the thread, or those of its process. Takes nothing away.
pub fn pending(tid: i32, shared: bool) -> Result<Vec<Siginfo>> {
    #[repr(C)]
    struct Args {
        offset: u64,
        flags: u32,
        count: i32,
    }
    const BATCH: usize = 16;
    let mut all: Vec<Siginfo> = Vec::new();
    loop {
        let args = Args {
            offset: all.len() as u64,
            flags: u32::from(shared),
            count: BATCH as i32,
        };
        let mut batch = [[0u8; 128]; BATCH];
        let addr = &raw const args as usize;
        let got = request(
            "read the pending signals of",
            libc::PTRACE_PEEKSIGINFO,
            tid,
            addr,
            &raw mut batch as usize,
        )?;
        all.extend(batch.iter().take(got as usize));
        if got < BATCH as i64 {
            return Ok(all);
        }
        if all.len() > PENDING_MAX {
            return Err(Error::other(format!(
                "thread {tid} has more than {PENDING_MAX} pending signals"
            )));
        }
    }
}

/// The registration of restartable sequences (rseq(2)) of a thread; all zero when there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`, 0 for none.
    pub pointer: u64,
    /// Its registered size in bytes.
    pub size: u32,
    /// The signature that precedes abort handlers.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    pad: u32,
}

/// The rseq registration of a stopped thread.
pub fn rseq(tid: i32) -> Result<Rseq> {
    let mut rseq = Rseq::default();
    let data = &raw mut rseq as usize;
    request(
        "read the rseq registration of",
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<Rseq>(),
        data,
    )?;
    Ok(rseq)
}

/// Whether syscall user dispatch (prctl(2), PR_SET_SYSCALL_USER_DISPATCH) is on in a stopped thread.
pub fn syscall_user_dispatch(tid: i32) -> Result<bool> {
    let mut config = [0u64; 4];
    let data = &raw mut config as usize;
    let size = size_of_val(&config);
    request(
        "read the syscall dispatch of",
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size,
        data,
    )?;
    Ok(config[0] != 0)
}

/// All threads of one process, seized and stopped. Dropping it lets them run.
///
/// A tracer that dies lets them run too: that is the way back for a source whose controller was killed.
#[derive(Debug)]
pub struct Stopped {
    pid: i32,
    tids: Vec<i32>,
    group_stop: Option<i32>,
    detached: bool,
}

impl Stopped {
    fn none_of(pid: i32) -> Self {
        Self {
            pid,
            tids: Vec::new(),
            group_stop: None,
            detached: false,
        }
    }

    /// Stops every thread of `pid`, also those that are born meanwhile. 35 threads take about half a millisecond.
    ///
    /// # Errors
    /// EPERM: another tracer has it, or we may not. A thread that does not stop within [`WAIT_MAX`] is named. The threads that
    /// had been stopped run on after a failure; one that did not stop in time is let go when the calling thread ends.
    pub fn stop(pid: i32) -> Result<Self> {
        let mut stopped = Self::none_of(pid);
        let mut seen = HashSet::new();
        let (begin, mut passes) = (Instant::now(), 0);
        while passes < STOP_PASSES_MAX && begin.elapsed() < WAIT_MAX {
            let tasks = proc::Tasks::look(pid)?;
            let new: Vec<i32> = tasks.tids.into_iter().filter(|tid| seen.insert(*tid)).collect();
            if !new.is_empty() {
                passes += 1;
                stopped.stop_some(&new)?;
            } else if tasks.is_complete {
                stopped.tids.sort_by_key(|tid| (*tid != pid, *tid));
                stopped.check_leader()?;
                return Ok(stopped);
            } else {
                // One that was ending has hidden another, perhaps.
                std::thread::yield_now();
            }
        }
        Err(Error::other(format!(
            "process {pid} makes threads faster than they can be stopped"
        )))
    }

    /// Stops the leader alone; the other threads run on.
    pub fn stop_leader(pid: i32) -> Result<Self> {
        let mut stopped = Self::none_of(pid);
        stopped.stop_some(&[pid])?;
        stopped.check_leader()?;
        Ok(stopped)
    }

    /// A thread that executes another program kills all others and takes the leader's number: then what was stopped is gone.
    fn check_leader(&self) -> Result<()> {
        let present = self.tids.first() == Some(&self.pid) && regs(self.pid).is_ok();
        if present {
            return Ok(());
        }
        let pid = self.pid;
        Err(Error::other(format!(
            "process {pid} ended or executed another program while it was being stopped"
        )))
    }

    /// Asks all first and waits then, so that the waits overlap. Every thread that was asked is waited for whatever happens
    /// to the others: one that is forgotten would stop later and never be let go.
    fn stop_some(&mut self, tids: &[i32]) -> Result<()> {
        let mut failure = None;
        let mut asked = Vec::with_capacity(tids.len());
        for &tid in tids {
            match seize(tid, 0).and_then(|()| interrupt(tid)) {
                Ok(()) => asked.push(tid),
                Err(error) if self.may_be_gone(tid, &error) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        for tid in asked {
            match stop_one(tid) {
                Ok(Some(signal)) => {
                    self.group_stop = self.group_stop.or((signal != libc::SIGTRAP).then_some(signal));
                    self.tids.push(tid);
                }
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A thread may end between the list and the seizing (a dying one gives EPERM); the leader may not.
    fn may_be_gone(&self, tid: i32, error: &Error) -> bool {
        let dying = || matches!(proc::task_state(self.pid, tid), None | Some('Z' | 'X'));
        match error.errno() {
            Some(libc::ESRCH) => tid != self.pid,
            Some(libc::EPERM) => tid != self.pid && dying(),
            _ => false,
        }
    }

    /// The signal that had stopped the whole process (SIGSTOP …) before we came. It stays stopped when it is let go.
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// Sets `OPTION_*` of all threads.
    pub fn options(&self, options: u64) -> Result<()> {
        self.tids.iter().try_for_each(|tid| set_options(*tid, options))
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its threads in our PID namespace, the leader first, the others in order.
    pub fn tids(&self) -> &[i32] {
        &self.tids
    }

    /// Takes in threads that were born traced ([`OPTION_TRACECLONE`]), so that they are let go or killed with the others.
    pub fn add(&mut self, tids: &[i32]) {
        self.tids.extend(tids);
    }

    /// Kills the process and waits for the end of every thread. A traced thread stays until its tracer has seen its end, and
    /// its process with it. A leader that is not our child stays a zombie until its parent has seen it, too.
    pub fn kill(mut self) -> Result<()> {
        self.detached = true;
        match signal_process(self.pid, libc::SIGKILL) {
            Err(error) if error.errno() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
        // the leader's end is told when all others have been seen
        self.tids.iter().rev().try_for_each(|tid| wait_gone(*tid))
    }

    /// Lets every thread run. Registers must have been put back.
    pub fn detach(mut self) {
        self.let_go();
    }

    /// Forgets the tracees without letting them go (they are dead, or a caller has detached them).
    pub fn forget(mut self) {
        self.detached = true;
    }

    fn let_go(&mut self) {
        if std::mem::replace(&mut self.detached, true) {
            return;
        }
        for tid in &self.tids {
            // A thread that was killed meanwhile has nothing to be detached from.
            let _ = detach(*tid);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Waits for the stop of one interrupted thread, handing on the signals that come first. The signal of the stop (SIGTRAP
/// unless the whole process is stopped), or `None` when the thread has ended.
fn stop_one(tid: i32) -> Result<Option<i32>> {
    loop {
        let stop = match wait(tid) {
            Ok(stop) => stop,
            Err(error) if error.errno() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        };
        let resumed = match stop {
            Stop::Event { signal } => return Ok(Some(signal)),
            Stop::Gone(_) => return Ok(None),
            Stop::Signal(signal) => resume(tid, signal),
            Stop::Clone | Stop::Syscall | Stop::Other(_) => resume(tid, 0),
        };
        match resumed {
            Err(error) if error.errno() != Some(libc::ESRCH) => return Err(error),
            // or killed at this moment, which the next look tells
            _ => {}
        }
    }
}

/// Waits until a killed thread has ended.
fn wait_gone(tid: i32) -> Result<()> {
    loop {
        match wait(tid) {
            Ok(Stop::Gone(_)) => return Ok(()),
            Err(error) if error.errno() == Some(libc::ECHILD) => return Ok(()),
            Err(error) => return Err(error),
            // a stop that was reported before SIGKILL struck
            Ok(_) => {}
        }
    }
}

/// Waits for the first stop of a thread that was born with [`OPTION_TRACECLONE`] set in its parent.
pub fn wait_born(tid: i32) -> Result<()> {
    match stop_one(tid)? {
        Some(_) => Ok(()),
        None => Err(Error::other(format!("thread {tid} ended as soon as it was made"))),
    }
}

/// Brings stopped threads from whatever stop they are in (after remote calls) into a plain event stop, so that the death of
/// the tracer delivers nothing to them and interrupted system calls are restarted.
pub fn park(tids: &[i32]) -> Result<()> {
    for &tid in tids {
        interrupt(tid)?;
        resume(tid, 0)?;
    }
    for &tid in tids {
        if stop_one(tid)?.is_none() {
            return Err(Error::other(format!("thread {tid} ended while it was stopped")));
        }
    }
    Ok(())
}

/// Sends a signal to a whole process (kill(2)).
pub(crate) fn signal_process(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no pointer is passed.
    let result = unsafe { libc::kill(pid, signal) };
    crate::fd::check(i64::from(result), || {
        format!("send signal {signal} to process {pid}")
    })
    .map(drop)
}
