//! What belongs to a process as a whole: program addresses, signal handlers, timers, credentials, limits.

use std::collections::BTreeMap;

use whimbrel_kernel::proc::{self, Stat, Status};
use whimbrel_kernel::task;

use super::threads::inner_id;
use super::{Error, Result};
use crate::calls::{Answers, Plan};
use crate::state::{
    Attributes, Credentials, Filesystem, MemoryDescriptor, PosixTimer, ProcessState, SignalAction, Timers,
};

const PR_GET_MDWE: u64 = 66;
/// `struct kernel_sigaction` of x86-64: handler, flags, restorer, mask.
const ACTION_BYTES: usize = 32;
/// `struct itimerval`, `struct itimerspec`: interval, then value, two words each.
const INTERVAL_BYTES: usize = 32;
const SIGNALS: u64 = 64;
const SIGEV_THREAD_ID: i32 = 4;

/// The program's addresses, from outside, without `brk`.
pub(crate) fn memory(pid: i32) -> Result<MemoryDescriptor> {
    let stat = Stat::read(pid)?;
    let field = |number| stat.number(number).unwrap_or(0);
    Ok(MemoryDescriptor {
        start_code: field(26),
        end_code: field(27),
        start_stack: field(28),
        start_data: field(45),
        end_data: field(46),
        start_brk: field(47),
        brk: 0,
        arg_start: field(48),
        arg_end: field(49),
        env_start: field(50),
        env_end: field(51),
        auxv: proc::auxiliary_vector(pid)?,
        executable: proc::link(pid, "exe")?,
    })
}

/// From the leader's status and `/proc`.
pub(crate) fn credentials(pid: i32, status: &Status) -> Result<Credentials> {
    let odd = || Error::Odd(format!("/proc/{pid}/status cannot be understood"));
    let four = |key| <[u32; 4]>::try_from(ids(status, key)).map_err(|_| odd());
    let hex = |key| status.hex(key).ok_or_else(odd);
    Ok(Credentials {
        uids: four("Uid")?,
        gids: four("Gid")?,
        groups: ids(status, "Groups"),
        inheritable: hex("CapInh")?,
        permitted: hex("CapPrm")?,
        effective: hex("CapEff")?,
        bounding: hex("CapBnd")?,
        ambient: hex("CapAmb")?,
        securebits: 0,
        no_new_privs: status.number("NoNewPrivs") == Some(1),
    })
}

fn ids(status: &Status, key: &str) -> Vec<u32> {
    status.numbers(key).into_iter().map(|id| id as u32).collect()
}

/// All `RLIMIT_*`, from /proc: prlimit(2) would need CAP_SYS_RESOURCE for a process of another user.
pub(crate) fn resource_limits(pid: i32) -> Result<Vec<(u64, u64)>> {
    let odd = || Error::Odd(format!("/proc/{pid}/limits is not in the form that is known"));
    parse_limits(&proc::text(pid, "limits")?).ok_or_else(odd)
}

/// A heading, then a line for each limit in the order of their numbers: a name of 25 bytes, soft and hard limit, a unit.
fn parse_limits(text: &str) -> Option<Vec<(u64, u64)>> {
    const NAME_BYTES: usize = 25;
    let value = |word: &str| {
        if word == "unlimited" {
            Some(u64::MAX)
        } else {
            word.parse().ok()
        }
    };
    let limit = |line: &str| {
        let mut words = line.get(NAME_BYTES..)?.split_whitespace();
        Some((value(words.next()?)?, value(words.next()?)?))
    };
    let limits: Vec<(u64, u64)> = text.lines().skip(1).map(limit).collect::<Option<_>>()?;
    (limits.len() == task::RESOURCE_LIMITS as usize).then_some(limits)
}

/// Working directory and umask.
pub(crate) fn filesystem(pid: i32, status: &Status) -> Result<Filesystem> {
    let umask = status
        .get("Umask")
        .and_then(|text| u32::from_str_radix(text, 8).ok())
        .unwrap_or(0o022);
    Ok(Filesystem {
        working_directory: proc::link(pid, "cwd")?,
        umask,
    })
}

/// From outside; the rest is asked.
pub(crate) fn attributes(pid: i32, status: &Status) -> Result<Attributes> {
    Ok(Attributes {
        personality: u32::from_str_radix(proc::text(pid, "personality")?.trim(), 16).unwrap_or(0),
        oom_score_adj: proc::text(pid, "oom_score_adj")?.trim().parse().unwrap_or(0),
        thp_disabled: status.number("THP_enabled") == Some(0),
        process_group: inner_id(status, "NSpgid").unwrap_or(0),
        session: inner_id(status, "NSsid").unwrap_or(0),
        ..Attributes::default()
    })
}

/// Questions that only the process itself can answer, by the addresses and indices of the answers.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    brk: usize,
    actions: Vec<(i32, u64)>,
    intervals: Vec<u64>,
    posix: Vec<(PosixTimer, u64)>,
    dumpable: usize,
    subreaper: u64,
    deny_write_execute: usize,
    securebits: usize,
}

/// Plans the questions. `signals` are those with an action that is not the default one, `timers` the
/// POSIX timers as /proc lists them.
pub(crate) fn ask(plan: &mut Plan, signals: u64, timers: Vec<PosixTimer>) -> Asked {
    let mut asked = Asked {
        brk: plan.call("brk", libc::SYS_brk, &[0]),
        ..Asked::default()
    };
    for signal in (1..=SIGNALS).filter(|signal| signals >> (signal - 1) & 1 == 1) {
        let room = plan.room(ACTION_BYTES);
        plan.call("rt_sigaction", libc::SYS_rt_sigaction, &[signal, 0, room, 8]);
        asked.actions.push((signal as i32, room));
    }
    for which in 0..3 {
        let room = plan.room(INTERVAL_BYTES);
        plan.call("getitimer", libc::SYS_getitimer, &[which, room]);
        asked.intervals.push(room);
    }
    for timer in timers {
        let room = plan.room(INTERVAL_BYTES);
        plan.call("timer_gettime", libc::SYS_timer_gettime, &[timer.id as u64, room]);
        asked.posix.push((timer, room));
    }
    ask_attributes(plan, &mut asked);
    asked
}

fn ask_attributes(plan: &mut Plan, asked: &mut Asked) {
    let prctl = libc::SYS_prctl;
    asked.dumpable = plan.call("prctl PR_GET_DUMPABLE", prctl, &[libc::PR_GET_DUMPABLE as u64]);
    asked.subreaper = plan.room(8);
    let args = [libc::PR_GET_CHILD_SUBREAPER as u64, asked.subreaper];
    plan.call("prctl PR_GET_CHILD_SUBREAPER", prctl, &args);
    asked.deny_write_execute = plan.attempt("prctl PR_GET_MDWE", prctl, &[PR_GET_MDWE]);
    asked.securebits = plan.call(
        "prctl PR_GET_SECUREBITS",
        prctl,
        &[libc::PR_GET_SECUREBITS as u64],
    );
}

/// The answers that [`answer`] takes out of the memory of the process.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub brk: u64,
    pub actions: Vec<SignalAction>,
    pub timers: Timers,
    pub dumpable: u32,
    pub child_subreaper: bool,
    pub deny_write_execute: u32,
    pub securebits: u32,
}

/// Takes the answers.
pub(crate) fn answer(asked: Asked, answers: &Answers) -> Told {
    let number = |index| answers.result(index).max(0) as u32;
    let action = |(signal, at): &(i32, u64)| SignalAction {
        signal: *signal,
        handler: answers.word(*at),
        flags: answers.word(at + 8),
        restorer: answers.word(at + 16),
        mask: answers.word(at + 24),
    };
    let us = |at: u64| {
        answers
            .word(at)
            .saturating_mul(1_000_000)
            .saturating_add(answers.word(at + 8))
    };
    let ns = |at: u64| {
        answers
            .word(at)
            .saturating_mul(1_000_000_000)
            .saturating_add(answers.word(at + 8))
    };
    let mut timers = Timers::default();
    for (timer, at) in timers.interval.iter_mut().zip(&asked.intervals) {
        *timer = (us(*at), us(at + 16));
    }
    for (timer, at) in asked.posix {
        timers.posix.push(PosixTimer {
            interval_ns: ns(at),
            remaining_ns: ns(at + 16),
            ..timer
        });
    }
    Told {
        brk: answers.result(asked.brk) as u64,
        actions: asked.actions.iter().map(action).collect(),
        timers,
        dumpable: number(asked.dumpable),
        child_subreaper: answers.half(asked.subreaper) != 0,
        deny_write_execute: number(asked.deny_write_execute),
        securebits: number(asked.securebits),
    }
}

/// The POSIX timers of a process, ascending, without their times and with TIDs as we see them.
pub(crate) fn posix_timers(pid: i32) -> Result<Vec<PosixTimer>> {
    let timer = |timer: proc::Timer| PosixTimer {
        id: timer.id,
        clock: timer.clock,
        signal: timer.signal,
        value: timer.value,
        notify: timer.notify
            | if timer.thread.is_some() {
                SIGEV_THREAD_ID
            } else {
                0
            },
        tid: timer.thread.unwrap_or(0),
        ..PosixTimer::default()
    };
    let mut timers: Vec<PosixTimer> = proc::timers(pid)?.into_iter().map(timer).collect();
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

/// Names the threads as the workload does.
pub(crate) fn localise(process: &mut ProcessState, inner_ids: &BTreeMap<i32, i32>) -> Result<()> {
    let inner = |tid: i32| {
        let missing = || Error::Odd(format!("thread {tid} appeared while its process was stopped"));
        inner_ids.get(&tid).copied().ok_or_else(missing)
    };
    process.pid = inner(process.pid)?;
    for thread in &mut process.threads {
        thread.tid = inner(thread.tid)?;
    }
    for timer in process.timers.posix.iter_mut().filter(|timer| timer.tid != 0) {
        timer.tid = inner(timer.tid)?;
    }
    Ok(())
}

/// Brings timers that were read `elapsed_ns` ago to the present. Clocks that count CPU time stand still in a frozen process.
pub(crate) fn age(timers: &mut Timers, elapsed_ns: u64) {
    const CPU_CLOCKS: [i32; 2] = [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID];
    let [(_, real_us), ..] = &mut timers.interval;
    *real_us = aged(*real_us, elapsed_ns / 1000);
    for timer in timers
        .posix
        .iter_mut()
        .filter(|timer| !CPU_CLOCKS.contains(&timer.clock))
    {
        timer.remaining_ns = aged(timer.remaining_ns, elapsed_ns);
    }
}

/// What is left after `elapsed`: an armed timer stays armed and fires at once when it is overdue.
pub(crate) fn aged(remaining: u64, elapsed: u64) -> u64 {
    if remaining == 0 {
        return 0;
    }
    remaining.saturating_sub(elapsed).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_that_prlimit_gives() {
        let pid = std::process::id() as i32;
        let limits = resource_limits(pid).unwrap();
        for (resource, limit) in (0..).zip(limits) {
            assert_eq!(
                task::resource_limit(pid, resource).unwrap(),
                limit,
                "limit {resource}"
            );
        }
        assert!(parse_limits("Limit\nMax cpu time             unlimited\n").is_none());
    }

    #[test]
    fn timers_age_but_neither_disarm_nor_count_cpu_time() {
        let timer = |clock, remaining_ns| PosixTimer {
            clock,
            remaining_ns,
            ..PosixTimer::default()
        };
        let mut timers = Timers {
            interval: [(0, 500), (0, 500), (0, 0)],
            posix: vec![timer(1, 9000), timer(1, 10), timer(2, 10)],
        };
        age(&mut timers, 7000);
        assert_eq!(timers.interval, [(0, 493), (0, 500), (0, 0)]);
        assert_eq!(timers.posix, [timer(1, 2000), timer(1, 1), timer(2, 10)]);
        assert_eq!(aged(0, 5), 0);
    }
}
