//! After the switch-over: how often the workload waits for the network, and how much of the link is used meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel_testbed::programs;

use crate::link::GIGABIT;
use crate::record::{cell, fault_ms, heads, line, residual};
use crate::rig::{How, Rig, Side};

/// All of it is used: no page comes for nothing.
const MEGABYTES: u64 = 128;

/// For the share of the link, which needs a longer look.
const BUSY_MEGABYTES: u64 = 256;

/// From touch to touch of each of the two threads. All pages once takes 1.6 s at best, the link 1.1 s: the push has a chance, and the
/// program as well.
const THINK_NS: u64 = 100_000;

/// What is added to the round trip: a rack, and two towns.
const ROUND_TRIPS: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(5)];

/// Demand paging is given so many times the resume time of bubbling, then the program is held.
const PATIENCE: f64 = 3.0;

/// How often the counters are read.
const PERIOD: Duration = Duration::from_millis(5);

/// The program, and where it is.
struct Paging {
    rig: Rig,
    side: Side,
}

impl Paging {
    fn start(megabytes: u64, pattern: &str, think_ns: u64) -> Self {
        let rig = Rig::new(&[programs::c("paging").unwrap()]);
        rig.run(&format!("paging {megabytes} {pattern} 2 {think_ns}"));
        rig.more_steps(Side::Alpha, 3);
        let side = Side::Alpha;
        Self { rig, side }
    }

    fn received(&self, side: Side) -> u64 {
        self.rig.hosts.traffic(self.rig.host(side)).unwrap().received
    }

    /// The record of a move over a long way, and the megabytes that it took.
    fn moved(&mut self, round_trip: Duration, arguments: &str) -> Run {
        let to = self.side.other();
        let relay = self.rig.relay(to, round_trip / 2);
        let how = How {
            via: Some(relay.address()),
            ..How::with(&format!("--strategy postcopy {arguments}"))
        };
        let before = self.received(to);
        let record = self.rig.moved(self.side, &how);
        let megabytes = (self.received(to) - before) as f64 / 1e6;
        self.side = to;
        self.rig.more_steps(to, 3);
        Run { record, megabytes }
    }
}

struct Run {
    record: Value,
    megabytes: f64,
}

impl Run {
    fn print(&self, name: &str, demand: f64) {
        let Self { record, megabytes } = self;
        let faults = residual(record, "network_faults");
        let numbers = [
            cell(faults, 0),
            cell(residual(record, "pages_faulted"), 0),
            cell(*megabytes, 1),
            cell(residual(record, "duration_us") / 1e6, 2),
            cell(fault_ms(record, "p50_us"), 2),
            cell(fault_ms(record, "p99_us"), 2),
            cell(fault_ms(record, "max_us"), 2),
            cell(100.0 * faults / demand, 1),
        ];
        println!("{name:>33}{}", numbers.concat());
    }
}

/// Each pattern of touches, each distance, each order of the push.
///
/// Demand paging ends when the program has touched every page, which a random one hardly ever has. So it is measured for three times as long
/// as bubbling took to bring every page: then `--residual-max` holds the program until the rest has come, so it has no more faults
/// after that, and the rest counts in its resume time and its MB alone. Without that end it would have had more faults: the share that is
/// printed for the others is rather too high than too low.
pub fn by_pattern() {
    println!("{MEGABYTES} MB, two threads that touch 10,000 pages a second each, 1 Gbit/s");
    println!("demand is held for the rest after {PATIENCE} times bubbling's resume time; faults in % of demand's\n");
    heads(&[
        "pattern",
        "round trip",
        "order",
        "faults",
        "waited for",
        "MB",
        "resume s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "% faults",
    ]);
    for pattern in ["sequential", "strided", "hotcold", "uniform"] {
        let mut paging = Paging::start(MEGABYTES, pattern, THINK_NS);
        for round_trip in ROUND_TRIPS {
            let bubbling = paging.moved(round_trip, "--prepage bubbling");
            let push = paging.moved(round_trip, "--prepage push");
            let seconds = residual(&bubbling.record, "duration_us") / 1e6;
            let patience = if seconds.is_finite() {
                seconds * PATIENCE
            } else {
                1.0
            };
            let limit = format!("--prepage demand --residual-max {}ms", (patience * 1e3) as u64);
            let demand = paging.moved(round_trip, &limit);
            let faults = residual(&demand.record, "network_faults");
            for (order, run) in [("demand", &demand), ("push", &push), ("bubbling", &bubbling)] {
                let name = format!(
                    "{pattern:>11}{:>8.1} ms{order:>11}",
                    round_trip.as_secs_f64() * 1e3
                );
                run.print(&name, faults);
            }
        }
        paging.rig.finish(paging.side);
    }
}

/// The share of the link that is used between the switch-over and the last page, while two threads read and write as fast as they can.
pub fn link_while_memory_is_used() {
    for pattern in ["uniform", "sequential", "writer"] {
        let mut paging = Paging::start(BUSY_MEGABYTES, pattern, 0);
        let (from, to) = (paging.side, paging.side.other());
        let done = AtomicBool::new(false);
        let (record, middle) = thread::scope(|scope| {
            let sampler = scope.spawn(|| sample(&paging, &done));
            let how = How::with("--strategy postcopy --prepage bubbling");
            let record = paging.rig.moved(from, &how);
            done.store(true, Ordering::Relaxed);
            (record, sampler.join().unwrap())
        });
        let seconds = residual(&record, "duration_us") / 1e6;
        println!("{pattern}: {BUSY_MEGABYTES} MB");
        line("resume time", seconds, "s", "");
        line("network faults", residual(&record, "network_faults"), "", "");
        line(
            "share of the link",
            100.0 * middle / GIGABIT,
            "%",
            "goal: 90 % or more",
        );
        paging.side = to;
        paging.rig.more_steps(to, 3);
        paging.rig.finish(to);
    }
}

/// The rate at which the destination receives while pages are owed, in bytes per second.
fn sample(paging: &Paging, done: &AtomicBool) -> f64 {
    let (from, to) = (paging.side, paging.side.other());
    let mut samples = Vec::new();
    while !done.load(Ordering::Relaxed) && !paging.rig.has_phase(from, "serve", "ended") {
        if paging.rig.has_phase(from, "serve", "begun") {
            samples.push((Instant::now(), paging.received(to)));
        }
        thread::sleep(PERIOD);
    }
    match (samples.first(), samples.last()) {
        (Some(first), Some(last)) => (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64(),
        _ => f64::NAN,
    }
}
