//! Guide-copy: pages that the forward context touches go first.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::{PrePaging, Push, ThreadId, Unsent};
use crate::pages::{Page, PageRun};

/// Pages that wait to be sent because a guide has touched them, at most. What comes beyond goes with the background.
pub const TOUCHED_MAX: usize = 1 << 16;

/// Guide-copy, also lazy-copy (Kim, Chae, Kim, Kim, "Guide-Copy: Fast and Silent Migration of Virtual Machine for Datacenters", SC 2013;
/// Sun, Lv, Shan, "A simulation of live virtual machine migration", 2014).
///
/// A *forward context* goes on at the source, slightly ahead of the *following* one at the destination ([`super::Lead`] says how far).
/// What it touches ([`super::Residual::aim`]) is sent in the order of touching, before anything else but replies. The rest follows in
/// the background, in an order of its own. A limit on bandwidth makes the background silent and holds no guided page back.
#[derive(Debug)]
pub struct Guide {
    touched: VecDeque<Page>,
    /// The same pages.
    queued: BTreeSet<Page>,
    background: Box<dyn PrePaging>,
}

impl Default for Guide {
    /// With a background in address order.
    fn default() -> Self {
        Guide::new(Box::new(Push::default()))
    }
}

impl Guide {
    /// With this order for what no guide has touched. Network faults are passed on to it.
    pub fn new(background: Box<dyn PrePaging>) -> Self {
        Guide {
            touched: VecDeque::new(),
            queued: BTreeSet::new(),
            background,
        }
    }
}

impl PrePaging for Guide {
    fn name(&self) -> &'static str {
        "guide"
    }

    fn fault(&mut self, thread: ThreadId, page: Page) {
        self.background.fault(thread, page);
    }

    fn about_to_touch(&mut self, _: ThreadId, page: Page) {
        if self.touched.len() < TOUCHED_MAX && self.queued.insert(page) {
            self.touched.push_back(page);
        }
    }

    fn next_guided(&mut self, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        let mut room = pages_max;
        while let Some(page) = (room > 0).then(|| self.touched.pop_front()).flatten() {
            self.queued.remove(&page);
            // Else it went with a reply or the background.
            if let Some(run) = unsent.take_up(page, 1) {
                room -= 1;
                match runs.last_mut() {
                    Some(last) if last.end() == page => last.count += 1,
                    _ => runs.push(run),
                }
            }
        }
        runs
    }

    fn next(&mut self, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun> {
        self.background.next(unsent, pages_max)
    }

    fn restart(&mut self) {
        self.background.restart();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Pages, SpaceId, PAGE_SIZE};
    use crate::postcopy::{Demand, Event, Fault, Limits, Order, Path, Residual};
    use core::time::Duration;
    use proptest::prelude::*;

    const GUIDE: ThreadId = ThreadId(0);

    fn run(first: u64, count: u64) -> PageRun {
        PageRun {
            space: SpaceId(0),
            first,
            count,
        }
    }

    fn page(number: u64) -> Page {
        Page {
            space: SpaceId(0),
            number,
        }
    }

    fn residual(guide: Guide, pages: u64, bandwidth_max: Option<u64>) -> Residual {
        let pages = Pages::from_runs(&[run(0, pages)]).unwrap();
        let limits = Limits {
            bandwidth_max,
            ..Limits::default()
        };
        Residual::new(Duration::ZERO, pages, Box::new(guide), limits, Path::default())
    }

    fn fault(residual: &mut Residual, number: u64) {
        residual.fault(Fault {
            page: page(number),
            thread: ThreadId(1),
            repeated: false,
        });
    }

    /// The next order, carried out and acknowledged at once.
    fn step(residual: &mut Residual, now: Duration) -> Vec<PageRun> {
        let (piece, runs) = match residual.poll(now) {
            Order::Reply { piece, run, .. } => (piece, Vec::from([run])),
            Order::Push { piece, runs } => (piece, runs),
            Order::Wait { .. } | Order::Done => return Vec::new(),
        };
        let wire_bytes = runs.iter().map(|run| run.count).sum::<u64>() * PAGE_SIZE;
        let sent = Event::Sent {
            piece,
            wire_bytes,
            zero_pages: 0,
            unreadable: Vec::new(),
        };
        residual.handle(now, sent);
        residual.handle(now, Event::Acked { piece });
        runs
    }

    #[test]
    fn a_reply_goes_first_then_what_the_guide_touched_in_its_order_then_the_rest() {
        let mut residual = residual(Guide::default(), 1000, None);
        for number in [700, 30, 31, 700, 5, 2000] {
            residual.aim(GUIDE, page(number));
        }
        fault(&mut residual, 400);
        let mut runs = Vec::new();
        while runs.len() < 5 {
            let step = step(&mut residual, Duration::ZERO);
            assert!(!step.is_empty(), "{runs:?}");
            runs.extend(step);
        }
        let pages: Vec<_> = runs.iter().flat_map(|run| run.first..run.end().number).collect();
        assert_eq!(pages[..9], [400, 401, 700, 30, 31, 5, 0, 1, 2], "{runs:?}");
        assert_eq!(residual.metrics().pages_guided, 4);
    }

    #[test]
    fn the_background_keeps_to_its_limit_and_the_guide_is_not_held_back() {
        let second = Duration::from_secs(1);
        let mut residual = residual(Guide::default(), 10_000, Some(100 * PAGE_SIZE));
        let (mut background, mut guided) = (0, 0);
        for ms in 0..1000 {
            let now = Duration::from_millis(ms);
            residual.aim(GUIDE, page(5000 + ms));
            assert_eq!(step(&mut residual, now), [run(5000 + ms, 1)], "at once");
            guided += 1;
            background += step(&mut residual, now).iter().map(|run| run.count).sum::<u64>();
        }
        assert_eq!((guided, background), (1000, 100));
        let metrics = residual.metrics();
        assert_eq!((metrics.pages_guided, metrics.pages_pushed), (1000, 1100));
        fault(&mut residual, 9000);
        assert_eq!(
            step(&mut residual, second - Duration::from_millis(1)),
            [run(9000, 2)]
        );
    }

    #[test]
    fn another_order_may_be_in_the_background_and_the_queue_has_an_end() {
        let mut guide = Guide::new(Box::new(Demand));
        let pages = TOUCHED_MAX as u64 + 10;
        let mut unsent = Unsent::new(Pages::from_runs(&[run(0, pages)]).unwrap());
        assert_eq!(guide.next(&mut unsent, 9), []);
        for number in (0..pages).chain(0..pages) {
            guide.about_to_touch(GUIDE, page(number));
        }
        assert_eq!(guide.next_guided(&mut unsent, 3), [run(0, 3)]);
        assert_eq!(
            guide.next_guided(&mut unsent, u64::MAX),
            [run(3, TOUCHED_MAX as u64 - 3)]
        );
        guide.about_to_touch(GUIDE, page(pages - 1));
        assert_eq!(guide.next_guided(&mut unsent, 3), [run(pages - 1, 1)]);
    }

    proptest! {
        #[test]
        fn each_page_is_sent_once_and_all_are(
            touched in prop::collection::vec((any::<bool>(), 0u64..200), 0..300), cap in prop::option::of(1u64..9_000_000),
        ) {
            let mut residual = residual(Guide::default(), 150, cap);
            let mut sent = Pages::new();
            let mut now = Duration::ZERO;
            let mut steps = touched.into_iter();
            while residual.owed_pages() > 0 {
                match steps.next() {
                    Some((true, number)) => residual.aim(GUIDE, page(number)),
                    Some((false, number)) => fault(&mut residual, number),
                    None => now += Duration::from_secs(10),
                }
                for run in step(&mut residual, now) {
                    let before = sent.len();
                    sent.insert(run).unwrap();
                    prop_assert_eq!(sent.len(), before + run.count);
                }
            }
            prop_assert_eq!(sent.len(), 150);
        }
    }
}
