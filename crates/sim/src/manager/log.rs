//! What happened, a line each.

use std::fmt::Write;
use std::time::Duration;

/// Lines that are kept. What comes after them is counted.
pub(super) const LINES_MAX: usize = 200_000;

/// The log of a manager, in the order of its clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    text: String,
    lines: usize,
    left_out: u64,
}

impl Log {
    pub fn add(&mut self, now: Duration, line: &str) {
        if self.lines >= LINES_MAX {
            self.left_out += 1;
            return;
        }
        self.lines += 1;
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "{:>12} {line}", clock(now));
    }

    /// All of it.
    pub fn text(&self) -> String {
        match self.left_out {
            0 => self.text.clone(),
            left_out => format!("{}and {left_out} lines more, which were not kept\n", self.text),
        }
    }
}

/// Seconds with milliseconds.
pub(super) fn clock(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_and_lines_without_end_are_counted() {
        let mut log = Log::default();
        log.add(Duration::from_millis(1500), "a page");
        assert_eq!(log.text(), "     1.500 s a page\n");
        (0..LINES_MAX).for_each(|_| log.add(Duration::ZERO, "x"));
        assert!(log.text().ends_with("and 1 lines more, which were not kept\n"));
    }
}
