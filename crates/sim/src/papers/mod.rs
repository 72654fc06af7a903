//! The five papers that whimbrel goes back to, their experiments simulated with their settings, and what comes out beside what they print.
//!
//! Each paper has a file here and scenario files in `scenarios/papers`, which are part of the program. Where a paper is silent, the scenario has an
//! assumption beside the number, and the paper's [`Paper::assumptions`] lists them: one set for all of its rows, none is fitted to a row.

use crate::chart::{Bars, Chart};

mod alma;
mod javmm;
mod lazycopy;
mod postcopy;
mod run;
mod show;
mod teleport;

pub use show::{json, markdown, page, text};

/// One paper.
#[derive(Debug, Default)]
pub struct Paper {
    /// A short name, as in `whimbrel sim papers NAME`.
    pub name: &'static str,
    /// Who, what, where, when.
    pub citation: &'static str,
    /// What had to be assumed, one sentence each, for all findings together.
    pub assumptions: Vec<&'static str>,
    /// What it says, and what is simulated.
    pub findings: Vec<Finding>,
    /// Its figures, drawn anew.
    pub charts: Vec<Chart>,
    /// Its bars, drawn anew.
    pub bars: Vec<Bars>,
}

/// One headline.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which number, of which experiment.
    pub what: String,
    /// The unit of both numbers; empty for ratios.
    pub unit: &'static str,
    /// What the paper says.
    pub paper: Told,
    /// What the simulation says.
    pub simulated: f64,
    /// Why they differ, if they do and it is known.
    pub note: &'static str,
}

/// What a paper says of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    /// It prints it.
    Value(f64),
    /// It says that it is this much or more.
    AtLeast(f64),
    /// It says that it is this much or less.
    AtMost(f64),
    /// It shows a curve without values: the number is to lie in this range for the same shape or sign.
    Shape(f64, f64, &'static str),
}

/// How the simulation compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A printed value is met within a fifth; a bound or a shape holds.
    Agrees,
    /// It is not.
    Disagrees,
}

/// How far a simulated value may be off a printed one to agree with it.
const TOLERANCE: f64 = 0.2;

impl Finding {
    /// The simulated number over the printed one.
    pub fn ratio(&self) -> Option<f64> {
        match self.paper {
            Told::Value(value) | Told::AtLeast(value) | Told::AtMost(value) if value != 0.0 => {
                Some(self.simulated / value)
            }
            _ => None,
        }
    }

    /// Whether they agree.
    pub fn verdict(&self) -> Verdict {
        let holds = match self.paper {
            Told::Value(value) => (self.simulated - value).abs() <= value.abs() * TOLERANCE,
            Told::AtLeast(value) => self.simulated >= value,
            Told::AtMost(value) => self.simulated <= value,
            Told::Shape(low, high, _) => (low..=high).contains(&self.simulated),
        };
        match holds {
            true => Verdict::Agrees,
            false => Verdict::Disagrees,
        }
    }
}

/// A paper and how to simulate it.
type Experiment = (&'static str, fn() -> Paper);

const EXPERIMENTS: [Experiment; 5] = [
    ("javmm", javmm::simulate),
    ("teleport", teleport::simulate),
    ("postcopy", postcopy::simulate),
    ("lazycopy", lazycopy::simulate),
    ("alma", alma::simulate),
];

/// The names, in the order of the seeds.
pub fn names() -> impl Iterator<Item = &'static str> {
    EXPERIMENTS.iter().map(|(name, _)| *name)
}

/// Simulates these papers, all if none is named. `None` for a name that is not one of [`names`].
pub fn simulate(wanted: &[String]) -> Option<Vec<Paper>> {
    if wanted.iter().any(|name| !names().any(|known| known == name)) {
        return None;
    }
    let is_wanted = |(name, _): &&Experiment| wanted.is_empty() || wanted.iter().any(|one| one == name);
    Some(
        EXPERIMENTS
            .iter()
            .filter(is_wanted)
            .map(|(_, simulate)| simulate())
            .collect(),
    )
}

#[cfg(test)]
mod tests;
