//! Whole migrations with page cache on shared storage, in virtual time: the content at the destination is right whatever is written
//! meanwhile, and both networks end together.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use whimbrel_policy::teleport::{best_ratio, Awaited, CacheRun, Fetch, Rates, Split, Teleport};
use whimbrel_policy::{
    Event, Hints, Limits, Migration, Order, Page, PageRun, Pages, PreCopy, Scan, Sent, SpaceId, Strategy,
    PAGE_SIZE,
};

const CHUNK_PAGES: u64 = 64;

fn run(first: u64, count: u64) -> PageRun {
    PageRun {
        space: SpaceId(0),
        first,
        count,
    }
}

fn numbers(runs: &[PageRun]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|run| run.first..run.first + run.count)
}

fn set(numbers: impl IntoIterator<Item = u64>) -> Pages {
    let runs: Vec<_> = numbers.into_iter().map(|number| run(number, 1)).collect();
    Pages::from_runs(&runs).unwrap()
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
struct Plan {
    ordinary: u64,
    cache: u64,
    split: Split,
    /// Pages per second.
    rates: Rates,
    /// Of the pages, how many are written with each batch that is sent.
    writes: u64,
    /// Of 100 fetches, how many fail.
    failing_percent: u64,
    seed: u64,
}

/// Both ends, both networks and a clock. Contents are version numbers; a cache page begins with the version that storage has.
struct World {
    plan: Plan,
    random: u64,
    now: Duration,
    source: BTreeMap<u64, u64>,
    storage: BTreeMap<u64, u64>,
    written: BTreeSet<u64>,
    lost: Vec<PageRun>,
    destination: BTreeMap<u64, u64>,
    teleport: Teleport,
    awaited: Awaited,
    migration: Migration,
    /// Under way, with the time at which it is read.
    fetches: VecDeque<(Fetch, Duration)>,
    storage_end: Duration,
    network_end: Duration,
    version: u64,
}

impl World {
    fn new(plan: Plan, strategy: Box<dyn Strategy>) -> Self {
        let pages = plan.ordinary + plan.cache;
        let source: BTreeMap<_, _> = (0..pages).map(|page| (page, page)).collect();
        // Extents of eight pages, in another order on the disk than in memory.
        let block = |extent: u64| (extent * 7919 % 10_007) * 8;
        let extents = plan.ordinary..pages;
        let list: Vec<_> = extents
            .step_by(8)
            .map(|first| CacheRun {
                run: run(first, (pages - first).min(8)),
                block: block(first / 8),
            })
            .collect();
        let blocks = list
            .iter()
            .flat_map(|entry| (0..entry.run.count).map(|n| (entry.block + n, entry.run.first + n)));
        let limits = Limits {
            downtime_max: Duration::from_millis(30),
            ..Limits::default()
        };
        let hints = Hints {
            state_bytes: 0,
            bandwidth: Some(plan.rates.network * PAGE_SIZE),
            ..Hints::default()
        };
        World {
            plan,
            random: plan.seed | 1,
            now: Duration::ZERO,
            written: source.keys().copied().collect(),
            lost: Vec::new(),
            storage: blocks.collect(),
            source,
            destination: BTreeMap::new(),
            teleport: Teleport::new(&list, plan.split).unwrap(),
            awaited: Awaited::new(&list).unwrap(),
            migration: Migration::new(strategy, limits, hints),
            fetches: VecDeque::new(),
            storage_end: Duration::ZERO,
            network_end: Duration::ZERO,
            version: pages,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end.max(1)
    }

    fn live(&mut self) {
        for _ in 0..self.plan.writes {
            let page = self.below(self.plan.ordinary + self.plan.cache);
            self.version += 1;
            if self.below(20) == 0 {
                self.source.remove(&page);
                self.written.remove(&page);
                self.lost.push(run(page, 1));
            } else {
                self.source.insert(page, self.version);
                self.written.insert(page);
            }
        }
    }

    fn seconds(pages: u64, rate: u64) -> Duration {
        Duration::from_secs_f64(pages as f64 / rate as f64)
    }

    /// Storage works one fetch after the other, up to `until`.
    fn storage_until(&mut self, until: Duration) {
        loop {
            while self.fetches.len() < 2 {
                let Some(fetch) = self.teleport.next_for_storage(CHUNK_PAGES) else {
                    break;
                };
                let pages = fetch.runs.iter().map(|entry| entry.run.count).sum();
                let begun = self.fetches.back().map_or(self.storage_end, |last| last.1);
                self.fetches
                    .push_back((fetch, begun + Self::seconds(pages, self.plan.rates.storage)));
            }
            if self.fetches.front().is_none_or(|first| first.1 > until) {
                return;
            }
            let (fetch, at) = self.fetches.pop_front().unwrap();
            self.storage_end = at;
            self.read(&fetch);
        }
    }

    fn read(&mut self, fetch: &Fetch) {
        if self.below(100) < self.plan.failing_percent {
            self.teleport.failed(fetch.id);
            return;
        }
        let mut placed = Pages::new();
        for entry in &fetch.runs {
            let may = self.awaited.from_storage(entry.run).unwrap();
            for page in numbers(&may.runs().collect::<Vec<_>>()) {
                let content = self.storage[&(entry.block + page - entry.run.first)];
                self.destination.insert(page, content);
            }
            placed.union_with(&may);
        }
        self.awaited.gone(&placed.runs().collect::<Vec<_>>());
        let fetched = self.teleport.fetched(fetch.id, &placed);
        // Its word may come too late; then everything is as if it had never come.
        let _ = self.migration.handle(self.now, Event::Fetched(fetched));
    }

    fn before_scan(&mut self) {
        let rates = self.plan.rates;
        let share = match self.plan.split {
            Split::Automatic => self.teleport.network_pages(rates, CHUNK_PAGES),
            Split::Ratio(_) => u64::MAX,
        };
        let runs = self.teleport.next_for_network(share);
        if !runs.is_empty() {
            let event = Event::Forgotten(runs);
            self.migration.handle(self.now, event).unwrap();
        } else if let Some(&(_, at)) = self.fetches.front() {
            self.now = self.now.max(at);
            self.storage_until(self.now);
            if !self.teleport.is_done() {
                self.before_scan();
            }
        }
    }

    fn scan(&mut self, is_last: bool) {
        let lost = std::mem::take(&mut self.lost);
        let written = set(std::mem::take(&mut self.written));
        let mut void = written.clone();
        void.union_with(&Pages::from_runs(&lost).unwrap());
        // The list is made after the first scan, which counts everything as written.
        if !self.migration.rounds().is_empty() || is_last {
            self.teleport.written(&void);
        }
        self.awaited.gone(&lost);
        let gone: BTreeSet<_> = numbers(&lost).collect();
        self.destination.retain(|page, _| !gone.contains(page));
        let present = set(self.source.keys().copied());
        let scan = Scan {
            written: written.runs().collect(),
            lost,
            present: is_last.then(|| present.runs().collect()),
            ..Scan::default()
        };
        self.migration.handle(self.now, Event::Scanned(scan)).unwrap();
    }

    fn send(&mut self, runs: &[PageRun], skip_rewritten: bool) {
        let rewritten: Vec<_> = numbers(runs)
            .filter(|page| skip_rewritten && self.written.contains(page))
            .map(|page| run(page, 1))
            .collect();
        let left_out: BTreeSet<_> = numbers(&rewritten).collect();
        let (mut pages, mut failed) = (0, Vec::new());
        let mut arrived = Vec::new();
        for page in numbers(runs).filter(|page| !left_out.contains(page)) {
            match self.source.get(&page) {
                Some(&content) => {
                    self.destination.insert(page, content);
                    arrived.push(run(page, 1));
                    pages += 1;
                }
                None => failed.push(run(page, 1)),
            }
        }
        self.awaited.gone(&arrived);
        let busy = Self::seconds(pages, self.plan.rates.network);
        self.now += busy;
        self.network_end = self.now;
        let sent = Sent {
            rewritten,
            failed,
            wire_bytes: pages * PAGE_SIZE,
            busy,
            ..Sent::default()
        };
        self.migration.handle(self.now, Event::Sent(sent)).unwrap();
    }

    /// Carries it all out, and what storage still had to read comes last of all.
    fn migrate(&mut self) {
        loop {
            self.storage_until(self.now);
            match self.migration.poll(self.now) {
                Order::Scan => {
                    // The first scan counts everything as written: facts come after it.
                    if self.migration.progress(self.now).round == 0 {
                        self.scan(false);
                        let facts = self.teleport.facts();
                        // It may be so small that it is frozen at once.
                        let _ = self.migration.handle(self.now, Event::Facts(facts));
                    } else {
                        self.before_scan();
                        self.scan(false);
                    }
                }
                Order::HandOver => break,
                order => self.carry_out(order),
            }
        }
        self.storage_until(Duration::MAX);
    }

    fn carry_out(&mut self, order: Order) {
        let event = match order {
            Order::Send { runs, skip_rewritten } => {
                self.send(&runs, skip_rewritten);
                if skip_rewritten {
                    self.live();
                }
                return;
            }
            Order::Drop { runs } => {
                let gone: BTreeSet<_> = numbers(&runs).collect();
                self.destination.retain(|page, _| !gone.contains(page));
                self.awaited.gone(&runs);
                return;
            }
            Order::Freeze => Event::Frozen,
            Order::Capture => Event::Captured { state_bytes: 0 },
            Order::ScanLast => {
                self.scan(true);
                return;
            }
            order => unreachable!("{order:?}"),
        };
        self.migration.handle(self.now, event).unwrap();
    }
}

fn plan(split: Split) -> Plan {
    Plan {
        ordinary: 2000,
        cache: 6000,
        split,
        rates: Rates {
            network: 10_000,
            storage: 4000,
        },
        writes: 0,
        failing_percent: 0,
        seed: 1,
    }
}

fn moved(plan: Plan) -> World {
    let mut world = World::new(plan, Box::new(PreCopy::default()));
    world.migrate();
    world
}

#[test]
fn both_networks_end_within_a_chunk_of_each_other_without_a_ratio() {
    for storage in [500, 4000, 10_000, 35_000] {
        let rates = Rates {
            network: 10_000,
            storage,
        };
        let world = moved(Plan {
            rates,
            ..plan(Split::Automatic)
        });
        assert_eq!(world.destination, world.source);
        // One chunk of the slower one, of which the next may be begun already.
        let chunk = World::seconds(2 * CHUNK_PAGES, storage.min(rates.network));
        let apart = world.storage_end.abs_diff(world.network_end);
        let done_together = apart <= chunk;
        // Storage that has all of the cache before the network has the rest cannot wait for it.
        let all = best_ratio(rates, 2000, 6000) >= 1.0;
        assert!(
            done_together || all,
            "{storage}: {:?} {:?}",
            world.storage_end,
            world.network_end
        );
        let rounds = world.migration.rounds().len();
        assert!(rounds < 15, "{rounds} rounds");
    }
}

#[test]
fn the_best_ratio_is_as_good_as_none_given_and_a_bad_one_is_worse_than_no_storage() {
    let total = |split| {
        let world = moved(plan(split));
        assert_eq!(world.destination, world.source, "{split:?}");
        world.storage_end.max(world.network_end).as_secs_f64()
    };
    let best = best_ratio(plan(Split::Automatic).rates, 2000, 6000);
    // By hand: 8000 pages over both ways at 14 000 pages/s; over the network alone at 10 000; all cache over storage at 4000.
    assert!((total(Split::Ratio(best)) - 0.571).abs() < 0.03);
    assert!((total(Split::Automatic) - 0.571).abs() < 0.06);
    assert!((total(Split::Ratio(0.0)) - 0.8).abs() < 0.01);
    assert!((total(Split::Ratio(1.0)) - 1.5).abs() < 0.05);
}

proptest! {
    #[test]
    fn whatever_is_written_meanwhile_the_destination_has_the_last_content(
        seed in any::<u64>(), writes in 0u64..300, ratio in proptest::option::of(0.0f64..=1.0),
        storage in 100u64..50_000, failing_percent in 0u64..60, ordinary in 1u64..600, cache in 1u64..1500,
        leaves_residue in any::<bool>(),
    ) {
        let plan = Plan {
            ordinary, cache, writes, failing_percent, seed,
            split: ratio.map_or(Split::Automatic, Split::Ratio),
            rates: Rates { network: 10_000, storage },
        };
        let strategy: Box<dyn Strategy> = match leaves_residue {
            true => Box::new(whimbrel_policy::Hybrid::default()),
            false => Box::new(PreCopy::default()),
        };
        let mut world = World::new(plan, strategy);
        world.migrate();
        for (&page, content) in &world.source {
            let at = Page { space: SpaceId(0), number: page };
            if world.migration.residual().contains(at) {
                prop_assert_eq!(world.destination.get(&page), None, "an older copy of page {}", page);
            } else {
                prop_assert_eq!(world.destination.get(&page), Some(content), "page {}", page);
            }
        }
        prop_assert!(world.destination.keys().all(|page| world.source.contains_key(page)));
    }
}
