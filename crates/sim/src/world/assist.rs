//! Applications that say what need not be sent: drives `whimbrel_policy::skip::Assist` with imagined applications.

use std::time::Duration;

use whimbrel_policy::migration::Event;
use whimbrel_policy::skip::{
    facts, ApplicationId, Assist, AssistEvent, AssistLimits, AssistOrder, AssistOutcome, Claim,
};
use whimbrel_policy::{PageRun, Scan};

use super::bits::run;
use super::knowledge::Knowledge;
use super::World;
use crate::scenario::Scenario;

/// An answer that is on its way.
#[derive(Clone, Debug)]
struct Answer {
    at: Duration,
    event: AssistEvent,
}

/// All applications of a scenario.
#[derive(Debug)]
pub(super) struct Applications {
    assist: Assist,
    /// The load of each.
    loads: Vec<usize>,
    answers: Vec<Answer>,
    is_asked_to_prepare: bool,
}

impl Applications {
    pub fn new(scenario: &Scenario) -> Self {
        let ids: Vec<_> = (0..scenario.application.len() as u32)
            .map(ApplicationId)
            .collect();
        let load_of = |name: &String| scenario.guest.load.iter().position(|load| load.name == *name);
        let limits = AssistLimits {
            answer_max: scenario.migration.answer_within.0,
            ..AssistLimits::default()
        };
        Applications {
            assist: Assist::new(limits, &ids),
            // A scenario was checked to name loads that are there.
            loads: scenario
                .application
                .iter()
                .map(|one| load_of(&one.load).unwrap_or(0))
                .collect(),
            answers: Vec::new(),
            is_asked_to_prepare: false,
        }
    }

    /// Carries orders out until nobody has to be waited for.
    fn talk(&mut self, world: &mut World<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        while !world.is_over() {
            match self.assist.poll(world.now) {
                AssistOrder::Ask { application } => self.asked(world, application),
                AssistOrder::Prepare { application } => self.prepare(world, application),
                AssistOrder::Mask { runs } => events.push(Event::Facts(facts(runs, 0))),
                AssistOrder::Unmask { runs } => events.push(Event::Forgotten(runs)),
                AssistOrder::Wait { until } => self.wait(world, until),
                AssistOrder::Tell { .. } => {}
                AssistOrder::Listen | AssistOrder::Pause | AssistOrder::End => break,
            }
        }
        events
    }

    /// Until the next answer comes, or nobody waits any longer.
    fn wait(&mut self, world: &mut World<'_>, until: Duration) {
        let next = (0..self.answers.len()).min_by_key(|&at| self.answers[at].at);
        match next.filter(|&at| self.answers[at].at < until) {
            Some(at) => {
                let answer = self.answers.remove(at);
                world.advance(answer.at.max(world.now));
                self.assist.handle(world.now, answer.event);
            }
            None => {
                world.advance(until.max(world.now));
                if world.is_over() {
                    return;
                }
                world
                    .book
                    .note("an application did not answer in time: its pages are sent");
            }
        }
    }

    fn asked(&mut self, world: &mut World<'_>, application: ApplicationId) {
        let asked = &world.scenario.application[application.0 as usize];
        if asked.answers {
            let at = world.now + asked.after.0;
            let claim = self.claim(world, application);
            self.answers.push(Answer {
                at,
                event: AssistEvent::Areas { application, claim },
            });
        }
    }

    /// A heap is collected, and its threads are held from there on. Other areas are final as they are.
    fn prepare(&mut self, world: &mut World<'_>, application: ApplicationId) {
        self.is_asked_to_prepare = true;
        let asked = &world.scenario.application[application.0 as usize];
        if !asked.answers {
            return;
        }
        let load = self.loads[application.0 as usize];
        let mut at = world.now + asked.after.0;
        if world.guest.models[load].heap().is_some() {
            world.advance(at);
            at = at + asked.safepoint.0 + world.collect_and_hold(load, asked.safepoint.0);
        }
        let claim = self.claim(world, application);
        self.answers.push(Answer {
            at,
            event: AssistEvent::Final { application, claim },
        });
    }

    /// Of a heap the young generation, but for what has survived once it was collected; of others the whole area.
    fn claim(&self, world: &mut World<'_>, application: ApplicationId) -> Claim {
        let load = self.loads[application.0 as usize];
        let (first, pages) = world.scenario.guest.load[load].area;
        let areas = match world.guest.models[load].heap() {
            None => vec![run(first, pages)],
            Some(heap) if self.is_asked_to_prepare => {
                let (young, live) = (heap.young(), heap.survivors());
                let above = live.first + live.pages;
                let parts = [
                    (young.first, live.first - young.first),
                    (above, young.first + young.pages - above),
                ];
                parts
                    .iter()
                    .filter(|part| part.1 > 0)
                    .map(|part| run(part.0, part.1))
                    .collect()
            }
            Some(heap) => vec![run(heap.young().first, heap.young().pages)],
        };
        let owned: Vec<PageRun> = vec![run(first, pages)];
        Claim { areas, owned }
    }
}

impl Knowledge for Applications {
    fn begin(&mut self, world: &mut World<'_>) -> Vec<Event> {
        self.talk(world)
    }

    fn before_freeze(&mut self, world: &mut World<'_>) {
        self.assist.handle(world.now, AssistEvent::Suspending);
        self.talk(world);
    }

    fn frozen_scan(&mut self, world: &mut World<'_>, scan: &mut Scan) {
        if let Err(refused) = self.assist.final_scan(scan) {
            world.book.note(&refused.to_string());
        }
    }

    fn resumed(&mut self, world: &mut World<'_>) {
        self.assist
            .handle(world.now, AssistEvent::Ended(AssistOutcome::Resumed));
        self.talk(world);
        self.loads.iter().for_each(|&load| world.guest.release(load));
    }
}
