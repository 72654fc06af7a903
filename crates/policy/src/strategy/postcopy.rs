//! Freeze at once, go on at the destination with the state alone, and let all of the memory follow.

use super::{Decision, RoundFacts, StopReason, Strategy};

/// Post-copy (Hines and Gopalan, "Post-Copy Based Live Virtual Machine Migration Using Adaptive Pre-Paging and Dynamic
/// Self-Ballooning", VEE 2009). Nothing is tracked while the workload runs at the source, no page travels while it is frozen,
/// and every page travels once: the downtime does not grow with the memory. In which order pages follow is not
/// decided here but by a [`crate::postcopy::PrePaging`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PostCopy;

impl Strategy for PostCopy {
    fn name(&self) -> &'static str {
        "postcopy"
    }

    fn is_live(&self) -> bool {
        false
    }

    fn leaves_residue(&self) -> bool {
        true
    }

    fn decide(&mut self, _: &RoundFacts<'_>) -> Decision {
        Decision::Freeze(StopReason::Residue)
    }
}
