//! Post-copy with pre-paging and self-ballooning: the stress test, and the two applications whose degradation is shown.

use super::{Finding, Paper, Told};
use crate::chart::{Across, Chart, Series};
use crate::sweep::outcomes;
use crate::Outcome;

const STRESS: &str = include_str!("../../../../scenarios/papers/postcopy-stress.toml");
const APPLICATIONS: &str = include_str!("../../../../scenarios/papers/postcopy-applications.toml");

/// Of 1024 MB, so many are the program's.
const PROGRAMS_MB: [f64; 6] = [64.0, 128.0, 256.0, 512.0, 768.0, 1024.0];
const PAGES_PER_MB: f64 = 256.0;
/// A compile, to see its degradation beside it.
const COMPILE_S: f64 = 300.0;
/// Bytes per second of Gigabit Ethernet.
const LINK: f64 = 125e6;

pub(super) fn simulate() -> Paper {
    let stress = Stress::new();
    let mut findings = stress.findings();
    findings.extend(applications());
    Paper {
        name: "postcopy",
        citation: "M. R. Hines and K. Gopalan, \"Post-Copy Based Live Virtual Machine Migration Using Pre-Paging and Dynamic \
                   Self-Ballooning\", VEE 2009, the slides",
        assumptions: vec![
            "The stress test's guest has 1024 MB, as the one slide says that names a size; the program has 64 MB to all of it, and the \
             rest is free memory with stale content.",
            "The program writes 500 MB/s, page after page, four times as fast as the link; one vCPU.",
            "Pre-copy ends as Xen's did: after 30 rounds, or with three times the memory sent.",
            "With DSB the balloon has all free memory but 16 MB at the request already: the program has run for long.",
            "To stop, save and start a guest without its memory takes 100 ms.",
            "A fault of the slides' demand paging brings one page; here a reply brings up to 16.",
            "The compile touches 60 MB/s and writes a twentieth of that, NetPerf writes as fast as its network, both in a tenth of 384 MB \
             that moves every 2 s.",
        ],
        findings,
        charts: stress.charts(),
        ..Paper::default()
    }
}

/// The stress test with each size of the program.
struct Stress {
    precopy: Vec<Outcome>,
    precopy_dsb: Vec<Outcome>,
    postcopy: Vec<Outcome>,
    postcopy_dsb: Vec<Outcome>,
    demand: Vec<Outcome>,
    push: Vec<Outcome>,
}

impl Stress {
    fn new() -> Self {
        let free = PROGRAMS_MB.map(|mb| format!("{:?}", 1.0 - mb / 1024.0)).join(",");
        let sizes = format!("memory.free={free}");
        let simulated = |values: &[&str]| outcomes(STRESS, &[&[&*sizes], values].concat());
        let dsb = ["balloon.inflated=1.0", "balloon.reserve=16MiB"];
        let (precopy, postcopy) = ("migration.strategy=precopy", "migration.strategy=postcopy");
        Stress {
            precopy: simulated(&[precopy]),
            precopy_dsb: simulated(&[precopy, dsb[0], dsb[1]]),
            postcopy: simulated(&[postcopy]),
            postcopy_dsb: simulated(&[postcopy, dsb[0], dsb[1]]),
            demand: simulated(&[postcopy, "migration.prepaging=demand"]),
            push: simulated(&[postcopy, "migration.prepaging=push"]),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let change =
            |measure: fn(&Outcome) -> f64| least(ratios(&self.postcopy, &self.precopy, measure)) - 1.0;
        let growth = |outcomes: &[Outcome]| {
            let downtime = |outcome: Option<&Outcome>| outcome.map_or(f64::NAN, |one| one.downtime_s);
            downtime(outcomes.last()) / downtime(outcomes.first())
        };
        let mut findings = vec![
            Finding {
                note: "With 64 MB of 1024 it is a third: free pages are sent once by both, and that takes most of the time.",
                ..finding(
                    "stress test: total time, post-copy against pre-copy, at best",
                    Told::AtMost(-0.5),
                    change(|one| one.total_s),
                )
            },
            finding(
                "stress test: pages, post-copy against pre-copy, at best",
                Told::Value(-0.75),
                change(|one| one.pages_sent as f64),
            ),
            finding(
                "stress test: downtime of post-copy, 1024 MB against 64 MB",
                Told::Shape(0.95, 1.05, "remains low"),
                growth(&self.postcopy),
            ),
            finding(
                "stress test: downtime of pre-copy, 1024 MB against 64 MB",
                Told::Shape(2.0, f64::INFINITY, "continues to increase"),
                growth(&self.precopy),
            ),
        ];
        for (name, with, without) in [
            ("pre-copy", &self.precopy_dsb, &self.precopy),
            ("post-copy", &self.postcopy_dsb, &self.postcopy),
        ] {
            findings.push(finding(
                &format!("stress test: pages with DSB, {name}, the program with 64 MB"),
                Told::Shape(-1.0, -0.3, "DSB high"),
                ratios(with, without, |one| one.pages_sent as f64)[0] - 1.0,
            ));
        }
        findings.extend(self.fault_findings());
        findings
    }

    fn fault_findings(&self) -> Vec<Finding> {
        let prevented = self.prevented();
        vec![
            Finding {
                note: FAULTS,
                ..finding(
                    "stress test: faults that pre-paging prevents, at best",
                    Told::Value(0.8),
                    most(prevented.clone()),
                )
            },
            Finding {
                note: FAULTS,
                ..finding(
                    "stress test: faults that pre-paging prevents, in the worst case",
                    Told::AtLeast(0.5),
                    least(prevented),
                )
            },
            Finding {
                note: FAULTS,
                ..finding(
                    "stress test: faults of pre-paging against demand paging with replies of up to 16 pages",
                    Told::AtMost(0.5),
                    most(ratios(&self.postcopy, &self.demand, |one| {
                        one.network_faults as f64
                    })),
                )
            },
        ]
    }

    /// The part of the faults that demand paging of single pages has, and pre-paging has not, for each size.
    fn prevented(&self) -> Vec<f64> {
        let prevented =
            |(outcome, mb): (&Outcome, f64)| 1.0 - outcome.network_faults as f64 / (mb * PAGES_PER_MB);
        self.postcopy.iter().zip(PROGRAMS_MB).map(prevented).collect()
    }

    fn charts(&self) -> Vec<Chart> {
        let four = |title: &str, left: &str, measure: fn(&Outcome) -> f64| {
            let lines = [
                ("pre-copy", &self.precopy),
                ("pre-copy, DSB", &self.precopy_dsb),
                ("post-copy", &self.postcopy),
                ("post-copy, DSB", &self.postcopy_dsb),
            ];
            chart(
                title,
                left,
                lines.map(|(name, outcomes)| line(name, outcomes, measure)).into(),
            )
        };
        let faults: fn(&Outcome) -> f64 = |one| one.network_faults as f64;
        let single = PROGRAMS_MB.map(|mb| (mb, mb * PAGES_PER_MB));
        vec![
            four("Stress test: total time", "s", |one| one.total_s),
            four("Stress test: downtime", "s", |one| one.downtime_s),
            four("Stress test: pages transferred", "pages", |one| {
                one.pages_sent as f64
            }),
            chart(
                "Stress test: page faults",
                "faults",
                vec![
                    Series::new("single pages", single.into()),
                    line("demand", &self.demand, faults),
                    line("flushing", &self.push, faults),
                    line("pre-paging", &self.postcopy, faults),
                ],
            ),
        ]
    }
}

const FAULTS: &str = "Demand paging of the slides brings single pages: each page of the program is a fault. In whimbrel a reply brings up to 16 \
                      pages to a thread that walks through memory, which alone prevents most of them. The program outruns the link, so each \
                      pushed page that comes wakes it only for the next fault: more faults than by such replies alone, and shorter ones.";

fn finding(what: &str, paper: Told, simulated: f64) -> Finding {
    Finding {
        what: what.into(),
        unit: "",
        paper,
        simulated,
        note: "",
    }
}

fn ratios(ones: &[Outcome], others: &[Outcome], measure: fn(&Outcome) -> f64) -> Vec<f64> {
    let pairs = ones.iter().zip(others);
    pairs.map(|(one, other)| measure(one) / measure(other)).collect()
}

fn least(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

fn most(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::NEG_INFINITY, f64::max)
}

fn line(name: &str, outcomes: &[Outcome], measure: fn(&Outcome) -> f64) -> Series {
    let points = PROGRAMS_MB.into_iter().zip(outcomes.iter().map(measure));
    Series::new(name, points.collect())
}

fn chart(title: &str, left: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.into(),
        left: left.into(),
        bottom: "memory that the program writes, MB".into(),
        across: Across::Numbers(0.0, 1024.0),
        series,
        ..Chart::default()
    }
}

/// The time in which an application did nothing.
fn lost_s(outcome: &Outcome) -> f64 {
    outcome.downtime_s + outcome.slowdown * outcome.total_s
}

/// That, and the time that the migration took on the network which a stream needs for itself.
fn stream_lost_s(outcome: &Outcome) -> f64 {
    lost_s(outcome) + outcome.bytes as f64 / LINK
}

fn applications() -> Vec<Finding> {
    let strategies = "migration.strategy=precopy,postcopy";
    let compile = outcomes(APPLICATIONS, &[strategies]);
    let netperf = outcomes(
        APPLICATIONS,
        &[strategies, "guest.load.0.writes=1.0", "guest.load.0.rate=125MB/s"],
    );
    let post_over_pre =
        |outcomes: &[Outcome], measure: fn(&Outcome) -> f64| ratios(&outcomes[1..], outcomes, measure)[0];
    let degradation = (lost_s(&compile[1]) - lost_s(&compile[0])) / COMPILE_S;
    vec![
        Finding {
            what: "kernel compile: degradation of post-copy less that of pre-copy, as a part of a compile of 300 s".into(),
            unit: "",
            paper: Told::Shape(-0.01, 0.01, "unchanged"),
            simulated: degradation,
            note: "",
        },
        Finding {
            what: "NetPerf: degradation of post-copy against pre-copy".into(),
            unit: "",
            paper: Told::Shape(0.0, 0.95, "better for post-copy"),
            simulated: post_over_pre(&netperf, stream_lost_s),
            note: "Time without progress, and time in which the migration has the stream's network. What DSB costs when it is switched off is \
                   not simulated.",
        },
        Finding {
            what: "kernel compile: downtime of post-copy against pre-copy".into(),
            unit: "",
            paper: Told::Shape(1.05, f64::INFINITY, "pre-copy wins"),
            simulated: post_over_pre(&compile, |one| one.downtime_s),
            note: "There faults were found by pseudo-paging, which has to swap the guest's memory out before it stops. userfaultfd, which \
                   whimbrel uses, needs nothing of the kind, so post-copy is not slower.",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    #[cfg_attr(debug_assertions, ignore = "millions of accesses: with --release")]
    fn what_differs_from_the_slides_is_what_replies_and_faults_do_better() {
        let differ = |paper: &Paper| -> Vec<String> {
            let findings = paper.findings.iter();
            let differ = findings.filter(|one| one.verdict() == Verdict::Disagrees);
            differ.map(|one| one.what.clone()).collect()
        };
        assert_eq!(
            differ(&simulate()),
            [
                "stress test: faults of pre-paging against demand paging with replies of up to 16 pages",
                "kernel compile: downtime of post-copy against pre-copy",
            ]
        );
    }
}
