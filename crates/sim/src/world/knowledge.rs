//! Those who know something about pages, and when they are asked.

use std::fmt::Debug;
use std::time::Duration;

use whimbrel_policy::migration::Event;
use whimbrel_policy::{PageRun, Scan};

use super::assist::Applications;
use super::balloon::Ballooning;
use super::collect::Collections;
use super::storage::Storage;
use super::World;
use crate::Scenario;

/// Somebody who knows something. Each method may let time go by ([`World::advance`]); the workload then goes on as long as it is not
/// frozen. The events are handed to the migration in order.
pub(crate) trait Knowledge: Debug {
    /// The request came. Nothing was scanned yet.
    fn begin(&mut self, _world: &mut World<'_>) -> Vec<Event> {
        Vec::new()
    }

    /// A scan of the running workload is about to be made.
    fn before_scan(&mut self, _world: &mut World<'_>) -> Vec<Event> {
        Vec::new()
    }

    /// A scan was handed in, and the decision made: unless a round has begun, facts come too late.
    fn scanned(&mut self, _world: &mut World<'_>) -> Vec<Event> {
        Vec::new()
    }

    /// The workload is about to be frozen.
    fn before_freeze(&mut self, _world: &mut World<'_>) {}

    /// A scan of the running workload was made: pages that hold nothing may be taken out of `written` and named as lost.
    fn live_scan(&mut self, _world: &mut World<'_>, _scan: &mut Scan) {}

    /// The scan of the frozen workload was made: pages that need not arrive may be taken out of `present`.
    fn frozen_scan(&mut self, _world: &mut World<'_>, _scan: &mut Scan) {}

    /// These pages leave the source over the ordinary network, or are dropped at the destination.
    fn left(&mut self, _runs: &[PageRun]) {}

    /// The workload runs at the destination.
    fn resumed(&mut self, _world: &mut World<'_>) {}

    /// What it asked for with [`super::Due::Tick`] is due. Events are handed over at the next occasion.
    fn tick(&mut self, _world: &mut World<'_>) {}
}

/// Those that a scenario asks for.
pub(crate) fn of(scenario: &Scenario) -> Vec<Box<dyn Knowledge>> {
    let mut all: Vec<Box<dyn Knowledge>> = Vec::new();
    if scenario.migration.assist {
        all.push(Box::new(Applications::new(scenario)));
    }
    if scenario.migration.collect {
        all.push(Box::new(Collections::new(scenario)));
    }
    if let Some(balloon) = Ballooning::new(scenario, all.len()) {
        all.push(Box::new(balloon));
    }
    // The last one: it is to see what the others have said of a scan.
    if let Some(storage) = Storage::new(scenario, all.len()) {
        all.push(Box::new(storage));
    }
    all
}

impl World<'_> {
    /// Asks each of them.
    pub(super) fn ask(
        &mut self,
        mut question: impl FnMut(&mut dyn Knowledge, &mut Self) -> Vec<Event>,
    ) -> Vec<Event> {
        let mut all = std::mem::take(&mut self.knowledge);
        let events = all
            .iter_mut()
            .flat_map(|one| question(one.as_mut(), self))
            .collect();
        self.put_back(all);
        events
    }

    /// Asks each of them what brings no events.
    pub(super) fn show(&mut self, mut what: impl FnMut(&mut dyn Knowledge, &mut Self)) {
        let mut all = std::mem::take(&mut self.knowledge);
        all.iter_mut().for_each(|one| what(one.as_mut(), self));
        self.put_back(all);
    }

    /// Those who were due while another one was asked have their turn now.
    fn put_back(&mut self, all: Vec<Box<dyn Knowledge>>) {
        self.knowledge = all;
        let missed = std::mem::take(&mut self.missed);
        missed.into_iter().for_each(|who| self.tick(who));
    }

    /// A young collection is enforced, whose threads then stand still until they are released. Returns how long it takes, without the way to
    /// the safepoint. What its threads stand still counts as lost as it passes.
    pub(super) fn collect_and_hold(&mut self, load: usize, safepoint: Duration) -> Duration {
        let Some(heap) = self.guest.models[load].heap() else {
            return Duration::ZERO;
        };
        let collection = heap.collect();
        collection.mark(&mut self.guest.marks);
        self.guest.hold(load);
        if !safepoint.is_zero() {
            self.book.pause(self.now, safepoint, "safepoint");
        }
        self.book
            .pause(self.now + safepoint, collection.pause, "collection");
        self.book.cpu(collection.pause);
        collection.pause
    }

    pub(super) fn tick(&mut self, who: usize) {
        self.book.events += 1;
        let mut all = std::mem::take(&mut self.knowledge);
        match all.get_mut(who) {
            Some(one) => one.tick(self),
            None if self.missed.contains(&who) => {}
            None => self.missed.push(who),
        }
        self.knowledge = all;
    }
}
