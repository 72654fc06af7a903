//! A generational heap.
//!
//! ```text
//!  | eden (8 of 10 parts of the young generation) | from | to | old ...                    |
//! ```
//!
//! Allocation walks through eden. At its end a young collection copies the part that lives (`survival`) into the other survivor space
//! and promotes what has lived through two, or does not fit. When the old generation is full it is compacted to what it held at first. It is
//! the layout of HotSpot's Parallel collector, with its default SurvivorRatio of 8.

use std::time::Duration;

use whimbrel_policy::PAGE_SIZE;

use super::guest::Marks;
use super::model::{boxed, Access, Area, Model};
use super::random::Random;
use crate::scenario::Load;

/// Parts of the young generation that a survivor space has.
const SURVIVOR_PARTS: u64 = 10;

/// The state of a heap, in pages.
#[derive(Clone, Debug)]
pub(crate) struct Heap {
    pub eden: Area,
    survivors: [Area; 2],
    pub old: Area,
    /// Allocated in eden since the last collection.
    pub eden_used: u64,
    /// Which survivor space is in use, and how much of it.
    from: usize,
    from_used: u64,
    pub old_used: u64,
    /// What an old collection leaves.
    old_live: u64,
    survival: f64,
    /// Writes to the old generation for each page that is allocated.
    old_writes: f64,
    old_writes_due: f64,
    rate: u64,
    fixed: Duration,
}

/// A collection took so long, and wrote these pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Collection {
    pub pause: Duration,
    survivors: Area,
    promoted: Area,
}

impl Heap {
    pub fn new(load: &Load) -> Self {
        let (first, pages) = load.area;
        let young = load
            .young
            .map_or(pages / 3, |young| young.pages())
            .clamp(SURVIVOR_PARTS, pages - 1);
        let survivor = young / SURVIVOR_PARTS;
        let eden = young - 2 * survivor;
        let old = Area {
            first: first + young,
            pages: pages - young,
        };
        let old_used = (old.pages as f64 * load.old_used.map_or(0.5, |used| used.0)) as u64;
        let place = |offset| Area {
            first: first + offset,
            pages: survivor,
        };
        let allocation = load.rate.map_or(1.0, |rate| rate.0);
        Heap {
            eden: Area { first, pages: eden },
            survivors: [place(eden), place(eden + survivor)],
            old,
            eden_used: 0,
            from: 0,
            from_used: 0,
            old_used,
            old_live: old_used,
            survival: load.survival.map_or(0.05, |survival| survival.0),
            old_writes: load.old_writes.map_or(0.0, |writes| writes.0 / allocation),
            old_writes_due: 0.0,
            rate: load.collection_rate.map_or(500_000_000, |rate| rate.0),
            fixed: load
                .collection_fixed
                .map_or(Duration::from_millis(5), |fixed| fixed.0),
        }
    }

    /// The young generation.
    pub fn young(&self) -> Area {
        Area {
            first: self.eden.first,
            pages: self.eden.pages + 2 * self.survivors[0].pages,
        }
    }

    /// The survivor space in use, as far as it is.
    pub fn survivors(&self) -> Area {
        Area {
            pages: self.from_used,
            ..self.survivors[self.from]
        }
    }

    /// A young collection, and an old one before it if there is no room for what it promotes.
    pub fn collect(&mut self) -> Collection {
        let live = |pages: u64| (pages as f64 * self.survival) as u64;
        let (new, promoted) = (live(self.eden_used), live(self.from_used));
        let kept = new.min(self.survivors[0].pages);
        let promoted = promoted + new - kept;
        let mut copied = new + promoted;
        if self.old_used + promoted > self.old.pages {
            copied += self.old_live;
            self.old_used = self.old_live.min(self.old.pages.saturating_sub(promoted));
        }
        let promoted = Area {
            first: self.old.first + self.old_used,
            pages: promoted.min(self.old.pages - self.old_used),
        };
        self.old_used += promoted.pages;
        self.from = 1 - self.from;
        self.from_used = kept;
        self.eden_used = 0;
        let copying = Duration::from_secs_f64((copied * PAGE_SIZE) as f64 / self.rate as f64);
        Collection {
            pause: self.fixed + copying,
            survivors: self.survivors(),
            promoted,
        }
    }

    /// Old pages that are due to be written after so many were allocated.
    fn old_writes_after(&mut self, allocated: u64) -> u64 {
        let due = self.old_writes_due + allocated as f64 * self.old_writes;
        self.old_writes_due = due.fract();
        due as u64
    }

    fn old_in_use(&self) -> Area {
        Area {
            pages: self.old_used.max(1),
            ..self.old
        }
    }
}

impl Collection {
    /// What it wrote is marked.
    pub fn mark(&self, marks: &mut Marks) {
        marks.write_range(self.survivors.first, self.survivors.pages);
        marks.write_range(self.promoted.first, self.promoted.pages);
    }
}

impl Model for Heap {
    /// One page of allocation, or a write to the old generation. The pages that a collection copies to are not followed one by one.
    fn next(&mut self, _: usize, random: &mut Random) -> Option<Access> {
        if self.old_writes_due >= 1.0 {
            self.old_writes_due -= 1.0;
            let access = Access::new(self.old_in_use().any(random), true);
            return Some(Access {
                then_ns: Some(0.0),
                ..access
            });
        }
        let pause = match self.eden_used < self.eden.pages {
            true => Duration::ZERO,
            false => self.collect().pause,
        };
        let page = self.eden.first + self.eden_used;
        self.eden_used += 1;
        self.old_writes_due += self.old_writes;
        Some(Access {
            pause,
            ..Access::new(page, true)
        })
    }

    fn write_many(&mut self, _: usize, accesses: u64, random: &mut Random, marks: &mut Marks) -> Duration {
        let (mut left, mut pause) = (accesses, Duration::ZERO);
        while left > 0 {
            if self.eden_used == self.eden.pages {
                let collection = self.collect();
                collection.mark(marks);
                pause += collection.pause;
            }
            let pages = left.min(self.eden.pages - self.eden_used);
            marks.write_range(self.eden.first + self.eden_used, pages);
            self.eden_used += pages;
            left -= pages;
        }
        let old_writes = self.old_writes_after(accesses);
        self.old_in_use().write_any(old_writes, random, marks);
        pause
    }

    fn heap(&mut self) -> Option<&mut Heap> {
        Some(self)
    }

    boxed!();
}
