//! How many pages a workload writes in how long a time.
//!
//! A page that is written a thousand times in an interval travels once, so the number of *distinct* pages grows with the interval
//! at first, and less and less as the interval approaches the time in which the working set is written once.

use alloc::vec::Vec;
use core::time::Duration;

/// Points that are kept at most; neighbours are merged beyond that.
const POINTS_MAX: usize = 64;

/// Distinct pages written over the length of an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirtyCurve {
    /// Seconds and pages, by seconds.
    points: Vec<(f64, f64)>,
}

impl DirtyCurve {
    /// In an interval of this length so many distinct pages were written.
    pub fn add(&mut self, interval: Duration, pages: u64) {
        let (seconds, pages) = (interval.as_secs_f64(), pages as f64);
        if seconds <= 0.0 || self.points.len() >= POINTS_MAX {
            return;
        }
        let at = self.points.partition_point(|point| point.0 < seconds);
        self.points.insert(at, (seconds, pages));
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}
