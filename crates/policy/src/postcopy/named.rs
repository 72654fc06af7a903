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
pub enum Named {
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

impl Named {
    /// The decisions behind it.
    pub fn order(self) -> Box<dyn PrePaging> {
        match self {
            Named::Demand => Box::new(Demand),
            Named::Push => Box::new(Push::default()),
            Named::Bubbling { pivots_max } => Box::new(Bubbling::new(pivots_max)),
        }
    }
}

impl Default for Named {
    fn default() -> Self {
        Named::Bubbling {
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

impl FromStr for Named {
    type Err = NotAnOrder;

    fn from_str(name: &str) -> Result<Self, NotAnOrder> {
        match name {
            "demand" => Ok(Named::Demand),
            "push" => Ok(Named::Push),
            "bubbling" => Ok(Named::default()),
            _ => Err(NotAnOrder),
        }
    }
}

impl fmt::Display for Named {
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
            let order: Named = name.parse().unwrap();
            assert_eq!((order.to_string().as_str(), order.order().name()), (name, name));
        }
        assert!("bubble".parse::<Named>().is_err());
    }
}
