//! Namespaces (man 7 namespaces) and what the first process of a PID namespace needs.
//!
//! A controller never changes its own namespaces: the init process does, before it has any thread, and
//! [`in_network`] uses a thread that ends afterwards.

use std::fs;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// Kinds of namespaces, to be combined with [`Kinds::and`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(libc::c_int);

impl Kinds {
    /// Process numbers; the caller's children are the first to be inside.
    pub const PID: Self = Self(libc::CLONE_NEWPID);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS);
    /// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME; the caller's children are the first to be inside.
    pub const TIME: Self = Self(libc::CLONE_NEWTIME);
    /// Network interfaces, addresses, routes and sockets.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET);
    /// The host's name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Leaves namespaces for new ones.
pub fn unshare(kinds: Kinds) -> Result<()> {
    // SAFETY: unshare takes no pointer.
    check("make new namespaces", unsafe { libc::unshare(kinds.0) }.into()).map(drop)
}

/// A handle on a process's namespace; `kind` is a file name in /proc/PID/ns.
pub fn open(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    File::open(&path)
        .map(OwnedFd::from)
        .map_err(|e| Error::call(format!("open {path}"), e))
}

/// Runs `work` inside a network namespace, on a thread of its own, and returns what it returned.
pub fn in_network<T: Send>(namespace: BorrowedFd, work: impl FnOnce() -> T + Send) -> Result<T> {
    let inside = move || {
        // SAFETY: setns takes no pointer, and changes this thread only, which ends after `work`.
        let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        check("enter a network namespace", entered.into())?;
        Ok(work())
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// How far the clocks of a time namespace are ahead of the initial one's, in nanoseconds (man 7 time_namespaces).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffsets {
    /// Of CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// Of CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

impl ClockOffsets {
    /// Those that the children of a process have.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/timens_offsets");
        let text = fs::read_to_string(&path).map_err(|e| Error::call(format!("read {path}"), e))?;
        parse_offsets(&text).ok_or_else(|| Error::other(format!("{path} is not in the form that is known")))
    }

    /// Sets them for the time namespace that the caller made by [`unshare`] and that has no process yet.
    pub fn apply(self) -> Result<()> {
        let line = |clock, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(NS), ns.rem_euclid(NS));
        let text = line("monotonic", self.monotonic_ns) + &line("boottime", self.boottime_ns);
        let path = "/proc/self/timens_offsets";
        fs::write(path, &text).map_err(|e| Error::call(format!("write '{}' to {path}", text.trim_end()), e))
    }
}

const NS: i64 = 1_000_000_000;

fn parse_offsets(text: &str) -> Option<ClockOffsets> {
    let mut offsets = ClockOffsets::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (clock, seconds, ns) = (fields.next()?, fields.next()?, fields.next()?);
        let value = seconds
            .parse::<i64>()
            .ok()?
            .checked_mul(NS)?
            .checked_add(ns.parse().ok()?)?;
        match clock {
            "monotonic" | "1" => offsets.monotonic_ns = value,
            "boottime" | "7" => offsets.boottime_ns = value,
            _ => {}
        }
    }
    Some(offsets)
}

/// What CLOCK_MONOTONIC and CLOCK_BOOTTIME show the caller, in nanoseconds.
pub fn clocks() -> Result<(i64, i64)> {
    Ok((clock(libc::CLOCK_MONOTONIC)?, clock(libc::CLOCK_BOOTTIME)?))
}

fn clock(which: libc::clockid_t) -> Result<i64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime fills the struct.
    let read = unsafe { libc::clock_gettime(which, &mut time) };
    check("read a clock", read.into())?;
    Ok(time.tv_sec * NS + time.tv_nsec)
}

/// Makes the caller's mounts invisible outside and mounts a /proc that shows the caller's PID namespace.
pub fn private_proc() -> Result<()> {
    // SAFETY: all strings end with a zero byte; the fields that are unused may be null (man 2 mount).
    unsafe {
        let private = libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            ptr::null(),
        );
        check("make the mounts private", private.into())?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let mounted = libc::mount(
            c"proc".as_ptr(),
            c"/proc".as_ptr(),
            c"proc".as_ptr(),
            flags,
            ptr::null(),
        );
        check("mount /proc", mounted.into()).map(drop)
    }
}

/// Sets the name that the host has in the caller's UTS namespace.
pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: pointer and length are of the same string.
    let set = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    check("set the host's name", set.into()).map(drop)
}

/// The name that the host has in the caller's UTS namespace.
pub fn hostname() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    let name = fs::read_to_string(path).map_err(|e| Error::call(format!("read {path}"), e))?;
    Ok(name.trim_end().to_owned())
}

/// Makes the caller the leader of a new session, without a terminal.
pub fn new_session() -> Result<()> {
    // SAFETY: setsid has no arguments.
    check("begin a new session", unsafe { libc::setsid() }.into()).map(drop)
}

/// Which side of [`fork`] the caller is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// In the parent; the child's number.
    Parent(i32),
    /// In the child.
    Child,
}

/// Forks the caller, which must have one thread only: locks of other threads would stay locked in the child.
pub fn fork() -> Result<Fork> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|e| Error::call("list the own threads", e))?
        .count();
    if threads != 1 {
        return Err(Error::other(format!(
            "a process with {threads} threads cannot be forked safely"
        )));
    }
    // SAFETY: there is no other thread whose locks could be missing in the child.
    match check("fork", unsafe { libc::fork() }.into())? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// The argument of clone3 (man 2 clone).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(mem::size_of::<CloneArgs>() == 88);

/// Makes a child with a chosen number in the caller's PID namespace that does nothing: a session of its own, no file descriptors, all
/// signals blocked, waiting for ever. The memory is a copy of the caller's.
pub fn spawn_idle(pid: i32) -> Result<()> {
    let all = SignalMask::block_all()?;
    let wanted = pid;
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: ptr::from_ref(&wanted) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child goes on in a copy. args and wanted outlive the call.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&args),
            mem::size_of::<CloneArgs>(),
        )
    };
    if child == 0 {
        idle();
    }
    drop(all);
    check(&format!("make a process with the number {pid}"), child).map(drop)
}

/// The life of an idle child. System calls only: its C library still believes to be its parent.
fn idle() -> ! {
    // SAFETY: none of these calls takes a pointer; the process owns nothing that closing could hurt.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        libc::syscall(libc::SYS_setsid);
        loop {
            libc::syscall(libc::SYS_pause);
        }
    }
}

/// Blocks all signals of the calling thread until it is dropped; by the system call, because the C library leaves out the
/// two that it uses itself.
struct SignalMask {
    before: u64,
}

impl SignalMask {
    fn block_all() -> Result<Self> {
        let before = Self::set(u64::MAX).map_err(|e| Error::call("block all signals", e))?;
        Ok(Self { before })
    }

    /// Returns the mask before.
    fn set(mask: u64) -> io::Result<u64> {
        let mut before = 0u64;
        let size = mem::size_of::<u64>();
        // SAFETY: both masks have the size that is passed.
        let set = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const mask,
                &raw mut before,
                size,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(before)
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // It worked with the same arguments before, so it does now.
        let _ = Self::set(self.before);
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It returned this code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Ends of child processes as something that can be waited for together with descriptors. SIGCHLD and [`LET_GO`] stay blocked in
/// the calling thread; programs started by [`crate::spawn::Setup`] begin with no signal blocked.
pub struct Children {
    signals: OwnedFd,
    let_go: std::cell::Cell<bool>,
}

/// Tells PID 1 of a namespace from outside to close what it keeps ([`Children::let_go`]). A real-time signal: of the others one that
/// comes while another waits is lost, and who sent that one does not count.
pub const LET_GO: i32 = 40;
/// Where `struct signalfd_siginfo` has the signal and the sender's PID (signalfd(2)).
const SIGNAL_AT: usize = 0;
const SENDER_AT: usize = 12;

impl Children {
    /// Begins to listen.
    pub fn watch() -> Result<Self> {
        // SAFETY: the set is plain bits and valid for the calls; signalfd returns a descriptor that nobody owns yet.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::sigaddset(&mut set, LET_GO);
            check(
                "block SIGCHLD",
                libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()).into(),
            )?;
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            check("make a signalfd", fd.into())?;
            Ok(Self {
                signals: OwnedFd::from_raw_fd(fd),
                let_go: std::cell::Cell::new(false),
            })
        }
    }

    /// Waits until `other` can be read or is at its end (true), or a child has ended (false).
    pub fn wait_or_readable(&self, other: Option<BorrowedFd>) -> Result<bool> {
        let fds = [Some(self.signals.as_fd()), other];
        let ready = poll_readable(&fds, None)?;
        if ready[0] {
            let mut info = [0u8; 128];
            // SAFETY: the buffer has the size of one signalfd_siginfo.
            let got = unsafe { libc::read(self.signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
            let half = |at: usize| {
                info.iter()
                    .skip(at)
                    .take(4)
                    .rev()
                    .fold(0u32, |n, byte| n << 8 | u32::from(*byte))
            };
            // Whoever is outside of the namespace has no number in it. Nobody inside may ask for this.
            let outside = half(SENDER_AT) == 0;
            if got == info.len() as isize && half(SIGNAL_AT) == LET_GO as u32 && outside {
                self.let_go.set(true);
            }
        }
        Ok(ready[1])
    }

    /// Whether [`LET_GO`] has come from outside of the namespace since this was asked before.
    pub fn let_go(&self) -> bool {
        self.let_go.take()
    }

    /// One child that has ended, `None` if there is none now.
    pub fn reap(&self) -> Option<(i32, Ended)> {
        let mut status = 0;
        // SAFETY: waitpid fills the status.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return None;
        }
        let ended = if libc::WIFSIGNALED(status) {
            Ended::Killed(libc::WTERMSIG(status))
        } else {
            Ended::Exited(libc::WEXITSTATUS(status))
        };
        Some((pid, ended))
    }
}

/// Ends every other process of the caller's PID namespace, whose first process the caller is.
pub fn kill_all_others() {
    // SAFETY: kill takes no pointer. In a PID namespace -1 means everything in it but the first process.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Ends the process by SIGKILL; one that is gone already is no error.
pub fn kill(pid: i32) {
    signal(pid, libc::SIGKILL);
}

/// Asks the process to end by SIGTERM; one that is gone already is no error.
pub fn terminate(pid: i32) {
    signal(pid, libc::SIGTERM);
}

fn signal(pid: i32, signal: i32) {
    // Numbers below 1 would mean groups of processes.
    if pid > 0 {
        // SAFETY: kill takes no pointer.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Which of the descriptors can be read or are at their end; none after `longest` (in vain). `None` entries never are.
pub fn poll_readable<const N: usize>(
    fds: &[Option<BorrowedFd>; N],
    longest: Option<Duration>,
) -> Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout_ms = longest.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array has N entries.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    if count < 0 {
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(Error::call("wait for a file descriptor", e));
        }
        return Ok([false; N]);
    }
    Ok(polled.map(|p| p.revents != 0))
}

/// Stops the calling process until somebody continues it (SIGSTOP).
pub fn stop_self() {
    // SAFETY: raise takes no pointer.
    unsafe { libc::raise(libc::SIGSTOP) };
}

fn check(what: &str, result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        Err(Error::call(what, io::Error::last_os_error()))
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests;
