//! How far a forward context may run ahead of the following one.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::pages::{Page, PageRun, Pages};

/// Pages that a guide may be ahead at most, whatever the limits say.
pub const LEAD_PAGES_MAX: u64 = 1 << 16;

/// What the user sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeadLimits {
    /// Pages that the guide has touched and the following context has not, at most ([`LEAD_PAGES_MAX`]).
    pub pages_max: u64,
    /// Running time that the guide is ahead at most.
    pub time_max: Duration,
    /// Pages in a row that the following context waits for and the guide never touched: with so many they are not on one way any
    /// more.
    pub strays_max: u32,
    /// Times that the guide may begin anew where the following context is.
    pub jumps_max: u32,
}

impl Default for LeadLimits {
    /// 1024 pages (35 ms of a 1 Gbit/s link), 200 ms, 16 strays, 8 jumps.
    fn default() -> Self {
        LeadLimits {
            pages_max: 1024,
            time_max: Duration::from_millis(200),
            strays_max: 16,
            jumps_max: 8,
        }
    }
}

/// What the forward context is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuideStep {
    /// Run on.
    Run,
    /// Stand still: it is far enough ahead.
    Wait,
    /// It is behind, or on another way: begin anew where the following context is, then [`Lead::jumped`]. Or end it.
    Jump,
    /// End it. What it has touched stays useful.
    End(GuideEnd),
}

/// Why a guide has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuideEnd {
    /// It was about to write to the outside world, which is the following context's to do alone.
    Outside,
    /// It was overtaken too often.
    Overtaken,
}

/// Keeps a forward context ahead, and not too far (see [`super::Guide`] for the sources of the method).
///
/// Both contexts run the same code from the same state, so the running time (of the CPU, waits left out) tells how far each is. A network
/// fault at a page that the guide has touched says that the following context is there at least. The guide has no effect outside: the
/// caller stops it before its first write there and says so here, and that is its end.
#[derive(Clone, Debug)]
pub struct Lead {
    limits: LeadLimits,
    /// Touched by the guide at which running time, and not known to be reached.
    ahead: VecDeque<(Page, Duration)>,
    touched: Pages,
    guide_ran: Duration,
    follower_ran: Duration,
    strays: u32,
    jumps: u32,
    end: Option<GuideEnd>,
}

impl Lead {
    /// Both contexts stand at the same place.
    pub fn new(limits: LeadLimits) -> Self {
        let pages_max = limits.pages_max.min(LEAD_PAGES_MAX);
        Lead {
            limits: LeadLimits { pages_max, ..limits },
            ahead: VecDeque::new(),
            touched: Pages::new(),
            guide_ran: Duration::ZERO,
            follower_ran: Duration::ZERO,
            strays: 0,
            jumps: 0,
            end: None,
        }
    }

    /// The guide has run so long in all.
    pub fn guide_ran(&mut self, ran: Duration) {
        self.guide_ran = self.guide_ran.max(ran);
    }

    /// The guide touches `page`. Only the first time counts.
    pub fn guide_touched(&mut self, page: Page) {
        let before = self.touched.len();
        let inserted = self.touched.insert(one(page));
        let is_new = inserted.is_ok() && self.touched.len() > before;
        if is_new && (self.ahead.len() as u64) < self.limits.pages_max {
            self.ahead.push_back((page, self.guide_ran));
        }
    }

    /// The following context has run so long in all.
    pub fn follower_ran(&mut self, ran: Duration) {
        self.follower_ran = self.follower_ran.max(ran);
        while self.ahead.front().is_some_and(|&(_, at)| at < self.follower_ran) {
            self.ahead.pop_front();
        }
    }

    /// The following context waits for `page`.
    pub fn follower_faulted(&mut self, page: Page) {
        let place = self.ahead.iter().position(|&(ahead, _)| ahead == page);
        if let Some((_, at)) = place.and_then(|place| self.ahead.drain(..=place).next_back()) {
            self.follower_ran(at);
        }
        self.strays = match self.touched.contains(page) {
            true => 0,
            false => self.strays.saturating_add(1),
        };
    }

    /// The guide was stopped before a write to the outside world: this is its end.
    pub fn outside(&mut self) {
        self.end.get_or_insert(GuideEnd::Outside);
    }

    /// The guide stands where the following context stands.
    pub fn jumped(&mut self) {
        self.jumps = self.jumps.saturating_add(1);
        self.ahead.clear();
        self.touched = Pages::new();
        self.guide_ran = self.follower_ran;
        self.strays = 0;
    }

    /// What the guide is to do now.
    pub fn step(&mut self) -> GuideStep {
        if let Some(end) = self.end {
            return GuideStep::End(end);
        }
        let is_behind = self.guide_ran < self.follower_ran;
        if is_behind || self.strays >= self.limits.strays_max.max(1) {
            if self.jumps >= self.limits.jumps_max {
                self.end = Some(GuideEnd::Overtaken);
                return GuideStep::End(GuideEnd::Overtaken);
            }
            return GuideStep::Jump;
        }
        let is_far = self.pages() >= self.limits.pages_max || self.time() >= self.limits.time_max;
        if is_far {
            GuideStep::Wait
        } else {
            GuideStep::Run
        }
    }

    /// Pages that the guide is ahead.
    pub fn pages(&self) -> u64 {
        self.ahead.len() as u64
    }

    /// Running time that the guide is ahead; 0 if it is behind.
    pub fn time(&self) -> Duration {
        self.guide_ran.saturating_sub(self.follower_ran)
    }
}

fn one(page: Page) -> PageRun {
    PageRun {
        space: page.space,
        first: page.number,
        count: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::SpaceId;

    const LIMITS: LeadLimits = LeadLimits {
        pages_max: 3,
        time_max: Duration::from_millis(100),
        strays_max: 2,
        jumps_max: 1,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn page(number: u64) -> Page {
        Page {
            space: SpaceId(0),
            number,
        }
    }

    /// A guide that touched page n after n milliseconds.
    fn lead(pages: core::ops::Range<u64>) -> Lead {
        let mut lead = Lead::new(LIMITS);
        for number in pages {
            lead.guide_ran(ms(number));
            lead.guide_touched(page(number));
        }
        lead
    }

    #[test]
    fn it_waits_when_it_is_so_many_pages_ahead_until_the_other_follows() {
        let mut lead = lead(1..3);
        lead.guide_touched(page(1));
        assert_eq!((lead.step(), lead.pages()), (GuideStep::Run, 2));
        lead.guide_touched(page(9));
        assert_eq!(lead.step(), GuideStep::Wait);
        // The fault says that it has come past page 1 as well.
        lead.follower_faulted(page(2));
        assert_eq!(
            (lead.step(), lead.pages(), lead.time()),
            (GuideStep::Run, 1, ms(0))
        );
    }

    #[test]
    fn it_waits_when_it_is_so_much_time_ahead_until_the_other_has_run() {
        let mut lead = lead(1..2);
        lead.guide_ran(ms(100));
        assert_eq!(lead.step(), GuideStep::Wait);
        lead.follower_ran(ms(2));
        assert_eq!(
            (lead.step(), lead.pages(), lead.time()),
            (GuideStep::Run, 0, ms(98))
        );
    }

    #[test]
    fn who_is_overtaken_or_on_another_way_jumps_and_ends_at_last() {
        let mut lead = lead(1..3);
        lead.follower_ran(ms(3));
        assert_eq!(lead.step(), GuideStep::Jump);
        lead.jumped();
        assert_eq!((lead.step(), lead.time()), (GuideStep::Run, ms(0)));
        lead.follower_faulted(page(70));
        assert_eq!(lead.step(), GuideStep::Run, "one stray may be another thread");
        lead.follower_faulted(page(71));
        assert_eq!(lead.step(), GuideStep::End(GuideEnd::Overtaken));
        lead.jumped();
        assert_eq!(lead.step(), GuideStep::End(GuideEnd::Overtaken), "for good");
    }

    #[test]
    fn a_write_to_the_outside_ends_it_for_good() {
        let mut lead = lead(1..3);
        lead.outside();
        lead.jumped();
        lead.follower_ran(ms(50));
        assert_eq!(lead.step(), GuideStep::End(GuideEnd::Outside));
    }

    #[test]
    fn a_guide_that_does_not_wait_fills_no_queue() {
        assert_eq!(lead(1..1000).pages(), 3);
        let mut lead = Lead::new(LeadLimits {
            pages_max: u64::MAX,
            ..LIMITS
        });
        (0..2 * LEAD_PAGES_MAX).for_each(|number| lead.guide_touched(page(number)));
        lead.guide_touched(page(u64::MAX));
        assert_eq!((lead.pages(), lead.step()), (LEAD_PAGES_MAX, GuideStep::Wait));
    }
}
