//! The imagined world that a migration runs in.

use crate::{Outcome, Scenario};

/// Runs a scenario.
pub fn simulate(_scenario: &Scenario) -> Outcome {
    Outcome::default()
}
