//! Auto-converge: slowing the workload down step by step, when it writes faster than rounds can send.
//!
//! An option, off by default: it trades the workload's speed for an end of pre-copy. Steps and trigger are those that QEMU documents
//! for its `auto-converge` capability (`cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle`, `throttle-trigger-threshold`).

use core::fmt;

use crate::progress::Round;

/// What the user sets, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Share of its time that the workload loses at the first step.
    pub initial_percent: u8,
    /// What each further step adds.
    pub increment_percent: u8,
    /// It never loses more.
    pub max_percent: u8,
    /// A round is bad if the workload dirties memory at more than this share of the bandwidth.
    pub bad_percent: u8,
    /// So many bad rounds in a row make a step.
    pub bad_rounds: u32,
}

impl Default for Steps {
    /// 20 %, and 10 % more each time up to 99 %, after two rounds at more than half of the bandwidth.
    fn default() -> Self {
        Steps {
            initial_percent: 20,
            increment_percent: 10,
            max_percent: 99,
            bad_percent: 50,
            bad_rounds: 2,
        }
    }
}

/// Steps that lead nowhere, or would stop the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSteps(pub Steps);

impl fmt::Display for BadSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Steps {
            initial_percent,
            increment_percent,
            max_percent,
            ..
        } = self.0;
        write!(
            f,
            "auto-converge cannot begin at {initial_percent} % and go on by {increment_percent} % up to {max_percent} %: \
            the first must be from 1 to the last, the step at least 1, the last at most 99"
        )
    }
}

impl core::error::Error for BadSteps {}

/// The decisions about one workload.
#[derive(Clone, Copy, Debug)]
pub struct AutoConverge {
    steps: Steps,
    /// In force; 0 for none.
    percent: u8,
    bad_rounds: u32,
    is_released: bool,
}

impl AutoConverge {
    /// Nothing is slowed down yet.
    ///
    /// # Errors
    /// [`BadSteps`]: percentages out of range.
    pub fn new(steps: Steps) -> Result<Self, BadSteps> {
        let is_range = (1..=steps.max_percent).contains(&steps.initial_percent) && steps.max_percent <= 99;
        if !is_range || steps.increment_percent == 0 {
            return Err(BadSteps(steps));
        }
        Ok(AutoConverge {
            steps,
            percent: 0,
            bad_rounds: 0,
            is_released: false,
        })
    }

    /// A round is over ([`crate::Migration::rounds`]). Returns the share of its time that the workload is to lose from now on, if that
    /// changes. Rounds without a dirty rate (the first one) or without a bandwidth say nothing.
    pub fn note(&mut self, round: &Round) -> Option<u8> {
        let (Some(dirty), Some(bandwidth)) = (round.dirty_rate, round.bandwidth) else {
            return None;
        };
        if round.frozen || self.is_released {
            return None;
        }
        let is_bad = u128::from(dirty) * 100 > u128::from(bandwidth) * u128::from(self.steps.bad_percent);
        self.bad_rounds = if is_bad { self.bad_rounds + 1 } else { 0 };
        if !is_bad || self.bad_rounds < self.steps.bad_rounds {
            return None;
        }
        // The next step wants as many bad rounds again: this one has to show its effect first.
        self.bad_rounds = 0;
        let next = match self.percent {
            0 => self.steps.initial_percent,
            percent => percent.saturating_add(self.steps.increment_percent),
        };
        let next = next.min(self.steps.max_percent);
        let is_step = next != self.percent;
        self.percent = next;
        is_step.then_some(next)
    }

    /// The migration has ended or failed: the workload gets all its time back, for good. Returns 0 if it was slowed down.
    pub fn release(&mut self) -> Option<u8> {
        self.is_released = true;
        let was = core::mem::replace(&mut self.percent, 0);
        (was > 0).then_some(0)
    }

    /// In force, in percent of the workload's time; 0 for none.
    pub fn percent(&self) -> u8 {
        self.percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn round(dirty_rate: u64, bandwidth: u64) -> Round {
        Round {
            dirty_rate: Some(dirty_rate),
            bandwidth: Some(bandwidth),
            ..Round::default()
        }
    }

    fn notes(converge: &mut AutoConverge, rounds: &[Round]) -> Vec<Option<u8>> {
        rounds.iter().map(|round| converge.note(round)).collect()
    }

    #[test]
    fn every_second_bad_round_is_a_step_up_to_the_last() {
        let mut converge = AutoConverge::new(Steps::default()).unwrap();
        let steps: Vec<_> = (0..30).filter_map(|_| converge.note(&round(90, 100))).collect();
        assert_eq!(steps, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
        assert_eq!(converge.percent(), 99);
    }

    #[test]
    fn two_bad_rounds_in_a_row_are_needed_and_others_say_nothing() {
        let mut converge = AutoConverge::new(Steps::default()).unwrap();
        let (good, bad) = (round(50, 100), round(51, 100));
        let first = Round {
            dirty_rate: None,
            ..bad.clone()
        };
        let frozen = Round {
            frozen: true,
            ..bad.clone()
        };
        assert_eq!(
            notes(&mut converge, &[first, bad.clone(), good.clone(), bad.clone()]),
            [None; 4]
        );
        assert_eq!(notes(&mut converge, &[frozen, bad.clone()]), [None, Some(20)]);
        assert_eq!(notes(&mut converge, &[good, bad]), [None, None]);
        assert_eq!(converge.percent(), 20, "kept while it is good");
    }

    #[test]
    fn at_the_end_the_workload_is_let_go_for_good() {
        let mut converge = AutoConverge::new(Steps::default()).unwrap();
        assert_eq!(converge.release(), None);
        let mut converge = AutoConverge::new(Steps::default()).unwrap();
        notes(&mut converge, &[round(9, 1), round(9, 1)]);
        assert_eq!((converge.release(), converge.release()), (Some(0), None));
        assert_eq!(notes(&mut converge, &[round(9, 1), round(9, 1)]), [None, None]);
    }

    #[test]
    fn steps_that_stop_the_workload_or_lead_nowhere_are_refused() {
        let of = |initial_percent, increment_percent, max_percent| Steps {
            initial_percent,
            increment_percent,
            max_percent,
            ..Steps::default()
        };
        for steps in [of(0, 10, 99), of(50, 10, 40), of(20, 0, 99), of(20, 10, 100)] {
            assert_eq!(AutoConverge::new(steps).err(), Some(BadSteps(steps)));
        }
        assert!(AutoConverge::new(of(99, 255, 99)).is_ok());
    }
}
