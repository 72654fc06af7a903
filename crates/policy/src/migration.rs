//! One migration as a state machine: events come in, orders come out.
//!
//! ```text
//!  live:     Scan -> Send* -> Scan -> Send* ... -> Freeze -> Capture -> ScanLast -> Drop? -> Send* -> HandOver
//!  stopped:                                        Freeze -> Capture -> ScanLast ->          Send* -> HandOver
//! ```
//!
//! The state is captured before the last scan, because capturing may write in the workload's memory.
//!
//! A strategy that leaves a residue (post-copy, hybrid) sends only those last pages that are urgent ([`Scan::urgent`]), and
//! [`Migration::residual`] names what is to follow. A [`crate::postcopy::Residual`] decides how.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::dirty::DirtyCurve;
use crate::estimate::{dirty_rate, rate, time_for, Bandwidth};
use crate::fact::{Fact, Facts, Knowledge};
use crate::ledger::{Counts, Ledger};
use crate::pages::{Page, PageRun, Pages, RunTooLong};
use crate::predict::{Choice, Prediction};
use crate::progress::{Phase, Progress, Round};
use crate::strategy::{bytes_of, Decision, Named, RoundFacts, StopCopy, StopReason, Strategy};

/// Goals that the user sets. Times are since the migration began unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Limits {
    /// Switch over as soon as the predicted downtime is at most this.
    pub downtime_max: Duration,
    /// At most this many rounds of pre-copy, the first full pass included.
    pub rounds_max: u32,
    /// At most this many percent of the workload's memory are sent before the switch-over.
    pub traffic_percent_max: u32,
    /// Bulk bytes per second, `None` for as fast as the link goes. Holds while the workload is frozen, too.
    pub bandwidth_max: Option<u64>,
}

impl Default for Limits {
    /// 50 ms, 30 rounds, three times the memory (the limits of Xen's pre-copy), as fast as the link goes.
    fn default() -> Self {
        Limits {
            downtime_max: Duration::from_millis(50),
            rounds_max: 30,
            traffic_percent_max: 300,
            bandwidth_max: None,
        }
    }
}

/// What is known beforehand, from the workload or from earlier migrations. Everything is optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Hints {
    /// Pages of the workload; 0 if unknown, then the first scan tells.
    pub memory_pages: u64,
    /// Bytes of the state beside the memory.
    pub state_bytes: u64,
    /// The part of the downtime that does not depend on the pages: freeze, capture, scan, rebuild, round trips.
    pub fixed_cost: Duration,
    /// Bytes per second of the link, believed until it was measured.
    pub bandwidth: Option<u64>,
}

impl Default for Hints {
    /// 20 ms and 512 KiB: a JVM with some 35 threads and 250 mappings, measured on Linux 6.18.
    fn default() -> Self {
        Hints {
            memory_pages: 0,
            state_bytes: 512 << 10,
            fixed_cost: Duration::from_millis(20),
            bandwidth: None,
        }
    }
}

/// What a scan for written pages found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Scan {
    /// Pages written since the scan before (in the first scan: every page with content of its own).
    pub written: Vec<PageRun>,
    /// Pages whose mapping went away or became another: nothing is owed for them, and what the destination
    /// has of them it has dropped while it followed the layout. May be very long runs. Applied before `written`.
    pub lost: Vec<PageRun>,
    /// Only when the workload is frozen: every page with content of its own (no holes, zero pages, or
    /// unmodified file pages).
    pub present: Option<Vec<PageRun>>,
    /// Pages that may not be left behind, because their absence cannot be served at the
    /// destination or building it touches them. Final when the workload is frozen. Names of pages that are not owed are ignored.
    pub urgent: Vec<PageRun>,
}

/// What became of an [`Order::Send`]. Pages of the order that no list names were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sent {
    /// Full of zeros: told, without payload.
    pub zero: Vec<PageRun>,
    /// Not sent, because they were written again since the last scan: the next scan will report them.
    pub rewritten: Vec<PageRun>,
    /// Could not be read (unmapped meanwhile); their dirty bits are gone, so they stay owed.
    pub failed: Vec<PageRun>,
    /// Bytes put on the wire.
    pub wire_bytes: u64,
    /// What they were before they were packed; less than `wire_bytes` if nothing was.
    pub page_bytes: u64,
    /// Time in which pages with content were read and sent, one after the other without a pause, and until they had arrived. Reading
    /// counts too: the last pages go the same way, at the same pace.
    pub busy: Duration,
}

/// Something happened. `now` is passed beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
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
    /// Somebody knows something about pages. May come at any time before the freeze; counts at once for pages
    /// that were not ordered yet.
    Facts(Vec<Fact>),
    /// Nothing is known of these pages any more: whatever facts spared them, they are sent from the next round on. May come
    /// at any time before the freeze.
    Forgotten(Vec<PageRun>),
    /// The destination has these pages from elsewhere, as [`Knowledge::OnStorage`] said. Those of which that does not hold any more
    /// (they were written meanwhile) stay owed. May come at any time before the freeze.
    Fetched(Vec<PageRun>),
    /// The answer to [`Order::Sample`].
    Sampled {
        /// Pages written since the last scan.
        written_pages: u64,
    },
    /// The generation of the layout, for facts that hold for one. May come at any time before the freeze.
    LayoutIs {
        /// Goes up with each change.
        generation: u64,
    },
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Event::Scanned(_) => "Scanned",
            Event::Sent(_) => "Sent",
            Event::Frozen => "Frozen",
            Event::Captured { .. } => "Captured",
            Event::Facts(_) => "Facts",
            Event::Forgotten(_) => "Forgotten",
            Event::Fetched(_) => "Fetched",
            Event::Sampled { .. } => "Sampled",
            Event::LayoutIs { .. } => "LayoutIs",
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
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
    /// Count the pages written since the last scan, clear nothing, while the workload runs.
    Sample,
    /// The destination forgets these pages: they are gone, or they are older copies of residual pages, which have to
    /// fault. Travels in order with the pages; no answer, so it is ordered once.
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
    /// Do nothing until then (the bandwidth limit), and ask again; nothing needs to happen in between.
    Wait {
        /// Time since the migration began.
        until: Duration,
    },
    /// Nothing is owed any more, or what is owed follows afterwards ([`Migration::residual`]): hand over.
    HandOver,
}

/// Why an event cannot be taken in. The migration is as it was before, and must be given up: whoever drives it and the
/// decisions do not agree any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationError {
    /// It is no answer to the order.
    Unexpected {
        /// The event.
        event: &'static str,
        /// What was going on.
        phase: Phase,
    },
    /// A run of pages that no set can hold.
    Run(RunTooLong),
    /// The last scan did not say which pages are present.
    PresentMissing,
    /// A page of the frozen workload could not be read, or is said to be written again.
    Unreadable {
        /// The first of them.
        page: Page,
    },
}

impl fmt::Display for MigrationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MigrationError::Unexpected { event, phase } => {
                write!(
                    f,
                    "the event {event} does not belong into the phase {phase} of a migration"
                )
            }
            MigrationError::Run(run) => run.fmt(f),
            MigrationError::PresentMissing => {
                write!(
                    f,
                    "the scan of the frozen workload does not say which pages are present"
                )
            }
            MigrationError::Unreadable { page } => write!(
                f,
                "page {:#x} of space {} could not be read from the frozen workload",
                page.number, page.space.0
            ),
        }
    }
}

impl core::error::Error for MigrationError {}

impl From<RunTooLong> for MigrationError {
    fn from(run: RunTooLong) -> Self {
        MigrationError::Run(run)
    }
}

/// What is being sent: the pages of one round, each of them once.
#[derive(Debug, Default)]
struct Sending {
    pages: Pages,
    /// Everything before it was ordered.
    at: Page,
    /// Pages from there on. Counted along: to look for them after each batch made rounds of scattered pages quadratic.
    left_pages: u64,
    /// The order that was not answered yet.
    batch: Option<Vec<PageRun>>,
    record: Round,
    begun: Duration,
}

impl Sending {
    fn is_done(&self) -> bool {
        self.batch.is_none() && self.left_pages == 0
    }
}

/// The decisions of one migration.
#[derive(Debug)]
pub struct Migration {
    strategy: Box<dyn Strategy>,
    limits: Limits,
    hints: Hints,
    ledger: Ledger,
    facts: Facts,
    bandwidth: Bandwidth,
    /// The same in bytes on the wire.
    link: Bandwidth,
    dirty_rate: Option<u64>,
    dirty: DirtyCurve,
    phase: Phase,
    /// What the phases `Round` and `LastPages` send.
    sending: Sending,
    /// Not ordered yet.
    drops: Vec<PageRun>,
    /// What is left for the time after the switch-over; known from the last scan on.
    residual: Pages,
    /// As of the last scan.
    urgent: Pages,
    rounds: Vec<Round>,
    scanned_at: Option<Duration>,
    /// The bandwidth limit forbids to send before.
    send_from: Duration,
    memory_pages: u64,
    sent: Counts,
    wire_bytes: u64,
    stop_reason: Option<StopReason>,
}

impl Migration {
    /// Pages of one [`Order::Send`]: 16 MiB, 130 ms of a 1 Gbit/s link.
    pub const BATCH_PAGES_MAX: u64 = 4096;

    /// A migration by `strategy` that begins at time zero.
    pub fn new(strategy: Box<dyn Strategy>, limits: Limits, hints: Hints) -> Self {
        let live = strategy.is_live();
        let at_once = match strategy.may_leave_residue() {
            true => StopReason::Residue,
            false => StopReason::StopCopy,
        };
        Migration {
            strategy,
            limits,
            hints,
            ledger: Ledger::default(),
            facts: Facts::default(),
            bandwidth: Bandwidth::default(),
            link: Bandwidth::default(),
            dirty_rate: None,
            dirty: DirtyCurve::default(),
            phase: if live { Phase::Scan } else { Phase::Freeze },
            sending: Sending::default(),
            drops: Vec::new(),
            residual: Pages::new(),
            urgent: Pages::new(),
            rounds: Vec::new(),
            scanned_at: None,
            send_from: Duration::ZERO,
            memory_pages: hints.memory_pages,
            sent: Counts::default(),
            wire_bytes: 0,
            stop_reason: (!live).then_some(at_once),
        }
    }

    /// Whether pages are tracked while the workload runs.
    pub fn is_live(&self) -> bool {
        self.strategy.is_live()
    }

    /// Whether pages may be left for the time after the switch-over.
    pub fn may_leave_residue(&self) -> bool {
        self.strategy.may_leave_residue()
    }

    /// How many pages the workload writes in how long a time, as far as scans and samples have shown.
    pub fn dirty_curve(&self) -> &DirtyCurve {
        &self.dirty
    }

    /// How to make the strategy anew; see [`Strategy::named`].
    pub fn named(&self) -> Option<Named> {
        self.strategy.named()
    }

    /// The user's goals.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is known of the workload beside its pages: what was known beforehand, until it was measured.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The strategy's name.
    pub fn strategy(&self) -> &'static str {
        self.strategy.name()
    }

    /// Why the workload was frozen; `None` before.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason
    }

    /// What the destination will still lack when it starts, once [`Order::HandOver`] was given. Empty before that, and
    /// always for a strategy that leaves no residue.
    pub fn residual(&self) -> &Pages {
        &self.residual
    }

    /// What the strategy has chosen, if it chooses.
    pub fn choice(&self) -> Option<Choice> {
        self.strategy.choice()
    }

    /// What it expected when it chose.
    pub fn prediction(&self) -> Option<&Prediction> {
        self.strategy.prediction()
    }

    /// The rounds that are over; the last pages are the last of them.
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// True if the order to send that is out is the last of its round.
    pub fn is_last_batch(&self) -> bool {
        self.sending.left_pages == 0
    }

    /// What to do next. Asked twice without an event in between it says the same, but for [`Order::Drop`], which
    /// needs no answer, and for [`Order::Wait`], which ends with the time.
    pub fn poll(&mut self, now: Duration) -> Order {
        match self.phase {
            Phase::Scan => Order::Scan,
            Phase::Freeze => Order::Freeze,
            Phase::Capture => Order::Capture,
            Phase::LastScan => Order::ScanLast,
            Phase::LastPages if !self.drops.is_empty() => Order::Drop {
                runs: core::mem::take(&mut self.drops),
            },
            Phase::Round if self.wants_sample(now) => Order::Sample,
            Phase::Round => self.send_more(now),
            Phase::LastPages if !self.sending.is_done() => self.send_more(now),
            Phase::LastPages | Phase::HandOver => {
                self.phase = Phase::HandOver;
                Order::HandOver
            }
        }
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// [`MigrationError`]; nothing has changed then.
    pub fn handle(&mut self, now: Duration, event: Event) -> Result<(), MigrationError> {
        match (self.phase, event) {
            (Phase::Scan, Event::Scanned(scan)) => self.scanned(now, &scan),
            (Phase::Round, Event::Sent(sent)) if self.sending.batch.is_some() => self.sent_live(now, &sent),
            (Phase::Freeze, Event::Frozen) => {
                self.phase = Phase::Capture;
                Ok(())
            }
            (Phase::Capture, Event::Captured { state_bytes }) => {
                self.hints.state_bytes = state_bytes;
                self.phase = Phase::LastScan;
                Ok(())
            }
            (Phase::LastScan, Event::Scanned(scan)) => self.scanned_frozen(now, &scan),
            (Phase::LastPages, Event::Sent(sent)) if self.sending.batch.is_some() => {
                self.sent_frozen(now, &sent)
            }
            (Phase::Round, Event::Sampled { written_pages }) if self.sending.batch.is_none() => {
                self.sampled(now, written_pages);
                Ok(())
            }
            (Phase::Scan | Phase::Round, Event::Facts(facts)) => self.learn(now, &facts),
            (Phase::Scan | Phase::Round, Event::Forgotten(runs)) => {
                runs.iter().for_each(|&run| self.facts.forget(run));
                Ok(())
            }
            (Phase::Scan | Phase::Round, Event::Fetched(runs)) => self.fetched(&runs),
            (Phase::Scan | Phase::Round, Event::LayoutIs { generation }) => {
                self.facts.layout_is(generation);
                Ok(())
            }
            (phase, event) => Err(MigrationError::Unexpected {
                event: event.name(),
                phase,
            }),
        }
    }

    /// How it goes.
    pub fn progress(&self, now: Duration) -> Progress {
        let left = self.sending.left_pages;
        let bandwidth = self.bandwidth();
        Progress {
            phase: self.phase,
            elapsed: now,
            round: if self.scanned_at.is_none() {
                0
            } else {
                self.sending.record.number
            },
            owed_pages: self.ledger.owed().len(),
            round_left_pages: left,
            memory_pages: self.memory_pages,
            sent_pages: self.sent.sent,
            zero_pages: self.sent.zero,
            sent_bytes: self.wire_bytes,
            send_rate: rate(
                self.sending.record.wire_bytes,
                now.saturating_sub(self.sending.begun),
            ),
            bandwidth,
            dirty_rate: self.dirty_rate,
            predicted_downtime: self.predicted_downtime(self.ledger.owed().len()),
            left: self.time_left(bandwidth),
        }
    }

    fn learn(&mut self, now: Duration, facts: &[Fact]) -> Result<(), MigrationError> {
        for fact in facts {
            Pages::check(fact.run)?;
        }
        for fact in facts {
            self.facts.learn(fact)?;
            // From now on the destination may place them, whether the word of it arrives or not.
            if matches!(fact.knowledge, Knowledge::OnStorage(_)) {
                self.ledger.may_be_touched(fact.run)?;
            }
        }
        if self.phase == Phase::Round {
            self.spare_unordered(now);
        }
        Ok(())
    }

    /// What this round has not ordered yet need not be sent if something is known of it now. Facts that writes end can only be told
    /// after the first scan, which counts everything as written, so without this the first round would send it all.
    fn spare_unordered(&mut self, now: Duration) {
        let before = self.sending.left_pages;
        self.sending.pages = self.facts.mask(&self.sending.pages);
        let left = self.sending.pages.runs_from(self.sending.at);
        self.sending.left_pages = left.map(|run| run.count).sum();
        self.sending.record.pages_owed -= before - self.sending.left_pages;
        self.end_round_if_done(now);
    }

    /// Only what a fact that still holds says to be on the storage: what was written since is owed, whatever was fetched.
    fn fetched(&mut self, runs: &[PageRun]) -> Result<(), MigrationError> {
        let mut there = Pages::from_runs(runs)?;
        there.intersect_with(&self.on_storage());
        self.ledger.arrived(&there);
        there.runs().for_each(|run| self.facts.forget(run));
        Ok(())
    }

    fn on_storage(&self) -> Pages {
        self.facts
            .pages_of(|known| matches!(known, Knowledge::OnStorage(_)))
    }

    /// What storage has not brought yet: if the workload was frozen now, it would have to be sent while it is.
    fn awaited_pages(&self) -> u64 {
        let mut awaited = self.on_storage();
        awaited.intersect_with(self.ledger.owed());
        match self.strategy.leaves_residue() {
            true => 0,
            false => awaited.len(),
        }
    }

    /// While no batch is out: its answer is waited for first.
    fn wants_sample(&self, now: Duration) -> bool {
        self.sending.batch.is_none() && self.strategy.sample_at().is_some_and(|at| now >= at)
    }

    fn sampled(&mut self, now: Duration, written_pages: u64) {
        if let Some(since) = self.scanned_at {
            self.dirty.add(now.saturating_sub(since), written_pages);
        }
        self.reconsider(now);
    }

    /// In the middle of a round: go on, or freeze now?
    fn reconsider(&mut self, now: Duration) {
        let verdict = self.consult(now, |strategy, facts| strategy.reconsider(facts));
        if let Some(reason) = verdict {
            self.cut_round_short(now, reason);
        }
    }

    /// Asks the strategy in the middle of a round.
    fn consult<T>(&mut self, now: Duration, ask: impl FnOnce(&mut dyn Strategy, &RoundFacts<'_>) -> T) -> T {
        let left = self.sending.left_pages;
        let mut strategy = core::mem::replace(&mut self.strategy, Box::new(StopCopy));
        let answer = ask(&mut *strategy, &self.round_facts(now, left));
        self.strategy = strategy;
        answer
    }

    fn cut_round_short(&mut self, now: Duration, reason: StopReason) {
        self.close_record(now);
        self.sending.pages = Pages::new();
        self.sending.left_pages = 0;
        self.stop_reason = Some(reason);
        self.phase = Phase::Freeze;
    }

    fn scanned(&mut self, now: Duration, scan: &Scan) -> Result<(), MigrationError> {
        let written = Pages::from_runs(&scan.written)?;
        let urgent = Pages::from_runs(&scan.urgent)?;
        self.take_scan(now, scan, &written);
        let mut send = self.facts.mask(self.ledger.owed());
        if self.strategy.passes_are_urgent_only() {
            send.intersect_with(&urgent);
        }
        self.urgent = urgent;
        match self.decide(now, send.len() + self.awaited_pages()) {
            Decision::Round => self.begin_round(now, send, false),
            Decision::Freeze(reason) => {
                self.stop_reason = Some(reason);
                self.phase = Phase::Freeze;
            }
        }
        Ok(())
    }

    fn take_scan(&mut self, now: Duration, scan: &Scan, written: &Pages) {
        let since = self.scanned_at.replace(now);
        // Before the first scan nothing was being counted: what it finds was not written in any known time.
        let measured = since.and_then(|then| dirty_rate(written.len(), now.saturating_sub(then)));
        self.dirty_rate = measured.or(self.dirty_rate);
        if let Some(then) = since {
            self.dirty.add(now.saturating_sub(then), written.len());
        }
        self.ledger.scanned(scan, written);
        self.facts.scanned(written, &scan.lost);
        self.memory_pages = self.memory_pages.max(self.ledger.known_pages());
    }

    fn round_facts(&self, now: Duration, owed_pages: u64) -> RoundFacts<'_> {
        RoundFacts {
            rounds: self.rounds.len() as u32,
            owed_pages,
            urgent_pages: self.urgent_owed(),
            round_pages: match self.phase {
                Phase::Round => self.sending.record.pages_owed,
                _ => owed_pages,
            },
            sent_pages: self.sent.sent,
            zero_pages: self.sent.zero,
            sent_bytes: self.wire_bytes,
            memory_pages: self.memory_pages,
            dirty_rate: self.dirty_rate,
            dirty: &self.dirty,
            bandwidth: self.bandwidth(),
            wire_share: self.wire_share(),
            predicted_downtime: self.predicted_downtime(owed_pages),
            since_scan: now.saturating_sub(self.scanned_at.unwrap_or(now)),
            elapsed: now,
            limits: &self.limits,
            hints: &self.hints,
        }
    }

    /// Owed pages that cannot follow after the switch-over.
    fn urgent_owed(&self) -> u64 {
        let mut urgent = self.urgent.clone();
        urgent.intersect_with(self.ledger.owed());
        urgent.len()
    }

    fn decide(&mut self, now: Duration, owed_pages: u64) -> Decision {
        let mut strategy = core::mem::replace(&mut self.strategy, Box::new(StopCopy));
        let facts = self.round_facts(now, owed_pages);
        let decision = match (strategy.decide(&facts), facts.limit_reached()) {
            (Decision::Round, Some(limit)) => {
                strategy.stopped_by(&facts, limit);
                Decision::Freeze(limit)
            }
            (decision, _) => decision,
        };
        self.strategy = strategy;
        decision
    }

    /// Bytes on the wire for each byte of a page with content so far.
    fn wire_share(&self) -> Option<f64> {
        let pages = bytes_of(self.sent.sent);
        (pages > 0).then(|| self.wire_bytes as f64 / pages as f64)
    }

    fn begin_round(&mut self, now: Duration, pages: Pages, frozen: bool) {
        let record = Round {
            number: self.rounds.len() as u32 + 1,
            frozen,
            pages_owed: pages.len(),
            dirty_rate: self.dirty_rate,
            ..Round::default()
        };
        self.sending = Sending {
            left_pages: pages.len(),
            pages,
            at: Page::FIRST,
            batch: None,
            record,
            begun: now,
        };
        self.phase = if frozen { Phase::LastPages } else { Phase::Round };
        self.end_round_if_done(now);
    }

    fn end_round_if_done(&mut self, now: Duration) {
        if !self.sending.is_done() {
            return;
        }
        self.close_record(now);
        if self.phase == Phase::Round {
            self.phase = Phase::Scan;
        }
    }

    fn close_record(&mut self, now: Duration) {
        let mut record = self.sending.record.clone();
        record.duration = now.saturating_sub(self.sending.begun);
        record.bandwidth = self.bandwidth.rate();
        self.rounds.push(record);
    }

    /// The order to send that is out, or the next one.
    fn send_more(&mut self, now: Duration) -> Order {
        let skip_rewritten = self.phase == Phase::Round;
        if self.sending.batch.is_none() {
            if now < self.send_from {
                return Order::Wait {
                    until: self.send_from,
                };
            }
            let runs = self.sending.pages.batch(self.sending.at, self.batch_pages());
            self.sending.at = runs.last().map_or(self.sending.at, PageRun::end);
            let ordered = runs.iter().map(|run| run.count).sum();
            self.sending.left_pages = self.sending.left_pages.saturating_sub(ordered);
            // What was saved up in a pause is not caught up with.
            self.send_from = self.send_from.max(now);
            self.sending.batch = Some(runs);
        }
        let runs = self.sending.batch.clone().unwrap_or_default();
        Order::Send { runs, skip_rewritten }
    }

    /// Pages of the next batch: a tenth of a second under a limit, so that the rate is even; never more than the
    /// traffic limit leaves.
    fn batch_pages(&self) -> u64 {
        let even = self
            .limits
            .bandwidth_max
            .map_or(u64::MAX, |max| max / bytes_of(1) / 10);
        let left = match self.phase {
            Phase::Round => self.limits.traffic_pages_left(self.memory_pages, self.sent.sent),
            _ => u64::MAX,
        };
        even.min(left).clamp(1, Self::BATCH_PAGES_MAX)
    }

    fn sent_live(&mut self, now: Duration, sent: &Sent) -> Result<(), MigrationError> {
        self.account(sent)?;
        let spent = self.limits.traffic_pages_left(self.memory_pages, self.sent.sent) == 0;
        if spent && !self.sending.is_done() {
            self.consult(now, |strategy, facts| {
                strategy.stopped_by(facts, StopReason::Traffic)
            });
            self.cut_round_short(now, StopReason::Traffic);
        } else {
            self.end_round_if_done(now);
        }
        Ok(())
    }

    fn sent_frozen(&mut self, now: Duration, sent: &Sent) -> Result<(), MigrationError> {
        // A frozen workload neither writes nor unmaps: what cannot be read now never will be.
        if let Some(run) = sent
            .failed
            .iter()
            .chain(&sent.rewritten)
            .find(|run| run.count > 0)
        {
            return Err(MigrationError::Unreadable {
                page: Page {
                    space: run.space,
                    number: run.first,
                },
            });
        }
        self.account(sent)?;
        self.end_round_if_done(now);
        Ok(())
    }

    /// Books an answered batch.
    fn account(&mut self, sent: &Sent) -> Result<(), MigrationError> {
        let asked = self.sending.batch.as_deref().unwrap_or_default();
        let counts = self.ledger.sent(asked, sent)?;
        self.sending.batch = None;
        self.sending.record.add(&counts, sent.wire_bytes);
        self.sent.sent += counts.sent;
        self.sent.zero += counts.zero;
        self.wire_bytes = self.wire_bytes.saturating_add(sent.wire_bytes);
        // What pages get is what the last ones will get; what the link carries is what a reply will wait behind.
        let page_bytes = sent.page_bytes.max(sent.wire_bytes);
        self.bandwidth.add_packed(page_bytes, sent.wire_bytes, sent.busy);
        self.link.add(sent.wire_bytes, sent.busy);
        if let Some(max) = self.limits.bandwidth_max {
            self.send_from = self.send_from.saturating_add(time_for(sent.wire_bytes, max));
        }
        Ok(())
    }

    fn scanned_frozen(&mut self, now: Duration, scan: &Scan) -> Result<(), MigrationError> {
        let Some(present) = &scan.present else {
            return Err(MigrationError::PresentMissing);
        };
        let present = Pages::from_runs(present)?;
        let written = Pages::from_runs(&scan.written)?;
        self.take_scan(now, scan, &written);
        let leaves_residue = self.strategy.leaves_residue();
        self.drops = self.ledger.frozen(&present, leaves_residue);
        self.memory_pages = self.memory_pages.max(present.len());
        let last = self.ledger.owed().clone();
        if !leaves_residue {
            self.begin_round(now, last, true);
            return Ok(());
        }
        let mut urgent = Pages::from_runs(&scan.urgent)?;
        urgent.intersect_with(&last);
        self.residual = last;
        self.residual.subtract(&urgent);
        if urgent.is_empty() {
            self.sending.pages = Pages::new();
            self.sending.left_pages = 0;
            self.phase = Phase::LastPages;
        } else {
            self.begin_round(now, urgent, true);
        }
        Ok(())
    }

    /// Whether it is kept below what the link may carry.
    pub fn is_paced(&self) -> bool {
        self.limits.bandwidth_max.is_some()
    }

    /// Bytes per second on the wire while it was busy, however many pages they were.
    pub fn link_rate(&self) -> Option<u64> {
        self.link.rate()
    }

    /// Bytes of pages per second: measured, or believed, and never above the limit.
    fn bandwidth(&self) -> Option<u64> {
        let rate = self.bandwidth.rate().or(self.hints.bandwidth);
        match (rate, self.limits.bandwidth_max) {
            (Some(rate), Some(max)) => Some(rate.min(self.pages_for(max))),
            (rate, max) => rate.or(max),
        }
    }

    /// Bytes of pages for so many bytes on the wire, as they were packed so far.
    fn pages_for(&self, wire_bytes: u64) -> u64 {
        let share = self.wire_share().unwrap_or(1.0).clamp(0.01, 1.0);
        (wire_bytes as f64 / share) as u64
    }

    /// What is owed counts only if it has to travel while the workload is frozen.
    fn predicted_downtime(&self, owed_pages: u64) -> Option<Duration> {
        let last_pages = if self.strategy.leaves_residue() {
            0
        } else {
            owed_pages
        };
        let bytes = bytes_of(last_pages).saturating_add(self.hints.state_bytes);
        self.bandwidth()
            .map(|rate| time_for(bytes, rate).saturating_add(self.hints.fixed_cost))
    }

    /// The owed bytes shrink at bandwidth minus dirty rate; at a dirty rate above that there is no end to predict.
    fn time_left(&self, bandwidth: Option<u64>) -> Option<Duration> {
        let gain = bandwidth?
            .checked_sub(self.dirty_rate.unwrap_or(0))
            .filter(|&gain| gain > 0)?;
        Some(time_for(bytes_of(self.ledger.owed().len()), gain))
    }
}
