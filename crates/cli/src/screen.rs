//! What the user sees of a migration: one line that changes on a terminal, a line for each step elsewhere. All of it goes to
//! standard error; standard output has the result.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use whimbrel_engine::observer::PhaseTime;
use whimbrel_engine::summary::{Bytes, Predicted, Summary, Time};
use whimbrel_engine::{Observer, Phase, Progress, ResidualProgress, Round};

/// How often a line is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The user's view.
pub struct Screen {
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
    printed: Instant,
}

impl Screen {
    /// Begins to draw.
    pub fn new() -> Self {
        Self {
            bar: std::io::stderr().is_terminal().then(bar),
            phase: None,
            printed: Instant::now(),
        }
    }

    /// Takes the changing line away.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        // A destination that receives again begins anew.
        if self.bar.is_some() {
            self.bar = Some(bar());
        }
        self.phase = None;
    }

    fn say(&self, line: &str) {
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

/// Drawn when something changes, at most ten times a second.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    match ProgressStyle::with_template("{bar:20} {wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Observer for Screen {
    fn begun(&mut self, phase: Phase) {
        let before = self.phase.replace(phase);
        match &self.bar {
            Some(bar) => bar.set_message(phase.name()),
            // Rounds have lines of their own.
            None if before != Some(phase) => self.say(&format!("{phase}")),
            None => {}
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.sent_bytes.saturating_add(progress.owed_bytes));
            bar.set_position(progress.sent_bytes);
            bar.set_message(line(progress));
        } else if self.printed.elapsed() >= PLAIN_EVERY {
            self.printed = Instant::now();
            self.say(&line(progress));
        }
    }

    fn residual(&mut self, progress: &ResidualProgress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.pages_bytes);
            bar.set_position(progress.pages_bytes.saturating_sub(progress.owed_bytes));
            bar.set_message(residual_line(progress));
        } else if self.printed.elapsed() >= PLAIN_EVERY {
            self.printed = Instant::now();
            self.say(&residual_line(progress));
        }
    }

    fn round(&mut self, round: &Round) {
        if self.bar.is_none() {
            self.say(&round_line(round));
        }
    }

    fn warning(&mut self, sentence: &str) {
        self.say(&format!("whimbrel: {sentence}"));
    }
}

/// Round, bytes sent, rates, time left, and the downtime if it were frozen now, as far as they are known.
fn line(progress: &Progress) -> String {
    let mut text = match progress.round {
        0 => String::new(),
        round => format!("round {round}  "),
    };
    // Writing to a string does not fail.
    let _ = write!(text, "{} sent", Bytes(progress.sent_bytes));
    if let Some(rate) = progress.bandwidth {
        let _ = write!(text, "  {}/s", Bytes(rate));
    }
    if let Some(rate) = progress.dirty_rate {
        let _ = write!(text, "  dirties {}/s", Bytes(rate));
    }
    if let Some(left) = progress.left_us {
        let _ = write!(text, "  {} left", Time(left));
    }
    if let Some(downtime) = progress.predicted_downtime_us {
        let _ = write!(text, "  down {} if stopped now", Time(downtime));
    }
    text
}

/// What is left, the rate, and what it costs the workload.
fn residual_line(progress: &ResidualProgress) -> String {
    let mut text = format!("runs there  {} left", Bytes(progress.owed_bytes));
    if let Some(rate) = progress.send_rate {
        let _ = write!(text, "  {}/s", Bytes(rate));
    }
    let _ = write!(text, "  {} faults", progress.network_faults);
    let times = &progress.times.all;
    if times.faults > 0 {
        let _ = write!(
            text,
            " (half within {}, 99 % within {}, longest {})",
            Time(times.p50_us),
            Time(times.p99_us),
            Time(times.max_us)
        );
    }
    if let Some(why) = &progress.lost {
        let _ = write!(text, "  link lost: {why}");
    }
    text
}

fn round_line(round: &Round) -> String {
    let mut text = match round.frozen {
        true => "last pages".to_owned(),
        false => format!("round {}", round.number),
    };
    let _ = write!(text, ": {} pages, {} zero", round.pages_sent, round.pages_zero);
    for (count, what) in [
        (round.pages_rewritten, "written again"),
        (round.pages_failed, "gone meanwhile"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    let _ = write!(text, ", in {}", Time(round.duration_us));
    text
}

/// The times of all phases, and the summary as the last line.
pub fn result(summary: &Summary) -> String {
    let mut text = String::new();
    for (phase, duration_us) in phase_sums(&summary.phases) {
        let _ = writeln!(text, "{phase:<12}{:>10}", Time(duration_us).to_string());
    }
    if let Some(reason) = &summary.stop_reason {
        let _ = writeln!(text, "switched over because {reason}");
    }
    if let Some(predicted) = &summary.predicted {
        text.push_str(&against(predicted, summary));
    }
    let _ = writeln!(text, "{summary}");
    text
}

/// What was expected beside what came of it.
fn against(predicted: &Predicted, summary: &Summary) -> String {
    let mut text = format!("chose {}\n", predicted.choice);
    let faults = summary
        .residual
        .as_ref()
        .map_or(0, |residual| residual.network_faults);
    let rows = [
        (
            "total",
            Time(predicted.total_us).to_string(),
            Time(summary.total_us).to_string(),
        ),
        (
            "down",
            Time(predicted.downtime_us).to_string(),
            Time(summary.downtime_us).to_string(),
        ),
        (
            "bytes",
            Bytes(predicted.bytes).to_string(),
            Bytes(summary.wire_bytes()).to_string(),
        ),
        ("faults", predicted.network_faults.to_string(), faults.to_string()),
    ];
    let _ = writeln!(text, "{:<12}{:>10}  {:>10}", "", "predicted", "actual");
    for (what, predicted, actual) in rows {
        let _ = writeln!(text, "{what:<12}{predicted:>10}  {actual:>10}");
    }
    text
}

/// Each phase once, in the order of their first beginnings: rounds begin many times.
fn phase_sums(times: &[PhaseTime]) -> Vec<(Phase, u64)> {
    let mut sums: Vec<(Phase, u64)> = Vec::new();
    for time in times {
        match sums.iter_mut().find(|(phase, _)| *phase == time.phase) {
            Some((_, sum)) => *sum += time.duration_us,
            None => sums.push((time.phase, time.duration_us)),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_what_is_known() {
        let mut progress = Progress {
            sent_bytes: 12_000_000,
            ..Progress::default()
        };
        assert_eq!(line(&progress), "12.0 MB sent");
        progress.round = 3;
        progress.bandwidth = Some(118_000_000);
        progress.dirty_rate = Some(24_000_000);
        progress.left_us = Some(1_200_000);
        progress.predicted_downtime_us = Some(31_000);
        let expected =
            "round 3  12.0 MB sent  118.0 MB/s  dirties 24.0 MB/s  1.20 s left  down 31.0 ms if stopped now";
        assert_eq!(line(&progress), expected);
    }

    #[test]
    fn a_round_is_one_line() {
        let mut round = Round {
            number: 2,
            pages_sent: 7,
            pages_zero: 1,
            duration_us: 4200,
            ..Round::default()
        };
        assert_eq!(round_line(&round), "round 2: 7 pages, 1 zero, in 4.2 ms");
        round.pages_rewritten = 3;
        round.frozen = true;
        assert_eq!(
            round_line(&round),
            "last pages: 7 pages, 1 zero, 3 written again, in 4.2 ms"
        );
    }

    #[test]
    fn rounds_are_added_up() {
        let time = |phase, duration_us| PhaseTime {
            phase,
            begun_us: 0,
            duration_us,
        };
        let times = [
            time(Phase::Round, 5),
            time(Phase::Round, 6),
            time(Phase::Freeze, 1),
        ];
        assert_eq!(phase_sums(&times), [(Phase::Round, 11), (Phase::Freeze, 1)]);
    }
}
