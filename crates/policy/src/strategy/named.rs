//! Strategies by their names.

use alloc::boxed::Box;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use crate::predict::{Costs, Goals};

use super::{Auto, Hybrid, Passes, PostCopy, PreCopy, StopCopy, Strategy};

/// A strategy by its name and parameters: the one place where one is made of what a user, a scenario or a trace says.
///
/// As text it is the strategy's name, and for hybrid copy what its passes are: `hybrid:2`, `hybrid:progress`. `hybrid` alone has
/// one pass. What `auto` needs is not said in a word, so no text is read as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Named {
    /// [`PreCopy`].
    PreCopy,
    /// [`StopCopy`].
    StopCopy,
    /// [`PostCopy`].
    PostCopy,
    /// [`Hybrid`].
    Hybrid(Passes),
    /// [`Auto`].
    Auto {
        /// What the user wants.
        goals: Goals,
        /// What does not depend on pages.
        costs: Costs,
        /// Of the link.
        round_trip: Duration,
    },
}

impl Named {
    /// The strategy, at its beginning.
    pub fn build(self) -> Box<dyn Strategy> {
        match self {
            Named::PreCopy => Box::new(PreCopy::default()),
            Named::StopCopy => Box::new(StopCopy),
            Named::PostCopy => Box::new(PostCopy),
            Named::Hybrid(passes) => Box::new(Hybrid::new(passes)),
            Named::Auto {
                goals,
                costs,
                round_trip,
            } => Box::new(Auto::new(goals, costs, round_trip)),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.build().name())?;
        match self {
            Named::Hybrid(Passes::Exactly(passes)) => write!(f, ":{passes}"),
            Named::Hybrid(Passes::WhileProgress) => f.write_str(":progress"),
            Named::PreCopy | Named::StopCopy | Named::PostCopy | Named::Auto { .. } => Ok(()),
        }
    }
}

/// Why a text is no strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAStrategy;

impl fmt::Display for NotAStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the strategy is one of: precopy, stopcopy, postcopy, hybrid, hybrid:PASSES, hybrid:progress",
        )
    }
}

impl core::error::Error for NotAStrategy {}

impl FromStr for Named {
    type Err = NotAStrategy;

    fn from_str(text: &str) -> Result<Self, NotAStrategy> {
        let passes = |passes: &str| passes.parse().map(Passes::Exactly).map_err(|_| NotAStrategy);
        match text {
            "precopy" => Ok(Named::PreCopy),
            "stopcopy" => Ok(Named::StopCopy),
            "postcopy" => Ok(Named::PostCopy),
            "hybrid" => Ok(Named::Hybrid(Passes::Exactly(1))),
            "hybrid:progress" => Ok(Named::Hybrid(Passes::WhileProgress)),
            _ => passes(text.strip_prefix("hybrid:").ok_or(NotAStrategy)?).map(Named::Hybrid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_strategy_says_what_it_was_made_of() {
        for text in [
            "precopy",
            "stopcopy",
            "postcopy",
            "hybrid:0",
            "hybrid:3",
            "hybrid:progress",
        ] {
            let named: Named = text.parse().unwrap();
            assert_eq!(named.to_string(), text);
            assert_eq!(named.build().named(), Some(named));
            assert!(text.starts_with(named.build().name()));
        }
        let auto = Named::Auto {
            goals: Goals {
                downtime_max: Duration::from_millis(70),
                min: None,
            },
            costs: Costs {
                scan: Duration::from_millis(3),
                ..Costs::default()
            },
            round_trip: Duration::from_millis(9),
        };
        assert_eq!(auto.build().named(), Some(auto));
        assert_eq!("hybrid".parse(), Ok(Named::Hybrid(Passes::Exactly(1))));
        for wrong in ["", "hope", "hybrid:", "hybrid:-1", "precopy:2"] {
            assert_eq!(wrong.parse::<Named>(), Err(NotAStrategy), "{wrong}");
        }
    }
}
