//! Not simulated yet.

use super::Paper;

pub(super) fn simulate() -> Paper {
    Paper {
        name: "alma",
        ..Paper::default()
    }
}
