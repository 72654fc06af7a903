//! Virtual machines: whimbrel and QEMU's own migration move the same guest over the same link, in turn.
//!
//! Each has its own default for the downtime: QEMU 300 ms, whimbrel 50 ms. All processes have the same priority.

pub mod bed;
mod native;
mod report;
mod tracking;
mod watch;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel_testbed::vm::{Serial, Tick};

use crate::rig::How;
use bed::{Bed, VM};
use native::Way;
use watch::{longest_silence, Asker, Measured, Meter};

/// What takes longer does not converge.
const CAP: Duration = Duration::from_secs(60);

/// The guest is watched for so long before and after a move.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_secs(2);

/// A guest and what it does.
#[derive(Clone, Copy)]
pub struct Row {
    memory_mib: u32,
    /// MiB that are written over and over.
    writer_mb: u32,
    /// How much of it in a second, in MiB.
    rate: u32,
    /// MiB that are filled once.
    held_mb: u32,
}

impl Row {
    /// All guests of a size have as much filled memory, so that only the writing differs.
    pub fn new(memory_mib: u32, rate: u32) -> Self {
        let writer_mb = if rate == 0 { 0 } else { 128 };
        let filled = if memory_mib > 1024 { 1152 } else { 128 };
        Self {
            memory_mib,
            // Without a buffer the guest does not start; at rate 0 nobody writes to it.
            writer_mb: writer_mb.max(1),
            rate,
            held_mb: filled - writer_mb,
        }
    }

    /// Pages that are written when all of the buffer was.
    fn writer_pages(&self) -> u64 {
        match self.rate {
            0 => 0,
            _ => u64::from(self.writer_mb) * 256,
        }
    }
}

/// Who moves the guest, and how.
#[derive(Clone, Copy, PartialEq)]
pub enum Competitor {
    Whimbrel(&'static str),
    Qemu(Way),
}

impl Competitor {
    fn name(self) -> String {
        match self {
            Self::Whimbrel(strategy) => format!("w {strategy}"),
            Self::Qemu(Way::Precopy) => "Q precopy".to_string(),
            Self::Qemu(Way::Postcopy { passes: 0 }) => "Q postcopy".to_string(),
            Self::Qemu(Way::Postcopy { .. }) => "Q hybrid".to_string(),
            Self::Qemu(Way::Multifd) => "Q multifd".to_string(),
        }
    }

    fn is_whimbrel(self) -> bool {
        matches!(self, Self::Whimbrel(_))
    }
}

const SOME: [Competitor; 6] = [
    Competitor::Whimbrel("precopy"),
    Competitor::Qemu(Way::Precopy),
    Competitor::Whimbrel("hybrid"),
    Competitor::Qemu(Way::Postcopy { passes: 1 }),
    Competitor::Whimbrel("postcopy"),
    Competitor::Qemu(Way::Multifd),
];

/// Too long for every day, and QEMU's hybrid is always better for the guest.
const AT_ONCE: Competitor = Competitor::Qemu(Way::Postcopy { passes: 0 });

/// A guest that has moved.
pub struct Moved {
    pub measured: Measured,
    /// Its serial line at the destination.
    pub heard: Serial,
    /// What whimbrel says about it.
    pub record: Option<Value>,
}

/// One move as the guest's users see it.
pub struct Run {
    /// The longest time without a tick.
    pub gap_ms: f64,
    /// The longest time without an answer to a client.
    pub client_ms: f64,
    pub total_s: f64,
    pub megabytes: f64,
    /// Pages and blocks of the disk that the guest has found wrong.
    pub errors: u64,
    /// Ticks that did not come, came twice, or were damaged on the serial line.
    pub lost: usize,
    pub record: Option<Value>,
}

/// All moves of a row by one competitor.
pub struct Score {
    pub competitor: Competitor,
    pub runs: Vec<Run>,
    /// Why it has not moved, each time.
    pub failures: Vec<String>,
}

impl Score {
    fn gives_up(&self) -> bool {
        self.failures
            .iter()
            .any(|failure| failure.contains("does not converge"))
    }
}

/// What is measured: a part that fits into some minutes, or with FULL=1 everything.
struct Plan {
    rows: Vec<Row>,
    competitors: Vec<Competitor>,
    runs: usize,
}

impl Plan {
    fn wanted() -> Self {
        let full = std::env::var_os("FULL").is_some_and(|value| value == "1");
        let of_size = |size, rates: &[u32]| rates.iter().map(|&rate| Row::new(size, rate)).collect();
        let mut rows: Vec<Row> = of_size(512, &[0, 20, 60]);
        let mut competitors = SOME.to_vec();
        if full {
            rows.push(Row::new(512, 110));
            rows.extend::<Vec<Row>>(of_size(2048, &[0, 20, 60, 110]));
            competitors.push(AT_ONCE);
        }
        Self {
            rows,
            competitors,
            runs: if full { 5 } else { 3 },
        }
    }
}

pub fn against_qemu() {
    let plan = Plan::wanted();
    println!(
        "1 processor (TCG), q35, disk, tap; 1 Gbit/s; median (lowest-highest) of {} moves in turn",
        plan.runs
    );
    println!("w: whimbrel, --max-downtime 50ms; Q: QEMU 7.2, downtime-limit 300 ms, Q hybrid: post-copy after one pass\n");
    report::heads();
    let rows: Vec<(Row, Vec<Score>)> = plan.rows.iter().map(|&row| (row, compete(row, &plan))).collect();
    report::ratios(&rows);
    report::phases(&rows);
    report::charts(&rows);
    tracking::cost_to_the_guest();
}

/// All competitors in turn, so that a change of the machine hits all of them.
fn compete(row: Row, plan: &Plan) -> Vec<Score> {
    let none = |&competitor| Score {
        competitor,
        runs: Vec::new(),
        failures: Vec::new(),
    };
    let mut results: Vec<Score> = plan.competitors.iter().map(none).collect();
    let mut bed = Bed::boot(row);
    report::usual(row, &unmoved(&bed));
    for _ in 0..plan.runs {
        for result in results.iter_mut().filter(|result| !result.gives_up()) {
            let outcome = run(&mut bed, result.competitor);
            // What follows must not find what this one has damaged.
            if outcome.as_ref().map_or(true, |run| run.errors > 0) {
                bed.boot_anew();
            }
            match outcome {
                Ok(run) => result.runs.push(run),
                Err(failure) => {
                    println!("{}: {failure}", result.competitor.name());
                    result.failures.push(failure);
                }
            }
        }
    }
    report::print(row, &results);
    results
}

/// What is usual: the same without a move.
fn unmoved(bed: &Bed) -> (f64, f64) {
    let asker = Asker::start(bed.client());
    let begun = Instant::now();
    thread::sleep(BEFORE + AFTER);
    let ended = Instant::now();
    let answers = asker.finish();
    let ticks: Vec<Instant> = bed.serial.ticks().iter().map(|tick| tick.at).collect();
    (
        longest_silence(&ticks, begun, ended),
        longest_silence(&answers, begun, ended),
    )
}

fn run(bed: &mut Bed, competitor: Competitor) -> Result<Run, String> {
    bed.forget_memory(bed.side.other());
    let asker = Asker::start(bed.client());
    thread::sleep(BEFORE);
    let moved = match competitor {
        Competitor::Whimbrel(strategy) => by_whimbrel(bed, strategy),
        Competitor::Qemu(way) => native::moves(bed, way),
    }?;
    bed.side = bed.side.other();
    let Measured { begun, ended, bytes } = moved.measured;
    thread::sleep((ended + AFTER).saturating_duration_since(Instant::now()));
    let answers = asker.finish();
    let source = std::mem::replace(&mut bed.serial, moved.heard);
    let ticks = source.record().joined(&bed.serial.record()).ticks();
    let at: Vec<Instant> = ticks.iter().map(|tick| tick.at).collect();
    let lost = ticks.windows(2).filter(|pair| !follows(pair)).count();
    Ok(Run {
        gap_ms: longest_silence(&at, begun, ended + AFTER),
        client_ms: longest_silence(&answers, begun, ended + AFTER),
        total_s: ended.duration_since(begun).as_secs_f64(),
        megabytes: bytes as f64 / 1e6,
        errors: bed.check()?,
        lost,
        record: moved.record,
    })
}

fn follows(pair: &[Tick]) -> bool {
    pair[1].seq == pair[0].seq + 1 && pair[1].boot == pair[0].boot
}

fn by_whimbrel(bed: &mut Bed, strategy: &str) -> Result<Moved, String> {
    let heard = Serial::of(bed.host(bed.side.other()), VM);
    let how = How {
        workload: Some(format!("qemu:/run/{VM}.qmp")),
        ..How::with(&format!("--strategy {strategy}"))
    };
    let mut moving = bed.rig.begin_move(bed.side, &how);
    let meter = Meter::start(bed);
    for end in [&mut moving.migrate, &mut moving.receive] {
        let finished = end
            .wait(CAP)
            .map_err(|_| format!("does not converge: {}", end.output()))?;
        if !finished.success() {
            return Err(format!("{}: {}", finished.status, finished.output));
        }
    }
    let measured = meter.stop(bed);
    bed.qemu = None;
    Ok(Moved {
        measured,
        heard,
        record: Some(bed.rig.record(bed.side)),
    })
}
