//! What `plan` says against what comes of it, and what `auto` takes against the best of all.
//!
//! Each workload is measured, then moved by each strategy and by `auto` for each aim, there and back. An error is that of the likely value, in
//! percent of the truth. The regret of `auto` is how much more it took of what it was to save than the best strategy did, of those that kept the
//! downtime within its limit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use whimbrel_testbed::programs;

use crate::blackout::start_java;
use crate::clients::{http, Lines, Load};
use crate::machines::bed::{Bed, VM};
use crate::machines::Row;
use crate::record::{cell, heads};
use crate::rig::{How, Rig, Side, NAME};
use crate::servers::{redis_client, start_redis};

const STRATEGIES: [&str; 4] = ["precopy", "stopcopy", "hybrid", "postcopy"];

/// The limit on the downtime, as `migrate` has it by default.
const DOWNTIME_MAX_S: f64 = 0.050;

/// What `auto` is asked to save, and what its record calls that.
const AIMS: [(&str, Figure); 3] = [
    ("", Figure::Total),
    ("--min bytes", Figure::Bytes),
    ("--min downtime", Figure::Downtime),
];

/// How long a workload runs on after a move until it is measured or moved again.
const REST: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, PartialEq)]
enum Figure {
    Total,
    Downtime,
    Bytes,
}

const FIGURES: [(Figure, &str, &str); 3] = [
    (Figure::Total, "total_s", "total s"),
    (Figure::Downtime, "downtime_s", "down ms"),
    (Figure::Bytes, "bytes", "MB"),
];

impl Figure {
    /// In seconds or bytes.
    fn actual(self, record: &Value) -> f64 {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        match self {
            Figure::Total => number(&record["total_us"]) / 1e6,
            Figure::Downtime => number(&record["downtime_us"]) / 1e6,
            Figure::Bytes => {
                let residual = &record["residual"];
                number(&record["bulk_bytes"])
                    + number(&residual["bytes_pushed"])
                    + number(&residual["bytes_replied"])
            }
        }
    }

    /// In the unit of its column.
    fn shown(self, value: f64) -> f64 {
        match self {
            Figure::Total => value,
            Figure::Downtime => value * 1e3,
            Figure::Bytes => value / 1e6,
        }
    }
}

/// All that was found.
#[derive(Default)]
struct Findings {
    /// Of the likely values, in percent, by figure.
    errors: [Vec<f64>; 3],
    /// In percent, by aim.
    regrets: [Vec<f64>; 3],
}

pub fn against_the_truth() {
    println!("1 Gbit/s; errors of the likely values, in percent of the truth\n");
    let mut findings = Findings::default();
    for rewrite_mib in [0, 16, 48, 96, 192] {
        let rig = Rig::new(&[]);
        rig.serve(&format!(
            "whimbrel demo-server --memory-mib 192 --rewrite-mib {rewrite_mib}"
        ));
        findings.of_process(&rig, &format!("sample server, {rewrite_mib} MiB/s"));
        rig.finish(Side::Alpha);
    }
    findings.of_redis();
    findings.of_java();
    for rate in [0, 20, 60] {
        let mut bed = Bed::boot(Row::new(512, rate));
        findings.of_machine(&mut bed, &format!("QEMU guest, {rate} MiB/s"));
    }
    findings.print();
}

impl Findings {
    fn of_process(&mut self, rig: &Rig, name: &str) {
        let mut side = Side::Alpha;
        self.of(name, |what| {
            thread::sleep(REST);
            match what {
                What::Plan => rig.plan(side, NAME, ""),
                What::Move(arguments) => {
                    let record = rig.moved(side, &How::with(arguments));
                    side = side.other();
                    record
                }
            }
        });
        // There and back an even number of times, or once more.
        if side == Side::Beta {
            rig.moved(side, &How::default());
        }
    }

    fn of_redis(&mut self) {
        let rig = Rig::new(&[]);
        start_redis(&rig);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..4 {
                let (rig, end) = (&rig, &end);
                scope.spawn(move || {
                    let mut exchange = redis_client(number);
                    let mut lines = Lines::connect(&rig.hosts.client);
                    while !end.load(Ordering::Relaxed) {
                        exchange(&mut lines).unwrap();
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            self.of_process(&rig, "redis under load");
            end.store(true, Ordering::Relaxed);
        });
        rig.finish(Side::Alpha);
    }

    fn of_java(&mut self) {
        let rig = Rig::new(&[programs::java("HttpServer").unwrap()]);
        start_java(&rig);
        let load = Load::start(&rig.hosts.client, 4, http);
        self.of_process(&rig, "JVM, G1, under load");
        load.finish();
        rig.finish(Side::Alpha);
    }

    fn of_machine(&mut self, bed: &mut Bed, name: &str) {
        let workload = format!("qemu:/run/{VM}.qmp");
        self.of(name, |what| {
            thread::sleep(REST);
            match what {
                What::Plan => bed.rig.plan(bed.side, &workload, ""),
                What::Move(arguments) => {
                    let how = How {
                        workload: Some(workload.clone()),
                        ..How::with(arguments)
                    };
                    let record = bed.rig.moved(bed.side, &how);
                    bed.forget_memory(bed.side);
                    bed.side = bed.side.other();
                    record
                }
            }
        });
    }

    /// Measures one workload. `act` does what it is told, and gives what came of it.
    fn of(&mut self, name: &str, mut act: impl FnMut(What<'_>) -> Value) {
        println!("{name}");
        heads(&[
            "",
            "total s",
            "predicted",
            "down ms",
            "predicted",
            "MB",
            "predicted",
            "%",
        ]);
        let mut moved = Vec::new();
        for strategy in STRATEGIES {
            let plan = act(What::Plan);
            let record = act(What::Move(&format!("--strategy {strategy}")));
            self.compare(strategy, &plan, &record);
            moved.push(record);
        }
        for (index, (arguments, figure)) in AIMS.into_iter().enumerate() {
            let record = act(What::Move(&format!("--strategy auto {arguments}")));
            let regret = regret(&moved, &record, figure);
            self.regrets[index].push(regret);
            print_auto(arguments, &record, regret);
        }
        println!();
    }

    fn compare(&mut self, strategy: &str, plan: &Value, record: &Value) {
        let rows = plan["strategies"].as_array().map_or(&[][..], Vec::as_slice);
        let row = rows.iter().find(|row| row["strategy"] == strategy).unwrap();
        let mut cells = String::new();
        let mut shown = Vec::new();
        for (index, (figure, key, _)) in FIGURES.into_iter().enumerate() {
            let (told, truth) = (row[key][0].as_f64().unwrap(), figure.actual(record));
            let error = (told / truth - 1.0) * 100.0;
            self.errors[index].push(error.abs());
            shown.push(format!("{error:+.0}"));
            cells += &cell(figure.shown(truth), 2);
            cells += &cell(figure.shown(told), 2);
        }
        println!("{strategy:>11}{cells}   {}", shown.join(" "));
    }

    fn print(&self) {
        println!("median error in % (goal: 15 or less)");
        for ((_, _, name), errors) in FIGURES.into_iter().zip(&self.errors) {
            println!("{name:>11}{}   of {}", cell(median(errors), 1), errors.len());
        }
        println!("median regret of auto in % (goal: 10 or less)");
        for ((aim, _), regrets) in AIMS.into_iter().zip(&self.regrets) {
            let aim = if aim.is_empty() { "no aim" } else { aim };
            println!("{aim:>16}{}   of {}", cell(median(regrets), 1), regrets.len());
        }
    }
}

enum What<'a> {
    Plan,
    Move(&'a str),
}

fn print_auto(arguments: &str, record: &Value, regret: f64) {
    let cells =
        FIGURES.map(|(figure, _, _)| cell(figure.shown(figure.actual(record)), 2) + &cell(f64::NAN, 0));
    let choice = record["predicted"]["choice"].as_str().unwrap_or("no choice");
    println!(
        "{:>11}{}   {arguments} regret {regret:.0} %, {choice}",
        "auto",
        cells.concat()
    );
}

/// How much more than the best of these it took, in percent; negative if it took less.
fn regret(moved: &[Value], auto: &Value, figure: Figure) -> f64 {
    let within =
        |record: &&Value| figure == Figure::Downtime || Figure::Downtime.actual(record) <= DOWNTIME_MAX_S;
    let best = moved.iter().filter(within).map(|record| figure.actual(record));
    let best = best.fold(f64::INFINITY, f64::min);
    match best.is_finite() {
        true => (figure.actual(auto) / best - 1.0) * 100.0,
        false => 0.0,
    }
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
