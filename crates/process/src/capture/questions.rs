//! System calls inside the frozen process: what only it can tell about itself. All threads answer at the same time.

use std::cell::RefCell;

use whimbrel_kernel::maps::Vma;
use whimbrel_kernel::ptrace::{self, Stopped};
use whimbrel_kernel::remote::{find_gadget, Remote, BATCH_CALLS_MAX};

use super::process::{self, Told};
use super::threads;
use super::{monotonic_ns, Error, Result};
use crate::calls::{Answers, Plan, Scratch};
use crate::state::{PosixTimer, ThreadState};

/// What one thread has answered.
#[derive(Debug)]
pub(crate) struct ThreadAnswer {
    asked: threads::Asked,
    answers: Answers,
}

impl ThreadAnswer {
    /// Completes the state of the thread.
    pub(crate) fn complete(&self, mut state: ThreadState) -> ThreadState {
        threads::answer(self.asked, &self.answers, &mut state);
        state
    }
}

/// What all have answered, in the order of the threads.
#[derive(Debug)]
pub(crate) struct Answered {
    pub process: Told,
    /// Our CLOCK_MONOTONIC when the timers were read.
    pub read_at_ns: u64,
    pub threads: Vec<ThreadAnswer>,
}

/// Asks. `signals` are those with an action that is not the default one. Afterwards every thread has its own
/// registers again and rests in a stop that ends without a trace when its tracer dies.
pub(crate) fn ask_all(
    stopped: &Stopped,
    mappings: &[Vma],
    signals: u64,
    timers: Vec<PosixTimer>,
) -> Result<Answered> {
    let pid = stopped.pid();
    let gadget = find_gadget(pid, mappings)?;
    // taken over one by one: when one of them fails, those before it must be put back
    let remotes = RefCell::new(Vec::with_capacity(stopped.tids().len()));
    let taken = stopped.tids().iter().try_for_each(|tid| -> Result<()> {
        remotes.borrow_mut().push(Remote::new(pid, *tid, gadget)?);
        Ok(())
    });
    let mut remotes = remotes.into_inner();
    let answered = taken.and_then(|()| {
        if let Some(leader) = remotes.first_mut() {
            leader.secure(mappings)?;
        }
        with_scratch(&mut remotes, signals, timers)
    });
    let restored = remotes.iter().try_for_each(|remote| remote.restore());
    let parked = ptrace::park(stopped.tids());
    let answered = answered?;
    restored?;
    parked?;
    Ok(answered)
}

/// Gives the process a scratch area for the time of the questions.
fn with_scratch(remotes: &mut [Remote], signals: u64, timers: Vec<PosixTimer>) -> Result<Answered> {
    let missing = || Error::Odd("a process without threads cannot be asked".into());
    let (leader, others) = remotes.split_first_mut().ok_or_else(missing)?;
    let area = leader.install(None)?;
    others.iter_mut().for_each(|other| other.share_scratch(area));
    let answered = run(leader, others, signals, timers);
    // before the area goes: a thread that stands in it and is left alone would go on in memory that is not there
    let restored = others.iter().try_for_each(|other| other.restore());
    leader.uninstall()?;
    restored?;
    answered
}

fn run(
    leader: &mut Remote,
    others: &mut [Remote],
    signals: u64,
    timers: Vec<PosixTimer>,
) -> Result<Answered> {
    let scratch = Scratch::of(leader)?;
    let count = others.len() + 2;
    let mut started = Vec::with_capacity(others.len());
    let mut failed = None;
    for (index, other) in others.iter_mut().enumerate() {
        let mut plan = Plan::new(scratch.piece(index, count));
        let asked = threads::ask(&mut plan);
        let slot = started.len() * plan.len();
        if slot + plan.len() > BATCH_CALLS_MAX / 2 {
            failed = Some(Error::Odd(format!(
                "more threads than we can ask at once ({})",
                others.len()
            )));
            break;
        }
        match plan.start(other, slot) {
            Ok(()) => started.push((plan, asked, slot)),
            Err(error) => {
                failed = Some(error.into());
                break;
            }
        }
    }
    let own = ask_leader(leader, scratch, count, signals, timers);
    // whoever was started must be waited for, whatever else has failed
    let mut threads = Vec::with_capacity(count);
    for (other, (plan, asked, slot)) in others.iter_mut().zip(started) {
        match plan.finish(other, slot) {
            Ok(answers) => threads.push(ThreadAnswer { asked, answers }),
            Err(error) => failed = failed.or(Some(error.into())),
        }
    }
    let (process, read_at_ns, first) = own?;
    threads.insert(0, first);
    match failed {
        Some(error) => Err(error),
        None => Ok(Answered {
            process,
            read_at_ns,
            threads,
        }),
    }
}

/// The leader's own questions, then those about the process, in the upper half of the table.
fn ask_leader(
    leader: &mut Remote,
    scratch: Scratch,
    count: usize,
    signals: u64,
    timers: Vec<PosixTimer>,
) -> Result<(Told, u64, ThreadAnswer)> {
    let slot = BATCH_CALLS_MAX / 2;
    let ask = |leader: &mut Remote, mut plan: Plan| -> Result<Answers> {
        plan.start(leader, slot)?;
        Ok(plan.finish(leader, slot)?)
    };
    let mut plan = Plan::new(scratch.piece(count - 2, count));
    let asked = threads::ask(&mut plan);
    let answers = ask(leader, plan)?;
    let first = ThreadAnswer { asked, answers };
    let mut plan = Plan::new(scratch.piece(count - 1, count));
    let asked = process::ask(&mut plan, signals, timers);
    let answers = ask(leader, plan)?;
    let read_at_ns = monotonic_ns()?;
    Ok((process::answer(asked, &answers), read_at_ns, first))
}
