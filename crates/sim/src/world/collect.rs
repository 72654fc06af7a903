//! Collections before snapshots: drives `whimbrel_policy::collect` with imagined heaps. A snapshot is a round's scan, or the freeze.

use std::time::Duration;

use whimbrel_policy::collect::{
    free_pages, CollectLimits, CollectionSet, Region, SnapshotEvent, SnapshotOrder, Snapshots,
};
use whimbrel_policy::{Pages, Scan, SpaceId, PAGE_SIZE};

use super::heap::Heap;
use super::knowledge::Knowledge;
use super::World;
use crate::scenario::Scenario;

/// How often it is looked whether the application has collected.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The heaps of a scenario.
#[derive(Debug)]
pub(super) struct Collections {
    snapshots: Snapshots,
    heaps: Vec<usize>,
    taken: u32,
    /// Pages without live data, inside the pause of the snapshot that is being taken.
    free: Pages,
}

impl Collections {
    pub fn new(scenario: &Scenario) -> Self {
        let policy = CollectLimits::default();
        let limits = CollectLimits {
            snapshots: scenario.migration.snapshots,
            ride_max: scenario.migration.ride.map_or(policy.ride_max, |time| time.0),
            ..policy
        };
        let is_heap = |&at: &usize| scenario.guest.load[at].model == crate::scenario::ModelKind::Heap;
        Collections {
            snapshots: Snapshots::new(limits),
            heaps: (0..scenario.guest.load.len()).filter(is_heap).collect(),
            taken: 0,
            free: Pages::new(),
        }
    }

    /// Waits for the pause in which the next snapshot is to be taken. The last one is the freeze's.
    fn snapshot(&mut self, world: &mut World<'_>, is_freeze: bool) {
        self.free = Pages::new();
        // What was sent has arrived whenever a scan is made.
        self.tell(world, SnapshotEvent::Arrived);
        while !world.is_over() {
            match self.snapshots.poll(world.now) {
                SnapshotOrder::Ride { until } => self.ride(world, until),
                SnapshotOrder::Force { .. } => self.force(world, is_freeze),
                SnapshotOrder::Take { last, in_pause, .. } => {
                    // The rounds may end before all snapshots were taken.
                    if last && !is_freeze {
                        return;
                    }
                    if in_pause {
                        self.free = self.free_pages(world);
                    }
                    self.taken += 1;
                    return self.tell(world, SnapshotEvent::Taken);
                }
                SnapshotOrder::AwaitArrival | SnapshotOrder::Resume => return,
            }
        }
    }

    fn tell(&mut self, world: &World<'_>, event: SnapshotEvent) {
        // An answer that is not waited for says nothing.
        let _ = self.snapshots.handle(world.now, event);
    }

    /// The application goes on until it collects by itself.
    fn ride(&mut self, world: &mut World<'_>, until: Duration) {
        let before = self.counts(world);
        while world.now < until && !world.is_over() {
            world.advance((world.now + LOOK_EVERY).min(until));
            if self.counts(world) != before {
                return self.tell(world, SnapshotEvent::Paused);
            }
        }
    }

    fn counts(&self, world: &mut World<'_>) -> Vec<u64> {
        let count = |&at: &usize| world.guest.models[at].heap().map_or(0, |heap| heap.collections);
        self.heaps.iter().map(count).collect()
    }

    /// Collects where that is faster than sending.
    fn force(&mut self, world: &mut World<'_>, is_freeze: bool) {
        let bandwidth = world.bandwidth();
        for at in self.heaps.clone() {
            let regions = world.guest.models[at]
                .heap()
                .map(|heap| regions(heap, self.taken > 0))
                .unwrap_or_default();
            let chosen = CollectionSet::choose(&regions, bandwidth);
            if chosen.0.is_empty() {
                continue;
            }
            let pause = world.collect_and_hold(at, Duration::ZERO);
            world.advance(world.now + pause);
            if !is_freeze {
                world.guest.release(at);
            }
        }
        self.tell(world, SnapshotEvent::Paused);
    }

    fn free_pages(&self, world: &mut World<'_>) -> Pages {
        let mut free = Pages::new();
        for &at in &self.heaps {
            if let Some(heap) = world.guest.models[at].heap() {
                free.union_with(&free_pages(SpaceId(0), &regions(heap, false)));
            }
        }
        free
    }
}

/// The young generation, its survivors, and the old generation, as far as they are used from their beginning on.
fn regions(heap: &Heap, is_old_sent: bool) -> Vec<Region> {
    let describe = |first: u64, pages: u64, used: u64, dead: u64, had_live_in_snapshot| Region {
        start: first * PAGE_SIZE,
        size_bytes: pages * PAGE_SIZE,
        used_bytes: used * PAGE_SIZE,
        dead_bytes: dead * PAGE_SIZE,
        cost: heap.cost(used - dead),
        had_live_in_snapshot,
    };
    let dead = |used: u64| (used as f64 * (1.0 - heap.survival)) as u64;
    let live = heap.survivors();
    let survivors = |at: usize| {
        let space = heap.survivor(at);
        let used = if space.first == live.first { live.pages } else { 0 };
        describe(space.first, space.pages, used, dead(used), false)
    };
    let eden = heap.eden;
    let old_dead = heap.old_used.saturating_sub(heap.old_live);
    vec![
        describe(
            eden.first,
            eden.pages,
            heap.eden_used,
            dead(heap.eden_used),
            false,
        ),
        survivors(0),
        survivors(1),
        describe(
            heap.old.first,
            heap.old.pages,
            heap.old_used,
            old_dead,
            is_old_sent,
        ),
    ]
}

impl Knowledge for Collections {
    fn before_scan(&mut self, world: &mut World<'_>) -> Vec<whimbrel_policy::Event> {
        self.free = Pages::new();
        if self.taken + 1 < world.scenario.migration.snapshots {
            self.snapshot(world, false);
        }
        Vec::new()
    }

    fn live_scan(&mut self, world: &mut World<'_>, scan: &mut Scan) {
        leave_out(world, &self.free, &mut scan.written);
        scan.lost.extend(self.free.runs());
    }

    fn before_freeze(&mut self, world: &mut World<'_>) {
        self.snapshot(world, true);
    }

    fn frozen_scan(&mut self, world: &mut World<'_>, scan: &mut Scan) {
        leave_out(world, &self.free, &mut scan.written);
        if let Some(present) = &mut scan.present {
            leave_out(world, &self.free, present);
        }
    }

    fn resumed(&mut self, world: &mut World<'_>) {
        self.heaps.iter().for_each(|&at| world.guest.release(at));
    }
}

fn leave_out(world: &mut World<'_>, free: &Pages, runs: &mut Vec<whimbrel_policy::PageRun>) {
    match Pages::from_runs(runs) {
        Ok(mut pages) => {
            pages.subtract(free);
            *runs = pages.runs().collect();
        }
        Err(refused) => world.book.note(&refused.to_string()),
    }
}
