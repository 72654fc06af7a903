//! How many pages a workload writes in how long a time.
//!
//! A page that is written a thousand times in an interval travels once, so the number of *distinct* pages grows with the interval
//! at first, and less and less as the interval approaches the time in which the working set is written once. One dirty rate cannot say
//! that; a few points of the curve can.

use alloc::vec::Vec;
use core::time::Duration;

use crate::pages::PAGE_SIZE;

/// Points that are kept at most.
const POINTS_MAX: usize = 64;
/// Growth in the second half of the longest interval over that in the first half from which on the curve counts as straight.
const STRAIGHT: f64 = 0.97;
/// A length of time in which every curve has come to its end, in halves of the longest interval.
const HALVES_MAX: f64 = 1e6;

/// What is to be believed of the time beyond the longest interval that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// No page is written any more that was not written before.
    Low,
    /// It levels off as it has begun to: `W * (1 - q^t)`, the law of uniformly random writes to `W` pages.
    Likely,
    /// It goes on as it did at the end of what was measured: the law of a sweep over memory.
    High,
}

/// Distinct pages written over the length of an interval. Never falls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirtyCurve {
    /// Seconds and pages, by seconds.
    points: Vec<(f64, f64)>,
}

impl DirtyCurve {
    /// In an interval of this length so many distinct pages were written.
    pub fn add(&mut self, interval: Duration, pages: u64) {
        let (seconds, pages) = (interval.as_secs_f64(), pages as f64);
        if seconds <= 0.0 {
            return;
        }
        if self.points.len() >= POINTS_MAX {
            self.thin_out();
        }
        let at = self.points.partition_point(|point| point.0 < seconds);
        self.points.insert(at, (seconds, pages));
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The longest interval that was measured.
    pub fn measured(&self) -> Duration {
        let seconds = self.points.last().map_or(0.0, |last| last.0);
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// The points: the length of an interval, and pages.
    pub fn points(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let point = |&(seconds, pages): &(f64, f64)| {
            (
                Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                pages as u64,
            )
        };
        self.points.iter().map(point)
    }

    /// Distinct pages that are written in an interval of so many seconds. 0 if nothing was measured.
    pub fn pages_in(&self, seconds: f64, belief: Belief) -> f64 {
        let Some(&(longest, _)) = self.points.last() else {
            return 0.0;
        };
        if seconds <= longest {
            return self.within(seconds.max(0.0));
        }
        let (half, whole) = (self.within(longest / 2.0), self.within(longest));
        let beyond = (seconds - longest) / (longest / 2.0);
        match belief {
            Belief::Low => whole,
            Belief::High => whole + (whole - half) * beyond,
            Belief::Likely => level_off(half, whole, beyond),
        }
    }

    /// Pages that are written again and again: where the curve ends. `None` if no end is to be seen.
    pub fn working_set_pages(&self) -> Option<f64> {
        let &(longest, _) = self.points.last()?;
        let (half, whole) = (self.within(longest / 2.0), self.within(longest));
        (whole <= 0.0 || growth(half, whole) < STRAIGHT).then(|| level_off(half, whole, HALVES_MAX))
    }

    /// Bytes per second over an interval of this length.
    pub fn rate_over(&self, interval: Duration) -> Option<u64> {
        let seconds = interval.as_secs_f64();
        (seconds > 0.0 && !self.is_empty())
            .then(|| (self.pages_in(seconds, Belief::Likely) * PAGE_SIZE as f64 / seconds) as u64)
    }

    /// On the line between two points. Two measurements of different times may contradict each other: the larger one counts from there on.
    fn within(&self, seconds: f64) -> f64 {
        let mut before = (0.0, 0.0);
        for &(at, pages) in &self.points {
            let here = (at, f64::max(pages, before.1));
            if seconds <= at {
                let share = (seconds - before.0) / (here.0 - before.0).max(f64::MIN_POSITIVE);
                return before.1 + (here.1 - before.1) * share.min(1.0);
            }
            before = here;
        }
        before.1
    }

    /// Leaves every second point and the last one.
    fn thin_out(&mut self) {
        let last = self.points.len().saturating_sub(1);
        let mut index = 0;
        self.points.retain(|_| {
            index += 1;
            index % 2 == 0 || index == last + 1
        });
    }
}

/// How much of the first half's pages the second half has brought: 1 for a straight line, 0 for a flat one.
fn growth(half: f64, whole: f64) -> f64 {
    if half <= 0.0 {
        return if whole > 0.0 { 1.0 } else { 0.0 };
    }
    ((whole - half) / half).clamp(0.0, 1.0)
}

/// After `halves` more halves, if each brings `growth` of what the one before it brought.
fn level_off(half: f64, whole: f64, halves: f64) -> f64 {
    let growth = growth(half, whole);
    if growth >= STRAIGHT {
        return whole + (whole - half) * halves;
    }
    let gain = (whole - half) * growth / (1.0 - growth);
    whole + gain * (1.0 - power(growth, halves.min(HALVES_MAX)))
}

/// `base` to the power of `exponent`, both not negative, `base` below 1. Between whole numbers on a line: `core` has no `powf`.
fn power(base: f64, exponent: f64) -> f64 {
    let mut whole = exponent as u64;
    let rest = exponent - whole as f64;
    let (mut result, mut square) = (1.0, base);
    while whole > 0 {
        if whole % 2 == 1 {
            result *= square;
        }
        square *= square;
        whole /= 2;
    }
    result * (1.0 + (base - 1.0) * rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, u64)]) -> DirtyCurve {
        let mut curve = DirtyCurve::default();
        for &(seconds, pages) in points {
            curve.add(Duration::from_secs_f64(seconds), pages);
        }
        curve
    }

    /// Uniformly random writes, 10,000 a second, to 20,000 pages: W * (1 - exp(-rate * t / W)).
    fn uniform(seconds: f64) -> f64 {
        20_000.0 * (1.0 - (-seconds / 2.0).exp())
    }

    #[test]
    fn between_points_it_is_a_line_and_before_the_first_one_from_zero() {
        let curve = curve(&[(1.0, 100), (3.0, 200)]);
        for (seconds, pages) in [(0.0, 0.0), (0.5, 50.0), (1.0, 100.0), (2.0, 150.0), (3.0, 200.0)] {
            assert_eq!(curve.pages_in(seconds, Belief::Likely), pages, "{seconds}");
        }
    }

    #[test]
    fn uniform_writes_are_foretold_from_a_short_look() {
        let seconds = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0];
        let points = seconds.map(|seconds| (seconds, uniform(seconds) as u64));
        let curve = curve(&points);
        for later in [4.0, 6.0, 10.0, 30.0] {
            let (truth, told) = (uniform(later), curve.pages_in(later, Belief::Likely));
            assert!((told / truth - 1.0).abs() < 0.05, "{later}: {told} for {truth}");
            assert!(curve.pages_in(later, Belief::Low) <= told);
            assert!(curve.pages_in(later, Belief::High) >= told);
        }
        let set = curve.working_set_pages().unwrap();
        assert!((set / 20_000.0 - 1.0).abs() < 0.05, "{set}");
    }

    #[test]
    fn a_sweep_goes_on_and_a_small_set_does_not_grow() {
        let sweep = curve(&[(0.5, 500), (1.0, 1000), (2.0, 2000)]);
        assert_eq!(sweep.pages_in(10.0, Belief::Likely), 10_000.0);
        assert_eq!(sweep.working_set_pages(), None);
        let small = curve(&[(0.1, 300), (1.0, 300), (2.0, 300)]);
        assert_eq!(small.pages_in(100.0, Belief::High), 300.0);
        assert_eq!(small.working_set_pages(), Some(300.0));
        let idle = curve(&[(1.0, 0)]);
        assert_eq!(idle.pages_in(9.0, Belief::High), 0.0);
        assert_eq!(idle.working_set_pages(), Some(0.0));
    }

    #[test]
    fn it_never_falls_and_keeps_a_limited_number_of_points() {
        let mut long = curve(&[(1.0, 100), (2.0, 50)]);
        assert_eq!(long.pages_in(2.0, Belief::Likely), 100.0);
        for i in 1..1000u64 {
            long.add(Duration::from_millis(i * 10), i * 10);
        }
        assert!(long.points.len() <= POINTS_MAX);
        assert_eq!(long.measured(), Duration::from_millis(9990));
        let mut before = 0.0;
        for i in 0..2000 {
            let pages = long.pages_in(f64::from(i) / 100.0, Belief::Likely);
            assert!(pages >= before, "{i}");
            before = pages;
        }
    }
}
