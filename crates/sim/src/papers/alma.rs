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
const SAMPLED: &str = "it depends on the assumed samples of 5 s.";

const ASSUMPTIONS: [&str; 13] = [
    "The heap is as large as table 1 says it is used before a collection, and a tenth more (G1's reserve); 64 MB of the process lie outside of it, where 1 MB/s are written.",
    "What lives stays as large as it is (section 5.1), so the live part is written at AR - GR, all over it. Garbage is allocated at GR, in the part of the heap that a collection frees: the dead bytes, or the young ones if those are more.",
    "Of that part, young - dead bytes live through a collection if more are young than dead; at least 1 %.",
    "cost(r) is not in table 1. Table 3's migration-aware collection is the cost of collecting that part once; it is spread evenly over the live bytes that it copies.",
    "ALMA waits up to 1 s for a collection by the application before each snapshot, and forces one then; the paper leaves the time to the user. ALMA-PS forces one at once.",
    "A snapshot is a copy that is made at once: what is written again before it has left is sent, and again with the last one.",
    "CRIU makes two snapshots, too, of all pages of the same heap. NFS writes to a disk of 100 MB/s before it answers: 55.6 MB/s in all. Restoring reads them from memory.",
    "ALMA-PS: what table 1 does not count as young is in the old generation, garbage included, and stays there.",
    "JAVMM's numbers are those of this program's simulation of JAVMM, with its assumptions.",
    "To look through the pages of a process takes 1 us for each that it has, used or not; freezing, saving what is not memory, and building it anew take 160 ms.",
    "Averages are those of the 15 programs (3 for JAVMM, against ALMA's of the same 3), divided by each other.",
    "Throughput is that of the samples of 5 s in which the migration falls: of its total time and, on average, 5 s more.",
    "Figure 9: what (8) gives is drawn beside what is simulated, and not counted, as it is the paper's own equation. The downtime that is simulated is the time for the pages of the last snapshot, without the rest of it, which stays the same; the snapshots wait for no collection by the application.",
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
        setting("guest.load.0.old-used", old_mb / (heap_mb - program.fresh_mb())),
        setting("guest.load.0.survival", program.survival()),
        setting("guest.load.0.old-writes", mb_per_s(program.live_mb_per_s())),
        setting(
            "guest.load.0.collection-rate",
            mb_per_s(program.copied_mb_per_s()),
        ),
    ]
}

/// All memory, over a disk.
fn criu(program: &Program) -> Vec<Setting> {
    let mut settings = g1(program);
    settings.push(setting("migration.collect", false));
    settings.push(setting("migration.rounds", 1));
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
        setting(
            "guest.load.0.collection-rate",
            mb_per_s(program.copied_mb_per_s()),
        ),
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
    (1.0 - lost_s / (outcome.total_s + SAMPLE_S)).max(0.0)
}

/// A line of table 2: what it measures, of a process and of JAVMM's VM, and what CRIU, JAVMM and ALMA-PS have against ALMA; then why
/// the simulation differs.
struct Metric {
    name: &'static str,
    of: Measure,
    of_vm: Measure,
    paper: [Option<f64>; 3],
    notes: [&'static str; 3],
}

const TABLE_2: [Metric; 4] = [
    Metric {
        name: "downtime",
        of: downtime_s,
        of_vm: javmm::standstill_s,
        paper: [Some(3.58), Some(1.13), Some(1.68)],
        notes: [
            "",
            "the simulated JAVMM stands still for too short a time (see there). Besides, the two papers differ about the same program: over 97 % of derby's young generation is garbage for JAVMM, 37 % of its heap in table 1, and ALMA's average here is mostly derby, whose live data changes as fast as table 1 says.",
            "",
        ],
    },
    Metric {
        name: "traffic",
        of: traffic,
        of_vm: traffic,
        paper: [Some(2.86), Some(4.42), Some(1.41)],
        notes: [
            "how large the heap is that CRIU sends is not in the paper; the assumed one is only a tenth larger than what is used of it.",
            "",
            "",
        ],
    },
    Metric {
        name: "total time",
        of: total_s,
        of_vm: total_s,
        paper: [Some(2.57), Some(5.69), Some(1.06)],
        notes: [
            "",
            "up to 2 s of ALMA's total time are its two waits for a collection by the application, which the paper leaves to the user.",
            "the pages are looked through three times, once more than ALMA needs, and a young generation of 1 GB makes that slow.",
        ],
    },
    Metric {
        name: "throughput",
        of: throughput,
        of_vm: throughput,
        paper: [Some(0.61), None, Some(0.89)],
        notes: [
            "it depends on the assumed samples of 5 s. Only the downtime and collections are lost in the simulation, and the paper does not say over which time it takes the average.",
            "",
            SAMPLED,
        ],
    },
];

const SYSTEMS: [&str; 3] = ["CRIU", "JAVMM", "ALMA-PS"];
/// JAVMM's numbers are there for these.
const UNDER_JAVMM: [&str; 3] = ["scimark", "derby", "crypto"];

/// Table 2.
fn averages(rows: &[Row]) -> Vec<Finding> {
    let is_under_javmm = |row: &&Row| UNDER_JAVMM.contains(&row.program.name);
    let few: Vec<&Row> = rows.iter().filter(is_under_javmm).collect();
    let vms: Vec<Outcome> = few
        .iter()
        .filter_map(|row| javmm::assisted(row.program.name))
        .collect();
    let of = |metric: &Metric| {
        let of = metric.of;
        let alma: f64 = rows.iter().map(|row| of(&row.alma)).sum();
        let alma_of_few: f64 = few.iter().map(|row| of(&row.alma)).sum();
        [
            rows.iter().map(|row| of(&row.criu)).sum::<f64>() / alma,
            vms.iter().map(metric.of_vm).sum::<f64>() / alma_of_few,
            rows.iter().map(|row| of(&row.ps)).sum::<f64>() / alma,
        ]
    };
    let line = |metric: &Metric| {
        let simulated = of(metric);
        let finding = |at: usize| {
            Some(Finding {
                what: format!("table 2: {}, {} against ALMA", metric.name, SYSTEMS[at]),
                unit: "",
                paper: Told::Value(metric.paper[at]?),
                simulated: simulated[at],
                note: metric.notes[at],
            })
        };
        (0..SYSTEMS.len()).filter_map(finding).collect::<Vec<_>>()
    };
    TABLE_2.iter().flat_map(line).collect()
}

/// What the text says of single programs.
fn of_programs(rows: &[Row]) -> Vec<Finding> {
    let count = |is: fn(&Row) -> bool| rows.iter().filter(|row| is(row)).count() as f64;
    let mut by_downtime: Vec<&Row> = rows.iter().collect();
    by_downtime.sort_by(|one, other| other.alma.downtime_s.total_cmp(&one.alma.downtime_s));
    let costly = by_downtime.iter().take(3).map(|row| row.program.name);
    let named = costly
        .filter(|name| ["h2", "scimark", "derby"].contains(name))
        .count();
    let mpegaudio = rows.iter().find(|row| row.program.name == "mpegaudio");
    let mpegaudio = mpegaudio.map_or(0.0, |row| row.ps.downtime_s / row.criu.downtime_s);
    let one = |what: &str, paper, simulated, note| Finding {
        what: what.to_owned(),
        unit: "",
        paper,
        simulated,
        note,
    };
    vec![
        one(
            "of 15 programs, those with less traffic under ALMA than ALMA-PS",
            Told::Value(10.0),
            count(|row| row.alma.bytes < row.ps.bytes),
            "table 1 leaves much garbage outside of the young generation in scimark and crypto only. Of the others both send what lives, and G1, which collects more often, copies and promotes more.",
        ),
        one(
            "of 15 programs, those with more throughput under ALMA than ALMA-PS",
            Told::Value(14.0),
            count(|row| throughput(&row.alma) > throughput(&row.ps)),
            SAMPLED,
        ),
        one(
            "of h2, scimark and derby, those among the three longest downtimes of ALMA",
            Told::Value(3.0),
            named as f64,
            "scimark allocates 11.85 MB/s by table 1, too little to dirty much while the first snapshot travels.",
        ),
        one(
            "mpegaudio: downtime, ALMA-PS against CRIU",
            Told::Shape(1.0, f64::INFINITY, "more"),
            mpegaudio,
            "",
        ),
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
            parts: vec![Part {
                name: title.to_lowercase(),
                values,
            }],
        }
    };
    vec![
        one("Downtime", "s", downtime_s),
        one("Traffic", "MB", |outcome| traffic(outcome) / 1e6),
        one("Total time", "s", total_s),
        one("Throughput", "of what it is without a migration", throughput),
    ]
}
