//! Starting programs that inherit chosen file descriptors, in a session of their own if they have to outlive us.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::ptr;

use crate::error::{Error, Result};

/// What is done in the child between fork and exec.
#[derive(Debug, Default)]
pub struct Setup {
    inherit: Vec<RawFd>,
    session: bool,
    group: Option<CString>,
}

impl Setup {
    /// Nothing special.
    pub fn new() -> Self {
        Self::default()
    }

    /// The program inherits this descriptor under the same number (tell it by an argument).
    pub fn inherit(mut self, fd: BorrowedFd) -> Self {
        self.inherit.push(fd.as_raw_fd());
        self
    }

    /// The program leads a new session, so that no terminal and no shell ends it.
    pub fn session(mut self) -> Self {
        self.session = true;
        self
    }

    /// The program is in this control group (its `cgroup.procs` file) before its first instruction.
    pub fn group(mut self, members_file: &Path) -> Result<Self> {
        let path = CString::new(members_file.as_os_str().as_bytes())
            .map_err(|_| Error::other("the path of a control group has a zero byte in it"))?;
        self.group = Some(path);
        Ok(self)
    }

    /// Starts `command`, with no signal blocked. The descriptors named with [`Setup::inherit`] must stay open until this returns.
    pub fn spawn(self, command: &mut Command) -> Result<Child> {
        let what = format!("start {}", display(command.get_program()));
        // SAFETY: the closure runs between fork and exec and calls async-signal-safe functions only; all memory that it
        // reads was allocated before.
        unsafe { command.pre_exec(move || self.apply()) };
        command.spawn().map_err(|e| Error::call(what, e))
    }

    fn apply(&self) -> io::Result<()> {
        unblock_signals()?;
        keep_descriptors_private()?;
        for &fd in &self.inherit {
            // SAFETY: fcntl with F_SETFD takes no pointer.
            check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
        }
        if self.session {
            // SAFETY: setsid has no arguments.
            check(unsafe { libc::setsid() })?;
        }
        match &self.group {
            Some(path) => join_group(path),
            None => Ok(()),
        }
    }
}

/// Since Rust 1.66 a program inherits what its parent has blocked.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: a sigset_t is plain bits; sigemptyset makes it valid.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut())).map(drop)
    }
}

/// Whatever we were started with by accident (a shell's or a build tool's pipes) would bind the program to processes outside, and a
/// workload with it could not move.
fn keep_descriptors_private() -> io::Result<()> {
    let first = 3;
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC takes no pointer and closes nothing before exec.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
        )
    };
    check(result as libc::c_int).map(drop)
}

/// Moves the calling process into a group: "0" stands for whoever writes.
fn join_group(members_file: &CString) -> io::Result<()> {
    // SAFETY: the path is a C string; the descriptor is closed below.
    let fd = check(unsafe { libc::open(members_file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: one byte of a static string is read; fd was opened above and is closed once.
    let written = unsafe {
        let written = libc::write(fd, b"0".as_ptr().cast(), 1);
        libc::close(fd);
        written
    };
    if written == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn display(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}

/// Takes over a descriptor that this process inherited under a number it was told. Programs started from
/// here on do not inherit it. To be called once for each number.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    let what = || format!("take over the inherited file descriptor {number}");
    // SAFETY: fcntl with F_SETFD takes no pointer, and fails for a number that is not open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })
        .map_err(|e| Error::call(what(), e))?;
    if number <= 2 {
        return Err(Error::other(format!(
            "the file descriptor {number} is not one to inherit for private use"
        )));
    }
    // SAFETY: it is open, and the caller says that nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A pipe: its reading end and its writing end. Reading finds the end of file when the last writing end is closed, which the
/// death of its owner does.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills the two numbers; on success both are open and owned by nobody else.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC)).map_err(|e| Error::call("make a pipe", e))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_program_inherits_what_was_chosen_and_nothing_else() {
        let [chosen, stray] = [pipe().unwrap().0, pipe().unwrap().0];
        for fd in [&chosen, &stray] {
            // SAFETY: fcntl with F_SETFD takes no pointer.
            check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).unwrap();
        }
        let has = |fd: &OwnedFd| format!("test -e /proc/self/fd/{}", fd.as_raw_fd());
        let script = format!("{} && ! {}", has(&chosen), has(&stray));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null());
        let status = Setup::new()
            .inherit(chosen.as_fd())
            .spawn(&mut command)
            .unwrap()
            .wait()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}
