//! Pages packed together: zstd (RFC 8878) at its fastest ordinary level, which packs about half a gigabyte a second.

use crate::error::{Error, Result};
use crate::frame::{Run, FRAME_PAGES_MAX, PAGE_BYTES, RUN_BYTES};

const LEVEL: i32 = 1;
/// Content that does not become shorter than this many hundredths travels as it is.
const WORTH_PERCENT: usize = 90;
const PAGES_MAX: usize = FRAME_PAGES_MAX as usize;

/// Packs contents of pages.
pub struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// One for a stream.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> Result<Packer> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(Error::Io)?;
        Ok(Packer {
            compressor,
            packed: Vec::new(),
        })
    }

    /// The contents packed; nothing if that is not worth it.
    pub fn pack(&mut self, contents: &[u8]) -> Option<&[u8]> {
        let worth = contents.len() / 100 * WORTH_PERCENT;
        self.packed.resize(worth, 0);
        // What does not fit is not worth it.
        let bytes = self
            .compressor
            .compress_to_buffer(contents, &mut self.packed[..])
            .ok()?;
        self.packed.get(..bytes)
    }
}

/// What came packed, run by run.
#[derive(Default)]
pub(crate) struct Unpacked {
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    contents: Vec<u8>,
    runs: Vec<Run>,
    next: usize,
    /// Where the content of the next run begins.
    at: usize,
}

impl std::fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked")
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

impl Unpacked {
    /// Takes in the payload of a frame. Its runs say how long the contents must be, and that has a limit.
    pub fn unpack(&mut self, payload: &[u8]) -> Result<()> {
        let damaged = || Error::Damaged { what: "packed pages" };
        let (count, rest) = payload.split_first_chunk::<4>().ok_or_else(damaged)?;
        let count = u32::from_le_bytes(*count) as usize;
        if count == 0 || count > PAGES_MAX {
            return Err(damaged());
        }
        let (runs, packed) = rest.split_at_checked(count * RUN_BYTES).ok_or_else(damaged)?;
        self.runs.clear();
        let mut pages = 0;
        for run in runs.chunks_exact(RUN_BYTES) {
            let run = Run::decode(run.try_into().map_err(|_| damaged())?)?;
            pages += usize::try_from(run.count)
                .map_err(|_| damaged())?
                .min(PAGES_MAX + 1);
            self.runs.push(run);
        }
        if pages > PAGES_MAX {
            self.runs.clear();
            return Err(damaged());
        }
        (self.next, self.at) = (0, 0);
        self.contents.resize(pages * PAGE_BYTES, 0);
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(Error::Io)?),
        };
        match decompressor.decompress_to_buffer(packed, &mut self.contents[..]) {
            Ok(bytes) if bytes == self.contents.len() => Ok(()),
            _ => {
                self.runs.clear();
                Err(damaged())
            }
        }
    }

    /// The next run, and where its content lies.
    pub fn next(&mut self) -> Option<(Run, std::ops::Range<usize>)> {
        let run = *self.runs.get(self.next)?;
        self.next += 1;
        let from = self.at;
        self.at += run.count as usize * PAGE_BYTES;
        Some((run, from..self.at))
    }

    pub fn content(&self, place: std::ops::Range<usize>) -> &[u8] {
        self.contents.get(place).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(runs: &[Run], packed: &[u8]) -> Vec<u8> {
        let mut bytes = (runs.len() as u32).to_le_bytes().to_vec();
        runs.iter().for_each(|run| bytes.extend(run.encode()));
        bytes.extend_from_slice(packed);
        bytes
    }

    fn run(first: u64, count: u64) -> Run {
        Run {
            space: 0,
            first,
            count,
        }
    }

    #[test]
    fn noise_is_not_packed() {
        let mut seed = 7u64;
        let mut noise = || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        let contents: Vec<u8> = (0..8 * PAGE_BYTES).map(|_| noise()).collect();
        assert!(Packer::new().unwrap().pack(&contents).is_none());
        assert!(Packer::new()
            .unwrap()
            .pack(&[5; 8 * PAGE_BYTES])
            .is_some_and(|packed| packed.len() < 100));
    }

    #[test]
    fn lengths_that_do_not_fit_are_damage() {
        let mut packer = Packer::new().unwrap();
        let packed = packer.pack(&[9; 3 * PAGE_BYTES]).unwrap().to_vec();
        let mut unpacked = Unpacked::default();
        unpacked
            .unpack(&payload(&[run(1, 1), run(7, 2)], &packed))
            .unwrap();
        assert_eq!(unpacked.next().unwrap(), (run(1, 1), 0..PAGE_BYTES));
        let (last, place) = unpacked.next().unwrap();
        assert_eq!(
            (last, unpacked.content(place)),
            (run(7, 2), &[9; 2 * PAGE_BYTES][..])
        );
        assert!(unpacked.next().is_none());
        let too_many = vec![run(0, 1); PAGES_MAX + 1];
        let bad: [&[Run]; 6] = [
            &[],
            &[run(1, 2)],
            &[run(1, 4)],
            &[run(0, 1 << 40)],
            &[run(1, 300)],
            &too_many,
        ];
        for runs in bad {
            assert!(unpacked.unpack(&payload(runs, &packed)).is_err(), "{runs:?}");
            assert!(unpacked.next().is_none());
        }
        for end in 0..packed.len() {
            assert!(
                unpacked.unpack(&payload(&[run(1, 3)], &packed[..end])).is_err(),
                "{end}"
            );
        }
    }
}
