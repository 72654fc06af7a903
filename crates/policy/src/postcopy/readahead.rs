//! How many neighbours a reply takes along.

use alloc::vec::Vec;

use super::ThreadId;
use crate::pages::{Page, PageRun};

/// Pages of a reply to a thread of which nothing is known.
const PAGES_START: u64 = 2;
/// Doubling stops here; a caller's limit is lower.
const PAGES_MAX: u64 = 1024;
/// A thread that faults further than so many pages after what it got last has jumped: 2 MiB, a huge page.
const NEAR_PAGES: u64 = 512;
/// Threads that are remembered. One that is forgotten begins anew.
const WALKS_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Walk {
    thread: ThreadId,
    /// The page after the last one that it faulted for or was given.
    next: Page,
    pages: u64,
    /// The number of its last fault.
    used: u64,
}

/// Read-ahead for each thread: few neighbours at first, twice as many with each fault of a thread that walks upwards, few
/// again when it jumps. As the kernel does for files (Linux, mm/readahead.c, in its comments), but with a small start: the
/// push brings neighbours too, and a long reply delays the next one.
///
/// A thread walks if it faults for the first page that is still unsent after what it got last: it has touched all those that
/// the push had brought in between, or could have. One that strides leaves unsent pages behind, and has no use for neighbours.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadAhead {
    walks: Vec<Walk>,
    faults: u64,
}

impl ReadAhead {
    /// `thread` has faulted for `page`. `unsent_from` says which page of its space is the first unsent one from a number on.
    pub fn fault(&mut self, thread: ThreadId, page: Page, unsent_from: impl FnOnce(u64) -> Option<u64>) {
        self.faults += 1;
        let next = Page {
            number: page.number.saturating_add(1),
            ..page
        };
        let walk = Walk {
            thread,
            next,
            pages: PAGES_START,
            used: self.faults,
        };
        let Some(at) = self.place_for(thread) else {
            self.walks.push(walk);
            return;
        };
        let known = &mut self.walks[at];
        let ahead = page.number.checked_sub(known.next.number);
        let walks_on = known.thread == thread
            && known.next.space == page.space
            && ahead.is_some_and(|pages| pages <= NEAR_PAGES)
            && unsent_from(known.next.number).is_none_or(|unsent| unsent >= page.number);
        let pages = if walks_on {
            (known.pages * 2).min(PAGES_MAX)
        } else {
            PAGES_START
        };
        *known = Walk { pages, ..walk };
    }

    /// Pages for the next reply to `thread`, the faulted one included.
    pub fn pages(&self, thread: ThreadId) -> u64 {
        let walk = self.walks.iter().find(|walk| walk.thread == thread);
        walk.map_or(PAGES_START, |walk| walk.pages)
    }

    /// `thread` is given `run`.
    pub fn replied(&mut self, thread: ThreadId, run: PageRun) {
        if let Some(walk) = self.walks.iter_mut().find(|walk| walk.thread == thread) {
            walk.next = run.end();
        }
    }

    /// The thread's place, or that of the one that faulted longest ago if there is no room for another.
    fn place_for(&self, thread: ThreadId) -> Option<usize> {
        let own = self.walks.iter().position(|walk| walk.thread == thread);
        let is_full = self.walks.len() >= WALKS_MAX;
        let oldest = || (0..self.walks.len()).min_by_key(|&at| self.walks[at].used);
        own.or_else(|| is_full.then(oldest).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SpaceId;
    use std::vec::Vec;

    const THREAD: ThreadId = ThreadId(7);

    fn page(number: u64) -> Page {
        Page {
            space: SpaceId(0),
            number,
        }
    }

    /// Sizes of the replies, each as large as it may be, to faults at `pages`, when everything below `sent` was sent.
    fn replies(walks: &mut ReadAhead, pages: &[u64], sent: u64) -> Vec<u64> {
        let reply = |&number: &u64| {
            walks.fault(THREAD, page(number), |from| Some(from.max(sent)));
            let count = walks.pages(THREAD);
            let run = PageRun {
                space: SpaceId(0),
                first: number,
                count,
            };
            walks.replied(THREAD, run);
            count
        };
        pages.iter().map(reply).collect()
    }

    #[test]
    fn a_walk_upwards_doubles_and_a_jump_begins_anew() {
        let mut walks = ReadAhead::default();
        assert_eq!(
            replies(&mut walks, &[100, 102, 106, 114, 100, 101], 0),
            [2, 4, 8, 16, 2, 2]
        );
        assert_eq!(replies(&mut walks, &[103, 107, 700], 0), [4, 8, 2]);
    }

    #[test]
    fn what_the_push_brought_is_walked_over_and_what_it_did_not_bring_is_strided_over() {
        let mut walks = ReadAhead::default();
        assert_eq!(replies(&mut walks, &[100, 150, 200], 200), [2, 4, 8]);
        assert_eq!(replies(&mut walks, &[216, 240, 264], 0), [2, 2, 2]);
        assert_eq!(
            replies(&mut walks, &[266, 266 + 4 + NEAR_PAGES + 1], 10_000),
            [4, 2],
            "too far"
        );
    }

    #[test]
    fn each_thread_walks_for_itself_and_the_one_idle_longest_is_forgotten() {
        let mut walks = ReadAhead::default();
        assert_eq!(replies(&mut walks, &[10, 12], 0), [2, 4]);
        for thread in 0..WALKS_MAX as u32 {
            walks.fault(ThreadId(1000 + thread), page(16), |_| None);
        }
        assert_eq!(walks.walks.len(), WALKS_MAX);
        assert_eq!(walks.pages(THREAD), PAGES_START);
        assert_eq!(replies(&mut walks, &[16], 0), [2]);
    }

    #[test]
    fn it_stops_growing() {
        let mut walks = ReadAhead::default();
        for number in 0..30 {
            walks.fault(THREAD, page(number), |_| None);
        }
        assert_eq!(walks.pages(THREAD), PAGES_MAX);
    }
}
