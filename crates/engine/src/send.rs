//! The source's data path: read a piece, look for zeros, put it on the wire.
//!
//! A piece is at most a megabyte, so that it is still in the processor's cache when it is sent.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use whimbrel_policy::packing::Packing;
use whimbrel_policy::{PageRun, Sent};
use whimbrel_wire::{BulkWriter, Packer, Run, FRAME_PAGES_MAX, PAGE_BYTES};

use crate::contract::{PageStore, Workload};
use crate::error::{Error, Result};

/// A piece with so many pages leaves in one write.
const HELD_PAGES_MAX: u64 = 32;
/// Fewer pages are not worth packing: their latency counts, not their bytes.
const PACKED_PAGES_MIN: u64 = 4;
/// Pages in a piece.
const PIECE_PAGES: u64 = FRAME_PAGES_MAX as u64;

/// A connection that can hold small writes back, so that they leave together: each packet costs both hosts.
#[derive(Debug)]
struct Outlet {
    stream: TcpStream,
    /// What is held back; nothing is while this is none.
    held: Option<Vec<u8>>,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.held {
            Some(held) => held.write(bytes),
            None => self.stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.held {
            Some(held) => held.write_vectored(slices),
            None => self.stream.write_vectored(slices),
        }
    }

    /// Sends what was held back, and holds nothing any more.
    fn flush(&mut self) -> io::Result<()> {
        match self.held.take() {
            Some(held) => self.stream.write_all(&held),
            None => Ok(()),
        }
    }
}

/// Sends pages of a workload.
#[derive(Debug)]
pub(crate) struct PageSender {
    writer: BulkWriter<Outlet>,
    peer: String,
    buffer: Vec<u8>,
    packer: Option<Packer>,
    packing: Packing,
    /// Somebody else sees to it that the stream hardly ever makes us wait: how long it does says nothing about the link.
    paced: bool,
    /// Contents that do not lie one after the other, to be packed.
    gathered: Vec<u8>,
}

/// Reads pages as [`Workload::read`] does.
pub(crate) type Read<'a> = &'a mut dyn FnMut(&[PageRun], &mut [u8], &mut Vec<PageRun>) -> Result<()>;

/// What the source says on the stream for faults, beside pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Settled,
    Refused,
    Hurry,
    Alive,
}

/// A part of a piece: which pages, and where their content begins in the buffer, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    run: PageRun,
    at: usize,
}

impl PageSender {
    pub fn new(stream: TcpStream, peer: String) -> Self {
        let buffer = vec![0; PIECE_PAGES as usize * PAGE_BYTES];
        Self {
            writer: BulkWriter::new(Outlet { stream, held: None }),
            peer,
            buffer,
            // Without one pages travel as they are.
            packer: Packer::new().ok(),
            packing: Packing::default(),
            paced: false,
            gathered: Vec::new(),
        }
    }

    /// For a stream that is kept below what its link carries: pages are packed whatever is measured.
    pub fn paced(self) -> Self {
        Self { paced: true, ..self }
    }

    /// Bytes put on the wire so far.
    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }

    pub fn layout(&mut self, layout: &[u8]) -> Result<()> {
        self.write(|writer| writer.layout(layout))
    }

    pub fn state(&mut self, state: &[u8]) -> Result<()> {
        self.write(|writer| writer.state(state))
    }

    pub fn drops(&mut self, runs: &[PageRun]) -> Result<()> {
        let runs: Vec<_> = runs.iter().copied().map(wire_run).collect();
        self.write(|writer| writer.drops(&runs))
    }

    pub fn barrier(&mut self, number: u64) -> Result<()> {
        self.write(|writer| writer.barrier(number))
    }

    /// Carries out an order to send. `check` is asked before each piece and may stop it.
    pub fn send<W: Workload>(
        &mut self,
        workload: &mut W,
        runs: &[PageRun],
        skip_rewritten: bool,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<Sent> {
        let bytes = self.writer.bytes();
        let mut sent = Sent::default();
        for mut piece in pieces(runs) {
            check()?;
            let (begun, before) = (Instant::now(), self.writer.bytes());
            if skip_rewritten {
                piece = leave_out_rewritten(workload, piece, &mut sent.rewritten)?;
            }
            let mut read = |runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>| {
                workload.read(runs, buffer, failed).map_err(Error::workload)
            };
            self.send_piece(&mut read, &piece, &mut sent)?;
            if self.writer.bytes() - before >= PAGE_BYTES as u64 {
                sent.busy += begun.elapsed();
            }
        }
        sent.wire_bytes = self.writer.bytes() - bytes;
        Ok(sent)
    }

    /// Bytes that mean nothing, and a barrier behind them.
    pub fn padding(&mut self, bytes: usize, number: u64) -> Result<()> {
        let padding = std::mem::take(&mut self.buffer);
        let mut left = bytes;
        let mut written = Ok(());
        while left > 0 && written.is_ok() {
            let some = left.min(padding.len());
            written = self.write(|writer| writer.padding(&padding[..some]));
            left -= some;
        }
        self.buffer = padding;
        written.and_then(|()| self.barrier(number))
    }

    /// It was only a question.
    pub fn enough(&mut self) -> Result<()> {
        self.write(BulkWriter::enough)
    }

    /// Pages that will come when the workload runs.
    pub fn missing(&mut self, runs: impl Iterator<Item = PageRun>) -> Result<()> {
        let runs: Vec<_> = runs.map(wire_run).collect();
        self.write(|writer| writer.missing(&runs))
    }

    /// One piece of what follows after the switch-over, in pages of `runs` (at most [`PIECE_PAGES`]), and its barrier. Returns what was
    /// sent of it.
    pub fn piece<S: PageStore>(&mut self, store: &mut S, runs: &[PageRun], number: u64) -> Result<Sent> {
        let mut read = |runs: &[PageRun], buffer: &mut [u8], failed: &mut Vec<PageRun>| {
            store.read(runs, buffer, failed).map_err(Error::workload)
        };
        let bytes = self.writer.bytes();
        let mut sent = Sent::default();
        let pages: u64 = runs.iter().map(|run| run.count).sum();
        if pages <= HELD_PAGES_MAX {
            self.writer.stream_mut().held = Some(Vec::with_capacity((pages as usize + 1) * PAGE_BYTES));
        }
        for piece in pieces(runs) {
            self.send_piece(&mut read, &piece, &mut sent)?;
        }
        self.barrier(number)?;
        self.write(|writer| Ok(writer.stream_mut().flush()?))?;
        sent.wire_bytes = self.writer.bytes() - bytes;
        Ok(sent)
    }

    /// Words on the stream for faults.
    pub fn say(&mut self, word: Word, run: Option<PageRun>) -> Result<()> {
        let runs: Vec<_> = run.map(wire_run).into_iter().collect();
        self.write(|writer| match word {
            Word::Settled => writer.settled(&runs),
            Word::Refused => writer.refused(&runs),
            Word::Hurry => writer.hurry(),
            Word::Alive => writer.alive(),
        })
    }

    fn send_piece(&mut self, read: Read<'_>, piece: &[PageRun], sent: &mut Sent) -> Result<()> {
        let begun = Instant::now();
        let pages: u64 = piece.iter().map(|run| run.count).sum();
        let mut buffer = std::mem::take(&mut self.buffer);
        let content = &mut buffer[..pages as usize * PAGE_BYTES];
        let mut failed = Vec::new();
        let result = read(piece, content, &mut failed).and_then(|()| {
            let readable = without(piece, &failed);
            let (full, zero) = split_zeros(&readable, content);
            sent.failed.append(&mut failed);
            let waiting = self.write_parts(&full, &zero, content)?;
            let page_bytes = full.iter().map(|part| part.run.count).sum::<u64>() * PAGE_BYTES as u64;
            if page_bytes > 0 && !self.paced {
                self.packing.sent(page_bytes, begun.elapsed(), waiting);
            }
            sent.page_bytes += page_bytes;
            sent.zero.extend(zero);
            Ok(())
        });
        self.buffer = buffer;
        result
    }

    /// Packed if that is worth it. How long the stream made us wait.
    fn write_parts(&mut self, full: &[Part], zero: &[PageRun], content: &[u8]) -> Result<Duration> {
        let zeros: Vec<_> = zero.iter().copied().map(wire_run).collect();
        let pages: u64 = full.iter().map(|part| part.run.count).sum();
        if pages >= PACKED_PAGES_MIN && self.packing.is_packed() {
            if let Some(mut packer) = self.packer.take() {
                let packed = packer.pack(gathered(full, content, &mut self.gathered));
                let runs: Vec<Run> = full.iter().map(|part| wire_run(part.run)).collect();
                let begun = Instant::now();
                let written = packed.map(|packed| {
                    self.write(|writer| {
                        writer.packed(&runs, packed)?;
                        writer.zeros(&zeros)
                    })
                });
                self.packer = Some(packer);
                if let Some(written) = written {
                    return written.map(|()| begun.elapsed());
                }
            }
        }
        let begun = Instant::now();
        self.write_plain(full, &zeros, content)?;
        Ok(begun.elapsed())
    }

    fn write_plain(&mut self, full: &[Part], zeros: &[Run], content: &[u8]) -> Result<()> {
        let bytes = |part: &Part| {
            let from = part.at * PAGE_BYTES;
            &content[from..from + part.run.count as usize * PAGE_BYTES]
        };
        self.write(|writer| {
            writer.pages(full.iter().map(|part| (wire_run(part.run), bytes(part))))?;
            writer.zeros(zeros)
        })
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut BulkWriter<Outlet>) -> whimbrel_wire::Result<()>,
    ) -> Result<()> {
        write(&mut self.writer).map_err(|cause| Error::Link {
            peer: self.peer.clone(),
            cause,
        })
    }
}

/// The contents of the parts one after the other.
fn gathered<'a>(full: &[Part], content: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let bytes = |part: &Part| {
        let from = part.at * PAGE_BYTES;
        &content[from..from + part.run.count as usize * PAGE_BYTES]
    };
    let adjoin = |pair: &[Part]| matches!(pair, [a, b] if a.at + a.run.count as usize == b.at);
    if let (Some(first), true) = (full.first(), full.windows(2).all(adjoin)) {
        let pages: usize = full.iter().map(|part| part.run.count as usize).sum();
        return &content[first.at * PAGE_BYTES..][..pages * PAGE_BYTES];
    }
    scratch.clear();
    full.iter()
        .for_each(|part| scratch.extend_from_slice(bytes(part)));
    scratch
}

pub(crate) fn wire_run(run: PageRun) -> Run {
    Run {
        space: run.space.0,
        first: run.first,
        count: run.count,
    }
}

/// Cuts runs into pieces of at most [`PIECE_PAGES`] pages, in order.
fn pieces(runs: &[PageRun]) -> impl Iterator<Item = Vec<PageRun>> + '_ {
    let mut rest = runs.iter().copied();
    let mut next = rest.next();
    std::iter::from_fn(move || {
        let mut piece = Vec::new();
        let mut room = PIECE_PAGES;
        while let Some(run) = next.filter(|_| room > 0) {
            let count = run.count.min(room);
            piece.push(PageRun { count, ..run });
            room -= count;
            next = match run.count - count {
                0 => rest.next(),
                left => Some(PageRun {
                    first: run.first + count,
                    count: left,
                    ..run
                }),
            };
        }
        (!piece.is_empty()).then_some(piece)
    })
}

fn leave_out_rewritten<W: Workload>(
    workload: &mut W,
    piece: Vec<PageRun>,
    rewritten: &mut Vec<PageRun>,
) -> Result<Vec<PageRun>> {
    let mut found = Vec::new();
    workload.rewritten(&piece, &mut found).map_err(Error::workload)?;
    if found.is_empty() {
        return Ok(piece);
    }
    let rest: Vec<_> = without(&piece, &found).into_iter().map(|part| part.run).collect();
    // Only what was asked for: what else the workload names must not be taken for left out.
    rewritten.extend(without(&piece, &rest).into_iter().map(|part| part.run));
    Ok(rest)
}

/// The parts of `runs` that are not in `minus`, with their places when the runs lie one after the other.
fn without(runs: &[PageRun], minus: &[PageRun]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(runs.len() + minus.len());
    let mut at = 0;
    for &run in runs {
        cut(run, at, minus, &mut parts);
        at += run.count as usize;
    }
    parts
}

fn cut(run: PageRun, at: usize, minus: &[PageRun], parts: &mut Vec<Part>) {
    let end = run.first + run.count;
    let mut holes: Vec<(u64, u64)> = minus
        .iter()
        .filter(|hole| {
            hole.space == run.space && hole.first < end && hole.first.saturating_add(hole.count) > run.first
        })
        .map(|hole| {
            (
                hole.first.max(run.first),
                hole.first.saturating_add(hole.count).min(end),
            )
        })
        .collect();
    holes.sort_unstable();
    holes.push((end, end));
    let mut first = run.first;
    for (from, to) in holes {
        if from > first {
            let part = PageRun {
                first,
                count: from - first,
                ..run
            };
            parts.push(Part {
                run: part,
                at: at + (first - run.first) as usize,
            });
        }
        first = first.max(to);
    }
}

/// Tells pages with content from zero pages. Neighbours stay together.
fn split_zeros(parts: &[Part], content: &[u8]) -> (Vec<Part>, Vec<PageRun>) {
    let mut full: Vec<Part> = Vec::with_capacity(parts.len());
    let mut zero: Vec<PageRun> = Vec::new();
    for part in parts {
        let pages = content[part.at * PAGE_BYTES..]
            .chunks_exact(PAGE_BYTES)
            .take(part.run.count as usize);
        let mut begun: Option<(bool, usize)> = None;
        let mut close = |begun: (bool, usize), end: usize| {
            let count = (end - begun.1) as u64;
            let run = PageRun {
                first: part.run.first + begun.1 as u64,
                count,
                ..part.run
            };
            if begun.0 {
                zero.push(run);
            } else {
                full.push(Part {
                    run,
                    at: part.at + begun.1,
                });
            }
        };
        for (index, page) in pages.enumerate() {
            let is_zero = is_zero(page);
            match begun {
                Some((kind, _)) if kind == is_zero => {}
                other => {
                    other.into_iter().for_each(|begun| close(begun, index));
                    begun = Some((is_zero, index));
                }
            }
        }
        begun
            .into_iter()
            .for_each(|begun| close(begun, part.run.count as usize));
    }
    (full, zero)
}

/// True if every byte is 0. Stops at the first 128 bytes that are not; the compiler makes vectors of the inner loop.
pub fn is_zero(page: &[u8]) -> bool {
    let chunks = page.chunks_exact(128);
    let rest = chunks.remainder().iter().all(|&b| b == 0);
    rest && page.chunks_exact(128).all(|chunk| {
        let words = chunk
            .chunks_exact(16)
            .map(|w| w.try_into().map_or(1, u128::from_ne_bytes));
        words.fold(0, |all, word| all | word) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use whimbrel_policy::SpaceId;

    fn runs(max: u64) -> impl Strategy<Value = Vec<PageRun>> {
        let run = (0u32..2, 0u64..400, 1..=max).prop_map(|(space, first, count)| PageRun {
            space: SpaceId(space),
            first,
            count,
        });
        proptest::collection::vec(run, 0..8)
    }

    fn pages(runs: &[PageRun]) -> Vec<(u32, u64)> {
        runs.iter()
            .flat_map(|r| (r.first..r.first + r.count).map(|p| (r.space.0, p)))
            .collect()
    }

    proptest! {
        #[test]
        fn pieces_are_the_runs(runs in runs(1000)) {
            let pieces: Vec<_> = pieces(&runs).collect();
            prop_assert!(pieces.iter().all(|p| (1..=PIECE_PAGES).contains(&p.iter().map(|r| r.count).sum())));
            prop_assert_eq!(pages(&pieces.concat()), pages(&runs));
        }

        #[test]
        fn what_is_left_out_is_left_out_and_nothing_else(runs in runs(50), minus in runs(50)) {
            let left_out = pages(&minus);
            let parts = without(&runs, &minus);
            let places: BTreeMap<usize, _> = pages(&runs).into_iter().enumerate().collect();
            let expected: Vec<_> = places.iter().filter(|(_, p)| !left_out.contains(p)).map(|(&at, &p)| (at, p)).collect();
            let found: Vec<_> = parts
                .iter()
                .flat_map(|part| pages(&[part.run]).into_iter().enumerate().map(|(i, p)| (part.at + i, p)))
                .collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn zero_pages_are_told_from_others(kinds in proptest::collection::vec(any::<bool>(), 1..40), gap in 0usize..3) {
            let run = PageRun { space: SpaceId(0), first: 100, count: kinds.len() as u64 };
            let mut content = vec![7; (gap + kinds.len()) * PAGE_BYTES];
            for (index, _) in kinds.iter().enumerate().filter(|(_, &zero)| zero) {
                content[(gap + index) * PAGE_BYTES..][..PAGE_BYTES].fill(0);
            }
            let (full, zero) = split_zeros(&[Part { run, at: gap }], &content);
            let of = |wanted| (100..).zip(&kinds).filter(|(_, &k)| k == wanted).map(|(p, _)| (0, p)).collect::<Vec<_>>();
            prop_assert_eq!(pages(&zero), of(true));
            let full_runs: Vec<_> = full.iter().map(|p| p.run).collect();
            prop_assert_eq!(pages(&full_runs), of(false));
            prop_assert!(full.iter().all(|p| p.run.first as usize - 100 == p.at - gap));
        }
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in 0..PAGE_BYTES {
            page[at] = 0x80;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
        assert!(!is_zero(&[0, 0, 1]) && is_zero(&[0, 0]));
    }
}
