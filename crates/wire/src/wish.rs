//! What the destination says on the stream for faults, after the switch-over of a post-copy migration.
//!
//! Payloads: `Fault` space u32, thread u32, page u64, and a flag if it was told before; `Acked` the number of the piece, u64; `Gone` and
//! `Missing` a run; `Times` a structure of its own; the others nothing. The other direction is a bulk stream ([`crate::bulk`]).

use std::io::{self, BufReader, Read, Write};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frame::{
    too_long, Header, Kind, Run, FAULT_BYTES, HEADER_BYTES, MESSAGE_BYTES_MAX, REPEATED, RUN_BYTES,
};

/// Threads whose times are told apart; the slowest ones.
pub const THREADS_TOLD_MAX: usize = 64;

/// How long the faults of one thread took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Faults that were served.
    pub faults: u64,
    /// Half of them took at most this.
    pub p50_us: u64,
    /// 99 of 100 took at most this.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// All of them together: how long it has waited.
    pub waited_us: u64,
}

/// How long network faults took at the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultTimes {
    /// Of all threads together.
    pub all: Latency,
    /// Of the threads that waited longest, at most [`THREADS_TOLD_MAX`]: number at the destination, and times.
    pub threads: Vec<(u32, Latency)>,
    /// Faults that needed no page of the source: never written before, or dropped since.
    pub local_faults: u64,
    /// Since the workload was started there, in microseconds.
    pub residual_us: u64,
}

/// One thing that the destination wants or tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A thread waits for a page.
    Fault {
        /// The page's space.
        space: u32,
        /// Its number.
        page: u64,
        /// Who waits.
        thread: u32,
        /// It was told before.
        repeated: bool,
    },
    /// Every page of the piece was placed that was not there already.
    Acked(u64),
    /// These pages are not wanted any more.
    Gone(Run),
    /// These pages are missing; told after a new connection.
    Missing(Run),
    /// All missing pages were named.
    Listed,
    /// How long faults took up to now.
    Times(FaultTimes),
    /// The workload has ended, or lacks nothing.
    Ended,
    /// Nothing, but the destination lives.
    Alive,
}

/// Writes wishes; each in one piece.
pub fn write_wishes(stream: &mut impl Write, wishes: &[Wish]) -> Result<()> {
    let mut bytes = Vec::with_capacity(wishes.len() * (HEADER_BYTES + RUN_BYTES));
    for wish in wishes {
        encode(wish, &mut bytes)?;
    }
    Ok(stream.write_all(&bytes)?)
}

fn encode(wish: &Wish, bytes: &mut Vec<u8>) -> Result<()> {
    let mut frame = |kind: Kind, flags: u8, payload: &[u8]| {
        let length = payload.len() as u32;
        bytes.extend_from_slice(&Header { length, kind, flags }.encode());
        bytes.extend_from_slice(payload);
    };
    match wish {
        Wish::Fault {
            space,
            page,
            thread,
            repeated,
        } => {
            let mut payload = [0; FAULT_BYTES];
            payload[..4].copy_from_slice(&space.to_le_bytes());
            payload[4..8].copy_from_slice(&thread.to_le_bytes());
            payload[8..].copy_from_slice(&page.to_le_bytes());
            frame(Kind::Fault, if *repeated { REPEATED } else { 0 }, &payload);
        }
        Wish::Acked(piece) => frame(Kind::Acked, 0, &piece.to_le_bytes()),
        Wish::Gone(run) => frame(Kind::Gone, 0, &run.encode()),
        Wish::Missing(run) => frame(Kind::Missing, 0, &run.encode()),
        Wish::Listed => frame(Kind::Listed, 0, &[]),
        Wish::Ended => frame(Kind::Ended, 0, &[]),
        Wish::Alive => frame(Kind::Alive, 0, &[]),
        Wish::Times(times) => {
            let payload = postcard::to_stdvec(times).map_err(|_| Error::Damaged {
                what: "times of our own",
            })?;
            if payload.len() > MESSAGE_BYTES_MAX as usize {
                return Err(too_long(
                    Kind::Times,
                    payload.len() as u64,
                    u64::from(MESSAGE_BYTES_MAX),
                ));
            }
            frame(Kind::Times, 0, &payload);
        }
    }
    Ok(())
}

/// Reads wishes. Holds at most one frame.
#[derive(Debug)]
pub struct WishReader<R> {
    stream: BufReader<R>,
}

impl<R: Read> WishReader<R> {
    /// Takes over a stream behind its handshake.
    pub fn new(stream: R) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Waits for the next one. `None` when the peer ended the stream at the end of a frame.
    pub fn next_wish(&mut self) -> Result<Option<Wish>> {
        let mut header = [0; HEADER_BYTES];
        let first = loop {
            match self.stream.read(&mut header) {
                Ok(0) => return Ok(None),
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        };
        self.fill(&mut header[first..])?;
        let header = Header::decode(header)?;
        // The header's limit is checked, so that this is small.
        let mut payload = vec![
            0;
            usize::try_from(header.length)
                .unwrap_or(0)
                .min(MESSAGE_BYTES_MAX as usize)
        ];
        if payload.len() != header.length as usize || !is_wish(header.kind) {
            return Err(Error::Unknown {
                what: "wish",
                value: header.kind as u64,
            });
        }
        self.fill(&mut payload)?;
        decode(header, &payload).map(Some)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::BrokenOff,
            _ => Error::Io(e),
        })
    }
}

fn is_wish(kind: Kind) -> bool {
    use Kind::{Acked, Alive, Ended, Fault, Gone, Listed, Missing, Times};
    matches!(
        kind,
        Fault | Acked | Gone | Missing | Listed | Times | Ended | Alive
    )
}

fn decode(header: Header, payload: &[u8]) -> Result<Wish> {
    let damaged = || Error::Damaged { what: "a wish" };
    let run = || -> Result<Run> { Run::decode(payload.try_into().map_err(|_| damaged())?) };
    let word = |at: usize| -> Result<u64> {
        let bytes = payload.get(at..at + 8).ok_or_else(damaged)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| damaged())?))
    };
    Ok(match header.kind {
        Kind::Fault if payload.len() == FAULT_BYTES => {
            let both = word(0)?;
            Wish::Fault {
                space: both as u32,
                thread: (both >> 32) as u32,
                page: word(8)?,
                repeated: header.flags & REPEATED != 0,
            }
        }
        Kind::Acked if payload.len() == 8 => Wish::Acked(word(0)?),
        Kind::Gone => Wish::Gone(run()?),
        Kind::Missing => Wish::Missing(run()?),
        Kind::Listed => Wish::Listed,
        Kind::Ended => Wish::Ended,
        Kind::Alive => Wish::Alive,
        Kind::Times => {
            let times: FaultTimes = postcard::from_bytes(payload).map_err(|_| damaged())?;
            if times.threads.len() > THREADS_TOLD_MAX {
                return Err(damaged());
            }
            Wish::Times(times)
        }
        _ => return Err(damaged()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> impl Strategy<Value = Run> {
        (any::<u32>(), 0u64..1 << 40, 1u64..1 << 20).prop_map(|(space, first, count)| Run {
            space,
            first,
            count,
        })
    }

    fn wish() -> impl Strategy<Value = Wish> {
        prop_oneof![
            (any::<u32>(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(
                |(space, page, thread, repeated)| Wish::Fault {
                    space,
                    page,
                    thread,
                    repeated
                }
            ),
            any::<u64>().prop_map(Wish::Acked),
            run().prop_map(Wish::Gone),
            run().prop_map(Wish::Missing),
            Just(Wish::Listed),
            Just(Wish::Ended),
            Just(Wish::Alive),
            proptest::collection::vec((any::<u32>(), any::<u64>()), 0..THREADS_TOLD_MAX).prop_map(
                |threads| {
                    let latency = |max_us| Latency {
                        max_us,
                        ..Latency::default()
                    };
                    Wish::Times(FaultTimes {
                        threads: threads.into_iter().map(|(t, us)| (t, latency(us))).collect(),
                        ..FaultTimes::default()
                    })
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(wishes in proptest::collection::vec(wish(), 0..20)) {
            let mut bytes = Vec::new();
            write_wishes(&mut bytes, &wishes).unwrap();
            let mut reader = WishReader::new(&bytes[..]);
            let mut read = Vec::new();
            while let Some(wish) = reader.next_wish().unwrap() {
                read.push(wish);
            }
            prop_assert_eq!(read, wishes);
        }

        #[test]
        fn a_stream_that_ends_inside_of_a_wish_is_broken_off(wish in wish(), cut in 1usize..8) {
            let mut bytes = Vec::new();
            write_wishes(&mut bytes, &[wish]).unwrap();
            bytes.truncate(bytes.len() - cut.min(bytes.len() - 1));
            prop_assert!(WishReader::new(&bytes[..]).next_wish().is_err());
        }

        #[test]
        fn anything_may_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = WishReader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next_wish() {}
        }
    }
}
