//! How long faults took: a histogram of bounded size.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// Buckets for each power of two: 32, so that a bucket is at most 1/32 (3.1 %) of its values wide.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// The longest time that is told from longer ones: 2^42 ns, 73 minutes.
const NANOS_MAX: u64 = (1 << 42) - 1;
const BUCKETS: usize = ((42 - SUB_BITS as usize) + 1) * SUB as usize;

/// A log-linear histogram of times (the layout of HdrHistogram): exact below 32 ns, within 1/32 above, in 10 KB however many
/// times are added. Times from 71 minutes on are not told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
    sum: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            buckets: vec![0; BUCKETS],
            count: 0,
            max: Duration::ZERO,
            sum: Duration::ZERO,
        }
    }
}

impl Latencies {
    /// Adds one time.
    pub fn add(&mut self, time: Duration) {
        self.buckets[bucket(nanos(time))] += 1;
        self.count += 1;
        self.max = self.max.max(time);
        self.sum = self.sum.saturating_add(time);
    }

    /// Adds all times of `other`.
    pub fn merge(&mut self, other: &Latencies) {
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many times were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All times together: what threads have waited.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The longest time, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The time that `per_mille` of 1000 times do not exceed (nearest rank): 500 is the median, 990 is p99. At most 1/32 too
    /// long, never too short; zero if there is none.
    pub fn quantile(&self, per_mille: u64) -> Duration {
        let rank = u128::from(self.count) * u128::from(per_mille.min(1000));
        let rank = rank.div_ceil(1000).max(1);
        let mut seen = 0u128;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += u128::from(count);
            if seen >= rank {
                return match longest(index) {
                    Some(nanos) => self.max.min(Duration::from_nanos(nanos)),
                    None => self.max,
                };
            }
        }
        self.max
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).map_or(NANOS_MAX, |nanos| nanos.min(NANOS_MAX))
}

/// Below 32 a bucket each; above, the highest bit chooses 32 buckets and the five bits below it one of them.
fn bucket(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - SUB_BITS;
    (u64::from(shift) * SUB + (nanos >> shift)) as usize
}

/// The longest time of a bucket, in ns; none for the last one, which has no end.
fn longest(index: usize) -> Option<u64> {
    let index = index as u64;
    if index < SUB {
        return Some(index);
    }
    let shift = index / SUB - 1;
    (index < BUCKETS as u64 - 1).then(|| ((SUB + index % SUB + 1) << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::strategy::Strategy as Values;

    fn time() -> impl Values<Value = u64> {
        prop_oneof![0u64..100, 0u64..1_000_000, 0u64..100_000_000_000, 0..=NANOS_MAX]
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_times_within_a_32nd(
            mut times in prop::collection::vec(time(), 1..200), per_mille in 0u64..=1000,
        ) {
            let mut latencies = Latencies::default();
            times.iter().for_each(|&t| latencies.add(Duration::from_nanos(t)));
            times.sort_unstable();
            let rank = (times.len() as u64 * per_mille).div_ceil(1000).max(1);
            let exact = times[rank as usize - 1];
            let found = latencies.quantile(per_mille).as_nanos() as u64;
            prop_assert!(found >= exact && found <= exact + exact / 32, "{} for {}", found, exact);
            prop_assert_eq!(latencies.max().as_nanos() as u64, times[times.len() - 1]);
            prop_assert_eq!(latencies.quantile(1000), latencies.max());
            prop_assert_eq!(latencies.sum().as_nanos(), times.iter().map(|&t| u128::from(t)).sum::<u128>());
        }

        #[test]
        fn buckets_lie_one_after_the_other(nanos in time()) {
            let index = bucket(nanos);
            prop_assert!(index < BUCKETS && longest(index).is_none_or(|longest| nanos <= longest));
            prop_assert!(index == 0 || longest(index - 1).is_some_and(|longest| nanos > longest));
        }

        #[test]
        fn two_ends_merged_are_one(a in prop::collection::vec(time(), 0..50), b in prop::collection::vec(time(), 0..50)) {
            let of = |times: &[u64]| {
                let mut latencies = Latencies::default();
                times.iter().for_each(|&t| latencies.add(Duration::from_nanos(t)));
                latencies
            };
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }

    #[test]
    fn nothing_and_too_much_are_no_trap() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.quantile(990), latencies.count()), (Duration::ZERO, 0));
        latencies.add(Duration::MAX);
        latencies.add(Duration::MAX);
        assert_eq!(
            (latencies.quantile(990), latencies.sum()),
            (Duration::MAX, Duration::MAX)
        );
    }
}
