//! What a workload writes, what its pages are like, and what the link carries, without moving anything: for `whimbrel plan`.
//!
//! Writes are tracked as in a migration, and counted at growing intervals since one scan: the curve of distinct pages over time. In between
//! a sample of pages is read and packed, and padding is sent to the destination.

use std::time::{Duration, Instant};

use whimbrel_policy::dirty::DirtyCurve;
use whimbrel_policy::estimate::Bandwidth;
use whimbrel_policy::packing::trial_bytes;
use whimbrel_policy::predict::{Costs, Measured};
use whimbrel_policy::{PageRun, Pages, RunTooLong, PAGE_SIZE};
use whimbrel_wire::Packer;

use crate::contract::{Nature, Scanned, Workload};
use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::send::{is_zero, PageSender};

/// The first count after the scan; each of the next after one and a half times as long.
const FIRST_LOOK: Duration = Duration::from_millis(20);
/// How long padding is sent at least.
const PROBE_FOR: Duration = Duration::from_millis(400);
/// And at most: a link that is so slow or so far away needs longer until it shows its rate.
const PROBE_FOR_MAX: Duration = Duration::from_secs(3);
/// So much at once says something of the rate: less may have vanished in a socket's buffer.
const PROBE_BYTES_ENOUGH: usize = 4 << 20;
/// Padding that is sent at most: a link of 1.5 GB/s is not filled for longer than it takes to see its rate.
const PROBE_BYTES_MAX: usize = 512 << 20;
/// Padding before the first answer; twice as much each time, while the answer comes soon.
const PROBE_BYTES_FIRST: usize = 64 << 10;
/// An answer that comes later than this is late enough.
const PROBE_ROUND: Duration = Duration::from_millis(50);
/// Padding that is measured as one at most.
const PROBE_BYTES_ROUND: usize = 16 << 20;
/// Answers to nothing, of which the fastest is the round trip.
const PINGS: u64 = 5;
/// Pages that are read and packed together, as when they are sent.
const PIECE_PAGES: u64 = 256;
/// Pieces that are read, spread evenly over the memory.
const PIECES_MAX: u64 = 32;
/// Bytes of a frame around its pages, for each of them: a run in a packed frame.
const FRAME_SHARE: f64 = 0.006;
/// Plain pages must bring so much more per second than packed ones, as [`whimbrel_policy::packing`] has it.
const PLAIN_ADVANTAGE: f64 = 1.2;

/// What was found.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// For the prediction.
    pub measured: Measured,
    /// What the workload is made of.
    pub nature: Nature,
    /// How long its writes were counted.
    pub looked_for: Duration,
    /// Of the pages with content: what is left of them when they are packed.
    pub packed_share: f64,
}

/// What is being found out.
#[derive(Debug)]
struct Look {
    begun: Instant,
    next: Duration,
    known: Vec<PageRun>,
    dirty: DirtyCurve,
}

impl Look {
    fn begin(scanned: Scanned) -> Self {
        Self {
            begun: Instant::now(),
            next: FIRST_LOOK,
            known: scanned.scan.written,
            dirty: DirtyCurve::default(),
        }
    }

    /// Counts what was written since the scan, if it is time.
    fn count<W: Workload>(&mut self, workload: &mut W) -> Result<()> {
        let since = self.begun.elapsed();
        if since < self.next {
            return Ok(());
        }
        let mut written = Vec::new();
        workload
            .rewritten(&self.known, &mut written)
            .map_err(Error::workload)?;
        // As late as it is when the answer is there: what was written while it was looked for is partly in it.
        let pages = written.iter().map(|run| run.count).sum();
        self.dirty.add((since + self.begun.elapsed()) / 2, pages);
        self.next = self.begun.elapsed() * 3 / 2;
        Ok(())
    }
}

impl Look {
    /// The last count is a scan: it also knows of memory that cannot be looked at without clearing its marks.
    fn end<W: Workload>(&mut self, workload: &mut W) -> Result<()> {
        let since = self.begun.elapsed();
        let scanned = workload.scan().map_err(Error::workload)?;
        let pages = scanned.scan.written.iter().map(|run| run.count).sum();
        self.dirty.add((since + self.begun.elapsed()) / 2, pages);
        Ok(())
    }
}

/// Looks at a tracked workload for so long, and at the link meanwhile.
pub(crate) fn look<W: Workload>(
    workload: &mut W,
    sender: &mut PageSender,
    inbox: &mut Inbox,
    look_for: Duration,
) -> Result<Measurement> {
    let nature = workload.nature();
    let scan_begun = Instant::now();
    let scanned = workload.scan().map_err(Error::workload)?;
    let scan = scan_begun.elapsed();
    let memory_pages = scanned.scan.written.iter().map(|run| run.count).sum();
    let urgent_pages = urgent_pages(&scanned).map_err(|run| Error::Internal(run.to_string()))?;
    let mut look = Look::begin(scanned);
    let mut probe = Probe::new();
    probe.ping(sender, inbox)?;
    probe.begun = Instant::now();
    while !probe.is_over() {
        probe.round(sender, inbox)?;
        look.count(workload)?;
    }
    let mut content = Content::default();
    for piece in pieces(&look.known) {
        content.read(workload, &piece)?;
        look.count(workload)?;
        inbox.check()?;
    }
    while look.begun.elapsed() < look_for {
        inbox.pause(look.begun + look.next.min(look_for))?;
        look.count(workload)?;
    }
    look.end(workload)?;
    let (link_bandwidth, round_trip) = probe.result()?;
    let pace = content.pace(link_bandwidth);
    Ok(Measurement {
        looked_for: look.begun.elapsed(),
        packed_share: content.packed_share(),
        measured: Measured {
            memory_pages,
            zero_share: content.zero_share(),
            urgent_pages,
            dirty: look.dirty,
            wire_share: pace.wire_share,
            link_bandwidth,
            page_rate_max: pace.page_rate_max,
            plain_bytes: pace.plain_bytes(memory_pages * PAGE_SIZE),
            round_trip,
            state_bytes: nature.state_bytes,
            costs: Costs {
                before: Duration::ZERO,
                scan,
                stop: nature.stop,
                arm: nature.arm,
                drop: nature.drop,
                after: nature.after,
            },
        },
        nature,
    })
}

/// Those of the found pages that cannot follow after the switch-over: what is urgent is told as ranges, which have holes.
fn urgent_pages(scanned: &Scanned) -> std::result::Result<u64, RunTooLong> {
    let mut urgent = Pages::from_runs(&scanned.scan.urgent)?;
    urgent.intersect_with(&Pages::from_runs(&scanned.scan.written)?);
    Ok(urgent.len())
}

/// What the link carries.
#[derive(Debug)]
struct Probe {
    begun: Instant,
    barrier: u64,
    round_trip: Duration,
    bandwidth: Bandwidth,
    bytes: usize,
    round_bytes: usize,
    /// Bytes of the last round.
    largest: usize,
}

impl Probe {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            barrier: 0,
            round_trip: Duration::MAX,
            bandwidth: Bandwidth::default(),
            bytes: 0,
            round_bytes: PROBE_BYTES_FIRST,
            largest: 0,
        }
    }

    /// After a while, if as much came through at once as says something; after a long while at any rate.
    fn is_over(&self) -> bool {
        let begun = self.begun.elapsed();
        let enough = begun >= PROBE_FOR && self.largest >= PROBE_BYTES_ENOUGH;
        enough || begun >= PROBE_FOR_MAX || self.bytes >= PROBE_BYTES_MAX
    }

    fn answer(&mut self, sender: &mut PageSender, inbox: &mut Inbox, bytes: usize) -> Result<Duration> {
        self.barrier += 1;
        let begun = Instant::now();
        sender.padding(bytes, self.barrier)?;
        inbox.wait_ack(self.barrier)?;
        Ok(begun.elapsed())
    }

    fn ping(&mut self, sender: &mut PageSender, inbox: &mut Inbox) -> Result<()> {
        for _ in 0..PINGS {
            self.round_trip = self.round_trip.min(self.answer(sender, inbox, 0)?);
        }
        Ok(())
    }

    fn round(&mut self, sender: &mut PageSender, inbox: &mut Inbox) -> Result<()> {
        let took = self.answer(sender, inbox, self.round_bytes)?;
        self.bandwidth
            .add(self.round_bytes as u64, took.saturating_sub(self.round_trip));
        self.bytes += self.round_bytes;
        self.largest = self.round_bytes;
        if took.saturating_sub(self.round_trip) < PROBE_ROUND {
            self.round_bytes = (self.round_bytes * 2).min(PROBE_BYTES_ROUND);
        }
        Ok(())
    }

    /// Bytes per second, and the round trip.
    fn result(&self) -> Result<(u64, Duration)> {
        let rate = self.bandwidth.rate().ok_or(Error::Unmeasured)?;
        Ok((rate, self.round_trip))
    }
}

/// What pages are like.
#[derive(Default)]
struct Content {
    pages: u64,
    zero_pages: u64,
    packed_bytes: u64,
    read: Duration,
    pack: Duration,
    buffer: Vec<u8>,
    full: Vec<u8>,
    packer: Option<Packer>,
}

/// How pages travel over a link, and how many.
#[derive(Debug)]
struct Pace {
    wire_share: f64,
    page_rate_max: Option<u64>,
    /// The packer makes less than the link carries, and yet wins.
    packer_limits: bool,
}

impl Pace {
    fn plain_bytes(&self, bytes: u64) -> u64 {
        match self.packer_limits {
            true => trial_bytes(bytes),
            false => 0,
        }
    }
}

impl Content {
    fn read<W: Workload>(&mut self, workload: &mut W, piece: &[PageRun]) -> Result<()> {
        let pages: u64 = piece.iter().map(|run| run.count).sum();
        self.buffer.resize(pages as usize * PAGE_SIZE as usize, 0);
        let mut failed = Vec::new();
        let begun = Instant::now();
        workload
            .read(piece, &mut self.buffer, &mut failed)
            .map_err(Error::workload)?;
        self.read += begun.elapsed();
        if !failed.is_empty() {
            return Ok(());
        }
        self.full.clear();
        for page in self.buffer.chunks_exact(PAGE_SIZE as usize) {
            self.pages += 1;
            match is_zero(page) {
                true => self.zero_pages += 1,
                false => self.full.extend_from_slice(page),
            }
        }
        self.pack();
        Ok(())
    }

    fn pack(&mut self) {
        if self.packer.is_none() {
            self.packer = Packer::new().ok();
        }
        let begun = Instant::now();
        let packed = self.packer.as_mut().and_then(|packer| packer.pack(&self.full));
        self.packed_bytes += packed.map_or(self.full.len(), <[u8]>::len) as u64;
        self.pack += begun.elapsed();
    }

    fn full_bytes(&self) -> u64 {
        (self.pages - self.zero_pages) * PAGE_SIZE
    }

    fn zero_share(&self) -> f64 {
        self.zero_pages as f64 / self.pages.max(1) as f64
    }

    fn packed_share(&self) -> f64 {
        match self.full_bytes() {
            0 => 1.0,
            full => self.packed_bytes as f64 / full as f64,
        }
    }

    /// Packed if that brings more pages per second, as the sender will find out by itself.
    fn pace(&self, link: u64) -> Pace {
        let bytes = self.full_bytes();
        let rate = |time: Duration| bytes as f64 / time.as_secs_f64().max(1e-9);
        let (plain, packed) = (rate(self.read), rate(self.read + self.pack));
        let share = self.packed_share();
        let plain_wins = plain.min(link as f64) > packed.min(link as f64 / share.max(1e-6)) * PLAIN_ADVANTAGE;
        let (wire_share, rate) = if plain_wins { (1.0, plain) } else { (share, packed) };
        Pace {
            wire_share: wire_share + FRAME_SHARE,
            page_rate_max: (bytes > 0).then_some(rate as u64),
            packer_limits: !plain_wins && packed * share < link as f64,
        }
    }
}

/// Pieces of the memory, spread evenly, each of pages that follow one another as they are sent.
fn pieces(known: &[PageRun]) -> Vec<Vec<PageRun>> {
    let total: u64 = known.iter().map(|run| run.count).sum();
    let count = (total / PIECE_PAGES).clamp(1, PIECES_MAX);
    let mut pieces = Vec::new();
    let (mut at, mut wanted) = (0, 0);
    let mut piece: Vec<PageRun> = Vec::new();
    let mut room = PIECE_PAGES;
    for run in known {
        let mut rest = *run;
        while rest.count > 0 {
            let skip = wanted.max(at) - at;
            if skip >= rest.count {
                at += rest.count;
                break;
            }
            let take = (rest.count - skip).min(room);
            piece.push(PageRun {
                first: rest.first + skip,
                count: take,
                ..rest
            });
            rest.first += skip + take;
            rest.count -= skip + take;
            at += skip + take;
            wanted = at;
            room -= take;
            if room == 0 {
                pieces.push(std::mem::take(&mut piece));
                room = PIECE_PAGES;
                wanted = total * pieces.len() as u64 / count;
            }
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_policy::SpaceId;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    #[test]
    fn pieces_are_spread_evenly_and_within_the_memory() {
        let known = [run(0, 1000), run(5000, 100_000), run(200_000, 3)];
        let pieces = pieces(&known);
        assert_eq!(pieces.len() as u64, PIECES_MAX);
        for piece in &pieces {
            assert!(piece.iter().map(|run| run.count).sum::<u64>() <= PIECE_PAGES);
            let inside = |part: &PageRun| {
                known
                    .iter()
                    .any(|all| part.first >= all.first && part.first + part.count <= all.first + all.count)
            };
            assert!(piece.iter().all(inside), "{piece:?}");
        }
        assert!(pieces[31][0].first > 95_000);
    }

    #[test]
    fn small_memory_is_read_whole() {
        let read = |known: &[PageRun]| -> u64 { pieces(known).iter().flatten().map(|run| run.count).sum() };
        assert_eq!(read(&[run(0, 10), run(20, 30)]), 40);
        assert_eq!(read(&[]), 0);
        assert_eq!(read(&[run(0, 300), run(1000, 500)]), 768);
    }
}
