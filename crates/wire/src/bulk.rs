//! Layouts, pages and the state on a bulk stream, in one order.
//!
//! Payloads: `Layout` and `State` opaque bytes; `Pages` a run (24 bytes) and its content; `Zero` and `Drop` a run; `Barrier` its number, u64.
//! `Packed`: the number of runs, u32, the runs, and the contents of all of them as one frame of zstd (RFC 8878).
//! `Missing`, `Settled`, `Refused` a run; `Hurry`, `Alive` and `Enough` nothing; `Padding` bytes that mean nothing.
//! A run is: space u32, 0 u32, first page u64, number of pages u64.

use std::io::{self, IoSlice, Read, Write};

use crate::error::{Error, Result};
use crate::frame::{Header, Kind, Run, FRAME_PAGES_MAX, HEADER_BYTES, PAGE_BYTES, RUN_BYTES};
use crate::pack::Unpacked;

/// Header and run before the content of a `Pages` frame.
const PREFIX_BYTES: usize = HEADER_BYTES + RUN_BYTES;
/// Slices in one writev(2); the kernel takes at most IOV_MAX = 1024.
const SLICES_MAX: usize = 1024;
/// What one read asks for at most. A megabyte stays in the processor's cache until it was written to its place.
const BUFFER_BYTES: usize = 1 << 20;
/// Pages are handed on in pieces of at least this if more is to come: each piece costs system calls.
const PIECE_BYTES: usize = 256 << 10;

/// Writes frames to a bulk stream and counts the bytes.
#[derive(Debug)]
pub struct BulkWriter<W> {
    stream: W,
    prefixes: Vec<[u8; PREFIX_BYTES]>,
    bytes: u64,
}

impl<W: Write> BulkWriter<W> {
    /// Takes over a stream behind its handshake.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            prefixes: Vec::new(),
            bytes: 0,
        }
    }

    /// Bytes written so far, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stream below.
    pub fn stream(&self) -> &W {
        &self.stream
    }

    /// The stream below, to be told when to send.
    pub fn stream_mut(&mut self) -> &mut W {
        &mut self.stream
    }

    /// Writes the layout that everything after it is meant for.
    pub fn layout(&mut self, layout: &[u8]) -> Result<()> {
        self.opaque(Kind::Layout, layout)
    }

    /// Writes the state beside the memory.
    pub fn state(&mut self, state: &[u8]) -> Result<()> {
        self.opaque(Kind::State, state)
    }

    fn opaque(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let length_max = kind.length_max();
        if payload.len() > length_max as usize {
            return Err(crate::frame::too_long(
                kind,
                payload.len() as u64,
                u64::from(length_max),
            ));
        }
        let header = Header {
            length: payload.len() as u32,
            kind,
            flags: 0,
        }
        .encode();
        self.write(&mut [IoSlice::new(&header), IoSlice::new(payload)])
    }

    /// Writes pages with their content. Each run has at most [`FRAME_PAGES_MAX`] pages and content of that length;
    /// many small runs go out in one system call.
    pub fn pages<'a>(&mut self, runs: impl IntoIterator<Item = (Run, &'a [u8])>) -> Result<()> {
        let mut prefixes = std::mem::take(&mut self.prefixes);
        let mut contents = Vec::new();
        prefixes.clear();
        for (run, content) in runs {
            if run.count > u64::from(FRAME_PAGES_MAX) || content.len() as u64 != run.count * PAGE_BYTES as u64
            {
                return Err(Error::Damaged {
                    what: "a run of pages of our own",
                });
            }
            prefixes.push(prefix(Kind::Pages, run, content.len()));
            contents.push(content);
        }
        let mut result = Ok(());
        for (prefixes, contents) in prefixes
            .chunks(SLICES_MAX / 2)
            .zip(contents.chunks(SLICES_MAX / 2))
        {
            let pairs = prefixes.iter().zip(contents);
            let mut slices: Vec<_> = pairs
                .flat_map(|(p, c)| [IoSlice::new(p), IoSlice::new(c)])
                .collect();
            result = result.and_then(|()| self.write(&mut slices));
        }
        self.prefixes = prefixes;
        result
    }

    /// Writes pages whose contents, one after the other, were packed by [`crate::Packer`]: [`FRAME_PAGES_MAX`] in all at most.
    pub fn packed(&mut self, runs: &[Run], packed: &[u8]) -> Result<()> {
        let pages = runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.count));
        if pages.is_none_or(|pages| pages > u64::from(FRAME_PAGES_MAX)) {
            return Err(Error::Damaged {
                what: "packed pages of our own",
            });
        }
        let mut head = Vec::with_capacity(HEADER_BYTES + 4 + runs.len() * RUN_BYTES);
        let length = 4 + runs.len() * RUN_BYTES + packed.len();
        let kind = Kind::Packed;
        if length > kind.length_max() as usize {
            return Err(crate::frame::too_long(
                kind,
                length as u64,
                u64::from(kind.length_max()),
            ));
        }
        let header = Header {
            length: length as u32,
            kind,
            flags: 0,
        };
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(&(runs.len() as u32).to_le_bytes());
        runs.iter().for_each(|run| head.extend_from_slice(&run.encode()));
        self.write(&mut [IoSlice::new(&head), IoSlice::new(packed)])
    }

    /// Writes runs of pages that are zero.
    pub fn zeros(&mut self, runs: &[Run]) -> Result<()> {
        self.runs(Kind::Zero, runs)
    }

    /// Writes runs of pages that are gone.
    pub fn drops(&mut self, runs: &[Run]) -> Result<()> {
        self.runs(Kind::Drop, runs)
    }

    /// Writes runs of pages that will come when the workload runs.
    pub fn missing(&mut self, runs: &[Run]) -> Result<()> {
        self.runs(Kind::Missing, runs)
    }

    /// Writes that pages are taken for settled.
    pub fn settled(&mut self, runs: &[Run]) -> Result<()> {
        self.runs(Kind::Settled, runs)
    }

    /// Writes that pages cannot or will not be sent.
    pub fn refused(&mut self, runs: &[Run]) -> Result<()> {
        self.runs(Kind::Refused, runs)
    }

    /// Writes that the workload shall wait for the rest.
    pub fn hurry(&mut self) -> Result<()> {
        self.opaque(Kind::Hurry, &[])
    }

    /// Writes bytes that mean nothing: at most [`crate::PART_BYTES_MAX`].
    pub fn padding(&mut self, bytes: &[u8]) -> Result<()> {
        self.opaque(Kind::Padding, bytes)
    }

    /// Writes that nothing will come: it was only a question.
    pub fn enough(&mut self) -> Result<()> {
        self.opaque(Kind::Enough, &[])
    }

    /// Writes a sign of life.
    pub fn alive(&mut self) -> Result<()> {
        self.opaque(Kind::Alive, &[])
    }

    /// Writes a barrier.
    pub fn barrier(&mut self, number: u64) -> Result<()> {
        let header = Header {
            length: 8,
            kind: Kind::Barrier,
            flags: 0,
        }
        .encode();
        self.write(&mut [IoSlice::new(&header), IoSlice::new(&number.to_le_bytes())])
    }

    fn runs(&mut self, kind: Kind, runs: &[Run]) -> Result<()> {
        for some in runs.chunks(SLICES_MAX) {
            let frames: Vec<u8> = some.iter().flat_map(|&run| prefix(kind, run, 0)).collect();
            self.write(&mut [IoSlice::new(&frames)])?;
        }
        Ok(())
    }

    fn write(&mut self, slices: &mut [IoSlice<'_>]) -> Result<()> {
        let mut slices = slices;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.write_vectored(slices) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => {
                    self.bytes += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Io(e)),
            }
        }
        Ok(())
    }
}

fn prefix(kind: Kind, run: Run, content_bytes: usize) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    let header = Header {
        length: (RUN_BYTES + content_bytes) as u32,
        kind,
        flags: 0,
    };
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    bytes[HEADER_BYTES..].copy_from_slice(&run.encode());
    bytes
}

/// What a bulk stream says. Borrowed from the reader's buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Bulk<'a> {
    /// The layout that everything after it is meant for.
    Layout(&'a [u8]),
    /// The state beside the memory: the layout is final, pages may still follow.
    State(&'a [u8]),
    /// Pages with their content; a frame may come in several pieces.
    Pages(Run, &'a [u8]),
    /// Pages that are zero.
    Zero(Run),
    /// Pages that are gone.
    Drop(Run),
    /// To be acknowledged when everything before it was applied.
    Barrier(u64),
    /// Pages that will come when the workload runs.
    Missing(Run),
    /// Pages that the source takes for settled: look again and wake who waits.
    Settled(Run),
    /// Pages that the source cannot or will not send.
    Refused(Run),
    /// The workload shall wait until everything has arrived.
    Hurry,
    /// Nothing, but the source lives.
    Alive,
    /// So many bytes that mean nothing.
    Padding(usize),
    /// Nothing will come: it was only a question.
    Enough,
}

/// Reads a bulk stream through one buffer that is used again and again; content is not copied inside it, apart from
/// the piece of a page where the buffer ends.
#[derive(Debug)]
pub struct BulkReader<R> {
    stream: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Pages of the current frame that were not handed on yet.
    pending: Option<Run>,
    opaque: Vec<u8>,
    bytes: u64,
    unpacked: Unpacked,
}

impl<R: Read> BulkReader<R> {
    /// Takes over a stream behind its handshake.
    pub fn new(stream: R) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            stream,
            buffer,
            start: 0,
            end: 0,
            pending: None,
            opaque: Vec::new(),
            bytes: 0,
            unpacked: Unpacked::default(),
        }
    }

    /// Bytes read so far, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits for the next thing. `None` when the peer ended the stream at the end of a frame.
    pub fn next_bulk(&mut self) -> Result<Option<Bulk<'_>>> {
        if let Some(run) = self.pending.take() {
            return self.pages(run).map(Some);
        }
        if let Some((run, place)) = self.unpacked.next() {
            return Ok(Some(Bulk::Pages(run, self.unpacked.content(place))));
        }
        if self.end == self.start && !self.fill()? {
            return Ok(None);
        }
        self.need(HEADER_BYTES)?;
        let header = Header::decode(self.take_array()?)?;
        match header.kind {
            Kind::Layout => {
                self.read_opaque(header.length as usize)?;
                Ok(Some(Bulk::Layout(&self.opaque)))
            }
            Kind::State => {
                self.read_opaque(header.length as usize)?;
                Ok(Some(Bulk::State(&self.opaque)))
            }
            Kind::Pages => {
                let run = self.run(header, true)?;
                self.pages(run).map(Some)
            }
            Kind::Packed => {
                self.read_opaque(header.length as usize)?;
                self.unpacked.unpack(&self.opaque)?;
                // There is at least one run.
                let (run, place) = self
                    .unpacked
                    .next()
                    .ok_or(Error::Damaged { what: "packed pages" })?;
                Ok(Some(Bulk::Pages(run, self.unpacked.content(place))))
            }
            Kind::Zero => Ok(Some(Bulk::Zero(self.run(header, false)?))),
            Kind::Drop => Ok(Some(Bulk::Drop(self.run(header, false)?))),
            Kind::Barrier if header.length == 8 => {
                self.need(8)?;
                Ok(Some(Bulk::Barrier(u64::from_le_bytes(self.take_array()?))))
            }
            Kind::Barrier => Err(Error::Damaged { what: "a barrier" }),
            Kind::Missing => Ok(Some(Bulk::Missing(self.run(header, false)?))),
            Kind::Settled => Ok(Some(Bulk::Settled(self.run(header, false)?))),
            Kind::Refused => Ok(Some(Bulk::Refused(self.run(header, false)?))),
            Kind::Hurry => Ok(Some(Bulk::Hurry)),
            Kind::Alive => Ok(Some(Bulk::Alive)),
            Kind::Padding => {
                self.read_opaque(header.length as usize)?;
                Ok(Some(Bulk::Padding(self.opaque.len())))
            }
            Kind::Enough => Ok(Some(Bulk::Enough)),
            other => Err(Error::Unknown {
                what: "bulk frame",
                value: other as u64,
            }),
        }
    }

    fn run(&mut self, header: Header, content: bool) -> Result<Run> {
        if (header.length as usize) < RUN_BYTES {
            return Err(Error::Damaged {
                what: "a run of pages",
            });
        }
        self.need(RUN_BYTES)?;
        let run = Run::decode(&self.take_array()?)?;
        let pages = if content { run.count } else { 0 };
        let expected = pages
            .checked_mul(PAGE_BYTES as u64)
            .and_then(|n| n.checked_add(RUN_BYTES as u64));
        if expected != Some(u64::from(header.length)) {
            return Err(Error::Damaged {
                what: "a run of pages",
            });
        }
        Ok(run)
    }

    /// Hands on as many whole pages of `run` as it pays to wait for.
    fn pages(&mut self, run: Run) -> Result<Bulk<'_>> {
        let bytes = run.count as usize * PAGE_BYTES;
        self.need(bytes.min(PIECE_BYTES))?;
        let here = bytes.min((self.end - self.start) / PAGE_BYTES * PAGE_BYTES);
        let count = (here / PAGE_BYTES) as u64;
        if count < run.count {
            self.pending = Some(Run {
                first: run.first + count,
                count: run.count - count,
                ..run
            });
        }
        let start = self.start;
        self.start += here;
        Ok(Bulk::Pages(
            Run { count, ..run },
            &self.buffer[start..start + here],
        ))
    }

    /// Reads into a vector that grows with what arrives, not with what was announced.
    fn read_opaque(&mut self, length: usize) -> Result<()> {
        self.opaque.clear();
        while self.opaque.len() < length {
            if self.start == self.end {
                self.need(1)?;
            }
            let here = (length - self.opaque.len()).min(self.end - self.start);
            self.opaque
                .extend_from_slice(&self.buffer[self.start..self.start + here]);
            self.start += here;
        }
        Ok(())
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.buffer[self.start..self.end]
            .first_chunk::<N>()
            .ok_or(Error::BrokenOff)?;
        self.start += N;
        Ok(*bytes)
    }

    /// Makes sure that `bytes` (less than the buffer) lie in the buffer in one piece.
    fn need(&mut self, bytes: usize) -> Result<()> {
        if self.start + bytes > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < bytes {
            if !self.fill()? {
                return Err(Error::BrokenOff);
            }
        }
        Ok(())
    }

    /// False at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    self.bytes += n as u64;
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Io(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Told {
        Layout(Vec<u8>),
        State(Vec<u8>),
        Page(u32, u64, u8),
        Zero(Run),
        Drop(Run),
        Barrier(u64),
        Word(&'static str, Option<Run>),
    }

    fn run(pages: u64) -> impl Strategy<Value = Run> {
        (any::<u32>(), 0u64..1 << 40, 1..=pages).prop_map(|(space, first, count)| Run { space, first, count })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Layout(usize),
        State(usize),
        Pages(Vec<Run>),
        Packed(Vec<Run>),
        Zero(Vec<Run>),
        Drop(Vec<Run>),
        Barrier(u64),
        /// Those of post-copy, each once.
        Words(Run),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..3_000_000).prop_map(Step::Layout),
            (0usize..3_000_000).prop_map(Step::State),
            proptest::collection::vec(run(u64::from(FRAME_PAGES_MAX)), 0..4).prop_map(Step::Pages),
            proptest::collection::vec(run(3), 0..600).prop_map(Step::Pages),
            proptest::collection::vec(run(3), 1..80).prop_map(Step::Packed),
            proptest::collection::vec(run(1 << 40), 0..4).prop_map(Step::Zero),
            proptest::collection::vec(run(1 << 40), 0..4).prop_map(Step::Drop),
            any::<u64>().prop_map(Step::Barrier),
            run(1 << 40).prop_map(Step::Words),
        ];
        proptest::collection::vec(step, 0..5)
    }

    fn content(page: u64) -> u8 {
        (page % 251) as u8 + 1
    }

    fn write_step(writer: &mut BulkWriter<impl Write>, step: &Step, told: &mut Vec<Told>) {
        match step {
            Step::Layout(n) => {
                writer.layout(&vec![3; *n]).unwrap();
                told.push(Told::Layout(vec![3; *n]));
            }
            Step::State(n) => {
                writer.state(&vec![5; *n]).unwrap();
                told.push(Told::State(vec![5; *n]));
            }
            Step::Pages(runs) => {
                let pages = |r: &Run| (r.first..r.first + r.count).collect::<Vec<_>>();
                let data: Vec<Vec<u8>> = runs
                    .iter()
                    .map(|r| {
                        pages(r)
                            .into_iter()
                            .flat_map(|p| vec![content(p); PAGE_BYTES])
                            .collect()
                    })
                    .collect();
                writer
                    .pages(runs.iter().copied().zip(data.iter().map(Vec::as_slice)))
                    .unwrap();
                let page = |r: &Run, p| Told::Page(r.space, p, content(p));
                told.extend(
                    runs.iter()
                        .flat_map(|r| pages(r).into_iter().map(move |p| page(r, p))),
                );
            }
            Step::Packed(runs) => {
                let numbers = |r: &Run| r.first..r.first + r.count;
                let data: Vec<u8> = runs
                    .iter()
                    .flat_map(numbers)
                    .flat_map(|p| vec![content(p); PAGE_BYTES])
                    .collect();
                let mut packer = crate::Packer::new().unwrap();
                writer.packed(runs, packer.pack(&data).unwrap()).unwrap();
                let page = |r: &Run, p| Told::Page(r.space, p, content(p));
                told.extend(runs.iter().flat_map(|r| numbers(r).map(move |p| page(r, p))));
            }
            Step::Zero(runs) => {
                writer.zeros(runs).unwrap();
                told.extend(runs.iter().copied().map(Told::Zero));
            }
            Step::Drop(runs) => {
                writer.drops(runs).unwrap();
                told.extend(runs.iter().copied().map(Told::Drop));
            }
            Step::Barrier(n) => {
                writer.barrier(*n).unwrap();
                told.push(Told::Barrier(*n));
            }
            Step::Words(run) => {
                writer.missing(&[*run]).unwrap();
                writer.settled(&[*run]).unwrap();
                writer.refused(&[*run]).unwrap();
                writer.hurry().unwrap();
                writer.alive().unwrap();
                let runs = ["missing", "settled", "refused"].map(|word| Told::Word(word, Some(*run)));
                told.extend(runs);
                told.extend(["hurry", "alive"].map(|word| Told::Word(word, None)));
            }
        }
    }

    /// A stream that gives and takes at most so many bytes at once.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(self.1);
            self.0.read(&mut buffer[..n])
        }
    }

    struct Sip(Vec<u8>, usize);

    impl Write for Sip {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read_all(bytes: &[u8], piece: usize) -> Vec<Told> {
        let mut reader = BulkReader::new(Drip(bytes, piece));
        let mut told = Vec::new();
        while let Some(bulk) = reader.next_bulk().unwrap() {
            match bulk {
                Bulk::Layout(bytes) => told.push(Told::Layout(bytes.to_vec())),
                Bulk::State(bytes) => told.push(Told::State(bytes.to_vec())),
                Bulk::Pages(run, data) => {
                    assert_eq!(data.len() as u64, run.count * PAGE_BYTES as u64);
                    for (page, data) in (run.first..).zip(data.chunks(PAGE_BYTES)) {
                        assert!(data.iter().all(|&b| b == data[0]));
                        told.push(Told::Page(run.space, page, data[0]));
                    }
                }
                Bulk::Zero(run) => told.push(Told::Zero(run)),
                Bulk::Drop(run) => told.push(Told::Drop(run)),
                Bulk::Barrier(n) => told.push(Told::Barrier(n)),
                Bulk::Missing(run) => told.push(Told::Word("missing", Some(run))),
                Bulk::Settled(run) => told.push(Told::Word("settled", Some(run))),
                Bulk::Refused(run) => told.push(Told::Word("refused", Some(run))),
                Bulk::Hurry => told.push(Told::Word("hurry", None)),
                Bulk::Alive => told.push(Told::Word("alive", None)),
                Bulk::Padding(_) => told.push(Told::Word("padding", None)),
                Bulk::Enough => told.push(Told::Word("enough", None)),
            }
        }
        assert_eq!(reader.bytes(), bytes.len() as u64);
        told
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn everything_arrives_in_order_through_pieces_of_any_size(
            steps in steps(),
            written in 100usize..3_000_000,
            read in prop_oneof![37usize..5000, 4096usize..3_000_000],
        ) {
            let mut writer = BulkWriter::new(Sip(Vec::new(), written));
            let mut told = Vec::new();
            for step in &steps {
                write_step(&mut writer, step, &mut told);
            }
            prop_assert_eq!(writer.bytes(), writer.stream().0.len() as u64);
            prop_assert!(read_all(&writer.stream().0, read) == told);
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_told_from_one_that_ends() {
        let mut writer = BulkWriter::new(Vec::new());
        let run = Run {
            space: 0,
            first: 1,
            count: 2,
        };
        writer.pages([(run, &[1u8; 2 * PAGE_BYTES][..])]).unwrap();
        let bytes = writer.stream().clone();
        for cut in 1..bytes.len() {
            let mut reader = BulkReader::new(&bytes[..cut]);
            let error = loop {
                match reader.next_bulk() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("a stream cut after {cut} bytes looks complete"),
                    Err(e) => break e,
                }
            };
            assert!(matches!(error, Error::BrokenOff), "{error}");
        }
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        for kind in [Kind::Layout, Kind::State] {
            let header = Header {
                length: kind.length_max(),
                kind,
                flags: 0,
            };
            let bytes = header.encode();
            let mut reader = BulkReader::new(&bytes[..]);
            assert!(matches!(reader.next_bulk(), Err(Error::BrokenOff)));
            assert!(reader.opaque.capacity() < 4096);
        }
    }

    #[test]
    fn impossible_runs_are_damage() {
        for run in [
            Run {
                space: 0,
                first: 1,
                count: 0,
            },
            Run {
                space: 0,
                first: u64::MAX,
                count: 2,
            },
            Run {
                space: 0,
                first: u64::MAX / 4096,
                count: 1,
            },
        ] {
            let bytes = prefix(Kind::Zero, run, 0);
            let error = BulkReader::new(&bytes[..]).next_bulk().unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
        let run = Run {
            space: 0,
            first: 0,
            count: 2,
        };
        let bytes = prefix(Kind::Pages, run, PAGE_BYTES);
        assert!(
            BulkReader::new(&bytes[..]).next_bulk().is_err(),
            "length and count differ"
        );
    }

    #[test]
    fn the_writer_refuses_what_the_reader_would() {
        let mut writer = BulkWriter::new(Vec::new());
        let run = Run {
            space: 0,
            first: 0,
            count: u64::from(FRAME_PAGES_MAX) + 1,
        };
        assert!(writer
            .pages([(run, &vec![0; run.count as usize * PAGE_BYTES][..])])
            .is_err());
        assert!(writer
            .layout(&vec![0; Kind::Layout.length_max() as usize + 1])
            .is_err());
        assert!(writer.stream().is_empty());
    }
}
