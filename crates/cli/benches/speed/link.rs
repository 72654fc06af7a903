//! How much of a link the pages fill, by the counters of the interface.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_testbed::{programs, TwoHosts};

use crate::record::{line, ms};
use crate::rig::{How, Rig, Side};

/// Bytes per second of a link of 1 Gbit/s.
pub const GIGABIT: f64 = 125e6;

/// How often the counters are read.
const PERIOD: Duration = Duration::from_millis(10);

pub fn bulk() {
    let shaped = rate(TwoHosts::builder(), "eth0", 768);
    line("shaped to 1 Gbit/s", shaped / 1e6, "MB/s", "");
    line(
        "share of the link",
        100.0 * shaped / GIGABIT,
        "%",
        "goal: 90 % or more",
    );
    let veth = rate(TwoHosts::builder().unshaped(), "eth0", 4096);
    line("unshaped, over veth, bridge and switch", veth / 1e9, "GB/s", "");
    let loopback = rate(TwoHosts::builder().unshaped().one_network(), "lo", 4096);
    line(
        "unshaped, loopback, one stream",
        loopback / 1e9,
        "GB/s",
        "goal: 1.5 GB/s or more",
    );
}

/// Moves a mostly idle writer by pre-copy and gives the rate of the link's middle part: from a tenth to nine tenths of the bytes.
fn rate(builder: whimbrel_testbed::Builder, interface: &str, megabytes: u64) -> f64 {
    let rig = Rig::with(builder, &[programs::c("writer").unwrap()]);
    rig.run(&format!("writer {megabytes} 1 1"));
    rig.more_steps(Side::Alpha, 3);
    let done = AtomicBool::new(false);
    let samples = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&rig, interface, &done));
        let record = rig.moved(Side::Alpha, &How::default());
        done.store(true, Ordering::Relaxed);
        println!(
            "  ({megabytes} MB in {:.2} s in all)",
            ms(&record, "total_us") / 1e3
        );
        sampler.join().unwrap()
    });
    rig.more_steps(Side::Beta, 3);
    rig.finish(Side::Beta);
    middle(&samples)
}

/// Time and bytes, from the beginning on.
type Sample = (f64, f64);

fn sample(rig: &Rig, interface: &str, done: &AtomicBool) -> Vec<Sample> {
    let begun = Instant::now();
    let sent = || rig.hosts.traffic_of(&rig.hosts.alpha, interface).unwrap().sent;
    let before = sent();
    let mut samples = Vec::new();
    while !done.load(Ordering::Relaxed) {
        samples.push((begun.elapsed().as_secs_f64(), (sent() - before) as f64));
        thread::sleep(PERIOD);
    }
    samples
}

fn middle(samples: &[Sample]) -> f64 {
    let all = samples.last().map_or(0.0, |sample| sample.1);
    let reached = |part: f64| samples.iter().find(|sample| sample.1 >= all * part);
    match (reached(0.1), reached(0.9)) {
        (Some(from), Some(to)) => (to.1 - from.1) / (to.0 - from.0),
        _ => f64::NAN,
    }
}
