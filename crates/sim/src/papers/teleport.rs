//! Not simulated yet.

use super::Paper;

pub(super) fn simulate() -> Paper {
    Paper {
        name: "teleport",
        ..Paper::default()
    }
}
