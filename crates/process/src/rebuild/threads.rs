//! Threads with their numbers, and what each of them has for itself.

use whimbrel_kernel::proc::{self, Status};
use whimbrel_kernel::remote::{Remote, BATCH_CALLS_MAX};
use whimbrel_kernel::{memory, ptrace, task};

use super::{plan, run_if_full, Error, Result};
use crate::calls::{Answers, Plan, Scratch};
use crate::capture::threads::{inner_id, signal_of, to_regs};
use crate::state::{ProcessState, Rseq, Scheduling, ThreadState};

/// `struct clone_args` of linux/sched.h: the words that we fill.
const CLONE_ARGS_WORDS: usize = 11;
const SET_TID: usize = 8;
const SET_TID_SIZE: usize = 9;
/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_UNREGISTER: u64 = 1;
const SS_DISABLE: i32 = 2;
/// `SS_AUTODISARM`, the only flag that a program can set.
const SS_AUTODISARM: i32 = i32::MIN;
/// Offsets and lengths of what the kernel writes in `struct rseq` (linux/rseq.h): `cpu_id_start` and `cpu_id`, `node_id` and `mm_cid`.
const RSEQ_IDS: [(u64, usize); 2] = [(0, 8), (20, 8)];
/// The first of every thread's own calls asks for its number.
const GETTID: usize = 0;
/// The length that set_robust_list(2) insists on.
const ROBUST_LIST_BYTES: u64 = 24;

/// Makes all threads but the leader. They are traced by us from their birth (`CLONE_PTRACE`) and have not run.
pub(super) fn spawn(leader: &mut Remote, process: &ProcessState, gadget: u64) -> Result<Vec<Remote>> {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_PTRACE;
    let mut calls = plan(leader)?;
    for thread in process.threads.iter().skip(1) {
        calls = run_if_full(calls, leader)?;
        let mut args = [0u64; CLONE_ARGS_WORDS];
        args[0] = flags as u64;
        args[SET_TID] = calls.put(&thread.tid.to_ne_bytes());
        args[SET_TID_SIZE] = 1;
        let address = calls.words(&args);
        calls.call(
            &format!("clone3 of thread {}", thread.tid),
            libc::SYS_clone3,
            &[address, 88],
        );
    }
    calls.run(leader)?;
    adopt(leader, process, gadget)
}

/// Takes over the new threads, each of which has stopped at its birth.
fn adopt(leader: &Remote, process: &ProcessState, gadget: u64) -> Result<Vec<Remote>> {
    let pid = leader.pid();
    let mut tids: Vec<i32> = proc::tasks(pid)?.into_iter().filter(|tid| *tid != pid).collect();
    let wanted = process.threads.get(1..).unwrap_or_default();
    if tids.len() != wanted.len() {
        return Err(Error::Unfit(format!(
            "{} threads were made instead of {}",
            tids.len(),
            wanted.len()
        )));
    }
    if let Some(first) = wanted.first() {
        let begin = first_born(pid, &tids, first.tid)?;
        tids.rotate_left(begin);
    }
    let mut threads = Vec::with_capacity(tids.len());
    for tid in tids {
        match ptrace::wait(tid)? {
            ptrace::Stop::Event { .. } => {}
            other => {
                return Err(Error::Unfit(format!(
                    "thread {tid} began with {other:?} and not with a stop"
                )))
            }
        }
        let mut remote = Remote::new(pid, tid, gadget)?;
        remote.share_scratch(leader.installed()?);
        threads.push(remote);
    }
    Ok(threads)
}

/// Where the thread that was made first stands. The kernel counts up our numbers for them and begins again at the end, so that the
/// others follow it in order; each of them is asked for its own number later.
fn first_born(pid: i32, tids: &[i32], wanted: i32) -> Result<usize> {
    for (index, tid) in tids.iter().enumerate() {
        if inner_id(&Status::of_thread(pid, *tid)?, "NSpid") == Some(wanted) {
            return Ok(index);
        }
    }
    Err(Error::Unfit(format!("thread {wanted} was made and is not there")))
}

/// Gives every thread what is its own, all at the same time.
pub(super) fn build(leader: &mut Remote, others: &mut [Remote], process: &ProcessState) -> Result<()> {
    let inherited = ptrace::rseq(leader.tid())?;
    let inherited = (inherited.pointer != 0).then_some(Rseq {
        address: inherited.pointer,
        size: inherited.size,
        signature: inherited.signature,
    });
    let fill = |index: usize, calls: &mut Plan| {
        let Some(thread) = process.threads.get(index) else {
            return;
        };
        own(calls, thread);
        if index == 0 {
            // a copy of its parent's, whose memory is not there any more
            inherited
                .iter()
                .for_each(|rseq| register(calls, *rseq, RSEQ_UNREGISTER));
        }
        thread.rseq.iter().for_each(|rseq| register(calls, *rseq, 0));
    };
    let check = |index: usize, answers: &Answers| {
        let wanted = process.threads.get(index).map_or(0, |thread| thread.tid);
        match answers.result(GETTID) {
            tid if tid == i64::from(wanted) => Ok(()),
            tid => Err(Error::Unfit(format!("thread {wanted} has become thread {tid}"))),
        }
    };
    everywhere(leader, others, fill, check)?;
    let tids = std::iter::once(leader.tid()).chain(others.iter().map(Remote::tid));
    for (tid, thread) in tids.zip(&process.threads) {
        schedule(tid, &thread.scheduling)?;
    }
    Ok(())
}

/// Lets every thread run its own calls, all at the same time; `check` sees what each of them answered. Threads without calls
/// are left alone.
pub(super) fn everywhere(
    leader: &mut Remote,
    others: &mut [Remote],
    mut fill: impl FnMut(usize, &mut Plan),
    mut check: impl FnMut(usize, &Answers) -> Result<()>,
) -> Result<()> {
    let scratch = Scratch::of(leader)?;
    let count = others.len() + 1;
    let all = std::iter::once(leader).chain(others.iter_mut());
    let mut running: Vec<Running<'_>> = Vec::with_capacity(count);
    let mut slot = 0;
    let mut result = Ok(());
    for (index, remote) in all.enumerate() {
        let mut calls = Plan::new(scratch.piece(index, count));
        fill(index, &mut calls);
        if calls.len() == 0 {
            continue;
        }
        if slot + calls.len() > BATCH_CALLS_MAX {
            result = settle(&mut running, &mut check);
            slot = 0;
        }
        result = result.and_then(|()| Ok(calls.start(remote, slot)?));
        if result.is_err() {
            break;
        }
        let next = slot + calls.len();
        running.push(Running {
            index,
            remote,
            calls,
            slot,
        });
        slot = next;
    }
    // whoever was started must be waited for, whatever has failed
    let settled = settle(&mut running, &mut check);
    result.and(settled)
}

/// A thread that runs its calls.
struct Running<'a> {
    index: usize,
    remote: &'a mut Remote,
    calls: Plan,
    slot: usize,
}

/// Waits for all that run; gives the first failure.
fn settle(
    running: &mut Vec<Running<'_>>,
    check: &mut impl FnMut(usize, &Answers) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    for one in running.drain(..) {
        let answers = one.calls.finish(one.remote, one.slot);
        let checked = answers
            .map_err(Error::from)
            .and_then(|answers| check(one.index, &answers));
        result = result.and(checked);
    }
    result
}

fn own(calls: &mut Plan, thread: &ThreadState) {
    calls.call("gettid", libc::SYS_gettid, &[]);
    let name = calls.text(&thread.name);
    calls.call(
        "prctl PR_SET_NAME",
        libc::SYS_prctl,
        &[libc::PR_SET_NAME as u64, name],
    );
    let (head, _) = thread.robust_list;
    calls.call(
        "set_robust_list",
        libc::SYS_set_robust_list,
        &[head, ROBUST_LIST_BYTES],
    );
    calls.call(
        "set_tid_address",
        libc::SYS_set_tid_address,
        &[thread.tid_address],
    );
    // always: without one of its own the stub still has its parent's
    let stack = thread.signal_stack;
    let flags = (stack.flags & (SS_AUTODISARM | SS_DISABLE)) as u32;
    let address = calls.words(&[stack.base, flags.into(), stack.size]);
    calls.call("sigaltstack", libc::SYS_sigaltstack, &[address, 0]);
    calls.call(
        "prctl PR_SET_TIMERSLACK",
        libc::SYS_prctl,
        &[libc::PR_SET_TIMERSLACK as u64, thread.timer_slack_ns],
    );
}

/// Signals that wait for one thread.
pub(super) fn queue_signals(
    leader: &mut Remote,
    others: &mut [Remote],
    process: &ProcessState,
) -> Result<()> {
    let fill = |index: usize, calls: &mut Plan| {
        let Some(thread) = process.threads.get(index) else {
            return;
        };
        for pending in &thread.pending {
            let signal = signal_of(pending).unwrap_or(0);
            let info = calls.put(&pending.siginfo);
            let args = [process.pid as u64, thread.tid as u64, signal.into(), info];
            calls.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args);
        }
    };
    everywhere(leader, others, fill, |_, _| Ok(()))
}

/// What the kernel has written into `struct rseq` of every thread: on which processor it is. The source's page comes later and brings the
/// source's numbers, but the kernel may count on its own being there and not write them again as long as they are true.
#[derive(Debug)]
pub(super) struct RseqIds {
    spans: Vec<memory::Span>,
    bytes: Vec<u8>,
}

impl RseqIds {
    pub fn read(pid: i32, process: &ProcessState) -> Result<RseqIds> {
        let registered = process.threads.iter().filter_map(|thread| thread.rseq);
        let spans: Vec<_> = registered
            .flat_map(|rseq| RSEQ_IDS.map(|(offset, bytes)| (rseq, offset, bytes)))
            .filter(|(rseq, offset, bytes)| offset + *bytes as u64 <= u64::from(rseq.size))
            .map(|(rseq, offset, bytes)| (rseq.address.wrapping_add(offset), bytes))
            .collect();
        let mut bytes = vec![0; spans.iter().map(|(_, bytes)| bytes).sum()];
        match memory::readv(pid, &spans, &mut bytes)? {
            got if got == bytes.len() => Ok(RseqIds { spans, bytes }),
            _ => Err(Error::Unfit(
                "a thread's restartable sequences lie outside of its memory".into(),
            )),
        }
    }

    pub fn write(&self, pid: i32) -> Result<()> {
        match memory::writev(pid, &self.spans, &self.bytes)? {
            written if written == self.bytes.len() => Ok(()),
            _ => Err(Error::Unfit(
                "a thread's restartable sequences cannot be written".into(),
            )),
        }
    }
}

fn register(calls: &mut Plan, rseq: Rseq, flags: u64) {
    let args = [rseq.address, rseq.size.into(), flags, rseq.signature.into()];
    calls.call("rseq", libc::SYS_rseq, &args);
}

/// Sets what differs from what the stub inherited; the usual thread needs nothing.
fn schedule(tid: i32, wanted: &Scheduling) -> Result<()> {
    let now = task::scheduling(tid)?;
    let attributes = task::SchedulingAttributes {
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime_ns: wanted.runtime_ns,
        deadline_ns: wanted.deadline_ns,
        period_ns: wanted.period_ns,
        ..now
    };
    if attributes != now {
        task::set_scheduling(tid, attributes)?;
    }
    if !wanted.affinity.is_empty() {
        task::set_affinity(tid, &wanted.affinity)?;
    }
    Ok(())
}

/// The very last step: from here on each thread is where the source's was.
pub(super) fn set_registers(tids: &[i32], process: &ProcessState) -> Result<()> {
    for (tid, thread) in tids.iter().zip(&process.threads) {
        ptrace::set_xstate(*tid, &thread.extended_registers)?;
        ptrace::set_regs(*tid, &to_regs(&thread.registers))?;
        ptrace::set_sigmask(*tid, thread.signal_mask)?;
    }
    Ok(())
}
