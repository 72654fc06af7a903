//! Which skip areas to use: JAVMM, "Future extensions", wants that decided from the sizes of the memory and the areas,
//! the network's speed and the dirty rate. The rule here is ours.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use crate::estimate::time_for;

/// Areas that are compared at most; others are not used.
pub const AREAS_MAX: usize = 1024;

/// An area that an application offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its size.
    pub bytes: u64,
    /// Bytes per second that are dirtied in it.
    pub dirty_rate: u64,
    /// Bytes of it that have to be sent all the same when it is final (what a collection leaves).
    pub kept_bytes: u64,
    /// What making it final costs (a minor collection).
    pub final_cost: Duration,
}

/// A pre-copy as it would be without skip areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    /// Size of the workload's memory, all areas included.
    pub bytes: u64,
    /// Bytes per second that are dirtied in it, all areas included.
    pub dirty_rate: u64,
    /// Bytes per second of the link.
    pub bandwidth: u64,
    /// Rounds at most, the last pages included.
    pub rounds_max: u32,
}

impl Copying {
    /// How long it takes: each round sends what was dirtied in the one before, and at most as much as that.
    pub fn time(&self) -> Duration {
        let left_share = (self.dirty_rate as f64 / self.bandwidth.max(1) as f64).min(1.0);
        let mut round_bytes = self.bytes as f64;
        let mut sent_bytes = 0.0;
        // More rounds than that add nothing: limits are far below.
        for _ in 0..self.rounds_max.min(1000) {
            sent_bytes += round_bytes;
            round_bytes *= left_share;
        }
        time_for(sent_bytes as u64, self.bandwidth)
    }

    fn without(&self, area: &Area) -> Copying {
        Copying {
            bytes: self.bytes.saturating_sub(area.bytes),
            dirty_rate: self.dirty_rate.saturating_sub(area.dirty_rate),
            ..*self
        }
    }

    /// By how much skipping an area shortens it; `None` if it does not.
    fn gain(&self, area: &Area) -> Option<Duration> {
        let kept = time_for(area.kept_bytes.min(area.bytes), self.bandwidth);
        let cost = area.final_cost.saturating_add(kept);
        let saved = self.time().saturating_sub(self.without(area).time());
        saved.checked_sub(cost).filter(|gain| !gain.is_zero())
    }
}

/// The areas, as indexes in ascending order, that save more time than they cost. The best one is taken first, and each
/// further one is judged by what it still saves then: with the writers out of the way the rest may travel quickly.
pub fn worth_using(copying: Copying, areas: &[Area]) -> Vec<usize> {
    let mut left = copying;
    let mut used = vec![false; areas.len().min(AREAS_MAX)];
    loop {
        let unused = (0..used.len()).filter(|&i| !used[i]);
        let gains = unused.filter_map(|i| left.gain(&areas[i]).map(|gain| (gain, i)));
        let Some((_, best)) = gains.max() else {
            return (0..used.len()).filter(|&i| used[i]).collect();
        };
        left = left.without(&areas[best]);
        used[best] = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, proptest};
    use proptest::strategy::Strategy as Values;

    const MB: u64 = 1_000_000;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_rounds_are_a_geometric_series() {
        let copying = Copying {
            bytes: 1000 * MB,
            dirty_rate: 50 * MB,
            bandwidth: 100 * MB,
            rounds_max: 3,
        };
        // 10 s, 5 s, 2.5 s.
        assert_eq!(copying.time(), seconds(17.5));
        let faster_than_the_link = Copying {
            dirty_rate: 900 * MB,
            ..copying
        };
        assert_eq!(faster_than_the_link.time(), seconds(30.0));
    }

    #[test]
    fn a_large_young_generation_is_worth_a_collection_and_a_small_quiet_cache_is_not() {
        // derby of JAVMM: 2 GB, Gigabit, a young generation of 1024 MB of which 97 % are garbage.
        let copying = Copying {
            bytes: 2048 * MB,
            dirty_rate: 200 * MB,
            bandwidth: 117 * MB,
            rounds_max: 5,
        };
        let young = Area {
            bytes: 1024 * MB,
            dirty_rate: 190 * MB,
            kept_bytes: 31 * MB,
            final_cost: seconds(0.9),
        };
        let cache = Area {
            bytes: MB,
            dirty_rate: 0,
            kept_bytes: 0,
            final_cost: seconds(0.5),
        };
        assert_eq!(worth_using(copying, &[cache, young]), [1]);
        // Once the link is fast enough, the collection costs more than it saves.
        let fast = Copying {
            bandwidth: 5000 * MB,
            ..copying
        };
        assert_eq!(worth_using(fast, &[cache, young]), []);
    }

    #[test]
    fn skip_if_saved_is_more_than_cost_and_not_if_it_is_the_same() {
        let copying = Copying {
            bytes: 1000 * MB,
            dirty_rate: 0,
            bandwidth: 100 * MB,
            rounds_max: 2,
        };
        let area = |cost| Area {
            bytes: 200 * MB,
            dirty_rate: 0,
            kept_bytes: 50 * MB,
            final_cost: seconds(cost),
        };
        // It saves 2 s, and 0.5 s are spent on what is kept.
        assert_eq!(worth_using(copying, &[area(1.5)]), []);
        assert_eq!(worth_using(copying, &[area(1.499)]), [0]);
    }

    fn area() -> impl Values<Value = Area> {
        (0..500u64, 0..100u64, 0..500u64, 0..3000u64).prop_map(|(size, rate, kept, ms)| Area {
            bytes: size * MB,
            dirty_rate: rate * MB,
            kept_bytes: kept.min(size) * MB,
            final_cost: Duration::from_millis(ms),
        })
    }

    fn total(copying: Copying, areas: &[Area], used: &[usize]) -> Duration {
        let left = used.iter().fold(copying, |left, &i| left.without(&areas[i]));
        let paid = used.iter().map(|&i| {
            let kept = time_for(areas[i].kept_bytes, copying.bandwidth);
            areas[i].final_cost + kept
        });
        left.time() + paid.sum::<Duration>()
    }

    proptest! {
        #[test]
        fn the_choice_is_never_worse_than_none_and_no_area_more_would_help(
            areas in prop::collection::vec(area(), 0..6), bandwidth in 1..2000u64, rounds_max in 1..30u32,
        ) {
            let copying = Copying {
                bytes: 100 * MB + areas.iter().map(|a| a.bytes).sum::<u64>(),
                dirty_rate: 10 * MB + areas.iter().map(|a| a.dirty_rate).sum::<u64>(),
                bandwidth: bandwidth * MB,
                rounds_max,
            };
            let used = worth_using(copying, &areas);
            let time = total(copying, &areas, &used);
            let rounding = Duration::from_micros(1);
            prop_assert!(time <= copying.time() + rounding);
            for more in (0..areas.len()).filter(|i| !used.contains(i)) {
                let with: Vec<usize> = used.iter().copied().chain([more]).collect();
                prop_assert!(total(copying, &areas, &with) + rounding >= time);
            }
        }
    }
}
