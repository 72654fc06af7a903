//! How long a JVM stands still: without the network's share, and as a client sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_testbed::programs::{self, JAVA_HOME};
use whimbrel_testbed::TwoHosts;

use crate::clients::{http, Lines};
use crate::record::{destination_ms, line, ms, phase_ms, Records};
use crate::rig::{How, Rig, Side};

/// Moves of each kind.
const MOVES: usize = 6;

/// OpenJDK 17, G1 with a heap of 1 GB, 400 MB of it live, more than thirty threads, some garbage all the time.
pub fn start_java(rig: &Rig) {
    let jar = "/usr/local/bin/HttpServer.jar";
    let java = format!("{JAVA_HOME}/bin/java -XX:+UseG1GC -Xms1g -Xmx1g -cp {jar} HttpServer 7000 400 2");
    rig.serve(&java);
    let mut lines = Lines::connect(&rig.hosts.client);
    // Warm: everything has been called often.
    (0..500).for_each(|number| http(&mut lines, number).unwrap());
}

pub fn without_the_network() {
    let rig = Rig::with(
        TwoHosts::builder().unshaped(),
        &[programs::java("HttpServer").unwrap()],
    );
    start_java(&rig);
    let mut records = Records::default();
    let mut side = Side::Alpha;
    for _ in 0..MOVES {
        thread::sleep(Duration::from_secs(2));
        records.push(rig.moved(side, &How::default()));
        side = side.other();
    }
    println!("a JVM on G1, 400 MB live of 1 GB; medians of {MOVES} moves\n");
    let at_source = [
        "freeze",
        "capture",
        "last-scan",
        "last-pages",
        "hold",
        "load",
        "offer",
    ];
    for phase in at_source {
        let goal = if phase == "freeze" { "goal: below 1 ms" } else { "" };
        line(
            &format!("source: {phase}"),
            records.median(|one| phase_ms(one, phase)),
            "ms",
            goal,
        );
    }
    for (name, what) in [
        ("build_us", "building, while the last pages come"),
        ("load_us", "completing"),
        ("offer_us", "waiting for the offer"),
        ("commit_us", "journal of the commit"),
        ("start_us", "starting"),
    ] {
        line(
            &format!("destination: {what}"),
            records.median(|one| destination_ms(one, name)),
            "ms",
            "",
        );
    }
    line("pages sent while frozen", records.median(last_pages), "", "");
    line("downtime", records.median(|one| ms(one, "downtime_us")), "ms", "");
    let without = |one: &_| ms(one, "downtime_us") - phase_ms(one, "last-pages");
    line(
        "blackout without the last pages",
        records.median(without),
        "ms",
        "goal: 20 ms or less",
    );
}

/// How many pages went with content while the workload was frozen.
fn last_pages(record: &serde_json::Value) -> f64 {
    let rounds = record["rounds"].as_array().map_or(&[][..], Vec::as_slice);
    let frozen = rounds.iter().filter(|round| round["frozen"] == true);
    frozen.filter_map(|round| round["pages_sent"].as_f64()).sum()
}

pub fn seen_by_a_client() {
    let rig = Rig::new(&[programs::java("HttpServer").unwrap()]);
    start_java(&rig);
    let mut side = Side::Alpha;
    let mut gaps = Vec::new();
    for strategy in ["precopy", "stopcopy"] {
        let mut longest = Vec::new();
        for _ in 0..MOVES / 2 {
            thread::sleep(Duration::from_secs(2));
            let watch = Watch::start(Lines::connect(&rig.hosts.client));
            rig.moved(side, &How::with(&format!("--strategy {strategy}")));
            thread::sleep(Duration::from_millis(500));
            longest.push(watch.finish());
            side = side.other();
        }
        longest.sort();
        let median = longest[longest.len() / 2].as_secs_f64() * 1e3;
        line(
            &format!("longest gap of an HTTP client, {strategy}"),
            median,
            "ms",
            "",
        );
        gaps.push(median);
    }
    line(
        "stop-copy's gap is longer by a factor of",
        gaps[1] / gaps[0],
        "",
        "",
    );
}

/// A client that asks without pause and remembers its longest wait.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Watch {
    pub fn start(mut lines: Lines) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let asked = Instant::now();
                http(&mut lines, 0).unwrap();
                longest = longest.max(asked.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        Self { stop, thread }
    }

    /// Its longest wait.
    pub fn finish(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
