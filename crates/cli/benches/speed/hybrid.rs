//! A JVM under load, by each strategy: what a client sees, and what it costs.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use whimbrel_testbed::programs;

use crate::blackout::{start_java, Watch};
use crate::clients::{http, Lines, Load};
use crate::record::{cell, heads, ms, residual};
use crate::rig::{How, Rig, Side};

/// Moves by each strategy; the medians are printed.
const MOVES: usize = 3;

/// Clients that keep it busy, beside the one that is measured.
const CLIENTS: usize = 4;

/// One move.
struct Run {
    gap: Duration,
    megabytes: f64,
    record: Value,
}

pub fn java_by_strategy() {
    println!("a JVM on G1, 400 MB live of 1 GB, {CLIENTS} HTTP clients and one that is measured, 1 Gbit/s; medians of {MOVES}\n");
    heads(&[
        "strategy", "gap ms", "down ms", "total s", "resume s", "MB", "faults",
    ]);
    let rig = Rig::new(&[programs::java("HttpServer").unwrap()]);
    start_java(&rig);
    let load = Load::start(&rig.hosts.client, CLIENTS, http);
    let mut side = Side::Alpha;
    for strategy in ["precopy", "postcopy", "hybrid"] {
        let mut runs = Vec::new();
        for _ in 0..MOVES {
            runs.push(moved(&rig, side, strategy));
            side = side.other();
            load.more(200);
        }
        print(strategy, &runs);
    }
    load.finish();
    rig.finish(side);
}

fn moved(rig: &Rig, from: Side, strategy: &str) -> Run {
    let received = || rig.hosts.traffic(rig.host(from.other())).unwrap().received;
    let watch = Watch::start(Lines::connect(&rig.hosts.client));
    // What is usual comes first, so that the move is all that is different.
    thread::sleep(Duration::from_secs(1));
    let before = received();
    let record = rig.moved(from, &How::with(&format!("--strategy {strategy}")));
    let megabytes = (received() - before) as f64 / 1e6;
    thread::sleep(Duration::from_millis(500));
    Run {
        gap: watch.finish(),
        megabytes,
        record,
    }
}

fn print(strategy: &str, runs: &[Run]) {
    let median = |number: &dyn Fn(&Run) -> f64| {
        let mut numbers: Vec<f64> = runs.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
    let cells = [
        cell(median(&|run| run.gap.as_secs_f64() * 1e3), 1),
        cell(median(&|run| ms(&run.record, "downtime_us")), 1),
        cell(median(&|run| ms(&run.record, "total_us") / 1e3), 2),
        cell(median(&|run| residual(&run.record, "duration_us") / 1e6), 2),
        cell(median(&|run| run.megabytes), 1),
        cell(median(&|run| residual(&run.record, "network_faults")), 0),
    ];
    println!("{strategy:>11}{}", cells.concat());
}
