//! The signals by which a user asks a program to end, as something to wait for.

use std::io;
use std::mem;
use std::ptr;

use crate::error::{Error, Result};

/// SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone), taken away from their handlers.
#[derive(Clone, Copy)]
pub struct Interrupts {
    set: libc::sigset_t,
}

impl Interrupts {
    /// Blocks them in the calling thread and in all threads that it starts from now on. Programs started by
    /// [`crate::spawn::Setup`] begin with nothing blocked.
    pub fn block() -> Result<Self> {
        // SAFETY: a sigset_t is plain bits, filled in before it is used.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
                0 => Ok(Self { set }),
                errno => Err(Error::call("block signals", io::Error::from_raw_os_error(errno))),
            }
        }
    }

    /// Waits for the next one and returns its number.
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: both pointers are valid. sigwait fails for an invalid set only.
        unsafe { libc::sigwait(&self.set, &mut signal) };
        signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_interrupt_is_waited_for_instead_of_ending_the_process() {
        let interrupts = Interrupts::block().unwrap();
        // SAFETY: the signal goes to this thread, in which it is blocked.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(interrupts.wait(), libc::SIGTERM);
    }
}
