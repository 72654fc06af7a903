//! Begins with a pass of pre-copy, looks at what the workload writes meanwhile, and takes the best way from there.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Decision, Named, PreCopy, RoundFacts, StopReason, Strategy};
use crate::predict::{choose, predict, Choice, Costs, Course, Goals, Measured, Position, Prediction, Why};

/// Counts of the written pages since the first scan, as long as the first pass takes: the first after this time, each of the next
/// after twice the time.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// A look after at least this time decides: what is written in less says little about the rest.
const DECIDING_LOOK: Duration = Duration::from_millis(200);

/// Chooses between pre-copy, hybrid, post-copy and stop-copy while pages are sent already.
///
/// Nothing is lost by that: the first pass belongs to pre-copy and to hybrid, and a post-copy that begins in the middle of it leaves the
/// pages for later that were not sent. After each look and each scan the ways that are still open are predicted from where the
/// migration is. A pre-copy that will not come below the limit on the downtime, or takes longer than it is worth, becomes a hybrid.
#[derive(Clone, Debug)]
pub struct Auto {
    goals: Goals,
    costs: Costs,
    round_trip: Duration,
    precopy: PreCopy,
    /// When the first scan was, and how long after it the next look is due.
    look: Option<(Duration, Duration)>,
    leaves_residue: bool,
    choice: Option<Choice>,
    prediction: Option<Prediction>,
}

impl Auto {
    /// For these goals, a workload with these costs and a link with this round trip.
    pub fn new(goals: Goals, costs: Costs, round_trip: Duration) -> Self {
        Auto {
            goals,
            costs,
            round_trip,
            precopy: PreCopy::default(),
            look: None,
            leaves_residue: false,
            choice: None,
            prediction: None,
        }
    }

    /// What is known now. Nothing before pages have shown the bandwidth.
    fn measured(&self, facts: &RoundFacts<'_>) -> Option<Measured> {
        let bandwidth = facts.bandwidth?;
        let wire_share = facts.wire_share.unwrap_or(1.0);
        let known = (facts.sent_pages + facts.zero_pages).max(1);
        Some(Measured {
            memory_pages: facts.memory_pages,
            zero_share: facts.zero_pages as f64 / known as f64,
            urgent_pages: facts.urgent_pages,
            dirty: facts.dirty.clone(),
            wire_share,
            link_bandwidth: (bandwidth as f64 * wire_share) as u64,
            page_rate_max: None,
            plain_bytes: 0,
            round_trip: self.round_trip,
            state_bytes: facts.hints.state_bytes,
            costs: self.costs,
        })
    }

    /// The best of the open ways, and what it comes to.
    fn weigh(&mut self, facts: &RoundFacts<'_>, open: &[Course]) -> Option<Choice> {
        let measured = self.measured(facts)?;
        let position = Position {
            elapsed: facts.elapsed,
            sent_bytes: facts.sent_bytes,
            sent_pages: facts.sent_pages,
            rounds: facts.rounds,
            since_scan: facts.since_scan,
            left_pages: facts.owed_pages,
            round_pages: facts.round_pages,
        };
        let predict = |course: &Course| predict(&measured, facts.limits, &position, *course);
        let predictions: Vec<Prediction> = open.iter().map(predict).collect();
        let choice = choose(&predictions, &self.goals)?;
        let prediction = predictions.into_iter().find(|p| p.course == choice.course);
        self.keep(facts.rounds, choice, prediction);
        Some(choice)
    }

    /// Remembers what was chosen, and what it was expected to come to when it was chosen first.
    fn keep(&mut self, rounds: u32, choice: Choice, prediction: Option<Prediction>) {
        let course = match choice.course {
            // What follows then are only the pages that passes left.
            Course::PostCopy if rounds > 0 => Course::Hybrid { passes: rounds },
            course => course,
        };
        if self
            .choice
            .is_none_or(|before| before.course.name() != course.name())
        {
            self.prediction = prediction.map(|prediction| Prediction { course, ..prediction });
        }
        self.choice = Some(Choice { course, ..choice });
    }

    fn freeze(&mut self, leaves_residue: bool) -> StopReason {
        self.leaves_residue = leaves_residue;
        StopReason::Foreseen
    }

    /// Rounds have come to their end. Below the limit the rest goes while it is frozen, and also if it would hardly be down for longer
    /// than without it; else it follows.
    fn end_of_rounds(&mut self, facts: &RoundFacts<'_>, reason: StopReason) {
        let within = matches!(reason, StopReason::NothingDirty | StopReason::PredictedDowntime);
        let fixed = self.costs.stop.saturating_add(self.costs.arm);
        let bearable = self.goals.downtime_max.max(fixed + fixed / 10);
        let is_short = facts
            .predicted_downtime
            .is_some_and(|downtime| downtime <= bearable);
        let open = match within || is_short {
            true => Course::PreCopy,
            false => Course::PostCopy,
        };
        let before = self.choice;
        self.weigh(facts, &[open]);
        self.choice = self.choice.map(|now| match before {
            Some(before) if before.course.name() == now.course.name() => before,
            _ => Choice {
                why: Why::EndOfRounds,
                ..now
            },
        });
        self.leaves_residue = open == Course::PostCopy;
    }
}

impl Strategy for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn named(&self) -> Option<Named> {
        Some(Named::Auto {
            goals: self.goals,
            costs: self.costs,
            round_trip: self.round_trip,
        })
    }

    fn is_live(&self) -> bool {
        true
    }

    fn leaves_residue(&self) -> bool {
        self.leaves_residue
    }

    fn may_leave_residue(&self) -> bool {
        true
    }

    fn sample_at(&self) -> Option<Duration> {
        self.look.map(|(scanned, after)| scanned.saturating_add(after))
    }

    fn choice(&self) -> Option<Choice> {
        self.choice
    }

    fn prediction(&self) -> Option<&Prediction> {
        self.prediction.as_ref()
    }

    fn reconsider(&mut self, facts: &RoundFacts<'_>) -> Option<StopReason> {
        let (scanned, after) = self.look?;
        // Late looks are not caught up with.
        self.look = Some((scanned, after.max(facts.since_scan).saturating_mul(2)));
        if facts.since_scan < DECIDING_LOOK || facts.owed_pages == 0 {
            return None;
        }
        match self.weigh(facts, &Course::ALL)?.course {
            Course::PreCopy | Course::Hybrid { .. } => None,
            Course::StopCopy => Some(self.freeze(false)),
            Course::PostCopy => Some(self.freeze(true)),
        }
    }

    fn stopped_by(&mut self, facts: &RoundFacts<'_>, limit: StopReason) {
        self.end_of_rounds(facts, limit);
    }

    fn decide(&mut self, facts: &RoundFacts<'_>) -> Decision {
        let by_rounds = self.precopy.decide(facts);
        if facts.rounds == 0 && by_rounds == Decision::Round {
            self.look = Some((facts.elapsed, FIRST_LOOK));
            return Decision::Round;
        }
        // The looks were at what is written since the first scan.
        self.look = None;
        match by_rounds {
            Decision::Freeze(reason) => {
                self.end_of_rounds(facts, reason);
                Decision::Freeze(reason)
            }
            Decision::Round => match self.weigh(facts, &[Course::PreCopy, Course::PostCopy]) {
                Some(choice) if choice.course == Course::PostCopy => Decision::Freeze(self.freeze(true)),
                _ => Decision::Round,
            },
        }
    }
}
