//! The forward context.

use std::collections::BTreeSet;
use std::time::Duration;

use whimbrel_policy::postcopy::{GuideStep, Lead, LeadLimits, LEAD_PAGES_MAX};
use whimbrel_policy::Page;

use super::{Hall, Move, Moves, THREAD};
use crate::manager::context::Context;
use crate::manager::hall::Step;

/// The forward context: the VM's context goes on at the source. It has its own copy of registers and page table, and what it loads
/// it loads for itself, so that nothing of what it does can be seen.
#[derive(Clone, Debug)]
pub(super) struct Guide {
    context: Context,
    step: Step,
    /// Pages that it has from disk: the following context has those from there, too.
    own: BTreeSet<u64>,
    /// How far ahead it may be. Its clock is that of references, without waits.
    lead: Lead,
    clock: Clock,
    /// It is as far ahead as it may be.
    rests: bool,
}

/// Running time, from the moment of the freeze on.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// References that were done before.
    begun: u64,
    reference: Duration,
}

impl Clock {
    fn ran(self, context: &Context) -> Duration {
        times(self.reference, context.done().saturating_sub(self.begun))
    }
}

/// So many references.
fn times(reference: Duration, count: u64) -> Duration {
    let nanos = reference.as_nanos().saturating_mul(u128::from(count));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Hall {
    /// The forward context begins where the VM was frozen.
    pub(super) fn begin_guide(&mut self, moved: &mut Move) {
        let vm = &self.vms[moved.vm];
        let reference = self.settings.reference;
        moved.guide = Some(Guide {
            context: vm.context.clone(),
            step: vm.step,
            own: BTreeSet::new(),
            lead: Lead::new(LeadLimits {
                // References are what the user limits.
                pages_max: LEAD_PAGES_MAX,
                time_max: times(reference, self.settings.lead),
                ..LeadLimits::default()
            }),
            clock: Clock {
                begun: vm.context.done(),
                reference,
            },
            rests: false,
        });
        let line = format!(
            "the forward context of {} goes on at {}",
            vm.name, moved.record.source
        );
        self.say(&line);
        self.moving_at(self.now + moved.rest, moved.number, Moves::Guide);
    }

    pub(super) fn guide_on(&mut self, moved: &mut Move) {
        let Some(guide) = &mut moved.guide else { return };
        match guide.lead.step() {
            GuideStep::Run => self.guide_refers(moved),
            GuideStep::Wait => guide.rests = true,
            GuideStep::Jump => self.guide_jumps(moved),
            GuideStep::End(_) => moved.guide = None,
        }
    }

    /// Its next reference, or the wait for a page from disk.
    fn guide_refers(&mut self, moved: &mut Move) {
        let space = moved.space();
        let Some(guide) = &mut moved.guide else { return };
        let context = &mut guide.context;
        let page = context.wanted();
        guide.lead.guide_touched(Page { space, number: page });
        let mut wait = self.settings.reference;
        let mut is_aimed = false;
        if context.holds(page) {
            context.hit();
            is_aimed = !guide.own.contains(&page);
        } else if guide.step == Step::Touch && self.settings.is_disk_always {
            guide.step = Step::Load;
            wait = self.settings.disk;
        } else {
            guide.step = Step::Touch;
            guide.own.insert(page);
            context.load();
        }
        guide.lead.guide_ran(guide.clock.ran(context));
        if is_aimed {
            self.aim(moved, page);
        }
        self.moving_at(self.now + wait, moved.number, Moves::Guide);
    }

    fn aim(&mut self, moved: &mut Move, page: u64) {
        moved.touched.insert(page);
        let aimed = moved.page(page);
        if let Some(residual) = &mut moved.residual {
            residual.aim(THREAD, aimed);
        }
        self.send_residual(moved);
    }

    /// It begins anew where the following context is, a round trip later.
    fn guide_jumps(&mut self, moved: &mut Move) {
        let vm = &self.vms[moved.vm];
        let Some(guide) = &mut moved.guide else { return };
        guide.context = vm.context.clone();
        guide.step = vm.step;
        guide.lead.follower_ran(guide.clock.ran(&vm.context));
        guide.lead.jumped();
        let line = format!("the forward context of {} begins anew", vm.name);
        self.say(&line);
        let there = self.now + 2 * self.settings.link_latency;
        self.moving_at(there, moved.number, Moves::Guide);
    }

    /// The following context has done a reference; the forward one hears of it.
    pub(super) fn note_reference(&mut self, moved: &mut Move) {
        moved.record.references += 1;
        if let Some(guide) = &moved.guide {
            let ran = guide.clock.ran(&self.vms[moved.vm].context);
            let heard = self.now + self.settings.link_latency;
            self.moving_at(heard, moved.number, Moves::Followed { ran });
        }
    }

    /// The source hears how far the following context is.
    pub(super) fn guide_hears(&mut self, moved: &mut Move, ran: Duration) {
        if let Some(guide) = &mut moved.guide {
            guide.lead.follower_ran(ran);
        }
        self.wake_guide(moved);
    }

    /// The source hears what the following context waits for.
    pub(super) fn guide_hears_fault(&mut self, moved: &mut Move, page: u64) {
        let page = moved.page(page);
        if let Some(guide) = &mut moved.guide {
            guide.lead.follower_faulted(page);
        }
        self.wake_guide(moved);
    }

    fn wake_guide(&mut self, moved: &mut Move) {
        let Some(guide) = &mut moved.guide else { return };
        if guide.rests && guide.lead.step() != GuideStep::Wait {
            guide.rests = false;
            self.moving_at(self.now, moved.number, Moves::Guide);
        }
    }
}
