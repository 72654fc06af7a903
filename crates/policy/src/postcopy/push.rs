//! Everything in address order.

use alloc::vec::Vec;

use super::{PrePaging, ThreadId, Unsent};
use crate::pages::{Page, PageRun};

/// Active push ("flushing"): all pages in the order of spaces and numbers, whatever is faulted for meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Push {
    /// Everything before it was taken.
    at: Page,
}

impl PrePaging for Push {
    fn name(&self) -> &'static str {
        "push"
    }

    fn fault(&mut self, _: ThreadId, _: Page) {}

    fn next(&mut self, unsent: &mut Unsent, pages_max: u64) -> Vec<PageRun> {
        let mut runs = Vec::new();
        let mut room = pages_max;
        while let Some(run) = (room > 0).then(|| unsent.take_from(self.at, room)).flatten() {
            self.at = run.end();
            room -= run.count;
            runs.push(run);
        }
        runs
    }

    fn restart(&mut self) {
        self.at = Page::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Pages, SpaceId};

    #[test]
    fn pages_come_in_address_order_and_again_from_the_beginning_after_a_restart() {
        let run = |space, first, count| PageRun {
            space: SpaceId(space),
            first,
            count,
        };
        let mut push = Push::default();
        let mut unsent = Unsent::new(Pages::from_runs(&[run(0, 5, 3), run(1, 0, 2), run(1, 9, 9)]).unwrap());
        push.fault(ThreadId(1), Page::FIRST);
        assert_eq!(push.next(&mut unsent, 4), [run(0, 5, 3), run(1, 0, 1)]);
        assert_eq!(push.next(&mut unsent, 4), [run(1, 1, 1), run(1, 9, 3)]);
        unsent.reset(Pages::from_runs(&[run(0, 6, 1), run(1, 12, 1)]).unwrap());
        push.restart();
        assert_eq!(push.next(&mut unsent, 4), [run(0, 6, 1), run(1, 12, 1)]);
        assert_eq!(push.next(&mut unsent, 4), []);
    }
}
