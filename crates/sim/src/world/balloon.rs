//! Dynamic self-ballooning: drives `whimbrel_policy::balloon` with the free memory of an imagined guest.

use std::time::Duration;

use whimbrel_policy::balloon::{Balloon, GuestMemory, Limits, Order};
use whimbrel_policy::{Event, PAGE_SIZE};

use super::bits::Bits;
use super::knowledge::Knowledge;
use super::{Due, World};
use crate::scenario::{self, Scenario};

/// How often the guest takes free memory for itself.
const STEP: Duration = Duration::from_millis(100);

/// The balloon, and the guest's free memory.
#[derive(Debug)]
pub(super) struct Ballooning {
    who: usize,
    asked: scenario::Balloon,
    balloon: Balloon,
    /// Free pages, the balloon's not among them.
    free: Bits,
    /// The balloon's.
    held: Bits,
    /// Pages that the guest has taken, with what is less than one.
    wanted_pages: f64,
    taken_at: Duration,
    next_look: Duration,
    is_over: bool,
}

impl Ballooning {
    /// Inflated to the part that the scenario says.
    pub fn new(scenario: &Scenario, who: usize) -> Option<Self> {
        let asked = scenario.balloon?;
        let pages = scenario.memory_pages();
        let free_pages = (pages as f64 * scenario.memory.free.0) as u64;
        let (mut free, mut held) = (Bits::new(pages), Bits::new(pages));
        let held_pages = (free_pages as f64 * asked.inflated.0) as u64;
        free.insert_range(pages - free_pages, free_pages - held_pages);
        held.insert_range(pages - held_pages, held_pages);
        let policy = Limits::default();
        let limits = Limits {
            interval: asked.every.0,
            reserve_pages: asked.reserve.map_or(policy.reserve_pages, |size| size.pages()),
            ..policy
        };
        Some(Ballooning {
            who,
            asked,
            balloon: Balloon::new(Duration::ZERO, limits),
            free,
            held,
            wanted_pages: 0.0,
            taken_at: Duration::ZERO,
            next_look: Duration::ZERO,
            is_over: false,
        })
    }

    /// The guest uses more of its free memory. What the balloon has is too soon taken.
    fn allocate(&mut self, world: &mut World<'_>) {
        let time = world
            .now
            .saturating_sub(std::mem::replace(&mut self.taken_at, world.now));
        let rate = self.asked.demand.map_or(0.0, |rate| rate.0 as f64);
        self.wanted_pages += rate * time.as_secs_f64() / PAGE_SIZE as f64;
        self.take(world);
        if self.wanted_pages >= 1.0 && !self.held.is_empty() {
            self.look(world, true);
            self.take(world);
        }
    }

    fn take(&mut self, world: &mut World<'_>) {
        for run in self.free.runs() {
            let count = run.count.min(self.wanted_pages as u64);
            self.wanted_pages -= count as f64;
            self.free.remove_range(run.first, count);
            world.guest.marks.write_range(run.first, count);
        }
    }

    /// The guest says how its memory is, and the balloon grows or shrinks. Pages that it gives back read as zeros, until they are used.
    fn look(&mut self, world: &mut World<'_>, is_under_pressure: bool) {
        let balloon_pages = self.held.len();
        let memory = GuestMemory {
            free_pages: self.free.len(),
            balloon_pages,
            is_under_pressure,
        };
        self.balloon.handle(world.now, memory);
        match self.balloon.poll(world.now) {
            Order::InflateTo(pages) => self.inflate(world, pages - balloon_pages),
            Order::DeflateTo(pages) => self.deflate(world, balloon_pages - pages, is_under_pressure),
            Order::Wait { .. } => {}
        }
        world.guest.absent.clone_from(&self.held);
    }

    /// From the end of the memory on downwards. What the balloon has reads as zeros.
    fn inflate(&mut self, world: &mut World<'_>, pages: u64) {
        let mut left = pages;
        for run in self.free.runs().into_iter().rev() {
            let count = run.count.min(left);
            let first = run.first + run.count - count;
            left -= count;
            self.free.remove_range(first, count);
            self.held.insert_range(first, count);
            world.guest.zero.insert_range(first, count);
        }
        world
            .book
            .log(world.now, || format!("the balloon takes {pages} pages"));
    }

    /// Under pressure the guest waits meanwhile.
    fn deflate(&mut self, world: &mut World<'_>, pages: u64, is_under_pressure: bool) {
        let mut left = pages;
        for run in self.held.runs() {
            let count = run.count.min(left);
            left -= count;
            self.held.remove_range(run.first, count);
            self.free.insert_range(run.first, count);
        }
        world
            .book
            .log(world.now, || format!("the balloon gives {pages} pages back"));
        if !is_under_pressure {
            return;
        }
        let time = Duration::from_nanos((self.asked.give_back.0.as_nanos() as u64).saturating_mul(pages));
        world.guest.stand_still(time);
        world.book.pause(world.now, time, "balloon");
    }
}

impl Knowledge for Ballooning {
    fn begin(&mut self, world: &mut World<'_>) -> Vec<Event> {
        world.guest.absent.clone_from(&self.held);
        self.held
            .runs()
            .iter()
            .for_each(|run| world.guest.zero.insert_range(run.first, run.count));
        self.next_look = world.now + self.asked.every.0;
        world.at(world.now + STEP, Due::Tick(self.who));
        Vec::new()
    }

    fn before_freeze(&mut self, _: &mut World<'_>) {
        self.is_over = true;
    }

    fn tick(&mut self, world: &mut World<'_>) {
        if self.is_over {
            return;
        }
        self.allocate(world);
        if world.now >= self.next_look {
            self.next_look = world.now + self.asked.every.0;
            self.look(world, false);
        }
        world.at(world.now + STEP.min(self.asked.every.0), Due::Tick(self.who));
    }
}
