//! What is written down while it runs, and what it comes to.

use std::time::Duration;

use whimbrel_policy::postcopy::Metrics;
use whimbrel_policy::predict::Prediction;
use whimbrel_policy::{Migration, Round, PAGE_SIZE};

use super::guest::Guest;
use crate::{Outcome, Pause, Predicted, Sample, Scenario, SimRound};

/// Samples, pauses and lines of the log at most, each. Of samples and pauses every second one goes where there are more.
const LINES_MAX: usize = 100_000;

/// The book of one simulation.
#[derive(Debug)]
pub(crate) struct Book {
    pub outcome: Outcome,
    pub events: u64,
    is_logged: bool,
    vcpus: u32,
    /// Owed at the last scan, facts or not.
    owed_at_scan: u64,
    /// Owed now.
    pub owed_pages: u64,
    pub faults: u64,
    pub storage_bytes: u64,
    last_sample: Duration,
    lost_at_sample: Duration,
    /// While frozen: since when.
    pub frozen_at: Option<Duration>,
    frozen_before_sample: Duration,
}

impl Book {
    pub fn new(scenario: &Scenario) -> Self {
        Book {
            outcome: Outcome {
                scenario: scenario.name.clone(),
                seed: scenario.seed,
                memory_pages: scenario.memory_pages(),
                ..Outcome::default()
            },
            events: 0,
            is_logged: scenario.log,
            vcpus: scenario.guest.vcpus,
            owed_at_scan: 0,
            owed_pages: scenario.memory_pages(),
            faults: 0,
            storage_bytes: 0,
            last_sample: Duration::ZERO,
            lost_at_sample: Duration::ZERO,
            frozen_at: None,
            frozen_before_sample: Duration::ZERO,
        }
    }

    /// A line of the log, made only if there is one.
    pub fn log(&mut self, now: Duration, line: impl FnOnce() -> String) {
        if !self.is_logged {
            return;
        }
        if self.outcome.log.len() == LINES_MAX {
            self.note(&format!("the log ends after {LINES_MAX} lines"));
        } else {
            self.outcome
                .log
                .push(format!("{:.6} {}", now.as_secs_f64(), line()));
        }
    }

    /// What a reader must know, once.
    pub fn note(&mut self, note: &str) {
        if !self.outcome.notes.iter().any(|known| known == note) {
            self.outcome.notes.push(note.into());
        }
    }

    pub fn pause(&mut self, begun: Duration, time: Duration, why: &str) {
        let pauses = &mut self.outcome.pauses;
        pauses.push(Pause {
            begun_s: begun.as_secs_f64(),
            duration_s: time.as_secs_f64(),
            why: why.into(),
        });
        if pauses.len() == LINES_MAX {
            halve(pauses, |one, other| {
                if one.duration_s < other.duration_s {
                    *one = other;
                }
            });
            self.note("of many pauses only the longer ones are listed");
        }
    }

    pub fn cpu(&mut self, time: Duration) {
        self.outcome.cpu_s += time.as_secs_f64();
    }

    /// How it goes. `lost` is summed over the vCPUs.
    pub fn sample(&mut self, now: Duration, sent_bytes: u64, lost: Duration, is_running: bool) {
        let wall = (now - self.last_sample).as_secs_f64();
        let still = self
            .frozen_at
            .filter(|_| !is_running)
            .map_or(Duration::ZERO, |since| now - since.max(self.last_sample));
        let still = still + std::mem::take(&mut self.frozen_before_sample);
        let held_up =
            (lost - self.lost_at_sample).as_secs_f64() / f64::from(self.vcpus) + still.as_secs_f64();
        self.last_sample = now;
        self.lost_at_sample = lost;
        if wall > 0.0 {
            self.outcome.series.push(Sample {
                at_s: now.as_secs_f64(),
                sent_bytes,
                owed_bytes: self.owed_pages * PAGE_SIZE,
                storage_bytes: self.storage_bytes,
                network_faults: self.faults,
                progress: (1.0 - held_up / wall).clamp(0.0, 1.0),
            });
        }
    }

    /// Makes one sample of two, if there are many. True if it did: the next ones are to be as long as these.
    pub fn thinned(&mut self) -> bool {
        let is_full = self.outcome.series.len() == LINES_MAX;
        if is_full {
            halve(&mut self.outcome.series, |one, other| {
                let progress = (one.progress + other.progress) / 2.0;
                *one = Sample { progress, ..other };
            });
            self.note("there were too many samples for `sample-every`: they are further apart");
        }
        is_full
    }

    /// The workload runs again.
    pub fn resumed(&mut self, now: Duration) {
        if let Some(since) = self.frozen_at.take() {
            self.frozen_before_sample += now - since.max(self.last_sample);
            self.outcome.downtime_s = (now - since).as_secs_f64();
            self.pause(since, now - since, "switch-over");
        }
    }

    /// A scan was handed in, and a round may have begun.
    pub fn scanned(&mut self, now: Duration, migration: &Migration) {
        self.owed_pages = migration.progress(now).owed_pages;
        self.owed_at_scan = self.owed_pages;
    }

    /// Rounds that have ended since it was last looked at.
    pub fn rounds(&mut self, now: Duration, migration: &Migration) {
        for round in &migration.rounds()[self.outcome.rounds.len()..] {
            let skipped = self.owed_at_scan.saturating_sub(round.pages_owed);
            self.outcome.rounds.push(sim_round(now, round, skipped));
        }
    }

    /// What the decisions have counted before the switch-over.
    pub fn migration(&mut self, migration: &Migration, now: Duration) {
        let outcome = &mut self.outcome;
        outcome.strategy = migration.strategy().into();
        outcome.stop_reason = migration.stop_reason().map(|reason| reason.to_string());
        outcome.chosen = migration.choice().map(|choice| choice.course.name().into());
        outcome.predicted = migration.prediction().map(predicted);
        let progress = migration.progress(now);
        outcome.pages_sent = progress.sent_pages;
        outcome.pages_zero = progress.zero_pages;
    }

    /// What they have counted after it.
    pub fn residual(&mut self, metrics: &Metrics) {
        let outcome = &mut self.outcome;
        outcome.pages_sent += metrics.pages_pushed + metrics.pages_replied - metrics.pages_zero;
        outcome.pages_zero += metrics.pages_zero;
    }

    pub fn outcome(mut self, guest: &Guest, now: Duration) -> Outcome {
        let outcome = &mut self.outcome;
        outcome.total_s = now.as_secs_f64();
        outcome.events = self.events;
        outcome.network_faults = self.faults;
        outcome.storage_bytes = self.storage_bytes;
        let lost = guest.lost.as_secs_f64() / f64::from(self.vcpus);
        outcome.slowdown = (lost / outcome.total_s.max(1e-9)).clamp(0.0, 1.0);
        self.outcome
    }
}

/// Makes one of each two neighbours.
fn halve<T>(list: &mut Vec<T>, join: impl Fn(&mut T, T)) {
    let mut all = std::mem::take(list).into_iter();
    while let Some(mut one) = all.next() {
        if let Some(other) = all.next() {
            join(&mut one, other);
        }
        list.push(one);
    }
}

fn predicted(prediction: &Prediction) -> Predicted {
    Predicted {
        total_s: prediction.total_s.likely,
        downtime_s: prediction.downtime_s.likely,
        bytes: prediction.bytes.likely,
        network_faults: prediction.network_faults.likely,
    }
}

fn sim_round(now: Duration, round: &Round, skipped: u64) -> SimRound {
    SimRound {
        number: round.number,
        frozen: round.frozen,
        begun_s: now.saturating_sub(round.duration).as_secs_f64(),
        duration_s: round.duration.as_secs_f64(),
        pages_owed: round.pages_owed,
        pages_sent: round.pages_sent,
        pages_rewritten: round.pages_rewritten,
        pages_zero: round.pages_zero,
        pages_skipped: skipped,
        dirty_rate: round.dirty_rate,
    }
}
