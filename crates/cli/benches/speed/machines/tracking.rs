//! What a guest loses while its writes are tracked and nothing else happens.

use std::thread;
use std::time::{Duration, Instant};

use whimbrel_engine::{Mode, Outcome, Workload};
use whimbrel_qemu::QemuWorkload;
use whimbrel_testbed::vm::Tick;

use super::bed::Bed;
use super::native::Way;
use super::{run, Competitor, Row};
use crate::record::line;

/// Time with and time without, in turn, so that a change of the machine hits both.
const TURNS: usize = 3;

/// How long each is measured.
const WINDOW: Duration = Duration::from_secs(3);

/// Between two scans: what is usual in a bench, and rounds as short as those before a switch-over.
const PERIODS: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(100)];

/// More than any processor writes, in MiB a second.
const WITHOUT_PAUSE: u32 = 100_000;

pub fn cost_to_the_guest() {
    println!("\na guest of 512 MB that rewrites 64 MB without pause, not moved; medians of {TURNS} turns\n");
    let mut bed = Bed::boot(Row {
        memory_mib: 512,
        writer_mb: 64,
        rate: WITHOUT_PAUSE,
        held_mb: 0,
    });
    // QEMU's own migration fills all of the memory, as a guest does that runs for long.
    run(&mut bed, Competitor::Qemu(Way::Precopy)).unwrap();
    let mut without = Vec::new();
    let mut scans = Scans::default();
    let mut with = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        without.push(rate(&bed, WINDOW, || ()));
        for (period, rates) in PERIODS.into_iter().zip(&mut with) {
            rates.push(tracked(&bed, period, &mut scans));
        }
    }
    let without = median(&mut without);
    line("pages written untracked", without / 1e3, "k/s", "");
    for (period, rates) in PERIODS.into_iter().zip(&mut with) {
        let with = median(rates);
        let name = format!("pages written with a scan every {} ms", period.as_millis());
        line(&name, with / 1e3, "k/s", "");
        line("  loss", 100.0 * (1.0 - with / without), "%", "");
    }
    line("a scan", median(&mut scans.running), "ms", "");
    line(
        "the scan of the paused guest",
        median(&mut scans.paused),
        "ms",
        "",
    );
    line("errors", bed.check().unwrap() as f64, "", "goal: 0");
}

/// How long looking for written pages takes, in ms.
#[derive(Default)]
struct Scans {
    running: Vec<f64>,
    paused: Vec<f64>,
}

fn tracked(bed: &Bed, period: Duration, scans: &mut Scans) -> f64 {
    let mut workload = QemuWorkload::new(&bed.monitor()).unwrap();
    workload.describe().unwrap();
    workload.begin(Mode::Live).unwrap();
    workload.scan().unwrap();
    let rate = rate(bed, period, || {
        let begun = Instant::now();
        workload.scan().unwrap();
        scans.running.push(since(begun));
    });
    workload.make_ready().unwrap();
    workload.freeze().unwrap();
    workload.capture().unwrap();
    let begun = Instant::now();
    workload.scan_frozen().unwrap();
    scans.paused.push(since(begun));
    workload.release(Outcome::Stays).unwrap();
    rate
}

fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Pages per second while something is done every so often.
fn rate(bed: &Bed, period: Duration, mut every: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let before = last(bed);
    while begun.elapsed() + period <= WINDOW {
        thread::sleep(period);
        every();
    }
    thread::sleep(WINDOW.saturating_sub(begun.elapsed()));
    let after = last(bed);
    (after.pages - before.pages) as f64 / (after.at - before.at).as_secs_f64()
}

fn last(bed: &Bed) -> Tick {
    bed.serial.ticks().pop().unwrap()
}
