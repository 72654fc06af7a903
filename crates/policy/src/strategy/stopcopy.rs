//! Freeze, send everything, go on at the destination: nothing is tracked, everything is downtime.

use super::{Decision, Named, RoundFacts, StopReason, Strategy};

/// Stop-and-copy: the baseline, and the way for what cannot be tracked.
#[derive(Clone, Copy, Debug, Default)]
pub struct StopCopy;

impl Strategy for StopCopy {
    fn name(&self) -> &'static str {
        "stopcopy"
    }

    fn named(&self) -> Option<Named> {
        Some(Named::StopCopy)
    }

    fn is_live(&self) -> bool {
        false
    }

    fn decide(&mut self, _: &RoundFacts<'_>) -> Decision {
        Decision::Freeze(StopReason::StopCopy)
    }
}
