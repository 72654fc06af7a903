//! JAVMM: Xen's pre-copy of a virtual machine with a Java program, without and with the assistance of the JVM.

use super::run::{change_percent, mb_per_s, outcome, setting};
use super::{Finding, Paper, Told};
use crate::chart::{Across, Bars, Chart, Mark, Part, Series};
use crate::report::plots;
use crate::Outcome;

const SCENARIO: &str = include_str!("../../../../scenarios/papers/javmm-derby.toml");

/// Room that the old generation has beside what is used.
const OLD_ROOM_MIB: u32 = 128;
/// Each page of the old generation is written once in this time.
const OLD_WRITTEN_IN_S: f64 = 10.0;
const BYTES_PER_MIB: f64 = 1_048_576.0;

const ASSUMPTIONS: [&str; 9] = [
    "All 2 GB of the VM hold something other than zeros, and Xen sends all of it.",
    "Xen's limits: 30 rounds with the last one, three times the memory, and an earlier end only below 50 pages. Pages that were written again before they left wait for the next round.",
    "Allocation rates are those of ALMA's table 1, of the same programs on another machine. compiler is not there: the mean of derby and xml, which are of its category.",
    "97 % of every young generation is garbage, though the slides say it of most programs only.",
    "Each page of an old generation is written once in 10 s; the rest of the guest is written at 1 MB/s. The slides say nothing of writes beside the young generation.",
    "A collection takes 10 ms, and copies 200 MB/s of what lives; the way to the safepoint takes 20 ms.",
    "Stopping the VM, saving its devices and starting it takes 120 ms.",
    "Downtime is counted from the first thread that is held for the collection until the VM runs again.",
    "CPU time of the migration is that of looking for written pages, reading pages at 1 GB/s, and the enforced collection.",
];

const DERBY_DOWNTIME: &str = "the assumed collection, safepoint and restart, and what is left to send, take 0.3 s in all; the slides do not say what their 1.2 s are made of.";
const SCIMARK_TRAFFIC: &str =
    "a little too much is saved: its young generation is small, but Xen sends it again in its rounds.";
const SCIMARK_DOWNTIME: &str = "the sign is right. With the assumed writes Xen has almost nothing left at the end and stops for 0.13 s, of which collection and safepoint are a large part; the more were left, the less they would add.";

/// A program of the slides, as it is when its VM is moved.
struct Program {
    name: &'static str,
    young_mib: u32,
    old_mib: u32,
    allocates_mb_per_s: f64,
}

const fn program(name: &'static str, young_mib: u32, old_mib: u32, allocates_mb_per_s: f64) -> Program {
    Program {
        name,
        young_mib,
        old_mib,
        allocates_mb_per_s,
    }
}

const PROGRAMS: [Program; 5] = [
    program("derby", 1024, 259, 815.53),
    program("crypto", 456, 18, 258.46),
    program("scimark", 128, 486, 11.85),
    program("xml", 1536, 28, 740.94),
    program("compiler", 512, 86, (815.53 + 740.94) / 2.0),
];

type Measure = fn(&Outcome) -> f64;

/// A program's VM moved both ways.
#[derive(Clone, Debug)]
struct Pair {
    program: &'static str,
    xen: Outcome,
    javmm: Outcome,
}

impl Pair {
    fn of(program: &Program) -> Self {
        Pair {
            program: program.name,
            xen: moved(program, false),
            javmm: moved(program, true),
        }
    }

    /// What assistance changes, in percent.
    fn change(&self, measure: Measure) -> f64 {
        change_percent(measure(&self.xen), measure(&self.javmm))
    }
}

/// What comes out for a program's VM with assistance.
pub(super) fn assisted(name: &str) -> Option<Outcome> {
    let program = PROGRAMS.iter().find(|program| program.name == name)?;
    Some(moved(program, true))
}

fn moved(program: &Program, is_assisted: bool) -> Outcome {
    let old = f64::from(program.old_mib);
    let area_mib = program.young_mib + program.old_mib + OLD_ROOM_MIB;
    let system = if is_assisted { "JAVMM" } else { "Xen" };
    let settings = [
        setting("guest.load.0.rate", mb_per_s(program.allocates_mb_per_s)),
        setting("guest.load.0.young", format!("{}MiB", program.young_mib)),
        setting("guest.load.0.size", format!("{area_mib}MiB")),
        setting("guest.load.0.old-used", old / (old + f64::from(OLD_ROOM_MIB))),
        setting(
            "guest.load.0.old-writes",
            mb_per_s(old * BYTES_PER_MIB / 1e6 / OLD_WRITTEN_IN_S),
        ),
        setting("migration.assist", is_assisted),
    ];
    outcome(SCENARIO, &format!("{}, {system}", program.name), &settings)
}

/// How long the program stood still for the switch-over: from the first thread that was held until it ran again.
pub(super) fn standstill_s(outcome: &Outcome) -> f64 {
    let mut pauses = outcome.pauses.iter();
    let held = pauses.find(|pause| pause.why == "safepoint");
    let end = outcome.preparation_s + outcome.downtime_s;
    held.map_or(outcome.downtime_s, |held| end - held.begun_s)
}

fn total_s(outcome: &Outcome) -> f64 {
    outcome.total_s
}

fn traffic(outcome: &Outcome) -> f64 {
    outcome.bytes as f64
}

pub(super) fn simulate() -> Paper {
    let pairs: Vec<Pair> = PROGRAMS.iter().map(Pair::of).collect();
    Paper {
        name: "javmm",
        citation: "K.-Y. Hou, K. G. Shin, J.-L. Sung: Application-Assisted Live Migration of Virtual Machines with Java Applications. EuroSys 2015 (slides)",
        assumptions: ASSUMPTIONS.to_vec(),
        findings: findings(&pairs),
        charts: pairs.iter().filter(|pair| pair.program == "compiler").map(progress).collect(),
        bars: bars(&pairs),
    }
}

fn findings(pairs: &[Pair]) -> Vec<Finding> {
    let [derby, crypto, scimark, xml, compiler] = pairs else {
        return Vec::new();
    };
    let change = |pair: &Pair, measure: Measure, name: &str, paper, note| Finding {
        what: format!("{}: {name}, JAVMM against Xen", pair.program),
        unit: "%",
        paper,
        simulated: pair.change(measure),
        note,
    };
    let value = Told::Value;
    let mut all = vec![
        change(derby, total_s, "total time", value(-82.0), ""),
        change(derby, traffic, "traffic", value(-84.0), ""),
        downtime(&derby.xen, "derby: downtime, Xen", 9.0, ""),
        downtime(&derby.javmm, "derby: downtime, JAVMM", 1.2, DERBY_DOWNTIME),
        change(crypto, total_s, "total time", value(-69.0), ""),
        change(crypto, traffic, "traffic", value(-72.0), ""),
        change(scimark, traffic, "traffic", value(-10.0), SCIMARK_TRAFFIC),
        change(scimark, standstill_s, "downtime", value(10.0), SCIMARK_DOWNTIME),
        cpu(pairs),
    ];
    let less = Told::Shape(-100.0, 0.0, "less");
    let measures: [(Measure, &str); 3] = [
        (total_s, "total time"),
        (traffic, "traffic"),
        (standstill_s, "downtime"),
    ];
    for pair in [xml, compiler] {
        all.extend(measures.map(|(measure, name)| change(pair, measure, name, less, "")));
    }
    all
}

fn downtime(outcome: &Outcome, what: &str, paper_s: f64, note: &'static str) -> Finding {
    Finding {
        what: what.to_owned(),
        unit: "s",
        paper: Told::Value(paper_s),
        simulated: standstill_s(outcome),
        note,
    }
}

/// The largest of all savings.
fn cpu(pairs: &[Pair]) -> Finding {
    let changes = pairs.iter().map(|pair| pair.change(|outcome| outcome.cpu_s));
    Finding {
        what: "the most that is saved of the migration's CPU time, JAVMM against Xen".to_owned(),
        unit: "%",
        paper: Told::Value(-84.0),
        simulated: changes.fold(f64::INFINITY, f64::min),
        note: "",
    }
}

/// The figure of the progress: what was sent when, and the ends of the rounds of Xen.
fn progress(pair: &Pair) -> Chart {
    let line = |name: &str, outcome: &Outcome| {
        let point = |sample: &crate::Sample| (sample.at_s, sample.sent_bytes as f64 / 1e9);
        let end = (outcome.total_s, outcome.bytes as f64 / 1e9);
        let points = outcome.series.iter().map(point).chain([end]);
        Series::new(name, std::iter::once((0.0, 0.0)).chain(points).collect())
    };
    let round = |round: &crate::SimRound| Mark {
        at: round.begun_s,
        name: String::new(),
    };
    let frozen = |outcome: &Outcome| (outcome.preparation_s, outcome.preparation_s + outcome.downtime_s);
    Chart {
        title: format!("{}: progress of the migration (shaded: frozen)", pair.program),
        left: "sent, GB".to_owned(),
        bottom: "time since the request, s (upright: rounds of Xen)".to_owned(),
        across: Across::Numbers(0.0, pair.xen.total_s.max(pair.javmm.total_s)),
        series: vec![line("Xen", &pair.xen), line("JAVMM", &pair.javmm)],
        marks: pair.xen.rounds.iter().map(round).collect(),
        shades: vec![frozen(&pair.xen), frozen(&pair.javmm)],
        ..Chart::default()
    }
}

fn bars(pairs: &[Pair]) -> Vec<Bars> {
    let measure = |title: &str, bottom: &str, of: Measure| {
        let bar = |pair: &Pair| [of(&pair.xen), of(&pair.javmm)];
        let values: Vec<f64> = pairs.iter().flat_map(bar).collect();
        let names = |pair: &Pair| [pair.xen.scenario.clone(), pair.javmm.scenario.clone()];
        Bars {
            title: title.to_owned(),
            bottom: bottom.to_owned(),
            names: pairs.iter().flat_map(names).collect(),
            sums: values
                .iter()
                .map(|value| format!("{value:.2} {bottom}"))
                .collect(),
            parts: vec![Part {
                name: title.to_lowercase(),
                values,
            }],
        }
    };
    let rounds = |outcome: &Outcome| Bars {
        title: format!("{}: pages by round, and how long each took", outcome.scenario),
        ..plots::rounds(outcome)
    };
    let compiler = pairs.iter().filter(|pair| pair.program == "compiler");
    let mut all = vec![
        measure("Total time", "s", total_s),
        measure("Traffic", "GB", |outcome| traffic(outcome) / 1e9),
        measure("Downtime", "s", standstill_s),
    ];
    all.extend(compiler.flat_map(|pair| [rounds(&pair.xen), rounds(&pair.javmm)]));
    all
}
