//! Process file descriptors: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2), process_madvise(2).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fd::{check, own};
use crate::memory::{Span, VECTOR_MAX};

/// A descriptor of process `pid`; it can be polled for its end and never means another process.
pub fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }, || {
        format!("open process {pid}")
    })
}

/// A duplicate of the descriptor `fd` of a process.
///
/// # Errors
/// EBADF: it has no such descriptor. EPERM: it may not be traced by us.
pub fn getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    own(result, || format!("take over descriptor {fd} of another process"))
}

/// Sends a signal (0: only asks whether the process can be signalled).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo is allowed and means "as kill(2) does".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    check(result, || format!("send signal {signal} to a process")).map(drop)
}

/// Waits until the process has ended (is a zombie or gone). `false`: not within `timeout`.
pub fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd is passed.
    let result = unsafe { libc::poll(&mut poll, 1, milliseconds) };
    Ok(check(i64::from(result), || "wait for the end of a process".into())? > 0)
}

/// Gives advice about memory of another process (process_madvise(2): MADV_COLD, PAGEOUT, WILLNEED, COLLAPSE).
/// Returns the bytes that were advised; fewer than asked for when a range could not be.
pub fn advise(pidfd: BorrowedFd<'_>, spans: &[Span], advice: i32) -> Result<usize> {
    let mut done = 0usize;
    for batch in spans.chunks(VECTOR_MAX) {
        let vectors: Vec<libc::iovec> = batch
            .iter()
            .map(|&(address, bytes)| libc::iovec {
                iov_base: address as *mut libc::c_void,
                iov_len: bytes,
            })
            .collect();
        // SAFETY: the vector of ranges is live; the ranges are addresses of the other process.
        let result = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                advice,
                0,
            )
        };
        let advised = check(result, || {
            format!("give advice {advice} about memory of a process")
        })? as usize;
        done += advised;
        if advised < batch.iter().map(|span| span.1).sum() {
            break;
        }
    }
    Ok(done)
}

/// `MADV_COLLAPSE` (Linux 6.1): make huge pages of these ranges now.
pub const MADV_COLLAPSE: i32 = 25;

/// Tries to make huge pages again of each range (address and bytes multiples of 2 MiB); returns how many bytes were.
/// A range that cannot be one now (no free huge page, unmapped meanwhile) is left as it is.
pub fn collapse(pidfd: BorrowedFd<'_>, spans: &[Span]) -> Result<usize> {
    let mut collapsed = 0;
    for span in spans {
        match advise(pidfd, std::slice::from_ref(span), MADV_COLLAPSE) {
            Ok(bytes) => collapsed += bytes,
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(collapsed)
}

/// The kernel's ways of saying "not this range".
fn is_refusal(error: &Error) -> bool {
    matches!(
        error.errno(),
        Some(libc::EINVAL | libc::ENOMEM | libc::EAGAIN | libc::EBUSY | libc::EFAULT)
    )
}
