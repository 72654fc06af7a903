//! What is missing, and where it belongs in every address space: a book that only its records change, so that whoever reads the
//! records again has the same book. Pure.
//!
//! The order in which the kernel tells of changes is not always the one in which they were made: who has changed something takes
//! some time until it tells, and somebody else may have been faster. Two threads suffice: one moves something away, the kernel gives the free
//! place to what the other one moves, and the second move is told first; or the end of what lay there is told last. But the kernel does say when
//! nothing is under way ([`Record::Settled`]). Until then the book keeps what it cannot place:
//!
//! - A move tells of its old place twice, the second time as an unmapping. That one is awaited, and counts for nothing.
//! - What comes to a place where something still is has displaced it: how that ended will be told. It is kept aside until then.
//! - An unmapping of a place that something has come to may be older than that. When nothing is under way any more, the kernel is asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use whimbrel_policy::{Page, PageRun, Pages, RunTooLong, PAGE_SIZE};

use super::lineage::Lineage;
use crate::layout::Span;
use crate::tracker::PRIVATE;

/// The first address space: that of the process that arrived.
pub const FIRST: u32 = 0;

/// Pages that stay together: (address here, address at the source, bytes).
pub type Piece = (u64, u64, u64);

/// What changes the book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The first one.
    Begin {
        /// What is missing: first page and pages of each run.
        missing: Vec<(u64, u64)>,
        /// The mappings that are watched.
        spans: Vec<Span>,
        /// Number of the userfaultfd in PID 1 of the container.
        kept: Option<i32>,
    },
    /// Pages are there wherever they are wanted.
    Placed {
        /// The first one.
        first: u64,
        /// How many.
        count: u64,
    },
    /// What lies there is not wanted any more.
    Forgot {
        /// The address space.
        space: u32,
        /// Where.
        span: Span,
    },
    /// A move was told.
    Moved {
        /// The address space.
        space: u32,
        /// From where.
        from: u64,
        /// To where.
        to: u64,
        /// How much.
        bytes: u64,
    },
    /// An unmapping was told.
    Unmapped {
        /// The address space.
        space: u32,
        /// Of what.
        span: Span,
    },
    /// Nothing was under way in the address space, and the doubts are resolved.
    Settled {
        /// The address space.
        space: u32,
    },
    /// A process has forked.
    Forked {
        /// The address space of the parent.
        space: u32,
        /// That of the child.
        child: u32,
        /// Number of its userfaultfd in PID 1 of the container, if that could take it.
        kept: Option<i32>,
    },
    /// An address space is gone.
    Ended {
        /// Which.
        space: u32,
    },
}

/// One address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where pages belong.
    pub lineage: Lineage,
    /// Number of its userfaultfd in PID 1 of the container.
    pub kept: Option<i32>,
    /// Somebody else's place now; where they have gone will be told.
    displaced: Vec<Piece>,
    /// Old places of moves whose unmapping will be told.
    left: Vec<Span>,
    /// Where something was moved to.
    arrived: Vec<Span>,
    /// Told to be unmapped, which may be old news.
    doubtful: Vec<Span>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    missing: Pages,
    spaces: BTreeMap<u32, Addresses>,
}

fn span_at(start: u64, bytes: u64) -> Span {
    Span {
        start,
        end: start.saturating_add(bytes),
    }
}

/// The parts of `span` outside of `others`.
fn outside(span: Span, others: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut left = vec![span];
    for other in others {
        let cut = |span: Span| {
            let before = Span {
                start: span.start,
                end: span.end.min(other.start),
            };
            let after = Span {
                start: span.start.max(other.end),
                end: span.end,
            };
            [before, after].into_iter().filter(|part| !part.is_empty())
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

/// The parts of `pieces` inside of `span` are taken out.
fn take(pieces: &mut Vec<Piece>, span: Span) -> Vec<Piece> {
    let mut taken = Vec::new();
    let mut kept = Vec::new();
    for (here, source, bytes) in pieces.drain(..) {
        let piece = span_at(here, bytes);
        let inner = span_at(
            here.max(span.start),
            piece.end.min(span.end).saturating_sub(here.max(span.start)),
        );
        for part in outside(piece, std::iter::once(span)) {
            kept.push((part.start, source + (part.start - here), part.len()));
        }
        if !inner.is_empty() {
            taken.push((inner.start, source + (inner.start - here), inner.len()));
        }
    }
    *pieces = kept;
    taken
}

impl Addresses {
    /// Whether nothing hangs in the air.
    pub fn is_settled(&self) -> bool {
        self.displaced.is_empty()
            && self.left.is_empty()
            && self.arrived.is_empty()
            && self.doubtful.is_empty()
    }

    /// What was told to be unmapped and may be there: to be asked about when nothing is under way.
    pub fn doubts(&self) -> Vec<Piece> {
        let doubtful = self.doubtful.iter();
        doubtful.flat_map(|span| self.lineage.pieces(*span)).collect()
    }

    fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let (old, new) = (span_at(from, bytes), span_at(to, bytes));
        let mut moving = take(&mut self.displaced, old);
        // If something has been displaced there, this is what became of it, and what has arrived since stays.
        let staying = self.arrived.iter().filter(|_| !moving.is_empty());
        for part in outside(old, staying.copied()) {
            moving.extend(self.lineage.pieces(part));
            self.lineage.forget(part);
        }
        self.displaced.extend(self.lineage.pieces(new));
        self.lineage.forget(new);
        for (here, source, bytes) in moving {
            self.lineage.adopt(to + (here - from), source, bytes);
        }
        self.left.push(old);
        self.arrived.push(new);
    }

    /// Gives what is not wanted any more.
    fn unmapped(&mut self, span: Span) -> Vec<Piece> {
        if let Some(index) = self.left.iter().position(|left| *left == span) {
            self.left.swap_remove(index);
            return Vec::new();
        }
        let mut gone = take(&mut self.displaced, span);
        let old: Vec<Span> = gone.iter().map(|piece| span_at(piece.0, piece.2)).collect();
        for part in outside(span, old.into_iter()) {
            let certain = outside(part, self.arrived.iter().copied());
            let uncertain = outside(part, certain.iter().copied());
            for part in certain {
                gone.extend(self.lineage.pieces(part));
                self.lineage.forget(part);
            }
            self.doubtful.extend(uncertain);
        }
        gone
    }

    fn settle(&mut self) -> Vec<Piece> {
        self.left.clear();
        self.arrived.clear();
        self.doubtful.clear();
        std::mem::take(&mut self.displaced)
    }
}

impl Book {
    /// What is missing.
    pub fn missing(&self) -> &Pages {
        &self.missing
    }

    /// The address spaces by their numbers.
    pub fn spaces(&self) -> &BTreeMap<u32, Addresses> {
        &self.spaces
    }

    /// Whether a page of the source is missing.
    pub fn is_missing(&self, source: u64) -> bool {
        self.missing.contains(Page {
            space: PRIVATE,
            number: source / PAGE_SIZE,
        })
    }

    /// Which of these pages are missing.
    pub fn missing_of(&self, first: u64, count: u64) -> Vec<PageRun> {
        let end = first.saturating_add(count);
        let from = Page {
            space: PRIVATE,
            number: first,
        };
        let mut runs = self.missing.batch(from, count);
        runs.retain_mut(|run| {
            run.count = run.count.min(end.saturating_sub(run.first));
            run.space == PRIVATE && run.count > 0
        });
        runs
    }

    /// Carries out one record. Gives the pages that were missing and that nobody wants any more.
    ///
    /// # Errors
    /// A run of missing pages that no set takes.
    pub fn apply(&mut self, record: &Record) -> Result<Vec<PageRun>, RunTooLong> {
        let lost = match record {
            Record::Begin { missing, spans, kept } => {
                self.begin(missing, spans, *kept)?;
                Vec::new()
            }
            Record::Placed { first, count } => {
                self.remove(*first, *count);
                Vec::new()
            }
            Record::Forgot { space, span } => self.change(*space, |addresses| {
                let gone = addresses.lineage.pieces(*span);
                addresses.lineage.forget(*span);
                gone
            }),
            Record::Moved {
                space,
                from,
                to,
                bytes,
            } => self.change(*space, |addresses| {
                addresses.moved(*from, *to, *bytes);
                Vec::new()
            }),
            Record::Unmapped { space, span } => self.change(*space, |addresses| addresses.unmapped(*span)),
            Record::Settled { space } => self.change(*space, Addresses::settle),
            Record::Forked { space, child, kept } => {
                let mut addresses = self.spaces.get(space).cloned().unwrap_or_default();
                addresses.kept = *kept;
                self.spaces.insert(*child, addresses);
                Vec::new()
            }
            Record::Ended { space } => {
                let ended = self.spaces.remove(space).unwrap_or_default();
                let mut gone = ended.lineage.places(0, u64::MAX);
                gone.extend(ended.displaced);
                gone
            }
        };
        Ok(self.unwanted(&lost))
    }

    fn begin(&mut self, missing: &[(u64, u64)], spans: &[Span], kept: Option<i32>) -> Result<(), RunTooLong> {
        for (first, count) in missing {
            self.missing.insert(PageRun {
                space: PRIVATE,
                first: *first,
                count: *count,
            })?;
        }
        let mut addresses = Addresses {
            kept,
            ..Addresses::default()
        };
        spans.iter().for_each(|span| addresses.lineage.at_home(*span));
        self.spaces.insert(FIRST, addresses);
        Ok(())
    }

    fn change(&mut self, space: u32, change: impl FnOnce(&mut Addresses) -> Vec<Piece>) -> Vec<Piece> {
        self.spaces.get_mut(&space).map(change).unwrap_or_default()
    }

    fn remove(&mut self, first: u64, count: u64) {
        self.missing.remove(PageRun {
            space: PRIVATE,
            first,
            count,
        });
    }

    /// The missing ones of the lost pages that no address space wants. They are missing no more.
    fn unwanted(&mut self, lost: &[Piece]) -> Vec<PageRun> {
        let mut gone = Vec::new();
        for (_, source, bytes) in lost {
            for run in self.missing_of(source / PAGE_SIZE, bytes / PAGE_SIZE) {
                gone.extend(self.unwanted_of(run));
            }
        }
        gone.iter().for_each(|run| self.remove(run.first, run.count));
        gone
    }

    fn unwanted_of(&self, run: PageRun) -> Vec<PageRun> {
        let whole = Span::of(&run);
        let wanted = self.spaces.values().flat_map(|addresses| {
            let placed = addresses.lineage.places(whole.start, whole.len());
            placed.into_iter().chain(addresses.displaced.iter().copied())
        });
        let left = outside(whole, wanted.map(|(_, source, bytes)| span_at(source, bytes)));
        left.iter().map(|span| span.run(PRIVATE)).collect()
    }
}

#[cfg(test)]
mod tests;
