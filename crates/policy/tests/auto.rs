//! What `auto` does with workloads that write little, much, and more than the link carries.

use std::collections::BTreeSet;
use std::time::Duration;

use whimbrel_policy::predict::{Aim, Costs, Course, Goals};
use whimbrel_policy::{
    Auto, Event, Hints, Limits, Migration, Order, PageRun, Scan, Sent, SpaceId, StopReason, PAGE_SIZE,
};

/// 117 MB/s.
const LINK_PAGES_PER_S: f64 = 28_600.0;

/// A workload that writes `rate` pages a second, at random, in the first `set` of `memory` pages.
struct Imagined {
    memory: u64,
    set: u64,
    rate: f64,
    now: Duration,
    seed: u64,
    written: BTreeSet<u64>,
    due: f64,
}

impl Imagined {
    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        self.due += self.rate * time.as_secs_f64();
        while self.due >= 1.0 && self.set > 0 {
            self.due -= 1.0;
            self.seed = self
                .seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            self.written.insert((self.seed >> 33) % self.set);
        }
    }

    fn send(&mut self, runs: &[PageRun], skip: bool) -> Sent {
        let pages: Vec<u64> = runs
            .iter()
            .flat_map(|run| run.first..run.first + run.count)
            .collect();
        let rewritten: Vec<PageRun> = pages
            .iter()
            .filter(|page| skip && self.written.contains(page))
            .map(|&page| run(page, 1))
            .collect();
        let sent = (pages.len() - rewritten.len()) as u64;
        let busy = Duration::from_secs_f64(sent as f64 / LINK_PAGES_PER_S);
        self.pass_time(busy);
        let wire_bytes = sent * PAGE_SIZE;
        Sent {
            rewritten,
            wire_bytes,
            page_bytes: wire_bytes,
            busy,
            ..Sent::default()
        }
    }
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first,
        count,
    }
}

/// Runs until the hand-over.
fn moved(set: u64, rate: f64, min: Option<Aim>) -> Migration {
    moved_within(Limits::default(), set, rate, min)
}

/// The same within these limits.
fn moved_within(limits: Limits, set: u64, rate: f64, min: Option<Aim>) -> Migration {
    let costs = Costs {
        stop: Duration::from_millis(8),
        ..Costs::default()
    };
    moved_at(costs, limits, set, rate, min)
}

/// The same for a workload with these costs.
fn moved_at(costs: Costs, limits: Limits, set: u64, rate: f64, min: Option<Aim>) -> Migration {
    let goals = Goals {
        downtime_max: Duration::from_millis(50),
        min,
    };
    let auto = Auto::new(goals, costs, Duration::from_micros(200));
    let hints = Hints {
        fixed_cost: costs.stop,
        ..Hints::default()
    };
    let mut migration = Migration::new(Box::new(auto), limits, hints);
    let mut world = Imagined {
        memory: 50_000,
        set,
        rate,
        now: Duration::ZERO,
        seed: 7,
        written: BTreeSet::new(),
        due: 0.0,
    };
    let mut first = true;
    loop {
        let runs = |pages: &BTreeSet<u64>| pages.iter().map(|&page| run(page, 1)).collect::<Vec<_>>();
        let event = match migration.poll(world.now) {
            Order::Scan => {
                let written = if first {
                    vec![run(0, world.memory)]
                } else {
                    runs(&world.written)
                };
                first = false;
                world.written.clear();
                Event::Scanned(Scan {
                    written,
                    ..Scan::default()
                })
            }
            Order::Send { runs, skip_rewritten } => Event::Sent(world.send(&runs, skip_rewritten)),
            Order::Sample => Event::Sampled {
                written_pages: world.written.len() as u64,
            },
            Order::Freeze => Event::Frozen,
            Order::Capture => Event::Captured { state_bytes: 100_000 },
            Order::ScanLast => {
                let (written, present) = (runs(&world.written), Some(vec![run(0, world.memory)]));
                Event::Scanned(Scan {
                    written,
                    present,
                    ..Scan::default()
                })
            }
            Order::Drop { .. } => continue,
            Order::Wait { until } => {
                world.pass_time(until - world.now);
                continue;
            }
            Order::HandOver => return migration,
        };
        migration
            .handle(world.now, event)
            .expect("the event is an answer");
    }
}

#[test]
fn a_calm_workload_goes_by_precopy() {
    for rate in [0.0, 200.0, 2_000.0] {
        let migration = moved(1_000, rate, None);
        assert!(migration.residual().is_empty(), "{rate}");
        assert_eq!(migration.choice().unwrap().course, Course::PreCopy, "{rate}");
    }
}

#[test]
fn one_that_writes_more_than_the_link_carries_leaves_a_residue() {
    let migration = moved(30_000, 60_000.0, None);
    assert!(!migration.residual().is_empty());
    assert!(
        migration.rounds().len() <= 2,
        "it gave up rounds early: {:?}",
        migration.rounds()
    );
}

#[test]
fn whoever_saves_bytes_switches_in_the_middle_of_the_pass() {
    let migration = moved(30_000, 60_000.0, Some(Aim::Bytes));
    assert_eq!(migration.stop_reason(), Some(StopReason::Foreseen));
    assert!(
        migration.residual().len() > 30_000,
        "{}",
        migration.residual().len()
    );
    let prediction = migration.prediction().unwrap();
    assert_eq!(prediction.course, Course::PostCopy);
    let bytes = 50_000.0 * PAGE_SIZE as f64;
    assert!(
        (prediction.bytes.likely / bytes - 1.0).abs() < 0.15,
        "{prediction:?}"
    );
}

#[test]
fn what_it_foresees_of_a_calm_workload_comes_true() {
    let migration = moved(2_000, 3_000.0, None);
    let prediction = migration.prediction().unwrap();
    let sent: u64 = migration.rounds().iter().map(|round| round.wire_bytes).sum();
    assert!(
        (prediction.bytes.likely / sent as f64 - 1.0).abs() < 0.05,
        "{prediction:?} for {sent}"
    );
}

#[test]
fn a_limit_that_ends_the_rounds_does_not_make_it_stand_still_for_all_the_rest() {
    for (traffic_percent_max, rounds_max) in [(50, 30), (0, 30), (300, 0), (300, 1)] {
        let limits = Limits {
            traffic_percent_max,
            rounds_max,
            ..Limits::default()
        };
        let migration = moved_within(limits, 30_000, 20_000.0, None);
        let frozen: u64 = migration
            .rounds()
            .iter()
            .filter(|round| round.frozen)
            .map(|round| round.pages_sent)
            .sum();
        assert!(frozen < 2_000, "{limits:?}: {frozen} pages while it was frozen");
        assert!(migration.residual().len() > 10_000, "{limits:?}");
    }
}

#[test]
fn who_cannot_be_below_the_limit_at_all_is_not_cut_in_two_for_little() {
    let costs = Costs {
        stop: Duration::from_millis(70),
        arm: Duration::from_millis(2),
        ..Costs::default()
    };
    let migration = moved_at(costs, Limits::default(), 1_000, 500.0, None);
    assert!(migration.residual().is_empty(), "{:?}", migration.choice());
}
