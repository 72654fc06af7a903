//! Pages, runs of pages, and sets of them.

use alloc::boxed::Box;
use alloc::collections::{btree_map, BTreeMap};
use alloc::vec::Vec;
use core::fmt;

#[cfg(feature = "serde")]
mod portable;

/// Bytes in a page. The only page size that x86-64 has for 4-level leaf entries (Intel SDM vol. 3, 4.5).
pub const PAGE_SIZE: u64 = 4096;

/// Pages that one [`Pages::insert`] takes at most: 4 TiB. A set stays below 50 MB of its own that way, whatever a
/// confused caller hands in.
pub const RUN_PAGES_MAX: u64 = 1 << 30;

/// Pages to a chunk: 2 MiB, the size of a huge page, so that a dirty huge page is one full chunk.
const CHUNK_PAGES: u64 = 512;

/// One private address space, one shared memory object, or one RAM block of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpaceId(pub u32);

/// One page. Also a position: everything from this page on, in the order of spaces and numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "(u32, u64)", into = "(u32, u64)"))]
pub struct Page {
    /// The space that holds it.
    pub space: SpaceId,
    /// Its number in the space.
    pub number: u64,
}

impl Page {
    /// The position before every page.
    pub const FIRST: Page = Page {
        space: SpaceId(0),
        number: 0,
    };
}

/// `count` pages from page number `first` on. In an address space the number is the address / 4096, in an
/// object it is the offset / 4096. The source's numbering is a page's identity for the whole migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "(u32, u64, u64)", into = "(u32, u64, u64)"))]
pub struct PageRun {
    /// The space that holds the run.
    pub space: SpaceId,
    /// Number of its first page.
    pub first: u64,
    /// How many pages; never 0.
    pub count: u64,
}

impl PageRun {
    /// The position after the run's last page.
    pub fn end(&self) -> Page {
        Page {
            space: self.space,
            number: self.first.saturating_add(self.count),
        }
    }
}

/// A run that cannot be put into a set: longer than [`RUN_PAGES_MAX`], or it ends beyond the last page number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTooLong(pub PageRun);

impl fmt::Display for RunTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PageRun { space, first, count } = self.0;
        write!(f, "a run of {count} pages from page {first:#x} of space {} is longer than the {RUN_PAGES_MAX} pages \
            that a set of pages takes at once", space.0)
    }
}

impl core::error::Error for RunTooLong {}

/// One bit for each page of a chunk.
type Bits = [u64; 8];

const EMPTY: Bits = [0; 8];
const FULL: Bits = [u64::MAX; 8];

/// A chunk that holds at least one page. A full one has no bitmap, so that equal sets have equal chunks and
/// long runs cost little.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Full,
    Part(Box<Bits>),
}

impl Chunk {
    fn bits(&self) -> &Bits {
        match self {
            Chunk::Full => &FULL,
            Chunk::Part(bits) => bits,
        }
    }
}

/// A set of page numbers of one space: a sparse bitmap, 512 pages (2 MiB) to a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    chunks: BTreeMap<u64, Chunk>,
    len: u64,
}

impl PageSet {
    /// How many pages it holds.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if `page` is in it.
    pub fn contains(&self, page: u64) -> bool {
        let at = page % CHUNK_PAGES;
        self.chunks
            .get(&(page / CHUNK_PAGES))
            .is_some_and(|chunk| chunk.bits()[(at / 64) as usize] >> (at % 64) & 1 == 1)
    }

    /// Adds runs that end below 2^64 each (see [`Pages::insert`], which checks). Those that follow each other in one chunk are put in at
    /// once: scattered pages in order cost little more than a bit each.
    fn insert_all(&mut self, runs: impl Iterator<Item = PageRun>) {
        let (mut open, mut bits) = (0, EMPTY);
        for run in runs {
            let (mut at, end) = (run.first, run.first.saturating_add(run.count));
            while at < end {
                let chunk = at / CHUNK_PAGES;
                if chunk != open {
                    self.add(open, &bits);
                    (open, bits) = (chunk, EMPTY);
                }
                let from = at % CHUNK_PAGES;
                let to = (from + (end - at)).min(CHUNK_PAGES);
                set(&mut bits, from, to);
                at += to - from;
            }
        }
        self.add(open, &bits);
    }

    /// Adds pages of one chunk.
    fn add(&mut self, chunk: u64, bits: &Bits) {
        if *bits != EMPTY {
            let before = self.chunks.get(&chunk).map_or(EMPTY, |c| *c.bits());
            self.store(chunk, &before, combine(&before, bits, |a, b| a | b));
        }
    }

    /// Takes `count` pages from `first` on away. The cost follows the chunks that exist, not the run's length.
    fn remove(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let mut at = first;
        while at < end {
            let Some((&chunk, bits)) = self.chunks.range(at / CHUNK_PAGES..).next() else {
                return;
            };
            let base = chunk * CHUNK_PAGES;
            if base >= end {
                return;
            }
            let before = *bits.bits();
            let run = mask(at.max(base) - base, (end - base).min(CHUNK_PAGES));
            self.store(chunk, &before, combine(&before, &run, |a, b| a & !b));
            let Some(next) = base.checked_add(CHUNK_PAGES) else {
                return;
            };
            at = next;
        }
    }

    /// Adds every page of `other`.
    pub fn union_with(&mut self, other: &PageSet) {
        for (&chunk, theirs) in &other.chunks {
            self.add(chunk, theirs.bits());
        }
    }

    /// Takes every page of `other` away. The cost follows the smaller set: a batch is taken out of a whole memory again and again.
    pub fn subtract(&mut self, other: &PageSet) {
        if other.chunks.len() < self.chunks.len() / 4 {
            for (&chunk, theirs) in &other.chunks {
                if let Some(before) = self.chunks.get(&chunk).map(|ours| *ours.bits()) {
                    self.store(chunk, &before, combine(&before, theirs.bits(), |a, b| a & !b));
                }
            }
            return;
        }
        self.keep(|chunk, ours| {
            let theirs = other.chunks.get(&chunk).map_or(&EMPTY, Chunk::bits);
            combine(ours, theirs, |a, b| a & !b)
        });
    }

    /// Takes every page away that is not in `other`.
    pub fn intersect_with(&mut self, other: &PageSet) {
        self.keep(|chunk, ours| {
            let theirs = other.chunks.get(&chunk).map_or(&EMPTY, Chunk::bits);
            combine(ours, theirs, |a, b| a & b)
        });
    }

    /// The runs of the set in order, each as long as it can be: (first page, pages).
    pub fn runs(&self) -> Runs<'_> {
        self.runs_from(0)
    }

    /// As [`PageSet::runs`], from page `from` on.
    pub fn runs_from(&self, from: u64) -> Runs<'_> {
        let chunk = from / CHUNK_PAGES;
        Runs {
            chunks: self.chunks.range(chunk..),
            skip: (chunk, from % CHUNK_PAGES),
            current: None,
            pending: None,
        }
    }

    /// The first run at or after `from`, cut at `pages_max` pages. Unlike [`PageSet::runs_from`], which joins a run over
    /// as many chunks as it has, it looks no further than it must, so that taking a long run in small pieces stays linear.
    /// Adds to `steps` what it cost: each step looks at two chunks at most.
    pub(crate) fn run_at_or_after(&self, from: u64, pages_max: u64, steps: &mut u64) -> Option<(u64, u64)> {
        let mut pieces = self.runs_from(from);
        *steps += 1;
        let (first, mut count) = pieces.piece()?;
        while count < pages_max {
            *steps += 1;
            match pieces.piece() {
                Some((next, more)) if next == first + count => count += more,
                _ => break,
            }
        }
        Some((first, count.min(pages_max)))
    }

    /// The last `pages_max` pages, or fewer, of the run that ends with the last page before `before`. The counterpart
    /// of [`PageSet::run_at_or_after`]; each step looks at one chunk.
    pub(crate) fn run_before(&self, before: u64, pages_max: u64, steps: &mut u64) -> Option<(u64, u64)> {
        let mut found: Option<(u64, u64)> = None;
        for (&chunk, held) in self.chunks.range(..=before / CHUNK_PAGES).rev() {
            *steps += 1;
            let base = chunk * CHUNK_PAGES;
            let piece = run_back_in(held.bits(), (before - base).min(CHUNK_PAGES));
            found = match (found, piece) {
                (None, piece) => piece.map(|(from, to)| (base + from, base + to)),
                (Some((first, end)), Some((from, to))) if base + to == first => Some((base + from, end)),
                (known, _) => {
                    found = known;
                    break;
                }
            };
            if found.is_some_and(|(first, end)| first > base || end - first >= pages_max) {
                break;
            }
        }
        found.map(|(first, end)| {
            let count = (end - first).min(pages_max);
            (end - count, count)
        })
    }

    /// Replaces the bits of every chunk by what `new` makes of them, which must be a subset.
    fn keep(&mut self, new: impl Fn(u64, &Bits) -> Bits) {
        let len = &mut self.len;
        self.chunks.retain(|&chunk, ours| {
            let before = *ours.bits();
            let after = new(chunk, &before);
            *len -= u64::from(ones(&before) - ones(&after));
            if after != before {
                *ours = Chunk::Part(Box::new(after));
            }
            after != EMPTY
        });
    }

    /// Puts a chunk's new bits in, and keeps the count.
    fn store(&mut self, chunk: u64, before: &Bits, after: Bits) {
        self.len = self.len - u64::from(ones(before)) + u64::from(ones(&after));
        match after {
            _ if after == *before => {}
            EMPTY => drop(self.chunks.remove(&chunk)),
            FULL => drop(self.chunks.insert(chunk, Chunk::Full)),
            part => match self.chunks.get_mut(&chunk) {
                Some(Chunk::Part(bits)) => **bits = part,
                _ => drop(self.chunks.insert(chunk, Chunk::Part(Box::new(part)))),
            },
        }
    }
}

/// The runs of a [`PageSet`]; made by [`PageSet::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    chunks: btree_map::Range<'a, u64, Chunk>,
    /// In this chunk begin at that page.
    skip: (u64, u64),
    current: Option<(u64, &'a Bits, u64)>,
    pending: Option<(u64, u64)>,
}

impl Runs<'_> {
    /// The next run inside one chunk.
    fn piece(&mut self) -> Option<(u64, u64)> {
        loop {
            if let Some((base, bits, at)) = self.current.take() {
                if let Some((from, to)) = run_in(bits, at) {
                    self.current = Some((base, bits, to));
                    return Some((base + from, to - from));
                }
            }
            let (&chunk, bits) = self.chunks.next()?;
            let at = if chunk == self.skip.0 { self.skip.1 } else { 0 };
            self.current = Some((chunk * CHUNK_PAGES, bits.bits(), at));
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            let Some((first, count)) = self.piece() else {
                return self.pending.take();
            };
            match &mut self.pending {
                Some((begin, length)) if *begin + *length == first => *length += count,
                pending => {
                    if let Some(run) = pending.replace((first, count)) {
                        return Some(run);
                    }
                }
            }
        }
    }
}

fn combine(a: &Bits, b: &Bits, f: impl Fn(u64, u64) -> u64) -> Bits {
    core::array::from_fn(|i| f(a[i], b[i]))
}

fn ones(bits: &Bits) -> u32 {
    bits.iter().map(|word| word.count_ones()).sum()
}

/// Sets the bits `from..to`, at least one and at most 512 of them.
fn set(bits: &mut Bits, from: u64, to: u64) {
    let (first, last) = ((from / 64) as usize, ((to - 1) / 64) as usize);
    let low = u64::MAX << (from % 64);
    let high = u64::MAX >> (63 - (to - 1) % 64);
    if first == last {
        bits[first] |= low & high;
        return;
    }
    bits[first] |= low;
    bits[first + 1..last].fill(u64::MAX);
    bits[last] |= high;
}

/// The bits `from..to`, at most 512 of them.
fn mask(from: u64, to: u64) -> Bits {
    let below = |end: u64, word: usize| match end.saturating_sub(word as u64 * 64) {
        0 => 0,
        bits @ 1..=63 => (1u64 << bits) - 1,
        _ => u64::MAX,
    };
    core::array::from_fn(|word| below(to, word) & !below(from, word))
}

/// The first run of ones at or after bit `at`.
fn run_in(bits: &Bits, at: u64) -> Option<(u64, u64)> {
    let from = find(at, |word| bits[word])?;
    let to = find(from, |word| !bits[word]).unwrap_or(CHUNK_PAGES);
    Some((from, to))
}

/// The first one at or after bit `at`.
fn find(at: u64, word: impl Fn(usize) -> u64) -> Option<u64> {
    let begin = (at / 64) as usize;
    (begin..8).find_map(|i| {
        let hidden = if i == begin { !(u64::MAX << (at % 64)) } else { 0 };
        let bits = word(i) & !hidden;
        (bits != 0).then(|| i as u64 * 64 + u64::from(bits.trailing_zeros()))
    })
}

/// The last run of ones below bit `to`.
fn run_back_in(bits: &Bits, to: u64) -> Option<(u64, u64)> {
    let last = find_back(to, |word| bits[word])?;
    let from = find_back(last, |word| !bits[word]).map_or(0, |zero| zero + 1);
    Some((from, last + 1))
}

/// The last one below bit `to`.
fn find_back(to: u64, word: impl Fn(usize) -> u64) -> Option<u64> {
    let last = to.checked_sub(1)?;
    (0..=(last / 64) as usize).rev().find_map(|i| {
        let seen = if i == (last / 64) as usize {
            u64::MAX >> (63 - last % 64)
        } else {
            u64::MAX
        };
        let bits = word(i) & seen;
        (bits != 0).then(|| i as u64 * 64 + 63 - u64::from(bits.leading_zeros()))
    })
}

/// A set of pages over all spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    spaces: BTreeMap<SpaceId, PageSet>,
}

impl Pages {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of all pages of `runs`, which may overlap.
    pub fn from_runs(runs: &[PageRun]) -> Result<Self, RunTooLong> {
        let mut pages = Self::new();
        for &run in runs {
            Self::check(run)?;
        }
        for of_space in runs.chunk_by(|a, b| a.space == b.space) {
            pages.insert_all(of_space[0].space, of_space);
        }
        Ok(pages)
    }

    /// How many pages it holds.
    pub fn len(&self) -> u64 {
        self.spaces.values().map(PageSet::len).sum()
    }

    /// True if it holds none.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// True if `page` is in it.
    pub fn contains(&self, page: Page) -> bool {
        self.space(page.space)
            .is_some_and(|set| set.contains(page.number))
    }

    /// The pages of one space, if there are any.
    pub fn space(&self, space: SpaceId) -> Option<&PageSet> {
        self.spaces.get(&space)
    }

    /// Adds a run. The cost follows its length / 512; it is refused, and nothing added, if it is longer than
    /// [`RUN_PAGES_MAX`] or ends beyond the last page number.
    pub fn insert(&mut self, run: PageRun) -> Result<(), RunTooLong> {
        Self::check(run)?;
        self.insert_all(run.space, &[run]);
        Ok(())
    }

    /// Adds runs of one space, which were checked.
    fn insert_all(&mut self, space: SpaceId, runs: &[PageRun]) {
        if runs.iter().any(|run| run.count > 0) {
            self.spaces
                .entry(space)
                .or_default()
                .insert_all(runs.iter().copied());
        }
    }

    /// Whether [`Pages::insert`] takes a run.
    pub fn check(run: PageRun) -> Result<(), RunTooLong> {
        let fits = run.count <= RUN_PAGES_MAX && run.first.checked_add(run.count).is_some();
        fits.then_some(()).ok_or(RunTooLong(run))
    }

    /// Takes a run away, as long as it may be: the cost follows what the set holds of it.
    pub fn remove(&mut self, run: PageRun) {
        self.change(run.space, |set| set.remove(run.first, run.count));
    }

    /// Adds every page of `other`.
    pub fn union_with(&mut self, other: &Pages) {
        for (&space, theirs) in &other.spaces {
            self.spaces.entry(space).or_default().union_with(theirs);
        }
    }

    /// Takes every page of `other` away.
    pub fn subtract(&mut self, other: &Pages) {
        for (&space, theirs) in &other.spaces {
            self.change(space, |ours| ours.subtract(theirs));
        }
    }

    /// Takes every page away that is not in `other`.
    pub fn intersect_with(&mut self, other: &Pages) {
        self.spaces.retain(|space, ours| match other.spaces.get(space) {
            Some(theirs) => {
                ours.intersect_with(theirs);
                !ours.is_empty()
            }
            None => false,
        });
    }

    /// The runs of the set in order, each as long as it can be.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        self.runs_from(Page::FIRST)
    }

    /// As [`Pages::runs`], from the position `from` on.
    pub fn runs_from(&self, from: Page) -> impl Iterator<Item = PageRun> + '_ {
        self.spaces.range(from.space..).flat_map(move |(&space, set)| {
            let begin = if space == from.space { from.number } else { 0 };
            set.runs_from(begin)
                .map(move |(first, count)| PageRun { space, first, count })
        })
    }

    /// The first `pages_max` pages at or after the position `from`, as runs in order; fewer if there are no more.
    pub fn batch(&self, from: Page, pages_max: u64) -> Vec<PageRun> {
        let mut batch = Vec::new();
        let mut room = pages_max;
        let mut runs = self.runs_from(from);
        while let Some(run) = (room > 0).then(|| runs.next()).flatten() {
            let count = run.count.min(room);
            batch.push(PageRun { count, ..run });
            room -= count;
        }
        batch
    }

    /// The first run at or after the position `from`, cut at `pages_max` pages; see [`PageSet::run_at_or_after`].
    pub(crate) fn run_at_or_after(&self, from: Page, pages_max: u64, steps: &mut u64) -> Option<PageRun> {
        self.spaces.range(from.space..).find_map(|(&space, set)| {
            let begin = if space == from.space { from.number } else { 0 };
            set.run_at_or_after(begin, pages_max, steps)
                .map(|(first, count)| PageRun { space, first, count })
        })
    }

    /// Changes one space's set, and forgets a space that has no pages left, so that equal sets compare equal.
    fn change(&mut self, space: SpaceId, change: impl FnOnce(&mut PageSet)) {
        if let btree_map::Entry::Occupied(mut entry) = self.spaces.entry(space) {
            change(entry.get_mut());
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Few spaces and a narrow range, so that runs meet; some edges of chunks and words.
    fn run() -> impl Strategy<Value = PageRun> {
        let first = prop_oneof![0u64..2100, Just(511), Just(512), Just(1024)];
        let count = prop_oneof![1u64..80, 1u64..1300, Just(512)];
        (0u32..3, first, count).prop_map(|(space, first, count)| PageRun {
            space: SpaceId(space),
            first,
            count,
        })
    }

    fn model(runs: &[PageRun]) -> BTreeSet<Page> {
        let pages = |run: &PageRun| {
            let space = run.space;
            (run.first..run.first + run.count).map(move |number| Page { space, number })
        };
        runs.iter().flat_map(pages).collect()
    }

    /// Same pages, runs in order that do not touch, a right count, and equal to a set made in another way.
    fn check(pages: &Pages, expected: &BTreeSet<Page>) {
        let runs: Vec<_> = pages.runs().collect();
        assert_eq!(&model(&runs), expected);
        assert!(runs.windows(2).all(|w| w[0].end()
            < Page {
                space: w[1].space,
                number: w[1].first
            }));
        assert_eq!(pages.len(), expected.len() as u64);
        assert_eq!(pages.is_empty(), expected.is_empty());
        assert_eq!(&Pages::from_runs(&runs).unwrap(), pages);
    }

    #[test]
    fn a_small_set_is_taken_out_of_a_large_one() {
        let run = |first, count| PageRun {
            space: SpaceId(0),
            first,
            count,
        };
        let mut large = Pages::from_runs(&[run(0, 20_000)]).unwrap();
        large.subtract(&Pages::from_runs(&[run(500, 1024), run(30_000, 5)]).unwrap());
        assert_eq!(large.runs().collect::<Vec<_>>(), [run(0, 500), run(1524, 18_476)]);
        assert_eq!(large.len(), 18_976);
    }

    proptest! {
        #[test]
        fn inserts_and_removes_are_those_of_a_set(steps in prop::collection::vec((any::<bool>(), run()), 1..20)) {
            let (mut pages, mut expected) = (Pages::new(), BTreeSet::new());
            for (insert, run) in steps {
                if insert {
                    pages.insert(run).unwrap();
                    expected.extend(model(&[run]));
                } else {
                    pages.remove(run);
                    expected = &expected - &model(&[run]);
                }
                check(&pages, &expected);
            }
        }

        #[test]
        fn set_algebra_is_that_of_sets(a in prop::collection::vec(run(), 0..8), b in prop::collection::vec(run(), 0..8)) {
            let (left, right) = (Pages::from_runs(&a).unwrap(), Pages::from_runs(&b).unwrap());
            let (a, b) = (model(&a), model(&b));
            let combined = |f: fn(&mut Pages, &Pages)| { let mut c = left.clone(); f(&mut c, &right); c };
            check(&combined(Pages::union_with), &(&a | &b));
            check(&combined(Pages::subtract), &(&a - &b));
            check(&combined(Pages::intersect_with), &(&a & &b));
        }

        #[test]
        fn batches_in_a_row_are_the_whole_set(runs in prop::collection::vec(run(), 0..12), pages_max in 1u64..700) {
            let pages = Pages::from_runs(&runs).unwrap();
            let (mut seen, mut at) = (Vec::new(), Page::FIRST);
            loop {
                let batch = pages.batch(at, pages_max);
                let Some(last) = batch.last() else { break };
                prop_assert!(batch.iter().map(|r| r.count).sum::<u64>() <= pages_max);
                at = last.end();
                seen.extend(batch);
            }
            prop_assert_eq!(seen.iter().map(|r| r.count).sum::<u64>(), pages.len());
            prop_assert_eq!(model(&seen), model(&runs));
        }

        #[test]
        fn the_next_run_either_way_is_that_of_the_set(
            runs in prop::collection::vec(run(), 0..8), at in 0u64..3500, pages_max in 1u64..1500,
        ) {
            let pages = Pages::from_runs(&runs).unwrap();
            let space = SpaceId(1);
            let has = |number: u64| pages.contains(Page { space, number });
            let mut steps = 0;
            let above = pages.space(space).and_then(|set| set.run_at_or_after(at, pages_max, &mut steps));
            let below = pages.space(space).and_then(|set| set.run_before(at, pages_max, &mut steps));
            let up = (at..5000).find(|&n| has(n)).map(|first| {
                let end = (first..).find(|&n| !has(n) || n == first + pages_max).unwrap();
                (first, end - first)
            });
            let down = (0..at).rev().find(|&n| has(n)).map(|last| {
                let first = (0..=last).rev().take(pages_max as usize).take_while(|&n| has(n)).last().unwrap();
                (first, last + 1 - first)
            });
            prop_assert_eq!((above, below), (up, down));
            // Not more than the chunks that the answer lies in, and those beside them.
            prop_assert!(steps <= 2 * (2 + 2 + pages_max / CHUNK_PAGES), "{} steps", steps);
        }

        #[test]
        fn contains_what_was_put_in(runs in prop::collection::vec(run(), 0..8), number in 0u64..3500, space in 0u32..4) {
            let page = Page { space: SpaceId(space), number };
            prop_assert_eq!(Pages::from_runs(&runs).unwrap().contains(page), model(&runs).contains(&page));
        }
    }

    #[test]
    fn a_run_without_end_is_removed_at_the_cost_of_what_is_there() {
        let space = SpaceId(1);
        let mut pages = Pages::from_runs(&[
            PageRun {
                space,
                first: 5,
                count: 3,
            },
            PageRun {
                space,
                first: u64::MAX - 2,
                count: 2,
            },
        ])
        .unwrap();
        // 2^64 pages would never end if each was looked at.
        pages.remove(PageRun {
            space,
            first: 6,
            count: u64::MAX,
        });
        assert_eq!(
            pages.runs().collect::<Vec<_>>(),
            [PageRun {
                space,
                first: 5,
                count: 1
            }]
        );
    }

    #[test]
    fn a_run_that_is_too_long_is_refused_and_leaves_the_set_as_it_was() {
        let mut pages = Pages::new();
        for run in [
            PageRun {
                space: SpaceId(0),
                first: 0,
                count: RUN_PAGES_MAX + 1,
            },
            PageRun {
                space: SpaceId(0),
                first: u64::MAX,
                count: 1,
            },
        ] {
            assert_eq!(pages.insert(run), Err(RunTooLong(run)));
        }
        pages
            .insert(PageRun {
                space: SpaceId(0),
                first: 7,
                count: 0,
            })
            .unwrap();
        assert!(pages.is_empty());
    }
}
