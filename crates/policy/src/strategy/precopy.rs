//! All pages, then rounds of what was written meanwhile, until freezing is cheap or rounds do not help any more.

use super::{Decision, Named, RoundFacts, StopReason, Strategy};

/// A round helps if it leaves at most this many percent of the least that any round before it left.
const PROGRESS_PERCENT: u128 = 90;
/// So many rounds in a row that did not help are enough. One may be chance: a collection, a burst of requests.
const STALLED_ROUNDS_MAX: u32 = 2;

/// Iterative pre-copy (Clark et al., "Live Migration of Virtual Machines", NSDI 2005).
///
/// Stops, in this order, when
/// 1. nothing is owed,
/// 2. the predicted downtime is within the limit,
/// 3. the rounds or 4. the traffic are used up,
/// 5. there is no progress: two rounds running did not bring the owed set down to 90 % of the smallest one so far. What
///    remains is then the *writable working set* of that paper: pages that are written at least as often as a round
///    comes by, which no number of rounds can send. Sizes of the owed set are compared, not dirty rate with bandwidth,
///    because they are what the downtime is made of, and because a rate above the bandwidth may come from a small set
///    that is written over and over. The smallest one is to be beaten, not the last one, so that a set that swings up and
///    down ends too.
#[derive(Clone, Copy, Debug, Default)]
pub struct PreCopy {
    smallest: Option<u64>,
    stalled: u32,
    is_to_the_limits: bool,
}

impl PreCopy {
    /// Without the fifth rule: rounds go on until a limit ends them, as they do in Xen.
    pub fn to_the_limits() -> Self {
        PreCopy {
            is_to_the_limits: true,
            ..PreCopy::default()
        }
    }

    /// Remembers how this round compares.
    pub(crate) fn note(&mut self, owed_pages: u64) {
        let helped = match self.smallest {
            Some(smallest) => u128::from(owed_pages) * 100 <= u128::from(smallest) * PROGRESS_PERCENT,
            None => true,
        };
        self.stalled = if helped { 0 } else { self.stalled + 1 };
        self.smallest = Some(
            self.smallest
                .map_or(owed_pages, |smallest| smallest.min(owed_pages)),
        );
    }

    /// Rounds in a row, up to the last one noted, that did not help.
    pub(super) fn stalled_rounds(&self) -> u32 {
        self.stalled
    }
}

impl Strategy for PreCopy {
    fn name(&self) -> &'static str {
        "precopy"
    }

    fn named(&self) -> Option<Named> {
        Some(Named::PreCopy)
    }

    fn is_live(&self) -> bool {
        true
    }

    fn decide(&mut self, facts: &RoundFacts<'_>) -> Decision {
        self.note(facts.owed_pages);
        let within = facts
            .predicted_downtime
            .is_some_and(|downtime| downtime <= facts.limits.downtime_max);
        if facts.owed_pages == 0 {
            Decision::Freeze(StopReason::NothingDirty)
        } else if within {
            Decision::Freeze(StopReason::PredictedDowntime)
        } else if let Some(limit) = facts.limit_reached() {
            Decision::Freeze(limit)
        } else if !self.is_to_the_limits && self.stalled_rounds() >= STALLED_ROUNDS_MAX {
            Decision::Freeze(StopReason::NoProgress)
        } else {
            Decision::Round
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::DirtyCurve;
    use crate::migration::{Hints, Limits};
    use core::time::Duration;
    use std::vec::Vec;

    /// What it decides when the rounds leave `owed` pages, one after the other.
    fn decisions(owed: &[u64], limits: &Limits, downtime: impl Fn(u64) -> Option<Duration>) -> Vec<Decision> {
        decisions_of(PreCopy::default(), owed, limits, downtime)
    }

    fn decisions_of(
        mut strategy: PreCopy,
        owed: &[u64],
        limits: &Limits,
        downtime: impl Fn(u64) -> Option<Duration>,
    ) -> Vec<Decision> {
        let mut sent_pages = 0;
        let decide = |(rounds, &owed_pages): (usize, &u64)| {
            let facts = RoundFacts {
                rounds: rounds as u32,
                owed_pages,
                urgent_pages: 0,
                round_pages: owed_pages,
                sent_pages,
                zero_pages: 0,
                sent_bytes: 0,
                memory_pages: owed[0],
                dirty_rate: None,
                dirty: &DirtyCurve::default(),
                wire_share: None,
                bandwidth: None,
                predicted_downtime: downtime(owed_pages),
                since_scan: Duration::ZERO,
                elapsed: Duration::ZERO,
                limits,
                hints: &Hints::default(),
            };
            sent_pages += owed_pages;
            strategy.decide(&facts)
        };
        owed.iter().enumerate().map(decide).collect()
    }

    fn stops(owed: &[u64], limits: &Limits) -> Option<StopReason> {
        let all = decisions(owed, limits, |_| None);
        let (last, before) = all.split_last().unwrap();
        assert!(before.iter().all(|d| *d == Decision::Round), "{all:?}");
        match last {
            Decision::Freeze(reason) => Some(*reason),
            Decision::Round => None,
        }
    }

    #[test]
    fn each_rule_ends_it_alone() {
        let free = Limits {
            rounds_max: u32::MAX,
            traffic_percent_max: u32::MAX,
            ..Limits::default()
        };
        assert_eq!(stops(&[1000, 500, 0], &free), Some(StopReason::NothingDirty));
        assert_eq!(stops(&[1000, 500, 400], &free), None);
        assert_eq!(
            stops(
                &[1000, 500, 400],
                &Limits {
                    rounds_max: 2,
                    ..free
                }
            ),
            Some(StopReason::Rounds)
        );
        let traffic = Limits {
            traffic_percent_max: 150,
            ..free
        };
        assert_eq!(stops(&[1000, 500, 400], &traffic), Some(StopReason::Traffic));
        assert_eq!(stops(&[1000, 500, 460, 455], &free), Some(StopReason::NoProgress));
    }

    #[test]
    fn the_first_predicted_downtime_within_the_limit_ends_it() {
        let limits = Limits {
            downtime_max: Duration::from_millis(300),
            ..Limits::default()
        };
        let all = decisions(&[1000, 500, 300], &limits, |pages| {
            Some(Duration::from_millis(pages))
        });
        let freeze = Decision::Freeze(StopReason::PredictedDowntime);
        assert_eq!(all, [Decision::Round, Decision::Round, freeze]);
    }

    #[test]
    fn without_progress_it_may_go_on_to_the_limits() {
        let limits = Limits {
            rounds_max: 5,
            traffic_percent_max: u32::MAX,
            ..Limits::default()
        };
        let all = decisions_of(PreCopy::to_the_limits(), &[1000; 6], &limits, |_| None);
        assert_eq!(all[..5], [Decision::Round; 5]);
        assert_eq!(all[5], Decision::Freeze(StopReason::Rounds));
    }

    #[test]
    fn one_bad_round_is_forgiven_and_swinging_is_not() {
        let free = Limits {
            rounds_max: u32::MAX,
            traffic_percent_max: u32::MAX,
            ..Limits::default()
        };
        assert_eq!(stops(&[1000, 500, 900, 400, 300], &free), None);
        assert_eq!(stops(&[1000, 500, 900, 500], &free), Some(StopReason::NoProgress));
    }
}
