//! What the decisions of one migration were told, and what they decided: as a list that can be written down, and decided again.
//!
//! ```text
//!  Head                                 how the decisions were made: strategy, limits, what was known beforehand
//!  Line*   Event, Order, Refused        what a Migration saw, in the order in which it saw it
//!  Line    Serve                        only if it left a residue: a Residual begins
//!  Line*   Aim, Hurry, Fault,           what the Residual saw
//!          Told, Ordered
//!  Line    End, or Cut
//! ```
//!
//! An order follows from what was told before it and from the time at which it was asked for, and from nothing else. So whoever
//! tells the same to the same decisions at the same times gets the same orders.

use alloc::borrow::Cow;
use alloc::string::String;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pages::{Page, Pages};
use crate::{migration, postcopy, strategy};

/// Goes up whenever older readers would misread a trace.
pub const FORMAT: u32 = 1;

/// A trace is not longer; one that would be ends with [`Step::Cut`].
pub const TRACE_BYTES_MAX: u64 = 1 << 30;
/// Nor is a line of it: some ten million runs of pages.
pub const LINE_BYTES_MAX: u64 = 1 << 28;

/// The first line: how the decisions were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of whimbrel that decided.
    pub whimbrel: String,
    /// The strategy, with its parameters.
    pub strategy: strategy::Named,
    /// The user's goals.
    pub limits: migration::Limits,
    /// What was known beforehand.
    pub hints: migration::Hints,
    /// The order of the push, if pages are left for it.
    pub prepaging: postcopy::Named,
    /// The user's goals for that.
    pub residual_limits: postcopy::Limits,
}

/// Every other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line<'a> {
    /// Nanoseconds on the clock of whoever saw it: that of the migration, or from [`Step::Serve`] on that of the residual phase.
    pub at_ns: u64,
    /// What was seen.
    pub step: Step<'a>,
}

impl Line<'_> {
    /// The time that was passed in with it.
    pub fn at(&self) -> Duration {
        Duration::from_nanos(self.at_ns)
    }
}

/// Something that the decisions were told, or have decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step<'a> {
    /// [`crate::Migration::handle`] was called.
    Event(Cow<'a, migration::Event>),
    /// It did not take the event in: its error, as text.
    Refused(Cow<'a, str>),
    /// [`crate::Migration::poll`] has answered.
    Order(Cow<'a, migration::Order>),
    /// [`postcopy::Residual::new`] was called.
    Serve {
        /// What the destination lacks: [`crate::Migration::residual`].
        pages: Cow<'a, Pages>,
        /// What the rounds have told of the link.
        path: postcopy::Path,
    },
    /// [`postcopy::Residual::aim`] was called.
    Aim {
        /// Who is about to touch it.
        thread: postcopy::ThreadId,
        /// What.
        page: Page,
    },
    /// [`postcopy::Residual::hurry`] was called.
    Hurry,
    /// [`postcopy::Residual::fault`] was called and has answered.
    Fault {
        /// What was told.
        fault: postcopy::Fault,
        /// What was decided.
        answer: postcopy::Answer,
    },
    /// [`postcopy::Residual::handle`] was called.
    Told(Cow<'a, postcopy::Event>),
    /// [`postcopy::Residual::poll`] has answered.
    Ordered(Cow<'a, postcopy::Order>),
    /// The controller has seen no more: all of it is here.
    End,
    /// The migration went on, but no more of it was written.
    Cut,
}
