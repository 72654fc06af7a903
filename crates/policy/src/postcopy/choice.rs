//! Orders of the push by their names.

use alloc::boxed::Box;
use core::fmt;
use core::str::FromStr;

use super::{Bubbling, Demand, PrePaging, Push};

/// Threads whose last faults the push follows unless the user says otherwise.
pub const PIVOTS_MAX: usize = 16;

/// The order in which pages are pushed that nobody waits for, by its name and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Choice {
    /// None are: every page waits until it is touched.
    Demand,
    /// In order of their addresses.
    Push,
    /// Outwards from where threads last faulted.
    Bubbling {
        /// Threads that are followed at the same time.
        pivots_max: usize,
    },
}

impl Choice {
    /// The decisions behind it.
    pub fn order(self) -> Box<dyn PrePaging> {
        match self {
            Choice::Demand => Box::new(Demand),
            Choice::Push => Box::new(Push::default()),
            Choice::Bubbling { pivots_max } => Box::new(Bubbling::new(pivots_max)),
        }
    }
}

impl Default for Choice {
    fn default() -> Self {
        Choice::Bubbling {
            pivots_max: PIVOTS_MAX,
        }
    }
}

/// Why a text is no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnOrder;

impl fmt::Display for NotAnOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the order of the push is one of: demand, push, bubbling")
    }
}

impl core::error::Error for NotAnOrder {}

impl FromStr for Choice {
    type Err = NotAnOrder;

    fn from_str(name: &str) -> Result<Self, NotAnOrder> {
        match name {
            "demand" => Ok(Choice::Demand),
            "push" => Ok(Choice::Push),
            "bubbling" => Ok(Choice::default()),
            _ => Err(NotAnOrder),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.order().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn orders_have_the_names_that_the_decisions_have() {
        for name in ["demand", "push", "bubbling"] {
            let order: Choice = name.parse().unwrap();
            assert_eq!((order.to_string().as_str(), order.order().name()), (name, name));
        }
        assert!("bubble".parse::<Choice>().is_err());
    }
}
