//! One migration as a state machine: events come in, orders come out.

use alloc::vec::Vec;
use core::time::Duration;

use crate::pages::PageRun;

/// Goals that the user sets. Times are since the migration began unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Switch over as soon as the predicted downtime is at most this.
    pub downtime_max: Duration,
    /// At most this many rounds of pre-copy, the first full pass included.
    pub rounds_max: u32,
    /// At most this many percent of the workload's memory are sent before the switch-over.
    pub traffic_percent_max: u32,
    /// Bulk bytes per second, `None` for as fast as the link goes.
    pub bandwidth_max: Option<u64>,
}

/// What a scan for written pages found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Pages written since the scan before (in the first scan: every page with content of its own).
    pub written: Vec<PageRun>,
    /// Pages whose mapping went away or became another: nothing is owed for them, and what the destination
    /// has of them it has dropped while it followed the layout. May be very long runs. Applied before `written`.
    pub lost: Vec<PageRun>,
    /// Only when the workload is frozen: every page with content of its own (no holes, zero pages, or
    /// unmodified file pages).
    pub present: Option<Vec<PageRun>>,
}

/// What became of an [`Order::Send`]. Pages of the order that no list names were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Full of zeros: told, without payload.
    pub zero: Vec<PageRun>,
    /// Not sent, because they were written again since the last scan: the next scan will report them.
    pub rewritten: Vec<PageRun>,
    /// Could not be read (unmapped meanwhile); their dirty bits are gone, so they stay owed.
    pub failed: Vec<PageRun>,
    /// Bytes put on the wire.
    pub wire_bytes: u64,
    /// Time in which the link, not the reader, was the bottleneck.
    pub wire_busy: Duration,
}

/// Something happened. `now` is passed beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer to [`Order::Scan`] and [`Order::ScanLast`].
    Scanned(Scan),
    /// The answer to [`Order::Send`].
    Sent(Sent),
    /// The answer to [`Order::Freeze`].
    Frozen,
    /// The state was captured: so many bytes are still to be sent beside the pages.
    Captured {
        /// Size of the state.
        state_bytes: u64,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Collect the pages written since the last scan and clear their marks, while the workload runs.
    Scan,
    /// Send these pages, in this order, leaving out those written again since the scan if so told.
    Send {
        /// At most [`Migration::BATCH_PAGES_MAX`] pages in all.
        runs: Vec<PageRun>,
        /// Look again before sending, and leave out what was written meanwhile (never once frozen).
        skip_rewritten: bool,
    },
    /// The destination forgets these pages. Travels in order with the pages; no answer.
    Drop {
        /// What to forget.
        runs: Vec<PageRun>,
    },
    /// Stop the workload. Answered by [`Event::Frozen`].
    Freeze,
    /// Capture the state of the frozen workload. Answered by [`Event::Captured`].
    Capture,
    /// The last scan, with `present`.
    ScanLast,
    /// Do nothing until then (the bandwidth limit).
    Wait {
        /// Time since the migration began.
        until: Duration,
    },
    /// Nothing is owed any more: hand over.
    HandOver,
}

/// The decisions of one migration.
#[derive(Debug)]
pub struct Migration {}
