//! Interval timers and POSIX timers, with their ids.

use whimbrel_kernel::remote::Remote;

use super::{plan, run_if_full, Error, Result};
use crate::calls::Plan;
use crate::capture::process::aged;
use crate::state::{Clocks, PosixTimer, ProcessState};

/// `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15): timer_create takes the id that it is given.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// `struct sigevent`.
const EVENT_BYTES: usize = 64;
/// Without that call ids are counted up; more than this would take too long.
const COUNTED_IDS_MAX: i32 = 100_000;

/// When a timer must fire: flags of timer_settime(2) and nanoseconds. A clock that goes on with the workload keeps its deadline, so
/// that not even the blackout is lost; a relative time has passed by `age_ns`.
pub(super) fn deadline(clock: i32, remaining_ns: u64, read_at: Clocks, age_ns: u64) -> (u64, u64) {
    const ABSOLUTE: u64 = libc::TIMER_ABSTIME as u64;
    match clock {
        _ if remaining_ns == 0 => (0, 0),
        libc::CLOCK_MONOTONIC => (ABSOLUTE, read_at.monotonic_ns.saturating_add(remaining_ns)),
        libc::CLOCK_BOOTTIME => (ABSOLUTE, read_at.boottime_ns.saturating_add(remaining_ns)),
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => (0, remaining_ns),
        _ => (0, aged(remaining_ns, age_ns)),
    }
}

/// `struct itimerspec`.
pub(super) fn specification(interval_ns: u64, value_ns: u64) -> [u64; 4] {
    const NS: u64 = 1_000_000_000;
    [interval_ns / NS, interval_ns % NS, value_ns / NS, value_ns % NS]
}

pub(super) fn build(leader: &mut Remote, process: &ProcessState, read_at: Clocks, age_ns: u64) -> Result<()> {
    create(leader, &process.timers.posix)?;
    let mut calls = plan(leader)?;
    for timer in &process.timers.posix {
        let (flags, value_ns) = deadline(timer.clock, timer.remaining_ns, read_at, age_ns);
        let address = calls.words(&specification(timer.interval_ns, value_ns));
        let what = format!("timer_settime of timer {}", timer.id);
        calls.call(
            &what,
            libc::SYS_timer_settime,
            &[timer.id as u64, flags, address, 0],
        );
        calls = run_if_full(calls, leader)?;
    }
    for (which, (interval_us, value_us)) in (0u64..).zip(process.timers.interval) {
        // only ITIMER_REAL goes on while the process stands still
        let elapsed_us = if which == 0 { age_ns / 1000 } else { 0 };
        let value_us = next_expiry(interval_us, aged(value_us, elapsed_us));
        if value_us > 0 {
            const US: u64 = 1_000_000;
            let setting = [interval_us / US, interval_us % US, value_us / US, value_us % US];
            let address = calls.words(&setting);
            calls.call("setitimer", libc::SYS_setitimer, &[which, address, 0]);
        }
    }
    calls.run(leader)?;
    Ok(())
}

/// A periodic ITIMER_REAL whose signal has not been delivered yet stands still, with an interval and no value; the kernel would
/// start it again at the delivery. Here it goes on at once, and its signal waits among the pending ones.
fn next_expiry(interval_us: u64, value_us: u64) -> u64 {
    if value_us == 0 {
        interval_us
    } else {
        value_us
    }
}

fn create(leader: &mut Remote, timers: &[PosixTimer]) -> Result<()> {
    if timers.is_empty() {
        return Ok(());
    }
    if leader.raw(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0])? != 0 {
        return create_counting(leader, timers);
    }
    let mut calls = plan(leader)?;
    for timer in timers {
        plan_timer(&mut calls, timer);
        calls = run_if_full(calls, leader)?;
    }
    calls.call(
        "prctl PR_TIMER_CREATE_RESTORE_IDS",
        libc::SYS_prctl,
        &[PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0],
    );
    calls.run(leader)?;
    Ok(())
}

/// Plans one timer_create; gives the address of the id, which is asked for and answered there.
fn plan_timer(calls: &mut Plan, timer: &PosixTimer) -> u64 {
    let mut event = Vec::with_capacity(EVENT_BYTES);
    event.extend_from_slice(&timer.value.to_ne_bytes());
    for word in [timer.signal, timer.notify, timer.tid] {
        event.extend_from_slice(&word.to_ne_bytes());
    }
    event.resize(EVENT_BYTES, 0);
    let event = calls.put(&event);
    let id = calls.put(&timer.id.to_ne_bytes());
    let what = format!("timer_create of timer {}", timer.id);
    calls.call(&what, libc::SYS_timer_create, &[timer.clock as u64, event, id]);
    id
}

/// Older kernels give ids in order: timers that nobody wants are deleted again.
fn create_counting(leader: &mut Remote, timers: &[PosixTimer]) -> Result<()> {
    for timer in timers {
        loop {
            let mut calls = plan(leader)?;
            let address = plan_timer(&mut calls, timer);
            let id = calls.run(leader)?.half(address) as i32;
            if id == timer.id {
                break;
            }
            if id > timer.id || id > COUNTED_IDS_MAX {
                return Err(Error::Unfit(format!(
                    "timer {} cannot have its id here, it would be {id}",
                    timer.id
                )));
            }
            leader.call("timer_delete", libc::SYS_timer_delete, &[id as u64])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_on_keeps_its_deadline() {
        let clocks = Clocks {
            monotonic_ns: 1000,
            boottime_ns: 2000,
            realtime_ns: 3000,
        };
        assert_eq!(deadline(libc::CLOCK_MONOTONIC, 50, clocks, 70), (1, 1050));
        assert_eq!(deadline(libc::CLOCK_BOOTTIME, 50, clocks, 70), (1, 2050));
        assert_eq!(deadline(libc::CLOCK_REALTIME, 50, clocks, 20), (0, 30));
        assert_eq!(
            deadline(libc::CLOCK_REALTIME, 50, clocks, 70),
            (0, 1),
            "overdue, not disarmed"
        );
        assert_eq!(deadline(libc::CLOCK_PROCESS_CPUTIME_ID, 50, clocks, 20), (0, 50));
        assert_eq!(deadline(libc::CLOCK_MONOTONIC, 0, clocks, 20), (0, 0), "disarmed");
        assert_eq!(
            specification(1_500_000_000, 2_000_000_007),
            [1, 500_000_000, 2, 7]
        );
    }
}
