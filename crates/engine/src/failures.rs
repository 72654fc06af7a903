//! What failed on the way through a switch-over, at either end.

use crate::error::{Error, Result};

/// Attempts at a step on this host (journal, start, release, discard) before it is left to the next command.
const ATTEMPTS_MAX: u32 = 5;

/// Why it went as it did, and how often in a row a step on this host has failed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// Why it is not moved, or why the link was lost: the first reason counts.
    pub why: Option<Error>,
    in_a_row: u32,
}

impl Failures {
    /// A step whose failure is an answer. Whether it was done.
    pub fn note(&mut self, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                self.why.get_or_insert(error);
                false
            }
        }
    }

    /// A step that only this host can get wrong: it is tried again, but not for ever. Whether it was done; the first failure in a row
    /// is told.
    pub fn note_here(&mut self, result: Result<()>, tell: impl FnOnce(&str)) -> bool {
        let Err(error) = result else {
            self.in_a_row = 0;
            return true;
        };
        self.in_a_row += 1;
        if self.in_a_row == 1 {
            tell(&error.to_string());
        }
        if self.in_a_row >= ATTEMPTS_MAX {
            self.why = Some(error);
        }
        false
    }

    /// Why a step on this host is not tried again.
    pub fn given_up(&mut self) -> Option<Error> {
        (self.in_a_row >= ATTEMPTS_MAX).then(|| self.why.take().unwrap_or(Error::Fenced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(what: &str) -> Result<()> {
        Err(Error::Internal(what.into()))
    }

    #[test]
    fn a_step_is_tried_five_times_in_a_row() {
        let (mut failures, mut told) = (Failures::default(), 0);
        failures.note(failed("before"));
        for _ in 0..4 {
            assert!(!failures.note_here(failed("here"), |_| told += 1));
        }
        assert!(failures.note_here(Ok(()), |_| told += 1));
        for attempt in 1..=5 {
            assert!(failures.given_up().is_none(), "attempt {attempt}");
            failures.note_here(failed("again"), |_| told += 1);
        }
        assert_eq!(told, 2);
        let why = failures.given_up().map(|error| error.to_string());
        assert!(why.is_some_and(|why| why.contains("again")));
    }

    #[test]
    fn the_first_reason_counts() {
        let mut failures = Failures::default();
        assert!(failures.note(Ok(())));
        assert!(!failures.note(failed("first")) && !failures.note(failed("second")));
        assert!(failures.why.is_some_and(|why| why.to_string().contains("first")));
    }
}
