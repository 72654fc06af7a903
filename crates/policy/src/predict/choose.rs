//! Which course to take for the user's goals.

use core::fmt;
use core::time::Duration;

use super::{Course, Prediction};

/// How much worse than the best a safer course may be, in percent, if the user says what to save.
const TOLERANCE_PERCENT: f64 = 10.0;
/// The same if not: then a course that needs only one machine at any time is worth more.
const TOLERANCE_PERCENT_UNASKED: f64 = 25.0;

/// What to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Aim {
    /// The total time.
    Time,
    /// Bytes on the wire.
    Bytes,
    /// The downtime.
    Downtime,
}

impl Aim {
    /// The name that users type.
    pub fn name(self) -> &'static str {
        match self {
            Aim::Time => "time",
            Aim::Bytes => "bytes",
            Aim::Downtime => "downtime",
        }
    }

    fn of(self, prediction: &Prediction) -> f64 {
        match self {
            Aim::Time => prediction.total_s.likely,
            Aim::Bytes => prediction.bytes.likely,
            Aim::Downtime => prediction.downtime_s.likely,
        }
    }
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Goals {
    /// A longer downtime only if no course has a shorter one.
    pub downtime_max: Duration,
    /// What to save beside that; `None` for time, with a liking for safety.
    pub min: Option<Aim>,
}

/// Why a course was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No course keeps the downtime below the limit: the one that comes closest.
    NoneWithinDowntime,
    /// It is the only one that does.
    OnlyOneWithinDowntime,
    /// It is the best for the aim.
    Best(Aim),
    /// Rounds have come to their end, and it is what remains.
    EndOfRounds,
    /// It is safer than the best for the aim, and hardly worse.
    Safer {
        /// What was to be saved.
        aim: Aim,
        /// The best for that.
        best: Course,
    },
}

/// What was chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What to do.
    pub course: Course,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { course, why } = self;
        match why {
            Why::NoneWithinDowntime => {
                write!(f, "{course}: nothing keeps the downtime below the limit, and it comes closest")
            }
            Why::OnlyOneWithinDowntime => write!(f, "{course}: nothing else keeps the downtime below the limit"),
            Why::EndOfRounds => write!(f, "{course}: rounds had come to their end"),
            Why::Best(Aim::Time) => write!(f, "{course}: the shortest total time of those below the limit on the downtime"),
            Why::Best(Aim::Bytes) => write!(f, "{course}: the fewest bytes of those below the limit on the downtime"),
            Why::Best(Aim::Downtime) => write!(f, "{course}: the shortest downtime"),
            Why::Safer { aim, best } => write!(
                f,
                "{course}: hardly worse than {best} in {}, and the workload depends less on two machines at once",
                aim.name()
            ),
        }
    }
}

/// Takes the best course for the goals; the safest ([`Course::ALL`]) of those that are about as good. `None` without predictions.
pub fn choose(predictions: &[Prediction], goals: &Goals) -> Option<Choice> {
    let limit = goals.downtime_max.as_secs_f64();
    let aim = goals.min.unwrap_or(Aim::Time);
    let within = |p: &&Prediction| aim == Aim::Downtime || p.downtime_s.likely <= limit;
    let least = |aim: Aim| move |a: &&Prediction, b: &&Prediction| aim.of(a).total_cmp(&aim.of(b));
    let best = predictions.iter().filter(within).min_by(least(aim));
    let rank = |p: &&Prediction| {
        Course::ALL
            .iter()
            .position(|course| course.name() == p.course.name())
    };
    let Some(best) = best else {
        let closest = predictions.iter().min_by(least(Aim::Downtime))?;
        let bearable = closest.downtime_s.likely * (1.0 + TOLERANCE_PERCENT_UNASKED / 100.0);
        let good_enough = |p: &&Prediction| p.downtime_s.likely <= bearable;
        let taken = predictions.iter().filter(good_enough).min_by_key(rank)?;
        return Some(Choice {
            course: taken.course,
            why: Why::NoneWithinDowntime,
        });
    };
    let percent = match goals.min {
        Some(_) => TOLERANCE_PERCENT,
        None => TOLERANCE_PERCENT_UNASKED,
    };
    let bearable = aim.of(best) * (1.0 + percent / 100.0);
    let good_enough = |p: &&Prediction| aim.of(p) <= bearable;
    let taken = predictions
        .iter()
        .filter(within)
        .filter(good_enough)
        .min_by_key(rank)?;
    let why = if predictions.iter().filter(within).count() == 1 {
        Why::OnlyOneWithinDowntime
    } else if taken.course == best.course {
        Why::Best(aim)
    } else {
        Why::Safer {
            aim,
            best: best.course,
        }
    };
    Some(Choice {
        course: taken.course,
        why,
    })
}
