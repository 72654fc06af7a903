//! What a move does to a guest, seen from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::bed::{Bed, Client};

/// Between an answer and the next request.
const PERIOD: Duration = Duration::from_millis(5);

/// A client that asks again and again, and notes when it was answered.
pub struct Asker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Instant>>,
}

impl Asker {
    pub fn start(mut client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut answers = Vec::new();
            while !told.load(Ordering::Relaxed) && client.ask("there").is_ok_and(|answer| answer == "there") {
                answers.push(Instant::now());
                thread::sleep(PERIOD);
            }
            answers
        });
        Self { stop, thread }
    }

    pub fn finish(self) -> Vec<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The longest time in ms without any of these, as far as it lies between the two moments or crosses the first one.
/// Silence until the end counts.
pub fn longest_silence(times: &[Instant], from: Instant, to: Instant) -> f64 {
    let times = times.iter().copied().filter(|time| *time <= to);
    let (mut last, mut longest) = (from, Duration::ZERO);
    for time in times.chain([to]) {
        if time > from {
            longest = longest.max(time.duration_since(last));
        }
        last = time;
    }
    longest.as_secs_f64() * 1e3
}

/// Measures one move: its time, and what the cable of the source has carried.
pub struct Meter {
    begun: Instant,
    sent: u64,
}

/// What a [`Meter`] has measured.
#[derive(Clone, Copy)]
pub struct Measured {
    pub begun: Instant,
    pub ended: Instant,
    pub bytes: u64,
}

impl Meter {
    pub fn start(bed: &Bed) -> Self {
        let sent = sent(bed);
        Self {
            begun: Instant::now(),
            sent,
        }
    }

    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// The source is where the guest still is for the bed.
    pub fn stop(self, bed: &Bed) -> Measured {
        Measured {
            begun: self.begun,
            ended: Instant::now(),
            bytes: sent(bed) - self.sent,
        }
    }
}

fn sent(bed: &Bed) -> u64 {
    bed.rig.hosts.traffic(bed.host(bed.side)).unwrap().sent
}
