//! The forward context.

use std::collections::BTreeSet;

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
    /// It is as far ahead as it may be.
    rests: bool,
}

impl Hall {
    /// The forward context begins where the VM was frozen.
    pub(super) fn begin_guide(&mut self, moved: &mut Move) {
        let vm = &self.vms[moved.vm];
        moved.guide = Some(Guide {
            context: vm.context.clone(),
            step: vm.step,
            own: BTreeSet::new(),
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
        let done = self.vms[moved.vm].context.done();
        let Some(guide) = &mut moved.guide else { return };
        let context = &mut guide.context;
        // That the following context's progress is known at once spares messages, and says a latency more than could be known.
        if context.done().saturating_sub(done) >= self.settings.lead {
            guide.rests = true;
            return;
        }
        let page = context.wanted();
        let mut wait = self.settings.reference;
        if context.holds(page) {
            context.hit();
            if !guide.own.contains(&page) {
                self.aim(moved, page);
            }
        } else if guide.step == Step::Touch && self.settings.is_disk_always {
            guide.step = Step::Load;
            wait = self.settings.disk;
        } else {
            guide.step = Step::Touch;
            guide.own.insert(page);
            context.load();
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

    /// The forward context may go on when the following one does.
    pub(super) fn note_reference(&mut self, moved: &mut Move) {
        moved.record.references += 1;
        if let Some(guide) = moved.guide.as_mut().filter(|guide| guide.rests) {
            guide.rests = false;
            let heard = self.now + self.settings.link_latency;
            self.moving_at(heard, moved.number, Moves::Guide);
        }
    }
}
