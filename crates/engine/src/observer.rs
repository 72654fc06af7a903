//! What a migration tells whoever watches: progress lines, JSON lines, summaries and tests are made of it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::residual::ResidualProgress;

/// A step of a migration, at the one end or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Source: can it move at all?
    Check,
    /// Source: reach the destination and prove the key.
    Connect,
    /// Both: the destination checks and builds the empty shell.
    Prepare,
    /// Source: begin to track writes.
    Track,
    /// Source: one round of pre-copy. Destination: take in layouts and pages.
    Round,
    /// Source: stop the workload.
    Freeze,
    /// Source: collect the state beside the memory.
    Capture,
    /// Source: find what was written last.
    LastScan,
    /// Source: send it.
    LastPages,
    /// Source: make the freeze outlive us.
    Hold,
    /// Destination: build the workload from its state, and take in the last pages.
    Build,
    /// Destination: complete the workload. Source: wait for it.
    Load,
    /// Source: journal the offer, make it, and wait for the answer. Destination: wait for the offer.
    Offer,
    /// Destination: journal the commit.
    Commit,
    /// Destination: let it run.
    Start,
    /// Destination: what can wait until it runs.
    Settle,
    /// Source: send what the workload lacks at the destination, where it runs.
    Serve,
    /// Destination: fetch what the workload lacks, while it runs.
    Fetch,
    /// Source: end the copy here.
    Release,
}

/// The phases at the source, in order.
pub const SOURCE_PHASES: [Phase; 13] = [
    Phase::Check,
    Phase::Connect,
    Phase::Prepare,
    Phase::Track,
    Phase::Round,
    Phase::Freeze,
    Phase::Capture,
    Phase::LastScan,
    Phase::LastPages,
    Phase::Hold,
    Phase::Load,
    Phase::Offer,
    Phase::Release,
];

/// The phases with which a migration goes on after the start if the workload lacks pages then: at the source before
/// [`Phase::Release`], at the destination the last one.
pub const RESIDUAL_PHASES: [Phase; 2] = [Phase::Serve, Phase::Fetch];

/// The phases at the destination, in order.
pub const DESTINATION_PHASES: [Phase; 8] = [
    Phase::Prepare,
    Phase::Round,
    Phase::Build,
    Phase::Load,
    Phase::Offer,
    Phase::Commit,
    Phase::Start,
    Phase::Settle,
];

impl Phase {
    /// The name that users see and tests ask for.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Check => "check",
            Phase::Connect => "connect",
            Phase::Prepare => "prepare",
            Phase::Track => "track",
            Phase::Round => "round",
            Phase::Freeze => "freeze",
            Phase::Capture => "capture",
            Phase::LastScan => "last-scan",
            Phase::LastPages => "last-pages",
            Phase::Hold => "hold",
            Phase::Build => "build",
            Phase::Load => "load",
            Phase::Offer => "offer",
            Phase::Commit => "commit",
            Phase::Start => "start",
            Phase::Settle => "settle",
            Phase::Serve => "serve",
            Phase::Fetch => "fetch",
            Phase::Release => "release",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a text is no phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no phase of this name")]
pub struct NotAPhase;

impl FromStr for Phase {
    type Err = NotAPhase;

    fn from_str(name: &str) -> Result<Self, NotAPhase> {
        SOURCE_PHASES
            .into_iter()
            .chain(DESTINATION_PHASES)
            .chain(RESIDUAL_PHASES)
            .find(|p| p.name() == name)
            .ok_or(NotAPhase)
    }
}

/// How it goes. All times in microseconds, all rates in bytes per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Since the migration began.
    pub elapsed_us: u64,
    /// Round of pre-copy, from 1 on; 0 before the first.
    pub round: u32,
    /// Bytes put on the wire for pages so far.
    pub sent_bytes: u64,
    /// Bytes of pages that are still owed.
    pub owed_bytes: u64,
    /// Bytes of the workload's memory.
    pub memory_bytes: u64,
    /// Bytes per second in this round, pauses included.
    pub send_rate: Option<u64>,
    /// Bandwidth of the link, measured while it was busy.
    pub bandwidth: Option<u64>,
    /// Bytes per second that the workload dirties.
    pub dirty_rate: Option<u64>,
    /// Downtime if it were frozen now.
    pub predicted_downtime_us: Option<u64>,
    /// Time until the switch-over, an estimate.
    pub left_us: Option<u64>,
}

/// One round of pre-copy, or the last pages (the frozen round).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// From 1 on.
    pub number: u32,
    /// True for the pages that were sent while the workload was frozen.
    pub frozen: bool,
    /// Pages that were to be sent.
    pub pages_owed: u64,
    /// Pages with content.
    pub pages_sent: u64,
    /// Zero pages.
    pub pages_zero: u64,
    /// Left out because they were written again in the same round.
    pub pages_rewritten: u64,
    /// Could not be read.
    pub pages_failed: u64,
    /// Bytes put on the wire.
    pub wire_bytes: u64,
    /// Its duration.
    pub duration_us: u64,
    /// Bytes per second that the workload dirtied, as its scan found.
    pub dirty_rate: Option<u64>,
    /// Bytes per second of the link, while it was busy.
    pub bandwidth: Option<u64>,
}

/// Is told what happens, on the thread that does it. Long work here makes the migration longer. Each method has an
/// empty body, so that an observer only takes what it wants.
pub trait Observer {
    /// A phase begins. [`Phase::Round`] begins once for each round.
    fn begun(&mut self, _phase: Phase) {}
    /// It ended, well or not.
    fn ended(&mut self, _phase: Phase, _duration: Duration) {}
    /// Several times a second while pages are sent.
    fn progress(&mut self, _progress: &Progress) {}
    /// Several times a second while pages follow after the switch-over.
    fn residual(&mut self, _progress: &ResidualProgress) {}
    /// A round is over.
    fn round(&mut self, _round: &Round) {}
    /// Something that the user should know, in one sentence; the migration goes on.
    fn warning(&mut self, _sentence: &str) {}
}

/// Watches nothing.
impl Observer for () {}

/// Both are told.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn begun(&mut self, phase: Phase) {
        self.0.begun(phase);
        self.1.begun(phase);
    }

    fn ended(&mut self, phase: Phase, duration: Duration) {
        self.0.ended(phase, duration);
        self.1.ended(phase, duration);
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.progress(progress);
        self.1.progress(progress);
    }

    fn residual(&mut self, progress: &ResidualProgress) {
        self.0.residual(progress);
        self.1.residual(progress);
    }

    fn round(&mut self, round: &Round) {
        self.0.round(round);
        self.1.round(round);
    }

    fn warning(&mut self, sentence: &str) {
        self.0.warning(sentence);
        self.1.warning(sentence);
    }
}

/// How long a phase took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// When it began, since the migration began.
    pub begun_us: u64,
    /// How long it took.
    pub duration_us: u64,
}

/// Tells the observer of phases and remembers their times.
pub(crate) struct Timeline<'a> {
    pub observer: &'a mut dyn Observer,
    begun: Instant,
    current: Option<(Phase, Instant)>,
    times: Vec<PhaseTime>,
}

impl<'a> Timeline<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Self {
            observer,
            begun: Instant::now(),
            current: None,
            times: Vec::new(),
        }
    }

    /// Ends the phase before, if there is one, and begins `phase`.
    pub fn begin(&mut self, phase: Phase) {
        self.end();
        // The observer may take its time (a test stops us there): that belongs to the phase.
        self.current = Some((phase, Instant::now()));
        self.observer.begun(phase);
    }

    pub fn end(&mut self) {
        if let Some((phase, begun)) = self.current.take() {
            let duration = begun.elapsed();
            let begun_us = micros(begun.duration_since(self.begun));
            self.times.push(PhaseTime {
                phase,
                begun_us,
                duration_us: micros(duration),
            });
            self.observer.ended(phase, duration);
        }
    }

    pub fn phase(&self) -> Option<Phase> {
        self.current.map(|(phase, _)| phase)
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn times(&self) -> &[PhaseTime] {
        &self.times
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_reads_back_by_its_name() {
        for phase in SOURCE_PHASES.into_iter().chain(DESTINATION_PHASES) {
            assert_eq!(phase.name().parse(), Ok(phase));
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{phase}\""));
        }
        assert_eq!("lunch".parse::<Phase>(), Err(NotAPhase));
    }
}
