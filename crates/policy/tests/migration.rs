//! Whole migrations of an imagined memory in virtual time: whatever the workload does, the destination ends up with
//! exactly what the source has, and the limits hold.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest, Just, ProptestConfig};
use proptest::strategy::Strategy as Values;
use whimbrel_policy::fact::{Expiry, Fact, Knowledge};
use whimbrel_policy::{
    Event, Hints, Hybrid, Limits, Migration, MigrationError, Order, Page, PageRun, Passes, Phase, PostCopy,
    PreCopy, Scan, Sent, SpaceId, StopCopy, StopReason, Strategy, PAGE_SIZE,
};

const SPACES: u64 = 2;
const FRAME_BYTES: u64 = 24;

/// xorshift64*, so that a failure repeats from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How the workload behaves.
#[derive(Clone, Debug)]
struct Habits {
    seed: u64,
    pages: u64,
    /// Changes for each scan, piece of 64 pages, or other step.
    changes: u64,
    /// Of 100 changes, how many go to the first sixteenth of the memory.
    hot_percent: u64,
    /// Of 100 reads of a page, how many fail.
    failing_percent: u64,
    facts: bool,
}

/// The source's memory, as the kernel would show it.
struct Memory {
    habits: Habits,
    random: Random,
    present: BTreeMap<Page, u64>,
    written: BTreeSet<Page>,
    lost: Vec<PageRun>,
    /// Was written or reported since its mapping was made: from then on every write is reported.
    ever: BTreeSet<Page>,
    next_content: u64,
}

impl Memory {
    fn new(habits: Habits) -> Self {
        let random = Random(habits.seed | 1);
        let mut memory = Memory {
            habits,
            random,
            present: BTreeMap::new(),
            written: BTreeSet::new(),
            lost: Vec::new(),
            ever: BTreeSet::new(),
            next_content: 0,
        };
        for number in 0..memory.habits.pages {
            let page = Page {
                space: SpaceId((number % SPACES) as u32),
                number: number / SPACES,
            };
            if memory.random.chance(90) {
                memory.write(page);
            }
        }
        memory
    }

    fn any_page(&mut self) -> Page {
        let hot = self.random.chance(self.habits.hot_percent);
        let pages = if hot {
            self.habits.pages / 16
        } else {
            self.habits.pages * 5 / 4
        };
        let number = self.random.below(pages / SPACES);
        Page {
            space: SpaceId(self.random.below(SPACES) as u32),
            number,
        }
    }

    fn write(&mut self, page: Page) {
        self.next_content += 1;
        let content = if self.random.chance(10) {
            0
        } else {
            self.next_content
        };
        self.present.insert(page, content);
        self.written.insert(page);
        self.ever.insert(page);
    }

    fn unmap(&mut self, page: Page) {
        // Often far beyond what there is, as when a whole address space goes.
        let count = if self.random.chance(30) {
            u64::MAX / 2
        } else {
            1 + self.random.below(40)
        };
        let run = PageRun {
            space: page.space,
            first: page.number,
            count,
        };
        let inside = |p: &Page| p.space == run.space && *p >= page && *p < run.end();
        self.present.retain(|p, _| !inside(p));
        self.written.retain(|p| !inside(p));
        self.ever.retain(|p| !inside(p));
        self.lost.push(run);
    }

    fn live(&mut self) {
        for _ in 0..self.habits.changes {
            let page = self.any_page();
            match self.random.below(200) {
                0 => self.unmap(page),
                // madvise(DONTNEED): a hole, reported as written.
                1..=20 => {
                    self.present.remove(&page);
                    self.written.insert(page);
                    self.ever.insert(page);
                }
                // madvise(FREE) and the kernel takes it: nobody is told.
                21..=30 => {
                    self.present.remove(&page);
                }
                // A mapping that was not tracked yet: content that no scan reports.
                31..=40 if !self.ever.contains(&page) => {
                    self.write(page);
                    self.written.remove(&page);
                }
                _ => self.write(page),
            }
        }
    }

    fn scan(&mut self, frozen: bool) -> Scan {
        let runs = |pages: &BTreeSet<Page>| pages.iter().map(|&page| run_of(page)).collect();
        let written = runs(&std::mem::take(&mut self.written));
        let present = frozen.then(|| self.present.keys().map(|&page| run_of(page)).collect());
        Scan {
            written,
            lost: std::mem::take(&mut self.lost),
            present,
            urgent: Vec::new(),
        }
    }
}

fn run_of(page: Page) -> PageRun {
    PageRun {
        space: page.space,
        first: page.number,
        count: 1,
    }
}

fn pages_of(runs: &[PageRun]) -> impl Iterator<Item = Page> + '_ {
    runs.iter().flat_map(|run| {
        (run.first..run.first + run.count).map(|number| Page {
            space: run.space,
            number,
        })
    })
}

/// Carries a migration's orders out.
struct Engine {
    memory: Memory,
    destination: BTreeMap<Page, u64>,
    migration: Migration,
    now: Duration,
    frozen: bool,
    bandwidth: u64,
    this_round: BTreeSet<Page>,
    live_pages: u64,
    live_memory: u64,
    scans: u32,
    orders: Vec<&'static str>,
}

impl Engine {
    fn new(habits: Habits, migration: Migration, bandwidth: u64) -> Self {
        Engine {
            memory: Memory::new(habits),
            destination: BTreeMap::new(),
            migration,
            now: Duration::ZERO,
            frozen: false,
            bandwidth,
            this_round: BTreeSet::new(),
            live_pages: 0,
            live_memory: 0,
            scans: 0,
            orders: Vec::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..100_000 {
            self.now += Duration::from_micros(300);
            let order = self.migration.poll(self.now);
            if !matches!(order, Order::Drop { .. }) {
                assert_eq!(order, self.migration.poll(self.now), "asked twice");
            }
            let progress = self.migration.progress(self.now);
            assert!(progress.round_left_pages <= progress.owed_pages, "{progress:?}");
            if order == Order::HandOver {
                return;
            }
            self.obey(order);
        }
        panic!("it does not end: {:?}", self.migration.rounds());
    }

    /// Pages that are not the same at both ends, with both contents.
    fn differences(&self) -> Vec<(Page, Option<u64>, Option<u64>)> {
        let (here, there) = (&self.memory.present, &self.destination);
        let pages: BTreeSet<&Page> = here.keys().chain(there.keys()).collect();
        let both = pages
            .into_iter()
            .map(|page| (*page, here.get(page).copied(), there.get(page).copied()));
        both.filter(|(_, here, there)| here != there).collect()
    }

    /// The residue follows: the destination must have nothing in its place, since it would never ask for it.
    fn residue_arrives(&mut self) {
        let residue: Vec<PageRun> = self.migration.residual().runs().collect();
        for page in pages_of(&residue) {
            let older = self.destination.insert(page, self.memory.present[&page]);
            assert_eq!(older, None, "{page:?} is there in an older version");
        }
    }

    fn obey(&mut self, order: Order) {
        let event = match order {
            Order::Scan => self.scan(),
            Order::ScanLast => self.scan_last(),
            Order::Send { runs, skip_rewritten } => self.send(&runs, skip_rewritten),
            Order::Drop { runs } => {
                self.orders.push("drop");
                self.destination
                    .retain(|page, _| !pages_of(&runs).any(|gone| gone == *page));
                return;
            }
            Order::Freeze => {
                self.orders.push("freeze");
                self.memory.live();
                self.frozen = true;
                self.live_memory = self.migration.progress(self.now).memory_pages;
                Event::Frozen
            }
            Order::Capture => {
                self.orders.push("capture");
                // Remote system calls write into the workload.
                self.memory.live();
                Event::Captured { state_bytes: 5000 }
            }
            Order::Wait { until } => {
                assert!(until > self.now, "a wait into the past");
                self.now = until;
                return;
            }
            Order::Sample => Event::Sampled { written_pages: 0 },
            Order::HandOver => unreachable!(),
        };
        self.migration.handle(self.now, event).unwrap();
    }

    fn scan(&mut self) -> Event {
        assert!(!self.frozen);
        self.orders.push("scan");
        self.scans += 1;
        self.this_round.clear();
        self.memory.live();
        if self.memory.habits.facts {
            self.tell_facts();
        }
        let scan = self.memory.scan(false);
        self.follow(&scan.lost);
        Event::Scanned(scan)
    }

    fn scan_last(&mut self) -> Event {
        self.orders.push("scan last");
        self.this_round.clear();
        let scan = self.memory.scan(true);
        self.follow(&scan.lost);
        Event::Scanned(scan)
    }

    fn follow(&mut self, lost: &[PageRun]) {
        for run in lost {
            let first = Page {
                space: run.space,
                number: run.first,
            };
            self.destination
                .retain(|page, _| *page < first || *page >= run.end());
        }
    }

    /// True or false, in time or late: knowledge must not be able to do harm.
    fn tell_facts(&mut self) {
        let facts = (0..5).map(|_| {
            let first = self.memory.any_page();
            let expiry = match self.memory.random.below(2) {
                0 => Expiry::WhenWritten,
                _ => Expiry::WhenLayoutChanges(self.memory.random.below(3)),
            };
            let run = PageRun {
                count: 1 + self.memory.random.below(50),
                ..run_of(first)
            };
            Fact {
                run,
                knowledge: Knowledge::Garbage,
                expiry,
            }
        });
        let facts = facts.collect();
        self.migration.handle(self.now, Event::Facts(facts)).unwrap();
        let generation = self.memory.random.below(3);
        self.migration
            .handle(self.now, Event::LayoutIs { generation })
            .unwrap();
    }

    fn send(&mut self, runs: &[PageRun], skip_rewritten: bool) -> Event {
        assert_eq!(skip_rewritten, !self.frozen);
        let pages: Vec<Page> = pages_of(runs).collect();
        assert!(!pages.is_empty() && pages.len() as u64 <= Migration::BATCH_PAGES_MAX);
        let mut sent = Sent::default();
        for piece in pages.chunks(64) {
            if !self.frozen {
                self.memory.live();
            }
            piece.iter().for_each(|&page| self.send_page(page, &mut sent));
        }
        sent.wire_bytes = sent.wire_bytes.max(FRAME_BYTES);
        sent.busy = Duration::from_secs_f64(sent.wire_bytes as f64 / self.bandwidth as f64);
        self.now += sent.busy;
        Event::Sent(sent)
    }

    fn send_page(&mut self, page: Page, sent: &mut Sent) {
        let memory = &mut self.memory;
        let content = memory.present.get(&page).copied();
        let fails = !self.frozen && memory.random.chance(memory.habits.failing_percent);
        if !self.frozen && memory.written.contains(&page) {
            sent.rewritten.push(run_of(page));
            return;
        }
        if fails {
            sent.failed.push(run_of(page));
            return;
        }
        assert!(self.this_round.insert(page), "{page:?} twice in a round");
        match content {
            // A hole reads as zeros.
            None | Some(0) => sent.zero.push(run_of(page)),
            Some(_) => {
                sent.wire_bytes += PAGE_SIZE;
                self.live_pages += u64::from(!self.frozen);
            }
        }
        self.destination.insert(page, content.unwrap_or(0));
    }
}

fn habits() -> impl Values<Value = Habits> {
    (
        any::<u64>(),
        32u64..1200,
        prop_oneof![Just(0u64), 1u64..8, 8u64..300],
        0u64..100,
        0u64..30,
        any::<bool>(),
    )
        .prop_map(
            |(seed, pages, changes, hot_percent, failing_percent, facts)| Habits {
                seed,
                pages,
                changes,
                hot_percent,
                failing_percent,
                facts,
            },
        )
}

fn limits() -> impl Values<Value = Limits> {
    (
        0u64..200,
        0u32..12,
        0u32..400,
        prop::option::of(100_000u64..50_000_000),
    )
        .prop_map(
            |(downtime_ms, rounds_max, traffic_percent_max, bandwidth_max)| Limits {
                downtime_max: Duration::from_millis(downtime_ms),
                rounds_max,
                traffic_percent_max,
                bandwidth_max,
            },
        )
}

fn migration(strategy: impl Strategy + 'static, limits: Limits) -> Migration {
    Migration::new(Box::new(strategy), limits, Hints::default())
}

fn check_limits(engine: &Engine, limits: &Limits) {
    let rounds = engine.migration.rounds();
    let live: Vec<_> = rounds.iter().filter(|round| !round.frozen).collect();
    assert!(live.len() as u64 <= u64::from(limits.rounds_max));
    let percent = u64::from(limits.traffic_percent_max);
    assert!(engine.live_pages * 100 <= engine.live_memory * percent);
    assert_eq!(
        live.iter().map(|round| round.pages_sent).sum::<u64>(),
        engine.live_pages
    );
    if let Some(max) = limits.bandwidth_max {
        let bytes: u64 = rounds.iter().map(|round| round.wire_bytes).sum();
        let batch = (Migration::BATCH_PAGES_MAX * PAGE_SIZE).min((max / 10).max(PAGE_SIZE)) + FRAME_BYTES;
        assert!(bytes as f64 <= max as f64 * engine.now.as_secs_f64() + batch as f64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn precopy_brings_every_page_and_keeps_the_limits(habits in habits(), limits in limits(), mb in 1u64..2000) {
        let mut engine = Engine::new(habits, migration(PreCopy::default(), limits), mb * 1_000_000);
        engine.run();
        prop_assert_eq!(engine.differences(), vec![]);
        prop_assert!(engine.migration.stop_reason().is_some());
        check_limits(&engine, &limits);
    }

    #[test]
    fn stopcopy_brings_every_page_without_a_running_scan(habits in habits(), limits in limits()) {
        let mut engine = Engine::new(habits, migration(StopCopy, limits), 100_000_000);
        engine.run();
        prop_assert_eq!(engine.differences(), vec![]);
        prop_assert_eq!(&engine.orders, &["freeze", "capture", "scan last"]);
        prop_assert_eq!(engine.migration.rounds().len(), 1);
    }

    #[test]
    fn postcopy_sends_nothing_before_the_start_and_everything_is_residue(habits in habits(), limits in limits()) {
        let mut engine = Engine::new(habits, migration(PostCopy, limits), 100_000_000);
        engine.run();
        prop_assert_eq!(&engine.orders, &["scan", "freeze", "capture", "scan last"]);
        prop_assert_eq!(engine.migration.rounds().len(), 0);
        prop_assert!(engine.destination.is_empty());
        prop_assert_eq!(engine.migration.stop_reason(), Some(StopReason::Residue));
        engine.residue_arrives();
        prop_assert_eq!(engine.differences(), vec![]);
    }

    #[test]
    fn hybrid_and_its_residue_bring_every_page_and_keep_the_limits(
        habits in habits(), limits in limits(), passes in prop::option::of(0u32..5), mb in 1u64..2000,
    ) {
        let passes = passes.map_or(Passes::WhileProgress, Passes::Exactly);
        let mut engine = Engine::new(habits, migration(Hybrid::new(passes), limits), mb * 1_000_000);
        engine.run();
        check_limits(&engine, &limits);
        let rounds = engine.migration.rounds();
        prop_assert!(rounds.iter().all(|round| !round.frozen), "no last pages");
        if let Passes::Exactly(passes) = passes {
            prop_assert!(rounds.len() as u32 <= passes);
        }
        engine.residue_arrives();
        prop_assert_eq!(engine.differences(), vec![]);
    }

    #[test]
    fn without_limits_hybrid_still_ends_while_it_makes_progress(habits in habits(), mb in 1u64..100) {
        let limits = Limits {
            downtime_max: Duration::ZERO,
            rounds_max: u32::MAX,
            traffic_percent_max: u32::MAX,
            bandwidth_max: None,
        };
        let strategy = Hybrid::new(Passes::WhileProgress);
        let mut engine = Engine::new(habits, migration(strategy, limits), mb * 1_000_000);
        engine.run();
        let stop = engine.migration.stop_reason();
        prop_assert!(matches!(stop, Some(StopReason::Residue | StopReason::NothingDirty)), "{:?}", stop);
    }

    #[test]
    fn without_limits_precopy_still_ends(habits in habits(), mb in 1u64..100) {
        let limits = Limits {
            downtime_max: Duration::ZERO,
            rounds_max: u32::MAX,
            traffic_percent_max: u32::MAX,
            bandwidth_max: None,
        };
        let mut engine = Engine::new(habits, migration(PreCopy::default(), limits), mb * 1_000_000);
        engine.run();
        let stop = engine.migration.stop_reason();
        prop_assert!(matches!(stop, Some(StopReason::NoProgress | StopReason::NothingDirty)), "{:?}", stop);
    }
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first,
        count,
    }
}

fn written(runs: &[PageRun]) -> Event {
    Event::Scanned(Scan {
        written: runs.to_vec(),
        ..Scan::default()
    })
}

fn sent(wire_bytes: u64, busy_ms: u64) -> Event {
    Event::Sent(Sent {
        wire_bytes,
        busy: Duration::from_millis(busy_ms),
        ..Sent::default()
    })
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Up to the state in which the last scan is due.
fn freeze(migration: &mut Migration) {
    for (order, event) in [
        (Order::Freeze, Event::Frozen),
        (Order::Capture, Event::Captured { state_bytes: 1 }),
    ] {
        assert_eq!(migration.poll(ms(0)), order);
        migration.handle(ms(0), event).unwrap();
    }
    assert_eq!(migration.poll(ms(0)), Order::ScanLast);
}

#[test]
fn prediction_is_owed_and_state_over_the_busy_bandwidth_and_a_fixed_cost() {
    let mut m = migration(PreCopy::default(), Limits::default());
    m.handle(ms(0), written(&[run(0, 4096)])).unwrap();
    assert_eq!(
        m.progress(ms(0)).predicted_downtime,
        None,
        "nothing was measured yet"
    );
    assert!(matches!(m.poll(ms(0)), Order::Send { .. }));
    // 16 MiB kept the link busy for 160 ms of the 900 that the batch took: 100 MiB/s.
    m.handle(ms(900), sent(16 << 20, 160)).unwrap();
    // 10 MiB written within a second, and 512 KiB of state: 105 ms and 20 ms.
    m.handle(ms(1000), written(&[run(0, 2560)])).unwrap();
    let progress = m.progress(ms(1000));
    assert_eq!(progress.dirty_rate, Some(10 << 20));
    assert_eq!(progress.bandwidth, Some(100 << 20));
    assert_eq!(progress.predicted_downtime.unwrap().as_millis(), 125);
    assert_eq!(progress.left.unwrap().as_millis(), 111);
}

#[test]
fn it_freezes_at_the_first_scan_whose_prediction_is_within_the_limit() {
    let mut m = migration(
        PreCopy::default(),
        Limits {
            downtime_max: ms(126),
            ..Limits::default()
        },
    );
    m.handle(ms(0), written(&[run(0, 4096)])).unwrap();
    m.poll(ms(0));
    m.handle(ms(900), sent(16 << 20, 160)).unwrap();
    m.handle(ms(1000), written(&[run(0, 2560)])).unwrap();
    assert_eq!(m.poll(ms(1000)), Order::Freeze);
    assert_eq!(m.stop_reason(), Some(StopReason::PredictedDowntime));
}

#[test]
fn the_traffic_limit_ends_a_round_in_the_middle() {
    let limits = Limits {
        traffic_percent_max: 50,
        ..Limits::default()
    };
    let mut m = migration(PreCopy::default(), limits);
    m.handle(ms(0), written(&[run(0, 6000)])).unwrap();
    let order = Order::Send {
        runs: vec![run(0, 3000)],
        skip_rewritten: true,
    };
    assert_eq!(m.poll(ms(0)), order);
    m.handle(ms(1), sent(3000 * PAGE_SIZE, 1)).unwrap();
    assert_eq!(m.poll(ms(1)), Order::Freeze);
    assert_eq!(
        (m.stop_reason(), m.rounds().len()),
        (Some(StopReason::Traffic), 1)
    );
}

#[test]
fn a_bandwidth_limit_makes_small_batches_and_waits() {
    let limits = Limits {
        bandwidth_max: Some(40 * PAGE_SIZE),
        ..Limits::default()
    };
    let mut m = migration(PreCopy::default(), limits);
    m.handle(ms(0), written(&[run(0, 6)])).unwrap();
    let batch = |first| Order::Send {
        runs: vec![run(first, 4)],
        skip_rewritten: true,
    };
    assert_eq!(m.poll(ms(0)), batch(0));
    m.handle(ms(10), sent(4 * PAGE_SIZE, 1)).unwrap();
    assert_eq!(m.poll(ms(10)), Order::Wait { until: ms(100) });
    // What a late caller did not use is not made up for.
    assert!(matches!(m.poll(ms(500)), Order::Send { .. }));
    m.handle(ms(510), sent(2 * PAGE_SIZE, 1)).unwrap();
    m.handle(ms(511), written(&[run(0, 6)])).unwrap();
    assert_eq!(m.poll(ms(512)), Order::Wait { until: ms(550) });
}

#[test]
fn events_that_answer_nothing_are_refused_and_change_nothing() {
    let mut m = migration(PreCopy::default(), Limits::default());
    for event in [sent(0, 0), Event::Frozen, Event::Captured { state_bytes: 0 }] {
        let error = m.handle(ms(0), event).unwrap_err();
        assert!(
            matches!(
                error,
                MigrationError::Unexpected {
                    phase: Phase::Scan,
                    ..
                }
            ),
            "{error}"
        );
    }
    let too_long = m.handle(ms(0), written(&[run(0, u64::MAX)])).unwrap_err();
    assert!(matches!(too_long, MigrationError::Run(_)));
    assert_eq!(m.poll(ms(0)), Order::Scan);
    m.handle(ms(0), written(&[run(0, 1)])).unwrap();
    assert!(m.handle(ms(0), sent(0, 0)).is_err(), "nothing was ordered yet");
}

#[test]
fn what_cannot_be_read_while_frozen_ends_the_migration() {
    let mut m = migration(StopCopy, Limits::default());
    freeze(&mut m);
    assert_eq!(m.handle(ms(0), written(&[])), Err(MigrationError::PresentMissing));
    let scan = Scan {
        present: Some(vec![run(7, 2)]),
        ..Scan::default()
    };
    m.handle(ms(0), Event::Scanned(scan)).unwrap();
    assert!(matches!(
        m.poll(ms(0)),
        Order::Send {
            skip_rewritten: false,
            ..
        }
    ));
    let failed = Event::Sent(Sent {
        failed: vec![run(8, 1)],
        ..Sent::default()
    });
    let page = Page {
        space: SpaceId(0),
        number: 8,
    };
    assert_eq!(m.handle(ms(0), failed), Err(MigrationError::Unreadable { page }));
}

#[test]
fn an_empty_workload_is_handed_over_without_a_page() {
    let mut m = migration(PreCopy::default(), Limits::default());
    m.handle(ms(0), written(&[])).unwrap();
    freeze(&mut m);
    m.handle(
        ms(0),
        Event::Scanned(Scan {
            present: Some(vec![]),
            ..Scan::default()
        }),
    )
    .unwrap();
    assert_eq!(m.poll(ms(0)), Order::HandOver);
    assert_eq!(m.stop_reason(), Some(StopReason::NothingDirty));
}

#[test]
fn hybrid_hands_over_after_a_pass_and_has_older_copies_dropped() {
    let mut m = migration(Hybrid::default(), Limits::default());
    m.handle(ms(0), written(&[run(0, 10)])).unwrap();
    assert!(matches!(m.poll(ms(0)), Order::Send { .. }));
    m.handle(ms(1), sent(10 * PAGE_SIZE, 1)).unwrap();
    m.handle(ms(2), written(&[run(3, 2)])).unwrap();
    assert_eq!(m.stop_reason(), Some(StopReason::Residue));
    // The residue does not travel while it is frozen: the state alone and the fixed cost.
    let downtime = m.progress(ms(2)).predicted_downtime.unwrap();
    assert_eq!(
        downtime,
        ms(20) + Duration::from_secs_f64((512 << 10) as f64 / (10_000.0 * PAGE_SIZE as f64))
    );
    freeze(&mut m);
    assert!(m.residual().is_empty(), "not known yet");
    // 4 was written, 12 appeared, 9 is gone.
    let last = Scan {
        written: vec![run(4, 1)],
        present: Some(vec![run(0, 9), run(12, 1)]),
        ..Scan::default()
    };
    m.handle(ms(3), Event::Scanned(last)).unwrap();
    let runs = vec![run(3, 2), run(9, 1)];
    assert_eq!(m.poll(ms(3)), Order::Drop { runs });
    assert_eq!(m.poll(ms(3)), Order::HandOver);
    assert_eq!(m.residual().runs().collect::<Vec<_>>(), [run(3, 2), run(12, 1)]);
    assert_eq!((m.rounds().len(), m.progress(ms(3)).owed_pages), (1, 3));
}

#[test]
fn postcopy_sends_what_cannot_be_left_behind_before_the_start() {
    let mut m = migration(PostCopy, Limits::default());
    let scan = |frozen: bool, pages: &[PageRun]| {
        Event::Scanned(Scan {
            written: pages.to_vec(),
            present: frozen.then(|| vec![run(0, 20)]),
            urgent: vec![run(4, 4), run(100, 9)],
            ..Scan::default()
        })
    };
    assert_eq!(m.poll(ms(0)), Order::Scan);
    m.handle(ms(0), scan(false, &[run(0, 20)])).unwrap();
    let Order::Send { runs, skip_rewritten } = m.poll(ms(0)) else {
        panic!("no pass");
    };
    assert_eq!((runs.as_slice(), skip_rewritten), ([run(4, 4)].as_slice(), true));
    m.handle(ms(1), Event::Sent(Sent::default())).unwrap();
    assert_eq!(
        m.poll(ms(1)),
        Order::Scan,
        "once more, to know what was written meanwhile"
    );
    m.handle(ms(1), scan(false, &[])).unwrap();
    assert_eq!(m.poll(ms(1)), Order::Freeze);
    m.handle(ms(2), Event::Frozen).unwrap();
    m.handle(ms(2), Event::Captured { state_bytes: 9 }).unwrap();
    // Two of them were written again.
    m.handle(ms(3), scan(true, &[run(6, 2)])).unwrap();
    let mut order = m.poll(ms(3));
    if let Order::Drop { runs } = &order {
        assert_eq!(runs, &[run(6, 2)], "the older copies");
        order = m.poll(ms(3));
    }
    let Order::Send { runs, skip_rewritten } = order else {
        panic!("no last pages");
    };
    assert_eq!((runs.as_slice(), skip_rewritten), ([run(6, 2)].as_slice(), false));
    m.handle(ms(4), Event::Sent(Sent::default())).unwrap();
    assert_eq!(m.poll(ms(4)), Order::HandOver);
    assert_eq!(m.residual().runs().collect::<Vec<_>>(), [run(0, 4), run(8, 12)]);
}

#[test]
fn masked_pages_are_left_out_of_rounds_and_decided_by_the_last_scan() {
    let mut m = migration(PreCopy::default(), Limits::default());
    let fact = Fact {
        run: run(2, 3),
        knowledge: Knowledge::Free,
        expiry: Expiry::WhenLayoutChanges(1),
    };
    m.handle(ms(0), Event::Facts(vec![fact])).unwrap();
    m.handle(ms(0), written(&[run(0, 8)])).unwrap();
    let runs = vec![run(0, 2), run(5, 3)];
    assert_eq!(
        m.poll(ms(0)),
        Order::Send {
            runs,
            skip_rewritten: true
        }
    );
    m.handle(ms(1), sent(5 * PAGE_SIZE, 1)).unwrap();
    m.handle(ms(2), written(&[])).unwrap();
    freeze(&mut m);
    let present = Some(vec![run(0, 3), run(5, 3)]);
    m.handle(
        ms(3),
        Event::Scanned(Scan {
            present,
            ..Scan::default()
        }),
    )
    .unwrap();
    assert_eq!(
        m.poll(ms(3)),
        Order::Send {
            runs: vec![run(2, 1)],
            skip_rewritten: false
        }
    );
}
