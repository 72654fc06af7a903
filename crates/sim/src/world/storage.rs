//! The storage network: page cache that the destination reads there, as `whimbrel_policy::teleport` divides it.

use std::collections::VecDeque;
use std::time::Duration;

use whimbrel_policy::migration::Event;
use whimbrel_policy::teleport::{Awaited, CacheRun, Fetch, Rates, Split, Teleport};
use whimbrel_policy::{PageRun, Pages, Scan, PAGE_SIZE};

use super::bits::{run, Bits};
use super::knowledge::Knowledge;
use super::link::Link;
use super::random::Random;
use super::{pages_in, Due, World};
use crate::scenario::{self, ModelKind, Scenario, StrategyKind};

/// Pages of a fetch, and fetches that are asked for at once: 4 MiB are under way.
const FETCH_PAGES: u64 = 256;
const FETCHES: usize = 4;
/// The network takes no fewer pages at once: each time costs a round.
const NETWORK_PAGES_MIN: u64 = 1024;
/// Bytes of the map of blocks for each of its runs: first page, pages, block.
const MAP_BYTES: u64 = 24;
/// Scattered blocks lie from here on, in so many.
const SCATTERED_FROM: u64 = 1 << 40;
const SCATTERED_BLOCKS: u64 = 1 << 36;

/// The disk behind the storage network. One read after the other.
#[derive(Debug)]
struct Disk {
    link: Link,
    seek: Duration,
    /// The block after the last one that was read.
    head: u64,
}

impl Disk {
    fn new(storage: &scenario::Storage) -> Self {
        Disk {
            link: Link::new(storage.rate.0, storage.latency.0, &storage.competing),
            seek: storage.seek.0,
            head: u64::MAX,
        }
    }

    /// Reads these runs. Returns when the last of them is there.
    fn read(&mut self, now: Duration, fetch: &Fetch) -> Duration {
        let asked = now + self.link.latency;
        for one in &fetch.runs {
            if one.block != self.head {
                self.link.hold(asked, self.seek);
            }
            self.link.send(asked, one.run.count * PAGE_SIZE);
            self.head = one.block + one.run.count;
        }
        self.link.free_at(asked) + self.link.latency
    }
}

/// Both sides of the list.
#[derive(Debug)]
pub(super) struct Storage {
    who: usize,
    split: Split,
    disk: Disk,
    /// From the first scan on, until the freeze.
    teleport: Option<Teleport>,
    awaited: Awaited,
    under_way: VecDeque<(Duration, Fetch)>,
    begun: Duration,
    events: Vec<Event>,
}

impl Storage {
    /// What a scenario asks for, if it does.
    pub fn new(scenario: &Scenario, who: usize) -> Option<Self> {
        let split = match scenario.migration.teleport {
            scenario::Teleport::Off => return None,
            scenario::Teleport::Ratio(ratio) => Split::Ratio(ratio),
            scenario::Teleport::Auto => Split::Automatic,
        };
        Some(Storage {
            who,
            split,
            disk: Disk::new(scenario.storage.as_ref()?),
            teleport: None,
            awaited: Awaited::default(),
            under_way: VecDeque::new(),
            begun: Duration::ZERO,
            events: Vec::new(),
        })
    }

    /// Makes the list: it goes to both sides, and its pages are masked.
    fn divide(&mut self, world: &mut World<'_>) {
        let list = cache(world);
        let (mut teleport, awaited) = match (Teleport::new(&list, self.split), Awaited::new(&list)) {
            (Ok(teleport), Ok(awaited)) => (teleport, awaited),
            (Err(refused), _) => return world.book.note(&refused.to_string()),
            (_, Err(refused)) => return world.book.note(&refused.to_string()),
        };
        world.link.send(world.now, list.len() as u64 * MAP_BYTES);
        // With R by hand the network's share is known at once, and goes with the first round.
        if matches!(self.split, Split::Ratio(_)) {
            teleport.next_for_network(u64::MAX);
        }
        self.events.push(Event::Facts(teleport.facts()));
        self.awaited = awaited;
        self.teleport = Some(teleport);
        self.begun = world.now;
        self.fetch(world);
    }

    /// Leaves the next so many pages to the network. False if it has had its share.
    fn give_network(&mut self, pages_max: u64) -> bool {
        let share = self
            .teleport
            .as_mut()
            .map(|teleport| teleport.next_for_network(pages_max))
            .unwrap_or_default();
        let has_some = !share.is_empty();
        if has_some {
            self.events.push(Event::Forgotten(share));
        }
        has_some
    }

    /// Asks for more.
    fn fetch(&mut self, world: &mut World<'_>) {
        let Some(teleport) = &mut self.teleport else {
            return;
        };
        while self.under_way.len() < FETCHES {
            let Some(fetch) = teleport.next_for_storage(FETCH_PAGES) else {
                break;
            };
            let at = self.disk.read(world.now, &fetch);
            world.at(at, Due::Tick(self.who));
            self.under_way.push_back((at, fetch));
        }
        world.book.storage_bytes = self.disk.link.bytes;
    }

    /// Places what has come, but for what the network was faster with, and tells the source.
    fn place(&mut self, world: &mut World<'_>) {
        while self.under_way.front().is_some_and(|(at, _)| *at <= world.now) {
            let (Some((_, fetch)), Some(teleport)) = (self.under_way.pop_front(), &mut self.teleport) else {
                return;
            };
            let mut placed = Pages::new();
            for one in &fetch.runs {
                match self.awaited.from_storage(one.run) {
                    Ok(pages) => placed.union_with(&pages),
                    Err(refused) => world.book.note(&refused.to_string()),
                }
            }
            let runs: Vec<_> = placed.runs().collect();
            self.awaited.gone(&runs);
            world.placed_from_storage(&runs);
            let fetched = teleport.fetched(fetch.id, &placed);
            self.events.push(Event::Fetched(fetched));
        }
    }

    /// How much the network takes at once.
    fn network_pages(&self, world: &World<'_>) -> u64 {
        let seconds = (world.now - self.begun).as_secs_f64().max(1e-3);
        let rates = Rates {
            network: (world.link.bytes as f64 / world.now.as_secs_f64().max(1e-3)) as u64,
            storage: (self.disk.link.bytes as f64 / seconds) as u64,
        };
        self.teleport
            .as_ref()
            .map_or(0, |teleport| teleport.network_pages(rates, NETWORK_PAGES_MIN))
    }
}

impl Knowledge for Storage {
    fn begin(&mut self, world: &mut World<'_>) -> Vec<Event> {
        let strategy = world.scenario.migration.strategy;
        if !matches!(strategy, StrategyKind::Precopy | StrategyKind::Hybrid) {
            world
                .book
                .note("without rounds nothing comes from storage: only precopy and hybrid have them");
        }
        Vec::new()
    }

    fn scanned(&mut self, world: &mut World<'_>) -> Vec<Event> {
        if self.teleport.is_none() {
            self.divide(world);
        }
        std::mem::take(&mut self.events)
    }

    /// The network gets its next share, or waits for the storage: a scan before that would find little and cost a round.
    fn before_scan(&mut self, world: &mut World<'_>) -> Vec<Event> {
        while self.teleport.is_some() && !world.is_over() {
            self.place(world);
            self.fetch(world);
            if self.give_network(self.network_pages(world)) {
                break;
            }
            let Some(next) = self.under_way.front().map(|one| one.0) else {
                break;
            };
            world.advance(next.max(world.now));
        }
        std::mem::take(&mut self.events)
    }

    fn live_scan(&mut self, world: &mut World<'_>, scan: &mut Scan) {
        let Some(teleport) = &mut self.teleport else {
            return;
        };
        match Pages::from_runs(&[&*scan.written, &*scan.lost].concat()) {
            Ok(written) => teleport.written(&written),
            Err(refused) => world.book.note(&refused.to_string()),
        }
    }

    /// What is under way comes too late.
    fn before_freeze(&mut self, _: &mut World<'_>) {
        self.teleport = None;
        self.under_way.clear();
    }

    fn left(&mut self, runs: &[PageRun]) {
        self.awaited.gone(runs);
    }

    fn tick(&mut self, world: &mut World<'_>) {
        self.place(world);
        self.fetch(world);
    }
}

impl World<'_> {
    /// These pages are at the destination as the storage has them: as they were before anybody wrote them.
    fn placed_from_storage(&mut self, runs: &[PageRun]) {
        self.book.outcome.pages_from_storage += pages_in(runs);
        if let Some(copies) = &mut self.copies {
            runs.iter()
                .flat_map(|run| run.first..run.first + run.count)
                .for_each(|page| copies[page as usize] = 1);
        }
    }
}

/// Pages that equal blocks, and where those lie. The part that is not scattered lies in order, one block behind the other.
fn cache(world: &World<'_>) -> Vec<CacheRun> {
    let clean = clean(world);
    let mut list = Vec::new();
    for (at, load) in world.scenario.guest.load.iter().enumerate() {
        if load.model != ModelKind::PageCache {
            continue;
        }
        let mut random = Random::new(world.scenario.seed, u64::MAX - at as u64);
        let scattered = load.scattered.map_or(0.0, |share| share.0);
        let mut runs = Vec::new();
        clean.runs_within(load.area.0, load.area.1, &mut runs);
        for page in runs.iter().flat_map(|run| run.first..run.first + run.count) {
            let block = match random.chance(scattered) {
                true => SCATTERED_FROM + random.below(SCATTERED_BLOCKS),
                false => page,
            };
            list.push(CacheRun {
                run: run(page, 1),
                block,
            });
        }
    }
    list
}

/// Pages that nobody has written, and that are there.
fn clean(world: &World<'_>) -> Bits {
    let mut clean = world.guest.present();
    for others in [&world.guest.written, &world.guest.marks.dirty, &world.guest.zero] {
        clean.subtract(others);
    }
    clean
}
