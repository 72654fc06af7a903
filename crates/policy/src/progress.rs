//! What a migration tells of itself, for display and records. Sizes in pages or bytes, rates in bytes per second.

use core::fmt;
use core::time::Duration;

use crate::ledger::Counts;

/// What is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a scan of the running workload.
    #[default]
    Scan,
    /// Sends a round's pages.
    Round,
    /// Waits for the workload to be frozen.
    Freeze,
    /// Waits for its state.
    Capture,
    /// Waits for the scan of the frozen workload.
    LastScan,
    /// Sends the last pages.
    LastPages,
    /// Has nothing more to order.
    HandOver,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Scan => "scan",
            Phase::Round => "round",
            Phase::Freeze => "freeze",
            Phase::Capture => "capture",
            Phase::LastScan => "last scan",
            Phase::LastPages => "last pages",
            Phase::HandOver => "hand over",
        })
    }
}

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// Since the migration began.
    pub elapsed: Duration,
    /// Round of pre-copy, from 1 on, or of the last pages; 0 before the first scan.
    pub round: u32,
    /// Pages that the destination lacks.
    pub owed_pages: u64,
    /// Those of them that this round has still to order.
    pub round_left_pages: u64,
    /// Pages of the workload, as far as is known.
    pub memory_pages: u64,
    /// Pages sent with content so far.
    pub sent_pages: u64,
    /// Zero pages told so far.
    pub zero_pages: u64,
    /// Bytes put on the wire for pages so far.
    pub sent_bytes: u64,
    /// Bytes per second in this round, pauses included.
    pub send_rate: Option<u64>,
    /// Bytes per second of the link while it was busy, or the limit on it if that is lower.
    pub bandwidth: Option<u64>,
    /// Bytes per second that the workload dirties.
    pub dirty_rate: Option<u64>,
    /// Downtime if it were frozen now.
    pub predicted_downtime: Option<Duration>,
    /// Until nothing is owed, if the rates stay; `None` if they are unknown or it would never end.
    pub left: Option<Duration>,
}

/// One round, or the last pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// From 1 on.
    pub number: u32,
    /// True for the pages that were sent while the workload was frozen.
    pub frozen: bool,
    /// Pages that were to be sent.
    pub pages_owed: u64,
    /// Pages sent with content.
    pub pages_sent: u64,
    /// Zero pages told.
    pub pages_zero: u64,
    /// Pages left out because they were written again in the same round.
    pub pages_rewritten: u64,
    /// Pages that could not be read.
    pub pages_failed: u64,
    /// Bytes put on the wire.
    pub wire_bytes: u64,
    /// From its scan to its last page.
    pub duration: Duration,
    /// Bytes per second that the workload dirtied before it, as its scan found.
    pub dirty_rate: Option<u64>,
    /// Bytes per second of the link while it was busy, as of the round's end.
    pub bandwidth: Option<u64>,
}

impl Round {
    pub(crate) fn add(&mut self, counts: &Counts, wire_bytes: u64) {
        self.pages_sent += counts.sent;
        self.pages_zero += counts.zero;
        self.pages_rewritten += counts.rewritten;
        self.pages_failed += counts.failed;
        self.wire_bytes = self.wire_bytes.saturating_add(wire_bytes);
    }
}
