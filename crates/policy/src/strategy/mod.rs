//! When to do another round and when to freeze: one file for each strategy.

use core::fmt;
use core::time::Duration;

use crate::dirty::DirtyCurve;
use crate::migration::{Hints, Limits};
use crate::pages::PAGE_SIZE;
use crate::predict::{Choice, Prediction};

mod auto;
mod hybrid;
mod named;
mod postcopy;
mod precopy;
mod stopcopy;

pub use auto::Auto;
pub use hybrid::{Hybrid, Passes};
pub use named::{Named, NotAStrategy};
pub use postcopy::PostCopy;
pub use precopy::PreCopy;
pub use stopcopy::StopCopy;

/// What is known when a decision is due: before the first scan (`rounds` and all else 0), and after each scan.
#[derive(Clone, Copy, Debug)]
pub struct RoundFacts<'a> {
    /// Rounds done.
    pub rounds: u32,
    /// Pages to send if a round began now. Pages masked by facts are not among them, but for those that storage has still to bring
    /// and that would be sent while the workload is frozen.
    pub owed_pages: u64,
    /// Those of them that cannot follow after the switch-over, as far as the last scan says.
    pub urgent_pages: u64,
    /// Pages that this round had to send; all owed ones before it begins.
    pub round_pages: u64,
    /// Pages sent with content, in all rounds.
    pub sent_pages: u64,
    /// Pages of zeros told, in all rounds.
    pub zero_pages: u64,
    /// Bytes put on the wire for both.
    pub sent_bytes: u64,
    /// Pages of the workload, as far as is known.
    pub memory_pages: u64,
    /// Bytes per second that the workload dirtied between the last two scans.
    pub dirty_rate: Option<u64>,
    /// How many pages the workload writes in how long a time.
    pub dirty: &'a DirtyCurve,
    /// Bytes per second of the link, or the limit on it if that is lower.
    pub bandwidth: Option<u64>,
    /// Bytes on the wire for each byte of a page with content so far; below 1 if pages are packed.
    pub wire_share: Option<f64>,
    /// Downtime if it was frozen now.
    pub predicted_downtime: Option<Duration>,
    /// Since the last scan.
    pub since_scan: Duration,
    /// Since the migration began.
    pub elapsed: Duration,
    /// The user's goals.
    pub limits: &'a Limits,
    /// What was known beforehand.
    pub hints: &'a Hints,
}

impl RoundFacts<'_> {
    /// The limit that forbids another round, if one does.
    pub fn limit_reached(&self) -> Option<StopReason> {
        if self.rounds >= self.limits.rounds_max {
            Some(StopReason::Rounds)
        } else if self.limits.traffic_pages_left(self.memory_pages, self.sent_pages) == 0 {
            Some(StopReason::Traffic)
        } else {
            None
        }
    }
}

/// Why the rounds ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The strategy freezes before the first page.
    StopCopy,
    /// Nothing is owed: another round has nothing to do.
    NothingDirty,
    /// The predicted downtime is within the limit.
    PredictedDowntime,
    /// The limit on rounds.
    Rounds,
    /// The limit on traffic.
    Traffic,
    /// Further rounds would not make the rest smaller.
    NoProgress,
    /// The strategy leaves what is owed for the time after the switch-over.
    Residue,
    /// Going on was predicted to cost more than switching over.
    Foreseen,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopReason::StopCopy => "frozen from the first page on, as asked",
            StopReason::NothingDirty => "nothing was left to send",
            StopReason::PredictedDowntime => "the predicted downtime was within the limit",
            StopReason::Rounds => "the limit on rounds was reached",
            StopReason::Traffic => "the limit on traffic was reached",
            StopReason::NoProgress => "the workload writes as fast as rounds can send",
            StopReason::Residue => "the rest follows after the switch-over, as asked",
            StopReason::Foreseen => "further rounds were predicted to cost more",
        })
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send what is owed while the workload runs.
    Round,
    /// Freeze now.
    Freeze(StopReason),
}

/// Decides after each scan. The limits on rounds and traffic hold whatever it answers.
pub trait Strategy: fmt::Debug + Send {
    /// The name that users type.
    fn name(&self) -> &'static str;

    /// How to make the same strategy anew, with all of its parameters; `None` if a [`Named`] cannot say that.
    fn named(&self) -> Option<Named> {
        None
    }

    /// Whether pages are tracked and sent while the workload runs. If not, it is frozen first and never asked.
    fn is_live(&self) -> bool;

    /// Whether what is owed at the switch-over follows after it ([`crate::postcopy`]). If not, it is sent while the
    /// workload is frozen.
    fn leaves_residue(&self) -> bool {
        false
    }

    /// Whether that may come to be, as far as is known before the first page. A strategy that has yet to decide says yes here, and
    /// in [`Strategy::leaves_residue`] what it has decided.
    fn may_leave_residue(&self) -> bool {
        self.leaves_residue()
    }

    /// From when on the pages written since the last scan are to be counted again, in the middle of a round.
    fn sample_at(&self) -> Option<Duration> {
        None
    }

    /// Asked in the middle of a round, after each sample, with the pages of the round that are still to be sent as the owed
    /// ones: freeze now?
    fn reconsider(&mut self, _facts: &RoundFacts<'_>) -> Option<StopReason> {
        None
    }

    /// A limit ends the rounds, whatever it would say: it is frozen now. With the pages of the round that are still to be sent as the owed
    /// ones.
    fn stopped_by(&mut self, _facts: &RoundFacts<'_>, _limit: StopReason) {}

    /// What it has chosen, if it chooses.
    fn choice(&self) -> Option<Choice> {
        None
    }

    /// What it expected when it chose.
    fn prediction(&self) -> Option<&Prediction> {
        None
    }

    /// Whether the passes before the switch-over carry only what cannot be left behind ([`crate::Scan::urgent`]).
    fn passes_are_urgent_only(&self) -> bool {
        false
    }

    /// Another round, or freeze?
    fn decide(&mut self, facts: &RoundFacts<'_>) -> Decision;
}

impl Limits {
    /// How many pages may still be sent before the switch-over.
    pub(crate) fn traffic_pages_left(&self, memory_pages: u64, sent_pages: u64) -> u64 {
        let allowed = u128::from(memory_pages) * u128::from(self.traffic_percent_max) / 100;
        u64::try_from(allowed)
            .unwrap_or(u64::MAX)
            .saturating_sub(sent_pages)
    }
}

/// Bytes of `pages`.
pub(crate) fn bytes_of(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traffic_limit_is_a_share_of_the_memory() {
        let limits = Limits {
            traffic_percent_max: 150,
            ..Limits::default()
        };
        assert_eq!(limits.traffic_pages_left(1000, 1400), 100);
        assert_eq!(limits.traffic_pages_left(1000, 1600), 0);
        assert_eq!(limits.traffic_pages_left(u64::MAX, 0), u64::MAX);
    }
}
