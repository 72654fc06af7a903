//! Simulates a paper's scenario with the values of one of its rows.

use toml::Value;

use crate::report::Setting;
use crate::sweep::Plan;
use crate::{simulate, Outcome};

/// A value of a scenario, by its place, as in `link.rate`.
pub(super) fn setting(key: &str, value: impl Into<Value>) -> Setting {
    Setting {
        key: key.to_owned(),
        value: value.into(),
    }
}

/// What comes out of a scenario, which is part of the program, and of values that are too.
///
/// # Panics
/// If they do not fit. The tests run all of them.
pub(super) fn outcome(text: &str, name: &str, settings: &[Setting]) -> Outcome {
    let plan = Plan::new(text, name, &[], None);
    let scenario = plan.and_then(|plan| plan.scenario(settings));
    let outcome = scenario.map(|scenario| simulate(&scenario));
    let outcome = outcome.unwrap_or_else(|error| panic!("{error}"));
    Outcome {
        scenario: name.to_owned(),
        ..outcome
    }
}

/// So many MB, as a scenario says it.
pub(super) fn mb(mb: f64) -> String {
    format!("{mb:.6}MB")
}

/// So many MB/s, as a scenario says it.
pub(super) fn mb_per_s(mb: f64) -> String {
    format!("{mb:.6}MB/s")
}

/// By how many percent a number differs from another one; below 0 if it is less.
pub(super) fn change_percent(from: f64, to: f64) -> f64 {
    (to / from - 1.0) * 100.0
}
