//! Lazy-copy against post-copy: the paper's small preset over many seeds, and a larger program.

use super::{Finding, Paper, Told};
use crate::chart::{Across, Chart, Series};
use crate::manager::{Record, Reply, Session};
use crate::sweep::outcomes;
use crate::Outcome;

const MEMORY: &str = include_str!("../../../../scenarios/papers/lazycopy-memory.toml");

/// Each is another queue of 100 references.
const SEEDS: u64 = 200;
/// Bytes per second of the larger scenario's link.
const LINK: f64 = 125e6;

pub(super) fn simulate() -> Paper {
    let (post, lazy) = (records("postcopy"), records("lazycopy"));
    let mut findings = preset(&post, &lazy);
    findings.extend(memory());
    Paper {
        name: "lazycopy",
        citation: "X. Sun, B. Lv and S. Tao, \"A simulation of live virtual machine migration\", COEN283, 2014; the method is guide-copy (J. \
                   Kim, D. Chae, J. Kim and J. Kim, SC 2013)",
        assumptions: vec![
            "A reference each second, and a link that carries a page in 4 s, 0.1 s each way: the paper says only that a page from disk takes \
             11 s, and so some references fall into a migration.",
            "The VM has run for 150 references before it is migrated; the forward context is 8 references ahead at most.",
            "200 seeds stand for the paper's one run, of which it prints no numbers.",
            "The larger program touches 40 MB/s of 256 MB, any page, over Gigabit Ethernet. The silent background has a fifth of that.",
        ],
        findings,
        charts: vec![distribution("Preset: network faults", "faults", &post, &lazy, |one| one.network_faults as f64),
            distribution("Preset: total time", "s", &post, &lazy, total_s)],
        ..Paper::default()
    }
}

/// The preset with each seed.
fn records(policy: &str) -> Vec<Record> {
    (0..SEEDS).filter_map(|seed| record(policy, seed)).collect()
}

fn record(policy: &str, seed: u64) -> Option<Record> {
    let mut session = Session::default();
    let lines = [
        "create server a",
        "create server b",
        &format!("create vm v on a preset seed seed {seed}"),
        "start v",
        "run 150s",
        &format!("set policy {policy}"),
        "migrate v to b",
        "run until done",
    ];
    let are_done = lines
        .iter()
        .all(|line| matches!(session.line(line), Reply::Done(_)));
    session.records().first().filter(|_| are_done).cloned()
}

fn total_s(record: &Record) -> f64 {
    record.total().map_or(f64::NAN, |total| total.as_secs_f64())
}

fn sorted(records: &[Record], measure: fn(&Record) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = records.iter().map(measure).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(records: &[Record], measure: fn(&Record) -> f64) -> f64 {
    let values = sorted(records, measure);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn preset(post: &[Record], lazy: &[Record]) -> Vec<Finding> {
    let faults: fn(&Record) -> f64 = |one| one.network_faults as f64;
    let sum = |records: &[Record], measure: fn(&Record) -> f64| records.iter().map(measure).sum::<f64>();
    let fewer = Told::Shape(0.0, 0.99, "a decrease");
    let finding = |what: &str, simulated| Finding {
        what: what.into(),
        unit: "",
        paper: fewer,
        simulated,
        note: "",
    };
    vec![
        finding(
            "preset: network faults, lazy-copy against post-copy, medians",
            median(lazy, faults) / median(post, faults),
        ),
        finding(
            "preset: network faults, lazy-copy against post-copy, sums",
            sum(lazy, faults) / sum(post, faults),
        ),
        Finding {
            note: TOTAL,
            ..finding(
                "preset: total time, lazy-copy against post-copy, medians",
                median(lazy, total_s) / median(post, total_s),
            )
        },
        Finding {
            note: TOTAL,
            ..finding(
                "preset: total time, lazy-copy against post-copy, sums",
                sum(lazy, total_s) / sum(post, total_s),
            )
        },
    ]
}

const TOTAL: &str =
    "Little: both send without a pause, but for what the following context replaces before it comes.";

fn memory() -> Vec<Finding> {
    let push = outcomes(
        MEMORY,
        &["migration.strategy=postcopy", "migration.prepaging=push"],
    );
    let guide = outcomes(MEMORY, &[]);
    let silent = outcomes(MEMORY, &["migration.bandwidth=25MB/s"]);
    let (push, guide, silent) = (&push[0], &guide[0], &silent[0]);
    let used = |outcome: &Outcome| outcome.bytes as f64 / outcome.total_s / LINK;
    let faults = |outcome: &Outcome| outcome.network_faults as f64;
    let finding = |what: &str, paper, simulated| Finding {
        what: what.into(),
        unit: "",
        paper,
        simulated,
        note: "",
    };
    vec![
        finding("memory-intensive: network faults, lazy-copy against post-copy", Told::Shape(0.0, 0.99, "a decrease"), faults(guide) / faults(push)),
        finding("memory-intensive: total time, lazy-copy against post-copy", Told::Shape(0.0, 0.99, "a decrease"), guide.total_s / push.total_s),
        finding("silent background: network faults, lazy-copy against post-copy at full rate", Told::Shape(0.0, 0.99, "a decrease"), faults(silent) / faults(push)),
        finding("silent background: part of the link that is used, lazy-copy against post-copy", Told::Shape(0.0, 0.5, "less interference"), used(silent) / used(push)),
        Finding {
            note: "Silent and fast at once are only the pages that are touched. All of the memory takes as long as the background's rate says.",
            ..finding("silent background: total time, lazy-copy against post-copy", Told::Shape(0.0, 0.99, "a decrease"), silent.total_s / push.total_s)
        },
    ]
}

/// Values of all seeds, from the least on.
fn distribution(
    title: &str,
    left: &str,
    post: &[Record],
    lazy: &[Record],
    measure: fn(&Record) -> f64,
) -> Chart {
    let line = |name: &str, records: &[Record]| {
        let values = sorted(records, measure).into_iter().enumerate();
        Series::new(name, values.map(|(at, value)| (at as f64, value)).collect())
    };
    Chart {
        title: title.into(),
        left: left.into(),
        bottom: "seeds, the least first".into(),
        across: Across::Numbers(0.0, SEEDS as f64),
        series: vec![line("post-copy", post), line("lazy-copy", lazy)],
        ..Chart::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    #[cfg_attr(debug_assertions, ignore = "some hundred migrations: with --release")]
    fn lazy_copy_has_fewer_faults_and_is_silent_or_fast() {
        let findings = simulate().findings;
        let differ = findings.iter().filter(|one| one.verdict() == Verdict::Disagrees);
        let differ: Vec<_> = differ.map(|one| one.what.as_str()).collect();
        assert_eq!(
            differ,
            ["silent background: total time, lazy-copy against post-copy"]
        );
    }
}
