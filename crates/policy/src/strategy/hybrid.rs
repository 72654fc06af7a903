//! Some passes of pre-copy, then post-copy of what was written meanwhile.

use super::{Decision, Named, PreCopy, RoundFacts, StopReason, Strategy};

/// How many passes come before the switch-over. The limits on rounds and traffic hold besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Passes {
    /// So many, the first full one included; none is post-copy with tracking.
    Exactly(u32),
    /// As long as each leaves at most 90 % of the least that any before it left. Pre-copy forgives one pass that does not;
    /// here the residue is bearable, and a pass without effect only costs traffic.
    WhileProgress,
}

/// Hybrid copy (section 3 of the paper at [`super::PostCopy`]): pages that are only read travel before the switch-over and
/// cause no network fault after it; pages that are written again travel twice at most for each further pass. The limit on
/// the downtime plays no part: what is left does not travel while the workload is frozen.
#[derive(Clone, Copy, Debug)]
pub struct Hybrid {
    passes: Passes,
    progress: PreCopy,
}

impl Hybrid {
    /// A strategy with so many passes before the switch-over.
    pub fn new(passes: Passes) -> Self {
        Hybrid {
            passes,
            progress: PreCopy::default(),
        }
    }

    fn has_passes_left(&self, rounds: u32) -> bool {
        match self.passes {
            Passes::Exactly(passes) => rounds < passes,
            Passes::WhileProgress => self.progress.stalled_rounds() == 0,
        }
    }
}

impl Default for Hybrid {
    /// One pass, as in the paper.
    fn default() -> Self {
        Self::new(Passes::Exactly(1))
    }
}

impl Strategy for Hybrid {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    fn named(&self) -> Option<Named> {
        Some(Named::Hybrid(self.passes))
    }

    fn is_live(&self) -> bool {
        true
    }

    fn leaves_residue(&self) -> bool {
        true
    }

    fn decide(&mut self, facts: &RoundFacts<'_>) -> Decision {
        self.progress.note(facts.owed_pages);
        if facts.owed_pages == 0 {
            Decision::Freeze(StopReason::NothingDirty)
        } else if !self.has_passes_left(facts.rounds) {
            Decision::Freeze(StopReason::Residue)
        } else if let Some(limit) = facts.limit_reached() {
            Decision::Freeze(limit)
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

    /// Passes that it does, and why it stops, when the scans find `owed` pages one after the other.
    fn passes(strategy: Hybrid, owed: &[u64], rounds_max: u32) -> (u32, StopReason) {
        let limits = Limits {
            rounds_max,
            ..Limits::default()
        };
        let mut strategy = strategy;
        for (rounds, &owed_pages) in owed.iter().enumerate() {
            let facts = RoundFacts {
                rounds: rounds as u32,
                owed_pages,
                urgent_pages: 0,
                round_pages: owed_pages,
                sent_pages: 0,
                zero_pages: 0,
                sent_bytes: 0,
                memory_pages: owed[0],
                dirty_rate: None,
                dirty: &DirtyCurve::default(),
                wire_share: None,
                bandwidth: None,
                predicted_downtime: Some(Duration::ZERO),
                since_scan: Duration::ZERO,
                elapsed: Duration::ZERO,
                limits: &limits,
                hints: &Hints::default(),
            };
            if let Decision::Freeze(reason) = strategy.decide(&facts) {
                return (rounds as u32, reason);
            }
        }
        unreachable!("it went on");
    }

    #[test]
    fn it_does_as_many_passes_as_it_was_told_however_short_the_downtime_would_be() {
        let owed = [1000, 500, 250, 125, 60];
        assert_eq!(passes(Hybrid::default(), &owed, 30), (1, StopReason::Residue));
        for n in 0..4 {
            let strategy = Hybrid::new(Passes::Exactly(n));
            assert_eq!(passes(strategy, &owed, 30), (n, StopReason::Residue));
        }
    }

    #[test]
    fn limits_and_an_empty_debt_end_it_before() {
        let many = Hybrid::new(Passes::Exactly(4));
        assert_eq!(passes(many, &[1000, 500, 250], 2), (2, StopReason::Rounds));
        assert_eq!(passes(many, &[1000, 0, 7], 30), (1, StopReason::NothingDirty));
    }

    #[test]
    fn passes_go_on_while_they_make_progress() {
        let strategy = Hybrid::new(Passes::WhileProgress);
        assert_eq!(
            passes(strategy, &[1000, 500, 440, 430, 5], 30),
            (3, StopReason::Residue)
        );
        assert_eq!(
            passes(strategy, &[1000, 500, 499, 5], 30),
            (2, StopReason::Residue)
        );
    }
}
