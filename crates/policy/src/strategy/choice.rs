//! Strategies by their names.

use alloc::boxed::Box;
use core::fmt;
use core::str::FromStr;

use super::{Hybrid, Passes, PostCopy, PreCopy, StopCopy, Strategy};

/// A strategy by its name and parameters: the one place where one is made of what a user, a scenario or a trace says.
///
/// As text it is the strategy's name, and for hybrid copy what its passes are: `hybrid:2`, `hybrid:progress`. `hybrid` alone has
/// one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Choice {
    /// [`PreCopy`].
    PreCopy,
    /// [`StopCopy`].
    StopCopy,
    /// [`PostCopy`].
    PostCopy,
    /// [`Hybrid`].
    Hybrid(Passes),
}

impl Choice {
    /// The strategy, at its beginning.
    pub fn build(self) -> Box<dyn Strategy> {
        match self {
            Choice::PreCopy => Box::new(PreCopy::default()),
            Choice::StopCopy => Box::new(StopCopy),
            Choice::PostCopy => Box::new(PostCopy),
            Choice::Hybrid(passes) => Box::new(Hybrid::new(passes)),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.build().name())?;
        match self {
            Choice::Hybrid(Passes::Exactly(passes)) => write!(f, ":{passes}"),
            Choice::Hybrid(Passes::WhileProgress) => f.write_str(":progress"),
            Choice::PreCopy | Choice::StopCopy | Choice::PostCopy => Ok(()),
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

impl FromStr for Choice {
    type Err = NotAStrategy;

    fn from_str(text: &str) -> Result<Self, NotAStrategy> {
        let passes = |passes: &str| passes.parse().map(Passes::Exactly).map_err(|_| NotAStrategy);
        match text {
            "precopy" => Ok(Choice::PreCopy),
            "stopcopy" => Ok(Choice::StopCopy),
            "postcopy" => Ok(Choice::PostCopy),
            "hybrid" => Ok(Choice::Hybrid(Passes::Exactly(1))),
            "hybrid:progress" => Ok(Choice::Hybrid(Passes::WhileProgress)),
            _ => passes(text.strip_prefix("hybrid:").ok_or(NotAStrategy)?).map(Choice::Hybrid),
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
            let choice: Choice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
            assert_eq!(choice.build().choice(), Some(choice));
            assert!(text.starts_with(choice.build().name()));
        }
        assert_eq!("hybrid".parse(), Ok(Choice::Hybrid(Passes::Exactly(1))));
        for wrong in ["", "hope", "hybrid:", "hybrid:-1", "precopy:2"] {
            assert_eq!(wrong.parse::<Choice>(), Err(NotAStrategy), "{wrong}");
        }
    }
}
