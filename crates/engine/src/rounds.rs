//! The source's part of a migration up to the last page: carries the policy's orders out.

use std::time::{Duration, Instant};

use crate::contract::{Captured, Scanned, Workload};
use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::journal::Journal;
use crate::observer::{micros, Phase, Progress, Round, Timeline};
use crate::send::PageSender;
use crate::trace::TracedMigration;
use whimbrel_policy::postcopy::Path;
use whimbrel_policy::{Event as Happened, Order, PageRun, Scan, PAGE_SIZE};

/// The number of the barrier behind the last page. It is answered by `Prepared`, not by an acknowledgement.
pub(crate) const LAST_BARRIER: u64 = u64::MAX;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Everything that the rounds work with.
pub(crate) struct Rounds<'a, 'o, W> {
    pub workload: &'a mut W,
    pub journal: &'a mut Journal,
    pub inbox: &'a mut Inbox,
    pub timeline: &'a mut Timeline<'o>,
    pub migration: TracedMigration<'a>,
    pub sender: &'a mut PageSender,
    pub barriers: Barriers,
    pub tally: &'a mut Tally,
}

/// Barriers keep the socket's queue from growing: what waits in it when the workload is frozen is downtime.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    number: u64,
    /// Bytes sent when the last barrier was acknowledged.
    settled_bytes: u64,
    /// The shortest time that an acknowledgement took: the way there and back without any page.
    round_trip: Option<Duration>,
}

/// What the summary wants to know beside the policy's records.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// From the request until the freeze.
    pub preparation: Duration,
    pub frozen: Option<Instant>,
    pub state_bytes: u64,
    pub memory_pages: u64,
    pub rounds: Vec<Round>,
    /// What the rounds tell of the link.
    pub path: Path,
    told: Option<Instant>,
    /// The pages that the first scan found.
    known: Vec<PageRun>,
}

impl<W: Workload> Rounds<'_, '_, W> {
    /// Runs until the policy hands over. The workload is frozen then, and the state and the last pages are sent.
    pub fn run(&mut self) -> Result<()> {
        self.settle()?;
        loop {
            let order = self.migration.poll(self.timeline.elapsed());
            match order {
                Order::Scan => self.scan()?,
                Order::Send { runs, skip_rewritten } => self.send(&runs, skip_rewritten)?,
                Order::Sample => self.sample()?,
                Order::Drop { runs } => self.sender.drops(&runs)?,
                Order::Freeze => self.freeze()?,
                Order::Capture => self.capture()?,
                Order::ScanLast => self.scan_last()?,
                Order::Wait { until } => self.wait(until)?,
                Order::HandOver => break,
            }
            self.tell();
        }
        self.tell();
        self.tally.path = Path {
            round_trip: self.barriers.round_trip,
            bandwidth: self.migration.link_rate(),
        };
        // Behind all that is there when it starts, and before the last barrier: the destination arms itself for them.
        self.sender.missing(self.migration.residual().runs())
    }

    fn scan(&mut self) -> Result<()> {
        self.settle()?;
        self.begin(Phase::Round)?;
        let scanned = self.workload.scan().map_err(Error::workload)?;
        let scan = self.follow(scanned)?;
        if self.tally.known.is_empty() {
            self.tally.known.clone_from(&scan.written);
        }
        self.handle(Happened::Scanned(scan))
    }

    /// Of what the first scan found: pages that came into being since are few, and the next scan finds them.
    fn sample(&mut self) -> Result<()> {
        let mut written = Vec::new();
        let known = std::mem::take(&mut self.tally.known);
        let asked = self.workload.rewritten(&known, &mut written);
        self.tally.known = known;
        asked.map_err(Error::workload)?;
        let written_pages = written.iter().map(|run| run.count).sum();
        self.handle(Happened::Sampled { written_pages })
    }

    fn scan_last(&mut self) -> Result<()> {
        self.begin(Phase::LastScan)?;
        let scanned = self.workload.scan_frozen().map_err(Error::workload)?;
        let scan = self.follow(scanned)?;
        self.begin(Phase::LastPages)?;
        self.handle(Happened::Scanned(scan))
    }

    /// The destination takes over a new layout before any page that is meant for it.
    fn follow(&mut self, scanned: Scanned) -> Result<Scan> {
        self.tally.memory_pages = scanned.pages_total;
        self.note_resources()?;
        self.send_layout(scanned.layout.as_deref())?;
        Ok(scanned.scan)
    }

    fn send_layout(&mut self, layout: Option<&[u8]>) -> Result<()> {
        layout.map_or(Ok(()), |layout| self.sender.layout(layout))
    }

    fn send(&mut self, runs: &[PageRun], skip_rewritten: bool) -> Result<()> {
        let inbox = &mut *self.inbox;
        let mut sent = self
            .sender
            .send(self.workload, runs, skip_rewritten, || inbox.check())?;
        // The end of a round: what the socket has swallowed has not arrived yet, and counts for the bandwidth.
        if self.tally.frozen.is_none() && self.migration.is_last_batch() {
            sent.busy += self.settle()?;
        }
        self.handle(Happened::Sent(sent))
    }

    fn freeze(&mut self) -> Result<()> {
        self.settle()?;
        self.workload.make_ready().map_err(Error::workload)?;
        self.note_resources()?;
        for warning in self.workload.warnings() {
            self.timeline.observer.warning(&warning);
        }
        self.begin(Phase::Freeze)?;
        self.tally.preparation = self.timeline.elapsed();
        self.tally.frozen = Some(Instant::now());
        self.workload.freeze().map_err(Error::workload)?;
        self.handle(Happened::Frozen)
    }

    /// The state goes out at once, so that the destination builds with it while the last pages are found.
    fn capture(&mut self) -> Result<()> {
        self.begin(Phase::Capture)?;
        let layout = self.workload.layout_frozen().map_err(Error::workload)?;
        self.send_layout(layout.as_deref())?;
        let Captured { layout, state } = self.workload.capture().map_err(Error::workload)?;
        self.send_layout(layout.as_deref())?;
        let state_bytes = state.len() as u64;
        self.sender.state(&state)?;
        self.tally.state_bytes = state_bytes;
        self.handle(Happened::Captured { state_bytes })
    }

    fn wait(&mut self, until: Duration) -> Result<()> {
        let now = self.timeline.elapsed();
        self.inbox.pause(Instant::now() + until.saturating_sub(now))
    }

    /// Waits until everything sent so far was applied at the destination. Returns the time that this took beyond
    /// the way there and back.
    fn settle(&mut self) -> Result<Duration> {
        let barriers = &mut self.barriers;
        if barriers.number > 0 && self.sender.bytes() == barriers.settled_bytes {
            return Ok(Duration::ZERO);
        }
        barriers.number += 1;
        let begun = Instant::now();
        self.sender.barrier(barriers.number)?;
        self.inbox.wait_ack(barriers.number)?;
        let waited = begun.elapsed();
        barriers.settled_bytes = self.sender.bytes();
        let round_trip = barriers
            .round_trip
            .map_or(waited, |shortest| shortest.min(waited));
        barriers.round_trip = Some(round_trip);
        Ok(waited - round_trip)
    }

    fn begin(&mut self, phase: Phase) -> Result<()> {
        self.timeline.begin(phase);
        self.inbox.check()
    }

    fn note_resources(&mut self) -> Result<()> {
        self.journal.set_resources(self.workload.resources())
    }

    fn handle(&mut self, happened: Happened) -> Result<()> {
        let now = self.timeline.elapsed();
        self.migration
            .handle(now, happened)
            .map_err(|e| Error::Internal(e.to_string()))
    }

    /// Tells the observer of new rounds, and several times a second how it goes.
    fn tell(&mut self) {
        for round in self.migration.rounds().iter().skip(self.tally.rounds.len()) {
            let round = Round::from(round);
            self.timeline.observer.round(&round);
            self.tally.rounds.push(round);
        }
        if self
            .tally
            .told
            .is_none_or(|told| told.elapsed() >= PROGRESS_EVERY)
        {
            self.tally.told = Some(Instant::now());
            let progress = Progress::from(&self.migration.progress(self.timeline.elapsed()));
            self.timeline.observer.progress(&progress);
        }
    }
}

impl From<&whimbrel_policy::Round> for Round {
    fn from(round: &whimbrel_policy::Round) -> Self {
        Self {
            number: round.number,
            frozen: round.frozen,
            pages_owed: round.pages_owed,
            pages_sent: round.pages_sent,
            pages_zero: round.pages_zero,
            pages_rewritten: round.pages_rewritten,
            pages_failed: round.pages_failed,
            wire_bytes: round.wire_bytes,
            duration_us: micros(round.duration),
            dirty_rate: round.dirty_rate,
            bandwidth: round.bandwidth,
        }
    }
}

impl From<&whimbrel_policy::Progress> for Progress {
    fn from(progress: &whimbrel_policy::Progress) -> Self {
        Self {
            elapsed_us: micros(progress.elapsed),
            round: progress.round,
            sent_bytes: progress.sent_bytes,
            owed_bytes: progress.owed_pages.saturating_mul(PAGE_SIZE),
            memory_bytes: progress.memory_pages.saturating_mul(PAGE_SIZE),
            send_rate: progress.send_rate,
            bandwidth: progress.bandwidth,
            dirty_rate: progress.dirty_rate,
            predicted_downtime_us: progress.predicted_downtime.map(micros),
            left_us: progress.left.map(micros),
        }
    }
}
