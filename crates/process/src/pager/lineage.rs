//! Which page of the source belongs at which address of a process that runs before its memory has come.
//!
//! At first every page belongs where it was at the source. Then the program moves mappings (mremap(2)), drops pages (madvise(2)),
//! unmaps them and forks; the lineage follows, so that a page that comes late goes to where the program has it now, or nowhere.
//!
//! Addresses and lengths are whole pages. Pure: what the kernel tells comes in, where pages belong comes out.

use std::collections::BTreeMap;

use crate::layout::Span;

/// Of one address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// By the address here: end of the segment and its address at the source.
    here: BTreeMap<u64, Segment>,
    /// By the address at the source: the address here. The segments are the same ones.
    there: BTreeMap<u64, u64>,
}

/// A run of addresses that stayed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    end: u64,
    source: u64,
}

impl Lineage {
    /// The pages of `span` belong where they were.
    pub fn at_home(&mut self, span: Span) {
        self.put(span, span.start);
    }

    /// Where the page at `address` was at the source, if it may have to come from there.
    pub fn source_of(&self, address: u64) -> Option<u64> {
        let (start, segment) = self.here.range(..=address).next_back()?;
        (address < segment.end).then(|| segment.source + (address - start))
    }

    /// Where the source's page at `source` belongs now, if it is still wanted.
    pub fn place_of(&self, source: u64) -> Option<u64> {
        let (from, start) = self.there.range(..=source).next_back()?;
        let segment = self.here.get(start)?;
        let place = start + (source - from);
        (place < segment.end).then_some(place)
    }

    /// The places of `bytes` from `source` on, in pieces that stayed together: (address here, address at the source, bytes).
    pub fn places(&self, source: u64, bytes: u64) -> Vec<(u64, u64, u64)> {
        let end = source.saturating_add(bytes);
        let from = self
            .there
            .range(..=source)
            .next_back()
            .map_or(source, |(from, _)| *from);
        let inside = self.there.range(from..end).filter_map(|(from, start)| {
            let segment = self.here.get(start)?;
            let first = source.max(*from);
            let last = end.min(from + (segment.end - start));
            (first < last).then(|| (start + (first - from), first, last - first))
        });
        inside.collect()
    }

    /// What lies in `span`, in pieces that stayed together: (address here, address at the source, bytes).
    pub fn pieces(&self, span: Span) -> Vec<(u64, u64, u64)> {
        let first = self.here.range(..=span.start).next_back();
        let from = first.map_or(span.start, |(start, _)| *start);
        let inside = self.here.range(from..span.end).filter_map(|(start, segment)| {
            let first = span.start.max(*start);
            let last = span.end.min(segment.end);
            (first < last).then(|| (first, segment.source + (first - start), last - first))
        });
        inside.collect()
    }

    /// The page at `source` and what follows it belong to `here` from now on, where nothing is.
    pub fn adopt(&mut self, here: u64, source: u64, bytes: u64) {
        let span = Span {
            start: here,
            end: here.saturating_add(bytes),
        };
        self.put(span, source);
    }

    /// What lies in `span` is not wanted any more: dropped or unmapped.
    pub fn forget(&mut self, span: Span) {
        self.cut(span.start);
        self.cut(span.end);
        let gone: Vec<u64> = self
            .here
            .range(span.start..span.end)
            .map(|(start, _)| *start)
            .collect();
        for start in gone {
            if let Some(segment) = self.here.remove(&start) {
                self.there.remove(&segment.source);
            }
        }
    }

    /// `bytes` at `from` are at `to` now; what was there before is gone.
    pub fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let old = Span {
            start: from,
            end: from.saturating_add(bytes),
        };
        self.cut(old.start);
        self.cut(old.end);
        let segments: Vec<(u64, Segment)> = self
            .here
            .range(old.start..old.end)
            .map(|(start, segment)| (*start, *segment))
            .collect();
        self.forget(old);
        self.forget(Span {
            start: to,
            end: to.saturating_add(bytes),
        });
        for (start, segment) in segments {
            let place = to + (start - from);
            let span = Span {
                start: place,
                end: place + (segment.end - start),
            };
            self.put(span, segment.source);
        }
    }

    /// Nothing is wanted any more.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    fn put(&mut self, span: Span, source: u64) {
        if span.start < span.end {
            let segment = Segment {
                end: span.end,
                source,
            };
            self.here.insert(span.start, segment);
            self.there.insert(source, span.start);
        }
    }

    /// Makes `address` the border of a segment if it lies inside of one.
    fn cut(&mut self, address: u64) {
        let Some((start, segment)) = self.here.range(..address).next_back() else {
            return;
        };
        let (start, segment) = (*start, *segment);
        if address < segment.end {
            let (left, right) = (
                Span { start, end: address },
                Span {
                    start: address,
                    end: segment.end,
                },
            );
            self.put(left, segment.source);
            self.put(right, segment.source + (address - start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 40;

    #[derive(Clone, Debug)]
    enum Step {
        Forget(u64, u64),
        Move(u64, u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let page = 0..PAGES;
        let step = prop_oneof![
            (page.clone(), 0..9u64).prop_map(|(first, count)| Step::Forget(first, count)),
            (page.clone(), page, 1..9u64).prop_map(|(from, to, count)| Step::Move(from, to, count)),
        ];
        proptest::collection::vec(step, 0..30)
    }

    fn span(first: u64, count: u64) -> Span {
        Span {
            start: first * PAGE,
            end: (first + count) * PAGE,
        }
    }

    proptest! {
        /// Against a map that knows every page by itself.
        #[test]
        fn every_page_is_where_it_was_moved(steps in steps()) {
            let mut lineage = Lineage::default();
            lineage.at_home(span(0, PAGES / 2));
            lineage.at_home(span(PAGES / 2 + 3, 10));
            let mut model: BTreeMap<u64, u64> = (0..PAGES / 2).chain(PAGES / 2 + 3..PAGES / 2 + 13).map(|p| (p, p)).collect();
            for step in steps {
                match step {
                    Step::Forget(first, count) => {
                        lineage.forget(span(first, count));
                        model.retain(|page, _| !(first..first + count).contains(page));
                    }
                    // The kernel refuses to move a range onto itself.
                    Step::Move(from, to, count) if from.abs_diff(to) >= count => {
                        lineage.moved(from * PAGE, to * PAGE, count * PAGE);
                        let moved: Vec<(u64, u64)> = (from..from + count)
                            .filter_map(|page| Some((page - from + to, model.remove(&page)?)))
                            .collect();
                        model.retain(|page, _| !(to..to + count).contains(page));
                        model.extend(moved);
                    }
                    Step::Move(..) => {}
                }
            }
            for page in 0..2 * PAGES {
                let source = lineage.source_of(page * PAGE + 17).map(|source| (source - 17) / PAGE);
                prop_assert_eq!(source, model.get(&page).copied());
                let place = model.iter().find(|(_, source)| **source == page).map(|(place, _)| *place);
                prop_assert_eq!(lineage.place_of(page * PAGE).map(|place| place / PAGE), place);
            }
            let mut all: Vec<(u64, u64)> = lineage
                .places(0, 2 * PAGES * PAGE)
                .into_iter()
                .flat_map(|(here, there, bytes)| (0..bytes / PAGE).map(move |i| (here / PAGE + i, there / PAGE + i)))
                .collect();
            let by_address: Vec<(u64, u64)> = lineage
                .pieces(span(0, 2 * PAGES))
                .into_iter()
                .flat_map(|(here, there, bytes)| (0..bytes / PAGE).map(move |i| (here / PAGE + i, there / PAGE + i)))
                .collect();
            prop_assert_eq!(by_address, model.clone().into_iter().collect::<Vec<_>>());
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_piece_in_the_middle_has_its_own_place() {
        let mut lineage = Lineage::default();
        lineage.at_home(span(10, 10));
        lineage.moved(13 * PAGE, 100 * PAGE, 2 * PAGE);
        assert_eq!(
            lineage.places(12 * PAGE, 4 * PAGE),
            [
                (12 * PAGE, 12 * PAGE, PAGE),
                (100 * PAGE, 13 * PAGE, 2 * PAGE),
                (15 * PAGE, 15 * PAGE, PAGE)
            ]
        );
        lineage.forget(span(0, 200));
        assert!(lineage.is_empty());
    }
}
