//! The pages that are owed, as a pre-paging order sees them: it can look for pages and take them, never put any back.

use crate::pages::{Page, PageRun, Pages, SpaceId};

/// Residual pages that were not sent yet. Sparse: where all pages were taken nothing is left to walk over, so that the next
/// page in either direction costs a look-up in a tree with one leaf for 512 pages, however far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsent {
    pages: Pages,
    steps: u64,
}

impl Unsent {
    /// Exactly these pages.
    pub fn new(pages: Pages) -> Self {
        Unsent { pages, steps: 0 }
    }

    /// The pages.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// True if all are taken.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// True if `page` was not taken yet.
    pub fn contains(&self, page: Page) -> bool {
        self.pages.contains(page)
    }

    /// What all searches have cost so far: leaves of the tree that were looked at, up to a factor of 2.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The first page of `space` at or after page number `from`.
    pub fn above(&mut self, space: SpaceId, from: u64) -> Option<u64> {
        let set = self.pages.space(space)?;
        set.run_at_or_after(from, 1, &mut self.steps)
            .map(|(first, _)| first)
    }

    /// The last page of `space` before page number `before`.
    pub fn below(&mut self, space: SpaceId, before: u64) -> Option<u64> {
        let set = self.pages.space(space)?;
        set.run_before(before, 1, &mut self.steps).map(|(first, _)| first)
    }

    /// Takes the first run at or after the position `from`, or the first `pages_max` pages of it.
    pub fn take_from(&mut self, from: Page, pages_max: u64) -> Option<PageRun> {
        let run = self.pages.run_at_or_after(from, pages_max, &mut self.steps)?;
        self.take(run)
    }

    /// Takes `page` and what follows without a gap, `pages_max` pages at most. Nothing, if `page` was taken before.
    pub fn take_up(&mut self, page: Page, pages_max: u64) -> Option<PageRun> {
        let run = self.pages.run_at_or_after(page, pages_max, &mut self.steps)?;
        (run.space == page.space && run.first == page.number)
            .then(|| self.take(run))
            .flatten()
    }

    /// Takes `page` and what comes before it without a gap, `pages_max` pages at most. Nothing, if `page` was taken before.
    pub fn take_down(&mut self, page: Page, pages_max: u64) -> Option<PageRun> {
        let set = self.pages.space(page.space)?;
        let before = page.number.checked_add(1)?;
        let (first, count) = set.run_before(before, pages_max, &mut self.steps)?;
        let run = PageRun {
            space: page.space,
            first,
            count,
        };
        (first + count == before).then(|| self.take(run)).flatten()
    }

    /// The destination needs none of these pages any more.
    pub(super) fn forget(&mut self, run: PageRun) {
        self.pages.remove(run);
    }

    /// Exactly these pages from now on. What searches have cost is still counted.
    pub(super) fn reset(&mut self, pages: Pages) {
        self.pages = pages;
    }

    fn take(&mut self, run: PageRun) -> Option<PageRun> {
        self.pages.remove(run);
        (run.count > 0).then_some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: SpaceId = SpaceId(3);

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SPACE,
            first,
            count,
        }
    }

    fn page(number: u64) -> Page {
        Page { space: SPACE, number }
    }

    #[test]
    fn what_was_taken_is_not_there_to_be_taken_again() {
        let mut unsent = Unsent::new(Pages::from_runs(&[run(10, 10), run(1000, 2000)]).unwrap());
        assert_eq!(unsent.take_up(page(12), 3), Some(run(12, 3)));
        assert_eq!(unsent.take_up(page(12), 3), None);
        assert_eq!(unsent.take_down(page(14), 3), None);
        assert_eq!(unsent.take_down(page(11), 5), Some(run(10, 2)));
        assert_eq!(unsent.take_down(page(1999), 600), Some(run(1400, 600)));
        assert_eq!(
            (unsent.above(SPACE, 0), unsent.above(SPACE, 1400)),
            (Some(15), Some(2000))
        );
        assert_eq!(
            (unsent.below(SPACE, 15), unsent.below(SPACE, 2000)),
            (None, Some(1399))
        );
        assert_eq!(unsent.take_from(page(16), 9), Some(run(16, 4)));
        assert_eq!(unsent.take_from(Page::FIRST, 9), Some(run(15, 1)));
        assert_eq!(unsent.pages().len(), 1400);
    }

    #[test]
    fn the_end_of_the_numbers_is_no_trap() {
        let last = u64::MAX - 1;
        let mut unsent = Unsent::new(Pages::from_runs(&[run(last, 1)]).unwrap());
        assert_eq!(unsent.below(SPACE, u64::MAX), Some(last));
        assert_eq!(
            (unsent.above(SPACE, u64::MAX), unsent.take_down(page(u64::MAX), 1)),
            (None, None)
        );
        assert_eq!(unsent.take_up(page(last), 9), Some(run(last, 1)));
        assert!(unsent.is_empty());
    }
}
