//! System calls that the freeze interrupted, and restartable sequences.
//!
//! A ptrace stop interrupts a blocking system call. The kernel then either starts it again by itself (`ERESTARTSYS` and its
//! relatives, which travel in the registers and are handled by the destination's kernel as well), or with
//! data that only the source's kernel has (`ERESTART_RESTARTBLOCK`), or not at all (`EINTR`, see signal(7),
//! "Interruption of system calls and library functions by stop signals").

use std::collections::HashMap;

use whimbrel_kernel::ptrace::Regs;

/// `ERESTART_RESTARTBLOCK` of linux/errno.h: go on with restart_syscall(2).
const RESTART_BLOCK: i64 = -516;
const INTERRUPTED: i64 = -(libc::EINTR as i64);
/// Length of the `syscall` instruction.
const SYSCALL_BYTES: u64 = 2;
/// How many bytes before the return address [`number_before`] needs.
pub(crate) const CODE_BYTES: usize = 9;

/// Calls that return EINTR after a mere stop: those that signal(7) lists, and socket calls under a timeout.
const INTERRUPTED_BY_STOP: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
];

/// What was done about an interrupted system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The thread was in user mode, or the kernel of the destination does what is right.
    Untouched,
    /// The call will be issued again.
    Again,
    /// The call cannot be told any more; it returns EINTR.
    Interrupted,
}

/// Arguments and place of a system call: what stays the same while it is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    return_address: u64,
    arguments: [u64; 4],
}

impl Place {
    fn of(regs: &Regs) -> Place {
        Place {
            return_address: regs.rip,
            arguments: [regs.rdi, regs.rsi, regs.rdx, regs.r10],
        }
    }
}

/// Remembers which system calls were interrupted with a restart block: at the next stop the registers only show
/// restart_syscall(2). Lives as long as the migration and is shown every stop of the source.
#[derive(Debug, Default)]
pub struct RestartMemo {
    calls: HashMap<i32, (Place, u64)>,
}

impl RestartMemo {
    /// Notes what thread `tid` is doing.
    pub fn observe(&mut self, tid: i32, regs: &Regs) {
        let number = regs.orig_rax as i64;
        if number >= 0 && regs.rax as i64 == RESTART_BLOCK && number != libc::SYS_restart_syscall {
            self.calls.insert(tid, (Place::of(regs), regs.orig_rax));
        }
    }

    /// The call that thread `tid` is restarting, if it was seen before.
    fn number(&self, tid: i32, regs: &Regs) -> Option<u64> {
        self.calls
            .get(&tid)
            .filter(|(place, _)| *place == Place::of(regs))
            .map(|(_, number)| *number)
    }
}

/// The number in a `mov $number,%eax` right before a `syscall` instruction: how libc enters the kernel almost everywhere.
/// `code` ends with the `syscall` instruction.
fn number_before(code: &[u8]) -> Option<u64> {
    let before = code.strip_suffix(&[0x0f, 0x05])?;
    let (opcode, immediate) = before.split_at_checked(before.len().checked_sub(4)?)?;
    let number = u32::from_le_bytes(immediate.try_into().ok()?);
    let known = opcode.ends_with(&[0xb8]) || opcode.ends_with(&[0x48, 0xc7, 0xc0]);
    known.then_some(number.into())
}

/// Issues an EINTR that comes from our stop again. The live registers of the source get the same, so that
/// the program never sees it. `caught` tells that a signal with a handler is about to be delivered, which is a real reason for EINTR.
pub fn reissue_interrupted(regs: &mut Regs, caught: bool) -> bool {
    let number = regs.orig_rax as i64;
    let ours = number >= 0 && regs.rax as i64 == INTERRUPTED && INTERRUPTED_BY_STOP.contains(&number);
    if ours && !caught {
        rewind(regs, regs.orig_rax);
    }
    ours && !caught
}

/// Makes the registers that travel independent of what the source's kernel remembers. `code` are the bytes
/// before the instruction pointer.
pub fn settle(regs: &mut Regs, tid: i32, caught: bool, memo: &RestartMemo, code: &[u8]) -> Outcome {
    if reissue_interrupted(regs, caught) {
        return Outcome::Again;
    }
    // with a handler to be run the destination's kernel turns it into EINTR, as the source's would have
    if (regs.orig_rax as i64) < 0 || regs.rax as i64 != RESTART_BLOCK || caught {
        return Outcome::Untouched;
    }
    let number = match regs.orig_rax as i64 {
        libc::SYS_restart_syscall => memo.number(tid, regs).or_else(|| number_before(code)),
        number => Some(number as u64),
    };
    let Some(number) = number else {
        regs.rax = INTERRUPTED as u64;
        regs.orig_rax = u64::MAX;
        return Outcome::Interrupted;
    };
    rewind(regs, number);
    continue_sleep(regs);
    Outcome::Again
}

fn rewind(regs: &mut Regs, number: u64) {
    regs.rax = number;
    regs.rip = regs.rip.wrapping_sub(SYSCALL_BYTES);
    regs.orig_rax = u64::MAX;
}

/// A relative sleep goes on with the rest that the kernel stored when it was interrupted (nanosleep(2), `rem`).
fn continue_sleep(regs: &mut Regs) {
    match regs.rax as i64 {
        libc::SYS_nanosleep if regs.rsi != 0 => regs.rdi = regs.rsi,
        libc::SYS_clock_nanosleep if regs.r10 != 0 && regs.rsi & libc::TIMER_ABSTIME as u64 == 0 => {
            regs.rdx = regs.r10;
        }
        _ => {}
    }
}

/// `struct rseq_cs` of linux/rseq.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CriticalSection {
    /// First instruction.
    pub start: u64,
    /// Bytes until after the commit.
    pub length: u64,
    /// Where it goes on when it was interrupted.
    pub abort: u64,
}

impl CriticalSection {
    /// From the 32 bytes in memory.
    pub fn parse(bytes: &[u8; 32]) -> CriticalSection {
        let word = |at: usize| {
            bytes
                .get(at..at + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        CriticalSection {
            start: word(8),
            length: word(16),
            abort: word(24),
        }
    }

    /// Sends the thread to the abort handler if it stands inside, as the kernel does after a preemption.
    pub fn abort(&self, regs: &mut Regs) -> bool {
        let inside = regs.rip.wrapping_sub(self.start) < self.length;
        if inside {
            regs.rip = self.abort;
        }
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(number: i64, result: i64) -> Regs {
        let mut regs = crate::capture::threads::zero_registers();
        regs.rip = 0x1002;
        regs.orig_rax = number as u64;
        regs.rax = result as u64;
        regs
    }

    #[test]
    fn epoll_wait_is_issued_again_unless_a_signal_is_caught() {
        let mut again = regs(libc::SYS_epoll_wait, -4);
        assert!(reissue_interrupted(&mut again, false));
        assert_eq!((again.rip, again.rax, again.orig_rax), (0x1000, 232, u64::MAX));
        let mut real = regs(libc::SYS_epoll_wait, -4);
        assert!(!reissue_interrupted(&mut real, true));
        assert_eq!(real.rip, 0x1002);
    }

    #[test]
    fn other_errors_and_user_mode_stay() {
        for (number, result) in [
            (libc::SYS_openat, -4),
            (-1, -4),
            (libc::SYS_epoll_wait, -22),
            (libc::SYS_read, -512),
        ] {
            let mut regs = regs(number, result);
            assert_eq!(
                settle(&mut regs, 1, false, &RestartMemo::default(), &[]),
                Outcome::Untouched
            );
            assert_eq!(regs.rip, 0x1002);
        }
    }

    #[test]
    fn a_sleep_goes_on_with_its_rest() {
        let mut sleep = regs(libc::SYS_nanosleep, RESTART_BLOCK);
        (sleep.rdi, sleep.rsi) = (0x10, 0x20);
        assert_eq!(
            settle(&mut sleep, 1, false, &RestartMemo::default(), &[]),
            Outcome::Again
        );
        assert_eq!((sleep.rax, sleep.rdi), (35, 0x20));
        let mut absolute = regs(libc::SYS_clock_nanosleep, RESTART_BLOCK);
        (absolute.rsi, absolute.rdx, absolute.r10) = (1, 0x30, 0x40);
        settle(&mut absolute, 1, false, &RestartMemo::default(), &[]);
        assert_eq!(absolute.rdx, 0x30);
    }

    #[test]
    fn a_second_stop_finds_the_call_in_the_memo_only_in_the_same_place() {
        let mut memo = RestartMemo::default();
        memo.observe(7, &regs(libc::SYS_futex, RESTART_BLOCK));
        let mut second = regs(libc::SYS_restart_syscall, RESTART_BLOCK);
        memo.observe(7, &second);
        assert_eq!(settle(&mut second, 7, false, &memo, &[]), Outcome::Again);
        assert_eq!(second.rax as i64, libc::SYS_futex);
        let mut elsewhere = regs(libc::SYS_restart_syscall, RESTART_BLOCK);
        elsewhere.rdi = 99;
        assert_eq!(settle(&mut elsewhere, 7, false, &memo, &[]), Outcome::Interrupted);
        assert_eq!(elsewhere.rax as i64, -4);
    }

    #[test]
    fn an_unseen_restart_is_read_from_the_code() {
        let code = [0x90, 0x90, 0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(number_before(&code), Some(230));
        assert_eq!(
            number_before(&[0x48, 0xc7, 0xc0, 7, 0, 0, 0, 0x0f, 0x05]),
            Some(7)
        );
        assert_eq!(number_before(&[0x48, 0x89, 0xf8, 0x0f, 0x05]), None);
        assert_eq!(number_before(&[0x0f, 0x05]), None);
        assert_eq!(number_before(&[]), None);
    }

    #[test]
    fn a_critical_section_is_aborted_only_from_inside() {
        let section = CriticalSection {
            start: 0x1000,
            length: 16,
            abort: 0x2000,
        };
        let mut inside = regs(-1, 0);
        assert!(section.abort(&mut inside));
        assert_eq!(inside.rip, 0x2000);
        let mut after = regs(-1, 0);
        after.rip = 0x1010;
        assert!(!section.abort(&mut after));
    }
}
