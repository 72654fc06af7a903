//! What a simulated migration came to. Times in seconds, sizes in bytes, rates in bytes per second, unless a name says otherwise.

use serde::Serialize;

/// One migration. The measures are those of the mission: preparation, downtime and resume time, total time, pages, faults,
/// degradation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario's name, with the swept values if it was part of a sweep.
    pub scenario: String,
    /// The strategy's name.
    pub strategy: String,
    /// What it has chosen, if it chooses; the last choice, if it has changed its mind.
    pub chosen: Option<String>,
    /// What it expected when it chose that.
    pub predicted: Option<Predicted>,
    /// The seed of its random numbers.
    pub seed: u64,
    /// From the request until the source may be switched off. With demand paging alone that never comes: then until the end of the
    /// simulation, and `is_finished` is false.
    pub total_s: f64,
    /// From the last instruction at the source to the first at the destination.
    pub downtime_s: f64,
    /// From the request until the freeze.
    pub preparation_s: f64,
    /// From the start at the destination until nothing is missing there.
    pub resume_s: f64,
    /// Whether nothing was missing at the end.
    pub is_finished: bool,
    /// Why it was switched over just then.
    pub stop_reason: Option<String>,
    /// Pages of the workload's memory.
    pub memory_pages: u64,
    /// Pages that travelled with content over the ordinary network, each time counted.
    pub pages_sent: u64,
    /// Pages of zeros that were told.
    pub pages_zero: u64,
    /// Pages that knowledge spared: never sent, because free, garbage, in the balloon or elsewhere to be had.
    pub pages_skipped: u64,
    /// Pages that came over the storage network.
    pub pages_from_storage: u64,
    /// Bytes on the ordinary network.
    pub bytes: u64,
    /// Bytes on the storage network.
    pub storage_bytes: u64,
    /// Accesses at the destination that had to wait for the network.
    pub network_faults: u64,
    /// How long those waited in all.
    pub fault_wait_s: f64,
    /// Time that the workload lost beside the downtime: faults, throttling, collections, pages that the balloon took too soon; as a
    /// share of the time from the request until the end, 0 to 1.
    pub slowdown: f64,
    /// CPU time that the migration itself took at the source (scanning, packing, collecting), in seconds.
    pub cpu_s: f64,
    /// Rounds, and the last pages.
    pub rounds: Vec<SimRound>,
    /// How it went, in time order.
    pub series: Vec<Sample>,
    /// When the application stood still, and why, in time order.
    pub pauses: Vec<Pause>,
    /// Events that were handled.
    pub events: u64,
    /// What happened, one line for each step, if the scenario asks for a log.
    pub log: Vec<String>,
    /// What a reader must know: an application that did not answer, a limit that was reached.
    pub notes: Vec<String>,
}

/// What was to be expected of a migration; compare with the values of the same names in [`Outcome`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Predicted {
    /// From the request until the end.
    pub total_s: f64,
    /// From the freeze until the start.
    pub downtime_s: f64,
    /// On the ordinary network.
    pub bytes: f64,
    /// Accesses that wait for the network.
    pub network_faults: f64,
}

/// One round, or the last pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SimRound {
    /// From 1 on.
    pub number: u32,
    /// Sent while the workload was frozen.
    pub frozen: bool,
    /// When it began, since the request.
    pub begun_s: f64,
    /// How long it took.
    pub duration_s: f64,
    /// Pages that were to be sent.
    pub pages_owed: u64,
    /// Pages sent with content.
    pub pages_sent: u64,
    /// Left out because they were written again in the same round.
    pub pages_rewritten: u64,
    /// Pages of zeros.
    pub pages_zero: u64,
    /// Pages that are not sent because a skip area or another fact spares them.
    pub pages_skipped: u64,
    /// Bytes per second that the workload dirtied before it.
    pub dirty_rate: Option<u64>,
}

/// The state at a moment, taken every so often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Since the request.
    pub at_s: f64,
    /// Bytes on the ordinary network so far.
    pub sent_bytes: u64,
    /// Bytes that the destination lacks.
    pub owed_bytes: u64,
    /// Bytes on the storage network so far.
    pub storage_bytes: u64,
    /// Network faults so far.
    pub network_faults: u64,
    /// What the application got done in the time since the sample before, as a share of what it gets done when it is left alone: 0 to 1.
    pub progress: f64,
}

/// The application stood still.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pause {
    /// Since the request.
    pub begun_s: f64,
    /// How long.
    pub duration_s: f64,
    /// `switch-over`, `collection`, `safepoint`, `disk`, `balloon`, `fault`.
    pub why: String,
}
