//! ALMA: a JVM as a process, moved in two snapshots after collections where they pay, against CRIU, JAVMM, and ALMA with the Parallel Scavenge collector.

mod programs;
mod resources;

use super::javmm;
use super::run::{mb, mb_per_s, outcome, setting};
use super::{Finding, Paper, Told};
use crate::chart::{Bars, Part};
use crate::report::Setting;
use crate::Outcome;
use programs::{Program, PROGRAMS};

const G1: &str = include_str!("../../../../scenarios/papers/alma-g1.toml");
const PS: &str = include_str!("../../../../scenarios/papers/alma-ps.toml");

/// Of the process, outside of the heap.
const OUTSIDE_MB: f64 = 64.0;
/// The network, and the disk of the share: a byte is on the one and then on the other, at 1 / (1/125 + 1/100) MB/s.
const NFS_MB_PER_S: f64 = 1.0 / (1.0 / 125.0 + 1.0 / 100.0);
/// Throughput is sampled so often.
const SAMPLE_S: f64 = 5.0;

const ASSUMPTIONS: [&str; 12] = [
    "The heap is as large as table 1 says it is used before a collection, and a tenth more (G1's reserve); 64 MB of the process lie outside of it, where 1 MB/s are written.",
    "What lives stays as large as it is (section 5.1), so the live part is written at AR - GR, all over it. Garbage is allocated at GR, in the part of the heap that a collection frees: the dead bytes, or the young ones if those are more.",
    "Of that part, young - dead bytes live through a collection if more are young than dead; at least 1 %.",
    "cost(r) is not in table 1. Table 3's migration-aware collection is the cost of collecting that part once; it is spread evenly over the live bytes that it copies.",
    "A snapshot waits up to 1 s for a collection by the application, and forces one then; the paper leaves the time to the user.",
    "Pages that were written again before they left wait for the last snapshot.",
    "CRIU makes two snapshots, too, of all pages of the same heap. NFS writes to a disk of 100 MB/s before it answers: 55.6 MB/s in all. Restoring reads them from memory.",
    "ALMA-PS: what table 1 does not count as young is in the old generation, garbage included, and stays there.",
    "JAVMM's numbers are those of this program's simulation of JAVMM, with its assumptions.",
    "To look through the pages of a process takes 1 us for each that it has, used or not; freezing, saving what is not memory, and building it anew take 160 ms.",
    "Averages are those of the 15 programs (3 for JAVMM, against ALMA's of the same 3), divided by each other.",
    "Throughput is that of the samples of 5 s in which the migration falls.",
];

/// A program moved in the three ways that move a process.
#[derive(Debug)]
struct Row {
    program: &'static Program,
    criu: Outcome,
    ps: Outcome,
    alma: Outcome,
}

impl Row {
    fn of(program: &'static Program) -> Self {
        Row {
            program,
            criu: outcome(G1, &format!("{}, CRIU", program.name), &criu(program)),
            ps: outcome(PS, &format!("{}, ALMA-PS", program.name), &ps(program)),
            alma: outcome(G1, &format!("{}, ALMA", program.name), &g1(program)),
        }
    }
}

/// The program in the heap of G1.
fn g1(program: &Program) -> Vec<Setting> {
    let heap_mb = program.heap_mb();
    let old_mb = program.used_mb - program.fresh_mb();
    vec![
        setting("memory.size", mb(heap_mb + OUTSIDE_MB)),
        setting("guest.load.0.rate", mb_per_s(program.garbage_mb_per_s)),
        setting("guest.load.0.young", mb(program.fresh_mb())),
        setting("guest.load.0.size", mb(heap_mb)),
        setting(
            "guest.load.0.old-used",
            old_mb / (heap_mb - program.fresh_mb()),
        ),
        setting("guest.load.0.survival", program.survival()),
        setting("guest.load.0.old-writes", mb_per_s(program.live_mb_per_s())),
        setting("guest.load.0.collection-rate", mb_per_s(program.copied_mb_per_s())),
    ]
}

/// All memory, over a disk.
fn criu(program: &Program) -> Vec<Setting> {
    let mut settings = g1(program);
    settings.push(setting("migration.collect", false));
    settings.push(setting("link.rate", mb_per_s(NFS_MB_PER_S)));
    settings
}

/// The program in 1 GB of young and 1 GB of old generation.
fn ps(program: &Program) -> Vec<Setting> {
    const GENERATION_MB: f64 = 1073.741824;
    let old_mb = program.used_mb - program.young_mb();
    vec![
        setting("guest.load.0.rate", mb_per_s(program.garbage_mb_per_s)),
        setting("guest.load.0.old-used", old_mb / GENERATION_MB),
        setting(
            "guest.load.0.survival",
            program.survival() * program.fresh_mb() / GENERATION_MB,
        ),
        setting("guest.load.0.old-writes", mb_per_s(program.live_mb_per_s())),
        setting("guest.load.0.collection-rate", mb_per_s(program.copied_mb_per_s())),
    ]
}

pub(super) fn simulate() -> Paper {
    let rows: Vec<Row> = PROGRAMS.iter().map(Row::of).collect();
    let mut findings = averages(&rows);
    findings.extend(of_programs(&rows));
    let (chart, laws) = resources::simulate();
    findings.extend(laws);
    Paper {
        name: "alma",
        citation: "R. Bruno, P. Ferreira: ALMA – GC-assisted JVM Live Migration for Java Server Applications. Middleware 2016",
        assumptions: ASSUMPTIONS.to_vec(),
        findings,
        charts: chart,
        bars: bars(&rows),
    }
}

type Measure = fn(&Outcome) -> f64;

fn downtime_s(outcome: &Outcome) -> f64 {
    outcome.downtime_s
}

fn traffic(outcome: &Outcome) -> f64 {
    outcome.bytes as f64
}

fn total_s(outcome: &Outcome) -> f64 {
    outcome.total_s
}

/// What it gets done, as a share of what it would, in the samples in which the migration falls.
fn throughput(outcome: &Outcome) -> f64 {
    let lost_s = outcome.downtime_s + outcome.slowdown * outcome.total_s;
    let window_s = (outcome.total_s / SAMPLE_S).ceil().max(1.0) * SAMPLE_S;
    (1.0 - lost_s / window_s).max(0.0)
}

fn sum(outcomes: impl Iterator<Item = f64>) -> f64 {
    outcomes.sum()
}

/// Table 2.
fn averages(rows: &[Row]) -> Vec<Finding> {
    let pairs: Vec<(javmm::Pair, &Row)> = rows
        .iter()
        .filter_map(|row| Some((javmm::pair(row.program.name)?, row)))
        .filter(|(pair, _)| pair.program != "xml")
        .collect();
    let of = |measure: Measure, javmm_measure: Measure, name: &str, paper: [f64; 3], notes: [&'static str; 3]| {
        let alma = sum(rows.iter().map(|row| measure(&row.alma)));
        let of_pairs = sum(pairs.iter().map(|(_, row)| measure(&row.alma)));
        let simulated = [
            sum(rows.iter().map(|row| measure(&row.criu))) / alma,
            sum(pairs.iter().map(|(pair, _)| javmm_measure(&pair.javmm))) / of_pairs,
            sum(rows.iter().map(|row| measure(&row.ps))) / alma,
        ];
        let systems = ["CRIU", "JAVMM", "ALMA-PS"];
        (0..3).map(move |at| Finding {
            what: format!("table 2: {name}, {} against ALMA", systems[at]),
            unit: "",
            paper: Told::Value(paper[at]),
            simulated: simulated[at],
            note: notes[at],
        })
        .collect::<Vec<_>>()
    };
    let mut all = of(downtime_s, javmm::standstill_s, "downtime", [3.58, 1.13, 1.68], [""; 3]);
    all.extend(of(traffic, traffic, "traffic", [2.86, 4.42, 1.41], [""; 3]));
    all.extend(of(total_s, total_s, "total time", [2.57, 5.69, 1.06], [""; 3]));
    let no_javmm = of(throughput, throughput, "throughput", [0.61, f64::NAN, 0.89], [""; 3]);
    all.extend(no_javmm.into_iter().filter(|one| matches!(one.paper, Told::Value(value) if !value.is_nan())));
    all
}

/// What the text says of single programs.
fn of_programs(rows: &[Row]) -> Vec<Finding> {
    let count = |is: fn(&Row) -> bool| rows.iter().filter(|row| is(row)).count() as f64;
    let mut by_downtime: Vec<&Row> = rows.iter().collect();
    by_downtime.sort_by(|one, other| other.alma.downtime_s.total_cmp(&one.alma.downtime_s));
    let costly = by_downtime.iter().take(3).map(|row| row.program.name);
    let named = costly.filter(|name| ["h2", "scimark", "derby"].contains(name)).count();
    let mpegaudio = rows.iter().find(|row| row.program.name == "mpegaudio");
    let mpegaudio = mpegaudio.map_or(0.0, |row| row.ps.downtime_s / row.criu.downtime_s);
    let one = |what: &str, unit, paper, simulated, note| Finding {
        what: what.to_owned(),
        unit,
        paper,
        simulated,
        note,
    };
    vec![
        one("programs with less traffic under ALMA than ALMA-PS, of 15", "", Told::Value(10.0), count(|row| row.alma.bytes < row.ps.bytes), ""),
        one("programs with more throughput under ALMA than ALMA-PS, of 15", "", Told::Value(14.0), count(|row| throughput(&row.alma) > throughput(&row.ps)), ""),
        one("of h2, scimark and derby, among the three longest downtimes under ALMA", "", Told::Value(3.0), named as f64, ""),
        one("mpegaudio: downtime, ALMA-PS against CRIU", "", Told::Shape(1.0, f64::INFINITY, "more"), mpegaudio, ""),
    ]
}

fn bars(rows: &[Row]) -> Vec<Bars> {
    let one = |title: &str, unit: &str, of: Measure| {
        let all = rows.iter().flat_map(|row| [&row.criu, &row.ps, &row.alma]);
        let values: Vec<f64> = all.clone().map(of).collect();
        Bars {
            title: title.to_owned(),
            bottom: unit.to_owned(),
            names: all.map(|outcome| outcome.scenario.clone()).collect(),
            sums: values.iter().map(|value| format!("{value:.2} {unit}")).collect(),
            parts: vec![Part { name: title.to_lowercase(), values }],
        }
    };
    vec![
        one("Downtime", "s", downtime_s),
        one("Traffic", "MB", |outcome| traffic(outcome) / 1e6),
        one("Total time", "s", total_s),
        one("Throughput", "of what it is without a migration", throughput),
    ]
}
