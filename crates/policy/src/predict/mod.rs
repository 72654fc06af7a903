//! What each way of moving would cost: total time, downtime, bytes, network faults, slow-down, each with a range.
//!
//! The walk through the rounds is a small model (a page that is owed is written again with a probability that follows the dirty
//! curve); the decisions in it are those of the strategies themselves. One walk is the likely one, one has a
//! workload that writes less and a faster link, one the opposite: their results are the range.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::dirty::{Belief, DirtyCurve};
use crate::migration::{Hints, Limits};
use crate::strategy::StopReason;

mod choose;
mod walk;

pub use choose::{choose, Aim, Choice, Goals, Why};

/// A way of moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Rounds while it runs, then a stop ([`crate::PreCopy`]).
    PreCopy,
    /// A stop, then everything ([`crate::StopCopy`]).
    StopCopy,
    /// So many passes, then what was written meanwhile after the start ([`crate::Hybrid`]).
    Hybrid {
        /// At least 1.
        passes: u32,
    },
    /// Everything after the start ([`crate::PostCopy`]).
    PostCopy,
}

impl Course {
    /// All of them, the safest first: how much of the workload's life hangs on two machines.
    pub const ALL: [Course; 4] = [
        Course::PreCopy,
        Course::StopCopy,
        Course::Hybrid { passes: 1 },
        Course::PostCopy,
    ];

    /// The strategy's name.
    pub fn name(self) -> &'static str {
        match self {
            Course::PreCopy => "precopy",
            Course::StopCopy => "stopcopy",
            Course::Hybrid { .. } => "hybrid",
            Course::PostCopy => "postcopy",
        }
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What does not depend on pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Costs {
    /// From the request until the first page: connecting, the destination's preparations, the tracking.
    pub before: Duration,
    /// Each scan while the workload runs.
    pub scan: Duration,
    /// The part of the downtime that is neither pages nor state on the wire: freeze, capture, last scan, rebuild, start.
    pub stop: Duration,
    /// How much longer that is if pages follow after the start.
    pub arm: Duration,
    /// And if older copies of some of those are there, which have to go first.
    pub drop: Duration,
    /// From the last page until the source is released.
    pub after: Duration,
}

/// What was measured of a workload and of the way to the destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Pages that exist.
    pub memory_pages: u64,
    /// Share of them that is full of zeros, 0 to 1.
    pub zero_share: f64,
    /// Pages that cannot follow after the start. In the middle of a migration those of them that are owed.
    pub urgent_pages: u64,
    /// How many pages are written in how long a time.
    pub dirty: DirtyCurve,
    /// Bytes on the wire for each byte of a page with content.
    pub wire_share: f64,
    /// Bytes per second on the wire.
    pub link_bandwidth: u64,
    /// Bytes of pages per second that the source reads and packs, if that is known.
    pub page_rate_max: Option<u64>,
    /// Bytes of pages that travel unpacked although packing pays: to see that it does ([`crate::packing`]).
    pub plain_bytes: u64,
    /// Of the link.
    pub round_trip: Duration,
    /// The state beside the memory.
    pub state_bytes: u64,
    /// The rest.
    pub costs: Costs,
}

/// Where a migration is: at its beginning, or in the middle of a round of pre-copy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Position {
    /// Since the request.
    pub elapsed: Duration,
    /// Bytes on the wire so far.
    pub sent_bytes: u64,
    /// Pages sent so far.
    pub sent_pages: u64,
    /// Rounds that are over.
    pub rounds: u32,
    /// Since the last scan.
    pub since_scan: Duration,
    /// Pages that this round has still to send.
    pub left_pages: u64,
    /// Pages that it had to send.
    pub round_pages: u64,
}

impl Position {
    /// Before the first page.
    pub fn start(measured: &Measured) -> Self {
        Position {
            elapsed: measured.costs.before,
            left_pages: measured.memory_pages,
            round_pages: measured.memory_pages,
            ..Position::default()
        }
    }
}

/// A number and how far it may be off. `low <= likely <= high`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// If all goes well.
    pub low: f64,
    /// To be expected.
    pub likely: f64,
    /// If it goes badly.
    pub high: f64,
}

impl Estimate {
    fn of(likely: f64, others: [f64; 2]) -> Self {
        Estimate {
            low: others.iter().copied().fold(likely, f64::min),
            likely,
            high: others.iter().copied().fold(likely, f64::max),
        }
    }
}

/// What a course would come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Which.
    pub course: Course,
    /// Seconds from the request until the source may be switched off.
    pub total_s: Estimate,
    /// Seconds from the freeze until it runs at the destination.
    pub downtime_s: Estimate,
    /// Bytes on the wire.
    pub bytes: Estimate,
    /// Accesses that wait for the network after the start.
    pub network_faults: Estimate,
    /// Share of the time until the end that the workload loses to network faults, 0 to 1.
    pub slowdown: Estimate,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Why the likely walk ended them.
    pub stop_reason: Option<StopReason>,
}

/// What one course would come to, from a position on.
pub fn predict(measured: &Measured, limits: &Limits, position: &Position, course: Course) -> Prediction {
    let walk = |belief, speed, cost| walk::walk(measured, limits, position, course, belief, speed, cost);
    let likely = walk(Belief::Likely, 1.0, 1.0);
    let others = [walk(Belief::Low, 1.1, 0.8), walk(Belief::High, 0.9, 1.3)];
    let of = |field: fn(&walk::Walked) -> f64| {
        Estimate::of(field(&likely), [field(&others[0]), field(&others[1])])
    };
    // How many faults the push spares is not known beforehand: from one in twenty to all are left.
    let faults = |share: f64| of(|walked| walked.touched).likely * share;
    let slowdown = |faults: f64| likely.slowdown(measured, faults);
    let network_faults = Estimate {
        low: faults(0.05),
        likely: faults(walk::FAULTS_LEFT),
        high: of(|walked| walked.touched).high,
    };
    Prediction {
        course,
        total_s: of(|walked| walked.total_s),
        downtime_s: of(|walked| walked.downtime_s),
        bytes: of(|walked| walked.bytes),
        network_faults,
        slowdown: Estimate {
            low: slowdown(network_faults.low),
            likely: slowdown(network_faults.likely),
            high: slowdown(network_faults.high),
        },
        rounds: likely.rounds,
        stop_reason: likely.stop_reason,
    }
}

/// What every course would come to.
pub fn predict_all(measured: &Measured, limits: &Limits, position: &Position) -> Vec<Prediction> {
    let predict = |course| predict(measured, limits, position, course);
    Course::ALL.into_iter().map(predict).collect()
}

#[cfg(test)]
mod tests;
