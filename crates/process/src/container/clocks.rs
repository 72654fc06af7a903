//! Clocks that go on at the destination where they were at the source.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_kernel::namespace::{clocks, ClockOffsets};

use super::Result;

/// What a process sees on its clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

impl Clocks {
    /// What the process sees now.
    pub fn of(pid: i32) -> Result<Self> {
        let theirs = ClockOffsets::of(pid)?;
        let initial = Self::initial()?;
        Ok(Self {
            monotonic_ns: initial.monotonic_ns.saturating_add(theirs.monotonic_ns),
            boottime_ns: initial.boottime_ns.saturating_add(theirs.boottime_ns),
        })
    }

    /// Offsets for a new time namespace whose clocks show `self` plus `slack` now. With a slack of at least the time since `self`
    /// was read (a round trip of the network covers that), a clock never goes backwards by moving.
    pub fn offsets_to_continue(self, slack: Duration) -> Result<ClockOffsets> {
        let initial = Self::initial()?;
        let slack_ns = i64::try_from(slack.as_nanos()).unwrap_or(i64::MAX);
        let offset = |clock: i64, initial: i64| clock.saturating_add(slack_ns).saturating_sub(initial);
        Ok(ClockOffsets {
            monotonic_ns: offset(self.monotonic_ns, initial.monotonic_ns),
            boottime_ns: offset(self.boottime_ns, initial.boottime_ns),
        })
    }

    /// What the initial time namespace shows now, to which all offsets are relative.
    fn initial() -> Result<Self> {
        let ours = ClockOffsets::of(std::process::id() as i32)?;
        let (monotonic, boottime) = clocks()?;
        Ok(Self {
            monotonic_ns: monotonic - ours.monotonic_ns,
            boottime_ns: boottime - ours.boottime_ns,
        })
    }
}
