//! The destination's part of a migration up to the last page: takes in layouts and pages.

use std::net::TcpStream;

use whimbrel_policy::{PageRun, Pages, SpaceId};
use whimbrel_wire::{Bulk, BulkReader, Message, Run};

use crate::contract::Replica;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::link::ControlLink;
use crate::rounds::LAST_BARRIER;

/// What came before the last barrier.
#[derive(Debug, Default)]
pub(crate) struct TakenIn {
    pub bytes: u64,
    /// What will come when the workload runs.
    pub missing: Pages,
}

/// Applies everything of the bulk stream up to the last barrier. `load` is called with the state.
pub(crate) fn take_in<R: Replica>(
    replica: &mut R,
    journal: &mut Journal,
    link: &ControlLink,
    bulk: TcpStream,
    peer: &str,
    mut load: impl FnMut(&mut R, &[u8]) -> Result<()>,
) -> Result<TakenIn> {
    let broken = |cause| Error::Link {
        peer: peer.to_owned(),
        cause,
    };
    let mut reader = BulkReader::new(bulk);
    let mut loaded = false;
    let mut missing = Pages::new();
    let out_of_place = |got, expected| Error::Unexpected { got, expected };
    loop {
        let bulk = reader
            .next_bulk()
            .map_err(broken)?
            .ok_or_else(|| broken(whimbrel_wire::Error::Closed))?;
        match bulk {
            Bulk::Barrier(LAST_BARRIER) if loaded => {
                let bytes = reader.bytes();
                return Ok(TakenIn { bytes, missing });
            }
            Bulk::Missing(_) if !loaded => return Err(out_of_place("missing pages", "State")),
            Bulk::Missing(run) => missing.insert(page_run(run)).map_err(|_| {
                broken(whimbrel_wire::Error::Damaged {
                    what: "a run of missing pages",
                })
            })?,
            Bulk::Padding(_) => {}
            Bulk::Enough if !loaded => return Err(Error::OnlyAsked),
            Bulk::Enough => return Err(out_of_place("the end of a question", "pages")),
            Bulk::Settled(_) | Bulk::Refused(_) | Bulk::Hurry | Bulk::Alive => {
                return Err(out_of_place("an answer to a fault", "pages"))
            }
            Bulk::Barrier(LAST_BARRIER) => return Err(out_of_place("the last barrier", "State")),
            Bulk::Barrier(number) => link.say(&Message::BarrierAck { stream: 0, number })?,
            Bulk::State(_) if loaded => return Err(out_of_place("State", "pages")),
            Bulk::State(state) => {
                load(replica, state)?;
                loaded = true;
            }
            Bulk::Layout(layout) => {
                replica.follow(layout).map_err(Error::workload)?;
                journal.set_resources(replica.resources())?;
            }
            pages => apply(replica, pages).map_err(Error::workload)?,
        }
    }
}

fn apply<R: Replica>(replica: &mut R, bulk: Bulk<'_>) -> Result<(), R::Error> {
    match bulk {
        Bulk::Pages(run, data) => replica.write(page_run(run), data),
        Bulk::Zero(run) => replica.zero(page_run(run)),
        Bulk::Drop(run) => replica.forget(page_run(run)),
        _ => Ok(()),
    }
}

pub(crate) fn page_run(run: Run) -> PageRun {
    PageRun {
        space: SpaceId(run.space),
        first: run.first,
        count: run.count,
    }
}
