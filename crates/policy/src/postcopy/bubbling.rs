//! Outwards from where the workload faults.

use alloc::vec::Vec;

use super::{PrePaging, Push, ThreadId, Unsent};
use crate::pages::{Page, PageRun};

/// Pivots that make sense at most: each costs every fault a look.
const PIVOTS_MAX: usize = 1024;

/// Pages that a pivot is served with before it is another's turn, in however many pieces: a thread that walks along then
/// finds a stretch, and does not wait for each piece.
const TURN_PAGES: u64 = 16;

/// What grows around one thread's last fault. Between `down` and `up` (exclusive) all was taken.
#[derive(Clone, Copy, Debug)]
struct Bubble {
    thread: ThreadId,
    pivot: Page,
    up: u64,
    down: u64,
    /// The number of the fault that moved it last.
    moved: u64,
}

impl Bubble {
    fn new(thread: ThreadId, pivot: Page, moved: u64) -> Self {
        Bubble {
            thread,
            pivot,
            up: pivot.number,
            down: pivot.number,
            moved,
        }
    }

    /// Takes the next pages outwards, at most `pages_max`: always on the side on which the next unsent page is nearer
    /// to the pivot. Nothing, if its space has none left.
    fn grow(&mut self, unsent: &mut Unsent, pages_max: u64) -> Option<PageRun> {
        let Page { space, number: pivot } = self.pivot;
        let above = unsent.above(space, self.up);
        let below = unsent.below(space, self.down);
        let goes_up = match (above, below) {
            (Some(above), Some(below)) => above - pivot <= pivot - below,
            (above, _) => above.is_some(),
        };
        let page = |number| Page { space, number };
        let run = if goes_up {
            unsent.take_up(page(above?), pages_max)?
        } else {
            unsent.take_down(page(below?), pages_max)?
        };
        if goes_up {
            self.up = run.end().number;
        } else {
            self.down = run.first;
        }
        Some(run)
    }
}

/// Pre-paging by bubbling (Hines and Gopalan, section 3.1 "pre-paging", with the several pivots of their journal
/// version): the push grows outwards, in both directions, from the last network fault, the *pivot*. Every fault moves the pivot of
/// the thread that faulted. There are at most so many pivots; the one that was moved longest ago makes room for a new thread's.
/// They are served in turn, a piece each. A pivot whose space has no unsent page left retires; without any the push goes on
/// in address order.
///
/// Outwards means nearest first: where one side has a hole, the bubble grows on at the other before it jumps, so that
/// a heap is not left for a library that lies 2^40 pages away.
///
/// The pseudo-code that was printed with the paper's slides sends pages twice and can loop for ever, since it walks over
/// positions and not over unsent pages, and starts again with each fault. Here three look-ups take at least a page, and two
/// retire a pivot: N pages and F faults cost at most 3 N + 2 F look-ups, and nothing is walked over in between.
#[derive(Clone, Debug)]
pub struct Bubbling {
    pivots_max: usize,
    /// In the order in which they are served.
    bubbles: Vec<Bubble>,
    turn: usize,
    /// Pages that are left of the turn.
    turn_pages: u64,
    faults: u64,
    /// When there is no pivot.
    rest: Push,
}

impl Bubbling {
    /// At most so many pivots: from 1, which is the seed's single one, to 1024.
    pub fn new(pivots_max: usize) -> Self {
        Bubbling {
            pivots_max: pivots_max.clamp(1, PIVOTS_MAX),
            bubbles: Vec::new(),
            turn: 0,
            turn_pages: TURN_PAGES,
            faults: 0,
            rest: Push::default(),
        }
    }

    /// The pivots, in the order in which they are served.
    pub fn pivots(&self) -> impl Iterator<Item = (ThreadId, Page)> + '_ {
        self.bubbles.iter().map(|bubble| (bubble.thread, bubble.pivot))
    }

    /// A piece of one bubble: in steps of half a piece, so that it grows evenly on both sides.
    fn piece(bubble: &mut Bubble, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun> {
        let side = pages_max.div_ceil(2);
        let mut runs = Vec::new();
        let mut room = pages_max;
        while room > 0 {
            let Some(run) = bubble.grow(unsent, side.min(room)) else {
                break;
            };
            room -= run.count;
            runs.push(run);
        }
        runs
    }

    /// The place of the thread's bubble, or of the one that makes room for it.
    fn place_for(&self, thread: ThreadId) -> Option<usize> {
        let own = self.bubbles.iter().position(|bubble| bubble.thread == thread);
        let is_full = self.bubbles.len() >= self.pivots_max;
        let oldest = || (0..self.bubbles.len()).min_by_key(|&at| self.bubbles[at].moved);
        own.or_else(|| is_full.then(oldest).flatten())
    }
}

impl Default for Bubbling {
    /// Eight pivots.
    fn default() -> Self {
        Self::new(8)
    }
}

impl PrePaging for Bubbling {
    fn name(&self) -> &'static str {
        "bubbling"
    }

    fn fault(&mut self, thread: ThreadId, page: Page) {
        self.faults += 1;
        let bubble = Bubble::new(thread, page, self.faults);
        match self.place_for(thread) {
            Some(at) => self.bubbles[at] = bubble,
            None => self.bubbles.push(bubble),
        }
    }

    fn next(&mut self, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun> {
        while !self.bubbles.is_empty() {
            let at = self.turn % self.bubbles.len();
            let runs = Self::piece(&mut self.bubbles[at], unsent, pages_max);
            let taken: u64 = runs.iter().map(|run| run.count).sum();
            self.turn = at;
            self.turn_pages = self.turn_pages.saturating_sub(taken);
            if taken == 0 {
                self.bubbles.remove(at);
                self.turn_pages = TURN_PAGES;
                continue;
            }
            if self.turn_pages == 0 {
                self.turn = at + 1;
                self.turn_pages = TURN_PAGES;
            }
            return runs;
        }
        self.rest.next(unsent, pages_max)
    }

    fn restart(&mut self) {
        for bubble in &mut self.bubbles {
            *bubble = Bubble::new(bubble.thread, bubble.pivot, bubble.moved);
        }
        self.rest.restart();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Pages, SpaceId};
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest, Just};
    use proptest::strategy::Strategy as Values;
    use std::collections::BTreeSet;
    use std::vec;

    fn run(space: u32, first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(space),
            first,
            count,
        }
    }

    fn page(space: u32, number: u64) -> Page {
        Page {
            space: SpaceId(space),
            number,
        }
    }

    fn unsent(runs: &[PageRun]) -> Unsent {
        Unsent::new(Pages::from_runs(runs).unwrap())
    }

    fn pages_of(runs: &[PageRun]) -> Vec<Page> {
        let pages = |run: &PageRun| {
            let space = run.space;
            (run.first..run.end().number).map(move |number| Page { space, number })
        };
        runs.iter().flat_map(pages).collect()
    }

    #[test]
    fn it_grows_on_both_sides_and_on_the_nearer_one_first_where_there_is_a_hole() {
        let mut unsent = unsent(&[run(0, 0, 100), run(0, 140, 100)]);
        let mut bubbling = Bubbling::default();
        bubbling.fault(ThreadId(1), page(0, 90));
        assert_eq!(bubbling.next(&mut unsent, 8), [run(0, 90, 4), run(0, 86, 4)]);
        assert_eq!(bubbling.next(&mut unsent, 8), [run(0, 94, 4), run(0, 82, 4)]);
        // Above 99 the next one is 50 away, and 100 pages lie below.
        assert_eq!(
            bubbling.next(&mut unsent, 8),
            [run(0, 98, 2), run(0, 78, 4), run(0, 76, 2)]
        );
        let mut rest = Vec::new();
        while rest.last() != Some(&run(0, 140, 4)) {
            rest.extend(bubbling.next(&mut unsent, 8));
        }
        assert_eq!(
            unsent.below(SpaceId(0), 90),
            Some(39),
            "what is nearer than 140 has gone before"
        );
    }

    #[test]
    fn every_fault_moves_its_threads_pivot_and_only_that() {
        let mut unsent = unsent(&[run(0, 0, 10_000)]);
        let mut bubbling = Bubbling::new(2);
        bubbling.fault(ThreadId(1), page(0, 1000));
        bubbling.fault(ThreadId(2), page(0, 5000));
        let mut turn = || bubbling.next(&mut unsent, TURN_PAGES);
        assert_eq!(turn(), [run(0, 1000, 8), run(0, 992, 8)]);
        assert_eq!(turn(), [run(0, 5000, 8), run(0, 4992, 8)]);
        bubbling.fault(ThreadId(1), page(0, 2000));
        let mut turn = || bubbling.next(&mut unsent, TURN_PAGES);
        assert_eq!(turn(), [run(0, 2000, 8), run(0, 1992, 8)]);
        assert_eq!(turn(), [run(0, 5008, 8), run(0, 4984, 8)]);
        // Thread 2 was moved longest ago.
        bubbling.fault(ThreadId(3), page(0, 7000));
        let pivots: Vec<_> = bubbling.pivots().collect();
        assert_eq!(
            pivots,
            [(ThreadId(1), page(0, 2000)), (ThreadId(3), page(0, 7000))]
        );
    }

    #[test]
    fn a_turn_is_as_long_in_small_pieces() {
        let mut unsent = unsent(&[run(0, 0, 10_000)]);
        let mut bubbling = Bubbling::default();
        bubbling.fault(ThreadId(1), page(0, 1000));
        bubbling.fault(ThreadId(2), page(0, 5000));
        let pieces = (0..12).flat_map(|_| bubbling.next(&mut unsent, 6));
        let mut turns: Vec<_> = pieces.map(|run| run.first.abs_diff(1000) < 100).collect();
        turns.dedup();
        // Three pieces of six pages are a turn of sixteen.
        assert_eq!(turns, [true, false, true, false]);
    }

    #[test]
    fn a_pivot_retires_with_its_space_and_address_order_follows() {
        let mut unsent = unsent(&[run(0, 0, 4), run(1, 0, 6), run(2, 0, 2)]);
        let mut bubbling = Bubbling::default();
        bubbling.fault(ThreadId(1), page(1, 3));
        // A space without a page: nothing to do there.
        bubbling.fault(ThreadId(2), page(9, 3));
        assert_eq!(bubbling.next(&mut unsent, 6), [run(1, 3, 3), run(1, 0, 3)]);
        assert_eq!(bubbling.next(&mut unsent, 5), [run(0, 0, 4), run(2, 0, 1)]);
        assert_eq!(bubbling.pivots().count(), 0);
        assert_eq!(bubbling.next(&mut unsent, 5), [run(2, 1, 1)]);
        assert_eq!(bubbling.next(&mut unsent, 5), []);
    }

    #[test]
    fn after_a_restart_the_pivots_are_where_they_were_and_what_came_back_is_found() {
        let mut unsent = unsent(&[run(0, 0, 100)]);
        let mut bubbling = Bubbling::default();
        bubbling.fault(ThreadId(1), page(0, 50));
        bubbling.next(&mut unsent, 40);
        unsent.reset(Pages::from_runs(&[run(0, 0, 40), run(0, 49, 2)]).unwrap());
        bubbling.restart();
        assert_eq!(
            bubbling.next(&mut unsent, 4),
            [run(0, 50, 1), run(0, 49, 1), run(0, 38, 2)]
        );
    }

    /// What the slides say, read as kindly as possible: page numbers are those of the loop, which ends with the pages.
    /// Stops after `steps_max` turns.
    fn as_printed(pages: u64, mut faults: Vec<u64>, steps_max: u64) -> (Vec<u64>, u64) {
        let (mut sent, mut bitmap) = (Vec::new(), vec![false; pages as usize]);
        let (mut count, mut fault, mut steps) = (0, 0, 0);
        while count < pages && steps < steps_max {
            steps += 1;
            // A fault every few turns.
            if let Some(x) = (steps % 7 == 0).then(|| faults.pop()).flatten() {
                if !bitmap[x as usize] {
                    bitmap[x as usize] = true;
                    fault = x;
                    sent.push(x);
                }
            }
            if fault != 0 {
                // Line 9; the slides never say when `fault` becomes zero again.
                count = fault;
                continue;
            }
            if !bitmap[count as usize] {
                bitmap[count as usize] = true;
                let bubble = (2 * fault).saturating_sub(count);
                sent.extend([count, bubble]);
            }
            count += 1;
        }
        (sent, steps)
    }

    #[test]
    fn what_was_printed_sends_twice_and_loops_and_this_does_not() {
        let (sent, steps) = as_printed(100, vec![60], 10_000);
        let distinct: BTreeSet<_> = sent.iter().collect();
        assert!(
            distinct.len() < sent.len() && steps == 10_000,
            "twice, and for ever"
        );

        let mut unsent = unsent(&[run(0, 0, 100)]);
        let mut bubbling = Bubbling::new(1);
        let mut pushed = bubbling.next(&mut unsent, 6);
        bubbling.fault(ThreadId(1), page(0, 60));
        loop {
            let runs = bubbling.next(&mut unsent, 6);
            if runs.is_empty() {
                break;
            }
            pushed.extend(runs);
        }
        let pages = pages_of(&pushed);
        assert_eq!(pages.len(), 100);
        assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), 100);
        assert!(unsent.steps() <= 3 * 101 + 101, "{} steps", unsent.steps());
    }

    /// Faults between pieces: thread, page and how many pieces come before it.
    fn faults(spread: u64) -> impl Values<Value = Vec<(u32, u32, u64, u64)>> {
        prop::collection::vec((0u32..20, 0u32..3, 0..spread, 0u64..4), 0..300)
    }

    fn residue() -> impl Values<Value = Vec<PageRun>> {
        let run = (0u32..3, 0u64..5000, prop_oneof![Just(1u64), 1u64..30, 1u64..3000]);
        prop::collection::vec(
            run.prop_map(|(space, first, count)| run_of(space, first, count)),
            1..60,
        )
    }

    fn run_of(space: u32, first: u64, count: u64) -> PageRun {
        run(space, first, count)
    }

    proptest! {
        #[test]
        fn every_page_comes_once_and_the_work_is_linear(
            residue in residue(), faults in faults(6000), pivots_max in 1usize..12, pages_max in 1u64..40,
        ) {
            let mut unsent = unsent(&residue);
            let all = unsent.pages().clone();
            let mut bubbling = Bubbling::new(pivots_max);
            let (mut seen, mut pieces) = (BTreeSet::new(), 0u64);
            let mut faults_left = faults.iter();
            let mut wait = 0;
            loop {
                if wait == 0 {
                    if let Some(&(thread, space, number, pause)) = faults_left.next() {
                        bubbling.fault(ThreadId(thread), page(space, number));
                        wait = pause + 1;
                        prop_assert!(bubbling.pivots().count() <= pivots_max);
                    }
                }
                wait -= wait.min(1);
                let runs = bubbling.next(&mut unsent, pages_max);
                let pages = pages_of(&runs);
                prop_assert!(pages.len() as u64 <= pages_max);
                for page in &pages {
                    prop_assert!(all.contains(*page) && seen.insert(*page), "{:?}", page);
                }
                pieces += u64::from(!pages.is_empty());
                if pages.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen.len() as u64, all.len());
            // Two looks and a taking for a run, each of at most 2 steps more than the run has chunks; two looks for a pivot that
            // retires. A piece has at least one page.
            let bound = 8 * all.len() + 4 * faults.len() as u64 + 8;
            prop_assert!(unsent.steps() <= bound, "{} steps for {} pages in {} pieces", unsent.steps(), all.len(), pieces);
        }

        #[test]
        fn from_one_pivot_nothing_far_comes_before_something_near(
            residue in residue(), number in 0u64..6000, pages_max in 1u64..40, pieces in 1usize..100, any_thread in any::<u32>(),
        ) {
            let mut unsent = unsent(&residue);
            let mut bubbling = Bubbling::new(1);
            bubbling.fault(ThreadId(any_thread), page(1, number));
            let mut farthest = 0;
            for _ in 0..pieces {
                let before = unsent.pages().space(SpaceId(1)).is_none();
                for page in pages_of(&bubbling.next(&mut unsent, pages_max)) {
                    prop_assert!(before || page.space == SpaceId(1), "its own space first");
                    if page.space == SpaceId(1) {
                        farthest = farthest.max(page.number.abs_diff(number));
                    }
                }
            }
            let above = unsent.above(SpaceId(1), number).map(|n| n - number);
            let below = unsent.below(SpaceId(1), number).map(|n| number - n);
            let nearest = above.into_iter().chain(below).min().unwrap_or(u64::MAX);
            // A side goes ahead by half a piece at most.
            prop_assert!(farthest <= nearest.saturating_add(pages_max.div_ceil(2)), "{} after {}", farthest, nearest);
        }
    }

    /// The same count on a memory of a gigabyte, with faults all over it: after each piece, and hardly any.
    #[test]
    fn a_large_memory_costs_no_more_for_a_page() {
        for pieces_per_fault in [1, 5000] {
            let pages: u64 = 1 << 18;
            let mut unsent = unsent(&[run(0, 0, pages)]);
            let mut bubbling = Bubbling::default();
            let (mut pieces, mut faults, mut random) = (0u64, 0u64, 1u64);
            while !unsent.is_empty() {
                if pieces % pieces_per_fault == 0 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    bubbling.fault(ThreadId((random >> 60) as u32), page(0, (random >> 20) % pages));
                    faults += 1;
                }
                bubbling.next(&mut unsent, 4);
                pieces += 1;
            }
            let steps = unsent.steps();
            assert!(steps <= 4 * pages + 4 * faults, "{steps} steps, {faults} faults");
        }
    }
}
