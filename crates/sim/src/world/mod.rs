//! The imagined world that a migration runs in: a clock, a guest, a link, and the two hosts around the decisions of
//! `whimbrel_policy`.
//!
//! ```text
//!  before.rs   Migration: carries its orders out up to the hand-over, as the engine's rounds do
//!  after.rs    Residual: carries its orders out until nothing is missing, while vCPUs touch pages one by one
//!  guide.rs    the forward context, which runs ahead at the source
//!  guest.rs    vCPUs, loads (model.rs, heap.rs) and the marks of written pages
//!  link.rs     one queue, with competing traffic
//!  knowledge.rs  the places at which those who know something about pages are asked
//! ```
//!
//! Before the switch-over only written pages matter, so the guest runs in steps of a millisecond's order and leaves marks. After it the
//! order of accesses matters, and each is an event.

mod after;
mod assist;
mod balloon;
mod before;
mod bits;
mod book;
mod collect;
#[cfg(test)]
mod foretold;
mod guest;
mod guide;
mod heap;
mod knowledge;
mod link;
mod model;
mod random;
mod storage;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use whimbrel_policy::packing::Packing;
use whimbrel_policy::postcopy::PieceId;
use whimbrel_policy::{Page, PageRun};

use crate::{Outcome, Scenario};
use bits::Bits;
use book::Book;
use guest::Guest;
use knowledge::Knowledge;
use link::Link;

/// The guest runs on its own before the request in steps of this.
const WARM_UP_STEP: Duration = Duration::from_millis(100);

/// Runs a scenario.
pub fn simulate(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.run();
    world.outcome()
}

/// Something that is due at some time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Time to note how it goes.
    Sample,
    /// Somebody who knows something wants to be asked.
    Tick(usize),
    /// The forward context goes on at the source.
    Guide,
    /// A vCPU goes on at the destination.
    Vcpu(u32),
    /// The source may go on sending.
    Source,
    /// A fault is at the source.
    Fault(Page, u32),
    /// Pages are at the destination.
    Arrived(PieceId, Vec<PageRun>),
    /// The source hears of it.
    Acked(PieceId),
}

/// Everything there is.
pub(crate) struct World<'s> {
    pub scenario: &'s Scenario,
    /// Since the request.
    pub now: Duration,
    pub guest: Guest,
    /// Whether the guest runs at the source.
    pub is_running: bool,
    pub link: Link,
    packing: Packing,
    /// As the rounds have measured it.
    link_rate: Option<u64>,
    due: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    due_count: u64,
    /// Longer than the scenario says once there are too many samples.
    sample_every: Duration,
    pub book: Book,
    knowledge: Vec<Box<dyn Knowledge>>,
    /// Those who were due while another one was asked.
    missed: Vec<usize>,
    /// What has arrived of each page, if somebody checks: the version, and one more.
    copies: Option<Vec<u32>>,
    /// What must have arrived, as the last scan said.
    present: Vec<PageRun>,
}

impl<'s> World<'s> {
    pub fn new(scenario: &'s Scenario) -> Self {
        let link = &scenario.link;
        let mut world = World {
            scenario,
            now: Duration::ZERO,
            guest: Guest::new(scenario),
            is_running: true,
            link: Link::new(link.rate.0, link.latency.0, &link.competing),
            packing: Packing::default(),
            link_rate: None,
            due: BinaryHeap::new(),
            due_count: 0,
            sample_every: scenario.sample_every.0,
            book: Book::new(scenario),
            knowledge: knowledge::of(scenario),
            missed: Vec::new(),
            copies: None,
            present: Vec::new(),
        };
        world.warm_up();
        world.at(scenario.sample_every.0, Due::Sample);
        world
    }

    /// The outcome knows whether every page has arrived in its last version.
    #[cfg(test)]
    fn checked(mut self) -> Self {
        let pages = self.scenario.memory_pages() as usize;
        self.guest.marks.versions = Some(vec![0; pages]);
        self.copies = Some(vec![0; pages]);
        self
    }

    pub fn run(&mut self) {
        if let Some(handover) = self.run_before() {
            self.run_after(handover);
        }
    }

    pub fn outcome(self) -> Outcome {
        self.book.outcome(&self.guest, self.now)
    }

    fn warm_up(&mut self) {
        let mut left = self.scenario.migration.after.0;
        while !left.is_zero() && !self.is_over() {
            let step = left.min(WARM_UP_STEP).min(self.guest.step_max);
            self.guest.run(step);
            self.book.events += self.guest.take_work();
            left -= step;
        }
        self.guest.take_marks();
        self.guest.pauses.clear();
        self.guest.lost = Duration::ZERO;
    }

    /// Something will be due.
    pub fn at(&mut self, when: Duration, due: Due) {
        self.due_count += 1;
        self.due.push(Reverse((when.max(self.now), self.due_count, due)));
    }

    /// Time goes on up to `until`, and what is due meanwhile happens. Only before the switch-over. It stops where a limit of the
    /// simulation is reached: whoever waits in a loop has to ask [`World::is_over`].
    pub fn advance(&mut self, until: Duration) {
        let until = until.min(self.scenario.end.0);
        while !self.is_over() {
            if self.due.peek().is_none_or(|Reverse((when, ..))| *when > until) {
                break;
            }
            let Some(Reverse((when, _, due))) = self.due.pop() else {
                break;
            };
            self.run_guest(when);
            match due {
                Due::Sample => self.sample(),
                Due::Tick(who) => self.tick(who),
                _ => {}
            }
        }
        self.run_guest(until);
    }

    fn run_guest(&mut self, until: Duration) {
        while self.now < until && !self.is_over() {
            let mut step = until - self.now;
            if self.is_running {
                step = step.min(self.guest.step_max);
                self.guest.run(step);
                self.book.events += self.guest.take_work();
                self.note_pauses();
            }
            self.now += step;
        }
    }

    fn note_pauses(&mut self) {
        for (pause, why) in self.guest.pauses.drain(..) {
            self.book.pause(self.now, pause, why);
        }
    }

    fn sample(&mut self) {
        self.book.events += 1;
        self.book
            .sample(self.now, self.link.bytes, self.guest.lost, self.is_running);
        if self.book.thinned() {
            self.sample_every *= 2;
        }
        self.at(self.now + self.sample_every, Due::Sample);
    }

    /// Bytes per second that the rounds can count on: what was measured, or what competing traffic leaves; at most what was asked for.
    fn bandwidth(&self) -> u64 {
        let left = self.link_rate.unwrap_or_else(|| self.link.rate_now(self.now));
        let asked = self.scenario.migration.bandwidth;
        asked.map_or(left, |asked| left.min(asked.0))
    }

    /// A look at the marks of all pages.
    fn looked_at_all(&mut self) {
        self.book.events += self.scenario.memory_pages() / bits::WORD_PAGES;
    }

    /// Whether it has to end unfinished.
    fn is_over(&mut self) -> bool {
        let limit = if self.book.events > self.scenario.events_max {
            "the limit on events was reached (events-max)"
        } else if self.now >= self.scenario.end.0 {
            "the end of the simulated time was reached (end)"
        } else {
            return false;
        };
        self.book.note(limit);
        true
    }

    /// Copies of a page at the destination, if somebody checks.
    fn copied(&mut self, runs: &[PageRun]) {
        let (Some(copies), Some(versions)) = (&mut self.copies, &self.guest.marks.versions) else {
            return;
        };
        for page in runs.iter().flat_map(|run| run.first..run.first + run.count) {
            copies[page as usize] = versions[page as usize] + 1;
        }
    }

    /// The pages of which the destination has not the last version.
    #[cfg(test)]
    fn differences(&self) -> Vec<u64> {
        let (Some(copies), Some(versions)) = (&self.copies, &self.guest.marks.versions) else {
            return vec![];
        };
        let differs = |&page: &u64| copies[page as usize] != versions[page as usize] + 1;
        let pages = self
            .present
            .iter()
            .flat_map(|run| run.first..run.first + run.count);
        pages.filter(differs).collect()
    }
}

/// Pages in runs.
fn pages_in(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

/// The pages of runs that a set holds, and the others.
fn split(runs: &[PageRun], set: &Bits) -> (Vec<PageRun>, Vec<PageRun>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for one in runs {
        let before = inside.len();
        set.runs_within(one.first, one.count, &mut inside);
        let mut at = one.first;
        let end = one.first + one.count;
        for found in &inside[before..] {
            if found.first > at {
                outside.push(bits::run(at, found.first - at));
            }
            at = found.first + found.count;
        }
        if at < end {
            outside.push(bits::run(at, end - at));
        }
    }
    (inside, outside)
}
