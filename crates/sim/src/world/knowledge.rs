//! Those who know something about pages, and when they are asked.

use std::fmt::Debug;

use whimbrel_policy::migration::Event;
use whimbrel_policy::Scan;

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

    /// A scan was handed in, and what it found.
    fn scanned(&mut self, _world: &mut World<'_>, _scan: &Scan) -> Vec<Event> {
        Vec::new()
    }

    /// The workload is about to be frozen.
    fn before_freeze(&mut self, _world: &mut World<'_>) -> Vec<Event> {
        Vec::new()
    }

    /// The scan of the frozen workload was made: pages that need not arrive may be taken out of `present`.
    fn frozen_scan(&mut self, _world: &mut World<'_>, _scan: &mut Scan) {}

    /// The workload runs at the destination.
    fn resumed(&mut self, _world: &mut World<'_>) {}

    /// What it asked for with [`super::Due::Tick`] is due. Events are handed over at the next occasion.
    fn tick(&mut self, _world: &mut World<'_>) {}
}

/// Those that a scenario asks for.
pub(crate) fn of(_scenario: &Scenario) -> Vec<Box<dyn Knowledge>> {
    Vec::new()
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
        self.knowledge = all;
        events
    }

    pub(super) fn tick(&mut self, who: usize) {
        self.book.events += 1;
        let mut all = std::mem::take(&mut self.knowledge);
        if let Some(one) = all.get_mut(who) {
            one.tick(self);
        }
        self.knowledge = all;
    }
}
