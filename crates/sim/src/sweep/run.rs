//! Many simulations on all cores.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::report::Case;
use crate::{simulate, Outcome, Scenario};

use super::{Plan, Sweep, SweepError, CASES_MAX};

/// Threads at most.
const THREADS_MAX: usize = 256;

/// Samples of all outcomes together, at most; also pauses, and lines of a log. Each outcome has an equal share.
const ENTRIES_MAX: usize = 5_000_000;

/// The number of simulations.
pub fn count(plans: &[Plan]) -> usize {
    plans.iter().map(Plan::len).fold(0, usize::saturating_add)
}

/// Simulates every combination of every plan, in their order, on this many threads: the result does not depend on it. All are read before
/// the first is simulated. `is_done` is told of each one that has ended, in whatever order. Of very many outcomes only a part of the series and the
/// pauses is kept, and their notes say so.
///
/// # Errors
/// The first combination that is no scenario, or too many of them.
pub fn run(
    plans: &[Plan],
    threads: NonZeroUsize,
    is_done: &(dyn Fn() + Sync),
) -> Result<Vec<Case>, SweepError> {
    run_by(plans, threads, is_done, simulate)
}

/// The outcomes of a scenario that is part of the program, with each combination of these sweeps, in order.
///
/// # Panics
/// If they are wrong: then the program is.
pub(crate) fn outcomes(text: &str, sweeps: &[&str]) -> Vec<Outcome> {
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let sweeps: Result<Vec<Sweep>, _> = sweeps.iter().map(|sweep| sweep.parse()).collect();
    let plan = sweeps.and_then(|sweeps| Plan::new(text, "a scenario of the program", &sweeps, None));
    let cases = plan.and_then(|plan| run(&[plan], threads, &|| ()));
    let cases = cases.unwrap_or_else(|error| panic!("{error}"));
    cases.into_iter().map(|case| case.outcome).collect()
}

fn run_by(
    plans: &[Plan],
    threads: NonZeroUsize,
    is_done: &(dyn Fn() + Sync),
    simulate: impl Fn(&Scenario) -> Outcome + Sync,
) -> Result<Vec<Case>, SweepError> {
    let count = count(plans);
    if count > CASES_MAX {
        return Err(SweepError::TooMany);
    }
    plans.iter().try_for_each(Plan::check)?;
    let numbers = |plan: &'_ Plan| 0..plan.len();
    let works = plans
        .iter()
        .flat_map(|plan| numbers(plan).map(move |number| (plan, number)));
    let works: Vec<(&Plan, usize)> = works.collect();
    let one = |(plan, number): &(&Plan, usize)| {
        let swept = plan.settings(*number);
        let outcome = bounded(simulate(&plan.scenario(&swept)?), ENTRIES_MAX / count);
        is_done();
        Ok(Case { swept, outcome })
    };
    in_parallel(&works, threads, one).into_iter().collect()
}

/// Keeps every so manieth sample, the longest pauses, and the begin of the log.
fn bounded(mut outcome: Outcome, entries_max: usize) -> Outcome {
    let step = outcome.series.len().div_ceil(entries_max.max(1));
    if step > 1 {
        let mut number = 0;
        outcome.series.retain(|_| {
            number += 1;
            number % step == 0
        });
        outcome.notes.push(format!("one of {step} samples is kept"));
    }
    if outcome.pauses.len() > entries_max {
        outcome
            .pauses
            .sort_by(|one, other| other.duration_s.total_cmp(&one.duration_s));
        outcome.pauses.truncate(entries_max);
        outcome
            .pauses
            .sort_by(|one, other| one.begun_s.total_cmp(&other.begun_s));
        outcome
            .notes
            .push(format!("the {entries_max} longest pauses are kept"));
    }
    if outcome.log.len() > entries_max {
        outcome.log.truncate(entries_max);
        outcome
            .notes
            .push(format!("the first {entries_max} lines of the log are kept"));
    }
    outcome
}

/// Does the work on each item. The results are in the order of the items, whoever was faster.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut results = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return results;
            };
            results.push((index, work(item)));
        }
    };
    let threads = threads.get().min(THREADS_MAX).min(items.len());
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Sweep;
    use crate::{Pause, Sample};

    const SCENARIO: &str = "[memory]\nsize = \"1MiB\"\n[link]\nrate = \"1Gbit/s\"\n";

    fn plan(sweep: &str) -> Plan {
        let sweeps: Vec<Sweep> = vec![sweep.parse().unwrap()];
        Plan::new(SCENARIO, "a.toml", &sweeps, None).unwrap()
    }

    fn threads(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    #[test]
    fn threads_change_nothing() {
        let plans = [plan("seed=1,2,3,4,5,6,7"), plan("link.latency=1ms,2ms")];
        let done = AtomicUsize::new(0);
        let is_done = || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        let serial = run(&plans, threads(1), &is_done).unwrap();
        let parallel = run(&plans, threads(4), &is_done).unwrap();
        assert_eq!(serial, parallel);
        assert_eq!((serial.len(), done.into_inner()), (9, 18));
        assert_eq!(serial[8].swept[0].words(), "2ms");
    }

    #[test]
    fn results_are_in_order_whoever_is_faster() {
        let items: Vec<u64> = (0..1000).collect();
        // The first items take longest.
        let work = |item: &u64| (0..(1000 - item) * 50).fold(*item, |sum, n| sum ^ (n ^ n));
        assert_eq!(in_parallel(&items, threads(3), work), items);
        assert!(in_parallel(&items[..0], threads(3), work).is_empty());
    }

    #[test]
    fn nothing_is_simulated_if_one_is_wrong() {
        let never = |_: &Scenario| unreachable!("simulated");
        let plans = [plan("link.latency=1ms,never")];
        assert!(matches!(
            run_by(&plans, threads(2), &|| (), never),
            Err(SweepError::Values { .. })
        ));
    }

    #[test]
    fn very_many_outcomes_keep_less_and_say_so() {
        let pause = |n: u32| Pause {
            begun_s: f64::from(n),
            duration_s: if n % 10 == 0 { 2.0 } else { 1.0 },
            ..Pause::default()
        };
        let outcome = Outcome {
            series: vec![Sample::default(); 95],
            pauses: (0..100).map(pause).collect(),
            log: vec![String::new(); 10],
            ..Outcome::default()
        };
        assert_eq!(bounded(outcome.clone(), 100), outcome);
        let kept = bounded(outcome, 10);
        assert_eq!(
            (kept.series.len(), kept.pauses.len(), kept.log.len()),
            (9, 10, 10)
        );
        assert!(kept.pauses.iter().all(|pause| pause.duration_s == 2.0));
        assert_eq!(kept.notes.len(), 2);
    }
}
