//! Which heap regions to collect before a snapshot, what of the heap need not travel then, and when to take the snapshots.
//!
//! After ALMA (Bruno and Ferreira, "ALMA: GC-assisted JVM Live Migration for Java Server Applications", Middleware 2016):
//! sections 3.2 to 3.4 and 5.7. The numbers in brackets are those of its equations. Bandwidths and dirty rates are in
//! bytes per second.

use alloc::vec::Vec;
use core::time::Duration;

use crate::estimate::time_for;
use crate::pages::{PageRun, Pages, SpaceId, PAGE_SIZE, RUN_PAGES_MAX};

mod snapshots;

pub use snapshots::{CollectLimits, SnapshotEvent, SnapshotOrder, Snapshots, Unexpected, SNAPSHOTS_MAX};

/// Regions that are looked at most; G1 makes about 2048 of a heap. Regions beyond are neither collected nor left out.
pub const REGIONS_MAX: usize = 1 << 16;

/// A heap is nearly full from this share of its size on. The paper gives no number; this is where G1 has nothing left
/// but its reserve for survivors (`G1ReservePercent`, 10).
pub const NEARLY_FULL_PERCENT: u64 = 90;

/// A region of the heap, as the collector describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Address of its first byte.
    pub start: u64,
    /// Its size.
    pub size_bytes: u64,
    /// So much was allocated in it, from its start on: objects, live or dead.
    pub used_bytes: u64,
    /// So much of that would be gained by collecting it. An estimate.
    pub dead_bytes: u64,
    /// How long collecting it takes. An estimate.
    pub cost: Duration,
    /// It had live data when an earlier snapshot of this migration was taken.
    pub had_live_in_snapshot: bool,
}

impl Region {
    /// GCRate(r) = dead(r) / cost(r), in bytes per second (4). Infinite if it costs nothing.
    pub fn gc_rate(&self) -> f64 {
        match self.dead() {
            0 => 0.0,
            dead => dead as f64 / self.cost.as_secs_f64(),
        }
    }

    /// GCRate(r) > NetBandwidth, the condition of (5), without rounding: dead > bandwidth * cost.
    fn collects_faster_than(&self, bandwidth: u64) -> bool {
        let in_that_time = u128::from(bandwidth).checked_mul(self.cost.as_nanos());
        in_that_time.is_some_and(|bytes| u128::from(self.dead()) * NANOS > bytes)
    }

    /// Collecting cannot gain more than there is.
    fn dead(&self) -> u64 {
        self.dead_bytes.min(self.used_bytes)
    }
}

const NANOS: u128 = 1_000_000_000;

/// The regions to collect: CS. Indexes into the list it was chosen from, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectionSet(pub Vec<usize>);

impl CollectionSet {
    /// CS = { r : GCRate(r) > NetBandwidth } (5). The paper's introduction says once that the rate should be *lower* than the
    /// bandwidth; its sections 3.2 and 5.6 and the equation say greater, and only that makes (3) small.
    ///
    /// Regions that had live data in an earlier snapshot are left out: to collect one copies what was sent
    /// already (3.4.2). A heap that is nearly full lets all of them be collected.
    pub fn choose(heap: &[Region], bandwidth: u64) -> Self {
        let any = is_nearly_full(heap);
        let wanted =
            |region: &Region| (any || !region.had_live_in_snapshot) && region.collects_faster_than(bandwidth);
        let known = heap.iter().take(REGIONS_MAX).enumerate();
        CollectionSet(
            known
                .filter(|(_, region)| wanted(region))
                .map(|(i, _)| i)
                .collect(),
        )
    }

    fn of<'a>(&'a self, heap: &'a [Region]) -> impl Iterator<Item = &'a Region> {
        self.0.iter().filter_map(|&i| heap.get(i))
    }

    /// Data = the used bytes of the heap - the dead ones of CS (1): what is to be sent.
    pub fn data_bytes(&self, heap: &[Region]) -> u64 {
        let used = sum(heap.iter().map(|region| region.used_bytes));
        used.saturating_sub(sum(self.of(heap).map(Region::dead)))
    }

    /// GCCost = the sum of the costs of CS (2).
    pub fn gc_cost(&self, heap: &[Region]) -> Duration {
        self.of(heap)
            .fold(Duration::ZERO, |sum, region| sum.saturating_add(region.cost))
    }

    /// MigrationCost = Data / NetBandwidth + GCCost (3). The set of (5) makes it as small as it can be.
    pub fn migration_cost(&self, heap: &[Region], bandwidth: u64) -> Duration {
        time_for(self.data_bytes(heap), bandwidth).saturating_add(self.gc_cost(heap))
    }
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// Whether [`NEARLY_FULL_PERCENT`] of the heap are used.
pub fn is_nearly_full(heap: &[Region]) -> bool {
    let used = sum(heap.iter().map(|region| region.used_bytes));
    let size = sum(heap.iter().map(|region| region.size_bytes));
    u128::from(used) * 100 >= u128::from(size) * u128::from(NEARLY_FULL_PERCENT)
}

/// The pages that hold no live data: of each region what lies behind its used part (3.3). True only inside the pause in which
/// the regions were described, after the collection; dead objects between live ones are not among them. A page that is
/// used in part is not free, nor is one that any other region says it uses, nor what lies beyond [`RUN_PAGES_MAX`] pages in all.
pub fn free_pages(space: SpaceId, heap: &[Region]) -> Pages {
    let mut free = Pages::new();
    // Over all regions, so that a confused list costs no more time than one long run.
    let mut room = RUN_PAGES_MAX;
    for region in heap.iter().take(REGIONS_MAX) {
        let Some(end) = region.start.checked_add(region.size_bytes) else {
            continue;
        };
        let first = region.start.div_ceil(PAGE_SIZE);
        let count = (end / PAGE_SIZE).saturating_sub(first);
        if count <= room {
            room -= count;
            // Cannot fail: it is short enough, and page numbers end far below 2^64.
            let _ = free.insert(PageRun { space, first, count });
        }
    }
    for region in heap {
        let first = region.start / PAGE_SIZE;
        let end = region.start.saturating_add(region.used_bytes).div_ceil(PAGE_SIZE);
        if region.used_bytes > 0 {
            let count = end - first;
            free.remove(PageRun { space, first, count });
        }
    }
    free
}

/// Downtime = SizeIncSnapshot / NetBandwidth (6).
pub fn downtime(size_inc_bytes: u64, bandwidth: u64) -> Duration {
    time_for(size_inc_bytes, bandwidth)
}

/// SizeIncSnapshot = SizeInitSnapshot / NetBandwidth * DirtyRate (7), in bytes. As printed, the fraction is a time: that in which
/// the snapshot before travels, and in which memory gets dirty. Sizes and rate without what is left out as garbage (5.7).
pub fn size_inc_snapshot(size_init_bytes: u64, bandwidth: u64, dirty_rate: u64) -> u64 {
    let bytes = u128::from(size_init_bytes) * u128::from(dirty_rate) / u128::from(bandwidth.max(1));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Downtime = SizeInitSnapshot / NetBandwidth^2 * DirtyRate (8), which is (7) in (6): for two snapshots.
pub fn downtime_of_two(size_init_bytes: u64, bandwidth: u64, dirty_rate: u64) -> Duration {
    let bandwidth = bandwidth.max(1) as f64;
    let seconds = size_init_bytes as f64 / bandwidth / bandwidth * dirty_rate as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
    use proptest::strategy::Strategy as Values;
    use std::vec;

    const MB: u64 = 1_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn region(used_mb: u64, dead_mb: u64, cost: Duration) -> Region {
        Region {
            size_bytes: 100 * MB,
            used_bytes: used_mb * MB,
            dead_bytes: dead_mb * MB,
            cost,
            ..Region::default()
        }
    }

    #[test]
    fn equations_1_to_5_by_hand() {
        // Rates of 800, 100 and 99 MB/s, and nothing to gain, at 100 MB/s.
        let heap = [
            region(10, 8, ms(10)),
            region(10, 5, ms(50)),
            region(20, 10, ms(101)),
            region(7, 0, Duration::ZERO),
        ];
        assert_eq!(heap[0].gc_rate(), 800e6);
        assert_eq!(heap[3].gc_rate(), 0.0);
        let set = CollectionSet::choose(&heap, 100 * MB);
        assert_eq!(set, CollectionSet(vec![0]), "greater, not equal");
        assert_eq!(set.data_bytes(&heap), 39 * MB);
        assert_eq!(set.gc_cost(&heap), ms(10));
        assert_eq!(set.migration_cost(&heap, 100 * MB), ms(400));
        assert_eq!(CollectionSet::choose(&heap, 99 * MB).0, [0, 1, 2]);
    }

    #[test]
    fn what_was_sent_is_not_collected_again_unless_the_heap_is_nearly_full() {
        let sent = Region {
            had_live_in_snapshot: true,
            ..region(89, 50, ms(1))
        };
        let fresh = region(90, 50, ms(1));
        assert_eq!(CollectionSet::choose(&[sent, fresh], MB).0, [1]);
        let full = Region {
            used_bytes: 90 * MB,
            ..sent
        };
        assert_eq!(CollectionSet::choose(&[full, fresh], MB).0, [0, 1]);
    }

    #[test]
    fn confused_regions_neither_panic_nor_gain_more_than_they_hold() {
        let odd = Region {
            start: u64::MAX - 5,
            size_bytes: u64::MAX,
            used_bytes: 10,
            dead_bytes: u64::MAX,
            cost: Duration::MAX,
            had_live_in_snapshot: false,
        };
        assert_eq!(CollectionSet::choose(&[odd], u64::MAX).0, []);
        let beyond = CollectionSet(vec![0, 7]);
        assert_eq!(beyond.data_bytes(&[odd, odd]), 10);
        assert_eq!(beyond.migration_cost(&[odd], 0), Duration::MAX);
        assert!(free_pages(SpaceId(0), &[odd]).is_empty());
        let longer_than_a_set_takes = Region { start: 0, ..odd };
        assert!(free_pages(SpaceId(0), &[longer_than_a_set_takes]).is_empty());
    }

    #[test]
    fn free_is_what_lies_wholly_behind_the_used_part() {
        let at = |start_page: u64, used_bytes| Region {
            start: start_page * PAGE_SIZE,
            size_bytes: 10 * PAGE_SIZE,
            used_bytes,
            ..Region::default()
        };
        let run = |first, count| PageRun {
            space: SpaceId(3),
            first,
            count,
        };
        let heap = [at(0, 2 * PAGE_SIZE), at(10, 1), at(20, 0), at(30, 10 * PAGE_SIZE)];
        let free = free_pages(SpaceId(3), &heap);
        assert_eq!(free.runs().collect::<Vec<_>>(), [run(2, 8), run(11, 19)]);
        // Two that lie over each other: what either uses is used.
        let free = free_pages(SpaceId(3), &[at(0, PAGE_SIZE), at(5, 2 * PAGE_SIZE)]);
        assert_eq!(free.runs().collect::<Vec<_>>(), [run(1, 4), run(7, 8)]);
        let askew = Region {
            start: 100,
            size_bytes: 3 * PAGE_SIZE,
            ..Region::default()
        };
        let free = free_pages(SpaceId(3), &[askew]);
        assert_eq!(free.runs().collect::<Vec<_>>(), [run(1, 2)]);
    }

    #[test]
    fn equations_6_to_8_by_hand() {
        // 500 MB at 125 MB/s take 4 s, in which 25 MB/s make 100 MB, which take 0.8 s.
        assert_eq!(size_inc_snapshot(500 * MB, 125 * MB, 25 * MB), 100 * MB);
        assert_eq!(downtime(100 * MB, 125 * MB), ms(800));
        assert_eq!(downtime_of_two(500 * MB, 125 * MB, 25 * MB), ms(800));
        assert_eq!(downtime_of_two(u64::MAX, 0, u64::MAX), Duration::MAX);
    }

    fn regions() -> impl Values<Value = Vec<Region>> {
        let region = (0..50u64, 0..50u64, 0..2000u64)
            .prop_map(|(used, dead, us)| region(used, dead, Duration::from_micros(us * 100)));
        prop::collection::vec(region, 0..9)
    }

    /// (3) times the bandwidth and 10^9, without rounding.
    fn exact_cost(set: &CollectionSet, heap: &[Region], bandwidth: u64) -> u128 {
        u128::from(set.data_bytes(heap)) * NANOS + set.gc_cost(heap).as_nanos() * u128::from(bandwidth)
    }

    proptest! {
        #[test]
        fn no_other_set_makes_the_migration_cheaper(heap in regions(), bandwidth in 1..2000u64) {
            let bandwidth = bandwidth * MB;
            let chosen = exact_cost(&CollectionSet::choose(&heap, bandwidth), &heap, bandwidth);
            let best = (0..1u32 << heap.len())
                .map(|bits| CollectionSet((0..heap.len()).filter(|i| bits >> i & 1 == 1).collect()))
                .map(|set| exact_cost(&set, &heap, bandwidth))
                .min();
            prop_assert_eq!(Some(chosen), best);
        }

        /// Figure 9: twice the cores dirty twice as fast.
        #[test]
        fn downtime_goes_with_the_dirty_rate_and_against_the_square_of_the_bandwidth(
            size in 1..4000u64, bandwidth in 10..5000u64, rate in 1..1000u64,
        ) {
            let (size, bandwidth, rate) = (size * MB, bandwidth * MB, rate * MB);
            let seconds = |bandwidth, rate| downtime_of_two(size, bandwidth, rate).as_secs_f64();
            let once = seconds(bandwidth, rate);
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-8;
            prop_assert!(near(seconds(bandwidth, 2 * rate), 2.0 * once));
            prop_assert!(near(seconds(2 * bandwidth, rate), once / 4.0));
            let by_6_and_7 = downtime(size_inc_snapshot(size, bandwidth, rate), bandwidth);
            prop_assert!((by_6_and_7.as_secs_f64() - once).abs() <= 1e-6 * once + 1e-6);
        }
    }
}
