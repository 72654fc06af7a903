//! The threads of a frozen process.

use std::collections::BTreeMap;

use whimbrel_kernel::proc::Status;
use whimbrel_kernel::ptrace::{self, Regs};
use whimbrel_kernel::{memory, task};

use super::syscalls::{self, CriticalSection, RestartMemo};
use super::{Error, Result};
use crate::calls::{Answers, Plan};
use crate::check::ThreadFacts;
use crate::refusal::{Refusal, Subject};
use crate::state::{PendingSignal, Registers, Rseq, Scheduling, SignalStack, ThreadState};

/// Offset of `rseq_cs` in `struct rseq`, and the size of `struct rseq_cs` (linux/rseq.h).
const RSEQ_CS_OFFSET: u64 = 8;
const RSEQ_CS_BYTES: usize = 32;
const PR_GET_TID_ADDRESS: u64 = 40;
/// `TASK_COMM_LEN`, with the final zero.
const NAME_BYTES: usize = 16;
/// `stack_t`: pointer, int with padding, size.
const STACK_BYTES: usize = 24;

macro_rules! registers {
    ($($field:ident),*) => {
        impl From<&Regs> for Registers {
            fn from(regs: &Regs) -> Registers {
                Registers { $($field: regs.$field),* }
            }
        }

        /// Registers as ptrace takes them.
        pub(crate) fn to_regs(registers: &Registers) -> Regs {
            Regs { $($field: registers.$field),* }
        }
    };
}

registers!(
    r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp,
    ss, fs_base, gs_base, ds, es, fs, gs
);

#[cfg(test)]
pub(crate) fn zero_registers() -> Regs {
    to_regs(&Registers::default())
}

/// A stopped thread, read from outside.
#[derive(Debug)]
pub(crate) struct Observed {
    /// TID as we see it; the one in `state` is put right later.
    pub tid: i32,
    /// As they are now, and as they must be again when we let it run.
    pub live: Regs,
    pub state: ThreadState,
}

/// Whether a signal that the process catches is about to be delivered to a thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deliverable {
    /// `SigCgt`.
    caught: u64,
}

impl Deliverable {
    pub(crate) fn new(caught: u64) -> Deliverable {
        Deliverable { caught }
    }

    fn any<'a>(self, mask: u64, pending: impl Iterator<Item = &'a PendingSignal>) -> bool {
        pending.filter_map(signal_of).any(|signal| {
            let bit = 1u64.checked_shl(signal.wrapping_sub(1)).unwrap_or(0);
            bit & !mask & self.caught != 0
        })
    }
}

/// The signal number in a siginfo.
pub(crate) fn signal_of(pending: &PendingSignal) -> Option<u32> {
    let number = i32::from_ne_bytes(pending.siginfo.get(..4)?.try_into().ok()?);
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=64).contains(number))
}

/// Signals pending for a thread, or with `shared` for its process.
pub(crate) fn pending(tid: i32, shared: bool) -> Result<Vec<PendingSignal>> {
    let queued = ptrace::pending(tid, shared)?;
    Ok(queued
        .iter()
        .map(|siginfo| PendingSignal {
            siginfo: siginfo.to_vec(),
        })
        .collect())
}

/// Makes the live registers of a stopped thread safe for calls inside it, and undoes what the stop itself did to the
/// program: an EINTR that no signal caused, and a critical section that the kernel would abort, had it been preempted.
/// Returns the registers as they are then.
fn mend(pid: i32, tid: i32, caught: bool, memo: &mut RestartMemo) -> Result<Regs> {
    let before = ptrace::regs(tid)?;
    memo.observe(tid, &before);
    let mut regs = before;
    syscalls::reissue_interrupted(&mut regs, caught);
    if let Some(section) = critical_section(pid, tid)? {
        section.abort(&mut regs);
    }
    if (regs.rip, regs.rax) != (before.rip, before.rax) {
        ptrace::set_regs(tid, &regs)?;
    }
    Ok(regs)
}

/// [`mend`] for a stop in which nothing is captured.
pub(crate) fn mend_one(
    pid: i32,
    tid: i32,
    deliverable: Deliverable,
    shared: &[PendingSignal],
    memo: &mut RestartMemo,
) -> Result<()> {
    let own = pending(tid, false)?;
    let caught = deliverable.any(ptrace::sigmask(tid)?, own.iter().chain(shared));
    mend(pid, tid, caught, memo).map(drop)
}

fn critical_section(pid: i32, tid: i32) -> Result<Option<CriticalSection>> {
    let rseq = read_rseq(tid)?;
    let Some(rseq) = rseq else { return Ok(None) };
    let mut pointer = [0u8; 8];
    memory::read(pid, rseq.address + RSEQ_CS_OFFSET, &mut pointer)?;
    let address = u64::from_ne_bytes(pointer);
    if address == 0 {
        return Ok(None);
    }
    let mut bytes = [0u8; RSEQ_CS_BYTES];
    memory::read(pid, address, &mut bytes)?;
    Ok(Some(CriticalSection::parse(&bytes)))
}

/// What all threads of a process have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    pub deliverable: Deliverable,
    /// Signals pending for the process.
    pub shared: &'a [PendingSignal],
    /// The CPUs that we may use ourselves.
    pub our_cpus: &'a [u8],
}

/// Reads everything about a thread that can be read from outside.
pub(crate) fn observe(
    pid: i32,
    tid: i32,
    surroundings: Surroundings<'_>,
    memo: &mut RestartMemo,
) -> Result<Observed> {
    let own = pending(tid, false)?;
    let mask = ptrace::sigmask(tid)?;
    let pending = own.iter().chain(surroundings.shared);
    let caught = surroundings.deliverable.any(mask, pending);
    let live = mend(pid, tid, caught, memo)?;
    let state = ThreadState {
        tid,
        registers: settled(pid, tid, live, caught, memo)?,
        extended_registers: ptrace::xstate(tid)?,
        signal_mask: mask,
        pending: own,
        rseq: read_rseq(tid)?,
        robust_list: task::robust_list(tid)?,
        scheduling: scheduling(tid, surroundings.our_cpus)?,
        ..ThreadState::default()
    };
    Ok(Observed { tid, live, state })
}

/// The registers that travel: nothing in them depends on what the source's kernel remembers.
fn settled(pid: i32, tid: i32, live: Regs, caught: bool, memo: &RestartMemo) -> Result<Registers> {
    let mut regs = live;
    let mut code = [0u8; syscalls::CODE_BYTES];
    let interrupted = (regs.orig_rax as i64) >= 0;
    // a thread in user mode may stand right at the start of a mapping
    if interrupted {
        memory::read(pid, regs.rip.wrapping_sub(code.len() as u64), &mut code)?;
    }
    syscalls::settle(&mut regs, tid, caught, memo, &code);
    Ok(Registers::from(&regs))
}

fn read_rseq(tid: i32) -> Result<Option<Rseq>> {
    let rseq = ptrace::rseq(tid)?;
    let found = Rseq {
        address: rseq.pointer,
        size: rseq.size,
        signature: rseq.signature,
    };
    Ok((rseq.pointer != 0).then_some(found))
}

/// The number in the innermost PID namespace, from a line such as `NSpid`.
pub(crate) fn inner_id(status: &Status, key: &str) -> Option<i32> {
    status.numbers(key).last().and_then(|id| i32::try_from(*id).ok())
}

fn scheduling(tid: i32, our_cpus: &[u8]) -> Result<Scheduling> {
    let attributes = task::scheduling(tid)?;
    Ok(Scheduling {
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime_ns: attributes.runtime_ns,
        deadline_ns: attributes.deadline_ns,
        period_ns: attributes.period_ns,
        affinity: affinity(tid, our_cpus)?,
    })
}

/// The CPUs of a thread; none when they are all that we may use ourselves (`ours`): then nobody has chosen them, and another machine
/// has others.
fn affinity(tid: i32, ours: &[u8]) -> Result<Vec<u8>> {
    let mask = task::affinity(tid)?;
    Ok(if mask == ours { Vec::new() } else { mask })
}

/// What only the thread itself can tell: the addresses of its answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    stack: u64,
    tid_address: u64,
    death_signal: u64,
    slack: usize,
    name: u64,
}

/// Plans the questions.
pub(crate) fn ask(plan: &mut Plan) -> Asked {
    let stack = plan.room(STACK_BYTES);
    plan.call("sigaltstack", libc::SYS_sigaltstack, &[0, stack]);
    let tid_address = plan.room(8);
    plan.call(
        "prctl PR_GET_TID_ADDRESS",
        libc::SYS_prctl,
        &[PR_GET_TID_ADDRESS, tid_address],
    );
    let death_signal = plan.room(8);
    plan.call(
        "prctl PR_GET_PDEATHSIG",
        libc::SYS_prctl,
        &[libc::PR_GET_PDEATHSIG as u64, death_signal],
    );
    let slack = plan.call(
        "prctl PR_GET_TIMERSLACK",
        libc::SYS_prctl,
        &[libc::PR_GET_TIMERSLACK as u64],
    );
    let name = plan.room(NAME_BYTES);
    plan.call(
        "prctl PR_GET_NAME",
        libc::SYS_prctl,
        &[libc::PR_GET_NAME as u64, name],
    );
    Asked {
        stack,
        tid_address,
        death_signal,
        slack,
        name,
    }
}

/// Takes the answers.
pub(crate) fn answer(asked: Asked, answers: &Answers, state: &mut ThreadState) {
    state.signal_stack = SignalStack {
        base: answers.word(asked.stack),
        flags: answers.half(asked.stack + 8) as i32,
        size: answers.word(asked.stack + 16),
    };
    let name = answers.bytes(asked.name, NAME_BYTES);
    state.name = name.iter().copied().take_while(|byte| *byte != 0).collect();
    state.tid_address = answers.word(asked.tid_address);
    state.parent_death_signal = answers.half(asked.death_signal) as i32;
    state.timer_slack_ns = answers.result(asked.slack).max(0) as u64;
}

/// What only ptrace tells about a thread and what cannot move.
pub(crate) fn check(pid: i32, thread: &Observed) -> Result<()> {
    let subject = Subject::Thread { pid, tid: thread.tid };
    if thread.live.cs == crate::check::CODE_SEGMENT_32 {
        return Err(Refusal::new(subject, "runs 32-bit code", "use a 64-bit build of the program").into());
    }
    if ptrace::syscall_user_dispatch(thread.tid)? {
        let cure = "start the program without the emulator that uses it";
        return Err(Refusal::new(subject, "uses syscall user dispatch", cure).into());
    }
    Ok(())
}

/// Host TID to TID in the workload's namespace, after the same checks that were made while the process ran: threads may have
/// come since then.
pub(crate) fn inner_ids(pid: i32, tids: &[i32]) -> Result<BTreeMap<i32, i32>> {
    let leader = ThreadFacts::read(pid, pid)?;
    let mut ids = BTreeMap::new();
    for tid in tids {
        let facts = ThreadFacts::read(pid, *tid)?;
        facts.judge(pid, *tid, &leader)?;
        let missing = || Error::Odd(format!("/proc/{pid}/task/{tid}/status has no NSpid"));
        ids.insert(*tid, facts.inner_id.ok_or_else(missing)?);
    }
    Ok(ids)
}
