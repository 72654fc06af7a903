//! Which number is where.

use std::ops::RangeInclusive;

/// How numbers are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0 on.
    #[default]
    Linear,
    /// Each power of ten takes the same room. What is not above 0 is left out.
    Logarithmic,
}

/// Lines of the grid, about.
const GRID: f64 = 5.0;

/// What can be drawn beside 0: other numbers leave no room for calculations.
const SIZES: RangeInclusive<f64> = 1e-300..=1e300;

/// No axis has more marks than this, whatever the numbers.
const TICKS_MAX: i64 = 40;

/// From the lowest to the highest number.
pub(super) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    /// Room for these.
    pub(super) fn of(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let values = values.filter(|value| SIZES.contains(value));
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let high = if high > 0.0 { high } else { 1.0 };
        let (low, high) = match scale {
            Scale::Linear => (0.0, high),
            Scale::Logarithmic => {
                let decade = |value: f64, round: fn(f64) -> f64| 10_f64.powf(round(value.log10()));
                let low = decade(low.min(high), f64::floor);
                (low, decade(high, f64::ceil).max(low * 10.0))
            }
        };
        Self { low, high, scale }
    }

    /// Whether there is a place for it.
    pub(super) fn holds(&self, value: f64) -> bool {
        SIZES.contains(&value) || (self.scale == Scale::Linear && value == 0.0)
    }

    /// Its place, from 0 at the low end to 1 at the high one.
    pub(super) fn part(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value / self.high,
            Scale::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }

    /// Round numbers, or powers of ten.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Linear {
            return ticks(self.low, self.high);
        }
        let decades = (self.high / self.low).log10().round() as i64;
        (0..=decades.min(TICKS_MAX))
            .map(|power| self.low * 10_f64.powi(power as i32))
            .collect()
    }
}

/// Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    if high <= low {
        return vec![low];
    }
    let rough = (high - low) / GRID;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = steps.into_iter().find(|&step| step >= rough).unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last.min(first.saturating_add(TICKS_MAX)))
        .map(|number| number as f64 * step)
        .filter(|tick| tick.is_finite())
        .collect()
}

/// Without the digits that no binary number has.
pub(super) fn label(tick: f64) -> String {
    ((tick * 1e6).round() / 1e6).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(ticks(0.0, 7.0), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(-2.0, 3.0), [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]);
        let labels: Vec<String> = ticks(0.0, 1.0).into_iter().map(label).collect();
        assert_eq!(labels, ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn marks_are_few_whatever_the_numbers() {
        for (low, high) in [(0.0, 5e-324), (0.0, f64::MAX), (1.0, 1.0), (-f64::MAX, f64::MAX)] {
            assert!(ticks(low, high).len() <= TICKS_MAX as usize + 1, "{low} {high}");
        }
    }

    #[test]
    fn decades_take_the_same_room() {
        let axis = Axis::of([3.0, 0.0, 250.0].into_iter(), Scale::Logarithmic);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((axis.part(10.0) - 1.0 / 3.0).abs() < 1e-12);
        assert!(!axis.holds(0.0));
    }
}
