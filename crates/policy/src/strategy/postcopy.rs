//! Freeze soon, go on at the destination with the state alone, and let the memory follow.

use super::{Decision, Named, RoundFacts, StopReason, Strategy};

/// Post-copy (Hines and Gopalan, "Post-Copy Based Live Virtual Machine Migration Using Adaptive Pre-Paging and Dynamic
/// Self-Ballooning", VEE 2009). Every page travels once, after the start: the downtime does not grow with the memory. Only what
/// cannot be left behind ([`crate::Scan::urgent`]: the paper's non-pageable memory) is sent before the freeze, in one pass, and again
/// while it is frozen if it was written meanwhile. In which order pages follow is not decided here but by a
/// [`crate::postcopy::PrePaging`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PostCopy;

impl Strategy for PostCopy {
    fn name(&self) -> &'static str {
        "postcopy"
    }

    fn named(&self) -> Option<Named> {
        Some(Named::PostCopy)
    }

    fn is_live(&self) -> bool {
        true
    }

    fn passes_are_urgent_only(&self) -> bool {
        true
    }

    fn leaves_residue(&self) -> bool {
        true
    }

    fn decide(&mut self, facts: &RoundFacts<'_>) -> Decision {
        if facts.rounds == 0 && facts.owed_pages > 0 {
            Decision::Round
        } else {
            Decision::Freeze(StopReason::Residue)
        }
    }
}
