//! Dynamic self-ballooning: a guest's free memory is taken before it has to travel.
//!
//! Free pages are handed out again and written soon, so that they fill pre-copy's rounds as well as post-copy's residue. The rules are
//! those of Hines and Gopalan ("Post-Copy Based Live Virtual Machine Migration Using Pre-Paging And Dynamic Self-Ballooning", VEE 2009,
//! "Our Ballooning Algorithm"): inflate every 5 seconds; deflate during memory pressure; no inflation during it.

use core::time::Duration;

/// What the user sets. Sizes in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Between two inflations.
    pub interval: Duration,
    /// After memory pressure nothing is taken for so long, else balloon and guest would fight over the same pages.
    pub calm: Duration,
    /// So many free pages stay with the guest. If it has fewer, the balloon gives back what is missing.
    pub reserve_pages: u64,
    /// The balloon is never larger.
    pub balloon_pages_max: u64,
    /// Taken at once at most, so that the guest has time to say that it is too much.
    pub step_pages_max: u64,
}

impl Default for Limits {
    /// 5 seconds, 30 seconds of calm, 64 MiB of reserve, no limit to the size, 4 GiB at once.
    fn default() -> Self {
        Limits {
            interval: Duration::from_secs(5),
            calm: Duration::from_secs(30),
            reserve_pages: 16 << 10,
            balloon_pages_max: u64::MAX,
            step_pages_max: 1 << 20,
        }
    }
}

/// What the guest says of its memory, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// In use by nobody, the balloon's not among them.
    pub free_pages: u64,
    /// The balloon's.
    pub balloon_pages: u64,
    /// The guest reclaims, swaps, or fails to allocate.
    pub is_under_pressure: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The balloon shall grow to so many pages.
    InflateTo(u64),
    /// The balloon shall shrink to so many pages, at once.
    DeflateTo(u64),
    /// Nothing, until then or until the guest says something new.
    Wait {
        /// On the clock that `now` is taken from.
        until: Duration,
    },
}

/// The decisions about one balloon. Nothing is ordered twice for one word of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Balloon {
    limits: Limits,
    /// The guest's last word, as long as nothing came of it.
    news: Option<GuestMemory>,
    inflate_from: Duration,
    is_released: bool,
}

impl Balloon {
    /// A balloon that may grow from now on.
    pub fn new(now: Duration, limits: Limits) -> Self {
        Balloon {
            limits,
            news: None,
            inflate_from: now,
            is_released: false,
        }
    }

    /// The guest says how its memory is. To be asked at least once in each interval; at once when there is pressure.
    pub fn handle(&mut self, now: Duration, memory: GuestMemory) {
        if memory.is_under_pressure {
            let calm = now.saturating_add(self.limits.calm);
            self.inflate_from = self.inflate_from.max(calm);
        }
        self.news = Some(memory);
    }

    /// The migration is over, or was given up: the guest gets everything back.
    pub fn release(&mut self) {
        self.is_released = true;
    }

    /// What to do next.
    pub fn poll(&mut self, now: Duration) -> Order {
        let Some(memory) = self.news else {
            return self.wait(now);
        };
        let given = self.deflated(&memory);
        if given < memory.balloon_pages {
            self.news = None;
            return Order::DeflateTo(given);
        }
        let target = self.inflated(&memory);
        if self.is_released || now < self.inflate_from || target <= memory.balloon_pages {
            return self.wait(now);
        }
        self.news = None;
        self.inflate_from = now.saturating_add(self.limits.interval);
        Order::InflateTo(target)
    }

    /// What it may keep.
    fn deflated(&self, memory: &GuestMemory) -> u64 {
        if memory.is_under_pressure || self.is_released {
            return 0;
        }
        let missing = self.limits.reserve_pages.saturating_sub(memory.free_pages);
        let kept = memory.balloon_pages.saturating_sub(missing);
        kept.min(self.limits.balloon_pages_max)
    }

    fn inflated(&self, memory: &GuestMemory) -> u64 {
        let spare = memory.free_pages.saturating_sub(self.limits.reserve_pages);
        let step = spare.min(self.limits.step_pages_max);
        let target = memory.balloon_pages.saturating_add(step);
        target.min(self.limits.balloon_pages_max)
    }

    fn wait(&self, now: Duration) -> Order {
        let tick = now.saturating_add(self.limits.interval);
        let until = if self.inflate_from > now {
            self.inflate_from
        } else {
            tick
        };
        Order::Wait { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        interval: Duration::from_secs(5),
        calm: Duration::from_secs(30),
        reserve_pages: 100,
        balloon_pages_max: 5000,
        step_pages_max: 2000,
    };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn until(seconds: u64) -> Order {
        Order::Wait { until: secs(seconds) }
    }

    fn guest(free_pages: u64, balloon_pages: u64) -> GuestMemory {
        GuestMemory {
            free_pages,
            balloon_pages,
            is_under_pressure: false,
        }
    }

    /// What it orders right after the guest's word.
    fn after(balloon: &mut Balloon, seconds: u64, memory: GuestMemory) -> Order {
        balloon.handle(secs(seconds), memory);
        balloon.poll(secs(seconds))
    }

    #[test]
    fn free_memory_is_taken_every_five_seconds_up_to_the_reserve_and_the_limits() {
        let mut balloon = Balloon::new(secs(0), LIMITS);
        assert_eq!(balloon.poll(secs(0)), until(5), "nothing is known");
        assert_eq!(after(&mut balloon, 0, guest(7000, 0)), Order::InflateTo(2000));
        assert_eq!(balloon.poll(secs(0)), until(5), "ordered once");
        assert_eq!(after(&mut balloon, 3, guest(1100, 2000)), until(5));
        assert_eq!(balloon.poll(secs(5)), Order::InflateTo(3000));
        assert_eq!(after(&mut balloon, 10, guest(9000, 3000)), Order::InflateTo(5000));
        assert_eq!(after(&mut balloon, 15, guest(9000, 5000)), until(20), "full");
        assert_eq!(after(&mut balloon, 20, guest(100, 0)), until(25), "the reserve");
    }

    #[test]
    fn pressure_gets_everything_back_at_once_and_nothing_is_taken_until_it_is_calm() {
        let mut balloon = Balloon::new(secs(0), LIMITS);
        assert_eq!(after(&mut balloon, 0, guest(1100, 0)), Order::InflateTo(1000));
        let pressed = GuestMemory {
            is_under_pressure: true,
            ..guest(5000, 1000)
        };
        assert_eq!(after(&mut balloon, 1, pressed), Order::DeflateTo(0));
        let gone = GuestMemory {
            balloon_pages: 0,
            ..pressed
        };
        assert_eq!(after(&mut balloon, 10, gone), until(40), "not while it lasts");
        assert_eq!(
            after(&mut balloon, 39, guest(1100, 0)),
            until(40),
            "and not right after it"
        );
        assert_eq!(balloon.poll(secs(40)), Order::InflateTo(1000));
    }

    #[test]
    fn a_guest_with_less_than_its_reserve_gets_what_is_missing() {
        let mut balloon = Balloon::new(secs(0), LIMITS);
        assert_eq!(after(&mut balloon, 0, guest(40, 1000)), Order::DeflateTo(940));
        assert_eq!(after(&mut balloon, 1, guest(0, 30)), Order::DeflateTo(0));
    }

    #[test]
    fn at_the_end_the_guest_gets_everything_back_and_keeps_it() {
        let mut balloon = Balloon::new(secs(0), LIMITS);
        balloon.release();
        assert_eq!(after(&mut balloon, 0, guest(9000, 700)), Order::DeflateTo(0));
        assert_eq!(after(&mut balloon, 5, guest(9000, 0)), until(10));
    }

    #[test]
    fn numbers_without_sense_do_no_harm() {
        let limits = Limits {
            step_pages_max: u64::MAX,
            balloon_pages_max: u64::MAX,
            ..LIMITS
        };
        let mut balloon = Balloon::new(Duration::MAX, limits);
        balloon.handle(Duration::MAX, guest(u64::MAX, u64::MAX - 1));
        assert_eq!(balloon.poll(Duration::MAX), Order::InflateTo(u64::MAX));
        assert_eq!(balloon.poll(Duration::MAX), Order::Wait { until: Duration::MAX });
    }
}
